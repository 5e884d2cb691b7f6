"""Each norm moves only the bytes that it has to move, in as few launches as it can.

Floors are counted in S, the bytes of x, and M, those of a mask of one bit an element, at sizes
with negligible parameters and tables of statistics.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch

import fastnorm.functional as F
from fastnorm.contract import Inputs, NormSpec
from fastnorm.kernels import ENGINE, row_geometry, tiers, tilings
from tests.conftest import DEVICE, make_input, running, slow_unless
from tests.kernels import traffic
from tests.kernels.tilings import fresh_plans
from tests.norms import OF_ROWS, Params, call, grad_targets, make_params

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="the meter reads the interpreter")

TOLERANCE = 0.03  # for parameters and tables, as a share of the floor
SHAPE = (4, 16, 64, 64)
GROUPS = 4
ROWS = (512, 1024)  # each row fits one program
LONG_ROWS = (128, 2056)  # each row takes two tiles of 2048


class Floor(NamedTuple):
    """What one pass has to move, as multiples of S and M, and the launches it may take."""

    S: int
    M: int
    launches: int

    def bytes(self, x: torch.Tensor) -> int:
        return self.S * x.nbytes + self.M * (x.numel() // 8)


# (forward, backward) by tier and fusion. Forward reads x (streaming: twice) and the residual, and
# writes y and the mask of a ReLU after a residual. Backward reads x, dy and that mask (streaming:
# twice), and writes the gradients of x and the residual. Of clusters: compiled/test_traffic.py.
FLOORS = {
    ("one_program", "plain"): (Floor(2, 0, 1), Floor(3, 0, 1)),
    ("one_program", "relu"): (Floor(2, 0, 1), Floor(3, 0, 1)),
    ("one_program", "residual_relu"): (Floor(3, 1, 1), Floor(4, 1, 1)),
    ("streaming", "plain"): (Floor(3, 0, 2), Floor(5, 0, 2)),
    ("streaming", "relu"): (Floor(3, 0, 2), Floor(5, 0, 2)),
    ("streaming", "residual_relu"): (Floor(4, 1, 2), Floor(6, 2, 2)),
}
# Of add_layer_norm and add_rms_norm, which read x and the residual and write their sum and y, and
# then read dy, the sum and its gradient and write dx.
ADD_FLOORS = {
    "one_program": (Floor(4, 0, 1), Floor(4, 0, 2)),
    "streaming": (Floor(5, 0, 2), Floor(6, 0, 2)),
}
# Of gated RMS norm, by tier and where the gate comes.
GATED_FLOORS = {
    ("one_program", "before"): (Floor(3, 0, 1), Floor(5, 0, 2)),
    ("one_program", "after"): (Floor(3, 0, 1), Floor(5, 0, 2)),
    ("streaming", "before"): (Floor(5, 0, 2), Floor(8, 0, 2)),
    ("streaming", "after"): (Floor(4, 0, 2), Floor(8, 0, 2)),
}
# Mean-only batch norm differs in its backward, which x has no part in unless ReLU's sign has to be
# found again.
MEAN_ONLY_BACKWARD = {
    ("one_program", "plain"): Floor(2, 0, 1),
    ("one_program", "relu"): Floor(3, 0, 1),
    ("one_program", "residual_relu"): Floor(3, 1, 1),
    ("streaming", "plain"): Floor(3, 0, 2),
    ("streaming", "relu"): Floor(5, 0, 2),
    ("streaming", "residual_relu"): Floor(4, 2, 2),
}
FUSIONS = ("plain", "relu", "residual_relu")
DTYPES = (torch.float32, torch.bfloat16)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
# Bytes double with float32, all but a mask's, and ReLU alone moves none: those are slow, and what
# compiled kernels move is compiled/test_traffic's.
QUICK = (("plain", torch.float32), ("residual_relu", torch.bfloat16))
each_fusion = pytest.mark.parametrize(
    ("fusion", "dtype"),
    [
        pytest.param(
            fusion, dtype, id=f"{fusion}-{dtype}",
            marks=slow_unless((fusion, dtype) in QUICK),
        )
        for fusion in FUSIONS
        for dtype in DTYPES
    ],
)  # fmt: skip


@pytest.fixture
def tier(request: pytest.FixtureRequest) -> Iterator[str]:
    """The tier that serves the test's norms, whatever they would choose themselves."""
    with tiers.force(request.param):
        yield request.param


