"""dev/: studies of many trainings, linear latents, the measures of the house."""
import json
import math
import os
from types import SimpleNamespace

import pytest

import test_bench
from conftest import ROOT, SMOKE, refused
from dev import floor, house, latents, networks, resolution, study, trainings
from evaluation.break_even import pays_after
from files.write import write_file
from runtime.configurator import UserError

here = test_bench.here                 # a fixture


# ---------------------------------------------------------------------------------------------
# study

def test_other_numbers_of_tokens_make_a_latent_of_as_many_numbers():
    keys = {'depth': 4, 'hidden_dim': 96, 'n_head': 4, 'latent_tokens': 32, 'latent_dim': 16,
            'patch_size': 8, 'halo': 4, 'token_shift': 20}
    found = study.study_trainings(keys, (512, 1), [16, 32, 64])
    assert len(found) == 9 and 'pure, standard, 32 tokens' not in found
    for n, dim, shift in ((16, 32, 20), (64, 8, 7)):
        for arch in ('pure', 'u'):
            method, changes = found[f'{arch}, standard, {n} tokens']
            wanted = {'arch': arch, 'latent_tokens': n, 'latent_dim': dim, 'token_shift': shift}
            assert method == 'ours' and {f'--{key}={value}' for key, value in wanted.items()} <= set(changes)
    plane = {**keys, 'latent_tokens': 16, 'latent_dim': 32}
    assert '--latent_dim=8' in study.study_trainings(plane, (64, 64, 2), [32])['pure, standard, 32 tokens'][1]
    assert '128 does not divide' in refused(study.study_trainings, plane, (64, 64, 2), [128])
    assert 'three blocks at least' in refused(study.study_trainings, {**plane, 'depth': 2}, (64, 64, 2), [])
    assert '768 numbers' in refused(study.study_trainings, {**plane, 'latent_dim': 3}, (64, 64, 2), [64])


@pytest.mark.slow
def test_study_runs_what_is_missing_and_tables_what_is_there(here, tmp_path, burgers_file, capsys):
    args = ['study', SMOKE, '--iters=1', '--depth=3', '--nu', '.01', '--tokens', '8', '--methods', 'ours', '--out=s',
            '--time_stride=25', f'--data_path={burgers_file}']
    study.main([*args, '--part=0/3'])
    files = sorted(name for name in os.listdir(tmp_path / 's') if name.endswith('.json'))
    found = {json.loads((tmp_path / 's' / name).read_text())['name'] for name in files}
    assert found == {'pure, standard', 'u, channel'} and len(here) == 3
    capsys.readouterr()
    study.main([*args, '--part=0/3'])
    assert len(here) == 4                                            # keys and data are read again
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith('| ')]
    assert len(table) == 3 and table[1].endswith('best |')
    assert 'other keys' in refused(study.main, [*args, '--hidden_dim=16'])
    assert 'not i/n' in refused(study.main, [*args, '--part=2/2'])
    assert 'unet' in refused(study.main, [*args, '--methods', 'ours', 'unet'])


def test_what_diverged_is_never_the_best(tmp_path, capsys):
    for name, error in (('a', math.nan), ('b', .2), ('c', math.inf)):
        run = {'what': {}, 'name': name, 'data': 'x', 'nrmse': error, 'iters': 1, 'seconds': 1.,
               'n_params': 1}
        (tmp_path / f'{name}.json').write_text(json.dumps(run))
    (tmp_path / 'summary.json').write_text('{}')                     # a file of another kind
    study.study_table(tmp_path)
    rows = [line.split(' | ') for line in capsys.readouterr().out.splitlines()[2:5]]
    assert rows[0][0] == '| b' and rows[0][-1] == 'best |' and {row[0] for row in rows[1:]} == {'| a', '| c'}


