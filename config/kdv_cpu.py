# Korteweg-de Vries at dispersion 1 on a domain of length 128, 128 points, on two CPU cores: waves break up into
# solitons in 50 steps of 1 s.
#
#     python train.py config/kdv_cpu.py
#
# Half a minute of one thread for the data. After 966 iterations (seed 0): test nRMSE .040, persistence .89.
out_dir = 'out/kdv_cpu'
dataset = 'korteweg-de-vries'
resolution = 128
time_stride = 2                    # 1 s a step
space_stride = 1
early_bias = 1.5
latent_tokens = 16                 # of 8 points
latent_dim = 8
token_shift = 3
max_iters = 6000
