"""files.py: hand-made files, good and broken; which equation they are of; rows, splits, fingerprints; the
writer."""
import dataclasses
import json
import os

import h5py
import numpy as np
import pytest
import torch

import files
from conftest import centres, noise, refused, run
from files import (blocks, check_overlap, find_or_make, fingerprints, inspect, make_command, open_source,
                   read_rows, split_rows, write_file)
from pdes import PDES
from solvers import advection, burgers, waves


def write(path, u=None, x=None, t=None, nu=.01, attrs=None, axes=(), **options):
    """A file in PDEBench's layout; any part of it may be replaced, or left out by False. attrs: replaces
    {'Nu': nu}. axes: coordinates of all axes where there are several."""
    u = noise() if u is None else u
    with h5py.File(path, 'w') as file:
        parts = {'tensor': u, 'x-coordinate': centres(u.shape[-1]) if x is None else x,
                 't-coordinate': np.arange(u.shape[1] + 1) * .01 if t is None else t}
        parts.update(zip(('x-coordinate', 'y-coordinate', 'z-coordinate'), axes))
        for key, value in parts.items():
            if value is not False:
                file.create_dataset(key, data=value, **(options if key == 'tensor' else {}))
        if attrs is None:
            attrs = {} if nu is False else {'Nu': nu}
        file.attrs.update(attrs)
    return str(path)


# ---------------------------------------------------------------------------------------------
# one file

def test_new_generation(path, capsys):
    u = noise()
    source = open_source(write(path, u))
    assert (source.n, source.n_frames, source.shape, source.params) == (10, 5, (16,), {'Nu': .01})
    assert (source.pde, source.low, source.length, source.periodic) == ('burgers', (0.,), (1.,), True)
    assert source.fields == ('u',) and source.dtype == 'float32' and source.entry is PDES['burgers']
    assert abs(source.dt - .01) < 1e-9 and source.x[0][0] == .5 / 16 and capsys.readouterr().out == ''
    assert np.array_equal(read_rows(source, range(2, 9))[..., 0], u[2:9])
    assert np.array_equal(read_rows(source, range(2, 9), 2, 4)[..., 0], u[2:9, ::2, ::4])


def test_old_generation_is_told_once(path, capsys):
    write(path, x=centres(16, -1, 1))
    open_source(path, quiet=True)
    assert capsys.readouterr().out == ''
    source = open_source(path)
    assert (source.pde, source.low, source.length) == ('burgers-old', (-1.,), (2.,))
    assert 'old generation' in capsys.readouterr().out
    open_source(path)
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize('n_times', [5, 6])
def test_both_lengths_of_the_time_coordinate(path, n_times):
    assert open_source(write(path, t=np.arange(n_times) * .01)).n_frames == 5


@pytest.mark.parametrize('dtype', ['f8', '>f4', '>f8', 'i2', '>i4', 'u1', 'f2'])
def test_other_number_types_are_cast_with_a_note(path, dtype, capsys):
    u = np.abs(10 * noise()).astype(dtype)
    source = open_source(write(path, u))
    rows = read_rows(source, range(10))
    assert rows.dtype == np.float32 and np.array_equal(rows[..., 0], u.astype(np.float32))
    assert next(blocks(source, range(3)))[1].dtype == np.dtype('=f4')
    assert 'cast to float32' in capsys.readouterr().out


@pytest.mark.parametrize('chunks', [None, (1, 5, 16), (4, 1, 16), (3, 2, 7)])
@pytest.mark.parametrize('time_stride, space_stride', [(1, 1), (2, 4), (3, 1), (5, 16)])
def test_rows_do_not_depend_on_how_they_are_stored(path, chunks, time_stride, space_stride):
    u = noise(40)
    source = open_source(write(path, u, chunks=chunks))
    expected = u[3:38, ::time_stride, ::space_stride]
    assert np.array_equal(read_rows(source, range(3, 38), time_stride, space_stride)[..., 0], expected)
    parts = list(blocks(source, range(3, 38), time_stride))
    assert [first for first, _ in parts] == [0, 16, 32]
    assert np.array_equal(np.concatenate([part for _, part in parts])[..., 0], u[3:38, ::time_stride])
    assert len(read_rows(source, range(0))) == 0
    with h5py.File(path) as file:
        assert np.array_equal(files.read(source, file, slice(7, 9), slice(1, 5, 2))[..., 0], u[7:9, 1:5:2])


