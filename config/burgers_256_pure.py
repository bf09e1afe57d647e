# burgers_128_pure.py with 256 tokens of 192, 48 times as many numbers as points, and half as much width
# again.
#
#     python train.py config/burgers_256_pure.py
from config.burgers_128_pure import *

out_dir = 'out/burgers_256_pure'
patch_size = 4                     # 256 patches
latent_tokens = 256
latent_dim = 192
hidden_dim = 384
