"""Speed-ups and the host's cost from the rows of a run, with the goals, as text or Markdown."""

import statistics
from collections.abc import Callable, Iterable, Sequence

from benchmarks import goals
from benchmarks.goals import LARGE, RIVALS, ratios
from benchmarks.providers import OURS
from benchmarks.rows import Row, Table, aligned, failures, timed
from benchmarks.shapes import DIRECTIONS, OPS


def ours(rows: Iterable[Row]) -> list[str]:
    """The fastnorm providers whose times are in the rows."""
    names = dict.fromkeys(row["provider"] for row in timed(rows))
    return [name for name in names if name in OURS]


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def speedup(
    rows: Sequence[Row], provider: str, rival: str, applies: Callable[[Row], bool]
) -> float | None:
    """Geometric mean over the rows that `applies` selects; None if there are none."""
    found = [ratio for row, ratio in ratios(rows, provider, rival) if applies(row)]
    return statistics.geometric_mean(found) if found else None


def host_table(rows: Sequence[Row], provider: str) -> Table:
    """The host's cost of one forward call of the norm alone, median over each operator's cases."""
    table = [["host, us of a forward call", provider, "eager torch"]]
    for op in OPS:
        wanted = {"op": op, "fused": "plain", "direction": "forward"}
        rows_of_op = [row for row in timed(rows) if wanted.items() <= row.items()]
        costs = [
            _median([row["host_us"] for row in timed(rows_of_op, name)])
            for name in (provider, "eager")
        ]
        if costs[0] is not None:
            table.append([op, *("" if cost is None else f"{cost:.1f}" for cost in costs)])
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


def text(rows: Sequence[Row]) -> str:
    """All tables, the goals last: that is the end that a terminal shows."""
    if not timed(rows):
        return "\n".join(["no times", *failures(rows), aligned(goals.table(rows))])
    parts = []
    if timed(rows)[0]["gpu"] is None:
        parts.append("REHEARSAL ON A CPU: these figures say nothing about a GPU")
    for provider in ours(rows):
        tables = (operators_table, host_table)
        parts += [f"--- {provider}", *(aligned(table(rows, provider)) for table in tables)]
    return "\n\n".join(["", *parts, "\n".join(failures(rows)), aligned(goals.table(rows))])
