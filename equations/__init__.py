"""
The equations, one file each.

equations/navier_stokes.py is the equation 'navier-stokes'. The file holds the numerical solver, the initial
fields of its data and the residual of the equation, and it ends with `ENTRY = PDE(...)`, which tells the rest
of the program all it needs. common.py and derivatives.py hold what several equations share.

To add an equation, add one file. An entry needs the names of its fields and parameters, its domain and the
name of its data file. All other fields default to no symmetry, no conserved quantity and no solver. Then

    python train.py --dataset=NAME           trains on it; its parameters are keys (--nu, --beta)
    python data.py make NAME --n 1000        makes its data, if it has a solver and initial fields

Training transforms the data by the symmetries that an entry declares, without checking them.
tests/equations/test_entries.py checks the declarations of every entry against its solver.

A solver takes initial fields u0 (B, *X[, C]) in the cells of a uniform grid (no channel axis if there is one
field), times t (T,) in seconds that start at 0 and increase, and the parameters as numbers, by name in lower
case. It returns the fields at these times, (B, T, *X[, C]), in float64 and on the device of u0. Where a
device has no float64, it runs on the CPU. u0 may be an array or a tensor.
"""
import difflib
import importlib
import itertools
import math
import os
import pkgutil
import re
from dataclasses import dataclass, field
from typing import Callable, NamedTuple

import torch

from runtime.configurator import UserError

HELPERS = ('common', 'derivatives', 'lattice')     # modules of this folder that are no equations


class Record(NamedTuple):
    """Numbers of every frame that a solver records beside the fields, such as forces."""
    shape: tuple                    # of those of a frame
    names: tuple                    # along the last axis
    of_fields: Callable             # (fields (T, *X, C), re=..) -> (T, *shape), as they follow from fields


