"""
Evaluation: the metrics of whole rollouts in field space, as a table and as JSON.

    python eval.py --ckpt out/burgers_cpu                        # best weights, test split, latent rollout
    python eval.py --ckpt out/                                   # every run below, a table for each data set
    python eval.py --ckpt out/burgers_cpu --superres 1 2 4 8     # decoded on finer grids
    python eval.py --ckpt out/burgers_cpu --random 4096          # decoded at points anywhere in the domain
    python eval.py --ckpt out/ns_points_cpu --placements 256 1024    # from so many random points
    python eval.py --ckpt out/burgers_cpu --horizon 10           # also rollouts ten times as long as the file
    python eval.py --ckpt out/burgers_cpu --physics --plot       # what physics asks of it; spectra.png
    python eval.py --ckpt out/burgers_cpu --data FILE --json eval.json      # all of another file
    python eval.py --ckpt out/one out/two --initial_step 10      # side by side; frames 0..9 are given
    python eval.py --ckpt out/one out/two --compare              # a row for each of several runs on one file
    python eval.py --ckpt out/ --compare runs.md runs.csv runs.png --below .01       # written to files, too

A model that sees m frames starts from the true frames n-m .. n-1, n = initial_step, and predicts the
frames n .. T-1; only those are scored, and of them the fields that are not static. Every number is a mean
over the whole split, never a mean of batch means, and is computed in float64 (metrics.py). Persistence
(the last given frame, repeated) and its spatial mean are scored beside the model.

--superres and --random compare with the finest field of the data file, interpolated (periodic: by Fourier
series, which is exact for a field that its cells resolve) where it has no values, and on grids that are finer
than the file with the built-in solver's solution. --horizon takes that for its truth, too.

--compare also tells how many iterations passed until the validation error was at most --below (default: the
last one of the first run), as the log.csv beside each checkpoint has it; and .png is of the error over time.
"""
import argparse
import csv
import hashlib
import json
import math
import os
import sys
import time

import numpy as np
import torch

import physics
from data import seen_rows
from files import open_source, read_rows, split_rows
from grids import fourier_interpolate, interpolate, random_points, resample_axes, values_at
from metrics import (bounded, by_frame, conservation_gap, correlation, correlation_time, field_nrmse,
                     mean_nrmse, metrics, nrmse, rms, space_of)
from model import build, unseen, with_encoder
from pictures import draw_comparison, draw_spectra
from runtime.checkpoint import find_runs, load_checkpoint, whole_file
from runtime.configurator import UserError, one_line_errors, say
from runtime.device import pick

HERE = os.path.dirname(os.path.abspath(__file__))
MAX_SOLVED = 2 ** 16             # points on which a truth finer than the files is solved for, at most
POINTS = 2 ** 16                 # points decoded at a time, at most (or those of one trajectory)
VALUES = 2 ** 25                 # values of a truth in memory at a time, at most (or one trajectory): 134 MB
PLACEMENT_SEED = 2 ** 40         # of random input points, which are not those of a batch
WEAK = 1024                      # a truth of fewer cells along an axis is a weak reference for finer grids


# ---------------------------------------------------------------------------------------------
# a model on true frames u (N, T, *grid, C): the trained time step, physical units, on the CPU

def given_frames(model, u, initial_step):
    """What the model starts from: frame n-1, or the stack n-m .. n-1 of a model that sees m frames."""
    m = model.cfg.input_frames
    if m == 1:
        return u[:, initial_step - 1]
    return u[:, initial_step - m:initial_step]


def batches(n, batch_size, params):
    """Slices of n rows, with their PDE parameters {name: (B,)}."""
    for start in range(0, n, batch_size):
        rows = slice(start, min(start + batch_size, n))
        own = {name: value[rows] for name, value in params.items()}
        yield rows, own


def predict(model, u, params, initial_step, batch_size, reencode=False, points=None, n_steps=None, at=None):
    """Whole rollouts from the true frames u (N, T, *grid, C) before initial_step: (N, n_steps, *grid or Q, C)
    float32 on the CPU. params: {name: (N,)}. points (Q, d): where to decode, instead of on the grid of u.
    n_steps: by default T - initial_step. at (P, d): where a model with encoder='points' sees u, instead of on
    that grid."""
    grid = u.shape[2:-1]
    if n_steps is None:
        n_steps = u.shape[1] - initial_step
    out = None
    last = time.perf_counter()
    for rows, own in batches(len(u), batch_size, params):
        u0 = given_frames(model, u[rows], initial_step)
        if at is None:
            p = model.rollout(u0, n_steps, points=points, params=own, reencode=reencode)
        else:
            first = model.grid(*grid)[0]
            u0 = values_at(u0, at, first, model.cfg.length, model.cfg.periodic)
            p = model.rollout(u0, n_steps, model.grid(*grid), own, grid=at, reencode=reencode)
            p = p.unflatten(2, grid)
        if out is None:
            out = torch.empty(len(u), *p.shape[1:])
        out[rows] = p.cpu()
        if time.perf_counter() - last > 10:
            say(f'eval: rollouts {rows.stop}/{len(u)} {rows.stop / len(u):.0%}')
            last = time.perf_counter()
    return out


def scored(model, u):
    """The fields of u (..., C) that the model predicts: all that are not static."""
    return u[..., list(model.cfg.scored)] if model.cfg.static else u


