"""Exact solutions of the equations, and solutions by other methods, that share no code with the solvers."""
import functools
import math

import numpy as np

from equations.common import centres


def runge_kutta(rate, u, step, n_steps):
    """The classical method of fourth order."""
    for _ in range(n_steps):
        first = rate(u)
        second = rate(u + step / 2 * first)
        third = rate(u + step / 2 * second)
        fourth = rate(u + step * third)
        u = u + step / 6 * (first + 2 * second + 2 * third + fourth)
    return u


def simpson(values, step):
    """Integral of values (.., T), T odd, by Simpson's rule."""
    return step / 3 * (values[..., 0] + 4 * values[..., 1:-1:2].sum(-1) + 2 * values[..., 2:-1:2].sum(-1)
                       + values[..., -1])


def cole_hopf(X, diffusivity, t, a, c, length=1.):
    """Cell averages on (0, length) of u = c - 2D (log phi)_x, phi = 1 + a exp(-k² D t) cos k (x - c t), k the
    smallest wave number: a solution of u_t + (u²/2)_x = D u_xx. (T, X)"""
    k = 2 * np.pi / length
    t = np.asarray(t)[:, None]
    edge = length * np.arange(X + 1) / X - c * t
    phi = 1 + a * np.exp(-k ** 2 * diffusivity * t) * np.cos(k * edge)
    return c - 2 * diffusivity * X / length * np.diff(np.log(phi))


def travelling_shock(X, c, diffusivity, t):
    """Cell averages of a tanh shock from A to -A with speed c, (T, X), and where they are valid: after the
    first frame, within .1 of the shock. In the first, a ramp from -A to A closes the period."""
    A = .5

    def log_cosh(y):
        return np.abs(y) + np.log1p(np.exp(-2 * np.abs(y)))

    def potential(y):                                   # integral of the first frame over y in (.1, 1.1)
        ramp = np.where(y > .9, A / .2 * ((y - 1) ** 2 - .01), 0.)
        return ramp - 2 * diffusivity * log_cosh((np.minimum(y, .9) - .5) * A / (2 * diffusivity))

    edge = np.arange(X + 1) / X
    wrap = edge < .1
    values = potential(np.where(wrap, edge + 1, edge)) - wrap * (potential(1.1) - potential(.1))
    frames = [c + X * np.diff(values)]
    near = [np.full(X, True)]
    for time in t[1:]:
        left = np.arange(X) / X - .5 - c * time
        left -= np.round(left)
        ends = [log_cosh(y * A / (2 * diffusivity)) for y in (left, left + 1 / X)]
        frames.append(c - 2 * diffusivity * X * (ends[1] - ends[0]))
        near.append(np.abs(left) < .1)
    return np.stack(frames), np.stack(near)


def retardation(u):
    return 1 + (1 - .29) / .29 * 2880 * 3.5e-4 * .874 * u ** (.874 - 1)


@functools.cache
def similarity(level, y_end=.2, n=800):
    """f of u = f(x / √t), where R(f) f' y / 2 + D f'' = 0, f(0) = 1, f(∞) = level, by shooting."""
    h = y_end / n

    def rate(y, f, slope):
        return slope, -y / 2 * retardation(f) * slope / 5e-4

    def shoot(slope):
        values = [1.]
        for i in range(n):
            y = i * h
            f = values[-1]
            f1, s1 = rate(y, f, slope)
            f2, s2 = rate(y + h / 2, max(f + h / 2 * f1, 1e-9), slope + h / 2 * s1)
            f3, s3 = rate(y + h / 2, max(f + h / 2 * f2, 1e-9), slope + h / 2 * s2)
            f4, s4 = rate(y + h, max(f + h * f3, 1e-9), slope + h * s3)
            values.append(max(f + h / 6 * (f1 + 2 * f2 + 2 * f3 + f4), 1e-9))
            slope += h / 6 * (s1 + 2 * s2 + 2 * s3 + s4)
        return np.array(values)

    low = -100.
    high = 0.
    for _ in range(40):
        middle = (low + high) / 2
        if shoot(middle)[-1] > level:
            high = middle
        else:
            low = middle
    return np.arange(n + 1) * h, shoot((low + high) / 2)


def riemann(left, right, y):
    """Exact solution of a Riemann problem of γ = 5/3 at y = x / t (Toro, chapter 4), (len(y), 3): density,
    pressure, velocity."""
    g = 5 / 3

    def side(p, state):
        density, pressure, _ = state
        a = np.sqrt(g * pressure / density)
        if p > pressure:
            return (p - pressure) * np.sqrt(2 / (g + 1) / density / (p + (g - 1) / (g + 1) * pressure))
        return 2 * a / (g - 1) * ((p / pressure) ** ((g - 1) / (2 * g)) - 1)

    low = 1e-10
    high = 1e3
    for _ in range(200):
        p = (low + high) / 2
        if side(p, left) + side(p, right) + right[2] - left[2] > 0:
            high = p
        else:
            low = p
    v = (left[2] + right[2] + side(p, right) - side(p, left)) / 2

    def fan(state, y, v):
        """The wave that goes to the left, and what is behind it."""
        density, pressure, velocity = state
        a = np.sqrt(g * pressure / density)
        if p > pressure:
            q = (g - 1) / (g + 1)
            speed = velocity - a * np.sqrt((g + 1) / (2 * g) * p / pressure + (g - 1) / (2 * g))
            behind = np.array([density * (p / pressure + q) / (q * p / pressure + 1), p, v])
            return np.where((y < speed)[:, None], np.array(state), behind)
        behind = np.array([density * (p / pressure) ** (1 / g), p, v])
        head = velocity - a
        tail = v - a * (p / pressure) ** ((g - 1) / (2 * g))
        inside = np.clip(y, head, tail)
        c = 2 / (g + 1) * (a + (g - 1) / 2 * (velocity - inside))
        ramp = np.stack([density * (c / a) ** (2 / (g - 1)), pressure * (c / a) ** (2 * g / (g - 1)),
                         2 / (g + 1) * (a + (g - 1) / 2 * velocity + inside)], 1)
        return np.where((y < tail)[:, None], ramp, behind)

    mirrored = fan((right[0], right[1], -right[2]), -y, -v) * [1, 1, -1]
    return np.where((y < v)[:, None], fan(left, y, v), mirrored)


