"""train.py as a user runs it: end to end, two processes, every config. Its faults: test_faults.py."""
import csv
import glob
import json
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch

from conftest import ENV, ROOT, SMOKE, run, train_here, weights


def test_smoke_run_leaves_a_folder_that_describes_itself(smoke):
    assert {'config.json', 'env.json', 'log.csv', 'last.pt', 'best.pt'} <= set(os.listdir(smoke / 'o'))
    with open(smoke / 'o' / 'log.csv') as file:
        rows = list(csv.DictReader(file))
    assert [int(r['iter']) for r in rows] == [5, 10, 15, 20] and list(rows[0])[0] == 'iter'
    assert [bool(r['val_nrmse']) for r in rows] == [False, True, False, True]
    state = torch.load(smoke / 'o' / 'last.pt', weights_only=True)
    assert {'model', 'ema', 'config', 'iter', 'stage'} <= state.keys() and state['iter'] == 20
    assert json.loads(json.dumps(state['config'])) == state['config']
    assert json.load(open(smoke / 'o' / 'env.json'))['command'].endswith('--out_dir=o')


def test_two_processes_train_as_one(tmp_path, burgers_file):
    """Same global batches, so the same weights up to the order of sums in float32. AdamW and few iterations, since
    the Newton-Schulz iteration amplifies rounding; no inverse decoding, whose variance is of the local batch."""
    common = [SMOKE, f'--data_path={burgers_file}', '--device=cpu', '--max_iters=4', '--lambda_inverse_decoding=0',
              '--optimizer=adamw', '--noise=0', '--eval_interval=4']
    run(*common, '--out_dir=one', cwd=tmp_path)
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2',
                           os.path.join(ROOT, 'train.py'), *common, '--out_dir=two'], cwd=tmp_path, env=ENV,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    one, two = weights(tmp_path / 'one'), weights(tmp_path / 'two')
    for k in one:
        torch.testing.assert_close(one[k], two[k], rtol=1e-3, atol=1e-4, msg=k)
    with open(tmp_path / 'two' / 'log.csv') as file:
        assert [int(r['iter']) for r in csv.DictReader(file)] == [4]


CONFIGS = sorted(os.path.basename(p) for p in glob.glob(os.path.join(ROOT, 'config', '*.py')))


def test_windows_move_on_with_the_tokens(tmp_path, monkeypatch):
    """Fields that stand still: to an untrained model, which is persistence, all its latents are right, and stay so."""
    x = (np.arange(1024) + .5) / 1024
    u = np.sin(2 * np.pi * (x + np.arange(20)[:, None] / 20))[:, None] * np.ones((201, 1))
    path = tmp_path / 'still.hdf5'
    with h5py.File(path, 'w') as file:
        file['tensor'], file['x-coordinate'] = u.astype(np.float32), x.astype(np.float32)
        file['t-coordinate'], file.attrs['Nu'] = (np.arange(202) * .01).astype(np.float32), .01
    train_here(monkeypatch, SMOKE, f'--data_path={path}', f'--out_dir={tmp_path}/o', '--max_iters=1',
               '--log_interval=1', '--unroll_start=2')
    with open(tmp_path / 'o' / 'log.csv') as file:
        row = next(csv.DictReader(file))
    assert float(row['latent']) < 1e-10 and float(row['field']) < 1e-3


@pytest.mark.parametrize('name', CONFIGS)
def test_every_config_trains(name, tmp_path, burgers_file, monkeypatch):
    g = train_here(monkeypatch, os.path.join(ROOT, 'config', name), '--device=cpu', '--max_iters=2', '--batch_size=2',
                   '--compile=false', f'--data_path={burgers_file}', f'--out_dir={tmp_path}/o', '--eval_batches=1')
    assert g['iteration'] == 2 and all(torch.isfinite(p).all() for p in g['model'].parameters())
    with open(os.path.join(ROOT, 'config', name)) as file:
        assert 8 <= len(file.readlines()) <= 40


