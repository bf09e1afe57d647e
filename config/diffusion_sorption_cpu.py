# Diffusion with sorption between two walls, 128 points in, on two CPU cores.
#
#     python train.py config/diffusion_sorption_cpu.py
out_dir = 'out/diffusion_sorption_cpu'
dataset = 'diffusion-sorption'
resolution = 128
space_stride = query_stride = 1
latent_tokens = 16                 # of 8 points
latent_dim = 8
max_iters = 3000
