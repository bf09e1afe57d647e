# burgers_128_u.py with standard attention; only the attention differs.
#
#     python train.py config/burgers_128_u_standard.py
#     torchrun --standalone --nproc_per_node=4 train.py config/burgers_128_u_standard.py
#
# Made for a GPU. No figure yet: it has not been trained at full length on one. Data: 8.2 GB, made when absent.
out_dir = 'out/burgers_128_u_standard'
nu = .001
n_trajectories = 10000
space_stride = 1                   # 1024 points in
query_stride = 1
arch = 'u'
attention = 'standard'
patch_size = 8                     # 128 patches
latent_tokens = 128
latent_dim = 128
token_shift = 3                    # of a token's 8 points: from changing positions errors average out (dev/LOG.md)
hidden_dim = 256
decoder_dim = 128                  # added to the fixed part. A learned encoder cost accuracy (dev/LOG.md)
depths = (2, 4, 2)
n_head = 8
mlp_ratio = 4.
drop_path = 0.                     # .1, the usual choice: .0168, 0: .0114 (burgers_cpu.py at nu .001)
batch_size = 48                    # 12 x accumulation 4 of the reference recipe, in one go
accumulation = 1
max_iters = 25 * 8000 * 39 // 48   # 25 epochs of 8000 trajectories x 39 windows
patience = 10
eval_interval = save_interval = 2000
log_interval = 100
warmup_iters = 1000
weight_decay = .03
