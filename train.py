"""
Train a latent neural PDE solver.

    python train.py config/burgers_cpu.py                       # two CPU cores, minutes
    python train.py config/burgers_128_pure.py                  # one GPU
    python train.py config/burgers_128_pure.py --batch_size=32 --seed=1
    torchrun --standalone --nproc_per_node=4 train.py config/burgers_128_pure.py

Every key below can be set in a config file or as --key=value; python train.py --help lists them. The same
command continues a run that was stopped, by Ctrl-C, SIGTERM or a power cut.
"""
import math
import sys
from dataclasses import fields
from types import SimpleNamespace

import torch

import data
import files
import optim
import pdes
from cache import CachedWindows
from grids import random_points
from metrics import crps, mean_nrmse
from model import UPT, ModelConfig, check_config, model_args, rebuild
from runtime import device as devices
from runtime.configurator import UserError, configure, one_line_errors
from runtime.run import Run
from scores import predict, scored
from stages import STAGES

one_line_errors()
# -----------------------------------------------------------------------------
# run
out_dir = 'out/run'                # folder of the run
init_from = 'auto'        # auto: resume what out_dir holds, else start; scratch; or a checkpoint to fine-tune
overwrite = False                  # with init_from=scratch: throw away the run in out_dir
force_data = False                 # resume although the data differ from those of the run
eval_interval = 1000               # iterations between validations
eval_batches = 2              # a validation rolls out so many batches of batch_size trajectories, at most all
log_interval = 200                 # iterations between log lines
save_interval = 1000               # iterations between writes of last.pt
seed = 0                           # of weights, order of the data, augmentation
wandb_log = False                  # also log to Weights & Biases; the run goes on if that fails
wandb_project = 'nanoupt'          # project name there
wandb_run_name = ''                # run name there (default: out_dir)
# data
dataset = 'burgers'                # an entry of pdes.py; made by its solver where no file is found
data_dir = 'datasets'              # where files are looked for and made
data_path = ''                     # explicit file(s), separated by commas; never made
resolution = 0                     # cells along each axis of data that are made; 0: as the entry says
n_trajectories = 1000              # rows used, at most: 10 % test, 10 % validation, the rest train
# (frames and cells are those of the file; steps and points are those that are kept)
time_stride = 5                    # frames per step: 5 x .01 s = .05 s, 41 frames
space_stride = 2                   # cells per grid point of the encoder: 1024 / 2 = 512 points
query_stride = 2                   # cells per point where the field loss may be taken; divides space_stride
input_frames = 1                   # frames the encoder sees
initial_step = 0     # frames before a rollout; training, too, begins with the last of them; 0: input_frames
memory_gb = -1.                # train rows up to this size live in memory, else in HDF5; -1: half of the free
early = 3.                      # windows start at U^early of the frames, U uniform: above 1, more often early
shift = True                       # augmentation: rotate the periodic domain
flip = True                        # augmentation: reflect the domain, where the equation allows it
boost = 0                       # augmentation: Galilean boost of up to so many grid points a step, if allowed
noise = 0.                         # noise on the input frames, relative to their rms
latent_noise = 0.                  # noise on latents before they are decoded, relative to their rms
coloured_noise = False             # that noise has the covariance of the latents, and is not white
cache_copies = 0             # residual, distill, steady: augmented copies of a window, encoded once; 0: none
# model
arch = 'pure'                      # pure or u; or a peer of peers.py
encoder = 'grid'                   # what the encoder sees: the values on its grid, or those at any points
attention = 'standard'             # standard or channel (channel-separated)
basis = 'cosine'     # of the fixed encoder: cosine modes, or (principal) components of the train part
patch_size = 4                     # grid points a patch of the learned encoder
halo = 2                           # grid points of its neighbours that such a patch sees on each side
latent_tokens = 32                 # tokens of the latent along each axis
latent_dim = 16                    # features of a token
hidden_dim = 96                    # width of the operator
encoder_dim = 0                    # width of the learned part of the encoder; 0: none
encoder_depth = 1                  # blocks of the encoder
decoder_dim = 0                    # width of the learned part of the decoder; 0: none
decoder_depth = 1                  # blocks of the decoder
depth = 4                          # blocks of the pure operator
depths = (1, 2, 1)                 # blocks of the U-shaped operator: down ..., bottleneck, up ...
n_head = 4                         # heads; with channel attention, heads in a group
group_size = 24                    # features of a group of channel attention
mlp_ratio = 2.                     # width of the MLP / width of the block
drop_path = 0.                     # rate of the last block; ramps up from 0
log_clamp = 0.                     # threshold of the output log-clamp; 0: none
layer_norm = False                 # in the operator's blocks; without it, they see how large a field is
moving_frame = True             # advance fields in the frame of their mean flow, where the equation allows it
conserve = True                    # a step keeps the integral of the fields that the equation conserves
token_shift = 0                    # grid points by which the tokens move on every step, so that errors differ
flow_kind = 'flow'                 # of the stages residual and steady: flow (matching) or refiner
flow_dim = 64                      # its width
flow_depth = 3                     # its blocks
noise_dim = 32                     # random numbers that steer a step of the ensemble
# losses (losses.py), all means; 0 switches one off. From here to `stages`, a stage may have its own
# (a window is input_frames + unroll consecutive frames)
unroll = 1                         # latent steps per window, through all of which the gradient runs
unroll_start = 1                   # latent steps per window in the beginning; 0: as unroll
unroll_switch = .7                 # fraction of the iterations at which unroll_start becomes unroll
gradient_through_time = True     # false: every step of a window is trained alone, on what the one before gave
detach_target = True               # encodings of the truth carry no gradient in the latent loss
lambda_field = 1.                  # relative L2 of the decoded rollout
lambda_latent = 0.                # advanced latents against encodings of the truth; 10 with a learned encoder
lambda_agreement = 0.              # the same, relative to the step that the encodings make
lambda_direction = 0.              # the angle between both steps
lambda_inverse_encoding = 0.       # D(E(u)) = u; 50 with a learned encoder or decoder
lambda_inverse_decoding = 0.       # E(D(z)) = z
num_queries = 0                    # points of the field loss, drawn anew for every batch; 0: all
query_strategy = 'uniform'   # of the grid: uniform, stratified, importance (more where steep); or anywhere
input_points = 512        # random points at which encoder=points sees a batch, drawn anew for every one
lambda_spectral = .05              # relative H1 error: wave number k weighs 1 + k^2
lambda_latent_norm = 0.            # latents of unit size
lambda_flow = 1.                   # what a flow says, against its lesson
lambda_distill = 1.                # where the student ends, against where its teacher does
lambda_crps = 1.                   # fair CRPS of the decoded members of the ensemble
members = 4                        # of the ensemble in training; of whatever is random in a validation
flow_steps = 4                     # of a flow, in its own rollouts and in validations
condition_noise = 0.               # noise on the latent that a flow is given, relative to its rms
tau_shape = 1.2                    # a flow is trained at times drawn from Beta(tau_shape, tau_shape)
tau_schedule = (8,)                # steps of the student's teacher, in equal parts of the stage
# (physics of the decoded fields, physics.py; each applies only where the equation has it)
lambda_conservation = 0.           # integrals stay (1000); needs conserve=False, which leaves it to training
lambda_boundary = 0.               # conditions at the walls, less what the truth lacks on the grid
lambda_divergence = 0.             # of the velocity of an incompressible flow
lambda_residual = 0.               # what is left of the equation between frames, less that of the truth
inverse_loss_frequency = 10        # inverse decoding on every so many-th batch
inverse_decoding_ramp = .2         # fraction of the iterations over which its weight grows from 0
# optimisation of a stage
max_iters = 4500                   # iterations; 0 skips the stage
epochs = 0.                      # if not 0: stop after so many passes over the windows, where that is earlier
max_minutes = 0.                  # if not 0: train so long; rates follow the clock, so runs are not bit-equal
batch_size = 32                    # windows per iteration, over all processes
accumulation = 1                   # micro-batches they are split into
optimizer = 'muon'                 # muon (hidden matrices; AdamW for the rest) or adamw
learning_rate = 1e-3               # of AdamW
muon_lr = .01                      # of Muon
weight_decay = 0.                  # of matrices, decoupled
beta2 = .99                        # of AdamW; beta1 is .9
grad_clip = 1.                     # of the total gradient norm; 0: none
warmup_iters = 100                 # linear warm-up, then cosine
min_lr_ratio = .01                 # final learning rate / peak
ema_decay = .999                   # of the averaged weights, which are the ones evaluated; 0: none
patience = 0                       # validations without progress before stopping; 0: never
# stages: what each trains is in stages.py. NAME_stage holds the keys of which a stage has its own value
stages = ('operator',)             # trained in this order
decoder_stage = {'max_iters': 1000, 'unroll': 8, 'learning_rate': 3e-4, 'muon_lr': 3e-3}
residual_stage = {'max_iters': 2000, 'unroll': 4}
distill_stage = {'max_iters': 1000, 'unroll': 4, 'flow_steps': 1, 'learning_rate': 3e-4, 'muon_lr': 3e-3}
ensemble_stage = {'max_iters': 1000, 'unroll': 8, 'unroll_start': 2, 'unroll_switch': .5,
                  'learning_rate': 3e-4, 'muon_lr': 3e-3}
