"""
Trainings of the same length, compared on the test split: this model, variants of it, and its peers.

    task = prepare('config/burgers_cpu.py', ['--nu=.001'])
    found = train_and_score('ours', task, {'minutes': 5}, seed=0, folder='out/one')

Every training is a process of train.py. Its run folder (env.json, log.csv, the checkpoint) is all that is read
from it. bench.py peers compares all METHODS on one config (report.py), dev/ has larger studies.
"""
import csv
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from typing import NamedTuple

import torch

import equations
import losses
from evaluation.load import choose_rows, open_data, params_of, read
from evaluation.scores import evaluate
from evaluation.speed import median_ms
from metrics import mean_nrmse
from model import ModelConfig, load, load_state
from peers.networks import package_fno
from runtime import extensions
from runtime.checkpoint import find_checkpoint, load_checkpoint, whole_file
from runtime.configurator import UserError, flag_words, say
from runtime.device import pick

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VALIDATIONS = 8                        # validations in a training, about
MINUTES = 5.                           # of a training, unless --minutes or --iters is given
NO_LIMIT = 10 ** 9                     # iterations of a training that the clock ends


# ---------------------------------------------------------------------------------------------
# a training, a measurement, a table

def run_training(config, folder, *args, code=HERE):
    """Run train.py of the repository `code` in a process of its own, into `folder`; a run that is there goes
    on. Returns the rows of its log.csv. Raises UserError, with the error of train.py, if that fails."""
    command = [sys.executable, os.path.join(code, 'train.py'), config, *args, f'--out_dir={folder}', '--patience=0']
    run_child(command, os.path.basename(config))
    return read_log(folder)


def run_child(command, name, **options):
    """Run a program without its output. Raises UserError, with the last line of what it said, if it fails. It has a
    session of its own: Ctrl-C reaches this program alone, which then stops the other one, and waits until that has saved.
    (Two signals would end a training at once.)"""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
                          **options) as child:
        try:
            _, errors = child.communicate()
        except BaseException:
            child.terminate()
            child.wait()
            raise
    if child.returncode:
        lines = errors.strip().splitlines() or [f'exit code {child.returncode}']
        raise UserError(f'{name}: {lines[-1].removeprefix("error: ")}')


def read_log(folder):
    """The rows of log.csv, {column: text}; none if nothing was logged."""
    with open(os.path.join(folder, 'log.csv'), newline='') as file:
        return list(csv.DictReader(file))


# keys of a short training that is only timed: no validation, no checkpoint before its end
ONLY_TIMED = ['--eval_interval=1000000', '--save_interval=1000000']


def ms_per_iteration(rows):
    """Milliseconds an iteration between the first row of a log and the last. Raises UserError for a single row."""
    if len(rows) < 2:
        raise UserError('the training was too short to be timed')
    first = rows[0]
    last = rows[-1]
    seconds = float(last['train_seconds']) - float(first['train_seconds'])
    return 1e3 * seconds / (int(last['iter']) - int(first['iter']))


def usual_ms(rows):
    """Milliseconds an iteration between rows of a log, the median of all pairs: it leaves out the minutes in which
    a part is compiled."""
    times = [ms_per_iteration(pair) for pair in itertools.pairwise(rows)]
    if len(times) < 3:
        raise UserError('the training was too short to be timed')
    return statistics.median(times)


def print_row(cells, widths):
    """A row of a table; a negative width aligns to the left."""
    row = ''
    for cell, width in zip(cells, widths):
        row += f'{cell:>{width}}' if width > 0 else f'{cell:<{-width}}'
    say(row.rstrip())


def environment_line(device):
    """What a table says of the machine, device being a name."""
    return f'{device}, {torch.get_num_threads()} threads, torch {torch.__version__}'


def write_json(path, content):
    """Write a file complete or not at all; nothing where no path is given."""
    if path:
        with whole_file(path) as file:
            json.dump(content, file, indent=1)


# ---------------------------------------------------------------------------------------------
# methods

class Method(NamedTuple):
    changes: list                      # arguments of train.py beside the config
    peer: bool = False                 # a network of networks.py: its tokens are the grid points
    needs_frame: bool = False          # only for equations with a moving frame
    cpu_1d: list = []                  # further arguments on a CPU in one dimension
    cpu_2d: list = []                  # ... in two


_weights = [name for group in (losses.key_group(), extensions.key_groups()) for keys in group.values()
            for name in keys if name.startswith('lambda_')]
FIELD_LOSS = [f'--{name}=0' for name in _weights if name not in ('lambda_field', 'lambda_spectral')]
# What peers share. Data, symmetries, early_bias, spectral loss, averaging and warm-up are the config's.
PEER = [*FIELD_LOSS, *'--encoder=grid --basis=cosine --encoder_dim=0 --decoder_dim=0 --token_shift=0'.split(),
        *'--unroll=2 --unroll_start=1 --unroll_switch=.7 --optimizer=adamw --weight_decay=0'.split(),
        '--compile=false', '--dtype=float32']
