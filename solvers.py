"""
Numerical solvers, one section an equation, so that nothing has to be downloaded.

    python solvers.py burgers --n 1000 --nu 0.01          # datasets/1D_Burgers_Sols_Nu0.01_N1000.hdf5
    python solvers.py advection --n 1000 --beta 0.4 --device cuda

A solver takes initial fields u0 (B, *cells) at the cells of a uniform grid, the PDE's parameters as plain
numbers, and increasing times t in seconds that start at 0. It returns the fields at those times, (B, T,
*cells), in float64 and on u0's device. u0 may be an array or a tensor; where a device has no float64, the
solver runs on the CPU. pdes.py says which solver an equation has, files.py writes what it returns.
"""
import math

import numpy as np
import torch

from runtime.configurator import UserError

# kernels of the Burgers solver
MIN_SIGMA = 1.25                # kernel width in cells: trapezoid error 4e-14
TAIL = 8.5                      # kernel cut-off in widths: exp(-36) = 2e-16
MAX_EXPONENT = 600.             # doubles end at exp(709)
MAX_REFINEMENT = 64             # finest internal grid, in cells per given cell

WAVES_PERIOD = 1 - 1 / 1024     # PDEBench's: the distance from its first to its last cell centre


def checked(u0, t, **params):
    """The arguments of a solver in one dimension, u0 (B, X) as a float64 tensor and t (T,) as a float64
    array.

    Raises UserError for another shape, values that are not finite, times that do not increase from 0, and
    parameters (by name) that are not positive and finite.
    """
    u0 = torch.as_tensor(u0)
    if u0.device.type == 'mps':
        u0 = u0.cpu()
    u0 = u0.double()
    t = np.asarray(t, dtype=np.float64)
    if u0.ndim != 2 or u0.shape[1] < 2:
        raise UserError(f'u0 has shape {tuple(u0.shape)}; expected (batch, cells) with 2 or more cells')
    for name, value in params.items():
        if not (value > 0 and math.isfinite(value)):
            raise UserError(f'{name}={value} must be positive and finite')
    starts_at_zero = t.ndim == 1 and len(t) > 0 and t[0] == 0
    if not starts_at_zero or not (np.diff(t) > 0).all() or not np.isfinite(t).all():
        raise UserError('times must start at 0 and increase')
    if not torch.isfinite(u0).all():
        raise UserError('u0 holds values that are not finite')
    return u0, t


# ---------------------------------------------------------------------------------------------
# Burgers
#
# PDEBench's form of it (arXiv 2210.07182; the flux u²/2 of its corrected files):
#
#     ∂u/∂t + ∂(u²/2)/∂x = (ν/π) ∂²u/∂x²,      x in (0, 1) periodic
#
# Cell values are cell averages, as in any finite-volume code, so the integral of u is conserved to rounding.
#
# The solver is exact up to quadrature. With D = ν/π the Cole-Hopf potential θ = -∫u dx / 2D turns the
# equation into the heat equation for exp(θ), and one step of any length τ is a Gaussian convolution, a
# log-sum-exp:
#
#     θ(x, t+τ) = log ∫ exp(θ(y, t) - (x - y)²/4Dτ) dy + const
#
# The trapezoidal rule for it converges like exp(-2π² 2Dτ/h²). So there is no CFL number, and a shock thinner
# than a cell costs nothing, because θ only has a kink there. θ spans hundreds of e-foldings at small ν.
# Therefore the sum is taken block by block relative to the block's own maximum, where double precision
# suffices. A block is then one small matrix product with a shared Gaussian kernel.

