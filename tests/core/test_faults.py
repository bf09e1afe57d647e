"""
Faults: what train.py and its checkpoints do when something goes wrong. Children are killed at random (seeded)
moments, in both stages of a run; the long versions run with pytest -m slow.

fault                                               test (in this file where no other is named)
--------------------------------------------------  ---------------------------------------------------------
kill -9 at any moment, save included; rerun         test_killed_at_random_moments (50, slow)
kill -9 before and after each write, and between    test_cut_at_every_write
  two stages
exception while a checkpoint is written             test_failed_save_keeps_the_old_file, test_the_old_file_...
disk full: checkpoint, log.csv, config.json, data   test_full_disk, ..._under_the_log, test_write.py
outputs that cannot be written; stale files         test_paths.py, test_eval.py, test_sample.py
folder or data folder that may not be written       test_read_only_folders
checkpoint truncated, one bit flipped               test_truncated_checkpoint, test_a_flipped_bit_...
another file, missing, other version, not finite    test_foreign_files_..., test_missing_...,
                                                    test_checkpoint.py, test_weights_that_are_not_finite_...
code or hostile sizes in a checkpoint               test_code_in_a_checkpoint_..., test_hostile_sizes_...
checkpoint of another architecture                  test_resume_with_another_..., test_model_arguments_...
checkpoint of DDP, torch.compile, a GPU             test_two_processes_resume_bit_equal, test_compiled_...,
                                                    test_gpu_...
checkpoint of a program without a key               test_a_program_with_a_new_key_...,
                                                    test_train.py::test_a_model_key_is_a_line
N iterations against k and N - k, bit for bit       test_resume_is_bit_equal,
                                                    test_two_processes_resume_bit_equal
rerun of a finished run; damaged last.pt            test_finished_run_is_left_alone,
                                                    test_damaged_last_names_...
resume in a stage that stages= does not have there, test_train.py::test_a_run_stands_in_a_stage_of_its_own,
  with other settings of the stage                  test_settings_of_a_stage_that_has_begun
a later stage that only gets worse                  test_train.py::test_a_later_stage_is_never_worse_...
data that changed between run and resume            test_changed_data_are_refused
two trainings in one folder                         test_second_training_in_one_folder_is_refused
processes with different checkpoints                test_processes_that_would_go_on_from_different_...
log.csv after a resume                              test_resume_is_bit_equal, test_a_finished_run_goes_on
HDF5 truncated, rotten, incomplete, wrong layout,   tests/files
  NaN, constant, few, other types, links, sizes     tests/files, test_data.py
data file that breaks while it is trained on        test_data_that_break_during_the_training
solver killed, two at once, reader meanwhile        test_write.py
tokens that are kept: broken file, two writers,     test_cache.py
  no space, resume
larger than memory                                  test_test_rows_..., test_data.py
train, validation and test overlap                  test_data.py, test_load.py
test rows read or leaking into statistics           test_test_rows_change_nothing
NaN in the loss, in a gradient alone, in the data   test_not_finite_stops_before_the_weights, test_data.py
learning rate of 1000                               test_divergence_is_stopped_and_best_is_kept
bfloat16                                            test_bfloat16_stays_close_to_float32
rollout that blows up in evaluation                 test_eval.py, test_metrics.py
config: typos, types, values, files, cross-fields   test_accepted_values, test_refused_before_any_work,
                                                    test_configurator.py, test_model.py
SIGTERM, SIGINT, twice, with two processes          test_signals_at_random_moments (20, slow),
                                                    test_a_signal_while_data_are_made,
                                                    test_second_signal_ends_at_once,
                                                    test_two_processes_resume_bit_equal
device absent; out of memory                        test_refused_before_any_work, test_out_of_memory_...,
                                                    test_device.py
wandb missing, unreachable, dying, killed           test_wandb_changes_nothing, test_killed_wandb_... (slow)
wandb lacks a curve; asks; begins another run       test_wandb_changes_nothing, test_a_run_that_goes_on_...
closed or full stdout; no matplotlib                test_lost_stdout_..., test_sample.py
odd paths, another cwd, read-only HOME              conftest.py::smoke, test_read_only_home
metrics: given frames, closed forms, uneven batch   test_eval.py, test_metrics.py
every parameter matters; evaluation leaves no trace test_losses.py, test_eval.py
"""
import contextlib
import csv
import ctypes
import dataclasses
import glob
import io
import json
import os
import pickle
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import h5py
import pytest
import torch

import data
import files.open as files
import losses
from conftest import (ENV, FAST, ROOT, SMOKE, TIMEOUT, TWO_STAGES, Child, drawn, equal, error_line, refused,
                      rows_of, run, same_run, smoke_args, state_of, stop_at, train_here, two_processes,
                      weights)
from files.write import write_file
from model import UPT, load, model_args
from runtime import configurator
from runtime.checkpoint import load_checkpoint, save_checkpoint
from runtime.configurator import UserError
from runtime.paths import lock as lock_file
from runtime.run import Run

STOCHASTIC = [*FAST, '--drop_path=.2']                               # the second stage draws numbers as well


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def content(folder):
    """The bytes of a run's checkpoints."""
    found = {}
    for name in ('last.pt', 'best.pt'):
        with open(os.path.join(folder, name), 'rb') as file:
            found[name] = file.read()
    return found


def change(folder, edit, name='last.pt'):
    """Edit what a checkpoint holds: edit(state)."""
    path = os.path.join(folder, name)
    state = load_checkpoint(path)
    edit(state)
    save_checkpoint(path, state)


@pytest.fixture
def child(tmp_path, burgers_file):
    """What the fixture train does, in a process that can be killed. -> Child"""
    def _child(folder, *args, **options):
        return Child(tmp_path / 'streams', *smoke_args(burgers_file, folder), *args, **options)
    return _child


# ---------------------------------------------------------------------------------------------
# what happens in a child before train.py: functions that can be sent there

def power_cut():
    os.kill(os.getpid(), signal.SIGKILL)


def first_is_told_to_stop():
    """What a launcher that ends one process does: the signal comes twice, and the other process hears
    nothing."""
    if os.environ['RANK'] == '0':
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)


def hang(folder):
    """An iteration that never ends; it leaves a file when it begins, and one when a signal has come."""
    run_ = signal.getsignal(signal.SIGTERM).__self__
    open(os.path.join(folder, 'hangs'), 'w').close()
    while not run_.signal:
        time.sleep(.01)
    open(os.path.join(folder, 'heard'), 'w').close()
    time.sleep(10 * TIMEOUT)