@pytest.mark.slow
def test_zoo(here, tmp_path, burgers_file, capsys):
    args = ['zoo', SMOKE, '--iters=2', '--methods=ours', '--out=z', '--json=z.json', '--time_stride=25',
            f'--data_path={burgers_file}']
    study.main(args)
    [own] = trainings.results_in(tmp_path / 'z')
    peer = {**own, 'name': 'burgers_smoke, fno_frame', 'nrmse': 2 * own['nrmse']}
    (tmp_path / 'z' / 'peer.json').write_text(json.dumps(peer))
    n = len(here)
    capsys.readouterr()
    study.main(args)
    assert len(here) == n + 1                                        # nothing is trained again
    lines = capsys.readouterr().out.splitlines()
    errors, times = [line.split(' | ') for line in lines if line.startswith('| burgers_smoke')]
    assert errors[:3] == ['| burgers_smoke', '64 x 1', '16 x 16'] and errors[7] == '0.50 |'
    assert len(times) == 8 and ' cells: ' in times[3]
    summary = json.loads((tmp_path / 'z.json').read_text())['burgers_smoke']
    assert summary['ours'][0]['reencode'] > 0 and summary['fno'][0]['method'] == 'fno_frame'
    assert 0 < summary['persistence'] < 10 and summary['steps'] == 8 and summary['classical']
    assert summary['data_seconds'] > 0 and set(summary['break_even']) == {'ours', 'fno'}


def test_after_how_many_trajectories_a_model_pays():
    """30 s of training and data. Alone, 32 cells are the fastest that err no more than .03 (3 ms are saved), in
    batches 64 cells are, no faster than the model."""
    found = {'64 cells': {'nrmse': .01, 'ms_of_one': 6., 'ms_per_trajectory': 1.},
             '32 cells': {'nrmse': .02, 'ms_of_one': 5., 'ms_per_trajectory': 1.5},
             '16 cells': {'nrmse': .08, 'ms_of_one': 1., 'ms_per_trajectory': .1}}
    own = {'one': 2., 'batch': 1.}
    solvers, pays = pays_after(30., .03, own, found)
    assert solvers == {'one': '32 cells', 'batch': '64 cells'} and pays == {'one': 10_000, 'batch': None}
    row = {'classical': found, 'solver': {'ours': solvers}, 'break_even': {'ours': pays}}
    assert study.solver_at(row, 'one') == '5 (32 cells: 0.0200)' and study.pays(row, 'ours', 'batch') == 'never'
    solvers, pays = pays_after(30., .001, own, found)
    assert solvers == {'one': None, 'batch': None} and pays == {}
    row = {'classical': found, 'solver': {'ours': solvers}, 'break_even': {'ours': pays}}
    assert study.solver_at(row, 'one') == 'none' and study.pays(row, 'ours', 'one') == study.pays(row, 'fno', 'one') == '-'
    assert study.solver_at({'solver': {}}, 'one') == 'none'          # an equation without a solver


# ---------------------------------------------------------------------------------------------
# resolution

