"""Backward: the gradients that were asked for."""

from dataclasses import replace

import torch
from hypothesis import strategies as st

import fastnorm.functional as F
from tests.conftest import running
from tests.norms import Torch
from tests.properties.cases import Case, results, tensors, tiled
from tests.properties.holds import holds
from tests.properties.rule import Judged, with_weight
from tests.properties.strategies import LEAVES, cases


@holds(case=cases())
def test_gradients(backend: str, case: Case) -> None:
    """Those of all leaves that require one, by the rule, whichever the others are."""
    Judged.of(case).check(backend)


@holds(
    case=cases(values="normal", mean=0.0, std=1.0, eps=1.0, needs=LEAVES, gradient="contiguous"),
    bad=st.sampled_from([float("nan"), float("inf")]),
    where=st.floats(0, 1, exclude_max=True, width=16),
)
def test_nan_in_dy_stays_in_its_set(backend: str, case: Case, bad: float, where: float) -> None:
    """One bad value of dy spoils the gradients that it spoils in torch, no others."""
    case = replace(case, activation=None if case.activation == "relu" else case.activation)
    t = tensors(case)
    t.dy.view(-1)[int(where * t.dy.numel())] = bad
    wide = case.accumulation
    theirs = results(Torch, case, with_weight(case, t.copied(wide, wide)))
    with running(backend), tiled(case, backend):
        ours = results(F, case, t)
    for name, value in ours.items():
        expected = theirs[name].to(value.dtype).isfinite()
        assert torch.equal(value.isfinite(), expected), f"{name} is not as spoilt as torch's"
