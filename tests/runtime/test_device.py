"""runtime/device.py: which device is picked or refused, the rule for bfloat16, seeds, the processes of
torchrun."""
import os

import pytest
import torch
import torch.distributed as dist

from conftest import refused
from runtime import device as devices
from runtime.device import ALIKE, DATA, Machine, find, float64_device, pick, seed_of, start


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


# --- device ------------------------------------------------------------------

@pytest.mark.parametrize('has, expected', [
    (dict(cuda=2, mps=True), 'cuda:0'), (dict(mps=True), 'mps'), (dict(), 'cpu')])
def test_auto_takes_cuda_then_mps_then_the_cpu_and_says_so(computer, capsys, has, expected):
    computer(**has)
    assert pick('auto', 'eval') == torch.device(expected)
    assert capsys.readouterr().out.startswith(f'eval: device {expected} (')


@pytest.mark.parametrize('name, expected', [
    ('cpu', 'cpu'), ('mps', 'mps'), ('cuda', 'cuda:0'), (torch.device('cuda:1'), 'cuda:1')])
def test_a_named_device_is_taken_without_a_word(computer, capsys, name, expected):
    current = computer(cuda=2, mps=True)
    assert pick(name) == torch.device(expected)
    assert capsys.readouterr().out == ''
    assert current == ([torch.device(expected).index] if 'cuda' in expected else [])


@pytest.mark.parametrize('name', ['cuda:1', torch.device('cuda:1'), torch.device('mps:0')])
def test_a_device_that_is_found_is_not_made_the_current_one(computer, capsys, name):
    current = computer(cuda=2)
    assert find(name) == torch.device(name)
    assert capsys.readouterr().out == '' and current == []


def test_plain_cuda_is_the_device_of_the_process(computer, monkeypatch):
    current = computer(cuda=4)
    monkeypatch.setenv('LOCAL_RANK', '3')
    assert [pick('cuda').index, pick('cuda:1').index] == current == [3, 1]
    monkeypatch.setenv('LOCAL_RANK', '4')                            # more processes than devices
    assert 'cuda:4' in refused(pick, 'cuda')


@pytest.mark.parametrize('n_cuda, name, says', [
    (0, 'cuda', 'no CUDA device'), (2, 'cuda:2', '2 CUDA device(s)'), (2, 'mps', 'no MPS device'),
    (0, 'tpu', 'auto, cpu, cuda'), (2, 'cuda:', 'auto, cpu, cuda'), (2, 'cuda:-1', 'auto, cpu, cuda'),
    (0, '', 'auto, cpu, cuda')])
def test_a_device_that_is_not_there_is_refused(computer, n_cuda, name, says):
    computer(cuda=n_cuda)
    assert says in refused(pick, name) and says in refused(start, name)


@pytest.mark.parametrize('has, name, expected, says', [
    (dict(cuda=1, mps=True), 'auto', 'cuda:0', False), (dict(mps=True), 'auto', 'cpu', True),
    (dict(), 'mps', 'cpu', True), (dict(mps=True), 'cpu', 'cpu', False)])
def test_the_solvers_need_float64(computer, capsys, has, name, expected, says):
    computer(**has)
    assert float64_device(name) == torch.device(expected)
    assert ('mps has no float64' in capsys.readouterr().out) is says


# --- precision and compilation -----------------------------------------------

@pytest.mark.parametrize('name, capability, dtype, bf16', [
    ('cuda', (7, 5), 'auto', False), ('cuda', (8, 0), 'auto', True), ('cpu', None, 'auto', False),
    ('mps', None, 'auto', False), ('cuda', (7, 0), 'bfloat16', True), ('cuda', (9, 0), 'float32', False)])
def test_bfloat16_where_the_gpu_has_it(computer, capsys, monkeypatch, name, capability, dtype, bf16):
    computer(cuda=1, capability=capability, mps=True)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda *args, **kwargs: True)  # it counts emulation
    assert start(name, dtype).bf16 is bf16
    assert f'dtype {"bfloat16" if bf16 else "float32"} (' in capsys.readouterr().out


@pytest.mark.parametrize('name, capability, compile, expected', [
    ('cuda', (7, 0), 'auto', True), ('cuda', (6, 1), 'auto', False), ('cpu', None, 'auto', False),
    ('cpu', None, 'true', True), ('cuda', (9, 0), 'false', False)])
