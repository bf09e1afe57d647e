"""
Inference: encode an initial condition once, roll out in latent space, decode anywhere, draw.

    python sample.py --ckpt out/burgers_cpu                 # a test trajectory -> rollout.png, .gif and .npz
    python sample.py --ckpt out/burgers_cpu --index 7 --resolution 512
    python sample.py --ckpt out/burgers_cpu --random 3      # a start drawn as the training data were
    python sample.py --ckpt out/burgers_cpu --initial u0.npy --steps 80 --out my_rollout --format hdf5
    python sample.py --ckpt out/burgers_cpu --points 0.1 0.25 0.5
    python sample.py --ckpt out/navier_stokes --points 0.1 0.2 0.5 0.5      # x y of each point in two axes
    python sample.py --ckpt out/burgers_cpu --tokens        # tokens.png, too: what the latent does

--ckpt is a run folder, a checkpoint file, or a folder of runs, of which the newest is taken. The truth is the
data file's for a test trajectory, and that of the equation's solver, if it has one, otherwise.

rollout.npz (or .hdf5) holds u (B, T, *X, C), the coordinates x (X,) and, with two axes, y (Y,), the times
t (T,) in seconds, u0, which the model started from, and the truth of the first trajectory (1, T, *X, C). With
--points it is u (B, T, Q, C), at x (Q,) with one axis and at points (Q, 2) with two. *X is X or X, Y. With
--tokens there is also tokens (T + 1, S, D) of the first trajectory, from those of u0 on, of which tokens.png
shows the first three principal components.
"""
import argparse
import os
import unicodedata
from dataclasses import dataclass

import h5py
import numpy as np
import torch

import pdes
from elsewhere import POINTS, at_points, grid_axes, moved, on_solver_axes, solver_axes
from eval import given_in_training, load_for_evaluation, open_data
from files import read_initial, read_rows, split_rows
from grids import by
from metrics import field_nrmse, mean_nrmse
from model import unseen
from pictures import draw, draw_tokens
from runtime.checkpoint import find_checkpoint
from runtime.configurator import UserError, one_line_errors, say
from runtime.device import pick
from scores import check_initial_step, given_frames, scored

SEED = 10 ** 6                         # added to --random, so that no training data began like it
BATCH = 64                             # trajectories rolled out at a time, at most
COMPONENTS = 3                         # principal components of the tokens that are drawn


@dataclass
class Start:
    """Where a rollout starts, and what is known of its truth."""
    u0: torch.Tensor                   # (B, *X, C), or (B, m, *X, C) for a model that sees m frames
    frame0: torch.Tensor               # (1, *X, C): frame 0 of the first trajectory, on all known cells
    axes: list                         # the coordinates of these cells, one tensor an axis
    params: dict                       # {'Nu': .01}
    what: str                          # for the title and the log
    steps: int
    given: int = 1                     # frames from frame 0 to the one that the first step leaves
    truth: torch.Tensor = None         # (1, T, *X, C) from the last given frame on; None: not in a file


# ---------------------------------------------------------------------------------------------
# starts

def given_params(cfg, args):
    """Parameters of the equation that were given on the command line, {'Nu': .01}. Raises UserError."""
    keys = {key: getattr(args, key) for key in pdes.parameter_keys()}
    params = pdes.parameters(cfg.pde, keys)                          # checks them
    return {name: value for name, value in params.items() if keys[name.lower()] is not None}


def trained_params(cfg):
    """Parameters of the first file of the training, {'Nu': .01}."""
    return {name: seen[0] for name, seen in zip(cfg.params, cfg.seen_params)}


def same(source, params):
    """Are these the parameters of a file?"""
    return all(abs(source.params[name] - value) <= 1e-4 * value for name, value in params.items())


def from_trajectory(state, model, file, args, params):
    """Trajectory --index of the test split, or of all rows of --data. Several files take turns; params, where
    they are given, pick those that have them. If none has, only frame 0 is taken from a file."""
    sources = open_data(state, model, file, args.data)
    fitting = [source for source in sources if same(source, params)]
    turns = fitting or sources
    source = turns[args.index % len(turns)]
    if args.data:
        split = 'file'
        rows = range(source.n)
    else:
        split = 'test split'
        rows = split_rows(state['data']['n_trajectories'], 'test', source.entry.test)
    number = args.index // len(turns)
    if not 0 <= number < len(rows):
        raise UserError(f'--index {args.index}: the {split} has {len(rows) * len(turns)} trajectories')
    row = rows[number]
    u = read_rows(source, range(row, row + 1), source.time_stride(model.cfg.dt))
    u = torch.from_numpy(u)                                          # (1, T, *X, C)
    given = given_in_training(state)
    check_initial_step(given, model.cfg.input_frames, u.shape[1])
    axes = grid_axes(model, source.shape)
    own = {name: source.params[name] for name in model.cfg.params}
    params = {**own, **params}
    what = f'trajectory {row} of {os.path.basename(args.data)}' if args.data else f'test trajectory {row}'
    steps = args.steps or u.shape[1] - given
    if not fitting:
        return from_frame0(model, u[:, 0], axes, params, what, steps, given)
    u0 = on_trained_grid(model, given_frames(model, u, given), axes)
    truth = u[:, given - 1:] if given + steps <= u.shape[1] else None
    return Start(u0, u[:, 0], axes, params, what, steps, given, truth)


