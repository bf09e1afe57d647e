"""
The model: a field is encoded to latent tokens, an operator advances them in time, a decoder reads the field
at any point. After the Universal Physics Transformer (UPT, arXiv 2402.12365), in one and two dimensions.

    from model import load
    m = load('out/burgers_cpu')                   # best weights; physical units in and out
    u = m.rollout(u0, steps=40)              # (B, *space, C) -> (B, 40, *space, C), all of it in latent space
    v = m.rollout(u0, steps=40, points=q)         # q (Q, d), anywhere in the domain -> (B, 40, Q, C)
    z = m.encode(u0); z = m.step(z); f = m.decode(z, q)
    w = m.rollout(values, steps=40, grid=x)  # with encoder='points': values (B, P, C) at any points x (P, d)

Shapes: B batch, N grid points, S tokens, D features of a token, C fields, Q query points, d = 1 or 2 space
dimensions. Order of the file: configuration, operator, container, checkpoints. What encodes and decodes is in
coders.py, attention, blocks and the transformer are in layers.py, flows in flows.py.
"""
import json
import math
import warnings
from dataclasses import asdict, dataclass, fields
from typing import NamedTuple

import torch
import torch.nn as nn

import peers
from coders import AnyPointDecoder, GridEncoder, PointEncoder
from flows import FLOWS, Student
from grids import Patches, positions, resample
from layers import Float32Linear, Transformer, divides, ones_at, outer
from runtime.checkpoint import find_checkpoint, load_checkpoint
from runtime.configurator import UserError

MAX_POINTS = 2 ** 22                  # no checkpoint may ask for more grid points or tokens,
MAX_WIDTH = 2 ** 14                   # features,
MAX_DEPTH = 2 ** 10                   # or blocks
BOUNDARIES = ('periodic', 'wall', 'open')
# What a model may have beyond encoder, operator and decoder: flows that correct the operator's step, in many
# steps or few; an operator that is steered by noise; a flow to the next state from the one before it.
PARTS = ('corrector', 'student', 'ensemble', 'prior')
# What may advance a latent: the operator alone, or what a stage of this name has trained.
BY = {'operator': '', 'residual': 'corrector', 'distill': 'student', 'ensemble': 'ensemble',
      'steady': 'prior'}
FLOW_STEPS = {'residual': 4, 'distill': 1, 'steady': 4}               # of a flow, where nothing else is said
LARGEST_SUM = 400.                     # of weights of points that surround what they interpolate


# ---------------------------------------------------------------------------------------------
# configuration

