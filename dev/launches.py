"""
Kernels that a training iteration and a rollout step launch on a GPU, about, counted on a CPU.

    python -m dev.launches config/burgers_128_pure.py config/ns_64.py --batch_size=2

Every operator that reaches the device is counted, except views, in eager mode and under autocast to bfloat16.
On a GPU a few take two launches or none, and compiled code takes fewer. Where a step takes less than 10
microseconds for each launch, the host is what limits it.
"""
import sys
import tempfile
from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import optim
from evaluation.speed import Training
from peers.compare import print_row, run_training
from runtime.configurator import one_line_errors

NO_KERNEL = ('aten.empty', 'aten.detach', 'aten.new_empty', 'aten.lift_fresh', 'aten.is_pinned')


class Launches(TorchDispatchMode):
    """Counts operators: self.n."""

    def __init__(self):
        super().__init__()
        self.names = Counter()

    @property
    def n(self):
        return self.names.total()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        returned = func._schema.returns
        alias = returned[0].alias_info if returned else None
        is_view = alias is not None and not alias.is_write
        if not is_view and not str(func).startswith(NO_KERNEL):
            self.names[str(func)] += 1
        return func(*args, **(kwargs or {}))


def of_iteration(t, size):
    """{part: operators} of an iteration of the last steps, with `size` windows."""
    ema = optim.EMA(t.model, .999)
    t.model.requires_grad_(False)
    for name in t.stage.trains:
        getattr(t.model, name).requires_grad_(True)
    found = {}

    def count(name, call):
        with Launches() as launches:
            result = call()
        found[name] = launches.n
        return result

    def forward():
        with torch.autocast('cpu', torch.bfloat16):
            loss, _ = t.stage(batch, 1.)
        return loss

    def step():
        for optimizer in t.optimizers:
            optimizer.step()

    batch = count('data', lambda: t.batch(size))
    loss = count('forward', forward)
    count('backward', loss.backward)
    count('clip', lambda: torch.nn.utils.clip_grad_norm_(t.stage.parameters(), 1.))
    count('optimiser', step)
    count('average', lambda: ema.update(0))
    return found


def of_rollout_step(t):
    """Operators of one more step of a decoded rollout."""
    u0 = torch.zeros(1, *t.model.cfg.grid, t.model.cfg.n_field)
    n = []
    for steps in (2, 3):
        with Launches() as launches:
            t.model.rollout(u0, steps)
        n.append(launches.n)
    return n[1] - n[0]


def main(argv):
    configs = [word for word in argv if not word.startswith('--')]
    overrides = [word for word in argv if word.startswith('--')]
    for config in configs:
        with tempfile.TemporaryDirectory() as folder:
            quick = ['--n_trajectories=10', '--device=cpu', '--operator_stage.max_iters=0']
            run_training(config, f'{folder}/run', f'--data_dir={folder}', *quick, *overrides)
            t = Training(f'{folder}/run')
            found = of_iteration(t, t.settings.batch_size)
            found.update(total=sum(found.values()), rollout=of_rollout_step(t))
        print(config)
        print_row(found, [12] * len(found))
        print_row(found.values(), [12] * len(found))


if __name__ == '__main__':
    one_line_errors()
    main(sys.argv[1:])
