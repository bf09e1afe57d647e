"""stages.py: what they compute from a batch, what each loss trains, and the switches."""
import math
from types import SimpleNamespace

import pytest
import torch

import physics
import stages
from conftest import cells, close, drawn, refused
from data import Batch
from losses import LOSSES, inverse_decoding, mean_square, relative_square
from stages import DecoderStage, OperatorStage

OF_ANY_EQUATION = {name for name in OperatorStage.losses if name not in physics.PRIORS}
ALL = {f'lambda_{name}': 1. for name in OF_ANY_EQUATION}
NONE = {f'lambda_{name}': 0. for name in LOSSES}


def settings(**changes):
    """The keys of train.py that stages read."""
    keys = {'space_stride': 2, 'query_stride': 1, 'input_frames': 1, 'unroll': 2, 'unroll_start': 0,
            'unroll_switch': .5, 'gradient_through_time': True, 'detach_target': True, 'noise': 0.,
            'latent_noise': 0., 'coloured_noise': False, 'cache_copies': 0, 'num_queries': 0,
            'query_strategy': 'uniform', 'inverse_loss_frequency': 1, 'inverse_decoding_ramp': 0., **NONE,
            'lambda_field': 1., 'stages': ()}
    return SimpleNamespace(**{**keys, **changes})


def batch_of(m, window=3, B=3, iteration=0, **parts):
    """A random batch; its query points are shifted against the grid."""
    cfg = m.cfg
    shape = (B, window, *cfg.grid, cfg.n_field)
    d = len(cfg.grid)
    given = {
        'u': torch.randn(shape),
        'q': m.points + .3 / cfg.grid[0],
        'y': torch.randn(shape),
        'lift': torch.randn(B, 1, *[1] * d, cfg.n_field),
        'params': torch.full((B, len(cfg.params)), .01),
        'dt': torch.full((B,), cfg.dt)}
    return Batch(**{**given, **parts}, iteration=iteration)


@pytest.fixture
def outputs_of(monkeypatch):
    """A function (stage, batch, progress) -> what the stage hands to its losses."""
    def call(stage, batch, progress=1.):
        seen = {}

        def note(outputs, weights):
            seen.update(outputs)
            return weighted_sum(outputs, weights)
        weighted_sum = stages.weighted_sum
        with monkeypatch.context() as patch:
            patch.setattr(stages, 'weighted_sum', note)
            stage(batch, progress)
        return seen
    return call


def trained(module):
    """Names of the parts that have a gradient other than zero in every parameter, and of those that have none
    in any. Fails for a part in between."""
    yes = set()
    no = set()
    for name, part in module.named_children():
        has = {p_name: p.grad is not None and bool(p.grad.any()) for p_name, p in part.named_parameters()}
        assert all(torch.isfinite(p.grad).all() for p in part.parameters() if p.grad is not None)
        if all(has.values()):
            yes.add(name)
        else:
            assert not any(has.values()), (name, has)
            no.add(name)
    return yes, no


EVERYTHING = {'encoder', 'condition', 'operator', 'decoder'}


# ---------------------------------------------------------------------------------------------
# what a stage computes

@cells
def test_shapes_of_the_outputs(outputs_of, arch, attention, d):
    m = drawn(d, arch=arch, attention=attention)
    out = outputs_of(OperatorStage(m, settings(**ALL)), batch_of(m))
    tokens = (math.prod(m.cfg.token_grid), 8)
    points = (*m.cfg.grid, 1)
    assert {name: tuple(value.shape) for name, value in out.items()} == {
        'latent': (3, 2, *tokens), 'target': (3, 2, *tokens), 'before': (3, 2, *tokens),
        'earlier': (3, 2, *tokens),
        'field': (3, 2, *points), 'truth': (3, 2, *points),
        'reconstruction': (3, 1, *points), 'start': (3, 1, *points),
        'cycle': (3, 1, *tokens), 'advanced': (3, 1, *tokens)}
    assert not out['target'].requires_grad


