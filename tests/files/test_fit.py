"""files/fit.py: which files fit each other, a key, a model; and where the values of those that fit are taken."""
import dataclasses

import h5py
import numpy as np
import pytest
import torch

import equations
from conftest import centres, config, drawn, noise, refused
from files import fit
from files.open import open_source
from handmade import know, tensor

FORCED = dataclasses.replace(equations.entry('burgers'), translation=False, positive=('u',))
WALLS = dataclasses.replace(FORCED, boundary='wall')
ARGV = ['train.py', '--data_path=a', '--out_dir=b']


def opened(path, x=None, T=5, X=16, dt=.01, nu=.01, u=None):
    u = noise(10, T, X) if u is None else u
    return open_source(tensor(path, u, x, np.arange(u.shape[1]) * dt, {'Nu': nu}), 'burgers', quiet=True)


# -----------------------------------------------------------------------------
# files that are trained on together

@pytest.mark.parametrize('entry', [FORCED, WALLS])
def test_points_must_agree_where_places_differ(tmp_path, monkeypatch, entry, capsys):
    moved = centres(16) - .4 / 16
    sources = [opened(tmp_path / 'a.hdf5'), opened(tmp_path / 'b.hdf5', moved, nu=.02)]
    fit.check_together(sources)                         # on a circle, the first point makes no difference
    know(monkeypatch.setattr, burgers=entry)
    message = refused(fit.check_together, sources)
    assert 'points' in refused(fit.check_together, [sources[0], opened(tmp_path / 'd.hdf5', centres(16) - .002)])
    for word in ('a.hdf5', 'b.hdf5', '0.03125', '0.00625'):
        assert word in message
    fit.check_together([sources[0], opened(tmp_path / 'c.hdf5', centres(16) + 1e-7)])
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize('other, told', [
    ({'T': 6}, '6 frames against 5'), ({'dt': .02}, '0.02 s against 0.01'),
    ({'X': 64}, '64 cells against 16')], ids=str)
def test_files_that_differ(tmp_path, other, told):
    sources = [opened(tmp_path / 'a.hdf5'), opened(tmp_path / 'b.hdf5', **other)]
    assert told in refused(fit.check_together, sources)


@pytest.mark.parametrize('dt', [1e-12, .01, 1e6])
def test_time_steps_are_compared_relatively(tmp_path, dt):
    one = opened(tmp_path / 'a.hdf5', dt=dt)
    fit.check_together([one, dataclasses.replace(one, dt=dt * (1 + 1e-6))])
    assert 'a frame every' in refused(fit.check_together, [one, dataclasses.replace(one, dt=1.01 * dt)])


def test_points_at_both_ends(tmp_path, monkeypatch, capsys):
    source = opened(tmp_path / 'a.hdf5', np.linspace(0, 1, 64), X=64)
    fit.check_together([source])
    even = opened(tmp_path / 'b.hdf5', X=64)
    assert 'points 0 .. 1 against' in refused(fit.check_together, [even, source])
    assert 'by up to 1 cells' in capsys.readouterr().out
    know(monkeypatch.setattr, burgers=WALLS)
    assert 'must be cell centres' in refused(fit.check_together, [source])


# -----------------------------------------------------------------------------
# keys beside a file

def settled(sources, *words, nu=.01, resolution=0):
    return fit.settled({'nu': nu, 'resolution': resolution}, {'Nu': nu}, sources, [*ARGV, *words])


def test_what_the_file_says_is_recorded(tmp_path, capsys):
    one = opened(tmp_path / 'a.hdf5')
    two = opened(tmp_path / 'b.hdf5', nu=.02)
    assert settled([one]) == {'nu': .01}
    assert settled([two]) == {'nu': .02}                # .01 is the default of the equation
    assert capsys.readouterr().out == ''
    assert settled([one, two], nu=.3) == {'nu': [.01, .02]}          # .3 of a config file gives way
    assert settled([one], resolution=32) == {'nu': .01, 'resolution': 0}
    out = capsys.readouterr().out
    assert "nu=0.3, but '" in out and 'resolution=32, but' in out and 'has 16 cells' in out
    assert settled([dataclasses.replace(one, exists=False)], '--nu=.3', nu=.3) == {}


@pytest.mark.parametrize('word, given, told', [
    ('--nu=.05', {'nu': .05}, "nu=0.05, but '"), ('--nu=.01', {}, "nu=0.01, but '"),
    ('--resolution=32', {'resolution': 32}, 'has 16 cells')])
