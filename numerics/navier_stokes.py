"""
Navier-Stokes in two dimensions.

The vorticity of a forced flow on the unit torus (arXiv 2010.08895, section 5.3):

    ∂ω/∂t + u·∇ω = ν Δω + f,      u = (∂ψ/∂y, -∂ψ/∂x),   -Δψ = ω,      x, y in (0, 1) periodic
    f = .1 (sin 2π(x + y) + cos 2π(x + y))

u·∇ω is taken as the curl of the momentum flux, (∂xx - ∂yy) uv + ∂xy (v² - u²), which needs four transforms
and not five. With the 2/3 rule no product has aliases, so that both forms are the same, and energy and
enstrophy have exact budgets but for the steps in time.
"""
import math

import numpy as np
import torch

from numerics.common import (centres, checked, empty_frames, etdrk4_step, etdrk4_weights, generators, indices,
                             sum_of_squares)
from physics import derivative, velocity_from_vorticity
from runtime.configurator import UserError

NS_CELLS = 5.5                  # cells an axis inside, times ν^(1/3): 55, 119, 256 at ν 1e-3, 1e-4, 1e-5
NS_REFINEMENT = 16              # at most so many cells inside a given cell along an axis
NS_CFL = 1.                     # cells that the fastest fluid (|u| + |v|) crosses in a step
FORCE_SPEED = .1 / (2 * math.pi)    # how much faster the force alone makes the flow in a second


def navier_stokes(w0, nu, t, forced=True, refine=None, cfl=NS_CFL):
    """Solve ω_t + u·∇ω = ν Δω + f for the vorticity ω, periodic on the unit square.

    w0: (B, X, Y) values at the cell centres ((i + .5)/X, (j + .5)/Y), without a mean. nu: ν. forced=False
    leaves f out. refine: the grid inside has so many times the cells along each axis, by default enough for
    ν; the result is what it has at the given centres. cfl: longest step, in cells inside that |u| + |v|
    crosses; the fastest flow of the batch sets it anew at least every second. Returns (B, len(t), X, Y)
    float64. Raises UserError as `checked` does, where w0 has a mean, and where ν needs too fine a grid.

    Fourier series with the 2/3 rule and ETDRK4. The mean stays zero and the symmetries of `torus_symmetry`
    hold to rounding (1e-14), the enstrophy budget to the error of a step. On 64² cells, from one to four
    fields of `random_vorticity`, the largest nrmse against a finer grid, and the time a trajectory takes on
    one thread of a CPU:

        ν 1e-3, t = 20, 50      64² inside     1e-9, 2e-9 (against 128²)         1 s
        ν 1e-4, t = 20, 30     128² inside     2.6e-4, 7.2e-4 (against 192²)     4 s
                                64² inside     1.5e-2, 2.6e-2                   .5 s
        ν 1e-5, t = 20         256² inside     2.9e-3 (against 384²)            20 s
                               128² inside     2.5e-2 (against 256²)             2 s

    On 32² cells, not refined, ν 1e-3, t = 20, 50: 5e-5, 2e-4 and .07 s.
    """
    w0, t = checked(w0, t, axes=2, nu=nu, cfl=cfl)
    mean = w0.mean((1, 2))
    if mean.abs().max() > 1e-6 * w0.abs().max():
        raise UserError('w0 has a mean: no periodic flow has such a vorticity; subtract it')
    if refine is None:
        needed = NS_CELLS / nu ** (1 / 3)
        refine = math.ceil(needed / min(w0.shape[1:]))
    if refine > NS_REFINEMENT:
        raise UserError(f'nu={nu} needs {refine} times finer cells inside (at most {NS_REFINEMENT}): ask for '
                        'more cells or a larger nu')
    size = (w0.shape[1] * refine, w0.shape[2] * refine)
    k_x, k_y, kept = _waves_2d(size, w0.device)
    square = k_x ** 2 + k_y ** 2                                    # (X, K)
    inverse = 1 / square
    inverse[0, 0] = 0
    stream_to_velocity = [1j * k_y * inverse, -1j * k_x * inverse]
    to_velocity = torch.stack(stream_to_velocity)                   # ω -> (ψ_y, -ψ_x), (2, X, K)
    flux_to_rate = [(k_x ** 2 - k_y ** 2) * kept, k_x * k_y * kept]
    from_flux = torch.stack(flux_to_rate)
    force = _force(size, refine, w0.device) * kept if forced else 0.

    def velocity(w):
        return torch.fft.irfft2(w[:, None] * to_velocity, s=size)   # (B, 2, X, Y)

    def rate(w):
        u, v = velocity(w).unbind(1)
        flux = torch.stack([u * v, v ** 2 - u ** 2], 1)
        transport = torch.fft.rfft2(flux) * from_flux
        return transport.sum(1) + force

    unstable = f'navier_stokes is unstable at cfl={cfl}: make it smaller'
    out = empty_frames(w0, t)
    w = _finer_spectrum(w0, refine) * kept
    step = 0.
    start = float(velocity(w).abs().sum(1).max())
    for i, gap in enumerate(np.diff(t)):
        n_part = math.ceil(gap)                                      # of a second at most
        for _ in range(n_part):
            fastest = float(velocity(w).abs().sum(1).max()) + FORCE_SPEED * gap / n_part
            if not fastest < 100 * (start + FORCE_SPEED * t[i + 1]):
                raise UserError(unstable)
            n_step = math.ceil(gap / n_part * fastest * max(size) / cfl)
            if not math.isclose(step, gap / n_part / n_step):
                step = gap / n_part / n_step
                weights = etdrk4_weights(-nu * square, step)
            for _ in range(n_step):
                w = etdrk4_step(w, rate, weights)
        field = torch.fft.irfft2(w, s=size)
        out[:, i + 1] = field[:, ::refine, ::refine]
    if not torch.isfinite(out).all():
        raise UserError(unstable)
    return out


