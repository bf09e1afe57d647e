"""eval.py on tiny random models and tiny files: what is rolled out, the scores, the JSON and the table.
tests/evaluation/test_load.py tests how data are found and checked."""
import ast
import glob
import json
import math
import os
import random
import re
import shutil
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

import eval as ev
from conftest import ROOT, evaluate, refused, run, save, tiny, user_error, waves, write
from evaluation import scores
from metrics import mean_nrmse
from model import UPT, load
from runtime import progress
from runtime.checkpoint import load_checkpoint, save_checkpoint
from runtime.extensions import FOLDERS
from runtime.run import unfinished

METRICS = set('nrmse rmse mse mae max_error crmse brmse frmse_low frmse_mid frmse_high vrmse rel_l2 '
              'correlation_time spectral_energy_error conservation_gap recon_nrmse latent_norm_drift '
              'latent_gap ms_per_trajectory'.split())
TOP = {'ckpt', 'dataset', 'split', 'initial_step', 'rollout', 'n_trajectories', 'n_params', 'iter',
       'train_seconds', 'metrics', 'reencode', 'per_step', 'baselines'}


# --- JSON and tables ---------------------------------------------------------

@pytest.mark.slow
def test_as_a_user_runs_it(run_folder, tmp_path):
    out = run('--ckpt', run_folder, '--json', 'eval.json', '--superres', 1, 2, 4, '--batch_size', 3,
              '--device', 'cpu', script='eval.py', cwd=tmp_path)
    r = json.loads((tmp_path / 'eval.json').read_text())
    assert TOP <= set(r) and set(r['metrics']) == METRICS
    assert (r['split'], r['initial_step'], r['rollout'], r['n_trajectories']) == ('test', 1, 'latent', 1)
    assert (r['iter'], r['train_seconds'], r['dataset'], r['ms_batch_size']) == (7, 90., 'burgers', 1)
    assert r['n_params'] == tiny().n_params()
    assert len(r['per_step']['nrmse']) == 40
    assert sum(r['per_step']['nrmse']) / 40 == pytest.approx(r['metrics']['nrmse'])
    assert set(r['reencode']) == {'nrmse'} and set(r['baselines']) == {'persistence', 'mean'}
    assert 'by_parameter' not in r and 'by_field' not in r           # there is one of each
    assert r['superres']['1']['ratio'] == pytest.approx(1, rel=1e-4)
    assert r['superres']['1']['floor'] < 1e-6 < r['superres']['2']['floor'] < r['superres']['4']['floor'] < .2
    for text in (os.path.join(run_folder, 'best.pt'), 'test rows 0..0', '1.5 min', '0.50 GB', *METRICS):
        assert text in out.stdout


def test_nothing_here_imports_an_extension_by_itself():
    """They are imported inside the functions that a flag asks for."""
    files = [os.path.join(ROOT, 'eval.py'), *glob.glob(os.path.join(ROOT, 'evaluation', '*.py'))]
    for file in files:
        with open(file) as text:
            nodes = ast.parse(text.read()).body
        names = [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
        names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        assert not {name.split('.')[0] for name in names} & {*FOLDERS, 'train', 'eval', 'sample'}, file


def test_several_checkpoints(run_folder, burgers_file, tmp_path, capsys):
    """Each has its table when it is done; in the end they stand side by side."""
    other = save(tiny(depth=2), tmp_path / 'other.pt', burgers_file)
    evaluate('--ckpt', run_folder, other, '--json', tmp_path / 'two.json', '--steps', 3)
    two = json.loads((tmp_path / 'two.json').read_text())
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split()[1:] for line in lines if line.startswith('parameters')]
    sizes = [f"{r['n_params']:,}" for r in two]
    assert rows == [sizes[:1], sizes[1:], sizes]
    row = [line for line in lines if line.startswith('nrmse ')][-1]
    shown = [float(value) for value in row.split()[1:]]
    assert shown == pytest.approx([r['metrics']['nrmse'] for r in two], rel=1e-4)


