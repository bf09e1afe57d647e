"""Rollouts longer than the files, against closed forms and the solver."""
import dataclasses
import json
import math

import h5py
import numpy as np
import pytest
import torch

import equations
from conftest import evaluate, know, user_error
from evaluation import off_grid
from metrics import mean_nrmse
from model import UPT, load


def growing(monkeypatch, rate):
    """Models predict that fields grow by `rate` of the first frame in every step."""
    def rollout(self, u0, steps, **options):
        growth = 1 + rate * torch.arange(1., steps + 1)
        return u0[:, None] * growth.view(-1, *[1] * (u0.ndim - 1))
    monkeypatch.setattr(UPT, 'rollout', rollout)


@pytest.mark.parametrize('rate, bounded', [(.1, 1.), (.125, 0.)])
def test_scores_in_closed_form(plane, monkeypatch, rate, bounded):
    """Three times the 3 steps of the file, of a solution that rests."""
    growing(monkeypatch, rate)
    know(monkeypatch, plane=dataclasses.replace(equations.entry('plane'), conserved=('u',)))
    [r] = evaluate('--ckpt', plane, '--horizon', 3)
    found = r['horizon']
    assert (found['factor'], found['steps']) == (3, 9) and found['seconds'] == pytest.approx(9 * .05)
    assert found['per_step'] == pytest.approx([rate * step for step in range(1, 10)], rel=1e-5)
    assert found['nrmse'] == pytest.approx(5 * rate, rel=1e-5)
    assert found['nrmse_end'] == pytest.approx(9 * rate, rel=1e-5)
    assert found['correlation_time'] == pytest.approx(9 * .05)
    assert (found['finite'], found['bounded']) == (1, bounded)       # 1.9 and 2.125 times the start
    assert found['rms_growth'] == pytest.approx(1 + 9 * rate)
    assert found['true_rms_growth'] == pytest.approx(1)
    rms = (4 + 1 / 4) ** .5                                          # of 2 + sin x cos y
    assert found['integral_drift'] == pytest.approx(9 * rate * 2 / rms, rel=1e-5)


def test_blow_up(plane, monkeypatch, tmp_path):
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
    monkeypatch.setattr(off_grid, 'VALUES', 1)
    evaluate('--ckpt', plane, '--horizon', 3, '--split', 'all', '--json', tmp_path / 'r.json')
    found = json.loads((tmp_path / 'r.json').read_text())['horizon']
    assert found['finite'] == found['bounded'] == pytest.approx(.9)
    assert found['nrmse'] is None and found['nrmse_end'] == pytest.approx(0, abs=1e-6)
    assert found['per_step'][5] is None
    assert found['correlation_time'] == pytest.approx((.9 * 9 + .1 * 6) * .05)


def test_without_a_solver(plane, monkeypatch, capsys):
    growing(monkeypatch, .125)
    know(monkeypatch, plane=dataclasses.replace(equations.entry('plane'), solve=None))
    [r] = evaluate('--ckpt', plane, '--horizon', 3)
    assert set(r['horizon']) == {'factor', 'steps', 'seconds', 'finite', 'bounded', 'rms_growth'}
    assert r['horizon']['rms_growth'] == pytest.approx(2.125) and r['horizon']['bounded'] == 0
    assert 'plane has no built-in solver' in capsys.readouterr().out


def test_against_the_solver(run_folder, truth, burgers_file):
    [r] = evaluate('--ckpt', run_folder, '--horizon', 2)
    with h5py.File(burgers_file, 'r') as file:
        u0 = torch.from_numpy(file['tensor'][:1, 0])[..., None]
    y = equations.entry('burgers').solution(u0, {'Nu': .01}, .05 * np.arange(81))[:, 1:, ::32]
    p = load(run_folder).rollout(truth[:, 0], 80)
    found = r['horizon']
    assert found['nrmse'] == pytest.approx(mean_nrmse(p, y), rel=1e-4)
    assert found['per_step'][:40] == pytest.approx(r['per_step']['nrmse'], rel=1e-3)
    assert found['nrmse_end'] == found['per_step'][-1] and found['steps'] == 80


def test_a_steady_equation_is_refused(plane, monkeypatch):
    know(monkeypatch, plane=dataclasses.replace(equations.entry('plane'), steady=True))
    assert 'steady' in user_error('--ckpt', plane, '--horizon', 2)
