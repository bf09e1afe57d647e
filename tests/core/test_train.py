"""train.py as a user runs it: end to end, in stages, on two processes, with every config. Its faults are in
test_faults.py."""
import csv
import glob
import json
import math
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch

import optim
import runtime.run
from conftest import (ENV, ROOT, TIMEOUT, TWO_STAGES, close, equal, refused, rows_of, smoke_args, state_of,
                      train_here, two_processes, weights)
from grids import Patches
from model import load
from stages import OperatorStage

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


def test_windows_move_on_with_the_tokens(tmp_path, monkeypatch):
    """Fields that stand still: to an untrained model, which is persistence, all its latents are right, and
    stay so."""
    x = (np.arange(1024) + .5) / 1024
    u = np.sin(2 * np.pi * (x + np.arange(20)[:, None] / 20))[:, None] * np.ones((201, 1))
    path = tmp_path / 'still.hdf5'
    with h5py.File(path, 'w') as file:
        file['tensor'] = u.astype(np.float32)
        file['x-coordinate'] = x.astype(np.float32)
        file['t-coordinate'] = (np.arange(202) * .01).astype(np.float32)
        file.attrs['Nu'] = .01
    train_here(monkeypatch, *smoke_args(path, tmp_path / 'o'), '--max_iters=1', '--log_interval=1',
               '--unroll_start=2')
    row = rows_of(tmp_path / 'o')[0]
    assert float(row['latent']) < 1e-10 and float(row['field']) < 1e-3


def test_one_batch_over_fits(tmp_path, train):
    """Eight windows, seen again and again, are learnt: a wiring fault anywhere would show."""
    args = ['--max_iters=100', '--shift=false', '--flip=false', '--query_stride=16', '--early=8',
            '--n_trajectories=3', '--batch_size=8', '--learning_rate=5e-3', '--log_interval=5',
            '--eval_interval=1000']
    train(tmp_path / 'o', *args)
    field = column(tmp_path / 'o', 'field')
    assert field[-1] < .5 * max(field), field


def test_fine_tuning_starts_from_the_best_weights(smoke, tmp_path, train):
    g = train(tmp_path / 'o', f'--init_from={smoke}/o', '--max_iters=1', *STILL)
    old = state_of(smoke / 'o', 'best.pt')['ema']
    assert all(torch.allclose(v, old[k], atol=1e-6) for k, v in g['model'].state_dict().items())


def test_components_of_the_data_stay_with_the_weights(tmp_path, train):
    args = ['--basis=components', '--latent_dim=3', '--token_shift=0', '--max_iters=4']
    train(f'{tmp_path}/whole', *args)
    model = load(f'{tmp_path}/whole')
    modes = model.encoder.patches.modes
    assert modes is model.decoder.patches.modes is model.operator.patches.modes
    windows = train(f'{tmp_path}/again', *args)['windows']
    again = load(f'{tmp_path}/again').encoder.patches
    close(again.modes, modes)
    u = windows.frames(50)
    p = Patches(model.cfg)                                           # cosines
    assert (again.to_grid(again.to_tokens(u)) - u).norm() < .98 * (p.to_grid(p.to_tokens(u)) - u).norm()


def test_patience_stops_early(tmp_path, train):
    g = train(tmp_path / 'o', '--eval_interval=1', '--patience=2', '--max_iters=50', *STILL)
    best = state_of(tmp_path / 'o', 'best.pt')['iter']
    assert g['run'].total == best + 2 < 50


# ---------------------------------------------------------------------------------------------
# two stages

@pytest.fixture(scope='module')
def staged(tmp_path_factory, burgers_file):
    """A finished run of 6 iterations of the operator and 5 of the decoder, and the globals of train.py."""
    folder = tmp_path_factory.mktemp('staged') / 'o'
    with pytest.MonkeyPatch.context() as monkeypatch:
        g = train_here(monkeypatch, *smoke_args(burgers_file, folder), *TWO_STAGES, '--max_iters=6',
                       '--decoder_stage.max_iters=5', '--log_interval=1', '--eval_interval=2',
                       '--warmup_iters=2')
    return folder, g


