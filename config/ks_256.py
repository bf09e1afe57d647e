# ks_cpu.py with more data and a larger network.
#
#     python train.py config/ks_256.py
#
# Made for a GPU. No figure yet: it has not been trained on one.
from config.ks_cpu import *

out_dir = 'out/ks_256'
n_trajectories = 4000
hidden_dim = 256
depth = 8
n_head = 8
mlp_ratio = 4.
unroll = 4                         # in the last 30 %
batch_size = 128
max_iters = 40000
warmup_iters = 1000
eval_interval = save_interval = 2000
