"""layouts.py: hand-made files of each layout, good and broken; files of every equation that has a solver,
written and read again. (test_files.py has the layout 'tensor'.)"""
import dataclasses
import json
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

from conftest import centres, noise, refused
from data import Trajectories, print_found
from files import blocks, inspect, open_source, read, read_rows, write_file
from layouts import GAS, LAYOUTS
from pdes import PDES

SOLVED = [name for name, pde in PDES.items() if pde.solve]


def same_rows(path, u):
    """Are the rows of a file those of u (N, T, *X, C), read whole and in pieces?"""
    source = open_source(path, quiet=True)
    assert (source.n, source.n_frames, source.shape) == (len(u), u.shape[1], u.shape[2:-1])
    assert np.array_equal(read_rows(source, range(len(u))), u)
    second = slice(None, None, 2)
    strided = u[(slice(2, 5), second, *[second] * len(source.shape))]
    assert np.array_equal(read_rows(source, range(2, 5), 2, 2), strided)
    parts = list(blocks(source, range(1, len(u))))
    assert np.array_equal(np.concatenate([part for _, part in parts]), u[1:])
    with h5py.File(path) as file:
        assert read(source, file, slice(3, 3)).shape[0] == 0
        for frames in (slice(1, None), slice(0, 2, 1), slice(0, None, 2)):
            assert np.array_equal(read(source, file, slice(3, 4), frames), u[3:4, frames])
    return source


def change(path, key, values=None, **options):
    """Replace a dataset of a file, or remove it."""
    with h5py.File(path, 'a') as file:
        del file[key]
        if values is not None:
            file.create_dataset(key, data=values, **options)


def link(path, key, tmp_path):
    """Replace a part of a file by a link to the same part of another."""
    other = tmp_path / 'other.h5'
    with h5py.File(path, 'a') as file:
        with h5py.File(other, 'w') as elsewhere:
            file.copy(key, elsewhere, 'x')
        del file[key]
        file[key] = h5py.ExternalLink(str(other), 'x')


# ---------------------------------------------------------------------------------------------
# groups

def write_groups(path, u, axes, t, config=None, **options):
    with h5py.File(path, 'w') as file:
        for row, values in enumerate(u):
            file.create_dataset(f'{row:04d}/data', data=values, **options)
            for letter, axis in zip('xyz', axes):
                file[f'{row:04d}/grid/{letter}'] = axis.astype(np.float32)
            file[f'{row:04d}/grid/t'] = t.astype(np.float32)
            if config:
                file[f'{row:04d}'].attrs['config'] = config
    return path


REACTION = noise(12, 5, 8, 6, 2)


def reaction(path, u=REACTION, t=None, **options):
    """A file of diffusion-reaction."""
    t = np.linspace(0, 5, u.shape[1]) if t is None else t
    return write_groups(path, u, [centres(8, -1), centres(6, -1)], t, **options)


@pytest.mark.parametrize('options', [{}, {'compression': 'lzf'}, {'chunks': (1, 8, 6, 2)}], ids=str)
def test_groups(path, options):
    source = same_rows(reaction(path, **options), REACTION)
    assert (source.pde, source.fields, source.params) == ('diffusion-reaction', ('u', 'v'), {})
    assert source.dt == pytest.approx(1.25) and source.doubts == ()
    assert np.allclose(source.x[1], centres(6, -1))


def test_groups_of_other_equations(path):
    water = noise(5, 4, 8, 8, 1)
    axis = centres(8, -2.5, 2.5)
    source = same_rows(write_groups(path, water, [axis, axis], np.arange(4.) * .01), water)
    assert (source.pde, source.low, source.length) == ('shallow-water', (-2.5, -2.5), (5., 5.))
    solute = noise(5, 4, 16, 1)
    source = same_rows(write_groups(path, solute, [centres(16)], np.arange(4.) * 5), solute)
    assert (source.pde, source.dt) == ('diffusion-sorption', 5.)
    three = noise(5, 4, 16, 3)
    assert '3 fields' in refused(open_source, write_groups(path, three, [centres(16)], np.arange(4.)))


