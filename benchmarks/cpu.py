"""`python -m benchmarks.cpu`: shapes.on_a_cpu(), ours against torch's, in pairs on this CPU.

A machine's speed drifts by more than the differences of interest. So the two are called in turn
(A B A B ...) and the ratio is taken within each pair; the medians in microseconds are for scale.
malloc keeps freed memory, so that no call pays for another's page faults. Torch's side is the same
chain of its own operators, norm, addition and ReLU, eager or compiled (--against). Batch-instance
norm, which torch lacks, is compared with torch's batch norm.

A verdict is "noisy" if the 95% interval of the median ratio contains the goal. If the load is not
near 0, set OMP_WAIT_POLICY=PASSIVE or --threads 1: by default a waiting thread spins on the core
that the other needs, and a call of 2 ms takes 30.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

import fastnorm
from benchmarks.allocator import keep_freed_memory
from benchmarks.check import check, step
from benchmarks.inputs import make_inputs
from benchmarks.providers import FACTORIES, Forward, eager, ours
from benchmarks.shapes import OPS, Case, modulated, on_a_cpu
from benchmarks.timing import Spread, cpu_model, wall_us

WARM_UP = 10
CASES = (*on_a_cpu(), *modulated())
AGAINST = ("eager", "compile")
# Goals for ours over torch's. MEAN: the geometric mean of all rows but the modulated. ROW: the
# largest of them. BLOCK: a ResNet's block. MODULATED: images, and rows, modulated by each sample.
MEAN_GOALS = {"eager": 0.50, "compile": 0.75}
ROW_GOALS = {"eager": 1.10, "compile": 1.30}
BLOCK_GOALS = {"eager": 0.40, "compile": 0.75}
MODULATED_GOALS = {"eager": (0.40, 0.50), "compile": (0.80, 0.90)}
BLOCKS = ((128, 16, 32, 32), (32, 64, 56, 56))  # for bn + residual + ReLU


@dataclass(frozen=True)
class Result:
    """One case measured: microseconds of each provider, and ours/torch's taken pair by pair."""

    case: Case
    us: dict[str, Spread]
    ratio: Spread
    median: tuple[float, float]  # the 95% interval of ratio.p50

    against: str

    @property
    def goal(self) -> float:
        case = self.case
        if case.modulated:
            return MODULATED_GOALS[self.against][case.of_rows]
        block = case.op == "bn" and case.has_residual and case.shape in BLOCKS
        return (BLOCK_GOALS if block else ROW_GOALS)[self.against]

    @property
    def verdict(self) -> str:
        low, high = self.median
        if low <= self.goal < high:
            return "noisy"
        return "pass" if self.ratio.p50 <= self.goal else "MISS"


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Two of the values, with the median between them in at least 95% of cases; for fewer than six
    values the extremes.

    The number of values below the median is binomial, like the heads of n coin tosses.
    """
    ordered, n = sorted(values), len(values)
    below, k = 0, 0
    while (below := below + math.comb(n, k)) * 40 <= 2**n:
        k += 1
    k = max(k - 1, 0)
    return ordered[k], ordered[n - 1 - k]


def summarise(case: Case, us: dict[str, list[float]], against: str = "eager") -> Result:
    """Percentiles of paired timings; us[provider][k] is from the k-th pair."""
    ratios = [b / a for a, b in zip(us["torch"], us["fastnorm"], strict=True)]
    spreads = {name: Spread.of(values) for name, values in us.items()}
    return Result(case, spreads, Spread.of(ratios), median_interval(ratios), against)


def geometric_mean(results: Sequence[Result]) -> float:
    """The geometric mean of the median ratios."""
    return math.exp(sum(math.log(result.ratio.p50) for result in results) / len(results))


def steps(case: Case, against: str = "eager") -> dict[str, Callable[[], object]]:
    """Forward + backward of torch's chain and of ours, on the same inputs.

    Torch lacks batch-instance norm: its batch norm is the measure of the cost.
    """
    yardstick = replace(case, op="bn") if case.op == "bin" else case
    inputs = make_inputs(case)
    torchs: Forward = partial(eager, yardstick)
    if against == "compile":
        torchs = FACTORIES["compile"]().bind(yardstick)
    return {
        "torch": partial(step, torchs, yardstick.op, inputs),
        "fastnorm": partial(step, partial(ours, case), case.op, inputs),
    }


def measure(case: Case, rounds: int, against: str = "eager") -> Result:
    """Check ours against float64, warm up, then time `rounds` pairs."""
    check(case, partial(ours, case))
    pair = steps(case, against)
    us: dict[str, list[float]] = {name: [] for name in pair}
    for _ in range(WARM_UP + rounds):
        for name, call in pair.items():
            us[name].append(wall_us(call, 1))
    return summarise(case, {name: values[WARM_UP:] for name, values in us.items()}, against)


def rows(result: Result) -> list[dict[str, object]]:
    """One JSON row for each provider; ratio_p50 is relative to torch's operator in the same run."""
    case = result.case
    return [
        {
            "op": case.op,
            "shape": list(case.shape),
            "dtype": str(case.dtype).removeprefix("torch."),
            "layout": case.layout,
            "fused": case.fused,
            "against": result.against,
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


HEADER = f"{'':50} {'torch us':>10} {'ours us':>10} {'ratio':>7}   20%-80%       of median     goal"


def table_line(result: Result) -> str:
    ratio, (low, high) = result.ratio, result.median
    times = f"{result.us['torch'].p50:10.0f} {result.us['fastnorm'].p50:10.0f}"
    return (
        f"{result.case.name:50} {times} {ratio.p50:7.3f}   {ratio.p20:.3f}-{ratio.p80:.3f}   "
        f"{low:.3f}-{high:.3f} {result.goal:5.2f} {result.verdict}"
    )


def warning(results: Sequence[Result], loads: tuple[float, float]) -> str | None:
    """A warning for the end; None if every verdict holds."""
    noisy = sum(result.verdict == "noisy" for result in results)
    if not noisy:
        return None
    return (
        f"warning: {noisy} of {len(results)} verdicts are noisy: the 95% interval of the median "
        f"spans the goal. The load was {loads[0]:.1f} at the start and {loads[1]:.1f} at the end. "
        "Repeat it on an idle machine, with more --rounds, or with OMP_WAIT_POLICY=PASSIVE"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=50, help="timed pairs a case (at least 2)")
    named = [op for op in OPS if any(case.op == op for case in CASES)]
    parser.add_argument("--ops", nargs="+", choices=named, default=named)
    parser.add_argument("--against", choices=AGAINST, default="eager", help="torch's side")
    parser.add_argument("--threads", type=int, help="torch's; all cores by default")
    parser.add_argument("--out", type=Path, help="write JSON lines to this file")
    args = parser.parse_args(argv)
    if args.rounds < 2:
        parser.error(f"--rounds must be at least 2, got {args.rounds}")
    if args.threads is not None:
        if args.threads < 1:
            parser.error(f"--threads must be at least 1, got {args.threads}")
        torch.set_num_threads(args.threads)
    if args.out is not None and not args.out.absolute().parent.is_dir():
        parser.error(f"--out {args.out}: there is no such folder")

    kept = "kept" if keep_freed_memory() else "left to malloc"
    threads, load = torch.get_num_threads(), os.getloadavg()[0]
    counted = f"{threads} thread{'s' * (threads != 1)}"
    print(f"torch {torch.__version__}, {counted}, {cpu_model()}, load {load:.1f}")
    print(f"forward + backward against {args.against}, {args.rounds} pairs, freed memory {kept}")
    print(HEADER)
    results: list[Result] = []
    with fastnorm.use_backend("auto"):
        for case in CASES:
            if case.op in args.ops:
                result = measure(case, args.rounds, args.against)
                print(table_line(result), flush=True)
                results.append(result)
    goal = MEAN_GOALS[args.against]
    worst = max(results, key=lambda result: result.ratio.p50)
    if plain := [result for result in results if not result.case.modulated]:
        mean = geometric_mean(plain)
        print(f"geometric mean of {len(plain)} ratios {mean:.3f} (goal {goal:.2f}),")
    print(f"largest {worst.ratio.p50:.3f}: {worst.case.name}")
    if args.out is not None:
        lines = [json.dumps(row) for result in results for row in rows(result)]
        args.out.write_text("\n".join(lines) + "\n")
    if text := warning(results, (load, os.getloadavg()[0])):
        print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
