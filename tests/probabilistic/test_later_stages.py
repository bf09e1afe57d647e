"""stages.py: what each later stage trains and starts from; a run of all stages, cut anywhere."""
import pytest
import torch

import data
from batches import batch_of, settings, trained
from conftest import FAST, close, drawn, equal, refused, rows_of, same_run, state_of, weights
from losses import STAGES
from model import load
from probabilistic.scores import fair_crps
from probabilistic.stages import (ConsistencyDistillStage, DiffResidualStage, EnsembleStage,
                                  SteadyPriorStage)
from runtime.device import Machine, seed_of
from steppers import ALL, STOCHASTIC

LATER = [DiffResidualStage, ConsistencyDistillStage, EnsembleStage, SteadyPriorStage]
KEYS = {'n_members': 3, 'flow_steps': 2, 'tau_schedule': (2, 4)}
MACHINE = Machine(torch.device('cpu'))
EVERY_STAGE = [f'--stages=operator,{",".join(STOCHASTIC)}', '--max_iters=2', '--flow_dim=16',
               '--flow_depth=1', '--hidden_dim=16', '--encoder_dim=16', '--decoder_dim=16', '--depth=1',
               '--n_validated=1', '--n_members=2', '--flow_steps=2', '--diff_residual_stage.max_iters=3',
               '--diff_residual_stage.unroll=2', '--consistency_distill_stage.max_iters=2',
               '--consistency_distill_stage.unroll=2', '--ensemble_stage.max_iters=3',
               '--ensemble_stage.unroll=2', '--steady_prior_stage.max_iters=2', '--save_interval=2',
               '--log_interval=1', '--eval_interval=2', '--time_stride=20']


class Windows:
    """The windows of one batch."""
    n_windows = 6

    def __init__(self, m):
        self.batch = batch_of(m, B=6)

    def batches(self, index, iteration):
        yield self.batch


# ---------------------------------------------------------------------------------------------
# one stage

@pytest.mark.parametrize('make', LATER)
@pytest.mark.parametrize('d', [1, 2])
def test_a_stage_trains_its_stepper_alone(make, d):
    m = drawn(d, **ALL)
    stage = make(m, settings(**KEYS))
    for iteration in range(8):               # every unrolled step and every time of the flow may be drawn
        loss, terms = stage(batch_of(m, iteration=iteration), .9)
        assert list(terms.values()) == [loss.detach()]
        loss.backward()
    assert trained(m) == {stage.stepper}
    assert STAGES[stage.stepper] is make and not m.training


@pytest.mark.parametrize('make', [DiffResidualStage, SteadyPriorStage])
def test_a_flow_starts_with_the_size_of_what_it_predicts(make):
    m = drawn(**ALL)
    stage = make(m, settings(**KEYS))
    torch.nn.init.zeros_(stage.flow.network.head.weight)
    windows = Windows(m)
    stage.prepare(windows, MACHINE)
    batch = windows.batch
    z = m.encoder(batch.u[:, 0])
    base = z
    if make is DiffResidualStage:
        base = m.operator(z, m.condition(batch.dt, batch.params))
    residual = m.encoder(batch.u[:, 1]) - base
    close(stage.flow.scale, residual.square().mean((0, 1)).sqrt())
    close(stage.flow.context_scale[:8], z.square().mean((0, 1)).sqrt())
    scale = stage.flow.scale.clone()
    torch.nn.init.ones_(stage.flow.network.head.weight)              # what was trained stays as it is
    stage.prepare(Windows(m), MACHINE)
    assert torch.equal(stage.flow.scale, scale)


def test_the_student_starts_as_its_teacher_and_the_ensemble_as_the_operator():
    m = drawn(**ALL)
    stage = ConsistencyDistillStage(m, settings(**KEYS))
    torch.nn.init.zeros_(stage.flow.network.head.weight)
    stage.prepare(None, MACHINE)
    assert equal(stage.flow.state_dict(), m.diff_residual.flow.state_dict())
    stage = EnsembleStage(m, settings(**KEYS))
    before = {name: value.clone() for name, value in m.ensemble.state_dict().items()}
    stage.prepare(None, MACHINE)
    assert equal(m.ensemble.state_dict(), before)                    # its noise has been trained
    for name, value in m.ensemble.named_parameters():
        if '.noise.' in name:
            torch.nn.init.zeros_(value)
    stage.prepare(None, MACHINE)
    for name, value in m.operator.named_parameters():
        name = name.replace('.modulation.', '.modulation.base.')
        assert torch.equal(m.ensemble.get_parameter(name), value)


