"""Parts of the formulas: float32 or float64, moments, gamma and beta."""

from collections.abc import Iterable

import torch
from torch import Tensor

from ..activations import activate


def upcast(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def normalise(x: Tensor, dims: Iterable[int], eps: float) -> Tensor:
    """(x - mean) / sqrt(var + eps), both over `dims`."""
    deviation, _, var = moments(x, dims)
    return deviation / (var + eps).sqrt()


def moments(x: Tensor, dims: Iterable[int]) -> tuple[Tensor, Tensor, Tensor]:
    """x - mean, and mean and biased variance over `dims`, kept as size 1."""
    dims = list(dims)
    deviation, mean = centre(x, dims)
    return deviation, mean, deviation.square().mean(dims, keepdim=True)


def centre(x: Tensor, dims: list[int]) -> tuple[Tensor, Tensor]:
    """x - mean and the mean over `dims`, kept as size 1.

    Centred twice: the second mean is the first one's rounding error, which matters if mean >> std.
    """
    first = x.mean(dims, keepdim=True)
    deviation = x - first
    error = deviation.mean(dims, keepdim=True)
    return deviation - error, first + error


def per_channel(parameter: Tensor, x: Tensor) -> Tensor:
    """A parameter (C,) or (N, C), shaped to broadcast with x."""
    N, C = (1, *parameter.shape)[-2:]
    return parameter.to(x.dtype).reshape(N, C, *[1] * (x.dim() - 2))


def channels_affine(y: Tensor, *parameters: Tensor | None) -> Tensor:
    """`affine` with weight, bias, scale and shift (C,) or (N, C)."""
    return affine(y, *(None if t is None else per_channel(t, y) for t in parameters))


def affine(
    y: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
) -> Tensor:
    """(weight y + bias) (1 + scale) + shift, all of which broadcast to y."""
    if weight is not None:
        y = y * weight.to(y.dtype)
    if bias is not None:
        y = y + bias.to(y.dtype)
    if scale is not None:
        y = y * (1 + scale.to(y.dtype))
    if shift is not None:
        y = y + shift.to(y.dtype)
    return y


def finish(y: Tensor, input: Tensor, activation: str | None, residual: Tensor | None) -> Tensor:
    """The residual, the activation; input's dtype."""
    if residual is not None:
        y = y + residual.to(y.dtype)
    return activate(y, activation).to(input.dtype)
