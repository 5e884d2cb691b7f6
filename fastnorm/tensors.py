"""Tensors seen as (N, C, ...): layouts, and the dtype of statistics. It imports no kernel: the
engines import it."""

import math
from typing import TypeVar

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)
MaybeTensor = TypeVar("MaybeTensor", Tensor, Tensor | None)


def accumulation(x: Tensor) -> torch.dtype:
    """The dtype of statistics and partial sums: float64 for float64 tensors, else float32."""
    return accumulation_of(x.dtype)


def accumulation_of(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def accumulated(parameter: MaybeTensor, x: Tensor) -> MaybeTensor:
    """A parameter, contiguous and in the dtype of x's statistics."""
    return None if parameter is None else parameter.to(accumulation(x)).contiguous()


def dense(x: Tensor) -> Tensor:
    """x itself if it is contiguous or channels last in memory, else a copy."""
    if x.is_contiguous() or lies_channels_last(x):
        return x
    return x.contiguous()


def laid_out_as(x: Tensor, other: MaybeTensor) -> MaybeTensor:
    """`other`, of x's shape, in x's layout if x is contiguous or channels_last; else contiguous.

    It is copied only if its layout differs.
    """
    if other is None:
        return None
    if x.is_contiguous() or not lies_channels_last(x):
        return other.contiguous()
    if other.stride() == x.stride():
        return other
    return other.movedim(1, -1).contiguous().movedim(-1, 1)


def lies_channels_last(x: Tensor) -> bool:
    """Whether x (N, C, ...) is dense with its channels last, and not also contiguous."""
    if x.is_contiguous():
        return False
    if x.dim() == 4:  # the quickest test
        return x.is_contiguous(memory_format=torch.channels_last)
    return x.movedim(1, -1).is_contiguous()


def positions(x: Tensor) -> int:
    return math.prod(x.shape[2:])


def broadcast(coefficient: Tensor, x: Tensor) -> Tensor:
    return coefficient.view(*coefficient.shape, *[1] * (x.dim() - 2))