X16 = (np.arange(16) + .5) / 16


@pytest.mark.parametrize('parts, words', [
    ({'t': False}, ["'t-coordinate'", '(10, 5, 16)', '(16,)']),
    ({'x': False}, ["'x-coordinate'"]),
    ({'nu': False}, ['Nu']),
    ({'nu': np.nan}, ['Nu']),
    ({'nu': -1.}, ['Nu']),
    ({'u': noise()[..., None], 'x': X16}, ['(10, 5, 16, 1)', '(N, T, X)']),
    ({'u': noise()[0], 'x': X16}, ['(5, 16)']),
    ({'u': noise().transpose(0, 2, 1), 'x': X16, 't': np.arange(6.)}, ['(10, 16, 5)', 'swapped']),
    ({'u': noise().transpose(2, 1, 0), 'x': X16, 't': np.arange(6.)}, ['(16, 5, 10)', 'swapped']),
    ({'t': np.arange(4) * .01}, ['5 frames', '4 times']),
    ({'t': np.arange(7) * .01}, ['5 frames', '7 times']),
    ({'t': np.arange(6)[::-1] * .01}, ['t-coordinate']),
    ({'t': np.arange(6) ** 2 * .01}, ['t-coordinate']),
    ({'t': np.array([0., 1, 2, np.nan, 4, 5])}, ['t-coordinate']),
    ({'x': X16[::-1].copy()}, ['x-coordinate']),
    ({'x': X16 ** 2}, ['x-coordinate']),
    ({'x': np.full(16, np.nan)}, ['x-coordinate']),
    ({'u': noise() + 0j}, ['complex64']),
    ({'u': noise() > 0}, ['bool']),
    ({'u': noise()[:, :1]}, ['too small']),
    ({'u': noise()[:0]}, ['too small']),
])
def test_wrong_layout_is_refused_with_what_was_found(path, parts, words):
    message = refused(open_source, write(path, **parts))
    assert path in message and all(word in message for word in words), message


def test_missing_tensor_and_missing_file(path, tmp_path):
    write(path)
    with h5py.File(path, 'a') as file:
        del file['tensor']
        file.attrs['x'] = 1
    assert "'tensor'" in refused(open_source, path)
    message = refused(open_source, str(tmp_path / 'other.hdf5'))
    assert os.path.basename(path) in message            # what the folder holds
    refused(open_source, str(tmp_path / 'no folder' / 'other.hdf5'))
    assert 'directory' in refused(open_source, str(tmp_path))


def test_values_that_are_not_finite_are_refused_with_count_and_place(path):
    for value in (np.nan, -np.inf):
        u = noise(40)
        u[33, 2, 3:6] = value
        u[37, 0, 0] = value
        source = open_source(write(path, u))
        message = refused(read_rows, source, range(20, 40))
        assert '4 values' in message and 'trajectory 33, frame 2' in message
        assert 'trajectory 33' in refused(inspect, path)
        assert np.array_equal(read_rows(source, range(20, 40), check=False)[..., 0], u[20:], equal_nan=True)


@pytest.mark.parametrize('size', [0, 1, 100, .5, -1])
def test_truncated_file(path, size):
    write(path, noise(50))
    n = os.path.getsize(path)
    os.truncate(path, int(size * n) if isinstance(size, float) else size % n)
    message = refused(inspect, path)
    assert path in message and str(os.path.getsize(path)) in message


def test_a_flipped_byte_of_the_values_is_refused(path):
    u = noise()
    write(path, u, chunks=(1, 5, 16), fletcher32=True)
    content = bytearray(open(path, 'rb').read())
    source = open_source(path)
    for row in range(10):
        place = content.index(u[row].tobytes()) + 7 * row
        broken = content.copy()
        broken[place] ^= 16
        open(path, 'wb').write(broken)
        message = refused(read_rows, source, range(10))
        assert path in message and 'damaged' in message
        refused(inspect, path)


@pytest.mark.parametrize('link, key', [
    *((link, key) for link in ('external', 'dangling', 'soft', 'raw')
      for key in ('tensor', 'x-coordinate', 't-coordinate')),
    ('virtual', 'tensor')])
def test_links_are_not_followed(tmp_path, path, link, key):
    other = write(tmp_path / 'other.hdf5')
    write(path)
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