def limit_files(n_bytes):
    """Nothing can be written beyond n_bytes of a file: what a full disk does. Python ignores SIGXFSZ."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def only_with_permission():
    """Even root may then write only where the permissions say so (it loses CAP_DAC_OVERRIDE)."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    for which in (0, 1):                                             # effective, permitted
        sets[which] = sets[which] & ~2
    assert libc.capset(header, sets) == 0


def stdout_to(kind):
    if kind == 'closed pipe':
        read, write = os.pipe()
        os.close(read)
    else:
        write = os.open('/dev/full', os.O_WRONLY)
    os.dup2(write, 1)
    sys.stdout = open(1, 'w')                                        # as an interpreter that begins with it


# ---------------------------------------------------------------------------------------------
# killed, resumed: 8 iterations of the operator, then 6 of the second stage, of a small network

N_FIRST = 8
N_ALL = 14


@pytest.fixture(scope='module')
def random_run(tmp_path_factory, burgers_file):
    """An uninterrupted run that draws random numbers, saved at every iteration: (arguments, folder)."""
    folder = tmp_path_factory.mktemp('whole')
    args = [*STOCHASTIC, *TWO_STAGES, '--save_interval=1', '--log_interval=1', '--eval_interval=4',
            '--hidden_dim=16', '--encoder_dim=16', '--decoder_dim=16', f'--max_iters={N_FIRST}',
            f'--second_stage.max_iters={N_ALL - N_FIRST}']
    whole = Child(folder, *smoke_args(burgers_file, folder / 'o'), *args)
    assert whole.wait() == 0, whole.text('err')
    return args, folder / 'o'


def strikes(n, number, start, folder, whole, least=0, seed=0):
    """Signal a run n times, at random moments. What was struck goes on and is struck again, until it ends and
    is the whole run; then another one begins. Yields each struck Child.

    start: () -> Child. The earliest moment is after least + 1 new lines of the log, the first of which is its
    head."""
    log = folder / 'log.csv'
    rng = random.Random(seed)

    def n_lines():
        return log.read_text().count('\n') if log.exists() else 0

    n_struck = 0
    while n_struck < n or folder.exists():
        there = n_lines() + rng.randrange(least, 3)
        victim = start()
        if n_struck < n and victim.wait_for(lambda there=there: n_lines() > there):
            time.sleep(rng.uniform(0, .03))
            with contextlib.suppress(ProcessLookupError):            # it may have ended
                os.kill(victim.pid, number)
        if victim.wait() != 0:
            n_struck += 1
            yield victim
            continue
        same_run(whole, folder)
        assert not [name for name in os.listdir(folder) if name.endswith('.tmp')]
        shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize('seed', [1, 2])                             # for two workers
def test_killed_at_random_moments(seed, random_run, child, tmp_path):
    args, whole = random_run
    folder = tmp_path / 'killed'
    stages = set()
    for victim in strikes(25, signal.SIGKILL, partial(child, folder, *args), folder, whole, seed=seed):
        assert victim.process.exitcode == -signal.SIGKILL, victim.text('err')
        n_saved = 0
        if (folder / 'last.pt').exists():                            # else it was killed in its first write
            state = load_checkpoint(str(folder / 'last.pt'))
            n_saved = state['iter']
            stages.add(state['stage'])
        assert len(rows_of(folder)) - n_saved <= 1                   # no more than a save interval is lost
    assert stages == {'operator', 'second'}


