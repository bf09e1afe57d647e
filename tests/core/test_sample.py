"""sample.py on tiny random models: where it starts, where it decodes, which truth it takes, what it saves."""
import dataclasses
import os
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch

import equations
import sample
from conftest import ENV, ROOT, add_equation, close, save, tiny, waves, write
from evaluation.starts import SEED
from files.write import write_file
from metrics import field_nrmse, mean_nrmse
from model import load
from runtime.configurator import UserError
from runtime.inputs import resample
from sampled import configured, no_pictures, plane, run, user_error

BOTH = pytest.mark.parametrize('name', ['burgers', 'advection'])
pytestmark = pytest.mark.usefixtures(no_pictures.__name__)


@pytest.fixture(scope='session')
def runs(tmp_path_factory, burgers_file, advection_file):
    """{equation: (checkpoint, data file)}, with two test trajectories of 1024 cells; a model sees 32."""
    folder = tmp_path_factory.mktemp('sample')
    models = {'burgers': (tiny(), burgers_file),
              'advection': (tiny(pde='advection', params=('beta',), seen_params=((.4,),)), advection_file)}
    found = {}
    for name, (model, file) in models.items():
        path = save(model, folder / name / 'best.pt', file, n=20)
        found[name] = configured(path, space_stride=32), file
    return found


def frames_of(file, row, stride=5):
    with h5py.File(file, 'r') as opened:
        return torch.from_numpy(opened['tensor'][row:row + 1, ::stride])[..., None]      # (1, T, X, 1)


# ---------------------------------------------------------------------------------------------
# where it starts

@BOTH
def test_a_test_trajectory(runs, tmp_path, capsys, name):
    ckpt, file = runs[name]
    a = run(ckpt, '--index', 1, out=tmp_path)
    u = frames_of(file, 1)
    m = load(ckpt)
    close(a['u'], m.rollout(u[:, 0, ::32], 40, points=m.grid(1024)))
    assert torch.equal(a['truth'], u[:, 1:]) and torch.equal(a['u0'], u[:, 0, ::32])
    assert torch.equal(a['x'].float(), m.grid(1024)[:, 0])
    assert a['t'].numpy() == pytest.approx(.05 * np.arange(1, 41))
    assert f'nRMSE {mean_nrmse(a["u"], a["truth"]):.4f}' in capsys.readouterr().out
    for index in (2, -1):
        assert 'from 0 to 1' in user_error(ckpt, '--index', index)


@BOTH
def test_a_random_start(runs, tmp_path, name):
    """The entry draws it with a seed that no data have. The solver gives the truth."""
    ckpt, _ = runs[name]
    a = run(ckpt, '--random', 3, '--steps', 4, out=tmp_path)
    entry = equations.entry(name)
    u0 = entry.start(1, entry.cells, 3 + SEED)
    close(a['u0'], u0[:, ::32].float())
    close(a['truth'], entry.solution(u0, entry.params, .05 * np.arange(5))[:, 1:].float(), 1e-4)
    assert a['u'].shape == (1, 4, 1024, 1)
    b = run(ckpt, '--random', 3, '--steps', 4, out=tmp_path)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.allclose(a['u0'], run(ckpt, '--random', 4, '--steps', 4, out=tmp_path)['u0'])


@BOTH
def test_initial_conditions_of_a_file(runs, tmp_path, name):
    """More than one batch. The truth is that of the first, on the solver's cells."""
    ckpt, _ = runs[name]
    u0 = torch.from_numpy(waves(70, 1, 32)[:, 0, :, None]).float()
    np.save(tmp_path / 'u0.npy', u0.numpy())
    a = run(ckpt, '--initial', tmp_path / 'u0.npy', '--steps', 2, '--resolution', 64, out=tmp_path)
    m = load(ckpt)
    close(a['u'], m.rollout(u0, 2, points=m.grid(64)))
    fine = torch.from_numpy(waves(1, 1, 1024)[:, 0, :, None])        # the first of the 70, on all cells
    entry = equations.entry(name)
    truth = entry.solution(fine, entry.params, .05 * np.arange(3))
    close(a['truth'].double(), truth[:, 1:, ::16], .01)


