"""solvers.py: exact solutions, an independent solver, refinement, conservation, and the files it writes."""
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch

import solvers
from configurator import UserError
from solvers import burgers, burgers_initial, write_burgers

ROOT = os.path.dirname(os.path.abspath(solvers.__file__))
FRAMES = np.arange(201) * .01


def drawn(n, X, seed=0):
    return torch.from_numpy(burgers_initial(n, X, seed=seed))


def smooth(X):
    """Exact cell averages of two sums of three sines, (2, X)."""
    rng, k = np.random.default_rng(3), np.arange(1, 4)[:, None]
    amplitude, phase = rng.uniform(.05, .25, (2, 3, 1)), rng.uniform(0, 6, (2, 3, 1))
    x = (np.arange(X) + .5) / X
    return torch.from_numpy((amplitude * np.sinc(k / X) * np.sin(2 * np.pi * k * x + phase)).sum(1))


# ---------------------------------------------------------------------------------------------
# against exact solutions and another method

def cole_hopf(X, nu, t, a, c):
    """Cell averages of u = c - 2D (log phi)_x, phi = 1 + a exp(-4 pi^2 D t) cos 2 pi (x - c t). (T, X)"""
    D, t = nu / np.pi, np.asarray(t)[:, None]
    edge = np.arange(X + 1) / X - c * t
    phi = 1 + a * np.exp(-4 * np.pi ** 2 * D * t) * np.cos(2 * np.pi * edge)
    return torch.from_numpy(c - 2 * D * X * np.diff(np.log(phi)))


@pytest.mark.parametrize('c', [0., .7], ids=['rest', 'moving'])
@pytest.mark.parametrize('t', [[0., .01, .02, 2.], [0., .0137, .1, .537, 1.99]], ids=['raster', 'off'])
@pytest.mark.parametrize('nu, X, a', [(1., 64, .9), (.1, 128, .9), (.1, 512, -.99), (.01, 256, .5), (.01, 1024, .99),
                                      (.001, 1024, .9)])
def test_cole_hopf_closed_form(nu, X, a, t, c):
    exact = cole_hopf(X, nu, t, a, c)
    u = burgers(exact[:1], nu, t)
    assert u.shape == (1, len(t), X) and u.dtype == torch.float64
    assert (u[0] - exact).abs().max() < 1e-11 * exact.abs().max()


@pytest.mark.parametrize('c', [0., .8])
@pytest.mark.parametrize('X', [256, 1024])
def test_travelling_shock(X, c):
    """A tanh shock thinner than a cell. A ramp from -A to A closes the period; its fan stays clear of the shock."""
    A, D, t = .5, .001 / np.pi, np.array([0., .1, .23, .3])

    def potential(y):                                   # integral of the profile over y in (.1, 1.1)
        z = np.abs(np.minimum(y, .9) - .5) * A / (2 * D)
        ramp = np.where(y > .9, A / .2 * ((y - 1) ** 2 - .01), 0.)
        return -2 * D * (z + np.log1p(np.exp(-2 * z))) + ramp
    edge = np.arange(X + 1) / X
    wrap = edge < .1
    values = potential(np.where(wrap, edge + 1, edge)) - wrap * (potential(1.1) - potential(.1))
    u = burgers(torch.from_numpy(c + X * np.diff(values))[None], .001, t)[0].numpy()
    for frame, time in zip(u, t):
        left = np.arange(X) / X - .5 - c * time
        left -= np.round(left)
        near = np.abs(left) < .1
        log_cosh = lambda y: np.abs(y) + np.log1p(np.exp(-2 * np.abs(y)))  # noqa: E731
        exact = c - 2 * D * X * (log_cosh((left + 1 / X) * A / (2 * D)) - log_cosh(left * A / (2 * D)))
        assert np.abs(frame - exact)[near].max() < 1e-5, time


