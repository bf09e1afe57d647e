"""
Evaluation: the metrics of whole rollouts in field space, as a table and as JSON.

    python eval.py --ckpt out/burgers_cpu                              # best weights, test split, latent rollout
    python eval.py --ckpt out/burgers_cpu --superres 1 2 4 8           # decoded on finer grids
    python eval.py --ckpt out/burgers_cpu --data FILE --json eval.json # all trajectories of another file
    python eval.py --ckpt out/one out/two --initial_step 10            # side by side; frames 0..9 are given

A model that sees m frames starts from the true frames n-m .. n-1, n = initial_step, and predicts the frames
n .. T-1; only those are scored. Every number is a mean over the whole split, never a mean of batch means, and is
computed in float64. Persistence (the last given frame, repeated) and its spatial mean are scored beside the model.
"""
import argparse
import json
import math
import os
import time

import torch

from checkpoint import find_checkpoint, load_checkpoint, whole_file
from configurator import UserError, one_line_errors
from data import check_overlap, open_source, read_rows, split_rows
from model import build, resample
from solvers import burgers

BANDS = {'low': (0, 4), 'mid': (4, 12), 'high': (12, None)}     # wave numbers, PDEBench's
MIN_CORRELATION = .8
MAX_SOLVED = 2 ** 15             # points on which a truth finer than the files is computed
OVERLAP_ALL, OVERLAP_SAMPLE = 2000, 500     # rows compared with the test rows: all up to .., else a sample of ..


# ---------------------------------------------------------------------------------------------
# metrics: p prediction, y truth, (N, T, *space, C) float64. Each returns values of which the metric is the mean.
# Definitions of PDEBench (arXiv 2210.07182) where it has them. <.> mean, n trajectory, t frame, c field, x point.

def space_of(u):
    """The space axes of (N, T, *space, C)."""
    return tuple(range(2, u.ndim - 1))


def rms(u):
    """sqrt <u²>_x, (N, T, C)"""
    return u.square().mean(space_of(u)).sqrt()


def ratio(a, b):
    """a / b without an epsilon; 0 / 0 is 0 (nothing to predict, and that was predicted)."""
    return torch.where(a == 0, a, a / b)


def nrmse(p, y):
    """rms_x(p - y) / rms_x(y) for each trajectory, frame and field, (N, T, C): not a ratio of norms over all."""
    return ratio(rms(p - y), rms(y))


def vrmse(p, y):
    """rms_x(p - y) / std_x(y), (N, T, C): the true spatial mean scores 1."""
    return ratio(rms(p - y), y.var(space_of(y), correction=0).sqrt())


def brmse(e):
    """Root mean square of e = p - y over the boundary, (N, T, C): the first and last point in 1D, the 4 edges in 2D
    (2 nx + 2 ny points, a corner belongs to two edges)."""
    ends = [(e.narrow(axis, 0, 1), e.narrow(axis, -1, 1)) for axis in space_of(e)]
    edges = [end.flatten(2, -2) for both in ends for end in both]    # (N, T, points of one edge, C)
    return torch.cat(edges, 2).square().mean(2).sqrt()


def energy(u):
    """Energy spectrum E(κ) = Σ_{κ <= |k| < κ+1} |û_k|², (N, T, K, C). All signed wave numbers k count, up to the
    corners in 2D, so Σ_κ E(κ) = <u²>_x."""
    power = torch.fft.fftn(u, dim=space_of(u), norm='forward').abs().square().flatten(2, -2)
    axes = [torch.fft.fftfreq(n, 1 / n).round() for n in u.shape[2:-1]]
    k = sum(a.square() for a in torch.meshgrid(*axes, indexing='ij')).sqrt().long().flatten()
    return power.new_zeros(*u.shape[:2], int(k.max()) + 1, u.shape[-1]).index_add_(2, k, power)