def test_the_log_counts_through_the_stages(staged):
    folder, g = staged
    rows = rows_of(folder)
    assert [(int(row['iter']), row['stage']) for row in rows] == [
        *((i, 'operator') for i in range(1, 7)), *((i, 'decoder') for i in range(7, 12))]
    assert [i + 1 for i, row in enumerate(rows) if row['val_nrmse']] == [2, 4, 6, 8, 10, 11]
    for row in rows:
        assert row['field'] and row['spectral']
        assert bool(row['latent']) == bool(row['inverse_encoding']) == (row['stage'] == 'operator')
    seconds = column(folder, 'train_seconds')
    assert seconds == sorted(seconds)
    assert g['run'].total == 11 and state_of(folder)['stage_iter'] == 5


@pytest.mark.parametrize('stage, n, peak, muon', [('operator', 6, 1e-3, .01), ('decoder', 5, 3e-4, 3e-3)])
def test_each_stage_has_its_own_learning_rates_and_schedule(staged, stage, n, peak, muon):
    folder, g = staged
    expected = [peak * optim.schedule(i / n, i, 2, .01) for i in range(n)]
    assert column(folder, 'learning_rate', stage) == pytest.approx(expected, rel=1e-12)
    if stage == 'decoder':
        rates = [group['base_lr'] for optimizer in g['optimizers'] for group in optimizer.param_groups]
        assert set(rates) == {peak, muon}


def test_the_decoder_stage_starts_from_the_best_of_the_operator_stage(staged, tmp_path, train):
    folder, _ = staged
    train(tmp_path / 'o', '--max_iters=6', '--log_interval=1', '--eval_interval=2', '--warmup_iters=2')
    first = state_of(tmp_path / 'o', 'best.pt')
    frozen = part_of(first['ema'], 'encoder', 'operator')
    for name in ('last.pt', 'best.pt'):
        state = state_of(folder, name)
        assert equal(part_of(state['model'], 'encoder', 'operator'), frozen)
        assert equal(part_of(state['ema'], 'encoder', 'operator'), frozen)
    assert not equal(part_of(state_of(folder)['model'], 'decoder'), part_of(first['ema'], 'decoder'))
    assert column(folder, 'val_nrmse', 'operator') == column(tmp_path / 'o', 'val_nrmse')


def test_what_is_loaded_is_the_best_of_the_last_stage(staged):
    folder, g = staged
    best = state_of(folder, 'best.pt')
    assert best['stage'] == 'decoder'
    operator = column(folder, 'val_nrmse', 'operator')
    decoder = column(folder, 'val_nrmse', 'decoder')
    assert best['best'] == min(min(operator), *decoder)
    m = load(str(folder))
    assert equal(m.state_dict(), best['ema'])
    assert g['validate'](m, 8, g['stage']) == best['best']


def test_a_later_stage_is_never_worse_than_it_begins(tmp_path, train, capsys):
    """The decoder gets worse from its first iteration on; its beginning, the best of the operator stage, is
    kept, and the user is told."""
    train(tmp_path / 'o', *TWO_STAGES, '--max_iters=2', '--decoder_stage.max_iters=4', '--eval_interval=1',
          '--decoder_stage.learning_rate=.3', '--decoder_stage.muon_lr=1', '--warmup_iters=0',
          '--min_lr_ratio=1', '--decoder_stage.ema_decay=0')
    best = state_of(tmp_path / 'o', 'best.pt')
    assert best['stage'] == 'decoder' and best['stage_iter'] == 0
    assert best['best'] == min(column(tmp_path / 'o', 'val_nrmse', 'operator'))
    assert min(column(tmp_path / 'o', 'val_nrmse', 'decoder')) > best['best']
    said = capsys.readouterr().out
    assert "'decoder' ends as it began" in said and "'operator' ends" not in said


def test_neither_is_a_fine_tuning(tmp_path, train, cut):
    """Not even one that was cut off before its first iteration."""
    train(tmp_path / 'a', '--max_iters=4')
    worse = [f'--init_from={tmp_path / "a"}', '--max_iters=2', '--eval_interval=2', '--learning_rate=.1',
             '--muon_lr=.5', '--warmup_iters=0', '--min_lr_ratio=1', '--ema_decay=0']
    cut(1, tmp_path / 'b', *worse)
    train(tmp_path / 'b', *worse)
    best = state_of(tmp_path / 'b', 'best.pt')
    assert best['stage_iter'] == 0 and best['best'] < min(column(tmp_path / 'b', 'val_nrmse'))
    assert equal(best['ema'], state_of(tmp_path / 'a', 'best.pt')['ema'])


