"""sample.py: rollouts by what later stages have trained, their members, those that a search chooses; and the
pictures of members."""
import warnings

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.image import imread

import sample
from conftest import save, tiny, waves, write
from metrics import ensemble_metrics
from model import PARTS, load
from pictures import draw_member_lines, draw_member_maps, draw_members
from search import Rewards, Search, Settings
from test_sample import plane, run, user_error

ALL = {'parts': PARTS, 'flow_dim': 16, 'flow_depth': 1, 'noise_dim': 4}
FRAMES = 5


@pytest.fixture(scope='module')
def ckpt(tmp_path_factory):
    """A model with all parts, on a file of 64 cells of which it sees 32."""
    folder = tmp_path_factory.mktemp('members')
    file = write(folder / 'nu0.01.hdf5', waves(10, FRAMES, 64))
    return save(tiny(**ALL, first=(.5 / 64,)), folder / 'best.pt', file)


@pytest.fixture
def drawn(monkeypatch):
    """The arguments of what would be drawn: [(name, arguments)]"""
    calls = []
    for name in ('draw', 'draw_members'):
        monkeypatch.setattr(sample, name, lambda *args, name=name: calls.append((name, args)))
    return calls


def given(frames=1):
    """Frames of the test trajectory, (1, frames, 64, 1)"""
    return torch.from_numpy(waves(10, FRAMES, 64)).float()[:1, :frames, :, None]


def test_members_and_their_mean(ckpt, drawn, tmp_path, capsys):
    a = run(ckpt, '--by', 'residual', '--members', 3, '--flow_steps', 2, '--seed', 4, out=tmp_path)
    m = load(ckpt)
    expected = m.rollout(given()[:, 0, ::2], 4, m.grid(64), by='residual', members=3, flow_steps=2, seed=4)
    assert a['members'].shape == (1, 3, 4, 64, 1) and a['u'].shape == (1, 4, 64, 1)
    assert torch.allclose(a['members'], expected, atol=1e-5)
    assert torch.allclose(a['u'], a['members'].mean(1), atol=1e-6)
    assert a['members'].std(1).min() > 0
    scores = ensemble_metrics(a['members'], a['truth'])
    out = capsys.readouterr().out
    assert (f"nRMSE {scores['nrmse_mean']:.4f}, CRPS {scores['crps']:.4f}, "
            f"spread-skill {scores['spread_skill']:.3f} (of the first") in out
    assert 'latent rollout, mean of 3 members by residual, at 64 points' in out
    [(_, whole), (name, args)] = drawn
    _, _, t, members, truth, fields, title = args
    assert name == 'draw_members' and fields == ['u'] and title.endswith('\nmean of 3 members by residual')
    assert len(t) == 5 and members.shape == (3, 5, 64, 1) and truth.shape == (5, 64, 1)
    assert np.array_equal(members[:, 1:], a['members'][0]) and np.ptp(members[:, 0], 0).max() == 0
    assert np.allclose(whole[3][1:], a['u'][0], atol=1e-6)           # the prediction in rollout.png


def test_a_seed_repeats(ckpt, drawn, tmp_path):
    """Eight members are what nothing is said of."""
    argv = ['--by', 'ensemble', '--steps', 2, '--seed']
    a, b, c = [run(ckpt, *argv, seed, out=tmp_path) for seed in (1, 1, 2)]
    assert a['members'].shape == (1, 8, 2, 64, 1)
    assert torch.equal(a['members'], b['members'])
    assert not torch.allclose(a['members'], c['members'], atol=1e-4)


def test_one_rollout_that_draws_noise(ckpt, drawn, tmp_path, capsys):
    a = run(ckpt, '--by', 'distill', '--members', 0, '--rollout', 'reencode', out=tmp_path)
    m = load(ckpt)
    expected = m.rollout(given()[:, 0, ::2], 4, m.grid(64), by='distill', reencode=True)
    assert 'members' not in a and torch.allclose(a['u'], expected, atol=1e-5)
    assert 'CRPS' not in capsys.readouterr().out
    [(name, args)] = drawn
    assert name == 'draw' and args[6].endswith('\nby distill')


