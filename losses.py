"""
Training losses by name, and the training step.

u is a field, z = E(u) its latent, A the operator, D the decoder. OperatorStage.forward is the training step:
it encodes a true frame, rolls out a few steps in latent space, decodes, and compares. The inverse losses are
those of UPT (arXiv 2402.12365, section 3.3). They make encoder and decoder inverses of each other, so an
operator that was trained on encodings can be applied to its own output, and a rollout needs no decoding.

To add a loss: write a function and give it a line in LOSSES. Its weight is then the key lambda_NAME.
To add a stage: derive a class from Stage, name it in STAGES, and train it with --stages=operator,NAME.
"""
import math
from typing import Callable, NamedTuple

import torch
import torch.nn as nn

from metrics import mean_nrmse, space_of
from runtime.configurator import UserError

SMALLEST = 1e-6                        # lower limit of mean squares in denominators (of a field: about 1)
RAMP = .2                              # fraction of a stage over which inverse decoding grows to its weight


# ---------------------------------------------------------------------------------------------
# losses: fields are (B, K, *grid, C) for K steps, latents (B, K, S, D), all normalised. Each loss is a mean,
# so a weight means the same at any size.

def relative_l2(p, y):
    """Mean over samples, steps and fields of |p - y| / |y|, L2 norms over points. Its gradient at p = y is
    zero."""
    dims = space_of(y)
    n_point = math.prod(y.shape[axis] for axis in dims)
    norm = torch.linalg.vector_norm(y, dim=dims).clamp_min((SMALLEST * n_point) ** .5)
    return (torch.linalg.vector_norm(p - y, dim=dims) / norm).mean()


def relative_square(p, y):
    """Mean over samples and steps of |p - y|^2 / |y|^2, norms over points and fields. It is the loss of
    inverse encoding, a reconstruction: p = D(E(u)) against y = u."""
    dims = tuple(range(2, y.ndim))
    error = (p - y).square().mean(dims)
    return (error / y.square().mean(dims).clamp_min(SMALLEST)).mean()


def mean_square(z, target):
    """Mean of |z - target|^2 over everything, such as A(z_t) against E(u_{t+1})."""
    return (z - target).square().mean()


def inverse_decoding(cycle, z):
    """Mean of |E(D(z)) - z|^2 / var(z) for an advanced latent z: cycle consistency in latent space. The
    variance of each feature is over batch, steps and tokens. It is detached, so larger latents do not lower
    the loss."""
    variance = z.detach().var((0, 1, 2), correction=0).clamp_min(SMALLEST)
    return ((cycle - z).square() / variance).mean()


def spectral(p, y):
    """
    Relative Sobolev (H1) error: the mode of wave number k has the weight 1 + |k|^2. Mean over samples and
    steps of

        sqrt(sum_k (1 + |k|^2) |P_k - Y_k|^2 / sum_k (1 + |k|^2) |Y_k|^2),

    where P and Y are the Fourier coefficients of fields on a uniform grid, over all k of both signs. Between
    walls they are those of the periodic continuation.
    """
    axes = space_of(y)
    difference = torch.fft.rfftn((p - y).float(), dim=axes)
    spectrum = torch.fft.rfftn(y.float(), dim=axes)
    k_squared = torch.zeros((), device=y.device)
    for axis in axes:
        n = spectrum.shape[axis]
        k = torch.arange(n, device=y.device)
        if axis != axes[-1]:                                         # a full axis holds both signs
            k = torch.minimum(k, n - k)
        k_squared = k_squared[..., None] + k ** 2
    pairs = torch.full((spectrum.shape[axes[-1]],), 2., device=y.device)         # k and -k of the last axis
    pairs[0] = 1.
    if y.shape[axes[-1]] % 2 == 0:
        pairs[-1] = 1.
    weight = ((1 + k_squared) * pairs)[..., None].sqrt()             # (*space, 1)
    error = norm_of(weight * difference)
    least = SMALLEST ** .5 * math.prod(y.shape[axis] for axis in axes)
    return (error / norm_of(weight * spectrum).clamp_min(least)).mean()


def norm_of(coefficients):
    """sqrt(sum |.|^2) for each sample and step. Real numbers, because some devices lack complex norms."""
    parts = torch.view_as_real(coefficients)                         # (B, K, *space, C, 2)
    return torch.linalg.vector_norm(parts, dim=tuple(range(2, parts.ndim)))


