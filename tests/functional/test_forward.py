"""Values against the definition in float64 numpy, or torch: shapes, layouts, dtypes, arguments."""

import math

import pytest
import torch
import torch.nn.functional as TF

import fastnorm.functional as F
from fastnorm import reference
from tests.conftest import BACKENDS, DEVICE, LAYOUTS, OLD_TORCH, assert_close, make_input, running
from tests.norms import (
    GRADS,
    NORMS,
    OF_ROWS,
    STATS,
    Torch,
    call,
    double,
    forward_backward,
    make_params,
    numpy_norm,
)

# Rank 2 to 5, odd sizes, C = 1, batch 1, S = 1, C off the powers of 2 on either side of a warp.
SHAPES = [
    (5, 3),
    (3, 1, 7),
    (1, 5, 9),
    (2, 33, 5),
    (4, 7, 1),
    (2, 3, 5, 7),
    (1, 1, 3, 3),
    (2, 129, 1, 3),
    (2, 5, 3, 2, 3),
    (3, 6, 17, 2, 1),
]
OWN_INSTANCE_STATS = ("in", "bin_train", "bin_eval")


def has_one_value(norm, shape):
    return norm in OWN_INSTANCE_STATS and math.prod(shape[2:]) == 1


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_equals_definition(backend, norm, shape):
    if has_one_value(norm, shape):
        pytest.skip("an error: test_errors.py")
    p = make_params(norm, shape)
    for layout in LAYOUTS:
        x = make_input(shape, layout)
        with running(backend):
            y = call(F, norm, x, p)
        assert_close(y, numpy_norm(norm, x, p), layout)
        if layout != "sliced" and len(shape) > 2 and norm not in OF_ROWS:  # contiguous
            assert y.is_contiguous() == x.is_contiguous() and y.movedim(1, -1).is_contiguous() == (
                x.movedim(1, -1).is_contiguous()
            ), f"{layout} was not kept"


@pytest.mark.parametrize("missing", [("weight",), ("bias",), ("weight", "bias")], ids=str)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_parameters_left_out(backend, norm, missing):
    x = make_input((3, 6, 5))
    p = make_params(norm, (3, 6, 5)) | dict.fromkeys(missing)
    with running(backend):
        assert_close(call(F, norm, x, p), numpy_norm(norm, x, p))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_parameters_in_any_layout(backend, norm):
    """Strided and expanded weights are read as they are."""
    shape = (3, 6, 5)
    x, dy = make_input(shape, requires_grad=True), make_input(shape, seed=8)
    dense = make_params(norm, shape)
    strided = {
        k: None if v is None else torch.stack([v, v + 7], -1)[..., 0] for k, v in dense.items()
    }
    name = "weight" if norm == "rms" else "bias"
    one_for_all = dense[name].flatten()[0]
    dense[name] = torch.full_like(dense[name], one_for_all.item())
    strided[name] = one_for_all.expand(dense[name].shape)
    for p in (dense, strided):
        p.update({k: p[k].requires_grad_() for k in GRADS if p[k] is not None})
    truth = forward_backward(Torch, norm, x, dense, dy)
    with running(backend):
        ours = forward_backward(F, norm, x, strided, dy)
    for name, exact in truth.items():
        assert_close(ours[name], exact, name)


@pytest.mark.parametrize("norm", NORMS)
def test_reference_equals_torch(norm):
    """The reference called directly, values and gradients, against torch.nn in float64."""
    shape = (3, 6, 4, 3)
    x, dy = make_input(shape, requires_grad=True), make_input(shape, seed=8)
    p = make_params(norm, shape, requires_grad=True)
    theirs = double(p, requires_grad=True)
    ours = forward_backward(reference, norm, x, p, dy)
    for name, exact in forward_backward(Torch, norm, x, theirs, dy).items():
        assert_close(ours[name], exact, name)
    for name in STATS:
        if p[name] is not None:
            assert_close(p[name], theirs[name], name)


@pytest.mark.parametrize("norm", NORMS)
def test_truths_agree(norm):
    """The two truths of this suite, numpy's definition and torch in float64, say the same."""
    x, p = make_input((3, 6, 4, 3)), make_params(norm, (3, 6, 4, 3))
    assert_close(call(Torch, norm, x, double(p)), numpy_norm(norm, x, p))


