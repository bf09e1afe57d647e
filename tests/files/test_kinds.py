"""files/kinds.py: files that are something else, paths that are none of a file, filters; and files/open.py: a
guessed equation is told."""
import dataclasses
import gzip
import os
import sys
import tarfile
import types
import zipfile

import h5py
import numpy as np
import pytest
import torch

import equations
from conftest import centres, noise, refused, smoke_args, train_here
from files.kinds import SIGNATURE, other_kind
from files.open import find, open_source, read_initial
from handmade import know, tensor

SAME = np.full(10, .01, 'f4')


# -----------------------------------------------------------------------------
# other kinds of file

@pytest.mark.parametrize('content, words', [
    (b'', 'empty (0 bytes)'),
    (b'MATLAB 5.0 MAT-file, Platform: GLNXA64'.ljust(124) + b'\x00\x01IM', "version 5|-v7.3"),
    (b'CDF\x01\x00\x00', 'NetCDF file of version 3|nccopy'), (gzip.compress(b'x' * 99, mtime=0), 'gzip|unpack it'),
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n', 'Git LFS|git lfs pull'),
    (b'\n<!DOCTYPE html><html></html>', 'web page'), (b'<?xml version="1.0"?><Error>', 'web page'),
    (b'<?xml version="1.0"?>\n<VTKFile type="UnstructuredGrid"/>', 'a mesh|data.py mesh'),
    (b'PK\x03\x04broken', 'zip archive that is truncated'), (b'\x80\x02}q\x00.', 'Python pickle'),
    (b'x,u\n0.1,3\n', "text (it begins with 'x,u')"), (bytes(9000), 'begins with zeros'),
    (b'PK\x05\x06' + bytes(18), 'zip archive'), (('x' + 9000 * 'é').encode(), 'text (it begins'),
    (bytes(range(128, 200)), 'no HDF5 file'), (b'\0' * 257 + b'ustar\0', 'tar archive')])
def test_other_kinds_of_file_are_named(path, content, words):
    with open(path, 'wb') as file:
        file.write(content)
    message = refused(open_source, path)
    assert path in message and 'truncated or damaged:' not in message.replace('archive that is ', '')
    for word in words.split('|'):
        assert word in message, message
    assert words.split('|')[0] in refused(read_initial, path, 1)


@pytest.mark.parametrize('head', [SIGNATURE[:4], SIGNATURE, b'MATLAB 7.3 MAT-file', b'x' * 512 + SIGNATURE,
                                  b'x' * 4096 + SIGNATURE], ids=len)
def test_a_damaged_file_of_hdf5_is_no_other_kind(path, head):
    with open(path, 'wb') as file:
        file.write(head)
    assert other_kind(path) == ('', '')


def test_arrays_and_weights_are_named(tmp_path):
    np.save(tmp_path / 'u.npy', noise())
    np.savez(tmp_path / 'u.npz', u=noise(), x=centres(16))
    torch.save({'u': torch.zeros(3)}, tmp_path / 'u.pt')
    inside = tensor(tmp_path / 'u.hdf5')
    with zipfile.ZipFile(tmp_path / 'u.zip', 'w') as archive:
        archive.write(inside)                           # not compressed: HDF5's own first bytes are in it
    with tarfile.open(tmp_path / 'u.tar', 'w') as archive:
        archive.add(inside, 'u.hdf5')
    for name, word in (('u.npy', 'a NumPy array (.npy)'), ('u.npz', '(.npz) of u, x'), ('u.pt', 'PyTorch'),
                       ('u.zip', 'zip archive, and an HDF5 file is needed: unpack it'),
                       ('u.tar', 'tar archive')):
        assert word in refused(open_source, str(tmp_path / name))


