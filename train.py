"""
Train a latent neural PDE solver.

    python train.py config/burgers_cpu.py                       # two CPU cores, minutes
    python train.py config/burgers_128_pure.py                  # one GPU
    python train.py config/burgers_128_pure.py --batch_size=32 --seed=1
    torchrun --standalone --nproc_per_node=4 train.py config/burgers_128_pure.py

Every key below can be set in a config file or as --key=value; --help lists them. The same command continues a
stopped run, even after a power cut. The training step is OperatorStage.forward in losses.py.
"""
import math
import sys
from types import SimpleNamespace

from runtime import configurator

configurator.one_line_errors()         # also while the rest is imported

import torch

import data
import equations
import losses
import optim
from evaluation.scores import rollout_error
from files import fit
from files import open as files
from grids import shape_text
from model import ModelConfig, build, model_args, on_meta
from runtime import extensions
from runtime import device as devices
from runtime.device import seed_of
from runtime.run import Run, check_settings

# -----------------------------------------------------------------------------
# run (a resumed run may change the keys whose comment ends with *)
out_dir = 'out/run'                # folder of the run *
init_from = 'auto'                 # auto (resume or start), scratch, or a checkpoint to fine-tune *
overwrite = False                  # with init_from=scratch: delete the run in out_dir *
eval_interval = 1000               # iterations between validations *
n_validated = 64                   # validation trajectories rolled out, at most *
log_interval = 200                 # iterations between log lines *
save_interval = 1000               # iterations between writes of last.pt *
seed = 0                           # of weights, order of the data, augmentation
wandb_log = False                  # also log to Weights & Biases; the run goes on if that fails *
wandb_project = 'nanoupt'          # project name there *
wandb_run_name = ''                # run name there; empty: out_dir *
# data
dataset = 'burgers'                # an equation of equations/; its solver makes the data if there is no file
data_dir = 'datasets'              # folder of data files *
data_path = ''                     # explicit file(s), separated by commas *
resolution = 0                     # cells along each axis of data that are made; 0: the equation's default
n_trajectories = 1000              # rows used, at most: 10 % test, 10 % validation, the rest train
time_stride = 5                    # stored frames per step: 5 x .01 s = .05 s, 41 frames
other_strides = ()                 # further steps that are trained, such as (2, 10): then other dt may be asked for
space_stride = 2                   # stored cells per grid point: 1024 / 2 = 512 points
initial_step = 1                   # true frames given; rollouts and training windows start at the last one
memory_gb = -1.                    # keep the training set in memory up to so many GB; -1: half of the free *
early_bias = 3.                    # start frame = n U^early_bias, U uniform: 3 favours early frames, 1: none
symmetries = True                  # augmentation by the symmetries of the equation: shifts, reflections
# model (the keys of this section shape the network: layers read them as cfg.NAME)
arch = 'pure'                      # operator: pure or u (U-shaped); fno, unet, transolver, pdet (peers/)
attention = 'standard'             # standard or channel (channel-separated)
encoder = 'grid'                   # the encoder sees values on the grid, or at any points (points/)
basis = 'cosine'                   # modes of the fixed encoder: cosine, or principal components of the data
patch_size = 4                     # grid points per patch of the convolution of the learned encoder
halo = 2                           # grid points beyond a patch that the learned parts see on each side
latent_tokens = 32                 # latent tokens along the shortest axis: each holds a patch of the grid
latent_dim = 16                    # features of a token
hidden_dim = 96                    # width of the operator
encoder_dim = 0                    # width of the learned encoder; 0: none
decoder_dim = 0                    # width of the learned decoder; 0: none
coder_depth = 1                    # blocks of the learned encoder and decoder, each
depth = 4                          # blocks of the pure operator
depths = (1, 2, 1)                 # blocks of the U-shaped operator: down ..., bottleneck, up ...
n_head = 4                         # attention heads; with channel attention, heads in a group
group_size = 24                    # features of a group of channel attention
mlp_ratio = 2.                     # width of the MLP / width of the block
drop_path = 0.                     # drop-path rate of the last block; ramps up from 0
log_clamp = 0.                     # threshold of the output log-clamp; 0: none
moving_frame = True                # advance in the frame of the mean flow, if the equation is Galilean
conserve = True                    # keep the integral of conserved fields exactly
token_shift = 0                    # circular shift of the patches after every step, in grid points; 0: none
checkpointing = False              # recompute the operator's blocks in the backward pass: less memory *
# latent steps of a window, and inverse decoding (from here to `stages`, a stage may have its own values)
unroll = 1                         # latent steps per window, through all of which the gradient runs
unroll_start = 1                   # latent steps per window at the beginning; 0: the same as unroll
unroll_switch = .7                 # fraction of the iterations after which unroll_start becomes unroll
inverse_loss_frequency = 10        # inverse decoding acts on every so many-th batch
# optimisation
max_iters = 4500                   # iterations; 0 skips the stage *
max_minutes = 0.                   # if not 0: train for so long, validations apart; schedules follow the clock *
batch_size = 32                    # windows per iteration, over all processes
accumulation = 1                   # micro-batches they are split into
optimizer = 'muon'                 # muon (inner matrices and kernels; AdamW for the rest) or adamw
learning_rate = 1e-3               # of AdamW *
muon_lr = .01                      # of Muon *
weight_decay = 0.                  # of matrices, decoupled
grad_clip = 1.                     # limit of the gradient norm; 0: none
warmup_iters = 100                 # linear warm-up, then cosine
ema_decay = .999                   # of the averaged weights, which are evaluated; 0: no average
patience = 0                       # validations without progress before a stage stops; 0: never *
# stages
stages = ('operator',)             # trained in this order; diff_residual ... are in probabilistic/ *
# system
device = 'auto'                    # auto, cpu, cuda, cuda:N or mps *
dtype = 'auto'                     # auto, float32 or bfloat16 (autocast) *
compile = 'auto'                   # auto, true or false *
deterministic = False              # torch.use_deterministic_algorithms *
# -----------------------------------------------------------------------------
# Also keys: the weights of the losses, those of extensions (points/keys.py ...), parameters of the equation.
config, params, _defaults, _model_keys = extensions.resolve(
    globals(), sys.argv[1:], __file__, losses, equations)
