"""
Compressible flow in two dimensions (PDEBench, arXiv 2210.07182): the equations of compressible_1d.py,
periodic on the unit square. There is no solver; PDEBench has files of 128² and 512² cells.
"""
from equations import PDE

# M is the Mach number of the initial flow.
ENTRY = PDE(
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
    positive=('density', 'pressure'))
