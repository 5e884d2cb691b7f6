"""Weight normalisation as a function: values, gradients and launches.

The truth is torch's own operator in float64, which computes in another way (saved norms, their
inverse's third power), and the definition in numpy.
"""

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, jacrev, jvp, vmap

import fastnorm
import fastnorm.functional as F
from fastnorm import dispatch
from fastnorm.kernels import launch
from tests.conftest import (
    BACKENDS,
    DEVICE,
    assert_close,
    assert_no_worse,
    make_input,
    metered,
    running,
)
from tests.kernels import traffic
from tests.kernels.tilings import interpreted, tiny_tilings

FORWARD, BACKWARD = "weight_norm_kernel", "weight_norm_backward_kernel"
# (shape of v, dim)
CASES = [
    ((6, 3, 3, 3), 0),
    ((4, 6, 2, 2), 1),
    ((3, 5, 4), -2),
    ((7, 5), 1),
    ((3, 4), -1),
    ((2, 3, 5), None),
    ((1, 17), 0),
]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def tensors_of(shape, dim, dtype=torch.float64, g_dtype=None, **kwargs):
    """v, g of the shape that torch gives it, and dw."""
    v = make_input(shape, dtype=dtype, seed=1, **kwargs)
    g_shape = torch.norm_except_dim(v.detach().double(), 2, torch_dim(dim)).shape
    g = make_input(g_shape, dtype=g_dtype or dtype, seed=2, mean=1.5, requires_grad=v.requires_grad)
    return v, g, make_input(shape, dtype=dtype, seed=3)


def torch_dim(dim):
    return -1 if dim is None else dim


def results(function, v, g, dim, dw):
    v, g = v.detach().requires_grad_(), g.detach().requires_grad_()
    w = function(v, g, dim)
    dv, dg = torch.autograd.grad(w, [v, g], dw)
    return {"w": w.detach(), "v": dv, "g": dg}


def numpy_weight_norm(v, g, dim):
    v, g = v.detach().cpu().numpy(), g.detach().cpu().numpy()
    axes = tuple(i for i in range(v.ndim) if dim in (None, -1) or i != dim % v.ndim)
    return torch.from_numpy(v * g / np.sqrt((v * v).sum(axis=axes, keepdims=True))).to(DEVICE)


