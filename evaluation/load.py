"""
The data of a checkpoint: its files are found and checked against the model, rows are chosen and read.
eval.py, sample.py and peers/ use it.
"""
import hashlib
import os
from typing import NamedTuple

import numpy as np
import torch

from data import seen_rows
from evaluation.scores import check_initial_step
from files.open import open_source, read_rows, split_rows
from grids import is_strided, shape_text
from runtime.configurator import UserError, say
from runtime.inputs import axis_points, say_unseen

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


# ---------------------------------------------------------------------------------------------
# files

def find_data(state, ckpt):
    """Paths of the files that a checkpoint was trained on. Each is looked for relative to the run (run and
    data may have moved together), at its absolute path, as it was typed, and relative to the repository.
    Raises UserError with these places where a file is in none of them."""
    data = state['data']
    folder = os.path.dirname(os.path.abspath(ckpt))
    paths = []
    for typed, absolute, relative in zip(data['paths'], data['absolute'], data['relative']):
        beside = os.path.normpath(os.path.join(folder, relative))
        places = [beside, absolute, typed, os.path.join(REPOSITORY, typed)]
        there = [path for path in places if os.path.exists(path)]
        if not there:
            missing = ', '.join(f"'{path}'" for path in dict.fromkeys(places))
            raise UserError(f"'{ckpt}' was trained on '{typed}', which is missing (looked for {missing}): "
                            'put it back, or name another file with --data FILE')
        paths.append(there[0])
    return paths


def open_data(state, cfg, ckpt, data=None):
    """The data files of a checkpoint, or the file `data`, checked against the model: [Source]. Raises
    UserError."""
    paths = [data] if data else find_data(state, ckpt)
    sources = [open_source(path, cfg.pde) for path in paths]
    for source in sources:
        check_fit(source, cfg)
    return sources


def check_fit(source, cfg):
    """Raise UserError where the fields, parameters, domain, cells or times of a file do not fit a model."""
    path = source.path
    if len(source.fields) != cfg.n_field or not set(cfg.params) <= set(source.params):
        raise UserError(f"'{path}' holds {len(source.fields)} field(s) and the parameters "
                        f'{list(source.params)}; the model was trained on {cfg.n_field} field(s) and '
                        f'{list(cfg.params)}')
    entry = source.entry
    if (entry.low, entry.length, entry.boundary) != (tuple(cfg.low), tuple(cfg.length), cfg.boundary):
        raise UserError(f"'{path}' has the {entry.boundary} domain {entry.low} + {entry.length}, the model "
                        f'the {cfg.boundary} one {tuple(cfg.low)} + {tuple(cfg.length)}')
    grid = tuple(cfg.grid)
    if not is_strided(grid, source.shape) and not is_strided(source.shape, grid):
        ratio = source.shape[0] / grid[0]
        raise UserError(f"'{path}' has {shape_text(source.shape)} cells, the trained grid {shape_text(grid)} "
                        f'points: one must be a whole multiple of the other, the same along every axis, and '
                        f'{source.shape[0]} / {grid[0]} = {ratio:g}')
    stride = cfg.dt / source.dt
    if abs(stride - source.time_stride(cfg.dt)) > 1e-6 * stride:
        raise UserError(f"'{path}' has a frame every {source.dt:g} s, and the model's step of {cfg.dt:g} s "
                        f'must be a whole multiple: {cfg.dt:g} / {source.dt:g} = {stride:g}')
    if not cfg.periodic:
        check_points(source, cfg)


def check_points(source, cfg):
    """Raise UserError where the points of a file are not those of the model's grid. On a periodic domain the
    first point may lie anywhere in its cell; between walls it may not."""
    for axis, n in enumerate(grid_of(source, cfg)):
        x = strided_axis(source, axis, n)
        expected = axis_points(cfg, axis, n).numpy()
        if np.abs(x - expected).max() > .01 * cfg.length[axis] / n:
            raise UserError(f"'{source.path}' has points at {x[0]:g}, {x[1]:g}, ..., the model at "
                            f'{expected[0]:g}, {expected[1]:g}, ...: between walls they must be the same')


# ---------------------------------------------------------------------------------------------
# rows

