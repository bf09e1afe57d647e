"""physics.py against closed forms, hand-made arrays and the solvers; the losses that take it; the report."""
import dataclasses
import json
import math
import os

import pytest
import torch

import eval as ev
import physics
import solvers
from conftest import centres, close, drawn, noise, refused
from metrics import conservation_gap
from pdes import NO_FLUX, PDES, ZERO, entry
from stages import DecoderStage, OperatorStage
from test_stages import batch_of, settings

RESIDUALS = [name for name, pde in PDES.items() if pde.residual]
DARCY = entry('darcy')


def axes_of(pde, n):
    """Centres of n cells along each axis, float64."""
    return [torch.from_numpy(centres(n, low, high)) for low, high in pde.space]


def plane(n, low=0., high=1.):
    """x and y (n, n) of the centres of n x n cells, and the axes."""
    x = torch.from_numpy(centres(n, low, high))
    return x[:, None].expand(n, n), x[None].expand(n, n), [x, x]


# ---------------------------------------------------------------------------------------------
# derivatives

@pytest.mark.parametrize('order', [1, 2, 3, 4])
@pytest.mark.parametrize('n', [24, 25])
def test_derivatives_of_waves_are_exact(order, n):
    length = 5.
    x = torch.from_numpy(centres(n, -1., -1. + length))
    k = 2 * math.pi * 3 / length
    u = torch.stack([(k * x).sin(), (k * x).cos() + 7])
    turned = [(k * x + order * math.pi / 2).sin(), (k * x + order * math.pi / 2).cos()]
    expected = k ** order * torch.stack(turned)
    close(physics.derivative(u, x, 0, order), expected, 1e-9)
    tall = u[..., None].expand(2, n, 3)
    close(physics.derivative(tall, x, 0, order)[..., 1], expected, 1e-9)


def test_a_shift_is_that_of_the_waves():
    x = torch.from_numpy(centres(16))
    distance = torch.tensor([.1, -.37], dtype=torch.float64)

    def u(x):
        return .3 + (2 * math.pi * x).sin() + (14 * math.pi * x).cos()

    moved = physics.shifted(u(x).expand(2, 16), x, distance)
    close(moved, u(x + distance[:, None]), 1e-12)
    random = torch.from_numpy(noise(2, 16, 1)[..., 0]).double()
    cells = torch.full((2,), 3 / 16, dtype=torch.float64)
    close(physics.shifted(random, x, cells)[:, :-3], random[:, 3:], 1e-12)           # also the wave of +-1


def test_taylor_green():
    """w = 2 k cos kx cos ky belongs to u = -cos kx sin ky, v = sin kx cos ky; neither has a divergence."""
    x, y, axes = plane(32)
    k = 4 * math.pi
    w = 2 * k * (k * x).cos() * (k * y).cos()
    v = torch.stack([-(k * x).cos() * (k * y).sin(), (k * x).sin() * (k * y).cos()], -1)
    close(physics.velocity_from_vorticity(w[None], axes)[0], v, 1e-12)
    assert physics.divergence(v[None], axes, periodic=True).abs().max() < 1e-11
    wrong = v * torch.tensor([1., -1.])
    found = physics.divergence(wrong[None], axes, periodic=True)[0]
    close(found, 2 * k * (k * x).sin() * (k * y).sin(), 1e-9)


def test_any_vorticity_has_a_velocity_without_divergence():
    """On other grids as well: 5 x 3 domains, an odd number of points."""
    axes = [torch.from_numpy(centres(20, 0., 5.)), torch.from_numpy(centres(15, 1., 4.))]
    w = torch.from_numpy(noise(3, 20, 15)).double()
    w = w - w.mean((1, 2), keepdim=True)
    v = physics.velocity_from_vorticity(w, axes)
    assert physics.divergence(v, axes, periodic=True).abs().max() < 1e-11
    curl = physics.derivative(v[..., 1], axes[0], 0) - physics.derivative(v[..., 0], axes[1], 1)
    modes = torch.fft.fft2(w)
    modes[:, 10] = 0                                                 # the wave of +-1 cells has none
    close(curl, torch.fft.ifft2(modes).real, 1e-11)


