"""
HDF5 layouts, one section each: how a file is recognised, checked, read and written.

| layout   | holds                                                                                     |
|----------|-------------------------------------------------------------------------------------------|
| 'tensor' | one field: `tensor` (N, T, *X); `x-coordinate` (X,), with two axes `y-coordinate` (Y,);   |
|          | `t-coordinate` (T + 1,), one more than there are frames (T will do)                        |
| 'arrays' | one array a field: `density`, `pressure`, `Vx`, .. (N, T, *X); coordinates as above       |
| 'steady' | no time: `nu`, the coefficient (N, *X), `tensor`, the solution (N, 1, *X); coordinates.   |
|          | Read as two frames of two fields: (coefficient, 0), (coefficient, solution)               |
| 'groups' | one group a trajectory: `0000/data` (T, *X, C), `0000/grid/x`, `y`, `t`                   |
| 'forced' | `velocity` (N, T, X, Y, 2), `particles` (N, T, X, Y, 1), `force` (N, X, Y, 2), `t` (N, T),|
|          | on the unit square; the force is read as two fields that stay                             |
| 'well'   | The Well's (arXiv 2412.00568): `t0_fields`, `t1_fields`, `dimensions`,                    |
|          | `boundary_conditions`                                                                     |
| 'matlab' | vorticity of arXiv 2010.08895 as MATLAB 7.3 writes it, with reversed axes: `a` (Y, X, N), |
|          | `u` (T, Y, X, N), `t`; the viscosity is in the name of the file                           |

The first five are PDEBench's (arXiv 2210.07182). Coordinates and times stay in physical units. The last
three are only read.
"""
import os
import re
from dataclasses import dataclass
from typing import Callable

import h5py
import numpy as np

from pdes import PDE
from runtime.configurator import UserError

CHUNK_VALUES = 2 ** 18                # of a file that is written: 1 MB
GAS = ('density', 'pressure', 'Vx', 'Vy', 'Vz')


@dataclass(frozen=True)
class Content:
    """What a checked file says of itself; None where it says nothing."""
    n: int                    # trajectories
    n_frames: int
    dt: float                 # seconds between stored frames
    x: tuple                  # one float64 array of coordinates an axis
    dtype: str                # type of the stored numbers
    n_fields: int = None
    fields: tuple = None      # their names
    boundary: str = None      # as in pdes.py
    params: dict = None       # numbers that may be parameters; None: all attributes of the file that are
    doubts: tuple = ()        # what is unusual in it
    entry: PDE = None         # one for pdes.py that promises nothing, made of all that it says


@dataclass(frozen=True)
class Layout:
    fits: Callable            # (h5py file) -> is it laid out like this?
    check: Callable           # (path, h5py file) -> Content. Raises UserError
    read: Callable            # (h5py file, slice of rows, slice of frames) -> (n, T, *X, C) float32
    create: Callable = None   # (h5py file, entry of pdes.py, n, cells): coordinates, and room for the rows
    write: Callable = None    # (h5py file, number of the first row, values (n, T, *X, C))
    like: str = None          # layout of the entries that it holds, where that is another one


# ---------------------------------------------------------------------------------------------
# what they share

def _axis_names(n):
    return [f'{letter}-coordinate' for letter in 'xyz'[:n]]


def _present_axes(file):
    """Names of the coordinates of a file; x always."""
    n_axes = 1
    while n_axes < 3 and _axis_names(n_axes + 1)[-1] in file:
        n_axes += 1
    return _axis_names(n_axes)


def _check_own_dataset(path, file, key, expected):
    """Is there a dataset `key`, and not elsewhere?"""
    if key not in file:
        shapes = {name: getattr(file[name], 'shape', 'group') for name in list(file)[:8]}
        raise UserError(f"'{path}' has no dataset '{key}': expected {expected}; found {shapes or 'nothing'}")
    is_link = not isinstance(file.get(key, getlink=True), h5py.HardLink)
    if is_link or not isinstance(file[key], h5py.Dataset) or file[key].external or file[key].is_virtual:
        raise UserError(f"'{path}': '{key}' is no dataset of this file; links to elsewhere are not followed")


