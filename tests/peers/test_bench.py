"""bench.py and study.py: methods are trained, scored and tabled; what cannot be compared is refused; speed
counts what it should."""
import csv
import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import ENV, ROOT, SMOKE, refused, train_here

import bench
import pdes
import study
from solvers import burgers

ADVECTION = os.path.join(ROOT, 'config', 'advection_cpu.py')


@pytest.fixture
def here(monkeypatch, tmp_path):
    """Work in tmp_path; trainings run in this process, which saves the import of torch, and what is timed
    runs once. -> the arguments of each training"""
    calls = []

    def run_training(code, config, folder, *args, environment={}):
        calls.append(args)
        try:
            train_here(monkeypatch, config, f'--out_dir={folder}', '--patience=0', *args)
        except SystemExit as end:                                    # it was finished before
            assert not end.code
        with open(os.path.join(folder, 'log.csv'), newline='') as file:
            return list(csv.DictReader(file))

    def run_once(run, device, repeats):
        run()
        return 1.

    monkeypatch.chdir(tmp_path)
    for module in (bench, study):
        monkeypatch.setattr(module, 'run_training', run_training)
    monkeypatch.setattr(study, 'median_ms', run_once)
    return calls


def test_peers(here, burgers_file, tmp_path, capsys):
    bench.main(['peers', SMOKE, '--iters=2', '--seeds=2', '--methods', 'ours', 'unet', '--json=p.json',
                '--plot=p.png', f'--data_path={burgers_file}'])
    found = json.loads((tmp_path / 'p.json').read_text())
    assert set(found) == {'ours', 'unet', 'persistence', 'classical'}
    assert (tmp_path / 'p.png').stat().st_size > 1000
    for method in ('ours', 'unet'):
        r = found[method]
        assert {'nrmse', 'seconds', 'n_params', 'iters', 'ms_per_trajectory'} <= r.keys()
        assert len(r['nrmse_seeds']) == 2 and r['nrmse'] == pytest.approx(sum(r['nrmse_seeds']) / 2)
        assert len(r['per_step']) == 40 and r['nrmse'] == pytest.approx(sum(r['per_step']) / 40, rel=1e-4)
        assert r['iters'] == 2 and r['n_params'] > 1e4
        assert [len(curve) for curve in r['validation']] == [2, 2]
    assert 'nRMSE of ours / unet' in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path)) == ['p.json', 'p.png']       # nothing of the runs is left behind
    ours, unet = here[:2]
    same = {'--seed=0', '--max_iters=2', '--eval_interval=1', '--stages=operator'}
    assert same <= set(ours) and same <= set(unet)
    assert {'--latent_tokens=64', '--latent_dim=1', '--arch=unet', '--moving_frame=false'} <= set(unet)


def test_what_is_scored_are_the_best_weights(here, burgers_file, tmp_path):
    """The last weights of a training at an absurd rate are worse than those of its first validations."""
    bench.main(['peers', SMOKE, '--iters=6', '--methods', 'ours', '--json=p.json', '--muon_lr=3',
                '--learning_rate=.3', '--warmup_iters=20', '--ema_decay=0', f'--data_path={burgers_file}'])
    found = json.loads((tmp_path / 'p.json').read_text())['ours']
    errors = [error for _, error in found['validation'][0]]
    assert max(errors) > 2 * min(errors)                             # or the test could not fail
    assert found['nrmse'] < .5 * (min(errors) + max(errors))


def test_minutes_become_an_interval_of_validations(monkeypatch):
    """A tenth of a second an iteration is 600 in a minute; what the last row holds beside iterations is left
    out."""
    rows = [{'iter': 5 * i, 'train_seconds': .5 * i + 7. * (i == 5)} for i in range(1, 6)]
    monkeypatch.setattr(study, 'run_training', lambda *args, **options: rows)
    task = SimpleNamespace(config=SMOKE, source=SimpleNamespace(path='x'))
    assert study.iterations_within(1., task, [], {}) == pytest.approx(600)


