"""files/open.py: files that are there, missing, broken or planned; which equation they are of; rows, splits,
fingerprints; initial conditions alone. (test_layouts.py has the other layouts.)"""
import dataclasses
import itertools
import os

import h5py
import numpy as np
import pytest

import equations
from conftest import centres, noise, refused
from files.inspect import inspect
from files.open import (LAYOUTS, blocks, check_overlap, find, fingerprints, open_source, read, read_initial,
                        read_rows, split_rows)
from handmade import change, know, tensor, tube

X16 = centres(16)


# -----------------------------------------------------------------------------
# plans

@pytest.mark.parametrize('layout, holds', [('tensor', 'holds one'), ('arrays', 'density, pressure, Vx')])
def test_fields_that_a_layout_does_not_hold_are_told_before_they_are_made(layout, holds, tmp_path, monkeypatch):
    entry = dataclasses.replace(equations.entry('compressible-1d'), fields=('h', 'v'), layout=layout)
    know(monkeypatch.setattr, mine=entry)
    message = refused(find, 'mine', str(tmp_path), '', entry.params, 5)
    assert holds in message and "layout='groups'" in message


# -----------------------------------------------------------------------------
# one file

def test_what_a_source_says(path, capsys):
    u = noise()
    source = open_source(tensor(path, u))
    assert (source.n, source.n_frames, source.shape, source.params) == (10, 5, (16,), {'Nu': .01})
    assert source.pde == 'burgers' and source.entry is equations.entry('burgers')
    assert source.fields == ('u',) and source.dtype == 'float32' and source.exists
    assert abs(source.dt - .01) < 1e-9 and source.x[0][0] == .5 / 16 and capsys.readouterr().out == ''
    assert open_source(tensor(path, u, t=np.arange(5) * .01)).n_frames == 5     # PDEBench has a time too many
    assert source.time_stride(.05) == 5 and source.time_stride(1e-9) == 1


def test_the_note_of_an_entry_is_printed_once(path, capsys):
    tensor(path, x=centres(16, -1, 1))
    open_source(path, quiet=True)
    assert capsys.readouterr().out == ''
    assert open_source(path).pde == 'burgers-old'
    assert 'old generation' in capsys.readouterr().out
    open_source(path)
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize('dtype', ['f8', '>f4', '>i4', 'u1', 'f2'])
def test_other_number_types_are_cast_with_a_note(path, dtype, capsys):
    u = np.abs(10 * noise()).astype(dtype)
    source = open_source(tensor(path, u))
    rows = read_rows(source, range(10))
    assert rows.dtype == np.float32 and np.array_equal(rows[..., 0], u.astype(np.float32))
    assert next(blocks(source, range(3)))[1].dtype == np.dtype('=f4')
    assert 'cast to float32' in capsys.readouterr().out


@pytest.mark.parametrize('chunks', [None, (1, 5, 16), (4, 1, 16), (3, 2, 7)])
@pytest.mark.parametrize('time_stride, space_stride', [(1, 1), (2, 4), (5, 16)])
def test_rows_do_not_depend_on_how_they_are_stored(path, chunks, time_stride, space_stride):
    u = noise(40)
    source = open_source(tensor(path, u, chunks=chunks))
    expected = u[3:38, ::time_stride, ::space_stride]
    assert np.array_equal(read_rows(source, range(3, 38), time_stride, space_stride)[..., 0], expected)
    parts = list(blocks(source, range(3, 38), time_stride))
    assert [first for first, _ in parts] == [0, 16, 32]
    assert np.array_equal(np.concatenate([part for _, part in parts])[..., 0], u[3:38, ::time_stride])
    assert len(read_rows(source, range(0))) == 0
    with h5py.File(path) as file:
        assert np.array_equal(read(source, file, slice(7, 9), slice(1, 5, 2))[..., 0], u[7:9, 1:5:2])


def test_rows_that_are_not_there(path):
    source = open_source(tensor(path))
    assert '10 trajectories, but row 10' in refused(read_rows, source, range(8, 11))