@pytest.mark.slow
@pytest.mark.parametrize('number, code', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_at_random_moments(number, code, random_run, child, tmp_path):
    """After the first iteration: it is the signal that saves."""
    args, whole = random_run
    folder = tmp_path / 'stopped'
    start = partial(child, folder, *args, '--save_interval=1000')
    for victim in strikes(10, number, start, folder, whole, least=1, seed=number):
        assert victim.process.exitcode == code and victim.text('err') == '', victim.text('err')
        assert 'the same command continues' in victim.text()
        assert load_checkpoint(str(folder / 'last.pt'))['iter'] == len(rows_of(folder))


@pytest.mark.slow
@pytest.mark.parametrize('when, n', [('after', 2), ('before', 2)])
def test_cut_at_every_write(when, n, train, tmp_path, monkeypatch):
    """Of last.pt and best.pt, through both stages, so also between them: what is in the folder at that moment
    is what a power cut leaves."""
    args = [*STOCHASTIC, *TWO_STAGES, f'--max_iters={n}', f'--second_stage.max_iters={n}',
            '--save_interval=2', '--eval_interval=1', '--log_interval=1', '--n_trajectories=5']
    whole = tmp_path / 'whole'
    write = Run.write
    written = []

    def write_and_copy(self, path, everything):
        written.append(os.path.basename(path))
        if when == 'before':
            shutil.copytree(whole, tmp_path / f'cut{len(written)}')
        write(self, path, everything)
        if when == 'after':
            shutil.copytree(whole, tmp_path / f'cut{len(written)}')

    with monkeypatch.context() as patch:
        patch.setattr(Run, 'write', write_and_copy)
        train(whole, *args)
    assert written[:2] == ['last.pt', 'best.pt'] and written[-1] == 'last.pt'
    assert 3 + 2 * n <= len(written) <= 10
    for at in range(1, len(written) + 1):
        folder = tmp_path / f'cut{at}'
        is_finished = (folder / 'last.pt').exists() and state_of(folder)['iter'] == 2 * n
        if not is_finished:
            train(folder, *args)
        same_run(whole, folder)


@pytest.mark.slow
def test_second_signal_ends_at_once(child, copy):
    before = content(copy)
    victim = child(copy, '--max_iters=30', before=[partial(stop_at, 3, partial(hang, str(copy)))])
    assert victim.wait_for((copy / 'hangs').exists), victim.text('err')
    os.kill(victim.pid, signal.SIGTERM)
    assert victim.wait_for((copy / 'heard').exists)                  # the first one waits for the step to end
    os.kill(victim.pid, signal.SIGTERM)
    assert victim.wait() == 143 and content(copy) == before


SECOND_STAGE = ' '.join([*TWO_STAGES, '--second_stage.max_iters=6', '--max_iters=2', '--optimizer=adamw'])


@pytest.mark.parametrize('extra', [
    '--arch=u --attention=channel --checkpointing=true --dtype=bfloat16 --accumulation=2 '
    '--moving_frame=false --token_shift=0 --memory_gb=0',
    SECOND_STAGE,
    slow('--batch_size=60 --ema_decay=0'),
    slow('--optimizer=adamw --dtype=bfloat16 --ema_decay=0'),
    slow('--optimizer=adamw --memory_gb=0 --accumulation=4'),
    slow('--lambda_inverse_decoding=1 --weight_decay=.1'),
    slow(SECOND_STAGE + ' --dtype=bfloat16 --memory_gb=0')])
def test_resume_is_bit_equal(extra, train, cut, tmp_path, capsys):
    """Cut off at the 6th iteration, which is 5 after the start and 2 after last.pt."""
    args = [*STOCHASTIC, '--max_iters=6', '--save_interval=3', '--log_interval=1', '--eval_interval=2',
            *extra.split()]
    at = 6
    saved = 3
    if extra.startswith(SECOND_STAGE):
        args += ['--save_interval=2']
        at = 8                                                       # the 6th of the stage, 2 after last.pt
        saved = 6
    if extra.startswith('--batch_size=60'):                         # an epoch and a half of windows
        args += ['--max_iters=3', '--save_interval=2', '--eval_interval=1', '--latent_dim=6']
        at = 3
        saved = 2
    train(tmp_path / 'whole', *args)
    cut(at, tmp_path / 'cut', *args)
    assert load_checkpoint(str(tmp_path / 'cut' / 'last.pt'))['iter'] == saved
    capsys.readouterr()
    train(tmp_path / 'cut', *args)
    same_run(tmp_path / 'whole', tmp_path / 'cut')
    out = capsys.readouterr().out
    assert f'at iteration {saved}' in out and 'resuming' in out
    assert re.findall(r'eta (\d+m\d+s)', out)[-1] == '0m00s'
    with open(tmp_path / 'cut' / 'log.csv') as file:
        seconds = [float(row['train_seconds']) for row in csv.DictReader(file)]
    assert seconds == sorted(seconds)


def test_patience_survives_a_resume(train, cut, tmp_path):
    """Cut off between a validation without progress and the next checkpoint but one."""
    args = ['--eval_interval=1', '--patience=4', '--save_interval=1', '--max_iters=50',
            '--learning_rate=1e-12', '--muon_lr=1e-12', *FAST]
    assert train(tmp_path / 'whole', *args)['run'].total < 20
    cut(4, tmp_path / 'cut', *args)
    train(tmp_path / 'cut', *args)
    same_run(tmp_path / 'whole', tmp_path / 'cut')


@pytest.mark.slow
@pytest.mark.parametrize('call', [3, 7, 9])
def test_two_processes_resume_bit_equal(call, tmp_path, burgers_file):
    """One process is told to stop, in the first or second stage or in the last iteration of the first, and
    both stop after the same iteration; then without power; against a whole run."""
    def start(folder, **options):
        args = [*smoke_args(burgers_file, tmp_path / folder), *STOCHASTIC, *TWO_STAGES, '--max_iters=7',
                '--second_stage.max_iters=6', '--save_interval=5', '--eval_interval=4', '--log_interval=1',
                '--accumulation=2']
        pair = two_processes(tmp_path / 'streams', *args, **options)
        return [process.wait() for process in pair], pair[0].text() + pair[0].text('err')
    codes, text = start('cut', before=[partial(stop_at, call, first_is_told_to_stop)])
    assert codes == [143, 143] and 'the same command continues' in text, text
    stopped = load_checkpoint(str(tmp_path / 'cut' / 'last.pt'))['iter']
    assert call <= stopped <= call + 1
    codes, text = start('cut', before=[partial(stop_at, 2, power_cut)])
    assert codes == [-9, -9], text
    for folder in ('cut', 'whole'):
        codes, text = start(folder)
        assert codes == [0, 0], text
    same_run(tmp_path / 'whole', tmp_path / 'cut')
    load(str(tmp_path / 'whole'))                                    # one process reads what two have written
    codes, text = start('whole')
    assert codes == [0, 0] and 'already finished' in text


def test_processes_that_would_go_on_from_different_checkpoints_end(copy, tmp_path, burgers_file):
    """As those of two machines do that share no folder: the second one finds no checkpoint."""
    folders = copy, tmp_path / 'empty'
    pair = two_processes(tmp_path / 'streams', *smoke_args(burgers_file, copy), '--max_iters=24',
                         own=[[f'--out_dir={folder}'] for folder in folders])
    assert [process.wait() for process in pair] == [1, 1]
    for rank, process in enumerate(pair):                            # torch says which process prints
        line = error_line(process.text('err').removeprefix(f'[rank{rank}]: '))
        assert 'process 1 of 2 has another checkpoint, or none' in line


def test_finished_run_is_left_alone(copy, train, capsys):
    names = ('last.pt', 'best.pt', 'log.csv', 'config.json', 'env.json')
    before = {name: os.stat(copy / name).st_mtime_ns for name in names}
    with pytest.raises(SystemExit) as done:
        train(copy)
    assert done.value.code == 0 and 'already finished' in capsys.readouterr().out
    assert before == {name: os.stat(copy / name).st_mtime_ns for name in names}


@pytest.mark.parametrize('name', ['last.pt', 'best.pt', 'config.json', 'env.json', 'log.csv', 'nan_dump.pt'])
def test_what_a_killed_process_had_half_written_is_removed(copy, train, name):
    (copy / f'{name}.tmp').write_text('half')
    with pytest.raises(SystemExit):                                  # the run is finished
        train(copy)
    assert not (copy / f'{name}.tmp').exists()


def test_a_finished_run_goes_on(copy, train, capsys):
    """With more iterations, another learning rate, of which a line is printed, and a torn log, which is
    mended."""
    with open(copy / 'log.csv', 'a') as file:
        file.write('1')                                             # the beginning of row 15, or 10, or 1 ...
    copy = copy.rename(f"{copy} it's")
    g = train(copy, '--max_iters=23', '--log_interval=1', '--learning_rate=1e-4')
    assert g['run'].total == 23 and [int(row['iter']) for row in rows_of(copy)] == [5, 10, 15, 20, 21, 22, 23]
    out = capsys.readouterr().out
    assert 'learning_rate changes from 0.001 to 0.0001' in out
    last_line = out.splitlines()[-1]
    assert shlex.split(last_line.split(' | ')[-1]) == ['python', 'eval.py', '--ckpt', str(copy)]


# ---------------------------------------------------------------------------------------------
# another configuration, data, program

@pytest.mark.parametrize('args, says', [
    ('--depth=3', 'depth: 2 there, 3 now'), ('--n_trajectories=10', 'n_trajectories'),
    ('--lambda_latent=1', 'lambda_latent: 10.0 there, 1.0 now')])
def test_resume_with_another_configuration_is_refused(args, says, copy, train):
    before = content(copy)
    assert says in refused(train, copy, *args.split())
    assert content(copy) == before


def test_settings_of_a_stage_that_has_begun(train, cut, tmp_path):
    """They are compared as the stage sees them: its own value, or else that of the plain key."""
    args = [*TWO_STAGES, *STOCHASTIC, '--max_iters=1', '--second_stage.max_iters=2', '--save_interval=1']
    cut(3, tmp_path / 'a', *args)
    message = refused(train, tmp_path / 'a', *args, '--second_stage.seed=1')
    assert 'second_stage.seed: 0 there, 1 now' in message
    more = ['--second_stage.seed=0', '--second_stage.learning_rate=.1']
    assert train(tmp_path / 'a', *args, *more)['run'].total == 3
    cut(3, tmp_path / 'b', *args, '--second_stage.seed=1')
    assert 'second_stage.seed: 1 there, 0 now' in refused(train, tmp_path / 'b', *args)


def test_a_program_with_a_new_key_goes_on(copy, train):
    """A run of a program that did not know a key has had its default."""
    change(copy, lambda state: [state['config'].pop(key) for key in ('symmetries', 'operator_stage')])
    message = refused(train, copy, '--max_iters=21', '--symmetries=false')
    assert 'symmetries: True there, False now' in message
    assert train(copy, '--max_iters=21')['run'].total == 21
    assert state_of(copy)['config']['symmetries'] is True


def test_a_key_that_the_file_contradicts(tmp_path, train, burgers_file):
    """It is refused at the start, with nothing written; the value of the file is recorded."""
    message = refused(train, tmp_path / 'o', '--nu=.05')
    assert f"nu=0.05, but '{burgers_file}' has Nu=0.01" in message and not os.path.exists(tmp_path / 'o')
    other = write_file(str(tmp_path / 'b.hdf5'), 'burgers', {'Nu': .1}, 6, device='cpu', resolution=64)
    train(tmp_path / 'o', f'--data_path={other}', '--max_iters=0', '--space_stride=1')
    with open(tmp_path / 'o' / 'config.json') as file:
        assert json.load(file)['nu'] == .1


def test_changed_data_are_refused(copy, tmp_path, train):
    other = write_file(str(tmp_path / 'other.hdf5'), 'burgers', {'Nu': .01}, 20, seed=1, device='cpu')
    before = content(copy)
    assert 'the data are not those' in refused(train, copy, f'--data_path={other}', '--max_iters=21')
    assert content(copy) == before


def test_scratch_refuses_to_overwrite(copy, train):
    assert 'overwrite' in refused(train, copy, '--init_from=scratch')
    assert train(copy, '--init_from=scratch', '--overwrite=true', '--max_iters=1')['run'].total == 1


@pytest.mark.parametrize('text', ['{"model_type": "gpt2"}', '[1]', 'a = 1'])
def test_the_config_of_another_program_is_not_overwritten(tmp_path, train, text):
    path = tmp_path / 'config.json'
    path.write_text(text)
    assert 'config.json that is not of a run' in refused(train, tmp_path)
    assert path.read_text() == text


def test_second_training_in_one_folder_is_refused(tmp_path, train):
    os.makedirs(tmp_path / 'o')
    with open(tmp_path / 'o' / 'lock', 'w') as lock:                 # what another process would hold
        lock.write('process 7 on far-away')
        lock.flush()
        lock_file(lock)
        assert 'another training (process 7 on far-away)' in refused(train, tmp_path / 'o')
    train(tmp_path / 'o', '--max_iters=1')                           # a dead process holds nothing


def test_damaged_last_names_the_way_on(copy, train):
    before = bytearray((copy / 'last.pt').read_bytes())
    before[len(before) // 2] ^= 1
    (copy / 'last.pt').write_bytes(before)
    message = refused(train, copy, '--max_iters=25')
    found = re.search(r'python train.py ... (--out_dir=\S+) (--init_from=\S+)', message)
    assert 'last.pt' in message and found, message
    g = train(copy, '--max_iters=1', *found.groups())                # the later out_dir counts
    assert g['out_dir'] == f'{copy}_2' and (copy / 'last.pt').read_bytes() == before


# ---------------------------------------------------------------------------------------------
# disks

@pytest.mark.parametrize('n_bytes, file', [(2000, 'config.json'), (20_000, 'last.pt')])
def test_full_disk(n_bytes, file, child, copy):
    before = content(copy)
    victim = child(copy, '--max_iters=30', '--save_interval=3', before=[partial(limit_files, n_bytes)])
    line = victim.error_line()
    assert f"could not save '{copy}/{file}': File too large; the last good one is kept" in line
    assert content(copy) == before and not [name for name in os.listdir(copy) if name.endswith('.tmp')]


def test_full_disk_under_the_log(child, copy):
    size = os.path.getsize(copy / 'log.csv')
    before = content(copy)
    full = partial(stop_at, 3, partial(limit_files, size + 10))
    line = child(copy, '--max_iters=30', '--save_interval=1000', before=[full]).error_line()
    assert 'log.csv' in line and 'File too large' in line and content(copy) == before


def test_full_disk_while_data_are_made(tmp_path, child):
    line = child(tmp_path / 'o', '--data_path=', f'--data_dir={tmp_path}/d', '--n_trajectories=3',
                 before=[partial(limit_files, 500_000)]).error_line()
    assert 'N3.hdf5' in line and 'File too large' in line and os.listdir(tmp_path / 'd') == []


def wait_for_the_solver(folder):
    """A solver that never ends once there is a file to write to; it then leaves another one."""
    from files.layouts import LAYOUTS

    def write(*_):
        open(os.path.join(folder, 'hangs'), 'w').close()
        time.sleep(10 * TIMEOUT)

    LAYOUTS['tensor'] = dataclasses.replace(LAYOUTS['tensor'], write=write)


def test_a_signal_while_data_are_made(tmp_path, child):
    (tmp_path / 'd').mkdir()
    victim = child(tmp_path / 'o', '--data_path=', f'--data_dir={tmp_path}/d', '--n_trajectories=3',
                   before=[partial(wait_for_the_solver, str(tmp_path))])
    assert victim.wait_for((tmp_path / 'hangs').exists), victim.text('err')
    assert len(os.listdir(tmp_path / 'd')) == 1
    os.kill(victim.pid, signal.SIGTERM)
    assert victim.wait() == 143 and victim.text('err') == 'stopped by signal 15\n'
    assert os.listdir(tmp_path / 'd') == [] and os.listdir(tmp_path / 'o') == ['lock']


def test_read_only_folders(tmp_path, child, copy):
    before = content(copy)
    os.makedirs(tmp_path / 'locked')
    for folder in (copy, tmp_path / 'locked'):
        os.chmod(folder, 0o555)
    try:
        for folder in (copy, tmp_path / 'locked' / 'o'):
            done = child(folder, '--max_iters=25', before=[only_with_permission])
            line = done.error_line()
            assert str(folder) in line and 'Permission denied' in line and 'iter 2' not in done.text()
        assert content(copy) == before
        line = child(tmp_path / 'o', '--data_path=', f'--data_dir={tmp_path}/locked', '--n_trajectories=3',
                     before=[only_with_permission]).error_line()
        assert 'locked' in line and 'Permission denied' in line and os.listdir(tmp_path / 'locked') == []
    finally:
        for folder in (copy, tmp_path / 'locked'):
            os.chmod(folder, 0o755)


def test_read_only_home(tmp_path, child):
    os.makedirs(tmp_path / 'home', 0o555)
    home = {'HOME': str(tmp_path / 'home')}
    done = child(tmp_path / 'o', '--max_iters=1', before=[only_with_permission], env=home)
    assert done.wait() == 0 and os.listdir(tmp_path / 'home') == [], done.text('err')


# ---------------------------------------------------------------------------------------------
# checkpoint files

@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """A model and the bytes of its checkpoint."""
    m = drawn()
    path = str(tmp_path_factory.mktemp('saved') / 'best.pt')
    save_checkpoint(path, saved_state(m))
    with open(path, 'rb') as file:
        return m, file.read()


def saved_state(m, **changes):
    return {'model': m.state_dict(), 'ema': m.state_dict(), 'model_args': model_args(m.cfg), 'iter': 7,
            'config': {'a': [1, 'b']}, 'stage': 'operator', **changes}


def put(path, content):
    with open(path, 'wb') as file:
        file.write(content)
    return str(path)


def test_missing_checkpoint_lists_what_is_there(tmp_path, saved):
    assert 'train.py' in refused(load, str(tmp_path))
    put(tmp_path / 'old.pt', saved[1])
    assert 'old.pt' in refused(load, str(tmp_path)) and 'old.pt' in refused(load, str(tmp_path / 'best.pt'))
    refused(load, str(tmp_path / 'no' / 'such' / 'folder'))
    refused(load_checkpoint, str(tmp_path))


@pytest.mark.parametrize('size', [0, 1, 2, 100, .5, -1])
def test_truncated_checkpoint(tmp_path, saved, size):
    n = int(size * len(saved[1])) if isinstance(size, float) else size
    path = put(tmp_path / 'best.pt', saved[1][:n])
    assert path in refused(load, path)


@pytest.mark.parametrize('part', ['anywhere', 'directory'])
def test_a_flipped_bit_is_refused_or_harmless(tmp_path, saved, part):
    m, content = saved
    rng = random.Random(0)
    n_refused = 0
    for _ in range(40):
        broken = bytearray(content)
        place = rng.randrange(len(broken)) if part == 'anywhere' else len(broken) - 1 - rng.randrange(1500)
        broken[place] ^= 1 << rng.randrange(8)
        path = put(tmp_path / 'best.pt', broken)
        try:
            state = load_checkpoint(path)
        except UserError as error:
            assert path in str(error)
            n_refused += 1
        else:
            assert state['model_args'] == model_args(m.cfg)
            for part_of in ('model', 'ema'):
                assert equal(state[part_of], m.state_dict())
    assert n_refused > 20


class Attack:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (self.target, 'w')


def test_foreign_files_are_refused(tmp_path, saved):
    m, _ = saved
    put(tmp_path / 'a.pt', b'<html><body>404</body></html>')
    torch.save({'model': m.state_dict()}, tmp_path / 'b.pt')
    torch.save(torch.zeros(3), tmp_path / 'c.pt')
    for name in ('a.pt', 'b.pt', 'c.pt'):
        assert 'not a checkpoint of this project' in refused(load, str(tmp_path / name))
    refused(load, put(tmp_path / 'd.pt', b'PK\x03\x04' + bytes(200)))


@pytest.mark.parametrize('form', ['checkpoint', 'bare', 'legacy'])
def test_code_in_a_checkpoint_is_not_executed(tmp_path, saved, form):
    target = str(tmp_path / 'PWNED')
    path = str(tmp_path / 'best.pt')
    if form == 'checkpoint':
        save_checkpoint(path, saved_state(saved[0], config=Attack(target)))
        assert 'not executed' in refused(load, path)
    elif form == 'bare':
        refused(load, put(path, pickle.dumps(Attack(target))))
    else:
        buffer = io.BytesIO()
        torch.save({'format': 'nanoupt', 'version': 1, 'a': Attack(target)}, buffer,
                   _use_new_zipfile_serialization=False)
        refused(load, put(path, buffer.getvalue()))
    assert not os.path.exists(target)


def test_hostile_sizes_in_a_checkpoint_are_refused(tmp_path, saved):
    """One stored number that claims to be 4 TB of them must not be touched."""
    m, _ = saved
    for which in ('model', 'ema'):
        state = saved_state(m)
        state[which] = {**state[which], 'operator.head.weight': torch.zeros(1).expand(10 ** 6, 10 ** 6)}
        save_checkpoint(str(tmp_path / 'best.pt'), state)
        assert '(1000000, 1000000)' in refused(load, str(tmp_path))


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('which', ['model', 'ema'])
def test_weights_that_are_not_finite_are_refused(tmp_path, saved, which, value):
    state = saved_state(saved[0])
    state[which] = {k: v.clone() for k, v in state[which].items()}
    name = list(state[which])[3]
    state[which][name].view(-1)[0] = value
    save_checkpoint(str(tmp_path / 'best.pt'), state)
    message = refused(load, str(tmp_path))
    assert name in message and 'not finite' in message


@pytest.mark.parametrize('change', [{'hidden_dim': 32}, {'depth': 3}, {'arch': 'u'}, {'latent_dim': 10 ** 9},
                                    {'patch_size': 5}, {'n_head': 3}])
def test_model_arguments_that_do_not_fit_the_weights_are_refused(tmp_path, saved, change):
    m, _ = saved
    save_checkpoint(str(tmp_path / 'best.pt'), saved_state(m, model_args={**model_args(m.cfg), **change}))
    refused(load, str(tmp_path))


@pytest.mark.parametrize('where', ['torch.save', 'os.fsync'])
@pytest.mark.parametrize('error, shown', [(OSError(28, 'No space left on device'), UserError),
                                          (KeyError('x'), KeyError)])
def test_failed_save_keeps_the_old_file(tmp_path, saved, monkeypatch, where, error, shown):
    path = put(tmp_path / 'last.pt', saved[1])

    def fail(*_):
        raise error
    monkeypatch.setattr(where, fail)
    with pytest.raises(OSError if where == 'torch.save' and shown is UserError else shown):
        save_checkpoint(path, saved_state(saved[0]))
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ['last.pt'] and load(path)


def test_the_old_file_stays_until_the_new_one_is_complete(tmp_path, saved, monkeypatch):
    path = put(tmp_path / 'last.pt', saved[1])

    def look(new, old):
        assert old == path and open(path, 'rb').read() == saved[1]
        assert load_checkpoint(new)['iter'] == 8                     # complete before it takes the name
        raise OSError(5, 'stop here')
    monkeypatch.setattr(os, 'replace', look)
    refused(save_checkpoint, path, saved_state(saved[0], iter=8))
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ['last.pt'] and load_checkpoint(path)['iter'] == 7


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_compiled_parts_keep_the_names_of_their_parameters(saved):
    again = UPT(saved[0].cfg)
    for part in (again.encoder, again.operator, again.decoder):
        part.compile()
    assert again.state_dict().keys() == saved[0].state_dict().keys()


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_gpu_checkpoint_goes_on_on_a_cpu(tmp_path, train):
    train(tmp_path / 'o', '--device=cuda', '--dtype=bfloat16', '--compile=false', '--max_iters=2')
    g = train(tmp_path / 'o', '--max_iters=4', '--dtype=float32')
    assert g['run'].iteration == 4 and all(v.device.type == 'cpu' for v in weights(tmp_path / 'o').values())


# ---------------------------------------------------------------------------------------------
# numbers

@pytest.mark.parametrize('n_first, kind, says', [
    (20, 'loss', 'loss nan'), (11, 'gradient', r'loss [\d.]+, gradient norm nan'),
    (20, 'infinite gradient', r'loss [\d.]+, gradient norm (inf|nan)')])
def test_not_finite_stops_before_the_weights(n_first, kind, says, tmp_path, train, monkeypatch):
    """In the 13th iteration, of the first stage or the second."""
    whole = losses.weighted_sum
    calls = []

    def poisoned(*args):
        calls.append(0)
        total, terms = whole(*args)
        if len(calls) == 13 and kind == 'loss':
            total = total * float('nan')
        elif len(calls) == 13:
            total.register_hook(lambda g: g * float('nan' if kind == 'gradient' else 'inf'))
        return total, terms
    monkeypatch.setattr(losses, 'weighted_sum', poisoned)
    args = [*TWO_STAGES, f'--max_iters={n_first}', '--second_stage.max_iters=20']
    message = refused(train, tmp_path / 'o', *args)
    assert re.search(rf'iteration 12: {says}.*trajectories \d', message), message
    for name in ('last.pt', 'best.pt'):
        state = load_checkpoint(str(tmp_path / 'o' / name))          # which checks that all are finite
        assert state['iter'] == (10 if n_first == 20 else 11)
    dump = torch.load(tmp_path / 'o' / 'nan_dump.pt', weights_only=True)
    assert dump['iter'] == 12 and len(dump['index']) == 8


def test_divergence_is_stopped_and_best_is_kept(copy, train):
    before = content(copy)
    message = refused(train, copy, '--max_iters=40', '--learning_rate=1e3')
    assert re.search(r'iteration \d+: loss', message) and 'learning rates' in message
    assert content(copy) == before


def test_bfloat16_stays_close_to_float32(tmp_path, train):
    for dtype in ('float32', 'bfloat16'):
        train(tmp_path / dtype, f'--dtype={dtype}', *FAST, '--max_iters=10')
    single = float(rows_of(tmp_path / 'float32')[-1]['val_nrmse'])
    half = float(rows_of(tmp_path / 'bfloat16')[-1]['val_nrmse'])
    assert abs(single - half) < .2 * single and single != half


# ---------------------------------------------------------------------------------------------
# data

def test_test_rows_change_nothing(tmp_path, train, burgers_file, monkeypatch):
    """Of them, only the first frames are read: they must not be those of other rows. Nor does it matter
    whether the train rows are in memory or read when they are needed."""
    shutil.copy(burgers_file, tmp_path / 'b.hdf5')
    with h5py.File(tmp_path / 'b.hdf5', 'a') as file:
        file['tensor'][:2] *= 1000
    layout = files.LAYOUTS['tensor']
    seen = set()

    def watch(file, rows, frames):
        if frames != slice(0, 1):
            seen.update(range(*rows.indices(20)))
        return layout.read(file, rows, frames)
    monkeypatch.setitem(files.LAYOUTS, 'tensor', replace(layout, read=watch))
    for path, gb in ((burgers_file, 1), (tmp_path / 'b.hdf5', 0)):
        seen.clear()
        args = [*STOCHASTIC, '--max_iters=3', f'--data_path={path}', f'--memory_gb={gb}']
        g = train(tmp_path / str(gb), *args)
        assert bool(g['trajectories'].home) == bool(gb)
        assert seen == set(range(2, 20))                             # the first 2 are the test part
    same_run(tmp_path / '0', tmp_path / '1')


def test_data_that_break_during_the_training(tmp_path, train, burgers_file, monkeypatch):
    path = shutil.copy(burgers_file, tmp_path / 'b.hdf5')
    with monkeypatch.context() as patch:
        patch.setattr(data.Sampler, 'next', data.Sampler.next)
        stop_at(1, partial(os.truncate, path, 5_000_000))
        message = refused(train, tmp_path / 'o', f'--data_path={path}', '--memory_gb=0')
    assert 'b.hdf5' in message and '5000000 bytes' in message and 'truncated or damaged' in message


# ---------------------------------------------------------------------------------------------
# configuration

def test_accepted_values(tmp_path, train):
    values = {'learning_rate': ('1', 1.), 'muon-lr': ('1e-3', 1e-3), 'save_interval': ('1e4', 10000),
              'symmetries': ('false', False), 'wandb_run_name': ('123', '123'), 'compile': ('False', 'False'),
              'depths': ('1,1,1', (1, 1, 1)), 'grad_clip': ('0', 0.), 'batch_size': ('1', 1)}
    args = [f'--{key}={text}' for key, (text, _) in values.items()]
    g = train(tmp_path / 'o', '--max_iters=1', *FAST, *args)
    with open(tmp_path / 'o' / 'config.json') as file:
        found = json.load(file)
    assert g['run'].iteration == 1 and not g['machine'].compiled
    for key, (_, value) in values.items():
        key = key.replace('-', '_')
        assert g['config'][key] == value and type(g['config'][key]) is type(value)
        assert found[key] == (list(value) if isinstance(value, tuple) else value)


TWO = ' '.join(TWO_STAGES)


@pytest.mark.parametrize('args, says', [
    # keys and values
    ('--learning_rat=1', "'learning_rate'"), ('nofile.py', 'nofile.py'), ('--query_stride=2', 'removed'),
    ('--batch_size=1.5', 'whole'), ('--learning_rate=nan', 'finite'), ('--lambda_latent=-1', 'negative'),
    ('--batch_size=-1', 'negative'), ('--batch_size=0', 'batch_size=0'),
    ('--accumulation=0', 'accumulation=0'),
    ('--eval_interval=0', 'eval_interval=0'), ('--n_validated=0', 'n_validated=0'),
    ('--early_bias=0', 'early_bias=0'), ('--seed=4294967296', 'seed=4294967296 must be below'),
    ('--ema_decay=1', 'ema_decay=1'), ('--optimizer=sgd', 'muon, adamw'),
    ('--device=tpu', 'auto, cpu'), ('--device=cuda:7', 'CUDA'), ('--dtype=fp8', 'auto, float32'),
    ('--compile=maybe', 'auto, true'), ('--accumulation=3', 'accumulation=3'),
    # stages, losses, steppers
    ('--stages=operater', 'operater'), ('--stages=operator,operator', 'twice'), ('--stages=', 'at least one'),
    ('--unroll_start=3', 'unroll_start=3'), ('--unroll=0', 'unroll=0'), ('--unroll=60', 'unroll=60'),
    ('--lambda_field=0 --lambda_spectral=0 --lambda_latent=0', 'train the operator'),
    ('--lambda_field=0 --lambda_spectral=0 --lambda_inverse_encoding=0', 'train the decoder'),
    (f'{TWO} --second_stage.unroll=60', 'unroll=60'), (f'{TWO} --second_stage.hidden_dim=64', 'hidden_dim'),
    (f'{TWO} --second_stage.time_stride=1', 'time_stride'),
    (f'{TWO} --second_stage.accumulation=3', 'accumulation=3'),
    (f'{TWO} --second_stage.batch_size=0', 'batch_size=0'),
    (f'{TWO} --second_stage.ema_decay=1', 'ema_decay=1'),
    ('--stages=operator,consistency_distill', 'diff_residual'), ('--num_queries=8', 'spectral'),
    ('--num_queries=4096 --lambda_spectral=0', 'num_queries=4096'),
    ('--lambda_divergence=1', 'lambda_divergence'),
    ('--cache_copies=2', 'cache_copies'),
    # shapes
    ('--arch=u --depths=1,1', 'depths'), ('--n_head=3', '3 does not divide 32'), ('--encoder_dim=12', 'even'),
    ('--attention=channel --group_size=7', '7 does not divide 32'), ('--patch_size=3', '3 does not divide'),
    ('--latent_tokens=5', '5 does not divide'), ('--halo=1000', 'halo=1000'),
    ('--drop_path=1', 'drop_path=1'),
    ('--space_stride=3', 'space_stride=3'), ('--space_stride=0', 'space_stride=0'),
     ('--time_stride=200', 'time_stride=200'), ('--token_shift=4', 'token_shift=4'),
    ('--initial_step=40', 'initial_step=40'), ('--n_trajectories=2', '2 trajectories'),
    ('--resolution=1', 'resolution=1'), ('--nu=-1', 'positive'), ('--beta=1', 'beta'),
    # files and folders
    ('--init_from=nowhere', 'no checkpoint'), ('--data_path=nowhere.hdf5', 'does not exist'),
    ('--data_path=,', 'names no file'), (f'--data_path={ROOT}', 'is a directory'), ('--out_dir=', 'out_dir'),
    (f'--out_dir={SMOKE}', 'is a file'), ('--out_dir=/proc/no', 'cannot be written')])
def test_refused_before_any_work(args, says, tmp_path, monkeypatch):
    """In one line, and nothing is there afterwards but the lock of the folder: no data are made first."""
    line = refused(train_here, monkeypatch, SMOKE, '--device=cpu', f'--data_dir={tmp_path}/d',
                   f'--out_dir={tmp_path}/o', *args.split())
    assert says in line
    left = [name for _, folders, names in os.walk(tmp_path) for name in folders + names]
    assert set(left) <= {'o', 'lock'}


@pytest.mark.slow
@pytest.mark.parametrize('script', ['train.py', 'eval.py', 'sample.py', 'data.py', 'bench.py'])
def test_scripts_in_an_interpreter_of_their_own(script, tmp_path):
    """Where nothing is imported before them; what conftest.py runs has torch already."""
    name, *args = script.split()
    command = [sys.executable, os.path.join(ROOT, name), *args, '--help']
    done = subprocess.run(command, cwd=tmp_path, env=ENV, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0 and done.stderr == '' and name in done.stdout, done.stderr


def test_errors_of_the_script_itself(tmp_path, child, burgers_file):
    (tmp_path / 'typo.py').write_text('learning_rat = 1.\n')
    done = run('typo.py', cwd=tmp_path, check=False)
    assert done.returncode == 1 and "did you mean 'learning_rate'" in error_line(done.stderr)
    (tmp_path / 'broken.hdf5').write_bytes(open(burgers_file, 'rb').read()[:100_000])
    line = child(tmp_path / 'o', f'--data_path={tmp_path}/broken.hdf5').error_line()
    assert 'broken.hdf5' in line and 'truncated' in line


# ---------------------------------------------------------------------------------------------
# the system

def test_out_of_memory_names_the_knobs(tmp_path, child):
    """On a CPU: more bytes than any address space has."""
    line = child(tmp_path / 'o', '--batch_size=600000000000000').error_line()
    assert "can't allocate memory" in line and 'lower batch_size, raise accumulation' in line


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_out_of_memory_of_a_gpu_names_the_knobs(tmp_path, child):
    line = child(tmp_path / 'o', '--device=cuda', '--compile=false', '--batch_size=30000000').error_line()
    assert 'lower batch_size, raise accumulation' in line


@pytest.mark.parametrize('memory', [
    MemoryError('Unable to allocate 8 TiB'), RuntimeError("x: can't allocate memory")])
def test_out_of_memory_of_a_cpu_is_one_line(memory, capsys):
    configurator._excepthook(type(memory), memory, None)
    assert 'lower batch_size' in error_line(capsys.readouterr().err)


class Wandb:
    """Fails where it is told to, and keeps what is logged and the ids of runs."""

    def __init__(self, fails):
        self.fails = fails
        self.rows = []
        self.ids = []

    def Settings(self, **_):
        return None

    def init(self, id, resume, **_):
        assert resume == 'allow' and not sys.stdin.isatty()
        self.ids.append(id)
        torch.rand(3)                                                # whatever it does to random states
        if self.fails == 'init':
            raise ConnectionError('no route\nto host')

    def log(self, row, step):
        assert step == row['iter']
        self.rows.append(row)
        if self.fails == 'log' and len(self.rows) == 2:
            raise BrokenPipeError

    def finish(self):
        if self.fails == 'finish':
            raise TimeoutError('no answer')


def test_wandb_changes_nothing(tmp_path, train, monkeypatch, capsys):
    """Nor does it stop a run, whatever fails. It has every number of log.csv."""
    args = [*STOCHASTIC, '--max_iters=2', '--log_interval=1', '--eval_interval=2']
    train(tmp_path / 'without', *args)
    more = [*TWO_STAGES, *args, '--max_iters=1', '--second_stage.max_iters=2', '--eval_interval=1']
    for fails in ('import', 'init', 'log', 'finish', 'nothing'):
        wandb = None if fails == 'import' else Wandb(fails)
        monkeypatch.setitem(sys.modules, 'wandb', wandb)
        capsys.readouterr()
        train(tmp_path / fails, *(more if fails == 'nothing' else args), '--wandb_log=true')
        assert ('log.csv has it all' in capsys.readouterr().out) == (fails != 'nothing')
        if fails != 'nothing':
            same_run(tmp_path / fails, tmp_path / 'without')
    with open(tmp_path / 'nothing' / 'log.csv') as file:
        logged = [{name: text for name, text in row.items() if text} for row in csv.DictReader(file)]
    assert [{name: str(value) for name, value in row.items()} for row in wandb.rows] == logged
    assert len(logged) == 3 and 'val_nrmse' in logged[0] and 'step_error' in logged[1]


def test_a_run_that_goes_on_is_one_run_in_wandb(tmp_path, train, monkeypatch):
    """Also if a part of it was not logged there. A run that begins anew in the same folder is another one."""
    monkeypatch.setitem(sys.modules, 'wandb', wandb := Wandb('nothing'))
    master, terminal = os.openpty()
    with os.fdopen(master), os.fdopen(terminal) as stdin:
        monkeypatch.setattr(sys, 'stdin', stdin)                     # which it must not be able to read
        for n, logged in enumerate((True, False, True), 1):
            train(tmp_path / 'o', *FAST, f'--max_iters={n}', f'--wandb_log={logged}')
        assert sys.stdin is stdin
        anew = ['--init_from=scratch', '--overwrite=true']
        train(tmp_path / 'o', *FAST, '--max_iters=1', '--wandb_log=true', *anew)
    assert len(wandb.ids) == 3 and wandb.ids[0] == wandb.ids[1] != wandb.ids[2]


def with_wandb(folder, *args, before=''):
    """A run with the real package, offline, in a process of its own. before: Python that the process runs
    first."""
    paths = ':'.join([ROOT, f'{ROOT}/tests', f'{ROOT}/tests/core'])
    env = {**ENV, 'WANDB_MODE': 'offline', 'WANDB_DIR': str(folder), 'PYTHONPATH': paths}
    script = f'import runpy\n{before}\nrunpy.run_path({ROOT + "/train.py"!r}, run_name="__main__")'
    command = [sys.executable, '-c', script, *map(str, args), '--wandb_log=true']
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def kill_wandb():
    """Kill the service that the package has started, which is a child of this process."""
    n_killed = 0
    for path in glob.glob('/proc/[0-9]*/stat'):
        with contextlib.suppress(OSError), open(path) as file:
            pid, name, _, parent = file.read().split()[:4]
            if int(parent) == os.getpid() and 'wandb' in name:
                os.kill(int(pid), signal.SIGKILL)
                n_killed += 1
    assert n_killed, 'no service of wandb is running'


@pytest.mark.slow
def test_killed_wandb_does_not_stop_a_training(tmp_path, burgers_file, train):
    pytest.importorskip('wandb')
    args = [*STOCHASTIC, '--max_iters=6', '--log_interval=1', '--eval_interval=2']
    done = with_wandb(tmp_path, *smoke_args(burgers_file, tmp_path / 'with'), *args,
                      before='import conftest, test_faults\nconftest.stop_at(3, test_faults.kill_wandb)')
    assert 'wandb stopped' in done.stdout and 'done: 6 iterations' in done.stdout
    train(tmp_path / 'without', *args)
    same_run(tmp_path / 'without', tmp_path / 'with')


@pytest.mark.parametrize('kind', ['closed pipe', 'full disk'])
def test_lost_stdout_does_not_stop_a_training(kind, tmp_path, child):
    args = [*FAST, '--max_iters=5', '--log_interval=1']
    done = child(tmp_path / 'o', *args, before=[partial(stdout_to, kind)])
    assert done.wait() == 0 and done.text('err') == ''
    assert load_checkpoint(str(tmp_path / 'o' / 'last.pt'))['iter'] == 5
