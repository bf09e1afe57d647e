"""
Incompressible flow in two dimensions (PDEBench, arXiv 2210.07182) that carries particles, between walls. It
is driven by a force that differs from trajectory to trajectory. There is no solver; PDEBench has files.
"""
from equations import PDE

# The force is a static field, so that the operator sees it.
ENTRY = PDE(
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
    incompressible=True)
