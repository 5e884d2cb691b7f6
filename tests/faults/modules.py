"""A norm of each family that writes running statistics, and a training call of it."""

import contextlib

import pytest
import torch

import fastnorm
from fastnorm.kernels import tiers
from tests.conftest import BACKENDS, DEVICE

C = 4
SHAPE = (3, C, 3, 5)
WRITERS = ("BatchNorm2d", "InstanceNorm2d", "BatchInstanceNorm2d")  # of running statistics

# (backend, tier): one backend has tiers, and chooses one by itself where None is forced.
each_backend_and_tier = pytest.mark.parametrize(
    ("backend", "tier"), [("triton", "streaming"), *((backend, None) for backend in BACKENDS)]
)


def forced(tier):
    return contextlib.nullcontext() if tier is None else tiers.force(tier)


def make(name, **kwargs):
    return getattr(fastnorm, name)(
        C, track_running_stats=True, device=DEVICE, dtype=torch.float64, **kwargs
    )


def snapshot(module):
    return {key: tensor.clone() for key, tensor in module.state_dict().items()}


def assert_unchanged(module, before):
    for key, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[key]), key


def train(module, x, dy):
    """y and every gradient of one training call."""
    leaf = x.clone().requires_grad_()
    y = module(leaf)
    gradients = torch.autograd.grad(y, [leaf, *module.parameters()], dy)
    return y.detach(), *gradients


class LaunchError(Exception):
    pass
