"""sample.py on tiny random models: where it starts, what it saves, which truth it takes, the pictures."""
import builtins
import dataclasses
import os
import shutil

import h5py
import numpy as np
import pytest
import torch
from matplotlib.image import imread

import pdes
import sample
from conftest import refused
from metrics import mean_nrmse
from model import load
from test_eval import save, tiny, waves, write

ADVECTION = dict(pde='advection', params=('beta',), seen_params=((.4,),))


@pytest.fixture(scope='session')
def runs(tmp_path_factory, burgers_file, advection_file):
    """{equation: (run folder, data file)}"""
    folder = tmp_path_factory.mktemp('sample')
    found = {}
    models = {'burgers': tiny(), 'advection': tiny(**ADVECTION)}
    files = {'burgers': burgers_file, 'advection': advection_file}
    for name, model in models.items():
        file = files[name]
        save(model, folder / name / 'best.pt', file, n=20)           # two test rows
        found[name] = str(folder / name), file
    return found


@pytest.fixture
def no_pictures(monkeypatch):
    """Drawing takes seconds, and is tested once."""
    monkeypatch.setattr(sample, 'draw', lambda *args: None)


def run(folder, *argv, out):
    """-> what was saved, by name"""
    sample.main(['--ckpt', str(folder), '--out', str(out), '--device', 'cpu', *map(str, argv)])
    with np.load(out / 'rollout.npz') as arrays:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def user_error(folder, *argv):
    return refused(sample.main, ['--ckpt', str(folder), '--device', 'cpu', *map(str, argv)])


def frames_of(file, row, stride=5):
    with h5py.File(file, 'r') as opened:
        return torch.from_numpy(opened['tensor'][row:row + 1, ::stride])[..., None]      # (1, T, X, 1)


# --- where it starts ---------------------------------------------------------