def test_a_folder_of_runs(run_folder, burgers_file, advection_file, tmp_path, capsys):
    """In the end a table for each data set and task; what cannot be evaluated is named, the others go on."""
    folder = tmp_path / 'out'
    for name in ('a', 'b'):
        save(tiny(), folder / name / 'best.pt', burgers_file)
    other = tiny(pde='advection', params=('beta',), seen_params=((.4,),))
    save(other, folder / 'c' / 'last.pt', advection_file)
    save(tiny(), folder / 'e' / 'best.pt', burgers_file, **dict.fromkeys(('paths', 'absolute', 'relative'),
                                                                         ['gone.hdf5']))
    (folder / 'f').mkdir()
    (folder / 'f' / 'best.pt').write_bytes(b'PK')
    results = evaluate('--ckpt', folder, '--json', tmp_path / 'all.json', '--steps', 2)
    captured = capsys.readouterr()
    assert [r['ckpt'].split(os.sep)[-2] for r in results] == ['a', 'b', 'c']
    assert len(json.loads((tmp_path / 'all.json').read_text())) == 3
    tables = [part.splitlines() for part in captured.out.split('\ncheckpoint')[1:]]
    assert [len(part[0].split()) for part in tables] == [1, 1, 1, 2]             # columns
    errors = captured.err.splitlines()
    assert len(errors) == 2 and 'gone.hdf5' in errors[0] and os.path.join('f', 'best.pt') in errors[1]
    for name in 'abc':
        shutil.rmtree(folder / name)
    assert 'none of the 2' in user_error('--ckpt', folder)
    shutil.rmtree(folder / 'f')
    assert 'gone.hdf5' in user_error('--ckpt', folder)               # one run alone is no folder of several


def test_ctrl_c_keeps_what_is_finished(run_folder, burgers_file, tmp_path, monkeypatch, capsys):
    other = save(tiny(), tmp_path / 'other.pt', burgers_file)
    whole = ev.evaluate_checkpoint

    def interrupted(file, *args):
        if file == other:
            raise KeyboardInterrupt
        return whole(file, *args)

    monkeypatch.setattr(ev, 'evaluate_checkpoint', interrupted)
    with pytest.raises(SystemExit) as ended:
        evaluate('--ckpt', run_folder, other, '--json', tmp_path / 'e.json', '--steps', 1)
    assert ended.value.code == 130
    [r] = json.loads((tmp_path / 'e.json').read_text())              # a list, as of both
    out, err = capsys.readouterr()
    assert f"{r['metrics']['nrmse']:.5g}" in out
    assert err.splitlines() == [f"eval: stopped; 1 of 2 evaluations were finished (in '{tmp_path}/e.json')"]


def test_first_rows_alone(run_folder, capsys):
    [r] = evaluate('--ckpt', run_folder, '--split', 'all', '--rows', 2, '--steps', 1)
    assert r['rows'] == [0, 1] and r['n_trajectories'] == 2 and r['first_rows']
    assert 'only the first rows: all rows 0..1' in capsys.readouterr().out
    [r] = evaluate('--ckpt', run_folder, '--steps', 1)
    assert not r['first_rows'] and '--rows 0' in user_error('--ckpt', run_folder, '--rows', 0)


def test_unfinished_runs_are_marked(smoke, tmp_path, capsys):
    """By what last.pt says beside a best.pt, in the table and in the JSON."""
    state = load_checkpoint(os.path.join(smoke, 'o', 'last.pt'))
    for name, done in (('done', 20), ('half', 10)):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(os.path.join(smoke, 'o', 'best.pt'), folder)
        save_checkpoint(str(folder / 'last.pt'), {**state, 'stage_iter': done})
    (tmp_path / 'start').mkdir()
    save_checkpoint(str(tmp_path / 'start' / 'last.pt'), {**state, 'stage_iter': 0})
    results = evaluate('--ckpt', tmp_path, '--steps', 1)
    assert [r['unfinished'] for r in results] == [None, 'iteration 10 of 20', 'iteration 0 of 20']
    assert capsys.readouterr().out.count('unfinished: iteration 10 of 20') == 2  # alone, and side by side


