"""
Flow past obstacles in a channel.

    ∂u/∂t + (u·∇)u = -∇p + ν Δu,   ∇·u = 0,      x in (0, 2), y in (0, 1),   ν = D / Re,   D = .25

Units are the height of the channel, the mean velocity of the inflow, and their ratio in time; the density is
1. One to three obstacles, fluid at rest at t = 0, an inflow that rises until t = 1.
"""
import math

import numpy as np
import torch

from equations import PDE
from equations.common import centres, checked, empty_frames, generators
from equations.lattice import Channel
from runtime.configurator import UserError
from runtime.progress import counted

DIAMETER = .25                  # that the Reynolds number is of
LENGTH = 2.
SPEED = .08                     # of the mean inflow in cells a step: a seventh of that of sound
RISE = 1.                       # time in which the inflow rises
GAP = .1                        # least distance of obstacles from each other and from walls
SIDES = 48                      # of the polygon that stands for a disc or an ellipse


def obstacles(u0, t, re, dtype=torch.float32):
    """Flow past obstacles from rest. u0 (B, X, Y, 4): velocity and pressure, which are not used, and the signed
    distance to the nearest wall, positive in the fluid. re: Reynolds number. Returns velocity, pressure and
    distance (B, T, X, Y, 4) float64; velocity and pressure are 0 inside obstacles.

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
    done = 0
    for frame, time in enumerate(counted('solver: frames', t[1:]), 1):
        until = round(time / step)
        for number in range(done, until):
            channel.step(.5 - .5 * math.cos(math.pi * min(1., (number + 1) * step / RISE)))
        done = until
        out[:, frame, ..., :3] = channel.fields() * scale
    if not out.isfinite().all():
        raise UserError(f're={re:g} is too much for {X} x {Y} cells: take more')
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
    n = rng.integers(1, 4)
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
    velocity=('vx', 'vy'),
    incompressible=True)