globals().update(config)
keys = SimpleNamespace(**config)


def settings_of(stage, changes={}):
    """All keys as a stage sees them: with its own defaults and, on top, those of --NAME_stage.KEY=VALUE."""
    return SimpleNamespace(
        **{**config, **changes, **losses.STAGES[stage].defaults, **config[f'{stage}_stage']})


def model_of(changes):
    """The configuration of the model and a model without memory, with some keys changed; UserError where the
    keys do not fit the files, or each other."""
    for name in stages:
        s = settings_of(name, changes)
        fit.check_strides(sources[0], s, s.unroll)
    cfg = ModelConfig.of(SimpleNamespace(**{**config, **changes}), _model_keys, sources)
    cfg = run.continued(cfg)
    fit.check_continued(cfg, run.trained_args, run.trained_path)
    return cfg, on_meta(cfg)


# ---- checks, before any work
minutes = max(settings_of(name).max_minutes for name in stages)
machine = devices.start(device, dtype, compile, deterministic, minutes)
is_named = dataset != _defaults['dataset'] or f'--dataset={dataset}' in sys.argv
mixture = extensions.mixture(config, _model_keys, sys.argv[1:])  # several equations: universal/
if mixture:
    sources = mixture.sources
else:
    sources = files.find(dataset, data_dir, data_path, params, n_trajectories, resolution, named=is_named)
    config.update(fit.settled(config, params, sources, sys.argv))    # what the files say is what is recorded
run = Run(out_dir, config, _defaults, machine, configurator.resumable(__file__))   # locks the folder
try:
    cfg, empty_model = mixture.model_of(run) if mixture else model_of({})    # what cannot be built fails here
except configurator.UserError as error:
    from runtime.fitting import with_fitting_keys
    raise with_fitting_keys(error, model_of, keys, sources[0]) from error
for name in stages:
    s = settings_of(name)
    check_settings(s, machine)
    optim.make(losses.STAGES[name](empty_model, s).checked(sources), s)
    optim.EMA(empty_model, s.ema_decay)
    if name == 'operator' and machine.device.type == 'cpu' and s.max_iters > 100 and not run.state:
        from evaluation.cost import say_if_long
        say_if_long(cfg, s, machine)

