"""
One model of several equations against a model of each, and its blocks on equations that it has never seen.

    python eval.py --ckpt out/universal_cpu --json u.json       # each equation of one model
    python -m dev.universal compare u.json                       # over the errors of docs/zoo.json; a file a seed

    python -m dev.universal few_shot config/kdv_cpu.py --test datasets/kdv_test.hdf5 --iters 1000 \
        --blocks universal=pretrained/universal.pt ns=out/only_ns random=
    python -m dev.universal plot docs/few_shot.png out/few_shot_kdv_cpu out/few_shot_gray_scott_cpu

    python -m dev.universal parameters out/burgers_nus datasets/1D_Burgers_Sols_Nu*_N100_seed1.hdf5

compare prints a row an equation: its error in the mixture, that of its own model (mean of the seeds of
docs/zoo.json), and their ratio; then the geometric mean.

few_shot trains a config on 4, 16, 64 and 256 trajectories (--sizes) for equal iterations, from blocks of several
checkpoints; `random=` begins with random blocks of the same network. The score is the median over the
trajectories of the file --test, made with another seed. Every finished training is a JSON file in --out. plot
draws the errors of several such folders, a panel each.

parameters scores one model, trained at several values of a parameter, on all trajectories of files of other
values, inside and outside of the range.
"""
import argparse
import itertools
import json
import os
import statistics
import sys
import warnings

from dev.trainings import experiment, done, part_of, results_in
from evaluation.load import choose_rows, open_data, params_of, read
from evaluation.pictures import can_draw, log_axes, new_axes, save
from evaluation.scores import predict, predicted_fields
from evaluation.tables import aligned, as_text
from files.open import open_source
from metrics import by_frame, nrmse
from model import load_state
from peers.compare import HERE, run_training, write_json
from runtime.checkpoint import NETWORK, find_checkpoint, load_checkpoint
from runtime.configurator import UserError, one_line_errors, say
from runtime.paths import output_folder


def compare(seeds, zoo):
    """seeds: what eval.py --json wrote of one model, for each seed; zoo: docs/zoo.json. Prints a table. ->
    geometric mean of the ratios"""
    rows = [['equation', 'in the mixture', 'its own model', 'ratio']]
    ratios = []
    for of_seeds in zip(*seeds):
        equation = of_seeds[0]['equation']
        errors = [r['metrics']['nrmse'] for r in of_seeds]
        own = statistics.mean(seed['nrmse'] for seed in zoo[equation]['ours'])
        ratios.append(statistics.mean(errors) / own)
        rows.append([equation, with_each(errors), as_text(own), f'{ratios[-1]:.2f}'])
    mean = statistics.geometric_mean(ratios)
    print(aligned([*rows, ['geometric mean', '', '', f'{mean:.2f}']]))
    return mean


def with_each(errors):
    """Mean of errors (each), as text."""
    each = f" ({', '.join(map(as_text, errors))})" if len(errors) > 1 else ''
    return as_text(statistics.mean(errors)) + each


# ---------------------------------------------------------------------------------------------
# few trajectories of a new equation

