"""Promises of the backward besides values: who gets a gradient, what stays unchanged, layouts."""

from itertools import combinations

import pytest
import torch

import fastnorm.functional as F
from tests.conftest import BACKENDS, LAYOUTS, assert_close, make_input, running
from tests.norms import (
    GRADS,
    NORMS,
    OF_ROWS,
    Torch,
    call,
    double,
    forward_backward,
    grad_targets,
    make_params,
)

SHAPE = (2, 4, 3, 2)


def truth_of(norm, x, p, dy, **kwargs):
    exact_x = x.detach().double().clone().requires_grad_()
    return forward_backward(
        Torch, norm, exact_x, double(p, requires_grad=True), dy.double(), **kwargs
    )


def subsets(norm):
    p = make_params(norm, SHAPE)
    names = ["x", *(name for name in GRADS if p[name] is not None)]
    return [s for size in range(1, len(names)) for s in combinations(names, size)]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_requires_grad_subsets(backend, norm):
    """Frozen tensors keep grad None; the others' gradients do not depend on who is frozen."""
    x, dy = make_input(SHAPE), make_input(SHAPE, seed=8)
    p = make_params(norm, SHAPE)
    truth = truth_of(norm, x, p, dy)
    for wanted in subsets(norm):
        leaves = {"x": x, **{k: v for k, v in p.items() if v is not None}}
        leaves = {k: v.detach().clone().requires_grad_(k in wanted) for k, v in leaves.items()}
        given = {k: leaves.get(k) for k in p}
        with running(backend):
            call(F, norm, leaves["x"], given).backward(dy)
        for name, leaf in leaves.items():
            if name in wanted:
                assert_close(leaf.grad, truth[name], f"{name} of {wanted}")
            else:
                assert leaf.grad is None, f"{name} is frozen in {wanted}, yet has a gradient"


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_residual_requires_grad(backend, activation):
    dy = make_input(SHAPE, seed=8)
    for norm in NORMS:
        p = make_params(norm, SHAPE)
        x, residual = make_input(SHAPE), make_input(SHAPE, seed=7, requires_grad=True)
        kwargs = {"activation": activation, "residual": residual}
        y = call(Torch, norm, x, double(p), **kwargs)
        (truth,) = torch.autograd.grad(y, residual, dy)
        with running(backend):
            (ours,) = torch.autograd.grad(call(F, norm, x, p, **kwargs), residual, dy)
        assert_close(ours, truth, norm)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_grad_needs_no_graph(backend, norm):
    x = make_input(SHAPE, requires_grad=True)
    p = make_params(norm, SHAPE, requires_grad=True)
    with running(backend), torch.no_grad():
        assert not call(F, norm, x, p).requires_grad
    with running(backend), torch.inference_mode():
        call(F, norm, x, p)
    with running(backend):
        assert not call(F, norm, x.detach(), make_params(norm, SHAPE)).requires_grad


@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_are_untouched(backend, norm, activation):
    """Neither pass writes into x, dy, the residual or a parameter (a shipped package did: dy)."""
    p = make_params(norm, SHAPE, requires_grad=True)
    x = make_input(SHAPE, requires_grad=True)
    given = {
        "x": x,
        "dy": make_input(SHAPE, seed=8),
        "residual": make_input(SHAPE, seed=7, requires_grad=True),
        **{k: v for k, v in p.items() if k in GRADS and v is not None},
    }
    before = {k: v.detach().clone() for k, v in given.items()}
    versions = {k: v._version for k, v in given.items()}
    with running(backend):
        forward_backward(
            F, norm, x, p, given["dy"], activation=activation, residual=given["residual"]
        )
    for name, tensor in given.items():
        assert torch.equal(tensor, before[name]), f"{name} was overwritten"
        assert tensor._version == versions[name], f"{name} was written"


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_share_no_memory(backend, norm, activation):
    """dx, the residual's gradient and dy are separate where a caller may write into them."""
    if (backend, norm, activation) == ("reference", "mean_eval", None):
        pytest.skip("x - mean + beta in plain PyTorch, whose own gradient of x is dy itself")
    p = make_params(norm, SHAPE, requires_grad=True)
    x, dy = make_input(SHAPE, requires_grad=True), make_input(SHAPE, seed=8)
    with running(backend):
        y = call(F, norm, x, p, activation=activation)
        grads = torch.autograd.grad(y, list(grad_targets(x, p).values()), dy)
    storages = [t.untyped_storage().data_ptr() for t in (x, dy, y, *grads)]
    assert len(set(storages)) == len(storages)