class Passes(NamedTuple):
    """A norm's input and the traffic of its two passes."""

    x: torch.Tensor
    forward: traffic.Traffic
    backward: traffic.Traffic


def apply(norm: str, x: torch.Tensor, p: Params, **fusion: Any) -> torch.Tensor:
    if norm == "gn":
        return F.group_norm(x, GROUPS, p["weight"], p["bias"], **fusion)
    return call(F, norm, x, p, **fusion)


def measure(
    norm: str, shape: tuple[int, ...], layout: str, dtype: torch.dtype, fusion: str
) -> Passes:
    """Forward, then the gradients of everything that has one; all tensors laid out as x."""
    x, residual = (make_input(shape, layout, dtype, seed=s, requires_grad=True) for s in (0, 7))
    dy = make_input(shape, layout, dtype, seed=8)
    p = make_params(norm, shape, dtype, requires_grad=True)
    targets = list(grad_targets(x, p).values())
    kwargs: dict[str, Any] = {} if fusion == "plain" else {"activation": "relu"}
    if fusion == "residual_relu":
        kwargs["residual"] = residual
        targets.append(residual)
    with running("triton"):
        with traffic.meter() as forward:
            y = apply(norm, x, p, **kwargs)
        with traffic.meter() as backward:
            torch.autograd.grad(y, targets, dy)
    return Passes(x, forward, backward)


def check(t: traffic.Traffic, floor: Floor, x: torch.Tensor) -> None:
    """Traffic below the floor is no gain: a pass went unseen, or another tier served the call."""
    least = floor.bytes(x)
    message = f"{t.total / x.nbytes:.3f} S, floor {least / x.nbytes:.3f} S\n{t}"
    assert least <= t.total <= least * (1 + TOLERANCE), message
    assert len(t.launches) <= floor.launches, message
    assert not t.moved_by_torch(x.numel() // 8)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@each_fusion
@pytest.mark.parametrize("norm", ["bn_train", "in", "bin_train", "gn"])
@pytest.mark.parametrize("tier", ["one_program", "streaming"], indirect=True)
def test_channel_norms(tier, norm, fusion, layout, dtype):
    passes = measure(norm, SHAPE, layout, dtype, fusion)
    forward, backward = FLOORS[tier, fusion]
    check(passes.forward, forward, passes.x)
    check(passes.backward, backward, passes.x)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("tier", "fusion"), list(MEAN_ONLY_BACKWARD), indirect=["tier"])
def test_mean_only_batch_norm(tier, fusion, layout):
    passes = measure("mean_train", SHAPE, layout, torch.bfloat16, fusion)
    check(passes.forward, FLOORS[tier, fusion][0], passes.x)
    check(passes.backward, MEAN_ONLY_BACKWARD[tier, fusion], passes.x)


@each_fusion
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_batch_norm_by_running_statistics(fusion, layout, dtype):
    """Nothing to wait for: one launch. Backward adds dgamma and dbeta up before it writes dx."""
    passes = measure("bn_eval", SHAPE, layout, dtype, fusion)
    forward, _ = FLOORS["one_program", fusion]
    _, backward = FLOORS["streaming", fusion]
    check(passes.forward, forward, passes.x)
    check(passes.backward, backward, passes.x)


@each_fusion
@pytest.mark.parametrize("norm", OF_ROWS)
@pytest.mark.parametrize("tier", ["one_program"], indirect=True)
def test_rows(tier, norm, fusion, dtype):
    passes = measure(norm, ROWS, "contiguous", dtype, fusion)
    forward, backward = FLOORS[tier, fusion]
    check(passes.forward, forward, passes.x)
    adds_up = backward._replace(launches=backward.launches + 1)  # dgamma and dbeta over rows
    check(passes.backward, adds_up, passes.x)


