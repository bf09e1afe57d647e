"""
The stages of a training: what each trains, and on what.

A stage is a module whose forward is the loss of a batch (data.Batch); `settings` holds the keys of train.py.
To add one, write such a module and name it in STAGES.
"""
import math

import torch
import torch.nn as nn

import pdes
import physics
from grids import fewest_points, fourier_interpolate, random_points, values_at
from losses import taken_by, weighted_sum
from metrics import space_of
from runtime.configurator import UserError

SAMPLES = 512                          # windows from which a flow takes the size of its features


# ---------------------------------------------------------------------------------------------
# noise, and query points

def with_noise(x, size):
    """x (B, ...) and white noise of `size` times the rms of each sample."""
    if not size:
        return x
    rms = x.square().mean(tuple(range(1, x.ndim)), keepdim=True).sqrt()
    return x + size * rms * torch.randn_like(x)


def with_coloured_noise(z, size):
    """z (B, K, S, D) and, in place of white noise, what another sample of the batch differs by from the mean
    over the batch: noise with the covariance of the latents themselves. The first sample is the neighbour of
    the last; of a batch of one there is none."""
    if not size:
        return z
    noise = (z - z.mean(0)).roll(1, 0).detach()
    return z + size * torch.randn(len(z), 1, 1, 1, device=z.device) * noise


def importance(y, periodic):
    """How likely a query point is drawn, (N,): half of it evenly, half as the gradient of the fields y (B, K,
    *grid, C) there."""
    square = 0.
    for axis in space_of(y):
        step = y.roll(-1, axis) - y
        if not periodic:
            step.narrow(axis, -1, 1).zero_()
        square = square + step.square()
    size = square.mean((0, 1, -1)).sqrt().flatten() + 1e-12
    return .5 / len(size) + .5 * size / size.sum()


# ---------------------------------------------------------------------------------------------
# what stages share

