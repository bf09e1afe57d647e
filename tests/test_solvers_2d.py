"""Solvers in two dimensions: closed forms, other methods, grids and steps twice as fine, budgets, and exact
symmetries."""
import math

import numpy as np
import pytest
import torch

from conftest import centres, refused
from numerics import darcy as darcy_equation, shallow_water as water
from numerics.darcy import darcy_operator
from numerics.diffusion_reaction import FITZHUGH_K
from numerics.shallow_water import BASIN
from solvers import (dams, darcy, diffusion_reaction, navier_stokes, permeability, random_vorticity,
                     shallow_water, still_water, torus_symmetry, white_noise)


def coarse(u, factor):
    """Averages over factor x factor cells of the last two axes."""
    blocks = u.unflatten(-1, (-1, factor)).unflatten(-3, (-1, factor))
    return blocks.mean((-3, -1))


def nrmse(u, reference):
    return float((u - reference).norm() / reference.norm())


def mirror_x(u):
    return u.flip(-2)


def mirror_y(u):
    return u.flip(-1)


def exchange(u):
    return u.transpose(-2, -1)


SQUARE = (mirror_x, mirror_y, exchange)                 # they generate the square's eight symmetries


# ---------------------------------------------------------------------------------------------
# Navier-Stokes

def vorticity(n=2, size=32, amplitude=1.3):
    """Stirred enough that the flow is not linear within a second."""
    return amplitude * torch.from_numpy(random_vorticity(n, (size, size)))


def test_waves_of_one_length_decay_exactly():
    """A sum of waves with |k|² = 25 transports nothing, as in the Taylor-Green vortex: it decays by
    exp(-4π² 25 νt)."""
    x = centres(32)[:, None]
    y = centres(48)
    nu = 2e-3
    t = np.array([0., .3, 1.7])
    w0 = np.zeros((32, 48))
    for k_x, k_y, amplitude in [(5, 0, 1.), (3, 4, -.7), (4, -3, 2.), (0, 5, .4)]:
        w0 += amplitude * np.cos(2 * np.pi * (k_x * x + k_y * y) + k_x)
    w = navier_stokes(w0[None], nu, t, forced=False)
    exact = torch.from_numpy(w0 * np.exp(-100 * np.pi ** 2 * nu * t)[:, None, None])
    assert w.shape == (1, 3, 32, 48) and w.dtype == torch.float64
    assert (w[0] - exact).abs().max() < 1e-12


def test_the_force_from_rest():
    """From rest the flow stays a shear along the force: w = f (1 - exp(-8π²νt)) / 8π²ν."""
    nu = 1e-3
    t = np.array([0., .5, 2., 7.])
    phase = 2 * np.pi * (centres(32)[:, None] + centres(32))
    force = .1 * (np.sin(phase) + np.cos(phase))
    rate = 8 * np.pi ** 2 * nu
    exact = (1 - np.exp(-rate * t))[:, None, None] / rate * force
    w = navier_stokes(np.zeros((1, 32, 32)), nu, t)
    assert abs(exact).max() > .5
    assert (w[0] - torch.from_numpy(exact)).abs().max() < 1e-12


def transport(w, nu):
    """dw/dt in another form: u·∇w from four transforms, full complex spectra. (X, X) spectrum -> the same."""
    n_cells = w.shape[-1]
    wave = np.fft.fftfreq(n_cells, 1 / n_cells)
    k_x = 2j * np.pi * wave[:, None]
    k_y = 2j * np.pi * wave
    laplacian = k_x ** 2 + k_y ** 2
    safe = np.where(laplacian == 0, 1, laplacian)
    stream = -w / safe

    def values(spectrum):
        return np.fft.ifft2(spectrum).real

    product = values(k_y * stream) * values(k_x * w) - values(k_x * stream) * values(k_y * w)
    phase = 2 * np.pi * (centres(n_cells)[:, None] + centres(n_cells))
    force = .1 * (np.sin(phase) + np.cos(phase))
    kept = (np.abs(wave)[:, None] < n_cells / 3) & (np.abs(wave) < n_cells / 3)
    return nu * laplacian * w + np.fft.fft2(force - product) * kept


