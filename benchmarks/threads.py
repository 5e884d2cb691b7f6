"""`python -m benchmarks.threads`: how much faster the CPU's norms are with more threads.

Forward + backward of ours on the large tensors of `benchmarks.cpu`, with one thread and with all,
in turn; the ratio is taken within each pair. A tensor that no cache holds is bound by the memory,
which one thread can keep half busy.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch

import fastnorm
from benchmarks.allocator import keep_freed_memory
from benchmarks.check import check, step
from benchmarks.cpu import CASES, WARM_UP, median_interval
from benchmarks.inputs import make_inputs
from benchmarks.providers import ours
from benchmarks.shapes import OPS, Case
from benchmarks.timing import Spread, cpu_model, wall_us

LARGE = 4 << 20  # bytes of x
GOAL = 1.7  # of two threads


def large(cases: Sequence[Case]) -> Iterator[Case]:
    """Those whose x is large, without the modulated ones."""
    for case in cases:
        if not case.modulated and math.prod(case.shape) * case.dtype.itemsize >= LARGE:
            yield case


def speedups(case: Case, threads: int, rounds: int) -> list[float]:
    """The time with one thread over that with so many, pair by pair, after a check of ours."""
    check(case, partial(ours, case))
    call = partial(step, partial(ours, case), case.op, make_inputs(case))
    found = []
    for _ in range(WARM_UP + rounds):
        us = []
        for count in (1, threads):
            torch.set_num_threads(count)
            us.append(wall_us(call, 1))
        found.append(us[0] / us[1])
    return found[WARM_UP:]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=25, help="timed pairs a case (at least 2)")
    parser.add_argument("--ops", nargs="+", choices=OPS, default=OPS)
    args = parser.parse_args(argv)
    threads = torch.get_num_threads()
    if args.rounds < 2:
        parser.error(f"--rounds must be at least 2, got {args.rounds}")
    if threads < 2:
        parser.error("torch has one thread here: OMP_NUM_THREADS, or the machine, allows no more")
    keep_freed_memory()
    print(f"torch {torch.__version__}, 1 thread over {threads}, {cpu_model()}, {args.rounds} pairs")
    medians = []
    with fastnorm.use_backend("auto"):
        for case in large(CASES):
            if case.op in args.ops:
                found = speedups(case, threads, args.rounds)
                low, high = median_interval(found)
                medians.append(Spread.of(found).p50)
                print(f"{case.name:50} {medians[-1]:6.2f}   {low:.2f}-{high:.2f}", flush=True)
    mean = math.exp(sum(map(math.log, medians)) / len(medians))
    below = sum(median < GOAL for median in medians)
    print(f"geometric mean of {len(medians)} speed-ups {mean:.2f}, {below} below {GOAL}")


if __name__ == "__main__":
    main()