class Stage(nn.Module):
    """What stages share: the model, the settings, the weights of the losses, and rollouts in latent space."""
    losses = ()                       # names in LOSSES
    trains = ()                       # parts of the model; the rest is frozen
    part = ''                         # of model.PARTS: what the model has for this stage's sake
    by = 'operator'                   # of model.BY: what advances the rollouts that are validated
    n_members = 0                     # of each of these rollouts, if they differ by their noise
    latent_only = False               # does it need no more of a batch than tokens of a frozen encoder?

    def __init__(self, model, settings):
        super().__init__()
        self.model = model.train().requires_grad_(False)
        for name in self.trains:
            getattr(model, name).requires_grad_(True)
        self.settings = settings
        self.weights = {}
        n = settings.num_queries
        n_point = math.prod(model.cfg.grid)
        if n and (n > n_point or settings.lambda_spectral):
            raise UserError(f'num_queries={n} must be at most the {n_point} points of the grid, and leaves '
                            'no grid for the spectral loss: --lambda_spectral=0')
        if n and settings.query_strategy == 'anywhere' and not model.cfg.periodic:
            raise UserError('query_strategy=anywhere needs a periodic domain, where the truth between the '
                            'points of the grid is known: --query_strategy=stratified')
        if settings.cache_copies and not self.latent_only:
            raise UserError(f'cache_copies={settings.cache_copies} keeps tokens alone, but '
                            f'{type(self).__name__} needs fields: give it to a stage between tokens, as '
                            f'--residual_stage.cache_copies={settings.cache_copies}')
        least = fewest_points(len(model.cfg.grid))
        if model.cfg.encoder == 'points' and settings.input_points <= least:
            raise UserError(f'input_points={settings.input_points} must be more than {least}')
        for name in self.losses:
            if not hasattr(settings, 'lambda_' + name):
                raise UserError(f"the loss '{name}' has no weight: add lambda_{name} to the keys of train.py")
            self.weights[name] = getattr(settings, 'lambda_' + name)
        self.check_priors()

    def wants(self, *outputs):
        """Does a loss that has a weight take one of these outputs?"""
        return any(set(outputs) & set(taken_by(name)) for name, weight in self.weights.items() if weight)

    def check_priors(self):
        """Raise UserError for a weighted loss of physics.py that does not apply here."""
        s = self.settings
        cfg = self.model.cfg
        for name in physics.PRIORS:
            if not self.weights.get(name):
                continue
            entry = pdes.entry(cfg.pde)
            axes = physics.axes_of(self.model.points, cfg.grid)
            why = physics.why_not(name, entry, axes)
            if not why and name == 'conservation' and cfg.conserved and not cfg.log_clamp:
                why = 'with conserve=True every step keeps the integral as it is'
            if why:
                raise UserError(f'lambda_{name} does not apply to {cfg.pde}: {why}. Set --lambda_{name}=0')
            if s.num_queries or not cfg.periodic and s.query_stride != s.space_stride:
                raise UserError(f'lambda_{name} needs fields on the whole grid: --num_queries=0 and, between '
                                f'walls, query_stride = space_stride, or --lambda_{name}=0')

    def prepare(self, windows):
        """Before the first iteration: take from the data or other parts of the model what this one starts
        with. Does nothing to what has been trained already."""

    def check_unroll(self):
        """Raise UserError for settings from which `steps` would be longer than a window."""
        s = self.settings
        if s.unroll_start > s.unroll:
            raise UserError(f'unroll_start={s.unroll_start} is more than unroll={s.unroll}')

    def steps(self, progress):
        """How many latent steps are unrolled."""
        s = self.settings
        return s.unroll_start or s.unroll if progress < s.unroll_switch else s.unroll

    def encode(self, batch, first):
        """Tokens of the input frames that begin at frame `first` of the windows; `first` may be a list, for
        several encodings of a sample at once. -> (B, [K,] S, D)"""
        if batch.z is not None:
            return batch.z[:, first]
        batch = self.placed(batch)
        n = self.settings.input_frames
        if isinstance(first, int):
            return self.encoded(torch.cat(batch.u[:, first:first + n].unbind(1), -1), batch)
        frames = [torch.cat(batch.u[:, k:k + n].unbind(1), -1) for k in first]
        tokens = self.encoded(torch.stack(frames, 1).flatten(0, 1), batch)
        return tokens.unflatten(0, (len(batch.u), len(first)))

    def encoded(self, u, batch):
        """Tokens of fields u (n, *grid, C), of which an encoder of points sees the values at those of the
        batch."""
        cfg = self.model.cfg
        if batch.placement:
            u = values_at(u, batch.points, cfg.first, cfg.length, cfg.periodic)
        return self.model.encoder(u, batch.placement)

    def placed(self, batch):
        """The batch with what the encoder needs to know of its points. A forward that encodes more than once
        asks for it first."""
        if batch.points is None or batch.placement:
            return batch
        return batch._replace(placement=self.model.encoder.place(batch.points))

    def at_fewer_points(self, batch):
        """The batch with `num_queries` of its query points, drawn by `query_strategy`, in place of all:
        fields (B, window, Q, C) in y. Where some are drawn more often than others, y is scaled so that sums
        of squares are, in the mean, those over all points. 'anywhere' draws points between those of the grid,
        where the truth is the trigonometric interpolant."""
        s = self.settings
        n = s.num_queries
        if not n:
            return batch
        if s.query_strategy == 'anywhere':
            return self.anywhere(batch, n)
        y = batch.y.flatten(2, -2)
        n_point = y.shape[2]
        scale = torch.ones(n)
        if s.query_strategy == 'uniform':
            index = torch.randperm(n_point)[:n]
        elif s.query_strategy == 'stratified':                       # one in each of n equal parts
            index = ((torch.arange(n) + torch.rand(n)) * n_point / n).long().clamp_max(n_point - 1)
        else:
            share = importance(batch.y, self.model.cfg.periodic)
            index = torch.multinomial(share, n, replacement=True).cpu()
            scale = (n_point * share[index].cpu()).rsqrt()
        index = index.to(y.device)
        return batch._replace(q=batch.q[index], y=y[:, :, index], lift=batch.lift.flatten(2, -2),
                              scale=scale.to(y.device)[:, None])

    def anywhere(self, batch, n):
        cfg = self.model.cfg
        q = random_points(n, cfg).to(batch.q)
        y = fourier_interpolate(batch.y.flatten(0, 1), q, cfg.grid, batch.q[0], cfg.length)
        return batch._replace(q=q, y=y.unflatten(0, batch.y.shape[:2]), lift=batch.lift.flatten(2, -2))

    def decode(self, z, batch):
        """Latents (B, K, S, D) -> the whole fields at the batch's query points, (B, K, *grid or Q, C): what
        mean and moving frame have taken off is added, so that relative errors are those of the whole
        field."""
        s = self.settings
        is_grid = s.query_stride == s.space_stride and not s.num_queries
        u = self.model.decoder(z.flatten(0, 1), None if is_grid else batch.q)
        u = u.unflatten(0, z.shape[:2]).unflatten(2, batch.y.shape[2:-1])
        return (u + batch.lift) * batch.scale

    def truth(self, batch, first, n):
        """The true fields of n frames from frame `first` on, as decode has them."""
        return (batch.y[:, first:first + n] + batch.lift) * batch.scale

    def add_priors(self, outputs, start, field, truth, batch):
        """What the weighted losses of physics.py take: of the decoded fields (B, K, *grid, C) after the true
        frame `start` (B, 1, *grid, C), all as decode has them."""
        wanted = [name for name in physics.PRIORS if self.weights.get(name)]
        if not wanted:
            return
        entry = pdes.entry(self.model.cfg.pde)
        axes = physics.axes_of(batch.q, self.model.cfg.grid)
        std = self.model.std
        with torch.autocast(batch.y.device.type, enabled=False):
            p = (field * std).flatten(0, 1)                          # (B K, *grid, C), physical units
            y = (truth * std).flatten(0, 1)
            if 'conservation' in wanted:
                u0 = (start * std).expand_as(field).flatten(0, 1)
                outputs['gap'] = physics.conservation(p, u0, axes, entry)
            if 'boundary' in wanted:
                outputs['wall_defect'] = physics.boundary(p, y, axes, entry)
                outputs['true_wall_defect'] = physics.boundary(y, y, axes, entry)
            if 'divergence' in wanted:
                outputs['velocity_divergence'] = physics.relative_divergence(p, y, axes, entry)
            if 'residual' in wanted:
                steps = field.shape[1]
                dt = batch.dt.repeat_interleave(steps)
                values = batch.params.repeat_interleave(steps, 0).unbind(1)
                params = {key.lower(): value for key, value in zip(self.model.cfg.params, values)}
                pairs = self.consecutive(start, field, batch)
                true_pairs = self.consecutive(start, truth, batch)
                size = physics.rate(*true_pairs, dt, entry)
                outputs['residual'] = entry.residual(*pairs, dt, params, axes) / size
                outputs['true_residual'] = entry.residual(*true_pairs, dt, params, axes) / size

    def consecutive(self, start, fields, batch):
        """Frames and those that follow them, both (B K, *grid, C) in physical units. They are seen at rest:
        in a moving frame the equation holds for the fields that move along. The points by which the tokens
        have moved on are taken back."""
        cfg = self.model.cfg
        taken_off = batch.lift * self.model.std - self.model.mean
        u = torch.cat([start, fields], 1) * self.model.std - taken_off
        before = u[:, :-1].flatten(0, 1)
        after = u[:, 1:].flatten(0, 1)
        if cfg.token_shift:
            cells = [cfg.token_shift * step for step in cfg.direction]
            after = after.roll(cells, list(range(1, 1 + len(cells))))
        return before, after