steady_stage = {'max_iters': 2000, 'unroll': 1}
# system
device = 'auto'                    # auto, cpu, cuda, cuda:N or mps
dtype = 'auto'                     # auto, float32 or bfloat16 (autocast)
compile = 'auto'                   # auto, true or false
checkpointing = False              # recompute the operator's blocks in the backward pass: less memory
deterministic = False              # torch.use_deterministic_algorithms
# -----------------------------------------------------------------------------
_choices = {
    'dataset': tuple(pdes.PDES),
    **ModelConfig.choices(),
    'query_strategy': ('uniform', 'stratified', 'importance', 'anywhere'),
    'stages': tuple(STAGES),
    'optimizer': ('muon', 'adamw'),
    'dtype': ('auto', 'float32', 'bfloat16'),
    'compile': ('auto', 'true', 'false'),
    'device': ('auto', 'cpu', 'cuda', 'mps', *(f'cuda:{i}' for i in range(8)))}
# Numbers must be positive, unless they are named here.
_may_be_zero = (
    'num_queries resolution initial_step boost noise latent_noise halo encoder_dim encoder_depth decoder_dim '
    'decoder_depth log_clamp token_shift flow_depth condition_noise unroll_start unroll_switch cache_copies '
    'inverse_decoding_ramp max_iters epochs max_minutes weight_decay grad_clip warmup_iters min_lr_ratio '
    'patience').split()
