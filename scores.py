"""
Scores of a model on true frames: whole rollouts in field space.

A model that sees m frames starts from the true frames n-m .. n-1, n = initial_step, and predicts the frames
n .. T-1; only those are scored, and of them the fields that are not static. Every number is a mean over all
trajectories, never a mean of batch means, and is computed in float64 (metrics.py). Persistence (the last
given frame, repeated) and its spatial mean are scored beside the model.

u (N, T, *grid, C) are true frames at the trained time step, in physical units, on the CPU.
"""
import math
import time

import torch

from grids import values_at
from metrics import ensemble_metrics, field_nrmse, mean_nrmse, metrics, nrmse, rms, space_of
from model import FLOW_STEPS
from runtime.configurator import UserError, say

OF_A_STATE = ('frmse_high', 'correlation_time', 'spectral_energy_error')       # beside scores of ensembles


# ---------------------------------------------------------------------------------------------
# rollouts

def given_frames(model, u, initial_step):
    """What the model starts from: frame n-1, or the stack n-m .. n-1 of a model that sees m frames."""
    m = model.cfg.input_frames
    if m == 1:
        return u[:, initial_step - 1]
    return u[:, initial_step - m:initial_step]


def batches(n, batch_size, params):
    """Slices of n rows, with their PDE parameters {name: (B,)}."""
    for start in range(0, n, batch_size):
        rows = slice(start, min(start + batch_size, n))
        own = {name: value[rows] for name, value in params.items()}
        yield rows, own


def predict(model, u, params, initial_step, batch_size, reencode=False, points=None, n_steps=None, at=None,
            seed=0, **how):
    """Whole rollouts from the true frames u (N, T, *grid, C) before initial_step: (N, n_steps, *grid or Q, C)
    float32 on the CPU. params: {name: (N,)}. points (Q, d): where to decode, instead of on the grid of u.
    n_steps: by default T - initial_step. at (P, d): where a model with encoder='points' sees u, instead of on
    that grid. how: what advances the latents, as UPT.rollout takes it; with members (N, members, n_steps,
    ...)."""
    grid = u.shape[2:-1]
    if n_steps is None:
        n_steps = u.shape[1] - initial_step
    out = None
    last = time.perf_counter()
    for rows, own in batches(len(u), batch_size, params):
        u0 = given_frames(model, u[rows], initial_step)
        how['seed'] = seed + rows.start
        if at is None:
            p = model.rollout(u0, n_steps, points=points, params=own, reencode=reencode, **how)
        else:
            first = model.grid(*grid)[0]
            u0 = values_at(u0, at, first, model.cfg.length, model.cfg.periodic)
            p = model.rollout(u0, n_steps, model.grid(*grid), own, grid=at, reencode=reencode, **how)
            p = p.unflatten(-2, grid)
        if out is None:
            out = torch.empty(len(u), *p.shape[1:])
        out[rows] = p.cpu()
        if time.perf_counter() - last > 10:
            say(f'eval: rollouts {rows.stop}/{len(u)} {rows.stop / len(u):.0%}')
            last = time.perf_counter()
    return out


def scored(model, u):
    """The fields of u (..., C) that the model predicts: all that are not static."""
    return u[..., list(model.cfg.scored)] if model.cfg.static else u


# ---------------------------------------------------------------------------------------------
# scores

@torch.no_grad()
def evaluate(model, u, params, initial_step=None, rollout='latent', batch_size=64):
    """
    Score a model on true frames u (N, T, *grid, C) at the trained time step, params {name: (N,)}.

    initial_step: frames that are given; by default as many as the model sees. rollout: 'latent' or
    'reencode'. Returns what the JSON file says of them ('metrics', 'per_step', ...), and the predictions
    (N, T - initial_step, *grid, C). Changes neither random states nor model.training. Raises UserError for an
    impossible initial_step.
    """
    cfg = model.cfg
    n = cfg.input_frames if initial_step is None else initial_step
    check_initial_step(n, cfg.input_frames, u.shape[1])
    reencode = rollout == 'reencode'
    u0 = scored(model, u[:, n - 1])
    y = scored(model, u[:, n:])
    training = model.training
    model.eval()
    try:
        whole = predict(model, u, params, n, batch_size, reencode)
        p = scored(model, whole)
        scores, steps = metrics(p, y, u0, cfg.dt)
        if not u0.any():                                             # a steady equation keeps no integral
            del scores['conservation_gap']
        other = predict(model, u, params, n, batch_size, not reencode)
        other = mean_nrmse(scored(model, other), y)
        scores['recon_nrmse'] = recon_nrmse(model, u[:, n - cfg.input_frames:], batch_size)
        drift, gap = latent_rollout(model, u, params, n, batch_size)
        scores.update(latent_norm_drift=drift, latent_gap=gap)
        scores['ms_per_trajectory'] = ms_per_trajectory(model, u, params, n, batch_size, reencode=reencode)
    finally:
        model.train(training)
    result = {'metrics': scores,
              rollout: {'nrmse': scores['nrmse']},
              'latent' if reencode else 'reencode': {'nrmse': other},
              'per_step': {'nrmse': steps},
              'baselines': baselines(u0, y),
              'ms_batch_size': min(batch_size, len(u))}
    parts = by_parameter(p, y, params)
    if parts:
        result['by_parameter'] = parts
    if len(cfg.scored) > 1:
        names = [cfg.fields[field] for field in cfg.scored]
        result['by_field'] = dict(zip(names, field_nrmse(p, y)))
    return result, whole