def test_the_loss_of_the_ensemble_is_the_crps_of_its_decoded_rollouts():
    m = drawn(**ALL)
    batch = batch_of(m)
    stage = EnsembleStage(m, settings(**KEYS, unroll=2))
    torch.manual_seed(3)
    loss, _ = stage(batch, 1.)
    torch.manual_seed(3)
    condition = m.condition(batch.dt, batch.params)
    z = [m.encoder(batch.u[:, 0])] * 3
    rows = [[], [], []]
    for _ in range(2):
        noise = torch.randn(9, 4).view(3, 3, 4)                      # (sample, member, ...)
        for k in range(3):
            z[k] = m.ensemble(z[k], condition, lambda *shape, own=noise[:, k]: own)
            rows[k].append(m.decoder(z[k]) + batch.background[:, 0])
    members = torch.stack([torch.stack(row, 1) for row in rows], 1)  # (B, M, K, N, 1)
    truth = batch.u[:, 1:3] + batch.background
    expected = fair_crps(members, truth).mean()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)


@pytest.mark.parametrize('steps', [0, 1])
def test_the_corrector_learns_what_the_operator_leaves_of_the_next_frame(steps, monkeypatch):
    m = drawn(**ALL)
    stage = STAGES['diff_residual'](m, settings(**KEYS))
    batch = batch_of(m)
    z = stage.tokens(batch, 0).detach()
    condition = m.condition(batch.dt, batch.params)
    learned = []
    target = stage.flow.prediction_and_target
    monkeypatch.setattr(stage, 'states', lambda *_: (z, steps, condition))
    monkeypatch.setattr(stage.flow, 'prediction_and_target', lambda x, *more: learned.append(x) or target(x, *more))
    stage(batch, 0.)
    close(learned[0], stage.tokens(batch, steps + 1) - m.operator(z, condition))


def test_the_teacher_takes_the_steps_of_its_schedule(monkeypatch):
    m = drawn(**ALL)
    stage = ConsistencyDistillStage(m, settings(**{**KEYS, 'tau_schedule': (2, 5)}))
    taken = []
    path = m.diff_residual.flow.path
    monkeypatch.setattr(m.diff_residual.flow, 'path', lambda *args: taken.append(args[-1]) or path(*args))
    for progress in (0., .49, .5, 1.):
        stage(batch_of(m), progress)
    assert taken == [2, 2, 5, 5]


@pytest.mark.parametrize('name, n_case', [('diff_residual', 2), ('consistency_distill', 2 * 2)])
def test_all_processes_take_as_many_steps(name, n_case, monkeypatch):
    """Their own random numbers differ. Whether a rollout has 0 or 1 steps does not tell at which of two times
    the student begins."""
    m = drawn(**ALL)
    stage = STAGES[name](m, settings(**{**KEYS, 'tau_schedule': (2,)}))
    taken = []
    stage.module.register_forward_hook(lambda *_: taken.append('step'))
    if name == 'consistency_distill':
        end = stage.flow.end

        def noted(x, tau, *args):
            taken.append(float(tau[0]))
            return end(x, tau, *args)

        monkeypatch.setattr(stage.flow, 'end', noted)
    of_process = []
    for rank in range(2):
        cases = []
        for iteration in range(12):
            torch.manual_seed(seed_of(0, iteration, rank))
            stage(batch_of(m, iteration=iteration), .9)
            cases.append(tuple(taken))
            taken.clear()
        of_process.append(cases)
    assert of_process[0] == of_process[1] and len(set(cases)) == n_case
    other = STAGES[name](m, settings(**{**KEYS, 'tau_schedule': (2,), 'seed': 1})).random(batch_of(m))
    assert other.initial_seed() != stage.random(batch_of(m)).initial_seed()


def test_checkpointing_recomputes_the_blocks_of_an_ensemble():
    gradients = []
    for checkpointing in (False, True):
        m = drawn(**ALL, checkpointing=checkpointing)
        calls = []
        block = m.ensemble.network.levels[0][0]
        block.attention.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        stage = EnsembleStage(m, settings(**KEYS, unroll=1))
        torch.manual_seed(0)
        stage(batch_of(m), .9)[0].backward()
        assert len(calls) == 1 + checkpointing
        gradients.append([p.grad for p in m.ensemble.parameters()])
    for p, q in zip(*gradients, strict=True):
        close(p, q)


def test_weights_of_losses_that_a_stage_does_not_have_are_refused(tmp_path, train):
    message = refused(train, tmp_path / 'o', '--stages=operator,ensemble', '--ensemble_stage.lambda_field=2')
    assert 'ensemble_stage.lambda_field has no effect' in message


