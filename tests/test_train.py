"""train.py as a user runs it: end to end, resume, every config, every user error in one line."""
import csv
import glob
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SMOKE = os.path.join(ROOT, 'config', 'burgers_smoke.py')
ENV = {**os.environ, 'OMP_NUM_THREADS': '1'}


def run(*args, script='train.py', cwd, check=True, env=None):
    """Run a script in a process of its own. -> CompletedProcess"""
    done = subprocess.run([sys.executable, os.path.join(ROOT, script), *map(str, args)], cwd=cwd, env=env or ENV,
                          capture_output=True, text=True, timeout=300)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def train_here(monkeypatch, *args):
    """Run train.py in this process, which saves the import of torch. -> its globals"""
    monkeypatch.setattr(sys, 'argv', ['train.py', *map(str, args)])
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    try:
        return runpy.run_path(os.path.join(ROOT, 'train.py'), run_name='__main__')
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), handlers):
            signal.signal(number, handler)


def weights(folder, name='last.pt'):
    state = torch.load(os.path.join(folder, name), weights_only=True)
    return {f'{part}.{k}': v for part in ('model', 'ema') for k, v in state[part].items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def copy(smoke, tmp_path):
    """A copy of the finished smoke run, to resume: a failed run in this process keeps its lock for a while."""
    return shutil.copytree(smoke / 'o', tmp_path / 'copy')


def error_line(done):
    """The one line on stderr of a failed run."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode in (1, 2) and len(lines) == 1 and lines[0].startswith('error: '), done.stderr
    return lines[0]


@pytest.fixture(scope='module')
def smoke(tmp_path_factory, burgers_file):
    """A finished smoke run and its folder."""
    folder = tmp_path_factory.mktemp('a b é')                        # a space and an accent in the path
    run(SMOKE, f'--data_path={burgers_file}', '--out_dir=o', cwd=folder)
    return folder


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


def test_finished_run_is_left_alone(smoke, burgers_file):
    before = {f: os.path.getmtime(smoke / 'o' / f) for f in ('last.pt', 'best.pt', 'log.csv')}
    done = run(SMOKE, f'--data_path={burgers_file}', '--out_dir=o', cwd=smoke)
    assert 'already finished' in done.stdout
    assert before == {f: os.path.getmtime(smoke / 'o' / f) for f in before}


@pytest.mark.parametrize('extra', [[], ['--dtype=bfloat16', '--optimizer=adamw'], ['--memory_gb=0', '--input_frames=2'],
                                   ['--arch=u', '--attention=channel', '--checkpointing=true']])
def test_killed_run_resumes_bit_equal(tmp_path, burgers_file, monkeypatch, extra):
    common = [SMOKE, f'--data_path={burgers_file}', '--drop_path=.2', '--noise=.01', '--accumulation=2',
              '--max_iters=12', '--save_interval=5', '--boost=1', *extra]
    train_here(monkeypatch, *common, f'--out_dir={tmp_path}/whole')
    child = subprocess.Popen([sys.executable, os.path.join(ROOT, 'train.py'), *common, f'--out_dir={tmp_path}/killed'],
                             stdout=subprocess.PIPE, text=True, env=ENV)
    while not os.path.exists(tmp_path / 'killed' / 'last.pt'):
        assert child.poll() is None
        time.sleep(.005)
    child.kill()
    child.wait()
    assert torch.load(tmp_path / 'killed' / 'last.pt', weights_only=True)['iter'] < 12
    train_here(monkeypatch, *common, f'--out_dir={tmp_path}/killed')
    assert equal(weights(tmp_path / 'whole'), weights(tmp_path / 'killed'))
    assert equal(weights(tmp_path / 'whole', 'best.pt'), weights(tmp_path / 'killed', 'best.pt'))
    with open(tmp_path / 'killed' / 'log.csv') as file:
        iters = [int(r['iter']) for r in csv.DictReader(file)]
    assert iters == sorted(set(iters))


@pytest.mark.parametrize('number, code', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_saves_and_the_same_command_continues(tmp_path, burgers_file, monkeypatch, number, code):
    common = [SMOKE, f'--data_path={burgers_file}', '--save_interval=1000', '--log_interval=1', '--max_iters=60',
              '--eval_interval=1000']
    child = subprocess.Popen([sys.executable, os.path.join(ROOT, 'train.py'), *common, f'--out_dir={tmp_path}/o'],
                             stdout=subprocess.PIPE, text=True, env=ENV)
    for line in child.stdout:
        if line.startswith('iter 3/'):
            child.send_signal(number)
            break
    rest = child.communicate()[0]
    assert child.returncode == code and 'the same command continues' in rest
    state = torch.load(tmp_path / 'o' / 'last.pt', weights_only=True)
    assert 3 <= state['iter'] < 60
    train_here(monkeypatch, *common, f'--out_dir={tmp_path}/o')
    train_here(monkeypatch, *common, f'--out_dir={tmp_path}/whole')
    assert equal(weights(tmp_path / 'o'), weights(tmp_path / 'whole'))


def test_closed_pipe_does_not_stop_a_training(tmp_path, burgers_file):
    command = f'"{sys.executable}" "{ROOT}/train.py" "{SMOKE}" --data_path="{burgers_file}" --out_dir=o | head -1'
    subprocess.run(command, shell=True, cwd=tmp_path, env=ENV, check=True, stdout=subprocess.DEVNULL)
    assert torch.load(tmp_path / 'o' / 'last.pt', weights_only=True)['iter'] == 20


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


BAD = [('--learning_rat=1', "unknown key 'learning_rat', did you mean 'learning_rate'?"),
       ('--device=tpu', 'cpu'), ('--dtype=fp8', 'bfloat16'), ('--batch_size=0', 'batch_size=0'),
       ('--batch_size=-1', 'batch_size'), ('--learning_rate=nan', 'finite'), ('--out_dir=', 'out_dir'),
       ('--n_head=3', 'n_head'), ('--data_path=nowhere.hdf5', 'nowhere'), ('--stages=operater', 'operator'),
       ('--patch_size=3', 'does not divide'), ('--latent_tokens=5', 'does not divide'), ('--unroll=60', '41'),
       ('--accumulation=3', 'multiple'), ('--init_from=nowhere', 'no checkpoint'), ('nofile.py', 'nofile.py'),
       ('--encoder_dim=12', 'even'), ('--space_stride=3', 'must divide'), ('--device=cuda:7', 'CUDA'),
       ('--unroll_start=3', 'unroll=2')]


@pytest.mark.parametrize('arg, says', BAD, ids=[b[0] for b in BAD])
def test_bad_input_is_one_line(arg, says, tmp_path, burgers_file, monkeypatch):
    from configurator import UserError
    given = [] if arg.startswith('--data_path') else [f'--data_path={burgers_file}']
    with pytest.raises(Exception) as caught:
        train_here(monkeypatch, SMOKE, *given, f'--out_dir={tmp_path}/o', arg)
    assert caught.type.__name__ == UserError.__name__ and says in str(caught.value) and '\n' not in str(caught.value)


def test_errors_of_the_script_itself(tmp_path, smoke, burgers_file):
    typo = tmp_path / 'typo.py'
    typo.write_text('learning_rat = 1.\n')
    assert "did you mean 'learning_rate'" in error_line(run(typo, cwd=tmp_path, check=False))
    broken = tmp_path / 'broken.hdf5'
    broken.write_bytes(open(burgers_file, 'rb').read()[:100_000])
    line = error_line(run(SMOKE, f'--data_path={broken}', cwd=tmp_path, check=False))
    assert 'broken.hdf5' in line and 'truncated' in line and 'LOCKING' not in line
    os.makedirs(tmp_path / 'o')
    data = open(smoke / 'o' / 'last.pt', 'rb').read()
    (tmp_path / 'o' / 'last.pt').write_bytes(data[:len(data) // 2])
    line = error_line(run(SMOKE, f'--data_path={burgers_file}', '--out_dir=o', cwd=tmp_path, check=False))
    assert 'last.pt' in line
    assert 'o' in error_line(run('--ckpt', 'o', script='eval.py', cwd=tmp_path, check=False))


@pytest.mark.parametrize('change, says', [('--depth=3', 'depth: 2 there, 3 now'),
                                          ('--n_trajectories=10', 'n_trajectories')])
def test_resume_with_another_configuration_is_refused(change, says, copy, burgers_file, monkeypatch):
    with pytest.raises(ValueError, match=says):
        train_here(monkeypatch, SMOKE, f'--data_path={burgers_file}', f'--out_dir={copy}', change)


def test_changed_data_are_refused(copy, tmp_path, monkeypatch):
    import solvers
    other = solvers.write_burgers(str(tmp_path / 'other.hdf5'), 20, .01, seed=1)
    with pytest.raises(ValueError, match='force_data'):
        train_here(monkeypatch, SMOKE, f'--data_path={other}', f'--out_dir={copy}', '--max_iters=25')


def test_scratch_refuses_to_overwrite(copy, burgers_file, monkeypatch):
    with pytest.raises(ValueError, match='overwrite'):
        train_here(monkeypatch, SMOKE, f'--data_path={burgers_file}', f'--out_dir={copy}', '--init_from=scratch')


def test_fine_tuning_starts_from_weights(smoke, burgers_file, tmp_path, monkeypatch):
    g = train_here(monkeypatch, SMOKE, f'--data_path={burgers_file}', f'--out_dir={tmp_path}/o',
                   f'--init_from={smoke}/o', '--max_iters=1', '--learning_rate=1e-9', '--muon_lr=1e-9')
    old = torch.load(smoke / 'o' / 'best.pt', weights_only=True)['ema']
    assert all(torch.allclose(v, old[k], atol=1e-6) for k, v in g['model'].state_dict().items())


def test_second_training_in_one_folder_is_refused(tmp_path, burgers_file, monkeypatch):
    import fcntl
    os.makedirs(tmp_path / 'o')
    with open(tmp_path / 'o' / 'lock', 'w') as lock:                 # what another process would hold
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match='another training'):
            train_here(monkeypatch, SMOKE, f'--data_path={burgers_file}', f'--out_dir={tmp_path}/o')


def test_nan_in_a_batch_stops_before_the_weights(tmp_path, burgers_file, monkeypatch):
    import losses
    whole = losses.bundle

    def poisoned(*args, calls=[0]):
        calls[0] += 1
        total, parts = whole(*args)
        return (total * float('nan') if calls[0] == 13 else total), parts
    monkeypatch.setattr(losses, 'bundle', poisoned)
    with pytest.raises(ValueError, match='iteration 12: loss nan.*trajectories'):
        train_here(monkeypatch, SMOKE, f'--data_path={burgers_file}', f'--out_dir={tmp_path}/o')
    state = torch.load(tmp_path / 'o' / 'last.pt', weights_only=True)
    assert state['iter'] == 10 and all(torch.isfinite(v).all() for v in state['model'].values())
    assert os.path.exists(tmp_path / 'o' / 'nan_dump.pt')


def test_test_rows_are_never_read(tmp_path, burgers_file, monkeypatch):
    import data
    read = set()
    whole = data.read_rows
    monkeypatch.setattr(data, 'read_rows', lambda s, rows, *a, **k: read.update(rows) or whole(s, rows, *a, **k))
    train_here(monkeypatch, SMOKE, f'--data_path={burgers_file}', f'--out_dir={tmp_path}/o', '--max_iters=2')
    assert read == set(range(2, 20))                                 # of 20 rows the first 2 are the test part


def test_wandb_cannot_stop_a_run(tmp_path, burgers_file, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)                  # import fails
    g = train_here(monkeypatch, SMOKE, f'--data_path={burgers_file}', f'--out_dir={tmp_path}/o', '--max_iters=2',
                   '--wandb_log=true')
    assert g['iteration'] == 2


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
