"""The residual of every equation, against its solver."""
import math

import pytest
import torch

from conftest import close
from equations import entries, entry
from equations.common import centres
from equations.derivatives import derivative, shifted
from equations.kuramoto_sivashinsky import ks_waves

RESIDUALS = [name for name, pde in entries().items() if pde.residual]


def axes_of(pde, n):
    """Centres of n cells along each axis, float64."""
    return [torch.from_numpy(centres(n, low, high)) for low, high in pde.space]


# name: parameters, cells, when, the longest of three time steps
SOLVED = {
    'burgers': ({'Nu': .1}, 512, .1, .02),
    'burgers-old': ({'Nu': .2}, 512, .2, .04),
    'reaction-diffusion': ({'Nu': .5, 'rho': 1.}, 64, .05, .004),
    'kuramoto-sivashinsky': ({}, 128, 1., .2),
    'navier-stokes': ({'Nu': 2e-3}, 32, 2., 1.),
    'kolmogorov-flow': ({'Nu': .1}, 48, .5, .1),
    'gray-scott': ({'Feed': .029, 'Kill': .057}, 128, 4., 2.),
    'korteweg-de-vries': ({'Dispersion': 4.}, 128, 2., .4),
    'diffusion-reaction': ({}, 24, 2., .4)}


def start(name, n, n_sample=2):
    """Initial fields, smooth ones where the entry's own are not yet on their attractor at first."""
    pde = entry(name)
    if name == 'kuramoto-sivashinsky':
        return torch.from_numpy(ks_waves(n_sample, (n,)))[..., None]
    return pde.start(n_sample, (n,) * pde.axes)


def relative_residual(pde, before, after, dt, params, n):
    """Rms of the residual, in units of the rms of each field's rate of change; if steady, of the source."""
    speed = 1. if pde.steady else ((after - before) / dt).square().flatten(0, -2).mean(0).sqrt()
    dt = torch.full((len(before),), dt, dtype=before.dtype)
    values = {key.lower(): torch.full_like(dt, value) for key, value in params.items()}
    left = pde.residual(before, after, dt, values, axes_of(pde, n))
    assert left.shape[:-1] == before.shape[:-1]
    return float((left / speed).square().mean().sqrt())


def test_every_residual_is_tested():
    assert set(RESIDUALS) == {*SOLVED, 'advection', 'darcy'}


@pytest.mark.parametrize('name', SOLVED)
def test_the_residual_of_a_solution_is_of_second_order(name):
    """It falls by four when the time between the frames is halved; that of a wrong parameter does not."""
    pde = entry(name)
    params, n, first, longest = SOLVED[name]
    wrong = {key: 1.2 * value for key, value in params.items()}
    u0 = start(name, n)
    steps = [longest / 4, longest / 2, longest]
    u = pde.solution(u0, params, [0., first, *[first + step for step in steps]])
    left = []
    for i, step in enumerate(steps):
        left.append(relative_residual(pde, u[:, 1], u[:, 2 + i], step, params, n))
    assert left[0] < .01
    assert 3.3 < left[1] / left[0] < 4.4
    assert 3.3 < left[2] / left[1] < 4.6
    if params:
        assert relative_residual(pde, u[:, 1], u[:, 2], steps[0], wrong, n) > 10 * left[0]
    still = relative_residual(pde, u[:, 1], u[:, 1] + 1e-3 * (u[:, 2] - u[:, 1]), steps[0], params, n)
    assert still > 10


@pytest.mark.parametrize('name', ['burgers', 'burgers-old', 'kuramoto-sivashinsky', 'korteweg-de-vries'])
def test_a_residual_is_the_same_in_every_moving_frame(name):
    """Over a time in which the flow crosses many cells."""
    pde = entry(name)
    params, n, first, dt = SOLVED[name]
    u0 = start(name, n)
    u = pde.solution(u0, params, [0., first, first + dt])
    speed = 3 * pde.length[0]
    boosted = pde.solution(u0 + speed / pde.galilean, params, [0., first, first + dt])
    values = {key.lower(): torch.full((2,), value).double() for key, value in params.items()}
    seconds = torch.full((2,), dt).double()
    [x] = axes_of(pde, n)
    still = pde.residual(u[:, 1], u[:, 2], seconds, values, [x])
    moving = pde.residual(boosted[:, 1], boosted[:, 2], seconds, values, [x])
    back = shifted(moving[..., 0], x, torch.full((2,), speed * first).double())
    close(back[..., None], still, 1e-5)


def test_the_residual_of_advection_is_exact():
    pde = entry('advection')
    x = axes_of(pde, 64)[0]
    u0 = ((2 * math.pi * x).sin() + (10 * math.pi * x).cos())[None, :, None]
    u = pde.solution(u0, {'beta': .4}, [0., .33])
    assert relative_residual(pde, u[:, 0], u[:, 1], .33, {'beta': .4}, 64) < 1e-12
    h = 1e-4
    left = pde.residual(u0, u0, torch.tensor([h]).double(), {'beta': torch.tensor([.4]).double()}, [x])
    close(left[..., 0], .4 * derivative(u0[..., 0], x, 0), 1e-2)             # u_t is 0 there


def test_the_residual_of_darcy():
    pde = entry('darcy')
    u = pde.solution(pde.start(2, (16, 16)), {'beta': 2.}, [0., 1.])
    assert relative_residual(pde, u[:, 0], u[:, 1], 1., {'beta': 2.}, 16) < 1e-9
    assert relative_residual(pde, u[:, 0], u[:, 1], 1., {'beta': 1.}, 16) == pytest.approx(1., rel=1e-6)
    x, y = torch.meshgrid(*axes_of(pde, 32), indexing='ij')
    a = torch.ones_like(x)
    bump = torch.stack([a, x * (1 - x) * y * (1 - y)], -1)[None]     # -Laplacian: 2 (x - x² + y - y²)
    left = pde.residual(bump, bump, None, {'beta': torch.ones(1).double()}, None)[0, ..., 0]
    inner = (left + 1)[1:-1, 1:-1]
    close(inner, (2 * (x - x ** 2 + y - y ** 2))[1:-1, 1:-1], 1e-9)


@pytest.mark.parametrize('name', RESIDUALS)
def test_gradients_of_residuals(name):
    pde = entry(name)
    n = 6
    axes = axes_of(pde, n)
    u0 = .5 + torch.rand(1, *[n] * pde.axes, len(pde.fields)).double()
    u1 = (u0 + .1 + torch.rand_like(u0)).requires_grad_()
    dt = torch.full((1,), .1).double()
    values = {key.lower(): torch.full((1,), value).double() for key, value in pde.params.items()}
    assert torch.autograd.gradcheck(lambda u: pde.residual(u0, u, dt, values, axes), (u1,))
