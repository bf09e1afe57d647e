"""
The HDF5 layouts that are read and written, one section each: how a file is recognised, checked, read and
written. They are PDEBench's (arXiv 2210.07182); foreign.py has those that are only read, points/files.py that of
points that differ from trajectory to trajectory.

| layout   | holds                                                                                     |
|----------|-------------------------------------------------------------------------------------------|
| 'tensor' | one field: `tensor` (N, T, *X); `x-coordinate` (X,), with two axes `y-coordinate` (Y,);   |
|          | `t-coordinate` (T + 1,), one more than there are frames, or (T,)                          |
| 'arrays' | one array a field: `density`, `pressure`, `Vx`, .. (N, T, *X); coordinates as above       |
| 'steady' | no time: `nu`, the coefficient (N, *X), `tensor`, the solution (N, 1, *X); coordinates.   |
|          | Read as two frames of two fields: (coefficient, 0), (coefficient, solution)               |
| 'groups' | one group a trajectory: `0000/data` (T, *X, C), `0000/grid/x`, `y`, `t`, and records      |

Coordinates and times are in physical units; each may be a row, a column, or the same row for every
trajectory. values.py says how numbers may be packed, and where parameters may stand.
"""
import re
from dataclasses import dataclass
from typing import Callable

import h5py
import numpy as np

from files.values import check_conventions, check_filters, is_own, stored, type_of
from runtime.configurator import UserError

CHUNK_VALUES = 2 ** 18                # values in a chunk of a file that is written: 1 MB
COORDINATE = '{}-coordinate'
GAS = ('density', 'pressure', 'Vx', 'Vy', 'Vz')


@dataclass(frozen=True)
class Content:
    """What a checked file says about itself; None where it says nothing."""
    n: int                    # trajectories
    n_frames: int
    dt: float                 # seconds between stored frames
    x: tuple                  # one float64 array of coordinates an axis
    dtype: str                # type of the stored numbers, see values.type_of
    n_fields: int = None
    fields: tuple = None      # their names
    boundary: str = None      # 'periodic', 'wall' or 'open'
    params: dict = None       # {name: number} that may be parameters; None: see values.parameter
    doubts: tuple = ()        # what is unusual in the file, one sentence each
    notes: tuple = ()         # what is usual, but not obvious
    first_time: float = 0.    # seconds, of frame 0


@dataclass(frozen=True)
class Layout:
    fits: Callable            # (h5py file) -> does it have this layout?
    check: Callable           # (path, h5py file) -> Content. Raises UserError
    read: Callable            # (h5py file, slice of rows, slice of frames) -> (n, T, *X, C) float32
    create: Callable = None   # (h5py file, planned Source): writes the coordinates, makes room for the rows
    write: Callable = None    # (h5py file, number of the first row, values (n, T, *X, C), records of the entry)
    like: str = None          # another layout, whose equations a file of this layout may hold; 'any': all of them


# -----------------------------------------------------------------------------
# checks and reads that the layouts share

def check_datasets(path, file, shapes):
    """Check the datasets of a file: {key: names of its axes, such as 'N T X 2', or None for any shape}.

    Returns the size of each named axis, {'N': 10, ..}. Raises UserError for a dataset that is missing, empty
    or never filled, lies in another file or holds no numbers, and where an axis has another size than a
    dataset before it gave to the same name.
    """
    expected = ', '.join(f"{key} ({axes or 'any shape'})" for key, axes in list(shapes.items())[:8])
    sizes = {}
    for key, axes in shapes.items():
        _check_dataset(path, file, key, expected)
        if axes is None:
            continue
        shape = file[key].shape
        names = axes.split()
        if len(names) == 1 and max(shape, default=0) == file[key].size:
            shape = (file[key].size,)                                    # a row or a column is an axis
        elif len(names) == 1 and len(shape) == 2:
            shape = shape[1:]                                            # one for each trajectory: `one_axis`
        known = {name: sizes[name] for name in names if name in sizes}
        fits = len(shape) == len(names)
        hint = _shape_hint(key, shape, names, sizes)
        for name, size in zip(names, shape):
            fits = fits and size == (int(name) if name.isdigit() else sizes.setdefault(name, size))
        if not fits:
            said = ', '.join(f'{name} = {size}' for name, size in known.items())
            raise UserError(f"'{path}': {key} has the shape {shape}, expected ({', '.join(names)})"
                            + (f' with {said}' if said else '') + hint)
    return sizes


