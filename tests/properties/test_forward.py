"""Forward: values, dtype, strides; nothing else is written."""

from dataclasses import replace

import torch
from hypothesis import strategies as st

import fastnorm.functional as F
from tests.conftest import running
from tests.norms import OF_ROWS, STATS, Torch
from tests.properties.cases import WRITERS, Case, call, tensors, tiled
from tests.properties.holds import holds
from tests.properties.rule import Judged
from tests.properties.strategies import cases
from tests.properties.truth import affected

BAD = (float("nan"), float("inf"), -float("inf"))


@holds(case=cases(needs=()))
def test_value(backend: str, case: Case) -> None:
    """y, and the running statistics with it, by the rule."""
    Judged.of(case).check(backend)


@holds(case=cases())
def test_memory(backend: str, case: Case) -> None:
    """y has a memory of its own, x's format where that is one of torch's, and what is given to the
    call, running statistics in training aside, keeps its values and its version."""
    t = tensors(case)
    given_to_it = t.given()
    if case.norm in (*WRITERS, "mean_train"):
        given_to_it = {k: v for k, v in given_to_it.items() if not k.startswith("running")}
    before = {
        name: (tensor.detach().clone(), tensor._version) for name, tensor in given_to_it.items()
    }
    with running(backend), tiled(case, backend):
        y = call(F, case, t)
        dx = torch.autograd.grad(y, t.x, t.dy)[0] if t.x.requires_grad else None
    for name, (values, version) in before.items():
        assert torch.equal(given_to_it[name], values), f"{name} was overwritten"
        assert given_to_it[name]._version == version, f"{name} was written"
    assert y.untyped_storage().data_ptr() not in {
        tensor.untyped_storage().data_ptr() for tensor in t.given().values()
    }
    check_format(case, t.x, y)
    if dx is not None and backend != "reference":  # whose autograd makes its layout dy's
        check_format(case, t.x, dx)


def check_format(case: Case, x: torch.Tensor, y: torch.Tensor) -> None:
    if case.norm in OF_ROWS:
        assert y.is_contiguous()
    elif x.is_contiguous():
        assert y.is_contiguous(), f"a contiguous {x.stride()} became {y.stride()}"
    elif x.movedim(1, -1).is_contiguous():
        assert y.movedim(1, -1).is_contiguous(), f"channels last {x.stride()} became {y.stride()}"


@holds(
    case=cases(values="normal", mean=0.0, std=1.0, eps=1.0, needs=()),
    bad=st.sampled_from(BAD),
    where=st.floats(0, 1, exclude_max=True, width=16),
    which=st.sampled_from(["x", "residual"]),
)
def test_nan_and_inf_stay_in_their_set(
    backend: str, case: Case, bad: float, where: float, which: str
) -> None:
    """One bad value spoils what it spoils in torch, in y and in the running statistics, and outside
    its sets y is what it is without."""
    case = replace(case, layout=writable(case.layout), residual=writable(case.residual))
    if case.norm == "mean_train":
        # Beside an Inf all is NaN, the plain x - mean -Inf: of one of them ReLU would make 0.
        case = replace(case, activation=None)
    t = tensors(case)
    target = t.x if which == "x" or t.residual is None else t.residual
    index = int(where * target.numel())
    position = tuple(int(i) for i in torch.unravel_index(torch.tensor(index), target.shape))
    target[position] = bad
    wide = case.accumulation
    unspoilt = call(Torch, case, tensors(case).copied(wide, wide))
    theirs_t = t.copied(wide, wide)
    theirs = call(Torch, case, theirs_t)
    with running(backend), tiled(case, backend):
        y = call(F, case, t)
    assert torch.equal(y.isfinite(), theirs.to(y.dtype).isfinite()), "y is not as spoilt as torch's"
    spared = ~affected(case, target is t.x, index)
    slack = 64 * torch.finfo(y.dtype).eps  # of values about 1
    assert torch.allclose(y[spared].to(wide), unspoilt[spared], slack, slack)
    for name in STATS:
        if t.p[name] is not None:
            assert torch.equal(t.p[name].isfinite(), theirs_t.p[name].isfinite()), name


def writable(layout: str | None) -> str | None:
    return "contiguous" if layout == "expanded" else layout
