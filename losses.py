"""
Training losses by name.

u is a field, z = E(u) its latent, A the operator, D the decoder. Every loss is a mean, so that a weight means
the same at any size. The inverse losses are those of UPT (arXiv 2402.12365, section 3.3): they make encoder
and decoder inverses of each other, so that an operator that was trained on encodings may be fed its own
output, and a rollout needs no decoding.

To add a loss: write a function, name it in LOSSES with the outputs that it takes and among the losses of a
stage (stages.py), and give its weight lambda_NAME a line in train.py.
"""
import math

import torch
import torch.nn as nn

import metrics
from metrics import space_of
from runtime.configurator import UserError

SMALLEST = 1e-6                       # mean squares in denominators are at least this; a field has 1


# ---------------------------------------------------------------------------------------------
# losses: fields are (B, K, *space, C) for K steps, latents (B, K, S, D), all normalised

def relative_l2(p, y):
    """Mean over samples, steps and fields of |p - y| / |y|, L2 norms over points. Its gradient at p = y is
    zero."""
    dims = space_of(y)
    n_point = math.prod(y.shape[axis] for axis in dims)
    norm = torch.linalg.vector_norm(y, dim=dims).clamp_min((SMALLEST * n_point) ** .5)
    return (torch.linalg.vector_norm(p - y, dim=dims) / norm).mean()


def relative_square(p, y):
    """Mean over samples and steps of |p - y|^2 / |y|^2, norms over points and fields. As inverse encoding,
    with p = D(E(u)) and y = u, it asks that what was encoded can be decoded."""
    dims = tuple(range(2, y.ndim))
    error = (p - y).square().mean(dims)
    return (error / y.square().mean(dims).clamp_min(SMALLEST)).mean()


def mean_square(z, target):
    """mean |z - target|^2 over everything: of A(z_t) and E(u_{t+1}), or of what a flow predicts."""
    return (z - target).square().mean()


def agreement(z, target, before):
    """Mean over samples and steps of |A(z_t) - E(u_{t+1})|^2 / |E(u_{t+1}) - E(u_t)|^2: an error of the size
    of the step is 1, and the loss cannot be won by a latent in which nothing moves."""
    step = (target - before).square().mean((-2, -1))
    return ((z - target).square().mean((-2, -1)) / step.clamp_min(SMALLEST)).mean()


def direction(z, earlier, target, before):
    """Mean over samples and steps of 1 - cos of the angle between the step A(z_t) - z_t and the true one,
    E(u_{t+1}) - E(u_t): which way, however far."""
    step = (z - earlier).flatten(2)
    true_step = (target - before).flatten(2)
    return (1 - nn.functional.cosine_similarity(step, true_step, -1, SMALLEST)).mean()


def inverse_decoding(cycle, z):
    """mean |E(D(z)) - z|^2 / var(z), z the advanced latent: what was decoded can be encoded again. The
    variance is that of each feature over batch, steps and tokens, detached, so the loss cannot be won by
    inflating z."""
    variance = z.detach().var((0, 1, 2), correction=0).clamp_min(SMALLEST)
    return ((cycle - z).square() / variance).mean()


def spectral(p, y):
    """
    Relative Sobolev (H1) error: wave number k weighs 1 + |k|^2. Mean over samples and steps of

        sqrt(sum_k (1 + |k|^2) |P_k - Y_k|^2 / sum_k (1 + |k|^2) |Y_k|^2),

    P and Y the Fourier coefficients of fields on a uniform grid of a periodic domain. (Of conjugate pairs
    along the last axis, one counts.)
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
    weight = (1 + k_squared)[..., None].sqrt()                       # (*space, 1)
    error = norm_of(weight * difference)
    least = SMALLEST ** .5 * math.prod(y.shape[axis] for axis in axes)
    return (error / norm_of(weight * spectrum).clamp_min(least)).mean()


def norm_of(coefficients):
    """sqrt(sum |.|^2) of a sample and step; as real numbers, since not every device has norms of complex
    ones."""
    parts = torch.view_as_real(coefficients)                         # (B, K, *space, C, 2)
    return torch.linalg.vector_norm(parts, dim=tuple(range(2, parts.ndim)))


def unit_size(z):
    """Mean over samples and steps of (mean z^2 - 1)^2 keeps latents at unit size."""
    return (z.square().mean((-2, -1)) - 1).square().mean()


def mean_of_squares(defect):
    """Of what physics.py measures, relative to the size of the truth."""
    return defect.square().mean()


def beyond_the_truth(defect, of_truth):
    """mean |R(p) - R(y)|^2: what is left of the equation, or at a wall, without what is left for the truth.
    That is not zero on the points of a grid and at the long steps of a model, and a prediction must not be
    pulled away from the truth."""
    return (defect - of_truth).square().mean()


def crps(members, truth):
    """Continuous ranked probability score of an ensemble, mean over everything: members (B, M, K, *space, C),
    truth (B, K, *space, C). See metrics.fair_crps."""
    return metrics.fair_crps(members, truth).mean()


# name: the function, and the outputs of a stage that it takes. Its weight is lambda_NAME.
LOSSES = {
    'field': (relative_l2, 'field', 'truth'),
    'latent': (mean_square, 'latent', 'target'),
    'agreement': (agreement, 'latent', 'target', 'before'),
    'direction': (direction, 'latent', 'earlier', 'target', 'before'),
    'inverse_encoding': (relative_square, 'reconstruction', 'start'),
    'inverse_decoding': (inverse_decoding, 'cycle', 'advanced'),
    'spectral': (spectral, 'field', 'truth'),
    'latent_norm': (unit_size, 'latent'),
    'flow': (mean_square, 'flow', 'flow_target'),
    'distill': (mean_square, 'end', 'end_of_teacher'),
    'crps': (crps, 'members', 'truth'),
    'conservation': (mean_of_squares, 'gap'),
    'boundary': (beyond_the_truth, 'wall_defect', 'true_wall_defect'),
    'divergence': (mean_of_squares, 'velocity_divergence'),
    'residual': (beyond_the_truth, 'residual', 'true_residual'),
}


def taken_by(name):
    """The outputs of a stage that a loss takes."""
    return LOSSES[name][1:]


def weighted_sum(outputs, weights):
    """All losses that have a weight: (total, {name: detached value}). Raises UserError for a loss that takes
    an output which is not there."""
    total = 0.
    parts = {}
    for name, weight in weights.items():
        if not weight:
            continue
        function = LOSSES[name][0]
        needs = taken_by(name)
        missing = [need for need in needs if need not in outputs]
        if missing:
            raise UserError(f"the loss '{name}' takes '{missing[0]}', which this stage does not have: it has "
                            f'{", ".join(outputs)}')
        value = function(*(outputs[need] for need in needs))
        total = total + weight * value
        parts[name] = value.detach()
    return total, parts
