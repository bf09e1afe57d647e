"""
Extensions are folders that the core never imports: points/, probabilistic/, physics/, peers/. Each registers
what it brings when it is imported (model.ENCODERS, NETWORKS, STEPPERS; losses.LOSSES, STAGES, EXTENSIONS).

This table says which word of a configuration needs which folder. train.py and model.load import what a
configuration asks for, so a checkpoint finds its parts. A key that only an extension reads stands in
FOLDER/keys.py, in the form of train.py.
"""
import importlib
import os

from runtime import configurator
from runtime.configurator import UserError

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FOLDERS = ('points', 'probabilistic', 'physics', 'peers', 'universal')
STAGES = ('diff_residual', 'consistency_distill', 'ensemble', 'steady_prior')        # of probabilistic/
# {key: {value: the folder that it needs}}
VALUES = {'encoder': {'points': 'points'},
          'arch': {'fno': 'peers', 'unet': 'peers', 'transolver': 'peers', 'pdet': 'peers', 'universal': 'universal'},
          'stages': {**dict.fromkeys(STAGES, 'probabilistic'), 'mixture': 'universal'},
          'steppers': dict.fromkeys(STAGES, 'probabilistic')}
# {key: the folder that it needs, where it is not 0}
KEYS = {
    'mixture': 'universal',
    'num_queries': 'points',
    'cache_copies': 'probabilistic',
    'lambda_conservation': 'physics',
    'lambda_boundary': 'physics',
    'lambda_divergence': 'physics',
    'lambda_residual': 'physics'}
# Model arguments that are no keys: see model.ModelConfig
FACTS = set('pde fields params seen_params low length boundary translation diagonal static positive conserved domain '
            'velocity galilean dt other_dt grid first token_grid steppers'.split())


def load(config):
    """Import the extensions that a configuration asks for. config: a dict of keys, in which dicts hold the
    keys of one stage, or of model arguments."""
    for name, value in config.items():
        if isinstance(value, dict):
            load(value)
        if name in KEYS and value:
            importlib.import_module(KEYS[name])
        if name not in VALUES:
            continue
        words = [value] if isinstance(value, str) else value
        for word in words:
            if word in VALUES[name]:
                importlib.import_module(VALUES[name][word])


def mixture(config, model_keys, argv):
    """What train.py trains instead of one equation, if the key `mixture` names several: a
    universal.mixture.Mixture."""
    if not config['mixture']:
        return None
    return importlib.import_module('universal.mixture').Mixture(config, model_keys, argv)


def key_groups():
    """The keys of all extensions, {heading: {name: (default, comment)}}."""
    return {f'extension {folder}/': configurator.read_keys(path) for folder, path in key_files().items()}


def model_keys():
    """The keys of extensions that shape the network: those of the section `model` of a keys.py."""
    return [name for path in key_files().values() for name in configurator.section(path, 'model')]


def with_model_defaults(args, path):
    """The model arguments of the checkpoint `path`, with the default of each key that is newer. Raises
    UserError for an argument that this code does not know."""
    defaults = model_defaults()
    unknown = sorted(args.keys() - defaults.keys() - FACTS)
    if unknown:
        raise UserError(f"'{path}' has model arguments that this code does not know: {', '.join(unknown)}")
    return {**defaults, **args}


def model_defaults():
    """Defaults of all keys that shape the network, of train.py and of extensions, {name: default}."""
    train = os.path.join(HERE, 'train.py')
    groups = {'train.py': configurator.read_keys(train), **key_groups()}
    names = {*configurator.section(train, 'model'), *model_keys()}
    return {name: default for keys in groups.values() for name, (default, _) in keys.items() if name in names}


def key_files():
    """{folder: its keys.py}, for the extensions that have one."""
    paths = {folder: os.path.join(HERE, folder, 'keys.py') for folder in FOLDERS}
    return {folder: path for folder, path in paths.items() if os.path.exists(path)}


def check_stage_settings(config, argv, stages):
    """Raise UserError for settings of a stage that would have no effect: given on the command line for a stage
    that is not trained, or weights of losses for a stage that has none."""
    for argument in argv:
        name, dot, _ = argument.lstrip('-').replace('-', '_').partition('_stage.')
        if dot and name not in config['stages']:
            raise UserError(f'{argument} has no effect: {name} is not in stages={",".join(config["stages"])}')
    for name in config['stages']:
        for key in config[f'{name}_stage']:
            if key.startswith('lambda_') and not stages[name].has_losses:
                raise UserError(f'{name}_stage.{key} has no effect: the loss of this stage is its own')


# Keys of the section `run` and `data` of train.py of which a stage may have its own value
OF_STAGES = ['eval_interval', 'log_interval', 'save_interval', 'seed', 'early_bias', 'symmetries']


def resolve(defaults, argv, source, losses, equations):
    """
    All keys of train.py (`source`, whose globals are `defaults`): its own, the weights of losses.LOSSES,
    those of extensions and the parameters of the equation. Imports the extensions that they ask for.

    Returns the resolved keys, the parameters of the equation {'Nu': .01}, the defaults of the keys, and the
    names of those that shape the network. Raises UserError.
    """
    groups = {**losses.key_group(), **key_groups()}
    of_model = configurator.section(source, 'model') + model_keys()
    of_stages = [*OF_STAGES, *configurator.section(source, 'latent steps'),
                 *configurator.section(source, 'optimisation'),
                 *(name for group in groups.values() for name in group if name not in of_model)]
    known = list(dict.fromkeys([*losses.STAGES, *STAGES, 'mixture']))
    stages = {f'{name}_stage': of_stages for name in known}
    config = configurator.configure(defaults, argv, source, groups, stages, equations.parameter_keys)
    load(config)
    for name in config['stages']:
        configurator.among('stages', name, known)
    if not config['stages'] or len(set(config['stages'])) < len(config['stages']):
        raise UserError(f'stages={",".join(config["stages"])} must name at least one stage, and none twice')
    check_stage_settings(config, argv, losses.STAGES)
    dataset = config['dataset']
    given = {key: config[key] for key in equations.parameter_keys(dataset)}
    params = equations.parameters(dataset, given)
    config.update({name.lower(): value for name, value in params.items()})
    return config, params, configurator.with_groups(defaults, groups), of_model