def test_a_picture_of_the_resolution_claim(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    of_factor = {'1': {'nrmse': .1, 'given': .1, 'floor': 0.}, '4': {'nrmse': .2, 'given': .12, 'floor': .05}}
    with open('ours.json', 'w') as file:
        json.dump({'superres': of_factor}, file)
    with open('none.json', 'w') as file:
        json.dump({}, file)
    assert resolution.panels_of(['Burgers=ours.json,ours.json'])['Burgers'][0][4]['given'] == .12
    resolution.main(['claim.png', 'Burgers=ours.json,ours.json', 'Darcy=ours.json,ours.json'])
    assert (tmp_path / 'claim.png').stat().st_size > 5000
    assert 'superres' in refused(resolution.main, ['claim.png', 'Burgers=ours.json,none.json'])
    assert 'NAME=FILE,FILE' in refused(resolution.main, ['claim.png', 'Burgers=ours.json'])


# ---------------------------------------------------------------------------------------------
# networks

@pytest.mark.parametrize('optimum, tried', [
    (1., [.5, 1., 2.]), (8., [.5, 1., 2., 4., 8., 16.]), (.1, [.0625, .125, .25, .5, 1., 2.]),
    (1e6, [.5, 1., 2., 4., 8., 16., 32.])])
def test_the_best_rate_is_not_at_the_end_of_those_tried(optimum, tried):
    best, errors = networks.best_rate(1., lambda rate: max(rate / optimum, optimum / rate))
    assert sorted(errors) == tried and best == min(tried, key=lambda rate: abs(math.log(rate / optimum)))


def test_a_rate_that_diverges_is_not_the_best():
    best, errors = networks.best_rate(1., lambda rate: math.nan if rate > .9 else rate)
    assert best == min(errors) and errors[2.] == math.inf


def test_a_seed_that_diverges_ends_no_study(monkeypatch, capsys):
    """Two seeds at the best of three rates, of which the second and the largest rate diverge. Other errors go on."""
    def train_once(full_name, name, changes, task, budget, seed, folder, diverged):
        rate = float(full_name.split()[-1])
        if seed or rate == .002:
            return diverged
        best = .1 + .1 * abs(math.log(rate / .001))
        return {'seed': seed, 'validation': [(1., .3), (2., best), (3., .2)], 'nrmse': .1, 'iters': 7, 'seconds': 3.,
                'n_params': 1000, 'threads': 1, 'device': 'A CPU', 'commit': 'abc'}

    monkeypatch.setattr(networks, 'train_once', train_once)
    args = SimpleNamespace(seeds=2, budget={'minutes': 5.})
    row = networks.compared('unet', 'adamw', SimpleNamespace(has_moving_frame=False), args, 'out')
    assert row['rate'] == .001 and row['tried']['0.0005'] == pytest.approx(.1693, abs=1e-4) and row['tried']['0.002'] == math.inf
    assert row['runs'][0]['iters'] == 7 and row['runs'][0]['validation'] == .1 and row['runs'][1] == {
        'seed': 1, 'nrmse': math.inf, 'validation': math.inf}
    networks.table([row])
    assert '| unet | adamw | 0.001 | 3 | 1,000 | 7 | inf (0.1000 inf) |' in capsys.readouterr().out
    monkeypatch.setattr(networks, 'train_once', lambda *args: args[-1])
    row = networks.compared('unet', 'adamw', SimpleNamespace(has_moving_frame=False), args, 'out')
    assert [run['nrmse'] for run in row['runs']] == [math.inf, math.inf]


def test_what_loop_and_network_bring(capsys):
    """Quotients of means over seeds, by hand; a network with one optimiser has none."""
    errors = {('ours', 'adamw'): [.02, .04], ('ours', 'muon'): [.01, .02], ('fno', 'adamw'): [.06, .06],
              ('fno', 'muon'): [.04, .02], ('unet', 'muon'): [.05]}
    rows = [{'network': name, 'optimizer': optimizer, 'runs': [{'nrmse': error} for error in found]}
            for (name, optimizer), found in errors.items()]
    networks.quotients(rows)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == ['| ours | 0.50 | 1.00 | 1.00 |', '| fno | 0.50 | 0.50 | 0.50 |']
    networks.quotients(rows[2:4])
    assert capsys.readouterr().out.splitlines()[2] == '| fno | 0.50 | nan | nan |'
    networks.quotients(rows[4:])
    assert capsys.readouterr().out == ''


def test_a_training_that_diverged_is_not_run_again(monkeypatch, tmp_path):
    said = ['the loss is nan: see out/nan_dump.pt', 'the disk is full']

    def train_and_score(*args):
        raise UserError(said.pop(0))

    monkeypatch.setattr(trainings, 'train_and_score', train_and_score)
    monkeypatch.setattr(trainings, 'changes_of', lambda method, task: [])
    task = SimpleNamespace(keys={'seed': 0}, sources=[], source=SimpleNamespace(params={}))
    args = ['unet', 'unet', [], task, {'minutes': 5.}, 0, str(tmp_path)]
    for _ in range(2):
        result = trainings.train_once(*args, {'nrmse': math.inf})
        assert result['nrmse'] == math.inf and said == ['the disk is full']
    assert 'disk' in refused(trainings.train_once, 'fno', *args[1:], {'nrmse': math.inf})
    said.append('see nan_dump.pt')
    assert 'nan_dump' in refused(trainings.train_once, 'ours', *args[1:])


@pytest.mark.slow
def test_networks_in_one_loop(here, tmp_path, burgers_file, capsys, monkeypatch):
    """Both optimisers at the best of three rates; what is there is not trained again."""
    monkeypatch.setattr(networks, 'MOST', 3)
    args = [SMOKE, '--iters=1', '--methods', 'unet', '--out=n', '--json=n.json', '--time_stride=25',
            f'--data_path={burgers_file}', '--hidden_dim=8']
    networks.main(args)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith('| ')]
    assert len(lines) == 5 and all(line.startswith('| unet | ') for line in [*lines[1:3], lines[4]])
    rows = json.loads((tmp_path / 'n.json').read_text())
    assert [row['optimizer'] for row in rows] == ['adamw', 'muon'] and all(len(row['tried']) == 3 for row in rows)
    with open(tmp_path / 'n' / f'unet-muon_{rows[1]["rate"]:g}-nu_0.01-seed_0' / 'config.json') as file:
        keys = json.load(file)
    assert keys['optimizer'] == 'muon' and keys['moving_frame'] and keys['arch'] == 'unet'
    n = len(here)
    networks.main(args)
    assert len(here) == n + 1                                        # keys and data are read again
    assert 'pdet' in refused(networks.main, [*args, '--methods', 'ours_plain'])


