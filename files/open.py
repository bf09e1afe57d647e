"""
A data file in, checked rows out.

layouts.py and foreign.py say how a file is laid out, values.py what its values mean, recognise.py which
equation it is of, and kinds.py what a file is that is no HDF5 file.

Rows are split by their index: a tenth test, a tenth validation, the rest train. Files of several parameter
values share their initial conditions row by row, so an index belongs to the same split in all of them.
"""
import hashlib
import os
import zipfile
from dataclasses import dataclass

import h5py
import numpy as np

import equations
from equations.common import centres
from files.layouts import GAS, LAYOUTS, spacing
from files.recognise import Found, check_asked, recognise
from files.values import check_filters, is_number, stored, unit_doubts
from runtime.configurator import UserError, say
from runtime.progress import counted

CHUNK_ROWS = 16                       # rows read at a time, at most: 13 MB of a released file on one axis
CHUNK_VALUES = 2 ** 23                # values read at a time, at most (or one row): 34 MB
OTHER_TIMES = 100.                    # a time step so many times longer or shorter than usual
ZARR = {'.zgroup', '.zarray', '.zmetadata', 'zarr.json'}
MISSING = 9.9e36                      # netCDF's own mark is 9.97e36, without an attribute that says so
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
    dtype: str = 'float32'            # type of the stored numbers, and how they are packed
    layout: str = 'tensor'            # a key of LAYOUTS
    doubts: tuple = ()                # what is unusual in it, one sentence each
    first_time: float = 0.            # seconds, of frame 0
    exists: bool = True               # False: planned by `find`, to be made by write.make
    notes: tuple = ()                 # what is usual in it, but not obvious
    seed: int = 0                     # of its initial fields, if it is planned

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
        facts['domain'] = (entry.fields.index(entry.domain),) if entry.domain else ()
        return {**facts, 'pde': self.pde, 'params': tuple(self.params), 'dt': self.dt * time_stride,
                'grid': tuple(cells // space_stride for cells in self.shape),
                'first': tuple(float(axis[0]) for axis in self.x)}


# -----------------------------------------------------------------------------
# find

def find(dataset, data_dir, data_path, params, n, resolution=0, quiet=False, named=False):
    """The data files that a configuration asks for: [Source]. Nothing is written.

    data_path: existing file(s), separated by commas, which are opened. Where it is empty, data_dir is
    searched for the released file (not if a resolution is asked for), then for the file of n trajectories
    that the built-in solver makes. Where neither exists, the Source is the plan of the latter, with
    exists=False. params: {'Nu': .01}; where a parameter has several values, there is a file for each, and the
    k-th is made with seed k. resolution: cells along each axis, 0: those of the released file. named: see
    `open_source`. Raises UserError for a file that is missing, broken or of another equation.
    """
    if data_path:
        return [open_source(path, dataset, quiet, named) for path in _named_paths(data_path)]
    data_dir = os.path.expanduser(data_dir)
    if os.path.isfile(data_dir):
        raise UserError(f"data_dir '{data_dir}' is a file, expected a folder: name a file by --data_path")
    return [_find_one(dataset, data_dir, values, n, resolution, quiet, named, seed)
            for seed, values in enumerate(equations.each_value(params))]


def _find_one(dataset, data_dir, params, n, resolution, quiet, named, seed):
    entry = equations.entry(dataset)
    released = os.path.join(data_dir, entry.released(params))
    made = os.path.join(data_dir, entry.made(params, n, resolution, seed))
    if os.path.exists(released) and not resolution:
        return open_source(released, dataset, quiet, named)
    if os.path.exists(made):
        return open_source(made, dataset, quiet, named)
    if entry.solve is None:
        raise UserError(f"no '{released}', and there is no built-in solver for {dataset}: download it, or "
                        'name a file by --data_path')
    return plan(made, dataset, params, n, resolution, seed)


def plan(path, dataset, params, n, resolution=0, seed=0):
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
                  exists=False, seed=seed)


def _named_paths(data_path):
    whole = os.path.expanduser(data_path)
    if os.path.exists(whole):                                           # a path may contain commas
        return [whole]
    paths = [os.path.expanduser(part.strip()) for part in data_path.split(',') if part.strip()]
    for path in paths:
        if not os.path.exists(path.rstrip('/')):
            raise UserError(f"data_path '{path}' does not exist: leave data_path empty to have the data made")
    if not paths:
        raise UserError(f"data_path='{data_path}' names no file")
    if len(set(map(os.path.realpath, paths))) < len(paths):
        raise UserError(f"data_path='{data_path}' names a file twice: leave it out once")
    return paths


