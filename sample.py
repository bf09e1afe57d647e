"""
Inference: encode an initial condition once, roll out in latent space, decode anywhere, draw.

    python sample.py --ckpt out/burgers_cpu                 # a test trajectory -> rollout.png, .gif and .npz
    python sample.py --ckpt out/burgers_cpu --index 7 --resolution 512
    python sample.py --ckpt out/burgers_cpu --random 3      # a random initial condition
    python sample.py --ckpt out/burgers_cpu --initial u0.npy --steps 80 --out my_rollout --format hdf5
    python sample.py --ckpt out/burgers_cpu --points 0.1 0.25 0.5
    python sample.py --ckpt out/navier_stokes --points 0.1 0.2 0.5 0.5      # x y of each point in two axes
    python sample.py --ckpt out/burgers_cpu --tokens        # also tokens.png: the latent rollout
    python sample.py --ckpt out/ks_full_0 --stepper ensemble --n_members 16       # also members.png
    python sample.py --ckpt out/ks_full_0 --ttc candidates=8                      # test-time search

--ckpt is a run folder, a checkpoint file, or a folder of runs, of which the newest is taken. The truth of a
test trajectory is read from its data file. Any other truth is computed by the solver of the equation, if it
has one. rollout.npz (or .hdf5) holds, with *X for X or X, Y:

    u        (B, T, *X, C) or, with --points, (B, T, Q, C)
    x, y     coordinates of the grid, (X,) and (Y,); with --points, x (Q,) or, in two axes, points (Q, 2)
    t        (T,) seconds
    u0       (B, *X, C) on the trained grid: what the model encodes
    truth    (1, T, ...) of the first trajectory, where u is decoded
    members  (B, M, T, ...) of a stochastic stepper; u is their mean
    tokens   (T + 1, S, D) of the first trajectory, with --tokens; those of u0 come first
"""
import argparse
import os
import unicodedata
from dataclasses import dataclass, replace

import h5py
import numpy as np
import torch

import equations
from evaluation.load import open_data
from evaluation.off_grid import POINTS, at_points, grid_axes, on_solver_axes, resampled, solver_axes
from evaluation.pictures import draw, draw_members, draw_tokens
from evaluation.scores import batches, check_initial_step, predicted_fields
from files.open import read_initial, read_rows, split_rows
from grids import shape_text
from metrics import field_nrmse, mean_nrmse
from model import load_state
from runtime import extensions
from runtime.checkpoint import find_checkpoint, load_checkpoint
from runtime.configurator import UserError, one_line_errors, parse_flags, say
from runtime.device import pick
from runtime.inputs import unseen

SEED = 10 ** 6                         # added to --random, so that no training data have the same seed
BATCH = 64                             # trajectories rolled out at a time, at most
MEMBERS = 8                            # default of --n_members for a stochastic stepper


@dataclass
class Start:
    """Where a rollout starts: the model encodes frame initial_step - 1."""
    frames: torch.Tensor               # those that are known, from frame 0 on, (B, T, *X, C)
    axes: list                         # coordinates of their cells, one tensor an axis
    params: dict                       # {'Nu': .01}
    what: str                          # for the title and the log
    initial_step: int
    steps: int


# ---------------------------------------------------------------------------------------------
# initial conditions

def make_start(state, model, file, args):
    """The Start that the command line asks for. Raises UserError."""
    cfg = model.cfg
    entry = equations.entry(cfg.pde)
    keys = {key: getattr(args, key) for key in equations.parameter_keys()}
    params = equations.parameters(cfg.pde, keys)                     # checks them
    given = {name: value for name, value in params.items() if keys[name.lower()] is not None}
    if args.initial is None and args.random is None:
        return from_trajectory(state, model, file, args, given)
    n = 1
    if args.initial is not None:
        u0 = torch.from_numpy(read_initial(args.initial, cfg.n_field, len(cfg.grid), entry.steady))
        axes = grid_axes(cfg, u0.shape[1:-1])
        what = os.path.basename(args.initial)
    else:
        if entry.initial is None:
            raise UserError(f'--random: {cfg.pde} has no random initial conditions: use --index or --initial')
        n = state['config']['initial_step']
        cells = [state['config']['space_stride'] * points for points in cfg.grid]
        axes = solver_axes(cfg, entry, cells)
        u0 = entry.start(1, cells, args.random + SEED).float()
        what = f'random initial condition {args.random}'
    trained = {name: values[0] for name, values in zip(cfg.params, cfg.seen_params)}
    end = (entry.frames - 1) * entry.dt                              # of the data that the solver makes
    steps = args.steps or max(1, round(end / cfg.dt) - n + 1)
    return Start(u0[:, None], axes, {**trained, **given}, what, n, steps)


