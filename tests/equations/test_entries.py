"""equations/__init__.py: names, parameters and files; whether the solvers keep what the entries declare."""
import dataclasses
import functools
import itertools
import os
import sys

import numpy as np
import pytest
import torch

import equations
from conftest import ROOT, add_equation, refused
from equations import PDE, each_value, entries, entry, names, parameter_keys, parameters
from equations.common import ZERO
from equations.kuramoto_sivashinsky import ks_waves
from equations.navier_stokes import navier_stokes

ENTRIES = entries()
for of_given_cells in ('gray-scott', 'kolmogorov-flow'):            # finer ones cost seconds
    pde = ENTRIES[of_given_cells]
    ENTRIES[of_given_cells] = dataclasses.replace(pde, solve=functools.partial(pde.solve, refine=1))
pde = ENTRIES['obstacles']
ENTRIES['obstacles'] = dataclasses.replace(pde, solve=functools.partial(pde.solve, dtype=torch.float64))
SOLVED = [name for name, pde in ENTRIES.items() if pde.solve]
CELLS = {'compressible-1d': 48, 'compressible-1d-outgoing': 48, 'diffusion-sorption': 32}
DEFAULT_CELLS = (128, 32)               # along each axis, of one and of two axes
PARAMS = {'navier-stokes': {'Nu': 1e-2}, 'kolmogorov-flow': {'Nu': .1}}          # else the entry's
TOLERANCE = {'darcy': 1e-8, 'kolmogorov-flow': 1e-6}    # error of a symmetry relative to the largest value; else
                                                        # 1e-9. (The fastest flow of a batch sets the steps.)


# ---------------------------------------------------------------------------------------------
# names, files, parameters

def test_names_are_the_files_of_the_folder():
    files = os.listdir(os.path.join(ROOT, 'equations'))
    modules = {file[:-3] for file in files if file.endswith('.py')}
    assert len(names()) == 18 and sorted(names()) == names()
    helpers = modules - {name.replace('-', '_') for name in names()}
    assert helpers == {'__init__', 'common', 'derivatives', 'lattice'}


HEAT = '''
import torch

from equations import PDE
from equations.common import checked, wave_numbers, waves


def heat(u0, kappa, t):
    u0, t = checked(u0, t, kappa=kappa)
    decay = torch.exp(-kappa * wave_numbers(u0, 1) ** 2 * torch.from_numpy(t)[:, None])
    return torch.fft.irfft(torch.fft.rfft(u0)[:, None] * decay, n=u0.shape[1])


ENTRY = PDE(fields=('u',), params={'Kappa': .1}, space=((0, 1),), boundary='periodic', solve=heat,
            file='heat{Kappa}.hdf5', initial=waves, conserved=('u',), mirror=True)
'''


def test_one_file_adds_an_equation(tmp_path, monkeypatch):
    """Nothing else is edited, and no other equation is imported."""
    (tmp_path / 'slow_heat.py').write_text(HEAT)
    (tmp_path / 'half_done.py').write_text('')
    monkeypatch.setattr(equations, '__path__', [*equations.__path__, str(tmp_path)])
    modules = [f"equations.{name.replace('-', '_')}" for name in names()]
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)               # to be put back
        del sys.modules[module]
    pde = entry('slow-heat')
    assert [module for module in modules if module in sys.modules] == ['equations.slow_heat']
    assert 'slow-heat' in names() and parameter_keys('slow-heat') == {'kappa': None}
    params = parameters('slow-heat', {'kappa': .02})
    assert pde.made(params, 5) == 'heat0.02_N5.hdf5'
    assert pde.solution(pde.start(2, (32,)), params, [0., 1.]).shape == (2, 2, 32, 1)
    message = refused(entry, 'half-done')
    assert 'equations/half_done.py' in message and 'ENTRY' in message


def test_a_moving_frame_and_a_symmetry_of_ones_own_are_refused():
    entry = ENTRIES['navier-stokes']
    assert 'symmetry' in refused(dataclasses.replace, entry, galilean=1.)


def test_unknown_name():
    message = refused(entry, 'navier_stoke')
    assert "did you mean 'navier-stokes'" in message and all(name in message for name in names())
    refused(entry, 'common')
    refused(parameters, 'nothing', {})


@pytest.mark.parametrize('module', ['data', 'eval', 'losses', 'equations/common', 'equations/derivatives'])
def test_nothing_else_names_an_equation(module):
    with open(os.path.join(ROOT, f'{module}.py'), encoding='utf-8') as file:
        text = file.read()
    assert not [name for name in names() if f"'{name}'" in text]


