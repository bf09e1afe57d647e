"""Flow in a channel by the lattice Boltzmann method, against analytic solutions and published figures."""
import math

import numpy as np
import pytest
import torch

from equations.lattice import Channel
from equations.common import centres
from equations.obstacles import (DIAMETER, channels, distances, numbers, obstacles, random_obstacles,
                                 signed_distance, wall_forces)
from runtime.configurator import UserError

CLEAR = 9.                                                           # cells: no obstacle


def run(channel, steps, rise):
    for number in range(steps):
        channel.step(.5 - .5 * math.cos(math.pi * min(1., number / rise)))


def parabola(Y, mean):
    y = (torch.arange(Y, dtype=torch.float64) + .5) / Y
    return 6 * mean * y * (1 - y)


def poiseuille_error(Y):
    """Largest error of the velocity, and that of the pressure gradient, relative; Reynolds number 40."""
    mean = .8 / Y
    nu = mean * Y / 40
    channel = Channel(torch.full((1, 2 * Y, Y), CLEAR), mean, torch.tensor([nu]), torch.float64)
    run(channel, 8 * Y ** 2, 300)
    u, v, p = channel.fields()[0].unbind(-1)
    gradient = (p[-8] - p[-12]).mean() / 4 / (-12 * nu * mean / Y ** 2) - 1
    return float((u - parabola(Y, mean)).abs().max() / mean), abs(float(gradient))


@pytest.mark.slow
def test_plane_poiseuille_flow_is_of_second_order():
    coarse = poiseuille_error(10)
    fine = poiseuille_error(20)
    assert coarse[0] < .02 and fine[0] < .3 * coarse[0]
    assert max(coarse[1], fine[1]) < .02


def disc(X, Y, x, y, radius):
    """Signed distance, all in cells."""
    i = torch.arange(X, dtype=torch.float64)[:, None] + .5
    j = torch.arange(Y, dtype=torch.float64) + .5
    return ((i - x) ** 2 + (j - y) ** 2).sqrt() - radius


def test_the_flow_mirrors_with_its_walls():
    distance = disc(48, 24, 20., 9.7, 3.3)
    both = torch.stack([distance, distance.flip(1)])
    channel = Channel(both, .05, torch.tensor([.02, .02]), torch.float64)
    run(channel, 300, 100)
    one, other = channel.fields()
    assert one[..., 1].abs().max() > .01
    torch.testing.assert_close(other.flip(1) * torch.tensor([1, -1, 1]), one, rtol=0, atol=1e-13)
    label = torch.zeros(2, 48, 24, dtype=torch.long)
    (drag, lift), (same, opposite) = channel.forces(label, 1)[:, 0].tolist()
    assert math.isclose(drag, same, rel_tol=1e-9) and math.isclose(lift, -opposite, rel_tol=1e-9)


@pytest.mark.slow
def test_steady_flow_keeps_mass_and_balances_its_force():
    """The force on an obstacle is what pressure and momentum lose between two cross-sections, less the shear at
    the walls."""
    Y, mean, nu = 32, .04, .05
    distance = disc(96, Y, 40., 15., 5.2)
    channel = Channel(distance[None], mean, torch.tensor([nu]), torch.float64)
    run(channel, 4000, 400)
    u, v, p = channel.fields()[0].unbind(-1)
    flux = u.mean(1)
    assert (flux[[20, 60, 90]] - mean).abs().max() < .003 * mean
    left, right = 20, 80
    through = (p + u ** 2 - 2 * nu * torch.gradient(u, dim=0)[0]).sum(1)             # momentum a step
    shear = nu / 3 * (9 * u[:, 0] - u[:, 1] + 9 * u[:, -1] - u[:, -2])       # at both walls, of second order
    between = .5 * (shear[left] + shear[right]) + shear[left + 1:right].sum()
    force = channel.forces(torch.zeros(1, 96, Y, dtype=torch.long), 1)[0, 0, 0]
    assert math.isclose(force, through[left] - through[right] - between, rel_tol=.01)


@pytest.mark.slow
def test_drag_and_lift_of_the_cylinder_in_a_channel():
    """Schäfer and Turek (1996), test case 2D-1: Reynolds number 20, drag coefficient 5.57 to 5.59, lift
    coefficient .0104 to .0110. Here a diameter has ten cells."""
    Y, mean = 41, .05
    cell = .41 / Y
    distance = disc(round(2.2 / cell), Y, .2 / cell, .2 / cell, .05 / cell)
    channel = Channel(distance[None], mean, torch.tensor([mean * 10 / 20]))
    run(channel, 6000, 1000)
    force = channel.forces(torch.zeros(1, *distance.shape, dtype=torch.long), 1)[0, 0]
    drag, lift = (2 * force / (mean ** 2 * 10)).tolist()
    assert 5.53 < drag < 5.60 and .0100 < lift < .0114