def test_members_of_several_trajectories_at_points(ckpt, drawn, monkeypatch, tmp_path):
    """In batches of one, which draw noise of their own; without a picture."""
    monkeypatch.setattr(sample, 'POINTS', 1)
    np.save(tmp_path / 'u0.npy', np.stack(2 * [given()[0, 0].numpy()]))
    a = run(ckpt, '--by', 'steady', '--members', 2, '--initial', tmp_path / 'u0.npy', '--steps', 3,
            '--points', .1, .7, .9, out=tmp_path)
    assert a['members'].shape == (2, 2, 3, 3, 1) and a['u'].shape == (2, 3, 3, 1)
    assert torch.allclose(a['u'], a['members'].mean(1), atol=1e-6)
    assert (a['members'][0] - a['members'][1]).abs().max() > 1e-3
    assert not drawn


def test_a_search(ckpt, drawn, tmp_path, capsys):
    """On the trained grid: what search.py finds, and what it takes."""
    keys = ['candidates=3', 'beam_width=2', 'seed=5']
    a = run(ckpt, '--ttc', *keys, '--steps', 3, out=tmp_path)
    m = load(ckpt)
    params = {'Nu': torch.tensor([.01])}
    settings = Settings.of(keys)
    search = Search(m, given()[:, 0, ::2], 3, params, settings, Rewards(m, settings, params))
    assert torch.allclose(a['u'], search.best(), atol=1e-5) and a['u'].shape == (1, 3, 32, 1)
    assert torch.allclose(a['truth'], given(4)[:, 1:, ::2], atol=1e-5) and len(a['x']) == 32
    assert f'search by ensemble: {int(search.spent)} evaluations of networks for a rollout, 5 a step, ' \
        'rewarded for mass, energy, residual' in capsys.readouterr().out
    assert int(search.spent) == 3 + 6 + 6
    [(name, args)] = drawn
    assert name == 'draw' and args[6].endswith('\nchosen among proposals by ensemble')
    assert not torch.allclose(a['u'], run(ckpt, '--ttc', *keys[:2], '--steps', 3, out=tmp_path)['u'])


def test_what_is_refused(ckpt, monkeypatch, tmp_path):
    """Before any work."""
    monkeypatch.setattr(sample, 'make_start', None)
    for name in ('members', 'flow_steps', 'seed'):
        assert 'the operator draws no noise' in user_error(ckpt, f'--{name}', 3)
    assert 'the operator draws no noise' in user_error(ckpt, '--by', 'operator', '--members', 4)
    for members in (-1, 1):
        text = user_error(ckpt, '--by', 'ensemble', '--members', members)
        assert text.startswith(f'--members {members} must be 2 or more')
    assert '--flow_steps -1 0 or more' in user_error(ckpt, '--by', 'residual', '--flow_steps', -1)
    for more in (['--points', .1], ['--resolution', 64], ['--rollout', 'reencode'], ['--by', 'residual'],
                 ['--members', 2], ['--seed', 1], ['--flow_steps', 2]):
        assert '--ttc makes one latent rollout on the trained grid' in user_error(ckpt, '--ttc', *more)
    for more in (['--ttc'], ['--by', 'ensemble']):
        assert 'leave --by and --ttc out' in user_error(ckpt, '--tokens', *more)
    assert 'not a value' in user_error(ckpt, '--ttc', 'candidates=x')
    assert 'at least 1' in user_error(ckpt, '--ttc', 'candidates=0')
    assert 'no reward applies' in user_error(ckpt, '--ttc', 'mass=0', 'energy=0', 'residual=0')
    assert 'without a choice: 9' in user_error(ckpt, '--ttc', 'max_evaluations=8', '--steps', 9)
    bare = save(tiny(first=(.5 / 64,)), tmp_path / 'bare.pt', write(tmp_path / 'nu.hdf5', waves(10, 3, 64)))
    for more in (['--by', 'ensemble'], ['--ttc']):
        assert "train it with the stage 'ensemble'" in user_error(bare, *more)


