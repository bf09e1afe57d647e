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
latent_dim = 18                    # 8 points a token, 8 features more, 2 of the moving frame
encoder_dim = 0                    # the fixed part alone: a learned encoder cost a factor 2 in 60 s (dev/LOG.md)
decoder_dim = 64
hidden_dim = 96
depth = 4
n_head = 4
mlp_ratio = 4.
batch_size = 16
unroll = 1
lambda_inverse_encoding = 50.
lambda_inverse_decoding = 0.
muon_lr = .01
learning_rate = 1e-3
max_iters = 6000
warmup_iters = 100
eval_interval = save_interval = 1000
log_interval = 200
