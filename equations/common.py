"""
What several equations share: conditions at walls, checked arguments of solvers, cell centres and waves, a
slope limiter, a tridiagonal solver, steps in time, random initial fields.
"""
import math

import numpy as np
import torch

from runtime.configurator import UserError
from runtime.progress import counted

NO_FLUX = (0., 1., 0.)          # conditions at a wall, (a, b, g): a u + b du/dn = g
ZERO = (1., 0., 0.)
WAVES_PERIOD = 1 - 1 / 1024     # PDEBench's: the distance from its first to its last cell centre
CONTOUR = 32                    # points on half a circle around a coefficient of ETDRK4


# ---------------------------------------------------------------------------------------------
# arguments and results

def checked(u0, t, axes=1, channels=None, **params):
    """Check the arguments of a solver: u0 (B, *cells[, C]) as a float64 tensor, t (T,) as a float64 array.

    axes: number of space axes. channels: C, or None if there is no channel axis. params: parameters by name.
    Raises UserError for another shape, values that are not finite, times that do not start at 0 and increase,
    and parameters that are not positive and finite.
    """
    u0 = torch.as_tensor(u0)
    if u0.device.type == 'mps':
        u0 = u0.cpu()
    u0 = u0.double()
    t = np.asarray(t, dtype=np.float64)
    expected = ['batch', *'XYZ'[:axes]]
    if channels is not None:
        expected.append(str(channels))
    fits = u0.ndim == len(expected)
    fits = fits and min(u0.shape[1:axes + 1]) > 1
    fits = fits and channels in (None, u0.shape[-1])
    if not fits:
        raise UserError(f"u0 has shape {tuple(u0.shape)}; expected ({', '.join(expected)}) with 2 or more "
                        'cells per axis')
    for name, value in params.items():
        if not (value > 0 and math.isfinite(value)):
            raise UserError(f'{name}={value} must be positive and finite')
    increases = t.ndim == 1 and len(t) > 0
    increases = increases and t[0] == 0
    increases = increases and np.isfinite(t).all() and (np.diff(t) > 0).all()
    if not increases:
        raise UserError('times must start at 0 and increase')
    if not torch.isfinite(u0).all():
        raise UserError('u0 holds values that are not finite')
    return u0, t


def empty_frames(u0, t):
    """An empty float64 tensor (B, T, ...) for the fields at the times t, with u0 (B, ...) as first frame."""
    out = torch.empty(len(u0), len(t), *u0.shape[1:], dtype=torch.float64, device=u0.device)
    out[:, 0] = u0
    return out


# ---------------------------------------------------------------------------------------------
# grids and waves

def indices(n, device):
    """The numbers 0 to n - 1 in float64, (n,)."""
    return torch.arange(n, dtype=torch.float64, device=device)


def centres(n_cells, low=0., high=1.):
    """Centres of n_cells equal cells of the interval (low, high), (n_cells,) numpy."""
    return low + (high - low) * (np.arange(n_cells) + .5) / n_cells


