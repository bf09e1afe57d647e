# config/ns_cpu.py with random points in, 512 new ones for every batch: half as many as its grid has.
#
#     python train.py config/ns_points_cpu.py
#     python eval.py --ckpt out/ns_points_cpu --placements 256 512 1024 2048
from config.ns_cpu import *

out_dir = 'out/ns_points_cpu'
encoder = 'points'
input_points = 512
encoder_dim = 32                   # what splines between the points miss is learned
lambda_inverse_encoding = 50.
max_minutes = 5.
max_iters = 1_000_000
