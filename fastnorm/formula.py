"""What a call of a norm is apart from its tensors, its formula and the gradients by the formula."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from . import reference

Tensors = tuple[Tensor | None, ...]


class NormSpec(NamedTuple):
    """One norm with its numbers; every field is named as in `fastnorm.functional`."""

    # batch, instance, batch_instance, mean_only_batch, group, layer or rms
    norm: str
    groups: int = 1  # of group norm; of layer and RMS norm, the number of normalised dimensions
    use_input_stats: bool = True  # for the batch's statistics; all others are always the input's
    momentum: float = 0.0
    eps: float = 1e-5
    activation: str | None = None

    @property
    def of_rows(self) -> bool:
        """Whether statistics and parameters are those of the last dimensions, not of channels."""
        return self.norm in ("layer", "rms")


class _Fused(TypedDict):
    activation: str | None
    residual: Tensor | None


def formula(
    spec: NormSpec,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    rho: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
) -> Tensor:
    """`spec` of x from plain PyTorch operators: any device, any transform, any derivative."""
    batch = (weight, bias, spec.use_input_stats, spec.momentum, spec.eps)
    fused = _Fused(activation=spec.activation, residual=residual)
    if spec.norm == "layer":
        shape = x.shape[x.dim() - spec.groups :]
        return reference.layer_norm(x, shape, weight, bias, spec.eps, **fused)
    if spec.norm == "rms":
        shape = x.shape[x.dim() - spec.groups :]
        return reference.rms_norm(x, shape, weight, spec.eps, **fused)
    if spec.norm == "group":
        return reference.group_norm(x, spec.groups, weight, bias, spec.eps, **fused)
    if spec.norm == "batch":
        return reference.batch_norm(x, running_mean, running_var, *batch, **fused)
    if spec.norm == "mean_only_batch":
        numbers = spec.use_input_stats, spec.momentum
        return reference.mean_only_batch_norm(x, running_mean, bias, *numbers, **fused)
    if spec.norm == "instance":
        return reference.instance_norm(x, running_mean, running_var, *batch, **fused)
    assert rho is not None, "batch_instance_norm requires it"
    return reference.batch_instance_norm(x, running_mean, running_var, rho, *batch, **fused)


def add_formula(
    spec: NormSpec, x: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(norm(x + residual), that sum), the norm being one of rows."""
    shape = x.shape[x.dim() - spec.groups :]
    if spec.norm == "layer":
        return reference.add_layer_norm(x, residual, shape, weight, bias, spec.eps)
    return reference.add_rms_norm(x, residual, shape, weight, spec.eps)


def formula_gradients(
    dy: Tensor, inputs: Sequence[Any], spec: NormSpec, needs: Sequence[bool]
) -> Tensors:
    """The gradients of the forward's first five inputs, by the formula."""

    def norm(*primals: Any) -> tuple[Tensor]:
        return (formula(spec, *primals, *inputs[5:]),)

    return pull_back(norm, inputs[:5], [i for i in range(5) if needs[i]], (dy,))


def pull_back(
    function: Callable[..., Tensors],
    inputs: Sequence[Tensor | None],
    sought: list[int],
    cotangents: Tensors,
) -> Tensors:
    """The vector-Jacobian product of `function` for the inputs at the indices `sought`."""

    def of_sought(*chosen: Tensor) -> Tensors:
        everything = list(inputs)
        for i, tensor in zip(sought, chosen, strict=True):
            everything[i] = tensor
        return tuple(
            out
            for out, cotangent in zip(function(*everything), cotangents, strict=True)
            if cotangent is not None and out is not None
        )

    given = tuple(c for c in cotangents if c is not None)
    grads: list[Tensor | None] = [None] * len(inputs)
    if sought and given:
        pullback = torch.func.vjp(of_sought, *[inputs[i] for i in sought])[1]
        for i, grad in zip(sought, pullback(given), strict=True):
            grads[i] = grad
    return tuple(grads)