@pytest.mark.parametrize('d, fields, input_frames', [(1, ('u',), 1), (1, ('a', 'b'), 2), (2, ('a', 'b'), 1)])
def test_outputs_of_training_are_those_of_use(outputs_of, d, fields, input_frames):
    """A stage sees normalised fields, a user physical ones; nothing else differs."""
    m = drawn(d, fields=fields, input_frames=input_frames)
    s = settings(**ALL, input_frames=input_frames)
    batch = batch_of(m, input_frames + 2)
    out = outputs_of(OperatorStage(m, s), batch)
    m.eval()

    def encoded(first):
        frames = batch.u[:, first:first + input_frames] * m.std + m.mean
        return m.encode(frames)

    def decoded(z):
        u = (m.decode(z, batch.q) - m.mean) / m.std
        return u.unflatten(1, m.cfg.grid) + batch.lift[:, 0]
    z = start = encoded(0)
    close(out['reconstruction'][:, 0], decoded(start), 1e-4)
    for k in range(2):
        z = m.step(z)
        close(out['latent'][:, k], z.tokens, 1e-4)
        close(out['field'][:, k], decoded(z), 1e-4)
        close(out['target'][:, k], encoded(k + 1).tokens, 1e-4)
    whole = batch.y + batch.lift
    close(out['truth'], whole[:, input_frames:])
    close(out['start'], whole[:, input_frames - 1:input_frames])
    z = m.step(start)
    close(out['advanced'][:, 0], z.tokens, 1e-4)
    v = m.decode(z)[:, None]
    earlier = batch.u[:, 1:input_frames] * m.std + m.mean
    close(out['cycle'][:, 0], m.encode(torch.cat([earlier, v], 1)).tokens, 1e-4)


def test_errors_are_relative_to_the_whole_field():
    m = drawn()
    batch = batch_of(m)
    stage = OperatorStage(m, settings())
    none = torch.zeros_like(batch.lift)
    lifted = stage(batch._replace(lift=none + 100.), 1.)[1]['field']
    plain = stage(batch._replace(lift=none), 1.)[1]['field']
    assert lifted < .1 * plain
    absolute = plain * batch.y[:, 1:].flatten(2).norm(dim=2).mean()
    assert lifted * 100 * 32 ** .5 == pytest.approx(float(absolute), rel=.2)


def test_parameters_and_time_steps_reach_the_operator(outputs_of):
    m = drawn()
    stage = OperatorStage(m, settings())
    batch = batch_of(m)
    latent = outputs_of(stage, batch)['latent']
    for change in ({'params': torch.tensor([[.01], [.1], [.01]])}, {'dt': torch.tensor([.05, .1, .05])}):
        other = outputs_of(stage, batch._replace(**change))['latent']
        close(other[[0, 2]], latent[[0, 2]])
        assert (other[1] - latent[1]).abs().max() > 1e-3


def test_the_number_of_steps_follows_the_progress(outputs_of):
    m = drawn()
    batch = batch_of(m, 4)
    stage = OperatorStage(m, settings(unroll=3, unroll_start=1, unroll_switch=.5))
    assert outputs_of(stage, batch, .49)['field'].shape[1] == 1
    assert outputs_of(stage, batch, .5)['field'].shape[1] == 3
    stage = OperatorStage(m, settings(unroll=3, unroll_start=0, unroll_switch=.5))
    assert outputs_of(stage, batch, 0.)['field'].shape[1] == 3


def test_inverse_decoding_comes_every_few_batches_and_grows():
    m = drawn()
    s = settings(lambda_inverse_decoding=2., inverse_loss_frequency=3, inverse_decoding_ramp=.4)
    stage = OperatorStage(m, s)
    plain = OperatorStage(m, settings())
    for iteration in range(4):
        batch = batch_of(m, iteration=iteration)
        assert ('inverse_decoding' in stage(batch, 1.)[1]) == (iteration % 3 == 0)
    batch = batch_of(m)
    field = plain(batch, 1.)[0]
    value = stage(batch, 1.)[1]['inverse_decoding']
    for progress, ramp in ((.1, .25), (.3, .75), (.4, 1.), (.9, 1.)):
        close(stage(batch, progress)[0] - field, ramp * 2. * value, 1e-4)
    assert 'inverse_decoding' not in stage(batch, 0.)[1]


