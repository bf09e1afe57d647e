"""
A data file in, checked rows out.

layouts.py and foreign.py say how a file is laid out. The equation of a file is recognised by its layout, its
attributes, its domain and its fields; the attribute `pde` of a file that write.py has made names it. Where
several equations fit, the name of the file decides.

Rows are split by their index: a tenth test, a tenth validation, the rest train. Files of several parameter
values share their initial conditions row by row, so an index belongs to the same split in all of them.
"""
import hashlib
import os
import re
from dataclasses import dataclass, replace
from fnmatch import fnmatch

import h5py
import numpy as np

import equations
from equations.common import centres
from files.layouts import GAS, LAYOUTS, spacing
from runtime.configurator import UserError, say

CHUNK_ROWS = 16                       # rows read at a time, at most: 13 MB of a released file on one axis
CHUNK_VALUES = 2 ** 23                # values read at a time, at most (or one row): 34 MB
# what h5py raises for damaged metadata
_NOT_READABLE = (OSError, RuntimeError, KeyError, ValueError, AttributeError, TypeError)

_told = set()                         # notes on files that this process has printed


@dataclass(frozen=True)
class Source:
    """A data file that was opened and checked, or the plan of one that does not exist yet. Holds no rows."""
    path: str
    pde: str                          # name of its equation
    n: int                            # trajectories
    n_frames: int
    dt: float                         # seconds between stored frames
    x: tuple                          # one float64 array of coordinates an axis
    params: dict                      # {name: value} of the equation's parameters
    dtype: str = 'float32'            # type of the stored numbers
    layout: str = 'tensor'            # a key of LAYOUTS
    doubts: tuple = ()                # what is unusual in it, one sentence each
    exists: bool = True               # False: planned by `find`, to be made by write.make

    @property
    def entry(self):
        return equations.entry(self.pde)

    @property
    def fields(self):
        return self.entry.fields

    @property
    def shape(self):
        """Cells along each axis."""
        return tuple(len(axis) for axis in self.x)

    def time_stride(self, dt):
        """Stored frames in a step of dt seconds, at least 1."""
        return max(1, round(dt / self.dt))

    def facts(self, time_stride, space_stride):
        """What a model has to know of the equation and of fields that are strided so, {name: value}; see
        model.ModelConfig."""
        entry = self.entry
        facts = {name: getattr(entry, name) for name in
                 ('fields', 'low', 'length', 'boundary', 'translation', 'diagonal', 'galilean')}
        for name in ('static', 'positive', 'conserved', 'velocity'):
            facts[name] = tuple(entry.fields.index(field) for field in getattr(entry, name))
        return {**facts, 'pde': self.pde, 'params': tuple(self.params), 'dt': self.dt * time_stride,
                'grid': tuple(cells // space_stride for cells in self.shape),
                'first': tuple(float(axis[0]) for axis in self.x)}


# -----------------------------------------------------------------------------
# find

def find(dataset, data_dir, data_path, params, n, resolution=0, quiet=False):
    """The data files that a configuration asks for: [Source]. Nothing is written.

    data_path: existing file(s), separated by commas, which are opened. Where it is empty, data_dir is
    searched for the released file (not if a resolution is asked for), then for the file of n trajectories
    that the built-in solver makes. Where neither exists, the one Source is the plan of the latter, with
    exists=False. params: {'Nu': .01}. resolution: cells along each axis, 0: those of the released file.
    Raises UserError for a file that is missing, broken or of another equation.
    """
    if data_path:
        return [open_source(path, dataset, quiet) for path in _named_paths(data_path)]
    entry = equations.entry(dataset)
    released = os.path.join(data_dir, entry.released(params))
    made = os.path.join(data_dir, entry.made(params, n, resolution))
    if os.path.exists(released) and not resolution:
        return [open_source(released, dataset, quiet)]
    if os.path.exists(made):
        return [open_source(made, dataset, quiet)]
    if entry.solve is None:
        raise UserError(f"no '{released}', and there is no built-in solver for {dataset}: download it, or "
                        'name a file by --data_path')
    return [plan(made, dataset, params, n, resolution)]


def plan(path, dataset, params, n, resolution=0):
    """The Source of the file that the built-in solver would make. Raises UserError where it cannot."""
    entry = equations.entry(dataset)
    if entry.solve is None or entry.initial is None:
        raise UserError(f'there is no built-in solver for {dataset}: its files have to be downloaded')
    if len(entry.fields) > 1 and entry.layout == 'tensor':
        raise UserError(f"{dataset} has {len(entry.fields)} fields, and the layout 'tensor' holds one: set "
                        "layout='groups' in its entry")
    if entry.layout == 'arrays' and entry.fields != GAS[:2 + entry.axes]:
        raise UserError(f"the layout 'arrays' holds {', '.join(GAS[:2 + entry.axes])}, and {dataset} has "
                        f"{', '.join(entry.fields)}: set layout='groups' in its entry")
    if LAYOUTS[entry.layout].write is None:
        raise UserError(f"{dataset} has files of the layout '{entry.layout}', which cannot be written")
    if n < 1:
        raise UserError(f'n={n} must be at least 1 trajectory')
    if resolution < 0 or resolution == 1:
        raise UserError(f"resolution={resolution} must be at least 2 cells, or 0 for {dataset}'s own")
    x = [centres(size, *ends) for size, ends in zip(entry.shape(resolution), entry.space)]
    return Source(path, dataset, n, entry.frames, entry.dt, tuple(x), params, layout=entry.layout,
                  exists=False)


def _named_paths(data_path):
    if os.path.exists(data_path):                                       # a path may contain commas
        return [data_path]
    paths = [part.strip() for part in data_path.split(',') if part.strip()]
    for path in paths:
        if not os.path.exists(path):
            raise UserError(f"data_path '{path}' does not exist: leave data_path empty to have the data made")
    if not paths:
        raise UserError(f"data_path='{data_path}' names no file")
    return paths


# -----------------------------------------------------------------------------
# open

def open_source(path, dataset=None, quiet=False):
    """Open and check one file without reading its rows. Returns a Source.

    dataset: the equation that it must be of; None: any. quiet: print no notes. Raises UserError for a file
    that is missing, truncated, incomplete, laid out differently, or of another equation.
    """
    if dataset is not None:
        equations.entry(dataset)                                        # a misspelt name is told first
    if os.path.isdir(path):
        raise UserError(f"'{path}' is a directory, expected an HDF5 file")
    if not os.path.exists(path):
        raise UserError(f"no data file '{path}' ({_found_beside(path)}): "
                        'python data.py make NAME --n 1000 makes one')
    try:
        with h5py.File(path, 'r') as file:
            source = _check(path, file, dataset)
    except UserError:
        raise
    except _NOT_READABLE as error:
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
    if not fitting:
        from files.foreign import READ_ONLY                             # layouts that are only read
        LAYOUTS.update(READ_ONLY)
        fitting = [name for name, layout in READ_ONLY.items() if layout.fits(file)]
    layout = fitting[0] if fitting else 'tensor'                        # its check says what the file lacks
    if not np.all(file.attrs.get('complete', 1)):
        raise UserError(f"'{path}' is marked incomplete: delete it and make it again")
    content = LAYOUTS[layout].check(path, file)
    if min(map(len, content.x)) < 2:
        raise UserError(f"'{path}' has one cell along an axis, and at least 2 are needed")
    if content.params is None:
        content = replace(content, params=_numbers(file))
    label = file.attrs.get('pde')
    if isinstance(label, bytes):
        label = label.decode()
    pde = _recognise(path, layout, content, label, dataset)
    entry = equations.entry(pde)
    params = {name: content.params[name] for name in entry.params}
    for name, value in params.items():
        if not np.isfinite(value) or value <= 0:
            raise UserError(f"'{path}': {name}={value} must be positive and finite")
    doubts = (*content.doubts, *spacing_doubts(content.x, entry))
    return Source(path, pde, content.n, content.n_frames, content.dt, content.x, params, content.dtype,
                  layout, doubts)


def _numbers(file):
    """The attributes that may be parameters of the equation: {name: number}."""
    numbers = {}
    for name, value in file.attrs.items():
        value = np.asarray(value)
        if value.dtype.kind in 'fiu' and value.size == 1:
            numbers[name] = float(value.squeeze())
    return numbers


def spacing_doubts(x, entry):
    """A doubt for each axis of the coordinates x whose points are not as far apart as equal cells of the
    domain."""
    doubts = []
    for axis, length in zip(x, entry.length):
        dx = spacing(axis)
        cell = length / len(axis)
        if abs(dx - cell) * len(axis) > .01 * cell:
            doubts.append(f'{len(axis)} points are {dx:.6g} apart, and not {cell:.6g}: are some at both ends '
                          'of the domain?')
    return doubts


# -----------------------------------------------------------------------------
# recognise the equation

def _recognise(path, layout, content, label, dataset):
    """Name of the equation of a file. label: its attribute `pde`, or None. dataset: the equation asked for,
    or None. One of these two is looked at alone as long as it fits; else every equation is loaded, and of
    those that fit (and whose released files have such a name, if there are any) the one with the most
    parameters is taken. Raises UserError where none fits."""
    name = label or dataset
    if name is not None:
        if name not in equations.names():
            raise UserError(f"'{path}' has the attribute pde='{name}', which is no known equation: there are "
                            f"{', '.join(equations.names())}")
        misfit = _misfit(path, equations.entry(name), layout, content, label)
        if not misfit:
            return name
        if label:
            raise UserError(f"'{path}' has the attribute pde='{name}', but {misfit}")
    entries = equations.entries()
    fitting = [key for key, entry in entries.items() if not _misfit(path, entry, layout, content, label)]
    fitting = [key for key in fitting if _is_named_like(path, entries[key])] or fitting
    if fitting:
        return max(fitting, key=lambda key: len(entries[key].params))
    if name is not None:
        raise UserError(f"'{path}' is no file of {name}, nor of another known equation: {misfit}")
    spans = ' x '.join('({:g}, {:g})'.format(*_span(axis)) for axis in content.x)
    fields = ', '.join(content.fields) if content.fields else content.n_fields
    raise UserError(f"'{path}' fits no known equation (layout '{layout}', fields: {fields}, cells span "
                    f"{spans}, attributes: {', '.join(content.params) or 'none'}): name one of "
                    f"{', '.join(entries)} in an attribute pde of the file, or add an equation")


def _misfit(path, entry, layout, content, label):
    """Why a file cannot be of an equation; '' if it can. With a label, neither further attributes nor the
    name of the file matter. The first point may lie anywhere in its cell."""
    if entry.layout not in (layout, LAYOUTS[layout].like):
        return f"its layout is '{layout}', not '{entry.layout}'"
    if len(content.x) != entry.axes:
        return f'it has {len(content.x)} axes, not {entry.axes}'
    if content.n_fields not in (None, len(entry.fields)):
        return f'it has {content.n_fields} fields, not {len(entry.fields)}'
    if content.fields not in (None, entry.fields):
        return f"its fields are {', '.join(content.fields)}, not {', '.join(entry.fields)}"
    if content.boundary not in (None, entry.boundary):
        return f"its boundary is '{content.boundary}', not '{entry.boundary}'"
    for name in entry.params:
        if name not in content.params:
            return f'it has no attribute {name}'
    for name in content.params:
        if name not in entry.params and not label:
            return f'its attribute {name} is no parameter of the equation'
    for word in ('_periodic_', '_trans_'):               # in names of PDEBench's gases; trans: waves leave
        if layout == 'arrays' and not label and word in os.path.basename(path):
            if entry.periodic != (word == '_periodic_'):
                return f"its name says '{word}', but the boundary of the equation is '{entry.boundary}'"
    for axis, (low, high) in zip(content.x, entry.space):
        dx = spacing(axis)
        tolerance = .02 * (high - low)
        is_long = abs(len(axis) * dx - (high - low)) <= tolerance
        if not is_long or not low - tolerance < axis[0] < low + dx + tolerance:
            return 'its cells span ({:g}, {:g}), not ({:g}, {:g})'.format(*_span(axis), low, high)
    return ''


def _is_named_like(path, entry):
    """Does the name of a file look like those of the released ones?"""
    pattern = re.sub(r'\{\w+\}', '*', os.path.basename(entry.file))
    return fnmatch(os.path.basename(path), pattern)


def _span(axis):
    """The two ends of an axis of cell centres."""
    half = spacing(axis) / 2
    return axis[0] - half, axis[-1] + half


# -----------------------------------------------------------------------------
# rows

def read(source, file, rows, frames=slice(None)):
    """Values (n, T, *X, C) float32 of an opened file, unchecked. rows, frames: slices. Raises UserError for a
    failed checksum."""
    try:
        return LAYOUTS[source.layout].read(file, rows, frames)
    except OSError as error:
        raise _unreadable(source.path, error) from error


def opened(source):
    """The h5py file of a source. Raises UserError if it has become unreadable since it was checked."""
    try:
        return h5py.File(source.path, 'r')
    except OSError as error:
        raise _unreadable(source.path, error) from error


def blocks(source, rows, time_stride=1):
    """Yields (offset of a block's first row in `rows`, values (n, T, *X, C) float32), 16 rows at a time or
    fewer large ones, at the full space resolution, unchecked. rows: a range of step 1. Raises UserError for
    a failed checksum."""
    row_values = source.n_frames * int(np.prod(source.shape)) * len(source.fields)
    at_once = min(CHUNK_ROWS, max(1, CHUNK_VALUES // row_values))
    with opened(source) as file:
        for first in range(0, len(rows), at_once):
            start = rows.start + first
            stop = min(start + at_once, rows.stop)
            yield first, read(source, file, slice(start, stop), slice(None, None, time_stride))


def read_rows(source, rows, time_stride=1, space_stride=1, check=True):
    """Rows of a file, strided in time and along every space axis: (len(rows), T, *X, C) float32. rows: a
    range of step 1. Raises UserError for rows that the file does not have, a failed checksum, and (unless
    check=False) values that are not finite."""
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


def check_finite(path, u, first_row=0):
    """Raise UserError for values of u (n, T, *X, C) that are not finite, with their number and the first."""
    bad = ~np.isfinite(u)
    if bad.any():
        row, frame = np.argwhere(bad)[0][:2]
        raise UserError(f"'{path}': {bad.sum()} values are not finite, the first in trajectory "
                        f'{first_row + row}, frame {frame} (of those read)')


def split_rows(n, split, test='first'):
    """Rows of the split 'train', 'val', 'test' or 'all' of n trajectories, a range: a tenth is test, a tenth
    validation, the rest train; at least one each. test: the tenth that is test, 'first' (validation is the
    second) or 'last' (validation is the one before it)."""
    if n < 3:
        raise UserError(f'{n} trajectories cannot be split into train, val and test: at least 3 are needed')
    part = max(1, n // 10)
    rows = {'test': range(0, part), 'val': range(part, 2 * part), 'train': range(2 * part, n)}
    if test == 'last':
        rows = {'train': range(0, n - 2 * part), 'val': range(n - 2 * part, n - part),
                'test': range(n - part, n)}
    return {**rows, 'all': range(0, n)}[split]


# -----------------------------------------------------------------------------
# equal initial conditions

def fingerprints(u0):
    """A number for each first frame of u0 (n, *X, C), (n,) int64: 8 bytes of the SHA-256 of its float32
    values; 0 for a frame whose fields are constant, because equal constants are no leak."""
    u0 = np.asarray(u0, dtype=np.float32)
    space = tuple(range(1, u0.ndim - 1))
    is_constant = (np.ptp(u0, axis=space) == 0).all(-1)
    result = np.zeros(len(u0), np.int64)
    for row, frame in enumerate(u0):
        if not is_constant[row]:
            digest = hashlib.sha256(np.ascontiguousarray(frame).tobytes()).digest()
            result[row] = np.frombuffer(digest[:8], '<i8')[0]
    return result


def first_prints(source, rows):
    """The fingerprints of rows of a file, (len(rows),) int64. Reads the first frames alone. rows: a range of
    step 1."""
    prints = [np.zeros(0, np.int64)]
    with opened(source) as file:
        for start in range(rows.start, rows.stop, CHUNK_ROWS):
            some = slice(start, min(start + CHUNK_ROWS, rows.stop))
            prints.append(fingerprints(read(source, file, some, slice(0, 1))[:, 0]))
    return np.concatenate(prints)


def check_overlap(splits):
    """Raise UserError for equal initial conditions in different splits, of one file or of several. splits:
    {split: [(path, number of the first row, fingerprints (n,)), ..]}, an entry for each file."""
    seen = {}
    for split, parts in splits.items():
        for path, first, prints in parts:
            for row, fingerprint in enumerate(prints.tolist(), first):
                if fingerprint == 0:
                    continue
                other = seen.setdefault(fingerprint, (split, row, path))
                if other[0] != split:
                    raise UserError(f"trajectory {row} ({split}) of '{path}' has the same initial condition as "
                                    f"trajectory {other[1]} ({other[0]}) of '{other[2]}': the splits leak into "
                                    'each other')


# -----------------------------------------------------------------------------
# initial conditions alone

def read_initial(path, n_field, n_axes=1, steady=False):
    """Initial conditions (B, *X, C) float32 from a .npy file ((*X,), (*X, C) or (B, *X, C)) or an HDF5 file
    (`tensor` (B, T, *X): its first frames; or `u0`, shaped as in .npy). For a steady equation the coefficient
    is enough. Raises UserError for anything else."""
    if not os.path.isfile(path):
        raise UserError(f"no initial condition '{path}'")
    try:
        u0 = _read_array(path, steady)
    except UserError:
        raise
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise UserError(f"cannot read '{path}': {str(error).splitlines()[0]}") from error
    if u0.dtype.kind not in 'fiu':
        raise UserError(f"'{path}' holds {u0.dtype}, expected numbers")
    if not np.isfinite(u0).all():
        raise UserError(f"'{path}' holds values that are not finite")
    found = u0.shape
    if u0.ndim == n_axes:
        u0 = u0[..., None]
    if u0.ndim == n_axes + 1:
        u0 = u0[None]
    if steady and u0.shape[-1:] == (1,):
        u0 = np.concatenate([u0, np.zeros_like(u0)], -1)             # the solution, which is not known yet
    if u0.ndim != n_axes + 2 or u0.shape[-1] != n_field or not len(u0) or min(u0.shape[1:-1]) < 2:
        cells = ', '.join('XY'[:n_axes])
        one = '(X,)' if n_axes == 1 else f'({cells})'
        raise UserError(f"'{path}': expected the shape {one}, ({cells}, {n_field}) or "
                        f'(B, {cells}, {n_field}) with at least 2 cells; found {found}')
    return u0.astype(np.float32)


def _read_array(path, steady):
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
