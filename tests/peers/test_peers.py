"""peers/networks.py: other networks as operators of the model, in one and two dimensions, with all that the
model does."""
import math
import sys
from types import SimpleNamespace

import pytest
import torch

import conftest
import optim
from conftest import SMOKE, refused, rows_of, same_run, train_here, two_processes
from model import UPT, build, load, model_args, on_meta
from peers.compare import METHODS
from peers.networks import HEADS, SLICES, PhysicsAttention, WindowBlock, log_offsets, moved, on_grid
from runtime.checkpoint import load_checkpoint

both = pytest.mark.parametrize('arch', ['unet', 'fno', 'transolver', 'pdet'])
grids = pytest.mark.parametrize('grid', [(32,), (16, 24)])


def config(arch, grid=(32,), **changes):
    """Velocities along every axis, so that frame and conservation have something to do. The test is skipped
    where the package of a network is not installed."""
    if arch == 'fno':
        pytest.importorskip('neuralop')
    d = len(grid)
    values = {'arch': arch, 'grid': grid, 'token_grid': grid, 'fields': ('u', 'v')[:d], 'latent_dim': d,
              'encoder_dim': 0, 'decoder_dim': 0, 'hidden_dim': 16, 'depth': 2, 'dt': .25,
              'first': tuple(.5 / n for n in grid), 'conserved': tuple(range(d)), 'velocity': tuple(range(d))}
    return conftest.config(d, **{**values, **changes})


def trained(cfg):
    """A model whose every weight does something, as after a training."""
    torch.manual_seed(0)
    m = UPT(cfg)
    m.normalise([0.] * cfg.n_field, [1.5] * cfg.n_field)
    for p in m.operator.parameters():
        p.data += .1 * torch.randn_like(p)
    return m.eval()


def fields(cfg, n=2):
    return torch.randn(n, *cfg.grid, cfg.n_field, generator=torch.Generator().manual_seed(1))


@grids
@both
def test_tokens_are_the_normalised_field(arch, grid):
    m = trained(config(arch, grid))
    u0 = fields(m.cfg)
    z = m.encode(u0)
    assert torch.equal(z.tokens.unflatten(1, grid), u0 / 1.5)
    p = m.rollout(u0, 3)
    assert p.shape == (2, 3, *grid, len(grid)) and torch.isfinite(p).all()
    assert (p[:, 0] - u0).abs().max() > .01


@pytest.mark.parametrize('grid', [(32,), (8, 16)])
@both
def test_a_peer_runs_on_a_finer_grid(arch, grid):
    """On its own grid it is the same; on one twice as fine it sees the values between."""
    m = trained(config(arch, grid))
    u0 = fields(m.cfg)
    assert torch.equal(on_grid(m, grid).rollout(u0, 2), m.rollout(u0, 2))
    fine = on_grid(m, tuple(2 * n for n in grid))
    u0 = torch.randn(2, *fine.cfg.grid, len(grid))
    p = fine.rollout(u0, 2)
    assert p.shape == (2, 2, *fine.cfg.grid, len(grid)) and not p.requires_grad
    d = len(grid)
    other = u0.clone()
    other[(slice(None), *[slice(1, None, 2)] * d)] += 1.
    assert (fine.rollout(other, 2) - p).abs().max() > 1e-2
    assert (m.rollout(other, 2) - m.rollout(u0, 2)).abs().max() < 1e-5      # it sees every second point


@pytest.mark.parametrize('boundary', ['periodic', 'wall'])
def test_a_place_has_the_same_coordinates_on_a_finer_grid(boundary):
    m = trained(config('transolver', (8, 16), boundary=boundary, translation=False))
    fine = on_grid(m, (16, 32)).operator.network.position
    there = m.operator.network.position
    if boundary == 'periodic':
        assert torch.allclose(fine[:, ::2, ::2], there, atol=1e-6)
    else:                                                            # centres of cells: means of two
        assert torch.allclose((fine[0, ::2] + fine[0, 1::2])[:, 0] / 2, there[0, :, 0], atol=1e-6)


@grids
@pytest.mark.parametrize('boundary', ['periodic', 'wall'])
@pytest.mark.parametrize('arch', ['unet', 'transolver', 'pdet'])
def test_an_untrained_peer_is_the_identity(arch, grid, boundary):
    cfg = config(arch, grid, boundary=boundary)
    u0 = fields(cfg)
    assert torch.allclose(UPT(cfg).rollout(u0, 2)[:, -1], u0, atol=1e-6)


@grids
@both
def test_conservation(arch, grid):
    cfg = config(arch, grid)
    u0 = fields(cfg)
    space = tuple(range(1, 1 + len(grid)))
    p = trained(cfg).rollout(u0, 3)[:, -1]
    assert torch.allclose(p.mean(space), u0.mean(space), atol=1e-5)
    p = trained(config(arch, grid, conserved=())).rollout(u0, 3)[:, -1]
    assert (p.mean(space) - u0.mean(space)).abs().max() > 1e-3       # or the test could not fail


