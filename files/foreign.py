"""
HDF5 layouts of other programs, which are only read, one section each.

| layout   | holds                                                                                     |
|----------|-------------------------------------------------------------------------------------------|
| 'forced' | PDEBench's incompressible flow on the unit square: `velocity` (N, T, X, Y, 2),            |
|          | `particles` (N, T, X, Y, 1), `force` (N, X, Y, 2), read as two constant fields, `t` (N, T)|
| 'well'   | The Well (arXiv 2412.00568): `t0_fields`, `t1_fields`, `dimensions`, `boundary_conditions`|
| 'matlab' | vorticity of arXiv 2010.08895 as MATLAB 7.3 writes it, with reversed axes: `a` (Y, X, N), |
|          | `u` (T, Y, X, N), `t`; the viscosity is in the name of the file, or `Nu`                  |
"""
import os
import re
from itertools import chain

import numpy as np

from equations.common import centres
from files.layouts import (Content, Layout, check_datasets, check_own, read_axes, read_frames, spacing,
                           uniform)
from files.values import as_numbers, as_text, parameter, stored, type_of
from runtime.configurator import UserError

# -----------------------------------------------------------------------------
# 'forced'

FORCED = ('Vx', 'Vy', 'particles', 'Fx', 'Fy')


def _is_forced(file):
    return 'velocity' in file and 'particles' in file


def _check_forced(path, file):
    shapes = {'velocity': 'N T X Y 2', 'particles': 'N T X Y 1', 'force': 'N X Y 2', 't': 'N T'}
    sizes = check_datasets(path, file, shapes)
    t = uniform(path, 't', stored(file['t']))
    x = (centres(sizes['X']), centres(sizes['Y']))
    doubts = ['no coordinates: cells of the unit square are assumed']
    return Content(sizes['N'], sizes['T'], spacing(t), x, type_of(file['velocity']), fields=FORCED,
                   params={}, doubts=doubts, first_time=float(t[0]))


def _read_forced(file, rows, frames):
    velocity = read_frames(file['velocity'], (rows,), frames)
    particles = read_frames(file['particles'], (rows,), frames)
    force = stored(file['force'], rows).astype(np.float32, copy=False)[:, None]
    force = np.broadcast_to(force, velocity.shape)
    return np.concatenate([velocity, particles, force], -1)


# -----------------------------------------------------------------------------
# 'well'

def _is_well(file):
    return 't0_fields' in file and 'dimensions' in file


def _texts(values):
    """The strings of an attribute."""
    return [as_text(value) for value in np.atleast_1d(values)]


def _well_parts(file):
    """{key of a dataset: names of its channels}: scalars, then vectors with a name for each axis."""
    letters = _texts(file['dimensions'].attrs['spatial_dims'])
    parts = {f't0_fields/{name}': [name] for name in file['t0_fields']}
    for name in file.get('t1_fields', ()):
        parts[f't1_fields/{name}'] = [f'{name}_{letter}' for letter in letters]
    return parts


def _check_well(path, file):
    for group in ('dimensions', 't0_fields', 't1_fields', 't2_fields', 'boundary_conditions'):
        if group in file:
            check_own(path, file, group)
    if 'spatial_dims' not in file['dimensions'].attrs:
        raise UserError(f"'{path}': the group dimensions has no attribute spatial_dims, such as ['x', 'y']")
    letters = _texts(file['dimensions'].attrs['spatial_dims'])
    axes = {f'dimensions/{letter}': letter for letter in letters}
    parts = _well_parts(file)
    if not parts:
        raise UserError(f"'{path}': t0_fields and t1_fields are empty")
    shapes = {**axes, 'dimensions/time': 'T'}
    for key, names in parts.items():
        vector = [str(len(letters))] if len(names) > 1 else []
        shapes[key] = ' '.join(['N T', *letters, *vector])
    sizes = check_datasets(path, file, shapes)
    t = uniform(path, 'dimensions/time', stored(file['dimensions/time']))
    x = read_axes(path, file, axes)
    dtype = type_of(file[next(iter(parts))])
    doubts = []
    boundary = _well_boundary(file, doubts)
    params = _well_parameters(file, doubts)
    if len(file.get('t2_fields', ())):
        doubts.append(f"the tensors {', '.join(file['t2_fields'])} are left out")
    return Content(sizes['N'], sizes['T'], spacing(t), x, dtype, fields=tuple(chain(*parts.values())),
                   boundary=boundary, params=params, doubts=doubts, first_time=float(t[0]))


