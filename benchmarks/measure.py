"""Measures one case: checks it, then times each provider in each direction, a row each."""

import contextlib
import importlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial

import torch

from benchmarks.check import WrongResult, check, step
from benchmarks.inputs import Inputs, make_inputs
from benchmarks.providers import Forward, Provider
from benchmarks.rows import NOT_REACHED, Row
from benchmarks.shapes import DIRECTIONS, Case, describe
from benchmarks.timing import Call, Clock, Spread

MOST_SETS = 512


class Budget:
    """Seconds that a run may take: a provider starts only if its longest case would still fit."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self.begin = time.perf_counter()
        self.longest: dict[str, float] = {}

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.begin

    def allows(self, name: str) -> bool:
        """Whether another case of the provider fits."""
        return self.seconds is None or self.elapsed + self.longest.get(name, 0.0) < self.seconds

    @contextlib.contextmanager
    def lap(self, name: str) -> Iterator[None]:
        """One case of the provider. The first compiles, so it says nothing about the next."""
        start = self.elapsed
        yield
        if name in self.longest:
            self.longest[name] = max(self.longest[name], self.elapsed - start)
        else:
            self.longest[name] = 0.0


def input_sets(case: Case, clock: Clock) -> list[Inputs]:
    """Enough sets that twice the L2's size (at least x and y) passes before one is used again."""
    count = min(math.ceil(clock.l2_bytes / case.nbytes) + 1, MOST_SETS)
    return [make_inputs(case, clock.device, seed) for seed in range(count)]


def calls(forward: Forward, op: str, direction: str, sets: Sequence[Inputs]) -> list[Call]:
    """The calls to time, one for each set of inputs; for backward the forward is already done."""
    if direction == "forward":
        return [partial(forward, i) for i in sets]
    if direction == "both":
        return [partial(step, forward, op, i) for i in sets]
    return [
        partial(
            torch.autograd.grad, forward(i), tuple(i.leaves(op).values()), i.dy, retain_graph=True
        )
        for i in sets
    ]


def launched(provider: Provider, call: Call) -> list[str] | None:
    """fastnorm's kernels in one call, which show its tier; None for other providers."""
    if not provider.is_ours:
        return None
    with importlib.import_module("fastnorm.kernels.launch").record() as names:
        call()
    return names


def failure(case: Case, provider: Provider, error: Exception) -> Row:
    """The row of a provider that was wrong or raised."""
    what = f"{type(error).__name__}: {error}".partition("\n")[0]
    return {**describe(case), "provider": provider.name, "error": what}


def _timed(case: Case, direction: str, samples: Sequence[float], copy_gbps: float) -> Row:
    spread, floor = Spread.of(samples), case.floor_bytes(direction)
    gbps = floor / spread.p50 / 1e3
    return {
        **{f"us_{key}": round(value, 3) for key, value in asdict(spread).items()},
        "gbps": round(gbps, 1),
        "pct_copy": round(100 * gbps / copy_gbps, 2),
        "floor_bytes": floor,
        "copy_gbps": round(copy_gbps, 1),
    }


def provider_rows(
    case: Case, provider: Provider, forward: Forward, clock: Clock, copy_gbps: float
) -> Iterator[Row]:
    """A row for each direction with cold L2 and, if the tensor fits it, with warm L2."""
    sets = input_sets(case, clock)
    for direction in DIRECTIONS:
        made = calls(forward, case.op, direction, sets)
        timings = {"cold": clock.device_us(made)}
        if case.nbytes <= clock.l2_bytes:
            timings["warm"] = clock.device_us(made[:1])
        kernels = launched(provider, made[0])
        host = {
            "launches": None if kernels is None else len(kernels),
            "kernels": kernels,
            "host_us": round(clock.host_us(made[0]), 2),
            "eager_us": round(clock.eager_us(made[0]), 2),
        }
        for l2, (timing, samples) in timings.items():
            yield {
                **describe(case),
                "provider": provider.name,
                "error": None,
                "direction": direction,
                "l2": l2,
                "timing": timing,
                **_timed(case, direction, samples, copy_gbps),
                **host,
            }


def case_rows(
    case: Case, providers: Sequence[Provider], clock: Clock, copy_gbps: float, budget: Budget
) -> Iterator[Row]:
    """All rows of a case, ours first: if they are wrong, there is nothing to compare.

    A provider that no longer fits the budget gets a row that says NOT_REACHED.
    """
    for provider in providers:
        if not provider.serves(case):
            continue
        if not budget.allows(provider.name):
            yield {**describe(case), "provider": provider.name, "error": NOT_REACHED}
            continue
        try:
            with budget.lap(provider.name), clock.session(), provider.setting():
                forward = provider.bind(case)
                if provider.checked:
                    check(case, forward, clock.device)
                yield from provider_rows(case, provider, forward, clock, copy_gbps)
        except Exception as error:  # from an unknown package; a long run goes on
            yield failure(case, provider, error)
            clock.synchronize()  # unless the device itself is broken
            if provider.name == "fastnorm" and isinstance(error, WrongResult):
                return