def test_a_still_field_is_no_loss_to_tokens_that_move_on(outputs_of):
    """The windows of data.py, whose points move along, are what such tokens are trained on."""
    m = drawn(scramble=False, frame_speed=1., velocity=(0,), token_shift=3)
    u = torch.randn(3, 32, 1)
    seen = torch.stack([u.roll(-3 * k, 1) for k in range(3)], 1)
    batch = batch_of(m, u=seen, q=m.points, y=seen)
    stage = OperatorStage(m, settings(lambda_latent=1.))
    out = outputs_of(stage, batch)
    close(out['latent'], out['target'])
    close(out['field'], out['truth'])
    at_rest = batch._replace(u=u[:, None].expand(-1, 3, -1, -1))
    assert stage(at_rest, 1.)[1]['latent'] > .1
    assert stage(batch, 1.)[1]['latent'] < 1e-9


# ---------------------------------------------------------------------------------------------
# what is trained

@cells
@pytest.mark.parametrize('changes', [
    {}, {'decoder_depth': 1, 'log_clamp': 2., 'patch_size': 2, 'layer_norm': True}], ids=['plain', 'rich'])
def test_every_parameter_gets_a_gradient(arch, attention, d, changes):
    m = drawn(d, arch=arch, attention=attention, **changes)
    loss, parts = OperatorStage(m, settings(**ALL))(batch_of(m), 1.)
    assert parts.keys() == OF_ANY_EQUATION
    loss.backward()
    assert trained(m) == (EVERYTHING, set())


def test_every_parameter_gets_a_gradient_with_several_fields_and_frames():
    m = drawn(2, fields=('a', 'b', 'c'), conserved=(0,), input_frames=2, latent_dim=12)
    loss, _ = OperatorStage(m, settings(**ALL, input_frames=2))(batch_of(m, 4), 1.)
    loss.backward()
    assert trained(m) == (EVERYTHING, set())


@pytest.mark.parametrize('attention', ['standard', 'channel'])
@pytest.mark.parametrize('input_frames', [1, 2])
def test_inverse_encoding_trains_encoder_and_decoder_alone(outputs_of, attention, input_frames):
    m = drawn(attention=attention, input_frames=input_frames, decoder_depth=1)
    stage = OperatorStage(m, settings(**ALL, input_frames=input_frames))
    out = outputs_of(stage, batch_of(m, input_frames + 2))
    relative_square(out['reconstruction'], out['start']).backward()
    assert trained(m) == ({'encoder', 'decoder'}, {'operator', 'condition'})


@pytest.mark.parametrize('arch', ['pure', 'u'])
@pytest.mark.parametrize('input_frames', [1, 2])
def test_inverse_decoding_trains_everything(outputs_of, arch, input_frames):
    m = drawn(arch=arch, input_frames=input_frames, decoder_depth=1)
    stage = OperatorStage(m, settings(**ALL, input_frames=input_frames))
    out = outputs_of(stage, batch_of(m, input_frames + 2))
    inverse_decoding(out['cycle'], out['advanced']).backward()
    assert trained(m) == (EVERYTHING, set())


def test_the_latent_loss_trains_encoder_and_operator(outputs_of):
    m = drawn()
    out = outputs_of(OperatorStage(m, settings(lambda_latent=1.)), batch_of(m))
    mean_square(out['latent'], out['target']).backward()
    assert trained(m) == ({'encoder', 'condition', 'operator'}, {'decoder'})