@grids
@both
def test_the_moving_frame(arch, grid):
    """Faster by whole cells per step: the same fields, moved on; without the frame the network sees the mean
    flow."""
    cells = (3, 2)[:len(grid)]
    cfg = config(arch, grid, galilean=1.)
    faster = torch.tensor([n / size / cfg.dt for n, size in zip(cells, grid)])
    u0 = fields(cfg)
    axes = tuple(range(1, 1 + len(grid)))

    def difference(m):
        slow = m.rollout(u0, 2)
        fast = m.rollout(u0 + faster, 2)
        moved = []
        for step in (0, 1):
            moved.append(slow[:, step].roll(tuple((step + 1) * n for n in cells), axes) + faster)
        return float((fast - torch.stack(moved, 1)).abs().max())

    assert difference(trained(cfg)) < 1e-4
    assert difference(trained(config(arch, grid))) > .01


@pytest.mark.parametrize('arch, shift', [('unet', 2), ('fno', 1)])
def test_translations_commute_with_a_step(arch, shift):
    """The U-Net's by what it pools, the FNO's by any number of points: neither sees coordinates."""
    m = trained(config(arch))
    u0 = fields(m.cfg)
    moved = m.rollout(u0.roll(shift, 1), 1)
    assert torch.allclose(moved, m.rollout(u0, 1).roll(shift, 2), atol=1e-5)


@both
def test_a_step_depends_on_the_time_step_and_the_parameters(arch):
    m = trained(config(arch))
    m.operator.network.condition.weight.data += 20.                  # its effect is small at first
    u0 = fields(m.cfg)
    p = m.rollout(u0, 1)
    assert not torch.allclose(m.rollout(u0, 1, dt=.001), p, atol=1e-4)
    with pytest.warns(UserWarning, match='never seen'):
        assert not torch.allclose(m.rollout(u0, 1, params={'Nu': 1.}), p, atol=1e-4)


@both
def test_training_moves_every_weight(arch):
    """Several processes would wait for gradients that never come; the average has to follow complex weights
    too."""
    torch.manual_seed(0)
    m = UPT(config(arch)).train()
    settings = SimpleNamespace(optimizer='muon', learning_rate=1e-3, muon_lr=.01, weight_decay=0.)
    optimizers = optim.make(m, settings)
    ema = optim.EMA(m, .5)
    before = [p.clone() for p in m.parameters()]
    for iteration in range(3):                                       # what is zero at first delays the rest
        p = m.step(m.encode(fields(m.cfg))).tokens
        (p - 1 + p.detach().roll(1, 1)).square().mean().backward()
        assert all(p.grad is not None for p in m.parameters())
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        ema.update(iteration)
    for then, now, average in zip(before, m.parameters(), ema.model.parameters()):
        assert not torch.equal(then, now)
        assert not torch.equal(then, average)


@pytest.mark.parametrize('changes, message', [
    ({'token_grid': (16,)}, '--latent_tokens=32'), ({'hidden_dim': 12}, 'multiple of 8'),
    ({'depth': 7}, 'multiples of 64')])
def test_sizes_that_do_not_fit_are_refused(changes, message):
    assert message in refused(on_meta, config('unet', **changes))


def test_the_package_of_the_fno_may_be_missing(monkeypatch):
    cfg = config('unet').replace(arch='fno')
    monkeypatch.setitem(sys.modules, 'neuralop', None)
    monkeypatch.setitem(sys.modules, 'neuralop.models', None)
    assert 'requirements-peers.txt' in refused(on_meta, cfg)


# ---------------------------------------------------------------------------------------------
# trained by train.py

def arguments(method, *more):
    small = ['--latent_tokens=64', '--latent_dim=1', '--hidden_dim=8', '--depth=2']
    return [*METHODS[method].changes, *small, *more]


@pytest.mark.slow
@pytest.mark.parametrize('method', ['unet_frame', 'fno_frame'])
def test_train_and_resume(train, cut, tmp_path, method):
    """Stopped and continued, a training is what it would have been; the checkpoint holds weights alone."""
    if method == 'fno_frame':
        pytest.importorskip('neuralop')
    args = arguments(method, '--max_iters=6', '--save_interval=3', '--eval_interval=3')
    train(tmp_path / 'whole', *args)
    cut(5, tmp_path / 'half', *args)
    assert load_checkpoint(tmp_path / 'half' / 'last.pt')['iter'] == 3
    train(tmp_path / 'half', *args)
    same_run(tmp_path / 'whole', tmp_path / 'half')
    m = load(tmp_path / 'whole' / 'last.pt')
    assert m.cfg.galilean == 1
    again = build(model_args(m.cfg), m.state_dict(), 'x').eval()
    u0 = fields(m.cfg)
    assert torch.equal(again.rollout(u0, 2), m.rollout(u0, 2))


