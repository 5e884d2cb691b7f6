"""`python -m benchmarks.page`: the table of goals in docs/benchmarks.md, from results/gpu.jsonl."""

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import goals
from benchmarks.rows import Row, markdown, read

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
ROWS = Path(__file__).parent / "results" / "gpu.jsonl"
BEGIN, END = "<!-- python -m benchmarks.page -->\n", "<!-- end -->"


def caption(rows: Sequence[Row]) -> str:
    """The machine and the versions of the rows."""
    if not rows:
        return "No row has been measured on a GPU yet."
    row, copies = rows[0], [row["copy_gbps"] for row in rows if not row["error"]]
    return (
        f"Measured on one {row['gpu']}, driver {row['driver']}, torch {row['torch']}, triton "
        f"{row['triton']}, commit {row['commit']}; a copy moves {max(copies):.0f} GB/s, read + "
        "written. The rows: `benchmarks/results/gpu.jsonl`."
    )


def block(rows: Sequence[Row]) -> str:
    """The text between the marks."""
    return f"{caption(rows)}\n\n{markdown(goals.table(rows))}\n"


def replaced(page: str, rows: Sequence[Row]) -> str:
    """The page with the block of these rows."""
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{PAGE.name} has no {BEGIN.strip()} with {END.strip()} after it")
    return before + BEGIN + block(rows) + END + after


def main() -> int:
    rows = read(ROWS)
    if any(row["gpu"] is None for row in rows):
        sys.exit(f"{ROWS} was measured on a CPU: not a GPU result")
    PAGE.write_text(replaced(PAGE.read_text(), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