@dataclass
class ModelConfig:
    """Everything that shapes the network, as plain values; stored in every checkpoint as JSON types."""
    # the problem
    pde: str = 'burgers'                   # entry of pdes.py
    fields: tuple = ('u',)                 # names of the C physical fields
    params: tuple = ('Nu',)                # names of the PDE parameters
    seen_params: tuple = ((.01,),)         # values of each in training; the first is the default
    dt: float = .05                        # seconds a step
    grid: tuple = (128,)                   # points of the trained grid along each axis
    low: tuple = (0.,)                     # lower corner of the domain
    length: tuple = (1.,)                  # extent of the domain
    first: tuple = (.00048828125,)         # coordinate of the first grid point
    boundary: str = 'periodic'
    mean: tuple = (0.,)                    # of each field over the train part
    std: tuple = (1.,)
    translation: bool = True               # if it is periodic: are all places alike?
    drift: tuple = ()                      # if not: a direction in which they are, as (1, -1)
    static: tuple = ()                     # fields that a step leaves as they are
    positive: tuple = ()                   # fields that cannot be negative
    conserved: tuple = ()                  # fields whose integral a step keeps
    velocity: tuple = ()                   # field that is the velocity along each axis
    frame_speed: float = 0.                # of a moving frame, per unit of the mean velocity; 0: none
    # the latent
    input_frames: int = 1                  # frames that the encoder sees
    token_grid: tuple = (32,)              # latent tokens along each axis
    latent_dim: int = 64                   # features of a token
    token_shift: int = 0                   # grid points an axis by which the tokens move on every step
    # encoder and decoder
    encoder: str = 'grid'                  # what it sees: 'grid', values on the trained grid, or 'points'
    basis: str = 'cosine'                  # of the fixed part: 'cosine', or 'components' of the data
    patch_size: int = 4                    # grid points a patch and axis of the learned encoder
    halo: int = 2                          # grid points of the neighbours that a patch sees on each side
    encoder_dim: int = 64                  # width of the learned encoder; 0: none
    encoder_depth: int = 1
    decoder_dim: int = 64                  # width of the learned decoder; 0: none
    decoder_depth: int = 1
    log_clamp: float = 0.                  # threshold of the output log-clamp; 0: none
    # the operator
    arch: str = 'pure'                     # 'pure', 'u', or a peer
    attention: str = 'standard'            # 'standard' or 'channel'
    hidden_dim: int = 64
    depth: int = 4                         # blocks of the pure operator
    depths: tuple = (1, 1, 1)              # blocks of the U-shaped one: down ..., bottleneck, up ...
    n_head: int = 4                        # heads; with channel attention, heads in a group
    group_size: int = 16
    mlp_ratio: float = 2.
    drop_path: float = 0.                  # rate of the last block; it ramps up from 0
    cond_dim: int = 64
    layer_norm: bool = False
    checkpointing: bool = False            # recompute the operator's blocks in the backward pass
    # what later stages train
    parts: tuple = ()                      # of PARTS
    flow_dim: int = 64                     # width of a flow
    flow_depth: int = 3                    # its blocks
    flow_kind: str = 'flow'                # 'flow' (flow matching) or 'refiner'
    noise_dim: int = 32                    # random numbers that steer a step of the ensemble

    @staticmethod
    def choices():
        """{field: the names it may have}"""
        return {'arch': ('pure', 'u', *peers.NETWORKS),
                'attention': ('standard', 'channel'),
                'encoder': ('grid', 'points'),
                'basis': ('cosine', 'components'),
                'flow_kind': tuple(FLOWS)}

    @property
    def n_field(self):
        return len(self.fields)

    @property
    def periodic(self):
        return self.boundary == 'periodic'

    @property
    def uniform(self):
        """Are all places of the domain alike? Not between walls, nor where a force acts in one."""
        return self.periodic and self.translation

    @property
    def direction(self):
        """The direction in which tokens may move, one number an axis; empty if there is none."""
        return (1,) * len(self.grid) if self.uniform else tuple(self.drift)

    @property
    def scored(self):
        """Numbers of the fields that are predicted."""
        return tuple(field for field in range(self.n_field) if field not in self.static)

    @property
    def points_per_token(self):
        return tuple(n // s for n, s in zip(self.grid, self.token_grid))

    @property
    def moves(self):
        """Do the tokens move relative to the domain?"""
        return bool(self.frame_speed or self.token_shift)

    def token_centre(self, points):
        """Centre of the first token of so many grid points, along each axis, as a fraction of the domain."""
        centres = []
        for axis, n in enumerate(points):
            start = (self.first[axis] - self.low[axis]) / self.length[axis]
            centres.append(start + (n - 1) / 2 / self.grid[axis])
        return centres

    def check(self):
        """Raise UserError where the numbers do not fit together. What concerns one part is checked by that
        part: see check_config."""
        d = len(self.grid)
        for name, allowed in {**self.choices(), 'boundary': BOUNDARIES}.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"{name}='{getattr(self, name)}' is not one of {', '.join(allowed)}")
        if d not in (1, 2):
            raise UserError(f'a grid of {d} axes; 1 or 2 are supported')
        if not set(self.parts) <= set(PARTS):
            raise UserError(f'parts={self.parts} are not all among {", ".join(PARTS)}')
        if 'ensemble' in self.parts and self.arch in peers.NETWORKS:
            raise UserError(f"arch='{self.arch}' takes no noise, so it makes no ensemble: --arch=pure, or u")
        widths = (self.hidden_dim, self.encoder_dim, self.decoder_dim, self.latent_dim, self.flow_dim,
                  self.noise_dim)
        depths = (self.depth, sum(self.depths), self.encoder_depth, self.decoder_depth, self.flow_depth)
        n_point = max(math.prod(self.grid), math.prod(self.token_grid))
        if n_point > MAX_POINTS or max(widths) > MAX_WIDTH or max(depths) > MAX_DEPTH:
            raise UserError(f'larger than the limits of {MAX_POINTS} points, width {MAX_WIDTH} and depth '
                            f'{MAX_DEPTH}')
        for name in ('token_grid', 'low', 'length', 'first'):
            if len(getattr(self, name)) != d:
                raise UserError(f'{name}={getattr(self, name)} needs one entry for each of the {d} axes')
        if self.drift and len(self.drift) != d:
            raise UserError(f'drift={self.drift} needs one entry for each of the {d} axes')
        for name in ('mean', 'std'):
            if len(getattr(self, name)) != self.n_field:
                raise UserError(f'{name}={getattr(self, name)} needs one entry for each of the '
                                f'{self.n_field} fields')
        if len(self.params) != len(self.seen_params):
            raise UserError(f'{len(self.params)} parameters, but values of {len(self.seen_params)}')
        for n, s in zip(self.grid, self.token_grid):
            divides(s, n, f'the latent tokens of an axis must divide its grid of {n} points')
        sizes = (*self.grid, *self.token_grid, self.latent_dim, self.hidden_dim, self.depth)
        if min(sizes) < 1 or min(*self.length, *self.std) <= 0 or min(widths + depths) < 0:
            raise UserError(f'sizes must be positive: grid {self.grid}, tokens {self.token_grid}, widths '
                            f'{widths}, depths {depths}, length {self.length}, std {self.std}')
        for name in ('static', 'positive', 'conserved', 'velocity'):
            numbers = getattr(self, name)
            if not all(0 <= field < self.n_field for field in numbers):
                raise UserError(f'{name}={numbers} must be numbers of fields, below {self.n_field}')
        if not self.scored:
            raise UserError(f'static={self.static} leaves no field to be predicted')
        if self.frame_speed and not (self.uniform and self.input_frames == 1 and len(self.velocity) == d):
            raise UserError('a moving frame needs a periodic domain whose places are alike, one input frame '
                            'and a velocity along every axis: --moving_frame=false')
        if self.input_frames > 1 and not self.encoder_dim:
            raise UserError(f'input_frames={self.input_frames} needs a learned encoder, since its fixed part '
                            'holds the last frame alone: --encoder_dim=64')
        if self.encoder == 'points' and self.input_frames > 1:
            raise UserError(f"encoder='points' sees one frame, not {self.input_frames}: --input_frames=1")
        if self.token_shift:
            room = math.prod(self.points_per_token) * self.n_field
            learned = self.decoder_dim or self.encoder_dim and self.encoder == 'grid'
            linear = self.basis == 'components' and not learned
            holds_all = room <= self.latent_dim or linear            # or nearly so
            fits = 0 < self.token_shift < min(self.points_per_token) and holds_all
            if not (fits and self.periodic and self.direction and self.input_frames == 1):
                raise UserError(f'token_shift={self.token_shift} needs a periodic domain with places that '
                                f'are alike, one input frame, more points a token '
                                f'({min(self.points_per_token)}) and latent_dim={self.latent_dim} to be at '
                                f'least {room} (but for --basis=components): --token_shift=0')