@pytest.mark.parametrize('changes, words', [
    ({}, ''), ({'stage_iter': 4}, 'iteration 4 of 20'), ({'stage_iter': 4, 'finished': True}, ''),
    ({'stage_iter': 4, 'minutes': 1.}, ''), ({'stages': ['operator', 'ensemble']}, 'stage 1 of 2 (operator)')])
def test_what_is_left_of_a_run(changes, words):
    config = {'stages': changes.pop('stages', ['operator']), 'max_minutes': changes.pop('minutes', 0.)}
    state = {'stage': 'operator', 'stage_index': 0, 'stage_iter': 20, 'limits': [20, 0], 'finished': False,
             'stage_seconds': 60., 'config': config, **changes}
    left = unfinished(state)
    assert words in left and bool(left) == bool(words)


def test_what_is_left_stands_in_last_pt(tmp_path):
    state = {'stage': 'operator', 'stage_index': 0, 'stage_iter': 4, 'limits': [20, 0], 'finished': False,
             'stage_seconds': 60., 'config': {'stages': ['operator'], 'max_minutes': 0.}}
    assert ev.what_is_left(str(tmp_path / 'last.pt'), state) == 'iteration 4 of 20'
    assert ev.what_is_left(str(tmp_path / 'best.pt'), state) is None
    (tmp_path / 'last.pt').write_bytes(b'damaged')
    assert ev.what_is_left(str(tmp_path / 'best.pt'), state) == 'last.pt cannot be read'


def test_progress(monkeypatch, capsys):
    """The first line after five seconds, then one in ten; none of work that takes less than ten."""
    clock = [0.]
    monkeypatch.setattr(progress, 'perf_counter', lambda: clock[0])
    for total in (9, 40):
        work = progress.Progress('eval: rollouts', total)
        for _ in range(total):
            clock[0] += 1.
            work.add()
    assert capsys.readouterr().out.splitlines() == [
        'eval: rollouts 12% | eta 0m35s', 'eval: rollouts 38% | eta 0m25s', 'eval: rollouts 62% | eta 0m15s',
        'eval: rollouts 88% | eta 0m05s']
    assert [progress.duration(t) for t in (5, 4000, 1e5, 3e5)] == ['0m05s', '1h06m', '27h46m', '3d11h']
    for rank, lines in (('0', ['eval: rollouts 50% | eta 0m10s']), ('1', [])):       # one process says it
        monkeypatch.setenv('RANK', rank)
        work = progress.Progress('eval: rollouts', 2)
        for _ in range(2):                                           # the last line, of 100%, says nothing
            clock[0] += 10
            work.add()
        assert capsys.readouterr().out.splitlines() == lines


@pytest.mark.parametrize('seconds, rows, text', [
    (9., None, ''), (60., None, 'about 1m00s for 3 trajectories of 40 steps, and more for --horizon\n'),
    (180., None, '--horizon; --rows N takes only the first N\n'), (180., 3, '--horizon\n')])
def test_minutes_are_said_with_what_shortens_them(seconds, rows, text, monkeypatch, capsys):
    monkeypatch.setattr(ev, 'expected_seconds', lambda *args: seconds)
    task = SimpleNamespace(model=None, u=torch.zeros(3), params={}, initial_step=1, steps=40, batch_size=1)
    ev.say_cost(task, SimpleNamespace(**{**dict.fromkeys(ev.EXTRAS), 'horizon': 2, 'rows': rows}))
    out = capsys.readouterr().out
    assert out.endswith(text) and bool(out) == bool(text)


def test_one_rollout_of_each_kind(run_folder, truth):
    """A latent and a re-encoded one of every row, and one of a batch for the clock."""
    m = load(run_folder)
    steps = []

    def count(module, inputs, tokens):
        steps.append(len(tokens))

    m.operator.register_forward_hook(count)
    u = truth[:, :5].expand(3, -1, -1, -1)
    scores.evaluate(m, u, {'Nu': torch.full((3,), .01)}, batch_size=2)
    assert sum(steps) == 4 * (2 * 3 + 2)
    assert len(m.operator._forward_hooks) == 1                       # those of the evaluation are gone


