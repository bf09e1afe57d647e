"""
Data files: one HDF5 file in, checked rows out; the writer of the built-in solvers' files; and files of
initial conditions.

layouts.py says how a file is laid out. Which equation it is of is recognised by its layout, its attributes,
its domain and its number of fields, and told by the attribute `pde` of the files that are made here. Where
several fit, the name of the file decides.

Rows are split by trajectory index: a tenth test, a tenth validation, the rest train. Files of several
parameters share their initial conditions row by row, so one index belongs to one split in all of them.
"""
import argparse
import contextlib
import hashlib
import os
import platform
import re
import shutil
import sys
import time
from dataclasses import dataclass
from fnmatch import fnmatch

import h5py
import numpy as np

import pdes
from layouts import LAYOUTS
from runtime.configurator import UserError, one_line_errors, say
from runtime.device import float64_device

CHUNK_ROWS = 16                       # rows read at a time, at most: 13 MB of a released file on one axis
CHUNK_VALUES = 2 ** 23                # values read at a time, at most (or one row): 34 MB
SOLVED_VALUES = 2 ** 25               # values solved for at a time, at most (or one row): 270 MB
CACHED_VALUES = 2 ** 15               # values of a frame solved for at a time on a CPU, about: 260 kB
FORMAT_VERSION = 1
# what h5py raises for damaged metadata
NOT_READABLE = (OSError, RuntimeError, KeyError, ValueError, AttributeError, TypeError)

_told = set()                         # notes on files that this process has printed


# ---------------------------------------------------------------------------------------------
# one file

@dataclass(frozen=True)
class Source:
    """One opened and checked file; holds no rows."""
    path: str
    pde: str                          # name of its equation: a key of pdes.PDES
    n: int                            # trajectories
    n_frames: int
    dt: float                         # seconds between stored frames
    x: tuple                          # one float64 array of coordinates an axis
    params: dict                      # values of the PDE's parameters by name
    dtype: str                        # type of the stored numbers
    layout: str = 'tensor'            # a key of layouts.LAYOUTS
    doubts: tuple = ()                # what is unusual in it
    own_entry: pdes.PDE = None        # what the file says of an equation that pdes.py has not

    @property
    def entry(self):
        return self.own_entry or pdes.entry(self.pde)

    @property
    def fields(self):
        return self.entry.fields

    @property
    def shape(self):
        """Cells along each axis."""
        return tuple(len(axis) for axis in self.x)

    @property
    def low(self):
        return self.entry.low

    @property
    def length(self):
        return self.entry.length

    @property
    def periodic(self):
        return self.entry.periodic

    def time_stride(self, dt):
        """Stored frames in a step of dt seconds, at least 1."""
        return max(1, round(dt / self.dt))


def open_source(path, dataset=None, quiet=False):
    """Open and check one file's layout without reading its rows. Returns a Source.

    dataset: name of the equation that it must be of (None: any that is known). quiet: print no notes. Raises
    UserError for a missing, truncated, incomplete or differently laid out file, and for one of another
    equation.
    """
    if dataset is not None:
        pdes.entry(dataset)                                             # a misspelt name is told first
    if os.path.isdir(path):
        raise UserError(f"'{path}' is a directory, expected an HDF5 file")
    if not os.path.exists(path):
        raise UserError(f"no data file '{path}' ({_found_beside(path)}): "
                        'python solvers.py NAME --n 1000 makes one')
    try:
        with h5py.File(path, 'r') as file:
            source = _check(path, file, dataset)
    except UserError:
        raise
    except NOT_READABLE as error:
        raise _unreadable(path, error) from error
    if dataset not in (None, source.pde):
        raise UserError(f"'{path}' holds {source.pde}, not {dataset}: "
                        f'use --dataset={source.pde}, or another file')
    if not quiet:
        _tell_once(path, source.entry.note)
        if source.dtype != 'float32':
            _tell_once(path, f'of {source.dtype}: its values are cast to float32')
    return source


def _found_beside(path):
    folder = os.path.dirname(path) or '.'
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    found = [name for name in names if name.endswith(('.h5', '.hdf5'))]
    return f"{folder} holds {', '.join(found[:5])}" if found else f'{folder} holds no .hdf5 file'


