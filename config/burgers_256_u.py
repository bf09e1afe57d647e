# burgers_256_pure.py with channel-separated attention, in a U of half as many blocks again.
#
#     python train.py config/burgers_256_u.py
from config.burgers_256_pure import *

out_dir = 'out/burgers_256_u'
arch = 'u'
depths = (4, 4, 4)
attention = 'channel'
group_size = 32
n_head = 4                         # in a group
