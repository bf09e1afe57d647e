# ks_cpu.py and the later stages that apply to a chaotic equation: a corrector, its one-step student, and an
# operator perturbed by noise.
#
#     python train.py config/ks_full.py
#     python eval.py --ckpt out/ks_full --stepper operator diff_residual consistency_distill ensemble
#
# make stages trains and evaluates two seeds, in 19 minutes on two cores. CRPS of the operator .366, of
# diff_residual .204, of consistency_distill .206, of ensemble .214 (docs/RESULTS.md).
from config.ks_cpu import *

out_dir = 'out/ks_full'
stages = ('operator', 'diff_residual', 'consistency_distill', 'ensemble')
n_members = 2
diff_residual_stage = {'max_iters': 1600, 'unroll': 2}
consistency_distill_stage = {'max_iters': 500, 'unroll': 2, 'flow_steps': 1, 'learning_rate': 3e-4,
                             'muon_lr': 3e-3}
ensemble_stage = {'max_iters': 1400, 'unroll': 4, 'unroll_start': 1, 'unroll_switch': .5,
                  'learning_rate': 3e-4, 'muon_lr': 3e-3}
