"""
Scores of a model on true frames: whole rollouts in field space.

A rollout starts from the true frame initial_step - 1 and predicts all later frames. Static fields are not
scored. Every number is a mean over all trajectories, never a mean of batch means, and is computed in float64
(metrics.py). Persistence (the last true frame, repeated) and its spatial mean are scored beside the model.

u (N, T, *grid, C) are true frames at the trained time step, in physical units, on the CPU.
"""
import contextlib
import time

import torch

from evaluation.domains import filled_outside, metrics_inside
from metrics import field_nrmse, mean_nrmse, metrics, nrmse, rms, space_of
from runtime.configurator import UserError
from runtime.inputs import values_at
from runtime.progress import Progress

COLD = 5.                              # seconds of a batch beside which a warm-up does not count


# ---------------------------------------------------------------------------------------------
# rollouts

def batches(n, batch_size, params):
    """Slices of n rows, with their PDE parameters {name: (B,)}."""
    for start in range(0, n, batch_size):
        rows = slice(start, min(start + batch_size, n))
        own = {name: value[rows] for name, value in params.items()}
        yield rows, own


def predict(model, u, params, initial_step, batch_size, reencode=False, points=None, n_steps=None,
            seen_at=None, seed=0, stepper='operator', n_members=0, progress=None, on_step=None):
    """
    Whole rollouts from the true frames u (N, T, *grid, C): (N, n_steps, *grid or Q, C) float32 on the CPU, or
    (N, n_members, n_steps, ...) with n_members.

    params: {name: (N,)}. n_steps: by default T - initial_step. points (Q, d): where to decode, instead of on
    the grid of u. seen_at (P, d) or (N, P, d): where a model with encoder='points' sees u, instead of on that grid.
    progress: counts the steps of all rows, if these are a part of more work. on_step: called with the tokens
    before and after every step.
    """
    grid = u.shape[2:-1]
    if n_steps is None:
        n_steps = u.shape[1] - initial_step
    out = None
    progress = progress or Progress('eval: rollouts', len(u) * max(1, n_members) * n_steps)
    for rows, own in batches(len(u), batch_size, params):
        u0 = u[rows, initial_step - 1]
        how = dict(params=own, reencode=reencode, stepper=stepper, n_members=n_members, outside=0.)
        how['seed'] = seed + rows.start
        with watched(model.stepper(stepper), progress, on_step):
            if seen_at is None:
                p = model.rollout(u0, n_steps, points=points, **how)
            else:
                first = model.grid(*grid)[0]
                at = seen_at if seen_at.ndim == 2 else seen_at[rows]
                u0 = values_at(u0, at, first, model.cfg.length, model.cfg.periodic)
                p = model.rollout(u0, n_steps, model.grid(*grid), grid=at, **how)
                p = p.unflatten(-2, grid)
        if out is None:
            out = torch.empty(len(u), *p.shape[1:])
        out[rows] = p.cpu()
    return out


@contextlib.contextmanager
def watched(stepper, progress, on_step=None):
    """Count the rows that a stepper module advances, and show each step to on_step(tokens before, after)."""
    def after_a_step(_, inputs, tokens):
        if on_step:
            on_step(inputs[0], tokens)
        progress.add(len(tokens))

    handle = stepper.register_forward_hook(after_a_step)
    try:
        yield
    finally:
        handle.remove()


def predicted_fields(model, u):
    """The fields of u (..., C) that the model predicts: all that are not static."""
    return u[..., list(model.cfg.predicted)] if model.cfg.static else u


def rollout_error(model, stage, trajectories, n):
    """The validation error of a stage: that of whole latent rollouts of the first n validation trajectories,
    by `stage.error`. An encoder of points sees the fields at the same random points every time. Changes no
    random state."""
    cfg = model.cfg
    initial_step = trajectories.keys.initial_step
    y = trajectories.val[:n]
    params = {name: trajectories.val_params[:len(y), i] for i, name in enumerate(cfg.params)}
    seen_at = None
    if cfg.encoder == 'points':
        first = y[:, initial_step - 1]
        seen_at = model.encoder.random_points(stage.settings.input_points, torch.Generator().manual_seed(0), first)
    n_steps = y.shape[1] - initial_step
    progress = Progress('validation: rollouts', len(y) * max(1, stage.n_members) * n_steps)
    p = predict(model, y, params, initial_step, stage.settings.batch_size, seen_at=seen_at,
                stepper=stage.stepper, n_members=stage.n_members, progress=progress)
    return stage.error(predicted_fields(model, p), predicted_fields(model, y[:, initial_step:]))


