"""Shared by the tests: one thread, and one small file made by the built-in solver."""
import os
import sys

import pytest
import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from solvers import write_burgers

torch.set_num_threads(1)


@pytest.fixture(scope='session')
def burgers_file(tmp_path_factory):
    """Path of a PDEBench-layout file of 20 trajectories at nu .01."""
    return write_burgers(str(tmp_path_factory.mktemp('burgers') / 'nu0.01.hdf5'), 20, .01, device='cpu')