# ---------------------------------------------------------------------------------------------
# operator

class Conditioning(nn.Module):
    """Time step and PDE parameters -> one vector (B, cond_dim)."""

    def __init__(self, cfg):
        super().__init__()
        self.numbers = outer(Float32Linear(1 + len(cfg.params), cfg.cond_dim))
        self.mlp = nn.Sequential(nn.SiLU(), outer(Float32Linear(cfg.cond_dim, cfg.cond_dim)), nn.SiLU())

    def forward(self, dt, params):
        """dt (B,) seconds, params (B, P) -> (B, cond_dim). Numbers enter by the signed log(1 + 1e4 |x|)."""
        x = torch.cat([dt[:, None], params], 1).float()
        x = x.sign() * torch.log1p(1e4 * x.abs()) / 10
        return self.mlp(self.numbers(x))


class Operator(nn.Module):
    """
    One step in latent space: A(z, c) = z + f(z, c). The last layer of f starts at zero, so an untrained
    operator is the identity (up to the shift below). f is the transformer of layers.py or, by `arch`, a peer
    of peers.py.

    The integral of a conserved field stays: the first features of a token are its means, and the mean of f
    over all tokens is taken off them (encoder and decoder do likewise with what they have learned). The
    features of a static field stay as they are. With `token_shift`, the tokens then move on by so many grid
    points, since tokens at rest on the field would repeat the same errors at every step.

    With noise_dim, f may be steered by a vector of noise, drawn anew for every step and member of an
    ensemble. Without one, or before that has been trained, it is the operator without noise.
    """

    def __init__(self, cfg, patches, noise_dim=0):
        super().__init__()
        self.patches = patches
        self.token_shift = tuple(cfg.token_shift * step for step in cfg.direction) if cfg.token_shift else ()
        if cfg.arch in peers.NETWORKS:
            self.network = peers.NETWORKS[cfg.arch](cfg)
        else:
            self.network = Transformer(cfg, noise_dim=noise_dim)
        self.register_buffer('conserved', ones_at(cfg.conserved, cfg.latent_dim), persistent=False)
        self.has_static = bool(cfg.static)
        free = torch.ones(cfg.latent_dim)
        room = math.prod(cfg.points_per_token) * cfg.n_field     # features beyond these hold no field
        for field in cfg.static:
            free[field:room:cfg.n_field] = 0.
        self.register_buffer('free', free, persistent=False)

    def forward(self, z, cond, *noise):
        """z (B, S, latent_dim), cond (B, cond_dim), noise (B, noise_dim) or none -> the tokens one step
        later, float32"""
        change = self.network(z, cond, *noise)
        if self.has_static:
            change = change * self.free
        return self.moved(z + change - self.conserved * change.mean(1, keepdim=True))

    def moved(self, z):
        """The tokens, moved on by token_shift."""
        return self.patches.shift(z, self.token_shift) if self.token_shift else z


