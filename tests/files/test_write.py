"""files/write.py: files of every equation that has a solver; whole or absent, whatever happens meanwhile."""
import dataclasses
import os
import re
import resource
import shutil
import time
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

import equations
from conftest import SERVER, TIMEOUT, centres, forked, refused, run
from files.inspect import inspect
from files.open import blocks, find, open_source, plan, read_rows
from files.write import make, make_command, write_file
from handmade import know
from runtime.configurator import UserError

BURGERS = equations.entry('burgers')
SOLVED = [name for name, pde in equations.entries().items() if pde.solve]


# -----------------------------------------------------------------------------
# what is in a file

def test_layout_of_a_written_file(burgers_file):
    with h5py.File(burgers_file) as file:
        tensor, x, t = (file[key] for key in ('tensor', 'x-coordinate', 't-coordinate'))
        assert tensor.shape == (20, 201, 1024) and tensor.dtype == np.float32 and tensor.fletcher32
        assert np.allclose(x[:], centres(1024)) and np.allclose(t[:], np.arange(202) * .01)
        assert file.attrs['Nu'] == .01 and file.attrs['seed'] == 0 and file.attrs['pde'] == 'burgers'
        assert file.attrs['complete'] == 1
        u0 = BURGERS.start(20, (1024,))
        assert np.array_equal(tensor[:, 0], u0[..., 0].float())
        again = BURGERS.solution(u0[7:8], {'Nu': .01}, [0., .5, 2.])[0, ..., 0].numpy()
        assert np.abs(tensor[7, [0, 50, 200]] - again).max() < 1e-5
    assert os.listdir(os.path.dirname(burgers_file)) == [os.path.basename(burgers_file)]


SLOW = ('kuramoto-sivashinsky', 'diffusion-sorption')      # solved through a burn-in, or on a finer grid


@pytest.mark.parametrize('name', [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW))
                                  for name in SOLVED])
def test_a_written_file_is_what_was_planned_and_holds_the_solution(name, path, monkeypatch):
    full = equations.entry(name)
    pde = dataclasses.replace(full, frames=min(full.frames, 4), params=dict.fromkeys(full.params, .02))
    know(monkeypatch.setattr, **{name: pde})
    monkeypatch.setattr('files.write._say_cost', lambda *args: None)               # some draw for seconds
    size = 64 if pde.axes == 1 else 16
    planned = plan(path, name, pde.params, 4, size)
    write_file(path, name, pde.params, 4, seed=3, device='cpu', batch_size=3, resolution=size)
    source = open_source(path, quiet=True)
    for field in ('pde', 'n', 'n_frames', 'shape', 'params', 'dtype', 'layout'):
        assert getattr(source, field) == getattr(planned, field), field
    assert source.dt == pytest.approx(planned.dt, rel=1e-5)
    assert all(np.allclose(x, planned_x, rtol=1e-5) for x, planned_x in zip(source.x, planned.x))
    u0 = pde.start(4, source.shape, seed=3)
    u = pde.solution(u0, pde.params, np.arange(pde.frames) * pde.dt).numpy()
    scale = np.abs(u).max(tuple(range(u.ndim - 1)))
    assert (np.abs(read_rows(source, range(4)) - u) / scale).max() < 1e-5


@pytest.mark.parametrize('common, each, n_said', [(2., 1., 1), (.05, .2, 0), (3., .05, 0)])
def test_the_time_is_told_by_1_and_4_trajectories(path, monkeypatch, capsys, common, each, n_said):
    """Of a solver that takes a part of its time for any number of trajectories, and makes long steps late. A
    first batch that is over soon says it by itself."""
    clock = [0.]

    def solve(u0, nu, t):
        clock[0] += (common + each * len(u0)) * min(1., len(t) / 100)
        return u0[:, None].expand(-1, len(t), -1)

    know(monkeypatch.setattr, burgers=dataclasses.replace(BURGERS, solve=solve))
    monkeypatch.setattr('files.write.time', SimpleNamespace(perf_counter=lambda: clock[0]))
    write_file(path, 'burgers', {'Nu': .1}, 96, device='cpu', batch_size=32, resolution=16)
    out = capsys.readouterr().out
    minutes = re.findall(r'about (\d+)m(\d+)s', out)
    assert len(minutes) == n_said
    for minute, second in minutes:
        assert int(minute) * 60 + int(second) == pytest.approx(3 * common + 96 * each, abs=1)
    [eta] = re.findall(r'32/96 33% .* eta (\d+)m(\d+)s', out)
    assert int(eta[0]) * 60 + int(eta[1]) == pytest.approx(2 * common + 64 * each, abs=1)


