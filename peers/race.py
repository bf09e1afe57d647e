"""
The race: how soon is this model as good as the FNO after five minutes?

    python bench.py race --seeds 3                                # the standing records
    python bench.py race config/ns_cpu.py --iters 400 --muon_lr=.03         # an attempt

docs/zoo.json has a track for each equation, docs/race.json the standing records. The rules:

1. The error to reach is that of an FNO which was trained for five minutes of one thread, mean of its seeds, on the
   validation split (its first 64 trajectories at most). The attempt's mean over three seeds on the same trajectories
   must not exceed it. The errors on the test split are printed beside it; nothing is chosen by them.
2. Weights are random at first. Data are those of the config, the device is one thread of a CPU. Everything else may
   change: keys, code, architecture. The project's tests must pass.
3. Seconds are those of the iterations, without validations. The score is a speed-up, since machines differ: the seconds
   in which the FNO makes its iterations / those of the attempt, both timed in this run, in turns. (The FNO by its
   whole schedule in FNO_MINUTES: as in its five minutes, the clock says when it unrolls two steps.) Nothing else should
   run beside it.
4. An attempt is a record if its speed-up is larger than that of the standing one on the same machine by more than
   their seeds scatter. --json writes what was found; the entry of a record replaces that of docs/race.json.

With --iters an attempt has the keys of its config and those that are named. Without, it has the iterations and keys of
the standing record, and those that are named on top.
"""
import json
import os
import statistics
import tempfile
from datetime import date

from peers.compare import (HERE, NO_LIMIT, ONLY_TIMED, best_validation, changes_of, fno_of, ms_per_iteration, prepare,
                           print_row, run_training, train_and_score, write_json)
from peers.networks import package_fno
from runtime import configurator
from runtime.configurator import UserError, key_of

RECORDS = os.path.join(HERE, 'docs', 'race.json')
ZOO = os.path.join(HERE, 'docs', 'zoo.json')
TRAIN = os.path.join(HERE, 'train.py')
SEEDS = 3                              # of a record
FNO_MINUTES = .2                       # of the training that times the FNO
FREE = ('early_bias', 'symmetries', 'other_strides')                 # keys of train.py's section data that may change
# ... and keys of other sections that may not
FIXED = ('init_from', 'device', 'stages', 'mixture', 'seed', 'n_validated', 'eval_interval')


def records():
    """{name of a config: the standing record}"""
    with open(RECORDS) as file:
        return json.load(file)


def targets():
    """{name of a config: {'validation', 'nrmse', 'iters', 'changes'}} of the FNO after five minutes: means over its
    seeds, and the arguments of train.py that it had."""
    with open(ZOO) as file:
        zoo = json.load(file)
    means = ('validation', 'nrmse', 'iters')
    return {name: {**{key: statistics.mean(run[key] for run in row['fno']) for key in means},
                   'changes': row['changes']['fno']} for name, row in zoo.items() if 'fno' in row}


def seconds_of_fno(task, iters):
    """Seconds in which the FNO makes `iters` iterations here, from a short training with its whole schedule."""
    short = [*ONLY_TIMED, f'--operator_stage.max_minutes={FNO_MINUTES}', f'--operator_stage.max_iters={NO_LIMIT}',
             '--log_interval=2']
    with tempfile.TemporaryDirectory() as folder:
        rows = run_training(task.config, folder, *task.overrides, *changes_of(fno_of(task), task), *short)
    return iters * ms_per_iteration(rows) / 1e3


def attempt(task, iters, keys, seed, fno_iters):
    """Train once, and time the FNO after it. Returns the errors on the test and validation splits and both times."""
    with tempfile.TemporaryDirectory() as folder:
        found = train_and_score('ours', task, {'iters': iters}, seed, folder, keys, validations=1)
    return {'seed': seed, 'nrmse': found['nrmse'], 'validation': best_validation(found),
            'seconds': found['seconds'], 'fno_seconds': seconds_of_fno(task, fno_iters),
            **{key: found[key] for key in ('threads', 'device', 'commit')}}


def record_of(iters, keys, runs, target):
    """An entry of docs/race.json: the settings, the means over the seeds, and whether they reach the target."""
    mean = {key: statistics.mean(run[key] for run in runs) for key in ('nrmse', 'validation', 'seconds', 'fno_seconds')}
    return {'iters': iters, 'keys': list(keys), **mean, 'speedup': mean['fno_seconds'] / mean['seconds'],
            'reached': mean['validation'] <= target['validation'], 'date': date.today().isoformat(), 'runs': runs}


def check(args, overrides):
    """Raise UserError for options that the race does not have, and for keys that its rules do not leave free."""
    if args.methods or args.plot or args.minutes or args.settings != [()]:
        raise UserError('race: --methods, --minutes, --plot and parameters of an equation are none of its options')
    fixed = [*configurator.section(TRAIN, 'data'), *FIXED]
    for text in overrides:
        key = key_of(text).split('.')[-1]                            # also of --operator_stage.KEY=VALUE
        if key in fixed and key not in FREE:
            raise UserError(f'race: {text} would change the data, the initial weights, the device or the score')


def race(args, overrides):
    """Run the attempts, print a row for each equation and the geometric mean, and write --json."""
    check(args, overrides)
    package_fno()
    os.environ['OMP_NUM_THREADS'] = '1'                              # of the trainings
    known = targets()
    standing = records()
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
    tasks = {name: prepare(config, ['--device=cpu']) for name, config in chosen.items()}
    for name, task in tasks.items():
        if known[name]['changes'] != changes_of(fno_of(task), task):
            raise UserError(f'race: the FNO of {name} had other settings in docs/zoo.json: python -m dev.study zoo '
                            'measures it again')
    print('latent rollouts, nRMSE on the validation split (and on the test split)')
    widths = (-24, 7, 10, 10, 2, -30, 10, 10, 9, 9, 9)
    print_row(['track', 'iters', 'to reach', 'reached', '', 'of seeds', 'test', 'FNO, test', 'seconds', 'FNO', 'speed-up'],
              widths)
    found = {}
    for name, task in tasks.items():
        iters = args.iters or standing[name]['iters']
        keys = overrides if args.iters else [*standing[name]['keys'], *overrides]
        runs = [attempt(task, iters, keys, seed, known[name]['iters']) for seed in range(args.seeds)]
        row = found[name] = record_of(iters, keys, runs, known[name])
        seeds = ' '.join(f'{run["validation"]:.3g}' for run in runs)
        speedup = f'{row["speedup"]:.1f}' if row['reached'] else 'missed'
        print_row([name, iters, f'{known[name]["validation"]:.4g}', f'{row["validation"]:.4g}', '', seeds,
                   f'{row["nrmse"]:.4g}', f'{known[name]["nrmse"]:.4g}', f'{row["seconds"]:.3g}',
                   f'{row["fno_seconds"]:.3g}', speedup], widths)
        write_json(args.json, found)
    if args.seeds < SEEDS:
        print(f'no record: --seeds {SEEDS} are needed')
    speedups = [row['speedup'] for row in found.values() if row['reached']]
    if len(speedups) == len(found) > 1:
        print(f'geometric mean of the speed-ups: {statistics.geometric_mean(speedups):.2f}')