def test_several_files_take_turns(tmp_path):
    """A parameter chooses its file."""
    files = {}
    for seed, nu in enumerate((.01, .1)):
        files[nu] = write(tmp_path / f'{nu}.hdf5', waves(20, 3, 64, seed), Nu=nu)
    ckpt = save(tiny(seen_params=((.01, .1),)), tmp_path / 'two.pt', *files.values(), n=20)
    for options, nu, row in ((('--index', 0), .01, 0), (('--index', 1), .1, 0), (('--index', 3), .1, 1),
                             (('--index', 1, '--nu', .1), .1, 1), (('--index', 1, '--nu', .01), .01, 1)):
        a = run(ckpt, *options, out=tmp_path)
        assert torch.equal(a['truth'], frames_of(files[nu], row, 1)[:, 1:]), options
    assert 'from 0 to 3' in user_error(ckpt, '--index', 4)
    assert 'from 0 to 1' in user_error(ckpt, '--index', 2, '--nu', .1)


def test_a_parameter_that_no_file_has(runs, tmp_path, capsys):
    """The start is the file's, the truth the solver's."""
    ckpt, file = runs['burgers']
    a = run(ckpt, '--nu', .05, '--steps', 3, out=tmp_path)
    u = frames_of(file, 0)
    truth = equations.entry('burgers').solution(u[:, 0], {'Nu': .05}, .05 * np.arange(4))
    close(a['truth'], truth[:, 1:].float())
    assert (a['truth'] - u[:, 1:4]).abs().max() > 1e-3
    m = load(ckpt)
    close(a['u'], m.rollout(u[:, 0, ::32], 3, points=m.grid(1024), params={'Nu': torch.tensor(.05)}))
    assert 'Nu=0.05 was never seen in training' in capsys.readouterr().out


def test_another_data_file(runs, tmp_path):
    ckpt, _ = runs['burgers']
    file = write(tmp_path / 'new.hdf5', waves(4, 3, 64))
    a = run(ckpt, '--data', file, '--index', 3, out=tmp_path)
    assert torch.equal(a['truth'], frames_of(file, 3, 1)[:, 1:])
    assert 'from 0 to 3' in user_error(ckpt, '--data', file, '--index', 4)


def test_a_model_that_was_trained_from_a_later_frame(runs, burgers_file, tmp_path):
    """It starts there. The solver computes frames that no file has, always from frame 0."""
    entry = equations.entry('burgers')
    late = configured(shutil.copy(runs['burgers'][0], tmp_path / 'late.pt'), initial_step=5)
    solved = entry.solution(entry.start(1, entry.cells, 3 + SEED), entry.params, .05 * np.arange(8)).float()
    a = run(late, '--random', 3, '--steps', 3, out=tmp_path)
    close(a['u0'], solved[:, 4, ::32], 1e-4)
    close(a['truth'], solved[:, 5:], 1e-4)
    assert a['t'].numpy() == pytest.approx([.25, .3, .35])
    u = frames_of(burgers_file, 0)
    a = run(late, '--index', 0, '--steps', 38, out=tmp_path)         # two more than the file has
    assert torch.equal(a['u0'], u[:, 4, ::32]) and a['truth'].shape[1] == 38
    close(a['truth'][:, :36], u[:, 5:], 1e-3)
    a = run(late, '--index', 0, '--steps', 3, '--nu', .1, out=tmp_path)
    solved = entry.solution(u[:, 0], {'Nu': .1}, .05 * np.arange(8)).float()
    close(a['u0'], solved[:, 4, ::32], 1e-4)
    close(a['truth'], solved[:, 5:], 1e-4)


def test_the_newest_of_several_runs(runs, tmp_path, capsys):
    for age, name in enumerate(('burgers', 'advection')):
        shutil.copytree(os.path.dirname(runs[name][0]), tmp_path / 'out' / name)
        os.utime(tmp_path / 'out' / name / 'best.pt', (10 + age, 10 + age))
    run(tmp_path / 'out', '--random', 1, '--steps', 1, out=tmp_path)
    assert os.path.join('advection', 'best.pt') in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------
