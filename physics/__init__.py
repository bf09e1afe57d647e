"""Physics priors as losses (lambda_conservation ...), and the report of eval.py --physics."""
from losses import EXTENSIONS, LOSSES

from physics.priors import PRIORS, add_priors

LOSSES.update(PRIORS)
EXTENSIONS.append(add_priors)
