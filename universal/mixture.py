"""
A training of several equations: what train.py needs of their files, and the stage that trains them.

The key `mixture` names configs. Data, grid, latent and rollout keys are those of each config; the network and
the optimisation are those of the training. Another key can be set for all equations on the command line, but
not in the config of the mixture. Each of the `accumulation` micro-batches of an iteration is of one equation.
"""
import hashlib
import math
import os
from types import SimpleNamespace
from typing import NamedTuple

import torch
import torch.distributed as dist

import data
import equations
import losses
from files import fit
from files import open as files
from model import ModelConfig, on_meta
from runtime import configurator, extensions
from runtime.checkpoint import NETWORK
from runtime.configurator import UserError

from universal.model import MixtureConfig, build

TRAIN = os.path.join(extensions.HERE, 'train.py')
# sections of train.py whose keys all equations share, and further such keys
SECTIONS = ('run', 'optimisation', 'stages', 'system')
MOST = 8                               # times as many windows of an equation of few tokens, at most
SHARED = (*NETWORK, 'drop_path', 'checkpointing', 'data_dir', 'memory_gb', 'mixture')


# ---------------------------------------------------------------------------------------------
# keys

def shared_keys(config):
    """Names of the keys that all equations share."""
    of_sections = [name for heading in SECTIONS for name in configurator.section(TRAIN, heading)]
    return {name for name in (*of_sections, *SHARED) if name in config}


def member_keys(name, config, argv):
    """The keys of one equation, its parameters {'Nu': .01}: those of config/NAME.py (or a path), and shared
    ones of the training. Raises UserError."""
    path = name if name.endswith('.py') else os.path.join(extensions.HERE, 'config', f'{name}.py')
    shared = shared_keys(config)
    flags = []
    for word in argv:
        key = configurator.key_of(word)
        if key and '.' not in key and key not in shared:
            flags.append(word)
    defaults = {key: default for key, (default, _) in configurator.read_keys(TRAIN).items()}
    own, params, _, _ = extensions.resolve(defaults, [path, *flags], TRAIN, losses, equations)
    if own['operator_stage']:
        raise UserError(f'{path}: operator_stage has no effect in a mixture: set these keys without it')
    for stage in losses.STAGES:                                      # of the config's own training
        own.pop(f'{stage}_stage', None)
    return {**own, **{key: config[key] for key in shared}, 'arch': 'universal'}, params


def check_keys(config, argv):
    """Raise UserError for keys of a mixture that would have no effect: each equation has its own."""
    shared = shared_keys(config)
    typed = {configurator.key_of(word) for word in argv}
    plain = {key: default for key, (default, _) in configurator.read_keys(TRAIN).items()}
    defaults = configurator.with_groups(plain, {**losses.key_group(), **extensions.key_groups()})
    for key, default in defaults.items():
        if key not in shared and key not in typed and config[key] != default:
            raise UserError(f'{key} is a key of each equation: set it in their configs, or for all by --{key}')
    for key in config['mixture_stage']:
        if key not in shared:
            raise UserError(f'mixture_stage.{key}: each equation has its own: set --{key}, or change its config')
    if config['arch'] not in ('pure', 'universal'):
        raise UserError(f'arch={config["arch"]} has no effect in a mixture, whose arch is universal')


class Mixture:
    """The equations of a training. train.py uses its `sources`, `model_of`, `trajectories` and `build`."""
    build = staticmethod(build)

    def __init__(self, config, model_keys, argv):
        """config: the keys of train.py, to which the own keys of each equation are added as a dict. Raises
        UserError."""
        if config['stages'] != ('mixture',):
            raise UserError(f"stages={','.join(config['stages'])}: a mixture is trained by stages=mixture")
        paths = config['mixture']
        names = [os.path.splitext(os.path.basename(name))[0] for name in paths]
        for name in names:
            if names.count(name) > 1 or name in config or not name.isidentifier() or hasattr(dict, name):
                raise UserError(f'mixture: the name {name} of a config is there twice, or is no name of its own: '
                                'rename the file')
        check_keys(config, argv)
        if config['accumulation'] % len(names):
            raise UserError(f'accumulation={config["accumulation"]} must be a multiple of the {len(names)} '
                            'equations of the mixture: each micro-batch is of one of them')
        self.names = f'{len(names)} equations: {", ".join(names)}'
        self.model_keys = model_keys
        self.keys = {}
        self.sources_of = {}
        for name, path in zip(names, paths):
            own, params = member_keys(path, config, argv)
            keys = SimpleNamespace(**own)
            keys.memory_gb = own['memory_gb'] if own['memory_gb'] < 0 else own['memory_gb'] / len(names)
            found = files.find(keys.dataset, keys.data_dir, keys.data_path, params, keys.n_trajectories,
                               keys.resolution, named=True)
            vars(keys).update(fit.settled(own, params, found, argv))
            fit.check_strides(found[0], keys, keys.unroll)
            self.keys[name] = keys
            self.sources_of[name] = found
            differ = {key: value for key, value in vars(keys).items() if value != config.get(key)}
            config[name] = differ                                    # what the run records of this equation

    @property
    def sources(self):
        return [source for found in self.sources_of.values() for source in found]

    def model_of(self, run):
        """The MixtureConfig, and a model without memory. Raises UserError where keys do not fit the files, or
        the run that goes on."""
        configs = {name: ModelConfig.of(keys, self.model_keys, self.sources_of[name])
                   for name, keys in self.keys.items()}
        cfg = run.continued(MixtureConfig.of(configs))
        if run.trained_args:
            for name, there in run.trained_args['members'].items():
                fit.check_continued(configs[name], there, run.trained_path)
        return cfg, on_meta(cfg)

    def trajectories(self, sources, keys, device, processes=1):
        """sources: all of them, which exist now. -> MixtureTrajectories"""
        there = {source.path: source for source in sources}
        members = {}
        for name, own in self.keys.items():
            found = [there[source.path] for source in self.sources_of[name]]
            members[name] = data.Trajectories(found, own, device, processes)
        return MixtureTrajectories(members)


