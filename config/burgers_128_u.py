# burgers_128_pure_channel.py with as many blocks in a U.
#
#     python train.py config/burgers_128_u.py
from config.burgers_128_pure_channel import *

out_dir = 'out/burgers_128_u'
arch = 'u'
depths = (2, 4, 2)
