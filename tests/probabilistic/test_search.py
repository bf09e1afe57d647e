"""search.py and rewards.py: what is rewarded, what a beam keeps, what it costs."""
import pytest
import torch

from conftest import close, drawn, refused
from metrics import nrmse
from probabilistic import search
from probabilistic.flows import evaluations, sampling_steps
from probabilistic.rewards import HOPELESS, Oracle, Rewards, rank_correlation
from probabilistic.search import Search, Settings, best_proposals
from steppers import ALL, STOCHASTIC, field

SMALL = {'candidates': 4, 'beam_width': 3}
STEPS = 4


@pytest.fixture(scope='module')
def model():
    return drawn(**ALL, encoder_dim=0, decoder_dim=0).eval()


@pytest.fixture(scope='module')
def params():
    return {'Nu': torch.full((3,), .01)}


def found(m, rewards=None, **changes):
    """Rollouts of a search, by default for a random truth, and the search."""
    if rewards is None:
        rewards = Oracle(m, field(m, seed=2, frames=STEPS))
    result = Search(m, field(m), STEPS, {}, Settings(**{**SMALL, **changes}), rewards)
    return result.best(), result


# ---------------------------------------------------------------------------------------------
# the beam

@pytest.mark.parametrize('stepper', STOCHASTIC)
def test_one_proposal_is_a_plain_rollout(model, stepper):
    p, result = found(model, stepper=stepper, candidates=1, beam_width=1, flow_steps=2)
    with sampling_steps(model.stepper(stepper), 2):
        close(p, model.rollout(field(model), STEPS, stepper=stepper))
    assert result.spent.tolist() == 3 * [STEPS * evaluations(model.stepper(stepper), 2)]


def test_more_proposals_and_a_wider_beam_are_never_worse_by_their_own_reward(model):
    truth = field(model, seed=2, frames=STEPS)

    def errors(**changes):
        return nrmse(found(model, **changes)[0], truth).mean((1, 2))

    for seed in range(3):
        plain = errors(seed=seed, candidates=1, beam_width=1)
        greedy = errors(seed=seed, beam_width=1)
        assert (errors(seed=seed, beam_width=4) <= greedy + 1e-6).all()
        assert greedy.mean() < plain.mean()


def test_the_best_path_has_the_score_of_the_beam(model):
    """Back from the end through the parents: the errors of the states that are returned add up."""
    p, result = found(model, beam_width=4)
    truth = field(model, seed=2, frames=STEPS)
    close(result.beam.score.amax(1), -nrmse(p, truth).sum((1, 2)), 1e-4)


def test_a_reward_judges_the_step_that_a_proposal_is_at(model):
    class Recorder(Oracle):
        steps = []

        def __call__(self, u0, u1, rows, step):
            self.steps.append(step)
            return super().__call__(u0, u1, rows, step)

    found(model, Recorder(model, field(model, frames=STEPS)), horizon=3)
    assert Recorder.steps == [0, 1, 2, 1, 2, 3, 2, 3, 3]             # and none beyond the last


def test_which_proposals_go_on():
    score = torch.tensor([[1., 3., 2., 9., 0., 8.]])                 # two rollouts of three proposals
    zero = torch.zeros_like(score)
    assert best_proposals(score, zero, 3, 3).tolist() == [[1, 3, 5]]
    assert best_proposals(score, zero, 3, 1).tolist() == [[1]]
    ahead = torch.tensor([[5., 0, 0, 0, 0, 0]])
    assert best_proposals(score, ahead, 3, 2).tolist() == [[0, 3]]
    assert best_proposals(score[:, :2], zero[:, :2], 2, 5).tolist() == [[1, 0]]


def test_a_seed_repeats_a_search(model):
    p, _ = found(model, seed=3)
    assert torch.equal(p, found(model, seed=3)[0])
    assert not torch.equal(p, found(model, seed=4)[0])


def test_the_size_of_the_noise_follows_its_schedule(model):
    none, _ = found(model, noise_schedule=(0.,))
    plain, _ = found(model, noise_schedule=(0.,), candidates=1, beam_width=1)
    close(none, plain)                                               # no noise leaves no choice
    half, _ = found(model, noise_schedule=(0., 1.))
    close(half[:, :2], plain[:, :2])
    assert not torch.allclose(half[:, 3], plain[:, 3], atol=1e-3)