def from_trajectory(state, model, file, args, given):
    """Trajectory --index of the test split, or of all rows of --data. Several files take turns. Parameters
    that are given choose the files that have them. If no file has them, only frame 0 is taken."""
    cfg = model.cfg
    sources = open_data(state, cfg, file, args.data)
    fitting = [source for source in sources if has_params(source, given)]
    turns = fitting or sources
    source = turns[args.index % len(turns)]
    rows = range(source.n)
    split = 'trajectory'
    if not args.data:
        rows = split_rows(state['data']['n_trajectories'], 'test', source.entry.test)
        split = 'test trajectory'
    number = args.index // len(turns)
    if not 0 <= number < len(rows):
        raise UserError(f'--index {args.index}: there are {len(rows) * len(turns)} {split} numbers, from 0 on')
    row = rows[number]
    u = torch.from_numpy(read_rows(source, range(row, row + 1), source.time_stride(cfg.dt)))
    n = state['config']['initial_step']
    check_initial_step(n, u.shape[1])
    steps = args.steps or u.shape[1] - n
    own = {name: source.params[name] for name in cfg.params}
    frames = u if fitting else u[:, :1]
    what = f'{split} {row}' + (f' of {os.path.basename(args.data)}' if args.data else '')
    return Start(frames, grid_axes(cfg, source.shape), {**own, **given}, what, n, steps)


def has_params(source, params):
    """Does a file have these parameters?"""
    return all(abs(source.params[name] - value) <= 1e-4 * value for name, value in params.items())


# ---------------------------------------------------------------------------------------------
# truth and rollout

def truth_of(cfg, start):
    """The true frames of the first trajectory from frame initial_step - 1 on, (1, steps + 1, *X, C), and their
    coordinates: from a file, or by the solver, which starts from frame 0. (None, None) if there are none."""
    n = start.initial_step
    last = n + start.steps
    if start.frames.shape[1] >= last:
        return start.frames[:1, n - 1:last], start.axes
    entry = equations.entry(cfg.pde)
    cells = [max(len(x), n_cells) for x, n_cells in zip(start.axes, entry.cells)]          # fine at shocks
    fine, axes = on_solver_axes(cfg, entry, start.frames[:1, 0], start.axes, cells)
    t = np.arange(last) * cfg.dt
    try:
        u = entry.solution(fine, start.params, t).float()
    except UserError as error:
        say(f'note: there is no truth: {error}')
        return None, None
    return u[:, n - 1:], axes


def initial_fields(cfg, start, truth, truth_axes):
    """What the model encodes, on the trained grid, (B, *grid, C)."""
    axes = grid_axes(cfg, cfg.grid)
    if start.frames.shape[1] >= start.initial_step:
        return resampled(cfg, start.frames[:, start.initial_step - 1], start.axes, axes)
    if truth is None:
        raise UserError(f'frame {start.initial_step - 1}, from which this model starts, is not known')
    return resampled(cfg, truth[:, 0], truth_axes, axes)


def roll_out(model, start, u0, points, args):
    """Predictions at points (Q, d): (B, M, steps, Q, C), where M is 1 without members."""
    n = max(1, args.n_members)
    module = model.stepper(args.stepper)
    if args.flow_steps:
        module.n_steps = args.flow_steps
    how = {'reencode': args.rollout == 'reencode', 'stepper': args.stepper, 'n_members': n}
    parts = []
    for first, fields, params in batches_of(model, start, u0, n * len(points)):
        u = model.rollout(fields, start.steps, points, params, seed=args.seed + first, **how)
        parts.append(u.cpu())
    return torch.cat(parts)


