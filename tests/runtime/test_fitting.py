"""runtime/fitting.py: the error of keys that do not fit a file lists keys that do, and these train."""
import os
import shlex

import pytest

from conftest import ROOT, refused, rows_of, train_here, waves, write

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


def test_an_error_that_no_stride_mends_is_told_alone(tmp_path, monkeypatch):
    file = write(tmp_path / 'small.hdf5', waves(10, 20, 64))
    args = [PURE, f'--data_path={file}', '--device=cpu', f'--out_dir={tmp_path}/o', *SMALL]
    assert 'Keys that fit' not in refused(train_here, monkeypatch, *args, '--n_head=3')
