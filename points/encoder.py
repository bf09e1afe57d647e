"""
The encoder of points: values at any points of the domain -> latent tokens.

Shapes: B batch, P points, S tokens, D features of a token, C fields, d space dimensions; b is 1 for points
that a batch shares, else B. `cfg` is a model.ModelConfig.
"""
import math
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from grids import ones_at, pick, positions, random_points
from model import Float32Linear, GridEncoder, use_adamw
from points.splines import Scattered, fewest_points, is_sparse, nearest
from runtime.configurator import UserError
from runtime.inputs import as_numbers, checked_fields, grid_points, query_points, readable, values_at

SMALLEST = 1e-6                        # lower limit of sizes in denominators


class PointStencil(NamedTuple):
    """Points at which fields are known, and the interpolation stencils that follow from them."""
    points: torch.Tensor                   # (P, d) or (B, P, d), physical coordinates
    spline: int                            # which of the encoder's interpolations
    index: torch.Tensor                    # (b, M, K) and
    weight: torch.Tensor                   # (b, M, K, T): the stencils of splines.Scattered
    mean_weight: torch.Tensor              # (b, P, 1): weights of the mean over the trained grid
    # for the learned part
    others: torch.Tensor = None            # (b, P, K) and
    prediction: torch.Tensor = None        # (b, P, K, 1): the stencils that predict a point from the others
    neighbours: torch.Tensor = None        # (b, S_patch, n): numbers of the points that a supernode sees,
    offset: torch.Tensor = None            # (b, S_patch, n, d): their offsets, in units of its radius,
    share: torch.Tensor = None             # (b, S_patch, n): their weights in its mean


