"""losses.py, the functions: each loss against its formula, at equality, by finite differences; their sum."""
import itertools
import math

import numpy as np
import pytest
import torch

from conftest import refused
from losses import (LOSSES, agreement, direction, inverse_decoding, mean_square, relative_l2,
                    relative_square, spectral, unit_size, weighted_sum)
from metrics import fair_crps


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def mean_over_steps(formula):
    """The mean of formula(p, y) over samples and steps; p and y are fields (*space, C) of one of them."""
    def loss(p, y):
        values = []
        for b, k in np.ndindex(p.shape[:2]):
            values.append(formula(p[b, k], y[b, k]))
        return np.mean(values)
    return loss


def h1(p, y):
    """Fourier sums written out: one wave number of each conjugate pair along the last axis, both signs along
    the others."""
    sizes = y.shape[:-1]
    where = np.stack(np.meshgrid(*[np.arange(n) / n for n in sizes], indexing='ij'), -1)
    signed = [range(-((n - 1) // 2), n // 2 + 1) for n in sizes[:-1]]
    above = 0.
    below = 0.
    for k in itertools.product(*signed, range(sizes[-1] // 2 + 1)):
        wave = np.exp(-2j * np.pi * where @ np.array(k))[..., None]
        space = tuple(range(len(sizes)))
        weight = 1 + np.dot(k, k)
        above += weight * (np.abs(((p - y) * wave).sum(space)) ** 2).sum()
        below += weight * (np.abs((y * wave).sum(space)) ** 2).sum()
    return np.sqrt(above / below)


def relative_norm(p, y):
    return np.sqrt(((p - y) ** 2).sum() / (y ** 2).sum())


def mean_over_fields(p, y):
    return np.mean([relative_norm(p[..., i], y[..., i]) for i in range(y.shape[-1])])


# name: the loss, and the same in numpy
PAIRS = {
    'relative_l2': (relative_l2, mean_over_steps(mean_over_fields)),
    'relative_square': (relative_square, mean_over_steps(lambda p, y: relative_norm(p, y) ** 2)),
    'mean_square': (mean_square, lambda p, y: ((p - y) ** 2).mean()),
    'inverse_decoding': (inverse_decoding, lambda p, y: np.mean((p - y) ** 2 / y.var((0, 1, 2)))),
    'spectral': (spectral, mean_over_steps(h1))}
OF_FIELDS = ['relative_l2', 'relative_square', 'spectral']
pairs = pytest.mark.parametrize('name', PAIRS)


def check_formula(name, shape):
    loss, formula = PAIRS[name]
    p = random(*shape)
    y = random(*shape, seed=1) + .5
    value = loss(p, y)
    assert value.ndim == 0
    assert np.isclose(float(value), formula(p.numpy(), y.numpy()), rtol=1e-5)


@pairs
@pytest.mark.parametrize('shape', [(3, 1, 8, 2), (1, 4, 5, 1), (2, 3, 12, 3)])
def test_formula_on_random_arrays(name, shape):
    check_formula(name, shape)


@pytest.mark.parametrize('name', OF_FIELDS)
@pytest.mark.parametrize('shape', [(2, 2, 6, 8, 1), (1, 2, 5, 4, 2), (2, 1, 4, 7, 4)])
def test_formula_of_fields_in_2d(name, shape):
    check_formula(name, shape)


@pairs
def test_hand_made_values(name):
    p, y, expected = {
        'relative_l2': ([[3., 0.], [0., 8.]], [[3., 4.], [0., 4.]], (.8 + 1.) / 2),
        'relative_square': ([[3., 0.], [0., 8.]], [[3., 4.], [0., 4.]], (.64 + 1.) / 2),
        'mean_square': ([[1., 2.]], [[3., 2.]], 2.),
        'inverse_decoding': ([[1., 5.], [1., 1.]], [[1., 1.], [3., 5.]], (0 + 16 + 4 + 16) / 4 / 2.75),
        'spectral': ([[3., 3., 3., 3.], [1., -1., 1., -1.]], [[2., 2., 2., 2.], [1., 0., -1., 0.]],
                     (.5 + np.sqrt((5 * 16 + 2 * 4) / (2 * 4))) / 2)}[name]
    p = torch.tensor(p)[None, ..., None]                             # (1, K, X, 1)
    y = torch.tensor(y)[None, ..., None]
    assert float(PAIRS[name][0](p, y)) == pytest.approx(expected, rel=1e-6)


def test_unit_size():
    z = random(3, 4, 5, 6)
    expected = (((z.numpy() ** 2).mean((-2, -1)) - 1) ** 2).mean()
    assert np.isclose(float(unit_size(z)), expected)
    assert unit_size(torch.tensor([[[[1., -1.]], [[2., 2.]]]])) == 4.5


@pairs
@pytest.mark.parametrize('shape', [(2, 3, 8, 3), (2, 1, 4, 6, 2)])
def test_zero_with_zero_gradient_at_equality(name, shape):
    y = random(*shape, dtype=torch.float32)
    p = y.clone().requires_grad_()
    value = PAIRS[name][0](p, y)
    value.backward()
    assert value == 0
    assert torch.equal(p.grad, torch.zeros_like(p))


def test_unit_size_at_unit_size():
    z = torch.tensor([[[[1., -1.], [1., 1.]]]], requires_grad=True)
    value = unit_size(z)
    value.backward()
    assert value == 0
    assert torch.equal(z.grad, torch.zeros_like(z))


@pairs
def test_finite_where_the_truth_vanishes(name):
    p = random(2, 3, 8, 3, dtype=torch.float32).requires_grad_()
    value = PAIRS[name][0](p, torch.zeros(2, 3, 8, 3))
    value.backward()
    assert value > 0
    assert torch.isfinite(value)
    assert torch.isfinite(p.grad).all()


def bounds(name):
    """The spectral loss computes in float32: wide steps, loose bounds."""
    return {'eps': 3e-3, 'atol': 1e-3, 'rtol': 1e-2} if name == 'spectral' else {}


@pairs
@pytest.mark.parametrize('shape', [(2, 2, 6, 2), (1, 2, 3, 4, 1)])
def test_gradient_by_finite_differences(name, shape):
    p = random(*shape).requires_grad_()
    y = random(*shape, seed=1)

    def loss(a):
        return PAIRS[name][0](a, y).double()
    assert torch.autograd.gradcheck(loss, (p,), **bounds(name))


@pytest.mark.parametrize('name', [name for name in PAIRS if name != 'inverse_decoding'])
def test_gradient_in_the_truth(name):
    """(That of inverse decoding is cut on purpose.)"""
    p = random(2, 2, 6, 2).requires_grad_()
    y = random(2, 2, 6, 2, seed=1).requires_grad_()

    def loss(a, b):
        return PAIRS[name][0](a, b).double()
    assert torch.autograd.gradcheck(loss, (p, y), **bounds(name))


def test_gradient_of_unit_size():
    assert torch.autograd.gradcheck(unit_size, (random(2, 3, 4, 2).requires_grad_(),))


@pytest.mark.parametrize('scale', [1e-2, 30., torch.tensor([.1, 1., 5., 20.])])
def test_inverse_decoding_cannot_be_won_by_rescaling(scale):
    p = random(3, 2, 5, 4)
    z = random(3, 2, 5, 4, seed=1)
    assert torch.allclose(inverse_decoding(scale * p, scale * z), inverse_decoding(p, z))


def test_the_variance_of_inverse_decoding_is_a_constant():
    p = random(3, 2, 5, 4)
    z = random(3, 2, 5, 4, seed=1).requires_grad_()
    inverse_decoding(p, z).backward()
    variance = z.detach().var((0, 1, 2), correction=0)
    assert torch.allclose(z.grad, 2 * (z - p).detach() / variance / z.numel())


def test_spectral_costs_more_at_higher_wave_numbers():
    x = torch.arange(32, dtype=torch.float64) / 32

    def wave(k):
        return torch.sin(2 * np.pi * k * x)[None, None, :, None]
    y = wave(1)
    for k in range(1, 16):
        p = y + .1 * wave(k)
        assert float(spectral(p, y)) == pytest.approx(.1 * np.sqrt((1 + k ** 2) / 2), rel=1e-5)
        assert float(relative_l2(p, y)) == pytest.approx(.1, rel=1e-6)


def test_spectral_counts_wave_numbers_of_both_axes():
    x = torch.arange(16, dtype=torch.float64) / 16
    x = x[:, None].expand(16, 16)

    def wave(kx, ky):
        return torch.cos(2 * np.pi * (kx * x + ky * x.T))[None, None, ..., None]
    y = wave(1, 2)
    for kx, ky in ((3, 4), (-3, 4), (5, 1), (-7, 2)):
        expected = .1 * np.sqrt((1 + kx ** 2 + ky ** 2) / (1 + 1 + 4))
        assert float(spectral(y + .1 * wave(kx, ky), y)) == pytest.approx(expected, rel=1e-5)


# ---------------------------------------------------------------------------------------------
# the weighted sum

def outputs():
    """Everything that the losses take, of two samples and three steps."""
    field = (2, 3, 8, 1)
    latent = (2, 3, 4, 5)
    shapes = {'field': field, 'truth': field, 'latent': latent, 'target': latent, 'reconstruction': field,
              'start': field, 'cycle': latent, 'advanced': latent, 'before': latent,
              'earlier': latent, 'gap': (6, 1), 'wall_defect': (6, 2), 'true_wall_defect': (6, 2),
              'velocity_divergence': (6, 8), 'flow': latent, 'flow_target': latent, 'end': latent,
              'end_of_teacher': latent, 'members': (2, 4, *field[1:]),
              'residual': (6, 8, 1), 'true_residual': (6, 8, 1)}
    return {name: random(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}


def test_weighted_sum_is_that_of_its_parts():
    out = outputs()
    weights = {'field': 1., 'latent': 10., 'agreement': 3., 'direction': .7, 'inverse_encoding': .5,
               'inverse_decoding': torch.tensor(.25), 'spectral': .05, 'latent_norm': 2, 'conservation': .3,
               'boundary': .2, 'divergence': .6, 'residual': .9, 'flow': .8, 'distill': .4, 'crps': .35}
    assert weights.keys() == LOSSES.keys()
    total, parts = weighted_sum(out, weights)
    expected = {'field': relative_l2(out['field'], out['truth']),
                'latent': mean_square(out['latent'], out['target']),
                'agreement': agreement(out['latent'], out['target'], out['before']),
                'direction': direction(out['latent'], out['earlier'], out['target'], out['before']),
                'inverse_encoding': relative_square(out['reconstruction'], out['start']),
                'inverse_decoding': inverse_decoding(out['cycle'], out['advanced']),
                'spectral': spectral(out['field'], out['truth']),
                'latent_norm': unit_size(out['latent']),
                'conservation': out['gap'].square().mean(),
                'boundary': (out['wall_defect'] - out['true_wall_defect']).square().mean(),
                'divergence': out['velocity_divergence'].square().mean(),
                'residual': (out['residual'] - out['true_residual']).square().mean(),
                'flow': mean_square(out['flow'], out['flow_target']),
                'distill': mean_square(out['end'], out['end_of_teacher']),
                'crps': fair_crps(out['members'], out['truth']).mean()}
    assert parts == expected
    summed = sum(float(weights[name]) * value for name, value in expected.items())
    assert torch.allclose(total, summed.to(total.dtype))


@pytest.mark.parametrize('zero', [0, 0., torch.tensor(0.)])
def test_only_what_has_a_weight_is_computed(zero):
    whole = outputs()
    needed = ('field', 'truth', 'latent')                            # a loss without weight needs nothing
    out = {name: whole[name] for name in needed}
    weights = {'field': 2., 'latent': zero, 'spectral': zero, 'latent_norm': zero, 'inverse_decoding': zero}
    total, parts = weighted_sum(out, weights)
    assert list(parts) == ['field']
    assert torch.allclose(total, 2 * parts['field'])


def test_a_loss_that_lacks_one_of_its_outputs_is_refused():
    """As when its name is misspelt: left out in silence, it would never be missed."""
    out = outputs()
    del out['target']
    message = refused(weighted_sum, out, dict.fromkeys(LOSSES, 1.))
    assert "'latent' takes 'target'" in message and 'truth' in message


def test_parts_are_detached_and_the_total_is_not():
    out = outputs()
    out['field'].requires_grad_()
    total, parts = weighted_sum(out, {'field': 1., 'spectral': .1})
    assert not any(part.requires_grad for part in parts.values())
    total.backward()
    assert out['field'].grad.any()


def test_the_sum_is_exact_when_a_part_is_zero():
    out = outputs()
    out['field'] = out['truth'].clone().requires_grad_()
    total, parts = weighted_sum(out, {'field': 1., 'spectral': 1.})
    total.backward()
    assert total == 0
    assert parts == {'field': 0, 'spectral': 0}
    assert not out['field'].grad.any()


def test_agreement_is_relative_to_the_step():
    before = torch.tensor([[[[1., 1.]], [[0., 0.]]]])               # (B, K, S, D) = (1, 2, 1, 2)
    target = torch.tensor([[[[1., 3.]], [[4., 2.]]]])               # steps of squares 4 and 20
    z = torch.tensor([[[[2., 3.]], [[4., 7.]]]])                    # errors of squares 1 and 25
    assert float(agreement(z, target, before)) == pytest.approx((1 / 4 + 25 / 20) / 2)
    assert float(agreement(before, target, before)) == pytest.approx(1)
    assert float(agreement(1e3 * z, 1e3 * target, 1e3 * before)) == pytest.approx((1 / 4 + 25 / 20) / 2)
    assert math.isfinite(float(agreement(z, before, before)))       # nothing moves


def test_direction_is_the_angle_between_the_steps():
    before = torch.tensor([[[[1., 1.]], [[0., 0.]], [[2., 2.]]]])   # (B, K, S, D) = (1, 3, 1, 2)
    target = torch.tensor([[[[1., 3.]], [[4., 0.]], [[2., 1.]]]])
    earlier = torch.tensor([[[[5., 5.]], [[0., 1.]], [[0., 0.]]]])
    z = torch.tensor([[[[5., 9.]], [[3., 4.]], [[0., 7.]]]])        # steps along, at 45 degrees, and against
    found = float(direction(z, earlier, target, before))
    assert found == pytest.approx((0 + 1 - math.sqrt(.5) + 2) / 3, abs=1e-6)
    assert float(direction(earlier + 9 * (z - earlier), earlier, target, before)) == pytest.approx(found)
    z.requires_grad_(True)
    direction(z, z.detach(), target, before).backward()             # nothing moves
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize('loss', [relative_l2, spectral, relative_square])
@pytest.mark.parametrize('shape', [(2, 1, 64, 1), (2, 1, 16, 16, 2)])
def test_errors_of_a_field_that_is_zero_stay_small(loss, shape):
    """Relative to a thousandth of the size that normalised fields have, on any grid; those of larger fields
    are what they are."""
    error = torch.full(shape, 1e-3)
    assert .5 < float(loss(error, torch.zeros(shape))) < 2
    y = .01 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(loss(y + error, y), loss(100 * (y + error), 100 * y))
