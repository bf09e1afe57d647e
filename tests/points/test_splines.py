"""splines.py: nearest points, and splines through scattered points, against closed forms."""
import itertools

import pytest
import torch

from clouds import both, edges, scattered, wave
from conftest import close
from grids import pick, positions
from points.splines import Scattered, fewest_points, monomials, nearest, spline_weights


@both
@edges
def test_nearest_points_against_a_search_over_all_images(d, periodic):
    shape = (7, 5)[:d]
    n = torch.tensor(shape)
    points = scattered(30, d) * n * 3 - n                            # also outside the first period
    a = scattered(6, d, seed=1) * n
    index, offset = nearest(a, points[None], shape, periodic, 4)
    images = torch.tensor(list(itertools.product(range(-4, 5), repeat=d))) * n * periodic
    for row in range(len(a)):
        seen = points[:, None] + images - a[row]                     # (P, images, d)
        distance = seen.norm(dim=-1).amin(1)
        expected = distance.argsort()[:4]
        assert index[0, row].tolist() == expected.tolist()
        close(offset[0, row].norm(dim=-1), distance[expected], 1e-4)
        shifted = a[row] + offset[0, row] - points[expected]          # by whole periods
        close(shifted / n, (shifted / n).round() * periodic, 1e-4)


@both
def test_splines_reproduce_cubics(d):
    """Closed form: any polynomial of degree 3, at points between and beyond the known ones."""
    x = scattered(40, d)[None] * 2 - 1
    at = scattered(9, d, seed=1)[None] * 2 - 1
    assert monomials(x).shape[-1] == fewest_points(d) == (4, 10)[d - 1]
    coefficients = torch.randn(fewest_points(d), 3)
    weight = spline_weights(x, at)
    close(weight.mT @ monomials(x) @ coefficients, monomials(at) @ coefficients, 1e-3)
    grid = positions((4,) * d, [-1.] * d, [2 / 3] * d)[None] + .1 * torch.randn(1, 4 ** d, d)
    close(spline_weights(grid, grid)[0], torch.eye(4 ** d), 1e-2)    # and interpolate


@both
@edges
def test_splines_converge_and_batches_may_have_points_of_their_own(d, periodic):
    shape = (32, 16)[:d]
    n = torch.tensor(shape)
    grid = positions(shape, [0.] * d, [1.] * d) / n
    errors = []
    spline = Scattered(shape, 2, periodic)
    for n_point in ((20, 60), (60, 240))[d - 1]:
        x = scattered(n_point, d)
        index, weight = spline.stencils((x * n)[None])
        u = wave(x).expand(3, -1, -1)
        shared = spline(u, index, weight)
        assert shared.shape == (3, *shape, 2)
        own = spline(u, *spline.stencils((x * n).expand(3, -1, -1)))
        close(shared, own, 1e-4)
        inside = (grid > .1).all(1) & (grid < .9).all(1)
        error = (shared[0].flatten(0, -2) - wave(grid))[inside]
        errors.append(float(error.square().mean().sqrt()))
    assert errors[1] < errors[0] / 8, errors
    assert errors[1] < 2e-2


@both
def test_a_point_left_out_is_predicted_from_the_others(d):
    """Closed form: the error of a cubic is 0, except where one point is off by 1."""
    n = 90
    x = scattered(n, d)
    u = (8 * x[:, :1] - 4) ** 3
    spline = Scattered((32,) * d, 2, False)
    index, weight = spline.left_out(32 * x[None])
    assert not (index[0] == torch.arange(n)[:, None]).any()
    off = u.clone()
    off[7] += 1.
    close(u - (pick(u[None], index) * weight).sum(2)[0], torch.zeros(n, 1), .02)
    error = off - (pick(off[None], index) * weight).sum(2)[0]
    assert float(error[7]) == pytest.approx(1., abs=.02)
    seen = (index[0] == 7).any(1)
    seen[7] = True
    assert not seen.all()
    close(error[~seen], torch.zeros(int((~seen).sum()), 1), .02)


def test_a_point_may_be_given_twice():
    spline = Scattered((16, 16), 2, True)
    x = scattered(200, 2)
    more = torch.cat([x, x[:40]])
    once = spline(wave(x)[None], *spline.stencils(16 * x[None]))
    twice = spline(wave(more)[None], *spline.stencils(16 * more[None]))
    close(twice, once, 2e-2)


@pytest.mark.parametrize('periodic', [False, True])
def test_distances_of_a_large_mesh_are_taken_in_parts(periodic, monkeypatch):
    points = torch.rand(2, 300, 2) * 8
    spline = Scattered((8, 8), 1, periodic)
    whole = spline.stencils(points)
    left_out = torch.rand(2, 300) < .3
    fewer = spline.stencils(points, left_out)
    monkeypatch.setattr('points.splines.DISTANCES', 2 * 300 * 7)
    for a, b in zip((*whole, *fewer), (*spline.stencils(points), *spline.stencils(points, left_out))):
        assert torch.equal(a, b)
    assert not left_out[torch.arange(2)[:, None, None], fewer[0]].any()