def _unreadable(path, error):
    hint = 'truncated or damaged: make or download it again'
    if 'unable to lock' in str(error):
        hint = 'another program is writing it; on a network disk try HDF5_USE_FILE_LOCKING=FALSE'
    return UserError(f"cannot read '{path}' ({os.path.getsize(path)} bytes): {error}; {hint}")


def _tell_once(path, note):
    if note and (path, note) not in _told:
        _told.add((path, note))
        say(f"data: '{path}' is {note}")


def _check(path, file, dataset):
    """The Source of an open file."""
    fitting = [name for name, layout in LAYOUTS.items() if layout.fits(file)]
    name = fitting[0] if fitting else 'tensor'                          # its check says what the file lacks
    if not np.all(file.attrs.get('complete', 1)):
        raise UserError(f"'{path}' is marked incomplete: delete it and make it again")
    content = LAYOUTS[name].check(path, file)
    numbers = _numbers(file) if content.params is None else content.params
    pde = _recognise(path, file, name, content, numbers, dataset)
    own = None
    if pde is None:                                                     # the file's own word is taken
        own = content.entry
        pde = os.path.splitext(own.file)[0]
    params = {}
    for key in (own or pdes.entry(pde)).params:
        params[key] = numbers[key]
        if not np.isfinite(params[key]) or params[key] <= 0 and own is None:
            raise UserError(f"'{path}': {key}={params[key]} must be positive and finite")
    doubts = [*content.doubts, *spacing_doubts(content.x, own or pdes.entry(pde))]
    return Source(path, pde, content.n, content.n_frames, content.dt, content.x, params, content.dtype, name,
                  tuple(doubts), own)


def spacing_doubts(x, entry):
    """What is unusual about the coordinates x, one array an axis: points are expected to be as far apart as
    the cells of so many that make up the domain."""
    doubts = []
    for axis, length in zip(x, entry.length):
        dx = _spacing(axis)
        cell = length / len(axis)
        if abs(dx - cell) * len(axis) > .01 * cell:
            doubts.append(f'{len(axis)} points are {dx:.6g} apart, and not {cell:.6g}: are some at both ends '
                          'of the domain?')
    return doubts


# ---------------------------------------------------------------------------------------------
# which equation

def _recognise(path, file, layout, content, numbers, dataset):
    """Name of the equation that a file is of: what the attribute `pde` says, else of the known ones that fit
    (that fit the name of the file, too, if there are any) the one that was asked for, or that with the most
    parameters. Where none fits, it is None if the file tells enough itself and none was asked for; else that
    raises UserError, listing what is known."""
    said = file.attrs.get('pde')
    if isinstance(said, bytes):
        said = said.decode()
    fitting = [name for name, entry in pdes.PDES.items() if _fits(entry, layout, content, numbers)]
    if said is not None:
        fitting = [name for name in fitting if name == said]
    else:                                                # a parameter too many is one of another equation
        fitting = [name for name in fitting if set(numbers) <= set(pdes.entry(name).params)]
        if '_trans_' in os.path.basename(path):          # PDEBench's word for a boundary that lets waves out
            fitting = [name for name in fitting if not pdes.entry(name).periodic]
        fitting = [name for name in fitting if _is_named_like(path, pdes.entry(name))] or fitting
    if dataset in fitting:
        return dataset
    if fitting:
        return max(fitting, key=lambda name: len(pdes.entry(name).params))
    if content.entry is not None and dataset is None:
        return None
    spans = ' x '.join(f'({low:g}, {high:g})' for low, high in map(_span, content.x))
    attributes = ', '.join(file.attrs) or 'none'
    fields = 'the fields ' + ', '.join(content.fields) if content.fields else f'{content.n_fields} fields'
    known = '; '.join(f'{name}: {_expected(pdes.entry(name))}' for name in pdes.PDES)
    says = '' if said is None else f"says that it is of '{said}', but "
    raise UserError(f"'{path}' {says}fits no known equation: its layout is '{layout}' with {fields}, "
                    f'its cells span {spans}, its attributes are {attributes}; known are {known}; pdes.py '
                    'says how one is added. If it is one of these, name it in an attribute pde of the file')


