"""runtime/device.py, rounded(): weights in bfloat16 for the length of a forward pass, where it is compiled."""
import pytest
import torch
import torch.distributed as dist

from batches import batch_of, settings
from conftest import close, drawn
from losses import STAGES
from runtime.device import Machine, rounded

EAGER = Machine(torch.device('cpu'), bf16=True)
COMPILED = Machine(torch.device('cpu'), bf16=True, compiled=True)
STEPPERS = ('operator', 'diff_residual', 'consistency_distill', 'ensemble')
FLOWS = {'steppers': STEPPERS, 'flow_dim': 16, 'flow_depth': 1, 'noise_dim': 4}


def step(stage, batch, machine, call=None, n=1):
    """The loss of `n` micro-batches, and the gradients by name."""
    for _ in range(n):
        torch.manual_seed(0)
        with machine.autocast(stage):
            loss, _ = (call or stage)(batch, 1.)
        loss.backward()
    grads = {name: p.grad for name, p in stage.named_parameters() if p.grad is not None}
    stage.zero_grad(set_to_none=True)
    return loss.detach(), grads


def same(a, b):
    """Are losses and gradients those of another step, bit by bit, and of float32?"""
    assert a[0] == b[0] and a[1].keys() == b[1].keys() != set()
    assert all(grad.dtype == torch.float32 for grad in a[1].values())
    assert all(torch.equal(a[1][name], b[1][name]) for name in b[1])


class Step(torch.nn.Module):
    """Three layers, of which one is frozen and one computes in float32."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = torch.nn.Linear(8, 8)
        self.frozen = torch.nn.Linear(8, 8).requires_grad_(False)
        self.float32 = type('Own', (torch.nn.Linear,), {})(8, 8)

    def forward(self, x):
        x = self.frozen(self.inner(x))
        with torch.autocast('cpu', enabled=False):
            return self.float32(x.float())


class Toy(torch.nn.Module):
    """Two steps, as a stage."""

    def __init__(self):
        super().__init__()
        self.step = Step()

    def forward(self, x, progress):
        return self.step(self.step(x)).square().mean(), {}


# --- gradients ---------------------------------------------------------------

@pytest.mark.parametrize('name, model', [
    ('operator', {}), ('operator', dict(arch='u', attention='channel')), ('operator', dict(encoder='points')),
    pytest.param('operator', dict(checkpointing=True), marks=pytest.mark.slow),
    *[pytest.param(name, FLOWS, marks=pytest.mark.slow) for name in STEPPERS[1:]]])
def test_numbers_are_those_of_autocast(name, model):
    """Of every layer of the house: none reads the type of a weight that is rounded."""
    m = drawn(**model)
    stage = STAGES[name](m, settings(n_members=2, flow_steps=2, tau_schedule=(2,)))
    where = m.encoder.draw_points(settings(input_points=24), torch.Generator().manual_seed(0), None)
    batch = batch_of(m, where=where)
    same(step(stage, batch, COMPILED, n=2), step(stage, batch, EAGER, n=2))


def test_the_weights_come_back():
    """Nothing but the forward pass sees the copies, also where it fails."""
    layers = Step()
    before = dict(layers.named_parameters())
    with pytest.raises(KeyError), rounded(layers):
        assert layers.inner.weight.dtype == layers.frozen.bias.dtype == torch.bfloat16
        assert layers.inner.weight.requires_grad and not layers.frozen.weight.requires_grad
        assert layers.float32.weight is before['float32.weight']
        raise KeyError
    assert all(p is before[name] for name, p in layers.named_parameters())
    with EAGER.autocast(layers), COMPILED.autocast():                # autocast itself keeps those of eager code
        assert layers.inner.weight is before['inner.weight']
    with COMPILED.autocast(layers):
        assert layers.inner.weight.dtype == torch.bfloat16


def test_a_layer_that_the_loss_does_not_use_has_no_gradient():
    layers = Step()
    with rounded(layers):
        layers.inner.weight.float().sum().backward()
    assert layers.inner.weight.grad is not None and layers.inner.bias.grad is None


def test_processes_average_the_gradients():
    """DDP hears of gradients that come through the copies."""
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    try:
        toy = Toy()
        batch = torch.ones(2, 8)
        expected = step(toy, batch, EAGER)
        wrapped = torch.nn.parallel.DistributedDataParallel(toy, gradient_as_bucket_view=True)
        heard = []

        def halve(_, bucket):
            heard.append(bucket.buffer().numel())
            future = torch.futures.Future()
            future.set_result(bucket.buffer() / 2)
            return future

        wrapped.register_comm_hook(None, halve)
        loss, grads = step(toy, batch, COMPILED, wrapped)
    finally:
        dist.destroy_process_group()
    assert sum(heard) == 2 * (64 + 8)
    same((loss, {name: 2 * grad for name, grad in grads.items()}), expected)


# --- what is compiled --------------------------------------------------------

@pytest.mark.slow
def test_compiled_code_rounds_no_weights():
    """Of two steps. Before, each rounded the weights and biases of two layers, and took the gradients of one
    back to float32."""
    from torch._dynamo.backends.common import aot_autograd           # it takes seconds
    n_cast = []

    def count(graph, inputs):
        def call(values):
            n_cast.append(sum('_to_copy' in str(node.target) for node in graph.graph.nodes))
            return torch.fx.Interpreter(graph).boxed_run(values)

        call._boxed_call = True
        return call

    casts = []
    for machine in (EAGER, COMPILED):
        toy = Toy()
        x = torch.randn(2, 8)
        expected = step(toy, x, EAGER)
        toy.step.compile(backend=aot_autograd(fw_compiler=count, bw_compiler=count))
        loss, grads = step(toy, x, machine)
        assert loss == expected[0]
        for name, grad in expected[1].items():
            close(grads[name], grad, .02 * grad.abs().max())         # of sums in bfloat16
        casts.append(sum(n_cast))
        n_cast.clear()
    assert casts[0] - casts[1] == 2 * (4 + 2)