def unit_size(z):
    """Mean over samples and steps of (mean z^2 - 1)^2: keeps latents at unit size."""
    return (z.square().mean((-2, -1)) - 1).square().mean()


class Loss(NamedTuple):
    function: Callable
    outputs: tuple                     # names of the outputs of a stage that the function takes
    weight: float                      # default of the key lambda_NAME; 0: off
    note: str                          # what --help says


LOSSES = {
    'field': Loss(relative_l2, ('field', 'truth'), 1., 'relative L2 error of the decoded rollout'),
    'spectral': Loss(spectral, ('field', 'truth'), .05, 'relative H1 error: weight 1 + k^2 at wave number k'),
    'latent': Loss(mean_square, ('latent', 'target'), 0., 'advanced latents against encodings of the truth'),
    'inverse_encoding': Loss(relative_square, ('reconstruction', 'start'), 0.,
                             'reconstruction D(E(u)) = u; 10 with a learned encoder'),
    'inverse_decoding': Loss(inverse_decoding, ('cycle', 'advanced'), 0., 'latent cycle E(D(z)) = z'),
    'latent_norm': Loss(unit_size, ('latent',), 0., 'latents of unit size'),
}


def key_group():
    """The weights of the losses as keys of train.py, {heading: {name: (default, comment)}}."""
    return {'losses (losses.py): weights, 0 switches one off':
            {f'lambda_{name}': (loss.weight, loss.note) for name, loss in LOSSES.items()}}


def weighted_sum(outputs, weights):
    """All losses that have a weight: (total, {name: detached value}). Raises UserError for a loss that needs
    an output which the stage does not have."""
    total = 0.
    terms = {}
    for name, weight in weights.items():
        if not weight:
            continue
        loss = LOSSES[name]
        missing = [need for need in loss.outputs if need not in outputs]
        if missing:
            raise UserError(f"the loss '{name}' needs the output '{missing[0]}'; this stage has "
                            f'{", ".join(outputs)}')
        value = loss.function(*(outputs[need] for need in loss.outputs))
        total = total + weight * value
        terms[name] = value.detach()
    return total, terms


# ---------------------------------------------------------------------------------------------
# stages

# Hooks of extensions (physics/, points/). hook(stage) is called when a stage is built; it may return a
# function (outputs, batch), which is called in every iteration and adds to the outputs. It raises UserError
# where it does not apply.
EXTENSIONS = []


class Stage(nn.Module):
    """What the stages of a training share. A stage is a module: (batch, progress) -> loss, {name: value}."""
    trains = ()                        # sub-modules of the model that are trained; the rest is frozen
    # the rest is for later stages (probabilistic/)
    stepper = 'operator'               # module of the latent steps in validation
    n_members = 0                      # of each of these rollouts, if the stepper is stochastic
    score = 'nRMSE'                    # name of the validation error
    defaults = {}                      # keys that have another default in this stage
    has_losses = False                 # True: forward ends in weighted_sum(outputs, weights)
    latent_only = False                # True: it can train on cached latents, batch.z, without fields

    def __init__(self, model, settings):
        """settings: the keys of train.py as this stage sees them. Raises UserError where they do not fit."""
        super().__init__()
        self.model = model.train().requires_grad_(False)
        for name in self.trains:
            getattr(model, name).requires_grad_(True)
        self.settings = settings
        if not 0 <= settings.unroll_start <= settings.unroll or settings.unroll < 1:
            raise UserError(f'unroll={settings.unroll} must be at least 1, and unroll_start='
                            f'{settings.unroll_start} not larger')
        self.weights = {}
        if self.has_losses:
            self.weights = {name: getattr(settings, f'lambda_{name}') for name in LOSSES}
        made = [extension(self) for extension in EXTENSIONS]
        self.extensions = [extend for extend in made if extend]

    def checked(self, sources):
        """This stage, before any training. Raises UserError for data files (files.Source) that it cannot use."""
        return self

    def prepare(self, windows, machine):
        """Before the first iteration: take from the data what this stage starts with. Returns the windows to
        train on. A stage that resumes keeps what it has trained."""
        return windows

    def parts(self, model, trajectories):
        """What is validated: (model, stage, trajectories) of each equation."""
        return [(model, self, trajectories)]

    def error(self, p, y):
        """The validation error of predictions p against the truth y, both (N, T, *grid, C), as a number."""
        return mean_nrmse(p, y)

    def unrolled_steps(self, progress):
        """Latent steps to unroll; progress: of the stage, 0 to 1."""
        s = self.settings
        return s.unroll_start or s.unroll if progress < s.unroll_switch else s.unroll

    def encode(self, u, batch):
        """Normalised fields (B, [K,] *grid, C) of a batch -> tokens (B, [K,] S, D)"""
        if u.ndim == batch.u.ndim - 1:
            return self.model.encoder.encode_grid(u, batch.where)
        tokens = self.model.encoder.encode_grid(u.flatten(0, 1), batch.where)
        return tokens.unflatten(0, u.shape[:2])

    def decode(self, z, batch):
        """Latents (B, K, S, D) -> whole fields on the grid, (B, K, *grid, C). The background is added, so
        relative errors are those of the whole field."""
        u = self.model.decoder(z.flatten(0, 1))
        u = u.unflatten(0, z.shape[:2]).unflatten(2, batch.u.shape[2:-1])
        u = u + batch.background
        if not self.model.cfg.domain:
            return u
        inside = batch.u[:, :1, ..., list(self.model.cfg.domain)] > 0                 # its mean is 0
        return u.where(inside | self.model.is_static, 0.)


