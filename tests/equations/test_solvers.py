"""
The solvers of equations/: tables of exact solutions, of solutions by other methods, of orders of convergence
and of budgets, for all equations; then what single solvers promise. Symmetries are in test_entries.py.
"""
import functools

import numpy as np
import pytest
import torch

from conftest import refused
from equations import (compressible_1d as gas, darcy as darcy_file, gray_scott as spots,
                       korteweg_de_vries as kdv, kuramoto_sivashinsky as ks,
                       reaction_diffusion as reaction, shallow_water as water)
from equations.advection import advection
from equations.burgers import burgers
from equations.burgers_old import burgers_old
from equations.common import centres, tridiagonal, waves
from equations.compressible_1d import compressible_1d, gas_waves
from equations.compressible_1d_outgoing import compressible_1d_outgoing
from equations.darcy import darcy, permeability
from equations.diffusion_reaction import FITZHUGH_K, diffusion_reaction, white_noise
from equations.diffusion_sorption import constants, diffusion_sorption
from equations.gray_scott import gray_scott
from equations.kolmogorov_flow import DRAG, kolmogorov_flow, strong_vorticity
from equations.korteweg_de_vries import korteweg_de_vries
from equations.kuramoto_sivashinsky import kuramoto_sivashinsky, kuramoto_sivashinsky_64, ks_waves
from equations.navier_stokes import navier_stokes, random_vorticity
from equations.reaction_diffusion import reaction_diffusion, unit_waves
from equations.shallow_water import BASIN, shallow_water, still_water
from references import (cole_hopf, radial, retardation, riemann, runge_kutta, similarity, simpson, solitons,
                        stoker, torsion, travelling_shock, viscous_shock, vorticity_rate)

NO_HEAT = 1e-8                          # viscosities of a gas that are too small to matter


def tensor(u):
    return torch.as_tensor(u).double()


def nrmse(u, reference):
    """Relative error of u, arrays or tensors."""
    u = tensor(u)
    reference = tensor(reference)
    return float((u - reference).norm() / reference.norm())


def coarse(u, factor):
    """Averages over factor x factor cells of the last two axes."""
    blocks = u.unflatten(-1, (-1, factor)).unflatten(-3, (-1, factor))
    return blocks.mean((-3, -1))


def smooth(X, shift=0.):
    """Exact cell averages of two sums of three sines, shifted to the right, (2, X)."""
    rng = np.random.default_rng(3)
    k = np.arange(1, 4)[:, None]
    amplitude = rng.uniform(.05, .25, (2, 3, 1))
    phase = rng.uniform(0, 6, (2, 3, 1))
    x = centres(X) - shift
    return tensor((amplitude * np.sinc(k / X) * np.sin(2 * np.pi * k * x + phase)).sum(1))


def vorticity(n=1, size=32):
    """Strong enough that the flow is not linear within a second."""
    return 1.3 * tensor(random_vorticity(n, (size, size)))


# ---------------------------------------------------------------------------------------------
# exact solutions: (function that returns the solver's fields and the exact ones, (B, T, ...); its arguments;
# largest error, relative to the largest exact value)

RASTER = (0., .01, .02, 2.)
OFF_RASTER = (0., .0137, .1, .537, 1.99)


def burgers_cole_hopf(nu, X, a, c, t):
    exact = tensor(cole_hopf(X, nu / np.pi, t, a, c))[None]
    return burgers(exact[:, 0], nu, t), exact


def burgers_old_cole_hopf():
    """v = 2u solves v_t + (v²/2)_x = D v_xx if u solves u_t + (u²)_x = D u_xx, here on (-1, 1)."""
    t = (0., .1, .5, 1.9)
    exact = tensor(cole_hopf(256, .1 / np.pi, t, .9, .6, length=2.))[None] / 2
    return burgers_old(exact[:, 0], .1, t), exact


def burgers_shock(X, c):
    """A shock thinner than a cell."""
    t = np.array([0., .1, .23, .3])
    exact, near = travelling_shock(X, c, .001 / np.pi, t)
    u = burgers(tensor(exact[:1]), .001, t)
    return u, torch.where(torch.from_numpy(near), tensor(exact), u)


def burgers_small_waves(tau, c):
    """Every wave number of 32 cells decays as heat: cells refined 4, 2 and 1 times inside."""
    k = np.arange(1, 17 if c == 0 else 16)[:, None, None]           # the grid has no shifted shortest wave
    t = np.array([[0.], [tau]])
    decay = np.exp(-.01 / np.pi * (2 * np.pi * k) ** 2 * t)
    exact = tensor(1e-6 * decay * np.cos(2 * np.pi * k * (np.arange(32) / 32 - c * t)))
    return burgers(c + exact[:, 0], .01, [0., tau]) - c, exact


def resolved(x):
    """Two functions of period 1 that 64 cells resolve, (2, *x.shape)."""
    angle = 2 * np.pi * x
    return tensor(np.stack([np.exp(np.sin(angle)), np.cos(5 * angle + 1) + .3 * np.sin(3 * angle) - .2]))


def advection_shifts(X, beta):
    t = np.array([0., .0137, .5, 1.234, 2.])
    exact = resolved(centres(X) - beta * t[:, None])
    return advection(exact[:, 0], beta, t), exact


def advection_of_averages():
    """Averages over the cells move as values at their centres do."""
    exact = torch.stack([smooth(64), smooth(64, .4 * .3)], 1)
    return advection(exact[:, 0], .4, [0., .3]), exact


def advection_of_the_shortest_wave():
    """+1, -1, +1, .. has no sine on the grid. Shifted by s cells, its factor cos(pi s) is left."""
    cells = np.array([0., .25, .5, 1.])
    exact = tensor(np.cos(np.pi * cells)[:, None] * np.cos(np.pi * np.arange(64)))[None]
    return advection(exact[:, 0], 1., cells / 64), exact


def advection_by_whole_cells():
    u0 = tensor(waves(5, (128,)))
    cells = [0, 1, 5, 64, 128, 200]                                 # 128: a revolution
    exact = torch.stack([u0.roll(shift, 1) for shift in cells], 1)
    return advection(u0, .5, np.array(cells) / 128 / .5), exact


def logistic_growth():
    t = np.array([0., .013, .4, 2.])
    start = np.array([0., .01, .5, 1., 1.7])[:, None]
    exact = tensor(start / (start + (1 - start) * np.exp(-3 * t)))[..., None].expand(-1, -1, 16)
    return reaction_diffusion(exact[:, 0], .2, 3., t), exact


def small_reacting_waves():
    """They grow and decay at the linear rate."""
    t = np.array([0., .05, .3])[:, None]
    decay = np.exp(-.02 * (4 * np.pi) ** 2 * t)
    exact = tensor(1e-9 * np.exp(4. * t) * (2 + decay * np.cos(4 * np.pi * centres(64) + .3)))[None]
    return reaction_diffusion(exact[:, 0], .02, 4., t[:, 0]), exact


