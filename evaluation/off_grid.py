"""
How a model does elsewhere: on finer grids, at random points, over longer times than the files have, and from
other input points.

What is decoded off the grid is compared with the finest field of the data file, interpolated (periodic: by
Fourier series, which is exact for a field that its cells resolve) where it has no values. On grids that are
finer than the file, and after its last frame, the truth is the built-in solver's solution. Rollouts from
other input points are scored on the grid.

A place is the shape of a grid, model.grid(*shape), or points (Q, d). Fields come with the coordinates of
their points, `axes`: one tensor an axis.
"""
import math
import time

import torch

from files import read_rows
from grids import by, fourier_interpolate, interpolate, is_strided, random_points, resample_axes, values_at
from metrics import (bounded, by_frame, conservation_gap, correlation, correlation_time, mean_nrmse, nrmse,
                     rms)
from runtime.configurator import UserError, say
from scores import predict, scored

MAX_SOLVED = 2 ** 16             # points on which a truth finer than the files is solved for, at most
POINTS = 2 ** 16                 # points decoded at a time, at most (or those of one trajectory)
VALUES = 2 ** 25                 # values of a truth in memory at a time, at most (or one trajectory): 134 MB
PLACEMENT_SEED = 2 ** 40         # of random input points, which are not those of a batch
WEAK = 1024                      # a truth of fewer cells along an axis is a weak reference for finer grids


# ---------------------------------------------------------------------------------------------
# finer grids, random points

