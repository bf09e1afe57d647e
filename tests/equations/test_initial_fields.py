"""Initial fields: a sample depends on its seed and number, and every grid shows what it resolves of it."""
import numpy as np
import pytest
import torch

from equations.common import waves
from equations.compressible_1d import gas_waves
from equations.darcy import permeability
from equations.diffusion_reaction import white_noise
from equations.diffusion_sorption import constants
from equations.gray_scott import drops
from equations.kuramoto_sivashinsky import ks_attractor, ks_waves, kuramoto_sivashinsky_64
from equations.navier_stokes import random_vorticity
from equations.reaction_diffusion import unit_waves
from equations.shallow_water import BASIN, dams, shallow_water

DRAWS = [                               # function, its cells, shape of a sample
    (waves, (64,), (64,)), (unit_waves, (64,), (64,)), (constants, (64,), (64,)), (gas_waves, (64,), (64, 3)),
    (ks_waves, (64,), (64,)), (random_vorticity, (16, 12), (16, 12)), (permeability, (24, 16), (24, 16)),
    (white_noise, (8, 6), (8, 6, 2)), (dams, (32, 24), (32, 24)), (drops, (16, 12), (16, 12, 2))]


@pytest.mark.parametrize('draw, cells, shape', DRAWS)
def test_a_sample_depends_on_seed_and_number_alone(draw, cells, shape):
    u = draw(12, cells, seed=4)
    assert u.shape == (12, *shape) and u.dtype == np.float64 and np.isfinite(u).all()
    assert np.array_equal(draw(3, cells, seed=4, first=7), u[7:10])
    assert np.abs(draw(12, cells, seed=5) - u).reshape(12, -1).max(1).min() > 1e-4
    assert np.abs(u[1:] - u[:-1]).reshape(11, -1).max(1).min() > 1e-4


@pytest.mark.parametrize('draw, cells, tolerance', [
    (waves, (128,), 1e-12), (ks_waves, (64,), 1e-12), (random_vorticity, (128, 64), 1e-12),
    (permeability, (32, 48), 0.), (drops, (16, 12), 1e-12)])
def test_finer_cells_show_the_same_fields(draw, cells, tolerance):
    fine = draw(3, tuple(3 * n for n in cells), seed=2)
    same = fine[(slice(None), *[slice(1, None, 3)] * len(cells))]    # the centres that both grids share
    assert np.abs(draw(3, cells, seed=2) - same).max() <= tolerance


def test_distribution_of_waves():
    u = waves(2000, (256,))
    energy = np.abs(np.fft.rfft(u)[:, 1:]) ** 2
    tail = energy[:, 9:].sum(1) / energy.sum(1)         # beyond wave number 8, one for the period 1 - 1/1024
    windowed = np.abs(np.concatenate([u[:, :20], u[:, -20:]], 1)).max(1) < 1e-4
    assert np.abs(u).max() < 4
    assert .4 < np.abs(u.mean(1)).mean() < .56 and abs(u.mean()) < .1
    assert .07 < windowed.mean() < .13
    # the rest but for |u| (one in ten) holds at most 8 waves
    assert .77 < (tail < 1e-4).mean() < .87 and (tail[windowed] > 1e-4).mean() > .9


def test_ranges():
    u = unit_waves(50, (256,))
    assert (u.min(1) == 0).all() and (u.max(1) == 1).all()
    level = constants(200, (8,))
    assert (level == level[:, :1]).all() and level.min() > 0 and level.max() < .2 and level.std() > .05
    gas = gas_waves(200, (256,))
    low = gas.min(1)[:, :2]
    rise = gas.max(1)[:, :2] - low
    for values in (low, rise):
        assert (values > [1, 10]).all() and (values < [10.001, 100.001]).all()
        assert np.abs(np.log10(values).mean(0) - [.5, 1.5]).max() < .1
    assert 1 < np.abs(gas[..., 2]).max() < 4
    assert set(np.unique(permeability(5, (64, 64)))) == {.1, 1.}
    spots = drops(50, (32, 32))
    assert np.array_equal(spots.sum(-1), np.ones((50, 32, 32))) and 0 <= spots.min() and spots.max() <= 1
    assert spots[..., 1].max((1, 2)).min() > .3 and spots[..., 1].min((1, 2)).max() < .1
    noise = white_noise(4, (64, 64))
    assert abs(noise.std() - 1) < .02 and abs(noise.mean()) < .02


def test_variance_of_the_vorticity():
    """The sum of the covariance's eigenvalues."""
    w = random_vorticity(100, (32, 32), seed=3)
    wave = np.arange(-15, 16)
    square = 4 * np.pi ** 2 * (wave[:, None] ** 2 + wave ** 2)
    variance = (2 * 7 ** 3 * (square + 49) ** -2.5)[square > 0].sum()
    assert abs(w.var() / variance - 1) < .1
    assert abs(w.mean((1, 2))).max() < 1e-15


def test_volume_of_the_dams():
    h = dams(6, (128, 128), seed=1)
    radius = np.array([np.random.default_rng([1, row]).uniform(.3, .7) for row in range(6)])
    assert np.abs((h - 1).mean((1, 2)) * BASIN ** 2 - np.pi * radius ** 2).max() < 2e-3
    assert torch.equal(shallow_water(radius, [0.])[:, 0, ..., 0], torch.from_numpy(h))


@pytest.mark.slow
def test_the_attractor_of_kuramoto_sivashinsky():
    u = ks_attractor(6, (256,))
    assert np.abs(u.mean(1)).max() < 1e-12 and 1 < u.std() < 1.7
    assert np.abs(ks_attractor(2, (256,), first=4) - u[4:]).max() < 1e-3        # rounding grows


def test_burn_in():
    u = ks_waves(3, (256,), burn_in=6.)
    assert np.abs(u.mean(1)).max() < 1e-12
    assert np.abs(u - kuramoto_sivashinsky_64(ks_waves(3, (256,)), [0., 6.])[:, 1].numpy()).max() < 1e-9
    finer = ks_waves(3, (768,), burn_in=6.)
    assert np.abs(u - finer[:, 1::3]).max() < 1e-9
    coarse = ks_waves(3, (85,), burn_in=6.)                        # 85 = 255 / 3 has other centres
    assert np.abs(coarse - ks_waves(3, (255,), burn_in=6.)[:, 1::3]).max() < 1e-3
    assert np.abs(ks_waves(1, (256,), first=2, burn_in=6.) - u[2:]).max() < 1e-9
