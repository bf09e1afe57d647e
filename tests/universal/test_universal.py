"""Several equations in one training: shared blocks, members that are models of their own, fine-tuning."""
import os
import re
import shutil
import signal

import pytest
import torch

import data
import eval as ev
from conftest import (Child, close, config, no_power, refused, same_run, state_of, stop_at, train_here,
                      two_processes, waves, write)
from evaluation.tables import equations_table
from model import UPT, RotaryPositions, load
from runtime.checkpoint import equations_of, is_shared, load_checkpoint, of_equation, ship
from universal.model import MixtureConfig, NamedNumbers, PlanePositions, Universal

NETWORK = {'arch': 'universal', 'hidden_dim': 16, 'depth': 1, 'n_head': 2}


@pytest.fixture(scope='session')
def mixture(tmp_path_factory, burgers_file):
    """The configs of two equations, in one and two dimensions, and the arguments of a training of both."""
    folder = tmp_path_factory.mktemp('mixture')
    turbulent = write(folder / 'flow.hdf5', waves(20, 6 * 16, 16).reshape(20, 6, 16, 16) - 1, Nu=1e-3)
    texts = {
        'line': f"data_path = {burgers_file!r}\ntime_stride = 40\nspace_stride = 32\nlatent_tokens = 8\n"
                'latent_dim = 4\ntoken_shift = 1\n',
        'plane': f"dataset = 'navier-stokes'\ndata_path = {turbulent!r}\ntime_stride = space_stride = 1\nnu = 1e-3\n"
                 "latent_tokens = 4\nlatent_dim = 8\nbasis = 'components'\nunroll = 2\n"}
    paths = []
    for name, text in texts.items():
        paths.append(str(folder / f'{name}.py'))
        with open(paths[-1], 'w') as file:
            file.write(text)
    return [f'--mixture={",".join(paths)}', '--stages=mixture', '--hidden_dim=16', '--depth=1', '--n_head=2',
            '--accumulation=2', '--batch_size=8', '--max_iters=6', '--eval_interval=3', '--log_interval=1',
            '--device=cpu', '--save_interval=2']


@pytest.fixture(scope='session')
def trained(mixture, tmp_path_factory):
    """The folder of such a run."""
    folder = str(tmp_path_factory.mktemp('trained') / 'run')
    with pytest.MonkeyPatch.context() as patch:
        train_here(patch, *mixture, f'--out_dir={folder}')
    return folder


def two_members():
    line = config(1, **NETWORK)
    plane = config(2, **NETWORK, pde='navier-stokes', boundary='wall')
    return Universal(MixtureConfig.of({'line': line, 'plane': plane}))


def test_members_share_their_blocks_alone():
    m = two_members()
    line, plane = (dict(member.named_parameters()) for member in m.members.values())
    common = {name for name in line.keys() & plane.keys() if line[name] is plane[name]}
    assert common == {name for name in line.keys() & plane.keys() if is_shared(name)}
    assert 'operator.network.levels.0.0.attention.qkv.weight' in common
    assert 'condition.numbers.weights.dt' in common
    for own in ('operator.network.stem.weight', 'operator.network.head.weight', 'condition.numbers.equation'):
        assert line[own] is not plane[own]
    assert m.n_params() < sum(member.n_params() for member in m.members.values())


def test_positions_in_the_plane_of_a_line_leave_half_of_the_features():
    """In one dimension, pairs of the first axis are rotated as those of a model of half the features."""
    centres = torch.rand(6, 1)
    x = torch.randn(2, 6, 8)
    rotated = PlanePositions(centres, 8, True)(x)
    half = RotaryPositions(centres, 4, True)
    close(rotated[..., 1::2], x[..., 1::2])
    close(rotated[..., ::2], half(x[..., ::2]))


def test_conditions_by_name():
    """Numbers enter by the weights of their names, and the boundary and the equation by a vector each."""
    numbers = NamedNumbers(config(1, params=('Nu', 'beta')))
    for vector, value in ((numbers.boundary['periodic'], .5), (numbers.equation, .25)):
        torch.nn.init.constant_(vector, value)
    x = torch.tensor([[2., 3., 4.]])
    expected = (2 * numbers.weights['dt'] + 3 * numbers.weights['Nu'] + 4 * numbers.weights['beta'] + .75)[None]
    close(numbers(x), expected)


