# ns_cpu.py with everything that applies to Navier-Stokes: learned encoder and decoder with both inverse
# losses, latent losses, and the residual of the equation as a loss. (conserve keeps the integral of the
# vorticity, and its velocity has no divergence.)
#
#     python train.py config/ns_full.py
#     python eval.py --ckpt out/ns_full --physics
#
# docs/RESULTS.md has figures of short trainings, without one loss at a time.
from config.ns_cpu import *

out_dir = 'out/ns_full'
encoder_dim = decoder_dim = 64
token_shift = 0                    # with a learned encoder it needs a latent as large as the grid
unroll = 2                         # in the last 30 %
lambda_latent = 10.
lambda_inverse_encoding = 50.
lambda_inverse_decoding = .1
lambda_latent_norm = 1e-4          # small: a latent is as large as its field
lambda_residual = .01
