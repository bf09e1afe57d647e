"""
The model: a field is encoded to latent tokens, an operator advances them in time, a decoder reads the
field at any point. After the Universal Physics Transformer (UPT, arXiv 2402.12365), in 1D and 2D.

    from model import load
    m = load('out/burgers_cpu')                   # best weights; physical units in and out
    u = m.rollout(u0, steps=40)                   # (B, *space, C) -> (B, 40, *space, C), all of it in latent space
    v = m.rollout(u0, steps=40, points=q)         # q (Q, d), anywhere in the domain -> (B, 40, Q, C)
    z = m.encode(u0); z = m.step(z); f = m.decode(z, q)

Shapes: B batch, N grid points, S tokens, D width, C fields, Q query points, d = 1 or 2 space dimensions.
Order of the file: small layers, attention, block, configuration, encoder, decoder, operators, container.
"""
import functools
import json
import math
from dataclasses import asdict, dataclass, fields

import torch
import torch.nn as nn
import torch.nn.functional as F

from checkpoint import find_checkpoint, load_checkpoint
from configurator import UserError

MAX_POINTS, MAX_WIDTH, MAX_DEPTH = 2 ** 22, 2 ** 14, 2 ** 10       # no checkpoint may ask for more
ENCODER_HEADS = 4                                                    # of encoder and decoder, whatever the operator has
BOUNDARIES = ('periodic', 'wall', 'open')
PDES = ('burgers', 'advection', 'diffusion-reaction', 'diffusion-sorption', 'shallow-water',
        'compressible-navier-stokes', 'incompressible-navier-stokes', 'darcy')


# ---------------------------------------------------------------------------------------------
# small layers

def token_positions(grid, first, spacing):
    """Centres of a row-major token grid, as fractions of the domain. -> (S, d)"""
    axes = [first[i] + spacing[i] * torch.arange(n, dtype=torch.float64) for i, n in enumerate(grid)]
    return torch.stack([a.flatten() for a in torch.meshgrid(*axes, indexing='ij')], -1).float()


