"""model.py: shapes, moving frame, conservation, symmetries, attention against its definition, checkpoints."""
import copy
import io
import math
import os
import pickle
import random

import numpy as np
import pytest
import torch
from torch.export import Dim
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import cells, close, config, drawn, refused
from grids import positions
from model import (ATTENTIONS, NETWORKS, STEPPERS, UPT, Block, ChannelAttention, Latent, StandardAttention, load,
                   model_args, on_meta)
from runtime.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint

both = pytest.mark.parametrize('d', [1, 2])
EULER = {'fields': ('density', 'vx', 'vy', 'pressure'), 'velocity': (1, 2)}


def build(*args, mean=0., std=1., **options):
    """A drawn model in eval mode; mean and std: of all fields, or a number each."""
    m = drawn(*args, **options).eval()
    m.normalise(mean, std)
    return m


def field(m, B=3, seed=0, grid=None):
    """A random field (B, *grid, C)."""
    shape = [B, *(grid or m.cfg.grid), m.cfg.n_field]
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def points(m, n=13, seed=0):
    g = torch.Generator().manual_seed(seed)
    low = torch.tensor(m.cfg.low)
    return low + torch.tensor(m.cfg.length) * torch.rand(n, len(low), generator=g)


def close_latents(a, b, tol=1e-5):
    for x, y in zip(a, b, strict=True):
        close(x, y, tol)


# ---------------------------------------------------------------------------------------------
# shapes and the meaning of the four calls

@cells
def test_shapes(arch, attention, d):
    m = build(d, arch=arch, attention=attention)
    u = field(m)
    q = points(m)
    z = m.encode(u)
    assert isinstance(z, Latent) and isinstance(m.step(z), Latent)
    shapes = [(3, math.prod(m.cfg.token_grid), 8), (3, 1), (3, d), (3, math.prod(m.cfg.grid), 0)]
    assert [x.shape for x in z] == [x.shape for x in m.step(z)] == shapes
    assert m.decode(z).shape == u.shape
    assert m.decode(z, q).shape == (3, 13, 1)
    assert m.decode(z, q.expand(3, 13, d)).shape == (3, 13, 1)
    assert m.rollout(u, 4).shape == (3, 4, *m.cfg.grid, 1)
    assert m.rollout(u, steps=4, points=q).shape == (3, 4, 13, 1)
    assert not m.rollout(u, 1).requires_grad


@pytest.mark.parametrize('changes', [
    {'token_grid': (1,)}, {'coder_depth': 0}, {'coder_depth': 2}, {'halo': 0}, {'halo': 4},
    {'patch_size': 1, 'token_grid': (16,)}, {'encoder_dim': 0}, {'encoder_dim': 0, 'decoder_dim': 0},
    {'galilean': 1., 'velocity': (0,)}, {'arch': 'u', 'depths': (2, 1, 1, 1, 3)},
    {'arch': 'u', 'depths': (2,)},
    {'fields': ('a', 'b', 'c'), 'latent_dim': 2}, {'params': ('a', 'b'), 'seen_params': ((1.,), (2., 3.))},
    {'params': (), 'seen_params': ()}, {'boundary': 'wall'}, {'d': 2, 'boundary': 'open'},
    {'d': 2, **EULER, 'galilean': 1., 'conserved': (0,)}, {'d': 2, 'token_grid': (4, 2)},
    {'d': 2, 'grid': (16, 32), 'token_grid': (2, 4), 'arch': 'u', 'attention': 'channel'}], ids=str)
def test_variants_roll_out(changes):
    m = build(**changes)
    out = m.rollout(field(m), 2)
    assert out.shape == (3, 2, *m.cfg.grid, m.cfg.n_field)
    assert torch.isfinite(out).all()
    assert m.n_params() == sum(p.numel() for p in m.parameters())


@cells
def test_untrained_operator_is_the_identity(arch, attention, d):
    m = build(d, scramble=False, arch=arch, attention=attention)
    z = m.encode(field(m))
    close_latents(m.step(z), z)
    close_latents(m.step(z, params={'Nu': torch.tensor(.7)}, dt=.3), z)


@cells
def test_untrained_model_is_persistence(arch, attention, d):
    m = build(d, scramble=False, arch=arch, attention=attention, latent_dim=4 ** d * 2, fields=('a', 'b'))
    u = field(m)
    close(m.decode(m.encode(u)), u)
    close(m.rollout(u, 2), torch.stack([u, u], 1))


