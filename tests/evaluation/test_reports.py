"""reports.py: several runs side by side, as a table and in files."""
import csv

import pytest

from conftest import evaluate, save, tiny, user_error


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
        assert float(row['ms a trajectory']) == r['metrics']['ms_per_trajectory']
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
    assert next(line for line in lines if line.startswith('run ')).endswith('iterations to validation 0.03')
    assert [line.split()[-1] for line in lines if line.startswith(tuple(three_runs))] == ['-', '30']


def test_runs_on_other_data_are_not_compared(three_runs, burgers_file, tmp_path):
    other = save(tiny(), tmp_path / 'other.pt', burgers_file, n=20)
    message = user_error('--ckpt', three_runs[0], other, '--compare', '--data', burgers_file, '--steps', 1)
    assert f"'{other}' was trained on other data than '{three_runs[0]}" in message
    two = save(tiny(input_frames=2), tmp_path / 'two_frames.pt', burgers_file)
    assert 'with initial_step 2, ' in user_error('--ckpt', three_runs[0], two, '--compare', '--steps', 1)
    assert 'two checkpoints or more' in user_error('--ckpt', two, '--compare')
    assert 'is for --compare' in user_error('--ckpt', two, '--below', .1)
    assert '.md or .csv' in user_error('--ckpt', *three_runs, '--compare', tmp_path / 'runs.txt')
    assert 'cannot be written' in user_error('--ckpt', *three_runs, '--compare', tmp_path / 'no' / 'runs.md')
