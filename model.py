"""
The model: an encoder maps a field to latent tokens, an operator advances the tokens in time, a decoder reads
the field at any point. After the Universal Physics Transformer (UPT, arXiv 2402.12365), in 1D and 2D.

    from model import load
    m = load('out/burgers_cpu')              # best weights; physical units in and out
    u = m.rollout(u0, steps=40)              # (B, *space, C) -> (B, 40, *space, C), computed in latent space
    v = m.rollout(u0, steps=40, points=q)    # decoded at points q (Q, d) -> (B, 40, Q, C)
    z = m.encode(u0); z = m.step(z); f = m.decode(z, q)

Shapes: B batch, N grid points, S tokens, D features of a token, C fields, Q query points, d = 1 or 2 space
dimensions. The dicts ATTENTIONS, NETWORKS, ENCODERS and STEPPERS name what a configuration may choose.
Extensions (points/, peers/, probabilistic/) add to them when they are imported.
"""
import json
import math
from types import SimpleNamespace
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from grids import Patches, interpolate, merge_tokens, ones_at, padded, positions, split_tokens
from runtime import extensions
from runtime.checkpoint import check_shapes, find_checkpoint, load_checkpoint, of_equation, tuples
from runtime.configurator import UserError
from runtime.device import KeepsPlaces
from runtime.device import find as find_device
from runtime.inputs import (as_numbers, check_sizes, checked_latent, conditions, divides, grid_points,
                            noise_of, per_member, places_to_decode, query_points, to_trained_grid, token_grid,
                            translated, whole)

CODER_HEADS = 4                        # attention heads of encoder and decoder


# ---------------------------------------------------------------------------------------------
# layers

class Float32Linear(nn.Linear):
    """A linear layer that computes in the type of its weights, float32, under autocast. It is used where
    bfloat16 rounding would be of the size of the model's error: where fields enter and leave, and in the
    modulation."""

    def forward(self, x):
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))


def use_adamw(layer):
    """Mark a layer whose inputs are fields, conditions or scalars: AdamW trains it instead of Muon."""
    layer.adamw = True
    return layer


