"""bench.py, peers/compare.py, evaluation/speed.py: methods are trained, scored and tabled; what cannot be
compared is refused; speed counts what it should."""
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

import bench
import equations
from conftest import ENV, ROOT, SMOKE, refused, train_here
from equations.burgers import burgers
from evaluation import speed
from evaluation.break_even import break_even, cheapest, classical, no_solver, report as break_even_report, seconds_of_data
from peers import compare, report
from runtime.paths import lock

ADVECTION = os.path.join(ROOT, 'config', 'advection_cpu.py')


@pytest.fixture
def here(monkeypatch, tmp_path):
    """Work in tmp_path; trainings run in this process, which saves the import of torch, and what is timed
    runs once. -> the arguments of each training"""
    calls = []

    def run_training(config, folder, *args, code=ROOT):
        calls.append(args)
        try:
            train_here(monkeypatch, config, f'--out_dir={folder}', '--patience=0', *args)
        except SystemExit as end:                                    # it was finished before
            assert not end.code
        return compare.read_log(folder)

    def run_once(run, device, repeats):
        run()
        return 1.

    monkeypatch.chdir(tmp_path)
    for module in (bench, compare):
        monkeypatch.setattr(module, 'run_training', run_training)
    for module in (compare, speed):
        monkeypatch.setattr(module, 'median_ms', run_once)
    return calls


# ---------------------------------------------------------------------------------------------
# peers

@pytest.mark.slow
def test_peers(here, burgers_file, tmp_path, capsys):
    bench.main(['peers', SMOKE, '--iters=2', '--seeds=2', '--methods', 'ours', 'unet', '--json=p.json',
                '--plot=p.png', '--time_stride=25', f'--data_path={burgers_file}'])
    found = json.loads((tmp_path / 'p.json').read_text())
    assert set(found) == {'ours', 'unet', 'persistence', 'classical'}
    for method in ('ours', 'unet'):
        r = found[method]
        assert {'nrmse', 'seconds', 'n_params', 'iters', 'ms_per_trajectory'} <= r.keys()
        assert len(r['nrmse_seeds']) == 2 and r['nrmse'] == pytest.approx(sum(r['nrmse_seeds']) / 2)
        assert len(r['per_step']) == 8 and r['nrmse'] == pytest.approx(sum(r['per_step']) / 8, rel=1e-4)
        assert r['iters'] == 2 and [len(curve) for curve in r['validation']] == [2, 2]
    assert 'nRMSE of ours / unet' in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path)) == ['p.json', 'p.png']       # nothing of the runs is left behind
    _, ours, unet = here[:3]                                         # the first one reads keys and data
    same = {'--seed=0', '--operator_stage.max_iters=2', '--eval_interval=1', '--stages=operator'}
    assert same <= set(ours) and same <= set(unet)
    assert {'--latent_tokens=64', '--latent_dim=1', '--arch=unet', '--moving_frame=false'} <= set(unet)


@pytest.mark.slow
def test_the_best_weights_are_scored(here, burgers_file, tmp_path):
    """The last weights of a training at an absurd rate are worse than those of its first validations."""
    bench.main(['peers', SMOKE, '--iters=6', '--methods', 'ours', '--json=p.json', '--muon_lr=3',
                '--learning_rate=.3', '--warmup_iters=20', '--ema_decay=0', f'--data_path={burgers_file}'])
    found = json.loads((tmp_path / 'p.json').read_text())['ours']
    errors = [error for _, error in found['validation'][0]]
    assert max(errors) > 2 * min(errors)                             # or the test could not fail
    assert found['nrmse'] < .5 * (min(errors) + max(errors))


def test_minutes_become_an_interval_of_validations(monkeypatch):
    """A tenth of a second an iteration is 600 in a minute; 90 seconds in which a part was compiled again are left out."""
    rows = [{'iter': 5 * i, 'train_seconds': .5 * i + 90. * (i > 2)} for i in range(1, 6)]
    monkeypatch.setattr(compare, 'run_training', lambda *args, **options: rows)
    task = SimpleNamespace(config=SMOKE, sources=[SimpleNamespace(path='x')])
    assert compare.iterations_within(1., task, []) == pytest.approx(600)


