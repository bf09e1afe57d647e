"""
Compressible flow in one dimension.

PDEBench's (arXiv 2210.07182) Navier-Stokes equations of an ideal gas without heat conduction,

    ∂ρ/∂t + ∂(ρv)/∂x = 0
    ∂(ρv)/∂t + ∂(ρv² + p)/∂x = ∂σ/∂x
    ∂E/∂t + ∂((E + p) v)/∂x = ∂(vσ)/∂x,      E = p/(γ - 1) + ρv²/2,      x in (-1, 1)
    σ = ρ (4/3 η + ζ) ∂v/∂x

with γ = 5/3. As in the published data, and unlike in the paper, η and ζ are viscosities per density.

The scheme is finite volumes with Strang splitting: half a step of viscosity, a step of gas dynamics, half a
step of viscosity, which is joined with the first half of the next step. Gas dynamics is MUSCL-Hancock with
the HLLC flux (E. F. Toro, Riemann Solvers and Numerical Methods for Fluid Dynamics, sections 10.4-10.6 and
14.4) and the monotonised central limiter. Viscosity is the implicit midpoint rule, which is stable for any
step. It turns exactly the lost kinetic energy into heat, so that it conserves energy and never lowers the
pressure.

Density and pressure stay positive without a floor. A step that makes either negative in a cell is repeated
with constant values in that cell and its neighbours, as often as needed. With constant values everywhere this
is Godunov's method with HLLC, which keeps both positive for CFL numbers up to 1/2.
"""
import numpy as np
import torch

from equations import PDE
from equations.common import (centres, checked, empty_frames, from_0_to_1, generators, limited_slope,
                              sum_of_waves, tridiagonal)
from runtime.configurator import UserError
from runtime.progress import counted

GAMMA = 5 / 3
CFL = .3
LONGER_STEPS = ({'cfl': 2 * CFL}, {'cfl': 3 * CFL})


def compressible_1d(u0, eta, zeta, t, boundary='periodic', cfl=CFL):
    """Solve the equations above for density, pressure and velocity, the channels of u0.

    u0: (B, X, 3) averages over X equal cells of (-1, 1). eta, zeta: η and ζ in squared lengths a second.
    boundary: 'periodic' or 'outgoing' (no gradient at the ends). cfl: cells that the fastest wave of a sample
    crosses in its longest step. Returns (B, T, X, 3) float64. Raises UserError as `checked` does, for an unknown
    boundary, and for density or pressure that is not positive.

    Errors (nrmse) of density, pressure and velocity of `gas_waves` after 1 s:

        η = ζ = .01    1024 cells, against 2048    2e-4, 2e-5, 1e-4
                        512 cells                  9e-4, 9e-5, 5e-4
                        256 cells                  2e-3, 4e-4, 2e-3
        η = ζ = 1e-8    512 cells, against 1024    3e-3, 5e-3, 2e-2    (there are shocks)
                        256 cells                  twice these

    No cell of these runs needed constant values. Results in a moving frame differ by as much as these errors.
    Mean absolute errors of Sod's problem at t = .4 on 1024 cells are 7e-4, 3e-4 and 7e-4. A trajectory of 1 s
    takes 3.5 s of a CPU core on 1024 cells, .3 s on 256 and .12 s on 128 (in batches of 32).
    """
    u0, t = _checked_gas(u0, t, eta, zeta, boundary, cfl)
    n_cells = u0.shape[1]
    h = 2 / n_cells
    wraps = boundary == 'periodic'
    viscosity = 4 / 3 * eta + zeta
    out = empty_frames(u0, t)
    gas = u0.movedim(-1, 0).contiguous()                            # (3, B, X): density, pressure, velocity
    for i, gap in enumerate(counted('solver: frames', np.diff(t))):
        left = gap * torch.ones_like(u0[:, :1, 0])                  # time left to the next frame, (B, 1)
        owed = torch.zeros_like(left)                               # time by which viscosity lags behind
        rows = torch.arange(len(u0), device=u0.device)              # samples that have not reached it
        while len(rows):
            part = gas[:, rows]
            step = _courant_step(part, left[rows], h, cfl)
            part = _viscous_step(part, owed[rows] + step / 2, h, viscosity, wraps)
            gas[:, rows] = _gas_step(part, step / h, wraps)[0]
            owed[rows] = step / 2
            left[rows] -= step
            rows = rows[left[rows, 0] > 0]
        gas = _viscous_step(gas, owed, h, viscosity, wraps)
        out[:, i + 1] = gas.movedim(0, -1)
    return out