def test_more_than_ten_thousand_groups_are_read_in_the_order_of_their_numbers(path, monkeypatch):
    monkeypatch.setattr('layouts._group', lambda row: f'{row:01d}')         # so that 10 comes after 9, not 1
    u = noise(12, 2, 4, 1)
    with h5py.File(path, 'w') as file:
        for row, values in enumerate(u):
            file[f'{row}/data'] = values
    with h5py.File(path) as file:
        assert np.array_equal(LAYOUTS['groups'].read(file, slice(0, 12), slice(None)), u)


def test_what_is_doubtful_is_told(path):
    found = inspect(reaction(path, config='sim: {}\nt: 5\ntdim: 501\nxdim: 8\n'))
    assert len(found['doubts']) == 1 and '5 frames' in found['doubts'][0] and '501' in found['doubts'][0]
    assert inspect(reaction(path, config='tdim: 5'))['doubts'] == []
    late = inspect(reaction(path, t=np.linspace(0, 5, 6)))
    assert '6 times for 5 frames' in late['doubts'][0]


@pytest.mark.parametrize('key, values, words', [
    ('0003', None, ['0003 is missing', '0011 is there']),
    ('0003/data', None, ["'0003/data'"]),
    ('0003/data', noise(5, 8, 6, 1), ['0003/data (5, 8, 6, 1)', '(5, 8, 6, 2)']),
    ('0003/data', REACTION[0] > 0, ['0003/data', 'bool']),
    ('0000/grid/x', None, ['0000/grid']),
    ('0000/grid/x', centres(7, -1), ['(T, X, Y, C)', '(7, 6)', '(5, 8, 6, 2)']),
    ('0000/grid/x', centres(8, -1) ** 3, ['0000/grid/x', 'uniform']),
    ('0000/grid/t', None, ["'0000/grid/t'"]),
    ('0000/grid/t', np.arange(4.), ['5 frames', '4 times']),
    ('0000/grid/t', np.zeros(5), ['0000/grid/t', 'uniform'])])
def test_broken_groups(path, key, values, words):
    change(reaction(path), key, values)
    message = refused(open_source, path)
    assert path in message and all(word in message for word in words), message


@pytest.mark.parametrize('key', ['0004', '0004/data', '0000/grid/t', '0000/grid/y'])
def test_links_in_groups_are_not_followed(path, tmp_path, key):
    link(reaction(path), key, tmp_path)
    assert path in refused(open_source, path)


def test_a_group_that_was_never_filled(path):
    with h5py.File(reaction(path), 'a') as file:
        del file['0007/data']
        file['0007'].create_dataset('data', (5, 8, 6, 2), 'f4', chunks=(1, 8, 6, 2))[0] = 1.
    message = refused(open_source, path)
    assert '0007/data' in message and 'never filled' in message


def test_values_that_are_not_finite_in_a_group(path):
    u = REACTION.copy()
    u[7, 3, 2, 2, 1] = np.nan
    assert 'trajectory 7, frame 3' in refused(inspect, reaction(path, u))


# ---------------------------------------------------------------------------------------------
# one array a field

def write_gas(path, u, axes, attrs, n_times=None, **options):
    n_times = u.shape[1] + 1 if n_times is None else n_times
    with h5py.File(path, 'w') as file:
        for channel in range(u.shape[-1]):
            file.create_dataset(GAS[channel], data=u[..., channel], **options)
        for letter, axis in zip('xyz', axes):
            file[f'{letter}-coordinate'] = axis.astype(np.float32)
        file['t-coordinate'] = np.arange(n_times) * .01
        file.attrs.update(attrs)
    return path


TUBE = noise(12, 5, 16, 3)
SLIPPERY = {'eta': .01, 'zeta': .01}


def tube(path, u=TUBE, attrs=SLIPPERY, **options):
    """A file of compressible flow in one dimension."""
    return write_gas(str(path), u, [centres(16, -1)], attrs, **options)


@pytest.mark.parametrize('options', [{}, {'chunks': (1, 5, 16)}, {'chunks': (3, 2, 16), 'fletcher32': True}],
                         ids=str)
def test_arrays(path, options):
    source = same_rows(tube(path, **options), TUBE)
    assert source.fields == ('density', 'pressure', 'Vx')
    assert (source.pde, source.params) == ('compressible-1d', SLIPPERY)
    assert 'the last is left out' in source.doubts[0]
    assert open_source(tube(path, n_times=5)).doubts == ()