class PointEncoder(GridEncoder):
    """
    Values at any points -> latent tokens: z = M patch(I u) + g(u).

    I interpolates to the trained grid by local splines (splines.Scattered), so a trained operator and decoder
    can be used from the first iteration on. The learned part g, which starts at zero, adds what the splines
    miss between sparse points. It pools supernodes as UPT does (arXiv 2402.12365, section 3.1): a supernode
    takes the mean of messages from the points within a radius, or from the nearest few. Blocks mix the
    supernodes, and neighbours are merged to tokens. A message holds the value at a point and the error of a
    spline through the other points there. g is in proportion to that error, so it vanishes where points are
    dense, also at densities that were never trained.

    The supernodes are the centres of the patches, not some of the points. So nothing is drawn, the order of
    the points has no effect, and the operator stays invariant under translations. The radius is half a patch
    plus the halo, as far as GridEncoder sees.
    """

    def __init__(self, cfg, patches):
        super().__init__(cfg, patches)
        self.drawn = None, None                                      # the last points, and their PointStencil
        even = all(n % 2 == 0 for n in cfg.points_per_token)
        self.splines = nn.ModuleList(Scattered(cfg.grid, block, cfg.periodic) for block in (1, 1 + even))
        cell = [length / n for length, n in zip(cfg.length, cfg.grid)]
        points = positions(cfg.grid, cfg.first, cell)
        self.register_buffer('grid_points', points, persistent=False)
        self.register_buffer('is_static', ones_at(cfg.static, cfg.n_field).bool(), persistent=False)

    def make_stem(self, cfg):
        d = len(cfg.grid)
        size = [cfg.patch_size] * d
        centres = positions(self.patch_grid, [(cfg.patch_size - 1) / 2] * d, size)       # in cells
        self.register_buffer('centres', centres, persistent=False)
        self.radius = cfg.patch_size / 2 + cfg.halo
        ball = (2 * self.radius, math.pi * self.radius ** 2)[d - 1]
        self.fraction = min(1., ball / math.prod(cfg.grid))          # of all points, seen by a supernode
        self.stem = use_adamw(Float32Linear(2 * cfg.n_field + d, cfg.encoder_dim))
        self.pooled = nn.Linear(cfg.encoder_dim, cfg.encoder_dim)

    def random_points(self, n, random, u):
        """n random points of a box, (n, d). In another domain, random points of the grid of u (B, *grid, C) that
        are inside, others for each sample: (B, n, d); fewer on a CPU where there are not so many, else some outside."""
        cfg = self.cfg
        if not cfg.domain:
            return random_points(n, cfg, random)
        points = grid_points(cfg, u.shape[1:-1])
        order = torch.randperm(len(points), generator=random)
        points = points[order].to(u.device)
        distance = u[..., cfg.domain[0]].flatten(1)
        inside = distance[:, order.to(u.device)] > 0
        if readable(u):
            n = min(n, int(inside.sum(1).min()))
        first = inside.sort(stable=True, descending=True).indices[:, :n]
        return points[first]

    def draw_points(self, keys, random, u):
        """keys.input_points random points, as a PointStencil. Those of a box serve all micro-batches."""
        points = self.random_points(keys.input_points, random, u)
        if self.cfg.domain:
            return self.stencil(points)
        last, stencil = self.drawn
        if last is None or not torch.equal(points, last):
            stencil = self.stencil(points.to(self.patches.modes.device, non_blocking=True))
            self.drawn = points, stencil
        return stencil

    def encode_grid(self, u, where=None):
        """Tokens of normalised fields u (B, *grid, C) on the trained grid, seen at the points `where`, or at
        all points of the grid."""
        cfg = self.cfg
        if where is None:
            return self(u.flatten(1, -2), self.stencil(self.grid_points))
        return self(values_at(u, where.points, cfg.first, cfg.length, cfg.periodic), where)

    def preprocess(self, u, x, like):
        """Values u (B, P, C) at points x (P, d) or (B, P, d), or fields on a grid like the trained one, in
        physical units -> (B, P, C) and a PointStencil. Raises UserError for a wrong shape, values that are
        not finite, and points that leave a part of the domain out."""
        cfg = self.cfg
        u = checked_fields(cfg, u, like, at_points=x is not None)
        if x is None:
            x = grid_points(cfg, u.shape[1:-1])
            u = u.flatten(1, -2)
        x = as_numbers('grid', x)
        x = query_points(cfg, x[:, None] if x.ndim == 1 else x, u.shape[0], like, 'grid')
        if u.shape[1] != x.shape[-2]:
            raise UserError(f'there are {u.shape[1]} values at {x.shape[-2]} points')
        if torch.compiler.is_compiling():
            return u, self.stencil(x)
        distance = u[..., list(cfg.domain)].detach() if cfg.domain else None
        return u, self.stencil(x, of_mesh=True, distance=distance)

    @torch.no_grad()
    def stencil(self, points, of_mesh=False, distance=None):
        """points (P, d) or (B, P, d), physical coordinates -> PointStencil. of_mesh, distance: see
        Scattered.stencils_of_mesh, whose UserError it raises, and one for too few points."""
        cfg = self.cfg
        d = len(cfg.grid)
        n_point = points.shape[-2]
        if n_point <= fewest_points(d):
            raise UserError(f'{n_point} points are given; at least {fewest_points(d) + 1} are needed')
        x = points.to(self.grid_points.dtype).reshape(-1, n_point, d)
        x = self.in_cells(x)
        spline = int(is_sparse(n_point, cfg.grid))
        splines = self.splines[spline]
        index, weight = splines.stencils_of_mesh(x, distance) if of_mesh else splines.stencils(x)
        mean_weight = torch.zeros_like(x[..., 0])                    # (b, P)
        each = weight.mean(-1) / index.shape[1]                      # (b, M, K)
        mean_weight = mean_weight.scatter_add_(1, index.flatten(1), each.flatten(1))
        where = PointStencil(points, spline, index, weight, mean_weight[..., None])
        if not cfg.encoder_dim:
            return where
        others, prediction = self.splines[0].left_out(x)
        neighbours, offset, share = self.neighbours(x)
        return where._replace(others=others, prediction=prediction, neighbours=neighbours, offset=offset,
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
        """The points, of x (b, P, d) in cells, that each supernode sees: neighbours, offset and share of a
        PointStencil."""
        cfg = self.cfg
        n_point = x.shape[1]
        # Twice as many as lie within the radius if points are spread evenly; the nearest of more.
        n = min(n_point, 8 + math.ceil(2 * self.fraction * n_point))
        index, offset = nearest(self.centres, x, cfg.grid, cfg.periodic, n)
        square = offset.square().sum(-1)                             # (b, S_patch, n)
        last = min(n, 4) - 1                                         # at least so many are seen
        reach = 1.5 * square[..., last:last + 1]
        reach = reach.clamp_min(self.radius ** 2)
        share = (1 - square / reach).clamp_min(0)                    # goes to 0 where points enter and leave
        share = share / share.sum(-1, keepdim=True)
        return index, offset / self.radius, share

    def forward(self, u, where):
        """u (B, P, C), normalised values at the points of `where` -> (B, S, latent_dim)"""
        spline = self.splines[where.spline]
        with torch.autocast(u.device.type, enabled=False):
            grid = spline(u.to(where.weight.dtype), where.index, where.weight)
        if self.cfg.domain:                                          # fields are 0 outside, and so are their means
            inside = grid[..., list(self.cfg.domain)] > 0
            grid = grid.where(inside | self.is_static, 0.)
        z = self.patches.to_tokens(grid)
        if not self.cfg.encoder_dim:
            return z
        error = self.spline_error(u, where)
        size = error.square().mean((1, 2), keepdim=True).sqrt() + SMALLEST        # (B, 1, 1)
        x = self.supernode_features(torch.cat([u, error / size], -1), where)
        return (z + size * self.learned(x)).to(z.dtype)

    def spline_error(self, u, where):
        """Leave-one-out interpolation error at each point, (B, P, C)."""
        others = pick(u, where.others)                           # (B, P, K, C)
        return u - (where.prediction * others).sum(2)

    def supernode_features(self, u, where):
        """u (B, P, 2 C) -> (B, S_patch, D). The second layer of the message MLP is linear and acts on the
        mean."""
        values = pick(u, where.neighbours)                          # (B, S_patch, n, 2 C)
        offset = where.offset.expand(u.shape[0], -1, -1, -1)
        messages = F.gelu(self.stem(torch.cat([values, offset], -1)))
        mean = (where.share[..., None] * messages).sum(2)
        weights = self.stem.weight.dtype
        return self.pooled(mean.to(weights)).to(weights)
