"""
Results as text. A result is what eval.py finds for one checkpoint, a dict of JSON types.

Results of one task (the same rows of the same files, the same predicted frames) share a table with a column
for each checkpoint. A comparison has a row for each run instead, and can also be written as Markdown or CSV,
or drawn as the error over time.
"""
import csv
import math
import os

from grids import shape_text
from runtime.checkpoint import whole_file
from runtime.configurator import UserError, say



def finite(value):
    """A result with None in the place of inf and nan, which JSON does not have."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [finite(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


# ---------------------------------------------------------------------------------------------
# tables

HORIZON = {                      # labels of the scores of long rollouts
    'nrmse': 'nrmse over {:g} s',
    'nrmse_end': 'nrmse after {:g} s',
    'correlation_time': 'correlation_time within {:g} s',
    'bounded': 'bounded over {:g} s (fraction)',
    'finite': '  finite',
    'rms_growth': '  rms at the end / start',
    'true_rms_growth': '  true rms at the end / start',
    'integral_drift': '  drift of integrals'}


def task(r):
    """What two results must have in common to be compared: rows, files and predicted frames."""
    names = ('dataset', 'split', 'rows', 'initial_step', 'steps', 'dt')
    return {'data': [os.path.realpath(path) for path in r['data']], **{name: r[name] for name in names}}


def groups(results):
    """Results that can be compared, [[result, ...], ...]."""
    found = {}
    for r in results:
        group = found.setdefault(repr(task(r)), [])
        group.append(r)
    return list(found.values())


def heading(r):
    """What all results of a table have in common."""
    files = ', '.join(os.path.basename(path) for path in r['data'])
    first, last = r['rows']
    rows = f"{'only the first rows: ' if r['first_rows'] else ''}{r['split']} rows {first}..{last}"
    where = f"{r['dataset']}, {files}, {rows} ({r['n_trajectories']} trajectories)"
    what = f"{r['rollout']} rollout, {r['steps']} steps of {r['dt']:g} s, initial_step {r['initial_step']}"
    return f'{where}\n{what}'


def table(results):
    """One aligned text of comparable results: a row for each property and metric, a column for each
    checkpoint."""
    return aligned(property_rows(results) + [[''] * (1 + len(results))] + score_rows(results))


def aligned(rows):
    """Rows of texts, one below the other."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths)]
        lines.append('  '.join(cells).rstrip())
    return '\n'.join(lines)


def equations_table(results):
    """The nRMSE of one model of several equations: a row for each, and the geometric mean."""
    rows = [['equation', 'latent rollout', 're-encoding', 'persistence', 'trajectories', 'grid', 'steps']]
    for r in results:
        rows.append([r['equation'], as_text(r['latent']['nrmse']), as_text(r['reencode']['nrmse']),
                     as_text(r['baselines']['persistence']['nrmse']), str(r['n_trajectories']), shape_text(r['grid']),
                     str(r['steps'])])
    means = []
    for rollout in ('latent', 'reencode'):
        errors = [r[rollout]['nrmse'] for r in results]              # None where one is not finite
        means.append(None if None in errors else math.prod(errors) ** (1 / len(errors)))
    return aligned([*rows, ['geometric mean', *map(as_text, means), *[''] * 4]])


def property_rows(results):
    """[label, text of each result] of the properties of the checkpoints."""
    minutes = []
    memory = []
    missing = []
    for r in results:
        seconds = r['train_seconds']
        minutes.append('-' if seconds is None else f'{seconds / 60:.1f} min')
        gigabytes = r['peak_memory_gb']
        memory.append('-' if gigabytes is None else f'{gigabytes:.2f} GB')
        missing.append(f"unfinished: {r['unfinished']}" if r['unfinished'] else '')
    state = [['', *missing]] if any(missing) else []
    return [['checkpoint', *[r['ckpt'] for r in results]],
            *state,
            ['iter', *[str(r['iter']) for r in results]],
            ['parameters', *[f"{r['n_params']:,}" for r in results]],
            ['training time', *minutes],
            ['training memory', *memory],
            ['grid', *[shape_text(r['grid']) for r in results]]]


