"""
Points, grids, and the fixed transform between them and tokens, in any number of axes.

A field (B, *grid, C) is flattened to (B, N, C) row-major, the last axis running fastest. Positions are
fractions of the domain where they say so, and physical coordinates otherwise.
"""
import itertools
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

SPLINE_DEGREE = 3                      # of the polynomials that scattered interpolation reproduces
SPLINE_POINTS = 4                      # points of a stencil for each of them
SMOOTHING = 1e-5                       # of its splines, so that neighbours may coincide, and noise grows less


def positions(grid, first, spacing):
    """Centres of a row-major grid that starts at `first` (one number an axis). -> (S, d) float32"""
    axes = []
    for axis, n in enumerate(grid):
        step = torch.arange(n, dtype=torch.float64)
        axes.append(first[axis] + spacing[axis] * step)
    mesh = torch.meshgrid(*axes, indexing='ij')
    return torch.stack([axis.flatten() for axis in mesh], -1).float()


def is_strided(coarse, fine):
    """Is the grid `coarse` every k-th point of `fine`, with the same k along all axes?"""
    k = fine[0] // coarse[0]
    return k >= 1 and tuple(fine) == tuple(k * n for n in coarse)


def by(shape):
    """A grid as text: '64 x 64'."""
    return ' x '.join(map(str, shape))


# ---------------------------------------------------------------------------------------------
# tokens

def random_points(n, cfg, random=None):
    """n points anywhere in the domain, (n, d), physical coordinates; random: a torch.Generator."""
    d = len(cfg.grid)
    return torch.tensor(cfg.low) + torch.tensor(cfg.length) * torch.rand(n, d, generator=random)


