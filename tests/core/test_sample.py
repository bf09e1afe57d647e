"""sample.py on tiny random models: where it starts, what it saves, which truth it takes, the pictures."""
import builtins
import dataclasses
import os
import shutil
import warnings

import h5py
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.image import imread
from PIL import Image

import pdes
import sample
from conftest import refused, save, tiny, waves, write
from files import write_file
from grids import resample
from metrics import field_nrmse, mean_nrmse
from model import load
from pictures import colour_scale, draw, draw_map, draw_tokens
from runtime.checkpoint import load_checkpoint, save_checkpoint
from runtime.configurator import UserError

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
    monkeypatch.setattr(sample, 'draw_tokens', lambda *args: None)


def run(folder, *argv, out):
    """-> what was saved, by name"""
    sample.main(['--ckpt', str(folder), '--out', str(out), '--device', 'cpu', *map(str, argv)])
    with np.load(out / 'rollout.npz') as arrays:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def user_error(folder, *argv):
    return refused(sample.main, ['--ckpt', str(folder), '--device', 'cpu', *map(str, argv)])


def configured(path, **keys):
    """A checkpoint whose run had these keys. -> path"""
    state = load_checkpoint(str(path))
    state['config'].update(keys)
    save_checkpoint(str(path), state)
    return path


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
    np.save(tmp_path / 'u0.npy', np.zeros(32))
    assert 'sees 2 frames' in user_error(ckpt, '--initial', tmp_path / 'u0.npy')


def test_frames_before_the_given_one_of_a_random_start(runs, burgers_file, no_pictures, tmp_path):
    """The solver computes them; and a model that was trained from a later frame starts there."""
    entry = pdes.entry('burgers')
    u0 = entry.start(1, entry.cells, 3 + 10 ** 6)
    u = entry.solution(u0, entry.params, .05 * np.arange(8)).float()
    two = save(tiny(input_frames=2), tmp_path / 'two.pt', burgers_file)
    a = run(two, '--random', 3, '--steps', 3, out=tmp_path)
    assert torch.allclose(a['u0'], u[:, :2, ::32], atol=1e-4)
    assert torch.allclose(a['truth'], u[:, 2:5], atol=1e-4)
    late = configured(shutil.copy(os.path.join(runs['burgers'][0], 'best.pt'), tmp_path / 'late.pt'),
                      initial_step=5)
    a = run(late, '--random', 3, '--steps', 3, out=tmp_path)
    assert torch.allclose(a['u0'], u[:, 4, ::32], atol=1e-4)
    assert torch.allclose(a['truth'], u[:, 5:], atol=1e-4) and a['t'].numpy() == pytest.approx([.25, .3, .35])
    a = run(late, '--index', 0, '--steps', 3, out=tmp_path)
    u = frames_of(burgers_file, 0)
    assert torch.equal(a['u0'], u[:, 4, ::32]) and torch.equal(a['truth'], u[:, 5:8])
    a = run(late, '--index', 0, '--steps', 38, out=tmp_path)         # two more than the file has
    assert a['truth'].shape[1] == 38 and torch.allclose(a['truth'][:, :36], u[:, 5:], atol=1e-3)
    a = run(late, '--index', 0, '--steps', 3, '--nu', .1, out=tmp_path)
    solved = entry.solution(u[:, 0], {'Nu': .1}, .05 * np.arange(8)).float()
    assert torch.allclose(a['u0'], solved[:, 4, ::32], atol=1e-4)
    assert torch.allclose(a['truth'], solved[:, 5:], atol=1e-4)


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
    draw(str(tmp_path), [x], .1 * np.arange(4), u, None, ('u', 'v'), 'two', True)
    height, width, _ = imread(tmp_path / 'rollout.png').shape
    assert height > width
    assert (tmp_path / 'rollout.gif').exists()


