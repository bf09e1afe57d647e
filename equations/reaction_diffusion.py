"""
Reaction-diffusion (Fisher-KPP).

    ∂u/∂t = ν ∂²u/∂x² + ρ u (1 - u),      x in (0, 1) periodic

The scheme is Strang splitting (SIAM J. Numer. Anal. 5, 1968) of two exact flows: the logistic function for
the reaction, the Fourier multiplier exp(-ν k² τ) for the diffusion. Both keep u in [0, 1], and both are
stable for any step. For accuracy, the steps begin short and grow with the time, so that the decay of each
wave is resolved.
"""
import math

import numpy as np
import torch

from equations import PDE
from equations.common import (centres, checked, empty_frames, from_0_to_1, generators, graded_steps,
                              sum_of_waves, wave_numbers)
from equations.derivatives import derivative
from runtime.configurator import UserError
from runtime.progress import counted

REACTION_FIRST = 1e-5           # first step in units of 1/ν,
REACTION_GROWTH = .05           # longest step in units of the time,
REACTION_STEP = .01             # and in units of 1/ρ


def reaction_diffusion(u0, nu, rho, t):
    """Solve u_t = ν u_xx + ρ u (1 - u), periodic on (0, 1).

    u0: (B, X) values at the centres (i + .5)/X, not negative. nu: ν in squared domains a second. rho: ρ in
    1/s. Returns (B, T, X) float64. Raises UserError as `checked` does, and for negative values, which go to
    -∞ in finite time.

    For fields of `unit_waves` the largest error is 3e-6 (ν .01 to 5, ρ 1 and 10, against steps ten times
    shorter). A trajectory of 101 frames on 1024 cells takes 4 ms of a CPU core at ρ = 1 and 10 ms at ρ = 10
    (in batches of 32).
    """
    u0, t = checked(u0, t, nu=nu, rho=rho)
    if float(u0.min()) < -1e-6:
        raise UserError(f'u0 holds {float(u0.min()):.3g}: negative values go to -infinity in finite time')
    n_cells = u0.shape[1]
    rate = -nu * wave_numbers(u0, 1) ** 2
    out = empty_frames(u0, t)
    u = u0
    first = REACTION_FIRST / nu
    longest = REACTION_STEP / rho
    for i in counted('solver: frames', range(1, len(t))):
        for step in graded_steps(t[i - 1], t[i], first, REACTION_GROWTH, longest):
            u = _grown(u, rho * step / 2)
            spectrum = torch.fft.rfft(u) * torch.exp(rate * step)
            u = torch.fft.irfft(spectrum, n=n_cells)
            u = _grown(u, rho * step / 2)
        out[:, i] = u
    return out


def _grown(u, growth):
    """Solution of u' = u (1 - u) after the time `growth`, the logistic function."""
    return u / (u + (1 - u) * math.exp(-growth))


def reaction_diffusion_residual(u0, u1, dt, params, axes):
    """Residual of u_t - ν u_xx - ρ u (1 - u) between the frames u0, u1 (B, X, 1), dt (B,) seconds apart:
    (B, X, 1), by the midpoint rule and Fourier derivatives. params: {'nu': (B,), 'rho': (B,)}; axes: [x]."""
    x, = axes
    u = (u0[..., 0] + u1[..., 0]) / 2
    spreading = params['nu'][:, None] * derivative(u, x, 0, 2)
    growing = params['rho'][:, None] * u * (1 - u)
    return (u1 - u0) / dt[:, None, None] - (spreading + growing)[..., None]


# ---------------------------------------------------------------------------------------------
# initial fields

def unit_waves(n, cells, seed=0, first=0):
    """PDEBench's initial fields of reaction-diffusion, (n, X) float64: fields of `waves`, each scaled to the
    range 0 to 1. Sample i depends on (seed, first + i) alone."""
    n_cells, = cells
    x = centres(n_cells)
    u0 = np.empty((n, n_cells))
    for row, rng in enumerate(generators(n, seed, first)):
        u0[row] = from_0_to_1(sum_of_waves(rng, x, 4, .1))
    return u0


# PDEBench's own files stop changing after about t = .25, because of float32 steps of 2.4e-7.
ENTRY = PDE(
    fields=('u',),
    params={'Nu': .5, 'rho': 1.},
    space=((0, 1),),
    boundary='periodic',
    file='ReacDiff_Nu{Nu}_Rho{rho}.hdf5',
    solve=reaction_diffusion,
    initial=unit_waves,
    frames=101,
    mirror=True,
    positive=('u',),
    residual=reaction_diffusion_residual)
