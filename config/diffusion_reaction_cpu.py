# FitzHugh-Nagumo between walls, 64 x 64 points of 2 fields, on two CPU cores: t = .5 s is given,
# t = .75 .. 5 s are predicted.
#
#     python train.py config/diffusion_reaction_cpu.py
#
# Test nRMSE .0125, FNO .0659 (five minutes of one thread, seeds 0 and 1: python -m dev.study zoo).
out_dir = 'out/diffusion_reaction_cpu'
dataset = 'diffusion-reaction'
resolution = 64
n_trajectories = 300               # time_stride 5: .25 s a step
initial_step = 3                   # frame 0 is white noise
space_stride = 1
early_bias = 1.5
latent_tokens = 8                  # 8 x 8 tokens of 8 x 8 points
latent_dim = 64                    # of 128 values: with all of them, the shortest waves of a rollout grow
basis = 'components'
batch_size = 16                    # more iterations in the same time
max_iters = 5000
