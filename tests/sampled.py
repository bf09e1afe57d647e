"""sample.py in this process, on the CPU, and tiny checkpoints for it."""
import numpy as np
import pytest
import torch

import sample
from conftest import refused, tiny
from runtime.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture
def no_pictures(monkeypatch):
    """Drawing takes seconds and is tested in test_pictures.py. -> [(name, arguments)] of what is not drawn"""
    calls = []
    for name in ('draw', 'draw_members', 'draw_tokens'):
        monkeypatch.setattr(sample, name, lambda *args, name=name: calls.append((name, args)))
    return calls


def run(ckpt, *argv, out):
    """-> what was saved, by name"""
    sample.main(['--ckpt', str(ckpt), '--out', str(out), '--device', 'cpu', *map(str, argv)])
    with np.load(out / 'rollout.npz') as arrays:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def user_error(ckpt, *argv):
    return refused(sample.main, ['--ckpt', str(ckpt), '--device', 'cpu', *map(str, argv)])


def configured(path, **keys):
    """A checkpoint whose run had these keys. -> path"""
    state = load_checkpoint(str(path))
    state['config'].update(keys)
    save_checkpoint(str(path), state)
    return path


def plane(grid=(8, 8), **changes):
    """A tiny model of a field on the unit square that begins at the centre of a cell of 1/32."""
    facts = dict(pde='navier-stokes', fields=('w',), params=('Nu',), seen_params=((1e-4,),), dt=1., grid=grid,
                 low=(0., 0.), length=(1., 1.), first=(1 / 64, 1 / 64), translation=False)
    return tiny(**{**facts, 'token_grid': (4, 4), 'patch_size': 2, 'halo': 1, **changes})
