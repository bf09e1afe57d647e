"""scores.py: ensembles of known distributions, and those that a model makes."""
import math

import pytest
import torch

from conftest import close, drawn
from evaluation.scores import predict
from metrics import nrmse
from probabilistic.scores import (coverage, crps, crps_loss, ensemble_metrics, ensembles, fair_crps,
                                  spread_skill)
from steppers import ALL, STOCHASTIC, field


@pytest.mark.parametrize('n', [2, 3, 16])
def test_scores_of_a_known_distribution(n):
    """Members and truth N(0, 1): E|x - y| - E|x - x'| / 2 = 1 / sqrt(pi), whatever the number of members."""
    generator = torch.Generator().manual_seed(n)
    members = torch.randn(4000, n, 1, 16, 1, generator=generator, dtype=torch.float64)
    truth = torch.randn(4000, 1, 16, 1, generator=generator, dtype=torch.float64)
    best = 1 / math.sqrt(math.pi)
    assert float(fair_crps(members, truth).mean()) == pytest.approx(best, rel=.01)
    wide = float(fair_crps(1.5 * members, truth).mean())
    narrow = float(fair_crps(.6 * members, truth).mean())
    assert min(wide, narrow) > 1.02 * best                           # proper: other distributions score worse
    assert float(spread_skill(members, truth).mean()) == pytest.approx(1, rel=.02)
    assert float(coverage(members, truth).double().mean()) == pytest.approx((n - 1) / (n + 1), abs=.01)


def test_crps_by_hand():
    members = torch.tensor([0., 2., 5.]).view(1, 3, 1, 1, 1)
    truth = torch.tensor([1.]).view(1, 1, 1, 1)
    # mean |x - 1| = (1 + 1 + 4) / 3; pairs |0 - 2|, |0 - 5|, |2 - 5|: mean 10 / 3
    assert float(fair_crps(members, truth)) == pytest.approx(2 - 5 / 3)
    assert float(crps_loss(members, truth)) == pytest.approx(2 - 5 / 3)
    assert crps(members, 2 * truth) == pytest.approx(((2 + 0 + 3) / 3 - 5 / 3) / 2)      # relative to |truth|


def test_an_ensemble_of_one_state_scores_as_that_state():
    y = torch.randn(3, 4, 10, 1)
    p = y + .1
    scores = ensemble_metrics(p[:, None].expand(-1, 5, -1, -1, -1), y)
    norm = y.double().square().mean(2).sqrt()
    assert scores['relative_crps'] == pytest.approx(float((.1 / norm).mean()), rel=1e-4)
    assert scores['nrmse_member'] == pytest.approx(scores['nrmse_mean'])
    assert scores['spread_skill'] == pytest.approx(0, abs=1e-9) and scores['coverage'] == 0
    assert scores['coverage_if_calibrated'] == pytest.approx(4 / 6)


def test_every_batch_has_noise_of_its_own():
    m = drawn(**ALL).eval()
    u = field(m, 1, frames=3).expand(2, -1, -1, -1)
    p = predict(m, u, {'Nu': torch.full((2,), .01)}, 1, 1, stepper='ensemble', n_members=2)
    assert not torch.equal(p[0], p[1])


def test_the_ensembles_of_a_model():
    m = drawn(**ALL).eval()
    u = field(m, 3, frames=4)
    params = {'Nu': torch.full((3,), .01)}
    found = ensembles(m, u, params, 1, 3, ('operator', *STOCHASTIC), 2, flow_steps=3)
    assert list(found) == ['operator', *STOCHASTIC]
    plain = m.rollout(u[:, 0], 3)
    assert found['operator']['n_members'] == 1 and found['operator']['flow_steps'] is None
    assert found['operator']['nrmse_mean'] == pytest.approx(float(nrmse(plain, u[:, 1:]).mean()), rel=1e-4)
    assert found['ensemble']['n_members'] == 2 and found['ensemble']['flow_steps'] is None
    for stepper in ('diff_residual', 'consistency_distill', 'steady_prior'):
        assert found[stepper]['flow_steps'] == 3
        assert 0 < found[stepper]['nrmse_mean'] < found[stepper]['nrmse_member']
    assert (m.diff_residual.n_steps, m.consistency_distill.n_steps) == (4, 1)
    p = m.rollout(u[:, 0], 3, stepper='ensemble', n_members=2)
    close(torch.tensor(found['ensemble']['relative_crps']), torch.tensor(crps(p, u[:, 1:])), 1e-4)
