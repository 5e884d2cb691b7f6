"""Running statistics: their values; a refused call does not touch them."""

from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st

import fastnorm
import fastnorm.functional as F
from tests.conftest import DEVICE, running
from tests.norms import STATS, Torch
from tests.properties.cases import WITH_STATS, WRITERS, Case, Tensors, call, tensors, tiled
from tests.properties.holds import holds
from tests.properties.rule import Judged, error_of
from tests.properties.strategies import cases


@holds(case=cases(norms=WRITERS, needs=(), activation=None, residual=None))
def test_update(backend: str, case: Case) -> None:
    """(1 - momentum) running + momentum new, by the rule."""
    Judged.of(case).check(backend)


@holds(
    case=cases(norms=WRITERS, values="normal", needs=(), layout="contiguous"),
    bad=st.sampled_from([float("nan"), float("inf")]),
    channel=st.integers(0, 32),
)
def test_bad_channel_spoils_no_other(backend: str, case: Case, bad: float, channel: int) -> None:
    t = tensors(case)
    channel %= case.shape[1]
    t.x[0, channel] = bad
    with running(backend), tiled(case, backend):
        call(F, case, t)
    others = torch.arange(case.shape[1], device=DEVICE) != channel
    for name in STATS:
        assert t.p[name][others].isfinite().all(), name
        assert case.momentum == 0 or not t.p[name][channel].isfinite(), name


def wrong_size(case: Case) -> torch.Tensor:
    return torch.ones(case.shape[1] + 1, dtype=case.parameter_dtype, device=DEVICE)


# What can be wrong with a call, one thing at a time: of two errors torch may see another first.
WRONG: dict[str, Any] = {
    "weight": wrong_size,
    "bias": wrong_size,
    "running_mean": wrong_size,
    "running_var": wrong_size,
    "eps": lambda case: -1.0,
    "momentum": lambda case: None,
}


@holds(
    case=cases(norms=WITH_STATS, values="normal", needs=()),
    wrong=st.sampled_from(sorted(WRONG)),
)
def test_refused_arguments(backend: str, case: Case, wrong: str) -> None:
    """What torch refuses is refused with its class, and nothing is written, here or there."""
    refused(backend, case, tensors(case), {wrong: WRONG[wrong](case)})


@holds(case=cases(norms=WRITERS, values="normal", needs=(), residual=None))
def test_refused_single_value(backend: str, case: Case) -> None:
    """One value has no variance."""
    batch = 1 if case.norm == "bn_train" else case.shape[0]
    case = replace(case, shape=(batch, case.shape[1], *[1] * max(len(case.shape) - 2, 1)))
    refused(backend, case, tensors(case), {})


def refused(backend: str, case: Case, t: Tensors, other: dict[str, Any]) -> None:
    before = {name: t.p[name].clone() for name in STATS}
    wide = case.accumulation  # of several dtypes torch may refuse the mixture
    theirs = error_of(lambda: call(Torch, case, tensors(case).copied(wide, wide), **other))
    with fastnorm.use_backend(backend):
        ours = error_of(lambda: call(F, case, t, **other))
    if theirs is not None:
        assert isinstance(ours, type(theirs)), f"{ours!r}, where torch raises {theirs!r}"
    if ours is not None:
        for name, values in before.items():
            assert torch.equal(t.p[name], values), f"{name} was written by a call that raised"