def _checked_gas(u0, t, eta, zeta, boundary, cfl):
    if boundary not in ('periodic', 'outgoing'):
        raise UserError(f"boundary='{boundary}' must be 'periodic' or 'outgoing'")
    u0, t = checked(u0, t, channels=3, eta=eta, zeta=zeta, cfl=cfl)
    if not float(u0[..., :2].min()) > 0:
        raise UserError('density and pressure, the first two channels of u0, must be positive')
    return u0, t


def _courant_step(gas, left, h, cfl):
    """Time step of each sample, (B, 1): within the CFL number, and a whole fraction of the time left."""
    density, pressure, velocity = gas
    speed = velocity.abs() + torch.sqrt(GAMMA * pressure / density)
    longest = cfl * h / speed.amax(1, keepdim=True)
    return left / torch.ceil(left / longest)


def _conserved(gas):
    """Density, momentum and energy, (3, ...), from density, pressure and velocity."""
    density, pressure, velocity = gas
    momentum = density * velocity
    energy = pressure / (GAMMA - 1) + momentum * velocity / 2
    return torch.stack([density, momentum, energy])


def _primitive(state):
    """Density, pressure and velocity, (3, ...), from density, momentum and energy."""
    density, momentum, energy = state
    velocity = momentum / density
    pressure = (GAMMA - 1) * (energy - momentum * velocity / 2)
    return torch.stack([density, pressure, velocity])


def _gas_step(gas, ratio, wraps):
    """One MUSCL-Hancock step of the gas (3, B, X). ratio: time step over cell width, (B, 1). Returns the gas
    and the number of cells in which constant values were needed to keep density and pressure positive."""
    state = _conserved(gas)
    flat = torch.zeros_like(gas[0])
    while True:
        flux = _muscl_flux(gas, ratio, flat, wraps)
        new = _primitive(state - ratio * flux.diff(dim=-1))
        bad = ~(new[:2] > 0).all(0)
        if not bad.any():
            return new, int(flat.sum())
        around = _padded(bad.double(), wraps)[..., 1:-1]
        near = around.unfold(-1, 3, 1).amax(-1)                     # these cells and their neighbours
        if (near <= flat).all():
            raise UserError('compressible_1d: density or pressure falls below zero (or is not finite)')
        flat = torch.maximum(flat, near)


def _padded(field, wraps):
    """The field with two ghost cells at either end, (..., X) -> (..., X + 4)."""
    if wraps:
        return torch.cat([field[..., -2:], field, field[..., :2]], -1)
    first = field[..., :1]
    last = field[..., -1:]
    return torch.cat([first, first, field, last, last], -1)


def _muscl_flux(gas, ratio, flat, wraps):
    """Fluxes through the X + 1 faces, (3, B, X + 1)."""
    padded = _padded(gas, wraps)
    difference = padded.diff(dim=-1)
    slope = limited_slope(difference[..., :-1], difference[..., 1:])
    slope = slope * (1 - _padded(flat, wraps)[..., 1:-1])
    cell = padded[..., 1:-1]                                        # X + 2 cells
    density, pressure, velocity = cell
    d_density, d_pressure, d_velocity = slope
    half = ratio / 2
    change = torch.stack([
        velocity * d_density + density * d_velocity,
        velocity * d_pressure + GAMMA * pressure * d_velocity,
        velocity * d_velocity + d_pressure / density])
    middle = cell - half * change                                   # after half a step
    left = (middle + slope / 2)[..., :-1]
    right = (middle - slope / 2)[..., 1:]
    return _hllc(left, right)


