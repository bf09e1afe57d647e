"""
Evaluate checkpoints: metrics of whole rollouts in field space, as a table and as JSON.

    python eval.py --ckpt out/burgers_cpu                        # best weights, test split, latent rollout
    python eval.py --ckpt out/                                   # every run below, a table for each data set
    python eval.py --ckpt out/burgers_cpu --superres 1 2 4 8     # decoded on finer grids
    python eval.py --ckpt out/burgers_cpu --random_points 4096   # decoded at random points of the domain
    python eval.py --ckpt out/ns_points_cpu --input_points 256 1024      # started from so many random points
    python eval.py --ckpt out/burgers_cpu --dt .1                # by steps of .1 s (key other_strides of train.py)
    python eval.py --ckpt out/burgers_cpu --horizon 10           # also rollouts ten times as long as the file
    python eval.py --ckpt out/burgers_cpu --physics --plot       # conservation, energy, residual; spectra.png
    python eval.py --ckpt out/burgers_cpu --data FILE --json eval.json      # all trajectories of another file
    python eval.py --ckpt out/burgers_cpu --break_even           # after how many trajectories does it pay?
    python eval.py --ckpt out/one out/two --initial_step 10      # side by side; frames 0..9 are not predicted
    python eval.py --ckpt out/ --rows 10 --json eval.json        # quick: the first ten rows of the split alone
    python eval.py --ckpt out/one out/two --compare              # a row for each of several runs on one file
    python eval.py --ckpt out/ --compare runs.md runs.csv runs.png --below .01       # also written to files

The metrics are those of evaluation/scores.py. evaluation/off_grid.py says with what the rollouts of
--superres, --random_points and --input_points are compared, evaluation/long_rollouts.py those of --horizon.

The table of a run is printed, and the JSON file written anew, when the run is evaluated: Ctrl-C keeps those.
A run whose last.pt says that its training is not finished is marked `unfinished`.

--compare also counts the iterations until the validation error was at most --below (default: the last one of
the first run), from the log.csv beside each checkpoint. Its .png shows the errors over time.
"""
import argparse
import json
import math
import os
import sys

from runtime.configurator import UserError, one_line_errors, parse_flags, say

if __name__ == '__main__':
    one_line_errors()                  # also while the rest is imported

import numpy as np
import torch

from evaluation.domains import recorded_scores
from evaluation.load import facts, open_task, with_time_step
from evaluation.long_rollouts import long_rollouts
from evaluation.off_grid import at_file_points, from_input_points, grid_axes, off_grid, unseen_points
from evaluation.scores import evaluate, expected_seconds
from evaluation.tables import (as_text, compare, ensemble_table, equations_table, finite, groups, heading,
                               search_table, table)
from files.fit import placed_axis
from grids import shape_text
from model import load_state
from runtime import extensions
from runtime.checkpoint import (equations_of, find_runs, load_checkpoint, member_of, of_equation,
                                whole_file)
from runtime.device import pick
from runtime.paths import output_file, output_files
from runtime.progress import EVERY, duration
from runtime.run import unfinished


# flags of work beyond the rollouts on the grid
EXTRAS = ('superres', 'random_points', 'horizon', 'input_points', 'physics', 'break_even', 'stepper', 'ttc')


# ---------------------------------------------------------------------------------------------
# one checkpoint

