"""
Flows and ensembles: the stochastic steppers of a model.

Shapes: B batch, S tokens, D features of a token. `cfg` is a model.ModelConfig.
"""
import math
from contextlib import contextmanager

import torch
import torch.nn as nn

from model import Block, Float32Linear, Operator, Transformer, use_adamw, divides, ones_at, zero_init
from runtime.configurator import UserError

TIME_WAVES = [math.pi * 2 ** k for k in range(6)]            # angular frequencies of the embedding of tau
LEAST_LEFT = .2                        # lower limit of 1 - tau in denominators


class Flow(nn.Module):
    """
    The distribution of tokens x context a context of other tokens, by conditional flow matching (arXiv
    2210.02747).

    The velocity v(x_tau, tau) carries Gaussian noise x_0 to x_1 = x / scale; it is the mean of x_1 - x_0 over
    all straight lines through x_tau. The network predicts x_1 (x-prediction):
    v = (x_1 - x_tau) / max(1 - tau, LEAST_LEFT). One step gives the mean of x, many steps a sample.

    Every feature of x is scaled to unit size (`fit`). Features that are constant in the data and the means
    over tokens that hold the integral of a conserved field stay 0.
    """

    def __init__(self, cfg, n_context):
        """n_context: number of token sets in the context. Raises UserError for sizes that no flow has."""
        super().__init__()
        for name in ('flow_dim', 'flow_depth'):
            if getattr(cfg, name) < 1:
                raise UserError(f'{name}={getattr(cfg, name)} must be at least 1')
        divides(cfg.n_head, cfg.flow_dim, 'n_head must divide flow_dim')
        shape = cfg.replace(arch='pure', attention='standard', hidden_dim=cfg.flow_dim, depth=cfg.flow_depth,
                            drop_path=0.)
        self.network = Transformer(shape, (1 + n_context) * cfg.latent_dim, layer_norm=True)
        self.time = nn.Sequential(use_adamw(Float32Linear(2 * len(TIME_WAVES), cfg.cond_dim)), nn.SiLU(),
                                  use_adamw(Float32Linear(cfg.cond_dim, cfg.cond_dim)))
        self.register_buffer('waves', torch.tensor(TIME_WAVES), persistent=False)
        self.register_buffer('scale', torch.ones(cfg.latent_dim))
        self.register_buffer('context_scale', torch.ones(n_context * cfg.latent_dim))
        self.register_buffer('conserved', ones_at(cfg.conserved, cfg.latent_dim), persistent=False)

    @torch.no_grad()
    def fit(self, x, context):
        """Take the size of every feature from samples x (n, S, D), context (n, S, n_context D). A millionth
        of the largest size counts as 0."""
        size = x.square().mean((0, 1)).sqrt()
        self.scale.copy_(torch.where(size > 1e-6 * size.max(), size, 0.))
        self.context_scale.copy_(context.square().mean((0, 1)).sqrt().clamp_min(1e-6))

    def to_unit(self, x):
        return x * torch.where(self.scale > 0, 1 / self.scale, 0.)

    def project(self, x):
        """x (B, S, D) without features that are constant in the data and without the means of conserved
        fields."""
        x = x * (self.scale > 0)
        return x - self.conserved * x.mean(1, keepdim=True)

    def predict(self, x, tau, context, cond):
        """The network's prediction of x_1, (B, S, D); the arguments are those of `forward`."""
        angles = tau[:, None] * self.waves
        time = torch.cat([angles.sin(), angles.cos()], -1)
        cond = cond + self.time(time)
        tokens = torch.cat([x, context / self.context_scale], -1)
        return self.project(self.network(tokens, cond))

    def forward(self, x, tau, context, cond):
        """x (B, S, D), of unit size, at tau (B,) from 0 to 1; context (B, S, n_context D), cond (B, cond_dim)
        -> the velocity, (B, S, D)"""
        end = self.predict(x, tau, context, cond)
        left = (1 - tau).clamp_min(LEAST_LEFT)
        return (end - x) / left[:, None, None]

    def prediction_and_target(self, x, tau, noise, context, cond):
        """Predicted and true velocity, (B, S, D) each, between noise and samples x, both (B, S, D), at tau
        (B,)."""
        x = self.project(self.to_unit(x))
        noise = self.project(noise)
        t = tau[:, None, None]
        return self(t * x + (1 - t) * noise, tau, context, cond), x - noise

    def path(self, x, context, cond, steps):
        """From noise x (B, S, D), of unit size, to a sample: the beginning of each step, [(x, tau), ...], and
        the end (B, S, D). steps: the number of equal steps, or a list of the tau at which they begin; before
        the first of these, x_1 counts as 0."""
        starts = starts_of(steps)
        x = (1 - starts[0]) * x
        begins = []
        for start, end in zip(starts, [*starts[1:], 1.]):
            tau = context.new_full((len(context),), start)
            begins.append((x, tau))
            x = x + (end - start) * self(x, tau, context, cond)
        return begins, x

    def sample(self, context, cond, steps, noise):
        """context (B, S, n_context D), cond (B, cond_dim); steps as `path` takes them; noise(*shape) draws
        Gaussian numbers -> x (B, S, D)"""
        shape = (*context.shape[:2], len(self.scale))
        _, x = self.path(self.project(noise(*shape)), context, cond, steps)
        return x * self.scale