@pytest.mark.parametrize('chunks', [None, (1, 201, 1024)])
@pytest.mark.parametrize('n', [10, 10 ** 9])
def test_claimed_but_never_filled(path, chunks, n):
    with h5py.File(path, 'w') as file:
        tensor = file.create_dataset('tensor', (n, 201, 1024), 'f4', chunks=chunks)
        if chunks:
            tensor[3] = 1.
        file['x-coordinate'], file['t-coordinate'] = (np.arange(1024) + .5) / 1024, np.arange(202) * .01
        file.attrs['Nu'] = .01
    assert 'never filled' in refused(open_source, path)


def test_incomplete_flag(path):
    write(path)
    with h5py.File(path, 'a') as file:
        file.attrs['complete'] = 0
    assert 'incomplete' in refused(open_source, path)


# ---------------------------------------------------------------------------------------------
# which equation

def test_equations_are_told_apart(path):
    assert open_source(write(path, attrs={'beta': .4})).pde == 'advection'
    assert open_source(write(path, attrs={'beta': .4})).params == {'beta': .4}
    assert open_source(write(path)).pde == 'burgers'
    assert open_source(write(path, x=centres(16, -1, 1)), quiet=True).pde == 'burgers-old'


@pytest.mark.parametrize('shift', [0., .25, .5])        # the first point may lie anywhere in its cell
def test_where_in_its_cell_a_point_lies(path, shift):
    assert open_source(write(path, x=(np.arange(16) + 2 * shift) / 16)).pde == 'burgers'


@pytest.mark.parametrize('parts, words', [
    ({'attrs': {'Nu': .5, 'kappa': 1.}}, ['Nu, kappa']),     # another equation, of one parameter more
    ({'attrs': {'Nu': .01}, 'x': centres(16, 0, 2)}, ['(0, 2)']),
    ({'attrs': {'Nu': .01}, 'x': centres(16, .3, 1.3)}, ['(0.3, 1.3)']),
    ({'attrs': {'beta': .4}, 'x': centres(16, -1, 1)}, ['(-1, 1)', 'beta']),
    ({'attrs': {'Nu': .01, 'pde': 'advection'}}, ["'advection'", 'Nu']),
    ({'attrs': {'Nu': .01, 'pde': 'heat'}}, ["'heat'"]),
    ({'attrs': {}}, ['none']),
    ({'u': noise()[:, :, None] * np.ones((4, 1)), 'axes': (centres(4), centres(16, 0, 3))},
     ['(0, 1) x (0, 3)']),
])
def test_unknown_equations_are_refused_with_what_is_known(path, parts, words):
    message = refused(open_source, write(path, **parts))
    known = [f'{name}: ' for name in PDES]
    assert all(word in message for word in [path, *words, *known]), message


def test_the_attribute_pde_decides(path):
    attrs = {'Nu': .01, 'rho': 1., 'seed': 3, 'pde': 'burgers'}
    assert open_source(write(path, attrs=attrs)).params == {'Nu': .01}
    assert open_source(write(path, attrs={'Nu': .01, 'pde': np.bytes_('burgers')})).pde == 'burgers'


def test_another_equation_than_asked_for(path):
    write(path)
    assert open_source(path, 'burgers').pde == 'burgers'
    assert '--dataset=burgers' in refused(open_source, path, 'advection')
    write(path, x=centres(16, -1, 1))
    assert '--dataset=burgers-old' in refused(open_source, path, 'burgers')
    assert 'no known equation' in refused(open_source, path, 'burger')


def test_of_equations_that_fit_alike_the_one_asked_for(path, monkeypatch):
    monkeypatch.setitem(PDES, 'heat', dataclasses.replace(PDES['burgers'], galilean=0.))
    write(path)
    assert open_source(path, 'heat').pde == 'heat' and open_source(path, 'burgers').pde == 'burgers'


@pytest.fixture
def box(monkeypatch):
    """An equation on two axes, known for the length of a test: u = u0 (kappa + t)."""
    def solve(u0, kappa, t):
        return u0[:, None] * torch.from_numpy(kappa + t)[:, None, None]

    def initial(n, cells, seed, first):
        return waves(n, (cells[0] * cells[1],), seed, first).reshape(n, *cells)

    pde = dataclasses.replace(PDES['burgers'], space=((0, 1), (-1, 3)), params={'kappa': 1.}, velocity=(),
                              cells=(8, 6), frames=5, solve=solve, initial=initial)
    monkeypatch.setitem(PDES, 'box', pde)
    return pde