def test_against_the_classical_runge_kutta_method():
    nu = 1e-3
    step = .01
    w0 = vorticity(1)
    wave = np.abs(np.fft.fftfreq(32, 1 / 32))
    w = np.fft.fft2(w0[0].numpy()) * ((wave[:, None] < 32 / 3) & (wave < 32 / 3))
    for _ in range(150):
        a = transport(w, nu)
        b = transport(w + step / 2 * a, nu)
        c = transport(w + step / 2 * b, nu)
        d = transport(w + step * c, nu)
        w = w + step / 6 * (a + 2 * b + 2 * c + d)
    expected = torch.from_numpy(np.fft.ifft2(w).real)
    ours = navier_stokes(w0, nu, [0., .4, 1.5], refine=1, cfl=.1)[0, -1]
    assert nrmse(w0[0], expected) > .3
    assert nrmse(ours, expected) < 1e-6


def test_far_times_need_no_frames_between():
    """The step follows the flow, which the force has made ten times faster by then."""
    w0 = vorticity(1) / 100
    far = navier_stokes(w0, 1e-3, [0., 8.], refine=1)[0, -1]
    near = navier_stokes(w0, 1e-3, range(9), refine=1)[0]
    assert near[-1].abs().max() > 10 * near[0].abs().max()
    assert torch.equal(far, near[-1])


def test_an_unstable_step_is_an_error():
    assert 'unstable' in refused(navier_stokes, 10 * vorticity(1), 1e-6, [0., 1., 2.], refine=1, cfl=20.)


def test_order_four_in_time():
    w0 = vorticity(1)
    t = [0., 2.]
    exact = navier_stokes(w0, 1e-3, t, refine=1, cfl=.05)[0, -1]
    error = [nrmse(navier_stokes(w0, 1e-3, t, refine=1, cfl=cfl)[0, -1], exact) for cfl in (.8, .4)]
    assert error[0] < 1e-4
    assert error[0] / error[1] > 10                                 # 16 in the limit


def test_grid_twice_as_fine():
    w0 = vorticity()
    t = [0., 1., 3.]
    nu = 1e-3
    twice = navier_stokes(w0, nu, t, refine=4)[:, 1:]
    given = nrmse(navier_stokes(w0, nu, t)[:, 1:], twice)           # refine=2 at this nu and these cells
    coarser = nrmse(navier_stokes(w0, nu, t, refine=1)[:, 1:], twice)
    assert given < 1e-5
    assert coarser > 10 * given


def test_enstrophy_budget():
    """dZ/dt = -2νP + <wf>, Z = <w²>/2, P = <|∇w|²>/2, with spectral derivatives and a central difference."""
    nu = 1e-3
    h = 1e-3
    w = navier_stokes(vorticity(size=64), nu, [0., 1 - h, 1., 1 + h], refine=1)[:, 1:]
    enstrophy = (w ** 2).mean((2, 3)) / 2
    speed = (enstrophy[:, 2] - enstrophy[:, 0]) / (2 * h)
    now = w[:, 1]
    wave = 2j * math.pi * torch.fft.fftfreq(64, 1 / 64)
    spectrum = torch.fft.fft2(now)
    slope_x = torch.fft.ifft2(wave[:, None] * spectrum).real
    slope_y = torch.fft.ifft2(wave * spectrum).real
    palinstrophy = (slope_x ** 2 + slope_y ** 2).mean((1, 2)) / 2
    phase = 2 * math.pi * torch.from_numpy(centres(64)[:, None] + centres(64))
    work = (now * .1 * (phase.sin() + phase.cos())).mean((1, 2))
    assert work.abs().min() > 1e-3
    assert (speed - work + 2 * nu * palinstrophy).abs().max() < 1e-6 * speed.abs().max()


def test_the_mean_stays_zero():
    w0 = vorticity()
    assert navier_stokes(w0, 1e-4, [0., 1., 4.], refine=1).mean((2, 3)).abs().max() < 1e-14
    assert 'mean' in refused(navier_stokes, w0 + .1, 1e-4, [0., 1.])


def moved(w0, change, t=(0., 2.)):
    """How much the solver and a map of the field fail to commute, relative to the field."""
    after = change(navier_stokes(w0, 1e-3, t, refine=1))
    return nrmse(navier_stokes(change(w0), 1e-3, t, refine=1)[:, 1:], after[:, 1:])


