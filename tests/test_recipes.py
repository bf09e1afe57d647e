"""
The recipes of README.md, done as they stand there on a copy of the repository, and trained for two
iterations.

A recipe lies between the lines `<!-- recipe: NAME -->` and `<!-- end -->`. Each of its blocks ```python FILE
begins with a line that FILE has already, exactly once; the rest of the block goes in after it. Where there is
no FILE, the block is all of it.
"""
import json
import math
import os
import re
import runpy
import shutil
import subprocess
import sys

import pytest
import torch

from conftest import ENV, ROOT, TIMEOUT, rows_of, state_of

with open(os.path.join(ROOT, 'README.md'), encoding='utf-8') as readme:
    README = readme.read()


def blocks(name):
    """[(file, first line, the rest)] of a recipe."""
    recipe = re.search(f'<!-- recipe: {name} -->(.*?)<!-- end -->', README, re.DOTALL)
    assert recipe, f'README.md has no recipe: {name}'
    found = re.findall(r'^```python (\S+)\n(.*?\n)(.*?)^```$', recipe[1], re.DOTALL | re.MULTILINE)
    assert found, f'the recipe {name} has no blocks'
    return found


def length(name):
    """Lines of code that a recipe adds."""
    added = 0
    for file, line, rest in blocks(name):
        is_new = not os.path.exists(os.path.join(ROOT, file))
        code = line + rest if is_new else rest
        added += sum(bool(line.strip()) for line in code.splitlines())
    return added


def copy_with(folder, *names):
    """A copy of the program with these recipes done."""
    def is_code(name):
        return name.endswith('.py') or name in ('config', 'numerics', 'runtime')

    for name in filter(is_code, os.listdir(ROOT)):
        source = os.path.join(ROOT, name)
        if os.path.isdir(source):
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns('__pycache__'))
        else:
            shutil.copy(source, folder / name)
    for name in names:
        for file, line, rest in blocks(name):
            path = folder / file
            if not path.exists():
                path.write_text(line + rest, encoding='utf-8')
                continue
            lines = path.read_text(encoding='utf-8').splitlines(keepends=True)
            assert lines.count(line) == 1, f'{file} has the line {line!r} {lines.count(line)} times'
            place = lines.index(line) + 1
            path.write_text(''.join([*lines[:place], rest, *lines[place:]]), encoding='utf-8')


def call(folder, script, *args):
    """Run a script of the copy. -> its output"""
    done = subprocess.run([sys.executable, script, *map(str, args)], cwd=folder, env=ENV, capture_output=True,
                          text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def train(folder, *args):
    """Two iterations of every stage. -> rows of log.csv"""
    call(folder, 'train.py', 'config/burgers_smoke.py', '--device=cpu', '--out_dir=o', '--max_iters=2',
         '--log_interval=1', *args)
    return rows_of(folder / 'o')


def test_add_a_loss(tmp_path, burgers_file):
    assert length('loss') <= 6
    copy_with(tmp_path, 'loss')
    rows = train(tmp_path, f'--data_path={burgers_file}', '--lambda_gradient_size=.1')
    assert len(rows) == 2 and all(float(row['gradient_size']) > 0 for row in rows)
    terms = {'field': 1., 'latent': 10., 'inverse_encoding': 50., 'spectral': .05, 'gradient_size': .1}
    for row in rows:
        total = sum(weight * float(row[name]) for name, weight in terms.items())
        assert total == pytest.approx(float(row['loss']), rel=1e-4)


def test_add_a_stage(tmp_path, burgers_file):
    assert length('stage') <= 20
    copy_with(tmp_path, 'stage')
    rows = train(tmp_path, f'--data_path={burgers_file}', '--stages=operator,finetune',
                 '--finetune_stage.max_iters=2')
    assert [row['stage'] for row in rows] == ['operator', 'operator', 'finetune', 'finetune']
    for row in rows[2:]:
        assert float(row['loss']) == pytest.approx(10 * float(row['latent']), rel=1e-4)
    last = state_of(tmp_path / 'o')
    assert last['stage'] == state_of(tmp_path / 'o', 'best.pt')['stage'] == 'finetune'
    moved = [name for name, value in last['model'].items() if not torch.equal(value, last['ema'][name])]
    assert {name.split('.')[0] for name in moved} == {'operator'}


def test_add_an_equation(tmp_path):
    """On top of the other two. Data are made, trained on and evaluated; the solver is exact, here for a sine
    wave."""
    assert length('equation') <= 30
    copy_with(tmp_path, 'loss', 'stage', 'equation')
    rows = train(tmp_path, '--dataset=heat', '--nu=.02', '--n_trajectories=5', '--data_dir=d',
                 '--stages=operator,finetune', '--finetune_stage.max_iters=2', '--lambda_gradient_size=.1')
    assert len(rows) == 4 and float(rows[0]['gradient_size']) > 0
    assert os.listdir(tmp_path / 'd') == ['1D_Heat_Sols_Nu0.02_N5.hdf5']
    call(tmp_path, 'eval.py', '--ckpt', 'o', '--device', 'cpu', '--json', 'eval.json')
    with open(tmp_path / 'eval.json') as file:
        assert json.load(file)
    solvers = runpy.run_path(str(tmp_path / 'numerics' / 'heat.py'))
    x = (torch.arange(64) + .5) / 64
    u0 = torch.sin(2 * math.pi * x)[None]
    u = solvers['heat'](u0, nu=.02, t=[0., 1.])
    torch.testing.assert_close(u[0, 1], math.exp(-.02 * 4 * math.pi ** 2) * u[0, 0], rtol=0, atol=1e-6)


def test_every_module_is_installed_and_named():
    """pyproject.toml and the table of files in the README leave none out."""
    modules = {name[:-3] for name in os.listdir(ROOT) if name.endswith('.py')}
    with open(os.path.join(ROOT, 'pyproject.toml'), encoding='utf-8') as file:
        listed = re.search(r'^py-modules = \[(.*)\]$', file.read(), re.MULTILINE)[1]
    assert set(re.findall(r'"(\w+)"', listed)) == modules
    assert {name for name in modules if f'| `{name}.py`' in README or f', `{name}.py`' in README} == modules