def recon_nrmse(model, u, batch_size):
    """nrmse of D(E(y)) on the grid of u, over all of its true frames (a model that sees m frames: over all
    stacks of m, against their last frame)."""
    grid = u.shape[2:-1]
    points = model.grid(*grid)
    values = []
    for rows, _ in batches(len(u), batch_size, {}):
        for n in range(model.cfg.input_frames, u.shape[1] + 1):
            z = model.encode(given_frames(model, u[rows], n))
            v = model.decode(z, points).cpu().double()               # on the CPU first: MPS has no float64
            v = scored(model, v.unflatten(1, grid))[:, None]
            y = scored(model, u[rows, n - 1:n]).double()
            error = nrmse(v, y)
            values.append(error[rms(y) > 0])                         # a field that is 0 has no relative error
    return float(torch.cat(values).mean())


def latent_rollout(model, u, params, initial_step, batch_size):
    """What becomes of the latents z of a rollout: (rms(z_last) / rms(z_0) - 1, and the mean over the steps of
    |E(D(z)) - z| / |z|), both over all trajectories, tokens and features. The second is nan for a model that
    sees several frames, which one latent does not hold."""
    n_steps = u.shape[1] - initial_step
    squares = torch.zeros(n_steps + 1, dtype=torch.float64)
    gaps = torch.zeros(n_steps + 1, dtype=torch.float64)
    for rows, own in batches(len(u), batch_size, params):
        z = model.encode(given_frames(model, u[rows], initial_step))
        for step in range(n_steps + 1):
            if step:
                z = model.step(z, own)
            squares[step] += sum_of_squares(z.tokens)
            if model.cfg.input_frames == 1:
                gaps[step] += sum_of_squares(model.cycle(z.tokens) - z.tokens)
    if squares[0] == 0 or not squares.isfinite().all():
        return math.nan, math.nan
    drift = float((squares[-1] / squares[0]).sqrt()) - 1
    gap = (gaps / squares).sqrt()[1:].mean()
    return drift, float(gap) if model.cfg.input_frames == 1 else math.nan


def sum_of_squares(tokens):
    return float(tokens.cpu().double().square().sum())


