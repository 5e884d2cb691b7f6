"""The longest rows that one program keeps, compiled and executed: tiles that stay packed, and 32
warps whose threads spill."""

from dataclasses import dataclass

import pytest
import torch

from tests.compiled.cases import Case
from tests.compiled.executor import Emulator
from tests.compiled.schedules import schedules_of
from tests.compiled.test_cases import check

BF16, FP16 = torch.bfloat16, torch.float16


@dataclass(frozen=True)
class LongRows(Case):
    """Rows of a shape such as "3x16384", in the tiers that a call takes by itself."""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(map(int, self.size.split("x")))

    @property
    def forces_tier(self) -> bool:
        return False

    @property
    def forward(self) -> list[str]:
        return ["row_norm_kernel"]

    @property
    def backward(self) -> str:
        return "row_norm_backward_kernel"


class InTiles(LongRows):
    @property
    def forward(self) -> list[str]:
        return ["several_tiles_row_kernel"]


class StreamForward(LongRows):
    @property
    def forward(self) -> list[str]:
        return ["row_moments_kernel", "row_apply_kernel"]


class StreamBackward(LongRows):
    @property
    def backward(self) -> str:
        return "row_sums_kernel"


class Stream(StreamForward, StreamBackward):
    pass


CASES = [
    LongRows("layer", "3x16384", dtype=BF16, parameters="as x"),
    LongRows("layer", "3x16384", "relu residual", dtype=FP16, parameters="as x", few=True),
    LongRows("rms", "3x9001", "relu", dtype=BF16, parameters="as x"),
    LongRows("rms", "5x16384", dtype=BF16, few=True),
    LongRows("layer", "3x9000", "relu residual", dtype=BF16, parameters="none", offset=1),
    StreamBackward("layer", "3x9000", "relu", dtype=BF16, parameters="as x"),
    InTiles("add_rms", "2x32768", dtype=BF16, parameters="as x"),
    InTiles("layer", "2x32768", dtype=BF16, asked="x", parameters="as x"),
    InTiles("rms", "3x32768", dtype=FP16, parameters="as x", few=True),
    Stream("rms", "2x32768", dtype=BF16, asked="x"),
    LongRows("rms", "3x16384", "gelu residual", few=True),
    StreamBackward("layer", "2x16384", "gelu residual"),
    LongRows("add_layer", "3x8193"),
    LongRows("rms", "3x12288", "relu residual", offset=1),
    StreamBackward("layer", "2x32768", "relu"),
    StreamBackward("rms", "2x32768"),
]


@pytest.mark.parametrize(("case", "turn"), [(case, i) for i, case in enumerate(CASES)], ids=str)
def test_case(emulator: Emulator, case: LongRows, turn: int) -> None:
    check(emulator, case, schedules_of(case, turn))
    assert emulator.log[len(case.forward)][0] == case.backward
