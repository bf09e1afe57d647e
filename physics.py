"""
What physics asks of fields, measured: conserved integrals, energy, boundary values, divergence, the equation.

stages.py trains on these quantities, `python eval.py --physics` reports them. All are differentiable
functions of fields u (N, *X, C) in physical units, on a uniform grid of any number of axes. `axes` holds the
coordinates of its points, one tensor (X,) an axis; `entry` is that of the equation in pdes.py, which says
what holds. What is measured of a prediction is in units of the truth, so that both can be compared, and of
all its samples together, so that one in which hardly anything happens cannot outweigh the rest.

Derivatives are those of the Fourier series where the domain is periodic: exact for every field that the grid
resolves, so that what is left is an error of the field. Between walls they are central differences in the
interior, and one-sided ones of second order at the wall, since there is nothing beyond it.
"""
import math

import torch

from metrics import energy, rms

PRIORS = ('conservation', 'boundary', 'divergence', 'residual')      # lambda_NAME of train.py
QUANTITIES = ('conservation', 'energy', 'boundary', 'divergence', 'residual')
LABELS = {'conservation': 'conservation gap', 'energy': 'energy growth', 'boundary': 'boundary violation',
          'divergence': 'divergence', 'residual': 'residual of the equation'}
SMALLEST = 1e-6                       # norms in denominators are at least this


# ---------------------------------------------------------------------------------------------
# grids and derivatives

def axes_of(points, grid):
    """Coordinates along each axis, [(X,)], of row-major points (N, d) on `grid`."""
    points = points.view(*grid, len(grid))
    axes = []
    for axis in range(len(grid)):
        lines = points.movedim(axis, 0).flatten(1)                   # (X, rest d), the first d of one line
        axes.append(lines[:, axis])
    return axes


def spacing(x):
    """Distance between the points x (X,) of an axis, a tensor."""
    return (x[-1] - x[0]) / (len(x) - 1)


def is_centred(axes, entry):
    """Are the points the centres of equal cells?"""
    centred = []
    for x, low, length in zip(axes, entry.low, entry.length):
        half = length / len(x) / 2
        centred.append(abs(float(x[0]) - low - half) < .02 * half)
    return all(centred)


