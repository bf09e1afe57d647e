"""
Layers that encoder, operator and decoder are built of: linear maps that keep float32, rotary positions, two
kinds of attention over the tokens, the block around one, and the transformer of many.

Shapes: B batch, S tokens, D features of a token, d space dimensions.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from grids import merge_tokens, positions, split_tokens
from runtime.configurator import UserError

# ---------------------------------------------------------------------------------------------
# small layers

class Float32Linear(nn.Linear):
    """A linear layer that computes in float32 under any autocast. Where fields enter and leave the network,
    and where its residual stream is scaled, bfloat16 would round by as much as a trained model errs."""

    def forward(self, x):
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def outer(layer):
    """Mark a layer that meets fields, conditions or scalars rather than features: AdamW trains it, not
    Muon."""
    layer.outer = True
    return layer


def zero(layer):
    """Start a linear layer at zero, so that the branch which it ends adds nothing at first."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def divides(small, big, what):
    """Raise UserError, with the arithmetic, unless `small` divides `big`."""
    if small < 1 or big % small:
        raise UserError(f'{what}: {small} does not divide {big}')


def ones_at(numbers, size):
    """(size,): 1 at the `numbers` below it, else 0."""
    mask = torch.zeros(size)
    mask[[number for number in numbers if number < size]] = 1.
    return mask


def drop_path(x, rate, training):
    """Drop the whole residual branch of a sample with probability `rate` (arXiv 1603.09382)."""
    if rate == 0. or not training:
        return x
    keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= rate
    return x * keep.to(x.dtype) / (1 - rate)


class RotaryPositions(nn.Module):
    """Rotary position embedding (arXiv 2104.09864) of queries and keys.

    On a periodic axis the wave numbers are integers, so attention sees distances on the circle and nothing of
    where the domain was cut: the operator commutes with translations by a token.
    """

    def __init__(self, centres, head_dim, periodic):
        """centres (S, d): of the tokens, as fractions of the domain."""
        super().__init__()
        if head_dim % 2:
            raise UserError(f'a head has {head_dim} features; rotary positions need an even number')
        S, d = centres.shape
        n_pair = head_dim // 2
        finest = max(1., round(S ** (1 / d)) / 4)                    # a wave of four tokens
        angles = torch.zeros(S, n_pair)
        for axis in range(d):
            pairs = range(axis, n_pair, d)                           # the pairs take turns over the axes
            for rank, pair in enumerate(pairs):
                wave = finest ** (rank / max(1, len(pairs) - 1))
                wave = round(wave) if periodic else wave / 2
                angles[:, pair] = 2 * math.pi * wave * centres[:, axis]
        self.half = n_pair
        cos = torch.cat([angles.cos(), angles.cos()], 1)             # (S, head_dim)
        sin = torch.cat([-angles.sin(), angles.sin()], 1)
        self.register_buffer('cos', cos, persistent=False)
        self.register_buffer('sin', sin, persistent=False)

    def forward(self, x):
        """x (..., S, head_dim) -> the same shape; features i and i + head_dim/2 are rotated by their token's
        angle."""
        return torch.addcmul(x * self.cos.to(x.dtype), x.roll(self.half, -1), self.sin.to(x.dtype))


# ---------------------------------------------------------------------------------------------
# attention

