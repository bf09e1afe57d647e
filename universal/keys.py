# Keys of this folder, in the form of train.py.
# data
mixture = ()                       # configs that stages=mixture trains together: burgers_cpu,ns_cpu