# The rate of the FNO is the best of several, those of the others are near it (dev/LOG.md).
FNO = [*PEER, *'--arch=fno --hidden_dim=48 --depth=4 --learning_rate=6e-3'.split()]
UNET = [*PEER, *'--arch=unet --hidden_dim=48 --depth=4 --learning_rate=2e-3'.split()]
# Transolver: depth and rate of the paper for unsteady flow, but a narrower network.
TRANSOLVER = [*PEER, *'--arch=transolver --hidden_dim=96 --depth=8 --learning_rate=1e-3'.split()]
# PDE-Transformer: a narrower network than the paper's.
PDET = [*PEER, *'--arch=pdet --hidden_dim=64 --depth=2 --learning_rate=1e-3'.split()]
# In minutes of a CPU, narrow networks and small batches make enough iterations: the best of several (dev/LOG.md).
FNO_1D = ['--batch_size=16']
FNO_2D = ['--hidden_dim=24', '--batch_size=4']
UNET_1D = ['--hidden_dim=32', '--batch_size=16']
UNET_2D = ['--hidden_dim=16', '--batch_size=16']
TRANSOLVER_CPU = ['--hidden_dim=48', '--depth=4', '--batch_size=4']
PDET_CPU = ['--batch_size=8']
PLAIN = '--moving_frame=false'
FRAME = '--moving_frame=true'

METHODS = {
    'ours': Method([]),
    'ours_plain': Method([PLAIN, '--token_shift=0']),    # without what needs symmetries of the equation
    'fno': Method([*FNO, PLAIN], peer=True, cpu_1d=FNO_1D, cpu_2d=FNO_2D),
    'fno_frame': Method([*FNO, FRAME], peer=True, cpu_1d=FNO_1D, cpu_2d=FNO_2D, needs_frame=True),
    'unet': Method([*UNET, PLAIN], peer=True, cpu_1d=UNET_1D, cpu_2d=UNET_2D),
    'unet_frame': Method([*UNET, FRAME], peer=True, cpu_1d=UNET_1D, cpu_2d=UNET_2D, needs_frame=True),
    'transolver': Method([*TRANSOLVER, PLAIN], peer=True, cpu_1d=TRANSOLVER_CPU, cpu_2d=TRANSOLVER_CPU),
    'pdet': Method([*PDET, PLAIN], peer=True, cpu_1d=PDET_CPU, cpu_2d=PDET_CPU)}


# ---------------------------------------------------------------------------------------------
# task

class Task(NamedTuple):
    """What all methods are compared on."""
    config: str                        # file
    overrides: list                    # arguments of train.py
    keys: dict                         # of train.py, resolved, in JSON types
    sources: list                      # [Source]
    cfg: ModelConfig                   # of the config as it is
    y: torch.Tensor                    # (N, T, *grid, C): the test split; rollouts start from frame 0
    device: torch.device

    @property
    def source(self):
        return self.sources[0]

    @property
    def truth(self):
        """The frames of y with the fields that are predicted."""
        return self.y[..., list(self.cfg.predicted)]

    @property
    def has_moving_frame(self):
        entry = self.source.entry
        return bool(entry.galilean and entry.translation_invariant)


def prepare(config, overrides):
    """The Task of a config, read from the run folder of a training of no iterations. Raises UserError where
    methods cannot be compared on it."""
    quick = ['--stages=operator', '--operator_stage.max_iters=0', '--memory_gb=0', '--compile=false']
    with tempfile.TemporaryDirectory() as folder:
        run_training(config, folder, *overrides, *quick)
        path = find_checkpoint(folder)
        state = load_checkpoint(path)
        cfg = load_state(state, path).cfg
        sources = open_data(state, cfg, path)
    keys = state['config']
    own = [name for name in keys['operator_stage'] if name not in ('max_iters', 'max_minutes')]
    if own:
        raise UserError(f'operator_stage.{own[0]}: methods are compared with plain keys: set --{own[0]}')
    rows = choose_rows(state, sources, path, 'test', None)
    y = read(sources, rows, cfg, cfg.grid)[:, keys['initial_step'] - 1:]
    return Task(config, overrides, keys, sources, cfg, y, pick(keys['device'], 'compare'))


def possible(methods, task):
    """Those of `methods` that this equation can have; of all, if `methods` is empty. Raises UserError for one that was
    asked for and needs a moving frame, where there is none, and for a package that is not installed."""
    chosen = [name for name in methods or METHODS if task.has_moving_frame or not METHODS[name].needs_frame]
    left_out = [name for name in methods if name not in chosen]
    if left_out:
        raise UserError(f'--methods: this equation has no moving frame for {", ".join(left_out)}')
    if any('--arch=fno' in METHODS[name].changes for name in chosen):
        package_fno()
    return chosen


def fno_of(task):
    """The FNO for an equation: in the moving frame where there is one."""
    return 'fno_frame' if task.has_moving_frame else 'fno'


