"""runtime/checkpoint.py: which checkpoint a path stands for, and checkpoints of other versions. Damaged files
are in test_faults.py."""
import os

import pytest
import torch

import pdes
from conftest import ROOT
from metrics import mean_nrmse
from model import load
from runtime.checkpoint import (FORMAT_VERSION, find_checkpoint, find_runs, load_checkpoint,
                                save_checkpoint, ship)
from runtime.configurator import UserError


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


@pytest.mark.parametrize('path, expected', [
    ('out/e', "no checkpoint at 'out/e'; found: out/e/nan_dump.pt"),
    ('out/a/other.pt',
     "no checkpoint at 'out/a/other.pt'; found: out/a/best.pt, out/a/last.pt, out/a/nan_dump.pt"),
    ('empty', "no checkpoint at 'empty'; none under 'empty' either: train one with python train.py "
     'config/burgers_cpu.py'),
])
@pytest.mark.parametrize('find', [find_runs, find_checkpoint])
def test_no_checkpoint(runs, path, expected, find):
    os.makedirs('empty')
    with pytest.raises(UserError) as caught:
        find(path)
    assert str(caught.value) == expected


@pytest.mark.parametrize('version, words', [
    (3, 'made by format version 3 (before the redesign); expected 4: train again, or use the code of that '
     'time'),
    (5, 'made by format version 5; expected 4'), (None, 'made by format version None; expected 4')])
def test_other_versions_are_refused(tmp_path, version, words):
    path = str(tmp_path / 'best.pt')
    weights = {'w': torch.ones(2)}
    state = {'model': weights, 'ema': weights, 'model_args': {}, 'config': {'seed': 1}}
    save_checkpoint(path, state)
    loaded = load_checkpoint(path)
    assert loaded['version'] == FORMAT_VERSION == 4
    assert loaded['config'] == {'seed': 1} and torch.equal(loaded['ema']['w'], torch.ones(2))
    save_checkpoint(path, {**state, 'version': version})
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    assert str(caught.value) == f"'{path}' was {words}"


def test_what_is_given_away_is_half_as_large_and_names_no_place(smoke, tmp_path):
    run = str(smoke)
    path = str(tmp_path / 'given/weights.pt')
    ship(run, path)
    assert os.path.getsize(path) < .6 * os.path.getsize(find_checkpoint(run))
    state = load_checkpoint(path)
    before = load_checkpoint(find_checkpoint(run))
    assert state['data']['absolute'] == state['data']['paths'] == before['data']['paths']
    assert all(torch.equal(state[kind][name], value)
               for kind in ('model', 'ema') for name, value in before['ema'].items())


@pytest.mark.parametrize('name, steps, frame', [('burgers_cpu', 10, 0), ('ns_cpu', 5, 11)])
def test_the_weights_that_are_given_away(name, steps, frame):
    path = os.path.join(ROOT, 'pretrained', f'{name}.pt')
    assert os.path.getsize(path) < 2e6
    state = load_checkpoint(path)
    assert state['environment']['commit'] and f'config/{name}.py' in state['environment']['command']
    assert 'platform' not in state['environment']
    assert not any(os.path.isabs(place) for place in state['data']['absolute'] + state['data']['relative'])
    model = load(path)
    cfg = model.cfg
    entry = pdes.entry(cfg.pde)
    params = {key: seen[0] for key, seen in zip(cfg.params, cfg.seen_params)}
    u0 = entry.start(1, cfg.grid, 12345)
    t = [cfg.dt * k for k in range(frame + steps + 1)]
    u = entry.solution(u0, params, t)[:, frame:].float()
    p = model.rollout(u[:, 0], steps)
    assert mean_nrmse(p, u[:, 1:]) < .02 < .1 < mean_nrmse(u[:, :1].expand_as(p), u[:, 1:])
