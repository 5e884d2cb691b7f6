"""Tensors as kernels are given them: their memory layouts, and room for statistics of them."""

import math
from typing import TypeVar

import torch

ROW_NORMS = ("layer", "rms")  # whose x is seen as rows
Tensors = tuple[torch.Tensor | None, ...]
MaybeTensor = TypeVar("MaybeTensor", torch.Tensor, torch.Tensor | None)


def accumulation(x: torch.Tensor) -> torch.dtype:
    """The dtype of statistics and partial sums: float64 for float64 tensors, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def accumulators(x: torch.Tensor, elements: int) -> torch.Tensor | None:
    """Room for so many statistics or partial sums of x, unset; None for none."""
    return x.new_empty(elements, dtype=accumulation(x)) if elements else None


def contiguous(x: torch.Tensor | None) -> torch.Tensor | None:
    """The tensor itself where it is contiguous, else a copy."""
    return None if x is None else x.contiguous()


def dense(x: torch.Tensor) -> torch.Tensor:
    """x itself where it is contiguous or has its channels last in memory, else a copy."""
    if x.is_contiguous() or x.movedim(1, -1).is_contiguous():
        return x
    return x.contiguous()


def laid_out_as(x: torch.Tensor, other: MaybeTensor) -> MaybeTensor:
    """`other` in the memory layout of the dense x: itself where it has it, else a copy."""
    if other is None or (x.is_contiguous() and other.is_contiguous()):
        return other
    if x.is_contiguous():
        return other.contiguous()
    return other.movedim(1, -1).contiguous().movedim(-1, 1)


def dtypes_of(tensors: Tensors) -> tuple[torch.dtype | None, ...]:
    return tuple([None if tensor is None else tensor.dtype for tensor in tensors])


def itemsize_of(dtypes: tuple[torch.dtype | None, ...]) -> int:
    """Bytes an element of the first tensor, which is one."""
    (dtype,) = [dtype for dtype in dtypes[:1] if dtype is not None]
    return dtype.itemsize


def row_sizes(x: torch.Tensor, normalized_ndim: int) -> tuple[int, int]:
    """(R, L) of x, whose sizes may be symbolic: its rows are its last dimensions."""
    leading = x.dim() - normalized_ndim
    return math.prod(x.shape[:leading]), math.prod(x.shape[leading:])


def weight_rows(v: torch.Tensor, dim: int) -> torch.Tensor:
    """v with what belongs to one norm together in memory, in whatever order; a copy for a dim that
    is not the first."""
    if dim not in (-1, 0):
        return v.movedim(dim, 0).contiguous()
    return dense(v) if v.dim() > 1 else v.contiguous()


def from_weight_rows(rows: torch.Tensor, v: torch.Tensor, dim: int) -> torch.Tensor:
    """What `weight_rows` made of v, v's own shape and layout again."""
    return rows if dim in (-1, 0) else torch.empty_like(v).copy_(rows.movedim(0, dim))
