"""model.py: shapes, symmetries, attention against its definition, gradients, resampling, checkpoints."""
import itertools
import math
import os

import numpy as np
import pytest
import torch

from checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from configurator import UserError
from model import (UPT, ChannelAttention, ModelConfig, StandardAttention, interpolation_kernel, load, merge_tokens,
                   model_args, patch_modes, resample, split_tokens, token_positions)

CELLS = list(itertools.product(('pure', 'u'), ('standard', 'channel'), (1, 2)))
cells = pytest.mark.parametrize('arch, attention, d', CELLS)
both = pytest.mark.parametrize('d', [1, 2])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def config(d=1, **changes):
    """Tiny: 32 points and 8 tokens, or 16 x 16 points and 4 x 4 tokens."""
    n, s = (32, 8) if d == 1 else (16, 4)
    tiny = dict(grid=(n,) * d, low=(0.,) * d, length=(1.,) * d, first=(.5 / n,) * d, patch_size=4, token_grid=(s,) * d,
                latent_dim=8, encoder_dim=16, decoder_dim=16, hidden_dim=16, depth=2, depths=(1, 1, 1), n_head=2,
                group_size=8, cond_dim=8)
    return ModelConfig(**{**tiny, **changes})


def build(d=1, scramble=True, seed=0, **changes):
    """A model in eval mode, with every parameter moved away from its initial value unless told otherwise."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        m = UPT(config(d, **changes)).eval()
        with torch.no_grad():
            for p in m.parameters():
                if scramble:
                    p.add_(torch.randn_like(p), alpha=.2)
    return m


def field(m, B=3, seed=0, grid=None, frames=None):
    """A random field (B, [frames,] *grid, C)."""
    shape = (B, *([frames] if frames else []), *(grid or m.cfg.grid), m.cfg.fields)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def points(m, n=13, seed=0):
    g = torch.Generator().manual_seed(seed)
    low, length = torch.tensor(m.cfg.low), torch.tensor(m.cfg.length)
    return low + length * torch.rand(n, len(low), generator=g)


def close(a, b, tol=1e-5):
    a, b = a.detach(), b.detach()
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tol * max(1., float(b.abs().max())), float((a - b).abs().max())


def refused(call, *args, **kw):
    with pytest.raises(UserError) as caught:
        call(*args, **kw)
    assert '\n' not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------
# shapes and the meaning of the four calls

@cells
def test_shapes(arch, attention, d):
    m = build(d, arch=arch, attention=attention)
    u, q, S = field(m), points(m), math.prod(m.cfg.token_grid)
    z = m.encode(u)
    assert z.shape == m.step(z).shape == (3, S, 8)
    assert m.decode(z).shape == u.shape and m.decode(z, q).shape == (3, 13, 1)
    assert m.decode(z, q.expand(3, 13, d)).shape == (3, 13, 1)
    assert m.rollout(u, 4).shape == (3, 4, *m.cfg.grid, 1)
    assert m.rollout(u, steps=4, points=q).shape == (3, 4, 13, 1)
    assert not m.rollout(u, 1).requires_grad


@pytest.mark.parametrize('changes', [
    dict(token_grid=(4,)), dict(token_grid=(1,)), dict(encoder_depth=0), dict(encoder_depth=2, decoder_depth=2),
    dict(halo=0), dict(halo=4), dict(patch_size=1, token_grid=(16,)), dict(cond_dim=3), dict(n_wave=1),
    dict(layer_norm=True), dict(encoder_dim=0), dict(encoder_dim=0, decoder_dim=0), dict(frame=1.),
    dict(depth=1), dict(arch='u', depths=(2, 1, 1, 1, 3)), dict(arch='u', depths=(2,)),
    dict(fields=3, mean=(0., 1., 2.), std=(1., 2., 3.)), dict(params=('a', 'b'), default_params=(1., 2.)),
    dict(periodic=False, boundary='wall'), dict(d=2, periodic=False, boundary='open'),
    dict(d=2, grid=(16, 32), token_grid=(2, 4), arch='u'), dict(d=2, token_grid=(2, 2), decoder_depth=1)])
def test_variants_roll_out(changes):
    m = build(**changes)
    u = field(m)
    out = m.rollout(u, 2)
    assert out.shape == (3, 2, *m.cfg.grid, m.cfg.fields) and torch.isfinite(out).all()
    assert m.n_params() == sum(p.numel() for p in m.parameters())


@cells
def test_untrained_operator_is_the_identity(arch, attention, d):
    m = build(d, scramble=False, arch=arch, attention=attention)
    z = m.encode(field(m))
    close(m.step(z), z)
    close(m.step(z, params={'Nu': .7}, dt=.3), z)


@cells
def test_untrained_model_is_persistence(arch, attention, d):
    m = build(d, scramble=False, arch=arch, attention=attention, latent_dim=4 ** d * 2, fields=2, mean=(0., 1.),
              std=(1., 2.))
    u = field(m)
    close(m.decode(m.encode(u)), u)
    close(m.rollout(u, 2), torch.stack([u, u], 1))


@both
def test_untrained_decoder_interpolates_to_third_order(d):
    def error(n):
        m = build(d, scramble=False, grid=(n,) * d, token_grid=(n // 4,) * d, first=(.5 / n,) * d, latent_dim=4 ** d)
        wave = lambda x: torch.sin(2 * math.pi * x).prod(-1, keepdim=True)  # noqa: E731
        z = m.encode(wave(m.grid()).view(1, *m.cfg.grid, 1))
        return (m.decode(z, points(m)) - wave(points(m))).abs().max().item()
    assert error(16) / error(32) > 6.5 and error(32) < 2e-3


def test_small_latents_keep_the_lowest_modes():
    m = build(scramble=False, latent_dim=2, n_head=2, encoder_dim=0, decoder_dim=0)
    z = m.encode(field(m))
    close(m.encode(m.decode(z)), z)
    ramp = torch.linspace(-1, 1, 32).view(1, 8, 4)
    coarse = ramp.mean(-1, keepdim=True).expand(1, 8, 4)               # of a token: the mean, and one cosine more
    kept = m.decode(m.encode(ramp.reshape(1, 32, 1))).view(1, 8, 4)
    close(kept.mean(-1), coarse[..., 0])
    assert (kept - ramp).abs().max() < .1 * (coarse - ramp).abs().max() + 1e-6 or (kept - ramp).norm() < .2 * \
        (coarse - ramp).norm()


@pytest.mark.parametrize('shape, fields, dim', [((4,), 1, 4), ((4,), 1, 2), ((4,), 3, 20), ((2, 3), 2, 12),
                                                ((4, 4), 1, 5)])
def test_patch_modes_are_orthonormal_and_start_with_the_means(shape, fields, dim):
    modes = patch_modes(shape, fields, dim).double()
    n = min(dim, math.prod(shape) * fields)
    assert modes.shape == (dim, math.prod(shape) * fields) and not modes[n:].any()
    assert torch.allclose(modes[:n] @ modes[:n].T, torch.eye(n, dtype=torch.float64), atol=1e-6)
    for i in range(min(fields, dim)):
        mean = torch.zeros(math.prod(shape), fields)
        mean[:, i] = math.prod(shape) ** -.5
        close(modes[i].float(), mean.flatten())


def test_interpolation_kernel_is_exact_at_points_and_on_quadratics():
    assert torch.equal(interpolation_kernel(torch.arange(-3., 4.)), torch.tensor([0., 0., 0., 1., 0., 0., 0.]))
    x, j = torch.linspace(0, 1, 21, dtype=torch.float64), torch.arange(-1, 3, dtype=torch.float64)
    w = interpolation_kernel(x[:, None] - j)
    for f in (torch.ones_like, lambda a: a, lambda a: a * a):
        assert torch.allclose(w @ f(j), f(x))


# ---------------------------------------------------------------------------------------------
# the moving frame

@pytest.mark.parametrize('speed', [1., 2.])
@pytest.mark.parametrize('arch, token_shift', [('pure', 0), ('pure', 3), ('u', 0)])
def test_galilean_invariance(speed, arch, token_shift):
    """A field on top of a uniform flow c moves along at speed c, at any c: nothing else changes."""
    m = build(frame=speed, arch=arch, token_shift=token_shift)
    u, q, c, steps = field(m), points(m), torch.tensor([.3, -1.7, .01]).view(3, 1, 1), 3
    still, z, zc = m.rollout(u, steps, points=q), m.encode(u), m.encode(u + c)
    for k in range(steps):
        z, zc = m.step(z), m.step(zc)
        moved = q + speed * c * .05 * (k + 1)                          # (B, Q, 1)
        close(m.decode(z, q), still[:, k])
        close(m.decode(zc, moved), still[:, k] + c, 1e-4)
    assert z.shape == zc.shape == (3, 8, 8)
    mean = u.mean((1, 2))
    close(z[:, :, -2], mean[:, None].expand(3, 8))      # tokens end in mean and distance travelled
    close(z[:, :, -1], speed * mean[:, None].expand(3, 8) * .15 + 3 * token_shift / 32)
    assert (m.rollout(u + c, 1, dt=.1) - m.rollout(u + c, 1)).abs().max() > .1


@cells
@pytest.mark.parametrize('changes', [dict(), dict(fields=2, mean=(1., -1.), std=(2., 3.), latent_dim=40),
                                     dict(latent_dim=4)])
def test_conserve_keeps_the_integral(arch, attention, d, changes):
    kept, lost = (build(d, arch=arch, attention=attention, encoder_dim=0, decoder_dim=0, conserve=on, **changes)
                  for on in (True, False))
    u, space = field(kept), tuple(range(2, 2 + d))
    integral = u.mean(tuple(range(1, 1 + d)))[:, None].expand(-1, 5, -1)
    rollouts = kept.rollout(u, 5), lost.rollout(u, 5)
    gap = [float((p.mean(space) - integral).abs().max() / p.abs().max()) for p in rollouts]
    assert gap[0] < 1e-6 and gap[1] > 1e-4 and (rollouts[0][:, 0] - u).abs().max() > .1, gap


@pytest.mark.parametrize('latent_dim', [6, 9])
@pytest.mark.parametrize('encoder_dim, decoder_dim', [(0, 0), (16, 0)])
def test_tokens_that_move_on_hold_the_same_field(latent_dim, encoder_dim, decoder_dim):
    """Around the domain: what is decoded stays where it is, and features beyond the grid values stay the token's."""
    m = build(scramble=False, frame=1., token_shift=3, latent_dim=latent_dim, encoder_dim=encoder_dim,
              decoder_dim=decoder_dim)
    u = field(m) - field(m).mean(1, keepdim=True)
    z = start = m.encode(u)
    z[..., 4:-2] = torch.arange(8.)[:, None]
    for k in range(1, 33):
        z = m.step(z)
        close(m.decode(z)[..., 0], u[..., 0])
        close(z[..., :4], m.encode(u.roll(-3 * k, 1))[..., :4])
        assert torch.allclose(z[..., 4:-2], start[..., 4:-2], atol=1e-5)
    close(z[..., :4], start[..., :4])
    for token_shift in (-1, 4):
        assert 'token_shift' in refused(build, frame=1., token_shift=token_shift)
    assert 'moving frame' in refused(build, token_shift=1)
    assert 'latent_dim' in refused(build, frame=1., token_shift=1, latent_dim=5)


