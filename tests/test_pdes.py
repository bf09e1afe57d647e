"""pdes.py: names and parameters, and whether the solvers keep what the entries promise."""
import dataclasses

import numpy as np
import pytest
import torch

import pdes
import solvers
from conftest import refused
from layouts import GAS, LAYOUTS
from pdes import PDES, entry, parameter_keys, parameters

SOLVED = [name for name, pde in PDES.items() if pde.solve]
BOOSTED = [name for name in SOLVED if PDES[name].galilean]
CELLS = {'compressible-1d': 64, 'compressible-1d-outgoing': 64}     # an axis: 256 else, 32 on two axes
PARAMS = {'navier-stokes': {'Nu': 1e-3}}                            # else the entry's
TOLERANCE = {'darcy': 1e-8}             # what a symmetry may lack, relative to the largest value; else 1e-9


def start(name, n=3):
    """Initial fields (n, *cells, C) of the entry's own distribution."""
    pde = entry(name)
    size = CELLS.get(name, 256 if pde.axes == 1 else 32)
    return pde.start(n, (size,) * pde.axes)


def solved(name, u0):
    """At the times of the frames 0, 4 and 10 that files have."""
    pde = entry(name)
    return pde.solution(u0, PARAMS.get(name, pde.params), pde.dt * np.array([0, 4, 10]))


def difference(u, v):
    """Largest difference of any field, relative to the field's largest value."""
    fields = tuple(range(u.ndim - 1))
    return float(((u - v).abs().amax(fields) / v.abs().amax(fields)).max())


# ---------------------------------------------------------------------------------------------
# names and parameters

@pytest.mark.parametrize('name', PDES)
def test_an_entry_is_consistent(name):
    pde = entry(name)
    assert len(pde.cells) == len(pde.low) == len(pde.length) == pde.axes
    assert {*pde.conserved, *pde.velocity, *pde.positive, *pde.pseudo} <= set(pde.fields)
    assert not set(pde.velocity) & set(pde.pseudo)
    assert not pde.galilean or pde.translates
    assert not pde.steady or (len(pde.fields) == pde.frames == 2)
    assert pde.velocity == () or len(pde.velocity) == pde.axes
    assert pde.boundary in ('periodic', 'wall', 'open') and pde.periodic == (pde.boundary == 'periodic')
    assert pde.test in ('first', 'last') and min(pde.length) > 0
    assert not pde.galilean or pde.velocity             # a boost is lifted onto the velocity
    assert not pde.drift or not pde.mirror              # a reflection would turn the direction
    assert len({key.lower() for key in pde.params}) == len(pde.params)
    assert (pde.solve is None) == (pde.initial is None)
    assert pde.layout in LAYOUTS and pde.steady == (pde.layout == 'steady')
    assert pde.layout != 'tensor' or len(pde.fields) == 1
    assert pde.layout != 'arrays' or pde.fields == GAS[:2 + pde.axes]


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
    gas = entry('compressible-1d-outgoing')
    assert gas.released(gas.params) == '1D_CFD_Rand_Eta1.e-8_Zeta1.e-8_trans_Train.hdf5'


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


def test_a_steady_equation_is_a_trajectory_of_two_frames():
    pde = dataclasses.replace(
        entry('burgers'), fields=('a', 'u'), params={'p': 1.}, steady=True, frames=2,
        solve=lambda a, p: p * a, initial=lambda n, cells, seed, first: first + np.ones((n, *cells)))
    u0 = pde.start(3, (8,), first=4)
    u = pde.solution(u0, {'p': 7.}, [0., 1., 2.])
    assert torch.equal(u0[0, 0], torch.tensor([5., 0.]).double())
    assert torch.equal(u[1, :, 3], torch.tensor([[5., 0.], [5., 35.], [5., 35.]]).double())
    assert u.shape == (3, 3, 8, 2) and u0.shape == (3, 8, 2)


def test_solvers_of_several_fields_get_the_channel_axis(monkeypatch):
    seen = []

    def solve(u0, p, q, t):                                          # by name, in whatever order
        seen.append((u0.shape, p, q))
        return u0[:, None].expand(-1, len(t), -1, -1)

    pde = dataclasses.replace(entry('burgers'), fields=('a', 'b'), params={'q': 1., 'p': 2.}, solve=solve)
    u = pde.solution(torch.zeros(3, 8, 2), {'p': 5., 'q': 7.}, [0., 1.])
    assert u.shape == (3, 2, 8, 2) and seen == [((3, 8, 2), 5., 7.)]


