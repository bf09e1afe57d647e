"""pdes.py: names and parameters, and whether the solvers keep what the entries promise."""
import dataclasses

import numpy as np
import pytest
import torch

import pdes
from conftest import refused
from pdes import PDES, entry, parameter_keys, parameters

SOLVED = [name for name, pde in PDES.items() if pde.solve]
MIRRORED = [name for name in SOLVED if PDES[name].mirror]
BOOSTED = [name for name in SOLVED if PDES[name].galilean]
TIMES = [0., .1, .35]


def start(name, n=4, size=256):
    """Initial fields (n, *cells, C) of the entry's own distribution."""
    pde = entry(name)
    u0 = torch.from_numpy(pde.initial(n, (size,) * pde.axes, 0, 0))
    return u0[..., None] if len(pde.fields) == 1 else u0


def solved(name, u0, t=TIMES):
    return entry(name).solution(u0, entry(name).params, t)


# ---------------------------------------------------------------------------------------------
# names and parameters

@pytest.mark.parametrize('name', PDES)
def test_an_entry_is_consistent(name):
    pde = entry(name)
    assert len(pde.cells) == len(pde.low) == len(pde.length) == pde.axes
    assert set(pde.conserved) | set(pde.velocity) | set(pde.positive) <= set(pde.fields)
    assert pde.velocity == () or len(pde.velocity) == pde.axes
    assert pde.boundary in ('periodic', 'wall', 'open') and pde.periodic == (pde.boundary == 'periodic')
    assert pde.test in ('first', 'last') and min(pde.length) > 0
    assert not pde.galilean or pde.velocity             # a boost is lifted onto the velocity
    assert len({key.lower() for key in pde.params}) == len(pde.params)
    assert (pde.solve is None) == (pde.initial is None)


def test_no_two_entries_have_the_same_file():
    names = [pde.made(pde.params, 10) for pde in PDES.values()]
    assert len(set(names)) == len(names)


def test_file_names():
    burgers = entry('burgers')
    advection = entry('advection')
    assert burgers.released({'Nu': 1}) == '1D_Burgers_Sols_Nu1.0.hdf5'
    assert burgers.released({'Nu': .001}) == '1D_Burgers_Sols_Nu0.001.hdf5'
    assert burgers.made({'Nu': 1.}, 1000) == '1D_Burgers_Sols_Nu1_N1000.hdf5'
    assert burgers.made({'Nu': .01}, 20, 64) == '1D_Burgers_Sols_Nu0.01_X64_N20.hdf5'
    assert advection.released({'beta': .4}) == '1D_Advection_Sols_beta0.4.hdf5'


def test_geometry():
    assert (entry('burgers').low, entry('burgers').length) == ((0.,), (1.,))
    assert (entry('burgers-old').low, entry('burgers-old').length) == ((-1.,), (2.,))
    box = dataclasses.replace(entry('burgers'), space=((0, 1), (-1, 3)))
    assert (box.axes, box.low, box.length) == (2, (0., -1.), (1., 4.))


def test_unknown_name():
    message = refused(entry, 'burger')
    assert all(name in message for name in PDES)


def test_parameters():
    keys = parameter_keys()
    assert "'nu'" in refused(parameter_keys, {'nu': 1.})              # as a key of train.py may be called
    assert keys['nu'] is None and keys['beta'] is None
    assert parameters('burgers', keys) == {'Nu': .01} == parameters('burgers', {})
    assert parameters('burgers', {**keys, 'nu': 1}) == {'Nu': 1.}
    assert parameters('advection', {**keys, 'beta': .7}) == {'beta': .7}
    message = refused(parameters, 'advection', {**keys, 'nu': .1})
    assert message == 'advection has no parameter nu; it has beta'
    refused(parameters, 'nothing', keys)


@pytest.mark.parametrize('value', [0., -.1, float('nan'), float('inf'), '0.1', True, (.1, .2)])


def test_a_parameter_must_be_a_positive_number(value):
    assert 'nu=' in refused(parameters, 'burgers', {'nu': value})


def test_no_solver():
    pde = dataclasses.replace(entry('burgers'), solve=None)
    assert 'no built-in solver' in refused(pde.solution, torch.zeros(1, 8, 1), {'Nu': .1}, [0., 1.])