def test_a_still_field_is_no_loss_to_tokens_that_move_on():
    """The windows of data.py, whose points move along, are what such tokens are trained on."""
    m = build(scramble=False, frame=1., token_shift=3)
    u, q = field(m), m.grid()
    seen = torch.stack([u.roll(-3 * k, 1) for k in range(3)], 1)
    out = m(seen, q, torch.full((3,), .05), torch.full((3, 1), .01), 2)
    close(out['latent'], out['target'])
    close(out['field'], seen[:, 1:])


@pytest.mark.parametrize('changes', [dict(d=2), dict(input_frames=2), dict(periodic=False, boundary='wall'),
                                     dict(fields=2, mean=(0., 0.), std=(1., 1.)), dict(latent_dim=2)])
def test_moving_frame_where_it_cannot_be(changes):
    assert 'moving frame' in refused(build, frame=1., **changes)


@both
def test_rollout_is_encode_then_step_and_decode(d):
    m = build(d)
    u, q = field(m), points(m)
    z, on_grid, at_points = m.encode(u), [], []
    for _ in range(3):
        z = m.step(z)
        on_grid.append(m.decode(z))
        at_points.append(m.decode(z, q))
    close(m.rollout(u, 3), torch.stack(on_grid, 1))
    close(m.rollout(u, 3, points=q), torch.stack(at_points, 1))
    with torch.no_grad():
        v, again = u, []
        for _ in range(3):
            v = m.decode(m.step(m.encode(v)))
            again.append(v)
    close(m.rollout(u, 3, reencode=True), torch.stack(again, 1), 1e-4)
    close(m.rollout(u, 3, reencode=True, points=m.grid()).flatten(), torch.stack(again, 1).flatten(), 1e-4)


