"""cache.py: tokens that are encoded once are those that a stage would have encoded, whatever happens to their
file."""
import errno
import math
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from batches import settings
from conftest import close, config, drawn, noise, refused, same_run, write
from data import Trajectories, Windows
from files.open import open_source
from losses import STAGES
from model import UPT
from probabilistic import cache
from probabilistic.cache import CachedWindows, mapped
from probabilistic.stages import DiffResidualStage
from runtime import checkpoint
from runtime.configurator import UserError
from runtime.device import Machine
from steppers import ALL

CPU = torch.device('cpu')
TINY = {'decoder_dim': 0, 'depth': 1, 'seen_params': ((.01, .02),), 'first': (.5 / 32,), 'flow_dim': 16,
        'flow_depth': 1, 'steppers': ('operator', 'diff_residual')}
FIELDS = noise(10, 12, 32)
LATER = ['--stages=diff_residual', '--diff_residual_stage.max_iters=3', '--diff_residual_stage.unroll=2',
         '--diff_residual_stage.cache_copies=2', '--n_members=2', '--save_interval=2', '--log_interval=1',
         '--hidden_dim=16', '--encoder_dim=16', '--decoder_dim=16', '--depth=1', '--flow_dim=16',
         '--flow_depth=1', '--flow_steps=1', '--eval_interval=100', '--time_stride=20']