def test_what_begins_at_0_keeps_no_integral(run_folder, truth):
    u = truth[:, :3].clone()
    params = {'Nu': torch.full((len(u),), .01)}
    m = load(run_folder)
    assert 'conservation_gap' in scores.evaluate(m, u, params)[0]['metrics']
    u[:, 0] = 0
    assert 'conservation_gap' not in scores.evaluate(m, u, params)[0]['metrics']


def test_the_clock_of_rollouts_leaves_the_scores_of_latents_out(run_folder, truth, monkeypatch):
    m = load(run_folder)
    clock = [0.]
    cycle = m.cycle

    def slow(tokens):
        clock[0] += 100
        return cycle(tokens)

    monkeypatch.setattr(m, 'cycle', slow)
    monkeypatch.setattr(scores, 'time', SimpleNamespace(perf_counter=lambda: clock[0]))
    arguments = m, truth[:, :3], {'Nu': torch.full((len(truth),), .01)}, 1, 64, False
    _, seconds = scores.rolled_out(*arguments, scores.LatentScores(m, 2))
    assert clock[0] == 200 and seconds == 0


def test_a_trained_run(smoke, monkeypatch):
    """What train.py writes can be evaluated, also from the folder in which it was trained."""
    [r] = evaluate('--ckpt', smoke, '--steps', 2)
    assert r['dataset'] == 'burgers' and math.isfinite(r['metrics']['nrmse'])
    monkeypatch.chdir(smoke)
    [again] = evaluate('--ckpt', 'o', '--steps', 2)
    assert again['metrics']['nrmse'] == r['metrics']['nrmse']


# --- what is rolled out and scored -------------------------------------------

def test_numbers_are_those_of_the_model(run_folder, truth):
    """The metrics against rollouts made by hand, through the public interface."""
    n = 10
    truth = truth[:, :1 + n]
    [r] = evaluate('--ckpt', run_folder, '--steps', n)
    m = load(run_folder)
    p = m.rollout(truth[:, 0], n, params={'Nu': .01}, dt=.05)
    assert r['metrics']['nrmse'] == pytest.approx(mean_nrmse(p, truth[:, 1:]), rel=1e-4)
    v = m.rollout(truth[:, 0], n, params={'Nu': .01}, reencode=True)
    assert r['reencode']['nrmse'] == pytest.approx(mean_nrmse(v, truth[:, 1:]), rel=1e-4)
    assert abs(r['reencode']['nrmse'] / r['metrics']['nrmse'] - 1) > 1e-3
    z0 = m.encode(truth[:, 0])
    z = z0
    gaps = []
    for _ in range(n):
        z = m.step(z)
        u = m.decoder(z.tokens).unflatten(1, (32,))
        gaps.append((m.encoder(u) - z.tokens).norm() / z.tokens.norm())
    assert r['metrics']['latent_gap'] == pytest.approx(float(torch.stack(gaps).mean()), rel=1e-4)
    assert gaps[0] > 1e-3                                            # its encoder is learned
    drift = (z.tokens.square().mean() / z0.tokens.square().mean()).sqrt() - 1
    assert r['metrics']['latent_norm_drift'] == pytest.approx(float(drift), rel=1e-4)
    recon = m.decode(m.encode(truth[0]))
    assert r['metrics']['recon_nrmse'] == pytest.approx(mean_nrmse(recon[None], truth), rel=1e-4)
    persistence = mean_nrmse(truth[:, :1].expand(-1, n, -1, -1), truth[:, 1:])
    assert r['baselines']['persistence']['nrmse'] == pytest.approx(persistence, rel=1e-4)
    assert r['metrics']['ms_per_trajectory'] > 0


