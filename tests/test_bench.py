"""bench.py: the peers are trained, scored and tabled; what cannot be compared is refused."""
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

import bench
import data
from solvers import burgers

ROOT = os.path.dirname(os.path.abspath(bench.__file__))
SMOKE = os.path.join(ROOT, 'config', 'burgers_smoke.py')


def run(*args, cwd):
    return subprocess.run([sys.executable, os.path.join(ROOT, 'bench.py'), *map(str, args)], cwd=cwd, text=True,
                          env={**os.environ, 'OMP_NUM_THREADS': '1'}, capture_output=True, timeout=300)


def test_peers(tmp_path, burgers_file):
    done = run('peers', SMOKE, '--minutes', .02, '--seeds', 2, '--methods', 'ours', 'unet', '--json', 'p.json',
               '--plot', 'p.png', f'--data_path={burgers_file}', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / 'p.json').read_text())
    assert set(found) == {'ours', 'unet', 'persistence', 'classical'} and (tmp_path / 'p.png').stat().st_size > 1000
    for method in ('ours', 'unet'):
        r = found[method]
        assert {'nrmse', 'seconds', 'n_params', 'iters', 'ms_per_trajectory'} <= r.keys()
        assert len(r['nrmse_seeds']) == 2 and r['nrmse'] == pytest.approx(sum(r['nrmse_seeds']) / 2)
        assert len(r['per_step']) == 40 and r['nrmse'] == pytest.approx(sum(r['per_step']) / 40, rel=1e-4)
        assert r['iters'] > 1 and r['n_params'] > 1e4 and r['seconds'] >= 1
    assert 'nRMSE of ours / unet' in done.stdout
    assert sorted(os.listdir(tmp_path)) == ['p.json', 'p.png']        # nothing of the runs is left behind


@pytest.mark.parametrize('latent_dim, dims', [(18, (34, 10)), (20, (34, 20))])
def test_other_numbers_of_tokens_hold_their_points(latent_dim, dims):
    """A token that has room for its points and the moving frame alone keeps it so; other widths stay where they fit."""
    g = {'depth': 4, 'hidden_dim': 96, 'cfg': SimpleNamespace(grid=(512,)), 'n_head': 4, 'latent_tokens': 32,
         'latent_dim': latent_dim, 'patch_size': 8, 'halo': 4, 'token_shift': 20}
    cells = bench.study_cells(g, [16, 32, 64])
    assert len(cells) == 7 and 'pure, standard, 32 tokens' not in cells
    for n, dim, shift in zip((16, 64), dims, (20, 7)):
        method, changes = cells[f'pure, standard, {n} tokens']
        assert method == 'ours' and {f'--latent_tokens={n}', f'--latent_dim={dim}', f'--token_shift={shift}'} <= \
            set(changes)