# ---------------------------------------------------------------------------------------------
# the stages

class OperatorStage(Stage):
    """Encoder, operator and decoder together, on rollouts of a few latent steps from the encoding of true
    frames."""
    losses = ('field', 'spectral', 'latent', 'agreement', 'direction', 'latent_norm')
    losses += ('inverse_encoding', 'inverse_decoding')
    losses += physics.PRIORS
    trains = ('encoder', 'condition', 'operator', 'decoder')

    def __init__(self, model, settings):
        super().__init__(model, settings)
        s = settings
        if not (s.lambda_field or s.lambda_spectral or s.lambda_latent or s.lambda_agreement):
            raise UserError('nothing would train the operator: lambda_field, lambda_spectral, lambda_latent '
                            'or lambda_agreement must be positive')
        if model.cfg.decoder_dim and not (s.lambda_field or s.lambda_spectral or s.lambda_inverse_encoding):
            raise UserError('nothing would train the decoder: lambda_field, lambda_spectral or '
                            'lambda_inverse_encoding must be positive')
        self.check_unroll()

    def forward(self, batch, progress):
        """batch: windows of input_frames + unroll frames; progress: of the stage, 0 .. 1. -> loss, {name:
        value}"""
        s = self.settings
        m = self.model
        batch = self.placed(self.at_fewer_points(batch))
        steps = self.steps(progress)
        now = s.input_frames - 1                                     # the frame that a rollout starts from
        z = self.encode(self.noisy(batch), 0)
        latents = [z]
        condition = m.condition(batch.dt, batch.params)
        for step in range(steps):
            if step and not s.gradient_through_time:
                z = z.detach()
            z = m.operator(z, condition)
            latents.append(z)
        latents = torch.stack(latents, 1)                            # (B, 1 + K, S, D)
        outputs = {'latent': latents[:, 1:]}
        add_noise = with_coloured_noise if s.coloured_noise else with_noise
        decoded = add_noise(latents, s.latent_noise)
        if self.wants('reconstruction', 'start'):
            fields = self.decode(decoded, batch)
            outputs.update(field=fields[:, 1:], reconstruction=fields[:, :1], start=self.truth(batch, now, 1))
        else:
            outputs['field'] = self.decode(decoded[:, 1:], batch)
        outputs['truth'] = self.truth(batch, now + 1, steps)
        self.add_priors(outputs, self.truth(batch, now, 1), outputs['field'], outputs['truth'], batch)
        outputs.update(earlier=latents[:, :-1], advanced=latents[:, 1:2])
        if self.wants('target', 'before'):
            outputs.update(self.encodings(batch, steps))
        weights = dict(self.weights)
        due = batch.iteration % s.inverse_loss_frequency == 0
        ramp = min(1., progress / max(s.inverse_decoding_ramp, 1e-9)) if due else 0.
        for name in weights:
            if 'cycle' in taken_by(name):
                weights[name] *= ramp
        if due and self.wants('cycle'):
            frames = batch.u[:, 1:s.input_frames].unbind(1)
            outputs['cycle'] = m.cycle(latents[:, 1], frames, batch.placement)[:, None]
        return weighted_sum(outputs, weights)

    def encodings(self, batch, steps):
        """What the latents of `steps` steps are compared with: the encodings of the true frames and, where a
        loss takes them, of those before, (B, K, S, D) each."""
        relative = self.wants('before')                              # to the step that the truth makes
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.settings.detach_target):
            z = self.encode(batch, range(0 if relative else 1, steps + 1))
        return {'target': z[:, -steps:], 'before': z[:, :-1]} if relative else {'target': z}

    def noisy(self, batch):
        """Noise on the input frames, relative to their rms; what is compared with stays clean."""
        s = self.settings
        if not s.noise:
            return batch
        given = with_noise(batch.u[:, :s.input_frames], s.noise)
        return batch._replace(u=torch.cat([given, batch.u[:, s.input_frames:]], 1))


