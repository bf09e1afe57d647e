"""
Speed, measured.

    python bench.py speed                                                # config/burgers_cpu.py
    python bench.py speed config/burgers_128_pure.py config/burgers_128_u.py --dtype=bfloat16 --batch_size=64
    python bench.py speed config/burgers_cpu.py --json speed.json

For each config: milliseconds an iteration and samples a second of what train.py does in one (without
accumulation), the share of encoder, operator, decoder, losses and optimiser in it (each timed alone, forward and
backward, on the shapes it sees), peak memory, and milliseconds of a decoded rollout per trajectory at batch 1 and at
a large batch. Times are medians; compare ratios within one run, since machines drift. --key=value overrides config
keys as in train.py.
"""
import argparse
import contextlib
import io
import json
import math
import os
import resource
import runpy
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import torch

from configurator import UserError, one_line_errors


def median_ms(run, device, repeats):
    """Median wall-clock of run() in milliseconds, after three calls that are not counted."""
    def timed():
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        run()
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        return 1e3 * (time.perf_counter() - start)
    for _ in range(3):
        timed()
    return statistics.median(timed() for _ in range(repeats))


def speed(config, overrides, repeats):
    """Time one config. Runs train.py for two iterations on 40 trajectories, then times the pieces it leaves behind."""
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = ['train.py', config, f'--out_dir={folder}/run', '--n_trajectories=40', '--max_iters=2',
                    '--init_from=scratch', f'--data_dir={folder}', *overrides]
        with contextlib.redirect_stdout(io.StringIO()):
            here = os.path.dirname(os.path.abspath(__file__))
            g = runpy.run_path(os.path.join(here, 'train.py'), run_name='__main__')
    for number in (signal.SIGINT, signal.SIGTERM):                   # train.py's handlers wait for a loop now ended
        signal.signal(number, signal.SIG_DFL)
    model, windows, device, cfg, batch = (g[k] for k in ('model', 'windows', 'device', 'cfg', 'batch_size'))
    k, frames = g['unroll'], g['input_frames']
    index = torch.arange(batch) % windows.n_windows
    zero = torch.zeros(batch, dtype=torch.long)
    model.train()

    def iteration():                                                 # number 1, which has no inverse decoding
        u, params = windows.get(index, zero, zero, zero)
        g['operator_losses']((u - windows.mean) / windows.std, params, 0, 1., 1)[0].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
        for o in g['optimizers']:
            o.step()
            o.zero_grad()
        torch._foreach_lerp_(list(g['ema_model'].parameters()), [p.detach() for p in model.parameters()], .001)

    for o in g['optimizers']:                                        # steps of size zero: weights stay sane
        o.param_groups[0]['lr'] = 0.
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
    total = median_ms(iteration, device, repeats)
    memory = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == 'cuda' else \
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    u = torch.randn(batch, *cfg.grid, cfg.fields * frames, device=device)
    later = torch.randn(batch * k, *cfg.grid, cfg.fields * frames, device=device)
    z = torch.randn(batch, math.prod(cfg.token_grid), cfg.latent_dim, device=device)
    many = torch.randn(batch * (k + 1), *z.shape[1:], device=device, requires_grad=True)
    q = g['query_grid'][::windows.ratio]
    dt, params = torch.full((batch,), cfg.dt, device=device), windows.params[:1].expand(batch, -1)
    condition = model.condition(dt, params).detach()
    z.requires_grad_(True)

    def encode():
        with g['autocast']:
            model.encoder(u).sum().backward()
            with torch.no_grad():
                model.encoder(later)

    def advance():
        with g['autocast']:
            v = z
            for _ in range(k):
                v = model.operator(v, condition)
        v.square().sum().backward()

    def decode():
        with g['autocast']:
            v = model.decoder(many, q)
        v.sum().backward()

    parts = {'encoder': median_ms(encode, device, repeats), 'operator': median_ms(advance, device, repeats),
             'decoder': median_ms(decode, device, repeats)}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    parts['optimiser'] = median_ms(lambda: [o.step() for o in g['optimizers']], device, repeats)
    parts['losses and the rest'] = max(0., total - sum(parts.values()))
    rollout = {}
    for size in (1, 256):
        u0 = torch.randn(size, *cfg.grid, cfg.fields, device=device) if frames == 1 else \
            torch.randn(size, frames, *cfg.grid, cfg.fields, device=device)
        ms = median_ms(lambda u0=u0: g['ema_model'].rollout(u0, 40), device, max(3, repeats // 5))
        rollout[str(size)] = ms / size
    return {'config': config, 'device': g['environment']['device'], 'threads': torch.get_num_threads(),
            'dtype': 'bfloat16' if g['bf16'] else 'float32', 'compile': g['use_compile'], 'n_params': model.n_params(),
            'batch_size': batch, 'unroll': k, 'ms_per_iteration': total, 'samples_per_second': 1e3 * batch / total,
            'memory_gb': memory, 'share': {name: ms / total for name, ms in parts.items()},
            'rollout_ms_per_trajectory': rollout}


if __name__ == '__main__':
    one_line_errors()
    parser = argparse.ArgumentParser(description='Measure speed.')
    parser.add_argument('command', choices=['speed'])
    parser.add_argument('configs', nargs='*', default=[], help='config files (default: config/burgers_cpu.py)')
    parser.add_argument('--repeats', type=int, default=20, help='timed calls of each piece')
    parser.add_argument('--json', help='file to write')
    args, overrides = parser.parse_known_args()
    wrong = [o for o in overrides if not (o.startswith('--') and '=' in o)]
    if wrong:
        raise UserError(f"'{wrong[0]}' is neither a config file nor --key=value")
    configs = args.configs or ['config/burgers_cpu.py']
    results = []
    for config in configs:
        if len(configs) == 1:
            results.append(speed(config, overrides, args.repeats))
            continue
        with tempfile.NamedTemporaryFile('r', suffix='.json') as file:  # a process each: memory is of one config alone
            done = subprocess.run([sys.executable, __file__, 'speed', config, f'--repeats={args.repeats}',
                                   f'--json={file.name}', *overrides], stdout=subprocess.DEVNULL)
            if done.returncode:
                sys.exit(done.returncode)
            results += json.load(file)
    r = results[0]
    print(f'{r["device"]}, {r["threads"]} threads, torch {torch.__version__}, medians of {args.repeats}')
    names = list(r['share'])
    print(f'{"config":<28}{"params":>11}{"batch":>6}{"unroll":>7}{"ms/iter":>9}{"samples/s":>10}{"GB":>6}  '
          + ''.join(f'{n:>12}' for n in [*names[:-1], 'rest']) + f'{"rollout ms/trajectory at batch 1, 256":>40}')
    for r in results:
        print(f'{os.path.basename(r["config"]):<28}{r["n_params"]:>11,}{r["batch_size"]:>6}{r["unroll"]:>7}'
              f'{r["ms_per_iteration"]:>9.1f}{r["samples_per_second"]:>10.0f}{r["memory_gb"]:>6.2f}  '
              + ''.join(f'{share:>12.0%}' for share in r['share'].values())
              + f'{r["rollout_ms_per_trajectory"]["1"]:>28.2f}, {r["rollout_ms_per_trajectory"]["256"]:>10.3f}')
    if args.json:
        with open(args.json, 'w') as file:
            json.dump(results, file, indent=1)
