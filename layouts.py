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

All are PDEBench's (arXiv 2210.07182). Coordinates and times stay in physical units.
"""
import re
from dataclasses import dataclass
from typing import Callable

import h5py
import numpy as np

from runtime.configurator import UserError

CHUNK_VALUES = 2 ** 18                # of a file that is written: 1 MB
GAS = ('density', 'pressure', 'Vx', 'Vy', 'Vz')


@dataclass(frozen=True)
class Layout:
    fits: Callable            # (h5py file) -> is it laid out like this?
    check: Callable           # (path, h5py file) -> {'n', 'n_frames', 'dt', 'x', 'dtype'} of a Source, and
                              # where they are known 'n_fields' and 'doubts'
    read: Callable            # (h5py file, slice of rows, slice of frames) -> (n, T, *X, C) float32
    create: Callable = None   # (h5py file, entry of pdes.py, n, cells): coordinates, and room for the rows
    write: Callable = None    # (h5py file, number of the first row, values (n, T, *X, C))


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
    axis = dataset[:n].astype(np.float64)
    step = np.diff(axis)
    is_uniform = np.isfinite(axis).all() and step.min() > 0 and np.allclose(step, step.mean(), rtol=1e-2)
    if not is_uniform:
        raise UserError(f"'{path}': {dataset.name.lstrip('/')} is not a uniform increasing grid")
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
    return {'n': n, 'n_frames': n_frames, 'dt': dt, 'x': x, 'dtype': str(first.dtype),
            'n_fields': len(names), 'doubts': doubts}


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
    return {'n': len(nu), 'n_frames': 2, 'dt': 1., 'x': x, 'dtype': str(tensor.dtype), 'n_fields': 2}


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
    return {'n': len(names), 'n_frames': len(first), 'dt': dt, 'x': x, 'dtype': str(first.dtype),
            'n_fields': first.shape[-1], 'doubts': doubts}


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
# the first that fits is taken, so that 'steady', which has a tensor, too, comes before 'tensor'

LAYOUTS = {
    'steady': Layout(_is_steady, _check_steady, _read_steady, _create_steady, _write_steady),
    'tensor': Layout(_is_tensor, _check_tensor, _read_tensor, _create_tensor, _write_tensor),
    'arrays': Layout(_is_arrays, _check_arrays, _read_arrays, _create_arrays, _write_arrays),
    'groups': Layout(_is_groups, _check_groups, _read_groups, _create_groups, _write_groups)}
