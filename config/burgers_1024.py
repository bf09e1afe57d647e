# The recipe of burgers_cpu.py at 1024 points and the length of a GPU, at nu .001: encoder and decoder are
# fixed transforms, and the latent holds as many numbers as the field. It compresses nothing and learns the
# operator alone: at 512 points that is more accurate than the learned latents of docs/RESULTS.md.
#
#     python train.py config/burgers_1024.py
#
# Made for a GPU. No figure yet. Data: 8.2 GB, made when absent, the same as burgers_128_pure.py's.
from config.burgers_cpu import *

out_dir = 'out/burgers_1024'
nu = .001
n_trajectories = 10000
space_stride = query_stride = 1    # 1024 points in
latent_tokens = 64                 # of 16 points each
hidden_dim = 256
depth = 6
n_head = 8
batch_size = 64
max_iters = 40000
eval_interval = save_interval = 2000
