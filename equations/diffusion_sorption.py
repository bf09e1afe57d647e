"""
Diffusion-sorption.

A solute that diffuses in a porous medium and sticks to it (PDEBench, arXiv 2210.07182):

    R(u) ∂u/∂t = D ∂²u/∂x²,      R(u) = 1 + (1 - φ)/φ ρ_s k n_f u^(n_f - 1),      x in (0, 1)
    u = 1 at x = 0,      u = -D ∂u/∂x at x = 1

R is the derivative of m(u) = u + K u^n_f (Freundlich's isotherm; K = (1 - φ)/φ ρ_s k), the dissolved and
adsorbed solute. So ∂m/∂t = D ∂²u/∂x²: m changes only by fluxes through the walls, and so it does in the
scheme below, for any step. At x = 1 the solute leaves with velocity 1, which holds u near 0 there. The paper
writes u = D ∂u/∂x at x = 1. With that sign a layer of thickness D would grow at the rate 1/(R D), and the
published data have the sign given here. These data also hold u = 1 half a cell to the left of x = 0.

The scheme is finite volumes in space. In time it is the two-stage, second-order, L-stable, stiffly accurate
DIRK method (R. Alexander, SIAM J. Numer. Anal. 14, 1977) with Newton's method.
"""
import math

import numpy as np
import torch

from equations import PDE
from equations.common import checked, empty_frames, generators, graded_steps, tridiagonal
from runtime.configurator import UserError
from runtime.progress import counted

DIFFUSION = 5e-4
ISOTHERM = (1 - .29) / .29 * 2880 * 3.5e-4      # K
FREUNDLICH = .874                               # n_f
SORPTION_GROWTH = .1                            # longest step in units of the time
SDIRK = 1 - math.sqrt(.5)                       # weight of the implicit end of a stage


def diffusion_sorption(u0, t, growth=SORPTION_GROWTH):
    """Solve R(u) u_t = D u_xx on (0, 1), u = 1 at the left and u = -D u_x at the right, both at the faces.

    u0: (B, X) averages over X equal cells, not negative. growth: longest step in units of the time. Returns
    (B, T, X) float64. Raises UserError as `checked` does, and for negative values.

    The order is 2 in cells and steps. The steps grow with the time, because u jumps at the walls at first. In
    the 101 frames of `constants` on 1024 cells, the nrmse due to the steps is 2e-5 on average and 8e-5 at
    most, and that due to the cells is 3e-6 and 7e-5 (at t = 5); on 256 cells the latter is 7e-5 and 1.3e-3.
    A trajectory takes 80 ms of a CPU core on 1024 cells and 30 ms on 256 (in batches of 32).
    """
    u0, t = checked(u0, t, growth=growth)
    if float(u0.min()) < 0:
        raise UserError(f'u0 holds {float(u0.min()):.3g}: a concentration cannot be negative')
    n_cells = u0.shape[1]
    h = 1 / n_cells
    first = h ** 2 / DIFFUSION
    out = empty_frames(u0, t)
    u = u0
    for i in counted('solver: frames', range(1, len(t))):
        for step in graded_steps(t[i - 1], t[i], first, growth):
            start = _sorbed(u)[0]
            u = _sorption_stage(u, start, SDIRK * step)
            start = start + (1 - SDIRK) * step * _sorption_rate(u)
            u = _sorption_stage(u, start, SDIRK * step)
        out[:, i] = u
    return out


def _sorbed(u):
    """m(u) and R(u) = m'(u). R is infinite at u = 0, so that m is linear below 1e-12."""
    ratio = ISOTHERM * u.clamp(min=1e-12) ** (FREUNDLICH - 1)       # adsorbed over dissolved solute
    return u + ratio * u, 1 + FREUNDLICH * ratio


def _wall_conductances(h):
    """D/h² of the flux between the first cell and the left wall, and through the right wall."""
    return 2 * DIFFUSION / h ** 2, DIFFUSION / h ** 2 / (.5 + DIFFUSION / h)


def _sorption_rate(u):
    """∂m/∂t of the cells, (B, X)."""
    h = 1 / u.shape[-1]
    left, right = _wall_conductances(h)
    entering = left * (u[:, :1] - 1)
    between = DIFFUSION / h ** 2 * u.diff(dim=-1)
    leaving = -right * u[:, -1:]
    return torch.cat([entering, between, leaving], -1).diff(dim=-1)


def _sorption_stage(u, start, step):
    """Solve m(u) = start + step * rate(u) by Newton's method. u: first guess."""
    h = 1 / u.shape[-1]
    left, right = _wall_conductances(h)
    between = torch.full_like(u[:1], step * DIFFUSION / h ** 2)
    lower = between.clone()
    lower[:, 0] = 0
    upper = between.clone()
    upper[:, -1] = 0
    leaving = lower + upper
    leaving[:, 0] += step * left
    leaving[:, -1] += step * right
    for _ in range(50):
        total, retardation = _sorbed(u)
        residual = start + step * _sorption_rate(u) - total
        change = tridiagonal(-lower, retardation + leaving, -upper, residual)
        u = u + change
        if float(change.abs().max()) < 1e-11:
            return u.clamp(min=0)                                   # -1e-14 at most, where u is 0
    raise UserError(f'diffusion_sorption: Newton\'s method did not converge in a step of {step:.2g} s')


# ---------------------------------------------------------------------------------------------
# initial fields

def constants(n, cells, seed=0, first=0):
    """PDEBench's initial fields of diffusion-sorption, (n, X) float64: a constant for each sample, uniform in
    (0, .2). Sample i depends on (seed, first + i) alone."""
    u0 = np.empty((n, *cells))
    for row, rng in enumerate(generators(n, seed, first)):
        u0[row] = rng.uniform(0, .2)
    return u0


# The total solute m(u) is no field, and it enters through the left wall, so that nothing is conserved.
ENTRY = PDE(
    fields=('u',),
    params={},
    space=((0, 1),),
    boundary='wall',
    file='1D_diff-sorp_NA_NA.h5',
    layout='groups',
    solve=diffusion_sorption,
    cheaper=({'growth': 2 * SORPTION_GROWTH}, {'growth': 4 * SORPTION_GROWTH}, {'growth': 8 * SORPTION_GROWTH}),
    initial=constants,
    frames=101,
    dt=5.,
    positive=('u',),
    walls={'u': ((1., 0., 1.), (1., DIFFUSION, 0.))},
    test='last')
