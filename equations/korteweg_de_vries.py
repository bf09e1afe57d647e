"""
Korteweg-de Vries.

    ∂u/∂t + u ∂u/∂x + μ ∂³u/∂x³ = 0,      x in (0, 128) periodic

μ is the dispersion. Smooth fields steepen and break up into solitons 3c sech²(√(c/4μ) (x - ct)). They pass
through one another, and the integrals of u and u² stay. The domain and the initial fields are those of
arXiv 2202.07643, where μ = 1. The scheme is that of equations/kuramoto_sivashinsky.py. The equation has no
mirror symmetry: dispersion has a direction.
"""
import math

import torch

from equations import PDE
from equations.common import checked, self_advection, wave_numbers
from equations.derivatives import at_rest, derivative
from equations.kuramoto_sivashinsky import ks_waves
from runtime.configurator import UserError

LENGTH = 128.
KDV_STEP = .025                 # longest step in seconds
KDV_CELLS = 256.                # internal cells, times μ^(1/2)
KDV_REFINEMENT = 32             # largest number of internal cells in a given cell
KDV_SHORT = .05                 # largest share of energy in the shorter half of the waves; beyond it the error
                                # is 5 % or more


def korteweg_de_vries(u0, dispersion, t, refine=None):
    """Solve u_t + u u_x + μ u_xxx = 0, periodic on (0, 128).

    u0: (B, X) values at the cell centres. dispersion: μ. refine: number of internal cells in a given cell, by
    default enough for fields of `ks_waves` with that μ. Returns (B, T, X) float64. Raises UserError as
    `checked` does, if the internal cells are too few for the waves that arise, and if μ needs more than
    KDV_REFINEMENT of them in a cell.

    For fields of `ks_waves` at μ = 1, 256 internal cells and t = 10, 20, 50 the mean nrmse against 512 is
    9e-5 or less, and 1.3e-3 at most. That due to the steps is 1e-7, 1e-6, 3e-5 at most (against steps half as
    long). A trajectory of 50 s takes 30 ms of a CPU core, in batches of 32.
    """
    u0, t = checked(u0, t, dispersion=dispersion)
    n_cells = u0.shape[1]
    if refine is None:
        refine = math.ceil(KDV_CELLS / dispersion ** .5 / n_cells)
    advice = 'ask for more cells or a larger dispersion'
    if refine > KDV_REFINEMENT:
        raise UserError(f'dispersion={dispersion} needs {refine} times finer cells inside, at most '
                        f'{KDV_REFINEMENT}: {advice}')
    fine = u0
    if refine > 1:
        resolved = torch.fft.rfft(u0)[:, :(n_cells + 1) // 2]
        fine = torch.fft.irfft(resolved * refine, n=n_cells * refine)
    k = wave_numbers(fine, LENGTH)
    fine = self_advection(fine, LENGTH, t, 1j * dispersion * k ** 3, KDV_STEP)
    energy = torch.fft.rfft(fine).abs().square()
    rounding = 1e-24 * energy[..., 0]
    short = energy[..., len(k) // 3:].sum(-1)                        # of those that the 2/3 rule keeps, half
    if not (short <= KDV_SHORT * energy[..., 1:].sum(-1) + rounding).all():
        raise UserError(f'{n_cells * refine} cells are too few for the short waves that arise: {advice}')
    out = fine[..., ::refine].contiguous()
    out[:, 0] = u0
    return out


def korteweg_de_vries_residual(u0, u1, dt, params, axes):
    """Residual of u_t + u u_x + μ u_xxx between the frames u0, u1 (B, X, 1), dt (B,) seconds apart: (B, X, 1),
    by the midpoint rule in the frame of reference of the mean flow and by Fourier derivatives.
    params: {'dispersion': (B,)}; axes: [x]."""
    x, = axes
    v0, v1 = at_rest(u0[..., 0], u1[..., 0], dt, x, 1.)
    v = (v0 + v1) / 2
    flux = v ** 2 / 2 + params['dispersion'][:, None] * derivative(v, x, 0, 2)
    residual = (v1 - v0) / dt[:, None] + derivative(flux, x, 0)
    return residual[..., None]


ENTRY = PDE(
    fields=('u',),
    params={'Dispersion': 1.},
    space=((0, LENGTH),),
    boundary='periodic',
    file='1D_KdV_L128_Dispersion{Dispersion}.hdf5',
    solve=korteweg_de_vries,
    cheaper=({'refine': 1},),
    initial=ks_waves,
    cells=(256,),
    frames=101,
    dt=.5,
    conserved=('u',),
    velocity=('u',),
    galilean=1.,
    dissipative=True,
    residual=korteweg_de_vries_residual)
