"""
The data of a checkpoint: its files are found and checked against the model, rows are chosen and read.
eval.py, sample.py and peers/ use it.
"""
import hashlib
import math
import os
import shlex
from typing import NamedTuple

import torch

import equations
from evaluation.scores import check_initial_step
from files.fit import Signs, check_model, grid_of, other_units, read_placed, zero_rows
from files.open import open_source, seen_rows, split_rows
from runtime.configurator import UserError, say
from runtime.inputs import say_unseen

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
            command = how_to_make(state, typed)
            mend = f'make it by {command}' if command else 'put it back'
            raise UserError(f"'{ckpt}' was trained on '{typed}', which is missing (looked for {missing}): "
                            f'{mend}, or name another file with --data FILE')
        paths.append(there[0])
    return paths


def how_to_make(state, typed):
    """The command that makes the data file `typed` of a checkpoint; '' for a file that training did not
    make."""
    config = state['config']
    args = state['model_args']
    entry = equations.entry(args['pde'])
    n = config.get('n_trajectories')
    resolution = config.get('resolution', 0)
    folder, name = os.path.split(typed)
    for number, values in enumerate(zip(*args['seen_params']) if args['params'] else [()]):
        params = dict(zip(args['params'], values))
        seeds = [seed for seed in (0, number) if name == entry.made(params, n, resolution, seed)]
        if entry.solve is None or not seeds:
            continue
        words = ['python', 'data.py', 'make', args['pde'], '--n', str(n)]
        for param, value in params.items():
            words += [f'--{param.lower()}', f'{value}']
        if seeds[0]:
            words += ['--seed', str(seeds[0])]
        if resolution:
            words += ['--resolution', str(resolution)]
        if folder != 'datasets':
            words += ['--data_dir', folder or '.']
        return shlex.join(words)
    return ''


def open_data(state, cfg, ckpt, data=None):
    """The data files of a checkpoint, or the file `data`, checked against the model: [Source]. Raises
    UserError."""
    paths = [data] if data else find_data(state, ckpt)
    sources = [open_source(path, cfg.pde, named=not data) for path in paths]
    for source in sources:
        check_model(source, cfg)
    return sources


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


def read(sources, rows, cfg, grid):
    """Rows of all files, one file after another, at the trained time step and on `grid`, which strides their
    cells: (N, T, *grid, C) float32."""
    return torch.cat([read_placed(source, rows, cfg, grid) for source in sources])


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
    """The Task of a checkpoint by the arguments of eval.py: data, split, rows, initial_step, steps, rollout,
    batch_size. Raises UserError."""
    cfg = model.cfg
    sources = open_data(state, cfg, ckpt, args.data)
    split = 'all' if args.data else args.split or 'test'
    rows = choose_rows(state, sources, ckpt, split, args.data)[:args.rows]
    say_unseen('eval: note: ', cfg, {name: [source.params[name] for source in sources] for name in cfg.params})
    paths = ', '.join(source.path for source in sources)
    say(f"eval: '{ckpt}' on {split} rows {rows.start}..{rows.stop - 1} of {paths}")
    u = read(sources, rows, cfg, grid_of(sources[0], cfg))
    params = params_of(sources, cfg, len(rows))
    n = first_predicted(state, cfg.dt) if args.initial_step is None else args.initial_step
    check_initial_step(n, u.shape[1])
    if args.steps is not None:
        most = u.shape[1] - n
        if not 1 <= args.steps <= most:
            raise UserError(f'--steps {args.steps} must be from 1 to {most}, the number of frames after the '
                            'first initial_step ones')
        u = u[:, :n + args.steps]
    check_values(model, sources, rows, u, n)
    return Task(model, sources, split, rows, u, params, n, args.rollout == 'reencode', args.batch_size)


def with_time_step(model, dt):
    """The model, with steps of `dt` seconds from now on. Says so where these were not trained. Raises UserError."""
    if not 0 < dt < math.inf:
        raise UserError(f'--dt {dt:g} must be positive')
    cfg = model.cfg
    say_unseen('eval: note: ', cfg, {'dt': [dt]})
    model.cfg = cfg.replace(dt=dt, other_dt=(cfg.dt, *cfg.other_dt))
    return model


def first_predicted(state, dt):
    """The initial_step of the training, in steps of dt seconds. Raises UserError where that is no whole number."""
    n = state['config']['initial_step']
    before = max(0, n - 1) * state['model_args']['dt'] / dt
    if abs(before - round(before)) > 1e-3:
        raise UserError(f'--dt {dt:g}: rollouts start after {before:g} of such steps; set --initial_step')
    return n if n < 1 else 1 + round(before)


def check_values(model, sources, rows, u, initial_step):
    """Print a warning for each file whose true frames (u (N, T, *grid, C), of all files) have no relative
    error, negative values of positive fields, or a scale far from that of the training."""
    for source, values in zip(sources, u.split(len(rows))):
        zero = [rows[number] for number in zero_rows(values[:, initial_step:], model.cfg.predicted)]
        signs = Signs(source)
        signs.add(values.numpy())
        told = [signs.text(), other_units(values, model)]
        if zero:
            some = ', '.join(map(str, zero[:5])) + (', ...' if len(zero) > 5 else '')
            told.append(f'{len(zero)} of {len(rows)} trajectories ({some}) have a frame in which a field is 0 '
                        'everywhere: its relative error is infinite, and so is the mean')
        for text in told:
            if text:
                say(f"eval: warning: '{source.path}': {text}")


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