def _check_values(path, dataset):
    """Are all values there, and are they numbers?"""
    name = dataset.name.lstrip('/')
    if dataset.chunks is None:
        stored = dataset.id.get_storage_size()
        if stored < dataset.size * dataset.dtype.itemsize:
            raise UserError(f"'{path}': {name} claims {dataset.shape} values but stores only {stored} bytes: "
                            'it was never filled')
    else:
        along_axis = [-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks)]
        if dataset.id.get_num_chunks() < np.prod(along_axis):
            raise UserError(f"'{path}': {name} claims {dataset.shape} values but lacks some of its chunks: "
                            'it was never filled')
    if dataset.dtype.kind not in 'fiu':
        raise UserError(f"'{path}': {name} holds {dataset.dtype}, expected numbers")


def _read_uniform(path, dataset, n):
    """The first n values of a coordinate, float64."""
    return _uniform(path, dataset.name.lstrip('/'), dataset[:n].astype(np.float64))


def _uniform(path, name, axis):
    """The axis (X,) itself, if it is a uniform increasing grid."""
    if len(axis) < 2:
        raise UserError(f"'{path}': {name} has {len(axis)} values, and at least 2 are needed")
    step = np.diff(axis)
    is_uniform = np.isfinite(axis).all() and step.min() > 0 and np.allclose(step, step.mean(), rtol=1e-2)
    if not is_uniform:
        raise UserError(f"'{path}': {name} is not a uniform increasing grid")
    return axis


def _check_size(path, name, n, n_frames, shape):
    if n < 1 or n_frames < 2 or min(shape) < 2:
        raise UserError(f"'{path}': {name} of {n} trajectories, {n_frames} frames and {shape} cells is too "
                        'small: at least 1 trajectory, 2 frames, 2 cells')


def _read_times(path, dataset, n_frames):
    """Seconds between the frames, and what is doubtful."""
    times = dataset.shape
    if len(times) != 1 or times[0] not in (n_frames, n_frames + 1):
        raise UserError(f"'{path}': {n_frames} frames but {times[0] if times else 'no'} times in "
                        f"{dataset.name.lstrip('/')} (expected {n_frames + 1}, or {n_frames})")
    t = _read_uniform(path, dataset, n_frames)
    doubts = []
    if times[0] > n_frames:
        doubts.append(f'{times[0]} times for {n_frames} frames: the last is left out, as in released files')
    return float((t[-1] - t[0]) / (n_frames - 1)), doubts


def _strided(dataset, before, frames):
    """Values float32 of a dataset, at the slices `before` of its first axes and the slice `frames` of the
    next.

    HDF5 reads a compressed or checksummed chunk as a whole, but picks frames out of it slowly. Where chunks
    hold several frames, whole rows are read and strided in memory, which takes a sixth of the time.
    """
    is_strided = frames.step not in (None, 1)
    if is_strided and dataset.chunks is not None and dataset.chunks[len(before)] > 1:
        whole = slice(frames.start, frames.stop)
        every = (slice(None),) * len(before)
        values = dataset[(*before, whole)][(*every, slice(None, None, frames.step))]
    else:
        values = dataset[(*before, frames)]
    return values.astype(np.float32, copy=False)


def _centres(entry, cells):
    """Cell centres along each axis."""
    axes = zip(entry.low, entry.length, cells)
    return [low + length * (np.arange(size) + .5) / size for low, length, size in axes]


def _write_axes(file, names, axes):
    for name, values in zip(names, axes):
        file.create_dataset(name, data=values.astype(np.float32), chunks=True, fletcher32=True)


def _room(file, name, before, n_frames, row):
    """An empty checksummed dataset (*before, n_frames, *row), in chunks of about 1 MB."""
    frames = CHUNK_VALUES // int(np.prod(row))
    chunk = (*[1] * len(before), min(n_frames, max(1, frames)), *row)
    file.create_dataset(name, (*before, n_frames, *row), np.float32, chunks=chunk, fletcher32=True)


# ---------------------------------------------------------------------------------------------
# 'tensor' and 'arrays'

def _is_tensor(file):
    return 'tensor' in file


def _check_tensor(path, file):
    return _check_stacked(path, file, ['tensor'])


