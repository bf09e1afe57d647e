"""
Test-time compute: of many ways in which a rollout may go on, take the one that looks best.

A beam search over steps that draw noise (model.BY, all but the operator). Every rollout of the beam proposes
`candidates` next states; each is decoded and rewarded for what the equation asks of a step (Rewards); the
`beam_width` rollouts with the largest sum of rewards go on. A reward that is the same for all candidates, as
conservation in a model that conserves, cannot choose, and is left out.
"""
import itertools
import time
from dataclasses import dataclass, fields, replace

import torch

import pdes
import physics
from flows import REFINER_STEPS, starts_of
from metrics import metrics, nrmse
from model import BY, FLOW_STEPS, Latent
from runtime.configurator import UserError
from scores import OF_A_STATE, batches, given_frames, scored, wait_for

SMALLEST = 1e-12
HOPELESS = -1e30                       # reward of what is not finite


@dataclass
class Settings:
    """Of a search; python eval.py --help prints names and defaults."""
    by: str = 'ensemble'               # what proposes
    candidates: int = 16               # proposals of each rollout of the beam
    beam_width: int = 5                # rollouts that go on
    horizon: int = 1                   # steps that a proposal is followed for before it is judged
    gamma: float = 1.                  # weight of each of these steps relative to the one before it
    max_evaluations: int = 0           # of networks, for a whole rollout of one trajectory; 0: no limit
    residual_threshold: float = 0.     # a first proposal whose relative residual is at most this is taken
    noise_schedule: tuple = (1.,)      # size of the noise, in equal parts of the rollout
    flow_steps: int = 0                # of a flow in a step; 0: 4, of a student 1
    tau_range: tuple = (0., 1.)        # in which these begin; then a flow goes straight to its end
    mass: float = 1.                   # weights of the rewards
    energy: float = 1.
    negativity: float = .5
    residual: float = 1.
    seed: int = 0

    @classmethod
    def keys(cls):
        """Names and defaults, as text."""
        def text(value):
            return ','.join(map(str, value)) if isinstance(value, tuple) else str(value)

        return ', '.join(f'{field.name}={text(field.default)}' for field in fields(cls))

    @classmethod
    def of(cls, texts):
        """From ['candidates=8', ...]. Raises UserError for what is none."""
        values = {}
        types = {field.name: type(field.default) for field in fields(cls)}
        for text in texts:
            name, _, value = text.partition('=')
            if name not in types:
                raise UserError(f"--ttc {text}: it has {', '.join(types)}")
            try:
                if types[name] is tuple:
                    values[name] = tuple(float(part) for part in value.split(','))
                else:
                    values[name] = types[name](value)
            except ValueError:
                raise UserError(f'--ttc {text}: not a value of this key') from None
        return cls(**values)

    def check(self, model, steps):
        """Raise UserError where this model cannot be searched so."""
        model.check_by(self.by)
        if self.by == 'operator':
            others = ', '.join(name for name in BY if name != 'operator')
            raise UserError(f'the operator draws no noise, so it has one proposal: by one of {others}')
        if min(self.candidates, self.beam_width, self.horizon) < 1:
            raise UserError('candidates, beam_width and horizon must be at least 1')
        if min(self.flow_steps, self.max_evaluations, self.seed) < 0 or self.seed >= 2 ** 63:
            raise UserError('flow_steps, max_evaluations and seed must be 0 or more, and seed below 2^63')
        first, last = self.tau_range if len(self.tau_range) == 2 else (1, 0)
        if not 0 <= first < last <= 1:
            raise UserError(f'tau_range={self.tau_range} must be two numbers that rise from 0 to 1')
        if (first, last) != (0, 1) and (self.by == 'ensemble' or model.cfg.flow_kind == 'refiner'):
            raise UserError('tau_range is of a flow, which an ensemble and a refiner are not: leave it out')
        least = steps * evaluations(model, self)
        if 0 < self.max_evaluations < least:
            raise UserError(f'max_evaluations={self.max_evaluations} is less than a rollout of {steps} steps '
                            f'takes without a choice: {least}')


def evaluations(model, settings):
    """Networks that are evaluated for a step of one proposal."""
    if settings.by == 'ensemble':
        return 1
    of_flow = settings.flow_steps or FLOW_STEPS[settings.by]
    if model.cfg.flow_kind == 'refiner':
        of_flow = 1 + REFINER_STEPS
    return of_flow if settings.by == 'steady' else 1 + of_flow


