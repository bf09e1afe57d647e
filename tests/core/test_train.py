"""train.py as a user runs it: end to end, in stages, on two processes, with every config, and with a loss, a
stage and a key of one's own. Its faults are in test_faults.py."""
import csv
import glob
import json
import math
import os
import subprocess
import sys
from functools import partial
from unittest.mock import Mock

import h5py
import numpy as np
import pytest
import torch

import data
import losses
import optim
import runtime.run
from conftest import (ENV, FAST, ROOT, TIMEOUT, TWO_STAGES, Child, close, config, equal, refused,
                      rows_of, smoke_args, state_of, stop_at, train_here, two_processes, weights, write)
from evaluation.scores import rollout_error
from grids import Patches
from losses import Loss, relative_l2
from model import load
from runtime import configurator, extensions
from runtime.device import Machine

STILL = ['--learning_rate=1e-12', '--muon_lr=1e-12']               # nothing moves, so no validation is better


def column(folder, name, stage=None):
    """The numbers of a column of log.csv that are there."""
    with open(os.path.join(folder, 'log.csv'), newline='') as file:
        rows = list(csv.DictReader(file))
    return [float(row[name]) for row in rows if row[name] and stage in (None, row['stage'])]


def part_of(weights, *names):
    """The weights of those parts of the model."""
    return {name: value for name, value in weights.items() if name.startswith(names)}


def test_smoke_run_leaves_a_folder_that_describes_itself(smoke):
    folder = smoke / 'o'
    assert {'config.json', 'env.json', 'log.csv', 'last.pt', 'best.pt'} <= set(os.listdir(folder))
    rows = rows_of(folder)
    assert list(rows[0])[:3] == ['iter', 'stage', 'loss']
    assert [int(row['iter']) for row in rows] == [5, 10, 15, 20]
    assert [bool(row['val_nrmse']) for row in rows] == [False, True, False, True]
    state = state_of(folder)
    assert {'model', 'ema', 'config', 'iter', 'stage'} <= state.keys() and state['iter'] == 20
    assert json.loads(json.dumps(state['config'])) == state['config']
    assert state['best'] == min(column(folder, 'val_nrmse'))
    with open(folder / 'env.json') as file:
        assert json.load(file)['command'].endswith('--out_dir=o')
    with open(folder / 'config.json') as file:
        assert json.load(file) == state['config']


def note_modules(path):
    with open(path, 'w') as file:
        json.dump(sorted(sys.modules), file)


def test_the_core_imports_no_extension(tmp_path, burgers_file):
    """Seen after a validation and a checkpoint."""
    path = tmp_path / 'modules.json'
    child = Child(tmp_path, *smoke_args(burgers_file, tmp_path / 'o'), '--max_iters=3', '--eval_interval=1',
                  '--save_interval=1', before=[partial(stop_at, 3, partial(note_modules, path))])
    assert child.wait() == 0, child.text('err')
    with open(path) as file:
        modules = {name.partition('.')[0] for name in json.load(file)}
    assert {'losses', 'model', 'data', 'evaluation'} <= modules
    assert not modules & {'probabilistic', 'points', 'physics', 'peers'}


def test_windows_move_on_with_the_tokens(tmp_path, monkeypatch):
    """An untrained model is persistence. Where fields stand still, its latents are right and stay so."""
    x = (np.arange(1024) + .5) / 1024
    u = np.sin(2 * np.pi * (x + np.arange(10)[:, None] / 10))[:, None] * np.ones((5, 1))
    path = write(tmp_path / 'still.hdf5', u)
    train_here(monkeypatch, *smoke_args(path, tmp_path / 'o'), '--max_iters=1', '--log_interval=1',
               '--unroll_start=2', '--time_stride=1')
    row = rows_of(tmp_path / 'o')[0]
    assert float(row['latent']) < 1e-10 and float(row['field']) < 1e-3


def test_one_batch_over_fits(tmp_path, train):
    """Eight windows, seen again and again, are learnt: a wiring fault anywhere would show."""
    train(tmp_path / 'o', '--max_iters=60', '--symmetries=false', '--early_bias=8', '--n_trajectories=3',
          '--batch_size=8', '--learning_rate=5e-3', '--log_interval=5', '--eval_interval=1000')
    field = column(tmp_path / 'o', 'field')
    assert field[-1] < .5 * max(field), field


