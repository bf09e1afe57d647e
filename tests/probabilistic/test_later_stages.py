"""stages.py, those after the operator's: what each trains and starts from; a run of all, cut anywhere."""
import pytest
import torch

from conftest import close, drawn, equal, refused, rows_of, same_run, state_of, weights
from metrics import fair_crps
from model import BY, PARTS, load
from stages import STAGES, DistillStage, EnsembleStage, ResidualStage, SteadyStage
from test_stages import batch_of, settings, trained

ALL = {'parts': PARTS, 'flow_dim': 16, 'flow_depth': 1, 'noise_dim': 4}
LATER = [ResidualStage, DistillStage, EnsembleStage, SteadyStage]
KEYS = {'members': 3, 'flow_steps': 2, 'condition_noise': .01, 'tau_shape': 1.2, 'tau_schedule': (2, 4),
        'lambda_flow': 1., 'lambda_distill': 1., 'lambda_crps': 1., 'lambda_field': 0.}
EVERY_STAGE = ['--stages=operator,decoder,residual,distill,ensemble,steady', '--max_iters=2', '--flow_dim=16',
               '--flow_depth=1', '--members=2', '--flow_steps=2', '--decoder_stage.max_iters=1',
               '--decoder_stage.unroll=2', '--residual_stage.max_iters=3', '--residual_stage.unroll=2',
               '--distill_stage.max_iters=2', '--distill_stage.unroll=2', '--ensemble_stage.max_iters=3',
               '--ensemble_stage.unroll=2', '--steady_stage.max_iters=2', '--save_interval=2',
               '--log_interval=1', '--eval_interval=2']


class Windows:
    """The windows of one batch."""
    n_windows = 6

    def __init__(self, m):
        self.batch = batch_of(m, B=6)

    def batches(self, index, iteration):
        yield self.batch


@pytest.mark.parametrize('make', LATER)
@pytest.mark.parametrize('d', [1, 2])
@pytest.mark.parametrize('kind', ['flow', 'refiner'])
def test_a_stage_trains_its_part_alone(make, d, kind):
    if make is DistillStage and kind == 'refiner':
        return
    m = drawn(d, **ALL, flow_kind=kind)
    stage = make(m, settings(**KEYS))
    for _ in range(8):                       # every unrolled step and every time of the flow may be drawn
        loss, parts = stage(batch_of(m), .9)
        assert parts.keys() == set(make.losses)
        loss.backward()
    yes, no = trained(m)
    assert yes == {stage.part} and all_but(m, stage.part) == no
    assert BY[stage.by] == stage.part and STAGES[stage.by] is make


def test_checkpointing_recomputes_the_blocks_of_an_ensemble():
    """It drops no paths, so its model is in eval mode."""
    gradients = []
    for checkpointing in (False, True):
        m = drawn(**ALL, checkpointing=checkpointing)
        calls = []
        block = m.ensemble.network.stages[0][0]
        block.attention.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        stage = EnsembleStage(m, settings(**KEYS, unroll=1))
        torch.manual_seed(0)
        stage(batch_of(m), .9)[0].backward()
        assert len(calls) == 1 + checkpointing
        gradients.append([p.grad for p in m.ensemble.parameters()])
    for p, q in zip(*gradients, strict=True):
        assert torch.allclose(p, q, atol=1e-6)


def all_but(m, part):
    return {name for name, _ in m.named_children()} - {part}


def test_a_flow_starts_with_the_size_of_what_the_operator_misses():
    m = drawn(**ALL)
    for make in (ResidualStage, SteadyStage):
        stage = make(m, settings(**KEYS))
        torch.nn.init.zeros_(stage.flow.network.head.weight)
        windows = Windows(m)
        stage.prepare(windows)
        z = stage.encode(windows.batch, 0)
        target = stage.encode(windows.batch, 1)
        before = z
        if make is ResidualStage:
            before = m.operator(z, m.condition(windows.batch.dt, windows.batch.params))
        close(stage.flow.scale, (target - before).square().mean((0, 1)).sqrt())
        close(stage.flow.scale_of_given[:8], z.square().mean((0, 1)).sqrt())
        scale = stage.flow.scale.clone()
        torch.nn.init.ones_(stage.flow.network.head.weight)          # what was trained stays as it is
        stage.prepare(Windows(m))
        assert torch.equal(stage.flow.scale, scale)


def test_a_student_starts_as_its_teacher_and_the_ensemble_as_the_operator():
    m = drawn(**ALL)
    stage = DistillStage(m, settings(**KEYS))
    torch.nn.init.zeros_(m.student.network.head.weight)
    stage.prepare(None)
    assert equal(m.student.state_dict(), m.corrector.state_dict())
    stage = EnsembleStage(m, settings(**KEYS))
    stage.prepare(None)
    name, value = next(iter(m.operator.named_parameters()))
    assert not torch.equal(m.ensemble.get_parameter(name), value)    # its noise has been trained
    for name, value in m.ensemble.named_parameters():
        if '.noise.' in name:
            torch.nn.init.zeros_(value)
    stage.prepare(None)
    for name, value in m.operator.named_parameters():
        assert torch.equal(m.ensemble.get_parameter(name), value)