@pytest.mark.parametrize('solver, own, expected', [(50., 20., 10_000), (10., 20., None)])
def test_break_even(run_folder, monkeypatch, capsys, solver, own, expected):
    """90 s of training and 210 s of data, 30 ms saved a trajectory: it pays after 10,000."""
    from evaluation import break_even
    found = {'64 cells': {'nrmse': 0., 'ms_of_one': solver, 'ms_per_trajectory': 21.}}
    monkeypatch.setattr(break_even, 'classical', lambda *args: found)
    monkeypatch.setattr(break_even, 'seconds_of_data', lambda source, n, device: 210.)
    monkeypatch.setattr(break_even, 'model_ms', lambda task: {'one': own, 'batch': 20.})
    [r] = evaluate('--ckpt', run_folder, '--break_even')
    assert r['break_even']['pays_after'] == {'one': expected, 'batch': 300_000}
    assert r['break_even']['solver'] == {'one': '64 cells', 'batch': '64 cells'} and r['break_even']['train_seconds'] == 90.
    out = capsys.readouterr().out
    assert re.search('break-even, trajectories in batches +300,000', out) and ('never' in out) == (expected is None)


def test_the_model_is_timed_as_it_is_rolled_out(run_folder):
    from evaluation import break_even
    [r] = evaluate('--ckpt', run_folder, '--break_even', '--rollout', 'reencode')
    for way, n in r['break_even']['pays_after'].items():
        gain = (r['break_even']['solver_ms'][way] - r['break_even']['model_ms'][way]) / 1e3
        assert n == break_even.break_even(90. + r['break_even']['data_seconds'], 1e3 * gain, 0.)
    seen = []
    model = SimpleNamespace(device=torch.device('cpu'), rollout=lambda u0, steps, **how: seen.append((len(u0), how)))
    task = SimpleNamespace(model=model, u=torch.zeros(5, 3, 8, 1), initial_step=1, steps=2, params={}, batch_size=4,
                           reencode=True)
    break_even.model_ms(task)
    assert {n for n, _ in seen} == {1, 4} and all(how['reencode'] for _, how in seen)


def test_what_has_no_break_even():
    from evaluation.break_even import check
    source = SimpleNamespace(entry=SimpleNamespace(solve=1, domain=''), pde='x')
    state = {'config': {'init_from': 'auto'}, 'data': {}}
    check(state, [source])
    assert 'whose training is not counted' in refused(check, {**state, 'config': {'init_from': 'a.pt'}}, [source])
    assert 'several equations' in refused(check, {**state, 'data': {'members': {}}}, [source])


def test_another_time_step(run_folder, truth, capsys):
    [found] = evaluate('--ckpt', run_folder, '--dt', .1)
    assert found['dt'] == .1 and found['steps'] == 20 and 'dt=0.1 was never seen' in capsys.readouterr().out
    m = load(run_folder)
    with pytest.warns(UserWarning, match='dt=0.1'):
        p = m.rollout(truth[:, 0], 20, dt=.1)
    assert found['metrics']['nrmse'] == pytest.approx(mean_nrmse(p, truth[:, 2::2]), rel=1e-4)
    assert '0.015' in user_error('--ckpt', run_folder, '--dt', .015)  # the file has no such frames


def test_the_other_rollout(run_folder):
    [a] = evaluate('--ckpt', run_folder, '--steps', 5)
    [b] = evaluate('--ckpt', run_folder, '--steps', 5, '--rollout', 'reencode')
    assert b['rollout'] == 'reencode'
    assert b['metrics']['nrmse'] == b['reencode']['nrmse'] == pytest.approx(a['reencode']['nrmse'], rel=1e-4)
    assert b['latent']['nrmse'] == pytest.approx(a['metrics']['nrmse'], rel=1e-4)


@pytest.mark.parametrize('n', [1, 10, 40])
def test_frames_before_the_rollout_are_not_scored(run_folder, truth, monkeypatch, n):
    """A model that returns the truth scores 0 and one that returns nothing 1, for any initial_step; it starts
    from frame initial_step - 1 and predicts the rest."""
    for factor, expected in ((0., 1.), (1., 0.)):
        def rollout(self, u0, steps, **options):
            assert torch.equal(u0, truth[:, n - 1]) and steps == 41 - n
            return truth[:, n:] * factor
        monkeypatch.setattr(UPT, 'rollout', rollout)
        [r] = evaluate('--ckpt', run_folder, '--initial_step', n)
        assert r['metrics']['nrmse'] == expected and r['per_step']['nrmse'] == [expected] * (41 - n)
        persistence = mean_nrmse(truth[:, n - 1:n].expand(-1, 41 - n, -1, -1), truth[:, n:])
        assert r['baselines']['persistence']['nrmse'] == pytest.approx(persistence)


