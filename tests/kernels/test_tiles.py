"""Tiny tiles in the interpreter: many units, members, pieces and tiles in each tier."""

from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

import fastnorm.functional as F
from fastnorm.contract import NormSpec
from fastnorm.kernels import tiers, tilings
from fastnorm.kernels.channel_types import Backward
from fastnorm.kernels.geometry import Sets, View
from fastnorm.kernels.plans import backward_plan, planned
from fastnorm.kernels.tensors import dtypes_of
from tests.conftest import assert_close, make_input, running
from tests.kernels.tilings import interpreted, tiny_tilings
from tests.norms import OF_ROWS, STATS, Torch, call, double, grad_targets, make_params

pytestmark = interpreted


class Case(NamedTuple):
    """A norm of a shape, and the sizes of tiles that make it many of them."""

    norm: str
    layout: str
    shape: tuple[int, ...]
    groups: int = 0
    streaming_tile: int = 32
    enough: int = (
        16  # programs of a pass, 12 warps an SM: some pieces of a unit, of some tiles each
    )

    def __str__(self) -> str:
        groups = f"{self.groups} groups " if self.groups else ""
        return f"{self.norm} {groups}{self.layout}"


# Sizes are no powers of two, the last unit, row block, piece and tile are remainders.
ONE_PROGRAM = [
    Case(norm, layout, shape, groups * shape[1] // 3)
    for layout, shape in (("contiguous", (2, 9, 4, 5)), ("channels_last", (2, 18, 4, 5)))
    for norm, groups in [
        ("bn_train", 0), ("in", 0), ("in_running", 0), ("bin_train", 0), ("bin_eval", 0), ("gn", 1),
        ("mean_train", 0),
    ]
] + [
    Case("gn", "contiguous", (2, 9, 4, 5), 1),
    Case("gn", "channels_last", (2, 18, 4, 5), 1),
    Case("ln", "contiguous", (33, 10)),
    Case("rms", "contiguous", (33, 10)),
]  # fmt: skip
PARTS = [
    Case("bn_train", "contiguous", (3, 3, 5, 7), streaming_tile=16, enough=8),
    Case("mean_train", "contiguous", (3, 3, 5, 7), enough=8),
    Case("in", "contiguous", (2, 3, 5, 11), enough=6),
    Case("in_running", "contiguous", (2, 3, 5, 11), enough=6),
    Case("bin_train", "contiguous", (3, 3, 5, 7), enough=12),
    Case("bin_eval", "contiguous", (2, 3, 5, 7), enough=8),
    Case("gn", "contiguous", (2, 6, 5, 11), 2, enough=12),
    Case("gn", "contiguous", (2, 6, 5, 11), 1, enough=10),
    Case("bn_train", "channels_last", (3, 70, 3, 3), 0, 64, 18),
    Case("mean_train", "channels_last", (3, 70, 3, 3), 0, 64, 18),
    Case("in", "channels_last", (2, 6, 5, 7), 0, 128, 4),
    Case("in_running", "channels_last", (2, 6, 5, 7), 0, 128, 4),
    Case("bin_train", "channels_last", (3, 20, 3, 3), 0, 32, 18),
    Case("bin_eval", "channels_last", (2, 6, 5, 7), 0, 128, 4),
    Case("gn", "channels_last", (2, 6, 5, 7), 2, 128, 4),
    Case("gn", "channels_last", (2, 70, 25), 1, 64, 36),  # a set of two row blocks
    Case("ln", "contiguous", (5, 100), enough=10),
    Case("rms", "contiguous", (5, 100), enough=10),
]
FUSIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "relu": {"activation": "relu"},
    "relu residual": {"activation": "relu", "residual": True},
    "silu residual": {"activation": "silu", "residual": True},
}


@pytest.fixture
def chosen():
    """Tiny tiles; the tier and geometry of each plan that is made."""
    with tiny_tilings() as found:
        yield found


def apply(functional, case, x, p, **kwargs):
    if case.norm == "gn":
        return functional.group_norm(x, case.groups, p["weight"], p["bias"], **kwargs)
    return call(functional, case.norm.removesuffix("_running"), x, p, **kwargs)


def check(case, fusion, tier=None):
    """y, all gradients and the running statistics against torch; returns the kernels launched."""
    x = make_input(case.shape, case.layout, mean=5.0)
    ramp = torch.linspace(0, 3, x[0].numel(), dtype=x.dtype).view(x[:1].shape)
    x = (x + ramp).requires_grad_()  # each tile has a mean of its own
    dy = make_input(case.shape, case.layout, seed=8)
    kwargs = dict(FUSIONS[fusion])
    if "residual" in kwargs:
        kwargs["residual"] = make_input(case.shape, case.layout, seed=7, requires_grad=True)
    p = make_params(case.norm, case.shape, requires_grad=True)
    if case.norm == "in_running":
        p |= make_params("in_eval", case.shape, requires_grad=True)
    theirs = double(p, requires_grad=True)

    def results(functional, p):
        y = apply(functional, case, x, p, **kwargs)
        targets = grad_targets(x, p)
        if "residual" in kwargs:
            targets["residual"] = kwargs["residual"]
        found = torch.autograd.grad(y, list(targets.values()), dy)
        return {"y": y.detach(), **dict(zip(targets, found, strict=True))}

    with running("triton") as launched:
        if tier is None:
            ours = results(F, p)
        else:
            with tiers.force(tier):
                ours = results(F, p)
    for name, exact in results(Torch, theirs).items():
        # the gradient of rho is a sum of differences of nearly equal x_hat: it cancels
        slack = torch.finfo(x.dtype).eps * x.numel() if name == "rho" else 0.0
        assert_close(ours[name], exact, name, slack)
    for name in STATS:
        if p[name] is not None:
            assert_close(p[name], theirs[name], name)
    return launched


