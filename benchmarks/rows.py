"""The rows of a run, one JSON object a line: reading, naming, and the list of failures."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Table = list[list[str]]
NOT_REACHED = "not reached within the budget"


def read(file: Path) -> list[Row]:
    """The rows of a file; none if there is no file. A line cut off by a kill is left out."""
    rows = []
    for line in file.read_text().splitlines(keepends=True) if file.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            if line.endswith("\n"):
                raise
    return rows


def timed(rows: Iterable[Row], provider: str | None = None) -> list[Row]:
    """The rows with a time, of one provider or all."""
    return [r for r in rows if not r["error"] and provider in (None, r["provider"])]


def case_name(row: Row) -> str:
    """The same name as `Case.name`."""
    words = (row["op"], "x".join(map(str, row["shape"])), row["dtype"], row["layout"], row["fused"])
    return " ".join(word for word in words if word not in ("contiguous", "plain"))


def failures(rows: Sequence[Row]) -> list[str]:
    """A line for each row that is wrong or raised, then one for each case not reached."""
    lines = [
        f"FAILED {row['provider']} in {case_name(row)}: {row['error']}"
        for row in rows
        if row["error"] not in (None, NOT_REACHED)
    ]
    late: dict[str, list[str]] = {}
    for row in rows:
        if row["error"] == NOT_REACHED:
            late.setdefault(case_name(row), []).append(row["provider"])
    return lines + [f"{NOT_REACHED}: {name}: {', '.join(who)}" for name, who in late.items()]


def aligned(table: Table) -> str:
    """The table in columns of text."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    )


def markdown(table: Table) -> str:
    """The table as Markdown."""
    lines = [f"| {' | '.join(line)} |" for line in table]
    return "\n".join([lines[0], "|---" * len(table[0]) + "|", *lines[1:]])