@pytest.mark.parametrize('error, text', [
    (.52, '0.5200'), (.00018, '0.00018'), (.0000789, '0.000079'), (1e-9, '<0.000001'), (math.nan, 'nan')])
def test_small_errors_keep_two_figures(error, text):
    assert study.small(error) == text


# ---------------------------------------------------------------------------------------------
# linear latents, learned latents

def test_floor_of_linear_latents(here, burgers_file, tmp_path, capsys):
    floor.main([SMOKE, f'--data_path={burgers_file}', '--json=floor.json', '--plot=floor.png'])
    rows = json.loads((tmp_path / 'floor.json').read_text())['burgers_smoke']
    assert (tmp_path / 'floor.png').stat().st_size > 0
    by_tokens = {}
    for row in rows:
        by_tokens.setdefault(row['tokens'], []).append(row)
    assert len(by_tokens) == 3
    for rows in by_tokens.values():
        for kind in ('cosine', 'patches', 'fields'):
            errors = [row[kind] for row in rows if row[kind] is not None]
            assert errors == sorted(errors) and errors[0] < .2       # fewer numbers, larger errors
        for row in rows[:2]:
            assert row['fields'] < 1.1 * row['patches'] < 1.3 * row['cosine']
    assert '| times fewer numbers |' in capsys.readouterr().out


def test_floor_of_a_steady_equation(here, tmp_path):
    """The start of its solution is 0, which no relative error is defined for."""
    path = write_file(str(tmp_path / 'd.hdf5'), 'darcy', {'beta': 1.}, 20, device='cpu', resolution=16)
    config = os.path.join(ROOT, 'config', 'darcy_cpu.py')
    floor.main([config, f'--data_path={path}', '--latent_tokens=4', '--latent_dim=8', '--json=floor.json'])
    rows = json.loads((tmp_path / 'floor.json').read_text())['darcy_cpu']
    errors = [row[kind] for row in rows for kind in ('cosine', 'patches') if row[kind] is not None]
    assert errors and all(math.isfinite(error) for error in errors)


def test_keys_of_a_config_are_not_options_of_a_study(monkeypatch, tmp_path):
    """--seed is not short for --seeds."""
    def prepare(config, overrides):
        raise UserError(' '.join(overrides))

    monkeypatch.setattr(latents, 'prepare', prepare)
    assert refused(latents.main, [SMOKE, '--seed=3', f'--out={tmp_path}']) == '--seed=3'


@pytest.mark.slow
def test_latents_of_fewer_numbers(here, burgers_file, tmp_path, capsys):
    latents.main([SMOKE, '--iters=2', '--factors', '8', '--out=l', '--plot=l.png', '--time_stride=25',
                  f'--data_path={burgers_file}'])
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith('| 8 ')]
    assert len(table) == len(latents.TRAININGS)
    assert (tmp_path / 'l.png').stat().st_size > 0


# ---------------------------------------------------------------------------------------------
# house

def test_tokens_a_line():
    text = '"""Two\nlines."""\n# a comment\nx = f(1,\n      y)\n\ndef f():\n    """One."""\n    return x\n'
    n_tokens = len('x = f ( 1 , y )'.split() + 'def f ( ) :'.split() + 'return x'.split())
    assert house.tokens_a_line(text) == n_tokens / 4


def test_imports_and_circles():
    modules = {'a', 'b', 'p', 'p.c'}
    text = 'import b\nfrom p import c, d\nimport torch\ndef f():\n    import a\n'
    assert house.imports(text, modules) == ({'b', 'p.c', 'p'}, {'a'})
    assert house.in_circles({'a': {'b'}, 'b': {'c'}, 'c': {'b'}, 'd': {'a'}}) == ['b', 'c']


def test_imports_go_down_only():
    """There is no circle of imports, and no script that imports a script."""
    circles, _, pairs = house.arrows(*house.sources())
    assert not circles and not pairs