def test_a_key_that_says_something_else_is_refused(tmp_path, word, given, told):
    source = opened(tmp_path / 'a.hdf5', nu=.02)
    assert told in refused(settled, [source], word, **given)
    assert settled([source], '--nu=.02', '--resolution=16', nu=.02, resolution=16) == {'nu': .02}


def test_a_parameter_may_be_typed_with_a_dash(tmp_path):
    source = dataclasses.replace(opened(tmp_path / 'a.hdf5'), params={'N_u': .02})
    arguments = {'resolution': 0}, {'N_u': .05}, [source], ['train.py', '--n-u=.05']
    assert 'n_u=0.05, but' in refused(fit.settled, *arguments)


# -----------------------------------------------------------------------------
# a file and a model

def wave(x):
    """Two frames of a field that eight points resolve, (1, 2, X)."""
    u = np.sin(2 * np.pi * x + 1) + .5 * np.cos(6 * np.pi * x)
    return np.stack([u, 2 * u])[None]


@pytest.mark.parametrize('first', [0., .5 / 64, .3 / 64])
def test_fields_are_taken_at_the_points_of_the_model(tmp_path, monkeypatch, capsys, first):
    """Where a force acts, a file of other points is interpolated, exactly, and told with the way."""
    x = first + np.arange(64) / 64
    source = opened(tmp_path / 'a.hdf5', x, u=wave(x))
    know(monkeypatch.setattr, burgers=FORCED)
    cfg = config(translation=False, dt=.01)             # 32 points that begin at .5 / 32
    fit.check_model(source, cfg)
    assert f'{(.5 / 32 - first) * 32:.2g} of a spacing away' in capsys.readouterr().out
    u = fit.read_placed(source, range(1), cfg, (32,))
    assert u[..., 0].numpy() == pytest.approx(wave(centres(32)), abs=1e-6)
    assert fit.placed_axis(source, cfg, 0, 32) == pytest.approx(centres(32))
    u = fit.read_placed(source, range(1), cfg, (64,), 2)             # all cells, the first frame alone
    assert u[..., 0].numpy() == pytest.approx(wave(.5 / 32 + np.arange(64) / 64)[:, :1], abs=1e-6)


def test_each_axis_is_moved_by_its_own_way(tmp_path):
    def swirl(x, y):
        return np.sin(2 * np.pi * x)[:, None] * np.cos(4 * np.pi * y) + np.cos(2 * np.pi * y)

    x = np.arange(16) / 16
    y = .5 / 16 + np.arange(16) / 16
    path = tensor(tmp_path / 'a.hdf5', np.stack([swirl(x, y)] * 3)[None], attrs={'Nu': .01}, axes=[x, y])
    source = open_source(path, 'navier-stokes', quiet=True)
    cfg = config(2, pde='navier-stokes', translation=False, grid=(8, 8), first=(.5 / 8, .5 / 8), dt=source.dt)
    u = fit.read_placed(source, range(1), cfg, (8, 8))
    assert u[0, 2, ..., 0].numpy() == pytest.approx(swirl(centres(8), centres(8)), abs=1e-6)


def test_where_places_are_alike_nothing_is_moved(tmp_path, capsys):
    x = np.arange(64) / 64
    source = opened(tmp_path / 'a.hdf5', x, u=wave(x).astype(np.float32))
    cfg = config(dt=.01)
    fit.check_model(source, cfg)
    assert capsys.readouterr().out == ''
    assert np.array_equal(fit.read_placed(source, range(1), cfg, (32,))[..., 0], wave(x)[..., ::2].astype('f'))
    forced = cfg.replace(translation=False, first=(1e-9,))           # a distance that is rounding
    assert np.array_equal(fit.read_placed(source, range(1), forced, (32,))[..., 0], wave(x)[..., ::2].astype('f'))
    assert 'holds 1 trajectories' in refused(fit.read_placed, source, range(2), cfg, (32,))


@pytest.mark.parametrize('changes, told', [
    ({'length': (2.,)}, 'the periodic domain (0.0,) + (1.0,), the model'),
    ({'fields': ('u', 'v')}, '1 field(s)'),
    ({'params': ('Nu', 'rho'), 'seen_params': ((.01,), (1.,))}, "the parameters ['Nu']")], ids=str)
def test_a_file_of_another_domain_or_without_a_parameter(tmp_path, changes, told):
    assert told in refused(fit.check_model, opened(tmp_path / 'a.hdf5', X=32), config(dt=.01, **changes))


