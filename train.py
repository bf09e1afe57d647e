"""
Train a latent neural PDE solver.

    python train.py config/burgers_cpu.py                       # two CPU cores, minutes
    python train.py config/burgers_128_pure.py                  # one GPU
    python train.py config/burgers_128_pure.py --batch_size=32 --seed=1
    torchrun --standalone --nproc_per_node=4 train.py config/burgers_128_pure.py

Every key below can be set in a config file or as --key=value; python train.py --help lists them. The same command
continues a run that was stopped, by Ctrl-C, SIGTERM or a power cut. A run folder holds config.json, env.json, log.csv,
last.pt (everything needed to go on) and best.pt (the weights with the lowest validation error).
"""
import copy
import csv
import fcntl
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields

import numpy as np
import torch
import torch.distributed as dist

import configurator
import data
import losses
import solvers
from checkpoint import find_checkpoint, load_checkpoint, save_checkpoint, whole_file
from configurator import UserError, configure, one_line_errors
from eval import mean_nrmse, predict
from model import UPT, ModelConfig, build, model_args

one_line_errors()
# -----------------------------------------------------------------------------
# run
out_dir = 'out/run'                # folder of the run
init_from = 'auto'                 # auto: resume what out_dir holds, else start; scratch; or a checkpoint to fine-tune
overwrite = False                  # with init_from=scratch: throw away the run in out_dir
force_data = False                 # resume although the data differ from those of the run
eval_interval = 500                # iterations between validations
eval_batches = 2                   # a validation rolls out so many batches of batch_size trajectories, at most all
log_interval = 50                  # iterations between log lines
save_interval = 500                # iterations between writes of last.pt
seed = 0                           # of weights, order of the data, augmentation
wandb_log = False                  # also log to Weights & Biases; it can fail, the run cannot
wandb_project = 'nanoupt'          # project name there
wandb_run_name = ''                # run name there (default: out_dir)
# data
dataset = 'burgers'                # PDE; made by solvers.py where no file is found
data_dir = 'datasets'              # where files are looked for and made
data_path = ''                     # explicit file(s), separated by commas; never made
nu = .01                           # PDEBench's viscosity; the diffusivity is nu/pi
n_trajectories = 1000              # rows used, at most: 10 % test, 10 % validation, the rest train
time_stride = 5                    # frames a step: 5 x .01 s = .05 s, 41 frames
space_stride = 8                   # cells a grid point of the encoder: 1024 / 8 = 128 points
query_stride = 2                   # cells a point where the field loss may be taken; divides space_stride
input_frames = 1                   # frames the encoder sees
memory_gb = -1.                    # train rows up to this size live in memory, else in HDF5; -1: half of the free
early = 2.                         # start frames are drawn as U^early: above 1, steep early ones more often
shift = True                       # augmentation: rotate the periodic domain
flip = True                        # augmentation: u(x) -> -u(-x)
boost = 0                          # augmentation: Galilean boost of up to so many grid points a step
noise = 0.                         # noise on the input frames, relative to their rms
# model
arch = 'pure'                      # pure or u
attention = 'standard'             # standard or channel (channel-separated)
patch_size = 4                     # grid points a patch of the learned encoder
halo = 2                           # grid points of its neighbours that such a patch sees on each side
latent_tokens = 32                 # tokens of the latent
latent_dim = 64                    # features of a token
hidden_dim = 64                    # width of the operator
encoder_dim = 0                    # width of the learned part of the encoder; 0: none
encoder_depth = 1                  # blocks of the encoder
decoder_dim = 64                   # width of the learned part of the decoder; 0: none
decoder_depth = 0                  # blocks of the decoder
depth = 4                          # blocks of the pure operator
depths = (1, 2, 1)                 # blocks of the U-shaped operator: down ..., bottleneck, up ...
n_head = 2                         # heads; with channel attention, heads in a group
group_size = 16                    # features of a group of channel attention
mlp_ratio = 4.                     # width of the MLP / width of the block
drop_path = 0.                     # rate of the last block; ramps up from 0
n_wave = 4                         # waves of the decoder's local basis
log_clamp = 0.                     # threshold of the output log-clamp; 0: none
layer_norm = False                 # in the operator's blocks; without, they see amplitudes
moving_frame = True                # advance fields without their mean, in the frame that moves along (one input frame)
conserve = True                    # a step keeps the integral of the field (Burgers does)
token_shift = 0                    # grid points by which tokens move on in that frame each step: errors average out
# losses (losses.py), all means; 0 switches one off
unroll = 2                         # latent steps a window, through all of which the gradient runs
unroll_start = 1                   # latent steps a window in the beginning; 0: as unroll
unroll_switch = .7                 # fraction of the iterations at which unroll_start becomes unroll
gradient_through_time = True       # false: every unrolled step is trained alone, on the input it met
detach_target = True               # encodings of the truth carry no gradient in the latent loss
lambda_field = 1.                  # relative L2 of the decoded rollout
lambda_latent = 10.                # advanced latents against encodings of the truth
lambda_inverse_encoding = 50.      # D(E(u)) = u; weak, a learned encoder drifts off its inverse (dev/LOG.md)
lambda_inverse_decoding = 0.       # E(D(z)) = z; did not help in any form tried (dev/LOG.md)
lambda_spectral = .05              # relative H1 error: wave number k weighs 1 + k^2
lambda_latent_norm = 0.            # latents of unit size
inverse_loss_frequency = 10        # inverse decoding on every so many-th batch
inverse_decoding_ramp = .2         # fraction of the iterations over which its weight grows from 0
# stages and optimisation
stages = ('operator',)             # trained in this order
max_iters = 3000                   # iterations; 0 skips the stage
epochs = 0.                        # if not 0: stop after so many passes over the windows, where that is earlier
max_minutes = 0.                   # if not 0: train so long; schedules follow the clock, so runs are not bit-equal
batch_size = 32                    # windows an iteration, over all processes
accumulation = 1                   # micro-batches they are split into
optimizer = 'muon'                 # muon (hidden matrices; AdamW for the rest) or adamw
learning_rate = 1e-3               # of AdamW
muon_lr = .01                      # of Muon
weight_decay = 0.                  # of both, decoupled
beta2 = .99                        # of AdamW; beta1 is .9
grad_clip = 1.                     # of the total gradient norm; 0: none
warmup_iters = 100                 # linear warm-up, then cosine
min_lr_ratio = .01                 # final learning rate / peak
ema_decay = .999                   # of the averaged weights, which are the ones evaluated; 0: none
patience = 0                       # validations without progress before stopping; 0: never
# system
device = 'auto'                    # auto, cpu, cuda, cuda:N or mps
dtype = 'auto'                     # auto, float32 or bfloat16 (autocast)
compile = 'auto'                   # auto, true or false
checkpointing = False              # recompute the operator's blocks in the backward pass: less memory
deterministic = False              # torch.use_deterministic_algorithms
# -----------------------------------------------------------------------------
_choices = {'dataset': ('burgers',), 'arch': ('pure', 'u'), 'attention': ('standard', 'channel'),
            'stages': ('operator',), 'optimizer': ('muon', 'adamw'), 'dtype': ('auto', 'float32', 'bfloat16'),
            'compile': ('auto', 'true', 'false'),
            'device': ('auto', 'cpu', 'cuda', 'mps', *(f'cuda:{i}' for i in range(8)))}