@pytest.mark.parametrize('element', range(4))
@pytest.mark.parametrize('shift', [0, 5])
def test_symmetries_of_the_forced_torus(element, shift):
    w0 = vorticity()
    if (element, shift) != (0, 0):
        assert nrmse(torus_symmetry(w0, element, shift), w0) > .5

    def change(w):
        return torus_symmetry(w, element, shift)

    assert moved(w0, change) < 1e-10


def test_the_torus_maps_are_the_stated_ones():
    """w(1/4 - x, -y) and -w(y + 1/2, x) and w(x - s, y + s), of a function that is not symmetric."""
    def field(x, y):
        return np.sin(2 * np.pi * x) + np.cos(2 * np.pi * (x + 2 * y)) + np.sin(2 * np.pi * (3 * x - y) + 1)

    x = centres(16)[:, None] + np.zeros(16)
    y = x.T
    w = torch.from_numpy(field(x, y))
    stated = [(1, 0, field(.25 - x, -y)), (2, 0, -field(y + .5, x)), (0, 3, field(x - 3 / 16, y + 3 / 16))]
    for element, shift, expected in stated:
        assert (torus_symmetry(w, element, shift) - torch.from_numpy(expected)).abs().max() < 1e-12


def test_the_forced_torus_has_no_symmetry_beyond_them():
    w0 = vorticity()

    def shifted(w):
        return w.roll(5, -1)

    def turned(w):
        return w.flip(-2, -1)

    def opposite_mirror(w):
        return -w.flip(-1)

    def opposite_exchange(w):
        return -w.transpose(-2, -1)

    for change in (shifted, turned, mirror_y, opposite_mirror, opposite_exchange):
        assert moved(w0, change) > .05


def test_random_vorticity():
    """Its variance is the sum of the covariance's eigenvalues, and a finer grid holds the same field."""
    w = random_vorticity(400, (32, 32), seed=3)
    wave = np.arange(-15, 16)
    square = 4 * np.pi ** 2 * (wave[:, None] ** 2 + wave ** 2)
    variance = (2 * 7 ** 3 * (square + 49) ** -2.5)[square > 0].sum()
    assert abs(w.var() / variance - 1) < .1
    assert abs(w.mean((1, 2))).max() < 1e-15
    assert np.array_equal(w[7:9], random_vorticity(2, (32, 32), seed=3, first=7))
    fine = random_vorticity(2, (128, 128), seed=3, first=7)
    same = random_vorticity(2, (384, 384), seed=3, first=7)[:, 1::3, 1::3]      # the same centres
    assert abs(fine - same).max() < 1e-12


# ---------------------------------------------------------------------------------------------
# diffusion-reaction

def test_uniform_fields_follow_the_reaction():
    """Against the ordinary differential equation of a cell, by small steps."""
    u = .8
    v = -.3
    h = 1e-3
    for _ in range(3000):                                           # the midpoint method
        a = u + h / 2 * (u - u ** 3 - FITZHUGH_K - v)
        b = v + h / 2 * (u - v)
        u = u + h * (a - a ** 3 - FITZHUGH_K - b)
        v = v + h * (a - b)
    u0 = torch.tensor([.8, -.3]).double().expand(1, 8, 6, 2)
    last = diffusion_reaction(u0, [0., .7, 3.])[0, -1]
    assert (last - torch.tensor([u, v])).abs().max() < 1e-5 and abs(u - .8) > .4


def test_small_waves_follow_the_linear_equation():
    """A cosine along each axis on the rest state u = v = -k^(1/3), with the matrix exponential of its own
    2 x 2 system, whose diffusion is that of the 5-point Laplacian."""
    X = 24
    Y = 16
    wave_x = 3
    wave_y = 2
    rest = -FITZHUGH_K ** (1 / 3)
    x = np.cos(np.pi * wave_x * (np.arange(X) + .5) / X)
    y = np.cos(np.pi * wave_y * (np.arange(Y) + .5) / Y)
    laplacian = 2 * (np.cos(np.pi * wave_x / X) - 1) * (X / 2) ** 2
    laplacian += 2 * (np.cos(np.pi * wave_y / Y) - 1) * (Y / 2) ** 2
    system = torch.tensor([[1 - 3 * rest ** 2 + 1e-3 * laplacian, -1], [1, -1 + 5e-3 * laplacian]])
    size = 1e-6
    amplitude = torch.matrix_exp(3 * system.double()) @ torch.tensor([1., .5]).double()
    mode = torch.from_numpy(x[:, None] * y)[..., None]
    u0 = rest + size * mode * torch.tensor([1., .5])
    last = diffusion_reaction(u0[None], [0., 3.])[0, -1]
    assert ((last - rest) / size - mode * amplitude).abs().max() < 1e-4