def test_initial_step_is_that_of_the_training(run_folder, tmp_path):
    state = load_checkpoint(os.path.join(run_folder, 'best.pt'))
    state['config']['initial_step'] = 37
    save_checkpoint(str(tmp_path / 'best.pt'), state)
    [r] = evaluate('--ckpt', tmp_path)
    assert (r['initial_step'], r['steps']) == (37, 4)


def test_first_steps_only(run_folder):
    [r] = evaluate('--ckpt', run_folder, '--steps', 5)
    [a] = evaluate('--ckpt', run_folder, '--steps', 3, '--superres', 2)
    assert a['steps'] == 3 and a['per_step']['nrmse'] == pytest.approx(r['per_step']['nrmse'][:3], rel=1e-4)
    assert a['superres']['2']['nrmse'] > 0
    for steps in (0, 41):
        assert f'--steps {steps}' in user_error('--ckpt', run_folder, '--steps', steps)


def test_saved_predictions(run_folder, truth, burgers_file, tmp_path):
    file = tmp_path / 'p.npz'
    [r] = evaluate('--ckpt', run_folder, '--save', file, '--initial_step', 2)
    with np.load(file) as arrays:
        assert {array.dtype for array in arrays.values()} == {np.dtype('float32')}
        assert np.array_equal(arrays['truth'], truth[:, 2:].numpy())
        p = torch.from_numpy(arrays['predictions'])
        assert mean_nrmse(p, truth[:, 2:]) == pytest.approx(r['metrics']['nrmse'], rel=1e-4)
        assert arrays['t'] == pytest.approx(.05 * np.arange(2, 41))
        assert arrays['x'] == pytest.approx((32 * np.arange(32)[:, None] + .5) / 1024)
        assert arrays['Nu'] == pytest.approx([.01])
    other = save(tiny(), tmp_path / 'other.pt', burgers_file)
    assert '--save' in user_error('--ckpt', run_folder, other, '--save', file)


def test_saved_times_are_those_of_the_file(run_folder, burgers_file, tmp_path):
    late = shutil.copy(burgers_file, tmp_path / 'late.hdf5')
    with h5py.File(late, 'r+') as file:
        file['t-coordinate'][...] = file['t-coordinate'][:] + 5
    evaluate('--ckpt', run_folder, '--data', late, '--steps', 2, '--save', tmp_path / 'new' / 'p.npz')
    assert np.load(tmp_path / 'new' / 'p.npz')['t'] == pytest.approx([5.05, 5.1])


def test_a_disk_that_is_full_in_the_end(run_folder, tmp_path, monkeypatch, capsys):
    """The tables are printed, the other files written, and what is missing is told."""
    def fail(*_, **__):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(np, 'savez_compressed', fail)
    files = ['--save', tmp_path / 'p.npz', '--json', tmp_path / 'e.json']
    message = user_error('--ckpt', run_folder, '--steps', 1, *files)
    assert 'p.npz' in message and 'No space left' in message
    assert 'nrmse' in capsys.readouterr().out and os.listdir(tmp_path) == ['e.json']


def test_uneven_batches(run_folder):
    """10 trajectories in one batch, or in batches of 3, 3, 3 and 1."""
    [a] = evaluate('--ckpt', run_folder, '--split', 'all', '--steps', 5)
    [b] = evaluate('--ckpt', run_folder, '--split', 'all', '--steps', 5, '--batch_size', 3)
    assert a['n_trajectories'] == 10 and (a['ms_batch_size'], b['ms_batch_size']) == (10, 3)
    for name in METRICS - {'ms_per_trajectory', 'conservation_gap'}:
        assert b['metrics'][name] == pytest.approx(a['metrics'][name], rel=1e-3, abs=1e-6), name
    assert b['reencode']['nrmse'] == pytest.approx(a['reencode']['nrmse'], rel=1e-4)


