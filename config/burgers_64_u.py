# burgers_128_u.py with 64 tokens of 64, 4 times as many numbers as points (128 patches, pooled), and half the
# width.
#
#     python train.py config/burgers_64_u.py
from config.burgers_128_u import *

out_dir = 'out/burgers_64_u'
latent_tokens = latent_dim = 64
hidden_dim = 128
