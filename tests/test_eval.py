"""eval.py on a tiny random model and a tiny file: what is rolled out, the JSON, the table, the user errors."""
import json
import math
import os
import random
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import eval as ev
from configurator import UserError
from checkpoint import load_checkpoint, save_checkpoint
from model import UPT, ModelConfig, build, load, model_args
from solvers import write_burgers

torch.set_num_threads(1)
METRICS = set('nrmse rmse mse mae max_error crmse brmse frmse_low frmse_mid frmse_high vrmse rel_l2 correlation_time '
              'spectral_energy_error conservation_gap recon_nrmse latent_norm_drift ms_per_trajectory'.split())
TOP = {'ckpt', 'dataset', 'split', 'initial_step', 'rollout', 'n_trajectories', 'n_params', 'iter', 'train_seconds',
       'metrics', 'reencode', 'per_step', 'baselines'}


def tiny(**changes):
    """A model whose every parameter matters (the zero-initialised ones are drawn too)."""
    cfg = dict(grid=(32,), first=(.5 / 1024,), patch_size=4, token_grid=(8,), latent_dim=8, encoder_dim=16,
               decoder_dim=16, hidden_dim=16, depth=1, n_head=2, cond_dim=16, encoder_depth=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = UPT(ModelConfig(**{**cfg, **changes}))
        for p in model.parameters():
            if not p.any():
                torch.nn.init.normal_(p, std=.05)
    return model


def save(model, path, *data, n=10):
    save_checkpoint(str(path), {
        'model': model.state_dict(), 'ema': model.state_dict(), 'model_args': model_args(model.cfg), 'iter': 7,
        'config': {'dataset': 'burgers', 'seed': 0}, 'stage': 'operator', 'train_seconds': 90., 'peak_memory_gb': .5,
        'data': {'paths': [str(d) for d in data], 'identity': 'ab', 'n_trajectories': n}})
    return str(path)


def write(path, u, dt=.01, nu=.02, low=0.):
    """A PDEBench-layout file of fields u (N, T, X)."""
    n, T, X = u.shape
    with h5py.File(path, 'w') as file:
        file['tensor'] = np.asarray(u, np.float32)
        file['x-coordinate'] = low + (1 - low) * (np.arange(X) + .5) / X
        file['t-coordinate'] = np.arange(T + 1) * dt
        file.attrs['Nu'] = nu
    return str(path)


def waves(n, T, X, seed=0):
    """Random smooth fields that move, (n, T, X)"""
    rng = np.random.default_rng(seed)
    x, t = np.arange(X) / X, np.arange(T)[:, None] / 40
    return np.stack([1 + np.sin(2 * np.pi * (x - t) + a) + .3 * np.sin(4 * np.pi * x + b)
                     for a, b in rng.uniform(0, 6, (n, 2))])


@pytest.fixture(scope='session')
def made(tmp_path_factory):
    """A folder with the solver's file of 10 trajectories and a run on it."""
    folder = tmp_path_factory.mktemp('eval')
    data = write_burgers(str(folder / 'burgers.hdf5'), 10, .01, device='cpu')
    os.mkdir(folder / 'run')
    save(tiny(), folder / 'run' / 'best.pt', data)
    return folder


def run(*argv):
    return ev.main([*map(str, argv), '--device', 'cpu'])


def refused(*argv):
    with pytest.raises(UserError) as caught:
        run(*argv)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def truth(made, rows=slice(0, 1)):
    with h5py.File(made / 'burgers.hdf5', 'r') as file:
        return torch.from_numpy(file['tensor'][rows, ::5, ::32])[..., None]


# --- JSON and table ----------------------------------------------------------

def test_as_a_user_runs_it(made):
    out = subprocess.run([sys.executable, os.path.join(ROOT, 'eval.py'), '--ckpt', 'run', '--json', 'eval.json',
                          '--superres', '1', '2', '4', '--batch_size', '3', '--device', 'cpu'], cwd=made,
                         capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert out.returncode == 0, out.stderr
    r = json.loads((made / 'eval.json').read_text())
    assert TOP <= set(r) and set(r['metrics']) == METRICS
    assert (r['split'], r['initial_step'], r['rollout'], r['n_trajectories'], r['iter'], r['train_seconds'],
            r['dataset'], r['ms_batch_size']) == ('test', 1, 'latent', 1, 7, 90., 'burgers', 1)
    assert r['n_params'] == tiny().n_params()
    assert len(r['per_step']['nrmse']) == 40
    assert sum(r['per_step']['nrmse']) / 40 == pytest.approx(r['metrics']['nrmse'])
    assert set(r['reencode']) == {'nrmse'} and set(r['baselines']) == {'persistence', 'mean'}
    assert set(r['superres']) == {'1', '2', '4'}
    assert r['superres']['1']['nrmse'] == pytest.approx(r['metrics']['nrmse'], rel=1e-5)
    assert r['superres']['1']['ratio'] == pytest.approx(1, rel=1e-5)
    assert r['superres']['1']['floor'] < 1e-6 < r['superres']['2']['floor'] < r['superres']['4']['floor'] < .2
    for text in (os.path.join('run', 'best.pt'), 'test, 1 trajectories', '1.5 min', '0.50 GB', 'correlation_time (s)',
                 'ms_per_trajectory (ms, batch 1)', 'persistence', 'reencode rollout', 'latent, 40 steps', 'floor'):
        assert text in out.stdout
    for name in METRICS:
        assert name in out.stdout


def test_user_errors_are_one_line(made):
    out = subprocess.run([sys.executable, os.path.join(ROOT, 'eval.py'), '--ckpt', 'nothing', '--device', 'cpu'],
                         cwd=made, capture_output=True, text=True)
    assert out.returncode == 1 and out.stderr.startswith('error: no checkpoint') and out.stderr.count('\n') == 1


def test_several_checkpoints(made, capsys):
    other = save(tiny(depth=2), made / 'other.pt', made / 'burgers.hdf5')
    run('--ckpt', made / 'run', other, '--json', made / 'two.json', '--superres', 2)
    two = json.loads((made / 'two.json').read_text())
    assert [set(r['metrics']) for r in two] == [METRICS] * 2
    assert two[0]['n_params'] < two[1]['n_params']
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.startswith('parameters'))
    assert row.split()[1:] == [f"{r['n_params']:,}" for r in two]
    row = next(line for line in lines if line.startswith('nrmse '))
    assert [float(v) for v in row.split()[1:]] == pytest.approx([r['metrics']['nrmse'] for r in two], rel=1e-4)


# --- what is rolled out and scored -------------------------------------------

def test_numbers_are_those_of_the_model(made):
    """The metrics against rollouts made by hand, through the public interface."""
    [r] = run('--ckpt', made / 'run')
    m, u = load(str(made / 'run')), truth(made)                      # 10 rows: the first is the test split
    p = m.rollout(u[:, 0], 40, params={'Nu': .01}, dt=.05)
    assert r['metrics']['nrmse'] == pytest.approx(ev.mean_nrmse(p, u[:, 1:]), rel=1e-6)
    v = m.rollout(u[:, 0], 40, params={'Nu': .01}, reencode=True)
    assert r['reencode']['nrmse'] == pytest.approx(ev.mean_nrmse(v, u[:, 1:]), rel=1e-6)
    with torch.no_grad():
        z0 = z = m.encode(u[:, 0])
        for _ in range(40):
            z = m.step(z)
        recon = m.decode(m.encode(u[0]))
    drift = (z.square().mean() / z0.square().mean()).sqrt() - 1
    assert r['metrics']['latent_norm_drift'] == pytest.approx(float(drift), abs=1e-6)
    assert r['metrics']['recon_nrmse'] == pytest.approx(ev.mean_nrmse(recon[None], u), rel=1e-5)
    assert r['baselines']['persistence']['nrmse'] == pytest.approx(
        ev.mean_nrmse(u[:, :1].expand(-1, 40, -1, -1), u[:, 1:]), rel=1e-6)
    assert r['metrics']['ms_per_trajectory'] > 0


def test_the_other_rollout(made):
    [a], [b] = run('--ckpt', made / 'run'), run('--ckpt', made / 'run', '--rollout', 'reencode')
    assert b['rollout'] == 'reencode'
    assert b['metrics']['nrmse'] == b['reencode']['nrmse'] == pytest.approx(a['reencode']['nrmse'], rel=1e-9)
    assert b['latent']['nrmse'] == pytest.approx(a['metrics']['nrmse'], rel=1e-9)
    assert b['metrics']['nrmse'] != a['metrics']['nrmse']


def test_given_frames_are_not_scored(made, monkeypatch):
    """A model that returns the truth scores 0 and one that returns nothing 1, whatever frames are given; it starts
    from the last one and predicts the rest."""
    u = truth(made)
    for n in (1, 10, 40):
        def rollout(self, u0, steps, **options):
            assert torch.equal(u0, u[:, n - 1]) and steps == 41 - n
            return u[:, n:] * factor
        monkeypatch.setattr(UPT, 'rollout', rollout)
        for factor, expected in ((0., 1.), (1., 0.)):
            [r] = run('--ckpt', made / 'run', '--initial_step', n)
            assert r['metrics']['nrmse'] == expected and r['per_step']['nrmse'] == [expected] * (41 - n)
            persistence = u[:, n - 1:n].expand(-1, 41 - n, -1, -1)
            assert r['baselines']['persistence']['nrmse'] == pytest.approx(ev.mean_nrmse(persistence, u[:, n:]))


def test_two_input_frames(made):
    file = save(tiny(input_frames=2), made / 'two_frames.pt', made / 'burgers.hdf5')
    assert 'must be between 2 (the frames that the model sees) and 40' in refused('--ckpt', file)
    [r] = run('--ckpt', file, '--initial_step', 10)
    m, u = load(file), truth(made)
    p = m.rollout(u[:, 8:10], 31)
    assert len(r['per_step']['nrmse']) == 31
    assert r['metrics']['nrmse'] == pytest.approx(ev.mean_nrmse(p, u[:, 10:]), rel=1e-6)
    with torch.no_grad():
        recon = torch.stack([m.decode(m.encode(u[:, t - 2:t])) for t in range(2, 42)], 1)
    assert r['metrics']['recon_nrmse'] == pytest.approx(ev.mean_nrmse(recon, u[:, 1:]), rel=1e-5)


def test_uneven_batches(made):
    """10 trajectories in one batch, or in batches of 3, 3, 3 and 1."""
    [a], [b] = (run('--ckpt', made / 'run', '--split', 'all', '--batch_size', size) for size in (64, 3))
    assert a['n_trajectories'] == 10 and (a['ms_batch_size'], b['ms_batch_size']) == (10, 3)
    for name in METRICS - {'ms_per_trajectory'}:
        assert b['metrics'][name] == pytest.approx(a['metrics'][name], rel=1e-5, abs=1e-6), name
    assert b['reencode']['nrmse'] == pytest.approx(a['reencode']['nrmse'], rel=1e-5)


@pytest.mark.parametrize('split, n', [('test', 1), ('val', 1), ('train', 8), ('all', 10)])
def test_the_split_is_named(made, capsys, split, n):
    [r] = run('--ckpt', made / 'run', '--split', split)
    assert (r['split'], r['n_trajectories']) == (split, n)
    assert f'on {split} rows' in capsys.readouterr().out


def test_evaluating_leaves_no_trace(made):
    """Twice the same numbers to the bit; random states and model.training as they were."""
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    [a], [b] = run('--ckpt', made / 'run', '--superres', 2), run('--ckpt', made / 'run', '--superres', 2)
    for r in (a, b):
        assert r['metrics'].pop('ms_per_trajectory') > 0
    assert a == b
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state[:2]
    assert torch.equal(torch.get_rng_state(), state[2])
    for training in (True, False):
        m = tiny(drop_path=.5).train(training)
        one, two = (ev.evaluate(m, truth(made), {'Nu': torch.tensor([.01])})['metrics'] for _ in range(2))
        assert m.training is training and m.operator.training is training
        assert one['nrmse'] == two['nrmse']
        with pytest.raises(UserError):
            ev.evaluate(m, truth(made), {}, initial_step=41)
        assert m.training is training


# --- blow-up -----------------------------------------------------------------

def test_blow_up_at_a_known_step(made, monkeypatch, capsys):
    original = UPT.rollout

    def rollout(self, *args, **options):
        p = original(self, *args, **options)
        p[:, 6:] = math.inf
        return p
    monkeypatch.setattr(UPT, 'rollout', rollout)
    run('--ckpt', made / 'run', '--json', made / 'inf.json', '--superres', 2)
    r = json.loads((made / 'inf.json').read_text(), parse_constant=lambda name: pytest.fail(name))
    assert r['metrics']['nrmse'] is None and r['superres']['2']['nrmse'] is None
    assert None not in r['per_step']['nrmse'][:6] and r['per_step']['nrmse'][6:] == [None] * 34
    assert r['metrics']['recon_nrmse'] > 0 and r['metrics']['correlation_time'] > 0
    assert 'inf at step 7' in capsys.readouterr().out


def test_a_model_that_blows_up(made, capsys):
    model = tiny()
    torch.nn.init.constant_(model.operator.head.bias, 6e37)          # past float32 in a few steps
    file = save(model, made / 'blow.pt', made / 'burgers.hdf5')
    run('--ckpt', file, '--json', made / 'blow.json')
    r = json.loads((made / 'blow.json').read_text())
    assert r['metrics']['nrmse'] is None and r['metrics']['latent_norm_drift'] is None
    assert 'inf at step' in capsys.readouterr().out


# --- data --------------------------------------------------------------------

def test_another_file(made, tmp_path, capsys):
    """Another grid, time step, length and parameter: strided to the trained grid and step, all rows."""
    u = waves(4, 21, 64)
    file = write(tmp_path / 'other.hdf5', u, dt=.0125, nu=.02)       # strides 2 in space, 4 in time
    [r] = run('--ckpt', made / 'run', '--data', file, '--superres', 2)
    assert (r['split'], r['n_trajectories'], len(r['per_step']['nrmse'])) == ('all', 4, 5)
    m, y = load(str(made / 'run')), torch.from_numpy(u[:, ::4, ::2]).float()[..., None]
    p = m.rollout(y[:, 0], 5, params={'Nu': .02})
    assert r['metrics']['nrmse'] == pytest.approx(ev.mean_nrmse(p, y[:, 1:]), rel=1e-5)
    assert (p - m.rollout(y[:, 0], 5, params={'Nu': .01})).abs().max() > 1e-4    # the file's Nu counts
    p = m.rollout(y[:, 0], 5, params={'Nu': .02}, points=m.grid(64))
    assert r['superres']['2']['nrmse'] == pytest.approx(
        ev.mean_nrmse(p, torch.from_numpy(u[:, 4::4]).float()[..., None]), rel=1e-5)
    out = capsys.readouterr().out
    assert 'finest solution has 64 cells' in out and 'on all rows 0..3' in out
    run('--ckpt', made / 'run', '--data', made / 'burgers.hdf5')
    assert 'warning' in capsys.readouterr().out                      # its own training rows


@pytest.mark.parametrize('nu', [.01, .001])
def test_truth_finer_than_the_file(tmp_path, nu, capsys):
    """A file of every fourth cell, its truth wanted on twice as many points: the solution on all cells has it."""
    whole = write_burgers(str(tmp_path / 'whole.hdf5'), 5, nu, device='cpu')
    with h5py.File(whole, 'r') as file:
        u = file['tensor'][:, ::5, ::4]
    source = ev.open_source(write(tmp_path / 'coarse.hdf5', u, .05, nu))
    assert source.shape == (256,)
    got = ev.finer_truth([source], range(1, 5), tiny().cfg, 16)        # 16 x 32 points
    with h5py.File(whole, 'r') as file:
        want = torch.from_numpy(file['tensor'][1:5, ::5, ::2])[..., None]
    assert got.shape == want.shape == (4, 41, 512, 1) and 'solvers.py' in capsys.readouterr().out
    assert torch.equal(got[:, 0, ::2], want[:, 0, ::2])                # the file's own values are kept
    assert ev.mean_nrmse(got, want) < (1e-3 if nu > .005 else .03) < ev.mean_nrmse(got.roll(1, 2), want)
    same = ev.finer_truth([ev.open_source(whole)], range(1, 5), tiny().cfg, 16)
    assert torch.equal(same, want)                                     # where the file has them, they are its own


def test_several_files(made, tmp_path):
    files = [write(tmp_path / f'{nu}.hdf5', waves(10, 11, 64, seed=i), .05, nu) for i, nu in enumerate((.01, .1))]
    both, one, two = (save(tiny(), tmp_path / f'{i}.pt', *f) for i, f in enumerate((files, files[:1], files[1:])))
    [r], [a], [b] = (run('--ckpt', file) for file in (both, one, two))
    assert r['n_trajectories'] == 2
    for name in ('nrmse', 'mse', 'rel_l2'):
        assert r['metrics'][name] == pytest.approx((a['metrics'][name] + b['metrics'][name]) / 2, rel=1e-6)


@pytest.mark.parametrize('shape, changes, text', [
    ((4, 11, 48), {}, '48 / 32 = 1.5'),
    ((4, 11, 16), {}, '16 / 32 = 0.5'),
    ((4, 11, 64), {'dt': .02}, '0.05 / 0.02 = 2.5'),
    ((4, 11, 64), {'dt': .2}, '0.05 / 0.2 = 0.25'),
    ((4, 11, 64), {'low': -1.}, 'old generation'),
    ((4, 4, 64), {}, 'initial_step=1 must be between 1'),            # one frame at the trained step
])
def test_files_that_do_not_fit(made, tmp_path, shape, changes, text):
    file = write(tmp_path / 'other.hdf5', waves(*shape), **changes)
    assert text in refused('--ckpt', made / 'run', '--data', file)


def test_test_rows_that_were_trained_on(made, tmp_path):
    for row in (1, 7):                                               # validation, train
        u = waves(10, 11, 64)
        u[row, 0] = u[0, 0]
        file = save(tiny(), tmp_path / 'leak.pt', write(tmp_path / 'leak.hdf5', u, .05))
        message = refused('--ckpt', file)
        assert f'trajectory {row} (' in message and 'trajectory 0 (test)' in message
        run('--ckpt', file, '--split', 'train')


def test_leaks_of_large_files_are_sampled(made, tmp_path, monkeypatch):
    monkeypatch.setattr(ev, 'OVERLAP_ALL', 50), monkeypatch.setattr(ev, 'OVERLAP_SAMPLE', 100)
    u = waves(200, 2, 32)
    source = ev.open_source(write(tmp_path / 'large.hdf5', u, .05))
    ev.check_leaks(source, 200, tiny().cfg)
    u[20:] = np.roll(u[20:], 1, 2)
    u[20:, 0] = np.tile(u[:20, 0], (9, 1))                           # the test rows, over and over
    source = ev.open_source(write(tmp_path / 'large.hdf5', u, .05))
    with pytest.raises(UserError, match='same initial condition'):
        ev.check_leaks(source, 200, tiny().cfg)


def test_user_errors(made, tmp_path):
    gone = save(tiny(), tmp_path / 'gone.pt', tmp_path / 'gone.hdf5')
    assert 'gone.hdf5' in refused('--ckpt', gone) and '--data' in refused('--ckpt', gone)
    more = save(tiny(), tmp_path / 'more.pt', made / 'burgers.hdf5', n=20)
    assert 'holds 10 trajectories' in refused('--ckpt', more)
    few = save(tiny(), tmp_path / 'few.pt', write(tmp_path / 'few.hdf5', waves(2, 11, 64), .05), n=2)
    assert '2 trajectories cannot be split' in refused('--ckpt', few)
    ckpt = '--ckpt', made / 'run'
    for n in (0, 41, -1):
        assert f'initial_step={n} must be between 1 ' in refused(*ckpt, '--initial_step', n)
    assert '2048 x 32 = 65536' in refused(*ckpt, '--superres', 2048)
    assert '3 x 32 = 96' in refused(*ckpt, '--superres', 1, 3)
    assert '--superres 0' in refused(*ckpt, '--superres', 0)
    assert 'batch_size' in refused(*ckpt, '--batch_size', 0)
    assert '--json' in refused(*ckpt, '--json', tmp_path / 'nowhere' / 'eval.json')
    assert 'leave --split test out' in refused(*ckpt, '--data', made / 'burgers.hdf5', '--split', 'test')
    assert 'no data file' in refused(*ckpt, '--data', tmp_path / 'nothing.hdf5')
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match='--device cuda'):
            ev.main(['--ckpt', str(made / 'run'), '--device', 'cuda'])


def test_the_weights_are_the_averaged_ones(made, tmp_path):
    state = load_checkpoint(str(made / 'run' / 'best.pt'))
    state['model'] = {k: v + 1 for k, v in state['model'].items()}
    save_checkpoint(str(tmp_path / 'best.pt'), state)
    [a], [b] = run('--ckpt', made / 'run'), run('--ckpt', tmp_path)
    assert a['metrics']['nrmse'] == b['metrics']['nrmse']
    assert torch.equal(build(state['model_args'], state['ema'], '').mean, torch.zeros(1))