def multiplied(u, x, axis, factor):
    """The Fourier coefficients of u (N, *X) along a periodic axis times factor(k), which is that of negative
    wave numbers when conjugated; k (K,) are the angular wave numbers. -> (N, *X)"""
    n = len(x)
    modes = torch.fft.rfft(u, dim=1 + axis)
    k = 2 * math.pi * torch.arange(n // 2 + 1, device=u.device, dtype=u.dtype) / (n * spacing(x))
    modes = modes.movedim(1 + axis, -1) * factor(k)
    return torch.fft.irfft(modes.movedim(-1, 1 + axis), n=n, dim=1 + axis)


def derivative(u, x, axis, order=1):
    """Derivative of the trigonometric interpolant of u (N, *X) along a periodic axis with the points x. The
    wave of +-1 cells has no odd derivatives on the grid."""
    def factor(k):
        k = k ** order
        if order % 2 and len(x) % 2 == 0:
            k = torch.cat([k[:-1], torch.zeros_like(k[:1])])
        return k * (1, 1j, -1, -1j)[order % 4]

    return multiplied(u, x, axis, factor)


def shifted(u, x, distance):
    """u(x + distance) of fields (N, X) on a periodic axis; distance (N,)."""
    def factor(k):
        angle = distance[:, None] * k
        turn = torch.complex(angle.cos(), angle.sin())
        if len(x) % 2 == 0:                                          # the wave of +-1 cells has no sine
            top = turn[:, -1:].real
            turn = torch.cat([turn[:, :-1], torch.complex(top, torch.zeros_like(top))], 1)
        return turn

    return multiplied(u, x, 0, factor)


def at_rest(u0, u1, dt, x, speed):
    """Consecutive frames u0, u1 (N, X), the mean m of the first taken off, seen from a frame that moves with
    speed times m: what Galilean symmetry turns a solution into. No time step is too long for it."""
    mean = u0.mean(1, keepdim=True)
    return u0 - mean, shifted(u1 - mean, x, speed * mean[:, 0] * dt)


def central(u, x, axis):
    """Central difference along an axis in the interior: (N, *X) -> two points fewer along that axis."""
    n = len(x) - 2
    return (u.narrow(1 + axis, 2, n) - u.narrow(1 + axis, 0, n)) / (2 * spacing(x))


def interior(u, but):
    """u (N, *X) without the outermost points along every axis but one."""
    for axis in range(u.ndim - 1):
        if axis != but:
            u = u.narrow(1 + axis, 1, u.shape[1 + axis] - 2)
    return u


def gradient(u, axes, axis, periodic):
    """Derivative of u (N, *X) along an axis; between walls, in the interior of all axes."""
    if periodic:
        return derivative(u, axes[axis], axis)
    return interior(central(u, axes[axis], axis), axis)


def velocity_from_vorticity(w, axes):
    """The velocity (N, X, Y, 2) of a periodic flow with the vorticity w (N, X, Y): u = (psi_y, -psi_x) with
    the stream function -(psi_xx + psi_yy) = w. It is free of divergence, whatever w is."""
    modes = torch.fft.fft2(w)
    waves = []
    known = []
    for x in axes:
        n = len(x)
        number = torch.fft.fftfreq(n, 1 / n, device=w.device, dtype=w.dtype)
        waves.append(2 * math.pi * number / (n * spacing(x)))
        known.append(2 * number != -n)                               # the wave of +-1 cells has no derivative
    k_x = waves[0][:, None]
    k_y = waves[1]
    square = k_x ** 2 + k_y ** 2
    known = known[0][:, None] & known[1] & (square > 0)
    psi = modes * known / torch.where(square > 0, square, 1.)
    velocity = torch.stack([1j * k_y * psi, -1j * k_x * psi], -1)
    return torch.fft.ifft2(velocity, dim=(1, 2)).real


# ---------------------------------------------------------------------------------------------
# integrals

def weights(x, low, length, periodic):
    """Weights of the mean over an axis, (X,), their sum 1: of a point, the part of the domain that is nearer
    to it than to any other. Centres of cells weigh the same; of points on both walls, the outermost half."""
    if periodic:
        return torch.full_like(x, 1 / len(x))
    middle = (x[1:] + x[:-1]) / 2
    ends = torch.stack([x.new_tensor(low), x.new_tensor(low + length)])
    edges = torch.cat([ends[:1], middle, ends[1:]])
    return edges.diff() / length


def mean(u, axes, entry):
    """The mean of u (N, *X, C) over the domain, (N, C)."""
    for x, low, length in zip(axes, entry.low, entry.length):
        u = u.movedim(1, -1) @ weights(x, low, length, entry.periodic)
    return u


def numbers(entry, names):
    """Where fields are among the channels."""
    return [entry.fields.index(name) for name in names]


def conservation(p, u0, axes, entry):
    """(<p> - <u0>) / rms(u0) for every conserved field, (N, C'): metrics.conservation_gap with its sign, <.>
    the mean over the domain. u0 (N, *X, C): the field that a rollout starts from."""
    fields = numbers(entry, entry.conserved)
    gap = mean(p[..., fields] - u0[..., fields], axes, entry)
    return gap / rms(u0[:, None, ..., fields])[:, 0].clamp_min(SMALLEST)


def energies(u, axes, entry):
    """<|u|^2> over the fields of the velocity, (N,)."""
    fields = numbers(entry, entry.velocity or entry.fields)
    return mean(u[..., fields].square(), axes, entry).sum(-1)


# ---------------------------------------------------------------------------------------------
# boundaries

def at_wall(u, x, axis, wall, high):
    """Value and outward derivative of fields u (N, *X) at a wall, both (N, *X without the axis), by the
    parabola through the three points next to it. x (X,); wall: its coordinate; high: is it the upper one?"""
    u = u.movedim(1 + axis, 0)
    if high:
        u = u.flip(0)
        x = x.flip(0)
    s = (x[:3] - wall).abs()                                         # distances
    value = 0.
    slope = 0.
    for i in range(3):
        a = s[(i + 1) % 3]
        b = s[(i + 2) % 3]
        share = u[i] / ((s[i] - a) * (s[i] - b))
        value = value + a * b * share
        slope = slope + (a + b) * share                              # inwards it is the negative of this
    return value, slope


def boundary(u, y, axes, entry):
    """How far fields are from the conditions a u + b du/dn = g that `entry.walls` gives, in units of
    a rms(y) + b rms(dy/dn), y the truth: (N, points of all walls)."""
    defects = []
    for name, sides in entry.walls.items():
        field = entry.fields.index(name)
        v = u[..., field]
        true = y[..., field]
        size = true.square().mean().sqrt()
        for axis, x in enumerate(axes):
            slope = central(true, x, axis).square().mean().sqrt()
            low = entry.low[axis]
            for condition, wall in zip(sides, (low, low + entry.length[axis])):
                a, b, g = condition
                value, outward = at_wall(v, x, axis, wall, wall > low)
                scale = (a * size + b * slope).clamp_min(SMALLEST)
                defect = (a * value + b * outward - g) / scale
                defects.append(defect.reshape(len(u), -1))
    return torch.cat(defects, 1)


# ---------------------------------------------------------------------------------------------
# divergence and the equation

def divergence(v, axes, periodic):
    """Divergence of a velocity v (N, *X, d): (N, *X), between walls (N, *X - 2)."""
    parts = [gradient(v[..., axis], axes, axis, periodic) for axis in range(len(axes))]
    return sum(parts)


def relative_divergence(u, y, axes, entry):
    """Divergence of the velocity in the fields u, in units of the rms of the truth's whole velocity gradient,
    (N, *X)."""
    fields = numbers(entry, entry.velocity)
    square = 0.
    for field in fields:
        for axis in range(len(axes)):
            part = gradient(y[..., field], axes, axis, entry.periodic)
            square = square + part.square().mean()
    return divergence(u[..., fields], axes, entry.periodic) / square.sqrt().clamp_min(SMALLEST)


def rate(u0, u1, dt, entry):
    """Rms of (u1 - u0) / dt for each field that is not static, (C',): the size that a residual is compared
    with. That of a steady equation has the unit of its source already: 1."""
    if entry.steady:
        return 1.
    fields = [i for i, name in enumerate(entry.fields) if name not in entry.static]
    dt = dt.view(-1, *[1] * (u0.ndim - 1))
    speed = (u1 - u0)[..., fields] / dt
    return speed.square().flatten(0, -2).mean(0).sqrt().clamp_min(SMALLEST)


# ---------------------------------------------------------------------------------------------
# what applies

def why_not(quantity, entry, axes):
    """Why a quantity does not apply to an equation on this grid, as a clause; '' if it does."""
    if quantity == 'conservation' and not entry.conserved:
        return 'it conserves the integral of no field'
    if quantity == 'energy' and not entry.dissipative:
        return 'its energy may grow'
    if quantity == 'boundary' and not entry.walls:
        return f'its boundary is {entry.boundary}, where no value is prescribed'
    if quantity == 'divergence' and not entry.incompressible:
        if entry.pseudo:
            return 'it has a vorticity and no velocity, which follows from a stream function: no divergence'
        return 'its velocity is that of no incompressible flow' if entry.velocity else 'it has no velocity'
    if quantity == 'residual' and not entry.residual:
        return 'its entry in pdes.py has no residual'
    if quantity == 'residual' and not entry.periodic and not is_centred(axes, entry):
        return 'the points of the grid are not the centres of cells: take all cells of a file'
    return ''


# ---------------------------------------------------------------------------------------------
# the report

@torch.no_grad()
def report(u0, p, y, dt, params, axes, entry):
    """
    What eval.py --physics says of predictions p and of the truth y, both (N, T, *X, C), frames dt seconds
    apart after u0 (N, *X, C). params: {name: (N,)}. Returns {quantity: {'prediction': number, 'truth':
    number}, or {'does_not_apply': why}}, with an item for each conserved field.

    In float64. conservation: mean of |<u_t> - <u_0>| / rms(u_0) over trajectories and frames. energy: what it
    grows by from frame to frame, summed over the frames (falls do not make up for it), over that of u_0.
    boundary, divergence, residual: rms over points and trajectories in units of the truth, mean over frames.
    """
    axes = [x.cpu().double() for x in axes]
    values = {name.lower(): value.cpu().double() for name, value in params.items()}
    dt = torch.full((len(u0),), dt, dtype=torch.float64)
    start = u0.double()
    found = {}
    for quantity in QUANTITIES:
        why = why_not(quantity, entry, axes)
        if why:
            found[quantity] = {'does_not_apply': why}
            continue
        total = {}
        for side, u in (('prediction', p), ('truth', y)):
            total[side] = 0.
            before = true_before = start
            for t in range(u.shape[1]):                              # frame by frame, as metrics() goes
                now = u[:, t].double()
                true = y[:, t].double()
                pairs = (start, before, now, true_before, true)
                total[side] = total[side] + of_frame(quantity, *pairs, dt, values, axes, entry)
                before = now
                true_before = true
            if quantity != 'energy':
                total[side] = total[side] / u.shape[1]
        names = entry.conserved if quantity == 'conservation' else ('',)
        for i, name in enumerate(names):
            key = f'{quantity} of {name}' if name else quantity
            found[key] = {side: float(value[i]) for side, value in total.items()}
    return found


def of_frame(quantity, start, before, u, true_before, true, dt, params, axes, entry):
    """A quantity of the frame u, which follows `before`: (conserved fields,) or (1,)."""
    if quantity == 'conservation':
        return conservation(u, start, axes, entry).abs().mean(0)
    if quantity == 'energy':
        grown = energies(u, axes, entry) - energies(before, axes, entry)
        whole = energies(start, axes, entry).sum(0, keepdim=True)
        return grown.clamp_min(0.).sum() / whole.clamp_min(SMALLEST)
    if quantity == 'boundary':
        defect = boundary(u, true, axes, entry)
    elif quantity == 'divergence':
        defect = relative_divergence(u, true, axes, entry)
    else:
        defect = entry.residual(before, u, dt, params, axes) / rate(true_before, true, dt, entry)
    return defect.square().mean().sqrt()[None]


def lines(found):
    """The report as text, a line a quantity."""
    rows = [['', 'prediction', 'truth']]
    for key, value in found.items():
        quantity, *field = key.split(' ', 1)
        label = ' '.join([LABELS[quantity], *field])
        if 'does_not_apply' in value:
            rows.append([label, f"does not apply: {value['does_not_apply']}"])
        else:
            sides = [value['prediction'], value['truth']]
            rows.append([label, *['not finite' if x is None else f'{x:.3g}' for x in sides]])
    text = []
    for label, *cells in rows:
        columns = [f'{cell:<10}' for cell in cells]
        text.append(f'{label:<28}' + '  '.join(columns).rstrip())
    return '\n'.join(text)


def spectra(u, periodic):
    """Energy spectrum of fields u (N, T, *X, C), the mean over trajectories (T, K, C), and K wave numbers in
    waves a domain. Between walls it is that of the even extension, which does not jump: half waves count."""
    u = u.double()
    unit = 1.
    if not periodic:
        unit = .5
        for axis in range(2, u.ndim - 1):
            u = torch.cat([u, u.flip(axis)], axis)
    power = energy(u).mean(0)
    return power, unit * torch.arange(power.shape[1])
