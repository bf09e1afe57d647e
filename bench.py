"""
Speed, and accuracy for the same minutes, measured.

    python bench.py peers --minutes 5                                    # this model and its peers side by side
    python bench.py peers --minutes 5 --nu .001 --seeds 2 --methods ours fno --json peers.json
    python bench.py study --minutes 2 --seeds 2                          # architecture x attention, numbers of tokens
    python bench.py speed                                                # every config
    python bench.py speed config/burgers_cpu.py --modes eager compiled bf16 --json speed.json
    python bench.py speed config/burgers_cpu.py --against ../old         # the code of another worktree, in turns

peers: every method trains for --minutes on the same data and device (compilation counts, making data does not), one
after another, seed by seed, and is scored on the test split: whole rollouts from one frame, field space. fno comes from
the package neuraloperator (pip install -r requirements-peers.txt). Prints a table; --json and --plot write files. The
own models train by Muon, in bfloat16 and compiled where train.py does that (on CUDA); the peers by AdamW, eager, in
TF32 where there is any. Validation counts in the time of the own models, not in that of the peers.

study: pure or U-shaped x standard or channel-separated attention at the config's number of tokens, then other numbers
of tokens, then the FNO, for every viscosity and seed. Every finished cell is a JSON file in --out and is not run again;
a stopped one goes on. Ends with the table of what is there.

speed: for each config and mode (eager, compiled, bf16, bf16_compiled; by default all on CUDA, eager elsewhere), each in
a process of its own: milliseconds an iteration and samples a second of what train.py does in one (no accumulation),
model FLOPs utilisation, the share of encoder, operator, decoder, losses and optimiser in it (each timed alone, forward
and backward, on the shapes it sees), peak memory, and milliseconds of a decoded rollout per trajectory at batch 1 and
at a large batch. With --against, iterations of train.py as it is run, here and in another worktree, in turns. Times are
medians; compare ratios within one run, since machines drift. --key=value overrides config keys as in train.py.
"""
import argparse
import contextlib
import copy
import csv
import glob
import io
import json
import math
import os
import re
import resource
import runpy
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import data
import losses
from checkpoint import whole_file
from configurator import UserError, one_line_errors, say
from eval import mean_nrmse, nrmse
from model import load, resample
from solvers import burgers

HERE = os.path.dirname(os.path.abspath(__file__))


def write_json(path, content):
    """Complete or not at all; nothing where no path is given."""
    if path:
        with whole_file(path) as file:
            json.dump(content, file, indent=1)


def median_ms(run, device, repeats):
    """Median wall-clock of run() in milliseconds, after three calls that are not counted."""
    wait = (lambda: None) if device.type == 'cpu' else torch.accelerator.synchronize

    def timed():
        wait()
        start = time.perf_counter()
        run()
        wait()
        return 1e3 * (time.perf_counter() - start)
    for _ in range(3):
        timed()
    return statistics.median(timed() for _ in range(repeats))


# ---------------------------------------------------------------------------------------------
# peers: networks that map a field (B, C, X) to the next one, trained as this project's model is

