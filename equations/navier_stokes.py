"""
Navier-Stokes in two dimensions: the vorticity of a forced flow (arXiv 2010.08895, section 5.3).

    ∂ω/∂t + u·∇ω = ν Δω + f,      u = (∂ψ/∂y, -∂ψ/∂x),   -Δψ = ω,      x, y in (0, 1) periodic
    f = .1 (sin 2π(x + y) + cos 2π(x + y))

u·∇ω is computed as the curl of the momentum flux, (∂xx - ∂yy) uv + ∂xy (v² - u²), which needs four Fourier
transforms instead of five. With the 2/3 rule products have no aliasing errors. Hence both forms are the same,
and the budgets of energy and enstrophy are exact up to the time steps.
"""
import math
from typing import Callable, NamedTuple

import numpy as np
import torch

from equations import PDE
from equations.common import (centres, checked, empty_frames, etdrk4_step, etdrk4_weights, finer_spectrum,
                              generators, indices, sum_of_squares, waves_2d)
from equations.derivatives import derivative, velocity_from_vorticity
from runtime.configurator import UserError
from runtime.progress import counted

NS_CELLS = 5.5                  # internal cells per axis, times ν^(1/3): 55, 119, 256 at ν 1e-3, 1e-4, 1e-5
NS_REFINEMENT = 16              # largest number of internal cells in a given cell, along an axis
NS_CFL = 1.                     # internal cells that the fastest fluid (|u| + |v|) crosses in a step
NS_MEAN = .01                   # of the largest value: a mean beyond that is none that striding has left
VORTICITY_WAVES = 31            # largest wave number of `random_vorticity` along an axis
VORTICITY_VARIANCE = 2 * 7 ** 3  # variance of the wave k, in units of (4π²|k|² + 49)^-2.5


class Force(NamedTuple):
    """A steady force on a flow in the unit square."""
    at: Callable                # its curl f on the grid of the points x (X,) and y (Y,): (X, Y)
    speed: float                # that the force alone adds to the flow in a second


def _oblique(x, y):
    phase = 2 * math.pi * (x[:, None] + y)
    return .1 * (phase.sin() + phase.cos())


OBLIQUE = Force(_oblique, .1 / (2 * math.pi))