def test_two_axes(path, box):
    u = np.random.default_rng(0).standard_normal((7, 5, 8, 6)).astype(np.float32)
    axes = (centres(8), centres(6, -1, 3))
    source = open_source(write(path, u, axes=axes, attrs={'kappa': 2.}, chunks=(1, 5, 8, 6)))
    assert (source.pde, source.shape, source.low, source.length) == ('box', (8, 6), (0., -1.), (1., 4.))
    assert np.array_equal(read_rows(source, range(1, 6), 2, 2)[..., 0], u[1:6, ::2, ::2, ::2])
    assert inspect(path)['cells'] == [8, 6] and inspect(path)['domain'] == [[0., 1.], [-1., 3.]]
    message = refused(open_source, write(path, u.swapaxes(2, 3), axes=axes, attrs={'kappa': 2.}))
    assert '(N, T, X, Y)' in message and 'swapped' in message


# ---------------------------------------------------------------------------------------------
# inspect

def test_inspect(path):
    u = noise(10)
    found = inspect(write(path, u))
    assert (found['trajectories'], found['frames'], found['cells']) == (10, 5, [16])
    assert found['params'] == {'Nu': .01}
    assert found['pde'] == 'burgers' and found['first_x'] == [.5 / 16]
    assert found['mean'] == pytest.approx([u.mean()], abs=1e-6)
    assert found['std'] == pytest.approx([u.std()], abs=1e-6)
    assert found['min'] == [u.min()] and found['max'] == [u.max()]


def test_statistics_of_each_field():
    u = np.random.default_rng(0).standard_normal((6, 5, 4, 2)).astype(np.float32) * [1, 100] + [0, 5]
    statistics = files.Statistics(2)
    statistics.add(u[:2])
    statistics.add(u[2:])
    found = statistics.result()
    flat = u.reshape(-1, 2)
    for name in ('min', 'max', 'mean', 'std'):
        values = getattr(flat, name)(0)
        assert found[name] == pytest.approx(values.tolist()), name


def test_inspect_finds_every_kind_of_trouble(path, burgers_file):
    found = inspect(burgers_file)
    assert found['trajectories'] == 20 and found['duplicates'] == 0
    json.dumps(found, allow_nan=False)
    u = noise(20)
    u[1] = np.nan                                       # a test row, which training never reads
    assert 'trajectory 1' in refused(inspect, write(path, u))
    u = noise(20)
    u[12, 0] = u[3, 0]
    message = refused(inspect, write(path, u))
    assert '3' in message and '12' in message
    u[12, 0] = u[13, 0]                                 # two equal ones within the train part leak nothing
    assert inspect(write(path, u))['duplicates'] == 1
    u[12:15, 0] = 2.                                    # nor do constant ones anywhere
    u[3, 0] = 2.
    assert inspect(write(path, u))['duplicates'] == 0


# ---------------------------------------------------------------------------------------------
# splits and fingerprints

