"""elsewhere.py against closed forms and the solvers: random points, finer grids, longer rollouts. (Input
points are in test_points.py.)"""
import dataclasses
import json
import math
import os

import h5py
import numpy as np
import pytest
import torch

import elsewhere
import pdes
from conftest import evaluate, save, tiny, user_error, write
from files import open_source, read_rows, write_file
from grids import random_points
from metrics import mean_nrmse
from model import UPT, ModelConfig, load


# --- points anywhere ---------------------------------------------------------

def plane_truth(points):
    """The exact fields of the test row of `plane` at points (Q, 2): (1, 3, Q, 1) float64"""
    x, y = 2 * np.pi * points.double().numpy().T
    u = torch.from_numpy(2 + np.sin(x) * np.cos(y))
    return u[None, None, :, None].expand(1, 3, -1, -1)


def test_random_points(plane, monkeypatch, tmp_path):
    """Anywhere in the square, in the same places every time, against the exact field there."""
    [r] = evaluate('--ckpt', plane, '--random', 300)
    m = load(plane)
    q = random_points(300, m.cfg, torch.Generator().manual_seed(0))
    assert q.shape == (300, 2)
    assert 0 <= q.min() < .01 and .99 < q.max() <= 1 and (q.mean(0) - .5).abs().max() < .05
    with h5py.File(tmp_path / 'plane.hdf5', 'r') as file:
        u0 = torch.from_numpy(file['tensor'][:1, 0, ::2, ::2])[..., None]
    p = m.rollout(u0, 3, points=q)
    assert r['random']['nrmse'] == pytest.approx(mean_nrmse(p, plane_truth(q)), rel=1e-5)
    assert r['random']['ratio'] == pytest.approx(r['random']['nrmse'] / r['metrics']['nrmse'])
    assert r['random']['points'] == 300 and 1e-4 < r['random']['floor'] < .02        # 8 points a wave
    [many] = evaluate('--ckpt', plane, '--random', 300, '--split', 'all')
    monkeypatch.setattr(elsewhere, 'VALUES', 1)                      # one row, one frame at a time
    [one] = evaluate('--ckpt', plane, '--random', 300, '--split', 'all')
    assert one['random']['nrmse'] == pytest.approx(many['random']['nrmse'], rel=1e-5)
    assert one['random']['floor'] == pytest.approx(many['random']['floor'], rel=1e-5)
    assert '--random -1' in user_error('--ckpt', plane, '--random', -1)


def test_random_points_between_walls(monkeypatch, tmp_path):
    """Two files take turns; the field is one on which cubic interpolation is exact, away from the walls."""
    monkeypatch.setitem(pdes.PDES, 'walls', pdes.PDE(
        fields=('u',), params={'c': 1.}, space=((0, 1),), boundary='wall', file='walls{c}.hdf5'))
    x = (np.arange(64) + .5) / 64
    files = []
    for c in (1., 2.):
        rows = c + .3 * np.arange(10)[:, None, None] + (x ** 2 - x)  # (10, 1, 64)
        files.append(write(tmp_path / f'{c}.hdf5', np.repeat(rows, 3, 1), c=c))
    model = tiny(pde='walls', params=('c',), seen_params=((1., 2.),), boundary='wall', first=(.5 / 64,))
    file = save(model, tmp_path / 'walls.pt', *files)
    monkeypatch.setattr(elsewhere, 'random_points', lambda n, *rest: torch.linspace(.1, .9, n)[:, None])
    [r] = evaluate('--ckpt', file, '--random', 50, '--split', 'all')
    q = torch.linspace(.1, .9, 50)[:, None]
    errors = []
    for c, path in zip((1., 2.), files):
        exact = c + .3 * torch.arange(10.)[:, None, None, None] + (q ** 2 - q)       # (10, 1, 50, 1)
        with h5py.File(path, 'r') as opened:
            u0 = torch.from_numpy(opened['tensor'][:, 0, ::2])[..., None]
        p = load(file).rollout(u0, 2, points=q, params={'c': torch.tensor(c)})
        errors.append(mean_nrmse(p, exact.expand(-1, 2, -1, -1)))
    assert r['random']['nrmse'] == pytest.approx(sum(errors) / 2, rel=1e-5)
    assert errors[0] != pytest.approx(errors[1], rel=.01)