class StandardAttention(nn.Module):
    """Multi-head self-attention over the tokens. Queries and keys are layer-normalised per head (QK-norm,
    arXiv 2302.05442) with one scale for both, since only its square acts."""

    def __init__(self, dim, n_head, centres, periodic):
        super().__init__()
        divides(n_head, dim, 'n_head must divide the width')
        self.n_head = n_head
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.qk_norm = nn.LayerNorm(dim // n_head, bias=False)
        self.rotary = RotaryPositions(centres, dim // n_head, periodic)

    def forward(self, x):
        """x (B, S, dim) -> (B, S, dim)"""
        B, S, D = x.shape
        H = self.n_head
        qkv = self.qkv(x).view(B, S, 3 * H, D // H).transpose(1, 2)  # (B, 3 H, S, hd)
        qk, v = qkv.split([2 * H, H], 1)
        q, k = self.rotary(self.qk_norm(qk)).chunk(2, 1)
        y = F.scaled_dot_product_attention(q, k, v.to(q.dtype))      # (B, H, S, hd)
        return self.proj(y.transpose(1, 2).reshape(B, S, D))


class ChannelAttention(nn.Module):
    """
    Channel-separated attention: block-diagonal over groups of features.

    The D features fall into D / group_size contiguous groups. All groups share one set of group_size x
    group_size projections; inside a group, attention runs over all tokens:

        q = Wq RMSNorm(x),  k = Wk RMSNorm(x),  v = Wv x,  out = Wo softmax(q k^T / sqrt(hd)) v

    with the norm over the group and `n_head` heads inside it. Groups meet only in the MLP that follows. The
    key has no bias, since it would cancel in the softmax. group_size = D is ordinary multi-head attention.
    """

    def __init__(self, dim, n_head, group_size, centres, periodic):
        super().__init__()
        divides(group_size, dim, 'group_size must divide the width')
        divides(n_head, group_size, 'n_head (heads in a group) must divide group_size')
        self.n_head = n_head
        self.group_size = group_size
        self.norm = nn.RMSNorm(group_size)
        self.q = nn.Linear(group_size, group_size)
        self.k = nn.Linear(group_size, group_size, bias=False)
        self.v = nn.Linear(group_size, group_size)
        self.proj = nn.Linear(group_size, group_size)
        self.rotary = RotaryPositions(centres, group_size // n_head, periodic)

    def forward(self, x):
        """x (B, S, dim) -> (B, S, dim)"""
        B, S, D = x.shape
        x = x.view(B, S, D // self.group_size, self.group_size)      # (B, S, G, g)
        n = self.norm(x)
        q = self.rotary(self.heads(self.q(n)))                       # (B, G H, S, hd)
        k = self.rotary(self.heads(self.k(n)))
        v = self.heads(self.v(x))
        y = F.scaled_dot_product_attention(q, k, v.to(q.dtype))
        return self.proj(y.transpose(1, 2).reshape(x.shape)).reshape(B, S, D)

    def heads(self, x):
        """(B, S, G, g) -> (B, G H, S, hd)"""
        B, S, G, g = x.shape
        return x.view(B, S, G * self.n_head, g // self.n_head).transpose(1, 2)


# ---------------------------------------------------------------------------------------------
# block

class Block(nn.Module):
    """
    Transformer block around an attention layer; both of its branches start at zero.

    With cond_dim, a condition (B, cond_dim) scales, shifts and gates them (adaptive layer norm, arXiv
    2212.09748), starting from shift 0, scale 1 and gate 1. With noise_dim, so does a vector of noise, by a
    linear map that starts at zero (arXiv 2506.10772). Without layer_norm a branch sees amplitudes as they
    are, which a step of a nonlinear PDE depends on. Under autocast, attention and MLP are in bfloat16, the
    residual stream in float32.
    """

    def __init__(self, dim, attention, mlp_ratio, cond_dim=0, drop_path=0., layer_norm=True,
                 checkpointing=False, noise_dim=0):
        super().__init__()
        inner = int(mlp_ratio * dim)
        if inner < 1:
            raise UserError(f'mlp_ratio={mlp_ratio} leaves no features between the two layers of an MLP')
        self.attention = attention
        self.mlp = nn.Sequential(nn.Linear(dim, inner), nn.GELU(), nn.Linear(inner, dim))
        zero(attention.proj)
        zero(self.mlp[2])
        self.norm1 = nn.Identity()
        self.norm2 = nn.Identity()
        if layer_norm:                                             # the condition, where there is one, scales
            self.norm1 = nn.LayerNorm(dim, elementwise_affine=not cond_dim, bias=False)
            self.norm2 = nn.LayerNorm(dim, elementwise_affine=not cond_dim, bias=False)
        self.modulation = None
        if cond_dim:
            self.modulation = outer(Float32Linear(cond_dim, 6 * dim))
            nn.init.zeros_(self.modulation.weight)
            start = torch.tensor([0., 1., 1., 0., 1., 1.])           # shift, scale and gate of each branch
            self.modulation.bias.data = start.repeat_interleave(dim)
        if noise_dim:
            self.noise = zero(outer(Float32Linear(noise_dim, 6 * dim, bias=False)))
        self.drop_path = drop_path
        self.checkpointing = checkpointing

    def forward(self, x, cond=None, noise=None):
        """x (B, S, dim), cond (B, cond_dim) if the block has a modulation, noise (B, noise_dim) or None
        -> (B, S, dim), float32"""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(self.branches, x, cond, noise, use_reentrant=False)
        return self.branches(x, cond, noise)

    def branches(self, x, cond, noise):
        if self.modulation is None:
            x = x + self.dropped(self.attention(self.norm1(x)))
            return x + self.dropped(self.mlp(self.norm2(x)))
        modulation = self.modulation(cond)
        if noise is not None:
            modulation = modulation + self.noise(noise)
        modulation = modulation[:, None]                             # (B, 1, 6 dim)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, -1)
        a = self.attention(torch.addcmul(shift1, self.norm1(x), scale1))
        x = torch.addcmul(x, self.dropped(a), gate1)
        a = self.mlp(torch.addcmul(shift2, self.norm2(x), scale2))
        return torch.addcmul(x, self.dropped(a), gate2)

    def dropped(self, branch):
        return drop_path(branch.float(), self.drop_path, self.training)


# ---------------------------------------------------------------------------------------------
# transformer

class Transformer(nn.Module):
    """
    Blocks over the tokens, at one resolution (arch='pure') or at halved and restored ones (arch='u').

    Going down, pairs of tokens (per axis) are concatenated and mapped back to the width; going up, a linear
    map unfolds them and a linear map of the skip connection is added. The pure one is a U of a single level.
    The drop-path rate ramps up linearly with depth. Attention sees the distances of tokens alone; where
    places differ (walls, a force), a learned vector, which starts at zero, tells every token its own.
    """

    def __init__(self, cfg, n_in=0, noise_dim=0):
        """n_in: features of a token that comes in; 0: latent_dim."""
        super().__init__()
        dim = cfg.hidden_dim
        d = len(cfg.grid)
        depths = cfg.depths if cfg.arch == 'u' else (cfg.depth,)
        if len(depths) % 2 == 0:
            raise UserError(f'depths={depths} needs an odd number of entries: down ..., bottleneck, up ...')
        n_level = len(depths) // 2
        for s in cfg.token_grid:
            divides(2 ** n_level, s, 'the U shape must halve the latent tokens of an axis')
        self.grids = [tuple(s // 2 ** level for s in cfg.token_grid) for level in range(n_level + 1)]
        self.factors = (2,) * d
        self.stem = Float32Linear(n_in or cfg.latent_dim, dim)
        self.place = None
        if not cfg.uniform:
            self.place = nn.Parameter(torch.zeros(math.prod(cfg.token_grid), dim))
        self.stages = nn.ModuleList()
        levels = [*range(n_level), *range(n_level, -1, -1)]          # 0 .. bottom .. 0
        n_block = sum(depths)
        for level, depth in zip(levels, depths):
            grid = self.grids[level]
            points = [n // s for n, s in zip(cfg.grid, grid)]
            centres = positions(grid, cfg.token_centre(points), [1 / s for s in grid])
            stage = nn.ModuleList()
            for _ in range(depth):
                done = sum(len(other) for other in self.stages) + len(stage)
                rate = cfg.drop_path * done / max(1, n_block - 1)
                attention = self.make_attention(cfg, centres)
                stage.append(Block(dim, attention, cfg.mlp_ratio, cfg.cond_dim, rate, cfg.layer_norm,
                                   cfg.checkpointing, noise_dim))
            self.stages.append(stage)
        self.down = nn.ModuleList(nn.Linear(dim * 2 ** d, dim) for _ in range(n_level))
        self.up = nn.ModuleList(nn.Linear(dim, dim * 2 ** d) for _ in range(n_level))
        self.skip = nn.ModuleList(nn.Linear(dim, dim) for _ in range(n_level))
        self.norm = nn.LayerNorm(dim, bias=False) if cfg.layer_norm else nn.Identity()
        self.head = zero(Float32Linear(dim, cfg.latent_dim))

    @staticmethod
    def make_attention(cfg, centres):
        if cfg.attention == 'channel':
            return ChannelAttention(cfg.hidden_dim, cfg.n_head, cfg.group_size, centres, cfg.periodic)
        return StandardAttention(cfg.hidden_dim, cfg.n_head, centres, cfg.periodic)

    def forward(self, z, cond, noise=None):
        """z (B, S, n_in), cond (B, cond_dim), noise (B, noise_dim) or None -> (B, S, latent_dim), float32"""
        n_level = len(self.down)
        x = self.stem(z)
        if self.place is not None:
            x = x + self.place
        skips = []
        for level in range(n_level):
            for block in self.stages[level]:
                x = block(x, cond, noise)
            skips.append(x)
            x = self.down[level](merge_tokens(x, self.grids[level], self.factors)).float()
        for block in self.stages[n_level]:
            x = block(x, cond, noise)
        for i, level in enumerate(reversed(range(n_level))):
            x = split_tokens(self.up[i](x), self.grids[level], self.factors)
            x = (x + self.skip[i](skips[level])).float()
            for block in self.stages[n_level + 1 + i]:
                x = block(x, cond, noise)
        return self.head(self.norm(x))
