# Diffusion with sorption between two walls, 128 points, on two CPU cores.
#
#     python train.py config/diffusion_sorption_cpu.py
#
# Test nRMSE .000048, FNO .00019 (five minutes of one thread, seeds 0 and 1: python -m dev.study zoo).
out_dir = 'out/diffusion_sorption_cpu'
dataset = 'diffusion-sorption'
resolution = 128
space_stride = 1
latent_tokens = 4                  # of 32 points
latent_dim = 12
basis = 'components'
max_iters = 16000
