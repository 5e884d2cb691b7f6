"""add_layer_norm and add_rms_norm: a sum and its norm, against torch's two steps one by one."""

import copy

import pytest
import torch
import torch.nn.functional as TF
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jvp, vmap
from torch.overrides import TorchFunctionMode

import fastnorm
import fastnorm.functional as F
from fastnorm.kernels import launch, tiers
from tests.conftest import (
    BACKENDS,
    DEVICE,
    LAYOUTS,
    assert_close,
    epsilon_term,
    make_input,
    running,
    with_layout,
)
from tests.kernels.tilings import tiny_tilings

NORMS = ("layer_norm", "rms_norm")
SHAPE = (3, 4, 5)
NAMES = ("x", "residual", "weight", "bias")
each_norm = pytest.mark.parametrize("norm", NORMS)
each_backend = pytest.mark.parametrize("backend", BACKENDS)


class Steps:
    """The two steps, by torch's own operators."""

    @staticmethod
    def add_layer_norm(x, residual, *args):
        return TF.layer_norm(x + residual, *args), x + residual

    @staticmethod
    def add_rms_norm(x, residual, *args):
        return TF.rms_norm(x + residual, *args), x + residual


def make(norm, shape=SHAPE, dtype=torch.float64, layout="contiguous", normalized=None):
    """x, residual, weight and, for layer norm, bias: leaves."""
    x, residual = (make_input(shape, layout, dtype, seed=s, mean=0.5) for s in (0, 7))
    per_element = normalized or shape[-1:]
    count = 2 if norm == "layer_norm" else 1
    parameters = [make_input(per_element, dtype=dtype, seed=s) * 0.3 + 1.1 for s in range(count)]
    return [t.detach().requires_grad_() for t in (x, residual, *parameters)]


def call(functional, norm, leaves, eps=1e-5):
    x, residual, *parameters = leaves
    shape = parameters[0].shape if parameters else x.shape[-1:]
    weight, bias = (*parameters, None, None)[:2]
    affine = (weight, bias) if norm == "layer_norm" else (weight,)
    return getattr(functional, f"add_{norm}")(x, residual, shape, *affine, eps)


def cotangents(x):
    return tuple(make_input(x.shape, dtype=x.dtype, seed=s) for s in (8, 9))


def results(functional, norm, leaves, use=(True, True)):
    """y, the sum, and all gradients of the outputs in `use`, by name."""
    y, total = call(functional, norm, leaves)
    chosen = [out for out, used in zip((y, total), use, strict=True) if used]
    given = [d for d, used in zip(cotangents(leaves[0]), use, strict=True) if used]
    wanted = leaves if use[0] else leaves[:2]
    grads = torch.autograd.grad(chosen, wanted, given)
    named = zip(NAMES, grads, strict=False)
    return {"y": y.detach(), "sum": total.detach(), **dict(named)}


def doubled(leaves):
    return [t.detach().double().requires_grad_() for t in leaves]


@pytest.mark.parametrize("use", [(True, True), (True, False), (False, True)], ids=str)
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "expanded"])
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


TINY = {"one_program": (33, 10), "cluster": (5, 100), "streaming": (5, 100)}
KERNELS = {
    "one_program": ["row_norm_kernel", "row_norm_backward_kernel", "sum_partials_kernel"],
    "cluster": ["row_norm_kernel"] * 2 + ["row_norm_backward_kernel"] * 2 + ["sum_partials_kernel"],
    "streaming": ["row_moments_kernel", "row_apply_kernel", "row_sums_kernel", "row_dx_kernel"],
}


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
        error, torchs = ((r[name].double() - value).abs().max().item() for r in (ours, theirs))
        assert error <= 2 * torchs + epsilon_term(dtype, value), name


@each_norm
@each_backend
def test_derivatives(backend, norm):
    leaves = make(norm, (2, 3))

    def function(*tensors):
        return call(F, norm, tensors)

    with running(backend):
        assert gradcheck(function, leaves)
        assert gradgradcheck(function, leaves, fast_mode=True)


@each_norm
@each_backend
def test_gradient_penalty(backend, norm):
    """The gradients of |dx|^2, dx of both outputs, against torch's: gradcheck takes dx as it is."""

    def penalty(functional):
        y, total = call(functional, norm, leaves)
        (dx,) = torch.autograd.grad((y**3 + total**2).sum(), leaves[0], create_graph=True)
        return [dx, *torch.autograd.grad((dx**2).sum(), leaves[:3])]

    leaves = make(norm)
    exact = penalty(Steps)
    with running(backend):
        ours = penalty(F)
    for mine, value in zip(ours, exact, strict=True):
        assert_close(mine, value, slack=1e-12 * value.abs().max().item())