# ---------------------------------------------------------------------------------------------
# rewards of a step from fields u0 to u1, both (n, *grid, C) in physical units; (n,), 0 at best

class Rewards:
    """The weighted sum of what applies to the equation of a model and can differ between proposals."""

    def __init__(self, model, settings, params):
        """params: {name: (n,)}, on the device of the model."""
        self.entry = pdes.entry(model.cfg.pde)
        self.axes = physics.axes_of(model.points, model.cfg.grid)
        self.params = {name.lower(): value for name, value in params.items()}
        self.dt = model.cfg.dt
        self.weights = {}
        self.left_out = {}
        cfg = model.cfg
        positive = [i for i in cfg.positive if i in cfg.scored]
        why_not = {
            'mass': physics.why_not('conservation', self.entry, self.axes) or (
                'the model keeps every integral, so proposals do not differ' if self.keeps_all(cfg) else ''),
            'energy': physics.why_not('energy', self.entry, self.axes),
            'negativity': '' if positive else 'none of its fields has to be positive',
            'residual': physics.why_not('residual', self.entry, self.axes)}
        for name, why in why_not.items():
            weight = getattr(settings, name)
            if weight and not why:
                self.weights[name] = weight
            else:
                self.left_out[name] = why or 'its weight is 0'
        if settings.residual_threshold and 'residual' not in self.weights:
            raise UserError(f"residual_threshold needs the residual: {self.left_out['residual']}")
        if not self.weights:
            reasons = '; '.join(f'{name}: {why}' for name, why in self.left_out.items())
            raise UserError(f'no reward applies to {cfg.pde} ({reasons})')

    def keeps_all(self, cfg):
        kept = {self.entry.fields[i] for i in cfg.conserved}
        return set(self.entry.conserved) <= kept and not cfg.log_clamp

    def __call__(self, u0, u1, rows):
        """rows (n,): of the batch, whose parameters hold."""
        total = 0.
        for name, weight in self.weights.items():
            total = total - weight * getattr(self, name)(u0, u1, rows)
        return torch.where(total.isfinite(), total, HOPELESS)

    def mass(self, u0, u1, rows):
        return physics.conservation(u1, u0, self.axes, self.entry).abs().mean(-1)

    def energy(self, u0, u1, rows):
        before = physics.energies(u0, self.axes, self.entry)
        grown = (physics.energies(u1, self.axes, self.entry) - before).clamp_min(0.)
        return grown / before.clamp_min(SMALLEST)

    def negativity(self, u0, u1, rows):
        values = u1[..., physics.numbers(self.entry, self.entry.positive)].flatten(1)
        return (-values).clamp_min(0.).mean(1) / values.abs().mean(1).clamp_min(SMALLEST)

    def residual(self, u0, u1, rows):
        """Rms of what is left of the equation, over that of the change in time."""
        dt = torch.full((len(u0),), self.dt, device=u0.device)
        params = {name: value[rows] for name, value in self.params.items()}
        left = self.entry.residual(u0, u1, dt, params, self.axes)
        left = left.flatten(1).square().mean(1).sqrt()
        if self.entry.steady:
            return left
        moved = [i for i, name in enumerate(self.entry.fields) if name not in self.entry.static]
        speed = ((u1 - u0)[..., moved] / self.dt).flatten(1).square().mean(1).sqrt()
        return left / speed.clamp_min(SMALLEST)


class Chance:
    """A reward that says nothing."""

    def __init__(self, seed=0):
        self.random = torch.Generator().manual_seed(seed)

    def __call__(self, u0, u1, rows):
        return torch.rand(len(u1), generator=self.random).to(u1.device)


class Oracle:
    """Minus the true error of step `step`: the best choice that any reward could make. truth (n, T, *grid,
    C)."""

    def __init__(self, model, truth):
        self.model = model
        self.truth = truth.to(model.device)
        self.step = 0

    def __call__(self, u0, u1, rows):
        p = scored(self.model, self.model.cut(u1))[:, None]
        y = scored(self.model, self.truth[rows, self.step])[:, None]
        error = nrmse(p, y.to(p)).flatten(1).mean(1)
        return torch.where(error.isfinite(), -error, HOPELESS)


# ---------------------------------------------------------------------------------------------
# the search

