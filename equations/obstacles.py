"""
Flow past obstacles in a channel.

    ∂u/∂t + (u·∇)u = -∇p + ν Δu,   ∇·u = 0,      x in (0, 2), y in (0, 1),   ν = D / Re,   D = .25

Units are the height of the channel, the mean velocity of the inflow, and their ratio in time; the density is
1. One to three obstacles, fluid at rest at t = 0, an inflow that rises until t = 1.
"""
import math

import numpy as np
import torch
import torch.nn.functional as F

from equations import PDE, Record
from equations.common import centres, checked, empty_frames, generators
from equations.lattice import Channel, risen
from runtime.configurator import UserError
from runtime.progress import counted

DIAMETER = .25                  # that the Reynolds number is of
LENGTH = 2.
SPEED = .08                     # of the mean inflow in cells a step: a seventh of that of sound
RISE = 1.                       # time in which the inflow rises
GAP = .1                        # least distance of obstacles from each other and from walls
SIDES = 48                      # of the polygon that stands for a disc or an ellipse
NEAR = 3                        # cells from its wall that belong to an obstacle
MOST = 3                        # obstacles in a channel
WIDTH = 1.5                     # of the delta function, and
AWAY = (.25, .5, .75, 1., 1.5)  # distances from a wall at which fields are read, in cells
LEAST = .01                     # weight of the cells that are fluid


def obstacles(u0, t, re, records=None, dtype=torch.float32):
    """Flow past obstacles from rest. u0 (B, X, Y, 4): velocity and pressure, which are not used, and the signed
    distance to the nearest wall, positive in the fluid. re: Reynolds number. Returns velocity, pressure and
    distance (B, T, X, Y, 4) float64; velocity and pressure are 0 inside obstacles. records: a dict that takes
    'forces' (B, T, N, 2), drag and lift on each obstacle as numbered by `numbers`, 0 for those beyond the last.

    Lattice Boltzmann: equations/lattice.py. Raises UserError as `checked` does, for cells that are no squares,
    and where the flow blows up.
    """
    u0, t = checked(u0, t, axes=2, channels=4, re=re)
    X, Y = u0.shape[1:3]
    if not math.isclose(X, LENGTH * Y):
        raise UserError(f'{X} x {Y} cells: a channel twice as long as high needs twice as many along x')
    distance = u0[..., 3]
    viscosity = SPEED * Y * DIAMETER / re
    channel = Channel(distance * Y, SPEED, torch.full((len(u0),), viscosity), dtype)
    out = empty_frames(u0, t)
    out[:, 0, ..., :3] = 0.
    out[..., 3] = distance[:, None]
    scale = torch.tensor([1 / SPEED, 1 / SPEED, 1 / SPEED ** 2], device=u0.device)
    step = SPEED / Y                                                 # seconds
    number = numbers(distance)
    forces = np.zeros((*out.shape[:2], MOST, 2))
    done = 0
    for frame, time in enumerate(counted('solver: frames', t[1:]), 1):
        until = round(time / step)
        for k in range(done, until):
            channel.step(risen((k + 1) * step / RISE))
        done = until
        out[:, frame, ..., :3] = channel.fields() * scale
        forces[:, frame] = (channel.forces(number, MOST) / (SPEED ** 2 * Y)).cpu()
    if not out.isfinite().all():
        raise UserError(f're={re:g} is too much for {X} x {Y} cells: take more')
    if records is not None:
        records['forces'] = forces
    return out


# ---------------------------------------------------------------------------------------------
# geometry

def signed_distance(x, y, corners):
    """Signed distance of points (P,) to a polygon (V, 2), positive outside, (P,)."""
    a = corners
    edge = np.roll(corners, -1, 0) - a                               # (V, 2)
    to = np.stack([x, y], -1)[:, None] - a                           # (P, V, 2)
    along = ((to * edge).sum(-1) / (edge ** 2).sum(-1)).clip(0, 1)
    distance = np.linalg.norm(to - along[..., None] * edge, axis=-1).min(1)
    y_a = a[:, 1]
    y_b = y_a + edge[:, 1]
    crosses = (y_a <= y[:, None]) != (y_b <= y[:, None])             # a ray along +x meets the edge
    with np.errstate(divide='ignore', invalid='ignore'):
        at = a[:, 0] + (y[:, None] - y_a) / edge[:, 1] * edge[:, 0]
    is_inside = (crosses & (at > x[:, None])).sum(1) % 2 == 1
    return np.where(is_inside, -distance, distance)


def random_shape(rng):
    """Corners (V, 2) of a random disc, ellipse or polygon around the origin."""
    radius = rng.uniform(.08, .14)
    turn = rng.uniform(0, 2 * np.pi)
    kind = rng.integers(3)
    if kind == 2:
        n = int(rng.integers(3, 7))
        angle = 2 * np.pi * (np.arange(n) + rng.uniform(-.2, .2, n)) / n
        corners = radius * np.stack([np.cos(angle), np.sin(angle)], -1)
    else:
        angle = 2 * np.pi * np.arange(SIDES) / SIDES
        flat = rng.uniform(.45, .8) if kind == 1 else 1.
        corners = radius * np.stack([np.cos(angle), flat * np.sin(angle)], -1)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return corners @ rotation


def random_obstacles(rng):
    """One to three polygons in the channel, a list of corners (V, 2), at least GAP from each other and from
    walls."""
    shapes = []
    circles = []
    n = rng.integers(1, MOST + 1)
    while len(shapes) < n:
        shape = random_shape(rng)
        radius = np.linalg.norm(shape, axis=1).max()
        centre = np.array([rng.uniform(.4, 1.2), rng.uniform(GAP + radius, 1 - GAP - radius)])
        if all(np.linalg.norm(centre - other) > radius + size + GAP for other, size in circles):
            shapes.append(centre + shape)
            circles.append((centre, radius))
    return shapes


