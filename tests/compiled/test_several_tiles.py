"""Sets within an instance that one program keeps in several tiles, compiled and executed.

A backward has room for half as many tiles. If they are too many, or after a residual, it keeps one
tile of 16,384 elements.
"""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from fastnorm.kernels import tilings
from tests.compiled.cases import Case, asked_exist, parameters_exist
from tests.compiled.executor import Emulator
from tests.compiled.pairs import covering
from tests.compiled.schedules import schedules_of
from tests.compiled.test_cases import check

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
# In tiles of 1,024, 2,048 or 4,096 elements, for 4, 8 or 16 warps; here of 2,048.
SHAPES = {
    "positions": (2, 1, 96, 96),  # five tiles of a channel, the last of them half full
    "one missing vector": (2, 1, 4, 2045),
    "channels": (1, 40, 16, 16),  # five tiles of eight channels, all of them full
    "missing channels": (2, 36, 12, 21),  # and positions
    "positions of channels": (1, 3, 4, 513),  # two tiles of each channel
}
TILES = dict(tilings.SEVERAL_TILES)
WHOLE_CHANNELS = ("positions", "one missing vector")


@dataclass(frozen=True)
class SeveralTiles(Case):
    """A set of such a shape, in tiles for that many warps."""

    warps: int = 8

    @property
    def shape(self) -> tuple[int, ...]:
        return SHAPES[self.size]

    @property
    def several_tiles(self) -> dict[int, int]:
        return {self.warps: TILES[self.warps]}

    @property
    def forward(self) -> list[str]:
        return ["several_tiles_kernel"]

    def __str__(self) -> str:
        return f"{super().__str__()} {self.warps} warps"


def set_exists(op: str, size: str) -> bool:
    """Sets of one channel are those of instance norm."""
    return (op == "group_1") != (size in WHOLE_CHANNELS)


def tiles_fit(size: str, dtype: torch.dtype, warps: int) -> bool:
    """Five tiles of float64 fill the registers."""
    return dtype != torch.float64 or warps == 16 or (warps == 8 and size in WHOLE_CHANNELS)


FACTORS: dict[str, tuple[Any, ...]] = {
    "op": ("instance", "instance_stats", "group_1"),
    "size": tuple(SHAPES),
    "fusion": ("plain", "relu", "silu", "gelu", "relu residual", "silu residual"),
    "asked": ("all", "x", "parameters"),
    "dtype": (FP32, BF16, FP16, torch.float64),
    "parameters": ("float32", "as x", "none"),
    "offset": (0, 1),
    "modulated": (False, True),
    "warps": (4, 8, 16),
}
QUICK = [
    SeveralTiles("group_1", "channels", "silu", dtype=BF16, warps=4),
    SeveralTiles("group_1", "missing channels", dtype=FP16, offset=1),
    SeveralTiles("instance_stats", "positions", "relu", dtype=BF16),
    SeveralTiles("group_1", "missing channels", "relu residual", dtype=BF16, warps=4),
    SeveralTiles("instance", "one missing vector", dtype=FP32, mean=1000.0),
]
SLOW = [SeveralTiles("group_1", "positions of channels", dtype=BF16, mean=1000.0)]


def parameters() -> list[object]:
    rules = (asked_exist, parameters_exist, set_exists, tiles_fit)
    cases = [*QUICK, *SLOW, *(SeveralTiles(**row) for row in covering(FACTORS, rules))]
    return [
        pytest.param(case, i, id=str(case), marks=() if case in QUICK else pytest.mark.slow)
        for i, case in enumerate(cases)
    ]


@pytest.mark.parametrize(("case", "turn"), parameters())
def test_case(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, case: SeveralTiles, turn: int
) -> None:
    monkeypatch.setattr(tilings, "LESS_PADDED", 1.01)  # rather than one tile, even if as large
    check(emulator, case, schedules_of(case, turn))
    if case in QUICK and not case.has_residual:
        launched = {name for name, *_ in emulator.log or ()}
        assert "several_tiles_backward_kernel" in launched
