"""files/foreign.py: hand-made files of the layouts that are only read, good and broken."""
import h5py
import numpy as np
import pytest

from conftest import centres, noise, refused
from equations import PDE
from files.open import open_source
from handmade import change, know
from test_layouts import same_rows


def forced(path):
    parts = {'velocity': noise(6, 5, 8, 6, 2), 'particles': noise(6, 5, 8, 6, 1, seed=1),
             'force': noise(6, 8, 6, 2, seed=2), 't': np.tile(np.arange(5) * .005, (6, 1))}
    with h5py.File(path, 'w') as file:
        for key, values in parts.items():
            file[key] = values
        file.attrs.update({'latestIndex': 999, 'config': 'NU: 0.01'})
    return path, parts


def test_forced_flow(path):
    path, parts = forced(path)
    force = np.broadcast_to(parts['force'][:, None], (6, 5, 8, 6, 2))
    source = same_rows(path, np.concatenate([parts['velocity'], parts['particles'], force], -1))
    assert (source.pde, source.params) == ('incompressible', {}) and source.dt == pytest.approx(.005)
    assert 'unit square' in source.doubts[0] and 'by its domain and layout alone' in source.doubts[1]


@pytest.mark.parametrize('key, values, word', [
    ('force', None, "'force'"),
    ('force', noise(5, 8, 6, 2), '(5, 8, 6, 2)'),
    ('particles', noise(6, 5, 8, 6, 2), '(6, 5, 8, 6, 2)'),
    ('velocity', noise(6, 5, 8, 6), '(6, 5, 8, 6)'),
    ('t', np.zeros((6, 5)), 't does not increase'),
    ('t', np.arange(5) * np.array([[1], [1], [2], [1], [1], [1]]), 't differs from row to row')])
def test_broken_forced_flow(path, key, values, word):
    change(forced(path)[0], key, values)
    message = refused(open_source, path)
    assert path in message and word in message, message


SPOTS = PDE(fields=('A', 'B', 'velocity_x', 'velocity_y'), params={'feed': .01, 'kill': .05},
            space=((-1, 1), (-1, 1)), boundary='periodic', file='spots.hdf5', layout='well')


@pytest.fixture
def spots(monkeypatch):
    """An entry that fits the file of `well`; spots(field=..) replaces parts of it."""
    def replace(**changes):
        know(monkeypatch.setattr, spots=PDE(**{**vars(SPOTS), **changes}))
    replace()
    return replace


def well(path, kinds=('PERIODIC', 'PERIODIC'), **attrs):
    """A file of The Well's layout, and its scalars and vectors."""
    scalars = noise(6, 5, 8, 6, 2)
    vectors = noise(6, 5, 8, 6, 2, seed=1)
    with h5py.File(path, 'w') as file:
        file.attrs.update({'simulation_parameters': ['feed', 'kill'], 'feed': .014, 'kill': .054,
                           'dataset_name': 'patterns', 'grid_type': 'cartesian', 'n_spatial_dims': 2,
                           'n_trajectories': 6, **attrs})
        file['dimensions/x'] = centres(8, -1)
        file['dimensions/y'] = centres(6, -1)
        file['dimensions/time'] = np.arange(5) * 10.
        file['dimensions'].attrs['spatial_dims'] = ['x', 'y']
        for letter, kind in zip('xy', kinds):
            file.create_group(f'boundary_conditions/{letter}_boundary').attrs['bc_type'] = kind
        file['t0_fields/A'] = scalars[..., 0]
        file['t0_fields/B'] = scalars[..., 1]
        file['t1_fields/velocity'] = vectors
        file.create_group('t2_fields')
    return path, np.concatenate([scalars, vectors], -1)


def test_the_well(path, spots):
    path, u = well(path)
    source = same_rows(path, u)
    assert (source.pde, source.params, source.dt) == ('spots', {'feed': .014, 'kill': .054}, 10.)
    assert source.fields == SPOTS.fields and source.doubts == ()
    for other in ({'boundary': 'wall'}, {'fields': ('B', 'A', 'velocity_x', 'velocity_y')},
                  {'params': {'feed': .01}}):
        spots(**other)
        assert "layout 'well', fields: A, B, velocity_x" in refused(open_source, path)


