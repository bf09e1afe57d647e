# The quick start: Burgers at nu .01, 512 points in, on two CPU cores. Keys that are not here have train.py's
# defaults, which are those of this recipe.
#
#     python train.py config/burgers_cpu.py          (or make demo, which also evaluates and draws)
#
# 2 to 4 minutes on two cores. Figures behind a key are nRMSE of earlier recipes, one variable at a time
# (dev/LOG.md).
out_dir = 'out/burgers_cpu'
dataset = 'burgers'
nu = .01
# 512 points in. With 16 tokens at nu .001 256: .0197, 512: .0164, 1024: .0183
space_stride = query_stride = 2
early = 3.                       # steep early frames decide a rollout: without, .0125, 2: .0068, 3: .0058
latent_tokens = 32          # at nu .001 16: .0164, 32: .0125, 64: .0109, but twice the time (2000 iterations)
latent_dim = 16                    # all 16 points of a token: the latent is the grid, transformed
token_shift = 5                    # none: .0080, 1 to 15: .0051 to .0055 on the same weights
encoder_dim = decoder_dim = 0      # their fixed parts alone; learned ones cost accuracy at these lengths
hidden_dim = 96
depth = 4                          # 6: .0060, 4: .0045, 96 wide: .0045, 128: .0057
mlp_ratio = 2.                     # a fifth faster. In one minute 2: .0050, 4: .0055; at nu .001 .038, .042
batch_size = 32                    # 64: .0105, 32: .0068, 16: .0067 for as many samples, but 16 takes longer
unroll = 1                         # two in the last third: a tie, once tokens move on, and slower
muon_lr = .01                      # .005: .0083, .01: .0068, .02: .0081; adamw: .0197
max_iters = 4500
