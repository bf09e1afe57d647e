"""
Inference: encode an initial condition once, roll out in latent space, decode anywhere, draw.

    python sample.py --ckpt out/burgers_cpu                      # a test trajectory -> rollout.png, .gif and .npz
    python sample.py --ckpt out/burgers_cpu --index 7 --resolution 512
    python sample.py --ckpt out/burgers_cpu --random 3           # an initial condition drawn as the training data were
    python sample.py --ckpt out/burgers_cpu --initial u0.npy --steps 80 --out my_rollout --format hdf5
    python sample.py --ckpt out/burgers_cpu --points 0.1 0.25 0.5

The truth is the data file's for a test trajectory and the built-in solver's otherwise.
"""
import argparse
import os

import h5py
import numpy as np
import torch

import data
import solvers
from checkpoint import find_checkpoint, load_checkpoint
from configurator import UserError, one_line_errors
from eval import given_frames, mean_nrmse, open_data, pick_device, time_stride
from model import build, resample


def read_initial(path, n_fields):
    """An initial condition from .npy ((X,), (X, C) or (B, X, C)) or HDF5 ('tensor' (B, T, X): its first frames, or 'u0'
    laid out like .npy). -> (B, X, C) float32"""
    if not os.path.isfile(path):
        raise UserError(f"no initial condition '{path}'")
    try:
        if path.endswith('.npy'):
            u0 = np.load(path, allow_pickle=False)
        elif path.endswith(('.h5', '.hdf5')):
            with h5py.File(path, 'r') as file:
                if 'tensor' not in file and 'u0' not in file:
                    raise UserError(f"'{path}' holds {sorted(file)}, expected 'u0' or 'tensor'")
                u0 = file['tensor'][:, 0, :, None] if 'tensor' in file else file['u0'][:]
        else:
            raise UserError(f"'{path}': expected a .npy, .h5 or .hdf5 file")
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot read '{path}': {str(error).splitlines()[0]}") from error
    u0 = {1: lambda u: u[None, :, None], 2: lambda u: u[None], 3: lambda u: u}.get(u0.ndim, lambda u: u)(u0)
    if u0.ndim != 3 or u0.shape[-1] != n_fields or u0.dtype.kind not in 'fiu' or not np.isfinite(u0).all():
        raise UserError(f"'{path}': expected finite numbers of shape (X,), (X, {n_fields}) or (B, X, {n_fields}); "
                        f'found {u0.dtype} {u0.shape}')
    return u0.astype(np.float32)


def draw_rollout(path, x, t, prediction, truth, title, n_snapshot=5):
    """PNG of one 1D trajectory. x (X,), t (T,) seconds, prediction and truth (T, X), frame 0 given; truth may be
    None."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    limit = np.abs(prediction if truth is None else truth).max()
    maps = [('prediction', prediction, limit, 'RdBu_r')]
    if truth is not None:
        error = prediction - truth
        maps = [('truth', truth, limit, 'RdBu_r'), *maps,
                ('prediction - truth', error, max(np.abs(error).max(), 1e-9), 'PuOr_r')]
    figure, axes = plt.subplots(2, 3, figsize=(13, 7), layout='constrained')
    edges = (x[0], x[-1], t[0], t[-1])
    for axis, (name, u, top, colours) in zip(axes[0], maps):
        image = axis.imshow(u, origin='lower', aspect='auto', extent=edges, cmap=colours, vmin=-top, vmax=top,
                            interpolation='nearest')
        axis.set(title=name, xlabel='x', ylabel='t [s]')
        figure.colorbar(image, ax=axis, label='error in u' if ' - ' in name else 'u')
    for axis in axes[0, len(maps):]:
        axis.axis('off')
    right, grid = axes[1, 2], axes[1, 0].get_gridspec()
    for axis in axes[1, :2]:                                         # the snapshots take two places
        axis.remove()
    left = figure.add_subplot(grid[1, :2])
    for i, frame in enumerate(np.linspace(0, len(t) - 1, n_snapshot).round().astype(int)):
        colour = plt.cm.viridis(i / n_snapshot)
        if truth is not None:
            left.plot(x, truth[frame], color=colour, lw=3, alpha=.35)
        left.plot(x, prediction[frame], color=colour, lw=1.2, ls='--' if truth is not None else '-',
                  label=f't = {t[frame]:.2f} s')
    left.set(xlabel='x', ylabel='u', title='wide: truth, dashed: prediction' if truth is not None else 'prediction')
    left.legend(fontsize=8, ncols=n_snapshot, loc='upper center', bbox_to_anchor=(.5, -.13), frameon=False)
    if truth is not None and len(t) > 1:
        rms = lambda a: np.sqrt(np.square(a).mean(-1))               # noqa: E731
        scale = np.maximum(rms(truth[1:]), 1e-12)
        right.semilogy(t[1:], rms(prediction[1:] - truth[1:]) / scale, label='latent rollout', color='C0')
        right.semilogy(t[1:], rms(truth[:1] - truth[1:]) / scale, label='persistence', color='.6', ls=':')
        right.set(xlabel='t [s]', ylabel='nRMSE', title='error over time')
        right.grid(alpha=.3)
        right.legend(fontsize=8)
    else:
        right.axis('off')
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def animate_rollout(path, x, t, prediction, truth, title):
    """GIF of one 1D trajectory, arguments as in draw_rollout."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    from matplotlib.animation import FuncAnimation, PillowWriter
    figure, axis = plt.subplots(figsize=(6.4, 3.6), layout='constrained')
    shown = prediction if truth is None else np.concatenate([truth, prediction])
    low, high = shown.min(), shown.max()
    margin = .08 * (high - low) + 1e-9
    axis.set(xlim=(x[0], x[-1]), ylim=(low - margin, high + margin), xlabel='x', ylabel='u')
    lines = []
    if truth is not None:
        lines.append((axis.plot(x, truth[0], color='.7', lw=4, label='truth')[0], truth))
    lines.append((axis.plot(x, prediction[0], color='C3', lw=1.5, label='latent rollout')[0], prediction))
    axis.legend(loc='upper right', fontsize=8)

    def show(frame):
        for line, u in lines:
            line.set_ydata(u[frame])
        axis.set_title(f'{title}, t = {t[frame]:.2f} s', fontsize=9)
        return [line for line, _ in lines]

    FuncAnimation(figure, show, frames=len(t)).save(path, writer=PillowWriter(fps=10), dpi=90)
    plt.close(figure)


