# Shallow water after a round dam breaks, 64 x 64 points in, on two CPU cores.
#
#     python train.py config/shallow_water_cpu.py
#
# Test nRMSE .00083, the FNO .0020 (five minutes of one thread, seeds 0 and 1: bench.py zoo).
out_dir = 'out/shallow_water_cpu'
dataset = 'shallow-water'
resolution = 64
n_trajectories = 200
space_stride = query_stride = 1
latent_tokens = 8                  # 8 x 8 tokens of 8 x 8 points
latent_dim = 64
early = 1.5
max_iters = 3000
