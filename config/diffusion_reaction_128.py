# FitzHugh-Nagumo between walls on 128 x 128 points, PDEBench's protocol: ten frames are given (the last
# of them is all that the model sees), the other 91 are predicted.
#
#     python train.py config/diffusion_reaction_128.py
#
# Made for a GPU. No figure yet: it has not been trained on one. Data: 13 GB, made when absent.
from config.diffusion_reaction_cpu import *
from config.ns_64 import depth, eval_interval, hidden_dim, max_iters, mlp_ratio, n_head
from config.ns_64 import save_interval, warmup_iters

out_dir = 'out/diffusion_reaction_128'
resolution = 0                     # PDEBench's 128
n_trajectories = 1000
time_stride = 1
initial_step = 10
latent_tokens = 16                 # 16 x 16 tokens of 8 x 8 points
unroll = 3                         # in the last 30 %
batch_size = 16