def searched(model, start, u0, settings):
    """The rollouts that a test-time search chooses, on the trained grid: (B, 1, steps, Q, C). Prints how many
    evaluations of networks it took."""
    from probabilistic.rewards import Rewards
    from probabilistic.search import Search
    parts = []
    spent = 0
    n_rollouts = settings.candidates * settings.beam_width
    for first, fields, params in batches_of(model, start, u0, n_rollouts * len(model.points)):
        own = replace(settings, seed=settings.seed + first)
        rewards = Rewards(model, own, params)
        search = Search(model, fields.to(model.device), start.steps, params, own, rewards)
        parts.append(search.best().flatten(2, -2).cpu())
        spent += int(search.spent.sum())
    say(f'search with {settings.stepper}: {spent / len(u0):.6g} evaluations of networks for a rollout, '
        f"rewards: {', '.join(rewards.weights)}")
    return torch.cat(parts)[:, None]


def batches_of(model, start, u0, n_points):
    """Batches of trajectories that decode n_points each: [(number of the first, u0, {'Nu': (n,)})]"""
    size = max(1, min(BATCH, POINTS // n_points))
    params = {}
    for name, value in start.params.items():
        params[name] = torch.full((len(u0),), value, device=model.device)
    return [(rows.start, u0[rows], own) for rows, own in batches(len(u0), size, params)]


def tokens_of(model, start, u0):
    """The tokens of the first trajectory in a latent rollout by the operator, (steps + 1, S, D)."""
    z = model.encode(u0[:1])
    tokens = [z.tokens]
    for _ in range(start.steps):
        z = model.step(z, start.params)
        tokens.append(z.tokens)
    return torch.cat(tokens).cpu()


# ---------------------------------------------------------------------------------------------
# output

def where_to_decode(cfg, args, truth):
    """Points (Q, d) at which to decode (None: on a grid), the shape of the grid or (Q,), and the coordinates
    {name: array}."""
    if args.points:
        points = torch.tensor(args.points).view(-1, len(cfg.grid))
        name = 'x' if len(cfg.grid) == 1 else 'points'
        return points, points.shape[:1], {name: points.squeeze(1).numpy()}
    shape = cfg.grid if truth is None or args.ttc else truth.shape[2:-1]
    if args.resolution:
        shape = [args.resolution] * len(cfg.grid)
    axes = grid_axes(cfg, shape)
    return None, tuple(shape), {name: x.numpy() for name, x in zip('xy', axes)}


def save(path, arrays):
    """Save arrays by name as .npz or .hdf5."""
    if path.endswith('.npz'):
        np.savez_compressed(path, **arrays)
        return
    with h5py.File(path, 'w') as file:
        for name, array in arrays.items():
            file[name] = array


def symbol(name):
    """The Greek letter that a parameter is named after: 'Nu' -> 'ν'."""
    try:
        return unicodedata.lookup(f'GREEK SMALL LETTER {name}')
    except KeyError:
        return name


def say_scores(model, members, truth):
    """Print scores of rollouts (M, T, ..., C) of one trajectory: those of their mean and, of several, of the
    ensemble."""
    members = predicted_fields(model, members)[None]
    truth = predicted_fields(model, truth)
    mean = members.mean(1)
    text = f'nRMSE {mean_nrmse(mean, truth):.4f}'
    if members.shape[1] > 1:
        from probabilistic.scores import ensemble_metrics
        scores = ensemble_metrics(members, truth)
        text += f", CRPS {scores['relative_crps']:.4f}, spread-skill {scores['spread_skill']:.3f}"
    names = [model.cfg.fields[field] for field in model.cfg.predicted]
    if len(names) > 1:
        values = field_nrmse(mean, truth)
        text += ' (' + ', '.join(f'{name} {value:.4f}' for name, value in zip(names, values)) + ')'
    say(f'{text} of the first trajectory')