@dataclass(frozen=True)
class PDE:
    """What the program knows of an equation."""
    fields: tuple                   # names of the channels, in their order: ('density', 'pressure', 'Vx')
    params: dict                    # parameters {'Nu': .01}: their names in data files, and default values
    space: tuple                    # the domain: ((low, high), ...), one pair per axis
    boundary: str                   # 'periodic', 'wall' or 'open'
    file: str                       # name of the published data file; {Nu} stands for the parameter's value
    layout: str = 'tensor'          # layout of the file, a key of files.layouts.LAYOUTS
    solve: Callable = None          # (u0 (B, *X[, C]), t=.., nu=..) -> (B, T, *X[, C]); None: no solver
                                    # of a steady equation: (coefficient (B, *X), beta=..) -> (B, *X)
    cheaper: tuple = ()             # settings of `solve` that are faster and less accurate, a dict each
    initial: Callable = None        # (n, cells, seed, first) -> initial fields (n, *cells[, C]), an array
    cells: tuple = (1024,)          # default number of cells along each axis of the data that are made
    frames: int = 201               # number of frames of a trajectory,
    dt: float = .01                 # and the time between them in seconds
    static: tuple = ()              # fields that do not change in time and are not predicted: a coefficient
    domain: str = ''                # static field that is positive inside an irregular domain; outside of it, the
                                    # fields that are not static are 0
    conserved: tuple = ()           # fields whose integral over the domain does not change
    velocity: tuple = ()            # the velocity field along each axis; it is odd under a reflection
    pseudo: tuple = ()              # fields that are odd under every reflection, such as the vorticity
    mirror: bool | tuple = False    # reflections x -> -x are symmetries: along every axis, or along these
    translation: bool = True        # on a periodic domain, translations are symmetries: no force depends on x
    diagonal: tuple = ()            # if not: the direction, such as (1, -1), in which they are symmetries
    symmetry: Callable = None       # more symmetries: (u (.., *X), element 0 .. 3, shift) -> u (.., *X); `shift`
                                    # is one along `diagonal`, after the element
    turns_on: int = 1               # these need a square grid whose side is a multiple of so many points
    galilean: float = 0.            # speed of a moving frame per unit of mean velocity; 0: no such symmetry
    positive: tuple = ()            # fields that are never negative
    test: str = 'first'             # which tenth of the rows is the test split: 'first' or 'last'
    steady: bool = False            # no time: the equation maps its first field to its second (see `start`)
    walls: dict = field(default_factory=dict)    # {field: (low, high)}: conditions at the ends of every
                                    # axis, (a, b, g) for a u + b du/dn = g with the outward derivative du/dn
    incompressible: bool = False    # the velocity is free of divergence
    dissipative: bool = False       # the mean of velocity² (of u² for a scalar) never grows
    records: dict = field(default_factory=dict)      # {name: Record}: the solver puts arrays (B, T, *shape) into
                                    # its argument `records`
    residual: Callable = None       # (u0, u1 (B, *X, C), dt (B,), {'nu': (B,)}, axes [(X,)]) -> residual of
                                    # the equation between two frames, (B, *X, fields that are not static)
    note: str = ''                  # printed when a file of this equation is opened

    def __post_init__(self):
        if self.symmetry and self.galilean:
            raise UserError('an entry with a moving frame (galilean) cannot have a symmetry of its own: boosts '
                            'are those of untransformed rows')

    @property
    def axes(self):
        """Number of space axes."""
        return len(self.space)

    @property
    def low(self):
        """Lower corner of the domain, one number per axis."""
        return tuple(float(low) for low, high in self.space)

    @property
    def length(self):
        """Extent of the domain, one number per axis."""
        return tuple(float(high - low) for low, high in self.space)

    @property
    def periodic(self):
        return self.boundary == 'periodic'

    @property
    def mirrored(self):
        """For each axis, whether a reflection along it is a symmetry."""
        axes = range(self.axes)
        return tuple(self.mirror if isinstance(self.mirror, bool) else axis in self.mirror for axis in axes)

    @property
    def translation_invariant(self):
        """Are translations along every axis symmetries of the equation and its domain?"""
        return self.periodic and self.translation

    def start(self, n, cells, seed=0, first=0):
        """Initial fields of the trajectories first .. first + n - 1, (n, *cells, C) float64.

        A steady equation maps a coefficient to a solution. Its trajectories have two frames of two fields:
        the coefficient and 0, then the coefficient and the solution.
        """
        u0 = torch.from_numpy(self.initial(n, cells, seed, first))
        if self.steady:
            return torch.stack([u0, torch.zeros_like(u0)], -1)
        return u0[..., None] if len(self.fields) == 1 else u0

    def solution(self, u0, params, t, records=None, **settings):
        """The solver's fields at the times t, (B, T, *X, C) float64, from u0 (B, *X, C). params:
        {name: number}. The solution of a steady equation is the same at every time after the first. records: a
        dict that takes what the entry's `records` name, {name: (B, T, *shape)}. settings: of the solver, such as
        those of `cheaper`. Raises UserError if the equation has no solver, and the errors of the solver."""
        if self.solve is None:
            raise UserError(f'the equation of {self.file} has no built-in solver, only files')
        values = {**{name.lower(): params[name] for name in self.params}, **settings}
        if self.records:
            values['records'] = {} if records is None else records
        if self.steady:
            solution = self.solve(u0[..., 0], **values)
            start = u0.to(solution)
            solved = torch.stack([start[..., 0], solution], -1)
            return torch.stack([start, *[solved] * (len(t) - 1)], 1)
        if len(self.fields) > 1:
            return self.solve(u0, t=t, **values)
        return self.solve(u0[..., 0], t=t, **values)[..., None]

    def released(self, params):
        """Name of the published file: 1D_Burgers_Sols_Nu0.01.hdf5. PDEBench writes 1e-08 as 1.e-8."""
        texts = {name: str(float(value)) for name, value in params.items()}
        for name, text in texts.items():
            texts[name] = re.sub(r'^(\d)e-0(\d)$', r'\1.e-\2', text)
        return self.file.format(**texts)

    def shape(self, resolution):
        """Number of cells along each axis: `resolution` along the one with the fewest, or the entry's own where it
        is 0."""
        return tuple(n * resolution // min(self.cells) for n in self.cells) if resolution else self.cells

    def made(self, params, n, resolution=0, seed=0):
        """Name of a file of n trajectories that the solver makes: 1D_Burgers_Sols_Nu0.01_N1000.hdf5."""
        name = self.file.format(**{name: f'{value:g}' for name, value in params.items()})
        stem, ending = os.path.splitext(name)
        if resolution and self.shape(resolution) != self.cells:
            stem += f'_X{resolution}'
        stem += f'_N{n}'
        return f'{stem}_seed{seed}{ending}' if seed else f'{stem}{ending}'


def names():
    """Names of all equations, one for each file of this folder, without importing them."""
    modules = [module.name for module in pkgutil.iter_modules(__path__)]
    return sorted(name.replace('_', '-') for name in modules if name not in HELPERS)


def entry(name):
    """The PDE of an equation. Imports this equation's file only. Raises UserError for an unknown name, and
    for a file without an ENTRY."""
    known = names()
    if name not in known:
        close = difflib.get_close_matches(str(name).replace('_', '-'), known, 1)
        hint = f" (did you mean '{close[0]}'?)" if close else ''
        raise UserError(f"unknown equation '{name}'{hint}: there are {', '.join(known)}. To add one, add a "
                        'file to equations/')
    module = name.replace('-', '_')
    pde = getattr(importlib.import_module(f'{__name__}.{module}'), 'ENTRY', None)
    if not isinstance(pde, PDE):
        raise UserError(f'equations/{module}.py must end with ENTRY = PDE(...), from equations import PDE')
    return pde


def entries():
    """{name: PDE} of all equations. Imports all of their files."""
    return {name: entry(name) for name in names()}


def parameter_keys(name=None):
    """The keys of the parameters of an equation, or of all equations: {'nu': None, 'beta': None}. None stands
    for the default of the entry."""
    chosen = [entry(name)] if name else entries().values()
    return {key.lower(): None for pde in chosen for key in pde.params}


def parameters(name, values):
    """The parameters of an equation, {'Nu': .01}, from the values of keys, {'nu': .01}; several values of a
    parameter are a tuple. A key that is None or left out stands for the entry's default. Raises UserError for a
    value of a key that the equation does not have, and for one that is not a positive finite number."""
    params = entry(name).params
    known = [key.lower() for key in params]
    for key, value in values.items():
        if value is not None and key not in known:
            has = f"it has {', '.join(known)}" if known else 'it has none'
            raise UserError(f'{name} has no parameter {key}; {has}')
    result = {}
    for param, default in params.items():
        value = values.get(param.lower())
        if value is None:
            value = default
        values_of_param = value if isinstance(value, tuple) and value else (value,)
        for number in values_of_param:
            is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
            if not is_number or not 0 < number < math.inf:
                raise UserError(f'{param.lower()}={number} must be a positive finite number')
        if len(set(values_of_param)) < len(values_of_param):
            raise UserError(f'{param.lower()}={value} names a value twice')
        result[param] = tuple(map(float, value)) if isinstance(value, tuple) else float(value)
    return result


def each_value(params):
    """Parameters of which some may have several values -> a dict of numbers for each combination."""
    several = [value if isinstance(value, tuple) else (value,) for value in params.values()]
    return [dict(zip(params, values)) for values in itertools.product(*several)]