def frmse(e):
    """Fourier coefficients of e = p - y in the bands |k| = 0-3, 4-11, 12 and above, {name: (T, C)}.

    sqrt <|e_k|²>_n, then the mean over the k of the band; e_k is the FFT divided by the number of points (domain
    length 1, as PDEBench has it). 1D: k >= 0, one of each conjugate pair. 2D: |e_k|² summed over radial shells
    floor |k| of all signed wave numbers (PDEBench: those >= 0 only). A band that the grid does not reach is nan.
    """
    power = energy(e) if e.ndim > 4 else torch.fft.rfft(e, dim=2, norm='forward').abs().square()
    error = power.mean(0).sqrt()                                     # (T, K, C)
    return {f'frmse_{band}': error[:, low:high].mean(1) for band, (low, high) in BANDS.items()}


def spectral_energy_error(p, y):
    """Σ_k |E_p(k) - E_y(k)| / Σ_k E_y(k), (N, T, C)"""
    ep, ey = energy(p), energy(y)
    return ratio((ep - ey).abs().sum(2), ey.sum(2))


def conservation_gap(p, u0):
    """|<p_t>_x - <u_0>_x| / rms_x(u_0), (N, T, C); u0 (N, 1, *space, C) is the field the rollout starts from."""
    return ratio((p.mean(space_of(p)) - u0.mean(space_of(p))).abs(), rms(u0))


def rel_l2(p, y):
    """‖p - y‖ / ‖y‖ over time and space, (N, C)"""
    norm = lambda u: u.square().sum((1, *space_of(u))).sqrt()  # noqa: E731
    return ratio(norm(p - y), norm(y))


def correlation(p, y):
    """Pearson correlation over x, (N, T, C). A truth that is constant to float32 has none to lose: 1. A prediction
    that is constant or not finite: 0."""
    a, b = p - p.mean(space_of(p), keepdim=True), y - y.mean(space_of(y), keepdim=True)
    r = (a * b).mean(space_of(p)) / (rms(a) * rms(b))
    r = torch.where((rms(b) <= 1e-6 * rms(y)) & rms(p).isfinite(), 1., r)
    return r.nan_to_num(0., 0., 0.)


def correlation_time(r, dt):
    """Seconds from the last given frame to the first one whose correlation r (N, T, C) is below .8; the horizon
    T dt if there is none. (N, C)"""
    n_good = (r >= MIN_CORRELATION).long().cumprod(1).sum(1)         # frames before the first bad one
    return (n_good + 1).clamp_max(r.shape[1]).double() * dt


def metrics(p, y, u0, dt):
    """All metrics of predictions p against the truth y, (N, T, *space, C) in any precision, from the last given
    frame u0 (N, *space, C), frames dt seconds apart. Returns ({name: number}, nrmse of each step).

    What pools over trajectories goes frame by frame, what pools over time in blocks of trajectories: exact, and
    without float64 copies of whole arrays.
    """
    assert p.shape == y.shape and u0.shape == y[:, 0].shape, (p.shape, y.shape, u0.shape)
    u0, values, r, x = u0[:, None].double(), {}, [], space_of(y)
    for t in range(p.shape[1]):
        a, b = p[:, t:t + 1].double(), y[:, t:t + 1].double()
        e = a - b
        frame = {'nrmse': nrmse(a, b),
                 'rmse': rms(e),                                     # <rms_x>: the mean of roots, not the root of mse
                 'mse': e.square(),
                 'mae': e.abs(),
                 'max_error': e.abs().amax((0, *x)),                 # <max_{n,x}>_t: the worst point of the split
                 'crmse': e.mean(x).square().mean(0).sqrt(),         # <sqrt <(<p>_x - <y>_x)²>_n>_t: the integral
                 'brmse': brmse(e), **frmse(e), 'vrmse': vrmse(a, b),
                 'spectral_energy_error': spectral_energy_error(a, b), 'conservation_gap': conservation_gap(a, u0)}
        r.append(correlation(a, b))
        for name, value in frame.items():
            values.setdefault(name, []).append(float(value.mean()))
    result = {name: sum(v) / len(v) for name, v in values.items()}
    blocks = zip(p.split(64), y.split(64))
    result['rel_l2'] = float(torch.cat([rel_l2(a.double(), b.double()) for a, b in blocks]).mean())
    result['correlation_time'] = float(correlation_time(torch.cat(r, 1), dt).mean())
    return result, values['nrmse']