def rows_for(n):
    """n_trajectories of which n are train rows: a tenth each, one at least, are test and validation."""
    whole = next(whole for whole in itertools.count(n) if whole - 2 * max(1, whole // 10) >= n)
    return max(whole, 3)


def few_shot(args):
    """Run the trainings that have no result in the folder yet, and print the table."""
    folder = output_folder('--out', args.out or f'out/few_shot_{experiment(args.config)}')
    for text in args.blocks:
        if '=' not in text:
            raise UserError(f"--blocks: '{text}' is not NAME=RUN (random blocks: {text}=)")
    blocks = dict(text.partition('=')[::2] for text in args.blocks)
    first = next((path for path in blocks.values() if path), None)
    if not first:
        raise UserError('--blocks needs a checkpoint, whose network those with random blocks have too')
    trainings = itertools.product(range(args.seeds), args.sizes, blocks)
    for seed, n, name in part_of(trainings, args.part):
        path = os.path.join(folder, f'{name}-{n}-seed{seed}')
        what = {'iters': args.iters, 'keys': args.keys, 'blocks': blocks[name], 'test': args.test, 'data': args.data}
        if done(path, what):
            continue
        start = [f'--init_from={blocks[name]}'] if blocks[name] else random_blocks(first)
        data = [f'--data_path={args.data}'] if args.data else []
        length = [f'--n_trajectories={rows_for(n)}', f'--max_iters={args.iters}',
                  f'--eval_interval={max(1, args.iters // 20)}']
        rows = run_training(args.config, path, *start, *data, *length, f'--seed={seed}', '--device=cpu',
                            *args.keys)
        error = score(path, args.test)
        say(f'{name}, {n} trajectories, seed {seed}: median nRMSE {error:.5f}')
        write_json(f'{path}.json', {'what': what, 'blocks': name, 'n': n, 'seed': seed, 'nrmse': error,
                                    'minutes': float(rows[-1]['train_seconds']) / 60})
    table(folder)


def random_blocks(path):
    """Arguments of train.py for the network of a checkpoint."""
    args = load_checkpoint(find_checkpoint(path))['model_args']
    args = next(iter(args['members'].values()), args) if 'members' in args else args
    return [f'--{name}={args[name]}' for name in NETWORK]


def score(run, test):
    """nRMSE of a run on the trajectories of a file, their median: one rollout that blows up would decide a mean."""
    file = find_checkpoint(run)
    state = load_checkpoint(file)
    model = load_state(state, file)
    cfg = model.cfg
    sources = open_data(state, cfg, file, test)
    rows = choose_rows(state, sources, file, 'all', test)
    u = read(sources, rows, cfg, cfg.grid)
    n = state['config']['initial_step']
    p = predict(model, u, params_of(sources, cfg, len(rows)), n, state['config']['batch_size'])
    errors = by_frame(nrmse, predicted_fields(model, p), predicted_fields(model, u[:, n:]))
    return float(errors.mean((1, 2)).median())


def errors_of(folder):
    """{blocks: {number of trajectories: [errors of all seeds]}} of the results in a folder."""
    found = {}
    for r in results_in(folder):
        found.setdefault(r['blocks'], {}).setdefault(r['n'], []).append(r['nrmse'])
    return found


def plot(path, folders):
    """Draw error against number of trajectories, a panel for each folder: means over seeds, and each."""
    if not can_draw():
        raise UserError('plot needs matplotlib')
    figure, axes = new_axes(4.5 * len(folders), 3.6, 1, len(folders))
    panels = [errors_of(folder) for folder in folders]
    names = list(dict.fromkeys(name for found in panels for name in found))          # a colour each
    for axis, folder, found in zip(axes[0], folders, panels):
        shown = sorted({n for of in found.values() for n in of})
        for name, of in found.items():
            sizes = sorted(of)
            colour = f'C{names.index(name)}'
            axis.plot(sizes, [statistics.mean(of[n]) for n in sizes], color=colour, marker='o', label=name)
            for n in sizes:
                axis.scatter([n] * len(of[n]), of[n], 8, color=colour)
        log_axes(axis, shown, xlabel='training trajectories', ylabel='nRMSE (median)',
                 title=os.path.basename(os.path.normpath(folder)))
        axis.legend(fontsize=7)
    save(figure, path, '')


def table(folder):
    """A row for each kind of blocks, a column for each number of trajectories: mean over seeds (each)."""
    found = errors_of(folder)
    sizes = sorted({n for of in found.values() for n in of})
    rows = [['blocks', *map(str, sizes)]]
    for blocks, of in found.items():
        entries = []
        for n in sizes:
            entries.append(with_each(of[n]) if n in of else '-')
        rows.append([blocks, *entries])
    print(aligned(rows))


# ---------------------------------------------------------------------------------------------
# values of a parameter

def parameters(run, paths):
    """Print a row a file, in the order of the parameter: its place among trained values, and the error."""
    args = load_checkpoint(find_checkpoint(run))['model_args']
    if len(args['params']) != 1:
        raise UserError(f"parameters takes a model of one parameter, not {', '.join(args['params']) or 'none'}")
    [name] = args['params']
    [trained] = args['seen_params']
    found = []
    for path in paths:
        value = open_source(path, args['pde'], quiet=True, named=True).params[name]
        place = 'between' if min(trained) < value < max(trained) else 'outside'
        with warnings.catch_warnings():                              # of values that were never seen
            warnings.simplefilter('ignore', UserWarning)
            found.append((value, 'trained' if value in trained else place, score(run, path)))
    rows = [[f'{value:g}', place, as_text(error)] for value, place, error in sorted(found)]
    print(aligned([[name, 'value', 'nRMSE'], *rows]))


def main(argv):
    parser = argparse.ArgumentParser(description='One model of several equations.', allow_abbrev=False)
    commands = parser.add_subparsers(dest='command', required=True)
    one = commands.add_parser('compare', allow_abbrev=False)
    one.add_argument('json', nargs='+', help='what eval.py --json wrote, a file for each seed')
    one.add_argument('--zoo', default=os.path.join(HERE, 'docs', 'zoo.json'))
    two = commands.add_parser('few_shot', allow_abbrev=False)
    add = two.add_argument
    add('config')
    add('--test', required=True, help='data file, all of whose trajectories are scored')
    add('--data', help='data file to train on (default: that of the config)')
    add('--blocks', nargs='+', required=True, metavar='NAME=RUN')
    add('--sizes', nargs='+', type=int, default=[4, 16, 64, 256])
    add('--iters', type=int, default=1000)
    add('--seeds', type=int, default=2)
    add('--part', default='0/1', help='i/n: every n-th training, for several processes')
    add('--out')
    three = commands.add_parser('plot', allow_abbrev=False)
    three.add_argument('png')
    three.add_argument('folders', nargs='+')
    four = commands.add_parser('parameters', allow_abbrev=False)
    four.add_argument('run')
    four.add_argument('files', nargs='+')
    args, args.keys = parser.parse_known_args(argv)
    if args.keys and args.command != 'few_shot':
        parser.error(f'unrecognized arguments: {" ".join(args.keys)}')
    if args.command == 'few_shot':
        few_shot(args)
        return
    if args.command == 'plot':
        plot(args.png, args.folders)
        return
    if args.command == 'parameters':
        parameters(args.run, args.files)
        return
    with open(args.zoo) as file:
        zoo = json.load(file)
    seeds = []
    for path in args.json:
        with open(path) as file:
            seeds.append(json.load(file))
    compare(seeds, zoo)


if __name__ == '__main__':
    one_line_errors()
    main(sys.argv[1:])