# what it saves

def test_points_and_steps_beyond_the_file(runs, tmp_path):
    """The solver goes on where the file ends. Points may lie anywhere, and wrap."""
    ckpt, file = runs['burgers']
    a = run(ckpt, '--points', .1, .25, 1.1, '--steps', 41, out=tmp_path)
    assert a['u'].shape == a['truth'].shape == (1, 41, 3, 1)
    close(a['u'][:, :, 0], a['u'][:, :, 2], 1e-4)
    u = frames_of(file, 0)[0, 1:, :, 0].double()                     # (40, 1024)
    x = (np.arange(1024) + .5) / 1024
    expected = np.stack([np.interp([.1, .25], x, frame) for frame in u.numpy()])
    assert np.abs(a['truth'][0, :40, :2, 0].numpy() - expected).max() < 1e-3


def test_formats_hold_the_same(runs, tmp_path):
    ckpt, _ = runs['burgers']
    argv = ['--steps', 2, '--resolution', 100]
    a = run(ckpt, *argv, '--rollout', 'reencode', out=tmp_path)
    latent = run(ckpt, *argv, out=tmp_path)
    assert (latent['u'][:, 1] - a['u'][:, 1]).abs().max() > 1e-4
    run(ckpt, *argv, '--rollout', 'reencode', '--format', 'hdf5', out=tmp_path)
    with h5py.File(tmp_path / 'rollout.hdf5', 'r') as file:
        assert set(file) == set(a) == {'u', 'x', 't', 'u0', 'truth'}
        assert all(np.array_equal(file[name][:], a[name].numpy()) for name in a)


def test_tokens_of_a_rollout(runs, no_pictures, tmp_path):
    ckpt, file = runs['burgers']
    a = run(ckpt, '--steps', 3, '--tokens', out=tmp_path)
    m = load(ckpt)
    z = m.encode(frames_of(file, 0)[:, 0, ::32])
    expected = [z.tokens]
    for _ in range(3):
        z = m.step(z)
        expected.append(z.tokens)
    close(a['tokens'], torch.cat(expected))                          # (4, 8, 8)
    assert [name for name, _ in no_pictures] == ['draw_tokens', 'draw']


def test_an_equation_without_solver_and_initial_conditions(runs, monkeypatch, tmp_path):
    ckpt, _ = runs['burgers']
    bare = dataclasses.replace(equations.entry('burgers'), solve=None, initial=None)
    add_equation(monkeypatch, 'burgers', bare)
    assert '--random' in user_error(ckpt, '--random', 1)
    assert 'truth' in run(ckpt, '--steps', 2, out=tmp_path)          # the file's
    a = run(ckpt, '--steps', 50, out=tmp_path)
    assert 'truth' not in a and a['u'].shape == (1, 50, 32, 1)
    late = configured(shutil.copy(ckpt, tmp_path / 'late.pt'), initial_step=5)
    assert 'frame 4' in user_error(late, '--nu', .1)


@pytest.mark.parametrize('word, argv', [
    ('no parameter beta', ('--beta', .4)), ('nu=-1.0', ('--nu', -1)), ('--steps 0', ('--steps', 0)),
    ('--resolution -3', ('--resolution', -3)), ('--random -1', ('--random', -1)),
    ('--data', ('--data', 'x.hdf5', '--random', 4)), ('draws no noise', ('--n_members', 4)),
    ('--tokens', ('--tokens', '--rollout', 'reencode')), ('n_members', ('--members', 4)),
    ("stage 'ensemble'", ('--stepper', 'ensemble')), ('--out', ('--steps', 1, '--out', __file__))])
def test_what_is_refused(runs, word, argv):
    assert word in user_error(runs['burgers'][0], *argv)