def test_an_equation_without_a_moving_frame(here, monkeypatch, advection_file):
    """Nothing is compared twice, and the baseline is the equation's own solver."""
    monkeypatch.setattr(compare, 'package_fno', lambda: None)
    small = '--space_stride=16 --latent_tokens=8 --latent_dim=8 --token_shift=0'.split()
    task = compare.prepare(ADVECTION, [f'--data_path={advection_file}', *small])
    assert compare.possible([], task) == ['ours', 'ours_plain', 'fno', 'unet', 'transolver', 'pdet']
    assert 'unet_frame' in refused(compare.possible, ['unet_frame'], task)
    assert task.y.shape == (2, 41, 64, 1)
    found = classical(task.sources, task.cfg, task.y)
    assert list(found) == [f'{n} cells' for n in (1024, 64, 48, 32, 24, 16, 8)]      # that of the file first
    errors = [r['nrmse'] for r in found.values()]
    assert errors[1:] == sorted(errors[1:]) and errors[1] < .05 and errors[0] < 1.01 * errors[1]


def solved(entry, x, y, dt, **params):
    """What `classical` takes for the frames y of an equation whose points are x."""
    source = SimpleNamespace(entry=entry, params=params, shape=(len(x),), pde='an equation')
    cfg = SimpleNamespace(dt=dt, grid=(len(x),), predicted=(0,), periodic=entry.periodic, length=entry.length,
                          low=entry.low, first=(float(x[0]),))
    return [source], cfg, y


def test_the_classical_solver_converges_with_its_grid():
    x = (torch.arange(128, dtype=torch.float64) + .5) / 128
    u0 = torch.stack([torch.sin(2 * torch.pi * x), .5 + torch.cos(2 * torch.pi * x)])
    y = burgers(u0, .05, [0., .05, .1]).cpu()[..., None].float()
    found = classical(*solved(equations.entry('burgers'), x, y, .05, Nu=.05))
    errors = [found[f'{n} cells']['nrmse'] for n in (128, 64, 32, 16)]
    assert errors == sorted(errors) and errors[0] < 1e-5 and errors[1] < 2e-2


def test_between_walls_the_classical_solver_starts_from_its_own_cells():
    n = 64
    x = (torch.arange(n, dtype=torch.float64) + .5) / n
    u = torch.cos(torch.pi * x)[None, :, None]                       # even at the walls: no flux
    seen = {}

    def solution(u0, params, t):
        seen[u0.shape[1]] = u0
        return u0[:, None].expand(-1, len(t), *u0.shape[1:])

    entry = SimpleNamespace(solve=True, solution=solution, translation_invariant=False, periodic=False,
                            conserved=(), fields=('u',), axes=1, domain='', low=(2.,), length=(3.,), positive=(),
                            space=((2., 5.),), cheaper=())
    found = classical(*solved(entry, 2 + 3 * x, u[:, None].expand(1, 3, n, 1), 1.))
    for cells in (32, 16, 8):
        centres = (torch.arange(cells) + .5) / cells
        # a coarse grid's outermost centre lies between the two outermost points: cubic, but one-sided there
        assert (seen[cells][0, :, 0] - torch.cos(torch.pi * centres)).abs().max() < 1e-3
    assert found['64 cells']['nrmse'] < 1e-7 and found['32 cells']['nrmse'] < .01


def test_break_even_by_hand():
    """300 s of training and 100 s of data, 20 ms saved a trajectory: 20,000. No saving: never."""
    assert break_even(400., 25., 5.) == 20_000
    assert break_even(400., 5., 5.) is None and break_even(400., 4., 5.) is None
    found = {name: {'nrmse': error, 'ms_of_one': ms} for name, error, ms in (('64', .01, 4.), ('32', .05, 2.),
                                                                           ('16, fast', .04, 1.))}
    assert [cheapest(error, found, 'one') for error in (.06, .045, .02, .001, math.nan)] == [
        '16, fast', '16, fast', '64', None, None]


