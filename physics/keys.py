# Keys of this folder, in the form of train.py: weights of losses on decoded fields, for equations that have
# the property.
lambda_conservation = 0.           # change of conserved integrals; needs conserve=False
lambda_boundary = 0.               # boundary-condition violation, minus that of the true fields
lambda_divergence = 0.             # divergence of an incompressible velocity
lambda_residual = 0.               # PDE residual between frames, minus the residual of the true frames
