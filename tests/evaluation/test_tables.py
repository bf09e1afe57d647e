"""evaluation/tables.py: several runs side by side, as a table and in files; tables of steppers."""
import csv

import pytest

from conftest import evaluate, save, tiny, user_error
from runtime.checkpoint import load_checkpoint, save_checkpoint


def logged(folder, *validations):
    """Writes a log.csv with (iteration, validation error or '')."""
    lines = ['iter,stage,loss,val_nrmse,train_seconds']
    lines += [f'{iteration},operator,.1,{nrmse},1.5' for iteration, nrmse in validations]
    (folder / 'log.csv').write_text('\n'.join(lines))


@pytest.fixture
def three_runs(burgers_file, tmp_path):
    """The first is the best; the third has no log."""
    for name, depth in (('one', 1), ('two', 2), ('three', 1)):
        save(tiny(depth=depth), tmp_path / name / 'best.pt', burgers_file)
    logged(tmp_path / 'one', (10, .5), (15, ''), (20, .04), (30, .05))
    logged(tmp_path / 'two', (10, .0501), (20, .05), (30, .01))
    return [str(tmp_path / name) for name in ('one', 'two', 'three')]


def test_comparison(three_runs, tmp_path, capsys):
    files = [tmp_path / f'runs.{ending}' for ending in ('md', 'csv', 'png')]
    results = evaluate('--ckpt', *three_runs, '--steps', 3, '--compare', *files)
    with open(files[1], newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['run'] for row in rows] == three_runs
    for row, r, name in zip(rows, results, ('one', 'two', 'three')):
        assert float(row['nRMSE latent']) == r['metrics']['nrmse'] == r['latent']['nrmse']
        assert float(row['re-encoding']) == r['reencode']['nrmse']
        assert float(row['recon']) == r['metrics']['recon_nrmse']
        assert float(row['over first']) == r['metrics']['nrmse'] / results[0]['metrics']['nrmse']
        assert (int(row['parameters']), row['training s'], row['memory GB']) == (r['n_params'], '90.0', '0.5')
        assert float(row['ms per trajectory']) == r['metrics']['ms_per_trajectory']
    assert [row['iterations to validation 0.05'] for row in rows] == ['20', '20', '']
    head, line, *body = files[0].read_text().splitlines()
    assert head.count('|') == line.count('|') == body[2].count('|') == 11 and len(body) == 3
    assert body[2].startswith(f'| {three_runs[2]} | ') and body[2].endswith(' | - |')
    assert files[2].read_bytes()[:4] == b'\x89PNG'
    out = capsys.readouterr().out
    assert 'spectral_energy_error' not in out and f"no log.csv beside '{three_runs[2]}" in out
    shown = next(line for line in out.splitlines() if line.startswith(three_runs[1])).split()
    assert float(shown[4]) == pytest.approx(float(rows[1]['over first']), rel=1e-3) and shown[-1] == '20'


def test_iterations_down_to_a_given_error(three_runs, capsys):
    evaluate('--ckpt', *three_runs[:2], '--steps', 1, '--compare', '--below', .03)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines if line.startswith(tuple(three_runs))] == ['-', '30']


def test_runs_on_other_data_are_not_compared(three_runs, burgers_file, tmp_path):
    other = save(tiny(), tmp_path / 'other.pt', burgers_file, n=20)
    options = '--compare', '--data', burgers_file, '--steps', 1
    assert 'trained on other data' in user_error('--ckpt', three_runs[0], other, *options)
    state = load_checkpoint(save(tiny(), tmp_path / 'later.pt', burgers_file))
    state['config']['initial_step'] = 2
    later = str(tmp_path / 'later.pt')
    save_checkpoint(later, state)
    assert 'initial_step 2' in user_error('--ckpt', three_runs[0], later, '--compare', '--steps', 1)
    assert '.png' in user_error('--ckpt', *three_runs, '--compare', tmp_path / 'runs.txt')


def test_tables_of_steppers_and_of_a_search(burgers_file, tmp_path, capsys):
    """--stepper and --ttc, end to end: what is in the JSON is in the tables."""
    model = tiny(steppers=('operator', 'ensemble'), noise_dim=4)
    file = save(model, tmp_path / 'best.pt', burgers_file)
    [r] = evaluate('--ckpt', file, '--steps', 2, '--stepper', 'operator', 'ensemble', '--n_members', 3,
                   '--ttc', 'candidates=2', 'beam_width=1')
    assert [scores['n_members'] for scores in r['stepper'].values()] == [1, 3]
    assert r['stepper']['operator']['nrmse_member'] == pytest.approx(r['metrics']['nrmse'], rel=1e-4)
    out = capsys.readouterr().out
    for scores in r['stepper'].values():
        assert f"{scores['relative_crps']:.4g}" in out and f"{scores['nrmse_mean']:.4g}" in out
    for row in r['ttc']['rows'].values():
        assert f"{row['nrmse']:.4g}" in out
