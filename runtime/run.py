"""
A run is a folder: lock, config, provenance, log, checkpoints, signals.

    run = Run('out/a', config, defaults, machine, may_change)    # locks the folder; loads run.state to resume
    for stage in run.remaining(('operator', 'ensemble')):  # continues in the middle of any stage after a stop
        run.begin(settings, 'nRMSE', model=model, ema=ema.model, optimizers=optimizers, sampler=sampler)
        run.exit_if_finished()
        while run.goes_on():
            ...
            run.check(loss, norm, windows, index)          # before the step
            ...
            run.advance()
        run.end_if_stopped()
    run.finish()

It never sees a batch; of training it decides when to stop. The folder holds config.json, env.json, log.csv,
last.pt (everything that is needed to go on) and best.pt (the weights with the lowest validation error of the
latest stage).
"""
import contextlib
import csv
import hashlib
import json
import math
import os
import platform
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import torch
import torch.distributed as dist

from runtime import extensions
from runtime.checkpoint import (NETWORK, equations_of, find_checkpoint, half_written, is_shared, load_checkpoint,
                                of_equation, save_checkpoint, whole_file)
from runtime.configurator import UserError
from runtime.paths import lock, output_folder
from runtime.progress import duration

EARLY = 10.                            # seconds of a stage after which its first line of progress is due
DIVERGED = 1e6                         # a loss beyond this stops the run
COLUMNS = ['iter', 'stage', 'loss', 'grad_norm', 'learning_rate', 'val_nrmse', 'train_seconds']   # of log.csv
WRITTEN = ('last.pt', 'best.pt', 'config.json', 'env.json', 'log.csv', 'nan_dump.pt')
# Model arguments in which a run that goes on, or is fine-tuned, may differ from its checkpoint; where the
# first point may lie is said in files/fit.py
MAY_DIFFER = {'encoder', 'checkpointing', 'seen_params', 'other_dt', 'drop_path', 'token_shift', 'steppers',
              'first'}
OF_STEPPERS = {'flow_dim', 'flow_depth', 'noise_dim'}


@contextlib.contextmanager
def nobody_to_ask():
    """Inside, standard input is no terminal, so that no package waits for an answer."""
    terminal = sys.stdin
    try:
        with open(os.devnull) as sys.stdin:
            yield
    finally:
        sys.stdin = terminal


def plain(value):
    """As JSON gives it back."""
    return json.loads(json.dumps(value))


def check_settings(settings, machine):
    """Raise UserError for keys of a stage that cannot be 0, a batch that cannot be divided, and a seed from
    which device.seed_of would make a number of more than 64 bits."""
    for key in ('batch_size', 'accumulation', 'eval_interval', 'log_interval', 'save_interval', 'n_validated',
                'early_bias'):
        if getattr(settings, key) <= 0:
            raise UserError(f'{key}={getattr(settings, key)} must be positive')
    if settings.seed >= 2 ** 32:
        raise UserError(f'seed={settings.seed} must be below {2 ** 32}')
    if settings.batch_size % (machine.world * settings.accumulation):
        raise UserError(f'batch_size={settings.batch_size} must be a multiple of {machine.world} processes x '
                        f'accumulation={settings.accumulation}')


