"""
Burgers' equation.

PDEBench's form of it (arXiv 2210.07182; the flux u²/2 of its corrected files):

    ∂u/∂t + ∂(u²/2)/∂x = (ν/π) ∂²u/∂x²,      x in (0, 1) periodic

Values are averages over the cells, as in a finite-volume code, so that the integral of u is conserved to
rounding.

The solver is exact up to quadrature. With D = ν/π, the Cole-Hopf potential θ = -∫u dx / 2D turns the equation
into the heat equation for exp(θ). A step of any length τ is a Gaussian convolution:

    θ(x, t+τ) = log ∫ exp(θ(y, t) - (x - y)²/4Dτ) dy + const

The trapezoidal rule for this integral converges like exp(-2π² 2Dτ/h²). So there is no CFL number, and a shock
may be thinner than a cell, because θ only has a kink there. At small ν, θ spans hundreds of e-foldings.
Therefore each block of points is summed relative to its own maximum, which double precision can hold. A
block is one small matrix product with a Gaussian kernel that all blocks share.
"""
import math

import numpy as np
import torch

from equations import PDE
from equations.common import checked, empty_frames, waves
from equations.derivatives import at_rest, derivative
from runtime.configurator import UserError
from runtime.progress import counted

MIN_SIGMA = 1.25                # least kernel width in cells: quadrature error 4e-14
TAIL = 8.5                      # cut-off of the kernel in widths: exp(-36) = 2e-16
MAX_EXPONENT = 600.             # doubles end at exp(709)
MAX_REFINEMENT = 64             # largest number of internal cells in a given cell


def burgers(u0, nu, t):
    """Solve u_t + (u²/2)_x = (ν/π) u_xx, periodic on (0, 1), for cell averages.

    u0: (B, X) averages over X equal cells, centres (i + .5)/X. nu: PDEBench's ν; the diffusivity is ν/π.
    Returns (B, T, X) float64. Raises UserError as `checked` does, and if ν, the cells and the times need more
    than MAX_REFINEMENT internal cells in a cell.
    """
    u0, t = checked(u0, t, nu=nu)
    n_cells = u0.shape[1]
    diffusivity = nu / math.pi
    u_max = float(u0.abs().max())
    out = empty_frames(u0, t)
    if u_max == 0 or len(t) == 1:
        out[:] = u0[:, None]
        return out
    gaps = np.diff(t)
    longest = _longest_step(diffusivity, u_max)
    refine = _refinement(n_cells, diffusivity, gaps, longest)
    if refine > MAX_REFINEMENT:
        raise UserError(f'nu={nu}, {n_cells} cells and frames {gaps.min():.2g} s apart need {refine} times '
                        f'finer cells inside, at most {MAX_REFINEMENT}: ask for frames further apart, or for '
                        'more cells')
    h = 1 / (n_cells * refine)
    jump = -u0.mean(1) / (2 * diffusivity)                          # θ(x + 1) - θ(x)
    theta = _potential(u0, diffusivity, refine)                     # (B, X refine) at the left edges
    for i, gap in enumerate(counted('solver: frames', gaps)):
        n_sub = max(1, math.ceil(gap / longest))
        for _ in range(n_sub):
            theta = _heat_step(theta, jump, gap / n_sub, diffusivity, u_max, h)
        edges = theta[:, ::refine]                                  # (B, X)
        around = edges[:, :1] + jump[:, None]
        right = torch.cat([edges[:, 1:], around], 1)
        out[:, i + 1] = (edges - right) * (2 * diffusivity * n_cells)
        u_max = float(out[:, i + 1].abs().max())                    # it never grows (maximum principle)
        longest = max(longest, _longest_step(diffusivity, u_max))
    return out


def _refinement(n_cells, diffusivity, gaps, longest):
    """Number of internal cells in a given cell for which the kernel of the shortest step is wide enough."""
    refine = max(1, math.ceil(MIN_SIGMA / n_cells / math.sqrt(2 * diffusivity * gaps.min())))
    if gaps.max() > longest:        # long intervals are split, as far as the grid allows
        shortest = min(longest, gaps.min())
        refine = max(refine, math.ceil(MIN_SIGMA / n_cells / math.sqrt(diffusivity * shortest)))
    return refine


