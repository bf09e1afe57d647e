"""
Physics priors: losses of what an equation demands of decoded fields.

All functions are differentiable in fields u (N, *X, C) in physical units on a uniform grid. `axes` holds the
coordinates of its points, one tensor (X,) an axis; `entry` is the equation's. What is measured of a
prediction is in units of the truth, over all samples together, so a sample in which hardly anything happens
does not outweigh the others. Derivatives are those of equations/derivatives.py.
"""
import torch

import equations
from equations.derivatives import central, divergence, gradient, is_centred, mean, numbers
from runtime.inputs import axis_points
from losses import Loss, mean_square
from metrics import rms
from runtime.configurator import UserError

SMALLEST = 1e-6                       # lower limit of norms in denominators, relative to the largest


# ---------------------------------------------------------------------------------------------
# measurements

def chosen(u, fields):
    """u[..., fields] for a list of numbers. (A GPU is waited for while a list is copied to it.)"""
    return torch.stack([u[..., field] for field in fields], -1)


def divisor(size):
    """Sizes (N, ...) of N samples as denominators, in any units: at least SMALLEST of the largest sample, and 1
    where all are 0."""
    least = SMALLEST * size.amax(0, keepdim=True)
    return torch.where(least > 0, torch.maximum(size, least), 1.)


def conservation(p, u0, axes, entry):
    """(<p> - <u0>) / rms(u0) for each conserved field, (N, C'), <.> the mean over the domain and u0
    (N, *X, C) the start of the rollout: metrics.conservation_gap with its sign."""
    fields = numbers(entry, entry.conserved)
    start = chosen(u0, fields)
    gap = mean(chosen(p, fields) - start, axes, entry)
    return gap / divisor(rms(start[:, None])[:, 0])


def energies(u, axes, entry):
    """<|u|^2> over the fields of the velocity, (N,)."""
    fields = numbers(entry, entry.velocity or entry.fields)
    return mean(chosen(u, fields).square(), axes, entry).sum(-1)


def at_wall(u, x, axis, wall, high):
    """Value and outward derivative of fields u (N, *X) at a wall, both (N, *X without the axis), from the
    parabola through the three nearest points. x (X,); wall: its coordinate; high: is it the upper one?"""
    u = u.movedim(1 + axis, 0)
    if high:
        u = u.flip(0)
        x = x.flip(0)
    s = (x[:3] - wall).abs()                                         # distances
    value = 0.
    slope = 0.
    for i in range(3):
        a = s[(i + 1) % 3]
        b = s[(i + 2) % 3]
        factor = u[i] / ((s[i] - a) * (s[i] - b))
        value = value + a * b * factor
        slope = slope + (a + b) * factor                             # minus the inward derivative
    return value, slope


def boundary(u, y, axes, entry):
    """Violation of the conditions a u + b du/dn = g of `entry.walls`, in units of a rms(y) + b rms(dy/dn), y
    the truth: (N, points of all walls)."""
    defects = []
    for name, sides in entry.walls.items():
        field = entry.fields.index(name)
        v = u[..., field]
        true = y[..., field]
        size = true.square().mean().sqrt()
        for axis, x in enumerate(axes):
            slope = central(true, x, axis).square().mean().sqrt()
            low = entry.low[axis]
            for condition, wall in zip(sides, (low, low + entry.length[axis])):
                a, b, g = condition
                value, outward = at_wall(v, x, axis, wall, wall > low)
                scale = a * size + b * slope
                defect = (a * value + b * outward - g) / divisor(scale[None])
                defects.append(defect.reshape(len(u), -1))
    return torch.cat(defects, 1)


def relative_divergence(u, y, axes, entry):
    """Divergence of the velocity in the fields u, in units of the rms of the true velocity gradient,
    (N, *X)."""
    fields = numbers(entry, entry.velocity)
    square = 0.
    for field in fields:
        for axis in range(len(axes)):
            part = gradient(y[..., field], axes, axis, entry.periodic)
            square = square + part.square().mean()
    return divergence(chosen(u, fields), axes, entry.periodic) / divisor(square.sqrt()[None])


def rate(u0, u1, dt, entry):
    """Rms of (u1 - u0) / dt for each field that is not static, (C',): the unit of a residual. That of a
    steady equation is 1, since its source has that unit."""
    if entry.steady:
        return 1.
    fields = [i for i, name in enumerate(entry.fields) if name not in entry.static]
    dt = dt.view(-1, *[1] * (u0.ndim - 1))
    speed = chosen(u1 - u0, fields) / dt
    size = speed.square().flatten(0, -2).mean(0).sqrt()
    return divisor(size[None])[0]


