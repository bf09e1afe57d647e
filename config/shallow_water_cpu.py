# Shallow water after a round dam breaks, 64 x 64 points, on two CPU cores.
#
#     python train.py config/shallow_water_cpu.py
#
# Test nRMSE .00077, FNO .0012 (five minutes of one thread, seeds 0 and 1: python -m dev.study zoo).
out_dir = 'out/shallow_water_cpu'
dataset = 'shallow-water'
resolution = 64
n_trajectories = 200
space_stride = 1
early_bias = 1.5
latent_tokens = 8                  # 8 x 8 tokens of 8 x 8 points
latent_dim = 64
batch_size = 16                    # more iterations in the same time
max_iters = 5700