def test_agreement_compares_with_the_step_of_the_encodings(outputs_of):
    m = drawn()
    batch = batch_of(m, 4)
    out = outputs_of(OperatorStage(m, settings(lambda_agreement=1., lambda_latent=1., unroll=3)), batch)
    assert torch.equal(out['before'][:, 1:], out['target'][:, :-1])
    close(out['before'][:, 0], m.encoder(batch.u[:, 0]))
    close(out['target'][:, 2], m.encoder(batch.u[:, 3]))
    LOSSES['agreement'][0](out['latent'], out['target'], out['before']).backward()
    assert trained(m) == ({'encoder', 'condition', 'operator'}, {'decoder'})


def encoder_gradient(m, batch, **switches):
    m.zero_grad()
    loss, _ = OperatorStage(m, settings(lambda_field=0., lambda_latent=1., **switches))(batch, 1.)
    loss.backward()
    return m.encoder.stem.weight.grad.clone()


def test_gradient_through_time_is_a_switch():
    m = drawn(decoder_dim=0)
    batch = batch_of(m, 4)
    for unroll in (1, 3):
        whole = encoder_gradient(m, batch, unroll=unroll)
        cut = encoder_gradient(m, batch, unroll=unroll, gradient_through_time=False)
        assert cut.any()                                             # the first step reaches the encoder
        assert torch.equal(whole, cut) == (unroll == 1)


def test_without_gradient_through_time_later_steps_do_not_reach_the_encoder(outputs_of):
    m = drawn()
    stage = OperatorStage(m, settings(unroll=3, gradient_through_time=False))
    outputs_of(stage, batch_of(m, 4))['latent'][:, 2].square().mean().backward()
    yes, no = trained(m)
    assert 'encoder' in no
    assert 'operator' in yes


def test_the_gradient_of_the_target_is_a_switch():
    m = drawn(decoder_dim=0)
    batch = batch_of(m, 4)
    detached = encoder_gradient(m, batch, unroll=1)
    whole = encoder_gradient(m, batch, unroll=1, detach_target=False)
    assert not torch.allclose(detached, whole)


def test_the_decoder_of_a_steady_equation_learns_the_state_alone(outputs_of):
    """Its start is 0, to which no error is relative."""
    m = drawn(2, pde='darcy', fields=('a', 'u'), static=(0,), boundary='wall', params=('beta',),
              seen_params=((1.,),))
    stage = DecoderStage(m, settings(unroll=1))
    seen = outputs_of(stage, batch_of(m, 2))
    assert seen['field'].shape[1] == seen['truth'].shape[1] == 1


@pytest.mark.parametrize('arch', ['pure', 'u'])
@pytest.mark.parametrize('rate', [0., .5])
def test_checkpointing_gives_the_same_gradients(arch, rate):
    m = drawn(arch=arch, drop_path=rate)
    again = drawn(arch=arch, drop_path=rate, checkpointing=True)
    again.load_state_dict(m.state_dict())
    batch = batch_of(m)
    for model in (m, again):
        torch.manual_seed(3)                                         # of the paths that are dropped
        OperatorStage(model, settings(**ALL))(batch, 1.)[0].backward()
    for p, q in zip(m.parameters(), again.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=1e-6)


def test_checkpointing_recomputes_the_blocks():
    m = drawn(checkpointing=True, depth=3)
    calls = []
    m.operator.network.stages[0][0].attention.register_forward_hook(lambda *_: calls.append(1))
    OperatorStage(m, settings(unroll=1))(batch_of(m), 1.)[0].backward()
    assert len(calls) == 2


# ---------------------------------------------------------------------------------------------
# outputs

@pytest.mark.parametrize('output', ['field', 'truth', 'latent', 'target', 'before', 'earlier',
                                    'reconstruction', 'start', 'cycle', 'advanced'])
