# A small U with channel-separated attention: 32 tokens of 16, half as many numbers as points (128 patches,
# pooled). It has both inverse losses of burgers_128_pure.py.
#
#     python train.py config/burgers_32_u_inverse.py
#
# Made for a GPU. No figure yet. Data: 8.2 GB, those of burgers_128_pure.py.
from config.burgers_128_pure import *

out_dir = 'out/burgers_32_u_inverse'
latent_tokens = 32
latent_dim = 16
hidden_dim = 96
arch = 'u'
depths = (1, 1, 1)
attention = 'channel'
group_size = 12
n_head = 3                         # in a group