def _is_named_like(path, entry):
    """Does the name of a file look like that of the released ones?"""
    pattern = re.sub(r'\{\w+\}', '*', os.path.basename(entry.file))
    return fnmatch(os.path.basename(path), pattern)


def _numbers(file):
    """The attributes that may be parameters of the equation: {name: number}."""
    numbers = {}
    for name, value in file.attrs.items():
        value = np.asarray(value)
        if value.dtype.kind in 'fiu' and value.size == 1:
            numbers[name] = float(value.squeeze())
    return numbers


def _expected(entry):
    spans = ' x '.join(f'({low:g}, {high:g})' for low, high in entry.space)
    attributes = ', '.join(entry.params) or 'no attribute'
    return f"'{entry.layout}', {', '.join(entry.fields)} on {spans} with {attributes}"


def _spacing(axis):
    """Between neighbours of a uniform axis."""
    return (axis[-1] - axis[0]) / (len(axis) - 1)


def _span(axis):
    """The two ends of an axis of cell centres."""
    half = _spacing(axis) / 2
    return axis[0] - half, axis[-1] + half


def _fits(entry, layout, content, numbers):
    """Do layout, fields, boundary, attributes and domain fit? The first point may lie anywhere in its
    cell."""
    if entry.layout not in (layout, LAYOUTS[layout].like) or entry.axes != len(content.x):
        return False
    if content.n_fields not in (None, len(entry.fields)) or content.fields not in (None, entry.fields):
        return False
    if content.boundary not in (None, entry.boundary) or not set(entry.params) <= set(numbers):
        return False
    for axis, low, length in zip(content.x, entry.low, entry.length):
        dx = _spacing(axis)
        tolerance = .02 * length
        if abs(len(axis) * dx - length) > tolerance:
            return False
        if not low - tolerance < axis[0] < low + dx + tolerance:
            return False
    return True


# ---------------------------------------------------------------------------------------------
# rows

def read(source, file, rows, frames=slice(None)):
    """Values (n, T, *X, C) float32 of an opened file, unchecked. rows, frames: slices. Raises UserError for a
    failed checksum."""
    try:
        return LAYOUTS[source.layout].read(file, rows, frames)
    except OSError as error:
        raise _unreadable(source.path, error) from error


def opened(source):
    """Its file, open for reading. Raises UserError if it has become unreadable since it was checked."""
    try:
        return h5py.File(source.path, 'r')
    except OSError as error:
        raise _unreadable(source.path, error) from error


