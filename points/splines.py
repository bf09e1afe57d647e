"""
Interpolation of scattered points to a grid: local polyharmonic splines that reproduce cubic polynomials.

Coordinates are in cells of the trained grid. b is 1 for points that a batch shares, else its size B.
"""
import itertools
import math

import torch
import torch.nn as nn

from grids import pick, positions, split_tokens
from runtime.configurator import UserError

SPLINE_DEGREE = 3                      # of the polynomials that are reproduced
SPLINE_POINTS = 4                      # points of a stencil for each monomial
DISTANCES = 2 ** 26                    # that are in memory at a time, at most
CROWDED = 200.                         # sum of absolute weights of points that do not surround a block,
LARGEST_SUM = 400.                     # and of points from which no field can be interpolated
SMOOTHING = 1e-5                       # regularisation, for points that coincide or are noisy


def nearest(a, points, shape, periodic, k, without=None):
    """
    The k nearest points of each of `a`: index (b, M, k), nearest first, and offset (b, M, k, d) from `a`.

    a (M, d) or (b, M, d), points (b, P, d), in cells of the grid `shape`; the shorter way round on a periodic
    domain. without (b, P): points that do not count.
    """
    at_once = max(1, DISTANCES // math.prod(points.shape[:2]))
    if a.shape[-2] > at_once:                                        # large meshes: a part after another
        parts = [nearest(part, points, shape, periodic, k, without) for part in a.split(at_once, -2)]
        index, offset = zip(*parts)
        return torch.cat(index, 1), torch.cat(offset, 1)
    offset = []
    square = 0.
    for axis, n in enumerate(shape):
        along = points[:, None, :, axis] - a[..., axis, None]        # (b, M, P)
        if periodic:
            along = along - n * (along / n).round()
        offset.append(along)
        square = square + along.square()
    if without is not None:
        square = square.masked_fill(without[:, None], math.inf)
    index = square.topk(k, largest=False).indices
    near = [along.gather(-1, index) for along in offset]
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
    """The least number of points for an interpolation: that of the monomials."""
    return math.comb(SPLINE_DEGREE + d, d)


def is_sparse(n_point, shape):
    """Are there so few points for the grid that a stencil surrounds a block of two grid points along each axis?"""
    return n_point <= 2 * math.prod(shape)


def spline_weights(x, at):
    """
    Weights of the polyharmonic spline sum_k a_k |x - x_k|^5 + a cubic polynomial through values at x.

    x (..., K, d), at (..., T, d): coordinates of order 1. Returns (..., K, T), so that value t is the sum of
    K products. The spline has no length scale and reproduces cubics (Duchon 1977). SMOOTHING makes the system
    regular where two points coincide. Where all points lie on a line, weights are huge or not finite.
    """
    def kernel(a, b):
        r = torch.cdist(a, b, compute_mode='donot_use_mm_for_euclid_dist')
        r_squared = r * r
        return r_squared * r_squared * r

    K = x.shape[-2]
    polynomials = monomials(x)                                       # (..., K, m)
    m = polynomials.shape[-1]
    corner = x.new_zeros(*x.shape[:-2], m, m)
    smooth = kernel(x, x) - SMOOTHING * torch.eye(K, device=x.device, dtype=x.dtype)
    upper = torch.cat([smooth, polynomials], -1)
    lower = torch.cat([polynomials.mT, corner], -1)
    system = torch.cat([upper, lower], -2)
    right = torch.cat([kernel(x, at), monomials(at).mT], -2)         # (..., K + m, T)
    solution, _ = torch.linalg.solve_ex(system, right)               # which waits for no device
    return solution[..., :K, :]


def crowded(points):
    """Which of the points (b, P, d), in cells, to leave out so that each cell has one, the nearest to its centre:
    (b, P)"""
    found = []
    order = torch.arange(points.shape[1], device=points.device)
    for of_sample in points:
        cell = of_sample.round()
        away = (of_sample - cell).norm(dim=-1)
        cells, number = cell.unique(dim=0, return_inverse=True)
        least = away.new_full((len(cells),), math.inf)
        least.scatter_reduce_(0, number, away, 'amin')
        nearest_first = order.where(away == least[number], len(order))
        kept = order.new_full((len(cells),), len(order))             # the first of several at one place
        kept.scatter_reduce_(0, number, nearest_first, 'amin')
        found.append(order != kept[number])
    return torch.stack(found)


class Scattered(nn.Module):
    """
    Interpolation from scattered points to a grid: for each block of the grid, a spline through the nearest
    points.

    A block is `block` grid points wide along each axis. Its stencil is the 40 points (16 in 1D) around its
    centre. They have to surround the block, so with many points per grid point, block must be 1.
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

    def stencils(self, points, without=None):
        """points (b, P, d) in cells, of which the grid points are the whole numbers; b is the batch size, or
        1 for points that a batch shares. without (b, P): points that no stencil has. -> index (b, M, K), weight
        (b, M, K, T)"""
        return self.around(self.centres, self.inside, points, 0, without)

    def stencils_of_mesh(self, points, distance=None, what='the'):
        """As `stencils`, for points that may be crowded, such as nodes of a mesh near a wall. Where a spline fails
        because they are, one point of each cell counts, everywhere. distance (b, P, 1): as `largest_sum` takes it.
        A GPU is waited for. Raises UserError, which begins with `what`, for points that leave a part out."""
        index, weight = self.stencils(points)
        largest = self.largest_sum(index, weight, distance)
        if not largest < CROWDED and self.gap(points) <= min(self.shape) / 3:    # else no choice would help
            index, weight = self.stencils(points, crowded(points))
            largest = self.largest_sum(index, weight, distance)
        if not largest < LARGEST_SUM:
            raise UserError(f'{what} {points.shape[1]} points leave a part of the domain out, or lie on a line: no '
                            'field can be interpolated from them')
        return index, weight

    def gap(self, points):
        """The largest distance from a block to its nearest point, in cells."""
        _, offset = nearest(self.centres, points, self.shape, self.periodic, 1)
        return offset.norm(dim=-1).amax()

    def largest_sum(self, index, weight, distance=None):
        """The largest sum of absolute weights at a grid point: how far errors of values grow. With the distance
        (b, P, 1) to a wall at the points, among the grid points where it is positive."""
        ones = torch.ones(len(index), int(index.max()) + 1, 1, dtype=weight.dtype, device=weight.device)
        size = self(ones, index, weight.abs())                       # (b, *shape, 1)
        if distance is None:
            return size.amax()
        inside = self(distance.to(weight.dtype), index, weight) > 0  # (B, *shape, 1)
        if not inside.flatten(1).any(1).all():                       # of a distance that came out wrong
            return size.new_tensor(math.inf)
        return size.where(inside | ~size.isfinite(), 0.).amax()

    def left_out(self, points):
        """Stencils that predict every one of the points from the others, with T = 1."""
        return self.around(points, torch.zeros_like(points[:, :1, None]), points, 1)

    def around(self, centres, inside, points, skip, without=None):
        k = min(self.k + skip, points.shape[1])
        index, offset = nearest(centres, points, self.shape, self.periodic, k, without)
        offset = offset[..., skip:, :]
        size = offset.square().sum(-1).amax(-1).sqrt()                # (b, M)
        size = size.clamp_min(1e-6)
        size = size[..., None, None]
        return index[..., skip:], spline_weights(offset / size, inside / size)

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
