"""optim.py: Muon against NumPy, which optimiser takes what, the schedule, averages, saved states."""
import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import optim
from conftest import refused
from model import use_adamw


def settings(**changed):
    """The keys of train.py that the optimisers take."""
    values = SimpleNamespace(optimizer='muon', learning_rate=1e-3, muon_lr=.02, weight_decay=.1)
    for key, value in changed.items():
        setattr(values, key, value)
    return values


class Net(nn.Module):
    """Two inner layers of one shape, a tall one, an outer one, a kernel and a table."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(3, 8)
        use_adamw(self.stem)
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.tall = nn.Linear(8, 16, bias=False)
        self.kernel = nn.Conv1d(16, 4, 3)
        self.table = nn.Parameter(torch.randn(5, 16))

    def forward(self, x):                                            # (B, 3)
        h = self.second(self.first(self.stem(x)).tanh())
        h = self.tall(h) + self.table.mean(0)
        return self.kernel(h[:, :, None].expand(-1, -1, 3))          # (B, 4, 1)


def net(seed=0):
    torch.manual_seed(seed)
    return Net()


def train(model, optimizers, iterations, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(iterations):
        x = torch.randn(6, 3, generator=generator)
        model(x).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def names(model, optimizer):
    taken = {id(p) for group in optimizer.param_groups for p in group['params']}
    return {name for name, p in model.named_parameters() if id(p) in taken}


def rates(optimizers):
    return [group['lr'] for optimizer in optimizers for group in optimizer.param_groups]


# --- Muon --------------------------------------------------------------------

@pytest.mark.parametrize('rows, columns', [(32, 32), (16, 64), (48, 24)])
def test_the_update_is_nearly_orthogonal(rows, columns):
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(3, rows, columns), full_matrices=False)
    values = torch.logspace(0, -1.3, min(rows, columns))             # a spectrum over a factor of 20
    gradient = 1e-4 * (u * values) @ v                               # the update does not depend on its size
    params = [nn.Parameter(torch.zeros(rows, columns)) for _ in range(3)]
    for p, g in zip(params, gradient):
        p.grad = g
    optim.Muon(params, lr=1.).step()
    update = torch.stack([-p.detach() for p in params]) / math.sqrt(max(1, rows / columns))
    singular = torch.linalg.svdvals(update)
    assert singular.min() > .6 and singular.max() < 1.3
    along = torch.einsum('nik,nij,nkj->nk', u, update, v)            # the singular vectors of the gradient
    assert (along > .6).all()


def numpy_muon(weight, gradients, lr, momentum, weight_decay):
    """Muon for one matrix, as arXiv 2502.16982 writes it, with four Newton-Schulz steps, in float64."""
    average = np.zeros_like(weight)
    for gradient in gradients:
        average = momentum * average + (1 - momentum) * gradient
        x = momentum * average + (1 - momentum) * gradient
        x = x / np.sqrt(np.sum(x ** 2))
        for _ in range(4):
            gram = x @ x.T
            x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
        scale = np.sqrt(max(1, weight.shape[0] / weight.shape[1]))
        weight = weight * (1 - lr * weight_decay) - lr * scale * x
    return weight


@pytest.mark.parametrize('rows, columns', [(6, 6), (4, 10), (10, 4)])
def test_muon_equals_numpy(rows, columns):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(2, rows, columns))                    # two of one shape go through together
    gradients = rng.normal(size=(5, 2, rows, columns))
    params = []
    for weight in weights:
        copy = torch.from_numpy(weight.copy())
        params.append(nn.Parameter(copy))
    muon = optim.Muon(params, lr=.02, momentum=.9, weight_decay=.3)
    for step in gradients:
        for p, g in zip(params, step):
            p.grad = torch.from_numpy(g)
        muon.step()
    for i, p in enumerate(params):
        expected = numpy_muon(weights[i], gradients[:, i], .02, .9, .3)
        np.testing.assert_allclose(p.detach().numpy(), expected, atol=1e-10)


def test_a_kernel_is_a_matrix_of_outputs():
    """Both get the same update, and a kernel goes through with those of its shape alone."""
    generator = torch.Generator().manual_seed(0)
    weight, gradient = torch.randn(2, 4, 3, 2, 2, generator=generator)
    kernel = nn.Parameter(weight.clone())
    matrix = nn.Parameter(weight.flatten(1).clone())
    kernel.grad = gradient
    matrix.grad = gradient.flatten(1)
    optim.Muon([kernel, matrix], lr=.1, weight_decay=.1).step()
    assert torch.equal(kernel.flatten(1), matrix) and not torch.equal(kernel, weight)


def test_a_matrix_without_a_gradient_counts_as_gradient_zero():
    params = [nn.Parameter(torch.ones(4, 4)) for _ in range(2)]
    params[0].grad = torch.eye(4)
    optim.Muon(params, lr=.1, weight_decay=.5).step()
    assert torch.equal(params[1].detach(), torch.full((4, 4), 1 - .1 * .5))
    assert not torch.equal(params[0], params[1])


def test_the_iteration_in_bfloat16():
    """The iteration is another one in bfloat16, by rounding, and its result has the type of the input."""
    x = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(0))
    found = {}
    for fast in (False, True):
        found[fast] = optim.orthogonalise(x, fast)
        assert found[fast].dtype == torch.float32
    difference = (found[True] - found[False]).abs().max()
    assert 1e-5 < difference < .2


def test_a_step_takes_the_precision_of_the_device(monkeypatch):
    found = []
    for fast in (False, True):
        monkeypatch.setattr(optim, '_fast_in_bf16', lambda device: fast)
        p = nn.Parameter(torch.zeros(16, 16))
        p.grad = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
        optim.Muon([p], lr=1.).step()
        found.append(p.detach())
    assert 1e-5 < (found[0] - found[1]).abs().max() < .2


def test_the_updates_are_compiled_as_one_graph(monkeypatch):
    """Once for all shapes and learning rates, with the result of the eager ones."""
    graphs = CompileCounterWithBackend('eager')
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend=graphs))
    models = [net(), net()]
    for compiled, model in enumerate(models):
        chosen = optim.make(model, settings(), bool(compiled))
        for factor in (1., .5):
            optim.set_rate(chosen, factor)
            train(model, chosen, 2)
    assert graphs.frame_count == 1
    weights = [model.state_dict() for model in models]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize('capability, fast', [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_bfloat16_on_cuda_needs_capability_8(monkeypatch, capability, fast):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device=None: capability)
    assert optim._fast_in_bf16(torch.device('cuda')) is fast
    for other in ('mps', 'cpu'):
        assert optim._fast_in_bf16(torch.device(other)) is False


# --- which optimiser takes what ----------------------------------------------

def test_muon_takes_the_inner_matrices_and_adamw_the_rest():
    model = net()
    rest, muon = optim.make(model, settings())
    assert names(model, muon) == {'first.weight', 'second.weight', 'tall.weight', 'kernel.weight'}
    assert names(model, rest) == {'stem.weight', 'stem.bias', 'first.bias', 'second.bias', 'kernel.bias', 'table'}
    rest, = optim.make(model, settings(optimizer='adamw'))
    assert isinstance(rest, torch.optim.AdamW)
    assert names(model, rest) == {name for name, _ in model.named_parameters()}


def test_a_frozen_parameter_is_left_out_and_a_shared_matrix_is_taken_once():
    model = net().requires_grad_(False)
    model.first.requires_grad_(True)
    model.second.weight = model.first.weight
    rest, muon = optim.make(model, settings())
    assert names(model, rest) == {'first.bias'}
    matrix, = muon.param_groups[0]['params']
    assert matrix is model.first.weight
    model.first.bias.requires_grad_(False)
    muon, = optim.make(model, settings())
    assert names(model, muon) == {'first.weight'}


def test_vectors_are_not_decayed():
    """With gradients of zero, only weight decay moves a parameter."""
    model = net()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizers = optim.make(model, settings(weight_decay=.5))
    assert all(group['betas'] == (.9, .99) for group in optimizers[0].param_groups)
    for optimizer in optimizers:
        optimizer.step()
    for name, p in model.named_parameters():
        lr = .02 if name in ('first.weight', 'second.weight', 'tall.weight', 'kernel.weight') else 1e-3
        factor = 1 if p.ndim < 2 else 1 - lr * .5
        torch.testing.assert_close(p.detach(), factor * before[name], rtol=1e-6, atol=0)
    assert torch.equal(model.first.bias, before['first.bias'])


# --- learning rate -----------------------------------------------------------

def test_schedule():
    middle = .01 + .99 * .5
    expected = {(0., 0): .1, (0., 4): .5, (0., 9): 1.,               # steps of a warm-up of ten
                (.5, 500): middle, (1., 1000): .01,
                (.5, 4): .5 * middle}                                # of a stage that runs by the clock
    for (progress, iteration), factor in expected.items():
        assert optim.schedule(progress, iteration, warmup_iters=10) == pytest.approx(factor)
    assert optim.schedule(0., 0, warmup_iters=0) == 1.
    optimizers = optim.make(net(), settings())
    for factor in (.5, .25):                                         # of the peak, not of the rate before
        optim.set_rate(optimizers, factor)
        assert rates(optimizers) == [1e-3 * factor, 1e-3 * factor, .02 * factor]


# --- average of the weights --------------------------------------------------

@pytest.mark.parametrize('ema_decay', [.6, 0.])
def test_the_average_is_a_copy_by_the_formula_that_is_not_trained(ema_decay):
    model = net().train()
    ema = optim.EMA(model, ema_decay)
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert not ema.model.training and not any(p.requires_grad for p in ema.model.parameters())
    expected = {name: p.detach().double() for name, p in model.named_parameters()}
    for iteration in range(20):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(iteration)))
        ema.update(iteration)
        decay = min(ema_decay, (1 + iteration) / (10 + iteration))   # .1, .18, ... until .6
        for name, p in model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * p.detach().double()
    for name, p in ema.model.named_parameters():
        torch.testing.assert_close(p.double(), expected[name], rtol=1e-5, atol=1e-5)


# --- states in a file --------------------------------------------------------

def test_training_goes_on_bit_for_bit_from_a_file(tmp_path):
    model = net()
    optimizers = optim.make(model, settings())
    train(model, optimizers, 4)
    torch.save({'model': model.state_dict(), 'optimizers': [o.state_dict() for o in optimizers]},
               tmp_path / 'state.pt')
    train(model, optimizers, 3, seed=2)

    saved = torch.load(tmp_path / 'state.pt', weights_only=True)
    again = net(seed=5)
    again.load_state_dict(saved['model'])
    others = optim.make(again, settings())
    for optimizer, state in zip(others, saved['optimizers']):
        optimizer.load_state_dict(state)
    train(again, others, 3, seed=2)
    for p, q in zip(model.parameters(), again.parameters()):
        assert torch.equal(p, q)


def test_a_run_that_goes_on_has_the_settings_of_today():
    model = net()
    optimizers = optim.make(model, settings())
    train(model, optimizers, 2)
    others = optim.make(model, settings(learning_rate=5e-4, muon_lr=.01))
    for optimizer, old in zip(others, optimizers):
        optimizer.load_state_dict(old.state_dict())
    optim.set_rate(others, 1.)
    assert rates(others) == [5e-4, 5e-4, .01]
    key = model.first.weight
    assert torch.equal(others[1].state[key]['momentum'], optimizers[1].state[key]['momentum'])


def test_what_cannot_be_is_refused():
    rest, muon = optim.make(net(), settings())
    others = optim.make(nn.Linear(4, 4), settings())
    for other, old in zip(others, (rest, muon)):                     # the state of another model
        with pytest.raises(ValueError):
            other.load_state_dict(old.state_dict())
    assert 'muon, adamw' in refused(optim.make, net(), settings(optimizer='sgd'))
    assert 'trains' in refused(optim.make, net().requires_grad_(False), settings())
    assert 'ema_decay=1' in refused(optim.EMA, net(), 1.)