config = configure(globals(), sys.argv[1:], __file__, _choices)
globals().update(config)

_may_be_zero = {'seed', 'boost', 'noise', 'halo', 'encoder_dim', 'encoder_depth', 'decoder_dim', 'decoder_depth',
                'drop_path', 'log_clamp', 'beta2', 'unroll_start', 'unroll_switch', 'max_iters', 'epochs',
                'max_minutes', 'weight_decay', 'grad_clip', 'warmup_iters', 'min_lr_ratio', 'ema_decay', 'patience',
                'inverse_decoding_ramp', 'token_shift',
                *(k for k in config if k.startswith('lambda_'))}
for _key, _value in config.items():
    if isinstance(_value, (int, float)) and not isinstance(_value, bool) and _key != 'memory_gb':
        if _value < 0 or _value == 0 and _key not in _may_be_zero:
            raise UserError(f'{_key}={_value} must be {"at least 0" if _key in _may_be_zero else "positive"}')
for _key in ('drop_path', 'ema_decay', 'beta2'):
    if config[_key] >= 1:
        raise UserError(f'{_key}={config[_key]} must be below 1')
if decoder_dim and not (lambda_field or lambda_spectral or lambda_inverse_encoding):
    raise UserError('nothing would train the decoder: lambda_field, lambda_spectral or lambda_inverse_encoding must be '
                    'positive')
if unroll_start > unroll:
    raise UserError(f'unroll_start={unroll_start} is more than unroll={unroll}')
if seed >= 2 ** 32:
    raise UserError(f'seed={seed} must be below {2 ** 32}')
if mlp_ratio * min(d for d in (hidden_dim, encoder_dim, decoder_dim) if d) < 1:
    raise UserError(f'mlp_ratio={mlp_ratio} leaves no features between the two layers of an MLP')
if len(set(stages)) < len(stages):
    raise UserError(f'stages={",".join(stages)} names a stage twice')
