"""
Compressible flow in one dimension with outgoing boundaries: the equations and the solver of
compressible_1d.py, with no gradient at the ends of (-1, 1).
"""
from equations import PDE
from equations.compressible_1d import CFL, LONGER_STEPS, compressible_1d, gas_waves


def compressible_1d_outgoing(u0, eta, zeta, t, cfl=CFL):
    """`compressible_1d` with outgoing boundaries."""
    return compressible_1d(u0, eta, zeta, t, 'outgoing', cfl)


# Mass leaves the domain, so that nothing is conserved. A moving frame would move the ends.
ENTRY = PDE(
    fields=('density', 'pressure', 'Vx'),
    params={'eta': 1e-8, 'zeta': 1e-8},
    space=((-1, 1),),
    boundary='open',
    file='1D_CFD_Rand_Eta{eta}_Zeta{zeta}_trans_Train.hdf5',
    layout='arrays',
    solve=compressible_1d_outgoing,
    cheaper=LONGER_STEPS,
    initial=gas_waves,
    frames=101,
    velocity=('Vx',),
    mirror=True,
    positive=('density', 'pressure'))
