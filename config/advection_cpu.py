# Linear advection at speed .4, 512 points, on two CPU cores.
#
#     python train.py config/advection_cpu.py
#
# Test nRMSE .0047, FNO .0086 (five minutes of one thread, seeds 0 and 1: python -m dev.study zoo).
out_dir = 'out/advection_cpu'
dataset = 'advection'
beta = .4
early_bias = 1.                    # fields do not steepen with time
latent_dim = 12                    # of 16 values
basis = 'components'
token_shift = 5
depth = 2                          # a linear equation is easy
batch_size = 16
max_iters = 19000
