"""
Grids and points: the fixed transform between grid values and tokens, interpolation, and user input of other
grids brought to the trained one.

A field (B, *grid, C) is flattened to (B, N, C) row-major: the last axis runs fastest. Coordinates are in
physical units unless a docstring says otherwise. `cfg` is a model.ModelConfig.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from runtime.configurator import UserError


# ---------------------------------------------------------------------------------------------
# points of a grid

def positions(grid, first, spacing):
    """Points of a row-major grid (one number an axis in each argument). -> (S, d) float32"""
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


def shape_text(shape):
    """A grid as text: '64 x 64'."""
    return ' x '.join(map(str, shape))


def axis_points(cfg, axis, n):
    """
    Coordinates of n points along one axis of a grid like the trained one, (n,) float64.

    The first point is that of the trained grid. Between walls, where the other points would then leave the
    domain, the points are the centres of n equal cells.
    """
    cell = cfg.length[axis] / n
    fits = cfg.periodic or cfg.first[axis] - cfg.low[axis] < .99 * cell
    first = cfg.first[axis] if fits else cfg.low[axis] + cell / 2
    return first + cell * torch.arange(n, dtype=torch.float64)


def random_points(n, cfg, random=None):
    """n points, uniform in the domain, (n, d); random: a torch.Generator."""
    d = len(cfg.grid)
    return torch.tensor(cfg.low) + torch.tensor(cfg.length) * torch.rand(n, d, generator=random)


# ---------------------------------------------------------------------------------------------
# grid values <-> tokens

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
    """
    Principal components of patches (n, D) of n_field fields; the last axis is points x fields.

    Returns orthonormal rows (D, D): the means of the fields, then the directions of largest variance about
    the means, largest first.
    """
    means = dct_basis((patches.shape[1] // n_field,), n_field, n_field).to(patches)
    deviation = patches - patches @ means.T @ means
    covariance = deviation.T @ deviation / len(deviation)
    other_than_means = torch.eye(len(covariance)).to(patches) - means.T @ means
    covariance += covariance.trace() * other_than_means              # sorts the means last
    _, directions = torch.linalg.eigh(covariance)
    return torch.cat([means, directions.flip(1)[:, :len(covariance) - n_field].T])


class Patches(nn.Module):
    """
    Grid values of a token <-> its modes: the fixed, invertible part of encoder and decoder.

    The modes of a patch are cosines, lowest frequency first, or after `fit` the principal components of the
    data. A token holds as many modes as it has features. If it has more features than the patch has values,
    the last features are zero. The modes are orthonormal up to a gain, which gives latents that have room for
    all modes the mean square of the field. The first C features of a token are the means of its C fields.
    """

    def __init__(self, cfg):
        super().__init__()
        self.grid = tuple(cfg.grid)
        self.points = cfg.points_per_token
        self.n_field = cfg.n_field
        n_value = math.prod(self.points) * cfg.n_field               # values of a patch
        self.has_spare_features = cfg.latent_dim > n_value
        self.gain = max(1., cfg.latent_dim / n_value) ** .5
        self.separate_fields = bool(cfg.static)
        modes = dct_basis(self.points, cfg.n_field, cfg.latent_dim)              # (D, points x C)
        self.register_buffer('modes', modes, persistent=cfg.basis == 'components')

    def fit(self, u):
        """Replace the modes by the principal components of the patches of normalised fields u (N, *grid, C).
        The means of the fields stay the first C features. With a static field, each field has components of
        its own, in turn as the cosines are."""
        patches = merge_tokens(u.flatten(1, -2), self.grid, self.points).flatten(0, 1).double()
        if not self.separate_fields:
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
        """The same field on tokens n grid points further along (one number an axis of a periodic domain).
        Features beyond the grid values stay with their token."""
        u = self.to_grid(z)
        axes = tuple(range(1, 1 + len(self.grid)))
        moved = self.to_tokens(u.roll([-step for step in n], axes))
        return moved + (z - self.to_tokens(u)) if self.has_spare_features else moved


# ---------------------------------------------------------------------------------------------
# interpolation

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
    Cubic convolution of grid values at any points; the cost of a point does not grow with the grid.

    u (B, N, C) on the grid `shape` that starts at `first`; q (Q, d) or (B, Q, d). Returns (B, Q, C). A point
    uses four grid points an axis; next to a wall, those that the domain has.
    """
    d = q.shape[-1]
    steps = torch.arange(-1, 3, device=q.device)
    steps = torch.cartesian_prod(*[steps] * d).view(-1, d)           # (4^d, d)
    index = 0                                                        # row-major numbers of grid points
    weight = 1.
    for axis, n in enumerate(shape):
        spacing = length[axis] / n
        s = (q[..., axis, None] - first[axis]) / spacing             # (..., Q, 1) in cells
        near = s if periodic else s.clamp(0, n - 1)
        cell = near.floor() + steps[:, axis]                         # (..., Q, 4^d)
        weight = weight * cubic_kernel(s - cell)
        if periodic:
            known = cell % n
        else:
            known = cell.clamp(0, n - 1)
            weight = weight * (known == cell)
        index = index * n + known.long()
    weight = weight / weight.sum(-1, keepdim=True)
    weight = weight[..., None]
    if q.ndim == 2:                                                  # the same points for the whole batch
        values = u.transpose(0, 1).flatten(1)                        # (N, B C)
        values = (values[index] * weight).sum(1)                     # (Q, B C)
        return values.unflatten(-1, (len(u), -1)).transpose(0, 1)
    return (pick(u, index) * weight).sum(2)                          # of (B, Q, 4^d, C)


