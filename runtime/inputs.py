"""
What a user gives to a model, checked and brought to what the model takes: arrays of any kind, fields on other
grids, points, parameters. `cfg` is a model.ModelConfig.

`like` is a tensor of the model: results have its type and lie on its device. Values are checked where that
makes no GPU wait, and not while torch.export or torch.compile traces a program.
"""
import math
import operator
import sys
import warnings
from collections.abc import Mapping

import numpy as np
import torch

from grids import cubic_kernel, interpolate
from runtime.configurator import UserError, say

MAX_POINTS = 2 ** 22                   # limits of what a checkpoint may ask for: grid points or tokens,
MAX_WIDTH = 2 ** 14                    # features,
MAX_DEPTH = 2 ** 10                    # blocks


# ---------------------------------------------------------------------------------------------
# arrays and numbers

def as_numbers(what, value):
    """
    Real numbers, as a user gives them -> a tensor with the same values.

    value: a tensor (gradients flow through it), what numpy makes an array of (with any type of number, byte
    order and strides), or nested lists of these. Raises UserError, which names `what`, for other types (bool,
    complex, text), for lists of unequal length, and for masked values.
    """
    if isinstance(value, torch.Tensor):
        if value.dtype == torch.bool or value.is_complex():
            raise UserError(f'{what} holds values of type {value.dtype}; expected real numbers')
        if value.is_nested or value.is_quantized:
            raise UserError(f'{what} is a nested or quantized tensor; expected an ordinary one')
        return value.to_dense() if value.is_sparse else value
    try:
        if type(value) in (int, float):                              # the usual case, which can be traced
            return torch.tensor(float(value), dtype=torch.float64, device='cpu')
        if isinstance(value, (list, tuple)) and holds(value, (torch.Tensor, np.ma.MaskedArray)):
            return torch.stack([as_numbers(what, row) for row in value])
        array = np.asanyarray(value)
    except UserError:
        raise
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        reason = str(error).partition('\n')[0]
        raise UserError(f'{what} is no array of numbers: {reason}') from error
    if array.dtype.kind not in 'iuf':
        raise UserError(f'{what} holds values of type {array.dtype}; expected real numbers')
    n_masked = np.ma.count_masked(array) if np.ma.isMaskedArray(array) else 0
    if n_masked:
        raise UserError(f'{n_masked} of {array.size} values of {what} are masked: fill them in first')
    known = array.dtype.kind == 'f' and array.dtype.itemsize <= 8    # not integers and long doubles
    dtype = array.dtype.newbyteorder('=') if known else np.float64
    return torch.from_numpy(np.array(array, dtype, order='C'))       # a copy: it may be read-only or flipped


def holds(value, kinds):
    """Is there an object of some kinds in nested lists?"""
    if isinstance(value, (list, tuple)):
        return any(holds(part, kinds) for part in value)
    return isinstance(value, kinds)


def readable(x):
    """May the values of a tensor be looked at?"""
    return x.device.type == 'cpu' and not torch.compiler.is_compiling()


def check_finite(what, x):
    finite = torch.isfinite(x)
    if not finite.all():
        n_bad = x.numel() - int(finite.sum())
        raise UserError(f'{what} holds values that are not finite as {x.dtype}: {n_bad} of {x.numel()}')


def whole(what, value, least):
    """A whole number of at least `least`. Raises UserError."""
    try:
        number = operator.index(value)
    except (TypeError, ValueError, RuntimeError):                    # torch has two for its tensors
        number = None
    if number is None or isinstance(value, bool) or number < least:
        given = ' '.join(str(value).split())
        raise UserError(f'{what}={given} must be a whole number of at least {least}')
    return number


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
    return first + cell * torch.arange(n, dtype=torch.float64, device='cpu')


def grid_points(cfg, shape):
    """Points of a grid like the trained one with `shape` points along the axes, (N, d), row-major. Raises
    UserError for another number of axes, and for what is no number of points."""
    if len(shape) == 1 and np.ndim(shape[0]) == 1:
        [shape] = shape
    if len(shape) != len(cfg.grid):
        raise UserError(f'a grid of {len(cfg.grid)} axes was trained, not {len(shape)}')
    axes = [axis_points(cfg, axis, whole('points along an axis', n, 1)) for axis, n in enumerate(shape)]
    mesh = torch.meshgrid(*axes, indexing='ij')
    return torch.stack([axis.flatten() for axis in mesh], -1).float()


def places_to_decode(cfg, u0, points, grid, like):
    """Query points of a rollout from u0 (None: the trained grid), and the shape to which they unflatten: that
    of `points`, else of `grid`, else of u0."""
    what = 'grid' if points is None else 'points'
    given = grid if points is None else points
    if given is not None:
        q = query_points(cfg, given, u0.shape[0], like, what)
        return q, (q.shape[-2],)
    space = tuple(u0.shape[1:-1])
    return None if space == tuple(cfg.grid) else grid_points(cfg, space).to(like), space