@pytest.mark.parametrize('key, values, word', [
    ('tensor', None, "no dataset 'tensor'"),
    ('t-coordinate', None, "no dataset 't-coordinate'"),
    ('x-coordinate', None, "no dataset 'x-coordinate'"),
    ('tensor', noise()[..., None], '(10, 5, 16, 1), expected (N, T, X)'),
    ('tensor', noise(10, 5, 16, 2), "2 fields: this layout holds one field, without such an axis, 'groups'"),
    ('tensor', noise(10, 5, 16, 12), 'y-coordinate is missing'),
    ('tensor', noise()[0], '(5, 16), expected'),
    ('tensor', noise(10, 16, 5), 'with X = 16; its axes seem to be swapped, as if they were (N, X, T)'),
    ('tensor', noise(16, 5, 10), 'as if they were (X, T, N)'),
    ('tensor', noise(5, 10), '10 frames but 6 times in t-coordinate, expected 11 or 10; the axes N and T'),
    ('t-coordinate', np.arange(4) * .01, '5 frames but 4 times'),
    ('t-coordinate', np.arange(7) * .01, '5 frames but 7 times'),
    ('t-coordinate', np.arange(6)[::-1] * .01, 't-coordinate does not increase'),
    ('t-coordinate', np.arange(6)[::-1] * .01, 'falls from 0.05 to 0.01: reverse it'),
    ('t-coordinate', np.arange(6) ** 2 * .01, 't-coordinate is not uniform'),
    ('t-coordinate', np.arange(5) * np.ones((10, 1)) + np.eye(10, 5), 'differs from row to row'),
    ('x-coordinate', np.linspace(0, 1, 16), 'burgers, reaction-diffusion, for its points lie at both'),
    ('x-coordinate', np.full(16, np.nan), 'x-coordinate has values that are not finite'),
    ('tensor', noise() + 0j, 'complex64'),
    ('tensor', noise() > 0, 'bool'),
    ('tensor', noise()[:, :1], 'at least 2 are needed'),
    ('tensor', noise()[:0], 'is empty')])
def test_a_wrong_layout_is_refused_with_what_was_found(path, key, values, word):
    tensor(path)
    change(path, key, values)
    if values is not None and values.shape == (10, 1, 16):
        change(path, 't-coordinate', np.arange(2.))
    message = refused(open_source, path)
    assert path in message and word in message, message


@pytest.mark.parametrize('nu', [0., -1., np.nan, np.inf])
def test_parameters_are_positive_and_finite(path, nu):
    assert 'Nu=' in refused(open_source, tensor(path, attrs={'Nu': nu}))


def test_missing_files(path, tmp_path):
    tensor(path)
    assert os.path.basename(path) in refused(open_source, str(tmp_path / 'other.hdf5'))   # what is beside it
    refused(open_source, str(tmp_path / 'no folder' / 'other.hdf5'))
    assert 'directory' in refused(open_source, str(tmp_path))
    assert 'leave the slash out' in refused(open_source, path + '/')


def test_values_that_are_not_finite_are_refused_with_count_and_place(path):
    u = noise(40)
    u[33, 2, 3:6] = np.nan
    u[37, 0, 0] = -np.inf
    source = open_source(tensor(path, u))
    assert '4 values are not finite, the first in trajectory 33, frame 2' in refused(
        read_rows, source, range(20, 40))
    assert np.array_equal(read_rows(source, range(20, 40), check=False)[..., 0], u[20:], equal_nan=True)


@pytest.mark.parametrize('value', [np.float32(9.96921e36), 1e300])
def test_marks_without_an_attribute_and_what_float32_does_not_hold(path, value):
    u = noise().astype(type(value))
    u[4, 2, 3] = value
    message = refused(read_rows, open_source(tensor(path, u)), range(10))
    assert '1 values are not finite, the first in trajectory 4, frame 2' in message and '9.9e+36' in message


def test_times_and_points_of_every_trajectory(path):
    t = np.arange(5) * np.full((10, 1), .01)
    source = open_source(tensor(path, x=np.tile(centres(16), (10, 1)), t=t))
    assert source.dt == pytest.approx(.01) and np.array_equal(source.x[0], centres(16))
    t[2] *= 1 + 1e-6                                     # rounding
    assert open_source(tensor(path, t=t)).n == 10
    t[3] *= 1.02
    assert '0 to 0.0408 in row 3, 5 from 0 to 0.04 in row 0' in refused(open_source, tensor(path, t=t))


@pytest.mark.parametrize('t, units, told', [
    (np.arange(6) * .01, 's', None), (np.arange(6) * .01, 'Seconds', None),
    (np.arange(6) * .01, 'seconds since 2000-01-01', None),
    (np.arange(6) * .01, 'ms', "has t-coordinate in 'ms'"), (2 + np.arange(6) * .01, '', 'begins at 2 s'),
    (np.arange(6) * 10., '', 'has a frame every 10 s, 1e+03 times the 0.01 s')])
