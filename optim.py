"""
Optimisers, their learning rate, and the average of the weights.

    optimizers = make(stage, settings)           # Muon for the matrices inside, AdamW for the rest
    ema = EMA(model, ema_decay=.999)
    for iteration in range(max_iters):
        factor = schedule(iteration / max_iters, iteration, warmup_iters=100)
        set_rate(optimizers, factor)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        ema.update(iteration)
"""
import copy
import math

import torch
from torch import nn

from runtime.configurator import UserError, among

BETAS = (.9, .99)                                # of AdamW
LAST_RATE = .01                                  # final learning rate / peak


# --- Muon --------------------------------------------------------------------

def _fast_in_bf16(device):
    """Whether small matrices multiply faster in bfloat16 than in float32: not on a CPU, even one that has it."""
    return device.type == 'cuda' and torch.cuda.get_device_capability(device) >= (8, 0)


def orthogonalise(x, bf16):
    """
    The matrices nearest to orthogonal ones, roughly: singular values above .01 of the Frobenius norm
    end up between .7 and 1.2, by four steps of a Newton-Schulz iteration (arXiv 2502.16982).

    x: (n, rows, columns). bf16: iterate in bfloat16. Returns the same shape and type.
    """
    dtype = x.dtype
    tall = x.shape[-2] > x.shape[-1]
    if tall:                                     # the smaller of the two Gram matrices costs less
        x = x.mT
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-12)
    if bf16:
        x = x.bfloat16()
    for _ in range(4):                           # 3.4445 x - 4.7750 (x x^T) x + 2.0315 (x x^T)^2 x
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, polynomial, x, beta=3.4445)
    if tall:
        x = x.mT
    return x.to(dtype)


def muon_updates(grads, momenta, beta, bf16):
    """
    The orthogonalised updates of matrices, a stack (n, rows, columns) for each shape.

    grads: lists of n gradients of one shape; momenta: their stacks, which move on by 1 - beta. It is one function, so
    that it can be compiled as a whole: on a GPU it takes hundreds of launches otherwise.
    """
    updates = []
    for of_shape, momentum in zip(grads, momenta):
        grad = torch.stack(of_shape)
        momentum.lerp_(grad, 1 - beta)
        nesterov = grad.lerp(momentum, beta)
        updates.append(orthogonalise(nesterov, bf16))
    return updates


class Muon(torch.optim.Optimizer):
    """
    Momentum whose update is orthogonalised (arXiv 2502.16982), for matrices (rows, columns). The kernel of a
    convolution counts as a matrix of (outputs, inputs x points).

    Matrices of one shape go through the Newton-Schulz iteration together, which on a CPU is several
    times faster than torch.optim.Muon, which takes them one by one. The momentum of all matrices of one
    shape is one tensor, stored as the state of the first of them.
    """

    def __init__(self, params, lr, momentum=.95, weight_decay=0., compiled=False):
        super().__init__(params, {'lr': lr, 'momentum': momentum, 'weight_decay': weight_decay})
        self.updates = torch.compile(muon_updates, dynamic=False) if compiled else muon_updates

    @torch.no_grad()
    def step(self):
        """One update of every matrix; one without a gradient counts as having a gradient of zero."""
        for group in self.param_groups:
            of_shape = {}
            for p in group['params']:
                of_shape.setdefault(p.shape, []).append(p)
            stacks = list(of_shape.values())
            grads = []
            for stack in stacks:
                grads.append([(torch.zeros_like(p) if p.grad is None else p.grad).flatten(1) for p in stack])
            momenta = [self._momentum_of(stack) for stack in stacks]
            bf16 = _fast_in_bf16(stacks[0][0].device)
            updates = self.updates(grads, momenta, group['momentum'], bf16)
            for stack, update in zip(stacks, updates):
                rows, columns = update.shape[1:]
                step_size = group['lr'] * math.sqrt(max(1, rows / columns))
                if group['weight_decay']:
                    torch._foreach_mul_(stack, 1 - group['lr'] * group['weight_decay'])
                update = update.view(len(stack), *stack[0].shape)
                torch._foreach_add_(stack, list(update.unbind()), alpha=-step_size)

    def _momentum_of(self, stack):
        state = self.state[stack[0]]
        if 'momentum' not in state:
            state['momentum'] = torch.stack([torch.zeros_like(p).flatten(1) for p in stack])
        return state['momentum']


