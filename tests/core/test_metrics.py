"""Every metric of metrics.py on arrays small enough for a closed form."""
import math

import pytest
import torch

import metrics as ms

DT = .05
PI = math.pi


def x_axis(n=64):
    return torch.arange(n, dtype=torch.float64) / n


def wave(k, phase=0., n=64):
    """cos(2πkx + phase) as one frame of one trajectory, (1, 1, n, 1)"""
    return (2 * PI * k * x_axis(n) + phase).cos()[None, None, :, None]


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def score(p, y, u0=None):
    return ms.metrics(p, y, y[:, 0] if u0 is None else u0, DT)[0]


# --- trivial predictors ------------------------------------------------------

@pytest.mark.parametrize('shape', [(3, 4, 32, 1), (2, 3, 32, 2), (2, 3, 32, 32, 2)])
def test_perfect_prediction(shape):
    y = noise(*shape)
    y = y - y.mean(ms.space_of(y), keepdim=True) + 1                 # conserved
    s = score(y, y)
    assert s.pop('correlation_time') == pytest.approx(shape[1] * DT)  # the horizon
    assert all(abs(v) < 1e-12 for v in s.values()), s


def test_zero_prediction():
    y = noise(5, 3, 40, 1) + 2
    s = score(torch.zeros_like(y), y)
    for name in ('nrmse', 'rel_l2', 'spectral_energy_error'):
        assert s[name] == pytest.approx(1, abs=1e-12)
    assert s['correlation_time'] == pytest.approx(DT)                # lost at the first frame
    u0 = y[:, :1]
    gap = u0.mean(2).abs() / u0.square().mean(2).sqrt()
    assert s['conservation_gap'] == pytest.approx(float(gap.mean()))


def test_true_mean_prediction():
    a, b = 2., .5
    y = a + b * wave(3)
    s = score(torch.full_like(y, a), y)
    assert s['nrmse'] == pytest.approx(b / math.sqrt(2) / math.sqrt(a * a + b * b / 2), abs=1e-12)
    assert s['vrmse'] == pytest.approx(1, abs=1e-12)


def test_persistence_of_a_travelling_wave():
    """|cos(x - s) - cos(x)| has the rms 2 |sin(s/2)| of a cosine's."""
    shift = 2 * PI * torch.arange(1, 6) / 20
    y = torch.cat([wave(1, -float(s)) for s in shift], 1)
    p = wave(1).expand_as(y)
    s, steps = ms.metrics(p, y, wave(1)[:, 0], DT)
    assert steps == pytest.approx((2 * (shift / 2).sin()).tolist(), abs=1e-6)
    assert s['nrmse'] == pytest.approx(sum(steps) / 5)
    assert s['rel_l2'] == pytest.approx(math.sqrt(sum(v * v for v in steps) / 5), abs=1e-6)
    assert ms.mean_nrmse(p, y) == pytest.approx(s['nrmse'], abs=1e-15)


# --- by hand -----------------------------------------------------------------

def test_by_hand():
    """Two trajectories, one frame, two points."""
    y = torch.tensor([[3., 4.], [0., 2.]]).view(2, 1, 2, 1)
    p = torch.tensor([[4., 3.], [2., 2.]]).view(2, 1, 2, 1)
    s = score(p, y, torch.tensor([[3., 4.], [1., 1.]]).view(2, 2, 1))
    rms = [1., math.sqrt(2)]                                         # of the errors (1, -1) and (2, 0)
    assert s['rmse'] == pytest.approx((rms[0] + rms[1]) / 2)
    assert s['nrmse'] == pytest.approx((rms[0] / math.sqrt(12.5) + rms[1] / math.sqrt(2)) / 2)
    assert s['vrmse'] == pytest.approx((rms[0] / .5 + rms[1] / 1) / 2)
    assert s['mse'] == pytest.approx((1 + 2) / 2)
    assert s['mae'] == pytest.approx((1 + 1) / 2)
    assert s['max_error'] == 2
    assert s['crmse'] == pytest.approx(math.sqrt((0 + 1) / 2))       # errors of the means: 0 and 1
    assert s['brmse'] == pytest.approx((rms[0] + rms[1]) / 2)        # both points are the boundary
    assert s['rel_l2'] == s['nrmse']                                 # one frame
    assert s['conservation_gap'] == pytest.approx((0 + 1 / 1) / 2)
    assert s['correlation_time'] == pytest.approx(DT)                # -1 and undefined
    # k = 0 and 1 of the errors: (0, 1) and (1, 1), roots over trajectories, then the mean of the band
    assert s['frmse_low'] == pytest.approx((math.sqrt(.5) + 1) / 2)
    assert math.isnan(s['frmse_mid']) and math.isnan(s['frmse_high'])   # 2 points reach no further
    # energies (k = 0, ±1): 49/4, 1/4 for both; (4, 0) against (1, 1)
    assert s['spectral_energy_error'] == pytest.approx((0 + (3 + 1) / 2) / 2)


