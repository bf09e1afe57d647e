"""
Evaluation: the metrics of whole rollouts in field space, as a table and as JSON.

    python eval.py --ckpt out/burgers_cpu                        # best weights, test split, latent rollout
    python eval.py --ckpt out/                                   # every run below, a table for each data set
    python eval.py --ckpt out/burgers_cpu --superres 1 2 4 8     # decoded on finer grids
    python eval.py --ckpt out/burgers_cpu --random 4096          # decoded at points anywhere in the domain
    python eval.py --ckpt out/ns_points_cpu --placements 256 1024    # from so many random points
    python eval.py --ckpt out/burgers_cpu --horizon 10           # also rollouts ten times as long as the file
    python eval.py --ckpt out/burgers_cpu --physics --plot       # what physics asks of it; spectra.png
    python eval.py --ckpt out/burgers_cpu --data FILE --json eval.json      # all of another file
    python eval.py --ckpt out/one out/two --initial_step 10      # side by side; frames 0..9 are given
    python eval.py --ckpt out/one out/two --compare              # a row for each of several runs on one file
    python eval.py --ckpt out/ --compare runs.md runs.csv runs.png --below .01       # written to files, too

scores.py says what is scored, and elsewhere.py what --superres, --random, --horizon and --placements are
compared with; reports.py has the tables.

--compare also tells how many iterations passed until the validation error was at most --below (default: the
last one of the first run), as the log.csv beside each checkpoint has it; and .png is of the error over time.
"""
import argparse
import hashlib
import json
import math
import os
import sys

import numpy as np
import torch

import physics
import search
from data import seen_rows
from elsewhere import axis_points, grid_axes, long_rollouts, other_places, placements, unseen_points
from files import open_source, read_rows, split_rows
from grids import by, fewest_points, is_strided
from model import BY, build, unseen, with_encoder
from pictures import draw_spectra
from reports import compare, ensemble_table, groups, heading, search_table, table
from runtime.checkpoint import find_runs, load_checkpoint, whole_file
from runtime.configurator import UserError, one_line_errors, say
from runtime.device import pick
from scores import check_initial_step, ensembles, evaluate

HERE = os.path.dirname(os.path.abspath(__file__))


# ---------------------------------------------------------------------------------------------
# data of a checkpoint

def find_data(state, ckpt):
    """Paths of the files that a checkpoint was trained on. Each is looked for beside the run (which may have
    moved together with its data), where it was, as it was typed, and so seen from the repository. Raises
    UserError with these places where it is in none of them."""
    data = state['data']
    folder = os.path.dirname(os.path.abspath(ckpt))
    paths = []
    for typed, absolute, relative in zip(data['paths'], data['absolute'], data['relative']):
        beside = os.path.normpath(os.path.join(folder, relative))
        places = [beside, absolute, typed, os.path.join(HERE, typed)]
        there = [path for path in places if os.path.exists(path)]
        if not there:
            missing = ', '.join(f"'{path}'" for path in dict.fromkeys(places))
            raise UserError(f"'{ckpt}' was trained on '{typed}', which is not there (looked for {missing}): "
                            'put it back, or evaluate another file with --data FILE')
        paths.append(there[0])
    return paths


def open_data(state, model, ckpt, file=None):
    """The data files of a checkpoint, or `file`, checked against the model: [Source]. Raises UserError."""
    paths = [file] if file else find_data(state, ckpt)
    sources = [open_source(path, model.cfg.pde) for path in paths]
    for source in sources:
        check_fit(source, model)
    return sources


def check_fit(source, model):
    """Raise UserError where a model cannot be evaluated on a file: other parameters, domain, cells or
    times."""
    cfg = model.cfg
    path = source.path
    if len(source.fields) != cfg.n_field or not set(cfg.params) <= set(source.params):
        raise UserError(f"'{path}' holds {len(source.fields)} field(s), parameters {list(source.params)}; "
                        f'the model was trained on {cfg.n_field} field(s), parameters {list(cfg.params)}')
    entry = source.entry
    if (entry.low, entry.length, entry.boundary) != (tuple(cfg.low), tuple(cfg.length), cfg.boundary):
        raise UserError(f"'{path}' has the {entry.boundary} domain {entry.low} + {entry.length}, the model "
                        f'the {cfg.boundary} one {tuple(cfg.low)} + {tuple(cfg.length)}')
    grid = tuple(cfg.grid)
    if not is_strided(grid, source.shape) and not is_strided(source.shape, grid):
        ratio = source.shape[0] / grid[0]
        raise UserError(f"'{path}' has {by(source.shape)} cells, the trained grid {by(grid)} points: "
                        f'{source.shape[0]} / {grid[0]} = {ratio:g} is no whole stride, and one must be a '
                        'multiple of the other, by the same number along every axis')
    stride = cfg.dt / source.dt
    if abs(stride - source.time_stride(cfg.dt)) > 1e-6 * stride:
        raise UserError(f"'{path}' has a frame every {source.dt:g} s, the model steps {cfg.dt:g} s: "
                        f'{cfg.dt:g} / {source.dt:g} = {stride:g} is no whole stride')
    if not cfg.periodic:
        check_points(source, model)