def choose_rows(state, sources, ckpt, split, data):
    """The rows that are evaluated, a range: those of `split`, or all of the file `data`. Prints a warning for
    trajectories of `data` that the model was trained on. Raises UserError for test rows that it was trained
    on, and for a file with fewer rows than in training."""
    seen = state['data']['seen']
    if data:
        source = sources[0]
        rows = range(source.n)
        again = seen_rows(source, rows, seen)
        if again:
            say(f"eval: warning: {len(again)} of {len(rows)} trajectories of '{source.path}' (first: "
                f"{again[0]}) have the initial condition of one that '{ckpt}' was trained on: its errors are "
                'too low there')
        return rows
    n = state['data']['n_trajectories']
    rows = split_rows(n, split, sources[0].entry.test)
    for source in sources:
        if source.n < n:
            raise UserError(f"'{source.path}' holds {source.n} trajectories, but '{ckpt}' was trained with "
                            f'{n} of them')
        again = seen_rows(source, rows, seen) if split == 'test' else []
        if again:
            raise UserError(f"test trajectory {again[0]} of '{source.path}' has the initial condition of one "
                            f"that '{ckpt}' was trained on (so do {len(again)} of {len(rows)} rows): name a "
                            'file made with another seed with --data FILE')
    return rows


def grid_of(source, cfg):
    """The grid on which a model is evaluated: the trained one, or that of the file where it is coarser."""
    return tuple(min(cells, n) for cells, n in zip(source.shape, cfg.grid))


def strided_axis(source, axis, n):
    """Coordinates (n,) along one axis of every k-th cell of a file."""
    return source.x[axis][::source.shape[axis] // n]


def read(sources, rows, cfg, grid):
    """Rows of all files, one file after another, at the trained time step and on `grid`, which strides their
    cells: (N, T, *grid, C) float32."""
    parts = []
    for source in sources:
        u = read_rows(source, rows, source.time_stride(cfg.dt), source.shape[0] // grid[0])
        parts.append(torch.from_numpy(u))
    return torch.cat(parts)


def params_of(sources, cfg, n_rows):
    """Parameters of n_rows rows of each file, one file after another, {name: (N,)}."""
    result = {}
    for name in cfg.params:
        values = torch.tensor([source.params[name] for source in sources])
        result[name] = values.repeat_interleave(n_rows)
    return result


# ---------------------------------------------------------------------------------------------
# the task of an evaluation

class Task(NamedTuple):
    """A model, and the true frames with which its rollouts are compared."""
    model: torch.nn.Module
    sources: list                      # [Source]
    split: str
    rows: range                        # of each file
    u: torch.Tensor                    # (N, T, *grid, C), all frames from the first one on
    params: dict                       # {name: (N,)}
    initial_step: int                  # true frames before a rollout; it starts from the last of them
    reencode: bool                     # decode and encode again after every step
    batch_size: int                    # trajectories rolled out at a time

    @property
    def grid(self):
        return tuple(self.u.shape[2:-1])

    @property
    def steps(self):
        return self.u.shape[1] - self.initial_step


def open_task(state, model, ckpt, args):
    """The Task of a checkpoint by the arguments of eval.py: data, split, initial_step, steps, rollout,
    batch_size. Raises UserError."""
    cfg = model.cfg
    sources = open_data(state, cfg, ckpt, args.data)
    split = 'all' if args.data else args.split or 'test'
    rows = choose_rows(state, sources, ckpt, split, args.data)
    say_unseen('eval: note: ', cfg, {name: [source.params[name] for source in sources] for name in cfg.params})
    paths = ', '.join(source.path for source in sources)
    say(f"eval: '{ckpt}' on {split} rows {rows.start}..{rows.stop - 1} of {paths}")
    u = read(sources, rows, cfg, grid_of(sources[0], cfg))
    params = params_of(sources, cfg, len(rows))
    n = state['config']['initial_step'] if args.initial_step is None else args.initial_step
    check_initial_step(n, u.shape[1])
    if args.steps is not None:
        most = u.shape[1] - n
        if not 1 <= args.steps <= most:
            raise UserError(f'--steps {args.steps} must be from 1 to {most}, the number of frames after the '
                            'first initial_step ones')
        u = u[:, :n + args.steps]
    return Task(model, sources, split, rows, u, params, n, args.rollout == 'reencode', args.batch_size)


def facts(state, ckpt, task):
    """What was evaluated and on which data, in JSON types."""
    model = task.model
    data = state['data']
    first_frames = hashlib.sha256(data['seen'].numpy().tobytes())
    trained_on = {'n_trajectories': data['n_trajectories'], 'params': state['model_args']['seen_params'],
                  'first_frames': first_frames.hexdigest()}
    return {'ckpt': ckpt, 'dataset': model.cfg.pde, 'split': task.split, 'initial_step': task.initial_step,
            'n_trajectories': len(task.u), 'n_params': model.n_params(), 'iter': state['iter'],
            'train_seconds': state['train_seconds'], 'peak_memory_gb': state.get('peak_memory_gb'),
            'data': [source.path for source in task.sources], 'rows': [task.rows.start, task.rows.stop - 1],
            'grid': list(task.grid), 'steps': task.steps, 'dt': model.cfg.dt, 'trained_on': trained_on}
