"""Shared by the tests: one thread, small files made by the built-in solvers, a second stage, and train.py run
in this process, and with the other scripts in a child: as a user does, to be killed, and as two processes."""
import csv
import gc
import importlib
import multiprocessing
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

import data
import equations
import losses
from files.open import open_source
from files.write import write_file
from model import UPT, ModelConfig, model_args
from runtime import configurator, extensions
from runtime.checkpoint import save_checkpoint
from runtime.configurator import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TIMEOUT = 600                          # seconds, of what takes a few on a quiet machine
torch.set_num_threads(1)
SMOKE = os.path.join(ROOT, 'config', 'burgers_smoke.py')
ENV = {**os.environ, 'OMP_NUM_THREADS': '1'}
SIGNALS = (signal.SIGINT, signal.SIGTERM)
FAST = ['--time_stride=40', '--unroll=1']           # few frames, since validations take the longest
TWO_STAGES = [*FAST, '--stages=operator,second']


def pytest_collection_finish():
    """What is imported stays, so no search for garbage has to look at it: seconds in every worker."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seed():
    """Every test begins with the same random state, whatever ran before it."""
    torch.manual_seed(0)


# ---------------------------------------------------------------------------------------------
# data

def noise(n=10, T=5, X=16, *more, seed=0):
    """Random fields (n, T, X, *more) float32."""
    return np.random.default_rng(seed).standard_normal((n, T, X, *more)).astype(np.float32)


def centres(n_cells, low=0., high=1.):
    return low + (high - low) * (np.arange(n_cells) + .5) / n_cells


@pytest.fixture
def path(tmp_path):
    """Where a test may put a file; with a space and an accent."""
    return str(tmp_path / 'a b é.hdf5')


@pytest.fixture(scope='session')
def burgers_file(tmp_path_factory):
    """Path of a PDEBench-layout file of 20 trajectories at nu .01."""
    path = tmp_path_factory.mktemp('burgers') / 'nu0.01.hdf5'
    return write_file(str(path), 'burgers', {'Nu': .01}, 20, device='cpu')


@pytest.fixture(scope='session')
def advection_file(tmp_path_factory):
    """The same of linear advection."""
    path = tmp_path_factory.mktemp('advection') / 'beta0.4.hdf5'
    return write_file(str(path), 'advection', {'beta': .4}, 20, device='cpu')


def add_equation(monkeypatch, name, pde):
    """Add an equation that has no file for one test, or change the entry of one that has."""
    module = f'equations.{name.replace("-", "_")}'
    known = equations.names()
    if name in known:
        equations.entry(name)
        monkeypatch.setattr(sys.modules[module], 'ENTRY', pde)
        return
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(ENTRY=pde))
    monkeypatch.setattr(equations, 'names', sorted([*known, name]).copy)


def refused(call, *args, **options):
    """The text of the one-line UserError that a call must raise."""
    with pytest.raises(Exception) as caught:
        call(*args, **options)
    assert isinstance(caught.value, UserError), repr(caught.value)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def close(a, b, tol=1e-5):
    """Equal shapes, and values equal to `tol` of the largest one."""
    a = a.detach()
    b = b.detach()
    assert a.shape == b.shape
    if not a.numel():
        return
    error = float((a - b).abs().max())
    assert error <= tol * max(1., float(b.abs().max())), error


# ---------------------------------------------------------------------------------------------
# tiny models

# the default network in one and two dimensions, and the other operator with the other attention
cells = pytest.mark.parametrize('arch, attention, d', [
    ('pure', 'standard', 1), ('pure', 'standard', 2), ('u', 'channel', 2)])


def defaults(*headings):
    """The keys of train.py under some headings, and of the extensions, {name: default}."""
    train = os.path.join(ROOT, 'train.py')
    keys = configurator.read_keys(train)
    names = [name for heading in headings for name in configurator.section(train, heading)]
    groups = extensions.key_groups()
    return {**{name: keys[name][0] for name in names if name in keys},
            **{name: default for group in groups.values() for name, (default, _) in group.items()}}


_NAMES = configurator.section(os.path.join(ROOT, 'train.py'), 'model') + extensions.model_keys()
MODEL_KEYS = {name: value for name, value in defaults('model').items() if name in _NAMES}
# what the entry of an equation and a file say: Burgers' equation at one viscosity
FACTS = {'pde': 'burgers', 'fields': ('u',), 'params': ('Nu',), 'seen_params': ((.01,),), 'low': (0.,),
         'length': (1.,), 'boundary': 'periodic', 'translation': True, 'diagonal': (), 'static': (),
         'positive': (), 'conserved': (), 'velocity': (), 'galilean': 0., 'dt': .05, 'first': (.5 / 1024,),
         'steppers': ('operator',)}


def config(d=1, **changes):
    """A tiny ModelConfig: 32 points and 8 tokens, or 16 x 16 points and 4 x 4 tokens."""
    n = 32 if d == 1 else 16
    s = 8 if d == 1 else 4
    tiny = {'grid': (n,) * d, 'low': (0.,) * d, 'length': (1.,) * d, 'first': (.5 / n,) * d, 'patch_size': 4,
            'token_grid': (s,) * d, 'latent_dim': 8, 'encoder_dim': 16, 'decoder_dim': 16, 'hidden_dim': 16,
            'depth': 2, 'depths': (1, 1, 1), 'n_head': 2, 'group_size': 8}
    extensions.load(changes)
    return ModelConfig(**{**MODEL_KEYS, **FACTS, **tiny, **changes})


def drawn(d=1, scramble=True, seed=0, **changes):
    """A model of which, unless told otherwise, every parameter is moved away from its initial value, since
    layers that start at zero hide what comes before them, and pass no gradient on."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        m = UPT(config(d, **changes))
        n_field = m.cfg.n_field
        m.normalise(range(n_field), range(1, 1 + n_field))
        with torch.no_grad():
            for p in m.parameters():
                if scramble:
                    p.add_(torch.randn_like(p), alpha=.2)
    return m


