"""Rows with grouped or own parameters: the engine against float64 formulas."""

import contextlib
from typing import NamedTuple

import pytest
import torch

from fastnorm.contract import Inputs, NormSpec, side_input
from fastnorm.kernels import ENGINE, launch, row_geometry, tiers
from tests.conftest import DEVICE, assert_close
from tests.kernels.tilings import interpreted, tiny_tilings

EPS = 1e-5
NAMES = ("x", "residual", "weight", "bias")
FORWARD = {
    "one_program": ["row_norm_kernel"], "streaming": ["row_moments_kernel", "row_apply_kernel"],
}  # fmt: skip
BACKWARD = {
    "one_program": ["row_norm_backward_kernel"], "streaming": ["row_sums_kernel", "row_dx_kernel"],
}  # fmt: skip


class Shapes(NamedTuple):
    """x's shape, that of the parameters, and how many of its dimensions are normalised."""

    x: tuple[int, ...]
    parameters: tuple[int, ...]
    normalized: int = 1


SHAPES = {
    "images": Shapes((3, 5, 10), (3, 1, 10)),  # A = 3, inner = 5
    "groups": Shapes((7, 3, 10), (1, 3, 10)),  # A = 3, inner = 1
    "between": Shapes((2, 3, 4, 10), (1, 3, 1, 10)),  # A = 3, inner = 4
    "several": Shapes((2, 3, 2, 2, 10), (1, 3, 2, 1, 10)),  # A = 6, inner = 2
    "own": Shapes((3, 5, 10), (3, 5, 10)),  # A = R
    "one": Shapes((3, 5, 10), (1, 1, 10)),  # A = 1
    "more than programs": Shapes((9, 2, 6), (9, 1, 6)),
    "no power of two": Shapes((2, 21, 9), (2, 1, 9)),
    "two dimensions": Shapes((4, 3, 2, 5), (4, 1, 2, 5), 2),
}


def tensors_of(shapes: Shapes, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    t = {name: torch.randn(shapes.x) for name in ("x", "residual", "dy", "dsum")}
    found = {name: value.to(dtype) for name, value in t.items()}
    found["weight"] = (1 + 0.3 * torch.randn(shapes.parameters)).to(exact)
    found["bias"] = torch.randn(shapes.parameters).to(exact)
    return {name: value.to(DEVICE) for name, value in found.items()}


def formula(norm, t, normalized, activation=None):
    """act(norm(x) weight + bias + residual) in float64."""
    dims = tuple(range(-normalized, 0))
    x = t["x"]
    if norm == "layer":
        x = x - x.mean(dims, keepdim=True)
    z = x / (x.square().mean(dims, keepdim=True) + EPS).sqrt()
    z = z if t.get("weight") is None else z * t["weight"]
    z = z if t.get("bias") is None else z + t["bias"]
    z = z if t.get("residual") is None else z + t["residual"]
    return {None: lambda z: z, "relu": torch.relu, "silu": lambda z: z * z.sigmoid()}[activation](z)


def truth_of(norm, given, leaves, normalized, activation):
    t = {name: value.double().requires_grad_(name in leaves) for name, value in given.items()}
    y = formula(norm, t, normalized, activation)
    grads = torch.autograd.grad(y, [t[name] for name in leaves], t["dy"])
    return y, dict(zip(leaves, grads, strict=True))


def check(shapes, norm="layer", dtype=torch.float32, activation=None, residual=False, without=()):
    """Forward and backward of what is not `without`; the names of the launches of each."""
    t = tensors_of(shapes, dtype)
    if not residual:
        del t["residual"]
    given = {name: value for name, value in t.items() if name not in without}
    leaves = tuple(name for name in NAMES if name in given)
    y, grads = truth_of(norm, given, leaves, shapes.normalized, activation)
    spec = NormSpec(norm, shapes.normalized, eps=EPS, activation=activation)
    inputs = Inputs(given["x"], given.get("residual"), given.get("weight"), given.get("bias"))
    needs = (*(name in leaves for name in NAMES), False)
    with launch.record() as forward:
        found, mask, stats = ENGINE.norm(inputs, spec, True)
    if side_input(activation, residual) != "residual":
        inputs = inputs._replace(residual=None)
    with launch.record() as backward:
        got = ENGINE.norm_backward(given["dy"], inputs, mask, stats, needs, spec)
    assert_close(found, y, "y")
    for name, grad in zip(NAMES, got, strict=False):
        if name in leaves:
            assert grad is not None and grad.dtype == given[name].dtype
            assert_close(grad, grads[name], f"d{name}")
        else:
            assert grad is None
    return forward, backward


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=list(SHAPES))
def test_of_every_shape(shapes, norm):
    check(shapes, norm)