def test_cheaper_settings_are_tried(monkeypatch):
    """Navier-Stokes: with as many cells inside as given, and with longer steps, it is faster and errs more."""
    entry = equations.entry('navier-stokes')
    n = 16
    source = SimpleNamespace(entry=entry, params={'Nu': .01}, shape=(n, n), pde='navier-stokes')
    x = (torch.arange(n, dtype=torch.float64) + .5) / n
    cfg = SimpleNamespace(dt=.5, grid=(n, n), predicted=(0,), periodic=True, length=(1., 1.), low=(0., 0.),
                          first=(.5 / n, .5 / n))
    w0 = torch.sin(2 * torch.pi * (x[:, None] + x)) + torch.cos(4 * torch.pi * x)[:, None]
    y = entry.solution(w0[None, ..., None], {'Nu': .01}, [0., .5, 1.]).float()
    found = classical([source], cfg, y)
    assert list(found)[:3] == ['16 cells', '16 cells, refine=1', '16 cells, refine=1, cfl=3']
    errors = [r['nrmse'] for r in found.values()]
    assert errors[0] < 1e-6 < errors[1] < errors[2] < .05 and errors[3] < .05       # of 8 cells
    assert all(r['ms_per_trajectory'] <= r['ms_of_one'] for r in found.values())


def test_where_there_is_no_solver():
    entry = SimpleNamespace(solve=None, domain='')
    other = SimpleNamespace(solve=1, domain='distance')
    here = SimpleNamespace(solve=1, domain='')
    sources = [SimpleNamespace(entry=e, pde='x') for e in (entry, other, here)]
    assert 'no built-in solver' in no_solver(sources[:1]) and 'from rest' in no_solver(sources[1:2])
    assert 'one file, not 2' in no_solver(sources[2:] * 2) and no_solver(sources[2:]) == ''


def test_a_model_that_is_better_than_every_solution(monkeypatch):
    monkeypatch.setattr('evaluation.break_even.classical', lambda *args: {'8 cells': {'nrmse': .1}})
    model = SimpleNamespace(device=torch.device('cpu'), cfg=None)
    task = SimpleNamespace(model=model, sources=[], u=torch.zeros(1, 2, 8, 1), initial_step=1)
    assert 'none of 1 solutions has an error of 0.01' in refused(break_even_report, task, .01, 1., 10)


def test_seconds_of_data(monkeypatch):
    """A clock that counts a second for a batch and .1 s for each trajectory: 100 are made in batches of 32, in
    1 + 3.2 s each. A batch that takes long is not made."""
    clock = [0.]
    sizes = []

    def solution(u0, params, t):
        sizes.append(len(u0))
        clock[0] += each[0] * (10 + len(u0))
        return u0

    monkeypatch.setattr('evaluation.break_even.time.perf_counter', lambda: clock[0])
    entry = SimpleNamespace(start=lambda n, cells: torch.zeros(n, *cells, 1), solution=solution)
    source = SimpleNamespace(entry=entry, n_frames=3, dt=1., shape=(1024,), fields=('u',), params={})
    each = [.1]
    assert seconds_of_data(source, 100) == pytest.approx(4.2 * 100 / 32) and sizes == [1, 4, 32]
    each = [10.]
    sizes.clear()
    assert seconds_of_data(source, 100) == pytest.approx(420 * 100 / 32) and sizes == [1, 4]


