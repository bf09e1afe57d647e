"""runtime/device.py: which device is picked or refused, the rule for bfloat16, the processes of torchrun."""
import os

import pytest
import torch
import torch.distributed as dist

from conftest import refused
from runtime.device import DATA, Machine, float64_device, pick, seed_of, start


@pytest.fixture
def computer(monkeypatch):
    """Makes torch see so many CUDA devices of a capability, and MPS or not; returns the list of the devices
    that are made current."""
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'):
        monkeypatch.delenv(name, raising=False)

    def make(cuda=0, capability=(8, 0), mps=False):
        current = []
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: cuda)
        monkeypatch.setattr(torch.cuda, 'set_device', current.append)
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device=None: capability)
        monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: mps)
        return current

    return make


# --- pick --------------------------------------------------------------------

@pytest.mark.parametrize('has, expected', [
    (dict(cuda=2, mps=True), 'cuda:0'), (dict(cuda=0, mps=True), 'mps'), (dict(cuda=0, mps=False), 'cpu')])
def test_auto_takes_cuda_then_mps_then_the_cpu_and_says_so(computer, capsys, has, expected):
    computer(**has)
    assert pick('auto', 'eval') == torch.device(expected)
    said = capsys.readouterr().out
    assert said == f'eval: device {expected} (auto: the first available of cuda, mps, cpu)\n'


@pytest.mark.parametrize('name, expected', [
    ('cpu', 'cpu'), ('mps', 'mps'), ('cuda', 'cuda:0'), ('cuda:1', 'cuda:1'),
    (torch.device('cuda:1'), 'cuda:1')])
def test_a_named_device_is_taken_without_a_word(computer, capsys, name, expected):
    current = computer(cuda=2, mps=True)
    assert pick(name) == torch.device(expected)
    assert capsys.readouterr().out == ''
    assert current == ([torch.device(expected).index] if 'cuda' in expected else [])


def test_plain_cuda_is_the_device_of_the_process(computer, monkeypatch):
    current = computer(cuda=4)
    monkeypatch.setenv('LOCAL_RANK', '3')
    assert pick('cuda') == torch.device('cuda:3')
    assert pick('cuda:1') == torch.device('cuda:1')
    assert current == [3, 1]


@pytest.mark.parametrize('has, name, says', [
    (dict(), 'cuda', 'no CUDA device'), (dict(), 'cuda:1', 'no CUDA device'),
    (dict(cuda=2), 'cuda:2', '2 CUDA device(s)'), (dict(cuda=2), 'mps', 'no MPS device'),
    (dict(), 'tpu', 'auto, cpu, cuda'), (dict(cuda=2), 'cuda:x', 'auto, cpu, cuda'),
    (dict(cuda=2), 'cuda:', 'auto, cpu, cuda'), (dict(cuda=2), 'cuda:-1', 'auto, cpu, cuda'),
    (dict(), '', 'auto, cpu, cuda')])
def test_a_device_that_is_not_there_is_refused(computer, has, name, says):
    computer(**has)
    assert says in refused(pick, name) and says in refused(start, name)


def test_more_processes_than_devices_are_refused(computer, monkeypatch):
    computer(cuda=2)
    monkeypatch.setenv('LOCAL_RANK', '2')
    assert 'cuda:2' in refused(pick, 'cuda')


@pytest.mark.parametrize('has, name, expected, says', [
    (dict(cuda=1, mps=True), 'auto', 'cuda:0', False), (dict(mps=True), 'auto', 'cpu', True),
    (dict(mps=True), 'mps', 'cpu', True), (dict(), 'mps', 'cpu', True), (dict(), 'auto', 'cpu', False),
    (dict(mps=True), 'cpu', 'cpu', False)])
def test_the_solvers_need_float64(computer, capsys, has, name, expected, says):
    computer(**has)
    assert float64_device(name) == torch.device(expected)
    assert ('mps has no float64' in capsys.readouterr().out) is says


def test_the_solvers_refuse_cuda_where_there_is_none(computer):
    computer()
    assert 'no CUDA device' in refused(float64_device, 'cuda')


# --- precision and compilation -----------------------------------------------

@pytest.mark.parametrize('name, capability, dtype, bf16', [
    ('cuda', (7, 5), 'auto', False), ('cuda', (8, 0), 'auto', True), ('cpu', None, 'auto', False),
    ('mps', None, 'auto', False), ('cuda', (7, 0), 'bfloat16', True), ('cuda', (9, 0), 'float32', False),
    ('cpu', None, 'bfloat16', True)])
def test_bfloat16_where_the_gpu_has_it(computer, capsys, monkeypatch, name, capability, dtype, bf16):
    computer(cuda=1, capability=capability, mps=True)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda *args, **kwargs: True)  # it counts emulation
    assert start(name, dtype).bf16 is bf16
    assert f'dtype {"bfloat16" if bf16 else "float32"} (' in capsys.readouterr().out


