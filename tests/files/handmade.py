"""Hand-made files of every layout, and equations that are known for the length of a test."""
import h5py
import numpy as np

import equations
from conftest import centres, noise
from files.layouts import GAS


def know(set_attribute, **new):
    """Make the package `equations` know these entries, or these in place of its own. set_attribute:
    monkeypatch.setattr, or setattr in a process of its own."""
    entry = equations.entry
    names = equations.names()
    entries = equations.entries
    set_attribute(equations, 'entry', lambda name: new[name] if name in new else entry(name))
    set_attribute(equations, 'names', lambda: list(dict.fromkeys([*names, *new])))
    set_attribute(equations, 'entries', lambda: {**entries(), **new})


def change(path, key, values=None, **options):
    """Replace a dataset of a file, or remove it."""
    with h5py.File(path, 'a') as file:
        del file[key]
        if values is not None:
            file.create_dataset(key, data=values, **options)


def tensor(path, u=None, x=None, t=None, attrs=None, axes=(), **options):
    """A file of the layout 'tensor', of Burgers unless told otherwise. axes: coordinates where there are
    several."""
    u = noise() if u is None else u
    with h5py.File(path, 'w') as file:
        file.create_dataset('tensor', data=u, **options)
        axes = axes or [centres(u.shape[-1]) if x is None else x]
        for letter, axis in zip('xy', axes):
            file[f'{letter}-coordinate'] = axis
        file['t-coordinate'] = np.arange(u.shape[1] + 1) * .01 if t is None else t
        file.attrs.update({'Nu': .01} if attrs is None else attrs)
    return str(path)


def groups(path, u, axes, t, config=None, **options):
    with h5py.File(path, 'w') as file:
        for row, values in enumerate(u):
            file.create_dataset(f'{row:04d}/data', data=values, **options)
            for letter, axis in zip('xyz', axes):
                file[f'{row:04d}/grid/{letter}'] = axis.astype(np.float32)
            file[f'{row:04d}/grid/t'] = t.astype(np.float32)
            if config:
                file[f'{row:04d}'].attrs['config'] = config
    return path


REACTION = noise(12, 5, 8, 6, 2)


def reaction(path, u=REACTION, t=None, **options):
    """A file of diffusion-reaction, one group a trajectory."""
    t = np.linspace(0, 5, u.shape[1]) if t is None else t
    return groups(path, u, [centres(8, -1), centres(6, -1)], t, **options)


def gas(path, u, axes, attrs, n_times=None, **options):
    """A file with one array a field."""
    n_times = u.shape[1] + 1 if n_times is None else n_times
    with h5py.File(path, 'w') as file:
        for channel in range(u.shape[-1]):
            file.create_dataset(GAS[channel], data=u[..., channel], **options)
        for letter, axis in zip('xyz', axes):
            file[f'{letter}-coordinate'] = axis.astype(np.float32)
        file['t-coordinate'] = np.arange(n_times) * .01
        file.attrs.update(attrs)
    return str(path)


TUBE = noise(12, 5, 16, 3)
SLIPPERY = {'eta': .01, 'zeta': .01}


def tube(path, u=TUBE, attrs=SLIPPERY, **options):
    """A file of compressible flow in one dimension."""
    return gas(path, u, [centres(16, -1)], attrs, **options)


NU = noise(12, 8, 6)
STEADY = noise(12, 1, 8, 6, seed=1)


def darcy(path, nu=NU, solution=STEADY, attrs=(('beta', 1.),)):
    """A file of the layout 'steady'."""
    with h5py.File(path, 'w') as file:
        file['nu'] = nu
        file['tensor'] = solution
        file['x-coordinate'] = centres(8)
        file['y-coordinate'] = centres(6)
        file.attrs.update(attrs)
    return path
