"""Points of any number and order in: splines through them, supernodes, training from random placements, and
scores at other densities."""
import itertools
import json
import math
from types import SimpleNamespace

import pytest
import torch

import eval
from conftest import close, drawn, equal, refused, state_of, weights
from data import Windows
from elsewhere import placements
from grids import Scattered, fewest_points, monomials, nearest, pick, positions, spline_weights, values_at
from model import load
from pdes import PDES
from physics import PRIORS
from stages import OperatorStage
from test_stages import batch_of, settings

both = pytest.mark.parametrize('d', [1, 2])
edges = pytest.mark.parametrize('periodic', [True, False])


def scattered(n, d, seed=0):
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed))


def wave(x):
    """Smooth, with period 1 along every axis: (..., d) -> (..., 2)."""
    one = torch.sin(2 * math.pi * x + .4).prod(-1)
    other = torch.cos(4 * math.pi * x - 1).sum(-1)
    return torch.stack([one, 1 + other], -1)


def build(d=2, **changes):
    """A drawn model of two fields, that sees points, in eval mode; its tokens hold all modes."""
    return drawn(d, **{'encoder': 'points', 'fields': ('a', 'b'), 'latent_dim': 2 * 4 ** d, **changes}).eval()


# ---------------------------------------------------------------------------------------------
# splines

@both
@edges
def test_nearest_points_are_those_of_a_search_over_all_images(d, periodic):
    shape = (7, 5)[:d]
    n = torch.tensor(shape)
    points = scattered(30, d) * n * 3 - n                            # also outside the first period
    a = scattered(6, d, seed=1) * n
    index, apart = nearest(a, points[None], shape, periodic, 4)
    images = torch.tensor(list(itertools.product(range(-4, 5), repeat=d))) * n * periodic
    for row in range(len(a)):
        seen = points[:, None] + images - a[row]                     # (P, images, d)
        distance = seen.norm(dim=-1).amin(1)
        expected = distance.argsort()[:4]
        assert index[0, row].tolist() == expected.tolist()
        close(apart[0, row].norm(dim=-1), distance[expected], 1e-4)
        shifted = a[row] + apart[0, row] - points[expected]          # by whole periods
        close(shifted / n, (shifted / n).round() * periodic, 1e-4)


@both
def test_splines_reproduce_cubics(d):
    """Closed form: any polynomial of degree 3, at points between and beyond those that are given."""
    x = scattered(40, d)[None] * 2 - 1
    at = scattered(9, d, seed=1)[None] * 2 - 1
    assert monomials(x).shape[-1] == fewest_points(d) == (4, 10)[d - 1]
    coefficients = torch.randn(fewest_points(d), 3)
    weight = spline_weights(x, at)
    close(weight.mT @ monomials(x) @ coefficients, monomials(at) @ coefficients, 1e-3)
    apart = positions((4,) * d, [-1.] * d, [2 / 3] * d)[None] + .1 * torch.randn(1, 4 ** d, d)
    close(spline_weights(apart, apart)[0], torch.eye(4 ** d), 1e-2)                  # and what is given


@both
@edges
def test_splines_converge_and_batches_may_have_points_of_their_own(d, periodic):
    shape = (32, 16)[:d]
    n = torch.tensor(shape)
    grid = positions(shape, [0.] * d, [1.] * d) / n
    errors = []
    spline = Scattered(shape, 2, periodic)
    for n_point in ((20, 60), (60, 240))[d - 1]:
        x = scattered(n_point, d)
        index, weight = spline.stencils((x * n)[None])
        u = wave(x).expand(3, -1, -1)
        shared = spline(u, index, weight)
        assert shared.shape == (3, *shape, 2)
        own = spline(u, *spline.stencils((x * n).expand(3, -1, -1)))
        close(shared, own, 1e-4)
        inside = (grid > .1).all(1) & (grid < .9).all(1)
        error = (shared[0].flatten(0, -2) - wave(grid))[inside]
        errors.append(float(error.square().mean().sqrt()))
    assert errors[1] < errors[0] / 8, errors
    assert errors[1] < 2e-2