def test_a_loss_may_take_any_output(monkeypatch, output):
    """A new loss has what it takes although no other loss takes it; one of a cycle is left out where none is
    made."""
    def mine(x):
        return x.square().mean()

    monkeypatch.setitem(LOSSES, 'mine', (mine, output))
    monkeypatch.setattr(OperatorStage, 'losses', ('field', 'mine'))
    stage = OperatorStage(drawn(), settings(lambda_mine=1., inverse_loss_frequency=2))
    batch = batch_of(stage.model)
    for iteration, seen in ((0, True), (1, output != 'cycle')):
        _, parts = stage(batch._replace(iteration=iteration), 1.)
        assert ('mine' in parts) is seen and 'field' in parts


# ---------------------------------------------------------------------------------------------
# noise

def test_noise_is_on_the_input_alone(outputs_of):
    m = drawn(input_frames=2)
    s = {**ALL, 'input_frames': 2}
    batch = batch_of(m, 4)
    clean = outputs_of(OperatorStage(m, settings(**s)), batch)
    stage = OperatorStage(m, settings(**s, noise=.1))
    noisy = outputs_of(stage, batch)
    for name in ('target', 'truth', 'start'):
        assert torch.equal(noisy[name], clean[name])
    for name in ('latent', 'field', 'reconstruction', 'cycle', 'advanced'):
        assert not torch.allclose(noisy[name], clean[name], atol=1e-3)
    u = stage.noisy(batch).u
    assert torch.equal(u[:, 2:], batch.u[:, 2:])
    assert not torch.allclose(u[:, :2], batch.u[:, :2], atol=1e-3)