@pytest.mark.parametrize('name', ENTRIES)
def test_an_entry_is_consistent(name):
    pde = ENTRIES[name]
    fields = set(pde.fields)
    assert len(pde.cells) == len(pde.low) == len(pde.length) == pde.axes and min(pde.length) > 0
    assert {*pde.conserved, *pde.velocity, *pde.positive, *pde.pseudo, *pde.static, *pde.walls} <= fields
    assert not set(pde.velocity) & set(pde.pseudo)
    assert len(pde.velocity) in (0, pde.axes)
    assert pde.boundary in ('periodic', 'wall', 'open') and pde.test in ('first', 'last')
    assert not pde.galilean or pde.velocity and pde.translation_invariant
    assert not pde.diagonal or not pde.mirror           # a reflection would change the direction
    assert not pde.incompressible or pde.velocity
    assert not pde.walls or pde.boundary == 'wall'
    assert all(len(sides) == 2 and len(side) == 3 for sides in pde.walls.values() for side in sides)
    assert len({key.lower() for key in pde.params}) == len(pde.params)
    assert (pde.solve is None) == (pde.initial is None)
    assert pde.steady == (pde.layout == 'steady')
    assert not pde.steady or (len(pde.fields) == pde.frames == 2)
    assert pde.layout != 'tensor' or len(pde.fields) == 1
    assert pde.layout != 'arrays' or pde.fields == ('density', 'pressure', 'Vx', 'Vy')[:2 + pde.axes]


def test_file_names():
    made = [pde.made(pde.params, 10) for pde in ENTRIES.values()]
    assert len(set(made)) == len(made)
    burgers = entry('burgers')
    assert burgers.released({'Nu': 1}) == '1D_Burgers_Sols_Nu1.0.hdf5'
    assert burgers.made({'Nu': 1.}, 1000) == '1D_Burgers_Sols_Nu1_N1000.hdf5'
    assert burgers.made({'Nu': .01}, 20, 64) == '1D_Burgers_Sols_Nu0.01_X64_N20.hdf5'
    gas = entry('compressible-1d-outgoing')
    assert gas.released(gas.params) == '1D_CFD_Rand_Eta1.e-8_Zeta1.e-8_trans_Train.hdf5'


def test_geometry():
    box = dataclasses.replace(entry('burgers'), space=((0, 1), (-1, 3)), cells=(32, 128))
    assert (box.axes, box.low, box.length) == (2, (0., -1.), (1., 4.))
    assert box.shape(8) == (8, 32) and box.shape(0) == (32, 128) and entry('burgers').shape(8) == (8,)


def test_parameters():
    keys = parameter_keys()
    assert set(keys) == {'nu', 'beta', 'rho', 'eta', 'zeta', 'm', 'feed', 'kill', 'dispersion', 're'}
    assert set(keys.values()) == {None}
    assert parameter_keys('reaction-diffusion') == {'nu': None, 'rho': None}
    assert parameters('burgers', keys) == {'Nu': .01} == parameters('burgers', {})
    assert parameters('burgers', {**keys, 'nu': 1}) == {'Nu': 1.}
    message = refused(parameters, 'advection', {**keys, 'nu': .1})
    assert message == 'advection has no parameter nu; it has beta'
    for value in (0., -.1, float('nan'), float('inf'), '0.1', True, (.1, 0.), ('.1', .2), (.1, .1), ()):
        assert 'nu=' in refused(parameters, 'burgers', {'nu': value})
    several = parameters('reaction-diffusion', {'nu': (.5, 1)})
    assert several == {'Nu': (.5, 1.), 'rho': 1.}
    assert each_value(several) == [{'Nu': .5, 'rho': 1.}, {'Nu': 1., 'rho': 1.}]
    assert each_value({}) == [{}]


def test_no_solver():
    pde = entry('incompressible')
    assert 'no built-in solver' in refused(pde.solution, torch.zeros(1, 8, 8, 5), {}, [0., 1.])


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

    def solve(u0, p, q, t):                             # parameters are passed by name
        seen.append((u0.shape, p, q))
        return u0[:, None].expand(-1, len(t), -1, -1)

    pde = PDE(fields=('a', 'b'), params={'Q': 1., 'p': 2.}, space=((0, 1),), boundary='wall', file='ab',
              solve=solve, walls={'a': (ZERO, ZERO)})
    add_equation(monkeypatch, 'pair', pde)
    assert entry('pair') is pde and 'pair' in equations.names() and equations.entries()['pair'] is pde
    u = pde.solution(torch.zeros(3, 8, 2), {'p': 5., 'Q': 7.}, [0., 1.])
    assert u.shape == (3, 2, 8, 2) and seen == [((3, 8, 2), 5., 7.)]