def check_points(source, model):
    """Raise UserError where a file's points are not those of model.grid. On a periodic domain that makes no
    difference, and the first point may lie anywhere in its cell; between walls it does."""
    for axis, n in enumerate(grid_of(source, model.cfg)):
        x = strided_axis(source, axis, n)
        expected = axis_points(model, axis, n).double().numpy()
        if np.abs(x - expected).max() > .01 * model.cfg.length[axis] / n:
            raise UserError(f"'{source.path}' has points at {x[0]:g}, {x[1]:g}, ..., the model at "
                            f'{expected[0]:g}, {expected[1]:g}, ...: between walls these must agree')


def grid_of(source, cfg):
    """The grid on which a model is evaluated: the trained one, or the file's own where that is coarser."""
    return tuple(min(cells, n) for cells, n in zip(source.shape, cfg.grid))


def strided_axis(source, axis, n):
    """Coordinates along one axis of n of a file's cells."""
    return source.x[axis][::source.shape[axis] // n]


def read(sources, rows, cfg, grid):
    """Rows of all files, one after another, at the trained time step and on `grid`, which strides their
    cells: (N, T, *grid, C) float32."""
    parts = []
    for s in sources:
        u = read_rows(s, rows, s.time_stride(cfg.dt), s.shape[0] // grid[0])
        parts.append(torch.from_numpy(u))
    return torch.cat(parts)


def given_in_training(state):
    """How many frames are given before a rollout in the run that a checkpoint is of."""
    return state['config'].get('initial_step') or state['model_args']['input_frames']


def choose_rows(state, sources, ckpt, split, data):
    """The rows to be scored, a range. Raises UserError for test rows that were trained on. Trajectories of
    another file that begin like ones that were trained on are only warned of."""
    seen = state['data']['seen']
    if data:
        source = sources[0]
        rows = range(source.n)
        again = seen_rows(source, rows, seen)
        if again:
            say(f"eval: warning: {len(again)} of {len(rows)} trajectories of '{source.path}' (first: "
                f"{again[0]}) begin like ones that '{ckpt}' was trained on: its errors are too low there")
        return rows
    n = state['data']['n_trajectories']
    rows = split_rows(n, split, sources[0].entry.test)
    for source in sources:
        if source.n < n:
            raise UserError(f"'{source.path}' holds {source.n} trajectories, but '{ckpt}' was trained with "
                            f'{n} of them')
        again = seen_rows(source, rows, seen) if split == 'test' else []
        if again:
            raise UserError(f"trajectory {again[0]} (test) of '{source.path}' has the same initial condition "
                            f"as one that '{ckpt}' was trained on ({len(again)} of {len(rows)} rows have): "
                            'a test would say nothing; take a file of another seed with --data FILE')
    return rows


def params_of(sources, cfg, n_rows):
    """Parameters of n_rows rows of each file, one file after another, {name: (N,)}."""
    result = {}
    for name in cfg.params:
        values = torch.tensor([s.params[name] for s in sources])
        result[name] = values.repeat_interleave(n_rows)
    return result


# ---------------------------------------------------------------------------------------------
# one checkpoint

def load_for_evaluation(file, device, encoder=None):
    """A checkpoint's state and its model with averaged weights, and another encoder if one is given. Leaves
    the random state as it was."""
    state = load_checkpoint(file)
    with torch.random.fork_rng(devices=[]):              # the weights' initialisation draws numbers
        model = build(with_encoder(state['model_args'], encoder, file), state['ema'], file)
    return state, model.to(device).eval().requires_grad_(False)


def evaluate_checkpoint(file, split=None, data=None, initial_step=None, steps=None, rollout='latent',
                        factors=(), n_random=0, horizon=None, densities=(), physical=False, plot=False,
                        device='cpu', batch_size=64, save=None, advancers=(), members=8,
                        flow_steps=0, ttc=None):
    """Everything about one checkpoint file as a dict of JSON types (None where a number is not finite). The
    arguments are those of the command line. Raises UserError."""
    state, model = load_for_evaluation(file, device)
    cfg = model.cfg
    for name in advancers:
        model.check_by(name)
    if densities:
        _, of_points = load_for_evaluation(file, device, 'points')
        least = fewest_points(len(cfg.grid))
        if min(densities) <= least:
            raise UserError(f'--placements {min(densities)}: at least {least + 1} points are needed')
    sources = open_data(state, model, file, data)
    split = 'all' if data else split or 'test'
    rows = choose_rows(state, sources, file, split, data)
    note = unseen(cfg, {name: [s.params[name] for s in sources] for name in cfg.params})
    if note:
        say(f'eval: note: {note}')
    paths = [s.path for s in sources]
    say(f"eval: '{file}' on {split} rows {rows.start}..{rows.stop - 1} of {', '.join(paths)}")
    grid = grid_of(sources[0], cfg)
    u = read(sources, rows, cfg, grid)
    params = params_of(sources, cfg, len(rows))
    n = given_in_training(state) if initial_step is None else initial_step
    check_initial_step(n, cfg.input_frames, u.shape[1])
    if horizon and sources[0].entry.steady:
        raise UserError(f'--horizon {horizon}: {cfg.pde} has no time')
    u = first_steps(u, n, steps)
    if ttc:
        ttc.check(model, u.shape[1] - n)
        if grid != tuple(cfg.grid):
            raise UserError(f'--ttc searches on the trained grid of {by(cfg.grid)} points, and the file has '
                            f'{by(grid)}')
    reencode = rollout == 'reencode'
    scores, p = evaluate(model, u, params, n, rollout, batch_size)
    if save:
        save_predictions(save, sources, grid, p, u[:, n:], n, cfg.dt, params)
    result = {'ckpt': file, 'dataset': cfg.pde, 'split': split, 'initial_step': n, 'rollout': rollout,
              'n_trajectories': len(u), 'n_params': model.n_params(), 'iter': state['iter'],
              'train_seconds': state['train_seconds'], 'peak_memory_gb': state.get('peak_memory_gb'),
              'data': paths, 'rows': [rows.start, rows.stop - 1], 'grid': list(grid), 'steps': p.shape[1],
              'dt': cfg.dt, 'trained_on': trained_on(state), **scores}
    if factors or n_random:
        found = other_places(model, sources, rows, u, params, sorted(set(factors)), n_random, n, reencode,
                             batch_size)
        for there in found.values():
            there['ratio'] = there['nrmse'] / (scores['metrics']['nrmse'] or math.nan)
        if n_random:
            result['random'] = {'points': n_random, **found.pop('random')}
        if factors:
            result['superres'] = found
    if horizon:
        result['long'] = long_rollouts(model, sources, rows, u, params, horizon, n, reencode, batch_size)
    if densities:
        found = placements(of_points, u, params, densities, n, reencode, batch_size)
        usual = scores['metrics']['nrmse']
        if cfg.encoder == 'points':
            trained = state['config']['input_points']
            [at_trained] = placements(of_points, u, params, [trained], n, reencode, batch_size).values()
            usual = at_trained['nrmse']
            result['trained_points'] = trained
        for entry in found.values():
            entry['ratio'] = entry['nrmse'] / (usual or math.nan)
        result['placements'] = found
    if physical:
        axes = grid_axes(model, grid)
        result['physics'] = physics.report(u[:, n - 1], p, u[:, n:], cfg.dt, params, axes, sources[0].entry)
    if advancers:
        at = None
        if cfg.encoder == 'points':                                  # as many as in training
            at = unseen_points(model, state['config']['input_points'])
        result['by'] = ensembles(model, u, params, n, batch_size, advancers, members, flow_steps, at)
    if ttc:
        result['ttc'] = search.report(model, u, params, n, batch_size, ttc)
    if plot:
        plot_spectra(file, cfg, u[:, n - 1:], p, n)
    return finite(result)


def trained_on(state):
    """What tells the training data of two checkpoints apart, in JSON types."""
    data = state['data']
    first_frames = hashlib.sha256(data['seen'].numpy().tobytes())
    return {'n_trajectories': data['n_trajectories'], 'params': state['model_args']['seen_params'],
            'first_frames': first_frames.hexdigest()}


def plot_spectra(file, cfg, u, p, initial_step):
    """spectra.png beside a checkpoint: of the true frames u, the last given one first, and the predictions
    p."""
    predictions = torch.cat([u[:, :1], p], 1)
    of_truth, waves = physics.spectra(u, cfg.periodic)
    of_predictions, _ = physics.spectra(predictions, cfg.periodic)
    t = cfg.dt * np.arange(initial_step - 1, initial_step - 1 + u.shape[1])
    title = f'{file}: energy spectra, mean of {len(u)} trajectories'
    folder = os.path.dirname(file) or '.'
    draw_spectra(folder, waves.numpy(), t, of_predictions.numpy(), of_truth.numpy(), cfg.fields, title)


def first_steps(u, initial_step, steps):
    """u (N, T, ...) without the frames after the first `steps` predicted ones (None: all are kept)."""
    if steps is None:
        return u
    most = u.shape[1] - initial_step
    if not 1 <= steps <= most:
        raise UserError(f'--steps {steps} must be between 1 and {most}, the frames that can be predicted')
    return u[:, :initial_step + steps]


def save_predictions(path, sources, grid, p, y, initial_step, dt, params):
    """predictions and truth (N, T, *grid, C), t (T,) seconds, x (points, d) row-major, and the value of every
    parameter for each trajectory (N,), as float32 in one .npz file."""
    axes = [strided_axis(sources[0], axis, n) for axis, n in enumerate(grid)]
    mesh = np.meshgrid(*axes, indexing='ij')
    arrays = {name: value.numpy() for name, value in params.items()}
    arrays['predictions'] = p.numpy()
    arrays['truth'] = y.numpy()
    arrays['t'] = dt * np.arange(initial_step, initial_step + y.shape[1])
    arrays['x'] = np.stack([axis.ravel() for axis in mesh], -1)
    with whole_file(path, 'wb') as file:
        np.savez_compressed(file, **{name: array.astype(np.float32) for name, array in arrays.items()})
    say(f'eval: predictions -> {path}')


def finite(value):
    """JSON has no inf and nan: None instead."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [finite(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


# ---------------------------------------------------------------------------------------------
# command line

def arguments(argv):
    """The checked command line."""
    parser = argparse.ArgumentParser(description='Score checkpoints on whole rollouts.')
    parser.add_argument('--ckpt', nargs='+', required=True, help='run folders, folders of runs, or files')
    parser.add_argument('--split', choices=['test', 'val', 'train', 'all'], help='default: test')
    parser.add_argument('--data', help='another file of the same PDE, all of its trajectories')
    parser.add_argument('--initial_step', type=int, help='given frames (default: as in training)')
    parser.add_argument('--steps', type=int, help='score only so many predicted frames (default: all)')
    parser.add_argument('--rollout', choices=['latent', 'reencode'], default='latent')
    parser.add_argument('--superres', type=int, nargs='+', default=(), help='factors of the output grid')
    parser.add_argument('--random', type=int, default=0, metavar='N', help='decode at N random points, too')
    parser.add_argument('--horizon', type=int, metavar='K', help='also roll out K times as long')
    parser.add_argument('--placements', type=int, nargs='+', default=(),
                        help='score rollouts from so many random points; see also load(encoder=)')
    parser.add_argument('--by', nargs='+', choices=BY, default=(),
                        help='rollouts by the operator and by what later stages have trained')
    parser.add_argument('--members', type=int, default=8, help='of each rollout by what draws noise')
    parser.add_argument('--flow_steps', type=int, default=0,
                        help='of a flow in a step (default: 4, of a student 1)')
    parser.add_argument('--ttc', nargs='*', metavar='KEY=VALUE',
                        help=f'rollouts chosen among many, beside others: {search.Settings.keys()}')
    parser.add_argument('--physics', action='store_true', help='also what physics asks of the fields')
    parser.add_argument('--plot', action='store_true', help='with --physics: spectra.png in the run folder')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda, cuda:N or mps')
    parser.add_argument('--batch_size', type=int, default=64, help='trajectories rolled out at a time')
    parser.add_argument('--json', help='file to write; a list for several checkpoints')
    parser.add_argument('--compare', nargs='*', metavar='FILE', help='a row for each run; .md, .csv, .png')
    parser.add_argument('--below', type=float, help='validation error to which --compare counts iterations')
    parser.add_argument('--save', help='.npz file of predictions, truth, t and x, for one checkpoint')
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        raise UserError(f'--batch_size {args.batch_size} must be 1 or more')
    if args.random < 0:
        raise UserError(f'--random {args.random} must be a number of points')
    if args.horizon is not None and args.horizon < 2:
        raise UserError(f'--horizon {args.horizon} must be 2 or more: the files hold the first one')
    if args.horizon and args.steps:
        raise UserError(f'--steps {args.steps} makes rollouts shorter, --horizon {args.horizon} longer: '
                        'leave one out')
    if args.members < 2 or args.flow_steps < 0:
        raise UserError(f'--members {args.members} must be 2 or more, --flow_steps {args.flow_steps} 0 or '
                        'more')
    if min(args.placements, default=1) < 1:
        raise UserError(f'--placements {min(args.placements)} must be a number of points')
    if args.ttc is not None:
        args.ttc = search.Settings.of(args.ttc)
    if args.plot and not args.physics:
        raise UserError('--plot draws what --physics reports: add --physics')
    if args.data and args.split not in (None, 'all'):
        raise UserError(f'--data evaluates all trajectories of a file: leave --split {args.split} out')
    if args.below is not None and args.compare is None:
        raise UserError(f'--below {args.below:g} is for --compare')
    written = [('json', args.json), ('save', args.save)]
    for path in args.compare or ():
        if not path.endswith(('.md', '.csv', '.png')):
            raise UserError(f"--compare '{path}': tables are written to .md or .csv, pictures to .png")
        written.append(('compare', path))
    for name, path in written:                                       # before minutes of work
        if path and not os.access(os.path.dirname(path) or '.', os.W_OK):
            raise UserError(f"--{name} '{path}': its directory is missing or cannot be written")
    return args


def checkpoints(paths):
    """{file: whether it is one of a folder of several}, in the order of the paths on the command line."""
    found = {}
    for path in paths:
        runs = find_runs(path)
        for file in runs:
            found[file] = len(runs) > 1
    return found


def main(argv=None):
    """Evaluate, print tables, write JSON. A run that cannot be evaluated is left out, with a line on stderr,
    if it is one of a folder of several. Returns the list of results. Raises UserError."""
    args = arguments(argv)
    files = checkpoints(args.ckpt)
    if args.save and len(files) > 1:
        raise UserError(f'--save writes the predictions of one checkpoint, of {len(files)} here: name one')
    if args.compare is not None and len(files) < 2:
        raise UserError(f"--compare needs two checkpoints or more; there is '{min(files)}' alone")
    device = pick(args.device, 'eval')
    results = []
    for file, is_one_of_several in files.items():
        try:
            result = evaluate_checkpoint(
                file, args.split, args.data, args.initial_step, args.steps, args.rollout,
                factors=args.superres, n_random=args.random, horizon=args.horizon, densities=args.placements,
                physical=args.physics, plot=args.plot, device=device, batch_size=args.batch_size,
                save=args.save, advancers=args.by, members=args.members, flow_steps=args.flow_steps,
                ttc=args.ttc)
            results.append(result)
        except UserError as error:
            if not is_one_of_several:
                raise
            print(f"eval: '{file}' is left out: {error}", file=sys.stderr, flush=True)
    if not results:
        raise UserError(f'none of the {len(files)} checkpoints could be evaluated')
    if args.compare is not None:
        compare(results, args.compare, args.below)
    else:
        for group in groups(results):
            say(f'\n{heading(group[0])}\n\n{table(group)}')
            for r in group:
                if 'by' in r:
                    say(f"\nrollouts of '{r['ckpt']}'\n{ensemble_table(r['by'])}")
                if 'ttc' in r:
                    say(f"\ntest-time compute with '{r['ckpt']}'\n{search_table(r['ttc'])}")
                if 'physics' in r:
                    say(f"\nphysics of '{r['ckpt']}'\n{physics.lines(r['physics'])}")
    if args.json:
        with whole_file(args.json) as out:
            json.dump(results[0] if len(results) == 1 else results, out, indent=1, allow_nan=False)
    return results


if __name__ == '__main__':
    one_line_errors()
    main()