def zero_init(layer):
    """Initialise a linear layer with zeros, so that the branch which it ends adds nothing at first."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class RotaryPositions(nn.Module):
    """Rotary position embedding (arXiv 2104.09864) of queries and keys. On a periodic axis the wave numbers
    are integers: attention depends on distances on the circle alone, and the operator commutes with
    translations by a token."""

    def __init__(self, centres, head_dim, periodic):
        """centres (S, d): of the tokens, as fractions of the domain."""
        super().__init__()
        if head_dim % 2:
            raise UserError(f'a head has {head_dim} features; rotary positions need an even number')
        S, d = centres.shape
        self.half = n_pair = head_dim // 2
        finest = max(1., round(S ** (1 / d)) / 4)                    # a wave of four tokens
        angles = torch.zeros(S, n_pair)
        for axis in range(d):
            pairs = range(axis, n_pair, d)                           # the pairs take turns over the axes
            for rank, pair in enumerate(pairs):
                wave = finest ** (rank / max(1, len(pairs) - 1))
                wave = round(wave) if periodic else wave / 2
                angles[:, pair] = 2 * math.pi * wave * centres[:, axis]
        cos = torch.cat([angles.cos(), angles.cos()], 1)             # (S, head_dim)
        sin = torch.cat([-angles.sin(), angles.sin()], 1)
        self.register_buffer('cos', cos, persistent=False)
        self.register_buffer('sin', sin, persistent=False)

    def forward(self, x):
        """x (..., S, head_dim); features i and i + head_dim/2 are rotated by the angle of their token."""
        return torch.addcmul(x * self.cos.to(x.dtype), x.roll(self.half, -1), self.sin.to(x.dtype))


# ---------------------------------------------------------------------------------------------
# attention

class StandardAttention(nn.Module):
    """Multi-head self-attention over the tokens. Queries and keys are layer-normalised per head (QK-norm,
    arXiv 2302.05442) with one scale for both, since only the product of two scales would act. As every
    attention layer it ends in a linear map `proj`, which Block initialises with zeros."""

    def __init__(self, cfg, dim, n_head, centres):
        super().__init__()
        divides(n_head, dim, 'n_head must divide the width')
        self.n_head = n_head
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.qk_norm = nn.LayerNorm(dim // n_head, bias=False)
        self.rotary = RotaryPositions(centres, dim // n_head, cfg.periodic)

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

    The D features form D / group_size contiguous groups, which share group_size x group_size projections. In
    each group, attention runs over all tokens:

        q = Wq RMSNorm(x),  k = Wk RMSNorm(x),  v = Wv x,  out = Wo softmax(q k^T / sqrt(hd)) v

    with the norm over the group and `n_head` heads inside it. Groups meet only in the MLP that follows. The
    key has no bias, since it would cancel in the softmax. group_size = D is ordinary multi-head attention.
    """

    def __init__(self, cfg, dim, n_head, centres):
        super().__init__()
        group_size = cfg.group_size
        divides(group_size, dim, 'group_size must divide the width')
        divides(n_head, group_size, 'n_head (heads in a group) must divide group_size')
        self.n_head = n_head
        self.group_size = group_size
        self.norm = nn.RMSNorm(group_size)
        self.q = nn.Linear(group_size, group_size)
        self.k = nn.Linear(group_size, group_size, bias=False)
        self.v = nn.Linear(group_size, group_size)
        self.proj = nn.Linear(group_size, group_size)
        self.rotary = RotaryPositions(centres, group_size // n_head, cfg.periodic)

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


ATTENTIONS = {'standard': StandardAttention, 'channel': ChannelAttention}      # by the key attention


# ---------------------------------------------------------------------------------------------
# block

class Block(nn.Module):
    """
    Transformer block around an attention layer. Both branches, attention and MLP, start at zero.

    With cond_dim, a condition (B, cond_dim) scales, shifts and gates the branches (adaptive layer norm, arXiv
    2212.09748), starting from shift 0, scale 1 and gate 1. Without layer_norm a branch sees amplitudes as
    they are: a step of a nonlinear PDE depends on them. Under autocast, attention and MLP compute in
    bfloat16 and the residual stream in float32.
    """

    def __init__(self, dim, attention, mlp_ratio, cond_dim=0, drop_path=0., layer_norm=True,
                 checkpointing=False):
        super().__init__()
        inner = int(mlp_ratio * dim)
        if inner < 1:
            raise UserError(f'mlp_ratio={mlp_ratio} leaves no features between the two layers of an MLP')
        self.attention = attention
        self.mlp = nn.Sequential(nn.Linear(dim, inner), nn.GELU(), nn.Linear(inner, dim))
        zero_init(attention.proj)
        zero_init(self.mlp[2])
        self.norm1 = nn.Identity()
        self.norm2 = nn.Identity()
        if layer_norm:                                               # adaptive layer norm scales already
            self.norm1 = nn.LayerNorm(dim, elementwise_affine=not cond_dim, bias=False)
            self.norm2 = nn.LayerNorm(dim, elementwise_affine=not cond_dim, bias=False)
        self.modulation = None
        if cond_dim:
            self.modulation = use_adamw(Float32Linear(cond_dim, 6 * dim))
            nn.init.zeros_(self.modulation.weight)
            start = torch.tensor([0., 1., 1., 0., 1., 1.])           # shift, scale and gate of each branch
            self.modulation.bias.data = start.repeat_interleave(dim)
        self.drop_path = drop_path
        self.checkpointing = checkpointing

    def forward(self, x, cond=None):
        """x (B, S, dim), cond (B, cond_dim) if the block has a modulation -> (B, S, dim), the type of x"""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(self.branches, x, cond, use_reentrant=False)
        return self.branches(x, cond)

    def branches(self, x, cond):
        if self.modulation is None:
            x = x + self.dropped(self.attention(self.norm1(x)), x.dtype)
            return x + self.dropped(self.mlp(self.norm2(x)), x.dtype)
        modulation = self.modulation(cond)[:, None]                  # (B, 1, 6 dim)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, -1)
        a = self.attention(torch.addcmul(shift1, self.norm1(x), scale1))
        x = torch.addcmul(x, self.dropped(a, x.dtype), gate1)
        a = self.mlp(torch.addcmul(shift2, self.norm2(x), scale2))
        return torch.addcmul(x, self.dropped(a, x.dtype), gate2)

    def dropped(self, branch, dtype):
        """Drop the residual branch (B, S, dim) of a sample with probability drop_path (arXiv 1603.09382)."""
        branch = branch.to(dtype)
        if self.drop_path == 0. or not self.training:
            return branch
        keep = torch.rand(len(branch), 1, 1, device=branch.device) >= self.drop_path
        return branch * keep.to(dtype) / (1 - self.drop_path)


# ---------------------------------------------------------------------------------------------
# transformer

class Transformer(nn.Module):
    """
    Blocks over the tokens, at one resolution (arch='pure') or at halved and restored ones (arch='u').

    Going down, pairs of tokens (per axis) are concatenated and mapped back to the width. Going up, a linear
    map unfolds them and a linear map of the skip connection is added. The pure transformer is a U of a single
    level. The drop-path rate ramps up linearly with depth. Rotary attention is relative. On a domain
    without translation invariance, a learned position embedding (zero at first) is added to the tokens.
    """

    def __init__(self, cfg, n_in=0, layer_norm=False):
        """n_in: features of an input token; 0: latent_dim."""
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
        self.position = None
        if not cfg.translation_invariant:
            self.position = nn.Parameter(torch.zeros(math.prod(cfg.token_grid), dim))
        self.levels = nn.ModuleList()
        levels = [*range(n_level), *range(n_level, -1, -1)]          # 0 .. bottom .. 0
        n_block = sum(depths)
        for level, depth in zip(levels, depths):
            grid = self.grids[level]
            centres = cfg.token_centres(grid)
            blocks = nn.ModuleList()
            for _ in range(depth):
                done = sum(map(len, self.levels)) + len(blocks)
                rate = cfg.drop_path * done / max(1, n_block - 1)
                attention = ATTENTIONS[cfg.attention](cfg, dim, cfg.n_head, centres)
                blocks.append(Block(dim, attention, cfg.mlp_ratio, cfg.cond_dim, rate, layer_norm,
                                   cfg.checkpointing))
            self.levels.append(blocks)
        self.down = nn.ModuleList(nn.Linear(dim * 2 ** d, dim) for _ in range(n_level))
        self.up = nn.ModuleList(nn.Linear(dim, dim * 2 ** d) for _ in range(n_level))
        self.skip = nn.ModuleList(nn.Linear(dim, dim) for _ in range(n_level))
        self.norm = nn.LayerNorm(dim, bias=False) if layer_norm else nn.Identity()
        self.head = zero_init(Float32Linear(dim, cfg.latent_dim))

    def forward(self, z, cond):
        """z (B, S, n_in), cond (B, cond_dim) -> (B, S, latent_dim), the type of the weights"""
        n_level = len(self.down)
        x = self.stem(z)
        if self.position is not None:
            x = x + self.position
        skips = []
        for level in range(n_level):
            for block in self.levels[level]:
                x = block(x, cond)
            skips.append(x)
            x = self.down[level](merge_tokens(x, self.grids[level], self.factors)).to(x.dtype)
        for block in self.levels[n_level]:
            x = block(x, cond)
        for i, level in enumerate(reversed(range(n_level))):
            x = split_tokens(self.up[i](x), self.grids[level], self.factors)
            x = (x + self.skip[i](skips[level])).to(skips[level].dtype)
            for block in self.levels[n_level + 1 + i]:
                x = block(x, cond)
        return self.head(self.norm(x))


NETWORKS = {'pure': Transformer, 'u': Transformer}           # by the key arch; peers/ adds others
CONDITIONS = {}                                              # by arch, if not Conditioning: universal/


# ---------------------------------------------------------------------------------------------
# configuration

class ModelConfig(SimpleNamespace):
    """
    Everything that shapes the network, as plain values; a checkpoint stores it as JSON types.

    It holds every key of the section `model` of train.py and of an extension's keys.py, so a new key needs no
    line here, and these facts of the equation and the data (files.Source.facts):

        pde, fields, params         name of the equation, of its C fields and of its parameters
        seen_params                 values of each parameter in training; the first is the default
        low, length, boundary       corner and extent of the domain along each axis; periodic, wall or open
        translation, diagonal       is the equation invariant under translations? If not, a direction of
                                    invariance such as (1, -1), or ()
        static, positive, conserved numbers of fields: constant, never negative, of constant integral
        domain                      number of the static field that is positive inside the domain, or ()
        velocity, galilean          number of the velocity field along each axis; speed of the moving frame
                                    per unit of mean velocity, 0 for none
        dt, other_dt, first         seconds per step, and of further steps in training; first point of the grid
        grid, token_grid, steppers  points and latent tokens along each axis; names in STEPPERS
    """
    cond_dim = 64                          # width of the condition
    domain = other_dt = ()                 # of checkpoints that are older

    @classmethod
    def of(cls, keys, model_keys, sources):
        """The configuration that the keys of train.py (a namespace; model_keys names those that shape the
        network) make with data files. Raises UserError where they do not fit."""
        values = {name: getattr(keys, name) for name in model_keys}
        values.update(sources[0].facts(keys.time_stride, keys.space_stride))
        values.update(
            seen_params=tuple(tuple(source.params[name] for source in sources) for name in values['params']),
            other_dt=tuple(stride * sources[0].dt for stride in keys.other_strides),
            conserved=values['conserved'] if keys.conserve else (),
            galilean=values['galilean'] if keys.moving_frame else 0.,
            token_grid=token_grid(values['grid'], keys.latent_tokens),
            steppers=('operator', *(name for name in keys.stages if name in STEPPERS and name != 'operator')))
        cfg = cls(**values)
        cfg.check()
        return cfg

    def replace(self, **changes):
        return ModelConfig(**{**vars(self), **changes})

    def model(self):
        return UPT(self)

    @property
    def n_field(self):
        return len(self.fields)

    @property
    def periodic(self):
        return self.boundary == 'periodic'

    @property
    def translation_invariant(self):
        """Is every place of the domain alike? Not between walls, nor where a force acts."""
        return self.periodic and self.translation

    @property
    def shift_direction(self):
        """Direction in which tokens may move, one number per axis; empty if there is none."""
        return (1,) * len(self.grid) if self.translation_invariant else tuple(self.diagonal)

    @property
    def predicted(self):
        """Numbers of the fields that a step changes."""
        return tuple(field for field in range(self.n_field) if field not in self.static)

    @property
    def points_per_token(self):
        return tuple(n // s for n, s in zip(self.grid, self.token_grid))

    @property
    def tokens_move(self):
        """Do the tokens move relative to the domain?"""
        return bool(self.galilean or self.token_shift)

    def token_centres(self, grid):
        """Centres (S, d) of the cells of a coarser `grid`, as fractions of the domain."""
        first = []
        for axis, (n, s) in enumerate(zip(self.grid, grid)):
            start = (self.first[axis] - self.low[axis]) / self.length[axis]
            first.append(start + (n // s - 1) / 2 / n)
        return positions(grid, first, [1 / s for s in grid])

    def check(self):
        """Raise UserError where values do not fit together. Each layer checks its own sizes when it is
        built."""
        choices = {'arch': NETWORKS, 'attention': ATTENTIONS, 'encoder': ENCODERS,
                   'basis': ('cosine', 'components')}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                known = dict.fromkeys([*allowed, *extensions.VALUES.get(name, ())])
                raise UserError(f"{name}={getattr(self, name)} is not one of {', '.join(known)}")
        for name in self.steppers:
            if name not in STEPPERS:
                raise UserError(f"stepper '{name}' is not one of {', '.join(STEPPERS)}")
        check_sizes(self)


# ---------------------------------------------------------------------------------------------
# encoder

def coder_blocks(cfg, dim, centres):
    """The blocks of a learned encoder or decoder, with standard attention."""
    divides(CODER_HEADS, dim, 'encoder_dim and decoder_dim must be multiples of their attention heads')
    blocks = nn.ModuleList()
    for _ in range(cfg.coder_depth):
        attention = StandardAttention(cfg, dim, CODER_HEADS, centres)
        blocks.append(Block(dim, attention, cfg.mlp_ratio))
    return blocks


class GridEncoder(nn.Module):
    """
    Fields on the trained grid -> latent tokens: z = M patch(u) + g(u).

    M holds fixed modes of the points of a token (grids.Patches), so the decoder inverts it from the first
    iteration on. The learned part g (none with encoder_dim=0) starts at zero. In it, one convolution makes a
    token of each patch of patch_size points and its halo, `coder_depth` blocks mix them, and neighbours are
    merged to latent tokens. g does not change the integral of a conserved field.

    Other encoders (points/) have the same methods. `where` tells them at which points the field is known.
    """

    def __init__(self, cfg, patches):
        super().__init__()
        self.cfg = cfg
        self.patches = patches
        if cfg.encoder_dim:
            self.make_learned_part(cfg)

    def make_learned_part(self, cfg):
        d = len(cfg.grid)
        dim = cfg.encoder_dim
        if cfg.halo > min(cfg.grid):
            raise UserError(f'halo={cfg.halo} is larger than the grid {cfg.grid}')
        for n, s in zip(cfg.grid, cfg.token_grid):
            divides(cfg.patch_size, n, f'patch_size must divide the {n} grid points of an axis')
            n_patch = n // cfg.patch_size
            divides(s, n_patch, f'latent_tokens must divide the {n_patch} patches of an axis')
        self.patch_grid = tuple(n // cfg.patch_size for n in cfg.grid)
        self.make_stem(cfg)
        self.pool = tuple(n // s for n, s in zip(self.patch_grid, cfg.token_grid))
        centres = cfg.token_centres(self.patch_grid)
        if not cfg.periodic:                                         # near a wall, the position matters
            waves = torch.arange(1, dim // (2 * d) + 1) * math.pi
            angles = centres[..., None] * waves                      # (S, d, dim/2d)
            table = torch.cat([angles.sin(), angles.cos()], -1).flatten(1)
            self.register_buffer('position', F.pad(table, (0, dim - table.shape[1])), persistent=False)
        self.blocks = coder_blocks(cfg, dim, centres)
        self.norm = nn.LayerNorm(dim, bias=False)
        self.proj = zero_init(Float32Linear(dim * math.prod(self.pool), cfg.latent_dim))
        self.register_buffer('conserved', ones_at(cfg.conserved, cfg.latent_dim), persistent=False)

    def make_stem(self, cfg):
        conv = (nn.Conv1d, nn.Conv2d)[len(cfg.grid) - 1]
        self.stem = use_adamw(conv(cfg.n_field, cfg.encoder_dim, cfg.patch_size + 2 * cfg.halo, cfg.patch_size))

    def forward(self, u, where=None):
        """u (B, *grid, C), normalised -> (B, S, latent_dim), float32"""
        z = self.patches.to_tokens(u)
        return z + self.learned(self.patch_features(u)) if self.cfg.encoder_dim else z

    def patch_features(self, u):
        """u (B, *grid, C) -> (B, S_patch, D)"""
        cfg = self.cfg
        u = u.movedim(-1, 1)                                         # (B, C, *grid)
        if cfg.halo:
            u = padded(u, [cfg.halo] * len(cfg.grid), cfg.periodic)
        with torch.autocast(u.device.type, enabled=False):
            return self.stem(u.to(self.stem.weight.dtype)).flatten(2).transpose(1, 2)

    def learned(self, x):
        """Features of the patches (B, S_patch, D) -> g, (B, S, latent_dim)"""
        if not self.cfg.periodic:
            x = x + self.position
        if len(self.blocks) == 0:
            x = F.gelu(x)
        for block in self.blocks:
            x = block(x)
        x = merge_tokens(self.norm(x), self.patch_grid, self.pool)   # (B, S, D pool)
        z = self.proj(x)
        return z - self.conserved * z.mean(1, keepdim=True)

    def encode_grid(self, u, where=None):
        """Encode normalised fields u (B, *grid, C) on the trained grid; where: sampled points (points/)."""
        return self(u, where)

    def draw_points(self, keys, random, u):
        return None                                                  # it sees the whole grid

    def preprocess(self, u, x, like):
        """Fields in physical units as UPT.encode takes them -> what `forward` takes: (u, where)."""
        return to_trained_grid(self.cfg, u, x, like), None


ENCODERS = {'grid': GridEncoder}                             # points/ adds 'points'


# ---------------------------------------------------------------------------------------------
# decoder

class AnyPointDecoder(nn.Module):
    """
    (query points, latent) -> the fields there, on or off the grid: u(q) = I(q; M^T z + h(z)).

    M^T z inverts the modes of the encoder. The learned part h (none with decoder_dim=0) starts at zero and
    mirrors the encoder: `coder_depth` blocks mix the tokens, and one transposed convolution writes each token
    to its patch of the grid and a halo around it. h does not change the integral of a conserved field. I is
    cubic interpolation. The result is continuously differentiable in q and wraps on a periodic domain.
    """

    def __init__(self, cfg, patches):
        super().__init__()
        self.cfg = cfg
        self.patches = patches
        cell = [length / n for length, n in zip(cfg.length, cfg.grid)]         # of the trained grid
        self.register_buffer('points', positions(cfg.grid, cfg.first, cell), persistent=False)
        if cfg.decoder_dim:
            self.make_learned_part(cfg)

    def make_learned_part(self, cfg):
        d = len(cfg.grid)
        dim = cfg.decoder_dim
        centres = cfg.token_centres(cfg.token_grid)
        self.stem = Float32Linear(cfg.latent_dim, dim)
        self.position = 0.
        if not cfg.translation_invariant:
            self.position = nn.Parameter(torch.zeros(len(centres), dim))
        self.blocks = coder_blocks(cfg, dim, centres)
        self.norm = nn.LayerNorm(dim, bias=False) if cfg.coder_depth else nn.GELU()
        self.margin = [-(-cfg.halo // p) for p in cfg.points_per_token]        # tokens that the halo reaches
        kernel = [p + 2 * cfg.halo for p in cfg.points_per_token]
        transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d)[d - 1]
        has_bias = len(cfg.conserved) < cfg.n_field                  # conservation takes constants off again
        self.write = zero_init(transposed(dim, cfg.n_field, kernel, cfg.points_per_token, bias=has_bias))
        self.register_buffer('conserved', ones_at(cfg.conserved, cfg.n_field), persistent=False)

    def forward(self, z, q=None, moved=None):
        """z (B, S, latent_dim), q (Q, d) or (B, Q, d) in physical coordinates, or None for the trained grid, of
        which the tokens have `moved` by (B, d) -> (B, Q, C), normalised, float32"""
        cfg = self.cfg
        u = self.patches.to_grid(z).flatten(1, -2)                   # (B, N, C)
        if cfg.decoder_dim:
            u = u + self.learned(z)
        if q is not None:
            u = interpolate(u, q, cfg.grid, cfg.first, cfg.length, cfg.periodic).to(u.dtype)
        elif moved is not None:
            u = translated(u, moved, cfg.grid, cfg.length).to(u.dtype)
        if cfg.log_clamp:
            u = u.sign() * cfg.log_clamp * torch.log1p(u.abs() / cfg.log_clamp)
        return u

    def learned(self, z):
        """h(z) on the trained grid, (B, N, C)"""
        cfg = self.cfg
        x = self.stem(z) + self.position
        for block in self.blocks:
            x = block(x)
        x = self.norm(x).to(self.write.weight.dtype)
        x = x.transpose(1, 2).unflatten(2, cfg.token_grid)           # (B, dim, *tokens)
        x = padded(x, self.margin, cfg.periodic)
        with torch.autocast(z.device.type, enabled=False):
            u = self.write(x)                                        # of the tokens and the margin
        for axis, (n, p) in enumerate(zip(self.margin, cfg.points_per_token)):
            u = u.narrow(2 + axis, cfg.halo + n * p, cfg.grid[axis])
        u = u.flatten(2).transpose(1, 2)
        return u - self.conserved * u.mean(1, keepdim=True)


# ---------------------------------------------------------------------------------------------
# operator

class Conditioning(nn.Module):
    """Time step and PDE parameters -> one vector (B, cond_dim)."""

    def __init__(self, cfg):
        super().__init__()
        self.numbers = use_adamw(Float32Linear(1 + len(cfg.params), cfg.cond_dim))
        self.mlp = nn.Sequential(nn.SiLU(), use_adamw(Float32Linear(cfg.cond_dim, cfg.cond_dim)), nn.SiLU())

    def forward(self, dt, params):
        """dt (B,) seconds, params (B, P) -> (B, cond_dim). Numbers enter by the signed log(1 + 1e4 |x|)."""
        x = torch.cat([dt[:, None], params], 1)
        x = x.sign() * torch.log1p(1e4 * x.abs()) / 10
        return self.mlp(self.numbers(x))


class Operator(nn.Module):
    """
    One step in latent space: A(z, c) = z + f(z, c), then a shift of the tokens.

    f is a network by the key arch. Its last layer starts at zero, so an untrained operator is the identity.
    Feature c < C of a token is the mean of field c over its patch. For a conserved field, f does not change
    the mean of this feature over the tokens, so the integral stays. The features of a static field stay as
    they are. With token_shift the patches then move by as many grid points: errors at their borders move too.
    """
    stochastic = False

    def __init__(self, cfg, patches):
        super().__init__()
        self.patches = patches
        self.token_shift = tuple(cfg.token_shift * step for step in cfg.shift_direction)
        self.network = NETWORKS[cfg.arch](cfg)
        self.register_buffer('conserved', ones_at(cfg.conserved, cfg.latent_dim), persistent=False)
        dynamic = torch.ones(cfg.latent_dim)
        n_value = math.prod(cfg.points_per_token) * cfg.n_field      # features beyond these hold no field
        for field in cfg.static:
            dynamic[field:n_value:cfg.n_field] = 0.
        self.register_buffer('dynamic', dynamic, persistent=False)

    def forward(self, z, cond, noise=None):
        """z (B, S, latent_dim), cond (B, cond_dim) -> the tokens one step later, float32. An operator draws
        no noise."""
        change = self.network(z, cond) * self.dynamic
        return self.shifted(z + change - self.conserved * change.mean(1, keepdim=True))

    def shifted(self, z):
        """The tokens, moved on by token_shift."""
        return self.patches.shift(z, self.token_shift) if any(self.token_shift) else z


# Modules that perform a step in latent space, (tokens, condition, noise) -> tokens, where noise(*shape) draws
# Gaussian numbers. probabilistic/ adds those that its stages train, made with (cfg, model).
STEPPERS = {'operator': Operator}


# ---------------------------------------------------------------------------------------------
# the whole model

class Latent(NamedTuple):
    """Tokens, and the frame of reference in which they live."""
    tokens: torch.Tensor                   # (B, S, D): what encoder, operator and decoder see
    mean: torch.Tensor                     # (B, C): mean flow, taken off by encode and added by decode
    offset: torch.Tensor                   # (B, d): distance that the tokens have moved, physical units
    distance: torch.Tensor                 # (B, N, 1): positive inside the domain; (B, N, 0) without one


class UPT(KeepsPlaces):
    """
    Encoder E, operator A and decoder D, with the normalisation of the data inside.

    With a moving frame (cfg.galilean), the mean velocity is subtracted and the rest is advanced in the frame
    that moves with it, exactly, because the decoder reads at any point. E, A and D see normalised fields and
    tokens. The methods below take and return physical units. They take numbers of any kind
    (runtime.inputs.as_numbers) and compute in the type of the weights.
    """

    def __init__(self, cfg):
        super().__init__()
        cfg.check()
        self.cfg = cfg
        d = len(cfg.grid)
        patches = Patches(cfg)
        self.encoder = ENCODERS[cfg.encoder](cfg, patches)
        self.condition = CONDITIONS.get(cfg.arch, Conditioning)(cfg)
        self.operator = Operator(cfg, patches)
        self.decoder = AnyPointDecoder(cfg, patches)
        for name in cfg.steppers:
            if name != 'operator':
                self.add_module(name, STEPPERS[name](cfg, self))
        galilean = torch.zeros(cfg.n_field, d)                       # speed of the frame per unit of a mean
        for axis, field in enumerate(cfg.velocity):
            galilean[field, axis] = cfg.galilean
        spacing = torch.tensor(cfg.length) / torch.tensor(cfg.grid)
        lower_bound = torch.full((cfg.n_field,), -math.inf)
        lower_bound[list(cfg.positive)] = 0.
        self.register_buffer('mean', torch.zeros(cfg.n_field))       # of the training data: see normalise
        self.register_buffer('std', torch.ones(cfg.n_field))
        constants = {
            'galilean': galilean, 'in_frame': galilean.ne(0).any(1).float(),   # 1 where the mean is taken off
            'token_step': cfg.token_shift * spacing * torch.tensor(cfg.shift_direction or [0] * d),
            'lower_bound': lower_bound, 'low': torch.tensor(cfg.low), 'length': torch.tensor(cfg.length),
            'rim': .25 * spacing.min()}                              # a point so near to a wall is inside
        for name, value in constants.items():
            self.register_buffer(name, value.float(), persistent=False)
        self.register_buffer('is_static', ones_at(cfg.static, cfg.n_field).bool(), persistent=False)
        self._apply(lambda x: x.to(torch.get_default_dtype()) if x.is_floating_point() else x)     # not complex

    def normalise(self, mean, std):
        """Take the mean and scale of each field, C numbers each, from the training data."""
        self.mean.copy_(torch.as_tensor(mean))
        self.std.copy_(torch.as_tensor(std))

    def n_params(self):
        return sum(p.numel() for p in self.parameters())

    def parts(self):                                                 # those that are compiled
        return [self.encoder, self.decoder, *(getattr(self, name) for name in self.cfg.steppers)]

    @property
    def device(self):
        return self.mean.device

    @property
    def points(self):
        return self.decoder.points                                   # of the trained grid, (N, d)

    def grid(self, *shape):
        """Points (N, d) of a grid like the trained one, with `shape` points along the axes; row-major."""
        return grid_points(self.cfg, shape or self.cfg.grid).to(self.low.dtype)

    # ---- encode, step, decode: physical units in and out

    def encode(self, u, grid=None):
        """u (B, *space, C) on m.grid(*space), or on the 1D points `grid` (N,) or (N, 1) -> Latent. Other
        grids are resampled to the trained one by cubic interpolation. With encoder='points', u may be values
        (B, P, C) at points `grid` (P, d) or (B, P, d). Raises UserError for a wrong shape, values that are
        not finite, and points that leave a part of the domain out."""
        return self.encode_preprocessed(*self.encoder.preprocess(u, grid, self.mean))

    def step(self, z, params=None, dt=None, stepper='operator', noise=None):
        """One step of `dt` seconds (default: that of training), Latent -> Latent. params: {'Nu': .01}, a
        number or (B,) each. stepper: a name of cfg.steppers. A stochastic stepper takes its numbers from
        `noise`: make one m.noise(seed) for a whole rollout."""
        module = self.stepper(stepper)
        if module.stochastic and noise is None:
            raise UserError(f"the stepper '{stepper}' is stochastic: pass noise=m.noise(seed), the same one "
                            'for all steps of a rollout')
        z = checked_latent(self.cfg, z, self.mean, self.low)
        cond, dt = self.condition_and_dt(z.tokens.shape[0], params, dt)
        return self.advance(z, cond, dt, module, noise)

    def noise(self, seed):
        """A function (*shape) -> Gaussian numbers on the device. Its sequence depends on the seed alone."""
        return noise_of(seed, self.mean)

    def decode(self, z, points=None, clip=True):
        """Latent -> fields (B, Q, C) at points (Q, d) or (B, Q, d); without points, on the trained grid. With
        clip=False, positive fields may come out negative. Raises UserError for points outside the walls. In an
        obstacle, fields on the grid are 0; points deeper in it than a quarter of a grid spacing are nan."""
        z = checked_latent(self.cfg, z, self.mean, self.low)
        if points is None:
            return self.decode_at(z, None, clip).unflatten(1, self.cfg.grid)
        return self.decode_at(z, query_points(self.cfg, points, z.tokens.shape[0], self.low), clip, math.nan)

    @torch.no_grad()
    def rollout(self, u0, steps, points=None, params=None, dt=None, grid=None, reencode=False,
                stepper='operator', n_members=0, seed=0, outside=math.nan):
        """
        Advance u0 by `steps` steps and decode each of them, without gradients. For gradients through a
        rollout, with respect to u0, params, dt, points or weights, call encode, step and decode.

        u0 (B, *space, C) and `grid` are as encode takes them; points (Q, d) or (B, Q, d): where to decode
        (default: where u0 is given). With reencode=True, every step is decoded and encoded again. params
        {'Nu': .01} and dt in seconds default to those of training. Returns (B, steps, *space, C), or (B,
        steps, Q, C) with points or grid; with n_members, (B, n_members, steps, ...) by a stochastic stepper. At
        `points` in an obstacle, fields are `outside`; on a grid they are 0 there.
        """
        steps = whole('steps', steps, 1)
        n_members = whole('n_members', n_members, 0)
        if n_members:
            u0, points, grid, params, dt = per_member(n_members, u0, points, grid, params, dt)
            u = self.rollout(u0, steps, points, params, dt, grid, reencode, stepper, 0, seed, outside)
            return u.unflatten(0, (len(u) // n_members, n_members))
        module = self.stepper(stepper)
        noise = self.noise(seed) if module.stochastic else None
        u0 = as_numbers('u', u0)
        u, where = self.encoder.preprocess(u0, grid, self.mean)
        cond, dt = self.condition_and_dt(u.shape[0], params, dt)
        q, shape = places_to_decode(self.cfg, u0, points, grid, self.low)
        seen_at = None if where is None else where.points
        z = self.encode_preprocessed(u, where)
        out = []
        for k in range(steps):
            z = self.advance(z, cond, dt, module, noise)
            out.append(self.decode_at(z, q, outside=0. if points is None else outside))
            if reencode and k + 1 < steps:
                u = self.decode_at(z, seen_at).view_as(u)
                z = self.encode_preprocessed(u, where)._replace(distance=z.distance)
        u = torch.stack(out, 1)                                      # (B, steps, Q, C)
        return u.unflatten(2, shape)

    # ---- the same without checks; nothing here waits for the device

    def encode_preprocessed(self, u, where=None):
        """u (B, *grid, C) on the trained grid, or (B, P, C) at `where`, physical units -> Latent"""
        space = tuple(range(1, u.ndim - 1))
        mean = u.mean(space) if where is None else (where.mean_weight * u).sum(1)
        mean = mean.to(u.dtype) * self.in_frame                      # (B, C)
        u = u - mean.unflatten(0, (-1, *[1] * len(space)))
        tokens = self.encoder((u - self.mean) / self.std, where)
        at_points = where is not None and self.cfg.domain            # there, the domain is as it is decoded
        seen = self.decoder(tokens) * self.std + self.mean if at_points else u.flatten(1, -2)
        offset = self.low.new_zeros(u.shape[0], len(self.cfg.grid))
        return Latent(tokens, mean, offset, seen[..., list(self.cfg.domain)])

    def advance(self, z, cond, dt, module, noise=None):
        """One step by a stepper module; cond and dt as condition_and_dt returns them."""
        travelled = z.mean.to(dt.dtype) @ self.galilean * dt[:, None]          # (B, d)
        tokens = module(z.tokens, cond, noise)
        return Latent(tokens, z.mean, z.offset + travelled + self.token_step, z.distance)

    def decode_at(self, z, q=None, clip=True, outside=0.):
        """q (Q, d) or (B, Q, d) on the device, or None for the trained grid -> (B, Q, C), physical units;
        outside: value in obstacles of the fields that are not static"""
        cfg = self.cfg
        moved = z.offset.nan_to_num(0., 0., 0.) if cfg.tokens_move else None
        if q is not None and cfg.periodic:                           # in the frame of the tokens; x = 1 is x = 0
            q = q if moved is None else q - moved.to(q.dtype)[:, None]
            q = self.low + (q - self.low) % self.length
        u = self.decoder(z.tokens, q if q is None else q.to(self.low.dtype), moved)
        u = u * self.std + self.mean + z.mean[:, None]
        u = self.clip_positive(u) if clip else u
        if cfg.domain:
            distance = z.distance
            if q is not None:
                distance = interpolate(distance, q, cfg.grid, cfg.first, cfg.length, cfg.periodic) + self.rim
            u = u.where((distance > 0) | self.is_static, outside)
        return u

    def clip_positive(self, u):
        """Fields u (..., C) in physical units, with positive fields cut off at zero."""
        return torch.maximum(u, self.lower_bound) if self.cfg.positive else u

    def cycle(self, tokens, where=None):
        """E(D(z)) of tokens (B, S, D): decoded where the encoder sees a field, and encoded again."""
        if where is not None:
            return self.encoder(self.decoder(tokens, where.points), where)
        return self.encoder.encode_grid(self.decoder(tokens).unflatten(1, self.cfg.grid), where)

    def stepper(self, name):
        """The module that performs a step. Raises UserError where this model has none of that name."""
        if name not in self.cfg.steppers:
            hint = f"train it with the stage '{name}'" if name in extensions.STAGES else 'these can be chosen'
            raise UserError(f"stepper={name}: this model has {', '.join(self.cfg.steppers)}; {hint}")
        return getattr(self, name)

    def condition_and_dt(self, n_sample, params, dt):
        """The condition of the operator (B, cond_dim) and the time step (B,) of n_sample = B samples."""
        dt, params = conditions(self.cfg, params, dt, n_sample, self.low)
        return self.condition(dt, params), dt


# ---------------------------------------------------------------------------------------------
# checkpoints

def model_args(cfg):
    """A ModelConfig as JSON types."""
    return json.loads(json.dumps(vars(cfg)))


def on_meta(cfg):
    """The model of a configuration without memory for its weights. Raises UserError where it has none."""
    try:
        with torch.device('meta'):
            return cfg.model()
    except AttributeError as error:
        if error.obj is not cfg:
            raise
        raise UserError(f'there is no cfg.{error.name}: a key that a layer reads belongs into the section '
                        '`model` of train.py, or of the keys.py of an extension') from error


def build(args, weights, path, new_steppers=()):
    """A UPT from a checkpoint's arguments and weights; all sizes are compared before memory is taken. New
    steppers keep their initial weights. Raises UserError."""
    args = extensions.with_model_defaults(args, path)                # keys that are newer than the checkpoint
    extensions.load(args)
    cfg = ModelConfig(**{name: tuples(value) for name, value in args.items()})
    try:
        expected = on_meta(cfg).state_dict()
    except TypeError as error:
        raise UserError(f"'{path}' has other model arguments than this code: {error}") from error
    check_shapes(path, weights, expected, new_steppers)
    model = UPT(cfg)
    model.load_state_dict({**model.state_dict(), **weights})
    return model


def load(path, device='cpu', ema=True, encoder=None, equation=None):
    """The model of a run folder (best weights) or checkpoint file, for evaluation (model.requires_grad_(True)
    brings gradients back). encoder='points' lets a model of a grid take values at any points, if its encoder
    is not learned. equation: which one, of a model of several. Leaves the random state as it was."""
    file = find_checkpoint(path)
    return load_state(of_equation(load_checkpoint(file), file, equation), file, device, ema, encoder)


def load_state(state, path, device='cpu', ema=True, encoder=None):
    """As load, from a checkpoint that is read already."""
    args = dict(state['model_args'])
    if encoder and encoder != args['encoder']:
        if args['encoder_dim']:
            raise UserError(f"'{path}' has a learned encoder={args['encoder']}: train with --encoder={encoder}")
        args['encoder'] = encoder
    with torch.device('cpu'), torch.random.fork_rng(devices=[]):     # initial weights draw random numbers
        model = build(args, state['ema' if ema else 'model'], path)
    return model.to(find_device(device)).eval().requires_grad_(False)
