"""evaluation/off_grid.py against closed forms and the solvers: random points, finer grids, input points."""
import dataclasses
import os

import h5py
import numpy as np
import pytest
import torch

import equations
from conftest import evaluate, know, save, tiny, user_error, write
from evaluation import off_grid
from files.open import open_source, read_rows
from files.write import write_file
from grids import random_points
from metrics import mean_nrmse
from model import load


# --- random points -----------------------------------------------------------

def plane_truth(points):
    """The exact fields of the test row of `plane` at points (Q, 2): (1, 3, Q, 1) float64"""
    x, y = 2 * np.pi * points.double().numpy().T
    u = torch.from_numpy(2 + np.sin(x) * np.cos(y))
    return u[None, None, :, None].expand(1, 3, -1, -1)


def test_random_points(plane, monkeypatch, tmp_path):
    """Anywhere in the square, in the same places every time, against the exact field there."""
    [r] = evaluate('--ckpt', plane, '--random_points', 300)
    m = load(plane)
    q = random_points(300, m.cfg, torch.Generator().manual_seed(0))
    assert q.shape == (300, 2)
    assert 0 <= q.min() < .01 and .99 < q.max() <= 1 and (q.mean(0) - .5).abs().max() < .05
    with h5py.File(tmp_path / 'plane.hdf5', 'r') as file:
        u0 = torch.from_numpy(file['tensor'][:1, 0, ::2, ::2])[..., None]
    p = m.rollout(u0, 3, points=q)
    found = r['random_points']
    assert found['nrmse'] == pytest.approx(mean_nrmse(p, plane_truth(q)), rel=1e-5)
    assert found['ratio'] == pytest.approx(found['nrmse'] / r['metrics']['nrmse'])
    assert found['points'] == 300 and 1e-4 < found['floor'] < .02    # 8 points a wave
    [many] = evaluate('--ckpt', plane, '--random_points', 300, '--split', 'all')
    monkeypatch.setattr(off_grid, 'VALUES', 1)                       # one row, one frame at a time
    [one] = evaluate('--ckpt', plane, '--random_points', 300, '--split', 'all')
    for name in ('nrmse', 'floor'):
        assert one['random_points'][name] == pytest.approx(many['random_points'][name], rel=1e-5)


def test_random_points_between_walls(monkeypatch, tmp_path):
    """Two files take turns; the field is one on which cubic interpolation is exact, away from the walls."""
    walls = equations.PDE(fields=('u',), params={'c': 1.}, space=((0, 1),), boundary='wall',
                          file='walls{c}.hdf5')
    know(monkeypatch, walls=walls)
    x = (np.arange(64) + .5) / 64
    files = []
    for c in (1., 2.):
        rows = c + .3 * np.arange(10)[:, None, None] + (x ** 2 - x)  # (10, 1, 64)
        files.append(write(tmp_path / f'{c}.hdf5', np.repeat(rows, 3, 1), c=c))
    model = tiny(pde='walls', params=('c',), seen_params=((1., 2.),), boundary='wall', first=(.5 / 64,))
    file = save(model, tmp_path / 'walls.pt', *files)
    q = torch.linspace(.1, .9, 50)[:, None]
    monkeypatch.setattr(off_grid, 'random_points', lambda n, *rest: q)
    [r] = evaluate('--ckpt', file, '--random_points', 50, '--split', 'all')
    errors = []
    for c, path in zip((1., 2.), files):
        exact = c + .3 * torch.arange(10.)[:, None, None, None] + (q ** 2 - q)       # (10, 1, 50, 1)
        with h5py.File(path, 'r') as opened:
            u0 = torch.from_numpy(opened['tensor'][:, 0, ::2])[..., None]
        p = load(file).rollout(u0, 2, points=q, params={'c': torch.tensor(c)})
        errors.append(mean_nrmse(p, exact.expand(-1, 2, -1, -1)))
    assert r['random_points']['nrmse'] == pytest.approx(sum(errors) / 2, rel=1e-5)
    assert errors[0] != pytest.approx(errors[1], rel=.01)