class Run:
    """The folder of a training, and where in its stages it stands."""

    def __init__(self, out_dir, config, defaults, machine, may_change):
        """config: the resolved keys, defaults: what they would be unset. may_change: names of the keys that a
        resumed run may change. Raises UserError for a folder that cannot be written, that another process is
        writing to, or that holds another run."""
        if not out_dir:
            raise UserError('out_dir is empty: name a folder')
        self.folder = out_dir
        self.may_change = may_change
        self.config = plain(config)
        self.defaults = plain({name: defaults.get(name) for name in config})
        self.machine = machine
        self.last_path = os.path.join(out_dir, 'last.pt')
        self.best_path = os.path.join(out_dir, 'best.pt')
        self.log_path = os.path.join(out_dir, 'log.csv')
        self.state = None              # the checkpoint that is resumed
        self.parent = None             # the checkpoint that is fine-tuned
        self.parent_path = None
        self.blocks = None             # the checkpoint of several equations whose blocks are taken
        with machine.together():
            if machine.master:
                self.lock()
            self.find_state(config['init_from'], config['overwrite'])
            if self.state:
                self.check_config()
            if machine.master:
                self.remove_half_written()
        if machine.ddp:                # alone, no time is spent on the hash
            machine.agree(f"another checkpoint, or none, in '{out_dir}'", self.identity(),
                          'all need the same files, such as a folder that they share')
        self.stage = ''
        self.stage_index = 0
        self.iteration = 0             # of the stage
        self.progress = 0.             # of the stage, 0 .. 1
        self.before = 0                # iterations of the stages before it
        self.best = math.inf           # lowest validation error of the stage
        self.score = 'nRMSE'           # what that is
        self.bad_evals = 0             # validations since then
        self.finished = False          # patience ran out
        self.seconds_before = 0.       # of training: in earlier stages,
        self.stage_seconds = 0.        # and in this stage, before this process
        if self.state:
            for name in ('stage', 'stage_index', 'before', 'best', 'bad_evals', 'finished', 'seconds_before'):
                setattr(self, name, self.state[name])
            self.iteration = self.state['stage_iter']
            self.stage_seconds = self.state['stage_seconds']
        self.about = {}                # what checkpoints say of model and data
        self.parts = {}                # what is saved: modules, optimisers, sampler
        self.signal = 0                # of this process
        self.stopped = 0               # agreed on by all processes
        self.flag = None               # on its way between them
        self.pending = []              # checks of steps whose numbers are on their way from the device
        self.columns = COLUMNS
        self.opened = False            # are log.csv and the other files those of this process?
        self.environment = self.describe_environment()
        self.wandb = None

    # ---- opening the folder

    def lock(self):
        output_folder('out_dir', self.folder)
        try:
            self.lock_file = open(os.path.join(self.folder, 'lock'), 'a+')
            lock(self.lock_file)
            self.lock_file.truncate(0)
            self.lock_file.write(f'process {os.getpid()} on {platform.node()}')
            self.lock_file.flush()
        except BlockingIOError:
            self.lock_file.seek(0)
            raise UserError(f"another training ({self.lock_file.read().strip()}) is writing to "
                            f"'{self.folder}': wait for it, or choose another --out_dir") from None
        except OSError as error:
            raise UserError(f"out_dir '{self.folder}' cannot be locked ({error.strerror}): choose another "
                            'one') from error

    def remove_half_written(self):
        """Remove what a process that was killed while it saved had not finished."""
        for name in WRITTEN:
            with contextlib.suppress(FileNotFoundError):
                os.remove(half_written(os.path.join(self.folder, name)))

    def find_state(self, init_from, overwrite):
        """Which checkpoint, if any, this run goes on from."""
        has_last = os.path.exists(self.last_path)
        has_run = has_last or os.path.exists(self.best_path)
        if not has_run and is_foreign(os.path.join(self.folder, 'config.json')):
            raise UserError(f"out_dir '{self.folder}' holds a config.json that is not of a run: choose another "
                            'folder')
        if init_from == 'auto':
            if has_last:
                self.state = self.load_last()
            elif has_run:
                raise UserError(f"'{self.folder}' holds best.pt but no last.pt to resume: "
                                f'--init_from={shlex.quote(self.best_path)} with another --out_dir, or '
                                '--init_from=scratch --overwrite=true')
        elif init_from == 'scratch':
            if has_run and not overwrite:
                raise UserError(f"'{self.folder}' holds a run: --init_from=auto resumes it, --overwrite=true "
                                'throws it away')
        else:
            path = find_checkpoint(init_from)
            if not has_run or overwrite:
                self.parent_path = path
                self.find_parent(load_checkpoint(path))
                return
            # This fine-tuning may have been stopped; then it goes on.
            self.state = load_checkpoint(self.last_path) if has_last else None
            if self.state is None or self.state['config']['init_from'] != init_from:
                raise UserError(f"'{self.folder}' holds another run: choose another --out_dir for fine-"
                                'tuning, or --overwrite=true')

    def find_parent(self, state):
        """Fine-tune a checkpoint. Of a model of several equations, take the equation that is trained now. If it
        has none such, take the blocks that its equations share."""
        members = equations_of(state)
        if self.config['mixture'] and not members:
            raise UserError(f"'{self.parent_path}' is a model of one equation, and a mixture fine-tunes a mixture")
        if not members or self.config['mixture']:
            self.parent = state
        elif self.config['dataset'] in members.values():
            self.parent = of_equation(state, self.parent_path, self.config['dataset'])
        else:
            self.blocks = state

    def load_last(self):
        try:
            return load_checkpoint(self.last_path)
        except UserError as error:
            if not os.path.exists(self.best_path):
                raise
            raise UserError(f'{error}; to go on from the best weights: python train.py ... --out_dir='
                            f'{shlex.quote(self.other_folder())} --init_from='
                            f'{shlex.quote(self.best_path)}') from error

    def other_folder(self):
        """The name of a folder beside this one."""
        return f'{os.path.normpath(self.folder)}_2'

    def identity(self):
        """What a run goes on from: its place in the stages, and a hash of the weights. (DDP would average the
        gradients of processes that went on from different checkpoints.) None where it starts anew."""
        state = self.state or self.parent
        if not state:
            return None
        digest = hashlib.sha256()
        for value in state['model'].values():
            digest.update(value.contiguous().flatten().view(torch.uint8).numpy())
        return bool(self.state), state.get('stage_index'), state.get('stage_iter'), digest.hexdigest()

    def check_config(self):
        """Refuse to resume with other keys than those of the start, or with stages that lack the one in which
        the run stopped. A key that is new in the code counts as having had its default. A stage that has not
        begun may have any settings."""
        stages = self.config['stages']
        index = self.state['stage_index']
        stage = self.state['stage']
        if index >= len(stages) or stages[index] != stage:
            raise UserError(f"cannot resume '{self.folder}': it stopped in stage {index + 1} ({stage}), and "
                            f"stages={','.join(stages)} has no such stage {index + 1}")
        old = {**self.defaults, **self.state['config']}
        begun = [f'{stage}_stage' for stage in stages[:index + 1]]
        changed = {}
        for name in [*flat(self.config), *(name for name in flat(old) if '.' in name)]:
            there = value_of(name, old)
            now = value_of(name, self.config)
            of_stage, _, _ = name.partition('.')
            if there != now and (of_stage in begun or not of_stage.endswith('_stage')):
                changed[name] = (there, now)
        refused = [f'{name}: {there!r} there, {now!r} now' for name, (there, now) in changed.items()
                   if name.split('.')[-1] not in self.may_change]
        if refused:
            raise UserError(f"'{self.folder}' holds a run with another configuration ({'; '.join(refused)}): "
                            'use those values, another --out_dir, or --init_from=scratch --overwrite=true')
        for name in ('learning_rate', 'muon_lr', 'max_iters'):
            if name in changed:
                self.say(f'note: {name} changes from {changed[name][0]} to {changed[name][1]}')

    def describe_environment(self):
        here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        commit = ''
        if shutil.which('git'):
            found = subprocess.run(['git', 'rev-parse', 'HEAD'], capture_output=True, text=True, cwd=here)
            commit = found.stdout.strip()
        return {'python': platform.python_version(), 'torch': str(torch.__version__), 'numpy': np.__version__,
                'platform': platform.platform(), 'device': self.machine.name(),
                'threads': torch.get_num_threads(), 'processes': self.machine.world, 'commit': commit,
                'command': shlex.join(sys.argv)}

    def say(self, text):
        self.machine.say(text)

    # ---- stages

    @property
    def trained_args(self):
        """Model arguments of the checkpoint that is resumed or fine-tuned, or None."""
        state = self.state or self.parent
        return state and state['model_args']

    @property
    def trained_path(self):
        return self.last_path if self.state else self.parent_path

    def continued(self, cfg):
        """A ModelConfig that also has the steppers of the checkpoint which is resumed or fine-tuned. Raises
        UserError where the checkpoint has another architecture."""
        there = self.trained_args
        blocks = there
        if self.blocks:
            blocks = next(iter(self.blocks['model_args']['members'].values()))
        if blocks and blocks.get('arch') == 'universal':             # the network is that of the blocks
            extensions.load(blocks)
            differ = {name: blocks[name] for name in NETWORK if plain(getattr(cfg, name)) != blocks[name]}
            cfg = cfg.replace(**differ)
            if differ:
                shown = ', '.join(f'{name}={value}' for name, value in differ.items())
                self.say(f'note: the blocks are those of several equations: {shown}')
        if not there:
            return cfg
        steppers = there['steppers']
        extensions.load({'steppers': steppers})
        may_differ = MAY_DIFFER if len(steppers) > 1 else MAY_DIFFER | OF_STEPPERS
        now = plain(vars(cfg))
        pairs = {'': (there, now)}
        if 'members' in there:                                       # of several equations, each for itself
            if there['members'].keys() != now['members'].keys():
                raise UserError(f"'{self.trained_path}' is a model of {', '.join(there['members'])}: train on with "
                                'this mixture, or another --out_dir')
            pairs = {f'{name}.': (args, now['members'][name]) for name, args in there['members'].items()}
        differ = [f'{of}{name}: {old[name]!r} there, {value!r} now'
                  for of, (old, new) in pairs.items() for name, value in new.items()
                  if name in old and not same(old[name], value) and name not in may_differ]
        if differ:
            raise UserError(f"'{self.trained_path}' has another architecture ({'; '.join(differ)}): use its "
                            'values, or --init_from=scratch')
        return cfg.replace(steppers=(*steppers, *(name for name in cfg.steppers if name not in steppers)))

    def take_blocks(self, model):
        """Give a new model the blocks that the equations of a mixture share, averaged."""
        if not self.blocks:
            return
        shared = {}
        for name in equations_of(self.blocks):
            weights = of_equation(self.blocks, self.parent_path, name)['ema']
            shared.update({weight: value for weight, value in weights.items() if is_shared(weight)})
        own = model.state_dict()
        taken = {weight: value for weight, value in shared.items() if weight in own}
        model.load_state_dict({**own, **taken})
        self.say(f"model: {len(taken)} of {len(own)} tensors are those of '{self.parent_path}'")

    def restore(self, build, args):
        """
        The model to resume or to fine-tune. build: model.build; args: the model arguments of the
        configuration, as `continued` has checked it. The model keeps the steppers that its checkpoint has;
        self.state receives the weights of new ones, so that a run can resume with them.
        """
        state = self.state or self.parent
        path = self.trained_path
        there = self.trained_args
        new = [name for name in args['steppers'] if name not in there['steppers']]
        args = {**args, 'steppers': there['steppers'] + new}
        model = build(args, state['model' if self.state else 'ema'], path, new)
        initial = {name: value for name, value in model.state_dict().items() if name.split('.')[0] in new}
        for key in ('model', 'ema'):
            state[key] = {**initial, **state[key]}
        return model

    def start(self, stages, **about):
        """Everything is built. about: model arguments and data, for the checkpoints. From here on a signal
        ends the run after an iteration."""
        self.about = plain_but_tensors(about)
        self.machine.agree('other data', self.about['data']['identity'],
                           'copy the data file of the first one, or share data_dir')
        self.n_stage = len(stages)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.on_signal)

    def open_files(self):
        """Write what describes the run, and the part of the log that holds."""
        self.opened = True
        what = f'fine-tuning {self.parent_path} in' if self.parent else 'starting'
        if self.state:
            what = 'resuming'
        self.say(f"{what} '{self.folder}' at iteration {self.total}")
        if not self.machine.master:
            return
        before = self.state['environment'] if self.state else {}
        self.environment['wandb_id'] = before.get('wandb_id') or secrets.token_hex(4)
        kept = []
        if self.state:
            kept = self.rows_until(self.total)
        else:
            for stale in (self.last_path, self.best_path):
                if os.path.exists(stale):
                    os.remove(stale)
        self.write_log(kept)
        for name, content in (('config.json', self.config), ('env.json', self.environment)):
            with whole_file(os.path.join(self.folder, name)) as file:
                json.dump(content, file, indent=1)
        if self.config['wandb_log']:
            self.start_wandb()

    def write_log(self, rows):
        """The whole of log.csv, with a column for each number that a row has."""
        names = list(dict.fromkeys(name for row in rows for name in row))
        self.columns = [*COLUMNS, *(name for name in names if name not in COLUMNS)]
        with whole_file(self.log_path, newline='') as file:
            writer = csv.DictWriter(file, self.columns, restval='')
            writer.writeheader()
            writer.writerows(rows)

    def rows_until(self, iteration):
        """Rows of log.csv up to an iteration. Later ones are trained again; incomplete ones are dropped."""
        if not os.path.exists(self.log_path):
            return []
        with open(self.log_path, newline='') as file:
            rows = list(csv.DictReader(file))
        whole = [row for row in rows if (row.get('iter') or '').isdigit() and None not in row.values()]
        return [row for row in whole if int(row['iter']) <= iteration]

    def remaining(self, stages):
        """The stages that are not done yet, in order; after each, the book-keeping moves on to the next."""
        for index, stage in enumerate(stages):
            if index < self.stage_index:
                continue
            self.stage = stage
            yield stage
            if index + 1 < len(stages):
                self.stage_index = index + 1
                self.before += self.iteration
                self.seconds_before += self.stage_seconds + self.spent()
                self.iteration = 0
                self.stage_seconds = 0.
                self.best = math.inf
                self.bad_evals = 0
                self.finished = False
                self.state = None

    def begin(self, settings, score, **parts):
        """Begin or resume the stage. score: the name of its validation error. parts: what last.pt holds by
        name: modules, lists of optimisers, and other objects with a state_dict."""
        self.n_iters = n_iters = settings.max_iters
        self.settings = settings
        self.score = score
        self.parts = parts
        if self.state:
            for name, part in parts.items():
                if isinstance(part, list):
                    for item, state in zip(part, self.state[name], strict=True):
                        item.load_state_dict(state)
                else:
                    part.load_state_dict(self.state[name])
            if self.finished and self.state['limits'] != [n_iters, settings.patience]:
                self.finished = False                              # more was asked for since patience ran out
                self.bad_evals = 0
        self.clock = time.perf_counter()
        self.progress = self.fraction_done()
        if not self.opened and not self.already_finished():          # a finished run is left as it is
            self.open_files()
            self.clock = time.perf_counter()
        self.last_time = self.clock
        self.advanced = self.clock
        self.last_iteration = self.iteration
        self.is_early = True                                   # no line of progress yet
        if self.iteration == 0 and not self.state:             # a run may be killed before its first interval
            self.save()

    def already_finished(self):
        """Is this a run of which nothing is left to do?"""
        last = self.stage_index == self.n_stage - 1
        return bool(self.state) and last and (self.progress >= 1 or self.finished)

    def exit_if_finished(self):
        """Leave a finished run as it is."""
        if not self.already_finished():
            return
        self.say(f"'{self.folder}' is already finished: {self.total} iterations, best validation "
                 f'{self.score} {self.best:.4f}')
        self.machine.stop()
        sys.exit(0)

    def best_of_stage(self):
        """What best.pt holds, if it is of this stage; else None."""
        if not os.path.exists(self.best_path):
            return None
        best = load_checkpoint(self.best_path)
        return best if best['stage_index'] == self.stage_index else None

    def best_weights(self):
        """Averaged weights of the best validation of the stage; none before the first."""
        best = self.best_of_stage()
        return best['ema'] if best else {}

    # ---- where it stands

    @property
    def total(self):
        """Iterations in all stages so far: what log.csv counts."""
        return self.before + self.iteration

    @property
    def begins_trained(self):
        """Is this the beginning of a stage whose weights were trained before, by a stage or another run?"""
        resumed = self.state and self.state['config']['init_from'] not in ('auto', 'scratch')
        return self.iteration == 0 and bool(self.stage_index or self.parent or resumed)

    def spent(self):
        return time.perf_counter() - self.clock

    def advance(self):
        """An iteration is over. From here to the next one, run.progress stays as it is, whatever the clock
        says."""
        self.iteration += 1
        self.progress = self.fraction_done()
        self.advanced = time.perf_counter()
        if self.is_early:
            self.early_line()
        self.poll()

    def fraction_done(self):
        """Of the stage, 0 .. 1; its schedules follow it."""
        done = self.iteration / self.n_iters if self.n_iters else 1.
        minutes = self.settings.max_minutes
        if minutes:
            done = max(done, (self.stage_seconds + self.spent()) / (60 * minutes))
        return min(1., done)

    def goes_on(self):
        return not (self.progress >= 1 or self.finished or self.stopped)

    def every(self, interval):
        """Is it time for what happens every so many iterations, and at the end of a stage?"""
        return self.iteration % interval == 0 or self.progress >= 1

    def on_signal(self, number, _):
        if self.signal and not self.machine.ddp:               # torchrun sends each one again, and waits 30 s
            os._exit(128 + number)                                   # the second one ends the process at once
        self.signal = number

    def poll(self):
        """Has a signal asked to stop? All processes stop after the same iteration: the flag of each is on its
        way while the next iteration runs, so that nobody waits for it."""
        if not self.machine.ddp:
            self.stopped = self.signal
            return
        if self.flag is not None:
            tensor, work = self.flag
            work.wait()
            self.stopped = int(tensor)
        tensor = torch.tensor([self.signal])                         # on the CPU: no GPU is waited for
        self.flag = tensor, dist.all_reduce(tensor, dist.ReduceOp.MAX, self.machine.talk, async_op=True)

    # ---- a step

    def check(self, loss, norm, windows, index):
        """Stop before a loss or gradient that is not finite can reach weights that are kept. On CUDA the
        numbers of one iteration are read in the next, so that nothing waits for the device."""
        self.numbers = torch.stack([loss, norm.to(loss.dtype)])
        numbers = self.numbers
        event = None
        if self.machine.device.type == 'cuda':
            numbers = numbers.to('cpu', non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self.pending.append((self.total, numbers, event, windows, index))
        if event is None or len(self.pending) > 1:
            self.check_oldest()

    def check_oldest(self):
        iteration, numbers, event, windows, index = self.pending.pop(0)
        if event is not None:
            event.synchronize()
        loss, norm = numbers.tolist()
        if math.isfinite(loss) and math.isfinite(norm) and abs(loss) < DIVERGED:
            return
        if self.machine.master:
            dump = {'index': index, 'iter': iteration, 'loss': loss, 'grad_norm': norm}
            save_checkpoint(os.path.join(self.folder, 'nan_dump.pt'), dump)
        rates = ', '.join(f'{o.param_groups[0]["lr"]:.2e}' for o in self.parts['optimizers'])
        rows = windows.row_names(index)
        shown = ', '.join(map(str, rows[:8])) + (' ...' if len(rows) > 8 else '')
        raise UserError(f'iteration {iteration}: loss {loss}, gradient norm {norm} (learning rates {rates}; '
                        f'trajectories {shown}; batch in nan_dump.pt): lower the learning rates or check the '
                        f"data; '{self.last_path}' is as it was last saved")

    # ---- log

    def log(self, losses, learning_rate, error=None):
        """A row of log.csv, and a line where log_interval is due. losses: {name: 0-d tensor}; error: of a
        validation."""
        while self.pending:                                          # nothing that was not checked is kept
            self.check_oldest()
        loss, norm = self.numbers
        numbers = [loss.new_tensor(value) if isinstance(value, float) else value for value in losses.values()]
        own = torch.stack([loss, *numbers])                          # of this process's part of the batch
        loss, *values = self.machine.mean(own).tolist()
        norm = float(norm)
        row = {'iter': self.total, 'stage': self.stage, 'loss': loss, 'grad_norm': norm,
               'learning_rate': learning_rate, 'train_seconds': round(self.train_seconds(), 2)}
        row.update(zip(losses, values))
        if error is not None:
            row[f'val_{self.score.lower().replace(" ", "_")}'] = error
        if self.iteration % self.settings.log_interval == 0:
            self.print_line(row, losses)
        if not self.machine.master:
            return
        try:
            if set(row) <= set(self.columns):
                with open(self.log_path, 'a', newline='') as file:
                    csv.DictWriter(file, self.columns, restval='').writerow(row)
            else:                                                    # a new stage has numbers of its own
                self.write_log([*self.rows_until(self.total - 1), row])
        except OSError as error:
            raise UserError(f"could not write '{self.log_path}': {error.strerror}; last.pt is as it was last "
                            'saved') from error
        self.to_wandb(row)

    def early_line(self):
        """Where log_interval is long, say after some seconds how long the stage will take. Compilation in the
        first iteration does not count."""
        if self.machine.compiled and self.iteration == self.last_iteration + 1:
            self.last_time = self.advanced
            self.last_iteration = self.iteration
        elif self.advanced - self.last_time > EARLY:
            ms = self.ms_per_iteration(self.advanced)
            self.say(f'{self.position()} {self.progress:.0%} | {ms:.1f} ms | eta {self.time_left(ms)}')

    def ms_per_iteration(self, now):
        return 1e3 * (now - self.last_time) / max(1, self.iteration - self.last_iteration)

    def time_left(self, ms):
        """Of the stage, as text, at `ms` per iteration."""
        self.is_early = False
        seconds = ms * (self.n_iters - self.iteration) / 1e3
        if self.settings.max_minutes:
            seconds = max(0, 60 * self.settings.max_minutes - self.stage_seconds - self.spent())
        return duration(seconds)

    def print_line(self, row, names):
        now = time.perf_counter()
        ms = self.ms_per_iteration(now)
        self.last_time = now
        self.last_iteration = self.iteration
        memory = self.machine.peak_memory_gb()
        memory = '' if memory is None else f' | mem {memory:.1f}G'
        parts = ' '.join(f'{name} {row[name]:.3g}' for name in names)
        rate = self.settings.batch_size / ms
        self.say(f'{self.position()} {self.progress:.0%} | loss {row["loss"]:.3g} | {parts} | {ms:.1f} ms | '
                 f'{rate:.2f}k samples/s{memory} | eta {self.time_left(ms)}')

    def position(self):
        stage = f'{self.stage} ' if self.n_stage > 1 else ''
        return f'{stage}iter {self.iteration}/{self.n_iters}'

    def train_seconds(self):
        return self.seconds_before + self.stage_seconds + self.spent()

    def start_wandb(self):
        """Whatever goes wrong there, training goes on. A run that goes on here goes on there, by its id."""
        try:
            with nobody_to_ask():
                import wandb
                settings = wandb.Settings(init_timeout=30)
                name = self.config['wandb_run_name'] or self.folder
                wandb.init(project=self.config['wandb_project'], name=name, config=self.config,
                           id=self.environment['wandb_id'], resume='allow', settings=settings)
            self.wandb = wandb
        except Exception as error:
            reason = ' '.join(str(error).split())[:80]
            self.say(f'wandb is off ({type(error).__name__}: {reason}); log.csv has it all')

    def to_wandb(self, row):
        if self.wandb is None:
            return
        try:
            self.wandb.log(row, step=row['iter'])
        except Exception as error:
            self.say(f'wandb stopped ({type(error).__name__}); log.csv has it all')
            self.wandb = None

    def end_wandb(self):
        if self.wandb is None:
            return
        try:
            self.wandb.finish()
        except Exception as error:
            self.say(f'wandb stopped ({type(error).__name__}); log.csv has it all')

    # ---- best and last

    def validate(self, error_of):
        """Take the validation error error_of(): keep the best weights, count patience. The first process does
        this for all. Returns the error."""
        error = None
        with self.machine.together():
            if self.machine.master:
                error = self.validate_here(error_of)
        error, self.finished = self.machine.gather((error, self.finished))[0]
        return error

    def validate_here(self, error_of):
        error = error_of()
        while self.pending:
            self.check_oldest()
        self.say(f'{self.position()} | validation {self.score} {error:.4f} (latent rollout)')
        if error < self.best:                                        # False for NaN
            self.best = error
            self.bad_evals = 0
            self.write(self.best_path, everything=False)
        else:
            self.bad_evals += 1
            self.finished = 0 < self.settings.patience <= self.bad_evals
        pause = time.perf_counter() - self.advanced                  # a validation is no part of the training
        self.last_time += pause
        self.clock += pause
        return error

    def save(self):
        """last.pt, with everything that a resume needs."""
        while self.pending:
            self.check_oldest()
        self.write(self.last_path, everything=True)

    def write(self, path, everything):
        if not self.machine.master:
            return
        state = {
            **self.about, 'config': self.config, 'environment': self.environment,
            'iter': self.total, 'stage': self.stage, 'stage_index': self.stage_index,
            'stage_iter': self.iteration,
            'before': self.before, 'best': self.best, 'bad_evals': self.bad_evals, 'finished': self.finished,
            'limits': [self.n_iters, self.settings.patience],
            'stage_seconds': self.stage_seconds + self.spent(), 'seconds_before': self.seconds_before,
            'train_seconds': self.train_seconds(), 'peak_memory_gb': self.machine.peak_memory_gb()}
        for name, part in self.parts.items():
            if isinstance(part, torch.nn.Module) or everything:
                many = isinstance(part, list)
                state[name] = [item.state_dict() for item in part] if many else part.state_dict()
        save_checkpoint(path, state)

    def end_if_stopped(self):
        """After a stage's loop: save and leave, if a signal has ended it. Else say so if the stage has led to
        nothing better than it began with."""
        if not self.stopped:
            best = self.best_of_stage()
            if best and best['stage_iter'] == 0 < self.iteration:
                self.say(f'stage {self.stage}: no improvement over its initial weights (validation '
                         f'{self.score} {self.best:.4f}); they are kept')
            return
        self.save()
        self.say(f"stopped by signal {self.stopped} at iteration {self.total}, saved '{self.last_path}': the "
                 'same command continues')
        self.end_wandb()
        if self.machine.ddp:
            os._exit(128 + self.stopped)
        sys.exit(128 + self.stopped)

    def finish(self):
        self.save()
        self.end_wandb()
        if math.isfinite(self.best):
            self.say(f'done: {self.total} iterations in {self.train_seconds() / 60:.1f} minutes | best '
                     f'validation {self.score} {self.best:.4f} | python eval.py --ckpt '
                     f'{shlex.quote(self.folder)}')
        else:
            self.say(f'done: {self.total} iterations and no finite validation error, so there is no '
                     f"'{self.best_path}': '{self.last_path}' holds the weights")
        self.machine.stop()


def unfinished(state):
    """What is left to do in the run of a checkpoint last.pt: 'iteration 300 of 4500'; '' if it is finished."""
    stages = state['config']['stages']
    stage = state['stage']
    done = state['stage_iter']
    n_iters, _ = state['limits']
    minutes = value_of(f'{stage}_stage.max_minutes', state['config']) or math.inf
    is_over = done >= n_iters or state['finished'] or state['stage_seconds'] >= 60 * minutes
    if is_over and state['stage_index'] == len(stages) - 1:
        return ''
    of_stage = f", stage {state['stage_index'] + 1} of {len(stages)} ({stage})" if len(stages) > 1 else ''
    return f'iteration {done} of {n_iters}{of_stage}'


def is_foreign(path):
    """Is this a config.json that no run has written, and that a new run would overwrite?"""
    try:
        with open(path, encoding='utf-8') as file:
            return 'out_dir' not in json.load(file)
    except FileNotFoundError:
        return False
    except (OSError, TypeError, ValueError):                         # it holds something else
        return True


def same(a, b):
    """Are two values equal? Numbers may differ by their rounding to float32."""
    return math.isclose(a, b, rel_tol=1e-5) if isinstance(a, float) and isinstance(b, float) else a == b


def flat(config):
    """The settings of a stage beside the plain keys: {'operator_stage': {'unroll': 8}} ->
    {'operator_stage.unroll': 8}"""
    result = {}
    for name, value in config.items():
        if isinstance(value, dict):
            result.update({f'{name}.{key}': inner for key, inner in value.items()})
        else:
            result[name] = value
    return result


def value_of(name, config):
    """The value of a key, 'unroll', or of a stage's, 'operator_stage.unroll', which is that of the plain key
    where the stage has none of its own."""
    stage, _, key = name.rpartition('.')
    plain_value = config.get(key)
    return (config.get(stage) or {}).get(key, plain_value) if stage else plain_value


def plain_but_tensors(about):
    """JSON types, but for tensors at the top of a part: {'data': {'seen': tensor, ...}, ...}"""
    result = {}
    for name, part in about.items():
        tensors = {key: value for key, value in part.items() if isinstance(value, torch.Tensor)}
        rest = {key: value for key, value in part.items() if key not in tensors}
        result[name] = {**plain(rest), **tensors}
    return result
