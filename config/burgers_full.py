# burgers_cpu.py with everything that applies to Burgers: learned encoder and decoder, both inverse losses,
# latent losses, the residual of the equation as a loss, and the later stages. (conserve keeps the integral,
# there are no walls, and no state is steady.)
#
#     python train.py config/burgers_full.py
#     python eval.py --ckpt out/burgers_full --physics
#
# docs/RESULTS.md has figures of short trainings, without one loss at a time.
from config.burgers_cpu import *

out_dir = 'out/burgers_full'
encoder_dim = decoder_dim = 64
unroll = 2                         # in the last 30 %
lambda_latent = 10.
lambda_inverse_encoding = 50.
lambda_inverse_decoding = .1
lambda_latent_norm = 1e-4          # small: a latent is as large as its field
lambda_residual = 1e-3             # a rate of change, dominated by short waves
stages = ('operator', 'diff_residual', 'consistency_distill', 'ensemble')
n_members = 2
