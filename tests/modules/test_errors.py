"""Refusals of modules: torch's exception class for the same call, and nothing written."""

import pytest
import torch

import fastnorm
from tests.conftest import DEVICE, make_input, raised_by


def drawn(shape):
    return make_input(shape, dtype=torch.float32)


MODULES = {
    "BatchNorm1d": ((6,), [(2, 6, 4, 4), (6,), (2, 5, 4), (1, 6)]),
    "BatchNorm2d": ((6,), [(2, 6, 4), (2, 5, 4, 4), (1, 6, 1, 1)]),
    "BatchNorm3d": ((6,), [(2, 6, 4, 4), (2, 5, 4, 4, 4)]),
    "InstanceNorm1d": ((6, 1e-5, 0.1, True), [(2, 6, 4, 4), (2, 5, 4), (2, 6, 1)]),
    "InstanceNorm2d": ((6, 1e-5, 0.1, True), [(2, 6), (2, 5, 4, 4), (2, 6, 1, 1)]),
    "InstanceNorm3d": ((6, 1e-5, 0.1, True), [(2, 6, 4), (2, 5, 4, 4, 4)]),
    "LayerNorm": (((6, 4),), [(2, 4, 6), (4,)]),
    "RMSNorm": (((6, 4),), [(2, 4, 6), (4,)]),
    "GroupNorm": ((2, 6), [(2, 5, 4), (6,)]),
}


@pytest.mark.parametrize(
    ("name", "args", "shape"),
    [(name, args, shape) for name, (args, shapes) in MODULES.items() for shape in shapes],
    ids=str,
)
def test_modules_refuse_as_torch(name, args, shape):
    """Rank and channel checks of each module, with running statistics as they were."""
    ours, theirs = (
        getattr(fastnorm, name)(*args, device=DEVICE),
        getattr(torch.nn, name)(*args, device=DEVICE),
    )
    expected = raised_by(lambda: theirs(drawn(shape)))
    found = raised_by(lambda: ours(drawn(shape)))
    assert isinstance(found, type(expected)) and isinstance(expected, type(found)), (
        found,
        expected,
    )
    if getattr(ours, "running_mean", None) is not None:
        assert (ours.running_mean == 0).all() and (ours.running_var == 1).all()


@pytest.mark.parametrize("shape", [(2, 6, 4), (2, 5, 4, 4), (2, 6, 1, 1), (2, 6)], ids=str)
def test_batch_instance_norm_module_refuses(shape):
    module = fastnorm.BatchInstanceNorm2d(6, device=DEVICE)
    with pytest.raises((ValueError, RuntimeError)):
        module(drawn(shape))
    assert (module.running_mean == 0).all() and (module.running_var == 1).all()


@pytest.mark.parametrize("args", [(3, 4), (0, 4)], ids=str)
def test_group_norm_constructor(args):
    """Refused when built. At zero groups torch divides by zero, a ValueError will do."""
    theirs = raised_by(lambda: torch.nn.GroupNorm(*args))
    ours = raised_by(lambda: fastnorm.GroupNorm(*args))
    assert isinstance(ours, type(theirs) if args[0] else (ZeroDivisionError, ValueError))


def test_module_residual_of_another_shape():
    """The instance-norm modules add a batch to x; the residual is judged as the caller gave it."""
    module = fastnorm.InstanceNorm2d(6, device=DEVICE)
    with pytest.raises(RuntimeError, match="residual"):
        module(drawn((6, 4, 4)), drawn((1, 6, 4, 4)))
