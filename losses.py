"""
Training losses: pure functions of tensors, every one a mean, so that a weight means the same at any size.

    total, parts = bundle(outputs, u, weights)    # outputs of UPT.forward, weights {'field': 1., 'latent': 10., ...}

u is a field, z = E(u) its latent, A the operator, D the decoder, q query points. The inverse losses are those of
UPT (arXiv 2402.12365, section 3.3): they make encoder and decoder inverses of each other, so that an operator
that was trained on encodings may be fed its own output, and a rollout needs no decoding.
"""
import torch


def relative_l2(p, y, lift=0.):
    """Mean over samples (and steps) of ‖p - y‖₂ / ‖y + lift‖₂, the norms over points and fields. Its gradient at
    p = y is zero. p, y (..., Q, C); lift: what a moving frame has taken off the field, to be broadcast to it."""
    dims = (-2, -1)
    norm = torch.linalg.vector_norm(y + lift, dim=dims).clamp_min(1e-6)
    return (torch.linalg.vector_norm(p - y, dim=dims) / norm).mean()


def latent_forward(latent, target):
    """mean |A(z_t) - E(u_{t+1})|², over batch, steps, tokens and features. latent, target (B, K, S, D)."""
    return (latent - target).square().mean()


def inverse_encoding(reconstruction, u, lift=0.):
    """Field space, the latent not advanced: |D(E(u_t), q) - u_t(q)|² relative to the sample's own mean square,
    mean_b [ mean_q |·|² / mean_q |u + lift|² ]: what was encoded can be decoded. Both (B, Q, C); lift as above."""
    error = (reconstruction - u).square().mean((-2, -1))
    return (error / (u + lift).square().mean((-2, -1)).clamp_min(1e-6)).mean()


def inverse_decoding(cycle, latent):
    """Latent space: mean |E(D(z)) - z|² / var(z), z = A(E(u_t)) the advanced latent and var its variance per
    feature over batch and tokens, detached (it cannot be won by inflating z): what was decoded can be encoded
    again. Both (B, S, D)."""
    variance = latent.detach().var((0, 1), correction=0).clamp_min(1e-6)
    return ((cycle - latent).square() / variance).mean()


def spectral(p, y, lift=0.):
    """Relative Sobolev (H1) error, a spectral loss that weighs wave number k by 1 + k²: mean over samples of
    sqrt(Σ_k (1 + k²) |P_k - Y_k|² / Σ_k (1 + k²) |Y_k|²). p, y (..., Q, C) on a uniform periodic 1D grid; P, Y the
    Fourier coefficients of p and y + lift."""
    difference, spectrum = torch.fft.rfft((p - y).float(), dim=-2), torch.fft.rfft((y + lift).float(), dim=-2)
    k = torch.arange(spectrum.shape[-2], device=p.device)[:, None]
    weight = (1 + k ** 2).sqrt()
    norm = torch.linalg.vector_norm(weight * spectrum, dim=(-2, -1)).clamp_min(1e-6)
    return (torch.linalg.vector_norm(weight * difference, dim=(-2, -1)) / norm).mean()


def latent_norm(latent):
    """Mean over samples and steps of (mean_{S,D} z² - 1)²: keeps latents that are not normalised at unit size."""
    return (latent.square().mean((-2, -1)) - 1).square().mean()


def bundle(outputs, u, weights, lift=None):
    """All losses that have a weight. outputs: the dict of UPT.forward; u (B, 1 + K, Q, C): the true field at the query
    points, at the start and after each step; weights: {name: number or 0-d tensor}; lift (B,): what a moving frame has
    taken off the fields, so that relative errors are those of the whole field. Returns (total, {name: detached value});
    a term without a weight, or whose output is absent, is not computed."""
    lift = u.new_zeros(len(u)) if lift is None else lift
    one, all_ = lift[:, None, None], lift[:, None, None, None]
    terms = {
        'field': lambda: relative_l2(outputs['field'], u[:, 1:], all_),
        'latent': lambda: latent_forward(outputs['latent'], outputs['target']),
        'inverse_encoding': lambda: inverse_encoding(outputs['reconstruction'], u[:, 0], one),
        'inverse_decoding': lambda: inverse_decoding(outputs['cycle'], outputs['latent'][:, 0]),
        'spectral': lambda: spectral(outputs['field'], u[:, 1:], all_),
        'latent_norm': lambda: latent_norm(outputs['latent']),
    }
    total, parts = u.new_zeros(()), {}
    for name, weight in weights.items():
        if not weight or (name == 'inverse_decoding' and 'cycle' not in outputs):
            continue
        value = terms[name]()
        total = total + weight * value
        parts[name] = value.detach()
    return total, parts
