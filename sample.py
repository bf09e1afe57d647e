"""
Inference: encode an initial condition once, roll out in latent space, decode anywhere, draw.

    python sample.py --ckpt out/burgers_cpu                 # a test trajectory -> rollout.png, .gif and .npz
    python sample.py --ckpt out/burgers_cpu --index 7 --resolution 512
    python sample.py --ckpt out/burgers_cpu --random 3      # a start drawn as the training data were
    python sample.py --ckpt out/burgers_cpu --initial u0.npy --steps 80 --out my_rollout --format hdf5
    python sample.py --ckpt out/burgers_cpu --points 0.1 0.25 0.5
    python sample.py --ckpt out/navier_stokes --points 0.1 0.2 0.5 0.5      # x y of each point in two axes
    python sample.py --ckpt out/burgers_cpu --tokens        # tokens.png, too: what the latent does
    python sample.py --ckpt out/ks_full_0 --by ensemble --members 16     # members.png, too: their spread
    python sample.py --ckpt out/ks_full_0 --ttc candidates=8             # what search.py finds

--ckpt is a run folder, a checkpoint file, or a folder of runs, of which the newest is taken. The truth is the
data file's for a test trajectory, and that of the equation's solver, if it has one, otherwise.

rollout.npz (or .hdf5) holds u (B, T, *X, C), the coordinates x (X,) and, with two axes, y (Y,), the times
t (T,) in seconds, u0, which the model started from, and the truth of the first trajectory (1, T, *X, C). With
--points it is u (B, T, Q, C), at x (Q,) with one axis and at points (Q, 2) with two. *X is X or X, Y. With
--members there is also members (B, M, T, *X, C), rollouts that differ by their noise, of which u is the mean.
With --tokens there is also tokens (T + 1, S, D) of the first trajectory, from those of u0 on, of which
tokens.png shows the first three principal components.
"""
import argparse
import os
import unicodedata
from dataclasses import dataclass, replace

import h5py
import numpy as np
import torch

import pdes
from elsewhere import POINTS, at_points, grid_axes, moved, on_solver_axes, solver_axes
from eval import given_in_training, load_for_evaluation, open_data
from files import read_initial, read_rows, split_rows
from grids import by
from metrics import ensemble_metrics, field_nrmse, mean_nrmse
from model import BY, unseen
from pictures import draw, draw_members, draw_tokens
from runtime.checkpoint import find_checkpoint
from runtime.configurator import UserError, one_line_errors, say
from runtime.device import pick
from scores import batches, check_initial_step, given_frames, scored
from search import Rewards, Search, Settings

SEED = 10 ** 6                         # added to --random, so that no training data began like it
BATCH = 64                             # trajectories rolled out at a time, at most
MEMBERS = 8                            # of a rollout by what draws noise, where nothing else is said
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

def roll_out(model, start, points, args):
    """What the model says at points (Q, d): (B, M, steps, Q, C), where M is 1 without members."""
    n = max(1, args.members)
    how = {'points': points, 'reencode': args.rollout == 'reencode', 'by': args.by, 'members': n,
           'flow_steps': args.flow_steps}
    parts = []
    for first, u0, params in batches_of(model, start, len(points) * n):
        u = model.rollout(u0, start.steps, params=params, seed=args.seed + first, **how)
        parts.append(u.cpu())
    return torch.cat(parts)


def searched(model, start, settings):
    """The rollouts that a search chooses, at the points of the trained grid: (B, 1, steps, Q, C). Says how
    many networks it has evaluated."""
    parts = []
    spent = 0
    at_once = settings.candidates * settings.beam_width
    for first, u0, params in batches_of(model, start, len(model.points) * at_once):
        own = replace(settings, seed=settings.seed + first)
        rewards = Rewards(model, own, params)
        search = Search(model, u0, start.steps, params, own, rewards)
        parts.append(search.best().flatten(2, -2).cpu())
        spent += int(search.spent.sum())
    each = spent / len(start.u0)
    say(f'search by {settings.by}: {each:.6g} evaluations of networks for a rollout, '
        f"{each / start.steps:.4g} a step, rewarded for {', '.join(rewards.weights)}")
    return torch.cat(parts)[:, None]


