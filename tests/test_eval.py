"""eval.py on tiny random models and tiny files: what is rolled out, what is refused, the JSON, the tables."""
import csv
import dataclasses
import json
import math
import os
import random
import shutil
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

import elsewhere
import eval as ev
import pdes
import scores
from conftest import ROOT, error_line, refused, run
from data import Trajectories
from files import open_source, read_rows, write_file
from grids import random_points
from metrics import mean_nrmse
from model import UPT, ModelConfig, load, model_args
from runtime.checkpoint import load_checkpoint, save_checkpoint

METRICS = set('nrmse rmse mse mae max_error crmse brmse frmse_low frmse_mid frmse_high vrmse rel_l2 '
              'correlation_time spectral_energy_error conservation_gap recon_nrmse latent_norm_drift '
              'latent_gap ms_per_trajectory'.split())
TOP = {'ckpt', 'dataset', 'split', 'initial_step', 'rollout', 'n_trajectories', 'n_params', 'iter',
       'train_seconds', 'metrics', 'reencode', 'per_step', 'baselines'}


def tiny(**changes):
    """A model whose every parameter matters: the zero-initialised ones are drawn too."""
    cfg = dict(grid=(32,), first=(.5 / 1024,), patch_size=4, token_grid=(8,), latent_dim=8, encoder_dim=16,
               decoder_dim=16, hidden_dim=16, depth=1, n_head=2, cond_dim=16, encoder_depth=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = UPT(ModelConfig(**{**cfg, **changes}))
        for p in model.parameters():
            if not p.any():
                torch.nn.init.normal_(p, std=.05)
    return model


def describe(folder, paths, n):
    """What a run in `folder` that was trained on n rows of files says of its data."""
    sources = [open_source(path, quiet=True) for path in paths]
    stride = max(1, round(.05 / sources[0].dt))
    keys = SimpleNamespace(n_trajectories=n, time_stride=stride, space_stride=1, query_stride=1, memory_gb=1.)
    run = SimpleNamespace(folder=folder, parent=None, state=None)
    return Trajectories(sources, keys, torch.device('cpu')).describe(list(paths), run)


def save(model, path, *files, n=10, **changes):
    """A checkpoint as runtime/run.py writes one after a training on n rows of `files`. -> path"""
    path = str(path)
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    about = describe(folder, [str(file) for file in files], n)
    save_checkpoint(path, {
        'model': model.state_dict(), 'ema': model.state_dict(), 'model_args': model_args(model.cfg),
        'config': {'dataset': model.cfg.pde, 'seed': 0}, 'environment': {}, 'stage': 'operator', 'iter': 7,
        'train_seconds': 90., 'peak_memory_gb': .5, 'data': {**about, **changes}})
    return path


def write(path, u, dt=.05, low=0., **params):
    """A PDEBench-layout file of fields u (N, T, X) or (N, T, X, Y). -> path"""
    with h5py.File(path, 'w') as file:
        file['tensor'] = np.asarray(u, np.float32)
        for name, n in zip('xy', u.shape[2:]):
            file[f'{name}-coordinate'] = low + (1 - low) * (np.arange(n) + .5) / n
        file['t-coordinate'] = np.arange(u.shape[1] + 1) * dt
        file.attrs.update(params or {'Nu': .01})
    return str(path)


def waves(n, T, X, seed=0):
    """Random smooth fields that move, (n, T, X)"""
    rng = np.random.default_rng(seed)
    x = np.arange(X) / X
    t = np.arange(T)[:, None] / 40
    phases = rng.uniform(0, 6, (n, 2))
    return np.stack([1 + np.sin(2 * np.pi * (x - t) + a) + .3 * np.sin(4 * np.pi * x + b) for a, b in phases])


@pytest.fixture(scope='session')
def run_folder(tmp_path_factory, burgers_file):
    """Folder of a run on ten rows of the solver's file: one test row, one validation row."""
    folder = tmp_path_factory.mktemp('run')
    save(tiny(), folder / 'best.pt', burgers_file)
    return str(folder)


def evaluate(*argv):
    return ev.main([*map(str, argv), '--device', 'cpu'])


def user_error(*argv):
    return refused(evaluate, *argv)


@pytest.fixture(scope='session')
def truth(burgers_file):
    """The test row on the trained grid, (1, 41, 32, 1)"""
    with h5py.File(burgers_file, 'r') as file:
        return torch.from_numpy(file['tensor'][0:1, ::5, ::32])[..., None]


# --- JSON and tables ---------------------------------------------------------

def test_as_a_user_runs_it(run_folder, tmp_path):
    out = run('--ckpt', run_folder, '--json', 'eval.json', '--superres', 1, 2, 4, '--batch_size', 3,
              '--device', 'cpu', script='eval.py', cwd=tmp_path)
    r = json.loads((tmp_path / 'eval.json').read_text())
    assert TOP <= set(r) and set(r['metrics']) == METRICS
    assert (r['split'], r['initial_step'], r['rollout'], r['n_trajectories']) == ('test', 1, 'latent', 1)
    assert (r['iter'], r['train_seconds'], r['dataset'], r['ms_batch_size']) == (7, 90., 'burgers', 1)
    assert r['n_params'] == tiny().n_params()
    assert len(r['per_step']['nrmse']) == 40
    assert sum(r['per_step']['nrmse']) / 40 == pytest.approx(r['metrics']['nrmse'])
    assert set(r['reencode']) == {'nrmse'} and set(r['baselines']) == {'persistence', 'mean'}
    assert 'by_parameter' not in r and 'by_field' not in r           # there is one of each
    assert set(r['superres']) == {'1', '2', '4'}
    assert r['superres']['1']['nrmse'] == pytest.approx(r['metrics']['nrmse'], rel=1e-4)
    assert r['superres']['1']['ratio'] == pytest.approx(1, rel=1e-4)
    assert r['superres']['1']['floor'] < 1e-6 < r['superres']['2']['floor'] < r['superres']['4']['floor'] < .2
    for text in (os.path.join(run_folder, 'best.pt'), 'test rows 0..0 (1 trajectories)', '1.5 min', '0.50 GB',
                 'correlation_time (s)', 'ms_per_trajectory (ms, batch 1)', 'persistence', 'reencode rollout',
                 'latent rollout, 40 steps of 0.05 s, initial_step 1', 'interpolated truth', *METRICS):
        assert text in out.stdout


def test_user_errors_are_one_line(tmp_path):
    out = run('--ckpt', 'nothing', '--device', 'cpu', script='eval.py', cwd=tmp_path, check=False)
    assert out.returncode == 1 and error_line(out.stderr).startswith('error: no checkpoint')


def test_several_checkpoints(run_folder, burgers_file, tmp_path, capsys):
    other = save(tiny(depth=2), tmp_path / 'other.pt', burgers_file)
    evaluate('--ckpt', run_folder, other, '--json', tmp_path / 'two.json', '--superres', 2)
    two = json.loads((tmp_path / 'two.json').read_text())
    assert [set(r['metrics']) for r in two] == [METRICS] * 2
    assert two[0]['n_params'] < two[1]['n_params']
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.startswith('parameters'))
    assert row.split()[1:] == [f"{r['n_params']:,}" for r in two]
    row = next(line for line in lines if line.startswith('nrmse '))
    shown = [float(value) for value in row.split()[1:]]
    assert shown == pytest.approx([r['metrics']['nrmse'] for r in two], rel=1e-4)


