"""`python -m benchmarks.models`: training steps of whole models, ours converted and fused.

A model of `model_zoo.py` and its copy after fastnorm.convert and fastnorm.fuse train in turn (A B A
B ...) on this CPU: forward, backward and SGD. The ratio of times is taken within each pair, as in
benchmarks.cpu. First the copy's output, gradients and running statistics are compared with the
untouched model in float64. With `compile` both are compiled. Memory is the bytes that the forward
keeps for the backward, counted as in benchmarks.memory.
"""

import argparse
import copy
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import fastnorm
from benchmarks.allocator import keep_freed_memory
from benchmarks.check import WrongResult
from benchmarks.cpu import median_interval
from benchmarks.memory import saved_bytes
from benchmarks.model_zoo import ZOO, Entry, Example, fuse_parts
from benchmarks.rows import Row
from benchmarks.timing import Spread, cpu_model, installed

MODES = ("eager", "compile")
WARM_UP = 2  # steps; the first compiles
GOAL = 1.0  # for each ratio: never slower
MEAN_GOAL = 0.90  # for the geometric mean, eager, of models with these:
OF_THE_MEAN = ("batch", "group", "instance")
RATE = 1e-4  # of SGD: small, so that the weights stay near the checked ones


@dataclass(frozen=True)
class Conversion:
    """The number of norms that are fastnorm's, and of those that took in an activation or add."""

    converted: int
    kept: int
    fused: int
    fusing: str
    """"traced"; or which parts were traced; or why only Sequentials were fused."""


def convert(entry: Entry, model: nn.Module, example: Example) -> tuple[nn.Module, Conversion]:
    """A converted copy, made as a user makes it."""
    mine = copy.deepcopy(model)
    report = fastnorm.convert(mine)
    converted, kept = len(report.changed), len(report.kept)
    try:
        fused = fastnorm.fuse(mine, example)
    except ValueError as error:
        if entry.parts is not None:
            count = fuse_parts(mine, example, entry.parts)
            return mine, Conversion(converted, kept, count, f"each {entry.parts} traced")
        fused = fastnorm.fuse(mine)
        why = str(error).partition("\n")[0]
        return mine, Conversion(converted, kept, len(fused.changed), why)
    return fused.model, Conversion(converted, kept, len(fused.changed), "traced")


def results(model: nn.Module, call: Callable[..., Tensor], example: Example) -> dict[str, Tensor]:
    """Results of one step without an update, in float64: output, all gradients, all statistics.

    `call` is `model`, compiled or not.
    """
    model.zero_grad()
    y = call(*example)
    y.square().mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    buffers = {name: b for name, b in model.named_buffers() if b.is_floating_point()}
    found = {"output": y.detach().double().flatten()}
    for kind, tensors in (("gradients", gradients), ("statistics", buffers)):
        if tensors:
            ordered = [tensors[name].double().flatten() for name in sorted(tensors)]
            found[kind] = torch.cat(ordered)
    model.zero_grad()
    return found


def check(untouched: nn.Module, mine: nn.Module, example: Example, mode: str) -> None:
    """Raise WrongResult unless ours is about as near float64 as the untouched model is.

    Compares Euclidean norms of errors, relative to those of the truth. Allowed is 4 times the
    untouched model's error, or 64 units of float32. Copies take the step: the models stay as is.
    """
    exact = copy.deepcopy(untouched).double()
    doubles = tuple(t.double() if t.is_floating_point() else t for t in example)
    truth = results(exact, exact, doubles)
    found = []
    for model in (untouched, mine):
        twin = copy.deepcopy(model)
        found.append(results(twin, torch.compile(twin) if mode == "compile" else twin, example))
    theirs, ours = found
    for name, expected in truth.items():
        if ours[name].shape != expected.shape:
            raise WrongResult(f"{name}: {ours[name].numel()} values, not {expected.numel()}")
        size = float(expected.norm()) or 1.0
        error, allowed = (float((side[name] - expected).norm()) / size for side in (ours, theirs))
        bound = max(4 * allowed, 64 * torch.finfo(torch.float32).eps)
        if not error <= bound:  # in this form NaN counts as wrong
            raise WrongResult(f"{name} off by {error:.1e}, allowed {bound:.1e}")