def evaluate_checkpoint(file, args, device='cpu', equation=None):
    """The results for one checkpoint file, a dict of JSON types (None where a number is not finite). args: as
    `arguments` returns them; equation: which one, of a model of several. Raises UserError."""
    state = of_equation(load_checkpoint(file), file, equation)

    def loaded(encoder=None):
        model = load_state(state, file, device, encoder=encoder)
        return model if args.dt is None else with_time_step(model, args.dt)

    model = loaded()
    point_model = model
    if args.stepper:
        from probabilistic.scores import ensembles
        for name in args.stepper:
            model.stepper(name)                                      # raises, if the model does not have it
    if args.input_points:
        check_input_points(model, args.input_points)
        if model.cfg.encoder != 'points':
            point_model = loaded('points')
    task = open_task(state, model, file, args)
    check_task(task, args, state)
    n = task.initial_step
    say_cost(task, args)
    scores, p = evaluate(model, task.u, task.params, n, args.rollout, args.batch_size)
    result = {**facts(state, file, task), 'equation': equation, 'first_rows': len(task.rows) == args.rows,
              'unfinished': what_is_left(file, state), 'rollout': args.rollout, **scores}
    usual = scores['metrics']['nrmse']
    result['metrics'].update(recorded_scores(task, p))
    if args.save:
        write_and_note(args, save_predictions, args.save, task, p)
    if args.superres or args.random_points:
        found = off_grid(task, sorted(set(args.superres)), args.random_points)
        add_ratios(found, usual)
        if args.random_points:
            result['random_points'] = {'points': args.random_points, **found.pop('random_points')}
        if args.superres:
            result['superres'] = found
    if args.horizon:
        result['horizon'] = long_rollouts(task, args.horizon)
    of_points = all(source.layout == 'points' for source in task.sources)
    if of_points and (model.cfg.encoder == 'points' or not model.cfg.encoder_dim):
        point_model = loaded('points')
        result['file_points'] = {'nrmse': at_file_points(task._replace(model=point_model))}
    if args.input_points:
        if model.cfg.encoder == 'points':                            # from as many as in training
            result['trained_points'] = state['config']['input_points']
            [at_trained] = from_input_points(task, [result['trained_points']]).values()
            usual = at_trained['nrmse']
        result['input_points'] = from_input_points(task._replace(model=point_model), args.input_points)
        add_ratios(result['input_points'], usual)
    if args.physics:
        from physics.report import report
        axes = grid_axes(model.cfg, task.grid)
        entry = task.sources[0].entry
        result['physics'] = report(task.u[:, n - 1], p, task.u[:, n:], model.cfg.dt, task.params, axes, entry)
    if args.break_even:
        from evaluation.break_even import report as break_even
        result['break_even'] = break_even(task, scores['metrics']['nrmse'], seconds_of_training(file, state),
                                          state['data']['n_trajectories'])
    if args.plot:
        write_and_note(args, plot_spectra, spectra_file(file, equation), task, p)
    if args.stepper:
        seen_at = None
        if model.cfg.encoder == 'points':
            seen_at = unseen_points(task, state['config']['input_points'])
        result['stepper'] = ensembles(model, task.u, task.params, n, args.batch_size, args.stepper,
                                      args.n_members, args.flow_steps, seen_at)
    if args.ttc:
        from probabilistic import search
        result['ttc'] = search.report(model, task.u, task.params, n, args.batch_size, args.ttc)
    return finite(result)


def write_and_note(args, write, *what):
    """Write a file. Where that fails (the disk is full), it is told after the tables were printed."""
    try:
        write(*what)
    except (UserError, OSError) as error:
        args.unwritten.append(str(error))


def what_is_left(file, state):
    """What the run of a checkpoint has still to do, as its last.pt says, which is read where it lies beside a
    best.pt; None of a finished run, and where there is no last.pt."""
    try:
        state = last_state(file, state)
    except UserError:
        return 'last.pt cannot be read'
    return unfinished(state) or None if 'limits' in state else None


def last_state(file, state):
    """What the last.pt beside a best.pt holds, {} where there is none; of another file its own `state`."""
    folder, name = os.path.split(file)
    if name != 'best.pt':
        return state
    last = os.path.join(folder, 'last.pt')
    return load_checkpoint(last) if os.path.exists(last) else {}


def seconds_of_training(file, state):
    """Seconds of the whole training, of which a best.pt holds a part."""
    return last_state(file, state).get('train_seconds', state['train_seconds'])


