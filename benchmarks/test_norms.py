"""`pytest benchmarks/ --benchmark-only`: forward + backward of ours, torch eager and compiled.

On a GPU: the cases of shapes.quick() that are compared with torch.compile; it waits for each call,
so the time includes the host's cost. On a CPU: those of shapes.paired(), with the backend `auto`.
Nothing is asserted about speed: `python -m benchmarks.run` and `benchmarks.cpu` take the ratios.
"""

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import fastnorm
from benchmarks.allocator import keep_freed_memory
from benchmarks.check import check, step
from benchmarks.inputs import make_inputs
from benchmarks.providers import FACTORIES, Provider, Unavailable
from benchmarks.shapes import Case, paired, quick
from benchmarks.timing import Clock, clock

CASES = tuple(case for case in quick() if case.compiled) if torch.cuda.is_available() else paired()


@pytest.fixture(scope="module")
def device() -> Clock:
    keep_freed_memory()
    return clock()


@pytest.fixture(scope="module")
def copy_gbps(device: Clock) -> float:
    return device.copy_gbps()


@pytest.fixture(params=["eager", "compile", "fastnorm"])
def provider(request: pytest.FixtureRequest) -> Iterator[Provider]:
    try:
        found = FACTORIES[request.param]()
    except Unavailable as error:
        pytest.skip(str(error))
    with fastnorm.use_backend("auto"):
        yield found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_forward_backward(
    benchmark: BenchmarkFixture, case: Case, provider: Provider, device: Clock, copy_gbps: float
) -> None:
    benchmark.group = f"{case.name} forward + backward"
    with device.session():
        forward = provider.bind(case)
        if provider.checked:
            check(case, forward, device.device)
        call = partial(step, forward, case.op, make_inputs(case, device.device))

        def finished() -> None:
            call()
            device.synchronize()

        finished()  # compiles
        benchmark(finished)
    floor = case.floor_bytes("both")
    benchmark.extra_info["floor_bytes"] = floor
    if benchmark.stats is not None:  # None under --benchmark-disable
        gbps = floor / benchmark.stats.stats.median / 1e9
        benchmark.extra_info["gbps"] = gbps
        benchmark.extra_info["pct_copy"] = 100 * gbps / copy_gbps