# --- pictures ----------------------------------------------------------------

def ensemble(*shape, n_member=3, seed=0):
    """Members (M, *shape) and a truth."""
    random = np.random.default_rng(seed)
    return random.standard_normal((n_member, *shape)), random.standard_normal(shape)


def test_pictures_of_one_axis(ckpt, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sample, 'draw', lambda *args: None)
    run(ckpt, '--by', 'ensemble', '--members', 2, '--steps', 2, out=tmp_path)
    assert (tmp_path / 'members.png').read_bytes()[:4] == b'\x89PNG'
    assert f"-> {tmp_path / 'members.png'}" in capsys.readouterr().out


def test_pictures_of_two_axes(monkeypatch, tmp_path):
    monkeypatch.setattr(sample, 'draw', lambda *args: None)
    file = write(tmp_path / 'plane.hdf5', np.random.default_rng(0).standard_normal((10, 2, 8, 8)), dt=1.)
    ckpt = save(plane(**ALL, first=(1 / 16,) * 2), tmp_path / 'best.pt', file)
    a = run(ckpt, '--by', 'ensemble', '--members', 2, out=tmp_path)
    assert a['members'].shape == (1, 2, 1, 8, 8, 1)
    assert torch.allclose(a['u'], a['members'].mean(1), atol=1e-6)
    height, width, _ = imread(tmp_path / 'members.png').shape
    assert height > 2 * width                                        # 5 rows of one time


def test_what_the_curves_are():
    """The truth, the mean, a band about it, every member; each field has a row."""
    members, truth = ensemble(5, 8, 2)
    x = np.arange(8.)
    mean = members.mean(0)
    spread = members.std(0, ddof=1)
    for true, n_lines in ((truth, 5), (None, 4)):
        figure = draw_member_lines([x], np.arange(5.), [2, 4], members, mean, spread, true, ['u', 'v'])
        assert len(figure.axes) == 4
        axis = figure.axes[3]                                        # v in frame 4
        lines = {line.get_label(): line.get_ydata() for line in axis.lines}
        assert len(axis.lines) == n_lines and np.array_equal(lines['mean'], mean[4, :, 1])
        assert np.array_equal(lines['members'], members[0, 4, :, 1])
        assert ('truth' in lines) == (true is not None)
        [band] = axis.collections
        _, y = band.get_paths()[0].vertices.T
        assert y.max() == (mean + spread)[4, :, 1].max() and y.min() == (mean - spread)[4, :, 1].min()
        assert figure.axes[2].get_ylabel() == 'v' and figure.axes[1].get_title() == 't = 4.00 s'
        pyplot.close(figure)


def test_what_the_maps_are():
    """Mean and members share their colours, which are those of the truth where there is one."""
    members, truth = ensemble(3, 4, 6, 1)
    x = [np.arange(4.), np.arange(6.)]
    mean = members.mean(0)
    spread = members.std(0, ddof=1)
    for true in (truth, None):
        figure = draw_member_maps(x, np.arange(3.), [2], members, mean, spread, true, ['u'])
        images = [axis.images[0] for axis in figure.axes if axis.images]
        expected = [mean, members[0], members[1], spread, mean - truth]
        assert len(images) == (4 if true is None else 5)
        for image, u in zip(images, expected):
            assert np.array_equal(image.get_array(), u[2, ..., 0].T)
        limit = np.abs(mean if true is None else truth).max()
        assert {image.get_clim() for image in images[:3]} == {(-limit, limit)}
        assert images[3].get_clim() == (0, spread.max())
        bars = [axis.get_ylabel() for axis in figure.axes if axis.get_label() == '<colorbar>']
        assert bars == ['u', 'spread of u', 'error in u'][:len(images) - 2]
        pyplot.close(figure)


def test_members_that_blow_up(tmp_path):
    members, truth = ensemble(2, 8, 1)
    members[0, 1, 3] = np.inf
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        draw_members(str(tmp_path), [np.arange(8.)], np.arange(2.), members, truth, ['u'], 'one')
    assert (tmp_path / 'members.png').exists()