def mean_nrmse(p, y):
    """The number `nrmse` of metrics() alone."""
    return sum(float(nrmse(a.double(), b.double()).mean()) for a, b in zip(p.split(1, 1), y.split(1, 1))) / y.shape[1]


# ---------------------------------------------------------------------------------------------
# a model on true frames u (N, T, *grid, C): the trained grid and time step, physical units, on the CPU

def given_frames(model, u, initial_step):
    """What the model starts from: frame n-1, or the stack n-m .. n-1 of a model that sees m frames."""
    m = model.cfg.input_frames
    return u[:, initial_step - 1] if m == 1 else u[:, initial_step - m:initial_step]


def batches(n, batch_size, params):
    """Slices of n rows, with their PDE parameters {name: (B,)}."""
    for i in range(0, n, batch_size):
        rows = slice(i, min(i + batch_size, n))
        yield rows, {name: value[rows] for name, value in params.items()}


def predict(model, u, params, initial_step, batch_size, reencode=False, points=None):
    """Whole rollouts from the true frames before initial_step, (N, T - initial_step, *grid or Q, C) on the CPU."""
    out, last = None, time.perf_counter()
    for rows, own in batches(len(u), batch_size, params):
        u0 = given_frames(model, u[rows], initial_step)
        p = model.rollout(u0, u.shape[1] - initial_step, points=points, params=own, reencode=reencode)
        out = torch.empty(len(u), *p.shape[1:]) if out is None else out
        out[rows] = p.float().cpu()
        if time.perf_counter() - last > 10:
            print(f'eval: rollouts {rows.stop}/{len(u)} {rows.stop / len(u):.0%}', flush=True)
            last = time.perf_counter()
    return out


def recon_nrmse(model, u, batch_size):
    """nrmse of D(E(y)) on the trained grid, over all true frames (a model that sees m frames: over all stacks of
    m, against their last frame)."""
    m, values = model.cfg.input_frames, []
    for rows, _ in batches(len(u), batch_size, {}):
        for t in range(m, u.shape[1] + 1):
            v = model.decode(model.encode(given_frames(model, u[rows], t))).double().cpu()
            values.append(nrmse(v[:, None], u[rows, t - 1:t].double()).flatten())
    return float(torch.cat(values).mean())


def latent_norm_drift(model, u, params, initial_step, batch_size):
    """rms(z_last) / rms(z_0) - 1 of the latent rollout, both over all trajectories, tokens and features."""
    first, last = 0., 0.
    for rows, own in batches(len(u), batch_size, params):
        z = model.encode(given_frames(model, u[rows], initial_step))
        first += float(z[..., :model.cfg.inner_dim].cpu().double().square().sum())
        for _ in range(u.shape[1] - initial_step):
            z = model.step(z, own)
        last += float(z[..., :model.cfg.inner_dim].cpu().double().square().sum())
    return math.sqrt(last / first) - 1 if math.isfinite(last) and first else math.nan


def ms_per_trajectory(model, u, params, initial_step, batch_size, reencode):
    """Wall clock of one whole decoded rollout of one batch, over its size. Call it after a rollout of the same
    shapes, which is the warm-up."""
    rows, own = next(batches(len(u), batch_size, params))
    u0 = given_frames(model, u[rows], initial_step).to(model.device)
    wait = {'cuda': torch.cuda.synchronize, 'mps': torch.mps.synchronize}.get(model.device.type, lambda: None)
    wait()
    start = time.perf_counter()
    model.rollout(u0, u.shape[1] - initial_step, params=own, reencode=reencode)
    wait()
    return 1e3 * (time.perf_counter() - start) / len(u0)


