"""
Inference: encode an initial condition once, roll out in latent space, decode anywhere, draw.

    python sample.py --ckpt out/burgers_cpu                 # a test trajectory -> rollout.png, .gif and .npz
    python sample.py --ckpt out/burgers_cpu --index 7 --resolution 512
    python sample.py --ckpt out/burgers_cpu --random 3      # a start drawn as the training data were
    python sample.py --ckpt out/burgers_cpu --initial u0.npy --steps 80 --out my_rollout --format hdf5
    python sample.py --ckpt out/burgers_cpu --points 0.1 0.25 0.5

--ckpt is a run folder, a checkpoint file, or a folder of runs, of which the newest is taken. The truth is the
data file's for a test trajectory, and that of the equation's solver, if it has one, otherwise.
"""
import argparse
import os
import unicodedata
from dataclasses import dataclass

import h5py
import numpy as np
import torch

import pdes
from eval import given_frames, is_strided, load_for_evaluation, open_data, refined, time_stride
from files import read_rows, split_rows
from grids import resample
from metrics import mean_nrmse
from model import unseen
from runtime.checkpoint import find_checkpoint
from runtime.configurator import UserError, one_line_errors, say
from runtime.device import pick

DEFAULT_STEPS = 40                     # where there are no data that end
SEED = 10 ** 6                         # added to --random, so that no training data began like it
BATCH = 64                             # trajectories rolled out at a time
SNAPSHOTS = 5                          # curves in a picture


