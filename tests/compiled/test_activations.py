"""The activations that test_cases.py does not combine with everything, as Triton compiled them."""

import pytest
import torch

from tests.compiled.cases import FURTHER, Case
from tests.compiled.executor import Emulator
from tests.compiled.schedules import schedules_of
from tests.compiled.test_cases import check

KINDS = {
    "group": {"op": "group"},
    "group, channels last, bfloat16": {
        "op": "group", "layout": "channels_last", "dtype": torch.bfloat16,
    },
    "layer": {"op": "layer"},
    "batch in float64, by two launches": {
        "op": "batch", "dtype": torch.float64, "tier": "streaming",
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=() if k == "group" else pytest.mark.slow) for k in KINDS]
)
@pytest.mark.parametrize("fusion", [f"{name}{of}" for name in FURTHER for of in ("", " residual")])
def test_activation(emulator: Emulator, fusion: str, kind: str) -> None:
    case = Case(fusion=fusion, **KINDS[kind])  # type: ignore[arg-type]
    check(emulator, case, schedules_of(case, 0))