def test_divergence_between_walls_is_of_second_order():
    """u = x² y, v = -x y² has none. Of u = x³, v = y³ it is 3 (x² + y²); differences add 2 h²."""
    x, y, axes = plane(16)
    v = torch.stack([x ** 2 * y, -x * y ** 2], -1)[None]
    assert physics.divergence(v, axes, periodic=False).abs().max() < 1e-13
    v = torch.stack([x ** 3, y ** 3], -1)[None]
    inner = (3 * (x ** 2 + y ** 2))[1:-1, 1:-1]
    div = physics.divergence(v, axes, periodic=False)[0]
    close(div - inner, torch.full_like(inner, 2 / 16 ** 2), 1e-12)
    assert div.shape == (14, 14)


# ---------------------------------------------------------------------------------------------
# integrals, energy, walls

def test_weights_of_a_mean():
    """Centres of cells, points on both walls (trapezoid), every other cell from the first."""
    third = 1 / 3
    cases = [(centres(4), [.25] * 4), ([0., .5, 1.], [.25, .5, .25]), ([.125, .625], [.375, .625]),
             ([third / 2, third * 1.5, third * 2.5], [third] * 3)]
    for x, expected in cases:
        close(physics.weights(torch.tensor(x), 0., 1., False), torch.tensor(expected), 1e-6)
    close(physics.weights(torch.tensor([.1, .6]), 0., 1., True), torch.tensor([.5, .5]))


def test_the_mean_between_walls_is_exact_for_straight_lines():
    pde = dataclasses.replace(DARCY, space=((0, 2), (-1, 1)))
    x = torch.linspace(0, 2, 9, dtype=torch.float64)                 # on the walls
    y = torch.from_numpy(centres(5, -1., 1.))
    u = torch.stack([3 * x[:, None] + 4 * y, torch.ones(9, 5).double()], -1)
    close(physics.mean(u[None], [x, y], pde), torch.tensor([[3., 1.]]).double(), 1e-12)


@pytest.mark.parametrize('name, shape', [
    ('burgers', (16,)), ('navier-stokes', (8, 6)), ('compressible-2d', (6, 8))])
def test_conservation_is_the_metric_with_a_sign(name, shape):
    pde = entry(name)
    n_field = len(pde.fields)
    p = torch.from_numpy(noise(3, *shape, n_field)).double()
    u0 = torch.from_numpy(noise(3, *shape, n_field, seed=1)).double()
    axes = [torch.from_numpy(centres(n)) for n in shape]
    found = physics.conservation(p, u0, axes, pde)
    kept = [pde.fields.index(field) for field in pde.conserved]
    expected = conservation_gap(p[:, None], u0[:, None])[:, 0, kept]
    close(found.abs(), expected, 1e-12)
    grown = (p - u0).flatten(1, -2).mean(1)[:, kept] > 0
    assert torch.equal(found > 0, grown)


@pytest.mark.parametrize('high', [False, True])
@pytest.mark.parametrize('gap', [0., .5, .3])
def test_a_wall_sees_the_parabola(high, gap):
    """Points that begin on the wall, half a cell from it, or elsewhere."""
    x = .1 * (torch.arange(6, dtype=torch.float64) + gap) + 2
    wall = 2.
    if high:
        wall = float(x[-1]) + gap * .1
    u = 5 - 3 * (x - wall) + 7 * (x - wall) ** 2
    value, slope = physics.at_wall(u[None], x, 0, wall, high)
    assert float(value) == pytest.approx(5)
    assert float(slope) == pytest.approx(-3. if high else 3.)        # outwards


def test_walls_of_two_axes():
    """cos pi x cos pi y has no flux through the walls of the unit square; sin pi x sin pi y is 0 there."""
    for n, error in ((32, .02), (64, .005)):
        x, y, axes = plane(n)
        even = ((math.pi * x).cos() * (math.pi * y).cos())[None, ..., None]
        odd = ((math.pi * x).sin() * (math.pi * y).sin())[None, ..., None]
        for u, right, wrong in ((even, NO_FLUX, ZERO), (odd, ZERO, NO_FLUX)):
            for condition, holds in ((right, True), (wrong, False)):
                pde = dataclasses.replace(DARCY, fields=('u',), walls={'u': (condition, condition)})
                defect = physics.boundary(u, u, axes, pde)
                assert defect.shape == (1, 4 * n)
                assert (float(defect.square().mean().sqrt()) < error) == holds, (n, condition)


