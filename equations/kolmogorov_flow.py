"""
Kolmogorov flow: the vorticity of a flow in two dimensions that a sinusoidal force drives along x.

    ∂ω/∂t + u·∇ω = ν Δω - α ω - k cos ky,      x, y in (0, 2π) periodic,      k = 4,   α = .1

The force on the velocity is (sin ky, 0) and α is a linear drag, as in arXiv 2102.01010 (where ν = 1e-3). From
rest the flow is laminar, ω = -k cos(ky) (1 - exp(-rt)) / r with r = νk² + α. That flow is unstable if ν is
small. The solver is that of equations/navier_stokes.py: in units of 2π, the flow is one on the unit square
with the same vorticity and the viscosity ν / 4π².
"""
import math

from equations import PDE
from equations.common import checked
from equations.navier_stokes import Force, navier_stokes, navier_stokes_residual, random_vorticity

WAVE = 4                        # k, waves of the force in the domain
DRAG = .1                       # α, in 1/s
SIDE = 2 * math.pi
START = 10.                     # vorticity at first, in units of `random_vorticity`
KOLMOGOROV_CELLS = 10.          # internal cells per axis, times ν^(1/2): 64 at ν .025, 100 at .01


def _along_x(x, y):
    wave = -WAVE * (SIDE * WAVE * y).cos()
    return wave.expand(len(x), -1)


ALONG_X = Force(_along_x, 1 / SIDE)


def kolmogorov_flow(w0, nu, t, refine=None):
    """Solve ω_t + u·∇ω = ν Δω - α ω - k cos ky for the vorticity ω, periodic on (0, 2π)².

    w0: (B, X, Y) values at the cell centres, without a mean. nu: ν. refine: number of internal cells in a
    given cell along each axis, by default enough for ν. Returns (B, T, X, Y) float64. Raises UserError as
    `navier_stokes` does.

    For fields of `strong_vorticity` at ν .025, 64² internal cells and t = 5, 10, 15 the largest nrmse of three
    samples is 1e-3, 2e-3, 3e-3 (against 96²); errors grow sevenfold in 10 s. At ν .01 and 64² cells it is 5e-2
    at t = 8 (against 128²). A trajectory of 15 s at ν .025 takes .4 s of a CPU core.
    """
    w0, t = checked(w0, t, axes=2, nu=nu)
    if refine is None:
        refine = math.ceil(KOLMOGOROV_CELLS / nu ** .5 / min(w0.shape[1:]))
    return navier_stokes(w0, nu / SIDE ** 2, t, ALONG_X, DRAG, refine)


def kolmogorov_residual(w0, w1, dt, params, axes):
    """Residual of the equation between the frames w0, w1 (B, X, Y, 1), dt (B,) seconds apart: (B, X, Y, 1).
    params: {'nu': (B,)}; axes: [x, y]."""
    in_square = {'nu': params['nu'] / SIDE ** 2}
    axes = [x / SIDE for x in axes]
    return navier_stokes_residual(w0, w1, dt, in_square, axes, ALONG_X, DRAG)


def kolmogorov_symmetry(w, element, shift):
    """Apply a symmetry to fields w (..., X, Y), Y a multiple of 8. The solution from kolmogorov_symmetry(w0)
    is kolmogorov_symmetry of the solution from w0.

    The force is invariant under all shifts along x, and under two maps and their products. element 0:
    identity; 1: w(-x, -y); 2: -w(-x, y + π/k); 3: element 2 after element 1. Element 2 twice is a shift by one
    wave of the force. shift: along x, in cells.
    """
    if element in (1, 3):
        w = w.flip(-2, -1)
    if element in (2, 3):
        w = w.roll(-w.shape[-1] // (2 * WAVE), -1)
        w = -w.flip(-2)
    return w.roll(shift, -2)


# ---------------------------------------------------------------------------------------------
# initial fields

def strong_vorticity(n, cells, seed=0, first=0):
    """`random_vorticity` times START, about as strong as the flow that the force maintains: (n, X, Y) float64.
    After some seconds it has the scales of that flow."""
    return START * random_vorticity(n, cells, seed, first)


# The force depends on y, so that only shifts along x are symmetries in any number of cells. Shifts by a wave
# of the force and a reflection along y without a shift by half a wave are left to `symmetry` or to none.
ENTRY = PDE(
    fields=('w',),
    params={'Nu': .025},
    space=((0, SIDE), (0, SIDE)),
    boundary='periodic',
    file='2D_Kolmogorov_Nu{Nu}.hdf5',
    solve=kolmogorov_flow,
    cheaper=({'refine': 1},),
    initial=strong_vorticity,
    cells=(64, 64),
    frames=31,
    dt=.5,
    conserved=('w',),
    pseudo=('w',),
    translation=False,
    diagonal=(1, 0),
    symmetry=kolmogorov_symmetry,
    turns_on=2 * WAVE,
    test='last',
    residual=kolmogorov_residual)