def test_cells_may_differ_from_axis_to_axis(path, monkeypatch):
    """u = u0 (kappa + t) on 8 x 6 cells."""
    def solve(u0, kappa, t):
        return u0[:, None] * torch.from_numpy(kappa + t)[:, None, None]

    def initial(n, cells, seed, first):
        return np.random.default_rng(seed).standard_normal((100, *cells))[first:first + n]

    know(monkeypatch.setattr, box=dataclasses.replace(
        BURGERS, space=((0, 1), (-1, 3)), params={'kappa': 1.}, velocity=(), cells=(8, 6), frames=5,
        solve=solve, initial=initial))
    source = open_source(write_file(path, 'box', {'kappa': 2.}, 5, device='cpu', batch_size=2))
    assert (source.pde, source.shape, source.n_frames) == ('box', (8, 6), 5)
    expected = initial(5, (8, 6), 0, 0)[:, None] * (2 + np.arange(5) * .01)[:, None, None]
    assert np.abs(read_rows(source, range(5))[..., 0] - expected).max() < 1e-6


def test_large_rows_are_read_and_solved_for_in_small_blocks(path, monkeypatch):
    seen = []
    pde = equations.entry('diffusion-reaction')

    def solve(u0, t):
        seen.append(len(u0))
        return u0[:, None].expand(-1, len(t), *u0.shape[1:])

    know(monkeypatch.setattr, **{'diffusion-reaction': dataclasses.replace(pde, solve=solve, frames=6)})
    row_values = 6 * 16 * 16 * 2
    monkeypatch.setattr('files.write.SOLVED_VALUES', 3 * row_values)
    monkeypatch.setattr('files.open.CHUNK_VALUES', 2 * row_values)
    monkeypatch.setattr('files.layouts.CHUNK_VALUES', 2 * 16 * 16 * 2)
    write_file(path, 'diffusion-reaction', {}, 8, device='cpu', resolution=16)
    assert seen[-3:] == [3, 3, 2] and max(seen) == 3
    with h5py.File(path) as file:
        assert file['0005/data'].chunks == (2, 16, 16, 2) and file['0005/data'].fletcher32
    source = open_source(path)
    assert [first for first, _ in blocks(source, range(8))] == [0, 2, 4, 6]
    assert torch.equal(torch.from_numpy(read_rows(source, range(8))[:, 3]), pde.start(8, (16, 16)).float())


# -----------------------------------------------------------------------------
# make, and the command line

def test_planned_files_are_made_and_the_others_left_alone(tmp_path, monkeypatch):
    solved = []

    def solve(*args, **named):
        solved.append(0)
        return BURGERS.solve(*args, **named)

    know(monkeypatch.setattr, burgers=dataclasses.replace(BURGERS, frames=3, solve=solve))
    planned = find('burgers', str(tmp_path), '', {'Nu': .01}, 4, 32)
    made, = make(planned, 'cpu')
    assert made.exists and made.path == planned[0].path and made.n == 4 and solved
    solved.clear()
    assert make([made], 'cpu') == [made]
    assert make(planned, 'cpu')[0].exists and not solved             # another process has made it meanwhile


@pytest.mark.parametrize('change', [{'n': 0}, {'params': {'Nu': -1.}}, {'n': 10 ** 12}, {'resolution': 1},
                                    {'seed': -1}, {'batch_size': 0}, {'dataset': 'incompressible'}])
def test_write_refuses(tmp_path, change):
    arguments = {'path': str(tmp_path / 'a.hdf5'), 'dataset': 'burgers', 'params': {'Nu': .1}, 'n': 3}
    refused(write_file, **{**arguments, 'device': 'cpu', **change})
    assert not os.listdir(tmp_path)


