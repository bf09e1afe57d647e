# ns_64_learned.py with a network and as many data as two CPU cores can take: 64 x 64 points in 4 x 4 tokens
# of 128 numbers, nu 1e-4, 240 training trajectories.
#
#     python train.py config/ns_64_small.py
#     OMP_NUM_THREADS=1 python bench.py peers config/ns_64_small.py --minutes 9 --methods ours fno
#
# The second: test nRMSE .1204 and .1113, the FNO .1500 and .1434 (nine minutes of one thread, seeds 0 and 1).
from config.ns_64_learned import *

out_dir = 'out/ns_64_small'
n_trajectories = 300
hidden_dim = 96
depth = 4
n_head = 4
mlp_ratio = 2.
encoder_dim = decoder_dim = 64
encoder_depth = decoder_depth = 1
batch_size = 32
max_iters = 2000
warmup_iters = 100
eval_interval = save_interval = 500