@both
def test_a_point_left_out_is_predicted_from_the_others(d):
    """Closed form: of a cubic nothing is missed but what a single point is off by."""
    n = 90
    x = scattered(n, d)
    u = (8 * x[:, :1] - 4) ** 3
    spline = Scattered((32,) * d, 2, False)
    index, weight = spline.left_out(32 * x[None])
    assert not (index[0] == torch.arange(n)[:, None]).any()
    off = u.clone()
    off[7] += 1.
    close(u - (pick(u[None], index) * weight).sum(2)[0], torch.zeros(n, 1), .02)
    miss = off - (pick(off[None], index) * weight).sum(2)[0]
    assert float(miss[7]) == pytest.approx(1., abs=.02)
    seen = (index[0] == 7).any(1)
    seen[7] = True
    assert not seen.all()
    close(miss[~seen], torch.zeros(int((~seen).sum()), 1), .02)


def test_a_point_may_be_given_twice():
    spline = Scattered((16, 16), 2, True)
    x = scattered(200, 2)
    more = torch.cat([x, x[:40]])
    once = spline(wave(x)[None], *spline.stencils(16 * x[None]))
    twice = spline(wave(more)[None], *spline.stencils(16 * more[None]))
    close(twice, once, 2e-2)


@both
def test_values_at_points(d):
    """Closed form on a torus, where the grid resolves the waves; cubic interpolation between walls."""
    grid = positions((32,) * d, [.01] * d, [1 / 32] * d)
    u = wave(grid).view(1, *[32] * d, 2)
    q = scattered(20, d) * .9 + .05
    close(values_at(u, q, [.01] * d, [1.] * d, True)[0], wave(q), 1e-4)
    close(values_at(u, q, [.01] * d, [1.] * d, False)[0], wave(q), 2e-2)


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
    placement = encoder.place(x)
    close(placement.share.sum(-1), torch.ones(placement.share.shape[:-1]))
    found = encoder.of_supernodes(u, placement)
    first = m.cfg.first[0]
    lonely = 0
    for supernode, centre in enumerate(encoder.centres):
        apart = (x - first) * n - centre
        if periodic:
            apart = (apart + n / 2) % n - n / 2
        square = apart.square().sum(1)
        fourth = square.sort().values[3]
        reach = max(encoder.radius ** 2, 1.5 * float(fourth))
        lonely += reach > encoder.radius ** 2
        share = (1 - square / reach).clamp_min(0)
        mean = 0.
        for point in range(len(x)):
            given = torch.cat([u[:, point], (apart[point] / encoder.radius).expand(2, -1)], 1)
            mean = mean + share[point] / share.sum() * torch.nn.functional.gelu(encoder.stem(given))
        close(found[:, supernode], encoder.pooled(mean), 1e-3)
    assert 0 < lonely < len(encoder.centres)


