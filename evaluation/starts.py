"""
Where a rollout of sample.py starts, and its truth: a trajectory of a data file, a file of initial conditions,
or a random initial condition. `cfg` is a model.ModelConfig.
"""
import os
from dataclasses import dataclass

import numpy as np
import torch

import equations
from evaluation.load import open_data
from evaluation.off_grid import grid_axes, on_solver_axes, resampled, solver_axes
from evaluation.scores import check_initial_step
from files.fit import initial_params, read_placed
from files.open import read_initial, split_rows
from runtime.configurator import UserError, say

SEED = 10 ** 6                         # added to --random, so that no training data have the same seed


@dataclass
class Start:
    """Where a rollout starts: the model encodes frame initial_step - 1."""
    frames: torch.Tensor               # those that are known, from frame 0 on, (B, T, *X, C)
    axes: list                         # coordinates of their cells, one tensor per axis
    params: dict                       # {'Nu': .01}
    what: str                          # for the title and the log
    initial_step: int
    steps: int
    first_time: float = 0.             # seconds, of frame 0


def make_start(state, cfg, file, args):
    """The Start that the command line of sample.py asks for. Raises UserError."""
    keys = {key: getattr(args, key) for key in equations.parameter_keys()}
    params = equations.parameters(cfg.pde, keys)                     # checks them
    given = {name: value for name, value in params.items() if keys[name.lower()] is not None}
    if args.initial is not None:
        return from_file(cfg, args, given)
    if args.random is not None:
        return from_random(state, cfg, args, given)
    return from_trajectory(state, cfg, file, args, given)


def from_trajectory(state, cfg, file, args, given):
    """Trajectory --index of the test split, or of all rows of --data. Several files take turns. Parameters
    that are given choose the files that have them. If no file has them, only frame 0 is taken."""
    sources = open_data(state, cfg, file, args.data)
    fitting = [source for source in sources if has_params(source, given)]
    turns = fitting or sources
    source = turns[args.index % len(turns)]
    if args.data:
        what = f'trajectory of {os.path.basename(args.data)}'
        rows = range(source.n)
    else:
        what = 'test trajectory'
        rows = split_rows(state['data']['n_trajectories'], 'test', source.entry.test)
    number = args.index // len(turns)
    if not 0 <= number < len(rows):
        raise UserError(f'--index {args.index} must be from 0 to {len(rows) * len(turns) - 1}')
    row = rows[number]
    u = read_placed(source, range(row, row + 1), cfg, source.shape)
    n = state['config']['initial_step']
    check_initial_step(n, u.shape[1])
    steps = args.steps or u.shape[1] - n
    own = {name: source.params[name] for name in cfg.params}
    frames = u if fitting else u[:, :1]
    return Start(frames, grid_axes(cfg, source.shape), {**own, **given}, f'{what} {row}', n, steps,
                 source.first_time)


def has_params(source, params):
    """Does a file have these parameters?"""
    return all(abs(source.params[name] - value) <= 1e-4 * value for name, value in params.items())


def from_file(cfg, args, given):
    """The initial conditions of a file."""
    u0 = read_initial(args.initial, cfg.n_field, len(cfg.grid), equations.entry(cfg.pde).steady)
    u0 = torch.from_numpy(u0)
    axes = grid_axes(cfg, u0.shape[1:-1])
    params = {**trained_params(cfg), **initial_params(os.path.expanduser(args.initial), cfg), **given}
    steps = args.steps or usual_steps(cfg, 1)
    return Start(u0[:, None], axes, params, os.path.basename(args.initial), 1, steps)


def from_random(state, cfg, args, given):
    """A random initial condition on as many cells as the training data have. Raises UserError where the
    equation has none."""
    entry = equations.entry(cfg.pde)
    if entry.initial is None:
        raise UserError(f'--random: {cfg.pde} has no random initial conditions: use --index or --initial')
    n = state['config']['initial_step']
    cells = [state['config']['space_stride'] * points for points in cfg.grid]
    u0 = entry.start(1, cells, args.random + SEED).float()
    params = {**trained_params(cfg), **given}
    what = f'random initial condition {args.random}'
    steps = args.steps or usual_steps(cfg, n)
    return Start(u0[:, None], solver_axes(cfg, entry, cells), params, what, n, steps)


def trained_params(cfg):
    """Parameters of the first file of the training, {'Nu': .01}."""
    return {name: values[0] for name, values in zip(cfg.params, cfg.seen_params)}


def usual_steps(cfg, initial_step):
    """Steps to the end of a file as the built-in solver makes it."""
    entry = equations.entry(cfg.pde)
    end = (entry.frames - 1) * entry.dt
    return max(1, round(end / cfg.dt) - initial_step + 1)


def truth_of(cfg, start):
    """The true frames of the first trajectory from frame initial_step - 1 on, (1, steps + 1, *X, C), and
    their coordinates: from the file, or by the solver, which starts from frame 0. (None, None) if it
    cannot."""
    n = start.initial_step
    end = n + start.steps
    if start.frames.shape[1] >= end:
        return start.frames[:1, n - 1:end], start.axes
    entry = equations.entry(cfg.pde)
    cells = [max(len(x), least) for x, least in zip(start.axes, entry.cells)]    # so that shocks stay sharp
    u0, axes = on_solver_axes(cfg, entry, start.frames[:1, 0], start.axes, cells)
    try:
        u = entry.solution(u0, start.params, np.arange(end) * cfg.dt).float()
    except UserError as error:
        say(f'note: no truth: {error}')
        return None, None
    return u[:, n - 1:], axes


def initial_fields(cfg, start, truth, truth_axes):
    """The fields that the model encodes, on the trained grid, (B, *grid, C). truth, truth_axes: as truth_of
    returns them. Raises UserError if neither has the frame."""
    to = grid_axes(cfg, cfg.grid)
    number = start.initial_step - 1
    if number < start.frames.shape[1]:
        return resampled(cfg, start.frames[:, number], start.axes, to)
    if truth is None:
        raise UserError(f'this model starts from frame {number}, which is not known: use --index')
    return resampled(cfg, truth[:, 0], truth_axes, to)
