# Flow past one to three obstacles at Reynolds numbers 40 to 200, 128 x 64 points, on two CPU cores: the flow at
# t = 1.5 is given, t = 1.75 .. 6.5 are predicted. The obstacles of the test split were never seen.
#
#     python train.py config/obstacles_cpu.py
#
# 15 minutes of one thread for the data (2.1 GB), 15 for the training. Test nRMSE .19 (two seeds), persistence .41.
out_dir = 'out/obstacles_cpu'
dataset = 'obstacles'
re = (40, 80, 120, 160, 200)       # a file each, with other obstacles
n_trajectories = 60                # of each
time_stride = 2                    # .25 s a step
initial_step = 7                   # the fluid is at rest at t = 0, and the inflow rises until t = 1
space_stride = 1
early_bias = 1.
latent_tokens = 8                  # 16 x 8 tokens of 8 x 8 points
latent_dim = 96                    # of 256 values
basis = 'components'
lambda_spectral = 0.               # most of that loss would be the jump of the pressure at walls
unroll = 3
unroll_start = 1
unroll_switch = .5
batch_size = 16
weight_decay = .3                 # the error on training trajectories is half of that on others
max_iters = 2600