def test_white_noise_against_explicit_steps():
    """Fluxes between cells by differences, small steps of the classical Runge-Kutta method."""
    u0 = white_noise(1, (32, 32))
    diffusivity = np.array([1e-3, 5e-3])

    def rate(u):
        total = 0.
        for axis in (0, 1):
            flux = np.diff(u, axis=axis) * 16                       # 1/h; none through the walls
            wall = [(1, 1) if a == axis else (0, 0) for a in range(3)]
            total = total + np.diff(np.pad(flux, wall), axis=axis) * 16
        first = u[..., 0] - u[..., 0] ** 3 - FITZHUGH_K - u[..., 1]
        return diffusivity * total + np.stack([first, u[..., 0] - u[..., 1]], -1)

    u = u0[0]
    h = .005
    for _ in range(200):
        a = rate(u)
        b = rate(u + h / 2 * a)
        c = rate(u + h / 2 * b)
        u = u + h / 6 * (a + 2 * b + 2 * c + rate(u + h * c))
    ours = diffusion_reaction(u0, [0., .05, .1, 1.])[0, -1]
    assert nrmse(torch.from_numpy(u0[0]), torch.from_numpy(u)) > .5
    assert nrmse(ours, torch.from_numpy(u)) < 2e-4


def test_diffusion_reaction_step_twice_as_fine():
    u0 = white_noise(1, (64, 64))
    t = [0., .05, .5]
    exact = diffusion_reaction(u0, t, step=.05 / 16)[:, 1:]
    error = [nrmse(diffusion_reaction(u0, t, step=step)[:, 1:], exact) for step in (.025, .0125)]
    assert error[0] < 2e-4
    assert error[0] / error[1] > 8                                  # 16 in the limit


def smooth_start(size):
    x = centres(size, -1, 1)[:, None]
    y = centres(size, -1, 1)
    u = np.cos(np.pi * x) * np.cos(np.pi * (y + 1) / 2) + .5 * np.cos(np.pi * 3 * (x + 1) / 2)
    v = .3 * np.cos(np.pi * 2 * y) + 0 * x
    return torch.from_numpy(np.stack([u, v], -1))[None]


