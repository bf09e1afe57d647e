# Forced Navier-Stokes on the torus at nu 1e-3, 32 x 32 points, on two CPU cores: the vorticity at t = 11 s is
# given, t = 12 .. 30 s are predicted.
#
#     python train.py config/ns_cpu.py
#
# 5 minutes of one thread, and 1 to 2 for the data. Test nRMSE .0033, FNO .0166 (five minutes of one thread,
# seeds 0 and 1: python -m dev.study zoo).
out_dir = 'out/ns_cpu'
dataset = 'navier-stokes'
nu = 1e-3
resolution = 32
n_trajectories = 400               # the force leaves 128 symmetries, all of which augment the data
initial_step = 12
time_stride = space_stride = 1
early_bias = 1.
latent_tokens = 4                  # 4 x 4 tokens of 8 x 8 points
latent_dim = 32                    # half as many numbers as points
basis = 'components'
token_shift = 1                    # along the diagonal, in which the force is constant
max_iters = 9000
