"""
How long a training will take on a CPU, said before its data are made.
"""
import time

import torch

import losses
import optim
from data import Batch
from model import UPT
from runtime.progress import duration

LONG = 3 * 3600.                       # seconds of a training that is announced
FEW = 4                                # windows of the larger batch that is measured
SLOW = 2.                              # seconds of a step that is measured once, without a warm-up


def say_if_long(cfg, settings, machine):
    """Say how long the operator stage will take, if that is hours. cfg: of the model; settings: the keys of
    the stage. Draws no random numbers of the training."""
    if settings.max_minutes:
        return
    with torch.random.fork_rng(devices=[]):
        seconds = iteration_seconds(cfg, settings, machine)
    whole = seconds * settings.max_iters
    if whole > LONG:
        machine.say(f'note: this CPU needs about {duration(whole)} for {settings.max_iters} iterations of '
                    f'{seconds:.3g} s (measured now); config/burgers_cpu.py and the other config/*_cpu.py take '
                    'minutes, and --max_minutes=N stops in time')


def iteration_seconds(cfg, settings, machine):
    """Seconds of an iteration, about: a step on 1 window is timed, and, if that is long, one on a few."""
    model = UPT(cfg)
    stage = losses.STAGES['operator'](model, settings)
    optimizers = optim.make(stage, settings)
    n_window = settings.batch_size // machine.world

    def of_batch(progress):
        window = batch_of(cfg, settings, stage, 1)
        one = timed_step(stage, window, machine, progress)           # warms up
        if one < SLOW:
            one = timed_step(stage, window, machine, progress)
        if one > SLOW or n_window == 1 or one * n_window * settings.max_iters < LONG:
            return one * n_window
        few = timed_step(stage, batch_of(cfg, settings, stage, FEW), machine, progress)
        return one + max(0., few - one) / (FEW - 1) * (n_window - 1)

    seconds = of_batch(1.)
    if stage.unrolled_steps(0.) != stage.unrolled_steps(1.):
        part = settings.unroll_switch
        seconds = part * of_batch(0.) + (1 - part) * seconds
    for _ in range(2):                                               # the first time warms up
        start = time.perf_counter()
        for optimizer in optimizers:
            optimizer.step()
        last = time.perf_counter() - start
    return seconds + last


def batch_of(cfg, settings, stage, size):
    """A Batch of `size` windows of noise."""
    u = torch.randn(size, 1 + settings.unroll, *cfg.grid, cfg.n_field)
    background = torch.zeros(size, 1, *[1] * len(cfg.grid), cfg.n_field)
    params = torch.tensor([[seen[0] for seen in cfg.seen_params]]).float().expand(size, -1)
    where = stage.model.encoder.draw_points(settings, torch.Generator().manual_seed(0), u[:, 0])
    return Batch(u, background, params, torch.full((size,), cfg.dt), 1, where)


def timed_step(stage, batch, machine, progress):
    """Seconds of a forward and a backward pass."""
    start = time.perf_counter()
    with machine.autocast():
        loss, _ = stage(batch, progress)
    loss.backward()
    return time.perf_counter() - start
