"""Rows with parameters of their group or their own, and gated rows, compiled and executed."""

import pytest
import torch

from fastnorm.backend import use_backend
from fastnorm.kernels import rows, tiers
from tests.compiled.executor import Emulator
from tests.compiled.schedules import SCHEDULES
from tests.compiled.trying import FEW_MULTIPROCESSORS, tickets_left
from tests.functional import test_gated as gated
from tests.kernels import test_row_parameters as parameters
from tests.kernels.test_row_parameters import Shapes
from tests.kernels.tilings import fresh_plans

KERNELS = {
    "one_program": ["row_norm_kernel", "row_norm_backward_kernel"],
    "streaming": ["row_moments_kernel", "row_apply_kernel", "row_sums_kernel", "row_dx_kernel"],
}
BF16, FP32 = torch.bfloat16, torch.float32
# Rows that a block does not divide, columns that a vector does not; runs that end within a group.
CASES = [
    ("one_program", Shapes((35, 131), (131,)), "rms", BF16),  # each thread has one column of a row
    ("one_program", Shapes((3, 21, 200), (3, 1, 200)), "layer", FP32),
    ("one_program", Shapes((35, 3, 131), (1, 3, 131)), "rms", BF16),
    ("one_program", Shapes((4, 3, 999), (4, 3, 999)), "layer", BF16),
    # Tiles of x and of both parameters two turns ahead would not fit the shared memory.
    ("one_program", Shapes((3, 16384), (3, 16384)), "layer", BF16),
    ("streaming", Shapes((2, 3, 9002), (2, 1, 9002)), "layer", BF16),
    ("streaming", Shapes((2, 2, 8209), (2, 2, 8209)), "rms", FP32),
]
GATED = [
    ("one_program", (33, 600), 200, FP32),
    ("one_program", (5, 1024), None, BF16),
    ("streaming", (3, 9001), None, BF16),
    ("streaming", (3, 384), 128, FP32),
]


@pytest.fixture(autouse=True)
def few_multiprocessors(monkeypatch):
    """Programs have several blocks of rows each."""
    monkeypatch.setattr(rows, "multiprocessors", lambda x: FEW_MULTIPROCESSORS)
    with fresh_plans():
        yield


def assert_executed(emulator: Emulator, tier: str) -> None:
    """The tier's kernels were, without a race."""
    launched = [kernel for kernel, *_ in emulator.log]
    assert [name for name in launched if name != "add_shares_kernel"] == KERNELS[tier]
    assert not [race for *_, statistics in emulator.log for race in statistics.races]
    assert tickets_left() == 0


@pytest.mark.parametrize(("tier", "shapes", "norm", "dtype"), CASES)
def test_parameters(emulator: Emulator, tier, shapes, norm, dtype) -> None:
    for name in ("random", "in turns"):
        emulator.options, emulator.log = SCHEDULES[name], []
        with tiers.force(tier):
            parameters.check(shapes, norm, dtype)
        assert_executed(emulator, tier)


@pytest.mark.parametrize("norm_before_gate", [False, True])
@pytest.mark.parametrize(("tier", "shape", "group_size", "dtype"), GATED)
def test_gated(emulator: Emulator, tier, shape, group_size, dtype, norm_before_gate) -> None:
    options = {"group_size": group_size, "norm_before_gate": norm_before_gate}
    with use_backend("triton"), tiers.force(tier):
        gated.check(gated.tensors_of(shape, dtype), **options)
    assert_executed(emulator, tier)
