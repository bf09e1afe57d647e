"""
Speed, and accuracy for the same minutes, measured.

    python bench.py peers --minutes 5                             # this model and its peers side by side
    python bench.py peers --minutes 5 --nu .001 --seeds 2 --methods ours fno --json peers.json
    python bench.py study --minutes 2 --seeds 2 --nu .001 .01     # architecture x attention, number of tokens
    python bench.py zoo --minutes 5 --seeds 2                     # every config/*_cpu.py, beside the FNO
    python bench.py speed                                         # every config
    python bench.py speed config/burgers_cpu.py --modes eager compiled bf16 --json speed.json
    python bench.py speed config/burgers_cpu.py --against ../old  # the code of another worktree, in turns

peers: train.py trains every method for --minutes (or --iters) on the same data and device, one after another,
seed by seed; the best of about eight validations is scored on the test split: whole rollouts from one frame,
field space. The clock of a training counts compilation and validations, and not the making of data or the few
iterations that measure, before it, how far apart validations are to be. METHODS, in study.py, says how they
differ. fno comes from the package neuraloperator (pip install -r requirements-peers.txt). Prints a table;
--json and --plot write files. This project's models train by Muon, in bfloat16 and compiled where train.py
does that (on CUDA); the peers by AdamW, eager, in TF32 where there is any. A parameter of an equation may be
given as --nu .001.

study: pure or U-shaped x standard or channel-separated attention at the config's number of tokens, then other
numbers of tokens in latents of as many numbers, then the FNO, for every value of the parameters and every
seed. Every finished cell is a JSON file in --out and is not run again; a stopped one goes on. Ends with the
table of what is there.

zoo: this model and the FNO (in the moving frame where the equation has one) on several configs, by default
all of config/*_cpu.py but for point clouds, kept and gone on with like the cells of study; --json writes the
table's numbers.

speed: for each config and mode (eager, compiled, bf16, bf16_compiled; by default all on CUDA, eager
elsewhere), each in a process of its own: milliseconds an iteration and samples a second of what train.py does
in one (no accumulation), model FLOPs utilisation, the share of encoder, operator, decoder, losses and
optimiser in it (each timed alone, forward and backward, on the shapes it sees), peak memory, and milliseconds
of a decoded rollout per trajectory at batch 1 and at a large batch. With --against, iterations of train.py as
it is run, here and in another worktree, in turns. Times are medians; compare ratios within one run, since
machines drift. --key=value overrides config keys as in train.py.
"""
import argparse
import glob
import itertools
import json
import math
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import pdes
import study
from model import UPT
from optim import set_rate
from runtime.configurator import UserError, one_line_errors, say
from stages import OperatorStage
from study import (HERE, METHODS, PATIENCE, RARELY, machine, median_ms, ms_per_iteration, print_row,
                   run_training, start_training, write_json)


# ---------------------------------------------------------------------------------------------
# speed

# name: dtype, compile
MODES = {'eager': ('float32', 'false'), 'compiled': ('float32', 'true'),
         'bf16': ('bfloat16', 'false'), 'bf16_compiled': ('bfloat16', 'true')}


def matmul_rate(device, dtype):
    """FLOP/s of a product of two large square matrices: what this device reaches at best in practice. The
    matrices double in size while a product is expected to stay below half a second."""
    largest = 8192 if device.type == 'cuda' else 2048
    n = 256
    while True:
        a = torch.randn(n, n, device=device).to(dtype)
        ms = median_ms(lambda a=a: a @ a, device, 3)
        if n == largest or 8 * ms > 500:
            return 2 * n ** 3 / (ms / 1e3)
        n *= 2


def first_batch(t, size):
    """A batch of the first windows; in iteration 1 there is no inverse decoding."""
    index = torch.arange(size) % t.windows.n_windows
    return next(t.windows.batches(index, 1))