def test_resolved_fields_are_moved_exactly(plane):
    """Waves of up to six to an axis of 16 points, at points of no grid; and points of a grid are picked."""
    m = load(plane)

    def field(x, y):
        return torch.sin(2 * np.pi * 3 * x[:, None] + 1) * torch.cos(2 * np.pi * 6 * y)
    axes = elsewhere.grid_axes(m, (16, 16))
    u = field(*axes)[None, ..., None]
    to = [torch.linspace(.01, .99, 7), torch.tensor([.4, .333])]
    assert (elsewhere.resolved(m, u, axes, to)[0, ..., 0] - field(*to)).abs().max() < 2e-5
    assert (elsewhere.moved(m, u, axes, to)[0, ..., 0] - field(*to)).abs().max() > .05
    assert torch.equal(elsewhere.resolved(m, u, axes, elsewhere.grid_axes(m, (8, 8))), u[:, ::2, ::2])


# --- a truth finer than the files --------------------------------------------

def truth_on_finer_grids(model, source, rows, *factors):
    """{factor: fields (N, T, *shape, C) of all frames}"""
    places = {f: elsewhere.multiple(model.cfg, f) for f in factors}
    grid = elsewhere.grid_to_solve(model, source, factors)
    n_frames = -(-source.n_frames // source.time_stride(model.cfg.dt))
    found = elsewhere.true_fields(model, source, rows, n_frames, grid, places)
    return {f: u.unflatten(2, places[f]) for f, u in found.items()}


@pytest.mark.parametrize('nu', [.01, .001])
def test_truth_finer_than_the_file(tmp_path, nu, capsys):
    """A file of every fourth cell, its truth wanted on twice as many points: the solution on all cells has
    it."""
    whole = write_file(str(tmp_path / 'whole.hdf5'), 'burgers', {'Nu': nu}, 5, device='cpu')
    with h5py.File(whole, 'r') as file:
        u = file['tensor'][:, ::5, ::4]
        want = torch.from_numpy(file['tensor'][1:5, ::5, ::2])[..., None]
    coarse = open_source(write(tmp_path / 'coarse.hdf5', u, Nu=nu))
    assert coarse.shape == (256,)
    got = truth_on_finer_grids(tiny(), coarse, range(1, 5), 16)[16]  # 16 x 32 points
    assert got.shape == want.shape == (4, 41, 512, 1) and 'solvers.py' in capsys.readouterr().out
    assert (got[:, 0, ::2] - want[:, 0, ::2]).abs().max() < 1e-5     # the file's own values are kept
    assert mean_nrmse(got, want) < (1e-3 if nu > .005 else .03) < mean_nrmse(got.roll(1, 2), want)
    same = truth_on_finer_grids(tiny(), open_source(whole), range(1, 5), 16)[16]
    assert torch.equal(same, want)                                   # the file has them


def test_finer_grids_between_walls_of_two_axes(monkeypatch, tmp_path):
    """The solver starts on the centres of its own cells; its solution is read where the model's points are.
    (It rests, and interpolation is exact on this field, away from the walls.)"""
    def field(x, y):
        return 1 + x + 2 * y ** 2 - 3 * x * y

    centres = []

    def rest(u0, c, t):
        centres.append(u0[0].numpy())
        return u0[:, None].repeat(1, len(t), 1, 1).double()
    monkeypatch.setitem(pdes.PDES, 'room', pdes.PDE(
        fields=('u',), params={'c': 1.}, space=((0, 1), (0, 1)), boundary='wall', file='room{c}.hdf5',
        solve=rest))
    x = (np.arange(16) + .5) / 16
    u0 = field(x[:, None], x) + .1 * np.arange(10)[:, None, None]
    file = write(tmp_path / 'room.hdf5', np.repeat(u0[:, None], 4, 1), c=1.)
    model = tiny(pde='room', params=('c',), seen_params=((1.,),), grid=(8, 8), low=(0., 0.), length=(1., 1.),
                 first=(1 / 32, 1 / 32), token_grid=(4, 4), patch_size=2, halo=1, boundary='wall')
    source = open_source(file)
    found = truth_on_finer_grids(model, source, range(1), 1, 2, 4, 8)
    assert [u.shape for u in found.values()] == [(1, 4, 8 * f, 8 * f, 1) for f in (1, 2, 4, 8)]
    [start] = centres                                                # solved once, for both factors
    x = (np.arange(64) + .5) / 64
    inner = slice(8, -8)
    assert np.abs(start - field(x[:, None], x))[inner, inner].max() < 1e-5
    for factor, u in found.items():
        x, y = model.grid(8 * factor, 8 * factor).double().unflatten(0, (8 * factor, 8 * factor)).unbind(-1)
        error = (u[0, -1, ..., 0] - field(x, y)).abs()
        inner = slice(factor, -factor)
        assert error[inner, inner].max() < 1e-5, factor
    [r] = evaluate('--ckpt', save(model, tmp_path / 'room.pt', file), '--superres', 1, 2, 4, 8)
    assert r['superres']['1']['ratio'] == pytest.approx(1, rel=1e-4)
    assert all(r['superres'][f]['nrmse'] > 0 for f in '248')


def test_between_walls_a_finer_truth_is_computed_on_the_solvers_cells(path):
    """48 points of a model that keeps every other of 32 cells are no centres of equal cells."""
    source = open_source(write_file(path, 'diffusion-sorption', {}, 1, device='cpu', resolution=32))
    cfg = ModelConfig(pde='diffusion-sorption', grid=(16,), token_grid=(4,), latent_dim=4, low=source.low,
                      length=source.length, first=(float(source.x[0][0]),), boundary='wall', dt=250.)
    model = UPT(cfg)
    place = model.grid(48)[:, 0] * 480 - .5                          # in cells of a tenth of their distance
    assert (place[0] + .5) / 10 == pytest.approx(.75)
    found = truth_on_finer_grids(model, source, range(1), 3)[3][0, -1, :, 0]
    u0 = float(read_rows(source, range(1), source.n_frames)[0, 0, 0, 0])             # a constant
    fine = source.entry.solution(torch.full((1, 480, 1), u0), {}, [0., 500.])[0, -1, :, 0].float()
    below = place.floor().long()
    wanted = fine[below] + (place - below) * (fine[below + 1] - fine[below])
    assert (found - wanted).abs().max() < .004                       # a 48th of the domain is coarse
    assert (found - fine[5::10])[:8].abs().max() > .006              # the values at the centres of 48 cells


@pytest.mark.parametrize('name', ['diffusion-reaction', 'shallow-water', 'darcy'])
def test_superres_of_the_equations_between_walls(name, tmp_path):
    """Up to eight times the points of files of 8 x 8 cells; steady, static and positive fields, too."""
    entry = pdes.entry(name)
    file = write_file(str(tmp_path / 'file.h5'), name, entry.params, 3, device='cpu', resolution=8)
    source = open_source(file)
    stride = 1 if entry.steady else 50
    model = tiny(
        pde=name, fields=entry.fields, params=tuple(entry.params), seen_params=((1.,),) * len(entry.params),
        boundary=entry.boundary, low=entry.low, length=entry.length, dt=stride * source.dt,
        first=tuple(float(x[0]) for x in source.x), grid=(8, 8), token_grid=(4, 4), patch_size=2, halo=1,
        mean=(0.,) * len(entry.fields), std=(1.,) * len(entry.fields),
        static=tuple(entry.fields.index(field) for field in entry.static))
    ckpt = save(model, tmp_path / 'walls.pt', file, n=3)
    [r] = evaluate('--ckpt', ckpt, '--superres', 1, 2, 8, '--random', 9)
    places = [*r['superres'].values(), r['random']]
    assert r['superres']['1']['ratio'] == pytest.approx(1, rel=1e-4) and r['superres']['1']['floor'] < 1e-6
    assert all(place['nrmse'] > 0 and place['ratio'] > 0 for place in places)


def test_no_more_than_so_many_points_are_solved_for(plane, monkeypatch, capsys):
    """On finer grids that solution is interpolated; where the file is as fine, it is the file's."""
    m = load(plane)
    source = open_source(os.path.join(os.path.dirname(plane), 'plane.hdf5'))
    solution = "solvers.py's solution on 32 x 32 points"
    for most, said in ((32 ** 2, solution), (24 ** 2 - 1, 'its values, interpolated')):
        monkeypatch.setattr(elsewhere, 'MAX_SOLVED', most)
        found = truth_on_finer_grids(m, source, range(1), 2, 4, 8)
        for factor, u in found.items():
            exact = plane_truth(m.grid(8 * factor, 8 * factor))
            assert (u.flatten(2, -2)[:, 1:] - exact).abs().max() < 1e-5, factor
        out = capsys.readouterr().out
        assert '32 x 32, 64 x 64 points are more than the 16 x 16 cells' in out and said in out
        assert f'no more than {most} points are solved for' in out


def test_an_equation_without_a_solver(plane, monkeypatch):
    monkeypatch.setitem(pdes.PDES, 'plane', dataclasses.replace(pdes.PDES['plane'], solve=None))
    evaluate('--ckpt', plane, '--superres', 2)
    message = user_error('--ckpt', plane, '--superres', 4)
    assert '4 x 8 x 8 = 32 x 32 points' in message and 'no built-in solver for plane' in message


# --- rollouts longer than the files ------------------------------------------

def growing(monkeypatch, rate):
    """Models say that fields grow by `rate` of what they were in every step."""
    def rollout(self, u0, steps, **options):
        growth = 1 + rate * torch.arange(1., steps + 1)
        return u0[:, None] * growth.view(-1, *[1] * (u0.ndim - 1))
    monkeypatch.setattr(UPT, 'rollout', rollout)


@pytest.mark.parametrize('rate, bounded', [(.1, 1.), (.125, 0.)])
def test_long_rollouts(plane, monkeypatch, rate, bounded):
    """Three times the 3 steps of the file, of a solution that rests: all scores in closed form."""
    growing(monkeypatch, rate)
    conserving = dataclasses.replace(pdes.PDES['plane'], conserved=('u',))
    monkeypatch.setitem(pdes.PDES, 'plane', conserving)
    [r] = evaluate('--ckpt', plane, '--horizon', 3)
    long = r['long']
    assert (long['horizon'], long['steps']) == (3, 9) and long['seconds'] == pytest.approx(9 * .05)
    assert long['per_step'] == pytest.approx([rate * step for step in range(1, 10)], rel=1e-5)
    assert long['nrmse'] == pytest.approx(5 * rate, rel=1e-5)
    assert long['nrmse_end'] == pytest.approx(9 * rate, rel=1e-5)
    assert long['correlation_time'] == pytest.approx(9 * .05)
    assert (long['finite'], long['bounded']) == (1, bounded)         # 1.9 and 2.125 times the start
    assert long['rms_growth'] == pytest.approx(1 + 9 * rate) and long['true_rms_growth'] == pytest.approx(1)
    rms = (4 + 1 / 4) ** .5                                          # of 2 + sin x cos y
    assert long['integral_drift'] == pytest.approx(9 * rate * 2 / rms, rel=1e-5)


def test_long_rollouts_that_blow_up(plane, monkeypatch, tmp_path):
    """One trajectory of ten, in blocks of one row."""
    growing(monkeypatch, 0.)
    calm = UPT.rollout
    calls = []

    def rollout(self, u0, steps, **options):
        p = calm(self, u0, steps, **options)
        calls.append(len(u0))
        if steps == 9 and len(calls) % 10 == 4:
            p[:, 5] = math.inf
        return p
    monkeypatch.setattr(UPT, 'rollout', rollout)
    monkeypatch.setattr(elsewhere, 'VALUES', 1)
    options = '--ckpt', plane, '--horizon', 3, '--split', 'all', '--json', tmp_path / 'r.json'
    evaluate(*options)
    long = json.loads((tmp_path / 'r.json').read_text())['long']
    assert long['finite'] == long['bounded'] == pytest.approx(.9)
    assert long['nrmse'] is None and long['nrmse_end'] == pytest.approx(0, abs=1e-6)
    assert long['per_step'][5] is None and long['correlation_time'] == pytest.approx((.9 * 9 + .1 * 6) * .05)


def test_long_rollouts_without_a_solver(plane, monkeypatch, capsys):
    growing(monkeypatch, .125)
    monkeypatch.setitem(pdes.PDES, 'plane', dataclasses.replace(pdes.PDES['plane'], solve=None))
    [r] = evaluate('--ckpt', plane, '--horizon', 3)
    assert set(r['long']) == {'horizon', 'steps', 'seconds', 'finite', 'bounded', 'rms_growth'}
    assert r['long']['rms_growth'] == pytest.approx(2.125) and r['long']['bounded'] == 0
    out = capsys.readouterr().out
    assert 'plane has no built-in solver' in out and 'rms at the end / start' in out


def test_long_rollouts_against_the_solver(run_folder, truth, burgers_file):
    [r] = evaluate('--ckpt', run_folder, '--horizon', 2)
    with h5py.File(burgers_file, 'r') as file:
        u0 = torch.from_numpy(file['tensor'][:1, 0])[..., None]
    y = pdes.entry('burgers').solution(u0, {'Nu': .01}, .05 * np.arange(81))[:, 1:, ::32]
    p = load(run_folder).rollout(truth[:, 0], 80)
    assert r['long']['nrmse'] == pytest.approx(mean_nrmse(p, y), rel=1e-4)
    assert r['long']['per_step'][:40] == pytest.approx(r['per_step']['nrmse'], rel=1e-3)
    assert r['long']['nrmse_end'] == r['long']['per_step'][-1] and r['long']['steps'] == 80


def test_bad_horizons(run_folder, plane, monkeypatch):
    assert '--horizon 1 must be 2 or more' in user_error('--ckpt', run_folder, '--horizon', 1)
    assert 'leave one out' in user_error('--ckpt', run_folder, '--horizon', 2, '--steps', 3)
    monkeypatch.setitem(pdes.PDES, 'plane', dataclasses.replace(pdes.PDES['plane'], steady=True))
    assert 'plane has no time' in user_error('--ckpt', plane, '--horizon', 2)
