# Seconds on one CPU core: what the tests run. The data are made on the first call (32 trajectories, 30 MB).
#
#     python train.py config/burgers_smoke.py
#
# It trains for 20 iterations, which teaches it nothing.
out_dir = 'out/burgers_smoke'
n_trajectories = 32
space_stride = 16                  # 64 points
latent_tokens = 16
latent_dim = 16
token_shift = 1
hidden_dim = encoder_dim = decoder_dim = 32
depth = 2
n_head = 2
group_size = 16                    # of --attention=channel
mlp_ratio = 4.
unroll = 2
lambda_latent = 10.
lambda_inverse_encoding = 50.
max_iters = 20
batch_size = 8
warmup_iters = 5
inverse_loss_frequency = 4         # of --lambda_inverse_decoding
eval_interval = save_interval = 10
log_interval = 5