def navier_stokes(w0, nu, t, force=OBLIQUE, drag=0., refine=None, cfl=NS_CFL):
    """Solve ω_t + u·∇ω = ν Δω - drag ω + f for the vorticity ω, periodic on the unit square.

    w0: (B, X, Y) values at the cell centres ((i + .5)/X, (j + .5)/Y), without a mean; a small one (NS_MEAN),
    as striding leaves it, is taken off. nu: ν. force: gives f; None: no force. refine: number of internal
    cells in a given cell along each axis, by default enough for ν; the result is the internal solution at the
    given centres. cfl: longest step, as the number of internal cells that |u| + |v| crosses; the fastest flow
    of the batch sets the step, at least once a second. Returns (B, T, X, Y) float64. Raises UserError as
    `checked` does, if w0 has a mean, and if ν needs more than NS_REFINEMENT internal cells in a cell.

    The scheme is Fourier series with the 2/3 rule, and ETDRK4. The mean stays zero and the symmetries of
    `torus_symmetry` hold to rounding (1e-14); the enstrophy budget holds to the error of a step. For one to
    four fields of `random_vorticity` on 64² cells, the largest nrmse against a finer internal grid, and the
    time of a trajectory on one CPU thread are:

        ν 1e-3, t = 20, 50      64² internal cells    1e-9, 2e-9 (against 128²)         1 s
        ν 1e-4, t = 20, 30     128²                   2.6e-4, 7.2e-4 (against 192²)     4 s
                                64²                   1.5e-2, 2.6e-2                   .5 s
        ν 1e-5, t = 20         256²                   2.9e-3 (against 384²)            20 s
                               128²                   2.5e-2 (against 256²)             2 s

    On 32² cells with refine=1, ν 1e-3 and t = 20, 50 they are 5e-5, 2e-4 and .07 s.
    """
    w0, t = checked(w0, t, axes=2, nu=nu, cfl=cfl)
    mean = w0.mean((1, 2))
    size = w0.abs().amax((1, 2))
    if (mean.abs() > NS_MEAN * size).any():
        raise UserError('w0 has a mean, which no periodic flow has: subtract it')
    mean = torch.where(mean.abs() > 1e-6 * size, mean, 0.)          # what is smaller is rounding
    w0 = w0 - mean[:, None, None]
    if refine is None:
        needed = NS_CELLS / nu ** (1 / 3)
        refine = math.ceil(needed / min(w0.shape[1:]))
    if refine > NS_REFINEMENT:
        raise UserError(f'so small a nu needs {refine} times finer cells inside, at most {NS_REFINEMENT}: ask '
                        'for more cells or a larger nu')
    size = (w0.shape[1] * refine, w0.shape[2] * refine)
    k_x, k_y, kept = waves_2d(size, w0.device)
    square = k_x ** 2 + k_y ** 2                                    # (X, K)
    inverse = 1 / square
    inverse[0, 0] = 0
    stream_to_velocity = [1j * k_y * inverse, -1j * k_x * inverse]
    to_velocity = torch.stack(stream_to_velocity)                   # ω -> (ψ_y, -ψ_x), (2, X, K)
    flux_to_rate = [(k_x ** 2 - k_y ** 2) * kept, k_x * k_y * kept]
    from_flux = torch.stack(flux_to_rate)
    push = 0.
    push_speed = 0.
    if force:
        push = torch.fft.rfft2(force.at(*_points(size, refine, w0.device))) * kept
        push_speed = force.speed

    def velocity(w):
        return torch.fft.irfft2(w[:, None] * to_velocity, s=size)   # (B, 2, X, Y)

    def rate(w):
        u, v = velocity(w).unbind(1)
        flux = torch.stack([u * v, v ** 2 - u ** 2], 1)
        transport = torch.fft.rfft2(flux) * from_flux
        return transport.sum(1) + push

    unstable = f'navier_stokes is unstable at cfl={cfl}: make it smaller'
    out = empty_frames(w0, t)
    w = finer_spectrum(w0, refine) * kept
    step = 0.
    start = float(velocity(w).abs().sum(1).max())
    for i, gap in enumerate(counted('solver: frames', np.diff(t))):
        n_part = math.ceil(gap)                                      # parts of a second at most
        for _ in range(n_part):
            fastest = float(velocity(w).abs().sum(1).max()) + push_speed * gap / n_part
            if not fastest < 100 * (start + push_speed * t[i + 1]):
                raise UserError(unstable)
            n_step = math.ceil(gap / n_part * fastest * max(size) / cfl)
            if not math.isclose(step, gap / n_part / n_step):
                step = gap / n_part / n_step
                weights = etdrk4_weights(-nu * square - drag, step)
            for _ in range(n_step):
                w = etdrk4_step(w, rate, weights)
        field = torch.fft.irfft2(w, s=size)
        out[:, i + 1] = field[:, ::refine, ::refine]
    if not torch.isfinite(out).all():
        raise UserError(unstable)
    return out


def _points(size, refine, device):
    """Coordinates (X,), (Y,) of the internal grid, whose first point is the centre of the first given cell."""
    return [(indices(n_cells, device) + refine / 2) / n_cells for n_cells in size]


def navier_stokes_residual(w0, w1, dt, params, axes, force=OBLIQUE, drag=0.):
    """Residual of ω_t + u·∇ω - ν Δω + drag ω - f between the frames w0, w1 (B, X, Y, 1), dt (B,) seconds
    apart: (B, X, Y, 1), by the midpoint rule and Fourier derivatives. params: {'nu': (B,)}; axes: [x, y] in
    the unit square; force: gives f."""
    x, y = axes
    before = w0[..., 0]
    after = w1[..., 0]
    w = (before + after) / 2
    dt = dt.view(-1, 1, 1)
    nu = params['nu'].view(-1, 1, 1)
    velocity = velocity_from_vorticity(w, axes)
    along_x = velocity[..., 0] * derivative(w, x, 0)
    along_y = velocity[..., 1] * derivative(w, y, 1)
    transport = along_x + along_y
    laplacian = derivative(w, x, 0, 2)
    laplacian = laplacian + derivative(w, y, 1, 2)
    rate = nu * laplacian + force.at(x, y) - transport - drag * w
    residual = (after - before) / dt - rate
    return residual[..., None]


