# Keys of this folder, in the form of train.py.
# data
mixture = ()                       # configs whose equations are trained together by stages=mixture: burgers_cpu,ns_cpu