if __name__ == '__main__':
    one_line_errors()
    parser = argparse.ArgumentParser(description='Roll a trained model out, decode anywhere, draw.')
    parser.add_argument('--ckpt', required=True, help='run folder or checkpoint file')
    start = parser.add_mutually_exclusive_group()
    start.add_argument('--index', type=int, default=0, help='trajectory of the test split')
    start.add_argument('--initial', help='.npy or HDF5 file with initial conditions on m.grid(X)')
    start.add_argument('--random', type=int, metavar='SEED', help='draw an initial condition as the training data were')
    parser.add_argument('--steps', type=int, help='steps to take (default: to the end of the data, or 40)')
    parser.add_argument('--resolution', type=int, help='points of the output grid (default: the finest of the truth)')
    parser.add_argument('--points', type=float, nargs='+', help='decode at these coordinates instead of on a grid')
    parser.add_argument('--rollout', choices=['latent', 'reencode'], default='latent')
    parser.add_argument('--nu', type=float, help='viscosity (default: that of training)')
    parser.add_argument('--out', help='folder for the output (default: the run folder)')
    parser.add_argument('--format', choices=['npz', 'hdf5'], default='npz')
    parser.add_argument('--no_gif', action='store_true')
    parser.add_argument('--device', default='cpu', choices=['auto', 'cpu', 'cuda', 'mps'])
    args = parser.parse_args()

    file = find_checkpoint(args.ckpt)
    state = load_checkpoint(file)
    model = build(state['model_args'], state['ema'], file).eval().to(pick_device(args.device))
    for name in ('nu', 'steps', 'resolution'):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise UserError(f'--{name} {value} must be positive')
    cfg, n_in = model.cfg, model.cfg.input_frames
    if len(cfg.grid) != 1:
        raise UserError('sample.py draws 1D models only; use model.load and rollout from Python for 2D')
    if n_in > 1 and (args.initial or args.random is not None):
        raise UserError(f'this model sees {n_in} frames: start it from a test trajectory (--index)')
    nu = args.nu or cfg.default_params[0]
    fine = 1024                                                      # cells of the solver that gives the truth
    if args.random is None and not args.initial:
        source = open_data(state, cfg, file)[0]
        rows = data.split_rows(state['data']['n_trajectories'], 'test')
        if not 0 <= args.index < len(rows):
            raise UserError(f'--index {args.index}: the test split has {len(rows)} trajectories')
        row = rows[args.index]
        truth = data.read_rows(source, range(row, row + 1), time_stride(source, cfg))  # (1, T, X, C)
        steps = args.steps or truth.shape[1] - n_in
        what = f'test trajectory {row}'
        nu = args.nu or source.params.get('Nu', nu)
        space = slice(None, None, source.shape[0] // cfg.grid[0])
        u0, fine_u0 = given_frames(model, truth[:, :, space], n_in), truth[0, n_in - 1, :, 0]
        truth = truth[:, n_in - 1:]
        if steps > truth.shape[1] - 1 or args.nu:                    # beyond what the file holds
            truth = None
    else:
        steps, truth = args.steps or 40, None
        if args.initial:
            u0, what = read_initial(args.initial, cfg.fields), os.path.basename(args.initial)
            fine_u0 = u0[0, :, 0]
        else:
            fine_u0 = solvers.burgers_initial(1, fine, seed=args.random + 10 ** 6)[0]  # not of the training seeds
            if fine % cfg.grid[0]:
                raise UserError(f'the trained grid of {cfg.grid[0]} points does not divide {fine} cells')
            u0 = fine_u0[None, ::fine // cfg.grid[0], None].astype(np.float32)
            what = f'random initial condition {args.random}'
    if truth is None and cfg.pde == 'burgers' and cfg.low == (0.,):
        if len(fine_u0) < fine and fine % len(fine_u0) == 0:         # refine, so that shocks stay sharp
            grid, own = (model.grid(n)[:, 0].cpu() for n in (fine, len(fine_u0)))
            fine_u0 = resample(torch.from_numpy(fine_u0.astype(np.float64)), own, grid, 1.).numpy()
        truth = solvers.burgers(fine_u0[None], nu, np.arange(steps + 1) * cfg.dt)[..., None].float().numpy()
    n_out = args.resolution or (truth.shape[2] if truth is not None else cfg.grid[0])
    q = torch.tensor(args.points)[:, None] if args.points else model.grid(n_out)
    u = model.rollout(torch.from_numpy(np.ascontiguousarray(u0)), steps, points=q, params={cfg.params[0]: nu},
                      reencode=args.rollout == 'reencode').cpu().numpy()  # (B, steps, Q, C)
    t = np.arange(steps + 1) * cfg.dt + (n_in - 1) * cfg.dt
    folder = args.out or (os.path.dirname(file) or '.')
    os.makedirs(folder, exist_ok=True)
    arrays = {'u': u, 'x': q[:, 0].numpy(), 't': t[1:], 'u0': u0}
    true = None                                                      # where asked for, frame 0 included
    if truth is not None:
        true = truth[:, :steps + 1]
        if not args.points and true.shape[2] % n_out == 0:
            true = true[:, :, ::true.shape[2] // n_out]
        else:
            own = model.grid(true.shape[2])[:, 0]
            true = resample(torch.from_numpy(true).movedim(2, -1), own, q[:, 0], cfg.length[0]).movedim(-1, 2).numpy()
        arrays['truth'] = true[:, 1:]
    saved = os.path.join(folder, f'rollout.{args.format}')
    if args.format == 'npz':
        np.savez_compressed(saved, **arrays)
    else:
        with h5py.File(saved, 'w') as out:
            for name, array in arrays.items():
                out[name] = array
    print(f'{what}, nu {nu:g}: {steps} steps of {cfg.dt:g} s, {args.rollout} rollout at {u.shape[2]} points -> {saved}')
    if 'truth' in arrays:
        y = torch.from_numpy(arrays['truth'])
        print(f'nRMSE {mean_nrmse(torch.from_numpy(u[:len(y)]), y):.4f} (this trajectory, at these points)')
    if args.points:
        raise SystemExit(0)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print('no pictures: pip install matplotlib')
        raise SystemExit(0) from None
    first = model.decode(model.encode(torch.from_numpy(np.ascontiguousarray(u0[:1]))), q).detach().cpu().numpy()
    shown = np.concatenate([first, u[0]])[..., 0]                    # frame 0: what the decoder makes of the encoding
    true = true if true is None else true[0, ..., 0]
    title = f'{cfg.pde} ν = {nu:g}, {what}, latent {cfg.token_grid[0]} x {cfg.latent_dim}'
    x = q[:, 0].numpy()
    draw_rollout(os.path.join(folder, 'rollout.png'), x, t, shown, true, title)
    print(f'-> {os.path.join(folder, "rollout.png")}')
    if not args.no_gif:
        animate_rollout(os.path.join(folder, 'rollout.gif'), x, t, shown, true, title)
        print(f'-> {os.path.join(folder, "rollout.gif")}')
