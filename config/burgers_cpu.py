# The quick start: Burgers at nu .01, 128 points in, on two CPU cores.
#
#     python train.py config/burgers_cpu.py          (or make demo, which also evaluates and draws)
#
# 4 minutes (AMD EPYC, Zen 4, two cores; data 8 s more). Test nRMSE, 40-step latent rollout: .026, .036, .033 (3 seeds).
out_dir = 'out/burgers_cpu'
nu = .01
n_trajectories = 1000
space_stride = 8                   # 128 points in
query_stride = 2                   # the field loss sees any of 512 points: decoding on finer grids costs nothing
early = 2.                         # steep early frames decide a rollout: .054 against .117 when all are drawn alike
patch_size = 8                     # few wide tokens beat many narrow ones at equal time: 16 x 96 .065, 32 x 64 .10
halo = 4
latent_tokens = 16
latent_dim = hidden_dim = encoder_dim = decoder_dim = 96
depth = 4
n_head = 4
batch_size = 16                    # 8: .110, 32: fewer steps in the same time
unroll = 4                         # in 60 s each: 2 .158, 3 .087, 4 .054, 6 .077
lambda_inverse_decoding = 0.       # 90 s, two seeds, test: .079 .082 with it, .049 .075 without (dev/LOG.md)
max_iters = 2600
warmup_iters = 100
eval_interval = save_interval = 500
log_interval = 100
