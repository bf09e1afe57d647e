"""
The built-in solver beside a model: its error and time at cheaper settings, and after how many trajectories a model
has paid for itself (eval.py --break_even).

    N = (seconds of training + seconds of making its data) / (seconds of the solver - seconds of the model)

The seconds in the denominator are those of a trajectory. The solver's are those of the fastest solution that errs no more
than the model: on the grid of the data or a coarser one, as it makes the data or with the settings that its entry calls
`cheaper` (arXiv 2605.15399 asks for such a figure). There are two such numbers: trajectories one at a time, and in
batches. A model that is no faster never pays. All but the seconds of training are measured here and now; these are
those of the machine that trained, and of iterations alone. The time in which settings were chosen does not count, nor do
validations and the test rows.
"""
import math
import time

import numpy as np
import torch

from evaluation.off_grid import grid_axes, on_solver_axes, resampled_exactly
from evaluation.speed import median_ms
from files.open import split_rows
from files.write import batch_size_of, seconds_of_batch
from metrics import mean_nrmse
from runtime.configurator import UserError, say
from runtime.device import float64_device

WAYS = {'one': 'one at a time', 'batch': 'in batches'}
MS = {'one': 'ms_of_one', 'batch': 'ms_per_trajectory'}               # key of a result: milliseconds a trajectory
EIGHTHS = (8, 6, 4, 3, 2, 1)           # of the points along an axis: grids of the solver
LONG = 30.                             # seconds; a batch that takes longer is not made again to be timed


# ---------------------------------------------------------------------------------------------
# the solver

def no_solver(sources):
    """Why no solver can start from the frames of these files, or ''."""
    entry = sources[0].entry
    if entry.solve is None:
        return f'{sources[0].pde} has no built-in solver'
    if entry.domain:
        return f'the solver of {sources[0].pde} starts from rest, not from a frame'
    return f'it takes one file, not {len(sources)}' if len(sources) > 1 else ''