def test_the_title():
    start = sample.Start(None, None, None, {'Nu': .01, 'beta': .4, 'M': 2.}, 'test trajectory 1', 40)
    expected = 'burgers ν = 0.01, β = 0.4, M = 2, test trajectory 1, latent 8 x 8'
    assert sample.title_of(tiny().cfg, start) == expected
    start.params = {}
    assert sample.title_of(tiny().cfg, start) == 'burgers, test trajectory 1, latent 8 x 8'
    assert sample.title_of(plane().cfg, start) == 'navier-stokes, test trajectory 1, latent 4 x 4 x 8'


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


# --- tokens ------------------------------------------------------------------

def test_principal_components():
    """Tokens (T, S, D) that vary along two oblique directions only, 16 to 9, about a mean."""
    x = np.arange(24).reshape(4, 6) * 2 * np.pi / 24
    first = np.array([3., 4., 0.]) / 5
    second = np.array([4., -3., 0.]) / 5
    tokens = 7 + 4 * np.cos(x)[..., None] * first - 3 * np.sin(x)[..., None] * second
    values, fractions = sample.principal_components(torch.from_numpy(tokens).float(), 3)
    assert fractions.numpy() == pytest.approx([16 / 25, 9 / 25, 0], abs=1e-6)
    assert np.abs(np.abs(values[..., 0].numpy()) - np.abs(4 * np.cos(x))).max() < 1e-5
    assert np.abs(np.abs(values[..., 1].numpy()) - np.abs(3 * np.sin(x))).max() < 1e-5
    lopsided, _ = sample.principal_components(-torch.from_numpy(np.exp(np.cos(x)))[..., None], 1)
    assert lopsided.max() > -lopsided.min()                          # whatever sign the directions have
    same, fractions = sample.principal_components(torch.ones(2, 3, 4), 3)
    assert not same.any() and not fractions.any()


def test_tokens_of_a_rollout(runs, no_pictures, monkeypatch, tmp_path):
    folder, file = runs['burgers']
    drawn = []
    monkeypatch.setattr(sample, 'draw_tokens', lambda *args: drawn.append(args))
    a = run(folder, '--steps', 3, '--tokens', out=tmp_path)
    m = load(folder)
    z = m.encode(frames_of(file, 0)[:, 0, ::32])
    expected = [z.tokens]
    for _ in range(3):
        z = m.step(z)
        expected.append(z.tokens)
    assert torch.allclose(a['tokens'], torch.cat(expected), rtol=1e-4, atol=1e-5)    # (4, 8, 8)
    [(path, t, components, fractions, title)] = drawn
    assert path == str(tmp_path / 'tokens.png') and components.shape == (4, 8, 3) and len(t) == 4
    assert 1 >= fractions[0] >= fractions[1] >= fractions[2] >= 0 and title.startswith('burgers')
    assert 'leave --rollout reencode out' in user_error(folder, '--tokens', '--rollout', 'reencode')


@pytest.mark.parametrize('shape', [(4, 8, 3), (2, 4, 6, 3)])
def test_pictures_of_tokens(tmp_path, shape):
    """One axis: three images side by side. Two: a row of maps, as many as there are times, for each."""
    u = np.random.default_rng(0).standard_normal(shape)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        draw_tokens(str(tmp_path / 'tokens.png'), .1 * np.arange(len(u)), u, [.6, .3, .05], 'some')
    height, width, _ = imread(tmp_path / 'tokens.png').shape
    assert width > 2 * height if len(shape) == 3 else height > width


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


# --- two axes ----------------------------------------------------------------

def plane(grid=(8, 8), **changes):
    """A tiny model of a field on the unit square that begins at the centre of a cell of 1/32."""
    cfg = dict(
        pde='navier-stokes',
        fields=('w',),
        params=('Nu',),
        seen_params=((1e-4,),),
        dt=1.,
        grid=grid,
        low=(0., 0.),
        length=(1., 1.),
        first=(1 / 64, 1 / 64),
        token_grid=(4, 4),
        patch_size=2,
        halo=1,
        translation=False)
    return tiny(**{**cfg, **changes})


