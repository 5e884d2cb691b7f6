"""Gated RMS norm against its definition in float64, on every backend."""

import pytest
import torch

import fastnorm.functional as F
from fastnorm import reference
from fastnorm.backend import use_backend
from fastnorm.kernels import launch, tiers
from tests.conftest import BACKENDS, DEVICE, assert_close, combinations
from tests.kernels.tilings import interpreted, tiny_tilings

EPS = 1e-5
ORDERS = [False, True]
LEAVES = ("x", "gate", "weight")


def definition(x, gate, weight, group_size=None, norm_before_gate=False):
    """By loops over rows and groups, which share no code with fastnorm."""
    out = []
    size = group_size or x.shape[-1]
    for row, z in zip(x.reshape(-1, x.shape[-1]), gate.reshape(-1, x.shape[-1]), strict=True):
        factor = z / (1 + torch.exp(-z))
        v = row if norm_before_gate else row * factor
        parts = [g / torch.sqrt(torch.mean(g * g) + EPS) for g in v.split(size)]
        y = torch.cat(parts) * (1 if weight is None else weight)
        out.append(y * factor if norm_before_gate else y)
    return torch.stack(out).view(x.shape)


def tensors_of(shape, dtype=torch.float32, weight=True):
    torch.manual_seed(0)
    t = {name: torch.randn(shape).to(dtype) for name in ("x", "gate", "dy")}
    if weight:
        t["weight"] = 1 + 0.3 * torch.randn(shape[-1])
        t["weight"] = t["weight"].double() if dtype == torch.float64 else t["weight"]
    return {name: value.to(DEVICE) for name, value in t.items()}


def results(function, t, **options):
    """y and the gradients of all leaves there are."""
    leaves = [t[name].detach().clone().requires_grad_() for name in LEAVES if name in t]
    x, gate, weight = (*leaves, None)[:3]
    y = function(x, gate, weight, **options)
    return y, torch.autograd.grad(y, leaves, t["dy"].to(y.dtype))


def check(t, function=F.gated_rms_norm, **options):
    found, grads = results(function, t, **options)
    exact = {name: value.double() for name, value in t.items()}
    truth, true_grads = results(definition, exact, **options)
    assert found.dtype == t["x"].dtype and found.is_contiguous()
    assert_close(found, truth, "y")
    for name, grad, true in zip(LEAVES, grads, true_grads, strict=False):
        assert grad.dtype == t[name].dtype
        assert_close(grad, true, f"d{name}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm_before_gate", ORDERS)
@pytest.mark.parametrize("group_size", [None, 4, 12])
@pytest.mark.parametrize("shape", [(5, 3, 12), (12,)], ids=str)
def test_is_its_definition(shape, group_size, norm_before_gate, backend):
    with use_backend(backend):
        check(tensors_of(shape), group_size=group_size, norm_before_gate=norm_before_gate)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm_before_gate", ORDERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_in_every_dtype(dtype, norm_before_gate, backend):
    with use_backend(backend):
        check(tensors_of((6, 40), dtype), norm_before_gate=norm_before_gate, group_size=8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm_before_gate", ORDERS)
def test_without_a_weight(norm_before_gate, backend):
    with use_backend(backend):
        check(tensors_of((6, 10), weight=False), norm_before_gate=norm_before_gate)


@interpreted
@pytest.mark.parametrize("norm_before_gate", ORDERS)
@pytest.mark.parametrize("group_size", [None, 10])
@pytest.mark.parametrize(
    ("tier", "kernels"),
    [
        ("one_program", ["row_norm_kernel", "row_norm_backward_kernel", "add_shares_kernel"]),
        (
            "streaming",
            ["row_moments_kernel", "row_apply_kernel", "row_sums_kernel", "row_dx_kernel"],
        ),
    ],
)
def test_tiny_tiles_in_triton(tier, kernels, group_size, norm_before_gate):
    with use_backend("triton"), tiny_tilings(), tiers.force(tier), launch.record() as launched:
        check(tensors_of((7, 30)), group_size=group_size, norm_before_gate=norm_before_gate)
    assert launched == kernels


@interpreted
@pytest.mark.parametrize("norm_before_gate", ORDERS)
def test_long_rows_stream_in_triton(norm_before_gate):
    with use_backend("triton"), tiny_tilings(), launch.record() as launched:
        check(tensors_of((3, 100)), norm_before_gate=norm_before_gate)
    assert launched[0] == "row_moments_kernel"


@pytest.mark.parametrize("backend", ["triton", "cpu"])
@pytest.mark.parametrize("norm_before_gate", ORDERS)
@pytest.mark.parametrize("asked", LEAVES)
def test_partly_asked_gradients(asked, norm_before_gate, backend):
    t = tensors_of((6, 10))
    with use_backend(backend):
        _, every = results(F.gated_rms_norm, t, norm_before_gate=norm_before_gate)
        leaves = {name: t[name].clone().requires_grad_(name == asked) for name in LEAVES}
        y = F.gated_rms_norm(*leaves.values(), norm_before_gate=norm_before_gate)
        (grad,) = torch.autograd.grad(y, leaves[asked], t["dy"])
    assert torch.equal(grad, every[LEAVES.index(asked)])


@pytest.mark.parametrize(
    ("backend", "norm_before_gate", "group_size"),
    combinations(BACKENDS, ORDERS, [None, 3], quick=lambda before, size: before == (size is None)),
)
def test_gradcheck(backend, norm_before_gate, group_size):
    t = tensors_of((2, 2, 6), torch.float64)
    leaves = [t[name].requires_grad_() for name in LEAVES]

    def call(x, gate, weight):
        return F.gated_rms_norm(
            x, gate, weight, group_size=group_size, norm_before_gate=norm_before_gate
        )

    with use_backend(backend):
        assert torch.autograd.gradcheck(call, leaves)
        assert torch.autograd.gradgradcheck(call, leaves)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("group_size", [None, 4])
def test_without_a_gate_it_is_rms_norm(group_size, backend):
    t = tensors_of((5, 12))
    x = t["x"].unflatten(-1, (-1, group_size or 12)).double()
    truth = (x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()).flatten(-2) * t["weight"]
    with use_backend(backend):
        y = F.gated_rms_norm(t["x"], None, t["weight"], group_size=group_size)
    assert_close(y, truth)


@pytest.mark.parametrize("backend", ["triton", "cpu"])
@pytest.mark.parametrize("norm_before_gate", ORDERS)
def test_slices_of_one_projection(norm_before_gate, backend):
    """x and the gate as blocks have them, halves of one tensor: read as they lie or copied."""
    wide = torch.randn(4, 20, device=DEVICE)
    x, gate = wide.chunk(2, -1)
    weight = torch.randn(10, device=DEVICE)
    with use_backend(backend):
        y = F.gated_rms_norm(x, gate, weight, norm_before_gate=norm_before_gate)
        copied = F.gated_rms_norm(
            x.contiguous(), gate.contiguous(), weight, norm_before_gate=norm_before_gate
        )
    assert torch.equal(y, copied)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 12), (3, 0)], ids=str)
