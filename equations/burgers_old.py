"""
Burgers' equation of PDEBench's first files, whose flux lacks the factor 1/2:

    ∂u/∂t + ∂(u²)/∂x = (ν/π) ∂²u/∂x²,      x in (-1, 1) periodic

These files have the same names as the corrected ones (burgers.py), so this entry has a folder of its own.
"""
import math
import os

from equations import PDE
from equations.burgers import burgers, residual_at_rest
from equations.common import waves


def burgers_old(u0, nu, t):
    """Solve u_t + (u²)_x = (ν/π) u_xx, periodic on (-1, 1), for cell averages.

    With x' = (x + 1)/2, a derivative in x is half of one in x'. Hence (u²)_x = (u²/2)_x' and u_xx = u_x'x'/4:
    the same u solves the corrected equation on (0, 1) with ν/4. Arguments, result and errors are those of
    `burgers`.
    """
    return burgers(u0, nu / 4, t)


def burgers_old_residual(u0, u1, dt, params, axes):
    """Residual of u_t + (u²)_x - (ν/π) u_xx. Arguments and result are those of `burgers_residual`."""
    return residual_at_rest(u0, u1, dt, params['nu'] / math.pi, axes, 2.)


ENTRY = PDE(
    fields=('u',),
    params={'Nu': .01},
    space=((-1, 1),),
    boundary='periodic',
    file=os.path.join('old', '1D_Burgers_Sols_Nu{Nu}.hdf5'),
    solve=burgers_old,
    initial=waves,
    conserved=('u',),
    velocity=('u',),
    mirror=True,
    galilean=2.,
    dissipative=True,
    residual=burgers_old_residual,
    note='of the old generation (x in (-1, 1)): it solves u_t + (u²)_x, without the 1/2 of the corrected '
         'files; figures on the two are not comparable')
