# Linear advection at speed .4, 512 points in, on two CPU cores.
#
#     python train.py config/advection_cpu.py
#
# Test nRMSE .0072, the FNO .0099 (five minutes of one thread, seeds 0 and 1: bench.py zoo).
out_dir = 'out/advection_cpu'
dataset = 'advection'
beta = .4
early = 1.                         # no frame is steeper than another
latent_dim = 12                    # of 16 values
basis = 'components'
token_shift = 5
max_iters = 2500