class Trainee:
    """A model in training mode and its optimizer."""

    def __init__(self, model: nn.Module, example: Example, mode: str) -> None:
        self.model, self.example = model, example
        self.call: Callable[..., Tensor] = torch.compile(model) if mode == "compile" else model
        self.optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def forward(self) -> Tensor:
        return self.call(*self.example).square().mean()

    def seconds(self) -> float:
        """The time of one step."""
        start = time.perf_counter()
        self.optimizer.zero_grad()
        self.forward().backward()
        self.optimizer.step()
        return time.perf_counter() - start

    def kept(self) -> int:
        """Bytes that the forward keeps, without parameters and running statistics."""
        return saved_bytes(self.forward, [*self.model.parameters(), *self.model.buffers()])


@dataclass(frozen=True)
class Result:
    """A model in one mode: milliseconds and bytes of both sides, ratios ours/untouched."""

    entry: Entry
    mode: str
    conversion: Conversion
    ms: dict[str, Spread]
    ratio: Spread
    median: tuple[float, float]  # the 95% interval of ratio.p50
    kept: dict[str, int]

    @property
    def verdict(self) -> str:
        low, high = self.median
        if low <= GOAL < high:
            return "noisy"
        return "pass" if self.ratio.p50 <= GOAL else "MISS"


def summarise(
    entry: Entry, mode: str, done: Conversion, ms: dict[str, list[float]], kept: dict[str, int]
) -> Result:
    """Percentiles of paired timings; ms[provider][k] is from the k-th pair."""
    ratios = [mine / theirs for theirs, mine in zip(ms["torch"], ms["fastnorm"], strict=True)]
    spreads = {name: Spread.of(values) for name, values in ms.items()}
    return Result(entry, mode, done, spreads, Spread.of(ratios), median_interval(ratios), kept)


def measure(entry: Entry, mode: str, rounds: int) -> Result:
    """Build, convert, check, warm up, time `rounds` pairs. Raises WrongResult."""
    torch.manual_seed(0)
    untouched, example = entry.build()
    untouched.train()
    mine, done = convert(entry, untouched, example)
    check(untouched, mine, example, mode)
    pair = {
        "torch": Trainee(untouched, example, mode),
        "fastnorm": Trainee(mine, example, mode),
    }
    ms: dict[str, list[float]] = {name: [] for name in pair}
    for _ in range(WARM_UP + rounds):
        for name, trainee in pair.items():
            ms[name].append(1e3 * trainee.seconds())
    timed = {name: values[WARM_UP:] for name, values in ms.items()}
    kept = {name: trainee.kept() for name, trainee in pair.items()}
    torch.compiler.reset()  # else compiled models pile up
    return summarise(entry, mode, done, timed, kept)


def rows(result: Result) -> list[Row]:
    """One JSON row for each provider; ratios are relative to the untouched model in that run."""
    return [
        {
            "model": result.entry.name,
            "norm": result.entry.norm,
            "mode": result.mode,
            "provider": name,
            "error": None,
            **{f"ms_{key}": round(value, 2) for key, value in asdict(spread).items()},
            "ratio_p50": round(result.ratio.p50, 4) if name == "fastnorm" else 1.0,
            "kept_bytes": result.kept[name],
            **asdict(result.conversion),
            **versions(result.entry),
        }
        for name, spread in result.ms.items()
    ]


def failure(entry: Entry, mode: str, error: Exception) -> Row:
    """The row of a model that was wrong or raised."""
    what = f"{type(error).__name__}: {error}".partition("\n")[0]
    return {"model": entry.name, "mode": mode, "error": what, **versions(entry)}