def test_a_folder_of_runs(run_folder, burgers_file, advection_file, tmp_path, capsys):
    """One table for each data set and task; what cannot be evaluated is named, and the others go on."""
    model = tiny()
    save(model, tmp_path / 'out' / 'a' / 'best.pt', burgers_file)
    save(model, tmp_path / 'out' / 'b' / 'best.pt', burgers_file)
    save(tiny(pde='advection', params=('beta',), seen_params=((.4,),)), tmp_path / 'out' / 'c' / 'best.pt',
         advection_file)
    save(tiny(input_frames=2), tmp_path / 'out' / 'd' / 'last.pt', burgers_file)
    gone = {name: ['gone.hdf5'] for name in ('paths', 'absolute', 'relative')}
    save(model, tmp_path / 'out' / 'e' / 'best.pt', burgers_file, **gone)
    (tmp_path / 'out' / 'f').mkdir()
    (tmp_path / 'out' / 'f' / 'best.pt').write_bytes(b'PK')
    results = evaluate('--ckpt', tmp_path / 'out', '--json', tmp_path / 'all.json', '--steps', 2)
    captured = capsys.readouterr()
    assert [r['ckpt'].split(os.sep)[-2] for r in results] == ['a', 'b', 'c', 'd']
    assert len(json.loads((tmp_path / 'all.json').read_text())) == 4
    first, second, third = [part.splitlines() for part in captured.out.split('\ncheckpoint')[1:]]
    assert [len(part[0].split()) for part in (first, second, third)] == [2, 1, 1]        # columns
    assert '\nburgers, nu0.01.hdf5, test rows 0..0' in captured.out
    assert '\nadvection, beta0.4.hdf5, test rows 0..0' in captured.out
    assert '\nlatent rollout, 2 steps of 0.05 s, initial_step 2\n' in captured.out
    errors = captured.err.splitlines()
    assert len(errors) == 2 and 'gone.hdf5' in errors[0] and os.path.join('f', 'best.pt') in errors[1]
    for name in 'abcd':
        shutil.rmtree(tmp_path / 'out' / name)
    assert 'none of the 2 checkpoints' in user_error('--ckpt', tmp_path / 'out')
    shutil.rmtree(tmp_path / 'out' / 'f')
    assert 'gone.hdf5' in user_error('--ckpt', tmp_path / 'out')     # one run alone is no folder of several


def test_a_trained_run(smoke, monkeypatch):
    """What train.py writes has all that is asked for here, also from the folder in which it was trained."""
    [r] = evaluate('--ckpt', smoke, '--steps', 2)
    assert r['dataset'] == 'burgers' and math.isfinite(r['metrics']['nrmse'])
    monkeypatch.chdir(smoke)
    [again] = evaluate('--ckpt', 'o', '--steps', 2)
    assert again['metrics']['nrmse'] == r['metrics']['nrmse']


# --- where data are found ----------------------------------------------------

