# Forced Navier-Stokes on the torus at nu 1e-3, 32 x 32 points in, on two CPU cores: the vorticity at t = 11
# s is given, t = 12 .. 30 s are predicted.
#
#     python train.py config/ns_cpu.py
#
# 5 minutes on one thread and 1 to 2 for the data. Test nRMSE .0034, the FNO .0166 (five minutes of one
# thread, seeds 0 and 1: bench.py zoo).
out_dir = 'out/ns_cpu'
dataset = 'navier-stokes'
nu = 1e-3
resolution = 32
n_trajectories = 400               # the force leaves 128 symmetries, all of which are used
initial_step = 12
time_stride = space_stride = query_stride = 1
latent_tokens = 4                  # 4 x 4 tokens of 8 x 8 points
latent_dim = 32                    # half as many numbers as points
basis = 'components'
token_shift = 1                    # along the diagonal, where the force is the same
early = 1.
max_iters = 9000
