"""flows.py: flows against distributions that are known, and the steppers of a model in its rollouts."""
import copy

import pytest
import torch

import model
from conftest import close, config, drawn, refused
from probabilistic.flows import LEAST_LEFT, ConsistencyModel, Flow, evaluations, sampling_steps
from steppers import ALL, STOCHASTIC, field, gaussian

TINY = {'latent_dim': 2, 'flow_dim': 16, 'flow_depth': 1}


def cond_of(n):
    return torch.zeros(n, 64)


# ---------------------------------------------------------------------------------------------
# closed forms: x is Gaussian, of mean MU and deviation SIGMA

MU = .7
SIGMA = .4


def knowing(kind, end_of):
    """A flow whose network predicts x_1 = end_of(x, tau)."""
    flow = kind(config(**TINY), 1)
    flow.predict = lambda x, tau, context, cond: end_of(x, tau[:, None, None])
    return flow


def size_at(tau):
    """Deviation of x_tau = tau x_1 + (1 - tau) x_0"""
    return (tau ** 2 * SIGMA ** 2 + (1 - tau) ** 2) ** .5


def velocity_at(x, tau):
    """Mean of x_1 - x_0 over all straight lines through x_tau = x."""
    pull = (tau * SIGMA ** 2 - (1 - tau)) / size_at(tau) ** 2
    return MU + pull * (x - tau * MU)


def teaching(x, tau):
    return x + (1 - tau).clamp_min(LEAST_LEFT) * velocity_at(x, tau)


def jumping(x, tau):
    """The end of the trajectory through x, as a consistency model predicts it."""
    end = MU + SIGMA * (x - tau * MU) / size_at(tau)
    return x + (1 - tau).clamp_min(LEAST_LEFT) / (1 - tau) * (end - x)


def deviation_of(flow, steps, n=20_000):
    """Mean and deviation of samples."""
    x = flow.sample(torch.zeros(n, 8, 2), cond_of(n), steps, gaussian())
    return x.mean(), x.std()


def test_the_steps_of_a_flow_integrate_its_velocity():
    """One step gives the mean, many give the distribution, with an error of first order."""
    flow = knowing(Flow, teaching)
    errors = []
    for steps in (1, 16, 32):
        mean, deviation = deviation_of(flow, steps)
        assert float(mean) == pytest.approx(MU, abs=.01)
        errors.append(abs(float(deviation) - SIGMA))
    assert errors[0] == pytest.approx(SIGMA, abs=1e-4)
    assert errors[1] < .05
    assert errors[2] < .6 * errors[1]


@pytest.mark.parametrize('steps', [1, 2, 4])
def test_a_consistency_model_samples_in_any_number_of_steps(steps):
    mean, deviation = deviation_of(knowing(ConsistencyModel, jumping), steps)
    assert float(mean) == pytest.approx(MU, abs=.01)
    assert float(deviation) == pytest.approx(SIGMA, abs=.01)


def test_the_target_is_the_velocity_in_the_mean():
    """The difference from the true velocity is orthogonal to functions of x_tau."""
    flow = knowing(Flow, teaching)
    x = MU + SIGMA * torch.randn(50_000, 8, 2)
    flow.scale.fill_(2.)                                             # x is in units of it
    tau = torch.rand(50_000)
    noise = torch.randn_like(x)
    velocity, target = flow.prediction_and_target(2 * x, tau, noise, torch.zeros_like(x), cond_of(50_000))
    t = tau[:, None, None]
    x_tau = t * x + (1 - t) * noise
    for test_function in (1., x_tau, t * x_tau ** 2):
        assert abs(float(((velocity - target) * test_function).mean())) < .01


# ---------------------------------------------------------------------------------------------
# a flow learns a distribution

def gaussian_law(n):
    """x is Gaussian, of a mean that follows from the context and deviations .2 and .05."""
    context = torch.rand(n, 8, 2) * 2 - 1
    return .3 * context.flip(-1) + torch.tensor([.2, .05]) * torch.randn(n, 8, 2), context