@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a data file and a run that was trained from there, with a path relative to it."""
    folder = tmp_path / 'project'
    (folder / 'datasets').mkdir(parents=True)
    write(folder / 'datasets' / 'a.hdf5', waves(10, 6, 64))
    monkeypatch.chdir(folder)
    save(tiny(), os.path.join('out', 'a', 'best.pt'), os.path.join('datasets', 'a.hdf5'))
    monkeypatch.chdir(tmp_path)
    return folder


def test_from_another_directory(project):
    [r] = evaluate('--ckpt', project / 'out' / 'a')
    assert os.path.samefile(r['data'][0], project / 'datasets' / 'a.hdf5')


def test_run_and_data_moved_together(project, tmp_path):
    os.rename(project, tmp_path / 'elsewhere')
    [r] = evaluate('--ckpt', os.path.join('elsewhere', 'out', 'a'))
    assert os.path.samefile(r['data'][0], tmp_path / 'elsewhere' / 'datasets' / 'a.hdf5')


def test_only_the_run_moved(project, tmp_path):
    shutil.move(project / 'out' / 'a', tmp_path / 'a')
    [r] = evaluate('--ckpt', 'a')
    assert r['data'] == [str(project / 'datasets' / 'a.hdf5')]


def test_path_as_typed(project, tmp_path, monkeypatch):
    """Run and data moved apart, to where the typed path leads from here, or from the repository."""
    shutil.move(project / 'out' / 'a', tmp_path / 'a')
    (tmp_path / 'new').mkdir()
    shutil.move(project / 'datasets', tmp_path / 'new' / 'datasets')
    message = user_error('--ckpt', 'a')
    for place in (tmp_path / 'a', project / 'datasets' / 'a.hdf5', ROOT):
        assert str(place)[:-1] in message
    assert '--data' in message
    monkeypatch.setattr(ev, 'HERE', str(tmp_path / 'new'))
    [r] = evaluate('--ckpt', 'a')
    assert r['data'] == [str(tmp_path / 'new' / 'datasets' / 'a.hdf5')]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path / 'new')
    [r] = evaluate('--ckpt', tmp_path / 'a')
    assert r['data'] == [os.path.join('datasets', 'a.hdf5')]


# --- what is rolled out and scored -------------------------------------------

def test_numbers_are_those_of_the_model(run_folder, truth):
    """The metrics against rollouts made by hand, through the public interface."""
    [r] = evaluate('--ckpt', run_folder)
    m = load(run_folder)
    p = m.rollout(truth[:, 0], 40, params={'Nu': .01}, dt=.05)
    assert r['metrics']['nrmse'] == pytest.approx(mean_nrmse(p, truth[:, 1:]), rel=1e-4)
    v = m.rollout(truth[:, 0], 40, params={'Nu': .01}, reencode=True)
    assert r['reencode']['nrmse'] == pytest.approx(mean_nrmse(v, truth[:, 1:]), rel=1e-4)
    assert abs(r['reencode']['nrmse'] / r['metrics']['nrmse'] - 1) > 1e-3
    z0 = m.encode(truth[:, 0])
    z = z0
    gaps = []
    for _ in range(40):
        z = m.step(z)
        u = m.decoder(z.tokens)
        gaps.append((m.encoder(u) - z.tokens).norm() / z.tokens.norm())
    assert r['metrics']['latent_gap'] == pytest.approx(float(torch.stack(gaps).mean()), rel=1e-4)
    assert gaps[0] > 1e-3                                            # its encoder is learned
    drift = (z.tokens.square().mean() / z0.tokens.square().mean()).sqrt() - 1
    assert r['metrics']['latent_norm_drift'] == pytest.approx(float(drift), rel=1e-4)
    recon = m.decode(m.encode(truth[0]))
    assert r['metrics']['recon_nrmse'] == pytest.approx(mean_nrmse(recon[None], truth), rel=1e-4)
    persistence = mean_nrmse(truth[:, :1].expand(-1, 40, -1, -1), truth[:, 1:])
    assert r['baselines']['persistence']['nrmse'] == pytest.approx(persistence, rel=1e-4)
    assert r['metrics']['ms_per_trajectory'] > 0


def test_the_other_rollout(run_folder):
    [a] = evaluate('--ckpt', run_folder)
    [b] = evaluate('--ckpt', run_folder, '--rollout', 'reencode')
    assert b['rollout'] == 'reencode'
    assert b['metrics']['nrmse'] == b['reencode']['nrmse'] == pytest.approx(a['reencode']['nrmse'], rel=1e-4)
    assert b['latent']['nrmse'] == pytest.approx(a['metrics']['nrmse'], rel=1e-4)
    assert abs(b['metrics']['nrmse'] / a['metrics']['nrmse'] - 1) > 1e-3


@pytest.mark.parametrize('n', [1, 10, 40])
def test_given_frames_are_not_scored(run_folder, truth, monkeypatch, n):
    """A model that returns the truth scores 0 and one that returns nothing 1, whatever frames are given; it
    starts from the last one and predicts the rest."""
    for factor, expected in ((0., 1.), (1., 0.)):
        def rollout(self, u0, steps, **options):
            assert torch.equal(u0, truth[:, n - 1]) and steps == 41 - n
            return truth[:, n:] * factor
        monkeypatch.setattr(UPT, 'rollout', rollout)
        [r] = evaluate('--ckpt', run_folder, '--initial_step', n)
        assert r['metrics']['nrmse'] == expected and r['per_step']['nrmse'] == [expected] * (41 - n)
        persistence = mean_nrmse(truth[:, n - 1:n].expand(-1, 41 - n, -1, -1), truth[:, n:])
        assert r['baselines']['persistence']['nrmse'] == pytest.approx(persistence)


def test_two_input_frames(burgers_file, truth, tmp_path):
    file = save(tiny(input_frames=2), tmp_path / 'two_frames.pt', burgers_file)
    message = user_error('--ckpt', file, '--initial_step', 1)
    assert 'between 2 (the frames that the model sees) and 40' in message
    m = load(file)
    for n, options in ((2, ()), (10, ('--initial_step', 10))):       # two is the default
        [r] = evaluate('--ckpt', file, *options)
        p = m.rollout(truth[:, n - 2:n], 41 - n)
        assert (r['initial_step'], len(r['per_step']['nrmse'])) == (n, 41 - n)
        assert r['metrics']['nrmse'] == pytest.approx(mean_nrmse(p, truth[:, n:]), rel=1e-4)
        recon = torch.stack([m.decode(m.encode(truth[:, t - 2:t])) for t in range(n, 42)], 1)
        assert r['metrics']['recon_nrmse'] == pytest.approx(mean_nrmse(recon, truth[:, n - 1:]), rel=1e-4)


def test_first_steps_only(run_folder):
    [r] = evaluate('--ckpt', run_folder)
    [a] = evaluate('--ckpt', run_folder, '--steps', 3, '--superres', 2)
    assert a['steps'] == 3 and a['per_step']['nrmse'] == pytest.approx(r['per_step']['nrmse'][:3], rel=1e-4)
    assert a['metrics']['nrmse'] == pytest.approx(sum(r['per_step']['nrmse'][:3]) / 3, rel=1e-4)
    assert a['superres']['2']['nrmse'] > 0
    for steps in (0, 41):
        message = user_error('--ckpt', run_folder, '--steps', steps)
        assert f'--steps {steps} must be between 1 and 40' in message


def test_saved_predictions(run_folder, truth, burgers_file, tmp_path):
    file = tmp_path / 'p.npz'
    [r] = evaluate('--ckpt', run_folder, '--save', file, '--initial_step', 2)
    with np.load(file) as arrays:
        assert {array.dtype for array in arrays.values()} == {np.dtype('float32')}
        assert np.array_equal(arrays['truth'], truth[:, 2:].numpy())
        p = torch.from_numpy(arrays['predictions'])
        assert mean_nrmse(p, truth[:, 2:]) == pytest.approx(r['metrics']['nrmse'], rel=1e-4)
        assert arrays['t'] == pytest.approx(.05 * np.arange(2, 41))
        assert arrays['x'] == pytest.approx((32 * np.arange(32)[:, None] + .5) / 1024)
        assert arrays['Nu'] == pytest.approx([.01])
    other = save(tiny(), tmp_path / 'other.pt', burgers_file)
    assert '--save' in user_error('--ckpt', run_folder, other, '--save', file)


def test_uneven_batches(run_folder):
    """10 trajectories in one batch, or in batches of 3, 3, 3 and 1."""
    [a] = evaluate('--ckpt', run_folder, '--split', 'all', '--steps', 5)
    [b] = evaluate('--ckpt', run_folder, '--split', 'all', '--steps', 5, '--batch_size', 3)
    assert a['n_trajectories'] == 10 and (a['ms_batch_size'], b['ms_batch_size']) == (10, 3)
    for name in METRICS - {'ms_per_trajectory', 'conservation_gap'}:
        assert b['metrics'][name] == pytest.approx(a['metrics'][name], rel=1e-3, abs=1e-6), name
    assert b['reencode']['nrmse'] == pytest.approx(a['reencode']['nrmse'], rel=1e-4)


@pytest.mark.parametrize('split, n', [('test', 1), ('val', 1), ('train', 8), ('all', 10)])
def test_the_split_is_named(run_folder, capsys, split, n):
    [r] = evaluate('--ckpt', run_folder, '--split', split, '--steps', 1)
    assert (r['split'], r['n_trajectories']) == (split, n)
    assert f'on {split} rows' in capsys.readouterr().out


def test_evaluating_leaves_no_trace(run_folder, truth):
    """Twice the same numbers to the bit; random states and model.training as they were."""
    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    before = states()
    [a] = evaluate('--ckpt', run_folder, '--superres', 2)
    [b] = evaluate('--ckpt', run_folder, '--superres', 2)
    for r in (a, b):
        del r['metrics']['ms_per_trajectory']
    assert a == b and states() == before
    for training in (True, False):
        m = tiny(drop_path=.5).train(training)
        params = {'Nu': torch.tensor([.01])}
        one, two = (scores.evaluate(m, truth, params)[0]['metrics']['nrmse'] for _ in range(2))
        assert m.training is training and m.operator.training is training
        assert one == two
        refused(scores.evaluate, m, truth, params, initial_step=41)
        assert m.training is training


def test_the_weights_are_the_averaged_ones(run_folder, tmp_path):
    state = load_checkpoint(os.path.join(run_folder, 'best.pt'))
    state['model'] = {name: value + 1 for name, value in state['model'].items()}
    save_checkpoint(str(tmp_path / 'best.pt'), state)
    [a] = evaluate('--ckpt', run_folder, '--steps', 2)
    [b] = evaluate('--ckpt', tmp_path, '--steps', 2)
    assert a['metrics']['nrmse'] == b['metrics']['nrmse']


# --- several fields, parameters and axes -------------------------------------

def test_several_files(tmp_path, capsys):
    files = []
    for seed, nu in enumerate((.01, .1)):
        files.append(write(tmp_path / f'{nu}.hdf5', waves(20, 6, 64, seed), Nu=nu))
    seen = {'seen_params': ((.01, .1),)}
    [r] = evaluate('--ckpt', save(tiny(**seen), tmp_path / 'both.pt', *files, n=20))
    out = capsys.readouterr().out
    singles = []
    for file in files:
        singles += evaluate('--ckpt', save(tiny(**seen), tmp_path / 'one.pt', file, n=20))
    assert r['n_trajectories'] == 4
    for name in ('nrmse', 'mse', 'rel_l2'):
        mean = sum(single['metrics'][name] for single in singles) / 2
        assert r['metrics'][name] == pytest.approx(mean, rel=1e-4)
    assert list(r['by_parameter']) == ['Nu=0.01', 'Nu=0.1']
    for single, part in zip(singles, r['by_parameter'].values()):
        assert part['nrmse'] == pytest.approx(single['metrics']['nrmse'], rel=1e-4)
        assert f"{part['nrmse']:.5g}" in out
    assert 'at Nu=0.01' in out and 'at Nu=0.1 ' in out


def test_several_fields(truth):
    m = tiny(fields=('u', 'v'), mean=(0., 0.), std=(1., 1.), latent_dim=16)
    u = torch.cat([truth, truth.flip(2)], -1)
    r, p = scores.evaluate(m, u, {'Nu': torch.tensor([.01])})
    for i, name in enumerate('uv'):
        own = mean_nrmse(p[..., i:i + 1], u[:, 1:, ..., i:i + 1])
        assert r['by_field'][name] == pytest.approx(own, rel=1e-4)
    assert sum(r['by_field'].values()) / 2 == pytest.approx(r['metrics']['nrmse'], rel=1e-4)
    assert r['by_field']['u'] != r['by_field']['v']


@pytest.fixture
def plane(monkeypatch, tmp_path):
    """An equation in two dimensions whose solutions rest, its file of 16 x 16 cells, and a run on 8 x 8
    points."""
    def rest(u0, c, t):
        return u0[:, None].repeat(1, len(t), 1, 1).double()
    monkeypatch.setitem(pdes.PDES, 'plane', pdes.PDE(
        fields=('u',), params={'c': 1.}, space=((0, 1), (0, 1)), boundary='periodic', file='plane{c}.hdf5',
        solve=rest))
    x = 2 * np.pi * (np.arange(16) + .5) / 16
    phase = np.arange(10)[:, None, None]
    u0 = 2 + np.sin(x[:, None] + phase) * np.cos(x + .3 * phase)     # (10, 16, 16)
    file = write(tmp_path / 'plane.hdf5', np.repeat(u0[:, None], 4, 1), c=1.)
    model = tiny(pde='plane', params=('c',), seen_params=((1.,),), grid=(8, 8), low=(0., 0.), length=(1., 1.),
                 first=(1 / 32, 1 / 32), token_grid=(4, 4), patch_size=2, halo=1)
    return save(model, tmp_path / 'plane.pt', file)


def test_two_axes(plane, tmp_path):
    [r] = evaluate('--ckpt', plane, '--superres', 1, 2, 4, '--save', tmp_path / 'p.npz')
    assert r['grid'] == [8, 8] and set(r['metrics']) == METRICS
    m = load(plane)
    with h5py.File(tmp_path / 'plane.hdf5', 'r') as file:
        u = torch.from_numpy(file['tensor'][:1])[..., None]
    p = m.rollout(u[:, 0, ::2, ::2], 3, points=m.grid(16, 16)).unflatten(2, (16, 16))
    assert r['superres']['2']['nrmse'] == pytest.approx(mean_nrmse(p, u[:, 1:]), rel=1e-4)
    assert r['superres']['1']['nrmse'] == pytest.approx(r['metrics']['nrmse'], rel=1e-4)
    assert r['superres']['1']['floor'] < 1e-6 < r['superres']['2']['floor'] < .02        # on both axes
    fine = m.grid(32, 32).double().numpy().T.reshape(2, 32, 32)      # the solver's, on 4 x 8 points
    exact = 2 + np.sin(2 * np.pi * fine[0]) * np.cos(2 * np.pi * fine[1])
    exact = torch.from_numpy(exact)[None, None, ..., None].expand(1, 3, -1, -1, -1)
    p = m.rollout(u[:, 0, ::2, ::2], 3, points=m.grid(32, 32)).unflatten(2, (32, 32))
    assert r['superres']['4']['nrmse'] == pytest.approx(mean_nrmse(p, exact), rel=1e-2)
    with np.load(tmp_path / 'p.npz') as arrays:
        assert arrays['predictions'].shape == (1, 3, 8, 8, 1)
        assert arrays['x'] == pytest.approx(m.grid().numpy())


def plane_truth(points):
    """The exact fields of the test row of `plane` at points (Q, 2): (1, 3, Q, 1) float64"""
    x, y = 2 * np.pi * points.double().numpy().T
    u = torch.from_numpy(2 + np.sin(x) * np.cos(y))
    return u[None, None, :, None].expand(1, 3, -1, -1)


def test_random_points(plane, monkeypatch, tmp_path):
    """Anywhere in the square, in the same places every time, against the exact field there."""
    [r] = evaluate('--ckpt', plane, '--random', 300)
    m = load(plane)
    q = random_points(300, m.cfg, torch.Generator().manual_seed(0))
    assert q.shape == (300, 2)
    assert 0 <= q.min() < .01 and .99 < q.max() <= 1 and (q.mean(0) - .5).abs().max() < .05
    with h5py.File(tmp_path / 'plane.hdf5', 'r') as file:
        u0 = torch.from_numpy(file['tensor'][:1, 0, ::2, ::2])[..., None]
    p = m.rollout(u0, 3, points=q)
    assert r['random']['nrmse'] == pytest.approx(mean_nrmse(p, plane_truth(q)), rel=1e-5)
    assert r['random']['ratio'] == pytest.approx(r['random']['nrmse'] / r['metrics']['nrmse'])
    assert r['random']['points'] == 300 and 1e-4 < r['random']['floor'] < .02        # 8 points a wave
    [many] = evaluate('--ckpt', plane, '--random', 300, '--split', 'all')
    monkeypatch.setattr(elsewhere, 'VALUES', 1)                      # one row, one frame at a time
    [one] = evaluate('--ckpt', plane, '--random', 300, '--split', 'all')
    assert one['random']['nrmse'] == pytest.approx(many['random']['nrmse'], rel=1e-5)
    assert one['random']['floor'] == pytest.approx(many['random']['floor'], rel=1e-5)
    assert '--random -1' in user_error('--ckpt', plane, '--random', -1)


def test_random_points_between_walls(monkeypatch, tmp_path):
    """Two files take turns; the field is one on which cubic interpolation is exact, away from the walls."""
    monkeypatch.setitem(pdes.PDES, 'walls', pdes.PDE(
        fields=('u',), params={'c': 1.}, space=((0, 1),), boundary='wall', file='walls{c}.hdf5'))
    x = (np.arange(64) + .5) / 64
    files = []
    for c in (1., 2.):
        rows = c + .3 * np.arange(10)[:, None, None] + (x ** 2 - x)  # (10, 1, 64)
        files.append(write(tmp_path / f'{c}.hdf5', np.repeat(rows, 3, 1), c=c))
    model = tiny(pde='walls', params=('c',), seen_params=((1., 2.),), boundary='wall', first=(.5 / 64,))
    file = save(model, tmp_path / 'walls.pt', *files)
    monkeypatch.setattr(elsewhere, 'random_points', lambda n, *rest: torch.linspace(.1, .9, n)[:, None])
    [r] = evaluate('--ckpt', file, '--random', 50, '--split', 'all')
    q = torch.linspace(.1, .9, 50)[:, None]
    errors = []
    for c, path in zip((1., 2.), files):
        exact = c + .3 * torch.arange(10.)[:, None, None, None] + (q ** 2 - q)       # (10, 1, 50, 1)
        with h5py.File(path, 'r') as opened:
            u0 = torch.from_numpy(opened['tensor'][:, 0, ::2])[..., None]
        p = load(file).rollout(u0, 2, points=q, params={'c': torch.tensor(c)})
        errors.append(mean_nrmse(p, exact.expand(-1, 2, -1, -1)))
    assert r['random']['nrmse'] == pytest.approx(sum(errors) / 2, rel=1e-5)
    assert errors[0] != pytest.approx(errors[1], rel=.01)


def test_resolved_fields_are_moved_exactly(plane):
    """Waves of up to six to an axis of 16 points, at points of no grid; and points of a grid are picked."""
    m = load(plane)

    def field(x, y):
        return torch.sin(2 * np.pi * 3 * x[:, None] + 1) * torch.cos(2 * np.pi * 6 * y)
    axes = elsewhere.grid_axes(m, (16, 16))
    u = field(*axes)[None, ..., None]
    to = [torch.linspace(.01, .99, 7), torch.tensor([.4, .333])]
    assert (elsewhere.resolved(m, u, axes, to)[0, ..., 0] - field(*to)).abs().max() < 2e-5
    assert (elsewhere.moved(m, u, axes, to)[0, ..., 0] - field(*to)).abs().max() > .05
    assert torch.equal(elsewhere.resolved(m, u, axes, elsewhere.grid_axes(m, (8, 8))), u[:, ::2, ::2])


def test_no_more_than_so_many_points_are_solved_for(plane, monkeypatch, capsys):
    """On finer grids that solution is interpolated; where the file is as fine, it is the file's."""
    m = load(plane)
    source = open_source(os.path.join(os.path.dirname(plane), 'plane.hdf5'))
    solution = "solvers.py's solution on 32 x 32 points"
    for most, said in ((32 ** 2, solution), (24 ** 2 - 1, 'its values, interpolated')):
        monkeypatch.setattr(elsewhere, 'MAX_SOLVED', most)
        found = truth_on_finer_grids(m, source, range(1), 2, 4, 8)
        for factor, u in found.items():
            exact = plane_truth(m.grid(8 * factor, 8 * factor))
            assert (u.flatten(2, -2)[:, 1:] - exact).abs().max() < 1e-5, factor
        out = capsys.readouterr().out
        assert '32 x 32, 64 x 64 points are more than the 16 x 16 cells' in out and said in out
        assert f'no more than {most} points are solved for' in out


