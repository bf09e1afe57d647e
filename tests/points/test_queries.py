"""queries.py: losses at some points of the grid."""
import pytest
import torch

from batches import batch_of, outputs_of, settings
from conftest import close, drawn, refused
from losses import OperatorStage
from points.queries import STRATEGIES, draw_queries, importance


@pytest.mark.parametrize('d', [1, 2])
@pytest.mark.parametrize('strategy', STRATEGIES)
def test_fields_are_compared_at_some_points(d, strategy):
    m = drawn(d, fields=('a', 'b'))
    whole = outputs_of(OperatorStage(m, settings(lambda_inverse_encoding=1.)), batch_of(m))
    s = settings(num_queries=12, query_strategy=strategy, lambda_inverse_encoding=1., lambda_latent=1.)
    stage = OperatorStage(m, s)
    torch.manual_seed(0)
    batch = batch_of(m)
    torch.manual_seed(1)
    few = outputs_of(stage, batch)
    torch.manual_seed(1)
    index, scale = draw_queries(batch.u, 12, strategy, True)
    truth = (batch.u + batch.background).flatten(2, -2)[:, :, index] * scale
    close(few['truth'], truth[:, 1:3])
    close(few['start'], truth[:, :1])
    for name in ('field', 'truth', 'reconstruction', 'start'):
        assert few[name].shape == (3, whole[name].shape[1], 12, 2)
    assert few['latent'].shape == whole['latent'].shape


def test_points_of_the_strategies():
    """Uniform: each point at most once. Stratified: one in each part of the grid."""
    u = torch.zeros(1, 1, 8, 8, 1)
    index, scale = draw_queries(u, 64, 'uniform', True)
    assert sorted(index.tolist()) == list(range(64)) and (scale == 1).all()
    index, _ = draw_queries(u, 16, 'stratified', True)
    assert (index // 4).tolist() == list(range(16))


def test_importance_follows_the_gradient_and_keeps_sums_of_squares():
    x = torch.arange(64) / 64
    u = torch.tanh(20 * (x - .5))[None, None, :, None]
    probability = importance(u, periodic=False)
    assert float(probability.sum()) == pytest.approx(1)
    assert probability[31] > 5 * probability[5] > .4 / 64
    torch.manual_seed(0)
    error = torch.rand(64)
    sums = []
    for _ in range(2000):
        index, scale = draw_queries(u, 8, 'importance', False)
        sums.append((error[index] * scale[:, 0]).square().mean())
    assert float(sum(sums)) / 2000 == pytest.approx(float(error.square().mean()), rel=.05)


@pytest.mark.parametrize('changes, words', [
    ({'num_queries': 33}, '32 points'), ({'lambda_spectral': 1.}, '--lambda_spectral=0'),
    ({'query_strategy': 'magic'}, 'stratified')])
def test_what_cannot_be_asked_for_is_refused(changes, words):
    s = settings(**{'num_queries': 5, **changes})
    assert words in refused(OperatorStage, drawn(), s)
