"""
Test-time search: a beam search over the steps of a stochastic stepper, ranked by a reward.

    python eval.py --ckpt RUN --ttc candidates=8 beam_width=2        # beside rollouts of equal cost

Every rollout of the beam proposes `candidates` next states. Each is decoded and rewarded for what the
equation demands of a step (rewards.py). The `beam_width` rollouts with the largest sums of rewards go on.
"""
import itertools
import time
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch

from evaluation.scores import batches, predicted_fields, wait_for
from metrics import metrics
from model import Latent
from probabilistic.flows import evaluations, sampling_steps, starts_of
from probabilistic.rewards import HOPELESS, Oracle, RandomReward, Rewards, rank_correlation
from probabilistic.scores import OF_A_STATE
from runtime.configurator import UserError
from runtime.progress import Progress


@dataclass
class Settings:
    """Settings of a search; python eval.py --help prints names and defaults."""
    stepper: str = 'ensemble'          # makes the proposals
    candidates: int = 16               # proposals of each rollout of the beam
    beam_width: int = 5                # rollouts that go on
    horizon: int = 1                   # steps that a proposal is followed for before it is judged
    gamma: float = 1.                  # weight of each of these steps relative to the one before it
    max_evaluations: int = 0           # of networks, for a whole rollout of one trajectory; 0: no limit
    residual_threshold: float = 0.     # the first proposal is taken if its relative residual is at most this
    noise_schedule: tuple = (1.,)      # size of the noise, in equal parts of the rollout
    flow_steps: int = 0                # sampling steps of a flow; 0: those that the model has
    tau_range: tuple = (0., 1.)        # tau at which these begin; the last one goes straight to tau = 1
    mass: float = 1.                   # weights of the rewards
    energy: float = 1.
    negativity: float = .5
    residual: float = 1.
    seed: int = 0

    @classmethod
    def keys(cls):
        """Names and defaults, as text."""
        texts = []
        for field in fields(cls):
            value = field.default
            text = ','.join(map(str, value)) if isinstance(value, tuple) else value
            texts.append(f'{field.name}={text}')
        return ', '.join(texts)

    @classmethod
    def of(cls, texts):
        """Settings from ['candidates=8', ...]. Raises UserError for an unknown name or a bad value."""
        values = {}
        types = {field.name: type(field.default) for field in fields(cls)}
        for text in texts:
            name, _, value = text.partition('=')
            if name not in types:
                raise UserError(f"--ttc {text}: the keys are {', '.join(types)}")
            try:
                if types[name] is tuple:
                    values[name] = tuple(float(part) for part in value.split(','))
                else:
                    values[name] = types[name](value)
            except ValueError:
                raise UserError(f'--ttc {text}: not a value of this key') from None
        return cls(**values)

    def check(self, model, steps):
        """Raise UserError where these settings do not fit the model or a rollout of `steps` steps."""
        module = model.stepper(self.stepper)
        if not module.stochastic:
            others = [name for name in model.cfg.steppers if model.stepper(name).stochastic]
            raise UserError(f'stepper={self.stepper} draws no noise, so it has a single proposal; stochastic '
                            f'steppers of this model: {", ".join(others) or "none"}')
        for name, value in vars(self).items():
            values = value if isinstance(value, tuple) else (value,)
            if name != 'stepper' and not all(0 <= number < 2 ** 63 for number in values):
                raise UserError(f'{name}={value} must be at least 0 and below 2^63')
        for name in ('candidates', 'beam_width', 'horizon'):
            if getattr(self, name) < 1:
                raise UserError(f'{name}={getattr(self, name)} must be at least 1')
        if not self.noise_schedule:
            raise UserError('noise_schedule is empty: give sizes of the noise, such as 1 or 1,.5')
        first, last = self.tau_range if len(self.tau_range) == 2 else (1., 0.)
        if not 0 <= first < last <= 1:
            raise UserError(f'tau_range={self.tau_range} must be two rising numbers between 0 and 1')
        if (first, last) != (0., 1.) and not hasattr(module, 'n_steps'):
            raise UserError(f'tau_range={self.tau_range} needs a flow, and stepper={self.stepper} has none')
        least = steps * evaluations(module, self.flow_steps)
        if 0 < self.max_evaluations < least:
            raise UserError(f'max_evaluations={self.max_evaluations} must be at least {least}, what a plain '
                            f'rollout of {steps} steps takes')


