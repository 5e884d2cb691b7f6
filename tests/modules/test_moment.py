"""MomentNorm: users' merges against their definitions, under every backend and derivative."""

import copy
import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import fastnorm
from fastnorm.functional import moment_norm
from tests.conftest import (
    BACKENDS,
    DEVICE,
    LAYOUTS,
    assert_close,
    combinations,
    make_input,
    metered,
    running,
)
from tests.kernels import traffic
from tests.kernels.tilings import interpreted, tiny_tilings
from tests.modules.own_norms import OWN_NORMS, BatchInstanceNorm, FilterResponseNorm
from tests.norms import Torch

SHAPE = (3, 4, 5, 3)


def make(cls, dtype=torch.float64, **kwargs):
    module = cls(SHAPE[1], **kwargs).to(DEVICE, dtype)
    for i, parameter in enumerate(module.parameters()):
        parameter.data += 0.2 * make_input(parameter.shape, dtype=dtype, seed=50 + i)
    return module


def results(function, module, x, residual, dy):
    y = function()
    targets = [x, *([] if residual is None else [residual]), *module.parameters()]
    return y, *torch.autograd.grad(y, targets, dy)


def check_against_definition(cls, backend, layout, activation, with_residual, dtype=torch.float64):
    module = make(cls, dtype, activation=activation)
    exact = copy.deepcopy(module).double()
    x = make_input(SHAPE, layout, dtype=dtype, mean=0.5, requires_grad=True)
    dy = make_input(SHAPE, dtype=dtype, seed=8)
    residual = make_input(SHAPE, dtype=dtype, seed=7, requires_grad=True) if with_residual else None
    also_x = x.detach().double().requires_grad_()
    also_residual = None if residual is None else residual.detach().double().requires_grad_()
    truth = results(
        lambda: Torch.finish(exact.definition(also_x), activation, also_residual),
        exact, also_x, also_residual, dy.double(),
    )  # fmt: skip
    with running(backend) as launched:
        found = results(lambda: module(x, residual), module, x, residual, dy)
    for i, (mine, right) in enumerate(zip(found, truth, strict=True)):
        assert_close(mine, right, f"{cls.__name__} result {i}")
    if layout == "channels_last":
        assert found[0].stride() == x.stride()
        assert found[1].stride() == x.stride() or backend == "reference"
    return launched


