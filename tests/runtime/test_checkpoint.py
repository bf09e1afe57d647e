"""runtime/checkpoint.py: which checkpoint a path stands for, and checkpoints of other versions. Damaged files
are in tests/core/test_faults.py."""
import os

import pytest
import torch

import equations
from conftest import ROOT, refused
from metrics import mean_nrmse
from model import load
from runtime.checkpoint import (FORMAT_VERSION, find_checkpoint, find_runs, load_checkpoint,
                                save_checkpoint, ship)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A folder out/ with three runs and a dump; b/last.pt was written last, and a is older than c/d."""
    monkeypatch.chdir(tmp_path)
    for age, path in enumerate(['out/b/last.pt', 'out/c/d/best.pt', 'out/a/last.pt', 'out/a/best.pt',
                                'out/a/nan_dump.pt', 'out/e/nan_dump.pt']):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, 'w').close()
        os.utime(path, (1e9 - age, 1e9 - age))
    return tmp_path


def test_a_file_and_a_run_folder_stand_for_one_run(runs):
    assert find_runs('out/a/last.pt') == ['out/a/last.pt']
    assert find_runs('out/a') == ['out/a/best.pt']
    assert find_runs('out/b') == ['out/b/last.pt']
    assert find_checkpoint('out/a') == 'out/a/best.pt'


def test_a_folder_of_runs_stands_for_all_of_them(runs):
    assert find_runs('out') == ['out/a/best.pt', 'out/b/last.pt', 'out/c/d/best.pt']
    assert find_runs('out/c') == ['out/c/d/best.pt']


def test_of_several_runs_the_newest_is_taken_and_named(runs, capsys):
    assert find_checkpoint('out/c') == 'out/c/d/best.pt'
    assert capsys.readouterr().out == ''                             # there is no choice
    assert find_checkpoint('out') == 'out/b/last.pt'
    assert capsys.readouterr().out == "'out' holds 3 runs: 'out/b/last.pt' is taken, which was written last\n"
    os.utime('out/c/d/best.pt', (2e9, 2e9))
    assert find_checkpoint('out') == 'out/c/d/best.pt'


@pytest.mark.parametrize('path, shown', [
    ('out/e', 'found: out/e/nan_dump.pt'), ('out/a/other.pt', 'found: out/a/best.pt, out/a/last.pt'),
    ('empty', 'train.py config/')])
def test_no_checkpoint(runs, path, shown):
    """The message names what is there."""
    os.makedirs('empty')
    for find in (find_runs, find_checkpoint):
        message = refused(find, path)
        assert f"no checkpoint at '{path}'" in message and shown in message


@pytest.mark.parametrize('version', [0, FORMAT_VERSION - 1, FORMAT_VERSION + 1, None])
def test_other_versions_are_refused(tmp_path, version):
    path = str(tmp_path / 'best.pt')
    weights = {'w': torch.ones(2)}
    state = {'model': weights, 'ema': weights, 'model_args': {}, 'config': {'seed': 1}}
    save_checkpoint(path, state)
    loaded = load_checkpoint(path)
    assert loaded['version'] == FORMAT_VERSION
    assert loaded['config'] == {'seed': 1} and torch.equal(loaded['ema']['w'], torch.ones(2))
    save_checkpoint(path, {**state, 'version': version})
    assert f'version {version}' in refused(load_checkpoint, path)


def test_what_is_given_away_is_half_as_large_and_names_no_place(run_folder, tmp_path):
    before = load_checkpoint(find_checkpoint(run_folder))
    before['model'] = {name: torch.randn(3000) for name in before['model']}      # large against the rest
    before['ema'] = {name: value + 1 for name, value in before['model'].items()}
    os.makedirs(tmp_path / 'run')
    save_checkpoint(str(tmp_path / 'run' / 'best.pt'), before)
    path = str(tmp_path / 'given' / 'weights.pt')
    ship(str(tmp_path / 'run'), path)
    assert os.path.getsize(path) < .6 * os.path.getsize(tmp_path / 'run' / 'best.pt')
    state = load_checkpoint(path)
    names = [os.path.basename(name) for name in before['data']['paths']]
    assert state['data']['absolute'] == state['data']['paths'] == [f'datasets/{name}' for name in names]
    assert str(tmp_path) not in str(state['config']) and str(tmp_path) not in str(state['environment'])
    assert all(torch.equal(state[kind][name], value)
               for kind in ('model', 'ema') for name, value in before['ema'].items())


@pytest.mark.parametrize('name, steps, frame', [('burgers_cpu', 10, 0), ('ns_cpu', 5, 11)])
def test_the_weights_that_are_given_away(name, steps, frame):
    path = os.path.join(ROOT, 'pretrained', f'{name}.pt')
    assert os.path.getsize(path) < 2e6
    state = load_checkpoint(path)
    assert state['environment']['commit'] and f'config/{name}.py' in state['environment']['command']
    assert 'platform' not in state['environment'] and '=/' not in state['environment']['command']
    assert not any(os.path.isabs(place) for place in state['data']['absolute'] + state['data']['relative'])
    model = load(path)
    cfg = model.cfg
    entry = equations.entry(cfg.pde)
    params = {key: seen[0] for key, seen in zip(cfg.params, cfg.seen_params)}
    u0 = entry.start(1, cfg.grid, 12345)
    t = [cfg.dt * k for k in range(frame + steps + 1)]
    u = entry.solution(u0, params, t)[:, frame:].float()
    p = model.rollout(u[:, 0], steps)
    assert mean_nrmse(p, u[:, 1:]) < .02 < .1 < mean_nrmse(u[:, :1].expand_as(p), u[:, 1:])
