"""The longest rows of one program: which have room; their kernels, interpreted in tiny tiles."""

import pytest
import torch

import fastnorm.functional as F
from fastnorm.kernels import row_geometry, row_plans
from fastnorm.kernels.row_geometry import RowGeometry, RowSpec
from fastnorm.kernels.row_types import Backward, Forward
from fastnorm.kernels.tiers import WITHOUT_CLUSTERS
from tests.conftest import assert_close, make_input, running
from tests.kernels.tilings import fresh_plans, interpreted, tiny_tilings

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
DEVICE = (132, 227 * 1024, WITHOUT_CLUSTERS)  # an H100 or H200
PER_TENSOR = {"rms": ("x", "dy", "weight"), "layer": ("x", "dy", "weight", "bias")}


def dtypes_of(kind, names, dtype):
    return tuple(dtype if name in names else None for name in kind._fields)


def forward_of(L, dtype, norm="layer", extra=(), gate=None):
    names = (*PER_TENSOR[norm], "y", *extra)
    with fresh_plans():
        spec = RowSpec(norm, None, gate)
        return row_plans.forward_plan(1000, L, dtypes_of(Forward, names, dtype), spec, *DEVICE)


def backward_of(L, dtype, norm="layer", activation=None, extra=(), gate=None):
    gradients = ["dx", "dweight", *["dbias"] * (norm == "layer")]
    names = (*PER_TENSOR[norm], *gradients, *extra)
    with fresh_plans():
        spec = RowSpec(norm, activation, gate)
        dtypes = dtypes_of(Backward, names, dtype)
        return row_plans.backward_plan(1000, L, dtypes, spec, True, *DEVICE)


def described(plan):
    """(warps, stages, packed) of a program with whole rows; None if rows stream."""
    if plan.tier != "one_program":
        return None
    return plan.geometry.num_warps, plan.geometry.stages, plan.geometry.packed


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(row_geometry.launch, "INTERPRETED", False)


@pytest.mark.parametrize(
    ("expected", "L", "dtype", "norm", "extra"),
    [
        ((16, 3, False), 16384, BF16, "layer", ()),
        ((16, 2, False), 16384, FP32, "layer", ("residual",)),
        ((32, 1, False), 32768, FP32, "layer", ()),
        ((32, 1, False), 32768, FP32, "rms", ()),
        (None, 32768, FP32, "layer", ("residual",)),
        (None, 32768, FP32, "rms", ("addend", "total")),
        (None, 32767, FP32, "layer", ()),
        (None, 16388, FP32, "rms", ()),
        (None, 65536, FP32, "rms", ()),
        (None, 32768, FP64, "layer", ()),
        ((32, 1, False), 16384, FP64, "layer", ()),
    ],
)
def test_forward(as_on_a_gpu, expected, L, dtype, norm, extra):
    assert described(forward_of(L, dtype, norm, extra)) == expected


@pytest.mark.parametrize(
    ("expected", "L", "dtype", "norm", "activation", "extra"),
    [
        ((16, 3, False), 8192, BF16, "layer", "gelu", ()),
        ((16, 3, True), 16384, BF16, "layer", None, ()),
        ((16, 3, True), 9000, FP16, "rms", "relu", ()),
        ((16, 1, True), 16384, BF16, "layer", "relu", ("bits",)),
        ((16, 1, True), 16384, BF16, "rms", "relu", ("bits", "dbias")),
        (None, 16384, BF16, "layer", "relu", ()),
        (None, 16384, BF16, "rms", "gelu", ()),
        (None, 9000, BF16, "layer", "leaky_relu(0.1)", ()),
        ((32, 1, True), 32768, BF16, "rms", None, ()),
        ((32, 1, True), 32768, BF16, "rms", None, ("dsum",)),
        (None, 32768, BF16, "rms", None, ("dbias",)),
        (None, 32768, BF16, "rms", "relu", ()),
        (None, 32768, BF16, "layer", None, ()),
        (None, 32760, BF16, "rms", None, ()),
        ((16, 3, False), 8192, FP32, "layer", "gelu", ()),
        ((32, 1, False), 8193, FP32, "rms", None, ()),
        ((32, 1, False), 16384, FP32, "layer", "relu", ()),
        ((32, 1, False), 16384, FP32, "rms", "gelu", ("residual",)),
        (None, 16384, FP32, "layer", "gelu", ("residual",)),
        (None, 32768, FP32, "rms", None, ()),
        ((32, 1, False), 8192, FP64, "layer", None, ()),
        (None, 16384, FP64, "rms", None, ()),
    ],
)
def test_backward(as_on_a_gpu, expected, L, dtype, norm, activation, extra):
    assert described(backward_of(L, dtype, norm, activation, extra)) == expected


