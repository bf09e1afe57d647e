"""data.py: trajectories and what is known of them, windows and their exact symmetries, order of sampling."""
import dataclasses
import json
import math
import os
import re
import runpy
import threading
from functools import partial
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

import data
import equations
import files.open as files
from batches import settings
from conftest import MODEL_KEYS, ROOT, centres, close, know, noise, refused, write
from data import Sampler, Trajectories, Windows
from equations import PDE
from equations.common import exchange_axes
from files.fit import check_strides
from files.layouts import Content, Layout
from files.write import write_file
from losses import OperatorStage
from model import UPT, ModelConfig

CPU = torch.device('cpu')
PAIR = PDE(fields=('h', 'v'), params={'c': 1.}, space=((0, 1),), boundary='periodic', file='pair{c}.hdf5',
           layout='stack', conserved=('h',), velocity=('v',), mirror=True, galilean=1.)
FLOW = PDE(fields=('rho', 'vx', 'vy', 'p'), params={}, space=((0, 1), (0, 2)), boundary='periodic',
           file='flow.hdf5', layout='stack', conserved=('rho',), velocity=('vx', 'vy'), mirror=True,
           galilean=1.)


# ---------------------------------------------------------------------------------------------
# hand-made files

def is_stack(file):
    return 'stack' in file


def check_stack(path, file):
    stack = file['stack']
    t = file['t'][:]
    x = tuple(file[f'axis{i}'][:] for i in range(stack.ndim - 3))
    return Content(stack.shape[0], stack.shape[1], float(t[1] - t[0]), x, 'float32')


def read_stack(file, rows, frames):
    return file['stack'][rows, frames]


@pytest.fixture
def several(monkeypatch):
    """Two equations of several fields, and a layout for them: `stack` (N, T, *X, C)."""
    monkeypatch.setitem(files.LAYOUTS, 'stack', Layout(is_stack, check_stack, read_stack))
    know(monkeypatch, pair=PAIR, flow=FLOW)


def write_stack(path, u, entry, dt):
    with h5py.File(path, 'w') as file:
        file['stack'] = u.astype(np.float32)
        file['t'] = np.arange(u.shape[1]) * dt
        for axis, (low, length) in enumerate(zip(entry.low, entry.length)):
            file[f'axis{axis}'] = centres(u.shape[2 + axis], low, low + length)
        file.attrs.update(entry.params)
    return str(path)


def write_pair(path, n=20, T=6, X=16):
    """Fields of very different size."""
    h = 1e4 + 1e3 * noise(n, T, X)
    v = 1e-3 * noise(n, T, X, seed=1)
    return write_stack(path, np.stack([h, v], -1), PAIR, .01)


FLOW_CELLS = np.array([8, 12])
FLOW_DT = .1
FLOW_CELL_A_STEP = np.array([1, 2]) / FLOW_CELLS / FLOW_DT


def write_flow(path, n=20, T=6):
    """Solutions of the Euler equations: the density is carried along by a uniform velocity of whole cells a
    step, at uniform pressure."""
    rng = np.random.default_rng(0)
    u = np.zeros((n, T, *FLOW_CELLS, 4))
    for row in range(n):
        speed = rng.integers(-3, 4, 2)                               # cells per step
        rho = rng.uniform(1, 2, FLOW_CELLS)
        for k in range(T):
            u[row, k, ..., 0] = np.roll(rho, k * speed, (0, 1))
        u[row, ..., 1:3] = speed * FLOW_CELL_A_STEP
        u[row, ..., 3] = rng.uniform(1, 2)
    return write_stack(path, u, FLOW, FLOW_DT)


# nu or beta of smooth solutions, so that strided values are the solution everywhere
SMOOTH = {'burgers': {'Nu': .05}, 'burgers-old': {'Nu': .2}, 'advection': {'beta': .4}}


@pytest.fixture(scope='module')
def solved(tmp_path_factory):
    """{equation: path} of files by the built-in solvers: 10 rows, 41 frames .01 s apart, 256 cells."""
    paths = {}
    for name, params in SMOOTH.items():
        entry = equations.entry(name)
        u0 = torch.from_numpy(entry.initial(10, (256,), 4, 0))
        u = entry.solution(u0[..., None], params, np.arange(41) * .01)
        path = tmp_path_factory.mktemp(name) / 'solved.hdf5'
        paths[name] = write(path, u[..., 0], .01, entry.low[0], **params)
    return paths


# ---------------------------------------------------------------------------------------------
# what train.py makes of them

def keys_of(**changes):
    """The keys of train.py that data.py reads; no symmetry unless asked for."""
    keys = {'n_trajectories': 10, 'time_stride': 1, 'other_strides': (), 'space_stride': 1, 'memory_gb': 100.,
            'initial_step': 1, 'unroll': 1, 'early_bias': 1., 'symmetries': False, 'seed': 0}
    return SimpleNamespace(**{**keys, **changes})


def open_all(paths, **changes):
    """Trajectories of one file or several; all rows, unless n_trajectories says fewer."""
    paths = [paths] if isinstance(paths, str) else paths
    sources = [files.open_source(path, quiet=True) for path in paths]
    return Trajectories(sources, keys_of(**{'n_trajectories': sources[0].n, **changes}), CPU)


