"""report.py: the physics report of solutions and of wrong predictions; spectra."""
import json
import math

import pytest
import torch

from conftest import centres, evaluate
from equations import entry
from physics.report import lines, report, spectra


def axes_of(pde, n):
    return [torch.from_numpy(centres(n, low, high)) for low, high in pde.space]


def report_of(name, n, t, params, change=None):
    """The report of a solution from the first of the times t on. The prediction is change(solution), by
    default the solution itself."""
    pde = entry(name)
    u0 = pde.start(3, (n,) * pde.axes)
    u = pde.solution(u0, params, [0., *t]).float()[:, 1:]
    y = u[:, 1:]
    p = change(y) if change else y
    values = {key: torch.full((3,), value) for key, value in params.items()}
    return report(u[:, 0], p, y, t[1] - t[0], values, axes_of(pde, n), pde)


def test_report_of_burgers():
    t = [.3, .35, .4, .45]
    same = report_of('burgers', 64, t, {'Nu': .1})
    assert list(same) == ['conservation of u', 'energy', 'boundary', 'divergence', 'residual']
    for key in ('conservation of u', 'energy', 'residual'):
        assert same[key]['prediction'] == same[key]['truth'] < .2
    assert 'periodic' in same['boundary']['does_not_apply']
    factors = torch.tensor([1., 1.2, 1.5])[:, None, None]
    louder = report_of('burgers', 64, t, {'Nu': .1}, lambda y: y * factors)
    assert louder['energy']['prediction'] > .1 and louder['energy']['truth'] < 1e-6
    assert louder['residual']['prediction'] > 2 * louder['residual']['truth']
    assert louder['residual']['truth'] == same['residual']['truth']
    assert louder['conservation of u']['prediction'] > 1e-2
    text = lines(louder)
    assert 'conservation gap of u' in text and 'does not apply: its boundary is periodic' in text
    assert f"{louder['energy']['prediction']:.3g}" in text


def test_report_between_walls_and_of_a_steady_equation():
    found = report_of('diffusion-reaction', 16, [2., 2.5, 3.], {}, lambda y: 1.5 * y)
    assert found['boundary']['prediction'] == pytest.approx(1.5 * found['boundary']['truth'])
    assert found['residual']['truth'] < .1 < found['residual']['prediction']
    found = report_of('darcy', 16, [1., 2.], {'beta': 1.}, lambda y: 1.1 * y)
    assert found['residual']['truth'] < 1e-3 < found['residual']['prediction']
    assert found['boundary']['prediction'] > 0


def test_spectra_of_waves():
    x = torch.from_numpy(centres(32))
    u = (2 * math.pi * 5 * x).sin()[None, None, :, None]
    power, waves = spectra(u, True)
    assert power.shape == (1, len(waves), 1)
    assert float(power[0, 5, 0]) == pytest.approx(.5)
    assert float(power.sum()) == pytest.approx(.5)
    u = (math.pi * 3 * x).cos()[None, None, :, None]                 # a wave and a half between walls
    power, waves = spectra(u, False)
    assert float(waves[power[0, :, 0].argmax()]) == 1.5
    assert float(power.max()) == pytest.approx(.5)


def test_as_a_user_runs_it(run_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [found] = evaluate('--ckpt', run_folder, '--physics', '--steps', 3, '--json', 'e.json')
    printed = capsys.readouterr().out
    assert f"physics of '{run_folder}" in printed and 'residual of the equation' in printed
    with open('e.json') as file:
        saved = json.load(file)['physics']
    assert saved == found['physics']
    gap = found['metrics']['conservation_gap']
    assert saved['conservation of u']['prediction'] == pytest.approx(gap, rel=1e-3)
    assert saved['energy']['truth'] < 1e-3