def test_an_equation_without_a_solver(plane, monkeypatch):
    monkeypatch.setitem(pdes.PDES, 'plane', dataclasses.replace(pdes.PDES['plane'], solve=None))
    evaluate('--ckpt', plane, '--superres', 2)
    message = user_error('--ckpt', plane, '--superres', 4)
    assert '4 x 8 x 8 = 32 x 32 points' in message and 'no built-in solver for plane' in message


# --- blow-up -----------------------------------------------------------------

def test_blow_up_at_a_known_step(run_folder, monkeypatch, capsys, tmp_path):
    original = UPT.rollout

    def rollout(self, *args, **options):
        p = original(self, *args, **options)
        p[:, 6:] = math.inf
        return p
    monkeypatch.setattr(UPT, 'rollout', rollout)
    evaluate('--ckpt', run_folder, '--json', tmp_path / 'inf.json', '--superres', 2)
    r = json.loads((tmp_path / 'inf.json').read_text(), parse_constant=lambda name: pytest.fail(name))
    assert r['metrics']['nrmse'] is None and r['superres']['2']['nrmse'] is None
    assert None not in r['per_step']['nrmse'][:6] and r['per_step']['nrmse'][6:] == [None] * 34
    assert r['metrics']['recon_nrmse'] > 0 and r['metrics']['correlation_time'] > 0
    assert 'inf at step 7' in capsys.readouterr().out


