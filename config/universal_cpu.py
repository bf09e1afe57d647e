# One model of ten equations, in one and two dimensions: shared blocks, and two linear maps for each.
# 1.23 million parameters, 35 to 90 minutes of one CPU thread; ten models take five minutes each.
#
#     make universal
#
# Test nRMSE, seeds 0 and 1: 2.3 times that of ten models (geometric mean; docs/RESULTS.md).
out_dir = 'out/universal_cpu'
mixture = ('advection_cpu', 'burgers_cpu', 'reaction_diffusion_cpu', 'diffusion_sorption_cpu',
           'compressible_1d_cpu', 'ks_cpu', 'ns_cpu', 'diffusion_reaction_cpu', 'shallow_water_cpu', 'darcy_cpu')
stages = ('mixture',)
hidden_dim = 160
accumulation = len(mixture)        # an iteration has a micro-batch of each equation,
batch_size = 4 * accumulation      # 4 windows of an equation of 64 tokens, more of one of fewer
max_iters = 8400
eval_interval = 840
n_validated = 32                   # of each equation
log_interval = 50
