"""search.py: what is rewarded, what a beam keeps, what it costs."""
import pytest
import torch

import search
from conftest import close, drawn, refused
from flows import starts_of
from metrics import nrmse
from model import PARTS
from search import Oracle, Rewards, Search, Settings, best_of, rank_correlation

ALL = {'parts': PARTS, 'flow_dim': 16, 'flow_depth': 1, 'noise_dim': 4}
SMALL = {'candidates': 4, 'beam_width': 3, 'flow_steps': 2}
STEPS = 4


@pytest.fixture(scope='module')
def model():
    return drawn(**ALL, encoder_dim=0, decoder_dim=0).eval()


def field(m, n=3, seed=1, frames=None):
    shape = [n, *([frames] if frames else []), *m.cfg.grid, m.cfg.n_field]
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def found(m, rewards=None, truth=None, **changes):
    settings = Settings(**{**SMALL, **changes})
    if rewards is None:
        rewards = Oracle(m, field(m, seed=2, frames=STEPS) if truth is None else truth)
    result = Search(m, field(m), STEPS, {}, settings, rewards)
    return result.best(), result


def test_one_proposal_is_a_plain_rollout(model):
    for by in ('ensemble', 'residual', 'distill', 'steady'):
        p, result = found(model, by=by, candidates=1, beam_width=1)
        plain = model.rollout(field(model), STEPS, by=by, flow_steps=2)
        close(p, plain)
        assert result.spent.tolist() == 3 * [STEPS * search.evaluations(model, result.settings)]


@pytest.mark.parametrize('by', ['ensemble', 'residual'])
def test_a_wider_beam_and_more_proposals_are_never_worse_by_their_own_reward(model, by):
    truth = field(model, seed=2, frames=STEPS)

    def errors(p):
        return nrmse(p, truth).mean((1, 2))

    for seed in range(3):
        plain = errors(found(model, by=by, seed=seed, candidates=1, beam_width=1)[0])
        greedy = errors(found(model, by=by, seed=seed, beam_width=1)[0])
        wide = errors(found(model, by=by, seed=seed, beam_width=4)[0])
        assert (wide <= greedy + 1e-6).all()
        assert greedy.mean() < plain.mean()


def test_the_best_path_has_the_score_of_the_beam(model):
    """Back from the end through the parents: the errors of the states that are returned add up."""
    p, result = found(model, beam_width=4)
    truth = field(model, seed=2, frames=STEPS)
    close(result.beam.score.amax(1), -nrmse(p, truth).sum((1, 2)), 1e-4)


@pytest.mark.parametrize('limit', [4, 7, 20, 61, 1000])
@pytest.mark.parametrize('horizon', [1, 3])
def test_the_budget_is_never_exceeded(model, limit, horizon):
    p, result = found(model, max_evaluations=limit, horizon=horizon)
    assert result.spent.max() <= limit and p.shape == (3, STEPS, 32, 1)
    if limit == 1000:
        assert torch.equal(result.spent, found(model, horizon=horizon)[1].spent)


def test_the_budget_counts_the_steps_of_a_flow(model):
    _, result = found(model, by='residual', max_evaluations=40)
    assert STEPS * 3 <= result.spent.max() <= 40
    assert 'without a choice: 12' in refused(found, model, by='residual', max_evaluations=11)


def test_the_range_of_tau(model):
    z = model.encode(field(model))
    cond, _ = model.condition_and_dt(3, {}, None)
    given = torch.cat([z.tokens, z.tokens], -1)
    x = model.corrector.project(torch.randn(z.tokens.shape, generator=torch.Generator().manual_seed(0)))
    times = starts_of(2, .5, .9)
    begins, end = model.corrector.path(x, given, cond, times)
    assert [float(tau[0]) for _, tau in begins] == pytest.approx([.5, .7])
    close(begins[0][0], .5 * x)
    last, tau = begins[1]
    close(end, last + .3 * model.corrector(last, tau, given, cond))  # straight to the end
    for by in ('residual', 'distill', 'steady'):
        whole = found(model, by=by, tau_range=(0., 1.))[0]
        assert torch.equal(whole, found(model, by=by)[0])
        assert not torch.equal(whole, found(model, by=by, tau_range=(.3, .8))[0])
    assert 'tau_range=(0.5,)' in refused(found, model, by='residual', tau_range=(.5,))
    assert 'tau_range is of a flow' in refused(found, model, by='ensemble', tau_range=(.5, 1.))