def why_not(quantity, entry, axes):
    """Why a quantity does not apply to an equation on this grid, as a clause; '' if it does."""
    if quantity == 'conservation' and not entry.conserved:
        return 'it conserves the integral of no field'
    if quantity == 'energy' and not entry.dissipative:
        return 'its energy may grow'
    if quantity == 'boundary' and not entry.walls:
        return f'its boundary is {entry.boundary}, where no value is prescribed'
    if quantity == 'divergence' and not entry.incompressible:
        if entry.pseudo:
            return 'it has a vorticity and no velocity, which follows from a stream function: no divergence'
        return 'its velocity is that of no incompressible flow' if entry.velocity else 'it has no velocity'
    if quantity == 'residual' and not entry.residual:
        return 'its entry has no residual'
    if quantity == 'residual' and not entry.periodic and not is_centred(axes, entry):
        return 'the points of the grid are not cell centres: set --space_stride=1'
    return ''


# ---------------------------------------------------------------------------------------------
# losses

def mean_of_squares(defect):
    """Mean of the squares of a measurement."""
    return defect.square().mean()


# Residual and boundary violation are compared with those of the truth. These are not zero on a grid and at
# the long steps of a model, and a prediction must not be pulled away from the truth.
PRIORS = {
    'conservation': Loss(mean_of_squares, ('gap',), 0., ''),
    'boundary': Loss(mean_square, ('wall_defect', 'true_wall_defect'), 0., ''),
    'divergence': Loss(mean_of_squares, ('velocity_divergence',), 0., ''),
    'residual': Loss(mean_square, ('residual', 'true_residual'), 0., ''),
}


def add_priors(stage):
    """The extension of a stage: adds the outputs that the weighted priors take. Raises UserError for a prior
    that the equation does not have."""
    wanted = [name for name in PRIORS if stage.weights.get(name)]
    if not wanted:
        return None
    cfg = stage.model.cfg
    entry = equations.entry(cfg.pde)
    axes = [axis_points(cfg, axis, n) for axis, n in enumerate(cfg.grid)]
    for name in wanted:
        why = why_not(name, entry, axes)
        if not why and name == 'conservation' and cfg.conserved and not cfg.log_clamp:
            why = 'with conserve=True every step keeps the integral as it is'
        if why:
            raise UserError(f'lambda_{name} does not apply to {cfg.pde}: {why}. Set --lambda_{name}=0')
        if stage.settings.num_queries:
            raise UserError(f'lambda_{name} needs fields on the whole grid: --num_queries=0')

    def extend(outputs, batch):
        model = stage.model
        for i, axis in enumerate(axes):                              # it moves once; MPS has no float64
            axes[i] = axis.to(batch.u.dtype).to(batch.u.device, non_blocking=True)
        x = axes
        start = batch.u[:, :1] + batch.background
        field = outputs['field']                                     # (B, K, *grid, C)
        truth = outputs['truth']
        with torch.autocast(batch.u.device.type, enabled=False):
            p = (field * model.std).flatten(0, 1)                    # (B K, *grid, C), physical units
            y = (truth * model.std).flatten(0, 1)
            if 'conservation' in wanted:
                u0 = (start * model.std).expand_as(field).flatten(0, 1)
                outputs['gap'] = conservation(p, u0, x, entry)
            if 'boundary' in wanted:
                outputs['wall_defect'] = boundary(p, y, x, entry)
                outputs['true_wall_defect'] = boundary(y, y, x, entry)
            if 'divergence' in wanted:
                outputs['velocity_divergence'] = relative_divergence(p, y, x, entry)
            if 'residual' in wanted:
                steps = field.shape[1]
                dt = batch.dt.repeat_interleave(steps)
                values = batch.params.repeat_interleave(steps, 0).unbind(1)
                params = {key.lower(): value for key, value in zip(cfg.params, values)}
                pairs = consecutive(model, start, field, batch.background)
                true_pairs = consecutive(model, start, truth, batch.background)
                unit = rate(*true_pairs, dt, entry)
                outputs['residual'] = entry.residual(*pairs, dt, params, x) / unit
                outputs['true_residual'] = entry.residual(*true_pairs, dt, params, x) / unit

    return extend


def consecutive(model, start, fields, background):
    """Pairs of consecutive frames, both (B K, *grid, C) in physical units, in the moving frame and on points
    at rest: the shift of the tokens is undone."""
    cfg = model.cfg
    u = torch.cat([start, fields], 1) - background                   # (B, 1 + K, *grid, C)
    u = u * model.std + model.mean
    before = u[:, :-1].flatten(0, 1)
    after = u[:, 1:].flatten(0, 1)
    if cfg.token_shift:
        cells = [cfg.token_shift * step for step in cfg.shift_direction]
        after = after.roll(cells, list(range(1, 1 + len(cells))))
    return before, after