class Residual(nn.Module):
    """u -> u + net(u), its mean taken off: what is conserved stays so, as with this project's `conserve`."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, u):
        change = self.net(u)
        return u + change - change.mean(-1, keepdim=True)


def fno(points):
    """Fourier neural operator (arXiv 2010.08895) of the package neuraloperator: three sixteenths of the wave numbers of
    the grid (0 to 48 on 512 points, which it counts as 96 modes), 48 wide, 4 layers, no coordinates as input, since
    they would break the translation symmetry."""
    try:
        from neuralop.models import FNO
    except ImportError as error:
        raise UserError(f'the FNO comes from the package neuraloperator ({error}): pip install -r '
                        'requirements-peers.txt, or leave it out with --methods') from error
    return Residual(FNO(n_modes=(3 * points // 16,), in_channels=1, out_channels=1, hidden_channels=48, n_layers=4,
                        positional_embedding=None))


class UNet(nn.Module):
    """Convolutional U-Net in 1D: circular padding, group norm, GELU, four levels, skips by concatenation."""

    def __init__(self, width=48, factors=(1, 2, 3, 4)):
        super().__init__()
        widths = [width * f for f in factors]
        self.down = nn.ModuleList([self.pair(a, b) for a, b in zip([1, *widths], widths)])
        self.up = nn.ModuleList([self.pair(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1])])
        self.head = nn.Conv1d(width, 1, 1)
        nn.init.zeros_(self.head.weight)

    @staticmethod
    def pair(n_in, n_out):
        layers = []
        for n in (n_in, n_out):
            layers += [nn.Conv1d(n, n_out, 3, padding=1, padding_mode='circular'), nn.GroupNorm(8, n_out), nn.GELU()]
        return nn.Sequential(*layers)

    def forward(self, u):
        skips = []
        for i, block in enumerate(self.down):
            u = block(F.avg_pool1d(u, 2) if i else u)
            skips.append(u)
        for block, skip in zip(self.up, skips[-2::-1]):
            u = block(torch.cat([F.interpolate(u, scale_factor=2), skip], 1))
        return self.head(u)


# name: network for so many points, peak learning rate of AdamW, batch size on a CPU (None, and elsewhere: the config's),
# in the moving frame? The FNO's are the best of several (dev/LOG.md)
NETWORKS = {'fno': (fno, 6e-3, 16, False), 'fno_frame': (fno, 6e-3, 16, True),
            'unet': (lambda points: Residual(UNet()), 2e-3, None, False)}
# this project's own models: changes to the config, rollout by re-encoding every step?
OWN = {'ours': ([], False), 'reencoder': (['--lambda_latent=0', '--lambda_inverse_encoding=0',
                                           '--lambda_inverse_decoding=0', '--unroll=1', '--unroll_start=1'], True)}
METHODS = [*OWN, *NETWORKS]


def roll_out(net, u0, steps, windows, frame):
    """u0 (B, X, 1) in physical units -> (B, steps, X, 1). With frame, the mean is taken off and the result moved
    back by Fourier interpolation."""
    mean = u0.mean(1, keepdim=True) if frame else torch.zeros_like(u0[:, :1])
    std = windows.std_still if frame else windows.std
    u, out = (u0 - mean).movedim(-1, 1) / std, []
    with torch.no_grad():
        for _ in range(steps):
            u = net(u)
            out.append(u.movedim(1, -1))
    out = torch.stack(out, 1) * std
    if frame:
        source = windows.sources[0]
        dt, k = source.dt * windows.time_stride / source.length[0], torch.arange(out.shape[2] // 2 + 1)
        travelled = windows.frame * mean.cpu() * dt * torch.arange(1, steps + 1)[:, None]     # (B, steps, 1)
        phase = torch.exp(-2j * math.pi * k * travelled).to(out.device)                       # (B, steps, X/2 + 1)
        out = torch.fft.irfft(torch.fft.rfft(out[..., 0]) * phase, n=out.shape[2])[..., None] + mean[:, None]
    return out


def train_peer(make, lr, batch, frame, windows, g, budget, seed):
    """Train a network for a budget {'minutes': ...} or {'iters': ...} with what this project's own model has: residual,
    conservation, relative loss with a spectral term, shift and reflection, early frames more often, EMA, warm-up and
    cosine, clipping; and what that has not: two steps in the last third, and the best of eight validations, whose time
    is not counted. By AdamW. Returns the network, iterations, [(seconds, nRMSE)]."""
    torch.manual_seed(seed)
    torch.set_float32_matmul_precision('high')
    device = g['device']
    batch = batch if batch and device.type == 'cpu' else g['batch_size']
    net = make(windows.n_points // windows.ratio).to(device)
    mean_net, best = copy.deepcopy(net).requires_grad_(False), (math.inf, None)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, betas=(.9, .99), weight_decay=0.)
    sampler, draw = data.Sampler(windows.n_windows, batch, seed), torch.Generator().manual_seed(seed)
    curve, it, done, val = [], 0, 0., windows.val.to(device)
    std = windows.std_still if frame else windows.std
    start = time.perf_counter()
    while done < 1:
        done = (it + 1) / budget['iters'] if 'iters' in budget else \
            (time.perf_counter() - start) / (60 * budget['minutes'])
        for group in optimizer.param_groups:
            group['lr'] = lr * min(1., (it + 1) / 100) * (.01 + .99 * .5 * (1 + math.cos(math.pi * min(1., done))))
        index = sampler.next()
        shift, flip = (torch.randint(0, n, (batch,), generator=draw) for n in (windows.n_points, 2))
        boost = windows.still(index, flip) if frame else torch.zeros_like(shift)
        u, _ = windows.get(index, shift, boost, flip)
        k = 1 if done < .7 else 2
        u = u[:, :1 + k, ::windows.ratio] / std                      # (B, 1 + k, X, 1)
        lift = -windows.lift(boost).float().to(device)[:, None, None, None] / std
        v, p = u[:, 0].movedim(-1, 1), []
        for _ in range(k):
            v = net(v)
            p.append(v.movedim(1, -1))
        p = torch.stack(p, 1)
        loss = losses.relative_l2(p, u[:, 1:], lift) + .05 * losses.spectral(p, u[:, 1:], lift)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.)
        optimizer.step()
        optimizer.zero_grad()
        torch._foreach_lerp_(list(mean_net.parameters()), [p.detach() for p in net.parameters()],
                             1 - min(.999, (1 + it) / (10 + it)))
        it += 1
        if done >= 1 or done * 8 >= len(curve) + 1:
            paused = time.perf_counter()
            p = roll_out(mean_net, val[:, 0], val.shape[1] - 1, windows, frame)
            curve.append((paused - start, mean_nrmse(p.cpu(), windows.val[:, 1:])))
            if curve[-1][1] < best[0]:
                best = curve[-1][1], copy.deepcopy(mean_net)
            start += time.perf_counter() - paused
    torch.set_float32_matmul_precision('highest')                    # all are scored in float32
    return best[1] or mean_net, it, curve


def run_training(code, config, folder, *args):
    """Run train.py of the folder `code` in a process of its own, into `folder`. Returns the rows of its log.csv."""
    with subprocess.Popen([sys.executable, os.path.join(code, 'train.py'), config, f'--out_dir={folder}',
                           '--patience=0', *args], stdout=subprocess.DEVNULL) as child:
        try:
            child.wait()
        except BaseException:                                        # stopped here: there too, and it saves
            child.terminate()
            raise
    if child.returncode:
        raise UserError(f"train.py in '{code}' stopped with exit code {child.returncode}")
    with open(os.path.join(folder, 'log.csv'), newline='') as file:
        return list(csv.DictReader(file))


def train_own(config, overrides, budget, seed, folder):
    """Run train.py for a budget, or go on where it was stopped. Returns the model, iterations, [(seconds, nRMSE)] of
    the validation split."""
    rows = run_training(HERE, config, folder, f'--max_minutes={budget.get("minutes", 0)}',
                        f'--max_iters={budget.get("iters", 10 ** 9)}', f'--seed={seed}', *overrides)
    return (load(os.path.join(folder, 'last.pt')), int(rows[-1]['iter']),
            [(float(r['train_seconds']), float(r['val_nrmse'])) for r in rows if r['val_nrmse']])


def classical(u, nu, dt):
    """The built-in solver on coarser and coarser grids from the same points: {cells: (nRMSE, ms a trajectory at batch
    1)}; its result is interpolated to the points of u (N, T, X, 1)."""
    out, X, t = {}, u.shape[2], [k * dt for k in range(u.shape[1])]
    for cells in (X, X // 2, X // 4, X // 8):
        u0 = u[:, 0, ::X // cells, 0]
        p = burgers(u0.double(), nu, t)[:, 1:].cpu()                 # (N, steps, cells)
        x = torch.arange(cells) / cells
        p = resample(p, x, torch.arange(X) / X, 1.)[..., None]
        ms = []
        for row in u0[:10].double():
            start = time.perf_counter()
            burgers(row[None], nu, t)
            ms.append(1e3 * (time.perf_counter() - start))
        out[cells] = mean_nrmse(p, u[:, 1:]), statistics.median(ms)
    return out


def prepare(config, overrides, folder):
    """What all methods share: the globals that train.py leaves for this config, and the test split (N, T, X, 1)."""
    g = start_training(config, [*overrides, '--max_iters=1', '--unroll_start=1', '--unroll=2'], folder)  # as train_peer
    windows = g['windows']
    if len(windows.sources) != 1 or g['input_frames'] != 1 or windows.sources[0].generation != 'new':
        raise UserError('the peers take one data file of the new generation and one input frame')
    return g, torch.from_numpy(data.read_rows(windows.sources[0], data.split_rows(windows.n_trajectories, 'test'),
                                              g['time_stride'], g['space_stride']))


def compete(method, config, overrides, budget, seed, folder, g, y):
    """Train one method with one seed and score it on the test split y."""
    windows, device, steps = g['windows'], g['device'], y.shape[1] - 1
    if method in OWN:
        changes, reencode = OWN[method]
        model, it, curve = train_own(config, [*overrides, *changes], budget, seed, folder)
        model.to(device)
        n_params = model.n_params()
        roll = lambda u0: model.rollout(u0, steps, reencode=reencode)  # noqa: E731
    else:
        make, lr, batch, frame = NETWORKS[method]
        net, it, curve = train_peer(make, lr, batch, frame, windows, g, budget, seed)
        n_params = sum(p.numel() * (1 + p.is_complex()) for p in net.parameters())
        roll = lambda u0: roll_out(net, u0, steps, windows, frame)   # noqa: E731
    u0 = y[:, 0].to(device)
    p, ms = roll(u0).cpu(), median_ms(lambda: roll(u0), device, 3) / len(y)
    found = {'seed': seed, 'nrmse': mean_nrmse(p, y[:, 1:]), 'seconds': curve[-1][0], 'iters': it,
             'n_params': n_params, 'ms_per_trajectory': ms, 'validation': curve,
             'per_step': nrmse(p.double(), y[:, 1:].double()).mean((0, 2)).tolist()}
    say(f'{method}, seed {seed}: {found["nrmse"]:.4f} in {found["seconds"]:.0f} s, {it} iterations')
    return found


def peers(config, overrides, minutes, seeds, methods, folder, json_path=None):
    """Train and score all methods; see the top of the file. Returns ({method: entry}, device). What there is so far is
    written to json_path after every run."""
    g, y = prepare(config, overrides, folder)
    for method in set(methods) & set(NETWORKS):
        NETWORKS[method][0](y.shape[2])                              # is its package there?
    source, runs = g['windows'].sources[0], {m: [] for m in methods}
    coarse = classical(y, source.params['Nu'], source.dt * g['time_stride'])
    for seed in range(seeds):
        for method in methods:
            runs[method].append(compete(method, config, overrides, {'minutes': minutes}, seed,
                                        os.path.join(folder, f'{method}{seed}'), g, y))
            found = peers_summary({m: r for m, r in runs.items() if r}, y, coarse)
            write_json(json_path, found)
    return found, g['environment']['device']


def peers_summary(runs, y, coarse):
    """{method: entry}: means over the seeds so far, and the baselines."""
    out = {}
    for method, found in runs.items():
        mean = lambda key: sum(r[key] for r in found) / len(found)   # noqa: E731, B023
        out[method] = {key: mean(key) for key in ('nrmse', 'seconds', 'n_params', 'iters', 'ms_per_trajectory')}
        out[method].update(nrmse_seeds=[r['nrmse'] for r in found], ms_batch_size=len(y),
                           per_step=[sum(v) / len(found) for v in zip(*(r['per_step'] for r in found))],
                           validation=[r['validation'] for r in found])
    out['persistence'] = {'nrmse': mean_nrmse(y[:, :1].expand_as(y[:, 1:]), y[:, 1:]), 'seconds': 0., 'n_params': 0,
                          'iters': 0, 'ms_per_trajectory': 0.}
    own = min((e['nrmse'] for m, e in out.items() if m in OWN), default=0.)
    fits = [n for n in coarse if coarse[n][0] <= own] or [max(coarse)]
    out['classical'] = {'nrmse': coarse[min(fits)][0], 'seconds': 0., 'n_params': 0, 'iters': 0, 'cells': min(fits),
                        'ms_per_trajectory': coarse[min(fits)][1], 'ms_batch_size': 1,
                        'all': {n: {'nrmse': e, 'ms_per_trajectory': ms} for n, (e, ms) in coarse.items()}}
    return out


def peers_table(found, minutes, device):
    print(f'{device}, {torch.get_num_threads()} threads, torch {torch.__version__}; {minutes:g} minutes a method and '
          'seed; nRMSE of whole rollouts from one frame, test split')
    print(f'{"method":<12}{"params":>10}{"iters":>8}{"seconds":>9}{"nRMSE":>9}  {"seeds":<24}'
          f'{"steps 1, 10, 20, last":<32}{"ms/trajectory":>13}')
    for method, r in found.items():
        at = r.get('per_step', [])
        at = ' '.join(f'{at[min(i, len(at) - 1)]:.4f}' for i in (0, 9, 19, len(at) - 1)) if at else ''
        print(f'{method:<12}{int(r["n_params"]):>10,}{r["iters"]:>8.0f}{r["seconds"]:>9.0f}{r["nrmse"]:>9.4f}  '
              f'{" ".join(f"{e:.4f}" for e in r.get("nrmse_seeds", [])):<24}{at:<32}{r["ms_per_trajectory"]:>13.2f}')
    print(f'classical: solvers.py on {found["classical"]["cells"]} cells, batch 1; the others: all test trajectories '
          'in one batch')
    if 'ours' in found:
        for m in NETWORKS:
            if m in found:
                print(f'nRMSE of ours / {m}: {found["ours"]["nrmse"] / found[m]["nrmse"]:.2f}')


def peers_picture(found, path):
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    figure, axes = plt.subplots(figsize=(6, 4))
    for i, (method, r) in enumerate((m, r) for m, r in found.items() if 'validation' in r):
        for curve, test in zip(r['validation'], r['nrmse_seeds']):
            seconds, error = zip(*curve)
            axes.plot(seconds, error, color=f'C{i}', label=method)
            axes.plot(seconds[-1], test, 'o', color=f'C{i}')
    handles = dict(zip(*axes.get_legend_handles_labels()[::-1]))
    axes.legend(handles.values(), handles.keys())
    axes.set(xlabel='seconds of training', ylabel='nRMSE (line: validation, dot: test)', yscale='log')
    figure.tight_layout()
    figure.savefig(path, dpi=120)


# ---------------------------------------------------------------------------------------------
# study: architecture x attention, number of tokens

def study_cells(g, tokens):
    """{name: (method, overrides)} for one viscosity and seed, the most important first. g: a config's values. Tokens of
    fewer grid points than its token_shift move on by all but one of them."""
    depth, width, points = g['depth'], g['hidden_dim'], g['cfg'].grid[0]
    ends = max(1, depth // 4)
    exact = g['latent_dim'] == points // g['latent_tokens'] + 2      # a token's points and what a moving frame adds?
    kinds = {'standard': [f'--n_head={g["n_head"]}'],
             'channel': [f'--n_head={g["n_head"]}', f'--group_size={width // 4}']}
    cells = {}
    for arch in ('pure', 'u'):
        for attention, keys in kinds.items():
            cells[f'{arch}, {attention}'] = 'ours', [f'--arch={arch}', f'--attention={attention}', f'--depth={depth}',
                                                     f'--depths={ends},{max(1, depth - 2 * ends)},{ends}', *keys]
    for n in tokens:
        if n < 1 or points % n:
            raise UserError(f'--tokens: {n} does not divide the {points} points of the grid')
        each = points // n                                           # grid points a token; the latent has room for all
        dim = each + 2 if exact else max(g['latent_dim'], each + 2)
        if n != g['latent_tokens']:
            cells[f'pure, standard, {n} tokens'] = 'ours', [
                *cells['pure, standard'][1], f'--latent_tokens={n}', f'--patch_size={min(g["patch_size"], each)}',
                f'--halo={min(g["halo"], each)}', f'--latent_dim={dim}',
                f'--token_shift={min(g["token_shift"], each - 1)}']
    return {**cells, 'fno': ('fno', [])}


def study(config, overrides, budget, seeds, nus, tokens, methods, folder, part):
    """Train and score the cells of the study that have no result in `folder` yet, one JSON file each."""
    os.makedirs(folder, exist_ok=True)
    keys = {k: v for k, v in runpy.run_path(config).items() if not k.startswith('_')}
    what = json.loads(json.dumps({'config': keys, 'overrides': overrides, 'budget': budget}))
    shared = {}
    for seed in range(seeds):
        for nu in nus:
            if nu not in shared:
                with tempfile.TemporaryDirectory() as scratch:
                    shared[nu] = prepare(config, [*overrides, f'--nu={nu}'], scratch)
            g, y = shared[nu]
            if not math.isclose(g['windows'].sources[0].params['Nu'], nu, rel_tol=1e-6):
                raise UserError(f"'{g['paths'][0]}' is not of nu {nu:g}: leave data_path out, or give its --nus")
            for i, (name, (method, changes)) in enumerate(study_cells(g, tokens).items()):
                path = os.path.join(folder, f'{name}, nu {nu:g}, seed {seed}'.replace(', ', '-').replace(' ', '_'))
                if i % part[1] != part[0] or method not in methods:
                    continue
                if os.path.exists(path + '.json'):
                    with open(path + '.json') as file:
                        if json.load(file)['what'] != what:
                            raise UserError(f"'{path}.json' is of another study: choose another --out")
                    continue
                say(f'{name}, nu {nu:g}')
                found = compete(method, config, [*overrides, f'--nu={nu}', *changes], budget, seed, path, g, y)
                write_json(path + '.json', {'what': what, 'name': name, 'nu': nu, **found})


def study_table(folder):
    """Markdown: a row a cell, mean nRMSE and the range of its seeds. A range that meets the best row's is a tie."""
    cells = {}
    for path in sorted(glob.glob(os.path.join(folder, '*.json'))):
        with open(path) as file:
            r = json.load(file)
        cells.setdefault(r['nu'], {}).setdefault(r['name'], []).append(r)
    for nu, rows in sorted(cells.items()):
        best = min(rows.values(), key=lambda runs: statistics.mean(r['nrmse'] for r in runs))
        limit = max(r['nrmse'] for r in best)
        print(f'| nu {nu:g} | parameters | iterations | ms an iteration | nRMSE | of seeds | |\n' + '|---' * 7 + '|')
        for name, runs in sorted(rows.items(), key=lambda row: statistics.mean(r['nrmse'] for r in row[1])):
            errors = [r['nrmse'] for r in runs]
            print(f'| {name} | {runs[0]["n_params"]:,} | {statistics.mean(r["iters"] for r in runs):.0f} | '
                  f'{statistics.mean(1e3 * r["seconds"] / r["iters"] for r in runs):.0f} | '
                  f'{statistics.mean(errors):.4f} | {" ".join(f"{e:.4f}" for e in errors)} | '
                  f'{"best" if runs is best else "tie" if min(errors) <= limit else ""} |')
        print()