def travelling_front():
    """Ablowitz and Zeppetella 1979: u = (1 + exp((x - ct) / w))^-2, w² = 6ν/ρ, c² = 25νρ/6. Two of them, back
    to back, close the period; each is alone within rounding."""
    nu = 1e-4
    rho = 10.
    t = np.array([0., .5, 1.])[:, None]
    front = .25 + 5 * np.sqrt(nu * rho / 6) * t
    distance = (np.abs(centres(1024) - .5) - front) / np.sqrt(6 * nu / rho)
    exact = tensor(1 / (1 + np.exp(distance)) ** 2)[None]
    return reaction_diffusion(exact[:, 0], nu, rho, t[:, 0]), exact


def sorption_similarity():
    """Far from x = 1 a constant is invaded as on a half line."""
    y, f = similarity(.15)
    x = centres(1024)
    u = diffusion_sorption(np.full((1, 1024), .15), [0., .5, 5.])
    later = [tensor(np.interp(x / np.sqrt(time), y, f)) for time in (.5, 5.)]
    exact = torch.stack([u[0, 0], *later])[None]
    return u, torch.where(tensor(x) < .35, exact, u)


def sorption_steady_state():
    """u = 1 - x / (1 + D), whatever the start."""
    u = diffusion_sorption(np.stack([constants(1, (32,))[0], np.zeros(32)]), [0., 3e4])
    exact = u.clone()
    exact[:, 1] = tensor(1 - centres(32) / (1 + 5e-4))
    return u, exact


def growth_rates():
    t = np.array([0., .3, 2.])[:, None]
    wave = np.arange(1, 9)[:, None, None]
    k = 2 * np.pi * wave / 20.
    exact = tensor(1e-8 * np.exp((k ** 2 - k ** 4) * t) * np.sin(k * centres(64, 0, 20.) + wave))
    return kuramoto_sivashinsky(exact[:, 0], 20., t[:, 0]), exact


def waves_of_one_length():
    """A sum of waves with |k|² = 25 transports nothing, as in the Taylor-Green vortex: it decays by
    exp(-4π² 25 νt)."""
    t = np.array([0., .3, 1.7])
    w0 = 0.
    for k_x, k_y, amplitude in [(5, 0, 1.), (3, 4, -.7), (4, -3, 2.), (0, 5, .4)]:
        phase = k_x * centres(32)[:, None] + k_y * centres(48)
        w0 = w0 + amplitude * np.cos(2 * np.pi * phase + k_x)
    exact = tensor(w0 * np.exp(-100 * np.pi ** 2 * 2e-3 * t)[:, None, None])[None]
    return navier_stokes(exact[:, 0], 2e-3, t, force=None), exact


def force_from_rest():
    """The flow stays a shear along the force: w = f (1 - exp(-8π²νt)) / 8π²ν."""
    t = np.array([0., .5, 2., 7.])
    phase = 2 * np.pi * (centres(32)[:, None] + centres(32))
    rate = 8 * np.pi ** 2 * 1e-3
    growth = (1 - np.exp(-rate * t))[:, None, None] / rate
    exact = tensor(growth * .1 * (np.sin(phase) + np.cos(phase)))[None]
    return navier_stokes(exact[:, 0], 1e-3, t), exact


def small_reacting_cosines():
    """A cosine along each axis on the rest state u = v = -k^(1/3), with the matrix exponential of its own
    2 x 2 system, whose diffusion is that of the 5-point Laplacian."""
    rest = -FITZHUGH_K ** (1 / 3)
    laplacian = 0.
    for wave, X in ((3, 24), (2, 16)):
        laplacian += 2 * (np.cos(np.pi * wave / X) - 1) * (X / 2) ** 2
    system = tensor([[1 - 3 * rest ** 2 + 1e-3 * laplacian, -1], [1, -1 + 5e-3 * laplacian]])
    start = tensor([1., .5])
    amplitude = torch.stack([start, torch.matrix_exp(3 * system) @ start])
    mode = tensor(np.cos(np.pi * 3 * centres(24))[:, None] * np.cos(np.pi * 2 * centres(16)))
    exact = (mode[..., None] * amplitude[:, None, None])[None]
    u = diffusion_reaction(rest + 1e-6 * exact[:, 0], [0., 3.])
    return (u - rest) / 1e-6, exact


def laminar_flow():
    """From rest. It keeps its shape, along the force."""
    t = np.array([0., .5, 2., 7.])
    rate = .1 * 16 + DRAG
    growth = (1 - np.exp(-rate * t))[:, None, None] / rate
    shape = -4 * np.cos(4 * centres(32, 0, 2 * np.pi)) + np.zeros((32, 1))
    exact = tensor(growth * shape)[None]
    return kolmogorov_flow(exact[:, 0], .1, t), exact


def decay_to_laminar_flow():
    """Every flow along the force does, whatever its waves."""
    t = np.array([0., .4, 2.])[:, None, None]
    y = centres(32, 0, 2 * np.pi) + np.zeros((32, 1))
    exact = 0.
    for wave, start in ((1, 2.), (4, -3.), (7, 1.)):
        rate = .05 * wave ** 2 + DRAG
        steady = -4 / rate if wave == 4 else 0.
        exact = exact + (steady + (start - steady) * np.exp(-rate * t)) * np.cos(wave * y)
    exact = tensor(exact)[None]
    return kolmogorov_flow(exact[:, 0], .05, t[:, 0, 0]), exact


def gray_scott_without_reaction():
    """u tends to 1, and very little v to 0, at the rates of their waves."""
    t = np.array([0., 7., 100.])[:, None, None]
    angle_x = 2 * np.pi * centres(24)[:, None]
    angle_y = 2 * np.pi * centres(16)
    u = .3 * np.exp(-(.03 + 2e-5 * 16 * np.pi ** 2 * 13) * t) * np.cos(3 * angle_x + 2 * angle_y)
    v = .2 * np.exp(-(.03 + .06) * t) * (1 + np.exp(-1e-5 * 16 * np.pi ** 2 * 25 * t) * np.sin(5 * angle_x))
    exact = tensor(np.stack([u, v + 0 * u], -1))[None]
    scale = torch.tensor([1., 1e-12])
    rest = torch.tensor([1., 0.])
    solved = gray_scott(rest + scale * exact[:, 0], .03, .06, t[:, 0, 0], refine=1)
    return (solved - rest) / scale, exact


def kdv_solitons():
    """The faster one passes through the other, in a flow of speed .5. √μ scales lengths and times."""
    t = np.array([0., 12., 35.])[:, None]
    x = (centres(256, -64, 64) - .5 * t + 64) % 128 - 64
    exact = tensor(solitons(x / 2 ** .5, t / 2 ** .5, (1., .6), (-22., -8.)))[None]
    return korteweg_de_vries(.5 + exact[:, 0], 2., t[:, 0]) - .5, exact