def test_a_member_of_a_checkpoint_is_a_model_of_its_own(trained):
    """load(.., equation=..) is the member, by the name of its config or of its equation."""
    state = load_checkpoint(f'{trained}/best.pt')
    assert equations_of(state) == {'line': 'burgers', 'plane': 'navier-stokes'}
    m = load(trained, equation='navier-stokes')
    assert isinstance(m, UPT) and m.cfg.grid == (16, 16) and m.cfg.hidden_dim == 16
    one = of_equation(state, 'x', 'plane')
    assert all(torch.equal(value, one['ema'][name]) for name, value in m.state_dict().items())
    other = load(trained, equation='line')
    assert torch.equal(m.state_dict()['operator.network.levels.0.0.mlp.0.weight'],
                       other.state_dict()['operator.network.levels.0.0.mlp.0.weight'])
    assert 'of line, plane: name one' in refused(load, trained)
    assert 'none of them is of darcy' in refused(load, trained, equation='darcy')


def test_every_equation_is_trained_and_logged(trained):
    """Own and shared weights move; each equation has a column in the log."""
    first = state_of(trained, 'last.pt')
    assert first['iter'] == 6
    with open(f'{trained}/log.csv') as file:
        head = file.readline()
    assert 'line' in head and 'plane' in head
    for name in ('line', 'plane'):
        assert first['model'][f'members.{name}.operator.network.head.weight'].any()


def test_weights_are_given_away_without_places(trained, tmp_path):
    path = str(tmp_path / 'given.pt')
    ship(trained, path)
    state = load_checkpoint(path)
    about = {**state['data'], 'seen': None}
    assert not re.search(r'/(tmp|private|var)', repr([state['config'], about, state['environment']]))
    assert state['data']['members']['plane']['paths'] == ['datasets/flow.hdf5']
    m = load(path, equation='line').state_dict()
    assert all(torch.equal(value, m[name]) for name, value in load(trained, equation='line').state_dict().items())
    assert os.path.getsize(path) < .7 * os.path.getsize(f'{trained}/best.pt')     # weights are there once


def test_evaluation_of_all_equations(trained, capsys, tmp_path):
    """A row for each equation and their geometric mean; --equation takes one."""
    results = ev.main(['--ckpt', trained, '--device', 'cpu', '--rows', '1', '--json', str(tmp_path / 'e.json')])
    assert [r['equation'] for r in results] == ['line', 'plane']
    a, b = (r['metrics']['nrmse'] for r in results)
    last = capsys.readouterr().out.strip().splitlines()[-1].split()
    assert last[:2] == ['geometric', 'mean'] and float(last[2]) == pytest.approx((a * b) ** .5, rel=1e-3)
    [one] = ev.main(['--ckpt', trained, '--device', 'cpu', '--rows', '1', '--equation', 'burgers'])
    for found in (one, results[0]):
        del found['metrics']['ms_per_trajectory']
    assert one['metrics'] == results[0]['metrics'] and one['equation'] == 'line'


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_as_one_that_was_not(monkeypatch, mixture, trained, tmp_path):
    folder = tmp_path / 'stopped'
    with monkeypatch.context() as patch:
        patch.setattr(data.Sampler, 'next', data.Sampler.next)
        stop_at(7, no_power)                                         # in iteration 4, of two equations
        with pytest.raises(RuntimeError, match='power cut'):
            train_here(patch, *mixture, f'--out_dir={folder}')
    assert state_of(folder)['iter'] == 2
    train_here(monkeypatch, *mixture, f'--out_dir={folder}')
    same_run(folder, trained)


@pytest.mark.slow
def test_a_run_that_was_killed_ends_as_one_that_was_not(mixture, trained, tmp_path):
    folder = tmp_path / 'killed'
    for _ in range(3):
        before = os.path.getmtime(folder / 'last.pt') if os.path.exists(folder / 'last.pt') else 0
        child = Child(folder, *mixture, f'--out_dir={folder}')
        child.wait_for(lambda: os.path.exists(folder / 'last.pt') and os.path.getmtime(folder / 'last.pt') > before)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert Child(folder, *mixture, f'--out_dir={folder}').wait() == 0
    same_run(folder, trained)


@pytest.mark.slow
def test_two_processes_train_as_one(mixture, trained, tmp_path):
    children = two_processes(tmp_path, *mixture, f'--out_dir={tmp_path}/two')
    assert [child.wait() for child in children] == [0, 0], children[0].text('err')
    alone = state_of(trained)['model']
    for name, value in state_of(f'{tmp_path}/two')['model'].items():
        close(value, alone[name], 2e-3)