def test_times_that_may_be_meant_otherwise_are_told(path, t, units, told, capsys):
    with h5py.File(tensor(path, t=t), 'a') as file:
        file['t-coordinate'].attrs['units'] = units
    doubts = open_source(path).doubts
    out = capsys.readouterr().out
    if told:
        assert told in doubts[0] and told in out
    else:
        assert not doubts and not out


@pytest.mark.parametrize('size', [0, 1, 100, .5, -1])
def test_truncated_file(path, size):
    tensor(path, noise(50))
    n = os.path.getsize(path)
    os.truncate(path, int(size * n) if isinstance(size, float) else size % n)
    message = refused(inspect, path)
    assert path in message and str(os.path.getsize(path)) in message


def test_a_flipped_byte_of_the_values_is_refused(path):
    u = noise()
    tensor(path, u, chunks=(1, 5, 16), fletcher32=True)
    content = bytearray(open(path, 'rb').read())
    source = open_source(path)
    for row in range(10):
        place = content.index(u[row].tobytes()) + 7 * row
        broken = content.copy()
        broken[place] ^= 16
        open(path, 'wb').write(broken)
        assert 'damaged' in refused(read_rows, source, range(10))


def test_a_file_that_another_program_writes(path, monkeypatch):
    tensor(path)

    def locked(*args):
        raise OSError("Unable to synchronously open file (unable to lock file, errno = 11)")
    monkeypatch.setattr(h5py, 'File', locked)
    assert 'another program is writing it' in refused(open_source, path)


@pytest.mark.parametrize('link, key', [('external', 'tensor'), ('dangling', 'x-coordinate'),
                                       ('soft', 't-coordinate'), ('raw', 'tensor'), ('virtual', 'tensor')])
def test_links_are_not_followed(tmp_path, path, link, key):
    other = tensor(tmp_path / 'other.hdf5')
    tensor(path)
    with h5py.File(path, 'a') as file:
        shape = file[key].shape
        del file[key]
        if link == 'raw':
            file.create_dataset(key, shape, 'f4', external=[(other, 0, h5py.h5f.UNLIMITED)])
        elif link == 'virtual':
            layout = h5py.VirtualLayout(shape, 'f4')
            layout[:] = h5py.VirtualSource(other, key, shape)
            file.create_virtual_dataset(key, layout)
        else:
            file['hidden'] = np.zeros(shape, np.float32)
            file[key] = {'external': h5py.ExternalLink(other, key), 'soft': h5py.SoftLink('/hidden'),
                         'dangling': h5py.ExternalLink('nowhere.hdf5', key)}[link]
    assert path in refused(open_source, path)


@pytest.mark.parametrize('chunks, n', [(None, 10), ((1, 201, 1024), 10 ** 9)])
def test_claimed_but_never_filled(path, chunks, n):
    with h5py.File(path, 'w') as file:
        values = file.create_dataset('tensor', (n, 201, 1024), 'f4', chunks=chunks)
        if chunks:
            values[3] = 1.
        file['x-coordinate'] = centres(1024)
        file['t-coordinate'] = np.arange(202) * .01
    assert 'never filled' in refused(open_source, path)


def test_a_file_that_is_marked_incomplete(path):
    with h5py.File(tensor(path), 'a') as file:
        file.attrs['complete'] = 0
    assert 'incomplete' in refused(open_source, path)
    for other in (1, 'no', h5py.Empty('f'), np.zeros(2), np.array((1, 2.), [('a', 'i4'), ('b', 'f8')])):
        assert open_source(tensor(path, attrs={'Nu': .01, 'complete': other})).n == 10      # another program's


# -----------------------------------------------------------------------------
# which equation

def test_equations_are_told_apart(path):
    assert open_source(tensor(path, attrs={'beta': .4})).pde == 'advection'
    assert open_source(tensor(path, x=centres(16, -1, 1)), quiet=True).pde == 'burgers-old'
    for shift in (-.5, 0., .5):                          # the first point may lie anywhere in its cell
        assert open_source(tensor(path, x=X16 + shift / 16)).pde == 'burgers'


