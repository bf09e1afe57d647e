# Flow past one to three obstacles at Reynolds numbers 40 to 200, 128 x 64 cells, on two CPU cores: the flow at
# t = 1.5 is given, t = 1.625 .. 6.5 are predicted. The obstacles of the test split were never seen.
#
#     python train.py config/obstacles_cpu.py
#
out_dir = 'out/obstacles_cpu'
dataset = 'obstacles'
re = (40, 80, 120, 160, 200)       # a file each, of other obstacles
n_trajectories = 60                # of each
initial_step = 13
time_stride = space_stride = 1
early_bias = 1.
basis = 'components'
latent_tokens = 8                  # 16 x 8 tokens of 8 x 8 points
latent_dim = 96
max_iters = 3000
