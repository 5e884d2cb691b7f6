"""`python -m benchmarks.recompilations`: how many kernels the batch sizes of one network need.

Compiles, for a GPU that need not be there, each norm at one C and S and many batch sizes, and
counts the different kernels. Each one beyond the fewest is a pause of a second in a training.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from benchmarks import shapes
from benchmarks.compile_only import Launch, compile_launches, launches_of
from benchmarks.providers import Provider, load
from benchmarks.shapes import Case
from fastnorm.kernels.occupancy import LIMITS

BATCHES = (1, 2, 3, 5, 8, 16, 17, 32, 64, 100, 128)
IMAGE, ROW = (64, 32, 32), (1024,)


def needed(
    op: str, batches: Iterable[int], provider: Provider, launches: list[Launch]
) -> dict[str, dict[str, int]]:
    """The number of different kernels by direction and name, over all batch sizes."""
    shape = ROW if op in shapes.ROW_OPS else IMAGE
    found: dict[str, dict[str, set[str]]] = {"forward": {}, "backward": {}}
    for batch in batches:
        case = Case(op, (batch, *shape), torch.bfloat16, fused="residual_relu")
        for direction, made in launches_of(case, provider, launches):
            for launch in made:
                found[direction].setdefault(launch.name, set()).add(launch.kernel.hash)
    return {
        direction: {name: len(hashes) for name, hashes in kernels.items()}
        for direction, kernels in found.items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", type=int, choices=list(LIMITS), default=90)
    parser.add_argument("--ops", nargs="+", choices=shapes.OPS, default=shapes.OPS)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--json", type=Path, help="write the counts to this file")
    args = parser.parse_args(argv)

    (provider,) = load(["fastnorm"])
    launches = compile_launches(args.arch)
    found = {op: needed(op, args.batches, provider, launches) for op in args.ops}
    for op, directions in found.items():
        for direction, kernels in directions.items():
            counts = ", ".join(f"{name} {count}" for name, count in kernels.items())
            print(f"{op:8} {direction:9} {sum(kernels.values()):3}  {counts}")
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