# With tiny tiles, below, the kernels meet contiguous tensors as well.
@pytest.mark.parametrize(
    ("backend", "cls", "layout"),
    combinations(BACKENDS, OWN_NORMS, LAYOUTS, quick=lambda _, layout: layout == "channels_last"),
)
def test_equals_its_definition(backend, cls, layout):
    for activation, with_residual in ((None, False), ("relu", True), ("silu", True)):
        launched = check_against_definition(cls, backend, layout, activation, with_residual)
    kernels = ["moments_kernel", "apply_kernel", "gradient_sums_kernel", "apply_backward_kernel"]
    assert launched == (kernels if backend == "triton" else [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cls", OWN_NORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_other_dtypes(backend, cls, dtype):
    """The rounding of a gradient of 15 values: some units in the last place of the largest."""
    module, x = make(cls, dtype), make_input(SHAPE, dtype=dtype, requires_grad=True)
    exact, also_x = copy.deepcopy(module).double(), x.detach().double().requires_grad_()
    dy = make_input(SHAPE, dtype=dtype, seed=8)
    truth = results(lambda: exact.definition(also_x), exact, also_x, None, dy.double())
    with running(backend):
        found = results(lambda: module(x), module, x, None, dy)
    for i, (mine, right) in enumerate(zip(found, truth, strict=True)):
        assert mine.dtype == dtype
        slack = 8 * torch.finfo(dtype).eps * right.abs().max().item()
        assert_close(mine, right, f"result {i}", slack=slack)


@interpreted
@pytest.mark.parametrize("cls", OWN_NORMS)
def test_tiny_tiles(cls):
    """Many tiles, pieces and programs: what a GPU's tilings make of larger tensors."""
    with tiny_tilings():
        for layout in ("contiguous", "channels_last"):
            check_against_definition(cls, "triton", layout, "relu", True)


@pytest.mark.parametrize(
    ("activation", "with_residual"),
    [(None, False), ("relu", True), ("silu", True)],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_derivatives_by_finite_differences(backend, with_residual, activation):
    """First and second; of the residual and of every parameter."""
    module = make(BatchInstanceNorm, activation=activation)
    x = make_input((2, 4, 3), mean=0.5, requires_grad=True)
    tensors = [x, *([make_input(x.shape, seed=7, requires_grad=True)] if with_residual else [])]
    names = [name for name, _ in module.named_parameters()]

    def function(*given):
        inputs, parameters = given[: len(tensors)], given[len(tensors) :]
        named = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(module, named, inputs)

    given = (*tensors, *module.parameters())
    with running(backend):
        assert gradcheck(function, given, fast_mode=True)
        if activation != "relu":
            assert gradgradcheck(function, given, fast_mode=True)


@pytest.mark.parametrize("backend", ["triton", "cpu"])
def test_only_what_is_asked_for(backend):
    """Frozen input, frozen parameters, no gradients at all, statistics that are constants."""
    module, x, dy = make(FilterResponseNorm), make_input(SHAPE), make_input(SHAPE, seed=8)
    exact = torch.autograd.grad(module.definition(x), [module.weight, module.bias], dy)
    with running(backend) as launched:
        found = torch.autograd.grad(module(x), [module.weight, module.bias], dy)
    for mine, right in zip(found, exact, strict=True):
        assert_close(mine, right)
    assert "apply_backward_kernel" not in launched
    module.requires_grad_(False)
    x.requires_grad_()
    (right,) = torch.autograd.grad(module.definition(x), x, dy)
    with running(backend):
        assert_close(torch.autograd.grad(module(x), x, dy)[0], right)
    with running(backend) as launched, torch.no_grad():
        assert not module(x).requires_grad
    assert len(launched) in (0, 2)

    def by_constants(mean, var, count):
        return 2.0, 1.0, torch.tensor(3.0)

    with running(backend):
        y = moment_norm(x, by_constants)
        assert_close(y, (x - 1.0) * 2.0 + 3.0)
        assert_close(torch.autograd.grad(y, x, dy)[0], 2.0 * dy)


@pytest.mark.parametrize("backend", BACKENDS)
def test_moments_used_elsewhere(backend):
    """A penalty on the statistics, with and without the output beside it."""
    kept = {}

    class Penalised(FilterResponseNorm):
        def merge(self, mean, var, count):
            kept["penalty"] = (var - 1).square().sum() + mean.sum()
            return super().merge(mean, var, count)

    module, x, dy = (
        make(Penalised),
        make_input(SHAPE, requires_grad=True),
        make_input(SHAPE, seed=8),
    )
    var, mean = torch.var_mean(x, (2, 3), correction=0)
    penalty = (var - 1).square().sum() + mean.sum()
    for loss in (penalty, penalty + (module.definition(x) * dy).sum()):
        (right,) = torch.autograd.grad(loss, x, retain_graph=True)
        with running(backend):
            y = module(x)
            also = kept["penalty"] if loss is penalty else kept["penalty"] + (y * dy).sum()
            assert_close(torch.autograd.grad(also, x)[0], right)


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_other_ways_to_the_same_gradients(backend, activation):
    """create_graph and is_grads_batched do without the shared pass over x."""
    module = make(BatchInstanceNorm, activation=activation)
    x, residual = (make_input(SHAPE, seed=s, requires_grad=True) for s in (0, 7))
    targets = [x, residual, *module.parameters()]
    dy = make_input(SHAPE, seed=8)
    with running(backend):
        plain = torch.autograd.grad(module(x, residual), targets, dy)
        with_a_graph = torch.autograd.grad(module(x, residual), targets, dy, create_graph=True)
        batched = torch.autograd.grad(
            module(x, residual), targets, torch.stack((-dy, dy)), is_grads_batched=True
        )
    for exact, *found in zip(plain, with_a_graph, batched, strict=True):
        assert_close(found[0], exact, "with a graph")
        assert_close(found[1][1], exact, "in a batch")


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_backwards(backend):
    """retain_graph: nothing of the first is left over for the second."""
    module, x = make(BatchInstanceNorm, activation="relu"), make_input(SHAPE, requires_grad=True)
    with running(backend):
        y = module(x)
        for seed in (8, 9):
            dy = make_input(SHAPE, seed=seed)
            found = torch.autograd.grad(y, x, dy, retain_graph=True)[0]
            right = torch.autograd.grad(module.definition(x).relu(), x, dy)[0]
            assert_close(found, right)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_output_may_be_written_to(backend):
    """As models do with ReLU(inplace=True) and y += shortcut."""
    module, x = make(BatchInstanceNorm), make_input(SHAPE, requires_grad=True)
    dy = make_input(SHAPE, seed=8)
    with running(backend):
        y = module(x)
        y += 0.5
        found = torch.autograd.grad(torch.relu_(y), x, dy)[0]
    exact = torch.autograd.grad((module.definition(x) + 0.5).relu(), x, dy)[0]
    assert_close(found, exact)


@pytest.mark.parametrize("backend", BACKENDS)
def test_far_means(backend):
    """A mean of 10^4 std: float64 merges cancel nothing that float32 moments had."""
    x = make_input(SHAPE, dtype=torch.float32, mean=1e4)
    module = make(BatchInstanceNorm, torch.float32)
    exact = copy.deepcopy(module).double().definition(x.double())
    theirs = (module.definition(x).double() - exact).abs().max().item()
    with running(backend):
        assert_close(module(x), exact, slack=2 * theirs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(6, 4), (3, 4, 5), (2, 4, 3, 2, 3), (0, 4, 3), (3, 4, 0)])
def test_ranks_and_empty_tensors(backend, shape):
    weight = make_input(shape[1:2], seed=1, requires_grad=True)
    x = make_input(shape, requires_grad=True)

    def merge(mean, var, count):
        assert mean.shape == var.shape == shape[:2] and count == math.prod(shape[2:])
        return weight, 0.5 * mean, 1.0

    with running(backend, launches=x.numel() > 0):
        y = moment_norm(x, merge)
    column = (slice(None), *[None] * (x.dim() - 2))
    dims = tuple(range(2, x.dim()))
    mean = x.mean(dims, keepdim=True) if dims else x
    exact = (x - 0.5 * mean) * weight[column] + 1.0
    assert_close(y, exact)
    for mine, right in zip(
        torch.autograd.grad(y.sum(), [x, weight]), torch.autograd.grad(exact.sum(), [x, weight]),
        strict=True,
    ):  # fmt: skip
        assert_close(mine, right)


@pytest.mark.parametrize("compiler", ["aot_eager", "vmap", "jvp"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_traced_and_transformed(backend, compiler):
    module, x = make(FilterResponseNorm), make_input((2, *SHAPE))
    with fastnorm.use_backend(backend):
        if compiler == "vmap":
            found = torch.vmap(module)(x)
        elif compiler == "jvp":
            found = torch.func.jvp(module, (x[0],), (x[1],))[1][None]
        else:
            run = torch.compile(module, backend="aot_eager", fullgraph=True)
            found = torch.stack([run(each) for each in x])
    if compiler == "jvp":
        exact = torch.func.jvp(module.definition, (x[0],), (x[1],))[1][None]
    else:
        exact = torch.stack([module.definition(each) for each in x])
    assert_close(found, exact)


@metered
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("activation", "with_residual", "forward", "backward"),
    [(None, False, 3, 5), ("relu", False, 3, 5), ("relu", True, 4, 6)],
)
def test_traffic(activation, with_residual, forward, backward, layout):
    """3 S and 5 S, with a residual and an activation 4 S and 6 S and ReLU's bits."""
    shape = (4, 8, 32, 32)
    x = make_input(shape, layout, torch.float32, requires_grad=True)
    dy = make_input(shape, layout, torch.float32, seed=8)
    residuals = []
    if with_residual:
        residuals = [make_input(shape, layout, torch.float32, seed=7, requires_grad=True)]
    module = FilterResponseNorm(8, activation=activation).to(DEVICE)
    with running("triton"):
        with traffic.meter() as there:
            y = module(x, *residuals)
        with traffic.meter() as back:
            torch.autograd.grad(y, [x, *module.parameters(), *residuals], dy)
    for measured, least in ((there, forward), (back, backward)):
        assert least <= measured.total / x.nbytes <= 1.03 * least + 0.0625 * with_residual
        assert not measured.moved_by_torch(x.numel() // 8)
        assert len(measured.launches) == 2


def test_errors():
    module = FilterResponseNorm(4).to(DEVICE)
    x = make_input(SHAPE, dtype=torch.float32)
    with pytest.raises(RuntimeError, match="at least 2 dimensions"):
        module(x[0, 0, 0])
    with pytest.raises(RuntimeError, match="residual of shape"):
        module(x, x[:1])
    with pytest.raises(NotImplementedError, match="int64"):
        module(x.long())
    with pytest.raises(ValueError, match="tanh"):
        moment_norm(x, module.merge, activation="tanh")
    with pytest.raises(ValueError, match="tanh"):
        fastnorm.MomentNorm(activation="tanh")
    with pytest.raises(NotImplementedError, match="merge"):
        fastnorm.MomentNorm()(x)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("error", "words", "answer"),
    [
        (TypeError, r"float .*\(scale, center, shift\)", 1.0),
        (TypeError, r"NoneType .*\(scale, center, shift\)", None),
        (TypeError, "tuple of length 2", (1.0, 0.0)),
        (TypeError, "Tensor", torch.ones(3)),
        (TypeError, "NoneType as shift", (1.0, 0.0, None)),
        (TypeError, "str as scale", ("one", 0.0, 0.0)),
        (RuntimeError, r"center of shape \(5,\).*\(3, 4\)", (1.0, torch.ones(5), 0.0)),
    ],
    ids=str,
)
def test_what_a_merge_must_return(backend, error, words, answer):
    x = make_input(SHAPE)
    with running(backend, launches=False) as launched, pytest.raises(error, match=words):
        moment_norm(x, lambda mean, var, count: answer)
    assert len(launched) <= 1  # that of the moments