def as_file(path, what='data file'):
    """The path of a file, in which ~ is expanded. what: what the file is, in words. Raises UserError for a
    folder, a file that may not be read, and one that is not there."""
    path = os.path.expanduser(path)
    bare = path.rstrip('/')
    if path != bare and os.path.isfile(bare):
        raise UserError(f"'{path}' ends with a slash, but '{bare}' is a file: leave the slash out")
    if os.path.isdir(path):
        if ZARR.intersection(os.listdir(path)):
            raise UserError(f"'{path}' is a Zarr folder, and an HDF5 file is needed: write it by h5py")
        raise UserError(f"'{path}' is a directory, expected a file: {_found_beside(path + '/')}")
    if not os.path.exists(path):
        hint = ': python data.py make NAME --n 1000 makes one' if what == 'data file' else ''
        raise UserError(f"no {what} '{path}' ({_found_beside(path)}){hint}")
    if not os.path.isfile(path):
        raise UserError(f"'{path}' is a pipe or a device, expected a file: write its content to one")
    if not os.access(path, os.R_OK):
        raise UserError(f"'{path}' may not be read by you: change its permissions")
    return path


def _found_beside(path):
    """What HDF5 files the folder of a path holds, in words."""
    folder = os.path.dirname(path) or '.'
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    found = [name for name in names if name.endswith(('.h5', '.hdf5', '.mat', '.nc'))]
    return f"{folder} holds {', '.join(found[:5])}" if found else f'{folder} holds no .hdf5 file'


# -----------------------------------------------------------------------------
# open

def open_source(path, dataset=None, quiet=False, named=False):
    """Open and check one file without reading its rows. Returns a Source.

    dataset: the equation that it must be of; None: any. quiet: print no notes. named: the user has named
    the dataset, which is then taken if it fits, though another equation may fit better. Raises UserError
    for a file that is missing, truncated, incomplete, laid out differently, or of another equation.
    """
    if dataset is not None:
        equations.entry(dataset)                                        # a misspelt name is told first
    path = as_file(path)
    try:
        with h5py.File(path, 'r') as file:
            source, guesses = _check(path, file, dataset, named)
    except UserError:
        raise
    except _NOT_READABLE as error:
        raise _unreadable(path, error) from error
    if not quiet:
        if source.entry.note:
            _tell_once(path, f'is {source.entry.note}')
        for guess in guesses:
            _tell_once(path, guess)
        if source.dtype != 'float32':
            whole = np.dtype(source.dtype.split()[0]).kind in 'iu' and 'packed' not in source.dtype
            meant = '; there is no scale_factor, so these are the values' if whole else ''
            _tell_once(path, f'is of {source.dtype}: its values are cast to float32{meant}')
    return source


def _unreadable(path, error):
    from files.kinds import other_kind                                  # only for what is no data file
    what, mend = other_kind(path)
    if what:
        return UserError(f"'{path}' is {what}, and an HDF5 file is needed: {mend}")
    hint = 'truncated or damaged: make or download it again'
    if 'unable to lock' in str(error):
        hint = 'another program is writing it; on a network disk try HDF5_USE_FILE_LOCKING=FALSE'
    return UserError(f"cannot read '{path}' ({os.path.getsize(path)} bytes): {error}; {hint}")


def _tell_once(path, note):
    if (path, note) not in _told:
        _told.add((path, note))
        say(f"data: '{path}' {note}")


def _check(path, file, dataset, named):
    """The Source of an open file, and what is guessed of its equation, a list of texts."""
    fitting = [name for name, layout in LAYOUTS.items() if layout.fits(file)]
    if not fitting:
        from files.foreign import READ_ONLY                             # layouts that are only read
        from points.files import LAYOUT
        LAYOUTS.update(READ_ONLY, points=LAYOUT)
        fitting = [name for name, layout in LAYOUTS.items() if layout.fits(file)]
    layout = fitting[0] if fitting else 'tensor'                        # its check says what the file lacks
    if is_number(file.attrs.get('complete'), 0):                        # ours is; other programs' are not
        raise UserError(f"'{path}' is marked incomplete: delete it and make it again")
    content = LAYOUTS[layout].check(path, file)
    if min(map(len, content.x)) < 2:
        raise UserError(f"'{path}' has one cell along an axis, and at least 2 are needed")
    found = Found(path, file, layout, content)
    pde, guess = recognise(found, dataset, named)
    check_asked(found, pde, guess, dataset)
    entry = equations.entry(pde)
    params = {name: found.parameter(name) for name in entry.params}
    for name, value in params.items():
        if not np.isfinite(value) or value <= 0:
            raise UserError(f"'{path}': {name}={value} must be positive and finite")
    doubts = [*content.doubts, *spacing_doubts(content.x, entry)]
    notes = [*content.notes]
    guesses = [guess] if guess else []
    guesses += [f'{text}: not used' for text in found.passed_over(entry)]
    guesses += [*unit_doubts(file), *time_doubts(content, entry)]
    doubts += [f'the file {text}' for text in guesses]
    unused = found.unused(entry)
    if unused and not found.label:
        text = f"{', '.join(unused)}, which {pde} does not use"
        notes.append(f'the file has {text}')
        if not named:
            guesses.append(f'has {text}')
    source = Source(path, pde, content.n, content.n_frames, content.dt, content.x, params, content.dtype,
                    layout, tuple(doubts), content.first_time, notes=tuple(notes))
    return source, guesses


