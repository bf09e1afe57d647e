"""
Many trainings of the same length: architectures on one config, or all configs beside the FNO.

    python -m dev.study study config/burgers_cpu.py --minutes 2 --seeds 2 --nu .001 .01
    python -m dev.study zoo --minutes 5 --seeds 2                 # ten configs, beside the FNO

study: pure or U-shaped x standard or channel-separated attention at the config's number of tokens, then other
numbers of tokens (--tokens) in latents of as many numbers, then the FNO (in the moving frame where the equation
has one), for every value of the parameters and every seed.

zoo: this model and the FNO (in the moving frame where the equation has one) on several configs, by default
those of ZOO. --json writes the numbers of its table.

Both end with a table in Markdown. Every finished training is a JSON file in --out and is not run again, so a
study that was stopped goes on. --part i/n takes every n-th of them, for several processes. --key=value sets a
key of train.py. The FNO needs pip install -r requirements-peers.txt.
"""
import argparse
import glob
import itertools
import json
import math
import os
import statistics
import sys

from dev.trainings import (done, experiment, keys_of, mean_of, part_of, print_markdown, results_in, small, spent,
                           train_once, with_seeds)
from evaluation.break_even import MS, WAYS, by_ways, classical, pays_after, seconds_of_training_data, trajectories
from grids import shape_text
from peers.compare import (HERE, METHODS, best_validation, fno_of, parse, persistence, possible, prepare,
                           write_json)
from peers.networks import package_fno
from runtime.configurator import UserError, one_line_errors
from runtime.inputs import token_grid
from runtime.paths import output_files, output_folder

ZOO = ('advection_cpu', 'burgers_cpu', 'compressible_1d_cpu', 'darcy_cpu', 'diffusion_reaction_cpu',
       'diffusion_sorption_cpu', 'ks_cpu', 'ns_cpu', 'reaction_diffusion_cpu', 'shallow_water_cpu')


# ---------------------------------------------------------------------------------------------
# study: architecture x attention, number of tokens

