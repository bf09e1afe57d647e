# Forced Navier-Stokes at nu 1e-4, 64 x 64 points, after the protocol of arXiv 2505.12944: the vorticity
# at t = 11 s is given, t = 12 .. 30 s are predicted. Its harder task has nu 1e-5 and t = 2 .. 20 s after 1 s.
#
#     python train.py config/ns_64.py
#     python train.py config/ns_64.py --nu=1e-5 --initial_step=2 --n_trajectories=1200 --out_dir=out/ns_1e-5
#     python eval.py --ckpt out/ns_1e-5 --steps 19
#
# Made for a GPU. No figure yet: it has not been trained on one. Data: 4.1 GB a viscosity, made when absent.
out_dir = 'out/ns_64'
dataset = 'navier-stokes'
nu = 1e-4
n_trajectories = 8000
initial_step = 12
time_stride = space_stride = 1
early_bias = 1.
latent_tokens = 16                 # 16 x 16 tokens of 4 x 4 points
token_shift = 1                    # along the diagonal, in which the force is constant
hidden_dim = 256
depth = 8
n_head = 8
mlp_ratio = 4.
unroll = 3                         # in the last 30 %
batch_size = 64
max_iters = 40000
warmup_iters = 1000
eval_interval = save_interval = 2000