@pytest.mark.parametrize('name, capability, compile, expected', [
    ('cuda', (7, 0), 'auto', True), ('cuda', (6, 1), 'auto', False), ('cpu', None, 'auto', False),
    ('mps', None, 'auto', False), ('cpu', None, 'true', True), ('cuda', (9, 0), 'false', False)])
def test_compile(computer, capsys, name, capability, compile, expected):
    computer(cuda=1, capability=capability, mps=True)
    assert start(name, 'float32', compile).compiled is expected
    assert f'compile {str(expected).lower()} (' in capsys.readouterr().out


def test_start_says_everything_in_one_line(computer, capsys):
    computer()
    assert start('auto') == Machine(torch.device('cpu'), 0, 1, False, False)
    said = capsys.readouterr().out
    assert said.count('\n') == 1 and said.startswith('device cpu | dtype float32 (')
    assert said.endswith(f'| 1 process(es), {torch.get_num_threads()} threads\n')


@pytest.mark.parametrize('bf16, expected', [(True, torch.bfloat16), (False, torch.float32)])
def test_autocast(bf16, expected):
    machine = Machine(torch.device('cpu'), bf16=bf16)
    a = torch.ones(4, 4)
    for _ in range(2):                                               # each call is a fresh context
        with machine.autocast():
            assert (a @ a).dtype == expected
    assert (a @ a).dtype == torch.float32


def test_deterministic(computer, monkeypatch):
    computer()
    asked = []
    monkeypatch.setattr(torch, 'use_deterministic_algorithms', asked.append)
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', 'x')
    monkeypatch.delenv('CUBLAS_WORKSPACE_CONFIG')
    start('cpu')
    assert asked == [] and 'CUBLAS_WORKSPACE_CONFIG' not in os.environ
    start('cpu', deterministic=True)
    assert asked == [True] and os.environ['CUBLAS_WORKSPACE_CONFIG'] == ':4096:8'


# --- processes ---------------------------------------------------------------

@pytest.fixture
def four(computer, monkeypatch):
    """The third of four processes; returns the calls of init_process_group."""
    monkeypatch.setenv('RANK', '2')
    monkeypatch.setenv('WORLD_SIZE', '4')
    monkeypatch.setenv('LOCAL_RANK', '2')
    calls = []
    monkeypatch.setattr(dist, 'init_process_group', lambda backend, timeout: calls.append((backend, timeout)))
    return calls


@pytest.mark.parametrize('name, backend', [('cuda', 'nccl'), ('cpu', 'gloo')])
def test_processes_meet(four, computer, capsys, name, backend):
    computer(cuda=4)
    machine = start(name)
    assert (machine.rank, machine.world, machine.master, machine.ddp) == (2, 4, False, True)
    (used, timeout), = four
    assert used == backend and timeout.total_seconds() == 7200
    machine.say('not said')
    assert capsys.readouterr().out == ''                             # only the first process prints
    assert machine.device == torch.device('cuda:2' if name == 'cuda' else 'cpu')


def test_processes_refused(four, computer):
    computer()
    assert 'max_minutes' in refused(start, 'cpu', max_minutes=3)
    assert not four                                                  # before they meet


def test_one_process(computer, monkeypatch, capsys):
    computer()
    monkeypatch.setenv('WORLD_SIZE', '4')                            # without RANK, this is not torchrun's
    machine = start('cpu', max_minutes=2)
    assert (machine.rank, machine.world, machine.master, machine.ddp) == (0, 1, True, False)
    capsys.readouterr()
    machine.say('said')
    assert capsys.readouterr().out == 'said\n'
    with machine.master_first():                                     # returns at once
        pass
    machine.stop()


def test_memory_and_name(computer, monkeypatch):
    computer(cuda=1)
    monkeypatch.setattr(torch.cuda, 'max_memory_allocated', lambda device: 3_500_000_000)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: f'GPU {device.index}')
    gpu = Machine(torch.device('cuda:0'))
    assert (gpu.peak_memory_gb(), gpu.name()) == (3.5, 'GPU 0')
    cpu = Machine(torch.device('cpu'))
    assert cpu.peak_memory_gb() is None and cpu.name()


def test_seeds_of_iterations_processes_and_augmentation_differ():
    seeds = [seed_of(seed, iteration, stream) for seed in range(3) for iteration in range(200)
             for stream in (*range(16), DATA)]
    assert len(set(seeds)) == len(seeds)
    assert seed_of(1, 5) != seed_of(0, 5) != seed_of(0, 6) and seed_of(2, 7, 1) == seed_of(2, 7, 1)
