"""Domains that are no box: obstacles in the flow, where fields are 0."""
import dataclasses
import os
import shutil

import h5py
import numpy as np
import pytest
import torch

import eval as ev
import metrics
from conftest import ROOT, close, refused, state_of, train_here
from dev.trainings import values_of
from equations.obstacles import ENTRY, numbers
from evaluation.break_even import classical
from evaluation.domains import metrics_inside, r_squared
from files.layouts import read_records
from files.write import write_file
from grids import interpolate
from losses import OperatorStage
from model import load
from peers import compare

RES = (40., 60.)


@pytest.fixture(scope='session')
def folder(tmp_path_factory):
    """A folder of two data files, and of a run that was trained on them."""
    folder = tmp_path_factory.mktemp('obstacles')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('equations.obstacles.ENTRY', dataclasses.replace(ENTRY, frames=17))
        for seed, re in enumerate(RES):
            write_file(str(folder / ENTRY.made({'Re': re}, 10, 32, seed)), 'obstacles', {'Re': re}, 10, seed, 'cpu',
                       resolution=32)
        train_here(patch, '--dataset=obstacles', '--re=40,60', '--n_trajectories=10', '--resolution=32',
                   f'--data_dir={folder}', f'--out_dir={folder}/run', '--time_stride=4',
                   '--space_stride=1', '--initial_step=2', '--latent_tokens=4', '--latent_dim=64', '--hidden_dim=16',
                   '--depth=1', '--n_head=2', '--max_iters=4', '--eval_interval=4', '--batch_size=4',
                   '--basis=components', '--device=cpu')
    return folder


@pytest.fixture(scope='session')
def fields(folder):
    """Frames (N, T, X, Y, C) of the first file."""
    with h5py.File(folder / '2D_Obstacles_Re40_X32_N10.h5') as file:
        return torch.from_numpy(np.stack([file[f'{row:04d}/data'][::4] for row in range(10)]))


def test_several_values_of_a_parameter_are_several_files(folder, fields):
    cfg = state_of(folder / 'run')['model_args']
    assert cfg['seen_params'] == [list(RES)] and cfg['domain'] == [3]
    names = [os.path.basename(path) for path in state_of(folder / 'run')['data']['relative']]
    assert names == ['2D_Obstacles_Re40_X32_N10.h5', '2D_Obstacles_Re60_X32_N10_seed1.h5']
    with h5py.File(folder / names[1]) as file:
        assert (file['0000/data'][0, ..., 3] != fields[0, 0, ..., 3].numpy()).any()


def test_statistics_are_those_of_the_fluid(folder, fields):
    m = load(folder / 'run')
    u = []
    for name in ('2D_Obstacles_Re40_X32_N10.h5', '2D_Obstacles_Re60_X32_N10_seed1.h5'):
        with h5py.File(folder / name) as file:
            u += [file[f'{row:04d}/data'][::4] for row in range(2, 10)]
    u = torch.from_numpy(np.stack(u)).double()
    inside = u[u[..., 3] > 0]
    assert (m.mean == 0).all()
    close(m.std.double(), inside.square().mean(0).sqrt())


def test_losses_see_the_fluid_alone(folder, fields):
    m = load(folder / 'run')
    u = (fields[:2] - m.mean) / m.std
    background = (m.mean / m.std).view(1, 1, 1, 1, -1)
    batch = type('Batch', (), {'u': u, 'background': background})
    stage = type('Stage', (), {'model': m})
    solid = fields[:2, :1, ..., 3:] <= 0
    decoded = OperatorStage.decode(stage, torch.randn(2, 3, 32, 64), batch)
    assert solid.any() and (decoded[..., :3].where(solid, 0.) == 0).all()
    fluid = decoded[..., 0].where(~solid[..., 0], 1.)
    assert (fluid != 0).all() and (decoded[..., 3] != 0).all()


def test_predictions_are_0_in_obstacles_and_nan_at_points_there(folder, fields):
    m = load(folder / 'run')
    u0 = fields[:3, 1]
    solid = u0[:, None, ..., 3] <= 0
    for how in ({}, {'reencode': True}):
        p = m.rollout(u0, 3, params={'Re': 50.}, **how)
        assert torch.equal(p[..., 0] == 0, solid.expand(3, 3, 64, 32))
        assert torch.equal(p[..., 2] == 0, solid.expand(3, 3, 64, 32))
    q = torch.rand(200, 2) * torch.tensor([2., 1.])
    at_points = m.rollout(u0, 3, points=q)
    distance = interpolate(u0[..., 3:].flatten(1, 2), q, m.cfg.grid, m.cfg.first, m.cfg.length, False)
    outside = (distance <= -.25 / 32)[:, None].expand(-1, 3, -1, 3)      # a point on a wall is inside
    assert 5 < outside[0, 0, :, 0].sum() < 60
    assert torch.equal(at_points[..., :3].isnan(), outside) and at_points[..., 3].isfinite().all()
    z = m.step(m.encode(u0), {'Re': 50.})
    assert torch.equal(m.decode(z, q)[..., :3].isnan(), outside[:, 0])
    close(m.decode(z), m.rollout(u0, 1, params={'Re': 50.})[:, 0])