@pytest.mark.parametrize('limit', [4, 5, 9, 30])
def test_first_proposals_count_as_well(model, limit):
    """A threshold that none reaches: the first proposal of each step is all that may be afforded."""
    params = {'Nu': torch.full((3,), .01)}
    settings = Settings(**SMALL, max_evaluations=limit, residual_threshold=1e-9)
    result = Search(model, field(model), STEPS, params, settings, Rewards(model, settings, params))
    result.best()
    assert STEPS <= result.spent.max() <= limit


def test_what_is_not_finite_is_never_chosen(model):
    class Broken(Oracle):
        def __call__(self, u0, u1, rows):
            u1 = u1.clone()
            u1[::2] = torch.nan
            return super().__call__(u0, u1, rows)

    _, result = found(model, Broken(model, field(model, frames=STEPS)))
    assert (result.beam.score.amax(1) > -1e3).all()
    left_over = Rewards(model, Settings(), {'Nu': torch.full((3,), .01)})
    u = field(model)
    assert (left_over(u, u * torch.nan, torch.arange(3)) == search.HOPELESS).all()


def test_an_oracle_judges_the_step_that_a_proposal_is_at(model):
    class Recorder(Oracle):
        steps = []

        def __call__(self, u0, u1, rows):
            self.steps.append(self.step)
            return super().__call__(u0, u1, rows)

    found(model, Recorder(model, field(model, frames=STEPS)), horizon=3)
    assert Recorder.steps == [0, 1, 2, 1, 2, 3, 2, 3, 3]             # and none beyond the last


def test_negative_values_are_seen_before_they_are_cut_off():
    m = drawn(**ALL, encoder_dim=0, decoder_dim=0, positive=(0,), conserved=()).eval()
    z = m.encode(field(m).abs())
    uncut = m.decode(z._replace(tokens=-3 * z.tokens), cut=False)
    assert uncut.min() < 0 == m.cut(uncut).min()
    assert found(m)[0].min() == 0


def test_a_seed_repeats_a_search(model):
    p, _ = found(model, seed=3)
    assert torch.equal(p, found(model, seed=3)[0])
    assert not torch.equal(p, found(model, seed=4)[0])


def test_noise_of_no_size_leaves_no_choice(model):
    p, _ = found(model, noise_schedule=(0.,))
    q, _ = found(model, noise_schedule=(0.,), candidates=1, beam_width=1)
    close(p, q)
    half, _ = found(model, noise_schedule=(0., 1.))
    close(half[:, :2], q[:, :2])
    assert not torch.allclose(half[:, 3], q[:, 3], atol=1e-3)


def test_good_enough_first_proposals_are_taken(model):
    params = {'Nu': torch.full((3,), .01)}
    settings = Settings(**SMALL)
    for threshold, all_taken in ((1e9, True), (1e-9, False)):
        settings.residual_threshold = threshold
        result = Search(model, field(model), STEPS, params, settings, Rewards(model, settings, params))
        p = result.best()
        if all_taken:
            close(p, model.rollout(field(model), STEPS, by='ensemble'))
            assert result.spent.tolist() == 3 * [STEPS]
        else:
            assert (result.spent == STEPS + 4 + 3 * 12).all()
    # some of a batch are taken, the others are searched as if they were alone
    settings.residual_threshold = 0.
    first = Search(model, field(model), 1, params, Settings(candidates=1, beam_width=1),
                   Rewards(model, settings, params)).best()
    left = Rewards(model, settings, params).residual(field(model), first[:, 0], torch.arange(3))
    settings.residual_threshold = float(left.sort().values[:2].mean())
    result = Search(model, field(model), 1, params, settings, Rewards(model, settings, params))
    result.best()
    assert sorted(result.spent.tolist()) == [1, 5, 5]


def test_rewards_that_cannot_choose_say_so(model):
    params = {'Nu': torch.full((3,), .01)}
    rewards = Rewards(model, Settings(), params)
    assert set(rewards.weights) == {'residual', 'mass', 'energy'}    # this one does not keep the integral
    keeps = drawn(**ALL, conserved=(0,)).eval()
    rewards = Rewards(keeps, Settings(), params)
    assert set(rewards.weights) == {'residual', 'energy'}
    assert 'keeps every integral' in rewards.left_out['mass']
    assert 'positive' in rewards.left_out['negativity']
    said = refused(Rewards, keeps, Settings(residual=0., energy=0.), params)
    assert 'no reward applies to burgers' in said
    assert 'its weight is 0' in refused(Rewards, keeps, Settings(residual=0., residual_threshold=1.), params)


