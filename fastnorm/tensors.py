"""Tensors seen as (N, C, ...): layouts, and the dtype that statistics and parameters are in."""

import math

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def accumulated(x: Tensor) -> torch.dtype:
    """The dtype of statistics: float64 for float64 tensors, else float32."""
    return torch.promote_types(x.dtype, torch.float32)


def accumulation(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    """A parameter, contiguous and in the dtype of the statistics."""
    if parameter is None:
        return None
    return parameter.to(accumulated(x)).contiguous()


def laid_out_as(x: Tensor, z: Tensor) -> Tensor:
    """z, of x's shape, in memory as a contiguous or channels_last x is; else contiguous."""
    if not lies_channels_last(x):
        return z.contiguous()
    return z if z.stride() == x.stride() else z.movedim(1, -1).contiguous().movedim(-1, 1)


def lies_channels_last(x: Tensor) -> bool:
    """Whether x (N, C, ...) is dense with its channels last, and not contiguous as well."""
    if x.is_contiguous():
        return False
    if x.dim() == 4:  # the quickest way to ask
        return x.is_contiguous(memory_format=torch.channels_last)
    return x.movedim(1, -1).is_contiguous()


def positions(x: Tensor) -> int:
    return math.prod(x.shape[2:])


def broadcast(coefficient: Tensor, x: Tensor) -> Tensor:
    return coefficient.view(*coefficient.shape, *[1] * (x.dim() - 2))
