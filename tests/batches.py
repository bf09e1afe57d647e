"""Stages outside a training: their settings, a random batch, their outputs, what they train."""
from types import SimpleNamespace

import pytest
import torch

import losses
from conftest import defaults
from data import Batch

KEYS = defaults('run', 'data', 'model', 'latent steps', 'optimisation')


def settings(**changes):
    """The keys of train.py: the field loss alone, two latent steps, inverse decoding in every batch."""
    weights = {f'lambda_{name}': 0. for name in losses.LOSSES}
    few = {'unroll': 2, 'unroll_start': 0, 'inverse_loss_frequency': 1, 'stages': ()}
    return SimpleNamespace(**{**KEYS, **weights, 'lambda_field': 1., **few, **changes})


def batch_of(m, window=3, B=3, iteration=0, **values):
    """A random batch of windows."""
    cfg = m.cfg
    u = torch.randn(B, window, *cfg.grid, cfg.n_field)
    background = torch.randn(B, 1, *[1] * len(cfg.grid), cfg.n_field)
    params = torch.full((B, len(cfg.params)), .01)
    dt = torch.full((B,), cfg.dt)
    return Batch(u, background, params, dt, iteration)._replace(**values)


def outputs_of(stage, batch, progress=1.):
    """What a stage hands to its losses, {name: tensor}."""
    seen = {}
    weighted_sum = losses.weighted_sum

    def note(outputs, weights):
        seen.update(outputs)
        return weighted_sum(outputs, weights)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, 'weighted_sum', note)
        stage(batch, progress)
    return seen


def trained(module):
    """Names of the sub-modules that have a gradient other than zero in every parameter. Fails for one that
    has gradients in some parameters alone, or that are not finite."""
    names = set()
    for name, part in module.named_children():
        has = {p_name: p.grad is not None and bool(p.grad.any()) for p_name, p in part.named_parameters()}
        assert all(torch.isfinite(p.grad).all() for p in part.parameters() if p.grad is not None)
        assert all(has.values()) or not any(has.values()), (name, has)
        if all(has.values()) and has:
            names.add(name)
    return names
