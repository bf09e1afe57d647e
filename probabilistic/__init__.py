"""Later stages with stochastic steppers: flows, ensembles, latent cache, search, ensemble scores."""
from losses import EXTENSIONS, STAGES
from model import STEPPERS

from probabilistic import stages
from probabilistic.cache import check_cache
from probabilistic.flows import Corrector, DistilledCorrector, Ensemble, SteadyPrior

STEPPERS.update(diff_residual=Corrector, consistency_distill=DistilledCorrector, ensemble=Ensemble,
                steady_prior=SteadyPrior)
STAGES.update(diff_residual=stages.DiffResidualStage, consistency_distill=stages.ConsistencyDistillStage,
              ensemble=stages.EnsembleStage, steady_prior=stages.SteadyPriorStage)
EXTENSIONS.append(check_cache)