def test_the_output_is_checked_before_any_work(runs, tmp_path, monkeypatch):
    ckpt, file = runs['burgers']
    monkeypatch.setattr(sample, 'make_start', None)
    (tmp_path / 'rollout.npz').mkdir()
    refusals = {file: 'is a file', '/proc/x': 'cannot be written', '': 'empty', tmp_path: 'is a folder'}
    for out, word in refusals.items():
        assert word in user_error(ckpt, '--steps', 1, '--out', out)


def test_times_are_those_of_the_file(runs, tmp_path):
    ckpt, file = runs['burgers']
    late = shutil.copy(file, tmp_path / 'late.hdf5')
    with h5py.File(late, 'r+') as f:
        f['t-coordinate'][...] = f['t-coordinate'][:] + 5
    assert run(ckpt, '--data', late, '--steps', 2, out=tmp_path)['t'].tolist() == pytest.approx([5.05, 5.1])


@pytest.mark.slow
def test_no_extension_is_imported(runs, tmp_path):
    """A rollout by the operator needs none of these folders."""
    code = ('import sys, sample; sample.main(sys.argv[1:]); '
            "print({'probabilistic', 'points', 'physics', 'peers'} & {*sys.modules})")
    argv = ['--ckpt', runs['burgers'][0], '--steps', '1', '--points', '.5', '--out', str(tmp_path)]
    command = [sys.executable, '-c', code, *argv]
    done = subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True)
    assert done.stdout.endswith('\nset()\n'), done.stdout + done.stderr


# ---------------------------------------------------------------------------------------------
# two axes

def walled(pde, file, **changes):
    """A tiny model of two fields between walls, on all cells of a file."""
    entry = equations.entry(pde)
    with h5py.File(file, 'r') as opened:
        x = opened['x-coordinate' if 'x-coordinate' in opened else '0000/grid/x'][:]
    return plane((len(x),) * 2, pde=pde, fields=entry.fields, params=tuple(entry.params), boundary='wall',
                 seen_params=tuple((value,) for value in entry.params.values()), low=entry.low,
                 length=entry.length, first=(float(x[0]),) * 2, **changes)


def lopsided(x, y):
    """A smooth periodic field that changes when x and y do."""
    return np.sin(2 * np.pi * x) + .5 * np.cos(4 * np.pi * y)


@pytest.fixture(scope='session')
def square(tmp_path_factory):
    """(checkpoint, data file, its fields (N, T, X, Y, 1)) on more points along x than along y."""
    folder = tmp_path_factory.mktemp('square')
    x = (np.arange(64) + .5)[:, None] / 64
    y = (np.arange(32) + .5) / 32
    shift = .01 * np.arange(10)[:, None, None, None] + .02 * np.arange(4)[:, None, None]
    u = lopsided(x + shift, y)
    file = write(folder / 'plane.hdf5', u, dt=1., Nu=1e-4)
    model = plane((16, 8), first=(1 / 128, 1 / 64))
    return save(model, folder / 'best.pt', file), file, torch.from_numpy(u).float()[..., None]


def test_a_test_trajectory_of_two_axes(square, tmp_path):
    """Arrays are [x, y]: the truth is the file's, the prediction is on the same points."""
    ckpt, file, u = square
    a = run(ckpt, out=tmp_path)                                      # row 9: the last tenth is the test split
    m = load(ckpt)
    expected = m.rollout(u[9:, 0, ::4, ::4], 3, points=m.grid(64, 32))
    close(a['u'], expected.unflatten(2, (64, 32)))
    assert torch.equal(a['truth'], u[9:, 1:]) and torch.equal(a['u0'], u[9:, 0, ::4, ::4])
    grid = m.grid(64, 32).view(64, 32, 2)
    assert torch.equal(a['x'].float(), grid[:, 0, 0]) and torch.equal(a['y'].float(), grid[0, :, 1])
    a = run(ckpt, '--resolution', 16, '--steps', 1, out=tmp_path)
    assert a['u'].shape == a['truth'].shape == (1, 1, 16, 16, 1)
    exact = lopsided(.11 + a['x'][:, None].numpy(), a['y'].numpy())  # row 9, frame 1
    assert np.abs(a['truth'][0, 0, ..., 0].numpy() - exact).max() < 2e-3