def test_the_loss_of_the_ensemble_is_the_crps_of_its_decoded_rollouts():
    m = drawn(**ALL)
    batch = batch_of(m)
    stage = EnsembleStage(m, settings(**KEYS, unroll=2))
    torch.manual_seed(3)
    loss, _ = stage(batch, 1.)
    torch.manual_seed(3)
    condition = m.condition(batch.dt, batch.params)
    z = [stage.encode(batch, 0)] * 3
    rows = [[], [], []]
    for _ in range(2):
        noise = torch.randn(9, 4).view(3, 3, 4)                      # (sample, member, ...)
        for k in range(3):
            z[k] = m.ensemble(z[k], condition, noise[:, k])
            u = m.decoder(z[k], batch.q).view(3, 32, 1) + batch.lift[:, 0]
            rows[k].append(u)
    members = torch.stack([torch.stack(row, 1) for row in rows], 1)  # (B, M, K, N, 1)
    truth = batch.y[:, 1:3] + batch.lift
    assert float(loss.detach()) == pytest.approx(float(fair_crps(members, truth).detach().mean()), rel=1e-4)


def test_a_student_makes_one_step_unless_told_otherwise():
    m = drawn(**ALL).eval()
    u = torch.randn(2, *m.cfg.grid, 1, generator=torch.Generator().manual_seed(0))
    for by, steps in (('distill', 1), ('residual', 4), ('steady', 4)):
        assert equal({'u': m.rollout(u, 2, by=by)}, {'u': m.rollout(u, 2, by=by, flow_steps=steps)})
        assert not torch.equal(m.rollout(u, 2, by=by), m.rollout(u, 2, by=by, flow_steps=steps + 1))


def test_importance_is_not_for_a_score_without_squares():
    s = settings(**KEYS, num_queries=4, query_strategy='importance', lambda_spectral=0.)
    assert 'CRPS has none' in refused(EnsembleStage, drawn(**ALL), s)


def test_what_a_later_stage_needs():
    m = drawn(**{**ALL, 'parts': ('student',)})
    assert "the stage 'residual' before it" in refused(DistillStage, m, settings(**KEYS))
    m = drawn(**ALL, flow_kind='refiner')
    assert 'has no student' in refused(DistillStage, m, settings(**KEYS))
    assert 'members=1' in refused(EnsembleStage, m, settings(**{**KEYS, 'members': 1}))


@pytest.mark.parametrize('at', [pytest.param(8, marks=pytest.mark.slow), 11])        # residual, ensemble
def test_all_stages_cut_anywhere(at, train, cut, tmp_path):
    """Bit-equal, whichever stage a power cut ends."""
    g = train(tmp_path / 'whole', *EVERY_STAGE)
    assert g['run'].total == 13
    rows = rows_of(tmp_path / 'whole')
    scores = {row['stage']: [name for name in ('val_nrmse', 'val_crps') if row[name]] for row in rows
              if row['val_nrmse'] or row['val_crps']}
    assert scores == {'operator': ['val_nrmse'], 'decoder': ['val_nrmse'],
                      **{name: ['val_crps'] for name in ('residual', 'distill', 'ensemble', 'steady')}}
    cut(at, tmp_path / 'cut', *EVERY_STAGE)
    train(tmp_path / 'cut', *EVERY_STAGE)
    same_run(tmp_path / 'whole', tmp_path / 'cut')
    m = load(tmp_path / 'whole')
    assert set(m.cfg.parts) == set(PARTS)
    u = torch.randn(1, 64, 1)
    assert m.rollout(u, 2, by='ensemble', members=2).isfinite().all()


def test_a_later_stage_on_a_run_that_has_none(train, tmp_path):
    """Fine-tuning: the operator stays as it is, and so does what was trained beside it."""
    train(tmp_path / 'a', '--max_iters=2')
    parent = state_of(tmp_path / 'a', 'best.pt')['ema']
    residual = ['--stages=residual', '--residual_stage.max_iters=2', '--flow_dim=16', '--members=2']
    train(tmp_path / 'b', f'--init_from={tmp_path / "a"}', *residual)
    then = state_of(tmp_path / 'b')['model']
    assert all(torch.equal(then[name], value) for name, value in parent.items())
    steady = ['--stages=steady', '--steady_stage.max_iters=1', '--flow_dim=16', '--members=2']
    train(tmp_path / 'c', f'--init_from={tmp_path / "b"}', *steady)
    assert load(tmp_path / 'c').cfg.parts == ('corrector', 'prior')
    now = weights(tmp_path / 'c')
    assert all(torch.equal(now[f'model.{name}'], value) for name, value in state_of(
        tmp_path / 'b', 'best.pt')['ema'].items())
