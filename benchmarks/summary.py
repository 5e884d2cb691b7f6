"""Goals against what was reached, and speed-ups, from the rows of a run; as text or Markdown."""

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.providers import OURS
from benchmarks.shapes import DIRECTIONS, OPS

Row = dict[str, Any]
Table = list[list[str]]
LARGE = 64 * 10**6  # bytes of a tensor for which bandwidth alone decides
RIVALS = ("eager", "compile")
HOST_US, HOST_US_OVER_TORCH = 15.0, 5.0  # of one forward call


class Goal(NamedTuple):
    """What the rows that `applies` names are held to.

    `percent` of the copy bandwidth, by direction: medians. Geometric means of the speed-up of
    forward + backward over each of RIVALS.
    """

    name: str
    applies: Callable[[Row], bool]
    percent: dict[str, float]
    speedup: dict[str, float]


def _large(*ops: str, fused: Sequence[str] = ("plain", "relu")) -> Callable[[Row], bool]:
    return lambda row: (
        row["op"] in ops
        and row["fused"] in fused
        and row["tensor_bytes"] >= LARGE
        and row["l2"] == "cold"
    )


def _cifar(l2: str) -> Callable[[Row], bool]:
    return lambda row: (row["family"], row["l2"], row["timing"]) == ("cifar", l2, "graph")


_ONE_SET = {"forward": 90.0, "backward": 85.0}
_MANY = {"forward": 80.0, "backward": 75.0}
GOALS = (
    *(
        Goal(f"{op}, 64 MB and more", _large(op), _ONE_SET, {"eager": 1.5, "compile": 1.1})
        for op in ("ln", "gn", "in")
    ),
    *(
        Goal(f"{op}, 64 MB and more", _large(op), _MANY, {"eager": 1.5, "compile": 1.3})
        for op in ("bn", "bin")
    ),
    Goal(
        "bn + residual + ReLU, 64 MB and more",
        _large("bn", fused=("residual_relu",)),
        {"both": 75.0},
        {"eager": 2.2, "compile": 1.3},
    ),
    *(
        Goal(f"CIFAR shapes, {l2} L2", _cifar(l2), {}, {"eager": 2.0, "compile": 1.2})
        for l2 in ("cold", "warm")
    ),
)


def read(file: Path) -> list[Row]:
    """The rows of a file that run.py or cpu.py wrote."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def timed(rows: Iterable[Row], provider: str | None = None) -> list[Row]:
    """The rows with a time, of one provider or all."""
    return [r for r in rows if not r["error"] and provider in (None, r["provider"])]


def ours(rows: Iterable[Row]) -> list[str]:
    """Those of fastnorm's providers that the rows have times of."""
    names = dict.fromkeys(row["provider"] for row in timed(rows))
    return [name for name in names if name in OURS]


def measured_as(row: Row) -> tuple[Any, ...]:
    """Two rows are comparable where this is equal: a graph's time to a graph's alone."""
    keys = ("op", "dtype", "layout", "fused", "direction", "l2", "timing")
    return (*row["shape"], *(row[key] for key in keys))


def ratios(rows: Sequence[Row], provider: str, rival: str) -> list[tuple[Row, float]]:
    """The provider's rows that the rival has a counterpart of, and the rival's time over theirs."""
    times = {measured_as(row): row["us_p50"] for row in timed(rows, rival)}
    return [
        (row, times[measured_as(row)] / row["us_p50"])
        for row in timed(rows, provider)
        if measured_as(row) in times
    ]


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def speedup(
    rows: Sequence[Row], provider: str, rival: str, applies: Callable[[Row], bool]
) -> float | None:
    """Geometric mean over the rows that `applies` names; None without any."""
    found = [ratio for row, ratio in ratios(rows, provider, rival) if applies(row)]
    return statistics.geometric_mean(found) if found else None


def _judged(value: float | None, goal: float | None, form: str, at_most: bool = False) -> str:
    """ "1.62 / 1.50 yes": reached / goal."""
    if goal is None:
        return ""
    if value is None:
        return f"no rows / {goal:{form}}"
    reached = value <= goal if at_most else value >= goal
    return f"{value:{form}} / {goal:{form}} {'yes' if reached else 'NO'}"


def goals_table(rows: Sequence[Row], provider: str) -> Table:
    """Reached / goal for each of GOALS."""
    table = [["goal", *(f"{d}, % of copy" for d in DIRECTIONS), *(f"x {r}" for r in RIVALS)]]
    for goal in GOALS:
        line = [goal.name]
        for direction in DIRECTIONS:
            found = [
                row["pct_copy"]
                for row in timed(rows, provider)
                if goal.applies(row) and row["direction"] == direction
            ]
            line.append(_judged(_median(found), goal.percent.get(direction), ".0f"))
        steps = [row for row in rows if row["error"] or row["direction"] == "both"]
        for rival in RIVALS:
            value = speedup(steps, provider, rival, goal.applies)
            line.append(_judged(value, goal.speedup[rival], ".2f"))
        table.append(line)
    return table


def host_table(rows: Sequence[Row], provider: str) -> Table:
    """The host's cost of one forward call of the norm alone, median over each operator's cases."""
    table = [["host, us of a forward call", provider, "over eager torch"]]
    for op in OPS:
        wanted = {"op": op, "fused": "plain", "direction": "forward"}
        rows_of_op = [row for row in timed(rows) if wanted.items() <= row.items()]
        theirs = {measured_as(row): row["host_us"] for row in timed(rows_of_op, "eager")}
        mine = {measured_as(row): row["host_us"] for row in timed(rows_of_op, provider)}
        if mine:
            over = [mine[key] - theirs[key] for key in mine.keys() & theirs.keys()]
            first = _judged(_median([*mine.values()]), HOST_US, ".1f", at_most=True)
            second = _judged(_median(over), HOST_US_OVER_TORCH, ".1f", at_most=True)
            table.append([op, first, second])
    return table


def operators_table(rows: Sequence[Row], provider: str) -> Table:
    """Cold L2: geometric mean speed-ups of all cases, median % of copy of the large ones."""
    table = [["operator", "direction", *(f"x {r}" for r in RIVALS), "% of copy, 64 MB and more"]]
    for op in OPS:
        for direction in DIRECTIONS:
            mine = [
                row
                for row in timed(rows, provider)
                if (row["op"], row["direction"], row["l2"]) == (op, direction, "cold")
            ]
            if not mine:
                continue
            percent = _median([r["pct_copy"] for r in mine if r["tensor_bytes"] >= LARGE])
            gains = [speedup(mine + timed(rows, r), provider, r, lambda _: True) for r in RIVALS]
            cells = ["-" if gain is None else f"{gain:.2f}" for gain in gains]
            table.append([op, direction, *cells, "-" if percent is None else f"{percent:.0f}"])
    return table


def failures(rows: Sequence[Row]) -> list[str]:
    """A line for each row without a time."""
    return [f"FAILED {row['provider']}: {row['error']}" for row in rows if row["error"]]


def aligned(table: Table) -> str:
    """The table in columns of text."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    )


def text(rows: Sequence[Row]) -> str:
    """All tables, the goals last: that is where a terminal stands."""
    if not timed(rows):
        return "\n".join(["no times", *failures(rows)])
    parts = []
    if timed(rows)[0]["gpu"] is None:
        parts.append("REHEARSAL ON A CPU: these figures say nothing about a GPU")
    for provider in ours(rows):
        tables = (operators_table, host_table, goals_table)
        parts += [f"--- {provider}", *(aligned(table(rows, provider)) for table in tables)]
    return "\n\n".join(["", *parts, *failures(rows)])
