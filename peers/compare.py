"""
Trainings of the same length, compared: this model beside its peers or variants of itself, on one equation or
many. bench.py is the command line, and says what the tables hold.
"""
import contextlib
import csv
import glob
import io
import itertools
import json
import math
import os
import re
import runpy
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from types import SimpleNamespace
from typing import NamedTuple

import torch

from eval import params_of
from files import Source, read_rows, split_rows
from grids import by, resample_axes
from losses import LOSSES
from metrics import mean_nrmse
from model import load
from peers import package_fno
from runtime.checkpoint import whole_file
from runtime.configurator import UserError, say
from runtime.device import Machine
from scores import evaluate, wait_for

HERE = os.path.dirname(os.path.abspath(__file__))
VALIDATIONS = 8                        # in a training, about
PATIENCE = 5.                          # seconds after which a measurement is not repeated any more


# ---------------------------------------------------------------------------------------------
# a training, a measurement, a table

def median_ms(run, device, repeats):
    """Median wall-clock of run() in milliseconds over `repeats` calls, after three that are not counted.
    Calls that take seconds are repeated less, down to a single one."""
    times = []
    begin = time.perf_counter()
    while len(times) < 3 + repeats and time.perf_counter() - begin < PATIENCE:
        start = time.perf_counter()
        run()
        wait_for(device)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[3:] or times[-1:])


def print_row(cells, widths):
    """A row of a table; a negative width aligns to the left."""
    row = ''
    for cell, width in zip(cells, widths):
        row += f'{cell:>{width}}' if width > 0 else f'{cell:<{-width}}'
    print(row.rstrip())


def machine(device):
    """What a table says of the machine."""
    return f'{device}, {torch.get_num_threads()} threads, torch {torch.__version__}'


def write_json(path, content):
    """Complete or not at all; nothing where no path is given."""
    if path:
        with whole_file(path) as file:
            json.dump(content, file, indent=1)


