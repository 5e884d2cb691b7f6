"""TRITON_DEBUG=1, which checks integer arithmetic: none of the kernels' overflows."""

import pytest
import torch
import triton
import triton.language as tl

from tests.compiled.cases import Case
from tests.compiled.executor import EmulationError, Emulator
from tests.compiled.trying import compiled_results, tensors_of, truth_of, wrong

CASES = [
    Case("batch", tier="cluster", fusion="relu"),
    Case("group", tier="cluster", dtype=torch.bfloat16, few=True),
    Case("batch_instance", tier="streaming", layout="channels_last"),
    Case("layer", tier="streaming"),
    Case("instance_stats", tier="streaming", layout="channels_last"),
    Case("batch_instance", tier="streaming", fusion="relu residual"),
    Case("rms", tier="streaming"),
    Case("group", tier="one_program", layout="channels_last"),
    Case("add_layer", tier="one_program"),
    Case("weight"),
]


@triton.jit
def twice_kernel(x, y):
    tl.store(y, tl.load(x) * 2)


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.knobs.runtime, "debug", True)


def test_a_sum_that_leaves_its_range_is_told(emulator: Emulator, checked: None) -> None:
    x, y = torch.tensor([2**30], dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    with pytest.raises(EmulationError, match="__assertfail"):
        twice_kernel[(1,)](x, y)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels(emulator: Emulator, checked: None, case: Case) -> None:
    tensors = tensors_of(case)
    found, launched = compiled_results(case, tensors)
    assert launched and not wrong(found, truth_of(case, tensors))