def model_of(t, moving=False, **changes):
    """A small model of trajectories, as train.py makes it. Its tokens hold all values of their points."""
    small = {'latent_tokens': 2, 'latent_dim': math.prod(n // 2 for n in t.grid) * len(t.entry.fields),
             'patch_size': 2, 'halo': 1, 'hidden_dim': 16, 'depth': 1, 'n_head': 2, 'moving_frame': moving,
             'stages': (), **{name: getattr(t.keys, name) for name in ('time_stride', 'other_strides', 'space_stride')}}
    keys = SimpleNamespace(**{**MODEL_KEYS, **small, **changes})
    m = UPT(ModelConfig.of(keys, MODEL_KEYS, t.sources))
    m.normalise(*t.statistics(moving=m.cfg.velocity if m.cfg.galilean else ()))
    return m


def windows_of(paths, moving=False, model=None, **changes):
    t = open_all(paths, **changes)
    return Windows(t, model_of(t, moving, **(model or {})), t.keys)


def batch_of(w, index=None, iteration=0, **shard):
    """The one batch of windows `index` (default: all of them)."""
    index = torch.arange(w.n_windows) if index is None else index
    batch, = w.batches(index, iteration, **shard)
    return batch


def physical(w, u):
    return u * w.model.std + w.model.mean


def same(a, b):
    return all(torch.equal(x, y) if torch.is_tensor(x) else x == y for x, y in zip(a, b, strict=True))


# ---------------------------------------------------------------------------------------------
# the command

@pytest.mark.parametrize('args', [(), ('inspec', 'x.hdf5')])
def test_a_command_that_is_none(args, monkeypatch):
    monkeypatch.setattr('sys.argv', ['data.py', *args])
    monkeypatch.setattr('sys.excepthook', None)                      # put back afterwards
    assert 'data.py inspect' in refused(runpy.run_path, os.path.join(ROOT, 'data.py'), run_name='__main__')


# ---------------------------------------------------------------------------------------------
# trajectories

def test_grids_of_the_strides(path):
    u = noise(10, 7, 16)
    t = open_all(write(path, u, .01), time_stride=3, space_stride=8)
    assert (t.n_frames, t.grid) == (3, (2,))
    assert t.dt == pytest.approx(.03)
    assert np.array_equal(t.u[..., 0], u[2:, ::3, ::8])
    assert np.array_equal(t.val[..., 0], u[1:2, ::3, ::8])


@pytest.mark.parametrize('memory_gb', [0., 100.])
def test_statistics_come_from_train_rows_alone(path, memory_gb):
    u = noise(20, seed=1) + .5

    def again():
        return open_all(write(path, u), memory_gb=memory_gb)
    t = again()
    (mean,), (std,) = t.statistics(())
    assert mean == pytest.approx(u[4:].mean(), abs=1e-6)
    assert std == pytest.approx(u[4:].std(), abs=1e-6)
    assert np.array_equal(t.val[..., 0], u[2:4])
    for bad in (u[:2] * 1000, np.nan):                               # test rows are not even read
        u[:2] = bad
        assert again().statistics(()) == t.statistics(())
        assert again().identity == t.identity
    u[2:4] *= 1000                                                   # nor do validation rows count
    assert again().statistics(()) == t.statistics(())


def test_splits_follow_the_entry(path, monkeypatch):
    know(monkeypatch, burgers=dataclasses.replace(equations.entry('burgers'), test='last'))
    u = noise(20)
    t = open_all(write(path, u))
    assert np.array_equal(t.u[..., 0], u[:16])
    assert np.array_equal(t.val[..., 0], u[16:18])


def test_every_field_has_a_mean_and_a_scale(path, several):
    u = h5py.File(write_pair(path))['stack'][4:].astype(np.float64)
    t = open_all(path)
    mean, std = t.statistics(())
    assert np.allclose(mean, u.mean((0, 1, 2)), rtol=1e-6)
    assert np.allclose(std, u.std((0, 1, 2)), rtol=1e-6)
    assert std[0] > 1e5 * std[1]
    assert np.allclose(t.row_means, u[:, 0].mean(1))
    normalised = batch_of(Windows(t, model_of(t), t.keys)).u
    assert np.allclose(normalised.mean((0, 1, 2)), 0, atol=.1)
    assert np.allclose(normalised.std((0, 1, 2)), 1, atol=.1)


def test_a_velocity_that_a_frame_takes_off_has_mean_zero_and_the_scale_of_the_rest(path, several):
    u = h5py.File(write_pair(path))['stack'][:].astype(np.float64)
    flow = np.random.default_rng(0).uniform(-9, 9, (20, 1, 1))
    u[..., 1] *= 1e3
    u[..., 1] += flow - u[..., 1].mean(2, keepdims=True)             # a mean that stays
    write_stack(path, u, PAIR, .01)
    t = open_all(path)
    plain_mean, plain_std = t.statistics(())
    mean, std = t.statistics(moving=(1,))
    rest = u[4:, ..., 1] - flow[4:]
    assert std[1] == pytest.approx(rest.std(), rel=1e-4)
    assert plain_std[1] > 3 * std[1]
    assert mean[1] == 0.
    assert plain_mean[1] != 0.
    assert (mean[0], std[0]) == (plain_mean[0], plain_std[0])


@pytest.mark.parametrize('value', [-1e-9, 3.])
def test_constant_field(path, value, capsys):
    t = open_all(write(path, np.full((10, 5, 16), value)))
    assert [float(x) for x in t.statistics(())] == pytest.approx([value, 1.], rel=1e-6)
    assert 'the train fields u are constant' in capsys.readouterr().out
    batch = batch_of(Windows(t, model_of(t), t.keys))
    assert not batch.u.any()


@pytest.mark.parametrize('factor', [1e-9, 1e9])
def test_a_scale_is_relative(path, factor, capsys):
    """In other units, batches are the same."""
    u = noise(20)
    usual = batch_of(windows_of(write(path, u)))
    other = batch_of(windows_of(write(path, factor * u)))
    assert 'constant' not in capsys.readouterr().out
    close(other.u, usual.u)


def test_identity_follows_all_train_and_validation_rows(path, tmp_path):
    u = noise(20)
    one = open_all(write(path, u)).identity
    assert open_all(write(tmp_path / 'copy.hdf5', u)).identity == one
    for row in (2, 3, 4, 11, 19):
        changed = u.copy()
        changed[row, 3, 5] += .1
        assert open_all(write(path, changed)).identity != one
    assert open_all(write(path, u, Nu=.02)).identity != one


def test_number_of_trajectories(path, capsys):
    u = noise(20)
    write(path, u)
    assert open_all(path, n_trajectories=20).n_trajectories == 20
    assert capsys.readouterr().out == ''
    t = open_all(path, n_trajectories=10)                            # splits are of the first n
    assert np.array_equal(t.val[..., 0], u[1:2])
    assert np.array_equal(t.u[..., 0], u[2:10])
    assert open_all(path, n_trajectories=21).n_trajectories == 20    # fewer than asked for is told
    assert 'n_trajectories=21' in capsys.readouterr().out


def test_small_files_live_in_memory_by_default(path):
    assert open_all(write(path, noise()), memory_gb=-1.).home is not None


@pytest.mark.parametrize('memory_gb, device, n_value', [
    (1., 'cpu', 250_000_000), (-1., 'cpu', 500_000_000), (-1., 'cuda', 1_000_000_000)])
def test_numbers_that_fit_into_memory(memory_gb, device, n_value, monkeypatch):
    """Of 4 bytes: memory_gb, or half of what is free, of a host of 8 GB for each of two processes."""
    monkeypatch.setattr(data, 'free_memory', lambda: 8e9)
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device: (8e9, 9e9))
    asking = SimpleNamespace(keys=SimpleNamespace(memory_gb=memory_gb))
    device = torch.device(device)
    assert Trajectories.fits(asking, n_value, 2, device)
    assert not Trajectories.fits(asking, n_value + 1, 2, device)