def query_points(cfg, points, n_sample, like, what='points'):
    """Points (Q, d), in 1D also (Q,), or (B, Q, d) for B = n_sample samples -> in double precision, where the
    device has that. Raises UserError for a wrong shape and for points outside the domain; a GPU is waited for
    if they lie there."""
    d = len(cfg.grid)
    q = as_numbers(what, points)
    q = q[:, None] if q.ndim == d == 1 else q
    if q.ndim not in (2, 3) or q.shape[-1] != d:
        raise UserError(f'{what} has shape {tuple(q.shape)}; expected (Q, {d}) or (B, Q, {d})')
    if q.ndim == 3 and q.shape[0] != n_sample:
        raise UserError(f'there are points for {q.shape[0]} samples and latents for {n_sample}')
    q = q.to(torch.float32 if q.device.type == 'mps' else torch.float64)
    if not torch.compiler.is_compiling():
        check_finite(what, q)
        check_inside(cfg, q)
    if like.device.type == 'mps':
        q = q.float()
    return q.to(like.device)


def check_inside(cfg, q):
    """Raise UserError where points q (..., d) lie outside the walls of the domain."""
    if cfg.periodic:
        return
    for axis, (low, length) in enumerate(zip(cfg.low, cfg.length)):
        rounding = 1e-6 * length
        x = q[..., axis]
        if ((x < low - rounding) | (x > low + length + rounding)).any():
            raise UserError(f'some query points lie outside the domain, {low:g} to {low + length:g} '
                            f'along axis {axis}')


def checked_fields(cfg, u, like, at_points=False):
    """Fields u (B, *space, C), or values (B, P, C) at points -> the same as a tensor. Raises UserError for a
    wrong shape and for values that are not finite."""
    u = as_numbers('u', u)
    shape = tuple(u.shape)
    axes = ['P'] if at_points else ['X', 'Y'][:len(cfg.grid)]
    n_axis = len(axes) + 2
    n_field = cfg.n_field
    if len(shape) != n_axis or shape[-1] != n_field:
        hint = f"{n_field} field(s), {' '.join(cfg.fields)}, last"
        if len(shape) == n_axis and shape[1] == n_field:
            hint = 'the fields are the last axis: numpy.moveaxis(u, 1, -1)'
        elif len(shape) == n_axis - 1:
            hint = 'add the batch: u[None]' if shape[-1] == n_field else 'add the fields: u[..., None]'
        elif len(shape) == n_axis - 2 and n_field == 1:
            hint = 'add the batch and the fields: u[None, ..., None]'
        raise UserError(f"u has shape {shape}; expected (B, {', '.join(axes)}, {n_field}): {hint}")
    if min(shape[1:-1]) < 2:
        raise UserError(f'u has shape {shape}: a field needs at least 2 points along an axis')
    u = u.to(like.dtype)
    moved = u.to(like.device)
    seen = u if readable(u) else moved
    if readable(seen):
        check_finite('u', seen)
    return moved


def to_trained_grid(cfg, u, x, like):
    """
    Fields u (B, *space, C) -> the same on the trained grid, (B, *grid, C), by cubic interpolation. Points
    that both grids share keep their values.

    x: coordinates (N,) or (N, 1) of u in 1D, in any order; None if u is on a grid like the trained one
    (axis_points). Raises UserError for a wrong shape, values that are not finite, and points that leave out a
    third of the domain.
    """
    if x is not None and len(cfg.grid) != 1:
        raise UserError('in 2D, values at points need a model with encoder=points; this one takes grids')
    u = checked_fields(cfg, u, like)
    space = tuple(u.shape[1:-1])
    wide = torch.float32 if like.device.type == 'mps' else torch.float64
    known = []
    wanted = []
    for axis, n in enumerate(cfg.grid):
        wanted.append(axis_points(cfg, axis, n).to(wide).to(like.device))
        same = x is None and space[axis] == n
        known.append(wanted[axis] if same else axis_points(cfg, axis, space[axis]).to(wide).to(like.device))
    if x is not None:
        x = query_points(cfg, x, 1, like, 'grid')
        if x.ndim != 2 or len(x) != space[0]:
            raise UserError(f'grid has shape {tuple(x.shape)}: there are {x.shape[-2]} coordinates for '
                            f'{space[0]} values')
        known = [x[:, 0]]
        if not torch.compiler.is_compiling():
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
    gap = float(torch.cat(ends).detach().diff().max())
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
    return curve.to(u.dtype)


