"""priors.py against closed forms and hand-made arrays; the losses that take them, in training."""
import dataclasses
import math

import pytest
import torch

from batches import batch_of, outputs_of, settings
from conftest import centres, close, drawn, noise, refused
from equations import entries, entry
from equations.common import NO_FLUX, ZERO
from losses import OperatorStage
from metrics import conservation_gap
from physics import priors
from physics.report import QUANTITIES

DARCY = entry('darcy')


def axes_of(pde, n):
    """Centres of n cells along each axis, float64."""
    return [torch.from_numpy(centres(n, low, high)) for low, high in pde.space]


def plane(n, low=0., high=1.):
    """x and y (n, n) of the centres of n x n cells, and the axes."""
    x = torch.from_numpy(centres(n, low, high))
    return x[:, None].expand(n, n), x[None].expand(n, n), [x, x]


# ---------------------------------------------------------------------------------------------
# measurements

@pytest.mark.parametrize('name, shape', [
    ('burgers', (16,)), ('navier-stokes', (8, 6)), ('compressible-2d', (6, 8))])
def test_conservation_is_the_metric_with_a_sign(name, shape):
    pde = entry(name)
    n_field = len(pde.fields)
    p = torch.from_numpy(noise(3, *shape, n_field)).double()
    u0 = torch.from_numpy(noise(3, *shape, n_field, seed=1)).double()
    axes = [torch.from_numpy(centres(n)) for n in shape]
    found = priors.conservation(p, u0, axes, pde)
    kept = [pde.fields.index(field) for field in pde.conserved]
    expected = conservation_gap(p[:, None], u0[:, None])[:, 0, kept]
    close(found.abs(), expected, 1e-12)
    grown = (p - u0).flatten(1, -2).mean(1)[:, kept] > 0
    assert torch.equal(found > 0, grown)


@pytest.mark.parametrize('factor', [1e-9, 1e9])
def test_measurements_do_not_depend_on_the_unit(factor):
    axes = [torch.from_numpy(centres(n)) for n in (6, 8)]
    u, y = (torch.from_numpy(noise(3, 6, 8, 4, seed=seed)).double() for seed in (0, 1))
    gas = entry('compressible-2d')
    close(priors.conservation(factor * u, factor * y, axes, gas), priors.conservation(u, y, axes, gas), 1e-9)
    flow = entry('incompressible')
    usual = priors.relative_divergence(u, y, axes, flow)
    close(priors.relative_divergence(factor * u, factor * y, axes, flow), usual, 1e-9)


@pytest.mark.parametrize('high', [False, True])
@pytest.mark.parametrize('gap', [0., .5, .3])
def test_a_wall_sees_the_parabola(high, gap):
    """Points that begin on the wall, half a cell from it, or elsewhere."""
    x = .1 * (torch.arange(6, dtype=torch.float64) + gap) + 2
    wall = 2.
    if high:
        wall = float(x[-1]) + gap * .1
    u = 5 - 3 * (x - wall) + 7 * (x - wall) ** 2
    value, slope = priors.at_wall(u[None], x, 0, wall, high)
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
                defect = priors.boundary(u, u, axes, pde)
                assert defect.shape == (1, 4 * n)
                assert (float(defect.square().mean().sqrt()) < error) == holds, (n, condition)


def test_the_walls_of_diffusion_sorption():
    """Where u(0) = 1 and u(1) = -D u'(1), the violation is 0; a unit at the left, rms 1, is seen as such."""
    pde = entry('diffusion-sorption')
    [x] = axes_of(pde, 32)
    D = pde.walls['u'][1][1]
    u = (1 - x / (1 + D))[None, :, None]
    assert priors.boundary(u, u, [x], pde).abs().max() < 1e-12
    size = float(u.square().mean().sqrt())
    left, right = priors.boundary(u + 1, u, [x], pde)[0]
    assert float(left) == pytest.approx(1 / size)
    assert float(right) == pytest.approx(1 / (size + D / (1 + D)))


@pytest.mark.parametrize('name, shape', [('burgers', (16,)), ('compressible-2d', (6, 8))])
def test_the_energy_is_that_of_the_velocity(name, shape):
    pde = entry(name)
    u = torch.from_numpy(noise(3, *shape, len(pde.fields))).double()
    velocity = [pde.fields.index(field) for field in pde.velocity]
    expected = u[..., velocity].square().sum(-1).flatten(1).mean(1)
    close(priors.energies(u, axes_of_shape(pde, shape), pde), expected, 1e-12)


def axes_of_shape(pde, shape):
    return [torch.from_numpy(centres(n, *ends)) for n, ends in zip(shape, pde.space)]


