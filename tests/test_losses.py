"""losses.py: every loss against its formula, at equality, by finite differences; where the inverse losses reach."""
import numpy as np
import pytest
import torch

from losses import bundle, inverse_decoding, inverse_encoding, latent_forward, latent_norm, relative_l2, spectral
from model import UPT, ModelConfig


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def mean_over_samples(f):
    """The mean of f(p, y) over all leading axes, p and y being (Q, C) arrays."""
    return lambda p, y: np.mean([f(a, b) for a, b in zip(p.reshape(-1, *p.shape[-2:]), y.reshape(-1, *y.shape[-2:]))])


def h1(p, y):
    k = np.arange(len(y) // 2 + 1)[:, None]
    norm = lambda a: ((1 + k ** 2) * np.abs(np.fft.rfft(a, axis=0)) ** 2).sum()  # noqa: E731
    return np.sqrt(norm(p - y) / norm(y))


PAIRS = {                                               # name: (loss, the same in numpy)
    'relative_l2': (relative_l2, mean_over_samples(lambda p, y: np.sqrt(((p - y) ** 2).sum() / (y ** 2).sum()))),
    'latent_forward': (latent_forward, lambda p, y: ((p - y) ** 2).mean()),
    'inverse_encoding': (inverse_encoding, mean_over_samples(lambda p, y: ((p - y) ** 2).mean() / (y ** 2).mean())),
    'inverse_decoding': (inverse_decoding, lambda p, y: np.mean((p - y) ** 2 / y.var((0, 1)))),
    'spectral': (spectral, mean_over_samples(h1)),
}
pairs = pytest.mark.parametrize('name', PAIRS)


@pairs
@pytest.mark.parametrize('shape', [(3, 8, 2), (1, 5, 1), (4, 12, 1)])
def test_formula_on_random_arrays(name, shape):
    loss, formula = PAIRS[name]
    p, y = random(*shape), random(*shape, seed=1)
    assert loss(p, y).ndim == 0
    assert np.isclose(float(loss(p, y)), formula(p.numpy(), y.numpy()), rtol=1e-5)


@pytest.mark.parametrize('name', ['relative_l2', 'latent_forward', 'spectral'])
def test_formula_over_steps(name):
    loss, formula = PAIRS[name]
    p, y = random(3, 4, 8, 2), random(3, 4, 8, 2, seed=1)
    assert np.isclose(float(loss(p, y)), formula(p.numpy(), y.numpy()), rtol=1e-5)


@pytest.mark.parametrize('name', ['relative_l2', 'inverse_encoding', 'spectral'])
def test_lift_makes_errors_relative_to_the_whole_field(name):
    p, y, lift = random(3, 8, 1), random(3, 8, 1, seed=1), random(3, 1, 1, seed=2)
    loss = PAIRS[name][0]
    assert torch.allclose(loss(p, y, lift), loss(p + lift, y + lift))
    assert not torch.allclose(loss(p, y, lift), loss(p, y))


def test_latent_norm_formula():
    z = random(3, 4, 5, 6)
    assert np.isclose(float(latent_norm(z)), (((z.numpy() ** 2).mean((-2, -1)) - 1) ** 2).mean())
    assert latent_norm(torch.tensor([[[1., -1.]], [[2., 2.]]])) == 4.5


@pytest.mark.parametrize('name, p, y, expected', [
    ('relative_l2', [[[3.], [0.]], [[0.], [8.]]], [[[3.], [4.]], [[0.], [4.]]], (.8 + 1.) / 2),
    ('latent_forward', [[[1., 2.]]], [[[3., 2.]]], 2.),
    ('inverse_encoding', [[[3.], [0.]], [[0.], [8.]]], [[[3.], [4.]], [[0.], [4.]]], (.64 + 1.) / 2),
    ('inverse_decoding', [[[1., 5.]], [[1., 1.]]], [[[1., 1.]], [[3., 5.]]], (0 + 4 + 4 / 1 + 16 / 4) / 4),
    ('spectral', [[[3.], [3.], [3.], [3.]]], [[[2.], [2.], [2.], [2.]]], .5),
    ('spectral', [[[1.], [-1.], [1.], [-1.]]], [[[1.], [0.], [-1.], [0.]]], np.sqrt((5 * 16 + 2 * 4) / (2 * 4))),
])
def test_hand_made_values(name, p, y, expected):
    assert float(PAIRS[name][0](torch.tensor(p), torch.tensor(y))) == pytest.approx(expected, rel=1e-6)


@pairs
def test_zero_at_equality_with_finite_gradient(name):
    y = random(2, 8, 3, dtype=torch.float32)
    p = y.clone().requires_grad_()
    value = PAIRS[name][0](p, y)
    value.backward()
    assert value == 0 and torch.equal(p.grad, torch.zeros_like(p))


@pairs
def test_finite_where_the_truth_vanishes(name):
    p = random(2, 8, 3, dtype=torch.float32).requires_grad_()
    value = PAIRS[name][0](p, torch.zeros(2, 8, 3))
    value.backward()
    assert value > 0 and torch.isfinite(value) and torch.isfinite(p.grad).all()


def test_latent_norm_at_unit_size():
    z = torch.tensor([[[1., -1.], [1., 1.]]], requires_grad=True)
    latent_norm(z).backward()
    assert latent_norm(z) == 0 and not z.grad.any()


@pairs
def test_gradient_by_finite_differences(name):
    loss = PAIRS[name][0]
    p, y = random(2, 6, 2).requires_grad_(), random(2, 6, 2, seed=1)
    # the spectral loss computes in float32: wide steps, loose bounds
    wide = dict(eps=3e-3, atol=1e-3, rtol=1e-2) if name == 'spectral' else {}
    assert torch.autograd.gradcheck(lambda a: loss(a, y).double(), (p,), **wide)
    if name != 'inverse_decoding':                      # whose second gradient is cut on purpose
        y.requires_grad_()
        assert torch.autograd.gradcheck(lambda a, b: loss(a, b).double(), (p, y), **wide)


def test_latent_norm_gradient():
    assert torch.autograd.gradcheck(latent_norm, (random(2, 3, 4, 2).requires_grad_(),))


def test_inverse_decoding_cannot_be_won_by_rescaling():
    p, z = random(3, 5, 4), random(3, 5, 4, seed=1)
    value = inverse_decoding(p, z)
    for scale in (1e-2, 30., torch.tensor([.1, 1., 5., 20.])):  # also one scale a feature
        assert torch.allclose(inverse_decoding(scale * p, scale * z), value)
    # the variance is a constant for the gradient: d/dz of (p - z)^2 / var alone
    z.requires_grad_()
    inverse_decoding(p, z).backward()
    assert torch.allclose(z.grad, 2 * (z - p).detach() / z.detach().var((0, 1), correction=0) / z.numel())


def test_spectral_costs_more_at_higher_wave_numbers():
    x = torch.arange(32, dtype=torch.float64) / 32
    wave = lambda k: torch.sin(2 * np.pi * k * x)[None, :, None]  # noqa: E731
    y = wave(1)
    costs = [float(spectral(y + .1 * wave(k), y)) for k in range(1, 16)]
    assert np.allclose(costs, [.1 * np.sqrt((1 + k ** 2) / 2) for k in range(1, 16)], rtol=1e-5)
    assert len({round(float(relative_l2(y + .1 * wave(k), y)), 6) for k in range(1, 16)}) == 1


# ---------------------------------------------------------------------------------------------
# bundle

def outputs(**changes):
    B, K, Q, C, S, D = 2, 3, 8, 1, 4, 5
    out = dict(latent=random(B, K, S, D), target=random(B, K, S, D, seed=1), field=random(B, K, Q, C, seed=2),
               reconstruction=random(B, Q, C, seed=3), cycle=random(B, S, D, seed=4))
    return {**out, **changes}, random(B, 1 + K, Q, C, seed=5)


def test_bundle_is_the_weighted_sum_of_its_parts():
    out, u = outputs()
    weights = {'field': 1., 'latent': 10., 'inverse_encoding': .5, 'inverse_decoding': torch.tensor(.25),
               'spectral': .05, 'latent_norm': 2}
    lift = random(2, seed=6)
    total, parts = bundle(out, u, weights, lift)
    one, every = lift[:, None, None], lift[:, None, None, None]
    expected = {'field': relative_l2(out['field'], u[:, 1:], every),
                'latent': latent_forward(out['latent'], out['target']),
                'inverse_encoding': inverse_encoding(out['reconstruction'], u[:, 0], one),
                'inverse_decoding': inverse_decoding(out['cycle'], out['latent'][:, 0]),
                'spectral': spectral(out['field'], u[:, 1:], every), 'latent_norm': latent_norm(out['latent'])}
    assert parts.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(parts[name].double(), value.double())
    assert torch.allclose(total, sum(float(weights[k]) * v for k, v in expected.items()))


@pytest.mark.parametrize('zero', [0, 0., torch.tensor(0.)])
def test_bundle_computes_only_what_has_a_weight(zero):
    out, u = outputs()
    out = {'field': out['field'], 'latent': out['latent']}              # a term without weight finds nothing
    total, parts = bundle(out, u, {'field': 2., 'latent': zero, 'inverse_encoding': zero, 'inverse_decoding': 3.})
    assert list(parts) == ['field'] and torch.allclose(total, 2 * parts['field'])


def test_bundle_parts_are_detached_and_total_is_not():
    out, u = outputs()
    out['field'].requires_grad_()
    total, parts = bundle(out, u, {'field': 1., 'spectral': .1})
    assert total.requires_grad and not any(part.requires_grad for part in parts.values())
    total.backward()
    assert out['field'].grad.any()


def test_bundle_is_exact_when_a_part_is_zero():
    out, u = outputs()
    out['field'] = u[:, 1:].clone().requires_grad_()
    total, parts = bundle(out, u, {'field': 1., 'spectral': 1.})
    total.backward()
    assert total == 0 and not out['field'].grad.any() and parts['field'] == 0


# ---------------------------------------------------------------------------------------------
# what the inverse losses train

def reached(weights, input_frames, **changes):
    """{part of the model: names of its parameters with and without gradient} after one backward pass."""
    torch.manual_seed(0)
    model = UPT(ModelConfig(grid=(16,), first=(.5 / 16,), patch_size=2, token_grid=(4,), latent_dim=6,
                            encoder_dim=16, decoder_dim=16, hidden_dim=16, depth=1, n_head=2, group_size=8,
                            cond_dim=4, halo=1, input_frames=input_frames, **changes))
    for p in model.parameters():                        # zero-initialised layers pass no gradient on
        torch.nn.init.normal_(p, std=.5)
    K, q = 2, torch.rand(11, 1)
    u = torch.randn(3, input_frames + K, 16, 1)
    out = model(u, q, torch.full((3,), .05), torch.full((3, 1), .01), K, inverse_decoding=True)
    bundle(out, torch.randn(3, 1 + K, 11, 1), weights)[0].backward()
    yes, no = {}, {}
    for name, p in model.named_parameters():
        part = name.split('.')[0]
        assert p.grad is None or torch.isfinite(p.grad).all(), name
        (no if p.grad is None or not p.grad.any() else yes).setdefault(part, []).append(name)
    return yes, no


@pytest.mark.parametrize('attention', ['standard', 'channel'])
@pytest.mark.parametrize('input_frames', [1, 2])
def test_inverse_encoding_trains_encoder_and_decoder_alone(attention, input_frames):
    yes, no = reached({'inverse_encoding': 1.}, input_frames, attention=attention, decoder_depth=1)
    assert yes.keys() == {'encoder', 'decoder'} and no.keys() == {'operator', 'condition'}


@pytest.mark.parametrize('arch', ['pure', 'u'])
@pytest.mark.parametrize('input_frames', [1, 2])
def test_inverse_decoding_trains_everything(arch, input_frames):
    yes, no = reached({'inverse_decoding': 1.}, input_frames, arch=arch)
    assert yes.keys() == {'encoder', 'decoder', 'operator', 'condition'} and not no


def test_gradient_through_time_and_into_the_target_are_switches():
    torch.manual_seed(0)
    model = UPT(ModelConfig(grid=(16,), patch_size=2, token_grid=(4,), encoder_dim=16, decoder_dim=16, hidden_dim=16,
                            depth=1, n_head=2, halo=1))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=.3)
    u, q = torch.randn(3, 4, 16, 1), torch.rand(5, 1)

    def grad(unroll, **switch):
        model.zero_grad()
        out = model(u[:, :1 + unroll], q, torch.full((3,), .05), torch.full((3, 1), .01), unroll, **switch)
        latent_forward(out['latent'], out['target']).backward()
        return model.encoder.stem.weight.grad.clone()
    assert torch.equal(grad(1), grad(1, through_time=False))        # the first step always reaches the encoder
    assert not torch.allclose(grad(3), grad(3, through_time=False))
    assert not torch.allclose(grad(1), grad(1, detach_target=False))
