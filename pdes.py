"""
One entry an equation: everything that the program may ask of it.

To add an equation, write one entry into PDES below. What it needs is the name of its fields and parameters,
its domain and the name of its data file; all else has a default that promises nothing (no conserved quantity,
no symmetry, no solver). Then `--dataset=NAME` trains on it, its parameters are keys in lower case (`--nu`,
`--beta`), and `python solvers.py NAME` makes its data if the entry names a solver and initial conditions;
both are functions that solvers.py names. An entry that promises a symmetry is believed: training then
transforms the data by it. tests/test_pdes.py checks the promises of every entry that has a solver against
that solver.

Nothing but this file, solvers.py and numerics/ (and the configs and tests) names an equation.
"""
import math
import os
import re
from dataclasses import dataclass, field
from typing import Callable

import torch

import solvers
from numerics.diffusion_sorption import DIFFUSION
from runtime.configurator import UserError

# What holds at a wall: (a, b, g) of a u + b du/dn = g, with the outward derivative du/dn.
NO_FLUX = (0., 1., 0.)
ZERO = (1., 0., 0.)


@dataclass(frozen=True)
class PDE:
    fields: tuple                   # names of the channels in their order: ('density', 'pressure', 'Vx')
    params: dict                    # file attributes that the operator is told, and their default values
    space: tuple                    # ((low, high), ...), one pair an axis
    boundary: str                   # 'periodic', 'wall' or 'open'
    file: str                       # name of the released file, filled in with the parameters
    layout: str = 'tensor'          # how the file is laid out: a key of files.LAYOUTS
    solve: Callable = None          # (u0 (B, *X[, C]), t=.., nu=..) -> (B, T, *X[, C]); None: files only;
                                    # of a steady equation: (coefficient (B, *X), beta=..) -> (B, *X)
    initial: Callable = None        # (n, cells, seed, first) -> (n, *cells[, C])
    cells: tuple = (1024,)          # what the built-in solver stores along each axis
    frames: int = 201               # how many frames it stores,
    dt: float = .01                 # and how many seconds lie between them
    static: tuple = ()              # fields that stay as they are and are not scored: a coefficient, a force
    conserved: tuple = ()           # fields whose integral stays
    velocity: tuple = ()            # name of the velocity field along each axis: it is odd under a reflection
    pseudo: tuple = ()              # fields that are odd under every reflection, as the vorticity is
    mirror: bool = False            # is x -> -x a symmetry, if these two change their signs?
    translation: bool = True        # are all places of a periodic domain alike? Not where a force acts in one
    drift: tuple = ()               # where places differ: a direction (1, -1) in which they are alike
    symmetry: Callable = None       # (u (.., *X), element 0 .. 3, shift) -> the same: a group of its own
    turns_on: int = 1               # its elements take squares of a multiple of so many points an axis
    galilean: float = 0.            # speed of a moving frame per unit of mean velocity; 0: no such symmetry
    positive: tuple = ()            # fields that cannot be negative
    test: str = 'first'             # which tenth of the rows is the test split: 'first' or 'last'
    steady: bool = False            # has it no time, but maps its first field to its second? (see `start`)
    walls: dict = field(default_factory=dict)    # field: what holds at the low and high walls of every axis
    incompressible: bool = False    # is its velocity free of divergence?
    dissipative: bool = False       # can <velocity²> (of a scalar that is carried: <u²>) not grow?
    residual: Callable = None       # (u0, u1 (B, *X, C), dt (B,), {'nu': (B,)}, coordinates [(X,)]) -> what
                                    # is left of the equation, (B, *X, fields that are not static)
    note: str = ''                  # what is said when a file of it is opened

    @property
    def axes(self):
        """Number of space axes."""
        return len(self.space)

    @property
    def low(self):
        """Lower corner of the domain, one number an axis."""
        return tuple(float(low) for low, high in self.space)

    @property
    def length(self):
        """Extent of the domain, one number an axis."""
        return tuple(float(high - low) for low, high in self.space)

    @property
    def periodic(self):
        return self.boundary == 'periodic'

    @property
    def translates(self):
        """May the domain be rotated along every axis, and may tokens or a frame move through it?"""
        return self.periodic and self.translation

    def start(self, n, cells, seed=0, first=0):
        """Initial fields of trajectories first .. first + n, (n, *cells, C) float64.

        A steady equation, which maps a coefficient to a solution, is told as a trajectory of two frames and
        two fields: at first the coefficient and 0, then the coefficient and the solution.
        """
        u0 = torch.from_numpy(self.initial(n, cells, seed, first))
        if self.steady:
            return torch.stack([u0, torch.zeros_like(u0)], -1)
        return u0[..., None] if len(self.fields) == 1 else u0

    def solution(self, u0, params, t):
        """Fields that start as u0 (B, *X, C), at the times t: (B, T, *X, C) float64. params: {name: number}.
        The solution of a steady equation is there at every time after the first. Raises UserError where the
        equation has no solver, and what the solver raises."""
        if self.solve is None:
            raise UserError(f'there is no built-in solver for {self.file}: only its files have solutions')
        values = {name.lower(): params[name] for name in self.params}
        if self.steady:
            solution = self.solve(u0[..., 0], **values)
            start = u0.to(solution)
            solved = torch.stack([start[..., 0], solution], -1)
            return torch.stack([start, *[solved] * (len(t) - 1)], 1)
        if len(self.fields) > 1:
            return self.solve(u0, t=t, **values)
        return self.solve(u0[..., 0], t=t, **values)[..., None]

    def released(self, params):
        """Name of the released file: 1D_Burgers_Sols_Nu0.01.hdf5. PDEBench writes 1e-08 as 1.e-8."""
        texts = {name: str(float(value)) for name, value in params.items()}
        for name, text in texts.items():
            texts[name] = re.sub(r'^(\d)e-0(\d)$', r'\1.e-\2', text)
        return self.file.format(**texts)

    def shape(self, resolution):
        """Cells along each axis, if there are to be `resolution` on every one; 0: as many as PDEBench has."""
        return (resolution,) * self.axes if resolution else self.cells

    def made(self, params, n, resolution=0):
        """Name of the built-in solver's file of n trajectories: 1D_Burgers_Sols_Nu0.01_N1000.hdf5."""
        name = self.file.format(**{name: f'{value:g}' for name, value in params.items()})
        stem, ending = os.path.splitext(name)
        if resolution and self.shape(resolution) != self.cells:
            stem += f'_X{resolution}'
        return f'{stem}_N{n}{ending}'