def test_an_early_line_says_how_long_it_takes(tmp_path, train, monkeypatch, capsys):
    """However far apart the lines of the log are; it is no row of the log."""
    monkeypatch.setattr('runtime.run.EARLY', 0.)
    train(tmp_path / 'o', *FAST, '--max_iters=4', '--log_interval=1000', '--eval_interval=1000')
    early = [line for line in capsys.readouterr().out.splitlines() if ' eta ' in line]
    assert len(early) == 1 and early[0].startswith('iter 1/4 25% | ')
    assert [row['iter'] for row in rows_of(tmp_path / 'o')] == ['4']


def test_fine_tuning_starts_from_the_best_weights(smoke, tmp_path, train):
    g = train(tmp_path / 'o', f'--init_from={smoke}/o', '--max_iters=1', *STILL)
    old = state_of(smoke / 'o', 'best.pt')['ema']
    assert all(torch.allclose(v, old[k], atol=1e-6) for k, v in g['model'].state_dict().items())


def test_a_continued_run_has_the_architecture_and_the_steppers_of_its_checkpoint(monkeypatch):
    """But for the rounding of numbers. What keeps the steppers is loaded, also where no key names them."""
    load_extensions = Mock()
    monkeypatch.setattr(runtime.run.extensions, 'load', load_extensions)
    cfg = config(dt=.01)
    there = {**runtime.run.plain(vars(cfg)), 'steppers': ['operator', 'other'], 'dt': .01 * (1 + 1e-6)}
    run = Mock(trained_args=there, trained_path='a.pt', blocks=None)
    assert runtime.run.Run.continued(run, cfg).steppers == ('operator', 'other')
    load_extensions.assert_called_with({'steppers': ['operator', 'other']})
    there['dt'] = .02
    assert 'dt: 0.02 there, 0.01 now' in refused(runtime.run.Run.continued, run, cfg)


def test_fine_tuning_on_the_same_grid_of_another_file(smoke, tmp_path, train, burgers_file, monkeypatch):
    """The first point lies elsewhere in its cell, which makes no difference on a circle. Another architecture
    is refused before any row is read."""
    with h5py.File(burgers_file) as file:
        u = file['tensor'][:, :, 8::16]
    args = [f"--data_path={write(tmp_path / 'b.hdf5', u, dt=.01)}", '--space_stride=1', f'--init_from={smoke}/o']
    g = train(tmp_path / 'o', *args, '--max_iters=0')
    assert g['model'].cfg.first == (.5 / 64,)
    assert load(f'{tmp_path}/o').grid()[0] == .5 / 64
    monkeypatch.setattr(data, 'Trajectories', None)
    assert 'another architecture (hidden_dim' in refused(train, tmp_path / 'p', *args, '--hidden_dim=64')


def test_components_of_the_data_stay_with_the_weights(tmp_path, train):
    args = ['--basis=components', '--latent_dim=3', '--token_shift=0', '--max_iters=1', '--encoder_dim=0',
            '--decoder_dim=0']
    windows = train(f'{tmp_path}/o', *args)['windows']
    model = load(f'{tmp_path}/o')
    p = model.encoder.patches
    assert p.modes is model.decoder.patches.modes is model.operator.patches.modes
    again = Patches(model.cfg)                                       # cosines
    u = windows.frames(1000)
    assert (p.to_grid(p.to_tokens(u)) - u).norm() < .995 * (again.to_grid(again.to_tokens(u)) - u).norm()
    again.fit(u)
    close(again.modes, p.modes)


def test_validation_does_not_depend_on_the_batch_size(tmp_path, train):
    """It takes the first n_validated trajectories."""
    g = train(tmp_path / 'o', '--max_iters=0', '--n_validated=1', *FAST)
    assert len(g['trajectories'].val) == 2
    errors = []
    for n_validated, batch_size in ((1, 1), (1, 8), (2, 1), (2, 8)):
        g['stage'].settings.batch_size = batch_size
        errors.append(rollout_error(g['model'], g['stage'], g['trajectories'], n_validated))
    assert errors[0] == pytest.approx(errors[1], rel=1e-5) and errors[2] == pytest.approx(errors[3], rel=1e-5)
    assert errors[0] != pytest.approx(errors[2], rel=1e-2)
    with g['torch'].no_grad():
        assert g['validation_error']() == pytest.approx(errors[0], rel=1e-5)