def test_the_classical_row_is_the_coarsest_grid_that_is_as_good():
    y = torch.rand(2, 3, 8, 1)
    task = SimpleNamespace(y=y, truth=y)
    run = {'seed': 0, 'nrmse': .1, 'seconds': 1., 'iters': 1, 'n_params': 1, 'ms_per_trajectory': 1.,
           'validation': [], 'per_step': [.1, .1]}
    coarse = {n: {'nrmse': error, 'ms_per_trajectory': ms} for n, error, ms in (('64', .01, 3.), ('32', .05, 2.),
                                                                              ('16', .2, 1.))}
    assert report.peers_summary({'ours': [run]}, task, coarse)['classical']['solver'] == '32'
    assert report.peers_summary({'unet': [run]}, task, coarse)['classical']['solver'] == '64'   # the finest
    assert 'classical' not in report.peers_summary({'ours': [run]}, task, {})


@pytest.mark.parametrize('options, message', [
    (['--minutes=0'], '--minutes'), (['--iters=0'], '--iters'), ([f'--json={SMOKE}/p'], 'is a file'),
    (['--n_trajectorie=3'], 'n_trajectories'), (['--operator_stage.batch_size=4'], 'batch_size'),
    (['--nu', '.1'], 'nu=0.1, but'), (['--nu', '.1', '.2'], 'one value'), (['epochs=3'], 'epochs')])
def test_peers_refuse(here, burgers_file, options, message):
    args = ['peers', SMOKE, f'--data_path={burgers_file}', '--methods=unet', *options]
    assert message in refused(bench.main, args) and len(here) < 2    # nothing is trained


@pytest.mark.slow
def test_the_error_of_a_training_is_passed_on(tmp_path, burgers_file):
    said = refused(compare.run_training, SMOKE, str(tmp_path / 'r'), f'--data_path={burgers_file}.lost')
    assert 'does not exist' in said


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_training_too(tmp_path, burgers_file, number):
    """A study ends by its signal; the train.py that it runs saves and lets go of its folder. Ctrl-C in a terminal goes to
    all programs that run there."""
    args = ['-m', 'dev.study', 'study', SMOKE, '--iters=100000', '--depth=3', '--methods=ours', '--tokens', '8', '--out=s']
    child = subprocess.Popen([sys.executable, *args, f'--data_path={burgers_file}'], cwd=tmp_path,
                             env={**ENV, 'PYTHONPATH': ROOT}, start_new_session=True)
    log = tmp_path / 's' / 'pure-standard-nu_0.01-seed_0' / 'log.csv'
    try:
        while not log.exists():
            assert child.poll() is None
            time.sleep(.1)
        if number == signal.SIGINT:
            os.killpg(child.pid, number)
        else:
            child.send_signal(number)
        assert child.wait() == 128 + number
        with open(log.with_name('lock')) as file:                    # a training holds it while it lives
            lock(file)
        assert log.with_name('last.pt').exists()
    finally:
        child.kill()


# ---------------------------------------------------------------------------------------------
# speed

def test_speed_counts_the_flops_of_the_blocks(here, tmp_path, burgers_file, capsys):
    """By hand, forward: 24 D² a token and block in the linear layers, 4 S D in the attention; twice that
    backward."""
    plain = '--encoder_dim=0 --decoder_dim=0 --lambda_inverse_encoding=0'.split()
    bench.main(['speed', SMOKE, '--iters=5', '--modes=eager', '--json=s.json', *plain,
                f'--data_path={burgers_file}'])
    [found] = json.loads((tmp_path / 's.json').read_text())
    B, K, S, D, depth = 8, 2, 16, 32, 2
    blocks = 3 * B * K * S * depth * (24 * D ** 2 + 4 * S * D)
    assert blocks < found['flops_per_iteration'] < 1.2 * blocks
    assert set(found['share']) == {'encoder', 'operator', 'decoder', 'optimiser', 'losses and the rest'}
    assert found['matmul_flops_per_second'] > 0 and found['ms_per_iteration'] > 0
    assert set(found['rollout_ms_per_trajectory']) == {'1', '32'}
    assert 'burgers_smoke.py' in capsys.readouterr().out