def merge_tokens(x, grid, factors):
    """Concatenate the features of factors[i] neighbours along axis i.
    (B, S, D) -> (B, S / prod f, prod f D)"""
    d = len(grid)
    sizes = []
    for n, factor in zip(grid, factors):
        sizes += [n // factor, factor]
    x = x.unflatten(1, sizes)                                        # (B, n1/f1, f1, n2/f2, f2, D)
    coarse = range(1, 2 * d, 2)
    fine = range(2, 2 * d + 1, 2)
    x = x.permute(0, *coarse, *fine, 2 * d + 1)                      # (B, n1/f1, n2/f2, f1, f2, D)
    x = x.flatten(d + 1)
    return x.flatten(1, d)


def split_tokens(x, grid, factors):
    """The inverse of merge_tokens; `grid` is the fine one. (B, S / prod f, prod f D) -> (B, S, D)"""
    d = len(grid)
    coarse = [n // factor for n, factor in zip(grid, factors)]
    x = x.unflatten(1, coarse)
    x = x.unflatten(-1, (*factors, -1))                              # (B, n1/f1, n2/f2, f1, f2, D)
    order = []
    for axis in range(1, d + 1):
        order += [axis, axis + d]
    x = x.permute(0, *order, 2 * d + 1)
    return x.flatten(1, 2 * d)


def dct_basis(shape, n_field, dim):
    """The `dim` lowest orthonormal cosine modes (DCT-II) of a patch of `shape` points and `n_field` fields,
    lowest frequency first, so the first n_field rows are means. Rows are zero where dim is larger than the
    number of modes. -> (dim, points x n_field)"""
    modes = torch.ones(1, 1, dtype=torch.float64)
    frequency = torch.zeros(1, dtype=torch.float64)
    for n in shape:
        k = torch.arange(n, dtype=torch.float64)
        angle = math.pi / n * k[:, None] * (k + .5)                  # (n, n)
        one = math.sqrt(2 / n) * angle.cos()
        one[0] /= math.sqrt(2)
        modes = torch.kron(modes, one)
        frequency = frequency[:, None] + k / n
        frequency = frequency.flatten()
    modes = modes[frequency.float().argsort(stable=True)]
    modes = torch.kron(modes, torch.eye(n_field, dtype=torch.float64))[:dim]
    return F.pad(modes, (0, 0, 0, dim - len(modes))).float()


def components(patches, n_field):
    """Orthonormal rows (D, D) for patches (n, D) of n_field fields, the last axis points x fields: the means
    of the fields, then the directions in which the patches differ from them most, largest first."""
    means = dct_basis((patches.shape[1] // n_field,), n_field, n_field).to(patches)
    rest = patches - patches @ means.T @ means
    spread = rest.T @ rest / len(rest)
    spread += spread.trace() * (torch.eye(len(spread)).to(patches) - means.T @ means)         # means last
    _, directions = torch.linalg.eigh(spread)
    return torch.cat([means, directions.flip(1)[:, :len(spread) - n_field].T])


class Patches(nn.Module):
    """
    Grid values of a token <-> its modes: the fixed, invertible part of encoder and decoder.

    The modes of a patch are cosines, lowest frequency first, or after `fit` its principal components. A token
    holds as many of them as it has features; where it has more, the rest is zero. The modes are orthonormal
    up to a gain, which gives latents that have room for all of them the field's mean square. The first C
    features of a token are the means of its C fields.
    """

    def __init__(self, cfg):
        super().__init__()
        self.grid = tuple(cfg.grid)
        self.points = cfg.points_per_token                           # of a token, along each axis
        self.spare = cfg.latent_dim > math.prod(self.points) * cfg.n_field
        self.gain = max(1., cfg.latent_dim / (math.prod(self.points) * cfg.n_field)) ** .5
        self.n_field = cfg.n_field
        self.apart = bool(cfg.static)
        modes = dct_basis(self.points, cfg.n_field, cfg.latent_dim)              # (D, points x C)
        self.register_buffer('modes', modes, persistent=cfg.basis == 'components')

    def fit(self, u):
        """Replace the modes by the principal components of the patches of normalised fields u (N, *grid, C),
        after the means of the fields, which stay the first C features. Where a field is static, each has
        components of its own, in turn as the cosines are."""
        patches = merge_tokens(u.flatten(1, -2), self.grid, self.points).flatten(0, 1).double()
        if not self.apart:
            modes = components(patches, self.n_field)
        else:
            patches = patches.unflatten(1, (-1, self.n_field))       # (n, points, C)
            n = patches.shape[1]
            modes = patches.new_zeros(n, self.n_field, n, self.n_field)
            for field in range(self.n_field):
                modes[:, field, :, field] = components(patches[..., field], 1)
            modes = modes.flatten(2).flatten(0, 1)
        modes = modes[:len(self.modes)]
        self.modes[:len(modes)] = modes.float()

    def to_tokens(self, u):
        """(B, *grid, C) -> (B, S, D), float32"""
        with torch.autocast(u.device.type, enabled=False):
            patches = merge_tokens(u.float().flatten(1, -2), self.grid, self.points)
            return patches @ (self.modes * self.gain).T

    def to_grid(self, z):
        """(B, S, D) -> (B, *grid, C), float32"""
        with torch.autocast(z.device.type, enabled=False):
            patches = z.float() @ (self.modes / self.gain)
            return split_tokens(patches, self.grid, self.points).unflatten(1, self.grid)

    def shift(self, z, n):
        """The same field on tokens that lie n grid points further, one number an axis of a periodic domain.
        Features beyond the grid values stay with their token."""
        u = self.to_grid(z)
        axes = tuple(range(1, 1 + len(self.grid)))
        moved = self.to_tokens(u.roll([-step for step in n], axes))
        return moved + (z - self.to_tokens(u)) if self.spare else moved


# ---------------------------------------------------------------------------------------------
# interpolation

def neighbours(q, shape, first, length, periodic, reach):
    """
    The K = (2 reach)^d cells of a grid that are nearest to query points.

    q (..., Q, d): physical coordinates. shape: cells along each axis; first: centre of the first one; length:
    extent of the domain. Returns
        index (..., Q, K): row-major number of the cell,
        inside (..., Q, K): whether the domain has it; beyond a wall, the last cell is repeated,
        offset (..., Q, K, d): distance of q from its centre, in cells.
    """
    d = q.shape[-1]
    steps = torch.arange(1 - reach, 1 + reach, device=q.device)
    steps = torch.cartesian_prod(*[steps] * d)
    steps = steps.view(-1, d)                                        # (K, d)
    index = 0
    inside = True
    offsets = []
    for axis, n in enumerate(shape):
        spacing = length[axis] / n
        distance = q[..., axis, None] - first[axis]
        s = distance / spacing                                       # (..., Q, 1) in cells
        near = s if periodic else s.clamp(0, n - 1)
        cell = near.floor() + steps[:, axis]                         # (..., Q, K)
        if periodic:
            here = cell % n
        else:
            here = cell.clamp(0, n - 1)
            inside = inside & (here == cell)
        index = index * n + here.long()
        offsets.append(s - cell)
    if periodic:
        inside = torch.ones_like(index, dtype=torch.bool)
    return index, inside, torch.stack(offsets, -1)


def cubic_kernel(t):
    """Weight of a grid point at distance t (in grid spacings): cubic convolution (Keys 1981), which is once
    continuously differentiable and exact on quadratics."""
    t = t.abs()
    near = (1.5 * t - 2.5) * t * t + 1
    far = ((-.5 * t + 2.5) * t - 4) * t + 2
    far = torch.where(t < 2, far, 0.)
    return torch.where(t < 1, near, far)


def interpolate(u, q, shape, first, length, periodic):
    """
    Cubic interpolation of grid values at any points, at a cost that does not grow with the grid.

    u (B, N, C) on the grid `shape` that starts at `first`; q (Q, d) or (B, Q, d) physical coordinates.
    Returns (B, Q, C). Its four points an axis are those of cubic_kernel; next to a wall, fewer.
    """
    index, inside, offset = neighbours(q, shape, first, length, periodic, 2)
    weight = cubic_kernel(offset).prod(-1) * inside                  # (..., Q, 4^d)
    weight = weight / weight.sum(-1, keepdim=True)
    weight = weight[..., None]
    if q.ndim == 2:                                                  # the same points for the whole batch
        values = u.transpose(0, 1).flatten(1)                        # (N, B C)
        values = (values[index] * weight).sum(1)                     # (Q, B C)
        return values.unflatten(-1, (len(u), -1)).transpose(0, 1)
    return (pick(u, index) * weight).sum(2)                          # of (B, Q, 4^d, C)


def fourier_interpolate(u, q, shape, first, length):
    """
    Trigonometric interpolation of a periodic field at any points: exact where the grid resolves the field.

    u (B, *shape, C) on the grid that starts at `first`; q (Q, d) or (B, Q, d) physical coordinates. Returns
    (B, Q, C). Along an axis of n points, x cells from one of them, its weight is sin(pi x) / (n tan(pi x/n)),
    or with sin in the place of tan for odd n.
    """
    letters = 'xy'[:len(shape)]
    result = None
    for axis, n in enumerate(shape):
        cells = (q[..., axis] - first[axis]) / length[axis] * n
        nearest = cells.round()
        part = (cells - nearest)[..., None]                          # (..., Q, 1), at most a half
        away = nearest[..., None] - torch.arange(n, device=q.device)
        away = (away + n // 2) % n - n // 2                          # (..., Q, n), the shorter way round
        angle = math.pi * (away + part) / n
        wave = (1 - 2 * (away % 2)) * (math.pi * part).sin()         # sin(pi x), also where x is large
        below = n * (angle.sin() if n % 2 else angle.tan())
        weight = torch.where(below == 0, 1., wave / below.masked_fill(below == 0, 1.)).to(u.dtype)
        points = 'q' if q.ndim == 2 else 'bq'
        if result is None:
            rest = letters[1:]
            result = torch.einsum(f'{points}{letters[0]},b{letters}c->bq{rest}c', weight, u)
        else:
            result = torch.einsum(f'{points}{letters[1]},bq{letters[1]}c->bqc', weight, result)
    return result


def values_at(u, q, first, length, periodic):
    """Fields u (B, *shape, C) on the grid that starts at `first` -> their values (B, Q, C) at points q (Q, d)
    or (B, Q, d): trigonometric interpolation on a periodic domain, cubic elsewhere."""
    shape = u.shape[1:-1]
    if periodic:
        return fourier_interpolate(u, q, shape, first, length)
    return interpolate(u.flatten(1, -2), q, shape, first, length, periodic)


def resample(u, x, to, length=None):
    """
    Cubic (Catmull-Rom) interpolation along the last axis, from points of any spacing: (..., N) -> (..., M).

    x (N,): where u is known, in any order; to (M,): where it is wanted. Periodic with period `length` where
    one is given, clamped to the outermost points otherwise. Points that both share keep their values.
    (interpolate, above, takes points anywhere in d axes, but a uniform grid.)
    """
    wide = torch.float32 if x.device.type == 'mps' else torch.float64
    order = torch.argsort(x)
    x = x[order].to(wide)
    u = u[..., order]
    to = to.to(wide)
    n = len(x)
    first = x[0]
    last = n - 1                                                     # number of the last interval
    if length is None:
        to = to.clamp(first, x[-1])
        last = n - 2
    else:
        to = first + (to - first) % length
        gap = (first + length - to).abs()
        to = torch.where(gap < 1e-6 * length, first, to)             # rounding had moved it to the end
    left = torch.searchsorted(x, to + 1e-9, right=True) - 1
    left = left.clamp(0, last)

    points = []                                                     # the four points around `to`, and u there
    values = []
    for step in (-1, 0, 1, 2):
        i = left + step
        if length is None:
            known = i.clamp(0, n - 1)
            beyond = (i - known) * (x[1] - first)
        else:
            known = i % n
            turns = torch.div(i, n, rounding_mode='floor')
            beyond = turns * length
        points.append(x[known] + beyond)
        values.append(u[..., known].to(wide))
    x0, x1, x2, x3 = points
    y0, y1, y2, y3 = values
    h = x2 - x1
    s = ((to - x1) / h).clamp(0, 1)
    tangent1 = (y2 - y0) / (x2 - x0) * h
    tangent2 = (y3 - y1) / (x3 - x1) * h
    a = 2 * s ** 3 - 3 * s ** 2                                      # Hermite's cubic
    b = s ** 3 - s ** 2
    curve = (a + 1) * y1 - a * y2
    curve = curve + b * tangent2
    curve = curve + (b - s ** 2 + s) * tangent1
    return curve.float()


def resample_axes(u, axes, to, lengths=None):
    """u (..., *X, C) at the coordinates `axes`, one tensor an axis, -> the same at the coordinates `to`, by
    `resample` along each axis; periodic with `lengths`, if they are given."""
    for i, (x, wanted) in enumerate(zip(axes, to)):
        if not torch.equal(x, wanted):
            axis = i - len(axes) - 1
            u = resample(u.movedim(axis, -1), x, wanted, lengths and lengths[i]).movedim(-1, axis)
    return u


# ---------------------------------------------------------------------------------------------
# scattered points

def nearest(a, points, shape, periodic, k):
    """
    The k points that are nearest to each of `a`, and where they are seen from it.

    a (M, d) or (b, M, d), points (b, P, d): in cells of the grid `shape`, the shorter way round on a periodic
    domain. Returns index (b, M, k), nearest first, and apart (b, M, k, d) in cells.
    """
    apart = []
    square = 0.
    for axis, n in enumerate(shape):
        along = points[:, None, :, axis] - a[..., axis, None]        # (b, M, P)
        if periodic:
            along = along - n * (along / n).round()
        apart.append(along)
        square = square + along.square()
    index = square.topk(k, largest=False).indices
    near = [along.gather(-1, index) for along in apart]
    return index, torch.stack(near, -1)


def monomials(x):
    """All products of powers of the coordinates of x (..., d) up to SPLINE_DEGREE, (..., m)."""
    powers = itertools.product(range(SPLINE_DEGREE + 1), repeat=x.shape[-1])
    columns = []
    for exponents in powers:
        if sum(exponents) <= SPLINE_DEGREE:
            factors = [x[..., axis] ** exponent for axis, exponent in enumerate(exponents)]
            columns.append(math.prod(factors))
    return torch.stack(columns, -1)


def fewest_points(d):
    """How many points scattered interpolation needs: as many as it has monomials."""
    return math.comb(SPLINE_DEGREE + d, d)


def spline_weights(x, at):
    """
    Weights of the polyharmonic spline sum_k a_k |x - x_k|^5 + a cubic polynomial through values at x.

    x (..., K, d), at (..., T, d): coordinates of order 1. Returns (..., K, T), so that value t is the sum of
    K products. It has no scale of its own, and reproduces cubics (Duchon 1977). SMOOTHING makes the system
    regular where two points coincide; where all lie on a line it is not, and weights are huge or not finite.
    """
    def kernel(a, b):
        r = torch.cdist(a, b, compute_mode='donot_use_mm_for_euclid_dist')
        r_squared = r * r
        return r_squared * r_squared * r

    K = x.shape[-2]
    polynomials = monomials(x)                                       # (..., K, m)
    m = polynomials.shape[-1]
    corner = x.new_zeros(*x.shape[:-2], m, m)
    smooth = kernel(x, x) - SMOOTHING * torch.eye(K, device=x.device)
    upper = torch.cat([smooth, polynomials], -1)
    lower = torch.cat([polynomials.mT, corner], -1)
    system = torch.cat([upper, lower], -2)
    right = torch.cat([kernel(x, at), monomials(at).mT], -2)         # (..., K + m, T)
    solution, _ = torch.linalg.solve_ex(system, right)               # which waits for no device
    return solution[..., :K, :]


class Scattered(nn.Module):
    """
    Interpolation from scattered points to a grid: for every block of the grid, a spline through the points
    that are nearest to it.

    A block is `block` grid points wide along each axis, and its stencil the 40 points (16 in one dimension)
    around its centre. They have to surround it: where there are many points a grid point, block is to be 1.
    """

    def __init__(self, shape, block, periodic):
        super().__init__()
        d = len(shape)
        self.shape = tuple(shape)
        self.factors = (block,) * d
        self.periodic = periodic
        self.k = SPLINE_POINTS * fewest_points(d)
        middle = (block - 1) / 2
        coarse = [n // block for n in shape]
        centres = positions(coarse, [middle] * d, [block] * d)
        self.register_buffer('centres', centres, persistent=False)                       # (M, d)
        inside = positions(self.factors, [-middle] * d, [1.] * d)
        self.register_buffer('inside', inside, persistent=False)                         # (T, d)

    def stencils(self, points):
        """points (b, P, d) in cells, of which the grid points are the whole numbers; b is the batch size, or
        1 for points that a batch shares -> index (b, M, K), weight (b, M, K, T)"""
        return self.around(self.centres, self.inside, points, 0)

    def left_out(self, points):
        """Stencils that predict every one of the points from the others, with T = 1."""
        return self.around(points, torch.zeros_like(points[:, :1, None]), points, 1)

    def around(self, centres, inside, points, skip):
        k = min(self.k + skip, points.shape[1])
        index, apart = nearest(centres, points, self.shape, self.periodic, k)
        apart = apart[..., skip:, :]
        size = apart.square().sum(-1).amax(-1).sqrt()                # (b, M)
        size = size.clamp_min(1e-6)
        size = size[..., None, None]
        return index[..., skip:], spline_weights(apart / size, inside / size)

    def forward(self, u, index, weight):
        """u (B, P, C) at the points of the stencils -> (B, *shape, C)"""
        B, _, C = u.shape
        if len(index) == 1:                                          # one product for the whole batch
            rows = u.transpose(0, 1).flatten(1)                      # (P, B C)
            values = weight[0].mT @ rows[index[0]]                   # (M, T, B C)
            values = values.unflatten(-1, (B, C))
            values = values.permute(2, 0, 1, 3)
        else:
            values = weight.mT @ pick(u, index)                      # (B, M, T, C)
        values = split_tokens(values.flatten(2), self.shape, self.factors)
        return values.unflatten(1, self.shape)


def pick(u, index):
    """Rows `index` (b, M, K) of u (B, P, C), b = B or 1 -> (B, M, K, C)"""
    index = index.expand(len(u), -1, -1)
    flat = index.flatten(1)[..., None]
    rows = u.gather(1, flat.expand(-1, -1, u.shape[-1]))
    return rows.unflatten(1, index.shape[1:])