def _shape_hint(key, shape, names, sizes):
    """What a shape that does not fit its axes may be: '; ..' or ''. sizes: of the axes known so far."""
    known = [sizes[name] for name in names if name in sizes]
    if len(shape) == len(names) and known and set(known) <= set(shape):
        sizes = dict(sizes)
        n_times = sizes.get('times')
        if 'T' in names and 'T' not in sizes and n_times:
            sizes['T'] = n_times - 1 if n_times - 1 in shape else n_times
        order = [[name for name in names if sizes.get(name) == size] for size in shape]
        left = [name for name in names if [name] not in order]
        order = [found or left for found in order]
        if all(len(found) == 1 for found in order):
            return f"; its axes seem to be swapped, as if they were ({', '.join(name for name, in order)})"
        return '; its axes seem to be swapped'
    if key == 'tensor' and len(shape) == len(names) + 1:
        if shape[-1] > 8 and names[-1] == 'X':
            return '; if its last axis is y, the data set y-coordinate is missing'
        return (f"; if its last axis is {shape[-1]} fields: this layout holds one field, without such an "
                "axis, 'groups' any (0000/data (T, X, C), 0000/grid/x, 0000/grid/t), 'arrays' a gas "
                '(density, pressure, Vx)')
    return ''


def _check_dataset(path, file, key, expected):
    """Raise UserError unless the file itself holds a dataset `key` of numbers, all of which were stored."""
    if key not in file:
        found = {name: getattr(file[name], 'shape', 'group') for name in list(file)[:8]}
        raise UserError(f"'{path}' has no dataset '{key}': expected {expected}; found {found or 'nothing'}")
    check_own(path, file, key)
    dataset = file[key]
    if not isinstance(dataset, h5py.Dataset):
        raise UserError(f"'{path}': '{key}' is a group, expected a dataset")
    if dataset.external or dataset.is_virtual:
        raise UserError(f"'{path}': the values of '{key}' lie in other files, which are not read")
    if not dataset.size:
        raise UserError(f"'{path}': {key} {dataset.shape} is empty")
    check_filters(path, key, dataset)
    if dataset.chunks is None:
        is_filled = dataset.id.get_storage_size() >= dataset.size * dataset.dtype.itemsize
    else:
        along_axis = [-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks)]
        is_filled = dataset.id.get_num_chunks() >= np.prod(along_axis)
    if not is_filled:
        raise UserError(f"'{path}': {key} claims {dataset.shape} values but stores only "
                        f'{dataset.id.get_storage_size()} bytes: it was never filled')
    if dataset.dtype.kind not in 'fiu':
        raise UserError(f"'{path}': {key} holds {dataset.dtype}, expected numbers")
    check_conventions(path, key, dataset)


def check_own(path, file, key):
    """Raise UserError where a part of the file, or a group that holds it, is a link."""
    parts = key.split('/')
    for depth in range(1, len(parts) + 1):
        name = '/'.join(parts[:depth])
        if not is_own(file, name):
            raise UserError(f"'{path}': '{name}' is a link, and links are not followed: copy what it "
                            'names into the file')


def one_axis(path, name, axis):
    """The coordinates or times of all trajectories, (X,) float64: a row, a column, or (N, X), a row for each
    trajectory. Raises UserError where trajectories differ by a hundredth of a step or more."""
    axis = np.asarray(axis, np.float64)
    if axis.ndim == 2 and 1 not in axis.shape:
        step = np.abs(np.diff(axis[0])).mean()
        differs = np.abs(axis - axis[0]).max(1) > .01 * step
        if differs.any():
            row = int(differs.argmax())
            raise UserError(f"'{path}': {name} differs from row to row ({_ends(axis[row])} in row {row}, "
                            f'{_ends(axis[0])} in row 0): keep trajectories of the same points and times in one '
                            'file')
        axis = axis[0]
    return axis.ravel()