def starts_of(steps, first=0., last=1.):
    """The tau at which steps begin: `steps` equal ones from first to last, or the list `steps` itself."""
    if not isinstance(steps, int):
        return steps
    return [first + (last - first) * i / steps for i in range(steps)]


class ConsistencyModel(Flow):
    """A consistency model (arXiv 2303.01469): maps any point of the teacher's trajectory to its end in one
    step, x + (1 - tau) v(x, tau)."""

    def end(self, x, tau, context, cond):
        """x (B, S, D), of unit size, at tau (B,) -> the end of its trajectory, (B, S, D)"""
        return x + (1 - tau)[:, None, None] * self(x, tau, context, cond)

    def sample(self, context, cond, steps, noise):
        """As Flow.sample. Each step adds noise, less every time, and maps to the end again."""
        shape = (*context.shape[:2], len(self.scale))
        x = context.new_zeros(shape)
        for start in starts_of(steps):
            x = start * x + (1 - start) * self.project(noise(*shape))
            x = self.end(x, context.new_full((len(context),), start), context, cond)
        return x * self.scale


# ---------------------------------------------------------------------------------------------
# steppers: (tokens, condition, noise) -> tokens

class Corrector(nn.Module):
    """The operator's step plus a sample of its residual, E(u_{t+1}) - A(z), given z and A(z).

    n_steps: sampling steps, as Flow.path takes them. Steppers without this attribute have no flow."""
    stochastic = True
    kind = Flow
    n_context = 2                      # token sets in the context of the flow
    n_steps = 4
    operator_calls = 1                 # evaluations of the operator in a step

    def __init__(self, cfg, model):
        super().__init__()
        self.flow = self.kind(cfg, self.n_context)
        self.operator = (model.operator,)                            # in a tuple, so its weights stay there

    def base_and_context(self, z, cond):
        """The tokens to which a step adds a sample of the flow, and the context of that, (B, S, n_context
        D)."""
        [operator] = self.operator
        advanced = operator(z, cond)
        return advanced, torch.cat([z, advanced], -1)

    def forward(self, z, cond, noise):
        base, context = self.base_and_context(z, cond)
        return base + self.flow.sample(context, cond, self.n_steps, noise)


class DistilledCorrector(Corrector):
    """A corrector whose flow is a consistency model: one step is enough."""
    kind = ConsistencyModel
    n_steps = 1


class SteadyPrior(Corrector):
    """z plus a sample of E(u_{t+1}) - z given z, without the operator."""
    n_context = 1
    operator_calls = 0

    def base_and_context(self, z, cond):
        [operator] = self.operator
        return operator.shifted(z), z


@contextmanager
def sampling_steps(module, steps):
    """In this context, a stepper with a flow samples in `steps` steps, as Flow.path takes them. With steps=0,
    and for other steppers, nothing changes."""
    has_flow = hasattr(module, 'n_steps')
    before = module.n_steps if has_flow else None
    try:
        if has_flow and steps:
            module.n_steps = steps
        yield
    finally:
        if has_flow:
            module.n_steps = before


def evaluations(module, steps=0):
    """Networks that a stochastic stepper evaluates in a step. steps: of its flow; 0: those that it has."""
    if not hasattr(module, 'n_steps'):
        return 1
    return module.operator_calls + len(starts_of(steps or module.n_steps))


class NoisyModulation(nn.Module):
    """The modulation of a block by the condition, plus a linear map of noise, which starts at zero."""

    def __init__(self, modulation, noise_dim):
        super().__init__()
        self.base = modulation
        self.noise = zero_init(use_adamw(Float32Linear(noise_dim, modulation.out_features, bias=False)))
        self.sizes = [modulation.in_features, noise_dim]

    def forward(self, cond_and_noise):
        cond, noise = cond_and_noise.split(self.sizes, -1)
        return self.base(cond) + self.noise(noise)


class Ensemble(Operator):
    """The operator with noise in every adaptive layer norm (arXiv 2506.10772): each noise vector gives a
    member of an ensemble. Raises UserError for an operator without such layer norms."""
    stochastic = True

    def __init__(self, cfg, model):
        super().__init__(cfg, model.operator.patches)
        if cfg.noise_dim < 1:
            raise UserError(f'noise_dim={cfg.noise_dim} must be at least 1')
        self.noise_dim = cfg.noise_dim
        blocks = [block for block in self.network.modules() if isinstance(block, Block)]
        if not blocks:
            raise UserError(f'arch={cfg.arch} has no adaptive layer norm, so it makes no ensemble: '
                            '--arch=pure, or u')
        for block in blocks:
            block.modulation = NoisyModulation(block.modulation, cfg.noise_dim)

    def begin_as(self, operator):
        """Take the weights of an operator; the noise has no effect at first."""
        weights = {name.replace('.modulation.', '.modulation.base.'): value
                   for name, value in operator.state_dict().items()}
        self.load_state_dict(weights, strict=False)

    def is_trained(self):
        return any(layer.noise.weight.any() for layer in self.modules() if isinstance(layer, NoisyModulation))

    def forward(self, z, cond, noise):
        return super().forward(z, torch.cat([cond, noise(len(z), self.noise_dim)], -1))
