"""encoder.py: values at any points, in any order, become tokens; training from random points."""
import math

import pytest
import torch

from batches import batch_of, outputs_of, settings, trained
from clouds import both, edges, scattered, wave
from conftest import FAST, close, drawn, equal, noise, refused, state_of, weights, write
from data import Trajectories, Windows
from files.open import open_source
from losses import LOSSES, OperatorStage
from model import load
from physics.priors import PRIORS


def build(d=2, **changes):
    """A drawn model of two fields, that sees points, in eval mode; its tokens hold all modes."""
    return drawn(d, **{'encoder': 'points', 'fields': ('a', 'b'), 'latent_dim': 2 * 4 ** d, **changes}).eval()


# ---------------------------------------------------------------------------------------------
# the encoder

@both
def test_on_the_trained_grid_the_fixed_part_is_that_of_the_grid_encoder(d):
    m = build(d, scramble=False)
    grid = drawn(d, scramble=False, fields=('a', 'b'), latent_dim=2 * 4 ** d).eval()
    u = wave(m.grid()).view(1, *m.cfg.grid, 2).expand(3, *[-1] * (d + 1))
    close(m.encode(u).tokens, grid.encode(u).tokens, 1e-4)
    close(m.encode(u.flatten(1, -2), m.grid()).tokens, grid.encode(u).tokens, 1e-4)
    close(m.rollout(u, 2), torch.stack([u, u], 1), 1e-4)


@both
@pytest.mark.parametrize('boundary', ['periodic', 'wall'])
def test_untrained_model_is_persistence_at_any_points(d, boundary):
    m = build(d, scramble=False, boundary=boundary)
    x = scattered(300, d)
    q = scattered(20, d, seed=1) * .8 + .1
    out = m.rollout(wave(x)[None], 2, points=q, grid=x)
    assert out.shape == (1, 2, 20, 2)
    close(out, wave(q).expand_as(out), .05)
    again = m.rollout(wave(x)[None], 2, grid=x, reencode=True)
    assert again.shape == (1, 2, 300, 2)
    close(again[:, 0], m.rollout(wave(x)[None], 2, grid=x)[:, 0], 1e-6)


@both
@pytest.mark.parametrize('boundary', ['periodic', 'wall'])
def test_the_order_of_the_points_has_no_effect(d, boundary):
    m = build(d, boundary=boundary)
    x = scattered(90, d)
    u = torch.stack([wave(x), wave(x + .3), wave(x + .7)])
    order = torch.randperm(90)
    z = m.encode(u, x).tokens
    close(m.encode(u[:, order], x[order]).tokens, z, 1e-3)
    own = x.expand(3, -1, -1).clone()
    own[1] = own[1][order]
    mixed = u.clone()
    mixed[1] = u[1, order]
    close(m.encode(mixed, own).tokens, z, 1e-3)                    # samples may have points of their own


@both
def test_field_and_points_of_a_torus_move_with_the_tokens(d):
    m = build(d, latent_dim=8)
    x = scattered(80, d)
    u = torch.stack([wave(x), wave(x + .3)])
    s = m.cfg.token_grid[0]
    moved = (x + 1 / s) % 1
    z = m.encode(u, x).tokens.unflatten(1, m.cfg.token_grid)
    z_moved = m.encode(u, moved).tokens.unflatten(1, m.cfg.token_grid)
    close(z_moved, z.roll((1,) * d, tuple(range(1, 1 + d))), 1e-3)
    assert (z - z.roll(1, 1)).abs().max() > .1


