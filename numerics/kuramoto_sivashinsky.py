"""
Kuramoto-Sivashinsky.

    ∂u/∂t + u ∂u/∂x + ∂²u/∂x² + ∂⁴u/∂x⁴ = 0,      x in (0, length) periodic

Pseudo-spectral with the 2/3 rule; in time ETDRK4 (S. M. Cox, P. C. Matthews, J. Comput. Phys. 176, 2002),
whose coefficients are means over circles (A.-K. Kassam, L. N. Trefethen, SIAM J. Sci. Comput. 26, 2005).
The mean c of u only carries the field along: u(x, t) = c + v(x - ct, t), where v has no mean. The solver
moves v by an exact shift, so that the symmetry of moving frames holds to rounding.
"""
import math

import numpy as np
import torch

from numerics.common import (centres, checked, empty_frames, etdrk4_step, etdrk4_weights, generators,
                             wave_numbers)
from physics import at_rest, derivative
from runtime.configurator import UserError

KS_STEP = .025


def kuramoto_sivashinsky(u0, length, t):
    """Solve u_t + u u_x + u_xx + u_xxxx = 0, periodic on (0, length).

    u0: (B, X) values at the centres (i + .5) length / X. Returns (B, len(t), X) float64. Raises UserError as
    `checked` does, where cells are too few, and where the solution leaves the finite numbers (u0
    too large for the step).

    From fields of `ks_attractor` (256 cells) the steps make an nrmse of 2e-6 at t = 20, 2e-5 at t = 50 and
    5e-3 at t = 100 (against steps half as long), as errors grow tenfold in 20 to 25 s; the cells make 1e-10
    at t = 20. A trajectory of 100 s takes 32 ms of a CPU core (in batches of 32), its burn-in 22 ms.
    """
    u0, t = checked(u0, t, length=length)
    n_cells = u0.shape[1]
    mean = u0.mean(1, keepdim=True)
    k = wave_numbers(u0, length)
    kept = k < 2 / 3 * math.pi * n_cells / length
    needed = math.ceil(3 * length / math.pi)                         # for waves of k = 2, which only decay
    if n_cells < needed:
        raise UserError(f'{n_cells} cells cannot hold the waves that damp the others: at least {needed} on a '
                        f'length of {length:g}')
    derivative = -.5j * k * kept

    def advection_term(v):
        field = torch.fft.irfft(v * kept, n=n_cells)
        return derivative * torch.fft.rfft(field ** 2)

    out = empty_frames(u0, t)
    v = torch.fft.rfft(u0 - mean)
    last_step = 0.
    for i, gap in enumerate(np.diff(t)):
        n_steps = math.ceil(gap / KS_STEP)
        step = gap / n_steps
        if abs(step - last_step) > 1e-9 * step:
            weights = etdrk4_weights(k ** 2 - k ** 4, step)
            last_step = step
        for _ in range(n_steps):
            v = etdrk4_step(v, advection_term, weights)
        distance = mean * t[i + 1]
        turn = torch.polar(torch.ones_like(k), -k * distance)
        out[:, i + 1] = mean + torch.fft.irfft(v * turn, n=n_cells)
    if not torch.isfinite(out).all():
        raise UserError(f'u0 reaches {float(u0.abs().max()):.3g}, too much for steps of {KS_STEP}')
    return out


def kuramoto_sivashinsky_64(u0, t):
    """`kuramoto_sivashinsky` on (0, 64)."""
    return kuramoto_sivashinsky(u0, 64., t)


def kuramoto_sivashinsky_residual(u0, u1, dt, params, axes):
    """What is left of u_t + u u_x + u_xx + u_xxxx for consecutive frames u0, u1 (B, X, 1), dt (B,) seconds
    apart: midpoint rule in the frame of the mean flow, Fourier derivatives. axes: [x]. Returns (B, X, 1)."""
    x, = axes
    v0, v1 = at_rest(u0[..., 0], u1[..., 0], dt, x, 1.)
    v = (v0 + v1) / 2
    flux = v ** 2 / 2 + derivative(v, x, 0) + derivative(v, x, 0, 3)
    residual = (v1 - v0) / dt[:, None] + derivative(flux, x, 0)
    return residual[..., None]


# ---------------------------------------------------------------------------------------------
# initial conditions

def ks_waves(n, cells, seed=0, first=0, length=64., burn_in=0.):
    """Initial conditions of Kuramoto-Sivashinsky without a mean, (n, X) float64 on (0, length): sums of ten
    waves A sin(2π l x / length + φ), A uniform in (-1/2, 1/2), l in 1..3, φ in (0, 2π) (arXiv 2202.07643).

    burn_in: seconds that the solver runs on them first (on a grid of its own, 4 cells a unit of length).
    Sample i depends on (seed, first + i) alone, up to rounding that a burn-in amplifies.
    """
    n_cells, = cells
    size = n_cells if burn_in == 0 else 4 * math.ceil(length)
    x = centres(size)
    u0 = np.empty((n, size))
    for row, rng in enumerate(generators(n, seed, first)):
        amplitude = rng.uniform(-.5, .5, (10, 1))
        wave = rng.integers(1, 4, (10, 1))
        phase = rng.uniform(0, 2 * np.pi, (10, 1))
        angle = 2 * np.pi * wave * x + phase
        u0[row] = (amplitude * np.sin(angle)).sum(0)
    if burn_in == 0:
        return u0
    u0 = kuramoto_sivashinsky(u0, length, [0., burn_in])[:, 1].numpy()
    return _at_centres(u0, n_cells)


def ks_attractor(n, cells, seed=0, first=0):
    """`ks_waves` on (0, 64) after 72 s, when they have forgotten how they began (as in arXiv 2308.05732)."""
    return ks_waves(n, cells, seed, first, burn_in=72.)


def _at_centres(u, n_cells):
    """The trigonometric interpolant of u (n, X) at the centres of n_cells cells, for fields that both grids
    resolve."""
    size = u.shape[1]
    n_waves = min(size, n_cells) // 2
    wave = np.arange(n_waves)
    first_centre = .5 / n_cells - .5 / size                         # from one grid to the other
    turn = np.exp(2j * np.pi * wave * first_centre)
    spectrum = np.fft.rfft(u)[:, :n_waves] * turn
    return np.fft.irfft(spectrum, n=n_cells) * n_cells / size