@pytest.mark.parametrize('parts, word', [
    ({'attrs': {'kappa': 1.}}, 'attributes: kappa): no file of advection, for it has no attribute beta; no '
                               'file of burgers, reaction-diffusion, for it has no attribute Nu'),
    ({'attrs': {}}, 'attributes: none'),
    ({'x': centres(16, 0, 2)}, '(0, 2)'),
    ({'x': np.linspace(0, 1, 16)}, 'its points lie at both ends of (0, 1), and must be in 16 equal cells'),
    ({'x': centres(16, .3, 1.3)}, '(0.3, 1.3)'), ({'x': centres(16, -.3, .7)}, '(-0.3, 0.7)'),
    ({'attrs': {'Nu': .01, 'pde': 'advection'}}, "pde='advection', but it has no attribute beta"),
    ({'attrs': {'Nu': .01, 'pde': 'heat'}}, "pde='heat', which is no known equation"),
    ({'u': noise(3, 5, 4, 16), 'axes': (centres(4), centres(16, 0, 3))}, '(0, 1) x (0, 3)')])
def test_files_of_no_known_equation_are_refused(path, parts, word):
    message = refused(open_source, tensor(path, **parts))
    assert word in message, message


@pytest.mark.parametrize('dataset, parts, word', [
    ('burgers', {'x': centres(16, 0, 2)}, 'its cells span (0, 2), not (0, 1)'),
    ('burgers', {'attrs': {}}, 'it has no attribute Nu'),
    ('burgers', {'attrs': {'kappa': 1.}}, 'it has no attribute Nu (attributes: kappa)'),
    ('navier-stokes', {'attrs': {}}, 'it has 1 axes, not 2'),
    ('darcy', {'attrs': {}}, "its layout is 'tensor', not 'steady'")])
def test_why_a_file_is_not_of_the_equation_asked_for(path, dataset, parts, word):
    assert word in refused(open_source, tensor(path, **parts), dataset)


def test_the_attribute_pde_decides(path):
    attrs = {'Nu': .01, 'rho': 1., 'seed': 3, 'pde': 'burgers'}
    assert open_source(tensor(path, attrs=attrs)).params == {'Nu': .01}
    assert open_source(tensor(path, attrs={'Nu': .01, 'pde': np.bytes_('burgers')})).pde == 'burgers'


def test_another_equation_than_asked_for(path):
    tensor(path)
    assert 'it holds burgers, use --dataset=burgers' in refused(open_source, path, 'advection')
    assert "'burger'" in refused(open_source, path, 'burger')


def test_where_two_equations_fit_the_one_asked_for_is_taken(path, monkeypatch):
    know(monkeypatch.setattr, heat=dataclasses.replace(equations.entry('burgers'), galilean=0.))
    tensor(path)
    assert open_source(path, 'heat').pde == 'heat' and open_source(path, 'burgers').pde == 'burgers'
    tensor(path, attrs={'Nu': .01, 'seed': 3})           # which is no parameter of either
    assert open_source(path, 'heat').pde == 'heat' and open_source(path, 'burgers').pde == 'burgers'


def test_the_boundary_is_told_by_the_name_or_by_whoever_asks(tmp_path, path):
    names = {'Rand_Eta1.e-8_Zeta1.e-8_periodic': 'compressible-1d',
             'Rand_Eta1.e-8_Zeta1.e-8_trans': 'compressible-1d-outgoing',
             'Shock_Eta1.e-8_Zeta1.e-8_trans': 'compressible-1d-outgoing'}
    for word, name in names.items():
        named = tube(tmp_path / f'1D_CFD_{word}_Train.hdf5')
        assert open_source(named).pde == name
        other, = set(names.values()) - {name}
        assert f'--dataset={name}' in refused(open_source, named, other)
    tube(path)
    assert open_source(path).pde == 'compressible-1d'
    assert open_source(path, 'compressible-1d-outgoing').pde == 'compressible-1d-outgoing'
    label = {'eta': .01, 'zeta': .01, 'pde': 'compressible-1d-outgoing'}
    for labelled in (path, tmp_path / 'a_periodic_b.hdf5'):          # the attribute counts more than the name
        assert open_source(tube(labelled, attrs=label)).pde == 'compressible-1d-outgoing'


def test_a_named_equation_is_the_only_one_that_is_loaded(path, monkeypatch):
    entry = equations.entry

    def only_burgers(name):
        assert name == 'burgers'
        return entry(name)
    monkeypatch.setattr(equations, 'entry', only_burgers)
    monkeypatch.setattr(equations, 'entries', None)
    assert open_source(tensor(path), 'burgers').n == 10
    assert open_source(tensor(path, attrs={'Nu': .01, 'pde': 'burgers'})).n == 10
    find('burgers', os.path.dirname(path), '', {'Nu': .3}, 10)


# -----------------------------------------------------------------------------
# find