@pytest.mark.parametrize('n', [3, 4, 10, 19, 20, 101, 1000])
def test_splits(n):
    test, val, train = (split_rows(n, name) for name in ('test', 'val', 'train'))
    assert [*test, *val, *train] == list(range(n)) == list(split_rows(n, 'all'))
    assert len(test) == len(val) == max(1, n // 10) and len(train) >= 1
    test, val, train = (split_rows(n, name, 'last') for name in ('test', 'val', 'train'))
    assert [*train, *val, *test] == list(range(n)) == list(split_rows(n, 'all', 'last'))
    assert len(test) == len(val) == max(1, n // 10) and len(train) >= 1


def test_too_few_to_split():
    for n in (0, 1, 2):
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
        check_overlap({'train': (4, prints[4:]), 'val': (2, prints[2:4])})

    message = refused(check)
    assert all(word in message for word in ('trajectory 11', 'trajectory 2', 'train', 'val'))
    u[11] = u[12]                                       # within a split
    check()
    u[[11, 2]] = 0                                      # constant fields evolve alike and leak nothing
    check()


# ---------------------------------------------------------------------------------------------
# find or make

def test_explicit_path_must_exist(tmp_path, path, monkeypatch):
    monkeypatch.setattr(files, 'write_file', lambda *a, **k: pytest.fail('the solver was called'))
    missing = str(tmp_path / 'missing.hdf5')

    def find(data_path):
        return find_or_make('burgers', str(tmp_path), data_path, {'Nu': .01}, 4)

    assert missing in refused(find, missing)
    write(path)
    assert find(path) == [path]
    assert find(f'{path}, {path}') == [path, path]
    assert missing in refused(find, f'{path},{missing}')
    assert 'names no file' in refused(find, ' , ')
    with_comma = write(tmp_path / 'a,b.hdf5')
    assert find(with_comma) == [with_comma]
    assert not os.path.exists(missing)


@pytest.mark.parametrize('dataset, params, released, made', [
    ('burgers', {'Nu': .01}, '1D_Burgers_Sols_Nu0.01.hdf5', '1D_Burgers_Sols_Nu0.01_N12.hdf5'),
    ('burgers', {'Nu': 1.}, '1D_Burgers_Sols_Nu1.0.hdf5', '1D_Burgers_Sols_Nu1_N12.hdf5'),
    ('advection', {'beta': .4}, '1D_Advection_Sols_beta0.4.hdf5', '1D_Advection_Sols_beta0.4_N12.hdf5')])
def test_released_file_is_preferred_or_one_is_made(tmp_path, monkeypatch, dataset, params, released, made):
    calls = []
    monkeypatch.setattr(files, 'write_file', lambda *args, **options: calls.append(args))
    released = str(tmp_path / released)
    made = str(tmp_path / made)

    def find():
        return find_or_make(dataset, str(tmp_path), '', params, 12,
                            before_making=lambda shape, n_frames: calls.append('before'))

    assert find() == [made] and calls == ['before', (made, dataset, params, 12)]
    write(made)
    assert find() == [made] and len(calls) == 2
    write(released)
    assert find() == [released] and len(calls) == 2


def test_nothing_to_make_it_with(tmp_path, monkeypatch):
    monkeypatch.setitem(PDES, 'sound', dataclasses.replace(PDES['burgers'], solve=None))
    assert 'no built-in solver' in refused(find_or_make, 'sound', str(tmp_path), '', {'Nu': .01}, 12)
    assert 'no built-in solver' in refused(write_file, str(tmp_path / 'a.hdf5'), 'sound', {'Nu': .01}, 12)
    assert not os.listdir(tmp_path)


# ---------------------------------------------------------------------------------------------
# the writer

def test_layout_of_a_written_file(burgers_file):
    with h5py.File(burgers_file) as file:
        tensor, x, t = (file[key] for key in ('tensor', 'x-coordinate', 't-coordinate'))
        assert tensor.shape == (20, 201, 1024) and tensor.dtype == np.float32 and tensor.fletcher32
        assert np.allclose(x[:], centres(1024)) and np.allclose(t[:], np.arange(202) * .01)
        assert file.attrs['Nu'] == .01 and file.attrs['seed'] == 0 and file.attrs['pde'] == 'burgers'
        assert file.attrs['complete'] == 1
        u0 = waves(20, (1024,))
        assert np.array_equal(tensor[:, 0], u0.astype(np.float32))
        again = burgers(u0[7:8], .01, [0., .5, 2.])[0].numpy()
        assert np.abs(tensor[7, [0, 50, 200]] - again).max() < 1e-5
    assert os.listdir(os.path.dirname(burgers_file)) == [os.path.basename(burgers_file)]


def test_a_written_file_of_advection(path):
    write_file(path, 'advection', {'beta': .7}, 5, seed=2, device='cpu', batch_size=3, resolution=64)
    source = open_source(path, 'advection')
    assert (source.n, source.n_frames, source.shape, source.params) == (5, 201, (64,), {'beta': .7})
    u = read_rows(source, range(5))[..., 0]
    u0 = waves(5, (64,), seed=2)
    t = np.arange(201) * .01
    assert np.abs(u - advection(u0, .7, t).numpy()).max() < 1e-6
    assert np.abs(u[:, 100] - advection(u0, .7, [0., 1.])[:, 1].numpy()).max() < 1e-6
    assert np.abs(u.mean(2) - u[:, :1].mean(2)).max() < 1e-6


def test_a_written_file_on_two_axes(path, box):
    write_file(path, 'box', {'kappa': 2.}, 5, device='cpu', batch_size=2)
    source = open_source(path)
    assert (source.pde, source.shape, source.n_frames) == ('box', (8, 6), 5)
    u = read_rows(source, range(5))[..., 0]
    u0 = box.initial(5, (8, 6), 0, 0)
    expected = u0[:, None] * (2 + np.arange(5) * .01)[:, None, None]
    assert np.abs(u - expected).max() < 1e-6


@pytest.fixture
def short(monkeypatch):
    """Files of 3 frames. Returns a function that replaces the solver, too."""
    def replace(**changes):
        monkeypatch.setitem(PDES, 'burgers', dataclasses.replace(PDES['burgers'], frames=3, **changes))
    replace()
    return replace


def test_exception_midway_leaves_no_file(tmp_path, short):
    calls = []

    def fail(u0, nu, t):
        calls.append(len(u0))
        if len(calls) == 5:
            assert any('.tmp.' in name for name in os.listdir(tmp_path))
            raise RuntimeError('midway')
        return burgers(u0, nu, t)

    short(solve=fail)
    with pytest.raises(RuntimeError, match='midway'):
        write_file(str(tmp_path / 'a.hdf5'), 'burgers', {'Nu': .1}, 9, device='cpu', batch_size=1)
    assert not os.listdir(tmp_path)


def test_write_replaces_whole_files_only(tmp_path, short):
    path = str(tmp_path / 'a.hdf5')
    write_file(path, 'burgers', {'Nu': .1}, 2, device='cpu')
    before = open(path, 'rb').read()
    short(solve=lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_file(path, 'burgers', {'Nu': .1}, 2, device='cpu')
    assert open(path, 'rb').read() == before


@pytest.mark.parametrize('change', [{'n': 0}, {'params': {'Nu': -1.}}, {'n': 10 ** 12}, {'resolution': 1},
                                    {'dataset': 'nothing'}])
def test_write_refuses(tmp_path, change):
    path = str(tmp_path / 'a.hdf5')
    arguments = {'path': path, 'dataset': 'burgers', 'params': {'Nu': .1}, 'n': 3, 'device': 'cpu'}
    refused(write_file, **{**arguments, **change})
    assert not os.listdir(tmp_path)


def test_what_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setitem(files.LAYOUTS, 'tensor', dataclasses.replace(files.LAYOUTS['tensor'], write=None))
    assert 'cannot be written' in refused(write_file, str(tmp_path / 'a.hdf5'), 'burgers', {'Nu': .1}, 3)
    assert not os.listdir(tmp_path)


def test_command_line(tmp_path, burgers_file):
    arguments = ['burgers', '--n', 4, '--out', 'sub dir/a.hdf5', '--device', 'cpu']
    done = run(*arguments, script='solvers.py', cwd=tmp_path)
    assert '4 trajectories' in done.stdout and os.listdir(tmp_path / 'sub dir') == ['a.hdf5']
    with h5py.File(tmp_path / 'sub dir/a.hdf5') as file, h5py.File(burgers_file) as other:
        assert file['tensor'].shape == (4, 201, 1024)
        assert np.allclose(file['tensor'][:], other['tensor'][:4], atol=1e-6)      # n = 20 begins with these
    again = run(*arguments, script='solvers.py', cwd=tmp_path, check=False)
    assert again.returncode == 1 and again.stderr.startswith('error: ') and again.stderr.count('\n') == 1


def test_command_names_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr('sys.excepthook', files.sys.excepthook)                    # make_command sets another
    arguments = ['--n', '3', '--resolution', '32', '--data_dir', str(tmp_path), '--device', 'cpu']
    make_command(['advection', '--beta', '0.7', *arguments])
    make_command(['burgers-old', *arguments])
    assert open_source(str(tmp_path / '1D_Advection_Sols_beta0.7_X32_N3.hdf5')).params == {'beta': .7}
    old = open_source(str(tmp_path / 'old' / '1D_Burgers_Sols_Nu0.01_X32_N3.hdf5'))
    assert old.pde == 'burgers-old' and old.shape == (32,)
    assert 'no parameter nu' in refused(make_command, ['advection', '--nu', '0.1', *arguments])
    make_command(['advection', '--seed', '1', *arguments])           # training takes no other seed by itself
    assert (tmp_path / '1D_Advection_Sols_beta0.4_X32_N3_seed1.hdf5').exists()
    for wrong in ('--seed=-1', '--batch_size=0', '--batch_size=-3'):
        assert wrong[2:6] in refused(make_command, ['burgers', wrong, *arguments])
