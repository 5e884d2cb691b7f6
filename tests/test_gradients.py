"""Gradients against finite differences (gradcheck) and against torch.nn.functional in float64.

gradcheck uses its fast mode (random projections of the Jacobian) except for four norms on
contiguous x with every parameter: comparing each entry everywhere would take minutes.

Some of the kernels' combinations are slow: fewer parameters in each layout, and each activation
with and without a residual for each norm; the smooth ones with a graph and in a batch.
"""

import itertools

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import fastnorm.functional as F
from tests.conftest import BACKENDS, LAYOUTS, assert_close, combinations, make_input, running
from tests.norms import (
    ACTIVATIONS,
    AFFINE,
    NORMS,
    Torch,
    call,
    double,
    forward_backward,
    grad_targets,
    make_params,
)

SHAPE = (2, 4, 3)  # (N, C, S): every reduction set has more than one value and S is no power of 2
# Between them every kind of merge; group norm's is of few programs, for entry by entry they add up.
EVERY_ENTRY = {"bin_train": SHAPE, "ln": SHAPE, "rms": SHAPE, "gn": (1, 4, 3)}
KINK = 1e-3  # finite differences step by 1e-6: nearer to relu's kink than this they tell nothing


def checked(norm, x, p, *, check=gradcheck, fast_mode=True, **kwargs):
    """Run gradcheck over x, every parameter of p and the residual."""
    targets = grad_targets(x, p)
    if (residual := kwargs.pop("residual", None)) is not None:
        targets["residual"] = residual
    names = list(targets)

    def function(*tensors):
        given = dict(zip(names, tensors, strict=True))
        extra = {"residual": given["residual"]} if "residual" in given else {}
        return call(
            F, norm, given["x"], {**p, **without(given, "x", "residual")}, **extra, **kwargs
        )

    return check(function, tuple(targets.values()), fast_mode=fast_mode)


def without(mapping, *names):
    return {k: v for k, v in mapping.items() if k not in names}


# Which gradients are asked for and how x lies do not meet in any kernel.
QUICK = (("full", "contiguous"), ("weight", "channels_last"), ("none", "sliced"))


@pytest.mark.parametrize(
    ("backend", "norm", "affine", "layout"),
    combinations(
        ["triton", "cpu"], NORMS, AFFINE, LAYOUTS,
        quick=lambda norm, *rest: rest in QUICK,
    ),
)  # fmt: skip
def test_gradcheck(backend, norm, affine, layout):
    every_entry = (affine, layout) == ("full", "contiguous") and norm in EVERY_ENTRY
    shape = EVERY_ENTRY[norm] if every_entry else SHAPE
    x = make_input(shape, layout, requires_grad=True)
    p = make_params(norm, shape, affine=affine, requires_grad=True)
    with running(backend):
        assert checked(norm, x, p, fast_mode=not every_entry)


# A mask of bits, the residual or nothing is kept for the backward: for every norm one of each.
ONE_OF_EACH = ((True, "relu"), (True, "gelu"), (False, "silu"))


@pytest.mark.parametrize(
    ("backend", "norm", "with_residual", "activation"),
    combinations(
        ["triton", "cpu"],
        ["bn_train", "bn_eval", "in", "bin_train", "ln", "rms", "gn"],
        [False, True],
        [None, *ACTIVATIONS],
        quick=lambda norm, *rest: norm in ("bn_train", "ln") or rest in ONE_OF_EACH,
    ),
)
def test_gradcheck_fused(backend, norm, with_residual, activation):
    if activation is None and not with_residual:
        pytest.skip("test_gradcheck")
    x = make_input(SHAPE, requires_grad=True)
    p = make_params(norm, SHAPE, requires_grad=True)
    residual = make_input(SHAPE, seed=7, requires_grad=True) if with_residual else None
    before = call(Torch, norm, x, double(p), residual=residual)
    assert before.abs().min() > KINK, "choose another seed: an input sits at relu's kink"
    with running(backend):
        assert checked(norm, x, p, residual=residual, activation=activation)