def versions(entry: Entry) -> Row:
    """The versions on which a measurement depends, besides the model."""
    return {
        "package": entry.package and f"{entry.package} {installed(entry.package)}",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": cpu_model(),
    }


HEADER = (
    f"{'model':12} {'mode':8} {'norms':>5} {'fused':>5} {'torch ms':>9} {'ours ms':>9} {'ratio':>6}"
    "   20%-80%       of median    bytes kept"
)


def table_line(result: Result) -> str:
    done, ratio, (low, high) = result.conversion, result.ratio, result.median
    bytes_ratio = result.kept["fastnorm"] / result.kept["torch"]
    return (
        f"{result.entry.name:12} {result.mode:8} {done.converted:5} {done.fused:5} "
        f"{result.ms['torch'].p50:9.1f} {result.ms['fastnorm'].p50:9.1f} {ratio.p50:6.3f}   "
        f"{ratio.p20:.3f}-{ratio.p80:.3f}   {low:.3f}-{high:.3f}  {bytes_ratio:.3f} "
        f"{result.verdict}"
    )


def means(found: Sequence[Result]) -> list[str]:
    """A line for each measured mode."""
    lines = []
    for mode in dict.fromkeys(result.mode for result in found):
        ratios = [
            result.ratio.p50
            for result in found
            if result.mode == mode and result.entry.norm in OF_THE_MEAN
        ]
        if ratios:
            goal = f" (goal {MEAN_GOAL:.2f})" * (mode == "eager")
            mean = statistics.geometric_mean(ratios)
            norms = f"{', '.join(OF_THE_MEAN[:-1])} or {OF_THE_MEAN[-1]} norm"
            lines.append(
                f"{mode}: geometric mean of {len(ratios)} models with {norms} {mean:.3f}{goal}"
            )
    return lines


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = [entry.name for entry in ZOO]
    parser.add_argument("--models", nargs="+", choices=names, default=names)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--rounds", type=int, default=15, help="timed pairs (at least 2)")
    parser.add_argument("--threads", type=int, help="torch's; all cores by default")
    parser.add_argument("--out", type=Path, help="write JSON lines to this file")
    args = parser.parse_args(argv)
    if args.rounds < 2:
        parser.error(f"--rounds must be at least 2, got {args.rounds}")
    if args.threads is not None and args.threads < 1:
        parser.error(f"--threads must be at least 1, got {args.threads}")
    if args.out is not None and not args.out.absolute().parent.is_dir():
        parser.error(f"--out {args.out}: there is no such folder")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    kept = "kept" if keep_freed_memory() else "left to malloc"
    threads, load = torch.get_num_threads(), os.getloadavg()[0]
    counted = f"{threads} thread{'s' * (threads != 1)}"
    print(f"torch {torch.__version__}, {counted}, {cpu_model()}, load {load:.1f}")
    print(f"a training step, {args.rounds} pairs, freed memory {kept}")
    chosen = [entry for entry in ZOO if entry.name in args.models]
    for entry in chosen:
        if not entry.installed:
            print(f"skipped: {entry.name}, for {entry.package} is not installed")
    print(HEADER)
    found: list[Result] = []
    written: list[Row] = []
    with fastnorm.use_backend("auto"):
        for entry, mode in itertools.product(chosen, args.modes):
            if not entry.installed:
                continue
            try:
                result = measure(entry, mode, args.rounds)
            except Exception as error:  # from an unknown package; the others go on
                written.append(failure(entry, mode, error))
                print(f"FAILED {entry.name} {mode}: {written[-1]['error']}", flush=True)
                continue
            print(table_line(result), flush=True)
            if result.conversion.fusing != "traced":
                print(f"    not fused as a whole: {result.conversion.fusing}")
            found.append(result)
            written += rows(result)
    print(*means(found), sep="\n")
    if args.out is not None:
        args.out.write_text("".join(json.dumps(row) + "\n" for row in written))
    return int(any(row["error"] for row in written))


if __name__ == "__main__":
    sys.exit(main())
