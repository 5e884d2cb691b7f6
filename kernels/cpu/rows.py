"""Layer and RMS normalisation of rows: x seen as (R, L), gamma and beta as (L,)."""

import torch

from ..masks import mask_bytes, side_input
from ..tensors import Tensors, contiguous, row_sizes
from .calls import ACTIVATIONS, in_dtype_of, of_one_dtype, pack_rows, pointer, run


def row_norm(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    *,
    norm: str,
    normalized_ndim: int,
    eps: float,
    activation: str | None,
    differentiable: bool,
    addend: torch.Tensor | None = None,
    total: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, tuple[torch.Tensor, ...]]:
    """y (contiguous, x's dtype), ReLU's mask beside a residual where `differentiable`, and the
    statistics of each row that row_norm_backward takes, in float64.

    With an addend y is the norm of x + addend, rounded, which `total` receives.
    """
    x, residual, addend = x.contiguous(), contiguous(residual), contiguous(addend)
    R, L = row_sizes(x, normalized_ndim)
    (weight, bias), parameter_type = of_one_dtype(weight, bias)
    y = torch.empty_like(x)
    masked = differentiable and side_input(activation, residual is not None) == "mask"
    bits = x.new_empty(mask_bytes(R, L), dtype=torch.uint8) if masked else None
    stats = torch.empty(2 * R, dtype=torch.float64)
    job = pack_rows(
        x.data_ptr(), pointer(addend), 0, 0, pointer(residual), pointer(bits), pointer(weight),
        pointer(bias), stats.data_ptr(), y.data_ptr(), pointer(total), 0, 0, 0,
        R, L, norm == "rms", ACTIVATIONS[activation], parameter_type,
        torch.get_num_threads(), eps,
    )  # fmt: skip
    run("rows", x, job)
    return y, bits, (stats,)


def row_norm_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    side: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    stats: tuple[torch.Tensor, ...],
    needs: tuple[bool, bool, bool, bool],
    *,
    norm: str,
    normalized_ndim: int,
    activation: str | None,
    dsum: torch.Tensor | None = None,
) -> Tensors:
    """(dx, dresidual, dweight, dbias); None where `needs` says that nobody asked.

    dx has dsum, the gradient that x itself has where it is a sum that was returned, added to it.
    """
    x, dy, side, dsum = x.contiguous(), dy.contiguous(), contiguous(side), contiguous(dsum)
    R, L = row_sizes(x, normalized_ndim)
    masked = side is not None and activation == "relu"
    residual, bits = (None, side) if masked else (side, None)
    (wide_weight, wide_bias), parameter_type = of_one_dtype(weight, bias)
    dx = torch.empty_like(x) if needs[0] else None
    fused = needs[1] and activation is not None
    dresidual = torch.empty_like(x) if fused else None
    dweight = torch.empty_like(wide_weight) if needs[2] and wide_weight is not None else None
    dbias = torch.empty_like(wide_bias) if needs[3] and wide_bias is not None else None
    if dx is not None or fused or dweight is not None or dbias is not None:
        job = pack_rows(
            x.data_ptr(), 0, dy.data_ptr(), pointer(dsum), pointer(residual), pointer(bits),
            pointer(wide_weight), pointer(wide_bias), stats[0].data_ptr(), pointer(dx), 0,
            pointer(dresidual), pointer(dweight), pointer(dbias), R, L, norm == "rms",
            ACTIVATIONS[activation], parameter_type, torch.get_num_threads(), 0.0,
        )  # fmt: skip
        run("rows_backward", x, job)
    dresidual = dresidual if fused else dy if needs[1] else None
    return dx, dresidual, in_dtype_of(weight, dweight), in_dtype_of(bias, dbias)