# ---------------------------------------------------------------------------------------------
# what a user adds

def slope(p, y):
    return relative_l2(p.diff(dim=2), y.diff(dim=2))


def test_a_loss_is_a_function_and_a_line(tmp_path, train, monkeypatch):
    """Its weight is a key, of a stage as well, and its value is logged."""
    monkeypatch.setitem(losses.LOSSES, 'slope', Loss(slope, ('field', 'truth'), 0., 'error of differences'))
    train(tmp_path / 'o', '--max_iters=2', '--log_interval=1', '--operator_stage.lambda_slope=.3')
    terms = {'field': 1., 'latent': 10., 'inverse_encoding': 50., 'spectral': .05, 'slope': .3}
    for row in rows_of(tmp_path / 'o'):
        assert float(row['slope']) > 0
        total = sum(weight * float(row[name]) for name, weight in terms.items())
        assert total == pytest.approx(float(row['loss']), rel=1e-4)
    assert 'lambda_slop' in refused(train, tmp_path / 'p', '--lambda_slop=1')


def test_a_model_key_is_a_line(tmp_path, copy, burgers_file, monkeypatch):
    """The configuration has it, the checkpoint keeps it, and an older run goes on."""
    with open(os.path.join(ROOT, 'train.py')) as file:
        text = file.read()
    before = "halo = 2 "
    assert text.count(before) == 1
    script = tmp_path / 'train.py'
    script.write_text(text.replace(before, f'wiggle = 3  # a number of mine\n{before}'))
    args = smoke_args(burgers_file, tmp_path / 'o')
    g = train_here(monkeypatch, *args, '--max_iters=1', '--wiggle=5', script=str(script))
    assert 'does not know: wiggle' in refused(load, str(tmp_path / 'o'))          # by the code without this line
    monkeypatch.setattr(extensions, 'FACTS', {*extensions.FACTS, 'wiggle'})
    assert g['model'].cfg.wiggle == 5 and load(str(tmp_path / 'o')).cfg.wiggle == 5
    g = train_here(monkeypatch, *smoke_args(burgers_file, copy), '--max_iters=21', script=str(script))
    assert g['run'].total == 21 and g['model'].cfg.wiggle == 3
    assert 'wiggle: 3 there, 4 now' in refused(
        train_here, monkeypatch, *smoke_args(burgers_file, copy), '--wiggle=4', script=str(script))


# ---------------------------------------------------------------------------------------------
# two stages

STAGED = [*TWO_STAGES, '--max_iters=6', '--second_stage.max_iters=5', '--log_interval=1', '--eval_interval=2',
          '--warmup_iters=2']


@pytest.fixture(scope='module')
def staged(tmp_path_factory, burgers_file):
    """A finished run of 6 iterations of the operator and 5 of the second stage, and the globals of
    train.py."""
    folder = tmp_path_factory.mktemp('staged') / 'o'
    with pytest.MonkeyPatch.context() as monkeypatch:
        g = train_here(monkeypatch, *smoke_args(burgers_file, folder), *STAGED)
    return folder, g


def test_the_log_counts_through_the_stages(staged):
    """Each stage has columns for the numbers that it returns."""
    folder, g = staged
    rows = rows_of(folder)
    assert [(int(row['iter']), row['stage']) for row in rows] == [
        *((i, 'operator') for i in range(1, 7)), *((i, 'second') for i in range(7, 12))]
    assert [i + 1 for i, row in enumerate(rows) if row['val_nrmse']] == [2, 4, 6, 8, 10, 11]
    for row in rows:
        assert bool(row['field']) == bool(row['latent']) == (row['stage'] == 'operator')
        assert bool(row['step_error']) == bool(row['size']) == (row['stage'] == 'second')
    assert column(folder, 'step_error') == column(folder, 'loss', 'second')
    seconds = column(folder, 'train_seconds')
    assert seconds == sorted(seconds)
    assert g['run'].total == 11 and state_of(folder)['stage_iter'] == 5


