"""
The recipes of docs/RECIPES.md, done as they stand there on a copy of the repository, and trained for two
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
from functools import partialmethod

import pytest
import torch

from conftest import ENV, ROOT, TIMEOUT, rows_of, run, state_of
from model import load

with open(os.path.join(ROOT, 'docs', 'RECIPES.md'), encoding='utf-8') as file:
    RECIPES = file.read()


def blocks(name):
    """[(file, first line, the rest)] of a recipe."""
    recipe = re.search(f'<!-- recipe: {name} -->(.*?)<!-- end -->', RECIPES, re.DOTALL)
    assert recipe, f'docs/RECIPES.md has no recipe: {name}'
    found = re.findall(r'^```python (\S+)\n(.*?\n)(.*?)^```$', recipe[1], re.DOTALL | re.MULTILINE)
    assert found, f'the recipe {name} has no blocks'
    return found


def copy_with(folder, *names):
    """A copy of the program with these recipes done."""
    for name in os.listdir(ROOT):
        source = os.path.join(ROOT, name)
        if os.path.exists(os.path.join(source, '__init__.py')):
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns('__pycache__'))
        elif name.endswith('.py'):
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
    """Run a script of the copy."""
    run(*args, script=folder / script, cwd=folder)


ARGS = {'loss': ['--lambda_gradient=.1'], 'attention': ['--attention=mean'],
        'stage': ['--stages=operator,finetune', '--finetune_stage.max_iters=2'],
        'equation': ['--dataset=heat', '--nu=.02', '--n_trajectories=5', '--data_dir=d']}


def train(folder, data_path, *names):
    """Two iterations of every stage with these recipes. -> rows of log.csv"""
    copy_with(folder, *names)
    args = [arg for name in names for arg in ARGS[name]]
    if 'equation' not in names:
        args += [f'--data_path={data_path}']
    call(folder, 'train.py', 'config/burgers_smoke.py', '--device=cpu', '--out_dir=o', '--max_iters=2',
         '--log_interval=1', '--time_stride=40', *args)
    return rows_of(folder / 'o')


@pytest.mark.parametrize('name, longest', [
    ('loss', 4), ('stage', 14), ('attention', 11), ('equation', 17), ('operator', 11), ('own-data', 15)])
def test_recipes_are_short(name, longest):
    """Lines of code that a recipe adds."""
    n_line = 0
    for file, line, rest in blocks(name):
        code = rest if os.path.exists(os.path.join(ROOT, file)) else line + rest
        n_line += sum(bool(line.strip()) for line in code.splitlines())
    assert n_line <= longest


def test_all_recipes_at_once(tmp_path):
    """Data are made and trained on."""
    rows = train(tmp_path, None, *ARGS)
    assert [row['stage'] for row in rows] == ['operator', 'operator', 'finetune', 'finetune']
    terms = {'field': 1., 'latent': 10., 'inverse_encoding': 50., 'spectral': .05, 'gradient': .1}
    for row in rows[:2]:
        assert float(row['gradient']) > 0
        total = sum(weight * float(row[name]) for name, weight in terms.items())
        assert total == pytest.approx(float(row['loss']), rel=1e-4)
    for row in rows[2:]:
        assert float(row['loss']) == pytest.approx(float(row['one_step']), rel=1e-6)
    last = state_of(tmp_path / 'o')
    assert last['stage'] == state_of(tmp_path / 'o', 'best.pt')['stage'] == 'finetune'
    moved = [name for name, value in last['model'].items() if not torch.equal(value, last['ema'][name])]
    assert {name.split('.')[0] for name in moved} == {'operator'}
    assert last['model_args']['attention'] == 'mean'
    assert os.listdir(tmp_path / 'd') == ['1D_Heat_Sols_Nu0.02_N5.hdf5']
    heat = runpy.run_path(str(tmp_path / 'equations' / 'heat.py'))['heat']
    x = (torch.arange(64) + .5) / 64
    u0 = torch.sin(2 * math.pi * x)[None]
    u = heat(u0, nu=.02, t=[0., 1.])                                 # exact for a sine wave
    torch.testing.assert_close(u[0, 1], math.exp(-.02 * 4 * math.pi ** 2) * u[0, 0], rtol=0, atol=1e-6)


def test_gradients_through_a_rollout(run_folder):
    [code] = re.findall('recipe: gradients -->.*?```python\n(.*?)```', RECIPES, re.DOTALL)
    found = {}
    exec(code.replace('out/burgers_cpu', run_folder), found)
    assert found['u0'].grad.abs().min() > 0 and found['nu'].grad.abs() > 0


@pytest.mark.slow
def test_a_compiled_rollout(run_folder, monkeypatch):
    """Two graphs, without Inductor, and for another batch size two more."""
    import torch._dynamo.testing                                     # it takes seconds
    [code] = re.findall('recipe: compiled -->.*?```python\n(.*?)```', RECIPES, re.DOTALL)
    graphs = torch._dynamo.testing.CompileCounterWithBackend('aot_eager')
    with_backend = partialmethod(torch.nn.Module.compile, backend=graphs)
    monkeypatch.setattr(torch.nn.Module, 'compile', with_backend)
    found = {}
    exec(code.replace('out/burgers_cpu', run_folder).replace('cuda', 'cpu'), found)
    compiled = found['m']
    n_graph = []
    for size in (1, 1, 3, 4):
        u0 = torch.randn(size, *compiled.cfg.grid, 1)
        expected = load(run_folder).rollout(u0, 2)
        torch.testing.assert_close(compiled.rollout(u0, 2), expected, rtol=1e-5, atol=1e-5)
        n_graph.append(graphs.frame_count)
    assert n_graph == [2, 2, 4, 4]


@pytest.mark.slow
def test_an_operator_and_data_of_ones_own(tmp_path):
    copy_with(tmp_path, 'operator', 'own-data')
    call(tmp_path, 'write_pulse.py')
    call(tmp_path, 'train.py', '--dataset=pulse', '--data_path=pulse.hdf5', '--arch=mlp', '--device=cpu',
         '--max_iters=2', '--out_dir=o')
    assert any(name.startswith('operator.network.head') for name in state_of(tmp_path / 'o')['model'])
    call(tmp_path, 'eval.py', '--ckpt', 'o', '--device', 'cpu')


@pytest.mark.slow
def test_an_equation_and_an_attention_are_evaluated(tmp_path):
    """Their checkpoint finds them."""
    assert len(train(tmp_path, None, 'attention', 'equation')) == 2
    call(tmp_path, 'eval.py', '--ckpt', 'o', '--device', 'cpu', '--json', 'eval.json')
    with open(tmp_path / 'eval.json') as file:
        assert json.load(file)


@pytest.mark.slow
def test_from_elsewhere(tmp_path):
    """Nothing is installed by pip, and a program in another folder finds the modules by PYTHONPATH."""
    pip = [sys.executable, '-m', 'pip', 'install', '--no-deps', '--target', tmp_path / 'site', ROOT]
    done = subprocess.run(pip, cwd=tmp_path, env=ENV, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode and 'nothing_to_install' in done.stderr and not (tmp_path / 'site').exists()
    (tmp_path / 'script.py').write_text('from model import load\n')
    assert re.search(r'^PYTHONPATH=/path/to/nanoupt python script.py', RECIPES, re.MULTILINE)
    for path, code in (('', 1), (ROOT, 0)):
        env = {**ENV, 'PYTHONPATH': path}
        assert subprocess.run([sys.executable, 'script.py'], cwd=tmp_path, env=env, timeout=TIMEOUT,
                              capture_output=True).returncode == code


def test_every_file_is_named_in_the_readme():
    with open(os.path.join(ROOT, 'README.md'), encoding='utf-8') as file:
        readme = file.read()
    files = [name for name in os.listdir(ROOT) if name.endswith('.py')]
    folders = [f'{name}/' for name in os.listdir(ROOT)
               if os.path.exists(os.path.join(ROOT, name, '__init__.py'))]
    for name in files + folders:
        assert f'`{name}`' in readme or f'`{name[:-3]}`' in readme, name