def say_cost(task, args):
    """Before minutes of work, say how many."""
    u = task.u
    seconds = expected_seconds(task.model, u, task.params, task.initial_step, task.batch_size)
    if seconds < EVERY:
        return
    more = [f'--{name}' for name in EXTRAS if getattr(args, name) not in (None, 0, (), False)]
    more = f', and more for {" ".join(more)}' if more else ''
    hint = '' if args.rows or seconds < 120 else '; --rows N takes only the first N'
    say(f'eval: about {duration(seconds)} for {len(u)} trajectories of {task.steps} steps{more}{hint}')


def add_ratios(found, usual):
    """Add to each score of {name: {'nrmse'}} its ratio to the usual nRMSE."""
    for scores in found.values():
        scores['ratio'] = scores['nrmse'] / (usual or math.nan)


def check_input_points(model, numbers):
    """Raise UserError for fewer input points than an interpolation needs."""
    from points.splines import fewest_points
    least = fewest_points(len(model.cfg.grid))
    if min(numbers) <= least:
        raise UserError(f'--input_points {min(numbers)} must be at least {least + 1}')


def check_task(task, args, state):
    """Raise UserError where a task, or the checkpoint, does not allow what is asked for."""
    cfg = task.model.cfg
    if args.horizon and task.sources[0].entry.steady:
        raise UserError(f'--horizon {args.horizon}: {cfg.pde} is steady, it has no later times')
    if args.break_even:
        from evaluation.break_even import check
        check(state, task.sources)
    if args.ttc:
        args.ttc.check(task.model, task.steps)
        if task.grid != tuple(cfg.grid):
            raise UserError(f'--ttc searches on the trained grid of {shape_text(cfg.grid)} points, and the '
                            f'file has {shape_text(task.grid)}')


def spectra_file(file, equation):
    """spectra.png beside a checkpoint; spectra-NAME.png of one of several equations."""
    return os.path.join(os.path.dirname(file), f'spectra-{equation}.png' if equation else 'spectra.png')


def plot_spectra(path, task, p):
    """Draw energy spectra of the true frames and of the predictions p."""
    from evaluation.pictures import draw_spectra
    from physics.report import spectra
    cfg = task.model.cfg
    first = task.initial_step - 1                                    # the frame that the rollouts start from
    u = task.u[:, first:]
    true_power, waves = spectra(u, cfg.periodic)
    power, _ = spectra(torch.cat([u[:, :1], p], 1), cfg.periodic)
    t = task.sources[0].first_time + cfg.dt * np.arange(first, first + u.shape[1])
    title = f'{path}: energy spectra, mean of {len(u)} trajectories'
    draw_spectra(path, waves.numpy(), t, power.numpy(), true_power.numpy(), cfg.fields, title)


def save_predictions(path, task, p):
    """Write one .npz file of float32 arrays: predictions and truth (N, T, *grid, C), t (T,) seconds as the
    (first) data file counts them, x (points, d) row-major, and each parameter's values (N,)."""
    axes = [placed_axis(task.sources[0], task.model.cfg, i, n) for i, n in enumerate(task.grid)]
    mesh = np.meshgrid(*axes, indexing='ij')
    n = task.initial_step
    arrays = {name: value.numpy() for name, value in task.params.items()}
    arrays['predictions'] = p.numpy()
    arrays['truth'] = task.u[:, n:].numpy()
    arrays['t'] = task.sources[0].first_time + task.model.cfg.dt * np.arange(n, n + task.steps)
    arrays['x'] = np.stack([axis.ravel() for axis in mesh], -1)
    with whole_file(path, 'wb') as file:
        np.savez_compressed(file, **{name: array.astype(np.float32) for name, array in arrays.items()})
    say(f'eval: predictions -> {path}')


# ---------------------------------------------------------------------------------------------
# command line