@both
def test_decoding_on_the_grid_is_decoding_at_its_points(d):
    m = build(d)
    z = m.encode(field(m))
    close(m.decode(z, m.grid()).reshape(m.decode(z).shape), m.decode(z), 1e-6)
    fine = tuple(2 * n for n in m.cfg.grid)
    u = field(m, grid=fine)
    z = m.step(m.encode(u))
    close(m.rollout(u, 1)[:, 0], m.decode(z, m.grid(*fine)).reshape(3, *fine, 1), 1e-6)


@both
def test_physical_units(d):
    plain, scaled = build(d), build(d, mean=(3.,), std=(2.,))
    u = field(plain)
    z = plain.encode(u)
    close(scaled.encode(2 * u + 3), z)
    close(scaled.decode(z), 2 * plain.decode(z) + 3)
    shifted = build(d, low=(-1.,) * d, length=(2.,) * d, first=(-1 + 1 / plain.cfg.grid[0],) * d)
    q = points(plain)
    close(shifted.encode(u), z)
    close(shifted.decode(z, 2 * q - 1), plain.decode(z, q), 1e-4)


@both
def test_a_sample_does_not_depend_on_its_batch(d):
    m = build(d, arch='u', attention='channel')
    u = field(m)
    close(m.rollout(u, 2)[1:2], m.rollout(u[1:2], 2))


def test_grid():
    m = build(first=(.5 / 1024,))
    assert m.grid().shape == (32, 1) and m.grid(128).shape == (128, 1)
    assert np.allclose(m.grid(128)[:, 0], .5 / 1024 + np.arange(128) / 128)
    assert torch.equal(m.grid(128)[::4], m.grid())
    refused(m.grid, 8, 8)
    m = build(2)
    x = m.grid(8, 4).reshape(8, 4, 2)
    assert np.allclose(x[:, 0, 0], .5 / 16 + np.arange(8) / 8) and np.allclose(x[0, :, 1], .5 / 16 + np.arange(4) / 4)
    assert torch.equal(x[:, :1, 0].expand(8, 4), x[..., 0])
    refused(m.grid, 8)


