"""No training step waits for a GPU. Meta tensors stand for those of the GPU: like them they have no numbers on
the host and mix with no tensor of the CPU, and a copy between the two is seen."""
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import optim
from batches import batch_of, settings
from conftest import drawn
from losses import LOSSES, STAGES
from runtime import extensions

STEPPERS = ('operator', 'diff_residual', 'consistency_distill', 'ensemble', 'steady_prior')
ALL = {'steppers': STEPPERS, 'flow_dim': 16, 'flow_depth': 1, 'noise_dim': 4}
KEYS = {'n_members': 3, 'flow_steps': 2, 'tau_schedule': (2, 4), 'drop_path': .1}
EVERY_LOSS = {f'lambda_{name}': 1. for name in ('spectral', 'latent', 'inverse_encoding', 'inverse_decoding',
                                               'latent_norm')}


class Lists(TorchFunctionMode):
    """Fails for a list that is copied to the device: as an index, or as a new tensor."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.__getitem__:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            assert not any(isinstance(part, list) for part in index), 'a list as an index'
        if func in (torch.tensor, torch.Tensor.new_tensor):
            device = kwargs.get('device') or (args[0].device if isinstance(args[0], torch.Tensor) else 'cpu')
            assert torch.device(device).type == 'cpu', 'a new tensor of numbers of the host'
        return func(*args, **kwargs)


class Waits(TorchDispatchMode):
    """Fails where the host would wait: for a number, for a shape that depends on numbers, for a copy that
    blocks. (Other operators that need numbers fail by themselves.)"""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = str(func)
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        on_host = [x for x in given if not x.is_meta and x.ndim]
        to_device = 'meta' in str(kwargs.get('device')) or len(on_host) < len(given)
        if name.startswith(('aten._to_copy', 'aten.copy_')):
            blocks = not kwargs.get('non_blocking') and not any(args[2:])
            assert not (on_host and to_device and blocks), f'{name}: a copy that blocks'
        elif name.startswith('aten.index'):
            assert not (on_host and to_device), f'{name}: an index of the host'
        return func(*args, **kwargs)


@pytest.fixture
def gpu(monkeypatch):
    """Autocast does not know the device meta."""
    class Nothing:
        def __init__(self, *args, **options):
            pass

        def __enter__(self):
            pass

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(torch, 'autocast', Nothing)
    return torch.device('meta')


def run(gpu, name, model, **keys):
    extensions.load(keys)
    values = settings(**{**KEYS, **keys})
    batch = batch_of(model)
    on_gpu = {key: x.to(gpu) for key, x in batch._asdict().items() if isinstance(x, torch.Tensor)}
    batch = batch._replace(**on_gpu)
    stage = STAGES[name](model.to(gpu), values)
    optimizers = optim.make(stage, values)
    ema = optim.EMA(model, .99)
    with Lists(), Waits():
        loss, _ = stage(batch, .9)                                   # what train.py does between two windows
        loss.backward()
        torch.nn.utils.clip_grad_norm_(stage.parameters(), 1.)
        for optimizer in optimizers:
            optimizer.step()
        ema.update(0)


@pytest.mark.parametrize('name, d', [
    ('operator', 1), *[pytest.param(name, 2, marks=pytest.mark.slow) for name in STEPPERS]])
def test_no_stage_waits_for_the_device(gpu, name, d):
    assert set(LOSSES) >= {key.removeprefix('lambda_') for key in EVERY_LOSS}
    keys = EVERY_LOSS if name == 'operator' else {}
    run(gpu, name, drawn(d, latent_dim=16, drop_path=.1, token_shift=1, **ALL), **keys)


@pytest.mark.slow
@pytest.mark.parametrize('strategy', ['uniform', 'stratified', 'importance'])
def test_query_points_do_not_wait(gpu, strategy):
    run(gpu, 'operator', drawn(num_queries=8), num_queries=8, query_strategy=strategy)


@pytest.mark.slow
@pytest.mark.parametrize('model, losses', [
    (dict(conserved=(), galilean=0.), ('residual',)),
    (dict(pde='compressible-2d', d=2, fields=('rho', 'vx', 'vy', 'p'), params=('eta', 'zeta'),
          seen_params=((.1,), (.1,)), conserved=()), ('conservation',)),
    (dict(pde='diffusion-sorption', boundary='wall', params=(), seen_params=(), translation=False),
     ('boundary',))])
def test_the_losses_of_physics_do_not_wait(gpu, model, losses):
    m = drawn(**model)
    run(gpu, 'operator', m, **{f'lambda_{name}': 1. for name in losses})


def test_it_would_be_seen(gpu):
    u = torch.ones(3, 4, device=gpu)
    waits = [lambda: float(u.sum()), lambda: u[:, [0, 2]], lambda: torch.ones(3).to(gpu), lambda: u[u > 0],
             lambda: u.cpu(), lambda: u[torch.arange(2)], lambda: u.new_tensor(3.)]
    for wait in waits:
        with pytest.raises(Exception), Lists(), Waits():
            wait()
