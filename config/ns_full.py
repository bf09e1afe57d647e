# ns_cpu.py with all that applies to Navier-Stokes: learned encoder and decoder that are trained as inverses
# of each other, latents of unit size, and the equation itself. The vorticity's integral is kept by
# construction (conserve), and its velocity has no divergence whatever the vorticity is: neither needs a loss.
#
#     python train.py config/ns_full.py              then: python eval.py --ckpt out/ns_full --physics
from config.ns_cpu import *

out_dir = 'out/ns_full'
encoder_dim = decoder_dim = 64
token_shift = 0                    # with these it would need a latent as large as the grid
unroll = 2
unroll_start = 1
lambda_latent = 10.
lambda_inverse_encoding = 50.
lambda_inverse_decoding = .1
lambda_latent_norm = 1e-4          # small: a latent is as large as its field
lambda_residual = .01