def test_evaluating_leaves_no_trace(run_folder, truth):
    """Twice the same numbers to the bit; random states and model.training as they were."""
    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    before = states()
    args = ['--ckpt', run_folder, '--superres', 2, '--steps', 5]
    [a] = evaluate(*args)
    [b] = evaluate(*args)
    for r in (a, b):
        del r['metrics']['ms_per_trajectory']
    assert a == b and states() == before
    for training in (True, False):
        m = tiny(drop_path=.5).train(training)
        params = {'Nu': torch.tensor([.01])}
        one, two = (scores.evaluate(m, truth[:, :6], params)[0]['metrics']['nrmse'] for _ in range(2))
        assert m.training is training and m.operator.training is training
        assert one == two


def test_the_weights_are_the_averaged_ones(run_folder, tmp_path):
    state = load_checkpoint(os.path.join(run_folder, 'best.pt'))
    state['model'] = {name: value + 1 for name, value in state['model'].items()}
    save_checkpoint(str(tmp_path / 'best.pt'), state)
    [a] = evaluate('--ckpt', run_folder, '--steps', 2)
    [b] = evaluate('--ckpt', tmp_path, '--steps', 2)
    assert a['metrics']['nrmse'] == b['metrics']['nrmse']


# --- several parameters and fields, blow-up ----------------------------------

def test_several_files(tmp_path, capsys):
    files = []
    for seed, nu in enumerate((.01, .1)):
        files.append(write(tmp_path / f'{nu}.hdf5', waves(20, 6, 64, seed), Nu=nu))
    seen = {'seen_params': ((.01, .1),)}
    [r] = evaluate('--ckpt', save(tiny(**seen), tmp_path / 'both.pt', *files, n=20))
    out = capsys.readouterr().out
    singles = []
    for file in files:
        singles += evaluate('--ckpt', save(tiny(**seen), tmp_path / 'one.pt', file, n=20))
    assert r['n_trajectories'] == 4
    for name in ('nrmse', 'mse', 'rel_l2'):
        mean = sum(single['metrics'][name] for single in singles) / 2
        assert r['metrics'][name] == pytest.approx(mean, rel=1e-4)
    assert list(r['by_parameter']) == ['Nu=0.01', 'Nu=0.1']
    for single, part in zip(singles, r['by_parameter'].values()):
        assert part['nrmse'] == pytest.approx(single['metrics']['nrmse'], rel=1e-4)
        assert f"{part['nrmse']:.5g}" in out


def test_several_fields(truth):
    m = tiny(fields=('u', 'v'), latent_dim=16)
    u = torch.cat([truth, truth.flip(2)], -1)[:, :9]
    r, p = scores.evaluate(m, u, {'Nu': torch.tensor([.01])})
    for i, name in enumerate('uv'):
        own = mean_nrmse(p[..., i:i + 1], u[:, 1:, ..., i:i + 1])
        assert r['by_field'][name] == pytest.approx(own, rel=1e-4)
    assert sum(r['by_field'].values()) / 2 == pytest.approx(r['metrics']['nrmse'], rel=1e-4)
    assert r['by_field']['u'] != r['by_field']['v']


def test_blow_up_at_a_known_step(run_folder, monkeypatch, capsys, tmp_path):
    original = UPT.rollout

    def rollout(self, *args, **options):
        p = original(self, *args, **options)
        p[:, 6:] = math.inf
        return p
    monkeypatch.setattr(UPT, 'rollout', rollout)
    evaluate('--ckpt', run_folder, '--json', tmp_path / 'inf.json', '--superres', 2, '--steps', 10)
    r = json.loads((tmp_path / 'inf.json').read_text(), parse_constant=lambda name: pytest.fail(name))
    assert r['metrics']['nrmse'] is None and r['superres']['2']['nrmse'] is None
    assert None not in r['per_step']['nrmse'][:6] and r['per_step']['nrmse'][6:] == [None] * 4
    assert r['metrics']['recon_nrmse'] > 0 and r['metrics']['correlation_time'] > 0
    assert 'inf at step 7' in capsys.readouterr().out