@pytest.mark.parametrize('make', LATER)
def test_settings_without_sense_are_refused(make):
    m = drawn(**ALL)
    wrong = {'n_members': 1, 'unroll': 0, 'unroll_start': 3}
    if make is not EnsembleStage:
        wrong['flow_steps'] = 0
    for key, value in wrong.items():
        assert f'{key}={value}' in refused(make, m, settings(**{**KEYS, key: value}))


def test_a_student_needs_its_teacher_and_a_schedule():
    alone = drawn(**{**ALL, 'steppers': ('operator', 'consistency_distill')})
    assert 'diff_residual before it' in refused(ConsistencyDistillStage, alone, settings(**KEYS))
    m = drawn(**ALL)
    order = settings(**KEYS, stages=('consistency_distill', 'diff_residual'))
    assert 'after diff_residual' in refused(ConsistencyDistillStage, m, order)
    for schedule in ((), (0,), (4, 0)):
        wrong = settings(**{**KEYS, 'tau_schedule': schedule})
        assert 'tau_schedule' in refused(ConsistencyDistillStage, m, wrong)


def test_importance_is_not_for_a_score_without_squares():
    s = settings(**KEYS, num_queries=4, query_strategy='importance')
    assert 'CRPS has none' in refused(EnsembleStage, drawn(**ALL), s)


# ---------------------------------------------------------------------------------------------
# runs

@pytest.mark.slow
@pytest.mark.parametrize('at', [6, 9])                               # diff_residual, ensemble
def test_all_stages_cut_anywhere(at, train, cut, tmp_path):
    """Bit-equal, whichever stage a power cut ends."""
    g = train(tmp_path / 'whole', *EVERY_STAGE)
    assert g['run'].total == 12
    scores = {}
    for row in rows_of(tmp_path / 'whole'):
        named = [name for name in ('val_nrmse', 'val_relative_crps') if row[name]]
        if named:
            scores.setdefault(row['stage'], named)
    assert scores == {'operator': ['val_nrmse'], **dict.fromkeys(STOCHASTIC, ['val_relative_crps'])}
    cut(at, tmp_path / 'cut', *EVERY_STAGE)
    train(tmp_path / 'cut', *EVERY_STAGE)
    same_run(tmp_path / 'whole', tmp_path / 'cut')
    m = load(tmp_path / 'whole')
    assert m.cfg.steppers == ('operator', *STOCHASTIC)
    u = torch.randn(1, 64, 1)
    assert m.rollout(u, 2, stepper='ensemble', n_members=2).isfinite().all()


def test_later_stages_on_a_run_that_has_none(train, tmp_path):
    """Fine-tuning keeps the operator and the steppers that are there, also for a student of one of them."""
    args = ['--max_iters=1', '--flow_dim=16', '--flow_depth=1', '--n_members=2', *FAST]
    train(tmp_path / 'operator', '--max_iters=1', *FAST)
    earlier = 'operator'
    for name in ('diff_residual', 'consistency_distill'):
        stage = [f'--stages={name}', f'--{name}_stage.max_iters=1', f'--{name}_stage.unroll=1',
                 f'--init_from={tmp_path / earlier}']
        train(tmp_path / name, *args, *stage)
        kept = state_of(tmp_path / earlier, 'best.pt')['ema']
        now = weights(tmp_path / name)
        assert all(torch.equal(now[f'model.{key}'], value) for key, value in kept.items())
        earlier = name
    assert load(tmp_path / earlier).cfg.steppers == ('operator', 'diff_residual', 'consistency_distill')
    other = [*args, '--stages=steady_prior', '--flow_dim=32', f'--init_from={tmp_path / earlier}']
    assert 'flow_dim: 16 there, 32 now' in refused(train, tmp_path / 'other', *other)


@pytest.mark.parametrize('arg', [
    '--n_members=1', '--flow_steps=0', '--ensemble_stage.unroll=0', '--noise_dim=0', '--flow_depth=0',
    '--consistency_distill_stage.tau_schedule=', '--steady_prior_stage.batch_size=0',
    '--ensemble_stage.accumulation=0', '--diff_residual_stage.eval_interval=0',
    '--diff_residual_stage.early_bias=0', '--ensemble_stage.optimizer=sgd', '--ensemble_stage.ema_decay=1',
    '--ensemble_stage.cache_copies=1'])
def test_a_wrong_setting_is_refused_before_any_work(arg, train, tmp_path, monkeypatch):
    """Not after the earlier stages were trained, nor after the data were read."""
    monkeypatch.setattr(data.Trajectories, '__init__', None)
    key = arg.partition('=')[0].rpartition('.')[2].strip('-')
    assert key in refused(train, tmp_path / 'o', *EVERY_STAGE, arg)