@both
def test_untrained_decoder_interpolates_to_third_order(d):
    def error(n):
        m = build(d, scramble=False, grid=(n,) * d, token_grid=(n // 4,) * d, first=(.5 / n,) * d,
                  latent_dim=4 ** d)

        def wave(x):
            return torch.sin(2 * math.pi * x).prod(-1, keepdim=True)
        z = m.encode(wave(m.grid()).view(1, *m.cfg.grid, 1))
        q = points(m)
        return float((m.decode(z, q).detach() - wave(q)).abs().max())
    assert error(16) / error(32) > 6.5
    assert error(32) < 2e-3


def test_small_latents_keep_the_lowest_modes():
    m = build(scramble=False, latent_dim=2, n_head=2, encoder_dim=0, decoder_dim=0)
    z = m.encode(field(m))
    close_latents(m.encode(m.decode(z)), z)
    ramp = torch.linspace(-1, 1, 32).view(1, 8, 4)
    means = ramp.mean(-1, keepdim=True).expand(1, 8, 4)
    kept = m.decode(m.encode(ramp.reshape(1, 32, 1))).view(1, 8, 4)
    close(kept.mean(-1), means[..., 0])
    error = (kept - ramp).norm() / (means - ramp).norm()
    assert error < .1                                                # the second cosine is much of a ramp


@both
def test_positive_fields_are_not_negative(d):
    """The other field goes on as it was, and so do values that are positive already."""
    free = build(d, fields=('rho', 'v'), mean=.1)
    held = build(d, fields=('rho', 'v'), mean=.1, positive=(0,))
    held.load_state_dict(free.state_dict())
    u = field(free, 2)
    for q in (None, free.points + .01):
        a = free.decode(free.encode(u), q)
        b = held.decode(held.encode(u), q)
        assert a[..., 0].min() < 0 <= b[..., 0].min()
        assert torch.equal(a[..., 1], b[..., 1])
        assert torch.equal(a[..., 0].clamp_min(0), b[..., 0])
        assert torch.equal(held.decode(held.encode(u), q, clip=False), a)


@both
@pytest.mark.parametrize('translation', [True, False])
def test_places_are_told_where_they_differ(d, translation):
    """A step commutes with shifts by a token on a uniform torus, and not where places differ, once that is
    learned; static fields stay, whatever the network says."""
    m = build(d, fields=('a', 'u'), translation=translation, static=(0,), encoder_dim=0, decoder_dim=0,
              latent_dim=2 * 4 ** d, token_grid=(4,) * d, grid=(16,) * d)
    assert (m.operator.network.position is None) == translation
    u = field(m, 1)
    v = m.rollout(u, 2)[:, 1]
    axes = tuple(range(1, 1 + d))
    w = m.rollout(u.roll((4,) * d, axes), 2)[:, 1].roll((-4,) * d, axes)
    assert torch.allclose(v, w, atol=1e-4) == translation
    assert torch.allclose(v[..., 0], u[..., 0], atol=1e-5)
    assert (v[..., 1] - u[..., 1]).abs().max() > .01


@both
def test_rollout_is_encode_then_step_and_decode(d):
    m = build(d)
    u = field(m)
    q = points(m)
    z = m.encode(u)
    on_grid = []
    at_points = []
    for _ in range(3):
        z = m.step(z)
        on_grid.append(m.decode(z))
        at_points.append(m.decode(z, q))
    close(m.rollout(u, 3), torch.stack(on_grid, 1))
    close(m.rollout(u, 3, points=q), torch.stack(at_points, 1))


@both
@pytest.mark.parametrize('moving', [False, True])
def test_a_rollout_may_encode_every_step_again(d, moving):
    frame = {'galilean': 1., 'velocity': (0,) * d} if moving else {}
    m = build(d, **frame)
    u = field(m) + .3
    v = u
    again = []
    for _ in range(3):
        v = m.decode(m.step(m.encode(v)))
        again.append(v)
    again = torch.stack(again, 1)
    close(m.rollout(u, 3, reencode=True), again, 1e-4)
    at_points = m.rollout(u, 3, reencode=True, points=m.grid())
    close(at_points.unflatten(2, m.cfg.grid), again, 1e-4)
    assert (m.rollout(u, 3) - again).abs().max() > 1e-2              # it differs from latent space


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
    plain = build(d)
    scaled = build(d, mean=3., std=2.)
    u = field(plain)
    z = plain.encode(u)
    close_latents(scaled.encode(2 * u + 3), z)
    close(scaled.decode(z), 2 * plain.decode(z) + 3)
    shifted = build(d, low=(-1.,) * d, length=(2.,) * d, first=(-1 + 1 / plain.cfg.grid[0],) * d)
    q = points(plain)
    close_latents(shifted.encode(u), z)
    close(shifted.decode(z, 2 * q - 1), plain.decode(z, q), 1e-4)


def test_every_field_has_units_of_its_own():
    names = ('a', 'b', 'c')
    plain = build(fields=names)
    mean = torch.tensor([5., -2e3, 0.])
    std = torch.tensor([1e-2, 1e4, 1.])
    scaled = build(fields=names, mean=mean, std=std)
    u = field(plain)
    close_latents(scaled.encode(u * std + mean), plain.encode(u), 1e-4)
    close((scaled.rollout(u * std + mean, 2) - mean) / std, plain.rollout(u, 2), 1e-3)


@both
def test_a_sample_does_not_depend_on_its_batch(d):
    m = build(d, arch='u', attention='channel')
    u = field(m)
    close(m.rollout(u, 2)[1:2], m.rollout(u[1:2], 2))


@pytest.mark.parametrize('double', [False, True])
@pytest.mark.parametrize('as_array', [False, True])
def test_arrays_of_other_kinds(double, as_array):
    def kind(x):
        x = x.double() if double else x
        return x.numpy() if as_array else x
    m = build()
    u = field(m)
    q = points(m)
    close(m.rollout(kind(u), 2, points=kind(q)), m.rollout(u, 2, points=q))


# ---------------------------------------------------------------------------------------------
# what users of torch expect of a module

VARIANTS = pytest.mark.parametrize('changes', [
    {'galilean': 1., 'velocity': (0,)}, {'d': 2, 'arch': 'u', 'attention': 'channel', 'boundary': 'wall'},
    {'encoder': 'points', 'drop_path': .1}], ids=str)


@pytest.mark.parametrize('name, tolerance', [('double', 1e-5), ('half', .02), ('bfloat16', .1)])
@VARIANTS
def test_a_model_computes_in_the_type_of_its_weights(changes, name, tolerance):
    m = build(**changes)
    if changes.get('encoder') == 'points':
        tolerance = max(tolerance, 1e-2)                             # float32 rounds its splines
    u = field(m)
    q = points(m)
    other = getattr(copy.deepcopy(m), name)()
    z = other.step(other.encode(u))
    got = other.rollout(u, 2, points=q)
    dtype = next(other.parameters()).dtype
    assert z.tokens.dtype == z.mean.dtype == got.dtype == other.decode(z).dtype == dtype
    close(got.double(), m.rollout(u, 2, points=q).double(), tolerance)
    finer = field(m, grid=tuple(2 * n for n in m.cfg.grid))
    close(other.rollout(finer, 1, reencode=True).double(), m.rollout(finer, 1).double(), tolerance)
    cast = [x.float() for x in m.step(other.encode(u))]
    close_latents(m.step(m.encode(u)), cast, tolerance)
    assert torch.equal(other.double().points, m.points.double())     # no 16 bits for the places of points


def test_a_double_model_is_more_exact():
    """A conserved integral drifts by rounding alone."""
    def drift(m):
        p = m.rollout(u, 3).double()
        return float((p.mean(2) - u.double().mean(1, keepdim=True)).abs().max())
    m = build(conserved=(0,))
    u = field(m)
    single = drift(m)
    assert 1e-8 < single < 1e-4
    assert drift(m.double()) < 1e-6 * single


@VARIANTS
def test_the_default_type_of_torch(changes):
    """A model that is made with another default has that type; one that is there already keeps its own."""
    m = build(**changes)
    u = field(m)
    expected = m.rollout(u, 2)
    try:
        torch.set_default_dtype(torch.float64)
        assert torch.equal(m.rollout(u, 2), expected)
        wide = UPT(m.cfg).eval()
        wide.load_state_dict(m.state_dict())
        tolerance = 1e-2 if changes.get('encoder') == 'points' else 1e-5
        close(wide.rollout(u, 2), m.double().rollout(u, 2), tolerance)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize('encoder', ['grid', 'points'])
def test_loading_draws_no_random_numbers(encoder, tmp_path):
    """Nor do a model and its rollouts depend on a default device."""
    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    path = str(tmp_path / 'best.pt')
    save_checkpoint(path, state_of(build(encoder=encoder)))
    before = states()
    m = load(path, ema=False)
    assert states() == before
    u = field(m)
    with torch.device('meta'):
        assert torch.equal(load(path, ema=False).rollout(u, 1), m.rollout(u, 1))
        assert m.noise(0)(2).device.type == 'cpu'


@both
def test_gradients_flow_through_encode_step_and_decode(d):
    m = build(d).requires_grad_(False)
    given = {'u': field(m), 'Nu': torch.full((3,), .01), 'dt': torch.tensor(.05), 'q': points(m)}
    for value in given.values():
        value.requires_grad_()
    z = m.encode(given['u'])
    for _ in range(2):
        z = m.step(z, {'Nu': given['Nu']}, given['dt'])
    m.decode(z, given['q']).square().sum().backward()
    for name, value in given.items():
        assert value.grad.isfinite().all() and value.grad.abs().max() > 0, name
    assert not m.rollout(given['u'], 2).requires_grad


def test_copies_of_a_model():
    m = build(galilean=1., velocity=(0,), std=2.)
    u = field(m)
    expected = m.rollout(u, 2)
    stored = io.BytesIO()
    torch.save(m.state_dict(), stored)
    stored.seek(0)
    fresh = UPT(m.cfg).eval()
    fresh.load_state_dict(torch.load(stored, weights_only=True))
    for copied in (fresh, copy.deepcopy(m), pickle.loads(pickle.dumps(m)), m.to('cpu')):
        assert torch.equal(copied.rollout(u, 2), expected)
    other = copy.deepcopy(m)
    other.operator.network.head.weight.data += 1
    assert other.operator.patches is other.decoder.patches           # as before: one set of modes
    assert torch.equal(m.rollout(u, 2), expected)


class Called(torch.nn.Module):
    """A module that calls a method of a model."""

    def __init__(self, model, call):
        super().__init__()
        self.model = model
        self.call = call

    def forward(self, *args):
        return self.call(self.model, *args)


EXPORTED = {
    'encode': lambda m, u, nu, q: m.encode(u),
    'step': lambda m, u, nu, q: m.step(m.encode(u), {'Nu': nu}, dt=.05),
    'decode': lambda m, u, nu, q: m.decode(m.encode(u), q),
    'rollout': lambda m, u, nu, q: m.rollout(u, 2, q, {'Nu': nu}),
    'other grid': lambda m, u, nu, q: m.rollout(u[:, ::2], 2, reencode=True),
    'own points': lambda m, u, nu, q: m.encode(u[:, :13], q)}


def check_export(name, strict, **changes):
    """The program that torch.export makes of a call computes what the call does."""
    m = build(**changes).requires_grad_(False)
    args = (field(m), torch.full((3,), .01), points(m))
    module = Called(m, EXPORTED[name])
    program = torch.export.export(module, args, strict=strict)
    got = torch.utils._pytree.tree_leaves(program.module()(*args))
    expected = torch.utils._pytree.tree_leaves(module(*args))
    for a, b in zip(got, expected, strict=True):
        close(a, b)


class NoValues(TorchDispatchMode):
    """Raises where a program looks at the values of a tensor."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('encoder', ['grid', 'points'])
def test_no_value_is_looked_at_while_a_program_is_traced(encoder, monkeypatch):
    """The tensors of torch.export have none. Otherwise the values are looked at."""
    m = build(encoder=encoder, boundary='wall')
    args = (field(m), torch.full((3,), .01), points(m))
    for call in EXPORTED.values():
        with NoValues(), pytest.raises(AssertionError):
            call(m, *args)
    monkeypatch.setattr(torch.compiler, 'is_compiling', lambda: True)
    for call in EXPORTED.values():
        with NoValues():
            call(m, *args)


@pytest.mark.slow
@pytest.mark.parametrize('encoder', ['grid', 'points'])
def test_an_exported_rollout_takes_batches_of_any_size(encoder):
    m = build(encoder=encoder, moving_frame=True).requires_grad_(False)
    module = Called(m, EXPORTED['rollout'])
    args = (field(m), torch.full((3,), .01), points(m))
    sizes = ({0: Dim.DYNAMIC}, {0: Dim.DYNAMIC}, None)
    program = torch.export.export(module, args, dynamic_shapes=(sizes,))
    more = (field(m, 5), torch.full((5,), .01), args[2])
    close(program.module()(*more), module(*more))


@pytest.mark.slow
@pytest.mark.parametrize('encoder, name, strict', [
    *(('grid', name, False) for name in EXPORTED), ('grid', 'rollout', True), ('points', 'rollout', False)])
def test_every_method_is_exported(encoder, name, strict):
    check_export(name, strict, encoder=encoder, boundary='wall')


class Mine(torch.nn.Module):
    """A stepper that draws: tokens plus noise."""
    stochastic = True

    def forward(self, tokens, condition, noise):
        return tokens + noise(*tokens.shape)


@both
def test_a_stepper_of_ones_own(d, monkeypatch):
    """Members of a sample differ, numbers follow from the seed, and the operator is not touched."""
    monkeypatch.setitem(STEPPERS, 'mine', lambda cfg, model: Mine())
    m = build(d, steppers=('operator', 'mine'))
    u = field(m)
    z = m.encode(u)
    noise = m.noise(3)
    expected = z.tokens + m.noise(3)(*z.tokens.shape)
    close(m.step(z, stepper='mine', noise=noise).tokens, expected)
    assert 'noise' in refused(m.step, z, stepper='mine')
    v = m.rollout(u, 2, stepper='mine', n_members=4, seed=3)
    assert v.shape == (3, 4, 2, *m.cfg.grid, 1)
    assert (v[:, 0] - v[:, 1]).abs().amin((1, 2)).max() > 0
    assert torch.equal(m.rollout(u, 2, stepper='mine', n_members=4, seed=3), v)
    assert not torch.equal(m.rollout(u, 2, stepper='mine', n_members=4, seed=4), v)
    close(m.rollout(u, 2), build(d).rollout(u, 2), 0.)


# ---------------------------------------------------------------------------------------------
# the moving frame

BOOST = torch.tensor([.3, -1.7, .01])                                # of three samples


@pytest.mark.parametrize('speed', [1., 2.])
@pytest.mark.parametrize('arch, token_shift', [('pure', 0), ('pure', 3), ('u', 0)])
def test_galilean_invariance(speed, arch, token_shift):
    """A field on top of a uniform flow c moves along at speed c, at any c: nothing else changes."""
    m = build(galilean=speed, velocity=(0,), arch=arch, token_shift=token_shift)
    c = BOOST.view(3, 1, 1)
    u = field(m)
    q = points(m)
    still = m.rollout(u, 3, points=q)
    z = m.encode(u)
    z_c = m.encode(u + c)
    for k in range(3):
        z = m.step(z)
        z_c = m.step(z_c)
        close(m.decode(z, q), still[:, k])
        moved = q + speed * c * .05 * (k + 1)                        # (B, Q, 1)
        close(m.decode(z_c, moved), still[:, k] + c, 1e-4)
    mean = u.mean(1)
    close(z.mean, mean)
    close(z.offset, speed * mean * .15 + 3 * token_shift / 32)
    assert (m.rollout(u + c, 1, dt=.1) - m.rollout(u + c, 1)).abs().max() > .1


@pytest.mark.parametrize('d, fields, velocity', [(1, ('density', 'v', 'pressure'), (1,)),
                                                 (2, EULER['fields'], EULER['velocity'])])
@pytest.mark.parametrize('token_shift', [0, 1])
def test_galilean_invariance_of_several_fields(d, fields, velocity, token_shift):
    """The flow is added to the velocities alone, and moves all fields along, at its speed along each axis."""
    n_field = len(fields)
    m = build(d, fields=fields, velocity=velocity, galilean=1.5, token_shift=token_shift,
              latent_dim=4 ** d * n_field, conserved=(0,))
    flow = torch.stack([BOOST, 2 * BOOST.flip(0)], 1)[:, :d]         # (B, d)
    c = torch.zeros(3, n_field)
    c[:, list(velocity)] = flow
    on_grid = c.view(3, *[1] * d, n_field)
    u = field(m)
    q = points(m)
    z = m.encode(u)
    z_c = m.encode(u + on_grid)
    close(z_c.tokens, z.tokens)                                      # the network never sees the flow
    for k in range(1, 4):
        z = m.step(z)
        z_c = m.step(z_c)
        moved = q + 1.5 * flow[:, None] * .05 * k
        close(m.decode(z_c, moved), m.decode(z, q) + c[:, None], 1e-4)
    mean = u.flatten(1, -2).mean(1)
    others = [i for i in range(n_field) if i not in velocity]
    close(z.mean[:, list(velocity)], mean[:, list(velocity)])
    assert not z.mean[:, others].any()
    close(z.offset, 1.5 * mean[:, list(velocity)] * .15 + 3 * token_shift / m.cfg.grid[0])
    for i in others:                                                 # a mean of these is no flow
        more = u.clone()
        more[..., i] += 1.
        assert (m.encode(more).tokens - m.encode(u).tokens).abs().max() > .1
        assert torch.equal(m.step(m.encode(more)).offset, m.step(m.encode(u)).offset)


def test_offsets_are_those_of_each_sample_and_time_step():
    m = build(galilean=2., velocity=(0,))
    u = torch.ones(3, 32, 1) * BOOST.view(3, 1, 1)
    z = m.step(m.encode(u), dt=torch.tensor([.1, .2, .3]))
    close(z.offset[:, 0], 2 * BOOST * torch.tensor([.1, .2, .3]))
    z = m.step(z)                                                    # the time step of training
    close(z.offset[:, 0], 2 * BOOST * torch.tensor([.15, .25, .35]))


@pytest.mark.parametrize('changes', [{'d': 2}, {'boundary': 'wall'}, {'velocity': ()}], ids=str)
def test_moving_frame_where_it_cannot_be(changes):
    assert 'moving frame' in refused(build, **{'galilean': 1., 'velocity': (0,), **changes})


# ---------------------------------------------------------------------------------------------
# conservation

def gap(m, u):
    """By how much the integral of each field drifts in five steps, relative to the largest value. -> (C,)"""
    p = m.rollout(u, 5)
    assert (p[:, 0] - u).abs().max() > .1                            # the operator does act
    space = tuple(range(1, u.ndim - 1))
    drift = p.flatten(2, -2).mean(2) - u.mean(space)[:, None]
    return drift.abs().amax((0, 1)) / p.abs().amax()


@cells
@pytest.mark.parametrize('changes', [{'latent_dim': 4}, {'fields': ('a', 'b'), 'latent_dim': 40}], ids=str)
def test_a_conserved_integral_stays(arch, attention, d, changes):
    every = tuple(range(len(changes.get('fields', ('u',)))))
    m = build(d, arch=arch, attention=attention, encoder_dim=0, decoder_dim=0, conserved=every, **changes)
    assert gap(m, field(m)).max() < 1e-6
    m = build(d, arch=arch, attention=attention, encoder_dim=0, decoder_dim=0, **changes)
    assert gap(m, field(m)).min() > 1e-4


@both
@pytest.mark.parametrize('reencode, token_shift', [(False, 0), (True, 3)])
def test_what_is_learned_in_encoder_and_decoder_keeps_the_integral(d, reencode, token_shift):
    m = build(d, conserved=(1,), fields=('a', 'b'), latent_dim=2 * 4 ** d + 1, token_shift=token_shift)
    u = field(m)
    p = m.rollout(u, 3, reencode=reencode)
    q = m.rollout(u, 3, reencode=reencode, points=m.grid(*[2 * n for n in m.cfg.grid]))
    space = tuple(range(1, u.ndim - 1))
    whole = u.mean(space)[:, None]
    drift = (p.flatten(2, -2).mean(2) - whole).abs().amax((0, 1)) / p.abs().amax()
    assert drift[1] < 1e-6 < 1e-4 < drift[0]
    drift = (q.mean(2) - whole).abs().amax((0, 1)) / p.abs().amax()
    assert drift[1] < .03                                            # by the quadrature
    decoder = m.decoder
    plain = decoder.patches.to_grid(m.encode(u).tokens).flatten(1, -2)
    assert (decoder(m.encode(u).tokens) - plain).abs().max() > .1    # the learned parts do act


@pytest.mark.parametrize('token_shift, latent_dim, frame', [(0, 64, 0.), (3, 64, 1.), (0, 7, 1.)])
def test_what_is_not_conserved_may_drift(token_shift, latent_dim, frame):
    """In 2D, of four fields, in a frame that moves on by any distance."""
    m = build(2, **EULER, galilean=frame, conserved=(0, 2), encoder_dim=0, decoder_dim=0,
              token_shift=token_shift, latent_dim=latent_dim)
    drift = gap(m, field(m))
    assert drift[[0, 2]].max() < 2e-6
    assert drift[[1, 3]].min() > 1e-4


# ---------------------------------------------------------------------------------------------
# tokens that move on

@pytest.mark.parametrize('frame, latent_dim, encoder_dim', [
    ({}, 7, 16), ({'galilean': 1., 'velocity': (0,)}, 4, 0), ({'galilean': 1., 'velocity': (0,)}, 7, 16)])
def test_tokens_that_move_on_hold_the_same_field(frame, latent_dim, encoder_dim):
    """Around the domain: what is decoded stays where it is, and spare features stay those of the token."""
    m = build(scramble=False, token_shift=3, latent_dim=latent_dim, encoder_dim=encoder_dim, decoder_dim=0,
              hidden_dim=8, **frame)
    u = field(m) - field(m).mean(1, keepdim=True)
    start = m.encode(u)
    start.tokens[..., 4:] = torch.arange(8.)[:, None]
    z = start
    for k in range(1, 33):
        z = m.step(z)
        close(m.decode(z), u)
        close(z.tokens[..., :4], m.encode(u.roll(-3 * k, 1)).tokens[..., :4])
        assert torch.allclose(z.tokens[..., 4:], start.tokens[..., 4:], atol=1e-5)
        close(z.offset, torch.full((3, 1), k * 3 / 32))
    close(z.tokens[..., :4], start.tokens[..., :4])                  # three times around


@both
@pytest.mark.parametrize('n_field', [1, 2])
def test_token_shift_without_a_moving_frame_is_persistence(d, n_field):
    length = (2., 3.)[:d]
    m = build(d, scramble=False, token_shift=1, fields=('a', 'b')[:n_field], latent_dim=4 ** d * n_field,
              length=length, low=(-1.,) * d, first=(-.9,) * d)
    u = field(m) + 2.
    close(m.rollout(u, 5), u[:, None].expand(-1, 5, *u.shape[1:]))
    z = m.step(m.step(m.encode(u)))
    close(z.offset, (2 * torch.tensor(length) / m.cfg.grid[0]).expand(3, d))
    assert not z.mean.any()


@pytest.mark.parametrize('changes', [
    {'token_shift': -1}, {'token_shift': 4}, {'token_shift': 1, 'latent_dim': 3},
    {'token_shift': 1, 'boundary': 'wall'}, {'token_shift': 1, 'translation': False}], ids=str)
def test_token_shift_where_it_cannot_be(changes):
    assert f"token_shift={changes['token_shift']}" in refused(build, **changes)


# ---------------------------------------------------------------------------------------------
# query points

@both
@pytest.mark.parametrize('coder_depth', [0, 1])
def test_each_query_point_stands_alone(d, coder_depth):
    m = build(d, coder_depth=coder_depth)
    z = m.encode(field(m))
    q = points(m)
    u = m.decode(z, q)
    order = torch.randperm(13)
    close(m.decode(z, q[order]), u[:, order], 1e-6)
    close(m.decode(z, q[5:6]), u[:, 5:6], 1e-6)
    per_sample = torch.stack([q, q.flip(0), q[order]])               # (B, Q, d)
    close(m.decode(z, per_sample), torch.stack([u[0], u[1].flip(0), u[2, order]]), 1e-6)


@both
def test_periodic_points_wrap(d):
    m = build(d, low=(-.5,) * d, length=(2.,) * d, first=(-.5 + 1 / 16,) * d)
    z = m.encode(field(m))
    q = torch.cat([points(m), torch.full((1, d), -.5)])
    for turns in (1, -1, 3):
        close(m.decode(z, q + 2. * turns), m.decode(z, q), 1e-4)


@both
def test_decoded_field_is_smooth_across_tokens_and_seam(d):
    """Second differences along a line shrink like h^2: a kink would give h, a jump 1."""
    m = build(d)
    z = m.encode(field(m, 1))

    def second(n):
        s = torch.arange(2 * n, dtype=torch.float64)[:, None] / n - .5       # twice around
        q = s if d == 1 else torch.cat([s, 2 * s + .1], 1)
        u = m.decode(z, q).detach()[0, :, 0]
        return float((u[2:] - 2 * u[1:-1] + u[:-2]).abs().max())
    for n in (256, 512):
        assert 3.2 < second(n) / second(2 * n) < 4.8


# ---------------------------------------------------------------------------------------------
# translations of a periodic domain

@cells
@pytest.mark.parametrize('pool, coder_depth', [(1, 0), (2, 1)])
def test_translation_by_whole_tokens(arch, attention, d, pool, coder_depth):
    s = (8 if d == 1 else 4) // pool
    m = build(d, arch=arch, attention=attention, token_grid=(s,) * d, coder_depth=coder_depth)
    tokens = 2 if arch == 'u' else 1                                 # a token of the U's coarsest level
    axes = tuple(range(1, d + 1))
    n_point = tokens * m.cfg.grid[0] // s

    def moved(z):
        rolled = z.tokens.unflatten(1, m.cfg.token_grid).roll((tokens,) * d, axes)
        return z._replace(tokens=rolled.flatten(1, d))
    u = field(m)
    q = points(m)
    z = m.encode(u)
    close_latents(m.encode(u.roll((n_point,) * d, axes)), moved(z), 1e-4)
    close_latents(m.step(moved(z)), moved(m.step(z)), 1e-4)
    close(m.decode(moved(z), q + tokens / s), m.decode(z, q), 1e-4)
    assert (m.step(z).tokens - z.tokens).abs().max() > .01           # the operator does act


@both
def test_walls_break_the_translation_symmetry(d):
    m = build(d, boundary='wall')
    z = m.encode(torch.ones(1, *m.cfg.grid, 1))
    assert z.tokens.std(1).max() > .01                               # tokens of a constant differ by place


# ---------------------------------------------------------------------------------------------
# drop path, conditions, precision

def test_drop_path_acts_in_training_only():
    m = build(drop_path=.5, depth=4)
    plain = build(depth=4)
    z = m.encode(field(m, 64))
    expected = plain.step(z).tokens
    assert torch.equal(m.step(z).tokens, expected)
    assert torch.equal(m.step(z).tokens, expected)
    m.train()
    a = m.step(z).tokens
    b = m.step(z).tokens
    assert torch.isfinite(a).all()
    same = torch.isclose(a, b, atol=1e-5).flatten(1).all(1)          # it drops per sample, not per batch
    assert 0 < same.sum() < 64


@pytest.mark.parametrize('arch', ['pure', 'u'])
def test_parameters_and_time_step_condition_the_operator(arch):
    m = build(arch=arch, seen_params=((.01, .1),))
    u = field(m)
    z = m.encode(u)
    default = m.step(z).tokens
    assert torch.equal(m.step(z, params={'Nu': .01}, dt=.05).tokens, default)
    for change in ({'params': {'Nu': .1}}, {'dt': .01}):
        assert (m.step(z, **change).tokens - default).abs().max() > 1e-3
        close(m.rollout(u, 1, **change)[:, 0], m.decode(m.step(z, **change)))
    each = m.step(z, params={'Nu': torch.tensor([.01, .1, .2])}).tokens      # one value a sample
    close(each[:1], default[:1])
    close(each[1:2], m.step(z, params={'Nu': .1}).tokens[1:2])


def test_the_first_seen_parameter_is_the_default():
    m = build(params=('a', 'b'), seen_params=((.2, .1), (3., 5.)))
    z = m.encode(field(m))
    close(m.step(z).tokens, m.step(z, params={'a': .2, 'b': 3.}).tokens, 0.)
    close(m.step(z, params={'b': 5.}).tokens, m.step(z, params={'a': .2, 'b': 5.}).tokens, 0.)
    assert (m.step(z, params={'a': .1}).tokens - m.step(z).tokens).abs().max() > 1e-3


@pytest.mark.parametrize('arch, attention', [('pure', 'standard'), ('u', 'channel')])
def test_what_stays_in_float32_under_autocast(arch, attention):
    m = build(arch=arch, attention=attention, token_grid=(4,), depths=(1, 2, 1))
    network = m.operator.network
    blocks = [module for module in m.modules() if isinstance(module, Block)]
    assert len(blocks) == (4 if arch == 'u' else 2) + 2              # of operator, encoder, decoder
    modulations = [block.modulation for block in blocks if block.modulation is not None]
    precise = [*blocks, *modulations, network.stem, network.head, m.encoder.stem, m.encoder.proj,
               m.decoder.stem, m.decoder.write, m.condition, m.operator, m.encoder, m.decoder]
    fast = [block.mlp for block in blocks] + [block.attention for block in blocks]
    dtypes = {}

    def note(module, given, result):
        dtypes.setdefault(module, set()).add(result.dtype)

    def note_stream(module, given):
        assert given[0].dtype == torch.float32                       # the residual stream between blocks
    for module in precise + fast:
        module.register_forward_hook(note)
    for block in blocks:
        block.register_forward_pre_hook(note_stream)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        m.rollout(field(m), 2)
    assert all(dtypes[module] == {torch.float32} for module in precise)
    assert all(dtypes[module] == {torch.bfloat16} for module in fast)


# ---------------------------------------------------------------------------------------------
# attention against its definition

POSITIONS = positions((6,), [.1], [1 / 6])


def without_rotation(attention):
    """The layer with scrambled weights and no rotary positions, and its weights as arrays."""
    attention.rotary.cos.fill_(1.)
    attention.rotary.sin.zero_()
    with torch.no_grad():
        for p in attention.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())), alpha=.3)
    return attention, {name: p.detach().double().numpy() for name, p in attention.named_parameters()}


def softmax_attention(q, k, v, n_head):
    """Multi-head attention of one sample, token by token. q, k, v (S, D)."""
    out = np.zeros_like(v)
    head_dim = q.shape[1] // n_head
    for h in range(n_head):
        part = slice(h * head_dim, (h + 1) * head_dim)
        for s in range(len(q)):
            score = np.exp(k[:, part] @ q[s, part] / np.sqrt(head_dim))
            out[s, part] = score @ v[:, part] / score.sum()
    return out


@pytest.mark.parametrize('dim, group_size, n_head', [(12, 4, 1), (12, 4, 2), (12, 12, 3), (8, 2, 1)])
def test_channel_attention_is_its_definition(dim, group_size, n_head):
    a, w = without_rotation(ChannelAttention(config(group_size=group_size), dim, n_head, POSITIONS))
    x = torch.randn(2, 6, dim)
    expected = np.empty(x.shape)
    for b in range(2):
        for start in range(0, dim, group_size):                      # all groups share the weights
            group = slice(start, start + group_size)
            g = x[b, :, group].double().numpy()
            n = g / np.sqrt((g ** 2).mean(1, keepdims=True)) * w['norm.weight']
            q = n @ w['q.weight'].T + w['q.bias']
            k = n @ w['k.weight'].T
            v = g @ w['v.weight'].T + w['v.bias']
            y = softmax_attention(q, k, v, n_head)
            expected[b, :, group] = y @ w['proj.weight'].T + w['proj.bias']
    close(a(x), torch.from_numpy(expected).float(), 1e-5)


@pytest.mark.parametrize('dim, n_head', [(12, 1), (12, 3)])
def test_standard_attention_is_naive_softmax(dim, n_head):
    a, w = without_rotation(StandardAttention(config(), dim, n_head, POSITIONS))

    def normalised(c):
        c = c.reshape(6, n_head, -1)
        c = c - c.mean(2, keepdims=True)
        c = c / np.sqrt(c.var(2, keepdims=True) + 1e-5) * w['qk_norm.weight']
        return c.reshape(6, dim)
    x = torch.randn(2, 6, dim)
    expected = np.empty(x.shape)
    for b in range(2):
        q, k, v = np.split(x[b].double().numpy() @ w['qkv.weight'].T, 3, 1)
        y = softmax_attention(normalised(q), normalised(k), v, n_head)
        expected[b] = y @ w['proj.weight'].T + w['proj.bias']
    close(a(x), torch.from_numpy(expected).float(), 1e-5)


@pytest.mark.parametrize('attention', [StandardAttention, ChannelAttention])
@pytest.mark.parametrize('grid', [(16,), (4, 4)])
def test_attention_sees_distances_on_the_circle(attention, grid):
    d = len(grid)
    a = attention(config(), 16, 2, positions(grid, [.01] * d, [1 / grid[0]] * d))
    x = torch.randn(2, 16, 16)

    def rolled(y):
        y = y.unflatten(1, grid).roll((1,) * d, tuple(range(1, d + 1)))
        return y.flatten(1, d)
    close(a(rolled(x)), rolled(a(x)))
    order = torch.randperm(16)
    assert not torch.allclose(a(x[:, order]), a(x)[:, order], atol=1e-4)     # but it does see positions


# ---------------------------------------------------------------------------------------------
# small layers

@pytest.mark.parametrize('d, depths', [(1, (1, 1, 1)), (1, (1, 1, 1, 1, 1, 1, 1)),
                                       (2, (1, 1, 2, 1, 1))])
def test_u_shape_restores_the_tokens(d, depths):
    m = build(d, arch='u', depths=depths)
    z = m.encode(field(m))
    tokens = z.tokens.clone()
    tokens[:, 0] += torch.randn(8)
    changed = m.step(z._replace(tokens=tokens)).tokens - m.step(z).tokens
    assert changed.shape == z.tokens.shape
    assert (changed.abs().amax((0, 2)) > 1e-6).all()                 # every token hears of every other


@pytest.mark.parametrize('threshold', [.1, 2.])
def test_log_clamp(threshold):
    plain = build()
    clamped = build(log_clamp=threshold)
    z = plain.encode(field(plain))
    q = points(plain)
    u = plain.decode(z, q)
    close(clamped.decode(z, q), u.sign() * threshold * torch.log1p(u.abs() / threshold))


# ---------------------------------------------------------------------------------------------
# configurations

@pytest.mark.parametrize('change, words', [
    ({'n_head': 3}, '3 does not divide 16'), ({'n_head': 0}, '0 does not divide 16'),
    ({'attention': 'channel', 'group_size': 5}, '5 does not divide 16'),
    ({'attention': 'channel', 'n_head': 3}, '3 does not divide 8'),
    ({'patch_size': 5}, 'patch_size'), ({'patch_size': 0}, 'patch_size'),
    ({'token_grid': (3,)}, '3 does not divide 32'), ({'token_grid': (16,)}, '16 does not divide 8'),
    ({'d': 2, 'token_grid': (4, 3)}, '3 does not divide 16'), ({'grid': (30,)}, '8 does not divide 30'),
    ({'arch': 'u', 'depths': (1, 1)}, 'depths'), ({'arch': 'u', 'depths': ()}, 'depths'),
    ({'arch': 'u', 'depths': (1,) * 9}, '16 does not divide 8'),
    ({'encoder_dim': 15}, '4 does not divide 15'), ({'decoder_dim': 15}, '4 does not divide 15'),
    ({'encoder_dim': 12}, 'even'), ({'decoder_dim': 12}, 'even'), ({'hidden_dim': 6}, 'even'),
    ({'mlp_ratio': .01}, 'mlp_ratio'), ({'halo': 33}, 'halo'), ({'static': (0,)}, 'static'),
    ({'drop_path': 1.}, 'drop_path'), ({'arch': 'v'}, 'pure, u'), ({'attention': 'v'}, 'standard, channel'),
    ({'encoder': 'v'}, 'grid'), ({'basis': 'v'}, 'cosine'), ({'steppers': ('operator', 'v')}, "'v'"),
    ({'hidden_dim': 2 ** 15}, 'hidden_dim'), ({'coder_depth': 2 ** 11}, 'coder_depth'),
    ({'grid': (2 ** 23,)}, 'grid'), ({'depth': 0}, 'depth')])
def test_config_arithmetic(change, words):
    change = dict(change)
    cfg = config(change.pop('d', 1), **change)
    assert words in refused(on_meta, cfg)
    assert words in refused(UPT, cfg)


def test_a_layer_that_reads_no_key_is_told_where_keys_belong(monkeypatch):
    class Lost(StandardAttention):
        def __init__(self, cfg, *args):
            super().__init__(cfg, *args)
            self.window = cfg.window

    class Broken(StandardAttention):
        def __init__(self, cfg, *args):
            self.window = self.size

    monkeypatch.setitem(ATTENTIONS, 'lost', Lost)
    monkeypatch.setitem(ATTENTIONS, 'broken', Broken)
    message = refused(on_meta, config(1, attention='lost'))
    assert 'cfg.window' in message and 'section `model` of train.py' in message
    with pytest.raises(AttributeError, match='size'):                # a fault of the layer stays what it is
        on_meta(config(1, attention='broken'))


def test_a_configuration_is_checked_without_allocating_it():
    m = on_meta(config(hidden_dim=2 ** 14, depth=50, n_head=2 ** 10))   # 400 GB
    assert {p.device.type for p in m.parameters()} == {'meta'}
    assert m.n_params() > 10 ** 11


# ---------------------------------------------------------------------------------------------
# checkpoints

def state_of(m, **changes):
    averaged = {name: value + 1 for name, value in m.state_dict().items()}
    return {'model': m.state_dict(), 'ema': averaged, 'model_args': model_args(m.cfg), 'iter': 7,
            'config': {'a': [1, 'b']}, 'stage': 'operator', **changes}


def same_weights(m, weights):
    state = m.state_dict()
    return state.keys() == weights.keys() and all(torch.equal(state[name], weights[name]) for name in weights)


@pytest.mark.parametrize('changes', [
    {'d': 2, 'arch': 'u', 'attention': 'channel', 'boundary': 'wall'}, {'mean': 3., 'std': 2.},
    {'params': ('a', 'b'), 'seen_params': ((1.,), (2., 3.))},
    {'d': 2, **EULER, 'galilean': 1., 'conserved': (0,)}], ids=str)
def test_round_trip(tmp_path, changes):
    m = build(**changes)
    path = str(tmp_path / 'a b é.pt')
    save_checkpoint(path, state_of(m, ema=m.state_dict()))
    assert os.listdir(tmp_path) == ['a b é.pt']
    state = load_checkpoint(path)
    assert (state['iter'], state['config'], state['stage']) == (7, {'a': [1, 'b']}, 'operator')
    before = torch.get_rng_state()
    again = load(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert again.cfg == m.cfg
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())
    assert same_weights(again, m.state_dict())
    u = field(m)
    assert torch.equal(again.rollout(u, 2), m.rollout(u, 2))


def test_load_takes_the_best_and_the_averaged_weights(tmp_path):
    m = build()
    folder = str(tmp_path)
    save_checkpoint(str(tmp_path / 'last.pt'), state_of(m, iter=9))
    assert find_checkpoint(folder) == str(tmp_path / 'last.pt')
    save_checkpoint(str(tmp_path / 'best.pt'), state_of(m, model_args=model_args(config(log_clamp=3.))))
    assert load(str(tmp_path / 'last.pt')).cfg.log_clamp == 0.
    assert load(folder).cfg.log_clamp == 3.
    assert same_weights(load(folder), state_of(m)['ema'])
    assert same_weights(load(folder, ema=False), m.state_dict())


@pytest.mark.parametrize('change, words', [
    ({'hidden_dim': 32}, 'disagree at'), ({'depth': 3}, 'disagree at operator.'),
    ({'depth': 1}, 'disagree at operator.'), ({'n_head': 5}, '5 does not divide 16')])
def test_load_refuses_what_does_not_fit(tmp_path, change, words):
    m = build()
    path = str(tmp_path / 'best.pt')
    save_checkpoint(path, state_of(m, model_args={**model_args(m.cfg), **change}))
    assert words in refused(load, path)


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
@pytest.mark.parametrize('device, words', [('cuda', 'no CUDA device'), (torch.device('cuda:0'), 'no CUDA'),
                                           ('gpu', 'not one of auto, cpu')])
def test_load_refuses_a_device_that_is_not_there(tmp_path, device, words):
    path = str(tmp_path / 'best.pt')
    save_checkpoint(path, state_of(build()))
    assert words in refused(load, path, device)


def test_arguments_that_are_missing(tmp_path):
    """A key that is newer than the checkpoint has its default; a fact of the equation has none."""
    m = build()
    path = str(tmp_path / 'best.pt')
    for name in ('grid', 'steppers', 'halo'):
        args = {key: value for key, value in model_args(m.cfg).items() if key != name}
        save_checkpoint(path, state_of(m, model_args=args))
        if name == 'halo':
            assert load(path).cfg == m.cfg
        else:
            assert name in refused(load, path)


def test_complex_weights_stay_complex(monkeypatch):
    """As those of an FNO, whose package may be missing where tests run."""
    class Spectral(torch.nn.Module):
        def __init__(self, cfg):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2, dtype=torch.cfloat))

    monkeypatch.setitem(NETWORKS, 'pure', Spectral)
    assert build(1).operator.network.weight.dtype == torch.cfloat