def check_add(tier: str, norm: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """A norm of the sum of two tensors, and that sum: forward and backward by ADD_FLOORS."""
    x, residual, dy, dsum = (make_input(shape, dtype=dtype, seed=s) for s in (0, 7, 8, 9))
    p = make_params(norm, shape, dtype, requires_grad=True)
    targets = [x.requires_grad_(), residual.requires_grad_(), p["weight"]]
    with running("triton"):
        with traffic.meter() as forward:
            if norm == "ln":
                outputs = F.add_layer_norm(x, residual, shape[1:], p["weight"], p["bias"])
            else:
                outputs = F.add_rms_norm(x, residual, shape[1:], p["weight"])
        with traffic.meter() as backward:
            torch.autograd.grad(outputs, targets, (dy, dsum))
    for measured, floor in zip((forward, backward), ADD_FLOORS[tier], strict=True):
        check(measured, floor, x)


@each_dtype
@pytest.mark.parametrize("norm", OF_ROWS)
@pytest.mark.parametrize("tier", ["one_program"], indirect=True)
def test_added_rows(tier, norm, dtype):
    check_add(tier, norm, ROWS, dtype)


@pytest.fixture
def few_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All rows in one block: what each reads of gamma and beta, and leaves of their gradients, is
    next to nothing."""
    monkeypatch.setattr(tilings, "INTERPRETER_TILE", 1 << 18)
    monkeypatch.setattr(row_geometry, "TILE", 2048)
    monkeypatch.setattr(row_geometry, "REDUCING_TILE", (2048, 2048))
    with fresh_plans():
        yield


@each_fusion
@pytest.mark.parametrize("norm", OF_ROWS)
@pytest.mark.parametrize("tier", ["streaming"], indirect=True)
def test_long_rows(tier, norm, few_blocks_of_rows, fusion, dtype):
    passes = measure(norm, LONG_ROWS, "contiguous", dtype, fusion)
    forward, backward = FLOORS[tier, fusion]
    check(passes.forward, forward, passes.x)
    check(passes.backward, backward, passes.x)


def check_gated(tier: str, order: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Forward reads x and the gate (streaming: what the norm takes of them twice) and writes y;
    backward reads them and dy (streaming: twice) and writes two gradients."""
    x, gate, dy = (make_input(shape, dtype=dtype, seed=s) for s in (0, 7, 8))
    weight = make_params("rms", shape, dtype, requires_grad=True)["weight"]
    targets = [x.requires_grad_(), gate.requires_grad_(), weight]
    with running("triton"):
        with traffic.meter() as forward:
            y = F.gated_rms_norm(x, gate, weight, norm_before_gate=order == "after")
        with traffic.meter() as backward:
            torch.autograd.grad(y, targets, dy)
    for measured, floor in zip((forward, backward), GATED_FLOORS[tier, order], strict=True):
        check(measured, floor, x)


@each_dtype
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("tier", ["one_program"], indirect=True)
def test_gated_rows(tier, order, dtype):
    check_gated(tier, order, ROWS, dtype)


@each_dtype
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("tier", ["streaming"], indirect=True)
def test_gated_long_rows(tier, order, few_blocks_of_rows, dtype):
    check_gated(tier, order, LONG_ROWS, dtype)


@each_dtype
@pytest.mark.parametrize("tier", ["one_program"], indirect=True)
def test_rows_of_samples(tier, dtype):
    """Modulated rows move what others do, but for their parameters."""
    x, dy = (make_input((2, ROWS[0] // 2, ROWS[1]), dtype=dtype, seed=s) for s in (0, 8))
    weight, bias = (torch.randn(2, 1, ROWS[1], device=DEVICE) for _ in range(2))
    inputs, spec = Inputs(x, None, weight, bias), NormSpec("layer")
    with traffic.meter() as forward:
        _, _, stats = ENGINE.norm(inputs, spec, True)
    with traffic.meter() as backward:
        ENGINE.norm_backward(dy, inputs, None, stats, (True, False, True, True, False), spec)
    floors = FLOORS[tier, "plain"]
    check(forward, floors[0], x)
    check(backward, floors[1]._replace(launches=2), x)


@each_dtype
@pytest.mark.parametrize("norm", OF_ROWS)
@pytest.mark.parametrize("tier", ["streaming"], indirect=True)
def test_added_long_rows(tier, norm, few_blocks_of_rows, dtype):
    check_add(tier, norm, LONG_ROWS, dtype)