def test_the_walls_of_diffusion_sorption():
    """Where u(0) = 1 and u(1) = -D u'(1), the violation is 0; a unit at the left, rms 1, is seen as such."""
    pde = entry('diffusion-sorption')
    [x] = axes_of(pde, 32)
    D = pde.walls['u'][1][1]
    u = (1 - x / (1 + D))[None, :, None]
    assert physics.boundary(u, u, [x], pde).abs().max() < 1e-12
    size = float(u.square().mean().sqrt())
    left, right = physics.boundary(u + 1, u, [x], pde)[0]
    assert float(left) == pytest.approx(1 / size)
    assert float(right) == pytest.approx(1 / (size + D / (1 + D)))


@pytest.mark.parametrize('name', [name for name, pde in PDES.items() if pde.dissipative])
def test_the_energy_of_what_is_dissipative_does_not_grow(name):
    pde = entry(name)
    u0 = pde.start(5, (256,))
    u = pde.solution(u0, pde.params, [0., .05, .1, .5, 1.])
    energy = torch.stack([physics.energies(frame, axes_of(pde, 256), pde) for frame in u.unbind(1)], 1)
    close(energy[:, 0], u0.square().mean((1, 2)), 1e-12)
    assert (energy.diff(dim=1) <= 1e-4 * energy[:, :1]).all()        # (waves of +-1 cells are not moved well)
    assert (energy[:, -1] < .95 * energy[:, 0]).any() == (name != 'advection')


@pytest.mark.parametrize('name', [name for name, pde in PDES.items() if pde.solve and not pde.dissipative])
def test_the_energy_of_the_others_grows_or_has_no_meaning(name):
    pde = entry(name)
    assert 'may grow' in physics.why_not('energy', pde, axes_of(pde, 8))


# ---------------------------------------------------------------------------------------------
# residuals, against the solvers

# name: parameters, cells, when, the longest of three time steps
SOLVED = {
    'burgers': ({'Nu': .1}, 512, .1, .02),
    'burgers-old': ({'Nu': .2}, 512, .2, .04),
    'reaction-diffusion': ({'Nu': .5, 'rho': 1.}, 64, .05, .004),
    'kuramoto-sivashinsky': ({}, 128, 1., .2),
    'navier-stokes': ({'Nu': 2e-3}, 32, 2., 1.),
    'diffusion-reaction': ({}, 24, 2., .4)}


def start(name, n, n_sample=2):
    """Initial fields, smooth ones where the entry's own are not yet on their attractor at first."""
    pde = entry(name)
    if name == 'kuramoto-sivashinsky':
        return torch.from_numpy(solvers.ks_waves(n_sample, (n,)))[..., None]
    return pde.start(n_sample, (n,) * pde.axes)


def relative_residual(pde, before, after, dt, params, n):
    """Rms of the residual over that of the rate, as physics.report has it."""
    dt = torch.full((len(before),), dt, dtype=before.dtype)
    values = {key.lower(): torch.full_like(dt, value) for key, value in params.items()}
    left = pde.residual(before, after, dt, values, axes_of(pde, n))
    assert left.shape[:-1] == before.shape[:-1]
    return float((left / physics.rate(before, after, dt, pde)).square().mean().sqrt())


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


@pytest.mark.parametrize('name', ['burgers', 'burgers-old', 'kuramoto-sivashinsky'])
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
    back = physics.shifted(moving[..., 0], x, torch.full((2,), speed * first).double())
    close(back[..., None], still, 1e-5)


def test_the_residual_of_advection_is_exact():
    pde = entry('advection')
    x = axes_of(pde, 64)[0]
    u0 = ((2 * math.pi * x).sin() + (10 * math.pi * x).cos())[None, :, None]
    u = pde.solution(u0, {'beta': .4}, [0., .33])
    assert relative_residual(pde, u[:, 0], u[:, 1], .33, {'beta': .4}, 64) < 1e-12
    h = 1e-4
    left = pde.residual(u0, u0, torch.tensor([h]).double(), {'beta': torch.tensor([.4]).double()}, [x])
    close(left[..., 0], .4 * physics.derivative(u0[..., 0], x, 0), 1e-2)             # u_t is 0 there


def test_the_residual_of_darcy():
    pde = entry('darcy')
    u = pde.solution(pde.start(2, (16, 16)), {'beta': 2.}, [0., 1.])
    assert relative_residual(pde, u[:, 0], u[:, 1], 1., {'beta': 2.}, 16) < 1e-9
    assert relative_residual(pde, u[:, 0], u[:, 1], 1., {'beta': 1.}, 16) == pytest.approx(1., rel=1e-6)
    x, y, _ = plane(32)
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


