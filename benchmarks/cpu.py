"""`python -m benchmarks.cpu`: every case of cases.py, ours against torch's, in pairs on this CPU.

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
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import fastnorm
from benchmarks.allocator import keep_freed_memory
from benchmarks.cases import CASES, GOALS, PROVIDERS, Case, Inputs, check, make_inputs, step

WARM_UP = 10


@dataclass(frozen=True)
class Spread:
    """The 20th, 50th and 80th percentile of some measurements."""

    p20: float
    p50: float
    p80: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        cuts = statistics.quantiles(values, n=10, method="inclusive")
        return cls(cuts[1], cuts[4], cuts[7])


@dataclass(frozen=True)
class Result:
    """One case measured: microseconds of each provider, and ours/torch's taken pair by pair."""

    case: Case
    us: dict[str, Spread]
    ratio: Spread

    @property
    def verdict(self) -> str:
        if self.case.goal is None:
            return ""
        return "pass" if self.ratio.p50 <= self.case.goal else "MISS"


def summarise(case: Case, seconds: dict[str, list[float]]) -> Result:
    """Percentiles of paired timings; seconds[provider][k] belong to the k-th pair."""
    ratios = [b / a for a, b in zip(seconds["torch"], seconds["fastnorm"], strict=True)]
    us = {name: Spread.of([1e6 * s for s in values]) for name, values in seconds.items()}
    return Result(case, us, Spread.of(ratios))


def time_step(name: str, op: str, inputs: Inputs) -> float:
    """Seconds of one forward + backward."""
    start = time.perf_counter()
    step(PROVIDERS[name], op, inputs)
    return time.perf_counter() - start


def measure(case: Case, rounds: int) -> Result:
    """Check ours against float64, warm up, then time `rounds` pairs."""
    check(case)
    inputs = make_inputs(case)
    seconds: dict[str, list[float]] = {name: [] for name in PROVIDERS}
    for _ in range(WARM_UP + rounds):
        for name in PROVIDERS:
            seconds[name].append(time_step(name, case.op, inputs))
    return summarise(case, {name: values[WARM_UP:] for name, values in seconds.items()})


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


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
            "min_bytes": case.min_bytes,
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
    goal = "" if case.goal is None else f"{case.goal:5.2f} {result.verdict}"
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