def test_distance_to_a_polygon():
    square = np.array([(0., 0.), (2., 0.), (2., 2.), (0., 2.)])
    x = np.array([1., 1., 3., 3., -1., .5])
    y = np.array([1., -2., 1., 3., -1., 1.])
    expected = [-1., 2., 1., 2 ** .5, 2 ** .5, -.5]
    np.testing.assert_allclose(signed_distance(x, y, square), expected)
    np.testing.assert_allclose(signed_distance(x, y, square[::-1]), expected)


def test_random_obstacles_keep_apart():
    numbers = set()
    for seed in range(40):
        shapes = random_obstacles(np.random.default_rng(seed))
        numbers.add(len(shapes))
        for i, one in enumerate(shapes):
            assert one[:, 1].min() > .1 - 1e-9 and one[:, 1].max() < .9 + 1e-9
            for other in shapes[:i]:
                assert signed_distance(*one.T, other).min() > .099
    assert numbers == {1, 2, 3}


def test_frames_of_the_solver():
    u0 = channels(2, (64, 32), seed=3)
    u = obstacles(u0, np.arange(4) * .125, 60.)
    assert u.shape == (2, 4, 64, 32, 4) and (u[:, 0, ..., :3] == 0).all()
    inside = u0[..., 3] <= 0
    assert (u[..., :3].movedim(1, 0)[:, inside] == 0).all() and inside.any((1, 2)).all()
    assert (u[..., 3] == torch.from_numpy(u0[..., 3])[:, None]).all()
    assert .1 < u[:, -1, 0, :, 0].mean() / (.5 - .5 * math.cos(math.pi * .375)) < 1.1
    np.testing.assert_array_equal(channels(1, (64, 32), seed=3, first=1)[0], u0[1])
    with pytest.raises(UserError, match='twice as many'):
        obstacles(u0[:, :32], [0., .1], 60.)
    assert distances([], (8, 4)).min() == .125


def test_forces_of_fields_whose_integrals_are_known():
    """Two discs. Of a linear pressure, the force is minus its gradient times the area. Of a velocity that grows
    along the normal by g (t e_x) t, the shear is ν g times half the circumference, along x."""
    x, y = np.meshgrid(centres(128, 0., 2.), centres(64), indexing='ij')
    u = np.zeros((2, 128, 64, 4))
    u[..., 3] = np.minimum(y, 1 - y)
    g = 30.
    discs = [(.8, .52, .125), (1.4, .43, .09)]
    for at_x, at_y, radius in discs:
        away = np.hypot(x - at_x, y - at_y)
        d = away - radius
        t = np.stack([-(y - at_y), x - at_x]) / away                 # along the wall
        near = (d < .1) & (d > 0)
        u[0, near, :2] = (g * d * t[0] * t)[:, near].T
        u[..., 3] = np.minimum(u[..., 3], d)
    u[1, ..., 2] = 2 * x - y
    u[..., :3] *= (u[..., 3:] > 0)
    shear, pressure = wall_forces(torch.from_numpy(u), re=50.)
    for i, (_, _, radius) in enumerate(discs):
        expected = DIAMETER / 50 * g * math.pi * radius
        np.testing.assert_allclose(shear[i], [expected, 0.], atol=.04 * expected)
        area = math.pi * radius ** 2
        np.testing.assert_allclose(pressure[i], [-2 * area, area], rtol=.04)
    assert (shear[2] == 0).all() and (pressure[2] == 0).all()


@pytest.mark.slow
def test_forces_follow_from_the_fields_of_the_solver():
    u0 = channels(2, (128, 64), seed=1)
    records = {}
    u = obstacles(u0, np.arange(9) * .25, 80., records=records)
    for row in range(2):
        recorded = records['forces'][row, 6:]
        found = wall_forces(u[row, 6:], 80.).numpy()
        there = recorded[:, :, 0] != 0
        assert there.any() and (np.abs(found - recorded)[there] < .06 * np.abs(recorded[there]).max()).all()
        assert (found[~there] == 0).all()


def test_every_obstacle_has_a_number():
    u0 = channels(8, (64, 32), seed=0)
    found = numbers(torch.from_numpy(u0[..., 3]))
    for row, distance in enumerate(u0[..., 3]):
        solid = torch.from_numpy(distance <= 0)
        kinds = found[row][solid].unique().tolist()
        assert kinds == list(range(len(kinds))) and 1 <= len(kinds) <= 3
        for kind in kinds:                                           # one piece: its rows along x have no gap
            along = ((found[row] == kind) & solid).any(1).nonzero().flatten()
            assert len(along) == along[-1] - along[0] + 1
        last = [int(((found[row] == kind) & solid).any(1).nonzero().max()) for kind in kinds]
        assert last == sorted(last)