@pytest.mark.parametrize('d', [1, 2])
@pytest.mark.parametrize('strategy', ['uniform', 'stratified', 'importance'])
def test_the_loss_takes_some_of_the_points(outputs_of, d, strategy):
    m = drawn(d)
    batch = batch_of(m)
    n_point = m.points.shape[0]
    weights = {**ALL, 'lambda_spectral': 0.}
    stage = OperatorStage(m, settings(**weights, num_queries=8, query_strategy=strategy))
    fewer = stage.at_fewer_points(batch)
    assert fewer.q.shape == (8, d) and fewer.y.shape == (3, 3, 8, 1)
    place = torch.cdist(fewer.q, batch.q).argmin(1)
    assert torch.equal(fewer.q, batch.q[place])
    assert torch.equal(fewer.y, batch.y.flatten(2, -2)[:, :, place])
    if strategy == 'stratified':
        assert (place // (n_point // 8)).tolist() == list(range(8))
    if strategy == 'uniform':
        assert len(set(place.tolist())) == 8
    out = outputs_of(stage, batch)
    assert out['field'].shape == out['truth'].shape == (3, 2, 8, 1)
    assert out['reconstruction'].shape == out['start'].shape == (3, 1, 8, 1)


@pytest.mark.parametrize('strategy', ['uniform', 'stratified', 'importance'])
@pytest.mark.parametrize('boundary', ['periodic', 'wall'])
def test_fewer_points_have_the_mean_square_of_all(strategy, boundary):
    m = drawn(boundary=boundary)
    steep = torch.tanh(20 * (m.points[:, 0] - .5))[:, None]
    batch = batch_of(m, 1, 1, y=steep.expand(1, 1, -1, 1), lift=torch.zeros(1, 1, 1, 1))
    stage = OperatorStage(m, settings(num_queries=8, query_strategy=strategy))
    error = torch.linspace(0, 1, 32)[:, None] ** 2                   # largest far from where it is steep
    squares = []
    steepest = 0
    for _ in range(2000):
        fewer = stage.at_fewer_points(batch)
        place = torch.cdist(fewer.q, batch.q).argmin(1)
        squares.append((error[place] * fewer.scale).square().mean())
        steepest += int(((place == 15) | (place == 14)).sum())
    mean = torch.stack(squares).mean()
    assert float(mean) == pytest.approx(float(error.square().mean()), rel=.05)
    assert (steepest > 2000) == (strategy == 'importance')


@pytest.mark.parametrize('d', [1, 2])
def test_the_loss_is_taken_between_the_points(outputs_of, d):
    """Closed form: a wave that the grid resolves."""
    m = drawn(d)
    batch = batch_of(m)

    def wave(q):
        return (2 * math.pi * (q * torch.tensor([2., 1.][:d])).sum(-1, keepdim=True)).sin()

    y = wave(batch.q).view(1, 1, *m.cfg.grid, 1).expand_as(batch.y)
    weights = {**ALL, 'lambda_spectral': 0.}
    stage = OperatorStage(m, settings(**weights, num_queries=8, query_strategy='anywhere'))
    fewer = stage.at_fewer_points(batch._replace(y=y))
    assert fewer.q.shape == (8, d) and float(torch.cdist(fewer.q, batch.q).min()) > 1e-5
    assert ((fewer.q >= 0) & (fewer.q <= 1)).all() and fewer.q.std() > .1
    torch.testing.assert_close(fewer.y, wave(fewer.q).expand(3, 3, 8, 1), rtol=0, atol=1e-4)
    assert not torch.equal(stage.at_fewer_points(batch).q, fewer.q)
    assert outputs_of(stage, batch)['field'].shape == (3, 2, 8, 1)


def test_between_walls_there_is_no_truth_between_the_points():
    changes = settings(num_queries=8, query_strategy='anywhere')
    message = refused(OperatorStage, drawn(boundary='wall'), changes)
    assert 'query_strategy=anywhere needs a periodic domain' in message


@pytest.mark.parametrize('changes', [{'num_queries': 33}, {'num_queries': 8, 'lambda_spectral': .1}])
def test_points_that_cannot_be_are_refused(changes):
    assert 'num_queries=' in refused(OperatorStage, drawn(), settings(**changes))


def test_latent_noise_is_seen_by_the_decoder_alone(outputs_of):
    m = drawn()
    batch = batch_of(m)
    clean = outputs_of(OperatorStage(m, settings(**ALL)), batch)
    noisy = outputs_of(OperatorStage(m, settings(**ALL, latent_noise=.1)), batch)
    changed = {name for name in clean if not torch.equal(clean[name], noisy[name])}
    assert changed == {'field', 'reconstruction'}
    z = torch.randn(3, 2, 50, 40) * torch.tensor([1., 10., 100.]).view(3, 1, 1, 1)
    ratio = (stages.with_noise(z, .1) - z).square().mean((1, 2, 3)) / z.square().mean((1, 2, 3))
    close(ratio.sqrt(), torch.full((3,), .1), .01)


def test_direction_takes_the_step_of_the_rollout(outputs_of):
    m = drawn()
    batch = batch_of(m, 4)
    out = outputs_of(OperatorStage(m, settings(lambda_direction=1., unroll=3)), batch)
    assert torch.equal(out['earlier'][:, 1:], out['latent'][:, :-1])
    close(out['earlier'][:, 0], m.encoder(batch.u[:, 0]))
    close(out['before'], m.encoder(batch.u[:, :3].flatten(0, 1)).unflatten(0, (3, 3)))


def test_coloured_noise_has_the_covariance_of_the_latents():
    torch.manual_seed(0)
    mix = torch.randn(6, 6)
    z = 5 + (torch.randn(4000, 6) @ mix).view(4000, 1, 2, 3)
    added = (stages.with_coloured_noise(z, .1) - z).flatten(1)
    expected = .01 * z.flatten(1).T.cov()
    assert float((added.T.cov() - expected).norm() / expected.norm()) < .1
    assert float(added.mean(0).abs().max()) < .02
    together = float((added * z.flatten(1)).mean() / (added.std() * z.std()))
    assert abs(together) < .1                                        # another sample's, not its own
    assert stages.with_coloured_noise(z, 0.) is z
    m = drawn()
    batch = batch_of(m)
    noisy = outputs_with(m, batch, latent_noise=.5, coloured_noise=True)
    assert not torch.equal(noisy, outputs_with(m, batch))


def outputs_with(m, batch, **changes):
    loss, _ = OperatorStage(m, settings(**changes))(batch, 1.)
    return loss


def test_noise_is_relative_to_each_sample():
    m = drawn()
    batch = batch_of(m, B=4)
    scale = torch.tensor([1e-3, 1., 10., 1e4]).view(4, 1, 1, 1)
    batch = batch._replace(u=batch.u * scale)
    stage = OperatorStage(m, settings(noise=.1))
    added = stage.noisy(batch).u - batch.u
    size = added[:, 0].flatten(1).std(1) / batch.u[:, 0].flatten(1).square().mean(1).sqrt()
    assert (size > .06).all()
    assert (size < .15).all()
    assert not added[:, 1:].any()


def test_without_noise_nothing_is_drawn():
    m = drawn()
    batch = batch_of(m)
    before = torch.get_rng_state()
    OperatorStage(m, settings(**ALL))(batch, 1.)
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------------------------------------
# the decoder's stage

@pytest.mark.parametrize('d', [1, 2])
def test_only_the_decoder_is_trained_in_its_stage(d):
    m = drawn(d, decoder_depth=1)
    stage = DecoderStage(m, settings(lambda_spectral=1., unroll=3))
    loss, parts = stage(batch_of(m, 4), 1.)
    assert parts.keys() == {'field', 'spectral'}
    loss.backward()
    assert trained(m) == ({'decoder'}, {'encoder', 'operator', 'condition'})
    assert {name.split('.')[1] for name, p in stage.named_parameters() if p.requires_grad} == {'decoder'}
    OperatorStage(m, settings())                                     # whose stage may come after it
    assert all(p.requires_grad for p in m.parameters())


def test_the_decoder_learns_to_read_rollouts(outputs_of):
    m = drawn()
    batch = batch_of(m, 5)
    out = outputs_of(DecoderStage(m, settings(unroll=4)), batch)
    m.eval()
    z = m.encode(batch.u[:, 0] * m.std + m.mean)
    fields = []
    for _ in range(5):
        u = (m.decode(z, batch.q) - m.mean) / m.std
        fields.append(u.unflatten(1, m.cfg.grid) + batch.lift[:, 0])
        z = m.step(z)
    close(out['field'], torch.stack(fields, 1), 1e-4)
    close(out['truth'], batch.y + batch.lift)


def test_rollouts_for_the_decoder_drop_no_paths(outputs_of):
    """Those of a trained operator do not, either."""
    m = drawn(drop_path=.9)
    m.train()
    stage = DecoderStage(m, settings(unroll=2))
    batch = batch_of(m)
    a = outputs_of(stage, batch)['field']
    b = outputs_of(stage, batch)['field']
    assert torch.equal(a, b)
    stage = OperatorStage(m, settings())
    a = outputs_of(stage, batch)['field']
    b = outputs_of(stage, batch)['field']
    assert not torch.allclose(a, b)


# ---------------------------------------------------------------------------------------------
# settings that cannot be

def test_a_decoder_stage_without_a_decoder_is_refused():
    m = drawn(decoder_dim=0)
    assert "the stage 'decoder' needs a learned decoder" in refused(DecoderStage, m, settings())


def test_a_decoder_stage_that_trains_nothing_is_refused():
    assert 'nothing would train the decoder' in refused(DecoderStage, drawn(), settings(lambda_field=0.))


def test_an_operator_stage_that_trains_nothing_is_refused():
    m = drawn()
    others = ('lambda_inverse_encoding', 'lambda_inverse_decoding', 'lambda_latent_norm')
    for value in (0., 1.):
        s = settings(lambda_field=0., **dict.fromkeys(others, value))
        assert 'nothing would train the operator' in refused(OperatorStage, m, s)
    s = settings(lambda_field=0., lambda_latent=1.)
    assert 'nothing would train the decoder' in refused(OperatorStage, m, s)
    OperatorStage(drawn(decoder_dim=0), s)                           # there is none to train
    assert 'unroll_start=3 is more than unroll=2' in refused(OperatorStage, m, settings(unroll_start=3))
