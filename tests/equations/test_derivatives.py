"""equations/derivatives.py against closed forms and hand-made arrays."""
import dataclasses
import math

import pytest
import torch

from conftest import close, noise
from equations import entry
from equations.common import centres
from equations.derivatives import (axes_of, derivative, divergence, is_centred, mean, shifted, spacing,
                                   velocity_from_vorticity, weights)


def plane(n, low=0., high=1.):
    """x and y (n, n) of the centres of n x n cells, and the axes."""
    x = torch.from_numpy(centres(n, low, high))
    return x[:, None].expand(n, n), x[None].expand(n, n), [x, x]


def test_axes_of_points():
    axes = [torch.tensor([1., 2., 4.]), torch.tensor([5., 7.])]
    points = torch.cartesian_prod(*axes)                             # row-major
    assert all(torch.equal(a, b) for a, b in zip(axes_of(points, (3, 2)), axes))
    assert float(spacing(torch.from_numpy(centres(8, -1., 3.)))) == .5


def test_centres_of_cells():
    """Half a cell from the walls, to a hundredth of a cell; arrays and tensors."""
    pde = dataclasses.replace(entry('darcy'), space=((0, 2), (-1, 1)))
    x = centres(8, 0., 2.)
    y = centres(5, -1., 1.)
    assert is_centred([x, y], pde) and is_centred([torch.from_numpy(x), torch.from_numpy(y)], pde)
    for shift, holds in ((.002, True), (.003, False), (-.125, False)):           # a cell is .25 wide
        assert is_centred([x + shift, y], pde) == holds
    assert not is_centred([x, y[::2]], pde) and not is_centred([x[::2], y], pde)
    assert not is_centred([torch.linspace(0, 2, 8), y], pde)         # on the walls


@pytest.mark.parametrize('order', [1, 2, 3, 4])
@pytest.mark.parametrize('n', [24, 25])
def test_derivatives_of_waves_are_exact(order, n):
    length = 5.
    x = torch.from_numpy(centres(n, -1., -1. + length))
    k = 2 * math.pi * 3 / length
    u = torch.stack([(k * x).sin(), (k * x).cos() + 7])
    turned = [(k * x + order * math.pi / 2).sin(), (k * x + order * math.pi / 2).cos()]
    expected = k ** order * torch.stack(turned)
    close(derivative(u, x, 0, order), expected, 1e-9)
    tall = u[..., None].expand(2, n, 3)
    close(derivative(tall, x, 0, order)[..., 1], expected, 1e-9)


def test_a_shift_is_that_of_the_waves():
    x = torch.from_numpy(centres(16))
    distance = torch.tensor([.1, -.37], dtype=torch.float64)

    def u(x):
        return .3 + (2 * math.pi * x).sin() + (14 * math.pi * x).cos()

    moved = shifted(u(x).expand(2, 16), x, distance)
    close(moved, u(x + distance[:, None]), 1e-12)
    random = torch.from_numpy(noise(2, 16, 1)[..., 0]).double()
    cells = torch.full((2,), 3 / 16, dtype=torch.float64)
    close(shifted(random, x, cells)[:, :-3], random[:, 3:], 1e-12)           # also the wave of +-1


def test_taylor_green():
    """w = 2 k cos kx cos ky belongs to u = -cos kx sin ky, v = sin kx cos ky; neither has a divergence."""
    x, y, axes = plane(32)
    k = 4 * math.pi
    w = 2 * k * (k * x).cos() * (k * y).cos()
    v = torch.stack([-(k * x).cos() * (k * y).sin(), (k * x).sin() * (k * y).cos()], -1)
    close(velocity_from_vorticity(w[None], axes)[0], v, 1e-12)
    assert divergence(v[None], axes, periodic=True).abs().max() < 1e-11
    wrong = v * torch.tensor([1., -1.])
    found = divergence(wrong[None], axes, periodic=True)[0]
    close(found, 2 * k * (k * x).sin() * (k * y).sin(), 1e-9)


def test_any_vorticity_has_a_velocity_without_divergence():
    """On other grids as well: 5 x 3 domains, an odd number of points."""
    axes = [torch.from_numpy(centres(20, 0., 5.)), torch.from_numpy(centres(15, 1., 4.))]
    w = torch.from_numpy(noise(3, 20, 15)).double()
    w = w - w.mean((1, 2), keepdim=True)
    v = velocity_from_vorticity(w, axes)
    assert divergence(v, axes, periodic=True).abs().max() < 1e-11
    curl = derivative(v[..., 1], axes[0], 0) - derivative(v[..., 0], axes[1], 1)
    modes = torch.fft.fft2(w)
    modes[:, 10] = 0                                                 # the wave of +-1 cells has none
    close(curl, torch.fft.ifft2(modes).real, 1e-11)


def test_divergence_between_walls_is_of_second_order():
    """u = x² y, v = -x y² has none. Of u = x³, v = y³ it is 3 (x² + y²); differences add 2 h²."""
    x, y, axes = plane(16)
    v = torch.stack([x ** 2 * y, -x * y ** 2], -1)[None]
    assert divergence(v, axes, periodic=False).abs().max() < 1e-13
    v = torch.stack([x ** 3, y ** 3], -1)[None]
    inner = (3 * (x ** 2 + y ** 2))[1:-1, 1:-1]
    div = divergence(v, axes, periodic=False)[0]
    close(div - inner, torch.full_like(inner, 2 / 16 ** 2), 1e-12)
    assert div.shape == (14, 14)


def test_weights_of_a_mean():
    """Centres of cells, points on both walls (trapezoid), every other cell from the first."""
    third = 1 / 3
    cases = [(centres(4), [.25] * 4), ([0., .5, 1.], [.25, .5, .25]), ([.125, .625], [.375, .625]),
             ([third / 2, third * 1.5, third * 2.5], [third] * 3)]
    for x, expected in cases:
        close(weights(torch.tensor(x), 0., 1., False), torch.tensor(expected), 1e-6)
    close(weights(torch.tensor([.1, .6]), 0., 1., True), torch.tensor([.5, .5]))


def test_the_mean_between_walls_is_exact_for_straight_lines():
    pde = dataclasses.replace(entry('darcy'), space=((0, 2), (-1, 1)))
    x = torch.linspace(0, 2, 9, dtype=torch.float64)                 # on the walls
    y = torch.from_numpy(centres(5, -1., 1.))
    u = torch.stack([3 * x[:, None] + 4 * y, torch.ones(9, 5).double()], -1)
    close(mean(u[None], [x, y], pde), torch.tensor([[3., 1.]]).double(), 1e-12)