if not out_dir or not stages or not depths or min(depths) < 1:
    raise UserError('out_dir, stages and depths must not be empty, and every entry of depths at least 1')

# ---- processes, device, precision
ddp = int(os.environ.get('RANK', -1)) != -1
rank, world = (int(os.environ['RANK']), int(os.environ['WORLD_SIZE'])) if ddp else (0, 1)
master = rank == 0
if max_minutes and world > 1:
    raise UserError('max_minutes needs one process, since clocks differ: set max_iters instead')
if batch_size % (world * accumulation):
    raise UserError(f'batch_size={batch_size} must be a multiple of {world} processes x accumulation={accumulation}')
say = configurator.say if master else lambda text: None
if device == 'auto':
    device = 'cuda' if torch.cuda.is_available() else 'mps' if torch.backends.mps.is_available() else 'cpu'
if device.startswith('cuda') and not torch.cuda.is_available():
    raise UserError(f'device={device}, but torch sees no CUDA device: use --device=cpu or --device=auto')
if device.startswith('cuda'):                                        # cuda alone: this process's own, or the first
    _index = int(device[5:] or os.environ.get('LOCAL_RANK', 0))
    if _index >= torch.cuda.device_count():
        raise UserError(f'device=cuda:{_index}, but torch sees {torch.cuda.device_count()} CUDA device(s)')
    device = f'cuda:{_index}'
    torch.cuda.set_device(_index)
if device == 'mps' and not torch.backends.mps.is_available():
    raise UserError('device=mps, but torch sees no MPS device: use --device=cpu or --device=auto')
if ddp:
    dist.init_process_group('nccl' if device.startswith('cuda') else 'gloo')
device = torch.device(device)
if deterministic:
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    torch.use_deterministic_algorithms(True)
if dtype == 'auto':
    bf16 = device.type == 'cuda' and torch.cuda.is_bf16_supported()
    why_dtype = 'the GPU has it' if bf16 else 'bfloat16 was slower on CPUs'
else:
    bf16, why_dtype = dtype == 'bfloat16', 'as asked'
if compile == 'auto':
    use_compile = device.type == 'cuda' and torch.cuda.get_device_capability(device)[0] >= 7
    why_compile = 'CUDA' if use_compile else 'takes longer than it saves in a short run on this device'
else:
    use_compile, why_compile = compile == 'true', 'as asked'
say(f'device {device} | dtype {"bfloat16" if bf16 else "float32"} ({why_dtype}) | '
    f'compile {str(use_compile).lower()} ({why_compile}) | {world} process(es), {torch.get_num_threads()} threads')
if moving_frame and input_frames > 1:
    moving_frame = False
    say('moving_frame is off: it takes one input frame')
if token_shift and not moving_frame:
    token_shift = 0
    say('token_shift is off: it takes a moving frame')
autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)
fast_bf16 = device.type == 'cuda' or (device.type == 'cpu' and torch.backends.mkldnn.is_available()
                                       and torch.ops.mkldnn._is_mkldnn_bf16_supported())

# ---- run folder: what is there, and who else is writing to it
last_path, best_path, log_path = (os.path.join(out_dir, f) for f in ('last.pt', 'best.pt', 'log.csv'))
if master:
    try:
        os.makedirs(out_dir, exist_ok=True)
        lock = open(os.path.join(out_dir, 'lock'), 'a+')
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.truncate(0)
        lock.write(f'process {os.getpid()} on {platform.node()}')
        lock.flush()
    except BlockingIOError:
        lock.seek(0)
        raise UserError(f"another training ({lock.read().strip()}) is writing to '{out_dir}': wait for it, or choose "
                        'another --out_dir') from None
    except OSError as error:
        raise UserError(f"out_dir '{out_dir}' cannot be written ({error.strerror}): choose another one") from error
_has_run = any(os.path.exists(p) for p in (last_path, best_path))
state, weights = None, None
if init_from == 'auto' and os.path.exists(last_path):
    try:
        state = load_checkpoint(last_path)
    except UserError as error:
        hint = (f'; to go on from the best weights: python train.py ... --out_dir={out_dir}_2 --init_from={best_path}'
                if os.path.exists(best_path) else '')
        raise UserError(f'{error}{hint}') from error
elif init_from == 'auto' and _has_run:
    raise UserError(f"'{out_dir}' holds best.pt but no last.pt to resume: --init_from={best_path} with another "
                    '--out_dir, or --init_from=scratch --overwrite=true')
elif init_from == 'scratch' and _has_run and not overwrite:
    raise UserError(f"'{out_dir}' holds a run: --init_from=auto resumes it, --overwrite=true throws it away")
