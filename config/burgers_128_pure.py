# Burgers at nu .001: 128 tokens of 128 numbers for 1024 points, 16 times as many numbers as points. Pure
# operator, standard attention. The other burgers_*_pure and burgers_*_u configs begin with this one.
#
#     python train.py config/burgers_128_pure.py
#     torchrun --standalone --nproc_per_node=4 train.py config/burgers_128_pure.py
#
# Made for a GPU. No figure yet: it has not been trained at full length. Data: 8.2 GB, made when absent.
out_dir = 'out/burgers_128_pure'
nu = .001
n_trajectories = 10000
space_stride = 1                   # 1024 points
early_bias = 2.
patch_size = 8                     # 128 patches
halo = 4
latent_tokens = 128
latent_dim = 128
encoder_dim = decoder_dim = 64     # learned parts, on top of the fixed ones
hidden_dim = 256
depth = 8
n_head = 8
mlp_ratio = 4.
unroll = 2                         # in the last 30 %
lambda_latent = 10.
lambda_inverse_encoding = 50.      # keeps a learned encoder and decoder inverses of each other
lambda_inverse_decoding = .5       # on every tenth batch
batch_size = 48                    # 12 x accumulation 4 of the reference recipe, in one go
max_iters = 25 * 8000 * 39 // 48   # 25 epochs of 8000 trajectories x 39 windows
eval_interval = save_interval = 2000
log_interval = 100
warmup_iters = 1000
weight_decay = .03                 # of matrices
