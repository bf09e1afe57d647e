"""Physics priors as losses (lambda_conservation ...), and the report of eval.py --physics."""
from losses import EXTENSIONS, LOSSES

from physics.priors import PRIORS, add_priors

LOSSES.update(PRIORS)
EXTENSIONS.insert(0, add_priors)                             # before points/ takes some points of the fields