# ---------------------------------------------------------------------------------------------
# container

class Latent(NamedTuple):
    """A latent is tokens and the frame that they live in."""
    tokens: torch.Tensor                   # (B, S, D): what encoder, operator and decoder see
    mean: torch.Tensor            # (B, C): taken off the fields on entry, put back on exit; 0 without a frame
    offset: torch.Tensor                   # (B, d): distance that the tokens have moved, physical units


class UPT(nn.Module):
    """
    Encoder E, operator A and decoder D, with the normalisation of the data inside.

    With `frame_speed`, the mean of a velocity is taken off the field and the rest is advanced in the frame
    that moves along (Galilean invariance, exact at any speed because the decoder reads at any point). E, A
    and D themselves see normalised fields and tokens; stages.py calls them for training, the methods below
    for use.
    """

    def __init__(self, cfg):
        super().__init__()
        cfg.check()
        self.cfg = cfg
        patches = Patches(cfg)
        self.encoder = (PointEncoder if cfg.encoder == 'points' else GridEncoder)(cfg, patches)
        self.condition = Conditioning(cfg)
        self.operator = Operator(cfg, patches)
        self.decoder = AnyPointDecoder(cfg, patches)
        if 'corrector' in cfg.parts:
            self.corrector = FLOWS[cfg.flow_kind](cfg, 2)            # of E(u+) - A(z), given z and A(z)
        if 'student' in cfg.parts:
            self.student = Student(cfg, 2)                           # of the corrector
        if 'ensemble' in cfg.parts:
            self.ensemble = Operator(cfg, patches, cfg.noise_dim)
        if 'prior' in cfg.parts:
            self.prior = FLOWS[cfg.flow_kind](cfg, 1)                # of E(u+) - z, given z
        frame = torch.zeros(cfg.n_field, len(cfg.grid))       # velocity of the frame per unit of a mean field
        if cfg.frame_speed:
            for axis, field in enumerate(cfg.velocity):
                frame[field, axis] = cfg.frame_speed
        moves_with = frame.ne(0).any(1).float()              # (C,): 1 for a velocity that the frame takes off
        spacing = torch.tensor(cfg.length) / torch.tensor(cfg.grid)
        token_step = cfg.token_shift * spacing * torch.tensor(cfg.direction or [0] * len(cfg.grid))
        least = torch.full((cfg.n_field,), -math.inf)
        least[list(cfg.positive)] = 0.
        buffers = {'mean': torch.tensor(cfg.mean), 'std': torch.tensor(cfg.std),
                   'frame': frame, 'moves_with': moves_with, 'token_step': token_step, 'least': least,
                   'low': torch.tensor(cfg.low), 'length': torch.tensor(cfg.length)}
        for name, value in buffers.items():
            self.register_buffer(name, value.float(), persistent=False)

    def n_params(self):
        return sum(p.numel() for p in self.parameters())

    @property
    def device(self):
        return self.mean.device

    @property
    def points(self):
        """Coordinates of the trained grid's points, (N, d)."""
        return self.decoder.points

    def grid(self, *shape):
        """Coordinates of the trained kind of grid with `shape` points along the axes, (N, d), row-major. It
        starts at the trained grid's first coordinate; without arguments it is the trained grid. Between
        walls, where that would leave the domain, points are the centres of equal cells."""
        cfg = self.cfg
        shape = shape or cfg.grid
        if len(shape) != len(cfg.grid):
            raise UserError(f'a grid of {len(cfg.grid)} axes was trained, not {len(shape)}')
        first = []
        spacing = []
        for axis, n in enumerate(shape):
            cell = cfg.length[axis] / n
            fits = cfg.periodic or cfg.first[axis] - cfg.low[axis] < .99 * cell
            first.append(cfg.first[axis] if fits else cfg.low[axis] + cell / 2)
            spacing.append(cell)
        return positions(shape, first, spacing)

    # ---- encode, step, decode: physical units in and out

    def encode(self, u, grid=None):
        """u (B, *space, C), or (B, input_frames, *space, C) for several, on m.grid(*space) or on the 1D
        points `grid` (N,) or (N, 1) -> Latent. Other grids are resampled to the trained one by cubic
        interpolation, which leaves points that both share as they are. With encoder='points', u may be values
        (B, P, C) at any points `grid` (P, d) or (B, P, d). Raises UserError for a wrong shape, values that
        are not finite, and points that leave a part of the domain out."""
        return self._encode(*self._given(u, grid))

    def step(self, z, params=None, dt=None, by='operator', draw=None, flow_steps=0):
        """One step of `dt` seconds (default: that of training) in latent space, Latent -> Latent. params:
        {'Nu': .01}, a number or (B,) each. by: what advances it (BY). All but the operator draw noise from
        `draw`, one m.draws(seed) for a whole rollout."""
        if self.check_by(by) != 'operator' and draw is None:
            raise UserError(f"a step by '{by}' draws noise: give all of a rollout one draw=m.draws(seed)")
        cond, dt = self.condition_and_dt(len(z.tokens), params, dt)
        return self.advance(z, cond, dt, by, draw, flow_steps)

    def draws(self, seed):
        """A function (*shape) -> Gaussian noise on the device; it goes on from call to call, alike on every
        device."""
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=generator).to(self.device)

        return draw

    def decode(self, z, points=None, cut=True):
        """Latent -> the fields at points (Q, d) or (B, Q, d), (B, Q, C); without points, on the trained grid,
        (B, *grid, C). With cut=False, fields that cannot be negative are left as they come.
        Raises UserError for a point outside a domain that is not periodic."""
        if not isinstance(z, Latent):
            raise UserError(f'decode takes a Latent, as encode and step return it, not {type(z).__name__}')
        if points is None:
            return self._decode(z, cut=cut).unflatten(1, self.cfg.grid)
        return self._decode(z, self._check_points(points, len(z.tokens)), cut)

    @torch.no_grad()
    def rollout(self, u0, steps, points=None, params=None, dt=None, grid=None, reencode=False, by='operator',
                members=0, seed=0, flow_steps=0):
        """
        Advance u0 by `steps` steps and decode every one of them. (For gradients through a rollout, call
        encode, step and decode yourself.)

        u0 (B, *space, C) on m.grid(*space), or on the points `grid`, as encode takes them; points (Q, d):
        where to decode (default: the points of u0). Encoded once, then advanced in latent space; with
        reencode=True every step is decoded where the encoder sees it and encoded again. params {'Nu': .01}
        and dt in seconds default to those of training. Returns (B, steps, *space, C), or (B, steps, Q, C)
        with points or grid.

        by: what advances the latent: the 'operator' alone or what a later stage has trained, 'residual',
        'distill', 'ensemble' or 'steady'; flow_steps: of a flow in a step, 0 for those of FLOW_STEPS. With
        `members`, so many rollouts of each sample, which differ by their noise: (B, members, steps, ...).
        """
        if steps < 1:
            raise UserError(f'steps={steps} must be at least 1')
        if members:
            u0 = torch.as_tensor(u0).repeat_interleave(members, 0)
            points = repeated(points, members, 3)
            grid = repeated(grid, members, 3)
            params = {name: repeated(value, members, 1) for name, value in (params or {}).items()}
            dt = repeated(dt, members, 1)
            u = self.rollout(u0, steps, points, params, dt, grid, reencode, by, 0, seed, flow_steps)
            return u.unflatten(0, (-1, members))
        by = self.check_by(by)
        draw = self.draws(seed)
        frames, placement = self._given(u0, grid)
        cond, dt = self.condition_and_dt(len(frames), params, dt)
        space = None
        if points is not None:
            q = self._check_points(points, len(frames))
        elif grid is not None:
            q = self._check_points(self._coordinates(grid), len(frames))
        else:
            space = tuple(u0.shape[-len(self.cfg.grid) - 1:-1])
            q = None if space == tuple(self.cfg.grid) else self.grid(*space).to(self.device)
        out = []
        z = self._encode(frames, placement)
        for _ in range(steps):
            z = self.advance(z, cond, dt, by, draw, flow_steps)
            out.append(self._decode(z, q))
            if reencode and len(out) < steps:
                new = self._decode(z, placement.points) if placement else self.decode(z)
                frames = torch.cat([frames[:, 1:], new[:, None]], 1)
                z = self._encode(frames, placement)
        u = torch.stack(out, 1)                                      # (B, steps, Q, C)
        return u.unflatten(2, space) if space else u

    # ---- the same without checks; nothing here waits for the device

    def cycle(self, tokens, earlier=(), placement=None):
        """E(D(z)): tokens (B, S, D), decoded where the encoder sees a field (its own grid, or a placement of
        its points; without one, those of the grid) and encoded again, after the `earlier` normalised frames
        of a model that sees several. Tokens that moved on stay where they are."""
        if self.cfg.encoder == 'points':
            placement = placement or self.encoder.place(self.points)
            return self.encoder(self.decoder(tokens, placement.points), placement)
        u = self.decoder(tokens).unflatten(1, self.cfg.grid)
        return self.encoder(torch.cat([*earlier, u], -1))

    def _encode(self, u, placement=None):
        """u (B, input_frames, *grid, C) on the trained grid, or (B, 1, P, C) at a placement -> Latent"""
        space = tuple(range(2, u.ndim - 1))
        mean = (placement.part * u[:, 0]).sum(1) if placement else u.mean((1, *space))
        mean = mean * self.moves_with                                # (B, C)
        u = u - mean.view(len(u), 1, *[1] * len(space), -1)
        frames = ((u - self.mean) / self.std).unbind(1)
        tokens = self.encoder(torch.cat(frames, -1), placement)
        return Latent(tokens, mean, mean.new_zeros(len(u), len(self.cfg.grid)))

    def advance(self, z, cond, dt, by, draw, flow_steps):
        """cond and dt as condition_and_dt gives them."""
        travelled = z.mean @ self.frame * dt[:, None]                # (B, d)
        tokens = self.next_tokens(z.tokens, cond, by, draw, flow_steps)
        return Latent(tokens, z.mean, z.offset + travelled + self.token_step)

    def next_tokens(self, tokens, cond, by='operator', draw=None, flow_steps=0):
        """tokens (B, S, D) -> those one step later, by any of BY."""
        steps = flow_steps or FLOW_STEPS.get(by)
        if by == 'ensemble':
            return self.ensemble(tokens, cond, draw(len(tokens), self.cfg.noise_dim))
        if by == 'operator':
            return self.operator(tokens, cond)
        base, given = self.around_flow(tokens, cond, by)
        flow = getattr(self, BY[by])
        return base + flow.sample(given, cond, steps, draw)

    def around_flow(self, tokens, cond, by):
        """What the flow of a step is added to, (B, S, D), and what it is given, (B, S, n_given D)."""
        if by == 'steady':
            moved = self.operator.moved(tokens)
            return moved, tokens
        advanced = self.operator(tokens, cond)
        return advanced, torch.cat([tokens, advanced], -1)

    def check_by(self, by):
        if by not in BY:
            raise UserError(f"by='{by}' is not one of {', '.join(BY)}")
        if BY[by] and BY[by] not in self.cfg.parts:
            raise UserError(f"this model has no {BY[by]}: train it with the stage '{by}'")
        return by

    def _decode(self, z, q=None, cut=True):
        """q (Q, d) or (B, Q, d) on the device, or None for the trained grid -> (B, Q, C)"""
        if q is None and not self.cfg.moves:
            return self._physical(self.decoder(z.tokens), z, cut)
        q = self.points if q is None else q
        if self.cfg.moves:
            # (B, Q, d) in the frame of the tokens
            q = q - z.offset.to(q.dtype).nan_to_num(0., 0., 0.)[:, None]
        if self.cfg.periodic:
            q = self.low + (q - self.low) % self.length              # x = 1 is x = 0
        return self._physical(self.decoder(z.tokens, q.float()), z, cut)

    def _physical(self, u, z, cut=True):
        """Normalised fields (B, Q, C) -> physical units. A field that cannot be negative is cut off at zero,
        which is never further from a truth that is not negative either."""
        u = u * self.std + self.mean + z.mean[:, None]
        return self.cut(u) if cut else u

    def cut(self, u):
        """Fields u (..., C) in physical units, those that cannot be negative cut off at zero."""
        return torch.maximum(u, self.least) if self.cfg.positive else u

    def _check_points(self, points, n_sample):
        """Query points (Q, d) or (B, Q, d) of any kind -> on the device, in double precision where it has
        that."""
        d = len(self.cfg.grid)
        q = torch.as_tensor(points)
        if q.ndim not in (2, 3) or q.shape[-1] != d:
            raise UserError(f'points have shape {tuple(q.shape)}; expected (Q, {d}) or (B, Q, {d})')
        if q.ndim == 3 and len(q) != n_sample:
            raise UserError(f'points for {len(q)} samples, latents of {n_sample}')
        if not torch.isfinite(q).all():
            raise UserError('some query points are not finite')
        low = self.low.to(q.device)
        outside = (q < low) | (q > low + self.length.to(q.device))
        if not self.cfg.periodic and outside.any():
            raise UserError(f'some query points lie outside the domain {self.cfg.low} + {self.cfg.length}')
        wide = torch.float32 if self.device.type == 'mps' else torch.float64
        return q.to(wide).to(self.device)

    def condition_and_dt(self, n_sample, params, dt):
        """What the operator is told (B, cond_dim), and the time step (B,)."""
        cfg = self.cfg
        values = {name: seen[0] for name, seen in zip(cfg.params, cfg.seen_params)}
        for name, value in (params or {}).items():
            if name not in values:
                known = ', '.join(cfg.params) or 'none'
                raise UserError(f"unknown parameter '{name}': this model knows {known}")
            values[name] = value
        given = {name: (value,) for name, value in values.items() if isinstance(value, (int, float))}
        note = unseen(cfg, given)
        if note:
            warnings.warn(note, stacklevel=3)
        dt = self._per_sample(cfg.dt if dt is None else dt, n_sample)
        numbers = [self._per_sample(values[name], n_sample) for name in cfg.params]
        numbers = torch.stack(numbers, 1) if numbers else dt.new_zeros(n_sample, 0)
        return self.condition(dt, numbers), dt

    def _per_sample(self, value, n_sample):
        value = torch.as_tensor(value).float().to(self.device)
        if value.ndim > 1 or value.ndim == 1 and len(value) != n_sample:
            shape = tuple(value.shape)
            raise UserError(f'a parameter has shape {shape}; expected one value or ({n_sample},)')
        return value.expand(n_sample)

    def _coordinates(self, grid):
        """`grid` as encode takes it, with an axis for the coordinates."""
        grid = torch.as_tensor(grid)
        return grid[:, None] if grid.ndim == 1 else grid

    def _given(self, u, grid=None):
        """u as encode takes it -> what the encoder sees of it, on the device: (B, input_frames, *grid, C) on
        the trained grid and None, or (B, 1, P, C) and a Placement."""
        cfg = self.cfg
        if cfg.encoder == 'grid':
            return self._on_grid(u, grid), None
        u = torch.as_tensor(u).float()
        d = len(cfg.grid)
        if u.ndim != (d + 2 if grid is None else 3):
            expected = '(B, *space, C)' if grid is None else '(B, P, C)'
            raise UserError(f'u has shape {tuple(u.shape)}; expected {expected} with {d} space axes')
        if grid is None:
            points = self.grid(*u.shape[1:-1])
            u = u.flatten(1, -2)
        else:
            points = self._coordinates(grid)
        points = self._check_points(points, len(u))
        if u.shape[1:] != (points.shape[-2], cfg.n_field):
            raise UserError(f'u has shape {tuple(u.shape)}; expected (B, {points.shape[-2]}, {cfg.n_field}), '
                            'values at so many points')
        if u.device.type == 'cpu' and not torch.isfinite(u).all():
            raise UserError('u holds values that are not finite')
        placement = self.encoder.place(points)
        largest = placement.weight.abs().sum(-2).amax()
        if not largest < LARGEST_SUM:
            raise UserError(f'the {points.shape[-2]} points leave a part of the domain out, or lie on a '
                            'line: no field can be interpolated from them')
        return u.to(self.device)[:, None], placement

    def _on_grid(self, u, grid=None):
        """u as encode takes it -> (B, input_frames, *grid, C) on the trained grid and device."""
        cfg = self.cfg
        d = len(cfg.grid)
        if grid is not None and d != 1:
            raise UserError("with encoder='grid', points of their own are supported in 1D; in 2D give u on "
                            "m.grid(nx, ny), or train with encoder='points'")
        u = torch.as_tensor(u).float()
        if cfg.input_frames == 1 and u.ndim == d + 2:
            u = u[:, None]
        if u.ndim != d + 3 or u.shape[1] != cfg.input_frames or u.shape[-1] != cfg.n_field:
            frames = f'{cfg.input_frames}, ' if cfg.input_frames > 1 else ''
            expected = f'(B, {frames}*space, {cfg.n_field})'
            raise UserError(f'u has shape {tuple(u.shape)}; expected {expected} with {d} space axes')
        if u.device.type == 'cpu' and not torch.isfinite(u).all():
            raise UserError('u holds values that are not finite')
        u = u.to(self.device)
        space = tuple(u.shape[2:-1])
        if grid is None and space == tuple(cfg.grid):
            return u
        for axis in range(d):
            x = self._axis(axis, space[axis])
            if grid is not None:
                x = self._covering(grid)
            if len(x) != space[axis]:
                raise UserError(f'{len(x)} coordinates for {space[axis]} values')
            period = cfg.length[axis] if cfg.periodic else None
            u = resample(u.movedim(2 + axis, -1), x, self._axis(axis, cfg.grid[axis]), period)
            u = u.movedim(-1, 2 + axis)
        return u

    def _covering(self, grid):
        """1D points `grid` as encode takes them -> (N,). Raises UserError where they leave out a third of the
        domain."""
        low = self.cfg.low[0]
        length = self.cfg.length[0]
        x = self._check_points(self._coordinates(grid), 1).flatten()
        places = x - low
        if self.cfg.periodic:
            places = (places % length).sort().values
            ends = [places[-1:] - length, places]
        else:
            ends = [places.new_zeros(1), places.sort().values, places.new_full((1,), length)]
        gap = float(torch.cat(ends).diff().max())
        if gap > length / 3:
            raise UserError(f'the {len(x)} points leave a part of the domain out, {gap:.3g} of {length:g}')
        return x.float()

    def _axis(self, axis, n):
        """Coordinates along one axis of m.grid with n points there."""
        shape = [1] * len(self.cfg.grid)
        shape[axis] = n
        return self.grid(*shape)[:, axis].to(self.device)