# ---------------------------------------------------------------------------------------------
# what applies

@pytest.mark.parametrize('name', PDES)
def test_what_is_promised_of_walls_and_flow(name):
    pde = entry(name)
    assert set(pde.walls) <= set(pde.fields)
    assert not pde.walls or pde.boundary == 'wall'
    assert all(len(sides) == 2 and len(side) == 3 for sides in pde.walls.values() for side in sides)
    assert not pde.incompressible or len(pde.velocity) == pde.axes
    for quantity in physics.QUANTITIES:
        assert isinstance(physics.why_not(quantity, pde, axes_of(pde, 8)), str)


def test_a_residual_of_cells_needs_cells():
    half = [x[::2] for x in axes_of(DARCY, 16)]
    assert 'not the centres of cells' in physics.why_not('residual', DARCY, half)
    assert not physics.why_not('boundary', DARCY, half)
    burgers = entry('burgers')
    assert not physics.why_not('residual', burgers, [axes_of(burgers, 16)[0][::2]])


@pytest.mark.parametrize('changes, weights, words', [
    ({}, {'divergence': 1.}, 'does not apply to burgers: its velocity is that of no incompressible flow'),
    ({}, {'boundary': 1.}, 'does not apply to burgers: its boundary is periodic'),
    ({'conserved': (0,)}, {'conservation': 1.}, 'conserve=True every step keeps the integral'),
    ({'pde': 'reaction-diffusion'}, {'conservation': 1.}, 'it conserves the integral of no field'),
    ({'pde': 'compressible-1d', 'fields': ('density', 'pressure', 'Vx')}, {'residual': 1.}, 'no residual'),
    ({'pde': 'navier-stokes', 'd': 2, 'fields': ('w',)}, {'divergence': 1.}, 'stream function')])
def test_a_prior_that_does_not_apply_is_refused(changes, weights, words):
    given = {f'lambda_{name}': value for name, value in weights.items()}
    for stage in (OperatorStage, DecoderStage):
        message = refused(stage, drawn(**changes), settings(**given))
        assert words in message and f'--{next(iter(given))}=0' in message


def test_a_prior_needs_the_whole_grid():
    s = settings(lambda_residual=1., num_queries=5)
    assert '--num_queries=0' in refused(OperatorStage, drawn(), s)
    walled = drawn(2, pde='darcy', fields=('a', 'u'), boundary='wall', static=(0,), params=('beta',))
    s = settings(lambda_boundary=1.)
    assert 'query_stride = space_stride' in refused(OperatorStage, walled, s)
    OperatorStage(walled, settings(lambda_boundary=1., query_stride=2))


def test_conservation_has_work_where_a_log_clamp_breaks_what_steps_keep():
    OperatorStage(drawn(conserved=(0,), log_clamp=2.), settings(lambda_conservation=1.))


# ---------------------------------------------------------------------------------------------
# in training

def true_batch(m, name, n_step, n_sample=2, roll=0, lift=0., Nu=.1):
    """A batch of m's grid whose fields solve an equation; what `roll` cells and a frame of speed `lift` have
    moved and taken off is as data.Windows does it."""
    pde = entry(name)
    n = m.cfg.grid[0]
    u0 = pde.start(n_sample, (n,) * pde.axes)
    t = [0., *[.4 + m.cfg.dt * k for k in range(n_step + 1)]]
    u = pde.solution(u0, {'Nu': Nu}, t)[:, 1:].float()
    frames = [frame.roll([-roll * k * step for step in m.cfg.direction], list(range(1, 1 + pde.axes)))
              for k, frame in enumerate(u.unbind(1))]
    y = (torch.stack(frames, 1) - m.mean) / m.std
    lift = ((lift + m.mean) / m.std).expand(n_sample, *[1] * (pde.axes + 1), -1)
    params = torch.full((n_sample, 1), Nu)
    return batch_of(m, n_step + 1, n_sample, u=y, y=y, q=m.points, lift=lift, params=params)


@pytest.mark.parametrize('name, changes', [
    ('burgers', {}),
    ('burgers', {'velocity': (0,), 'frame_speed': 1., 'token_shift': 3}),
    ('navier-stokes', {'d': 2, 'fields': ('w',), 'drift': (1, -1), 'translation': False, 'token_shift': 2,
                       'latent_dim': 16})])
