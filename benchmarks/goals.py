"""The goals, written down before any measurement, and others' published figures, as one table.

Each goal is one number that is compared with a run's rows: `table` says met, missed by how much, or
not measured. A run prints this table, and docs/benchmarks.md has it too.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.rows import Row, Table, timed
from benchmarks.shapes import (
    BN_OF_FP16,
    LN_OF_FP16,
    RMS_OF_CUDNN,
    RMS_OF_QUACK,
    Case,
    describe,
)

LARGE = 64 * 10**6  # bytes of a tensor: from there on only bandwidth matters
RIVALS = ("eager", "compile")
COPY = "% of copy"
HOST = "us of the host"


def measured_as(row: Row) -> tuple[Any, ...]:
    """Two rows are comparable if this is equal: a graph's time only to a graph's."""
    keys = ("op", "dtype", "layout", "fused", "direction", "l2", "timing")
    return (*row["shape"], *(row[key] for key in keys))


def ratios(rows: Sequence[Row], provider: str, rival: str) -> list[tuple[Row, float]]:
    """The provider's rows that the rival has too, and the rival's time over theirs."""
    times = {measured_as(row): row["us_p50"] for row in timed(rows, rival)}
    return [
        (row, times[measured_as(row)] / row["us_p50"])
        for row in timed(rows, provider)
        if measured_as(row) in times
    ]


@dataclass(frozen=True)
class Goal:
    """One number, a target for the rows that `applies` selects.

    `unit` is COPY, the median share of the copy bandwidth; HOST, the median cost of a call on the
    host, at most; or "x RIVAL", the geometric mean of the speed-up over that provider.
    """

    name: str
    target: float
    unit: str
    direction: str
    applies: Callable[[Row], bool]
    provider: str = "fastnorm"
    passes: float = 1.0  # the traffic counted by a published share, over the traffic counted here

    def rows(self, rows: Sequence[Row]) -> list[Row]:
        """The rows of its provider that have a time."""
        return [
            row
            for row in timed(rows, self.provider)
            if row["direction"] == self.direction and self.applies(row)
        ]

    def value(self, rows: Sequence[Row]) -> float | None:
        """The measured value; None without a row."""
        mine = self.rows(rows)
        if self.unit in (COPY, HOST):
            key = "pct_copy" if self.unit == COPY else "host_us"
            return self.passes * statistics.median(row[key] for row in mine) if mine else None
        rival = self.unit.removeprefix("x ")
        found = [ratio for _, ratio in ratios([*mine, *timed(rows, rival)], self.provider, rival)]
        return statistics.geometric_mean(found) if found else None

    def missed_by(self, rows: Sequence[Row]) -> float | None:
        """The missing share of the target, negative if it is met; None if not measured."""
        value = self.value(rows)
        if value is None:
            return None
        lacking = value - self.target if self.unit == HOST else self.target - value
        return lacking / self.target

    def verdict(self, rows: Sequence[Row]) -> str:
        missed = self.missed_by(rows)
        if missed is None:
            return "not measured"
        return f"missed by {100 * missed:.0f}%" if missed > 0 else "met"


def _large(op: str, fused: Sequence[str] = ("plain", "relu")) -> Callable[[Row], bool]:
    return lambda row: (
        row["op"] == op
        and row["fused"] in fused
        and row["tensor_bytes"] >= LARGE
        and row["l2"] == "cold"
    )


def _cifar(l2: str) -> Callable[[Row], bool]:
    return lambda row: (row["family"], row["l2"], row["timing"]) == ("cifar", l2, "graph")


def _is(case: Case) -> Callable[[Row], bool]:
    what = describe(case)
    return lambda row: row["l2"] == "cold" and what.items() <= row.items()


def _shares(
    op: str, forward: float, backward: float, provider: str, note: str = ""
) -> tuple[Goal, ...]:
    return tuple(
        Goal(
            f"{op} {direction}, 64 MB and more{note}", target, COPY, direction, _large(op), provider
        )
        for direction, target in (("forward", forward), ("backward", backward))
    )


GOALS = (
    *(goal for op in ("ln", "rms") for goal in _shares(op, 90, 85, "fastnorm")),
    *_shares("gn", 90, 85, "fastnorm"),
    # Sets larger than a program holds; without clusters a tensor is read twice.
    *_shares("in", 90, 85, "fastnorm-coop", ", with clusters"),
    *_shares("bn", 80, 75, "fastnorm-coop", ", in training, with clusters"),
    *_shares("bin", 60, 56, "fastnorm", ", in training"),
    Goal(
        "bn + residual + ReLU, forward + backward",
        58,
        COPY,
        "both",
        _large("bn", ("residual_relu",)),
    ),
    *(
        Goal(f"CIFAR shapes in a CUDA graph, {l2} L2", target, f"x {rival}", "both", _cifar(l2))
        for rival, target in (("eager", 2.0), ("compile", 1.2))
        for l2 in ("cold", "warm")
    ),
    Goal(
        "an eager forward on the host",
        15,
        HOST,
        "forward",
        lambda row: row["fused"] == "plain" and row["l2"] == "cold",
    ),
)
# Others' best, as published: measured by each package in its own way, on another machine.
PUBLISHED = (
    Goal(
        "rms backward 8192x4096 float32: quack on an H100",
        81,
        COPY,
        "backward",
        _is(RMS_OF_QUACK),
    ),
    Goal(
        "rms backward 16384x4096 bfloat16: cuDNN on an H200",
        79,
        COPY,
        "backward",
        _is(RMS_OF_CUDNN),
    ),
    Goal("ln backward 32768x2048 float16: on an H100", 42, COPY, "backward", _is(LN_OF_FP16)),
    Goal(
        "bn forward in training 4x128x1024x1024 float16: on an H200, of 3 S",
        74,
        COPY,
        "forward",
        _is(BN_OF_FP16),
        passes=1.5,  # they count 3 S of traffic, the floor here is 2 S
    ),
)


def line(goal: Goal, rows: Sequence[Row]) -> list[str]:
    """A goal's name, target, measured value and verdict."""
    digits = ".2f" if goal.unit.startswith("x ") else ".0f"
    value = goal.value(rows)
    bound = "at most" if goal.unit == HOST else "at least"
    return [
        goal.name,
        f"{bound} {goal.target:{digits}} {goal.unit}",
        "" if value is None else f"{value:{digits}}",
        goal.verdict(rows),
    ]


def table(rows: Sequence[Row]) -> Table:
    """All goals, then the published figures to beat."""
    heads = ["goal", "target", "measured", ""]
    return [heads, *(line(goal, rows) for goal in (*GOALS, *PUBLISHED))]