def walled(pde, file, **changes):
    """A tiny model of two fields between walls, on all cells of a file of cells of an equation."""
    entry = pdes.entry(pde)
    with h5py.File(file, 'r') as opened:
        x = opened['x-coordinate' if 'x-coordinate' in opened else '0000/grid/x'][:]
    return plane(
        (len(x),) * 2,
        pde=pde,
        fields=entry.fields,
        params=tuple(entry.params),
        seen_params=tuple((value,) for value in entry.params.values()),
        boundary='wall',
        low=entry.low,
        length=entry.length,
        first=(float(x[0]),) * 2,
        mean=(0., 0.),
        std=(1., 1.),
        **changes)


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


def test_a_test_trajectory_of_two_axes(square, tmp_path, capsys):
    """Arrays are [x, y]: the truth is the file's, the prediction is on the same points."""
    ckpt, file, u = square
    a = run(ckpt, out=tmp_path)                                      # row 9: the last tenth is the test split
    m = load(ckpt)
    expected = m.rollout(u[9:, 0, ::4, ::4], 3, points=m.grid(64, 32)).unflatten(2, (64, 32))
    assert torch.allclose(a['u'], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(a['truth'], u[9:, 1:]) and torch.equal(a['u0'], u[9:, 0, ::4, ::4])
    grid = m.grid(64, 32).view(64, 32, 2)
    assert torch.equal(a['x'], grid[:, 0, 0]) and torch.equal(a['y'], grid[0, :, 1])
    out = capsys.readouterr().out
    assert f'nRMSE {mean_nrmse(a["u"], a["truth"]):.4f}' in out and 'at 64 x 32 points' in out
    height, width, _ = imread(tmp_path / 'rollout.png').shape
    assert height < width                                            # 3 rows of 4 squares, and the error
    with Image.open(tmp_path / 'rollout.gif') as movie:
        assert movie.n_frames == 4
    a = run(ckpt, '--resolution', 16, '--steps', 1, '--no_gif', out=tmp_path)
    assert a['u'].shape == a['truth'].shape == (1, 1, 16, 16, 1)
    exact = lopsided(.11 + a['x'][:, None].numpy(), a['y'].numpy())  # row 9, frame 1
    assert np.abs(a['truth'][0, 0, ..., 0].numpy() - exact).max() < 2e-3


def test_points_of_two_axes(square, no_pictures, tmp_path):
    """Points of the grid have its values; others are interpolated, and wrap."""
    ckpt, file, u = square
    grid = run(ckpt, out=tmp_path)
    i = [3, 50, 63]
    j = [30, 0, 7]
    q = torch.stack([grid['x'][i], grid['y'][j]], 1)
    a = run(ckpt, '--points', *q.flatten().tolist(), out=tmp_path)
    assert torch.equal(a['points'], q) and set(a) == {'u', 'points', 't', 'u0', 'truth'}
    assert torch.allclose(a['u'], grid['u'][:, :, i, j], atol=1e-5)
    assert torch.allclose(a['truth'], grid['truth'][:, :, i, j], atol=1e-5)
    a = run(ckpt, '--points', .1, .37, 1.1, .37, '--steps', 2, out=tmp_path)
    assert a['u'].shape == (1, 2, 2, 1) and torch.allclose(a['u'][:, :, 0], a['u'][:, :, 1], atol=1e-5)
    exact = lopsided(.1 + .09 + .02 * np.array([1, 2]), .37)
    assert np.abs(a['truth'][0, :, :, 0].numpy() - exact[:, None]).max() < 2e-3
    assert '3 numbers are no pairs' in user_error(ckpt, '--points', .1, .2, .3)


def small(monkeypatch, name, **changes):
    """Entry of an equation, changed: fewer cells for the solver. -> the entry"""
    entry = dataclasses.replace(pdes.PDES[name], **changes)
    monkeypatch.setitem(pdes.PDES, name, entry)
    return entry


def test_a_random_start_of_two_axes(square, no_pictures, monkeypatch, tmp_path):
    """Drawn on the cells of the data; where places differ, it is moved to the points of the model."""
    entry = small(monkeypatch, 'navier-stokes', cells=(32, 32))
    ckpt = save(plane(), tmp_path / 'best.pt', square[1])            # every 4th of 32 cells
    a = run(ckpt, '--random', 3, '--steps', 2, out=tmp_path)
    u0 = entry.start(1, (32, 32), 3 + 10 ** 6)
    truth = entry.solution(u0, {'Nu': 1e-4}, [0., 1., 2.]).float()
    assert torch.allclose(a['u0'], u0[:, ::4, ::4].float(), atol=1e-5)
    assert torch.allclose(a['truth'], truth[:, 1:], atol=1e-5) and a['u'].shape == (1, 2, 32, 32, 1)
    configured(ckpt, space_stride=2)                                 # now the data have 16
    a = run(ckpt, '--random', 3, '--steps', 2, out=tmp_path)
    coarse = entry.start(1, (16, 16), 3 + 10 ** 6)[0, ..., 0].float()
    middle = (torch.arange(16) + .5) / 16
    x = 1 / 64 + torch.arange(8) / 8
    expected = resample(resample(coarse, middle, x, 1.).T, middle, x, 1.).T
    assert torch.allclose(a['u0'][0, ..., 0], expected, atol=1e-5)


def test_initial_conditions_of_two_axes(square, no_pictures, monkeypatch, tmp_path):
    entry = small(monkeypatch, 'navier-stokes', cells=(16, 16))
    ckpt = save(plane(first=(1 / 32, 1 / 32)), tmp_path / 'best.pt', square[1])
    x = (np.arange(16) + .5)[:, None] / 16
    u0 = lopsided(x, x.T) - lopsided(x, x.T).mean()
    np.save(tmp_path / 'plain.npy', u0)
    np.save(tmp_path / 'fields.npy', u0[..., None])
    np.save(tmp_path / 'all.npy', np.stack([u0, u0.T, u0])[..., None])
    with h5py.File(tmp_path / 'u0.h5', 'w') as file:
        file['u0'] = u0
    write(tmp_path / 'tensor.hdf5', np.stack([u0, u0 + 1])[None])
    for name in ('plain.npy', 'fields.npy', 'u0.h5', 'tensor.hdf5'):
        read = sample.read_initial(str(tmp_path / name), 1, 2)
        assert np.array_equal(read, u0.astype(np.float32)[None, ..., None]), name
    monkeypatch.setattr(sample, 'POINTS', 16 ** 2)                   # one trajectory at a time
    a = run(ckpt, '--initial', tmp_path / 'all.npy', '--steps', 1, out=tmp_path)
    m = load(ckpt)
    expected = m.rollout(a['u0'], 1)
    assert torch.allclose(a['u'], expected, atol=1e-5)
    assert not torch.allclose(expected[0], expected[1], atol=.1)
    truth = entry.solution(torch.from_numpy(u0)[None, ..., None], {'Nu': 1e-4}, [0., 1.])
    assert torch.allclose(a['truth'], truth[:, 1:].float(), atol=1e-5)
    for shape, found in (((16,), '(16,)'), ((2, 16, 16), '(2, 16, 16)'), ((1, 1, 16, 16), '(1, 1, 16, 16)'),
                         ((1, 16, 1), '(1, 16, 1)'), ((0, 16, 16, 1), '(0, 16, 16, 1)')):
        np.save(tmp_path / 'wrong.npy', np.zeros(shape))
        text = user_error(ckpt, '--initial', tmp_path / 'wrong.npy')
        assert text.endswith(f'of shape (X, Y), (X, Y, 1) or (B, X, Y, 1); found float64 {found}')


def test_the_solver_sees_the_field_where_it_is(no_pictures, monkeypatch, tmp_path, capsys):
    """Between walls the solver's cells have centres of their own. Of a solver that changes nothing the truth
    is the field again. One that refuses it stops no rollout. (Interpolation is exact on these fields.)"""
    file = write_file(str(tmp_path / 'walls.h5'), 'diffusion-reaction', {}, 3, resolution=8, device='cpu')
    ckpt = save(walled('diffusion-reaction', file, dt=.25), tmp_path / 'best.pt', file, n=3)
    seen = []

    def stays(u0, t):
        seen.append(u0[0].numpy())
        return u0.double()[:, None].expand(-1, len(t), -1, -1, -1)

    def fields(n):
        x = (np.arange(n) + .5)[:, None] * 2 / n - 1                 # centres of n cells
        return x, np.stack([2 * x - 3 * x.T, x + x.T ** 2], -1)      # (X, Y, 2)
    small(monkeypatch, 'diffusion-reaction', cells=(16, 16), solve=stays)
    x, u0 = fields(8)
    np.save(tmp_path / 'u0.npy', u0)
    a = run(ckpt, '--initial', tmp_path / 'u0.npy', '--steps', 2, '--resolution', 8, out=tmp_path)
    inner = slice(4, -4)                                             # away from the walls
    assert np.abs(seen[0] - fields(16)[1])[inner, inner].max() < 1e-5
    assert np.abs(a['truth'][0, 1].numpy() - u0)[2:-2, 2:-2].max() < 1e-5
    assert torch.allclose(a['x'], a['y']) and np.allclose(a['x'], x[:, 0])
    scores = field_nrmse(a['u'], a['truth'])
    assert f': u {scores[0]:.4f}, v {scores[1]:.4f}' in capsys.readouterr().out

    def refuses(u0, t):
        raise UserError('it is too rough')
    small(monkeypatch, 'diffusion-reaction', solve=refuses)
    assert 'truth' not in run(ckpt, '--initial', tmp_path / 'u0.npy', '--steps', 2, out=tmp_path)
    assert 'note: no truth, because it is too rough' in capsys.readouterr().out


def test_a_steady_equation(no_pictures, monkeypatch, tmp_path, capsys):
    """One step, from (a, 0) to (a, u); of an initial condition the coefficient will do."""
    file = write_file(str(tmp_path / 'darcy.hdf5'), 'darcy', {'beta': 1.}, 10, resolution=16, device='cpu')
    ckpt = save(walled('darcy', file, dt=1., static=(0,)), tmp_path / 'best.pt', file)
    entry = small(monkeypatch, 'darcy', cells=(16, 16))
    with h5py.File(file, 'r') as opened:
        coefficient = torch.from_numpy(opened['nu'][0])
        solution = torch.from_numpy(opened['tensor'][0, 0])
    a = run(ckpt, out=tmp_path)
    assert torch.equal(a['truth'][0, 0], torch.stack([coefficient, solution], -1))
    assert a['u'].shape == (1, 1, 16, 16, 2)
    own = mean_nrmse(a['u'][..., 1:], a['truth'][..., 1:])           # a is not scored
    assert f'nRMSE {own:.4f} (of the first trajectory, at these points)\n' in capsys.readouterr().out
    np.save(tmp_path / 'a.npy', coefficient)
    for source in ('a.npy', 'darcy.hdf5'):
        b = run(ckpt, '--initial', tmp_path / source, out=tmp_path)
        assert torch.allclose(b['u'][:1], a['u'], atol=1e-5)
        assert torch.allclose(b['truth'], a['truth'], atol=1e-5), source
    c = run(ckpt, '--random', 4, '--steps', 1, out=tmp_path)
    u0 = entry.start(1, (16, 16), 4 + 10 ** 6)
    assert torch.allclose(c['u0'], u0.float())
    assert torch.allclose(c['truth'], entry.solution(u0, {'beta': 1.}, [0., 1.])[:, 1:].float(), atol=1e-5)
    small(monkeypatch, 'darcy', cells=(32, 32))                      # a finer coefficient is positive, too
    np.save(tmp_path / 'stripes.npy', np.where(np.arange(16) % 8 < 4, .01, 1.) * np.ones((16, 1)))
    assert 'truth' in run(ckpt, '--initial', tmp_path / 'stripes.npy', out=tmp_path)
    assert 'darcy has no time' in user_error(ckpt, '--steps', 2)
    np.save(tmp_path / 'three.npy', np.zeros((16, 16, 3)))
    text = user_error(ckpt, '--initial', tmp_path / 'three.npy')
    assert 'or (B, X, Y, 2); found float64 (16, 16, 3)' in text


def test_maps_are_not_transposed():
    """x is to the right and y upwards, and the edges are those of the outermost cells."""
    u = np.arange(6.).reshape(3, 2)                                  # (X, Y)
    figure, axis = pyplot.subplots()
    image = draw_map(axis, [np.array([.5, 1.5, 2.5]), np.array([10., 11.])], u, colour_scale(u))
    row_of_y1 = image.get_array()[1]
    assert np.array_equal(row_of_y1, u[:, 1]) and image.origin == 'lower'
    assert list(image.get_extent()) == [0, 3, 9.5, 11.5] and axis.get_aspect() == 1
    pyplot.close(figure)


def test_colours():
    """About zero only if a field takes both signs; a little undershoot does not count."""
    assert colour_scale(np.array([-1., 2.])) == {'cmap': 'RdBu_r', 'vmin': -2, 'vmax': 2}
    assert colour_scale(np.array([1., 3.])) == {'cmap': 'viridis', 'vmin': 1, 'vmax': 3}
    assert colour_scale(np.array([-.01, 2., np.inf])) == {'cmap': 'viridis', 'vmin': -.01, 'vmax': 2}
    assert colour_scale(np.array([-3., -1.])) == {'cmap': 'viridis', 'vmin': -3, 'vmax': -1}
    flat = colour_scale(np.zeros(4))
    assert flat['vmin'] < flat['vmax']


def test_maps_of_two_frames_and_two_fields(tmp_path):
    """As of a steady equation, one field that stays and one that has blown up."""
    x = [np.arange(8) / 8, np.arange(8) / 8]
    u = np.random.default_rng(0).standard_normal((2, 8, 8, 2))
    u[1, ..., 0] = u[0, ..., 0]
    blown_up = u.copy()
    blown_up[1, ..., 1] = np.inf
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        draw(str(tmp_path), x, np.arange(2.), blown_up, u, ('a', 'u'), 'steady', False)
    height, width, _ = imread(tmp_path / 'rollout.png').shape
    assert height > 2 * width                                        # 6 rows of 2 squares, and the error


def test_a_steady_equation_has_one_map_of_each_kind(tmp_path):
    x = [np.arange(8) / 8, np.arange(8) / 8]
    u = np.random.default_rng(0).standard_normal((2, 8, 8, 2))
    draw(str(tmp_path), x, np.arange(2.), u, u, ('a', 'u'), 'steady', True, steady=True)
    height, width, _ = imread(tmp_path / 'rollout.png').shape
    assert width > 1.4 * height                                      # 2 rows of 3 squares with their colours
    assert not (tmp_path / 'rollout.gif').exists()


def test_maps_without_truth(tmp_path):
    """The prediction alone, in one row."""
    x = [np.arange(8) / 8, np.arange(4) / 8]
    u = np.random.default_rng(0).standard_normal((2, 8, 4, 1))
    draw(str(tmp_path), x, np.arange(2.), u, None, ('u',), 'one', True)
    height, width, _ = imread(tmp_path / 'rollout.png').shape
    assert width > 2 * height and (tmp_path / 'rollout.gif').exists()