def test_rows_that_do_not_fit_on_a_device_live_in_its_host(path, monkeypatch):
    monkeypatch.setattr(Trajectories, 'fits', lambda self, n_value, processes, place: place.type == 'cpu')
    found = Trajectories([files.open_source(write(path, noise()), quiet=True)], keys_of(), torch.device('meta'))
    assert found.home == found.u.device == torch.device('cpu')


def test_overlap_of_train_and_validation_is_refused(path):
    u = noise(20)
    u[11, 0] = u[2, 0]
    message = refused(open_all, write(path, u))
    assert 'trajectory 11' in message
    assert 'trajectory 2' in message
    u[11, 0] = u[2, 0] = 0                                           # constants evolve alike and leak nothing
    open_all(write(path, u))


@pytest.mark.parametrize('here, there, split', [(0, 15, 'test'), (3, 19, 'val')])
def test_files_with_rows_in_another_order_are_refused(here, there, split, tmp_path, monkeypatch):
    """Told before the training, with the file, and with the row that it has there."""
    monkeypatch.chdir(tmp_path)
    u = noise(20)
    moved = u.copy()
    moved[[here, there]] = u[[there, here]]
    message = refused(open_all, [write('a.hdf5', u), write('b.hdf5', moved, Nu=.02)])
    assert message.startswith(f"trajectory {here} ({split}) of 'a.hdf5' has the same initial condition as "
                              f"trajectory {there} (train) of 'b.hdf5'")
    open_all([write('a.hdf5', u), write('b.hdf5', u, Nu=.02)])       # in the same order, nothing leaks


def test_negative_values_of_a_positive_field_are_refused(path, monkeypatch):
    know(monkeypatch, burgers=dataclasses.replace(equations.entry('burgers'), positive=('u',)))
    u = abs(noise(20)) + .1
    u[7, 2, :3] = -1e-9                                              # rounding
    open_all(write(path, u))
    u[7, 2, :3] = .1
    for row in (2, 7):                                               # in the validation and the train part
        bad = u.copy()
        bad[row, 3, :2] = -2.5
        message = refused(open_all, write(path, bad))
        assert '2 values of u are negative, the smallest is -2.5' in message


def test_a_file_in_other_units_is_told(path, tmp_path, capsys):
    t = open_all([write(tmp_path / 'a.hdf5', 1e3 * noise(20)), write(path, noise(20, seed=1), Nu=.02)])
    t.check_units(model_of(t))
    assert re.findall("warning: '(.*)': u deviates by", capsys.readouterr().out) == [path]


def test_validation_leaves_out_rows_without_a_relative_error(path, tmp_path, capsys):
    u = noise(30)
    u[4, 2] = 0
    u[3, 0] = 0                                                      # a first frame is not predicted
    t = open_all([write(tmp_path / 'a.hdf5', noise(30)), write(path, u, Nu=.02)])
    assert f"trajectory 4 of '{path}'" in capsys.readouterr().out
    assert t.val.shape[0] == 5 and (t.val[:, 1:] != 0).any((2, 3)).all()
    assert t.val_params[:, 0].tolist() == pytest.approx([.01, .02, .01, .01, .02])
    u[3:6, 2] = 0
    assert 'every validation trajectory' in refused(open_all, write(path, u))


@pytest.mark.parametrize('row', [2, 19])
def test_values_that_are_not_finite_are_refused(path, row):
    """In the validation part and in the train part."""
    u = noise(20)
    u[row, 3, 2] = np.inf
    message = refused(open_all, write(path, u))
    assert 'not finite' in message and f'trajectory {row}, frame 3' in message


@pytest.mark.parametrize('shape, other', [((10, 6), {}), ((10, 5, 8), {}), ((10, 5), {'dt': .02}),
                                          ((10, 5), {'beta': .4})], ids=str)
def test_files_that_differ_are_refused(path, tmp_path, shape, other):
    paths = [write(path, noise()), write(tmp_path / 'b.hdf5', noise(*shape, seed=1), **other)]
    assert 'differ in equation' in refused(open_all, paths)


@pytest.mark.parametrize('changes, words', [
    ({'space_stride': 3}, 'space_stride=3'), ({'space_stride': 0}, 'space_stride=0'),
    ({'time_stride': 0}, 'time_stride=0'), ({'unroll': 5}, 'unroll=5'),
    ({'other_strides': (0,)}, 'other_strides=(0,)'), ({'other_strides': ('2',)}, 'whole numbers'),
    ({'other_strides': (2,), 'unroll': 3}, 'other_strides=2'),
    ({'initial_step': 0, 'unroll': 5}, 'unroll=5'), ({'n_trajectories': 2}, '2 trajectories'),
    ({'time_stride': 2, 'unroll': 3}, 'unroll=3'), ({'initial_step': 3, 'unroll': 3}, 'initial_step=3')])
def test_strides_that_do_not_fit_are_refused(path, changes, words):
    source = files.open_source(write(path, noise()), quiet=True)
    keys = keys_of(**changes)
    assert words in refused(check_strides, source, keys, keys.unroll)
    check_strides(source, keys_of(space_stride=4, time_stride=2), 2)
    flat = dataclasses.replace(source, x=(source.x[0], source.x[0][:6]))
    assert 'the 6 cells' in refused(check_strides, flat, keys_of(space_stride=4), 1)


# ---------------------------------------------------------------------------------------------
# what checkpoints know of the data

def run_of(folder='out/a', state=None, parent=None):
    return SimpleNamespace(folder=folder, state=state, parent=parent, best_path='out/a/best.pt',
                           parent_path='out/b/best.pt')


