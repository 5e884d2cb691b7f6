"""Batch norm of short contiguous channels, whose tiles are folded, compiled and executed.

The lanes of a folded tile are all positions of some channels, one run of memory, and its positions
are instances. Every launch of a case has to be one, and to give the values of float64.
"""

from typing import Any

import pytest
import torch

from fastnorm.kernels import launch, tilings
from tests.compiled.cases import Case, asked_exist, parameters_exist
from tests.compiled.executor import Emulator
from tests.compiled.pairs import covering
from tests.compiled.schedules import schedules_of
from tests.compiled.test_cases import check

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
# A tile has up to 2,048 lanes of 16 bits or 1,024 of 32, of whole channels, and 4 or 8 instances.
SHAPES = {
    "7x7": (9, 24, 7, 7),  # one instance in the last tile; 20 + 4 channels of 32 bits
    "7x7, two blocks": (6, 48, 7, 7),  # of 16 bits 40 + 8 channels, in tiles of 4 + 2 instances
    "14x14": (5, 12, 14, 14),  # 10 + 2 channels, 5 + 5 + 2
    "14x14, whole": (8, 10, 14, 14),
    "one instance": (1, 16, 7, 7),
    "shortest": (13, 36, 2),
    "longest": (3, 8, 15, 17),
}


class Folded(Case):
    """A streamed case of such a shape; with `few` programs each goes through several tiles."""

    @property
    def shape(self) -> tuple[int, ...]:
        return SHAPES[self.size]


# ReLU after a residual is not among them: its bits have bytes of their own, so nothing is folded.
FACTORS: dict[str, tuple[Any, ...]] = {
    "op": ("batch", "batch_eval", "batch_no_stats", "mean_only", "mean_only_eval"),
    "size": tuple(SHAPES),
    "fusion": ("plain", "relu", "silu", "residual", "gelu residual"),
    "asked": ("all", "x", "parameters"),
    "dtype": (FP32, BF16, FP16, torch.float64),
    "parameters": ("float32", "as x", "none"),
    "offset": (0, 1),
    "few": (False, True),
}
QUICK = [
    Folded("batch", "7x7", "relu", dtype=BF16, tier="streaming", few=True),
    Folded("batch", "7x7, two blocks", dtype=FP16, tier="streaming"),
    Folded("batch", "14x14", "silu", dtype=FP32, tier="streaming", offset=1),
    Folded("batch_eval", "14x14", "relu", dtype=BF16),
    Folded("batch_eval", "7x7", dtype=FP32, offset=1),
]
SLOW = [
    Folded("batch", "14x14", "silu residual", dtype=BF16, tier="streaming", few=True),
    Folded("batch", "7x7", dtype=FP32, tier="streaming", few=True, mean=1000.0),
    Folded("batch_eval", "7x7, two blocks", "silu", dtype=FP16),
]


def parameters() -> list[object]:
    cases = [*QUICK, *SLOW]
    for row in covering(FACTORS, (asked_exist, parameters_exist)):
        alone = row["op"].endswith("_eval")
        cases.append(Folded(**row, tier="one_program" if alone else "streaming"))
    return [
        pytest.param(case, i, id=str(case), marks=() if case in QUICK else pytest.mark.slow)
        for i, case in enumerate(cases)
    ]


@pytest.fixture
def folded(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each launch, whether its tiles are folded."""
    found: list[bool] = []
    run = launch.Launch.__call__

    def noting(self: Any, *args: Any) -> Any:
        found.append(self.constants["K"].FOLDED)
        return run(self, *args)

    monkeypatch.setattr(launch.Launch, "__call__", noting)
    return found


@pytest.mark.parametrize(("case", "turn"), parameters())
def test_case(
    emulator: Emulator,
    folded: list[bool],
    monkeypatch: pytest.MonkeyPatch,
    case: Case,
    turn: int,
) -> None:
    if case.few:
        monkeypatch.setattr(tilings, "ENOUGH_PROGRAMS", 1)
    check(emulator, case, schedules_of(case, turn))
    assert folded and all(folded)