def uniform(path, name, axis):
    """The coordinates or times `axis`, as `one_axis` takes them, (X,) float64. Raises UserError unless they
    increase by equal steps."""
    axis = one_axis(path, name, axis)
    if len(axis) < 2:
        raise UserError(f"'{path}': {name} has {len(axis)} value, and at least 2 are needed")
    if not np.isfinite(axis).all():
        raise UserError(f"'{path}': {name} has values that are not finite")
    step = np.diff(axis)
    if step.max() < 0:
        raise UserError(f"'{path}': {name} does not increase, it falls from {axis[0]:g} to {axis[-1]:g}: "
                        'reverse it and this axis of the fields')
    if step.min() <= 0:
        raise UserError(f"'{path}': {name} does not increase after its value {axis[step.argmin()]:g}")
    if not np.allclose(step, step.mean(), rtol=1e-2):
        raise UserError(f"'{path}': {name} is not uniform: its steps lie between {step.min():g} and "
                        f'{step.max():g}: interpolate the fields to equal steps')
    return axis


def read_axes(path, file, names):
    """The coordinates of these names, a tuple of (X,) float64."""
    return tuple(uniform(path, name, stored(file[name])) for name in names)


def spacing(axis):
    """Distance between neighbours on a uniform axis of space or time."""
    return float(axis[-1] - axis[0]) / (len(axis) - 1)


def read_frames(dataset, before, frames):
    """Values float32 of a dataset, at the slices `before` of its first axes and the slice `frames` of the
    next.

    HDF5 reads a compressed or checksummed chunk as a whole, but picks frames out of it slowly. Where a chunk
    holds several frames, all frames are read and strided in memory, which takes a sixth of the time.
    """
    is_strided = frames.step not in (None, 1)
    if is_strided and dataset.chunks is not None and dataset.chunks[len(before)] > 1:
        whole = slice(frames.start, frames.stop)
        every = (slice(None),) * len(before)
        values = stored(dataset, (*before, whole))[(*every, slice(None, None, frames.step))]
    else:
        values = stored(dataset, (*before, frames))
    with np.errstate(over='ignore'):                     # what float32 does not hold is refused as not finite
        return values.astype(np.float32, copy=False)


def _axes(file, pattern):
    """{name of a coordinate: letter of its axis}, {'x-coordinate': 'X', ..}, for those in the file; x
    always."""
    names = {pattern.format(letter): letter.upper() for letter in 'xyz'}
    return {name: letter for name, letter in names.items() if name in file or letter == 'X'}


def _read_times(path, file, name, sizes):
    """Seconds between the frames, whether there is one time more than there are frames, and the time of
    frame 0."""
    times = one_axis(path, name, stored(file[name]))
    n_times = len(times)
    n_frames = sizes['T']
    if n_times not in (n_frames, n_frames + 1):
        is_swapped = sizes.get('N') in (n_times, n_times - 1)
        raise UserError(f"'{path}': {n_frames} frames but {n_times} times in {name}, expected {n_frames + 1} "
                        f'or {n_frames}' + ('; the axes N and T seem to be swapped' if is_swapped else ''))
    t = uniform(path, name, times[:n_frames])
    return spacing(t), n_times > n_frames, float(t[0])


def _write_axes(file, pattern, axes):
    for letter, values in zip('xyz', axes):
        name = pattern.format(letter)
        file.create_dataset(name, data=values.astype(np.float32), chunks=True, fletcher32=True)


def _make_room(file, name, before, n_frames, row):
    """An empty checksummed dataset (*before, n_frames, *row), in chunks of about 1 MB."""
    frames = CHUNK_VALUES // int(np.prod(row))
    chunk = (*[1] * len(before), min(n_frames, max(1, frames)), *row)
    file.create_dataset(name, (*before, n_frames, *row), np.float32, chunks=chunk, fletcher32=True)


# -----------------------------------------------------------------------------
# 'tensor' and 'arrays': an array (N, T, *X) for each field

def _is_tensor(file):
    return 'tensor' in file


def _is_arrays(file):
    return any(name in file for name in GAS)


def _array_names(file):
    """The tensor, or density, pressure and a velocity along each axis."""
    if _is_tensor(file) or not _is_arrays(file):
        return ('tensor',)
    return GAS[:2 + len(_axes(file, COORDINATE))]


