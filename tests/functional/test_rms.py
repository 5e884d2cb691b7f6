"""Special to RMS norm: its default eps, its shapes, squares too large for float16."""

import math

import pytest
import torch
import torch.nn.functional as TF

import fastnorm
import fastnorm.functional as F
from tests.conftest import BACKENDS, DEVICE, assert_close, make_input, running

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_default_eps(backend, dtype):
    """The machine epsilon of the computation: float32's for halves too. At 2^-10, exact in every
    dtype, y says which it was: 0.03 for float16's, 0.9430 for float32's, 1 for float64's."""
    value = 2.0**-10
    x = torch.full((3, 8), value, dtype=dtype, device=DEVICE)
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    expected = torch.full((3, 8), value / math.sqrt(value * value + eps), dtype=torch.float64)
    with running(backend):
        assert_close(F.rms_norm(x, (8,)), expected.to(DEVICE), "function")
        module = fastnorm.RMSNorm(8, device=DEVICE, dtype=dtype)
        assert_close(module(x), expected.to(DEVICE), "module")
    assert_close(fastnorm.reference.rms_norm(x, (8,)), expected.to(DEVICE), "formula")
    assert_close(TF.rms_norm(x, (8,)), expected.to(DEVICE), "torch")


@pytest.mark.parametrize("eps", [None, 1e-5])
@pytest.mark.parametrize(
    ("shape", "normalized"),
    [((5,), (5,)), ((3, 7), (7,)), ((2, 3, 7), (3, 7)), ((4, 1), (1,)), ((2, 3, 4, 5), (4, 5)),
     ((2, 3, 7), (2, 3, 7))],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("backend", BACKENDS)
def test_shapes(backend, shape, normalized, eps):
    """Any number of trailing dims, rank 1 and the whole tensor included."""
    x = make_input(shape, mean=1.0, requires_grad=True)
    weight = make_input(normalized, seed=1, requires_grad=True)
    dy = make_input(shape, seed=8)
    exact = TF.rms_norm(x, normalized, weight, eps)
    with running(backend):
        y = F.rms_norm(x, normalized, weight, eps)
        grads = torch.autograd.grad(y, (x, weight), dy)
    assert_close(y, exact)
    for ours, theirs in zip(grads, torch.autograd.grad(exact, (x, weight), dy), strict=True):
        # of one value dx is 0 but for eps: see test_forward.test_layer_norm_shapes
        assert_close(ours, theirs, slack=1e-12 if normalized == (1,) else 0.0)


@pytest.mark.parametrize("length", [7, 20000])
@pytest.mark.parametrize("backend", BACKENDS)
def test_squares_beyond_float16(backend, length):
    """Values of 1e4, whose squares float16 does not have: y is 1 and dx 0 where all are equal."""
    x = torch.full((2, length), 1e4, dtype=torch.float16, device=DEVICE, requires_grad=True)
    with running(backend):
        y = F.rms_norm(x, (length,))
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert (y == 1).all()
    assert dx.abs().max() <= 1e-7


@pytest.mark.parametrize("backend", BACKENDS)
def test_worked_example(backend):
    """(3, 4): mean of squares 12.5; (1, -7): 25, so that the second row is (0.2, -1.4)."""
    x = torch.tensor([[3.0, 4.0], [1.0, -7.0]], device=DEVICE)
    with running(backend):
        y = F.rms_norm(x, (2,), torch.tensor([1.0, 2.0], device=DEVICE), eps=0.0)
    rms = math.sqrt(12.5)
    expected = torch.tensor([[3 / rms, 8 / rms], [0.2, -2.8]], dtype=torch.float64, device=DEVICE)
    assert_close(y, expected)