elif init_from not in ('auto', 'scratch'):
    _file = find_checkpoint(init_from)
    if _has_run and not overwrite:                                   # this fine-tuning, stopped? then it goes on
        state = load_checkpoint(last_path) if os.path.exists(last_path) else None
        if state is None or state['config']['init_from'] != init_from:
            raise UserError(f"'{out_dir}' holds another run: choose another --out_dir for fine-tuning, or "
                            '--overwrite=true')
    else:
        weights = load_checkpoint(_file)

# a resumed run may change these; everything else would make it another experiment
_free = {'out_dir', 'init_from', 'overwrite', 'force_data', 'eval_interval', 'eval_batches', 'log_interval',
         'save_interval', 'max_iters', 'epochs', 'max_minutes', 'patience', 'learning_rate', 'muon_lr', 'data_dir',
         'data_path', 'memory_gb', 'device', 'compile', 'dtype', 'wandb_log', 'wandb_project', 'wandb_run_name',
         'checkpointing', 'deterministic'}
if state:
    _old = state['config']
    _changed = {k: (_old.get(k), json.loads(json.dumps(v))) for k, v in config.items()
                if _old.get(k) != json.loads(json.dumps(v))}
    _refused = [f'{k}: {a!r} there, {b!r} now' for k, (a, b) in _changed.items() if k not in _free]
    if _refused:
        raise UserError(f"'{out_dir}' holds a run with another configuration ({'; '.join(_refused)}): use those "
                        'values, another --out_dir, or --init_from=scratch --overwrite=true')
    for _k in ('learning_rate', 'muon_lr', 'max_iters'):
        if _k in _changed:
            say(f'note: {_k} changes from {_changed[_k][0]} to {_changed[_k][1]}')

# ---- data
model_keys = {f.name: config[f.name] for f in fields(ModelConfig) if f.name in config}
model_keys['token_shift'] = token_shift                              # moving_frame may have switched it off


