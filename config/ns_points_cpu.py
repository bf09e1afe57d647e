# config/ns_cpu.py with the vorticity at 128 random points in, new ones for every batch: an eighth of what
# config/ns_cpu.py sees, so few that splines between them miss 3 % of it.
#
#     python train.py config/ns_points_cpu.py
#     python eval.py --ckpt out/ns_points_cpu --placements 64 128 256 512 1024 2048
from config.ns_cpu import *

out_dir = 'out/ns_points_cpu'
encoder = 'points'
input_points = 128
encoder_dim = 32                   # supernodes learn what splines between the points miss
lambda_inverse_encoding = 10.
max_iters = 3500
