"""
Rollouts that are decoded off the trained grid, or that start from values at random points.

The fields that are decoded on finer grids and at random points are compared with the finest field of the data
file, interpolated where it has no values. On a periodic domain the interpolation is trigonometric, which is
exact for a field that the grid resolves. On grids that are finer than the file, the truth is the solution of
the built-in solver. Rollouts that start from random points are compared on the grid.

`where` is the shape of a grid like the trained one (grid_axes) or points (Q, d). `axes` are the coordinates
of a grid's points, one tensor per axis. `cfg` is a model.ModelConfig, `task` an evaluation.load.Task.
"""
import math

import torch

from equations.common import centres
from evaluation.scores import predict, predicted_fields
from files.fit import read_placed
from files.open import opened
from grids import interpolate, is_strided, random_points, shape_text
from metrics import mean_nrmse
from runtime import extensions
from runtime.configurator import UserError, say
from runtime.inputs import axis_points, fourier_interpolate, resample_axes, values_at
from runtime.progress import Progress

MAX_SOLVED = 2 ** 16             # points on which a truth finer than the files is solved for, at most
POINTS = 2 ** 16                 # points decoded at a time, at most (or those of one trajectory)
VALUES = 2 ** 25                 # values of a truth in memory at a time, at most (or one trajectory): 134 MB
INPUT_SEED = 2 ** 40             # of random input points, so that they are not those of a batch
WEAK = 1024                      # a truth of fewer cells along an axis is a weak reference for finer grids


# ---------------------------------------------------------------------------------------------
# decoded on finer grids and at random points

