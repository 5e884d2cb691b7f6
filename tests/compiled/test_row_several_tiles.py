"""Rows that one program keeps in several tiles, compiled and executed; their backward streams."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from tests.compiled.cases import OF_ROWS, Case, asked_exist, fusion_exists
from tests.compiled.executor import Emulator
from tests.compiled.pairs import covering
from tests.compiled.schedules import schedules_of
from tests.compiled.test_cases import check

BF16, FP16 = torch.bfloat16, torch.float16
SHAPES = {
    "whole tiles": (3, 20480),
    "one column more": (2, 16385),
    "one column missing": (2, 20479),
    "one vector missing": (2, 20472),
    "longest": (2, 32768),
}


@dataclass(frozen=True)
class LongRows(Case):
    """Rows of such a shape, in the tier that a call takes by itself."""

    dtype: torch.dtype = BF16
    parameters: str = "as x"

    @property
    def shape(self) -> tuple[int, ...]:
        return SHAPES[self.size]

    @property
    def forces_tier(self) -> bool:
        return False

    @property
    def forward(self) -> list[str]:
        if self.op == "add_layer" and self.size == "longest":  # it would spill
            return ["row_moments_kernel", "row_apply_kernel"]
        return ["several_tiles_row_kernel"]


FACTORS: dict[str, tuple[Any, ...]] = {
    "op": OF_ROWS,
    "size": tuple(SHAPES),
    "fusion": ("plain", "relu", "silu", "residual", "relu residual", "silu residual"),
    "asked": ("all", "x", "parameters"),
    "dtype": (BF16, FP16),
    "parameters": ("as x", "none"),
    "offset": (0, 1),
    "few": (False, True),
}
QUICK = [
    LongRows("layer", "one column more", few=True),
    LongRows("rms", "whole tiles", "relu residual", dtype=FP16, few=True),
    LongRows("add_layer", "one vector missing", few=True),
    LongRows("layer", "longest", mean=100.0, asked="x"),
]


def parameters() -> list[object]:
    cases = [*QUICK, *(LongRows(**row) for row in covering(FACTORS, (fusion_exists, asked_exist)))]
    return [
        pytest.param(case, i, id=str(case), marks=() if case in QUICK else pytest.mark.slow)
        for i, case in enumerate(cases)
    ]


@pytest.mark.parametrize(("case", "turn"), parameters())
def test_case(emulator: Emulator, case: LongRows, turn: int) -> None:
    check(emulator, case, schedules_of(case, turn))


def test_wide_parameters_stream(emulator: Emulator) -> None:
    """With weight and bias in float32 the registers would not do."""

    class Streaming(LongRows):
        @property
        def forward(self) -> list[str]:
            return ["row_moments_kernel", "row_apply_kernel"]

    check(emulator, Streaming("layer", "whole tiles", parameters="float32"), ("random",))
