"""
Flows: distributions of latent tokens, given others, that are sampled in few steps.

Shapes: B batch, S tokens, D features of a token. `cfg` is a model.ModelConfig.
"""
import math
from dataclasses import replace

import torch
import torch.nn as nn

from layers import Float32Linear, Transformer, ones_at, outer

TIME_WAVES = [math.pi * 2 ** k for k in range(6)]            # by which a flow tells its times apart
LEAST_LEFT = .2                        # of 1 - tau, by which a flow divides
REFINER_STEPS = 3                      # K of arXiv 2308.05732, and its least variance
REFINER_LEAST = 4e-7


class Flow(nn.Module):
    """
    A distribution of tokens x, given other tokens: noise that a transformer turns into a sample, by
    conditional flow matching (arXiv 2210.02747).

    Gaussian noise x_0 is carried along to x_1 = x / scale by the velocity v(x_tau, tau), the mean of x_1 -
    x_0 over all straight lines that pass there. The network says where the lines end, which gives v: noise
    need not pass through it. (In the last part, of LEAST_LEFT, it says x_tau + LEAST_LEFT v, beyond the end.)
    A single step goes to the mean of x; many go to a sample.

    Every feature of x is scaled to unit size (`fit`). One that is always 0 stays so, as does the mean over
    all tokens of those that hold the integral of a conserved field.
    """

    def __init__(self, cfg, n_given):
        """n_given: how many sets of tokens are given."""
        super().__init__()
        shape = replace(cfg, arch='pure', attention='standard', hidden_dim=cfg.flow_dim, depth=cfg.flow_depth,
                        drop_path=0., layer_norm=True)
        self.network = Transformer(shape, (1 + n_given) * cfg.latent_dim)
        self.time = nn.Sequential(outer(Float32Linear(2 * len(TIME_WAVES), cfg.cond_dim)), nn.SiLU(),
                                  outer(Float32Linear(cfg.cond_dim, cfg.cond_dim)))
        self.register_buffer('waves', torch.tensor(TIME_WAVES), persistent=False)
        self.register_buffer('scale', torch.ones(cfg.latent_dim))
        self.register_buffer('scale_of_given', torch.ones(n_given * cfg.latent_dim))
        self.register_buffer('conserved', ones_at(cfg.conserved, cfg.latent_dim), persistent=False)

    @torch.no_grad()
    def fit(self, x, given):
        """Take the size of every feature from samples x (n, S, D), given (n, S, n_given D). What is a
        millionth of the largest is rounding."""
        size = x.square().mean((0, 1)).sqrt()
        self.scale.copy_(torch.where(size > 1e-6 * size.max(), size, 0.))
        self.scale_of_given.copy_(given.square().mean((0, 1)).sqrt().clamp_min(1e-6))

    def to_unit(self, x):
        return x * torch.where(self.scale > 0, 1 / self.scale, 0.)

    def project(self, x):
        """x (B, S, D) without what a sample cannot have."""
        x = x * (self.scale > 0)
        return x - self.conserved * x.mean(1, keepdim=True)

    def predict(self, x, tau, given, cond):
        """What the network says, (B, S, D); the arguments are those of `forward`."""
        angles = tau[:, None] * self.waves
        time = torch.cat([angles.sin(), angles.cos()], -1)
        cond = cond + self.time(time)
        tokens = torch.cat([x, given / self.scale_of_given], -1)
        return self.project(self.network(tokens, cond))

    def forward(self, x, tau, given, cond):
        """x (B, S, D), of unit size, at tau (B,) from 0 to 1; given (B, S, n_given D), cond (B, cond_dim)
        -> the velocity, (B, S, D)"""
        end = self.predict(x, tau, given, cond)
        left = (1 - tau).clamp_min(LEAST_LEFT)
        return (end - x) / left[:, None, None]

    def draw_tau(self, n, shape):
        """tau of n samples in training, (n,) on the CPU: of Beta(shape, shape)."""
        return torch.distributions.Beta(shape, shape).sample((n,))

    def prediction_and_target(self, x, tau, noise, given, cond):
        """What this says of noisy samples x (B, S, D), and what it ought to say; tau (B,) as `forward` takes
        it, noise (B, S, D)."""
        x = self.project(self.to_unit(x))
        noise = self.project(noise)
        t = tau[:, None, None]
        return self(t * x + (1 - t) * noise, tau, given, cond), x - noise

    def path(self, x, given, cond, steps):
        """From noise x (B, S, D), of unit size, to a sample: where each step begins, [(x, tau), ...], and the
        end (B, S, D). steps: how many of one length, or the tau at which they begin; before the first of
        these, x_1 is taken for 0."""
        starts = starts_of(steps)
        x = (1 - starts[0]) * x
        begins = []
        for start, end in zip(starts, [*starts[1:], 1.]):
            tau = given.new_full((len(given),), start)
            begins.append((x, tau))
            x = x + (end - start) * self(x, tau, given, cond)
        return begins, x

    def sample(self, given, cond, steps, draw):
        """given (B, S, n_given D), cond (B, cond_dim); steps as `path` takes them; draw(*shape) makes noise
        -> x (B, S, D)"""
        shape = (*given.shape[:2], len(self.scale))
        _, x = self.path(self.project(draw(*shape)), given, cond, steps)
        return x * self.scale


