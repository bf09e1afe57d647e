"""sample.py: rollouts by the steppers of later stages, their members, and those that a search chooses."""
import numpy as np
import pytest
import torch

import sample
from conftest import close, save, tiny, waves, write
from model import load
from probabilistic.rewards import Rewards
from probabilistic.scores import ensemble_metrics
from probabilistic.search import Search, Settings
from sampled import no_pictures, plane, run, user_error
from steppers import ALL

FRAMES = 5
pytestmark = pytest.mark.usefixtures(no_pictures.__name__)


@pytest.fixture(scope='module')
def ckpt(tmp_path_factory):
    """A model with all steppers, on a file of 64 cells of which it sees 32."""
    folder = tmp_path_factory.mktemp('members')
    file = write(folder / 'nu0.01.hdf5', waves(10, FRAMES, 64))
    return save(tiny(**ALL, first=(.5 / 64,)), folder / 'best.pt', file)


def true(frames=1):
    """Frames of the test trajectory, (1, frames, 64, 1)"""
    return torch.from_numpy(waves(10, FRAMES, 64)).float()[:1, :frames, :, None]


def test_members_and_their_mean(ckpt, no_pictures, tmp_path, capsys):
    argv = ['--stepper', 'diff_residual', '--n_members', 3, '--flow_steps', 2, '--seed', 4]
    a = run(ckpt, *argv, out=tmp_path)
    m = load(ckpt)
    m.diff_residual.n_steps = 2
    how = {'stepper': 'diff_residual', 'n_members': 3, 'seed': 4}
    close(a['members'], m.rollout(true()[:, 0, ::2], 4, m.grid(64), **how))
    assert a['members'].shape == (1, 3, 4, 64, 1) and a['members'].std(1).min() > 0
    close(a['u'], a['members'].mean(1), 1e-6)
    scores = ensemble_metrics(a['members'], a['truth'])
    out = capsys.readouterr().out
    assert f"nRMSE {scores['nrmse_mean']:.4f}" in out and f"CRPS {scores['relative_crps']:.4f}" in out
    [(_, whole), (name, args)] = no_pictures
    assert name == 'draw_members'
    assert np.array_equal(args[3][:, 1:], a['members'][0]) and np.ptp(args[3][:, 0], 0).max() == 0
    assert np.allclose(whole[3][1:], a['u'][0], atol=1e-6)           # the prediction in rollout.png


def test_a_seed_repeats(ckpt, tmp_path):
    """Eight members are the default."""
    argv = ['--stepper', 'ensemble', '--steps', 2, '--seed']
    a, b, c = [run(ckpt, *argv, seed, out=tmp_path) for seed in (1, 1, 2)]
    assert a['members'].shape == (1, 8, 2, 64, 1)
    assert torch.equal(a['members'], b['members'])
    assert not torch.allclose(a['members'], c['members'], atol=1e-4)


def test_a_single_stochastic_rollout(ckpt, no_pictures, tmp_path):
    argv = ['--stepper', 'consistency_distill', '--n_members', 0, '--rollout', 'reencode']
    a = run(ckpt, *argv, out=tmp_path)
    m = load(ckpt)
    close(a['u'], m.rollout(true()[:, 0, ::2], 4, m.grid(64), stepper='consistency_distill', reencode=True))
    assert 'members' not in a and [name for name, _ in no_pictures] == ['draw']


def test_members_of_several_trajectories_at_points(ckpt, no_pictures, monkeypatch, tmp_path):
    """In batches of one, each with noise of its own; without a picture."""
    monkeypatch.setattr(sample, 'POINTS', 1)
    np.save(tmp_path / 'u0.npy', np.stack(2 * [true()[0, 0].numpy()]))
    start = ['--initial', tmp_path / 'u0.npy', '--steps', 3]
    a = run(ckpt, *start, '--stepper', 'steady_prior', '--n_members', 2, '--points', .1, .7, .9, out=tmp_path)
    assert a['members'].shape == (2, 2, 3, 3, 1) and a['u'].shape == (2, 3, 3, 1)
    close(a['u'], a['members'].mean(1), 1e-6)
    assert (a['members'][0] - a['members'][1]).abs().max() > 1e-3
    assert not no_pictures


def test_members_of_two_axes(tmp_path):
    file = write(tmp_path / 'plane.hdf5', np.random.default_rng(0).standard_normal((10, 2, 8, 8)), dt=1.)
    two_axes = save(plane(**ALL, first=(1 / 16,) * 2), tmp_path / 'best.pt', file)
    a = run(two_axes, '--stepper', 'ensemble', '--n_members', 2, out=tmp_path)
    assert a['members'].shape == (1, 2, 1, 8, 8, 1)
    close(a['u'], a['members'].mean(1), 1e-6)


def test_a_search(ckpt, no_pictures, tmp_path, capsys):
    """On the trained grid: the rollouts of probabilistic/search.py, and the number of evaluations."""
    keys = ['candidates=3', 'beam_width=2', 'seed=5']
    a = run(ckpt, '--ttc', *keys, '--steps', 3, out=tmp_path)
    m = load(ckpt)
    params = {'Nu': torch.tensor([.01])}
    settings = Settings.of(keys)
    search = Search(m, true()[:, 0, ::2], 3, params, settings, Rewards(m, settings, params))
    close(a['u'], search.best())
    assert a['u'].shape == (1, 3, 32, 1) and len(a['x']) == 32
    close(a['truth'], true(4)[:, 1:, ::2])
    assert int(search.spent) == 3 + 6 + 6 and '15 evaluations' in capsys.readouterr().out
    assert [name for name, _ in no_pictures] == ['draw']
    assert not torch.allclose(a['u'], run(ckpt, '--ttc', *keys[:2], '--steps', 3, out=tmp_path)['u'])


@pytest.mark.parametrize('word, argv', [
    ('--n_members 1', ('--stepper', 'ensemble', '--n_members', 1)),
    ('--flow_steps -1', ('--stepper', 'diff_residual', '--flow_steps', -1)),
    ('no flow', ('--stepper', 'ensemble', '--flow_steps', 2)), ('--seed', ('--seed', 1)),
    ('--ttc', ('--ttc', '--points', .1)), ('--ttc', ('--ttc', '--stepper', 'ensemble')),
    ('--tokens', ('--tokens', '--ttc')), ('--tokens', ('--tokens', '--stepper', 'ensemble')),
    ('not a value', ('--ttc', 'candidates=x')), ('candidates', ('--ttc', 'candidates=0')),
    ('max_evaluations', ('--ttc', 'max_evaluations=8', '--steps', 9)),
    ('no reward', ('--ttc', 'mass=0', 'energy=0', 'residual=0'))])
def test_what_is_refused(ckpt, monkeypatch, word, argv):
    """Before any work."""
    monkeypatch.setattr(sample, 'make_start', None)
    assert word in user_error(ckpt, *argv)
