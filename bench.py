"""
Speed, accuracy beside peers for the same minutes, and minutes to the accuracy of the FNO.

    python bench.py peers --minutes 5                             # this model and its peers side by side
    python bench.py peers --minutes 5 --nu .001 --seeds 2 --methods ours fno --json peers.json
    python bench.py speed                                         # every config
    python bench.py speed config/burgers_cpu.py --modes eager compiled bf16 --json speed.json
    python bench.py speed config/burgers_cpu.py --against ../old  # the code of another worktree, in turns
    python bench.py race config/ns_cpu.py                         # how soon as good as the FNO? peers/race.py
    python -m dev.study zoo --minutes 5 --seeds 2                 # ten equations beside the FNO

peers: train.py trains every method for --minutes (or --iters) on the same data and device, one after another,
seed by seed. The best of about eight validations is scored on the test split: whole rollouts from one frame,
field space. The clock of a training counts compilation. It does not count validations, the making of data
and the 25 iterations before it, from which the interval of validations follows. METHODS in peers/compare.py
says how the methods differ. This project's models train by Muon, in bfloat16 and compiled where train.py
does that (on CUDA); the peers by AdamW, eager, in float32. The FNO needs pip install -r requirements-peers.txt.

speed: for each config and mode (eager, compiled, bf16, bf16_compiled; by default all on CUDA, eager
elsewhere), in a process of its own: milliseconds per iteration of a short training by train.py; the share of
encoder, operator, decoder and optimiser in it (each timed alone, forward and backward, on the shapes of the
training); utilisation (model FLOPs / those of a large matrix product in the same time); peak memory; and
milliseconds per trajectory of a decoded rollout at batch 1 and at a large one. With --against, iterations of
train.py here and in another worktree, in turns. Compare ratios within one call, since machines drift.

--key=value sets a key of train.py; a parameter of an equation may be given as --nu .001.
"""
import argparse
import glob
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile

import torch

try:
    import resource
except ImportError:                    # Windows
    resource = None

from evaluation.speed import Training, count_flops, matmul_rate, time_parts, time_rollouts
from peers import race, report
from peers.compare import (HERE, ONLY_TIMED, environment_line, ms_per_iteration, parse, print_row, run_training,
                           write_json)
from runtime.configurator import UserError, one_line_errors, say
from runtime.paths import output_files

# name: dtype, compile
MODES = {'eager': ('float32', 'false'), 'compiled': ('float32', 'true'),
         'bf16': ('bfloat16', 'false'), 'bf16_compiled': ('bfloat16', 'true')}
ITERS = 400                            # of a timed training, at most, unless --iters is given


# ---------------------------------------------------------------------------------------------
# one config in one mode

def limits(mode, args, has_cuda):
    """How long a timed training is: as many iterations as asked for, and --seconds at most where nothing is
    compiled (compilation counts as training)."""
    minutes = 0 if MODES[mode][1] == 'true' else args.seconds / 60
    log_interval = 10 if has_cuda else 1                             # a log line waits for the device
    return [f'--operator_stage.max_iters={args.iters or ITERS}', f'--operator_stage.max_minutes={minutes}',
            f'--operator_stage.log_interval={log_interval}', '--unroll_start=0', '--stages=operator', *ONLY_TIMED]


def memory_of_children():
    """The most memory that a process took which this one has run, in GB; NaN where that is not known."""
    if resource is None:
        return math.nan
    unit = 1e9 if sys.platform == 'darwin' else 1e6                  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit


def time_config(config, mode, overrides, args, has_cuda):
    """Time one config in one mode, on 40 trajectories: a short training, then its parts."""
    dtype, compiled = MODES[mode]
    with tempfile.TemporaryDirectory() as folder:
        given = ['--n_trajectories=40', f'--data_dir={folder}', *overrides, *limits(mode, args, has_cuda)]
        rows = run_training(config, f'{folder}/run', *given, f'--dtype={dtype}', f'--compile={compiled}')
        memory = memory_of_children()
        t = Training(f'{folder}/run')
        total = ms_per_iteration(rows)
        flops = count_flops(t)
        parts = time_parts(t, args.repeats)
    parts['losses and the rest'] = max(0., total - sum(parts.values()))
    rate = matmul_rate(t.device, torch.bfloat16 if t.machine.bf16 else torch.float32)
    return {'config': config,
            'mode': mode,
            'device': t.machine.name(),
            'threads': torch.get_num_threads(),
            'n_params': t.model.n_params(),
            'batch_size': t.settings.batch_size,
            'unroll': t.settings.unroll,
            'ms_per_iteration': total,
            'samples_per_second': 1e3 * t.settings.batch_size / total,
            'flops_per_iteration': flops,
            'matmul_flops_per_second': rate,
            'utilisation': flops / (total / 1e3) / rate,
            'memory_gb': t.memory_gb or memory,                      # of the device, or of the process
            'share': {name: ms / total for name, ms in parts.items()},
            'rollout_ms_per_trajectory': time_rollouts(t, args.repeats)}


# ---------------------------------------------------------------------------------------------
# every config in every mode