def blocks(source, rows, time_stride=1):
    """Rows of a file, 16 at a time (fewer where they are large) and not checked: yields (offset of the
    block's first row in `rows`, values (n, T, *X, C) float32) at the full space resolution. rows: a range of
    step 1. Raises UserError for a failed checksum."""
    row_values = source.n_frames * int(np.prod(source.shape)) * len(source.fields)
    at_once = min(CHUNK_ROWS, max(1, CHUNK_VALUES // row_values))
    with opened(source) as file:
        for first in range(0, len(rows), at_once):
            start = rows.start + first
            stop = min(start + at_once, rows.stop)
            yield first, read(source, file, slice(start, stop), slice(None, None, time_stride))


def read_rows(source, rows, time_stride=1, space_stride=1, check=True):
    """Rows of a file, strided in time and along every space axis: (len(rows), T, *X, C) float32. rows: a
    range of step 1. Raises UserError for values that are not finite (with their count and first index) or a
    failed checksum, and rows that the file does not have."""
    if rows.stop > source.n:
        raise UserError(f"'{source.path}' holds {source.n} trajectories, but row {rows.stop - 1} is asked "
                        'for')
    n_frames = -(-source.n_frames // time_stride)
    shape = [-(-size // space_stride) for size in source.shape]
    out = np.empty((len(rows), n_frames, *shape, len(source.fields)), np.float32)
    cells = (slice(None, None, space_stride),) * len(shape)             # HDF5 itself strides cells slowly
    for first, u in blocks(source, rows, time_stride):
        out[first:first + len(u)] = u[(slice(None), slice(None), *cells)]
    if check:
        check_finite(source.path, out, rows.start)
    return out


def read_initial(path, n_field, n_axes=1, steady=False):
    """Initial conditions (B, *X, C) float32 from .npy ((*X,), (*X, C) or (B, *X, C)) or HDF5 ('tensor' (B, T,
    *X): its first frames, or 'u0' laid out like .npy). Of a steady equation the coefficient alone will do.
    Raises UserError for anything else."""
    if not os.path.isfile(path):
        raise UserError(f"no initial condition '{path}'")
    try:
        u0 = read_array(path, steady)
    except UserError:
        raise
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise UserError(f"cannot read '{path}': {str(error).splitlines()[0]}") from error
    found = u0.shape
    if u0.ndim == n_axes:
        u0 = u0[..., None]
    if u0.ndim == n_axes + 1:
        u0 = u0[None]
    if steady and u0.shape[-1:] == (1,):
        u0 = np.concatenate([u0, np.zeros_like(u0)], -1)             # the solution, which is not known yet
    fits = u0.ndim == n_axes + 2 and u0.shape[-1] == n_field and len(u0) and min(u0.shape[1:-1]) > 1
    if not fits or u0.dtype.kind not in 'fiu' or not np.isfinite(u0).all():
        cells = ', '.join('XY'[:n_axes])
        one = '(X,)' if n_axes == 1 else f'({cells})'
        raise UserError(f"'{path}': expected finite numbers of shape {one}, ({cells}, {n_field}) or "
                        f'(B, {cells}, {n_field}); found {u0.dtype} {found}')
    return u0.astype(np.float32)


def read_array(path, steady):
    """The array of an initial condition as it is in the file."""
    if path.endswith('.npy'):
        return np.load(path, allow_pickle=False)
    if not path.endswith(('.h5', '.hdf5')):
        raise UserError(f"'{path}': expected a .npy, .h5 or .hdf5 file")
    with h5py.File(path, 'r') as file:
        if steady and 'nu' in file:
            return file['nu'][:][..., None]                          # coefficients; its tensor has solutions
        if 'tensor' in file:
            return file['tensor'][:, 0][..., None]                   # first frames
        if 'u0' in file:
            return file['u0'][:]
        raise UserError(f"'{path}' holds {sorted(file)}, expected 'u0' or 'tensor'")


def check_finite(path, u, first_row=0):
    """Raise UserError for values of u (n, T, *X, C) that are not finite."""
    bad = ~np.isfinite(u)
    if bad.any():
        row, frame = np.argwhere(bad)[0][:2]
        raise UserError(f"'{path}': {bad.sum()} values are not finite, the first in trajectory "
                        f'{first_row + row}, frame {frame} (of those read)')


def split_rows(n, split, test='first'):
    """Rows of a split of n: a tenth is test, a tenth val, the rest train; at least one each. test: which
    tenth is the test split, 'first' (then val is the second) or 'last' (val is the one before it)."""
    if n < 3:
        raise UserError(f'{n} trajectories cannot be split into train, val and test: at least 3 are needed')
    part = max(1, n // 10)
    if test == 'first':
        rows = {'test': range(0, part), 'val': range(part, 2 * part), 'train': range(2 * part, n)}
    else:
        first_test = n - part
        first_val = first_test - part
        rows = {'train': range(0, first_val), 'val': range(first_val, first_test)}
        rows['test'] = range(first_test, n)
    rows['all'] = range(0, n)
    return rows[split]


# ---------------------------------------------------------------------------------------------
# equal initial conditions

def fingerprints(u0):
    """A number for each first frame of u0 (n, *X, C), (n,) int64: 8 bytes of the SHA-256 of its float32
    values. It is 0 for a frame whose fields are constant, because such a frame gives nothing away."""
    u0 = np.asarray(u0, dtype=np.float32)
    space = tuple(range(1, u0.ndim - 1))
    is_constant = (np.ptp(u0, axis=space) == 0).all(-1)
    result = np.zeros(len(u0), np.int64)
    for row, frame in enumerate(u0):
        if not is_constant[row]:
            digest = hashlib.sha256(np.ascontiguousarray(frame).tobytes()).digest()
            result[row] = np.frombuffer(digest[:8], '<i8')[0]
    return result


def check_overlap(named):
    """Refuse two equal initial conditions in different splits. named: {split: (first row, fingerprints
    (n,))}."""
    seen = {}
    for split, (first, prints) in named.items():
        for row, fingerprint in enumerate(prints.tolist(), first):
            if fingerprint == 0:
                continue
            other = seen.setdefault(fingerprint, (split, row))
            if other[0] != split:
                raise UserError(f'trajectory {row} ({split}) has the same initial condition as trajectory '
                                f'{other[1]} ({other[0]}): the splits leak into each other')


# ---------------------------------------------------------------------------------------------
# inspect

class Statistics:
    """Least, largest and mean value and standard deviation of each field, in one pass over (n, T, *X, C)."""

    def __init__(self, n_fields):
        self.count = 0
        self.low = np.full(n_fields, np.inf)
        self.high = np.full(n_fields, -np.inf)
        self.total = np.zeros(n_fields)
        self.squares = np.zeros(n_fields)

    def add(self, u):
        u = u.reshape(-1, u.shape[-1])
        self.count += len(u)
        self.low = np.minimum(self.low, u.min(0))
        self.high = np.maximum(self.high, u.max(0))
        self.total += u.sum(0, dtype=np.float64)
        self.squares += np.square(u, dtype=np.float64).sum(0)

    def result(self):
        """{'min', 'max', 'mean', 'std'}, each a list of one number a field."""
        mean = self.total / self.count
        variance = self.squares / self.count - mean ** 2
        std = np.sqrt(np.maximum(variance, 0))
        found = {'min': self.low, 'max': self.high, 'mean': mean, 'std': std}
        return {name: values.tolist() for name, values in found.items()}


def inspect(path):
    """Everything worth knowing of a file as JSON types; reads every row. Raises UserError if it is broken."""
    source = open_source(path, quiet=True)
    statistics = Statistics(len(source.fields))
    rows_of = {}                                                        # fingerprint -> its rows
    empty = []                                                          # rows with a later frame that is 0
    moving = [i for i, name in enumerate(source.fields) if name not in source.entry.static]
    for first, u in blocks(source, range(source.n)):
        check_finite(path, u, first)
        statistics.add(u)
        is_empty = ~u[:, 1:, ..., moving].any(tuple(range(2, u.ndim - 1)))               # (n, T - 1, C)
        empty += [first + int(row) for row in np.flatnonzero(is_empty.any((1, 2)))]
        for row, fingerprint in enumerate(fingerprints(u[:, 0]).tolist(), first):
            if fingerprint:
                rows_of.setdefault(fingerprint, []).append(row)
    if source.n >= 3:
        _check_splits(path, source, rows_of)
    doubts = list(source.doubts)
    if empty:
        doubts.append(f'{len(empty)} trajectories (first: {empty[0]}) have a field that is 0 everywhere: no '
                      'relative error of it is defined')
    domain = [[low, low + length] for low, length in zip(source.low, source.length)]
    found = {
        'path': path,
        'pde': source.pde,
        'layout': source.layout,
        'fields': list(source.fields),
        'trajectories': source.n,
        'frames': source.n_frames,
        'cells': list(source.shape),
        'dt': source.dt,
        'first_x': [float(axis[0]) for axis in source.x],
        'domain': domain,
        'periodic': source.periodic,
        'params': source.params,
        'dtype': source.dtype,
        'doubts': doubts}
    found.update(statistics.result())
    found['duplicates'] = sum(len(rows) - 1 for rows in rows_of.values())
    return found


def _check_splits(path, source, rows_of):
    split_of = {}
    for name in ('test', 'val', 'train'):
        split_of.update(dict.fromkeys(split_rows(source.n, name, source.entry.test), name))
    for rows in rows_of.values():
        if len({split_of[row] for row in rows}) > 1:
            numbers = ', '.join(map(str, rows[:5]))
            raise UserError(f"'{path}': trajectories {numbers} share one initial condition but belong to "
                            'different splits')


# ---------------------------------------------------------------------------------------------
# find or make

def find_or_make(dataset, data_dir, data_path, params, n, resolution=0, device='cpu',
                 before_making=lambda shape, n_frames: None):
    """Paths of the files a config asks for. An explicit data_path must exist; commas separate several.
    Otherwise the released file, or the built-in solver's file of n trajectories, is looked for in data_dir,
    and made there if absent, after a call of before_making(cells of each axis, frames). params: {'Nu': .01}.
    resolution: cells along each axis, or 0 for those of the released file."""
    if data_path:
        return _explicit(data_path)
    entry = pdes.entry(dataset)
    released = os.path.join(data_dir, entry.released(params))
    made = os.path.join(data_dir, entry.made(params, n, resolution))
    if os.path.exists(released) and not resolution:
        return [released]
    if not os.path.exists(made):
        if entry.solve is None:
            raise UserError(f"no '{released}', and there is no built-in solver for {dataset}: download it, "
                            'or name a file by data_path')
        say(f"data: no '{released}' and no '{made}'")
        before_making(entry.shape(resolution), entry.frames)
        write_file(made, dataset, params, n, device=device, resolution=resolution)
    return [made]


def _explicit(data_path):
    if os.path.exists(data_path):                                       # a path may contain commas
        return [data_path]
    paths = [part.strip() for part in data_path.split(',') if part.strip()]
    for path in paths:
        if not os.path.exists(path):
            raise UserError(f"data_path '{path}' does not exist: leave data_path empty to have the data made")
    if not paths:
        raise UserError(f"data_path='{data_path}' names no file")
    return paths


def write_file(path, dataset, params, n, seed=0, device='auto', batch_size=None, resolution=0):
    """Solve n trajectories and write a file of the entry's layout, complete or not at all. Returns path.

    params: {'Nu': .01}. resolution: cells along each axis (0: the entry's). The file holds float32 values,
    the coordinates, and the parameters as attributes; it is checksummed (fletcher32). Prints the cost before
    it starts. Raises UserError.
    """
    entry = pdes.entry(dataset)
    if entry.solve is None or entry.initial is None:
        raise UserError(f'there is no built-in solver for {dataset}: its files have to be downloaded')
    layout = LAYOUTS[entry.layout]
    if layout.write is None:
        raise UserError(f"{dataset} has files of the layout '{entry.layout}', which cannot be written")
    if n < 1 or batch_size is not None and batch_size < 1:
        raise UserError(f'n={n}, batch_size={batch_size}: at least one trajectory is needed')
    if seed < 0:
        raise UserError(f'seed={seed} must be 0 or more')
    if resolution < 0 or resolution == 1:
        raise UserError(f'resolution={resolution}: at least two cells are needed')
    device = float64_device(device)
    cells = entry.shape(resolution)
    frame_values = int(np.prod(cells)) * len(entry.fields)
    row_values = entry.frames * frame_values
    if batch_size is None:
        # A CPU is fastest where the frames of a batch fit into its cache, a GPU with many.
        batch_size = 256 if device.type == 'cuda' else max(32, CACHED_VALUES // frame_values)
        at_once = SOLVED_VALUES * (8 if device.type == 'cuda' else 1)
        batch_size = min(batch_size, max(1, at_once // row_values))
    batch_size = min(n, batch_size)
    t = np.arange(entry.frames) * entry.dt

    def solve(first, size, times):
        """Trajectories first .. first + size, (size, T, *X, C) float32."""
        u0 = entry.start(size, cells, seed, first).to(device)
        u = entry.solution(u0, params, times)
        return u.float().cpu().numpy()

    make_folder(path)
    n_bytes = 4 * n * row_values
    check_space(path, n_bytes)
    seconds = n * _seconds_a_trajectory(solve, min(n, batch_size, 16), t)
    values = ', '.join([dataset, *(f'{name} {value:g}' for name, value in params.items())])
    say(f'solvers: making {path}: {n} trajectories of {values}, seed {seed}, on {device}: '
        f'about {seconds / 60:.1f} minutes and {n_bytes / 1e9:.2f} GB')
    attributes = {**params, 'seed': seed, 'pde': dataset, 'format_version': FORMAT_VERSION}
    attributes['source'] = f'solvers.py: {getattr(entry.solve, "__name__", "?")}, float64'
    with _whole_hdf5(path) as file:
        file.attrs.update(attributes)
        layout.create(file, entry, n, cells)
        start = time.perf_counter()
        last_print = start
        for first in range(0, n, batch_size):
            done = min(first + batch_size, n)
            layout.write(file, first, solve(first, done - first, t))
            now = time.perf_counter()
            if now - last_print > 5 or done == n:
                each = (now - start) / done
                say(f'solvers: {done}/{n} {done / n:.0%} | {1e3 * each:.1f} ms a trajectory | '
                    f'eta {each * (n - done):.0f}s')
                last_print = now
    return path


def make_folder(path):
    try:
        os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder of '{path}': {error.strerror}") from error


def check_space(path, n_bytes):
    free = shutil.disk_usage(os.path.dirname(path) or '.').free
    if free < n_bytes * 1.05:
        raise UserError(f'{path} needs {n_bytes / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free there')


def _seconds_a_trajectory(solve, n, t):
    """How long one takes, from a fifth of the times of n of them after a warm-up."""
    solve(0, min(n, 2), t[:3])
    part = t[:max(3, len(t) // 5 + 1)]
    start = time.perf_counter()
    solve(0, n, part)
    return (time.perf_counter() - start) / n * len(t) / len(part)


@contextlib.contextmanager
def _whole_hdf5(path):
    """An HDF5 file open for writing that takes its name when it is complete, or leaves nothing. Raises
    UserError where the disk is full. Chunks are not cached, so that each is written, and fails, where it is
    given: nobody could catch the error of a cache that is emptied when a dataset is closed."""
    temporary = f'{path}.tmp.{platform.node()}.{os.getpid()}'   # others may make the same file meanwhile
    try:                                                        # version 1.10 checksums the metadata, too
        with h5py.File(temporary, 'w', libver='v110', rdcc_nbytes=0) as file:
            yield file
            file.attrs['complete'] = 1
        with open(temporary, 'rb') as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:                    # h5py raises either for a failed write
        found = re.search(r'errno = (\d+)', str(error))
        if found:
            reason = os.strerror(int(found[1]))
        elif isinstance(error, OSError):
            reason = error.strerror or error
        else:
            raise
        raise UserError(f"could not write '{path}': {reason}") from error
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def make_command(argv=None):
    """The command line of solvers.py: make one file."""
    one_line_errors()
    parser = argparse.ArgumentParser(description='Make a PDEBench-layout data set with a built-in solver.')
    parser.add_argument('name', choices=[name for name, pde in pdes.PDES.items() if pde.solve])
    parser.add_argument('--n', type=int, default=1000, help='trajectories')
    for key in pdes.parameter_keys():
        having = [name for name, pde in pdes.PDES.items() if key in map(str.lower, pde.params)]
        parser.add_argument(f'--{key}', type=float, help=f"parameter of {', '.join(having)}")
    parser.add_argument('--seed', type=int, default=0, help='of the initial conditions')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    parser.add_argument('--batch_size', type=int, default=None, help='trajectories solved at a time')
    parser.add_argument('--resolution', type=int, default=0, help="cells an axis (default: PDEBench's)")
    parser.add_argument('--data_dir', default='datasets', help='folder of the file')
    parser.add_argument('--out', default=None, help='file to write (default: a name under --data_dir)')
    args = parser.parse_args(argv)
    params = pdes.parameters(args.name, {key: getattr(args, key) for key in pdes.parameter_keys()})
    out = args.out
    if out is None:
        out = os.path.join(args.data_dir, pdes.entry(args.name).made(params, args.n, args.resolution))
        if args.seed:                                                # training takes seed 0 by this name
            out = out.removesuffix('.hdf5') + f'_seed{args.seed}.hdf5'
    if os.path.exists(out):
        sys.exit(f'error: {out} exists: remove it first, or write elsewhere with --out')
    write_file(out, args.name, params, args.n, args.seed, args.device, args.batch_size, args.resolution)