def test_diffusion_reaction_order_two_in_space():
    fine = diffusion_reaction(smooth_start(128), [0., 2.])[0, -1].movedim(-1, 0)
    error = []
    for factor in (8, 4):
        u = diffusion_reaction(smooth_start(128 // factor), [0., 2.])[0, -1].movedim(-1, 0)
        error.append(nrmse(u, coarse(fine, factor)))
    assert error[1] < 2e-2                                          # fronts are as wide as two cells
    assert error[0] / error[1] > 3.3


def test_diffusion_reaction_budget():
    """Nothing passes the walls: d<v>/dt = <u> - <v>, by Simpson's rule over short frames."""
    t = 1 + np.arange(5) * .02
    u = diffusion_reaction(white_noise(2, (32, 32)), [0., *t])[:, 1:].mean((2, 3))
    source = u[..., 0] - u[..., 1]                                  # (B, T)
    weights = torch.tensor([1., 4., 2., 4., 1.]).double() * .02 / 3
    change = u[:, -1, 1] - u[:, 0, 1]
    assert change.abs().min() > 1e-4
    assert (change - source @ weights).abs().max() < 1e-8


@pytest.mark.parametrize('symmetry', SQUARE)
def test_diffusion_reaction_symmetries(symmetry):
    def change(u):
        return symmetry(u.movedim(-1, -3)).movedim(-3, -1)

    u0 = torch.from_numpy(white_noise(2, (32, 32)))
    u = diffusion_reaction(u0, [0., 1.])
    assert (diffusion_reaction(change(u0), [0., 1.]) - change(u)).abs().max() < 1e-11
    assert (diffusion_reaction(-u0, [0., 1.]) + u).abs().max() > 1e-3               # k is not odd
    assert (diffusion_reaction(u0.roll(5, 1), [0., 1.]) - u.roll(5, 2)).abs().max() > .1


# ---------------------------------------------------------------------------------------------
# shallow water

def stoker(x, t, left=2., right=1.):
    """Averages of h over the cells after a plane dam at 0 broke (Stoker 1957), for g = 1: a fan, a plateau,
    a bore."""
    low = right
    high = left
    for _ in range(100):                                            # both waves meet at one velocity
        middle = (low + high) / 2
        fan = 2 * (math.sqrt(left) - math.sqrt(middle))
        bore = (middle - right) * math.sqrt((1 / middle + 1 / right) / 2)
        low = middle if fan > bore else low
        high = high if fan > bore else middle
    front = middle * fan / (middle - right)
    step = x[1] - x[0]
    points = x[:, None] + step * (centres(64) - .5)
    ray = points / t
    sound = ((2 * math.sqrt(left) - ray) / 3).clip(math.sqrt(middle), math.sqrt(left))
    return np.where(ray < front, sound ** 2, right).mean(1)


@pytest.mark.parametrize('axis', [0, 1])
def test_plane_dam(axis):
    t = 1.
    error = []
    for size in (128, 256):
        x = centres(size, -BASIN / 2, BASIN / 2)
        h0 = torch.from_numpy(np.where(x < 0, 2., 1.))
        plane = h0[:, None].expand(size, 4) if axis == 0 else h0.expand(4, size)
        h = still_water(plane[None], [0., .3, t], full=True)[0, -1].double()
        across = h[..., 2 - axis].abs().max()
        h = h[..., 0]
        assert across == 0 and h.std(1 - axis).max() < 1e-14
        profile = h.mean(1 - axis)
        error.append(float((profile - torch.from_numpy(stoker(x, t))).abs().mean()))
    assert error[0] < 6e-3
    assert error[0] / error[1] > 1.7                                # a bore allows order 1


def radial(radius, t, n_cells=2000):
    """The dam in polar coordinates, r h_t + (r h u)_r = 0, by Rusanov's fluxes of order 1: centres, h."""
    width = BASIN / 2 / n_cells
    edge = np.arange(n_cells + 1) * width
    r = (edge[1:] + edge[:-1]) / 2
    q = np.stack([np.where(r < radius, 2., 1.), np.zeros(n_cells)])
    left = t
    while left > 0:
        padded = np.concatenate([q[:, :1] * [[1], [-1]], q, q[:, -1:]], 1)
        h, flow = padded
        flux = np.stack([flow, flow ** 2 / h + h ** 2 / 2])
        fastest = (abs(flow / h) + np.sqrt(h)).max()
        step = min(left, .9 * width / fastest)
        face = (flux[:, 1:] + flux[:, :-1]) / 2 - fastest / 2 * np.diff(padded)
        change = np.diff(edge * face) / (r * width)
        change[1] -= q[0] ** 2 / 2 / r                              # the pressure has no source in Cartesians
        q = q - step * change
        left -= step
    return r, q[0]


def test_radial_dam_in_polar_coordinates():
    t = .6
    r, h = radial(.5, t)
    ours = shallow_water([.5], [0., t])[0, -1, ..., 0]
    x = centres(128, -BASIN / 2, BASIN / 2)
    distance = np.hypot(x[:, None], x)
    expected = torch.from_numpy(np.interp(distance, r, h))
    assert (ours - 1).abs().mean() > .02
    assert (ours - expected).abs().mean() < 5e-3


def test_shallow_water_grid_twice_as_fine():
    t = [0., .2, .4]
    finest = coarse(shallow_water([.6], t, cells=128)[..., 0], 4)
    error = []
    for size in (32, 64):
        h = coarse(shallow_water([.6], t, cells=size)[..., 0], size // 32)
        error.append(float((h - finest)[:, 1:].abs().mean()))
    assert error[0] < 1e-2
    assert error[0] / error[1] > 1.7


def test_shallow_water_budgets_and_square():
    t = np.linspace(0, 1, 6)
    h = shallow_water([.3, .7], t, cells=64, full=True)
    assert h.shape == (2, 6, 64, 64, 3) and h.dtype == torch.float64
    depth = h[..., 0]
    mass = depth.mean((2, 3))
    assert (mass - mass[:, :1]).abs().max() < 1e-13                 # the waves have not reached the edges
    momentum = (h[..., :1] * h[..., 1:]).mean((2, 3))
    assert momentum.abs().max() < 1e-13 and h[..., 1:].abs().max() > .1
    for change in SQUARE:
        assert (change(depth) - depth).abs().max() < 1e-12
    assert (h[..., 1] + h[..., 1].flip(2)).abs().max() < 1e-12      # u is odd in x
    assert (h[..., 2] - h[..., 1].transpose(2, 3)).abs().max() < 1e-12
    assert depth.min() > 0 and depth.max() < 2 + 1e-12


def test_waves_leave(monkeypatch):
    """As if the water went on beyond the edges, where a basin four times as large has the same cells."""
    t = [0., 1., 2., 3.]
    h = shallow_water([.7], t, cells=32)[0, ..., 0]
    monkeypatch.setattr(water, 'BASIN', 4 * BASIN)
    beyond = shallow_water([.7], t, cells=128)[0, :, 48:80, 48:80, 0]
    difference = (h - beyond).abs().amax((1, 2))
    assert (h[1] - 1).abs().max() > .4
    assert difference[1] < 1e-10                                    # nothing has reached the edges
    assert difference.max() < .05


def test_shallow_water_stays_positive():
    h0 = torch.full((1, 32, 32), 1e-3).double()
    h0[:, 10:20, 12:22] = 5.
    h = still_water(h0, [0., .2, .5])
    assert h.min() > 0 and h.max() <= 5 + 1e-12
    assert (h[0, -1] - h0[0]).abs().max() > 1


def test_shallow_water_symmetries():
    rng = np.random.default_rng(0)
    h0 = torch.from_numpy(1 + rng.uniform(size=(1, 24, 24)))
    h = still_water(h0, [0., .3])
    for change in SQUARE:
        assert (still_water(change(h0), [0., .3]) - change(h)).abs().max() < 1e-12


def test_dams():
    h = dams(6, (128, 128), seed=1)
    radius = np.array([np.random.default_rng([1, row]).uniform(.3, .7) for row in range(6)])
    assert np.abs((h - 1).mean((1, 2)) * BASIN ** 2 - np.pi * radius ** 2).max() < 2e-3
    assert np.array_equal(h[4:], dams(2, (128, 128), seed=1, first=4))
    assert torch.equal(shallow_water(radius, [0.])[:, 0, ..., 0], torch.from_numpy(h))


# ---------------------------------------------------------------------------------------------
# Darcy

def torsion(x, y):
    """-Δs = 1 on the unit square by a series of sines in x, and s = 0 on the boundary."""
    s = x * (1 - x) / 2 + 0 * y
    for k in np.pi * np.arange(1, 200, 2):
        s = s - 4 / k ** 3 * np.sin(k * x) * np.cosh(k * (y - .5)) / np.cosh(k / 2)
    return s


@pytest.mark.parametrize('bend', [0., 10.], ids=['constant', 'variable'])
def test_darcy_has_order_two(bend):
    """u = s + bend s² solves -∇·(a∇u) = 1 for a = 1/(1 + 2 bend s), because then a∇u = ∇s."""
    error = []
    for size in (32, 64):
        s = torsion(centres(size)[:, None], centres(2 * size))
        a = 1 / (1 + 2 * bend * s)
        u = darcy(a[None], 3.)[0]
        error.append(nrmse(u, torch.from_numpy(3 * (s + bend * s ** 2))))
    assert error[0] < 4e-3
    assert error[0] / error[1] > 3.9


def test_darcy_operator_is_symmetric_and_positive():
    rng = np.random.default_rng(0)
    a = torch.from_numpy(np.exp(rng.standard_normal((1, 6, 5))))
    faces = tuple(face.expand(30, -1, -1) for face in darcy_equation._conductances(a))
    matrix = darcy_operator(torch.eye(30).double().reshape(30, 6, 5), faces).reshape(30, 30)
    assert (matrix - matrix.T).abs().max() < 1e-12 * matrix.abs().max()
    assert torch.linalg.eigvalsh(matrix).min() > 1
    ours = darcy(a, 2.).flatten()
    direct = torch.linalg.solve(matrix, torch.full((30,), 2.).double())
    assert (ours - direct).abs().max() < 1e-9 * direct.max()


def test_a_field_that_is_solved_at_once_waits_for_the_others():
    a = torch.cat([torch.ones(1, 16, 16).double(), torch.from_numpy(permeability(1, (16, 16)))])
    both = darcy(a, 2.)
    for field, alone in zip(both, a):
        assert nrmse(field, darcy(alone[None], 2.)[0]) < 1e-6


def test_darcy_budget():
    """What flows out through the boundary is the source, and u is positive."""
    a = torch.from_numpy(permeability(3, (48, 32)))
    u = darcy(a, .1)
    flow = 2 * a * u                                                # into the boundary, a u / (h/2)
    ends_x = flow[:, [0, -1]].sum((1, 2)) * 48 / 32                 # per 1/Y of the boundary
    ends_y = flow[:, :, [0, -1]].sum((1, 2)) * 32 / 48
    assert (ends_x + ends_y - .1).abs().max() < 1e-9
    assert u.min() > 0


def test_darcy_grid_twice_as_fine():
    """The coefficient of 32² cells as it is, on grids with more cells inside each."""
    a = torch.from_numpy(permeability(4, (32, 32)))
    grids = []
    for factor in (1, 2, 4):
        fine = a.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
        grids.append(coarse(darcy(fine, 1.), factor))
    assert nrmse(grids[0], grids[1]) < 2e-2
    assert nrmse(grids[0], grids[1]) > 1.3 * nrmse(grids[1], grids[2])      # jumps of a allow order 1


def test_a_wall_of_one_cell_parts_the_square():
    """Harmonic means let nothing through it: what lies beyond it changes nothing before it."""
    a = torch.ones(2, 32, 32)
    a[:, 16] = 1e-4
    a[1, 17:] = .2
    near, far = darcy(a, 1.)
    assert nrmse(near[:16], far[:16]) < 2e-2 and nrmse(near[17:], far[17:]) > .5


def test_darcy_symmetries():
    a = torch.from_numpy(permeability(2, (32, 32)))
    u = darcy(a, 1.)
    for change in SQUARE:
        assert (darcy(change(a), 1.) - change(u)).abs().max() < 1e-8 * u.max()
    assert (darcy(a, 7.) - 7 * u).abs().max() < 1e-8 * u.max()
    assert (darcy(3 * a, 1.) - u / 3).abs().max() < 1e-8 * u.max()


def test_permeability():
    a = permeability(5, (64, 64), seed=2)
    assert set(np.unique(a)) == {.1, 1.}
    assert np.array_equal(a[3:], permeability(2, (64, 64), seed=2, first=3))
    same = permeability(5, (192, 192), seed=2)[:, 1::3, 1::3]
    assert np.array_equal(a, same)


# ---------------------------------------------------------------------------------------------
# arguments

FIELD = np.ones((1, 8, 8))


@pytest.mark.parametrize('call, arguments', [
    (navier_stokes, (FIELD[0], 1e-3, [0., 1.])), (navier_stokes, (0 * FIELD, -1e-3, [0., 1.])),
    (navier_stokes, (0 * FIELD, 1e-3, [0., 1., 1.])), (navier_stokes, (0 * FIELD, 1e-9, [0., 1.])),
    (diffusion_reaction, (FIELD, [0., 1.])), (diffusion_reaction, (np.ones((1, 8, 8, 3)), [0., 1.])),
    (diffusion_reaction, (np.full((1, 8, 8, 2), np.nan), [0., 1.])),
    (still_water, (-FIELD, [0., 1.])), (still_water, (FIELD, [.1, 1.])), (shallow_water, ([3.], [0., 1.])),
    (shallow_water, (.5, [0., 1.])), (darcy, (FIELD * 0, 1.)), (darcy, (FIELD, 0.)),
    (darcy, (np.ones((1, 1, 8)), 1.))])
def test_wrong_arguments(call, arguments):
    refused(call, *arguments)


def test_the_first_frame_is_the_given_one():
    w0 = vorticity()
    u0 = torch.from_numpy(white_noise(1, (16, 16)))
    h0 = torch.from_numpy(dams(1, (16, 16)))
    assert torch.equal(navier_stokes(w0, 1e-3, [0.])[:, 0], w0)
    assert torch.equal(diffusion_reaction(u0, [0., .1])[:, 0], u0)
    assert torch.equal(still_water(h0, [0., .1])[:, 0], h0)