def time_all(configs, modes, overrides, args):
    """Each config and mode in a process of its own, as its memory is measured; --json is written after each. Data are
    made once for all that share them. After one that fails, the others go on."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'one.json')
        for config, mode in itertools.product(configs, modes):
            options = [f'--repeats={args.repeats}', f'--seconds={args.seconds}', f'--modes={mode}',
                       f'--iters={args.iters or ITERS}', f'--json={path}', f'--data_dir={folder}', *overrides]
            command = [sys.executable, os.path.join(HERE, 'bench.py'), 'speed', config, *options]
            if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
                say(f'{config}, {mode}: failed; the others go on')
                continue
            with open(path) as file:
                found += json.load(file)
            write_json(args.json, found)
    if not found:
        raise UserError('nothing could be timed')
    return found


def speed_table(results, repeats):
    print(f'{environment_line(results[0]["device"])}, medians of {repeats}; use: model FLOPs / those of a '
          'large matrix product in the same time')
    *parts, _ = results[0]['share']
    widths = (-27, -14, 10, 6, 7, 9, 10, 6, 7, *[11] * (len(parts) + 1), 40)
    head = 'config,mode,params,batch,unroll,ms/iter,samples/s,use,GB'.split(',')
    print_row([*head, *parts, 'rest', 'rollout ms/trajectory (batch)'], widths)
    for r in results:
        numbers = [f'{r["n_params"]:,}', r['batch_size'], r['unroll'], f'{r["ms_per_iteration"]:.1f}',
                   f'{r["samples_per_second"]:.0f}', f'{r["utilisation"]:.0%}', f'{r["memory_gb"]:.2f}']
        shares = [f'{share:.0%}' for share in r['share'].values()]
        rollouts = ', '.join(f'{ms:.3f} ({size})' for size, ms in r['rollout_ms_per_trajectory'].items())
        print_row([os.path.basename(r['config']), r['mode'], *numbers, *shares, rollouts], widths)


def against(config, other, overrides, args):
    """Milliseconds an iteration of this code and of the code in the folder `other`, in turns (here, there,
    there, here ...) on the same data: {'here': [...], 'there': [...]}. Each has its own config of that name
    and runs through its whole schedule."""
    if not os.path.exists(os.path.join(other, 'train.py')):
        raise UserError(f"no train.py in '{other}'")
    turns = [('here', HERE), ('there', other)]
    iters = args.iters or 40
    short = ['--n_trajectories=100', '--stages=operator', '--max_minutes=0', f'--max_iters={iters}',
             f'--log_interval={max(1, iters // 10)}', *ONLY_TIMED]
    found = {'here': [], 'there': []}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(2 * args.rounds):
            name, code = turns[(i + i // 2) % 2]
            own = os.path.join(code, 'config', os.path.basename(config))
            rows = run_training(own, f'{folder}/{i}', f'--data_dir={folder}', *short, *overrides, code=code)
            found[name].append(ms_per_iteration(rows))
    return found


def against_table(found):
    for config, ms in found.items():
        shown = []
        for name in ('here', 'there'):
            median = statistics.median(ms[name])
            shown.append(f'{median:.1f} ms per iteration {name} ({min(ms[name]):.1f} to {max(ms[name]):.1f})')
        ratio = statistics.median(ms['here']) / statistics.median(ms['there'])
        print(f'{os.path.basename(config):<28} {", ".join(shown)}, ratio {ratio:.2f}')


def speed(args, overrides):
    """Time configs, print the table, and write --json."""
    names = sorted(glob.glob(os.path.join(HERE, 'config', '[!_]*.py')))
    configs = args.configs or names
    if len(args.settings) > 1:
        raise UserError('speed takes one value of a parameter')
    overrides = [*overrides, *args.settings[0]]
    has_cuda = torch.cuda.is_available() and '--device=cpu' not in overrides
    modes = args.modes or (list(MODES) if has_cuda else ['eager'])
    if args.against:
        found = {config: against(config, args.against, overrides, args) for config in configs}
        against_table(found)
    else:
        if len(configs) * len(modes) == 1:
            found = [time_config(configs[0], modes[0], overrides, args, has_cuda)]
        else:
            found = time_all(configs, modes, overrides, args)
        speed_table(found, args.repeats)
    write_json(args.json, found)


def main(argv):
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout, allow_abbrev=False)
    add = parser.add_argument
    add('command', choices=['speed', 'peers', 'race'])
    add('configs', nargs='*', help='config files (default: peers config/burgers_cpu.py, speed and race all)')
    add('--plot', help='peers: picture to write')
    add('--modes', nargs='+', choices=MODES, help='speed: how to run')
    add('--repeats', type=int, default=20, help='speed: timed calls of each part')
    add('--seconds', type=float, default=10., help='speed: longest timed training')
    add('--against', help='speed: folder with other code of this project to compare with')
    add('--rounds', type=int, default=3, help='speed --against: runs of each')
    args, overrides = parse(parser, argv)
    output_files({'--json': args.json, '--plot': args.plot})
    if args.command == 'peers':
        report.peers(args, overrides)
    elif args.command == 'race':
        race.race(args, overrides)
    else:
        speed(args, overrides)


if __name__ == '__main__':
    one_line_errors()
    main(sys.argv[1:])