def test_a_model_that_blows_up(burgers_file, tmp_path, capsys):
    model = tiny()
    torch.nn.init.constant_(model.operator.network.head.bias, 6e37)  # past float32 in a few steps
    evaluate('--ckpt', save(model, tmp_path / 'blow.pt', burgers_file), '--json', tmp_path / 'blow.json')
    r = json.loads((tmp_path / 'blow.json').read_text())
    assert r['metrics']['nrmse'] is None and r['metrics']['latent_norm_drift'] is None
    assert 'inf at step' in capsys.readouterr().out


# --- files that are not those of the training --------------------------------

def test_another_file(run_folder, tmp_path, capsys):
    """Another grid, time step, length and parameter: strided to the trained grid and step, all rows."""
    u = waves(4, 21, 64)
    file = write(tmp_path / 'other.hdf5', u, dt=.0125, Nu=.02)       # strides 2 in space, 4 in time
    [r] = evaluate('--ckpt', run_folder, '--data', file, '--superres', 2)
    assert (r['split'], r['n_trajectories'], len(r['per_step']['nrmse'])) == ('all', 4, 5)
    m = load(run_folder)
    u = torch.from_numpy(u[:, ::4]).float()[..., None]
    y = u[:, :, ::2]
    p = m.rollout(y[:, 0], 5, params={'Nu': torch.tensor(.02)})
    assert r['metrics']['nrmse'] == pytest.approx(mean_nrmse(p, y[:, 1:]), rel=1e-4)
    assert (p - m.rollout(y[:, 0], 5, params={'Nu': .01})).abs().max() > 1e-4    # the file's Nu counts
    p = m.rollout(y[:, 0], 5, params={'Nu': torch.tensor(.02)}, points=m.grid(64))
    assert r['superres']['2']['nrmse'] == pytest.approx(mean_nrmse(p, u[:, 1:]), rel=1e-4)
    out = capsys.readouterr().out
    assert 'finest solution has 64 cells' in out and 'on all rows 0..3' in out
    assert 'Nu=0.02 was never seen in training (0.01 was)' in out
    assert 'warning: 4' not in out and 'begin like' not in out


def test_a_parameter_that_was_seen_is_no_news(run_folder, capsys):
    evaluate('--ckpt', run_folder, '--steps', 1)
    assert 'never seen' not in capsys.readouterr().out