def test_a_model_that_blows_up(burgers_file, tmp_path, capsys):
    model = tiny()
    torch.nn.init.constant_(model.operator.network.head.bias, 6e37)  # past float32 in a few steps
    file = save(model, tmp_path / 'blow.pt', burgers_file)
    evaluate('--ckpt', file, '--steps', 10, '--json', tmp_path / 'blow.json')
    r = json.loads((tmp_path / 'blow.json').read_text())
    assert r['metrics']['nrmse'] is r['metrics']['latent_norm_drift'] is r['metrics']['latent_gap'] is None
    assert 'inf at step' in capsys.readouterr().out


# --- refusals ----------------------------------------------------------------

@pytest.mark.parametrize('flags, words', [
    (['--initial_step', 0], ['initial_step=0', '40']), (['--initial_step', 41], ['initial_step=41']),
    (['--batch_size', 0], ['--batch_size 0']), (['--random_points', -1], ['--random_points -1']),
    (['--horizon', 1], ['--horizon 1']), (['--horizon', 2, '--steps', 3], ['--steps', '--horizon']),
    (['--superres', 1, 3], ['--superres 3', '96']), (['--superres', 0], ['--superres 0']),
    (['--json', f'{__file__}/e.json'], ['--json', 'is a file']), (['--below', .1], ['--compare']),
    (['--save', 'p.npy'], ['--save', '.npz']), (['--json', ROOT], ['--json', 'a folder']),
    (['--data', 'a.hdf5', '--split', 'test'], ['--data', '--split']), (['--plot'], ['--physics']),
    (['--data', 'nothing.hdf5'], ['nothing.hdf5']), (['--compare'], ['--compare', 'best.pt']),
    (['--dt', 0], ['--dt 0']), (['--dt', 'nan'], ['--dt nan']), (['--dt', 'inf'], ['--dt inf']),
    (['--data', 'a', '--break_even'], ['--break_even', '--data'])])
def test_refusals(run_folder, flags, words):
    message = user_error('--ckpt', run_folder, *flags)
    assert all(word in message for word in words), message


@pytest.mark.parametrize('flags, words', [
    (['--stepper', 'ensemble'], ['ensemble', 'this model has operator']), (['--ttc'], ['ensemble']),
    (['--input_points', 3], ['--input_points 3', '5'])])
def test_what_a_model_cannot_do_is_refused_before_any_work(burgers_file, tmp_path, monkeypatch, flags, words):
    file = save(tiny(encoder_dim=0), tmp_path / 'best.pt', burgers_file)
    monkeypatch.setattr(ev, 'evaluate', None)
    message = user_error('--ckpt', file, *flags)
    assert all(word in message for word in words), message


def test_outputs_are_checked_before_any_work(burgers_file, tmp_path, monkeypatch):
    file = save(tiny(encoder_dim=0), tmp_path / 'run' / 'best.pt', burgers_file)
    monkeypatch.setattr(ev, 'evaluate', None)
    other = shutil.copy(file, tmp_path / 'other.pt')
    for name in ('run/spectra.png', 'a.md'):
        (tmp_path / name).mkdir()
    assert 'is a folder' in user_error('--ckpt', file, '--physics', '--plot')
    assert 'is a folder' in user_error('--ckpt', file, other, '--compare', tmp_path / 'a.md')
    twice = tmp_path / 'e.npz'
    assert 'same file' in user_error('--ckpt', file, '--json', twice, '--save', twice)


@pytest.mark.parametrize('old, new', [('--by', '--stepper'), ('--members', '--n_members'),
                                      ('--random', '--random_points'), ('--placements', '--input_points')])
def test_a_removed_flag_names_its_successor(old, new):
    assert refused(ev.main, ['--ckpt', 'x', old, '3']).endswith(f'use {new}')
