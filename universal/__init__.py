"""One model of several equations: shared blocks, and an encoder, two linear maps and a vector for each."""
from losses import STAGES
from model import CONDITIONS, NETWORKS

from universal.mixture import MixtureStage
from universal.model import NamedConditioning, SharedTransformer

NETWORKS['universal'] = SharedTransformer
CONDITIONS['universal'] = NamedConditioning
STAGES['mixture'] = MixtureStage
