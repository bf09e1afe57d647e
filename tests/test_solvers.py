"""solvers.py: exact solutions, an independent solver, refinement and conservation. files.py writes what they
return."""
import numpy as np
import pytest
import torch

from conftest import refused
from solvers import advection, burgers, burgers_old, waves

FRAMES = np.arange(201) * .01


def drawn(n, X, seed=0):
    return torch.from_numpy(waves(n, (X,), seed=seed))


def smooth(X):
    """Exact cell averages of two sums of three sines, (2, X)."""
    rng = np.random.default_rng(3)
    k = np.arange(1, 4)[:, None]
    amplitude = rng.uniform(.05, .25, (2, 3, 1))
    phase = rng.uniform(0, 6, (2, 3, 1))
    x = (np.arange(X) + .5) / X
    return torch.from_numpy((amplitude * np.sinc(k / X) * np.sin(2 * np.pi * k * x + phase)).sum(1))


# ---------------------------------------------------------------------------------------------
# against exact solutions and another method

def cole_hopf(X, nu, t, a, c):
    """Cell averages of u = c - 2D (log phi)_x, phi = 1 + a exp(-4 pi^2 D t) cos 2 pi (x - c t). (T, X)"""
    D = nu / np.pi
    t = np.asarray(t)[:, None]
    edge = np.arange(X + 1) / X - c * t
    phi = 1 + a * np.exp(-4 * np.pi ** 2 * D * t) * np.cos(2 * np.pi * edge)
    return torch.from_numpy(c - 2 * D * X * np.diff(np.log(phi)))


@pytest.mark.parametrize('c', [0., .7], ids=['rest', 'moving'])
@pytest.mark.parametrize('t', [[0., .01, .02, 2.], [0., .0137, .1, .537, 1.99]], ids=['raster', 'off'])
@pytest.mark.parametrize('nu, X, a', [(1., 64, .9), (.1, 128, .9), (.1, 512, -.99), (.01, 256, .5),
                                      (.01, 1024, .99), (.001, 1024, .9)])
def test_cole_hopf_closed_form(nu, X, a, t, c):
    exact = cole_hopf(X, nu, t, a, c)
    u = burgers(exact[:1], nu, t)
    assert u.shape == (1, len(t), X) and u.dtype == torch.float64
    assert (u[0] - exact).abs().max() < 1e-11 * exact.abs().max()


@pytest.mark.parametrize('c', [0., .8])
@pytest.mark.parametrize('X', [256, 1024])
def test_travelling_shock(X, c):
    """A tanh shock thinner than a cell. A ramp from -A to A closes the period; its fan stays clear of the
    shock."""
    A = .5
    D = .001 / np.pi
    t = np.array([0., .1, .23, .3])

    def potential(y):                                   # integral of the profile over y in (.1, 1.1)
        z = np.abs(np.minimum(y, .9) - .5) * A / (2 * D)
        ramp = np.where(y > .9, A / .2 * ((y - 1) ** 2 - .01), 0.)
        return -2 * D * (z + np.log1p(np.exp(-2 * z))) + ramp

    def log_cosh(y):
        return np.abs(y) + np.log1p(np.exp(-2 * np.abs(y)))

    edge = np.arange(X + 1) / X
    wrap = edge < .1
    values = potential(np.where(wrap, edge + 1, edge)) - wrap * (potential(1.1) - potential(.1))
    u = burgers(torch.from_numpy(c + X * np.diff(values))[None], .001, t)[0].numpy()
    for frame, time in zip(u, t):
        left = np.arange(X) / X - .5 - c * time
        left -= np.round(left)
        near = np.abs(left) < .1
        right = left + 1 / X
        exact = c - 2 * D * X * (log_cosh(right * A / (2 * D)) - log_cosh(left * A / (2 * D)))
        assert np.abs(frame - exact)[near].max() < 1e-5, time