def fitted(module, loss_of, n_iters):
    """The module after a training; loss_of() is the loss of a batch."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_iters)
    for _ in range(n_iters):
        optimizer.zero_grad()
        loss_of().backward()
        optimizer.step()
        schedule.step()
    return module.requires_grad_(False)


@pytest.fixture(scope='module')
def teacher():
    torch.manual_seed(0)
    flow = Flow(config(**TINY), 1)
    flow.fit(*gaussian_law(1024))

    def loss():
        x, context = gaussian_law(64)
        tau = torch.distributions.Beta(1.2, 1.2).sample((64,))
        velocity, target = flow.prediction_and_target(x, tau, torch.randn_like(x), context, cond_of(64))
        return (velocity - target).square().mean()

    return fitted(flow, loss, 700)


def moments(flow, steps, n=2000):
    """Mean and deviation of samples for one context, and the true mean, each (8, 2)."""
    context = torch.linspace(-.8, .8, 16).view(1, 8, 2).expand(n, -1, -1)
    x = flow.sample(context, cond_of(n), steps, gaussian())
    return x.mean(0), x.std(0), .3 * context[0].flip(-1)


@pytest.mark.slow
def test_many_steps_give_mean_and_deviation_and_one_step_the_mean(teacher):
    mean, deviation, true_mean = moments(teacher, 16)
    assert (mean - true_mean).abs().max() < .06
    assert (deviation / torch.tensor([.2, .05]) - 1).abs().mean() < .15
    mean, deviation, true_mean = moments(teacher, 1)
    assert (mean - true_mean).abs().max() < .06
    assert (deviation < torch.tensor([.1, .025])).all()


@pytest.mark.slow
def test_a_consistency_model_learns_the_end_of_its_teachers_trajectory(teacher):
    torch.manual_seed(0)
    student = ConsistencyModel(config(**TINY), 1)
    student.load_state_dict(teacher.state_dict())

    def loss():
        _, context = gaussian_law(64)
        noise = torch.randn(64, 8, 2)
        _, end = teacher.path(noise, context, cond_of(64), 8)
        return (student.end(noise, torch.zeros(64), context, cond_of(64)) - end).square().mean()

    fitted(student, loss, 300)
    _, context = gaussian_law(256)
    end = teacher.sample(context, cond_of(256), 8, gaussian())

    def distance(flow):
        one_step = flow.sample(context, cond_of(256), 1, gaussian())
        return (one_step - end).square().mean((0, 1)).sqrt()

    assert (distance(student) < .35 * distance(teacher)).all()


def test_what_is_always_zero_is_not_drawn():
    flow = Flow(config(latent_dim=2, conserved=(0,)), 1)
    x = torch.randn(50, 8, 2)
    x[..., 0] -= x[..., 0].mean(1, keepdim=True)
    x[..., 1] = 0.
    flow.fit(x, x)
    with torch.no_grad():
        flow.network.head.weight.normal_()
    sample = flow.sample(x, torch.randn(50, 64), 3, gaussian())
    assert not sample[..., 1].any() and sample[..., 0].std() > .1
    assert sample[..., 0].mean(1).abs().max() < 1e-6
    assert flow.to_unit(x).isfinite().all()


def test_a_path_may_begin_and_turn_straight_anywhere():
    """Steps at .5 and .7: half of the noise at the beginning, and from .7 on straight to the end."""
    flow = Flow(config(**TINY), 1).requires_grad_(False)
    flow.network.head.weight.normal_()
    noise = torch.randn(3, 8, 2)
    context = torch.randn(3, 8, 2)
    cond = torch.randn(3, 64)
    begins, end = flow.path(noise, context, cond, [.5, .7])
    assert [float(tau[0]) for _, tau in begins] == pytest.approx([.5, .7])
    close(begins[0][0], .5 * noise)
    last, tau = begins[1]
    close(end, last + .3 * flow(last, tau, context, cond))


@pytest.mark.parametrize('key', ['flow_dim', 'flow_depth', 'noise_dim'])
def test_sizes_that_no_stepper_has_are_refused(key):
    assert key in refused(drawn, **{**ALL, key: 0})


# ---------------------------------------------------------------------------------------------
# steppers in rollouts

@pytest.mark.parametrize('stepper', STOCHASTIC)
def test_members_differ_and_a_seed_repeats_them(stepper):
    m = drawn(**ALL).eval()
    u = field(m, 2)
    how = {'stepper': stepper, 'n_members': 3}
    p = m.rollout(u, 2, **how, seed=5)
    assert p.shape == (2, 3, 2, 32, 1)
    assert torch.equal(p, m.rollout(u, 2, **how, seed=5))
    assert not torch.equal(p, m.rollout(u, 2, **how, seed=6))
    assert (p[:, 0] - p[:, 1]).abs().amax((1, 2, 3)).min() > 1e-4
    q = torch.tensor([[.2], [.7]])
    assert m.rollout(u, 2, q, **how, seed=5).shape == (2, 3, 2, 2, 1)
    close(m.rollout(u, 2, **how, seed=5, params={'Nu': torch.tensor([.01, .01])}), p)


def test_a_stochastic_step_is_given_its_noise():
    """Otherwise a rollout step by step would have the same noise in every step."""
    m = drawn(**ALL).eval()
    z = m.encode(field(m))
    assert 'noise=m.noise(seed)' in refused(m.step, z, stepper='ensemble')
    noise = m.noise(0)
    for expected in m.rollout(field(m), 3, stepper='ensemble', seed=0).unbind(1):
        z = m.step(z, stepper='ensemble', noise=noise)
        close(m.decode(z), expected)


@pytest.mark.parametrize('arch', ['pure', 'u'])
def test_an_ensemble_without_trained_noise_is_the_operator_bit_for_bit(arch):
    m = drawn(scramble=False, **ALL, arch=arch).eval()
    with torch.no_grad():
        for p in m.operator.parameters():
            p.add_(torch.randn_like(p), alpha=.2)
    m.ensemble.begin_as(m.operator)
    assert not m.ensemble.is_trained()
    u = field(m)
    assert torch.equal(m.rollout(u, 3, stepper='ensemble'), m.rollout(u, 3))


@pytest.mark.parametrize('stepper', ['diff_residual', 'consistency_distill'])
def test_a_corrector_without_residual_is_the_operator(stepper):
    m = drawn(**ALL).eval()
    m.stepper(stepper).flow.fit(torch.zeros(5, 8, 8), torch.randn(5, 8, 16))
    u = field(m)
    assert torch.equal(m.rollout(u, 3, stepper=stepper), m.rollout(u, 3))


@pytest.mark.parametrize('stepper', STOCHASTIC)
@pytest.mark.parametrize('d', [1, 2])
def test_conserved_and_static_fields(stepper, d):
    m = drawn(d, **ALL, fields=('a', 'u'), static=(0,), conserved=(1,), encoder_dim=0, decoder_dim=0).eval()
    u = field(m)
    p = m.rollout(u, 3, stepper=stepper)
    before = u[..., 1].flatten(1).mean(1, keepdim=True)
    close(p[..., 1].flatten(2).mean(2), before.expand(-1, 3), 1e-4)
    if stepper != 'ensemble':                                        # a flow takes it from its samples
        m.stepper(stepper).flow.scale[::2] = 0.
        p = m.rollout(u, 3, stepper=stepper)
    close(p[:, -1, ..., 0], m.decode(m.encode(u))[..., 0])


def test_tokens_that_move_are_at_rest_in_a_steady_prior_without_change():
    m = drawn(**ALL, token_shift=3, encoder_dim=0, decoder_dim=0).eval()
    m.steady_prior.flow.scale.zero_()
    u = field(m)
    close(m.rollout(u, 2, stepper='steady_prior')[:, 1], u, 1e-4)


def test_sampling_steps_hold_within_their_context():
    m = drawn(**ALL).eval()
    u = field(m)
    for stepper, n, calls in (('diff_residual', 4, 5), ('consistency_distill', 1, 2), ('steady_prior', 4, 4)):
        module = m.stepper(stepper)
        plain = m.rollout(u, 1, stepper=stepper)
        assert module.n_steps == n and evaluations(module) == calls
        with pytest.raises(ValueError), sampling_steps(module, n + 1):
            assert evaluations(module) == calls + 1
            assert not torch.equal(m.rollout(u, 1, stepper=stepper), plain)
            raise ValueError
        with sampling_steps(module, 0):
            assert module.n_steps == n
        assert torch.equal(m.rollout(u, 1, stepper=stepper), plain)
    with sampling_steps(m.ensemble, 3):
        assert evaluations(m.ensemble) == 1


def test_a_copy_of_a_model_steps_by_its_own_operator():
    """The averaged weights are such a copy."""
    m = drawn(**ALL).eval()
    twin = copy.deepcopy(m)
    for p in m.operator.parameters():
        p.data.zero_()
    for stepper in STOCHASTIC:
        [operator] = getattr(twin.stepper(stepper), 'operator', [None])
        assert operator in (twin.operator, None)
    assert not any('operator' in name for name in m.diff_residual.state_dict())


def test_a_stepper_that_is_not_there_is_refused():
    m = drawn(**{**ALL, 'steppers': ('operator', 'ensemble')}).eval()
    assert "the stage 'diff_residual'" in refused(m.rollout, field(m), 2, stepper='diff_residual')
    assert 'stepper=magic' in refused(m.rollout, field(m), 2, stepper='magic')
    assert 'wheel' in refused(config(steppers=('operator', 'wheel')).check)


def test_an_operator_without_blocks_makes_no_ensemble(monkeypatch):
    class Convolution(torch.nn.Conv1d):
        def __init__(self, cfg):
            super().__init__(1, 1, 1)

    monkeypatch.setitem(model.NETWORKS, 'convolution', Convolution)
    words = refused(drawn, arch='convolution', steppers=('operator', 'ensemble'))
    assert 'arch=convolution' in words
