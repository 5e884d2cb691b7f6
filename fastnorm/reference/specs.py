"""The formula of a call, by its inputs and its spec, and the gradients by that formula."""

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor

from ..contract import Inputs, NormSpec, Tensors
from .channels import (
    batch_instance_norm,
    batch_norm,
    group_norm,
    instance_norm,
    mean_only_batch_norm,
)
from .rows import add_layer_norm, add_rms_norm, layer_norm, rms_norm


class _Fused(TypedDict):
    activation: str | None
    residual: Tensor | None


def formula(inputs: Inputs, spec: NormSpec) -> Tensor:
    """The norm from plain PyTorch operators: any device, any transform, any derivative."""
    x, residual, weight, bias, rho, running_mean, running_var = inputs
    batch = (weight, bias, spec.use_input_stats, spec.momentum, spec.eps)
    fused = _Fused(activation=spec.activation, residual=residual)
    if spec.norm == "layer":
        shape = x.shape[x.dim() - spec.groups :]
        return layer_norm(x, shape, weight, bias, spec.eps, **fused)
    if spec.norm == "rms":
        shape = x.shape[x.dim() - spec.groups :]
        return rms_norm(x, shape, weight, spec.eps, bias=bias, **fused)
    if spec.norm == "group":
        return group_norm(x, spec.groups, weight, bias, spec.eps, **fused)
    if spec.norm == "batch":
        return batch_norm(x, running_mean, running_var, *batch, **fused)
    if spec.norm == "mean_only_batch":
        numbers = spec.use_input_stats, spec.momentum
        return mean_only_batch_norm(x, running_mean, bias, *numbers, weight=weight, **fused)
    if spec.norm == "instance":
        return instance_norm(x, running_mean, running_var, *batch, **fused)
    assert rho is not None, "batch_instance_norm requires it"
    return batch_instance_norm(x, running_mean, running_var, rho, *batch, **fused)


def add_formula(inputs: Inputs, spec: NormSpec) -> tuple[Tensor, Tensor]:
    """(norm(x + residual), that sum), the norm being one of rows."""
    x, residual, weight, bias = inputs[:4]
    assert residual is not None, "there is nothing to add"
    shape = x.shape[x.dim() - spec.groups :]
    if spec.norm == "layer":
        return add_layer_norm(x, residual, shape, weight, bias, spec.eps)
    return add_rms_norm(x, residual, shape, weight, spec.eps, bias=bias)


def formula_gradients(dy: Tensor, inputs: Inputs, spec: NormSpec, needs: Sequence[bool]) -> Tensors:
    """The gradients of the forward's first five inputs, by the formula."""

    def norm(*primals: Any) -> tuple[Tensor]:
        return (formula(Inputs._make((*primals, *inputs[5:])), spec),)

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
