# FitzHugh-Nagumo between walls on 128 x 128 points, by PDEBench's protocol: ten frames are given (the model
# sees the last one), the other 91 are predicted.
#
#     python train.py config/diffusion_reaction_128.py
#
# Made for a GPU. No figure yet: it has not been trained on one. Data: 13 GB, made when absent.
from config.diffusion_reaction_cpu import *

out_dir = 'out/diffusion_reaction_128'
resolution = 0                     # PDEBench's 128
n_trajectories = 1000
time_stride = 1
initial_step = 10
latent_tokens = 16                 # 16 x 16 tokens of 8 x 8 points
hidden_dim = 256
depth = 8
n_head = 8
mlp_ratio = 4.
unroll = 3                         # in the last 30 %
batch_size = 16
max_iters = 40000
warmup_iters = 1000
eval_interval = save_interval = 2000
