"""Tensors without elements: like torch, which takes some and refuses others."""

import torch

import fastnorm
import fastnorm.functional as F
from tests.conftest import running
from tests.norms import GRADS, Torch
from tests.properties.cases import Case, results, tensors
from tests.properties.holds import holds
from tests.properties.rule import error_of, with_weight
from tests.properties.strategies import empty_cases


@holds(case=empty_cases())
def test_empty(backend: str, case: Case) -> None:
    """torch's shapes and gradients where it answers. Running statistics stay: torch makes NaN of
    some."""
    t, wide = tensors(case), case.accumulation
    copies = with_weight(case, t.copied(wide, wide))
    before = {name: p.detach().clone() for name, p in t.p.items() if p is not None}
    theirs = {}
    theirs_error = error_of(lambda: theirs.update(results(Torch, case, copies)))
    if theirs_error is not None:
        with fastnorm.use_backend(backend):
            ours_error = error_of(lambda: results(F, case, t))
        assert ours_error is None or isinstance(ours_error, type(theirs_error)), repr(ours_error)
    else:
        with running(backend, launches=False):
            ours = results(F, case, t)
        for name, value in ours.items():
            if name not in before or name in GRADS:
                assert value.shape == theirs[name].shape, name
                assert torch.equal(value.to(wide), theirs[name].nan_to_num()), name
    for name, values in before.items():
        assert torch.equal(t.p[name], values), f"{name} was written"
