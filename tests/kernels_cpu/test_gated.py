"""The engine for CPUs: RMS norm with a gate before or after it."""

import pytest
import torch

from fastnorm.kernels.cpu import ENGINE, calls
from tests.kernels_cpu import gated_cases as cases
from tests.kernels_cpu.cases import DTYPES

pytestmark = pytest.mark.no_kernel


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values(dtype):
    chosen = list(cases.cases(dtype))
    with calls.record() as called:
        errors = {case: cases.check(case) for case in chosen}
    assert called == ["gated", "gated_backward"] * len(chosen)
    assert {case: error for case, error in errors.items() if error > 1} == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_depends_on_the_number_of_threads(dtype):
    threads = torch.get_num_threads()
    for case in cases.cases(dtype):
        found = []
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                found.append(cases.results(case))
        finally:
            torch.set_num_threads(threads)
        for others in found[1:]:
            assert all(torch.equal(others[name], found[0][name]) for name in others), case


@pytest.mark.parametrize("asked", [("x",), ("gate",), ("weight",), ("gate", "weight")], ids=str)
def test_gradients_asked_for_in_part(asked):
    """The same as of all: each pass of the backward is left out where nobody asks for it."""
    for case in cases.cases(torch.float32):
        whole, some = cases.results(case), cases.results(case, asked)
        assert set(some) == {"y", *asked} - ({"weight"} if case.parameters is None else set())
        assert all(torch.equal(some[name], whole[name]) for name in some), case


def test_nothing_asked_for_runs_nothing():
    dy, x, gate, weight = cases.make(cases.Case((5, 8), (8,), True, torch.float32))
    _, stats = ENGINE.gated_norm(x, gate, weight, True, 1e-5)
    with calls.record() as called:
        grads = ENGINE.gated_norm_backward(dy, x, gate, weight, stats, True, (False, False, False))
    assert (grads, called) == ((None, None, None), [])


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_weight_of_another_dtype(kind):
    """Its gradient comes in its own dtype."""
    dy, x, gate, weight = cases.make(cases.Case((4, 6, 3, 40), (3, 40), False, torch.float32))
    weight = weight.to(kind)
    y, stats = ENGINE.gated_norm(x, gate, weight, False, 1e-5)
    (*_, dweight) = ENGINE.gated_norm_backward(dy, x, gate, weight, stats, False, (True,) * 3)
    wide = [t.double().requires_grad_() for t in (x, gate, weight)]
    exact = cases.formula(*wide, False)
    (truth,) = torch.autograd.grad(exact, wide[2:], dy.double())
    torch.testing.assert_close(y.double(), exact.detach(), rtol=1e-5, atol=1e-5)
    assert dweight.dtype == kind
    torch.testing.assert_close(dweight.double(), truth, rtol=1e-2, atol=1e-3)


def test_a_row_of_zeros():
    """No NaN: eps alone is under the root, and the slope of a gate's product is finite."""
    x, gate, dy = torch.zeros(3, 20), torch.randn(3, 20), torch.randn(3, 20)
    for first in (True, False):
        y, stats = ENGINE.gated_norm(x, gate, None, first, 1e-5)
        dx, dgate, _ = ENGINE.gated_norm_backward(dy, x, gate, None, stats, first, (True,) * 3)
        assert not y.any() and not dgate.any() and dx.isfinite().all() and dx.any()