def arguments(argv):
    """The checked command line, a namespace. Raises UserError."""
    parser = argparse.ArgumentParser(description='Evaluate checkpoints on rollouts.', allow_abbrev=False)
    add = parser.add_argument
    add('--ckpt', nargs='+', required=True, help='run folders, folders of runs, or files')
    add('--equation', nargs='+', metavar='NAME', help='these alone, of a model of several equations')
    add('--split', choices=['test', 'val', 'train', 'all'], help='default: test')
    add('--rows', type=int, metavar='N', help='only the first N rows of the split (of each file)')
    add('--data', help='another file of the same equation, all of its trajectories')
    add('--initial_step', type=int, help='true frames before a rollout (default: as in training)')
    add('--steps', type=int, help='predict only so many frames (default: all)')
    add('--dt', type=float, help='seconds of a step (default: as in training)')
    add('--rollout', choices=['latent', 'reencode'], default='latent')
    add('--superres', type=int, nargs='+', default=(), metavar='F', help='factors of the output grid')
    add('--random_points', type=int, default=0, metavar='N', help='also decode at N random points')
    add('--horizon', type=int, metavar='K', help='also roll out K times as long')
    add('--input_points', type=int, nargs='+', default=(), metavar='N',
        help='also start from the values at N random points')
    steppers = ['operator', *extensions.STAGES]
    add('--stepper', nargs='+', default=(), metavar='NAME', choices=steppers,
        help=f"also roll out by these steppers: {', '.join(steppers)}")
    add('--n_members', type=int, default=8, help='rollouts of each trajectory by a stochastic stepper')
    add('--flow_steps', type=int, default=0, help="sampling steps of a flow (default: the model's own)")
    add('--ttc', nargs='*', metavar='KEY=VALUE', help='also test-time search; keys: probabilistic/search.py')
    add('--physics', action='store_true', help='also conservation, energy, walls, divergence and residual')
    add('--break_even', action='store_true', help='also after how many trajectories the model pays')
    add('--plot', action='store_true', help='with --physics: spectra.png in the run folder')
    add('--device', default='auto', help='auto, cpu, cuda, cuda:N or mps')
    add('--batch_size', type=int, default=64, help='trajectories rolled out at a time')
    add('--json', help='file to write; a list for several checkpoints')
    add('--compare', nargs='*', metavar='FILE', help='a row for each run; .md, .csv, .png')
    add('--below', type=float, help='validation error to which --compare counts iterations')
    add('--save', help='.npz file of predictions, truth, t and x, for one checkpoint')
    args = parse_flags(parser, argv)
    args.unwritten = []                                              # what went wrong after the evaluation
    check_arguments(args)
    if args.ttc is not None:
        from probabilistic.search import Settings
        args.ttc = Settings.of(args.ttc)
    return args


def check_arguments(args):
    """Raise UserError for values that no model allows, and files that cannot be written."""
    least = {'batch_size': 1, 'rows': 1, 'random_points': 0, 'horizon': 2, 'n_members': 2, 'flow_steps': 0}
    for name, limit in least.items():
        value = getattr(args, name)
        if value is not None and value < limit:
            raise UserError(f'--{name} {value} must be at least {limit}')
    if args.horizon and args.steps:
        raise UserError('--steps makes rollouts shorter and --horizon longer: leave one out')
    if args.plot and not args.physics:
        raise UserError('--plot draws spectra for the report of --physics: add --physics')
    if args.data and args.split not in (None, 'all'):
        raise UserError(f'--data evaluates all trajectories of a file: leave --split {args.split} out')
    if args.data and args.break_even:
        raise UserError('--break_even counts what the data of the training cost: leave --data out')
    if args.below is not None and args.compare is None:
        raise UserError(f'--below {args.below:g} needs --compare')
    for path in args.compare or ():
        if not path.endswith(('.md', '.csv', '.png')):
            raise UserError(f"--compare '{path}' must end with .md, .csv or .png")
    if args.save is not None and not args.save.endswith('.npz'):
        raise UserError(f"--save '{args.save}' must end with .npz")


