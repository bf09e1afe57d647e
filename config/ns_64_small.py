# The learned latent of ns_64_learned.py at the size of two CPU cores: 64 x 64 points in 4 x 4 tokens of 128
# numbers, nu 1e-4, 240 training trajectories.
#
#     python train.py config/ns_64_small.py
#     OMP_NUM_THREADS=1 python bench.py peers config/ns_64_small.py --minutes 9 --methods ours fno
#
# The second command: test nRMSE .1204 and .1113, FNO .1500 and .1434 (nine minutes of one thread, seeds 0
# and 1).
out_dir = 'out/ns_64_small'
dataset = 'navier-stokes'
nu = 1e-4
n_trajectories = 300
initial_step = 12
time_stride = space_stride = 1
early_bias = 1.
latent_tokens = 4                  # of 16 x 16 points
latent_dim = 128
basis = 'components'
encoder_dim = decoder_dim = 64
patch_size = 8                     # 8 x 8 patches, pooled
halo = 4
lambda_inverse_encoding = 10.
unroll = 4
unroll_start = 2
unroll_switch = .5
max_iters = 2000
eval_interval = save_interval = 500