class DecoderStage(Stage):
    """The learned decoder alone, on latents of rollouts: encoder and operator are frozen, and the decoder
    learns to read what the operator really hands it. Errors of the latent itself stay; those of reading it
    get smaller."""
    losses = ('field', 'spectral', *physics.PRIORS)
    trains = ('decoder',)

    def __init__(self, model, settings):
        if not model.cfg.decoder_dim:
            raise UserError("the stage 'decoder' needs a learned decoder: --decoder_dim=64, or leave it out "
                            'of stages')
        super().__init__(model, settings)
        model.eval()                                                 # a rollout in use drops no paths either
        if not (settings.lambda_field or settings.lambda_spectral):
            raise UserError('nothing would train the decoder: lambda_field or lambda_spectral must be '
                            'positive')

    def forward(self, batch, progress):
        """As OperatorStage.forward; the windows are as long as the rollouts."""
        s = self.settings
        batch = self.placed(self.at_fewer_points(batch))
        with torch.no_grad():
            z = self.encode(batch, 0)
            latents = [z]
            condition = self.model.condition(batch.dt, batch.params)
            for _ in range(s.unroll):
                z = self.model.operator(z, condition)
                latents.append(z)
        fields = self.decode(torch.stack(latents, 1), batch)
        truth = self.truth(batch, s.input_frames - 1, s.unroll + 1)
        first = 1 if pdes.entry(self.model.cfg.pde).steady else 0    # its start is 0: no error is relative
        outputs = {'field': fields[:, first:], 'truth': truth[:, first:]}
        self.add_priors(outputs, truth[:, :1], fields[:, 1:], truth[:, 1:], batch)
        return weighted_sum(outputs, self.weights)


