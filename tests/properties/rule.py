"""The rule for results: at most twice torch's own error, plus a term for rounding.

The term is the tolerance table's (tests/conftest.py) plus the effect of a few roundings of the
arguments. For sums that cancel, such as dx of a set of two values, the table's share of the largest
result says nothing.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import fastnorm.functional as F
from tests.conftest import epsilon_term, running
from tests.norms import STATS, Torch
from tests.properties.cases import WRITERS, Case, Tensors, results, tensors, tiled
from tests.properties.truth import Array, Rounding, Truth, as_tensor

ROUNDINGS = 32  # of each argument
Results = dict[str, torch.Tensor]


@dataclass
class Judged:
    """A case, its tensors, and the results of torch, in the dtypes that ours should have."""

    case: Case
    t: Tensors
    theirs: Results

    @classmethod
    def of(cls, case: Case) -> "Judged":
        t = tensors(case)
        return cls(case, t, torchs(case, t))

    def ours(self, backend: str) -> Results:
        with running(backend), tiled(self.case, backend):
            return results(F, self.case, self.t)

    def check(self, backend: str) -> None:
        """Run the case and apply the rule to all its results."""
        ours = self.ours(backend)
        rounded = [Truth(self.case, self.t, Rounding(self.case, seed)) for seed in range(3)]
        judges = [Truth(self.case, self.t), *rounded]
        margin = self._judge("y", [truth.y for truth in judges], ours["y"])
        if self._underflows(judges[0].z):
            return
        exact = self._named(judges, ours["y"], margin)
        theirs = self._named(judges[:1], self.theirs["y"], margin)
        for name, ours_of_it in ours.items():
            if name != "y":
                self._judge(name, exact[name], ours_of_it, theirs[name][0])

    def _underflows(self, z: Array) -> bool:
        """Whether y cannot say which way ReLU went: it is 0 on either side."""
        smallest = torch.finfo(self.case.dtype).smallest_normal
        return self.case.activation == "relu" and bool(((z != 0) & (abs(z) < smallest)).any())

    def _named(self, judges: list[Truth], y: torch.Tensor, margin: float) -> dict[str, list[Array]]:
        """Gradients and running statistics of each judge, by name. Where z is as near to ReLU's
        kink as roundings reach, y says on which side it was taken to be."""
        z = judges[0].z
        passed = y.double().cpu().numpy().reshape(z.shape) > 0
        active = np.where(abs(z) <= margin, passed, z > 0)
        found: dict[str, list[Array]] = {}
        for judge in judges:
            named = judge.gradients(active)
            if self.case.norm in (*WRITERS, "mean_train"):
                named |= judge.running()
            else:
                named |= {name: judge.p[name] for name in STATS if name in judge.p}
            for name, value in named.items():
                found.setdefault(name, []).append(value)
        return found

    def _judge(
        self, name: str, exact: list[Array], ours: torch.Tensor, theirs_exact: Array | None = None
    ) -> float:
        """Assert the rule for one result; returns the error it allows."""
        theirs, shape = self.theirs[name], ours.shape
        assert ours.dtype == theirs.dtype, f"{name} is {ours.dtype}, expected {theirs.dtype}"
        truth, *others = (as_tensor(value, shape) for value in exact)
        their_truth = truth if theirs_exact is None else as_tensor(theirs_exact, shape)
        judged = truth.isfinite() & theirs.isfinite()  # beyond the dtype's range torch is the truth
        judged &= truth.abs() < torch.finfo(ours.dtype).max / 2
        if not judged.any():
            return 0.0
        assert ours[judged].isfinite().all(), f"{name} is not finite where torch's is"
        if self.case.overflows:
            return 0.0
        error = distance(ours[judged], truth[judged])
        theirs_off = distance(theirs[judged], their_truth[judged])
        coarser = max(ours.dtype, self.case.accumulation, key=lambda d: torch.finfo(d).eps)
        table = epsilon_term(coarser, truth[judged]) + torch.finfo(coarser).smallest_normal
        moved = max((distance(other[judged], truth[judged]) for other in others), default=0.0)
        allowed = 2 * theirs_off + table + ROUNDINGS * moved
        assert error <= allowed, (
            f"{name}: error {error:.3e}, torch's own {theirs_off:.3e}, allowed {allowed:.3e} "
            f"({table:.1e} by the table, {ROUNDINGS * moved:.1e} for roundings)"
        )
        return allowed


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.double() - b).abs().max().item()


def torchs(case: Case, t: Tensors) -> Results:
    """torch's results. Where it does not take these dtypes together, those of parameters in the
    accumulation dtype, or of all tensors in it, rounded to what they should be."""
    wide = case.accumulation
    dtypes = ((case.dtype, case.parameter_dtype), (case.dtype, wide), (wide, wide))
    for attempt in dtypes:
        try:
            found = results(Torch, case, with_weight(case, t.copied(*attempt)))
            break
        except RuntimeError:
            if attempt == dtypes[-1]:
                raise
    wanted = {name: tensor.dtype for name, tensor in t.given().items()} | {"y": case.dtype}
    return {name: value.to(wanted.get(name)) for name, value in found.items()}


def error_of(function: Any) -> Exception | None:
    try:
        function()
    except Exception as error:
        return error
    return None


def with_weight(case: Case, t: Tensors) -> Tensors:
    """A weight of ones beside a lone bias: torch's group norm has no backward without."""
    if case.norm == "gn" and t.p["bias"] is not None and t.p["weight"] is None:
        t.p["weight"] = torch.ones_like(t.p["bias"])
    return t
