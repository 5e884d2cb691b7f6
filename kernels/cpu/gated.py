"""RMS normalisation of rows with a gate, as in Mamba-2 (arXiv 2405.21060)."""

import torch
from torch import Tensor

from fastnorm.contract import Tensors
from fastnorm.tensors import accumulation

from ..tensors import parameter_rows, row_sizes
from .calls import in_dtypes_of, of_one_dtype, pack_gated, pointer, run


def gated_norm(
    x: Tensor, gate: Tensor, weight: Tensor | None, norm_before_gate: bool, eps: float
) -> tuple[Tensor, Tensor]:
    """rms_norm(x) weight silu(gate) or, if not `norm_before_gate`, rms_norm(x silu(gate)) weight.

    x and gate (..., L) have the same shape, dtype and device, and are not empty. weight is (L,) or
    has x's number of dimensions, as parameters of rows. Returns y, contiguous, in x's dtype, and
    1 / rms of each row, in the dtype of statistics.
    """
    x, gate = x.contiguous(), gate.contiguous()
    R, L = row_sizes(x, 1)
    A, inner = parameter_rows(weight, x, 1)
    (weight,), parameter_type = of_one_dtype((weight,))
    y, stats = torch.empty_like(x), x.new_empty(R, dtype=accumulation(x))
    job = pack_gated(
        x.data_ptr(), gate.data_ptr(), 0, pointer(weight), stats.data_ptr(), y.data_ptr(), 0, 0,
        R, L, A, inner, norm_before_gate, parameter_type, torch.get_num_threads(), eps,
    )  # fmt: skip
    run("gated", x, job)
    return y, stats


def gated_norm_backward(
    dy: Tensor,
    x: Tensor,
    gate: Tensor,
    weight: Tensor | None,
    stats: Tensor,
    norm_before_gate: bool,
    needs: tuple[bool, bool, bool],
) -> Tensors:
    """(dx, dgate, dweight); None if `needs` says that nobody wants it."""
    x, gate, dy = x.contiguous(), gate.contiguous(), dy.contiguous()
    R, L = row_sizes(x, 1)
    A, inner = parameter_rows(weight, x, 1)
    given: Tensors = (weight,)
    parameters, parameter_type = of_one_dtype(given)
    (weight,) = parameters
    dx = torch.empty_like(x) if needs[0] else None
    dgate = torch.empty_like(x) if needs[1] else None
    dweight = torch.empty_like(weight) if needs[2] and weight is not None else None
    if dx is not None or dgate is not None or dweight is not None:
        job = pack_gated(
            x.data_ptr(), gate.data_ptr(), dy.data_ptr(), pointer(weight), stats.data_ptr(),
            pointer(dx), pointer(dgate), pointer(dweight),
            R, L, A, inner, norm_before_gate, parameter_type, torch.get_num_threads(), 0.0,
        )  # fmt: skip
        run("gated_backward", x, job)
    return dx, dgate, *in_dtypes_of(given, (dweight,))