def test_an_equation_without_a_moving_frame(monkeypatch, advection_file):
    """Nothing is compared twice, and the baseline is that equation's own solver."""
    monkeypatch.setattr(study, 'package_fno', lambda: None)
    small = '--space_stride=16 --query_stride=16 --latent_tokens=8 --latent_dim=8 --token_shift=0'.split()
    task = study.prepare(ADVECTION, [f'--data_path={advection_file}', *small])
    assert study.possible([], task) == ['ours', 'reencoder', 'ours_plain', 'fno', 'unet']
    assert 'unet_frame' in refused(study.possible, ['unet_frame'], task)
    assert task.y.shape == (2, 41, 64, 1)
    found = study.classical(task)
    assert list(found) == [64, 32, 16, 8]
    errors = [r['nrmse'] for r in found.values()]
    assert errors == sorted(errors) and errors[0] < .05


def test_classical_solver_converges_with_its_grid():
    x = (torch.arange(128, dtype=torch.float64) + .5) / 128
    u0 = torch.stack([torch.sin(2 * torch.pi * x), .5 + torch.cos(2 * torch.pi * x)])
    y = burgers(u0, .05, [0., .05, .1]).cpu()[..., None].float()
    source = SimpleNamespace(entry=pdes.entry('burgers'), params={'Nu': .05}, x=(x.numpy(),))
    task = SimpleNamespace(y=y, dt=.05, source=source, scored=[0], keys={'space_stride': 1})
    found = study.classical(task)
    errors = [found[n]['nrmse'] for n in (128, 64, 32, 16)]
    assert errors == sorted(errors) and errors[0] < 1e-5 and errors[1] < 2e-2


