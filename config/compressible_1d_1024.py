# Compressible gas on PDEBench's 1024 cells at eta = zeta = .01; every fifth stored frame is predicted.
#
#     python train.py config/compressible_1d_1024.py
#
# Made for a GPU. No figure yet: it has not been trained on one. Data: 12 GB, made when absent.
from config.compressible_1d_cpu import *

out_dir = 'out/compressible_1d_1024'
resolution = 0                     # PDEBench's 1024
n_trajectories = 10000
latent_tokens = 128                # of 8 points
hidden_dim = 256
depth = 8
n_head = 8
mlp_ratio = 4.
unroll = 2                         # in the last 30 %
batch_size = 64
max_iters = 40000
warmup_iters = 1000
eval_interval = save_interval = 2000
