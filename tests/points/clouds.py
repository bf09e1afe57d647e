"""Random points, and a smooth periodic field at any points."""
import math

import pytest
import torch

both = pytest.mark.parametrize('d', [1, 2])
edges = pytest.mark.parametrize('periodic', [True, False])


def scattered(n, d, seed=0):
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed))


def wave(x):
    """Smooth, with period 1 along every axis: (..., d) -> (..., 2)."""
    one = torch.sin(2 * math.pi * x + .4).prod(-1)
    other = torch.cos(4 * math.pi * x - 1).sum(-1)
    return torch.stack([one, 1 + other], -1)
