"""files/inspect.py: the numbers it finds, the trouble, and `python data.py inspect`."""
import json

import numpy as np
import pytest

from conftest import noise, refused
from files.inspect import inspect, inspect_command
from handmade import NU, STEADY, darcy, reaction, tensor


def test_numbers_of_each_field(path):
    u = noise(40, 3, 8, 6, 2) * [1, 100] + [0, 5]                    # in more than one block
    found = inspect(reaction(path, u.astype(np.float32)))
    assert (found['trajectories'], found['frames'], found['cells']) == (40, 3, [8, 6])
    assert (found['pde'], found['params'], found['domain']) == ('diffusion-reaction', {}, [[-1., 1.]] * 2)
    flat = u.reshape(-1, 2)
    for name in ('min', 'max', 'mean', 'std'):
        assert found[name] == pytest.approx(getattr(flat, name)(0).tolist(), rel=1e-4), name


def test_every_row_is_checked(path):
    u = noise(20)
    u[1] = np.nan                                       # a test row, which training never reads
    assert 'trajectory 1' in refused(inspect, tensor(path, u))


def test_equal_initial_conditions(path):
    u = noise(20)
    u[12, 0] = u[3, 0]
    message = refused(inspect, tensor(path, u))
    assert 'trajectory 12 (train)' in message and 'trajectory 3 (val)' in message
    u[12, 0] = u[13, 0]                                 # two equal ones within the train part leak nothing
    assert inspect(tensor(path, u))['duplicates'] == 1
    u[12:15, 0] = 2.                                    # nor do constant ones anywhere
    u[3, 0] = 2.
    assert inspect(tensor(path, u))['duplicates'] == 0


def test_fields_that_are_zero_are_doubted(path):
    u = noise()
    u[[3, 7], 2:] = 0
    found = inspect(tensor(path, u))
    assert found['doubts'][-1].startswith('2 trajectories (first: 3)')
    assert found['notes'] == ['6 times for 5 frames: the last is left out, as in released files']
    assert inspect(darcy(path, abs(NU), abs(STEADY)))['doubts'] == []         # only the first solution is 0


def test_a_value_far_from_all_others_is_doubted(path):
    u = noise()
    assert inspect(tensor(path, 1e-9 * u))['doubts'] == []
    u[4, 2, 3] = -9999
    doubt, = inspect(tensor(path, u))['doubts']
    assert 'u reaches -9999, which is 28' in doubt and 'standard deviations' in doubt


def test_inspect_command(path, capsys):
    tensor(path, noise(20))
    inspect_command([path, '--json'])
    found = json.loads(capsys.readouterr().out)
    assert found == inspect(path)
    inspect_command([path])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [key for key in found if key not in (
        'min', 'max', 'mean', 'std')] + ['field', 'u']
    assert f"{'doubts':>13}  none" in lines and f"{'notes':>13}  {found['notes'][0]}" in lines
    assert lines[-1].split()[1:] == [f'{found[name][0]:.5g}' for name in ('min', 'max', 'mean', 'std')]


def test_a_broken_file_ends_the_command(path):
    assert 'at least 2 are needed' in refused(inspect_command, [tensor(path, noise()[:, :, :1])])