# ---------------------------------------------------------------------------------------------
# the search

class Beam(NamedTuple):
    """The W rollouts of each of n trajectories that go on."""
    latent: Latent                     # of tensors (n, W, ...)
    field: torch.Tensor                # (n, W, *grid, C): the latents, decoded
    score: torch.Tensor                # (n, W): sums of rewards

    def take(self, index):
        """The rollouts `index` (n, V) of each trajectory."""
        latent = Latent(*[chosen(part, index) for part in self.latent])
        return Beam(latent, chosen(self.field, index), self.score.gather(1, index))

    def of_trajectories(self, rows):
        return Beam(Latent(*[part[rows] for part in self.latent]), self.field[rows], self.score[rows])

    def replace_trajectories(self, rows, other):
        """Overwrite the trajectories `rows` by those of a beam of the same width."""
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
    Rollouts from u0 (n, *grid, C) that the rewards choose. params: {name: (n,)}; rewards: Rewards, Oracle or
    RandomReward. `best()` returns them; `spent` (n,) counts the evaluations of networks.

    Without max_evaluations and residual_threshold, the noise of a proposal does not depend on beam_width, and
    the first rollout of the beam is the one that a beam of width 1 would be. So a wider beam is never worse
    by its own reward. Fields are judged before positive fields are cut off at zero.
    """

    @torch.no_grad()
    def __init__(self, model, u0, steps, params, settings, rewards, oracle=None):
        """oracle: an Oracle, for `agreement`. Raises UserError where the settings do not fit."""
        settings.check(model, steps)
        self.model = model
        self.steps = steps
        self.settings = settings
        self.rewards = rewards
        self.oracle = oracle
        self.agreement = []                         # rank correlations of rewards and accuracy of proposals
        self.n = len(u0)
        self.module = model.stepper(settings.stepper)
        self.taus = 0                               # at which the steps of a flow begin
        if hasattr(self.module, 'n_steps'):
            self.taus = starts_of(settings.flow_steps or self.module.n_steps, *settings.tau_range)
        self.cond, self.dt = model.condition_and_dt(self.n, params, None)
        self.gaussian = model.noise(settings.seed)
        self.each = evaluations(self.module, settings.flow_steps)
        self.spent = torch.zeros(self.n, dtype=torch.long)
        z = model.encode(u0)
        latent = Latent(*[part[:, None] for part in z])
        score = torch.zeros(self.n, 1, device=model.device)
        self.beam = Beam(latent, model.decode(z, clip=False)[:, None], score)

    @torch.no_grad()
    def best(self):
        """The rollouts with the largest sum of rewards, (n, steps, *grid, C)."""
        states = []
        parents = []
        progress = Progress(f'eval: search for {self.n} trajectories', self.steps)
        with sampling_steps(self.module, self.taus):
            for step in range(self.steps):
                parents.append(self.advance(step))
                states.append(self.beam.field)
                progress.add()
        index = self.beam.score.argmax(1, keepdim=True)
        path = []
        for field, parent in zip(reversed(states), reversed(parents)):
            path.append(chosen(field, index)[:, 0])
            index = parent.gather(1, index)
        return self.model.clip_positive(torch.stack(path[::-1], 1))

    def advance(self, step):
        """One step of the beam. Returns the numbers of the rollouts from which its own come, (n, V)."""
        s = self.settings
        part = min(step * len(s.noise_schedule) // self.steps, len(s.noise_schedule) - 1)
        noise = self.noise_of_step(s.noise_schedule[part])
        rows = torch.arange(self.n, device=self.model.device)
        index = self.beam.score.argmax(1, keepdim=True)              # the best rollout goes on, if no other
        first = None
        if s.residual_threshold and isinstance(self.rewards, Rewards):
            beam = self.beam.take(index)
            first, _ = self.propose(beam, rows, 1, 1, noise, step)
            left = self.rewards.residual(beam.field[:, 0], first.field[:, 0], rows)
            rows = rows[~(left <= s.residual_threshold)]
            if not len(rows) or self.affordable(step)[1] < 1:
                self.beam = first
                return index
        width, n_candidates, horizon = self.affordable(step)
        is_narrowed = width < self.beam.score.shape[1]
        beam = self.beam.take(index) if is_narrowed else self.beam
        beam = beam.of_trajectories(rows)
        proposals, ahead = self.propose(beam, rows, n_candidates, horizon, noise, step)
        best = best_proposals(proposals.score, ahead, n_candidates, s.beam_width)
        parent = best // n_candidates
        if is_narrowed:
            parent = index[rows].expand_as(parent)
        if first is None:
            self.beam = proposals.take(best)
            return parent
        # The trajectories that were not searched keep one rollout. Its copies fill their beam, without hope.
        parents = index.repeat(1, parent.shape[1])
        self.beam = first.take(torch.zeros_like(parents))
        self.beam.score[:, 1:] += HOPELESS
        self.beam.replace_trajectories(rows, proposals.take(best))
        parents[rows] = parent
        return parents

    def affordable(self, step):
        """(rollouts of the beam, proposals of each, horizon) of this step, so that a proposal is left for
        each of the steps that remain. There are no proposals where the first one has taken the last."""
        s = self.settings
        width = self.beam.score.shape[1]
        horizon = min(s.horizon, self.steps - step)
        if not s.max_evaluations:
            return width, s.candidates, horizon
        left = (s.max_evaluations - int(self.spent.max())) // self.each - (self.steps - step - 1)
        if left < width * horizon:
            return 1, min(s.candidates, left), 1
        return width, min(s.candidates, left // (width * horizon)), horizon

    def noise_of_step(self, size):
        """A function (k, n_candidates, *shape) -> noise of that size for every trajectory, (n, n_candidates,
        *shape). In one step it returns the same numbers whenever it is asked for its k-th."""
        drawn = {}

        def noise(k, n_candidates, *shape):
            known = drawn.setdefault((k, shape), [])
            while len(known) < n_candidates:
                known.append(size * self.gaussian(self.n, *shape))
            return torch.stack(known[:n_candidates], 1)              # (n, n_candidates, *shape)

        return noise

    def propose(self, beam, rows, n_candidates, horizon, noise, step):
        """`n_candidates` proposals of every rollout of the beam of the trajectories `rows` (m,): a Beam of
        (m, W n_candidates), and the rewards of the steps beyond them, (m, W n_candidates)."""
        s = self.settings
        m, width = beam.score.shape
        n_proposal = width * n_candidates
        own = rows.repeat_interleave(n_proposal)
        self.spent[rows.cpu()] += self.each * n_proposal * horizon

        def spread(value):
            """(m, W, ...) -> (m W n_candidates, ...)"""
            return value.repeat_interleave(n_candidates, 1).flatten(0, 1)

        calls = itertools.count()

        def noise_of_proposals(_, *shape):
            drawn = noise(next(calls), n_candidates, *shape)[rows, None]         # (m, 1, candidates, ...)
            return drawn.expand(m, width, n_candidates, *shape).flatten(0, 2)

        latent = Latent(*[spread(part) for part in beam.latent])
        before = spread(beam.field)
        ahead = torch.zeros(m, n_proposal, device=before.device)
        for k in range(horizon):
            latent = self.model.advance(latent, self.cond[own], self.dt[own], self.module, noise_of_proposals)
            field = self.model.decode(latent, clip=False)
            reward = self.rewards(before, field, own, step + k).view(m, n_proposal)
            if k == 0 and self.oracle and n_candidates > 1:
                accuracy = self.oracle(before, field, own, step)
                sets = [values.view(-1, n_candidates) for values in (reward, accuracy)]
                self.agreement += rank_correlation(*sets).tolist()
            if k:
                ahead = ahead + s.gamma ** k * reward
            else:
                score = reward + beam.score.repeat_interleave(n_candidates, 1)
                parts = [part.unflatten(0, (m, n_proposal)) for part in latent]
                proposals = Beam(Latent(*parts), field.unflatten(0, (m, n_proposal)), score)
            before = field
        return proposals, ahead


def best_proposals(score, ahead, n_candidates, width):
    """Numbers (n, V) of the proposals that go on: first the best one of the first rollout, then the others
    with the largest sums. score, ahead (n, W n_candidates)."""
    total = score + ahead
    first = total[:, :n_candidates].argmax(1, keepdim=True)
    others = total.scatter(1, first, -torch.inf)
    more = min(width - 1, total.shape[1] - 1)
    return torch.cat([first, others.topk(more, 1).indices], 1)


# ---------------------------------------------------------------------------------------------
# the report

def report(model, u, params, initial_step, batch_size, settings):
    """
    A search, beside other rollouts of at most as many evaluations, on true frames u (N, T, *grid, C):
    {'rows': {name: {'nrmse', the metrics scores.OF_A_STATE, 'evaluations' a step, 'ms_per_trajectory'}},
    'rank_correlation' of the reward with minus the error among proposals, 'left_out': {reward: why}}.
    """
    start = predicted_fields(model, u[:, initial_step - 1])
    y = predicted_fields(model, u[:, initial_step:])
    steps = y.shape[1]
    settings.check(model, steps)
    module = model.stepper(settings.stepper)
    each = evaluations(module, settings.flow_steps)
    rows = {}
    agreement = []
    left_out = {}

    # A function that rolls out takes u0 (n, *grid, C), truth (n, steps, *grid, C), and params and settings of
    # its own. It returns rollouts (n, steps, *grid, C) and the number of networks that were evaluated.
    def operator(u0, truth, params, s):
        return model.rollout(u0, steps, params=params), steps * len(u0)

    def mean_of(n):
        def roll_out(u0, truth, params, s):
            with sampling_steps(module, s.flow_steps):
                p = model.rollout(u0, steps, params=params, stepper=s.stepper, n_members=n, seed=s.seed)
            return p.mean(1), each * n * steps * len(u0)
        return roll_out

    def searched(make_reward, oracle=None):
        def roll_out(u0, truth, params, s):
            reward = make_reward(truth, params, s)
            search = Search(model, u0, steps, params, s, reward, oracle and oracle(truth, params, s))
            p = search.best()
            agreement.extend(search.agreement)
            left_out.update(getattr(reward, 'left_out', {}))
            return p, search.spent.sum()
        return roll_out

    def rewards(truth, params, s):
        return Rewards(model, s, params)

    def at_random(truth, params, s):
        return RandomReward(s.seed)

    def accuracy(truth, params, s):
        return Oracle(model, truth)

    def add(name, roll_out):
        rollouts = []
        spent = 0
        progress = Progress(f'eval: {name}', len(u))
        wait_for(model.device)
        began = time.perf_counter()
        for part, own in batches(len(u), batch_size, params):
            u0 = u[part, initial_step - 1].to(model.device)
            own = {key: value.to(model.device) for key, value in own.items()}
            s = replace(settings, seed=settings.seed + part.start)
            p, used = roll_out(u0, u[part, initial_step:], own, s)
            rollouts.append(predicted_fields(model, p.cpu()))
            spent += int(used)
            progress.add(len(u0))
        seconds = time.perf_counter() - began
        values, _ = metrics(torch.cat(rollouts), y, start, model.cfg.dt)
        rows[name] = {**{key: values[key] for key in ('nrmse', *OF_A_STATE)},
                      'evaluations': spent / len(u) / steps, 'ms_per_trajectory': 1e3 * seconds / len(u)}

    add('operator', operator)
    add('one sample', mean_of(1))
    add('search', searched(rewards, accuracy))
    n = max(2, round(rows['search']['evaluations'] / each))
    add(f'mean of {n} samples', mean_of(n))
    add('random choice', searched(at_random))
    add('oracle', searched(accuracy))
    return {'rows': rows, 'rank_correlation': float(torch.tensor(agreement).nanmean()), 'left_out': left_out}