@both
@edges
def test_supernodes_take_the_weighted_mean_of_the_messages_within_their_radius(d, periodic):
    """Against a loop over supernodes and points. In one corner there are no points at all."""
    m = build(d, boundary='periodic' if periodic else 'wall')
    encoder = m.encoder
    n = m.cfg.grid[0]
    x = scattered(60, d)
    x = x[(x < .7).any(1)]
    u = torch.randn(2, len(x), 4)
    where = encoder.stencil(x)
    close(where.share.sum(-1), torch.ones(where.share.shape[:-1]))
    found = encoder.supernode_features(u, where)
    first = m.cfg.first[0]
    lonely = 0
    for supernode, centre in enumerate(encoder.centres):
        offset = (x - first) * n - centre
        if periodic:
            offset = (offset + n / 2) % n - n / 2
        square = offset.square().sum(1)
        fourth = square.sort().values[3]
        reach = max(encoder.radius ** 2, 1.5 * float(fourth))
        lonely += reach > encoder.radius ** 2
        share = (1 - square / reach).clamp_min(0)
        mean = 0.
        for point in range(len(x)):
            seen = torch.cat([u[:, point], (offset[point] / encoder.radius).expand(2, -1)], 1)
            message = torch.nn.functional.gelu(encoder.stem(seen))
            mean = mean + share[point] / share.sum() * message
        close(found[:, supernode], encoder.pooled(mean), 1e-3)
    assert 0 < lonely < len(encoder.centres)