class OperatorStage(Stage):
    """Encoder, operator and decoder together, on latent rollouts of a few steps from the encoding of a true
    frame."""
    trains = ('encoder', 'condition', 'operator', 'decoder')
    has_losses = True

    def __init__(self, model, settings):
        super().__init__(model, settings)
        w = self.weights
        if not (w['field'] or w['spectral'] or w['latent']):
            raise UserError('nothing would train the operator: lambda_field, lambda_spectral or '
                            'lambda_latent must be positive')
        if model.cfg.decoder_dim and not (w['field'] or w['spectral'] or w['inverse_encoding']):
            raise UserError('nothing would train the decoder: lambda_field, lambda_spectral or '
                            'lambda_inverse_encoding must be positive')
        if settings.inverse_loss_frequency < 1:
            raise UserError(f'inverse_loss_frequency={settings.inverse_loss_frequency} must be at least 1')

    def forward(self, batch, progress):
        """batch: data.Batch, windows of 1 + unroll frames; progress: of the stage, 0 to 1. Returns the loss
        and its terms, {name: value}."""
        m = self.model
        steps = self.unrolled_steps(progress)
        weights = self.weights_now(batch.iteration, progress)
        needed = {output for name in weights for output in LOSSES[name].outputs}

        condition = m.condition(batch.dt, batch.params)              # (B, cond_dim)
        z = [self.encode(batch.u[:, 0], batch)]                      # (B, S, D)
        for _ in range(steps):
            z.append(m.operator(z[-1], condition))
        z = torch.stack(z, 1)                                        # (B, 1 + K, S, D)
        truth = batch.u[:, :1 + steps] + batch.background            # (B, 1 + K, *grid, C)
        outputs = {'latent': z[:, 1:], 'truth': truth[:, 1:]}
        if needed & {'reconstruction', 'start'}:
            u = self.decode(z, batch)                                # (B, 1 + K, *grid, C)
            outputs.update(field=u[:, 1:], reconstruction=u[:, :1], start=truth[:, :1])
        else:
            outputs['field'] = self.decode(z[:, 1:], batch)
        if 'target' in needed:                                       # encodings of the true frames
            with torch.no_grad():
                outputs['target'] = self.encode(batch.u[:, 1:1 + steps], batch)
        if needed & {'cycle', 'advanced'}:
            outputs.update(cycle=m.cycle(z[:, 1], batch.where)[:, None], advanced=z[:, 1:2])
        for extend in self.extensions:
            extend(outputs, batch)
        return weighted_sum(outputs, weights)

    def weights_now(self, iteration, progress):
        """The losses that act in this iteration, {name: weight}. Inverse decoding acts in every
        inverse_loss_frequency-th one, and its weight grows over the first part of the stage."""
        weights = dict(self.weights)
        is_due = (iteration + 1) % self.settings.inverse_loss_frequency == 0
        weights['inverse_decoding'] *= min(1., progress / RAMP) if is_due else 0.
        return {name: weight for name, weight in weights.items() if weight}


STAGES = {'operator': OperatorStage}                         # probabilistic/ adds others
