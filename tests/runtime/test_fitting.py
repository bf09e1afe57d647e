"""runtime/fitting.py: the error of keys that do not fit a file lists keys that do, and these train."""
import os
import shlex
from types import SimpleNamespace

import pytest

from conftest import ROOT, refused, rows_of, train_here, waves, write
from runtime.fitting import candidates, replaced, time_keys

PURE = os.path.join(ROOT, 'config', 'burgers_128_pure.py')
SMOKE = os.path.join(ROOT, 'config', 'burgers_smoke.py')
# of the large config, so that it trains in a second
SMALL = ['--hidden_dim=16', '--depth=1', '--n_head=2', '--encoder_dim=8', '--decoder_dim=8', '--max_iters=1',
         '--coder_depth=0']


@pytest.mark.parametrize('config, cells, frames, flags, changed', [
    (PURE, 64, 20, SMALL, 'latent_tokens patch_size'),
    (PURE, 64, 20, [*SMALL, '--unroll=8', '--early-bias=1'], 'latent_tokens patch_size time_stride'),
    (SMOKE, 50, 3, ['--max_iters=1'], 'latent_tokens patch_size space_stride time_stride'),
    (SMOKE, 36, 2, ['--max_iters=1'], 'latent_tokens space_stride time_stride unroll'),
    (SMOKE, 64, 20, ['--max_iters=1', '--token_shift=9', '--unroll=1'],
     'patch_size space_stride token_shift')])
def test_the_command_of_the_error_trains(config, cells, frames, flags, changed, tmp_path, monkeypatch):
    file = write(tmp_path / 'small.hdf5', waves(10, frames, cells))
    args = [config, f'--data_path={file}', '--device=cpu', f'--out_dir={tmp_path}/o', *flags]
    command = refused(train_here, monkeypatch, *args).partition('Keys that fit this file: ')[2]
    first, script, *argv = shlex.split(command)
    assert (first, script, argv[0]) == ('python', 'train.py', config)
    new = [arg.partition('=')[0][2:] for arg in argv if arg not in args]
    assert sorted(new) == changed.split()
    train_here(monkeypatch, *argv)
    assert len(rows_of(tmp_path / 'o')) == 1


KEYS = {'initial_step': 1, 'unroll': 2, 'unroll_start': 1, 'time_stride': 10, 'space_stride': 1,
        'latent_tokens': 8, 'latent_dim': 16, 'halo': 9, 'encoder_dim': 0, 'patch_size': 4, 'token_shift': 0}


@pytest.mark.parametrize('n_frames, given, expected', [
    (21, {}, {}), (20, {}, {'time_stride': 9}), (21, {'initial_step': 5}, {'initial_step': 5, 'time_stride': 3}),
    (4, {'unroll': 8, 'unroll_start': 8, 'time_stride': 1}, {'unroll': 3, 'unroll_start': 3, 'time_stride': 1}),
    (4, {'initial_step': 4}, {'time_stride': 1})])
def test_no_more_is_changed_than_the_frames_ask_for(n_frames, given, expected):
    same = {name: KEYS[name] for name in ('initial_step', 'unroll', 'unroll_start', 'time_stride')}
    assert time_keys(SimpleNamespace(**{**KEYS, **given}), n_frames) == {**same, **expected}


@pytest.mark.parametrize('shift, latent_dim, expected', [
    (1, 16, [(1, 16), (1, 16), (0, 16)]), (4, 2, [(2, 2), (2, 4), (0, 2)])])
def test_tokens_that_hold_their_patch_are_tried_and_tokens_that_do_not_move(shift, latent_dim, expected):
    """The points of a token are 4, and the halo is at most the grid."""
    keys = SimpleNamespace(**{**KEYS, 'token_shift': shift, 'latent_dim': latent_dim, 'latent_tokens': 2})
    found = list(candidates(keys, SimpleNamespace(n_frames=21, shape=(8,), fields=('u',))))[:3]
    assert [(sizes['token_shift'], sizes['latent_dim']) for sizes in found] == expected
    assert {sizes['halo'] for sizes in found} == {8}


def test_a_key_is_typed_once():
    argv = ['a.py', '--time-stride=4', '--unroll=2']
    assert replaced(argv, {'time_stride': 1}) == ['a.py', '--unroll=2', '--time_stride=1']


def test_an_error_that_no_stride_mends_is_told_alone(tmp_path, monkeypatch):
    file = write(tmp_path / 'small.hdf5', waves(10, 20, 64))
    args = [PURE, f'--data_path={file}', '--device=cpu', f'--out_dir={tmp_path}/o', *SMALL]
    assert 'Keys that fit' not in refused(train_here, monkeypatch, *args, '--n_head=3')