def _check_arrays(path, file):
    names = _array_names(file)
    axes = _axes(file, COORDINATE)
    shapes = {**axes, 't-coordinate': 'times'}
    for name in names:
        shapes[name] = ' '.join(['N T', *axes.values()])
    sizes = check_datasets(path, file, shapes)
    dt, has_more, start = _read_times(path, file, 't-coordinate', sizes)
    notes = []
    if has_more:
        notes.append(f"{sizes['T'] + 1} times for {sizes['T']} frames: the last is left out, as in released "
                     'files')
    return Content(sizes['N'], sizes['T'], dt, read_axes(path, file, axes), type_of(file[names[0]]),
                   n_fields=len(names), notes=notes, first_time=start)


def _read_arrays(file, rows, frames):
    values = [read_frames(file[name], (rows,), frames) for name in _array_names(file)]
    return np.stack(values, -1) if len(values) > 1 else values[0][..., None]


def _create_arrays(file, source):
    times = np.arange(source.n_frames + 1) * source.dt
    _write_axes(file, COORDINATE, source.x)
    _write_axes(file, 't-coordinate', [times])
    for name in ['tensor'] if source.layout == 'tensor' else source.fields:
        _make_room(file, name, (source.n,), source.n_frames, source.shape)


def _write_arrays(file, first, u, records):
    for channel, name in enumerate(_array_names(file)):
        file[name][first:first + len(u)] = u[..., channel]


# -----------------------------------------------------------------------------
# 'steady'

def _is_steady(file):
    """Is there a `nu` in every cell? One number, or one a trajectory, is a parameter of another layout, and
    so is any in a file of several times."""
    if 'nu' not in file or 'tensor' not in file:
        return False
    if not (is_own(file, 'nu') and is_own(file, 'tensor')):
        return True                                                  # the check refuses links
    coefficient = getattr(file['nu'], 'shape', None) or (1,)
    solution = getattr(file['tensor'], 'shape', None) or (1,)
    has_times = 't-coordinate' in file and len(solution) > 1 and solution[1] > 1
    return not has_times and np.prod(coefficient) not in (1, coefficient[0])


def _check_steady(path, file):
    axes = _axes(file, COORDINATE)
    row = ' '.join(axes.values())
    sizes = check_datasets(path, file, {**axes, 'nu': f'N {row}', 'tensor': f'N 1 {row}'})
    return Content(sizes['N'], 2, 1., read_axes(path, file, axes), type_of(file['tensor']), n_fields=2)


def _read_steady(file, rows, frames):
    coefficient = stored(file['nu'], rows)
    u = np.zeros((len(coefficient), 2, *coefficient.shape[1:], 2), np.float32)
    u[..., 0] = coefficient[:, None]
    u[:, 1, ..., 1] = stored(file['tensor'], (rows, 0))
    return u[:, frames]


def _create_steady(file, source):
    _write_axes(file, COORDINATE, source.x)
    _make_room(file, 'nu', (), source.n, source.shape)
    _make_room(file, 'tensor', (source.n,), 1, source.shape)


def _write_steady(file, first, u, records):
    file['nu'][first:first + len(u)] = u[:, 1, ..., 0]
    file['tensor'][first:first + len(u), 0] = u[:, 1, ..., 1]


# -----------------------------------------------------------------------------
# 'groups'

def _is_groups(file):
    names = [name for name in list(file)[:2] if name.isdigit()]
    return bool(names) and f'{names[0]}/points' not in file          # else the layout of points/files.py


def _group(row):
    return f'{row:04d}'


def _check_groups(path, file):
    found = {name for name in file if name.isdigit()}                # a parameter may stand beside them
    names = [_group(row) for row in range(len(found))]
    missing = sorted(set(names) - found)
    if missing:
        others = sorted(found - set(names))
        raise UserError(f"'{path}' has {len(found)} groups, expected {names[0]} .. {names[-1]}: {missing[0]} "
                        f'is missing, {others[0]} is there')
    axes = _axes(file, '0000/grid/{}')
    shapes = {**axes, '0000/grid/t': 'times'}
    for name in names:
        shapes[f'{name}/data'] = ' '.join(['T', *axes.values(), 'C'])
    sizes = check_datasets(path, file, shapes)
    dt, has_more, start = _read_times(path, file, '0000/grid/t', sizes)
    doubts = _config_doubts(file['0000'], sizes['T'])
    if has_more:
        doubts.append(f"{sizes['T'] + 1} times for {sizes['T']} frames: the last is left out")
    records = [f'{name} {item.shape}' for name, item in file['0000'].items()
               if isinstance(item, h5py.Dataset) and name != 'data']
    notes = [f'each trajectory also has {", ".join(records)}'] if records else []
    return Content(len(names), sizes['T'], dt, read_axes(path, file, axes), type_of(file['0000/data']),
                   n_fields=sizes['C'], doubts=doubts, notes=notes, first_time=start)