# ---------------------------------------------------------------------------------------------
# what an entry declares holds for its solver, and what it does not declare does not hold

def solved(name, u0):
    """The solution at the times of the frames 0, 4 and 10 of a file."""
    pde = ENTRIES[name]
    return pde.solution(u0, PARAMS.get(name, pde.params), pde.dt * np.array([0, 4, 10]))


@functools.cache
def solution(name):
    """Initial fields (3, *cells, C) of the entry's own distribution, and their solution."""
    pde = ENTRIES[name]
    if name == 'kuramoto-sivashinsky':
        pde = dataclasses.replace(pde, initial=ks_waves)             # without a burn-in
    size = CELLS.get(name, DEFAULT_CELLS[pde.axes - 1])
    u0 = pde.start(3, pde.shape(size))
    return u0, solved(name, u0)


def difference(u, v):
    """Largest difference of any field, relative to the field's largest value."""
    fields = tuple(range(u.ndim - 1))
    largest = v.abs().amax(fields).clamp_min(1e-300)
    return float(((u - v).abs().amax(fields) / largest).max())


def holds(name, change):
    """Is this map of fields (n, *X, C), or of solutions (n, T, *X, C), a symmetry of the solver?"""
    u0, u = solution(name)
    rows = slice(0, 2)
    return difference(solved(name, change(u0[rows])), change(u[rows])) < TOLERANCE.get(name, 1e-9)


@pytest.mark.parametrize('name', SOLVED)
def test_shapes_and_conserved_and_positive_fields(name):
    pde = ENTRIES[name]
    u0, u = solution(name)
    assert u.shape == (3, 3, *u0.shape[1:]) and u.dtype == torch.float64
    assert torch.allclose(u[:, 0], u0, rtol=1e-12, atol=1e-12)
    assert (u[:, -1] - u0).abs().max() > .05
    space = tuple(range(2, u.ndim - 1))
    integral = u.mean(space)                            # (B, T, C)
    for index, field in enumerate(pde.fields):
        values = integral[..., index]
        gap = (values - values[:, :1]).abs().max() / u[..., index].abs().max()
        assert (gap < 1e-12) == (field in pde.conserved + pde.static), (field, gap)
        if field in pde.static:
            assert torch.equal(u[..., index], u0[:, None, ..., index].expand_as(u[..., index]))
        assert field not in pde.positive or u[..., index].min() > -1e-12


@pytest.mark.parametrize('name', [name for name in SOLVED if name not in ('advection', 'darcy')])
def test_a_long_solution_says_how_far_it_is(name, monkeypatch, capsys):
    """advection's solution is a formula, darcy's no series of frames."""
    pde = ENTRIES[name]
    u0, _ = solution(name)
    monkeypatch.setattr('runtime.progress.perf_counter', itertools.count(step=20.).__next__)
    pde.solution(u0[:1], PARAMS.get(name, pde.params), pde.dt * np.array([0., .1, .2]))
    assert 'solver: frames 50% | eta' in capsys.readouterr().out


@pytest.mark.parametrize('name', SOLVED)
def test_a_sample_does_not_depend_on_its_batch(name):
    u0, u = solution(name)
    alone = solved(name, u0[1:2])
    assert difference(alone, u[1:2]) < (1e-6 if name in ('darcy', 'navier-stokes', 'kolmogorov-flow') else 1e-9)


@pytest.mark.parametrize('name', [name for name in SOLVED if ENTRIES[name].periodic])
def test_translation(name):
    pde = ENTRIES[name]
    for axis, n_other in enumerate(range(1, pde.axes + 1)):
        others = pde.diagonal[:axis] + pde.diagonal[n_other:]
        along = pde.translation_invariant or bool(pde.diagonal) and not any(others)
        assert holds(name, lambda u, axis=axis: u.roll(5, axis - 1 - pde.axes)) == along
    if pde.diagonal:
        shift = [5 * way for way in pde.diagonal]
        assert holds(name, lambda u: u.roll(shift, tuple(range(-1 - pde.axes, -1))))


def mirrored(pde, u, axis):
    """Reflected along an axis: the velocity along it and pseudo-scalars change their signs."""
    sign = torch.ones(len(pde.fields))
    for field in [*pde.velocity[axis:axis + 1], *pde.pseudo]:
        sign[pde.fields.index(field)] = -1
    return u.flip(axis - 1 - pde.axes) * sign


