"""
Darcy's equation.

    -∇·(a ∇u) = β,      x, y in (0, 1),      u = 0 on the boundary
"""
import math

import numpy as np
import torch
from torch.nn.functional import pad

from equations import PDE
from equations.common import ZERO, centres, checked, exchange_axes, generators, indices, sum_of_squares
from runtime.configurator import UserError

DARCY_TOLERANCE = 1e-10         # largest rms of the residual in units of β
DARCY_ITERATIONS = 1000
PERMEABILITY_WAVES = 64         # cosines along each axis of the random field of `permeability`


def darcy(a, beta, tolerance=DARCY_TOLERANCE):
    """Solve -∇·(a ∇u) = β on the unit square, u = 0 on the boundary.

    a: (B, X, Y) positive coefficients in the cells, centres ((i + .5)/X, (j + .5)/Y). beta: β. Returns u at
    the cell centres, (B, X, Y) float64. Raises UserError as `checked` does, for coefficients that are not
    positive, and if the iteration does not converge.

    Finite volumes with harmonic means at the faces. Conjugate gradients, preconditioned by the equation with
    a = 1, run until the rms of the residual of each field is below `tolerance` β. The order is 2 for smooth
    a: nrmse 3.8e-4 on 64 x 128 cells for a constant. It is 1 for coefficients that jump: on cells twice as
    fine, the solution for `permeability` on 128² cells changes by 4e-3 (6e-3 at most). A field on 128² cells
    takes 39 iterations and 31 ms of one CPU thread.
    """
    a, _ = checked(a, [0.], axes=2, beta=beta, tolerance=tolerance)
    if not (a > 0).all():
        raise UserError('the coefficient a must be positive')
    faces = _conductances(a)
    sine_x, eigenvalue_x = _sines(a.shape[1], a.device)
    sine_y, eigenvalue_y = _sines(a.shape[2], a.device)
    eigenvalue = eigenvalue_x[:, None] + eigenvalue_y

    def preconditioned(r):                                          # the solution for a = 1
        spectrum = sine_x @ r @ sine_y.T
        return sine_x.T @ (spectrum / eigenvalue) @ sine_y

    u = torch.zeros_like(a)
    r = torch.ones_like(a)                                          # for β = 1: u is linear in β
    z = preconditioned(r)
    direction = z
    power = _inner(r, z)
    for _ in range(DARCY_ITERATIONS):
        image = darcy_operator(direction, faces)
        length = _ratio(power, _inner(direction, image))
        u = u + length * direction
        r = r - length * image
        residual = (r ** 2).mean((1, 2)).sqrt()
        if residual.max() <= tolerance:
            return beta * u
        z = preconditioned(r)
        previous = power
        power = _inner(r, z)
        direction = z + _ratio(power, previous) * direction
    raise UserError(f'darcy has not converged: a spans {float(a.min()):g} to {float(a.max()):g}')


def darcy_operator(u, faces):
    """-∇·(a ∇u) in the cells for u (B, X, Y). faces: the two tensors of `_conductances`."""
    along_x, along_y = faces
    walled_x = pad(u, (0, 0, 1, 1))                                 # u = 0 beyond the boundary
    walled_y = pad(u, (1, 1, 0, 0))
    flux_x = along_x * walled_x.diff(dim=1)
    flux_y = along_y * walled_y.diff(dim=2)
    return -flux_x.diff(dim=1) - flux_y.diff(dim=2)


def _conductances(a):
    """a/h² at the faces along both axes, (B, X+1, Y) and (B, X, Y+1)."""
    along_x = _face_values(a) * a.shape[1] ** 2
    along_y = _face_values(a.transpose(1, 2)) * a.shape[2] ** 2
    return along_x, along_y.transpose(1, 2)


def _face_values(a):
    """Harmonic means of neighbouring cells, and 2a at the boundary, which is half a cell away.
    (B, X, Y) -> (B, X+1, Y)."""
    left = a[:, :-1]
    right = a[:, 1:]
    inner = 2 * left * right / (left + right)
    return torch.cat([2 * a[:, :1], inner, 2 * a[:, -1:]], 1)


def darcy_residual(u0, u1, dt, params, axes):
    """Residual of -∇·(a ∇u) = β with u = 0 on the boundary, in units of β: (B, X, Y, 1). u1: (B, X, Y, 2), a
    and u at the cell centres of the unit square. params: {'beta': (B,)}. A steady equation does not use u0,
    dt and axes."""
    a, u = u1.unbind(-1)
    beta = params['beta'].view(-1, 1, 1)
    residual = darcy_operator(u, _conductances(a)) / beta - 1
    return residual[..., None]


def _ratio(a, b):
    """a / b, or 0 for a field whose residual is already 0 while others of the batch go on."""
    return torch.where(a > 0, a / b, 0.)


def _inner(u, v):
    """Σ u v over the cells, (B, 1, 1)."""
    return (u * v).sum((1, 2), keepdim=True)


def _sines(n_cells, device):
    """Eigenvectors (X, X), one a row, and eigenvalues (X,) of -∂xx on the cells of (0, 1) with u = 0 at both
    ends (a DST-II)."""
    index = indices(n_cells, device)
    angle = math.pi / n_cells * (index + 1)
    sine = torch.sin(angle[:, None] * (index + .5))
    sine = sine / sine.norm(dim=1, keepdim=True)
    return sine, 4 * n_cells ** 2 * torch.sin(angle / 2) ** 2


# ---------------------------------------------------------------------------------------------
# initial fields

def permeability(n, cells, seed=0, first=0):
    """Coefficients of Darcy's equation at the cell centres of the unit square, (n, X, Y) float64, .1 or 1.

    They are 1 where a Gaussian random field N(0, (-Δ + 9)^-2) with no flux at the boundary and no mean (arXiv
    2010.08895, section 5.2) is positive, and .1 elsewhere. The two values are PDEBench's, whose random field
    may be a different one. The field has 64 cosines along each axis on any grid, so that all grids hold the
    same fields. Sample i depends on (seed, first + i) alone.
    """
    wave = np.arange(PERMEABILITY_WAVES)
    norm = np.where(wave > 0, np.sqrt(2), 1)
    std = norm[:, None] * norm / (np.pi ** 2 * sum_of_squares(wave) + 9)
    std[0, 0] = 0
    basis_x, basis_y = [np.cos(np.pi * centres(n_cells)[:, None] * wave) for n_cells in cells]
    a = np.empty((n, *cells))
    for row, rng in enumerate(generators(n, seed, first)):
        field = basis_x @ (std * rng.standard_normal(std.shape)) @ basis_y.T
        a[row] = np.where(field > 0, 1., .1)
    return a


# A map a -> u. Further relations: u(beta) = beta u(1) and u(c a) = u(a)/c.
ENTRY = PDE(
    fields=('a', 'u'),
    params={'beta': 1.},
    space=((0, 1), (0, 1)),
    boundary='wall',
    file='2D_DarcyFlow_beta{beta}_Train.hdf5',
    layout='steady',
    solve=darcy,
    cheaper=({'tolerance': 1e-4}, {'tolerance': 1e-2}),
    initial=permeability,
    cells=(128, 128),
    frames=2,
    dt=1.,
    static=('a',),
    mirror=True,
    symmetry=exchange_axes,
    positive=('a', 'u'),
    steady=True,
    walls={'u': (ZERO, ZERO)},
    residual=darcy_residual)
