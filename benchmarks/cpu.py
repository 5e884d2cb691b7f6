"""`python -m benchmarks.cpu`: shapes.paired(), ours against torch's, in pairs on this CPU.

A machine's speed drifts by more than the differences sought, so the two are called in turn
(A B A B ...) and the ratio is taken within each pair; the medians in microseconds are for scale.
malloc is told to keep freed memory, so that no call pays for another's page faults. Batch-instance
norm, which torch lacks, is held against torch's batch norm.

Where the load is not near 0, set OMP_WAIT_POLICY=PASSIVE or OMP_NUM_THREADS=1: by default a waiting
thread spins on the very core that the other needs, and a call of 2 ms takes 30.
"""

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

import fastnorm
from benchmarks.allocator import keep_freed_memory
from benchmarks.check import check, step
from benchmarks.inputs import make_inputs
from benchmarks.providers import eager, ours
from benchmarks.shapes import Case, paired
from benchmarks.timing import Spread, cpu_model, wall_us

WARM_UP = 10
CASES = paired()
# Ours over torch's, by operator, at the first shape; bin against torch's batch norm.
GOALS = {"in": 0.6, "bn": 0.9, "gn": 1.05, "ln": 1.05, "bin": 1.2}


@dataclass(frozen=True)
class Result:
    """One case measured: microseconds of each provider, and ours/torch's taken pair by pair."""

    case: Case
    us: dict[str, Spread]
    ratio: Spread

    @property
    def goal(self) -> float | None:
        return GOALS[self.case.op] if self.case.shape == CASES[0].shape else None

    @property
    def verdict(self) -> str:
        if self.goal is None:
            return ""
        return "pass" if self.ratio.p50 <= self.goal else "MISS"


def summarise(case: Case, us: dict[str, list[float]]) -> Result:
    """Percentiles of paired timings; us[provider][k] belong to the k-th pair."""
    ratios = [b / a for a, b in zip(us["torch"], us["fastnorm"], strict=True)]
    spreads = {name: Spread.of(values) for name, values in us.items()}
    return Result(case, spreads, Spread.of(ratios))


def steps(case: Case) -> dict[str, Callable[[], object]]:
    """Forward + backward of torch's operator and of ours, on the same inputs.

    Torch lacks batch-instance norm: its batch norm is the yardstick of the cost.
    """
    yardstick = replace(case, op="bn") if case.op == "bin" else case
    inputs = make_inputs(case)
    return {
        "torch": partial(step, partial(eager, yardstick), yardstick.op, inputs),
        "fastnorm": partial(step, partial(ours, case), case.op, inputs),
    }


def measure(case: Case, rounds: int) -> Result:
    """Check ours against float64, warm up, then time `rounds` pairs."""
    check(case, partial(ours, case))
    pair = steps(case)
    us: dict[str, list[float]] = {name: [] for name in pair}
    for _ in range(WARM_UP + rounds):
        for name, call in pair.items():
            us[name].append(wall_us(call, 1))
    return summarise(case, {name: values[WARM_UP:] for name, values in us.items()})


def rows(result: Result) -> list[dict[str, object]]:
    """One JSON row for each provider; ratio_p50 is to torch's operator in the same run."""
    case = result.case
    return [
        {
            "op": case.op,
            "shape": list(case.shape),
            "dtype": str(case.dtype).removeprefix("torch."),
            "provider": name,
            **{f"us_{key}": round(value, 1) for key, value in asdict(spread).items()},
            "ratio_p50": round(result.ratio.p50, 4) if name == "fastnorm" else 1.0,
            "floor_bytes": case.floor_bytes("both"),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "cpu": cpu_model(),
        }
        for name, spread in result.us.items()
    ]


HEADER = f"{'op':4} {'shape':14} {'torch us':>10} {'ours us':>10} {'ratio':>7}   20%-80%     goal"


def table_line(result: Result) -> str:
    case, ratio = result.case, result.ratio
    shape = "x".join(map(str, case.shape))
    goal = "" if result.goal is None else f"{result.goal:5.2f} {result.verdict}"
    times = f"{result.us['torch'].p50:10.0f} {result.us['fastnorm'].p50:10.0f}"
    line = (
        f"{case.op:4} {shape:14} {times} {ratio.p50:7.3f}   {ratio.p20:.3f}-{ratio.p80:.3f} {goal}"
    )
    return line.rstrip()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=50, help="timed pairs a case (at least 2)")
    parser.add_argument("--ops", nargs="+", choices=list(GOALS), default=list(GOALS))
    parser.add_argument("--out", type=Path, help="write JSON lines to this file")
    args = parser.parse_args(argv)
    if args.rounds < 2:
        parser.error(f"--rounds must be at least 2, got {args.rounds}")

    kept = "kept" if keep_freed_memory() else "left to malloc"
    threads, load = torch.get_num_threads(), os.getloadavg()[0]
    print(f"torch {torch.__version__}, {threads} threads, {cpu_model()}, load {load:.1f}")
    print(f"forward + backward, float32, {args.rounds} pairs, freed memory {kept}")
    print(HEADER)
    lines: list[str] = []
    with fastnorm.use_backend("auto"):
        for case in CASES:
            if case.op in args.ops:
                result = measure(case, args.rounds)
                print(table_line(result), flush=True)
                lines += map(json.dumps, rows(result))
    if args.out is not None:
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
