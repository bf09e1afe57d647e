"""
Is it the network or the loop? This model and its peers in the same training loop, with both optimisers.

    python -m dev.networks config/ns_cpu.py --minutes 5 --seeds 2
    python -m dev.networks config/burgers_cpu.py --nu .001 --minutes 5 --seeds 2

The rate of every network and optimiser is the best of at least three, each twice the one before, by the validation
error of a training of full length with seed 0. While the best is the smallest or the largest, the next one is tried
too, up to seven. With AdamW the rate is learning_rate. With Muon it is muon_lr; AdamW trains parameters that are not
matrices, such as the spectral weights of the FNO, at the learning_rate of peers/compare.py. A training that diverges has
an infinite error. All networks have the moving frame where the equation has one. As in all comparisons, the others
unroll one step, then two, and have neither token shift nor principal components.

Then the other seeds are trained at the best rate, and two tables in Markdown printed: every network and optimiser; and
what the loop brings (error with Muon / with AdamW) beside what the network brings (error of this model / of the other
one). A training that is there is not run again. The FNO needs pip install -r requirements-peers.txt.
"""
import argparse
import itertools
import math
import sys

from dev.trainings import experiment, mean_of, part_of, print_markdown, spent, train_once, with_seeds
from peers.compare import FRAME, best_validation, parse, possible, prepare, write_json
from runtime.configurator import UserError, one_line_errors
from runtime.paths import output_files, output_folder

NETWORKS = ('ours', 'fno', 'unet', 'transolver', 'pdet')
RATES = {'adamw': {'ours': 3e-3, 'fno': 6e-3, 'unet': 1e-3, 'transolver': 5e-4, 'pdet': 1e-3},     # the first ones
         'muon': {'ours': 5e-3, 'fno': 5e-3, 'unet': .01, 'transolver': 5e-3, 'pdet': .01}}
MOST = 7                               # rates that are tried


def with_optimizer(name, optimizer, rate, task):
    """(name of a training, arguments of train.py) of a network."""
    key = {'adamw': 'learning_rate', 'muon': 'muon_lr'}[optimizer]
    changes = [f'--optimizer={optimizer}', f'--{key}={rate:g}']
    if task.has_moving_frame:
        changes.append(FRAME)
    return f'{name}, {optimizer} {rate:g}', changes


def best_rate(first, error):
    """The rate of the smallest error(rate), among first / 2, first, 2 first and, while the best is at an end of those
    tried, the next one beyond. An error that is not finite counts as infinite. Returns (rate, {rate: error})."""
    errors = {}
    missing = [first / 2, first, 2 * first]
    while missing:
        for rate in missing:
            found = error(rate)
            errors[rate] = found if math.isfinite(found) else math.inf
        best = min(errors, key=errors.get)
        missing = []
        if len(errors) < MOST and best == min(errors):
            missing = [best / 2]
        if len(errors) < MOST and best == max(errors):
            missing = [2 * best]
    return best, errors


def compared(name, optimizer, task, args, folder):
    """The results of all seeds of a network at its best rate, which is chosen with the first seed."""
    def trained(rate, seed):
        full_name, changes = with_optimizer(name, optimizer, rate, task)
        diverged = {'seed': seed, 'nrmse': math.inf, 'validation': []}
        run = train_once(full_name, name, changes, task, args.budget, seed, folder, diverged)
        return {**run, 'validation': best_validation(run)}

    rate, errors = best_rate(RATES[optimizer][name], lambda rate: trained(rate, 0)['validation'])
    kept = ('seed', 'nrmse', 'validation', 'iters', 'seconds', 'n_params', 'threads', 'device', 'commit')
    runs = []
    for seed in range(args.seeds):
        run = trained(rate, seed)
        runs.append({key: run[key] for key in kept if key in run})
    return {'network': name, 'optimizer': optimizer, 'rate': rate, 'tried': {f'{key:g}': errors[key] for key in errors},
            'runs': runs}


def table(rows):
    """Markdown: a row for each network and optimiser, the smallest error first."""
    lines = []
    for row in sorted(rows, key=lambda row: mean_of(row['runs'], 'nrmse')):
        finished = [run for run in row['runs'] if 'iters' in run]
        sizes = [f'{finished[0]["n_params"]:,}', f'{mean_of(finished, "iters"):.0f}'] if finished else ['-', '-']
        lines.append([row['network'], row['optimizer'], f'{row["rate"]:g}', f'{len(row["tried"])}', *sizes,
                      with_seeds(row['runs'])])
    print_markdown(['network', 'optimiser', 'rate', 'rates tried', 'parameters', 'iterations', 'nRMSE'], lines)


def quotients(rows):
    """Markdown: a row for each network that was trained with both optimisers."""
    errors = {(row['network'], row['optimizer']): mean_of(row['runs'], 'nrmse') for row in rows}
    lines = []
    for name in NETWORKS:
        if all((name, optimizer) in errors for optimizer in RATES):
            loop = errors[name, 'muon'] / errors[name, 'adamw']
            network = [errors.get(('ours', optimizer), math.nan) / errors[name, optimizer] for optimizer in RATES]
            lines.append([name, *(f'{quotient:.2f}' for quotient in (loop, *network))])
    if lines:
        print_markdown(['network', 'muon / adamw', 'ours / it, adamw', 'ours / it, muon'], lines)


def main(argv):
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout, allow_abbrev=False)
    add = parser.add_argument
    add('configs', nargs=1, help='config file')
    add('--out', help='folder of the results (default: out/networks_CONFIG_BUDGET)')
    add('--part', default='0/1', help='i/n: every n-th network and optimiser from the i-th on')
    args, overrides = parse(parser, argv)
    if len(args.settings) > 1:
        raise UserError('a parameter has one value here')
    unknown = [name for name in args.methods if name not in NETWORKS]
    if unknown:
        raise UserError(f'--methods: {unknown[0]} is none of {", ".join(NETWORKS)}')
    part_of([], args.part)                                           # before any work
    output_files({'--json': args.json})
    [config] = args.configs
    folder = args.out or f'out/networks_{experiment(config)}_{spent(args.budget)}'
    output_folder('--out', folder)
    task = prepare(config, [*overrides, *args.settings[0]])
    names = possible(args.methods or NETWORKS, task)
    pairs = part_of(itertools.product(names, RATES), args.part)
    rows = [compared(name, optimizer, task, args, folder) for name, optimizer in pairs]
    write_json(args.json, rows)
    table(rows)
    quotients(rows)


if __name__ == '__main__':
    one_line_errors()
    main(sys.argv[1:])