@pytest.mark.parametrize('periodic', [True, False])
def test_a_divergence_is_in_units_of_the_true_gradient(periodic):
    """Closed form: v = (x, 0) has the divergence 1, y = (x, 2 x) a gradient of rms sqrt(5), between walls.
    On a torus, waves in place of lines."""
    pde = dataclasses.replace(entry('incompressible'), boundary='periodic' if periodic else 'wall',
                              fields=('Vx', 'Vy'), static=(), space=((0, 1), (0, 1)))
    x, _, axes = plane(16)
    line = (2 * math.pi * x).sin() if periodic else x
    slope = (2 * math.pi * (2 * math.pi * x).cos()) if periodic else torch.ones_like(x)[1:-1, 1:-1]
    u = torch.stack([line, 0 * x], -1)[None]
    y = torch.stack([line, 2 * line], -1)[None]
    unit = (5 * slope.square().mean()).sqrt()
    close(priors.relative_divergence(u, y, axes, pde)[0], slope / unit, 1e-9)


def test_the_unit_of_a_residual_is_the_rate_of_each_field_that_changes():
    pde = dataclasses.replace(entry('burgers'), fields=('a', 'b', 'c'), static=('b',))
    u0 = torch.zeros(2, 8, 3)
    u1 = u0 + torch.tensor([1., 5., 2.])
    close(priors.rate(u0, u1, torch.full((2,), .1), pde), torch.tensor([10., 20.]))
    assert priors.rate(u0, u1, torch.full((2,), .1), DARCY) == 1.


# ---------------------------------------------------------------------------------------------
# what applies

@pytest.mark.parametrize('name', entries())
def test_why_a_quantity_does_not_apply_is_said_for_every_equation(name):
    pde = entry(name)
    axes = axes_of(pde, 8)
    applies = {'conservation': pde.conserved, 'energy': pde.dissipative, 'boundary': pde.walls,
               'divergence': pde.incompressible, 'residual': pde.residual}
    for quantity in QUANTITIES:
        why_not = priors.why_not(quantity, pde, axes)
        assert isinstance(why_not, str) and bool(applies[quantity]) == (not why_not)


def test_a_residual_of_cells_needs_cells():
    half = [x[::2] for x in axes_of(DARCY, 16)]
    assert 'cell centres' in priors.why_not('residual', DARCY, half)
    assert not priors.why_not('boundary', DARCY, half)
    burgers = entry('burgers')
    assert not priors.why_not('residual', burgers, [axes_of(burgers, 16)[0][::2]])


@pytest.mark.parametrize('changes, prior', [
    ({}, 'divergence'), ({}, 'boundary'), ({'conserved': (0,)}, 'conservation'),
    ({'pde': 'reaction-diffusion'}, 'conservation'),
    ({'pde': 'compressible-1d', 'fields': ('density', 'pressure', 'Vx')}, 'residual'),
    ({'pde': 'navier-stokes', 'd': 2, 'fields': ('w',)}, 'divergence')])
def test_a_prior_that_does_not_apply_is_refused(changes, prior):
    given = settings(**{f'lambda_{prior}': 1.})
    assert f'--lambda_{prior}=0' in refused(OperatorStage, drawn(**changes), given)


def test_a_prior_needs_the_whole_grid():
    s = settings(lambda_residual=1., num_queries=5)
    assert '--num_queries=0' in refused(OperatorStage, drawn(), s)


def test_conservation_has_work_where_a_log_clamp_breaks_what_steps_keep():
    OperatorStage(drawn(conserved=(0,), log_clamp=2.), settings(lambda_conservation=1.))


# ---------------------------------------------------------------------------------------------
# in training

def true_batch(m, name, n_step, n_sample=2, background=0., Nu=.1):
    """A batch of m's grid whose fields solve an equation. They are moved by token_shift and the `background`
    is taken off, as data.Windows does it."""
    pde = entry(name)
    n = m.cfg.grid[0]
    u0 = pde.start(n_sample, (n,) * pde.axes)
    t = [0., *[.4 + m.cfg.dt * k for k in range(n_step + 1)]]
    u = pde.solution(u0, {'Nu': Nu}, t)[:, 1:].float()
    axes = list(range(1, 1 + pde.axes))
    frames = []
    for k, frame in enumerate(u.unbind(1)):
        cells = [-m.cfg.token_shift * k * step for step in m.cfg.shift_direction]
        frames.append(frame.roll(cells, axes))
    u = (torch.stack(frames, 1) - m.mean) / m.std
    background = (background + m.mean) / m.std
    background = background.expand(n_sample, *[1] * (pde.axes + 1), -1)
    return batch_of(m, n_step + 1, n_sample, u=u, background=background,
                    params=torch.full((n_sample, 1), Nu))


@pytest.mark.parametrize('name, changes', [
    ('burgers', {}),
    ('burgers', {'velocity': (0,), 'galilean': 1., 'token_shift': 3}),
    ('navier-stokes', {'d': 2, 'fields': ('w',), 'diagonal': (1, -1), 'translation': False, 'token_shift': 2,
                       'latent_dim': 16})])