def find_burgers(folder, data_path='', n=12, **options):
    return find('burgers', str(folder), data_path, {'Nu': .01}, n, **options)


def test_named_files_must_exist(tmp_path, path):
    missing = str(tmp_path / 'missing.hdf5')
    assert missing in refused(find_burgers, tmp_path, missing)
    tensor(path)
    with_comma = tensor(tmp_path / 'a,b.hdf5')
    assert missing in refused(find_burgers, tmp_path, f'{path},{missing}')
    assert 'names no file' in refused(find_burgers, tmp_path, ' , ')
    other = tensor(tmp_path / 'other.hdf5')
    for data_path, paths in ((path, [path]), (f'{path}, {other}', [path, other]), (with_comma, [with_comma])):
        assert [source.path for source in find_burgers(tmp_path, data_path)] == paths
    assert '--dataset=burgers' in refused(find, 'advection', str(tmp_path), path, {'beta': .4}, 12)
    again = os.path.join(tmp_path, '.', os.path.basename(path))
    assert 'twice' in refused(find_burgers, tmp_path, f'{path},{other},{again}')


def test_long_reading_says_how_far_it_is(path, monkeypatch, capsys):
    monkeypatch.setattr('runtime.progress.perf_counter', itertools.count(step=20.).__next__)
    source = open_source(tensor(path, noise(40)))
    monkeypatch.setattr('files.open.CHUNK_ROWS', 10)
    read_rows(source, range(40))
    assert capsys.readouterr().out.splitlines() == [
        f"reading '{path}' {percent}% | eta {eta}" for percent, eta in ((25, '1m00s'), (50, '0m40s'),
                                                                      (75, '0m20s'))]


def test_a_file_that_is_not_there_is_planned(tmp_path):
    source, = find_burgers(tmp_path)
    assert not source.exists and os.listdir(tmp_path) == []
    assert source.path == str(tmp_path / '1D_Burgers_Sols_Nu0.01_N12.hdf5')
    assert (source.pde, source.n, source.n_frames, source.shape) == ('burgers', 12, 201, (1024,))
    assert (source.dt, source.params, source.layout, source.fields) == (.01, {'Nu': .01}, 'tensor', ('u',))
    assert np.array_equal(source.x[0], centres(1024))
    small, = find_burgers(tmp_path, resolution=64)
    assert small.shape == (64,) and small.path.endswith('_X64_N12.hdf5')


def test_several_values_of_a_parameter_are_planned_with_a_seed_each(tmp_path):
    made = tensor(tmp_path / '1D_Burgers_Sols_Nu0.01_N12_seed1.hdf5')
    sources = find('burgers', str(tmp_path), '', {'Nu': (.1, .01, .001)}, 12)
    assert [source.path for source in sources][1] == made
    assert [os.path.basename(source.path) for source in sources][::2] == [
        '1D_Burgers_Sols_Nu0.1_N12.hdf5', '1D_Burgers_Sols_Nu0.001_N12_seed2.hdf5']
    assert [source.exists for source in sources] == [False, True, False]
    assert [source.seed for source in sources][::2] == [0, 2]
    assert [source.params['Nu'] for source in sources] == [.1, .01, .001]


def test_the_released_file_is_preferred_to_one_that_was_made(tmp_path):
    made = tensor(tmp_path / '1D_Burgers_Sols_Nu0.01_N12.hdf5')
    assert [source.path for source in find_burgers(tmp_path)] == [made]
    released = tensor(tmp_path / '1D_Burgers_Sols_Nu0.01.hdf5')
    assert [source.path for source in find_burgers(tmp_path)] == [released]
    assert not find_burgers(tmp_path, resolution=64)[0].exists


def test_what_cannot_be_planned(tmp_path, monkeypatch):
    assert "'burger'" in refused(find, 'burger', str(tmp_path), '', {}, 12)
    assert 'no built-in solver' in refused(find, 'incompressible', str(tmp_path), '', {}, 12)
    assert 'n=0' in refused(find_burgers, tmp_path, n=0)
    assert 'resolution=1' in refused(find_burgers, tmp_path, resolution=1)
    monkeypatch.setitem(LAYOUTS, 'tensor', dataclasses.replace(LAYOUTS['tensor'], write=None))
    assert 'cannot be written' in refused(find_burgers, tmp_path)


# -----------------------------------------------------------------------------
# splits and fingerprints