def _read_tensor(file, rows, frames):
    return _strided(file['tensor'], (rows,), frames)[..., None]


def _create_tensor(file, entry, n, cells):
    _create_stacked(file, entry, n, cells, ['tensor'])


def _write_tensor(file, first, u):
    file['tensor'][first:first + len(u)] = u[..., 0]


def _is_arrays(file):
    return any(name in file for name in GAS)


def _gas(file):
    """Names of the fields: density, pressure, and a velocity along each axis."""
    return GAS[:2 + len(_present_axes(file))]


def _check_arrays(path, file):
    return _check_stacked(path, file, _gas(file))


def _read_arrays(file, rows, frames):
    return np.stack([_strided(file[name], (rows,), frames) for name in _gas(file)], -1)


def _create_arrays(file, entry, n, cells):
    _create_stacked(file, entry, n, cells, entry.fields)


def _write_arrays(file, first, u):
    for channel, name in enumerate(_gas(file)):
        file[name][first:first + len(u)] = u[..., channel]


def _check_stacked(path, file, names):
    """What a Source says of a file with one array (N, T, *X) for each of the names."""
    axis_names = _present_axes(file)
    expected = f"{', '.join(names)} (N, T, X), x-coordinate (X,), t-coordinate (T + 1,)"
    for key in (*names, *axis_names, 't-coordinate'):
        _check_own_dataset(path, file, key, expected)
    first = file[names[0]]
    shape = _check_shapes(path, file, first, axis_names, 'N, T, ')
    for name in names:
        if file[name].shape != first.shape:
            raise UserError(f"'{path}': {name} {file[name].shape} differs from {names[0]} {first.shape}")
    n, n_frames = first.shape[:2]
    dt, doubts = _read_times(path, file['t-coordinate'], max(n_frames, 2))
    for name in names:
        _check_values(path, file[name])
    _check_size(path, names[0], n, n_frames, shape)
    x = tuple(_read_uniform(path, file[name], None) for name in axis_names)
    return Content(n, n_frames, dt, x, str(first.dtype), n_fields=len(names), doubts=doubts)


def _check_shapes(path, file, dataset, axis_names, before):
    """The shape of the dataset must end as the coordinates say. before: its other axes, 'N, T, '. Returns the
    cells along each axis."""
    name = dataset.name.lstrip('/')
    lengths = [file[axis].shape for axis in axis_names]
    shape = tuple(length[0] for length in lengths if len(length) == 1)
    n_before = before.count(',')
    if dataset.ndim != n_before + len(lengths) or dataset.shape[n_before:] != shape:
        swapped = dataset.ndim == n_before + len(shape) and set(shape) <= set(dataset.shape)
        hint = '; its axes seem to be swapped' if swapped else ''
        letters = ', '.join('XYZ'[:len(lengths)])
        raise UserError(f"'{path}': expected {name} ({before}{letters}) with ({letters}) = {shape} of "
                        f"{', '.join(axis_names)}; found {name} {dataset.shape}{hint}")
    return shape


def _create_stacked(file, entry, n, cells, names):
    times = np.arange(entry.frames + 1) * entry.dt
    _write_axes(file, [*_axis_names(len(cells)), 't-coordinate'], [*_centres(entry, cells), times])
    for name in names:
        _room(file, name, (n,), entry.frames, cells)


# ---------------------------------------------------------------------------------------------
# 'steady'

def _is_steady(file):
    return 'nu' in file and 'tensor' in file


def _check_steady(path, file):
    axis_names = _present_axes(file)
    for key in ('nu', 'tensor', *axis_names):
        _check_own_dataset(path, file, key, 'nu (N, X, Y), tensor (N, 1, X, Y), x-coordinate, y-coordinate')
    nu = file['nu']
    tensor = file['tensor']
    shape = _check_shapes(path, file, nu, axis_names, 'N, ')
    if tensor.shape != (len(nu), 1, *shape):
        raise UserError(f"'{path}': nu is {nu.shape}, so tensor should be {(len(nu), 1, *shape)}; it is "
                        f'{tensor.shape}')
    _check_values(path, nu)
    _check_values(path, tensor)
    _check_size(path, 'nu', len(nu), 2, shape)
    x = tuple(_read_uniform(path, file[name], None) for name in axis_names)
    return Content(len(nu), 2, 1., x, str(tensor.dtype), n_fields=2)