def _hllc(left, right):
    """HLLC flux between two gases (3, ...), with Toro's pressure-based wave speeds (10.59-10.62)."""
    rho_l, p_l, v_l = left
    rho_r, p_r, v_r = right
    a_l = torch.sqrt(GAMMA * p_l / rho_l)
    a_r = torch.sqrt(GAMMA * p_r / rho_r)
    impedance = (rho_l + rho_r) * (a_l + a_r) / 4
    p_mid = (p_l + p_r) / 2 - impedance * (v_r - v_l) / 2
    s_l = v_l - a_l * _mach(p_mid / p_l)
    s_r = v_r + a_r * _mach(p_mid / p_r)
    m_l = rho_l * (s_l - v_l)                                       # mass swept over by the outer waves
    m_r = rho_r * (s_r - v_r)
    s_mid = (p_r - p_l + m_l * v_l - m_r * v_r) / (m_l - m_r)
    from_left = s_mid > 0
    rho, p, v = torch.where(from_left, left, right)
    m = torch.where(from_left, m_l, m_r)
    s = torch.where(from_left, s_l, s_r)
    swept = torch.where(from_left, s_l.clamp(max=0), s_r.clamp(min=0))
    energy = p / (GAMMA - 1) + rho * v ** 2 / 2
    rho_mid = m / (s - s_mid)
    energy_mid = rho_mid * (energy / rho + (s_mid - v) * (s_mid + p / m))
    return torch.stack([
        rho * v + swept * (rho_mid - rho),
        rho * v ** 2 + p + swept * (rho_mid * s_mid - rho * v),
        (energy + p) * v + swept * (energy_mid - energy)])


def _mach(ratio):
    """Mach number of a wave behind which the pressure is `ratio` times as high; 1 for a rarefaction."""
    rise = (GAMMA + 1) / (2 * GAMMA) * (ratio - 1)
    return torch.sqrt(1 + rise.clamp(min=0))


def _viscous_step(gas, step, h, viscosity, wraps):
    """∂(ρv)/∂t = ∂σ/∂x and ∂E/∂t = ∂(vσ)/∂x over a step (B, 1), by the implicit midpoint rule."""
    density, pressure, velocity = gas
    on_face = (density + density.roll(-1, -1)) / 2                  # density at the right face
    k = viscosity * step / (2 * h ** 2) * on_face
    if not wraps:
        k[..., -1] = 0
    k_left = k.roll(1, -1)
    middle = tridiagonal(-k_left, density + k + k_left, -k, density * velocity)
    rise = middle.roll(-1, -1) - middle
    heat = k * rise ** 2
    pressure = pressure + (GAMMA - 1) * (heat + heat.roll(1, -1))
    return torch.stack([density, pressure, 2 * middle - velocity])


# ---------------------------------------------------------------------------------------------
# initial fields

def gas_waves(n, cells, seed=0, first=0):
    """PDEBench's initial fields of compressible flow at the cell centres, (n, X, 3) float64: density,
    pressure and velocity.

    Each is a sum of waves as in `waves`, with wave numbers from 1..3 (up to 6), windowed in every second
    sample. Density and pressure are scaled to the range (b, b + m), with m and b log-uniform in (1, 10) for
    the density and in (10, 100) for the pressure. Unlike in PDEBench, all draws are independent. Sample i
    depends on (seed, first + i) alone.
    """
    n_cells, = cells
    x = centres(n_cells)
    u0 = np.empty((n, n_cells, 3))
    for row, rng in enumerate(generators(n, seed, first)):
        for channel, unit in enumerate((1, 10)):
            shape = from_0_to_1(sum_of_waves(rng, x, 3, .5))
            height = unit * 10 ** rng.uniform()
            base = unit * 10 ** rng.uniform()
            u0[row, :, channel] = base + height * shape
        u0[row, :, 2] = sum_of_waves(rng, x, 3, .5)
    return u0


ENTRY = PDE(
    fields=('density', 'pressure', 'Vx'),
    params={'eta': .01, 'zeta': .01},
    space=((-1, 1),),
    boundary='periodic',
    file='1D_CFD_Rand_Eta{eta}_Zeta{zeta}_periodic_Train.hdf5',
    layout='arrays',
    solve=compressible_1d,
    cheaper=LONGER_STEPS,
    initial=gas_waves,
    frames=101,
    conserved=('density',),
    velocity=('Vx',),
    mirror=True,
    galilean=1.,
    positive=('density', 'pressure'))
