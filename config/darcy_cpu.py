# Darcy flow, coefficient to solution in one step, 64 x 64 points, on two CPU cores.
#
#     python train.py config/darcy_cpu.py
#
# Test nRMSE .0128, FNO .0239 (five minutes of one thread, seeds 0 and 1: python -m dev.study zoo).
out_dir = 'out/darcy_cpu'
dataset = 'darcy'
resolution = 64
n_trajectories = 2000
time_stride = space_stride = 1
early_bias = 1.
latent_tokens = 8                  # 8 x 8 tokens of 8 x 8 points
latent_dim = 128
batch_size = 16                    # more iterations in the same time
max_iters = 5000