def starts_of(steps, first=0., last=1.):
    """The tau at which steps of a flow begin: of equal ones from first to last if `steps` is a number."""
    if not isinstance(steps, int):
        return steps
    return [first + (last - first) * i / steps for i in range(steps)]


class Refiner(Flow):
    """PDE-Refiner (arXiv 2308.05732): x is predicted outright, then noise is added and taken off again
    REFINER_STEPS times, less and less of it. tau counts these steps, from 0 to 1."""

    def forward(self, x, tau, given, cond):
        """As Flow.forward -> (B, S, D): at tau = 0 what is to be predicted, later the noise of x."""
        return self.predict(x, tau, given, cond)

    def draw_tau(self, n, shape):
        return torch.randint(REFINER_STEPS + 1, (n,)) / REFINER_STEPS

    def prediction_and_target(self, x, tau, noise, given, cond):
        x = self.project(self.to_unit(x))
        noise = self.project(noise)
        t = tau[:, None, None]
        first = t == 0
        noisy = x + refiner_noise(t) * noise
        prediction = self(torch.where(first, 0., noisy), tau, given, cond)
        return prediction, torch.where(first, x, noise)

    def sample(self, given, cond, steps, draw):
        """As Flow.sample, but in its own number of steps."""
        shape = (*given.shape[:2], len(self.scale))
        start = given.new_zeros(len(given))
        x = self(given.new_zeros(shape), start, given, cond)
        for k in range(1, REFINER_STEPS + 1):
            tau = given.new_full((len(given),), k / REFINER_STEPS)
            noise = refiner_noise(tau)[:, None, None]
            x = x + noise * self.project(draw(*shape))
            x = x - noise * self(x, tau, given, cond)
        return x * self.scale


def refiner_noise(tau):
    """Standard deviation of a refiner's noise in step K tau: its square is REFINER_LEAST^tau."""
    return REFINER_LEAST ** (tau / 2)


class Student(Flow):
    """A flow that goes to the end from anywhere at once: x + (1 - tau) v(x, tau) is where its teacher ends
    that begins there."""

    def end(self, x, tau, given, cond):
        """x (B, S, D), of unit size, at tau (B,) -> where it ends, (B, S, D)"""
        return x + (1 - tau)[:, None, None] * self(x, tau, given, cond)

    def sample(self, given, cond, steps, draw):
        """As Flow.sample. Every step puts noise back on, less each time, and goes to the end again."""
        shape = (*given.shape[:2], len(self.scale))
        x = given.new_zeros(shape)
        for start in starts_of(steps):
            x = start * x + (1 - start) * self.project(draw(*shape))
            x = self.end(x, given.new_full((len(given),), start), given, cond)
        return x * self.scale


FLOWS = {'flow': Flow, 'refiner': Refiner}                   # by the key flow_kind