def _waves_2d(size, device):
    """Wave numbers (X, 1) and (1, K) of rfft2 on the unit square, and which waves the 2/3 rule keeps."""
    n_x, n_y = size
    wave_x = torch.fft.fftfreq(n_x, 1 / n_x, dtype=torch.float64, device=device)
    wave_y = indices(n_y // 2 + 1, device)
    kept_x = 3 * wave_x.abs() < n_x
    kept_y = 3 * wave_y < n_y
    kept = kept_x[:, None] & kept_y
    return 2 * math.pi * wave_x[:, None], 2 * math.pi * wave_y[None], kept


def _finer_spectrum(w0, refine):
    """Spectrum of w0 (B, X, Y) on a finer grid with the same first point, (B, refine X, K). The waves of ±1
    cells are left out."""
    n_batch, n_x, n_y = w0.shape
    top_x = (n_x - 1) // 2
    top_y = (n_y - 1) // 2
    rows = torch.arange(-top_x, top_x + 1)
    columns = torch.arange(top_y + 1)
    given = torch.fft.rfft2(w0)
    fine = given.new_zeros(n_batch, refine * n_x, refine * n_y // 2 + 1)
    fine[:, rows[:, None], columns] = given[:, rows[:, None], columns]
    return fine * refine ** 2


def _force(size, refine, device):
    """Spectrum of f on the inner grid, whose first point is the centre of the first given cell."""
    x = (indices(size[0], device) + refine / 2) / size[0]
    y = (indices(size[1], device) + refine / 2) / size[1]
    return torch.fft.rfft2(_force_at(x, y))


def _force_at(x, y):
    """f at the points of the grid x (X,), y (Y,): (X, Y)"""
    phase = 2 * math.pi * (x[:, None] + y)
    return .1 * (phase.sin() + phase.cos())


def navier_stokes_residual(w0, w1, dt, params, axes):
    """What is left of ω_t + u·∇ω - ν Δω - f for consecutive frames w0, w1 (B, X, Y, 1), dt (B,) seconds
    apart: midpoint rule, Fourier derivatives. params: {'nu': (B,)}; axes: [x, y]. Returns (B, X, Y, 1)."""
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
    rate = nu * laplacian + _force_at(x, y) - transport
    residual = (after - before) / dt - rate
    return residual[..., None]


def torus_symmetry(w, element, shift):
    """An exact symmetry of the forced flow, for fields w (..., X, X) with X a multiple of 4: the solution
    that starts as torus_symmetry(w0) is torus_symmetry of the solution that starts as w0.

    The force is √2/10 sin(2π(x + y) + π/4). So it keeps the shifts by (s, -s) and what two maps generate:
    element 1 is w(1/4 - x, -y), element 2 is -w(y + 1/2, x), element 3 is 2 after 1, and 0 is none. Element 2
    twice is a shift by half a period along both axes. shift: s in cells. There are 4 X of them.
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
# initial conditions

VORTICITY_WAVES = 31            # highest wave that `random_vorticity` draws along an axis
VORTICITY_VARIANCE = 2 * 7 ** 3  # of a wave k, times (4π²|k|² + 49)^-2.5


def random_vorticity(n, cells, seed=0, first=0):
    """Initial conditions of arXiv 2010.08895 at the cell centres of the unit torus, (n, X, Y) float64.

    A Gaussian random field without a mean, N(0, 2·7³ (-Δ + 49)^-2.5), as the generator of the released
    files draws it: its standard deviation is .26. Two more amplitudes are in circulation: 7³, what that
    generator draws with today's PyTorch (.18), and 7^1.5, what the paper's text says (.043).
    VORTICITY_VARIANCE chooses. The waves are drawn up to 31 an axis whatever the cells, and cells that
    resolve fewer leave some out, so that grids of different sizes hold the same field. Sample i depends on
    (seed, first + i) alone.
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
    """exp(2πi k x) at the cell centres, (X, K); zero for waves that the cells cannot resolve."""
    x = centres(n_cells)
    values = np.exp(2j * np.pi * x[:, None] * wave)
    return values * (2 * abs(wave) < n_cells)