@pytest.mark.parametrize('nu, X', [(.01, 1024), (.1, 256)])
def test_independent_spectral_solver(nu, X):
    """Pseudo-spectral in space (2/3 rule), integrating factor and RK4 in time."""
    u0, D, n_step, end = smooth(X), nu / np.pi, 1500, .75
    k = np.arange(X // 2 + 1)
    dt, to_average = end / n_step, np.sinc(k / X)
    half = np.exp(-D * (2 * np.pi * k) ** 2 * dt / 2)
    slope = lambda v: -1j * np.pi * k * (k < X / 3) * np.fft.rfft(np.fft.irfft(v, X) ** 2)  # noqa: E731
    v = np.fft.rfft(u0.numpy()) / to_average
    for _ in range(n_step):
        a = slope(v)
        b = slope(half * (v + dt / 2 * a))
        c = slope(half * v + dt / 2 * b)
        d = slope(half ** 2 * v + dt * half * c)
        v = half ** 2 * v + dt / 6 * (half ** 2 * a + 2 * half * (b + c) + d)
    reference = np.fft.irfft(v * to_average, X)
    u = burgers(u0, nu, [0., .3, end])[:, -1].numpy()
    assert np.abs(u - reference).max() < 1e-9
    assert np.abs(u - u0.numpy()).max() > .1            # something did happen


@pytest.mark.parametrize('tau', [.02, .1, .4])          # cells refined 4, 2 and 1 times inside
@pytest.mark.parametrize('c', [0., .7])
def test_small_waves_decay_as_heat(tau, c):
    """Every wave number of 32 cells, the shortest wave of +-1 cells included."""
    X, D, k = 32, .01 / np.pi, np.arange(1, 17)[:, None]
    wave = lambda t: np.cos(2 * np.pi * k * (np.arange(X) / X - c * t))  # noqa: E731
    u = burgers(c + 1e-6 * wave(0), .01, [0., tau])[:, 1].numpy() - c
    exact = 1e-6 * np.exp(-D * (2 * np.pi * k) ** 2 * tau) * wave(tau)
    whole = slice(None) if c == 0 else slice(-1)        # a shifted shortest wave is not on the grid
    assert np.abs(u - exact)[whole].max() < 1e-9


@pytest.mark.parametrize('nu, limit', [(.01, 1e-4), (.001, 2e-3)])
def test_refinement(nu, limit):
    pairs = lambda u: u.unflatten(-1, (-1, 2)).mean(-1)  # noqa: E731
    fine = drawn(4, 2048)
    p, y = burgers(pairs(fine), nu, FRAMES), pairs(burgers(fine, nu, FRAMES))
    nrmse = ((p - y).square().mean(2) / y.square().mean(2)).sqrt()     # (B, T)
    assert nrmse.max() < limit


# ---------------------------------------------------------------------------------------------
# invariants

@pytest.mark.parametrize('nu, X', [(.1, 128), (.01, 512), (.001, 1024)])
def test_conservation_decay_and_maximum_principle(nu, X):
    u0 = drawn(5, X)
    u = burgers(u0, nu, FRAMES)
    assert torch.equal(u[:, 0], u0)
    assert (u.mean(2) - u0.mean(1, keepdim=True)).abs().max() < 1e-12
    assert u.square().mean(2).diff(dim=1).max() < 1e-12
    assert (u.amax(2) - u0.amax(1, keepdim=True)).max() < 1e-12
    assert (u.amin(2) - u0.amin(1, keepdim=True)).min() > -1e-12


@pytest.mark.parametrize('nu, X', [(.01, 256), (.001, 1024)])
def test_a_sample_does_not_depend_on_its_batch(nu, X):
    u0 = drawn(5, X) * torch.tensor([.1, 1., 3., 1., .5])[:, None]   # the fastest sets the sub-steps
    t = [0., .05, .5]
    u = burgers(u0, nu, t)
    for i in range(5):
        assert (burgers(u0[i:i + 1], nu, t)[0] - u[i]).abs().max() < 1e-10


@pytest.mark.parametrize('nu', [.1, .01, .001])
def test_semigroup(nu):
    u0 = drawn(3, 256)
    at_once, half = burgers(u0, nu, [0., 1.3])[:, -1], burgers(u0, nu, [0., .41])[:, -1]
    assert (burgers(half, nu, [0., .89])[:, -1] - at_once).abs().max() < 1e-9


def test_shift_and_reflection():
    u0, t = drawn(2, 256), [0., .1, .7]
    u = burgers(u0, .01, t)
    assert (burgers(u0.roll(37, 1), .01, t) - u.roll(37, 2)).abs().max() < 1e-10
    assert (burgers(-u0.flip(1), .01, t) + u.flip(2)).abs().max() < 1e-10


def test_trivial_cases_and_input_kinds():
    assert torch.equal(burgers(torch.zeros(2, 8), .01, [0., 1.]), torch.zeros(2, 2, 8, dtype=torch.float64))
    constant = burgers(torch.full((1, 64), 1.5), .01, [0., .3, 1.])
    assert (constant - 1.5).abs().max() < 1e-12
    u0 = drawn(1, 64)
    assert torch.equal(burgers(u0, .01, [0.])[:, 0], u0)
    t = torch.tensor([0., .1], dtype=torch.float64)
    assert torch.equal(burgers(u0.numpy(), .01, (0., .1)), burgers(u0, .01, t))


@pytest.mark.parametrize('change', [
    {'t': [0., .1, .1]}, {'t': [0., .2, .1]}, {'t': [.1, .2]}, {'t': []}, {'t': .1}, {'t': [0., np.nan]},
    {'t': [0., np.inf]}, {'nu': 0.}, {'nu': -.01}, {'nu': np.nan}, {'nu': np.inf}, {'u0': np.zeros(8)},
    {'u0': np.zeros((2, 8, 1))}, {'u0': np.zeros((2, 1))}, {'u0': np.array([[0., np.nan, 1.]])},
    {'u0': np.array([[0., np.inf, 1.]])}, {'u0': np.ones((1, 8)) * 1e9}])
def test_user_errors(change):
    with pytest.raises(UserError) as caught:
        burgers(**{'u0': np.zeros((2, 8)), 'nu': .01, 't': [0., .1], **change})
    assert '\n' not in str(caught.value)


# ---------------------------------------------------------------------------------------------
# initial conditions

def test_initial_conditions_depend_on_seed_and_index_alone():
    u = burgers_initial(6, 64, seed=5)
    assert np.array_equal(burgers_initial(3, 64, seed=5), u[:3])
    assert np.array_equal(burgers_initial(2, 64, seed=5, first=4), u[4:])
    assert not np.isclose(burgers_initial(6, 64, seed=6), u).all(1).any()
    assert len(np.unique(u.round(9), axis=0)) == 6


def test_initial_condition_is_one_function_at_any_resolution():
    coarse, fine = burgers_initial(6, 128), burgers_initial(6, 384)
    assert np.allclose(coarse, fine[:, 1::3], atol=1e-12)              # the centres that both share


def test_distribution_of_initial_conditions():
    u = burgers_initial(2000, 256)
    energy = np.abs(np.fft.rfft(u)[:, 1:]) ** 2
    tail = energy[:, 9:].sum(1) / energy.sum(1)         # beyond wave number 8, and one for the period 1 - 1/1024
    windowed = np.abs(np.concatenate([u[:, :20], u[:, -20:]], 1)).max(1) < 1e-4
    assert np.isfinite(u).all() and np.abs(u).max() < 4
    assert .4 < np.abs(u.mean(1)).mean() < .56 and abs(u.mean()) < .1
    assert .07 < windowed.mean() < .13
    # the rest but for |u| (one in ten) holds at most 8 waves
    assert .77 < (tail < 1e-4).mean() < .87 and (tail[windowed] > 1e-4).mean() > .9


# ---------------------------------------------------------------------------------------------
# files

def test_layout_of_a_written_file(burgers_file):
    with h5py.File(burgers_file) as file:
        tensor, x, t = file['tensor'], file['x-coordinate'][:], file['t-coordinate'][:]
        assert tensor.shape == (20, 201, 1024) and tensor.dtype == np.float32 and tensor.fletcher32
        assert np.allclose(x, (np.arange(1024) + .5) / 1024) and np.allclose(t, np.arange(202) * .01)
        assert file.attrs['Nu'] == .01 and file.attrs['seed'] == 0
        u0 = burgers_initial(20)
        assert np.array_equal(tensor[:, 0], u0.astype(np.float32))
        again = burgers(u0[7:8], .01, [0., .5, 2.])[0].numpy()
        assert np.abs(tensor[7, [0, 50, 200]] - again).max() < 1e-5
    assert os.listdir(os.path.dirname(burgers_file)) == [os.path.basename(burgers_file)]


@pytest.fixture
def short(monkeypatch):
    """Files of 3 frames."""
    monkeypatch.setattr(solvers, 'N_FRAMES', 3)


def test_exception_midway_leaves_no_file(tmp_path, monkeypatch, short):
    calls, solve = [], solvers.burgers

    def fail(u0, nu, t):
        calls.append(u0)
        if len(calls) == 5:
            raise RuntimeError('midway')
        return solve(u0, nu, t)
    monkeypatch.setattr(solvers, 'burgers', fail)
    with pytest.raises(RuntimeError, match='midway'):
        write_burgers(str(tmp_path / 'a.hdf5'), 9, .1, device='cpu', batch_size=1)
    assert not os.listdir(tmp_path)


def test_write_replaces_whole_files_only(tmp_path, monkeypatch, short):
    path = str(tmp_path / 'a.hdf5')
    write_burgers(path, 2, .1, device='cpu')
    before = open(path, 'rb').read()
    monkeypatch.setattr(solvers, 'burgers', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_burgers(path, 2, .1, device='cpu')
    assert open(path, 'rb').read() == before


@pytest.mark.parametrize('change', [{'n': 0}, {'nu': -1.}, {'n': 10 ** 12}])
def test_write_refuses(tmp_path, change):
    with pytest.raises(UserError):
        write_burgers(**{'path': str(tmp_path / 'a.hdf5'), 'n': 3, 'nu': .1, 'device': 'cpu', **change})
    assert not os.listdir(tmp_path)


def run(*args, **kw):
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    return subprocess.run([sys.executable, os.path.join(ROOT, 'solvers.py'), *map(str, args)], capture_output=True,
                          text=True, env=env, timeout=120, **kw)


def test_command_line(tmp_path, burgers_file):
    done = run('burgers', '--n', 4, '--out', 'sub dir/a.hdf5', '--device', 'cpu', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert '4 trajectories' in done.stdout and os.listdir(tmp_path / 'sub dir') == ['a.hdf5']
    with h5py.File(tmp_path / 'sub dir/a.hdf5') as file, h5py.File(burgers_file) as other:
        assert file['tensor'].shape == (4, 201, 1024)
        assert np.allclose(file['tensor'][:], other['tensor'][:4], atol=1e-6)      # n = 20 begins with these
    again = run('burgers', '--n', 4, '--out', 'sub dir/a.hdf5', '--device', 'cpu', cwd=tmp_path)
    assert again.returncode == 1 and again.stderr.startswith('error: ') and again.stderr.count('\n') == 1