def test_a_checkpoint_knows_what_it_has_seen(path, tmp_path):
    u = noise(20)
    t = open_all(write(path, u))
    known = t.describe(run_of(str(tmp_path / 'out' / 'a')))
    assert known['paths'] == known['absolute'] == [path]
    assert known['relative'] == [os.path.join('..', '..', 'a b é.hdf5')]
    assert known['identity'] == t.identity
    assert known['n_trajectories'] == 20
    prints = files.fingerprints(u[:, 0, :, None]).tolist()
    assert set(known['seen'].tolist()) == set(prints[2:])            # train and validation rows
    parent = {'data': {'seen': torch.tensor([5, 7])}}
    known = t.describe(run_of(parent=parent))                # what it was fine-tuned from has seen
    assert set(known['seen'].tolist()) == {*prints[2:], 5, 7}
    known = t.describe(run_of(state=parent))                 # what it has seen before a resume
    assert set(known['seen'].tolist()) == {*prints[2:], 5, 7}


def test_other_data_are_refused_on_resume(path):
    u = noise(20)
    t = open_all(write(path, u))
    run = run_of(state={'data': t.describe(run_of())})
    t.check_history(run)
    t.check_history(run_of())                           # a run that begins
    other = open_all(write(path, u + 1))
    assert 'the data are not those' in refused(other.check_history, run)
    fewer = open_all(write(path, u), n_trajectories=10)
    assert 'the data are not those' in refused(fewer.check_history, run)


@pytest.mark.parametrize('nu', [.01, .001])
def test_a_parent_that_has_seen_test_rows_is_refused(path, tmp_path, nu):
    """More rows of the same seed turn validation and train rows into test rows, at any parameter."""
    u = noise(64)
    of_other_nu = 2 * u
    of_other_nu[:, 0] = u[:, 0]                                      # the initial conditions are shared
    small = open_all(write(path, u[:32]))
    run = run_of(parent={'data': small.describe(run_of())})
    now = write(tmp_path / 'now.hdf5', of_other_nu if nu == .001 else u, Nu=nu)
    open_all(now, n_trajectories=32).check_history(run)
    large = open_all(now)
    message = refused(large.check_history, run)
    assert message.startswith(f"3 of 6 test trajectories of '{now}' (first: 3)")
    assert 'out/b/best.pt' in message
    other_seed = open_all(write(tmp_path / 'seed.hdf5', noise(64, seed=5)))
    other_seed.check_history(run)


def test_constant_fields_are_no_history(path):
    u = noise(20)
    u[:, 0] = 1.
    t = open_all(write(path, u))
    run = run_of(parent={'data': t.describe(run_of())})
    t.check_history(run)


# ---------------------------------------------------------------------------------------------
# windows

def test_memory_and_lazy_give_identical_batches(burgers_file, path):
    with h5py.File(burgers_file) as file:
        other = write(path, 1.1 * file['tensor'][:], .01, Nu=.02)
    everything = {'time_stride': 5, 'space_stride': 8, 'unroll': 3, 'symmetries': True}
    for paths, early in (([burgers_file], 1.), ([burgers_file, other], 2.)):
        memory = windows_of(paths, moving=True, memory_gb=100., early_bias=early, **everything)
        lazy = windows_of(paths, moving=True, memory_gb=0., early_bias=early, **everything)
        assert memory.trajectories.home
        assert not lazy.trajectories.home
        assert memory.n_windows == lazy.n_windows == len(paths) * 16 * (41 - 3)
        assert torch.equal(memory.model.std, lazy.model.std)
        assert memory.trajectories.identity == lazy.trajectories.identity
        assert torch.equal(memory.trajectories.val, lazy.trajectories.val)
        index = torch.randperm(memory.n_windows)[:24]
        assert same(batch_of(memory, index, 3), batch_of(lazy, index, 3))


@pytest.mark.parametrize('n_micro', [1, 2])
def test_a_batch_that_is_read_ahead_is_the_same(burgers_file, n_micro):
    """Each is read once, the next one by another thread, also after one that was not expected."""
    keys = {'time_stride': 5, 'space_stride': 64, 'unroll': 1, 'memory_gb': 0., 'early_bias': 3.}
    ahead = windows_of([burgers_file], **keys)
    plain = windows_of([burgers_file], **keys)
    threads = []
    gather = ahead.trajectories.gather

    def note(*args):
        threads.append(threading.get_ident() == threading.main_thread().ident)
        return gather(*args)

    ahead.trajectories.gather = note
    index = torch.randperm(ahead.n_windows)[:24].split(6)
    # the third batch has other windows than expected, the fourth begins at other frames
    for number, iteration, expected in ((0, 0, 1), (1, 1, 0), (2, 2, 0), (0, 9, 0)):
        shard = index[number], iteration, 1, 2, n_micro              # of the second of two processes
        read = ahead.batches(*shard, following=partial(index.__getitem__, expected))
        for batch, other in zip(read, plain.batches(*shard), strict=True):
            assert same(batch, other)
    ahead.reader.shutdown()
    assert sorted(threads) == [False] * 4 * n_micro + [True] * 3 * n_micro


