"""`python -m benchmarks.compiled`: counts what compiled kernels execute, without a GPU.

Runs the PTX of every kernel on a CPU (`tests/compiled/executor`), at the cases of
`compiled_cases.py`, and writes a table of counts, a line for each kernel: instructions of threads
for each element of x; bytes of the 32-byte sectors that its loads and stores touch, for each byte
of x; the share of these bytes that threads asked for; bank conflicts; programs. With `--peers`, a
folder with liger-kernel, its kernels for layer, RMS and group norm stand beside them.

These are counts, the same on every machine. They say nothing about the time of a kernel.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import triton

from benchmarks.compiled_cases import OPS, all_cuts
from benchmarks.compiled_counts import Row, count
from benchmarks.compiled_peers import count_peer, peer_cuts
from tests.compiled.executor import Emulator, Options, install

RESULTS = Path(__file__).parent / "results" / "compiled.jsonl"

HEADER = (
    "| case | executed as | kernel | instructions | loads | asked | stores | asked | conflicts "
    "| programs x warps | whole |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
)


def line(row: Row) -> str:
    """A row of the table."""
    shape, run = ("x".join(map(str, sizes)) for sizes in (row.shape, row.run))
    words = [row.op, shape, row.dtype]
    words += [w for w in (row.layout, row.fused) if w not in ("contiguous", "plain")]
    cells = (
        f"{' '.join(words)} {row.direction}", "" if run == shape else run, f"`{row.kernel}`",
        f"{row.instructions:.2f}", f"{row.load:.3f}", f"{row.load_asked:.2f}", f"{row.store:.3f}",
        f"{row.store_asked:.2f}", f"{row.conflicts:.2f}", f"{row.programs} x {row.warps}",
        "" if row.programs_of_whole is None else str(row.programs_of_whole),
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def table(rows: Sequence[Row], command: str) -> str:
    """A page of all rows, by provider."""
    versions = sorted({f"Triton {row.triton}, sm_{row.arch}" for row in rows})
    lines = [
        "# Counts of compiled kernels",
        "",
        f"{'; '.join(versions)}: `{command}`. Kernels compiled by Triton and executed on a CPU, a",
        "line a launch. These are counts of what the PTX does, not times: no GPU was used.",
        "",
        "- *instructions*: executed by threads, for each element of x",
        "- *loads*, *stores*: bytes of the 32-byte sectors that requests of warps touch, for each",
        "  byte of x; *asked*: bytes that threads ask for, for each of those (over 1 where threads",
        "  ask for the same ones); sectors that an L1 cache would serve are among them",
        "- *conflicts*: passes beyond the first, for each request of shared memory",
        "- *programs x warps*: of what was executed; *whole*: programs of the case itself on 132",
        "  multiprocessors. *executed as* is the shape that the case was cut to: the same compiled",
        "  kernels, fewer tiles",
        "- `add_shares_kernel`, and in `row_dx_kernel` a program for each 32 columns, add up",
        "  what programs left for the parameters: that work grows with columns, and few",
        "  rows share it here, so its counts for an element are larger than those of the case",
    ]
    for provider in dict.fromkeys(row.provider for row in rows):
        mine = [line(row) for row in rows if row.provider == provider]
        lines += ["", f"## {provider}", "", *HEADER, *mine]
    return "\n".join(lines) + "\n"


def read(file: Path = RESULTS) -> list[Row]:
    """The rows of a table that was written earlier."""
    found = []
    for text in file.read_text().splitlines():
        values = json.loads(text)
        sizes = {name: tuple(values[name]) for name in ("shape", "run")}
        found.append(Row(**values | sizes))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", type=int, choices=(80, 90), default=90)
    parser.add_argument("--ops", nargs="+", choices=OPS, default=OPS)
    parser.add_argument("--peers", type=Path, help="a folder that has liger-kernel")
    parser.add_argument("--out", type=Path, help="write JSON lines here, and a table as .md beside")
    args = parser.parse_args(argv)

    emulator = install(Options(count=True), args.arch)
    try:
        rows = measured(emulator, args.ops, args.peers)
    finally:
        emulator.uninstall()
    if args.out is not None:
        args.out.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
        command = " ".join(["python -m benchmarks.compiled", *(argv or sys.argv[1:])])
        args.out.with_suffix(".md").write_text(table(rows, command))


def measured(emulator: Emulator, ops: Sequence[str], peers: Path | None) -> list[Row]:
    """Our rows and, if there is a folder `peers`, the peers'; prints each as it comes."""
    cuts = [cut for cut in all_cuts() if cut.whole.op in ops]
    print(f"triton {triton.__version__}, {len(cuts)} cases", *HEADER, sep="\n")
    rows: list[Row] = []
    for cut in cuts:
        more = count(emulator, cut)
        print(*map(line, more), sep="\n", flush=True)
        rows += more
    if peers is not None:
        sys.path.insert(0, str(peers))
        for cut in peer_cuts():
            if cut.whole.op in ops:
                more = count_peer(emulator, cut)
                print(*map(line, more), sep="\n", flush=True)
                rows += more
    return rows


if __name__ == "__main__":
    main()