_names = list(globals())                                             # in the order of their definition
_weights = [name for name in _names if name.startswith('lambda_')]
_bounds = {key: (0, None) for key in _may_be_zero + _weights}
_bounds.update(drop_path=(0, 1), ema_decay=(0, 1), beta2=(0, 1), seed=(0, 2 ** 32), memory_gb=(None, None),
               depths=(1, None), tau_schedule=(1, None))
_of_a_stage = [                                                 # keys of which a stage may have its own value
    'eval_interval', 'log_interval', 'save_interval', 'seed', 'early', 'shift', 'flip', 'boost', 'noise',
    'latent_noise', 'coloured_noise', 'cache_copies',
    *_names[_names.index('unroll'):_names.index('stages')]]          # losses and optimisation
_parameters = pdes.parameter_keys(taken=globals())                # nu, beta, ...: None is the entry's default
_defaults = {**_parameters, **globals()}
for _name in STAGES:
    _defaults.setdefault(f'{_name}_stage', {})
config = configure(_defaults, sys.argv[1:], __file__, _choices, _bounds)
params = pdes.parameters(config['dataset'], {key: config[key] for key in _parameters})
config.update({name.lower(): value for name, value in params.items()})
keys = SimpleNamespace(**config)
globals().update(config)


def settings_of(stage):
    """The keys as one stage sees them."""
    return SimpleNamespace(**{**config, **config.get(f'{stage}_stage', {})})


if not out_dir or not stages or len(set(stages)) < len(stages):
    raise UserError(f'out_dir and stages must not be empty, and stages={",".join(stages)} must not name one '
                    'twice')
for stage in stages:
    wrong = set(config.get(f'{stage}_stage', {})) - set(_of_a_stage)
    if wrong:
        raise UserError(f'{stage}_stage.{min(wrong)}: a stage cannot have its own value of this key: set '
                        f'--{min(wrong)}')
