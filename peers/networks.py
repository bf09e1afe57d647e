"""
Other people's networks as operators: they map a field to its change over one step.

    python train.py config/burgers_cpu.py --arch=fno --latent_tokens=512 --latent_dim=1 --token_shift=0 \
        --hidden_dim=48 --optimizer=adamw --learning_rate=6e-3

A peer takes the place of the transformer in model.Operator. With one token a grid point, one feature a field,
and no learned encoder or decoder, the tokens are the normalised field itself. So train.py trains a peer with
the same data, losses, symmetries, moving frame, conservation, averaging and schedule. compare.py has the
settings of the comparison. hidden_dim is a peer's width and depth its number of layers.

To add a peer, derive a class from FieldNetwork that makes self.network, and register it in __init__.py.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from grids import merge_tokens, padded, positions, split_tokens
from model import UPT, use_adamw, zero_init
from runtime.configurator import UserError
from runtime.inputs import axis_points

HEADS = 8                              # of Transolver, and
SLICES = 32                            # its slices: those of the paper
PATCH = 4                              # points of a patch of PDE-Transformer along an axis,
WINDOW = 8                             # tokens of a window,
WINDOW_HEADS = 4                       # and heads of its attention
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d}                          # by the axes of a grid


class FieldNetwork(nn.Module):
    """
    What peers share: tokens become the channels of a field. As many channels follow that are constant in
    space and hold a linear map of the condition (time step and parameters), which starts at zero. In a domain
    with walls or a force, the coordinates of the points follow (on a torus, their sines and cosines).

    self.network maps (B, self.n_in, *grid) to the change of the C fields over a step, (B, C, *grid). Raises
    UserError where the tokens of `cfg` are not the grid points.
    """

    def __init__(self, cfg):
        super().__init__()
        is_field = cfg.token_grid == cfg.grid and cfg.latent_dim == cfg.n_field
        if not is_field or cfg.encoder_dim or cfg.decoder_dim:
            raise UserError(f'arch={cfg.arch} takes the field itself for its tokens: --encoder_dim=0 '
                            f'--decoder_dim=0 --latent_tokens={min(cfg.grid)} --latent_dim={cfg.n_field}')
        self.grid = tuple(cfg.grid)
        self.condition = zero_init(use_adamw(nn.Linear(cfg.cond_dim, cfg.n_field, bias=False)))
        self.n_in = 2 * cfg.n_field
        position = None
        if not cfg.translation_invariant:
            position = coordinates(cfg)
            self.n_in += len(position)
        self.register_buffer('position', position, persistent=False)

    def forward(self, z, cond):
        """z (B, S, C), cond (B, cond_dim) -> the change of z over a step, (B, S, C)"""
        constant = self.condition(cond) / cond.shape[-1]             # a mean: it learns as slowly as a bias
        constant = constant[:, None].expand_as(z)
        u = torch.cat([z, constant], -1)
        u = u.transpose(1, 2).unflatten(2, self.grid)
        if self.position is not None:
            u = torch.cat([u, self.position.expand(len(u), *self.position.shape)], 1)
        change = self.network(u)                                     # (B, C, *grid)
        return change.flatten(2).transpose(1, 2).to(z.dtype)


def on_grid(model, shape):
    """A trained peer on another grid of `shape` points: a model.UPT whose network has the same layers. It takes fields
    of that grid as they are, without interpolation."""
    cfg = model.cfg
    first = tuple(float(axis_points(cfg, axis, n)[0]) for axis, n in enumerate(shape))
    fine = UPT(cfg.replace(grid=tuple(shape), token_grid=tuple(shape), first=first)).to(model.device).eval()
    fine.normalise(model.mean, model.std)
    fine.condition = model.condition
    fine.operator.network.condition = model.operator.network.condition
    fine.operator.network.network = model.operator.network.network
    if fine.operator.network.position is not None:
        fine.operator.network.position = coordinates(fine.cfg, cfg.grid).to(model.device)
    return fine


def coordinates(cfg, trained=None):
    """Channels that tell a grid point where it is, (n, *grid): -1 to 1 along each axis between walls, the
    sine and cosine of the angle on a torus, where another grid than the `trained` one has the same first point."""
    axes = []
    for n, first in zip(cfg.grid, trained or cfg.grid):
        start = .5 / first if cfg.periodic else .5 / n
        axes.append(torch.arange(n) / n + start)
    mesh = torch.stack(torch.meshgrid(*axes, indexing='ij'))         # (d, *grid), fractions of the domain
    if cfg.periodic:
        angle = 2 * math.pi * mesh
        return torch.cat([angle.sin(), angle.cos()])
    return 2 * mesh - 1


class FourierOperator(FieldNetwork):
    """
    Fourier neural operator (arXiv 2010.08895) of the package neuraloperator, with waves of numbers 0 to 48
    along an axis of 512 points and 0 to 12 of 64 to 128 (which the package counts as 96 and 24 modes). It is
    given no coordinates but those above, since they would break a translation symmetry. Raises UserError as
    package_fno does.
    """

    def __init__(self, cfg):
        super().__init__(cfg)
        modes = tuple(max(min(24, n // 2), 3 * n // 16) for n in cfg.grid)
        make = package_fno()
        self.network = make(n_modes=modes, in_channels=self.n_in, out_channels=cfg.n_field,
                            hidden_channels=cfg.hidden_dim, n_layers=cfg.depth, positional_embedding=None)
        use_adamw(self.network.lifting.fcs[0])                       # here the field enters, and
        use_adamw(self.network.projection.fcs[-1])                   # leaves
        self.register_state_dict_post_hook(drop_arguments)


def package_fno():
    """The class FNO of the package neuraloperator. Raises UserError where the package is missing."""
    try:
        from neuralop.models import FNO
    except ImportError as error:
        raise UserError(f'the FNO comes from the package neuraloperator ({error}): pip install -r '
                        'requirements-peers.txt, or do without it') from error
    return FNO


def drop_arguments(module, state, prefix, local_metadata):
    """The package puts the arguments of its constructor among the weights; a checkpoint holds weights
    alone."""
    state.pop('_metadata', None)


class UNet(FieldNetwork):
    """
    Convolutional U-Net (arXiv 1505.04597) with group norm, GELU and skips by concatenation. Level i, counted
    from 1, is i times hidden_dim wide and half as fine as the one above. Its last layer starts at zero.
    Raises UserError where the grid or the width cannot be divided so.
    """

    def __init__(self, cfg):
        super().__init__(cfg)
        coarsest = 2 ** (cfg.depth - 1)
        if cfg.hidden_dim % 8 or any(n % coarsest for n in cfg.grid):
            raise UserError(f'arch=unet needs hidden_dim={cfg.hidden_dim} to be a multiple of 8, and at '
                            f'depth={cfg.depth} a grid {cfg.grid} of multiples of {coarsest} points')
        self.network = Levels(cfg, self.n_in)


def convolution(cfg, n_in, n_out):
    """A convolution of three points along each axis, (B, n_in, *grid) -> (B, n_out, *grid)."""
    def pad(conv, inputs):
        [u] = inputs
        return padded(u, [1] * len(cfg.grid), cfg.periodic)

    conv = CONVOLUTIONS[len(cfg.grid)](n_in, n_out, 3)
    conv.register_forward_pre_hook(pad)
    return conv


class Levels(nn.Module):
    """The convolutions of the U-Net, (B, n_in, *grid) -> (B, C, *grid)."""

    def __init__(self, cfg, n_in):
        super().__init__()
        self.pool = (F.avg_pool1d, F.avg_pool2d)[len(cfg.grid) - 1]
        widths = [cfg.hidden_dim * (level + 1) for level in range(cfg.depth)]
        self.down = nn.ModuleList()
        for width in widths:
            self.down.append(self.pair(cfg, n_in, width))
            n_in = width
        self.up = nn.ModuleList()
        for width in reversed(widths[:-1]):
            self.up.append(self.pair(cfg, n_in + width, width))
            n_in = width
        self.head = zero_init(use_adamw(CONVOLUTIONS[len(cfg.grid)](n_in, cfg.n_field, 1)))
        use_adamw(self.down[0][0])                                   # here the field enters

    @staticmethod
    def pair(cfg, n_in, n_out):
        """Two convolutions."""
        layers = []
        for n in (n_in, n_out):
            layers += [convolution(cfg, n, n_out), nn.GroupNorm(8, n_out), nn.GELU()]
        return nn.Sequential(*layers)

    def forward(self, u):
        skips = []
        for level, block in enumerate(self.down):
            if level:
                u = self.pool(u, 2)
            u = block(u)
            skips.append(u)
        skips.pop()
        for block in self.up:
            u = F.interpolate(u, scale_factor=2)
            u = block(torch.cat([u, skips.pop()], 1))
        return self.head(u)


class Transolver(FieldNetwork):
    """
    Transolver (arXiv 2402.02366): transformer blocks over the points, whose attention acts between a few tokens
    that all points of a similar state share. The coordinates are always given. As in the paper, 8 heads, MLPs as
    wide as the block, and 32 slices; as in its authors' code for grids, a point's slices and values follow from its
    neighbours, too. Its last layer starts at zero.
    """

    def __init__(self, cfg):
        super().__init__(cfg)
        if self.position is None:                                    # the attention knows no distances
            self.register_buffer('position', coordinates(cfg), persistent=False)
            self.n_in += len(self.position)
        self.network = PointBlocks(cfg, self.n_in)


class PointBlocks(nn.Module):
    """The layers of Transolver, (B, n_in, *grid) -> (B, C, *grid)."""

    def __init__(self, cfg, n_in):
        super().__init__()
        dim = cfg.hidden_dim
        self.lift = nn.Sequential(use_adamw(nn.Linear(n_in, 2 * dim)), nn.GELU(), nn.Linear(2 * dim, dim))
        self.blocks = nn.ModuleList()
        for _ in range(cfg.depth):
            mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))
            self.blocks.append(nn.ModuleList([nn.LayerNorm(dim), PhysicsAttention(cfg), mlp]))
        self.head = nn.Sequential(nn.LayerNorm(dim), zero_init(use_adamw(nn.Linear(dim, cfg.n_field))))

    def forward(self, u):
        grid = u.shape[2:]
        x = self.lift(u.flatten(2).transpose(1, 2))                  # (B, N, dim)
        for norm, attention, mlp in self.blocks:
            x = x + attention(norm(x), grid)
            x = x + mlp(x)
        return self.head(x).transpose(1, 2).unflatten(2, grid)


class PhysicsAttention(nn.Module):
    """
    Attention between slices (arXiv 2402.02366, equations 2 to 4). In each head, a point belongs to SLICES slices by
    weights that sum to 1. The token of a slice is the mean of its points by these weights. Tokens attend to each
    other, and a point takes back the sum of its slices' tokens.
    """

    def __init__(self, cfg):
        super().__init__()
        dim = cfg.hidden_dim
        if dim % HEADS:
            raise UserError(f'arch=transolver needs hidden_dim={dim} to be a multiple of its {HEADS} heads')
        head_dim = dim // HEADS
        self.value = convolution(cfg, dim, dim)
        self.state = convolution(cfg, dim, dim)
        self.slices = nn.Linear(head_dim, SLICES)
        nn.init.orthogonal_(self.slices.weight)
        self.temperature = nn.Parameter(torch.full((HEADS, 1, 1), .5))
        self.qkv = nn.Linear(head_dim, 3 * head_dim, bias=False)     # of all heads
        self.proj = nn.Linear(dim, dim)

    def forward(self, x, grid):
        """x (B, N, dim) at the N points of a grid -> (B, N, dim)"""
        field = x.transpose(1, 2).unflatten(2, grid)
        value = self.value(field).flatten(2).unflatten(1, (HEADS, -1)).transpose(2, 3)     # (B, H, N, hd)
        state = self.state(field).flatten(2).unflatten(1, (HEADS, -1)).transpose(2, 3)
        share = (self.slices(state) / self.temperature).softmax(-1)  # (B, H, N, SLICES)
        size = share.sum(2)[..., None]
        token = share.transpose(2, 3) @ value / (size + 1e-5)        # (B, H, SLICES, hd)
        q, k, v = self.qkv(token).chunk(3, -1)
        token = F.scaled_dot_product_attention(q, k, v)
        y = share @ token                                            # (B, H, N, hd)
        return self.proj(y.transpose(1, 2).flatten(2))


class PDETransformer(FieldNetwork):
    """
    PDE-Transformer (arXiv 2505.24717), all channels in one token: patches of PATCH points along each axis, attention
    within windows of WINDOW tokens that are shifted in every second block, with a bias that follows from the distance
    (arXiv 2111.09883), on two levels with a skip: cfg.depth blocks, as many on the lower level, as many again. Its last
    layer starts at zero. As for the other peers, time step and parameters are channels; the paper has them in its
    layer norms. Raises UserError where the grid cannot be divided so.
    """

    def __init__(self, cfg):
        super().__init__(cfg)
        for n in cfg.grid:
            sizes = [n // PATCH, n // PATCH // 2]                    # tokens of both levels
            if n % (2 * PATCH) or any(size % min(WINDOW, size) for size in sizes):
                raise UserError(f'arch=pdet needs a grid {cfg.grid} of multiples of {2 * PATCH} points, and above '
                                f'{PATCH * WINDOW} of {2 * PATCH * WINDOW}')
        self.network = WindowLevels(cfg, self.n_in)


class WindowLevels(nn.Module):
    """The layers of PDE-Transformer, (B, n_in, *grid) -> (B, C, *grid)."""

    def __init__(self, cfg, n_in):
        super().__init__()
        self.d = len(cfg.grid)
        dim = cfg.hidden_dim
        coarser = 2 ** self.d                                        # tokens that a token of the lower level merges
        self.lift = use_adamw(nn.Linear(n_in * PATCH ** self.d, dim))
        self.first = window_blocks(cfg, dim)
        self.down = nn.Linear(coarser * dim, 2 * dim)
        self.lower = window_blocks(cfg, 2 * dim)
        self.up = nn.Linear(2 * dim, coarser * dim)
        self.skip = nn.Linear(2 * dim, dim)
        self.last = window_blocks(cfg, dim)
        self.norm = nn.LayerNorm(dim)
        self.head = zero_init(use_adamw(nn.Linear(dim, cfg.n_field * PATCH ** self.d)))

    def forward(self, u):
        grid = u.shape[2:]
        patch = [PATCH] * self.d
        two = [2] * self.d
        tokens = [n // PATCH for n in grid]
        coarse = [n // 2 for n in tokens]
        x = self.lift(merge_tokens(u.flatten(2).transpose(1, 2), grid, patch))           # (B, S, dim)
        for block in self.first:
            x = block(x, tokens)
        y = self.down(merge_tokens(x, tokens, two))
        for block in self.lower:
            y = block(y, coarse)
        y = split_tokens(self.up(y), tokens, two)
        x = self.skip(torch.cat([x, y], -1))
        for block in self.last:
            x = block(x, tokens)
        u = split_tokens(self.head(self.norm(x)), grid, patch)       # (B, N, C)
        return u.transpose(1, 2).unflatten(2, grid)


def window_blocks(cfg, dim):
    blocks = nn.ModuleList()
    for number in range(cfg.depth):
        blocks.append(WindowBlock(dim, len(cfg.grid), number % 2 == 1, cfg.periodic))
    return blocks


class WindowBlock(nn.Module):
    """Attention within windows, then an MLP four times as wide, (B, S, dim) -> (B, S, dim)."""

    def __init__(self, dim, d, shifted, periodic):
        super().__init__()
        if dim % WINDOW_HEADS:
            raise UserError(f'arch=pdet needs hidden_dim={dim} to be a multiple of its {WINDOW_HEADS} heads')
        self.shifted = shifted
        self.periodic = periodic
        self.d = d
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.bias = nn.Sequential(use_adamw(nn.Linear(d, 64)), nn.ReLU(), use_adamw(nn.Linear(64, WINDOW_HEADS)))
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x, tokens):
        """x (B, S, dim), row-major; tokens: their numbers along the axes."""
        x = x + self.attention(self.norm(x), tokens)
        return x + self.mlp(x)

    def attention(self, x, tokens):
        window = [min(WINDOW, n) for n in tokens]
        shift = [w // 2 if self.shifted and n > w else 0 for n, w in zip(tokens, window)]
        x = moved(x, tokens, [-n for n in shift])
        x = merge_tokens(x, tokens, window).unflatten(-1, (-1, x.shape[-1]))             # (B, windows, W, dim)
        heads = self.qkv(x).unflatten(-1, (3, WINDOW_HEADS, -1))     # (B, windows, W, 3, H, hd)
        q, k, v = heads.permute(3, 0, 1, 4, 2, 5)
        q = F.rms_norm(q, q.shape[-1:])
        k = F.rms_norm(k, k.shape[-1:])
        bias = self.bias(log_offsets(window, x.device)).permute(2, 0, 1)                 # (H, W, W)
        if any(shift) and not self.periodic:
            bias = bias.masked_fill(~neighbours(tokens, window, shift, x.device), -torch.inf)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)  # (B, windows, H, W, hd)
        y = self.proj(y.transpose(2, 3).flatten(3))
        return moved(split_tokens(y.flatten(2), tokens, window), tokens, shift)


def moved(x, tokens, steps):
    """Tokens x (B, S, D), shifted circularly along the axes."""
    if not any(steps):
        return x
    axes = tuple(range(1, 1 + len(tokens)))
    return x.unflatten(1, tuple(tokens)).roll(steps, axes).flatten(1, len(tokens))


def log_offsets(window, device):
    """Distances between the tokens of a window along each axis, sign(n) log2(1 + |n|) / 3, (W, W, d)."""
    place = positions(window, [0.] * len(window), [1.] * len(window)).to(device)
    offset = place[:, None] - place
    return offset.sign() * torch.log2(1 + offset.abs()) / 3


def neighbours(tokens, window, shift, device):
    """In windows of tokens that were shifted circularly between walls: which are in the same part of the domain?
    (windows, 1, W, W)"""
    part = torch.zeros(1, *tokens, 1, device=device)
    for axis, (n, steps) in enumerate(zip(tokens, shift), 1):
        part = 2 * part
        part.narrow(axis, n - steps, steps).add_(1.)                 # has come from the other end
    part = merge_tokens(part.flatten(1, -2), tokens, window)[0]      # (windows, W)
    return (part[:, :, None] == part[:, None])[:, None]
