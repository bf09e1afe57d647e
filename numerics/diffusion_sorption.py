"""
Diffusion-sorption.

PDEBench's (arXiv 2210.07182): a solute that diffuses in a porous medium and sticks to it,

    R(u) ∂u/∂t = D ∂²u/∂x²,      R(u) = 1 + (1 - φ)/φ ρ_s k n_f u^(n_f - 1),      x in (0, 1)
    u = 1 at x = 0,      u = -D ∂u/∂x at x = 1

R is the derivative of m(u) = u + K u^n_f (Freundlich's isotherm; K = (1 - φ)/φ ρ_s k), so m is conserved:
∂m/∂t = D ∂²u/∂x², and the scheme below keeps the budget of m whatever the step. At x = 1 the solute leaves
with velocity 1, which holds u near 0 there. The paper writes u = D ∂u/∂x; with that sign a layer of
thickness D would grow at the rate 1/(R D), and the released data have the sign given here. They also hold
u = 1 half a cell to the left of 0 instead of at 0.

In time it is the two-stage, second-order, L-stable, stiffly accurate DIRK method (R. Alexander, SIAM J.
Numer. Anal. 14, 1977) with Newton's method, in space finite volumes.
"""
import math

import numpy as np
import torch

from numerics.common import checked, empty_frames, generators, graded_steps, tridiagonal
from runtime.configurator import UserError

DIFFUSION = 5e-4
ISOTHERM = (1 - .29) / .29 * 2880 * 3.5e-4      # K
FREUNDLICH = .874                               # n_f
SORPTION_GROWTH = .1                            # longest step as a part of the time that has passed
SDIRK = 1 - math.sqrt(.5)                       # weight of the implicit end of a stage


def diffusion_sorption(u0, t):
    """Solve R(u) u_t = D u_xx on (0, 1), u = 1 at the left and u = -D u_x at the right, both at the faces.

    u0: (B, X) averages over X equal cells, not negative. Returns (B, len(t), X) float64. Raises UserError as
    `checked` does, and for negative values.

    It is of second order in cells and steps; the steps grow with the time, since u jumps at the walls at
    first. On 1024 cells the nrmse of the 101 frames of `constants` is 2e-5 on average and 8e-5 at most by the
    steps, 3e-6 and 7e-5 (in the first frame, t = 5) by the cells; on 256 cells the latter are 7e-5 and
    1.3e-3. A trajectory takes 80 ms of a CPU core on 1024 cells and 30 ms on 256 (in batches of 32).
    """
    u0, t = checked(u0, t)
    if float(u0.min()) < 0:
        raise UserError(f'u0 holds {float(u0.min()):.3g}: a concentration cannot be negative')
    n_cells = u0.shape[1]
    h = 1 / n_cells
    first = h ** 2 / DIFFUSION
    out = empty_frames(u0, t)
    u = u0
    for i in range(1, len(t)):
        for step in graded_steps(t[i - 1], t[i], first, SORPTION_GROWTH):
            start = _sorbed(u)[0]
            u = _sorption_stage(u, start, SDIRK * step)
            start = start + (1 - SDIRK) * step * _sorption_rate(u)
            u = _sorption_stage(u, start, SDIRK * step)
        out[:, i] = u
    return out


def _sorbed(u):
    """m(u) and R(u) = m'(u). R is infinite at 0; below 1e-12 m is taken linear."""
    ratio = ISOTHERM * u.clamp(min=1e-12) ** (FREUNDLICH - 1)       # of the adsorbed to the dissolved
    return u + ratio * u, 1 + FREUNDLICH * ratio


def _wall_conductances(h):
    """D/h² between a cell and the left wall, and between a cell and the outside of the right one."""
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
    """The u with m(u) = start + step * rate(u), by Newton's method from a guess of u."""
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
    raise UserError(f'diffusion-sorption: a step of {step:.2g} s did not converge')


# ---------------------------------------------------------------------------------------------
# initial conditions

def constants(n, cells, seed=0, first=0):
    """PDEBench's initial conditions of diffusion-sorption, (n, X) float64: one number a sample, uniform in
    (0, .2). Sample i depends on (seed, first + i) alone."""
    u0 = np.empty((n, *cells))
    for row, rng in enumerate(generators(n, seed, first)):
        u0[row] = rng.uniform(0, .2)
    return u0
