"""Rarely combined options that once gave wrong results, each as small as it can be."""

import contextlib

import pytest
import torch

import fastnorm
import fastnorm.functional as F
from fastnorm.kernels import tiers
from tests.conftest import BACKENDS, DEVICE, assert_close, make_input, running
from tests.norms import NORMS, STATS, Torch, call, double, forward_backward, make_params

SHAPE = (2, 6, 4, 3)


def parameters(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    weight = torch.linspace(0.5, 2.0, shape[0], dtype=torch.float64, device=DEVICE)
    return weight.requires_grad_(), (weight.detach() - 1).requires_grad_()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("trained", ["weight", "bias", "both"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_group_norm_of_a_frozen_input(backend, trained, layout):
    """Each parameter's gradient by itself, in both layouts: torch's contiguous float64."""
    x, dy = make_input(SHAPE, layout), make_input(SHAPE, layout, seed=8)
    weight, bias = parameters(6)
    targets = {"weight": [weight], "bias": [bias], "both": [weight, bias]}[trained]
    for parameter in (weight, bias):
        parameter.requires_grad_(any(parameter is target for target in targets))
    truth_x = x.contiguous().requires_grad_()
    truth = torch.nn.functional.group_norm(truth_x, 3, weight, bias)
    expected = torch.autograd.grad(truth, targets, dy.contiguous())
    with running(backend):
        grads = torch.autograd.grad(F.group_norm(x, 3, weight, bias), targets, dy)
    for ours, exact in zip(grads, expected, strict=True):
        assert_close(ours, exact)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", ["group", "layer"])
def test_bias_without_weight(norm, backend):
    """First and second derivative with a bias alone."""
    x = make_input((2, 4, 3), requires_grad=True)
    _, bias = parameters(4 if norm == "group" else 3)

    def call(x, bias):
        if norm == "group":
            return F.group_norm(x, 2, None, bias, activation="silu")
        return F.layer_norm(x, (3,), None, bias, activation="silu")

    with running(backend):
        assert torch.autograd.gradcheck(call, (x.detach(), bias), fast_mode=True)
        assert torch.autograd.gradgradcheck(call, (x, bias), fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("create_graph", [False, True])
def test_parameters_computed_from_each_other_and_from_x(create_graph, backend):
    """With create_graph=True no path may be counted twice."""
    x, (base, _) = make_input(SHAPE, requires_grad=True), parameters(6)

    def loss(norm):
        y = norm(x, base * x.mean((0, 2, 3)), base * 2)
        return y.square().sum() + y.sum()

    truth = torch.autograd.grad(
        loss(lambda x, w, b: torch.nn.functional.batch_norm(x, None, None, w, b, True)), (x, base)
    )
    with running(backend):
        ours = torch.autograd.grad(
            loss(lambda x, w, b: F.batch_norm(x, None, None, w, b, True)),
            (x, base),
            create_graph=create_graph,
        )
    for grad, exact in zip(ours, truth, strict=True):
        assert_close(grad, exact)


@pytest.mark.parametrize("scale", [1e20, 1e30])
@pytest.mark.parametrize("backend", BACKENDS)
def test_squares_beyond_float32(backend, scale):
    """The variance overflows to Inf, as torch's: y is 0, not NaN, and running_var is Inf."""
    x = make_input((2, 3, 40), dtype=torch.float32) * scale
    mean, var = torch.zeros(3, device=DEVICE), torch.ones(3, device=DEVICE)
    with running(backend):
        y = F.batch_norm(x, mean, var, training=True)
        others = [F.instance_norm(x), F.group_norm(x, 1), F.layer_norm(x, (40,))]
    assert mean.isfinite().all() and not var.isnan().any()
    assert y.isfinite().all()
    assert all(other.isfinite().all() for other in others)  # of group and layer norm torch's is NaN


def every_norm(x):
    """Each norm's output for x (N, C, S), their gradients added up in x."""
    half = torch.full((x.shape[1],), 0.5, device=DEVICE)
    yield F.batch_norm(x, None, None, training=True)
    yield F.batch_instance_norm(x, None, None, half, training=True)
    yield F.mean_only_batch_norm(x, None, training=True)
    yield F.instance_norm(x)
    yield F.group_norm(x, 1)
    yield F.layer_norm(x, x.shape[-1:])
    yield F.rms_norm(x, x.shape[-1:])


@pytest.mark.parametrize(
    ("tier", "dtype", "value", "layout", "position"),
    [
        (None, torch.float32, 3e37, "contiguous", 0),
        (None, torch.bfloat16, -3e38, "channels_last", 0),
        (None, torch.float32, 3e38, "contiguous", 5),
        ("streaming", torch.float32, 3e38, "contiguous", 0),
        ("streaming", torch.float32, -3e38, "channels_last", 0),
    ],
)
def test_a_mean_that_is_finite_where_its_sum_overflows(tier, dtype, value, layout, position):
    """One value near the largest, of which the others' differences are taken where it comes first:
    outputs and gradients are finite, wherever it lies."""
    x = make_input((3, 2, 12), layout, dtype=dtype)
    x[1, 1, position] = value
    x.requires_grad_()
    with running("triton"), tiers.force(tier) if tier else contextlib.nullcontext():
        for y in every_norm(x):
            (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
            assert y.isfinite().all() and dx.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["weight", "running_mean"])
def test_parameters_of_another_kind(name, backend):
    x = make_input(SHAPE, dtype=torch.float32)
    stats = {
        "running_mean": torch.zeros(6, device=DEVICE),
        "running_var": torch.ones(6, device=DEVICE),
    }
    for other in (torch.ones(6, device="meta"), torch.ones(6, device=DEVICE, dtype=torch.int64)):
        with fastnorm.use_backend(backend), pytest.raises(RuntimeError, match=name):
            F.batch_norm(x, **{**stats, name: other}, training=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_running_statistics_count_as_written(backend):
    """Autograd notices that a buffer it saved has changed."""
    module = fastnorm.BatchNorm1d(4, device=DEVICE)
    x = torch.ones(3, 4, device=DEVICE, requires_grad=True)
    z = (x * module.running_var).sum()
    with running(backend):
        module(torch.randn(3, 4, device=DEVICE))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_variance_far_below_eps_is_tracked(backend):
    x = make_input((50, 4), dtype=torch.float32) * 1e-3
    mean, var = torch.zeros(4, device=DEVICE), torch.zeros(4, device=DEVICE)
    with running(backend):
        F.batch_norm(x, mean, var, training=True, momentum=1.0, eps=1.0)
    assert_close(var, x.double().var(0))


def test_a_computed_rho_is_clamped_but_not_written_to():
    module = fastnorm.BatchInstanceNorm2d(6, device=DEVICE)
    x = make_input(SHAPE, dtype=torch.float32)
    rho = torch.full((6,), 0.5, device=DEVICE, requires_grad=True).exp()
    before = rho.detach().clone()
    with fastnorm.use_backend("reference"):
        y = torch.func.functional_call(module, {"rho": rho}, x)
        assert torch.equal(rho, before)
        assert torch.equal(y, module(x))  # whose own rho is 1, the clamped one
    replica = module._replicate_for_data_parallel()  # then replicate() sets plain attributes:
    replica.weight, replica.bias, replica.rho = module.weight * 1, module.bias * 1, rho * 1
    with fastnorm.use_backend("reference"):
        assert torch.equal(replica(x), module(x))


@pytest.mark.parametrize("norm", ["bn_train", "bn_eval", "in_eval", "bin_train", "ln", "rms", "gn"])
def test_bfloat16_parameters_beside_float64(norm):
    """The interpreter stores a float64 in a bfloat16 as an integer, unless it is float32 first."""
    p = make_params(norm, SHAPE, torch.bfloat16, requires_grad=True)
    x, dy = make_input(SHAPE, requires_grad=True), make_input(SHAPE, seed=8)
    theirs = double(p, requires_grad=True)
    with running("triton"):
        ours = forward_backward(F, norm, x, p, dy)
    for name, exact in forward_backward(Torch, norm, x, theirs, dy).items():
        assert_close(ours[name], exact, name)
    for name in STATS:
        if p[name] is not None:
            assert_close(p[name], theirs[name], name)


@pytest.mark.parametrize("ratio", [1e2, 1e4])
@pytest.mark.parametrize("shape", [(2, 6, 5, 3), (2, 6, 15)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_group_norm_of_a_far_mean_channels_last(backend, shape, ratio):
    """torch's kernel for it takes E[x^2] - E[x]^2, which has no digits left at 1e4."""
    x = make_input(shape, "channels_last", torch.float32, mean=ratio, requires_grad=True)
    dy = make_input(shape, "channels_last", torch.float32, seed=8)
    truth_x = x.detach().double().contiguous().requires_grad_()
    truth = torch.nn.functional.group_norm(truth_x, 2)
    (exact,) = torch.autograd.grad(truth, truth_x, dy.double())
    with running(backend):
        y = F.group_norm(x, 2)
        (dx,) = torch.autograd.grad(y, x, dy)
    slack = 4 * ratio * torch.finfo(x.dtype).eps  # torch's own, contiguous, is as large
    assert_close(y, truth, "y", slack)
    assert_close(dx, exact, "dx", slack)


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_are_answered_contiguously(backend, activation):
    x = make_input((2, 8, 5), "channels_last", torch.float32)
    with running(backend):
        assert F.layer_norm(x, (5,), activation=activation).is_contiguous()
        assert F.rms_norm(x, (5,), activation=activation).is_contiguous()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("norm", ["in", "in_eval", "bin_train", "bn_train", "gn"])
@pytest.mark.parametrize("backend", [*BACKENDS, "torch"])
def test_a_gradient_of_one_image_lies_as_it_likes(backend, norm, layout):
    """torch's own instance norm (2.13, 2.15) gives a wrong dx where x has lost dy's layout."""
    shape = (1, *SHAPE[1:])
    x = make_input(shape, layout, requires_grad=True)
    p = make_params(norm, shape, requires_grad=True)
    dy = make_input(shape, seed=8)
    alike = make_input(shape, requires_grad=True)  # and so all that the truth is made of
    truth = forward_backward(Torch, norm, alike, double(p, requires_grad=True), dy)
    dy = dy.contiguous(memory_format=torch.channels_last)
    with running(backend):
        ours = forward_backward(F, norm, x, p, dy)
    for name, exact in truth.items():
        # rho's is 0: of one image the batch's statistics are the instance's
        assert_close(ours[name], exact, name, slack=1e-14 if name == "rho" else 0.0)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_output_may_be_written_to(backend, norm, layout):
    """ReLU(inplace=True) after a norm, as in every ResNet; autograd refuses it for a view."""
    p = make_params(norm, SHAPE)
    x, twin = (make_input(SHAPE, layout, requires_grad=True) for _ in range(2))
    shortcut, dy = make_input(SHAPE, seed=7), make_input(SHAPE, seed=8)
    with running(backend):
        y = call(F, norm, x, p)
        y += shortcut
        y = torch.nn.functional.relu_(y)
        y.backward(dy)
    truth = torch.relu(call(Torch, norm, twin, double(p)) + shortcut)
    truth.backward(dy)
    assert_close(y, truth, "y")
    assert_close(x.grad, twin.grad, "dx")


@pytest.mark.parametrize("norm", ["bn_train", "in", "mean_train", "gn"])
def test_a_traced_call_is_laid_out_as_an_eager_one(norm):
    """x dense in an order that is neither contiguous nor channels last: y is contiguous."""
    x = make_input((4, 5, 6, 3)).permute(3, 2, 0, 1)
    p = make_params(norm, x.shape)
    with running("cpu"):
        eager = call(F, norm, x, p)
        traced = torch.compile(lambda x: call(F, norm, x, p), backend="eager")(x)
    assert eager.is_contiguous() and traced.is_contiguous()