def test_arrays_of_other_kinds():
    m = build()
    u, q = field(m), points(m)
    for kind in (lambda a: a.numpy(), lambda a: a.double(), lambda a: a.double().numpy()):
        close(m.rollout(kind(u), 2, points=kind(q)), m.rollout(u, 2, points=q))


# ---------------------------------------------------------------------------------------------
# query points

@both
@pytest.mark.parametrize('decoder_depth', [0, 1])
def test_each_query_point_stands_alone(d, decoder_depth):
    m = build(d, decoder_depth=decoder_depth)
    z, q = m.encode(field(m)), points(m)
    u, order = m.decode(z, q), torch.randperm(13, generator=torch.Generator().manual_seed(0))
    close(m.decode(z, q[order]), u[:, order], 1e-6)
    close(m.decode(z, q[5:6]), u[:, 5:6], 1e-6)
    per_sample = torch.stack([q, q.flip(0), q[order]])  # (B, Q, d)
    close(m.decode(z, per_sample), torch.stack([u[0], u[1].flip(0), u[2, order]]), 1e-6)


@both
def test_periodic_points_wrap(d):
    m = build(d, low=(-.5,) * d, length=(2.,) * d, first=(-.5 + 1 / 16,) * d)
    z, q = m.encode(field(m)), points(m)
    q = torch.cat([q, torch.full((1, d), -.5)])
    for turns in (1, -1, 3):
        close(m.decode(z, q + 2. * turns), m.decode(z, q), 1e-4)


@both
def test_decoded_field_is_smooth_across_tokens_and_seam(d):
    """Second differences along a line shrink like h^2: a kink would give h, a jump 1."""
    m = build(d)
    z = m.encode(field(m, 1))

    def second(n):
        s = torch.arange(2 * n, dtype=torch.float64)[:, None] / n - .5        # twice around
        q = s if d == 1 else torch.cat([s, 2 * s + .1], 1)
        u = m.decode(z, q)[0, :, 0]
        return (u[2:] - 2 * u[1:-1] + u[:-2]).abs().max()
    ratios = [second(n) / second(2 * n) for n in (256, 512)]
    assert all(3.2 < r < 4.8 for r in ratios), ratios


@both
def test_points_outside_walls_are_refused(d):
    m = build(d, periodic=False, boundary='wall')
    z, q = m.encode(field(m)), points(m)
    inside = torch.cat([q, torch.zeros(1, d), torch.ones(1, d)])               # the walls themselves belong to it
    assert torch.isfinite(m.decode(z, inside)).all()
    for bad in (1.01, -.01):
        outside = q.clone()
        outside[4, d - 1] = bad
        assert 'outside' in refused(m.decode, z, outside)
    assert torch.isfinite(build(d).decode(z, torch.full((1, d), 1.01))).all()


@pytest.mark.parametrize('call', [
    lambda m, z: m.encode(torch.zeros(32, 1)), lambda m, z: m.encode(torch.zeros(2, 32)),
    lambda m, z: m.encode(torch.zeros(2, 32, 2)), lambda m, z: m.encode(torch.zeros(2, 1, 1, 32, 1)),
    lambda m, z: m.encode(torch.zeros(2, 3, 32, 1)), lambda m, z: m.encode(torch.zeros(2, 32, 1), grid=m.grid(31)),
    lambda m, z: m.rollout(torch.zeros(2, 32), 3), lambda m, z: m.decode(z, torch.rand(5)),
    lambda m, z: m.decode(z, torch.rand(5, 2)), lambda m, z: m.decode(z, torch.rand(1, 1, 5, 1)),
    lambda m, z: m.decode(z, torch.tensor([[np.nan]])), lambda m, z: m.step(z, params={'nu': 1.}),
    lambda m, z: build(2).encode(torch.zeros(2, 16, 1)), lambda m, z: build(2).encode(torch.zeros(2, 16, 1), grid=[.1]),
    lambda m, z: build(input_frames=2).encode(torch.zeros(2, 32, 1)),
    lambda m, z: build(input_frames=2).encode(torch.zeros(2, 3, 32, 1))])
def test_wrong_shapes_are_refused_in_one_line(call):
    m = build()
    refused(call, m, m.encode(field(m)))


# ---------------------------------------------------------------------------------------------
# translations of a periodic domain

@cells
@pytest.mark.parametrize('pool, decoder_depth', [(1, 0), (2, 1)])
def test_translation_by_whole_tokens(arch, attention, d, pool, decoder_depth):
    s = (8 if d == 1 else 4) // pool
    m = build(d, arch=arch, attention=attention, token_grid=(s,) * d, decoder_depth=decoder_depth)
    tokens = 2 if arch == 'u' else 1                    # a token of the U's coarsest level
    axes, spacing = tuple(range(1, d + 1)), tokens / s
    per_token = m.cfg.grid[0] // s
    moved = lambda z: z.unflatten(1, m.cfg.token_grid).roll((tokens,) * d, axes).flatten(1, d)  # noqa: E731
    u, q = field(m), points(m)
    z = m.encode(u)
    close(m.encode(u.roll((tokens * per_token,) * d, axes)), moved(z), 1e-4)
    close(m.step(moved(z)), moved(m.step(z)), 1e-4)
    close(m.decode(moved(z), q + spacing), m.decode(z, q), 1e-4)
    assert (m.step(z) - z).abs().max() > .01            # the operator does act