def burgers(u0, nu, t):
    """Solve u_t + (u²/2)_x = (ν/π) u_xx, periodic on (0, 1), for cell averages.

    u0: (B, X) averages over X equal cells, centres (i + .5)/X. nu: PDEBench's ν; the diffusivity is ν/π.
    Returns (B, len(t), X) float64. Raises UserError as `checked` does, and where ν, the cells and the times
    would need too fine a grid.
    """
    u0, t = checked(u0, t, nu=nu)
    n_batch, n_cells = u0.shape
    diffusivity = nu / math.pi
    u_max = float(u0.abs().max())
    out = torch.empty(n_batch, len(t), n_cells, dtype=torch.float64, device=u0.device)
    out[:, 0] = u0
    if u_max == 0 or len(t) == 1:
        out[:] = u0[:, None]
        return out
    gaps = np.diff(t)
    longest = _longest_step(diffusivity, u_max)
    refine = _refinement(n_cells, diffusivity, gaps, longest)
    if refine > MAX_REFINEMENT:
        raise UserError(f'nu={nu}, {n_cells} cells and a time step of {gaps.min():.2g} s need {refine} times '
                        f'finer cells inside (at most {MAX_REFINEMENT}): ask for later times or more cells')
    h = 1 / (n_cells * refine)
    jump = -u0.mean(1) / (2 * diffusivity)                          # θ(x + 1) - θ(x)
    theta = _potential(u0, diffusivity, refine)                     # (B, X refine) at the left edges
    for i, gap in enumerate(gaps):
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


def burgers_old(u0, nu, t):
    """Solve u_t + (u²)_x = (ν/π) u_xx, periodic on (-1, 1), the equation of PDEBench's first files.

    With x' = (x + 1)/2 each derivative in x is half of one in x', so (u²)_x = (u²/2)_x' and u_xx = u_x'x' /
    4: the same u solves the corrected equation on (0, 1) with ν/4. Arguments, result and errors are those of
    `burgers`.
    """
    return burgers(u0, nu / 4, t)


def _refinement(n_cells, diffusivity, gaps, longest):
    """Cells inside a given cell, so that the kernel of the shortest step is wide enough for the
    quadrature."""
    refine = max(1, math.ceil(MIN_SIGMA / n_cells / math.sqrt(2 * diffusivity * gaps.min())))
    if gaps.max() > longest:        # long intervals are split, but never below what the grid resolves
        shortest = min(longest, gaps.min())
        refine = max(refine, math.ceil(MIN_SIGMA / n_cells / math.sqrt(diffusivity * shortest)))
    return refine


def _longest_step(diffusivity, u_max):
    """Longest τ for which θ varies by less than MAX_EXPONENT over one kernel's reach (half of it is kept for
    the block). With the diffusivity D it solves (u_max τ + TAIL sqrt(2Dτ)) u_max / 2D = MAX_EXPONENT / 2."""
    a = u_max
    if a <= 1e-12:
        return math.inf
    b = TAIL * math.sqrt(2 * diffusivity)
    c = -MAX_EXPONENT * diffusivity / max(u_max, 1e-300)
    root = (-b + math.sqrt(b * b - 4 * a * c)) / (2 * a)
    return root ** 2


def _potential(u0, diffusivity, refine):
    """θ at the left edges of the refined cells, (B, X) -> (B, X refine). Values at the given edges are exact
    sums; between them the periodic part is interpolated trigonometrically."""
    n_cells = u0.shape[1]
    mean = u0.mean(1, keepdim=True)
    total = torch.cumsum(u0 - mean, 1) - (u0 - mean)
    theta = -total / (2 * diffusivity * n_cells)                    # the periodic part
    if refine > 1:
        spectrum = torch.fft.rfft(theta) * refine
        if n_cells % 2 == 0:
            spectrum[:, -1] /= 2                                    # the Nyquist mode has two halves
        theta = torch.fft.irfft(spectrum, n=n_cells * refine)
    index = torch.arange(n_cells * refine, device=u0.device, dtype=torch.float64)
    edges = index / (n_cells * refine)
    return theta - mean * edges / (2 * diffusivity)


def _heat_step(theta, jump, tau, diffusivity, u_max, h):
    """One Gaussian convolution of exp(θ) over τ, on M edges a distance h apart. (B, M) -> (B, M)."""
    n_edges = theta.shape[1]
    device = theta.device
    reach = math.ceil((u_max * tau + TAIL * math.sqrt(2 * diffusivity * tau)) / h)
    # long blocks need fewer exponentials, short ones less range: the longest that still fits is taken
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
    return theta - theta[:, :1]                                     # the constant carries nothing