def test_initial_conditions_are_read_by_their_content(tmp_path):
    u0 = noise(2, 8, 1)
    np.savez(tmp_path / 'a.npz', u0=u0, u=noise())
    np.savez(tmp_path / 'b.npz', anything=u0)
    np.savez(tmp_path / 'c.npz', u=u0, t=u0)
    np.save(tmp_path / 'd.npy', u0)
    for name in ('a.npz', 'b.npz', 'd.npy'):
        os.rename(tmp_path / name, tmp_path / f'{name}.npy')
        assert np.array_equal(read_initial(str(tmp_path / f'{name}.npy'), 1), u0)
    assert 'archive of u, t: save the initial' in refused(read_initial, str(tmp_path / 'c.npz'), 1)
    assert 'directory' in refused(read_initial, str(tmp_path), 1)


# -----------------------------------------------------------------------------
# filters

def filtered(path, code=32015, key='tensor', u=noise()):
    """A file one of whose data sets is said to have passed a filter that is not there."""
    with h5py.File(tensor(path, attrs={} if key == 'nu' else None), 'a') as file:
        if key in file:
            del file[key]
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk(u.shape)
        plist.set_filter(code, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple(u.shape)
        made = h5py.h5d.create(file.id, key.encode(), h5py.h5t.IEEE_F32LE, space, plist)
        made.write_direct_chunk((0,) * u.ndim, u.tobytes(), 0)
    return path


@pytest.mark.parametrize('code, name', [(32015, 'zstd'), (32001, 'blosc'), (31999, 'unknown')])
def test_a_filter_that_is_not_installed_is_named(path, code, name, monkeypatch):
    monkeypatch.setitem(sys.modules, 'hdf5plugin', None)
    assert f'filter {name} ({code})' in refused(open_source, filtered(path, code))
    message = refused(read_initial, path, 1)
    assert 'pip install hdf5plugin' in message and path in message


def test_a_filter_matters_where_values_are_needed(path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'hdf5plugin', None)
    assert 'nu is compressed by the filter zstd' in refused(open_source, filtered(path, 32015, 'nu', SAME))
    assert open_source(filtered(path, 32015, 'other', SAME)).params == {'Nu': .01}


def test_filters_of_hdf5plugin_are_used_where_it_is_installed(path, monkeypatch):
    imported = []
    monkeypatch.setattr('files.kinds.importlib', types.SimpleNamespace(import_module=imported.append))
    monkeypatch.setattr(h5py.h5z, 'filter_avail', lambda code: imported == ['hdf5plugin'])
    assert open_source(filtered(path)).n == 10


# -----------------------------------------------------------------------------
# paths

def test_paths_of_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    tensor(tmp_path / 'a.hdf5')
    tensor(tmp_path / 'b.hdf5')
    a = str(tmp_path / 'a.hdf5')
    b = str(tmp_path / 'b.hdf5')
    assert open_source('~/a.hdf5').path == a
    assert [s.path for s in find('burgers', '', '~/a.hdf5, ~/b.hdf5', {'Nu': .01}, 5)] == [a, b]
    planned, = find('burgers', '~', '', {'Nu': .01}, 5)
    assert planned.path == str(tmp_path / '1D_Burgers_Sols_Nu0.01_N5.hdf5')


def test_a_folder_in_place_of_a_file_and_a_file_in_place_of_a_folder(tmp_path):
    a = tensor(tmp_path / 'a.hdf5')
    assert 'is a file, expected a folder' in refused(find, 'burgers', a, '', {'Nu': .01}, 5)
    assert 'leave the slash out' in refused(find, 'burgers', '', f'{a}/', {'Nu': .01}, 5)
    assert 'holds a.hdf5' in refused(find, 'burgers', '', f'{tmp_path}/', {'Nu': .01}, 5)
    os.makedirs(tmp_path / 'z.zarr')
    (tmp_path / 'z.zarr' / '.zgroup').write_text('{}')
    assert 'Zarr' in refused(open_source, str(tmp_path / 'z.zarr'))
    os.mkfifo(tmp_path / 'pipe')
    assert 'pipe' in refused(open_source, str(tmp_path / 'pipe'))


# -----------------------------------------------------------------------------
# guesses

KS = {'u': noise(10, 5, 64), 'x': centres(64, 0, 64), 'attrs': {}}


def test_an_equation_without_parameters_is_guessed_and_told(path, tmp_path, capsys):
    doubt = 'is taken for kuramoto-sivashinsky by its domain and layout alone'
    assert doubt in open_source(tensor(path, **KS)).doubts[0]
    assert f"{doubt}; --dataset=kuramoto-sivashinsky or an attribute pde says so" in capsys.readouterr().out
    message = refused(open_source, path, 'burgers')
    assert 'no file of burgers (its cells span (0, 64), not (0, 1)): it is taken for' in message
    assert doubt in message and '--dataset=kuramoto-sivashinsky or an attribute' in message
    named = {**KS, 'attrs': {'pde': 'Kuramoto_Sivashinsky'}}
    for known, dataset in ((tensor(path, **KS), 'kuramoto-sivashinsky'),
                           (tensor(tmp_path / '1D_KS_L64.hdf5', **KS), None),
                           (tensor(tmp_path / 'named.hdf5', **named), None)):
        assert open_source(known, dataset).doubts == ()
    assert capsys.readouterr().out == ''


def test_an_attribute_that_is_not_needed_never_matters(path):
    more = {'Nu': .01, 'seed': 3, 'dx': .1, 'Re': 100., 'author': 'me', 'range': [0., 1.]}
    for dataset in (None, 'burgers'):
        source = open_source(tensor(path, attrs=more), dataset)
        assert source.params == {'Nu': .01} and 'Re, dx, seed, which burgers does not use' in source.notes[-1]
        assert source.doubts == ()


def test_of_several_equations_the_one_with_the_most_parameters_is_taken_unless_one_is_named(path, tmp_path):
    released = open_source(tensor(tmp_path / '1D_Burgers_Sols_Nu0.5.hdf5', attrs={'Nu': .5, 'rho': 1.}))
    assert released.pde == 'burgers' and released.doubts == ()       # the name of the file decides
    tensor(path, attrs={'Nu': .5, 'rho': 1.})
    assert open_source(path).pde == 'reaction-diffusion'
    message = refused(open_source, path, 'burgers')
    assert '(it has all parameters of reaction-diffusion, and an attribute' in message and 'pde=' in message
    assert 'could be burgers' in open_source(path).doubts[0]
    assert open_source(path, 'burgers', named=True).pde == 'burgers'
    found, = find('burgers', '', path, {'Nu': .5}, 5, named=True)
    assert found.pde == 'burgers' and 'rho, which burgers does not use' in found.notes[-1]
    tensor(path, attrs={'Nu': .5, 'beta': 1.})
    assert 'taken for advection, and could be burgers' in open_source(path).doubts[0]


def test_the_default_dataset_is_not_one_that_the_user_names(path, tmp_path, monkeypatch):
    tensor(path, attrs={'Nu': .5, 'rho': 1.})
    arguments = [*smoke_args(path, tmp_path / 'o'), '--space_stride=3']           # refused once the file is open
    assert 'no file of burgers' in refused(train_here, monkeypatch, *arguments)
    assert 'space_stride=3' in refused(train_here, monkeypatch, *arguments, '--dataset=burgers',
                                       '--n_trajectories=10')


def test_an_empty_attribute_pde_says_nothing(path):
    for value in (h5py.Empty('S1'), ''):
        assert open_source(tensor(path, attrs={'Nu': .5, 'pde': value})).pde == 'burgers'


def test_an_attribute_pde_that_is_no_equation(path, monkeypatch):
    tensor(path, attrs={'Nu': .5, 'pde': 'KdV'})
    assert "pde='kdv', which is no known equation" in refused(open_source, path, 'burgers')
    assert "pde='kdv', and is taken for burgers" in open_source(path, 'burgers', named=True).doubts[0]
    know(monkeypatch.setattr, kdv=dataclasses.replace(equations.entry('burgers'), galilean=0.))
    assert open_source(path).pde == 'kdv'
