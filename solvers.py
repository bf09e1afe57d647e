"""
The numerical solvers and the initial conditions of their data, so that nothing has to be downloaded.

    python solvers.py burgers --n 1000 --nu 0.01          # datasets/1D_Burgers_Sols_Nu0.01_N1000.hdf5
    python solvers.py advection --n 1000 --beta 0.4 --device cuda

Each equation has a file in numerics/; here they are named. A solver takes initial fields u0 (B, *cells[, C])
at the cells of a uniform grid, the PDE's parameters as plain numbers, and increasing times t in seconds that
start at 0. It returns the fields at those times, (B, T, *cells[, C]), in float64 and on u0's device. (A
steady equation has no times: its solver takes a coefficient (B, *cells) and returns the solution.) u0 may be
an array or a tensor; where a device has no float64, the solver runs on the CPU. pdes.py says which solver an
equation has, files.py writes what it returns.
"""
from numerics.advection import advection, advection_residual
from numerics.burgers import burgers, burgers_old, burgers_old_residual, burgers_residual
from numerics.common import exchange_axes, waves
from numerics.compressible import compressible_1d, compressible_1d_outgoing, gas_waves
from numerics.darcy import darcy, darcy_residual, permeability
from numerics.diffusion_reaction import diffusion_reaction, diffusion_reaction_residual, white_noise
from numerics.diffusion_sorption import constants, diffusion_sorption
from numerics.kuramoto_sivashinsky import (kuramoto_sivashinsky, kuramoto_sivashinsky_64,
                                           kuramoto_sivashinsky_residual, ks_attractor, ks_waves)
from numerics.navier_stokes import navier_stokes, navier_stokes_residual, random_vorticity, torus_symmetry
from numerics.reaction_diffusion import reaction_diffusion, reaction_diffusion_residual, unit_waves
from numerics.shallow_water import dams, shallow_water, still_water

if __name__ == '__main__':
    from files import make_command      # only here: files.py imports pdes.py, and pdes.py imports this file
    make_command()