@torch.no_grad()
def off_grid(task, factors, n_random):
    """
    nRMSE of rollouts that are decoded off the trained grid: on a grid with f times its points along every
    axis, for each f of `factors`, and at n_random points of the domain (0: none).

    Returns {'2': {'nrmse', 'floor', 'given'}, 'random_points': {'nrmse', 'floor'}}. The floor is the nRMSE of the
    true field itself, interpolated from the trained grid by cubic interpolation. It is no bound: a decoder may
    know more of a field than its values on a grid. `given`: that of rollouts which also start from the field on the
    finer grid; a peer runs on that grid itself. Raises UserError, before anything is computed, where there is no
    truth.
    """
    model = task.model
    cfg = model.cfg
    n = task.initial_step
    solver_grids = {source.path: grid_to_solve(cfg, source, factors) for source in task.sources}
    coarsest = min(solver_grids[task.sources[0].path] or task.sources[0].shape)
    if factors and coarsest < WEAK:
        say(f'eval: warning: the finest solution has {coarsest} cells along an axis, a weak reference below '
            f'{WEAK}')
    wheres = {str(f): finer_grid(cfg, f) for f in factors}
    if n_random:
        wheres['random_points'] = random_points(n_random, cfg, torch.Generator().manual_seed(0))
    given_to = {name: model_on(model, where) for name, where in wheres.items() if not torch.is_tensor(where)}
    points = [where if torch.is_tensor(where) else model.grid(*where) for where in wheres.values()]
    sizes = [len(q) for q in points]
    points = torch.cat(points)                                       # one rollout serves all of them
    largest = max(len(points), *[math.prod(source.shape) for source in task.sources])
    batch_size = min(task.batch_size, max(1, POINTS // len(points)))
    axes = grid_axes(cfg, task.grid)
    n_frames = task.u.shape[1]
    found = {name: {'nrmse': 0., 'floor': 0.} for name in wheres}
    n_rollout = 1 + sum(fine is not None for fine in given_to.values())
    progress = Progress('eval: rollouts decoded off the grid', n_rollout * len(task.u) * task.steps)
    for source, rows, here in portions(task, n_frames * largest * cfg.n_field):
        params = {name: value[here] for name, value in task.params.items()}
        weight = len(rows) / len(task.u)
        u = task.u[here]
        p = predict(model, u, params, n, batch_size, task.reencode, points, progress=progress)
        truths = true_fields(cfg, source, rows, n_frames, solver_grids[source.path], wheres)
        for (name, where), p_there in zip(wheres.items(), p.split(sizes, 2)):
            y = predicted_fields(model, truths[name][:, n:])
            floor = fields_at(cfg, u[:, n:], axes, where, exact=False)
            found[name]['nrmse'] += weight * mean_nrmse(predicted_fields(model, p_there), y)
            found[name]['floor'] += weight * mean_nrmse(predicted_fields(model, floor), y)
            if given_to.get(name):
                given = truths[name].unflatten(2, where)
                there = predict(given_to[name], given, params, n, batch_size, task.reencode, progress=progress)
                error = mean_nrmse(predicted_fields(model, there.flatten(2, -2)), y)
                found[name]['given'] = found[name].get('given', 0.) + weight * error
    return found


def model_on(model, shape):
    """The model that takes fields on the grid `shape`: this one, which interpolates them, or a peer on that grid; None,
    with a line, where a peer cannot be."""
    if extensions.VALUES['arch'].get(model.cfg.arch) != 'peers':
        return model
    from peers.networks import on_grid
    try:
        return on_grid(model, shape)
    except UserError as error:
        say(f'eval: fields on {shape_text(shape)} points are not given to this peer: {error}')
        return None


def finer_grid(cfg, factor):
    """The shape of the trained grid with `factor` times the points along every axis."""
    return tuple(factor * n for n in cfg.grid)


def portions(task, row_values):
    """Some rows of the task at a time, so that row_values numbers of each fit into memory. Yields (source,
    range of its rows, slice of these in task.u)."""
    at_once = max(1, VALUES // row_values)
    for number, source in enumerate(task.sources):
        for first in range(0, len(task.rows), at_once):
            rows = task.rows[first:first + at_once]
            start = number * len(task.rows) + first
            here = slice(start, start + len(rows))
            yield source, rows, here


# ---------------------------------------------------------------------------------------------
# started from random points

def unseen_points(task, n):
    """n random points that are not those of any batch of the training, as PointEncoder.random_points draws
    them."""
    random = torch.Generator().manual_seed(INPUT_SEED + n)
    return task.model.encoder.random_points(n, random, task.u[:, task.initial_step - 1])


def from_input_points(task, numbers):
    """nRMSE on the grid of rollouts that start from the fields at so many random points, for each of
    `numbers`: {'256': {'nrmse'}}. The model of the task has encoder='points'."""
    model = task.model
    n = task.initial_step
    y = predicted_fields(model, task.u[:, n:])
    found = {}
    for number in sorted(set(numbers)):
        points = unseen_points(task, number)
        p = predict(model, task.u, task.params, n, task.batch_size, task.reencode, seen_at=points)
        found[str(number)] = {'nrmse': mean_nrmse(predicted_fields(model, p), y)}
    return found


def at_file_points(task):
    """nRMSE of rollouts that start from, and are compared with, the values at the points of files of the layout
    'points' (points/files.py), which need no grid. The model of the task has encoder='points'."""
    from points.files import points_of
    n = task.initial_step
    model = task.model
    errors = []
    for source, rows, here in portions(task, VALUES):                # a trajectory at a time
        frames = slice(None, None, source.time_stride(model.cfg.dt))
        params = {name: value[here] for name, value in task.params.items()}
        with opened(source) as file:
            x, u = points_of(file, rows[0], frames)
        u = torch.from_numpy(u)[None, :n + task.steps]               # (1, T, P, C)
        p = model.rollout(u[:, n - 1], task.steps, x, params, grid=x, reencode=task.reencode, outside=0.)
        errors.append(mean_nrmse(predicted_fields(model, p.cpu()), predicted_fields(model, u[:, n:])))
    return sum(errors) / len(errors)


# ---------------------------------------------------------------------------------------------
# the truth: from a file, or by the built-in solver

def grid_to_solve(cfg, source, factors):
    """The grid on which the built-in solver computes the truth for factors that need more points than a file
    has cells: that of the largest factor, or the finest one that has at most MAX_SOLVED points. None if the
    file is as fine. Prints what is done. Raises UserError for points at which there is no truth."""
    shape = shape_text(source.shape)
    finer = []
    for factor in factors:
        wanted = finer_grid(cfg, factor)
        if factor >= 1 and is_strided(wanted, source.shape):
            continue
        why = ''
        if any(n < cells for n, cells in zip(wanted, source.shape)):
            why = 'the file has no values there'
        elif source.entry.solve is None:
            why = f'{source.pde} has no built-in solver that could compute a finer solution'
        if why:
            raise UserError(f'--superres {factor}: {factor} x {shape_text(cfg.grid)} = {shape_text(wanted)} '
                            f"points do not divide the {shape} cells of '{source.path}', and {why}")
        finer.append(factor)
    if not finer:
        return None
    factor = max(finer)
    while math.prod(finer_grid(cfg, factor)) > MAX_SOLVED:
        factor -= 1
    solved_on = finer_grid(cfg, factor)
    needed = ', '.join(shape_text(finer_grid(cfg, factor)) for factor in finer)
    told = f"eval: '{source.path}' has {shape} cells; the truth on {needed} points is"
    if math.prod(solved_on) <= math.prod(source.shape):
        say(f'{told} interpolated from them, since at most {MAX_SOLVED} points are solved for')
        return None
    say(f"{told} the built-in solver's solution on {shape_text(solved_on)} points from the first frames")
    if factor < max(finer):
        say(f'eval: on finer grids it is interpolated, since at most {MAX_SOLVED} points are solved for')
    return solved_on


def true_fields(cfg, source, rows, n_frames, solver_grid, wheres):
    """The true fields {name: (N, n_frames, points, C)} on the grids and at the points {name: where}: those of
    the file, or, on a grid that the file's cells do not have, those of the built-in solver on `solver_grid`
    (None: interpolated from the file)."""
    u = read_placed(source, rows, cfg, source.shape)
    file = u[:, :n_frames], grid_axes(cfg, source.shape)             # (N, T, *X, C) and coordinates
    solution = solved(cfg, source, u[:, 0], solver_grid, n_frames) if solver_grid else file
    truths = {}
    for name, where in wheres.items():
        from_file = torch.is_tensor(where) or is_strided(where, source.shape)
        known, axes = file if from_file else solution
        truths[name] = fields_at(cfg, known, axes, where, exact=True)
    return truths


def solved(cfg, source, u0, cells, n_frames):
    """The built-in solver's solution from the first frames u0 (N, *X, C) of a file: n_frames frames at the
    trained time step, (N, n_frames, *cells, C), and the coordinates of the solver's cells."""
    u0, axes = on_solver_axes(cfg, source.entry, u0, grid_axes(cfg, source.shape), cells)
    t = [k * cfg.dt for k in range(n_frames)]
    return source.entry.solution(u0, source.params, t).float(), axes


def on_solver_axes(cfg, entry, u, axes, cells):
    """u (B, *X, C) at the coordinates `axes` -> the same on the solver's `cells`, and their coordinates."""
    fine_axes = solver_axes(cfg, entry, cells)
    fine = resampled_exactly(cfg, u, axes, fine_axes)
    for field, name in enumerate(entry.fields):
        if name in entry.positive:                                   # interpolation overshoots beside a jump
            known = u[..., field]
            fine[..., field].clamp_(known.min(), known.max())
    return fine, fine_axes


def solver_axes(cfg, entry, cells):
    """Coordinates along each axis of the solver's cells: their centres. Where translations are symmetries,
    the points of the model's grid serve as centres, and nothing has to be interpolated."""
    if entry.translation_invariant:
        return grid_axes(cfg, cells)
    return [torch.from_numpy(centres(n, *ends)) for n, ends in zip(cells, entry.space)]


# ---------------------------------------------------------------------------------------------
# fields at other coordinates

def grid_axes(cfg, shape):
    """Coordinates along each axis of a grid like the trained one, [(n,)] float64."""
    return [axis_points(cfg, axis, n) for axis, n in enumerate(shape)]


def fields_at(cfg, u, axes, where, exact):
    """u (N, T, *X, C) at the coordinates `axes` -> on a grid or at points, (N, T, points, C). exact:
    trigonometric interpolation on a periodic domain; cubic otherwise."""
    if torch.is_tensor(where):
        return at_points(cfg, u, axes, where, exact)
    to_grid = resampled_exactly if exact else resampled
    return to_grid(cfg, u, axes, grid_axes(cfg, where)).flatten(2, -2)


def at_points(cfg, u, axes, points, exact=True):
    """u (N, T, *X, C) at the coordinates `axes` -> at points (Q, d), (N, T, Q, C). exact: trigonometric
    interpolation on a periodic domain; cubic otherwise."""
    shape = tuple(len(x) for x in axes)
    first = [float(x[0]) for x in axes]
    points = points.double()
    width = max(4 ** len(shape), math.prod(shape[1:]))               # values that each point needs at a time
    at_once = max(1, VALUES // (len(points) * width * cfg.n_field))
    found = []
    for frames in u.flatten(0, 1).split(at_once):
        if exact:
            values = values_at(frames, points, first, cfg.length, cfg.periodic)
        else:
            values = interpolate(frames.flatten(1, -2), points, shape, first, cfg.length, cfg.periodic)
        found.append(values.float())
    return torch.cat(found).unflatten(0, u.shape[:2])


def resampled(cfg, u, axes, to):
    """u (..., *X, C) at the coordinates `axes` -> the same at the coordinates `to`, by cubic interpolation
    along each axis. Points that both have keep their values."""
    return resample_axes(u, axes, to, cfg.length if cfg.periodic else None)


def resampled_exactly(cfg, u, axes, to):
    """As `resampled`, for fields that their grid resolves, such as first frames and fine solutions: on a
    periodic domain by trigonometric interpolation, which is exact for these."""
    if not cfg.periodic:
        return resampled(cfg, u, axes, to)
    for i, (x, wanted) in enumerate(zip(axes, to)):
        axis = i - len(axes) - 1
        u = u.movedim(axis, -2)                                      # (..., n, C)
        every = max(1, len(x) // len(wanted))
        length = cfg.length[i]
        if agree(x[::every], wanted, 1e-3 * length / len(x)):
            u = u[..., ::every, :]
        else:
            rows = u.flatten(0, -3)
            new = fourier_interpolate(rows, wanted[:, None], (len(x),), (float(x[0]),), (length,))
            u = new.unflatten(0, u.shape[:-2])
        u = u.movedim(-2, axis)
    return u


def agree(x, y, tolerance):
    return len(x) == len(y) and bool((x - y).abs().max() < tolerance)