def resample_axes(u, axes, to, lengths=None):
    """u (..., *X, C) at the coordinates `axes`, one tensor per axis, -> the same at the coordinates `to`, by
    `resample` along each axis; periodic with `lengths`, if they are given."""
    for i, (x, wanted) in enumerate(zip(axes, to)):
        if x is wanted:
            continue
        if torch.compiler.is_compiling() or not torch.equal(x, wanted):
            axis = i - len(axes) - 1
            u = resample(u.movedim(axis, -1), x, wanted, lengths and lengths[i]).movedim(-1, axis)
    return u


def translated(u, distance, shape, length):
    """
    Periodic grid values, moved by any distance: grids.interpolate at the grid points less the distance, but some
    ten times faster, since all points of a sample have the same weights.

    u (B, N, C) on the grid `shape`; distance (B, d), in units of `length`. Returns (B, N, C).
    """
    N = u.shape[1]
    u = u.unflatten(1, shape)
    for axis, n in enumerate(shape, 1):
        cells = (distance[:, axis - 1] / length[axis - 1] * n) % n
        whole = cells.floor()
        each = [-1] + [1] * (u.ndim - 1)
        part = (cells - whole).view(each)
        each[axis] = n
        index = (torch.arange(n, device=u.device) - whole.long()[:, None]) % n
        u = u.gather(axis, index.view(each).expand_as(u))
        u = sum(cubic_kernel(step + part) * u.roll(-step, axis) for step in range(-2, 2))
    return u.reshape(-1, N, u.shape[-1])


