"""files/layouts.py: hand-made files with several fields, good and broken. (test_open.py has the layout
'tensor', test_write.py files of every equation that has a solver, written and read again.)"""
import h5py
import numpy as np
import pytest

from conftest import centres, noise, refused
from files.inspect import inspect
from files.layouts import LAYOUTS
from files.open import blocks, open_source, read, read_rows
from handmade import NU, REACTION, SLIPPERY, STEADY, TUBE, change, darcy, gas, groups, reaction, tube


def same_rows(path, u):
    """Are the rows of a file those of u (N, T, *X, C), read whole and in pieces? -> its Source"""
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


@pytest.mark.parametrize('options', [{}, {'compression': 'lzf'}, {'chunks': (1, 8, 6, 2)}], ids=str)
def test_groups(path, options):
    source = same_rows(reaction(path, **options), REACTION)
    assert (source.pde, source.fields, source.params) == ('diffusion-reaction', ('u', 'v'), {})
    assert source.dt == pytest.approx(1.25)
    assert len(source.doubts) == 1 and 'by its domain and layout alone' in source.doubts[0]
    assert np.allclose(source.x[1], centres(6, -1))


def test_groups_of_one_field_and_of_one_axis(path):
    water = noise(5, 4, 8, 8, 1)
    axis = centres(8, -2.5, 2.5)
    source = same_rows(groups(path, water, [axis, axis], np.arange(4.) * .01), water)
    assert (source.pde, source.shape) == ('shallow-water', (8, 8))
    solute = noise(5, 4, 16, 1)
    source = same_rows(groups(path, solute, [centres(16)], np.arange(4.) * 5), solute)
    assert (source.pde, source.dt) == ('diffusion-sorption', 5.)


def test_more_than_ten_thousand_groups_are_read_in_the_order_of_their_numbers(path, monkeypatch):
    monkeypatch.setattr('files.layouts._group', str)                # so that 10 comes after 9, not after 1
    u = noise(12, 2, 4, 1)
    with h5py.File(path, 'w') as file:
        for row, values in enumerate(u):
            file[f'{row}/data'] = values
    with h5py.File(path) as file:
        assert np.array_equal(LAYOUTS['groups'].read(file, slice(0, 12), slice(None)), u)


def test_doubts_about_the_number_of_frames(path):
    found = inspect(reaction(path, config='sim: {}\nt: 5\ntdim: 501\nxdim: 8\n'))
    assert len(found['doubts']) == 2 and '5 frames' in found['doubts'][0] and '501' in found['doubts'][0]
    assert len(inspect(reaction(path, config='tdim: 5'))['doubts']) == 1         # which equation it is
    late = inspect(reaction(path, t=np.linspace(0, 5, 6)))
    assert '6 times for 5 frames' in late['doubts'][0]


@pytest.mark.parametrize('options', [{}, {'chunks': (1, 5, 16)}, {'chunks': (3, 2, 16), 'fletcher32': True}],
                         ids=str)
def test_arrays(path, options):
    source = same_rows(tube(path, **options), TUBE)
    assert source.fields == ('density', 'pressure', 'Vx')
    assert (source.pde, source.params) == ('compressible-1d', SLIPPERY)
    assert 'the last is left out' in source.notes[0]
    source = open_source(tube(path, n_times=5))
    assert source.notes == () and 'could be compressible-1d-outgoing' in source.doubts[0]


def test_arrays_on_two_axes(path):
    u = noise(12, 5, 8, 6, 4)
    attrs = {'M': .1, 'eta': 1e-8, 'zeta': 1e-8}
    source = same_rows(gas(path, u, [centres(8), centres(6)], attrs), u)
    assert (source.pde, source.params) == ('compressible-2d', attrs)
    assert source.fields == ('density', 'pressure', 'Vx', 'Vy')


def test_steady(path):
    u = np.zeros((12, 2, 8, 6, 2), np.float32)
    u[..., 0] = NU[:, None]
    u[:, 1, ..., 1] = STEADY[:, 0]
    source = same_rows(darcy(path), u)
    assert (source.pde, source.fields, source.params, source.dt) == ('darcy', ('a', 'u'), {'beta': 1.}, 1.)


@pytest.mark.parametrize('write, key, values, word', [
    (reaction, '0003', None, '11 groups, expected 0000 .. 0010: 0003 is missing, 0011 is there'),
    (reaction, '0003/data', None, "'0003/data'"),
    (reaction, '0003/data', noise(5, 8, 6, 1), '0003/data has the shape (5, 8, 6, 1)'),
    (reaction, '0003/data', REACTION[0] > 0, '0003/data holds bool'),
    (reaction, '0000/grid/x', None, '0000/grid'),
    (reaction, '0000/grid/x', centres(7, -1), '(T, X, Y, C) with X = 7'),
    (reaction, '0000/grid/x', centres(8, -1) ** 3, '0000/grid/x is not uniform'),
    (reaction, '0000/grid/t', np.arange(4.), '5 frames but 4 times'),
    (tube, 'pressure', None, "'pressure'"),
    (tube, 'density', None, "'density'"),
    (tube, 'Vx', TUBE[:, :4, :, 0], 'Vx has the shape (12, 4, 16)'),
    (tube, 'x-coordinate', centres(5, -1), 'swapped'),
    (darcy, 'tensor', noise(12, 2, 8, 6), 'tensor has the shape (12, 2, 8, 6), expected (N, 1, X, Y)'),
    (darcy, 'tensor', noise(11, 1, 8, 6), 'N = 12'),
    (darcy, 'nu', noise(12, 6, 8), 'swapped, as if they were (N, Y, X)'),
    (darcy, 'y-coordinate', None, '(N, X)')])
def test_broken_files(path, write, key, values, word):
    change(write(path), key, values)
    message = refused(open_source, path)
    assert path in message and word in message, message


@pytest.mark.parametrize('write, key', [(reaction, '0004'), (reaction, '0004/data'), (reaction, '0000/grid'),
                                        (tube, 'Vx'), (darcy, 'nu')])
def test_links_are_not_followed(path, tmp_path, write, key):
    other = tmp_path / 'other.h5'
    with h5py.File(write(path), 'a') as file:
        with h5py.File(other, 'w') as elsewhere:
            file.copy(key, elsewhere, 'x')
        del file[key]
        file[key] = h5py.ExternalLink(str(other), 'x')
    message = refused(open_source, path)
    assert path in message and 'link' in message


def test_a_group_that_was_never_filled(path):
    with h5py.File(reaction(path), 'a') as file:
        del file['0007/data']
        file['0007'].create_dataset('data', (5, 8, 6, 2), 'f4', chunks=(1, 8, 6, 2))[0] = 1.
    assert "0007/data claims (5, 8, 6, 2) values" in refused(open_source, path)


@pytest.mark.parametrize('key, values', [('grid/t', np.linspace(0, 10, 5)), ('grid/x', centres(8)),
                                         ('grid/y', centres(5, -1))])
def test_every_trajectory_has_the_same_points_and_times(path, key, values):
    change(reaction(path), f'0007/{key}', values)
    message = refused(open_source, path)
    assert f'trajectory 7 has other values of {key} than trajectory 0' in message
    change(reaction(path), f'0007/{key}')               # it has none of its own
    assert open_source(path, quiet=True).n == 12