# ---------------------------------------------------------------------------------------------
# data

class MixtureTrajectories:
    """The trajectories of each equation, by name. In place of data.Trajectories."""

    def __init__(self, members):
        self.members = members
        identities = ' '.join(member.identity for member in members.values())
        self.identity = hashlib.sha256(identities.encode()).hexdigest()

    def text(self):
        return '; '.join(f'{name}: {member.text()}' for name, member in self.members.items())

    def normalise(self, model, keys):
        for name, member in self.members.items():
            member.normalise(model.members[name], member.keys)

    def check_units(self, model):
        for name, member in self.members.items():
            member.check_units(model.members[name])

    def windows(self, model, keys):
        members = {name: member.windows(model.members[name], member.keys)
                   for name, member in self.members.items()}
        return MixtureWindows(members)

    def sampler(self, windows, keys):
        """Of n equations, an iteration takes batch_size / n windows of the one with the most tokens. Of one with
        k times fewer tokens it takes k times as many, MOST times at most, so that all cost about as much."""
        n_tokens = {name: math.prod(of.model.cfg.token_grid) for name, of in windows.members.items()}
        fewest = keys.batch_size // len(n_tokens)
        samplers = {}
        for name, of in windows.members.items():
            times = min(MOST, max(n_tokens.values()) // n_tokens[name])
            samplers[name] = data.Sampler(of.n_windows, times * fewest, keys.seed)
        return MixtureSampler(samplers)

    def check_history(self, run):
        """As of one equation."""
        if run.state and run.state['data']['identity'] != self.identity:
            raise UserError(f"the data are not those that '{run.folder}' was trained on: put those back, or "
                            'use another --out_dir')
        if run.parent:
            parent = SimpleNamespace(state=None, parent=run.parent, parent_path=run.parent_path)
            for member in self.members.values():
                member.check_history(parent)

    def describe(self, run):
        """As of one equation, for all of them. members: the same of each, without `seen`."""
        found = {name: member.describe(run) for name, member in self.members.items()}
        seen = torch.cat([about.pop('seen') for about in found.values()]).unique()
        paths = {key: [path for about in found.values() for path in about[key]]
                 for key in ('paths', 'absolute', 'relative')}
        return {**paths, 'identity': self.identity, 'seen': seen, 'members': found}


class MixtureBatch(NamedTuple):
    name: str                              # of the member
    batch: data.Batch


class MixtureSampler:
    """Order of the windows of each equation: a data.Sampler for each. An index is {name: numbers}."""

    def __init__(self, samplers):
        self.samplers = samplers

    def next(self):
        return {name: sampler.next() for name, sampler in self.samplers.items()}

    def peek(self):
        return {name: sampler.peek() for name, sampler in self.samplers.items()}

    def state_dict(self):
        return {name: sampler.state_dict() for name, sampler in self.samplers.items()}

    def load_state_dict(self, state):
        for name, sampler in self.samplers.items():
            sampler.load_state_dict(state[name])


class MixtureWindows:
    """Windows of all equations. In place of data.Windows."""

    def __init__(self, members):
        self.members = members                                       # {name: data.Windows}

    def batches(self, index, iteration, rank=0, world=1, n_micro=1, following=None):
        """The global batch of windows {name: numbers}, in n_micro micro-batches, as many of each equation.
        Yields MixtureBatch."""
        turns = n_micro // len(self.members)
        for name, windows in self.members.items():
            for batch in windows.batches(index[name], iteration, rank, world, turns):
                yield MixtureBatch(name, batch)

    def row_names(self, index):
        """For a message: some rows of each equation."""
        return [f'{name} {row}' for name, windows in self.members.items()
                for row in windows.row_names(index[name])[:2]]


# ---------------------------------------------------------------------------------------------
# the stage

class MixtureStage(losses.Stage):
    """The operator stage of every member. Its loss is the mean of the logarithms of their losses, so that the
    blocks serve an equation with an error of 1e-4 as well as one with 1e-2. The validation error is the
    geometric mean."""

    def __init__(self, model, settings):
        torch.nn.Module.__init__(self)                               # the stages of members do the rest
        if not hasattr(model, 'members'):
            raise UserError('stages=mixture trains several equations: name their configs by the key mixture')
        self.model = model
        self.settings = settings
        self.stages = torch.nn.ModuleDict()
        for name, member in model.members.items():
            own = SimpleNamespace(**{**vars(settings), **getattr(settings, name)})
            self.stages[name] = losses.OperatorStage(member, own)

    def forward(self, batch, progress):
        """batch: MixtureBatch. The terms are the losses of the equations."""
        loss, _ = self.stages[batch.name](batch.batch, progress)
        mean = loss.detach().clone()
        if dist.is_initialized():
            dist.all_reduce(mean)
            mean /= dist.get_world_size()
            loss = loss + 0. * sum(p.sum() for p in self.parameters() if p.requires_grad)      # DDP waits for all
        log = loss / mean + mean.log() - 1                           # of the mean over processes
        return log, {batch.name: loss.detach() * len(self.stages)}

    def parts(self, model, trajectories):
        return [(model.members[name], stage, trajectories.members[name])
                for name, stage in self.stages.items()]
