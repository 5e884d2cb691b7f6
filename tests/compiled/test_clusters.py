"""Clusters whose members have the size that they have on a GPU, compiled and executed.

`cases.py` has members with two warps, in all combinations.
"""

from dataclasses import dataclass

import pytest
import torch

from fastnorm.kernels import tilings
from tests.compiled.cases import Case
from tests.compiled.executor import Emulator
from tests.compiled.test_cases import check
from tests.compiled.trying import compiled_results, tensors_of

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
WARPS, TILE = tilings.CLUSTER_WARPS, tilings.SEVERAL_TILES[tilings.CLUSTER_WARPS]
# A member of 16 bits has 16,384 elements forward, half as many backward.
SHAPES = {
    "many instances": (21, 2, 72, 74),  # rows of 512 positions; the last tiles lack both
    "short instances": (90, 2, 14, 14),  # of which a row is longer
    "one instance": (1, 3, 150, 152),
    "positions": (2, 2, 150, 152),
    "just one more": (2, 1, 4, 4097),
}


@dataclass(frozen=True)
class Large(Case):
    """A set of such a shape."""

    tier: str = "cluster"

    @property
    def shape(self) -> tuple[int, ...]:
        return SHAPES[self.size]

    @property
    def several_tiles(self) -> dict[int, int]:
        return {WARPS: TILE}


CASES = [
    Large("batch", "many instances", "relu", dtype=BF16, few=True),
    Large("batch", "short instances", dtype=FP32, mean=1000.0, parameters="none"),
    Large("batch_no_stats", "one instance", "silu", dtype=FP16, parameters="as x"),
    Large("mean_only", "many instances", "gelu", dtype=FP32),
    Large("instance", "positions", dtype=BF16, mean=10.0, asked="parameters"),
    Large("instance", "just one more", "relu", dtype=FP32, few=True),
    Large("group_1", "positions", "silu", dtype=FP16, few=True),
    Large("group", "positions", dtype=FP32, mean=1000.0, asked="x and bias"),
]
QUICK = (0, 1, 6)


@pytest.mark.parametrize("op", ["mean_only", "batch", "instance"])
def test_a_value_without_bound_stays_in_its_set(emulator: Emulator, op: str) -> None:
    """Nothing but the output depends on x if only means are taken: then dx is finite too."""
    case = Case(op, "even", tier="cluster")
    tensors = tensors_of(case)
    tensors["x"][1, 2, 3, 4] = float("inf")
    found, launched = compiled_results(case, tensors)
    assert launched == ["cluster_kernel", "cluster_backward_kernel"]
    alone = (1, 2) if op == "instance" else (slice(None), 2)
    finite = (
        torch.isfinite(found["y"]).flatten(2).all(2),
        torch.isfinite(found["dx"]).flatten(2).all(2),
    )
    for name, each in zip(("y", "dx"), finite, strict=True):
        others = each.clone()
        others[alone] = True
        assert others.all(), name
        assert not each[alone].any() or (name == "dx" and op == "mean_only" and each.all())


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=str(case), marks=() if i in QUICK else pytest.mark.slow)
        for i, case in enumerate(CASES)
    ],
)
def test_case(emulator: Emulator, case: Large) -> None:
    check(emulator, case, ("in turns", "warps backward"))