def check_initial_step(n, input_frames, n_frames):
    if not input_frames <= n < n_frames:
        raise UserError(f'initial_step={n} must be between {input_frames} (the frames that the model sees) '
                        f'and {n_frames - 1} (there are {n_frames} frames, and one at least is predicted)')


def recon_nrmse(model, u, batch_size):
    """nrmse of D(E(y)) on the grid of u, over all of its true frames (a model that sees m frames: over all
    stacks of m, against their last frame)."""
    grid = u.shape[2:-1]
    points = model.grid(*grid)
    values = []
    for rows, _ in batches(len(u), batch_size, {}):
        for n in range(model.cfg.input_frames, u.shape[1] + 1):
            z = model.encode(given_frames(model, u[rows], n))
            v = model.decode(z, points).cpu().double()               # on the CPU first: MPS has no float64
            v = scored(model, v.unflatten(1, grid))[:, None]
            y = scored(model, u[rows, n - 1:n]).double()
            error = nrmse(v, y)
            values.append(error[rms(y) > 0])                         # a field that is 0 has no relative error
    return float(torch.cat(values).mean())


def latent_rollout(model, u, params, initial_step, batch_size):
    """What becomes of the latents z of a rollout: (rms(z_last) / rms(z_0) - 1, and the mean over the steps of
    |E(D(z)) - z| / |z|), both over all trajectories, tokens and features. The second is nan for a model that
    sees several frames, which one latent does not hold."""
    n_steps = u.shape[1] - initial_step
    squares = torch.zeros(n_steps + 1, dtype=torch.float64)
    gaps = torch.zeros(n_steps + 1, dtype=torch.float64)
    for rows, own in batches(len(u), batch_size, params):
        z = model.encode(given_frames(model, u[rows], initial_step))
        for step in range(n_steps + 1):
            if step:
                z = model.step(z, own)
            squares[step] += sum_of_squares(z.tokens)
            if model.cfg.input_frames == 1:
                gaps[step] += sum_of_squares(model.cycle(z.tokens) - z.tokens)
    if squares[0] == 0 or not squares.isfinite().all():
        return math.nan, math.nan
    drift = float((squares[-1] / squares[0]).sqrt()) - 1
    gap = (gaps / squares).sqrt()[1:].mean()
    return drift, float(gap) if model.cfg.input_frames == 1 else math.nan


def sum_of_squares(tokens):
    return float(tokens.cpu().double().square().sum())


def ms_per_trajectory(model, u, params, initial_step, batch_size, **how):
    """Wall clock of one whole decoded rollout of one batch, over its size. Call it after a rollout of the
    same shapes, which is the warm-up."""
    rows, own = next(batches(len(u), batch_size, params))
    u0 = given_frames(model, u[rows], initial_step).to(model.device)
    wait_for(model.device)
    start = time.perf_counter()
    model.rollout(u0, u.shape[1] - initial_step, params=own, **how)
    wait_for(model.device)
    return 1e3 * (time.perf_counter() - start) / len(u0)


def wait_for(device):
    """Until the device has done what it was asked for, so that a clock may be read."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    if device.type == 'mps':
        torch.mps.synchronize()


def by_parameter(p, y, params):
    """{'Nu=0.01': {'nrmse': ..}, ...} of predictions p and truth y, where there are several values of the
    parameters {name: (N,)}; else empty."""
    rows_of = {}
    for row in range(len(y)):
        values = [f'{name}={float(value[row]):g}' for name, value in params.items()]
        rows = rows_of.setdefault(', '.join(values), [])
        rows.append(row)
    if len(rows_of) < 2:
        return {}
    return {label: {'nrmse': mean_nrmse(p[rows], y[rows])} for label, rows in rows_of.items()}


def baselines(u0, y):
    """Scores of two guesses that need no model: the last given frame u0 (N, *grid, C), and its spatial
    mean."""
    last = u0[:, None].double()
    mean = last.mean(space_of(y), keepdim=True)
    return {'persistence': {'nrmse': mean_nrmse(last.expand_as(y), y)},
            'mean': {'nrmse': mean_nrmse(mean.expand_as(y), y)}}


@torch.no_grad()
def ensembles(model, u, params, initial_step, batch_size, advancers, members, flow_steps, at=None):
    """
    Rollouts by each of `advancers` (names in model.BY), of which all but the operator draw noise and make so
    many members of each trajectory: {name: {metric: number}}.

    Of the metrics of a single state, those of the first member and of the mean of all are given. at (P, d):
    as predict has it.
    """
    u0 = scored(model, u[:, initial_step - 1])
    y = scored(model, u[:, initial_step:])
    found = {}
    for by in advancers:
        n = 1 if by == 'operator' else members
        how = {'by': by, 'flow_steps': flow_steps}
        p = predict(model, u, params, initial_step, batch_size, at=at, members=n, **how)
        p = scored(model, p)
        result = {'members': n, 'flow_steps': flow_steps or FLOW_STEPS.get(by), **ensemble_metrics(p, y)}
        for what, one in (('member', p[:, 0]), ('mean', p.mean(1))):
            values, _ = metrics(one, y, u0, model.cfg.dt)
            for name in OF_A_STATE:
                result[f'{name}_{what}'] = values[name]
        result['ms_per_trajectory'] = ms_per_trajectory(model, u, params, initial_step, batch_size, **how)
        found[by] = result
    return found