COLE_HOPF = [(1., 64, .9), (.1, 128, .9), (.1, 512, -.99), (.01, 256, .5), (.01, 1024, .99), (.001, 1024, .9)]
EXACT = [
    *[(burgers_cole_hopf, (*case, 0., RASTER), 1e-11) for case in COLE_HOPF],
    *[(burgers_cole_hopf, (*case, .7, OFF_RASTER), 1e-11) for case in COLE_HOPF],
    (burgers_old_cole_hopf, (), 1e-11),
    *[(burgers_shock, (X, c), 1e-5) for X, c in ((256, 0.), (256, .8), (1024, 0.), (1024, .8))],
    *[(burgers_small_waves, (tau, c), 1e-3) for tau in (.02, .1, .4) for c in (0., .7)],
    *[(advection_shifts, case, 4e-13) for case in ((64, .4), (65, 7.), (256, .1))],
    (advection_of_averages, (), 1e-12),
    (advection_of_the_shortest_wave, (), 1e-12),
    (advection_by_whole_cells, (), 4e-13),
    (logistic_growth, (), 5e-13),
    (small_reacting_waves, (), 1e-8),
    (travelling_front, (), 2e-5),
    (sorption_similarity, (), (1e-9, 5e-4, 5e-5)),                  # of each frame
    (sorption_steady_state, (), 1e-8),
    (growth_rates, (), 5e-6),
    (waves_of_one_length, (), 2e-13),
    (force_from_rest, (), 1e-12),
    (small_reacting_cosines, (), 1e-4),
    (laminar_flow, (), 1e-12),
    (decay_to_laminar_flow, (), 1e-12),
    (gray_scott_without_reaction, (), 1e-9),
    (kdv_solitons, (), 1e-5)]


def name_of(value):
    return value.__name__ if callable(value) else None


@pytest.mark.parametrize('problem, arguments, tolerance', EXACT, ids=name_of)
def test_exact_solutions(problem, arguments, tolerance):
    u, exact = problem(*arguments)
    size = exact.abs().max()
    assert u.shape == exact.shape and u.dtype == torch.float64
    error = (u - exact).abs().transpose(0, 1).flatten(1).amax(1)    # (T,)
    assert (error < tensor(tolerance) * size).all(), error / size
    assert (exact - exact[:, :1]).abs().max() > .01 * size          # something happens


# ---------------------------------------------------------------------------------------------
# the classical Runge-Kutta method of fourth order, with another discretisation in space