def start_training(config, overrides, folder):
    """Run train.py in this process, for as long as the overrides say, and return its globals."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = sys.argv
    sys.argv = ['train.py', config, *overrides, f'--out_dir={folder}/run', '--init_from=scratch']
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            left = runpy.run_path(os.path.join(HERE, 'train.py'), run_name='__main__')
    finally:
        sys.argv = before
        for number, handler in handlers.items():                     # train.py's wait for a loop that ended
            signal.signal(number, handler)
    left['run'].lock_file.close()
    return SimpleNamespace(**left)


def run_training(code, config, folder, *args, environment={}):
    """Run train.py of the folder `code` in a process of its own, into `folder`, or go on where it was
    stopped. Returns the rows of its log.csv."""
    command = [sys.executable, os.path.join(code, 'train.py'), config, *args, f'--out_dir={folder}']
    with subprocess.Popen([*command, '--patience=0'], stdout=subprocess.DEVNULL,
                          env={**os.environ, **environment}) as child:
        try:
            child.wait()
        except BaseException:                                        # stopped here: there too, and it saves
            child.terminate()
            raise
    if child.returncode:
        raise UserError(f"train.py in '{code}' stopped with exit code {child.returncode}")
    with open(os.path.join(folder, 'log.csv'), newline='') as file:
        return list(csv.DictReader(file))


# what is not measured
RARELY = '--eval_interval=1000000 --eval_batches=1 --save_interval=1000000'.split()


def ms_per_iteration(rows):
    """Of a log, from its first row to the last but one: the last iteration is followed by a validation."""
    first = rows[0]
    last = rows[-2]
    seconds = float(last['train_seconds']) - float(first['train_seconds'])
    return 1e3 * seconds / (int(last['iter']) - int(first['iter']))


# ---------------------------------------------------------------------------------------------
# methods: how each differs from the config

class Method(NamedTuple):
    changes: list                      # what train.py is told
    peer: bool = False                 # a network of peers.py: its tokens are the grid points
    reencode: bool = False             # is it rolled out by decoding and encoding every step?
    needs_frame: bool = False          # the same as another method where the equation has no moving frame
    cpu_batch: int = 0                 # batch size on a CPU, if not the config's
    cpu_plane: list = []               # what train.py is told besides on a CPU, where there are two axes


FIELD_LOSS = [f'--lambda_{name}=0' for name in LOSSES if name not in ('field', 'spectral')]
REENCODER = [*FIELD_LOSS, '--unroll=1', '--unroll_start=1']
# What peers share. Data, symmetries, early frames, spectral loss, averaging, warm-up are those of the config.
PEER = [*FIELD_LOSS, *'--encoder=grid --basis=cosine --encoder_dim=0 --decoder_dim=0 --token_shift=0'.split(),
        *'--unroll=2 --unroll_start=1 --unroll_switch=.7'.split(),
        *'--optimizer=adamw --weight_decay=0 --beta2=.99'.split(), '--compile=false', '--dtype=float32']
# The FNO's width, depth, batch and rate are the best of several (dev/LOG.md), and the U-Net's width in 2D.
FNO = [*PEER, *'--arch=fno --hidden_dim=48 --depth=4 --learning_rate=6e-3'.split()]
UNET = [*PEER, *'--arch=unet --hidden_dim=48 --depth=4 --learning_rate=2e-3'.split()]
NARROW = ['--hidden_dim=24']           # of both in 2D: wider ones make too few iterations on a CPU
PLAIN = '--moving_frame=false'
FRAME = '--moving_frame=true'

METHODS = {
    'ours': Method([]),
    'reencoder': Method(REENCODER, reencode=True),
    'ours_plain': Method([PLAIN, '--token_shift=0']),    # without what needs symmetries of the equation
    'fno': Method([*FNO, PLAIN], peer=True, cpu_batch=16, cpu_plane=NARROW),
    'fno_frame': Method([*FNO, FRAME], peer=True, cpu_batch=16, cpu_plane=NARROW, needs_frame=True),
    'unet': Method([*UNET, PLAIN], peer=True, cpu_plane=NARROW),
    'unet_frame': Method([*UNET, FRAME], peer=True, cpu_plane=NARROW, needs_frame=True)}


class Task(NamedTuple):
    """What all methods are compared on."""
    config: str                        # file
    overrides: list
    keys: dict                         # of train.py, resolved
    source: Source
    dt: float                          # seconds a step
    y: torch.Tensor                    # (N, T, *grid, C): the test split, from the last given frame on
    scored: list                       # numbers of the fields that are predicted
    machine: Machine


def prepare(config, overrides):
    """The Task of a config, read from what train.py makes of it without training. Raises UserError where
    methods cannot be compared on it."""
    quick = '--stages=operator --max_iters=0 --max_minutes=0 --memory_gb=0 --compile=false'.split()
    with tempfile.TemporaryDirectory() as folder:
        t = start_training(config, [*overrides, *quick], folder)
    if len(t.sources) != 1 or t.config['input_frames'] != 1:
        raise UserError('peers and study take one data file and one input frame')
    if t.config['operator_stage']:
        raise UserError('peers and study take plain keys: write those of operator_stage without it')
    source = t.sources[0]
    for name, value in source.params.items():
        key = name.lower()
        if not math.isclose(t.config[key], value, rel_tol=1e-6):
            raise UserError(f"'{source.path}' is not of {key} {t.config[key]:g}: --{key}={value:g}, or leave "
                            'data_path out')
    rows = split_rows(t.trajectories.n_trajectories, 'test', source.entry.test)
    y = torch.from_numpy(read_rows(source, rows, t.config['time_stride'], t.config['space_stride']))
    return Task(config, overrides, t.config, source, t.trajectories.dt, y[:, t.given - 1:],
                list(t.cfg.scored), t.machine)


def possible(methods, task):
    """Those of `methods` that differ on this equation; of all, if `methods` is empty. Raises UserError for
    one that was asked for and does not, and for a package that is not there."""
    has_frame = has_moving_frame(task)
    chosen = [name for name in methods or METHODS if has_frame or not METHODS[name].needs_frame]
    left_out = [name for name in methods if name not in chosen]
    if left_out:
        raise UserError(f'--methods: this equation has no moving frame for {", ".join(left_out)}')
    if any('--arch=fno' in METHODS[name].changes for name in chosen):
        package_fno()
    return chosen


def only(methods, known):
    """Raise UserError for methods that a table has no place for."""
    others = [name for name in methods if name not in known]
    if others:
        raise UserError(f'--methods: {", ".join(others)}: only {", ".join(known)} here; peers has all')


def has_moving_frame(task):
    entry = task.source.entry
    return bool(entry.galilean and entry.translates)


def changes_of(name, task):
    """What train.py is told for a method, beside config and overrides."""
    method = METHODS[name]
    changes = [*method.changes, '--stages=operator', '--epochs=0']
    if method.peer:
        changes += [f'--latent_tokens={task.y.shape[2]}', f'--latent_dim={task.y.shape[-1]}']
    on_cpu = task.machine.device.type == 'cpu'
    if method.peer and task.source.entry.steady:
        changes += ['--unroll=1']                                    # there is one step
    if on_cpu and task.y.ndim == 5:
        changes += method.cpu_plane
    if method.cpu_batch and on_cpu:
        n_validated = task.keys['eval_batches'] * task.keys['batch_size']
        changes += [f'--batch_size={method.cpu_batch}',
                    f'--eval_batches={math.ceil(n_validated / method.cpu_batch)}']
    return changes


def iterations_within(minutes, task, args, environment):
    """About how many iterations a training makes in that time: a short one is timed."""
    short = [*RARELY, '--max_iters=25', '--log_interval=5', '--n_trajectories=40',
             f'--data_path={task.source.path}']
    with tempfile.TemporaryDirectory() as folder:
        rows = run_training(HERE, task.config, folder, *args, *short, environment=environment)
    return 6e4 * minutes / ms_per_iteration(rows)


def compete(name, task, budget, seed, folder, extra=()):
    """Train one method with one seed for a budget {'minutes': ...} or {'iters': ...}, with further changes
    `extra`, and score it on the test split."""
    method = METHODS[name]
    args = [*task.overrides, *changes_of(name, task), *extra, f'--seed={seed}', '--max_minutes=0']
    environment = {'TORCH_ALLOW_TF32_CUBLAS_OVERRIDE': '1'} if method.peer else {}
    n = budget.get('iters') or iterations_within(budget['minutes'], task, args, environment)
    args += [f'--max_iters={budget.get("iters", 10 ** 9)}', f'--max_minutes={budget.get("minutes", 0)}',
             f'--eval_interval={math.ceil(n / VALIDATIONS)}']
    rows = run_training(HERE, task.config, folder, *args, environment=environment)
    device = task.machine.device
    model = load(folder, device)
    u0 = task.y[:, 0].to(device)
    steps = task.y.shape[1] - 1
    rollout = 'reencode' if method.reencode else 'latent'

    def roll():
        return model.rollout(u0, steps, reencode=method.reencode)

    results, _ = evaluate(model, task.y, params_of([task.source], model.cfg, len(u0)), rollout=rollout)
    scores = results['metrics']
    found = {'seed': seed,
             **{key: scores[key] for key in ('nrmse', 'correlation_time', 'spectral_energy_error')},
             'seconds': float(rows[-1]['train_seconds']),
             'iters': int(rows[-1]['iter']),
             'n_params': sum(w.numel() * (1 + w.is_complex()) for w in model.parameters()),
             'ms_per_trajectory': median_ms(roll, device, 3) / len(u0),
             'validation': [(float(row['train_seconds']), float(row['val_nrmse']))
                            for row in rows if row['val_nrmse']],
             'per_step': results['per_step']['nrmse']}
    if not method.peer and not method.reencode:
        found['reencode'] = results['reencode']['nrmse']
        found.update({key: scores[key] for key in ('recon_nrmse', 'latent_gap')})
    say(f'{name}, seed {seed}: {found["nrmse"]:.4f} in {found["seconds"]:.0f} s, {found["iters"]} iterations')
    return found


# ---------------------------------------------------------------------------------------------
# peers: this model and its peers on one equation

def peers(args, overrides, settings):
    """Train and score all methods, and print and write what was found: see the top of the file. The JSON is
    written after every run."""
    for path in (args.json, args.plot):
        if path and not os.path.isdir(os.path.dirname(path) or '.'):
            raise UserError(f"no folder for '{path}'")
    task = prepare(args.configs[0], [*overrides, *settings[0]])
    methods = possible(args.methods, task)
    coarse = classical(task)
    runs = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed, name in itertools.product(range(args.seeds), methods):
            found = compete(name, task, args.budget, seed, os.path.join(folder, f'{name}{seed}'))
            runs.setdefault(name, []).append(found)
            summary = peers_summary(runs, task.y[..., task.scored], coarse)
            write_json(args.json, summary)
    peers_table(summary, args.budget, task.machine.name())
    if args.plot:
        peers_picture(summary, args.plot)


def classical(task):
    """The built-in solver on coarser and coarser grids: {cells along an axis: nRMSE and ms a trajectory at
    batch 1}. It starts from the first frame, interpolated to its cells, and its result is interpolated back
    to the points of the test split. Grids on which it cannot be had are left out."""
    y = task.y
    entry = task.source.entry
    if entry.solve is None:
        return {}
    stride = task.keys['space_stride']
    t = [k * task.dt for k in range(y.shape[1])]
    lengths = [1.] * entry.axes if entry.periodic else None
    found = {}
    for factor in (1, 2, 4, 8):
        points = []                                                  # as fractions of the domain
        coarse = []
        for x, low, length in zip(task.source.x, entry.low, entry.length):
            x = torch.from_numpy((x[::stride] - low) / length)
            cells = len(x) // factor
            points.append(x)
            coarse.append(x[::factor] if entry.translates else (torch.arange(cells).double() + .5) / cells)
        first = y[:, 0].double()
        low, high = first.flatten(0, -2).aminmax(dim=0)
        u0 = resample_axes(first, points, coarse, lengths).clamp(low, high)          # no overshoot at a jump
        for field in map(entry.fields.index, entry.conserved):
            gap = first[..., field].flatten(1).mean(1) - u0[..., field].flatten(1).mean(1)
            u0[..., field] += gap.view(-1, *[1] * entry.axes)
        try:
            p = entry.solution(u0, task.source.params, t)[:, 1:].cpu()   # (N, T - 1, *cells, C)
        except UserError as error:
            say(f'{u0.shape[1]} cells of the solver: {error}')
            continue
        p = resample_axes(p, coarse, points, lengths)
        ms = median_ms(lambda u0=u0: entry.solution(u0[:1], task.source.params, t), u0.device, 10)
        error = mean_nrmse(p[..., task.scored], y[:, 1:, ..., task.scored])
        found[u0.shape[1]] = {'nrmse': error, 'ms_per_trajectory': ms}
    return found


def cells_for(error, found):
    """The fewest cells on which the built-in solver errs no more than `error`, or the most there are. found:
    as `classical` returns it; JSON has made texts of its numbers of cells."""
    enough = [cells for cells, at in found.items() if at['nrmse'] <= error]
    return min(enough, key=int) if enough else max(found, key=int)


AVERAGED = ('nrmse', 'seconds', 'n_params', 'iters', 'ms_per_trajectory')


def peers_summary(runs, y, coarse):
    """{method: entry}: means over the seeds so far, and the baselines. coarse: as `classical` returns it."""
    summary = {}
    for name, found in runs.items():
        of = {key: [run[key] for run in found] for key in found[0]}
        summary[name] = {
            **{key: statistics.mean(of[key]) for key in AVERAGED},
            'nrmse_seeds': of['nrmse'], 'ms_batch_size': len(y), 'validation': of['validation'],
            'per_step': [statistics.mean(step) for step in zip(*of['per_step'])]}
    own = min((entry['nrmse'] for name, entry in summary.items() if not METHODS[name].peer), default=0.)
    untrained = {'seconds': 0., 'n_params': 0, 'iters': 0}
    error = mean_nrmse(y[:, :1].expand_as(y[:, 1:]), y[:, 1:])
    summary['persistence'] = {'nrmse': error, **untrained, 'ms_per_trajectory': 0.}
    if coarse:
        cells = cells_for(own, coarse)
        summary['classical'] = {**coarse[cells], **untrained, 'cells': cells, 'ms_batch_size': 1,
                                'all': coarse}
    return summary


def peers_table(summary, budget, device):
    given = ' '.join(f'{value:g} {unit}' for unit, value in budget.items())
    print(f'{machine(device)}; {given} a method and seed; nRMSE of whole rollouts from one frame, test split')
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
        print(f'classical: solvers.py on {summary["classical"]["cells"]} cells, batch 1; the others: all '
              'test trajectories in one batch')
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


# ---------------------------------------------------------------------------------------------
# architecture x attention, number of tokens

def study_cells(keys, shape, tokens):
    """{name: (method, changes)} of one data set and seed, the most important first. keys: of train.py; shape
    (*grid, C): of the fields. Other numbers of tokens make a latent of as many numbers; tokens of fewer
    points than token_shift move on by all but one of them."""
    points = shape[0]
    d = len(shape) - 1
    heads = f'--n_head={keys["n_head"]}'
    kinds = {'standard': [heads], 'channel': [heads, f'--group_size={keys["hidden_dim"] // 4}']}
    depth = keys['depth']
    ends = max(1, depth // 4)
    depths = f'{ends},{max(1, depth - 2 * ends)},{ends}'
    cells = {}
    for arch in ('pure', 'u'):
        for attention, changes in kinds.items():
            cells[f'{arch}, {attention}'] = 'ours', [f'--arch={arch}', f'--attention={attention}',
                                                     f'--depth={depth}', f'--depths={depths}', *changes]
    n_numbers = keys['latent_dim'] * keys['latent_tokens'] ** d
    for n in tokens:
        if n < 1 or points % n:
            raise UserError(f'--tokens: {n} does not divide the {points} points of the grid')
        if n == keys['latent_tokens']:
            continue
        if n_numbers % n ** d:
            raise UserError(f'--tokens: a latent of {n_numbers} numbers has no {n} tokens an axis')
        each = points // n
        changes = [f'--latent_tokens={n}', f'--latent_dim={n_numbers // n ** d}',
                   f'--patch_size={min(keys["patch_size"], each)}', f'--halo={min(keys["halo"], each)}',
                   f'--token_shift={min(keys["token_shift"], each - 1)}']
        for arch in ('pure', 'u'):
            cells[f'{arch}, standard, {n} tokens'] = 'ours', [*cells[f'{arch}, standard'][1], *changes]
    return {**cells, 'fno': ('fno', [])}


def architectures(args, overrides, settings):
    """Train and score the cells of the study that have no result in the folder yet, one JSON file each, and
    print what is there. settings: lists of overrides, one for each data set."""
    only(args.methods, ('ours', 'fno'))
    config = args.configs[0]
    folder = args.out or f'out/study_{experiment(config)}_{spent(args.budget)}'
    os.makedirs(folder, exist_ok=True)
    tasks = [prepare(config, [*overrides, *setting]) for setting in settings]
    methods = possible(args.methods or ['ours', 'fno'], tasks[0])
    for seed, task in itertools.product(range(args.seeds), tasks):
        cells = study_cells(task.keys, task.y.shape[2:], args.tokens)
        for cell, (method, changes) in part_of(cells.items(), args.part):
            if method in methods:
                study_cell(cell, method, changes, task, args.budget, seed, folder)
    study_table(folder)


def experiment(config):
    """A config's name: 'config/ns_cpu.py' -> 'ns_cpu'."""
    return os.path.splitext(os.path.basename(config))[0]


