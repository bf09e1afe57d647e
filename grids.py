"""
Points, grids and interpolation, in any number of axes: what model.py and those who use it need of geometry.

A field (B, *grid, C) is flattened to (B, N, C) row-major, the last axis running fastest. Positions are fractions of the
domain where they say so, and physical coordinates otherwise.
"""
import torch


def positions(grid, first, spacing):
    """Centres of a row-major grid that starts at `first` (one number an axis). -> (S, d) float32"""
    axes = [first[i] + spacing[i] * torch.arange(n, dtype=torch.float64) for i, n in enumerate(grid)]
    mesh = torch.meshgrid(*axes, indexing='ij')
    return torch.stack([axis.flatten() for axis in mesh], -1).float()


def merge_tokens(x, grid, factors):
    """Concatenate the features of factors[i] neighbours along axis i. (B, S, D) -> (B, S / prod f, prod f D)"""
    d = len(grid)
    sizes = []
    for n, factor in zip(grid, factors):
        sizes += [n // factor, factor]
    x = x.unflatten(1, sizes)                                        # (B, n1/f1, f1, n2/f2, f2, D)
    coarse = range(1, 2 * d, 2)
    fine = range(2, 2 * d + 1, 2)
    x = x.permute(0, *coarse, *fine, 2 * d + 1)                      # (B, n1/f1, n2/f2, f1, f2, D)
    return x.flatten(d + 1).flatten(1, d)


def split_tokens(x, grid, factors):
    """The inverse of merge_tokens; `grid` is the fine one. (B, S / prod f, prod f D) -> (B, S, D)"""
    d = len(grid)
    x = x.unflatten(1, [n // factor for n, factor in zip(grid, factors)])
    x = x.unflatten(-1, (*factors, -1))                              # (B, n1/f1, n2/f2, f1, f2, D)
    order = [0]
    for axis in range(1, d + 1):
        order += [axis, axis + d]
    return x.permute(*order, 2 * d + 1).flatten(1, 2 * d)


def neighbours(q, shape, first, length, periodic, reach):
    """
    The K = (2 reach)^d cells of a grid that are nearest to query points.

    q (..., Q, d): physical coordinates. shape: cells along each axis; first: centre of the first one; length: extent of
    the domain. Returns
        index (..., Q, K): row-major number of the cell,
        inside (..., Q, K): whether the domain has it; beyond a wall, the last cell is repeated,
        offset (..., Q, K, d): distance of q from its centre, in cells,
        clamped (..., Q, K, d): the same for q moved to the outermost centres.
    """
    d = q.shape[-1]
    steps = torch.arange(1 - reach, 1 + reach, device=q.device)
    steps = torch.cartesian_prod(*[steps] * d).view(-1, d)           # (K, d)
    index = 0
    inside = True
    offsets = []
    clamped = []
    for axis, n in enumerate(shape):
        s = (q[..., axis, None] - first[axis]) / (length[axis] / n)  # (..., Q, 1) in cells
        near = s if periodic else s.clamp(0, n - 1)
        cell = near.floor() + steps[:, axis]                         # (..., Q, K)
        here = cell % n if periodic else cell.clamp(0, n - 1)
        index = index * n + here.long()
        inside = inside & (periodic | ((cell >= 0) & (cell < n)))
        offsets.append(s - cell)
        clamped.append(near - cell)
    return index, inside, torch.stack(offsets, -1), torch.stack(clamped, -1)


def cubic_kernel(t):
    """Weight of a grid point at distance t (in grid spacings): cubic convolution (Keys 1981), which is once
    continuously differentiable and exact on quadratics."""
    t = t.abs()
    near = (1.5 * t - 2.5) * t * t + 1
    far = ((-.5 * t + 2.5) * t - 4) * t + 2
    return torch.where(t < 1, near, torch.where(t < 2, far, 0.))


def interpolate(u, q, shape, first, length, periodic):
    """
    Cubic interpolation of grid values at any points, at a cost that does not grow with the grid.

    u (B, N, C) on the grid `shape` that starts at `first`; q (Q, d) or (B, Q, d) physical coordinates.
    Returns (B, Q, C). Its four points an axis are those of cubic_kernel; next to a wall, fewer.
    """
    index, inside, offset, _ = neighbours(q, shape, first, length, periodic, 2)
    weight = cubic_kernel(offset).prod(-1) * inside                  # (..., Q, 4^d)
    weight = (weight / weight.sum(-1, keepdim=True))[..., None]
    if q.ndim == 2:                                                  # the same points for the whole batch
        rows = u.transpose(0, 1).flatten(1)[index]                   # (Q, 4^d, B C)
        return (rows * weight).sum(1).unflatten(-1, (len(u), -1)).transpose(0, 1)
    rows = u.gather(1, index.flatten(1)[..., None].expand(-1, -1, u.shape[-1]))
    return (rows.unflatten(1, index.shape[1:]) * weight).sum(2)


def resample(u, x, to, length=None):
    """
    Cubic (Catmull-Rom) interpolation along the last axis, from points of any spacing: (..., N) -> (..., M).

    x (N,): where u is known, in any order; to (M,): where it is wanted. Periodic with period `length` where one is
    given, clamped to the outermost points otherwise. Points that both share keep their values. (interpolate, above,
    takes points anywhere in d axes, but a uniform grid.)
    """
    wide = torch.float32 if x.device.type == 'mps' else torch.float64
    order = torch.argsort(x)
    x = x[order].to(wide)
    u = u[..., order]
    to = to.to(wide)
    n = len(x)
    if length is None:
        to = to.clamp(x[0], x[-1])
        left = (torch.searchsorted(x, to + 1e-9, right=True) - 1).clamp(0, n - 2)
    else:
        to = x[0] + (to - x[0]) % length
        is_first = (x[0] + length - to).abs() < 1e-6 * length        # rounding moved it to the end
        to = torch.where(is_first, x[0], to)
        left = (torch.searchsorted(x, to + 1e-9, right=True) - 1).clamp(0, n - 1)

    points = []                                                      # the four points around `to`, and u there
    values = []
    for step in (-1, 0, 1, 2):
        i = left + step
        if length is None:
            known = i.clamp(0, n - 1)
            points.append(x[known] + (i - known) * (x[1] - x[0]))
        else:
            known = i % n
            points.append(x[known] + length * torch.div(i, n, rounding_mode='floor'))
        values.append(u[..., known].to(wide))
    x0, x1, x2, x3 = points
    y0, y1, y2, y3 = values
    h = x2 - x1
    s = ((to - x1) / h).clamp(0, 1)
    tangent1 = (y2 - y0) / (x2 - x0) * h
    tangent2 = (y3 - y1) / (x3 - x1) * h
    a = 2 * s ** 3 - 3 * s ** 2
    curve = (a + 1) * y1 - a * y2
    curve = curve + (s ** 3 - 2 * s ** 2 + s) * tangent1 + (s ** 3 - s ** 2) * tangent2
    return curve.float()
