"""
Query training: the losses of fields are taken at some points of the grid, drawn anew for every batch.
"""
import math

import torch

from metrics import space_of
from points.splines import fewest_points
from runtime.configurator import UserError, among

STRATEGIES = ('uniform', 'stratified', 'importance')
FIELDS = ('field', 'truth', 'reconstruction', 'start', 'members')    # outputs of a stage that are fields


def at_query_points(stage):
    """The extension of a stage: checks its keys, and keeps `num_queries` points of every field."""
    s = stage.settings
    cfg = stage.model.cfg
    least = fewest_points(len(cfg.grid))
    if cfg.encoder == 'points' and s.input_points <= least:
        raise UserError(f'input_points={s.input_points} must be more than {least}')
    if not s.num_queries:
        return None
    strategy = among('query_strategy', s.query_strategy, STRATEGIES)
    n_point = math.prod(cfg.grid)
    if s.num_queries > n_point:
        raise UserError(f'num_queries={s.num_queries} is more than the {n_point} points of the grid')
    if stage.weights.get('spectral'):
        raise UserError('the spectral loss needs fields on the whole grid: --lambda_spectral=0, or '
                        '--num_queries=0')

    def extend(outputs, batch):
        index, scale = draw_queries(batch.u, s.num_queries, strategy, cfg.periodic)
        for name in FIELDS:
            if name in outputs:
                u = outputs[name].flatten(-1 - len(cfg.grid), -2)    # (B, [M,] K, N, C)
                outputs[name] = u[..., index, :] * scale

    return extend


def draw_queries(u, n, strategy, periodic):
    """
    Numbers (n,) of grid points, and the factors (n, 1) of the fields there, for fields u (B, K, *grid, C).

    'stratified' draws one point in each of n equal parts of the grid. 'importance' draws more points where
    the gradients of u are large. The factors make sums of squares those over all points, in the mean.
    """
    n_point = math.prod(u.shape[2:-1])
    scale = torch.ones(n)
    if strategy == 'uniform':
        index = torch.randperm(n_point)[:n]
    elif strategy == 'stratified':
        index = ((torch.arange(n) + torch.rand(n)) * n_point / n).long().clamp_max(n_point - 1)
    else:
        probability = importance(u, periodic)
        index = torch.multinomial(probability, n, replacement=True)
        scale = (n_point * probability[index]).rsqrt()
    return index.to(u.device, non_blocking=True), scale.to(u.device, non_blocking=True)[:, None]


def importance(u, periodic):
    """Probability of each grid point (N,): one half uniform, one half in proportion to the size of the
    gradient of u (B, K, *grid, C)."""
    square = 0.
    for axis in space_of(u):
        step = u.roll(-1, axis) - u
        if not periodic:
            step.narrow(axis, -1, 1).zero_()
        square = square + step.square()
    size = square.mean((0, 1, -1)).sqrt().flatten() + 1e-12
    return .5 / len(size) + .5 * size / size.sum()
