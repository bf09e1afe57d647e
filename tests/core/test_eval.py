"""eval.py and scores.py on tiny random models and tiny files: what is rolled out, what is refused, the JSON,
the tables."""
import json
import math
import os
import random
import shutil

import h5py
import numpy as np
import pytest
import torch

import eval as ev
import pdes
import scores
from conftest import (ROOT, describe, error_line, evaluate, refused, run, save, tiny, user_error, waves,
                      write)
from metrics import mean_nrmse
from model import UPT, load
from runtime.checkpoint import load_checkpoint, save_checkpoint

METRICS = set('nrmse rmse mse mae max_error crmse brmse frmse_low frmse_mid frmse_high vrmse rel_l2 '
              'correlation_time spectral_energy_error conservation_gap recon_nrmse latent_norm_drift '
              'latent_gap ms_per_trajectory'.split())
TOP = {'ckpt', 'dataset', 'split', 'initial_step', 'rollout', 'n_trajectories', 'n_params', 'iter',
       'train_seconds', 'metrics', 'reencode', 'per_step', 'baselines'}


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


@pytest.mark.parametrize('args, says', [
    (['--by', 'steady'], 'this model has no prior'), (['--placements', -5], 'number of points'),
    (['--placements', 3], 'at least 5 points are needed'), (['--ttc'], 'this model has no ensemble')])
def test_what_a_model_cannot_do_is_said_before_any_work(burgers_file, tmp_path, monkeypatch, args, says):
    file = save(tiny(encoder_dim=0), tmp_path / 'best.pt', burgers_file)
    monkeypatch.setattr(ev, 'evaluate', None)
    assert says in user_error('--ckpt', file, *args)


def test_a_search_takes_the_trained_grid(burgers_file, tmp_path):
    parts = {'parts': ('ensemble',), 'noise_dim': 4}
    file = save(tiny(**parts), tmp_path / 'best.pt', burgers_file)
    coarse = str(tmp_path / 'coarse.hdf5')
    write(coarse, waves(2, 6, 16))
    assert 'the trained grid of 32 points, and the file has 16' in user_error(
        '--ckpt', file, '--data', coarse, '--ttc', 'by=ensemble')


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