def test_boundary():
    y = torch.ones(1, 2, 8, 1)
    p = y.clone()
    p[0, 0, 0], p[0, 0, -1], p[0, 0, 4] = 4., 5., 100.               # the middle is not the boundary
    assert score(p, y)['brmse'] == pytest.approx((math.sqrt((9 + 16) / 2) + 0) / 2)
    y = torch.ones(1, 1, 3, 5, 1)
    p = y.clone()
    p[0, 0, 1, 2] = 50.                                              # inside
    assert score(p, y)['brmse'] == 0
    p[0, 0, 0, 0] = 3.                                               # a corner: on two edges
    p[0, 0, 0, 2] = 2.                                               # on one
    assert score(p, y)['brmse'] == pytest.approx(math.sqrt((2 * 4 + 1) / (2 * 3 + 2 * 5)))


@pytest.mark.parametrize('shape', [(2, 3, 32, 2), (3, 2, 12, 16, 3)])
def test_fields_are_averaged(shape):
    y, p = noise(*shape), noise(*shape, seed=1)
    y[..., 0] *= 100                                                 # must not matter to the others
    whole = score(p, y)
    one = [score(p[..., c:c + 1], y[..., c:c + 1]) for c in range(shape[-1])]
    for name in whole:
        assert whole[name] == pytest.approx(sum(s[name] for s in one) / len(one), nan_ok=True), name
    assert ms.field_nrmse(p, y) == pytest.approx([s['nrmse'] for s in one])


def test_scale():
    y, p = noise(3, 4, 64, 1), noise(3, 4, 64, 1, seed=1)
    a, b = score(p, y), score(10 * p, 10 * y)
    linear = ('rmse', 'mae', 'max_error', 'crmse', 'brmse', 'frmse_low', 'frmse_mid', 'frmse_high')
    power = dict.fromkeys(linear, 1)
    power['mse'] = 2
    for name in a:
        assert b[name] == pytest.approx(a[name] * 10 ** power.get(name, 0)), name


# --- spectra -----------------------------------------------------------------

@pytest.mark.parametrize('k, band', [
    (0, 'low'), (3, 'low'), (4, 'mid'), (11, 'mid'), (12, 'high'), (31, 'high')])
def test_an_error_of_one_wave_stays_in_its_band(k, band):
    y = 1 + wave(2) + wave(7) + wave(20)
    s = score(y + .1 * wave(k), y)
    width = {'low': 4, 'mid': 8, 'high': 33 - 12}                    # wave numbers 0 .. 32
    coefficient = .1 if k == 0 else .05                              # a cosine's half for each of ±k
    for name in width:
        expected = coefficient / width[name] if name == band else 0
        assert s[f'frmse_{name}'] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize('kx, ky, shell', [
    (3, 4, 5), (3, -4, 5), (-4, 3, 5), (0, 2, 2), (1, 1, 1), (9, 9, 12)])
def test_radial_shells_see_all_signs(kx, ky, shell):
    x = x_axis(32)
    u = (2 * PI * (kx * x[:, None] + ky * x)).cos()[None, None, ..., None]     # (1, 1, 32, 32, 1)
    e = ms.energy(u)[0, 0, :, 0]
    assert e[shell] == pytest.approx(.5) and e.sum() == pytest.approx(.5)
    y = torch.ones_like(u)
    s, band = score(y + .1 * u, y), 'low' if shell < 4 else 'mid' if shell < 12 else 'high'
    width = {'low': 4, 'mid': 8, 'high': int(math.hypot(16, 16)) + 1 - 12}
    for name in width:
        expected = .1 / math.sqrt(2) / width[name] if name == band else 0
        assert s[f'frmse_{name}'] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize('shape', [(2, 3, 33, 2), (2, 3, 64, 1), (2, 1, 12, 20, 1)])
def test_parseval(shape):
    u = noise(*shape)
    assert torch.allclose(ms.energy(u).sum(2), u.square().mean(ms.space_of(u)))


def test_spectral_energy_error():
    y = 1 + wave(3) + .5 * wave(9)                                   # energies 1, 1/2, 1/8
    assert score(1.1 * y, y)['spectral_energy_error'] == pytest.approx(1.1 ** 2 - 1)
    assert score(y.roll(5, 2), y)['spectral_energy_error'] == pytest.approx(0, abs=1e-12)   # blind to phase
    assert score(y - .5 * wave(9), y)['spectral_energy_error'] == pytest.approx(.125 / 1.625)


# --- time --------------------------------------------------------------------

