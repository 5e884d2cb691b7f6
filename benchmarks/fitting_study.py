"""`python -m benchmarks.fitting_study`: cifar/study.py with as many epochs as fit in some seconds.

The time of an epoch is in the study's speed.jsonl. All runs train at once; each has the same number
of epochs, and the schedule is scaled to it. If a study is there already, the call goes on with it
and with its number of epochs. The exit code is study.py's: 3 is "call again".
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.rows import Row

STARTING = 20.0  # seconds for the runs to import torch, read the data and capture a graph
BESIDE = 1.4  # factor for validation, and for runs that wait for one another
MOST = 100  # epochs, as in the study


def epochs_that_fit(rows: Sequence[Row], variants: Sequence[str], seconds: float) -> int:
    """At least 1; a variant that was not measured counts as an average one."""
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
