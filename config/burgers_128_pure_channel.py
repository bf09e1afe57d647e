# burgers_128_pure.py with channel-separated attention.
#
#     python train.py config/burgers_128_pure_channel.py
#
# Made for a GPU. No figure yet. Data: 8.2 GB, those of burgers_128_pure.py.
from config.burgers_128_pure import *

out_dir = 'out/burgers_128_pure_channel'
attention = 'channel'
group_size = 32
n_head = 4                         # in a group