def test_numbers_of_a_stage_of_ones_own_after_a_resume(staged, tmp_path, train, cut):
    """Cut before the stage has a row in the log. (test_faults.py cuts it later.)"""
    cut(7, tmp_path / 'o', *STAGED)
    assert 'step_error' not in rows_of(tmp_path / 'o')[-1]
    train(tmp_path / 'o', *STAGED)
    assert rows_of(tmp_path / 'o') == rows_of(staged[0])


@pytest.mark.parametrize('stage, n, peak, muon', [('operator', 6, 1e-3, .01), ('second', 5, 3e-4, 3e-3)])
def test_each_stage_has_its_own_learning_rates_and_schedule(staged, stage, n, peak, muon):
    folder, g = staged
    expected = [peak * optim.schedule(i / n, i, 2) for i in range(n)]
    assert column(folder, 'learning_rate', stage) == pytest.approx(expected, rel=1e-12)
    if stage == 'second':
        rates = [group['base_lr'] for optimizer in g['optimizers'] for group in optimizer.param_groups]
        assert set(rates) == {peak, muon}


def test_the_second_stage_starts_from_the_best_of_the_first(staged, tmp_path, train):
    """What it does not train stays as it is, and a run that ended after the first goes on with it."""
    folder, _ = staged
    args = [*FAST, *(arg for arg in STAGED if arg not in TWO_STAGES)]
    assert '--second_stage.max_iters=5 has no effect' in refused(train, tmp_path / 'o', *args)
    train(tmp_path / 'o', *(arg for arg in args if not arg.startswith('--second_stage')))
    first = state_of(tmp_path / 'o', 'best.pt')
    frozen = part_of(first['ema'], 'encoder', 'decoder')
    for name in ('last.pt', 'best.pt'):
        state = state_of(folder, name)
        assert equal(part_of(state['model'], 'encoder', 'decoder'), frozen)
        assert equal(part_of(state['ema'], 'encoder', 'decoder'), frozen)
    assert not equal(part_of(state_of(folder)['model'], 'operator'), part_of(first['ema'], 'operator'))
    train(tmp_path / 'o', *STAGED)
    assert rows_of(tmp_path / 'o') == rows_of(folder)
    for name in ('last.pt', 'best.pt'):
        assert equal(weights(tmp_path / 'o', name), weights(folder, name))


def test_what_is_loaded_is_the_best_of_the_last_stage(staged):
    folder, g = staged
    best = state_of(folder, 'best.pt')
    assert best['stage'] == 'second'
    operator = column(folder, 'val_nrmse', 'operator')
    assert best['best'] == min(min(operator), *column(folder, 'val_nrmse', 'second'))
    m = load(str(folder))
    assert equal(m.state_dict(), best['ema'])
    assert rollout_error(m, g['stage'], g['trajectories'], 64) == best['best']


def test_a_later_stage_is_never_worse_than_it_begins(tmp_path, train, capsys):
    """The second stage gets worse in its one iteration. What it began with, the best of the first
    stage, is kept, and the user is told."""
    train(tmp_path / 'o', *TWO_STAGES, '--max_iters=2', '--second_stage.max_iters=1', '--eval_interval=1',
          '--second_stage.learning_rate=.1', '--second_stage.muon_lr=.6', '--warmup_iters=0',
          '--second_stage.ema_decay=0')
    best = state_of(tmp_path / 'o', 'best.pt')
    assert best['stage'] == 'second' and best['stage_iter'] == 0
    assert best['best'] == min(column(tmp_path / 'o', 'val_nrmse', 'operator'))
    assert min(column(tmp_path / 'o', 'val_nrmse', 'second')) > best['best']
    said = capsys.readouterr().out
    assert 'stage second: no improvement' in said and 'stage operator: no improvement' not in said