# Those of the cases that are fused with something else than a mask of bits too.
FUSED = {
    "bin_eval contiguous": "relu",
    "gn 1 groups contiguous": "plain",
    "bn_train channels_last": "silu residual",
    "ln contiguous": "silu residual",
    "rms contiguous": "silu residual",
}


def with_fusions(cases):
    return [
        pytest.param(case, fusion, id=f"{case} {fusion}")
        for case in cases
        for fusion in ("relu residual", FUSED.get(str(case)))
        if fusion is not None
    ]


def in_pieces(cases):
    """Some pieces of some tiles; for a few cases all of a unit in one, and a tile each."""
    return [
        pytest.param(case, pieces, id=f"{case} {pieces}")
        for case in cases
        for pieces in ("some pieces", "one piece", "a tile a piece")
        if pieces == "some pieces" or str(case) in FUSED
    ]


@pytest.mark.parametrize(("case", "fusion"), with_fusions(ONE_PROGRAM))
def test_one_program(chosen, case, fusion):
    """Whole sets in a program, several of them where they are small."""
    launched = check(case, fusion, "one_program")
    if case.norm in OF_ROWS:
        assert launched == ["row_norm_kernel", "row_norm_backward_kernel", "add_shares_kernel"]
        assert all(shape.BLOCK_R > 1 for _, shape in chosen)
    else:
        assert launched == ["resident_kernel", "resident_backward_kernel"]
    assert [tier for tier, _ in chosen] == ["one_program"] * 2
    assert all(shape.units > 1 and shape.members == 1 for _, shape in chosen)


@pytest.mark.parametrize(("case", "pieces"), in_pieces(PARTS))
def test_streaming(chosen, monkeypatch, case, pieces):
    """A unit's pieces are merged by the last of its programs to arrive."""
    programs = {"one piece": 1, "some pieces": case.enough, "a tile a piece": 10**6}[pieces]
    monkeypatch.setattr(tilings, "STREAMING_TILE", case.streaming_tile)
    monkeypatch.setattr(tilings, "ENOUGH_PROGRAMS", programs)
    fusion = "relu residual" if pieces == "some pieces" else FUSED[str(case)]
    launched = check(case, fusion, "streaming")
    assert [tier for tier, _ in chosen] == ["streaming"] * 2
    if case.norm in OF_ROWS:
        forward = ["row_moments_kernel", "row_apply_kernel"]
        assert launched == [*forward, "row_sums_kernel", "row_dx_kernel"]
        assert all(shape.members > 1 and shape.units > 1 for _, shape in chosen)
        return
    forward = ["moments_kernel", "apply_kernel"]
    assert launched == [*forward, "gradient_sums_kernel", "apply_backward_kernel"]
    for _, shape in chosen:
        assert shape.units > 1
        assert (shape.parts > 1, shape.steps > 1) == (programs > 1, programs < 10**6)
        if case.groups == 1:
            assert shape.members > shape.parts  # row blocks
        if case.norm == "bn_train" and case.layout == "contiguous":
            assert 1 < shape.BLOCK_N < case.shape[0]


@pytest.mark.parametrize(
    ("S", "width"), [(65536, 1024), (3136, 256), (784, 128), (196, 256), (56, 64)]
)
def test_rows_of_instances_waste_little(monkeypatch, S, width):
    """As wide as they can be: each instance's last row is filled, but for a twelfth, or as far as
    narrower ones would fill it."""
    monkeypatch.setattr(tilings, "launch", SimpleNamespace(INTERPRETED=False))
    view = View(64, 32, S, channels_last=False, itemsize=2)
    found = tilings.streaming(view, Sets(1, True, False), True, masked=True)
    assert (found.rows, found.lanes, found.BLOCK_S) == (True, 1, width)
    assert tilings.STREAMING_TILE // width == found.BLOCK_N
    assert found.constants()["BLOCK_S"] == tilings.STREAMING_TILE


@pytest.mark.parametrize(("S", "warps"), [(512, 4), (520, 1), (1024, 1), (1032, 2)])
def test_a_set_that_fills_one_warp(monkeypatch, S, warps):
    monkeypatch.setattr(tilings, "launch", SimpleNamespace(INTERPRETED=False))
    view = View(64, 32, S, channels_last=False, itemsize=2)
    found = tilings.one_program(view, Sets(1, False, False), False, False)
    assert found is not None and found.num_warps == warps


@pytest.mark.parametrize("tier", ["one_program", "streaming"])
@pytest.mark.parametrize("norm", ["batch", "batch_instance", "instance"])
def test_only_a_second_launch_gets_sums_of_sets(norm, tier):
    """Memory for them costs host time; a single launch keeps them in registers."""
    x = torch.empty(2, 8, 4, 4)
    t = Backward(x, x, weight=torch.empty(8), bias=torch.empty(8), stats=torch.empty(48))
    spec = planned(NormSpec(norm))
    needs = (True, False, True, True, norm == "batch_instance")
    plan = backward_plan(x.shape, True, dtypes_of(t), spec, False, needs, (False, tier))
    assert (plan.sums == 0) == (plan.second is None) == (tier == "one_program")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_batch_norm_by_running_statistics(chosen, monkeypatch, layout):
    """No statistics to take: forward one launch, backward the sums for dgamma and dbeta."""
    monkeypatch.setattr(tilings, "STREAMING_TILE", 128)
    monkeypatch.setattr(tilings, "ENOUGH_PROGRAMS", 16)
    launched = check(Case("bn_eval", layout, (3, 20, 5, 7)), "relu residual")
    assert launched == ["apply_kernel", "gradient_sums_kernel", "apply_backward_kernel"]
