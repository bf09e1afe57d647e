# burgers_cpu.py with all that applies to Burgers: learned encoder and decoder that are trained as inverses of
# each other, advanced latents that are those of the truth, latents of unit size, and the equation itself. The
# integral is kept by construction (conserve), so that lambda_conservation is left out; there are no walls.
#
#     python train.py config/burgers_full.py         then: python eval.py --ckpt out/burgers_full --physics
from config.burgers_cpu import *

out_dir = 'out/burgers_full'
encoder_dim = decoder_dim = 64
unroll = 2
unroll_start = 1
lambda_latent = 10.
lambda_inverse_encoding = 50.
lambda_inverse_decoding = .1
lambda_latent_norm = 1e-4          # small: a latent is as large as its field
lambda_residual = 1e-3             # its unit is the rate of change, which fine waves outweigh
stages = ('operator', 'decoder', 'residual', 'distill', 'ensemble')                # no state is steady
members = 2