# ---------------------------------------------------------------------------------------------
# Advection
#
#     ∂u/∂t + β ∂u/∂x = 0,      x in (0, 1) periodic,      u(x, t) = u0(x - βt)

def advection(u0, beta, t):
    """Solve u_t + β u_x = 0, periodic on (0, 1), by moving the trigonometric interpolant of u0 by βt.

    u0: (B, X) values at, or averages over, X equal cells; both move alike. beta: β in domains a second.
    Returns (B, len(t), X) float64. Raises UserError as `checked` does.

    The integral is kept, one move is the sum of two (but for the wave of ±1 cells), and a revolution or any
    whole number of cells gives exact values back. Fields that the cells resolve are exact to rounding. Those
    of `waves` have kinks and a jump over one cell at the seam, where three quarters of the squared error lie:
    on 1024 cells and a third of a cell off the grid their nrmse against u0(x - βt) is 1.3e-4 on average and
    1.4e-3 at most, whatever the time, without ringing (2e-4 beyond the extremes). At two fifths of a cell it
    is 1.5e-4 and 1.5e-3. Linear and cubic interpolation have 1.4e-4 and 1.1e-4 on average at a third.
    """
    u0, t = checked(u0, t, beta=beta)
    n_cells = u0.shape[1]
    distance = torch.from_numpy(beta * t % 1).to(u0.device)         # whole revolutions change nothing
    wave = torch.arange(n_cells // 2 + 1, device=u0.device)
    angle = 2 * math.pi * distance[:, None] * wave
    turn = torch.polar(torch.ones_like(angle), -angle)              # (T, K)
    if n_cells % 2 == 0:
        turn[:, -1] = turn[:, -1].real                              # the wave of ±1 cells has no sine here
    spectrum = torch.fft.rfft(u0)[:, None] * turn
    u = torch.fft.irfft(spectrum, n=n_cells)
    u[:, 0] = u0
    return u


# ---------------------------------------------------------------------------------------------
# initial conditions

def waves(n, cells, seed=0, first=0):
    """Initial conditions of PDEBench's 1D distribution at the cell centres, (n, X) float64 for cells = (X,).

    u0 = s |·|? Σ_{i=1..4} A_i sin(2π i n_i x / P + φ_i), A_i ~ U[0, 1), φ_i ~ U[0, 2π), where n_i counts how
    often i was drawn in two draws from 1..4. Its quirks are kept: a mode not drawn adds the constant
    A_i sin φ_i (so most samples have a mean); a mode drawn twice doubles its wave number (up to 8);
    P = 1 - 1/1024 is the distance from first to last centre; one sample in ten is |u|; each has a random
    sign; one in ten is windowed to (xL, xR) by tanh ramps of width .01. Unlike there, all draws are
    independent. Sample i depends on (seed, first + i) alone: every parameter, and every n, shares them.
    """
    n_cells, = cells
    x = (np.arange(n_cells) + .5) / n_cells
    u0 = np.empty((n, n_cells))
    for row in range(n):
        rng = np.random.default_rng([seed, first + row])
        count = np.bincount(rng.integers(0, 4, 2), minlength=4)
        amplitude = rng.uniform(size=4)
        phase = 2 * np.pi * rng.uniform(size=4)
        wave = np.arange(1, 5) * count
        angle = 2 * np.pi * wave[:, None] * x / WAVES_PERIOD + phase[:, None]
        u = (amplitude[:, None] * np.sin(angle)).sum(0)
        is_abs = rng.uniform() < .1
        sign = rng.choice([-1., 1.])
        is_window = rng.uniform() < .1
        left = rng.uniform(.1, .45)
        right = rng.uniform(.55, .9)
        u = sign * (np.abs(u) if is_abs else u)
        if is_window:
            u = u * .5 * (np.tanh((x - left) / .01) - np.tanh((x - right) / .01))
        u0[row] = u
    return u0


if __name__ == '__main__':
    from files import make_command      # only here: files.py imports pdes.py, and pdes.py imports this file
    make_command()