def test_two_by_two_differs_in_arch_and_attention_alone():
    def keys(name):
        found = {}
        exec(open(os.path.join(ROOT, 'config', name)).read(), found)
        return {k: v for k, v in found.items() if not k.startswith('_') and k != 'out_dir'}
    pure, channel = keys('burgers_128_pure.py'), keys('burgers_128_pure_channel.py')
    u, standard = keys('burgers_128_u.py'), keys('burgers_128_u_standard.py')
    ignored = {'attention', 'n_head', 'group_size', 'arch', 'depth', 'depths'}
    same = lambda a: {k: v for k, v in a.items() if k not in ignored}  # noqa: E731
    assert same(pure) == same(channel) == same(u) == same(standard)
    assert pure['depth'] == channel['depth'] == sum(u['depths']) == sum(standard['depths'])


def test_inverse_pair_differs_in_the_inverse_losses_alone():
    plain, inverse = ({}, {})
    exec(open(os.path.join(ROOT, 'config', 'burgers_32_u.py')).read(), plain)
    exec(open(os.path.join(ROOT, 'config', 'burgers_32_u_inverse.py')).read(), inverse)
    differ = {k for k in plain.keys() | inverse.keys() if plain.get(k) != inverse.get(k)}
    assert differ == {'out_dir', 'lambda_inverse_encoding', 'lambda_inverse_decoding'}


def test_one_batch_over_fits(tmp_path, burgers_file, monkeypatch):
    """Eight windows, seen again and again, are learnt: a wiring fault anywhere would show."""
    g = train_here(monkeypatch, SMOKE, f'--data_path={burgers_file}', f'--out_dir={tmp_path}/o', '--max_iters=150',
                   '--shift=false', '--flip=false', '--query_stride=16', '--n_trajectories=3', '--batch_size=8',
                   '--learning_rate=5e-3', '--eval_interval=1000', '--early=8', '--log_interval=50')
    with open(tmp_path / 'o' / 'log.csv') as file:
        field = [float(r['field']) for r in csv.DictReader(file) if r['field']]
    assert field[-1] < .12, (field, g['windows'].n_windows)


def test_fine_tuning_starts_from_weights(smoke, burgers_file, tmp_path, monkeypatch):
    g = train_here(monkeypatch, SMOKE, f'--data_path={burgers_file}', f'--out_dir={tmp_path}/o',
                   f'--init_from={smoke}/o', '--max_iters=1', '--learning_rate=1e-9', '--muon_lr=1e-9')
    old = torch.load(smoke / 'o' / 'best.pt', weights_only=True)['ema']
    assert all(torch.allclose(v, old[k], atol=1e-6) for k, v in g['model'].state_dict().items())


def test_patience_stops_early(tmp_path, burgers_file, monkeypatch):
    g = train_here(monkeypatch, SMOKE, f'--data_path={burgers_file}', f'--out_dir={tmp_path}/o', '--eval_interval=1',
                   '--patience=2', '--learning_rate=1e-12', '--muon_lr=1e-12', '--max_iters=50')
    assert g['iteration'] < 10


def test_sample_and_bench_run(smoke):
    run('--ckpt', 'o', script='sample.py', cwd=smoke)
    assert {'rollout.npz', 'rollout.png', 'rollout.gif'} <= set(os.listdir(smoke / 'o'))
    run('--ckpt', 'o', '--random', '3', '--points', '.1', '.9', '--format', 'hdf5', '--out', 'r', script='sample.py',
        cwd=smoke)
    assert os.listdir(smoke / 'r') == ['rollout.hdf5']
    run('speed', SMOKE, '--repeats', '2', '--json', 's.json', script='bench.py', cwd=smoke)
    found = json.load(open(smoke / 's.json'))[0]
    assert sum(found['share'].values()) > .5 and found['ms_per_iteration'] > 0