def viscous_shock(X, viscosity, drift, t):
    """A steady shock without heat conduction, viscosity per density, (X, 3): with momentum, energy and mass
    constant, v' = (γ + 1) / (2 ν) (v - v1) (v - v2), so that v is a tanh. The frame's speed is -drift."""
    g = 5 / 3
    v1 = 2.
    v2 = 1.2
    x = centres(X, -1, 1) - drift * t
    v = (v1 + v2) / 2 - (v1 - v2) / 2 * np.tanh((g + 1) * (v1 - v2) * x / (4 * viscosity))
    slope = (g + 1) / (2 * viscosity) * (v - v1) * (v - v2)
    force = (g + 1) / (2 * g) * (v1 + v2)                           # a mass flux of 1, v' = 0 at v1, v2
    pressure = force - v + viscosity / v * slope
    return np.stack([1 / v, pressure, v + drift], 1)


def vorticity_rate(w, nu):
    """Spectrum of dw/dt (X, X) from that of w: u·∇w from products of four fields, full complex spectra."""
    n_cells = w.shape[-1]
    wave = np.fft.fftfreq(n_cells, 1 / n_cells)
    k_x = 2j * np.pi * wave[:, None]
    k_y = 2j * np.pi * wave
    laplacian = k_x ** 2 + k_y ** 2
    safe = np.where(laplacian == 0, 1, laplacian)
    stream = -w / safe

    def values(spectrum):
        return np.fft.ifft2(spectrum).real

    product = values(k_y * stream) * values(k_x * w) - values(k_x * stream) * values(k_y * w)
    phase = 2 * np.pi * (centres(n_cells)[:, None] + centres(n_cells))
    force = .1 * (np.sin(phase) + np.cos(phase))
    kept = (np.abs(wave)[:, None] < n_cells / 3) & (np.abs(wave) < n_cells / 3)
    return nu * laplacian * w + np.fft.fft2(force - product) * kept


def stoker(x, t, left=2., right=1.):
    """Averages of h over the cells after a plane dam at 0 broke (Stoker 1957), for g = 1: a fan, a plateau,
    a bore."""
    low = right
    high = left
    for _ in range(100):                                            # both waves meet at one velocity
        middle = (low + high) / 2
        fan = 2 * (math.sqrt(left) - math.sqrt(middle))
        bore = (middle - right) * math.sqrt((1 / middle + 1 / right) / 2)
        low = middle if fan > bore else low
        high = high if fan > bore else middle
    front = middle * fan / (middle - right)
    step = x[1] - x[0]
    points = x[:, None] + step * (centres(64) - .5)
    ray = points / t
    sound = ((2 * math.sqrt(left) - ray) / 3).clip(math.sqrt(middle), math.sqrt(left))
    return np.where(ray < front, sound ** 2, right).mean(1)


def radial(radius, t, n_cells=2000):
    """The dam in polar coordinates, r h_t + (r h u)_r = 0, by Rusanov's fluxes of order 1: centres, h."""
    width = 2.5 / n_cells
    edge = np.arange(n_cells + 1) * width
    r = (edge[1:] + edge[:-1]) / 2
    q = np.stack([np.where(r < radius, 2., 1.), np.zeros(n_cells)])
    left = t
    while left > 0:
        padded = np.concatenate([q[:, :1] * [[1], [-1]], q, q[:, -1:]], 1)
        h, flow = padded
        flux = np.stack([flow, flow ** 2 / h + h ** 2 / 2])
        fastest = (abs(flow / h) + np.sqrt(h)).max()
        step = min(left, .9 * width / fastest)
        face = (flux[:, 1:] + flux[:, :-1]) / 2 - fastest / 2 * np.diff(padded)
        change = np.diff(edge * face) / (r * width)
        change[1] -= q[0] ** 2 / 2 / r                              # the pressure has no source in Cartesians
        q = q - step * change
        left -= step
    return r, q[0]


def solitons(x, t, waves, positions):
    """Two solitons of u_t + u u_x + u_xxx = 0, u = 12 (ln τ)'' (R. Hirota, Phys. Rev. Lett. 27, 1971). x: (.., X);
    t: (.., 1); waves: their k, for a height of 3k² and a speed of k²; positions: at t = 0, far apart."""
    a, b = [np.exp(k * (x - k ** 2 * t - at)) for k, at in zip(waves, positions)]
    k, m = waves
    ab = ((k - m) / (k + m)) ** 2 * a * b
    tau = 1 + a + b + ab
    slope = (k * a + m * b + (k + m) * ab) / tau
    curve = (k ** 2 * a + m ** 2 * b + (k + m) ** 2 * ab) / tau
    return 12 * (curve - slope ** 2)


def torsion(x, y):
    """-Δs = 1 on the unit square by a series of sines in x, and s = 0 on the boundary."""
    s = x * (1 - x) / 2 + 0 * y
    for k in np.pi * np.arange(1, 200, 2):
        s = s - 4 / k ** 3 * np.sin(k * x) * np.cosh(k * (y - .5)) / np.cosh(k / 2)
    return s