@pytest.mark.parametrize('name', SOLVED)
def test_reflection(name):
    pde = ENTRIES[name]
    for axis in range(pde.axes):
        assert holds(name, lambda u, axis=axis: mirrored(pde, u, axis)) == pde.mirrored[axis]


@pytest.mark.parametrize('element, shift', [(1, 0), (2, 5), (3, 5), (0, 5)])
@pytest.mark.parametrize('name', [name for name in SOLVED if ENTRIES[name].symmetry])
def test_further_symmetries(name, element, shift):
    """Fields of one channel and of several: every channel is mapped alike."""
    pde = ENTRIES[name]

    def change(u):
        return torch.stack([pde.symmetry(channel, element, shift) for channel in u.unbind(-1)], -1)

    u0, _ = solution(name)
    round_dams = name == 'shallow-water'                # they are their own mirror images
    assert round_dams or (difference(change(u0), u0) > .1) == bool(element % 2 or pde.diagonal)
    assert holds(name, change)


def test_the_forced_flow_has_no_symmetry_beyond_these():
    for change in (lambda w: w.flip(-3, -2), lambda w: -w.transpose(-3, -2), lambda w: w.flip(-2)):
        assert not holds('navier-stokes', change)
    for change in (lambda w: w.roll(4, -2), lambda w: -w.transpose(-3, -2), lambda w: -w.flip(-2)):
        assert not holds('kolmogorov-flow', change)
    assert holds('kolmogorov-flow', lambda w: w.roll(8, -2))         # a wave of the force


def test_the_torus_maps_are_the_stated_ones():
    """w(1/4 - x, -y) and -w(y + 1/2, x) and w(x - s, y + s), of a function that is not symmetric; then those of
    the Kolmogorov flow, in units of its domain."""
    def field(x, y):
        return np.sin(2 * np.pi * x) + np.cos(2 * np.pi * (x + 2 * y)) + np.sin(2 * np.pi * (3 * x - y) + 1)

    x = (np.arange(16)[:, None] + .5) / 16 + np.zeros(16)
    y = x.T
    w = torch.from_numpy(field(x, y))
    stated = [(1, 0, field(.25 - x, -y)), (2, 0, -field(y + .5, x)), (0, 3, field(x - 3 / 16, y + 3 / 16))]
    for element, shift, expected in stated:
        moved = entry('navier-stokes').symmetry(w, element, shift)
        assert (moved - torch.from_numpy(expected)).abs().max() < 1e-12
    stated = [(1, 0, field(-x, -y)), (2, 0, -field(-x, y + 1 / 8)), (0, 3, field(x - 3 / 16, y))]
    for element, shift, expected in stated:
        moved = entry('kolmogorov-flow').symmetry(w, element, shift)
        assert (moved - torch.from_numpy(expected)).abs().max() < 1e-12


def test_a_pseudo_scalar_is_odd_under_a_reflection():
    """The vorticity, without the force that breaks the symmetry."""
    pde = entry('navier-stokes')
    w0 = 50 * solution('navier-stokes')[0][:1]

    def flow(w):
        return navier_stokes(w[..., 0], 1e-3, [0., .4], force=None, refine=1)[..., None]

    whole = flow(w0)
    assert pde.pseudo == ('w',) and (whole[:, 1] - w0).abs().max() > .5
    for axis in (0, 1):
        assert difference(flow(mirrored(pde, w0, axis)), mirrored(pde, whole, axis)) < 1e-9
        assert difference(flow(w0.flip(1 + axis)), whole.flip(2 + axis)) > .1


@pytest.mark.parametrize('name', [name for name in SOLVED if ENTRIES[name].galilean])
def test_moving_frame(name):
    """u + c moves with the speed galilean c. The frame moves by a sixteenth of the domain every four frames.
    Finite volumes of gas have this symmetry up to their own error."""
    pde = ENTRIES[name]
    u0 = solution(name)[0]
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


@pytest.mark.parametrize('name', [name for name in SOLVED if ENTRIES[name].dissipative])
def test_the_energy_of_a_dissipative_equation_does_not_grow(name):
    pde = ENTRIES[name]
    u0 = pde.start(5, (256,))
    energy = pde.solution(u0, pde.params, [0., .05, .1, .5, 1.]).square().mean((2, 3))
    assert (energy.diff(dim=1) <= 1e-4 * energy[:, :1]).all()        # (shifts change the shortest wave)
    assert (energy[:, -1] < .95 * energy[:, 0]).any() == (name not in ('advection', 'korteweg-de-vries'))
