"""
Derivatives, shifts and integrals of fields on a uniform grid of any number of axes.

Fields are (N, *X) or (N, *X, C) in physical units. `axes` holds the coordinates of the grid's points, one
tensor (X,) an axis; `entry` is the PDE of the equation. All functions are differentiable.

On a periodic domain, derivatives are those of the trigonometric interpolant. They are exact for all fields
that the grid resolves. Between walls they are central differences of second order, in the interior.
"""
import math

import torch


# ---------------------------------------------------------------------------------------------
# grids

def axes_of(points, grid):
    """Coordinates along each axis, [(X,)], of row-major points (N, d) on `grid`."""
    points = points.view(*grid, len(grid))
    axes = []
    for axis in range(len(grid)):
        lines = points.movedim(axis, 0).flatten(1)                   # (X, rest d), the first d of one line
        axes.append(lines[:, axis])
    return axes


def spacing(x):
    """Distance between neighbours of the uniform points x (X,), of the kind of x."""
    return (x[-1] - x[0]) / (len(x) - 1)


def is_centred(axes, entry):
    """Are the points of a grid the centres of equal cells of the domain, to a hundredth of a cell? Such a
    grid is its own mirror image. axes: [(X,)], arrays or tensors."""
    centred = []
    for x, low, length in zip(axes, entry.low, entry.length):
        half = length / len(x) / 2
        gap = float(x[0]) - low
        centred.append(abs(gap - half) < .02 * half)
    return all(centred)


def numbers(entry, names):
    """Channel numbers of the fields with these names."""
    return [entry.fields.index(name) for name in names]


# ---------------------------------------------------------------------------------------------
# periodic axes

def multiplied(u, x, axis, factor):
    """u (N, *X) with its Fourier coefficients along a periodic axis multiplied by factor(k), for the angular
    wave numbers k >= 0, (K,). Negative wave numbers are multiplied by the conjugate. Returns (N, *X)."""
    n = len(x)
    modes = torch.fft.rfft(u, dim=1 + axis)
    number = torch.arange(n // 2 + 1, device=u.device, dtype=u.dtype)
    k = 2 * math.pi * number / (n * spacing(x))
    modes = modes.movedim(1 + axis, -1) * factor(k)
    return torch.fft.irfft(modes.movedim(-1, 1 + axis), n=n, dim=1 + axis)


def derivative(u, x, axis, order=1):
    """Derivative of the trigonometric interpolant of u (N, *X) along a periodic axis with the points x (X,).
    Odd derivatives of the shortest wave (+1, -1, +1, ..) vanish at the points of the grid."""
    def factor(k):
        k = k ** order
        if order % 2 and len(x) % 2 == 0:
            k = torch.cat([k[:-1], torch.zeros_like(k[:1])])
        power_of_i = (1, 1j, -1, -1j)[order % 4]
        return k * power_of_i

    return multiplied(u, x, axis, factor)


def shifted(u, x, distance):
    """The trigonometric interpolant of u (N, X) at the points x + distance of a periodic axis, (N, X).
    distance: (N,)."""
    def factor(k):
        angle = distance[:, None] * k
        turn = torch.complex(angle.cos(), angle.sin())
        if len(x) % 2 == 0:                                          # the shortest wave has no sine
            top = turn[:, -1:].real
            top = torch.complex(top, torch.zeros_like(top))
            turn = torch.cat([turn[:, :-1], top], 1)
        return turn

    return multiplied(u, x, 0, factor)


def at_rest(u0, u1, dt, x, speed):
    """Two frames u0, u1 (N, X), dt (N,) seconds apart, in the frame of reference of the mean flow.

    The mean m of u0 is subtracted from both, and u1 is shifted back by speed m dt. By Galilean symmetry this
    is again a solution, without transport by the mean, so that a long time step between the frames does no
    harm. x: (X,), the periodic axis. speed: `PDE.galilean`.
    """
    mean = u0.mean(1, keepdim=True)
    return u0 - mean, shifted(u1 - mean, x, speed * mean[:, 0] * dt)


def velocity_from_vorticity(w, axes):
    """Velocity (N, X, Y, 2) of a periodic flow with the vorticity w (N, X, Y).

    It is (psi_y, -psi_x) for the stream function psi with -(psi_xx + psi_yy) = w, so that its divergence is
    zero for every w. The mean of w and its shortest waves are left out.
    """
    modes = torch.fft.fft2(w)
    waves = []
    known = []
    for x in axes:
        n = len(x)
        number = torch.fft.fftfreq(n, 1 / n, device=w.device, dtype=w.dtype)
        length = n * spacing(x)
        waves.append(2 * math.pi * number / length)
        known.append(2 * number != -n)                               # the shortest wave has no derivative
    k_x = waves[0][:, None]
    k_y = waves[1]
    square = k_x ** 2 + k_y ** 2
    known = known[0][:, None] & known[1] & (square > 0)
    psi = modes * known / torch.where(square > 0, square, 1.)
    velocity = torch.stack([1j * k_y * psi, -1j * k_x * psi], -1)
    return torch.fft.ifft2(velocity, dim=(1, 2)).real


# ---------------------------------------------------------------------------------------------
# axes between walls, and axes of either kind

def central(u, x, axis):
    """Central differences of u (N, *X) along an axis with the points x: two points fewer along that axis."""
    n = len(x) - 2
    behind = u.narrow(1 + axis, 0, n)
    ahead = u.narrow(1 + axis, 2, n)
    return (ahead - behind) / (2 * spacing(x))


def interior(u, but):
    """u (N, *X) without the outermost points along every axis but one."""
    for axis in range(u.ndim - 1):
        if axis != but:
            u = u.narrow(1 + axis, 1, u.shape[1 + axis] - 2)
    return u


def gradient(u, axes, axis, periodic):
    """Derivative of u (N, *X) along an axis: (N, *X), between walls (N, *X - 2), the interior of all axes."""
    if periodic:
        return derivative(u, axes[axis], axis)
    return interior(central(u, axes[axis], axis), axis)


def divergence(v, axes, periodic):
    """Divergence of a velocity v (N, *X, d): (N, *X), between walls (N, *X - 2)."""
    parts = [gradient(v[..., axis], axes, axis, periodic) for axis in range(len(axes))]
    return sum(parts)


# ---------------------------------------------------------------------------------------------
# integrals

def weights(x, low, length, periodic):
    """Weights (X,) of the points x in the mean over an axis from low to low + length; their sum is 1.

    The weight of a point is the part of the axis that is nearer to it than to other points. Cell centres have
    equal weights. Points that include both walls have those of the trapezoidal rule.
    """
    if periodic:
        return torch.full_like(x, 1 / len(x))
    middle = (x[1:] + x[:-1]) / 2
    edges = torch.cat([x.new_full((1,), low), middle, x.new_full((1,), low + length)])
    return edges.diff() / length


def mean(u, axes, entry):
    """Mean of u (N, *X, C) over the domain, (N, C)."""
    for x, low, length in zip(axes, entry.low, entry.length):
        u = u.movedim(1, -1) @ weights(x, low, length, entry.periodic)
    return u