def test_points_of_two_axes(square, tmp_path):
    """Points of the grid have its values; others are interpolated, and wrap."""
    ckpt, file, u = square
    grid = run(ckpt, out=tmp_path)
    i = [3, 50, 63]
    j = [30, 0, 7]
    q = torch.stack([grid['x'][i], grid['y'][j]], 1).float()
    a = run(ckpt, '--points', *q.flatten().tolist(), out=tmp_path)
    assert torch.equal(a['points'], q) and set(a) == {'u', 'points', 't', 'u0', 'truth'}
    close(a['u'], grid['u'][:, :, i, j])
    close(a['truth'], grid['truth'][:, :, i, j])
    a = run(ckpt, '--points', .1, .37, 1.1, .37, '--steps', 2, out=tmp_path)
    close(a['u'][:, :, 0], a['u'][:, :, 1])
    exact = lopsided(.1 + .09 + .02 * np.array([1, 2]), .37)
    assert np.abs(a['truth'][0, :, :, 0].numpy() - exact[:, None]).max() < 2e-3
    assert 'pairs' in user_error(ckpt, '--points', .1, .2, .3)


def change(monkeypatch, name, **changes):
    """Change the entry of an equation, such as the number of the solver's cells. -> the entry"""
    entry = dataclasses.replace(equations.entry(name), **changes)
    add_equation(monkeypatch, name, entry)
    return entry


def test_a_random_start_of_two_axes(square, monkeypatch, tmp_path):
    """Drawn on the cells of the data. Where a force acts, it is interpolated to the points of the model."""
    entry = change(monkeypatch, 'navier-stokes', cells=(32, 32))
    ckpt = configured(save(plane(), tmp_path / 'best.pt', square[1]), space_stride=4)
    a = run(ckpt, '--random', 3, '--steps', 2, out=tmp_path)
    u0 = entry.start(1, (32, 32), 3 + SEED)
    truth = entry.solution(u0, {'Nu': 1e-4}, [0., 1., 2.]).float()
    close(a['u0'], u0[:, ::4, ::4].float())
    close(a['truth'], truth[:, 1:])
    configured(ckpt, space_stride=2)                                 # now the data have 16
    a = run(ckpt, '--random', 3, '--steps', 2, out=tmp_path)
    coarse = entry.start(1, (16, 16), 3 + SEED)[0, ..., 0].float()
    middle = (torch.arange(16) + .5) / 16
    x = 1 / 64 + torch.arange(8) / 8
    close(a['u0'][0, ..., 0], resample(resample(coarse, middle, x, 1.).T, middle, x, 1.).T)


def test_initial_conditions_of_two_axes(square, monkeypatch, tmp_path):
    entry = change(monkeypatch, 'navier-stokes', cells=(16, 16))
    ckpt = save(plane(first=(1 / 32, 1 / 32)), tmp_path / 'best.pt', square[1])
    x = (np.arange(16) + .5)[:, None] / 16
    u0 = lopsided(x, x.T) - lopsided(x, x.T).mean()
    np.save(tmp_path / 'u0.npy', np.stack([u0, u0.T, u0])[..., None])
    monkeypatch.setattr(sample, 'POINTS', 16 ** 2)                   # one trajectory at a time
    a = run(ckpt, '--initial', tmp_path / 'u0.npy', '--steps', 1, out=tmp_path)
    m = load(ckpt)
    expected = m.rollout(torch.from_numpy(np.load(tmp_path / 'u0.npy')).float(), 1)
    close(a['u'], expected)
    assert not torch.allclose(expected[0], expected[1], atol=.1) and a['u0'].shape == (3, 8, 8, 1)
    truth = entry.solution(torch.from_numpy(u0)[None, ..., None], {'Nu': 1e-4}, [0., 1.])
    close(a['truth'], truth[:, 1:].float())


