# ks_cpu.py with 256 points in place of 128, more data and a larger network.
#
#     python train.py config/ks_256.py
#
# Made for a GPU. No figure yet: it has not been trained on one.
from config.ks_cpu import *
from config.ns_64 import depth, eval_interval, hidden_dim, max_iters, mlp_ratio, n_head
from config.ns_64 import save_interval, warmup_iters

out_dir = 'out/ks_256'
space_stride = query_stride = 1
latent_tokens = 32                 # of 8 points
n_trajectories = 4000
unroll = 4                         # in the last 40 %
batch_size = 128
