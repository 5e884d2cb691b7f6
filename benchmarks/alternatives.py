"""Alternatives to try if a goal is missed: other tiles, warps and tiers, and how to force them.

NOTES.md says why each might be faster; none has been timed.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.goals import COPY, HOST, Goal
from benchmarks.shapes import ROW_OPS
from fastnorm.kernels import plans, row_geometry, row_plans, tiers, tilings

MODULES = {"tilings": tilings, "row_geometry": row_geometry}
PLANS = (
    plans.forward_plan, plans.backward_plan, row_plans.forward_plan, row_plans.backward_plan,
    row_plans.sum_launch,
)  # fmt: skip


@dataclass(frozen=True)
class Alternative:
    """Forced constants of `kernels/tilings.py` and `row_geometry.py`, warps and a tier."""

    constants: tuple[tuple[str, int], ...] = ()  # "module.NAME" and its value
    warps: int | None = None
    tier: str | None = None

    @property
    def name(self) -> str:
        parts = [f"{name} = {value}" for name, value in self.constants]
        parts += [f"{self.warps} warps"] if self.warps else []
        return ", ".join(parts + ([f"tier {self.tier}"] if self.tier else [])) or "as it is"


AS_IT_IS = Alternative()
ROWS_FORWARD = (
    Alternative(warps=8),
    Alternative((("row_geometry.STAGES", 4),)),
    Alternative((("row_geometry.FEW_WARPS_AN_SM", 16),)),
)
ROWS_BACKWARD = (
    Alternative(warps=16),
    Alternative((("row_geometry.STAGES", 4),)),
    Alternative((("row_geometry.STAGES", 2),)),
    Alternative(tier="streaming"),
)
CLUSTERS = (
    Alternative((("tilings.CLUSTER_WARPS", 8),)),
    Alternative((("tilings.CLUSTER_WARPS", 2),)),
    Alternative((("tilings.REGISTERS_IN_CLUSTERS", 48),)),
    Alternative((("tilings.REGISTERS_IN_CLUSTERS", 80),)),
    Alternative(tier="streaming"),
)
SEVERAL_TILES = (
    Alternative((("tilings.REGISTERS_OF_TILES", 48),)),
    Alternative(warps=16),
    Alternative(tier="streaming"),
)
STREAMED = (
    Alternative((("tilings.STREAMING_TILE", 2048),)),
    Alternative((("tilings.STREAMING_TILE", 8192),)),
    Alternative((("tilings.ENOUGH_PROGRAMS", 264),)),
)
SMALL_SETS = (
    Alternative(warps=8),
    Alternative(warps=2),
    Alternative(tier="streaming"),
)
SMALL_BATCHES = (
    Alternative(tier="cluster"),
    Alternative((("tilings.ENOUGH_PROGRAMS", 132),)),
    Alternative((("tilings.ENOUGH_PROGRAMS", 264),)),
    Alternative((("tilings.STREAMING_TILE", 2048),)),
)


def alternatives(goal: Goal, op: str) -> tuple[Alternative, ...]:
    """The alternatives for one of a goal's operators."""
    if goal.unit == HOST:
        return ()  # the cost is Python's, and no tile changes it
    if goal.unit != COPY:
        return SMALL_BATCHES if op == "bn" else STREAMED if op == "bin" else SMALL_SETS
    if op in ROW_OPS:
        return ROWS_FORWARD if goal.direction == "forward" else ROWS_BACKWARD
    if goal.provider == "fastnorm-coop":
        return CLUSTERS
    return SEVERAL_TILES if op == "gn" else STREAMED


@contextlib.contextmanager
def forced(alternative: Alternative) -> Iterator[None]:
    """Plans made inside the `with` block are the alternative's; none is kept after it."""
    choose = tiers.first_with_room

    def with_its_warps(*args: Any) -> Any:
        tier, geometry = choose(*args)
        return tier, geometry._replace(num_warps=alternative.warps)

    with contextlib.ExitStack() as stack:
        stack.callback(_forget_plans)
        for name, value in alternative.constants:
            module, constant = name.split(".")
            stack.callback(setattr, MODULES[module], constant, getattr(MODULES[module], constant))
            setattr(MODULES[module], constant, value)
        if alternative.warps:
            stack.callback(setattr, tiers, "first_with_room", choose)
            tiers.first_with_room = with_its_warps
        if alternative.tier:
            stack.enter_context(tiers.force(alternative.tier))
        _forget_plans()
        yield


def _forget_plans() -> None:
    for plan in PLANS:
        plan.cache_clear()
