"""flows.py and what a model does with it: flows against laws that are known, their students, ensembles."""
import math

import pytest
import torch

from conftest import close, config, drawn, refused
from flows import FLOWS, REFINER_STEPS, Flow, Student, refiner_noise
from metrics import coverage, crps, ensemble_metrics, fair_crps, spread_skill
from model import BY, PARTS, UPT, model_args, rebuild

ALL = {'parts': PARTS, 'flow_dim': 16, 'flow_depth': 1, 'noise_dim': 4}
LATE = [by for by in BY if by != 'operator']


def draws(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


def field(m, n=2):
    return torch.randn(n, *m.cfg.grid, m.cfg.n_field, generator=torch.Generator().manual_seed(1))


# ---------------------------------------------------------------------------------------------
# a flow learns what it is shown

def taught(kind, n_iters, law, seed=0):
    """A flow of `kind` trained on x, given = law(n)."""
    torch.manual_seed(seed)
    flow = FLOWS[kind](config(latent_dim=2, flow_dim=16, flow_depth=1), 1)
    x, given = law(1024)
    flow.fit(x, given)
    optimizer = torch.optim.AdamW(flow.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_iters)
    for _ in range(n_iters):
        x, given = law(64)
        tau = flow.draw_tau(64, 1.2)
        noise = torch.randn_like(x)
        prediction, target = flow.prediction_and_target(x, tau, noise, given, torch.zeros(64, 8))
        optimizer.zero_grad()
        (prediction - target).square().mean().backward()
        optimizer.step()
        schedule.step()
    return flow.requires_grad_(False)


def gaussian(n):
    """x is Gaussian; its mean follows what is given, its deviation is that of the feature: .2 and .05."""
    given = torch.rand(n, 8, 2) * 2 - 1
    return .3 * given.flip(-1) + torch.tensor([.2, .05]) * torch.randn(n, 8, 2), given


@pytest.fixture(scope='module')
def teacher():
    return taught('flow', 800, gaussian)


def moments(sample, n=2000):
    """Mean and deviation of samples for one condition, each (8, 2)."""
    given = torch.linspace(-.8, .8, 16).view(1, 8, 2).expand(n, -1, -1)
    x = sample(given, torch.zeros(n, 8))
    return x.mean(0), x.std(0), .3 * given[0].flip(-1)


def test_a_flow_learns_mean_and_deviation(teacher):
    mean, deviation, true_mean = moments(lambda given, cond: teacher.sample(given, cond, 16, draws()))
    assert (mean - true_mean).abs().max() < .06
    assert (deviation / torch.tensor([.2, .05]) - 1).abs().mean() < .15


def test_a_single_step_of_a_flow_is_the_mean(teacher):
    mean, deviation, true_mean = moments(lambda given, cond: teacher.sample(given, cond, 1, draws()))
    assert (mean - true_mean).abs().max() < .06
    assert (deviation < torch.tensor([.1, .025])).all()


def test_a_student_ends_where_its_teacher_does(teacher):
    torch.manual_seed(0)
    student = Student(config(latent_dim=2, flow_dim=16, flow_depth=1), 1)
    student.load_state_dict(teacher.state_dict())
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    cond = torch.zeros(64, 8)
    for _ in range(400):
        _, given = gaussian(64)
        noise = torch.randn(64, 8, 2)
        end = teacher.sample(given, cond, 8, lambda *shape: noise) / teacher.scale
        optimizer.zero_grad()
        (student.end(noise, torch.zeros(64), given, cond) - end).square().mean().backward()
        optimizer.step()
        schedule.step()
    student.requires_grad_(False)
    _, given = gaussian(256)
    cond = torch.zeros(256, 8)
    end = teacher.sample(given, cond, 8, draws())
    apart = (student.sample(given, cond, 1, draws()) - end).square().mean((0, 1)).sqrt()
    once = (teacher.sample(given, cond, 1, draws()) - end).square().mean((0, 1)).sqrt()
    assert (apart < .35 * once).all(), (apart, once)


def test_a_step_that_draws_noise_is_given_its_source():
    """Or a rollout step by step would have the same noise in every step."""
    m = drawn(parts=PARTS, flow_dim=16, flow_depth=1, noise_dim=4).eval()
    u = torch.randn(2, 32, 1)
    assert 'draw=m.draws(seed)' in refused(m.step, m.encode(u), by='ensemble')
    draw = m.draws(0)
    z = m.encode(u)
    for expected in m.rollout(u, 3, by='ensemble', seed=0).unbind(1):
        z = m.step(z, by='ensemble', draw=draw)
        close(m.decode(z), expected)


def test_a_refiner_learns_the_mean():
    refiner = taught('refiner', 500, gaussian)
    mean, _, true_mean = moments(lambda given, cond: refiner.sample(given, cond, 1, draws()))
    assert (mean - true_mean).abs().max() < .08
    levels = refiner_noise(torch.arange(REFINER_STEPS + 1) / REFINER_STEPS)
    close(levels, torch.tensor([1., 4e-7 ** (1 / 6), 4e-7 ** (1 / 3), 4e-7 ** .5]))


def test_what_is_always_zero_is_not_drawn():
    flow = Flow(config(latent_dim=2, conserved=(0,)), 1)
    x = torch.randn(50, 8, 2)
    x[..., 0] -= x[..., 0].mean(1, keepdim=True)
    x[..., 1] = 0.
    flow.fit(x, x)
    with torch.no_grad():
        flow.network.head.weight.normal_()
    drawn_ = flow.sample(x, torch.randn(50, 8), 3, draws())
    assert not drawn_[..., 1].any() and drawn_[..., 0].std() > .1
    assert drawn_[..., 0].mean(1).abs().max() < 1e-6
    assert flow.to_unit(x).isfinite().all()


# ---------------------------------------------------------------------------------------------
# rollouts

def test_without_noise_the_ensemble_is_the_operator_bit_for_bit():
    m = drawn(scramble=False, **ALL).eval()
    with torch.no_grad():
        for p in m.operator.parameters():
            p.add_(torch.randn_like(p), alpha=.2)
    m.ensemble.load_state_dict(m.operator.state_dict(), strict=False)
    u = field(m)
    z = m.encode(u).tokens
    cond = m.condition(torch.full((2,), .05), torch.full((2, 1), .01))
    assert torch.equal(m.ensemble(z, cond), m.operator(z, cond))
    assert torch.equal(m.rollout(u, 3, by='ensemble'), m.rollout(u, 3))          # noise does nothing yet


@pytest.mark.parametrize('by, part', [('residual', 'corrector'), ('distill', 'student')])
def test_where_nothing_is_left_the_rollout_is_the_operators(by, part):
    m = drawn(**ALL).eval()
    flow = getattr(m, part)
    flow.fit(torch.zeros(5, 8, 8), torch.randn(5, 8, 16))
    u = field(m)
    assert torch.equal(m.rollout(u, 3, by=by), m.rollout(u, 3))


@pytest.mark.parametrize('kind', ['flow', 'refiner'])
@pytest.mark.parametrize('by', LATE)
def test_members_differ_and_a_seed_repeats_them(by, kind):
    m = drawn(**ALL, flow_kind=kind).eval()
    u = field(m)
    p = m.rollout(u, 2, by=by, members=3, seed=5)
    assert p.shape == (2, 3, 2, 32, 1)
    assert torch.equal(p, m.rollout(u, 2, by=by, members=3, seed=5))
    assert not torch.equal(p, m.rollout(u, 2, by=by, members=3, seed=6))
    assert (p[:, 0] - p[:, 1]).abs().amax((1, 2, 3)).min() > 1e-4
    q = torch.tensor([[.2], [.7]])
    assert m.rollout(u, 2, q, by=by, members=3, seed=5).shape == (2, 3, 2, 2, 1)
    u2 = m.rollout(u, 2, by=by, members=3, seed=5, params={'Nu': torch.tensor([.01, .01])})
    close(u2, p)


@pytest.mark.parametrize('by', LATE)
@pytest.mark.parametrize('d', [1, 2])
def test_conserved_and_static_fields(by, d):
    m = drawn(d, **ALL, fields=('a', 'u'), static=(0,), conserved=(1,), encoder_dim=0, decoder_dim=0).eval()
    u = field(m)
    p = m.rollout(u, 3, by=by)
    space = tuple(range(2, 2 + d))
    close(p[..., 1].mean(space), u[..., 1].mean(tuple(range(1, 1 + d)))[:, None].expand(-1, 3), 1e-4)
    if by != 'ensemble':                                             # a flow knows it from its samples
        getattr(m, BY[by]).scale[::2] = 0.
        p = m.rollout(u, 3, by=by)
    close(p[:, -1, ..., 0], m.decode(m.encode(u))[..., 0])


def test_a_part_that_is_not_there():
    m = drawn(**{**ALL, 'parts': ('ensemble',)}).eval()
    assert 'residual' in refused(m.rollout, field(m), 2, by='residual')
    assert 'not one of' in refused(m.rollout, field(m), 2, by='magic')
    assert 'parts' in refused(config(parts=('wheel',)).check)
    assert 'no ensemble' in refused(config(arch='fno', parts=('ensemble',)).check)


def test_a_model_gets_further_parts():
    """Fine-tuning with a later stage keeps the weights that are there, and the parts of other stages."""
    m = drawn(**{**ALL, 'parts': ('corrector',)})
    state = {'model_args': model_args(m.cfg), 'ema': m.state_dict(), 'model': m.state_dict()}
    more = rebuild(config(**{**ALL, 'parts': ('student',)}), state, 'a', averaged=True)
    assert more.cfg.parts == ('corrector', 'student')
    for name, value in m.state_dict().items():
        assert torch.equal(more.state_dict()[name], value)
    said = refused(rebuild, config(**{**ALL, 'flow_dim': 32}), state, 'a', True)
    assert 'flow_dim: 16 there, 32 now' in said
    state = {'model_args': model_args(config()), 'ema': UPT(config()).state_dict()}
    assert rebuild(config(**{**ALL, 'flow_dim': 32}), state, 'a', True).cfg.parts == PARTS


# ---------------------------------------------------------------------------------------------
# scores of ensembles

@pytest.mark.parametrize('n', [2, 3, 4, 16])
def test_fair_crps_of_a_known_law(n):
    """Members and truth N(0, 1): E|x - y| - E|x - x'| / 2 = 1 / sqrt(pi), whatever the number of members."""
    generator = torch.Generator().manual_seed(n)
    members = torch.randn(4000, n, 1, 16, 1, generator=generator, dtype=torch.float64)
    truth = torch.randn(4000, 1, 16, 1, generator=generator, dtype=torch.float64)
    assert float(fair_crps(members, truth).mean()) == pytest.approx(1 / math.sqrt(math.pi), rel=.01)
    wide = float(fair_crps(1.5 * members, truth).mean())
    narrow = float(fair_crps(.6 * members, truth).mean())
    assert min(wide, narrow) > 1.02 / math.sqrt(math.pi)             # proper: other laws score worse
    assert float(spread_skill(members, truth).mean()) == pytest.approx(1, rel=.02)
    assert float(coverage(members, truth).double().mean()) == pytest.approx((n - 1) / (n + 1), abs=.01)


def test_crps_by_hand():
    members = torch.tensor([0., 2., 5.]).view(1, 3, 1, 1, 1)
    truth = torch.tensor([1.]).view(1, 1, 1, 1)
    # mean |x - 1| = (1 + 1 + 4) / 3; pairs |0-2|, |0-5|, |2-5|: mean 10 / 3
    assert float(fair_crps(members, truth)) == pytest.approx(2 - 5 / 3)
    assert crps(members, 2 * truth) == pytest.approx((2 + 0 + 3) / 3 / 2 - 5 / 3 / 2)


def test_an_ensemble_of_one_state_scores_as_that_state():
    y = torch.randn(3, 4, 10, 1)
    p = y + .1
    scores = ensemble_metrics(p[:, None].expand(-1, 5, -1, -1, -1), y)
    norm = y.double().square().mean(2).sqrt()
    assert scores['crps'] == pytest.approx(float((.1 / norm).mean()), rel=1e-4)
    assert scores['nrmse_member'] == pytest.approx(scores['nrmse_mean'])
    assert scores['spread_skill'] == pytest.approx(0, abs=1e-9) and scores['coverage'] == 0
    assert scores['coverage_if_calibrated'] == pytest.approx(4 / 6)
