# burgers_128_u.py with 64 tokens of 64, 4 times as many numbers as points (128 patches, pooled), and half
# the width.
#
#     python train.py config/burgers_64_u.py
#
# Made for a GPU. No figure yet. Data: 8.2 GB, those of burgers_128_pure.py.
from config.burgers_128_pure import *

out_dir = 'out/burgers_64_u'
latent_tokens = latent_dim = 64
hidden_dim = 128
arch = 'u'
depths = (2, 4, 2)
attention = 'channel'
group_size = 32
n_head = 4                         # in a group