@interpreted
@pytest.mark.parametrize("tier", ["one_program", "streaming"])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=list(SHAPES))
def test_in_tiny_tiles(shapes, tier):
    """Runs of blocks that end within the rows of a parameter row, or have many of them."""
    with tiny_tilings(), tiers.force(tier):
        forward, backward = check(shapes)
    assert forward == FORWARD[tier]
    assert backward[: len(BACKWARD[tier])] == BACKWARD[tier]
    own = shapes.parameters == shapes.x
    adding = [] if own or tier == "streaming" else ["add_shares_kernel"]
    assert backward[len(BACKWARD[tier]) :] == adding


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("shapes", [SHAPES["images"], SHAPES["own"]], ids=["images", "own"])
def test_fused(shapes, residual, activation):
    with tiny_tilings() if DEVICE == "cpu" else contextlib.nullcontext():
        check(shapes, "layer", torch.float32, activation, residual)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["groups", "own"])
def test_of_every_dtype(name, dtype):
    check(SHAPES[name], "rms", dtype)


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("without", ["weight", "bias"])
@pytest.mark.parametrize("name", ["images", "own"])
def test_with_one_parameter(name, without, norm):
    check(SHAPES[name], norm, without=(without,))


@interpreted
@pytest.mark.parametrize("tier", ["one_program", "streaming"])
def test_a_bias_that_all_rows_of_rms_norm_share(tier):
    with tiny_tilings(), tiers.force(tier):
        check(Shapes((3, 5, 10), (10,)), "rms")


@pytest.mark.parametrize("name", ["images", "own"])
@pytest.mark.parametrize("asked", ["x", "weight", "bias"])
def test_partly_asked_gradients(name, asked):
    t = tensors_of(SHAPES[name], torch.float32)
    spec = NormSpec("layer", eps=EPS)
    inputs = Inputs(t["x"], None, t["weight"], t["bias"])
    _, _, stats = ENGINE.norm(inputs, spec, True)
    every = ENGINE.norm_backward(
        t["dy"], inputs, None, stats, (True, False, True, True, False), spec
    )
    needs = (*(name == asked for name in NAMES), False)
    some = ENGINE.norm_backward(t["dy"], inputs, None, stats, needs, spec)
    for wanted, all_asked, found in zip(needs, every, some, strict=True):
        assert (found is not None) == wanted
        assert found is None or torch.equal(found, all_asked)


@pytest.mark.parametrize("name", ["groups", "images", "own"])
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_of_a_sum(norm, name):
    t = tensors_of(SHAPES[name], torch.float32)
    bias = t["bias"]
    spec = NormSpec(norm, eps=EPS)
    y, total, stats = ENGINE.add_norm(Inputs(t["x"], t["residual"], t["weight"], bias), spec)
    needs = (True, True, True)
    inputs = Inputs(total, None, t["weight"], bias)
    got = ENGINE.add_norm_backward(t["dy"], t["dsum"], inputs, stats, needs, spec)
    given = {"x": total, "weight": t["weight"], "bias": bias, "dy": t["dy"]}
    leaves = ("x", "weight", "bias")
    exact, grads = truth_of(norm, given, leaves, 1, None)
    grads["x"] = grads["x"] + t["dsum"].double()
    assert torch.equal(total, t["x"] + t["residual"])
    assert_close(y, exact, "y")
    for name, grad in zip(leaves, got, strict=False):
        assert_close(grad, grads[name], f"d{name}")


@interpreted
def test_runs_of_blocks_leave_few_shares(monkeypatch):
    """As many as groups of programs and parameter rows together, however many rows there are."""
    spec = row_geometry.RowSpec("layer", None, None, 1000, 7)
    geometry = row_geometry.pointwise(70_000, 1024, 2).for_parameters(spec)
    assert geometry.shares(264) == 1264
    assert geometry.units == 1000 * -(-70 // geometry.BLOCK_R)


def test_parameters_that_are_not_contiguous():
    x, dy = torch.randn(3, 4, 10, device=DEVICE), torch.randn(3, 4, 10, device=DEVICE)
    wide = torch.randn(3, 1, 20, device=DEVICE)
    weight, bias = wide.chunk(2, 2)
    spec = NormSpec("layer", eps=EPS)
    inputs = Inputs(x, None, weight, bias)
    y, _, stats = ENGINE.norm(inputs, spec, True)
    needs = (False, False, True, True, False)
    grads = ENGINE.norm_backward(dy, inputs, None, stats, needs, spec)
    t = {"x": x, "weight": weight, "bias": bias, "dy": dy}
    exact, truth = truth_of("layer", t, ("weight", "bias"), 1, None)
    assert_close(y, exact, "y")
    for grad, name in zip(grads[2:4], ("weight", "bias"), strict=True):
        assert grad is not None and grad.is_contiguous()
        assert_close(grad, truth[name], f"d{name}")
