# ks_cpu.py and the later stages, of which a chaotic equation has use: a corrector, its student, and an
# ensemble of operators that are steered by noise. (No state is steady, and there is no decoder to be
# trained.)
#
#     python train.py config/ks_full.py
#     python eval.py --ckpt out/ks_full --by operator residual distill ensemble --ttc by=ensemble
#
# make stages trains two seeds and evaluates them: CRPS .366 by the operator, .204 by residual, .206 by
# distill, .214 by ensemble (docs/RESULTS.md).
from config.ks_cpu import *

out_dir = 'out/ks_full'
stages = ('operator', 'residual', 'distill', 'ensemble')
members = 2
residual_stage = {'max_iters': 1600, 'unroll': 2}
distill_stage = {'max_iters': 500, 'unroll': 2, 'flow_steps': 1, 'learning_rate': 3e-4, 'muon_lr': 3e-3}
ensemble_stage = {'max_iters': 1400, 'unroll': 4, 'unroll_start': 1, 'unroll_switch': .5,
                  'learning_rate': 3e-4, 'muon_lr': 3e-3}