def _read_steady(file, rows, frames):
    coefficient = file['nu'][rows]
    u = np.zeros((len(coefficient), 2, *coefficient.shape[1:], 2), np.float32)
    u[..., 0] = coefficient[:, None]
    u[:, 1, ..., 1] = file['tensor'][rows, 0]
    return u[:, frames]


def _create_steady(file, entry, n, cells):
    _write_axes(file, _axis_names(len(cells)), _centres(entry, cells))
    _room(file, 'nu', (), n, cells)
    _room(file, 'tensor', (n,), 1, cells)


def _write_steady(file, first, u):
    file['nu'][first:first + len(u)] = u[:, 1, ..., 0]
    file['tensor'][first:first + len(u), 0] = u[:, 1, ..., 1]


# ---------------------------------------------------------------------------------------------
# 'groups'

def _is_groups(file):
    return any(name.isdigit() for name in list(file)[:2])


def _group(row):
    return f'{row:04d}'


def _check_groups(path, file):
    names = [_group(row) for row in range(len(file))]
    missing = sorted(set(names) - set(file))
    if missing:
        others = sorted(set(file) - set(names))
        raise UserError(f"'{path}' has {len(file)} groups, expected {names[0]} .. {names[-1]}: {missing[0]} "
                        f'is missing, {others[0]} is there')
    expected = f'groups {names[0]} .. {names[-1]} of data (T, X, C), grid/x (X,), grid/t (T,)'
    letters = [letter for letter in 'xyz' if f'0000/grid/{letter}' in file]
    axis_names = [f'0000/grid/{letter}' for letter in letters or 'x']
    for key in (*axis_names, '0000/grid/t'):
        _check_own_dataset(path, file, key, expected)
    first = None
    for name in names:
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise UserError(f"'{path}': '{name}' is a link to elsewhere, which is not followed")
        _check_own_dataset(path, file, f'{name}/data', expected)
        data = file[name]['data']
        if first is None:
            first = data
        if data.shape != first.shape:
            raise UserError(f"'{path}': {name}/data {data.shape} differs from 0000/data {first.shape}")
        _check_values(path, data)
    cells = tuple(file[axis].shape[0] for axis in axis_names)
    if first.ndim != 2 + len(cells) or first.shape[1:-1] != cells:
        raise UserError(f"'{path}': expected 0000/data (T, {', '.join('XYZ'[:len(cells)])}, C) with {cells} "
                        f'cells of 0000/grid; found {first.shape}')
    _check_size(path, '0000/data', len(names), len(first), cells)
    dt, doubts = _read_times(path, file['0000/grid/t'], len(first))
    doubts += _config_doubts(file['0000'], len(first))
    x = tuple(_read_uniform(path, file[axis], None) for axis in axis_names)
    n_fields = first.shape[-1]
    return Content(len(names), len(first), dt, x, str(first.dtype), n_fields=n_fields, doubts=doubts)


def _config_doubts(group, n_frames):
    """Does the generator's configuration, which a released group carries, say another number of frames?"""
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
        return _strided(file[_group(0)]['data'], (), frames)[None][:0]
    return np.stack([_strided(file[name]['data'], (), frames) for name in names])


def _create_groups(file, entry, n, cells):
    letters = 'xyz'[:len(cells)]
    times = np.arange(entry.frames) * entry.dt
    for row in range(n):
        group = file.create_group(_group(row))
        _write_axes(group.create_group('grid'), [*letters, 't'], [*_centres(entry, cells), times])
        _room(group, 'data', (), entry.frames, (*cells, len(entry.fields)))


def _write_groups(file, first, u):
    for row, values in enumerate(u, first):
        file[_group(row)]['data'][:] = values


# ---------------------------------------------------------------------------------------------
# 'forced'

FORCED = ('Vx', 'Vy', 'particles', 'Fx', 'Fy')


def _is_forced(file):
    return 'velocity' in file and 'particles' in file