def test_parameters_that_take_more_registers(as_on_a_gpu):
    """Rows of 32,768 in 16 bits stream if the weight is wide, or each row's own; frozen parameters
    have no sums."""
    fields = ("x", "dy", "dx", "weight", "bias")
    narrow = dict(zip(Backward._fields, dtypes_of(Backward, fields, BF16), strict=True))
    own, shared = RowSpec("rms", parameter_rows=1000), RowSpec("rms")
    for weight, spec, tier in (
        (BF16, shared, "one_program"), (FP32, shared, "streaming"), (BF16, own, "streaming"),
        (BF16, RowSpec("layer"), "one_program"),
    ):  # fmt: skip
        dtypes = tuple((narrow | {"weight": weight}).values())
        with fresh_plans():
            assert row_plans.backward_plan(1000, 32768, dtypes, spec, False, *DEVICE).tier == tier


@pytest.mark.parametrize("gate", ["before", "after"])
def test_gated_rows_are_half_as_long(as_on_a_gpu, gate):
    for plan, longest in ((forward_of, {BF16: 8192, FP32: 8192}),
                          (backward_of, {BF16: 8192, FP32: 8192, FP64: 4096})):  # fmt: skip
        for dtype, L in longest.items():
            extra = ("gate",)
            found = [plan(n, dtype, "rms", extra=extra, gate=gate).tier for n in (L, L + 1)]
            assert found == ["one_program", "streaming"], (dtype, L)


def gradients(op, x, dy, parameters, **fused):
    """y and the gradients of x, the parameters and the residual."""
    leaves = [t.detach().requires_grad_() for t in (x, *parameters)]
    if fused.get("residual") is not None:
        leaves.append(fused["residual"].detach().requires_grad_())
        fused["residual"] = leaves[-1]
    keywords = dict(zip(("weight", "bias"), leaves[1:], strict=False)) | {"eps": 1e-5}
    y = op(leaves[0], x.shape[-1:], **{k: keywords[k] for k in names_of(op)}, **fused)
    return y, *torch.autograd.grad(y, leaves, dy)


def names_of(op):
    return ("weight", "bias", "eps") if op is F.layer_norm else ("weight", "eps")


@interpreted
@pytest.mark.parametrize("op", [F.layer_norm, F.rms_norm])
@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize(("activation", "residual"), [(None, False), ("relu", False),
                                                      ("relu", True), ("silu", False)])  # fmt: skip
def test_packed_tiles(op, dtype, activation, residual, monkeypatch):
    """The backward of 16 bits uses its tiles twice, unless an activation makes g wider."""
    seen, kept = [], RowGeometry.kept_packed
    monkeypatch.setattr(RowGeometry, "kept_packed", lambda *a: seen.append(kept(*a)) or seen[-1])
    x, dy, other = (make_input((37, 60), "contiguous", dtype=dtype, mean=m) for m in (2.0, 0, 0))
    torch.manual_seed(1)
    parameters = [torch.randn(60).to(dtype) for _ in range(1 + (op is F.layer_norm))]
    fused = {"activation": activation, "residual": other if residual else None}
    with tiny_tilings() as found, running("triton") as launched:
        mine = gradients(op, x, dy, parameters, **fused)
    assert launched[:2] == ["row_norm_kernel", "row_norm_backward_kernel"]
    assert [tier for tier, _ in found] == ["one_program"] * 2
    assert [geometry.packed for geometry in seen] == [True] * (activation != "silu")
    wide = fused | {"residual": other.double() if residual else None}
    with running("reference"):
        truth = gradients(op, x.double(), dy.double(), [p.double() for p in parameters], **wide)
    for i, (a, b) in enumerate(zip(mine, truth, strict=True)):
        assert_close(a, b, f"result {i}")


@interpreted
@pytest.mark.parametrize(("L", "launches"), [(128, 1), (127, 2)])
def test_whole_rows(L, launches):
    """Only rows without missing columns."""
    x = make_input((5, L), "contiguous", dtype=FP32, mean=2.0)
    with tiny_tilings(), running("triton") as launched:
        y = F.layer_norm(x, (L,))
    assert len(launched) == launches
    with running("reference"):
        assert_close(y, F.layer_norm(x.double(), (L,)), "y")
