"""Weight normalisation w = g v / ||v|| (arXiv 1602.07868), forward and backward."""

import torch

from fastnorm.contract import Tensors
from fastnorm.tensors import laid_out_as

from ..tensors import from_weight_rows, weight_rows
from .calls import in_dtypes_of, of_one_dtype, pack_weight, pointer, run


def weight_norm(v: torch.Tensor, g: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """w in v's dtype and layout, and the float64 norms for weight_norm_backward.

    v is not empty. The norm is over all dimensions but `dim`, or over all if dim is -1. g has an
    element for each norm.
    """
    rows = weight_rows(v, dim)
    (given,), parameter_type = of_one_dtype((g,))
    w, R = torch.empty_like(rows), g.numel()
    norms = v.new_empty(R, dtype=torch.float64)
    job = pack_weight(
        rows.data_ptr(), pointer(given), 0, norms.data_ptr(), w.data_ptr(), 0,
        R, v.numel() // R, parameter_type, torch.get_num_threads(),
    )  # fmt: skip
    run("weight", rows, job)
    return from_weight_rows(w, v, dim), norms


def weight_norm_backward(
    dw: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    norms: torch.Tensor,
    dim: int,
    needs: tuple[bool, bool],
) -> Tensors:
    """(dv, dg); None if `needs` says that nobody wants it."""
    rows = weight_rows(v, dim)
    dw = laid_out_as(rows, dw if dim in (-1, 0) else dw.movedim(dim, 0))
    (given,), parameter_type = of_one_dtype((g,))
    assert given is not None
    dv = torch.empty_like(rows) if needs[0] else None
    dg = torch.empty_like(given) if needs[1] else None
    R = g.numel()
    job = pack_weight(
        rows.data_ptr(), pointer(given), dw.data_ptr(), norms.data_ptr(), pointer(dv), pointer(dg),
        R, v.numel() // R, parameter_type, torch.get_num_threads(),
    )  # fmt: skip
    run("weight_backward", rows, job)
    return None if dv is None else from_weight_rows(dv, v, dim), *in_dtypes_of((g,), (dg,))
