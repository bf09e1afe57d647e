"""
Other people's networks in this project's frame: operators that map a field to its change over one step.

A peer is an operator of model.py like the transformer: with one token a grid point and no learned encoder or decoder,
tokens are the normalised field itself. So train.py trains it with the same data, losses, symmetries, moving frame,
conservation, averaging and schedule, by --arch=fno. Each takes a ModelConfig, and maps (B, S, D), cond -> (B, S, D).
"""
NETWORKS = {}
