# burgers_32_u_inverse.py without the inverse losses.
#
#     python train.py config/burgers_32_u.py
from config.burgers_32_u_inverse import *

out_dir = 'out/burgers_32_u'
lambda_inverse_encoding = lambda_inverse_decoding = 0.