PDES = {
    'burgers': PDE(
        fields=('u',),
        params={'Nu': .01},
        space=((0, 1),),
        boundary='periodic',
        file='1D_Burgers_Sols_Nu{Nu}.hdf5',
        solve=solvers.burgers,
        initial=solvers.waves,
        conserved=('u',),
        velocity=('u',),
        mirror=True,
        galilean=1.,
        dissipative=True,
        residual=solvers.burgers_residual),

    # PDEBench's first files lack the 1/2 of the flux. They have the names of the corrected ones, so that a
    # folder of their own keeps the two apart.
    'burgers-old': PDE(
        fields=('u',),
        params={'Nu': .01},
        space=((-1, 1),),
        boundary='periodic',
        file=os.path.join('old', '1D_Burgers_Sols_Nu{Nu}.hdf5'),
        solve=solvers.burgers_old,
        initial=solvers.waves,
        conserved=('u',),
        velocity=('u',),
        mirror=True,
        galilean=2.,
        dissipative=True,
        residual=solvers.burgers_old_residual,
        note='of the old generation (x in (-1, 1)): it solves u_t + (u²)_x, without the 1/2 of the corrected '
             'files; figures on the two are not comparable'),

    'advection': PDE(
        fields=('u',),
        params={'beta': .4},
        space=((0, 1),),
        boundary='periodic',
        file='1D_Advection_Sols_beta{beta}.hdf5',
        solve=solvers.advection,
        initial=solvers.waves,
        conserved=('u',),
        dissipative=True,
        residual=solvers.advection_residual),

    # PDEBench's own files freeze after about t = .25 (float32 steps of 2.4e-7).
    'reaction-diffusion': PDE(
        fields=('u',),
        params={'Nu': .5, 'rho': 1.},
        space=((0, 1),),
        boundary='periodic',
        file='ReacDiff_Nu{Nu}_Rho{rho}.hdf5',
        solve=solvers.reaction_diffusion,
        initial=solvers.unit_waves,
        frames=101,
        mirror=True,
        positive=('u',),
        residual=solvers.reaction_diffusion_residual),

    # What is conserved, the sum of dissolved and adsorbed solute, is no field, and it enters at the walls:
    # u = 1 at the left one, u = -D du/dx at the right one.
    'diffusion-sorption': PDE(
        fields=('u',),
        params={},
        space=((0, 1),),
        boundary='wall',
        file='1D_diff-sorp_NA_NA.h5',
        layout='groups',
        solve=solvers.diffusion_sorption,
        initial=solvers.constants,
        frames=101,
        dt=5.,
        positive=('u',),
        walls={'u': ((1., 0., 1.), (1., DIFFUSION, 0.))},
        test='last'),

    'compressible-1d': PDE(
        fields=('density', 'pressure', 'Vx'),
        params={'eta': .01, 'zeta': .01},
        space=((-1, 1),),
        boundary='periodic',
        file='1D_CFD_Rand_Eta{eta}_Zeta{zeta}_periodic_Train.hdf5',
        layout='arrays',
        solve=solvers.compressible_1d,
        initial=solvers.gas_waves,
        frames=101,
        conserved=('density',),
        velocity=('Vx',),
        mirror=True,
        galilean=1.,
        positive=('density', 'pressure')),

    # A moving frame would move the ends, and mass leaves.
    'compressible-1d-outgoing': PDE(
        fields=('density', 'pressure', 'Vx'),
        params={'eta': 1e-8, 'zeta': 1e-8},
        space=((-1, 1),),
        boundary='open',
        file='1D_CFD_Rand_Eta{eta}_Zeta{zeta}_trans_Train.hdf5',
        layout='arrays',
        solve=solvers.compressible_1d_outgoing,
        initial=solvers.gas_waves,
        frames=101,
        velocity=('Vx',),
        mirror=True,
        positive=('density', 'pressure')),

    # Files only, of 128² and 512² cells; M is the Mach number of the initial flow.
    'compressible-2d': PDE(
        fields=('density', 'pressure', 'Vx', 'Vy'),
        params={'M': .1, 'eta': .01, 'zeta': .01},
        space=((0, 1), (0, 1)),
        boundary='periodic',
        file='2D_CFD_Rand_M{M}_Eta{eta}_Zeta{zeta}_periodic_128_Train.hdf5',
        layout='arrays',
        cells=(128, 128),
        frames=21,
        dt=.05,
        conserved=('density',),
        velocity=('Vx', 'Vy'),
        mirror=True,
        galilean=1.,
        positive=('density', 'pressure')),

    # Files only: a flow that carries particles, driven by a force that differs from trajectory to trajectory.
    # The force is a field that stays, so that the operator sees it.
    'incompressible': PDE(
        fields=('Vx', 'Vy', 'particles', 'Fx', 'Fy'),
        params={},
        space=((0, 1), (0, 1)),
        boundary='wall',
        file='ns_incom_inhom_2d_512-0.h5',
        layout='forced',
        cells=(512, 512),
        frames=1000,
        dt=.005,
        static=('Fx', 'Fy'),
        velocity=('Vx', 'Vy'),
        incompressible=True),

    # The length is no parameter here, because it is the domain.
    'kuramoto-sivashinsky': PDE(
        fields=('u',),
        params={},
        space=((0, 64),),
        boundary='periodic',
        file='1D_KS_L64.hdf5',
        solve=solvers.kuramoto_sivashinsky_64,
        initial=solvers.ks_attractor,
        cells=(256,),
        dt=.5,
        conserved=('u',),
        velocity=('u',),
        mirror=True,
        galilean=1.,
        residual=solvers.kuramoto_sivashinsky_residual),

    # The force is part of the equation: no mirror, and no shifts but those of the force (four elements x X
    # diagonal shifts). Vorticity has no mean, so there is no moving frame. Published protocols
    # (arXiv 2010.08895) have 50 s at nu 1e-3, 30 at 1e-4 and 20 at 1e-5.
    'navier-stokes': PDE(
        fields=('w',),
        params={'Nu': 1e-4},
        space=((0, 1), (0, 1)),
        boundary='periodic',
        file='2D_NavierStokes_Nu{Nu}.hdf5',
        solve=solvers.navier_stokes,
        initial=solvers.random_vorticity,
        cells=(64, 64),
        frames=31,
        dt=1.,
        conserved=('w',),
        pseudo=('w',),
        translation=False,
        drift=(1, -1),
        symmetry=solvers.torus_symmetry,
        turns_on=4,
        test='last',
        residual=solvers.navier_stokes_residual),

    # The square's eight symmetries hold: both mirrors and the exchange of x and y. No shifts (walls), nothing
    # conserved, u and v of either sign. Frame 0 is white noise.
    'diffusion-reaction': PDE(
        fields=('u', 'v'),
        params={},
        space=((-1, 1), (-1, 1)),
        boundary='wall',
        file='2D_diff-react_NA_NA.h5',
        layout='groups',
        solve=solvers.diffusion_reaction,
        initial=solvers.white_noise,
        cells=(128, 128),
        frames=101,
        dt=.05,
        mirror=True,
        symmetry=solvers.exchange_axes,
        test='last',
        walls={'u': (NO_FLUX, NO_FLUX), 'v': (NO_FLUX, NO_FLUX)},
        residual=solvers.diffusion_reaction_residual),

    # h alone is stored, so that there is no velocity field to change sign. The mass stays until the waves
    # reach the edges, after the last frame (t = 1). A dam that is round is its own mirror image: the mirror
    # adds no data, but it holds for any water from rest.
    'shallow-water': PDE(
        fields=('h',),
        params={},
        space=((-2.5, 2.5), (-2.5, 2.5)),
        boundary='open',
        file='2D_rdb_NA_NA.h5',
        layout='groups',
        solve=solvers.still_water,
        initial=solvers.dams,
        cells=(128, 128),
        frames=101,
        dt=.01,
        conserved=('h',),
        mirror=True,
        symmetry=solvers.exchange_axes,
        positive=('h',),
        test='last'),

    # A map a -> u. The square's eight symmetries hold, u(beta) = beta u(1) and u(c a) = u(a)/c.
    'darcy': PDE(
        fields=('a', 'u'),
        params={'beta': 1.},
        space=((0, 1), (0, 1)),
        boundary='wall',
        file='2D_DarcyFlow_beta{beta}_Train.hdf5',
        layout='steady',
        solve=solvers.darcy,
        initial=solvers.permeability,
        cells=(128, 128),
        frames=2,
        dt=1.,
        static=('a',),
        mirror=True,
        symmetry=solvers.exchange_axes,
        positive=('a', 'u'),
        steady=True,
        walls={'u': (ZERO, ZERO)},
        residual=solvers.darcy_residual),
}


