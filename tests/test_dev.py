"""dev/: the scripts of experiments, in short."""
import json
import math
import os

import pytest

import files
from conftest import ROOT, SMOKE, refused
from dev import floor, latents
from runtime.configurator import UserError


def test_floor_of_linear_latents(burgers_file, tmp_path, capsys):
    path = tmp_path / 'floor.json'
    floor.main([SMOKE, f'--data_path={burgers_file}', f'--json={path}', f'--plot={tmp_path}/floor.png'])
    rows = json.loads(path.read_text())['burgers_smoke']
    assert (tmp_path / 'floor.png').stat().st_size > 0
    by_tokens = {}
    for row in rows:
        by_tokens.setdefault(row['tokens'], []).append(row)
    assert len(by_tokens) == 3
    for rows in by_tokens.values():
        for kind in ('cosine', 'patches', 'fields'):
            errors = [row[kind] for row in rows if row[kind] is not None]
            assert errors == sorted(errors) and errors[0] < .2       # the fewer numbers, the larger
        for row in rows[:2]:
            assert row['fields'] < 1.1 * row['patches'] < 1.3 * row['cosine']
    assert '| times fewer numbers |' in capsys.readouterr().out
    few = ['--latent_tokens=2', '--token_shift=0']
    floor.main([SMOKE, f'--data_path={burgers_file}', *few, f'--json={path}'])
    assert {row['tokens'] for row in json.loads(path.read_text())['burgers_smoke']} == {2, 1}


def test_floor_of_a_steady_equation(tmp_path, monkeypatch, capsys):
    """The start of its solution is 0, of which nothing is a part."""
    path = files.write_file(str(tmp_path / 'd.hdf5'), 'darcy', {'beta': 1.}, 20, device='cpu', resolution=16)
    config = os.path.join(ROOT, 'config', 'darcy_cpu.py')
    small = ['--space_stride=1', '--query_stride=1', '--latent_tokens=4', '--latent_dim=8', '--token_shift=0']
    floor.main([config, f'--data_path={path}', *small, f'--json={tmp_path}/floor.json'])
    rows = json.loads((tmp_path / 'floor.json').read_text())['darcy_cpu']
    errors = [row[kind] for row in rows for kind in ('cosine', 'patches') if row[kind] is not None]
    assert errors and all(math.isfinite(error) for error in errors)


def test_keys_of_a_config_are_not_options_of_a_study(monkeypatch, tmp_path):
    """--seed is not short for --seeds."""
    def prepare(config, overrides):
        raise UserError(' '.join(overrides))

    monkeypatch.setattr(latents, 'prepare', prepare)
    args = [SMOKE, '--seed=3', f'--out={tmp_path}']
    assert refused(latents.main, args) == '--seed=3'
    assert 'i/n' in refused(latents.main, [*args, '--part=2/2'])


@pytest.mark.slow
def test_latents_of_fewer_numbers(burgers_file, tmp_path, capsys):
    latents.main([SMOKE, f'--data_path={burgers_file}', '--iters=2', '--factors', '8', f'--out={tmp_path}/l',
                  f'--plot={tmp_path}/l.png'])
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith('| 8 ')]
    assert len(table) == len(latents.ROWS)
    assert (tmp_path / 'l.png').stat().st_size > 0
