"""
bench.py peers: all methods on one config, as a table, a JSON file and a picture.
"""
import itertools
import os
import statistics
import tempfile

from evaluation.break_even import cheapest, classical
from peers.compare import (HERE, METHODS, environment_line, persistence, possible, prepare, print_row, train_and_score,
                           write_json)
from runtime.configurator import UserError
from runtime.device import Machine


def peers(args, overrides):
    """Train and score all methods, print the table, and write --json (after every training) and --plot."""
    if len(args.configs) > 1 or len(args.settings) > 1:
        raise UserError('peers takes one config and one value of a parameter: python -m dev.study takes more')
    config = args.configs[0] if args.configs else os.path.join(HERE, 'config', 'burgers_cpu.py')
    task = prepare(config, [*overrides, *args.settings[0]])
    methods = possible(args.methods, task)
    coarse = classical(task.sources, task.cfg, task.y, task.device)
    runs = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed, name in itertools.product(range(args.seeds), methods):
            found = train_and_score(name, task, args.budget, seed, os.path.join(folder, f'{name}{seed}'))
            runs.setdefault(name, []).append(found)
            summary = peers_summary(runs, task, coarse)
            write_json(args.json, summary)
    peers_table(summary, args.budget, Machine(task.device).name())
    if args.plot:
        peers_picture(summary, args.plot)


AVERAGED = ('nrmse', 'seconds', 'n_params', 'iters', 'ms_per_trajectory')


def peers_summary(runs, task, coarse):
    """{method: entry}: means over the seeds so far, and the baselines. coarse: as `classical` returns it."""
    summary = {}
    for name, found in runs.items():
        of = {key: [run[key] for run in found] for key in found[0]}
        summary[name] = {
            **{key: statistics.mean(of[key]) for key in AVERAGED},
            'nrmse_seeds': of['nrmse'], 'validation': of['validation'],
            'per_step': [statistics.mean(step) for step in zip(*of['per_step'])]}
    own = min((entry['nrmse'] for name, entry in summary.items() if not METHODS[name].peer), default=0.)
    untrained = {'seconds': 0., 'n_params': 0, 'iters': 0}
    summary['persistence'] = {'nrmse': persistence(task), **untrained, 'ms_per_trajectory': 0.}
    if coarse:
        name = cheapest(own, coarse, 'batch') or next(iter(coarse))  # the finest, where none is so good
        summary['classical'] = {**coarse[name], **untrained, 'solver': name, 'all': coarse}
    return summary


def peers_table(summary, budget, device):
    given = ' '.join(f'{value:g} {unit}' for unit, value in budget.items())
    print(f'{environment_line(device)}; {given} a method and seed; nRMSE of whole rollouts from one frame, '
          'test split')
    widths = (-12, 10, 8, 9, 9, 2, -24, -32, 13)
    head = 'method,params,iters,seconds,nRMSE,,seeds,steps 1 10 20 last,ms/trajectory'
    print_row(head.split(','), widths)
    for name, r in summary.items():
        seeds = ' '.join(f'{error:.4f}' for error in r.get('nrmse_seeds', []))
        steps = r.get('per_step', [])
        steps = ' '.join(f'{step:.4f}' for step in [*steps[:1], *steps[9:10], *steps[19:20], *steps[-1:]])
        numbers = [f'{r["n_params"]:,.0f}', f'{r["iters"]:.0f}', f'{r["seconds"]:.0f}', f'{r["nrmse"]:.4f}']
        print_row([name, *numbers, '', seeds, steps, f'{r["ms_per_trajectory"]:.2f}'], widths)
    if 'classical' in summary:
        print(f"classical: the built-in solver, {summary['classical']['solver']}, in batches as it makes data; the "
              'others: all test trajectories in one batch')
    for own, peer in itertools.product(('ours', 'ours_plain'), METHODS):
        if own in summary and peer in summary and METHODS[peer].peer:
            print(f'nRMSE of {own} / {peer}: {summary[own]["nrmse"] / summary[peer]["nrmse"]:.2f}')


def peers_picture(summary, path):
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    figure, axes = plt.subplots(figsize=(6, 4))
    trained = [name for name in summary if name in METHODS]
    for i, name in enumerate(trained):
        r = summary[name]
        label = name
        for curve, test in zip(r['validation'], r['nrmse_seeds']):
            seconds, error = zip(*curve)
            axes.plot(seconds, error, color=f'C{i}', label=label)
            axes.plot(seconds[-1], test, 'o', color=f'C{i}')
            label = None
    axes.legend()
    axes.set(xlabel='seconds of training', ylabel='nRMSE (line: validation, dot: test)', yscale='log')
    figure.tight_layout()
    figure.savefig(path, dpi=120)