def test_patience_of_a_stage_is_its_own(tmp_path, train):
    """The operator stage ends with validations without progress that do not count in the next one."""
    args = [*TWO_STAGES, *STILL, '--max_iters=30', '--eval_interval=1', '--patience=2', '--ema_decay=0',
            '--decoder_stage.patience=3', '--decoder_stage.learning_rate=1e-12',
            '--decoder_stage.muon_lr=1e-12']
    g = train(tmp_path / 'o', *args)
    assert len(column(tmp_path / 'o', 'val_nrmse', 'operator')) < 30
    assert len(column(tmp_path / 'o', 'val_nrmse', 'decoder')) >= 3
    best = state_of(tmp_path / 'o', 'best.pt')
    assert g['run'].iteration == best['stage_iter'] + 3 and g['run'].n_iters == 1000


def test_no_iterations_skip_a_stage(tmp_path, train):
    train(tmp_path / 'a', *TWO_STAGES, '--max_iters=3', '--decoder_stage.max_iters=0', '--log_interval=1')
    assert {row['stage'] for row in rows_of(tmp_path / 'a')} == {'operator'}
    # the last validation was the best
    assert equal(weights(tmp_path / 'a', 'best.pt'), weights(tmp_path / 'a'))
    g = train(tmp_path / 'b', *TWO_STAGES, '--max_iters=0', '--decoder_stage.max_iters=3', '--log_interval=1',
              f'--init_from={tmp_path}/a')
    assert [(row['iter'], row['stage']) for row in rows_of(tmp_path / 'b')] == [
        ('1', 'decoder'), ('2', 'decoder'), ('3', 'decoder')]
    before = state_of(tmp_path / 'a', 'best.pt')['ema']
    after = g['model'].state_dict()
    assert equal(part_of(after, 'encoder', 'operator'), part_of(before, 'encoder', 'operator'))
    assert not equal(after, before)


def test_a_finished_operator_goes_on_with_a_decoder(tmp_path, train, capsys):
    """The same as both at once, and the new stage may be given any settings."""
    args = ['--max_iters=4', '--log_interval=1', '--eval_interval=2']
    more = [*TWO_STAGES, '--decoder_stage.max_iters=3', '--decoder_stage.noise=.1']
    train(tmp_path / 'whole', *args, *more)
    train(tmp_path / 'o', *args)
    capsys.readouterr()
    train(tmp_path / 'o', *args, *more)
    assert f"resuming '{tmp_path}/o' at iteration 4" in capsys.readouterr().out
    assert rows_of(tmp_path / 'o') == rows_of(tmp_path / 'whole')
    assert equal(weights(tmp_path / 'o'), weights(tmp_path / 'whole'))
    assert equal(weights(tmp_path / 'o', 'best.pt'), weights(tmp_path / 'whole', 'best.pt'))


@pytest.mark.parametrize('stages', ['operator', 'decoder', 'decoder,operator'])
def test_a_run_stands_in_a_stage_of_its_own(staged, stages, train):
    folder, _ = staged
    before = {name: os.stat(folder / name).st_mtime_ns for name in os.listdir(folder)}
    before.pop('lock')
    assert "stands in stage 2, 'decoder', which stages=" in refused(train, folder, f'--stages={stages}')
    assert before == {name: os.stat(folder / name).st_mtime_ns for name in before}


@pytest.mark.parametrize('args, says', [
    ('--decoder_dim=0', "needs a learned decoder: --decoder_dim=64"),
    ('--decoder_stage.lambda_field=0 --decoder_stage.lambda_spectral=0', 'nothing would train the decoder'),
    ('--decoder_stage.unroll=60', 'leave 41'),
    ('--decoder_stage.hidden_dim=64', 'decoder_stage.hidden_dim: a stage cannot have its own value'),
    ('--decoder_stage.time_stride=1', 'decoder_stage.time_stride: a stage cannot have its own value'),
    ('--decoder_stage.accumulation=3', 'batch_size=8 must be a multiple of 1 processes x accumulation=3')])