def count_flops(t):
    """Of an iteration: forward and backward of the stage, of a small batch times what it is smaller.
    Recomputation is not the model's work. A fresh copy is counted, since compiled parts hide what they do."""
    model = UPT(replace(t.model.cfg, checkpointing=False)).to(t.machine.device)
    stage = OperatorStage(model, t.s).train()
    size = math.gcd(t.s.batch_size, 4)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss, _ = stage(first_batch(t, size), 1.)
        loss.backward()
    return counter.get_total_flops() * t.s.batch_size // size


def time_iteration(t, repeats):
    """Milliseconds of all that train.py does in an iteration."""
    def iteration():
        batch = first_batch(t, t.s.batch_size)
        with t.machine.autocast():
            loss, _ = t.wrapped(batch, 1.)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(t.stage.parameters(), t.s.grad_clip or math.inf)
        for optimizer in t.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        t.ema.update(1)

    return median_ms(iteration, t.machine.device, repeats)


def time_parts(t, repeats):
    """{part: milliseconds an iteration}, each part alone, forward and backward, on the shapes that it
    sees."""
    device = t.machine.device
    cfg = t.model.cfg
    batch = first_batch(t, t.s.batch_size)
    steps = t.s.unroll
    condition = t.model.condition(batch.dt, batch.params).detach()
    n_decoded = steps + t.stage.wants('reconstruction', 'start')
    shape = (math.prod(cfg.token_grid), cfg.latent_dim)
    z = torch.randn(t.s.batch_size, *shape, device=device, requires_grad=True)
    latents = torch.randn(t.s.batch_size, n_decoded, *shape, device=device, requires_grad=True)

    def encode():
        with t.machine.autocast():
            tokens = t.stage.encode(batch, 0)
            if tokens.requires_grad:
                tokens.sum().backward()
            if t.stage.wants('target', 'before'):
                t.stage.encodings(batch, steps)

    def advance():
        with t.machine.autocast():
            v = z
            for _ in range(steps):
                v = t.model.operator(v, condition)
        v.square().sum().backward()

    def decode():
        with t.machine.autocast():
            fields = t.stage.decode(latents, batch)
        fields.sum().backward()

    def optimise():
        for optimizer in t.optimizers:
            optimizer.step()

    parts = {'encoder': median_ms(encode, device, repeats),
             'operator': median_ms(advance, device, repeats),
             'decoder': median_ms(decode, device, repeats)}
    for p in t.model.parameters():
        p.grad = torch.zeros_like(p)
    parts['optimiser'] = median_ms(optimise, device, repeats)
    return parts


