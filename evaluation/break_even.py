"""
The built-in solver beside a model: its error and time on coarser grids, and after how many trajectories a model has
paid for itself (eval.py --break_even).

    N = (seconds of training + seconds of making its data) / (seconds of the solver - seconds of the model)

The seconds below the line are those of a trajectory, by the solver on its coarsest grid that errs no more than the
model (arXiv 2605.15399 asks for such a figure). There are two such numbers: with trajectories one at a time, and all
in one batch. A model that is no faster than the solver never pays. The minutes in which settings were chosen do not
count.
"""
import math
import time

import numpy as np
import torch

from evaluation.speed import median_ms
from files.open import split_rows
from files.write import batch_size_of
from metrics import mean_nrmse
from runtime.configurator import UserError, say
from runtime.device import float64_device
from runtime.inputs import resample_axes

WAYS = {'one': 'one at a time', 'batch': 'in a batch'}
LONG = 30.                             # seconds of solving, beyond which data are not made again to be timed


def has_solver(sources):
    """Can a solver start from the frames of these files? Not for several files, and not among obstacles, where it
    starts from rest."""
    entry = sources[0].entry
    return entry.solve is not None and len(sources) == 1 and not entry.domain


def classical(sources, cfg, y, device='cpu'):
    """
    The solver on coarser and coarser grids: {cells along an axis: nRMSE, ms of one trajectory, and ms a trajectory
    in a batch of all}.

    y (N, T, *grid, C) are true frames, cfg.dt apart, on the grid of the model. The solver starts from the first of
    them, interpolated to its cells, and its result is interpolated back. Grids that it refuses are left out. Empty
    without such a solver.
    """
    if not has_solver(sources):
        return {}
    source = sources[0]
    entry = source.entry
    device = float64_device(str(device))
    truth = y[:, 1:, ..., list(cfg.predicted)]
    t = [k * cfg.dt for k in range(y.shape[1])]
    lengths = [1.] * entry.axes if entry.periodic else None
    found = {}
    for factor in (1, 2, 4, 8):
        points = []                                                  # as fractions of the domain
        coarse = []
        for x, n, low, length in zip(source.x, cfg.grid, entry.low, entry.length):
            x = torch.from_numpy((x[::len(x) // n] - low) / length)
            cells = n // factor
            points.append(x)
            aligned = entry.translation_invariant                    # else the solver has its own cells
            coarse.append(x[::factor] if aligned else (torch.arange(cells).double() + .5) / cells)
        first = y[:, 0].double()
        low, high = first.flatten(0, -2).aminmax(dim=0)
        u0 = resample_axes(first, points, coarse, lengths).clamp(low, high)          # no overshoot at a jump
        for field in map(entry.fields.index, entry.conserved):
            gap = first[..., field].flatten(1).mean(1) - u0[..., field].flatten(1).mean(1)
            u0[..., field] += gap.view(-1, *[1] * entry.axes)
        u0 = u0.to(device)

        def solve_one(u0=u0):
            entry.solution(u0[:1], source.params, t)

        try:
            one = median_ms(solve_one, u0.device, 10)
            start = time.perf_counter()
            p = entry.solution(u0, source.params, t)[:, 1:].cpu()    # (N, T - 1, *cells, C)
            batch = 1e3 * (time.perf_counter() - start) / len(u0)
        except UserError as error:
            say(f'{u0.shape[1]} cells of the solver: {error}')
            continue
        p = resample_axes(p, coarse, points, lengths)[..., list(cfg.predicted)]
        found[u0.shape[1]] = {'nrmse': mean_nrmse(p, truth), 'ms_per_trajectory': one, 'ms_in_batch': batch}
    return found


def cells_for(error, found):
    """Cells of the coarsest grid with at most this error, or else of the finest one. found: {cells: scores}
    as `classical` returns it; JSON has made texts of its numbers of cells."""
    enough = [cells for cells, at in found.items() if at['nrmse'] <= error]
    return min(enough, key=int) if enough else max(found, key=int)


def seconds_of_data(source, n, device='cpu'):
    """Seconds in which the solver makes n trajectories of a file, about: a batch of them is made, or, where that
    takes long, one and a few."""
    entry = source.entry
    device = float64_device(str(device))
    t = np.arange(source.n_frames) * source.dt
    n_value = math.prod(source.shape) * len(source.fields)
    size = min(n, batch_size_of(device, n_value, n_value * source.n_frames))

    def seconds(size):
        start = time.perf_counter()
        u0 = entry.start(size, source.shape).to(device)
        entry.solution(u0, source.params, t).cpu()
        return time.perf_counter() - start

    one = seconds(1)
    few = seconds(min(4, size))
    each = max(0., few - one) / 3
    whole = few + each * (size - min(4, size))
    if whole < LONG:
        whole = seconds(size)
    return whole * n / size


def break_even(cost, solver_ms, model_ms):
    """Trajectories after which `cost` seconds have paid; None: never."""
    gain = (solver_ms - model_ms) / 1e3
    return math.ceil(cost / gain) if gain > 0 else None


def trajectories(n):
    return 'never' if n is None else f'{n:,}'


def report(task, nrmse, train_seconds, n_trajectories):
    """Break-even of a model with the error `nrmse` on a Task, a dict of JSON types. n_trajectories: rows of the file
    that were for training, validation and test; the test rows are not paid for."""
    device = task.model.device
    found = classical(task.sources, task.model.cfg, task.u[:, task.initial_step - 1:], device)
    cells = cells_for(nrmse, found)
    source = task.sources[0]
    n_test = len(split_rows(n_trajectories, 'test', source.entry.test))
    data_seconds = seconds_of_data(source, n_trajectories - n_test, device)
    own = model_ms(task)
    solver = {'one': found[cells]['ms_per_trajectory'], 'batch': found[cells]['ms_in_batch']}
    return {'train_seconds': train_seconds, 'data_seconds': data_seconds, 'cells': cells,
            'solver_nrmse': found[cells]['nrmse'], 'solver_ms': solver, 'model_ms': own,
            'pays_after': {way: break_even(train_seconds + data_seconds, solver[way], own[way]) for way in WAYS}}


def model_ms(task):
    """Milliseconds a trajectory of a decoded rollout, one at a time and in one batch."""
    u0 = task.u[:, task.initial_step - 1].to(task.model.device)

    def of(size):
        params = {name: value[:size] for name, value in task.params.items()}

        def roll():
            task.model.rollout(u0[:size], task.steps, params=params)

        return median_ms(roll, task.model.device, 5) / size

    return {'one': of(1), 'batch': of(len(u0))}
