# burgers_128_pure.py with 256 tokens of 192, 48 times as many numbers as points, and 1.5 times the
# width.
#
#     python train.py config/burgers_256_pure.py
#
# Made for a GPU. No figure yet. Data: 8.2 GB, those of burgers_128_pure.py.
from config.burgers_128_pure import *

out_dir = 'out/burgers_256_pure'
patch_size = 4                     # 256 patches
latent_tokens = 256
latent_dim = 192
hidden_dim = 384