@torch.no_grad()
def other_places(model, sources, rows, u, params, factors, n_random, initial_step, reencode, batch_size):
    """
    nrmse of rollouts from the grid of u that are decoded at other places and compared with the true fields
    there: on 'f' times the trained grid's points along every axis, for each of the factors f, and at n_random
    points of the domain, if that is not 0. {'2': {'nrmse', 'floor'}, 'random': {'nrmse', 'floor'}}

    The floor is what cubic interpolation of the true field from the grid of u scores at the same points. It
    is a yardstick and no bound: a decoder may know more of a field than its values on a grid. Raises
    UserError, before anything is computed, where there is no truth at such points.
    """
    solver_grids = {source.path: grid_to_solve(model, source, factors) for source in sources}
    coarsest = min(solver_grids[sources[0].path] or sources[0].shape)
    if factors and coarsest < WEAK:
        say(f'eval: warning: the finest solution has {coarsest} cells only, a weak reference below {WEAK}')
    places = {str(f): multiple(model.cfg, f) for f in factors}
    if n_random:
        random = torch.Generator().manual_seed(0)
        places['random'] = random_points(n_random, model.cfg, random)
    points = [points_of(model, place) for place in places.values()]
    sizes = [len(q) for q in points]
    points = torch.cat(points)                                       # one rollout serves all places
    largest = max(len(points), *[math.prod(source.shape) for source in sources])
    batch_size = min(batch_size, max(1, POINTS // len(points)))
    axes = grid_axes(model, u.shape[2:-1])
    found = {name: {'nrmse': 0., 'floor': 0.} for name in places}
    for source, some, here in portions(sources, rows, u.shape[1] * largest * model.cfg.n_field):
        own = {name: value[here] for name, value in params.items()}
        share = len(some) / len(u)
        known = u[here, initial_step:]
        p = predict(model, u[here], own, initial_step, batch_size, reencode, points)
        truths = true_fields(model, source, some, u.shape[1], solver_grids[source.path], places)
        for (name, place), p_there in zip(places.items(), p.split(sizes, 2)):
            y = scored(model, truths[name][:, initial_step:])
            floor = at_place(model, known, axes, place, exact=False)
            found[name]['nrmse'] += share * mean_nrmse(scored(model, p_there), y)
            found[name]['floor'] += share * mean_nrmse(scored(model, floor), y)
    return found


def multiple(cfg, factor):
    """The trained grid with `factor` times the points along every axis."""
    return tuple(factor * n for n in cfg.grid)


def points_of(model, place):
    return model.grid(*place) if isinstance(place, tuple) else place


def portions(sources, rows, row_values):
    """Some rows at a time, so that row_values numbers of each fit into memory. Yields (source, range of its
    rows, slice of these in the rows of all files)."""
    at_once = max(1, VALUES // row_values)
    total = len(sources) * len(rows)
    last = time.perf_counter()
    for number, source in enumerate(sources):
        for first in range(0, len(rows), at_once):
            some = rows[first:first + at_once]
            start = number * len(rows) + first
            here = slice(start, start + len(some))
            yield source, some, here
            if time.perf_counter() - last > 10:
                say(f'eval: compared with their truth {here.stop}/{total} {here.stop / total:.0%}')
                last = time.perf_counter()


# ---------------------------------------------------------------------------------------------
# rollouts longer than the files

@torch.no_grad()
def long_rollouts(model, sources, rows, u, params, horizon, initial_step, reencode, batch_size):
    """
    How rollouts fare that end at `horizon` times the time of the last frame of u (N, T, *grid, C).

    Returns {'horizon', 'steps', 'seconds', 'finite', 'bounded', 'rms_growth', 'integral_drift'}: the
    fractions of trajectories whose every value is finite, and whose rms is at most twice the largest of the
    truth at all times; rms at the end over rms of the last given frame; and how far the integrals that the
    equation conserves are at the end from what they were then (conservation_gap; only if there are any).
    Where the built-in solver has the truth, from the files' first frames, also {'nrmse', 'nrmse_end',
    'correlation_time', 'true_rms_growth', 'per_step'}; else the size of the files' frames is what counts.
    """
    cfg = model.cfg
    n_frames = horizon * (u.shape[1] - 1) + 1
    n_steps = n_frames - initial_step
    grid = u.shape[2:-1]
    is_solved = all(source.entry.solve for source in sources)
    if not is_solved:
        say(f'eval: {cfg.pde} has no built-in solver, so there is no truth of long rollouts: only their size '
            'is reported')
    shapes = [grid, *[source.shape for source in sources]]
    cells = max(math.prod(shape) for shape in shapes)
    found = {}

    def note(name, value):
        found.setdefault(name, []).append(value)

    for source, some, here in portions(sources, rows, n_frames * cells * cfg.n_field):
        own = {name: value[here] for name, value in params.items()}
        p = predict(model, u[here], own, initial_step, batch_size, reencode, n_steps=n_steps)
        start = u[here, initial_step - 1:initial_step]
        kept = [source.fields.index(name) for name in source.entry.conserved]
        if kept:
            gap = conservation_gap(p[:, -1:, ..., kept].double(), start[..., kept].double())
            note('integral_drift', gap)
        y = u[here]
        if is_solved:
            y = long_truth(model, source, some, grid, n_frames)
        p = scored(model, p)
        y = scored(model, y)
        size = by_frame(rms, p)
        true_size = by_frame(rms, y)
        start_size = by_frame(rms, scored(model, start))
        note('finite', size.isfinite().all(2).all(1))
        note('bounded', bounded(size, true_size.amax(1)))
        note('rms_growth', size[:, -1:] / start_size)
        if is_solved:
            y = y[:, initial_step:]
            note('true_rms_growth', true_size[:, -1:] / start_size)
            note('per_step', by_frame(nrmse, p, y))
            likeness = by_frame(correlation, p, y)
            note('correlation_time', correlation_time(likeness, cfg.dt))
    found = {name: torch.cat(values).double() for name, values in found.items()}
    scores = {name: float(value.mean()) for name, value in found.items()}
    if is_solved:
        steps = found['per_step'].mean((0, 2)).tolist()
        scores.update(nrmse=scores['per_step'], nrmse_end=steps[-1], per_step=steps)
    return {'horizon': horizon, 'steps': n_steps, 'seconds': n_steps * cfg.dt, **scores}


# ---------------------------------------------------------------------------------------------
# input points

def unseen_points(model, n):
    """n random points, other ones than those of any batch: (n, d)"""
    return random_points(n, model.cfg, torch.Generator().manual_seed(PLACEMENT_SEED + n))


def placements(model, u, params, densities, initial_step, reencode, batch_size):
    """nrmse on the grid of u of rollouts from so many random points, other ones than those of any batch:
    {'n': {'nrmse'}}."""
    y = scored(model, u[:, initial_step:])
    found = {}
    for n in sorted(set(densities)):
        p = predict(model, u, params, initial_step, batch_size, reencode, at=unseen_points(model, n))
        found[str(n)] = {'nrmse': mean_nrmse(scored(model, p), y)}
    return found


# ---------------------------------------------------------------------------------------------
# the truth: of a file, or of the built-in solver

def grid_to_solve(model, source, factors):
    """The grid on which the built-in solver has to find the truth, for factors that need more points than a
    file has cells: that of the largest factor, or the finest that has at most MAX_SOLVED points. None if the
    file is as fine. Says what is done. Raises UserError for points that nothing has the truth of."""
    cfg = model.cfg
    finer = []
    for factor in factors:
        shape = multiple(cfg, factor)
        if factor >= 1 and is_strided(shape, source.shape):
            continue
        why = None
        if any(n < cells for n, cells in zip(shape, source.shape)):
            why = 'its solution has no values there'
        elif source.entry.solve is None:
            why = f'there is no built-in solver for {source.pde} that could give a finer solution'
        if why:
            raise UserError(f'--superres {factor} needs {factor} x {by(cfg.grid)} = {by(shape)} points, '
                            f"which do not divide the {by(source.shape)} cells of '{source.path}': {why}")
        finer.append(factor)
    if not finer:
        return None
    factor = max(finer)
    while math.prod(multiple(cfg, factor)) > MAX_SOLVED:
        factor -= 1
    shape = multiple(cfg, factor)
    needed = ', '.join(by(multiple(cfg, factor)) for factor in finer)
    cells = f"the {by(source.shape)} cells of '{source.path}'"
    said = f'eval: {needed} points are more than {cells}: compared with'
    if math.prod(shape) <= math.prod(source.shape):
        say(f'{said} its values, interpolated, because no more than {MAX_SOLVED} points are solved for')
        return None
    say(f"{said} solvers.py's solution on {by(shape)} points from its first frames")
    if factor < max(finer):
        say(f'eval: no more than {MAX_SOLVED} points are solved for: on finer grids this is interpolated')
    return shape


def true_fields(model, source, rows, n_frames, solver_grid, places):
    """The true fields at places, {name: (N, n_frames, points, C)}: those of the file, or of the built-in
    solver on `solver_grid`, where that is given, for a grid that the file's cells do not have."""
    u = torch.from_numpy(read_rows(source, rows, source.time_stride(model.cfg.dt)))
    file = u[:, :n_frames], grid_axes(model, source.shape)           # (N, T, *X, C), and where
    solution = solved(model, source, u[:, 0], solver_grid, n_frames) if solver_grid else file
    truths = {}
    for name, place in places.items():
        from_file = not isinstance(place, tuple) or is_strided(place, source.shape)
        known, axes = file if from_file else solution
        truths[name] = at_place(model, known, axes, place, exact=True)
    return truths


def long_truth(model, source, rows, grid, n_frames):
    """The built-in solver's solution on a grid, (N, n_frames, *grid, C), from first frames of a file."""
    u0 = torch.from_numpy(read_rows(source, rows, source.n_frames)[:, 0])
    u, axes = solved(model, source, u0, source.shape, n_frames)
    return resolved(model, u, axes, grid_axes(model, grid))


def solved(model, source, u0, cells, n_frames):
    """The built-in solver's solution from a file's first frames u0 (N, *X, C): the first n_frames at the
    trained time step, (N, n_frames, *cells, C), and the coordinates of the cells, which are the solver's."""
    u0, axes = on_solver_axes(model, source.entry, u0, grid_axes(model, source.shape), cells)
    t = [k * model.cfg.dt for k in range(n_frames)]
    return source.entry.solution(u0, source.params, t).float(), axes


def on_solver_axes(model, entry, u, axes, cells):
    """u (B, *X, C) at the coordinates `axes` -> the same on the solver's `cells`, and their coordinates."""
    fine_axes = solver_axes(model, entry, cells)
    fine = resolved(model, u, axes, fine_axes)
    for field, name in enumerate(entry.fields):
        if name in entry.positive:                                   # interpolation overshoots beside a jump
            known = u[..., field]
            fine[..., field].clamp_(known.min(), known.max())
    return fine, fine_axes


def solver_axes(model, entry, cells):
    """Coordinates along each axis of the solver's cells: their centres. Where all places are alike, these may
    be called by the coordinates of the model's grid, and nothing has to be interpolated."""
    if entry.translates:
        return grid_axes(model, cells)
    axes = []
    for low, length, n in zip(entry.low, entry.length, cells):
        fraction = (torch.arange(n, dtype=torch.float64) + .5) / n
        axes.append((low + length * fraction).float())
    return axes


# ---------------------------------------------------------------------------------------------
# fields at other coordinates

def at_place(model, u, axes, place, exact):
    """u (N, T, *X, C) at the coordinates `axes` -> at a place, (N, T, points, C), by `resolved` and the like
    if `exact`, else by cubic interpolation."""
    if not isinstance(place, tuple):
        return at_points(model, u, axes, place, exact)
    to_grid = resolved if exact else moved
    return to_grid(model, u, axes, grid_axes(model, place)).flatten(2, -2)


def at_points(model, u, axes, points, exact=True):
    """u (N, T, *X, C) at the coordinates `axes` -> at points (Q, d), (N, T, Q, C): on a periodic domain, if
    `exact`, by trigonometric interpolation, which is exact for a field that its grid resolves, else by
    cubic."""
    cfg = model.cfg
    shape = tuple(len(x) for x in axes)
    first = [float(x[0]) for x in axes]
    points = points.double()
    width = max(4 ** len(shape), math.prod(shape[1:]))               # values that each point takes at a time
    at_once = max(1, VALUES // (len(points) * width * cfg.n_field))
    found = []
    for frames in u.flatten(0, 1).split(at_once):
        if exact:
            values = values_at(frames, points, first, cfg.length, cfg.periodic)
        else:
            values = interpolate(frames.flatten(1, -2), points, shape, first, cfg.length, cfg.periodic)
        found.append(values.float())
    return torch.cat(found).unflatten(0, u.shape[:2])


def moved(model, u, axes, to):
    """u (..., *X, C) at the coordinates `axes`, one tensor an axis, -> the same at the coordinates `to`, by
    cubic interpolation along each axis. Points that both have keep their values."""
    return resample_axes(u, axes, to, model.cfg.length if model.cfg.periodic else None)


def resolved(model, u, axes, to):
    """`moved` for fields that their grid resolves, as first frames and fine solutions are: on a periodic
    domain by trigonometric interpolation, which is exact then."""
    if not model.cfg.periodic:
        return moved(model, u, axes, to)
    for i, (x, wanted) in enumerate(zip(axes, to)):
        axis = i - len(axes) - 1
        u = u.movedim(axis, -2)                                      # (..., n, C)
        every = max(1, len(x) // len(wanted))
        length = model.cfg.length[i]
        if agree(x[::every], wanted, 1e-3 * length / len(x)):
            u = u[..., ::every, :]
        else:
            rows = u.flatten(0, -3)
            new = fourier_interpolate(rows, wanted[:, None].double(), (len(x),), (float(x[0]),), (length,))
            u = new.unflatten(0, u.shape[:-2])
        u = u.movedim(-2, axis)
    return u


def agree(x, y, tolerance):
    return len(x) == len(y) and bool((x - y).abs().max() < tolerance)


def grid_axes(model, shape):
    """Coordinates along each axis of model.grid(*shape), a list of tensors."""
    return [axis_points(model, axis, n) for axis, n in enumerate(shape)]


def axis_points(model, axis, n):
    """Coordinates (n,) along one axis of model.grid with n points there."""
    shape = [1] * len(model.cfg.grid)
    shape[axis] = n
    return model.grid(*shape)[:, axis]