def test_what_would_end_the_second_stage_is_refused_before_the_first(args, says, tmp_path, train):
    assert says in refused(train, tmp_path / 'o', *TWO_STAGES, *args.split())
    assert not os.path.exists(tmp_path / 'o' / 'log.csv')


# ---------------------------------------------------------------------------------------------
# by the clock

class Clock:
    """Every look at it is a tenth of a second after the one before."""

    def __init__(self):
        self.now = 0.

    def perf_counter(self):
        self.now += .1
        return self.now


def test_minutes_of_each_stage(tmp_path, train, cut, monkeypatch):
    """Schedules follow the clock of the stage, to their end; a resumed stage keeps the time that it has
    spent."""
    args = [*TWO_STAGES, '--max_iters=100000', '--max_minutes=.04', '--decoder_stage.max_minutes=.08',
            '--decoder_stage.max_iters=100000', '--eval_interval=1000', '--log_interval=1',
            '--save_interval=1', '--min_lr_ratio=.01', '--warmup_iters=0', '--memory_gb=1']
    monkeypatch.setattr(runtime.run, 'time', Clock())
    g = train(tmp_path / 'whole', *args)
    n_operator = len(column(tmp_path / 'whole', 'loss', 'operator'))
    n_decoder = g['run'].iteration
    assert 2 < n_operator < n_decoder < 2.5 * n_operator < 100
    for stage, peak in (('operator', 1e-3), ('decoder', 3e-4)):
        rates = column(tmp_path / 'whole', 'learning_rate', stage)
        assert rates == sorted(rates, reverse=True)
        assert rates[0] > .9 * peak and rates[-1] < .25 * peak
    cut(n_operator + n_decoder - 1, tmp_path / 'cut', *args)
    assert state_of(tmp_path / 'cut')['stage'] == 'decoder'
    g = train(tmp_path / 'cut', *args)
    assert n_decoder - 2 <= g['run'].iteration < 1.3 * n_decoder
    train_seconds = column(tmp_path / 'cut', 'train_seconds')
    assert train_seconds == sorted(train_seconds)


# ---------------------------------------------------------------------------------------------
# several processes

@pytest.mark.parametrize('arg, says', [
    ('--max_minutes=1', 'max_minutes needs one process'),
    ('--decoder_stage.max_minutes=1', 'max_minutes needs one process'),
    ('--batch_size=9', 'batch_size=9 must be a multiple of 2 processes x accumulation=1'),
    ('--accumulation=8', 'batch_size=8 must be a multiple of 2 processes x accumulation=8'),
    ('--decoder_stage.batch_size=9', 'batch_size=9 must be a multiple of 2 processes x accumulation=1')])
def test_what_two_processes_cannot_do(arg, says, tmp_path, train, monkeypatch):
    for name, value in (('RANK', '0'), ('WORLD_SIZE', '2'), ('LOCAL_RANK', '0')):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.distributed, 'init_process_group', lambda backend, timeout: None)
    assert says in refused(train, tmp_path / 'o', *TWO_STAGES, arg)
    assert not os.path.exists(tmp_path / 'o' / 'log.csv')


PAIR = ['--lambda_inverse_decoding=0', '--optimizer=adamw', '--noise=0', '--eval_interval=4',
        *TWO_STAGES, '--max_iters=4', '--decoder_stage.max_iters=4', '--log_interval=2']


def with_children(folder, args):
    pair = two_processes(folder, *args)
    assert [process.wait() for process in pair] == [0, 0], pair[0].text('err')


