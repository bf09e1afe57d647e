# ns_cpu.py with the vorticity at 128 random points as input, new ones for every batch. They are so few that
# splines between them miss 3 % of the field.
#
#     python train.py config/ns_points_cpu.py
#     python eval.py --ckpt out/ns_points_cpu --input_points 64 128 256 512 1024 2048
#
# 4.7 minutes of one thread, seed 0: test nRMSE .0132 from 128 other points, .0113 from 256, .0112 from the
# grid. The weights of ns_cpu.py, trained on the grid alone, have .0133, .0038 and .0034 (dev/LOG.md).
from config.ns_cpu import *

out_dir = 'out/ns_points_cpu'
encoder = 'points'
input_points = 128
encoder_dim = 32                   # supernodes learn the error of the splines
lambda_inverse_encoding = 10.
max_iters = 3500