class Beam:
    """The rollouts of n trajectories that go on, W of each: latents, the fields that they are, and the sum of
    their rewards (n, W)."""

    def __init__(self, latent, field, score):
        self.latent = latent
        self.field = field
        self.score = score

    def take(self, index):
        """The rollouts `index` (n, V) of each trajectory."""
        latent = Latent(*[chosen(part, index) for part in self.latent])
        return Beam(latent, chosen(self.field, index), self.score.gather(1, index))

    def of(self, rows):
        """Those of the trajectories `rows`."""
        return Beam(Latent(*[part[rows] for part in self.latent]), self.field[rows], self.score[rows])

    def repeated(self, times):
        """Of a beam of width 1: every rollout so many times."""
        return self.take(torch.zeros(len(self.score), times, dtype=torch.long, device=self.score.device))

    def put(self, rows, other):
        """Replace the trajectories `rows` by those of a beam of the same width."""
        for mine, others in zip(self.latent, other.latent):
            mine[rows] = others
        self.field[rows] = other.field
        self.score[rows] = other.score


def chosen(values, index):
    """values (n, W, ...), index (n, V) -> (n, V, ...)"""
    rows = torch.arange(len(values), device=values.device)[:, None]
    return values[rows, index]


class Search:
    """
    The rollouts of u0 (n, *grid, C), as the model takes it, that the rewards choose. params: {name: (n,)};
    rewards: Rewards, or Oracle.

    Without max_evaluations and residual_threshold, the noise of a proposal does not depend on beam_width, and
    the first rollout of the beam is the one that a beam of width 1 would be, so that a wider beam is never
    worse by its own reward. Fields are judged before those that cannot be negative are cut off at zero.
    """

    @torch.no_grad()
    def __init__(self, model, u0, steps, params, settings, rewards, oracle=None):
        """oracle: an Oracle, for `agreement`."""
        settings.check(model, steps)
        self.model = model
        self.steps = steps
        self.settings = settings
        self.rewards = rewards
        self.oracle = oracle
        self.agreement = []                         # rank correlations of rewards and accuracy of proposals
        self.n = len(u0)
        self.cond, self.dt = model.condition_and_dt(self.n, params, None)
        self.normal = model.draws(settings.seed)
        self.each = evaluations(model, settings)
        self.spent = torch.zeros(self.n, dtype=torch.long)           # evaluations for each trajectory
        z = model.encode(u0)
        latent = Latent(*[part[:, None] for part in z])
        score = torch.zeros(self.n, 1, device=model.device)
        self.beam = Beam(latent, model.decode(z, cut=False)[:, None], score)

    @torch.no_grad()
    def best(self):
        """The rollouts with the largest sum of rewards, (n, steps, *grid, C)."""
        states = []
        parents = []
        for step in range(self.steps):
            parent = self.advance(step)
            parents.append(parent)
            states.append(self.beam.field)
        index = self.beam.score.argmax(1, keepdim=True)
        path = []
        for field, parent in zip(reversed(states), reversed(parents)):
            path.append(chosen(field, index)[:, 0])
            index = parent.gather(1, index)
        return self.model.cut(torch.stack(path[::-1], 1))

    def advance(self, step):
        """One step of the beam. -> the rollouts that its own come from, (n, V)"""
        s = self.settings
        part = min(step * len(s.noise_schedule) // self.steps, len(s.noise_schedule) - 1)
        draw = self.noise(s.noise_schedule[part])
        rows = torch.arange(self.n, device=self.model.device)
        index = self.beam.score.argmax(1, keepdim=True)              # the best rollout goes on, if no other
        single = None
        if s.residual_threshold and isinstance(self.rewards, Rewards):
            single, left = self.first_proposals(self.beam.take(index), rows, draw, step)
            rows = rows[~(left <= s.residual_threshold)]
            if not len(rows) or self.affordable(step)[1] < 1:
                self.beam = single
                return index
        width, n_candidates, horizon = self.affordable(step)
        beam = self.beam if width == self.beam.score.shape[1] else self.beam.take(index)
        proposals, ahead = self.propose(beam.of(rows), rows, n_candidates, horizon, draw, step)
        best = best_of(proposals.score, ahead, n_candidates, s.beam_width)
        parent = best // n_candidates
        if width < self.beam.score.shape[1]:
            parent = index[rows].expand_as(parent)
        found = proposals.take(best)
        if single is None:
            self.beam = found
            return parent
        self.beam = single.repeated(parent.shape[1])                 # the rows that were not searched: copies
        self.beam.score[:, 1:] += HOPELESS                           # of one rollout, of which one is enough
        self.beam.put(rows, found)
        parents = index.repeat(1, parent.shape[1])
        parents[rows] = parent
        return parents

    def affordable(self, step):
        """(rollouts of the beam, proposals of each, horizon) of this step, so that a proposal is left for
        each of the steps that remain. No proposal is left where the first one has taken the last."""
        s = self.settings
        width = self.beam.score.shape[1]
        horizon = min(s.horizon, self.steps - step)
        if not s.max_evaluations:
            return width, s.candidates, horizon
        left = (s.max_evaluations - int(self.spent.max())) // self.each - (self.steps - step - 1)
        if left < width * horizon:
            return 1, min(s.candidates, left), 1
        return width, min(s.candidates, left // (width * horizon)), horizon

    def noise(self, size):
        """A function (k, n_candidates, *shape) -> noise of that size for every trajectory, (n, n_candidates,
        *shape), the same whenever the step asks for its k-th."""
        drawn = {}

        def draw(k, n_candidates, *shape):
            given = drawn.setdefault((k, shape), [])
            while len(given) < n_candidates:
                given.append(size * self.normal(self.n, *shape))
            return torch.stack(given[:n_candidates], 1)              # (n, n_candidates, *shape)

        return draw

    def propose(self, beam, rows, n_candidates, horizon, draw, step):
        """`n_candidates` proposals of every rollout of the beam of the trajectories `rows` (m,), as a Beam of
        (m, W n_candidates), and what the steps beyond them would be rewarded with, (m, W n_candidates)."""
        s = self.settings
        m, width = beam.score.shape
        many = width * n_candidates
        own = rows.repeat_interleave(many)
        self.spent[rows.cpu()] += self.each * many * horizon

        def spread(value):
            """(m, W, ...) -> (m W n_candidates, ...)"""
            return value.repeat_interleave(n_candidates, 1).flatten(0, 1)

        calls = itertools.count()

        def of_all(_, *shape):
            noise = draw(next(calls), n_candidates, *shape)[rows, None]          # (m, 1, candidates, ...)
            return noise.expand(m, width, n_candidates, *shape).flatten(0, 2)

        taus = starts_of(s.flow_steps or FLOW_STEPS.get(s.by, 0), *s.tau_range)
        latent = Latent(*[spread(part) for part in beam.latent])
        before = spread(beam.field)
        ahead = torch.zeros(m, many, device=before.device)
        for k in range(horizon):
            for judge in (self.rewards, self.oracle):
                if judge:
                    judge.step = step + k
            latent = self.model.advance(latent, self.cond[own], self.dt[own], s.by, of_all, taus)
            field = self.model.decode(latent, cut=False)
            reward = self.rewards(before, field, own).view(m, many)
            if k == 0 and self.oracle and n_candidates > 1:
                accuracy = self.oracle(before, field, own)
                sets = [values.view(-1, n_candidates) for values in (reward, accuracy)]
                self.agreement += rank_correlation(*sets).tolist()
            if k:
                ahead = ahead + s.gamma ** k * reward
            else:
                score = reward + beam.score.repeat_interleave(n_candidates, 1)
                parts = [part.unflatten(0, (m, many)) for part in latent]
                proposals = Beam(Latent(*parts), field.unflatten(0, (m, many)), score)
            before = field
        return proposals, ahead

    def first_proposals(self, beam, rows, draw, step):
        """One proposal of each rollout of a beam of width 1, and its relative residual (n,)."""
        proposals, _ = self.propose(beam, rows, 1, 1, draw, step)
        return proposals, self.rewards.residual(beam.field[:, 0], proposals.field[:, 0], rows)


def best_of(score, ahead, n_candidates, width):
    """Numbers (n, V) of the proposals that go on: first the best one of the first rollout, then the others
    with the largest sums. score, ahead (n, W n_candidates)."""
    total = score + ahead
    first = total[:, :n_candidates].argmax(1, keepdim=True)
    others = total.scatter(1, first, -torch.inf)
    more = min(width - 1, total.shape[1] - 1)
    return torch.cat([first, others.topk(more, 1).indices], 1)


# ---------------------------------------------------------------------------------------------
# the report

def rank_correlation(a, b):
    """Spearman's, of each row of a and b (n, B), equal values sharing their mean rank: (n,). NaN where all
    are equal."""
    ranks = []
    for values in (a, b):
        less = values[:, :, None] > values[:, None]
        equal = values[:, :, None] == values[:, None]
        ranks.append(less.sum(2).double() + equal.sum(2) / 2)
    x, y = [rank - rank.mean(1, keepdim=True) for rank in ranks]
    return (x * y).sum(1) / (x.square().sum(1) * y.square().sum(1)).sqrt()


def report(model, u, params, initial_step, batch_size, settings):
    """
    A search beside what may be had for as many evaluations, or fewer, on true frames u (N, T, *grid, C):
    {'rows': {name: {'nrmse', what else scores.OF_A_STATE names, 'evaluations' a step, 'ms_per_trajectory'}},
    'rank_correlation' of the reward with minus the error among proposals, 'left_out': {reward: why}}.
    """
    last = scored(model, u[:, initial_step - 1])
    y = scored(model, u[:, initial_step:])
    steps = y.shape[1]
    settings.check(model, steps)
    rows = {}
    correlations = []
    left_out = {}

    def add(name, of_batch):
        """of_batch(u0, truth, params, the settings with a seed of its own) -> fields (n, steps, *grid, C),
        evaluations"""
        rollouts = []
        spent = 0
        wait_for(model.device)
        start = time.perf_counter()
        for part, own in batches(len(u), batch_size, params):
            u0 = given_frames(model, u[part], initial_step).to(model.device)
            own = {name: value.to(model.device) for name, value in own.items()}
            s = replace(settings, seed=settings.seed + part.start)
            p, used = of_batch(u0, u[part, initial_step:], own, s)
            rollouts.append(scored(model, p.cpu()))
            spent += int(used)
        seconds = time.perf_counter() - start
        values, _ = metrics(torch.cat(rollouts), y, last, model.cfg.dt)
        rows[name] = {**{key: values[key] for key in ('nrmse', *OF_A_STATE)},
                      'evaluations': spent / len(u) / steps, 'ms_per_trajectory': 1e3 * seconds / len(u)}

    def searched(make_rewards):
        def of_batch(u0, truth, own, s):
            found = Search(model, u0, steps, own, s, make_rewards(truth, s))
            return found.best(), found.spent.sum()
        return of_batch

    def by_reward(u0, truth, own, s):
        rewards = Rewards(model, s, own)
        left_out.update(rewards.left_out)
        found = Search(model, u0, steps, own, s, rewards, Oracle(model, truth))
        p = found.best()
        correlations.extend(found.agreement)
        return p, found.spent.sum()

    each = evaluations(model, settings)

    def members(n):
        def of_batch(u0, truth, own, s):
            how = {'by': s.by, 'flow_steps': s.flow_steps, 'seed': s.seed}
            p = model.rollout(u0, steps, params=own, members=n, **how)
            return p.mean(1), each * n * steps * len(u0)
        return of_batch

    add('operator', lambda u0, truth, own, s: (model.rollout(u0, steps, params=own), steps * len(u0)))
    add('one sample', members(1))
    add('search', by_reward)
    n = max(2, round(rows['search']['evaluations'] / each))
    add(f'mean of {n} samples', members(n))
    if model.cfg.uniform and model.cfg.input_frames == 1:
        n = min(n * each, model.cfg.points_per_token[0])
        add(f'operator, each step the mean of {n} shifts', shifts(model, steps, n))
    add('random choice', searched(lambda truth, s: Chance(s.seed)))
    add('oracle', searched(lambda truth, s: Oracle(model, truth)))
    return {'rows': rows, 'rank_correlation': float(torch.tensor(correlations).nanmean()),
            'left_out': left_out}


def shifts(model, steps, n):
    """Rollouts of which each step is the mean of n by the operator: from the field shifted by fractions of a
    token, other ones in every step, and back afterwards. Deterministic, n evaluations a step."""
    def of_batch(u, truth, own, s):
        axes = list(range(1, 1 + len(model.cfg.grid)))
        points = model.cfg.points_per_token[0]
        fields = []
        for step in range(steps):
            mean = 0.
            for k in range(n):
                cells = k * points // n + step
                p = model.rollout(u.roll(len(axes) * [cells], axes), 1, params=own)[:, 0]
                mean = mean + p.roll(len(axes) * [-cells], axes) / n
            u = mean
            fields.append(u)
        return torch.stack(fields, 1), n * steps * len(u)
    return of_batch
