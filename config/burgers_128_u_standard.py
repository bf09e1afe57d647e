# burgers_128_pure.py with as many blocks in a U.
#
#     python train.py config/burgers_128_u_standard.py
#
# Made for a GPU. No figure yet. Data: 8.2 GB, those of burgers_128_pure.py.
from config.burgers_128_pure import *

out_dir = 'out/burgers_128_u_standard'
arch = 'u'
depths = (2, 4, 2)