@pytest.mark.parametrize("shape", [(2, 4, 6), (2, 4, 3, 2), (2, 4, 3, 2, 2)])
@pytest.mark.parametrize("norm", [norm for norm in NORMS if norm not in OF_ROWS])
@pytest.mark.parametrize("backend", ["triton", "cpu"])
def test_dx_keeps_memory_format(backend, norm, shape):
    """dx is laid out as x even where dy is not; the 1d and 3d forms of channels_last count too.

    Layer and RMS norm answer contiguously; the reference leaves dx's layout to autograd.
    """
    p = make_params(norm, shape, requires_grad=True)
    for layout in ("contiguous", "channels_last"):
        for dy_layout in LAYOUTS:
            x = make_input(shape, layout, requires_grad=True)
            dy = make_input(shape, dy_layout, seed=8)
            with running(backend):
                ours = forward_backward(F, norm, x, p, dy)
            assert ours["y"].stride() == x.stride(), f"y of {layout} x"
            assert ours["x"].stride() == x.stride(), f"dx of {layout} x and {dy_layout} dy"
            truth = truth_of(norm, x, p, dy)
            for name, exact in truth.items():
                assert_close(ours[name], exact, f"{name} of {layout} x and {dy_layout} dy")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_expanded_dy(backend, norm, layout):
    """.sum().backward() hands over a dy whose strides are all 0."""
    p = make_params(norm, SHAPE, requires_grad=True)
    x = make_input(SHAPE, layout, requires_grad=True)
    with running(backend):
        call(F, norm, x, p, activation="silu").sum().backward()
    truth = truth_of(norm, x, p, torch.ones(SHAPE, dtype=x.dtype).to(x.device), activation="silu")
    for name, target in grad_targets(x, p).items():
        assert_close(target.grad, truth[name], name)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_backward_accumulates_and_repeats(backend, norm):
    """Two backwards through one graph add up: nothing saved was freed or overwritten."""
    p = make_params(norm, SHAPE, requires_grad=True)
    x, dy = make_input(SHAPE, requires_grad=True), make_input(SHAPE, seed=8)
    with running(backend):
        y = call(F, norm, x, p)
        y.backward(dy, retain_graph=True)
        y.backward(dy)
    truth = truth_of(norm, x, p, dy)
    for name, target in grad_targets(x, p).items():
        assert_close(target.grad, 2 * truth[name], name)


@pytest.mark.parametrize("norm", ["bn_train", "bin_train"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_forwards_then_one_backward(backend, norm):
    """The second forward rewrites the running statistics; the first backward must not read them."""
    p = make_params(norm, SHAPE, requires_grad=True)
    first, second = (
        make_input(SHAPE, requires_grad=True),
        make_input(SHAPE, seed=5, requires_grad=True),
    )
    dy = make_input(SHAPE, seed=8)
    truths = [truth_of(norm, x, p, dy) for x in (first, second)]
    with running(backend):
        y = call(F, norm, first, p) + call(F, norm, second, p)
        y.backward(dy)
    assert_close(first.grad, truths[0]["x"], "first dx")
    assert_close(second.grad, truths[1]["x"], "second dx")
    assert_close(p["weight"].grad, truths[0]["weight"] + truths[1]["weight"], "weight")