# ---------------------------------------------------------------------------------------------
# train.py and the other scripts

class SecondStage(losses.Stage):
    """A stage of one's own, without an extension: the operator alone, on single steps from latents with a
    little noise. It logs two numbers that no other stage has."""
    trains = ('operator',)
    defaults = {'max_iters': 20, 'unroll': 1, 'learning_rate': 3e-4, 'muon_lr': 3e-3}

    def forward(self, batch, progress):
        z = self.encode(batch.u[:, 0], batch)
        z = self.model.operator(z + .01 * torch.randn_like(z), self.model.condition(batch.dt, batch.params))
        outputs = {'latent': z[:, None], 'target': self.encode(batch.u[:, 1:2], batch)}
        loss, _ = losses.weighted_sum(outputs, {'latent': 1.})
        return loss, {'step_error': loss.detach(), 'size': z.detach().square().mean()}


losses.STAGES['second'] = SecondStage                                # in children, too: they import this


def smoke_args(data_path, folder):
    """The arguments of train.py for the smoke config on a file, on the CPU, into a folder."""
    return SMOKE, f'--data_path={data_path}', '--device=cpu', f'--out_dir={folder}'


def train_here(monkeypatch, *args, script=os.path.join(ROOT, 'train.py')):
    """Run train.py, or a changed copy, in this process, which saves the import of torch. -> its globals"""
    monkeypatch.setattr(sys, 'argv', ['train.py', *map(str, args)])
    handlers = [signal.getsignal(s) for s in SIGNALS]
    hook = sys.excepthook
    try:
        found = runpy.run_path(script, run_name='__main__')
        found['run'].lock_file.close()
        return found
    except BaseException as error:                              # let go of the folder, as a process that ends
        for frame, _ in traceback.walk_tb(error.__traceback__):
            for run in (frame.f_globals.get('run'), frame.f_locals.get('self')):
                if hasattr(run, 'lock_file'):
                    run.lock_file.close()
        raise
    finally:
        sys.excepthook = hook
        for number, handler in zip(SIGNALS, handlers):
            signal.signal(number, handler)


