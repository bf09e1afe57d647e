"""
The one place that picks the device, the precision and the processes.

    device = pick('auto', 'eval')                # a torch.device; says which, or raises UserError
    machine = start('auto', dtype='auto', compile='auto', deterministic=False)
    with machine.autocast(stage):
        ...
"""
import contextlib
import os
import platform
import sys
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from runtime import configurator
from runtime.configurator import UserError, among

TIMEOUT = timedelta(hours=2)                     # of an exchange between GPUs
PATIENCE = timedelta(days=30)                    # the first process may be making data meanwhile; the end of
                                                 # a process is noticed at once
DATA = 1008                                      # the stream of random numbers that augmentation takes
ALIKE = 1007                                     # of what a stage draws alike in all processes


def seed_of(seed, number, stream=None):
    """
    The seed of a random generator, a whole number. number: an iteration, or an epoch for the order of the
    data (without a stream). stream: what takes the numbers of one iteration, a process (its rank), DATA or
    ALIKE. The factors are primes, so that two different triples hardly ever share a seed.
    """
    value = seed * 1_000_003 + number
    return value if stream is None else value * 1_009 + stream


# --- device ------------------------------------------------------------------

def find(name):
    """The torch.device that `name`, one of those of `pick` or a torch.device, asks for. Nothing is said, and
    none becomes the current one. Raises UserError where there is none such."""
    if isinstance(name, torch.device) and name.type != 'cuda':
        return name
    name = str(name).lower()
    if name == 'auto':
        if torch.cuda.is_available():
            name = 'cuda'
        elif torch.backends.mps.is_available():
            name = 'mps'
        else:
            name = 'cpu'
    kind, colon, number = name.partition(':')
    if kind not in ('cpu', 'cuda', 'mps') or (colon and not (kind == 'cuda' and number.isdecimal())):
        raise UserError(f'device={name} is not one of auto, cpu, cuda, cuda:N, mps')
    if kind == 'cuda':
        return _find_cuda(name, number)
    if kind == 'mps' and not torch.backends.mps.is_available():
        raise UserError('device=mps, but torch sees no MPS device: use --device=cpu or --device=auto')
    return torch.device(kind)


def _find_cuda(name, number):
    """The CUDA device of that number, by default this process's own."""
    if not torch.cuda.is_available():
        raise UserError(f'device={name}, but torch sees no CUDA device: use --device=cpu or --device=auto')
    index = int(number or os.environ.get('LOCAL_RANK', 0))
    count = torch.cuda.device_count()
    if index >= count:
        raise UserError(f'device=cuda:{index}, but torch sees {count} CUDA device(s)')
    return torch.device('cuda', index)


def current(device):
    """The device, which becomes the current one where it is of CUDA."""
    if device.type == 'cuda':
        torch.cuda.set_device(device.index)
        torch.backends.cudnn.allow_tf32 = False  # float32 means float32 in convolutions, too
    return device


def pick(name, why=''):
    """
    The torch.device for 'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'. Auto takes cuda, then mps, then the
    cpu, and says which; `why` begins that line. Plain 'cuda' is the device of this process
    (LOCAL_RANK), or the first. Raises UserError for a device that is not there.
    """
    device = current(find(name))
    if str(name) == 'auto':
        prefix = f'{why}: ' if why else ''
        configurator.say(f'{prefix}device {device} (auto: the first available of cuda, mps, cpu)')
    return device


# names of buffers that hold coordinates
PLACES = ('points', 'low', 'length', 'token_step', 'galilean', 'grid_points', 'centres', 'inside')


class KeepsPlaces(torch.nn.Module):
    """A module whose coordinates keep their type where m.half() rounds its weights to 16 bits."""

    def _apply(self, fn, recurse=True):
        places = {id(x) for name, x in self.named_buffers() if name.split('.')[-1] in PLACES}

        def apply(x):
            new = fn(x)
            return x.to(new.device) if id(x) in places and new.itemsize < 4 else new

        return super()._apply(apply, recurse)


def float64_device(name):
    """As `pick`, for the numerical solvers, which need float64: MPS has none and is replaced by the
    CPU, with a line that says so."""
    device = torch.device('mps') if str(name) == 'mps' else current(find(name))
    if device.type == 'mps':
        configurator.say('solvers: mps has no float64, solving on the cpu')
        device = torch.device('cpu')
    return device


def cpu_name():
    """The name of the processor, or of its architecture."""
    try:
        with open('/proc/cpuinfo') as file:
            for line in file:
                name, _, value = line.partition(':')
                if name.strip() == 'model name':
                    return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def free_memory():
    """Bytes of memory that this computer has left."""
    try:
        with open('/proc/meminfo') as file:
            lines = file.readlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith('MemAvailable'))
    except (OSError, StopIteration):             # not Linux
        return 8e9