@pytest.mark.parametrize('changes', [{'translation': False}, {'boundary': 'wall'}])
def test_a_continued_run_has_its_points(changes):
    """Where places differ. A fraction of a hundredth of a spacing is rounding."""
    earlier = {'first': [.5 / 32]}
    other = config(first=(.25 / 32,))
    fit.check_continued(other, earlier, 'a.pt')
    fit.check_continued(other.replace(**changes), None, None)        # a run that begins
    fit.check_continued(config(first=(.501 / 32,), **changes), earlier, 'a.pt')
    message = refused(fit.check_continued, other.replace(**changes), earlier, 'a.pt')
    assert "'a.pt'" in message and '0.25 of a spacing' in message


# -----------------------------------------------------------------------------
# values

def test_rows_without_a_relative_error():
    u = torch.ones(5, 3, 4, 2)
    u[1, 2, :, 0] = 0
    u[2, 0] = 0
    u[3, 1, :3] = 0                                     # one value is not 0
    u[4, 1, :, 1] = 0
    assert fit.zero_rows(u, (0, 1)) == [1, 2, 4]
    assert fit.zero_rows(u, (0,)) == [1, 2]
    assert fit.zero_rows(u[:, 1:], (1,)) == [4]


@pytest.mark.parametrize('factor, told', [(1., False), (9., False), (1e3, True), (1e-3, True)])
def test_fields_in_other_units_are_told(factor, told):
    model = drawn()                                     # mean 0 and deviation 1
    assert bool(fit.other_units(factor * torch.from_numpy(noise(4, 3, 32, 1)), model)) is told
    assert not fit.other_units(torch.zeros(4, 3, 32, 1), model)      # a deviation of 0 tells no unit


def test_the_mean_that_a_frame_takes_off_is_no_other_unit():
    model = drawn(velocity=(0,), galilean=1.)
    fast = 1e3 + torch.from_numpy(noise(4, 3, 32, 1))
    assert not fit.other_units(fast, model) and fit.other_units(fast, drawn())
    model = drawn(fields=('u', 'b'), velocity=(0,), galilean=1.)     # the frame takes off that of u alone
    assert fit.other_units(fast.expand(-1, -1, -1, 2), model).startswith('b deviates')


def test_what_a_rollout_begins_with_is_told():
    u = torch.from_numpy(noise(4, 1, 32, 1))
    assert not fit.odd_values(u, drawn()) and 'deviates by' in fit.odd_values(1e3 * u, drawn())
    assert 'and the equation declares it positive' in fit.odd_values(u, drawn(positive=(0,)))
    u = u.abs()
    u[0, 0, 0] = -1e-6                                  # rounding, beside values of 1
    assert not fit.odd_values(u, drawn(positive=(0,)))


def test_a_file_of_initial_conditions_has_parameters_and_points(tmp_path, capsys):
    cfg = config(grid=(16,), first=(float(centres(16)[0]),))
    path = tensor(tmp_path / 'a.hdf5', attrs={'nu': '0.02'})
    assert fit.initial_params(path, cfg) == {'Nu': .02} and not capsys.readouterr().out
    np.save(tmp_path / 'a.npy', noise())
    assert fit.initial_params(str(tmp_path / 'a.npy'), cfg) == {}
    tensor(path, x=np.arange(16) / 16, attrs={'Nu': 'small'})
    assert fit.initial_params(path, cfg) == {}
    out = capsys.readouterr().out
    assert 'up to 0.5 spacings away; --data FILE' in out and "Nu is the text 'small'" in out
    tensor(path, x=np.full(16, np.nan), attrs={'Nu': np.full(10, .02)})
    assert fit.initial_params(path, cfg) == {'Nu': .02} and 'up to nan spacings' in capsys.readouterr().out
    with h5py.File(tensor(path, attrs={}), 'a') as file:
        file['nu'] = np.full(10, .03)                   # one a trajectory
    assert fit.initial_params(path, cfg) == {'Nu': .03}


def test_negative_values_are_counted(tmp_path, monkeypatch):
    know(monkeypatch.setattr, burgers=FORCED)
    signs = fit.Signs(opened(tmp_path / 'a.hdf5'))
    for values in ([1., 2.], [-4e-5, 5.], [2., 3.]):    # rounding, beside 5
        signs.add(np.array(values)[:, None])
    assert signs.text() == ''
    signs.add(np.array([-.5, -2.])[:, None])
    assert signs.text().startswith('3 values of u are negative, the smallest is -2')
    assert 'equations/burgers.py' in refused(signs.check)