@pytest.mark.parametrize('stepper', ['diff_residual', 'consistency_distill', 'steady_prior'])
def test_the_range_of_tau(model, stepper):
    whole, _ = found(model, stepper=stepper, flow_steps=2)
    assert torch.equal(whole, found(model, stepper=stepper, flow_steps=2, tau_range=(0., 1.))[0])
    part, result = found(model, stepper=stepper, flow_steps=2, tau_range=(.3, .9))
    assert result.taus == pytest.approx([.3, .6]) and not torch.equal(whole, part)


def test_the_model_is_left_as_it_was(model):
    def broken(u0, u1, rows, step):
        raise ValueError

    for rewards in (None, broken):
        try:
            found(model, rewards, stepper='diff_residual', flow_steps=2, tau_range=(.3, .8))
        except ValueError:
            pass
        assert model.diff_residual.n_steps == 4


# ---------------------------------------------------------------------------------------------
# the budget

@pytest.mark.parametrize('limit', [4, 7, 20, 61, 1000])
@pytest.mark.parametrize('horizon', [1, 3])
def test_the_budget_is_never_exceeded(model, limit, horizon):
    p, result = found(model, max_evaluations=limit, horizon=horizon)
    assert result.spent.max() <= limit and p.shape == (3, STEPS, 32, 1)
    if limit == 1000:
        assert torch.equal(result.spent, found(model, horizon=horizon)[1].spent)


def test_the_budget_counts_the_steps_of_a_flow(model):
    flow = {'stepper': 'diff_residual', 'flow_steps': 2}
    _, result = found(model, **flow, max_evaluations=40)
    assert STEPS * 3 <= result.spent.max() <= 40
    assert 'at least 12' in refused(found, model, **flow, max_evaluations=11)


@pytest.mark.parametrize('limit', [4, 5, 9, 30])
def test_first_proposals_count_as_well(model, params, limit):
    """A threshold that none reaches: the first proposal of each step is all that may be afforded."""
    settings = Settings(**SMALL, max_evaluations=limit, residual_threshold=1e-9)
    result = Search(model, field(model), STEPS, params, settings, Rewards(model, settings, params))
    result.best()
    assert STEPS <= result.spent.max() <= limit


def test_good_enough_first_proposals_are_taken(model, params):
    def searched(steps=STEPS, **changes):
        settings = Settings(**{**SMALL, **changes})
        result = Search(model, field(model), steps, params, settings, Rewards(model, settings, params))
        return result.best(), result.spent.tolist()

    p, spent = searched(residual_threshold=1e9)
    close(p, model.rollout(field(model), STEPS, stepper='ensemble'))
    assert spent == 3 * [STEPS]
    _, spent = searched(residual_threshold=1e-9)
    assert spent == 3 * [STEPS + 4 + 3 * 12]
    # some of a batch are taken, the others are searched as if they were alone
    first, _ = searched(steps=1, candidates=1, beam_width=1)
    residual = Rewards(model, Settings(), params).residual(field(model), first[:, 0], torch.arange(3))
    _, spent = searched(steps=1, residual_threshold=float(residual.sort().values[:2].mean()))
    assert sorted(spent) == [1, 5, 5]


# ---------------------------------------------------------------------------------------------
# rewards

def test_rewards_that_cannot_choose_are_left_out(model, params):
    rewards = Rewards(model, Settings(), params)
    assert set(rewards.weights) == {'residual', 'mass', 'energy'}    # this model does not keep the integral
    keeps = drawn(**ALL, conserved=(0,)).eval()
    rewards = Rewards(keeps, Settings(), params)
    assert set(rewards.weights) == {'residual', 'energy'}
    assert 'keeps every integral' in rewards.left_out['mass']
    assert 'positive' in rewards.left_out['negativity']
    nothing = Settings(residual=0., energy=0.)
    assert 'no reward applies to burgers' in refused(Rewards, keeps, nothing, params)
    no_residual = Settings(residual=0., residual_threshold=1.)
    assert 'residual_threshold' in refused(Rewards, keeps, no_residual, params)


def test_rewards_by_hand(model):
    params = {'Nu': torch.full((1,), .01)}
    x = model.points[None]
    u0 = torch.sin(2 * torch.pi * x)
    rows = torch.tensor([0])
    rewards = Rewards(model, Settings(), params)
    close(rewards.mass(u0, u0 + .1, rows), torch.tensor([.1 * 2 ** .5]), 1e-4)
    close(rewards.energy(u0, 1.1 * u0, rows), torch.tensor([.21]), 1e-3)
    close(rewards.energy(u0, .9 * u0, rows), torch.tensor([0.]))
    u1 = 1.1 * u0 + .1
    parts = [getattr(rewards, name)(u0, u1, rows) for name in ('mass', 'energy', 'residual')]
    close(rewards(u0, u1, rows, 0), -sum(parts))
    still = rewards.residual(u0, u0 + 1e-4 * u0, rows)
    assert float(still) > 10                                         # relative to the change in time