@pytest.mark.parametrize('nu, X', [(.01, 1024), (.1, 256)])
def test_independent_spectral_solver(nu, X):
    """Pseudo-spectral in space (2/3 rule), integrating factor and RK4 in time."""
    u0 = smooth(X)
    D = nu / np.pi
    n_step = 1500
    end = .75
    dt = end / n_step
    k = np.arange(X // 2 + 1)
    to_average = np.sinc(k / X)
    half = np.exp(-D * (2 * np.pi * k) ** 2 * dt / 2)

    def slope(v):
        return -1j * np.pi * k * (k < X / 3) * np.fft.rfft(np.fft.irfft(v, X) ** 2)

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
    X = 32
    D = .01 / np.pi
    k = np.arange(1, 17)[:, None]

    def wave(t):
        return np.cos(2 * np.pi * k * (np.arange(X) / X - c * t))

    u = burgers(c + 1e-6 * wave(0), .01, [0., tau])[:, 1].numpy() - c
    exact = 1e-6 * np.exp(-D * (2 * np.pi * k) ** 2 * tau) * wave(tau)
    whole = slice(None) if c == 0 else slice(-1)        # a shifted shortest wave is not on the grid
    assert np.abs(u - exact)[whole].max() < 1e-9


@pytest.mark.parametrize('nu, limit', [(.01, 1e-4), (.001, 2e-3)])
def test_refinement(nu, limit):
    def pairs(u):
        return u.unflatten(-1, (-1, 2)).mean(-1)

    fine = drawn(4, 2048)
    p = burgers(pairs(fine), nu, FRAMES)
    y = pairs(burgers(fine, nu, FRAMES))
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
    at_once = burgers(u0, nu, [0., 1.3])[:, -1]
    half = burgers(u0, nu, [0., .41])[:, -1]
    assert (burgers(half, nu, [0., .89])[:, -1] - at_once).abs().max() < 1e-9


def test_shift_and_reflection():
    u0 = drawn(2, 256)
    t = [0., .1, .7]
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


@pytest.mark.parametrize('solve, name', [(burgers, 'nu'), (burgers_old, 'nu'), (advection, 'beta')])
@pytest.mark.parametrize('change', [
    {'t': [0., .1, .1]}, {'t': [0., .2, .1]}, {'t': [.1, .2]}, {'t': []}, {'t': .1}, {'t': [0., np.nan]},
    {'t': [0., np.inf]}, {'value': 0.}, {'value': -.01}, {'value': np.nan}, {'value': np.inf},
    {'u0': np.zeros(8)},
    {'u0': np.zeros((2, 8, 1))}, {'u0': np.zeros((2, 1))}, {'u0': np.array([[0., np.nan, 1.]])},
    {'u0': np.array([[0., np.inf, 1.]])}])
def test_user_errors(solve, name, change):
    arguments = {'u0': np.zeros((2, 8)), 'value': .01, 't': [0., .1], **change}
    value = arguments.pop('value')
    refused(solve, **arguments, **{name: value})
    solve(np.zeros((2, 8)), .01, [0., .1])


def test_too_fine_a_grid_is_refused():
    assert 'finer cells' in refused(burgers, np.ones((1, 8)) * 1e9, .01, [0., .1])


# ---------------------------------------------------------------------------------------------
# the old generation

def test_old_generation_against_a_closed_form():
    """v = c - 2D (log phi)_x solves v_t + (v²/2)_x = D v_xx on any interval, so that u = v / 2 solves
    u_t + (u²)_x = D u_xx. On (-1, 1): phi = 1 + a exp(-pi² D t) cos pi (x - c t)."""
    X = 256
    nu = .1
    a = .9
    c = .6
    D = nu / np.pi
    t = np.array([0., .1, .5, 1.9])[:, None]
    dx = 2 / X
    edge = -1 + dx * np.arange(X + 1)
    phi = 1 + a * np.exp(-np.pi ** 2 * D * t) * np.cos(np.pi * (edge - c * t))
    exact = torch.from_numpy(c - 2 * D / dx * np.diff(np.log(phi))) / 2
    u = burgers_old(exact[:1], nu, t[:, 0])
    assert (u[0] - exact).abs().max() < 1e-11


# ---------------------------------------------------------------------------------------------
# advection

def resolved(x):
    """Two functions of the period 1 that 64 cells resolve, (2, *x.shape)."""
    angle = 2 * np.pi * x
    first = np.exp(np.sin(angle))
    second = np.cos(5 * angle + 1) + .3 * np.sin(3 * angle) - .2
    return torch.from_numpy(np.stack([first, second]))


@pytest.mark.parametrize('X', [64, 65, 256])
@pytest.mark.parametrize('beta', [.1, .4, 7.])
def test_advection_against_the_shifted_function(X, beta):
    t = np.array([0., .0137, .5, 1.234, 2.])
    x = (np.arange(X) + .5) / X
    exact = resolved(x - beta * t[:, None])
    u = advection(resolved(x), beta, t)
    assert u.shape == (2, 5, X) and u.dtype == torch.float64
    assert (u - exact).abs().max() < 1e-12


def test_advection_of_cell_averages():
    """Averages over the cells move as values at their centres do."""
    u0 = smooth(64)
    edge = np.arange(65) / 64 - .4 * .3
    rng = np.random.default_rng(3)
    k = np.arange(1, 4)[:, None]
    amplitude = rng.uniform(.05, .25, (2, 3, 1))
    phase = rng.uniform(0, 6, (2, 3, 1))
    primitive = (-amplitude / (2 * np.pi * k) * np.cos(2 * np.pi * k * edge + phase)).sum(1)
    exact = torch.from_numpy(64 * np.diff(primitive))
    assert (advection(u0, .4, [0., .3])[:, 1] - exact).abs().max() < 1e-12


def test_advection_of_the_shortest_wave():
    """The wave of +-1 cells has no sine on the grid: shifted by s cells it is its part in cos(pi s), and
    real."""
    u0 = torch.cos(np.pi * torch.arange(64.).double())[None]
    u = advection(u0, 1., [0., .25 / 64, .5 / 64, 1 / 64])
    exact = torch.cos(np.pi * torch.tensor([0., .25, .5, 1.], dtype=torch.float64))
    assert (u[0] - exact[:, None] * u0).abs().max() < 1e-12


def test_advection_keeps_integrals_and_whole_revolutions():
    u0 = drawn(5, 1024)
    u = advection(u0, .4, [0., .3, 1.7, 2.5, 5.])
    assert torch.equal(u[:, 0], u0)
    assert (u.mean(2) - u0.mean(1, keepdim=True)).abs().max() < 1e-14
    assert (u[:, 3:] - u0[:, None]).abs().max() < 1e-12          # beta t = 1 and 2
    assert (u[:, 1] - u0).abs().max() > .1


def test_advection_by_whole_cells_only_renumbers_them():
    u0 = drawn(5, 128)
    cells = np.array([0, 1, 5, 64, 200])
    u = advection(u0, .5, cells / 128 / .5)
    for i, shift in enumerate(cells):
        assert (u[:, i] - u0.roll(int(shift), 1)).abs().max() < 1e-12


def test_advection_semigroup():
    u0 = drawn(3, 255)                                  # an odd number of cells has no wave of +-1 cells
    at_once = advection(u0, .7, [0., 1.3])[:, -1]
    half = advection(u0, .7, [0., .41])[:, -1]
    assert (advection(half, .7, [0., .89])[:, -1] - at_once).abs().max() < 1e-12


def test_advection_of_what_the_cells_do_not_resolve():
    """Kinks, and the seam of `waves`, moved by 256 1/3 cells: against their function, on thirds of the
    cells."""
    fine = drawn(200, 3 * 1024)
    u = advection(fine[:, 1::3], 1., [0., (256 + 1 / 3) / 1024])[:, 1]
    exact = fine.roll(3 * 256 + 1, 1)[:, 1::3]
    nrmse = ((u - exact).square().mean(1) / exact.square().mean(1)).sqrt()
    assert 1e-5 < nrmse.mean() < 3e-4 and nrmse.max() < 3e-3
    assert (u.amax(1) - fine.amax(1)).max() < 1e-3      # no ringing
    assert (u.amin(1) - fine.amin(1)).min() > -1e-3


# ---------------------------------------------------------------------------------------------
# initial conditions

def test_initial_conditions_depend_on_seed_and_index_alone():
    u = waves(6, (64,), seed=5)
    assert np.array_equal(waves(3, (64,), seed=5), u[:3])
    assert np.array_equal(waves(2, (64,), seed=5, first=4), u[4:])
    assert not np.isclose(waves(6, (64,), seed=6), u).all(1).any()
    assert len(np.unique(u.round(9), axis=0)) == 6


def test_initial_condition_is_one_function_at_any_resolution():
    coarse = waves(6, (128,))
    fine = waves(6, (384,))
    assert np.allclose(coarse, fine[:, 1::3], atol=1e-12)              # the centres that both share


def test_distribution_of_initial_conditions():
    u = waves(2000, (256,))
    energy = np.abs(np.fft.rfft(u)[:, 1:]) ** 2
    tail = energy[:, 9:].sum(1) / energy.sum(1)         # beyond wave number 8, one for the period 1 - 1/1024
    windowed = np.abs(np.concatenate([u[:, :20], u[:, -20:]], 1)).max(1) < 1e-4
    assert np.isfinite(u).all() and np.abs(u).max() < 4
    assert .4 < np.abs(u.mean(1)).mean() < .56 and abs(u.mean()) < .1
    assert .07 < windowed.mean() < .13
    # the rest but for |u| (one in ten) holds at most 8 waves
    assert .77 < (tail < 1e-4).mean() < .87 and (tail[windowed] > 1e-4).mean() > .9
