"""Weight normalisation by ATen's operator, which takes rows."""

import torch
from torch import Tensor

from .operators import accumulated, aten

Tensors = tuple[Tensor | None, ...]


def weight_norm(v: Tensor, g: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """(w, norms) of v with elements; the norm is over all dimensions but `dim`, -1: over all."""
    rows = _weight_rows(v, dim)
    w, norms = torch._weight_norm_interface(rows, g.to(rows.dtype).reshape(-1, 1), 0)
    return _from_weight_rows(w, v, dim), norms


def weight_norm_backward(
    dw: Tensor, v: Tensor, g: Tensor, norms: Tensor, dim: int, needs: tuple[bool, bool]
) -> Tensors:
    """(dv, dg); None where `needs` says that nobody asked."""
    rows = _weight_rows(v, dim)
    wide_g = g.to(rows.dtype).reshape(-1, 1)
    dv, dg = aten._weight_norm_interface_backward(_weight_rows(dw, dim), rows, wide_g, norms, 0)
    return (
        _from_weight_rows(dv, v, dim) if needs[0] else None,
        dg.to(g.dtype).view(g.shape) if needs[1] else None,
    )


def _weight_rows(v: Tensor, dim: int) -> Tensor:
    """v with a row for each norm, in the dtype of the statistics."""
    rows = v.reshape(1, -1) if dim == -1 else v.movedim(dim, 0).reshape(v.shape[dim], -1)
    return rows.to(accumulated(v)).contiguous()


def _from_weight_rows(rows: Tensor, v: Tensor, dim: int) -> Tensor:
    """What `_weight_rows` made of v, v's own shape, dtype and layout again."""
    if dim == -1 or v.dim() == 1:
        return rows.view(v.shape).to(v.dtype)
    moved = rows.view(v.movedim(dim, 0).shape).movedim(0, dim).to(v.dtype)
    return moved if moved.stride() == v.stride() else torch.empty_like(v).copy_(moved)
