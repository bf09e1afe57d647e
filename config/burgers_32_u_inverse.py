# burgers_128_u.py with 32 tokens of 16, half as many numbers as points (128 patches, pooled), and small. Like
# the whole ladder it has both inverse losses.
#
#     python train.py config/burgers_32_u_inverse.py
from config.burgers_128_u import *

out_dir = 'out/burgers_32_u_inverse'
latent_tokens = 32
latent_dim = 16
hidden_dim = 96
depths = (1, 1, 1)
group_size = 12
n_head = 3                         # in a group