def spent(budget):
    """A budget as a part of a folder's name: {'minutes': 5} -> '5minutes'."""
    return ''.join(f'{value:g}{unit}' for unit, value in budget.items())


def part_of(cells, part):
    """Every n-th of the cells from the i-th on, for the part 'i/n'. Raises UserError for what is none."""
    numbers = re.fullmatch(r'(\d+)/(\d+)', part)
    if not numbers or int(numbers[1]) >= int(numbers[2]):
        raise UserError(f'--part={part} is not i/n with i below n')
    return itertools.islice(cells, int(numbers[1]), None, int(numbers[2]))


# keys that differ between calls of one study
UNSTUDIED = ('out_dir', 'data_dir', 'data_path', 'device')


def study_cell(name, method, changes, task, budget, seed, folder):
    """Train and score one cell, unless its result is there."""
    keys = {key: value for key, value in task.keys.items() if key not in UNSTUDIED}
    what = json.loads(json.dumps({'keys': keys, 'budget': budget}))
    values = ', '.join(f'{key.lower()} {value:g}' for key, value in task.source.params.items())
    parts = [text.replace(', ', '-').replace(' ', '_') for text in (name, values, f'seed {seed}') if text]
    path = os.path.join(folder, '-'.join(parts))
    if os.path.exists(path + '.json'):
        with open(path + '.json') as file:
            if json.load(file)['what'] != what:
                raise UserError(f"'{path}.json' is of another study: choose another --out")
        return
    say(f'{name}, {values}')
    found = compete(method, task, budget, seed, path, changes)
    write_json(path + '.json', {'what': what, 'name': name, 'data': values, **found})