given = initial_step or input_frames                               # frames before a rollout
if given < input_frames:
    raise UserError(f'initial_step={given} is less than input_frames={input_frames}')
longest = max(settings_of(stage).unroll for stage in stages)
minutes = max(settings_of(stage).max_minutes for stage in stages)
machine = devices.start(device, dtype, compile, deterministic, minutes)
for stage in stages:
    s = settings_of(stage)
    if s.batch_size % (machine.world * s.accumulation):
        raise UserError(f'batch_size={s.batch_size} must be a multiple of {machine.world} processes x '
                        f'accumulation={s.accumulation}')
# The folder is locked here; run.state is its last.pt, if there is one.
run = Run(out_dir, config, _defaults, machine, init_from, overwrite)

# ---- data


def model_config(shape, **more):
    """The ModelConfig for a file of `shape` cells: the keys of the same name, what the equation's entry says,
    and what the data say. Raises UserError where the keys do not fit such a file."""
    entry = pdes.entry(dataset)
    names = {field.name for field in fields(ModelConfig)} & set(config)
    values = {name: config[name] for name in names}

    def numbers(names):
        return tuple(entry.fields.index(name) for name in names)

    values.update(
        pde=dataset, fields=entry.fields,
        parts=tuple(STAGES[name].part for name in stages if STAGES[name].part),
        params=tuple(params), seen_params=tuple((value,) for value in params.values()),
        boundary=entry.boundary, translation=entry.translation, drift=entry.drift,
        low=entry.low, length=entry.length,
        grid=tuple(cells // space_stride for cells in shape),
        token_grid=(latent_tokens,) * entry.axes,
        first=entry.low, mean=(0.,) * len(entry.fields), std=(1.,) * len(entry.fields),
        static=numbers(entry.static), positive=numbers(entry.positive),
        conserved=numbers(entry.conserved) if conserve else (),
        velocity=numbers(entry.velocity),
        frame_speed=entry.galilean if moving_frame else 0.)
    cfg = ModelConfig(**{**values, **more})
    check_config(cfg)
    return cfg


def check_fit(shape, n_frames):
    """Raise UserError where the keys do not fit files of that size, before anything is made or read."""
    data.check_strides(shape, n_frames, time_stride, space_stride, query_stride, given + longest)
    model_config(shape)


with machine.master_first():                                     # one process makes the file, the others wait
    paths = files.find_or_make(dataset, data_dir, data_path, params, n_trajectories, resolution,
                               str(machine.device), check_fit)
sources = [files.open_source(path, dataset, quiet=not machine.master) for path in paths]
check_fit(sources[0].shape, sources[0].n_frames)
trajectories = data.Trajectories(sources, keys, machine.device, machine.world)
trajectories.check_history(run, force_data)
machine.say(f'data {", ".join(paths)} | {trajectories.n_rows} train and {len(trajectories.val)} validation '
            f'trajectories, {trajectories.n_frames} frames of {" x ".join(map(str, trajectories.grid))} '
            f'points | {"in memory" if trajectories.in_memory else "read from HDF5"}')

# ---- model
torch.manual_seed(seed)
cfg = model_config(sources[0].shape)  # without mean and scale: they need frame_speed
mean, std = trajectories.statistics(moving=cfg.velocity if cfg.frame_speed else ())
cfg = model_config(
    sources[0].shape, mean=mean, std=std, dt=trajectories.dt,
    first=tuple(float(axis[0]) for axis in sources[0].x),
    seen_params=tuple(tuple(s.params[name] for s in sources) for name in params))
if run.state or run.parent:                                       # this run, resumed; another one, fine-tuned
    model = rebuild(cfg, run.state or run.parent, run.parent_path or run.last_path, averaged=bool(run.parent))
else:
    model = UPT(cfg)
    if basis == 'components':
        model.encoder.patches.fit(data.Windows(trajectories, cfg, settings_of(stages[0])).frames(1000).cpu())
model.to(machine.device)
if machine.compiled:
    for name in ('encoder', 'operator', 'decoder', *model.cfg.parts):
        getattr(model, name).compile()                            # in place: parameter names stay as they are
machine.say(f'model {arch}, {attention} attention | {model.n_params():,} parameters | latent '
            f'{" x ".join(map(str, cfg.token_grid))} tokens of {latent_dim}')
loss_names = []
for name in stages:
    STAGES[name](model, settings_of(name))  # raises now what would end a later stage
    loss_names += [loss for loss in STAGES[name].losses if loss not in loss_names]
about = {'model_args': model_args(model.cfg), 'data': trajectories.describe(paths, run)}
run.start(about, stages, loss_names)


def validate(model, batch_size, stage):
    """The error of whole latent rollouts from the first frames, over the first validation trajectories: nRMSE
    as scores.py defines it or, of a stage that makes members, their CRPS. An encoder of points sees them at
    the same random ones every time. Uses no other random number."""
    y = trajectories.val[:eval_batches * batch_size]
    values = {name: trajectories.val_params[:len(y), i] for i, name in enumerate(cfg.params)}
    at = None
    if encoder == 'points':
        at = random_points(stage.settings.input_points, cfg, torch.Generator().manual_seed(seed))
    s = stage.settings
    p = predict(model, y, values, given, batch_size, at=at, by=stage.by, members=stage.n_members,
                flow_steps=s.flow_steps)
    error = crps if stage.n_members else mean_nrmse
    return error(scored(model, p), scored(model, y[:, given:]))


# ---- the loop
for name in run.remaining(stages):
    s = settings_of(name)
    stage = STAGES[name](model, s)                            # a module: (batch, progress) -> loss, its parts
    windows = data.Windows(trajectories, model.cfg, s)
    if s.cache_copies:
        windows = CachedWindows(windows, stage, machine, data_dir)
    stage.prepare(windows)
    sampler = data.Sampler(windows.n_windows, s.batch_size, s.seed)
    optimizers = optim.make(stage, s)
    ema = optim.EMA(model, s.ema_decay)
    wrapped = machine.wrap(stage)                                  # in DDP, where there are several processes
    n_iters = s.max_iters
    if s.epochs:
        n_iters = min(n_iters, math.ceil(s.epochs * windows.n_windows / s.batch_size))
    # A resumed run takes its weights, averages, optimisers and sampler from last.pt here.
    score = 'CRPS' if stage.n_members else 'nRMSE'
    run.begin(n_iters, s, score, model=model, ema=ema.model, optimizers=optimizers, sampler=sampler)
    run.exit_if_finished()
    if run.begins_trained:                                        # then it has to improve on its beginning
        run.validate(validate, ema.model, s.batch_size, stage)

    while run.goes_on():                                    # until max_iters, max_minutes, patience, a signal
        # 1. learning rate
        factor = optim.schedule(run.progress, run.iteration, s.warmup_iters, s.min_lr_ratio)
        optim.set_rate(optimizers, factor)

        # 2. gradients of the global batch; everything random follows from the seed and the iteration
        torch.manual_seed((s.seed * 1_000_003 + run.total) * 1_009 + machine.rank)    # of noise and drop-path
        index = sampler.next()
        loss_sum = 0.
        losses = {}
        micro_batches = windows.batches(index, run.total, machine.rank, machine.world, s.accumulation)
        for micro, batch in enumerate(micro_batches):
            machine.synchronise_gradients(wrapped, micro == s.accumulation - 1)
            with machine.autocast():
                loss, parts = wrapped(batch, run.progress)
            (loss / s.accumulation).backward()
            loss_sum = loss_sum + loss.detach() / s.accumulation
            for part, value in parts.items():
                losses[part] = losses.get(part, 0.) + value / s.accumulation

        # 3. clip, stop the run if loss or gradient is not finite, step
        norm = torch.nn.utils.clip_grad_norm_(stage.parameters(), s.grad_clip or math.inf)
        run.check(loss_sum, norm, windows, index)
        for o in optimizers:
            o.step()
            o.zero_grad(set_to_none=True)
        ema.update(run.iteration)
        run.advance()

        # 4. validate, log, save
        error = None
        if run.every(s.eval_interval):
            error = run.validate(validate, ema.model, s.batch_size, stage)
        if error is not None or run.iteration % s.log_interval == 0:
            run.log(losses, s.learning_rate * factor, error)
        if run.iteration % s.save_interval == 0:
            run.save()

    run.end_if_stopped()
    if name != stages[-1]:                                       # the next one starts from its best, averaged
        model.load_state_dict({**ema.model.state_dict(), **run.best_weights()})
run.finish()
