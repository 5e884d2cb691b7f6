"""Tensors in the form that kernels take: sizes of rows, and memory for statistics."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastnorm.contract import Tensors
from fastnorm.tensors import MaybeTensor, accumulation, dense


def accumulators(x: torch.Tensor, elements: int) -> torch.Tensor | None:
    """Memory for this many statistics or partial sums of x, unset; None for 0."""
    return x.new_empty(elements, dtype=accumulation(x)) if elements else None


def contiguous(x: MaybeTensor) -> MaybeTensor:
    """The tensor itself if it is contiguous, else a copy."""
    return None if x is None else x.contiguous()


def dtypes_of(tensors: Tensors) -> tuple[torch.dtype | None, ...]:
    return tuple([None if tensor is None else tensor.dtype for tensor in tensors])


def itemsize_of(dtypes: tuple[torch.dtype | None, ...]) -> int:
    """Bytes an element of the first tensor; that one is never None."""
    (dtype,) = [dtype for dtype in dtypes[:1] if dtype is not None]
    return dtype.itemsize


def row_sizes(x: torch.Tensor, normalized_ndim: int) -> tuple[int, int]:
    """(R, L) of x, whose sizes may be symbolic; a row is x's last dimensions."""
    if normalized_ndim == 1:  # the usual case, in half the time
        *others, L = x.shape
        return math.prod(others), L
    leading = x.dim() - normalized_ndim
    return math.prod(x.shape[:leading]), math.prod(x.shape[leading:])


def parameter_rows(parameter: Tensor | None, x: Tensor, normalized_ndim: int) -> tuple[int, int]:
    """(A, inner) of a norm of rows: row r has row (r // inner) % A of the parameters, (A, L)."""
    if parameter is None or parameter.dim() == normalized_ndim:
        return 1, 1
    leading = x.dim() - normalized_ndim
    sizes = parameter.shape[:leading]
    behind = max((i for i, size in enumerate(sizes) if size != 1), default=-1) + 1
    return math.prod(sizes), math.prod(x.shape[behind:leading])


class ModulationRows(NamedTuple):
    """scale and shift as (A, L); their columns are neighbours in memory."""

    scale: Tensor
    shift: Tensor | None
    sizes: tuple[int, int, int, int]  # A, L, and the distance of neighbouring rows of either


def modulation_rows(
    weight: Tensor | None, bias: Tensor | None, scale: Tensor, shift: Tensor | None
) -> ModulationRows:
    """Views if memory allows: halves of one linear layer's output are not copied."""
    parameter = bias if weight is None else weight
    L = scale.shape[-1] if parameter is None else parameter.numel()
    A = scale.numel() // L
    scale = _columns_together(scale.reshape(A, L))
    shift = None if shift is None else _columns_together(shift.reshape(A, L))
    return ModulationRows(
        scale, shift, (A, L, scale.stride(0), 0 if shift is None else shift.stride(0))
    )


def _columns_together(rows: Tensor) -> Tensor:
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def weight_rows(v: torch.Tensor, dim: int) -> torch.Tensor:
    """v with the values of each norm together in memory, in any order; a copy if dim is not the
    first."""
    if dim not in (-1, 0):
        return v.movedim(dim, 0).contiguous()
    return dense(v) if v.dim() > 1 else v.contiguous()


def from_weight_rows(rows: torch.Tensor, v: torch.Tensor, dim: int) -> torch.Tensor:
    """A result of `weight_rows` in v's own shape and layout again."""
    return rows if dim in (-1, 0) else torch.empty_like(v).copy_(rows.movedim(0, dim))
