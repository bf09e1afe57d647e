# Keys of this folder, in the form of train.py. encoder='points' makes the encoder see values at any points.
# losses
num_queries = 0                    # grid points of the field losses, drawn anew for every batch; 0: all
query_strategy = 'uniform'         # uniform, stratified, or importance (more where fields are steep)
input_points = 512                 # points at which encoder=points sees a batch, drawn anew for every batch
