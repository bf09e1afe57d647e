# One model of ten equations: shared blocks, and two linear maps for each. One CPU thread, 50 minutes.
out_dir = 'out/universal_cpu'
mixture = ('advection_cpu', 'burgers_cpu', 'reaction_diffusion_cpu', 'diffusion_sorption_cpu',
           'compressible_1d_cpu', 'ks_cpu', 'ns_cpu', 'diffusion_reaction_cpu', 'shallow_water_cpu', 'darcy_cpu')
stages = ('mixture',)
hidden_dim = 128
accumulation = len(mixture)        # one micro-batch of every equation an iteration
batch_size = 16 * accumulation
max_iters = 6000
eval_interval = 500
log_interval = 100