def test_forces_are_recorded(folder, fields):
    with h5py.File(folder / '2D_Obstacles_Re40_X32_N10.h5') as file:
        forces = read_records(file, range(10), 'forces')
        assert read_records(file, range(10), 'heat') is None
    assert forces.shape == (10, 17, 3, 2) and forces.dtype == np.float32
    found = numbers(fields[:, 0, ..., 3])
    solid = fields[:, 0, ..., 3] <= 0
    for row in range(10):
        n = 1 + int(found[row][solid[row]].max())
        assert (forces[row, 12:, :n, 0] > .05).all() and (forces[row, :, n:] == 0).all()


def test_metrics_inside():
    y = torch.randn(3, 4, 8, 6, 2).double()
    p = y + .1 * torch.randn_like(y)
    u0 = torch.randn(3, 8, 6, 2).double()
    everywhere = torch.full((3, 8, 6), 5.)
    found, steps = metrics_inside(p, y, u0, everywhere, 1., .1)
    box, of_steps = metrics.metrics(p, y, u0, .1)
    for name in ('nrmse', 'rmse', 'mae', 'vrmse', 'correlation_time', 'rel_l2'):
        assert abs(found[name] - box[name]) < 1e-9, name
    np.testing.assert_allclose(steps, of_steps)
    distance = torch.randn(3, 8, 6)                                  # of which some is outside, some near a wall
    found, _ = metrics_inside(p, y, u0, distance, .2, .1)
    for name, chosen in {'nrmse': distance > 0, 'nrmse_near_walls': (distance > 0) & (distance < .4)}.items():
        ratios = []
        for row in range(3):
            error = (p - y)[row][:, chosen[row]].square().mean(1).sqrt()
            ratios.append(error / y[row][:, chosen[row]].square().mean(1).sqrt())
        assert abs(found[name] - float(torch.stack(ratios).mean())) < 1e-9


def test_coefficient_of_determination():
    y = torch.tensor([1., 2., 3.])
    assert r_squared(y, y) == 1 and r_squared(torch.full((3,), 2.), y) == 0
    assert r_squared(torch.tensor([1., 2., 4.]), y) == .5


def test_scores_are_those_of_the_fluid(folder):
    """What lies in the obstacles of the file has no effect, and the true fields have nearly the recorded forces."""
    result = ev.main(['--ckpt', str(folder / 'run'), '--device', 'cpu', '--input_points', '400'])[0]
    found = result['metrics']
    assert 0 < found['nrmse'] < 5 and 0 < found['nrmse_near_walls'] < 5 and 0 < found['recon_nrmse'] < 1
    assert .8 < found['drag_r2_of_truth'] < 1 and found['drag_r2'] < found['drag_r2_of_truth']
    assert 'brmse' not in found and result['baselines']['mean']['nrmse'] > 0
    assert 0 < result['input_points']['400']['nrmse'] < 5
    assert 'starts from rest' in refused(ev.main, ['--ckpt', str(folder / 'run'), '--device', 'cpu', '--break_even'])


def test_values_in_obstacles_are_refused(folder, tmp_path, monkeypatch):
    name = '2D_Obstacles_Re40_X32_N10.h5'
    path = shutil.copy(folder / name, tmp_path / name)
    with h5py.File(path, 'r+') as file:
        u = file['0005/data'][:]
        u[3, u[3, ..., 3] <= 0] -= 1.
        file['0005/data'][:] = u
    message = refused(train_here, monkeypatch, f'--data_path={path}', '--dataset=obstacles',
                      '--n_trajectories=10', f'--out_dir={tmp_path}/run', '--latent_tokens=4', '--time_stride=1',
                      '--space_stride=1', '--max_iters=1', '--device=cpu', '--initial_step=2')
    assert 'values are not 0 where distance is not positive' in message


def test_methods_are_compared_on_several_files(folder):
    """All files of a config are one task; the solver starts from rest and has no row."""
    keys = ['--re=40,60', '--n_trajectories=10', '--resolution=32', f'--data_dir={folder}', '--time_stride=4',
            '--space_stride=1', '--initial_step=2', '--latent_tokens=4', '--latent_dim=64', '--eval_interval=4']
    task = compare.prepare(os.path.join(ROOT, 'config', 'obstacles_cpu.py'), keys)
    assert [source.params['Re'] for source in task.sources] == [40., 60.] and len(task.y) == 2
    assert classical(task.sources, task.cfg, task.y) == {} and values_of(task) == 're 40-60'
    changes = compare.changes_of('unet', task)
    assert '--latent_tokens=32' in changes and '--latent_dim=4' in changes


@pytest.mark.slow
def test_a_method_is_scored_on_several_files(folder, tmp_path):
    keys = ['--re=40,60', '--n_trajectories=10', '--resolution=32', f'--data_dir={folder}', '--time_stride=4',
            '--initial_step=2', '--latent_tokens=4', '--latent_dim=64', '--hidden_dim=16', '--n_head=2']
    task = compare.prepare(os.path.join(ROOT, 'config', 'obstacles_cpu.py'), keys)
    found = compare.train_and_score('ours', task, {'iters': 2}, 0, str(tmp_path / 'run'))
    assert found['iters'] == 2 and 0 < found['nrmse'] < 10 and found['spectral_energy_error'] is None
