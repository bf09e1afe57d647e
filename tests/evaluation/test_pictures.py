"""evaluation/pictures.py: the files are made, maps are not transposed, and values that are not finite do not
stop a picture."""
import importlib.util
import os
import warnings

import numpy as np
import pytest
from matplotlib.image import imread
from PIL import Image

from evaluation.pictures import (draw, draw_comparison, draw_members, draw_spectra, draw_tokens, moving_maps,
                                 panels, principal_components)


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        yield


def axes_of(*shape):
    return [np.arange(n) / n for n in shape]


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def size_of(path):
    """(height, width) of a PNG"""
    return imread(path).shape[:2]


@pytest.mark.parametrize('shape, has_truth', [((16,), False), ((8, 4), True)])
def test_a_trajectory(tmp_path, shape, has_truth):
    """Two fields in one and two dimensions, with a truth and without. Some predictions are not finite."""
    truth = random(2, *shape, 2) * (1, 100)
    prediction = truth + random(2, *shape, 2, seed=1)
    prediction[1, 0] = np.nan
    prediction[1, 1] = np.inf
    draw(str(tmp_path), axes_of(*shape), .1 * np.arange(2), prediction, truth if has_truth else None,
         ('u', 'v'), 'two', True)
    assert min(size_of(tmp_path / 'rollout.png')) > 300
    with Image.open(tmp_path / 'rollout.gif') as movie:
        assert movie.n_frames == 2


@pytest.mark.parametrize('shape', [(8,), (8, 8)])
def test_a_steady_equation_has_no_animation(tmp_path, shape):
    """The first field is a coefficient, which has no error."""
    truth = random(2, *shape, 2)
    truth[1, ..., 0] = truth[0, ..., 0]
    draw(str(tmp_path), axes_of(*shape), np.arange(2.), truth, truth, ('a', 'u'), 'steady', True, steady=True)
    assert sorted(os.listdir(tmp_path)) == ['rollout.png']


def test_maps_are_not_transposed():
    """x is to the right and y upwards, and the edges are those of the outermost cells."""
    u = np.arange(6.).reshape(1, 3, 2, 1)                            # (T, X, Y, C)
    x = [np.array([.5, 1.5, 2.5]), np.array([10., 11.])]
    figure, show = moving_maps(x, np.zeros_like(u), u, ['u'])
    image = figure.subfigs[0].axes[0].images[0]                      # of the truth
    assert np.array_equal(image.get_array()[1], u[0, :, 1, 0]) and image.origin == 'lower'
    show(0)
    assert np.array_equal(image.get_array()[1], u[0, :, 1, 0])
    assert list(image.get_extent()) == [0, 3, 9.5, 11.5]


def test_truth_and_prediction_share_a_scale():
    """It is symmetric if the truth takes both signs. That of the error leaves frame 0 out."""
    truth = np.array([[-1., 2.], [1., 2.]])[..., None]               # (T, X, C)
    prediction = np.array([[5., 2.], [1., 5.]])[..., None]
    true, predicted, error = panels(prediction, truth, 0, 'u')
    assert true.scale == predicted.scale and (true.scale['vmin'], true.scale['vmax']) == (-2, 2)
    assert (error.scale['vmin'], error.scale['vmax']) == (-3, 3)
    [alone] = panels(truth + 3, None, 0, 'u')
    assert (alone.scale['vmin'], alone.scale['vmax']) == (2, 5)


@pytest.mark.parametrize('shape', [(8,), (8, 8)])
@pytest.mark.parametrize('has_truth', [True, False])
def test_members(tmp_path, shape, has_truth):
    """One of them blows up."""
    members = random(3, 2, *shape, 1)
    members[0, 1, 3] = np.inf
    truth = random(2, *shape, 1) if has_truth else None
    draw_members(str(tmp_path), axes_of(*shape), np.arange(2.), members, truth, ['u'], 'three')
    assert min(size_of(tmp_path / 'members.png')) > 300


@pytest.mark.parametrize('shape', [(8,), (4, 6)])
def test_tokens(tmp_path, shape):
    draw_tokens(str(tmp_path), .1 * np.arange(3), random(3, *shape, 8), 'some')
    assert min(size_of(tmp_path / 'tokens.png')) > 300


def test_principal_components():
    """Tokens (T, S, D) that vary along two oblique directions only, 16 to 9, about a mean."""
    x = np.arange(24).reshape(4, 6) * 2 * np.pi / 24
    first = np.array([3., 4., 0.]) / 5
    second = np.array([4., -3., 0.]) / 5
    tokens = 7 + 4 * np.cos(x)[..., None] * first - 3 * np.sin(x)[..., None] * second
    values, shares = principal_components(tokens.astype(np.float32), 3)
    assert shares == pytest.approx([16 / 25, 9 / 25, 0], abs=1e-6)
    assert np.abs(np.abs(values[..., 0]) - np.abs(4 * np.cos(x))).max() < 1e-5
    assert np.abs(np.abs(values[..., 1]) - np.abs(3 * np.sin(x))).max() < 1e-5
    same, shares = principal_components(np.ones((2, 3, 4)), 3)
    assert not same.any() and not shares.any()


def test_spectra_and_comparison(tmp_path):
    """A field that is zero has a spectrum, too; an error may be nan."""
    power = np.exp(random(3, 8, 2))
    power[..., 1] = 0.
    draw_spectra(str(tmp_path / 'spectra.png'), np.arange(8), np.arange(3.), power, power, ['u', 'v'], 'two')
    curves = [('one', np.arange(3), np.array([.1, np.nan, .2])), ('two', np.arange(2), np.array([.1, .3]))]
    draw_comparison(str(tmp_path / 'runs.png'), curves, 'several')
    assert min(size_of(tmp_path / 'spectra.png')) > 300 and min(size_of(tmp_path / 'runs.png')) > 300


def test_without_matplotlib(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    draw(str(tmp_path), axes_of(8), np.arange(2.), random(2, 8, 1), None, ['u'], 'one', True)
    assert 'no pictures' in capsys.readouterr().out and not os.listdir(tmp_path)
