# ns_64.py with a learned latent of the size of arXiv 2505.12944: 4 x 4 tokens of 128 numbers, half as many
# numbers as points.
#
#     python train.py config/ns_64_learned.py
#
# Made for a GPU. No figure yet: it has not been trained on one.
from config.ns_64 import *

out_dir = 'out/ns_64_learned'
latent_tokens = 4                  # of 16 x 16 points
latent_dim = 128
basis = 'components'
token_shift = 0                    # a learned latent would have to hold all points of a token for it
encoder_dim = decoder_dim = 128
patch_size = 8                     # 8 x 8 patches, pooled
halo = 4
coder_depth = 2
lambda_inverse_encoding = 10.      # the inverse loss that pays at half as many numbers (docs/RESULTS.md)
unroll = 4                         # trained on single steps alone, rollouts drift away within ten
unroll_start = 2
unroll_switch = .5
