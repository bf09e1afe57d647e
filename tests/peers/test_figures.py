"""dev/figures.py, docs/figures.json: the texts show what was found, and a run tells whether it is found again."""
import json

import pytest

from conftest import refused
from dev import figures

with open(figures.FILE) as file:
    KNOWN = json.load(file)


def test_every_figure_of_the_texts_is_known():
    assert figures.missing() == {}


def test_a_number_that_nobody_found_is_told(monkeypatch):
    text = 'error 0.0016 after 4 minutes ([table](a.md#0.7)), `--nu=.77` and arXiv 2402.12365; .0123 with 33 % less'
    assert figures.numbers(text) == ['0.0016', '.0123', '33']
    here = '**latent rollout** 0.0016'                               # the line of the quick start
    monkeypatch.setattr(figures, 'texts', lambda: {'a': f'{here}\n```\n.777\n```\n.0123 with 33 % less', 'b': text})
    assert figures.missing() == {'a': ['.0123', '33'], 'b': ['0.0016', '.0123', '33']}
    assert figures.numbers('after 135 or 44,800 of 1,234,567, not 7 or 12,34') == ['44,800', '1,234,567']
    assert figures.shows('0.0072', .00716) and not figures.shows('0.0072', .00714) and not figures.shows('72', .72)
    assert figures.shows('44,800', 44_831) and not figures.shows('44,800', 44_851)


def test_figures_and_constants_fit_together():
    """Values lie in their intervals, runs exist, no figure is there twice, and no constant stands for nothing."""
    names = [figures.name_of(figure) for figure in KNOWN['figures']]
    assert len(set(names)) == len(names)
    for figure in KNOWN['figures']:
        assert figure['run'] in KNOWN['runs'] and figure['low'] <= figure['value'] <= figure['high'], figure
    lines = [line for text in figures.texts().values() for line in figures.lines(text)]
    for constant in KNOWN['constants']:
        assert any(constant['number'] in line and figures.is_in(line, constant) for line in lines), constant


def test_what_follows_from_figures():
    known = [{'run': 'a', 'key': 'x/nrmse', 'value': 1.}, {'run': 'a', 'key': 'y/nrmse', 'value': 4.},
             {'run': 'b', 'key': ['x', 'y'], 'value': .5}]
    assert figures.derived({'of': [r'a: .*/nrmse']}, known) == 2.
    assert figures.derived({'of': [r'a: ./nrmse', 'b: x : y']}, known) == 4.


@pytest.mark.parametrize('run, name, least', [('ten equations', 'zoo.json', 100), ('the race', 'race.json', 50)])
def test_figures_are_those_of_the_files(run, name, least):
    with open(f'{figures.HERE}/docs/{name}') as file:
        results = json.load(file)
    of_run = [figure for figure in KNOWN['figures'] if figure['run'] == run]
    assert len(of_run) >= least
    for figure in of_run:
        assert figures.value_at(results, figure['key']) == pytest.approx(figure['value'], rel=1e-4), figure['key']


def test_a_path_in_a_result():
    result = {'a': [{'b': 1.}, {'b': 2.}, {'b': 6.}], 'c': {'d': 4.}}
    assert figures.value_at(result, 'c/d') == 4. and figures.value_at(result, 'a/2/b') == 6.
    assert figures.value_at(result, 'a/*/b') == 3. and figures.value_at(result, 'a/0,1/b') == 1.5
    assert figures.value_at(result, ['c/d', 'a/1/b']) == 2.
    solver = {'8 cells, cfl=3': {'ms': 5.}, 'a': {'ms': 1.}, 'b': {'ms': 3.}}       # names with commas
    assert figures.value_at(solver, '8 cells, cfl=3/ms') == 5. and figures.value_at(solver, 'a,b/ms') == 2.


def test_the_shortest_runs_are_chosen():
    runs = {name: {'minutes': minutes} for name, minutes in (('a', 5), ('b', 1), ('c', 4), ('d', 100))}
    assert figures.chosen(runs, 10, []) == ['b', 'c', 'a'] and figures.chosen(runs, 4, []) == ['b']
    assert figures.chosen({**runs, 'd, e': {}}, 1, ['d', 'd,']) == ['d', 'd, e'] and "no 'e'" in refused(figures.chosen, runs, 1, ['e'])


def test_inside_and_outside(monkeypatch, tmp_path, capsys):
    """A run writes .5: inside of one interval, outside of another one. A command that fails ends in one line."""
    write = """python -c "import json; json.dump({'x': .5}, open('OUT/r.json', 'w'))" """
    known = {'runs': {'one': {'commands': [write], 'minutes': 1, 'result': 'OUT/r.json'},
                      'two': {'commands': ['python -c "raise SystemExit(3)"'], 'minutes': 20, 'result': ''}},
             'figures': [{'run': 'one', 'key': 'x', 'value': .4, 'low': .3, 'high': .6},
                         {'run': 'one', 'key': ['x', 'x'], 'value': 2., 'low': 1.5, 'high': 2.5},
                         {'run': 'one', 'key': 'y', 'value': 1., 'low': 0., 'high': 2.}]}        # is not there
    (tmp_path / 'figures.json').write_text(json.dumps(known))
    monkeypatch.setattr(figures, 'FILE', str(tmp_path / 'figures.json'))
    assert figures.main([]) == known['figures'][1:]
    lines = capsys.readouterr().out.splitlines()
    assert '1 of 2 runs' in lines[0] and [line.split()[-1] for line in lines[-3:]] == ['inside', 'outside', 'outside']
    assert figures.main(['--runs', 'two', 'one', f'--out={tmp_path / "kept"}']) == [{'run': 'two'}, *known['figures'][1:]]
    assert 'failed' in (out := capsys.readouterr().out) and 'exit code 3' in out
    assert (tmp_path / 'kept' / 'one' / 'r.json').exists()


def test_a_run_of_several_results(tmp_path):
    write = """python -c "import json; [json.dump({'x': i}, open(f'OUT/{i}.json', 'w')) for i in (1, 2)]" """
    run = {'commands': [write], 'result': 'OUT/*.json'}
    assert figures.result_of(run, str(tmp_path)) == {'1': {'x': 1}, '2': {'x': 2}}
    assert 'wrote no OUT/3.json' in refused(figures.result_of, {**run, 'result': 'OUT/3.json'}, str(tmp_path))


@pytest.mark.slow
def test_figures_of_shipped_weights_are_found_again(capsys):
    assert figures.main(['--minutes', '3']) == []
    assert capsys.readouterr().out.count('inside') == 4
