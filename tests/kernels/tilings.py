"""The interpreter with a GPU's tilings, tiny: many units, members, pieces and tiles in each tier.

The interpreter's own tilings are as large as possible, for speed. So without this the merges of
tiles and of programs would never run without a GPU. On a GPU every test runs them.
"""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from fastnorm.kernels import plans, row_geometry, row_plans, row_room, rows, tilings, weight
from tests.conftest import DEVICE

PLANS = (
    plans.forward_plan,
    plans.backward_plan,
    row_plans.forward_plan,
    row_plans.backward_plan,
    row_plans.sum_launch,
    weight.weight_launch,
)
MULTIPROCESSORS = 2
ROW_SIZES = {
    "MANY_BYTES": 512, "PACKED": 0, "TILE": 32,
    "REDUCING_TILE": (32, 64), "WARP_TILE": {2: 64, 4: 32, 8: 32}, "BACKWARD_WARP_TILE": 8,
    "GATED_WARP_TILE": 8, "TILE_OF_SEVERAL": 32, "MOST_OF_FEW_PARTS": 2,
}  # fmt: skip
ROW_ROOM = {
    "LONGEST_ROW": 64, "LONGEST_ROW_BACKWARD": {2: 64, 4: 64, 8: 64}, "LONGEST_WHOLE_ROW": 128,
    "LONGEST_CROWDED": 64, "LONGEST_OF_TILES": 128, "LONGEST_SUM_OF_TILES": 128,
}  # fmt: skip

interpreted = pytest.mark.skipif(DEVICE != "cpu", reason="a GPU uses these tilings everywhere")


@contextlib.contextmanager
def fresh_plans() -> Iterator[None]:
    """No plan of before the `with` block serves a call inside it, and none of its own one after."""
    for plan in PLANS:
        plan.cache_clear()
    try:
        yield
    finally:
        for plan in PLANS:
            plan.cache_clear()


@contextlib.contextmanager
def tiny_tilings(**sizes: Any) -> Iterator[list[Any]]:
    """A GPU's tilings with tiny tiles; yields the tier and geometry of each plan that is made.

    `sizes` are constants of kernels/tilings.py beside those that are tiny anyway.
    """
    gpu = SimpleNamespace(INTERPRETED=False)
    tiny = {
        "ONE_PROGRAM_TILES": {256: 4, 512: 4, 1024: 4},
        "WIDEST_ROW": 16,
        "SEVERAL_TILES": {},
        **sizes,
    }
    found: list[Any] = []
    with fresh_plans(), pytest.MonkeyPatch.context() as patch:
        for module in (tilings, row_geometry):
            patch.setattr(module, "launch", gpu)
            patch.setattr(module, "choose", _recorded(module.choose, found))
        for name, value in tiny.items():
            patch.setattr(tilings, name, value)
        for name, value in ROW_SIZES.items():
            patch.setattr(row_geometry, name, value)
        for name, value in ROW_ROOM.items():
            patch.setattr(row_room, name, value)
        patch.setattr(rows, "multiprocessors", lambda x: MULTIPROCESSORS)
        yield found


def _recorded(choose, found):
    def choose_and_record(*args):
        found.append(choose(*args))
        return found[-1]

    return choose_and_record