def batches_of(model, start, n_points):
    """Initial conditions of so many trajectories at a time that POINTS fit n_points of each, with parameters:
    [(number of the first, u0, {'Nu': (n,)})]"""
    at_once = max(1, min(BATCH, POINTS // n_points))
    n = len(start.u0)
    params = {name: torch.full((n,), value, device=model.device) for name, value in start.params.items()}
    return [(rows.start, start.u0[rows], own) for rows, own in batches(n, at_once, params)]


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


def how_of(args):
    """What has made the rollout, for the title and the log; nothing for the operator alone."""
    if args.ttc:
        return f'chosen among proposals by {args.ttc.by}'
    mean = f'mean of {args.members} members ' if args.members else ''
    return '' if args.by == 'operator' else f'{mean}by {args.by}'


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
    parser.add_argument('--by', choices=BY, default='operator', help='what advances the latent')
    parser.add_argument('--members', type=int, metavar='M',
                        help=f'rollouts that differ by their noise (default: {MEMBERS}; 0: a single one)')
    parser.add_argument('--flow_steps', type=int, default=0,
                        help='of a flow in a step (default: 4, of a student 1)')
    parser.add_argument('--seed', type=int, default=0, help='of the noise')
    parser.add_argument('--ttc', nargs='*', metavar='KEY=VALUE',
                        help=f'the rollout that is chosen among many: {Settings.keys()}')
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
    check_noise(args)
    return args


def check_noise(args):
    """Raise UserError where options of what draws noise do not go together, and complete them."""
    draws = args.by != 'operator'
    given = args.members or args.seed or args.flow_steps
    if args.ttc is not None:
        args.ttc = Settings.of(args.ttc)
        if draws or given or args.points or args.resolution or args.rollout == 'reencode':
            raise UserError('--ttc makes one latent rollout on the trained grid, with a by, flow_steps and '
                            'seed of its own (--ttc seed=1): leave --by, --members, --flow_steps, --seed, '
                            '--points, --resolution and --rollout out')
    elif given and not draws:
        raise UserError('the operator draws no noise: --members, --flow_steps and --seed are for --by '
                        + ', '.join(name for name in BY if name != 'operator'))
    if args.tokens and (draws or args.ttc):
        raise UserError('--tokens are those of a rollout by the operator: leave --by and --ttc out')
    if args.members is None:
        args.members = MEMBERS if draws else 0
    if args.members < 0 or args.members == 1 or args.flow_steps < 0:
        raise UserError(f'--members {args.members} must be 2 or more, or 0 for a single rollout, and '
                        f'--flow_steps {args.flow_steps} 0 or more')


def check_command(model, args):
    """Raise UserError for what the command line asks for and this model cannot do."""
    cfg = model.cfg
    model.check_by(args.by)
    if args.ttc:
        args.ttc.check(model, args.steps or 1)
        Rewards(model, args.ttc, {})                                 # is there one that applies?
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
    shape = model.cfg.grid if truth is None or args.ttc else truth.shape[2:-1]
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


def say_scores(model, rollouts, truth):
    """Print the nRMSE of the mean of rollouts (M, T, ..., C), and that of every field if there are several;
    of several members also how well they say what is uncertain."""
    members = scored(model, rollouts)[None]
    p = members.mean(1)
    y = scored(model, truth)
    text = f'nRMSE {mean_nrmse(p, y):.4f}'
    if len(rollouts) > 1:
        scores = ensemble_metrics(members, y)
        text += f", CRPS {scores['crps']:.4f}, spread-skill {scores['spread_skill']:.3f}"
    text += ' (of the first trajectory, at these points)'
    if p.shape[-1] > 1:
        values = [f'{name} {value:.4f}' for name, value in zip(scored_names(model.cfg), field_nrmse(p, y))]
        text += f": {', '.join(values)}"
    say(text)


def scored_names(cfg):
    """Names of the fields that are predicted."""
    return [cfg.fields[field] for field in cfg.scored]


def draw_all(folder, model, x, t, rollouts, truth, title, gif):
    """Pictures of rollouts (M, T, *X, C) with frame 0, and the truth (1, T, *X, C) or None."""
    cfg = model.cfg
    true = None if truth is None else truth[0].numpy()
    draw(folder, x, t, rollouts.mean(0).numpy(), true, cfg.fields, title, gif, pdes.entry(cfg.pde).steady)
    if len(rollouts) > 1:
        true = None if truth is None else scored(model, true)
        draw_members(folder, x, t, scored(model, rollouts).numpy(), true, scored_names(cfg), title)


def main(argv=None):
    """Roll out, save, draw. Raises UserError."""
    args = arguments(argv)
    file = find_checkpoint(args.ckpt)
    state, model = load_for_evaluation(file, pick(args.device, 'sample'))
    cfg = model.cfg
    check_command(model, args)
    start = make_start(state, model, file, args)
    note = unseen(cfg, {name: [value] for name, value in start.params.items()})
    if note:
        say(f'note: {note}')
    truth, truth_axes = truth_of(model, start)
    points, shape, coordinates = where_to(model, args, truth)
    found = searched(model, start, args.ttc) if args.ttc else roll_out(model, start, points, args)
    found = found.unflatten(3, shape)                                # (B, M, T, *X, C)

    t = (np.arange(start.steps + 1) + start.given - 1) * cfg.dt
    arrays = {'u': found.mean(1).numpy(), **coordinates, 't': t[1:], 'u0': start.u0.numpy()}
    if args.members:
        arrays['members'] = found.numpy()
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
    what = f'{args.rollout} rollout' + (f', {how_of(args)},' if how_of(args) else '')
    say(f'{about}: {start.steps} steps of {cfg.dt:g} s, {what} at {by(shape)} points -> {saved}')
    if truth is not None:
        say_scores(model, found[0], truth[:, 1:])
    if not args.points:
        frame0 = model.decode(model.encode(start.u0[:1]), points).cpu().unflatten(1, shape)
        first = torch.cat([frame0.expand_as(found[0, :, 0])[:, None], found[0]], 1)
        title = f'{title_of(cfg, start)}\n{how_of(args)}'.strip()
        draw_all(folder, model, list(coordinates.values()), t, first, truth, title, not args.no_gif)


if __name__ == '__main__':
    one_line_errors()
    main()