def test_what_the_well_says_of_boundaries_parameters_and_tensors(path, spots):
    spots(boundary='open', params={'feed': .01})
    own = {'simulation_parameters': ['feed', 'wind', 'lost'], 'feed': '0.014', 'wind': [1., 2.],
           'lost': h5py.Empty('f')}
    with h5py.File(well(path, ('WALL', 'PERIODIC'), **own)[0], 'a') as file:
        file['t2_fields/stress'] = np.zeros((6, 5, 8, 6, 2, 2))
    doubts = open_source(path).doubts
    assert len(doubts) == 4
    for word, doubt in zip(('periodic, wall', 'wind', 'lost', 'stress'), doubts):
        assert word in doubt


@pytest.mark.parametrize('key, values, word', [
    ('dimensions/time', np.zeros(1), 'T = 1'),
    ('dimensions/y', None, "'dimensions/y'"),
    ('dimensions/time', np.zeros(5), 'dimensions/time does not increase'),
    ('dimensions/time', np.arange(4.), 't0_fields/A has the shape (6, 5, 8, 6)'),
    ('t0_fields/B', noise(6, 8, 6), 't0_fields/B has the shape (6, 8, 6)'),
    ('t1_fields/velocity', noise(6, 5, 8, 6, 3), '(6, 5, 8, 6, 3)')])
def test_a_broken_well(path, key, values, word):
    change(well(path)[0], key, values)
    message = refused(open_source, path)
    assert path in message and word in message, message


def test_a_well_whose_times_stand_for_every_trajectory(path, spots):
    t = np.tile(10. * np.arange(5), (6, 1))
    change(well(path)[0], 'dimensions/time', t)
    assert open_source(path).dt == 10.
    t[2] += 5
    change(path, 'dimensions/time', t)
    assert 'dimensions/time differs from row to row' in refused(open_source, path)
    with h5py.File(path, 'a') as file:
        del file['dimensions'].attrs['spatial_dims']
    assert 'no attribute spatial_dims' in refused(open_source, path)


def test_links_in_a_well_are_not_followed(path, tmp_path, spots):
    other, _ = well(str(tmp_path / 'other.hdf5'))
    with h5py.File(well(path)[0], 'a') as file:
        del file['t1_fields']
        file['t1_fields'] = h5py.ExternalLink(other, 't1_fields')
    assert 'link' in refused(open_source, path)


def matlab(folder, name='NavierStokes_V1e-4_N12_T4.mat'):
    path = str(folder / name)
    u = noise(12, 5, 8, 6)
    with h5py.File(path, 'w', userblock_size=512) as file:
        file['a'] = u[:, 0].transpose(2, 1, 0)
        file['u'] = u[:, 1:].transpose(1, 3, 2, 0)
        file['t'] = np.arange(1., 5)[:, None]
    return path, u[..., None]


def test_matlab(tmp_path):
    path, u = matlab(tmp_path)
    source = same_rows(path, u)
    assert (source.pde, source.params, source.dt) == ('navier-stokes', {'Nu': 1e-4}, 1.)
    assert source.x[0][0] == 0 and 'frame 0 is a' in source.doubts[0]
    assert open_source(path, 'navier-stokes').pde == 'navier-stokes'
    assert 'viscosity' in refused(open_source, matlab(tmp_path, 'other.mat')[0])


@pytest.mark.parametrize('name, found', [
    ('ns_V1e-3_N12.mat', 1e-3), ('ns_V0.002_N12.mat', .002), ('ns_V1.5E-3.mat', 1.5e-3),
    ('ns_V1e4_N12.mat', 'write _V1e-4 in the name'), ('ns_V1e+4.mat', '_V1e-4'), ('ns_V2.5.mat', '2.5 in a'),
    ('ns_v0.2.mat', 'does not hold its viscosity'), ('ns_V1000_N12.mat', 'does not hold its viscosity')])
def test_the_viscosity_in_a_name(tmp_path, name, found):
    path, _ = matlab(tmp_path, name)
    if isinstance(found, str):
        assert found in refused(open_source, path)
    else:
        assert open_source(path).params == {'Nu': found}
    with h5py.File(path, 'a') as file:
        file['nu'] = np.full((1, 1), .3)                 # as MATLAB stores a variable
    assert open_source(path).params == {'Nu': .3}


@pytest.mark.parametrize('key, values, word', [
    ('a', noise(8, 6, 12), '(8, 6, 12)'),
    ('u', noise(4, 6, 8), '(4, 6, 8)'),
    ('t', np.arange(1., 4), 't (3,)'),
    ('t', np.array([1., 2., 3., 9.]), 't is not uniform')])
def test_broken_matlab(tmp_path, key, values, word):
    path, _ = matlab(tmp_path)
    change(path, key, values)
    message = refused(open_source, path)
    assert path in message and word in message, message