def from_file(model, args, params):
    """The initial conditions of a file."""
    cfg = model.cfg
    u0 = torch.from_numpy(read_initial(args.initial, cfg.n_field, len(cfg.grid), pdes.entry(cfg.pde).steady))
    params = {**trained_params(cfg), **params}
    axes = grid_axes(model, u0.shape[1:-1])
    return Start(u0, u0[:1], axes, params, os.path.basename(args.initial), args.steps or usual_steps(cfg, 1))


def from_random(state, model, args, params):
    """An initial condition drawn as the training data were, on as many cells. Raises UserError where the
    equation has none."""
    cfg = model.cfg
    entry = pdes.entry(cfg.pde)
    if entry.initial is None:
        raise UserError(f'--random: pdes.py has no initial conditions of {cfg.pde}: use --index or --initial')
    params = {**trained_params(cfg), **params}
    given = given_in_training(state)
    steps = args.steps or usual_steps(cfg, given)
    axes = solver_axes(model, entry, data_cells(state, cfg, entry))
    u0 = entry.start(1, [len(x) for x in axes], args.random + SEED).float()
    return from_frame0(model, u0, axes, params, f'random initial condition {args.random}', steps, given)


def from_frame0(model, u0, axes, params, what, steps, given):
    """The Start of one trajectory from its frame 0, u0 (1, *X, C) at the coordinates `axes`. Later frames, if
    the model is given any, are computed by the solver. Raises UserError where the equation has none."""
    if given == 1:
        return Start(on_trained_grid(model, u0, axes), u0, axes, params, what, steps)
    u, axes = solve(model, u0, axes, params, given - 1 + steps)
    frames = given_frames(model, u, given)
    return Start(on_trained_grid(model, frames, axes), u[:, 0], axes, params, what, steps, given,
                 u[:, given - 1:])


def data_cells(state, cfg, entry):
    """Cells along each axis of the data that the model was trained on."""
    stride = state['config'].get('space_stride')
    return tuple(stride * n for n in cfg.grid) if stride else entry.cells


def usual_steps(cfg, given):
    """Steps from the last given frame to the end of a file as the built-in solver makes it."""
    entry = pdes.entry(cfg.pde)
    end = (entry.frames - 1) * entry.dt
    return max(1, round(end / cfg.dt) - given + 1)


def on_trained_grid(model, u, axes):
    """u (B, *X, C) or (B, m, *X, C) at the coordinates `axes` -> on the trained grid."""
    return moved(model, u, axes, grid_axes(model, model.cfg.grid))


# ---------------------------------------------------------------------------------------------
# rollout and truth

