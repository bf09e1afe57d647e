"""
The layout 'points': fields at points that differ from trajectory to trajectory, such as the nodes of meshes.

    pde                  attribute: the name of the equation; its parameters are attributes, too
    t-coordinate         (T,) seconds
    0000/points          (P, d) physical coordinates; P may differ between trajectories
    0000/values          (T, P, C) the fields there, in the order of the equation
    0000/cells           (M, 3) triangles or (M, 4) quadrilaterals of the mesh; kept, not used

Such a file is read as one of a grid, that of the equation (its `cells`): each trajectory is interpolated by the
splines of an encoder of points. Where a spline fails because points are crowded, one point of each cell counts, in
the whole trajectory. Where the entry has a `domain`, fields are 0 outside. Reading takes about a second a trajectory,
so keep them in memory (`memory_gb`). points/meshes.py writes such files from meshes.
"""
import math

import h5py
import numpy as np
import torch

import equations
from equations.common import centres
from files.layouts import Content, Layout, check_datasets, read_frames, spacing, uniform
from files.values import as_text, stored, type_of
from points.splines import Scattered, crowded, fewest_points, is_sparse
from runtime.checkpoint import whole_file
from runtime.configurator import UserError

TIMES = 't-coordinate'
MANY = 4                               # points a cell, of which one is enough
FEW = 1 / 16                           # points a cell, with which much of a field may be lost


def _groups(file):
    return sorted(name for name in file if name.isdigit())


def _is_points(file):
    names = _groups(file)
    return bool(names) and f'{names[0]}/points' in file


def _entry(path, file):
    """The entry of the equation that the attribute `pde` names. Raises UserError."""
    label = as_text(file.attrs.get('pde', '')).strip()
    if label not in equations.names():
        raise UserError(f"'{path}' holds points and needs an attribute pde that names one of "
                        f"{', '.join(equations.names())}; it has '{label}'")
    return equations.entry(label)


def _check_points(path, file):
    entry = _entry(path, file)
    names = _groups(file)
    if names != [f'{row:04d}' for row in range(len(names))]:
        raise UserError(f"'{path}' has groups {names[0]} .. {names[-1]}, expected 0000 .. {len(names) - 1:04d}")
    d = entry.axes
    sizes = check_datasets(path, file, {TIMES: 'T'})
    low = np.array(entry.low)
    high = low + entry.length
    numbers = []
    for name in names:
        shapes = {TIMES: 'T', f'{name}/points': f'P {d}', f'{name}/values': f'T P {len(entry.fields)}'}
        numbers.append(check_datasets(path, file, shapes)['P'])
        x = stored(file[f'{name}/points'])
        if not np.isfinite(x).all():
            raise UserError(f"'{path}': {name}/points has values that are not finite")
        beyond = np.maximum(low - x, x - high).max()
        if beyond > 1e-3 * min(entry.length):
            raise UserError(f"'{path}': {name}/points leaves the domain {entry.space} by {beyond:g}")
    if min(numbers) <= fewest_points(d):
        raise UserError(f"'{path}': a trajectory has {min(numbers)} points; at least {fewest_points(d) + 1} are "
                        'needed')
    t = uniform(path, TIMES, stored(file[TIMES]))
    x = tuple(centres(n, *ends) for n, ends in zip(entry.shape(0), entry.space))
    doubts = []
    if min(numbers) < FEW * math.prod(map(len, x)):
        doubts.append(f'{min(numbers)} points for {math.prod(map(len, x))} cells: what they do not resolve is lost')
    note = f'{min(numbers)} to {max(numbers)} points a trajectory, interpolated to the grid'
    return Content(len(names), sizes['T'], spacing(t), x, type_of(file['0000/values']), fields=entry.fields,
                   notes=[note], doubts=doubts, first_time=float(t[0]))


def _read_points(file, rows, frames):
    path = file.filename
    entry = _entry(path, file)
    rows = range(*rows.indices(len(_groups(file))))
    n_frames = len(range(*frames.indices(file[TIMES].size)))
    out = np.empty((len(rows), n_frames, *entry.shape(0), len(entry.fields)), np.float32)
    for i, row in enumerate(rows):
        x, u = points_of(file, row, frames)
        out[i] = to_grid(entry, x, u, f"'{path}', trajectory {row}")
    return out


def points_of(file, row, frames=slice(None)):
    """Points (P, d) float64 and values (T, P, C) float32 of a trajectory of an open file."""
    name = f'{row:04d}'
    entry = _entry(file.filename, file)
    x = stored(file[f'{name}/points']).astype(np.float64)
    if not entry.periodic:                                           # a node on the boundary may lie outside
        x = x.clip(entry.low, np.array(entry.low) + entry.length)
    return x, read_frames(file[f'{name}/values'], (), frames)


def to_grid(entry, x, u, what):
    """Values u (T, P, C) float32 at points x (P, d) -> the fields (T, *cells, C) on the grid of an equation.
    Raises UserError, which names `what`, for points that leave a part of the domain out."""
    shape = entry.shape(0)
    cell = np.array(entry.length) / shape
    x = (x - entry.low) / cell - .5                                  # in cells, from the first centre on
    x = torch.from_numpy(x).float()[None]                            # (1, P, d)
    u = torch.from_numpy(u)
    fields = list(entry.fields)
    for field in entry.positive:
        if u[..., fields.index(field)].min() < 0:
            raise UserError(f'{what} has negative values of {field}')
    n_cell = math.prod(shape)
    if x.shape[1] > MANY * n_cell:
        kept = ~crowded(x)[0]
        x = x[:, kept]
        u = u[:, kept]
    even = all(n % 2 == 0 for n in shape)
    spline = Scattered(shape, 2 if even and is_sparse(x.shape[1], shape) else 1, entry.periodic)
    distance = u[:1, :, [fields.index(entry.domain)]] if entry.domain else None
    if entry.domain and not (distance > 0).any():
        raise UserError(f'{what}: {entry.domain} is nowhere positive')
    index, weight = spline.stencils_of_mesh(x, distance, f'{what}: its')
    u = spline(u, index, weight)                                     # (T, *cells, C)
    if entry.domain:
        inside = u[0, ..., fields.index(entry.domain)] > 0
        for field in set(fields) - set(entry.static):
            u[..., fields.index(field)] *= inside
    for field in entry.positive:
        u[..., fields.index(field)].clamp_(min=0)                    # splines swing beside a jump
    return u.numpy()


def write_points(path, pde, params, t, trajectories):
    """Write a file of the layout. params: {'Re': 100.}; t (T,) seconds; trajectories: a list of (points (P, d),
    values (T, P, C), cells (M, 3 or 4) or None)."""
    with whole_file(path, 'w+b') as stream, h5py.File(stream, 'w') as file:
        file.attrs.update({'pde': pde, **params})
        file.create_dataset(TIMES, data=np.asarray(t, np.float64))
        for row, (points, values, cells) in enumerate(trajectories):
            group = file.create_group(f'{row:04d}')
            group.create_dataset('points', data=np.asarray(points, np.float64), fletcher32=True)
            group.create_dataset('values', data=np.asarray(values, np.float32), fletcher32=True)
            if cells is not None:
                group.create_dataset('cells', data=np.asarray(cells, np.int32), fletcher32=True)


LAYOUT = Layout(_is_points, _check_points, _read_points, like='any')
