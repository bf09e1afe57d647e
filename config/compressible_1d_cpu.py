# Compressible gas at eta = zeta = .01, 128 points of 3 fields, on two CPU cores.
#
#     python train.py config/compressible_1d_cpu.py
#
# Test nRMSE .0172, FNO .0415 (five minutes of one thread, seeds 0 and 1: python -m dev.study zoo).
out_dir = 'out/compressible_1d_cpu'
dataset = 'compressible-1d'
resolution = 128
space_stride = 1
latent_tokens = 16                 # of 8 points
latent_dim = 24
token_shift = 3
max_iters = 10000