def burgers_by_spectra(nu, X, n_steps):
    """Pseudo-spectral with the 2/3 rule; values at the centres become averages."""
    k = 2 * np.pi * np.arange(X // 2 + 1)
    kept = np.arange(X // 2 + 1) < X / 3
    to_average = np.sinc(k / (2 * np.pi * X))
    u0 = smooth(X).numpy()

    def rate(v):
        transport = .5j * k * np.fft.rfft(np.fft.irfft(v, X) ** 2)
        return -1. * kept * (transport + nu / np.pi * k ** 2 * v)

    v = runge_kutta(rate, np.fft.rfft(u0) / to_average * kept, .75 / n_steps, n_steps)
    return burgers(u0, nu, [0., .3, .75]), np.fft.irfft(v * to_average, X)


def reaction_by_spectra():
    k = 2 * np.pi * np.arange(33)
    angle = 2 * np.pi * centres(64)
    u0 = .6 + .3 * np.sin(angle) + .2 * np.cos(2 * angle + 1)

    def rate(u):
        return np.fft.irfft(-.05 * k ** 2 * np.fft.rfft(u), 64) + 6. * u * (1 - u)

    return reaction_diffusion(u0[None], .05, 6., [0., .1, .3]), runge_kutta(rate, u0, 1e-3, 300)


def sorption_by_differences():
    """The equation divided by R, on nodes at the walls and the centres."""
    h = 1 / 64
    u0 = .3 + .2 * np.cos(7 * centres(64)) ** 2

    def rate(u):
        right = u[-1] / (1 + h / 2 / 5e-4)                          # u = D (last cell - u) / (h / 2)
        slope = np.concatenate([[(u[0] - 1) * 2], np.diff(u), [(right - u[-1]) * 2]]) / h
        return 5e-4 * np.diff(slope) / h / retardation(u)

    return diffusion_sorption(u0[None], [0., 10., 20., 30., 50.]), runge_kutta(rate, u0, .1, 500)


def ks_by_spectra():
    k = 2 * np.pi / 22. * np.arange(25)
    angle = 2 * np.pi * centres(48)
    u0 = .5 + np.cos(angle) + np.sin(3 * angle + 1)

    def rate(u):
        spectrum = np.fft.rfft(u)
        return np.fft.irfft((k ** 2 - k ** 4) * spectrum, 48) - u * np.fft.irfft(1j * k * spectrum, 48)

    return kuramoto_sivashinsky(u0[None], 22., [0., .7, 2.]), runge_kutta(rate, u0, 1e-3, 2000)


def vorticity_by_spectra():
    w0 = vorticity()
    wave = np.abs(np.fft.fftfreq(32, 1 / 32))
    kept = (wave[:, None] < 32 / 3) & (wave < 32 / 3)
    rate = functools.partial(vorticity_rate, nu=1e-3)
    w = runge_kutta(rate, np.fft.fft2(w0[0].numpy()) * kept, .01, 150)
    return navier_stokes(w0, 1e-3, [0., .4, 1.5], refine=1, cfl=.1), np.fft.ifft2(w).real


def reaction_of_a_cell():
    u0 = np.array([.8, -.3])

    def rate(u):
        return np.array([u[0] - u[0] ** 3 - FITZHUGH_K - u[1], u[0] - u[1]])

    exact = np.tile(runge_kutta(rate, u0, .01, 300), (8, 6, 1))
    return diffusion_reaction(np.tile(u0, (1, 8, 6, 1)), [0., .7, 3.]), exact


def fed_reaction_of_a_cell():
    u0 = np.array([.6, .3])

    def rate(u):
        reaction = u[0] * u[1] ** 2
        return np.array([.04 * (1 - u[0]) - reaction, reaction - .1 * u[1]])

    exact = np.tile(runge_kutta(rate, u0, .2, 200), (8, 6, 1))
    return gray_scott(np.tile(u0, (1, 8, 6, 1)), .04, .06, [0., 9., 40.], refine=1), exact


def long_waves_by_differences():
    """The 9-point Laplacian of fourth order, on long waves."""
    angle = 2 * np.pi * centres(64)
    v = .3 + .1 * np.cos(2 * angle)[:, None] + .1 * np.sin(angle)
    u0 = np.stack([1 - v, v], -1)

    def rate(fields):
        laplacian = 0.
        for axis in (0, 1):
            for cells, weight in ((0, -2.5), (1, 4 / 3), (-1, 4 / 3), (2, -1 / 12), (-2, -1 / 12)):
                laplacian = laplacian + 128 ** 2 * weight * np.roll(fields, cells, axis)
        u, v = np.moveaxis(fields, -1, 0)
        made = u * v ** 2
        change = np.stack([.03 * (1 - u) - made, made - .09 * v], -1)
        return np.array([2e-5, 1e-5]) * laplacian + change

    return gray_scott(u0[None], .03, .06, [0., 11., 20.], refine=1, step=1.), runge_kutta(rate, u0, .5, 40)


def white_noise_by_differences():
    """Fluxes between the cells."""
    u0 = white_noise(1, (32, 32))

    def rate(u):
        total = 0.
        for axis in (0, 1):
            flux = np.diff(u, axis=axis) * 16                       # 1/h; none through the walls
            wall = [(1, 1) if a == axis else (0, 0) for a in range(3)]
            total = total + np.diff(np.pad(flux, wall), axis=axis) * 16
        reaction_u = u[..., 0] - u[..., 0] ** 3 - FITZHUGH_K - u[..., 1]
        return np.array([1e-3, 5e-3]) * total + np.stack([reaction_u, u[..., 0] - u[..., 1]], -1)

    return diffusion_reaction(u0, [0., .05, .1, 1.]), runge_kutta(rate, u0[0], .005, 200)


RUNGE_KUTTA = [                         # solution, arguments, largest error
    (burgers_by_spectra, (.01, 512, 1500), 1e-9),
    (burgers_by_spectra, (.1, 128, 1500), 1e-9),
    (reaction_by_spectra, (), 5e-6),
    (sorption_by_differences, (), 1e-4),
    (ks_by_spectra, (), 2e-5),
    (vorticity_by_spectra, (), 1e-6),
    (reaction_of_a_cell, (), 1e-5),
    (white_noise_by_differences, (), 1e-3),
    (fed_reaction_of_a_cell, (), 5e-5),
    (long_waves_by_differences, (), 1e-3)]


@pytest.mark.parametrize('problem, arguments, tolerance', RUNGE_KUTTA, ids=name_of)
def test_against_runge_kutta(problem, arguments, tolerance):
    u, expected = problem(*arguments)
    expected = tensor(expected)
    last = u[:, -1] if expected.ndim == u.ndim - 1 else u[0, -1]
    assert (last - u[:, 0]).abs().max() > .1                        # something happens
    assert (last - expected).abs().max() < tolerance


# ---------------------------------------------------------------------------------------------
# convergence: (function of a size that returns errors; its other arguments; two sizes; bounds on the errors
# of the second one; least factor by which the errors fall)

def burgers_cells(nu, X):
    def pairs(u):
        return u.unflatten(-1, (-1, 2)).mean(-1)

    fine = tensor(waves(4, (2 * X,)))
    t = np.arange(101) * .01
    p = burgers(pairs(fine), nu, t)
    y = pairs(burgers(fine, nu, t))
    return ((p - y).square().mean(2) / y.square().mean(2)).sqrt().max()


def sorption_cells(X):
    u0 = constants(2, (X,))
    u = diffusion_sorption(u0, [0., 5., 20.])[:, 1:]
    finer = diffusion_sorption(np.repeat(u0, 2, 1), [0., 5., 20.])[:, 1:]
    return nrmse(u, finer.unflatten(2, (X, 2)).mean(3))


def gas_jumps(left, right, time, X):
    """Mean error. It is not halved with the cells, because of jumps and of heat at the walls."""
    x = centres(X, -1, 1)
    u0 = np.where((x < 0)[:, None], left, right)[None]
    u = compressible_1d_outgoing(u0, NO_HEAT, NO_HEAT, [0., time])[0, 1].numpy()
    return np.abs(u - riemann(left, right, x / time)).mean(0)


def gas_viscous_shock(drift, X):
    """Both viscosities, the work of friction, the energy."""
    viscosity = 4 / 3 * .03 + .02
    u0 = viscous_shock(X, viscosity, drift, 0.)[None]
    u = compressible_1d_outgoing(u0, .03, .02, [0., .3])[0, 1].numpy()
    return np.abs(u - viscous_shock(X, viscosity, drift, .3)).max(0)


def gas_transport(X):
    """The density at constant pressure and velocity, which stay constant."""
    x = centres(X, -1, 1)
    u0 = np.stack([2 + np.sin(np.pi * x), np.full(X, 3.), np.full(X, .8)], 1)[None]
    u = compressible_1d(u0, NO_HEAT, NO_HEAT, [0., .7])[0, 1].numpy()
    assert np.abs(u[:, 1:] - u0[0, :, 1:]).max() < 1e-12
    return np.abs(u[:, 0] - 2 - np.sin(np.pi * (x - .56))).mean()


def gas_moving_frame(X):
    """A moving gas is the same but for the error of the cells."""
    u0 = tensor(gas_waves(2, (X,)))
    lift = torch.tensor([0., 0., 1.])
    u = compressible_1d(u0, .05, .05, [0., .0625])[:, 1]
    moved = compressible_1d(u0 + lift, .05, .05, [0., .0625])[:, 1] - lift
    error = (moved.roll(-X // 32, 1) - u).square().mean((0, 1))
    return (error / u.square().mean((0, 1))).sqrt()


@functools.cache
def flow(**options):
    return navier_stokes(vorticity(), 1e-3, [0., 2.], **options)[0, -1]


def flow_steps(cfl):
    return nrmse(flow(refine=1, cfl=cfl), flow(refine=1, cfl=.05))


def flow_cells(refine):
    return nrmse(flow(refine=refine), flow(refine=3))


def noise_steps(step):
    u0 = white_noise(1, (32, 32))
    exact = diffusion_reaction(u0, [0., .05, .3], step=.05 / 16)[:, 1:]
    return nrmse(diffusion_reaction(u0, [0., .05, .3], step=step)[:, 1:], exact)


@functools.cache
def kolmogorov(refine):
    return kolmogorov_flow(strong_vorticity(1, (32, 32)), .025, [0., 5.], refine)[0, -1]


def kolmogorov_cells(refine):
    return nrmse(kolmogorov(refine), kolmogorov(3))


@functools.cache
def pattern(refine, step=spots.GS_STEP):
    return gray_scott(spots.drops(1, (32, 32)), .029, .057, [0., 100.], refine, step)[0, -1, ..., 1]


def pattern_cells(refine):
    return nrmse(pattern(refine), pattern(4))


def pattern_steps(step):
    return nrmse(pattern(2, step), pattern(2, .5))


def kdv_cells(refine):
    finest = korteweg_de_vries(ks_waves(2, (128,)), 1., [0., 10., 20.], 4)
    return nrmse(korteweg_de_vries(ks_waves(2, (128,)), 1., [0., 10., 20.], refine), finest)


@functools.cache
def reacting_cosines(size):
    """At t = 1, (2, size, size)."""
    x = centres(size, -1, 1)[:, None]
    y = centres(size, -1, 1)
    u = np.cos(np.pi * x) * np.cos(np.pi * (y + 1) / 2) + .5 * np.cos(np.pi * 3 * (x + 1) / 2)
    v = .3 * np.cos(np.pi * 2 * y) + 0 * x
    return diffusion_reaction(np.stack([u, v], -1)[None], [0., 1.])[0, -1].movedim(-1, 0)


def reacting_cells(size):
    return nrmse(reacting_cosines(size), coarse(reacting_cosines(128), 128 // size))


def plane_dam(size):
    x = centres(size, -BASIN / 2, BASIN / 2)
    h0 = tensor(np.where(x < 0, 2., 1.))
    h, _, v = still_water(h0[None, :, None].expand(1, size, 4), [0., .3, 1.], full=True)[0, -1].unbind(-1)
    assert v.abs().max() == 0 and h.std(1).max() < 1e-14
    return (h.mean(1) - tensor(stoker(x, 1.))).abs().mean()


@functools.cache
def round_dam(size):
    return shallow_water([.6], [0., .2, .6], cells=size)[0, 1:, ..., 0]


def round_dam_cells(size):
    return (coarse(round_dam(size), size // 32) - coarse(round_dam(128), 4)).abs().mean()


def round_dam_in_polar_coordinates(size):
    x = centres(size, -BASIN / 2, BASIN / 2)
    r, h = radial(.6, .6)
    return (round_dam(size)[-1] - tensor(np.interp(np.hypot(x[:, None], x), r, h))).abs().mean()


def darcy_series(bend, size):
    """u = s + bend s² solves -∇·(a∇u) = 1 for a = 1/(1 + 2 bend s), because then a∇u = ∇s."""
    s = torsion(centres(size)[:, None], centres(2 * size))
    u = darcy(1 / (1 + 2 * bend * s)[None], 3.)[0]
    return nrmse(u, 3 * (s + bend * s ** 2))


def darcy_jumps(factor):
    """The coefficient of 32² cells, on grids with factor² and 4 factor² cells inside each."""
    a = tensor(permeability(2, (32, 32)))
    u = []
    for n in (factor, 2 * factor):
        u.append(coarse(darcy(a.repeat_interleave(n, 1).repeat_interleave(n, 2), 1.), n))
    return nrmse(*u)


SOD = ((1., 1., 0.), (.125, .1, 0.), .4)
RAREFACTIONS = ((1., .4, -2.), (1., .4, 2.), .2)                    # almost a vacuum
SHOCKS = ((6., 50., 3.), (6., 5., -6.), .1)
CONVERGENCE = [
    (burgers_cells, (.01,), (512, 1024), 1e-4, 3.),
    (burgers_cells, (.001,), (512, 1024), 2e-3, 2.5),
    (sorption_cells, (), (16, 32), 4e-2, 3.),
    (gas_jumps, SOD, (50, 100), (.006, .005, .008), (1.4, 1.4, 1.2)),
    (gas_jumps, RAREFACTIONS, (50, 100), (.01, .003, .01), (1.4, 1.4, 1.2)),
    (gas_jumps, SHOCKS, (50, 100), (.2, 1.5, .04), (1.4, 1.4, 1.2)),
    (gas_viscous_shock, (-.5,), (64, 128), .002, 3.),
    (gas_transport, (), (32, 64), 2e-3, 3.),
    (gas_moving_frame, (), (32, 64), .01, 1.5),
    (flow_steps, (), (.8, .4), 1e-5, 10.),                          # order 4
    (flow_cells, (), (1, 2), 1e-5, 10.),                            # 2 is what is taken for this nu
    (noise_steps, (), (.025, .0125), 5e-8, 8.),                     # order 4
    (kolmogorov_cells, (), (1, 2), 2e-3, 10.),                      # 2, 4 and 2 are what is taken
    (pattern_cells, (), (2, 3), 1e-3, 5.),
    (pattern_steps, (), (5., 2.5), 1e-3, 8.),                       # order 4
    (kdv_cells, (), (1, 2), 1e-3, 10.),
    (reacting_cells, (), (16, 32), 2e-2, 3.3),
    (plane_dam, (), (128, 256), 3.5e-3, 1.7),                       # a bore allows order 1
    (round_dam_cells, (), (32, 64), 4e-3, 1.7),
    (round_dam_in_polar_coordinates, (), (64, 128), 5e-3, 1.4),
    (darcy_series, (0.,), (32, 64), 1e-3, 3.9),
    (darcy_series, (10.,), (32, 64), 1e-3, 3.9),
    (darcy_jumps, (), (1, 2), 1.5e-2, 1.3)]                         # jumps of a allow order 1


@pytest.mark.slow
@pytest.mark.parametrize('error, arguments, sizes, bounds, factor', CONVERGENCE, ids=name_of)
def test_convergence(error, arguments, sizes, bounds, factor):
    large, small = [np.asarray(error(*arguments, size)) for size in sizes]
    assert (small < bounds).all(), small
    assert (large > np.multiply(factor, small)).all(), large / small


@pytest.mark.parametrize('module, finer, solve, u0, tolerance', [
    (reaction, {'REACTION_GROWTH': .01, 'REACTION_STEP': .002, 'REACTION_FIRST': 1e-6},
     lambda u, nu=nu, rho=rho: reaction_diffusion(u, nu, rho, [0., .003, .05, .3]), unit_waves(4, (512,)),
     1e-5) for nu, rho in ((.5, 1.), (5., 10.), (.01, 10.))] + [
    (ks, {'KS_STEP': .0125}, lambda u: kuramoto_sivashinsky_64(u, [0., 1., 10.]), ks_waves(3, (128,)), 1e-4),
    (kdv, {'KDV_STEP': .0125}, lambda u: korteweg_de_vries(u, 1., [0., 1., 10.]), ks_waves(3, (128,)), 1e-6)])
def test_shorter_steps_change_little(module, finer, solve, u0, tolerance, monkeypatch):
    u = solve(u0)
    for name, value in finer.items():
        monkeypatch.setattr(module, name, value)
    change = (u - solve(u0)).abs().max()
    assert 0 < change < tolerance


def test_steps_of_sorption_are_of_second_order():
    u0 = constants(2, (64,))
    exact, short, long = [diffusion_sorption(u0, [0., 5., 20.], growth)[:, 1:] for growth in (.0125, .05, .1)]
    errors = [float((u - exact).abs().max()) for u in (short, long)]
    assert errors[1] < 5e-5 and 3 < errors[1] / errors[0] < 10


def test_long_steps_of_the_gas():
    """Up to the limit of the scheme, three times the usual step changes the gas by less than the 64 cells do (.025)."""
    u0 = gas_waves(4, (64,))
    u = compressible_1d(u0, .01, .01, [0., .5])[:, 1]
    for cfl, bound in ((.6, .004), (.9, .008)):
        gap = (compressible_1d(u0, .01, .01, [0., .5], cfl=cfl)[:, 1] - u).square().mean().sqrt() / u.square().mean().sqrt()
        assert 1e-5 < gap < bound, (cfl, float(gap))


def test_fields_that_the_cells_resolve_are_the_same_on_finer_cells():
    u0 = np.exp(np.sin(2 * np.pi * centres(192)) - 1)[None]
    fine = reaction_diffusion(u0, .02, 5., [0., .2])
    assert (reaction_diffusion(u0[:, 1::3], .02, 5., [0., .2]) - fine[..., 1::3]).abs().max() < 1e-10
    fine = kuramoto_sivashinsky_64(ks_waves(3, (384,)), [0., 10.])
    assert (kuramoto_sivashinsky_64(ks_waves(3, (128,)), [0., 10.]) - fine[..., 1::3]).abs().max() < 1e-3


# ---------------------------------------------------------------------------------------------
# budgets: what changes, and what it should change by, as an integral of the solver's own fields

def reacting_mean():
    """d<u>/dt = ρ <u (1 - u)>"""
    u = reaction_diffusion(unit_waves(3, (256,)), .1, 4., np.arange(101) * .005)[:, 20:]
    rate = 4 * (u * (1 - u)).mean(2)
    return (u[:, -1] - u[:, 0]).mean(1), simpson(rate, .005)


def stored_solute():
    """The mean of m(u) changes by the flux through the walls, by one-sided differences of fourth order."""
    h = 1 / 128
    u = diffusion_sorption(constants(2, (128,)), [0., *100 + 5. * np.arange(13)])[:, 1:].numpy()
    stored = (u + (1 - .29) / .29 * 2880 * 3.5e-4 * u ** .874).mean(2)
    weights = np.array([35 / 8, -35 / 24, 21 / 40, -5 / 56])        # at 1/2, 3/2, 5/2, 7/2 cells from a wall
    left = (u[..., :4] @ weights - 352 / 105) / h                   # u = 1 at the wall
    right = u[..., :-5:-1] @ weights / h
    right = right / (1 / 5e-4 + 352 / 105 / h)                      # u = D (right - 352/105 u / h)
    return stored[:, -1] - stored[:, 0], simpson(-5e-4 * left - right, 5.)


def ks_energy():
    """d/dt <u²/2> = <u_x²> - <u_xx²>"""
    u = kuramoto_sivashinsky_64(ks_waves(3, (128,)) + .2, .05 * np.arange(161))[:, 60:].numpy()
    k = 2 * np.pi / 64 * np.arange(65)
    spectrum = np.fft.rfft(u)
    gain = np.square(np.fft.irfft(1j * k * spectrum, 128)).mean(2)
    loss = np.square(np.fft.irfft(-k ** 2 * spectrum, 128)).mean(2)
    energy = np.square(u).mean(2) / 2
    return energy[:, -1] - energy[:, 0], simpson(gain - loss, .05)


def enstrophy():
    """dZ/dt = -2νP + <wf>, Z = <w²>/2, P = <|∇w|²>/2"""
    h = 1e-3
    w = navier_stokes(vorticity(2, 64), 1e-3, [0., 1 - h, 1., 1 + h], refine=1)
    _, before, now, after = w.unbind(1)
    speed = (after ** 2 - before ** 2).mean((1, 2)) / (4 * h)
    wave = 2j * np.pi * torch.fft.fftfreq(64, 1 / 64).double()
    spectrum = torch.fft.fft2(now)
    slopes = [torch.fft.ifft2(k * spectrum).real for k in (wave[:, None], wave)]
    palinstrophy = (slopes[0] ** 2 + slopes[1] ** 2).mean((1, 2)) / 2
    phase = 2 * np.pi * tensor(centres(64)[:, None] + centres(64))
    work = (now * .1 * (phase.sin() + phase.cos())).mean((1, 2))
    return speed, work - 2e-3 * palinstrophy


def reacting_v():
    """Nothing passes the walls: d<v>/dt = <u> - <v>"""
    u = diffusion_reaction(white_noise(2, (32, 32)), [0., *1 + np.arange(5) * .02])[:, 1:].mean((2, 3))
    return u[:, -1, 1] - u[:, 0, 1], simpson(u[..., 0] - u[..., 1], .02)


def darcy_outflow():
    """What flows out through the boundary is the source."""
    a = tensor(permeability(3, (48, 32)))
    flow = 2 * a * darcy(a, .1)                                     # into the boundary, a u / (h/2)
    ends_x = flow[:, [0, -1]].sum((1, 2)) * 48 / 32                 # per 1/Y of the boundary
    ends_y = flow[:, :, [0, -1]].sum((1, 2)) * 32 / 48
    return ends_x + ends_y, torch.full((3,), .1, dtype=torch.float64)


@pytest.mark.parametrize('budget, least, tolerance', [
    (reacting_mean, .1, 1e-5), (stored_solute, .03, 3e-6), (ks_energy, .01, 1e-6), (enstrophy, 1e-3, 1e-7),
    (reacting_v, 1e-4, 1e-8), (darcy_outflow, .05, 1e-9)], ids=name_of)
def test_budgets(budget, least, tolerance):
    change, expected = budget()
    assert abs(change).min() > least
    assert abs(change - expected).max() < tolerance, abs(change - expected).max()


def test_dispersion_conserves_the_integrals_of_u_and_of_its_square():
    u = korteweg_de_vries(ks_waves(3, (256,)) + .3, 1., [0., 5., 10.])
    assert (u.mean(2) - .3).abs().max() < 1e-14
    energy = u.square().mean(2)
    assert (energy / energy[:, :1] - 1).abs().max() < 1e-6


def test_budgets_of_the_gas():
    """Mass, momentum and energy are conserved; the entropy grows."""
    u = compressible_1d(gas_waves(4, (64,)), .02, .01, [0., .05, .1])
    state = gas._conserved(u.movedim(-1, 0)).mean(3)
    size = state.abs().amax((1, 2), keepdim=True)
    assert ((state - state[..., :1]) / size).abs().max() < 1e-12
    entropy = (u[..., 0] * torch.log(u[..., 1] / u[..., 0] ** (5 / 3))).mean(2)
    assert entropy.diff(dim=1).min() > 1e-3


def test_budgets_of_water():
    h = shallow_water([.3, .7], np.linspace(0, 1, 6), cells=64, full=True)
    assert h.shape == (2, 6, 64, 64, 3) and h.dtype == torch.float64
    mass = h[..., 0].mean((2, 3))
    assert (mass - mass[:, :1]).abs().max() < 1e-13                 # the waves have not reached the edges
    momentum = (h[..., :1] * h[..., 1:]).mean((2, 3))
    assert momentum.abs().max() < 1e-13 and h[..., 1:].abs().max() > .1
    assert (h[..., 1] + h[..., 1].flip(2)).abs().max() < 1e-12      # u is odd in x
    assert (h[..., 2] - h[..., 1].transpose(2, 3)).abs().max() < 1e-12
    assert h[..., 0].min() > 0 and h[..., 0].max() < 2 + 1e-12


# ---------------------------------------------------------------------------------------------
# bounds, two steps for one, batches

@pytest.mark.parametrize('solve, u0, t', [
    *[(lambda u, t, nu=nu: burgers(u, nu, t), waves(5, (X,)), np.arange(0, 2., .05))
      for nu, X in ((.1, 128), (.01, 512), (.001, 1024))],
    (lambda u, t: reaction_diffusion(u, .01, 10., t), unit_waves(6, (256,)), [0., .01, .3, 1.]),
    (diffusion_sorption, np.concatenate([[np.zeros(64), np.ones(64)], constants(1, (64,))]), [0., .1, 5.])],
    ids=['burgers .1', 'burgers .01', 'burgers .001', 'reaction', 'sorption'])
def test_values_stay_between_their_bounds(solve, u0, t):
    """The maximum principle; the walls of diffusion-sorption are at 1 and near 0, and reaction leads to 1."""
    u = solve(u0, t)
    low = 0.
    high = 1.
    if u0.min() < 0:                                                # Burgers
        low = tensor(u0.min(1))
        high = tensor(u0.max(1))
        assert u.square().mean(2).diff(dim=1).max() < 1e-12
    assert (u.amin(2).T - low).min() > -1e-12
    assert (u.amax(2).T - high).max() < 1e-12


def test_nothing_moves_in_constant_fields():
    assert torch.equal(burgers(0 * LINE, .01, [0., 1.]), torch.zeros(2, 2, 8, dtype=torch.float64))
    assert (burgers(1.5 * np.ones((1, 64)), .01, [0., .3, 1.]) - 1.5).abs().max() < 1e-12


@pytest.mark.parametrize('solve, X, tolerance', [
    *[(lambda u, t, nu=nu: burgers(u, nu, t), 256, 1e-9) for nu in (.1, .01, .001)],
    (lambda u, t: advection(u, .7, t), 255, 1e-12)])               # odd: there is no shortest wave
def test_two_steps_are_one(solve, X, tolerance):
    u0 = tensor(waves(3, (X,)))
    half = solve(u0, [0., .41])[:, -1]
    assert (solve(half, [0., .89])[:, -1] - solve(u0, [0., 1.3])[:, -1]).abs().max() < tolerance


@pytest.mark.parametrize('nu, X', [(.01, 256), (.001, 1024)])
def test_the_fastest_sample_does_not_change_the_others(nu, X):
    """It sets the sub-steps of the whole batch."""
    u0 = tensor(waves(5, (X,))) * torch.tensor([.1, 1., 3., 1., .5])[:, None]
    u = burgers(u0, nu, [0., .05, .5])
    for i in range(5):
        assert (burgers(u0[i:i + 1], nu, [0., .05, .5])[0] - u[i]).abs().max() < 1e-10


def test_advection_of_what_the_cells_do_not_resolve():
    """Kinks, and the jump at the seam of `waves`, moved by 256 1/3 cells: against their function on thirds of
    the cells."""
    fine = tensor(waves(200, (3 * 1024,)))
    u = advection(fine[:, 1::3], 1., [0., (256 + 1 / 3) / 1024])[:, 1]
    exact = fine.roll(3 * 256 + 1, 1)[:, 1::3]
    error = ((u - exact).square().mean(1) / exact.square().mean(1)).sqrt()
    assert 1e-5 < error.mean() < 3e-4 and error.max() < 3e-3
    assert (u.amax(1) - fine.amax(1)).max() < 1e-3      # no ringing
    assert (u.amin(1) - fine.amin(1)).min() > -1e-3


# ---------------------------------------------------------------------------------------------
# single solvers

@pytest.mark.parametrize('wraps', [True, False])
@pytest.mark.parametrize('scale', [1., 1e-9])
@pytest.mark.parametrize('n', [2, 3, 6, 7, 96, 1024])
def test_tridiagonal(n, scale, wraps):
    generator = torch.Generator().manual_seed(n)
    lower, upper, x = torch.randn(3, 2, n, dtype=torch.float64, generator=generator)
    lower = lower * scale
    upper = upper * scale
    if not wraps:
        lower[:, 0] = 0
        upper[:, -1] = 0
    diagonal = -1.2 * (lower.abs() + upper.abs()) - .1
    right = lower * x.roll(1, 1) + diagonal * x + upper * x.roll(-1, 1)
    assert (tridiagonal(lower, diagonal, upper, right) - x).abs().max() < 1e-13


def test_flux_of_hllc():
    """A contact at rest lets nothing through, a flow faster than sound is upwind, and the speed of a shock
    obeys the jump conditions."""
    at_rest = gas._hllc(tensor([5., 2., 0.]), tensor([.1, 2., 0.]))
    assert (at_rest - torch.tensor([0., 2., 0.])).abs().max() < 1e-14
    left = tensor([2., 3., 6.])
    right = tensor([1., 2., 5.])
    upwind = tensor([12., 2 * 36 + 3, (3 * 1.5 + 36 + 3) * 6])
    assert (gas._hllc(left, right) - upwind).abs().max() < 1e-12
    odd = torch.tensor([-1., 1., -1.])
    mirror = torch.tensor([1., 1., -1.])
    assert (gas._hllc(right * mirror, left * mirror) - upwind * odd).abs().max() < 1e-12
    mach = float(gas._mach(tensor(7.)))
    ahead = (1., 3 / 5, mach)                                       # a speed of sound of 1
    compression = (8 / 3) * mach ** 2 / (2 / 3 * mach ** 2 + 2)
    behind = (compression, 7 * 3 / 5, mach / compression)
    momentum = [density * velocity ** 2 + pressure for density, pressure, velocity in (ahead, behind)]
    assert abs(momentum[0] - momentum[1]) < 1e-12


def test_scales_of_the_gas():
    """Density a, pressure a b², velocity b, time 1 / b, viscosity b."""
    u0 = tensor(gas_waves(1, (64,)))
    u = compressible_1d(u0, .01, .02, [0., .03])
    for scale, b in (((3., 12., 2.), 2.), ((5., 5., 1.), 1.)):
        scale = torch.tensor(scale)
        scaled = compressible_1d(u0 * scale, .01 * b, .02 * b, [0., .03 / b])
        assert ((scaled - u * scale) / scale).abs().max() < 1e-10


def test_density_and_pressure_stay_positive():
    """Gas that is torn apart: a step with slopes everywhere would go below zero."""
    x = centres(128, -1, 1)
    velocity = np.where(np.abs(x) < .3, -4., 4.) * np.sign(x + .01)
    u0 = np.stack([1 + .5 * np.sin(40 * x), .01 + 0 * x, velocity], 1)[None]
    state = tensor(u0).movedim(-1, 0).contiguous()
    mass = float(state[0].sum())
    n_flat = 0
    for _ in range(100):
        step = gas._courant_step(state, torch.ones(1, 1).double(), 2 / 128, .3)
        state, n = gas._gas_step(state, step * 64, True)
        n_flat += n
        assert state[:2].min() > 0
    assert 0 < n_flat < 100 * 128 / 10
    assert abs(float(state[0].sum()) - mass) < 1e-10 * mass
    u = compressible_1d(u0, NO_HEAT, NO_HEAT, [0., .05])
    assert u[..., :2].min() > 0 and torch.isfinite(u).all()


def test_gas_that_goes_out_does_not_come_back():
    x = centres(48, -1, 1)
    u0 = np.stack([1 + 0 * x, 1 + .1 * np.exp(-50 * x ** 2), 0 * x], 1)[None]
    u = compressible_1d_outgoing(u0, .001, .001, [0., .3, 2.])[0]
    assert (u[1, :, 1] - 1).abs().max() > .03
    assert (u[2, :, 1:] - torch.tensor([1., 0.])).abs().max() < 2e-3


def test_far_times_need_no_frames_between():
    """The step follows the flow, which the force has made ten times faster by then."""
    w0 = vorticity() / 100
    far = navier_stokes(w0, 1e-3, [0., 8.], refine=1)[0, -1]
    near = navier_stokes(w0, 1e-3, range(9), refine=1)[0]
    assert near[-1].abs().max() > 10 * near[0].abs().max()
    assert torch.equal(far, near[-1])


def test_water_leaves_through_the_edges(monkeypatch):
    """As if it went on beyond the edges, where a basin four times as large has the same cells."""
    h = shallow_water([.7], [0., 1., 2.], cells=32)[0, ..., 0]
    monkeypatch.setattr(water, 'BASIN', 4 * BASIN)
    beyond = shallow_water([.7], [0., 1., 2.], cells=128)[0, :, 48:80, 48:80, 0]
    difference = (h - beyond).abs().amax((1, 2))
    assert (h[1] - 1).abs().max() > .4
    assert difference[1] < 1e-10                                    # nothing has reached the edges
    assert difference.max() < .05


def test_the_symmetries_of_water():
    """Of the square, for water without a symmetry of its own."""
    h0 = tensor(1 + np.random.default_rng(0).uniform(size=(1, 24, 24)))
    h = still_water(h0, [0., .3])
    assert (still_water(h0.flip(-2), [0., .3]) - h.flip(-2)).abs().max() < 1e-12
    assert (still_water(h0.mT, [0., .3]) - h.mT).abs().max() < 1e-12


def test_shallow_water_stays_positive():
    h0 = torch.full((1, 32, 32), 1e-3).double()
    h0[:, 10:20, 12:22] = 5.
    h = still_water(h0, [0., .2, .5])
    assert h.min() > 0 and h.max() <= 5 + 1e-12
    assert (h[0, -1] - h0[0]).abs().max() > 1


def test_darcy_operator_is_symmetric_and_positive():
    rng = np.random.default_rng(0)
    a = tensor(np.exp(rng.standard_normal((1, 6, 5))))
    faces = tuple(face.expand(30, -1, -1) for face in darcy_file._conductances(a))
    matrix = darcy_file.darcy_operator(torch.eye(30).double().reshape(30, 6, 5), faces).reshape(30, 30)
    assert (matrix - matrix.T).abs().max() < 1e-12 * matrix.abs().max()
    assert torch.linalg.eigvalsh(matrix).min() > 1
    direct = torch.linalg.solve(matrix, torch.full((30,), 2.).double())
    assert (darcy(a, 2.).flatten() - direct).abs().max() < 1e-9 * direct.max()


def test_a_field_that_is_solved_at_once_waits_for_the_others():
    a = torch.cat([torch.ones(1, 16, 16).double(), tensor(permeability(1, (16, 16)))])
    for field, alone in zip(darcy(a, 2.), a):
        assert nrmse(field, darcy(alone[None], 2.)[0]) < 1e-6


def test_a_wall_of_one_cell_parts_the_square():
    """Harmonic means let nothing through it: what lies beyond it changes nothing before it."""
    a = torch.ones(2, 32, 32)
    a[:, 16] = 1e-4
    a[1, 17:] = .2
    near, far = darcy(a, 1.)
    assert nrmse(near[:16], far[:16]) < 2e-2 and nrmse(near[17:], far[17:]) > .5


def test_darcy_is_linear_in_the_source_and_inverse_in_the_coefficient():
    a = tensor(permeability(2, (32, 32)))
    u = darcy(a, 1.)
    assert (darcy(a, 7.) - 7 * u).abs().max() < 1e-8 * u.max()
    assert (darcy(3 * a, 1.) - u / 3).abs().max() < 1e-8 * u.max()


# ---------------------------------------------------------------------------------------------
# arguments

LINE = np.ones((2, 8))
PLANE = np.ones((2, 8, 8))
# solver, initial fields, parameters
SOLVERS = [
    (burgers, LINE, {'nu': .1}), (burgers_old, LINE, {'nu': .1}), (advection, LINE, {'beta': .1}),
    (reaction_diffusion, LINE, {'nu': .1, 'rho': .1}), (diffusion_sorption, LINE, {}),
    (compressible_1d, np.ones((2, 8, 3)), {'eta': .1, 'zeta': .1}),
    (kuramoto_sivashinsky, LINE, {'length': 8.}), (navier_stokes, 0 * PLANE, {'nu': .1}),
    (diffusion_reaction, np.ones((2, 8, 8, 2)), {}), (kolmogorov_flow, 0 * PLANE, {'nu': .1}),
    (gray_scott, np.ones((2, 8, 8, 2)), {'feed': .1, 'kill': .1}), (korteweg_de_vries, LINE, {'dispersion': 100.}),
    (still_water, PLANE, {}), (darcy, PLANE, {'beta': 1.})]


@pytest.mark.parametrize('solve, u0, params', SOLVERS, ids=name_of)
def test_wrong_arguments_are_refused(solve, u0, params):
    times = {} if solve is darcy else {'t': [0., .01]}
    assert solve(u0, **times, **params).dtype == torch.float64
    same = solve(torch.from_numpy(u0).float(), **times, **params)
    assert torch.equal(solve(u0, **times, **params), same)
    if times:
        assert torch.equal(solve(u0, t=(0.,), **params)[:, 0], torch.from_numpy(u0))
        for t in ([0., .1, .1], [0., .2, .1], [.1, .2], [], .1, [0., np.nan], [0., np.inf]):
            refused(solve, u0, t=t, **params)
    for value in (np.nan, np.inf):
        broken = u0.copy()
        broken[0, 3] = value
        refused(solve, broken, **times, **params)
    for wrong in (u0[0], u0[..., None], u0[:, :1]):
        refused(solve, wrong, **times, **params)
    for name in params:
        for value in (0., -.1, np.nan, np.inf):
            refused(solve, u0, **times, **{**params, name: value})


@pytest.mark.parametrize('word, solve, arguments', [
    ('finer cells', burgers, (np.full((1, 8), 1e9), .01, [0., .1])),
    ('finer cells', navier_stokes, (0 * PLANE, 1e-9, [0., 1.])),
    ('mean', navier_stokes, (PLANE, 1e-3, [0., 1.])),
    ('unstable', functools.partial(navier_stokes, refine=1, cfl=20.), (10 * vorticity(), 1e-6, [0., 1., 2.])),
    ('negative', reaction_diffusion, (-.1 * LINE, .1, .1, [0., .1])),
    ('negative', diffusion_sorption, (-.1 * LINE, [0., .1])),
    ('positive', compressible_1d, (np.ones((1, 8, 3)) * [0, 1, 1], .1, .1, [0., .1])),
    ('positive', compressible_1d, (np.ones((1, 8, 3)) * [1, 0, 1], .1, .1, [0., .1])),
    ('boundary', functools.partial(compressible_1d, boundary='wall'), (np.ones((1, 8, 3)), .1, .1, [0., .1])),
    ('too much', kuramoto_sivashinsky, (1e6 * waves(1, (64,)), 10., [0., 1.])),
    ('at least 62', kuramoto_sivashinsky, (waves(1, (48,)), 64., [0., 1.])),
    ('finer cells', kolmogorov_flow, (0 * PLANE, 1e-4, [0., 1.])),
    ('mean', kolmogorov_flow, (PLANE, .1, [0., 1.])),
    ('too much', gray_scott, (100 * np.ones((1, 8, 8, 2)), .1, .1, [0., 10.])),
    ('too few', korteweg_de_vries, (40 * ks_waves(1, (128,)), 1., [0., 4.])),
    ('too few', korteweg_de_vries, (1e6 * ks_waves(1, (128,)), 1., [0., 1.])),
    ('finer cells', korteweg_de_vries, (LINE, .1, [0., 1.])),
    ('positive', still_water, (-PLANE, [0., 1.])),
    ('radius', shallow_water, ([3.], [0., 1.])), ('radius', shallow_water, (.5, [0., 1.])),
    ('positive', darcy, (0 * PLANE, 1.))])
def test_what_a_solver_cannot_solve_is_refused(word, solve, arguments):
    assert word in refused(solve, *arguments)


def test_a_small_mean_of_the_vorticity_is_taken_off():
    """Striding leaves one of 1e-5 or so."""
    w0 = vorticity(1, 16)
    w0 = w0 - w0.mean()
    solution = navier_stokes(w0, 1e-3, [0., .1], refine=1)
    moved = navier_stokes(w0 + 1e-3 * w0.abs().max(), 1e-3, [0., .1], refine=1)
    assert (moved - solution).abs().max() < 1e-12 * w0.abs().max()
    assert 'has a mean' in refused(navier_stokes, w0 + .1 * w0.abs().max(), 1e-3, [0., .1])