@both
def test_gradients_reach_every_parameter_and_a_batch_is_fitted(d):
    assert_all_trained(build(d, patch_size=2).encoder, d)
    m = drawn(d, scramble=False, encoder='points', latent_dim=4 ** d, patch_size=2)
    x = scattered(60, d)
    u = torch.randn(2, 60, 1)
    where = m.encoder.stencil(x)
    target = m.encoder(u, where).detach() + .3 * torch.randn(2, math.prod(m.cfg.token_grid), 4 ** d)
    optimizer = torch.optim.Adam(m.encoder.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        loss = (m.encoder(u, where) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < .3 * losses[0], losses[::20]


def assert_all_trained(encoder, d):
    x = scattered(60, d)
    encoder(torch.randn(2, 60, 2), encoder.stencil(x)).square().sum().backward()
    assert all(p.grad.any() for p in encoder.parameters())


def test_what_cannot_be_encoded_is_refused():
    m = build()
    u = torch.zeros(2, 100, 2)
    x = scattered(100, 2)
    line = x.clone()
    line[:, 0] = .3
    for points in (line, .4 * x):
        assert 'leave a part of the domain out' in refused(m.encode, u, points)
    wrong = [
        ((u[:, :10], x[:10]), 'at least 11'), ((u[:, :50], x), '50 values'), ((u[..., :1], x), '(B, P, 2)'),
        ((u, x[:, :1]), '(Q, 2)'), ((u, x.expand(3, -1, -1)), '3 samples'), ((u / 0, x), 'not finite'),
        ((u, x / 0), 'not finite'), ((u,), '(B, X, Y, 2)'), ((u[0, :, 0],), '(B, X, Y, 2)')]
    for args, words in wrong:
        assert words in refused(m.encode, *args)
    assert 'outside the domain' in refused(build(boundary='wall').encode, u, x + .5)
    assert 'encoder=points' in refused(drawn(2).encode, u[..., :1], x)
    assert 'grid, points' in refused(build, encoder='mesh')


@both
def test_points_in_a_moving_frame(d):
    """Closed form: an untrained model carries the field along with its mean."""
    m = build(d, scramble=False, galilean=1., velocity=tuple(range(d)))
    x = scattered(300, d)
    q = scattered(20, d, seed=1)
    mean = .1 * torch.tensor([2., -1.])
    rest = torch.tensor([0., 1.])
    out = m.rollout((mean + wave(x) - rest)[None], 2, points=q, grid=x)
    for step in (1, 2):
        there = q - m.cfg.dt * step * mean[:d]
        close(out[0, step - 1], mean + wave(there) - rest, .05)


# ---------------------------------------------------------------------------------------------
# training

@pytest.fixture
def trajectories(tmp_path):
    source = open_source(write(tmp_path / 'a.hdf5', noise(10, 4, 32)), quiet=True)
    return Trajectories([source], settings(time_stride=1, space_stride=1), torch.device('cpu'))


def test_points_are_drawn_anew_for_every_batch_and_follow_from_the_seed(trajectories):
    def points_of(iteration, n_micro=1, encoder='points', **changes):
        s = settings(unroll=1, input_points=40, **changes)
        windows = Windows(trajectories, drawn(encoder=encoder), s)
        batches = windows.batches(torch.arange(2), iteration, n_micro=n_micro)
        return [batch.where and batch.where.points for batch in batches]

    [one] = points_of(7)
    assert one.shape == (40, 1) and 0 <= one.min() <= one.max() < 1
    for same in points_of(7) + points_of(7, n_micro=2):
        assert torch.equal(same, one)
    for other in points_of(8) + points_of(7, seed=1):
        assert not torch.equal(other, one)
    assert points_of(7, encoder='grid') == [None]


def test_a_stage_encodes_the_values_at_the_points():
    """Closed form: the truth is a wave that the grid resolves."""
    m = build(2, fields=('a',), latent_dim=16, decoder_dim=0)
    stage = OperatorStage(m, settings(input_points=80, lambda_latent=1.))
    n = m.cfg.grid[0]
    u = torch.stack([(1 + k) * wave(m.points)[:, :1].view(n, n, 1) for k in range(3)])
    x = scattered(80, 2)
    where = m.encoder.stencil(x)
    batch = batch_of(m, B=2, u=u.expand(2, 3, n, n, 1), where=where)
    z = stage.encode(batch.u, batch)
    assert z.shape == (2, 3, 16, 16)
    for k in range(3):
        expected = m.encoder((1 + k) * wave(x)[None, :, :1], where).expand(2, -1, -1)
        close(stage.encode(batch.u[:, k], batch), expected, 1e-3)
        close(z[:, k], expected, 1e-3)
    close(outputs_of(stage, batch)['target'], z[:, 1:], 1e-3)


def test_a_cycle_decodes_where_the_encoder_sees_the_field():
    m = build(2)
    where = m.encoder.stencil(scattered(80, 2))
    z = torch.randn(2, 16, 32)
    close(m.cycle(z, where), m.encoder(m.decoder(z, where.points), where))
    close(m.cycle(z), m.encoder(m.decoder(z), m.encoder.stencil(m.points)), 1e-4)


@pytest.mark.parametrize('boundary', ['periodic', 'wall'])
def test_every_loss_trains_from_points(boundary):
    m = drawn(1, encoder='points', boundary=boundary)
    names = set(LOSSES) - set(PRIORS)
    stage = OperatorStage(m, settings(input_points=80, **{f'lambda_{name}': 1. for name in names}))
    loss, terms = stage(batch_of(m, where=m.encoder.stencil(scattered(80, 1))), 1.)
    loss.backward()
    assert set(terms) == names
    assert trained(m) == {'encoder', 'condition', 'operator', 'decoder'}
    assert 'input_points=4' in refused(OperatorStage, m, settings(input_points=4))


ARGS = ('--encoder=points', '--input_points=200', '--encoder_dim=16', '--max_iters=4', '--save_interval=2',
        *FAST)


def test_a_run_is_trained_and_resumed(train, cut, tmp_path):
    train(tmp_path / 'whole', *ARGS)
    cut(4, tmp_path / 'cut', *ARGS)
    train(tmp_path / 'cut', *ARGS)
    assert equal(weights(tmp_path / 'whole'), weights(tmp_path / 'cut'))
    assert state_of(tmp_path / 'whole')['model_args']['encoder'] == 'points'


def test_a_model_of_the_grid_takes_points_if_its_encoder_is_not_learned(train, tmp_path):
    fixed = str(tmp_path / 'fixed')
    train(fixed, '--encoder_dim=0', '--decoder_dim=0', '--max_iters=2', *FAST)
    grid = load(fixed)
    m = load(fixed, encoder='points')
    assert (grid.cfg.encoder, m.cfg.encoder) == ('grid', 'points')
    u = 1 + .1 * wave(m.points)[:, :1].expand(2, -1, -1)
    x = scattered(500, 1)
    out = m.rollout(1 + .1 * wave(x)[:, :1].expand(2, -1, -1), 3, points=m.points, grid=x)
    close(out, grid.rollout(u, 3), 1e-2)
    train(tmp_path / 'points', '--encoder=points', '--decoder_dim=0', '--encoder_dim=0', '--max_iters=1',
          *FAST, f'--init_from={fixed}')
    train(tmp_path / 'learned', '--encoder_dim=16', '--max_iters=1', *FAST)
    assert 'encoder=points' in refused(load, str(tmp_path / 'learned'), encoder='points')