def test_the_solver_sees_the_field_where_it_is(monkeypatch, tmp_path, capsys):
    """Between walls the solver's cells have centres of their own. The truth of a solver that changes nothing
    is the field again. One that refuses it stops no rollout. (Interpolation is exact on these fields.)"""
    file = write_file(str(tmp_path / 'walls.h5'), 'diffusion-reaction', {}, 3, resolution=8, device='cpu')
    ckpt = save(walled('diffusion-reaction', file, dt=.25), tmp_path / 'best.pt', file, n=3)
    seen = []

    def stays(u0, t):
        seen.append(u0[0].numpy())
        return u0.double()[:, None].expand(-1, len(t), -1, -1, -1)

    def refuses(u0, t):
        raise UserError('it is too rough')

    def fields(n):
        x = (np.arange(n) + .5)[:, None] * 2 / n - 1                 # centres of n cells
        return x, np.stack([2 * x - 3 * x.T, x + x.T ** 2], -1)      # (X, Y, 2)

    change(monkeypatch, 'diffusion-reaction', cells=(16, 16), solve=stays)
    x, u0 = fields(8)
    np.save(tmp_path / 'u0.npy', u0)
    a = run(ckpt, '--initial', tmp_path / 'u0.npy', '--steps', 2, '--resolution', 8, out=tmp_path)
    inner = slice(4, -4)                                             # away from the walls
    assert np.abs(seen[0] - fields(16)[1])[inner, inner].max() < 1e-5
    assert np.abs(a['truth'][0, 1].numpy() - u0)[2:-2, 2:-2].max() < 1e-5
    assert torch.equal(a['x'], a['y']) and np.allclose(a['x'], x[:, 0])
    scores = field_nrmse(a['u'], a['truth'])
    assert f'u {scores[0]:.4f}, v {scores[1]:.4f}' in capsys.readouterr().out
    change(monkeypatch, 'diffusion-reaction', solve=refuses)
    assert 'truth' not in run(ckpt, '--initial', tmp_path / 'u0.npy', '--steps', 2, out=tmp_path)
    assert 'it is too rough' in capsys.readouterr().out


def test_a_steady_equation(monkeypatch, tmp_path, capsys):
    """One step, from (a, 0) to (a, u). An initial condition may be the coefficient alone."""
    file = write_file(str(tmp_path / 'darcy.hdf5'), 'darcy', {'beta': 1.}, 10, resolution=16, device='cpu')
    ckpt = save(walled('darcy', file, dt=1., static=(0,)), tmp_path / 'best.pt', file)
    configured(ckpt, space_stride=1)
    entry = change(monkeypatch, 'darcy', cells=(16, 16))
    with h5py.File(file, 'r') as opened:
        coefficient = torch.from_numpy(opened['nu'][0])
        solution = torch.from_numpy(opened['tensor'][0, 0])
    a = run(ckpt, out=tmp_path)
    assert torch.equal(a['truth'][0, 0], torch.stack([coefficient, solution], -1))
    assert a['u'].shape == (1, 1, 16, 16, 2)
    own = mean_nrmse(a['u'][..., 1:], a['truth'][..., 1:])           # a is not predicted
    assert f'nRMSE {own:.4f} of' in capsys.readouterr().out
    np.save(tmp_path / 'a.npy', coefficient)
    for source in ('a.npy', 'darcy.hdf5'):
        b = run(ckpt, '--initial', tmp_path / source, out=tmp_path)
        close(b['u'][:1], a['u'])
        close(b['truth'], a['truth'])
    c = run(ckpt, '--random', 4, '--steps', 1, out=tmp_path)
    u0 = entry.start(1, (16, 16), 4 + SEED)
    close(c['u0'], u0.float())
    close(c['truth'], entry.solution(u0, {'beta': 1.}, [0., 1.])[:, 1:].float())
    change(monkeypatch, 'darcy', cells=(32, 32))                     # a finer coefficient is positive, too
    np.save(tmp_path / 'stripes.npy', np.where(np.arange(16) % 8 < 4, .01, 1.) * np.ones((16, 1)))
    assert 'truth' in run(ckpt, '--initial', tmp_path / 'stripes.npy', out=tmp_path)
    assert 'no time' in user_error(ckpt, '--steps', 2)
