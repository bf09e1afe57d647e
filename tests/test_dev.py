"""dev/: the scripts of experiments, in short."""
import json

import pytest

from conftest import SMOKE
from dev import floor, latents


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


@pytest.mark.slow
def test_latents_of_fewer_numbers(burgers_file, tmp_path, capsys):
    latents.main([SMOKE, f'--data_path={burgers_file}', '--iters=2', '--factors', '8', f'--out={tmp_path}/l',
                  f'--plot={tmp_path}/l.png'])
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith('| 8 ')]
    assert len(table) == len(latents.ROWS)
    assert (tmp_path / 'l.png').stat().st_size > 0