@torch.no_grad()
def evaluate(model, u, params, initial_step=1, rollout='latent', batch_size=64):
    """Score a model on true frames u (N, T, *grid, C), params {name: (N,)}: the 'metrics', 'per_step', ... of the
    JSON file. Changes neither random states nor model.training. Raises UserError for an impossible initial_step."""
    n, m, T = initial_step, model.cfg.input_frames, u.shape[1]
    if n < m or n >= T:
        raise UserError(f'initial_step={n} must be between {m} (the frames that the model sees) and {T - 1} '
                        f'(there are {T} frames, and one at least is predicted)')
    training, reencode = model.training, rollout == 'reencode'
    u0, y = u[:, n - 1], u[:, n:]                                    # last given frame, what to predict
    model.eval()
    try:
        p = predict(model, u, params, n, batch_size, reencode)
        scores, steps = metrics(p, y, u0, model.cfg.dt)
        del p
        other = mean_nrmse(predict(model, u, params, n, batch_size, not reencode), y)
        scores['recon_nrmse'] = recon_nrmse(model, u, batch_size)
        scores['latent_norm_drift'] = latent_norm_drift(model, u, params, n, batch_size)
        scores['ms_per_trajectory'] = ms_per_trajectory(model, u, params, n, batch_size, reencode)
    finally:
        model.train(training)
    kinds = {'latent': scores['nrmse'], 'reencode': scores['nrmse'], 'latent' if reencode else 'reencode': other}
    flat = {'persistence': u0[:, None], 'mean': u0[:, None].double().mean(space_of(y), keepdim=True)}
    return {'metrics': scores, **{kind: {'nrmse': v} for kind, v in kinds.items()}, 'per_step': {'nrmse': steps},
            'baselines': {name: {'nrmse': mean_nrmse(v.expand_as(y), y)} for name, v in flat.items()},
            'ms_batch_size': min(batch_size, len(u))}


@torch.no_grad()
def superres(model, sources, rows, u, params, factors, initial_step, rollout, batch_size):
    """nrmse of rollouts from the trained grid, decoded on f times as many points and compared with the true fields
    there, as finer_truth has them: {'f': {'nrmse', 'floor'}}. The floor is what cubic interpolation of the true field
    from the trained grid scores at the same points: at small nu, frames that are values on it can do no better."""
    n, period = model.cfg.grid[0], model.cfg.length[0] if model.cfg.periodic else None
    if sources[0].shape[0] < 1024:
        print(f'eval: warning: the finest solution has {sources[0].shape[0]} cells only, a weak reference below 1024')
    truths = [finer_truth(sources, rows, model.cfg, f) for f in factors]
    points = [model.grid(f * n) for f in factors]                    # one rollout serves all factors
    p = predict(model, u, params, initial_step, batch_size, rollout == 'reencode', torch.cat(points))
    result = {}
    for f, q, fine, a in zip(factors, points, truths, p.split([len(q) for q in points], 2)):
        fine = fine[:, initial_step:]                                # (N, T, f n, C)
        v = [resample(frame.movedim(1, -1), model.grid()[:, 0], q[:, 0], period).movedim(-1, 1)
             for frame in u[:, initial_step:].unbind(1)]             # (N, n, C) -> (N, f n, C)
        result[str(f)] = {'nrmse': mean_nrmse(a, fine), 'floor': mean_nrmse(torch.stack(v, 1), fine)}
    return result


# ---------------------------------------------------------------------------------------------
# data of a checkpoint

