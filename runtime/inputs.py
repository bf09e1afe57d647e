"""
What a user gives to a model, checked and brought to what the model takes: fields on other grids, points,
parameters. `cfg` is a model.ModelConfig.
"""
import math
import warnings

import torch

from runtime.configurator import UserError

MAX_POINTS = 2 ** 22                   # limits of what a checkpoint may ask for: grid points or tokens,
MAX_WIDTH = 2 ** 14                    # features,
MAX_DEPTH = 2 ** 10                    # blocks


# ---------------------------------------------------------------------------------------------
# grids and points

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


def grid_points(cfg, shape):
    """Points of a grid like the trained one with `shape` points along the axes, (N, d), row-major."""
    if len(shape) != len(cfg.grid):
        raise UserError(f'a grid of {len(cfg.grid)} axes was trained, not {len(shape)}')
    axes = [axis_points(cfg, axis, n) for axis, n in enumerate(shape)]
    mesh = torch.meshgrid(*axes, indexing='ij')
    return torch.stack([axis.flatten() for axis in mesh], -1).float()


def places_to_decode(cfg, u0, points, grid, device):
    """Query points of a rollout from u0 (None: the trained grid), and the shape to which they unflatten: that
    of `points`, else of `grid`, else of u0."""
    given = grid if points is None else points
    if given is not None:
        given = torch.as_tensor(given)
        given = given[:, None] if given.ndim == 1 else given
        return query_points(cfg, given, len(u0), device), (given.shape[-2],)
    space = tuple(torch.as_tensor(u0).shape[1:-1])
    return None if space == tuple(cfg.grid) else grid_points(cfg, space).to(device), space


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
    if x is not None and d != 1:
        raise UserError('in 2D, values at points need a model with encoder=points; this one takes grids')
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
    wide = torch.float32 if device.type == 'mps' else torch.float64
    known = []
    wanted = []
    for axis, n in enumerate(space):
        known.append(axis_points(cfg, axis, n).to(wide).to(device))
        wanted.append(axis_points(cfg, axis, cfg.grid[axis]).to(wide).to(device))
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
        raise UserError(f'the {len(x)} points leave a part of the domain out: {gap:.3g} of {length:g}')


# ---------------------------------------------------------------------------------------------
# from one grid to another