# A child is forked from a server that has imported the program and what it needs: 4 s less than a new
# interpreter, and unlike a fork of this process sound after CUDA or autograd have been used here.
SERVER = multiprocessing.get_context('forkserver')
SERVER.set_forkserver_preload(['torch._dynamo', 'torch.distributed.fsdp', 'numpy.ma', 'conftest',
                               'equations.burgers', 'evaluation.scores', 'optim', 'runtime.run'])
PATHS = (ROOT, os.path.join(ROOT, 'tests'))


def forked(target, *args):
    """A process that calls target(*args), which can be pickled; started."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHONPATH', os.pathsep.join(PATHS))           # for the server, if it begins here
        patch.setenv('OMP_NUM_THREADS', '1')
        process = SERVER.Process(target=target, args=args)
        process.start()
    return process


class Child:
    """A script in a child process: start, signal, wait. before: functions that the child calls first
    (picklable). own_modules: the child imports the program anew, which changes by `before` do not reach."""

    def __init__(self, folder, *args, script='train.py', cwd=None, before=(), env=None, own_modules=False):
        os.makedirs(folder, exist_ok=True)
        self.out = os.path.join(folder, f'stdout{time.monotonic_ns()}')
        self.err = os.path.join(folder, f'stderr{time.monotonic_ns()}')
        command = [os.path.join(ROOT, script), *map(str, args)]
        self.process = forked(_run_script, command, str(cwd or os.getcwd()), {**ENV, **(env or {})}, before,
                              own_modules, self.out, self.err)
        self.pid = self.process.pid

    def text(self, stream='out'):
        path = getattr(self, stream)
        return open(path).read() if os.path.exists(path) else ''

    def wait_for(self, there):
        """Until there() is true. False if the child ended first."""
        end = time.monotonic() + TIMEOUT
        while not there():
            if not self.process.is_alive():
                return there()
            assert time.monotonic() < end, self.text() + self.text('err')
            time.sleep(.005)
        return True

    def wait(self):
        """-> the exit status, as subprocess has it"""
        self.process.join(TIMEOUT)
        assert not self.process.is_alive(), self.text() + self.text('err')
        return self.process.exitcode

    def error_line(self):
        """The one line on stderr of a run that failed."""
        assert self.wait() == 1, self.text() + self.text('err')
        return error_line(self.text('err'))


def _run_script(command, cwd, env, before, own_modules, out, err):
    """What an interpreter does, in a process that has imported the program."""
    gc.freeze()                                                      # else the memory of imports is copied
    for path, stream in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = command
    folder = os.path.dirname(command[0])
    if own_modules:
        for name in list(sys.modules):
            if os.path.exists(os.path.join(ROOT, name.partition('.')[0] + '.py')) or \
                    os.path.exists(os.path.join(ROOT, name.partition('.')[0], '__init__.py')):
                del sys.modules[name]
        sys.path[:] = [path for path in sys.path if path not in PATHS]
        importlib.invalidate_caches()
    sys.path.insert(0, folder)
    try:
        for call in before:
            call()
        runpy.run_path(command[0], run_name='__main__')
    except SystemExit:
        raise
    except BaseException:                                            # what the interpreter does
        sys.excepthook(*sys.exc_info())
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def run(*args, script='train.py', cwd, check=True):
    """Run a script of this program, or of a copy, as a user does: it imports its modules anew.
    -> CompletedProcess"""
    with tempfile.TemporaryDirectory() as folder:
        child = Child(folder, *args, script=script, cwd=cwd, own_modules=True)
        done = subprocess.CompletedProcess(args, child.wait(), child.text(), child.text('err'))
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def two_processes(folder, *args, before=(), own=((), ())):
    """Two children as a launcher starts them, with arguments that each has of its own. -> [Child]"""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    env = {'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
    return [Child(folder, *args, *own[rank], before=before,
                  env={**env, 'RANK': str(rank), 'LOCAL_RANK': str(rank)}) for rank in range(2)]


def error_line(text):
    """The one line that `text`, a stderr, must be."""
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith('error: '), text
    return lines[0]


# ---------------------------------------------------------------------------------------------
# tiny files and checkpoints, to evaluate

def tiny(**changes):
    """A model whose every parameter matters: the zero-initialised ones are drawn too."""
    small = dict(grid=(32,), first=(.5 / 1024,), patch_size=4, token_grid=(8,), latent_dim=8, encoder_dim=16,
                 decoder_dim=16, hidden_dim=16, depth=1, n_head=2, coder_depth=0)
    extensions.load(changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = UPT(ModelConfig(**{**MODEL_KEYS, **FACTS, **small, **changes}))
        for p in model.parameters():
            if not p.any():
                torch.nn.init.normal_(p, std=.05)
    return model


def describe(folder, paths, n):
    """What a run in `folder` that was trained on n rows of files says of its data."""
    sources = [open_source(path, quiet=True) for path in paths]
    stride = max(1, round(.05 / sources[0].dt))
    keys = SimpleNamespace(n_trajectories=n, time_stride=stride, other_strides=(), space_stride=1, initial_step=1,
                           memory_gb=1.)
    run = SimpleNamespace(folder=folder, parent=None, state=None)
    return data.Trajectories(sources, keys, torch.device('cpu')).describe(run)


def save(model, path, *files, n=10, **changes):
    """A checkpoint as runtime/run.py writes one after a training on n rows of `files`. -> path"""
    path = str(path)
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    about = describe(folder, [str(file) for file in files], n)
    save_checkpoint(path, {
        'model': model.state_dict(), 'ema': model.state_dict(), 'model_args': model_args(model.cfg),
        'config': {'dataset': model.cfg.pde, 'seed': 0, 'initial_step': 1, 'input_points': 512},
        'environment': {}, 'stage': 'operator', 'iter': 7,
        'train_seconds': 90., 'peak_memory_gb': .5, 'data': {**about, **changes}})
    return path


def write(path, u, dt=.05, low=0., **params):
    """A PDEBench-layout file of fields u (N, T, X) or (N, T, X, Y). -> path"""
    with h5py.File(path, 'w') as file:
        file['tensor'] = np.asarray(u, np.float32)
        for name, n in zip('xy', u.shape[2:]):
            file[f'{name}-coordinate'] = low + (1 - low) * (np.arange(n) + .5) / n
        file['t-coordinate'] = np.arange(u.shape[1] + 1) * dt
        file.attrs.update(params or {'Nu': .01})
    return str(path)


def waves(n, T, X, seed=0):
    """Random smooth fields that move, (n, T, X)"""
    rng = np.random.default_rng(seed)
    x = np.arange(X) / X
    t = np.arange(T)[:, None] / 40
    phases = rng.uniform(0, 6, (n, 2))
    return np.stack([1 + np.sin(2 * np.pi * (x - t) + a) + .3 * np.sin(4 * np.pi * x + b) for a, b in phases])


@pytest.fixture(scope='session')
def run_folder(tmp_path_factory, burgers_file):
    """Folder of a run on ten rows of the solver's file: one test row, one validation row."""
    folder = tmp_path_factory.mktemp('run')
    save(tiny(), folder / 'best.pt', burgers_file)
    return str(folder)