def test_a_coarser_file(run_folder, tmp_path):
    """It is evaluated on its own points, from which the model resamples."""
    u = waves(4, 6, 16)
    [r] = evaluate('--ckpt', run_folder, '--data', write(tmp_path / 'coarse.hdf5', u))
    m = load(run_folder)
    y = torch.from_numpy(u).float()[..., None]
    p = m.rollout(y[:, 0], 5)
    assert p.shape == (4, 5, 16, 1) and r['grid'] == [16]
    assert r['metrics']['nrmse'] == pytest.approx(mean_nrmse(p, y[:, 1:]), rel=1e-4)
    recon = m.decode(m.encode(y.flatten(0, 1)), m.grid(16)).unflatten(0, (4, 6))
    assert r['metrics']['recon_nrmse'] == pytest.approx(mean_nrmse(recon, y), rel=1e-4)
    [r] = evaluate('--ckpt', run_folder, '--data', tmp_path / 'coarse.hdf5', '--initial_step', 3)
    late = mean_nrmse(recon[:, 2:], y[:, 2:])                        # of the frames that a rollout is about
    assert r['metrics']['recon_nrmse'] == pytest.approx(late, rel=1e-4)


@pytest.mark.parametrize('shape, changes, text', [
    ((4, 11, 48), {}, '48 / 32 = 1.5'),
    ((4, 11, 12), {}, '12 / 32 = 0.375'),
    ((4, 11, 64), {'dt': .02}, '0.05 / 0.02 = 2.5'),
    ((4, 11, 64), {'dt': .2}, '0.05 / 0.2 = 0.25'),
    ((4, 11, 64), {'low': -1.}, 'holds burgers-old, not burgers'),
    ((4, 11, 64), {'beta': .4}, 'holds advection, not burgers'),
    ((4, 2, 64), {'dt': .025}, 'initial_step=1 must be between 1'),  # one frame at the trained step
])
def test_files_that_do_not_fit(run_folder, tmp_path, shape, changes, text):
    file = write(tmp_path / 'other.hdf5', waves(*shape), **changes)
    assert text in user_error('--ckpt', run_folder, '--data', file)


def test_points_between_walls_must_agree(monkeypatch, tmp_path):
    monkeypatch.setitem(pdes.PDES, 'walls', pdes.PDE(
        fields=('u',), params={'c': 1.}, space=((0, 1),), boundary='wall', file='walls{c}.hdf5'))
    fine = write(tmp_path / 'fine.hdf5', waves(10, 4, 64), c=1.)
    model = tiny(pde='walls', params=('c',), seen_params=((1.,),), boundary='wall', first=(.5 / 64,))
    file = save(model, tmp_path / 'walls.pt', fine)
    assert evaluate('--ckpt', file)[0]['metrics']['nrmse'] > 0
    coarse = write(tmp_path / 'coarse.hdf5', waves(4, 4, 16), c=1.)  # its first point is .5 / 16
    assert 'between walls these must agree' in user_error('--ckpt', file, '--data', coarse)


# --- a truth finer than the files --------------------------------------------