@pytest.mark.parametrize('n', [3, 19, 20, 101])
def test_splits(n):
    test, val, train = (split_rows(n, name) for name in ('test', 'val', 'train'))
    assert [*test, *val, *train] == list(range(n)) == list(split_rows(n, 'all'))
    assert len(test) == len(val) == max(1, n // 10) and len(train) >= 1
    test, val, train = (split_rows(n, name, 'last') for name in ('test', 'val', 'train'))
    assert [*train, *val, *test] == list(range(n)) == list(split_rows(n, 'all', 'last'))
    assert len(test) == len(val) == max(1, n // 10) and len(train) >= 1


def test_too_few_to_split():
    for n in (0, 2):
        assert str(n) in refused(split_rows, n, 'train')


def test_fingerprints():
    u = noise(1, 8)[0]
    prints = fingerprints(u[..., None])
    assert prints.dtype == np.int64 and len(set(prints.tolist())) == 8 and 0 not in prints
    assert np.array_equal(fingerprints(u[3:5, :, None]), prints[3:5])
    assert np.array_equal(fingerprints(u[:, ::-1][:, ::-1, None].astype(np.float64)), prints)
    changed = u[..., None].copy()
    changed[2, 7] = np.nextafter(changed[2, 7], 9)      # a last bit
    assert (fingerprints(changed) != prints).nonzero()[0].tolist() == [2]


def test_fingerprints_of_constant_frames():
    u = np.zeros((3, 4, 4, 2), np.float32)
    u[1] = [3., -1.]                                    # constant, each field its own
    u[2, ..., 1] = np.arange(4)
    assert (fingerprints(u) == 0).tolist() == [True, True, False]


def test_overlap_of_splits_is_refused():
    u = noise(20)[:, 0, :, None]
    u[11] = u[2]

    def check():
        prints = fingerprints(u)
        check_overlap({'train': [('a', 4, prints[4:])], 'val': [('b', 2, prints[2:4])]})

    message = refused(check)
    assert "trajectory 2 (val) of 'b' has the same initial condition as trajectory 11 (train) of 'a'" in message
    u[11] = u[12]                                       # within a split
    check()
    u[[11, 2]] = 0                                      # constant fields evolve alike and leak nothing
    check()


# -----------------------------------------------------------------------------
# initial conditions alone

@pytest.mark.parametrize('cells', [(8,), (8, 6)])
def test_initial_conditions(tmp_path, cells):
    u0 = np.random.default_rng(0).standard_normal((2, *cells, 1))
    np.save(tmp_path / 'one.npy', u0[0, ..., 0])
    np.save(tmp_path / 'fields.npy', u0[0])
    np.save(tmp_path / 'all.npy', u0)
    with h5py.File(tmp_path / 'u0.h5', 'w') as file:
        file['u0'] = u0
    with h5py.File(tmp_path / 'tensor.hdf5', 'w') as file:
        file['tensor'] = np.stack([u0[..., 0], u0[..., 0] + 1], 1)
    for name, expected in (('one.npy', u0[:1]), ('fields.npy', u0[:1]), ('all.npy', u0), ('u0.h5', u0),
                           ('tensor.hdf5', u0)):
        found = read_initial(str(tmp_path / name), 1, len(cells))
        assert found.dtype == np.float32 and np.array_equal(found, expected.astype(np.float32)), name


def test_the_coefficient_is_enough_for_a_steady_equation(tmp_path):
    coefficient = noise(3, 8, 6)
    with h5py.File(tmp_path / 'darcy.hdf5', 'w') as file:
        file['nu'] = coefficient
        file['tensor'] = np.ones((3, 1, 8, 6))
    u0 = read_initial(str(tmp_path / 'darcy.hdf5'), 2, 2, steady=True)
    assert np.array_equal(u0[..., 0], coefficient) and not u0[..., 1].any()


@pytest.mark.parametrize('name, values, word', [
    ('a.npy', noise(2, 3, 4, 5), '(2, 3, 4, 5)'), ('a.npy', np.ones((0, 8, 1)), '(0, 8, 1)'),
    ('a.npy', np.ones((1, 1)), '(1, 1)'), ('a.npy', np.array([1., np.nan]), 'not finite'),
    ('a.npy', np.ones(8) > 0, 'bool'), ('a.npy', np.array([None, 1]), 'cannot read'),
    ('a.npy', None, 'no initial condition')])
def test_wrong_initial_conditions(tmp_path, name, values, word):
    path = str(tmp_path / name)
    if values is not None:
        with open(path, 'wb') as file:
            np.save(file, values)
    assert word in refused(read_initial, path, 1)