# ---------------------------------------------------------------------------------------------
# scores

@torch.no_grad()
def evaluate(model, u, params, initial_step=1, rollout='latent', batch_size=64):
    """
    Score a model on true frames u (N, T, *grid, C) at the trained time step, params {name: (N,)}.

    initial_step: true frames before a rollout. rollout: 'latent' or 'reencode'. Returns the scores as the
    JSON file has them ('metrics', 'per_step', ...), and the predictions
    (N, T - initial_step, *grid, C). Changes neither random states nor model.training. Raises UserError for an
    impossible initial_step.
    """
    cfg = model.cfg
    n = initial_step
    check_initial_step(n, u.shape[1])
    reencode = rollout == 'reencode'
    n_steps = u.shape[1] - n
    u0 = predicted_fields(model, u[:, n - 1])
    y = predicted_fields(model, u[:, n:])
    training = model.training
    model.eval()
    try:
        latents = LatentScores(model, n_steps)
        whole, seconds = rolled_out(model, u, params, n, batch_size, reencode, latents)
        p = predicted_fields(model, whole)
        if cfg.domain:
            distance = u[:, 0, ..., cfg.domain[0]]
            progress = Progress('eval: metrics', len(u))
            scores, steps = metrics_inside(p, y, u0, distance, cfg.length[0] / u.shape[2], cfg.dt, progress.add)
        else:
            scores, steps = metrics(p, y, u0, cfg.dt, Progress('eval: metrics', n_steps).add)
        if not u0.any():                                             # a steady equation keeps no integral
            del scores['conservation_gap']
        other, _ = rolled_out(model, u, params, n, batch_size, not reencode, latents)
        other = mean_nrmse(predicted_fields(model, other), y)
        scores['recon_nrmse'] = recon_nrmse(model, u[:, n - 1:], batch_size)
        scores['latent_norm_drift'], scores['latent_gap'] = latents.drift_and_gap()
        scores['ms_per_trajectory'] = 1e3 * seconds / len(u)
        if seconds < COLD * len(u) / batch_size:
            scores['ms_per_trajectory'] = ms_per_trajectory(model, u, params, n, batch_size,
                                                            reencode=reencode)
    finally:
        model.train(training)
    result = {'metrics': scores,
              rollout: {'nrmse': scores['nrmse']},
              'latent' if reencode else 'reencode': {'nrmse': other},
              'per_step': {'nrmse': steps},
              'baselines': baselines(u0, y, u[:, :1, ..., list(cfg.domain)] > 0),
              'ms_batch_size': min(batch_size, len(u))}
    parts = by_parameter(p, y, params)
    if parts:
        result['by_parameter'] = parts
    if len(cfg.predicted) > 1:
        names = [cfg.fields[field] for field in cfg.predicted]
        result['by_field'] = dict(zip(names, field_nrmse(p, y)))
    return result, whole


def rolled_out(model, u, params, initial_step, batch_size, reencode, latents):
    """Rollouts as `predict` makes them, and the seconds that they took. The latent ones are shown to
    `latents`, whose time does not count."""
    what = 're-encoded rollouts' if reencode else 'latent rollouts'
    progress = Progress(f'eval: {what}', len(u) * (u.shape[1] - initial_step))
    before = latents.seconds
    start = time.perf_counter()
    p = predict(model, u, params, initial_step, batch_size, reencode, progress=progress,
                on_step=None if reencode else latents)
    return p, time.perf_counter() - start - (latents.seconds - before)