def _check_forced(path, file):
    expected = 'velocity (N, T, X, Y, 2), particles (N, T, X, Y, 1), force (N, X, Y, 2), t (N, T)'
    for key in ('velocity', 'particles', 'force', 't'):
        _check_own_dataset(path, file, key, expected)
        _check_values(path, file[key])
    velocity = file['velocity']
    whole = velocity.shape[:-1]
    row = whole[:1] + whole[2:]
    found = [velocity.shape, file['particles'].shape, file['force'].shape, file['t'].shape]
    if velocity.ndim != 5 or found != [(*whole, 2), (*whole, 1), (*row, 2), whole[:2]]:
        raise UserError(f"'{path}': expected {expected}; found {', '.join(map(str, found))}")
    n, n_frames = whole[:2]
    _check_size(path, 'velocity', n, n_frames, whole[2:])
    t = _uniform(path, 't', file['t'][0].astype(np.float64))
    x = tuple((np.arange(size) + .5) / size for size in whole[2:])
    dt = float((t[-1] - t[0]) / (n_frames - 1))
    doubts = ['no coordinates: cells of the unit square are assumed']
    return Content(n, n_frames, dt, x, str(velocity.dtype), fields=FORCED, params={}, doubts=doubts)


def _read_forced(file, rows, frames):
    velocity = _strided(file['velocity'], (rows,), frames)
    particles = _strided(file['particles'], (rows,), frames)
    force = file['force'][rows].astype(np.float32, copy=False)[:, None]
    force = np.broadcast_to(force, velocity.shape)
    return np.concatenate([velocity, particles, force], -1)


# ---------------------------------------------------------------------------------------------
# 'well'

def _is_well(file):
    return 't0_fields' in file and 'dimensions' in file


def _texts(values):
    """Strings of an attribute."""
    return [value.decode() if isinstance(value, bytes) else str(value) for value in np.atleast_1d(values)]


def _well_parts(file):
    """[(dataset, names of its channels)]: scalars, then vectors with a name for each axis."""
    letters = _texts(file['dimensions'].attrs['spatial_dims'])
    parts = [(dataset, [name]) for name, dataset in file['t0_fields'].items()]
    for name, dataset in file.get('t1_fields', {}).items():
        parts.append((dataset, [f'{name}_{letter}' for letter in letters]))
    return parts


def _check_well(path, file):
    letters = _texts(file['dimensions'].attrs['spatial_dims'])
    axis_names = [f'dimensions/{letter}' for letter in letters]
    for key in (*axis_names, 'dimensions/time'):
        _check_own_dataset(path, file, key, 'dimensions/x (X,), dimensions/y (Y,), dimensions/time (T,)')
    parts = _well_parts(file)
    if not parts:
        raise UserError(f"'{path}': t0_fields and t1_fields are empty")
    x = tuple(_read_uniform(path, file[name], None) for name in axis_names)
    t = _read_uniform(path, file['dimensions/time'], None)
    shape = tuple(len(axis) for axis in x)
    n = parts[0][0].shape[0]
    for dataset, names in parts:
        key = dataset.name.lstrip('/')
        _check_own_dataset(path, file, key, 'fields in t0_fields and t1_fields')
        vector = (len(shape),) if len(names) > 1 else ()
        if dataset.shape != (n, len(t), *shape, *vector):
            raise UserError(f"'{path}': {key} is {dataset.shape}, expected {(n, len(t), *shape, *vector)}; "
                            'fields that do not vary with trajectory, time or place are not read')
        _check_values(path, dataset)
    _check_size(path, parts[0][0].name.lstrip('/'), n, len(t), shape)
    fields = tuple(name for _, names in parts for name in names)
    boundary, doubts = _well_boundary(file)
    params = {}
    for name in _texts(file.attrs.get('simulation_parameters', [])):
        if np.size(file.attrs.get(name, ())) == 1:
            params[name] = float(np.squeeze(file.attrs[name]))
        else:
            doubts.append(f'the parameter {name} is left out: it is not one number')
    if len(file.get('t2_fields', ())):
        doubts.append(f"the tensors {', '.join(file['t2_fields'])} are left out")
    dt = float((t[-1] - t[0]) / (len(t) - 1))
    spans = tuple((axis[0], axis[0] + len(axis) * (axis[1] - axis[0])) for axis in x)
    name = _texts(file.attrs.get('dataset_name', 'unnamed'))[0]
    entry = PDE(fields=fields, params=params, space=spans, boundary=boundary, file=f'{name}.hdf5',
                layout='well', cells=shape, frames=len(t), dt=dt)
    return Content(n, len(t), dt, x, str(parts[0][0].dtype), fields=fields, boundary=boundary, params=params,
                   doubts=doubts, entry=entry)


