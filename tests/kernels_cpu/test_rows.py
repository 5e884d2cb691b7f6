"""The engine for CPUs on long rows, or few rows: each way of sharing them out."""

import pytest
import torch

import fastnorm.functional as F
from tests.conftest import running
from tests.kernels_cpu.cases import DTYPES, ERRORS

pytestmark = pytest.mark.no_kernel

# By rows; few of several pieces; by pieces of columns, whose rest is no vector, in several runs;
# the same of several chunks of rows, for the wider dtypes.
SHAPES = ((37, 1000), (9, 9001), (5, 70001), (131, 17000))


def results(
    x: torch.Tensor, dy: torch.Tensor, dtype: torch.dtype, residual: bool
) -> dict[str, torch.Tensor]:
    L = x.shape[1]
    generator = torch.Generator().manual_seed(2)
    weight = torch.rand(L, generator=generator, dtype=torch.float64) + 0.5
    bias = torch.randn(L, generator=generator, dtype=torch.float64)
    given = {"x": x, "weight": weight, "bias": bias}
    if residual:
        given["residual"] = x.roll(1, 1)
    t = {k: v.detach().to(dtype).requires_grad_() for k, v in given.items()}
    y = F.layer_norm(
        t["x"], (L,), t["weight"], t["bias"], activation="silu", residual=t.get("residual")
    )
    grads = torch.autograd.grad(y, list(t.values()), dy.to(dtype))
    return {"y": y.detach()} | dict(zip(t, grads, strict=True))


def drawn(shape: tuple[int, int], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, dy = (torch.randn(shape, generator=generator).to(dtype).double() for _ in range(2))
    return x * 1.5, dy


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values(dtype, shape):
    x, dy = drawn(shape, dtype)
    x = x.to(dtype).double()
    with running("cpu"):
        found = results(x, dy, dtype, residual=True)
    with running("reference"):
        truth = results(x, dy, torch.float64, residual=True)
    for name, exact in truth.items():
        error = (found[name].double() - exact).abs().max() / exact.abs().max()
        assert error <= ERRORS[dtype], (name, error)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_depends_on_the_number_of_threads(dtype, shape):
    x, dy = drawn(shape, dtype)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            with running("cpu"):
                found.append(results(x, dy, dtype, residual=False))
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        assert all(torch.equal(others[name], found[0][name]) for name in others)


@pytest.mark.parametrize("needs", [("x",), ("weight",), ("residual",), ("x", "bias")], ids=str)
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_gradients_asked_for_in_part(shape, needs):
    """The same as of all: each pass of the backward is left out where nobody asks for it."""
    x, dy = drawn(shape, torch.float32)
    L = shape[1]
    given = {"x": x, "weight": x[0], "bias": x[1], "residual": x.flip(0)}
    t = {k: v.float().requires_grad_() for k, v in given.items()}
    with running("cpu"):
        y = F.layer_norm(
            t["x"], (L,), t["weight"], t["bias"], activation="relu", residual=t["residual"]
        )
        whole = torch.autograd.grad(y, list(t.values()), dy.float(), retain_graph=True)
        torch.autograd.grad(y, list(t.values()), -dy.float())  # what is left in freed memory
        t = {k: v.detach().requires_grad_(k in needs) for k, v in t.items()}
        y = F.layer_norm(
            t["x"], (L,), t["weight"], t["bias"], activation="relu", residual=t["residual"]
        )
        some = torch.autograd.grad(y, [t[k] for k in needs], dy.float())
    expected = dict(zip(given, whole, strict=True))
    assert all(torch.equal(g, expected[k]) for k, g in zip(needs, some, strict=True))