def merge_tokens(x, grid, factor):
    """Concatenate the features of `factor` neighbours along every axis: (B, S, D) -> (B, S/f^d, D f^d)."""
    B, S, D = x.shape
    if len(grid) == 1:
        return x.reshape(B, S // factor, factor * D)
    (sx, sy), f = grid, factor
    x = x.view(B, sx // f, f, sy // f, f, D).transpose(2, 3)         # (B, sx/f, sy/f, f, f, D)
    return x.reshape(B, S // f ** 2, f ** 2 * D)


def split_tokens(x, grid, factor):
    """The inverse of merge_tokens; `grid` is the fine one. (B, S/f^d, D f^d) -> (B, S, D)."""
    B, S, D = x.shape
    if len(grid) == 1:
        return x.reshape(B, S * factor, D // factor)
    (sx, sy), f = grid, factor
    x = x.view(B, sx // f, sy // f, f, f, D // f ** 2).transpose(2, 3)
    return x.reshape(B, sx * sy, D // f ** 2)


def patch_modes(shape, fields, dim):
    """`dim` orthonormal cosine modes (DCT-II) of a patch of `shape` points and `fields` fields, the lowest frequencies
    first; zero rows where dim is larger than their number. -> (dim, points x fields)"""
    modes, frequency = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1)
    for n in shape:
        k = torch.arange(n, dtype=torch.float64)
        one = torch.cos(math.pi * k[:, None] * (k + .5) / n) * (2 / n) ** .5     # (n, n)
        one[0] /= 2 ** .5
        modes, frequency = torch.kron(modes, one), (frequency[:, None] + k / n).flatten()
    modes = torch.kron(modes[frequency.argsort(stable=True)], torch.eye(fields, dtype=torch.float64))[:dim]
    return F.pad(modes, (0, 0, 0, dim - len(modes))).float()


def interpolation_kernel(t):
    """Weight of a grid point at distance t (in grid spacings): cubic convolution (Keys 1981), which is once
    continuously differentiable and exact on quadratics."""
    t = t.abs()
    near, far = (1.5 * t - 2.5) * t * t + 1, ((-.5 * t + 2.5) * t - 4) * t + 2
    return torch.where(t < 1, near, torch.where(t < 2, far, 0.))


class RotaryPositions(nn.Module):
    """Rotary position embedding (arXiv 2104.09864) of queries and keys.

    On a periodic axis the wave numbers are integers, so that attention sees distances on the circle and
    nothing of where the domain was cut: the operator commutes with translations by a token.
    """

    def __init__(self, positions, head_dim, periodic):
        super().__init__()
        S, d = positions.shape
        n_pair = head_dim // 2
        angles = torch.zeros(S, n_pair)
        for axis in range(d):
            index = range(axis, n_pair, d)                           # pairs take turns over the axes
            for rank, i in enumerate(index):                         # the finest: four tokens a wave
                wave = max(1., round(S ** (1 / d)) / 4) ** (rank / max(1, len(index) - 1))
                wave = round(wave) if periodic else wave / 2
                angles[:, i] = 2 * math.pi * wave * positions[:, axis]
        self.half = n_pair
        self.register_buffer('cos', torch.cat([angles.cos(), angles.cos()], 1), persistent=False)   # (S, head_dim)
        self.register_buffer('sin', torch.cat([-angles.sin(), angles.sin()], 1), persistent=False)

    def forward(self, x):
        """x (..., S, head_dim) -> the same shape; features i and i + head_dim/2 are rotated by their token's angle."""
        return torch.addcmul(x * self.cos.to(x.dtype), x.roll(self.half, -1), self.sin.to(x.dtype))


def zero(layer):
    """Start a linear layer at zero: what it adds grows from nothing."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def ramp(top, n):
    """n drop-path rates from 0 to `top`, linear in depth."""
    return [top * i / max(1, n - 1) for i in range(n)]


def drop_path(x, rate, training):
    """Drop the whole residual branch of a sample with probability `rate` (arXiv 1603.09382)."""
    if rate == 0. or not training:
        return x
    keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= rate
    return x * keep.to(x.dtype) / (1 - rate)


# ---------------------------------------------------------------------------------------------
# attention

class StandardAttention(nn.Module):
    """Multi-head self-attention over the tokens; queries and keys are layer-normalised per head (QK-norm,
    arXiv 2302.05442) with one scale for both, since only its square acts."""

    def __init__(self, dim, n_head, positions, periodic):
        super().__init__()
        self.n_head = n_head
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.qk_norm = nn.LayerNorm(dim // n_head, bias=False)
        self.rotary = RotaryPositions(positions, dim // n_head, periodic)

    def forward(self, x):
        B, S, D = x.shape
        H = self.n_head
        qkv = self.qkv(x).view(B, S, 3 * H, D // H).transpose(1, 2)  # (B, 3 H, S, hd)
        qk, v = qkv.split([2 * H, H], 1)
        q, k = self.rotary(self.qk_norm(qk)).chunk(2, 1)
        y = F.scaled_dot_product_attention(q, k, v.to(q.dtype))      # (B, H, S, hd)
        return self.proj(y.transpose(1, 2).reshape(B, S, D))


class ChannelAttention(nn.Module):
    """Channel-separated attention: block-diagonal over groups of features.

    The D features fall into D / group_size contiguous groups. All groups share one set of
    group_size x group_size projections; inside a group, attention runs over all tokens:

        q = Wq RMSNorm(x),  k = Wk RMSNorm(x),  v = Wv x,  out = Wo softmax(q k^T / sqrt(hd)) v

    with the norm over the group and `n_head` heads inside it. Groups meet only in the MLP that follows. The
    key has no bias: it would cancel in the softmax. group_size = D is ordinary multi-head attention.
    """

    def __init__(self, dim, n_head, group_size, positions, periodic):
        super().__init__()
        self.n_head, self.group_size = n_head, group_size
        self.norm = nn.RMSNorm(group_size)
        self.q = nn.Linear(group_size, group_size)
        self.k = nn.Linear(group_size, group_size, bias=False)
        self.v = nn.Linear(group_size, group_size)
        self.proj = nn.Linear(group_size, group_size)
        self.rotary = RotaryPositions(positions, group_size // n_head, periodic)

    def forward(self, x):
        B, S, D = x.shape
        g, G, H = self.group_size, D // self.group_size, self.n_head
        x = x.view(B, S, G, g)
        n = self.norm(x)
        heads = lambda a: a.view(B, S, G * H, g // H).transpose(1, 2)  # noqa: E731   (B, G H, S, hd)
        q, k, v = self.rotary(heads(self.q(n))), self.rotary(heads(self.k(n))), heads(self.v(x))
        y = F.scaled_dot_product_attention(q, k, v.to(q.dtype))      # (B, G H, S, hd)
        return self.proj(y.transpose(1, 2).reshape(B, S, G, g)).reshape(B, S, D)


# ---------------------------------------------------------------------------------------------
# block

class Block(nn.Module):
    """Transformer block; its branches start at zero. With a condition (B, cond_dim), both are scaled, shifted and gated
    by it (adaptive layer norm, arXiv 2212.09748), starting from shift 0, scale 1 and gate 1. Without `layer_norm` a
    branch sees amplitudes as they are, which a step of a PDE that is not linear depends on."""

    def __init__(self, cfg, dim, positions, cond_dim=0, drop_path=0., layer_norm=True):
        super().__init__()
        if cfg.attention == 'channel':
            self.attention = ChannelAttention(dim, cfg.n_head, cfg.group_size, positions, cfg.periodic)
        else:
            self.attention = StandardAttention(dim, cfg.n_head, positions, cfg.periodic)
        norm = lambda: nn.LayerNorm(dim, elementwise_affine=not cond_dim, bias=False) if layer_norm else \
            nn.Identity()                                            # noqa: E731   the condition scales already
        self.norm1, self.norm2 = norm(), norm()
        self.mlp = nn.Sequential(nn.Linear(dim, int(cfg.mlp_ratio * dim)), nn.GELU(),
                                 nn.Linear(int(cfg.mlp_ratio * dim), dim))
        for last in (self.attention.proj, self.mlp[2]):
            zero(last)
        self.drop_path = drop_path
        self.modulation = nn.Linear(cond_dim, 6 * dim) if cond_dim else None
        if cond_dim:                                                 # shift 0; scale and gate 1
            nn.init.zeros_(self.modulation.weight)
            self.modulation.bias.data = torch.tensor([0., 1., 1., 0., 1., 1.]).repeat_interleave(dim)

    def forward(self, x, cond=None):
        if self.modulation is None:
            x = x + drop_path(self.attention(self.norm1(x)), self.drop_path, self.training)
            return x + drop_path(self.mlp(self.norm2(x)), self.drop_path, self.training)
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(cond)[:, None].chunk(6, -1)  # (B, 1, D)
        a = self.attention(torch.addcmul(shift1, self.norm1(x), scale1))
        x = torch.addcmul(x, drop_path(a, self.drop_path, self.training), gate1)
        a = self.mlp(torch.addcmul(shift2, self.norm2(x), scale2))
        return torch.addcmul(x, drop_path(a, self.drop_path, self.training), gate2)


# ---------------------------------------------------------------------------------------------
# configuration

@dataclass
class ModelConfig:
    """Everything that shapes the network; stored in every checkpoint as JSON types."""
    fields: int = 1                        # C, physical fields
    input_frames: int = 1                  # frames that the encoder sees
    grid: tuple = (128,)                   # points of the trained grid along each axis
    low: tuple = (0.,)                     # lower corner of the domain
    length: tuple = (1.,)                  # extent of the domain
    first: tuple = (.00048828125,)         # coordinate of the first grid point
    periodic: bool = True
    boundary: str = 'periodic'
    pde: str = 'burgers'
    params: tuple = ('Nu',)                # names of the PDE parameters
    patch_size: int = 4                    # grid points a patch and axis
    halo: int = 2                          # grid points of the neighbours that a patch sees on each side
    token_grid: tuple = (32,)              # latent tokens along each axis
    latent_dim: int = 64
    encoder_dim: int = 64
    encoder_depth: int = 1
    decoder_dim: int = 64
    decoder_depth: int = 0
    n_wave: int = 4                        # waves of the decoder's local basis
    log_clamp: float = 0.                  # threshold of the output log-clamp; 0: none
    arch: str = 'pure'                     # 'pure' or 'u'
    attention: str = 'standard'            # 'standard' or 'channel'
    hidden_dim: int = 64
    depth: int = 4                         # blocks of the pure operator
    depths: tuple = (1, 1, 1)              # blocks of the U-shaped one: down ..., bottleneck, up ...
    n_head: int = 4                        # heads; with channel attention, heads in a group
    group_size: int = 16
    mlp_ratio: float = 2.
    drop_path: float = 0.
    cond_dim: int = 64
    layer_norm: bool = False               # in the operator's blocks
    conserve: bool = False                 # a step keeps the integral of the fields
    frame: float = 0.                      # speed of a moving frame per unit of the mean field; 0: none
    token_shift: int = 0                   # grid points by which the tokens move on in it every step
    checkpointing: bool = False            # recompute the operator's blocks in the backward pass
    mean: tuple = (0.,)                    # of each field over the train part
    std: tuple = (1.,)
    dt: float = .05                        # seconds a step
    default_params: tuple = (.01,)         # used where a rollout names none

    def check(self):
        """Raise UserError, with the arithmetic, where the numbers do not fit together."""
        def divides(small, big, what):
            if small < 1 or big % small:
                raise UserError(f'{what}: {small} does not divide {big}')
        for name, allowed in (('arch', ('pure', 'u')), ('attention', ('standard', 'channel')),
                              ('boundary', BOUNDARIES), ('pde', PDES)):
            if getattr(self, name) not in allowed:
                raise UserError(f"{name}='{getattr(self, name)}' is not one of {', '.join(allowed)}")
        d = len(self.grid)
        if d not in (1, 2):
            raise UserError(f'a grid of {d} axes; 1 or 2 are supported')
        if len(self.params) != len(self.default_params):
            raise UserError(f'{len(self.params)} parameters, but {len(self.default_params)} default values')
        if max(math.prod(self.grid), math.prod(self.token_grid)) > MAX_POINTS or \
                max(self.hidden_dim, self.encoder_dim, self.decoder_dim, self.latent_dim) > MAX_WIDTH or \
                max(self.depth, sum(self.depths), self.encoder_depth, self.decoder_depth) > MAX_DEPTH:
            raise UserError(f'larger than the limits of {MAX_POINTS} points, width {MAX_WIDTH} and depth {MAX_DEPTH}')
        if self.halo > min(self.grid):
            raise UserError(f'halo={self.halo} is larger than the grid {self.grid}')
        for name in ('token_grid', 'low', 'length', 'first'):
            if len(getattr(self, name)) != d:
                raise UserError(f'{name}={getattr(self, name)} needs one entry for each of the {d} axes')
        for n, s in zip(self.grid, self.token_grid):
            divides(self.patch_size, n, f'patch_size={self.patch_size} must divide the grid of {n} points')
            divides(s, n // self.patch_size,
                    f'latent tokens must divide the {n // self.patch_size} patches of an axis')
        if self.frame and not (self.periodic and self.fields == d == self.input_frames == 1):
            raise UserError('a moving frame needs one field, one axis, a periodic domain and one input frame: '
                            '--moving_frame=false')
        if self.inner_dim < 1:
            raise UserError(f'latent_dim={self.latent_dim} leaves nothing beside the two features of the moving frame')
        shift, points = self.token_shift, self.points_per_token[0]
        if shift and not (self.frame and 0 < shift < points <= self.inner_dim):
            raise UserError(f'token_shift={shift} needs a moving frame, more points a token ({points}), and room for '
                            f'them in latent_dim={self.latent_dim}: --token_shift=0')
        pools = {n // self.patch_size // s for n, s in zip(self.grid, self.token_grid)}
        if len(pools) > 1:
            raise UserError(f'every axis must be pooled alike, not by {sorted(pools)}')
        if self.attention == 'channel':
            divides(self.group_size, self.hidden_dim, 'group_size must divide hidden_dim')
            divides(self.n_head, self.group_size, 'n_head (heads in a group) must divide group_size')
        else:
            divides(self.n_head, self.hidden_dim, 'n_head must divide hidden_dim')
        divides(ENCODER_HEADS, self.encoder_dim, 'encoder heads must divide encoder_dim')
        divides(ENCODER_HEADS, self.decoder_dim, 'decoder heads must divide decoder_dim')
        for name, width, heads in (('operator', self.group_size if self.attention == 'channel' else self.hidden_dim,
                                    self.n_head), ('encoder', self.encoder_dim, ENCODER_HEADS),
                                   ('decoder', self.decoder_dim, ENCODER_HEADS)):
            if width // heads % 2:
                raise UserError(f'a head of the {name} has {width // heads} features ({width} / {heads}); rotary '
                                'positions need an even number')
        if self.arch == 'u':
            if len(self.depths) % 2 == 0:
                raise UserError(f'depths={self.depths} needs an odd number of entries: down ..., bottleneck, up ...')
            for s in self.token_grid:
                divides(2 ** (len(self.depths) // 2), s, 'the U shape must halve the latent tokens of an axis')

    def first_token(self, points):
        """Centre of the first token along each axis, as a fraction of the domain; `points`: grid points a token."""
        return [(f - lo) / ln + (p - 1) / 2 / n
                for f, lo, ln, p, n in zip(self.first, self.low, self.length, points, self.grid)]

    @property
    def inner_dim(self):
        """Features of a token that the networks see; a moving frame takes two more, mean and displacement."""
        return self.latent_dim - 2 * bool(self.frame)

    @property
    def gain(self):
        """Of the encoder's modes, so that latents with room for all of them have the field's mean square."""
        return max(1., self.inner_dim / (math.prod(self.points_per_token) * self.fields)) ** .5

    @property
    def points_per_token(self):
        return [n // s for n, s in zip(self.grid, self.token_grid)]


# ---------------------------------------------------------------------------------------------
# encoder

class GridEncoder(nn.Module):
    """Fields on the trained grid -> latent tokens: z = M patch(u) + g(u).

    M are the cosine modes of the points of a token, as many of the lowest as a token has features, fixed, and scaled so
    that latents with room for all have the field's mean square: the decoder inverts it from the first iteration on. The
    learned part g (none with encoder_dim=0) starts at zero: every field has its own stem (the rows of one convolution),
    where a patch of patch_size points and a halo around it become one token; `encoder_depth` blocks mix them;
    neighbouring tokens are merged where the patch grid is larger than the latent one.
    """

    def __init__(self, cfg):
        super().__init__()
        self.cfg, d, dim = cfg, len(cfg.grid), cfg.encoder_dim
        self.register_buffer('modes', patch_modes(cfg.points_per_token, cfg.fields, cfg.inner_dim) * cfg.gain,
                             persistent=False)
        if not dim:
            return
        conv = (nn.Conv1d, nn.Conv2d)[d - 1]
        self.stem = conv(cfg.fields * cfg.input_frames, dim, cfg.patch_size + 2 * cfg.halo, cfg.patch_size)
        self.patch_grid = tuple(n // cfg.patch_size for n in cfg.grid)
        spacing = [cfg.patch_size / n for n in cfg.grid]
        positions = token_positions(self.patch_grid, cfg.first_token([cfg.patch_size] * d), spacing)
        if not cfg.periodic:                                         # walls: where a token is matters
            waves = torch.arange(1, dim // (2 * d) + 1) * math.pi
            angles = positions[..., None] * waves                    # (S, d, dim/2d)
            table = torch.cat([angles.sin(), angles.cos()], -1).flatten(1)
            self.register_buffer('position', F.pad(table, (0, dim - table.shape[1])), persistent=False)
        self.blocks = nn.ModuleList([Block(EncoderBlocks(cfg), dim, positions) for _ in range(cfg.encoder_depth)])
        self.pool = self.patch_grid[0] // cfg.token_grid[0]
        self.norm = nn.LayerNorm(dim, bias=False)
        self.proj = nn.Linear(dim * self.pool ** d, cfg.inner_dim)
        zero(self.proj)

    def forward(self, u):
        """u (B, *grid, C input_frames), normalised -> (B, S, inner_dim), float32"""
        cfg, d, halo = self.cfg, len(self.cfg.grid), self.cfg.halo
        last = u[..., -cfg.fields:].flatten(1, -2)                   # (B, N, C)
        with torch.autocast(u.device.type, enabled=False):
            z = merge_tokens(last.float(), cfg.grid, cfg.points_per_token[0]) @ self.modes.T
        if not cfg.encoder_dim:
            return z
        u = u.movedim(-1, 1)                                         # (B, C, *grid)
        if halo:
            u = F.pad(u, (halo, halo) * d, mode='circular' if cfg.periodic else 'replicate')
        x = self.stem(u).flatten(2).transpose(1, 2)                  # (B, S_patch, D)
        if not cfg.periodic:
            x = x + self.position
        x = F.gelu(x) if len(self.blocks) == 0 else x
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        if self.pool > 1:
            x = merge_tokens(x, self.patch_grid, self.pool)
        return z + self.proj(x).float()


class EncoderBlocks:
    """What Block reads of a ModelConfig, for encoder and decoder: always standard attention."""

    def __init__(self, cfg):
        self.attention, self.n_head, self.periodic = 'standard', ENCODER_HEADS, cfg.periodic
        self.mlp_ratio = cfg.mlp_ratio


# ---------------------------------------------------------------------------------------------
# decoder

class AnyPointDecoder(nn.Module):
    """(query points, latent) -> the fields there, on or off the grid, at a cost per point that is local.

    The encoder's modes are inverted to the grid values of a token and interpolated, I(q; M^T z); what is learned is
    added to that and starts at zero (nothing with decoder_dim=0). For it, each token carries the coefficients of a
    local expansion in the offset o of the query from its centre (in token spacings, -1 < o < 1), with a learned basis φ
    of sines and cosines of o. The expansions of the 2^d nearest tokens are blended by smooth weights w that sum to one,
    and a small MLP reads the fields:

        h(q) = Σ_corners w(o_c) φ(o_c) ⊙ K z_c,        u(q) = I(q; M^T z) + W h + MLP(h)

    The result is continuously differentiable in q, wraps on a periodic domain, and does not depend on which
    other points are asked for.
    """

    def __init__(self, cfg):
        super().__init__()
        self.cfg, d, dim = cfg, len(cfg.grid), cfg.decoder_dim
        self.register_buffer('modes', patch_modes(cfg.points_per_token, cfg.fields, cfg.inner_dim) / cfg.gain,
                             persistent=False)
        if not dim:
            return
        positions = token_positions(cfg.token_grid, cfg.first_token(cfg.points_per_token),
                                    [1 / s for s in cfg.token_grid])
        self.stem = nn.Linear(cfg.inner_dim, dim)
        self.blocks = nn.ModuleList([Block(EncoderBlocks(cfg), dim, positions) for _ in range(cfg.decoder_depth)])
        self.coefficients = nn.Linear(dim, dim)
        n_feature = 2 * cfg.n_wave * d + 1
        self.basis = nn.Sequential(nn.Linear(n_feature, dim), nn.GELU(), nn.Linear(dim, dim))
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, cfg.fields))
        self.linear = nn.Linear(dim, cfg.fields, bias=False)
        zero(self.mlp[2])
        zero(self.linear)

    def nearest(self, q, shape, reach):
        """The K = (2 reach)^d cells of the grid `shape` that are nearest to the query points (..., Q, d). Returns their
        indices (..., Q, K); whether the domain has them, the others being repeats of the last cell before a wall; the
        offsets of q from their centres (..., Q, K, d) in cells; the same for q clamped to the outermost centres."""
        cfg, d = self.cfg, q.shape[-1]
        steps = torch.cartesian_prod(*[torch.arange(1 - reach, 1 + reach, device=q.device)] * d).view(-1, d)   # (K, d)
        index, inside, offset, walled = 0, True, [], []
        for axis, n in enumerate(shape):
            first = cfg.first[axis] + (cfg.grid[axis] / n - 1) / 2 * cfg.length[axis] / cfg.grid[axis]
            s = (q[..., axis, None] - first) / (cfg.length[axis] / n)
            near = s if cfg.periodic else s.clamp(0, n - 1)
            at = near.floor() + steps[:, axis]                       # (..., Q, K)
            index = index * n + (at % n if cfg.periodic else at.clamp(0, n - 1)).long()
            inside = inside & (cfg.periodic | ((at >= 0) & (at < n)))
            offset.append(s - at)
            walled.append(near - at)
        return index, inside, torch.stack(offset, -1), torch.stack(walled, -1)

    def interpolate(self, z, q):
        """I(q; M^T z): z (B, S, inner_dim), q (Q, d) or (B, Q, d) -> (B, Q, C), float32"""
        cfg, B = self.cfg, len(z)
        u = split_tokens(z.float() @ self.modes, cfg.grid, cfg.points_per_token[0])                    # (B, N, C)
        index, inside, offset, _ = self.nearest(q, cfg.grid, 2)
        weight = interpolation_kernel(offset).prod(-1) * inside      # (..., Q, 4^d)
        weight = (weight / weight.sum(-1, keepdim=True))[..., None]
        if q.ndim == 2:                                              # the same points for the whole batch
            rows = u.transpose(0, 1).flatten(1)[index]               # (Q, 4^d, B C)
            return (rows * weight).sum(1).unflatten(-1, (B, -1)).transpose(0, 1)
        rows = u.gather(1, index.flatten(1)[..., None].expand(-1, -1, cfg.fields))
        return (rows.unflatten(1, index.shape[1:]) * weight).sum(2)

    def expand(self, z, q):
        """h(q), the blended expansions of the nearest tokens: as interpolate, but -> (B, Q, D)"""
        index, _, offset, walled = self.nearest(q, self.cfg.token_grid, 1)
        r = (1 - walled.abs()).clamp(0, 1)
        blend = (r * r * (3 - 2 * r)).prod(-1, keepdim=True)         # smooth steps: r and 1 - r sum to one
        angle = offset[..., None] * torch.arange(1, self.cfg.n_wave + 1, device=q.device) * math.pi
        waves = torch.cat([torch.ones_like(blend), angle.sin().flatten(-2), angle.cos().flatten(-2)], -1)
        x = self.stem(z)
        for block in self.blocks:
            x = block(x)
        k = self.coefficients(F.gelu(x))                             # (B, S, D)
        basis, h = (self.basis(waves) * blend).to(k.dtype), 0.       # (..., Q, 2^d, D)
        for corner in range(index.shape[-1]):
            at = index[..., corner]
            rows = k.index_select(1, at) if q.ndim == 2 else k.gather(1, at[..., None].expand(-1, -1, k.shape[-1]))
            h = h + rows * basis[..., corner, :]                     # (B, Q, D)
        return h

    def forward(self, z, q):
        """z (B, S, inner_dim), q (Q, d) or (B, Q, d) in physical coordinates -> (B, Q, C), normalised."""
        h = self.expand(z, q).float() if self.cfg.decoder_dim else None
        with torch.autocast(z.device.type, enabled=False):           # the fields themselves in float32
            u = self.interpolate(z, q)
            if h is not None:
                u = u + self.linear(h) + self.mlp(h)
        if self.cfg.log_clamp:
            u = u.sign() * self.cfg.log_clamp * torch.log1p(u.abs() / self.cfg.log_clamp)
        return u


# ---------------------------------------------------------------------------------------------
# operators

class Conditioning(nn.Module):
    """Time step, PDE parameters, boundary kind and PDE identity -> one vector (B, cond_dim)."""

    def __init__(self, cfg):
        super().__init__()
        self.numbers = nn.Linear(1 + len(cfg.params), cfg.cond_dim)
        self.boundary = nn.Embedding(len(BOUNDARIES), cfg.cond_dim)
        self.pde = nn.Embedding(len(PDES), cfg.cond_dim)
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(cfg.cond_dim, cfg.cond_dim), nn.SiLU())
        self.kinds = BOUNDARIES.index(cfg.boundary), PDES.index(cfg.pde)

    def forward(self, dt, params):
        """dt (B,) seconds, params (B, P) -> (B, cond_dim). Numbers enter by the signed log(1 + 1e4 |x|)."""
        x = torch.cat([dt[:, None], params], 1).float()
        x = x.sign() * torch.log1p(1e4 * x.abs()) / 10
        return self.mlp(self.numbers(x) + self.boundary.weight[self.kinds[0]] + self.pde.weight[self.kinds[1]])


class PureOperator(nn.Module):
    """`depth` blocks at a fixed token count; the drop-path rate ramps up linearly with depth."""

    def __init__(self, cfg, positions):
        super().__init__()
        rates = ramp(cfg.drop_path, cfg.depth)
        self.blocks = nn.ModuleList([Block(cfg, cfg.hidden_dim, positions, cfg.cond_dim, rate, cfg.layer_norm)
                                     for rate in rates])

    def forward(self, x, cond, run):
        for block in self.blocks:
            x = run(block, x, cond)
        return x


class UShapedOperator(nn.Module):
    """Blocks at halved and restored token counts. depths = (down ..., bottleneck, up ...).

    Going down, pairs of tokens (per axis) are concatenated and mapped back to the width; going up, a linear
    map unfolds them and a linear map of the skip connection is added.
    """

    def __init__(self, cfg, first):
        super().__init__()
        d, dim, n_level = len(cfg.grid), cfg.hidden_dim, len(cfg.depths) // 2
        rates = iter(ramp(cfg.drop_path, sum(cfg.depths)))
        self.grids, positions = [], []
        for level in range(n_level + 1):
            grid = tuple(n // 2 ** level for n in cfg.token_grid)
            shift = [f + (2 ** level - 1) / 2 / n for f, n in zip(first, cfg.token_grid)]
            self.grids.append(grid)
            positions.append(token_positions(grid, shift, [1 / n for n in grid]))
        levels = [*range(n_level), *range(n_level, -1, -1)]          # 0 .. bottom .. 0
        block = lambda level: Block(cfg, dim, positions[level], cfg.cond_dim, next(rates), cfg.layer_norm)  # noqa: E731
        self.stages = nn.ModuleList([nn.ModuleList([block(level) for _ in range(n)])
                                     for level, n in zip(levels, cfg.depths)])
        self.down = nn.ModuleList([nn.Linear(dim * 2 ** d, dim) for _ in range(n_level)])
        self.up = nn.ModuleList([nn.Linear(dim, dim * 2 ** d) for _ in range(n_level)])
        self.skip = nn.ModuleList([nn.Linear(dim, dim) for _ in range(n_level)])

    def forward(self, x, cond, run):
        n_level, skips = len(self.down), []
        for level in range(n_level):
            for block in self.stages[level]:
                x = run(block, x, cond)
            skips.append(x)
            x = self.down[level](merge_tokens(x, self.grids[level], 2))
        for block in self.stages[n_level]:
            x = run(block, x, cond)
        for i, level in enumerate(reversed(range(n_level))):
            x = split_tokens(self.up[i](x), self.grids[level], 2) + self.skip[i](skips[level])
            for block in self.stages[n_level + 1 + i]:
                x = run(block, x, cond)
        return x


class Operator(nn.Module):
    """One step in latent space: A(z, c) = z + f(z, c). The last layer of f starts at zero, so an untrained
    operator is the identity (up to the move below).

    With `token_shift`, the tokens then move on by so many grid points: a linear map of a token and its right neighbour,
    exact for the fixed part of encoder and decoder. At rest on the field, they would repeat the same errors every step.
    With `conserve`, the integral of a field stays, exactly so for that fixed part: the first features are the means
    of a token, and the mean of f over all tokens is taken off them.
    """

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        first = cfg.first_token(cfg.points_per_token)
        positions = token_positions(cfg.token_grid, first, [1 / s for s in cfg.token_grid])
        self.stem = nn.Linear(cfg.inner_dim, cfg.hidden_dim)
        self.core = PureOperator(cfg, positions) if cfg.arch == 'pure' else UShapedOperator(cfg, first)
        self.norm = nn.LayerNorm(cfg.hidden_dim, bias=False) if cfg.layer_norm else nn.Identity()
        self.head = nn.Linear(cfg.hidden_dim, cfg.inner_dim)
        zero(self.head)
        self.register_buffer('is_mean', (torch.arange(cfg.inner_dim) < cfg.fields).float(), persistent=False)
        if cfg.token_shift:
            modes = patch_modes(cfg.points_per_token, cfg.fields, cfg.inner_dim)      # (D, P), orthonormal columns
            pair = torch.block_diag(modes, modes)[:, cfg.token_shift:][:, :modes.shape[1]]  # (2 D, P), at the new place
            stays = torch.eye(cfg.inner_dim) - modes @ modes.T       # features beyond the grid values
            self.register_buffer('shift', pair @ modes.T + F.pad(stays, (0, 0, 0, cfg.inner_dim)), persistent=False)

    def forward(self, z, cond):
        """z (B, S, inner_dim), cond (B, cond_dim) -> the latent one step later."""
        run = functools.partial(torch.utils.checkpoint.checkpoint, use_reentrant=False) \
            if self.cfg.checkpointing and self.training else lambda block, x, c: block(x, c)
        f = self.head(self.norm(self.core(self.stem(z), cond, run))).float()
        z = z + (f - self.is_mean * f.mean(1, keepdim=True) if self.cfg.conserve else f)
        if self.cfg.token_shift:
            with torch.autocast(z.device.type, enabled=False):
                z = torch.cat([z, z.roll(-1, 1)], -1) @ self.shift
        return z


# ---------------------------------------------------------------------------------------------
# container

class UPT(nn.Module):
    """Encoder E, operator A and decoder D, with the normalisation of the data inside.

    With `frame`, the mean m of a field is taken off and the rest is advanced in the frame that moves along at speed
    frame * m (Galilean invariance of Burgers' equation, exact at any speed because the decoder reads at any point). Its
    tokens then end in two features more, the same in all: m and the distance travelled by the frame and in it. E, A
    and D see fields without a mean (in training, where the frame moves by whole cells of the query grid, a mean that is
    worth less than half a cell a step is left).
    """

    def __init__(self, cfg):
        super().__init__()
        cfg.check()
        self.cfg = cfg
        self.encoder = GridEncoder(cfg)
        self.condition = Conditioning(cfg)
        self.operator = Operator(cfg)
        self.decoder = AnyPointDecoder(cfg)
        self.register_buffer('mean', torch.tensor(cfg.mean, dtype=torch.float32), persistent=False)
        self.register_buffer('std', torch.tensor(cfg.std, dtype=torch.float32), persistent=False)
        self.register_buffer('points', self.grid(), persistent=False)

    def n_params(self):
        return sum(p.numel() for p in self.parameters())

    # ---- training: everything normalised, targets encoded once a window

    def forward(self, u, q, dt, params, unroll, inverse_encoding=True, inverse_decoding=False, through_time=True,
                detach_target=True, targets=True):
        """Everything the losses need of one batch of windows.

        u (B, input_frames + unroll, *grid, C) normalised, frame k at points moved on by k token_shift (data.py's drag),
        q (Q, d), dt (B,), params (B, P). `unroll` steps are taken in latent space from the encoding of the first ones;
        the gradient runs through all, or with through_time=False through each one alone. Returns a dict of
            latent (B, K, S, D) advanced latents,         field (B, K, Q, C) the same, decoded,
            target (B, K, S, D) encodings of the true frames, only with targets,
            reconstruction (B, Q, C) of the first frame, only with inverse_encoding,
            cycle (B, S, D), once: E(D(z_1)), only with inverse_decoding.
        """
        n_in, B = self.cfg.input_frames, u.shape[0]
        stack = lambda w: torch.cat(w.unbind(1), -1)                 # noqa: E731  frames become channels
        z0 = self.encoder(stack(u[:, :n_in]))
        cond, z, latent = self.condition(dt, params), z0, []
        for _ in range(unroll):
            z = self.operator(z if through_time or not latent else z.detach(), cond)
            latent.append(z)
        latent = torch.stack(latent, 1)                              # (B, K, S, D)
        seen = torch.cat([z0[:, None], latent], 1) if inverse_encoding else latent
        field = self.decoder(seen.flatten(0, 1), q).unflatten(0, (B, -1))  # ((1 +) K, Q, C) a sample
        out = {'latent': latent, 'field': field[:, -unroll:]}
        if targets:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not detach_target):
                later = [stack(u[:, k:k + n_in]) for k in range(1, unroll + 1)]
                out['target'] = self.encoder(torch.stack(later, 1).flatten(0, 1)).unflatten(0, (B, unroll))
        if inverse_encoding:
            out['reconstruction'] = field[:, 0]
        if inverse_decoding:
            v = self.decoder(latent[:, 0], self.points).unflatten(1, self.cfg.grid)
            out['cycle'] = self.encoder(torch.cat([*u[:, 1:n_in].unbind(1), v], -1))
        return out

    # ---- use: physical units in and out

    def grid(self, *shape):
        """Coordinates of the trained kind of grid with `shape` points along the axes, (N, d), row-major. It
        starts at the trained grid's first coordinate; without arguments, the trained grid."""
        cfg, shape = self.cfg, shape or self.cfg.grid
        if len(shape) != len(cfg.grid):
            raise UserError(f'a grid of {len(cfg.grid)} axes was trained, not {len(shape)}')
        axes = []
        for n, first, low, length in zip(shape, cfg.first, cfg.low, cfg.length):
            if cfg.periodic:
                axes.append(first + length * torch.arange(n, dtype=torch.float64) / n)
            else:                                                    # cell centres stay clear of the walls
                axes.append(low + length * (torch.arange(n, dtype=torch.float64) + .5) / n)
        return torch.stack([a.flatten() for a in torch.meshgrid(*axes, indexing='ij')], -1).float()

    @property
    def device(self):
        return self.mean.device

    def encode(self, u, grid=None):
        """u (B, *space, C), or (B, input_frames, *space, C) for several, on m.grid(*space) or on the 1D points
        `grid` (N, 1) -> latent (B, S, latent_dim). Other grids are resampled to the trained one by cubic
        interpolation, which leaves points that both share as they are. Raises UserError for a wrong shape."""
        u, frame = self.on_grid(u, grid), []
        if self.cfg.frame:
            mean = u.mean((1, 2))                                    # (B, 1)
            u, frame = u - mean[:, None, None], [mean, torch.zeros_like(mean)]
        z = self.encoder(torch.cat(((u - self.mean) / self.std).unbind(1), -1))
        return torch.cat([z, *(f[:, None].expand(-1, z.shape[1], 1) for f in frame)], -1)

    def on_grid(self, u, grid=None):
        """u as encode takes it -> (B, input_frames, *grid, C) on the trained grid."""
        cfg, d = self.cfg, len(self.cfg.grid)
        u = torch.as_tensor(u, device=self.device).float()
        if cfg.input_frames == 1 and u.ndim == d + 2:
            u = u[:, None]
        if u.ndim != d + 3 or u.shape[1] != cfg.input_frames or u.shape[-1] != cfg.fields:
            expected = '(B, ' + (f'{cfg.input_frames}, ' if cfg.input_frames > 1 else '') + f'*space, {cfg.fields})'
            raise UserError(f'u has shape {tuple(u.shape)}; expected {expected} with {d} space axes')
        space = tuple(u.shape[2:-1])
        if grid is not None or space != tuple(cfg.grid):
            if grid is not None and d != 1:
                raise UserError('input points of their own are supported in 1D; in 2D give u on m.grid(nx, ny)')
            for axis in range(d):
                one = tuple(n if i == axis else 1 for i, n in enumerate(space))
                own = torch.as_tensor(grid, device=self.device).float().flatten() if grid is not None else \
                    self.grid(*one)[:, axis].to(self.device)
                if len(own) != space[axis]:
                    raise UserError(f'{len(own)} coordinates for {space[axis]} values')
                one = tuple(n if i == axis else 1 for i, n in enumerate(cfg.grid))
                to = self.grid(*one)[:, axis].to(self.device)
                u = resample(u.movedim(2 + axis, -1), own, to, cfg.length[axis] if cfg.periodic else None)
                u = u.movedim(-1, 2 + axis)
        return u

    def step(self, z, params=None, dt=None):
        """One step of `dt` seconds (default: that of training) in latent space."""
        return self._advance(z, *self._condition(len(z), params, dt))

    def _advance(self, z, cond, dt):
        inner, frame = z.split([self.cfg.inner_dim, z.shape[-1] - self.cfg.inner_dim], -1)
        inner = self.operator(inner, cond)
        if not self.cfg.frame:
            return inner
        mean, travelled = frame.split(1, -1)
        travelled = travelled + self.cfg.frame * mean * dt[:, None, None]
        return torch.cat([inner, mean, travelled + self.cfg.token_shift * self.cfg.length[0] / self.cfg.grid[0]], -1)

    def decode(self, z, points=None):
        """z (B, S, latent_dim) -> the fields at points (Q, d) or (B, Q, d), (B, Q, C); without points, on the
        trained grid, (B, *grid, C). Raises UserError for a point outside a domain that is not periodic."""
        if points is None:
            return self.decode(z, self.points).unflatten(1, self.cfg.grid)
        S, D = math.prod(self.cfg.token_grid), self.cfg.latent_dim
        if z.ndim != 3 or tuple(z.shape[1:]) != (S, D):
            raise UserError(f'a latent has shape (B, {S}, {D}), not {tuple(z.shape)}')
        q = torch.as_tensor(points, device=self.device)
        if q.ndim not in (2, 3) or q.shape[-1] != len(self.cfg.grid):
            raise UserError(f'points have shape {tuple(q.shape)}; expected (Q, {len(self.cfg.grid)}) or '
                            f'(B, Q, {len(self.cfg.grid)})')
        if q.ndim == 3 and len(q) != len(z):
            raise UserError(f'points for {len(q)} samples, latents of {len(z)}')
        q = q.double() if q.device.type != 'mps' else q              # which has no float64
        low, length = q.new_tensor(self.cfg.low), q.new_tensor(self.cfg.length)
        if not torch.isfinite(q).all():
            raise UserError('some query points are not finite')
        lift = 0.
        if self.cfg.frame:
            z, lift, travelled = z.split([self.cfg.inner_dim, 1, 1], -1)
            lift, travelled = lift[:, :1], travelled[:, :1].to(q.dtype)  # (B, 1, 1)
            q = q - travelled.nan_to_num(0., 0., 0.)                 # (B, Q, 1); lift stays what it is
        if self.cfg.periodic:
            q = low + (q - low) % length                             # x = 1 is x = 0
        elif (q < low).any() or (q > low + length).any():
            raise UserError(f'some query points lie outside the domain {self.cfg.low} + {self.cfg.length}')
        return self.decoder(z, q.float()) * self.std + self.mean + lift

    @torch.no_grad()
    def rollout(self, u0, steps, points=None, params=None, dt=None, grid=None, reencode=False):
        """Advance u0 by `steps` steps and decode every one of them.

        u0 (B, *space, C) on m.grid(*space), or on the 1D points `grid` (N, 1); points (Q, d): where to decode
        (default: the points of u0's grid). Encoded once, then advanced in latent space; with reencode=True every
        step is decoded on the trained grid and encoded again. params {'Nu': .01} and dt in seconds default to
        those of training. Returns (B, steps, *space, C), or (B, steps, Q, C) with points or grid.
        """
        if steps < 1:
            raise UserError(f'steps={steps} must be at least 1')
        space, u0 = None, torch.as_tensor(u0, device=self.device).float()
        z = self.encode(u0, grid)
        if points is None and grid is not None:
            points = grid
        elif points is None:
            space = tuple(u0.shape[-len(self.cfg.grid) - 1:-1])
            points = self.points if space == tuple(self.cfg.grid) else self.grid(*space)
        (cond, dt), out, frames = self._condition(len(z), params, dt), [], None
        for _ in range(steps):
            z = self._advance(z, cond, dt)
            u = self.decode(z, points)
            out.append(u)
            if reencode and len(out) < steps:
                v = u.unflatten(1, self.cfg.grid) if points is self.points else self.decode(z)
                if self.cfg.input_frames > 1:
                    if frames is None:
                        frames = self.on_grid(u0, grid)
                    frames = torch.cat([frames[:, 1:], v[:, None]], 1)
                    v = frames
                z = self.encode(v)
        u = torch.stack(out, 1)                                      # (B, steps, Q, C)
        return u.unflatten(2, space) if space else u

    def _condition(self, B, params, dt):
        """What the operator is told (B, cond_dim), and the time step (B,)."""
        cfg = self.cfg
        values = dict(zip(cfg.params, cfg.default_params))
        for name, value in (params or {}).items():
            if name not in values:
                raise UserError(f"unknown parameter '{name}': this model knows {', '.join(cfg.params)}")
            values[name] = value
        def one(v):
            v = torch.as_tensor(v, dtype=torch.float32, device=self.device)
            if v.ndim > 1 or v.ndim == 1 and len(v) != B:
                raise UserError(f'a parameter has shape {tuple(v.shape)}; expected one value or ({B},)')
            return v.expand(B)
        dt = one(cfg.dt if dt is None else dt)
        return self.condition(dt, torch.stack([one(values[name]) for name in cfg.params], 1)), dt


def resample(u, x, to, length=None):
    """Cubic (Catmull-Rom) interpolation along the last axis, from sorted points x (N,) to points `to` (M,);
    periodic with period `length` where one is given, clamped otherwise. (..., N) -> (..., M)"""
    order, wide = torch.argsort(x), torch.float32 if x.device.type == 'mps' else torch.float64
    x, u = x[order].to(wide), u[..., order]
    to, N = to.to(wide), len(x)
    if length is not None:
        to = x[0] + (to - x[0]) % length
        near_end = (x[0] + length - to).abs() < 1e-6 * length        # rounding: the first point itself
        to = torch.where(near_end, x[0], to)
        at = lambda i: x[i % N] + length * torch.div(i, N, rounding_mode='floor')  # noqa: E731
        values = lambda i: u[..., i % N]                             # noqa: E731
    else:
        at = lambda i: x[i.clamp(0, N - 1)] + (i - i.clamp(0, N - 1)) * (x[1] - x[0])  # noqa: E731
        values = lambda i: u[..., i.clamp(0, N - 1)]                 # noqa: E731
        to = to.clamp(x[0], x[-1])
    i = (torch.searchsorted(x, to + 1e-9, right=True) - 1).clamp(0, N - 1 if length is not None else N - 2)
    x0, x1, x2, x3 = (at(i + k) for k in (-1, 0, 1, 2))
    y0, y1, y2, y3 = (values(i + k).to(wide) for k in (-1, 0, 1, 2))
    h, s = x2 - x1, ((to - x1) / (x2 - x1)).clamp(0, 1)
    d1, d2 = (y2 - y0) / (x2 - x0) * h, (y3 - y1) / (x3 - x1) * h    # tangents, scaled to the interval
    a = 2 * s ** 3 - 3 * s ** 2
    return ((a + 1) * y1 + (s ** 3 - 2 * s ** 2 + s) * d1 - a * y2 + (s ** 3 - s ** 2) * d2).float()


# ---------------------------------------------------------------------------------------------
# from a checkpoint

def build(model_args, weights, path):
    """A UPT from a checkpoint's arguments and weights; sizes are compared before anything is allocated."""
    known = {f.name for f in fields(ModelConfig)}
    unknown = set(model_args) - known
    if unknown:
        raise UserError(f"'{path}' names unknown model arguments: {', '.join(sorted(unknown))}")
    cfg = ModelConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in model_args.items()})
    cfg.check()
    with torch.device('meta'):
        shapes = {k: v.shape for k, v in UPT(cfg).state_dict().items()}
    wrong = [k for k in shapes.keys() | weights.keys() if k not in weights or k not in shapes
             or weights[k].shape != shapes[k]]
    if wrong:
        raise UserError(f"'{path}': weights and model arguments disagree at {', '.join(sorted(wrong)[:4])}")
    model = UPT(cfg)
    model.load_state_dict(weights)
    return model


def load(path, device='cpu', ema=True):
    """The model of a run directory (best weights) or checkpoint file, ready for use."""
    state = load_checkpoint(file := find_checkpoint(path))
    return build(state['model_args'], state['ema' if ema else 'model'], file).to(device).eval()


def model_args(cfg):
    """A ModelConfig as JSON types."""
    return json.loads(json.dumps(asdict(cfg)))