def classical(sources, cfg, y, device='cpu'):
    """
    Solutions of the built-in solver on grids and with settings that get cheaper and cheaper:
    {'32 cells, refine=1': {'nrmse', 'ms_of_one', 'ms_per_trajectory'}}, milliseconds of one by itself, and in
    batches.

    y (N, T, *grid, C) are true frames, cfg.dt apart, on the grid of the model. The solver starts from the first of
    them, interpolated to its cells, and its result is interpolated back: by Fourier series on a periodic domain.
    Grids that it refuses are left out. Empty where no solver can start from a frame.
    """
    if no_solver(sources):
        return {}
    source = sources[0]
    entry = source.entry
    device = float64_device(str(device))
    truth = y[:, 1:, ..., list(cfg.predicted)]
    t = [k * cfg.dt for k in range(y.shape[1])]
    points = grid_axes(cfg, cfg.grid)
    grids = [tuple(n * eighths // 8 for n in cfg.grid) for eighths in EIGHTHS if min(cfg.grid) * eighths >= 8]
    if source.shape != tuple(cfg.grid):
        grids.insert(0, source.shape)
    found = {}
    for cells in grids:
        u0, axes = on_solver_axes(cfg, entry, y[:, 0].double(), points, cells)
        for field in map(entry.fields.index, entry.conserved):
            gap = y[:, 0, ..., field].double().flatten(1).mean(1) - u0[..., field].flatten(1).mean(1)
            u0[..., field] += gap.view(-1, *[1] * entry.axes)
        u0 = u0.to(device)
        for settings in ({}, *entry.cheaper):
            try:
                p, ms = solved(entry, u0, source.params, t, settings)
            except UserError as error:
                say(f'{cells[0]} cells of the solver: {error}')
                continue
            p = resampled_exactly(cfg, p, axes, points)[..., list(cfg.predicted)]
            name = ', '.join([f'{cells[0]} cells', *(f'{key}={value:g}' for key, value in settings.items())])
            found[name] = {'nrmse': mean_nrmse(p, truth), **{MS[way]: ms[way] for way in WAYS}}
    return found


def solved(entry, u0, params, t, settings):
    """The solution after the first frame, (N, T - 1, *cells, C) on the CPU, and milliseconds a trajectory by WAYS: one at a
    time, and in a batch as large as those in which data are made, or all N, if these are fewer."""
    n_value = u0[0].numel()
    size = min(len(u0), batch_size_of(u0.device, n_value, n_value * len(t)))

    def solve_one():
        entry.solution(u0[:1], params, t, **settings)

    def solve_batch():
        entry.solution(u0[:size], params, t, **settings)

    parts = [entry.solution(part, params, t, **settings)[:, 1:].cpu() for part in u0.split(size)]
    one = median_ms(solve_one, u0.device, 10)
    batch = median_ms(solve_batch, u0.device, 3) / size
    return torch.cat(parts), by_ways(one, batch)


def by_ways(one, batch):
    """Milliseconds a trajectory by WAYS. Where batches are slower, they count as one at a time."""
    return {'one': one, 'batch': min(one, batch)}


def cheapest(error, found, way):
    """The name of the fastest solution of `classical` that errs no more than `error`; None if there is none.
    way: one of WAYS."""
    enough = {name: at[MS[way]] for name, at in found.items() if at['nrmse'] <= error}
    return min(enough, key=enough.get, default=None)


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

    whole = seconds_of_batch(seconds, size, LONG)
    if whole < LONG:
        whole = seconds(size)
    return whole * n / size


def seconds_of_training_data(source, n_trajectories, device='cpu'):
    """seconds_of_data of the rows of a file that serve a training, of n_trajectories in all: test rows are not paid
    for."""
    n_test = len(split_rows(n_trajectories, 'test', source.entry.test))
    return seconds_of_data(source, n_trajectories - n_test, device)


# ---------------------------------------------------------------------------------------------
# the model beside it

def break_even(cost, solver_ms, model_ms):
    """Trajectories after which `cost` seconds have paid; None: never."""
    gain = (solver_ms - model_ms) / 1e3
    return math.ceil(cost / gain) if gain > 0 else None


def pays_after(cost, error, own_ms, found):
    """A model with this error, that cost so many seconds, beside `found`, the solutions of `classical`. own_ms: {way:
    milliseconds a trajectory}. Returns two dicts by WAYS: the name of the fastest solution that errs no more (None if there
    is none), and the trajectories after which the model has paid for itself (None: never; no entry without a solution)."""
    solvers = {way: cheapest(error, found, way) for way in WAYS}
    return solvers, {way: break_even(cost, found[name][MS[way]], own_ms[way]) for way, name in solvers.items() if name}


def trajectories(n):
    """A number of them as text, to three figures: '53,200', 'never'."""
    return 'never' if n is None else f'{float(f"{n:.3g}"):,.0f}'


def check(state, sources):
    """Raise UserError where there is no break-even of a checkpoint: its costs, or a solver, are not known."""
    why = no_solver(sources)
    parent = state['config'].get('init_from')
    if parent not in (None, '', 'auto', 'scratch'):
        why = f"it began with the weights of '{parent}', whose training is not counted"
    if 'members' in state['data']:
        why = 'several equations share its training'
    if why:
        raise UserError(f'--break_even: {why}')


def report(task, nrmse, train_seconds, n_trajectories):
    """Break-even of a model with the error `nrmse` on a Task, a dict of JSON types. n_trajectories: rows of the file
    that were for training, validation and test. Raises UserError where no solution is as good as the model."""
    device = task.model.device
    found = classical(task.sources, task.model.cfg, task.u[:, task.initial_step - 1:], device)
    if cheapest(nrmse, found, 'one') is None:
        raise UserError(f'--break_even: none of {len(found)} solutions has an error of {nrmse:.3g} or less')
    data_seconds = seconds_of_training_data(task.sources[0], n_trajectories, device)
    own = model_ms(task)
    names, after = pays_after(train_seconds + data_seconds, nrmse, own, found)
    return {'train_seconds': train_seconds, 'data_seconds': data_seconds, 'solver': names,
            'solver_nrmse': {way: found[name]['nrmse'] for way, name in names.items()},
            'solver_ms': {way: found[name][MS[way]] for way, name in names.items()}, 'model_ms': own,
            'batch_size': min(task.batch_size, len(task.u)), 'all': found, 'pays_after': after}


def model_ms(task):
    """Milliseconds a trajectory of a decoded rollout, one at a time and in batches."""
    u0 = task.u[:, task.initial_step - 1].to(task.model.device)

    def of(size):
        params = {name: value[:size] for name, value in task.params.items()}

        def roll():
            task.model.rollout(u0[:size], task.steps, params=params, reencode=task.reencode)

        return median_ms(roll, task.model.device, 5) / size

    return by_ways(of(1), of(min(task.batch_size, len(u0))))