def open_data(state, cfg, ckpt, file=None):
    """The data files of a checkpoint, or `file`, checked against the model. Returns [Source]."""
    paths, sources = [file] if file else state['data']['paths'], []
    for path in paths:
        if not file and not os.path.exists(path):
            raise UserError(f"'{ckpt}' was trained on '{path}', which is not there (seen from {os.getcwd()}): put it "
                            'back, run from the directory of the training, or evaluate another file with --data FILE')
        s = open_source(path)
        sources.append(s)
        stride = cfg.dt / s.dt
        for wrong, why in (
                (s.pde != cfg.pde or len(s.fields) != cfg.fields or not set(cfg.params) <= set(s.params),
                 f'holds {s.pde}, {len(s.fields)} field(s), parameters {list(s.params)}; the model was trained on '
                 f'{cfg.pde}, {cfg.fields} field(s), parameters {list(cfg.params)}'),
                ((s.low, s.length, s.periodic) != (tuple(cfg.low), tuple(cfg.length), cfg.periodic),
                 f'({s.generation} generation) has the domain {s.low} + {s.length}, the model {tuple(cfg.low)} + '
                 f'{tuple(cfg.length)}: take a file of the same generation'),
                (len(s.shape) != len(cfg.grid) or s.shape[0] % cfg.grid[0],
                 f'has {s.shape} cells, the trained grid {tuple(cfg.grid)} points: {s.shape[0]} / {cfg.grid[0]} = '
                 f'{s.shape[0] / cfg.grid[0]:g} is no whole stride'),
                (abs(stride - time_stride(s, cfg)) > 1e-6 * stride,
                 f'has a frame every {s.dt:g} s, the model steps {cfg.dt:g} s: {cfg.dt:g} / {s.dt:g} = {stride:g} is '
                 'no whole stride')):
            if wrong:
                raise UserError(f"'{path}' {why}")
    return sources


def time_stride(source, cfg):
    return max(1, round(cfg.dt / source.dt))