@pytest.fixture(scope='session')
def truth(burgers_file):
    """The test row on the trained grid, (1, 41, 32, 1)"""
    with h5py.File(burgers_file, 'r') as file:
        return torch.from_numpy(file['tensor'][0:1, ::5, ::32])[..., None]


def know(monkeypatch, **new):
    """Add or change several equations, {name: PDE}, for one test."""
    for name, pde in new.items():
        add_equation(monkeypatch, name, pde)


@pytest.fixture
def plane(monkeypatch, tmp_path):
    """An equation in two dimensions whose solutions rest, its file of 16 x 16 cells, and a run on 8 x 8
    points."""
    def rest(u0, c, t):
        return u0[:, None].repeat(1, len(t), 1, 1).double()
    entry = equations.PDE(fields=('u',), params={'c': 1.}, space=((0, 1), (0, 1)), boundary='periodic',
                          file='plane{c}.hdf5', solve=rest)
    know(monkeypatch, plane=entry)
    x = 2 * np.pi * (np.arange(16) + .5) / 16
    phase = np.arange(10)[:, None, None]
    u0 = 2 + np.sin(x[:, None] + phase) * np.cos(x + .3 * phase)     # (10, 16, 16)
    file = write(tmp_path / 'plane.hdf5', np.repeat(u0[:, None], 4, 1), c=1.)
    model = tiny(pde='plane', params=('c',), seen_params=((1.,),), grid=(8, 8), low=(0., 0.), length=(1., 1.),
                 first=(1 / 32, 1 / 32), token_grid=(4, 4), patch_size=2, halo=1)
    return save(model, tmp_path / 'plane.pt', file)