def test_neither_is_a_fine_tuning(smoke, tmp_path, train, cut):
    """Not even one that was cut off before its first iteration."""
    worse = [f'--init_from={smoke}/o', '--max_iters=2', '--eval_interval=2', '--learning_rate=.01',
             '--muon_lr=.1', '--warmup_iters=0', '--ema_decay=0']
    cut(1, tmp_path / 'b', *worse)
    train(tmp_path / 'b', *worse)
    best = state_of(tmp_path / 'b', 'best.pt')
    assert best['stage_iter'] == 0 and best['best'] < min(column(tmp_path / 'b', 'val_nrmse'))
    assert equal(best['ema'], state_of(smoke / 'o', 'best.pt')['ema'])


def test_patience_of_a_stage_is_its_own(tmp_path, train):
    """The first stage ends with validations without progress that do not count in the next one."""
    still = [*STILL, '--second_stage.learning_rate=1e-12', '--second_stage.muon_lr=1e-12']
    g = train(tmp_path / 'o', *TWO_STAGES, *still, '--max_iters=30', '--eval_interval=1', '--patience=2',
              '--ema_decay=0', '--second_stage.patience=3')
    n_operator = len(column(tmp_path / 'o', 'val_nrmse', 'operator'))
    assert n_operator < 30 and g['run'].total == n_operator + g['run'].iteration
    best = state_of(tmp_path / 'o', 'best.pt')
    assert g['run'].iteration == best['stage_iter'] + 3 < g['run'].n_iters == 20


def test_no_iterations_skip_a_stage(tmp_path, train):
    train(tmp_path / 'a', *TWO_STAGES, '--max_iters=3', '--second_stage.max_iters=0',
          '--log_interval=1')
    assert {row['stage'] for row in rows_of(tmp_path / 'a')} == {'operator'}
    # the last validation was the best
    assert equal(weights(tmp_path / 'a', 'best.pt'), weights(tmp_path / 'a'))
    g = train(tmp_path / 'b', *TWO_STAGES, '--max_iters=0', '--second_stage.max_iters=3', '--log_interval=1',
              f'--init_from={tmp_path}/a')
    assert [(row['iter'], row['stage']) for row in rows_of(tmp_path / 'b')] == [
        ('1', 'second'), ('2', 'second'), ('3', 'second')]
    before = state_of(tmp_path / 'a', 'best.pt')['ema']
    after = g['model'].state_dict()
    assert equal(part_of(after, 'encoder', 'decoder'), part_of(before, 'encoder', 'decoder'))
    assert not equal(after, before)


@pytest.mark.parametrize('stages', ['operator', 'second', 'second,operator'])
def test_a_run_stands_in_a_stage_of_its_own(staged, stages, train):
    folder, _ = staged
    before = {name: os.stat(folder / name).st_mtime_ns for name in os.listdir(folder)}
    before.pop('lock')
    assert 'stopped in stage 2 (second)' in refused(train, folder, f'--stages={stages}')
    assert before == {name: os.stat(folder / name).st_mtime_ns for name in before}


# ---------------------------------------------------------------------------------------------
# by the clock

class Clock:
    """Every look at it is a fifth of a second after the one before."""

    def __init__(self):
        self.now = 0.

    def perf_counter(self):
        self.now += .2
        return self.now


def test_minutes_of_each_stage(tmp_path, train, cut, monkeypatch):
    """Schedules follow the clock of the stage, to their end; a resumed stage keeps the time that it has
    spent."""
    args = [*TWO_STAGES, '--max_iters=100000', '--max_minutes=.04', '--second_stage.max_minutes=.08',
            '--second_stage.max_iters=100000', '--eval_interval=1000', '--log_interval=1',
            '--save_interval=1', '--warmup_iters=0', '--memory_gb=1']
    monkeypatch.setattr(runtime.run, 'time', Clock())
    g = train(tmp_path / 'whole', *args)
    n_operator = len(column(tmp_path / 'whole', 'loss', 'operator'))
    n_second = g['run'].iteration
    assert 2 < n_operator < n_second < 2.5 * n_operator < 100
    for stage, peak in (('operator', 1e-3), ('second', 3e-4)):
        rates = column(tmp_path / 'whole', 'learning_rate', stage)
        assert rates == sorted(rates, reverse=True)
        assert rates[0] > .9 * peak and rates[-1] < .25 * peak
    cut(n_operator + n_second - 1, tmp_path / 'cut', *args)
    assert state_of(tmp_path / 'cut')['stage'] == 'second'
    g = train(tmp_path / 'cut', *args)
    assert n_second - 2 <= g['run'].iteration < 1.3 * n_second
    train_seconds = column(tmp_path / 'cut', 'train_seconds')
    assert train_seconds == sorted(train_seconds)


