"""
Rewards by which a search chooses among proposals, and how well they rank them.

A reward is a function (u0, u1, rows, step) -> (n,). u0 and u1 (n, *grid, C) are the fields before and after
step number `step` of a rollout, in physical units; rows (n,) are the trajectories to which they belong. A
reward that is equal for all proposals, such as conservation in a model that conserves, cannot choose and is
left out.
"""
import torch

import equations
from equations.derivatives import axes_of, numbers
from evaluation.scores import predicted_fields
from metrics import nrmse
from physics import priors
from runtime.configurator import UserError

SMALLEST = 1e-30                       # lower limit of denominators, of fields in any units
HOPELESS = -1e30                       # reward of a state that is not finite


class Rewards:
    """Minus the weighted sum of violations of the equation, 0 at best. `weights` holds those that apply to
    the equation and can differ between proposals; `left_out` says why the others do not take part."""

    def __init__(self, model, settings, params):
        """params: {name: (n,)}, on the device of the model. Raises UserError where no reward applies."""
        cfg = model.cfg
        self.entry = equations.entry(cfg.pde)
        self.axes = axes_of(model.points, cfg.grid)
        self.params = {name.lower(): value for name, value in params.items()}
        self.dt = cfg.dt
        self.weights = {}
        self.left_out = {}
        for name in ('mass', 'energy', 'negativity', 'residual'):
            weight = getattr(settings, name)
            why_not = self.why_not(name, cfg)
            if weight and not why_not:
                self.weights[name] = weight
            else:
                self.left_out[name] = why_not or 'its weight is 0'
        if settings.residual_threshold and 'residual' not in self.weights:
            raise UserError(f"residual_threshold needs the residual: {self.left_out['residual']}")
        if not self.weights:
            reasons = '; '.join(f'{name}: {why}' for name, why in self.left_out.items())
            raise UserError(f'no reward applies to {cfg.pde} ({reasons})')

    def why_not(self, name, cfg):
        """Why a reward cannot choose between proposals, as a clause; '' if it can."""
        entry = self.entry
        if name == 'negativity':
            can_be_negative = set(cfg.positive) & set(cfg.predicted)
            return '' if can_be_negative else 'none of its fields has to be positive'
        kept = {entry.fields[i] for i in cfg.conserved}
        keeps_all = entry.conserved and kept >= set(entry.conserved) and not cfg.log_clamp
        if name == 'mass' and keeps_all:
            return 'the model keeps every integral, so proposals do not differ'
        quantity = 'conservation' if name == 'mass' else name
        return priors.why_not(quantity, entry, self.axes)

    def __call__(self, u0, u1, rows, step):
        total = 0.
        for name, weight in self.weights.items():
            total = total - weight * getattr(self, name)(u0, u1, rows)
        return torch.where(total.isfinite(), total, HOPELESS)

    def mass(self, u0, u1, rows):
        gap = priors.conservation(u1, u0, self.axes, self.entry)
        return gap.abs().mean(-1)

    def energy(self, u0, u1, rows):
        before = priors.energies(u0, self.axes, self.entry)
        after = priors.energies(u1, self.axes, self.entry)
        return (after - before).clamp_min(0.) / before.clamp_min(SMALLEST)

    def negativity(self, u0, u1, rows):
        positive = numbers(self.entry, self.entry.positive)
        values = u1[..., positive].flatten(1)
        below = (-values).clamp_min(0.)
        return below.mean(1) / values.abs().mean(1).clamp_min(SMALLEST)

    def residual(self, u0, u1, rows):
        """Rms of the residual of the equation, relative to that of the change in time."""
        dt = torch.full((len(u0),), self.dt, device=u0.device)
        params = {name: value[rows] for name, value in self.params.items()}
        residual = self.entry.residual(u0, u1, dt, params, self.axes)
        size = rms_of_samples(residual)
        if self.entry.steady:
            return size
        changing = [i for i, name in enumerate(self.entry.fields) if name not in self.entry.static]
        speed = (u1 - u0)[..., changing] / self.dt
        return size / rms_of_samples(speed).clamp_min(SMALLEST)


def rms_of_samples(u):
    """(n, ...) -> (n,)"""
    return u.flatten(1).square().mean(1).sqrt()


class RandomReward:
    """A reward that knows nothing."""

    def __init__(self, seed=0):
        self.random = torch.Generator().manual_seed(seed)

    def __call__(self, u0, u1, rows, step):
        return torch.rand(len(u1), generator=self.random).to(u1.device)


class Oracle:
    """Minus the true error: the best choice that a reward could make. truth (n, T, *grid, C)."""

    def __init__(self, model, truth):
        self.model = model
        self.truth = truth.to(model.device)

    def __call__(self, u0, u1, rows, step):
        p = predicted_fields(self.model, self.model.clip_positive(u1))[:, None]
        y = predicted_fields(self.model, self.truth[rows, step])[:, None]
        error = nrmse(p, y.to(p)).flatten(1).mean(1)
        return torch.where(error.isfinite(), -error, HOPELESS)


def rank_correlation(a, b):
    """Spearman's rank correlation of each row of a and b (n, B), (n,); equal values share their mean rank.
    NaN where all are equal."""
    x = centred_ranks(a)
    y = centred_ranks(b)
    norm = (x.square().sum(1) * y.square().sum(1)).sqrt()
    return (x * y).sum(1) / norm


def centred_ranks(values):
    """Rank of each of the values (n, B) in its row, minus the mean rank."""
    less = values[:, :, None] > values[:, None]
    equal = values[:, :, None] == values[:, None]
    rank = less.sum(2).double() + equal.sum(2) / 2
    return rank - rank.mean(1, keepdim=True)