def wave_numbers(u, length):
    """Angular wave numbers of rfft along the last axis of u, (K,). length: extent of the axis."""
    return 2 * math.pi / length * indices(u.shape[-1] // 2 + 1, u.device)


def waves_2d(size, device):
    """Angular wave numbers (X, 1) and (1, K) of rfft2 on the unit square, and the waves (X, K) that the 2/3
    rule keeps."""
    n_x, n_y = size
    wave_x = torch.fft.fftfreq(n_x, 1 / n_x, dtype=torch.float64, device=device)
    wave_y = indices(n_y // 2 + 1, device)
    kept_x = 3 * wave_x.abs() < n_x
    kept_y = 3 * wave_y < n_y
    kept = kept_x[:, None] & kept_y
    return 2 * math.pi * wave_x[:, None], 2 * math.pi * wave_y[None], kept


def finer_spectrum(w0, refine):
    """Spectrum of w0 (B, X, Y) on a finer grid with the same first point, (B, refine X, K). The shortest
    waves (+1, -1, +1, ..) are left out."""
    n_batch, n_x, n_y = w0.shape
    top_x = (n_x - 1) // 2
    top_y = (n_y - 1) // 2
    rows = torch.arange(-top_x, top_x + 1)
    columns = torch.arange(top_y + 1)
    given = torch.fft.rfft2(w0)
    fine = given.new_zeros(n_batch, refine * n_x, refine * n_y // 2 + 1)
    fine[:, rows[:, None], columns] = given[:, rows[:, None], columns]
    return fine * refine ** 2


def sum_of_squares(wave):
    """|k|² of the wave vectors on a square, (K, K), from the wave numbers of one axis, (K,)."""
    return wave[:, None] ** 2 + wave ** 2


def exchange_axes(u, element, shift):
    """Exchange x and y of scalar fields u (.., X, X) if `element` is odd; return u if it is even. A symmetry
    (`PDE.symmetry`) of isotropic equations on a square; shift is not used."""
    return u.transpose(-1, -2) if element % 2 else u


# ---------------------------------------------------------------------------------------------
# slopes and linear systems

def limited_slope(left, right):
    """Slope of a cell by the monotonised central limiter (LeVeque 2002, section 6.11). left, right:
    differences across its left and right faces."""
    central = (left + right) / 2
    steepest = 2 * torch.minimum(left.abs(), right.abs())
    slope = torch.minimum(central.abs(), steepest)
    return torch.where(left * right > 0, slope * central.sign(), 0.)


def tridiagonal(lower, diagonal, upper, right, coupling=None):
    """Solve the cyclic systems lower[i] x[i-1] + diagonal[i] x[i] + upper[i] x[i+1] = right[i], (B, N) each.

    Cyclic reduction eliminates the odd unknowns while N is even; the rest is solved densely, so that sizes
    with many factors of two are fast. It stops early if all off-diagonal entries are below rounding. For a
    system that is not cyclic, set lower[0] = upper[-1] = 0. The matrix must be diagonally dominant. coupling: a
    limit of off-diagonal entries / diagonal ones, if one is known. On a GPU it is measured once, since it waits
    for a number.
    """
    n = diagonal.shape[-1]
    if coupling is None or diagonal.device.type == 'cpu':
        coupling = float((torch.maximum(lower.abs(), upper.abs()) / diagonal.abs()).max())
    if coupling < 1e-17:
        return right / diagonal
    if n % 2:
        return _solved_densely(lower, diagonal, upper, right)
    even = []
    odd = []
    before = []                                                     # the odd row before each even one
    for row in (lower, diagonal, upper, right):
        even.append(row[..., ::2])
        odd.append(row[..., 1::2])
        before.append(odd[-1].roll(1, -1))
    lower_odd, diagonal_odd, upper_odd, right_odd = odd
    lower_before, diagonal_before, upper_before, right_before = before
    from_left = -even[0] / diagonal_before
    from_right = -even[2] / diagonal_odd
    x_even = tridiagonal(
        from_left * lower_before,
        even[1] + from_left * upper_before + from_right * lower_odd,
        from_right * upper_odd,
        even[3] + from_left * right_before + from_right * right_odd,
        coupling ** 2 / max(1 - 2 * coupling ** 2, coupling ** 2))
    x_after = x_even.roll(-1, -1)
    x_odd = (right_odd - lower_odd * x_even - upper_odd * x_after) / diagonal_odd
    return torch.stack([x_even, x_odd], -1).flatten(-2)


def _solved_densely(lower, diagonal, upper, right):
    n = diagonal.shape[-1]
    eye = torch.eye(n, dtype=diagonal.dtype, device=diagonal.device)
    matrix = diagonal[..., None] * eye
    matrix = matrix + lower[..., None] * eye.roll(-1, 1)
    matrix = matrix + upper[..., None] * eye.roll(1, 1)
    return torch.linalg.solve(matrix, right[..., None]).squeeze(-1)


# ---------------------------------------------------------------------------------------------
# steps in time

def graded_steps(start, end, first, growth, longest=math.inf):
    """Yield time steps from `start` to `end` that grow with the time, to resolve fast transients at first.
    A step at the time t is at most max(first, growth t) and at most `longest`."""
    now = start
    while now < end:
        most = min(longest, max(first, growth * now))
        n_steps = math.ceil((end - now) / most)
        step = (end - now) / n_steps
        yield step
        now = end if n_steps == 1 else now + step


def etdrk4_weights(linear, step):
    """The six weights of one ETDRK4 step of u' = linear u + rate(u), each of the shape and kind of `linear`.
    They are means over circles in the complex plane (Kassam and Trefethen, SIAM J. Sci. Comput. 26, 2005)."""
    angle = math.pi / CONTOUR * (indices(CONTOUR, linear.device) + .5)
    circle = torch.polar(torch.ones_like(angle), angle)
    if linear.is_complex():                                         # else the lower half gives the conjugates
        circle = torch.cat([circle, circle.conj()])
    z = (linear * step)[..., None] + circle
    exp = z.exp()
    half = ((z / 2).exp() - 1) / z
    square = z ** 2
    cube = z ** 3
    first = (-4 - z + exp * (4 - 3 * z + square)) / cube
    second = (2 + z + exp * (z - 2)) / cube
    third = (-4 - 3 * z - square + exp * (4 - z)) / cube
    weights = [(linear * step / 2).exp(), (linear * step).exp()]
    for values in (half, first, second, third):
        values = values if linear.is_complex() else values.real
        weights.append(step * values.mean(-1))
    return weights


def etdrk4_step(u, rate, weights):
    """One step of the exponential Runge-Kutta method of order 4 (Cox and Matthews, J. Comput. Phys. 176,
    2002). rate: the nonlinear part; weights: from `etdrk4_weights`."""
    exp_half, exp, half, first, second, third = weights
    rate_u = rate(u)
    a = exp_half * u + half * rate_u
    rate_a = rate(a)
    b = exp_half * u + half * rate_a
    rate_b = rate(b)
    c = exp_half * a + half * (2 * rate_b - rate_u)
    middle = 2 * second * (rate_a + rate_b)
    return exp * u + first * rate_u + middle + third * rate(c)


def self_advection(u0, length, t, linear, longest):
    """Solve u_t + u u_x = L u, periodic on (0, length), by Fourier series with the 2/3 rule and ETDRK4.

    u0: (B, X) values at the cell centres, t: (T,), both as `checked` returns them. linear: the factor that L
    is for every wave of rfft, (K,), real or complex; longest: longest step in seconds. Returns (B, T, X)
    float64. The mean only transports the field. It is taken off, and the rest is shifted exactly.
    """
    n_cells = u0.shape[1]
    mean = u0.mean(1, keepdim=True)
    k = wave_numbers(u0, length)
    kept = k < 2 / 3 * math.pi * n_cells / length
    derivative = -.5j * k * kept

    def advection_term(v):
        field = torch.fft.irfft(v * kept, n=n_cells)
        return derivative * torch.fft.rfft(field ** 2)

    out = empty_frames(u0, t)
    v = torch.fft.rfft(u0 - mean)
    last_step = 0.
    for i, gap in enumerate(counted('solver: frames', np.diff(t))):
        n_steps = math.ceil(gap / longest)
        step = gap / n_steps
        if abs(step - last_step) > 1e-9 * step:
            weights = etdrk4_weights(linear, step)
            last_step = step
        for _ in range(n_steps):
            v = etdrk4_step(v, advection_term, weights)
        distance = mean * t[i + 1]
        turn = torch.polar(torch.ones_like(k), -k * distance)
        out[:, i + 1] = mean + torch.fft.irfft(v * turn, n=n_cells)
    return out


# ---------------------------------------------------------------------------------------------
# random initial fields

def generators(n, seed, first):
    """A random generator for each of n samples. Generator i depends on (seed, first + i) alone, so that all
    parameters, grids and sizes of a data set share their samples."""
    return [np.random.default_rng([seed, number]) for number in range(first, first + n)]


def sum_of_waves(rng, x, modes, p_window):
    """One sample of `waves` at the points x (X,) of (0, 1). modes: highest wave number that is drawn (twice).
    p_window: probability of the window."""
    drawn = rng.integers(0, modes, 2)
    count = np.bincount(drawn, minlength=modes)
    amplitude = rng.uniform(size=modes)
    phase = 2 * np.pi * rng.uniform(size=modes)
    wave = np.arange(1, modes + 1) * count
    angle = 2 * np.pi * wave[:, None] * x / WAVES_PERIOD + phase[:, None]
    terms = amplitude[:, None] * np.sin(angle)
    u = terms.sum(0)
    is_abs = rng.uniform() < .1
    sign = rng.choice([-1., 1.])
    is_window = rng.uniform() < p_window
    left = rng.uniform(.1, .45)
    right = rng.uniform(.55, .9)
    u = sign * (np.abs(u) if is_abs else u)
    if is_window:
        window = np.tanh((x - left) / .01) - np.tanh((x - right) / .01)
        u = u * .5 * window
    return u


def from_0_to_1(u):
    """u scaled linearly to the range 0 to 1."""
    return (u - u.min()) / (u.max() - u.min())


def waves(n, cells, seed=0, first=0):
    """PDEBench's initial fields in one dimension, at the cell centres, (n, X) float64 for cells = (X,).

    u0 = s |·|? Σ_{i=1..4} A_i sin(2π i n_i x / P + φ_i), A_i ~ U[0, 1), φ_i ~ U[0, 2π), where n_i counts how
    often i was drawn in two draws from 1..4. PDEBench's peculiarities are kept: a mode that was not drawn
    adds the constant A_i sin φ_i (so most samples have a mean); a mode that was drawn twice doubles its wave
    number (up to 8); P = 1 - 1/1024 is the distance from the first to the last centre; one sample in ten is
    |u|; the sign s is random; one sample in ten is windowed to (xL, xR) by tanh ramps of width .01. Unlike in
    PDEBench, all draws are independent. Sample i depends on (seed, first + i) alone.
    """
    n_cells, = cells
    x = centres(n_cells)
    u0 = np.empty((n, n_cells))
    for row, rng in enumerate(generators(n, seed, first)):
        u0[row] = sum_of_waves(rng, x, 4, .1)
    return u0