def test_validations_are_no_part_of_the_training(tmp_path, train, monkeypatch):
    """Each takes an hour here."""
    clock = Clock()

    def slow_error(*args):
        clock.now += 3600.
        return .5

    monkeypatch.setattr(runtime.run, 'time', clock)
    monkeypatch.setattr('evaluation.scores.rollout_error', slow_error)
    train(tmp_path, '--max_iters=100000', '--max_minutes=.1', '--eval_interval=4', '--log_interval=1')
    assert 1 < len(column(tmp_path, 'val_nrmse')) < 10
    assert max(column(tmp_path, 'train_seconds')) < 10.


# ---------------------------------------------------------------------------------------------
# several processes

@pytest.mark.parametrize('arg, says', [
    ('--max_minutes=1', 'max_minutes'), ('--second_stage.max_minutes=1', 'max_minutes'),
    ('--batch_size=9', '2 processes'), ('--accumulation=8', '2 processes'),
    ('--second_stage.batch_size=9', '2 processes')])
def test_what_two_processes_cannot_do(arg, says, tmp_path, train, monkeypatch):
    for name, value in (('RANK', '0'), ('WORLD_SIZE', '2'), ('LOCAL_RANK', '0')):
        monkeypatch.setenv(name, value)
    for name in ('init_process_group', 'new_group'):
        monkeypatch.setattr(torch.distributed, name, Mock())
    monkeypatch.setattr(Machine, 'gather', lambda self, value: [value, value])
    assert says in refused(train, tmp_path / 'o', *TWO_STAGES, arg)
    assert not os.path.exists(tmp_path / 'o' / 'log.csv')


PAIR = ['--optimizer=adamw', '--eval_interval=4', '--max_iters=4', '--log_interval=2', *FAST]


def with_children(folder, args):
    pair = two_processes(folder, *args)
    assert [process.wait() for process in pair] == [0, 0], pair[0].text('err')


def with_torchrun(folder, args):
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    done = subprocess.run([*torchrun, os.path.join(ROOT, 'train.py'), *args], cwd=folder, env=ENV,
                          capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('start, args', [
    (with_children, [*PAIR, '--accumulation=2']), pytest.param(with_torchrun, PAIR, marks=pytest.mark.slow)])
def test_two_processes_train_as_one(start, args, tmp_path, burgers_file, train):
    """Same global batches, so the same weights up to the order of sums in float32: what differs is small
    against what was learnt. AdamW and few iterations, since the Newton-Schulz iteration amplifies
    rounding."""
    train(tmp_path / 'one', *args)
    train(tmp_path / 'other', *args, '--seed=1')
    train(tmp_path / 'none', *args, '--max_iters=0')
    start(tmp_path, [*smoke_args(burgers_file, tmp_path / 'two'), *args])
    none = weights(tmp_path / 'none')
    one = weights(tmp_path / 'one')

    def differ(name, *parts):
        two = part_of(weights(tmp_path / name), *parts)
        error = sum(float((two[k] - one[k]).square().sum()) for k in two)
        moved = sum(float((one[k] - none[k]).square().sum()) for k in two)
        return math.sqrt(error / moved)

    for parts in (('model.encoder', 'model.operator'), ('model.decoder',), ('ema',)):
        assert differ('two', *parts) < .05
        assert differ('other', *parts) > .5
    assert [int(row['iter']) for row in rows_of(tmp_path / 'two')] == [2, 4]
    for name in ('val_nrmse', 'loss', 'field', 'latent', 'inverse_encoding'):        # of the whole batch
        assert column(tmp_path / 'two', name) == pytest.approx(column(tmp_path / 'one', name), rel=.01)


# ---------------------------------------------------------------------------------------------
# configs

CONFIGS = sorted(os.path.basename(p) for p in glob.glob(os.path.join(ROOT, 'config', '[!_]*.py')))
# one of each kind
SOME = ['burgers_cpu.py', 'burgers_128_pure_channel.py', 'burgers_32_u_inverse.py', 'ks_full.py',
        'darcy_cpu.py', 'ns_64_learned.py', 'ns_points_cpu.py', 'compressible_1d_cpu.py',
        'diffusion_sorption_cpu.py']


def keys_of(name):
    """The keys of train.py with a config file, without its out_dir."""
    found = {key: value for key, (value, _) in configurator.read_keys(os.path.join(ROOT, 'train.py')).items()}
    with open(os.path.join(ROOT, 'config', name)) as file:
        exec(file.read(), found)
    return {k: v for k, v in found.items() if not k.startswith('_') and k != 'out_dir'}


class Checked(Exception):
    """Everything that is checked before there are data."""


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=() if name in SOME else pytest.mark.slow) for name in CONFIGS])
def test_every_config_is_accepted(name, tmp_path, monkeypatch):
    """Keys, stages, shapes and strides fit together; nothing was made until then."""
    def stop(sources, device):
        raise Checked
    monkeypatch.setattr('files.write.make', stop)
    monkeypatch.setattr('evaluation.cost.say_if_long', print)        # takes seconds of large models
    path = os.path.join(ROOT, 'config', name)
    with pytest.raises(Checked):
        train_here(monkeypatch, path, f'--data_dir={tmp_path}/d', '--device=cpu', f'--out_dir={tmp_path}/o')
    assert os.listdir(tmp_path) == ['o'] and os.listdir(tmp_path / 'o') == ['lock']
    with open(path) as file:
        assert 5 <= len(file.readlines()) <= 40


