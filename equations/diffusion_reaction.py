"""
Diffusion-reaction.

FitzHugh-Nagumo as PDEBench has it (arXiv 2210.07182):

    ∂u/∂t = D_u Δu + u - u³ - k - v,      ∂v/∂t = D_v Δv + u - v,      x, y in (-1, 1), no flux
    D_u = 1e-3,   D_v = 5e-3,   k = 5e-3

As in PDEBench, Δ is the 5-point Laplacian of the given cells: the initial fields are white noise, which no
grid resolves, so that the grid is part of the problem. The Laplacian is a sum of one matrix for each axis.
Hence its exponential is a product of two small matrices, and diffusion alone is exact for any step.
"""
import math

import numpy as np
import torch

from equations import PDE
from equations.common import NO_FLUX, checked, empty_frames, exchange_axes, generators, indices
from equations.derivatives import spacing
from grids import padded
from runtime.progress import counted

DIFFUSIVITY = (1e-3, 5e-3)      # of u and v
FITZHUGH_K = 5e-3
DR_STEP = .025                  # longest step in seconds


def diffusion_reaction(u0, t, step=DR_STEP):
    """Solve u_t = D_u Δu + u - u³ - k - v, v_t = D_v Δv + u - v on (-1, 1)² without flux through the walls.

    u0: (B, X, Y, 2) of u and v in the cells, centres -1 + (2i + 1)/X. step: longest step in seconds. Returns
    (B, T, X, Y, 2) float64. Raises UserError as `checked` does.

    Δ is the 5-point Laplacian, of order 2 for fields that the cells resolve. The steps are Strang splitting
    with the local extrapolation (4 S(τ/2)² - S(τ))/3, of order 4; there is no CFL number. From white noise on
    128² cells until t = 5, the result differs by 7e-5 from that of half the step (nrmse, mean over the
    frames; 1e-4 at most); for step=.0125 this is 5e-6. A trajectory of 101 frames takes 1.0 s of one CPU
    thread, and .2 s on 64² cells.
    """
    u0, t = checked(u0, t, axes=2, channels=2, step=step)
    n_x = u0.shape[1]
    n_y = u0.shape[2]
    out = empty_frames(u0, t)
    u = u0.movedim(3, 1)                                            # (B, 2, X, Y)
    tau = 0.
    for i, gap in enumerate(counted('solver: frames', np.diff(t))):
        n_step = math.ceil(gap / step * (1 - 1e-9))                 # a gap of 2.0000001 steps takes two
        if not math.isclose(tau, gap / n_step):
            tau = gap / n_step
            whole = [_spreading(n_cells, tau, u.device) for n_cells in (n_x, n_y)]
            half = [_spreading(n_cells, tau / 2, u.device) for n_cells in (n_x, n_y)]
        for _ in range(n_step):
            once = _strang(u, tau, whole)
            twice = _strang(u, tau / 2, half)
            twice = _strang(twice, tau / 2, half)
            u = (4 * twice - once) / 3                              # the errors of order τ³ cancel
        out[:, i + 1] = u.movedim(1, 3)
    return out


def _strang(u, tau, spreading):
    """Half a step of reaction, one of diffusion, half a step of reaction. (B, 2, X, Y) -> (B, 2, X, Y)."""
    along_x, along_y = spreading
    u = along_x @ _react(u, tau / 2) @ along_y
    return _react(u, tau / 2)


def _spreading(n_cells, tau, device):
    """exp(τ D ∂xx) on the cells of (-1, 1) for both diffusivities, (2, X, X). The eigenvectors of the 3-point
    Laplacian without flux at the ends are cosines (a DCT-II)."""
    index = indices(n_cells, device)
    angle = math.pi / n_cells * index
    cosine = torch.cos(angle[:, None] * (index + .5))               # one eigenvector a row
    cosine = cosine / cosine.norm(dim=1, keepdim=True)
    width = 2 / n_cells
    eigenvalue = -4 / width ** 2 * torch.sin(angle / 2) ** 2
    diffusivity = torch.tensor(DIFFUSIVITY, dtype=torch.float64, device=device)
    decay = torch.exp(diffusivity[:, None] * tau * eigenvalue)
    return cosine.T @ (decay[..., None] * cosine)


def _react(u, tau):
    """A step of u' = u - u³ - k - v, v' = u - v in each cell by the classical Runge-Kutta method."""
    def rate(fields):
        u, v = fields.unbind(1)
        return torch.stack([u - u ** 3 - FITZHUGH_K - v, u - v], 1)

    a = rate(u)
    b = rate(u + tau / 2 * a)
    c = rate(u + tau / 2 * b)
    d = rate(u + tau * c)
    return u + tau / 6 * (a + 2 * b + 2 * c + d)


def diffusion_reaction_residual(u0, u1, dt, params, axes):
    """Residuals of u_t - D_u Δu - (u - u³ - k - v) and v_t - D_v Δv - (u - v) between the frames u0, u1
    (B, X, Y, 2), dt (B,) seconds apart: (B, X, Y, 2), by the midpoint rule and the 5-point Laplacian. axes:
    [x, y], cell centres."""
    middle = (u0 + u1).movedim(3, 1) / 2                            # (B, 2, X, Y)
    walled = padded(middle, (1, 1), periodic=False)
    curve_x = walled[..., 1:-1].diff(2, 2)
    curve_x = curve_x / spacing(axes[0]) ** 2
    curve_y = walled[..., 1:-1, :].diff(2, 3)
    curve_y = curve_y / spacing(axes[1]) ** 2
    laplacian_u, laplacian_v = (curve_x + curve_y).unbind(1)
    u, v = middle.unbind(1)
    reaction_u = u - u ** 3 - FITZHUGH_K - v
    reaction_v = u - v
    rate_u = DIFFUSIVITY[0] * laplacian_u + reaction_u
    rate_v = DIFFUSIVITY[1] * laplacian_v + reaction_v
    rate = torch.stack([rate_u, rate_v], -1)
    dt = dt.view(-1, 1, 1, 1)
    return (u1 - u0) / dt - rate


# ---------------------------------------------------------------------------------------------
# initial fields

def white_noise(n, cells, seed=0, first=0):
    """Initial fields of PDEBench's diffusion-reaction files, (n, X, Y, 2) float64: independent N(0, 1)
    numbers in each cell and field. Sample i depends on (seed, first + i) alone, and on the grid."""
    u0 = np.empty((n, *cells, 2))
    for row, rng in enumerate(generators(n, seed, first)):
        u0[row] = rng.standard_normal((*cells, 2))
    return u0


# Between walls there are no translations. No integral is conserved, and u and v have either sign.
ENTRY = PDE(
    fields=('u', 'v'),
    params={},
    space=((-1, 1), (-1, 1)),
    boundary='wall',
    file='2D_diff-react_NA_NA.h5',
    layout='groups',
    solve=diffusion_reaction,
    cheaper=({'step': 2 * DR_STEP}, {'step': 4 * DR_STEP}, {'step': 8 * DR_STEP}),
    initial=white_noise,
    cells=(128, 128),
    frames=101,
    dt=.05,
    mirror=True,
    symmetry=exchange_axes,
    test='last',
    walls={'u': (NO_FLUX, NO_FLUX), 'v': (NO_FLUX, NO_FLUX)},
    residual=diffusion_reaction_residual)