def _well_boundary(file, doubts):
    """'periodic', 'wall' or 'open'. The axes of a file may differ, but not those of an equation here."""
    kinds = set()
    for part in file.get('boundary_conditions', {}).values():
        kinds.update(text.lower() for text in _texts(part.attrs.get('bc_type', ())))
    if len(kinds) == 1:
        return kinds.pop()
    doubts.append(f"boundaries are {', '.join(sorted(kinds)) or 'not named'}: taken as open")
    return 'open'


def _well_parameters(file, doubts):
    params = {}
    for name in _texts(file.attrs.get('simulation_parameters', [])):
        try:
            numbers = as_numbers(file.attrs.get(name, ()))
        except ValueError:
            numbers = ()
        if len(numbers) == 1:
            params[name] = float(numbers[0])
        else:
            doubts.append(f'the parameter {name} is left out: it is not one number')
    return params


def _read_well(file, rows, frames):
    values = []
    for key, names in _well_parts(file).items():
        part = read_frames(file[key], (rows,), frames)
        values.append(part if len(names) > 1 else part[..., None])
    return np.concatenate(values, -1)


# -----------------------------------------------------------------------------
# 'matlab'

def _is_matlab(file):
    return 'a' in file and len(getattr(file.get('u'), 'shape', ())) == 4


def _check_matlab(path, file):
    sizes = check_datasets(path, file, {'u': 'T Y X N', 'a': 'Y X N', 't': None})
    if file['t'].size != sizes['T']:
        raise UserError(f"'{path}': u has {sizes['T']} frames, but t {file['t'].shape} times")
    t = uniform(path, 't', np.concatenate([[0.], stored(file['t']).ravel()]))
    x = (np.arange(sizes['X']) / sizes['X'], np.arange(sizes['Y']) / sizes['Y'])
    doubts = ['frame 0 is a, at time 0; points at whole multiples of 1/X of the unit square are assumed']
    notes = ['the values of a trajectory lie far apart in the file: reading takes long']
    return Content(sizes['N'], 1 + sizes['T'], spacing(t), x, type_of(file['u']), n_fields=1,
                   params={'Nu': _matlab_viscosity(path, file, sizes['N'])}, doubts=doubts, notes=notes)


def _matlab_viscosity(path, file, n):
    """The viscosity as a parameter of the file or, where there is none, in its name. Raises UserError. 1e4
    in a name often stands for 1e-4, so no viscosity above 1 is believed there."""
    viscosity = parameter(file, 'Nu', n)
    if isinstance(viscosity, str):
        raise UserError(f"'{path}': {viscosity}")
    if viscosity is not None:
        return viscosity
    said = re.search(r'_V(\d+\.?\d*[eE][-+]?\d+|\d*\.\d+)', os.path.basename(path))
    if said is None:
        raise UserError(f"'{path}' does not hold its viscosity: its name must, as in "
                        'NavierStokes_V1e-4_N10000_T30.mat, or an attribute Nu')
    viscosity = float(said[1])
    if viscosity > 1:
        likely = re.sub(r'e\+?', 'e-', said[1].lower()) if 'e' in said[1].lower() else '1e-4'
        raise UserError(f"'{path}': a viscosity of {viscosity:g} in a name is not believed: if {likely} is "
                        f'meant, write _V{likely} in the name; an attribute Nu is believed as it is')
    return viscosity


def _read_matlab(file, rows, frames):
    """Frames that lie in u are read at once; a goes before them."""
    wanted = range(*frames.indices(1 + len(file['u'])))
    later = [frame - 1 for frame in wanted if frame > 0]
    parts = []
    if len(later) < len(wanted):
        parts.append(stored(file['a'], (..., rows))[None])
    if later:
        step = later[1] - later[0] if len(later) > 1 else 1
        in_u = slice(later[0], later[-1] + 1, step)
        parts.append(stored(file['u'], (in_u, slice(None), slice(None), rows)))
    values = np.concatenate(parts) if parts else file['u'][:0, :, :, rows]
    return values.transpose(3, 0, 2, 1).astype(np.float32)[..., None]


READ_ONLY = {
    'forced': Layout(_is_forced, _check_forced, _read_forced),
    'well': Layout(_is_well, _check_well, _read_well),
    'matlab': Layout(_is_matlab, _check_matlab, _read_matlab, like='tensor')}