# ---- data
with machine.master_first():                                     # one process makes the file, the others wait
    if not all(source.exists for source in sources):
        from files.write import make
        sources = make(sources, machine.device)
read = mixture.trajectories if mixture else data.Trajectories
trajectories = read(sources, keys, machine.device, machine.world)
trajectories.check_history(run)
machine.say(f'data {trajectories.text()}')

# ---- model
torch.manual_seed(seed)
if run.state or run.parent:                                      # this run, resumed; another one, fine-tuned
    model = run.restore(mixture.build if mixture else build, model_args(cfg)).to(machine.device)
else:
    model = cfg.model().to(machine.device)
    trajectories.normalise(model, settings_of(stages[0]))
    run.take_blocks(model)                                       # of a model of several equations
trajectories.check_units(model)
if machine.compiled:
    for part in model.parts():
        part.compile()                                           # in place: parameter names stay as they are
machine.say(f'model {arch}, {attention} attention | {model.n_params():,} parameters | '
            + (mixture.names if mixture else f'latent {shape_text(cfg.token_grid)} tokens of {latent_dim}'))
run.start(stages, model_args=model_args(model.cfg), data=trajectories.describe(run))

# ---- the loop
for name in run.remaining(stages):
    s = settings_of(name)
    stage = losses.STAGES[name](model, s)                        # a module: (batch, progress) -> loss, terms
    windows = stage.prepare(trajectories.windows(model, s), machine)
    sampler = trajectories.sampler(windows, s)
    optimizers = optim.make(stage, s, machine.compiled)
    parameters = list(stage.parameters())                        # to walk through the modules takes a while
    ema = optim.EMA(model, s.ema_decay)
    wrapped = machine.wrap(stage)                                # in DDP, where there are several processes

    def validation_error():
        errors = [rollout_error(*part, n_validated) for part in stage.parts(ema.model, trajectories)]
        return math.prod(errors) ** (1 / len(errors))            # their geometric mean, if there are several

    # A resumed run takes its weights, averages, optimisers and sampler from last.pt here.
    run.begin(s, stage.score, model=model, ema=ema.model, optimizers=optimizers, sampler=sampler)
    run.exit_if_finished()
    if run.begins_trained:                                       # best.pt must improve on these weights
        run.validate(validation_error)

    # run.iteration counts in this stage, run.total in all; run.progress is the finished fraction of this one
    while run.goes_on():                                         # max_iters, max_minutes, patience, signals
        # 1. learning rate
        factor = optim.schedule(run.progress, run.iteration, s.warmup_iters)
        optim.set_rate(optimizers, factor)

        # 2. gradients of the global batch; everything random follows from the seed and the iteration
        machine.seed(seed_of(s.seed, run.total, machine.rank))                   # for noise and drop path
        index = sampler.next()
        loss_sum = 0.
        sums = {}
        micro_batches = windows.batches(index, run.total, machine.rank, machine.world, s.accumulation,
                                        following=sampler.peek)
        for micro, batch in enumerate(micro_batches):
            machine.synchronise_gradients(wrapped, micro == s.accumulation - 1)
            with machine.autocast(stage):
                loss, terms = wrapped(batch, run.progress)
            (loss / s.accumulation).backward()
            loss_sum = loss_sum + loss.detach() / s.accumulation
            for term, value in terms.items():
                sums[term] = sums.get(term, 0.) + value / s.accumulation

        # 3. clip, stop the run if loss or gradient is not finite, step
        norm = torch.nn.utils.clip_grad_norm_(parameters, s.grad_clip or math.inf)
        run.check(loss_sum, norm, windows, index)
        for o in optimizers:
            o.step()
            o.zero_grad(set_to_none=True)
        ema.update(run.iteration)
        run.advance()

        # 4. validate, log, save
        error = None
        if run.every(s.eval_interval):
            error = run.validate(validation_error)
        if error is not None or run.iteration % s.log_interval == 0:
            run.log(sums, s.learning_rate * factor, error)
        if run.iteration % s.save_interval == 0:
            run.save()

    run.end_if_stopped()
    if name != stages[-1]:                                       # the next one starts from its best, averaged
        model.load_state_dict({**ema.model.state_dict(), **run.best_weights()})
run.finish()