def test_rewards_by_hand(model):
    params = {'Nu': torch.full((1,), .01)}
    x = model.points[None]
    u0 = torch.sin(2 * torch.pi * x)
    rows = torch.tensor([0])
    rewards = Rewards(model, Settings(), params)
    close(rewards.mass(u0, u0 + .1, rows), torch.tensor([.1 * 2 ** .5]), 1e-4)
    close(rewards.energy(u0, 1.1 * u0, rows), torch.tensor([.21]), 1e-3)
    close(rewards.energy(u0, .9 * u0, rows), torch.tensor([0.]))
    total = rewards(u0, 1.1 * u0 + .1, rows)
    parts = [getattr(rewards, name)(u0, 1.1 * u0 + .1, rows) for name in ('mass', 'energy', 'residual')]
    close(total, -sum(parts))


def test_what_goes_on():
    score = torch.tensor([[1., 3., 2., 9., 0., 8.]])                 # two rollouts of three proposals
    zero = torch.zeros_like(score)
    assert best_of(score, zero, 3, 3).tolist() == [[1, 3, 5]]
    assert best_of(score, zero, 3, 1).tolist() == [[1]]
    assert best_of(score, torch.tensor([[5., 0, 0, 0, 0, 0]]), 3, 2).tolist() == [[0, 3]]
    assert best_of(score[:, :2], zero[:, :2], 2, 5).tolist() == [[1, 0]]


def test_rank_correlation():
    a = torch.tensor([[1., 2., 3., 4.], [1., 2., 3., 4.], [1., 2., 3., 4.]])
    b = torch.tensor([[10., 20., 30., 50.], [4., 3., 2., 1.], [2., 1., 4., 3.]])
    close(rank_correlation(a, b), torch.tensor([1., -1., .6], dtype=torch.float64))
    ties = torch.tensor([[1., 1., 2., 3.]])                          # ranks 1.5, 1.5, 3, 4
    close(rank_correlation(a[:1], ties), torch.tensor([4.5 / (5 * 4.5) ** .5], dtype=torch.float64))
    assert rank_correlation(a[:1], torch.ones(1, 4)).isnan().all()


def test_settings_from_text():
    s = Settings.of(['by=residual', 'candidates=3', 'gamma=.5', 'noise_schedule=1,.5'])
    assert (s.by, s.candidates, s.gamma, s.noise_schedule) == ('residual', 3, .5, (1., .5))
    assert 'it has' in refused(Settings.of, ['candidate=3'])
    assert 'not a value' in refused(Settings.of, ['candidates=a'])


def test_what_cannot_be_searched(model):
    assert 'draws no noise' in refused(found, model, by='operator')
    assert 'at least 1' in refused(found, model, candidates=0)
    other = drawn(parts=('corrector',)).eval()
    assert 'no ensemble' in refused(found, other)


@pytest.mark.parametrize('key', ['max_evaluations', 'seed', 'flow_steps'])
def test_numbers_below_zero_are_refused(model, key):
    settings = Settings.of(['by=ensemble', f'{key}=-5'])
    assert f'{key}' in refused(settings.check, model, 3)


def test_report(model, monkeypatch):
    u = field(model, frames=STEPS + 1)
    seeds = []

    class Watched(Search):
        def __init__(self, *args):
            seeds.append(args[4].seed)
            super().__init__(*args)

    monkeypatch.setattr(search, 'Search', Watched)
    r = search.report(model, u, {'Nu': torch.full((3,), .01)}, 1, 2, Settings(**SMALL))
    assert seeds == 3 * [0, 2]                                       # batches do not share their noise
    rows = r['rows']
    assert rows['oracle']['nrmse'] < rows['one sample']['nrmse']
    assert rows['one sample']['evaluations'] == rows['operator']['evaluations'] == 1
    assert rows['search']['evaluations'] == (4 + 3 * 12) / STEPS
    assert rows['mean of 10 samples']['evaluations'] == 10
    assert -1 <= r['rank_correlation'] <= 1 and set(r['left_out']) == {'negativity'}


def test_a_mean_over_all_shifts_of_a_token_moves_with_the_field(model):
    n = model.cfg.points_per_token[0]
    u = field(model)

    def of(u, n, steps=2):
        p, evaluations = search.shifts(model, steps, n)(u, None, {}, None)
        assert evaluations == n * steps * len(u)
        return p

    close(of(u, 1, steps=1), model.rollout(u, 1))
    close(of(u.roll(1, 1), n), of(u, n).roll(1, 2))
    assert not torch.allclose(of(u.roll(1, 1), 1), of(u, 1).roll(1, 2), atol=1e-4)
