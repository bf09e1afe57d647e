"""
The speed of the parts of a training: encoder, operator, decoder, optimiser, rollouts (bench.py speed).
"""
import math
import statistics
import time
from types import SimpleNamespace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import data
import losses
import optim
from evaluation.load import open_data
from evaluation.scores import wait_for
from model import UPT, load_state
from runtime import device as devices
from runtime.checkpoint import find_checkpoint, load_checkpoint

PATIENCE = 5.                          # seconds after which a measurement is no longer repeated


def median_ms(run, device, repeats):
    """Median wall-clock of run() in milliseconds over `repeats` calls, after three that are not counted.
    Calls that take seconds are repeated less, down to a single one."""
    times = []
    begin = time.perf_counter()
    while len(times) < 3 + repeats and time.perf_counter() - begin < PATIENCE:
        start = time.perf_counter()
        run()
        wait_for(device)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[3:] or times[-1:])


class Training:
    """What the loop of train.py works with (model, stage, windows, optimizers), built again from the folder
    of a run. It depends on the checkpoint and on these public classes alone, and not on train.py itself."""

    def __init__(self, folder):
        path = find_checkpoint(folder)
        state = load_checkpoint(path)
        keys = state['config']
        self.memory_gb = state['peak_memory_gb']
        self.settings = SimpleNamespace(**{**keys, **keys['operator_stage']})
        self.machine = devices.start(keys['device'], keys['dtype'], keys['compile'])
        self.device = self.machine.device
        self.model = load_state(state, path, self.device)
        self.stage = losses.STAGES['operator'](self.model, self.settings).train()
        sources = open_data(state, self.model.cfg, path)
        trajectories = data.Trajectories(sources, self.settings, self.device)
        self.windows = data.Windows(trajectories, self.model, self.settings)
        self.optimizers = optim.make(self.stage, self.settings, self.machine.compiled)
        optim.set_rate(self.optimizers, 0.)                          # the weights stay as they are
        if self.machine.compiled:
            for name in ('encoder', 'decoder', 'operator'):
                getattr(self.model, name).compile()

    def batch(self, size):
        """The first windows. In iteration 1 there is no inverse decoding."""
        index = torch.arange(size) % self.windows.n_windows
        return next(self.windows.batches(index, 1))

    def outputs(self):
        """Names of the outputs that the losses need in iteration 1."""
        weights = self.stage.weights_now(1, 1.)
        return {output for name in weights for output in losses.LOSSES[name].outputs}


def count_flops(t):
    """FLOPs of an iteration, forward and backward, scaled up from a batch of four. A copy is counted, since
    compiled modules hide their operations; recomputation is left out."""
    model = UPT(t.model.cfg.replace(checkpointing=False)).to(t.device)
    stage = losses.STAGES['operator'](model, t.settings).train()
    size = math.gcd(t.settings.batch_size, 4)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss, _ = stage(t.batch(size), 1.)
        loss.backward()
    return counter.get_total_flops() * t.settings.batch_size // size


def time_parts(t, repeats):
    """{part: milliseconds per iteration}, each part alone, forward and backward."""
    cfg = t.model.cfg
    size = t.settings.batch_size
    steps = t.settings.unroll
    batch = t.batch(size)
    outputs = t.outputs()
    condition = t.model.condition(batch.dt, batch.params).detach()
    shape = (math.prod(cfg.token_grid), cfg.latent_dim)
    n_decoded = steps + ('reconstruction' in outputs)
    z = torch.randn(size, *shape, device=t.device, requires_grad=True)
    latents = torch.randn(size, n_decoded, *shape, device=t.device, requires_grad=True)

    def encode():
        with t.machine.autocast(t.stage):
            tokens = t.stage.encode(batch.u[:, 0], batch)
            if tokens.requires_grad:
                tokens.sum().backward()
            if 'target' in outputs:
                with torch.no_grad():
                    t.stage.encode(batch.u[:, 1:1 + steps], batch)

    def advance():
        with t.machine.autocast(t.stage):
            v = z
            for _ in range(steps):
                v = t.model.operator(v, condition)
        v.square().sum().backward()

    def decode():
        with t.machine.autocast(t.stage):
            fields = t.stage.decode(latents, batch)
        fields.sum().backward()

    def optimise():
        for optimizer in t.optimizers:
            optimizer.step()

    parts = {'encoder': median_ms(encode, t.device, repeats),
             'operator': median_ms(advance, t.device, repeats),
             'decoder': median_ms(decode, t.device, repeats)}
    for p in t.model.parameters():
        p.grad = torch.zeros_like(p)
    parts['optimiser'] = median_ms(optimise, t.device, repeats)
    return parts


def time_rollouts(t, repeats):
    """{batch size: milliseconds per trajectory of a decoded rollout of 40 steps}, for 1 and for a large batch
    that takes seconds at most."""
    cfg = t.model.cfg
    t.model.eval()

    def ms_of(size):
        u0 = torch.randn(size, *cfg.grid, cfg.n_field, device=t.device)

        def roll():
            t.model.rollout(u0, 40)

        with t.machine.autocast(t.model):
            return median_ms(roll, t.device, max(1, repeats // 5)) / size

    one = ms_of(1)
    size = 256 if t.device.type == 'cuda' else 32
    while size > 2 and t.device.type == 'cpu' and one * size > 1e3 * PATIENCE:
        size //= 2
    return {'1': one, str(size): ms_of(size)}


def matmul_rate(device, dtype):
    """FLOP/s of a product of two large square matrices: what this device reaches at best in practice. The
    matrices double in size while a product is expected to stay below half a second."""
    largest = 8192 if device.type == 'cuda' else 2048
    n = 256
    while True:
        a = torch.randn(n, n, device=device).to(dtype)

        def product(a=a):
            return a @ a

        ms = median_ms(product, device, 3)
        if n == largest or 8 * ms > 500:
            return 2 * n ** 3 / (ms / 1e3)
        n *= 2