def check_fit(n_cells, n_frames):
    """Raise UserError where the keys do not fit files of that size, before anything is made or read."""
    data.check_strides(n_cells, n_frames, time_stride, space_stride, query_stride, input_frames + unroll)
    ModelConfig(**model_keys, grid=(n_cells // space_stride,), token_grid=(latent_tokens,),
                frame=float(moving_frame)).check()


if ddp and not master:
    dist.barrier()                                                   # one process makes the file, the others wait
paths = data.find_or_make(data_dir, data_path, nu, n_trajectories, device.type,
                          lambda: check_fit(solvers.N_CELLS, solvers.N_FRAMES))
if ddp and master:
    dist.barrier()
sources = [data.open_source(p, quiet=not master) for p in paths]
check_fit(sources[0].shape[0], sources[0].n_frames)
windows = data.Windows(sources, n_trajectories, time_stride, space_stride, query_stride, input_frames + unroll, device,
                       memory_gb, early)
say(f'data {", ".join(paths)} | {len(windows.rows) * len(paths)} train and {len(windows.val)} validation trajectories, '
    f'{windows.n_frames} frames of {windows.n_points // windows.ratio} points | '
    f'{"in memory" if windows.in_memory else "read from HDF5"}')
if state and state['data']['identity'] != windows.identity and not force_data:
    raise UserError(f"the data are not those that '{out_dir}' was trained on (another file, seed or number of rows): "
                    'put them back, or --force_data=true')

# ---- model
torch.manual_seed(seed)
source = sources[0]
cfg = ModelConfig(                                                   # the keys of the same name, and what the data say
    **model_keys, fields=len(source.fields),
    grid=(windows.n_points // windows.ratio,), token_grid=(latent_tokens,), low=source.low, length=source.length,
    first=tuple(float(axis[0]) for axis in source.x), periodic=source.periodic,
    boundary='periodic' if source.periodic else 'wall', pde=source.pde, params=tuple(source.params),
    default_params=tuple(source.params.values()), dt=source.dt * time_stride, frame=windows.frame * moving_frame,
    mean=(0. if moving_frame else windows.mean,), std=(windows.std_still if moving_frame else windows.std,))
args = model_args(cfg)
if state or weights:
    found = state or weights
    differ = [f'{k}: {found["model_args"].get(k)!r} there, {v!r} now' for k, v in args.items()
              if found['model_args'].get(k) != v
              and k not in ('checkpointing', 'mean', 'std', 'default_params', 'drop_path', 'token_shift')]
    if differ:
        raise UserError(f"the checkpoint's model is another one ({'; '.join(differ)})")
    args.update({k: found['model_args'][k] for k in ('mean', 'std')})  # what the weights are used to
    model = build(args, found['model'] if state else found['ema'], last_path if state else _file)
else:
    model = UPT(cfg)
model.to(device)
ema_model = copy.deepcopy(model).requires_grad_(False).eval()        # the averaged weights, evaluated and shipped
if state:
    ema_model.load_state_dict(state['ema'])
if use_compile:
    for part in (model.encoder, model.operator, model.decoder):
        part.compile()                                               # in place: parameter names stay as they are
wrapped = torch.nn.parallel.DistributedDataParallel(model, broadcast_buffers=False) if ddp else model
say(f'model {arch}, {attention} attention | {model.n_params():,} parameters: encoder '
    f'{sum(p.numel() for p in model.encoder.parameters()):,}, operator '
    f'{sum(p.numel() for p in [*model.operator.parameters(), *model.condition.parameters()]):,}, decoder '
    f'{sum(p.numel() for p in model.decoder.parameters()):,} | latent {latent_tokens} x {latent_dim}')
_bytes = 24 * model.n_params()
if master and shutil.disk_usage(out_dir).free < 3 * _bytes:
    say(f"warning: less than {3 * _bytes / 1e6:.0f} MB are free in '{out_dir}', three times what the checkpoints need")


# ---- stages: what a stage trains and the loss of one batch; later ones are further entries

class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised (arXiv 2502.16982), for matrices. Matrices of one shape go through the
    Newton-Schulz iteration together, in bfloat16 where the hardware multiplies it: on a CPU several times faster than
    torch.optim.Muon, which takes them one by one."""

    def __init__(self, params, lr, momentum=.95, weight_decay=0.):
        super().__init__(params, {'lr': lr, 'momentum': momentum, 'weight_decay': weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = {}
            for p in group['params']:
                shapes.setdefault(p.shape, []).append(p)
            for (rows, columns), params in shapes.items():
                grad, state = torch.stack([p.grad for p in params]), self.state[params[0]]
                if 'momentum' not in state:
                    state['momentum'] = torch.zeros_like(grad)
                momentum = state['momentum'].lerp_(grad, 1 - group['momentum'])
                x = grad.lerp(momentum, group['momentum'])           # Nesterov
                x = x.mT if rows > columns else x
                x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-12)
                x = x.bfloat16() if fast_bf16 else x
                for _ in range(4):                                   # singular values above .01 -> .7 .. 1.2
                    a = x @ x.mT
                    x = torch.baddbmm(x, torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
                x = (x.mT if rows > columns else x).float()
                torch._foreach_mul_(params, 1 - group['lr'] * group['weight_decay'])
                torch._foreach_add_(params, list(x.unbind()), alpha=-group['lr'] * max(1, rows / columns) ** .5)


def make_optimizers(module):
    """Muon for the matrices inside the network, AdamW for what meets fields, conditions and scalars."""
    outer = ('stem', 'basis.0', 'decoder.linear', 'decoder.mlp.2', 'condition', 'modulation', 'position')
    named = [(k, p) for k, p in module.named_parameters() if p.requires_grad]
    matrices = [p for k, p in named if optimizer == 'muon' and p.ndim == 2
                and (k in ('operator.stem.weight', 'decoder.stem.weight') or not any(o in k for o in outer))]
    rest = [p for _, p in named if all(p is not m for m in matrices)]
    out = [torch.optim.AdamW(rest, lr=learning_rate, betas=(.9, beta2), weight_decay=weight_decay,
                             fused=device.type in ('cpu', 'cuda'))]
    return out + ([Muon(matrices, lr=muon_lr, weight_decay=weight_decay)] if matrices else [])


def operator_losses(u, params, lift, phase, progress, it):
    """Stage `operator`: encoder, operator and decoder together. u (B, window, Xq, C) normalised, on the query grid;
    lift (B,): what the moving frame has taken off it."""
    k = unroll_start or unroll if progress < unroll_switch else unroll
    inverse = lambda_inverse_decoding > 0 and it % inverse_loss_frequency == 0
    u = u[:, :input_frames + k]
    seen = u[:, :, ::windows.ratio]
    if noise:
        rms = seen[:, :input_frames].square().mean((1, 2, 3), keepdim=True).sqrt()
        seen = torch.cat([seen[:, :input_frames] + noise * rms * torch.randn_like(seen[:, :input_frames]),
                          seen[:, input_frames:]], 1)
    dt = torch.full((len(u),), cfg.dt, device=device)
    with autocast:
        outputs = wrapped(seen, query_grid[phase::windows.ratio], dt, params, k, lambda_inverse_encoding > 0, inverse,
                          gradient_through_time, detach_target, lambda_latent > 0)
    weights = {'field': lambda_field, 'latent': lambda_latent, 'inverse_encoding': lambda_inverse_encoding,
               'inverse_decoding': lambda_inverse_decoding * min(1., progress / max(inverse_decoding_ramp, 1e-9)),
               'spectral': lambda_spectral, 'latent_norm': lambda_latent_norm}
    return losses.bundle(outputs, u[:, input_frames - 1:, phase::windows.ratio], weights, lift)


stage_table = {'operator': {'losses': operator_losses, 'iters': max_iters, 'epochs': epochs}}
query_grid = model.grid(windows.n_points).to(device)                 # all points where the field loss may be taken


def validate():
    """nRMSE of whole latent rollouts of the averaged weights from the first frames, as eval.py defines it, over the
    first validation trajectories. Uses no random number."""
    y = windows.val[:eval_batches * batch_size]
    params = {name: windows.val_params[:len(y), i] for i, name in enumerate(cfg.params)}
    return mean_nrmse(predict(ema_model, y, params, input_frames, batch_size), y[:, input_frames:])


# ---- book-keeping
iteration, stage_index, best, bad_evals, train_seconds, finished = 0, 0, math.inf, 0, 0., False
sampler = data.Sampler(windows.n_windows, batch_size, seed)
optimizers = make_optimizers(model)
if state:
    iteration, stage_index, best, bad_evals = (state[k] for k in ('iter', 'stage_index', 'best', 'bad_evals'))
    train_seconds, finished = state['train_seconds'], state['finished']
    sampler = data.Sampler(windows.n_windows, batch_size, seed, **state['sampler'])
    for o, saved in zip(optimizers, state['optimizers']):
        o.load_state_dict(saved)
    if os.path.exists(best_path):                                    # newer than last.pt, if killed between the two
        _best = load_checkpoint(best_path)
        best = min(best, _best['best']) if _best['iter'] <= iteration else best
_here = os.path.dirname(os.path.abspath(__file__))
_commit = subprocess.run(['git', 'rev-parse', 'HEAD'], capture_output=True, text=True, cwd=_here).stdout.strip() \
    if shutil.which('git') else ''
environment = {'python': platform.python_version(), 'torch': str(torch.__version__), 'numpy': np.__version__,
               'platform': platform.platform(), 'device': torch.cuda.get_device_name(device) if device.type == 'cuda'
               else platform.processor() or platform.machine(), 'threads': torch.get_num_threads(), 'processes': world,
               'commit': _commit, 'command': ' '.join(sys.argv)}


def save(path, everything=True):
    """last.pt holds everything a resume needs; best.pt the weights and what describes them."""
    saved = {'model': model.state_dict(), 'ema': ema_model.state_dict(), 'model_args': args,
             'config': json.loads(json.dumps(config)), 'iter': iteration, 'stage': stages[stage_index],
             'stage_index': stage_index, 'best': best, 'bad_evals': bad_evals, 'finished': finished,
             'train_seconds': train_seconds + spent(), 'environment': environment, 'peak_memory_gb': peak_memory(),
             'data': {'paths': paths, 'identity': windows.identity, 'n_trajectories': windows.n_trajectories}}
    if everything:
        saved.update(optimizers=[o.state_dict() for o in optimizers], sampler=sampler.state())
    if master:
        save_checkpoint(path, saved)


def peak_memory():
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == 'cuda' else None


def spent():
    return time.perf_counter() - clock_start


def fraction_done(it, n_iters):
    """Of the stage, 0 .. 1; its schedules follow it."""
    by_clock = (train_seconds + spent()) / (60 * max_minutes) if max_minutes else 0.
    return max(it / n_iters if n_iters else 1., by_clock)


def log_row(**row):
    """One row of log.csv, flushed."""
    try:
        with open(log_path, 'a', newline='') as file:
            csv.DictWriter(file, log_columns, restval='').writerow(row)
    except OSError as error:
        raise UserError(f"could not write '{log_path}': {error.strerror}; last.pt is as it was last saved") from error


log_columns = ['iter', 'stage', 'loss', 'field', 'latent', 'inverse_encoding', 'inverse_decoding', 'spectral',
               'latent_norm', 'grad_norm', 'learning_rate', 'val_nrmse', 'train_seconds']
clock_start = time.perf_counter()
signalled = stopped_by = 0                                           # of this process; agreed on by all of them


def on_signal(number, _):
    global signalled
    if signalled and not ddp:                                        # torchrun sends each one again, and waits 30 s
        os._exit(128 + number)                                       # the second one: at once
    signalled = number


for _number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(_number, on_signal)

iters = {}
for name in stages:
    entry = stage_table[name]
    passes = math.ceil(entry['epochs'] * windows.n_windows / batch_size)
    iters[name] = min(entry['iters'], passes) if passes else entry['iters']
if finished and (max_iters, patience) != tuple(state['config'][k] for k in ('max_iters', 'patience')):
    finished, bad_evals = False, 0                                   # more was asked for since patience ran out
if state and stage_index == len(stages) - 1 and (fraction_done(iteration, iters[stages[-1]]) >= 1 or finished):
    say(f"'{out_dir}' is already finished: {iteration} iterations, best validation nRMSE {best:.4f}")
    sys.exit(0)
if master:
    what = 'resuming' if state else f'fine-tuning {init_from} in' if weights else 'starting'
    say(f"{what} '{out_dir}' at iteration {iteration}")
    kept = []
    if state and os.path.exists(log_path):                           # rows after the checkpoint are trained again
        with open(log_path, newline='') as file:
            kept = [r for r in csv.DictReader(file) if (r.get('iter') or '').isdigit() and None not in r.values()
                    and int(r['iter']) <= iteration]
    elif not state:
        for stale in (last_path, best_path):
            if os.path.exists(stale):
                os.remove(stale)
    with whole_file(log_path, newline='') as file:
        writer = csv.DictWriter(file, log_columns, restval='', extrasaction='ignore')
        writer.writeheader()
        writer.writerows(kept)
    for name, content in (('config.json', config), ('env.json', environment)):
        with whole_file(os.path.join(out_dir, name)) as file:
            json.dump(content, file, indent=1)
    if not state:                                                    # killed before the first save_interval? here
        save(last_path)
wandb = None
if wandb_log and master:
    try:
        import wandb
        wandb.init(project=wandb_project, name=wandb_run_name or out_dir, config=config,
                   settings=wandb.Settings(init_timeout=30))
    except Exception as error:                                       # whatever it is, training goes on
        say(f'wandb is off ({type(error).__name__}: {" ".join(str(error).split())[:80]}); log.csv has it all')
        wandb = None


def check_step(it, index, stats, event):
    """Stop before a loss or gradient that is not finite can reach the weights that are kept."""
    if event is not None:
        event.synchronize()
    loss, norm = stats.tolist()
    if math.isfinite(loss) and math.isfinite(norm) and abs(loss) < 1e6:
        return
    if master:
        save_checkpoint(os.path.join(out_dir, 'nan_dump.pt'),
                        {'index': index, 'iter': it, 'loss': loss, 'grad_norm': norm})
    rates = ', '.join(f'{o.param_groups[0]["lr"]:.2e}' for o in optimizers)
    rows = sorted({windows.rows[int(i) // windows.n_starts % len(windows.rows)] for i in index})
    raise UserError(f'iteration {it}: loss {loss}, gradient norm {norm} (learning rates {rates}; trajectories '
                    f'{", ".join(map(str, rows[:8]))}{" ..." if len(rows) > 8 else ""}; batch in nan_dump.pt): lower '
                    f"the learning rates or check the data; '{last_path}' is as it was last saved")


# ---- the loop
while stage_index < len(stages):
    stage = stages[stage_index]
    stage_losses, n_iters = stage_table[stage]['losses'], iters[stage]
    base_lr = [learning_rate, muon_lr][:len(optimizers)]
    pending, last_time, last_iter = [], time.perf_counter(), iteration
    while iteration < n_iters and not finished:
        # 1. learning rate, and all that is random, from the iteration alone
        progress = fraction_done(iteration, n_iters)
        warm = min(1., (iteration + 1) / max(1, warmup_iters))
        decay = min_lr_ratio + (1 - min_lr_ratio) * .5 * (1 + math.cos(math.pi * progress))
        for o, lr in zip(optimizers, base_lr):
            o.param_groups[0]['lr'] = lr * warm * decay
        torch.manual_seed((seed * 1_000_003 + iteration) * 1_009 + rank)
        draw = torch.Generator().manual_seed((seed * 1_000_003 + iteration) * 1_009 + 1_008)
        index = sampler.next()
        whole = lambda low, high, on: (torch.randint(low, high, (batch_size,), generator=draw)  # noqa: E731
                                       * bool(on))
        shifts, flips = whole(0, windows.n_points, shift), whole(0, 2, flip)
        boosts = whole(-boost, boost + 1, boost) * windows.ratio
        stills = windows.still(index, flips) * moving_frame           # what the moving frame takes off
        phase = int(torch.randint(windows.ratio, (1,), generator=draw))

        # 2. micro-batches: this process takes every world-th window of the global batch
        shards = [a[rank::world].chunk(accumulation) for a in (index, shifts, boosts + stills, flips, stills)]
        total, parts = 0., {}
        for micro in range(accumulation):
            u, params = windows.get(*(a[micro] for a in shards[:4]), drag=cfg.token_shift * windows.ratio)
            u = (u - model.mean) / model.std
            lift = -windows.lift(shards[4][micro]).float().to(device, non_blocking=True) / model.std
            if ddp:
                wrapped.require_backward_grad_sync = micro == accumulation - 1
            loss, found = stage_losses(u, params, lift, phase, progress, iteration)
            (loss / accumulation).backward()
            total = total + loss.detach() / accumulation
            for name, value in found.items():
                parts[name] = parts.get(name, 0.) + value / accumulation

        # 3. clip, check, step. On a GPU the check is of the iteration before, so that nothing waits
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip or math.inf)
        stats, event = torch.stack([total, norm.to(total.dtype)]), None
        if device.type == 'cuda':
            stats, event = stats.to('cpu', non_blocking=True), torch.cuda.Event()
            event.record()
        pending.append((iteration, index, stats, event))
        if event is None or len(pending) > 1:
            check_step(*pending.pop(0))
        for o in optimizers:
            o.step()
            o.zero_grad(set_to_none=True)
        decay = min(ema_decay, (1 + iteration) / (10 + iteration))
        torch._foreach_lerp_(list(ema_model.parameters()), [p.detach() for p in model.parameters()], 1 - decay)
        iteration += 1

        # 4. validate, log, checkpoint
        ended = fraction_done(iteration, n_iters) >= 1
        evaluate, logs = iteration % eval_interval == 0 or ended, iteration % log_interval == 0
        stopped_by = signalled
        if ddp:                                                      # all processes stop at the same iteration
            flag = torch.tensor([stopped_by], device=device)
            dist.all_reduce(flag, dist.ReduceOp.MAX)
            stopped_by = int(flag)
        done = ended or stopped_by
        if evaluate or logs or done or iteration % save_interval == 0:
            while pending:                                           # never save what was not checked
                check_step(*pending.pop(0))
            now = time.perf_counter()
            ms, last_time, last_iter = 1e3 * (now - last_time) / max(1, iteration - last_iter), now, iteration
            row = {'iter': iteration, 'stage': stage, 'loss': float(total), 'grad_norm': float(norm),
                   'learning_rate': learning_rate * warm * decay, 'train_seconds': round(train_seconds + spent(), 2),
                   **{k: float(v) for k, v in parts.items()}}
        if logs:
            mem = f' | mem {peak_memory():.1f}G' if device.type == 'cuda' else ''
            eta = int((60 * max_minutes - train_seconds - spent()) if max_minutes else ms * (n_iters - iteration) / 1e3)
            say(f'iter {iteration}/{n_iters} {fraction_done(iteration, n_iters):.0%} | loss {row["loss"]:.4f} | '
                + ' '.join(f'{k} {row[k]:.4f}' for k in parts)
                + f' | {ms:.1f} ms | {batch_size / ms:.2f}k samples/s{mem} | eta {eta // 60}m{eta % 60:02d}s')
        if evaluate and master:
            row['val_nrmse'] = validate()
            say(f'iter {iteration}/{n_iters} | validation nRMSE {row["val_nrmse"]:.4f} (latent rollout)')
            if row['val_nrmse'] < best:                              # False for NaN
                best, bad_evals = row['val_nrmse'], 0
                save(best_path, everything=False)
            else:
                bad_evals += 1
                finished = 0 < patience <= bad_evals
            last_time = time.perf_counter()
        if ddp and evaluate:
            flag = torch.tensor([int(finished)], device=device)
            dist.broadcast(flag, 0)
            finished = bool(flag)
        if (evaluate or logs) and master:
            log_row(**row)
            if wandb:
                try:
                    wandb.log(row, step=iteration)
                except Exception as error:
                    say(f'wandb stopped ({type(error).__name__}); log.csv has it all')
                    wandb = None
        if done or finished:
            break
        if iteration % save_interval == 0:                           # after best.pt and log.csv: last.pt knows of them
            save(last_path)
    if stopped_by:
        save(last_path)
        say(f"stopped by signal {stopped_by} at iteration {iteration}, saved '{last_path}': the same command continues")
        os._exit(128 + stopped_by) if ddp else sys.exit(128 + stopped_by)
    if stage_index == len(stages) - 1:
        break
    stage_index, iteration, finished = stage_index + 1, 0, False     # the next stage starts afresh
save(last_path)
say(f'done: {iteration} iterations in {(train_seconds + spent()) / 60:.1f} minutes | best validation nRMSE {best:.4f} '
    f'| python eval.py --ckpt {out_dir}')
if ddp:
    dist.destroy_process_group()