def _check_all_groups(path, file):
    """As _check_groups, which reads the axes of the first trajectory. Raises UserError where another one has
    other coordinates or times; it may have none of its own."""
    content = _check_groups(path, file)
    names = [_group(row) for row in range(content.n)]
    for key in list(file[names[0]].get('grid', ())):
        first = _axis(file, names[0], key)
        for name in names[1:]:
            try:
                axis = _axis(file, name, key)
            except KeyError:
                continue
            is_same = axis.shape == first.shape
            if is_same and (axis != first).any():
                is_same = abs(axis - first).max() < .01 * abs(spacing(first))        # but for rounding
            if not is_same:
                raise UserError(f"'{path}': trajectory {int(name)} has other values of grid/{key} than "
                                f'trajectory {int(names[0])} ({_ends(axis)} against {_ends(first)}): keep '
                                'trajectories of the same points and times in one file')
    return content


def _axis(file, name, key):
    """The values of an axis of a trajectory, float64. Without the layers of h5py above this, which take five
    times as long, and there are thousands."""
    dataset = h5py.h5d.open(file.id, f'{name}/grid/{key}'.encode())
    values = np.empty(dataset.shape)
    dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
    return values


def _ends(axis):
    return f'{axis.size} from {axis.min():g} to {axis.max():g}' if axis.size else 'none'


def _config_doubts(group, n_frames):
    """A doubt where the generator's configuration, which a released group carries, names another number of
    frames."""
    config = group.attrs.get('config', '')
    if isinstance(config, bytes):
        config = config.decode()
    said = re.search(r'\btdim: *(\d+)', str(config))
    if said and int(said[1]) != n_frames:
        return [f'{n_frames} frames, but the configuration in the file says {said[1]}']
    return []


def _read_groups(file, rows, frames):
    names = [_group(row) for row in range(*rows.indices(len(file)))]
    if not names:
        return read_frames(file[_group(0)]['data'], (), frames)[None][:0]
    return np.stack([read_frames(file[name]['data'], (), frames) for name in names])


def _create_groups(file, source):
    times = np.arange(source.n_frames) * source.dt
    for row in range(source.n):
        group = file.create_group(_group(row))
        _write_axes(group, 'grid/{}', source.x)
        _write_axes(group, 'grid/t', [times])
        _make_room(group, 'data', (), source.n_frames, (*source.shape, len(source.fields)))
        for name, record in source.entry.records.items():
            _make_room(group, name, (), source.n_frames, record.shape)


def _write_groups(file, first, u, records):
    for i, values in enumerate(u):
        group = file[_group(first + i)]
        group['data'][:] = values
        for name, of_rows in records.items():
            group[name][:] = of_rows[i]


def read_records(file, rows, name):
    """What the solver has recorded beside the fields: (n, T, *shape) of rows of an open file of the layout
    'groups'; None where a file has no such record."""
    if f'{_group(0)}/{name}' not in file:
        return None
    return np.stack([stored(file[f'{_group(row)}/{name}']) for row in rows])


# -----------------------------------------------------------------------------
# A steady file has a tensor, too, so 'steady' comes before 'tensor': the first layout that fits is taken.

LAYOUTS = {
    'steady': Layout(_is_steady, _check_steady, _read_steady, _create_steady, _write_steady),
    'tensor': Layout(_is_tensor, _check_arrays, _read_arrays, _create_arrays, _write_arrays),
    'arrays': Layout(_is_arrays, _check_arrays, _read_arrays, _create_arrays, _write_arrays),
    'groups': Layout(_is_groups, _check_all_groups, _read_groups, _create_groups, _write_groups)}