def test_what_is_not_finite_is_never_chosen(model, params):
    class Broken(Oracle):
        def __call__(self, u0, u1, rows, step):
            u1 = u1.clone()
            u1[::2] = torch.nan
            return super().__call__(u0, u1, rows, step)

    _, result = found(model, Broken(model, field(model, frames=STEPS)))
    assert (result.beam.score.amax(1) > -1e3).all()
    u = field(model)
    rewards = Rewards(model, Settings(), params)
    assert (rewards(u, u * torch.nan, torch.arange(3), 0) == HOPELESS).all()


def test_negative_values_are_judged_before_they_are_cut_off():
    m = drawn(**ALL, encoder_dim=0, decoder_dim=0, positive=(0,), conserved=()).eval()
    seen = []

    def reward(u0, u1, rows, step):
        seen.append(float(u1.min()))
        return torch.zeros(len(u1))

    p, _ = found(m, reward)
    assert min(seen) < 0 == p.min()


def test_rank_correlation():
    a = torch.tensor([[1., 2., 3., 4.], [1., 2., 3., 4.], [1., 2., 3., 4.]])
    b = torch.tensor([[10., 20., 30., 50.], [4., 3., 2., 1.], [2., 1., 4., 3.]])
    close(rank_correlation(a, b), torch.tensor([1., -1., .6], dtype=torch.float64))
    ties = torch.tensor([[1., 1., 2., 3.]])                          # ranks 1.5, 1.5, 3, 4
    close(rank_correlation(a[:1], ties), torch.tensor([4.5 / (5 * 4.5) ** .5], dtype=torch.float64))
    assert rank_correlation(a[:1], torch.ones(1, 4)).isnan().all()


# ---------------------------------------------------------------------------------------------
# settings, report

def test_settings_from_text():
    s = Settings.of(['stepper=diff_residual', 'candidates=3', 'gamma=.5', 'noise_schedule=1,.5'])
    assert (s.stepper, s.candidates, s.gamma, s.noise_schedule) == ('diff_residual', 3, .5, (1., .5))
    assert Settings.of(Settings.keys().split(', ')) == Settings()
    assert 'beam_width' in refused(Settings.of, ['candidate=3'])
    assert 'candidates=a' in refused(Settings.of, ['candidates=a'])


@pytest.mark.parametrize('key, value', [
    ('stepper', 'operator'), ('candidates', 0), ('beam_width', 0), ('horizon', 0), ('max_evaluations', -5),
    ('seed', -5), ('seed', 2 ** 63), ('flow_steps', -5), ('gamma', float('nan')), ('mass', -1.),
    ('noise_schedule', ()), ('noise_schedule', (-1.,)), ('tau_range', (.5,)), ('tau_range', (.5, .2)),
    ('tau_range', (.5, 1.))])
def test_settings_without_sense_are_refused(model, key, value):
    """The last one for a stepper without a flow."""
    assert key in refused(Settings(**{key: value}).check, model, STEPS)


def test_a_model_without_the_stepper_is_refused():
    other = drawn(**{**ALL, 'steppers': ('operator', 'diff_residual')}).eval()
    assert 'ensemble' in refused(found, other)


def test_report(model, params, monkeypatch):
    u = field(model, frames=STEPS + 1)
    seeds = []

    class Watched(Search):
        def __init__(self, *args):
            seeds.append(args[4].seed)
            super().__init__(*args)

    monkeypatch.setattr(search, 'Search', Watched)
    r = search.report(model, u, params, 1, 2, Settings(**SMALL))
    assert seeds == 3 * [0, 2]                                       # batches do not share their noise
    rows = r['rows']
    assert list(rows) == ['operator', 'one sample', 'search', 'mean of 10 samples', 'random choice', 'oracle']
    assert rows['oracle']['nrmse'] < rows['one sample']['nrmse']
    assert rows['one sample']['evaluations'] == rows['operator']['evaluations'] == 1
    assert rows['search']['evaluations'] == (4 + 3 * 12) / STEPS
    assert rows['mean of 10 samples']['evaluations'] == 10
    assert -1 <= r['rank_correlation'] <= 1 and set(r['left_out']) == {'negativity'}
