"""evaluation/cost.py: a training of days on a CPU is announced, and nothing else."""
import itertools
from types import SimpleNamespace

import pytest
import torch

from conftest import config, defaults, train_here
from evaluation import cost
from evaluation.cost import say_if_long
from runtime import device
from runtime.configurator import UserError

KEYS = {name: value for heading in ('run', 'data', 'latent steps', 'optimisation', 'losses')
        for name, value in defaults(heading).items()}


def settings(**changes):
    keys = {**KEYS, 'batch_size': 2, 'unroll': 2, 'lambda_field': 1.}
    for name in ('spectral', 'latent', 'inverse_encoding', 'inverse_decoding', 'latent_norm'):
        keys[f'lambda_{name}'] = 0.
    return SimpleNamespace(**{**keys, **changes})


def test_hours_are_said_and_minutes_are_not(capsys):
    """One iteration of this model takes a millisecond or a few."""
    machine = device.start('cpu')
    capsys.readouterr()
    before = torch.get_rng_state()
    for n_iters, minutes, is_said in ((5000, 0, False), (10 ** 10, 0, True), (10 ** 10, 5, False)):
        say_if_long(config(), settings(max_iters=n_iters, max_minutes=minutes), machine)
        out = capsys.readouterr().out
        assert ('config/burgers_cpu.py' in out) == is_said and bool(out) == is_said
    assert torch.equal(torch.get_rng_state(), before)


def test_an_iteration_is_reckoned_from_one_window_and_from_a_few(monkeypatch):
    """A step of n windows takes 1 + n / 10 s a latent step, one of the optimisers 1 s. What takes more than
    2 s is not measured again with more windows."""
    def timed_step(stage, batch, machine, progress):
        return (1 + len(batch.u) / 10) * stage.unrolled_steps(progress)

    monkeypatch.setattr(cost, 'timed_step', timed_step)
    monkeypatch.setattr(cost, 'time', SimpleNamespace(perf_counter=itertools.count().__next__))
    keys = settings(batch_size=12, unroll=2, unroll_start=1, unroll_switch=.25, max_iters=10 ** 6)
    machine = device.Machine(torch.device('cpu'), world=2)           # each takes 6 windows
    assert cost.iteration_seconds(config(), keys, machine) == pytest.approx(.25 * 1.6 + .75 * 6 * 2.2 + 1)


def test_it_is_said_before_data_are_made(tmp_path, monkeypatch, capsys):
    def no_data(*args):
        raise UserError('here data would be made')

    monkeypatch.setattr('files.write.make', no_data)
    with pytest.raises(UserError, match='here data'):
        train_here(monkeypatch, 'config/burgers_smoke.py', '--max_iters=100000000', '--device=cpu',
                   f'--data_dir={tmp_path}', f'--out_dir={tmp_path}/o')
    assert 'note: this CPU needs about' in capsys.readouterr().out
