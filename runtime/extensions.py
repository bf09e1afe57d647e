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
CHOICES = ('encoder', 'arch', 'stages', 'steppers')                  # keys whose values are words
WORDS = {
    'points': 'points', 'num_queries': 'points',
    'fno': 'peers', 'unet': 'peers',
    **dict.fromkeys((*STAGES, 'cache_copies'), 'probabilistic'),
    **dict.fromkeys(('lambda_conservation', 'lambda_boundary', 'lambda_divergence', 'lambda_residual'),
                    'physics')}


def load(config):
    """Import the extensions that a configuration asks for, by the value of a choice (encoder='points') or by
    a key that is not 0 (num_queries=256). config: a dict of keys, in which dicts hold the keys of stages."""
    for name, value in config.items():
        if isinstance(value, dict):
            load(value)
            continue
        words = [name] if value else []
        if name in CHOICES:
            words = [value] if isinstance(value, str) else value
        for word in words:
            if word in WORDS:
                importlib.import_module(WORDS[word])


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