# --- which optimiser takes what ----------------------------------------------

def make(stage, settings, compiled=False):
    """
    The optimisers of everything in the module `stage` that requires a gradient: [AdamW], [AdamW, Muon]
    or [Muon].

    settings: has optimizer ('muon' or 'adamw'), learning_rate, muon_lr, weight_decay. compiled: compile
    Muon's updates, on the first step. Muon takes the weights of linear layers and convolutions, except of
    layers marked by model.use_adamw because fields, conditions or scalars enter or leave there. AdamW takes
    the rest; vectors (biases, gains) do not decay. Each group of parameters stores its peak learning rate as
    `base_lr`. Raises UserError for an unknown optimizer.
    """
    matrices = []
    if among('optimizer', settings.optimizer, ('muon', 'adamw')) == 'muon':
        matrices = _inner_matrices(stage)
    taken = {id(p) for p in matrices}
    rest = [p for p in stage.parameters() if p.requires_grad and id(p) not in taken]
    optimizers = []
    if rest:
        optimizers.append(_adamw(rest, settings))
    if matrices:
        optimizers.append(Muon(matrices, settings.muon_lr, weight_decay=settings.weight_decay,
                               compiled=compiled))
    if not optimizers:
        raise UserError(f'{type(stage).__name__} trains nothing: name sub-modules of the model in `trains`')
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group['base_lr'] = group['lr']
        optimizer.register_load_state_dict_pre_hook(_with_settings_of)
    return optimizers


def _inner_matrices(stage):
    """The weights of the linear layers and convolutions inside the network, each once."""
    matrices = {}
    for layer in stage.modules():
        inner = isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)) and not getattr(layer, 'adamw', False)
        if inner and layer.weight.requires_grad:
            matrices[id(layer.weight)] = layer.weight
    return list(matrices.values())


def _adamw(params, settings):
    kernels = [p for p in params if p.ndim >= 2]
    vectors = [p for p in params if p.ndim < 2]
    groups = []
    if kernels:
        groups.append({'params': kernels, 'weight_decay': settings.weight_decay})
    if vectors:
        groups.append({'params': vectors, 'weight_decay': 0.})
    fused = all(p.is_floating_point() and p.device.type in ('cpu', 'cuda') for p in params)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=BETAS, fused=fused)


def _with_settings_of(optimizer, saved):
    """The saved state with the settings of `optimizer`: a run that goes on may have another learning
    rate or device than the one that was saved."""
    groups = []
    for now, then in zip(optimizer.param_groups, saved['param_groups'], strict=True):
        groups.append({**now, 'params': then['params']})
    return {**saved, 'param_groups': groups}


# --- learning rate -----------------------------------------------------------

def schedule(progress, iteration, warmup_iters):
    """
    The factor of all learning rates: a linear warm-up over `warmup_iters` iterations times a cosine
    from 1 to LAST_RATE. progress: fraction of the stage that is done, 0 to 1.
    """
    warm_up = min(1., (iteration + 1) / max(1, warmup_iters))
    cosine = .5 * (1 + math.cos(math.pi * progress))
    return warm_up * (LAST_RATE + (1 - LAST_RATE) * cosine)


def set_rate(optimizers, factor):
    """Set every learning rate to `factor` times its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group['lr'] = group['base_lr'] * factor


# --- average of the weights --------------------------------------------------

class EMA:
    """
    `model` is a copy of the given model whose weights are the exponential moving average of its
    weights. They are the ones that are evaluated and shipped. With ema_decay 0 the copy follows the
    weights.
    """

    def __init__(self, model, ema_decay):
        if ema_decay >= 1:
            raise UserError(f'ema_decay={ema_decay} must be below 1; 0 keeps no average')
        self.ema_decay = ema_decay
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self._averages = list(self.model.parameters())
        self._weights = list(model.parameters())

    @torch.no_grad()
    def update(self, iteration):
        """Move the average towards the weights. In the first iterations (counted from 0) it moves
        faster than `ema_decay` says, since the initial weights are worth little."""
        decay = min(self.ema_decay, (1 + iteration) / (10 + iteration))
        torch._foreach_lerp_(self._averages, self._weights, 1 - decay)