@torch.no_grad()
def expected_seconds(model, u, params, initial_step, batch_size):
    """How long `evaluate` will take, about: a step of a few trajectories is timed."""
    rows, own = next(batches(len(u), min(batch_size, 16), params))
    z = model.encode(u[rows, initial_step - 1])

    def timed(call, *args):
        call(*args)                                                  # warms up
        wait_for(model.device)
        start = time.perf_counter()
        call(*args)
        wait_for(model.device)
        return (time.perf_counter() - start) / len(z.tokens)

    step = timed(model.step, z, own) + timed(model.decode, z)
    cycle = timed(model.cycle, z.tokens)                             # decodes and encodes
    n_steps = u.shape[1] - initial_step
    return len(u) * n_steps * (2 * step + 3 * cycle)


def check_initial_step(n, n_frames):
    if not 1 <= n < n_frames:
        raise UserError(f'initial_step={n} must be from 1 to {n_frames - 1}, as at least one of {n_frames} '
                        'frames is predicted')


def recon_nrmse(model, u, batch_size):
    """nrmse of D(E(y)) on the grid of u, over all of its true frames."""
    grid = u.shape[2:-1]
    points = model.grid(*grid)
    values = []
    progress = Progress('eval: reconstructions', len(u) * u.shape[1])
    for rows, _ in batches(len(u), batch_size, {}):
        for t in range(u.shape[1]):
            z = model.encode(u[rows, t])
            v = model.decode(z, points).cpu().double()               # on the CPU first: MPS has no float64
            v = filled_outside(v.unflatten(1, grid), u[rows, t], model.cfg, 0.)
            v = predicted_fields(model, v)[:, None]
            y = predicted_fields(model, u[rows, t:t + 1]).double()
            error = nrmse(v, y)
            values.append(error[rms(y) > 0])                         # a field that is 0 has no relative error
            progress.add(len(z.tokens))
    return float(torch.cat(values).mean())


class LatentScores:
    """Drift of the latent norm and cycle gap, gathered from the steps of latent rollouts over all
    trajectories, tokens and features. It sees the steps of a batch one after another, then the next batch."""

    def __init__(self, model, n_steps):
        self.model = model
        self.n_steps = n_steps
        self.squares = torch.zeros(n_steps + 1, dtype=torch.float64)
        self.gaps = torch.zeros(n_steps, dtype=torch.float64)
        self.step = 0                                                # of the batch
        self.seconds = 0.                                            # that this took

    def __call__(self, before, after):
        """Tokens (B, S, D) before and after a step."""
        wait_for(self.model.device)
        start = time.perf_counter()
        if self.step == 0:
            self.squares[0] += sum_of_squares(before)
        self.gaps[self.step] += sum_of_squares(self.model.cycle(after) - after)
        self.step += 1
        self.squares[self.step] += sum_of_squares(after)
        self.step %= self.n_steps
        self.seconds += time.perf_counter() - start

    def drift_and_gap(self):
        """Drift of the latent norm, rms(z_last) / rms(z_0) - 1, and the mean over the steps of the relative
        cycle error |E(D(z)) - z| / |z|; not finite where a latent is not, or is 0."""
        squares = self.squares
        drift = float((squares[-1] / squares[0]).sqrt()) - 1
        gap = (self.gaps / squares[1:]).sqrt().mean()
        return drift, float(gap)


def sum_of_squares(tokens):
    return float(tokens.cpu().double().square().sum())


def ms_per_trajectory(model, u, params, initial_step, batch_size, **how):
    """Wall clock of one whole decoded rollout of one batch, over its size. Call it after a rollout of the
    same shapes, which warms up. how: arguments of UPT.rollout."""
    rows, own = next(batches(len(u), batch_size, params))
    u0 = u[rows, initial_step - 1].to(model.device)
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


def baselines(u0, y, inside):
    """Scores of two guesses that need no model: the last given frame u0 (N, *grid, C), and its spatial mean over
    the domain. inside (N, 1, *grid, 1 or, in a box, 0)."""
    last = u0[:, None].double()
    inside = inside.all(-1, keepdim=True).double()                   # all True in a box
    mean = last.sum(space_of(y), keepdim=True) / inside.sum(space_of(y), keepdim=True) * inside
    return {'persistence': {'nrmse': mean_nrmse(last.expand_as(y), y)},
            'mean': {'nrmse': mean_nrmse(mean.expand_as(y), y)}}
