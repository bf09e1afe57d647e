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
    t        (T,) seconds, as the data file counts them
    u0       (B, *X, C) on the trained grid: what the model encodes
    truth    (1, T, ...) of the first trajectory, where u is decoded
    members  (B, M, T, ...) of a stochastic stepper; u is their mean
    tokens   (T + 1, S, D) of the first trajectory, with --tokens; those of u0 come first
"""
import argparse
import math
import os
from dataclasses import replace

from runtime.configurator import UserError, one_line_errors, parse_flags, say

if __name__ == '__main__':
    one_line_errors()                  # also while the rest is imported

import h5py
import numpy as np
import torch

import equations
from evaluation.domains import filled_outside
from evaluation.off_grid import POINTS, at_points, grid_axes, resampled
from evaluation.pictures import draw, draw_members, draw_tokens
from evaluation.scores import batches, predicted_fields
from evaluation.starts import initial_fields, make_start, truth_of
from files.fit import odd_values
from grids import shape_text
from metrics import field_nrmse, mean_nrmse
from model import load_state
from runtime import extensions
from runtime.checkpoint import find_checkpoint, load_checkpoint, of_equation
from runtime.device import pick
from runtime.inputs import say_unseen
from runtime.paths import output_file, output_folder

BATCH = 64                             # trajectories rolled out at a time, at most
MEMBERS = 8                            # default of --n_members for a stochastic stepper


# ---------------------------------------------------------------------------------------------
# rollouts

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
        search = Search(model, fields, start.steps, params, own, rewards)
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
    [(_, fields, params)] = batches_of(model, start, u0[:1], 1)
    z = model.encode(fields)
    tokens = [z.tokens]
    for _ in range(start.steps):
        z = model.step(z, params)
        tokens.append(z.tokens)
    return torch.cat(tokens).cpu()


# ---------------------------------------------------------------------------------------------
# output

def where_to_decode(model, args, truth):
    """Points (Q, d) at which to decode, the shape of their grid or (Q,), and coordinates {name: array}."""
    cfg = model.cfg
    d = len(cfg.grid)
    if args.points:
        points = torch.tensor(args.points).view(-1, d)
        return points, points.shape[:1], {'x' if d == 1 else 'points': points.squeeze(1)}
    shape = cfg.grid if truth is None or args.ttc else truth.shape[2:-1]
    if args.resolution:
        shape = [args.resolution] * d
    return model.grid(*shape), shape, dict(zip('xy', grid_axes(cfg, shape)))


def save(path, arrays):
    """Save arrays by name as .npz or .hdf5."""
    if path.endswith('.npz'):
        np.savez_compressed(path, **arrays)
        return
    with h5py.File(path, 'w') as file:
        for name, array in arrays.items():
            file[name] = np.asarray(array)


def title_of(cfg, start, args):
    """What is shown: equation, parameters, start, latent and stepper."""
    params = [f'{name} {value:g}' for name, value in start.params.items()]
    latent = f'latent {shape_text(cfg.token_grid)} x {cfg.latent_dim}'
    words = [' '.join([cfg.pde, *params]), start.what, latent]
    if args.ttc:
        words.append(f'search with {args.ttc.stepper}')
    elif args.n_members:
        words.append(f'mean of {args.n_members} members by {args.stepper}')
    elif args.stepper != 'operator':
        words.append(f'by {args.stepper}')
    return ', '.join(words)


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


# ---------------------------------------------------------------------------------------------
# command line

def arguments(argv):
    """The checked command line. Raises UserError."""
    parser = argparse.ArgumentParser(description='Roll a trained model out.', allow_abbrev=False)
    add = parser.add_argument
    add('--ckpt', required=True, help='run folder, checkpoint file, or folder of runs')
    add('--equation', help='which one, of a model of several')
    add('--index', type=int, default=0, help='start from this trajectory of the test split')
    add('--data', help='--index counts all trajectories of this file instead')
    add('--initial', metavar='FILE', help='start from the fields of a .npy or HDF5 file, on m.grid()')
    add('--random', type=int, metavar='SEED', help='start from a random initial condition')
    add('--steps', type=int, help='default: to the end of the data')
    add('--resolution', type=int, help='points along each axis (default: of the truth)')
    add('--points', type=float, nargs='+', metavar='X', help='decode at these coordinates: x, or x y pairs')
    add('--rollout', choices=['latent', 'reencode'], default='latent')
    add('--stepper', choices=['operator', *extensions.STAGES], default='operator')
    add('--n_members', type=int, metavar='M', help=f'rollouts by a stochastic stepper (default: {MEMBERS})')
    add('--flow_steps', type=int, default=0, help="sampling steps of a flow (default: the model's own)")
    add('--seed', type=int, default=0, help='of the noise of a stochastic stepper')
    add('--ttc', nargs='*', metavar='KEY=VALUE', help='test-time search; keys: probabilistic/search.py')
    for key in equations.parameter_keys():
        add(f'--{key}', type=float, help='parameter of the equation (default: of the data)')
    add('--out', help='folder for the output (default: that of the checkpoint)')
    add('--format', choices=['npz', 'hdf5'], default='npz')
    add('--tokens', action='store_true', help='also draw principal components of the tokens')
    add('--no_gif', action='store_true')
    add('--device', default='auto', help='auto, cpu, cuda, cuda:N or mps')
    args = parse_flags(parser, argv)
    least = {'steps': 1, 'resolution': 1, 'random': 0, 'n_members': 0, 'flow_steps': 0, 'seed': 0}
    for name, limit in least.items():
        value = getattr(args, name)
        if value is not None and value < limit:
            raise UserError(f'--{name} {value} must be at least {limit}')
    starts = [name for name in ('data', 'initial', 'random') if getattr(args, name) is not None]
    if len(starts) > 1:
        raise UserError(f"--{' and --'.join(starts)} are different starts: leave one out")
    if args.ttc is not None:
        from probabilistic.search import Settings
        args.ttc = Settings.of(args.ttc)
    return args


def check(model, args):
    """Raise UserError for what this model cannot do. Sets the default of n_members."""
    cfg = model.cfg
    d = len(cfg.grid)
    module = model.stepper(args.stepper)
    noise = {'--n_members': args.n_members, '--flow_steps': args.flow_steps, '--seed': args.seed}
    given = [name for name, value in noise.items() if value]
    if given and not module.stochastic:
        raise UserError(f"{', '.join(given)}: the stepper {args.stepper} draws no noise: choose another with "
                        '--stepper')
    if args.flow_steps and not hasattr(module, 'n_steps'):
        raise UserError(f'--flow_steps {args.flow_steps}: the stepper {args.stepper} has no flow')
    if args.n_members == 1:
        raise UserError('--n_members 1 must be 2 or more, or 0 for a single rollout')
    if args.ttc:
        if module.stochastic or args.points or args.resolution or args.rollout == 'reencode':
            raise UserError('--ttc makes a latent rollout on the trained grid by its own stepper: leave '
                            '--stepper, --points, --resolution and --rollout out')
        args.ttc.check(model, args.steps or 1)
        from probabilistic.rewards import Rewards
        Rewards(model, args.ttc, {})                                 # raises UserError if no reward applies
    if args.tokens and (module.stochastic or args.ttc or args.rollout == 'reencode'):
        raise UserError('--tokens shows a latent rollout by the operator: leave --stepper, --ttc and '
                        '--rollout out')
    if args.points and len(args.points) % d:
        raise UserError(f'--points: {len(args.points)} numbers are no pairs x y: two for each point')
    if equations.entry(cfg.pde).steady and args.steps not in (None, 1):
        raise UserError(f'--steps {args.steps}: {cfg.pde} has no time, so it has one step')
    if args.n_members is None:
        args.n_members = MEMBERS if module.stochastic else 0


def main(argv=None):
    """Roll out, save, draw. Raises UserError."""
    args = arguments(argv)
    file = find_checkpoint(args.ckpt)
    folder = output_folder('--out', os.path.dirname(file) or '.' if args.out is None else args.out)
    path = output_file('the output', os.path.join(folder, f'rollout.{args.format}'))
    state = of_equation(load_checkpoint(file), file, args.equation)
    model = load_state(state, file, pick(args.device, 'sample'))
    cfg = model.cfg
    check(model, args)
    start = make_start(state, cfg, file, args)
    say_unseen('note: ', cfg, {name: [value] for name, value in start.params.items()})
    truth, truth_axes = truth_of(cfg, start)
    u0 = initial_fields(cfg, start, truth, truth_axes)
    note = odd_values(u0[:, None], model)
    if note:
        say(f'sample: warning: {start.what}: {note}')
    points, shape, coordinates = where_to_decode(model, args, truth)
    if args.ttc:
        p = searched(model, start, u0, args.ttc)
    else:
        p = roll_out(model, start, u0, points, args)
    p = p.unflatten(3, shape)                                        # (B, M, T, *X, C)
    t = start.first_time + (np.arange(start.steps + 1) + start.initial_step - 1) * cfg.dt
    arrays = {'u': p.mean(1), **coordinates, 't': t[1:], 'u0': u0}
    if args.n_members:
        arrays['members'] = p
    if truth is not None:
        if args.points:
            truth = at_points(cfg, truth, truth_axes, points)
        else:
            truth = resampled(cfg, truth, truth_axes, grid_axes(cfg, shape))
        arrays['truth'] = truth[:, 1:]
    if args.tokens:
        arrays['tokens'] = tokens_of(model, start, u0)
    save(path, arrays)

    title = title_of(cfg, start, args)
    say(f'{title}: {start.steps} steps of {cfg.dt:g} s at {shape_text(shape)} points -> {path}')
    if truth is not None:
        say_scores(model, filled_outside(p[0], truth[:, 1:], cfg, 0.), truth[:, 1:])
    if args.tokens:
        tokens = arrays['tokens'].unflatten(1, cfg.token_grid)
        draw_tokens(folder, t, tokens.numpy(), title)
    if not args.points:
        frame0 = model.decode(model.encode(u0[:1]), points).cpu().unflatten(1, shape)
        members = torch.cat([frame0.expand_as(p[0, :, 0])[:, None], p[0]], 1)
        x = [axis.numpy() for axis in coordinates.values()]
        shown = [field for field in range(cfg.n_field) if field not in cfg.domain]
        fields = [cfg.fields[field] for field in shown]
        members = members[..., shown].numpy()
        true = None
        if truth is not None:
            true = filled_outside(truth, truth, cfg, math.nan)[0, ..., shown].numpy()
        steady = equations.entry(cfg.pde).steady
        draw(folder, x, t, members.mean(0), true, fields, title, not args.no_gif, steady)
        if args.n_members:
            draw_members(folder, x, t, members, true, fields, title)


if __name__ == '__main__':
    main()