@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("layout", ["channels_last", "sliced"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_fused_other_layouts(backend, layout, activation):
    """Residual in another layout than x, against torch's float64 gradients."""
    shape = (2, 4, 3, 2)
    for norm in NORMS:
        x = make_input(shape, layout, requires_grad=True)
        residual = make_input(shape, seed=7, requires_grad=True)
        p = make_params(norm, shape, requires_grad=True)
        dy = make_input(shape, seed=8)
        kwargs = {"residual": residual, "activation": activation}
        truth = forward_backward(Torch, norm, x, double(p, requires_grad=True), dy, **kwargs)
        with running(backend):
            ours = forward_backward(F, norm, x, p, dy, **kwargs)
        for name, exact in truth.items():
            assert_close(ours[name], exact, f"{norm} {name}")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("affine", ["full", "none"])
@pytest.mark.parametrize("norm", NORMS)
def test_gradgradcheck_reference(norm, affine, layout):
    x = make_input(SHAPE, layout, requires_grad=True)
    p = make_params(norm, SHAPE, affine=affine, requires_grad=True)
    with running("reference"):
        assert checked(norm, x, p, check=gradgradcheck)


@pytest.mark.parametrize(
    ("backend", "norm"),
    combinations(
        ["triton", "cpu"], NORMS, quick=lambda norm: norm in ("bn_train", "bin_eval", "ln")
    ),
)
def test_gradgradcheck(backend, norm):
    x = make_input(SHAPE, requires_grad=True)
    p = make_params(norm, SHAPE, requires_grad=True)
    with running(backend):
        assert checked(norm, x, p, check=gradgradcheck)


@pytest.mark.parametrize("norm", ["bn_train", "gn"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradgradcheck_fused(backend, norm):
    x = make_input(SHAPE, requires_grad=True)
    residual = make_input(SHAPE, seed=7, requires_grad=True)
    p = make_params(norm, SHAPE, requires_grad=True)
    with running(backend):
        assert checked(norm, x, p, check=gradgradcheck, residual=residual, activation="silu")


@pytest.mark.parametrize(
    ("backend", "norm", "activation"),
    combinations(BACKENDS, NORMS, (None, *ACTIVATIONS), quick=lambda _, act: act == "relu"),
)
def test_other_ways_to_the_same_gradients(backend, norm, activation):
    """create_graph and is_grads_batched take ways of their own, where no gradient gets lost."""
    shape = (4, 6, 4, 5)
    for layout, residual in itertools.product(LAYOUTS, (False, True)):
        x = make_input(shape, layout, requires_grad=True)
        p = make_params(norm, shape, requires_grad=True)
        targets = grad_targets(x, p)
        if residual:
            targets["residual"] = make_input(shape, layout, seed=7, requires_grad=True)
        dy = make_input(shape, layout, seed=8)

        def gradients(dy, targets=targets, x=x, p=p, **how):
            y = call(F, norm, x, p, activation=activation, residual=targets.get("residual"))
            return torch.autograd.grad(y, list(targets.values()), dy, **how)

        with running(backend):
            plain = gradients(dy)
            with_a_graph = gradients(dy, create_graph=True)
            batched = gradients(torch.stack((-dy, dy)), is_grads_batched=True)
        for name, exact, *found in zip(targets, plain, with_a_graph, batched, strict=True):
            assert_close(found[0], exact, f"{name} with a graph, {layout}")
            assert_close(found[1][1], exact, f"{name} in a batch, {layout}")


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_with_a_graph_through_the_mask_of_rows(backend, norm):
    """ReLU's bits are packed by rows, which may be shorter than channels."""
    x, residual = (make_input((6, 3, 4, 5), seed=s, requires_grad=True) for s in (0, 7))
    dy = make_input(x.shape, seed=8)
    for shape in ((5,), (4, 5), (3, 4, 5)):
        with running(backend):
            y = getattr(F, norm)(x, shape, activation="relu", residual=residual)
            without_one = torch.autograd.grad(y, (x, residual), dy, retain_graph=True)
            with_one = torch.autograd.grad(y, (x, residual), dy, create_graph=True)
        for name, got, exact in zip(("x", "residual"), with_one, without_one, strict=True):
            assert_close(got, exact, f"{name} {shape}")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_penalty_equals_torch(backend, norm):
    """The training use of double backward: the gradient of |dx|^2 for x and the parameters."""

    def penalty_grads(functional, x, p):
        y = call(functional, norm, x, p)
        (dx,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
        return torch.autograd.grad((dx**2).sum(), list(grad_targets(x, p).values()))

    x = make_input(SHAPE, requires_grad=True)
    p = make_params(norm, SHAPE, requires_grad=True)
    truth = penalty_grads(Torch, x, double(p, requires_grad=True))
    with running(backend):
        ours = penalty_grads(F, x, p)
    # Two chained derivatives: an order of magnitude of rounding above one. Of the largest gradient,
    # for that of a bias may be 0 exactly, a sum of terms that cancel.
    slack = 1e-12 * max(exact.abs().max().item() for exact in truth)
    for name, got, exact in zip(grad_targets(x, p), ours, truth, strict=True):
        assert_close(got, exact, name, slack=slack)