def repeated(value, times, ndim):
    """`value` with its first axis repeated, if it has `ndim` axes: if it differs from sample to sample."""
    if value is None or torch.as_tensor(value).ndim < ndim:
        return value
    return torch.as_tensor(value).repeat_interleave(times, 0)


# ---------------------------------------------------------------------------------------------
# checkpoints

def check_config(cfg):
    """Raise UserError where a configuration cannot be built; allocates nothing."""
    cfg.check()
    with torch.device('meta'):
        return UPT(cfg)


def model_args(cfg):
    """A ModelConfig as JSON types."""
    return json.loads(json.dumps(asdict(cfg)))


def tuples(value):
    """JSON's lists as the tuples that they were."""
    return tuple(tuples(item) for item in value) if isinstance(value, list) else value


def build(args, weights, path, fresh=()):
    """A UPT from a checkpoint's arguments and weights; sizes are compared before anything is allocated. The
    weights of `fresh` parts are those of a new model."""
    known = {field.name for field in fields(ModelConfig)}
    unknown = set(args) - known
    if unknown:
        raise UserError(f"'{path}' names unknown model arguments: {', '.join(sorted(unknown))}")
    cfg = ModelConfig(**{name: tuples(value) for name, value in args.items()})
    shapes = {name: value.shape for name, value in check_config(cfg).state_dict().items()}
    given = {name for name in shapes if name.split('.')[0] not in fresh}
    wrong = [name for name in given | weights.keys()
             if name not in weights or name not in shapes or weights[name].shape != shapes[name]]
    if wrong:
        raise UserError(f"'{path}': weights and model arguments disagree at {', '.join(sorted(wrong)[:4])}")
    model = UPT(cfg)
    model.load_state_dict({**model.state_dict(), **weights})
    return model