# ---------------------------------------------------------------------------------------------
# promises, against the solver; and what is not promised is not there

@pytest.mark.parametrize('name', SOLVED)
def test_shapes_and_conserved_and_positive_fields(name):
    pde = entry(name)
    u0 = start(name)
    u = solved(name, u0)
    assert u.shape == (3, 3, *u0.shape[1:]) and u.dtype == torch.float64 and torch.equal(u[:, 0], u0)
    assert (u[:, -1] - u0).abs().max() > .05
    space = tuple(range(2, u.ndim - 1))
    integral = u.mean(space)                            # (B, T, C)
    for index, field in enumerate(pde.fields):
        values = integral[..., index]
        drift = (values - values[:, :1]).abs().max() / u[..., index].abs().max()
        assert (drift < 1e-12) == (field in pde.conserved + pde.static), (field, drift)
        if field in pde.static:
            assert torch.equal(u[..., index], u0[:, None, ..., index].expand_as(u[..., index]))
        assert field not in pde.positive or u[..., index].min() > -1e-12


@pytest.mark.parametrize('name', [name for name in SOLVED if PDES[name].periodic])
def test_translation(name):
    u0 = start(name)
    u = solved(name, u0)
    lost = [difference(solved(name, u0.roll(5, axis)), u.roll(5, axis + 1))
            for axis in range(1, u0.ndim - 1)]
    assert (max(lost) < 1e-9) == PDES[name].translates, lost


def mirrored(pde, u, first, axis):
    """Reflected along a space axis of u, whose first one is `first`; the velocity along it and pseudo-scalars
    change their signs."""
    sign = torch.ones(len(pde.fields))
    odd = [*pde.velocity[axis:axis + 1], *pde.pseudo]
    for field in odd:
        sign[pde.fields.index(field)] = -1
    return u.flip(first + axis) * sign


@pytest.mark.parametrize('name', SOLVED)
def test_reflection(name):
    pde = entry(name)
    u0 = start(name)
    u = solved(name, u0)
    lost = [difference(solved(name, mirrored(pde, u0, 1, axis)), mirrored(pde, u, 2, axis))
            for axis in range(pde.axes)]
    assert (max(lost) < TOLERANCE.get(name, 1e-9)) == pde.mirror, lost


def test_a_pseudo_scalar_is_odd_under_a_reflection():
    """The vorticity, without the force that breaks the symmetry."""
    pde = entry('navier-stokes')
    w0 = 50 * start('navier-stokes')

    def flow(w):
        return solvers.navier_stokes(w[..., 0], 1e-3, [0., 1.], forced=False, refine=1)[..., None]

    assert pde.pseudo == ('w',) and (flow(w0)[:, 1] - w0).abs().max() > .5
    for axis in (0, 1):
        assert difference(flow(mirrored(pde, w0, 1, axis)), mirrored(pde, flow(w0), 2, axis)) < 1e-9
        assert difference(flow(w0.flip(1 + axis)), flow(w0).flip(2 + axis)) > .1


@pytest.mark.parametrize('name', BOOSTED)
def test_moving_frame(name):
    """u + c moves with the speed galilean c. The frame moves by a sixteenth of the domain every four frames.
    Finite volumes of gas are not exact in this: their own error is."""
    pde = entry(name)
    u0 = start(name)
    cells = u0.shape[1] // 16
    step = 4 * pde.dt
    speed = pde.length[0] / 16 / step
    lift = torch.zeros(len(pde.fields), dtype=torch.float64)
    lift[pde.fields.index(pde.velocity[0])] = speed / pde.galilean
    t = [0., step, 2 * step]
    u = pde.solution(u0, pde.params, t)
    boosted = pde.solution(u0 + lift, pde.params, t) - lift
    tolerance = .05 if name == 'compressible-1d' else 1e-9
    for frame in range(3):
        moved = u[:, frame].roll(cells * frame, 1)
        lost = (boosted[:, frame] - moved).square().mean((0, 1)) / moved.square().mean((0, 1))
        assert lost.sqrt().max() < tolerance, frame


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
        assert not any(name in text for name in PDES), module
