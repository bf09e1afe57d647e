"""
Darcy's equation.

    -∇·(a ∇u) = β,      x, y in (0, 1),      u = 0 on the boundary
"""
import math

import numpy as np
import torch
from torch.nn.functional import pad

from numerics.common import centres, checked, generators, indices, sum_of_squares
from runtime.configurator import UserError

DARCY_TOLERANCE = 1e-10         # of the residual relative to β
DARCY_ITERATIONS = 1000


def darcy(a, beta, tolerance=DARCY_TOLERANCE):
    """Solve -∇·(a ∇u) = β on the unit square, u = 0 on the boundary.

    a: (B, X, Y) positive coefficients in the cells, centres ((i + .5)/X, (j + .5)/Y). beta: β. Returns u at
    the cell centres, (B, X, Y) float64. Raises UserError as `checked` does, for coefficients that are not
    positive, and where the iteration does not end.

    Finite volumes with harmonic means at the faces, solved by conjugate gradients, preconditioned by the
    equation with a = 1, until the residual of each field is below `tolerance` β (rms). Order 2 for smooth a:
    nrmse 3.8e-4 on 64 x 128 cells for a constant. Jumps allow order 1: for `permeability` on 128² cells the
    same coefficient on cells twice as fine changes 4e-3 (6e-3 at most). 39 iterations and 31 milliseconds a
    field on 128² cells and one thread of a CPU.
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
    r = torch.ones_like(a)                                          # β enters at the end: u is linear in it
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
    """-∇·(a ∇u) for u (B, X, Y) and the two of `_conductances`."""
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
    """Harmonic means between the cells, and 2a at the boundary, which is half a cell away. (B, X+1, Y)."""
    left = a[:, :-1]
    right = a[:, 1:]
    inner = 2 * left * right / (left + right)
    return torch.cat([2 * a[:, :1], inner, 2 * a[:, -1:]], 1)


def darcy_residual(u0, u1, dt, params, axes):
    """How far u is from solving -∇·(a ∇u) = β, u = 0 on the boundary, in units of β. u1 (B, X, Y, 2): a and u
    at the centres of the cells of the unit square; params: {'beta': (B,)}. u0, dt and axes are those of
    equations that have a time. Returns (B, X, Y, 1)."""
    a, u = u1.unbind(-1)
    beta = params['beta'].view(-1, 1, 1)
    residual = darcy_operator(u, _conductances(a)) / beta - 1
    return residual[..., None]


def _ratio(a, b):
    """a / b, or 0 where nothing is left of a field's residual while others of the batch go on."""
    return torch.where(a > 0, a / b, 0.)


def _inner(u, v):
    """Σ u v over the cells, (B, 1, 1)."""
    return (u * v).sum((1, 2), keepdim=True)


def _sines(n_cells, device):
    """Eigenvectors (X, X), one a row, and eigenvalues (X,) of -∂xx on the cells of (0, 1) with u = 0 at the
    ends (a DST-II)."""
    index = indices(n_cells, device)
    angle = math.pi / n_cells * (index + 1)
    sine = torch.sin(angle[:, None] * (index + .5))
    sine = sine / sine.norm(dim=1, keepdim=True)
    return sine, 4 * n_cells ** 2 * torch.sin(angle / 2) ** 2


# ---------------------------------------------------------------------------------------------
# initial conditions

PERMEABILITY_WAVES = 64         # cosines an axis of the field behind `permeability`


def permeability(n, cells, seed=0, first=0):
    """Coefficients of Darcy's equation at the cell centres of the unit square, (n, X, Y) float64, .1 or 1.

    1 where a Gaussian random field N(0, (-Δ + 9)^-2) without flux at the boundary and without a mean (arXiv
    2010.08895, section 5.2) is positive, .1 elsewhere; both are PDEBench's values, whose field may be another
    one. The field has 64 cosines an axis whatever the cells, so that grids of different sizes hold the same
    one. Sample i depends on (seed, first + i) alone.
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