# what may change when a run goes on, or is fine-tuned
FREE_ARGS = {'encoder', 'checkpointing', 'mean', 'std', 'seen_params', 'drop_path', 'token_shift', 'parts'}
OF_PARTS = {'flow_dim', 'flow_depth', 'flow_kind', 'noise_dim'}                 # of the parts of later stages


def rebuild(cfg, state, path, averaged):
    """The model of a checkpoint, to be trained on under the configuration `cfg`. It keeps the mean and scale
    that its weights are used to, and the parts that it has for other stages. An argument that the checkpoint
    does not know yet counts as having had its default. `state` gets the weights of parts that are new, so
    that a run can go on with them. Raises UserError for another architecture."""
    then = {**model_args(ModelConfig()), **state['model_args']}
    args = model_args(cfg)
    free = FREE_ARGS if then['parts'] else FREE_ARGS | OF_PARTS
    differ = [f'{name}: {then[name]!r} there, {value!r} now' for name, value in args.items()
              if then[name] != value and name not in free]
    if differ:
        raise UserError(f"the model of '{path}' is another one ({'; '.join(differ)})")
    fresh = [part for part in args['parts'] if part not in then['parts']]
    args.update(mean=then['mean'], std=then['std'], parts=then['parts'] + fresh)
    model = build(args, state['ema' if averaged else 'model'], path, fresh)
    for key in {'model', 'ema'} & set(state):
        state[key] = {**of_parts(model, fresh), **state[key]}
    return model