def time_rollouts(t, repeats):
    """{batch size: milliseconds a trajectory of a decoded rollout of 40 steps}, for 1 and for as large a
    batch as is done in seconds."""
    cfg = t.model.cfg
    device = t.machine.device
    frames = (cfg.input_frames,) if cfg.input_frames > 1 else ()
    t.model.eval()

    def ms_of(size):
        u0 = torch.randn(size, *frames, *cfg.grid, cfg.n_field, device=device)
        with t.machine.autocast():
            return median_ms(lambda: t.model.rollout(u0, 40), device, max(1, repeats // 5)) / size

    one = ms_of(1)
    size = 256 if device.type == 'cuda' else 32
    while size > 2 and device.type == 'cpu' and one * size > 1e3 * PATIENCE:
        size //= 2
    return {'1': one, str(size): ms_of(size)}


def time_config(config, mode, overrides, repeats):
    """Time one config in one mode. Runs train.py for two iterations on 40 trajectories, then times the pieces
    it leaves behind."""
    dtype, compiled = MODES[mode]
    short = '--stages=operator --max_iters=2 --epochs=0 --unroll_start=0 --eval_batches=1'.split()
    with tempfile.TemporaryDirectory() as folder:
        t = start_training(config, [
            '--n_trajectories=40', f'--data_dir={folder}', *overrides, *short, f'--dtype={dtype}',
            f'--compile={compiled}'], folder)
    device = t.machine.device
    t.stage.train()
    set_rate(t.optimizers, 0.)                                       # weights stay as they are
    flops = count_flops(t)
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
    total = time_iteration(t, repeats)
    memory = t.machine.peak_memory_gb()
    if memory is None:
        unit = 1e9 if sys.platform == 'darwin' else 1e6              # bytes there, kilobytes elsewhere
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    parts = time_parts(t, repeats)
    parts['losses and the rest'] = max(0., total - sum(parts.values()))
    rate = matmul_rate(device, torch.bfloat16 if t.machine.bf16 else torch.float32)
    return {'config': config,
            'mode': mode,
            'device': t.machine.name(),
            'threads': torch.get_num_threads(),
            'n_params': t.model.n_params(),
            'batch_size': t.s.batch_size,
            'unroll': t.s.unroll,
            'ms_per_iteration': total,
            'samples_per_second': 1e3 * t.s.batch_size / total,
            'flops_per_iteration': flops,
            'matmul_flops_per_second': rate,
            'utilisation': flops / (total / 1e3) / rate,
            'memory_gb': memory,
            'share': {name: ms / total for name, ms in parts.items()},
            'rollout_ms_per_trajectory': time_rollouts(t, repeats)}


def time_all(configs, modes, overrides, repeats):
    """Every config in every mode, in a process each, since the memory is that of a process. One that fails is
    said, and the others go on."""
    found = []
    for config, mode in itertools.product(configs, modes):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, 'one.json')
            options = [f'--repeats={repeats}', f'--modes={mode}', f'--json={path}', *overrides]
            command = [sys.executable, os.path.join(HERE, 'bench.py'), 'speed', config, *options]
            done = subprocess.run(command, stdout=subprocess.DEVNULL)
            if done.returncode:
                say(f'{config}, {mode}: stopped with exit code {done.returncode}; the others go on')
                continue
            with open(path) as file:
                found += json.load(file)
    if not found:
        raise UserError('nothing could be timed')
    return found


def speed_table(results, repeats):
    print(f'{machine(results[0]["device"])}, medians of {repeats}; use: model FLOPs / those of a large '
          'matrix product in the same time')
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


def speed(args, overrides, settings):
    """Time configs, and print and write what was found: see the top of the file."""
    configs = args.configs or sorted(glob.glob(os.path.join(HERE, 'config', '*.py')))
    overrides = [*overrides, *settings[0]]
    if args.against:
        found = {config: against(config, args.against, overrides, args.rounds) for config in configs}
        against_table(found)
    else:
        has_cuda = torch.cuda.is_available() and '--device=cpu' not in overrides
        modes = args.modes or (list(MODES) if has_cuda else ['eager'])
        if len(configs) * len(modes) == 1:
            found = [time_config(configs[0], modes[0], overrides, args.repeats)]
        else:
            found = time_all(configs, modes, overrides, args.repeats)
        speed_table(found, args.repeats)
    write_json(args.json, found)


def against(config, other, overrides, rounds, iters=40):
    """Milliseconds a training iteration of this code and of the code in the folder `other`, in turns (here,
    there, there, here ...) on the same data: {'here': [...], 'there': [...]}. Each has its own config of that
    name and runs through the whole of its schedule; the first tenth of the iterations and the last are not
    counted."""
    if not os.path.exists(os.path.join(other, 'train.py')):
        raise UserError(f"no train.py in '{other}'")
    turns = [('here', HERE), ('there', other)]
    found = {'here': [], 'there': []}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(2 * rounds):
            name, code = turns[(i + i // 2) % 2]
            own = os.path.join(code, 'config', os.path.basename(config))
            rows = run_training(code, own, f'{folder}/{i}', f'--data_dir={folder}', '--n_trajectories=100',
                                '--stages=operator', '--epochs=0', '--max_minutes=0', f'--max_iters={iters}',
                                f'--log_interval={iters // 10}', *RARELY, *overrides)
            found[name].append(ms_per_iteration(rows))
    return found


def against_table(found):
    for config, ms in found.items():
        shown = []
        for name in ('here', 'there'):
            median = statistics.median(ms[name])
            shown.append(f'{median:.1f} ms an iteration {name} ({min(ms[name]):.1f} to {max(ms[name]):.1f})')
        ratio = statistics.median(ms['here']) / statistics.median(ms['there'])
        print(f'{os.path.basename(config):<28} {", ".join(shown)}, ratio {ratio:.2f}')


# ---------------------------------------------------------------------------------------------
# command line

def parse(argv):
    """-> arguments, overrides of config keys"""
    what = 'Measure speed, or accuracy beside peers.'
    parser = argparse.ArgumentParser(description=what, allow_abbrev=False)
    add = parser.add_argument
    add('command', choices=['speed', 'peers', 'study', 'zoo'])
    add('configs', nargs='*', default=[],
        help='config files (default: peers config/burgers_cpu.py, speed every one)')
    add('--repeats', type=int, default=20, help='timed calls of each piece')
    add('--modes', nargs='+', choices=MODES, help='speed: how to run')
    add('--against', help='speed: folder with other code of this project to compare with')
    add('--rounds', type=int, default=3, help='speed --against: runs of each')
    add('--json', help='file to write')
    add('--minutes', type=float, default=5., help='peers, study, zoo: training time of each method and seed')
    add('--iters', type=int, help='peers, study, zoo: iterations of each method and seed, not minutes')
    add('--seeds', type=int, default=1, help='peers, study, zoo: number of seeds')
    add('--methods', nargs='+', choices=METHODS, default=[], help='peers, study, zoo: what to train (all)')
    add('--plot', help='peers: picture to write')
    add('--out', help='study, zoo: folder of the results (default: out/study_CONFIG_BUDGET, out/zoo_BUDGET)')
    add('--tokens', type=int, nargs='+', default=[32, 64, 128, 256], help='study: numbers of tokens')
    add('--part', default='0/1',
        help='study, zoo: i/n, every n-th cell from the i-th on: one process a part, on a device of its own')
    for key in pdes.parameter_keys():
        add(f'--{key}', type=float, nargs='+', help='parameter of an equation; study takes several values')
    args, overrides = parser.parse_known_intermixed_args(argv)
    for text in overrides:
        if not (text.startswith('--') and '=' in text):
            raise UserError(f"'{text}' is neither a config file nor --key=value")
    return args, overrides


def main(argv):
    args, overrides = parse(argv)
    asked = []                                                       # a list a parameter: its values
    for key in pdes.parameter_keys():
        if getattr(args, key):
            asked.append([f'--{key}={value}' for value in getattr(args, key)])
    settings = list(itertools.product(*asked))
    if args.command != 'study' and len(settings) > 1:
        raise UserError(f'{args.command} takes one value of a parameter; study takes several')
    commands = {'peers': study.peers, 'study': study.architectures, 'zoo': study.zoo, 'speed': speed}
    study.part_of([], args.part)                                     # before minutes of work
    if args.command != 'speed':
        several = args.command != 'zoo' and len(args.configs) > 1
        if args.minutes <= 0 or args.seeds < 1 or several or args.iters is not None and args.iters < 1:
            raise UserError(f'{args.command} needs a positive --minutes or --iters, --seeds of at least 1 '
                            'and one config at most')
        if not args.configs and args.command != 'zoo':
            args.configs = [os.path.join(HERE, 'config', 'burgers_cpu.py')]
        args.budget = {'iters': args.iters} if args.iters else {'minutes': args.minutes}
    commands[args.command](args, overrides, settings)


if __name__ == '__main__':
    one_line_errors()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))      # takes its train.py along
    main(sys.argv[1:])
