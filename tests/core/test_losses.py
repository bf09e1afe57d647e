"""losses.py: each loss against its formula, at equality and by finite differences; their weighted sum; what
the operator's stage computes from a batch, and which parts of the model each loss trains."""
import itertools
import math

import numpy as np
import pytest
import torch

from batches import batch_of, outputs_of, settings, trained
from conftest import cells, close, drawn, refused
from losses import (LOSSES, Loss, OperatorStage, inverse_decoding, mean_square, relative_l2, relative_square,
                    spectral, unit_size, weighted_sum)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def mean_over_steps(formula):
    """The mean of formula(p, y) over samples and steps; p and y are fields (*space, C) of one of them."""
    def loss(p, y):
        return np.mean([formula(p[b, k], y[b, k]) for b, k in np.ndindex(p.shape[:2])])
    return loss


def h1(p, y):
    """Fourier sums written out, over wave numbers of both signs."""
    sizes = y.shape[:-1]
    where = np.stack(np.meshgrid(*[np.arange(n) / n for n in sizes], indexing='ij'), -1)
    signed = [range(-((n - 1) // 2), n // 2 + 1) for n in sizes]
    above = 0.
    below = 0.
    for k in itertools.product(*signed):
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
LATENT = ('mean_square', 'inverse_decoding')
pairs = pytest.mark.parametrize('name', PAIRS)


@pytest.mark.parametrize('name, shape', [
    *itertools.product(PAIRS, [(3, 1, 8, 2), (2, 3, 12, 3)]),
    *itertools.product([name for name in PAIRS if name not in LATENT], [(2, 2, 6, 8, 1), (1, 2, 5, 4, 2)])])
def test_formula_on_random_arrays(name, shape):
    loss, formula = PAIRS[name]
    p = random(*shape)
    y = random(*shape, seed=1) + .5
    value = loss(p, y)
    assert value.ndim == 0
    assert np.isclose(float(value), formula(p.numpy(), y.numpy()), rtol=1e-5)


@pairs
def test_hand_made_values(name):
    p, y, expected = {
        'relative_l2': ([[3., 0.], [0., 8.]], [[3., 4.], [0., 4.]], (.8 + 1.) / 2),
        'relative_square': ([[3., 0.], [0., 8.]], [[3., 4.], [0., 4.]], (.64 + 1.) / 2),
        'mean_square': ([[1., 2.]], [[3., 2.]], 2.),
        'inverse_decoding': ([[1., 5.], [1., 1.]], [[1., 1.], [3., 5.]], (0 + 16 + 4 + 16) / 4 / 2.75),
        'spectral': ([[3., 3., 3., 3.], [1., -1., 1., -1.]], [[2., 2., 2., 2.], [1., 0., -1., 0.]],
                     (.5 + np.sqrt((5 * 16 + 2 * 4 * 2) / (2 * 4 * 2))) / 2)}[name]
    p = torch.tensor(p)[None, ..., None]                             # (1, K, X, 1)
    y = torch.tensor(y)[None, ..., None]
    assert float(PAIRS[name][0](p, y)) == pytest.approx(expected, rel=1e-6)


def test_unit_size():
    z = random(3, 4, 5, 6)
    expected = (((z.numpy() ** 2).mean((-2, -1)) - 1) ** 2).mean()
    assert np.isclose(float(unit_size(z)), expected)
    assert unit_size(torch.tensor([[[[1., -1.]], [[2., 2.]]]])) == 4.5
    assert torch.autograd.gradcheck(unit_size, (random(2, 3, 4, 2).requires_grad_(),))
    z = torch.tensor([[[[1., -1.], [1., 1.]]]], requires_grad=True)
    unit_size(z).backward()
    assert not z.grad.any()


@pairs
@pytest.mark.parametrize('shape', [(2, 3, 8, 3), (2, 1, 4, 6, 2)])
def test_zero_with_zero_gradient_at_equality(name, shape):
    y = random(*shape, dtype=torch.float32)
    p = y.clone().requires_grad_()
    value = PAIRS[name][0](p, y)
    value.backward()
    assert value == 0
    assert torch.equal(p.grad, torch.zeros_like(p))


@pairs
def test_finite_where_the_truth_vanishes(name):
    p = random(2, 3, 8, 3, dtype=torch.float32).requires_grad_()
    value = PAIRS[name][0](p, torch.zeros(2, 3, 8, 3))
    value.backward()
    assert value > 0 and torch.isfinite(value) and torch.isfinite(p.grad).all()


@pairs
def test_gradient_by_finite_differences(name):
    """Of the truth as well; that of inverse decoding is cut on purpose. (The spectral loss computes in
    float32: wide steps, loose bounds.)"""
    bounds = {'eps': 3e-3, 'atol': 1e-3, 'rtol': 1e-2} if name == 'spectral' else {}
    for shape in ((2, 2, 6, 2), (1, 2, 3, 4, 1)):
        p = random(*shape).requires_grad_()
        y = random(*shape, seed=1).requires_grad_(name != 'inverse_decoding')

        def loss(a, b):
            return PAIRS[name][0](a, b).double()
        assert torch.autograd.gradcheck(loss, (p, y), **bounds)


@pytest.mark.parametrize('scale', [1e-2, torch.tensor([.1, 1., 5., 20.])])
def test_inverse_decoding_cannot_be_won_by_rescaling(scale):
    p = random(3, 2, 5, 4)
    z = random(3, 2, 5, 4, seed=1)
    assert torch.allclose(inverse_decoding(scale * p, scale * z), inverse_decoding(p, z))
    z.requires_grad_()
    inverse_decoding(p, z).backward()                                # the variance is a constant
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


@pytest.mark.parametrize('loss', [relative_l2, spectral, relative_square])
@pytest.mark.parametrize('shape', [(2, 1, 64, 1), (2, 1, 16, 16, 2)])
def test_errors_of_a_field_that_is_zero_stay_small(loss, shape):
    """They are relative to a thousandth of the size of normalised fields, on any grid. Larger fields have
    their own size."""
    error = torch.full(shape, 1e-3)
    assert .5 < float(loss(error, torch.zeros(shape))) < 2
    y = .01 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(loss(y + error, y), loss(100 * (y + error), 100 * y))


# ---------------------------------------------------------------------------------------------
# the weighted sum

# the losses of the core; extensions that other tests have loaded may have added theirs
CORE = ('field', 'spectral', 'latent', 'inverse_encoding', 'inverse_decoding', 'latent_norm')
ALL = {f'lambda_{name}': 1. for name in CORE}


def outputs():
    """Everything that the losses take, of two samples and three steps."""
    field = (2, 3, 8, 1)
    latent = (2, 3, 4, 5)
    shapes = {'field': field, 'truth': field, 'latent': latent, 'target': latent, 'reconstruction': field,
              'start': field, 'cycle': latent, 'advanced': latent}
    return {name: random(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}


def test_weighted_sum_is_that_of_its_parts():
    out = outputs()
    weights = dict(zip(CORE, (1., .05, 10., .5, torch.tensor(.25), 2)))
    total, terms = weighted_sum(out, weights)
    expected = {'field': relative_l2(out['field'], out['truth']),
                'spectral': spectral(out['field'], out['truth']),
                'latent': mean_square(out['latent'], out['target']),
                'inverse_encoding': relative_square(out['reconstruction'], out['start']),
                'inverse_decoding': inverse_decoding(out['cycle'], out['advanced']),
                'latent_norm': unit_size(out['latent'])}
    assert terms == expected
    summed = sum(float(weights[name]) * value for name, value in expected.items())
    assert torch.allclose(total, summed.to(total.dtype))


def test_only_what_has_a_weight_is_computed():
    out = {name: value for name, value in outputs().items() if name in ('field', 'truth')}
    out['field'].requires_grad_()
    total, terms = weighted_sum(out, {'field': 2., 'latent': 0, 'spectral': .1, 'inverse_decoding': 0.})
    assert list(terms) == ['field', 'spectral']
    assert not any(term.requires_grad for term in terms.values())    # they are only logged
    total.backward()
    assert out['field'].grad.any()


def test_a_loss_that_lacks_one_of_its_outputs_is_refused():
    """As when its name is misspelt: left out in silence, it would never be missed."""
    out = outputs()
    del out['target']
    assert "'target'" in refused(weighted_sum, out, dict.fromkeys(CORE, 1.))


# ---------------------------------------------------------------------------------------------
# what the operator's stage computes

@cells
def test_shapes_of_the_outputs(arch, attention, d):
    m = drawn(d, arch=arch, attention=attention)
    out = outputs_of(OperatorStage(m, settings(**ALL)), batch_of(m))
    tokens = (math.prod(m.cfg.token_grid), 8)
    points = (*m.cfg.grid, 1)
    assert {name: tuple(value.shape) for name, value in out.items()} == {
        'latent': (3, 2, *tokens), 'target': (3, 2, *tokens), 'field': (3, 2, *points),
        'truth': (3, 2, *points), 'reconstruction': (3, 1, *points), 'start': (3, 1, *points),
        'cycle': (3, 1, *tokens), 'advanced': (3, 1, *tokens)}
    assert not out['target'].requires_grad


@pytest.mark.parametrize('d, fields', [(1, ('u',)), (2, ('a', 'b'))])
def test_outputs_of_training_are_those_of_use(d, fields):
    """A stage sees normalised fields, a user physical ones; nothing else differs."""
    m = drawn(d, fields=fields)
    batch = batch_of(m)
    out = outputs_of(OperatorStage(m, settings(**ALL)), batch)
    m.eval()

    def encoded(k):
        return m.encode(batch.u[:, k] * m.std + m.mean)

    def decoded(z):
        return (m.decode(z) - m.mean) / m.std + batch.background[:, 0]
    z = encoded(0)
    close(out['reconstruction'][:, 0], decoded(z), 1e-4)
    for k in range(2):
        z = m.step(z)
        close(out['latent'][:, k], z.tokens, 1e-4)
        close(out['field'][:, k], decoded(z), 1e-4)
        close(out['target'][:, k], encoded(k + 1).tokens, 1e-4)
    whole = batch.u + batch.background
    close(out['truth'], whole[:, 1:])
    close(out['start'], whole[:, :1])
    z = m.step(encoded(0))
    close(out['advanced'][:, 0], z.tokens, 1e-4)
    close(out['cycle'][:, 0], m.encode(m.decode(z)).tokens, 1e-4)


def test_errors_are_relative_to_the_whole_field():
    m = drawn()
    batch = batch_of(m)
    stage = OperatorStage(m, settings())
    none = torch.zeros_like(batch.background)
    plain = stage(batch._replace(background=none), 1.)[1]['field']
    whole = stage(batch._replace(background=none + 100.), 1.)[1]['field']
    absolute = plain * batch.u[:, 1:].flatten(2).norm(dim=2).mean()
    assert whole * 100 * 32 ** .5 == pytest.approx(float(absolute), rel=.2)


def test_parameters_and_time_steps_reach_the_operator():
    m = drawn()
    stage = OperatorStage(m, settings())
    batch = batch_of(m)
    latent = outputs_of(stage, batch)['latent']
    for change in ({'params': torch.tensor([[.01], [.1], [.01]])}, {'dt': torch.tensor([.05, .1, .05])}):
        other = outputs_of(stage, batch._replace(**change))['latent']
        close(other[[0, 2]], latent[[0, 2]])
        assert (other[1] - latent[1]).abs().max() > 1e-3


def test_the_number_of_steps_follows_the_progress():
    m = drawn()
    batch = batch_of(m, 4)
    stage = OperatorStage(m, settings(unroll=3, unroll_start=1, unroll_switch=.5))
    assert outputs_of(stage, batch, .49)['field'].shape[1] == 1
    assert outputs_of(stage, batch, .5)['field'].shape[1] == 3
    stage = OperatorStage(m, settings(unroll=3, unroll_start=0, unroll_switch=.5))
    assert outputs_of(stage, batch, 0.)['field'].shape[1] == 3


def test_inverse_decoding_comes_every_few_batches_and_grows():
    m = drawn()
    stage = OperatorStage(m, settings(lambda_inverse_decoding=2., inverse_loss_frequency=3))
    batch = batch_of(m)
    for iteration in range(6):
        terms = stage(batch._replace(iteration=iteration), 1.)[1]
        assert ('inverse_decoding' in terms) == (iteration % 3 == 2)
    batch = batch._replace(iteration=2)
    field = OperatorStage(m, settings())(batch, 1.)[0]
    value = stage(batch, 1.)[1]['inverse_decoding']
    for progress, ramp in ((.05, .25), (.15, .75), (.2, 1.), (.9, 1.)):
        close(stage(batch, progress)[0] - field, ramp * 2. * value, 1e-4)
    assert 'inverse_decoding' not in stage(batch, 0.)[1]


def test_a_still_field_is_no_loss_to_tokens_that_move_on():
    """The windows of data.py, whose points move along, are what such tokens are trained on."""
    m = drawn(scramble=False, galilean=1., velocity=(0,), token_shift=3)
    u = torch.randn(3, 32, 1)
    batch = batch_of(m, u=torch.stack([u.roll(-3 * k, 1) for k in range(3)], 1))
    stage = OperatorStage(m, settings(lambda_latent=1.))
    out = outputs_of(stage, batch)
    close(out['latent'], out['target'])
    close(out['field'], out['truth'])
    at_rest = batch._replace(u=u[:, None].expand(-1, 3, -1, -1))
    assert stage(at_rest, 1.)[1]['latent'] > .1


@pytest.mark.parametrize('output', ['field', 'truth', 'latent', 'target', 'reconstruction', 'start', 'cycle',
                                    'advanced'])
def test_a_loss_may_take_any_output(monkeypatch, output):
    """Although no other loss takes it."""
    monkeypatch.setitem(LOSSES, 'mine', Loss(lambda x: x.square().mean(), (output,), 0., ''))
    stage = OperatorStage(drawn(), settings(lambda_mine=1.))
    terms = stage(batch_of(stage.model), 1.)[1]
    assert 'mine' in terms and 'field' in terms


def test_without_drop_path_nothing_is_drawn():
    m = drawn()
    batch = batch_of(m)
    before = torch.get_rng_state()
    OperatorStage(m, settings(**ALL))(batch, 1.)
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------------------------------------
# what is trained

EVERYTHING = {'encoder', 'condition', 'operator', 'decoder'}


@cells
@pytest.mark.parametrize('changes', [
    {}, {'coder_depth': 0, 'log_clamp': 2., 'patch_size': 2}, {'boundary': 'wall', 'arch': 'pure'},
    {'fields': ('a', 'b', 'c'), 'conserved': (0,), 'latent_dim': 12}], ids=str)
def test_every_parameter_gets_a_gradient(arch, attention, d, changes):
    m = drawn(d, **{'arch': arch, 'attention': attention, **changes})
    loss, terms = OperatorStage(m, settings(**ALL))(batch_of(m), 1.)
    assert terms.keys() == set(CORE)
    loss.backward()
    assert trained(m) == EVERYTHING


@pytest.mark.parametrize('name, parts', [
    ('field', EVERYTHING), ('spectral', EVERYTHING), ('latent', {'encoder', 'condition', 'operator'}),
    ('latent_norm', {'encoder', 'condition', 'operator'}), ('inverse_encoding', {'encoder', 'decoder'}),
    ('inverse_decoding', EVERYTHING)])
@pytest.mark.parametrize('attention', ['standard', 'channel'])
def test_what_each_loss_trains(name, parts, attention):
    m = drawn(attention=attention, arch='u' if attention == 'channel' else 'pure')
    out = outputs_of(OperatorStage(m, settings(**ALL)), batch_of(m))
    LOSSES[name].function(*(out[need] for need in LOSSES[name].outputs)).backward()
    assert trained(m) == parts


def test_the_gradient_runs_through_all_steps_but_not_into_the_target():
    m = drawn(decoder_dim=0)
    batch = batch_of(m, 4)
    out = outputs_of(OperatorStage(m, settings(lambda_latent=1., unroll=3)), batch)
    out['latent'][:, 2].square().mean().backward()
    assert 'encoder' in trained(m)                                   # from the last step to the first frame
    assert not out['target'].requires_grad


@pytest.mark.parametrize('arch', ['pure', 'u'])
def test_checkpointing_gives_the_same_gradients(arch):
    """It recomputes the blocks, and the paths that are dropped."""
    m = drawn(arch=arch, drop_path=.5)
    again = drawn(arch=arch, drop_path=.5, checkpointing=True)
    again.load_state_dict(m.state_dict())
    calls = []
    again.operator.network.levels[0][0].attention.register_forward_hook(lambda *_: calls.append(1))
    batch = batch_of(m)
    for model in (m, again):
        torch.manual_seed(3)
        OperatorStage(model, settings(**ALL))(batch, 1.)[0].backward()
    assert len(calls) == 4                                           # two steps, each forward and again
    for p, q in zip(m.parameters(), again.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=1e-6)


def test_settings_that_train_nothing_are_refused():
    m = drawn()
    others = ('lambda_inverse_encoding', 'lambda_inverse_decoding', 'lambda_latent_norm')
    for value in (0., 1.):
        s = settings(lambda_field=0., **dict.fromkeys(others, value))
        assert 'operator' in refused(OperatorStage, m, s)
    s = settings(lambda_field=0., lambda_latent=1.)
    assert 'decoder' in refused(OperatorStage, m, s)
    OperatorStage(drawn(decoder_dim=0), s)                           # there is none to train
    for bad in ({'unroll_start': 3}, {'unroll': 0}, {'inverse_loss_frequency': 0}):
        assert next(iter(bad)) in refused(OperatorStage, m, settings(**bad))