@pytest.mark.parametrize("shape", [(0, 6, 4), (0, 6, 3, 2), (2, 6, 0)], ids=str)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_input_as_torch(backend, norm, shape):
    """No values: an empty y and dx, parameter gradients of zero, running statistics left alone."""
    x, dy = make_input(shape, requires_grad=True), make_input(shape)
    p = make_params(norm, shape, affine="none" if norm in OF_ROWS else "full", requires_grad=True)
    before = {name: p[name].clone() for name in STATS if p[name] is not None}
    with running(backend, launches=False):
        ours = forward_backward(F, norm, x, p, dy)
    assert ours["y"].shape == ours["x"].shape == shape
    for name in GRADS:
        if name in ours:
            assert torch.equal(ours[name], torch.zeros_like(p[name])), name
    if math.prod(shape[2:]):  # torch counts an empty batch as no batch
        for name, value in before.items():
            assert torch.equal(p[name], value), name


@pytest.mark.parametrize("param_dtype", [torch.float32, None], ids=["fp32 params", "same dtype"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_mixed_dtype(backend, norm, dtype, param_dtype):
    """Half input with float32 or half parameters: y and dx in x's dtype, gradients in their own."""
    shape = (3, 6, 5)
    x, dy = (
        make_input(shape, dtype=dtype, requires_grad=True),
        make_input(shape, dtype=dtype, seed=8),
    )
    p = make_params(norm, shape, param_dtype or dtype, requires_grad=True)
    with running(backend):
        ours = forward_backward(F, norm, x, p, dy)
    wide = x.detach().double().requires_grad_()
    exact = forward_backward(Torch, norm, wide, double(p, requires_grad=True), dy.double())
    for name, value in ours.items():
        assert value.dtype == (dtype if name in ("y", "x") else param_dtype or dtype), name
        assert_close(value, exact[name], name, slack=1e-5 * exact[name].abs().max().item())


@pytest.mark.parametrize(
    ("shape", "normalized"),
    [((5,), (5,)), ((3, 7), (7,)), ((2, 3, 7), (7,)), ((2, 3, 7), (3, 7)), ((4, 1), (1,)),
     ((2, 3, 4, 5), (4, 5)), ((2, 3, 2, 2, 3), (3, 2, 2, 3)), ((2, 3, 7), (2, 3, 7))],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("backend", BACKENDS)
def test_layer_norm_shapes(backend, shape, normalized):
    """Any number of trailing dims, rank 1 and the whole tensor included."""
    x = make_input(shape, requires_grad=True)
    weight, bias = (make_input(normalized, seed=s, requires_grad=True) for s in (1, 2))
    dy = make_input(shape, seed=8)
    exact = torch.autograd.grad(TF.layer_norm(x, normalized, weight, bias), (x, weight, bias), dy)
    with running(backend):
        y = F.layer_norm(x, normalized, weight, bias)
        grads = torch.autograd.grad(y, (x, weight, bias), dy)
    assert_close(y, TF.layer_norm(x, normalized, weight, bias))
    for name, ours, theirs in zip(("x", "weight", "bias"), grads, exact, strict=True):
        # rows of one value: dx and dweight are exactly 0, and what is left of 316 * eps is no error
        assert_close(ours, theirs, name, slack=1e-12 if normalized == (1,) else 0.0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("groups", [1, 2, 3, 12])
@pytest.mark.parametrize("shape", [(2, 12), (2, 12, 5), (1, 12, 3, 3)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_group_norm_groups(backend, shape, groups, layout):
    """One group (layer norm of a CNN) to one channel a group (instance norm)."""
    x = make_input(shape, layout, requires_grad=True)
    weight, bias = (make_input((12,), seed=s, requires_grad=True) for s in (1, 2))
    dy = make_input(shape, seed=8)
    leaves = (x, weight, bias)
    exact_y = TF.group_norm(x, groups, weight, bias)
    with running(backend):
        y = F.group_norm(x, groups, weight, bias)
        grads = torch.autograd.grad(y, leaves, dy)
    assert_close(y, exact_y)
    one_value = shape == (2, 12) and groups == 12  # dx is exactly 0: see test_layer_norm_shapes
    for ours, theirs in zip(grads, torch.autograd.grad(exact_y, leaves, dy), strict=True):
        assert_close(ours, theirs, slack=1e-12 if one_value else 0.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_worked_example(backend):
    """Three images of four channels and two positions; statistics by hand, to three decimals."""
    x = torch.tensor(
        [
            [[2.0, 3.0], [5.0, 7.0], [11.0, 13.0], [17.0, 19.0]],
            [[0.0, 1.0], [1.0, 2.0], [3.0, 5.0], [8.0, 13.0]],
            [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]],
        ],
        device=DEVICE,
    )

    def expected(means, stds, shape):
        mean, std = (torch.tensor(v, device=DEVICE).view(shape) for v in (means, stds))
        return ((x.reshape(3, -1, 2) if len(shape) == 3 else x) - mean) / std

    bn = ([1.5, 3.667, 7.167, 12.0], [0.957, 1.972, 3.579, 4.690], (1, 4, 1))
    ln = ([9.625, 4.125, 4.5], [5.978, 4.136, 2.291], (3, 1, 1))
    gn = (
        [4.25, 15.0, 1.0, 7.25, 2.5, 6.5],
        [1.920, 3.162, 0.707, 3.767, 1.118, 1.118],
    )
    gn = tuple([v for v in values for _ in range(2)] for values in gn)
    with running(backend):
        ours = {
            "bn": F.batch_norm(x, None, None, training=True, eps=1e-12),
            "ln": F.layer_norm(x, (4, 2), eps=1e-12),
            "gn": F.group_norm(x, 2, eps=1e-12),
        }
    assert torch.allclose(ours["bn"], expected(*bn), atol=2e-3)
    assert torch.allclose(ours["ln"], expected(*ln), atol=2e-3)
    assert torch.allclose(ours["gn"], expected(*gn, (3, 4, 1)), atol=2e-3)


@pytest.mark.parametrize("rho", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_instance_norm_ends_are_its_parts(backend, training, rho):
    """rho = 1 is batch norm, rho = 0 instance norm, in between a mix; without statistics too."""
    shape = (3, 5, 4, 2)
    x, p = make_input(shape), make_params("bin_eval", shape)
    stats, theirs = ([p[name].clone() for name in STATS] for _ in range(2))
    mix = torch.full((5,), rho, dtype=torch.float64, device=DEVICE)
    parts = TF.batch_norm(x, *theirs, training=training), TF.instance_norm(x)
    with running(backend):
        y = F.batch_instance_norm(x, *stats, mix, training=training)
        stateless = F.batch_instance_norm(x, None, None, mix, training=True)
    assert_close(y, rho * parts[0] + (1 - rho) * parts[1])
    over_batch = TF.batch_norm(x, None, None, training=True)
    assert_close(stateless, rho * over_batch + (1 - rho) * parts[1])


@pytest.mark.parametrize("eps", [*([] if OLD_TORCH else [0.0]), 1e-3, 1.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_eps(backend, eps):
    """eps is added to the variance, under the root; 0 is allowed wherever torch allows it."""
    x, p = make_input((3, 5, 4, 2)), make_params("bn_eval", (3, 5, 4, 2))
    stats = [p[name] for name in STATS]
    with running(backend):
        pairs = [
            (F.batch_norm(x, *stats, eps=eps), TF.batch_norm(x, *stats, eps=eps)),
            (F.instance_norm(x, eps=eps), TF.instance_norm(x, eps=eps)),
            (F.layer_norm(x, (4, 2), eps=eps), TF.layer_norm(x, (4, 2), eps=eps)),
            (F.group_norm(x, 5, eps=eps), TF.group_norm(x, 5, eps=eps)),
        ]
        if eps > 0:
            ours = F.batch_norm(x, None, None, training=True, eps=eps)
            pairs.append((ours, TF.batch_norm(x, None, None, training=True, eps=eps)))
    for ours, theirs in pairs:
        assert_close(ours, theirs)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_each_pass_launches_kernels(backend, norm):
    """Forward and backward each run on the backend asked for; `running` asserts it."""
    x = make_input((2, 4, 5), requires_grad=True)
    p = make_params(norm, (2, 4, 5), requires_grad=True)
    with running(backend):
        y = call(F, norm, x, p, activation="relu")
    with running(backend):
        y.backward(torch.ones_like(y))
