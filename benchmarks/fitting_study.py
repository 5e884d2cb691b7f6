"""`python -m benchmarks.fitting_study`: cifar/study.py with as many epochs as fit some seconds.

How long an epoch takes is in the study's speed.jsonl. All runs train at once; each has the same
epochs, to which the schedule is scaled. A call that finds a study there goes on with it, and its
number of epochs. The exit code is study.py's: 3 is "call again".
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.rows import Row

STARTING = 20.0  # seconds until the runs have imported torch, read the data and captured a graph
BESIDE = 1.4  # for validation, and for runs that wait for one another
MOST = 100  # epochs, as the study has


def epochs_that_fit(rows: Sequence[Row], variants: Sequence[str], seconds: float) -> int:
    """At least 1; a variant that was not measured is taken for an average one."""
    found = {
        row["norm"]: row["epoch_seconds"]
        for row in rows
        if row["provider"] == ("builtin" if row["norm"] == "none" else "fastnorm")
    }
    mine = [found[name] for name in variants if name in found]
    if not mine:
        return 1
    all_of_them = BESIDE * len(variants) * sum(mine) / len(mine)
    return max(1, min(MOST, int((seconds - STARTING) / all_of_them)))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--output", type=Path, required=True, help="the study's folder")
    parser.add_argument("--variants", nargs="+", required=True)
    parser.add_argument("--most", type=int, default=MOST, help="epochs, however many fit")
    args, flags = parser.parse_known_args(argv)
    there, speed = args.output / "study.json", args.output / "speed.jsonl"
    if there.exists():
        epochs = json.loads(there.read_text())["epochs"]
    else:
        lines = speed.read_text().splitlines() if speed.exists() else []
        epochs = epochs_that_fit(list(map(json.loads, lines)), args.variants, args.seconds)
        epochs = min(epochs, args.most)
    print(f"{epochs} epochs of {', '.join(args.variants)}", flush=True)
    words = (
        "--output", args.output, "--parts", "variants", "--seeds", 0, "--epochs", epochs,
        "--jobs", len(args.variants), "--seconds", args.seconds, "--variants", *args.variants,
    )  # fmt: skip
    command = [sys.executable, "cifar/study.py", *map(str, words), *flags]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