@pytest.mark.parametrize(("shape", "dim"), CASES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_definition_and_torch(backend, shape, dim):
    v, g, dw = tensors_of(shape, dim)
    truth = results(torch._weight_norm, v, g, torch_dim(dim), dw)
    with running(backend) as launched:
        ours = results(F.weight_norm, v, g, dim, dw)
    assert launched == ([FORWARD, BACKWARD] if backend == "triton" else [])
    assert_close(ours["w"], numpy_weight_norm(v, g, dim))
    for name, exact in truth.items():
        assert_close(ours[name], exact, name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "dim"),
    [((6, 16, 3, 3), 0), ((33, 40), 1), ((3, 20011), 0), ((2, 16400), 0), ((20, 30, 40), None)],
    ids=str,
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_precision(backend, shape, dim, dtype):
    """At most twice torch's own error and the table's term; rows longer than a tile too."""
    v, g, dw = tensors_of(shape, dim, DTYPES[dtype])
    truth = results(torch._weight_norm, v.double(), g.double(), torch_dim(dim), dw.double())
    torchs = results(torch._weight_norm, v, g, torch_dim(dim), dw)
    with running(backend):
        ours = results(F.weight_norm, v, g, dim, dw)
    for name, exact in truth.items():
        assert ours[name].dtype == DTYPES[dtype]
        assert_no_worse(ours[name], torchs[name], exact, name)


@pytest.mark.parametrize(
    ("dtype", "g_dtype"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float64), (torch.float64, torch.half),
     (torch.float64, torch.bfloat16)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("backend", BACKENDS)
def test_mixed_dtypes(backend, dtype, g_dtype):
    """w and dv are of v's dtype, dg of g's."""
    v, g, dw = tensors_of((6, 3, 3), 0, dtype, g_dtype)
    truth = results(torch._weight_norm, v.double(), g.double(), 0, dw.double())
    with running(backend):
        ours = results(F.weight_norm, v, g, 0, dw)
    assert [ours[name].dtype for name in ("w", "v", "g")] == [dtype, dtype, g_dtype]
    for name, exact in truth.items():
        assert_close(ours[name], exact, name, slack=1e-6 * exact.abs().max().item())


@pytest.mark.parametrize(("shape", "dim"), CASES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck_and_gradgradcheck(backend, shape, dim):
    v, g, _ = tensors_of(shape, dim, requires_grad=True)
    with running(backend):
        assert gradcheck(lambda v, g: F.weight_norm(v, g, dim), (v, g), fast_mode=True)
        assert gradgradcheck(lambda v, g: F.weight_norm(v, g, dim), (v, g), fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_one_element(backend):
    """w is g and v's sign, whatever v: dv is rounding about 0, relative to g / v."""
    v, g, dw = tensors_of((5,), 0)
    with running(backend):
        ours = results(F.weight_norm, v, g, 0, dw)
    assert_close(ours["w"], g * v.sign())
    assert_close(ours["g"], dw * v.sign())
    assert_close(ours["v"], torch.zeros_like(v), slack=1e-15 * (dw * g / v).abs().max().item())


@pytest.mark.parametrize("wanted", ["v", "g"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_of_the_two_is_frozen(backend, wanted):
    v, g, dw = tensors_of((6, 3, 3), 0)
    truth = results(torch._weight_norm, v, g, 0, dw)
    leaves = {"v": v.detach(), "g": g.detach()}
    leaves[wanted].requires_grad_()
    with running(backend):
        F.weight_norm(leaves["v"], leaves["g"]).backward(dw)
    assert_close(leaves[wanted].grad, truth[wanted])
    assert sum(leaf.grad is not None for leaf in leaves.values()) == 1


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("layout", ["channels_last", "sliced"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_layouts(backend, layout, dim):
    """Any strides of v, g and dw; the kernels keep channels last without a copy."""
    v, g, dw = tensors_of((4, 6, 3, 2), dim)
    truth = results(torch._weight_norm, v, g, dim, dw)
    v = make_input(v.shape, layout, seed=1)
    expanded = make_input(dw.shape, "expanded", seed=3)
    flat = results(torch._weight_norm, v, g, dim, expanded.contiguous())
    with running(backend):
        ours = results(F.weight_norm, v, g.flip(0).flip(0), dim, dw)
        with_expanded = results(F.weight_norm, v, g, dim, expanded)
    for name, exact in truth.items():
        assert_close(ours[name], exact, name)
        assert_close(with_expanded[name], flat[name], name)
    if backend == "triton" and layout == "channels_last":
        assert ours["w"].stride() == ours["v"].stride() == v.stride()


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tiny_tiles(dtype):
    """Many programs of several rows, the last with a remainder; rows of several tiles."""
    for shape in ((33, 10), (5, 100), (3, 64)):
        v, g, dw = tensors_of(shape, 0, dtype)
        truth = results(torch._weight_norm, v.double(), g.double(), 0, dw.double())
        with tiny_tilings(), running("triton") as launched:
            ours = results(F.weight_norm, v, g, 0, dw)
        assert launched == [FORWARD, BACKWARD]
        for name, exact in truth.items():
            assert_close(ours[name], exact, f"{name} {shape}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_of_zeros_is_nan_as_torchs(backend):
    v, g, dw = tensors_of((3, 4), 0)
    v[1] = 0.0
    truth = results(torch._weight_norm, v, g, 0, dw)
    with running(backend):
        ours = results(F.weight_norm, v, g, 0, dw)
    for name, exact in truth.items():
        assert torch.equal(ours[name].isnan(), exact.isnan()), name
        assert exact[1].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_transforms(backend):
    """torch.func's grad, vmap, jvp and jacrev, dual numbers and batched gradients."""
    v, g, dw = tensors_of((4, 3), 0, requires_grad=True)

    def loss(function):
        return lambda v, g: (function(v, g, 0) ** 3 * dw).sum()

    ours, theirs = loss(F.weight_norm), loss(fastnorm.reference.weight_norm)
    vs = make_input((2, 4, 3), seed=9)
    with fastnorm.use_backend(backend):
        truth = torch.autograd.grad(loss(torch._weight_norm)(v, g), [v, g])
        for mine, exact in zip(grad(ours, (0, 1))(v, g), truth, strict=True):
            assert_close(mine, exact)
        expected = torch.stack([torch._weight_norm(one, g, 0) for one in vs])
        assert_close(vmap(F.weight_norm, (0, None))(vs, g), expected)
        tangent = jvp(theirs, (v, g), (v, g))[1]
        assert_close(jvp(ours, (v, g), (v, g))[1], tangent)
        assert_close(jacrev(grad(ours))(v, g), jacrev(grad(theirs))(v, g))
        with forward_ad.dual_level():
            dual = ours(forward_ad.make_dual(v, v), forward_ad.make_dual(g, g))
            assert_close(forward_ad.unpack_dual(dual).tangent, tangent)
        w = F.weight_norm(v, g)
        dws = torch.stack([dw, 2 * dw])
        batched = torch.autograd.grad(w, [v, g], dws, is_grads_batched=True)
        one = results(torch._weight_norm, v, g, 0, dw)
    for mine, name in zip(batched, ("v", "g"), strict=True):
        assert_close(mine, torch.stack([one[name], 2 * one[name]]))


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_empty(backend):
    with running(backend, launches=False):
        for shape in ((0, 3), (3, 0)):
            v, g = torch.ones(shape, device=DEVICE), torch.ones(shape[0], 1, device=DEVICE)
            assert F.weight_norm(v, g).shape == shape


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("error", "words", "v", "g", "dim"),
    [
        (IndexError, "dim=2", (4, 3), (4, 1), 2),
        (IndexError, "dim=-3", (4, 3), (4, 1), -3),
        (RuntimeError, r"\(4, 3\).*\(4, 1\)", (4, 3), (4,), 0),
        (RuntimeError, r"\(1, 3\)", (4, 3), (4, 1), 1),
        (RuntimeError, r"\(4,\)", (4, 3), (4,), None),
    ],
)
def test_refusals(backend, error, words, v, g, dim):
    with running(backend, launches=False), pytest.raises(error, match=words):
        F.weight_norm(torch.ones(v, device=DEVICE), torch.ones(g, device=DEVICE), dim)


def test_refused_dtypes():
    v, g = torch.ones(4, 3, device=DEVICE), torch.ones(4, 1, device=DEVICE)
    with pytest.raises(NotImplementedError, match="complex64"):
        F.weight_norm(v.to(torch.complex64), g)
    with pytest.raises(RuntimeError, match="int64"):
        F.weight_norm(v, g.long())


def test_torch_function_is_called():
    class Refusing(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            return func if func is F.weight_norm else super().__torch_function__(func, types, args)

    v, g, _ = tensors_of((4, 3), 0)
    for given in ((v.as_subclass(Refusing), g), (v, g.as_subclass(Refusing))):
        with launch.record() as launched:
            assert F.weight_norm(*given) is F.weight_norm
        assert not launched


@metered
def test_traffic(monkeypatch):
    """Forward reads v and writes w; backward reads dw and v and writes dv: rows of one tile."""
    v, g, dw = tensors_of((64, 16, 8, 8), 0, torch.float32, requires_grad=True)
    v, dw = (t.detach().to(memory_format=torch.channels_last) for t in (v, dw))
    v.requires_grad_()
    monkeypatch.setattr(dispatch, "is_traced", lambda x: False)  # the meter is a mode
    with running("triton"):
        with traffic.meter() as forward:
            w = F.weight_norm(v, g)
        with traffic.meter() as backward:
            torch.autograd.grad(w, [v, g], dw)
    for passed, S in ((forward, 2), (backward, 3)):
        assert len(passed.launches) == 1
        assert S * v.nbytes <= passed.total <= S * v.nbytes * 1.03
        assert not passed.moved_by_torch(v.numel() // 8)
