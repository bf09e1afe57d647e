"""
Which inverse losses pay at which compression? Latents of fewer and fewer numbers, learned with different
losses, on one config.

    python -m dev.latents config/ns_cpu.py --minutes 3 --seeds 2
    python -m dev.latents config/burgers_cpu.py --nu=.001 --minutes 3 --seeds 2 --part 0/2    # 1/2 beside it

Every finished training is a JSON file in --out (default: out/latents_CONFIG_BUDGET) and is not run again; one
that was stopped goes on. The script ends with the table of all results; --plot draws it. --key=value sets a
key of train.py.
"""
import argparse
import itertools
import math
import statistics

from dev.trainings import experiment, mean_of, part_of, print_markdown, results_in, spent, train_once, values_of
from evaluation.pictures import log_axes
from peers.compare import prepare
from runtime.configurator import UserError, flag_words, one_line_errors
from runtime.inputs import token_grid
from runtime.paths import output_files, output_folder

LEAST = 4                              # features of a token; fewer numbers than that are fewer tokens
# Rows of the table. Each learned row has the losses of the one above it.
FIXED = {'cosine modes, not learned': ['--basis=cosine'],
         'components, not learned': ['--basis=components']}
LEARNED = {'field loss': [],
           '+ inverse encoding': ['--lambda_inverse_encoding=10']}
# One further loss at a time, beside inverse encoding.
FURTHER = {'with latent loss': ['--lambda_latent=10'],
           'with inverse decoding': ['--lambda_inverse_decoding=1', '--inverse_loss_frequency=1']}
TRAININGS = [*FIXED, *LEARNED, *FURTHER]
SHARED = '--token_shift=0 --unroll=2 --unroll_start=1 --unroll_switch=.5'.split()
COLUMNS = {'nrmse': 'latent rollout', 'reencode': 're-encoding', 'recon_nrmse': 'reconstruction',
           'latent_gap': '|E(D(z)) - z| / |z|', 'spectral_energy_error': 'spectrum',
           'ms_per_trajectory': 'ms per trajectory'}


def size(task, fewer):
    """(tokens along an axis, features of a token) of a latent with so many times fewer numbers. Raises
    UserError where there is none."""
    grid = task.y.shape[2:-1]
    tokens = task.keys['latent_tokens']
    n_values = task.y[0, 0].numel() // fewer
    while tokens > 1 and n_values // math.prod(token_grid(grid, tokens)) < LEAST:
        tokens //= 2
    dim = n_values // math.prod(token_grid(grid, tokens))
    if dim < 1:
        raise UserError(f'--factors {fewer}: a frame of {task.y[0, 0].numel()} values leaves no number')
    return tokens, dim


def trainings(task, factors):
    """{name: changes of keys} of all trainings, for each of the factors."""
    found = {}
    for fewer in factors:
        tokens, dim = size(task, fewer)
        patch = min(task.y.shape[2:-1]) // tokens
        latent = [*SHARED, f'--latent_tokens={tokens}', f'--latent_dim={dim}']
        for name, changes in FIXED.items():
            found[f'{fewer} times, {name}'] = [*latent, *changes]
        changes = [*latent, '--basis=components', '--encoder_dim=64', '--decoder_dim=64',
                   f'--patch_size={patch}', f'--halo={patch // 2}']
        for name, more in FURTHER.items():
            found[f'{fewer} times, {name}'] = [*changes, *LEARNED['+ inverse encoding'], *more]
        for name, more in LEARNED.items():
            changes = [*changes, *more]
            found[f'{fewer} times, {name}'] = changes
    return found


def table(folder):
    runs = {}
    for run in results_in(folder):
        fewer, name = run['name'].split(' times, ')
        runs.setdefault((int(fewer), name), []).append(run)
    known = [key for key in COLUMNS if all(run[key] is not None for of in runs.values() for run in of)]
    rows = []
    for fewer, name in sorted(runs, key=lambda key: (key[0], TRAININGS.index(key[1]))):
        found = runs[fewer, name]
        entries = [f'{mean_of(found, key):.3g}' for key in known]
        entries[0] += f' ({" ".join(format(run["nrmse"], ".4f") for run in found)})'
        rows.append([f'{fewer}', name, *entries, f'{mean_of(found, "iters"):.0f}'])
    print_markdown(['times fewer numbers', '', *[COLUMNS[key] for key in known], 'iterations'], rows)
    return runs


def picture(runs, path):
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout='constrained')
    all_factors = sorted({fewer for fewer, _ in runs})
    for axis, key in zip(axes, ('nrmse', 'recon_nrmse')):
        for name in [*FIXED, *LEARNED]:
            factors = [fewer for fewer in all_factors if (fewer, name) in runs]
            of_seeds = [[run[key] for run in runs[fewer, name]] for fewer in factors]
            means = [statistics.mean(values) for values in of_seeds]
            [line] = axis.loglog(factors, means, '-' if name in LEARNED else ':', label=name)
            for fewer, values in zip(factors, of_seeds):
                axis.plot([fewer] * len(values), values, 'o', ms=3, color=line.get_color())
        log_axes(axis, all_factors, title=COLUMNS[key], xlabel='times fewer numbers', ylabel='nRMSE')
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=4, fontsize=7)
    figure.savefig(path, dpi=110)


def main(argv=None):
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout, allow_abbrev=False)
    add = parser.add_argument
    add('config')
    add('--minutes', type=float, default=3.)
    add('--iters', type=int, help='instead of minutes')
    add('--seeds', type=int, default=1)
    add('--factors', type=int, nargs='+', default=[2, 8, 32])
    add('--trainings', nargs='+', default=TRAININGS, choices=TRAININGS, metavar='NAME',
        help=f'all of {", ".join(TRAININGS)}')
    add('--part', default='0/1', help='i/n: every n-th training from the i-th on')
    add('--out')
    add('--plot')
    args, overrides = parser.parse_known_args(flag_words(argv))
    part_of([], args.part)                                           # before minutes of work
    budget = {'iters': args.iters} if args.iters else {'minutes': args.minutes}
    folder = args.out or f'out/latents_{experiment(args.config)}_{spent(budget)}'
    output_folder('--out', folder)
    output_files({'--plot': args.plot})
    task = prepare(args.config, overrides)
    chosen = {name: changes for name, changes in trainings(task, args.factors).items()
              if name.split(' times, ')[1] in args.trainings}
    if any(run['data'] != values_of(task) for run in results_in(folder)):
        raise UserError(f"'{folder}' has results of other parameter values: choose another --out")
    every = itertools.product(range(args.seeds), chosen.items())
    for seed, (name, changes) in part_of(every, args.part):
        train_once(name, 'ours', changes, task, budget, seed, folder)
    runs = table(folder)
    if args.plot:
        picture(runs, args.plot)


if __name__ == '__main__':
    one_line_errors()
    main()