def test_the_residual_of_a_batch(name, changes):
    """That of true frames is small, wherever the tokens have moved and whatever background is taken off; that
    of a prediction which lags behind is not."""
    m = drawn(pde=name, dt=.01, **changes)
    stage = OperatorStage(m, settings(lambda_residual=1.))
    [extend] = stage.extensions
    batch = true_batch(m, name, 2, background=7. if 'velocity' in changes else 0.)
    truth = batch.u + batch.background
    outputs = {'truth': truth[:, 1:], 'field': truth[:, 1:]}
    extend(outputs, batch)
    assert outputs['residual'].shape == (4, *m.cfg.grid, 1)
    assert outputs['true_residual'].square().mean().sqrt() < .03
    assert torch.equal(outputs['residual'], outputs['true_residual'])
    outputs['field'] = truth[:, :1].expand_as(truth[:, 1:])
    extend(outputs, batch)
    assert (outputs['residual'] - outputs['true_residual']).square().mean().sqrt() > .5


def test_conservation_in_a_batch_is_that_of_whole_fields():
    m = drawn()
    stage = OperatorStage(m, settings(lambda_conservation=1.))
    batch = batch_of(m)
    out = outputs_of(stage, batch)
    start = batch.u[:, :1] + batch.background
    expected = conservation_gap(out['field'] * m.std, start * m.std)
    close(out['gap'].abs().view(3, 2, 1), expected)


PRIORS_OF = [
    ('burgers', {}, ('conservation', 'residual')),
    ('diffusion-reaction', {'d': 2, 'fields': ('u', 'v'), 'boundary': 'wall', 'params': (), 'low': (-1., -1.),
                            'length': (2., 2.), 'first': (-.9375, -.9375)}, ('boundary', 'residual')),
    ('incompressible', {'d': 2, 'fields': ('Vx', 'Vy', 'particles', 'Fx', 'Fy'), 'static': (3, 4),
                        'boundary': 'wall', 'params': (), 'latent_dim': 20}, ('divergence',))]


@pytest.mark.parametrize('name, changes, names', PRIORS_OF)
def test_priors_reach_every_part_of_the_model(name, changes, names):
    m = drawn(pde=name, seen_params=((.01,),) * len(changes.get('params', 'p')), **changes)
    batch = batch_of(m)
    for prior in names:
        stage = OperatorStage(m, settings(**{f'lambda_{prior}': 1.}))
        stage.weights['field'] = 0.
        m.zero_grad()
        loss, terms = stage(batch, 1.)
        loss.backward()
        assert set(terms) == {prior} and loss > 0
        for part in (m.encoder, m.operator, m.decoder):
            grads = [p.grad for p in part.parameters() if p.grad is not None]
            assert grads and all(torch.isfinite(grad).all() for grad in grads)
            assert any(grad.any() for grad in grads)


def test_a_still_truth_keeps_gradients_finite():
    m = drawn()
    stage = OperatorStage(m, settings(lambda_residual=1., lambda_conservation=1.))
    batch = batch_of(m, u=torch.zeros(3, 3, 32, 1), background=torch.zeros(3, 1, 1, 1))
    stage(batch, 1.)[0].backward()
    assert all(torch.isfinite(p.grad).all() for p in m.parameters() if p.grad is not None)


def test_the_equation_holds_in_the_windows_of_training(train, tmp_path):
    """With all that data.Windows does to true fields: moving frame, tokens that move on, shifts and
    reflections."""
    g = train(tmp_path / 'o', '--max_iters=1', '--lambda_residual=1', '--time_stride=1', '--initial_step=190',
              '--space_stride=2', '--latent_dim=64', '--latent_tokens=64', '--token_shift=2',
              '--early_bias=1',
              '--encoder_dim=0', '--decoder_dim=0', '--n_validated=1', '--compile=false', '--dtype=float32')
    stage = OperatorStage(g['model'], g['settings_of']('operator'))
    [extend] = stage.extensions
    assert g['cfg'].galilean and g['cfg'].token_shift

    def residual(batch, truth):
        outputs = {'truth': truth[:, 1:], 'field': truth[:, 1:]}
        extend(outputs, batch)
        return float(outputs['true_residual'].square().mean().sqrt())

    for iteration in range(4):
        [batch] = g['windows'].batches(torch.arange(8), iteration)
        truth = batch.u + batch.background
        assert batch.background.std() > .05
        right = residual(batch, truth)
        frame_forgotten = residual(batch._replace(background=torch.zeros_like(batch.background)), truth)
        other_nu = residual(batch._replace(params=2 * batch.params), truth)
        assert right < 2e-3 and frame_forgotten > .3 and other_nu > .1
