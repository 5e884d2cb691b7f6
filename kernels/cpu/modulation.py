"""Weight and bias of each sample: those of a norm, scaled and shifted by another network."""

import torch
from torch import Tensor

from fastnorm.contract import Tensors
from fastnorm.tensors import accumulation_of

from ..tensors import ModulationRows, contiguous, modulation_rows
from .build import NUMBERS
from .calls import call, in_dtypes_of, of_one_dtype, pack_modulation, pointer


def modulate(
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor,
    shift: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    """gamma and beta, of scale's shape, contiguous, in the dtype of an x's statistics."""
    rows = modulation_rows(weight, bias, scale, shift)
    parameters, parameter_type = of_one_dtype((weight, bias))
    gamma = torch.empty(scale.shape, dtype=accumulation_of(dtype))
    beta = None if bias is None and shift is None else torch.empty_like(gamma)
    outputs = (gamma, beta, None, None, None, None)
    _call("modulate", rows, parameters, parameter_type, outputs, dtype)
    return gamma, beta


def modulate_backward(
    dgamma: Tensor | None,
    dbeta: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor,
    shift: Tensor | None,
    dtype: torch.dtype,
    needs: tuple[bool, bool, bool, bool],
) -> Tensors:
    """(dweight, dbias, dscale, dshift); None if `needs` says that nobody wants it."""
    rows = modulation_rows(weight, bias, scale, shift)
    given: Tensors = (weight, bias)
    parameters, parameter_type = of_one_dtype(given)
    dweight, dbias, dscale, dshift = (
        torch.empty_like(t, memory_format=torch.contiguous_format)
        if need and t is not None
        else None
        for t, need in zip((*parameters, scale, shift), needs, strict=True)
    )
    outputs = (contiguous(dgamma), contiguous(dbeta), dscale, dshift, dweight, dbias)
    _call("modulate_backward", rows, parameters, parameter_type, outputs, dtype)
    return *in_dtypes_of(given, (dweight, dbias)), dscale, dshift


def _call(
    function: str,
    rows: ModulationRows,
    parameters: Tensors,
    parameter_type: int,
    others: Tensors,
    dtype: torch.dtype,
) -> None:
    scale, shift, sizes = rows
    shift_type = 0 if shift is None else NUMBERS[shift.dtype]
    job = pack_modulation(
        *map(pointer, (scale, shift, *parameters, *others)), *sizes,
        NUMBERS[accumulation_of(dtype)], NUMBERS[scale.dtype], shift_type, parameter_type,
        torch.get_num_threads(),
    )  # fmt: skip
    call(function, dtype, scale.numel(), job)