def test_what_is_left_of_the_equation_in_a_batch(name, changes):
    """That of true frames is small, wherever the tokens have moved and whatever a frame has taken off; and
    that of a prediction which lags behind is not."""
    m = drawn(pde=name, dt=.01, **changes)
    stage = OperatorStage(m, settings(lambda_residual=1.))
    batch = true_batch(m, name, 2, roll=m.cfg.token_shift, lift=7. if 'velocity' in changes else 0.)
    truth = stage.truth(batch, 0, 3)
    out = {}
    stage.add_priors(out, truth[:, :1], truth[:, 1:], truth[:, 1:], batch)
    assert out['residual'].shape == (4, *m.cfg.grid, 1)
    assert out['true_residual'].square().mean().sqrt() < .03
    assert torch.equal(out['residual'], out['true_residual'])
    stage.add_priors(out, truth[:, :1], truth[:, :1].expand_as(truth[:, 1:]), truth[:, 1:], batch)
    assert (out['residual'] - out['true_residual']).square().mean().sqrt() > .5


def test_conservation_in_a_batch_is_that_of_whole_fields():
    m = drawn()
    stage = OperatorStage(m, settings(lambda_conservation=1.))
    batch = batch_of(m)
    truth = stage.truth(batch, 0, 3)
    out = {}
    p = torch.randn(3, 2, 32, 1)
    stage.add_priors(out, truth[:, :1], p, truth[:, 1:], batch)
    expected = conservation_gap(p * m.std, truth[:, :1] * m.std)
    close(out['gap'].abs().view(3, 2, 1), expected)
    value = stage(batch, 1.)[1]['conservation']
    assert value > 0


PRIORS_OF = [
    ('burgers', {}, ('conservation', 'residual')),
    ('diffusion-reaction', {'d': 2, 'fields': ('u', 'v'), 'boundary': 'wall', 'params': (), 'low': (-1., -1.),
                            'length': (2., 2.), 'first': (-.9375, -.9375)}, ('boundary', 'residual')),
    ('incompressible', {'d': 2, 'fields': ('Vx', 'Vy', 'particles', 'Fx', 'Fy'), 'static': (3, 4),
                        'boundary': 'wall', 'params': (), 'latent_dim': 20}, ('divergence',))]


@pytest.mark.parametrize('name, changes, priors', PRIORS_OF)
def test_priors_reach_every_part_of_the_model(name, changes, priors):
    m = drawn(pde=name, seen_params=((.01,),) * len(changes.get('params', 'p')), **changes)
    weights = {f'lambda_{prior}': 1. for prior in priors}
    stage = OperatorStage(m, settings(query_stride=2, **weights))
    batch = batch_of(m, q=m.points)
    _, parts = stage(batch, 1.)
    assert set(parts) == {'field', *priors}
    for prior in priors:
        stage.weights = {prior: 1.}
        m.zero_grad()
        loss, _ = stage(batch, 1.)
        loss.backward()
        assert loss > 0
        for part in (m.encoder, m.operator, m.decoder):
            grads = [p.grad for p in part.parameters() if p.grad is not None]
            assert grads and all(torch.isfinite(grad).all() for grad in grads)
            assert any(grad.any() for grad in grads)
    decoder = DecoderStage(m, settings(query_stride=2, **weights))
    assert set(decoder(batch, 1.)[1]) == {'field', *priors}


def test_a_still_truth_keeps_gradients_finite():
    m = drawn()
    stage = OperatorStage(m, settings(lambda_residual=1., lambda_conservation=1.))
    zero = torch.zeros(3, 3, 32, 1)
    loss, _ = stage(batch_of(m, u=zero, y=zero, lift=torch.zeros(3, 1, 1, 1)), 1.)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in m.parameters() if p.grad is not None)


# ---------------------------------------------------------------------------------------------
# the report

def report_of(name, n, t, params, change=None):
    """The report of a solution from the first of the times t on, and of what `change` makes of it."""
    pde = entry(name)
    u0 = pde.start(3, (n,) * pde.axes)
    u = pde.solution(u0, params, [0., *t]).float()[:, 1:]
    y = u[:, 1:]
    p = change(y) if change else y
    values = {key: torch.full((3,), value) for key, value in params.items()}
    return physics.report(u[:, 0], p, y, t[1] - t[0], values, axes_of(pde, n), pde)


