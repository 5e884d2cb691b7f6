"""The engine for CPUs: parameters of each sample."""

import pytest
import torch

from fastnorm.kernels.cpu import ENGINE, calls
from tests.kernels.modulation_cases import CASES, Case, check, tensors_of

pytestmark = pytest.mark.no_kernel


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(case):
    with calls.record() as called:
        check(ENGINE, case)
    assert called == ["modulate", "modulate_backward"]


def test_nothing_depends_on_the_number_of_threads():
    given = tensors_of(Case((40,), (1000,))).values()
    upstream = torch.randn(40, 1000), torch.randn(40, 1000)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            made = ENGINE.modulate(*given, torch.float32)
            grads = ENGINE.modulate_backward(*upstream, *given, torch.float32, (True,) * 4)
            found.append([*made, *grads])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for few in found[1:] for a, b in zip(few, found[0], strict=True))
