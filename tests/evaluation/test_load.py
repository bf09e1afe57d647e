"""The data of a checkpoint: where they are found, which files fit, which rows are refused."""
import os
import shlex
import shutil

import h5py
import numpy as np
import pytest
import torch

import equations
from conftest import describe, evaluate, know, save, tiny, user_error, waves, write
from evaluation import load as loading
from evaluation.load import find_data, params_of
from files.open import open_source
from files.write import make_command
from metrics import mean_nrmse
from model import load
from runtime.checkpoint import load_checkpoint
from runtime.configurator import UserError


# --- where data are found ----------------------------------------------------

@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a data file and a run that was trained from there, with a path relative to it."""
    folder = tmp_path / 'project'
    (folder / 'datasets').mkdir(parents=True)
    write(folder / 'datasets' / 'a.hdf5', waves(10, 6, 64))
    monkeypatch.chdir(folder)
    save(tiny(), os.path.join('out', 'a', 'best.pt'), os.path.join('datasets', 'a.hdf5'))
    monkeypatch.chdir(tmp_path)
    return folder


def found(run):
    file = os.path.join(run, 'best.pt')
    return find_data(load_checkpoint(file), file)


def test_from_another_folder(project):
    [r] = evaluate('--ckpt', project / 'out' / 'a')
    assert os.path.samefile(r['data'][0], project / 'datasets' / 'a.hdf5')


def test_run_and_data_moved_together(project, tmp_path):
    os.rename(project, tmp_path / 'moved')
    [path] = found(os.path.join('moved', 'out', 'a'))
    assert os.path.samefile(path, tmp_path / 'moved' / 'datasets' / 'a.hdf5')


def test_only_the_run_moved(project, tmp_path):
    shutil.move(project / 'out' / 'a', tmp_path / 'a')
    assert found('a') == [str(project / 'datasets' / 'a.hdf5')]


def test_path_as_typed(project, tmp_path, monkeypatch):
    """Run and data moved apart, to where the typed path leads from here, or from the repository."""
    shutil.move(project / 'out' / 'a', tmp_path / 'a')
    (tmp_path / 'new').mkdir()
    shutil.move(project / 'datasets', tmp_path / 'new' / 'datasets')
    with pytest.raises(UserError) as refused:
        found('a')
    for word in ('--data', str(project / 'datasets' / 'a.hdf5'), loading.REPOSITORY):
        assert word in str(refused.value)
    monkeypatch.setattr(loading, 'REPOSITORY', str(tmp_path / 'new'))
    assert found('a') == [str(tmp_path / 'new' / 'datasets' / 'a.hdf5')]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path / 'new')
    assert found(tmp_path / 'a') == [os.path.join('datasets', 'a.hdf5')]


@pytest.mark.parametrize('typed, command', [
    ('datasets/1D_Burgers_Sols_Nu0.02_X64_N30.hdf5',
     'python data.py make burgers --n 30 --nu 0.02 --resolution 64'),
    ("some where/1D_Burgers_Sols_Nu0.01_X64_N30.hdf5",
     "python data.py make burgers --n 30 --nu 0.01 --resolution 64 --data_dir 'some where'"),
    ('datasets/1D_Burgers_Sols_Nu0.02_X64_N30_seed1.hdf5',
     'python data.py make burgers --n 30 --nu 0.02 --seed 1 --resolution 64'),
    ('datasets/1D_Burgers_Sols_Nu0.02_X64_N30_seed2.hdf5', ''),
    ('datasets/1D_Burgers_Sols_Nu0.01.hdf5', ''), ('mine.hdf5', '')])       # downloaded; somebody's own
def test_missing_data_are_told_with_the_command_that_makes_them(tmp_path, monkeypatch, typed, command):
    monkeypatch.chdir(tmp_path)
    state = {'model_args': {'pde': 'burgers', 'params': ['Nu'], 'seen_params': [[.01, .02]]},
             'config': {'n_trajectories': 30, 'resolution': 64},
             'data': {name: [typed] for name in ('paths', 'absolute', 'relative')}}
    with pytest.raises(UserError) as refused:
        find_data(state, 'a.pt')
    assert (f'make it by {command}, or' if command else 'put it back, or') in str(refused.value)
    if command:
        monkeypatch.setattr('sys.argv', ['data.py'])
        monkeypatch.setattr('files.write.write_file', lambda path, *_: os.makedirs(path))
        make_command(shlex.split(command)[3:])
        assert os.path.isdir(typed)


# --- files that are not those of the training --------------------------------

@pytest.mark.parametrize('split, n', [('test', 1), ('val', 1), ('train', 8), ('all', 10)])
def test_splits(run_folder, capsys, split, n):
    [r] = evaluate('--ckpt', run_folder, '--split', split, '--steps', 1)
    assert (r['split'], r['n_trajectories']) == (split, n)
    out = capsys.readouterr().out
    assert f'on {split} rows' in out and 'never seen' not in out


def test_another_file(run_folder, tmp_path, capsys):
    """Another grid, time step, length and parameter: strided to the trained grid and step, all rows."""
    u = waves(4, 21, 64)
    file = write(tmp_path / 'other.hdf5', u, dt=.0125, Nu=.02)       # strides 2 in space, 4 in time
    [r] = evaluate('--ckpt', run_folder, '--data', file, '--superres', 2)
    assert (r['split'], r['n_trajectories'], len(r['per_step']['nrmse'])) == ('all', 4, 5)
    m = load(run_folder)
    u = torch.from_numpy(u[:, ::4]).float()[..., None]
    y = u[:, :, ::2]
    p = m.rollout(y[:, 0], 5, params={'Nu': torch.tensor(.02)})
    assert r['metrics']['nrmse'] == pytest.approx(mean_nrmse(p, y[:, 1:]), rel=1e-4)
    assert (p - m.rollout(y[:, 0], 5, params={'Nu': .01})).abs().max() > 1e-4    # the file's Nu counts
    p = m.rollout(y[:, 0], 5, params={'Nu': torch.tensor(.02)}, points=m.grid(64))
    assert r['superres']['2']['nrmse'] == pytest.approx(mean_nrmse(p, u[:, 1:]), rel=1e-4)
    out = capsys.readouterr().out
    assert 'weak reference' in out and 'Nu=0.02 was never seen' in out
    assert 'trained on' not in out


def test_a_coarser_file(run_folder, tmp_path):
    """It is evaluated on its own points, from which the model resamples."""
    u = waves(4, 6, 16)
    file = write(tmp_path / 'coarse.hdf5', u)
    [r] = evaluate('--ckpt', run_folder, '--data', file)
    m = load(run_folder)
    y = torch.from_numpy(u).float()[..., None]
    p = m.rollout(y[:, 0], 5)
    assert p.shape == (4, 5, 16, 1) and r['grid'] == [16]
    assert r['metrics']['nrmse'] == pytest.approx(mean_nrmse(p, y[:, 1:]), rel=1e-4)
    recon = m.decode(m.encode(y.flatten(0, 1)), m.grid(16)).unflatten(0, (4, 6))
    assert r['metrics']['recon_nrmse'] == pytest.approx(mean_nrmse(recon, y), rel=1e-4)
    [r] = evaluate('--ckpt', run_folder, '--data', file, '--initial_step', 3)
    late = mean_nrmse(recon[:, 2:], y[:, 2:])                        # from frame initial_step - 1 on
    assert r['metrics']['recon_nrmse'] == pytest.approx(late, rel=1e-4)


def test_a_search_takes_the_trained_grid(burgers_file, tmp_path):
    model = tiny(steppers=('operator', 'ensemble'), noise_dim=4)
    file = save(model, tmp_path / 'best.pt', burgers_file)
    coarse = write(tmp_path / 'coarse.hdf5', waves(2, 6, 16))
    message = user_error('--ckpt', file, '--data', coarse, '--ttc')
    assert '--ttc' in message and '32' in message and '16' in message


@pytest.mark.parametrize('shape, changes, text', [
    ((4, 11, 48), {}, '48 / 32 = 1.5'),
    ((4, 11, 12), {}, '12 / 32 = 0.375'),
    ((4, 11, 64), {'dt': .02}, '0.05 / 0.02 = 2.5'),
    ((4, 11, 64), {'dt': .2}, '0.05 / 0.2 = 0.25'),
    ((4, 11, 64), {'low': -1.}, 'burgers-old'),
    ((4, 11, 64), {'beta': .4}, 'advection'),
    ((4, 2, 64), {'dt': .025}, 'initial_step=1'),                    # one frame at the trained step
])
def test_files_that_do_not_fit(run_folder, tmp_path, shape, changes, text):
    file = write(tmp_path / 'other.hdf5', waves(*shape), **changes)
    assert text in user_error('--ckpt', run_folder, '--data', file)


def test_points_between_walls_must_agree(monkeypatch, tmp_path):
    walls = equations.PDE(fields=('u',), params={'c': 1.}, space=((0, 1),), boundary='wall',
                          file='walls{c}.hdf5')
    know(monkeypatch, walls=walls)
    fine = write(tmp_path / 'fine.hdf5', waves(10, 4, 64), c=1.)
    model = tiny(pde='walls', params=('c',), seen_params=((1.,),), boundary='wall', first=(.5 / 64,))
    file = save(model, tmp_path / 'walls.pt', fine)
    assert evaluate('--ckpt', file)[0]['metrics']['nrmse'] > 0
    coarse = write(tmp_path / 'coarse.hdf5', waves(4, 4, 16), c=1.)  # its first point is .5 / 16
    assert 'between walls' in user_error('--ckpt', file, '--data', coarse)


def test_values_that_no_score_can_tell(run_folder, tmp_path, capsys):
    """A field of zeros, and other units, each with the file and the numbers."""
    u = 1e3 * waves(4, 6, 32)
    u[2, 3] = 0
    file = write(tmp_path / 'other.hdf5', u)
    [r] = evaluate('--ckpt', run_folder, '--data', file)
    assert r['metrics']['nrmse'] is None and r['metrics']['recon_nrmse'] > 0     # of the other frames
    out = capsys.readouterr().out
    assert f"warning: '{file}': 1 of 4 trajectories (2) have a frame in which a field is 0" in out
    assert f"warning: '{file}': u deviates by" in out
    evaluate('--ckpt', run_folder, '--data', write(file, waves(4, 6, 32)))
    assert 'warning' not in capsys.readouterr().out


def test_files_of_fewer_rows(burgers_file, tmp_path):
    file = save(tiny(), tmp_path / 'more.pt', burgers_file, n_trajectories=30)
    assert 'holds 20 trajectories' in user_error('--ckpt', file)


def test_two_axes(plane, tmp_path):
    [r] = evaluate('--ckpt', plane, '--save', tmp_path / 'p.npz')
    assert r['grid'] == [8, 8]
    m = load(plane)
    with h5py.File(tmp_path / 'plane.hdf5', 'r') as file:
        u = torch.from_numpy(file['tensor'][:1, :, ::2, ::2])[..., None]
    assert r['metrics']['nrmse'] == pytest.approx(mean_nrmse(m.rollout(u[:, 0], 3), u[:, 1:]), rel=1e-4)
    with np.load(tmp_path / 'p.npz') as arrays:
        assert arrays['predictions'].shape == (1, 3, 8, 8, 1)
        assert arrays['x'] == pytest.approx(m.grid().numpy())


def test_parameters_of_several_files(tmp_path):
    sources = [open_source(write(tmp_path / f'{nu}.hdf5', waves(3, 4, 16), Nu=nu)) for nu in (.01, .1)]
    params = params_of(sources, tiny().cfg, 2)
    assert params['Nu'].tolist() == pytest.approx([.01, .01, .1, .1])


# --- leaks -------------------------------------------------------------------

@pytest.mark.parametrize('row', [1, 7])                              # validation, train
def test_test_rows_that_were_trained_on(tmp_path, row):
    u = waves(10, 6, 64)
    file = save(tiny(), tmp_path / 'leak.pt', write(tmp_path / 'leak.hdf5', u))
    u[0, 0] = u[row, 0]
    write(tmp_path / 'leak.hdf5', u)                                 # the data have changed since
    assert 'test trajectory 0' in user_error('--ckpt', file)
    evaluate('--ckpt', file, '--split', 'train')


def test_test_rows_that_an_ancestor_was_trained_on(tmp_path):
    """Fine-tuning keeps the fingerprints of the parent: here the same rows in another order."""
    data = write(tmp_path / 'a.hdf5', waves(10, 6, 64))
    parent = write(tmp_path / 'b.hdf5', waves(10, 6, 64)[::-1])
    seen = describe(str(tmp_path), [parent], 10)['seen']
    file = save(tiny(), tmp_path / 'a.pt', data, seen=seen)
    assert 'test trajectory 0' in user_error('--ckpt', file)


def test_another_name_for_the_training_file(run_folder, burgers_file, tmp_path, capsys):
    evaluate('--ckpt', run_folder, '--data', shutil.copy(burgers_file, tmp_path / 'new.hdf5'), '--steps', 1)
    assert 'warning: 9 of 20' in capsys.readouterr().out             # ten rows were used, one of them to test
