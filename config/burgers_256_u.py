# burgers_256_pure.py with channel-separated attention, in a U of 12 blocks.
#
#     python train.py config/burgers_256_u.py
#
# Made for a GPU. No figure yet. Data: 8.2 GB, those of burgers_128_pure.py.
from config.burgers_128_pure import *

out_dir = 'out/burgers_256_u'
patch_size = 4                     # 256 patches
latent_tokens = 256
latent_dim = 192
hidden_dim = 384
arch = 'u'
depths = (4, 4, 4)
attention = 'channel'
group_size = 32
n_head = 4                         # in a group