def score_rows(results):
    """[label, text of each result] of every score that the results have."""
    one = results[0]
    units = {'correlation_time': ' (s)', 'ms_per_trajectory': f" (ms, batch {one['ms_batch_size']})"}
    rows = []
    for name in one['metrics']:
        rows.append(score_row(name + units.get(name, ''), results, 'metrics', name))
        if name == 'nrmse':
            rows += nrmse_rows(results)
    for f in one.get('superres', ()):
        rows += off_grid_rows(f'nrmse on {f} x grid', results, 'superres', f)
        if 'given' in one['superres'][f]:
            rows.append(score_row('  given there, too', results, 'superres', f, 'given'))
    if 'file_points' in one:
        rows.append(score_row('nrmse from and at the points of the file', results, 'file_points', 'nrmse'))
    for n in one.get('input_points', ()):
        rows.append(score_row(f'nrmse from {n} input points', results, 'input_points', n, 'nrmse'))
        rows.append(score_row('  over the trained input', results, 'input_points', n, 'ratio'))
    if 'random_points' in one:
        n = one['random_points']['points']
        rows += off_grid_rows(f'nrmse at {n} random points', results, 'random_points')
    if 'horizon' in one:
        seconds = one['horizon']['seconds']
        for name, label in HORIZON.items():
            if name in one['horizon']:
                rows.append(score_row(label.format(seconds), results, 'horizon', name))
    if 'break_even' in one:
        rows += break_even_rows([r['break_even'] for r in results])
    return rows


def break_even_rows(found):
    """Costs, and the number of trajectories from which on the model is cheaper."""
    from evaluation.break_even import WAYS, trajectories
    rows = [['seconds of data', *[f"{r['data_seconds']:.4g}" for r in found]]]
    for way, label in WAYS.items():
        rows.append([f'solver that errs no more, {label}',
                     *[f"{r['solver'][way]}: {r['solver_nrmse'][way]:.2g}" for r in found]])
        rows.append([f'ms {label}: solver', *[f"{r['solver_ms'][way]:.4g}" for r in found]])
        rows.append([f'ms {label}: this model', *[f"{r['model_ms'][way]:.4g}" for r in found]])
    for way, label in WAYS.items():
        rows.append([f'break-even, trajectories {label}', *[trajectories(r['pays_after'][way]) for r in found]])
    return rows


def off_grid_rows(label, results, *keys):
    """The scores on one finer grid, or at random points."""
    return [score_row(label, results, *keys, 'nrmse'),
            score_row('  over nrmse', results, *keys, 'ratio'),
            score_row('  interpolated truth', results, *keys, 'floor')]


def nrmse_rows(results):
    """nRMSE of each field and parameter, of the other rollout, and of the baselines."""
    one = results[0]
    other = 'reencode' if one['rollout'] == 'latent' else 'latent'
    rows = [score_row(f'  of {field}', results, 'by_field', field) for field in one.get('by_field', ())]
    for label in one.get('by_parameter', ()):
        rows.append(score_row(f'  at {label}', results, 'by_parameter', label, 'nrmse'))
    rows.append(score_row(f'  {other} rollout', results, other, 'nrmse'))
    rows.append(score_row('  persistence', results, 'baselines', 'persistence', 'nrmse'))
    rows.append(score_row('  spatial mean', results, 'baselines', 'mean', 'nrmse'))
    return rows


ENSEMBLE = {                     # columns of the table of steppers
    'n_members': 'n_members',
    'flow_steps': 'flow_steps',
    'nrmse_member': 'nrmse (member)',
    'nrmse_mean': '(mean)',
    'relative_crps': 'relative_crps',
    'spread_skill': 'spread_skill',
    'coverage': 'coverage',
    'coverage_if_calibrated': '(calibrated)',
    'frmse_high_member': 'frmse_high (member)',
    'frmse_high_mean': '(mean)',
    'spectral_energy_error_member': 'spectral_energy_error (member)',
    'correlation_time_member': 'correlation_time (member)',
    'correlation_time_mean': '(mean)',
    'ms_per_trajectory': 'ms'}


def ensemble_table(found):
    """A row for each stepper of {stepper: scores}, as probabilistic.scores.ensembles gives them: scores of
    single members and of their mean."""
    rows = [['stepper', *ENSEMBLE.values()]]
    for stepper, scores in found.items():
        rows.append([stepper, *[as_text(scores.get(name)) for name in ENSEMBLE]])
    return aligned(rows)


def search_table(found):
    """The report of probabilistic/search.py as text."""
    columns = {'nrmse': 'nrmse', 'frmse_high': 'frmse_high', 'spectral_energy_error': 'spectrum',
               'correlation_time': 'correlation_time', 'evaluations': 'evaluations a step',
               'ms_per_trajectory': 'ms per trajectory'}
    rows = [['', *columns.values()]]
    for name, row in found['rows'].items():
        rows.append([name, *[as_text(row[key]) for key in columns]])
    text = [aligned(rows), f"rank correlation of reward and accuracy: {as_text(found['rank_correlation'])}"]
    text += [f'no reward for {name}: {why}' for name, why in found['left_out'].items()]
    return '\n'.join(text)