def evaluate(*argv):
    """eval.py in this process, on the CPU. -> its results"""
    import eval as ev                                                # only what evaluates needs it
    return ev.main([*map(str, argv), '--device', 'cpu'])


def user_error(*argv):
    """The one line with which eval.py refuses a command line."""
    return refused(evaluate, *argv)


# ---------------------------------------------------------------------------------------------
# run folders

def state_of(folder, name='last.pt'):
    """What a checkpoint of a run holds."""
    return torch.load(os.path.join(folder, name), weights_only=True)


def weights(folder, name='last.pt'):
    state = state_of(folder, name)
    return {f'{part}.{k}': v for part in ('model', 'ema') for k, v in state[part].items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def rows_of(folder):
    """log.csv without the clock."""
    with open(os.path.join(folder, 'log.csv'), newline='') as file:
        return [{k: v for k, v in row.items() if k != 'train_seconds'} for row in csv.DictReader(file)]


def same_run(a, b):
    """Two run folders hold the same weights, best weights and log, and the log goes forward."""
    for name in ('last.pt', 'best.pt'):
        assert equal(weights(a, name), weights(b, name)), name
    assert rows_of(a) == rows_of(b)
    iters = [int(row['iter']) for row in rows_of(b)]
    assert iters == sorted(set(iters))


@pytest.fixture
def train(monkeypatch, burgers_file):
    """The smoke config in this process, on the CPU: train(folder, '--key=value', ...) -> globals of
    train.py"""
    def _train(folder, *args):
        return train_here(monkeypatch, *smoke_args(burgers_file, folder), *args)
    return _train


def stop_at(call, how):
    """how() at a call of Sampler.next."""
    whole = data.Sampler.next
    calls = []

    def count(self):
        calls.append(0)
        if len(calls) == call:
            how()
        return whole(self)
    data.Sampler.next = count


def no_power():
    raise RuntimeError('power cut')


@pytest.fixture
def cut(train, monkeypatch):
    """Training in this process that a power cut ends at a call of Sampler.next: cut(call, folder,
    '--key=value', ...)"""
    def _cut(call, *args):
        with monkeypatch.context() as patch:
            patch.setattr(data.Sampler, 'next', data.Sampler.next)   # to be put back
            stop_at(call, no_power)
            with pytest.raises(RuntimeError, match='power cut'):
                train(*args)
    return _cut


@pytest.fixture(scope='session')
def smoke(tmp_path_factory, burgers_file):
    """A finished smoke run and its folder."""
    folder = tmp_path_factory.mktemp('a b é')                        # a space and an accent in the path
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train_here(patch, *smoke_args(burgers_file, 'o'))
    return folder


@pytest.fixture
def copy(smoke, tmp_path):
    """A copy of the finished smoke run, to resume."""
    return shutil.copytree(smoke / 'o', tmp_path / 'copy')
