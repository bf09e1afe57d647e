"""runtime/device.py: which device is picked or refused, the rule for bfloat16, the processes of torchrun."""
import os

import pytest
import torch
import torch.distributed as dist

from conftest import refused
from runtime import device as devices
from runtime.configurator import UserError
from runtime.device import Machine, float64_device, pick, start


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


def test_without_a_reason_the_line_begins_with_the_device(computer, capsys):
    computer()
    pick('auto')
    assert capsys.readouterr().out.startswith('device cpu (auto')


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


@pytest.mark.parametrize('has, name, expected', [
    (dict(), 'cuda', 'device=cuda, but torch sees no CUDA device: use --device=cpu or --device=auto'),
    (dict(), 'cuda:1', 'device=cuda:1, but torch sees no CUDA device: use --device=cpu or --device=auto'),
    (dict(cuda=2), 'cuda:2', 'device=cuda:2, but torch sees 2 CUDA device(s)'),
    (dict(cuda=2), 'mps', 'device=mps, but torch sees no MPS device: use --device=cpu or --device=auto'),
    (dict(), 'tpu', 'device=tpu is not one of auto, cpu, cuda, cuda:N, mps'),
    (dict(cuda=2), 'cuda:x', 'device=cuda:x is not one of auto, cpu, cuda, cuda:N, mps'),
    (dict(cuda=2), 'cuda:', 'device=cuda: is not one of auto, cpu, cuda, cuda:N, mps'),
    (dict(cuda=2), 'cuda:-1', 'device=cuda:-1 is not one of auto, cpu, cuda, cuda:N, mps'),
    (dict(), '', 'device= is not one of auto, cpu, cuda, cuda:N, mps'),
])
def test_a_device_that_is_not_there_is_refused(computer, has, name, expected):
    computer(**has)
    with pytest.raises(UserError) as caught:
        pick(name)
    assert str(caught.value) == expected


def test_more_processes_than_devices_are_refused(computer, monkeypatch):
    computer(cuda=2)
    monkeypatch.setenv('LOCAL_RANK', '2')
    with pytest.raises(UserError, match='device=cuda:2, but torch sees 2'):
        pick('cuda')


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
    with pytest.raises(UserError, match='device=cuda, but torch sees no CUDA device'):
        float64_device('cuda')


# --- precision and compilation -----------------------------------------------

@pytest.mark.parametrize('name, capability, dtype, bf16, why', [
    ('cuda', (7, 5), 'auto', False, 'this GPU only emulates bfloat16'),
    ('cuda', (8, 0), 'auto', True, 'the GPU has it'),
    ('cuda', (9, 0), 'auto', True, 'the GPU has it'),
    ('cpu', None, 'auto', False, 'bfloat16 was slower on CPUs'),
    ('mps', None, 'auto', False, 'bfloat16 is for CUDA'),
    ('cuda', (7, 0), 'bfloat16', True, 'as asked'),
    ('cuda', (9, 0), 'float32', False, 'as asked'),
    ('cpu', None, 'bfloat16', True, 'as asked'),
])
def test_bfloat16_where_the_gpu_has_it(computer, capsys, monkeypatch, name, capability, dtype, bf16, why):
    computer(cuda=1, capability=capability, mps=True)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda *args, **kwargs: True)  # it counts emulation
    machine = start(name, dtype)
    assert machine.bf16 is bf16
    assert f'dtype {"bfloat16" if bf16 else "float32"} ({why})' in capsys.readouterr().out


@pytest.mark.parametrize('name, capability, compile, expected', [
    ('cuda', (7, 0), 'auto', True), ('cuda', (6, 1), 'auto', False), ('cpu', None, 'auto', False),
    ('mps', None, 'auto', False), ('cpu', None, 'true', True), ('cuda', (9, 0), 'false', False)])
def test_compile(computer, capsys, name, capability, compile, expected):
    computer(cuda=1, capability=capability, mps=True)
    assert start(name, 'float32', compile).compiled is expected
    assert f'compile {str(expected).lower()} (' in capsys.readouterr().out


def test_start_says_everything_in_one_line(computer, capsys):
    computer()
    machine = start('auto')
    assert machine == Machine(torch.device('cpu'), 0, 1, False, False)
    assert capsys.readouterr().out == (
        'device cpu | dtype float32 (bfloat16 was slower on CPUs) | compile false (takes longer than it '
        f'saves in a short run on this device) | 1 process(es), {torch.get_num_threads()} threads\n')


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
    message = refused(start, 'cpu', max_minutes=3)
    assert message == 'max_minutes needs one process, since clocks differ: set max_iters instead'
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
    assert devices.TIMEOUT.total_seconds() == 7200
