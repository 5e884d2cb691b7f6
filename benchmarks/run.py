"""`python -m benchmarks.run --quick --out rows.jsonl`: measure the cases of shapes.py on this GPU.

One JSON line for each case, provider, direction and state of the L2, written as soon as it is
measured; README.md in this folder explains the columns. Results are checked against float64 before
they are timed: the exit code is 1 if fastnorm was wrong or raised. A case that no longer fits the
budget gets a row that says so. Without a GPU there is only --tiny, a rehearsal; with
TRITON_INTERPRET=1 it runs the kernels.
"""

import argparse
import contextlib
import gc
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import fastnorm
from benchmarks import shapes, summary
from benchmarks.measure import Budget, case_rows
from benchmarks.providers import DEFAULT, FACTORIES, OURS, Provider, load
from benchmarks.rows import NOT_REACHED, Row
from benchmarks.timing import Clock, clock, versions

QUICK_SECONDS = 460.0
LISTS = {"quick": shapes.quick, "tiny": shapes.tiny, None: shapes.full}


def commit() -> str:
    """The checkout's commit, "-dirty" if changed since; "unknown" outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    folder = Path(__file__).parent
    with contextlib.suppress(OSError):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        return done.stdout.strip() or "unknown"
    return "unknown"


def progress(case: shapes.Case, rows: Sequence[Row]) -> str:
    """One line: the case, and for each provider the cold time of forward + backward."""
    parts = []
    for row in rows:
        if row["error"] == NOT_REACHED:
            parts.append(f"{row['provider']} {NOT_REACHED}")
        elif row["error"]:
            parts.append(f"{row['provider']} FAILED: {row['error']}")
        elif (row["direction"], row["l2"]) == ("both", "cold"):
            parts.append(f"{row['provider']} {row['us_p50']:.1f} us ({row['pct_copy']:.0f}%)")
    return f"{case.name}: {', '.join(parts)}"


def measured(
    cases: Sequence[shapes.Case], providers: Sequence[Provider], device: Clock, budget: Budget
) -> Iterator[Row]:
    """The rows of every case, timed as long as the budget lasts; prints a line for each case."""
    copy_gbps = device.copy_gbps()
    print(f"copy bandwidth {copy_gbps:.0f} GB/s, read + written", flush=True)
    for k, case in enumerate(cases):
        rows = []
        for row in case_rows(case, providers, device, copy_gbps, budget):
            rows.append(row)
            yield row
        place = f"{k + 1}/{len(cases)} {budget.elapsed:.0f} s"
        print(f"[{place}] {progress(case, rows)}", flush=True)


def write(rows: Iterator[Row], common: Row, out: TextIO) -> list[Row]:
    """Each row plus the columns common to all, flushed: a killed run keeps its rows."""
    written = []
    for row in rows:
        written.append({**row, **common})
        out.write(json.dumps(written[-1]) + "\n")
        out.flush()
    return written


def add_cases(parser: argparse.ArgumentParser) -> None:
    """--quick and --tiny, which choose the list of `cases`."""
    size = parser.add_mutually_exclusive_group()
    for name, text in (("quick", "8 minutes at most"), ("tiny", "a rehearsal on any machine")):
        size.add_argument(f"--{name}", dest="cases", action="store_const", const=name, help=text)


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_cases(parser)
    parser.add_argument("--ops", nargs="+", choices=shapes.OPS, default=shapes.OPS)
    parser.add_argument("--providers", nargs="+", choices=list(FACTORIES), default=DEFAULT)
    parser.add_argument("--budget", type=float, help="seconds after which nothing is timed")
    parser.add_argument("--commit", default=commit(), help="for the rows; by default git's")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines go to this file")
    parser.add_argument("--append", action="store_true", help="keep the rows that it has")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parsed(argv)
    budget = Budget(args.budget or (QUICK_SECONDS if args.cases == "quick" else None))
    device, about = clock(), versions()
    if about["gpu"] is None and args.cases != "tiny":
        sys.exit("torch sees no GPU here; --tiny rehearses the run on the CPU")
    on_kernels = about["gpu"] is not None or about["interpreted"]
    backend = "triton" if on_kernels else "auto"
    cases = [case for case in LISTS[args.cases]() if case.op in args.ops]
    common = {"backend": backend, **about, "commit": args.commit}
    print(", ".join(f"{key} {value}" for key, value in common.items()))

    providers = load(args.providers)
    gc.collect()
    gc.freeze()  # each capture of a graph collects garbage: not among the imports
    try:
        with fastnorm.use_backend(backend), args.out.open("a" if args.append else "w") as out:
            rows = write(measured(cases, providers, device, budget), common, out)
    finally:
        gc.unfreeze()
    print(summary.text(rows))
    wrong = [row for row in rows if row["error"] not in (None, NOT_REACHED)]
    return 1 if any(row["provider"] in OURS for row in wrong) else 0


if __name__ == "__main__":
    sys.exit(main())
