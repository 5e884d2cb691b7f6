"""Layer and RMS normalisation of rows: x seen as (R, L), gamma and beta as (L,)."""

import torch
from torch import Tensor

from fastnorm.contract import Inputs, NormSpec, Outputs, Tensors

from ..masks import mask_for
from ..tensors import contiguous, row_sizes
from .calls import ACTIVATIONS, in_dtype_of, of_one_dtype, pack_rows, pointer, run


def row_norm(inputs: Inputs, spec: NormSpec, differentiable: bool) -> Outputs:
    """y (contiguous, x's dtype), ReLU's mask beside a residual where `differentiable`, and the
    statistics of each row that row_norm_backward takes, in float64."""
    x, residual = inputs.x.contiguous(), contiguous(inputs.residual)
    bits = mask_for(x, residual is not None, spec, differentiable)
    y, stats = _norm(x, None, None, residual, bits, inputs, spec)
    return y, bits, stats


def row_add_norm(inputs: Inputs, spec: NormSpec) -> tuple[Tensor, Tensor, Tensor]:
    """The norm of x + residual, rounded, that sum (both contiguous), and the statistics."""
    x, addend = inputs.x.contiguous(), contiguous(inputs.residual)
    total = torch.empty_like(x)
    y, stats = _norm(x, addend, total, None, None, inputs, spec)
    return y, total, stats


def _norm(
    x: Tensor,
    addend: Tensor | None,
    total: Tensor | None,
    residual: Tensor | None,
    bits: Tensor | None,
    inputs: Inputs,
    spec: NormSpec,
) -> tuple[Tensor, Tensor]:
    """y and the statistics; of `inputs` only the parameters are read."""
    R, L = row_sizes(x, spec.groups)
    (weight, bias), parameter_type = of_one_dtype(inputs.weight, inputs.bias)
    y, stats = torch.empty_like(x), torch.empty(2 * R, dtype=torch.float64)
    job = pack_rows(
        x.data_ptr(), pointer(addend), 0, 0, pointer(residual), pointer(bits), pointer(weight),
        pointer(bias), stats.data_ptr(), y.data_ptr(), pointer(total), 0, 0, 0,
        R, L, spec.norm == "rms", ACTIVATIONS[spec.activation], parameter_type,
        torch.get_num_threads(), spec.eps,
    )  # fmt: skip
    run("rows", x, job)
    return y, stats


def row_norm_backward(
    dy: Tensor,
    inputs: Inputs,
    mask: Tensor | None,
    stats: Tensor,
    needs: tuple[bool, ...],
    spec: NormSpec,
    dsum: Tensor | None = None,
) -> Tensors:
    """(dx, dresidual, dweight, dbias); None where `needs` says that nobody asked.

    dx has dsum, the gradient that x itself has where it is a sum that was returned, added to it.
    """
    weight, bias, fused = inputs.weight, inputs.bias, spec.activation is not None
    x, dy = inputs.x.contiguous(), dy.contiguous()
    residual, dsum = contiguous(inputs.residual), contiguous(dsum)
    R, L = row_sizes(x, spec.groups)
    (wide_weight, wide_bias), parameter_type = of_one_dtype(weight, bias)
    dx = torch.empty_like(x) if needs[0] else None
    dresidual = torch.empty_like(x) if needs[1] and fused else None
    dweight = torch.empty_like(wide_weight) if needs[2] and wide_weight is not None else None
    dbias = torch.empty_like(wide_bias) if needs[3] and wide_bias is not None else None
    if any(tensor is not None for tensor in (dx, dresidual, dweight, dbias)):
        job = pack_rows(
            x.data_ptr(), 0, dy.data_ptr(), pointer(dsum), pointer(residual), pointer(mask),
            pointer(wide_weight), pointer(wide_bias), stats.data_ptr(), pointer(dx), 0,
            pointer(dresidual), pointer(dweight), pointer(dbias), R, L, spec.norm == "rms",
            ACTIVATIONS[spec.activation], parameter_type, torch.get_num_threads(), 0.0,
        )  # fmt: skip
        run("rows_backward", x, job)
    dresidual = dy if needs[1] and not fused else dresidual
    return dx, dresidual, in_dtype_of(weight, dweight), in_dtype_of(bias, dbias)