def truth_on_finer_grids(model, source, rows, *factors):
    """{factor: fields (N, T, *shape, C) of all frames}"""
    places = {f: elsewhere.multiple(model.cfg, f) for f in factors}
    grid = elsewhere.grid_to_solve(model, source, factors)
    n_frames = -(-source.n_frames // source.time_stride(model.cfg.dt))
    found = elsewhere.true_fields(model, source, rows, n_frames, grid, places)
    return {f: u.unflatten(2, places[f]) for f, u in found.items()}


@pytest.mark.parametrize('nu', [.01, .001])
def test_truth_finer_than_the_file(tmp_path, nu, capsys):
    """A file of every fourth cell, its truth wanted on twice as many points: the solution on all cells has
    it."""
    whole = write_file(str(tmp_path / 'whole.hdf5'), 'burgers', {'Nu': nu}, 5, device='cpu')
    with h5py.File(whole, 'r') as file:
        u = file['tensor'][:, ::5, ::4]
        want = torch.from_numpy(file['tensor'][1:5, ::5, ::2])[..., None]
    coarse = open_source(write(tmp_path / 'coarse.hdf5', u, Nu=nu))
    assert coarse.shape == (256,)
    got = truth_on_finer_grids(tiny(), coarse, range(1, 5), 16)[16]  # 16 x 32 points
    assert got.shape == want.shape == (4, 41, 512, 1) and 'solvers.py' in capsys.readouterr().out
    assert (got[:, 0, ::2] - want[:, 0, ::2]).abs().max() < 1e-5     # the file's own values are kept
    assert mean_nrmse(got, want) < (1e-3 if nu > .005 else .03) < mean_nrmse(got.roll(1, 2), want)
    same = truth_on_finer_grids(tiny(), open_source(whole), range(1, 5), 16)[16]
    assert torch.equal(same, want)                                   # the file has them


def test_finer_grids_between_walls_of_two_axes(monkeypatch, tmp_path):
    """The solver starts on the centres of its own cells; its solution is read where the model's points are.
    (It rests, and interpolation is exact on this field, away from the walls.)"""
    def field(x, y):
        return 1 + x + 2 * y ** 2 - 3 * x * y

    centres = []

    def rest(u0, c, t):
        centres.append(u0[0].numpy())
        return u0[:, None].repeat(1, len(t), 1, 1).double()
    monkeypatch.setitem(pdes.PDES, 'room', pdes.PDE(
        fields=('u',), params={'c': 1.}, space=((0, 1), (0, 1)), boundary='wall', file='room{c}.hdf5',
        solve=rest))
    x = (np.arange(16) + .5) / 16
    u0 = field(x[:, None], x) + .1 * np.arange(10)[:, None, None]
    file = write(tmp_path / 'room.hdf5', np.repeat(u0[:, None], 4, 1), c=1.)
    model = tiny(pde='room', params=('c',), seen_params=((1.,),), grid=(8, 8), low=(0., 0.), length=(1., 1.),
                 first=(1 / 32, 1 / 32), token_grid=(4, 4), patch_size=2, halo=1, boundary='wall')
    source = open_source(file)
    found = truth_on_finer_grids(model, source, range(1), 1, 2, 4, 8)
    assert [u.shape for u in found.values()] == [(1, 4, 8 * f, 8 * f, 1) for f in (1, 2, 4, 8)]
    [start] = centres                                                # solved once, for both factors
    x = (np.arange(64) + .5) / 64
    inner = slice(8, -8)
    assert np.abs(start - field(x[:, None], x))[inner, inner].max() < 1e-5
    for factor, u in found.items():
        x, y = model.grid(8 * factor, 8 * factor).double().unflatten(0, (8 * factor, 8 * factor)).unbind(-1)
        error = (u[0, -1, ..., 0] - field(x, y)).abs()
        inner = slice(factor, -factor)
        assert error[inner, inner].max() < 1e-5, factor
    [r] = evaluate('--ckpt', save(model, tmp_path / 'room.pt', file), '--superres', 1, 2, 4, 8)
    assert r['superres']['1']['ratio'] == pytest.approx(1, rel=1e-4)
    assert all(r['superres'][f]['nrmse'] > 0 for f in '248')


@pytest.mark.parametrize('name', ['diffusion-reaction', 'shallow-water', 'darcy'])
def test_superres_of_the_equations_between_walls(name, tmp_path):
    """Up to eight times the points of files of 8 x 8 cells; steady, static and positive fields, too."""
    entry = pdes.entry(name)
    file = write_file(str(tmp_path / 'file.h5'), name, entry.params, 3, device='cpu', resolution=8)
    source = open_source(file)
    stride = 1 if entry.steady else 50
    model = tiny(
        pde=name, fields=entry.fields, params=tuple(entry.params), seen_params=((1.,),) * len(entry.params),
        boundary=entry.boundary, low=entry.low, length=entry.length, dt=stride * source.dt,
        first=tuple(float(x[0]) for x in source.x), grid=(8, 8), token_grid=(4, 4), patch_size=2, halo=1,
        mean=(0.,) * len(entry.fields), std=(1.,) * len(entry.fields),
        static=tuple(entry.fields.index(field) for field in entry.static))
    ckpt = save(model, tmp_path / 'walls.pt', file, n=3)
    [r] = evaluate('--ckpt', ckpt, '--superres', 1, 2, 8, '--random', 9)
    places = [*r['superres'].values(), r['random']]
    assert r['superres']['1']['ratio'] == pytest.approx(1, rel=1e-4) and r['superres']['1']['floor'] < 1e-6
    assert all(place['nrmse'] > 0 and place['ratio'] > 0 for place in places)


# --- rollouts longer than the files ------------------------------------------

def growing(monkeypatch, rate):
    """Models say that fields grow by `rate` of what they were in every step."""
    def rollout(self, u0, steps, **options):
        growth = 1 + rate * torch.arange(1., steps + 1)
        return u0[:, None] * growth.view(-1, *[1] * (u0.ndim - 1))
    monkeypatch.setattr(UPT, 'rollout', rollout)


@pytest.mark.parametrize('rate, bounded', [(.1, 1.), (.125, 0.)])
def test_long_rollouts(plane, monkeypatch, rate, bounded):
    """Three times the 3 steps of the file, of a solution that rests: all scores in closed form."""
    growing(monkeypatch, rate)
    conserving = dataclasses.replace(pdes.PDES['plane'], conserved=('u',))
    monkeypatch.setitem(pdes.PDES, 'plane', conserving)
    [r] = evaluate('--ckpt', plane, '--horizon', 3)
    long = r['long']
    assert (long['horizon'], long['steps']) == (3, 9) and long['seconds'] == pytest.approx(9 * .05)
    assert long['per_step'] == pytest.approx([rate * step for step in range(1, 10)], rel=1e-5)
    assert long['nrmse'] == pytest.approx(5 * rate, rel=1e-5)
    assert long['nrmse_end'] == pytest.approx(9 * rate, rel=1e-5)
    assert long['correlation_time'] == pytest.approx(9 * .05)
    assert (long['finite'], long['bounded']) == (1, bounded)         # 1.9 and 2.125 times the start
    assert long['rms_growth'] == pytest.approx(1 + 9 * rate) and long['true_rms_growth'] == pytest.approx(1)
    rms = (4 + 1 / 4) ** .5                                          # of 2 + sin x cos y
    assert long['integral_drift'] == pytest.approx(9 * rate * 2 / rms, rel=1e-5)


def test_long_rollouts_that_blow_up(plane, monkeypatch, tmp_path):
    """One trajectory of ten, in blocks of one row."""
    growing(monkeypatch, 0.)
    calm = UPT.rollout
    calls = []

    def rollout(self, u0, steps, **options):
        p = calm(self, u0, steps, **options)
        calls.append(len(u0))
        if steps == 9 and len(calls) % 10 == 4:
            p[:, 5] = math.inf
        return p
    monkeypatch.setattr(UPT, 'rollout', rollout)
    monkeypatch.setattr(elsewhere, 'VALUES', 1)
    options = '--ckpt', plane, '--horizon', 3, '--split', 'all', '--json', tmp_path / 'r.json'
    evaluate(*options)
    long = json.loads((tmp_path / 'r.json').read_text())['long']
    assert long['finite'] == long['bounded'] == pytest.approx(.9)
    assert long['nrmse'] is None and long['nrmse_end'] == pytest.approx(0, abs=1e-6)
    assert long['per_step'][5] is None and long['correlation_time'] == pytest.approx((.9 * 9 + .1 * 6) * .05)


def test_long_rollouts_without_a_solver(plane, monkeypatch, capsys):
    growing(monkeypatch, .125)
    monkeypatch.setitem(pdes.PDES, 'plane', dataclasses.replace(pdes.PDES['plane'], solve=None))
    [r] = evaluate('--ckpt', plane, '--horizon', 3)
    assert set(r['long']) == {'horizon', 'steps', 'seconds', 'finite', 'bounded', 'rms_growth'}
    assert r['long']['rms_growth'] == pytest.approx(2.125) and r['long']['bounded'] == 0
    out = capsys.readouterr().out
    assert 'plane has no built-in solver' in out and 'rms at the end / start' in out


def test_long_rollouts_against_the_solver(run_folder, truth, burgers_file):
    [r] = evaluate('--ckpt', run_folder, '--horizon', 2)
    with h5py.File(burgers_file, 'r') as file:
        u0 = torch.from_numpy(file['tensor'][:1, 0])[..., None]
    y = pdes.entry('burgers').solution(u0, {'Nu': .01}, .05 * np.arange(81))[:, 1:, ::32]
    p = load(run_folder).rollout(truth[:, 0], 80)
    assert r['long']['nrmse'] == pytest.approx(mean_nrmse(p, y), rel=1e-4)
    assert r['long']['per_step'][:40] == pytest.approx(r['per_step']['nrmse'], rel=1e-3)
    assert r['long']['nrmse_end'] == r['long']['per_step'][-1] and r['long']['steps'] == 80


def test_bad_horizons(run_folder, plane, monkeypatch):
    assert '--horizon 1 must be 2 or more' in user_error('--ckpt', run_folder, '--horizon', 1)
    assert 'leave one out' in user_error('--ckpt', run_folder, '--horizon', 2, '--steps', 3)
    monkeypatch.setitem(pdes.PDES, 'plane', dataclasses.replace(pdes.PDES['plane'], steady=True))
    assert 'plane has no time' in user_error('--ckpt', plane, '--horizon', 2)


# --- comparison of runs ------------------------------------------------------

def logged(folder, *validations):
    """Writes a log.csv with (iteration, validation error or '')."""
    lines = ['iter,stage,loss,val_nrmse,train_seconds']
    lines += [f'{iteration},operator,.1,{nrmse},1.5' for iteration, nrmse in validations]
    (folder / 'log.csv').write_text('\n'.join(lines))


@pytest.fixture
def three_runs(burgers_file, tmp_path):
    """The first is the best; the third has no log."""
    for name, depth in (('one', 1), ('two', 2), ('three', 1)):
        save(tiny(depth=depth), tmp_path / name / 'best.pt', burgers_file)
    logged(tmp_path / 'one', (10, .5), (15, ''), (20, .04), (30, .05))
    logged(tmp_path / 'two', (10, .0501), (20, .05), (30, .01))
    return [str(tmp_path / name) for name in ('one', 'two', 'three')]


def test_comparison(three_runs, tmp_path, capsys):
    files = [tmp_path / f'runs.{ending}' for ending in ('md', 'csv', 'png')]
    results = evaluate('--ckpt', *three_runs, '--steps', 3, '--compare', *files)
    with open(files[1], newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['run'] for row in rows] == three_runs
    for row, r, name in zip(rows, results, ('one', 'two', 'three')):
        assert float(row['nRMSE latent']) == r['metrics']['nrmse'] == r['latent']['nrmse']
        assert float(row['re-encoding']) == r['reencode']['nrmse']
        assert float(row['recon']) == r['metrics']['recon_nrmse']
        assert float(row['over first']) == r['metrics']['nrmse'] / results[0]['metrics']['nrmse']
        assert (int(row['parameters']), row['training s'], row['memory GB']) == (r['n_params'], '90.0', '0.5')
        assert float(row['ms a trajectory']) == r['metrics']['ms_per_trajectory']
    assert [row['iterations to validation 0.05'] for row in rows] == ['20', '20', '']
    head, line, *body = files[0].read_text().splitlines()
    assert head.count('|') == line.count('|') == body[2].count('|') == 11 and len(body) == 3
    assert body[2].startswith(f'| {three_runs[2]} | ') and body[2].endswith(' | - |')
    assert files[2].read_bytes()[:4] == b'\x89PNG'
    out = capsys.readouterr().out
    assert 'spectral_energy_error' not in out and f"no log.csv beside '{three_runs[2]}" in out
    shown = next(line for line in out.splitlines() if line.startswith(three_runs[1])).split()
    assert float(shown[4]) == pytest.approx(float(rows[1]['over first']), rel=1e-3) and shown[-1] == '20'


def test_iterations_down_to_a_given_error(three_runs, capsys):
    evaluate('--ckpt', *three_runs[:2], '--steps', 1, '--compare', '--below', .03)
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.startswith('run ')).endswith('iterations to validation 0.03')
    assert [line.split()[-1] for line in lines if line.startswith(tuple(three_runs))] == ['-', '30']