def test_compile(computer, capsys, monkeypatch, name, capability, compile, expected):
    computer(cuda=1, capability=capability)
    monkeypatch.setattr(devices, 'compiler_error', {device_of(name): ''}.get)
    assert start(name, 'float32', compile).compiled is expected
    assert f'compile {str(expected).lower()} (' in capsys.readouterr().out


def device_of(name):
    return torch.device(name, 0) if name == 'cuda' else torch.device(name)


def test_a_compiler_that_is_missing(computer, capsys, monkeypatch):
    """Auto does without, in the line that says what was picked; what was asked for is refused."""
    def fail(function):
        def compiled(x):
            raise RuntimeError('InvalidCxxCompiler: No working C++ compiler\n\n' + 200 * 'trace\n')
        return compiled

    monkeypatch.setattr(torch, 'compile', fail)
    assert 'No working C++ compiler): install' in refused(start, 'cpu', compile='true')
    computer(cuda=1)
    monkeypatch.setattr(torch, 'ones', torch_ones_without_device)
    assert start('cuda', 'float32').compiled is False
    [line] = capsys.readouterr().out.splitlines()
    assert 'compile false (torch cannot compile here: InvalidCxxCompiler' in line


def torch_ones_without_device(*shape, device):
    return torch.zeros(*shape)


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
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', 'x')               # so that it is put back
    monkeypatch.delenv('CUBLAS_WORKSPACE_CONFIG')
    start('cpu')
    assert asked == [] and 'CUBLAS_WORKSPACE_CONFIG' not in os.environ
    start('cpu', deterministic=True)
    assert asked == [True] and os.environ['CUBLAS_WORKSPACE_CONFIG'] == ':4096:8'


# --- seeds and processes -----------------------------------------------------

def test_seeds_of_iterations_processes_and_augmentation_differ():
    seeds = [seed_of(seed, iteration, stream) for seed in range(3) for iteration in range(200)
             for stream in (*range(16), DATA, ALIKE)]
    assert len(set(seeds)) == len(seeds)
    assert len({seed_of(seed, epoch) for seed in range(3) for epoch in range(200)}) == 600


@pytest.mark.parametrize('name, backend', [('cuda', 'nccl'), ('cpu', 'gloo')])
def test_processes_meet(computer, monkeypatch, capsys, name, backend):
    """The third of four."""
    computer(cuda=4)
    for key, value in {'RANK': '2', 'WORLD_SIZE': '4', 'LOCAL_RANK': '2'}.items():
        monkeypatch.setenv(key, value)
    met = []

    def meet(backend, timeout, device_id):
        met.append((backend, timeout, device_id))

    monkeypatch.setattr(dist, 'init_process_group', meet)
    monkeypatch.setattr(dist, 'new_group', dict)
    assert 'max_minutes' in refused(start, name, max_minutes=3)
    if name == 'cuda':
        assert 'all 4 processes' in refused(start, 'cuda:1')
    assert not met                                                   # refused before they meet
    machine = start(name)
    assert (machine.rank, machine.world, machine.master, machine.ddp) == (2, 4, False, True)
    (used, timeout, own), = met
    assert used == backend and timeout.total_seconds() == 7200
    assert own == (machine.device if name == 'cuda' else None)
    assert machine.talk['backend'] == 'gloo'                         # of CPU tensors: no GPU is waited for
    assert machine.talk['timeout'].days == 30                        # the first process may be making data
    machine.say('not said')
    assert capsys.readouterr().out == ''                             # only the first process prints
    assert machine.device == torch.device('cuda:2' if name == 'cuda' else 'cpu')


def test_one_process(computer, monkeypatch, capsys):
    computer()
    monkeypatch.setenv('WORLD_SIZE', '4')                            # without RANK, this is not torchrun's
    machine = start('auto', max_minutes=2)
    assert machine == Machine(torch.device('cpu'), rank=0, world=1, bf16=False, compiled=False)
    assert machine.master and not machine.ddp
    said = capsys.readouterr().out
    assert said.count('\n') == 1 and said.startswith('device cpu | dtype float32 (')
    machine.say('said')
    assert capsys.readouterr().out == 'said\n'
    module = torch.nn.Linear(1, 1)
    assert machine.wrap(module) is module
    with machine.master_first():                                     # returns at once
        machine.synchronise_gradients(module, now=False)
    machine.stop()
    assert machine.peak_memory_gb() is None and machine.name()