def test_the_boundary_is_told_by_the_name_or_by_whoever_asks(tmp_path, path):
    names = {'periodic': 'compressible-1d', 'trans': 'compressible-1d-outgoing'}
    for word, name in names.items():
        named = tube(tmp_path / f'1D_CFD_Rand_Eta1.e-8_Zeta1.e-8_{word}_Train.hdf5')
        assert open_source(named).pde == name
        other, = set(names.values()) - {name}
        assert f'--dataset={name}' in refused(open_source, named, other)
    shock = tube(tmp_path / '1D_CFD_Shock_Eta1.e-8_Zeta1.e-8_trans_Train.hdf5')
    assert open_source(shock).pde == 'compressible-1d-outgoing'
    assert '--dataset=compressible-1d-outgoing' in refused(open_source, shock, 'compressible-1d')
    tube(path)
    assert open_source(path).pde == 'compressible-1d'
    assert open_source(path, 'compressible-1d-outgoing').pde == 'compressible-1d-outgoing'
    tube(path, attrs={**SLIPPERY, 'pde': 'compressible-1d-outgoing'})
    assert open_source(path).pde == 'compressible-1d-outgoing'


@pytest.mark.parametrize('key, values, words', [
    ('pressure', None, ["'pressure'", 'density, pressure, Vx', '(12, 5, 16)']),
    ('density', None, ["'density'"]),
    ('Vx', TUBE[:, :4, :, 0], ['Vx (12, 4, 16)', 'density (12, 5, 16)']),
    ('Vx', TUBE[..., 0] + 0j, ['Vx', 'complex64']),
    ('x-coordinate', None, ["'x-coordinate'"]),
    ('x-coordinate', centres(5, -1), ['swapped']),
    ('t-coordinate', np.arange(9.), ['5 frames', '9 times'])])
def test_broken_arrays(path, key, values, words):
    change(tube(path), key, values)
    message = refused(open_source, path)
    assert path in message and all(word in message for word in words), message


@pytest.mark.parametrize('key', ['density', 'Vx', 't-coordinate'])
def test_links_in_arrays_are_not_followed(path, tmp_path, key):
    link(tube(path), key, tmp_path)
    assert path in refused(open_source, path)


# ---------------------------------------------------------------------------------------------
# steady

NU = noise(12, 8, 6)
STEADY = noise(12, 1, 8, 6, seed=1)


def darcy(path, nu=NU, tensor=STEADY, attrs=(('beta', 1.),)):
    with h5py.File(path, 'w') as file:
        file['nu'] = nu
        file['tensor'] = tensor
        file['x-coordinate'] = centres(8)
        file['y-coordinate'] = centres(6)
        file.attrs.update(attrs)
    return path


def test_steady(path):
    u = np.zeros((12, 2, 8, 6, 2), np.float32)
    u[..., 0] = NU[:, None]
    u[:, 1, ..., 1] = STEADY[:, 0]
    source = same_rows(darcy(path), u)
    assert (source.pde, source.fields, source.params, source.dt) == ('darcy', ('a', 'u'), {'beta': 1.}, 1.)


@pytest.mark.parametrize('key, values, words', [
    ('tensor', noise(12, 2, 8, 6), ['(12, 1, 8, 6)', '(12, 2, 8, 6)']),
    ('tensor', noise(11, 1, 8, 6), ['(12, 1, 8, 6)', '(11, 1, 8, 6)']),
    ('tensor', STEADY > 0, ['tensor', 'bool']),
    ('nu', noise(12, 6, 8), ['nu (N, X, Y)', '(12, 6, 8)', 'swapped']),
    ('nu', NU + 0j, ['nu', 'complex64']),
    ('y-coordinate', None, ['nu (N, X)']),
    ('x-coordinate', np.zeros(8), ['x-coordinate', 'uniform'])])
def test_broken_steady(path, key, values, words):
    change(darcy(path), key, values)
    message = refused(open_source, path)
    assert path in message and all(word in message for word in words), message


@pytest.mark.parametrize('key', ['nu', 'tensor', 'x-coordinate'])
def test_links_in_steady_files_are_not_followed(path, tmp_path, key):
    link(darcy(path), key, tmp_path)
    assert path in refused(open_source, path)


# ---------------------------------------------------------------------------------------------
# layouts that are only read

