"""
Kuramoto-Sivashinsky.

    ∂u/∂t + u ∂u/∂x + ∂²u/∂x² + ∂⁴u/∂x⁴ = 0,      x in (0, length) periodic

The scheme is pseudo-spectral with the 2/3 rule in space, and ETDRK4 in time (S. M. Cox, P. C. Matthews,
J. Comput. Phys. 176, 2002), with coefficients that are means over circles (A.-K. Kassam, L. N. Trefethen,
SIAM J. Sci. Comput. 26, 2005). The mean c of u only transports the field: u(x, t) = c + v(x - ct, t), where v
has no mean. The solver shifts v exactly, so that Galilean symmetry holds to rounding.
"""
import math

import numpy as np
import torch

from equations import PDE
from equations.common import centres, checked, generators, self_advection, wave_numbers
from equations.derivatives import at_rest, derivative
from runtime.configurator import UserError

KS_STEP = .025                  # longest step in seconds


def kuramoto_sivashinsky(u0, length, t, step=None):
    """Solve u_t + u u_x + u_xx + u_xxxx = 0, periodic on (0, length).

    u0: (B, X) values at the centres (i + .5) length / X. step: longest step in seconds (KS_STEP). Returns (B, T, X)
    float64. Raises UserError as `checked` does, if there are too few cells, and if the solution is not finite (u0 too
    large for the step).

    For fields of `ks_attractor` on 256 cells the nrmse due to the steps is 2e-6 at t = 20, 2e-5 at t = 50 and
    5e-3 at t = 100 (against steps half as long), because errors grow tenfold in 20 to 25 s. That due to the
    cells is 1e-10 at t = 20. A trajectory of 100 s takes 32 ms of a CPU core (in batches of 32), and its
    burn-in takes 22 ms.
    """
    step = KS_STEP if step is None else step
    u0, t = checked(u0, t, length=length, step=step)
    n_cells = u0.shape[1]
    needed = math.ceil(3 * length / math.pi)                         # up to k = 2, where waves only decay
    if n_cells < needed:
        raise UserError(f'{n_cells} cells are too few to resolve the waves that dissipate: take at least '
                        f'{needed} on a length of {length:g}')
    k = wave_numbers(u0, length)
    out = self_advection(u0, length, t, k ** 2 - k ** 4, step)
    if not torch.isfinite(out).all():
        raise UserError(f'u0 reaches {float(u0.abs().max()):.3g}, too much for steps of {step} s')
    return out


def kuramoto_sivashinsky_64(u0, t, step=None):
    """`kuramoto_sivashinsky` on (0, 64)."""
    return kuramoto_sivashinsky(u0, 64., t, step)


def kuramoto_sivashinsky_residual(u0, u1, dt, params, axes):
    """Residual of u_t + u u_x + u_xx + u_xxxx between the frames u0, u1 (B, X, 1), dt (B,) seconds apart:
    (B, X, 1), by the midpoint rule in the frame of reference of the mean flow and by Fourier derivatives.
    axes: [x]."""
    x, = axes
    v0, v1 = at_rest(u0[..., 0], u1[..., 0], dt, x, 1.)
    v = (v0 + v1) / 2
    flux = v ** 2 / 2 + derivative(v, x, 0) + derivative(v, x, 0, 3)
    residual = (v1 - v0) / dt[:, None] + derivative(flux, x, 0)
    return residual[..., None]


# ---------------------------------------------------------------------------------------------
# initial fields

def ks_waves(n, cells, seed=0, first=0, length=64., burn_in=0.):
    """Initial fields without a mean at the cell centres of (0, length), (n, X) float64: sums of ten waves
    A sin(2π l x / length + φ), A uniform in (-1/2, 1/2), l in 1..3, φ in (0, 2π) (arXiv 2202.07643).

    burn_in: seconds for which the solver runs first, on a grid with 4 cells in a unit of length. Sample i
    depends on (seed, first + i) alone, up to rounding errors, which a burn-in amplifies.
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
    """`ks_waves` on (0, 64) after 72 s, when they have reached the attractor (as in arXiv 2308.05732)."""
    return ks_waves(n, cells, seed, first, burn_in=72.)


def _at_centres(u, n_cells):
    """The trigonometric interpolant of u (n, X) at the centres of n_cells cells, (n, n_cells). Both grids
    must resolve u."""
    size = u.shape[1]
    n_waves = min(size, n_cells) // 2
    wave = np.arange(n_waves)
    first_centre = .5 / n_cells - .5 / size                         # of one grid relative to the other
    turn = np.exp(2j * np.pi * wave * first_centre)
    spectrum = np.fft.rfft(u)[:, :n_waves] * turn
    return np.fft.irfft(spectrum, n=n_cells) * n_cells / size


# The length is the domain and no parameter.
ENTRY = PDE(
    fields=('u',),
    params={},
    space=((0, 64),),
    boundary='periodic',
    file='1D_KS_L64.hdf5',
    solve=kuramoto_sivashinsky_64,
    cheaper=({'step': 4 * KS_STEP}, {'step': 16 * KS_STEP}),
    initial=ks_attractor,
    cells=(256,),
    dt=.5,
    conserved=('u',),
    velocity=('u',),
    mirror=True,
    galilean=1.,
    residual=kuramoto_sivashinsky_residual)