def members_of(file, asked=None):
    """Names of the equations of a checkpoint of several, of those that are asked for; [None] of one, and where
    the file cannot be read."""
    try:
        state = load_checkpoint(file)
    except UserError:                                                # told when it is evaluated
        return [None]
    if asked:
        return [member_of(state, file, name) for name in asked]
    return list(equations_of(state)) or [None]


def check_outputs(args, files):
    """Raise UserError where a file that is asked for cannot be written, before minutes of work. files: the
    checkpoints, each with the equation."""
    written = {'--json': args.json, '--save': args.save}
    for number, path in enumerate(args.compare or (), 1):
        written[f'--compare (file {number})'] = path
    output_files(written)
    for file, equation in files:
        if args.plot:
            output_file('--plot', spectra_file(file, equation))


def main(argv=None):
    """Evaluate, print tables, write JSON, and return the list of results. A run of a folder of several that
    cannot be evaluated is left out, with a line on stderr. Raises UserError."""
    args = arguments(argv)
    runs = {path: find_runs(path) for path in args.ckpt}
    files = {}                                                       # (file, equation): one of several?
    for found in runs.values():
        for file in found:
            names = members_of(file, args.equation)
            several = len(found) > 1 or len(names) > 1
            files.update(dict.fromkeys([(file, name) for name in names], several))
    if args.save and len(files) > 1:
        raise UserError(f'--save writes the predictions of one checkpoint: name one of these {len(files)}')
    if args.compare is not None and len(files) < 2:
        raise UserError(f"--compare needs two checkpoints or more; there is only '{min(files)[0]}'")
    check_outputs(args, files)
    device = pick(args.device, 'eval')
    results = []
    try:
        for (file, equation), is_one_of_several in files.items():
            try:
                results.append(evaluate_checkpoint(file, args, device, equation))
            except UserError as error:
                if not is_one_of_several:
                    raise
                print(f"eval: '{file}' is left out: {error}", file=sys.stderr, flush=True)
                continue
            keep(results, args, len(files))
    except KeyboardInterrupt:
        where = f" (in '{args.json}')" if args.json and results else ''
        print(f'eval: stopped; {len(results)} of {len(files)} evaluations were finished{where}',
              file=sys.stderr, flush=True)
        sys.exit(130)
    if not results:
        raise UserError(f'none of the {len(files)} checkpoints could be evaluated')
    if args.compare is not None:
        compare(results, args.compare, args.below)
    elif len(files) > 1:
        print_side_by_side(results)
        for file in dict.fromkeys(r['ckpt'] for r in results if r['equation']):
            say(f"\n'{file}', a model of several equations\n\n"
                f"{equations_table([r for r in results if r['ckpt'] == file])}")
    if args.unwritten:
        raise UserError('; '.join(args.unwritten))
    return results


def keep(results, args, n_files):
    """Print the last result and write all results so far: what is finished is not lost with the next run."""
    r = results[-1]
    if args.compare is None and (not r['equation'] or args.equation or r.keys() & set(EXTRAS)):
        print_tables(r)
    else:
        say(f"eval: '{r['ckpt']}': nrmse {as_text(r['metrics']['nrmse'])}")
    if args.json:
        with whole_file(args.json) as out:
            json.dump(results if n_files > 1 else r, out, indent=1, allow_nan=False)


def print_tables(r):
    """The table of a result, and further ones for what was asked for."""
    say(f'\n{heading(r)}\n\n{table([r])}')
    if 'stepper' in r:
        say(f"\nrollouts of '{r['ckpt']}' by stepper\n{ensemble_table(r['stepper'])}")
    if 'ttc' in r:
        say(f"\ntest-time search with '{r['ckpt']}'\n{search_table(r['ttc'])}")
    if 'physics' in r:
        from physics.report import lines
        say(f"\nphysics of '{r['ckpt']}'\n{lines(r['physics'])}")


def print_side_by_side(results):
    """A table for each group of several results that can be compared."""
    for group in groups(results):
        if len(group) > 1:
            say(f'\n{heading(group[0])}\n\n{table(group)}')


if __name__ == '__main__':
    main()