def of_parts(model, parts):
    """The weights of some parts of a model by name."""
    weights = model.state_dict()
    return {name: weights[name] for name in weights if name.split('.')[0] in parts}


def with_encoder(args, encoder, path):
    """A checkpoint's arguments with another encoder, if one is given. Raises UserError if that has to be
    learned."""
    encoder = encoder or args.get('encoder', 'grid')
    if encoder != args.get('encoder', 'grid') and args.get('encoder_dim'):
        raise UserError(f"'{path}' has learned to encode what it was trained on: only without a learned "
                        f"encoder can that be changed; train with --encoder={encoder}")
    return {**args, 'encoder': encoder}


def load(path, device='cpu', ema=True, encoder=None):
    """The model of a run folder (best weights) or checkpoint file, ready for use: in evaluation mode, and
    without gradients of its weights (model.requires_grad_(True) brings them back). With encoder='points', a
    model that was trained on a grid takes values at any points; its encoder must not be learned."""
    file = find_checkpoint(path)
    state = load_checkpoint(file)
    model = build(with_encoder(state['model_args'], encoder, file), state['ema' if ema else 'model'], file)
    return model.to(device).eval().requires_grad_(False)


def unseen(cfg, params):
    """A sentence on parameter values {name: numbers} that the model was not trained with; empty if there are
    none."""
    notes = []
    for name, seen in zip(cfg.params, cfg.seen_params):
        new = [v for v in params.get(name, ()) if not any(math.isclose(v, s, rel_tol=1e-4) for s in seen)]
        if new:
            values = ', '.join(f'{v:g}' for v in sorted(set(new)))
            known = ', '.join(f'{s:g}' for s in seen)
            notes.append(f'{name}={values} was never seen in training ({known} was)')
    return '; '.join(notes)
