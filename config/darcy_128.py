# Darcy flow on PDEBench's 128 x 128 points.
#
#     python train.py config/darcy_128.py
#
# Made for a GPU. No figure yet: it has not been trained on one. Data: 1.3 GB, made when absent.
from config.darcy_cpu import *

out_dir = 'out/darcy_128'
resolution = 0                     # PDEBench's 128
n_trajectories = 10000
latent_tokens = 16                 # 16 x 16 tokens of 8 x 8 points
hidden_dim = 256
depth = 8
n_head = 8
mlp_ratio = 4.
batch_size = 16
max_iters = 40000
warmup_iters = 1000
eval_interval = save_interval = 2000