@pytest.mark.parametrize('memory_gb', [0., 100.])
def test_windows_of_two_files(tmp_path, memory_gb):
    a = noise(20, 7)
    b = noise(20, 7, seed=1)
    b[:, 0] = a[:, 0]                                                # both begin alike, row by row
    paths = [write(tmp_path / 'a.hdf5', a, Nu=.01), write(tmp_path / 'b.hdf5', b, Nu=.001)]
    w = windows_of(paths, time_stride=2, unroll=2, memory_gb=memory_gb)
    assert w.n_windows == 2 * 16 * 2
    batch = batch_of(w)
    expected = [u[row, start:start + 5:2] for u in (a, b) for row in range(4, 20) for start in (0, 2)]
    assert np.allclose(physical(w, batch.u)[..., 0], np.stack(expected), atol=1e-6)
    assert torch.allclose(batch.background * w.model.std, w.model.mean)
    assert np.allclose(batch.params[:, 0], np.repeat([.01, .001], 32))
    assert np.allclose(batch.dt, .1)
    assert torch.equal(w.trajectory(torch.arange(64)), torch.arange(64) // 2)
    assert w.row_names(torch.tensor([0, 3, 63, 32])) == [4, 5, 19]   # the first of both files is row 4


@pytest.mark.parametrize('memory_gb', [0., 100.])
def test_several_time_steps_are_mixed(path, memory_gb):
    """Steps of 4, 2 and 6 frames; windows of one file, whose frames are .05 s apart."""
    u = noise(20, 21)
    w = windows_of(write(path, u), time_stride=4, other_strides=(2, 6), unroll=2, initial_step=2, memory_gb=memory_gb)
    t = w.trajectories
    assert t.n_frames == 11 and t.step_frames == [2, 1, 3] and w.first_start == 2
    assert w.n_starts == 11 - 2 - 6                                  # the longest window spans 6 steps of 2 frames
    assert np.array_equal(t.val[..., 0], u[2:4, ::4]) and t.dt == pytest.approx(.2)
    drawn = [w.time_step(iteration) for iteration in range(300)]
    assert all(80 < drawn.count(which) < 120 for which in range(3))
    assert {w.time_step(iteration) for iteration in range(9, 300, 10)} == {0, 1, 2}    # of every tenth iteration
    for which, step in enumerate((4, 2, 6)):
        iteration = drawn.index(which)
        batch = batch_of(w, iteration=iteration)
        assert torch.allclose(batch.dt, torch.tensor(step * .05))
        expected = [u[row, start:start + 2 * step + 1:step] for row in range(4, 20) for start in (4, 6, 8)]
        assert np.allclose(physical(w, batch.u)[..., 0], np.stack(expected), atol=1e-6)
    assert w.model.cfg.dt == pytest.approx(.2) and w.model.cfg.other_dt == pytest.approx((.1, .3))


def test_a_frame_moves_as_far_as_its_time_step_is_long(path):
    u = noise(20, T=9, X=32)
    u += np.random.default_rng(0).uniform(-30, 30, (20, 1, 1)).astype(np.float32) - u.mean(2, keepdims=True)
    w = windows_of(write(path, u), moving=True, unroll=2, time_stride=1, other_strides=(3,))
    still = windows_of(path, unroll=2, time_stride=1, other_strides=(3,))
    for which in (0, 1):
        iteration = next(k for k in range(99) if w.time_step(k) == which)
        batch = batch_of(w, iteration=iteration)
        whole = (batch.u + batch.background) * w.model.std
        cells = (batch.background[:, 0, 0, 0] * w.model.std * batch.dt * 32).round().int().tolist()
        plain = physical(still, batch_of(still, iteration=iteration).u)
        left = physical(w, batch.u).mean((1, 2, 3)) * batch.dt       # of the mean flow, to half a cell a step
        assert left.abs().max() <= .5 / 32 + 1e-5 and max(map(abs, cells)) > 1
        for i, cell in enumerate(cells):
            for k in range(3):
                assert torch.allclose(whole[i, k], plain[i, k].roll(-cell * k, 0), atol=1e-4)


def test_validation_rows_of_two_files_take_turns(tmp_path):
    a = noise(20)
    b = noise(20, seed=1)
    t = open_all([write(tmp_path / 'a.hdf5', a, Nu=.01), write(tmp_path / 'b.hdf5', b, Nu=.001)])
    assert np.array_equal(t.val[..., 0], np.stack([a[2], b[2], a[3], b[3]]))
    assert np.allclose(t.val_params[:, 0], [.01, .001, .01, .001])


def test_windows_of_several_fields_in_2d(path, several):
    w = windows_of(write_flow(path), unroll=2)
    u = h5py.File(path)['stack'][4:]
    batch = batch_of(w)
    assert batch.u.shape == (16 * 4, 3, 8, 12, 4)
    expected = [u[row, start:start + 3] for row in range(16) for start in range(4)]
    assert np.allclose(physical(w, batch.u), np.stack(expected), atol=1e-5)
    assert batch.params.shape == (64, 0)
    assert batch.background.shape == (64, 1, 1, 1, 4)


def test_windows_that_cannot_be_are_refused(path):
    write(path, noise())
    assert 'unroll=5' in refused(windows_of, path, unroll=5)
    assert windows_of(path, unroll=4).n_starts == 1
    assert 'unroll=3' in refused(windows_of, path, unroll=3, initial_step=3)


@pytest.mark.parametrize('early', [1., 3.])
def test_windows_begin_with_the_last_given_frame(path, early):
    u = noise(20, T=9)
    write(path, u)
    w = windows_of(path, initial_step=5, unroll=2, early_bias=early)
    assert w.n_starts == 3
    starts = w.draw_start(torch.arange(3000), torch.Generator().manual_seed(0))
    assert set(starts.tolist()) == {4, 5, 6}
    if early == 1.:
        first = physical(w, batch_of(w).u)[:, 0, :, 0]
        assert np.allclose(first, u[4:, 4:7].reshape(-1, 16), atol=1e-5)


ALL_ON = {'symmetries': True, 'early_bias': 3.}


@pytest.mark.parametrize('n_micro', [1, 2])
def test_shards_and_micro_batches_together_are_the_global_batch(path, several, n_micro):
    w = windows_of(write_flow(path), moving=True, space_stride=2, unroll=2, **ALL_ON)
    index = torch.randperm(w.n_windows)[:8]
    whole = batch_of(w, index, 5)
    for rank in (0, 1):
        batches = list(w.batches(index, 5, rank=rank, world=2, n_micro=n_micro))
        assert len(batches) == n_micro
        for name in ('u', 'background', 'params', 'dt'):
            together = torch.cat([getattr(batch, name) for batch in batches])
            assert torch.equal(together, getattr(whole, name)[rank::2])


def test_batches_follow_seed_and_iteration(solved):
    index = torch.arange(24)

    def windows(seed):
        return windows_of(solved['burgers'], space_stride=4, seed=seed, **ALL_ON)
    w = windows(0)
    one = batch_of(w, index, 3)
    torch.manual_seed(5)                                             # nothing else counts
    batch_of(w, index, 4)
    assert same(batch_of(w, index, 3), one)
    assert same(batch_of(windows(0), index, 3), one)
    assert not torch.equal(batch_of(w, index, 4).u, one.u)
    assert not torch.equal(batch_of(windows(1), index, 3).u, one.u)


# ---------------------------------------------------------------------------------------------
# start frames

@pytest.mark.parametrize('early', [1., 2., 3.])
def test_every_start_frame_can_be_drawn(path, early):
    w = windows_of(write(path, noise(10, 9)), early_bias=early, unroll=2)
    seen = set()
    random = torch.Generator().manual_seed(0)
    for _ in range(20):
        start = w.draw_start(torch.arange(w.n_windows), random)
        seen.update(start.tolist())
    assert seen == set(range(7))


@pytest.mark.parametrize('early', [2., 3.])
def test_early_frames_are_drawn_more_often(path, early):
    """Stratified: of one trajectory's n windows, one each comes from the n equal parts of U."""
    u = noise(10, 40) + 100 * np.arange(40)[:, None]                 # the frame can be read off
    w = windows_of(write(path, u), early_bias=early, unroll=2)
    batch = batch_of(w)
    frame = (physical(w, batch.u).mean((2, 3)) / 100).round()
    assert (frame.diff(dim=1) == 1).all()
    start = frame[:, 0].view(8, 38).double()
    edges = 38 * (torch.arange(39, dtype=torch.float64) / 38) ** early
    assert (start >= edges[:-1].floor()).all()
    assert (start <= edges[1:].floor()).all()
    assert float(start.mean() + .5) / 38 == pytest.approx(1 / (1 + early), abs=.03)
    assert not (start == start[0]).all()


def test_without_early_an_epoch_visits_each_window_once(path):
    w = windows_of(write(path, noise(10, 7)), early_bias=1., unroll=2)
    sampler = Sampler(w.n_windows, 8, seed=0)
    seen = []
    for iteration in range(w.n_windows // 8):
        index = sampler.next()
        start = w.draw_start(index, torch.Generator().manual_seed(iteration))
        seen += list(zip(w.trajectory(index).tolist(), start.tolist()))
    assert sorted(seen) == [(row, start) for row in range(8) for start in range(5)]


# ---------------------------------------------------------------------------------------------
# symmetries against the solver

def solution(name, u, n_frames):
    """What the solver makes of the first frame of u (B, T, X, 1), .05 s a frame."""
    return equations.entry(name).solution(u[:, 0], SMOOTH[name], np.arange(n_frames) * .05)


@pytest.mark.parametrize('name', ['burgers', 'burgers-old'])
@pytest.mark.parametrize('shift, sign, boost', [(0, 1, 0), (7, 1, 0), (-130, 1, 0), (0, -1, 0), (5, -1, 0),
                                                (0, 1, 3), (0, 1, -4), (11, -1, 2)])
def test_a_transformed_window_is_a_solution(solved, name, shift, sign, boost):
    w = windows_of(solved[name], time_stride=5, unroll=7)
    u = w.trajectories.gather(torch.tensor([3]), torch.tensor([0]), 8)
    drawn = torch.tensor([shift, sign, boost]).view(3, 1, 1)
    v = w.transform(u, *drawn, drawn[2].T.float() @ w.velocity)
    assert (solution(name, v, 8) - v).abs().max() < 1e-5 * (1 + abs(boost))
    first = u[0, 0, :, 0]
    if sign < 0:
        first = -first[-torch.arange(256) % 256]
    length = equations.entry(name).length[0]
    speed = boost * length / 256 / .05 / equations.entry(name).galilean
    assert torch.allclose(v[0, 0, :, 0], first.roll(shift) + speed, atol=1e-5)


@pytest.mark.parametrize('name', ['burgers', 'burgers-old'])
@pytest.mark.parametrize('moving', [False, True])
def test_drawn_windows_are_solutions(solved, name, moving):
    changes = {'time_stride': 5, 'unroll': 4, 'early_bias': 3.}
    w = windows_of(solved[name], moving, **changes, symmetries=True)
    index = torch.arange(12) * 3
    batch = batch_of(w, index, 2)
    u = physical(w, batch.u)
    assert (solution(name, u, 5) - u).abs().max() < 3e-5
    other = windows_of(solved[name], moving, **changes)
    plain = physical(other, batch_of(other, index, 2).u)
    turned = (u.mean((1, 2, 3)) * plain.mean((1, 2, 3))) < 0         # some are reflected, all are shifted
    assert turned.any() and not turned.all()
    assert ((u - plain).abs().amax((1, 2, 3)) > 1e-3).all()


def test_only_promised_symmetries_are_used(solved):
    """Advection is translated and not reflected."""
    changes = {'time_stride': 5, 'unroll': 4, 'early_bias': 3.}
    index = torch.arange(12) * 3
    w = windows_of(solved['advection'], **changes, symmetries=True)
    batch = batch_of(w, index, 2)
    u = physical(w, batch.u)
    assert (solution('advection', u, 5) - u).abs().max() < 1e-5
    none = batch_of(windows_of(solved['advection'], **changes), index, 2)
    assert not torch.allclose(none.u, batch.u, atol=.1)
    assert torch.allclose(none.u.sum(2), batch.u.sum(2), atol=1e-3)


PLACES_DIFFER = pytest.mark.parametrize('change', [{'boundary': 'wall'}, {'translation': False}], ids=str)


@PLACES_DIFFER
def test_where_places_differ_the_whole_domain_is_reflected(path, monkeypatch, change):
    """Nothing else is moved, and fields are left as they are where the points have no mirror image."""
    write(path, noise())
    know(monkeypatch, burgers=dataclasses.replace(equations.entry('burgers'), **change))
    plain = physical(windows_of(path), batch_of(windows_of(path)).u)
    w = windows_of(path, symmetries=True)
    found = physical(w, batch_of(w).u)
    reflected = [torch.allclose(u, -v.flip(1), atol=1e-5) for u, v in zip(found, plain)]
    as_they_are = [torch.allclose(u, v, atol=1e-5) for u, v in zip(found, plain)]
    assert sum(reflected) > 5 and sum(as_they_are) > 5
    assert sum(reflected) + sum(as_they_are) == len(found)
    strided = windows_of(path, symmetries=True, space_stride=2)
    assert torch.equal(batch_of(strided).u, batch_of(windows_of(path, space_stride=2)).u)
    assert 'token_shift=2' in refused(windows_of, path, model={'token_shift': 2})


def test_windows_of_the_forced_flow_are_solutions(path):
    """Whatever element of the force's own group is drawn."""
    params = {'Nu': .001}
    write_file(path, 'navier-stokes', params, 4, resolution=16)
    w = windows_of(path, symmetries=True, unroll=2, initial_step=4)
    plain = windows_of(path, unroll=2, initial_step=4)
    index = torch.arange(8)
    u = physical(w, batch_of(w, index).u)
    solved = equations.entry('navier-stokes').solution(u[:, 0], params, [0., 1., 2.])
    assert (solved - u).abs().max() < 1e-4 * u.abs().max()
    other = physical(plain, batch_of(plain, index).u)
    differ = [(a - b).abs().max() > .1 * b.abs().max() for a, b in zip(u, other)]
    assert sum(differ) > 5                                          # all but the identity


def test_points_of_the_forced_flow_move_along_the_diagonal(path):
    """Where the force is the same, with the tokens."""
    write_file(path, 'navier-stokes', {'Nu': .01}, 10, resolution=16)
    plain = batch_of(windows_of(path, unroll=2, symmetries=True))
    moved = batch_of(windows_of(path, unroll=2, symmetries=True, model={'token_shift': 3}))
    for k in range(3):
        assert torch.equal(moved.u[:, k], plain.u[:, k].roll((-3 * k, 3 * k), (1, 2)))


def test_axes_of_a_square_are_exchanged(path):
    write_file(path, 'darcy', {'beta': 1.}, 10, resolution=8)
    w = windows_of(path, symmetries=True, unroll=1)
    plain = windows_of(path, unroll=1)
    images = []
    for u, v in zip(physical(w, batch_of(w).u), physical(plain, batch_of(plain).u)):
        eight = [image.flip(dims) for image in (v, v.transpose(1, 2)) for dims in ((), (1,), (2,), (1, 2))]
        images.append([torch.allclose(u, image, atol=1e-5) for image in eight].index(True))
    assert max(images) > 3 and min(images) < 4


@pytest.mark.parametrize('resolution, turns', [(16, True), (18, False)])
def test_the_torus_is_turned_where_its_quarters_are_points(path, resolution, turns):
    write_file(path, 'navier-stokes', {'Nu': .01}, 10, resolution=resolution)
    assert windows_of(path, symmetries=True, unroll=2).can_turn is turns


def test_axes_of_what_is_no_square_are_not_exchanged(path, several, monkeypatch):
    write_flow(path)
    entry = dataclasses.replace(FLOW, mirror=False, boundary='wall', galilean=0.)
    know(monkeypatch, flow=entry)
    plain = batch_of(windows_of(path)).u
    know(monkeypatch, flow=dataclasses.replace(entry, symmetry=exchange_axes))
    assert torch.equal(batch_of(windows_of(path, symmetries=True)).u, plain)


def test_points_on_both_walls_are_refused(path):
    """A model would take them for centres of cells, and nothing could evaluate it."""
    write_file(path, 'darcy', {'beta': 1.}, 10, resolution=8)
    source = files.open_source(path, quiet=True)
    source = dataclasses.replace(source, x=(np.linspace(0, 1, 8),) * 2)
    assert 'cell centres' in refused(Trajectories, [source], keys_of(), CPU)


def test_a_pseudo_scalar_changes_its_sign_with_every_reflection(path, several, monkeypatch):
    know(monkeypatch, flow=dataclasses.replace(FLOW, pseudo=('rho',)))
    w = windows_of(write_flow(path))
    u = torch.ones(4, w.window, *FLOW_CELLS, 4)
    none = torch.zeros(2, 4, dtype=torch.long)
    sign = torch.tensor([[1, -1, 1, -1], [1, 1, -1, -1]])           # none, along x, along y, along both
    found = w.transform(u, none, sign, none, none.T.float() @ w.velocity)[:, 0, 0, 0]
    expected = [[1., 1., 1., 1.], [-1., -1., 1., 1.], [-1., 1., -1., 1.], [1., -1., -1., 1.]]
    assert found.tolist() == expected


def test_symmetries_of_2d_flow(path, several):
    """The velocity goes on to carry the density, whatever shifts and reflections are drawn."""
    w = windows_of(write_flow(path), unroll=4, symmetries=True)
    u = physical(w, batch_of(w, iteration=1).u)
    for row in u:
        velocity = row[0, 0, 0, 1:3] / torch.from_numpy(FLOW_CELL_A_STEP)
        cells = velocity.round().int().tolist()
        assert np.allclose(velocity, cells, atol=1e-3)
        for k in range(5):
            carried = row[0, ..., 0].roll([k * cells[0], k * cells[1]], (0, 1))
            assert torch.allclose(row[k, ..., 0], carried, atol=1e-5)
    plain = windows_of(path, unroll=4)
    assert torch.allclose(physical(plain, batch_of(plain).u)[..., 3], u[..., 3], atol=1e-5)


def test_axes_are_reflected_one_by_one(path, several):
    """And each velocity with its axis."""
    w = windows_of(write_flow(path), unroll=1)
    u = w.trajectories.gather(torch.arange(4), torch.zeros(4, dtype=torch.long), 2)
    none = torch.zeros(2, 4, dtype=torch.long)
    sign = torch.tensor([[1, -1, 1, -1], [1, 1, -1, -1]])
    x = -torch.arange(8) % 8
    y = -torch.arange(12) % 12
    images = [u[0], u[1][:, x], u[2][:, :, y], u[3][:, x][:, :, y]]
    for i, found in enumerate(w.transform(u, none, sign, none, none.T.float() @ w.velocity)):
        assert torch.equal(found, images[i] * torch.tensor([1., *sign[:, i], 1.]))
    drawn = list(w.batches(torch.arange(w.n_windows), 0))            # without symmetries, none is drawn
    assert torch.equal(drawn[0].u, batch_of(w, iteration=1).u)


def test_every_sample_is_transformed_by_itself(solved):
    w = windows_of(solved['burgers'], unroll=2)
    u = w.trajectories.gather(torch.arange(6), torch.arange(6), 3)
    drawn = torch.tensor([[1, 0, 7, 9, -3, 4], [1, -1, 1, -1, -1, 1], [0, 2, -1, 0, 3, 1]])[:, None]
    added = drawn[2].T.float() @ w.velocity
    together = w.transform(u, *drawn, added)
    for i in range(6):
        assert torch.equal(w.transform(u[i:i + 1], *drawn[..., i:i + 1], added[i:i + 1])[0], together[i])


# ---------------------------------------------------------------------------------------------
# the moving frame

@pytest.mark.parametrize('low, length, speed', [(0., 1., 1.), (-1., 2., 2.)])
def test_the_mean_flow_is_brought_to_rest(path, low, length, speed):
    """To half a cell a step, for either flux; the background says what was taken off."""
    u = noise(20, T=7, X=32)
    flow = np.random.default_rng(0).uniform(-9, 9, (20, 1, 1))
    u += flow - u.mean(2, keepdims=True)
    w = windows_of(write(path, u, .01, low), moving=True, unroll=2, symmetries=True)
    cell_a_step = length / 32 / w.model.cfg.dt
    batch = batch_of(w)
    left = physical(w, batch.u).mean((1, 2, 3))
    assert left.abs().max() <= .5 * cell_a_step / speed + 1e-5
    own = torch.from_numpy(flow[4:, 0, 0]).float()[w.trajectory(torch.arange(w.n_windows))]
    whole = left + (batch.background * w.model.std).flatten()
    assert torch.allclose(whole.abs(), own.abs(), atol=1e-3)
    turned = whole * own < 0
    assert turned.any() and not turned.all()                         # the flow turns with the reflection
    assert w.model.mean == 0. and batch.background.abs().max() > 0


def test_the_background_gives_the_whole_field_back(path):
    """At rest or not, u + background is the true field on points that move along."""
    u = noise(20, T=7, X=32) + np.random.default_rng(0).uniform(-30, 30, (20, 1, 1)).astype(np.float32)
    still = windows_of(write(path, u), unroll=3)
    there = batch_of(still)
    assert torch.allclose(physical(still, there.u), (there.u + there.background) * still.model.std, atol=1e-4)
    w = windows_of(path, moving=True, unroll=3)
    batch = batch_of(w)
    whole = (batch.u + batch.background) * w.model.std
    cells = (batch.background * w.model.std * w.model.cfg.dt * 32).flatten()         # a step of the frame
    assert torch.allclose(cells, cells.round(), atol=1e-3)
    assert cells.abs().max() > 1
    plain = physical(still, batch_of(still).u)
    for i, cell in enumerate(cells.round().int().tolist()):
        for k in range(4):
            assert torch.allclose(whole[i, k], plain[i, k].roll(-cell * k, 0), atol=1e-4)


def test_2d_flow_is_brought_to_rest(path, several):
    w = windows_of(write_flow(path), moving=True, unroll=4, symmetries=True)
    batch = batch_of(w)
    u = physical(w, batch.u)
    assert u[..., 1:3].abs().max() < 1e-5                            # it is whole cells per step
    assert (u[:, 1:, ..., 0] - u[:, :1, ..., 0]).abs().max() < 1e-5  # so the density rests, too
    background = (batch.background * w.model.std).flatten(1)
    cells = background[:, 1:3] / torch.from_numpy(FLOW_CELL_A_STEP)
    own = torch.from_numpy(w.trajectories.row_means[:, 1:3] / FLOW_CELL_A_STEP)
    own = own[w.trajectory(torch.arange(w.n_windows))]
    assert torch.allclose(cells.abs(), own.abs(), atol=1e-3)
    assert torch.allclose(background[:, [0, 3]], w.model.mean[[0, 3]])


# ---------------------------------------------------------------------------------------------
# tokens that move on

@pytest.mark.parametrize('memory_gb', [0., 100.])
def test_points_move_along_with_the_tokens(path, memory_gb):
    changes = {'unroll': 2, 'space_stride': 2, 'memory_gb': memory_gb, 'symmetries': True}
    write(path, noise(20, T=7, X=32))
    plain = batch_of(windows_of(path, moving=True, **changes))
    moved = batch_of(windows_of(path, moving=True, model={'token_shift': 3}, **changes))
    for k in range(3):
        assert torch.equal(moved.u[:, k], plain.u[:, k].roll(-3 * k, 1))
    assert torch.equal(moved.background, plain.background)


def test_points_move_along_both_axes(path, several):
    write_flow(path)
    plain = batch_of(windows_of(path, unroll=2, symmetries=True))
    moved = batch_of(windows_of(path, unroll=2, symmetries=True, model={'token_shift': 2}))
    for k in range(3):
        assert torch.equal(moved.u[:, k], plain.u[:, k].roll((-2 * k, -2 * k), (1, 2)))


# ---------------------------------------------------------------------------------------------
# several fields end to end

@pytest.mark.parametrize('make, moving, frame_ahead', [
    (write_pair, False, 0), (write_pair, True, 0), (write_flow, False, 0), (write_flow, True, 1)])
def test_several_fields_end_to_end(path, several, make, moving, frame_ahead):
    """An untrained model is persistence; in the frame of the flow, that solves what the flow carries."""
    learned = {'encoder_dim': 16, 'decoder_dim': 16}
    w = windows_of(make(path), moving, model=learned, symmetries=True, unroll=2)
    m = w.model
    names = ('latent', 'spectral', 'inverse_encoding', 'inverse_decoding')
    stage = OperatorStage(m, settings(**{f'lambda_{name}': 1. for name in names}))
    for batch in w.batches(torch.arange(8), 0, n_micro=2):
        loss, terms = stage(batch, 1.)
        assert terms.keys() == {'field', *names} and torch.isfinite(loss)
        loss.backward()
    assert all(p.grad is not None for p in m.parameters())
    val = w.trajectories.val
    u = m.decode(m.step(m.encode(val[:, 0])))
    assert u.shape == val[:, 0].shape
    for field in range(m.cfg.n_field):
        error = (u - val[:, frame_ahead])[..., field]
        assert error.abs().max() < 1e-3 * w.model.std[field]
    assert (val[:, 1] - val[:, 0])[..., 0].abs().max() > w.model.std[0]    # the true field does not stay


# ---------------------------------------------------------------------------------------------
# order of sampling

def test_sampler_visits_every_window_once_an_epoch():
    sampler = Sampler(24, 4, seed=1)
    epochs = []
    for epoch in range(3):
        batches = [sampler.next() for _ in range(6)]
        epochs.append(torch.cat(batches).tolist())
        assert sorted(epochs[-1]) == list(range(24))
        assert sampler.epoch == epoch + 1
    assert epochs[0] != epochs[1]
    assert epochs[1] != epochs[2]


@pytest.mark.parametrize('n, batch', [(24, 4), (25, 4), (3, 5), (1, 2)])
def test_sampler_resumes_from_two_integers(n, batch):
    sampler = Sampler(n, batch, seed=7)
    states = []
    drawn = []
    for _ in range(20):
        states.append(json.loads(json.dumps(sampler.state_dict())))
        ahead = sampler.peek()
        index = sampler.next()
        assert torch.equal(ahead, index) and index.shape == (batch,)
        assert 0 <= index.min() and index.max() < n
        drawn.append(index)
    again = Sampler(n, batch, seed=7)
    for start in (0, 3, 11, 5, 19, 6):                               # also back in time
        again.load_state_dict(states[start])
        assert all(torch.equal(again.next(), index) for index in drawn[start:])


def test_sampler_order_follows_the_seed():
    orders = [Sampler(50, 50, seed).next().tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1]
    assert orders[1] != orders[2]