# --- precision, compilation, processes ---------------------------------------

@dataclass
class Machine:
    """What a training runs on: its device, its processes and how it computes."""
    device: torch.device
    rank: int = 0                                # number of this process
    world: int = 1                               # number of processes
    bf16: bool = False                           # autocast to bfloat16
    compiled: bool = False                       # torch.compile
    talk: object = None                          # the group of processes, in which CPU tensors are exchanged

    @property
    def master(self):
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    @property
    def ddp(self):
        """Whether there are several processes."""
        return self.world > 1

    @contextlib.contextmanager
    def autocast(self, module=None):
        """A context in which matrices are multiplied in bfloat16 where the machine was started so. Compiled
        code would round weights again in every call, so it finds those of `module` rounded."""
        if not self.bf16:
            yield
            return
        with torch.autocast(self.device.type, torch.bfloat16), rounded(module if self.compiled else None):
            yield

    def seed(self, number):
        """Seed the random numbers of the device, and of the CPU. (torch.manual_seed also notes, for every kind of
        device that is absent, where it was called: a millisecond on a CPU.)"""
        generator = torch.default_generator if self.device.type == 'cpu' else torch
        generator.manual_seed(number)

    def wrap(self, module):
        """The module, whose gradients are averaged over the processes where there are several."""
        if not self.ddp:
            return module
        return torch.nn.parallel.DistributedDataParallel(module, broadcast_buffers=False,
                                                         gradient_as_bucket_view=True)

    def synchronise_gradients(self, wrapped, now):
        """Whether the next backward pass averages gradients: of several micro-batches, the last one does."""
        if self.ddp:
            wrapped.require_backward_grad_sync = now

    def mean(self, numbers):
        """The mean over the processes of a tensor that each has, on the device."""
        if not self.ddp:
            return numbers
        numbers = numbers / self.world
        dist.all_reduce(numbers)
        return numbers

    def gather(self, value):
        """The values of all processes, plain Python, in the order of their ranks. It waits for all."""
        if not self.ddp:
            return [value]
        values = [None] * self.world
        dist.all_gather_object(values, value, group=self.talk)
        return values

    @contextlib.contextmanager
    def together(self):
        """What is inside succeeds in all processes, or all end with the error of the first that failed."""
        error = ''
        try:
            yield
        except UserError as failed:
            if not self.ddp:
                raise
            error = str(failed)
        errors = [error for error in self.gather(error) if error]
        if errors:
            raise UserError(errors[0])

    def agree(self, what, value, hint):
        """Raise UserError in all processes unless `value` is the same in all, as it is where they share their
        folders."""
        values = self.gather(value)
        others = [rank for rank in range(self.world) if values[rank] != values[0]]
        if others:
            raise UserError(f'process {others[0]} of {self.world} has {what} than the first one: {hint}')

    @contextlib.contextmanager
    def master_first(self):
        """The first process does what is inside, then the others do. Where it fails, all end."""
        with self.together():
            if self.master:
                yield
        if not self.master:
            yield

    def say(self, text):
        """Print a line, once for all processes."""
        if self.master:
            configurator.say(text)

    def peak_memory_gb(self):
        """The most memory that tensors took on the device, in GB; None where torch does not count."""
        if self.device.type != 'cuda':
            return None
        return torch.cuda.max_memory_allocated(self.device) / 1e9

    def name(self):
        """The name of the device, as the manufacturer gives it where it is known."""
        if self.device.type == 'cuda':
            return torch.cuda.get_device_name(self.device)
        return cpu_name()

    def stop(self):
        """At the end of a training: a process of several leaves their group and ends here. A thread of gloo
        that let go of a tensor while the interpreter is being torn down would abort the process."""
        if self.ddp:
            self.gather(None)                    # none tears down what another one is still connected to
            dist.destroy_process_group()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)


# --- weights in bfloat16 -----------------------------------------------------

def _copies(tensors, dtype):
    """Copies of tensors in another type, all by one launch."""
    copies = [torch.empty_like(x, dtype=dtype) for x in tensors]
    torch._foreach_copy_(copies, tensors)
    return copies


class _Rounded(torch.autograd.Function):
    """float32 tensors -> their copies in bfloat16, whose gradients come back in float32."""

    @staticmethod
    def forward(ctx, *weights):
        ctx.set_materialize_grads(False)
        copies = _copies(weights, torch.bfloat16)
        frozen = [copy for copy, trained in zip(copies, ctx.needs_input_grad) if not trained]
        ctx.mark_non_differentiable(*frozen)
        return tuple(copies)

    @staticmethod
    def backward(ctx, *grads):
        given = [grad for grad in grads if grad is not None]         # not of what the loss did not use
        float32 = iter(_copies(given, torch.float32))
        return tuple(None if grad is None else next(float32) for grad in grads)


