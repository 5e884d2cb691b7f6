"""Parameters of each sample, made and differentiated by one launch each."""

import pytest
import torch

import fastnorm.functional as F
from fastnorm.backend import use_backend
from fastnorm.kernels import ENGINE, launch
from tests.conftest import make_input
from tests.kernels.modulation_cases import CASES, check

KERNELS = ["modulate_kernel", "modulate_backward_kernel"]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(case):
    with launch.record() as launched:
        check(ENGINE, case)
    assert launched == KERNELS


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("rows", [False, True])
def test_a_modulated_norm_launches_them_once(rows, autocast):
    x = make_input((3, 4, 6), dtype=torch.float32, requires_grad=True)
    shape = (3, 1, 6) if rows else (3, 4)
    scale, shift = (
        make_input(shape, dtype=torch.float32, seed=i, requires_grad=True) for i in range(2)
    )
    with use_backend("triton"), launch.record() as launched:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
            if rows:
                y = F.layer_norm(x, (6,), scale=scale, shift=shift)
            else:
                y = F.group_norm(x, 2, scale=scale, shift=shift)
        y.sum().backward()
    assert [name for name in launched if name in KERNELS] == KERNELS