@pytest.mark.parametrize('name', ['burgers', 'advection'])
def test_a_test_trajectory(runs, no_pictures, tmp_path, capsys, name):
    folder, file = runs[name]
    a = run(folder, '--index', 1, out=tmp_path)
    u = frames_of(file, 1)
    m = load(folder)
    expected = m.rollout(u[:, 0, ::32], 40, points=m.grid(1024))
    assert torch.allclose(a['u'], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(a['truth'], u[:, 1:]) and torch.equal(a['u0'], u[:, 0, ::32])
    assert torch.equal(a['x'], m.grid(1024)[:, 0]) and a['t'].numpy() == pytest.approx(.05 * np.arange(1, 41))
    out = capsys.readouterr().out
    assert f'nRMSE {mean_nrmse(a["u"], a["truth"]):.4f}' in out
    assert f'test trajectory 1, {m.cfg.params[0]} {m.cfg.seen_params[0][0]}' in out
    assert 'the test split has 2 trajectories' in user_error(folder, '--index', 2)
    assert 'the test split has 2 trajectories' in user_error(folder, '--index', -1)


@pytest.mark.parametrize('name', ['burgers', 'advection'])
def test_a_random_start(runs, no_pictures, tmp_path, name):
    """It is drawn by the entry, from other seeds than data are; the solver gives the truth."""
    folder, _ = runs[name]
    a = run(folder, '--random', 3, '--steps', 4, out=tmp_path)
    entry = pdes.entry(name)
    u0 = torch.from_numpy(entry.initial(1, entry.cells, 3 + 10 ** 6, 0))[..., None]
    truth = entry.solution(u0, entry.params, .05 * np.arange(5))
    assert torch.allclose(a['u0'], u0[:, ::32].float())
    assert torch.allclose(a['truth'], truth[:, 1:].float(), atol=1e-4)
    assert a['u'].shape == (1, 4, 1024, 1)
    b = run(folder, '--random', 3, '--steps', 4, out=tmp_path)
    assert all(torch.equal(a[key], b[key]) for key in a)
    other = run(folder, '--random', 4, '--steps', 4, out=tmp_path)
    assert not torch.allclose(a['u0'], other['u0'])


@pytest.mark.parametrize('name', ['burgers', 'advection'])
def test_initial_conditions_of_a_file(runs, no_pictures, tmp_path, name):
    """Of more than one batch; the truth is that of the first, refined to the solver's cells."""
    folder, _ = runs[name]
    u0 = torch.from_numpy(waves(70, 1, 32)[:, 0, :, None]).float()
    np.save(tmp_path / 'u0.npy', u0.numpy())
    a = run(folder, '--initial', tmp_path / 'u0.npy', '--steps', 2, '--resolution', 64, out=tmp_path)
    m = load(folder)
    assert torch.allclose(a['u'], m.rollout(u0, 2, points=m.grid(64)), rtol=1e-4, atol=1e-5)
    assert a['truth'].shape == (1, 2, 64, 1)
    fine = torch.from_numpy(waves(1, 1, 1024)[:, 0, :, None])     # the first of the 70, on all cells
    entry = pdes.entry(name)
    expected = entry.solution(fine, entry.params, .05 * np.arange(3))
    assert (a['truth'] - expected[:, 1:, ::16]).abs().max() < .01


def test_layouts_of_initial_conditions(tmp_path):
    u0 = np.random.default_rng(0).standard_normal((2, 8, 1))
    np.save(tmp_path / 'one.npy', u0[0, :, 0])
    np.save(tmp_path / 'fields.npy', u0[0])
    np.save(tmp_path / 'all.npy', u0)
    with h5py.File(tmp_path / 'u0.h5', 'w') as file:
        file['u0'] = u0
    write(tmp_path / 'tensor.hdf5', np.stack([u0[..., 0], u0[..., 0] + 1], 1))
    for name, expected in (('one.npy', u0[:1]), ('fields.npy', u0[:1]), ('all.npy', u0), ('u0.h5', u0),
                           ('tensor.hdf5', u0)):
        assert np.array_equal(sample.read_initial(str(tmp_path / name), 1), expected.astype(np.float32)), name


def test_several_files_take_turns(no_pictures, tmp_path):
    """A parameter that is given picks its file."""
    files = {}
    for seed, nu in enumerate((.01, .1)):
        files[nu] = write(tmp_path / f'{nu}.hdf5', waves(20, 3, 64, seed), Nu=nu)
    ckpt = save(tiny(seen_params=((.01, .1),)), tmp_path / 'two.pt', *files.values(), n=20)
    for options, nu, row in ((('--index', 0), .01, 0), (('--index', 1), .1, 0), (('--index', 3), .1, 1),
                             (('--index', 1, '--nu', .1), .1, 1), (('--index', 1, '--nu', .01), .01, 1)):
        a = run(ckpt, *options, out=tmp_path)
        assert torch.equal(a['truth'], frames_of(files[nu], row, 1)[:, 1:]), options
    assert 'has 4 trajectories' in user_error(ckpt, '--index', 4)
    assert 'has 2 trajectories' in user_error(ckpt, '--index', 2, '--nu', .1)


def test_a_parameter_that_no_file_has(runs, no_pictures, tmp_path, capsys):
    """The start is the file's, the truth the solver's."""
    folder, file = runs['burgers']
    a = run(folder, '--nu', .05, '--steps', 3, out=tmp_path)
    u = frames_of(file, 0)
    truth = pdes.entry('burgers').solution(u[:, 0], {'Nu': .05}, .05 * np.arange(4))
    assert torch.allclose(a['truth'], truth[:, 1:].float(), atol=1e-6)
    assert (a['truth'] - u[:, 1:4]).abs().max() > 1e-3
    m = load(folder)
    expected = m.rollout(u[:, 0, ::32], 3, points=m.grid(1024), params={'Nu': torch.tensor(.05)})
    assert torch.allclose(a['u'], expected, rtol=1e-4, atol=1e-5)
    assert 'Nu=0.05 was never seen in training' in capsys.readouterr().out


def test_another_data_file(runs, no_pictures, tmp_path, capsys):
    folder, _ = runs['burgers']
    file = write(tmp_path / 'new.hdf5', waves(4, 3, 64))
    a = run(folder, '--data', file, '--index', 3, out=tmp_path)
    assert torch.equal(a['truth'], frames_of(file, 3, 1)[:, 1:])
    assert 'trajectory 3 of new.hdf5' in capsys.readouterr().out
    assert 'the file has 4 trajectories' in user_error(folder, '--data', file, '--index', 4)
    assert '--data is for --index' in user_error(folder, '--data', file, '--random', 4)


def test_two_input_frames(burgers_file, no_pictures, tmp_path):
    ckpt = save(tiny(input_frames=2), tmp_path / 'two.pt', burgers_file)
    a = run(ckpt, '--index', 0, out=tmp_path)
    u = frames_of(burgers_file, 0)
    m = load(ckpt)
    assert torch.allclose(a['u'], m.rollout(u[:, :2, ::32], 39, points=m.grid(1024)), rtol=1e-4, atol=1e-5)
    assert torch.equal(a['truth'], u[:, 2:]) and a['t'][0] == pytest.approx(.1)
    assert 'sees 2 frames' in user_error(ckpt, '--random', 1)


# --- where it looks ----------------------------------------------------------

def test_points_and_steps_beyond_the_file(runs, no_pictures, tmp_path):
    """The solver goes on where the file ends; points may be anywhere, and wrap."""
    folder, file = runs['burgers']
    a = run(folder, '--points', .1, .25, 1.1, '--steps', 41, out=tmp_path)
    assert a['u'].shape == a['truth'].shape == (1, 41, 3, 1)
    assert torch.allclose(a['u'][:, :, 0], a['u'][:, :, 2], atol=1e-4)
    u = frames_of(file, 0)[0, 1:, :, 0].double()                     # (40, 1024)
    x = (np.arange(1024) + .5) / 1024
    expected = np.stack([np.interp([.1, .25], x, frame) for frame in u.numpy()])
    assert np.abs(a['truth'][0, :40, :2, 0].numpy() - expected).max() < 1e-3


def test_formats_hold_the_same(runs, no_pictures, tmp_path):
    folder, _ = runs['burgers']
    a = run(folder, '--steps', 2, '--resolution', 100, '--rollout', 'reencode', out=tmp_path)
    sample.main(['--ckpt', folder, '--steps', '2', '--resolution', '100', '--rollout', 'reencode',
                 '--format', 'hdf5', '--out', str(tmp_path), '--device', 'cpu'])
    with h5py.File(tmp_path / 'rollout.hdf5', 'r') as file:
        assert set(file) == set(a) == {'u', 'x', 't', 'u0', 'truth'}
        assert all(np.array_equal(file[name][:], a[name].numpy()) for name in a)
    latent = run(folder, '--steps', 2, '--resolution', 100, out=tmp_path)
    assert (latent['u'][:, 1] - a['u'][:, 1]).abs().max() > 1e-4


def test_the_newest_of_several_runs(runs, no_pictures, tmp_path, capsys):
    for age, name in enumerate(('burgers', 'advection')):
        shutil.copytree(runs[name][0], tmp_path / 'out' / name)
        os.utime(tmp_path / 'out' / name / 'best.pt', (10 + age, 10 + age))
    run(tmp_path / 'out', '--random', 1, '--steps', 1, out=tmp_path)
    out = capsys.readouterr().out
    assert 'holds 2 runs' in out and os.path.join('advection', 'best.pt') in out and 'beta 0.4' in out


# --- pictures ----------------------------------------------------------------

def test_pictures(runs, tmp_path, capsys):
    run(runs['burgers'][0], '--steps', 3, out=tmp_path)
    assert (tmp_path / 'rollout.png').read_bytes()[:4] == b'\x89PNG'
    assert (tmp_path / 'rollout.gif').read_bytes()[:3] == b'GIF'
    assert '.png' in capsys.readouterr().out


def test_pictures_of_two_fields_without_truth(tmp_path):
    """Each has panels and a scale of its own."""
    x = np.arange(16) / 16
    u = np.random.default_rng(0).standard_normal((4, 16, 2)) * (1, 100)
    sample.draw(str(tmp_path), x, .1 * np.arange(4), u, None, ('u', 'v'), 'two', True)
    height, width, _ = imread(tmp_path / 'rollout.png').shape
    assert height > width
    assert (tmp_path / 'rollout.gif').exists()


def test_the_title():
    start = sample.Start(None, None, {'Nu': .01, 'beta': .4, 'M': 2.}, 'test trajectory 1', 40)
    expected = 'burgers ν = 0.01, β = 0.4, M = 2, test trajectory 1, latent 8 x 8'
    assert sample.title_of(tiny().cfg, start) == expected
    start.params = {}
    assert sample.title_of(tiny().cfg, start) == 'burgers, test trajectory 1, latent 8 x 8'


def test_without_matplotlib(runs, tmp_path, monkeypatch, capsys):
    original = builtins.__import__

    def without(name, *args, **options):
        if name.startswith('matplotlib'):
            raise ImportError(name)
        return original(name, *args, **options)
    monkeypatch.setattr(builtins, '__import__', without)
    run(runs['burgers'][0], '--steps', 1, out=tmp_path)
    assert 'no pictures' in capsys.readouterr().out
    assert not (tmp_path / 'rollout.png').exists()


# --- equations that have less, and user errors -------------------------------

def test_an_equation_without_solver_and_initial_conditions(runs, no_pictures, monkeypatch, tmp_path):
    folder, _ = runs['burgers']
    bare = dataclasses.replace(pdes.PDES['burgers'], solve=None, initial=None)
    monkeypatch.setitem(pdes.PDES, 'burgers', bare)
    assert 'no initial conditions of burgers' in user_error(folder, '--random', 1)
    assert 'truth' in run(folder, '--steps', 2, out=tmp_path)        # the file's
    a = run(folder, '--steps', 50, out=tmp_path)
    assert 'truth' not in a and a['u'].shape == (1, 50, 32, 1)


def test_user_errors(runs, tmp_path):
    folder, _ = runs['burgers']
    assert 'burgers has no parameter beta; it has nu' in user_error(folder, '--beta', .4)
    assert 'nu=-1.0 must be a positive' in user_error(folder, '--nu', -1)
    assert '--steps 0 must be positive' in user_error(folder, '--steps', 0)
    assert '--resolution -3 must be positive' in user_error(folder, '--resolution', -3)
    assert '--random -1' in user_error(folder, '--random', -1)
    assert 'no checkpoint' in user_error(tmp_path / 'nothing')
    assert 'no initial condition' in user_error(folder, '--initial', tmp_path / 'nothing.npy')
    (tmp_path / 'text.npy').write_text('no array')
    assert 'cannot read' in user_error(folder, '--initial', tmp_path / 'text.npy')
    (tmp_path / 'empty.npy').touch()
    assert 'cannot read' in user_error(folder, '--initial', tmp_path / 'empty.npy')
    np.save(tmp_path / 'nan.npy', np.full(32, np.nan))
    assert 'expected finite numbers of shape' in user_error(folder, '--initial', tmp_path / 'nan.npy')
    np.save(tmp_path / 'wide.npy', np.zeros((1, 32, 3)))
    assert 'found float64 (1, 32, 3)' in user_error(folder, '--initial', tmp_path / 'wide.npy')
    (tmp_path / 'text.csv').write_text('1, 2')
    assert 'expected a .npy, .h5 or .hdf5' in user_error(folder, '--initial', tmp_path / 'text.csv')
    with h5py.File(tmp_path / 'other.h5', 'w') as file:
        file['v'] = 1
    assert "expected 'u0' or 'tensor'" in user_error(folder, '--initial', tmp_path / 'other.h5')
    assert 'choose another --out' in user_error(folder, '--steps', 1, '--out', tmp_path / 'text.csv')


def test_two_axes_are_refused(burgers_file, tmp_path):
    model = tiny(grid=(8, 8), low=(0., 0.), length=(1., 1.), first=(0., 0.), token_grid=(4, 4), patch_size=2,
                 halo=1)
    assert '1D models only' in user_error(save(model, tmp_path / 'plane.pt', burgers_file))