def changes_of(name, task):
    """The arguments of train.py for a method, beside config and overrides."""
    method = METHODS[name]
    changes = [*method.changes, '--stages=operator']
    if method.peer:
        changes += [f'--latent_tokens={min(task.y.shape[2:-1])}', f'--latent_dim={task.y.shape[-1]}']
        if task.source.entry.steady:                                 # there is one step
            changes += ['--unroll=1']
    if task.device.type == 'cpu':
        changes += method.cpu_2d if task.y.ndim == 5 else method.cpu_1d
    return changes


def iterations_within(minutes, task, args):
    """About how many iterations a training makes in that time: a short one is timed."""
    paths = ','.join(source.path for source in task.sources)
    short = [*ONLY_TIMED, '--operator_stage.max_iters=25', '--log_interval=5', '--n_trajectories=40',
             f'--data_path={paths}', '--unroll_start=0']
    with tempfile.TemporaryDirectory() as folder:
        rows = run_training(task.config, folder, *args, *short)
    return 6e4 * minutes / usual_ms(rows)


def train_and_score(name, task, budget, seed, folder, extra=(), validations=VALIDATIONS):
    """Train one method with one seed for a budget {'minutes': ...} or {'iters': ...}, with further arguments `extra`,
    and score the best weights of about so many validations on the test split."""
    method = METHODS[name]
    args = [*task.overrides, *changes_of(name, task), *extra, f'--seed={seed}']
    n = budget.get('iters') or iterations_within(budget['minutes'], task, args)
    args += [f'--operator_stage.max_iters={budget.get("iters", NO_LIMIT)}',
             f'--operator_stage.max_minutes={budget.get("minutes", 0)}',
             f'--eval_interval={math.ceil(n / validations)}']
    rows = run_training(task.config, folder, *args)
    with open(os.path.join(folder, 'env.json')) as file:
        machine = json.load(file)
    model = load(folder, task.device)
    u0 = task.y[:, 0].to(task.device)
    steps = task.y.shape[1] - 1
    params = params_of(task.sources, model.cfg, len(u0) // len(task.sources))
    results, _ = evaluate(model, task.y, params)
    scores = results['metrics']

    def ms_of(n):
        return median_ms(lambda: model.rollout(u0[:n], steps), task.device, 3) / n

    found = {'seed': seed,
             **{key: scores.get(key) for key in ('nrmse', 'correlation_time', 'spectral_energy_error')},
             'seconds': float(rows[-1]['train_seconds']),
             'iters': int(rows[-1]['iter']),
             'n_params': sum(w.numel() * (1 + w.is_complex()) for w in model.parameters()),
             'ms_per_trajectory': ms_of(len(u0)),
             'ms_of_one': ms_of(1),
             'validation': [(float(row['train_seconds']), float(row['val_nrmse']))
                            for row in rows if row['val_nrmse']],
             'per_step': results['per_step']['nrmse'],
             **{key: machine[key] for key in ('threads', 'device', 'commit')}}
    if not method.peer:
        found['reencode'] = results['reencode']['nrmse']
        found.update({key: scores[key] for key in ('recon_nrmse', 'latent_gap')})
    say(f'{name}, seed {seed}: {found["nrmse"]:.4f} in {found["seconds"]:.0f} s, {found["iters"]} iterations')
    return found


def best_validation(result):
    """The validation error of the weights that `train_and_score` scored: the smallest. Infinite if none is finite."""
    return min((error for _, error in result['validation'] if math.isfinite(error)), default=math.inf)


def persistence(task):
    """The nRMSE of the first frame, repeated."""
    y = task.truth
    return mean_nrmse(y[:, :1].expand_as(y[:, 1:]), y[:, 1:])


# ---------------------------------------------------------------------------------------------
# command line

def parse(parser, argv):
    """Add the options of all comparisons to a parser, and parse. Returns the arguments, and overrides of
    keys. arguments.budget is {'minutes': ..} or {'iters': ..}; arguments.settings holds a list of overrides
    for each combination of parameter values (--nu .001 .01). Raises UserError."""
    add = parser.add_argument
    add('--minutes', type=float, help=f'training time of each method and seed ({MINUTES:g})')
    add('--iters', type=int, help='iterations of each method and seed, in place of --minutes')
    add('--seeds', type=int, default=1, help='number of seeds')
    add('--methods', nargs='+', choices=METHODS, default=[], help='what to train (all)')
    add('--json', help='file to write')
    parameters = equations.parameter_keys()
    for key in parameters:
        add(f'--{key}', type=float, nargs='+', help='parameter of an equation')
    args, overrides = parser.parse_known_intermixed_args(flag_words(argv))
    for text in overrides:
        if not (text.startswith('--') and '=' in text):
            raise UserError(f"'{text}' is neither a config file nor --key=value")
    if args.minutes is not None and args.minutes <= 0:
        raise UserError(f'--minutes={args.minutes} must be positive')
    if args.seeds < 1 or args.iters is not None and args.iters < 1:
        raise UserError('--seeds and --iters must be at least 1')
    args.budget = {'iters': args.iters} if args.iters else {'minutes': args.minutes or MINUTES}
    asked = [[f'--{key}={value}' for value in getattr(args, key)] for key in parameters if getattr(args, key)]
    args.settings = list(itertools.product(*asked))
    return args, overrides
