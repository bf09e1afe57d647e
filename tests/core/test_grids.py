"""grids.py: points of a grid, tokens and the modes that they hold, interpolation."""
import itertools
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from conftest import close, config
from grids import (Patches, continued, cubic_kernel, dct_basis, interpolate, is_strided, merge_tokens, padded,
                   positions, random_points, shape_text, split_tokens)
from runtime.inputs import fourier_interpolate, translated, values_at


def sine(x):
    """A wave with period 1 along every axis, (..., d) -> (..., 1)."""
    return torch.sin(2 * math.pi * x + .4).prod(-1, keepdim=True)


# ---------------------------------------------------------------------------------------------
# points

def test_positions_are_row_major():
    assert torch.equal(positions((3,), [.5], [2.]), torch.tensor([[.5], [2.5], [4.5]]))
    points = positions((2, 3), [1., 10.], [1., 5.])
    assert points.tolist() == [[1, 10], [1, 15], [1, 20], [2, 10], [2, 15], [2, 20]]
    assert points.dtype == torch.float32
    assert shape_text((64, 32)) == '64 x 32'


def test_strided_grids():
    assert is_strided((8,), (8,)) and is_strided((8, 4), (24, 12))
    for coarse, fine in (((8,), (12,)), ((8,), (4,)), ((8, 4), (16, 12)), ((8, 4), (16,))):
        assert not is_strided(coarse, fine)


@pytest.mark.parametrize('d', [1, 2])
def test_random_points_fill_the_domain(d):
    cfg = config(d, low=(-1., 2.)[:d], length=(3., .5)[:d])
    x = random_points(4000, cfg, torch.Generator().manual_seed(0))
    close((x - torch.tensor(cfg.low)) / torch.tensor(cfg.length), random_points(
        4000, config(d), torch.Generator().manual_seed(0)))
    unit = (x - torch.tensor(cfg.low)) / torch.tensor(cfg.length)
    assert unit.min() >= 0 and unit.max() <= 1
    assert (unit.mean(0) - .5).abs().max() < .02 and (unit.std(0) - 12 ** -.5).abs().max() < .02


# ---------------------------------------------------------------------------------------------
# merging and splitting tokens

GRIDS = [((8,), (4,)), ((8, 4), (4, 4)), ((8, 6), (2, 3)), ((4, 6), (1, 2))]


