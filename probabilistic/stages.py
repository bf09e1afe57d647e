"""
The later stages. Each trains a stepper of its own name; encoder, operator and decoder are frozen.

    python train.py config/ks_full.py    # stages: operator, diff_residual, consistency_distill, ensemble
"""
import torch

from losses import Stage, mean_square
from probabilistic.cache import CachedWindows, check_room
from probabilistic.scores import crps, crps_loss
from runtime.configurator import UserError
from runtime.device import ALIKE, seed_of

SAMPLES = 512                          # windows from which a flow takes the size of its features
TAU_SHAPE = 1.2                        # a flow is trained at times drawn from Beta(1.2, 1.2)


def gaussian(device):
    """A function (*shape) -> Gaussian numbers from torch's global generator."""
    def noise(*shape):
        return torch.randn(*shape, device=device)

    return noise


class LaterStage(Stage):
    """What the later stages share: only their stepper is trained, and ensembles are validated by CRPS."""
    score = 'relative CRPS'

    def __init__(self, model, settings):
        super().__init__(model, settings)
        if settings.n_members < 2:
            raise UserError(f'n_members={settings.n_members} must be at least 2')
        model.eval()                                                 # no drop path in frozen parts
        self.module = getattr(model, self.stepper)
        self.n_members = settings.n_members

    def error(self, p, y):
        return crps(p, y)