def wait_for(device):
    """Until the device has done what it was asked for, so that a clock may be read."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    if device.type == 'mps':
        torch.mps.synchronize()


def ms_per_trajectory(model, u, params, initial_step, batch_size, reencode):
    """Wall clock of one whole decoded rollout of one batch, over its size. Call it after a rollout of the
    same shapes, which is the warm-up."""
    rows, own = next(batches(len(u), batch_size, params))
    u0 = given_frames(model, u[rows], initial_step).to(model.device)
    wait_for(model.device)
    start = time.perf_counter()
    model.rollout(u0, u.shape[1] - initial_step, params=own, reencode=reencode)
    wait_for(model.device)
    return 1e3 * (time.perf_counter() - start) / len(u0)


def by_parameter(p, y, params):
    """{'Nu=0.01': {'nrmse': ..}, ...} of predictions p and truth y, where there are several values of the
    parameters {name: (N,)}; else empty."""
    rows_of = {}
    for row in range(len(y)):
        values = [f'{name}={float(value[row]):g}' for name, value in params.items()]
        rows = rows_of.setdefault(', '.join(values), [])
        rows.append(row)
    if len(rows_of) < 2:
        return {}
    return {label: {'nrmse': mean_nrmse(p[rows], y[rows])} for label, rows in rows_of.items()}


def baselines(u0, y):
    """Scores of two guesses that need no model: the last given frame u0 (N, *grid, C), and its spatial
    mean."""
    last = u0[:, None].double()
    mean = last.mean(space_of(y), keepdim=True)
    return {'persistence': {'nrmse': mean_nrmse(last.expand_as(y), y)},
            'mean': {'nrmse': mean_nrmse(mean.expand_as(y), y)}}


@torch.no_grad()
def evaluate(model, u, params, initial_step=None, rollout='latent', batch_size=64):
    """
    Score a model on true frames u (N, T, *grid, C) at the trained time step, params {name: (N,)}.

    initial_step: frames that are given; by default as many as the model sees. rollout: 'latent' or
    'reencode'. Returns what the JSON file says of them ('metrics', 'per_step', ...), and the predictions
    (N, T - initial_step, *grid, C). Changes neither random states nor model.training. Raises UserError for an
    impossible initial_step.
    """
    cfg = model.cfg
    n = cfg.input_frames if initial_step is None else initial_step
    check_initial_step(n, cfg.input_frames, u.shape[1])
    reencode = rollout == 'reencode'
    u0 = scored(model, u[:, n - 1])
    y = scored(model, u[:, n:])
    training = model.training
    model.eval()
    try:
        whole = predict(model, u, params, n, batch_size, reencode)
        p = scored(model, whole)
        scores, steps = metrics(p, y, u0, cfg.dt)
        if not u0.any():                                             # a steady equation keeps no integral
            del scores['conservation_gap']
        other = predict(model, u, params, n, batch_size, not reencode)
        other = mean_nrmse(scored(model, other), y)
        scores['recon_nrmse'] = recon_nrmse(model, u[:, n - cfg.input_frames:], batch_size)
        drift, gap = latent_rollout(model, u, params, n, batch_size)
        scores.update(latent_norm_drift=drift, latent_gap=gap)
        scores['ms_per_trajectory'] = ms_per_trajectory(model, u, params, n, batch_size, reencode)
    finally:
        model.train(training)
    result = {'metrics': scores,
              rollout: {'nrmse': scores['nrmse']},
              'latent' if reencode else 'reencode': {'nrmse': other},
              'per_step': {'nrmse': steps},
              'baselines': baselines(u0, y),
              'ms_batch_size': min(batch_size, len(u))}
    parts = by_parameter(p, y, params)
    if parts:
        result['by_parameter'] = parts
    if len(cfg.scored) > 1:
        names = [cfg.fields[field] for field in cfg.scored]
        result['by_field'] = dict(zip(names, field_nrmse(p, y)))
    return result, whole


def check_initial_step(n, input_frames, n_frames):
    if not input_frames <= n < n_frames:
        raise UserError(f'initial_step={n} must be between {input_frames} (the frames that the model sees) '
                        f'and {n_frames - 1} (there are {n_frames} frames, and one at least is predicted)')


# ---------------------------------------------------------------------------------------------
# elsewhere: finer grids, random points. A place is the shape of a grid, model.grid(*shape), or points (Q, d)

@torch.no_grad()
def elsewhere(model, sources, rows, u, params, factors, n_random, initial_step, reencode, batch_size):
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
        places['random'] = random_points(n_random, model.cfg, torch.Generator().manual_seed(0))
    points = [points_of(model, place) for place in places.values()]
    sizes = [len(q) for q in points]
    points = torch.cat(points)                                       # one rollout serves all places
    largest = max(len(points), *[math.prod(source.shape) for source in sources])
    batch_size = min(batch_size, max(1, POINTS // len(points)))
    found = {name: {'nrmse': 0., 'floor': 0.} for name in places}
    for source, some, here in portions(sources, rows, u.shape[1] * largest * model.cfg.n_field):
        own = {name: value[here] for name, value in params.items()}
        known = u[here, initial_step:]
        p = predict(model, u[here], own, initial_step, batch_size, reencode, points)
        truths = true_fields(model, source, some, u.shape[1], solver_grids[source.path], places)
        for (name, place), p_there in zip(places.items(), p.split(sizes, 2)):
            y = scored(model, truths[name][:, initial_step:])
            floor = at_place(model, known, grid_axes(model, known.shape[2:-1]), place, exact=False)
            share = len(some) / len(u)
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
    u = torch.from_numpy(read_rows(source, rows, time_stride(source, model.cfg)))
    file = u[:, :n_frames], grid_axes(model, source.shape)           # (N, T, *X, C), and where
    solution = solved(model, source, u[:, 0], solver_grid, n_frames) if solver_grid else file
    truths = {}
    for name, place in places.items():
        from_file = not isinstance(place, tuple) or is_strided(place, source.shape)
        known, axes = file if from_file else solution
        truths[name] = at_place(model, known, axes, place, exact=True)
    return truths


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


def solved(model, source, u0, cells, n_frames):
    """The built-in solver's solution from a file's first frames u0 (N, *X, C): the first n_frames at the
    trained time step, (N, n_frames, *cells, C), and the coordinates of the cells, which are the solver's."""
    u0, axes = on_solver_axes(model, source.entry, u0, grid_axes(model, source.shape), cells)
    t = [k * model.cfg.dt for k in range(n_frames)]
    return source.entry.solution(u0, source.params, t).float(), axes


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
    is_solved = all(source.entry.solve for source in sources)
    if not is_solved:
        say(f'eval: {cfg.pde} has no built-in solver, so there is no truth of long rollouts: only their size '
            'is reported')
    cells = max(math.prod(shape) for shape in [u.shape[2:-1], *[source.shape for source in sources]])
    found = {}

    def note(name, value):
        found.setdefault(name, []).append(value)

    for source, some, here in portions(sources, rows, n_frames * cells * cfg.n_field):
        own = {name: value[here] for name, value in params.items()}
        p = predict(model, u[here], own, initial_step, batch_size, reencode, n_steps=n_frames - initial_step)
        start = u[here, initial_step - 1:initial_step]
        kept = [source.fields.index(name) for name in source.entry.conserved]
        if kept:
            gap = conservation_gap(p[:, -1:, ..., kept].double(), start[..., kept].double())
            note('integral_drift', gap)
        y = u[here]
        if is_solved:
            y = long_truth(model, source, some, u.shape[2:-1], n_frames)
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
            note('correlation_time', correlation_time(by_frame(correlation, p, y), cfg.dt))
    found = {name: torch.cat(values).double() for name, values in found.items()}
    scores = {name: float(value.mean()) for name, value in found.items()}
    if is_solved:
        steps = found['per_step'].mean((0, 2)).tolist()
        scores.update(nrmse=scores['per_step'], nrmse_end=steps[-1], per_step=steps)
    n_steps = n_frames - initial_step
    return {'horizon': horizon, 'steps': n_steps, 'seconds': n_steps * cfg.dt, **scores}


def long_truth(model, source, rows, grid, n_frames):
    """The built-in solver's solution on a grid, (N, n_frames, *grid, C), from first frames of a file."""
    u0 = torch.from_numpy(read_rows(source, rows, source.n_frames)[:, 0])
    u, axes = solved(model, source, u0, source.shape, n_frames)
    return resolved(model, u, axes, grid_axes(model, grid))


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


def by(shape):
    """A grid as text: '64 x 64'."""
    return ' x '.join(map(str, shape))


# ---------------------------------------------------------------------------------------------
# input points