def test_correlation_time():
    """Two waves apart by φ correlate like cos φ, which is .8 at .6435."""
    phase = torch.tensor([[0., .3, .6, .7, .1], [.1, .2, .3, .4, .6], [.7, 0., 0., 0., 0.]])
    rows = [torch.cat([wave(1, float(f))[0] for f in row]) for row in phase]
    p = 3 + 2 * torch.stack(rows)                                    # (3, 5, 64, 1)
    y = wave(1).expand_as(p)
    r = ms.correlation(p, y)
    assert torch.allclose(r[..., 0], phase.double().cos(), atol=1e-6)
    assert ms.correlation_time(r, DT).flatten().tolist() == pytest.approx([4 * DT, 5 * DT, 1 * DT])
    assert score(p, y)['correlation_time'] == pytest.approx(10 / 3 * DT)


def test_correlation_where_it_is_not_defined():
    y, flat = wave(1).float(), torch.full((1, 1, 64, 1), .3)
    assert ms.correlation(flat.double(), y.double()) == pytest.approx(0, abs=1e-6)
    assert ms.correlation(y.double(), flat.double()) == 1            # nothing to lose
    for bad in (math.inf, math.nan):
        p = wave(1)
        p[0, 0, 3] = bad
        assert ms.correlation(p, y.double()) == 0 and ms.correlation(p, flat.double()) == 0


def test_conservation_gap_is_measured_from_the_given_frame():
    u0 = (1 + wave(2))[:, 0]                                         # rms sqrt(1.5)
    y = u0[:, None].expand(1, 3, 64, 1)
    p = y + torch.tensor([.1, -.2, .3]).view(1, 3, 1, 1)
    assert score(p, y, u0)['conservation_gap'] == pytest.approx(.2 / math.sqrt(1.5))
    assert score(y.roll(3, 2), y, u0)['conservation_gap'] == pytest.approx(0, abs=1e-12)


# --- pooling and precision ---------------------------------------------------

def test_pooling_over_many_trajectories():
    """More than one internal block, the last one uneven; against the formulas over whole arrays."""
    y, p = noise(150, 3, 24, 1) + 1, noise(150, 3, 24, 1, seed=1)
    s, e = score(p, y), p - y
    rel_l2 = (e.square().sum((1, 2)) / y.square().sum((1, 2))).sqrt()
    assert s['rel_l2'] == pytest.approx(float(rel_l2.mean()))
    assert s['nrmse'] == pytest.approx(float((e.square().mean(2) / y.square().mean(2)).sqrt().mean()))
    assert s['mse'] == pytest.approx(float(e.square().mean()))
    assert s['crmse'] == pytest.approx(float(e.mean(2).square().mean(0).sqrt().mean()))
    assert s['max_error'] == pytest.approx(float(e.abs().amax((0, 2)).mean()))


def test_halves_do_not_average_to_the_whole():
    """Why batch means will not do: the root of a mean and the maximum over trajectories."""
    y = torch.zeros(2, 1, 32, 1, dtype=torch.float64) + 1
    p = y + torch.tensor([1., 0.]).view(2, 1, 1, 1)
    whole, parts = score(p, y), [score(p[i:i + 1], y[i:i + 1]) for i in range(2)]
    for name, expected in (('crmse', math.sqrt(.5)), ('max_error', 1.), ('frmse_low', math.sqrt(.5) / 4)):
        assert whole[name] == pytest.approx(expected)
        assert (parts[0][name] + parts[1][name]) / 2 < expected - .05


def test_float64_inside():
    y = (1e3 + 1e-2 * noise(3, 2, 64, 1)).float()
    p = (y + 1e-3 * noise(3, 2, 64, 1, seed=1)).float()
    a, b = score(p, y), score(p.double(), y.double())
    assert a == b


def test_blow_up_keeps_the_finite_steps():
    y = noise(3, 6, 32, 1)
    p = y * 1.1
    p[1, 4:], p[2, 5] = math.nan, math.inf
    s, steps = ms.metrics(p, y, y[:, 0], DT)
    assert steps[:4] == pytest.approx([.1] * 4)
    assert not any(math.isfinite(v) for v in [*steps[4:], s['nrmse'], s['mse'], s['max_error'], s['rel_l2']])
    assert s['correlation_time'] == pytest.approx((6 + 5 + 6) / 3 * DT)


def test_no_epsilon_hides_a_truth_of_zero():
    y = torch.zeros(2, 2, 16, 1)
    assert score(y, y)['nrmse'] == 0 and score(y + 1, y)['nrmse'] == math.inf


def test_what_is_bounded():
    """Of two trajectories and fields, twice the largest true size may be reached, not exceeded."""
    largest = torch.tensor([[1., 2.], [1., 2.]])
    size = torch.tensor([[[2., 4.], [1., 1.]], [[1., 1.], [1., 1.]]])                # (N, T, C)
    assert ms.bounded(size, largest).tolist() == [True, True]
    for field, value in ((0, 2.1), (1, 4.1), (0, math.inf), (1, math.nan)):
        worse = size.clone()
        worse[0, 1, field] = value
        assert ms.bounded(worse, largest).tolist() == [False, True]