def with_torchrun(folder, args):
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    done = subprocess.run([*torchrun, os.path.join(ROOT, 'train.py'), *args], cwd=folder, env=ENV,
                          capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('start', [with_children, pytest.param(with_torchrun, marks=pytest.mark.slow)])
def test_two_processes_train_as_one(start, tmp_path, burgers_file, train):
    """Same global batches, so the same weights up to the order of sums in float32: what differs is small
    against what was learnt, in both stages. AdamW and few iterations, since the Newton-Schulz iteration
    amplifies rounding; no inverse decoding, whose variance is of the local batch."""
    train(tmp_path / 'one', *PAIR)
    train(tmp_path / 'other', *PAIR, '--seed=1')
    train(tmp_path / 'none', *PAIR, '--max_iters=0', '--decoder_stage.max_iters=0')
    start(tmp_path, [*smoke_args(burgers_file, tmp_path / 'two'), *PAIR])
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
    iters = [int(row['iter']) for row in rows_of(tmp_path / 'two')]
    assert iters == [2, 4, 6, 8]
    errors = column(tmp_path / 'one', 'val_nrmse')               # (the losses are those of the first process)
    assert column(tmp_path / 'two', 'val_nrmse') == pytest.approx(errors, rel=.01)


# ---------------------------------------------------------------------------------------------
# configs

CONFIGS = sorted(os.path.basename(p) for p in glob.glob(os.path.join(ROOT, 'config', '*.py')))
SMALL = [name for name in CONFIGS if name.startswith('burgers') or name.endswith('_cpu.py')]
LARGE = [name for name in CONFIGS if '256' in name or name not in SMALL]         # many seconds each
LARGE += ['burgers_128_pure_channel.py', 'burgers_128_u.py', 'burgers_128_u_standard.py']


def keys_of(name):
    """What a config file assigns, without its out_dir."""
    found = {}
    with open(os.path.join(ROOT, 'config', name)) as file:
        exec(file.read(), found)
    return {k: v for k, v in found.items() if not k.startswith('_') and k != 'out_dir'}


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in CONFIGS])
def test_every_config_trains(name, tmp_path, burgers_file, advection_file, monkeypatch):
    path = os.path.join(ROOT, 'config', name)
    there = {'burgers': burgers_file, 'advection': advection_file}
    dataset = keys_of(name).get('dataset', 'burgers')
    if dataset in there:
        data_args = [f'--data_path={there[dataset]}', '--time_stride=50']
    else:
        data_args = [f'--data_dir={tmp_path}']                       # they are made there
    later = keys_of(name).get('stages', ('operator',))[1:]
    for stage in later:
        for change in ('max_iters=1', 'unroll=2', 'unroll_start=0'):
            data_args.append(f'--{stage}_stage.{change}')
    g = train_here(monkeypatch, path, *data_args, '--device=cpu', '--max_iters=3', '--batch_size=1',
                   '--compile=false', f'--out_dir={tmp_path}/o', '--n_trajectories=3', '--unroll_start=0')
    assert g['run'].total == 3 + len(later) and all(torch.isfinite(p).all() for p in g['model'].parameters())
    with torch.no_grad():
        [batch] = g['windows'].batches(torch.arange(min(20, g['windows'].n_windows)), 0)
        tokens = g['stage'].encode(g['stage'].placed(batch), [0, 1])
    assert (tokens.flatten(0, 2).std(0) > 0).all()                   # no feature says nothing
    with open(path) as file:
        assert 5 <= len(file.readlines()) <= 40
    if dataset == 'burgers' and g['encoder_dim']:
        inverse_losses_train_all(g)


def inverse_losses_train_all(g):
    """Each of both inverse losses alone has a gradient in every learned parameter of encoder and decoder."""
    model = g['model']
    with torch.no_grad():
        for p in model.parameters():                              # nothing is left of the zeros at the start
            p += .02 * torch.randn_like(p)
    [batch] = g['windows'].batches(torch.arange(2), 0)
    for name in ('inverse_encoding', 'inverse_decoding'):
        settings = g['settings_of']('operator')
        weights = {'lambda_inverse_encoding': 0., 'lambda_inverse_decoding': 0., f'lambda_{name}': 1.}
        vars(settings).update(weights, inverse_decoding_ramp=0.)
        stage = OperatorStage(model, settings)
        stage.weights = {name: 1.}
        model.zero_grad()
        loss, parts = stage(batch, 1.)
        loss.backward()
        assert list(parts) == [name]
        for part in (model.encoder, model.decoder):
            without = [key for key, p in part.named_parameters() if p.grad is None or not p.grad.any()]
            assert not without, (name, without)


def test_two_by_two_differs_in_arch_and_attention_alone():
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


def test_inverse_pair_differs_in_the_inverse_losses_alone():
    plain = keys_of('burgers_32_u.py')
    inverse = keys_of('burgers_32_u_inverse.py')
    differ = {k for k in plain.keys() | inverse.keys() if plain.get(k) != inverse.get(k)}
    assert differ == {'lambda_inverse_encoding', 'lambda_inverse_decoding'}
