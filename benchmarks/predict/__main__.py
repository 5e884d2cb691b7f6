"""`python -m benchmarks.predict`: estimated time on an H100 and H200, from machine code alone.

Compiles the norms' launches for sm_90. For each case and direction: the estimated time, and its
share of the floor, which is the time for the least traffic. For each launch: exact counts. Every
time printed is an ESTIMATE that no GPU has confirmed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Runs this program with another checkout's package; a checkout has its kernels beside that.
ELSEWHERE = """
import sys
root = sys.argv.pop(1)
sys.path.insert(0, root)
import fastnorm
fastnorm.__path__.append(root)
sys.path[0] = sys.argv.pop(1)
from benchmarks.predict.__main__ import main
sys.exit(main())
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.predict", description=__doc__)
    parser.add_argument("words", nargs="*", help="cases whose names have all of these words")
    parser.add_argument("--gpu", nargs="+", default=["h100", "h200"], choices=["h100", "h200"])
    parser.add_argument("--clusters", action="store_true", help="allow programs that wait")
    parser.add_argument("--baseline", type=Path, help="a checkout of another version")
    parser.add_argument("--out", type=Path, help="write a JSON line for each row to this file")
    args = parser.parse_args(argv)

    from benchmarks.compile_only import compile_launches
    from fastnorm.kernels import tiers

    from .cases import cases
    from .estimate import CAPABILITY
    from .rows import Row, geometric_mean, key_of, rows_of, text

    chosen = [case for case in cases() if set(args.words) <= set(case.name.split())]
    if not chosen:
        parser.error(f"no case has the words {' '.join(args.words)}")
    former = _of_baseline(args.baseline, args.words, args.gpu) if args.baseline else {}
    launches = compile_launches(CAPABILITY)
    rows: list[Row] = []
    with tiers.cooperative(args.clusters):
        for case in chosen:
            for row in rows_of(case, launches, args.gpu):
                rows.append(row)
                print(text(row, former.get(key_of(row))), flush=True)
    for gpu in args.gpu:
        mine = [row for row in rows if row["gpu"] == gpu]
        mean = geometric_mean(row["estimated_percent_of_floor"] for row in mine)
        line = f"{len(mine)} rows on {gpu}: geometric mean {mean:.1f}% of the floor (estimated)"
        if former:
            ratios = (former[key_of(r)]["estimated_us"] / r["estimated_us"] for r in mine)
            line += f", {geometric_mean(ratios):.2f} times as fast as the baseline"
        print(line)
    if args.out:
        args.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return 0


def _of_baseline(
    checkout: Path, words: Sequence[str], gpus: Sequence[str]
) -> dict[tuple[str, str, str], dict[str, object]]:
    """The rows of another checkout's package, by their keys, from a separate process."""
    if not (checkout / "fastnorm").is_dir():
        raise FileNotFoundError(f"{checkout} has no folder fastnorm: name a checkout")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.jsonl"
        options = [*words, "--gpu", *gpus, "--out", str(out)]
        command = [sys.executable, "-c", ELSEWHERE, str(checkout.resolve()), str(ROOT), *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        rows = [json.loads(line) for line in out.read_text().splitlines()]
    return {(row["case"], row["direction"], row["gpu"]): row for row in rows}


if __name__ == "__main__":
    sys.exit(main())
