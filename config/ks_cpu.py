# Kuramoto-Sivashinsky on a domain of length 64, 128 points, on two CPU cores. The equation is chaotic.
#
#     python train.py config/ks_cpu.py
#
# Test nRMSE .483 (seeds 0 and 1). In five minutes of one thread .5183, FNO .6841 (python -m dev.study zoo).
out_dir = 'out/ks_cpu'
dataset = 'kuramoto-sivashinsky'
time_stride = 2                    # 1 s a step
early_bias = 1.                    # the flow is statistically steady
latent_tokens = 16                 # of 8 points
latent_dim = 8
token_shift = 3
unroll = 3                         # without it, the latent rollout leaves the attractor and grows
unroll_switch = .6
max_iters = 6000