def score_row(label, results, *keys):
    """A row of the numbers that `keys` lead to in each result."""
    row = [label]
    for r in results:
        value = r
        for key in keys:
            value = value[key]
        row.append(blown_up(r) if value is None else f'{value:.5g}')
    return row


def blown_up(r):
    """Why a number of this result is missing: the first step at which the prediction is not finite."""
    for step, value in enumerate(r['per_step']['nrmse'], 1):
        if value is None:
            return f'inf at step {step}'
    return 'not finite'


# ---------------------------------------------------------------------------------------------
# comparison of runs

def compare(results, paths=(), below=None):
    """Print a table of runs, a row each, and write it to files by their endings, .md and .csv, and the errors
    over time to a .png. below: the validation error to which iterations are counted. Raises UserError for
    runs on other data."""
    check_comparable(results)
    logs = [validations(r['ckpt']) for r in results]
    if below is None and logs[0]:
        below = logs[0][-1][1]
    rows = comparison_rows(results, logs, below)
    texts = [[as_text(cell) for cell in row] for row in rows]
    say(f'\n{heading(results[0])}\n\n{aligned(texts)}')
    for path in paths:
        if path.endswith('.png'):
            from evaluation.pictures import draw_comparison
            draw_comparison(path, [error_curve(r) for r in results], heading(results[0]))
            continue
        with whole_file(path, newline='') as file:
            if path.endswith('.csv'):
                csv.writer(file).writerows(rows)
            else:
                file.write(markdown(texts))
        say(f'-> {path}')


def check_comparable(results):
    """Raise UserError where runs were trained or evaluated on other data than the first one."""
    first = results[0]
    for r in results[1:]:
        if r['trained_on'] != first['trained_on']:
            raise UserError(f"--compare: '{r['ckpt']}' was trained on other data than '{first['ckpt']}' "
                            '(another file, parameter or number of trajectories): compare runs on the same')
        for name, value in task(r).items():
            if value != task(first)[name]:
                raise UserError(f"--compare: '{r['ckpt']}' was evaluated with {name} {value}, "
                                f"'{first['ckpt']}' with {task(first)[name]}: compare runs with the same")


def validations(ckpt):
    """The validation errors of a run, [(iteration, nRMSE), ...], from the log.csv beside its checkpoint; none
    without that file."""
    path = os.path.join(os.path.dirname(ckpt), 'log.csv')
    if not os.path.exists(path):
        say(f"eval: no log.csv beside '{ckpt}': its validation errors are unknown")
        return []
    with open(path, newline='') as file:
        rows = list(csv.DictReader(file))
    return [(int(row['iter']), float(row['val_nrmse'])) for row in rows if row.get('val_nrmse')]


def comparison_rows(results, logs, below):
    """[[header, ...], [values of a run, ...], ...]; None where a value is unknown."""
    limit = '-' if below is None else f'{below:.4g}'
    rows = [['run', 'nRMSE latent', 're-encoding', 'recon', 'over first', 'parameters', 'training s',
             'memory GB', 'ms per trajectory', f'iterations to validation {limit}']]
    reference = results[0]['metrics']['nrmse']
    for r, log in zip(results, logs):
        scores = r['metrics']
        error = scores['nrmse']
        there = [iteration for iteration, nrmse in log if below is not None and nrmse <= below]
        rows.append([run_name(r), r['latent']['nrmse'], r['reencode']['nrmse'], scores['recon_nrmse'],
                     error / reference if error and reference else None, r['n_params'], r['train_seconds'],
                     r['peak_memory_gb'], scores['ms_per_trajectory'], there[0] if there else None])
    return rows


def run_name(r):
    """The folder of the run of a result, or the file of its checkpoint, and whether the run is unfinished."""
    folder, name = os.path.split(r['ckpt'])
    name = folder if folder and name == 'best.pt' else r['ckpt']
    return f"{name} (unfinished: {r['unfinished']})" if r['unfinished'] else name


def as_text(value):
    if value is None:
        return '-'
    return f'{value:.4g}' if isinstance(value, float) else str(value)


def markdown(rows):
    """A table of texts in Markdown."""
    head, *rest = ['| ' + ' | '.join(row) + ' |' for row in rows]
    return '\n'.join([head, '|' + '---|' * len(rows[0]), *rest, ''])


def error_curve(r):
    """The error over time of a result, (name, times, errors)."""
    errors = [math.nan if error is None else error for error in r['per_step']['nrmse']]
    times = [(r['initial_step'] + step) * r['dt'] for step in range(len(errors))]
    return run_name(r), times, errors