def _well_boundary(file):
    """'periodic', 'wall' or 'open', and what is doubtful: axes may differ in a file, but not here."""
    kinds = set()
    for part in file.get('boundary_conditions', {}).values():
        kinds.update(text.lower() for text in _texts(part.attrs['bc_type']))
    if len(kinds) == 1:
        return kinds.pop(), []
    return 'open', [f"boundaries are {', '.join(sorted(kinds)) or 'not told'}: taken as open"]


def _read_well(file, rows, frames):
    values = []
    for dataset, names in _well_parts(file):
        part = _strided(dataset, (rows,), frames)
        values.append(part if len(names) > 1 else part[..., None])
    return np.concatenate(values, -1)


# ---------------------------------------------------------------------------------------------
# 'matlab'

def _is_matlab(file):
    return all(name in file for name in ('a', 'u', 't'))


def _check_matlab(path, file):
    for key in ('a', 'u', 't'):
        _check_own_dataset(path, file, key, 'a (Y, X, N), u (T, Y, X, N), t')
        _check_values(path, file[key])
    u = file['u']
    if u.ndim != 4 or file['a'].shape != u.shape[1:] or file['t'].size != u.shape[0]:
        raise UserError(f"'{path}': expected a (Y, X, N), u (T, Y, X, N), t (T, 1); found a "
                        f"{file['a'].shape}, u {u.shape}, t {file['t'].shape}")
    shape = u.shape[2:0:-1]
    _check_size(path, 'u', u.shape[3], 1 + len(u), shape)
    said = re.search(r'_V(\d[\d.]*e-?\d+)', os.path.basename(path))
    if said is None:
        raise UserError(f"'{path}' does not hold its viscosity: its name must, as in "
                        'NavierStokes_V1e-4_N10000_T30.mat')
    t = _uniform(path, 't', np.concatenate([[0.], file['t'][:].ravel()]))
    x = tuple(np.arange(size) / size for size in shape)
    doubts = ['frame 0 is a, at time 0; points at whole multiples of 1/X of the unit square are assumed',
              'the values of a trajectory lie far apart in the file: reading takes long']
    dt = float(t[-1] / len(u))
    return Content(u.shape[3], 1 + len(u), dt, x, str(u.dtype), n_fields=1, params={'Nu': float(said[1])},
                   doubts=doubts)


def _read_matlab(file, rows, frames):
    """Frames that lie in u are read at once; a goes before them."""
    wanted = range(*frames.indices(1 + len(file['u'])))
    later = [frame - 1 for frame in wanted if frame > 0]
    parts = []
    if len(later) < len(wanted):
        parts.append(file['a'][..., rows][None])
    if later:
        step = later[1] - later[0] if len(later) > 1 else 1
        parts.append(file['u'][later[0]:later[-1] + 1:step, :, :, rows])
    values = np.concatenate(parts) if parts else file['u'][:0, :, :, rows]
    return values.transpose(3, 0, 2, 1).astype(np.float32)[..., None]


# ---------------------------------------------------------------------------------------------
# the first that fits is taken, so that 'steady', which has a tensor, too, comes before 'tensor'

LAYOUTS = {
    'steady': Layout(_is_steady, _check_steady, _read_steady, _create_steady, _write_steady),
    'tensor': Layout(_is_tensor, _check_tensor, _read_tensor, _create_tensor, _write_tensor),
    'arrays': Layout(_is_arrays, _check_arrays, _read_arrays, _create_arrays, _write_arrays),
    'groups': Layout(_is_groups, _check_groups, _read_groups, _create_groups, _write_groups),
    'forced': Layout(_is_forced, _check_forced, _read_forced),
    'well': Layout(_is_well, _check_well, _read_well),
    'matlab': Layout(_is_matlab, _check_matlab, _read_matlab, like='tensor')}
