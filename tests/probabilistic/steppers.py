"""Models with all stochastic steppers, for the tests of this folder."""
import torch

STOCHASTIC = ('diff_residual', 'consistency_distill', 'ensemble', 'steady_prior')
ALL = {'steppers': ('operator', *STOCHASTIC), 'flow_dim': 16, 'flow_depth': 1, 'noise_dim': 4}


def gaussian(seed=0):
    """A function (*shape) -> Gaussian numbers"""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


def field(m, n=3, seed=1, frames=None):
    """Random fields (n, [frames,] *grid, C)"""
    shape = [n, *([frames] if frames else []), *m.cfg.grid, m.cfg.n_field]
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