@pytest.mark.parametrize('grid, factors', GRIDS)
def test_split_is_the_inverse_of_merge(grid, factors):
    n_token = math.prod(grid)
    n_merged = math.prod(factors)
    x = torch.randn(2, n_token, 3)
    merged = merge_tokens(x, grid, factors)
    assert merged.shape == (2, n_token // n_merged, 3 * n_merged)
    assert torch.equal(split_tokens(merged, grid, factors), x)


@pytest.mark.parametrize('grid, factors', GRIDS)
def test_only_neighbours_are_merged(grid, factors):
    d = len(grid)
    where = positions(grid, [0.] * d, [1.] * d)                      # of each token, as features
    merged = merge_tokens(where[None], grid, factors)
    merged = merged.unflatten(-1, (-1, d))                           # (1, S, tokens merged, d)
    size = torch.tensor(factors).float()
    first = merged.amin(2)
    assert (merged.amax(2) - first == size - 1).all()
    assert (first % size == 0).all()
    coarse = [n // factor for n, factor in zip(grid, factors)]
    assert torch.equal(first[0], positions(coarse, [0.] * d, factors))


# ---------------------------------------------------------------------------------------------
# modes

BASES = [((4,), 1, 2), ((4,), 3, 20), ((2, 3), 2, 12), ((4, 4), 1, 5)]


@pytest.mark.parametrize('shape, n_field, dim', BASES)
def test_modes_are_orthonormal_and_padded_with_zeros(shape, n_field, dim):
    modes = dct_basis(shape, n_field, dim).double()
    n_value = math.prod(shape) * n_field
    n_mode = min(dim, n_value)
    assert modes.shape == (dim, n_value)
    assert not modes[n_mode:].any()
    gram = modes[:n_mode] @ modes[:n_mode].T
    assert torch.allclose(gram, torch.eye(n_mode, dtype=torch.float64), atol=1e-6)
    n_point = math.prod(shape)
    for i in range(min(n_field, dim)):                               # the first modes: means of the fields
        mean = torch.zeros(n_point, n_field, dtype=torch.float64)
        mean[:, i] = n_point ** -.5
        close(modes[i], mean.flatten())


@pytest.mark.parametrize('shape', [(8,), (4, 4), (2, 8)])
def test_the_frequency_of_the_modes_rises(shape):
    modes = dct_basis(shape, 1, math.prod(shape)).view(-1, *shape)
    frequency = torch.zeros(len(modes))
    for axis, n in enumerate(shape):
        line = modes.movedim(1 + axis, 1).reshape(len(modes), n, -1)[..., 0]      # a cosine of k half waves
        half_waves = (line.sign().diff(dim=1) != 0).sum(1)
        assert half_waves.max() == n - 1
        frequency += half_waves / n
    assert (frequency.diff() > -1e-6).all()


# ---------------------------------------------------------------------------------------------
# patches

def patches(grid, token_grid, n_field, latent_dim, static=()):
    points = tuple(n // s for n, s in zip(grid, token_grid))
    cfg = SimpleNamespace(grid=grid, points_per_token=points, n_field=n_field, latent_dim=latent_dim,
                          basis='cosine', static=static, domain=())
    return Patches(cfg)


def test_components_of_a_static_field_are_its_own():
    p = patches((16, 8), (4, 4), 2, 8, static=(0,))
    u = rough((16, 8), 2)
    p.fit(u)
    close(p.modes @ p.modes.T, torch.eye(8))
    modes = p.modes.view(4, 2, 8, 2)                                 # number, its field; points, fields
    assert not modes[:, 0, :, 1].any() and not modes[:, 1, :, 0].any()
    assert (modes[0, 0, :, 0] - modes[0, 0, 0, 0]).abs().max() < 1e-6            # means
    for field in (0, 1):
        one = u[..., field, None]
        alone = patches((16, 8), (4, 4), 1, 4)
        alone.fit(one)
        lost = (p.to_grid(p.to_tokens(u)) - u)[..., field]
        close(lost, (alone.to_grid(alone.to_tokens(one)) - one)[..., 0], 1e-4)


def rough(grid, n_field, n=400):
    """Fields of two random shapes a patch of a quarter of every axis and a mean, and a little noise."""
    torch.manual_seed(1)
    points = [size // 4 for size in grid]
    shapes = torch.randn(3, math.prod(points) * n_field)
    shapes[0] = 1.
    tokens = torch.randn(n, 4 ** len(grid), 3) @ shapes
    tokens += 1e-3 * torch.randn(tokens.shape)
    return split_tokens(tokens, grid, points).unflatten(1, grid)


@pytest.mark.parametrize('grid, n_field, share', [
    ((32,), 1, .5), ((16,), 2, 1), ((16, 8), 1, .5), ((32,), 1, 2)])
def test_components_hold_what_cosines_cannot(grid, n_field, share):
    n_value = math.prod(n // 4 for n in grid) * n_field
    p = patches(grid, (4,) * len(grid), n_field, int(share * n_value))
    u = rough(grid, n_field)
    cosine = (p.to_grid(p.to_tokens(u)) - u).norm() / u.norm()
    p.fit(u)
    rows = p.modes[:n_value]
    close(rows @ rows.T, torch.eye(len(rows)))
    assert not p.modes[n_value:].any()
    close(rows[:n_field], dct_basis(p.points, n_field, n_field))     # the means stay first
    lost = (p.to_grid(p.to_tokens(u)) - u).norm() / u.norm()
    assert lost < .02 and (lost < cosine / 10 or cosine < 1e-6)
    other = rough(grid, n_field, 7)[3:]
    assert (p.to_grid(p.to_tokens(other)) - other).norm() < .02 * other.norm()


# grid, tokens, fields, and a latent_dim that is just enough
ENOUGH = [((24,), (4,), 2, 12), ((8, 12), (4, 3), 1, 8)]
enough = pytest.mark.parametrize('grid, token_grid, n_field, latent_dim', ENOUGH)


@enough
@pytest.mark.parametrize('spare', [0, 3])
def test_tokens_hold_the_field(grid, token_grid, n_field, latent_dim, spare):
    p = patches(grid, token_grid, n_field, latent_dim + spare)
    u = torch.randn(3, *grid, n_field)
    z = p.to_tokens(u)
    assert z.shape == (3, math.prod(token_grid), latent_dim + spare)
    close(p.to_grid(z), u)
    assert not z[..., latent_dim:].any()
    ratio = z.square().mean() / u.square().mean()
    assert float(ratio) == pytest.approx(1., rel=1e-5)               # the gain is for that
    z[..., latent_dim:] = torch.randn(3, math.prod(token_grid), spare)
    close(p.to_grid(z), u)                                           # spare features are not seen on the grid


@enough
def test_the_first_features_are_the_means_of_a_token(grid, token_grid, n_field, latent_dim):
    p = patches(grid, token_grid, n_field, latent_dim)
    u = torch.randn(3, *grid, n_field)
    tokens = merge_tokens(u.flatten(1, -2), grid, p.points)          # (B, S, points x C)
    means = tokens.unflatten(-1, (-1, n_field)).mean(2)
    close(p.to_tokens(u)[..., :n_field], means * math.prod(p.points) ** .5)


@pytest.mark.parametrize('grid, token_grid, n_field, latent_dim', [((32,), (8,), 1, 2),
                                                                   ((8, 8), (2, 2), 2, 7)])
def test_small_tokens_project(grid, token_grid, n_field, latent_dim):
    """What they hold comes back; what they do not hold is orthogonal to it."""
    p = patches(grid, token_grid, n_field, latent_dim)
    u = torch.randn(3, *grid, n_field)
    kept = p.to_grid(p.to_tokens(u))
    close(p.to_tokens(kept), p.to_tokens(u))
    lost = u - kept
    assert lost.square().mean() > .1
    assert abs(float((kept * lost).mean())) < 1e-6


@enough
@pytest.mark.parametrize('spare, n', [(0, 1), (2, 3), (2, -2)])
def test_shift_is_encoding_the_rolled_field(grid, token_grid, n_field, latent_dim, spare, n):
    p = patches(grid, token_grid, n_field, latent_dim + spare)
    d = len(grid)
    u = torch.randn(3, *grid, n_field)
    steps = (n, -2 * n)[:d]                                           # along each axis
    rolled = u.roll([-step for step in steps], tuple(range(1, 1 + d)))
    z = p.to_tokens(u)
    own = torch.randn(3, math.prod(token_grid), spare)
    z[..., latent_dim:] = own
    moved = p.shift(z, steps)
    close(moved[..., :latent_dim], p.to_tokens(rolled)[..., :latent_dim])
    assert torch.allclose(moved[..., latent_dim:], own, atol=1e-5)
    close(p.shift(moved, [-step for step in steps]), z)


def test_shifting_by_a_token_permutes_tokens():
    p = patches((8, 8), (4, 4), 2, 8)                                # 2 x 2 points of 2 fields
    z = torch.randn(2, 16, 8)
    expected = z.unflatten(1, (4, 4)).roll((-1, -1), (1, 2)).flatten(1, 2)
    close(p.shift(z, (2, 2)), expected)


def test_patches_stay_in_float32_under_autocast():
    p = patches((32,), (8,), 1, 4)
    u = torch.randn(3, 32, 1)
    z = p.to_tokens(u)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        tokens = p.to_tokens(u)
        values = p.to_grid(z)
        assert p.to_grid(z.bfloat16()).dtype == torch.float32
    assert torch.equal(tokens, z)
    assert torch.equal(values, p.to_grid(z))


# ---------------------------------------------------------------------------------------------
# interpolation

@pytest.mark.parametrize('shape', [(16,), (16, 8), (5, 7)])
def test_a_translated_grid_is_one_that_is_interpolated(shape):
    length = (3., 2.)[:len(shape)]
    u = torch.randn(4, math.prod(shape), 2, dtype=torch.float64)
    distance = 9 * torch.randn(4, len(shape), dtype=torch.float64)
    distance[0] = torch.tensor(length).double() / torch.tensor(shape) * torch.tensor([3, -2][:len(shape)])
    spacing = [size / n for size, n in zip(length, shape)]
    points = positions(shape, [0.] * len(shape), spacing).double()
    q = points - distance[:, None]
    wanted = interpolate(u, q, shape, [0.] * len(shape), length, True)
    found = translated(u, distance, shape, length)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)     # positions are float32
    whole = u[:1].unflatten(1, shape).roll([3, -2][:len(shape)], tuple(range(1, 1 + len(shape))))
    torch.testing.assert_close(found[:1], whole.flatten(1, -2), rtol=0, atol=1e-9)


def test_cubic_kernel_at_points_and_on_quadratics():
    assert torch.equal(cubic_kernel(torch.arange(-3., 4.)), torch.tensor([0., 0., 0., 1., 0., 0., 0.]))
    x = torch.linspace(0, 1, 21, dtype=torch.float64)
    j = torch.arange(-1, 3, dtype=torch.float64)
    weight = cubic_kernel(x[:, None] - j)
    for power in (0, 1, 2):
        assert torch.allclose(weight @ j ** power, x ** power)


def by_hand(q, shape, first, length, periodic):
    """Grid points around one point, and their weights: [(index, weight)]. Between walls, points beyond them
    are left out, and the weights of the others sum to one."""
    axes = []
    for axis, n in enumerate(shape):
        s = (q[axis] - first[axis]) / (length[axis] / n)
        near = s if periodic else min(max(s, 0.), n - 1.)
        cells = range(math.floor(near) - 1, math.floor(near) + 3)
        axes.append([(cell % n, s - cell) for cell in cells if periodic or 0 <= cell < n])
    found = []
    for cells in itertools.product(*axes):
        index = 0
        for n, (number, _) in zip(shape, cells):
            index = index * n + number
        offsets = torch.tensor([offset for _, offset in cells])
        found.append((index, float(cubic_kernel(offsets).prod())))
    total = sum(weight for _, weight in found)
    return [(index, weight / total) for index, weight in found]


@pytest.mark.parametrize('shape', [(6,), (4, 5)])
@pytest.mark.parametrize('periodic', [True, False])
def test_interpolation_against_a_loop(shape, periodic):
    d = len(shape)
    first = [.5 / n for n in shape]
    u = torch.randn(1, math.prod(shape), 1)
    q = torch.cat([torch.rand(9, d), torch.zeros(1, d), torch.ones(1, d)])
    got = interpolate(u, q, shape, first, (1.,) * d, periodic)
    for i in range(len(q)):
        expected = sum(weight * float(u[0, index]) for index, weight in by_hand(
            q[i].tolist(), shape, first, (1.,) * d, periodic))
        assert float(got[0, i]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize('d', [1, 2])
@pytest.mark.parametrize('periodic', [True, False])
def test_interpolation_keeps_grid_values(d, periodic):
    shape = (9, 7)[:d]
    first = [.5 / n for n in shape]
    u = torch.randn(2, math.prod(shape), 3)
    q = positions(shape, first, [1 / n for n in shape])
    close(interpolate(u, q, shape, first, (1.,) * d, periodic), u, 1e-4)


@pytest.mark.parametrize('d', [1, 2])
def test_interpolation_is_of_third_order(d):
    def error(n):
        shape = (n,) * d
        first = (.2 / n,) * d
        u = sine(positions(shape, first, (1 / n,) * d))[None]
        q = torch.rand(200, d, generator=torch.Generator().manual_seed(0))
        return float((interpolate(u, q, shape, first, (1.,) * d, True) - sine(q)).abs().max())
    assert error(16) / error(32) > 6.5
    assert error(32) < 3e-3


@pytest.mark.parametrize('d', [1, 2])
@pytest.mark.parametrize('periodic', [True, False])
def test_interpolation_at_points_of_each_sample(d, periodic):
    shape = (6, 5)[:d]
    first = [.5 / n for n in shape]
    u = torch.randn(3, math.prod(shape), 2)
    q = torch.rand(3, 11, d)
    together = interpolate(u, q, shape, first, (1.,) * d, periodic)
    assert together.shape == (3, 11, 2)
    for i in range(3):
        close(together[i:i + 1], interpolate(u[i:i + 1], q[i], shape, first, (1.,) * d, periodic), 1e-6)


@pytest.mark.parametrize('shape', [(15,), (256,), (16, 12)])
@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_fourier_interpolation_is_exact_where_waves_are_resolved(shape, dtype, tolerance):
    """Closed form: a sum of waves below the Nyquist one, at points outside the first period too."""
    first = torch.tensor([.1, .2][:len(shape)], dtype=dtype)
    length = torch.tensor([2., 3.][:len(shape)], dtype=dtype)

    def waves(x):
        angle = (torch.tensor([3, 2][:len(shape)]) * (x - .3) / length).sum(-1) * 2 * math.pi
        return torch.stack([1 + angle.sin(), angle.cos()], -1)

    cells = torch.tensor(shape, dtype=dtype)
    x = first + length * positions(shape, [0.] * len(shape), [1.] * len(shape)).to(dtype) / cells
    u = waves(x).view(1, *shape, 2).repeat(3, *[1] * (len(shape) + 1))
    q = length * (2 * torch.rand(20, len(shape), dtype=dtype) - .5)
    for points in (q, q.expand(3, -1, -1), x, x + 1e-7):
        found = values_at(u, points, first, length, True)
        assert torch.equal(found, fourier_interpolate(u, points, shape, first, length))
        torch.testing.assert_close(found, waves(points).expand_as(found), rtol=0, atol=tolerance)


# ---------------------------------------------------------------------------------------------
# beyond the domain

@pytest.mark.parametrize('widths', [(2,), (0,), (1, 3), (0, 2)])
@pytest.mark.parametrize('periodic', [True, False])
def test_points_beyond_the_domain(widths, periodic):
    """Values are those of torch's F.pad, gradients too up to the order of their sums."""
    shape = 2, 3, *[5, 6][:len(widths)]
    around = [n for n in reversed(widths) for _ in range(2)]
    gradient = torch.randn(2, 3, *[n + 2 * w for n, w in zip(shape[2:], widths)])
    found = []
    for pad in (partial(padded, widths=widths, periodic=periodic),
                partial(F.pad, pad=around, mode='circular' if periodic else 'replicate')):
        u = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
        values = pad(u)
        values.backward(gradient)
        found.append((values, u.grad))
    (a, gradient_a), (b, gradient_b) = found
    assert torch.equal(a, b)
    close(gradient_a, gradient_b, 1e-6)


# ---------------------------------------------------------------------------------------------
# domains that are no box

@pytest.mark.parametrize('shape', [(64,), (32, 16), (30, 22)])
def test_fields_are_continued_beyond_a_domain(shape):
    x = positions(shape, [0.] * len(shape), [1 / n for n in shape]).view(*shape, -1)
    inside = ((x - .45).abs().amax(-1) > .2)[None, None]             # a square obstacle
    u = torch.stack([3 + x[..., 0], torch.full(shape, -2.)])[None] * inside
    v = continued(u, inside)
    assert torch.equal(v * inside, u)
    outside = v[0, :, ~inside[0, 0]]
    close(outside[1], torch.full_like(outside[1], -2.), 1e-5)
    assert 3.2 < outside[0].min() and outside[0].max() < 3.7         # between the values at its sides
    assert torch.autograd.gradcheck(lambda f: continued(f, inside), (u.double().requires_grad_(),))


def test_a_few_modes_hold_a_field_that_jumps_at_a_wall():
    """A pressure of 5 beside an obstacle in which it is 0: constant modes suffice, and the velocity is kept."""
    cfg = config(grid=(16, 16), token_grid=(4, 4), latent_dim=3, low=(0., 0.), length=(1., 1.), first=(0., 0.),
                 fields=('vx', 'p', 'd'), static=(2,), domain=(2,), velocity=(0,), boundary='open')
    patches = Patches(cfg)
    distance = torch.ones(2, 16, 16)
    distance[:, 5:9, 6:11] = -1
    inside = distance > 0
    u = torch.stack([torch.full_like(distance, 2.) * inside, 5. * inside, distance], -1)
    p = patches.to_grid(patches.to_tokens(u))
    close(p[..., 1], torch.full_like(p[..., 1], 5.))
    assert (p[:, 4:8, 4:8, 0] < 1.9).all()