@both
def test_gradients_reach_every_parameter_and_a_batch_is_fitted(d):
    assert_all_trained(build(d, patch_size=2).encoder, d)
    m = drawn(d, scramble=False, encoder='points', latent_dim=4 ** d, patch_size=2)
    x = scattered(60, d)
    u = torch.randn(2, 60, 1)
    placement = m.encoder.place(x)
    target = m.encoder(u, placement).detach() + .3 * torch.randn(2, math.prod(m.cfg.token_grid), 4 ** d)
    optimizer = torch.optim.Adam(m.encoder.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        loss = (m.encoder(u, placement) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < .3 * losses[0], losses[::20]


def assert_all_trained(encoder, d):
    x = scattered(60, d)
    encoder(torch.randn(2, 60, 2), encoder.place(x)).square().sum().backward()
    assert all(p.grad.any() for p in encoder.parameters())


def test_what_cannot_be_encoded_is_refused():
    m = build()
    u = torch.zeros(2, 100, 2)
    x = scattered(100, 2)
    line = x.clone()
    line[:, 0] = .3
    for points in (line, .4 * x):
        assert 'leave a part of the domain out' in refused(m.encode, u, points)
    assert 'at least 11 are needed' in refused(m.encode, u[:, :10], x[:10])
    assert 'values at so many points' in refused(m.encode, u[:, :50], x)
    assert 'values at so many points' in refused(m.encode, u[..., :1], x)
    assert 'expected (Q, 2)' in refused(m.encode, u, x[:, :1])
    assert 'points for 3 samples' in refused(m.encode, u, x.expand(3, -1, -1))
    assert 'not finite' in refused(m.encode, u / 0, x)
    assert 'not finite' in refused(m.encode, u, x / 0)
    assert 'lie outside the domain' in refused(build(boundary='wall').encode, u, x + .5)
    assert 'expected (B, *space, C)' in refused(m.encode, u)
    assert 'expected (B, *space, C)' in refused(m.encode, u[0, :, 0])
    assert "with encoder='points'" in refused(drawn(2).encode, u[..., :1], x)
    assert 'sees one frame' in refused(build, input_frames=2)
    assert 'is not one of grid, points' in refused(build, encoder='mesh')


# ---------------------------------------------------------------------------------------------
# training

def windows_of(m, **changes):
    """Windows of two waves that travel, for a model of one field in one dimension."""
    keys = SimpleNamespace(**{'input_frames': 1, 'initial_step': 0, 'unroll': 1, 'early': 1., 'shift': False,
                              'flip': False, 'boost': 0, 'seed': 0, 'query_stride': 1, 'input_points': 40,
                              **changes})
    n = m.cfg.grid[0]
    entry = PDES['burgers']
    u = torch.randn(2, 4, n, 1)
    rows = SimpleNamespace(
        n_frames=4, n_rows=2, query_grid=(n,), ratio=1, device=torch.device('cpu'), entry=entry, sources=[],
        row_means=torch.zeros(2, 1).numpy(), params=torch.full((2, 1), .01), on_encoder_grid=torch.clone,
        gather=lambda row, start, length: torch.stack([u[i, j:j + length] for i, j in zip(row, start)]))
    return Windows(rows, m.cfg, keys)


def test_points_are_drawn_anew_for_every_batch_and_follow_from_the_seed():
    index = torch.arange(2)
    cfg = drawn(1, encoder='points')
    [one] = windows_of(cfg).batches(index, 7)
    [again] = windows_of(cfg).batches(index, 7)
    [later] = windows_of(cfg).batches(index, 8)
    [other] = windows_of(cfg, seed=1).batches(index, 7)
    first, second = windows_of(cfg).batches(index, 7, parts=2)
    assert one.points.shape == (40, 1) and 0 <= one.points.min() <= one.points.max() < 1
    assert torch.equal(one.points, again.points)
    assert torch.equal(first.points, one.points) and torch.equal(second.points, one.points)
    for batch in (later, other):
        assert not torch.equal(one.points, batch.points)
    [grid] = windows_of(drawn(1)).batches(index, 7)
    assert grid.points is None


def test_a_stage_encodes_the_values_at_the_points(monkeypatch):
    """Closed form: the truth is a wave that the grid resolves."""
    m = build(2, fields=('a',), latent_dim=16, decoder_dim=0)
    stage = OperatorStage(m, settings(input_points=80, lambda_latent=1.))
    n = m.cfg.grid[0]
    u = torch.stack([(1 + k) * wave(m.points)[:, :1].view(n, n, 1) for k in range(3)])
    x = scattered(80, 2)
    batch = stage.placed(batch_of(m, u=u.expand(2, 3, n, n, 1), points=x, B=2))
    place = m.encoder.place
    monkeypatch.setattr(m.encoder, 'place', None)                    # it is needed once
    for k in range(3):
        expected = m.encoder((1 + k) * wave(x)[None, :, :1], batch.placement).expand(2, -1, -1)
        close(stage.encode(batch, k), expected, 1e-3)
    several = stage.encode(batch, range(3))
    assert several.shape == (2, 3, 16, 16)
    close(several[:, 1], stage.encode(batch, 1), 1e-4)
    monkeypatch.setattr(m.encoder, 'place', place)
    z = stage.encode(batch, 0)
    decoded = m.decoder(z, x)
    close(m.cycle(z, placement=batch.placement), m.encoder(decoded, batch.placement), 1e-4)
    close(m.cycle(z), m.encoder(m.decoder(z), m.encoder.place(m.points)), 1e-4)


@pytest.mark.parametrize('boundary', ['periodic', 'wall'])
def test_every_loss_trains_from_points(boundary):
    m = drawn(1, encoder='points', boundary=boundary)
    names = set(OperatorStage.losses) - set(PRIORS)
    weights = {f'lambda_{name}': 1. for name in names}
    stage = OperatorStage(m, settings(input_points=80, noise=.1, **weights))
    loss, parts = stage(batch_of(m, points=scattered(80, 1)), 1.)
    loss.backward()
    assert set(parts) == names and torch.isfinite(loss)
    assert all(p.grad.any() for p in m.parameters())
    assert 'more than 4' in refused(OperatorStage, m, settings(input_points=4))


ARGS = ('--encoder=points', '--input_points=200', '--encoder_dim=16')


def test_a_run_is_trained_resumed_and_scored(train, cut, tmp_path, monkeypatch):
    train(tmp_path / 'whole', *ARGS)
    cut(9, tmp_path / 'cut', *ARGS, '--save_interval=4')
    train(tmp_path / 'cut', *ARGS, '--save_interval=4')
    assert equal(weights(tmp_path / 'whole'), weights(tmp_path / 'cut'))
    assert state_of(tmp_path / 'whole')['model_args']['encoder'] == 'points'
    out = str(tmp_path / 'eval.json')
    eval.main(['--ckpt', str(tmp_path / 'whole'), '--placements', '100', '400', '--device', 'cpu',
               '--json', out])
    found = json.load(open(out))
    assert found['trained_points'] == 200 and set(found['placements']) == {'100', '400'}
    for score in found['placements'].values():
        assert score['nrmse'] > 0 and score['ratio'] > 0


def test_rollouts_from_random_points_are_scored_on_the_grid():
    """An untrained model is persistence, so its error is known but for the splines' own."""
    m = build(1, scramble=False, fields=('a',), latent_dim=4)
    u = torch.stack([wave(m.points)[:, :1] * k for k in (1., 2.)])[None]             # (1, 2, 32, 1)
    params = {'Nu': torch.tensor([.01])}
    found = placements(m, u, params, [100, 50], 1, False, 4)
    assert list(found) == ['50', '100']
    for score in found.values():
        assert score['nrmse'] == pytest.approx(.5, abs=.02)


def test_a_model_of_the_grid_takes_points_if_its_encoder_is_not_learned(train, tmp_path):
    train(tmp_path / 'fixed', '--encoder_dim=0', '--decoder_dim=0')
    grid = load(tmp_path / 'fixed')
    m = load(tmp_path / 'fixed', encoder='points')
    assert (grid.cfg.encoder, m.cfg.encoder) == ('grid', 'points')
    u = 1 + .1 * wave(m.points)[:, :1].expand(2, -1, -1)
    x = scattered(500, 1)
    out = m.rollout(1 + .1 * wave(x)[:, :1].expand(2, -1, -1), 3, points=m.points, grid=x)
    close(out, grid.rollout(u, 3), 1e-2)
    out = str(tmp_path / 'eval.json')
    eval.main(['--ckpt', str(tmp_path / 'fixed'), '--placements', '1000', '--device', 'cpu', '--json', out])
    found = json.load(open(out))
    assert found['placements']['1000']['ratio'] == pytest.approx(1, abs=.05)
    assert found['placements']['1000']['nrmse'] != found['metrics']['nrmse']
    train(tmp_path / 'points', '--encoder=points', '--decoder_dim=0', '--encoder_dim=0', '--max_iters=3',
          f'--init_from={tmp_path}/fixed')


def test_a_learned_encoder_of_the_grid_takes_no_points(smoke):
    args = ['--ckpt', str(smoke / 'o'), '--placements', '100', '--device', 'cpu']
    assert '--encoder=points' in refused(eval.main, args)


@both
def test_points_in_a_moving_frame(d):
    """Closed form: an untrained model carries the field along with its mean."""
    m = build(d, scramble=False, frame_speed=1., velocity=tuple(range(d)))
    x = scattered(300, d)
    q = scattered(20, d, seed=1)
    field = .1 * torch.tensor([2., -1.]) + wave(x) - torch.tensor([0., 1.])
    out = m.rollout(field[None], 2, points=q, grid=x)
    for step in (1, 2):
        there = q - m.cfg.dt * step * .1 * torch.tensor([2., -1.])[:d]
        close(out[0, step - 1], .1 * torch.tensor([2., -1.]) + wave(there) - torch.tensor([0., 1.]), .05)
