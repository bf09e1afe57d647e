"""
Scores inside a domain that is no box: over the points where the field that the entry calls `domain` is
positive. Outside of it, predictions and truth are 0.
"""
import torch

from files.layouts import read_records
from files.open import opened
from grids import ones_at
from metrics import field_nrmse, metrics

WALL = 2.                              # grid spacings from a wall that are near it
# metrics that need a whole grid, or pool over trajectories of different domains
NOT_INSIDE = ('max_error', 'crmse', 'brmse', 'frmse_low', 'frmse_mid', 'frmse_high', 'spectral_energy_error')


def metrics_inside(p, y, u0, distance, spacing, dt, on_row=None):
    """
    As metrics.metrics, over the points inside alone: each trajectory by itself, then their mean.

    p, y (N, T, *grid, C); u0 (N, *grid, C), the last given frame; distance (N, *grid), positive inside;
    spacing: of the grid. Adds nrmse_near_walls, the nRMSE over points that are closer to a wall than WALL
    spacings. on_row() is called when a trajectory is done. Returns ({name: number}, nrmse of each step).
    """
    found = []
    steps = []
    for row in range(len(p)):
        inside = distance[row] > 0
        predicted = p[row, :, inside][None]                          # (1, T, points, C)
        true = y[row, :, inside][None]
        start = u0[row, inside][None]
        scores, of_steps = metrics(predicted, true, start, dt)
        near = distance[row][inside] < WALL * spacing
        near_walls = field_nrmse(predicted[:, :, near], true[:, :, near])
        scores['nrmse_near_walls'] = sum(near_walls) / len(near_walls)
        found.append(scores)
        steps.append(of_steps)
        if on_row:
            on_row()
    names = [name for name in found[0] if name not in NOT_INSIDE]
    mean = {name: sum(scores[name] for scores in found) / len(found) for name in names}
    return mean, [sum(of_rows) / len(of_rows) for of_rows in zip(*steps)]


def filled_outside(u, truth, cfg, value):
    """Fields u (..., C) with one value in those that are not static, outside of the domain of `truth`."""
    if not cfg.domain:
        return u
    distance = truth[..., list(cfg.domain)]
    return u.where((distance > 0) | ones_at(cfg.static, cfg.n_field).bool(), value)


def recorded_scores(task, p):
    """
    How well what the solver has recorded beside the fields follows from predictions p (N, T, *grid, C): the
    coefficient of determination R² of each of its names, and that of the true fields, which grid and formula
    limit: {'drag_r2': .., 'drag_r2_of_truth': .., ..}. Values that are 0 (a missing obstacle) do not count.
    Empty for files without records.
    """
    found = {}
    n = task.initial_step
    static = list(task.model.cfg.static)
    for name, record in task.sources[0].entry.records.items():
        truth = read_recorded(task, name)
        if truth is None:
            continue
        parts = []
        for row in range(len(p)):
            own = {key.lower(): float(value[row]) for key, value in task.params.items()}
            true = task.u[row, n:].double()
            predicted = p[row].double()
            predicted[..., static] = true[..., static]
            parts.append((record.of_fields(predicted, **own), record.of_fields(true, **own)))
        there = (truth != 0).any(-1)
        truth = truth[there]
        of_prediction, of_truth = (torch.stack(part)[there] for part in zip(*parts))
        for i, label in enumerate(record.names):
            found[f'{label}_r2'] = r_squared(of_prediction[:, i], truth[:, i])
            found[f'{label}_r2_of_truth'] = r_squared(of_truth[:, i], truth[:, i])
    return found


def read_recorded(task, name):
    """A record of the predicted frames of a task, (N, T, *shape) float64; None where a file has none."""
    values = []
    stride = task.sources[0].time_stride(task.model.cfg.dt)
    for source in task.sources:
        with opened(source) as file:
            values.append(read_records(file, task.rows, name))
    if any(value is None for value in values):
        return None
    u = torch.cat([torch.from_numpy(value) for value in values])
    return u[:, ::stride][:, task.initial_step:][:, :task.steps].double()


def r_squared(p, y):
    """1 - Σ (p - y)² / Σ (y - <y>)² of predictions p against y, both (n,)."""
    return float(1 - (p - y).square().sum() / (y - y.mean()).square().sum())
