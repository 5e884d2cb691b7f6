"""The check made before any timing: the provider's values and gradients against float64."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.inputs import Inputs, make_inputs
from benchmarks.providers import Forward, eager, torch_norm
from benchmarks.shapes import Case


class WrongResult(AssertionError):
    """A result is farther from float64 than rounding explains."""


def step(forward: Forward, op: str, i: Inputs) -> tuple[Tensor, ...]:
    """One forward and backward: y and the gradients in the order of i.leaves(op)."""
    y = forward(i)
    return (y, *torch.autograd.grad(y, tuple(i.leaves(op).values()), i.dy))


def outputs(forward: Forward, op: str, i: Inputs) -> dict[str, Tensor]:
    """All results of one step, returned or written, by name."""
    found = dict(zip(("y", *i.leaves(op)), step(forward, op, i), strict=True))
    found |= {"running_mean": i.running_mean, "running_var": i.running_var}
    return {name: t.detach() for name, t in found.items()}


def _largest(t: Tensor) -> float:
    return float(torch.linalg.vector_norm(t, float("inf")))


def _euclidean(t: Tensor) -> float:
    return float(torch.linalg.vector_norm(t))


NORMS: dict[str, Callable[[Tensor], float]] = {"largest": _largest, "euclidean": _euclidean}


def errors(found: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[tuple[str, str], float]:
    """The norm of the error over the norm of the truth, for each output and each norm.

    The largest error shows a single wrong element, the Euclidean norm many slightly wrong ones.
    """
    relative = {}
    for name, exact in truth.items():
        difference = found[name] - exact
        for norm, size in NORMS.items():
            relative[name, norm] = size(difference) / (size(exact) or 1.0)
    return relative


def _away_from_the_kink(case: Case, i: Inputs) -> Inputs:
    """The inputs with dy = 0 if ReLU's argument is so near 0 that rounding decides its sign.

    There a correct gradient may be dy or 0.
    """
    if not case.fused.endswith("relu"):
        return i
    z = torch_norm(case, i.double()).detach()
    if i.residual is not None:
        z += i.residual.detach()
    margin = 8 * torch.finfo(case.dtype).eps * _largest(z)
    return i._replace(dy=i.dy * (z.abs() > margin))


def check(case: Case, forward: Forward, device: torch.device | str = "cpu") -> None:
    """Raise WrongResult unless the provider's step is about as near float64 as eager torch's.

    The truth is eager torch in float64 on the same device. The allowed error is 4 times eager
    torch's in the case's dtype. If that happens to be exact, it is some units of the result's eps:
    8 for a 16-bit one, 64 for float32, as parameters' gradients are sums over the whole tensor.
    """

    def inputs() -> Inputs:
        return _away_from_the_kink(case, make_inputs(case, device))

    definition = partial(eager, case)
    truth = outputs(definition, case.op, inputs().double())
    theirs = errors(outputs(definition, case.op, inputs()), truth)
    found = outputs(forward, case.op, inputs())
    for (name, norm), error in errors(found, truth).items():
        dtype = found[name].dtype
        units = 64 if dtype == torch.float32 else 8
        bound = max(4 * theirs[name, norm], units * torch.finfo(dtype).eps)
        if not error <= bound:  # in this form NaN counts as wrong
            raise WrongResult(
                f"{case.name}: {name} is off by {error:.1e} ({norm}), allowed {bound:.1e}"
            )
