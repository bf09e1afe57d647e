"""
Grids and points: the fixed transform between grid values and tokens, and interpolation.

A field (B, *grid, C) is flattened to (B, N, C) row-major: the last axis runs fastest. Coordinates are in
physical units unless a docstring says otherwise. `cfg` is a model.ModelConfig.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

SMALLEST = 1e-9                        # lower limit of weights in denominators


# ---------------------------------------------------------------------------------------------
# points of a grid

def positions(grid, first, spacing):
    """Points of a row-major grid (one number per axis in each argument). -> (S, d) float32"""
    axes = []
    for axis, n in enumerate(grid):
        step = torch.arange(n, dtype=torch.float64)
        axes.append(first[axis] + spacing[axis] * step)
    mesh = torch.meshgrid(*axes, indexing='ij')
    columns = [axis.flatten() for axis in mesh]
    return torch.stack(columns, -1).float()


def is_strided(coarse, fine):
    """Is the grid `coarse` every k-th point of `fine`, with the same k along all axes?"""
    k = fine[0] // coarse[0]
    multiple = tuple(k * n for n in coarse)
    return k >= 1 and tuple(fine) == multiple


def shape_text(shape):
    """A grid as text: '64 x 64'."""
    return ' x '.join(map(str, shape))


def random_points(n, cfg, random=None):
    """n points, uniform in the domain, (n, d); random: a torch.Generator."""
    low = torch.tensor(cfg.low)
    length = torch.tensor(cfg.length)
    return low + length * torch.rand(n, len(cfg.grid), generator=random)


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
    largest_first = directions.T.flip(0)
    return torch.cat([means, largest_first[:-n_field]])


def ones_at(numbers, size):
    """(size,): 1 at the `numbers` below it, else 0."""
    mask = torch.zeros(size)
    mask[[number for number in numbers if number < size]] = 1.
    return mask


def continued(u, inside):
    """
    Fields u (B, C, *grid), known inside a domain (B, 1, *grid), and beyond it the mean of what is known nearby.

    A cell next to known ones takes their mean; the rest, that of a grid twice as coarse, and so on.
    """
    pool = (F.avg_pool1d, F.avg_pool2d)[u.ndim - 3]
    known = inside.to(u.dtype)
    near = pool(known, 3, 1, 1)
    total = pool(u * known, 3, 1, 1)
    u = torch.where(inside, u, total / near.clamp_min(SMALLEST))     # 0 far from the domain
    near = near > 0
    known = near.to(u.dtype)
    if any(n % 2 or n < 4 for n in u.shape[2:]):                     # the rest takes the mean of all
        grid = tuple(range(2, u.ndim))
        total = u.sum(grid, keepdim=True)
        n_known = known.sum(grid, keepdim=True)
        return torch.where(near, u, total / n_known.clamp_min(1))
    share = pool(known, 2)
    coarse = pool(u, 2) / share.clamp_min(SMALLEST)
    coarse = continued(coarse, share > 0)
    return torch.where(near, u, F.interpolate(coarse, scale_factor=2.))


class Patches(nn.Module):
    """
    Grid values of a token <-> its modes: the fixed, invertible part of encoder and decoder.

    The modes of a patch are cosines, lowest frequency first, or after `fit` the principal components of the
    data. A token holds as many modes as it has features. If it has more features than the patch has values,
    the last features are zero. The modes are orthonormal. If a token has spare features, they are multiplied
    by `gain`, so that the mean square of a latent is that of the field. The first C features of a token are
    the means of its C fields. Fields that jump at walls, all but velocities, are continued beyond them.
    """

    def __init__(self, cfg):
        super().__init__()
        jumping = set(cfg.predicted) - set(cfg.velocity) if cfg.domain else ()
        self.domain = list(cfg.domain)
        self.register_buffer('jumping', torch.tensor(sorted(jumping), dtype=torch.long), persistent=False)
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
        u = self.without_jumps(u)
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

    def without_jumps(self, u):
        """u (B, *grid, C) with the fields that jump at walls continued"""
        if not len(self.jumping):
            return u
        inside = (u[..., self.domain] > 0).movedim(-1, 1)
        fields = u[..., self.jumping].movedim(-1, 1)
        fields = continued(fields, inside).movedim(1, -1)
        return u.index_copy(-1, self.jumping, fields)

    def to_tokens(self, u):
        """(B, *grid, C) -> (B, S, D), the type of the modes: float32"""
        with torch.autocast(u.device.type, enabled=False):
            u = self.without_jumps(u.to(self.modes.dtype))
            patches = merge_tokens(u.flatten(1, -2), self.grid, self.points)
            return patches @ (self.modes * self.gain).T

    def to_grid(self, z):
        """(B, S, D) -> (B, *grid, C), the type of the modes: float32"""
        with torch.autocast(z.device.type, enabled=False):
            patches = z.to(self.modes.dtype) @ (self.modes / self.gain)
            return split_tokens(patches, self.grid, self.points).unflatten(1, self.grid)

    def shift(self, z, n):
        """The same field on tokens n grid points further along (one number per axis of a periodic domain).
        Features beyond the grid values stay with their token."""
        u = self.to_grid(z)
        axes = tuple(range(1, 1 + len(self.grid)))
        moved = self.to_tokens(u.roll([-step for step in n], axes))
        return moved + (z - self.to_tokens(u)) if self.has_spare_features else moved


def padded(u, widths, periodic):
    """Fields u (B, C, *grid) with as many more points on both sides of each axis as `widths` says: those of
    the other side, or between walls copies of the outermost point. (The gradient of F.pad's copies adds in no
    fixed order on CUDA; this one does.)"""
    if periodic:
        return F.pad(u, [n for n in reversed(widths) for _ in range(2)], mode='circular')
    for axis, n in enumerate(widths, 2):
        size = [-1] * u.ndim
        size[axis] = n
        first = u.narrow(axis, 0, 1).expand(size)
        last = u.narrow(axis, -1, 1).expand(size)
        u = torch.cat([first, u, last], axis)
    return u


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
    uses four grid points per axis; next to a wall, those that the domain has.
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
        return values.unflatten(-1, (u.shape[0], u.shape[2])).transpose(0, 1)
    return (pick(u, index) * weight).sum(2)                          # of (B, Q, 4^d, C)


def pick(u, index):
    """Rows `index` (b, M, K) of u (B, P, C), b = B or 1 -> (B, M, K, C)"""
    index = index.expand(u.shape[0], -1, -1)
    flat = index.flatten(1)[..., None]
    rows = u.gather(1, flat.expand(-1, -1, u.shape[-1]))
    return rows.unflatten(1, index.shape[1:])
