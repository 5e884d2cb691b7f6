"""`pytest benchmarks/test_smoke.py`: every norm, tier, layout, dtype and fusion once, in seconds.

For the first minute with a GPU: `make gpu-smoke` spreads the cases over processes, and runs the
cluster cases, whose programs wait for one another, separately. Without a GPU kernels are
interpreted, and tests that need CUDA are skipped as "not here".
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

import fastnorm.functional as F
from benchmarks import smoke, smoke_cases
from benchmarks.smoke import Tensors
from benchmarks.smoke_cases import SmokeCase
from fastnorm import reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_cuda = pytest.mark.skipif(DEVICE == "cpu", reason="not here: it needs CUDA")
SPECIAL = {  # the first counts tickets, the second gathers, the others do neither
    "bn-streaming": SmokeCase("bn", smoke_cases.SIZES["streaming"], tier="streaming"),
    "gn-one_program": SmokeCase("gn", smoke_cases.SIZES["one_program"], tier="one_program"),
    "ln": SmokeCase("ln", smoke_cases.SIZES["rows"]),
}


def hold(case: SmokeCase, record: Callable[[str, object], None]) -> None:
    """Check the case; its figures go into the report."""
    outcome = smoke.check(case, DEVICE)
    record("error", f"{outcome.error:.1e}")
    record("allowed", f"{outcome.allowed:.0e}")
    record("kernels", " ".join(outcome.kernels))
    assert outcome.kernels, "no kernel was launched"
    if case.tier:
        kept = smoke.in_one_launch(outcome.kernels)
        assert kept == (case.tier != "streaming"), outcome.kernels
    assert outcome.error <= outcome.allowed, f"{outcome.worst} is off by {outcome.error:.1e}"


@pytest.mark.parametrize("case", smoke_cases.cases(), ids=lambda case: case.name)
def test_case(case: SmokeCase, record_property: Callable[[str, object], None]) -> None:
    hold(case, record_property)


@pytest.mark.parametrize("case", smoke_cases.cluster_cases(), ids=lambda case: case.name)
def test_cluster(case: SmokeCase, record_property: Callable[[str, object], None]) -> None:
    """The interpreter has no clusters: there only the calls are rehearsed."""
    hold(case if DEVICE == "cuda" else replace(case, tier=None), record_property)


def computed(case: SmokeCase, t: Tensors) -> Tensors:
    with smoke.through_kernels(case.tier):
        return smoke.results(F, case, smoke.copied(t))


@pytest.mark.parametrize("case", SPECIAL.values(), ids=SPECIAL)
def test_other_sizes_and_the_first_again(case: SmokeCase) -> None:
    """Leftovers of one size, plans and counters, do not disturb another size."""
    t = smoke.tensors(case, DEVICE)
    first = computed(case, t)
    for shape in ((case.shape[0] + 1, *case.shape[1:]), (1, *case.shape[1:])):
        hold(SmokeCase(case.op, shape, case.dtype, tier=case.tier), lambda key, value: None)
    again = computed(case, t)
    assert all(torch.equal(first[name], again[name]) for name in first)


@needs_cuda
@pytest.mark.parametrize("case", SPECIAL.values(), ids=SPECIAL)
def test_captured_and_replayed(case: SmokeCase) -> None:
    """A CUDA graph of forward and backward, replayed with other values in its inputs."""
    t, buffers = smoke.tensors(case, DEVICE), smoke.tensors(case, DEVICE)
    stream = torch.cuda.Stream()
    with smoke.through_kernels(case.tier), torch.cuda.stream(stream):
        smoke.results(F, case, buffers)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with smoke.through_kernels(case.tier) as kernels, torch.cuda.graph(graph, stream=stream):
        found = smoke.results(F, case, buffers)
    assert kernels
    for factor in (1.0, 2.0, -3.0):
        changed = {**t, "x": t["x"].detach() * factor, "dy": t["dy"] + factor}
        expected = smoke.results(reference, case, smoke.copied(changed, double=True))
        for name, value in changed.items():
            buffers[name].detach().copy_(value)
        graph.replay()
        torch.cuda.synchronize()
        error, worst, allowed = smoke.worst_error(case, found, expected)
        assert error <= allowed, f"{worst} is off by {error:.1e} after x times {factor}"


@needs_cuda
@pytest.mark.parametrize("case", SPECIAL.values(), ids=SPECIAL)
def test_two_streams(case: SmokeCase) -> None:
    """Calls that overlap share no counter: each result is the same as alone, bit for bit."""
    t = smoke.tensors(case, DEVICE)
    expected = computed(case, t)
    streams = [torch.cuda.Stream() for _ in range(2)]
    copies = [[smoke.copied(t) for _ in range(10)] for _ in streams]
    torch.cuda.synchronize()
    found = []
    for pair in zip(*copies, strict=True):
        for stream, each in zip(streams, pair, strict=True):
            with smoke.through_kernels(case.tier), torch.cuda.stream(stream):
                found.append(smoke.results(F, case, each))
    torch.cuda.synchronize()
    for each in found:
        assert all(torch.equal(each[name], expected[name]) for name in expected)