def entry(name):
    """The entry of an equation. Raises UserError, listing what is known."""
    if name not in PDES:
        raise UserError(f"dataset='{name}' is no known equation: there are {', '.join(PDES)} (pdes.py has "
                        'them all, and says how one is added)')
    return PDES[name]


def parameter_keys(taken=()):
    """{'nu': None, 'beta': None}: the keys of all parameters of all entries, in lower case. None stands for
    the default of the entry. Raises UserError for a parameter whose name is one of those that are taken."""
    keys = {name.lower(): None for pde in PDES.values() for name in pde.params}
    for key in keys:
        if key in taken:
            raise UserError(f"a parameter of an equation is called '{key}', which train.py calls something "
                            'else: give it another name in pdes.py')
    return keys


def parameters(dataset, keys):
    """The parameters of an equation from keys in lower case: ('burgers', {'nu': None}) -> {'Nu': .01}.

    keys: {key: number or None}; None, or a key that is left out, stands for the entry's default. Raises
    UserError for a value of a key that the equation does not have, or that is not a positive finite number.
    """
    params = entry(dataset).params
    known = [name.lower() for name in params]
    for key, value in keys.items():
        if value is not None and key not in known:
            has = f"it has {', '.join(known)}" if known else 'it has none'
            raise UserError(f'{dataset} has no parameter {key}; {has}')
    result = {}
    for name, default in params.items():
        value = keys.get(name.lower())
        if value is None:
            value = default
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not 0 < value < math.inf:
            raise UserError(f'{name.lower()}={value} must be a positive finite number')
        result[name] = float(value)
    return result
