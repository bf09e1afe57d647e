"""
Extensions are folders that the core never imports: points/, probabilistic/, physics/, peers/. Each registers
what it brings when it is imported (model.ENCODERS, NETWORKS, STEPPERS; losses.LOSSES, STAGES, EXTENSIONS).

This table says which word of a configuration needs which folder. train.py and model.load import what a
configuration asks for, so a checkpoint finds its parts. A key that only an extension reads stands in
FOLDER/keys.py, in the form of train.py.
"""
import importlib
import os

from runtime.configurator import read_keys, section

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FOLDERS = ('points', 'probabilistic', 'physics', 'peers')
STAGES = ('diff_residual', 'consistency_distill', 'ensemble', 'steady_prior')        # of probabilistic/
# {key: {value: the folder that it needs}}
VALUES = {'encoder': {'points': 'points'},
          'arch': {'fno': 'peers', 'unet': 'peers'},
          'stages': dict.fromkeys(STAGES, 'probabilistic'),
          'steppers': dict.fromkeys(STAGES, 'probabilistic')}
# {key: the folder that it needs, where it is not 0}
KEYS = {'num_queries': 'points', 'cache_copies': 'probabilistic', 'lambda_conservation': 'physics',
        'lambda_boundary': 'physics', 'lambda_divergence': 'physics', 'lambda_residual': 'physics'}


def load(config):
    """Import the extensions that a configuration asks for. config: a dict of keys, in which dicts hold the
    keys of one stage, or of model arguments."""
    for name, value in config.items():
        if isinstance(value, dict):
            load(value)
        if name in KEYS and value:
            importlib.import_module(KEYS[name])
        for word in (value,) if isinstance(value, str) else value if name in VALUES else ():
            if word in VALUES.get(name, ()):
                importlib.import_module(VALUES[name][word])


def key_groups():
    """The keys of all extensions, {heading: {name: (default, comment)}}."""
    groups = {}
    for folder in FOLDERS:
        path = os.path.join(HERE, folder, 'keys.py')
        if os.path.exists(path):
            groups[f'{folder}/'] = read_keys(path)
    return groups


def model_keys():
    """The keys of extensions that shape the network: those of the section `model` of a keys.py."""
    names = []
    for folder in FOLDERS:
        path = os.path.join(HERE, folder, 'keys.py')
        if os.path.exists(path):
            names += section(path, 'model')
    return names