@both
def test_walls_break_the_translation_symmetry(d):
    m = build(d, periodic=False, boundary='wall')
    z = m.encode(torch.ones(1, *m.cfg.grid, 1))
    assert z.std(1).max() > .01                         # tokens of a constant field tell where they are


# ---------------------------------------------------------------------------------------------
# gradients

@cells
@pytest.mark.parametrize('changes', [dict(), dict(input_frames=2, decoder_depth=1, log_clamp=2., patch_size=2)],
                         ids=['plain', 'rich'])
def test_every_parameter_gets_a_gradient(arch, attention, d, changes):
    m = build(d, arch=arch, attention=attention, **changes).train()
    K, n_in = 2, m.cfg.input_frames
    u = field(m, frames=n_in + K)
    out = m(u, points(m), torch.full((3,), .05), torch.full((3, 1), .01), K, inverse_decoding=True)
    S = math.prod(m.cfg.token_grid)
    assert {k: tuple(v.shape) for k, v in out.items()} == {
        'latent': (3, K, S, 8), 'target': (3, K, S, 8), 'field': (3, K, 13, 1), 'reconstruction': (3, 13, 1),
        'cycle': (3, S, 8)}
    assert not out['target'].requires_grad
    g = torch.Generator().manual_seed(1)
    sum((v * torch.randn(v.shape, generator=g)).sum() for v in out.values()).backward()
    for name, p in m.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any(), name


@pytest.mark.parametrize('input_frames', [1, 2])
def test_training_outputs_are_those_of_use(input_frames):
    m = build(input_frames=input_frames)
    u, q = field(m, frames=input_frames + 2), points(m)
    out = m(u, q, torch.full((3,), .05), torch.full((3, 1), .01), 2, inverse_decoding=True)
    frames = lambda k: u[:, k:k + input_frames]         # noqa: E731
    z = z0 = m.encode(frames(0))
    close(out['reconstruction'], m.decode(z0, q))
    for k in range(2):
        z = m.step(z)
        close(out['latent'][:, k], z)
        close(out['field'][:, k], m.decode(z, q))
        close(out['target'][:, k], m.encode(frames(k + 1)))
    v = m.decode(m.step(z0))[:, None]
    close(out['cycle'], m.encode(torch.cat([u[:, 1:input_frames], v], 1)))
    assert 'cycle' not in m(u, q, torch.full((3,), .05), torch.full((3, 1), .01), 1)


@pytest.mark.parametrize('arch', ['pure', 'u'])
@pytest.mark.parametrize('rate', [0., .5])
def test_checkpointing_gives_the_same_gradients(arch, rate):
    grads = []
    for checkpointing in (False, True):
        m = build(arch=arch, drop_path=rate, checkpointing=checkpointing).train()
        torch.manual_seed(3)
        out = m(field(m, frames=3), points(m), torch.full((3,), .05), torch.full((3, 1), .01), 2)
        out['field'].square().mean().backward()
        grads.append({k: p.grad for k, p in m.named_parameters()})
    for name, a in grads[0].items():
        b = grads[1][name]
        assert (a is None) == (b is None) and (a is None or torch.allclose(a, b, atol=1e-6)), name


def test_drop_path_acts_in_training_only():
    m, plain = build(drop_path=.5, depth=4), build(depth=4)
    z = m.encode(field(m, 64))
    assert torch.equal(m.step(z), m.step(z)) and torch.equal(m.step(z), plain.step(z))
    m.train()
    a, b = m.step(z), m.step(z)
    assert not torch.allclose(a, b) and torch.isfinite(a).all()
    same = torch.isclose(a, b, atol=1e-5).flatten(1).all(1)           # it drops per sample, not per batch
    assert 0 < same.sum() < 64


# ---------------------------------------------------------------------------------------------
# conditions

@pytest.mark.parametrize('arch', ['pure', 'u'])
def test_parameters_and_time_step_condition_the_operator(arch):
    m = build(arch=arch)
    u = field(m)
    z = m.encode(u)
    default = m.step(z)
    close(m.step(z, params={'Nu': .01}, dt=.05), default, 0.)
    for change in (dict(params={'Nu': .1}), dict(dt=.01)):
        assert (m.step(z, **change) - default).abs().max() > 1e-3
        close(m.rollout(u, 1, **change)[:, 0], m.decode(m.step(z, **change)))
    each = m.step(z, params={'Nu': torch.tensor([.01, .1, .2])})       # one value a sample
    close(each[:1], default[:1])
    close(each[1:2], m.step(z[1:2], params={'Nu': .1}))
    for change in (dict(boundary='wall'), dict(pde='advection')):
        assert (build(arch=arch, **change).step(z) - default).abs().max() > 1e-3
    assert "'nu'" in refused(m.rollout, u, 1, params={'nu': .1})