# ---------------------------------------------------------------------------------------------
# speed

def start_training(config, overrides, folder):
    """Run train.py in this process for as long as the overrides say and return its globals."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    sys.argv = ['train.py', config, f'--out_dir={folder}/run', '--init_from=scratch', *overrides]
    with contextlib.redirect_stdout(io.StringIO()):
        g = runpy.run_path(os.path.join(HERE, 'train.py'), run_name='__main__')
    for number, handler in handlers.items():                         # train.py's wait for a loop now ended
        signal.signal(number, handler)
    return g


# name: dtype, compile
MODES = {'eager': ('float32', 'false'), 'compiled': ('float32', 'true'),
         'bf16': ('bfloat16', 'false'), 'bf16_compiled': ('bfloat16', 'true')}


def matmul_rate(device, dtype, repeats):
    """FLOP/s of a product of two large square matrices: what this device reaches at best in practice."""
    n = 8192 if device.type == 'cuda' else 2048
    a = torch.randn(n, n, device=device).to(dtype)
    return 2 * n ** 3 / (median_ms(lambda: a @ a, device, min(repeats, 10)) / 1e3)


def speed(config, mode, overrides, repeats):
    """Time one config in one mode. Runs train.py for two iterations on 40 trajectories, then times the pieces it leaves
    behind."""
    dtype, compiled = MODES[mode]
    with tempfile.TemporaryDirectory() as folder:
        g = start_training(config, ['--n_trajectories=40', '--max_iters=2', f'--data_dir={folder}', f'--dtype={dtype}',
                                    f'--compile={compiled}', *overrides], folder)
    model, windows, device, cfg, batch = (g[k] for k in ('model', 'windows', 'device', 'cfg', 'batch_size'))
    k, frames = g['unroll'], g['input_frames']
    index = torch.arange(batch) % windows.n_windows
    zero = torch.zeros(batch, dtype=torch.long)
    model.train()

    def batch_of_windows():
        u, params = windows.get(index, zero, zero, zero)
        return (u - model.mean) / model.std, params

    def iteration():                                                 # number 1, which has no inverse decoding
        u, params = batch_of_windows()
        g['operator_losses'](u, params, zero.float().to(device), 0, 1., 1)[0].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
        for o in g['optimizers']:
            o.step()
            o.zero_grad()
        torch._foreach_lerp_(list(g['ema_model'].parameters()), [p.detach() for p in model.parameters()], .001)

    def count():                                                     # FLOPs of the model, forward and backward
        net, n = copy.deepcopy(g['ema_model']).requires_grad_(True).train(), min(batch, 4)
        net.cfg.checkpointing = False                                # recomputation is not the model's work
        u, params = (a[:n] for a in batch_of_windows())
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            out = net(u[:, :, ::windows.ratio], g['query_grid'][::windows.ratio],
                      torch.full((n,), cfg.dt, device=device), params, k, g['lambda_inverse_encoding'] > 0,
                      targets=g['lambda_latent'] > 0)
            sum(v.square().sum() for v in out.values()).backward()
        return counter.get_total_flops() * batch // n

    for o in g['optimizers']:                                        # steps of size zero: weights stay sane
        o.param_groups[0]['lr'] = 0.
    flops = count()
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
    total = median_ms(iteration, device, repeats)
    memory = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == 'cuda' else \
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == 'darwin' else 1e6)
    u = torch.randn(batch, *cfg.grid, cfg.fields * frames, device=device)
    later = torch.randn(batch * k, *cfg.grid, cfg.fields * frames, device=device)
    z = torch.randn(batch, math.prod(cfg.token_grid), cfg.inner_dim, device=device)
    n_decoded = batch * (k + (g['lambda_inverse_encoding'] > 0))
    many = torch.randn(n_decoded, *z.shape[1:], device=device, requires_grad=True)
    q = g['query_grid'][::windows.ratio]
    dt, params = torch.full((batch,), cfg.dt, device=device), windows.params[:1].expand(batch, -1)
    condition = model.condition(dt, params).detach()
    z.requires_grad_(True)

    def encode():
        with g['autocast']:
            first = model.encoder(u)
            if first.requires_grad:
                first.sum().backward()
            if g['lambda_latent']:
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
    model.eval()
    for size in (1, 256 if device.type == 'cuda' else 32):
        u0 = torch.randn(size, *cfg.grid, cfg.fields, device=device) if frames == 1 else \
            torch.randn(size, frames, *cfg.grid, cfg.fields, device=device)
        with g['autocast']:
            ms = median_ms(lambda u0=u0: model.rollout(u0, 40), device, max(1, repeats // 5))
        rollout[str(size)] = ms / size
    rate = matmul_rate(device, torch.bfloat16 if g['bf16'] else torch.float32, repeats)
    return {'config': config, 'mode': mode, 'device': g['environment']['device'], 'threads': torch.get_num_threads(),
            'n_params': model.n_params(), 'batch_size': batch, 'unroll': k, 'ms_per_iteration': total,
            'samples_per_second': 1e3 * batch / total, 'flops_per_iteration': flops, 'matmul_flops_per_second': rate,
            'utilisation': flops / (total / 1e3) / rate, 'memory_gb': memory,
            'share': {name: ms / total for name, ms in parts.items()}, 'rollout_ms_per_trajectory': rollout}


def speed_table(results, repeats):
    r = results[0]
    print(f'{r["device"]}, {r["threads"]} threads, torch {torch.__version__}, medians of {repeats}; use: model FLOPs / '
          'those of a large matrix product in the same time')
    names = list(r['share'])
    large = list(r['rollout_ms_per_trajectory'])[1]
    print(f'{"config":<27}{"mode":<14}{"params":>10}{"batch":>6}{"unroll":>7}{"ms/iter":>9}{"samples/s":>10}{"use":>6}'
          f'{"GB":>7} ' + ''.join(f'{n:>11}' for n in [*names[:-1], 'rest'])
          + f'rollout ms/trajectory at batch 1, {large}'.rjust(40))
    for r in results:
        print(f'{os.path.basename(r["config"]):<27}{r["mode"]:<14}{r["n_params"]:>10,}{r["batch_size"]:>6}'
              f'{r["unroll"]:>7}{r["ms_per_iteration"]:>9.1f}{r["samples_per_second"]:>10.0f}{r["utilisation"]:>6.0%}'
              f'{r["memory_gb"]:>7.2f} ' + ''.join(f'{share:>11.0%}' for share in r['share'].values())
              + '{:>29.2f}, {:>9.3f}'.format(*r['rollout_ms_per_trajectory'].values()))


def against(config, other, overrides, rounds, iters=40):
    """Milliseconds a training iteration of this code and of the code in the folder `other`, in turns (here, there,
    there, here ...) on the same data: {'here': [...], 'there': [...]}. Each has its own config of that name and runs
    through the whole of its schedule; the first tenth of the iterations is not counted."""
    if not os.path.exists(os.path.join(other, 'train.py')):
        raise UserError(f"no train.py in '{other}'")
    found = {'here': [], 'there': []}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(2 * rounds):
            name, code = (('here', HERE), ('there', other))[(i + i // 2) % 2]
            rows = run_training(code, os.path.join(code, 'config', os.path.basename(config)), f'{folder}/{i}',
                                f'--data_dir={folder}', '--n_trajectories=100', f'--max_iters={iters}',
                                f'--log_interval={iters // 10}', '--eval_interval=1000000', '--eval_batches=1',
                                '--save_interval=1000000', *overrides)
            found[name].append(1e3 * (float(rows[-1]['train_seconds']) - float(rows[0]['train_seconds']))
                               / (int(rows[-1]['iter']) - int(rows[0]['iter'])))
    return found


if __name__ == '__main__':
    one_line_errors()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # takes a train.py that it runs along
    parser = argparse.ArgumentParser(description='Measure speed, or accuracy beside peers.', allow_abbrev=False)
    parser.add_argument('command', choices=['speed', 'peers', 'study'])
    parser.add_argument('configs', nargs='*', default=[],
                        help='config files (default: peers config/burgers_cpu.py, speed every one)')
    parser.add_argument('--repeats', type=int, default=20, help='timed calls of each piece')
    parser.add_argument('--modes', nargs='+', choices=MODES, help='speed: how to run')
    parser.add_argument('--against', help='speed: folder with other code of this project to compare with')
    parser.add_argument('--rounds', type=int, default=3, help='speed --against: runs of each')
    parser.add_argument('--json', help='file to write')
    parser.add_argument('--minutes', type=float, default=5., help='peers, study: training time of each method and seed')
    parser.add_argument('--iters', type=int, help='study: iterations of each cell, instead of --minutes')
    parser.add_argument('--nu', type=float, help='viscosity (default: that of the config)')
    parser.add_argument('--seeds', type=int, default=1, help='peers, study: number of seeds')
    parser.add_argument('--methods', nargs='+', choices=METHODS, default=METHODS,
                        help='peers, study: what to train')
    parser.add_argument('--plot', help='peers: picture to write')
    parser.add_argument('--out', help='study: folder of the results (default: out/study_CONFIG_BUDGET); finished cells '
                        'are skipped')
    parser.add_argument('--nus', type=float, nargs='+', default=[.001, .01], help='study: viscosities')
    parser.add_argument('--tokens', type=int, nargs='+', default=[32, 64, 128, 256], help='study: numbers of tokens')
    parser.add_argument('--part', default='0/1', help='study: i/n, every n-th cell from the i-th on: one process a '
                        'part, each on a device of its own')
    args, overrides = parser.parse_known_intermixed_args()
    if args.nu and args.command == 'study':
        args.nus = [args.nu]
    elif args.nu:
        overrides.append(f'--nu={args.nu}')
    wrong = [o for o in overrides if not (o.startswith('--') and '=' in o)]
    if wrong:
        raise UserError(f"'{wrong[0]}' is neither a config file nor --key=value")
    configs = args.configs or sorted(glob.glob(os.path.join(HERE, 'config', '*.py')))
    if args.command != 'speed' and not args.configs:
        configs = [os.path.join(HERE, 'config', 'burgers_cpu.py')]
    if args.command != 'speed' and (args.minutes <= 0 or args.seeds < 1 or len(configs) > 1):
        raise UserError(f'{args.command} needs a positive --minutes, --seeds of at least 1 and one config at most')
    if args.command == 'study':
        part = re.fullmatch(r'(\d+)/(\d+)', args.part)
        if not part or int(part[1]) >= int(part[2]):
            raise UserError(f"--part={args.part} is not i/n with i below n")
        budget = {'iters': args.iters} if args.iters else {'minutes': args.minutes}
        out = args.out or 'out/study_{}_{:g}{}'.format(os.path.basename(configs[0])[:-3], *budget.values(), *budget)
        study(configs[0], overrides, budget, args.seeds, args.nus, args.tokens, args.methods, out,
              (int(part[1]), int(part[2])))
        study_table(out)
        sys.exit(0)
    if args.command == 'peers':
        for path in (args.json, args.plot):
            if path and not os.path.isdir(os.path.dirname(path) or '.'):
                raise UserError(f"no folder for '{path}'")
        with tempfile.TemporaryDirectory() as folder:
            found, device = peers(configs[0], overrides, args.minutes, args.seeds, args.methods, folder, args.json)
        peers_table(found, args.minutes, device)
        if args.plot:
            peers_picture(found, args.plot)
        sys.exit(0)
    modes = args.modes or (list(MODES) if torch.cuda.is_available() and '--device=cpu' not in overrides else ['eager'])
    if args.against:
        found = {c: against(c, args.against, overrides, args.rounds) for c in configs}
        for config, ms in found.items():
            here, there = (statistics.median(ms[k]) for k in ('here', 'there'))
            print(f'{os.path.basename(config):<28} {here:.1f} ms an iteration here ({min(ms["here"]):.1f} to '
                  f'{max(ms["here"]):.1f}), {there:.1f} there ({min(ms["there"]):.1f} to {max(ms["there"]):.1f}), '
                  f'ratio {here / there:.2f}')
    elif len(configs) * len(modes) == 1:
        found = [speed(configs[0], modes[0], overrides, args.repeats)]
        speed_table(found, args.repeats)
    else:
        found = []
        for config in configs:                                       # a process each: memory is of that one alone
            for mode in modes:
                with tempfile.TemporaryDirectory() as folder:
                    path = os.path.join(folder, 'one.json')
                    done = subprocess.run([sys.executable, __file__, 'speed', config, f'--repeats={args.repeats}',
                                           '--modes', mode, f'--json={path}', *overrides], stdout=subprocess.DEVNULL)
                    if done.returncode:
                        say(f'{config}, {mode}: stopped with exit code {done.returncode}; the others go on')
                        continue
                    with open(path) as file:
                        found += json.load(file)
        if not found:
            sys.exit(1)
        speed_table(found, args.repeats)
    write_json(args.json, found)
