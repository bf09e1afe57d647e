"""peers/race.py: how soon a training is as good as the FNO after five minutes."""
import json
from types import SimpleNamespace

import pytest

import bench
from conftest import refused
from peers import race


@pytest.fixture
def here(monkeypatch, tmp_path):
    """Two tracks with targets of .1 and .2 after 1000 and 500 iterations of the FNO; the first has a record. Validation
    errors of attempts are .08, .09 and .1 for seeds 0, 1, 2, those on the test split .5, in 20 s of training; the FNO
    takes .2 s an iteration and has .04 on the test split."""
    zoo = {name: {'fno': [{'validation': error + gap, 'nrmse': .04, 'iters': n} for gap in (-.01, .01)],
                  'changes': {'fno': ['--arch=fno']}} for name, error, n in (('burgers_cpu', .1, 1000), ('ns_cpu', .2, 500))}
    (tmp_path / 'zoo.json').write_text(json.dumps(zoo))
    (tmp_path / 'race.json').write_text(json.dumps({'burgers_cpu': {'iters': 300, 'keys': ['--muon_lr=.02'], 'speedup': 9.}}))
    monkeypatch.setattr(race, 'ZOO', str(tmp_path / 'zoo.json'))
    monkeypatch.setattr(race, 'RECORDS', str(tmp_path / 'race.json'))
    monkeypatch.setattr(race, 'package_fno', lambda: None)
    monkeypatch.setattr(race, 'prepare', lambda config, overrides: config)
    monkeypatch.setattr(race, 'fno_of', lambda task: 'fno')
    monkeypatch.setattr(race, 'changes_of', lambda method, task: ['--arch=fno'])
    monkeypatch.setattr(race, 'seconds_of_fno', lambda task, iters: .2 * iters)
    calls = []

    def train_and_score(name, task, budget, seed, folder, extra, validations):
        calls.append((budget['iters'], seed, extra))
        return {'nrmse': .5, 'validation': [(25., .08 + .01 * seed)], 'seconds': 20., 'threads': 1, 'device': 'A CPU',
                'commit': 'abc'}

    monkeypatch.setattr(race, 'train_and_score', train_and_score)
    monkeypatch.setenv('OMP_NUM_THREADS', '1')                       # so that it is put back
    monkeypatch.chdir(tmp_path)
    return calls


def test_the_standing_records_are_run(here, capsys, tmp_path):
    bench.main(['race', '--seeds=3', '--json=r.json'])
    assert here == [(300, seed, ['--muon_lr=.02']) for seed in range(3)]
    row = capsys.readouterr().out.splitlines()[-1].split()
    assert row[:4] == ['burgers_cpu', '300', '0.1', '0.09'] and row[-1] == '10.0'
    found = json.loads((tmp_path / 'r.json').read_text())['burgers_cpu']
    assert found['validation'] == pytest.approx(.09) and found['fno_seconds'] == pytest.approx(200.)
    assert found['nrmse'] == pytest.approx(.5)                       # is told, and decides nothing
    assert found['speedup'] == pytest.approx(200 / 20) and found['reached'] and found['keys'] == ['--muon_lr=.02']
    assert [run['seed'] for run in found['runs']] == [0, 1, 2]


def test_an_attempt_that_misses(here, capsys):
    """.08 is more than .05; the keys of the standing record are not taken for an attempt of one's own."""
    zoo = json.loads(open(race.ZOO).read())
    zoo['burgers_cpu']['fno'] = [{'validation': .05, 'nrmse': .6, 'iters': 1000}]
    open(race.ZOO, 'w').write(json.dumps(zoo))
    bench.main(['race', 'config/burgers_cpu.py', '--iters=100', '--depth=2', '--json=r.json'])
    assert not json.loads(open('r.json').read())['burgers_cpu']['reached']
    assert here == [(100, 0, ['--depth=2'])]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].endswith('missed') and lines[-1] == 'no record: --seeds 3 are needed'


def test_the_fno_is_timed_by_the_schedule_of_its_five_minutes(monkeypatch):
    """10 ms an iteration in 70 % of the time, 30 ms in the rest: 80 iterations in a second. By a count of iterations, 70 % of
    them at 10 ms, there would be 62.5."""
    given = []

    def run_training(config, folder, *args):
        given.extend(args)
        return [{'iter': 2, 'train_seconds': .02}, {'iter': 70, 'train_seconds': .7}, {'iter': 80, 'train_seconds': 1.}]

    monkeypatch.setattr(race, 'run_training', run_training)
    monkeypatch.setattr(race, 'changes_of', lambda method, task: [])
    monkeypatch.setattr(race, 'fno_of', lambda task: 'fno')
    task = SimpleNamespace(config='x', overrides=[])
    assert race.seconds_of_fno(task, 80) == pytest.approx(1., rel=.01)
    assert '--operator_stage.max_minutes=0.2' in given and '--operator_stage.max_iters=1000000000' in given


def test_another_fno_than_that_of_the_zoo(here, monkeypatch):
    monkeypatch.setattr(race, 'changes_of', lambda method, task: ['--arch=fno', '--batch_size=4'])
    assert 'dev.study zoo' in refused(bench.main, ['race']) and not here


@pytest.mark.parametrize('args, words', [
    (['config/burgers_cpu.py', '--iters=3', '--n_trajectories=9'], 'would change the data'),
    (['config/burgers_cpu.py', '--iters=3', '--init_from=x.pt'], 'would change the data'),
    (['config/burgers_cpu.py', '--iters=3', '--device=cuda'], 'would change the data'),
    (['config/burgers_cpu.py', '--iters=3', '--n_validated=1'], 'would change the data'),
    (['config/burgers_cpu.py', '--iters=3', '--operator_stage.eval_interval=10'], 'would change the data'),
    (['config/burgers_cpu.py', '--iters=3', '--seed=7'], 'would change the data'),
    (['config/burgers_cpu.py', '--minutes=3'], 'none of its options'),
    (['config/burgers_cpu.py', '--iters=3', '--nu', '.1'], 'none of its options'),
    (['config/burgers_cpu.py', '--iters=3', '--methods=fno'], 'none of its options'),
    (['config/ns_cpu.py'], '--iters says how long'), (['config/kdv_cpu.py', '--iters=3'], "'kdv_cpu' has no track"),
    (['config/burgers_cpu.py', 'config/ns_cpu.py', '--iters=3'], 'one config')])
def test_what_cannot_be_raced(here, args, words):
    assert words in refused(bench.main, ['race', *args])