def test_between_walls_the_classical_solver_starts_from_its_own_cells():
    n = 64
    x = (torch.arange(n, dtype=torch.float64) + .5) / n
    u = torch.cos(torch.pi * x)[None, :, None]                       # even at the walls: no flux
    seen = []

    def solution(u0, params, t):
        seen.append(u0)
        return u0[:, None].expand(-1, len(t), *u0.shape[1:])

    entry = SimpleNamespace(solve=True, solution=solution, translates=False, periodic=False, conserved=(),
                            fields=('u',), axes=1, low=(2.,), length=(3.,))
    source = SimpleNamespace(entry=entry, params={}, x=((2 + 3 * x).numpy(),))
    y = u[:, None].expand(1, 3, n, 1)
    found = study.classical(SimpleNamespace(y=y, dt=1., source=source, scored=[0], keys={'space_stride': 1}))
    for factor in (2, 4, 8):
        centres = (torch.arange(n // factor) + .5) / (n // factor)
        [start] = {u0.shape[1]: u0 for u0 in seen if u0.shape[1] == n // factor}.values()
        # a coarse grid's outermost centre lies between the two outermost points: cubic, but one-sided there
        assert (start[0, :, 0] - torch.cos(torch.pi * centres)).abs().max() < 1e-3
    assert found[n]['nrmse'] < 1e-7 and found[32]['nrmse'] < .01


def test_the_classical_row_is_the_coarsest_grid_that_is_as_good():
    y = torch.rand(2, 3, 8, 1)
    run = {'seed': 0, 'nrmse': .1, 'seconds': 1., 'iters': 1, 'n_params': 1, 'ms_per_trajectory': 1.,
           'validation': [], 'per_step': [.1, .1]}
    coarse = {n: {'nrmse': error, 'ms_per_trajectory': 1.} for n, error in ((64, .01), (32, .05), (16, .2))}
    assert study.peers_summary({'ours': [run]}, y, coarse)['classical']['cells'] == 32
    without_ours = study.peers_summary({'unet': [run]}, y, coarse)
    assert without_ours['classical']['cells'] == 64                  # the finest
    assert 'classical' not in study.peers_summary({'ours': [run]}, y, {})


@pytest.mark.parametrize('options, message', [
    (['--minutes=0'], '--minutes'), (['--iters=0'], '--iters'),
    (['--json=no/p.json'], "'no/p.json'"),
    (['--input_frames=2', '--moving_frame=false', '--token_shift=0'], 'one input frame'),
    (['--n_trajectorie=3'], 'n_trajectories'),
    (['--operator_stage.batch_size=4'], 'operator_stage'),
    (['--nu', '.1'], 'is not of nu 0.1'),
    (['--nu', '.1', '.2'], 'one value'),
    (['epochs=3'], 'epochs')])
def test_peers_refuse(here, burgers_file, options, message):
    args = ['peers', SMOKE, f'--data_path={burgers_file}', '--methods=unet', *options]
    assert message in refused(bench.main, args) and not here


def test_peers_without_the_package_of_one(here, burgers_file, monkeypatch):
    monkeypatch.setitem(sys.modules, 'neuralop.models', None)        # as if it were not installed
    monkeypatch.setitem(sys.modules, 'neuralop', None)
    said = refused(bench.main, ['peers', SMOKE, f'--data_path={burgers_file}', '--iters=2'])
    assert 'requirements-peers.txt' in said and not here


# ---------------------------------------------------------------------------------------------
# study

def test_other_numbers_of_tokens_make_a_latent_of_as_many_numbers():
    keys = {'depth': 4, 'hidden_dim': 96, 'n_head': 4, 'latent_tokens': 32, 'latent_dim': 16,
            'patch_size': 8, 'halo': 4, 'token_shift': 20}
    cells = study.study_cells(keys, (512, 1), [16, 32, 64])
    assert len(cells) == 9 and 'pure, standard, 32 tokens' not in cells
    for n, dim, shift in ((16, 32, 20), (64, 8, 7)):
        for arch in ('pure', 'u'):
            method, changes = cells[f'{arch}, standard, {n} tokens']
            wanted = {'arch': arch, 'latent_tokens': n, 'latent_dim': dim, 'token_shift': shift}
            wanted = {f'--{key}={value}' for key, value in wanted.items()}
            assert method == 'ours' and wanted <= set(changes)


def test_tokens_of_a_plane():
    keys = {'depth': 4, 'hidden_dim': 96, 'n_head': 4, 'latent_tokens': 16, 'latent_dim': 32,
            'patch_size': 4, 'halo': 2, 'token_shift': 0}
    cells = study.study_cells(keys, (64, 64, 2), [32])
    assert '--latent_dim=8' in cells['pure, standard, 32 tokens'][1]
    said = refused(study.study_cells, keys, (64, 64, 2), [64, 128])
    assert '128 does not divide' in said
    assert '768 numbers' in refused(study.study_cells, {**keys, 'latent_dim': 3}, (64, 64, 2), [64])


def test_study_runs_what_is_missing_and_tables_what_is_there(here, tmp_path, burgers_file, capsys):
    args = ['study', SMOKE, '--iters=2', '--nu', '.01', '--tokens', '8', '--methods', 'ours', '--out=s',
            f'--data_path={burgers_file}']
    bench.main(args)
    files = sorted(name for name in os.listdir(tmp_path / 's') if name.endswith('.json'))
    before = {name: (tmp_path / 's' / name).read_text() for name in files}
    cells = {json.loads(text)['name']: name for name, text in before.items()}
    assert set(cells) == {'pure, standard', 'pure, channel', 'u, standard', 'u, channel',
                          'pure, standard, 8 tokens', 'u, standard, 8 tokens'}
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(('| pure', '| u'))]
    assert len(rows) == 6 and '| best |' in rows[0]

    lost = cells['u, channel']
    os.remove(tmp_path / 's' / lost)                                 # as if stopped before it was written
    here.clear()
    bench.main(args)
    assert len(here) == 1 and {'--arch=u', '--attention=channel'} <= set(here[0])
    for name in files:
        now = (tmp_path / 's' / name).read_text()
        assert name == lost or before[name] == now
        assert json.loads(before[name])['nrmse'] == json.loads(now)['nrmse']
    args[2] = '--iters=3'
    assert 'another study' in refused(bench.main, args)


def test_parts_of_a_study_are_all_of_it(here, tmp_path, burgers_file):
    """Two processes share the cells; nobody does one twice."""
    for part in ('0/2', '1/2'):
        bench.main(['study', SMOKE, '--iters=1', '--tokens', '16', '--methods', 'ours', '--out=s',
                    f'--part={part}', f'--data_path={burgers_file}'])
    assert len(here) == 4
    assert len([name for name in os.listdir(tmp_path / 's') if name.endswith('.json')]) == 4
    assert 'i/n' in refused(bench.main, ['study', SMOKE, '--part=2/2'])


@pytest.mark.slow
def test_a_terminated_bench_takes_its_training_along(tmp_path, burgers_file):
    log = tmp_path / 's' / 'pure-standard-nu_0.01-seed_0' / 'log.csv'
    args = ['study', SMOKE, '--iters=1000000', '--tokens=16', '--methods=ours', '--out=s',
            f'--data_path={burgers_file}']
    child = subprocess.Popen([sys.executable, os.path.join(ROOT, 'bench.py'), *args], cwd=tmp_path, env=ENV,
                             stdout=subprocess.DEVNULL)
    try:
        while not log.exists():
            assert child.poll() is None
            time.sleep(.1)
        child.send_signal(signal.SIGTERM)
        assert child.wait() == 128 + signal.SIGTERM
        with open(log.with_name('lock')) as lock:                    # a training holds it while it lives
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert log.with_name('last.pt').exists()
    finally:
        child.kill()


# ---------------------------------------------------------------------------------------------
# zoo

def test_zoo_tables_what_is_there(here, tmp_path, burgers_file, capsys):
    args = ['zoo', SMOKE, '--iters=2', '--methods=ours', '--out=z', f'--json={tmp_path}/z.json',
            f'--data_path={burgers_file}']
    bench.main(args)
    assert len(here) == 1
    name, = (name for name in os.listdir(tmp_path / 'z') if name.endswith('.json'))
    assert name == 'burgers_smoke-ours-nu_0.01-seed_0.json'
    own = json.loads((tmp_path / 'z' / name).read_text())
    peer = {**own, 'name': 'burgers_smoke, fno_frame', 'nrmse': 2 * own['nrmse']}
    (tmp_path / 'z' / 'peer.json').write_text(json.dumps(peer))
    capsys.readouterr()
    bench.main(args)
    assert len(here) == 1                                            # nothing is trained again
    row = capsys.readouterr().out.splitlines()[-1].split(' | ')
    assert row[:3] == ['| burgers_smoke', '64 x 1', '16 x 16'] and row[7] == '0.50'
    summary = json.loads((tmp_path / 'z.json').read_text())['burgers_smoke']
    assert summary['ours'][0]['reencode'] > 0 and summary['fno'][0]['method'] == 'fno_frame'
    assert 0 < summary['persistence'] < 10 and summary['steps'] == 40 and summary['classical']


def test_what_diverged_is_never_the_best(tmp_path, capsys):
    for name, error in (('a', math.nan), ('b', .2), ('c', math.inf)):
        run = {'what': {}, 'name': name, 'data': 'x', 'nrmse': error, 'iters': 1, 'seconds': 1.,
               'n_params': 1}
        (tmp_path / f'{name}.json').write_text(json.dumps(run))
    (tmp_path / 'summary.json').write_text('{}')                     # a file of another kind
    study.study_table(tmp_path)
    rows = [line.split(' | ') for line in capsys.readouterr().out.splitlines()[2:5]]
    assert rows[0][0] == '| b' and rows[0][-1] == 'best |' and {row[0] for row in rows[1:]} == {'| a', '| c'}
    assert study.small(math.nan) == 'nan' and study.small(math.inf) == 'inf'


@pytest.mark.parametrize('command', ['study', 'zoo'])
def test_tables_without_a_place_for_a_method_refuse_it(here, command):
    assert 'unet: only ours, fno here' in refused(bench.main, [command, SMOKE, '--methods', 'ours', 'unet'])
    assert not here


def test_the_cheapest_grid_that_is_good_enough():
    found = {'64': {'nrmse': .01, 'ms_per_trajectory': 4.}, '32': {'nrmse': .02, 'ms_per_trajectory': 2.},
             '16': {'nrmse': .08, 'ms_per_trajectory': 1.}}
    assert study.solver_at(.03, found).startswith('2.0 (32 cells')
    assert study.solver_at(.001, found).startswith('4.0 (64 cells')
    assert study.solver_at(.001, {}) == 'none'


def test_a_training_that_fails_is_a_user_error(tmp_path, burgers_file):
    said = refused(study.run_training, ROOT, SMOKE, str(tmp_path / 'r'), f'--data_path={burgers_file}.lost')
    assert 'exit code 1' in said


# ---------------------------------------------------------------------------------------------
# speed

def test_speed_counts_the_flops_of_the_blocks(tmp_path, burgers_file, capsys):
    """By hand, forward: 24 D² a token and block in the linear layers, 4 S D in the attention; twice that
    backward."""
    plain = '--encoder_dim=0 --decoder_dim=0 --lambda_inverse_encoding=0'.split()
    bench.main(['speed', SMOKE, '--repeats=1', '--modes=eager', f'--json={tmp_path}/s.json', *plain,
                f'--data_path={burgers_file}'])
    found = json.loads((tmp_path / 's.json').read_text())
    assert [r['mode'] for r in found] == ['eager']
    B, K, S, D, depth = 8, 2, 16, 32, 2
    blocks = 3 * B * K * S * depth * (24 * D ** 2 + 4 * S * D)
    assert blocks < found[0]['flops_per_iteration'] < 1.2 * blocks
    assert set(found[0]['share']) == {'encoder', 'operator', 'decoder', 'optimiser', 'losses and the rest'}
    assert found[0]['matmul_flops_per_second'] > 0 and found[0]['memory_gb'] > 0
    assert 'burgers_smoke.py' in capsys.readouterr().out


def test_one_config_that_fails_does_not_stop_the_others(monkeypatch, tmp_path, capsys):
    def run(command, stdout):
        path = next(arg for arg in command if arg.startswith('--json=')).removeprefix('--json=')
        if 'bad.py' in command:
            return SimpleNamespace(returncode=1)
        with open(path, 'w') as file:
            json.dump([{'mode': next(arg for arg in command if arg.startswith('--modes='))}], file)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(bench, 'subprocess', SimpleNamespace(run=run, DEVNULL=None))
    found = bench.time_all(['bad.py', 'good.py'], ['eager', 'bf16'], [], 1)
    assert [r['mode'] for r in found] == ['--modes=eager', '--modes=bf16']
    assert capsys.readouterr().out.count('bad.py') == 2
    assert 'nothing' in refused(bench.time_all, ['bad.py'], ['eager'], [], 1)


@pytest.mark.parametrize('ms, sizes', [(70., [256]), (20., [256, 512, 1024, 2048])])
def test_the_matrix_product_stays_small_where_it_is_slow(monkeypatch, ms, sizes):
    seen = []

    def median_ms(run, device, repeats):
        seen.append(run.__defaults__[0].shape[0])
        return ms

    monkeypatch.setattr(bench, 'median_ms', median_ms)
    rate = bench.matmul_rate(torch.device('cpu'), torch.float32)
    assert seen == sizes and rate == pytest.approx(2 * sizes[-1] ** 3 / (ms / 1e3))


def test_slow_calls_are_repeated_less(monkeypatch):
    """A clock that a call moves on by so many seconds."""
    now = [0.]
    monkeypatch.setattr(study.time, 'perf_counter', lambda: now[0])

    def calls_of(seconds):
        n = 0

        def run():
            nonlocal n
            n += 1
            now[0] += seconds

        assert study.median_ms(run, torch.device('cpu'), 20) == pytest.approx(1e3 * seconds)
        return n

    assert [calls_of(seconds) for seconds in (.01, 1., 60.)] == [23, 5, 1]


def test_speed_against_another_tree(here, tmp_path, burgers_file, capsys):
    bench.main(['speed', SMOKE, '--against', ROOT, '--rounds=1', '--json=s.json',
                f'--data_path={burgers_file}'])
    assert 'ratio' in capsys.readouterr().out
    ms = json.loads((tmp_path / 's.json').read_text())[SMOKE]
    assert len(ms['here']) == len(ms['there']) == 1 and len(here) == 2
    assert "no train.py in '/no'" in refused(bench.main, ['speed', SMOKE, '--against=/no'])


@pytest.mark.parametrize('error, text', [
    (.52, '0.5200'), (.0018, '0.0018'), (.00018, '0.00018'), (.0000789, '0.000079'), (1e-9, '<0.000001')])
def test_small_errors_keep_two_figures(error, text):
    assert study.small(error) == text