def placements(model, u, params, densities, initial_step, reencode, batch_size):
    """nrmse on the grid of u of rollouts from so many random points, other ones than those of any batch:
    {'n': {'nrmse'}}."""
    y = scored(model, u[:, initial_step:])
    found = {}
    for n in sorted(set(densities)):
        at = random_points(n, model.cfg, torch.Generator().manual_seed(PLACEMENT_SEED + n))
        p = predict(model, u, params, initial_step, batch_size, reencode, at=at)
        found[str(n)] = {'nrmse': mean_nrmse(scored(model, p), y)}
    return found


# ---------------------------------------------------------------------------------------------
# data of a checkpoint

def find_data(state, ckpt):
    """Paths of the files that a checkpoint was trained on. Each is looked for beside the run (which may have
    moved together with its data), where it was, as it was typed, and so seen from the repository. Raises
    UserError with these places where it is in none of them."""
    data = state['data']
    folder = os.path.dirname(os.path.abspath(ckpt))
    paths = []
    for typed, absolute, relative in zip(data['paths'], data['absolute'], data['relative']):
        beside = os.path.normpath(os.path.join(folder, relative))
        places = [beside, absolute, typed, os.path.join(HERE, typed)]
        there = [path for path in places if os.path.exists(path)]
        if not there:
            missing = ', '.join(f"'{path}'" for path in dict.fromkeys(places))
            raise UserError(f"'{ckpt}' was trained on '{typed}', which is not there (looked for {missing}): "
                            'put it back, or evaluate another file with --data FILE')
        paths.append(there[0])
    return paths


def open_data(state, model, ckpt, file=None):
    """The data files of a checkpoint, or `file`, checked against the model: [Source]. Raises UserError."""
    paths = [file] if file else find_data(state, ckpt)
    sources = [open_source(path, model.cfg.pde) for path in paths]
    for source in sources:
        check_fit(source, model)
    return sources


def check_fit(source, model):
    """Raise UserError where a model cannot be evaluated on a file: other parameters, domain, cells or
    times."""
    cfg = model.cfg
    path = source.path
    if len(source.fields) != cfg.n_field or not set(cfg.params) <= set(source.params):
        raise UserError(f"'{path}' holds {len(source.fields)} field(s), parameters {list(source.params)}; "
                        f'the model was trained on {cfg.n_field} field(s), parameters {list(cfg.params)}')
    entry = source.entry
    if (entry.low, entry.length, entry.boundary) != (tuple(cfg.low), tuple(cfg.length), cfg.boundary):
        raise UserError(f"'{path}' has the {entry.boundary} domain {entry.low} + {entry.length}, the model "
                        f'the {cfg.boundary} one {tuple(cfg.low)} + {tuple(cfg.length)}')
    grid = tuple(cfg.grid)
    if not is_strided(grid, source.shape) and not is_strided(source.shape, grid):
        ratio = source.shape[0] / grid[0]
        raise UserError(f"'{path}' has {by(source.shape)} cells, the trained grid {by(grid)} points: "
                        f'{source.shape[0]} / {grid[0]} = {ratio:g} is no whole stride, and one must be a '
                        'multiple of the other, by the same number along every axis')
    stride = cfg.dt / source.dt
    if abs(stride - time_stride(source, cfg)) > 1e-6 * stride:
        raise UserError(f"'{path}' has a frame every {source.dt:g} s, the model steps {cfg.dt:g} s: "
                        f'{cfg.dt:g} / {source.dt:g} = {stride:g} is no whole stride')
    if not cfg.periodic:
        check_points(source, model)


def check_points(source, model):
    """Raise UserError where a file's points are not those of model.grid. On a periodic domain that makes no
    difference, and the first point may lie anywhere in its cell; between walls it does."""
    for axis, n in enumerate(grid_of(source, model.cfg)):
        x = strided_axis(source, axis, n)
        expected = axis_points(model, axis, n).double().numpy()
        if np.abs(x - expected).max() > .01 * model.cfg.length[axis] / n:
            raise UserError(f"'{source.path}' has points at {x[0]:g}, {x[1]:g}, ..., the model at "
                            f'{expected[0]:g}, {expected[1]:g}, ...: between walls these must agree')


def is_strided(coarse, fine):
    """Is the grid `coarse` every k-th point of `fine`, with the same k along all axes?"""
    k = fine[0] // coarse[0]
    return k >= 1 and tuple(fine) == tuple(k * n for n in coarse)


def grid_of(source, cfg):
    """The grid on which a model is evaluated: the trained one, or the file's own where that is coarser."""
    return tuple(min(cells, n) for cells, n in zip(source.shape, cfg.grid))


