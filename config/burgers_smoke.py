# Seconds on one CPU core: what the tests run. Data: 32 trajectories, 30 MB, made when absent.
#
#     python train.py config/burgers_smoke.py
#
# 20 iterations teach the model nothing.
out_dir = 'out/burgers_smoke'
n_trajectories = 32
space_stride = 16                  # 64 points
latent_tokens = 16
token_shift = 1
hidden_dim = encoder_dim = decoder_dim = 32
depth = 2
n_head = 2
group_size = 16                    # with --attention=channel
mlp_ratio = 4.
unroll = 2
lambda_latent = 10.
lambda_inverse_encoding = 50.
inverse_loss_frequency = 4         # with --lambda_inverse_decoding
max_iters = 20
batch_size = 8
warmup_iters = 5
eval_interval = save_interval = 10
log_interval = 5