def resample(u, x, to, length=None):
    """
    Cubic (Catmull-Rom) interpolation along the last axis, from points of any spacing: (..., N) -> (..., M).

    x (N,): where u is known, in any order; to (M,): where it is wanted. Periodic with period `length` where
    one is given, clamped to the outermost points otherwise. Points that both share keep their values.
    (grids.interpolate takes points anywhere in d axes, but a uniform grid.)
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
    left = torch.searchsorted(x, to + 1e-9 * (x[-1] - x[0]), right=True) - 1
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
    """u (..., *X, C) at the coordinates `axes`, one tensor per axis, -> the same at the coordinates `to`, by
    `resample` along each axis; periodic with `lengths`, if they are given."""
    for i, (x, wanted) in enumerate(zip(axes, to)):
        if not torch.equal(x, wanted):
            axis = i - len(axes) - 1
            u = resample(u.movedim(axis, -1), x, wanted, lengths and lengths[i]).movedim(-1, axis)
    return u


# ---------------------------------------------------------------------------------------------
# parameters

def parameter_values(cfg, params):
    """The value of each parameter of the equation, in the order of cfg.params: that of `params` {name: number
    or (B,)}, else the first of the training. Raises UserError for an unknown name."""
    values = {name: seen[0] for name, seen in zip(cfg.params, cfg.seen_params)}
    for name, value in (params or {}).items():
        if name not in values:
            known = ', '.join(cfg.params) or 'none'
            raise UserError(f"unknown parameter '{name}': this model has {known}")
        values[name] = value
    numbers = {name: (value,) for name, value in values.items() if isinstance(value, (int, float))}
    note = unseen(cfg, numbers)
    if note:
        warnings.warn(note, stacklevel=4)
    return values


def per_sample(name, value, n_sample, device):
    """A number, or one for each sample, -> (n_sample,) float32. Raises UserError for another shape."""
    value = torch.as_tensor(value).float().to(device)
    if value.ndim > 1 or value.ndim == 1 and len(value) != n_sample:
        raise UserError(f'{name} has shape {tuple(value.shape)}; expected one value or ({n_sample},)')
    return value.expand(n_sample)


def per_member(n_members, u0, points, grid, params, dt):
    """The arguments of UPT.rollout with those that differ from sample to sample repeated for every member."""
    def repeated(value, ndim):
        if value is None or torch.as_tensor(value).ndim < ndim:
            return value                                             # shared by all samples
        return torch.as_tensor(value).repeat_interleave(n_members, 0)

    params = {name: repeated(value, 1) for name, value in (params or {}).items()}
    return repeated(u0, 1), repeated(points, 3), repeated(grid, 3), params, repeated(dt, 1)


def unseen(cfg, params):
    """A sentence about parameter values {name: numbers} that were not in the training; '' if all were."""
    notes = []
    for name, seen in zip(cfg.params, cfg.seen_params):
        new = [v for v in params.get(name, ()) if not any(math.isclose(v, s, rel_tol=1e-4) for s in seen)]
        if new:
            values = ', '.join(f'{v:g}' for v in sorted(set(new)))
            known = ', '.join(f'{s:g}' for s in seen)
            notes.append(f'{name}={values} was never seen in training ({known} was)')
    return '; '.join(notes)


# ---------------------------------------------------------------------------------------------
# sizes of a network

def divides(small, big, what):
    """Raise UserError, with the arithmetic, unless `small` divides `big`."""
    if small < 1 or big % small:
        raise UserError(f'{what}: {small} does not divide {big}')


def check_sizes(cfg):
    """Raise UserError for sizes that no network has; what a damaged checkpoint asks for is refused before
    memory is taken."""
    for name, value in vars(cfg).items():
        numbers = value if isinstance(value, tuple) else (value,)
        whole = [n for n in numbers if isinstance(n, int)]
        limit = MAX_DEPTH if name in ('depth', 'depths', 'coder_depth') else MAX_WIDTH
        if whole and not (min(whole) >= 0 or name == 'diagonal') or sum(whole) > limit:
            raise UserError(f'{name}={value} must be between 0 and {limit}')
    for name in ('grid', 'length', 'dt', 'latent_dim', 'hidden_dim', 'depth'):
        value = getattr(cfg, name)
        if min(value if isinstance(value, tuple) else (value,)) <= 0:
            raise UserError(f'{name}={value} must be positive')
    if math.prod(cfg.grid) > MAX_POINTS:
        raise UserError(f'grid={cfg.grid} has more than {MAX_POINTS} points')
    if not cfg.predicted:
        raise UserError(f'static={cfg.static} leaves no field to be predicted')
    if not 0 <= cfg.drop_path < 1:
        raise UserError(f'drop_path={cfg.drop_path} must be at least 0 and below 1')



def check_token_shift(cfg):
    if not cfg.token_shift:
        return
    off = 'set --token_shift=0'
    if not (cfg.periodic and cfg.shift_direction):
        raise UserError(f'token_shift={cfg.token_shift} needs a periodic domain without a force: {off}')
    if cfg.token_shift >= min(cfg.points_per_token):
        raise UserError(f'token_shift={cfg.token_shift} must be less than the '
                        f'{min(cfg.points_per_token)} points of a token: lower it, or {off}')
    n_value = math.prod(cfg.points_per_token) * cfg.n_field
    learned = cfg.decoder_dim or cfg.encoder_dim and cfg.encoder == 'grid'
    if n_value > cfg.latent_dim and (cfg.basis != 'components' or learned):
        raise UserError(f'token_shift={cfg.token_shift} needs tokens that hold their patch: latent_dim='
                        f'{cfg.latent_dim} must be at least {n_value}, or --basis=components without a '
                        f'learned encoder and decoder; or {off}')
