# ks_cpu.py with 256 points in place of 128, more data and a larger network.
#
#     python train.py config/ks_256.py
#
# Made for a GPU. No figure yet: it has not been trained on one.
from config.ks_cpu import *

out_dir = 'out/ks_256'
space_stride = 1
n_trajectories = 4000
latent_tokens = 32                 # of 8 points
hidden_dim = 256
depth = 8
n_head = 8
mlp_ratio = 4.
unroll = 4                         # in the last 40 %
batch_size = 128
max_iters = 40000
warmup_iters = 1000
eval_interval = save_interval = 2000
