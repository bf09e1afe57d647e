# Reaction and diffusion (Fisher-KPP) at nu .5, rho 1, 128 points, on two CPU cores.
#
#     python train.py config/reaction_diffusion_cpu.py
#
# Test nRMSE .000045, FNO .00017 (five minutes of one thread, seeds 0 and 1: python -m dev.study zoo).
out_dir = 'out/reaction_diffusion_cpu'
dataset = 'reaction-diffusion'
resolution = 128
space_stride = 1
latent_tokens = 8                  # of 16 points
latent_dim = 8
basis = 'components'
token_shift = 7
max_iters = 14000