def roll_out(model, start, points, reencode):
    """What the model says at points (Q, d): (B, steps, Q, C), and frame 0 of the first trajectory as the
    decoder reads its encoding, (1, Q, C)."""
    params = {name: torch.tensor(value) for name, value in start.params.items()}
    at_once = max(1, min(BATCH, POINTS // len(points)))
    parts = []
    for u0 in start.u0.split(at_once):
        u = model.rollout(u0, start.steps, points=points, params=params, reencode=reencode)
        parts.append(u.cpu())
    frame0 = model.decode(model.encode(start.u0[:1]), points)
    return torch.cat(parts), frame0.cpu()


def tokens_of(model, start):
    """The tokens of the first trajectory's latent rollout, from those of u0 on: (steps + 1, S, D)"""
    params = {name: torch.tensor(value) for name, value in start.params.items()}
    z = model.encode(start.u0[:1])
    tokens = [z.tokens]
    for _ in range(start.steps):
        z = model.step(z, params)
        tokens.append(z.tokens)
    return torch.cat(tokens).cpu()


def principal_components(tokens, n):
    """The first n principal components of tokens (T, S, D), about their mean over all times and places:
    (T, S, n), and their fractions of the variance, (n,). The largest value of each is positive."""
    x = tokens.double() - tokens.double().mean((0, 1))
    flat = x.flatten(0, 1)
    variance, directions = torch.linalg.eigh(flat.T @ flat)          # the largest is the last
    values = x @ directions.flip(1)[:, :n]
    signs = torch.where(values.amax((0, 1)) < -values.amin((0, 1)), -1., 1.)
    variance = variance.flip(0).clamp_min(0)
    return values * signs, variance[:n] / variance.sum().clamp_min(1e-300)           # 0 where all are alike


def truth_of(model, start):
    """The true frames of the first trajectory from the last given one on, (1, steps + 1, *X, C), and their
    coordinates: those of the file, or the built-in solver's. None and None if there are neither. (The solver
    starts from frame 0, since a later one may not be all that it has to know: water starts at rest.)"""
    if start.truth is not None:
        return start.truth[:, :start.steps + 1], start.axes
    if pdes.entry(model.cfg.pde).solve is None:
        return None, None
    before = start.given - 1
    try:
        u, axes = solve(model, start.frame0, start.axes, start.params, before + start.steps)
    except UserError as error:
        say(f'note: no truth, because {error}')
        return None, None
    return u[:, before:], axes


def solve(model, u0, axes, params, steps):
    """The solver's frames 0 .. steps from u0 (1, *X, C) at the coordinates `axes`: (1, steps + 1, *X, C), and
    their coordinates. It has at least as many cells as it usually takes, so that shocks stay sharp."""
    entry = pdes.entry(model.cfg.pde)
    cells = [max(len(x), n) for x, n in zip(axes, entry.cells)]
    fine, fine_axes = on_solver_axes(model, entry, u0, axes, cells)
    t = np.arange(steps + 1) * model.cfg.dt
    return entry.solution(fine, params, t).float(), fine_axes


def save(path, arrays):
    """Arrays by name as .npz or .hdf5, by the ending of the path."""
    if path.endswith('.npz'):
        np.savez_compressed(path, **arrays)
        return
    with h5py.File(path, 'w') as file:
        for name, array in arrays.items():
            file[name] = array


def symbol(name):
    """A parameter's Greek letter, where its name is that of one: 'Nu' -> 'ν'."""
    try:
        return unicodedata.lookup(f'GREEK SMALL LETTER {name}')
    except KeyError:
        return name


def title_of(cfg, start):
    """What is to be seen: equation, parameters, start and latent."""
    values = [f'{symbol(name)} = {value:g}' for name, value in start.params.items()]
    problem = ' '.join([cfg.pde, ', '.join(values)]).strip()
    return f'{problem}, {start.what}, latent {by(cfg.token_grid)} x {cfg.latent_dim}'


# ---------------------------------------------------------------------------------------------
# command line

def arguments(argv):
    """The checked command line."""
    parser = argparse.ArgumentParser(description='Roll a trained model out, decode anywhere, draw.')
    parser.add_argument('--ckpt', required=True, help='run folder, checkpoint file, or folder of runs')
    start = parser.add_mutually_exclusive_group()
    start.add_argument('--index', type=int, default=0, help='trajectory of the test split')
    start.add_argument('--initial', help='.npy or HDF5 file with initial conditions on m.grid()')
    start.add_argument('--random', type=int, metavar='SEED', help='draw a start as the training data were')
    parser.add_argument('--data', help='--index counts all trajectories of this file instead')
    parser.add_argument('--steps', type=int, help='default: to the end of the data')
    parser.add_argument('--resolution', type=int, help='points along each axis (default: of the truth)')
    parser.add_argument('--points', type=float, nargs='+', metavar='X',
                        help='decode at these coordinates (x y x y .. in two axes), not on a grid')
    parser.add_argument('--rollout', choices=['latent', 'reencode'], default='latent')
    for key in pdes.parameter_keys():
        parser.add_argument(f'--{key}', type=float, help='parameter of the equation (default: of the data)')
    parser.add_argument('--out', help='folder for the output (default: the run folder)')
    parser.add_argument('--format', choices=['npz', 'hdf5'], default='npz')
    parser.add_argument('--tokens', action='store_true', help='draw principal components of the tokens, too')
    parser.add_argument('--no_gif', action='store_true')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda, cuda:N or mps')
    args = parser.parse_args(argv)
    for name in ('steps', 'resolution'):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise UserError(f'--{name} {value} must be positive')
    if args.random is not None and args.random < 0:
        raise UserError(f'--random {args.random} must not be negative')
    if args.data and (args.initial or args.random is not None):
        raise UserError('--data is for --index: leave --initial and --random out')
    if args.tokens and args.rollout == 'reencode':
        raise UserError('--tokens are those of a latent rollout: leave --rollout reencode out')
    return args


def check_command(cfg, args):
    """Raise UserError for what the command line asks for and this model cannot do."""
    d = len(cfg.grid)
    if args.points and len(args.points) % d:
        raise UserError(f'--points: {len(args.points)} numbers are no pairs x y, which a model of two axes '
                        'needs: give two coordinates for each point')
    if pdes.entry(cfg.pde).steady and args.steps not in (None, 1):
        raise UserError(f'--steps {args.steps}: {cfg.pde} has no time, and its solution is there after one '
                        'step: --steps 1')
    if args.initial is not None and cfg.input_frames > 1:
        raise UserError(f'this model sees {cfg.input_frames} frames: start it from a trajectory (--index)')


def make_start(state, model, file, args):
    """The Start that the command line asks for."""
    params = given_params(model.cfg, args)
    if args.initial is not None:
        return from_file(model, args, params)
    if args.random is not None:
        return from_random(state, model, args, params)
    return from_trajectory(state, model, file, args, params)


def where_to(model, args, truth):
    """Where to decode: points (Q, d); their number along each axis, or (Q,) if they are no grid; and what is
    saved of them, {name: array}."""
    d = len(model.cfg.grid)
    if args.points:
        points = torch.tensor(args.points).view(-1, d)
        saved = {'points': points.numpy()} if d > 1 else {'x': points[:, 0].numpy()}
        return points, points.shape[:1], saved
    shape = model.cfg.grid if truth is None else truth.shape[2:-1]
    if args.resolution:
        shape = [args.resolution] * d
    axes = [x.numpy() for x in grid_axes(model, shape)]
    return model.grid(*shape), shape, dict(zip('xy', axes))


def output_folder(args, file):
    folder = args.out or os.path.dirname(file) or '.'
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make '{folder}': {error.strerror}: choose another --out") from error
    return folder


def say_scores(model, u, truth):
    """Print the nRMSE of predictions u (1, T, ..., C), and that of every field if there are several."""
    p = scored(model, u)
    y = scored(model, truth)
    text = f'nRMSE {mean_nrmse(p, y):.4f} (of the first trajectory, at these points)'
    if p.shape[-1] > 1:
        names = [model.cfg.fields[field] for field in model.cfg.scored]
        values = [f'{name} {value:.4f}' for name, value in zip(names, field_nrmse(p, y))]
        text += f": {', '.join(values)}"
    say(text)


def main(argv=None):
    """Roll out, save, draw. Raises UserError."""
    args = arguments(argv)
    file = find_checkpoint(args.ckpt)
    state, model = load_for_evaluation(file, pick(args.device, 'sample'))
    cfg = model.cfg
    check_command(cfg, args)
    start = make_start(state, model, file, args)
    note = unseen(cfg, {name: [value] for name, value in start.params.items()})
    if note:
        say(f'note: {note}')
    truth, truth_axes = truth_of(model, start)
    points, shape, coordinates = where_to(model, args, truth)
    u, frame0 = roll_out(model, start, points, args.rollout == 'reencode')
    u = u.unflatten(2, shape)

    t = (np.arange(start.steps + 1) + start.given - 1) * cfg.dt
    arrays = {'u': u.numpy(), **coordinates, 't': t[1:], 'u0': start.u0.numpy()}
    if truth is not None:
        if args.points:
            truth = at_points(model, truth, truth_axes, points)
        else:
            truth = moved(model, truth, truth_axes, grid_axes(model, shape))
        arrays['truth'] = truth[:, 1:].numpy()
    folder = output_folder(args, file)
    if args.tokens:
        tokens = tokens_of(model, start)
        arrays['tokens'] = tokens.numpy()
        components, fractions = principal_components(tokens, COMPONENTS)
        components = components.unflatten(1, cfg.token_grid).numpy()
        path = os.path.join(folder, 'tokens.png')
        title = title_of(cfg, start) + (', which moves' if cfg.moves else '')
        draw_tokens(path, t, components, fractions.tolist(), title)
    saved = os.path.join(folder, f'rollout.{args.format}')
    save(saved, arrays)
    about = ', '.join([start.what, *[f'{name} {value:g}' for name, value in start.params.items()]])
    say(f'{about}: {start.steps} steps of {cfg.dt:g} s, {args.rollout} rollout at {by(shape)} points -> '
        f'{saved}')
    if truth is not None:
        say_scores(model, u[:1], truth[:, 1:])
    if not args.points:
        shown = torch.cat([frame0.unflatten(1, shape), u[0]]).numpy()            # (T, *X, C)
        true = None if truth is None else truth[0].numpy()
        x = list(coordinates.values())
        draw(folder, x, t, shown, true, cfg.fields, title_of(cfg, start), not args.no_gif,
             pdes.entry(cfg.pde).steady)


if __name__ == '__main__':
    one_line_errors()
    main()