def test_a_new_equation_takes_the_blocks(monkeypatch, trained, advection_file, tmp_path):
    """Fine-tuning on an equation that the mixture lacks: its network, shared weights, new maps; it resumes."""
    args = [f'--data_path={advection_file}', '--dataset=advection', '--time_stride=40', '--space_stride=32',
            '--latent_tokens=8', '--latent_dim=4', '--device=cpu', f'--out_dir={tmp_path}/new',
            f'--init_from={trained}', '--batch_size=4', '--learning_rate=0', '--muon_lr=0']
    train_here(monkeypatch, *args, '--max_iters=1')
    m = load(f'{tmp_path}/new')
    there = load(trained, equation='burgers').state_dict()
    assert m.cfg.arch == 'universal' and m.cfg.hidden_dim == 16 and m.cfg.pde == 'advection'
    shared = [name for name in m.state_dict() if is_shared(name) and name in there]
    assert len(shared) > 10
    for name in shared:
        close(m.state_dict()[name], there[name], 1e-6)
    assert not m.state_dict()['operator.network.head.weight'].any()
    train_here(monkeypatch, *args, '--max_iters=2')
    assert state_of(f'{tmp_path}/new')['iter'] == 2


def test_a_member_is_fine_tuned_as_a_whole(monkeypatch, trained, burgers_file, tmp_path):
    """Of an equation of the mixture, all weights and the statistics are taken."""
    train_here(monkeypatch, f'--data_path={burgers_file}', '--time_stride=40', '--space_stride=32', '--latent_tokens=8',
               '--latent_dim=4', '--token_shift=1', '--device=cpu', f'--out_dir={tmp_path}/more',
               f'--init_from={trained}', '--batch_size=4', '--max_iters=1', '--learning_rate=0', '--muon_lr=0')
    m = load(f'{tmp_path}/more').state_dict()
    there = load(trained, equation='burgers').state_dict()
    assert m.keys() == there.keys()
    for name, value in m.items():
        close(value, there[name], 1e-6)


def test_two_grids_of_one_equation(monkeypatch, mixture, burgers_file, tmp_path):
    """Two configs of one equation are two members, which differ in points, time step and tokens."""
    [paths, *args] = mixture
    coarse = tmp_path / 'coarse.py'
    coarse.write_text(f"data_path = {burgers_file!r}\ntime_stride = 20\nspace_stride = 64\nlatent_tokens = 4\n"
                      'latent_dim = 4\n')
    line = paths.partition('=')[2].split(',')[0]
    train_here(monkeypatch, f'--mixture={line},{coarse}', *args, '--max_iters=1', f'--out_dir={tmp_path}/run')
    a, b = (load(f'{tmp_path}/run', equation=name) for name in ('line', 'coarse'))
    assert (a.cfg.grid, b.cfg.grid) == ((32,), (16,)) and a.cfg.dt == 2 * b.cfg.dt
    assert '2 of them is of burgers' in refused(load, f'{tmp_path}/run', equation='burgers')


def test_what_a_mixture_cannot_do(monkeypatch, mixture, tmp_path):
    def error(*changes):
        return refused(train_here, monkeypatch, *mixture, f'--out_dir={tmp_path}/no', *changes)

    assert 'stages=mixture' in error('--stages=operator')
    assert 'accumulation=3' in error('--accumulation=3')
    assert "unknown key 'beta'" in error('--beta=.4')
    assert 'the key mixture' in error('--mixture=')
    assert 'mixture_stage.unroll: each equation has its own' in error('--mixture_stage.unroll=4')
    assert 'arch=u' in error('--arch=u')
    (tmp_path / 'own.py').write_text('latent_dim = 99\n')
    assert 'latent_dim is a key of each equation' in error(tmp_path / 'own.py')
    (tmp_path / 'depth.py').write_text('')
    assert 'rename the file' in error(f'--mixture={tmp_path}/depth.py')
    assert not os.path.exists(tmp_path / 'no' / 'last.pt')


def test_a_mixture_resumes_with_what_a_run_may_change(monkeypatch, mixture, trained, tmp_path, run_folder):
    """Each equation is compared for itself. What has another architecture is named."""
    folder = shutil.copytree(trained, tmp_path / 'more')
    train_here(monkeypatch, *mixture, f'--out_dir={folder}', '--checkpointing=true', '--max_iters=7')
    assert state_of(folder)['iter'] == 7
    start = [*mixture, f'--out_dir={tmp_path}/new', '--max_iters=0']
    says = refused(train_here, monkeypatch, *start, f'--init_from={trained}', '--depth=2')
    assert 'line.depth: 1 there, 2 now; plane.depth: 1 there, 2 now' in says
    assert 'a model of one equation' in refused(train_here, monkeypatch, *start, f'--init_from={run_folder}')


def test_a_table_of_equations_of_which_one_is_not_finite():
    r = {'equation': 'a', 'latent': {'nrmse': .1}, 'reencode': {'nrmse': None}, 'n_trajectories': 1, 'grid': [8],
         'steps': 2, 'baselines': {'persistence': {'nrmse': 1.}}}
    last = equations_table([r, {**r, 'latent': {'nrmse': .4}}]).splitlines()[-1].split()
    assert last == ['geometric', 'mean', '0.2', '-']