class Case:
    """Windows of two files, a model that sees them, and a stage with a cache in `folder`. changes: of the
    keys; model: of the configuration; weight: the parameter or buffer that differs a little."""

    def __init__(self, folder, u=FIELDS, model={}, std=2., weight=None, bf16=False, **changes):
        keys = {'unroll': 2, 'cache_copies': 2, 'input_points': 24, 'time_stride': 1, 'other_strides': (),
                'space_stride': 1, 'early_bias': 3., 'data_dir': str(folder), **changes}
        self.s = settings(**keys)
        names = [write(folder / f'{nu}.hdf5', u, Nu=nu) for nu in (.01, .02)]
        sources = [open_source(name, quiet=True) for name in names]
        trajectories = Trajectories(sources, self.s, CPU)
        torch.manual_seed(0)
        self.model = UPT(config(**{**TINY, 'dt': trajectories.dt, **model}))
        self.model.normalise([0.], [std])
        torch.manual_seed(0)
        with torch.no_grad():
            for p in self.model.encoder.parameters():                # else its learned part is 0
                p.add_(torch.randn_like(p), alpha=.2)
            if weight:
                tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
                tensors[weight][0] += 1e-6
        self.stage = DiffResidualStage(self.model, self.s)
        self.windows = Windows(trajectories, self.model, self.s)
        self.folder = folder
        self.machine = Machine(CPU, bf16=bf16)

    def cached(self):
        return CachedWindows(self.windows, self.stage, self.machine)

    def plain(self):
        """Both copies of all windows as the stage encodes them, one frame at a time."""
        tokens = []
        n = self.windows.n_windows
        for number in range(2 * -(-n // 64)):
            first = 64 * (number % -(-n // 64))
            [batch] = self.windows.batches(torch.arange(n)[first:first + 64], number)
            with torch.no_grad():
                tokens.append(torch.stack([self.stage.tokens(batch, k) for k in range(3)], 1))
        return torch.cat(tokens).unflatten(0, (2, n))


@pytest.fixture
def case(tmp_path):
    return Case(tmp_path)


def files_of(folder):
    return sorted(os.listdir(folder / 'latents'))


# ---------------------------------------------------------------------------------------------
# the tokens

@pytest.mark.parametrize('encoder', ['grid', 'points'])
def test_tokens_are_what_the_stage_would_have_encoded(tmp_path, encoder):
    case = Case(tmp_path, model={'encoder': encoder})
    plain = case.plain()
    assert plain.shape[1] > 2 * cache.PART                           # several parts, the last one shorter
    assert torch.isclose(plain[0], plain[1]).flatten(1).all(1).sum() < 10      # few have the same symmetries
    made = case.cached()
    read = case.cached()
    index = torch.randperm(case.windows.n_windows)[:40]
    for windows in (made, read):
        assert windows.n_windows == case.windows.n_windows
        assert windows.row_names(index) == case.windows.row_names(index)
        [batch] = windows.batches(index, 5)
        [whole] = case.windows.batches(index, 5)
        assert torch.equal(batch.params, whole.params) and torch.equal(batch.dt, whole.dt)
        assert len(batch.params.unique()) == 2 and batch.iteration == 5 and batch.u is None
        z = torch.stack([case.stage.tokens(batch, k) for k in range(3)], 1)
        error = (plain[:, index] - z).abs().amax((2, 3, 4))          # (copy, window)
        assert error.amin(0).max() < 1e-5                            # each is one of both copies,
        assert 5 < error.argmin(0).sum() < 35                        # now the one, now the other


def test_processes_and_micro_batches_share_a_batch(case):
    windows = case.cached()
    index = torch.randperm(windows.n_windows)[:12]
    [whole] = windows.batches(index, 3)
    [again] = windows.batches(index, 3)
    [later] = windows.batches(index, 4)
    assert torch.equal(whole.z, again.z) and not torch.equal(whole.z, later.z)
    for rank in (0, 1):
        micro_batches = list(windows.batches(index, 3, rank, 2, n_micro=3))
        assert [len(batch.z) for batch in micro_batches] == [2, 2, 2]
        for name in ('z', 'params', 'dt'):
            together = torch.cat([getattr(batch, name) for batch in micro_batches])
            assert torch.equal(together, getattr(whole, name)[rank::2])


# ---------------------------------------------------------------------------------------------
# the name of the file

def in_one_row(row, frame):
    u = FIELDS.copy()
    u[row, frame, 7] += .01
    return u


def key_of(folder, **changes):
    return os.path.basename(Case(folder, **changes).cached().path)


@pytest.mark.parametrize('changes', [
    {}, {'weight': 'operator.network.head.weight'}, {'model': {'flow_dim': 32}},
    {'model': {'steppers': ('operator', 'diff_residual', 'consistency_distill')}}, {'memory_gb': 1.},
    {'flow_steps': 3, 'learning_rate': 1e-4, 'max_iters': 7}, {'diff_residual_stage': {'max_iters': 7}}])
def test_stages_and_runs_that_see_the_same_tokens_share_a_file(tmp_path, case, changes):
    assert key_of(tmp_path, **changes) == os.path.basename(case.cached().path)


def test_whatever_changes_the_tokens_changes_the_name(tmp_path):
    others = [
        {}, {'weight': 'encoder.stem.bias'}, {'weight': 'encoder.proj.weight'},
        {'weight': 'encoder.patches.modes'}, {'std': 3.}, {'bf16': True}, {'model': {'dt': .02}},
        {'u': in_one_row(2, 0)}, {'u': in_one_row(9, 11)}, {'n_trajectories': 9}, {'time_stride': 2},
        {'initial_step': 2}, {'unroll': 3}, {'seed': 1}, {'early_bias': 2.}, {'symmetries': False},
        {'cache_copies': 3}]
    keys = {key_of(tmp_path, **changes) for changes in others}
    assert len(keys) == len(others)


def test_every_key_that_windows_read_is_part_of_the_name(case):
    read = set()

    class Watched:
        def __getattr__(self, name):
            read.add(name)
            return getattr(case.s, name)

    list(Windows(case.windows.trajectories, case.windows.model, Watched()).batches(torch.arange(4), 0))
    assert {'seed', 'early_bias', 'symmetries', 'unroll'} <= read
    assert not read & cache.NOT_IN_NAME


# ---------------------------------------------------------------------------------------------
# the file

def truncate(path):
    os.truncate(path, os.path.getsize(path) - 4)


def values(change):
    def to(path):
        z = change(mapped(path).clone())
        with open(path, 'wb') as file:
            np.save(file, z.numpy())
    return to


def one_nan(z):
    z[123, 1, 2, 3] = torch.nan
    return z


def text(path):
    with open(path, 'w') as file:
        file.write('no tokens')


@pytest.mark.parametrize('how, why', [
    (truncate, 'mmap'), (lambda path: os.truncate(path, 0), ''), (text, 'magic'), (values(one_nan), 'finite'),
    (values(lambda z: z[1:]), 'not float32'), (values(lambda z: z[:, :2]), 'not float32'),
    (values(lambda z: z.double()), 'float64'), (values(lambda z: z.roll(1, 3)), 'encoder'),
    (values(lambda z: torch.cat([z[:-9], z[:9]])), 'encoder')])
def test_a_broken_file_is_made_again(case, capsys, how, why):
    good = case.cached()
    with open(good.path, 'rb') as file:
        content = file.read()
    how(good.path)
    capsys.readouterr()
    again = case.cached()
    [line] = [line for line in capsys.readouterr().out.splitlines() if 'made again' in line]
    assert good.path in line and why in line
    close(again.z, case.plain().flatten(0, 1))
    with open(good.path, 'rb') as file:
        assert file.read() == content
    assert len(files_of(case.folder)) == 1
    case.cached()
    assert 'made again' not in capsys.readouterr().out


def test_a_good_file_is_read_and_not_made(case, monkeypatch):
    made = case.cached()
    monkeypatch.setattr(CachedWindows, 'make', None)
    assert torch.equal(case.cached().z, made.z)


def test_two_writers_both_end_with_a_whole_file(case, capsys, monkeypatch):
    """One begins; another one, with another process number, begins and ends; the first one goes on."""
    part = CachedWindows.part
    others = []

    def meanwhile(self, number):
        if number == 1 and not others:
            others.append(None)
            with monkeypatch.context() as patch:
                patch.setattr(checkpoint.os, 'getpid', lambda: 1)
                others.append(case.cached())
            assert len(files_of(case.folder)) == 2                   # a whole one, and the first one's
        return part(self, number)
    monkeypatch.setattr(CachedWindows, 'part', meanwhile)
    one = case.cached()
    assert len(others) == 2 and len(files_of(case.folder)) == 1
    assert torch.equal(one.z, others[1].z)
    assert 'memory' not in capsys.readouterr().out
    assert torch.equal(case.cached().z, one.z)


def full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')


@pytest.mark.parametrize('how', ['no folder', 'full', 'full in the end'])
def test_without_a_file_tokens_stay_in_memory(tmp_path, capsys, monkeypatch, how):
    want = Case(tmp_path).cached()
    folder = tmp_path / 'other'
    folder.mkdir()
    if how == 'no folder':
        (folder / 'latents').write_text('a file')
    elif how == 'full':
        monkeypatch.setattr(cache, 'check_space', refuse)
    else:
        monkeypatch.setattr(checkpoint.os, 'fsync', full)
    case = Case(folder)
    capsys.readouterr()
    found = case.cached()
    [line] = [line for line in capsys.readouterr().out.splitlines() if 'memory' in line]
    assert 'latents' in line and torch.equal(found.z, want.z)
    if how != 'no folder':
        assert files_of(folder) == []
    assert 'lower cache_copies' in refused(Case(folder, memory_gb=0.).cached)


@pytest.mark.parametrize('initial_step', [1, 2])
def test_tokens_that_no_disk_holds_are_refused_before_any_training(tmp_path, monkeypatch, initial_step):
    case = Case(tmp_path, memory_gb=0., initial_step=initial_step, data_dir=str(tmp_path / 'none' / 'yet'))
    cfg = case.model.cfg
    n_bytes = 4 * 2 * case.windows.n_windows * 3 * math.prod(cfg.token_grid) * cfg.latent_dim
    total = [n_bytes]

    def disk_usage(folder):
        assert folder == str(tmp_path)                               # the first folder that there is
        return SimpleNamespace(total=total[0])

    monkeypatch.setattr(cache.shutil, 'disk_usage', disk_usage)
    sources = case.windows.trajectories.sources
    assert case.stage.checked(sources) is case.stage
    total[0] -= 1
    assert 'lower cache_copies' in refused(case.stage.checked, sources)
    case.s.memory_gb = (n_bytes + 1) / 1e9                           # they need no disk
    assert case.stage.checked(sources) is case.stage


def refuse(path, n_bytes):
    raise UserError(f'{path} needs {n_bytes / 1e9} GB')


# ---------------------------------------------------------------------------------------------
# training

def test_resume_is_bit_equal(train, cut, tmp_path):
    """The first run makes the file, the second one reads it, and where it goes on it is made again."""
    args = [*LATER, f'--data_dir={tmp_path / "d"}']
    g = train(tmp_path / 'whole', *args)
    assert isinstance(g['windows'], CachedWindows) and g['run'].total == 3
    [name] = files_of(tmp_path / 'd')
    cut(3, tmp_path / 'cut', *args)
    os.remove(tmp_path / 'd' / 'latents' / name)
    train(tmp_path / 'cut', *args)
    same_run(tmp_path / 'whole', tmp_path / 'cut')
    assert files_of(tmp_path / 'd') == [name]


def test_stages_that_need_fields_refuse():
    m = drawn(**ALL)
    for name, make in STAGES.items():
        if name == 'mixture':                                        # of several equations
            continue
        if name in ('diff_residual', 'consistency_distill', 'steady_prior'):
            make(m, settings(cache_copies=3))
        else:
            assert 'cache_copies=3' in refused(make, m, settings(cache_copies=3))