def test_empty(shape, backend):
    t = tensors_of(shape)
    with use_backend(backend):
        y, grads = results(F.gated_rms_norm, t)
    assert y.shape == shape
    assert all(grad.shape == t[name].shape for grad, name in zip(grads, LEAVES, strict=True))
    assert not grads[2].any()


@pytest.mark.parametrize("backend", ["triton", "cpu"])
def test_large_gates_do_not_overflow(backend):
    """exp(-gate) overflows in float32 from 89 on; silu is then 0."""
    gate = torch.tensor([[-200.0, -90.0, 0.0, 90.0, 200.0]], device=DEVICE)
    t = {"x": torch.ones_like(gate), "gate": gate, "dy": torch.ones_like(gate)}
    with use_backend(backend):
        for norm_before_gate in ORDERS:
            y, grads = results(F.gated_rms_norm, t, norm_before_gate=norm_before_gate)
            assert y.isfinite().all()
            assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("backend", ["triton", "cpu"])
def test_transforms_take_the_formula(backend):
    t = tensors_of((4, 3, 6), torch.float64)
    args = t["x"], t["gate"], t["weight"]

    def call(x, gate, weight):
        return F.gated_rms_norm(x, gate, weight)

    with use_backend(backend):
        y = torch.func.vmap(call, (0, 0, None))(*args)
        _, tangent = torch.func.jvp(call, args, args)
        exact = reference.gated_rms_norm(*args)
        _, true = torch.func.jvp(reference.gated_rms_norm, args, args)
    assert_close(y, exact)
    assert_close(tangent, true)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nested_tensors(backend):
    samples = [torch.randn(n, 6, device=DEVICE) for n in (2, 3)]
    gates = [torch.randn_like(sample) for sample in samples]
    weight = torch.randn(6, device=DEVICE)
    x = torch.nested.nested_tensor(samples, layout=torch.jagged)
    gate = torch.nested.nested_tensor_from_jagged(torch.cat(gates), x.offsets())
    with use_backend(backend):
        y = F.gated_rms_norm(x, gate, weight)
        for got, sample, z in zip(y.unbind(), samples, gates, strict=True):
            assert_close(got, reference.gated_rms_norm(sample.double(), z.double(), weight))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gate": torch.randn(4, 6)}, "gate of shape"),
        ({"gate": torch.randn(5, 6).half()}, "torch.float16"),
        ({"weight": torch.randn(5)}, "weight of shape"),
        ({"group_size": 4}, "group_size=4"),
        ({"group_size": 0}, "group_size=0"),
    ],
)
def test_errors(change, message):
    t = {"gate": torch.randn(5, 6), "weight": torch.randn(6)} | change
    with pytest.raises(RuntimeError, match=message):
        F.gated_rms_norm(torch.randn(5, 6), **t)


def test_integers_are_refused():
    x = torch.ones(2, 4, dtype=torch.int64)
    with pytest.raises(NotImplementedError, match="int64"):
        F.gated_rms_norm(x, x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_on_a_cpu_takes_what_it_gets(backend):
    """Of mixed dtypes it makes what the product of x and silu(gate) would be."""
    if DEVICE != "cpu":
        pytest.skip("on CUDA the norm is float32 under autocast")
    x, gate = torch.randn(3, 8).bfloat16(), torch.randn(3, 8)
    with use_backend(backend), torch.autocast("cpu", torch.bfloat16):
        assert F.gated_rms_norm(x, gate).dtype == torch.float32
        assert F.gated_rms_norm(x, gate.bfloat16()).dtype == torch.bfloat16


def test_subclasses_may_override():
    class Mine(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            return function

    x = torch.randn(2, 4).as_subclass(Mine)
    assert F.gated_rms_norm(x, x) is F.gated_rms_norm
