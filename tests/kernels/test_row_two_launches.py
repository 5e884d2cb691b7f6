"""Rows in two launches, interpreted, in tiny tiles: runs of rows, sums over the parts of a row."""

import pytest
import torch

import fastnorm.functional as F
from fastnorm.kernels import row_plans
from fastnorm.kernels.row_geometry import RowGeometry
from tests.conftest import assert_close, make_input, running
from tests.kernels.tilings import interpreted, tiny_tilings

KERNELS = ["row_moments_kernel", "row_apply_kernel", "row_sums_kernel", "row_dx_kernel"]


@interpreted
@pytest.mark.parametrize("op", [F.layer_norm, F.rms_norm])
@pytest.mark.parametrize("R", [1, 3, 37])
@pytest.mark.parametrize("L", [70, 150, 700])  # 2 parts, 3 and 11: some, more, more than at a time
def test_norms(op, R, L):
    x = make_input((R, L), "contiguous", mean=3.0, requires_grad=True)
    weight = torch.rand(L, requires_grad=True)
    dy = torch.randn(R, L)
    with tiny_tilings(), running("triton") as launched:
        y = op(x, (L,), weight, eps=1e-5)
        found = torch.autograd.grad(y, (x, weight), dy)
    assert launched == KERNELS
    with running("reference"):
        wide = [t.detach().double().requires_grad_() for t in (x, weight)]
        exact = op(wide[0], (L,), wide[1], eps=1e-5)
        truth = torch.autograd.grad(exact, wide, dy.double())
    assert_close(y, exact, "y")
    for name, mine, theirs in zip(("dx", "dweight"), found, truth, strict=True):
        assert_close(mine, theirs, name)


@pytest.mark.parametrize(
    ("R", "L", "runs"),
    [
        (2048, 32768, 33),  # 16 slices: 528 programs, all that fit at once
        (2048, 40000, 26),  # 20 slices: 520
        (10, 32768, 10),  # no more than rows
        (256, 600_000, 8),  # 293 slices: one run of each would leave much idle, so four waves
        (256, 1_204_224, 4),  # 588 slices
        (2, 1_204_224, 2),
    ],
)
def test_programs_fill_the_gpu(R, L, runs):
    geometry = RowGeometry(R, L, 1, 2048, 4, num_warps=4, at_once=4)
    assert row_plans._runs(geometry, 132) == runs
