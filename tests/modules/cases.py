"""The modules with torch.nn's constructors: construction, calls, and values for them."""

import torch

import fastnorm
from tests.conftest import DEVICE, make_input

C = 4
SHAPES = {1: (3, C, 5), 2: (3, C, 4, 3), 3: (2, C, 3, 2, 2)}
KINDS = ("BatchNorm", "InstanceNorm", "BatchInstanceNorm")
# name: (positional arguments, rank of the spatial part)
ARGUMENTS = {
    **{f"{kind}{d}d": ((C, 1e-5, 0.1, True, True), d) for kind in KINDS for d in (1, 2, 3)},
    "SyncBatchNorm": ((C,), 2),
    "LayerNorm": (((C, 4, 3),), 2),
    "RMSNorm": (((C, 4, 3),), 2),
    "GroupNorm": ((2, C), 2),
}
MODULES = tuple(ARGUMENTS)
TWINS = tuple(name for name in MODULES if not name.startswith("BatchInstance"))  # torch.nn's too
TWINS_2D = ("BatchNorm2d", "InstanceNorm2d", "LayerNorm", "RMSNorm", "GroupNorm")
BIN = tuple(name for name in MODULES if name.startswith("BatchInstance"))


def make(name, package=fastnorm, **kwargs):
    kwargs = {"device": DEVICE, "dtype": torch.float64} | kwargs
    return getattr(package, name)(*ARGUMENTS[name][0], **kwargs)


def shape_of(name):
    return SHAPES[ARGUMENTS[name][1]]


def randomised(module):
    """The module with parameters and floating-point buffers that no constructor would make."""
    for i, tensor in enumerate(module.state_dict().values()):
        if tensor.is_floating_point():
            tensor.copy_(make_input(tensor.shape, seed=i).abs().clamp(max=4) / 8 + 0.25)
        else:
            tensor.fill_(5)
    return module


def assert_same_state(module, expected):
    state = module.state_dict()
    assert list(state) == list(expected)
    for key, value in expected.items():
        assert state[key].dtype == value.dtype and torch.equal(state[key], value), key