def test_arrays_on_two_axes(path):
    u = noise(12, 5, 8, 6, 4)
    attrs = {'M': .1, 'eta': 1e-8, 'zeta': 1e-8}
    source = same_rows(write_gas(path, u, [centres(8), centres(6)], attrs), u)
    assert (source.pde, source.params) == ('compressible-2d', attrs)
    assert source.fields == ('density', 'pressure', 'Vx', 'Vy')


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
    assert 'unit square' in source.doubts[0]


@pytest.mark.parametrize('key, values, words', [
    ('force', None, ["'force'"]),
    ('force', noise(5, 8, 6, 2), ['(5, 8, 6, 2)', 'force (N, X, Y, 2)']),
    ('particles', noise(6, 5, 8, 6, 2), ['(6, 5, 8, 6, 2)']),
    ('velocity', noise(6, 5, 8, 6), ['(6, 5, 8, 6)']),
    ('t', np.zeros((6, 5)), ['t is not'])])
def test_broken_forced_flow(path, key, values, words):
    change(forced(path)[0], key, values)
    message = refused(open_source, path)
    assert path in message and all(word in message for word in words), message


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


def test_the_well(path):
    path, u = well(path)
    source = same_rows(path, u)
    assert (source.pde, source.params, source.dt) == ('patterns', {'feed': .014, 'kill': .054}, 10.)
    assert source.fields == ('A', 'B', 'velocity_x', 'velocity_y') and source.periodic
    assert source.low == pytest.approx((-1 + 1 / 8, -1 + 1 / 6)) and source.length == pytest.approx((2, 2))
    assert inspect(path)['pde'] == 'patterns' and source.doubts == ()
    assert 'A, B, velocity_x' in refused(open_source, path, 'burgers')
    namesake = open_source(well(path, dataset_name='burgers')[0])
    assert namesake.pde == 'burgers' and namesake.fields == source.fields


def test_the_well_with_an_entry(path, monkeypatch):
    path, u = well(path)
    own = dataclasses.replace(open_source(path).entry, space=((-1, 1), (-1, 1)), positive=('A', 'B'))
    monkeypatch.setitem(PDES, 'spots', own)
    source = same_rows(path, u)
    assert source.pde == 'spots' and source.entry is own and open_source(path, 'spots').pde == 'spots'
    for other in ({'boundary': 'wall'}, {'fields': ('B', 'A', 'velocity_x', 'velocity_y')}):
        monkeypatch.setitem(PDES, 'spots', dataclasses.replace(own, **other))
        assert open_source(path).pde == 'patterns'


def test_what_the_well_says_of_boundaries_and_tensors(path):
    source = open_source(well(path, ('WALL', 'PERIODIC'))[0])
    assert source.entry.boundary == 'open' and 'periodic, wall' in source.doubts[0]
    assert open_source(well(path, ('WALL', 'WALL'))[0]).entry.boundary == 'wall'
    with h5py.File(path, 'a') as file:
        file['t2_fields/stress'] = np.zeros((6, 5, 8, 6, 2, 2))
    assert 'stress' in open_source(path).doubts[-1]


def test_parameters_of_the_well_may_have_any_sign_but_are_numbers(path):
    own = {'simulation_parameters': ['alpha', 'wind', 'lost'], 'alpha': -1., 'wind': [1., 2.]}
    source = open_source(well(path, **own)[0])
    assert source.params == {'alpha': -1.}
    assert [doubt.split()[2] for doubt in source.doubts] == ['wind', 'lost']


@pytest.mark.parametrize('key, values, words', [
    ('dimensions/time', np.zeros(1), ['dimensions/time has 1 values']),
    ('dimensions/y', None, ["'dimensions/y'"]),
    ('dimensions/time', np.zeros(5), ['dimensions/time', 'uniform']),
    ('dimensions/time', np.arange(4.), ['t0_fields/A', '(6, 4, 8, 6)']),
    ('t0_fields/B', noise(6, 8, 6), ['t0_fields/B is (6, 8, 6)', 'do not vary']),
    ('t1_fields/velocity', noise(6, 5, 8, 6, 3), ['(6, 5, 8, 6, 3)'])])
