"""Rollouts longer than the trajectories of a data file: do they stay bounded, and how far from the solver's
solution are they?"""
import math

import torch

from evaluation.off_grid import grid_axes, portions, resampled_exactly, solved
from evaluation.scores import predict, predicted_fields
from files.fit import read_placed
from metrics import bounded, by_frame, conservation_gap, correlation, correlation_time, nrmse, rms
from runtime.configurator import say
from runtime.progress import Progress


@torch.no_grad()
def long_rollouts(task, factor):
    """
    Scores of rollouts to `factor` times the time of the last frame of a task (evaluation.load.Task).

    Returns {'factor', 'steps', 'seconds'} and means over the trajectories: 'finite' and 'bounded', the
    fractions whose values are all finite, and whose rms is at most twice the largest of the truth at all
    times; 'rms_growth', the rms at the end over that of the frame that the rollout starts from;
    'integral_drift', the change of conserved integrals between these two (metrics.conservation_gap; only if
    there are any). Where the equation has a built-in solver, which starts from the files' first frames, also
    'nrmse', 'nrmse_end', 'correlation_time', 'true_rms_growth' and 'per_step'; without one, the truth in
    'bounded' is the frames of the files.
    """
    model = task.model
    cfg = model.cfg
    n = task.initial_step
    n_frames = factor * (task.u.shape[1] - 1) + 1
    is_solved = all(source.entry.solve for source in task.sources)
    if not is_solved:
        say(f'eval: {cfg.pde} has no built-in solver, so long rollouts have no truth: only their size is '
            'reported')
    cells = math.prod(task.grid)
    for source in task.sources:
        cells = max(cells, math.prod(source.shape))
    found = {}
    progress = Progress('eval: long rollouts', len(task.u) * (n_frames - n))
    for source, rows, here in portions(task, n_frames * cells * cfg.n_field):
        params = {name: value[here] for name, value in task.params.items()}
        u = task.u[here]
        p = predict(model, u, params, n, task.batch_size, task.reencode, n_steps=n_frames - n,
                    progress=progress)
        truth = solution(cfg, source, rows, task.grid, n_frames) if is_solved else None
        for name, value in scores(model, source.entry, p, u, n, truth).items():
            found.setdefault(name, []).append(value)
    n_steps = n_frames - n
    result = {'factor': factor, 'steps': n_steps, 'seconds': n_steps * cfg.dt}
    for name, values in found.items():
        value = torch.cat(values).double()
        result[name] = float(value.mean())
        if name == 'per_step':                                       # (N, steps, C)
            result['nrmse'] = result[name]
            result[name] = value.mean((0, 2)).tolist()
            result['nrmse_end'] = result[name][-1]
    return result


def scores(model, entry, p, u, initial_step, truth):
    """{name: value of each trajectory} of rollouts p (N, steps, *grid, C) from the frame initial_step - 1 of
    u (N, T, *grid, C). truth: the solution at all times, (N, initial_step + steps, *grid, C), or None."""
    start = u[:, initial_step - 1:initial_step]
    result = {}
    conserved = [entry.fields.index(name) for name in entry.conserved]
    if conserved:
        end = p[:, -1:, ..., conserved].double()
        result['integral_drift'] = conservation_gap(end, start[..., conserved].double())
    p = predicted_fields(model, p)
    y = predicted_fields(model, u if truth is None else truth)
    size = by_frame(rms, p)                                          # (N, steps, C)
    true_size = by_frame(rms, y)
    start_size = by_frame(rms, predicted_fields(model, start))
    result['finite'] = size.isfinite().all(2).all(1)
    result['bounded'] = bounded(size, true_size.amax(1))
    result['rms_growth'] = size[:, -1:] / start_size
    if truth is not None:
        y = y[:, initial_step:]
        result['true_rms_growth'] = true_size[:, -1:] / start_size
        result['per_step'] = by_frame(nrmse, p, y)
        r = by_frame(correlation, p, y)
        result['correlation_time'] = correlation_time(r, model.cfg.dt)
    return result


def solution(cfg, source, rows, grid, n_frames):
    """The built-in solver's solution on a grid, (N, n_frames, *grid, C), from the first frames of a file."""
    u0 = read_placed(source, rows, cfg, source.shape, source.n_frames)[:, 0]
    u, axes = solved(cfg, source, u0, source.shape, n_frames)
    return resampled_exactly(cfg, u, axes, grid_axes(cfg, grid))