class DiffResidualStage(LaterStage):
    """
    A corrector: flow matching of the operator's residual, E(u_{t+1}) - A(z), given z and A(z).

    With unroll above 1, z is a latent of the corrected model's own rollout, of fewer than `unroll` steps. So
    the flow learns to correct its own errors. With a learned encoder, train the operator with inverse
    decoding. Without that, rolled-out latents leave the range of the encoder and the corrector makes the
    rollout worse.
    """
    trains = ('diff_residual',)
    stepper = 'diff_residual'
    defaults = {'max_iters': 2000, 'unroll': 4}
    latent_only = True

    def __init__(self, model, settings):
        super().__init__(model, settings)
        if settings.flow_steps < 1:
            raise UserError(f'flow_steps={settings.flow_steps} must be at least 1')
        self.flow = self.module.flow                                 # what is trained
        self.module.n_steps = settings.flow_steps

    def checked(self, sources):
        if self.settings.cache_copies:
            check_room(self, sources)
        return self

    @torch.no_grad()
    def prepare(self, windows, machine):
        if self.settings.cache_copies:
            windows = CachedWindows(windows, self, machine)
        if not self.flow.network.head.weight.any():                  # not trained yet
            self.fit(windows)
        return windows

    def fit(self, windows):
        """Before the training of a flow: scale its features."""
        index = torch.arange(0, windows.n_windows, max(1, windows.n_windows // SAMPLES))
        pairs = []
        for part in index.split(64):
            [batch] = windows.batches(part, 0)
            condition = self.model.condition(batch.dt, batch.params)
            base, context = self.module.base_and_context(self.tokens(batch, 0), condition)
            pairs.append((self.tokens(batch, 1) - base, context))
        x, context = [torch.cat(parts) for parts in zip(*pairs)]
        self.flow.fit(x, context)

    def tokens(self, batch, k):
        """Encodings of frame k of the windows, (B, S, D), from the cache if there is one."""
        return self.encode(batch.u[:, k], batch) if batch.z is None else batch.z[:, k]

    def random(self, batch):
        """The generator of the numbers of steps of an iteration. They are the same in all processes and
        micro-batches, since an iteration takes as long as the slowest process."""
        return torch.Generator().manual_seed(seed_of(self.settings.seed, batch.iteration, ALIKE))

    @torch.no_grad()
    def states(self, batch, random):
        """Latents (B, S, D) after a random number of steps of the model's own rollout, this number, and the
        condition of the steps."""
        condition = self.model.condition(batch.dt, batch.params)
        steps = int(torch.randint(self.settings.unroll, (), generator=random))
        z = self.tokens(batch, 0)
        for _ in range(steps):
            z = self.module(z, condition, gaussian(z.device))
        return z, steps, condition

    def forward(self, batch, progress):
        """As OperatorStage.forward."""
        z, steps, condition = self.states(batch, self.random(batch))
        with torch.no_grad():
            base, context = self.module.base_and_context(z, condition)
            x = self.tokens(batch, steps + 1) - base
        tau = torch.distributions.Beta(TAU_SHAPE, TAU_SHAPE).sample((len(x),))
        noise = torch.randn_like(x)
        velocity, true_velocity = self.flow.prediction_and_target(
            x, tau.to(x.device, non_blocking=True), noise, context, condition)
        loss = mean_square(velocity, true_velocity)
        return loss, {'flow_loss': loss.detach()}


class SteadyPriorStage(DiffResidualStage):
    """A flow from z to the next state, E(u_{t+1}) - z given z, without the operator: for an equation whose
    only step leads to the steady state. A regression gives one state; the flow gives their distribution."""
    trains = ('steady_prior',)
    stepper = 'steady_prior'
    defaults = {'max_iters': 2000, 'unroll': 1}


class ConsistencyDistillStage(DiffResidualStage):
    """A one-step student of the corrector (arXiv 2303.01469). From every point of the teacher's trajectory
    from noise to a sample, the student learns to predict the end. tau_schedule holds the number of the
    teacher's steps, one for each of equal parts of the stage."""
    trains = ('consistency_distill',)
    stepper = 'consistency_distill'
    defaults = {'max_iters': 1000, 'unroll': 4, 'flow_steps': 1, 'learning_rate': 3e-4, 'muon_lr': 3e-3}

    def __init__(self, model, settings):
        if 'diff_residual' not in model.cfg.steppers:
            raise UserError('the stage consistency_distill needs the stage diff_residual before it: '
                            '--stages=operator,diff_residual,consistency_distill')
        order = settings.stages
        if 'diff_residual' in order and order.index('diff_residual') > order.index('consistency_distill'):
            raise UserError(f'stages={",".join(order)}: consistency_distill must come after diff_residual')
        if not settings.tau_schedule or min(settings.tau_schedule) < 1:
            raise UserError(f'tau_schedule={settings.tau_schedule} must hold numbers of steps, at least 1 '
                            'each, such as 8 or 4,8')
        super().__init__(model, settings)

    def fit(self, windows):
        """Before the training: take the weights of the teacher."""
        self.flow.load_state_dict(self.model.diff_residual.flow.state_dict())

    def forward(self, batch, progress):
        """As OperatorStage.forward."""
        random = self.random(batch)
        z, _, condition = self.states(batch, random)
        schedule = self.settings.tau_schedule
        n_steps = schedule[min(int(progress * len(schedule)), len(schedule) - 1)]
        start = int(torch.randint(n_steps, (), generator=random))
        with torch.no_grad():
            _, context = self.module.base_and_context(z, condition)
            noise = self.flow.project(torch.randn_like(z))
            begins, end = self.model.diff_residual.flow.path(noise, context, condition, n_steps)
        loss = mean_square(self.flow.end(*begins[start], context, condition), end)
        return loss, {'distill_loss': loss.detach()}


class EnsembleStage(LaterStage):
    """A copy of the operator, perturbed by noise (arXiv 2506.10772, 2603.01949), learns to make members whose
    decoded fields have the lowest fair CRPS over rollouts of `unroll` steps."""
    trains = ('ensemble',)
    stepper = 'ensemble'
    defaults = {'max_iters': 1000, 'unroll': 8, 'unroll_start': 2, 'unroll_switch': .5,
                'learning_rate': 3e-4, 'muon_lr': 3e-3}

    def __init__(self, model, settings):
        super().__init__(model, settings)
        if settings.num_queries and settings.query_strategy == 'importance':
            raise UserError('query_strategy=importance weighs squares, and CRPS has none: '
                            '--query_strategy=stratified')

    def prepare(self, windows, machine):
        if not self.module.is_trained():
            self.module.begin_as(self.model.operator)
        return windows

    def forward(self, batch, progress):
        """As OperatorStage.forward."""
        n = self.settings.n_members
        steps = self.unrolled_steps(progress)
        with torch.no_grad():
            z = self.encode(batch.u[:, 0], batch).repeat_interleave(n, 0)
            condition = self.model.condition(batch.dt, batch.params).repeat_interleave(n, 0)
        latents = []
        for _ in range(steps):
            z = self.module(z, condition, gaussian(z.device))
            latents.append(z)
        latents = torch.stack(latents, 1).view(len(batch.u), -1, *z.shape[1:])           # (B, M K, S, D)
        outputs = {'members': self.decode(latents, batch).unflatten(1, (n, steps)),
                   'truth': batch.u[:, 1:1 + steps] + batch.background}
        for extend in self.extensions:
            extend(outputs, batch)
        loss = crps_loss(outputs['members'], outputs['truth'])
        return loss, {'crps_loss': loss.detach()}