def _longest_step(diffusivity, u_max):
    """Longest step τ for which θ varies by less than MAX_EXPONENT / 2 over the reach of the kernel; the other
    half is for the block. It solves (u_max τ + TAIL sqrt(2Dτ)) u_max / 2D = MAX_EXPONENT / 2."""
    a = u_max
    if a <= 1e-12:
        return math.inf
    b = TAIL * math.sqrt(2 * diffusivity)
    c = -MAX_EXPONENT * diffusivity / max(u_max, 1e-300)
    root = (-b + math.sqrt(b * b - 4 * a * c)) / (2 * a)
    return root ** 2


def _potential(u0, diffusivity, refine):
    """θ at the left edges of the internal cells, (B, X) -> (B, X refine). Values at the edges of given cells
    are exact sums. Between them, the periodic part of θ is interpolated trigonometrically."""
    n_cells = u0.shape[1]
    mean = u0.mean(1, keepdim=True)
    deviation = u0 - mean
    total = deviation.cpu().cumsum(1).to(u0.device) - deviation     # sums on a GPU have no fixed order
    theta = -total / (2 * diffusivity * n_cells)                    # the periodic part
    if refine > 1:
        spectrum = torch.fft.rfft(theta) * refine
        if n_cells % 2 == 0:
            spectrum[:, -1] /= 2                                    # the Nyquist mode is split in two
        theta = torch.fft.irfft(spectrum, n=n_cells * refine)
    index = torch.arange(n_cells * refine, device=u0.device, dtype=torch.float64)
    edges = index / (n_cells * refine)
    return theta - mean * edges / (2 * diffusivity)


def _heat_step(theta, jump, tau, diffusivity, u_max, h):
    """One step τ: convolve exp(θ) with a Gaussian, on M edges with the spacing h. (B, M) -> (B, M)."""
    n_edges = theta.shape[1]
    device = theta.device
    reach = math.ceil((u_max * tau + TAIL * math.sqrt(2 * diffusivity * tau)) / h)
    # long blocks take fewer exponentials; the range of doubles limits their length
    room = int((MAX_EXPONENT * 2 * diffusivity / max(u_max, 1e-300)) / h - reach)
    block = max(8, min(reach, room, n_edges))
    window = block + 2 * reach
    n_block = -(-n_edges // block)
    index = torch.arange(-reach, n_block * block + reach, device=device)
    wraps = torch.div(index, n_edges, rounding_mode='floor')
    padded = theta[:, index - wraps * n_edges] + jump[:, None] * wraps
    windows = padded.unfold(1, window, block)                       # (B, n_block, window)
    top = windows.amax(2, keepdim=True)
    source = torch.arange(window, device=device)[:, None] - reach
    target = torch.arange(block, device=device)[None]
    offset = (source - target).double() * h
    kernel = torch.exp(-offset ** 2 / (4 * diffusivity * tau))      # (window, block)
    theta = (torch.exp(windows - top) @ kernel).log() + top         # (B, n_block, block)
    theta = theta.flatten(1)[:, :n_edges]
    return theta - theta[:, :1]                                     # a constant in θ does not change u


def burgers_residual(u0, u1, dt, params, axes):
    """Residual of u_t + (u²/2)_x - (ν/π) u_xx between the frames u0, u1 (B, X, 1), dt (B,) seconds apart:
    (B, X, 1). params: {'nu': (B,)}; axes: [x]."""
    return residual_at_rest(u0, u1, dt, params['nu'] / math.pi, axes, 1.)


def residual_at_rest(u0, u1, dt, diffusivity, axes, speed):
    """Residual of u_t + speed (u²/2)_x - diffusivity u_xx, by the midpoint rule in the frame of reference of
    the mean flow and by Fourier derivatives. Shapes are those of `burgers_residual`; diffusivity: (B,)."""
    x, = axes
    v0, v1 = at_rest(u0[..., 0], u1[..., 0], dt, x, speed)
    v = (v0 + v1) / 2
    flux = speed / 2 * v ** 2 - diffusivity[:, None] * derivative(v, x, 0)
    residual = (v1 - v0) / dt[:, None] + derivative(flux, x, 0)
    return residual[..., None]


ENTRY = PDE(
    fields=('u',),
    params={'Nu': .01},
    space=((0, 1),),
    boundary='periodic',
    file='1D_Burgers_Sols_Nu{Nu}.hdf5',
    solve=burgers,
    initial=waves,
    conserved=('u',),
    velocity=('u',),
    mirror=True,
    galilean=1.,
    dissipative=True,
    residual=burgers_residual)
