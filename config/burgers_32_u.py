# 32 tokens of 16, U-shaped, channel-separated attention, no inverse losses: the baseline of the token study.
#
#     python train.py config/burgers_32_u.py
#     torchrun --standalone --nproc_per_node=4 train.py config/burgers_32_u.py
#
# Made for a GPU. No figure yet: it has not been trained at full length on one. Data: 8.2 GB, made when absent.
out_dir = 'out/burgers_32_u'
nu = .001
n_trajectories = 10000
space_stride = 1                   # 1024 points in
query_stride = 1
arch = 'u'
attention = 'channel'
patch_size = 8                     # 128 patches, pooled to 32 tokens
latent_tokens = 32
latent_dim = 16
hidden_dim = 96
encoder_dim = decoder_dim = 64
depths = (1, 1, 1)
group_size = 12
n_head = 3                         # in a group
mlp_ratio = 4.
drop_path = 0.                     # .1, the usual choice: .0168, 0: .0114 (burgers_cpu.py at nu .001)
lambda_inverse_encoding = 0.
lambda_inverse_decoding = 0.
batch_size = 48                    # 12 x accumulation 4 of the reference recipe, in one go
accumulation = 1
max_iters = 25 * 8000 * 39 // 48   # 25 epochs of 8000 trajectories x 39 windows
patience = 10
eval_interval = save_interval = 2000
log_interval = 100
warmup_iters = 1000
weight_decay = .03