class ResidualStage(Stage):
    """
    A corrector: the flow of what the operator's step misses, E(u_{t+1}) - A(z), given z and A(z). Everything
    else is frozen. Where `unroll` is more than 1, z is a latent of the corrected model's own rollout, of
    less than so many steps, so that the flow learns to lead back from its own errors. Noise on z
    (condition_noise) makes it less sure of them. With a learned encoder it takes inverse decoding: else the
    latents of a rollout drift away from encodings, and to lead them back does harm.
    """
    losses = ('flow',)
    trains = ('corrector',)
    part = 'corrector'
    by = 'residual'
    latent_only = True

    def __init__(self, model, settings):
        super().__init__(model, settings)
        model.eval()
        self.flow = getattr(model, self.part)
        self.n_members = settings.members

    @torch.no_grad()
    def prepare(self, windows):
        if self.flow.network.head.weight.any():
            return
        index = torch.arange(0, windows.n_windows, max(1, windows.n_windows // SAMPLES))
        pairs = []
        for part in index.split(64):
            [batch] = windows.batches(part, 0)
            batch = self.placed(batch)
            condition = self.model.condition(batch.dt, batch.params)
            base, given = self.model.around_flow(self.encode(batch, 0), condition, self.by)
            pairs.append((self.encode(batch, 1) - base, given))
        x, given = [torch.cat(parts) for parts in zip(*pairs)]
        self.flow.fit(x, given)

    @torch.no_grad()
    def states(self, batch):
        """(z, steps, condition): latents that the flow is shown, after so many steps of its own rollout."""
        s = self.settings
        condition = self.model.condition(batch.dt, batch.params)
        steps = int(torch.randint(s.unroll, ()))
        z = self.encode(batch, 0)
        for _ in range(steps):
            z = self.model.next_tokens(z, condition, self.by, self.draw, s.flow_steps)
        return with_noise(z, s.condition_noise), steps, condition

    def draw(self, *shape):
        return torch.randn(*shape, device=self.model.device)

    def forward(self, batch, progress):
        """As OperatorStage.forward."""
        batch = self.placed(batch)
        z, steps, condition = self.states(batch)
        with torch.no_grad():
            base, given = self.model.around_flow(z, condition, self.by)
            x = self.encode(batch, steps + 1) - base
        tau = self.flow.draw_tau(len(x), self.settings.tau_shape).to(x.device, non_blocking=True)
        noise = torch.randn_like(x)
        prediction, target = self.flow.prediction_and_target(x, tau, noise, given, condition)
        return weighted_sum({'flow': prediction, 'flow_target': target}, self.weights)


class SteadyStage(ResidualStage):
    """A flow straight to the state that follows z, without the operator: E(u_{t+1}) - z given z, where z has
    moved on as the tokens do. It is meant for an equation whose only step leads to the steady state. Beside
    a regression, which gives one state, it gives the distribution of those that are possible."""
    trains = ('prior',)
    part = 'prior'
    by = 'steady'


class DistillStage(ResidualStage):
    """A student of the corrector, which goes in a step where the corrector goes in many. From every point
    that the teacher passes on its way from noise to a sample, the student is to find its end. The teacher
    takes as many steps as tau_schedule says, in equal parts of the stage."""
    losses = ('distill',)
    trains = ('student',)
    part = 'student'
    by = 'distill'

    def __init__(self, model, settings):
        if 'corrector' not in model.cfg.parts:
            raise UserError("the stage 'distill' needs the corrector of the stage 'residual' before it")
        order = settings.stages
        if 'residual' in order and order.index('residual') > order.index('distill'):
            raise UserError(f"stages={','.join(order)}: 'distill' learns from 'residual', which comes first")
        if not settings.tau_schedule:
            raise UserError('tau_schedule is empty: give the steps of the teacher, as 8 or 4,8')
        if model.cfg.flow_kind != 'flow':
            raise UserError(f"flow_kind='{model.cfg.flow_kind}' has no student: leave 'distill' out")
        super().__init__(model, settings)

    def prepare(self, windows):
        if not self.flow.network.head.weight.any():
            self.flow.load_state_dict(self.model.corrector.state_dict())

    def forward(self, batch, progress):
        """As OperatorStage.forward."""
        z, _, condition = self.states(self.placed(batch))
        schedule = self.settings.tau_schedule
        n_steps = schedule[min(int(progress * len(schedule)), len(schedule) - 1)]
        start = int(torch.randint(n_steps, ()))
        with torch.no_grad():
            _, given = self.model.around_flow(z, condition, self.by)
            noise = self.flow.project(torch.randn_like(z))
            begins, end = self.model.corrector.path(noise, given, condition, n_steps)
        outputs = {'end': self.flow.end(*begins[start], given, condition), 'end_of_teacher': end}
        return weighted_sum(outputs, self.weights)


class EnsembleStage(Stage):
    """The operator, steered by noise (arXiv 2506.10772, 2603.01949): a copy of it learns to make members
    whose decoded fields have the lowest fair CRPS, over rollouts of `unroll` steps. Encoder and decoder are
    frozen. It begins as the operator, whatever the noise."""
    losses = ('crps',)
    trains = ('ensemble',)
    part = 'ensemble'
    by = 'ensemble'

    def __init__(self, model, settings):
        if settings.members < 2:
            raise UserError(f'members={settings.members} must be at least 2')
        if settings.num_queries and settings.query_strategy == 'importance':
            raise UserError('query_strategy=importance weighs squares, and CRPS has none: '
                            '--query_strategy=stratified')
        super().__init__(model, settings)
        self.check_unroll()
        model.eval()
        self.n_members = settings.members

    def prepare(self, windows):
        ensemble = self.model.ensemble
        if not any(value.any() for name, value in ensemble.named_parameters() if '.noise.' in name):
            ensemble.load_state_dict(self.model.operator.state_dict(), strict=False)

    def forward(self, batch, progress):
        """As OperatorStage.forward."""
        s = self.settings
        m = self.model
        steps = self.steps(progress)
        batch = self.placed(self.at_fewer_points(batch))
        with torch.no_grad():
            z = self.encode(batch, 0).repeat_interleave(s.members, 0)
            condition = m.condition(batch.dt, batch.params).repeat_interleave(s.members, 0)
        latents = []
        for _ in range(steps):
            z = m.ensemble(z, condition, torch.randn(len(z), m.cfg.noise_dim, device=z.device))
            latents.append(z)
        latents = torch.stack(latents, 1).view(len(batch.u), -1, *z.shape[1:])      # (B, M K, S, D)
        members = self.decode(latents, batch).unflatten(1, (s.members, steps))
        return weighted_sum({'members': members, 'truth': self.truth(batch, s.input_frames, steps)},
                            self.weights)


STAGES = {'operator': OperatorStage, 'decoder': DecoderStage, 'residual': ResidualStage,
          'distill': DistillStage, 'ensemble': EnsembleStage, 'steady': SteadyStage}