# ---------------------------------------------------------------------------------------------
# several input frames

@both
def test_two_input_frames(d):
    m = build(d, input_frames=2)
    u = field(m, frames=2)
    assert m.rollout(u, 3).shape == (3, 3, *m.cfg.grid, 1)
    assert not torch.allclose(m.encode(u), m.encode(u.flip(1)), atol=1e-3)
    frames, out = u, []
    with torch.no_grad():
        for _ in range(3):
            v = m.decode(m.step(m.encode(frames)))
            out.append(v)
            frames = torch.stack([frames[:, 1], v], 1)
    close(m.rollout(u, 3, reencode=True), torch.stack(out, 1), 1e-4)
    fine = field(m, frames=2, grid=tuple(2 * n for n in m.cfg.grid))
    assert m.rollout(fine, 2).shape == (3, 2, *fine.shape[2:])
    strided = fine[:, :, ::2] if d == 1 else fine[:, :, ::2, ::2]
    assert torch.equal(m.encode(fine), m.encode(strided))


# ---------------------------------------------------------------------------------------------
# attention against its definition

def no_rotation(attention):
    attention.rotary.cos.fill_(1.)
    attention.rotary.sin.zero_()
    with torch.no_grad():
        for p in attention.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())), alpha=.3)
    return attention, {k: p.detach().double().numpy() for k, p in attention.named_parameters()}


def softmax_attention(q, k, v, n_head):
    """Multi-head attention of one sample, token by token. q, k, v (S, D)."""
    out, hd = np.zeros_like(v), q.shape[1] // n_head
    for h in range(n_head):
        part = slice(h * hd, (h + 1) * hd)
        for s in range(len(q)):
            score = np.exp(k[:, part] @ q[s, part] / np.sqrt(hd))
            out[s, part] = score @ v[:, part] / score.sum()
    return out


POSITIONS = token_positions((6,), [.1], [1 / 6])


@pytest.mark.parametrize('dim, group_size, n_head', [(12, 4, 1), (12, 4, 2), (12, 12, 3), (8, 2, 1)])
def test_channel_attention_is_its_definition(dim, group_size, n_head):
    a, w = no_rotation(ChannelAttention(dim, n_head, group_size, POSITIONS, True))
    x = torch.randn(2, 6, dim, generator=torch.Generator().manual_seed(0))
    expected = np.empty(x.shape)
    for b in range(2):
        for start in range(0, dim, group_size):         # all groups share the weights
            g = x[b, :, start:start + group_size].double().numpy()
            n = g / np.sqrt((g ** 2).mean(1, keepdims=True)) * w['norm.weight']
            y = softmax_attention(n @ w['q.weight'].T + w['q.bias'], n @ w['k.weight'].T,
                                  g @ w['v.weight'].T + w['v.bias'], n_head)
            expected[b, :, start:start + group_size] = y @ w['proj.weight'].T + w['proj.bias']
    close(a(x).detach(), torch.from_numpy(expected).float(), 1e-5)


def test_groups_of_channels_do_not_meet():
    a, _ = no_rotation(ChannelAttention(12, 2, 4, POSITIONS, True))
    x = torch.randn(2, 6, 12, generator=torch.Generator().manual_seed(0))
    other = x.clone()
    other[:, :, 4:8] += 1.
    same = torch.isclose(a(x), a(other), atol=1e-6).flatten(0, 1)
    assert same[:, :4].all() and same[:, 8:].all() and not same[:, 4:8].all(1).any()
    # the same weights for every group: permuting groups permutes outputs
    permuted = x.unflatten(-1, (3, 4))[..., [2, 0, 1], :].flatten(-2)
    close(a(permuted), a(x).unflatten(-1, (3, 4))[..., [2, 0, 1], :].flatten(-2))


@pytest.mark.parametrize('dim, n_head', [(12, 1), (12, 3)])
def test_standard_attention_is_naive_softmax(dim, n_head):
    a, w = no_rotation(StandardAttention(dim, n_head, POSITIONS, True))
    x = torch.randn(2, 6, dim, generator=torch.Generator().manual_seed(0))
    expected = np.empty(x.shape)
    for b in range(2):
        q, k, v = np.split(x[b].double().numpy() @ w['qkv.weight'].T, 3, 1)
        q, k = (c.reshape(6, n_head, -1) for c in (q, k))
        q, k = ((c - c.mean(2, keepdims=True)) / np.sqrt(c.var(2, keepdims=True) + 1e-5) * w['qk_norm.weight']
                for c in (q, k))
        y = softmax_attention(q.reshape(6, dim), k.reshape(6, dim), v, n_head)
        expected[b] = y @ w['proj.weight'].T + w['proj.bias']
    close(a(x).detach(), torch.from_numpy(expected).float(), 1e-5)


@pytest.mark.parametrize('make', [lambda p, periodic: StandardAttention(16, 2, p, periodic),
                                  lambda p, periodic: ChannelAttention(16, 2, 8, p, periodic)])