def read(sources, rows, cfg, factor=1):
    """Rows of all files, one after another, at the trained time step on `factor` times the trained grid's points,
    (N, T, *grid, C). On a periodic domain the first point of a file may lie anywhere in its cell."""
    u = [read_rows(s, rows, time_stride(s, cfg), s.shape[0] // (factor * cfg.grid[0])) for s in sources]
    return torch.cat([torch.from_numpy(a) for a in u])


def finer_truth(sources, rows, cfg, factor):
    """The true fields on `factor` times the trained grid's points, (N, T, factor n, C): those of the files where they
    have them; on more points than their cells, the built-in solver's averages over those narrower cells, from the
    files' first frames resampled by cubic interpolation (new generation only). Raises UserError for other
    points."""
    n, out = factor * cfg.grid[0], []
    for s in sources:
        if factor >= 1 and s.shape[0] % n == 0:
            out.append(read([s], rows, cfg, factor))
        elif n < s.shape[0] or n > MAX_SOLVED or s.generation != 'new':
            why = f'no more than {MAX_SOLVED} are solved for' if n > MAX_SOLVED else 'its solution has no values there'
            raise UserError(f"--superres {factor} needs {factor} x {cfg.grid[0]} = {n} points, which do not divide the "
                            f"{s.shape[0]} cells of '{s.path}': {why}")
        else:
            print(f"eval: {n} points are more than the {s.shape[0]} cells of '{s.path}': compared with solvers.py's "
                  'solution from its first frames')
            u0 = torch.from_numpy(read_rows(s, rows, s.n_frames)[:, 0, :, 0])  # (N, cells)
            x = s.x[0][0] + s.length[0] * torch.arange(n, dtype=torch.float64) / n
            u0 = resample(u0, torch.from_numpy(s.x[0]), x, s.length[0])
            t = [k * cfg.dt for k in range(-(-s.n_frames // time_stride(s, cfg)))]
            out.append(torch.cat([burgers(part, s.params['Nu'], t).float()[..., None] for part in u0.split(64)]))
    return torch.cat(out)


def check_leaks(source, n, cfg):
    """Refuse a test row whose initial condition is also a train or validation row.

    Only frame 0 is asked for, but HDF5 reads whole chunks (a trajectory each in the solver's files), so beyond
    2000 rows a sample of 500 is compared: ten runs of 50, evenly spread."""
    def first(rows):
        return rows.start, read_rows(source, rows, source.n_frames, source.shape[0] // cfg.grid[0])
    n_test = len(split_rows(n, 'test'))
    size = n - n_test if n <= OVERLAP_ALL else OVERLAP_SAMPLE // 10
    tested = first(range(min(n_test, OVERLAP_SAMPLE)))
    for i in range(n_test, n - size + 1, (n - n_test) // 10 or 1):
        check_overlap({'test': tested, 'val or train': first(range(i, i + size))})


# ---------------------------------------------------------------------------------------------
# checkpoints, table, JSON

def pick_device(name):
    """auto takes CUDA, then MPS, then the CPU, and says which."""
    has = {'cuda': torch.cuda.is_available(), 'mps': torch.backends.mps.is_available(), 'cpu': True}
    if name == 'auto':
        name = next(d for d in ('cuda', 'mps', 'cpu') if has[d])
        print(f'eval: device {name} (auto: the first available of cuda, mps, cpu)')
    if not has[name]:
        raise UserError(f'--device {name}: torch sees no such device here: use --device cpu')
    return name


def evaluate_checkpoint(path, split=None, data=None, initial_step=1, rollout='latent', factors=(), device='cpu',
                        batch_size=64):
    """Everything about one checkpoint as a dict of JSON types (None where a number is not finite)."""
    file = find_checkpoint(path)
    state = load_checkpoint(file)
    with torch.random.fork_rng(devices=[]):                          # the weights' initialisation draws numbers
        model = build(state['model_args'], state['ema'], file).to(device).eval()
    cfg, sources = model.cfg, open_data(state, model.cfg, file, data)
    split = 'all' if data else split or 'test'
    n = sources[0].n if data else state['data']['n_trajectories'] or min(s.n for s in sources)
    for s in sources:
        if s.n < n:
            raise UserError(f"'{s.path}' holds {s.n} trajectories, but '{file}' was trained with {n} of them")
        if data and any(os.path.exists(p) and os.path.samefile(p, data) for p in state['data']['paths']):
            print(f"eval: warning: '{file}' was trained on rows of '{data}': leave --data out for its test rows")
        if split == 'test':
            check_leaks(s, n, cfg)
    rows = range(n) if data else split_rows(n, split)
    print(f"eval: '{file}' on {split} rows {rows.start}..{rows.stop - 1} of {', '.join(s.path for s in sources)}",
          flush=True)
    u = read(sources, rows, cfg)
    params = {name: torch.tensor([s.params[name] for s in sources]).repeat_interleave(len(rows))
              for name in cfg.params}
    result = {'ckpt': file, 'dataset': state['config'].get('dataset', sources[0].pde), 'split': split,
              'initial_step': initial_step, 'rollout': rollout, 'n_trajectories': len(u),
              'n_params': model.n_params(), 'iter': state['iter'], 'train_seconds': state['train_seconds'],
              'peak_memory_gb': state.get('peak_memory_gb'), 'data': [s.path for s in sources],
              **evaluate(model, u, params, initial_step, rollout, batch_size)}
    if factors:
        result['superres'] = superres(model, sources, rows, u, params, sorted(set(factors)), initial_step, rollout,
                                      batch_size)
        for entry in result['superres'].values():
            entry['ratio'] = entry['nrmse'] / (result['metrics']['nrmse'] or math.nan)
    return finite(result)


def finite(value):
    """JSON has no inf and nan: None instead."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(results):
    """One aligned text: a row a property or metric, a column a checkpoint."""
    def number(get):                                                 # a metric -> its text in the column of r
        def cell(r):
            blown = [i for i, v in enumerate(r['per_step']['nrmse'], 1) if v is None]
            return f'{get(r):.5g}' if get(r) is not None else f'inf at step {blown[0]}' if blown else 'not finite'
        return cell

    rows = [('checkpoint', lambda r: r['ckpt']), ('iter', lambda r: str(r['iter'])),
            ('parameters', lambda r: f"{r['n_params']:,}"),
            ('training time', lambda r: '-' if r['train_seconds'] is None else f"{r['train_seconds'] / 60:.1f} min"),
            ('training memory', lambda r: '-' if r['peak_memory_gb'] is None else f"{r['peak_memory_gb']:.2f} GB"),
            ('data', lambda r: ', '.join(os.path.basename(p) for p in r['data'])),
            ('split', lambda r: f"{r['split']}, {r['n_trajectories']} trajectories"),
            ('rollout', lambda r: f"{r['rollout']}, {len(r['per_step']['nrmse'])} steps"),
            ('initial step', lambda r: str(r['initial_step'])), ('', lambda r: '')]
    other = 'reencode' if results[0]['rollout'] == 'latent' else 'latent'
    units = {'correlation_time': ' (s)', 'ms_per_trajectory': f" (ms, batch {results[0]['ms_batch_size']})"}
    for name in results[0]['metrics']:
        rows += [(name + units.get(name, ''), number(lambda r, name=name: r['metrics'][name]))]
        if name == 'nrmse':
            rows += [(f'  {other} rollout', number(lambda r: r[other]['nrmse'])),
                     ('  persistence', number(lambda r: r['baselines']['persistence']['nrmse'])),
                     ('  spatial mean', number(lambda r: r['baselines']['mean']['nrmse']))]
    for f in results[0].get('superres', ()):
        rows += [(f'nrmse on {f} x grid', number(lambda r, f=f: r['superres'][f]['nrmse'])),
                 ('  over nrmse', number(lambda r, f=f: r['superres'][f]['ratio'])),
                 ('  floor (interpolated truth)', number(lambda r, f=f: r['superres'][f]['floor']))]
    rows = [[label] + [cell(r) for r in results] for label, cell in rows]
    width = [max(len(row[i]) for row in rows) for i in range(len(results) + 1)]
    return '\n'.join('  '.join(c.ljust(w) for c, w in zip(row, width)).rstrip() for row in rows)


def main(argv=None):
    parser = argparse.ArgumentParser(description='Score checkpoints on whole rollouts.')
    parser.add_argument('--ckpt', nargs='+', required=True, help='run directories (best weights) or files')
    parser.add_argument('--split', choices=['test', 'val', 'train', 'all'], help='default: test; all with --data')
    parser.add_argument('--data', help='another file of the same PDE, all of its trajectories')
    parser.add_argument('--initial_step', type=int, default=1, help='frames that are given')
    parser.add_argument('--rollout', choices=['latent', 'reencode'], default='latent')
    parser.add_argument('--superres', type=int, nargs='+', default=(), help='factors of the output grid')
    parser.add_argument('--device', choices=['auto', 'cpu', 'cuda', 'mps'], default='auto')
    parser.add_argument('--batch_size', type=int, default=64, help='trajectories rolled out at a time')
    parser.add_argument('--json', help='file to write; a list for several checkpoints')
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        raise UserError(f'--batch_size {args.batch_size} must be 1 or more')
    if args.data and args.split not in (None, 'all'):
        raise UserError(f'--data evaluates all trajectories of a file: leave --split {args.split} out')
    if args.json and not os.access(os.path.dirname(args.json) or '.', os.W_OK):   # before minutes of work
        raise UserError(f"--json '{args.json}': its directory is missing or cannot be written")
    device = pick_device(args.device)
    results = [evaluate_checkpoint(path, args.split, args.data, args.initial_step, args.rollout, args.superres,
                                   device, args.batch_size) for path in args.ckpt]
    print('\n' + table(results), flush=True)
    if args.json:
        with whole_file(args.json) as out:
            json.dump(results[0] if len(results) == 1 else results, out, indent=1, allow_nan=False)
    return results


if __name__ == '__main__':
    one_line_errors()
    main()