def test_resolved_fields_are_resampled_exactly(plane):
    """Waves of up to six to an axis of 16 points, at points of no grid; and points of a grid are picked."""
    cfg = load(plane).cfg

    def field(x, y):
        return torch.sin(2 * np.pi * 3 * x[:, None] + 1) * torch.cos(2 * np.pi * 6 * y)
    axes = off_grid.grid_axes(cfg, (16, 16))
    u = field(*axes)[None, ..., None].float()
    to = [torch.linspace(.01, .99, 7).double(), torch.tensor([.4, .333]).double()]
    assert (off_grid.resampled_exactly(cfg, u, axes, to)[0, ..., 0] - field(*to)).abs().max() < 2e-5
    assert (off_grid.resampled(cfg, u, axes, to)[0, ..., 0] - field(*to)).abs().max() > .05
    coarse = off_grid.resampled_exactly(cfg, u, axes, off_grid.grid_axes(cfg, (8, 8)))
    assert torch.equal(coarse, u[:, ::2, ::2])


# --- finer grids -------------------------------------------------------------

def truth_on_finer_grids(cfg, source, rows, *factors):
    """{factor: fields (N, T, *shape, C) of all frames}"""
    grids = {f: off_grid.finer_grid(cfg, f) for f in factors}
    solver_grid = off_grid.grid_to_solve(cfg, source, factors)
    n_frames = -(-source.n_frames // source.time_stride(cfg.dt))
    found = off_grid.true_fields(cfg, source, rows, n_frames, solver_grid, grids)
    return {f: u.unflatten(2, grids[f]) for f, u in found.items()}


def test_superres_on_two_axes(plane, tmp_path):
    """Against the file on 2 x 8 points, and the solver's solution, which rests, on 4 x 8."""
    [r] = evaluate('--ckpt', plane, '--superres', 1, 2, 4)
    m = load(plane)
    with h5py.File(tmp_path / 'plane.hdf5', 'r') as file:
        u = torch.from_numpy(file['tensor'][:1])[..., None]
    p = m.rollout(u[:, 0, ::2, ::2], 3, points=m.grid(16, 16)).unflatten(2, (16, 16))
    found = r['superres']
    assert found['2']['nrmse'] == pytest.approx(mean_nrmse(p, u[:, 1:]), rel=1e-4)
    assert found['1']['nrmse'] == pytest.approx(r['metrics']['nrmse'], rel=1e-4)
    assert found['1']['floor'] < 1e-6 < found['2']['floor'] < .02    # on both axes
    p = m.rollout(u[:, 0, ::2, ::2], 3, points=m.grid(32, 32))
    assert found['4']['nrmse'] == pytest.approx(mean_nrmse(p, plane_truth(m.grid(32, 32))), rel=1e-2)
    p = m.rollout(u[:, 0], 3)                                        # given on 16 x 16 points, too
    assert found['2']['given'] == pytest.approx(mean_nrmse(p, u[:, 1:]), rel=1e-4)


@pytest.mark.parametrize('nu', [.01, .001])
def test_truth_finer_than_the_file(tmp_path, nu):
    """A file of every fourth cell, its truth wanted on twice as many points: the solution on all cells has
    it."""
    whole = write_file(str(tmp_path / 'whole.hdf5'), 'burgers', {'Nu': nu}, 5, device='cpu')
    with h5py.File(whole, 'r') as file:
        u = file['tensor'][:, ::5, ::4]
        want = torch.from_numpy(file['tensor'][1:5, ::5, ::2])[..., None]
    coarse = open_source(write(tmp_path / 'coarse.hdf5', u, Nu=nu))
    cfg = tiny().cfg
    got = truth_on_finer_grids(cfg, coarse, range(1, 5), 16)[16]     # 16 x 32 points
    assert got.shape == want.shape == (4, 41, 512, 1)
    assert (got[:, 0, ::2] - want[:, 0, ::2]).abs().max() < 1e-5     # the file's own values are kept
    assert mean_nrmse(got, want) < (1e-3 if nu > .005 else .03) < mean_nrmse(got.roll(1, 2), want)
    same = truth_on_finer_grids(cfg, open_source(whole), range(1, 5), 16)[16]
    assert torch.equal(same, want)                                   # the file has them


def test_finer_grids_between_walls_of_two_axes(monkeypatch, tmp_path):
    """The solver starts on the centres of its own cells; its solution is read where the model's points are.
    (It rests, and interpolation is exact on this field, away from the walls.)"""
    def field(x, y):
        return 1 + x + 2 * y ** 2 - 3 * x * y

    starts = []

    def rest(u0, c, t):
        starts.append(u0[0].numpy())
        return u0[:, None].repeat(1, len(t), 1, 1).double()
    room = equations.PDE(fields=('u',), params={'c': 1.}, space=((0, 1), (0, 1)), boundary='wall',
                         file='room{c}.hdf5', solve=rest)
    know(monkeypatch, room=room)
    x = (np.arange(16) + .5) / 16
    u0 = field(x[:, None], x) + .1 * np.arange(10)[:, None, None]
    file = write(tmp_path / 'room.hdf5', np.repeat(u0[:, None], 4, 1), c=1.)
    model = tiny(pde='room', params=('c',), seen_params=((1.,),), grid=(8, 8), low=(0., 0.), length=(1., 1.),
                 first=(1 / 32, 1 / 32), token_grid=(4, 4), patch_size=2, halo=1, boundary='wall')
    found = truth_on_finer_grids(model.cfg, open_source(file), range(1), 1, 2, 4, 8)
    assert [u.shape for u in found.values()] == [(1, 4, 8 * f, 8 * f, 1) for f in (1, 2, 4, 8)]
    [start] = starts                                                 # solved once, for both factors
    x = (np.arange(64) + .5) / 64
    inner = slice(8, -8)
    assert np.abs(start - field(x[:, None], x))[inner, inner].max() < 1e-5
    for factor, u in found.items():
        x, y = model.grid(8 * factor, 8 * factor).double().unflatten(0, (8 * factor, 8 * factor)).unbind(-1)
        error = (u[0, -1, ..., 0] - field(x, y)).abs()
        inner = slice(factor, -factor)
        assert error[inner, inner].max() < 1e-5, factor


@pytest.mark.slow
def test_between_walls_a_finer_truth_is_computed_on_the_solvers_cells(path):
    """48 points of a model that keeps every other of 32 cells are no centres of equal cells."""
    source = open_source(write_file(path, 'diffusion-sorption', {}, 1, device='cpu', resolution=32))
    model = tiny(pde='diffusion-sorption', params=(), seen_params=(), grid=(16,), token_grid=(4,),
                 latent_dim=4, low=source.entry.low, length=source.entry.length,
                 first=(float(source.x[0][0]),), boundary='wall', dt=250.)
    place = model.grid(48)[:, 0] * 480 - .5                          # in cells of a tenth of their distance
    assert (place[0] + .5) / 10 == pytest.approx(.75)
    found = truth_on_finer_grids(model.cfg, source, range(1), 3)[3][0, -1, :, 0]
    u0 = float(read_rows(source, range(1), source.n_frames)[0, 0, 0, 0])             # a constant
    fine = source.entry.solution(torch.full((1, 480, 1), u0), {}, [0., 500.])[0, -1, :, 0].float()
    below = place.floor().long()
    wanted = fine[below] + (place - below) * (fine[below + 1] - fine[below])
    assert (found - wanted).abs().max() < .004                       # a 48th of the domain is coarse
    assert (found - fine[5::10])[:8].abs().max() > .006              # the values at the centres of 48 cells


@pytest.mark.parametrize('name', ['diffusion-reaction', 'shallow-water', 'darcy'])
def test_superres_of_the_equations_between_walls(name, tmp_path):
    """Up to eight times the points of files of 8 x 8 cells; steady, static and positive fields, too."""
    entry = equations.entry(name)
    file = write_file(str(tmp_path / 'file.h5'), name, entry.params, 3, device='cpu', resolution=8)
    source = open_source(file)
    stride = 1 if entry.steady else 50
    model = tiny(
        pde=name, fields=entry.fields, params=tuple(entry.params), seen_params=((1.,),) * len(entry.params),
        boundary=entry.boundary, low=entry.low, length=entry.length, dt=stride * source.dt,
        first=tuple(float(x[0]) for x in source.x), grid=(8, 8), token_grid=(4, 4), patch_size=2, halo=1,
        static=tuple(entry.fields.index(field) for field in entry.static))
    ckpt = save(model, tmp_path / 'walls.pt', file, n=3)
    [r] = evaluate('--ckpt', ckpt, '--superres', 1, 2, 8, '--random_points', 9)
    assert r['superres']['1']['ratio'] == pytest.approx(1, rel=1e-4) and r['superres']['1']['floor'] < 1e-6
    assert all(found['nrmse'] > 0 for found in (*r['superres'].values(), r['random_points']))


def test_no_more_than_so_many_points_are_solved_for(plane, monkeypatch, capsys):
    """On finer grids that solution is interpolated; where the file is as fine, it is the file's."""
    m = load(plane)
    source = open_source(os.path.join(os.path.dirname(plane), 'plane.hdf5'))
    for most, told in ((32 ** 2, 'solution on 32 x 32'), (24 ** 2 - 1, 'interpolated from them')):
        monkeypatch.setattr(off_grid, 'MAX_SOLVED', most)
        found = truth_on_finer_grids(m.cfg, source, range(1), 2, 4, 8)
        for factor, u in found.items():
            exact = plane_truth(m.grid(8 * factor, 8 * factor))
            assert (u.flatten(2, -2)[:, 1:] - exact).abs().max() < 1e-5, factor
        out = capsys.readouterr().out
        assert told in out and f'at most {most} points' in out


def test_an_equation_without_a_solver(plane, monkeypatch):
    know(monkeypatch, plane=dataclasses.replace(equations.entry('plane'), solve=None))
    evaluate('--ckpt', plane, '--superres', 2)
    message = user_error('--ckpt', plane, '--superres', 4)
    assert '32 x 32' in message and 'no built-in solver' in message


# --- input points ------------------------------------------------------------

def test_input_points(plane, tmp_path):
    """A model that was trained on a grid and has no learned encoder starts from values at random points."""
    fixed = tiny(pde='plane', params=('c',), seen_params=((1.,),), grid=(8, 8), low=(0., 0.),
                 length=(1., 1.), first=(1 / 32, 1 / 32), token_grid=(4, 4), encoder_dim=0)
    file = save(fixed, tmp_path / 'fixed.pt', tmp_path / 'plane.hdf5')
    [r] = evaluate('--ckpt', file, '--input_points', 300)
    m = load(file, encoder='points')
    q = random_points(300, m.cfg, torch.Generator().manual_seed(off_grid.INPUT_SEED + 300))
    p = m.rollout(plane_truth(q)[:, 0].float(), 3, m.grid(), grid=q).unflatten(2, (8, 8))
    error = mean_nrmse(p, plane_truth(m.grid()).unflatten(2, (8, 8)))
    assert r['input_points']['300']['nrmse'] == pytest.approx(error, rel=1e-3)
    assert r['input_points']['300']['ratio'] == pytest.approx(error / r['metrics']['nrmse'], rel=1e-3)
    assert 'learned encoder' in user_error('--ckpt', plane, '--input_points', 300)