@each_norm
@each_backend
def test_who_requires_a_gradient(backend, norm):
    """Any single one; frozen tensors get none. Without any there is no graph."""
    leaves = make(norm)
    exact = results(Steps, norm, doubled(leaves))
    for i in range(len(leaves)):
        given = [t.detach().requires_grad_(i == j) for j, t in enumerate(leaves)]
        with running(backend):
            y, total = call(F, norm, given)
            assert total.requires_grad == (i < 2)
            used = slice(2 if i < 2 else 1)
            torch.autograd.backward((y, total)[used], cotangents(leaves[0])[used])
        assert_close(given[i].grad, exact[NAMES[i]], NAMES[i])
        assert [t.grad is None for t in given] == [i != j for j in range(len(leaves))]
    with running(backend), torch.no_grad():
        assert not any(out.requires_grad for out in call(F, norm, leaves))


@each_norm
@each_backend
def test_a_chain_of_blocks(backend, norm):
    """The residual stream: the sum of one block is the residual of the next, x its own residual."""

    def stream(functional, leaves):
        x, _, *parameters = leaves
        y, total = call(functional, norm, [x, x, *parameters])
        for _ in range(3):
            y, total = call(functional, norm, [torch.sin(y), total, *parameters])
        return (y * total).sum()

    leaves = make(norm)
    wanted = [leaves[0], *leaves[2:]]
    exact = torch.autograd.grad(stream(Steps, leaves), wanted)
    with running(backend):
        ours = torch.autograd.grad(stream(F, leaves), wanted)
    for mine, value in zip(ours, exact, strict=True):
        assert_close(mine, value, slack=1e-12 * value.abs().max().item())


@each_norm
@each_backend
def test_transforms(backend, norm):
    leaves = [t.detach() for t in make(norm)]
    tangents = tuple(make_input(t.shape, seed=20 + i) for i, t in enumerate(leaves))

    def loss_of(functional):
        def loss(*tensors):
            y, total = call(functional, norm, tensors)
            return (y * total).square().mean()

        return loss

    def everything(functional):
        indices = tuple(range(len(leaves)))
        dims = (0, 0, *[None] * (len(leaves) - 2))
        loss = loss_of(functional)
        return [
            *grad(loss, indices)(*leaves), vmap(loss, dims)(*leaves),
            *vmap(grad(loss, indices), dims)(*leaves), *jvp(loss, tuple(leaves), tangents),
        ]  # fmt: skip

    exact = everything(Steps)
    with running(backend):
        ours = everything(F)
    for mine, value in zip(ours, exact, strict=True):
        assert_close(mine, value, slack=1e-12 * value.abs().max().item())


@each_norm
@each_backend
def test_batched_cotangents(backend, norm):
    leaves = make(norm)
    dys = [make_input((2, *SHAPE), seed=s) for s in (30, 31)]
    exact = torch.autograd.grad(call(Steps, norm, leaves), leaves, dys, is_grads_batched=True)
    with running(backend):
        outputs = call(F, norm, leaves)
        ours = torch.autograd.grad(outputs, leaves, dys, is_grads_batched=True)
    for name, mine, value in zip(NAMES, ours, exact, strict=False):
        assert_close(mine, value, name, slack=1e-12 * value.abs().max().item())


@each_norm
@pytest.mark.parametrize("backend", ["triton", "aten"])
def test_compiled(backend, norm):
    """The kernels are operators of the traced program, forward and backward."""
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
    assert any("fastnorm.add_norm" in target for target in targets) == (backend == "triton")


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
            torch.set_autocast_enabled("cuda", True)
            try:
                with fastnorm.use_backend("auto"):
                    y, total = call(F, norm, (x, residual))
                theirs = call(Steps, norm, (x, residual))
            finally:
                torch.set_autocast_enabled("cuda", False)
        assert (y.dtype, total.dtype) == tuple(t.dtype for t in theirs) == (single, of_sum)


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


@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])
@each_backend
def test_modules(backend, name):
    """torch.nn's parameters, repr aside the name, and checkpoints, both ways."""
    theirs = getattr(torch.nn, name)(5, device=DEVICE, dtype=torch.float64)
    for i, p in enumerate(theirs.parameters()):
        p.data.copy_(make_input(p.shape, seed=i) * 0.3 + 1)
    ours = getattr(fastnorm, f"Add{name}")(5, device=DEVICE, dtype=torch.float64)
    assert isinstance(ours, type(theirs)) and repr(ours) == f"Add{theirs!r}"
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x, residual = (make_input(SHAPE, seed=s) for s in (0, 7))
    with running(backend):
        y, total = ours(x, residual)
    assert_close(y, theirs(x + residual))
    assert_close(total, x + residual)


def test_memory_of_its_own():
    """Neither output is a view of an input, nor is what the kernels return kept by them."""
    leaves = make("layer_norm")
    with running("triton"), launch.record():
        y, total = call(F, "layer_norm", leaves)
        (dx,) = torch.autograd.grad((y, total), leaves[0], cotangents(leaves[0]))
    tensors = (*leaves, y, total, dx)
    assert len({t.untyped_storage().data_ptr() for t in tensors}) == len(tensors)
    assert with_layout(total, "contiguous") is total