def test_attention_sees_distances_on_the_circle(make):
    torch.manual_seed(0)
    x = torch.randn(2, 16, 16)
    for grid, d in (((16,), 1), ((4, 4), 2)):
        a = make(token_positions(grid, [.01] * d, [1 / grid[0]] * d), True)
        roll = lambda y: y.unflatten(1, grid).roll((1,) * d, tuple(range(1, d + 1))).flatten(1, d)  # noqa: E731, B023
        close(a(roll(x)), roll(a(x)))
        order = torch.randperm(16)
        assert not torch.allclose(a(x[:, order]), a(x)[:, order], atol=1e-4)   # but it does see positions


# ---------------------------------------------------------------------------------------------
# small layers

@pytest.mark.parametrize('grid, factor', [((8,), 2), ((8,), 4), ((4, 8), 2), ((8, 4), 4)])
def test_merge_and_split_are_inverse(grid, factor):
    S, d = math.prod(grid), len(grid)
    x = torch.randn(2, S, 3)
    merged = merge_tokens(x, grid, factor)
    assert merged.shape == (2, S // factor ** d, 3 * factor ** d)
    assert torch.equal(split_tokens(merged, grid, factor), x)
    where = token_positions(grid, [0.] * d, [1.] * d)[None]                    # only neighbours are merged
    spread = merge_tokens(where, grid, factor).unflatten(-1, (-1, d))
    assert (spread.amax(2) - spread.amin(2)).max() == factor - 1
    assert (spread.amin(2) % factor == 0).all()


@pytest.mark.parametrize('d, depths', [(1, (1, 1, 1)), (1, (1, 2, 1, 2, 1)), (1, (1, 1, 1, 1, 1, 1, 1)), (2, (1, 1, 1)),
                                       (2, (1, 1, 2, 1, 1))])
def test_u_shape_restores_the_tokens(d, depths):
    m = build(d, arch='u', depths=depths)
    z = m.encode(field(m))
    assert m.step(z).shape == z.shape
    one = z.clone()
    one[:, 0] += torch.randn(8)
    changed = (m.step(one) - m.step(z)).abs().amax((0, 2))
    assert (changed > 1e-6).all()                       # every token hears of every other


@pytest.mark.parametrize('threshold', [.1, 2.])
def test_log_clamp(threshold):
    plain, clamped = build(), build(log_clamp=threshold)
    z, q = plain.encode(field(plain)), points(plain)
    u = plain.decode(z, q)
    close(clamped.decode(z, q), u.sign() * threshold * torch.log1p(u.abs() / threshold))


@pytest.mark.parametrize('change, words', [
    (dict(n_head=3), ['3', '16']), (dict(n_head=0), []), (dict(attention='channel', group_size=5), ['5', '16']),
    (dict(attention='channel', n_head=3), ['3', '8']), (dict(attention='channel', group_size=0), []),
    (dict(patch_size=5), ['5', '32']), (dict(patch_size=0), []), (dict(token_grid=(3,)), ['3', '8']),
    (dict(token_grid=(16,)), ['16', '8']), (dict(token_grid=(0,)), []), (dict(grid=(30,)), ['4', '30']),
    (dict(arch='u', depths=(1, 1)), ['(1, 1)', 'odd']), (dict(arch='u', depths=()), ['odd']),
    (dict(arch='u', depths=(1,) * 9), ['16', '8']), (dict(low=(0., 0.)), ['low']),
    (dict(token_grid=(4, 4)), ['token_grid']), (dict(d=2, token_grid=(4, 2)), []),
    (dict(encoder_dim=15), ['4', '15']), (dict(decoder_dim=15), ['4', '15']),
        (dict(encoder_dim=12), ['even']), (dict(hidden_dim=6), ['even']), (dict(arch='v'), ['pure']),
        (dict(pde='x'), ['burgers'])])
def test_config_arithmetic(change, words):
    change = dict(change)
    message = refused(UPT, config(change.pop('d', 1), **change))
    assert all(word in message for word in words), message


# ---------------------------------------------------------------------------------------------
# other input grids

@both
@pytest.mark.parametrize('first', [None, .5 / 1024])
@pytest.mark.parametrize('factor', [2, 3, 8])
def test_finer_input_that_holds_the_trained_points_is_strided_exactly(d, first, factor):
    m = build(d, **({'first': (first,) * d} if first else {}))
    fine = field(m, 1, grid=tuple(factor * n for n in m.cfg.grid))
    strided = fine[:, ::factor] if d == 1 else fine[:, ::factor, ::factor]
    assert torch.equal(m.encode(fine), m.encode(strided))


def test_input_on_points_of_its_own():
    m = build()
    wave = lambda x: torch.sin(2 * np.pi * x) + .5 * torch.cos(4 * np.pi * x + 1)  # noqa: E731
    z = m.encode(wave(m.grid())[None])
    order = torch.randperm(96, generator=torch.Generator().manual_seed(0))
    x = m.grid(96)
    assert torch.equal(m.encode(wave(x)[None], grid=x), z)
    assert torch.equal(m.encode(wave(x[order])[None], grid=x[order]), z)
    x = (torch.arange(300) / 300 + .0007)[:, None]      # other points, and points a period further
    for y in (x, x + 1):
        close(m.encode(wave(y)[None], grid=y), z, 1e-3)
    out = m.rollout(wave(x)[None], 2, grid=x)
    assert out.shape == (1, 2, 300, 1)
    close(out, m.rollout(wave(x)[None], 2, grid=x, points=x), 0.)
    close(out, m.rollout(wave(m.grid())[None], 2, points=x), 2e-3)


def test_coarse_input_is_interpolated():
    m = build(2)
    wave = lambda x: torch.sin(2 * np.pi * x[:, 0]) * torch.cos(2 * np.pi * x[:, 1])  # noqa: E731
    z = m.encode(wave(m.grid()).view(1, 16, 16, 1))
    for n in (12, 24, 40):
        close(m.encode(wave(m.grid(n, n)).view(1, n, n, 1)), z, .1)
    m = build(periodic=False, boundary='wall')
    for n in (64, 100):
        close(m.encode(m.grid(n)[None] ** 2), m.encode(m.grid()[None] ** 2), .02)


@pytest.mark.parametrize('length', [None, 1.])
def test_resample_keeps_shared_points(length):
    x = (torch.arange(40) / 40 + .003).float()
    u = torch.randn(2, 3, 40)
    assert torch.equal(resample(u, x, x[5:30:3], length), u[..., 5:30:3])
    assert torch.equal(resample(u, x, x, length), u)
    order = torch.randperm(40)
    assert torch.equal(resample(u[..., order], x[order], x, length), u)


def test_resample_accuracy():
    to = torch.rand(500, generator=torch.Generator().manual_seed(0))
    wave = lambda x: torch.sin(2 * np.pi * x + 1)       # noqa: E731
    errors = []
    for n in (8, 16, 32):
        x = (torch.arange(n) + .5) / n
        errors.append(float((resample(wave(x)[None], x, to, 1.) - wave(to)).abs().max()))
    assert errors[0] / errors[1] > 6 and errors[1] / errors[2] > 6 and errors[2] < 1e-3
    x = torch.sort(torch.rand(200, generator=torch.Generator().manual_seed(1)))[0]     # uneven points
    assert (resample(wave(x)[None], x, to, 1.) - wave(to)).abs().max() < 5e-3


def test_resample_between_walls():
    x = (torch.arange(10) + .5) / 10
    to = torch.tensor([-.5, 0., .05, .37, .5, .95, 1., 2.])
    got = resample((3 * x + 1)[None], x, to)[0]
    assert torch.isfinite(got).all()
    assert torch.allclose(got[[0, 1, 2]], torch.tensor(1.15)) and torch.allclose(got[[5, 6, 7]], torch.tensor(3.85))
    assert torch.allclose(got[[3, 4]], 3 * to[[3, 4]] + 1, atol=1e-6)          # exact for a line in the interior


# ---------------------------------------------------------------------------------------------
# checkpoints

def state_of(m, **changes):
    ema = {k: v + 1 for k, v in m.state_dict().items()}
    return {'model': m.state_dict(), 'ema': ema, 'model_args': model_args(m.cfg), 'iter': 7, 'config': {'a': [1, 'b']},
            'stage': 'operator', **changes}


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """A model and the bytes of its checkpoint."""
    m, path = build(), str(tmp_path_factory.mktemp('saved') / 'best.pt')
    save_checkpoint(path, state_of(m))
    with open(path, 'rb') as file:
        return m, file.read()


def put(path, content):
    with open(path, 'wb') as file:
        file.write(content)
    return str(path)


@pytest.mark.parametrize('changes', [dict(), dict(d=2, arch='u', attention='channel', input_frames=2),
                                     dict(periodic=False, boundary='wall')])
def test_round_trip(tmp_path, changes):
    m, path = build(**changes), str(tmp_path / 'a b é.pt')
    save_checkpoint(path, state_of(m, ema=m.state_dict()))
    assert os.listdir(tmp_path) == ['a b é.pt']
    state = load_checkpoint(path)
    assert (state['iter'], state['config'], state['stage']) == (7, {'a': [1, 'b']}, 'operator')
    again = load(path)
    assert again.cfg == m.cfg and not again.training
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in m.state_dict().items())
    u = field(m, frames=m.cfg.input_frames if m.cfg.input_frames > 1 else None)
    assert torch.equal(again.rollout(u, 2), m.rollout(u, 2))


def test_load_takes_the_best_and_the_averaged_weights(tmp_path, saved):
    m, content = saved
    save_checkpoint(str(tmp_path / 'last.pt'), state_of(m, iter=9))
    assert find_checkpoint(str(tmp_path)) == str(tmp_path / 'last.pt')
    put(tmp_path / 'best.pt', content)
    assert find_checkpoint(str(tmp_path)) == str(tmp_path / 'best.pt')
    assert find_checkpoint(str(tmp_path / 'last.pt')) == str(tmp_path / 'last.pt')
    weights = m.state_dict()
    for ema, shift in ((True, 1), (False, 0)):
        assert all(torch.equal(v, weights[k] + shift) for k, v in load(str(tmp_path), ema=ema).state_dict().items())