def distances(shapes, cells):
    """Signed distance (X, Y) of the cell centres to the nearest wall: of the polygons, or of the channel."""
    x, y = np.meshgrid(centres(cells[0], 0., LENGTH), centres(cells[1]), indexing='ij')
    nearest = np.minimum(y, 1 - y)
    for corners in shapes:
        nearest = np.minimum(nearest, signed_distance(x.ravel(), y.ravel(), corners).reshape(cells))
    return nearest


def numbers(distance):
    """The obstacle that each cell near one belongs to, (B, X, Y), from the signed distance: 0, 1 ... in the order
    of their last cells along x. Far from all obstacles it means nothing."""
    B, X, Y = distance.shape
    cell = torch.arange(1., X * Y + 1, device=distance.device).view(X, Y)
    solid = distance <= 0
    last = cell * solid                                              # the last cell of an obstacle, in the end
    while True:
        spread = F.max_pool2d(last, 3, 1, 1) * solid
        if torch.equal(spread, last):
            break
        last = spread
    for _ in range(NEAR):
        last = torch.where(last > 0, last, F.max_pool2d(last, 3, 1, 1))
    number = torch.zeros_like(last, dtype=torch.long)
    for own, ends in zip(number, last):
        own += torch.searchsorted(ends[ends > 0].unique(), ends)
    return number.clamp_max(MOST - 1)


def wall_forces(u, re):
    """
    Drag and lift on each obstacle that follow from fields u (T, X, Y, 4) around it, (T, MOST, 2) float64: the
    integral of -p n + ν t du_t/dn over its wall, n outward.

    The integral over the wall is one over the cells near it, with a smooth delta function of the distance. For
    each of these cells, p and the tangential velocity are read at a few distances from the wall, from cells of the
    fluid alone, and fitted by p + a s and a s + b s².
    """
    u = u.double()
    _, X, Y, _ = u.shape
    distance = u[0, ..., 3] * Y                                      # in cells
    normal = torch.stack(torch.gradient(distance), -1)
    size = normal.norm(dim=-1)
    is_solid = (distance <= 0).double()
    beside = F.max_pool2d(is_solid[None], 2 * NEAR + 1, 1, NEAR)[0] > 0        # not beside walls of the channel
    cell = ((distance.abs() < WIDTH) & beside).nonzero()             # (P, 2)
    i, j = cell.T
    s = distance[i, j]
    n = normal[i, j] / size[i, j, None]
    length = (1 + (math.pi * s / WIDTH).cos()) / (2 * WIDTH) * size[i, j] / Y        # of wall, (P,)
    wall = cell - s[:, None] * n
    t = torch.stack([-n[:, 1], n[:, 0]], -1)
    parts = []
    for away in AWAY:
        parts.append(fluid_values(u, distance, wall + away * n))
    s, u, v, p = torch.stack(parts, 1).unbind(-1)                    # (P, len(AWAY), T) each
    tangential = u * t[:, :1, None] + v * t[:, 1:, None]
    s = s[..., 0]
    slope = torch.linalg.pinv(torch.stack([s, s ** 2], -1)) @ tangential       # (P, 2, T)
    pressure = torch.linalg.pinv(torch.stack([torch.ones_like(s), s], -1)) @ p
    shear = DIAMETER / re * Y * slope[:, 0]
    force = shear[..., None] * t[:, None] - pressure[:, 0, :, None] * n[:, None]     # (P, T, 2)
    total = force.new_zeros(MOST, *force.shape[1:])
    total.index_add_(0, numbers(distance[None])[0][i, j], force * length[:, None, None])
    return total.movedim(0, 1)


def fluid_values(u, distance, q):
    """Distance, velocity and pressure (P, T, 4) of fields u (T, X, Y, 4) at points q (P, 2), all in cells: the mean
    of those of the four cells around a point that are fluid, weighted bilinearly."""
    X, Y = distance.shape
    values = torch.cat([distance.expand(len(u), X, Y)[..., None], u[..., :3]], -1).movedim(0, 2)
    first = q.floor().long()
    first = torch.stack([first[:, 0].clamp(0, X - 2), first[:, 1].clamp(0, Y - 2)], -1)
    fraction = q - first
    total = 0.
    weights = 0.
    for along_x in (0, 1):
        for along_y in (0, 1):
            i = first[:, 0] + along_x
            j = first[:, 1] + along_y
            share = (fraction - torch.tensor([1 - along_x, 1 - along_y])).abs().prod(-1)
            share = (share * (distance[i, j] > 0))[:, None, None]
            total = total + share * values[i, j]
            weights = weights + share
    return total / weights.clamp_min(LEAST)


def channels(n, cells, seed=0, first=0):
    """Channels with fluid at rest around random obstacles, (n, X, Y, 4). Sample i depends on (seed, first + i)
    alone."""
    u0 = np.zeros((n, *cells, 4))
    for row, rng in enumerate(generators(n, seed, first)):
        u0[row, ..., 3] = distances(random_obstacles(rng), cells)
    return u0


ENTRY = PDE(
    fields=('vx', 'vy', 'p', 'distance'),
    params={'Re': 100.},
    space=((0, LENGTH), (0, 1)),
    boundary='open',
    file='2D_Obstacles_Re{Re}.h5',
    layout='groups',
    solve=obstacles,
    initial=channels,
    cells=(128, 64),
    frames=53,
    dt=.125,
    mirror=(1,),
    static=('distance',),
    domain='distance',
    velocity=('vx', 'vy'),
    records={'forces': Record((MOST, 2), ('drag', 'lift'), wall_forces)},
    incompressible=True)