def test_the_command_names_the_file(tmp_path):
    arguments = ['--n', '3', '--resolution', '32', '--data_dir', str(tmp_path), '--device', 'cpu']
    make_command(['advection', '--beta', '0.7', *arguments])
    make_command(['burgers-old', *arguments])
    assert open_source(str(tmp_path / '1D_Advection_Sols_beta0.7_X32_N3.hdf5')).params == {'beta': .7}
    old = open_source(str(tmp_path / 'old' / '1D_Burgers_Sols_Nu0.01_X32_N3.hdf5'))
    assert old.pde == 'burgers-old' and old.shape == (32,)
    make_command(['advection', '--seed', '1', *arguments])           # training takes no other seed by itself
    assert (tmp_path / '1D_Advection_Sols_beta0.4_X32_N3_seed1.hdf5').exists()
    os.mkdir(tmp_path / 'there')
    make_command(['burgers', '--out', str(tmp_path / 'there'), *arguments])
    make_command(['burgers', '--nu', '0.1', '--out', f'{tmp_path}/new/', *arguments])
    assert os.listdir(tmp_path / 'there') == ['1D_Burgers_Sols_Nu0.01_X32_N3.hdf5']
    assert os.listdir(tmp_path / 'new') == ['1D_Burgers_Sols_Nu0.1_X32_N3.hdf5']
    assert 'no parameter nu' in refused(make_command, ['advection', '--nu', '0.1', *arguments])
    assert 'exists' in refused(make_command, ['advection', '--beta', '0.7', *arguments])
    for out in ('a.npz', 'folder', ''):
        assert '.hdf5' in refused(make_command, ['advection', '--out', out, *arguments])
    assert 'seed' in refused(make_command, ['advection', '--seed', str(2 ** 63), *arguments])


@pytest.mark.slow
def test_the_command_as_a_user_runs_it(tmp_path, burgers_file):
    arguments = ['burgers', '--n', 4, '--out', 'sub dir/a.hdf5', '--device', 'cpu']
    run('make', *arguments, script='data.py', cwd=tmp_path)
    with h5py.File(tmp_path / 'sub dir/a.hdf5') as file, h5py.File(burgers_file) as other:
        assert np.allclose(file['tensor'][:], other['tensor'][:4], atol=1e-6)      # n = 20 begins with these


# -----------------------------------------------------------------------------
# a file is whole or absent

@pytest.mark.parametrize('seed, made_again', [(0, [4, 6]), (1, [0, 2, 4, 6])])
def test_a_file_that_was_stopped_goes_on(path, tmp_path, monkeypatch, seed, made_again):
    """Ctrl-C or SIGTERM in the third batch leaves the first two; unless other values are to be made."""
    full = equations.entry('advection')
    begins = []
    stops = [4]

    def initial(n, cells, seed, first):
        begins.append(first)
        if first in stops:
            stops.clear()
            raise KeyboardInterrupt
        return full.initial(n, cells, seed, first)

    def write(path, seed):
        begins.clear()
        write_file(str(path), 'advection', {'beta': .4}, 8, seed, 'cpu', batch_size=2, resolution=16)

    monkeypatch.setattr('files.write._say_cost', lambda *args: None)
    know(monkeypatch.setattr, advection=dataclasses.replace(full, initial=initial))
    with pytest.raises(KeyboardInterrupt):
        write(path, 0)
    assert os.listdir(tmp_path) == [os.path.basename(path) + '.part']
    write(path, seed)
    assert begins == made_again
    write(tmp_path / 'whole', seed)
    assert sorted(os.listdir(tmp_path)) == sorted([os.path.basename(path), 'whole'])
    with h5py.File(path) as file, h5py.File(tmp_path / 'whole') as whole:
        assert np.array_equal(file['tensor'][:], whole['tensor'][:])
        assert dict(file.attrs) == dict(whole.attrs)


def test_an_exception_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    path = str(tmp_path / 'a.hdf5')
    calls = []

    def solve(*args, **named):
        calls.append(any('.tmp.' in name for name in os.listdir(tmp_path)))
        if len(calls) == 5:
            raise RuntimeError('midway')
        return BURGERS.solve(*args, **named)

    know(monkeypatch.setattr, burgers=dataclasses.replace(BURGERS, frames=3, solve=solve))
    for before in (None, b'an older file'):
        if before:
            (tmp_path / 'a.hdf5').write_bytes(before)
        calls.clear()
        with pytest.raises(RuntimeError, match='midway'):
            write_file(path, 'burgers', {'Nu': .1}, 9, device='cpu', batch_size=1)
        assert calls[-1] and os.listdir(tmp_path) == (['a.hdf5'] if before else [])
        assert not before or (tmp_path / 'a.hdf5').read_bytes() == before