@dataclass
class Start:
    """Where a rollout starts, and what is known of its truth."""
    u0: torch.Tensor                   # (B, N, C), or (B, m, N, C) for a model that sees m frames
    fine_u0: torch.Tensor              # (1, X, C): the last given frame of the first one, on all known cells
    params: dict                       # {'Nu': .01}
    what: str                          # for the title and the log
    steps: int
    truth: torch.Tensor = None         # (1, T, X, C) from the last given frame on; None: not in a file


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
    they are given, pick those that have them. If none has, only the start is taken from a file."""
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
    u = read_rows(source, range(row, row + 1), time_stride(source, model.cfg))       # (1, T, X, C)
    u = torch.from_numpy(u)
    m = model.cfg.input_frames
    u0 = on_trained_grid(given_frames(model, u, m), model.cfg)
    own = {name: source.params[name] for name in model.cfg.params}
    what = f'trajectory {row} of {os.path.basename(args.data)}' if args.data else f'test trajectory {row}'
    steps = args.steps or u.shape[1] - m
    has_truth = fitting and m + steps <= u.shape[1]
    truth = u[:, m - 1:] if has_truth else None
    return Start(u0, u[:, m - 1], {**own, **params}, what, steps, truth)


def from_file(model, args, params):
    """The initial conditions of a file."""
    u0 = torch.from_numpy(read_initial(args.initial, model.cfg.n_field))
    params = {**trained_params(model.cfg), **params}
    what = os.path.basename(args.initial)
    return Start(u0, u0[:1], params, what, args.steps or DEFAULT_STEPS)


def from_random(model, args, params):
    """An initial condition drawn as the training data were. Raises UserError where the equation has none."""
    cfg = model.cfg
    entry = pdes.entry(cfg.pde)
    if entry.initial is None:
        raise UserError(f'--random: pdes.py has no initial conditions of {cfg.pde}: use --index or --initial')
    u0 = entry.start(1, entry.cells, args.random + SEED).float()
    params = {**trained_params(cfg), **params}
    what = f'random initial condition {args.random}'
    return Start(on_trained_grid(u0, cfg), u0, params, what, args.steps or DEFAULT_STEPS)


def on_trained_grid(u, cfg):
    """Every k-th of the cells of u (B, X, C) or (B, m, X, C), where that gives the trained grid. Otherwise u
    itself, which the model resamples."""
    cells = u.shape[-2]
    if not is_strided(cfg.grid, (cells,)):
        return u
    return u[..., ::cells // cfg.grid[0], :]


def read_initial(path, n_field):
    """Initial conditions (B, X, C) float32 from .npy ((X,), (X, C) or (B, X, C)) or HDF5 ('tensor' (B, T, X):
    its first frames, or 'u0' laid out like .npy). Raises UserError for anything else."""
    if not os.path.isfile(path):
        raise UserError(f"no initial condition '{path}'")
    try:
        u0 = read_array(path)
    except UserError:
        raise
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise UserError(f"cannot read '{path}': {str(error).splitlines()[0]}") from error
    if u0.ndim == 1:
        u0 = u0[:, None]
    if u0.ndim == 2:
        u0 = u0[None]
    is_numbers = u0.dtype.kind in 'fiu' and np.isfinite(u0).all()
    if u0.ndim != 3 or u0.shape[-1] != n_field or min(u0.shape) < 1 or not is_numbers:
        raise UserError(f"'{path}': expected finite numbers of shape (X,), (X, {n_field}) or "
                        f'(B, X, {n_field}); found {u0.dtype} {u0.shape}')
    return u0.astype(np.float32)


def read_array(path):
    """The array of an initial condition as it is in the file."""
    if path.endswith('.npy'):
        return np.load(path, allow_pickle=False)
    if not path.endswith(('.h5', '.hdf5')):
        raise UserError(f"'{path}': expected a .npy, .h5 or .hdf5 file")
    with h5py.File(path, 'r') as file:
        if 'tensor' in file:
            return file['tensor'][:, 0][..., None]                   # first frames
        if 'u0' in file:
            return file['u0'][:]
        raise UserError(f"'{path}' holds {sorted(file)}, expected 'u0' or 'tensor'")


# ---------------------------------------------------------------------------------------------
# rollout and truth

def roll_out(model, start, points, reencode):
    """What the model says at points (Q, 1): (B, steps, Q, C), and frame 0 of the first trajectory as the
    decoder reads its encoding, (1, Q, C)."""
    params = {name: torch.tensor(value) for name, value in start.params.items()}
    parts = []
    for u0 in start.u0.split(BATCH):
        u = model.rollout(u0, start.steps, points=points, params=params, reencode=reencode)
        parts.append(u.cpu())
    frame0 = model.decode(model.encode(start.u0[:1]), points)
    return torch.cat(parts), frame0.cpu()


def truth_of(model, start):
    """The true frames 0 .. steps of the first trajectory, (1, steps + 1, X, C): those of the file, or the
    built-in solver's on at least as many cells as it usually takes, so that shocks stay sharp. None if there
    are neither."""
    steps = start.steps
    if start.truth is not None:
        return start.truth[:, :steps + 1]
    entry = pdes.entry(model.cfg.pde)
    if entry.solve is None:
        return None
    u0 = start.fine_u0
    if u0.shape[1] < entry.cells[0]:
        u0 = refined(model, u0, entry.cells)
    t = np.arange(steps + 1) * model.cfg.dt
    return entry.solution(u0, start.params, t).float()


def at_points(model, u, points):
    """u (1, T, X, C) on model.grid(X) -> at points (Q, 1), (1, T, Q, C): picked out where u has them, else by
    cubic interpolation."""
    cells = u.shape[2]
    x = model.grid(cells)
    if cells % len(points) == 0:
        stride = cells // len(points)
        if torch.equal(x[::stride], points):
            return u[:, :, ::stride]
    period = model.cfg.length[0] if model.cfg.periodic else None
    u = resample(u.movedim(2, -1), x[:, 0], points[:, 0], period)
    return u.movedim(-1, 2)


def save(path, arrays):
    """Arrays by name as .npz or .hdf5, by the ending of the path."""
    if path.endswith('.npz'):
        np.savez_compressed(path, **arrays)
        return
    with h5py.File(path, 'w') as file:
        for name, array in arrays.items():
            file[name] = array


# ---------------------------------------------------------------------------------------------
# pictures of one 1D trajectory: x (X,), t (T,) seconds, prediction and truth (T, X, C) with the given frame
# 0; truth may be None. Every field has a row of panels, or an axis, with a scale of its own.

def draw(folder, x, t, prediction, truth, fields, title, gif):
    """rollout.png, and rollout.gif where it is wanted. Without matplotlib it is only said that it lacks."""
    try:
        import matplotlib
    except ImportError:
        say('no pictures: pip install matplotlib')
        return
    matplotlib.use('Agg')                                            # files, without a display
    picture = os.path.join(folder, 'rollout.png')
    draw_rollout(picture, x, t, prediction, truth, fields, title)
    say(f'-> {picture}')
    if gif:
        animation = os.path.join(folder, 'rollout.gif')
        animate_rollout(animation, x, t, prediction, truth, fields, title)
        say(f'-> {animation}')


def draw_rollout(path, x, t, prediction, truth, fields, title):
    """A PNG: truth, prediction and error over x and t, snapshots, and the error over time."""
    from matplotlib import pyplot as plt
    figure = plt.figure(figsize=(13, 7 * len(fields)), layout='constrained')
    rows = figure.subfigures(len(fields), 1, squeeze=False)[:, 0]
    for i, name in enumerate(fields):
        true = None if truth is None else truth[..., i]
        draw_field(rows[i], x, t, prediction[..., i], true, name)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_field(figure, x, t, u, true, name):
    """The panels of one field; u and true (T, X)."""
    grid = figure.add_gridspec(2, 3)
    limit = np.abs(u if true is None else true).max()
    maps = [('prediction', u, limit, 'RdBu_r', name)]
    if true is not None:
        error = u - true
        worst = max(np.abs(error).max(), 1e-9)
        maps.insert(0, ('truth', true, limit, 'RdBu_r', name))
        maps.append(('prediction - truth', error, worst, 'PuOr_r', f'error in {name}'))
    for column, (what, values, top, colours, label) in enumerate(maps):
        axis = figure.add_subplot(grid[0, column])
        image = axis.imshow(values, cmap=colours, vmin=-top, vmax=top, origin='lower', aspect='auto',
                            extent=(x[0], x[-1], t[0], t[-1]), interpolation='nearest')
        axis.set(title=what, xlabel='x', ylabel='t [s]')
        figure.colorbar(image, ax=axis, label=label)
    draw_snapshots(figure.add_subplot(grid[1, :2]), x, t, u, true, name)
    if true is not None and len(t) > 1:
        draw_error(figure.add_subplot(grid[1, 2]), t, u, true)


def draw_snapshots(axis, x, t, u, true, name):
    """A few frames as curves."""
    from matplotlib import pyplot as plt
    frames = np.linspace(0, len(t) - 1, SNAPSHOTS).round().astype(int)
    style = '-' if true is None else '--'
    for i, frame in enumerate(frames):
        colour = plt.cm.viridis(i / SNAPSHOTS)
        if true is not None:
            axis.plot(x, true[frame], color=colour, lw=3, alpha=.35)
        axis.plot(x, u[frame], color=colour, lw=1.2, ls=style, label=f't = {t[frame]:.2f} s')
    title = 'prediction' if true is None else 'wide: truth, dashed: prediction'
    axis.set(xlabel='x', ylabel=name, title=title)
    axis.legend(fontsize=8, ncols=SNAPSHOTS, loc='upper center', bbox_to_anchor=(.5, -.13), frameon=False)


def draw_error(axis, t, u, true):
    """The error of every step relative to the true field, beside that of frame 0 repeated."""
    scale = np.maximum(rms(true[1:]), 1e-12)
    axis.semilogy(t[1:], rms(u[1:] - true[1:]) / scale, label='prediction', color='C0')
    axis.semilogy(t[1:], rms(true[:1] - true[1:]) / scale, label='persistence', color='.6', ls=':')
    axis.set(xlabel='t [s]', ylabel='nRMSE', title='error over time')
    axis.grid(alpha=.3)
    axis.legend(fontsize=8)


def rms(u):
    return np.sqrt(np.square(u).mean(-1))


def animate_rollout(path, x, t, prediction, truth, fields, title):
    """A GIF: the curves of prediction and truth, frame by frame."""
    from matplotlib import pyplot as plt
    from matplotlib.animation import FuncAnimation, PillowWriter
    n = len(fields)
    figure, axes = plt.subplots(n, 1, figsize=(6.4, 3.6 * n), layout='constrained', squeeze=False)
    lines = []
    for i, (axis, name) in enumerate(zip(axes[:, 0], fields)):
        curves = [(prediction[..., i], 'prediction', 'C3', 1.5)]
        if truth is not None:
            curves.insert(0, (truth[..., i], 'truth', '.7', 4))
        low = min(u.min() for u, *_ in curves)
        high = max(u.max() for u, *_ in curves)
        margin = .08 * (high - low) + 1e-9
        axis.set(xlim=(x[0], x[-1]), ylim=(low - margin, high + margin), xlabel='x', ylabel=name)
        for u, label, colour, width in curves:
            line, = axis.plot(x, u[0], color=colour, lw=width, label=label)
            lines.append((line, u))
        axis.legend(loc='upper right', fontsize=8)

    def show(frame):
        for line, u in lines:
            line.set_ydata(u[frame])
        axes[0, 0].set_title(f'{title}, t = {t[frame]:.2f} s', fontsize=9)
        return [line for line, _ in lines]

    FuncAnimation(figure, show, frames=len(t)).save(path, writer=PillowWriter(fps=10), dpi=90)
    plt.close(figure)


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
    return f'{problem}, {start.what}, latent {cfg.token_grid[0]} x {cfg.latent_dim}'


# ---------------------------------------------------------------------------------------------
# command line

def arguments(argv):
    """The checked command line."""
    parser = argparse.ArgumentParser(description='Roll a trained model out, decode anywhere, draw.')
    parser.add_argument('--ckpt', required=True, help='run folder, checkpoint file, or folder of runs')
    start = parser.add_mutually_exclusive_group()
    start.add_argument('--index', type=int, default=0, help='trajectory of the test split')
    start.add_argument('--initial', help='.npy or HDF5 file with initial conditions on m.grid(X)')
    start.add_argument('--random', type=int, metavar='SEED', help='draw a start as the training data were')
    parser.add_argument('--data', help='--index counts all trajectories of this file instead')
    parser.add_argument('--steps', type=int, help=f'default: to the end of the data, or {DEFAULT_STEPS}')
    parser.add_argument('--resolution', type=int, help='points of the output (default: those of the truth)')
    parser.add_argument('--points', type=float, nargs='+', help='decode at these coordinates, not on a grid')
    parser.add_argument('--rollout', choices=['latent', 'reencode'], default='latent')
    for key in pdes.parameter_keys():
        parser.add_argument(f'--{key}', type=float, help='parameter of the equation (default: of the data)')
    parser.add_argument('--out', help='folder for the output (default: the run folder)')
    parser.add_argument('--format', choices=['npz', 'hdf5'], default='npz')
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
    return args


def make_start(state, model, file, args):
    """The Start that the command line asks for."""
    cfg = model.cfg
    params = given_params(cfg, args)
    if args.initial is None and args.random is None:
        return from_trajectory(state, model, file, args, params)
    if cfg.input_frames > 1:
        raise UserError(f'this model sees {cfg.input_frames} frames: start it from a trajectory (--index)')
    if args.initial is not None:
        return from_file(model, args, params)
    return from_random(model, args, params)


def output_folder(args, file):
    folder = args.out or os.path.dirname(file) or '.'
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make '{folder}': {error.strerror}: choose another --out") from error
    return folder


def main(argv=None):
    """Roll out, save, draw. Raises UserError."""
    args = arguments(argv)
    file = find_checkpoint(args.ckpt)
    state, model = load_for_evaluation(file, pick(args.device, 'sample'))
    cfg = model.cfg
    if len(cfg.grid) != 1:
        raise UserError('sample.py draws 1D models only: in 2D use load and rollout of model.py')
    start = make_start(state, model, file, args)
    note = unseen(cfg, {name: [value] for name, value in start.params.items()})
    if note:
        say(f'note: {note}')
    truth = truth_of(model, start)
    if args.points:
        points = torch.tensor(args.points)[:, None]
    else:
        cells = cfg.grid[0] if truth is None else truth.shape[2]
        points = model.grid(args.resolution or cells)
    u, frame0 = roll_out(model, start, points, args.rollout == 'reencode')

    t = (np.arange(start.steps + 1) + cfg.input_frames - 1) * cfg.dt
    x = points[:, 0].numpy()
    arrays = {'u': u.numpy(), 'x': x, 't': t[1:], 'u0': start.u0.numpy()}
    if truth is not None:
        truth = at_points(model, truth, points)
        arrays['truth'] = truth[:, 1:].numpy()
    folder = output_folder(args, file)
    saved = os.path.join(folder, f'rollout.{args.format}')
    save(saved, arrays)
    about = ', '.join([start.what, *[f'{name} {value:g}' for name, value in start.params.items()]])
    say(f'{about}: {start.steps} steps of {cfg.dt:g} s, {args.rollout} rollout at {len(x)} points -> {saved}')
    if truth is not None:
        nrmse = mean_nrmse(u[:1], truth[:, 1:])
        say(f'nRMSE {nrmse:.4f} (of the first trajectory, at these points)')
    if not args.points:
        shown = torch.cat([frame0, u[0]]).numpy()                    # (T, X, C)
        true = None if truth is None else truth[0].numpy()
        draw(folder, x, t, shown, true, cfg.fields, title_of(cfg, start), not args.no_gif)


if __name__ == '__main__':
    one_line_errors()
    main()