def test_study_runs_what_is_missing_and_tables_what_is_there(tmp_path, burgers_file):
    args = ['study', SMOKE, '--iters', 2, '--nus', .01, '--tokens', 8, '--methods', 'ours', '--out', 's',
            f'--data_path={burgers_file}']
    done = run(*args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    files = sorted(f for f in os.listdir(tmp_path / 's') if f.endswith('.json'))
    found = {json.loads((tmp_path / 's' / f).read_text())['name']: f for f in files}
    assert set(found) == {'pure, standard', 'pure, channel', 'u, standard', 'u, channel', 'pure, standard, 8 tokens'}
    rows = [line for line in done.stdout.splitlines() if line.startswith(('| pure', '| u'))]
    assert len(rows) == 5 and '| best |' in rows[0]
    lost = found['u, channel']
    before = {f: (tmp_path / 's' / f).read_text() for f in files}
    os.remove(tmp_path / 's' / lost)                                 # as if stopped before the result was written
    again = run(*args, cwd=tmp_path)
    assert again.returncode == 0 and [s for s in again.stdout.splitlines() if s.startswith('ours')] == \
        [s for s in done.stdout.splitlines() if s.startswith('ours')][3:4]
    for f in files:
        then, now = json.loads(before[f]), json.loads((tmp_path / 's' / f).read_text())
        assert (f == lost or before[f] == (tmp_path / 's' / f).read_text()) and then['nrmse'] == now['nrmse']
    other = run(*[3 if a == 2 else a for a in args], cwd=tmp_path)
    assert other.returncode == 1 and 'another study' in other.stderr
    wrong = run(*[.1 if a == .01 else a for a in args], cwd=tmp_path)
    assert wrong.returncode == 1 and 'is not of nu 0.1' in wrong.stderr


def test_a_terminated_bench_takes_its_training_along(tmp_path, burgers_file):
    log = tmp_path / 's' / 'pure-standard-nu_0.01-seed_0' / 'log.csv'
    args = 'study', SMOKE, '--minutes=5', '--nus=.01', '--tokens=16', '--out=s', f'--data_path={burgers_file}'
    bench_py = subprocess.Popen([sys.executable, os.path.join(ROOT, 'bench.py'), *args], cwd=tmp_path,
                                stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 120
        while not log.exists():
            assert bench_py.poll() is None and time.monotonic() < end
            time.sleep(.1)
        bench_py.send_signal(signal.SIGTERM)
        assert bench_py.wait(60) == 128 + signal.SIGTERM
        with open(log.with_name('lock')) as lock:                    # which a training holds as long as it lives
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        bench_py.kill()


def test_speed_counts_the_flops_of_the_blocks(tmp_path, burgers_file):
    """By hand, forward: 24 D² a token and block in the linear layers, 4 S D in the attention; twice that backward."""
    done = run('speed', SMOKE, '--repeats', 2, '--modes', 'eager', 'bf16', '--json', 's.json', '--encoder_dim=0',
               '--decoder_dim=0', '--lambda_inverse_encoding=0', f'--data_path={burgers_file}', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / 's.json').read_text())
    assert [r['mode'] for r in found] == ['eager', 'bf16']
    B, K, S, D, depth = 8, 2, 16, 32, 2
    blocks = 3 * B * K * S * depth * (24 * D ** 2 + 4 * S * D)
    for r in found:
        assert blocks < r['flops_per_iteration'] < 1.2 * blocks and 0 < r['utilisation'] < 1


def test_speed_against_another_tree(tmp_path, burgers_file):
    done = run('speed', SMOKE, '--against', ROOT, '--rounds', 1, f'--data_path={burgers_file}', '--json', 's.json',
               cwd=tmp_path)
    assert done.returncode == 0 and 'ratio' in done.stdout, done.stderr
    ms = json.loads((tmp_path / 's.json').read_text())[SMOKE]
    assert len(ms['here']) == len(ms['there']) == 1 and min(*ms['here'], *ms['there']) > 0


@pytest.mark.parametrize('args, message', [(['--minutes', 0], '--minutes'), (['--json', 'no/p.json'], "'no/p.json'"),
                                           (['--input_frames=2'], 'one input frame'),
                                           (['--n_trajectorie=3'], 'n_trajectories')])
def test_peers_refuse(tmp_path, burgers_file, args, message):
    done = run('peers', SMOKE, f'--data_path={burgers_file}', '--methods', 'unet', *args, cwd=tmp_path)
    assert done.returncode == 1 and message in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.parametrize('frame', [False, True])
def test_peers_roll_out_in_either_frame(burgers_file, frame):
    """A network that does nothing leaves the field where it is, or lets the mean flow carry it along."""
    source = data.open_source(burgers_file, quiet=True)
    windows = data.Windows([source], 20, 5, 8, 8, 2, torch.device('cpu'))
    x = (torch.arange(128) / 128)[None, :, None]
    u0 = 1.5 + torch.sin(2 * torch.pi * x) + .3 * torch.cos(6 * torch.pi * x)
    p = bench.roll_out(torch.nn.Identity(), u0, 3, windows, frame)
    for k in range(3):
        y = x - 1.5 * .05 * (k + 1) * frame
        expected = 1.5 + torch.sin(2 * torch.pi * y) + .3 * torch.cos(6 * torch.pi * y)
        assert torch.allclose(p[:, k], expected, atol=1e-5)


def test_classical_solver_converges_with_its_grid():
    x = (torch.arange(128, dtype=torch.float64) + .5) / 128
    u0 = torch.stack([torch.sin(2 * torch.pi * x), .5 + torch.cos(2 * torch.pi * x)])
    u = burgers(u0, .05, [0., .05, .1]).cpu()[..., None].float()
    found = bench.classical(u, .05, .05)
    errors = [found[n][0] for n in (128, 64, 32, 16)]
    assert errors == sorted(errors) and errors[0] < 1e-5 and errors[1] < 2e-2
