# Gray-Scott at feed .029, kill .057, 64 x 64 points of 2 fields, on two CPU cores: drops grow into a maze in
# 40 steps of 10 s.
#
#     python train.py config/gray_scott_cpu.py
#
# 2 to 3 minutes of one thread for the data. After 313 iterations (seed 0): validation nRMSE .087.
out_dir = 'out/gray_scott_cpu'
dataset = 'gray-scott'
n_trajectories = 300
time_stride = space_stride = 1
early_bias = 1.5
latent_tokens = 8                  # 8 x 8 tokens of 8 x 8 points
latent_dim = 64                    # of 128 values
basis = 'components'
token_shift = 3
max_iters = 2500