def test_parts_are_timed_on_the_shapes_of_the_training(here, tmp_path, burgers_file):
    """speed.Training is the training of a run folder: its loss is that of the stage of train.py."""
    args = [f'--data_path={burgers_file}', '--max_iters=1', '--device=cpu']
    compare.run_training(SMOKE, str(tmp_path / 'r'), *args)
    bench.run_training(SMOKE, str(tmp_path / 'r'), *args)            # finished already: nothing is trained
    t = speed.Training(str(tmp_path / 'r'))
    assert t.outputs() >= {'field', 'truth', 'latent', 'target', 'reconstruction', 'start'}
    loss, terms = t.stage(t.batch(8), 1.)
    assert torch.isfinite(loss) and set(terms) == {'field', 'spectral', 'latent', 'inverse_encoding'}
    before = [p.clone() for p in t.model.parameters()]
    speed.time_parts(t, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, t.model.parameters()))          # nothing is learned


def test_one_config_that_fails_does_not_stop_the_others(monkeypatch, tmp_path, capsys):
    """All find the data of the others, unless a folder is named."""
    folders = []

    def run(command, stdout):
        folders.append([arg for arg in command if arg.startswith('--data_dir=')])
        path = next(arg for arg in command if arg.startswith('--json=')).removeprefix('--json=')
        if 'bad.py' in command:
            return SimpleNamespace(returncode=1)
        with open(path, 'w') as file:
            json.dump([{'mode': next(arg for arg in command if arg.startswith('--modes='))}], file)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(bench, 'subprocess', SimpleNamespace(run=run, DEVNULL=None))
    args = SimpleNamespace(repeats=1, seconds=1., iters=None, json=str(tmp_path / 'all.json'))
    found = bench.time_all(['bad.py', 'good.py'], ['eager', 'bf16'], ['--data_dir=own'], args)
    assert len(folders) == 4 and all(given == [folders[0][0], '--data_dir=own'] for given in folders)
    assert [r['mode'] for r in found] == ['--modes=eager', '--modes=bf16']
    assert json.loads((tmp_path / 'all.json').read_text()) == found
    assert capsys.readouterr().out.count('bad.py') == 2
    assert 'nothing' in refused(bench.time_all, ['bad.py'], ['eager'], [], args)


@pytest.mark.parametrize('ms, sizes', [(70., [256]), (20., [256, 512, 1024, 2048])])
def test_the_matrix_product_stays_small_where_it_is_slow(monkeypatch, ms, sizes):
    seen = []

    def median_ms(run, device, repeats):
        seen.append(run.__defaults__[0].shape[0])
        return ms

    monkeypatch.setattr(speed, 'median_ms', median_ms)
    rate = speed.matmul_rate(torch.device('cpu'), torch.float32)
    assert seen == sizes and rate == pytest.approx(2 * sizes[-1] ** 3 / (ms / 1e3))


def test_slow_calls_are_repeated_less(monkeypatch):
    """A clock that a call moves on by so many seconds."""
    now = [0.]
    monkeypatch.setattr(speed.time, 'perf_counter', lambda: now[0])

    def calls_of(seconds):
        n = 0

        def run():
            nonlocal n
            n += 1
            now[0] += seconds

        assert speed.median_ms(run, torch.device('cpu'), 20) == pytest.approx(1e3 * seconds)
        return n

    assert [calls_of(seconds) for seconds in (.01, 1., 60.)] == [23, 5, 1]


@pytest.mark.slow
def test_speed_against_another_tree(here, tmp_path, burgers_file, capsys):
    bench.main(['speed', SMOKE, '--against', ROOT, '--rounds=1', '--iters=5', '--json=s.json',
                f'--data_path={burgers_file}'])
    assert 'ratio' in capsys.readouterr().out
    ms = json.loads((tmp_path / 's.json').read_text())[SMOKE]
    assert len(ms['here']) == len(ms['there']) == 1 and len(here) == 2
    assert "no train.py in '/no'" in refused(bench.main, ['speed', SMOKE, '--against=/no'])
