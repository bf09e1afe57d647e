# Keys of this folder, in the form of train.py. The defaults of each stage are in stages.py.
# model
flow_dim = 64                      # width of a flow
flow_depth = 3                     # blocks of a flow
noise_dim = 32                     # random numbers that perturb a step of the ensemble
# stages
n_members = 4                      # ensemble members per sample, in training (ensemble) and in validations
flow_steps = 4                     # sampling steps of a flow, in its own rollouts and in validations
tau_schedule = (8,)                # sampling steps of the teacher, in equal parts of consistency_distill
cache_copies = 0                   # augmented copies of each window whose latents are cached; 0: no cache