def strided_axis(source, axis, n):
    """Coordinates along one axis of n of a file's cells."""
    return source.x[axis][::source.shape[axis] // n]


def time_stride(source, cfg):
    return max(1, round(cfg.dt / source.dt))


def read(sources, rows, cfg, grid):
    """Rows of all files, one after another, at the trained time step and on `grid`, which strides their
    cells: (N, T, *grid, C) float32."""
    parts = []
    for s in sources:
        u = read_rows(s, rows, time_stride(s, cfg), s.shape[0] // grid[0])
        parts.append(torch.from_numpy(u))
    return torch.cat(parts)


def given_in_training(state):
    """How many frames are given before a rollout in the run that a checkpoint is of."""
    return state['config'].get('initial_step') or state['model_args']['input_frames']


def choose_rows(state, sources, ckpt, split, data):
    """The rows to be scored, a range. Raises UserError for test rows that were trained on. Trajectories of
    another file that begin like ones that were trained on are only warned of."""
    seen = state['data']['seen']
    if data:
        source = sources[0]
        rows = range(source.n)
        again = seen_rows(source, rows, seen)
        if again:
            say(f"eval: warning: {len(again)} of {len(rows)} trajectories of '{source.path}' (first: "
                f"{again[0]}) begin like ones that '{ckpt}' was trained on: its errors are too low there")
        return rows
    n = state['data']['n_trajectories']
    rows = split_rows(n, split, sources[0].entry.test)
    for source in sources:
        if source.n < n:
            raise UserError(f"'{source.path}' holds {source.n} trajectories, but '{ckpt}' was trained with "
                            f'{n} of them')
        again = seen_rows(source, rows, seen) if split == 'test' else []
        if again:
            raise UserError(f"trajectory {again[0]} (test) of '{source.path}' has the same initial condition "
                            f"as one that '{ckpt}' was trained on ({len(again)} of {len(rows)} rows have): "
                            'a test would say nothing; take a file of another seed with --data FILE')
    return rows


def params_of(sources, cfg, n_rows):
    """Parameters of n_rows rows of each file, one file after another, {name: (N,)}."""
    result = {}
    for name in cfg.params:
        values = torch.tensor([s.params[name] for s in sources])
        result[name] = values.repeat_interleave(n_rows)
    return result


# ---------------------------------------------------------------------------------------------
# one checkpoint

def load_for_evaluation(file, device, encoder=None):
    """A checkpoint's state and its model with averaged weights, and another encoder if one is given. Leaves
    the random state as it was."""
    state = load_checkpoint(file)
    with torch.random.fork_rng(devices=[]):              # the weights' initialisation draws numbers
        model = build(with_encoder(state['model_args'], encoder, file), state['ema'], file)
    return state, model.to(device).eval().requires_grad_(False)


def evaluate_checkpoint(file, split=None, data=None, initial_step=None, steps=None, rollout='latent',
                        factors=(), n_random=0, horizon=None, densities=(), physical=False, plot=False,
                        device='cpu', batch_size=64, save=None):
    """Everything about one checkpoint file as a dict of JSON types (None where a number is not finite). The
    arguments are those of the command line. Raises UserError."""
    state, model = load_for_evaluation(file, device)
    cfg = model.cfg
    if densities:
        _, of_points = load_for_evaluation(file, device, 'points')
    sources = open_data(state, model, file, data)
    split = 'all' if data else split or 'test'
    rows = choose_rows(state, sources, file, split, data)
    note = unseen(cfg, {name: [s.params[name] for s in sources] for name in cfg.params})
    if note:
        say(f'eval: note: {note}')
    paths = [s.path for s in sources]
    say(f"eval: '{file}' on {split} rows {rows.start}..{rows.stop - 1} of {', '.join(paths)}")
    grid = grid_of(sources[0], cfg)
    u = read(sources, rows, cfg, grid)
    params = params_of(sources, cfg, len(rows))
    n = given_in_training(state) if initial_step is None else initial_step
    check_initial_step(n, cfg.input_frames, u.shape[1])
    if horizon and sources[0].entry.steady:
        raise UserError(f'--horizon {horizon}: {cfg.pde} has no time')
    u = first_steps(u, n, steps)
    reencode = rollout == 'reencode'
    scores, p = evaluate(model, u, params, n, rollout, batch_size)
    if save:
        save_predictions(save, sources, grid, p, u[:, n:], n, cfg.dt, params)
    result = {'ckpt': file, 'dataset': cfg.pde, 'split': split, 'initial_step': n, 'rollout': rollout,
              'n_trajectories': len(u), 'n_params': model.n_params(), 'iter': state['iter'],
              'train_seconds': state['train_seconds'], 'peak_memory_gb': state.get('peak_memory_gb'),
              'data': paths, 'rows': [rows.start, rows.stop - 1], 'grid': list(grid), 'steps': p.shape[1],
              'dt': cfg.dt, 'trained_on': trained_on(state), **scores}
    if factors or n_random:
        found = elsewhere(model, sources, rows, u, params, sorted(set(factors)), n_random, n, reencode,
                          batch_size)
        for there in found.values():
            there['ratio'] = there['nrmse'] / (scores['metrics']['nrmse'] or math.nan)
        if n_random:
            result['random'] = {'points': n_random, **found.pop('random')}
        if factors:
            result['superres'] = found
    if horizon:
        result['long'] = long_rollouts(model, sources, rows, u, params, horizon, n, reencode, batch_size)
    if densities:
        found = placements(of_points, u, params, densities, n, reencode, batch_size)
        usual = scores['metrics']['nrmse']
        if cfg.encoder == 'points':
            trained = state['config']['input_points']
            [at_trained] = placements(of_points, u, params, [trained], n, reencode, batch_size).values()
            usual = at_trained['nrmse']
            result['trained_points'] = trained
        for entry in found.values():
            entry['ratio'] = entry['nrmse'] / (usual or math.nan)
        result['placements'] = found
    if physical:
        axes = grid_axes(model, grid)
        result['physics'] = physics.report(u[:, n - 1], p, u[:, n:], cfg.dt, params, axes, sources[0].entry)
    if plot:
        plot_spectra(file, cfg, u[:, n - 1:], p, n)
    return finite(result)


def trained_on(state):
    """What tells the training data of two checkpoints apart, in JSON types."""
    data = state['data']
    first_frames = hashlib.sha256(data['seen'].numpy().tobytes())
    return {'n_trajectories': data['n_trajectories'], 'params': state['model_args']['seen_params'],
            'first_frames': first_frames.hexdigest()}


def plot_spectra(file, cfg, u, p, initial_step):
    """spectra.png beside a checkpoint: of the true frames u, the last given one first, and the predictions
    p."""
    predictions = torch.cat([u[:, :1], p], 1)
    of_truth, waves = physics.spectra(u, cfg.periodic)
    of_predictions, _ = physics.spectra(predictions, cfg.periodic)
    t = cfg.dt * np.arange(initial_step - 1, initial_step - 1 + u.shape[1])
    title = f'{file}: energy spectra, mean of {len(u)} trajectories'
    folder = os.path.dirname(file) or '.'
    draw_spectra(folder, waves.numpy(), t, of_predictions.numpy(), of_truth.numpy(), cfg.fields, title)


def first_steps(u, initial_step, steps):
    """u (N, T, ...) without the frames after the first `steps` predicted ones (None: all are kept)."""
    if steps is None:
        return u
    most = u.shape[1] - initial_step
    if not 1 <= steps <= most:
        raise UserError(f'--steps {steps} must be between 1 and {most}, the frames that can be predicted')
    return u[:, :initial_step + steps]


def save_predictions(path, sources, grid, p, y, initial_step, dt, params):
    """predictions and truth (N, T, *grid, C), t (T,) seconds, x (points, d) row-major, and the value of every
    parameter for each trajectory (N,), as float32 in one .npz file."""
    axes = [strided_axis(sources[0], axis, n) for axis, n in enumerate(grid)]
    mesh = np.meshgrid(*axes, indexing='ij')
    arrays = {name: value.numpy() for name, value in params.items()}
    arrays['predictions'] = p.numpy()
    arrays['truth'] = y.numpy()
    arrays['t'] = dt * np.arange(initial_step, initial_step + y.shape[1])
    arrays['x'] = np.stack([axis.ravel() for axis in mesh], -1)
    with whole_file(path, 'wb') as file:
        np.savez_compressed(file, **{name: array.astype(np.float32) for name, array in arrays.items()})
    say(f'eval: predictions -> {path}')


def finite(value):
    """JSON has no inf and nan: None instead."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [finite(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


# ---------------------------------------------------------------------------------------------
# tables

LONG = {                         # how the table calls what is known of long rollouts
    'nrmse': 'nrmse over {:g} s',
    'nrmse_end': 'nrmse after {:g} s',
    'correlation_time': 'correlation_time within {:g} s',
    'bounded': 'bounded over {:g} s (fraction)',
    'finite': '  finite',
    'rms_growth': '  rms at the end / start',
    'true_rms_growth': '  true rms at the end / start',
    'integral_drift': '  drift of integrals'}


def task(r):
    """What results have in common that can be compared: the same rows of the same files, and the same frames
    predicted."""
    names = ('dataset', 'split', 'rows', 'initial_step', 'steps', 'dt')
    return {'data': [os.path.realpath(path) for path in r['data']], **{name: r[name] for name in names}}


def groups(results):
    """Results that can be compared, [[result, ...], ...]."""
    found = {}
    for r in results:
        members = found.setdefault(repr(task(r)), [])
        members.append(r)
    return list(found.values())


def heading(r):
    """What all results of a table have in common."""
    files = ', '.join(os.path.basename(path) for path in r['data'])
    first, last = r['rows']
    where = f"{r['dataset']}, {files}, {r['split']} rows {first}..{last} ({r['n_trajectories']} trajectories)"
    what = f"{r['rollout']} rollout, {r['steps']} steps of {r['dt']:g} s, initial_step {r['initial_step']}"
    return f'{where}\n{what}'


def table(results):
    """One aligned text of comparable results: a row for each property and metric, a column for each
    checkpoint."""
    return aligned(property_rows(results) + [[''] * (1 + len(results))] + score_rows(results))


def aligned(rows):
    """Rows of texts, one below the other."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths)]
        lines.append('  '.join(cells).rstrip())
    return '\n'.join(lines)


def property_rows(results):
    """[label, text of each result] of what is not a score."""
    minutes = []
    memory = []
    for r in results:
        seconds = r['train_seconds']
        minutes.append('-' if seconds is None else f'{seconds / 60:.1f} min')
        gigabytes = r['peak_memory_gb']
        memory.append('-' if gigabytes is None else f'{gigabytes:.2f} GB')
    return [['checkpoint', *[r['ckpt'] for r in results]],
            ['iter', *[str(r['iter']) for r in results]],
            ['parameters', *[f"{r['n_params']:,}" for r in results]],
            ['training time', *minutes],
            ['training memory', *memory],
            ['grid', *[by(r['grid']) for r in results]]]


def score_rows(results):
    """[label, text of each result] of every score that the results have."""
    one = results[0]
    units = {'correlation_time': ' (s)', 'ms_per_trajectory': f" (ms, batch {one['ms_batch_size']})"}
    rows = []
    for name in one['metrics']:
        rows.append(score_row(name + units.get(name, ''), results, 'metrics', name))
        if name == 'nrmse':
            rows += nrmse_rows(results)
    for f in one.get('superres', ()):
        rows += place_rows(f'nrmse on {f} x grid', results, 'superres', f)
    for n in one.get('placements', ()):
        rows.append(score_row(f'nrmse from {n} random points', results, 'placements', n, 'nrmse'))
        rows.append(score_row('  over the trained input', results, 'placements', n, 'ratio'))
    if 'random' in one:
        rows += place_rows(f"nrmse at {one['random']['points']} random points", results, 'random')
    if 'long' in one:
        seconds = one['long']['seconds']
        for name, label in LONG.items():
            if name in one['long']:
                rows.append(score_row(label.format(seconds), results, 'long', name))
    return rows


def place_rows(label, results, *keys):
    """The scores at one place that is not the trained grid."""
    return [score_row(label, results, *keys, 'nrmse'),
            score_row('  over nrmse', results, *keys, 'ratio'),
            score_row('  interpolated truth', results, *keys, 'floor')]


def nrmse_rows(results):
    """What nrmse consists of, and what it may be compared with."""
    one = results[0]
    other = 'reencode' if one['rollout'] == 'latent' else 'latent'
    rows = [score_row(f'  of {field}', results, 'by_field', field) for field in one.get('by_field', ())]
    for label in one.get('by_parameter', ()):
        rows.append(score_row(f'  at {label}', results, 'by_parameter', label, 'nrmse'))
    rows.append(score_row(f'  {other} rollout', results, other, 'nrmse'))
    rows.append(score_row('  persistence', results, 'baselines', 'persistence', 'nrmse'))
    rows.append(score_row('  spatial mean', results, 'baselines', 'mean', 'nrmse'))
    return rows


def score_row(label, results, *keys):
    """A row of the numbers that `keys` lead to in each result."""
    row = [label]
    for r in results:
        value = r
        for key in keys:
            value = value[key]
        row.append(blown_up(r) if value is None else f'{value:.5g}')
    return row


def blown_up(r):
    """Why a number of this result is missing."""
    for step, value in enumerate(r['per_step']['nrmse'], 1):
        if value is None:
            return f'inf at step {step}'
    return 'not finite'


# ---------------------------------------------------------------------------------------------
# comparison of runs

def compare(results, paths=(), below=None):
    """Print a table of runs, a row each, and write it to files by their endings, .md and .csv, and the errors
    over time to a .png. below: the validation error down to which iterations are counted. Raises UserError
    for runs on other data."""
    check_comparable(results)
    logs = [validations(r['ckpt']) for r in results]
    if below is None and logs[0]:
        below = logs[0][-1][1]
    rows = comparison_rows(results, logs, below)
    texts = [[as_text(cell) for cell in row] for row in rows]
    say(f'\n{heading(results[0])}\n\n{aligned(texts)}')
    for path in paths:
        if path.endswith('.png'):
            draw_comparison(path, [error_curve(r) for r in results], heading(results[0]))
            continue
        with whole_file(path, newline='') as file:
            if path.endswith('.csv'):
                csv.writer(file).writerows(rows)
            else:
                file.write(markdown(texts))
        say(f'-> {path}')


def check_comparable(results):
    """Raise UserError where runs were trained or scored on other data than the first one."""
    first = results[0]
    for r in results[1:]:
        if r['trained_on'] != first['trained_on']:
            raise UserError(f"--compare: '{r['ckpt']}' was trained on other data than '{first['ckpt']}' "
                            '(another file, parameter or number of trajectories): compare runs on the same')
        for name, value in task(r).items():
            if value != task(first)[name]:
                raise UserError(f"--compare: '{r['ckpt']}' was scored with {name} {value}, '{first['ckpt']}' "
                                f'with {task(first)[name]}: compare runs with the same')


def validations(ckpt):
    """The validation errors of a run, [(iteration, nRMSE), ...], by the log.csv beside its checkpoint; none
    if that is not there."""
    path = os.path.join(os.path.dirname(ckpt), 'log.csv')
    if not os.path.exists(path):
        say(f"eval: no log.csv beside '{ckpt}': its validation errors are not known")
        return []
    with open(path, newline='') as file:
        rows = list(csv.DictReader(file))
    return [(int(row['iter']), float(row['val_nrmse'])) for row in rows if row.get('val_nrmse')]


def comparison_rows(results, logs, below):
    """[[header, ...], [values of a run, ...], ...]; None where a value is not known."""
    limit = '-' if below is None else f'{below:.4g}'
    rows = [['run', 'nRMSE latent', 're-encoding', 'recon', 'over first', 'parameters', 'training s',
             'memory GB', 'ms a trajectory', f'iterations to validation {limit}']]
    reference = results[0]['metrics']['nrmse']
    for r, log in zip(results, logs):
        scores = r['metrics']
        error = scores['nrmse']
        there = [iteration for iteration, nrmse in log if below is not None and nrmse <= below]
        rows.append([run_name(r), r['latent']['nrmse'], r['reencode']['nrmse'], scores['recon_nrmse'],
                     error / reference if error and reference else None, r['n_params'], r['train_seconds'],
                     r['peak_memory_gb'], scores['ms_per_trajectory'], there[0] if there else None])
    return rows


def run_name(r):
    """The folder of a run that a result is of, or its file."""
    folder, name = os.path.split(r['ckpt'])
    return folder if folder and name == 'best.pt' else r['ckpt']


def as_text(value):
    if value is None:
        return '-'
    return f'{value:.4g}' if isinstance(value, float) else str(value)


def markdown(rows):
    """A table of texts in Markdown."""
    head, *rest = ['| ' + ' | '.join(row) + ' |' for row in rows]
    return '\n'.join([head, '|' + '---|' * len(rows[0]), *rest, ''])


def error_curve(r):
    """(name, times, errors) of a result, as draw_comparison takes them."""
    errors = [math.nan if error is None else error for error in r['per_step']['nrmse']]
    times = [(r['initial_step'] + step) * r['dt'] for step in range(len(errors))]
    return run_name(r), times, errors


# ---------------------------------------------------------------------------------------------
# command line

def arguments(argv):
    """The checked command line."""
    parser = argparse.ArgumentParser(description='Score checkpoints on whole rollouts.')
    parser.add_argument('--ckpt', nargs='+', required=True, help='run folders, folders of runs, or files')
    parser.add_argument('--split', choices=['test', 'val', 'train', 'all'], help='default: test')
    parser.add_argument('--data', help='another file of the same PDE, all of its trajectories')
    parser.add_argument('--initial_step', type=int, help='given frames (default: as in training)')
    parser.add_argument('--steps', type=int, help='score only so many predicted frames (default: all)')
    parser.add_argument('--rollout', choices=['latent', 'reencode'], default='latent')
    parser.add_argument('--superres', type=int, nargs='+', default=(), help='factors of the output grid')
    parser.add_argument('--random', type=int, default=0, metavar='N', help='decode at N random points, too')
    parser.add_argument('--horizon', type=int, metavar='K', help='also roll out K times as long')
    parser.add_argument('--placements', type=int, nargs='+', default=(),
                        help='score rollouts from so many random points; see also load(encoder=)')
    parser.add_argument('--physics', action='store_true', help='also what physics asks of the fields')
    parser.add_argument('--plot', action='store_true', help='with --physics: spectra.png in the run folder')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda, cuda:N or mps')
    parser.add_argument('--batch_size', type=int, default=64, help='trajectories rolled out at a time')
    parser.add_argument('--json', help='file to write; a list for several checkpoints')
    parser.add_argument('--compare', nargs='*', metavar='FILE', help='a row for each run; .md, .csv, .png')
    parser.add_argument('--below', type=float, help='validation error to which --compare counts iterations')
    parser.add_argument('--save', help='.npz file of predictions, truth, t and x, for one checkpoint')
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        raise UserError(f'--batch_size {args.batch_size} must be 1 or more')
    if args.random < 0:
        raise UserError(f'--random {args.random} must be a number of points')
    if args.horizon is not None and args.horizon < 2:
        raise UserError(f'--horizon {args.horizon} must be 2 or more: the files hold the first one')
    if args.horizon and args.steps:
        raise UserError(f'--steps {args.steps} makes rollouts shorter, --horizon {args.horizon} longer: '
                        'leave one out')
    if args.plot and not args.physics:
        raise UserError('--plot draws what --physics reports: add --physics')
    if args.data and args.split not in (None, 'all'):
        raise UserError(f'--data evaluates all trajectories of a file: leave --split {args.split} out')
    if args.below is not None and args.compare is None:
        raise UserError(f'--below {args.below:g} is for --compare')
    written = [('json', args.json), ('save', args.save)]
    for path in args.compare or ():
        if not path.endswith(('.md', '.csv', '.png')):
            raise UserError(f"--compare '{path}': tables are written to .md or .csv, pictures to .png")
        written.append(('compare', path))
    for name, path in written:                                       # before minutes of work
        if path and not os.access(os.path.dirname(path) or '.', os.W_OK):
            raise UserError(f"--{name} '{path}': its directory is missing or cannot be written")
    return args


def checkpoints(paths):
    """{file: whether it is one of a folder of several}, in the order of the paths on the command line."""
    found = {}
    for path in paths:
        runs = find_runs(path)
        for file in runs:
            found[file] = len(runs) > 1
    return found


def main(argv=None):
    """Evaluate, print tables, write JSON. A run that cannot be evaluated is left out, with a line on stderr,
    if it is one of a folder of several. Returns the list of results. Raises UserError."""
    args = arguments(argv)
    files = checkpoints(args.ckpt)
    if args.save and len(files) > 1:
        raise UserError(f'--save writes the predictions of one checkpoint, of {len(files)} here: name one')
    if args.compare is not None and len(files) < 2:
        raise UserError(f"--compare needs two checkpoints or more; there is '{min(files)}' alone")
    device = pick(args.device, 'eval')
    results = []
    for file, is_one_of_several in files.items():
        try:
            result = evaluate_checkpoint(
                file, args.split, args.data, args.initial_step, args.steps, args.rollout,
                factors=args.superres, n_random=args.random, horizon=args.horizon, densities=args.placements,
                physical=args.physics, plot=args.plot, device=device, batch_size=args.batch_size,
                save=args.save)
            results.append(result)
        except UserError as error:
            if not is_one_of_several:
                raise
            print(f"eval: '{file}' is left out: {error}", file=sys.stderr, flush=True)
    if not results:
        raise UserError(f'none of the {len(files)} checkpoints could be evaluated')
    if args.compare is not None:
        compare(results, args.compare, args.below)
    else:
        for group in groups(results):
            say(f'\n{heading(group[0])}\n\n{table(group)}')
            for r in group:
                if 'physics' in r:
                    say(f"\nphysics of '{r['ckpt']}'\n{physics.lines(r['physics'])}")
    if args.json:
        with whole_file(args.json) as out:
            json.dump(results[0] if len(results) == 1 else results, out, indent=1, allow_nan=False)
    return results


if __name__ == '__main__':
    one_line_errors()
    main()