def results_in(folder):
    """The results of all finished cells of a folder, which may hold other files."""
    results = []
    for path in sorted(glob.glob(os.path.join(folder, '*.json'))):
        with open(path) as file:
            result = json.load(file)
        if 'what' in result:
            results.append(result)
    return results


def study_table(folder):
    """Markdown: a row a cell, mean nRMSE and those of its seeds. A range that meets the best row's is a
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
        print(f'| {data} | parameters | iterations | ms an iteration | nRMSE | of seeds | |')
        print('|---' * 7 + '|')
        for rank, (_, error, name, errors, runs) in enumerate(rows):
            iters = statistics.mean(run['iters'] for run in runs)
            ms = statistics.mean(1e3 * run['seconds'] / run['iters'] for run in runs)
            note = ('tie' if min(errors) <= limit else '') if rank else 'best'
            print(f'| {name} | {runs[0]["n_params"]:,} | {iters:.0f} | {ms:.0f} | {error:.4f} | '
                  f'{" ".join(f"{e:.4f}" for e in errors)} | {note} |')
        print()


# ---------------------------------------------------------------------------------------------
# zoo: this model and the FNO on many equations

def zoo(args, overrides, settings):
    """Train and score this model and the FNO on every config (by default, all for a CPU) for the same
    minutes, as far as there are no results in the folder, and print what is there."""
    only(args.methods, ('ours', 'fno'))
    folder = args.out or f'out/zoo_{spent(args.budget)}'
    os.makedirs(os.path.join(folder, 'baselines'), exist_ok=True)
    methods = args.methods or ('ours', 'fno')
    if 'fno' in methods:
        package_fno()
    configs = args.configs
    if not configs:                                                  # peers take no point clouds
        every = sorted(glob.glob(os.path.join(HERE, 'config', '*_cpu.py')))
        configs = [path for path in every if not path.endswith('_points_cpu.py')]
    overrides = [*overrides, *settings[0]]
    tasks = {}
    cells = itertools.product(range(args.seeds), configs, methods)
    for seed, config, method in part_of(cells, args.part):
        if config not in tasks:
            tasks[config] = prepare(config, overrides)
            baselines = os.path.join(folder, 'baselines', f'{experiment(config)}.json')
            if not os.path.exists(baselines):
                write_json(baselines, baselines_of(tasks[config]))
        task = tasks[config]
        if method == 'fno' and has_moving_frame(task):
            method = 'fno_frame'
        study_cell(f'{experiment(config)}, {method}', method, [], task, args.budget, seed, folder)
    summary = zoo_summary(folder)
    write_json(args.json, summary)
    zoo_table(summary)


def baselines_of(task):
    """What needs no training: {'points', 'tokens', 'persistence', 'classical'}."""
    y = task.y[..., task.scored]
    tokens = [task.keys['latent_tokens']] * (y.ndim - 3)
    return {'points': list(y.shape[2:-1]), 'fields': y.shape[-1], 'tokens': tokens,
            'latent_dim': task.keys['latent_dim'], 'steps': y.shape[1] - 1,
            'persistence': mean_nrmse(y[:, :1].expand_as(y[:, 1:]), y[:, 1:]), 'classical': classical(task)}


def zoo_summary(folder):
    """{experiment: its baselines, and of each method the results of all seeds and their mean}"""
    summary = {}
    for path in sorted(glob.glob(os.path.join(folder, 'baselines', '*.json'))):
        with open(path) as file:
            summary[experiment(path)] = json.load(file)
    for run in results_in(folder):
        name, method = run['name'].split(', ')
        peer = 'fno' if METHODS[method].peer else method
        kept = ('seed', 'nrmse', 'reencode', 'correlation_time', 'iters', 'seconds', 'n_params',
                'ms_per_trajectory')
        found = summary[name].setdefault(peer, [])
        found.append({'method': method, **{key: run[key] for key in kept if key in run}})
    return summary


def zoo_table(summary):
    """Markdown: a row an experiment. The solver's column is its coarsest grid that errs no more than this
    model, or its finest one, batch 1."""
    columns = ['config', 'points x fields', 'tokens x features', 'persistence', 'latent rollout',
               're-encoding', 'FNO', 'ratio', 'correlation time, s (FNO)', 'ms a trajectory',
               'solver at that error, ms']
    print(f'| {" | ".join(columns)} |')
    print('|---' * len(columns) + '|')
    for name, row in summary.items():
        if 'ours' not in row or 'fno' not in row:
            continue

        def mean(who, key, row=row):
            return statistics.mean(run[key] for run in row[who])

        own = mean('ours', 'nrmse')
        fno = mean('fno', 'nrmse')
        cells = [name,
                 by([*row['points'], row['fields']]),
                 by([*row['tokens'], row['latent_dim']]),
                 f'{row["persistence"]:.3g}',
                 of_seeds(own, row['ours']),
                 small(mean('ours', 'reencode')),
                 of_seeds(fno, row['fno']),
                 f'{own / fno:.2f}',
                 f'{mean("ours", "correlation_time"):.3g} ({mean("fno", "correlation_time"):.3g})',
                 f'{mean("ours", "ms_per_trajectory"):.1f}',
                 solver_at(own, row['classical'])]
        print(f'| {" | ".join(cells)} |')


def of_seeds(mean, runs):
    """A mean and what it is of: '0.0018 (0.0017 0.0019)'."""
    errors = [small(run['nrmse']) for run in runs]
    return f'{small(mean)} ({" ".join(errors)})'


def small(error):
    """Two figures at least: '0.0018', '0.00018', '0.000018'."""
    if not math.isfinite(error):
        return f'{error}'
    for decimals in (4, 5):
        if error >= 10 ** (1 - decimals):
            return f'{error:.{decimals}f}'
    return f'{error:.6f}' if error >= 5e-7 else '<0.000001'


def solver_at(error, found):
    """The built-in solver at the error of a model: '2.0 (32 cells: 0.0131)', 'none' where there is none."""
    if not found:
        return 'none'
    cells = cells_for(error, found)
    at = found[cells]
    return f'{at["ms_per_trajectory"]:.1f} ({cells} cells: {small(at["nrmse"])})'