@contextlib.contextmanager
def rounded(module):
    """
    In this context the linear layers of a module hold copies of their weights in bfloat16. Gradients reach
    the weights, also after it.

    Subclasses of nn.Linear, such as those that compute in float32, keep their own. So does everything if
    module is None.
    """
    places = []                                  # (the parameters of a layer, name)
    for layer in module.modules() if module else ():
        if type(layer) is torch.nn.Linear:
            places += [(layer._parameters, name) for name, p in layer._parameters.items() if p is not None]
    weights = [parameters[name] for parameters, name in places]
    copies = _Rounded.apply(*weights) if weights else []
    try:
        for (parameters, name), copy in zip(places, copies):
            parameters[name] = copy
        yield
    finally:
        for (parameters, name), weight in zip(places, weights):
            parameters[name] = weight


# --- what the machine has, and how it starts ---------------------------------

def _precision(dtype, device):
    """Whether to use bfloat16, and why. torch.cuda.is_bf16_supported() would count its emulation on
    older GPUs."""
    dtype = among('dtype', dtype, ('auto', 'float32', 'bfloat16'))
    if dtype != 'auto':
        return dtype == 'bfloat16', 'as asked'
    if device.type == 'cuda':
        if torch.cuda.get_device_capability(device) >= (8, 0):
            return True, 'the GPU has it'
        return False, 'this GPU only emulates bfloat16'
    if device.type == 'mps':
        return False, 'bfloat16 is for CUDA'
    return False, 'bfloat16 was slower on CPUs'


def _compilation(compile, device):
    """Whether to compile, and why."""
    compile = among('compile', compile, ('auto', 'true', 'false'))
    if compile != 'auto':
        return compile == 'true', 'as asked'
    if device.type == 'cuda' and torch.cuda.get_device_capability(device) >= (7, 0):
        return True, 'CUDA'
    return False, 'takes longer than it saves in a short run on this device'


def compiler_error(device):
    """What keeps torch.compile from working on a device, in one line, or ''. A tiny function is compiled and
    called, which takes seconds, before minutes of reading data."""
    number = os.getpid()                         # no cache has what was compiled for this process

    def tiny(x):
        return x.sin() + number

    try:
        torch.compile(tiny)(torch.ones(8, device=device))
    except Exception as error:                   # each backend has its own
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return lines[0][:160] if lines else type(error).__name__
    finally:
        torch.compiler.reset()
    return ''


def start(device='auto', dtype='auto', compile='auto', deterministic=False, max_minutes=0):
    """
    The Machine that this process trains on, once it and the other processes of torchrun have met.

    device: as for `pick`. dtype: 'auto', 'float32' or 'bfloat16'. compile: 'auto', 'true' or 'false'.
    max_minutes: of the longest stage, 0 for no limit. Says what was picked and why. Raises UserError
    where the device is missing, or max_minutes meets several processes.
    """
    rank = int(os.environ.get('RANK', 0))
    world = int(os.environ['WORLD_SIZE']) if 'RANK' in os.environ else 1
    if world > 1 and str(device).lower().startswith('cuda:'):
        raise UserError(f'device={device} would be that of all {world} processes: --device=cuda gives each its '
                        'own')
    if max_minutes and world > 1:
        raise UserError('max_minutes needs one process, since clocks differ: set max_iters instead')
    if deterministic:
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
        torch.use_deterministic_algorithms(True)
    device = current(find(device))
    talk = None
    if world > 1:
        backend, own = ('nccl', device) if device.type == 'cuda' else ('gloo', None)
        dist.init_process_group(backend, timeout=TIMEOUT, device_id=own)
        talk = dist.new_group(backend='gloo', timeout=PATIENCE)
    bf16, why_bf16 = _precision(dtype, device)
    compiled, why_compiled = _compilation(compile, device)
    missing = compiled and compiler_error(device)
    if missing and why_compiled == 'as asked':
        raise UserError(f'compile=true, but torch cannot compile here ({missing}): install a C++ compiler, '
                        'or use --compile=false')
    if missing:
        compiled, why_compiled = False, f'torch cannot compile here: {missing}'
    if compiled:
        torch._dynamo.config.recompile_limit = 64            # a model of ten equations compiles a block ten times
    machine = Machine(device, rank, world, bf16, compiled, talk)
    precision = 'bfloat16' if bf16 else 'float32'
    machine.say(f'device {device} | dtype {precision} ({why_bf16}) | '
                f'compile {str(compiled).lower()} ({why_compiled}) | '
                f'{world} process(es), {torch.get_num_threads()} threads')
    return machine
