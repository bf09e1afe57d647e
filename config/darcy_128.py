# Darcy flow on PDEBench's 128 x 128 points.
#
#     python train.py config/darcy_128.py
#
# Made for a GPU. No figure yet: it has not been trained on one. Data: 1.3 GB, made when absent.
from config.darcy_cpu import *
from config.ns_64 import depth, eval_interval, hidden_dim, max_iters, mlp_ratio, n_head
from config.ns_64 import save_interval, warmup_iters

out_dir = 'out/darcy_128'
resolution = 0                     # PDEBench's 128
n_trajectories = 10000
latent_tokens = 16                 # 16 x 16 tokens of 8 x 8 points
batch_size = 16