def test_solvers_of_several_fields_get_the_channel_axis(monkeypatch):
    seen = []

    def solve(u0, p, q, t):                                          # by name, in whatever order
        seen.append((u0.shape, p, q))
        return u0[:, None].expand(-1, len(t), -1, -1)

    pde = dataclasses.replace(entry('burgers'), fields=('a', 'b'), params={'q': 1., 'p': 2.}, solve=solve)
    u = pde.solution(torch.zeros(3, 8, 2), {'p': 5., 'q': 7.}, [0., 1.])
    assert u.shape == (3, 2, 8, 2) and seen == [((3, 8, 2), 5., 7.)]


# ---------------------------------------------------------------------------------------------
# promises, against the solver (where all axes are alike)

@pytest.mark.parametrize('name', SOLVED)
def test_shapes_and_conserved_fields(name):
    pde = entry(name)
    u0 = start(name)
    u = solved(name, u0)
    assert u.shape == (4, 3, *u0.shape[1:]) and u.dtype == torch.float64 and torch.equal(u[:, 0], u0)
    assert (u[:, -1] - u0).abs().max() > .05
    space = tuple(range(2, u.ndim - 1))
    integral = u.mean(space)                            # (B, T, C)
    for field in pde.conserved:
        values = integral[..., pde.fields.index(field)]
        assert (values - values[:, :1]).abs().max() < 1e-12


@pytest.mark.parametrize('name', [name for name in SOLVED if PDES[name].periodic])
def test_translation(name):
    u0 = start(name)
    assert (solved(name, u0.roll(37, 1)) - solved(name, u0).roll(37, 2)).abs().max() < 1e-9


def mirrored(name, u, axis):
    """Reflected along an axis of u, a space axis; the velocity along it changes its sign."""
    pde = entry(name)
    sign = torch.ones(len(pde.fields))
    if pde.velocity:
        sign[pde.fields.index(pde.velocity[0])] = -1
    return u.flip(axis) * sign


@pytest.mark.parametrize('name', MIRRORED)
def test_reflection(name):
    u0 = start(name)
    assert (solved(name, mirrored(name, u0, 1)) - mirrored(name, solved(name, u0), 2)).abs().max() < 1e-9


@pytest.mark.parametrize('name', BOOSTED)
def test_moving_frame(name):
    """u + c moves with the speed galilean c. The frame moves 16 whole cells a step."""
    pde = entry(name)
    u0 = start(name)
    cells = 16
    step = .1
    speed = cells * pde.length[0] / u0.shape[1] / step
    lift = torch.zeros(len(pde.fields), dtype=torch.float64)
    lift[pde.fields.index(pde.velocity[0])] = speed / pde.galilean
    t = [0., step, 2 * step]
    u = solved(name, u0, t)
    boosted = solved(name, u0 + lift, t)
    for frame in range(3):
        assert (boosted[:, frame] - u[:, frame].roll(cells * frame, 1) - lift).abs().max() < 1e-9


def test_advection_has_no_symmetry_that_it_lacks():
    pde = entry('advection')
    assert not pde.mirror and not pde.galilean and pde.conserved == ('u',)


def test_the_old_generation_solves_its_own_equation():
    """u_t + (u²)_x - (nu/pi) u_xx = 0 on (-1, 1), with spectral derivatives and a central difference in
    time."""
    X = 512
    nu = .1
    h = 1e-3
    x = -1 + 2 * (np.arange(X) + .5) / X
    u0 = torch.from_numpy(.3 + .4 * np.sin(np.pi * x) + .2 * np.cos(2 * np.pi * x))[None, :, None]
    u = entry('burgers-old').solution(u0, {'Nu': nu}, [0., .2 - h, .2, .2 + h])
    before, now, after = u[0, 1:, :, 0].numpy()
    k = np.pi * np.fft.rfftfreq(X, 1 / X)

    def derivative(v, order):
        return np.fft.irfft((1j * k) ** order * np.fft.rfft(v), X)

    speed = (after - before) / (2 * h)
    residual = speed + derivative(now ** 2, 1) - nu / np.pi * derivative(now, 2)
    assert np.abs(speed).max() > .1
    assert np.abs(residual).max() < 1e-3 * np.abs(speed).max()


def test_nothing_else_names_an_equation():
    """The promise of pdes.py's first lines, for the files that this suite knows to keep it."""
    for module in ('files', 'metrics'):
        text = open(pdes.__file__.replace('pdes.py', f'{module}.py')).read().lower()
        assert not any(name in text for name in ('burgers', 'advection')), module