@pytest.mark.slow
@both
def test_two_processes_train_as_one(monkeypatch, tmp_path, burgers_file, arch):
    """The gradient is that of the whole batch, that of complex weights too."""
    if arch == 'fno':
        pytest.importorskip('neuralop')
    args = [SMOKE, f'--data_path={burgers_file}', *arguments(arch, '--max_iters=4', '--log_interval=1')]
    train_here(monkeypatch, *args, f'--out_dir={tmp_path}/one')
    children = two_processes(tmp_path, *args, f'--out_dir={tmp_path}/two')
    assert [child.wait() for child in children] == [0, 0], children[0].text('err')
    norms = []
    for name in ('one', 'two'):
        norms.append([float(row['grad_norm']) for row in rows_of(tmp_path / name)])
    assert len(norms[0]) == 4 and norms[0] == pytest.approx(norms[1], rel=1e-3)


def physics_attention(dim, *grid):
    return PhysicsAttention(SimpleNamespace(hidden_dim=dim, grid=grid, periodic=True))


def test_points_of_a_slice_share_its_token():
    """Physics attention by hand: one head of one number, two slices, identity maps."""
    attention = physics_attention(HEADS, 4)
    for layer in (attention.value, attention.state, attention.proj):
        layer.weight.data.zero_()
        layer.bias.data.zero_()
    attention.value.weight.data[..., 1] = attention.state.weight.data[..., 1] = torch.eye(HEADS)       # of the point itself
    attention.proj.weight.data = torch.eye(HEADS)
    attention.slices.weight.data.zero_()                             # the other slices are empty
    attention.slices.weight.data[:2, 0] = torch.tensor([20., -20.])
    attention.slices.bias.data = torch.full((SLICES,), -100.)
    attention.slices.bias.data[:2] = 0.
    attention.qkv.weight.data = torch.tensor([[0.], [0.], [1.]])     # all tokens get the mean of all tokens
    x = torch.tensor([[1.], [2.], [-3.], [5.]]).repeat(1, HEADS)[None]
    one, other = (1 + 2 + 5) / 3, -3.
    expected = (one + other) / SLICES                                # the tokens of empty slices are 0
    torch.testing.assert_close(attention(x, (4,)), torch.full_like(x, expected), atol=1e-3, rtol=0)


@pytest.mark.parametrize('periodic', [True, False])
@pytest.mark.parametrize('tokens', [(16,), (16, 8)])
def test_shifted_windows_are_those_of_shifted_tokens(periodic, tokens):
    """On a torus, a shift by half a window commutes with attention in windows. Between walls, a token is not changed
    by one of the other end, but by those of its own window."""
    torch.manual_seed(0)
    plain = WindowBlock(16, len(tokens), False, periodic)
    block = WindowBlock(16, len(tokens), True, periodic)
    block.load_state_dict(plain.state_dict())
    x = torch.randn(2, math.prod(tokens), 16)
    half = [4 if n > 8 else 0 for n in tokens]
    y = block(x, tokens)
    back = moved(plain(moved(x, tokens, [-n for n in half]), tokens), tokens, half)
    assert torch.allclose(y, back, atol=1e-5) == periodic
    other = x.clone().unflatten(1, tokens)
    other[:, -1] += torch.randn(16)                                  # a layer norm would not see a constant
    change = (block(other.flatten(1, -2), tokens) - y).unflatten(1, tokens).abs().amax(-1).amax(0)
    first = change[0].max()                                          # at the other end
    assert first > 1e-4 if periodic else first < 1e-6
    assert change[-2].max() > 1e-4 and change[-4].max() > 1e-4 and change[5].max() < 1e-6


def test_the_bias_follows_from_the_offset():
    """sign(n) log2(1 + |n|) / 3 for offsets of 0, 1, 7 and -3 tokens."""
    offset = log_offsets([8], 'cpu')[..., 0]
    assert offset[2, 2] == 0 and offset[3, 2] == pytest.approx(1 / 3) and offset[7, 0] == pytest.approx(1)
    assert offset[0, 3] == pytest.approx(-2 / 3) and log_offsets([4, 8], 'cpu').shape == (32, 32, 2)


def test_transolver_knows_neighbours_alone():
    """A shift of points on a torus shifts the result. Without the weights of neighbours, so does any other order."""
    attention = physics_attention(16, 6, 5)
    x = torch.randn(2, 30, 16)
    order = torch.randperm(30)
    y = attention(x, (6, 5))
    torch.testing.assert_close(attention(moved(x, (6, 5), [2, 1]), (6, 5)), moved(y, (6, 5), [2, 1]))
    assert (attention(x[:, order], (6, 5)) - y[:, order]).abs().max() > 1e-3
    itself = torch.zeros(3, 3)
    itself[1, 1] = 1
    for conv in (attention.value, attention.state):
        conv.weight.data *= itself
    torch.testing.assert_close(attention(x[:, order], (6, 5)), attention(x, (6, 5))[:, order])