def pick(u, index):
    """Rows `index` (b, M, K) of u (B, P, C), b = B or 1 -> (B, M, K, C)"""
    index = index.expand(len(u), -1, -1)
    flat = index.flatten(1)[..., None]
    rows = u.gather(1, flat.expand(-1, -1, u.shape[-1]))
    return rows.unflatten(1, index.shape[1:])


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
            end_spacing = torch.where(i < known, x[1] - x[0], x[-1] - x[-2])
            beyond = (i - known) * end_spacing
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
# what a user gives

def query_points(cfg, points, n_sample, device):
    """Points (Q, d), or (B, Q, d) for B = n_sample samples, of any number type -> on `device`, in double
    precision where it has that. Raises UserError for a wrong shape and for points outside the domain."""
    d = len(cfg.grid)
    q = torch.as_tensor(points)
    if q.ndim not in (2, 3) or q.shape[-1] != d:
        raise UserError(f'points have shape {tuple(q.shape)}; expected (Q, {d}) or (B, Q, {d})')
    if q.ndim == 3 and len(q) != n_sample:
        raise UserError(f'there are points for {len(q)} samples and latents for {n_sample}')
    if not torch.isfinite(q).all():
        raise UserError('some query points are not finite')
    q = q.to(torch.float32 if q.device.type == 'mps' else torch.float64)
    if not cfg.periodic:
        for axis, (low, length) in enumerate(zip(cfg.low, cfg.length)):
            rounding = 1e-6 * length
            x = q[..., axis]
            if ((x < low - rounding) | (x > low + length + rounding)).any():
                raise UserError(f'some query points lie outside the domain, {low:g} to {low + length:g} '
                                f'along axis {axis}')
    if device.type == 'mps':
        q = q.float()
    return q.to(device)


def to_trained_grid(cfg, u, x, device):
    """
    Fields u (B, *space, C) -> the same on the trained grid and `device`, (B, *grid, C), by cubic
    interpolation. Points that both grids share keep their values.

    x: coordinates (N,) or (N, 1) of u in 1D, in any order; None if u is on a grid like the trained one
    (axis_points). Raises UserError for a wrong shape, values that are not finite, and points that leave out a
    third of the domain.
    """
    d = len(cfg.grid)
    u = torch.as_tensor(u).float()
    if u.ndim != d + 2 or u.shape[-1] != cfg.n_field:
        space = ', '.join('XY'[:d])
        raise UserError(f'u has shape {tuple(u.shape)}; expected (B, {space}, {cfg.n_field})')
    if u.device.type == 'cpu' and not torch.isfinite(u).all():
        raise UserError('u holds values that are not finite')
    u = u.to(device)
    space = tuple(u.shape[1:-1])
    if x is None and space == tuple(cfg.grid):
        return u
    if x is not None and d != 1:
        raise UserError('in 2D, values at points need a model with encoder=points; this one takes grids')
    wide = torch.float32 if device.type == 'mps' else torch.float64
    known = []
    wanted = []
    for axis, n in enumerate(space):
        known.append(axis_points(cfg, axis, n).to(device, wide))
        wanted.append(axis_points(cfg, axis, cfg.grid[axis]).to(device, wide))
    if x is not None:
        x = torch.as_tensor(x)
        known = [query_points(cfg, x.reshape(-1, 1), 1, device)[:, 0]]
        if len(known[0]) != space[0]:
            raise UserError(f'there are {len(known[0])} coordinates for {space[0]} values')
        check_coverage(cfg, known[0])
    return resample_axes(u, known, wanted, cfg.length if cfg.periodic else None)


def check_coverage(cfg, x):
    """Raise UserError where the 1D points x (N,) leave a gap of more than a third of the domain."""
    length = cfg.length[0]
    x = x - cfg.low[0]
    if cfg.periodic:
        x = (x % length).sort().values
        ends = [x[-1:] - length, x]
    else:
        ends = [x.new_zeros(1), x.sort().values, x.new_full((1,), length)]
    gap = float(torch.cat(ends).diff().max())
    if gap > length / 3:
        raise UserError(f'the {len(x)} points leave a part of the domain out: a gap of {gap:.3g} of {length:g}')
