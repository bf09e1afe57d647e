"""
The race: how soon is this model as good as the FNO after five minutes?

    python bench.py race --seeds 3                                # the standing records
    python bench.py race config/ns_cpu.py --iters 400 --muon_lr=.03         # an attempt

docs/zoo.json has a track for each equation, docs/race.json the standing records. The rules:

- The error to reach is that of an FNO trained for five minutes of one thread, mean of its seeds, on the test split. The
  mean over three seeds must not be larger. Choose settings by the mean on the validation split, which is printed.
- Data are those of the config. Everything else may change: keys, code, architecture. The project's tests must pass.
- Seconds are those of training alone, without validations, on one thread. The record is a ratio, since machines
  differ: the seconds in which the FNO makes its iterations / those of the attempt, both timed in this run, in turns.
- An attempt is a record if its ratio is larger than that of the standing one, run on the same machine. --json writes
  what was found; the entry of a record replaces that of docs/race.json.
"""
import json
import math
import os
import statistics
import tempfile
from datetime import date

from peers.compare import (HERE, RARELY, changes_of, compete, fno_of, ms_per_iteration, prepare, print_row, read_log,
                           run_training, write_json)
from peers.networks import package_fno
from runtime import configurator
from runtime.configurator import UserError, key_of

RECORDS = os.path.join(HERE, 'docs', 'race.json')
ZOO = os.path.join(HERE, 'docs', 'zoo.json')
TRAIN = os.path.join(HERE, 'train.py')
FNO_ITERS = 60                         # of the training that times the FNO
SEEDS = 3                              # of a record


def tracks():
    """{name of a config: the standing record}"""
    with open(RECORDS) as file:
        return json.load(file)


def targets():
    """{name of a config: {'error': .., 'iters': ..}} of the FNO after five minutes, means over its seeds."""
    with open(ZOO) as file:
        zoo = json.load(file)
    return {name: {'error': statistics.mean(run['nrmse'] for run in row['fno']),
                   'iters': statistics.mean(run['iters'] for run in row['fno'])} for name, row in zoo.items()}


def training_seconds(rows):
    """Seconds of all iterations of a log. Those of the last row are not known, since a validation follows them: they
    count like those of the row before. Raises UserError for fewer than three rows."""
    if len(rows) < 3:
        raise UserError('the training was too short to be timed')
    iters = [int(row['iter']) for row in rows[-3:]]
    seconds = [float(row['train_seconds']) for row in rows[-3:]]
    rate = (seconds[1] - seconds[0]) / (iters[1] - iters[0])
    return seconds[1] + rate * (iters[2] - iters[1])


def seconds_of_fno(task, iters):
    """Seconds in which the FNO makes `iters` iterations here, from a short training with its whole schedule."""
    short = [*RARELY, f'--operator_stage.max_iters={FNO_ITERS}', f'--log_interval={FNO_ITERS // 20}']
    with tempfile.TemporaryDirectory() as folder:
        rows = run_training(task.config, folder, *task.overrides, *changes_of(fno_of(task), task), *short)
    return iters * ms_per_iteration(rows) / 1e3


def attempt(task, iters, keys, seed, fno_iters):
    """Train once, and time the FNO after it. Returns the errors on the test and validation splits and both times."""
    often = f'--log_interval={max(1, iters // 20)}'
    with tempfile.TemporaryDirectory() as folder:
        found = compete('ours', task, {'iters': iters}, seed, folder, [often, *keys], validations=1)
        seconds = training_seconds(read_log(folder))
        with open(os.path.join(folder, 'env.json')) as file:
            machine = json.load(file)
    return {'seed': seed, 'error': found['nrmse'], 'validation': found['validation'][-1][1], 'seconds': seconds,
            'fno_seconds': seconds_of_fno(task, fno_iters), 'threads': machine['threads'],
            'device': machine['device'], 'commit': machine['commit']}


def record_of(iters, keys, runs):
    """An entry of docs/race.json: the settings, and the means over the seeds."""
    mean = {key: statistics.mean(run[key] for run in runs) for key in ('error', 'validation', 'seconds', 'fno_seconds')}
    return {'iters': iters, 'keys': list(keys), **mean, 'ratio': mean['fno_seconds'] / mean['seconds'],
            'date': date.today().isoformat(), 'runs': runs}


def check(args, overrides):
    """Raise UserError for options that the race does not have, and for other data than those of the config."""
    if args.methods or args.plot or args.settings != [()]:
        raise UserError('race: --methods, --plot and parameters of an equation are none of its options')
    for text in overrides:
        key = key_of(text)
        if key in configurator.section(TRAIN, 'data') and key not in ('early_bias', 'symmetries', 'other_strides'):
            raise UserError(f'race: {text} would change the data, which are those of the config')


def race(args, overrides):
    """Run the attempts, print a row for each equation and the geometric mean, and write --json."""
    check(args, overrides)
    package_fno()
    os.environ['OMP_NUM_THREADS'] = '1'                              # of the trainings
    known = targets()
    standing = tracks()
    given = {os.path.splitext(os.path.basename(config))[0]: config for config in args.configs}
    chosen = given or {name: os.path.join(HERE, 'config', f'{name}.py') for name in standing}
    for name in chosen:
        if name not in known:
            raise UserError(f"race: '{name}' has no track; there are {', '.join(known)}")
        if name not in standing and not args.iters:
            raise UserError(f"race: '{name}' has no record yet: --iters says how long to train")
    if not chosen:
        raise UserError('race: there is no record yet; name a config, and --iters')
    if args.iters and len(chosen) != 1:
        raise UserError('race: --iters is for one config')
    print('latent rollouts, nRMSE on the test split (and the mean on the validation split)')
    widths = (-24, 7, 10, 10, 11, 2, -30, 9, 9, 18)
    print_row(['track', 'iters', 'to reach', 'reached', 'validation', '', 'seeds', 'seconds', 'FNO', 'ratio'], widths)
    found = {}
    for name, config in chosen.items():
        iters = args.iters or standing[name]['iters']
        keys = overrides if args.iters else [*standing[name]['keys'], *overrides]
        task = prepare(config, [])
        runs = [attempt(task, iters, keys, seed, known[name]['iters']) for seed in range(args.seeds)]
        row = found[name] = record_of(iters, keys, runs)
        error = known[name]['error']
        seeds = ' '.join(f'{run["error"]:.3g}' for run in runs)
        ratio = f'{row["ratio"]:.1f}' if row['error'] <= error else 'missed'
        if len(runs) >= SEEDS and row['error'] <= error and row['ratio'] > standing.get(name, {'ratio': 0.})['ratio']:
            ratio += ', a record'
        print_row([name, iters, f'{error:.4g}', f'{row["error"]:.4g}', f'{row["validation"]:.4g}', '', seeds,
                   f'{row["seconds"]:.3g}', f'{row["fno_seconds"]:.3g}', ratio], widths)
        write_json(args.json, found)
    ratios = [row['ratio'] for name, row in found.items() if row['error'] <= known[name]['error']]
    if len(ratios) == len(found) > 1:
        print(f'geometric mean of the ratios: {math.exp(statistics.mean(map(math.log, ratios))):.2f}')