def time_doubts(content, entry):
    """Sentences on times that begin late, or have steps far from those of the equation's own files."""
    doubts = []
    if abs(content.first_time) > .01 * content.dt:
        doubts.append(f'begins at {content.first_time:g} s: rollouts start there, from its frame 0')
    ratio = content.dt / entry.dt
    if entry.solve and not 1 / OTHER_TIMES < ratio < OTHER_TIMES:
        doubts.append(f'has a frame every {content.dt:g} s, {ratio:.3g} times the {entry.dt:g} s of files that '
                      'are made: are its times seconds?')
    return doubts


def spacing_doubts(x, entry):
    """A doubt for each axis of the coordinates x whose points are not as far apart as equal cells of the
    domain."""
    return [doubt for _, _, doubt in uneven_axes(x, entry)]


def uneven_axes(x, entry):
    """Yields such axes: (number, how many cells the last point is off, the doubt)."""
    for number, (axis, length) in enumerate(zip(x, entry.length)):
        dx = spacing(axis)
        cell = length / len(axis)
        beyond = abs(dx - cell) * len(axis) / cell
        if beyond > .01:
            yield number, beyond, (f'{len(axis)} points are {dx:.6g} apart, and not {cell:.6g}: are some at '
                                   'both ends of the domain?')


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
        for first in counted(f"reading '{source.path}'", range(0, len(rows), at_once)):
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
    """Raise UserError for values of u (n, T, *X, C) float32 that are not finite, or so large that they mark
    missing ones, with their number and the first."""
    if not u.size or u.min() > -MISSING and u.max() < MISSING:       # False for NaN
        return
    bad = ~(np.abs(u) < MISSING)
    row, frame = np.argwhere(bad)[0][:2]
    raise UserError(f"'{path}': {bad.sum()} values are not finite, the first in trajectory {first_row + row}, "
                    f'frame {frame} (of those read); values that are marked as missing or larger than '
                    f'{MISSING:g} count, too')


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


def seen_rows(source, rows, seen):
    """The rows, of `rows` in a file, whose first frame has one of the fingerprints `seen` (int64 tensor)."""
    seen = set(seen.tolist()) - {0}
    prints = first_prints(source, rows).tolist()
    return [row for row, fingerprint in zip(rows, prints) if fingerprint in seen]


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
    """Initial conditions (B, *X, C) float32 from a .npy file ((*X,), (*X, C) or (B, *X, C)), an .npz
    archive of one such array or of `u0`, or an HDF5 file (`tensor` (B, T, *X): its first frames; or `u0`).
    The content of a file counts, not the ending of its name. For a steady equation the coefficient is
    enough. Raises UserError for anything else."""
    path = as_file(path, 'initial condition')
    try:
        u0 = _read_array(path, steady)
    except UserError:
        raise
    except (*_NOT_READABLE, EOFError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines() or [type(error).__name__]
        raise UserError(f"cannot read '{path}': {reason[0]}") from error
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
    from files.kinds import other_kind
    what, _ = other_kind(path)
    if '.npy' in what:
        return np.load(path, allow_pickle=False)
    if '.npz' in what:
        with np.load(path, allow_pickle=False) as archive:
            names = archive.files
            if 'u0' not in names and len(names) > 1:
                raise UserError(f"'{path}' is an .npz archive of {', '.join(names[:8])}: save the initial "
                                'condition alone, or under the name u0')
            return archive['u0' if 'u0' in names else names[0]]
    if what:
        raise UserError(f"'{path}' is {what}: expected a .npy, .npz or HDF5 file")
    with h5py.File(path, 'r') as file:
        for name in ('nu', 'tensor', 'u0') if steady else ('tensor', 'u0'):
            if name in file:
                check_filters(path, name, file[name])
                return _initial_values(file[name], name)
        raise UserError(f"'{path}' holds {list(file)[:8]}, expected 'u0' or 'tensor'")


def _initial_values(dataset, name):
    if name == 'u0':
        return stored(dataset)
    where = () if name == 'nu' else (slice(None), 0)        # the coefficients, or the first frames
    return stored(dataset, where)[..., None]