def test_runs_on_other_data_are_not_compared(three_runs, burgers_file, tmp_path):
    other = save(tiny(), tmp_path / 'other.pt', burgers_file, n=20)
    message = user_error('--ckpt', three_runs[0], other, '--compare', '--data', burgers_file, '--steps', 1)
    assert f"'{other}' was trained on other data than '{three_runs[0]}" in message
    two = save(tiny(input_frames=2), tmp_path / 'two_frames.pt', burgers_file)
    assert 'with initial_step 2, ' in user_error('--ckpt', three_runs[0], two, '--compare', '--steps', 1)
    assert 'two checkpoints or more' in user_error('--ckpt', two, '--compare')
    assert 'is for --compare' in user_error('--ckpt', two, '--below', .1)
    assert '.md or .csv' in user_error('--ckpt', *three_runs, '--compare', tmp_path / 'runs.txt')
    assert 'cannot be written' in user_error('--ckpt', *three_runs, '--compare', tmp_path / 'no' / 'runs.md')


# --- leaks -------------------------------------------------------------------

@pytest.mark.parametrize('row', [1, 7])                              # validation, train
def test_test_rows_that_were_trained_on(tmp_path, row):
    u = waves(10, 6, 64)
    u[row, 0] = u[0, 0]
    file = save(tiny(), tmp_path / 'leak.pt', write(tmp_path / 'leak.hdf5', u))
    message = user_error('--ckpt', file)
    assert 'trajectory 0 (test)' in message and '1 of 1' in message
    evaluate('--ckpt', file, '--split', 'train')


def test_test_rows_that_an_ancestor_was_trained_on(tmp_path):
    """Fine-tuning keeps what the parent has seen: here the same rows in another order."""
    data = write(tmp_path / 'a.hdf5', waves(10, 6, 64))
    parent = write(tmp_path / 'b.hdf5', waves(10, 6, 64)[::-1])
    seen = describe(str(tmp_path), [parent], 10)['seen']
    file = save(tiny(), tmp_path / 'a.pt', data, seen=seen)
    assert 'trajectory 0 (test)' in user_error('--ckpt', file)


def test_another_name_for_the_training_file(run_folder, burgers_file, tmp_path, capsys):
    evaluate('--ckpt', run_folder, '--data', shutil.copy(burgers_file, tmp_path / 'new.hdf5'), '--steps', 1)
    assert 'warning: 9 of 20 trajectories' in capsys.readouterr().out        # ten rows were used, one to test


# --- user errors -------------------------------------------------------------

def test_user_errors(run_folder, burgers_file, tmp_path):
    more = save(tiny(), tmp_path / 'more.pt', burgers_file, n_trajectories=30)
    assert 'holds 20 trajectories' in user_error('--ckpt', more)
    few = save(tiny(), tmp_path / 'few.pt', burgers_file, n_trajectories=2)
    assert '2 trajectories cannot be split' in user_error('--ckpt', few)
    ckpt = '--ckpt', run_folder
    for n in (0, 41, -1):
        assert f'initial_step={n} must be between 1 ' in user_error(*ckpt, '--initial_step', n)
    assert '3 x 32 = 96' in user_error(*ckpt, '--superres', 1, 3)
    assert '--superres 0' in user_error(*ckpt, '--superres', 0)
    assert 'batch_size' in user_error(*ckpt, '--batch_size', 0)
    assert '--json' in user_error(*ckpt, '--json', tmp_path / 'nowhere' / 'eval.json')
    assert '--save' in user_error(*ckpt, '--save', tmp_path / 'nowhere' / 'p.npz')
    assert 'leave --split test out' in user_error(*ckpt, '--data', burgers_file, '--split', 'test')
    assert 'no data file' in user_error(*ckpt, '--data', tmp_path / 'nothing.hdf5')
    assert 'device=tpu' in refused(ev.main, [*ckpt, '--device', 'tpu'])


def test_between_walls_a_finer_truth_is_computed_on_the_solvers_cells(path):
    """48 points of a model that keeps every other of 32 cells are no centres of equal cells."""
    source = open_source(write_file(path, 'diffusion-sorption', {}, 1, device='cpu', resolution=32))
    cfg = ModelConfig(pde='diffusion-sorption', grid=(16,), token_grid=(4,), latent_dim=4, low=source.low,
                      length=source.length, first=(float(source.x[0][0]),), boundary='wall', dt=250.)
    model = UPT(cfg)
    place = model.grid(48)[:, 0] * 480 - .5                          # in cells of a tenth of their distance
    assert (place[0] + .5) / 10 == pytest.approx(.75)
    found = truth_on_finer_grids(model, source, range(1), 3)[3][0, -1, :, 0]
    u0 = float(read_rows(source, range(1), source.n_frames)[0, 0, 0, 0])             # a constant
    fine = source.entry.solution(torch.full((1, 480, 1), u0), {}, [0., 500.])[0, -1, :, 0].float()
    below = place.floor().long()
    wanted = fine[below] + (place - below) * (fine[below + 1] - fine[below])
    assert (found - wanted).abs().max() < .004                       # a 48th of the domain is coarse
    assert (found - fine[5::10])[:8].abs().max() > .006              # the values at the centres of 48 cells