# a mixture is trained in tests/universal
SMALL = [name for name in CONFIGS if name.startswith('burgers') or '_cpu' in name]
SMALL.remove('universal_cpu.py')


@pytest.mark.slow
@pytest.mark.parametrize('name', SMALL)
def test_small_configs_train(name, tmp_path, burgers_file, advection_file, monkeypatch):
    there = {'burgers': burgers_file, 'advection': advection_file}
    dataset = keys_of(name)['dataset']
    args = ['--device=cpu', '--max_iters=2', '--batch_size=1', '--n_trajectories=3', '--unroll_start=0']
    if dataset in there:
        args += [f'--data_path={there[dataset]}', '--time_stride=50']
    else:
        args += [f'--data_dir={tmp_path}']                           # they are made there
    later = keys_of(name)['stages'][1:]
    for stage in later:
        args += [f'--{stage}_stage.{change}' for change in ('max_iters=1', 'unroll=2', 'unroll_start=0')]
    g = train_here(monkeypatch, os.path.join(ROOT, 'config', name), *args, f'--out_dir={tmp_path}/o')
    assert g['run'].total == 2 + len(later) and all(torch.isfinite(p).all() for p in g['model'].parameters())
    with torch.no_grad():
        [batch] = g['windows'].batches(torch.arange(min(20, g['windows'].n_windows)), 0)
        tokens = g['stage'].encode(batch.u[:, :2], batch)
    assert (tokens.flatten(0, 2).std(0) > 0).all()                   # no feature says nothing


def test_configs_that_are_compared_differ_in_what_is_compared():
    ignored = {'attention', 'n_head', 'group_size', 'arch', 'depth', 'depths'}
    files = ['burgers_128_pure.py', 'burgers_128_pure_channel.py', 'burgers_128_u.py',
             'burgers_128_u_standard.py']
    configs = [keys_of(name) for name in files]
    rest = [{k: v for k, v in config.items() if k not in ignored} for config in configs]
    assert all(other == rest[0] for other in rest)
    assert {(config['arch'], config['attention']) for config in configs} == {
        ('pure', 'standard'), ('pure', 'channel'), ('u', 'channel'), ('u', 'standard')}
    depths = [config['depth'] if config['arch'] == 'pure' else sum(config['depths']) for config in configs]
    assert len(set(depths)) == 1
    plain = keys_of('burgers_32_u.py')
    inverse = keys_of('burgers_32_u_inverse.py')
    differ = {k for k in plain.keys() | inverse.keys() if plain.get(k) != inverse.get(k)}
    assert differ == {'lambda_inverse_encoding', 'lambda_inverse_decoding'}
