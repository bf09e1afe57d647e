"""
Encoders and decoder: fields on the grid or at points -> latent tokens -> the fields at any point. Each has a
fixed linear part (grids.Patches), which the decoder inverts, and a learned one that starts at zero.

Shapes: B batch, N grid points, S tokens, D features of a token, C fields, P given points, Q query points, d
space dimensions. `cfg` is a model.ModelConfig.
"""
import math
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from grids import Scattered, fewest_points, interpolate, merge_tokens, nearest, pick, positions
from layers import Block, Float32Linear, StandardAttention, divides, ones_at, outer, zero
from runtime.configurator import UserError

HEADS = 4                              # of encoder and decoder, whatever the operator has
SMALLEST = 1e-6                        # sizes that are divided by are at least this


# ---------------------------------------------------------------------------------------------
# encoder

class GridEncoder(nn.Module):
    """
    Fields on the trained grid -> latent tokens: z = M patch(u) + g(u).

    M are modes of the points of a token (Patches), fixed, so that the decoder inverts it from the first
    iteration on. The learned part g (none with encoder_dim=0) starts at zero: every field has its own
    stem (the rows of one convolution), where a patch of patch_size points and a halo around it become one
    token; `encoder_depth` blocks mix them; neighbouring tokens are merged where the patch grid is larger than
    the latent one. g leaves the integral of a conserved field to the fixed part.
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
            divides(cfg.patch_size, n, f'patch_size={cfg.patch_size} must divide the grid of {n} points')
            n_patch = n // cfg.patch_size
            divides(s, n_patch, f'latent tokens must divide the {n_patch} patches of an axis')
        divides(HEADS, dim, 'encoder heads must divide encoder_dim')
        self.patch_grid = tuple(n // cfg.patch_size for n in cfg.grid)
        self.make_stem(cfg)
        self.pool = tuple(n // s for n, s in zip(self.patch_grid, cfg.token_grid))
        spacing = [1 / n for n in self.patch_grid]
        centres = positions(self.patch_grid, cfg.token_centre([cfg.patch_size] * d), spacing)
        if not cfg.periodic:                                       # between walls it matters where a token is
            waves = torch.arange(1, dim // (2 * d) + 1) * math.pi
            angles = centres[..., None] * waves                      # (S, d, dim/2d)
            table = torch.cat([angles.sin(), angles.cos()], -1).flatten(1)
            self.register_buffer('position', F.pad(table, (0, dim - table.shape[1])), persistent=False)
        self.blocks = nn.ModuleList()
        for _ in range(cfg.encoder_depth):
            attention = StandardAttention(dim, HEADS, centres, cfg.periodic)
            self.blocks.append(Block(dim, attention, cfg.mlp_ratio))
        self.norm = nn.LayerNorm(dim, bias=False)
        self.proj = zero(Float32Linear(dim * math.prod(self.pool), cfg.latent_dim))
        self.register_buffer('conserved', ones_at(cfg.conserved, cfg.latent_dim), persistent=False)

    def make_stem(self, cfg):
        conv = (nn.Conv1d, nn.Conv2d)[len(cfg.grid) - 1]
        n_field = cfg.n_field * cfg.input_frames
        self.stem = conv(n_field, cfg.encoder_dim, cfg.patch_size + 2 * cfg.halo, cfg.patch_size)

    def forward(self, u, placement=None):
        """u (B, *grid, C input_frames), normalised -> (B, S, latent_dim), float32"""
        z = self.patches.to_tokens(u[..., -self.cfg.n_field:])
        return z + self.learned(self.of_patches(u)) if self.cfg.encoder_dim else z

    def of_patches(self, u):
        """u (B, *grid, C input_frames) -> the features of every patch, (B, S_patch, D)"""
        cfg = self.cfg
        u = u.movedim(-1, 1)                                         # (B, C, *grid)
        if cfg.halo:
            mode = 'circular' if cfg.periodic else 'replicate'
            u = F.pad(u, (cfg.halo, cfg.halo) * len(cfg.grid), mode=mode)
        with torch.autocast(u.device.type, enabled=False):
            return self.stem(u.float()).flatten(2).transpose(1, 2)

    def learned(self, x):
        """Features of the patches -> what is added to the tokens, (B, S, latent_dim)."""
        if not self.cfg.periodic:
            x = x + self.position
        if len(self.blocks) == 0:
            x = F.gelu(x)
        for block in self.blocks:
            x = block(x)
        x = merge_tokens(self.norm(x), self.patch_grid, self.pool)   # (B, S, D pool)
        z = self.proj(x)
        return z - self.conserved * z.mean(1, keepdim=True)


class Placement(NamedTuple):
    """Points at which fields are given, and what the encoder needs to know of them. b is 1 for points that a
    batch shares, else its size."""
    points: torch.Tensor                   # (P, d) or (B, P, d), physical coordinates
    spline: int                            # which of the encoder's interpolations
    index: torch.Tensor                    # (b, M, K) and
    weight: torch.Tensor                   # (b, M, K, T): the stencils of grids.Scattered
    part: torch.Tensor                     # (b, P, 1): of each value in the mean over the trained grid
    # for the learned part, where there is one
    others: torch.Tensor = None            # (b, P, K) and
    prediction: torch.Tensor = None        # (b, P, K, 1): the stencils that predict a point from the others
    members: torch.Tensor = None           # (b, S_patch, n): numbers of the points that a supernode sees,
    apart: torch.Tensor = None             # (b, S_patch, n, d): where they lie, in units of its radius,
    share: torch.Tensor = None             # (b, S_patch, n): of each in the mean


class PointEncoder(GridEncoder):
    """
    Values at any points -> latent tokens: z = M patch(I u) + g(u).

    I interpolates to the trained grid by local splines (grids.Scattered), so that a trained operator and
    decoder can be used from the first iteration on; what that misses between sparse points is left to g,
    which starts at zero. It pools supernodes as UPT does (arXiv 2402.12365, section 3.1): a supernode takes
    the mean of messages from the points within a radius, or from the nearest few if there are none, at any
    density.
    Blocks mix the supernodes, and neighbouring ones are merged to tokens. A message tells, beside the value
    at a point, by how much a spline through the other points misses it. What g adds is in proportion to that,
    so it vanishes by itself where points are dense, at densities that were never trained.

    Supernodes are the centres of the patches and not some of the points. So nothing is drawn, the order of
    the points has no effect, tokens and points of a torus can be translated together, and the place of a
    supernode is known to the attention and to the token that it belongs to. The radius is half a patch and
    the halo, as far as GridEncoder sees.
    """

    def __init__(self, cfg, patches):
        super().__init__(cfg, patches)
        even = all(n % 2 == 0 for n in cfg.points_per_token)
        self.splines = nn.ModuleList(Scattered(cfg.grid, block, cfg.periodic) for block in (1, 1 + even))

    def make_stem(self, cfg):
        d = len(cfg.grid)
        size = [cfg.patch_size] * d
        centres = positions(self.patch_grid, [(cfg.patch_size - 1) / 2] * d, size)       # in cells
        self.register_buffer('centres', centres, persistent=False)
        self.radius = cfg.patch_size / 2 + cfg.halo
        ball = (2 * self.radius, math.pi * self.radius ** 2)[d - 1]
        self.reached = min(1., ball / math.prod(cfg.grid))           # part of all points that one is to see
        self.stem = outer(Float32Linear(2 * cfg.n_field + d, cfg.encoder_dim))
        self.pooled = nn.Linear(cfg.encoder_dim, cfg.encoder_dim)

    @torch.no_grad()
    def place(self, points):
        """points (P, d) or (B, P, d), physical coordinates -> Placement. Raises UserError for too few."""
        cfg = self.cfg
        d = len(cfg.grid)
        n_point = points.shape[-2]
        if n_point <= fewest_points(d):
            raise UserError(f'{n_point} points are given; at least {fewest_points(d) + 1} are needed')
        x = self.in_cells(points.float().reshape(-1, n_point, d))
        spline = int(n_point <= 2 * math.prod(cfg.grid))
        index, weight = self.splines[spline].stencils(x)
        part = torch.zeros_like(x[..., 0])                           # (b, P)
        each = weight.mean(-1) / index.shape[1]                      # (b, M, K)
        part = part.scatter_add_(1, index.flatten(1), each.flatten(1))
        placement = Placement(points, spline, index, weight, part[..., None])
        if not cfg.encoder_dim:
            return placement
        others, prediction = self.splines[0].left_out(x)
        members, apart, share = self.neighbours(x)
        return placement._replace(others=others, prediction=prediction, members=members, apart=apart,
                                  share=share)

    def in_cells(self, x):
        """Physical coordinates (b, P, d) -> cells of the trained grid, from its first point on."""
        cfg = self.cfg
        axes = []
        for axis, n in enumerate(cfg.grid):
            cell = cfg.length[axis] / n
            axes.append((x[..., axis] - cfg.first[axis]) / cell)
        return torch.stack(axes, -1)

    def neighbours(self, x):
        """The points x (b, P, d), in cells, that every supernode sees: members, apart and share of a
        Placement."""
        cfg = self.cfg
        n_point = x.shape[1]
        # Twice as many as lie within the radius if points are spread evenly; the nearest of more.
        n = min(n_point, 8 + math.ceil(2 * self.reached * n_point))
        members, apart = nearest(self.centres, x, cfg.grid, cfg.periodic, n)
        square = apart.square().sum(-1)                              # (b, S_patch, n)
        last = min(n, 4) - 1                                         # at least so many are seen
        reach = 1.5 * square[..., last:last + 1]
        reach = reach.clamp_min(self.radius ** 2)
        share = (1 - square / reach).clamp_min(0)                    # goes to 0 where points enter and leave
        share = share / share.sum(-1, keepdim=True)
        return members, apart / self.radius, share

    def forward(self, u, placement):
        """u (B, P, C), normalised values at the points of a placement -> (B, S, latent_dim), float32"""
        spline = self.splines[placement.spline]
        with torch.autocast(u.device.type, enabled=False):
            grid = spline(u.float(), placement.index, placement.weight)
        z = self.patches.to_tokens(grid)
        if not self.cfg.encoder_dim:
            return z
        miss = self.missed(u, placement)
        size = miss.square().mean((1, 2), keepdim=True).sqrt() + SMALLEST        # (B, 1, 1)
        x = self.of_supernodes(torch.cat([u, miss / size], -1), placement)
        return z + size * self.learned(x)

    def missed(self, u, placement):
        """By how much a spline through the other points misses the value of each, (B, P, C)."""
        others = pick(u, placement.others)                           # (B, P, K, C)
        return u - (placement.prediction * others).sum(2)

    def of_supernodes(self, u, placement):
        """u (B, P, 2 C) -> the features of every supernode, (B, S_patch, D). The second layer of the message
        MLP is linear, and acts on the mean."""
        values = pick(u, placement.members)                          # (B, S_patch, n, 2 C)
        apart = placement.apart.expand(len(u), -1, -1, -1)
        messages = F.gelu(self.stem(torch.cat([values, apart], -1)))
        mean = (placement.share[..., None] * messages).sum(2)
        return self.pooled(mean).float()


# ---------------------------------------------------------------------------------------------
# decoder

class AnyPointDecoder(nn.Module):
    """
    (query points, latent) -> the fields there, on or off the grid: u(q) = I(q; M^T z + h(z)).

    The modes of a token are inverted to its grid values, M^T z. What is learned, h, is added to that and
    starts at zero (none with decoder_dim=0): the mirror image of the encoder, `decoder_depth` blocks that mix
    the tokens and one transposed convolution, by which a token writes on its patch of the grid and a halo
    around it. It leaves the integral of a conserved field to the fixed part. I is cubic interpolation, so the
    result is continuously differentiable in q, wraps on a periodic domain, and does not depend on which other
    points are asked for.
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
        divides(HEADS, dim, 'decoder heads must divide decoder_dim')
        spacing = [1 / s for s in cfg.token_grid]
        centres = positions(cfg.token_grid, cfg.token_centre(cfg.points_per_token), spacing)
        self.stem = Float32Linear(cfg.latent_dim, dim)
        self.place = nn.Parameter(torch.zeros(len(centres), dim)) if not cfg.uniform else 0.
        self.blocks = nn.ModuleList()
        for _ in range(cfg.decoder_depth):
            attention = StandardAttention(dim, HEADS, centres, cfg.periodic)
            self.blocks.append(Block(dim, attention, cfg.mlp_ratio))
        self.norm = nn.LayerNorm(dim, bias=False)
        self.beyond = [-(-cfg.halo // p) for p in cfg.points_per_token]        # tokens that reach into others
        kernel = [p + 2 * cfg.halo for p in cfg.points_per_token]
        transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d)[d - 1]
        free = len(cfg.conserved) < cfg.n_field                # else a constant would be taken off again
        self.write = zero(transposed(dim, cfg.n_field, kernel, cfg.points_per_token, bias=free))
        self.register_buffer('conserved', ones_at(cfg.conserved, cfg.n_field), persistent=False)

    def forward(self, z, q=None):
        """z (B, S, latent_dim), q (Q, d) or (B, Q, d) in physical coordinates, or None for the trained grid's
        points, where nothing has to be interpolated -> (B, Q, C), normalised, float32"""
        cfg = self.cfg
        u = self.patches.to_grid(z).flatten(1, -2)                   # (B, N, C)
        if cfg.decoder_dim:
            u = u + self.learned(z)
        if q is not None:
            u = interpolate(u, q, cfg.grid, cfg.first, cfg.length, cfg.periodic)
        if cfg.log_clamp:
            u = u.sign() * cfg.log_clamp * torch.log1p(u.abs() / cfg.log_clamp)
        return u

    def learned(self, z):
        """h(z) on the trained grid, (B, N, C)."""
        cfg = self.cfg
        x = self.stem(z) + self.place
        for block in self.blocks:
            x = block(x)
        x = self.norm(x) if len(self.blocks) else F.gelu(x)
        x = x.float().transpose(1, 2).unflatten(2, cfg.token_grid)   # (B, dim, *tokens)
        around = [n for n in reversed(self.beyond) for _ in range(2)]
        x = F.pad(x, around, mode='circular' if cfg.periodic else 'replicate')
        with torch.autocast(z.device.type, enabled=False):
            u = self.write(x)                                        # of the tokens and those around them
        for axis, (n, p) in enumerate(zip(self.beyond, cfg.points_per_token)):
            u = u.narrow(2 + axis, cfg.halo + n * p, cfg.grid[axis])
        u = u.flatten(2).transpose(1, 2)
        return u - self.conserved * u.mean(1, keepdim=True)