def test_report_of_burgers():
    t = [.3, .35, .4, .45]
    same = report_of('burgers', 64, t, {'Nu': .1})
    assert list(same) == ['conservation of u', 'energy', 'boundary', 'divergence', 'residual']
    for key in ('conservation of u', 'energy', 'residual'):
        assert same[key]['prediction'] == same[key]['truth'] < .2
    assert 'periodic' in same['boundary']['does_not_apply']
    factors = torch.tensor([1., 1.2, 1.5])[:, None, None]
    louder = report_of('burgers', 64, t, {'Nu': .1}, lambda y: y * factors)
    assert louder['energy']['prediction'] > .1 and louder['energy']['truth'] < 1e-6
    assert louder['residual']['prediction'] > 2 * louder['residual']['truth']
    assert louder['residual']['truth'] == same['residual']['truth']
    assert louder['conservation of u']['prediction'] > 1e-2
    text = physics.lines(louder)
    assert 'conservation gap of u' in text and 'does not apply: its boundary is periodic' in text
    assert f"{louder['energy']['prediction']:.3g}" in text


def test_report_between_walls_and_of_a_steady_equation():
    found = report_of('diffusion-reaction', 16, [2., 2.5, 3.], {}, lambda y: 1.5 * y)
    assert found['boundary']['prediction'] == pytest.approx(1.5 * found['boundary']['truth'])
    assert found['residual']['truth'] < .1 < found['residual']['prediction']
    found = report_of('darcy', 16, [1., 2.], {'beta': 1.}, lambda y: 1.1 * y)
    assert found['residual']['truth'] < 1e-3 < found['residual']['prediction']
    assert found['boundary']['prediction'] > 0


def test_spectra_of_waves():
    x = torch.from_numpy(centres(32))
    u = (2 * math.pi * 5 * x).sin()[None, None, :, None]
    power, waves = physics.spectra(u, True)
    assert power.shape == (1, len(waves), 1)
    assert float(power[0, 5, 0]) == pytest.approx(.5)
    assert float(power.sum()) == pytest.approx(.5)
    u = (math.pi * 3 * x).cos()[None, None, :, None]                 # a wave and a half between walls
    power, waves = physics.spectra(u, False)
    assert float(waves[power[0, :, 0].argmax()]) == 1.5
    assert float(power.max()) == pytest.approx(.5)


def test_as_a_user_runs_it(smoke, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(smoke)
    json_file = tmp_path / 'e.json'
    [found] = ev.main(['--ckpt', 'o', '--physics', '--plot', '--steps', '3', '--device', 'cpu',
                        '--json', str(json_file)])
    assert os.path.getsize(smoke / 'o' / 'spectra.png') > 10_000
    printed = capsys.readouterr().out
    assert "physics of 'o" in printed and 'residual of the equation' in printed
    with open(json_file) as file:
        saved = json.load(file)['physics']
    assert saved == found['physics']
    gap = found['metrics']['conservation_gap']
    assert saved['conservation of u']['prediction'] == pytest.approx(gap, rel=1e-3)
    assert saved['energy']['truth'] < 1e-3
    assert 'add --physics' in refused(ev.main, ['--ckpt', 'o', '--plot'])


def test_the_equation_holds_in_the_windows_of_training(train, tmp_path):
    """With all that data.Windows does to true fields: moving frame, tokens that move on, shifts, reflections,
    boosts, and query points between the encoder's."""
    g = train(tmp_path / 'o', '--max_iters=1', '--lambda_residual=1', '--time_stride=1', '--initial_step=190',
              '--space_stride=4', '--query_stride=2', '--latent_dim=64', '--latent_tokens=64', '--boost=1',
              '--token_shift=2', '--early=1', '--compile=false', '--dtype=float32')
    stage = OperatorStage(g['model'], g['settings_of']('operator'))
    assert g['cfg'].frame_speed and g['cfg'].token_shift

    def left(batch, truth):
        out = {}
        stage.add_priors(out, truth[:, :1], truth[:, 1:], truth[:, 1:], batch)
        return float(out['true_residual'].square().mean().sqrt())

    offsets = set()
    for iteration in range(6):
        [batch] = g['windows'].batches(torch.arange(8), iteration)
        offsets.add(float(batch.q[0]))
        truth = stage.truth(batch, 0, 3)
        assert batch.lift.std() > .05
        right = left(batch, truth)
        frame_forgotten = left(batch._replace(lift=torch.zeros_like(batch.lift)), truth)
        other_nu = left(batch._replace(params=2 * batch.params), truth)
        assert right < 1e-3 and frame_forgotten > .3 and other_nu > .1
    assert len(offsets) == 2