def test_a_reader_sees_the_old_file_while_a_new_one_is_written(tmp_path, burgers_file, monkeypatch):
    path = str(shutil.copy(burgers_file, tmp_path / 'a.hdf5'))
    seen = []

    def look(*args, **named):
        seen.append(open_source(path).n)
        return BURGERS.solve(*args, **named)

    know(monkeypatch.setattr, burgers=dataclasses.replace(BURGERS, solve=look))
    write_file(path, 'burgers', {'Nu': .01}, 3, device='cpu', resolution=64)
    assert set(seen) == {20} and open_source(path).n == 3


def make_small(path, barrier=None, hangs=False):
    """Make a small file, in a process of its own; or begin to, once the rows are written."""
    torch.set_num_threads(1)
    if barrier:
        barrier.wait()

    def hang_where_a_file_is(*args, **named):
        """The solver is called before there is a file, to see how long it takes, and then for the rows."""
        folder = os.path.dirname(path)
        if os.listdir(folder):
            open(os.path.join(folder, 'hangs'), 'w').close()
            time.sleep(10 * TIMEOUT)
        return BURGERS.solve(*args, **named)

    if hangs:
        know(setattr, burgers=dataclasses.replace(BURGERS, solve=hang_where_a_file_is))
    write_file(path, 'burgers', {'Nu': .01}, 3, device='cpu', batch_size=1, resolution=64)


@pytest.mark.slow
def test_a_killed_writer_leaves_no_file(tmp_path):
    path = str(tmp_path / 'a.hdf5')
    victim = forked(make_small, path, None, True)
    end = time.monotonic() + TIMEOUT
    while not os.path.exists(tmp_path / 'hangs'):
        assert victim.is_alive() and time.monotonic() < end
        time.sleep(.01)
    victim.kill()
    victim.join()
    left = os.listdir(tmp_path)
    assert len(left) == 2 and not os.path.exists(path)               # the marker and the temporary file
    make_small(path)
    assert inspect(path)['trajectories'] == 3 and sorted(os.listdir(tmp_path)) == ['a.hdf5', 'hangs']


def test_two_writers_at_once_make_a_whole_file(tmp_path):
    path = str(tmp_path / 'a.hdf5')
    barrier = SERVER.Barrier(2)
    both = [forked(make_small, path, barrier) for _ in range(2)]
    for process in both:
        process.join(TIMEOUT)
        assert process.exitcode == 0
    assert inspect(path)['trajectories'] == 3 and os.listdir(tmp_path) == ['a.hdf5']


def standing_still(u0, t, **params):
    """A solver that takes no time."""
    return u0[:, None].expand(-1, len(t), *u0.shape[1:])


def make_on_small_disks(folder, dataset, err):
    """Make one small file again and again, each time with room for 2000 bytes more, until it is whole."""
    os.dup2(os.open(err, os.O_WRONLY | os.O_CREAT), 2)
    entry = equations.entry(dataset)
    know(setattr, **{dataset: dataclasses.replace(entry, solve=standing_still)})
    path = os.path.join(folder, 'a.hdf5')
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    n_failed = 0
    while not os.path.exists(path):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000 + 2000 * n_failed, hard))
        try:
            write_file(path, dataset, entry.params, 4, device='cpu', batch_size=2, resolution=8)
        except UserError as error:
            assert str(error) == f"could not write '{path}': File too large"
            assert os.listdir(folder) == []
            n_failed += 1
    assert n_failed > 4 and inspect(path)['trajectories'] == 4


@pytest.mark.parametrize('dataset', ['reaction-diffusion', 'compressible-1d', 'diffusion-sorption'])
def test_a_disk_that_is_full_at_any_place_of_a_file(dataset, tmp_path):
    """In its rows, attributes or directories, of one dataset, several or a group for each row. Nothing is
    left, and HDF5 says nothing later, when its objects are freed or the program ends."""
    os.makedirs(tmp_path / 'd')
    writer = forked(make_on_small_disks, tmp_path / 'd', dataset, tmp_path / 'err')
    writer.join(TIMEOUT)
    assert writer.exitcode == 0 and (tmp_path / 'err').read_text() == '', (tmp_path / 'err').read_text()