def torus_symmetry(w, element, shift):
    """Apply one of the 4 X symmetries of the forced flow to fields w (..., X, X), X a multiple of 4. The
    solution from torus_symmetry(w0) is torus_symmetry of the solution from w0.

    The force √2/10 sin(2π(x + y) + π/4) is invariant under shifts by (s, -s), and under two maps and their
    products. element 0: identity; 1: w(1/4 - x, -y); 2: -w(y + 1/2, x); 3: element 2 after element 1. Element
    2 twice is a shift by half a period along both axes. shift: s in cells.
    """
    n_cells = w.shape[-1]
    if element in (1, 3):
        w = w.flip(-2, -1)
        w = w.roll(n_cells // 4, -2)
    if element in (2, 3):
        w = w.roll(n_cells // 2, -2)
        w = -w.transpose(-2, -1)
    return w.roll((shift, -shift), (-2, -1))


# ---------------------------------------------------------------------------------------------
# initial fields

def random_vorticity(n, cells, seed=0, first=0):
    """Initial fields of arXiv 2010.08895 at the cell centres of the unit torus, (n, X, Y) float64.

    They are Gaussian random fields without a mean, N(0, 2·7³ (-Δ + 49)^-2.5), as drawn by the generator of
    the published files; their standard deviation is .26. Two other amplitudes are in use: 7³, drawn by that
    generator with a recent PyTorch (.18), and 7^1.5, given in the paper (.043). VORTICITY_VARIANCE sets it.
    Waves up to 31 along each axis are drawn on any grid, and a coarse grid leaves out those that it does not
    resolve, so that all grids hold the same fields. Sample i depends on (seed, first + i) alone.
    """
    wave = np.arange(-VORTICITY_WAVES, VORTICITY_WAVES + 1)
    square = 4 * np.pi ** 2 * sum_of_squares(wave)
    std = np.sqrt(VORTICITY_VARIANCE) * (square + 49) ** -1.25
    std[square == 0] = 0
    basis_x, basis_y = [_resolved_waves(wave, n_cells) for n_cells in cells]
    w0 = np.empty((n, *cells))
    for row, rng in enumerate(generators(n, seed, first)):
        cos, sin = std * rng.standard_normal((2, *std.shape))
        field = basis_x @ (cos - 1j * sin) @ basis_y.T
        w0[row] = field.real
    return w0


def _resolved_waves(wave, n_cells):
    """exp(2πi k x) at the cell centres, (X, K); zero for waves that the cells do not resolve."""
    x = centres(n_cells)
    values = np.exp(2j * np.pi * x[:, None] * wave)
    return values * (2 * abs(wave) < n_cells)


# The force is part of the equation, so that reflections and most translations are no symmetries. The
# vorticity has no mean, so that there is no moving frame. Published protocols (arXiv 2010.08895) have 50 s at
# nu 1e-3, 30 s at 1e-4 and 20 s at 1e-5.
ENTRY = PDE(
    fields=('w',),
    params={'Nu': 1e-4},
    space=((0, 1), (0, 1)),
    boundary='periodic',
    file='2D_NavierStokes_Nu{Nu}.hdf5',
    solve=navier_stokes,
    cheaper=({'refine': 1}, {'refine': 1, 'cfl': 3.}),
    initial=random_vorticity,
    cells=(64, 64),
    frames=31,
    dt=1.,
    conserved=('w',),
    pseudo=('w',),
    translation=False,
    diagonal=(1, -1),
    symmetry=torus_symmetry,
    turns_on=4,
    test='last',
    residual=navier_stokes_residual)