def study_trainings(keys, shape, tokens):
    """{name: (method, changes)} of one data set and seed, the most important first. keys: of train.py; shape
    (*grid, C): of the fields. Other numbers of tokens make a latent of as many numbers. Tokens of fewer
    points than token_shift move on by all but one of them."""
    points = shape[0]
    d = len(shape) - 1
    heads = f'--n_head={keys["n_head"]}'
    kinds = {'standard': [heads], 'channel': [heads, f'--group_size={keys["hidden_dim"] // 4}']}
    depth = keys['depth']
    if depth < 3:
        raise UserError(f'study: a U has three blocks at least, and depth is {depth}')
    ends = max(1, depth // 4)
    depths = f'{ends},{max(1, depth - 2 * ends)},{ends}'
    found = {}
    for arch in ('pure', 'u'):
        for attention, changes in kinds.items():
            found[f'{arch}, {attention}'] = 'ours', [f'--arch={arch}', f'--attention={attention}',
                                                     f'--depth={depth}', f'--depths={depths}', *changes]
    n_numbers = keys['latent_dim'] * keys['latent_tokens'] ** d
    for n in tokens:
        if n < 1 or points % n:
            raise UserError(f'--tokens: {n} does not divide the {points} points of the grid')
        if n == keys['latent_tokens']:
            continue
        if n_numbers % n ** d:
            raise UserError(f'--tokens: {n} tokens an axis do not divide a latent of {n_numbers} numbers')
        each = points // n
        changes = [f'--latent_tokens={n}', f'--latent_dim={n_numbers // n ** d}',
                   f'--patch_size={min(keys["patch_size"], each)}', f'--halo={min(keys["halo"], each)}',
                   f'--token_shift={min(keys["token_shift"], each - 1)}']
        for arch in ('pure', 'u'):
            found[f'{arch}, standard, {n} tokens'] = 'ours', [*found[f'{arch}, standard'][1], *changes]
    return {**found, 'fno': ('fno', [])}


def study(args, overrides):
    """Run the trainings of the study that have no result in the folder yet, and print the table."""
    if len(args.configs) > 1:
        raise UserError('study takes one config')
    config = args.configs[0] if args.configs else os.path.join(HERE, 'config', 'burgers_cpu.py')
    folder = args.out or f'out/study_{experiment(config)}_{spent(args.budget)}'
    output_folder('--out', folder)
    tasks = [prepare(config, [*overrides, *setting]) for setting in args.settings]
    methods = possible(args.methods or ['ours', 'fno'], tasks[0])
    for seed, task in itertools.product(range(args.seeds), tasks):
        trainings = study_trainings(task.keys, task.y.shape[2:], args.tokens)
        for name, (method, changes) in part_of(trainings.items(), args.part):
            if method in methods:
                train_once(name, in_frame(method, task), changes, task, args.budget, seed, folder)
    study_table(folder)


def in_frame(method, task):
    """The FNO in the moving frame where the equation has one; another method as it is."""
    return fno_of(task) if method == 'fno' else method


def study_table(folder):
    """Markdown: a row a setting, mean nRMSE and those of its seeds. A range that meets the best row's is a
    tie."""
    tables = {}
    for run in results_in(folder):
        tables.setdefault(run['data'], {}).setdefault(run['name'], []).append(run)
    for data, table in tables.items():
        rows = []
        for name, runs in table.items():
            errors = [run['nrmse'] for run in runs]
            mean = statistics.mean(errors)
            rows.append((not math.isfinite(mean), mean, name, errors, runs))
        rows.sort(key=lambda row: row[:3])                           # what diverged comes last
        limit = max(rows[0][3])                                      # the worst seed of the best row
        lines = []
        for rank, (_, error, name, errors, runs) in enumerate(rows):
            iters = mean_of(runs, 'iters')
            ms = statistics.mean(1e3 * run['seconds'] / run['iters'] for run in runs)
            note = ('tie' if min(errors) <= limit else '') if rank else 'best'
            seeds = ' '.join(f'{error:.4f}' for error in errors)
            lines.append([name, f'{runs[0]["n_params"]:,}', f'{iters:.0f}', f'{ms:.0f}', f'{error:.4f}', seeds, note])
        print_markdown([data, 'parameters', 'iterations', 'ms per iteration', 'nRMSE', 'of seeds', ''], lines)
        print()


# ---------------------------------------------------------------------------------------------
# zoo: this model and the FNO on many equations

def zoo(args, overrides):
    """Train and score this model and the FNO on every config, as far as there are no results in the folder,
    print the table and write --json."""
    if len(args.settings) > 1:
        raise UserError('zoo takes one value of a parameter')
    folder = args.out or f'out/zoo_{spent(args.budget)}'
    output_folder('--out', os.path.join(folder, 'baselines'))
    methods = args.methods or ('ours', 'fno')
    if 'fno' in methods:
        package_fno()
    configs = args.configs or [os.path.join(HERE, 'config', f'{name}.py') for name in ZOO]
    overrides = [*overrides, *args.settings[0]]
    tasks = {}
    for seed, config in part_of(itertools.product(range(args.seeds), configs), args.part):
        if config not in tasks:
            tasks[config] = prepare(config, overrides)
            baselines = os.path.join(folder, 'baselines', experiment(config))
            keys = keys_of(tasks[config])
            if not done(baselines, keys):
                write_json(baselines + '.json', {'what': keys, **baselines_of(tasks[config])})
        task = tasks[config]
        for method in methods:
            method = in_frame(method, task)
            train_once(f'{experiment(config)}, {method}', method, [], task, args.budget, seed, folder)
    summary = zoo_summary(folder)
    write_json(args.json, summary)
    zoo_tables(summary)


def baselines_of(task):
    """What needs no training: sizes, the error of persistence and those of the built-in solver."""
    y = task.truth
    tokens = list(token_grid(y.shape[2:-1], task.keys['latent_tokens']))
    found = classical(task.sources, task.cfg, task.y, task.device)
    n = min(task.keys['n_trajectories'], task.source.n)
    return {'points': list(y.shape[2:-1]), 'fields': y.shape[-1], 'tokens': tokens,
            'latent_dim': task.keys['latent_dim'], 'steps': y.shape[1] - 1,
            'persistence': persistence(task), 'classical': found,
            'data_seconds': seconds_of_training_data(task.source, n, task.device) if found else None}


def zoo_summary(folder):
    """{experiment: its baselines, and of each method its arguments of train.py, the results of all seeds and its
    break-even}"""
    summary = {}
    for path in sorted(glob.glob(os.path.join(folder, 'baselines', '*.json'))):
        with open(path) as file:
            summary[experiment(path)] = {key: value for key, value in json.load(file).items() if key != 'what'}
    for run in results_in(folder):
        name, method = run['name'].split(', ')
        peer = 'fno' if METHODS[method].peer else method
        kept = ('seed', 'commit', 'nrmse', 'reencode', 'correlation_time', 'iters', 'seconds', 'n_params',
                'ms_per_trajectory', 'ms_of_one')
        row = summary[name]
        row.setdefault('changes', {})[peer] = run['what']['changes']
        row.setdefault(peer, []).append({'method': method, 'validation': best_validation(run),
                                         **{key: run[key] for key in kept if key in run}})
    for row in summary.values():
        row['solver'] = {}
        row['break_even'] = {}
        for peer in ('ours', 'fno'):
            if row['classical'] and peer in row:
                cost = mean_of(row[peer], 'seconds') + row['data_seconds']
                found = pays_after(cost, mean_of(row[peer], 'nrmse'), ms_of(row[peer]), row['classical'])
                row['solver'][peer], row['break_even'][peer] = found
    return summary


def ms_of(runs):
    """Milliseconds a trajectory by WAYS, means over the seeds."""
    return by_ways(mean_of(runs, MS['one']), mean_of(runs, MS['batch']))


def zoo_tables(summary):
    """Markdown: errors, then times and break-even. The solver is the fastest solution that errs no more than this
    model."""
    rows = {name: row for name, row in summary.items() if 'ours' in row and 'fno' in row}
    print_markdown(['config', 'points x fields', 'tokens x features', 'persistence', 'this model', 're-encoding', 'FNO',
                    'ratio'], [errors_of(name, row) for name, row in rows.items()])
    print()
    print_markdown(['config', 'correlation time, s (FNO)', 'ms, one at a time: model (FNO)', 'solver',
                    'break-even (FNO)', 'ms, in batches: model (FNO)', 'solver', 'break-even (FNO)'],
                   [times_of(name, row) for name, row in rows.items()])


def errors_of(name, row):
    own = mean_of(row['ours'], 'nrmse')
    fno = mean_of(row['fno'], 'nrmse')
    return [name, shape_text([*row['points'], row['fields']]), shape_text([*row['tokens'], row['latent_dim']]),
            f'{row["persistence"]:.3g}', with_seeds(row['ours']), small(mean_of(row['ours'], 'reencode')),
            with_seeds(row['fno']), f'{own / fno:.2f}']


def times_of(name, row):
    entries = [name, '{:.3g} ({:.3g})'.format(*[mean_of(row[who], 'correlation_time') for who in ('ours', 'fno')])]
    for way in WAYS:
        entries.append('{} ({})'.format(*[three(ms_of(row[who])[way]) for who in ('ours', 'fno')]))
        entries.append(solver_at(row, way))
        entries.append(f'{pays(row, "ours", way)} ({pays(row, "fno", way)})')
    return entries


def three(value):
    """Three figures: '0.148', '25.3', '2770'."""
    return f'{value:.3g}' if value < 1000 else f'{value:.0f}'


def pays(row, peer, way):
    """Trajectories after which a method has paid for itself: '2,010', 'never', or '-' where no solver is so good."""
    found = row['break_even'].get(peer, {})
    return trajectories(found[way]) if way in found else '-'


def solver_at(row, way):
    """The fastest solution that errs no more than this model: '2.0 (32 cells: 0.0131)', 'none' where there is none."""
    name = row['solver'].get('ours', {}).get(way)
    if name is None:
        return 'none'
    found = row['classical'][name]
    return f'{three(found[MS[way]])} ({name}: {small(found["nrmse"])})'


# ---------------------------------------------------------------------------------------------
# command line

def main(argv):
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout, allow_abbrev=False)
    add = parser.add_argument
    add('command', choices=['study', 'zoo'])
    add('configs', nargs='*', help='config files (default: study config/burgers_cpu.py, zoo those of ZOO)')
    add('--out', help='folder of the results (default: out/study_CONFIG_BUDGET, out/zoo_BUDGET)')
    add('--tokens', type=int, nargs='+', default=[32, 64, 128, 256], help='study: numbers of tokens')
    add('--part', default='0/1', help='i/n: every n-th training from the i-th on (zoo: config and seed)')
    args, overrides = parse(parser, argv)
    part_of([], args.part)                                           # before minutes of work
    output_files({'--json': args.json})
    others = [name for name in args.methods if name not in ('ours', 'fno')]
    if others:
        raise UserError(f'--methods: the table has ours and fno, not {", ".join(others)}')
    {'study': study, 'zoo': zoo}[args.command](args, overrides)


if __name__ == '__main__':
    one_line_errors()
    main(sys.argv[1:])