def test_a_broken_well(path, key, values, words):
    change(well(path)[0], key, values)
    message = refused(open_source, path)
    assert path in message and all(word in message for word in words), message


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
    assert 'viscosity' in refused(open_source, matlab(tmp_path, 'other.mat')[0])


@pytest.mark.parametrize('key, values, words', [
    ('a', noise(8, 6, 12), ['(8, 6, 12)', '(4, 6, 8, 12)']),
    ('u', noise(4, 6, 8), ['(4, 6, 8)']),
    ('t', np.arange(1., 4), ['t (3,)']),
    ('t', np.array([1., 2., 3., 9.]), ['t is not'])])
def test_broken_matlab(tmp_path, key, values, words):
    path, _ = matlab(tmp_path)
    change(path, key, values)
    message = refused(open_source, path)
    assert path in message and all(word in message for word in words), message


# ---------------------------------------------------------------------------------------------
# every equation

@pytest.mark.parametrize('make', [reaction, tube, darcy])
def test_rows_that_do_not_fit_into_memory_are_the_same(path, make):
    source = open_source(make(path), quiet=True)
    found = []
    for memory_gb in (0., 100.):
        keys = SimpleNamespace(n_trajectories=12, time_stride=1, space_stride=2, query_stride=2,
                               memory_gb=memory_gb)
        trajectories = Trajectories([source], keys, torch.device('cpu'))
        found.append(trajectories.gather(torch.tensor([0, 7, 3]), torch.zeros(3, dtype=torch.long), 2))
        assert trajectories.in_memory == (memory_gb > 0)
    assert found[0].abs().max() > 1 and torch.equal(*found)


@pytest.mark.parametrize('name', SOLVED)
def test_a_written_file_is_recognised_and_holds_the_solution(name, path, monkeypatch, capsys):
    full = PDES[name]
    pde = dataclasses.replace(full, frames=min(full.frames, 4), params=dict.fromkeys(full.params, .02))
    monkeypatch.setitem(PDES, name, pde)
    size = 64 if pde.axes == 1 else 16
    write_file(path, name, pde.params, 4, seed=3, device='cpu', batch_size=3, resolution=size)
    u0 = pde.start(4, (size,) * pde.axes, seed=3)
    u = pde.solution(u0, pde.params, np.arange(pde.frames) * pde.dt).numpy()
    source = open_source(path, quiet=True)
    assert (source.pde, source.params, source.n, source.n_frames) == (name, pde.params, 4, pde.frames)
    assert source.shape == (size,) * pde.axes and source.dt == pytest.approx(pde.dt, rel=1e-5)
    scale = np.abs(u).max(tuple(range(u.ndim - 1)))
    assert (np.abs(read_rows(source, range(4)) - u) / scale).max() < 1e-5
    found = inspect(path)
    assert np.allclose(found['max'], u.max(tuple(range(u.ndim - 1))), rtol=1e-5)
    json.dumps(found, allow_nan=False)
    capsys.readouterr()
    print_found(found)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows[-len(pde.fields):]] == list(pde.fields)


def test_large_rows_are_read_and_solved_for_in_small_blocks(path, monkeypatch):
    seen = []
    pde = PDES['diffusion-reaction']

    def solve(u0, t):
        seen.append(len(u0))
        return u0[:, None].expand(-1, len(t), *u0.shape[1:])

    monkeypatch.setitem(PDES, 'diffusion-reaction', dataclasses.replace(pde, solve=solve, frames=6))
    row_values = 6 * 16 * 16 * 2
    monkeypatch.setattr('files.SOLVED_VALUES', 3 * row_values)
    monkeypatch.setattr('files.CHUNK_VALUES', 2 * row_values)
    monkeypatch.setattr('layouts.CHUNK_VALUES', 2 * 16 * 16 * 2)
    write_file(path, 'diffusion-reaction', {}, 8, device='cpu', resolution=16)
    assert seen[-3:] == [3, 3, 2] and max(seen) == 3
    with h5py.File(path) as file:
        assert file['0005/data'].chunks == (2, 16, 16, 2) and file['0005/data'].fletcher32
    source = open_source(path)
    assert [first for first, _ in blocks(source, range(8))] == [0, 2, 4, 6]
    assert torch.equal(torch.from_numpy(read_rows(source, range(8))[:, 3]), pde.start(8, (16, 16)).float())
