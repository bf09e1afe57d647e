"""peers/race.py: how soon a training is as good as the FNO after five minutes."""
import json

import pytest

import bench
from conftest import refused
from peers import race


@pytest.fixture
def here(monkeypatch, tmp_path):
    """Two tracks with targets of .1 and .2 after 1000 and 500 iterations of the FNO; the first has a record. Errors of
    attempts are .08, .09 and .1 for seeds 0, 1, 2, in 20 s of training; the FNO takes .2 s an iteration."""
    zoo = {name: {'fno': [{'nrmse': error - .01, 'iters': n}, {'nrmse': error + .01, 'iters': n}]}
           for name, error, n in (('burgers_cpu', .1, 1000), ('ns_cpu', .2, 500))}
    (tmp_path / 'zoo.json').write_text(json.dumps(zoo))
    (tmp_path / 'race.json').write_text(json.dumps({'burgers_cpu': {'iters': 300, 'keys': ['--muon_lr=.02'], 'ratio': 9.}}))
    monkeypatch.setattr(race, 'ZOO', str(tmp_path / 'zoo.json'))
    monkeypatch.setattr(race, 'RECORDS', str(tmp_path / 'race.json'))
    monkeypatch.setattr(race, 'package_fno', lambda: None)
    monkeypatch.setattr(race, 'prepare', lambda config, overrides: config)
    monkeypatch.setattr(race, 'seconds_of_fno', lambda task, iters: .2 * iters)
    rows = [{'iter': iters, 'train_seconds': seconds} for iters, seconds in (('280', '18.6'), ('290', '19.3'), ('300', '25'))]
    monkeypatch.setattr(race, 'read_log', lambda folder: rows)
    calls = []

    def compete(name, task, budget, seed, folder, extra, validations):
        calls.append((budget['iters'], seed, extra))
        with open(f'{folder}/env.json', 'w') as file:
            json.dump({'threads': 1, 'device': 'cpu', 'commit': 'abc'}, file)
        return {'nrmse': .08 + .01 * seed, 'validation': [(25., .07)]}

    monkeypatch.setattr(race, 'compete', compete)
    monkeypatch.setenv('OMP_NUM_THREADS', '1')                       # so that it is put back
    monkeypatch.chdir(tmp_path)
    return calls


def test_the_last_validation_does_not_count():
    """The last ten iterations count like the ten before, 2 s, although the last row says 40 s."""
    rows = [{'iter': '280', 'train_seconds': '19'}, {'iter': '290', 'train_seconds': '21'},
            {'iter': '300', 'train_seconds': '40'}]
    assert race.training_seconds(rows) == pytest.approx(23.)
    assert 'too short' in refused(race.training_seconds, rows[:2])


def test_the_standing_records_are_run(here, capsys, tmp_path):
    bench.main(['race', '--seeds=3', '--json=r.json'])
    assert here == [(300, seed, ['--log_interval=15', '--muon_lr=.02']) for seed in range(3)]
    row = capsys.readouterr().out.splitlines()[-1].split()
    assert row[:4] == ['burgers_cpu', '300', '0.1', '0.09'] and row[-3:] == ['10.0,', 'a', 'record']
    found = json.loads((tmp_path / 'r.json').read_text())['burgers_cpu']
    assert found['error'] == pytest.approx(.09) and found['fno_seconds'] == pytest.approx(200.)
    assert found['ratio'] == pytest.approx(200 / 20) and found['keys'] == ['--muon_lr=.02']
    assert [run['seed'] for run in found['runs']] == [0, 1, 2]


def test_an_attempt_that_misses(here, capsys):
    """.08 is more than .05; the keys of the standing record are not taken for an attempt of one's own."""
    zoo = json.loads(open(race.ZOO).read())
    zoo['burgers_cpu']['fno'] = [{'nrmse': .05, 'iters': 1000}]
    open(race.ZOO, 'w').write(json.dumps(zoo))
    bench.main(['race', 'config/burgers_cpu.py', '--iters=100', '--depth=2'])
    assert here == [(100, 0, ['--log_interval=5', '--depth=2'])]
    assert capsys.readouterr().out.split()[-1] == 'missed'


def test_what_is_a_record(here, capsys, tmp_path):
    """One seed is too few; a smaller ratio is none; the first of a track is one, if it is good enough."""
    def last_row(*args):
        bench.main(['race', '--json=r.json', *args])
        return capsys.readouterr().out.splitlines()[-1]

    standing = json.loads(open(race.RECORDS).read())
    assert last_row('--seeds=3').endswith('10.0, a record')
    assert last_row().endswith(' 10.0')
    standing['burgers_cpu']['ratio'] = 11.
    open(race.RECORDS, 'w').write(json.dumps(standing))
    assert last_row('--seeds=3').endswith(' 10.0')
    assert last_row('config/ns_cpu.py', '--iters=300', '--seeds=3').endswith('5.0, a record')
    found = json.loads((tmp_path / 'r.json').read_text())
    assert list(found) == ['ns_cpu'] and found['ns_cpu']['ratio'] == pytest.approx(5.)


@pytest.mark.parametrize('args, words', [
    (['config/burgers_cpu.py', '--iters=3', '--n_trajectories=9'], 'would change the data'),
    (['config/burgers_cpu.py', '--iters=3', '--nu', '.1'], 'none of its options'),
    (['config/burgers_cpu.py', '--iters=3', '--methods=fno'], 'none of its options'),
    (['config/ns_cpu.py'], '--iters says how long'), (['config/kdv_cpu.py', '--iters=3'], "'kdv_cpu' has no track"),
    (['config/burgers_cpu.py', 'config/ns_cpu.py', '--iters=3'], 'one config')])
def test_what_cannot_be_raced(here, args, words):
    assert words in refused(bench.main, ['race', *args])
