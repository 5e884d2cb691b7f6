"""`pytest benchmarks/ --benchmark-only`: each case, torch's operator and ours side by side.

Nothing is asserted about speed, since the two run minutes apart on machines that drift;
`python -m benchmarks.cpu` takes paired ratios.
"""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import fastnorm
from benchmarks.allocator import keep_freed_memory
from benchmarks.cases import CASES, PROVIDERS, Case, check, make_inputs, step


@pytest.fixture(scope="module", autouse=True)
def steady_allocator() -> None:
    keep_freed_memory()


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_forward_backward(benchmark: BenchmarkFixture, case: Case, provider: str) -> None:
    benchmark.group = f"{case.name} forward + backward"
    benchmark.extra_info["min_bytes"] = case.min_bytes
    with fastnorm.use_backend("auto"):
        if provider == "fastnorm":
            check(case)
        benchmark(step, PROVIDERS[provider], case.op, make_inputs(case))
