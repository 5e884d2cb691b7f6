"""add_layer_norm and add_rms_norm: a sum and its norm, against torch's two separate steps."""

import copy

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

import fastnorm
import fastnorm.functional as F
from fastnorm.kernels import launch, tiers
from tests.conftest import (
    DEVICE,
    LAYOUTS,
    OLD_TORCH,
    assert_close,
    assert_no_worse,
    autocast_of_cuda,
    make_input,
    running,
    with_layout,
)
from tests.functional.sums import (
    NAMES,
    SHAPE,
    Steps,
    call,
    cotangents,
    doubled,
    each_backend,
    each_norm,
    make,
    results,
)
from tests.kernels.tilings import interpreted, tiny_tilings


@pytest.mark.parametrize("use", [(True, True), (True, False), (False, True)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@each_norm
@each_backend
def test_equals_the_two_steps(backend, norm, layout, use):
    """Gradients of both outputs, of y alone, and of the sum alone."""
    leaves = make(norm, layout=layout)
    exact = results(Steps, norm, doubled(leaves), use)
    with running(backend):
        ours = results(F, norm, leaves, use)
    for name, value in exact.items():
        assert_close(ours[name], value, name)
    assert ours["y"].is_contiguous() and ours["sum"].is_contiguous()


@pytest.mark.parametrize("shape", [(7,), (2, 3, 7), (4, 1), (2, 3, 2, 5)], ids=str)
@each_norm
@each_backend
def test_shapes(backend, norm, shape):
    """The whole tensor and all but the first dimension normalised, too."""
    for normalized in {shape, shape[1:] or shape}:
        leaves = make(norm, shape, normalized=normalized)
        exact = results(Steps, norm, doubled(leaves))
        with running(backend):
            ours = results(F, norm, leaves)
        for name, value in exact.items():
            assert_close(ours[name], value, name, slack=1e-12)  # see test_layer_norm_shapes


TINY = {"one_program": (33, 10), "streaming": (5, 100)}
KERNELS = {
    "one_program": ["row_norm_kernel", "row_norm_backward_kernel", "add_shares_kernel"],
    "streaming": ["row_moments_kernel", "row_apply_kernel", "row_sums_kernel", "row_dx_kernel"],
}


@interpreted
@pytest.mark.parametrize("tier", TINY)
@each_norm
def test_every_tier(norm, tier):
    """With a GPU's tilings, tiny: as many launches as the norm alone has."""
    leaves = make(norm, TINY[tier])
    exact = results(Steps, norm, doubled(leaves))
    with tiny_tilings() as chosen, running("triton") as launched, tiers.force(tier):
        ours = results(F, norm, leaves)
    for name, value in exact.items():
        assert_close(ours[name], value, name)
    assert launched == KERNELS[tier]
    assert all(shape.units > 1 for _, shape in chosen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(6, 40), (2, 20011)], ids=str)
@each_norm
@each_backend
def test_precision(backend, norm, shape, dtype):
    """The rule of test_precision.py; the sum is rounded as torch's, and y is its norm."""
    leaves = make(norm, shape, dtype)
    exact, theirs = results(Steps, norm, doubled(leaves)), results(Steps, norm, leaves)
    with running(backend):
        ours = results(F, norm, leaves)
        again = getattr(F, norm)(ours["sum"], shape[-1:], *leaves[2:], 1e-5)
    if backend == "triton" and dtype == torch.bfloat16 and DEVICE == "cpu":
        # Triton's interpreter truncates to bfloat16, where compiled code rounds.
        assert_close(ours["sum"], theirs["sum"].double())
    else:
        assert torch.equal(ours["sum"], theirs["sum"])
    assert torch.equal(ours["y"], again)
    for name, value in exact.items():
        assert_no_worse(ours[name], theirs[name], value, name)


@each_norm
@pytest.mark.parametrize("backend", ["triton", "cpu"])
def test_compiled(backend, norm):
    """The engines' are operators of the traced program, forward and backward."""
    cls = {"layer_norm": fastnorm.AddLayerNorm, "rms_norm": fastnorm.AddRMSNorm}[norm]
    module = cls(5, device=DEVICE)
    targets = []

    def backend_of_program(graph, inputs):
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    x, residual = (make_input(SHAPE, dtype=torch.float32, seed=s) for s in (0, 7))
    wanted = [x.requires_grad_(), residual.requires_grad_(), *module.parameters()]
    with running(backend):
        expected = module(x, residual)
        grads = torch.autograd.grad(expected, wanted, cotangents(x))
        run = torch.compile(copy.deepcopy(module), backend="aot_eager", fullgraph=True)
        found = run(x, residual)
        again = torch.autograd.grad(found, [x, residual], cotangents(x))
        torch.compile(module, backend=backend_of_program, fullgraph=True)(x, residual)
    for mine, value in zip((*found, *again), (*expected, *grads[:2]), strict=True):
        assert_close(mine, value.double())
    assert any("fastnorm.add_norm" in target for target in targets) == (
        backend in ("triton", "cpu")
    )


@each_norm
@each_backend
def test_empty(backend, norm):
    for shape in ((0, 5), (3, 0)):
        leaves = make(norm, shape)
        with running(backend, launches=False):
            ours = results(F, norm, leaves)
        assert ours["y"].shape == ours["sum"].shape == ours["x"].shape == shape
        assert all((ours[name] == 0).all() for name in NAMES[2:] if name in ours)


@each_norm
@each_backend
def test_errors(backend, norm):
    x, residual, *parameters = make(norm)
    function = getattr(F, f"add_{norm}")
    with fastnorm.use_backend(backend):
        for other in (residual[:1], residual.float(), torch.empty(SHAPE, device="meta")):
            with pytest.raises(RuntimeError, match="residual"):
                function(x, other, (5,))
        with pytest.raises(RuntimeError, match="normalized_shape"):
            function(x, residual, (4,))
        with pytest.raises(RuntimeError, match="weight"):
            function(x, residual, (5,), parameters[0][:4])
        with pytest.raises(NotImplementedError, match="int64"):
            function(x.long(), residual.long(), (5,))


@each_norm
def test_autocast(norm):
    """CUDA's lists on any machine: the sum as the addition makes it, its norm in float32."""
    half, single = torch.bfloat16, torch.float32
    for dtypes, of_sum in (((half, half), half), ((half, single), single)):
        with FakeTensorMode():
            x, residual = (torch.empty(SHAPE, dtype=dtype, device="cuda") for dtype in dtypes)
            with autocast_of_cuda(), fastnorm.use_backend("auto"):
                y, total = call(F, norm, (x, residual))
                theirs = call(Steps, norm, (x, residual))
        assert (y.dtype, total.dtype) == (single, of_sum)
        if not (OLD_TORCH and norm == "rms_norm"):  # autocast of torch 2.11 does not know it
            assert tuple(t.dtype for t in theirs) == (single, of_sum)


@each_norm
def test_a_mode_sees_the_call(norm):
    seen = []

    class Recording(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    leaves = make(norm)
    with running("triton"), Recording():
        found = call(F, norm, leaves)
    assert getattr(F, f"add_{norm}") in seen
    assert_close(found[0], call(Steps, norm, leaves)[0])


def test_memory_of_its_own():
    """Neither output is a view of an input, nor is what the kernels return kept by them."""
    leaves = make("layer_norm")
    with running("triton"), launch.record():
        y, total = call(F, "layer_norm", leaves)
        (dx,) = torch.autograd.grad((y, total), leaves[0], cotangents(leaves[0]))
    tensors = (*leaves, y, total, dx)
    assert len({t.untyped_storage().data_ptr() for t in tensors}) == len(tensors)
    assert with_layout(total, "contiguous") is total