def fourier_interpolate(u, q, shape, first, length):
    """
    Trigonometric interpolation of a periodic field at any points: exact where the grid resolves the field.

    u (B, *shape, C) on the grid that starts at `first`; q (Q, d) or (B, Q, d) physical coordinates. Returns
    (B, Q, C). Along an axis of n points, x cells from one of them, its weight is sin(pi x) / (n tan(pi x/n)),
    or with sin in the place of tan for odd n.
    """
    letters = 'xy'[:len(shape)]
    points = 'q' if q.ndim == 2 else 'bq'
    result = None
    for axis, n in enumerate(shape):
        cells = (q[..., axis] - first[axis]) / length[axis] * n
        nearest = cells.round()
        part = (cells - nearest)[..., None]                          # (..., Q, 1), at most a half
        away = nearest[..., None] - torch.arange(n, device=q.device)
        away = (away + n // 2) % n - n // 2                          # (..., Q, n), the shorter way round
        angle = math.pi * (away + part) / n
        sign = 1 - 2 * (away % 2)
        wave = sign * (math.pi * part).sin()                         # sin(pi x), also where x is large
        below = n * (angle.sin() if n % 2 else angle.tan())
        is_point = below == 0
        weight = wave / below.masked_fill(is_point, 1.)
        weight = torch.where(is_point, 1., weight).to(u.dtype)
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


# ---------------------------------------------------------------------------------------------
# parameters

def conditions(cfg, params, dt, n_sample, like):
    """
    Time step (B,) and parameters (B, P), in the order of cfg.params, of B = n_sample samples.

    params: {name: number or (B,)}, dt: number or (B,); those not given are the first of the training. Raises
    UserError for an unknown name, a wrong shape, values that are not finite and dt <= 0. Warns of values that
    were never seen in training.
    """
    given = {} if params is None else params
    if not isinstance(given, Mapping):
        raise UserError(f'params is a {type(given).__name__}; expected a dict of parameters')
    for name in given:
        if name not in cfg.params:
            known = ', '.join(cfg.params) or 'none'
            raise UserError(f"unknown parameter '{name}': this model has {known}")
    if dt is not None:
        given = {'dt': dt, **given}
    given = {name: per_sample(name, value, n_sample) for name, value in given.items()}
    values = {name: value.detach().double().unique().tolist() for name, value in given.items()
              if readable(value)}
    if min(values.get('dt') or [1.]) <= 0:
        raise UserError(f"dt={values['dt'][0]:g} must be positive")
    note = unseen(cfg, values)
    if note:
        warnings.warn(note, stacklevel=users_level())
    columns = []
    for name, seen in trained_values(cfg).items():
        value = given.get(name)
        if value is None:
            columns.append(like.new_full((n_sample,), seen[0]))
        elif value.ndim == 0 and readable(value) and not value.requires_grad:
            columns.append(like.new_full((n_sample,), float(value)))           # no GPU waits for it
        else:
            columns.append(value.to(like.dtype).to(like.device).expand(n_sample))
    return columns[0], torch.stack(columns, 1)[:, 1:]


def users_level():
    """The stacklevel with which warnings.warn names the line that called the model."""
    level = 1
    frame = sys._getframe(1)
    while frame.f_back and frame.f_globals['__name__'].partition('.')[0] in ('model', 'runtime', 'torch'):
        frame = frame.f_back
        level += 1
    return level


def trained_values(cfg):
    """The values that were seen in training, {'dt': (seconds,), 'Nu': (.01, .001)}; the first is the
    default."""
    return {'dt': (cfg.dt, *cfg.other_dt), **dict(zip(cfg.params, cfg.seen_params))}


def per_sample(name, value, n_sample):
    """A number, or one for each sample -> a tensor (), (1,) or (n_sample,). Raises UserError for another
    shape and for what is not finite."""
    value = as_numbers(name, value)
    if value.ndim > 1 or value.ndim == 1 and value.shape[0] not in (1, n_sample):
        raise UserError(f'{name} has shape {tuple(value.shape)}; expected one value or ({n_sample},)')
    if readable(value):
        check_finite(name, value)
    return value


def per_member(n_members, u0, points, grid, params, dt):
    """The arguments of UPT.rollout with those that differ from sample to sample repeated for every member."""
    def repeated(what, value, ndim):
        if value is None:
            return None
        value = as_numbers(what, value)
        return value if value.ndim < ndim else value.repeat_interleave(n_members, 0)

    if isinstance(params, Mapping):
        params = {name: repeated(name, value, 1) for name, value in params.items()}
    return (repeated('u', u0, 1), repeated('points', points, 3), repeated('grid', grid, 3), params,
            repeated('dt', dt, 1))


def unseen(cfg, params):
    """A sentence about values {name: numbers} of parameters, or of 'dt', that were not in the training; '' if
    all were."""
    notes = []
    for name, seen in trained_values(cfg).items():
        new = {v for v in params.get(name, ()) if not any(math.isclose(v, s, rel_tol=1e-4) for s in seen)}
        if new:
            values = ', '.join(f'{v:g}' for v in sorted(new)[:4])
            more = f' and {len(new) - 4} more' if len(new) > 4 else ''
            known = ', '.join(f'{s:g}' for s in seen)
            notes.append(f'{name}={values}{more} was never seen in training ({known} was)')
    return '; '.join(notes)


def say_unseen(begin, cfg, params):
    """Print what `unseen` says, once for a script: the warnings of the model would say it again."""
    note = unseen(cfg, params)
    if note:
        say(f'{begin}{note}')
        warnings.filterwarnings('ignore', '.*was never seen in training')


# ---------------------------------------------------------------------------------------------
# latents and noise

def checked_latent(cfg, z, like, places):
    """A model.Latent as the model takes it: fields and tokens of the type of `like`, the offset of that of
    `places`. Raises UserError for what is none, and for that of a model with other sizes."""
    expected = {'tokens': (math.prod(cfg.token_grid), cfg.latent_dim), 'mean': (cfg.n_field,),
                'offset': (len(cfg.grid),)}
    if getattr(z, '_fields', ()) != (*expected, 'distance'):
        raise UserError(f'expected a Latent, as encode and step return it, not {type(z).__name__}')
    if cfg.domain:
        expected['distance'] = (math.prod(cfg.grid), 1)
    for name, sizes in expected.items():
        found = tuple(getattr(z, name).shape)
        if found != (z.tokens.shape[0], *sizes):
            wanted = ', '.join(map(str, ('B', *sizes)))
            raise UserError(f'z is the Latent of another model: its {name} has shape {found}; expected '
                            f'({wanted})')
    return z._replace(tokens=z.tokens.to(like), mean=z.mean.to(like), offset=z.offset.to(places),
                      distance=z.distance.to(like))


def noise_of(seed, like):
    """A function (*shape) -> Gaussian numbers, which depend on the seed alone."""
    seed = whole('seed', seed, 0)
    if seed >= 2 ** 64:
        raise UserError(f'seed={seed} must be below 2**64')
    generator = torch.Generator('cpu').manual_seed(seed)

    def draw(*shape):
        drawn = torch.randn(*shape, generator=generator, dtype=torch.float32, device='cpu')
        return drawn.to(like, non_blocking=True)

    return draw


# ---------------------------------------------------------------------------------------------
# sizes of a network

def divides(small, big, what):
    """Raise UserError, with the arithmetic, unless `small` divides `big`."""
    if small < 1 or big % small:
        raise UserError(f'{what}: {small} does not divide {big}')


def check_sizes(cfg):
    """Raise UserError for sizes that no network has or that do not fit together; what a damaged checkpoint
    asks for is refused before memory is taken."""
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
    for n, s in zip(cfg.grid, cfg.token_grid):
        divides(s, n, f'latent_tokens must divide the {n} grid points of an axis')
    if cfg.galilean and not (cfg.translation_invariant and len(cfg.velocity) == len(cfg.grid)):
        raise UserError('a moving frame needs a periodic domain without a force and a velocity along every '
                        'axis: --moving_frame=false')
    check_token_shift(cfg)


def token_grid(grid, n):
    """Latent tokens along each axis of a grid, n of them along the one with the fewest points."""
    return tuple(n * points // min(grid) for points in grid)


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
