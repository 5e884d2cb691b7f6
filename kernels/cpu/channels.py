"""Norms of (N, C, S) tensors, forward and backward: a call of the engine each."""

import torch
from torch import Tensor

from fastnorm.contract import Inputs, NormSpec, Outputs, Tensors
from fastnorm.tensors import dense, laid_out_as

from ..masks import mask_for
from .calls import ACTIVATIONS, NORMS, in_dtype_of, of_one_dtype, pack_job, pointer, run

OF_BATCH = ("batch", "mean_only_batch")


def channel_norm(inputs: Inputs, spec: NormSpec, differentiable: bool) -> Outputs:
    """y = act(norm(x) + residual) for norm in batch, instance, batch_instance, mean_only_batch,
    group.

    x is (N, C, ...), not empty; weight, bias, rho and the running statistics are (C,). Running
    statistics are updated in place where `use_input_stats`. Returns y in x's dtype and memory
    format, ReLU's mask beside a residual where `differentiable`, and the float64 statistics that
    channel_norm_backward takes.
    """
    x, residual, weight, bias, rho, running_mean, running_var = inputs
    norm, groups, use_input_stats, momentum, eps, activation = spec
    x, N, C, S, last = seen(x)
    bits = None
    if residual is not None:
        residual = laid_out_as(x, residual)
        bits = mask_for(x, True, spec, differentiable)
    (weight, bias, rho), parameter_type = of_one_dtype(weight, bias, rho)
    (mean, var), running_type = of_one_dtype(running_mean, running_var)
    y = torch.empty_like(x)
    stats = torch.empty(stats_size(spec, N, C), dtype=torch.float64)
    job = pack_job(
        x.data_ptr(), 0, pointer(residual), pointer(bits), pointer(weight), pointer(bias),
        pointer(rho), pointer(mean), pointer(var), stats.data_ptr(), y.data_ptr(),
        0, 0, 0, 0, 0, 0, N, C, S, last, NORMS[norm], groups, use_input_stats,
        ACTIVATIONS[activation], parameter_type, running_type, torch.get_num_threads(),
        momentum, eps,
    )  # fmt: skip
    run("norm", x, job)
    if use_input_stats and running_mean is not None:
        _written(running_mean, mean)
        _written(running_var, var)
    return y, bits, stats


def channel_norm_backward(
    dy: Tensor,
    inputs: Inputs,
    mask: Tensor | None,
    stats: Tensor,
    needs: tuple[bool, ...],
    spec: NormSpec,
) -> Tensors:
    """(dx, dresidual, dweight, dbias, drho); None where `needs` says that nobody asked."""
    x, residual, weight, bias, rho, _, _ = inputs
    fused = spec.activation is not None
    x, N, C, S, last = seen(x)
    dy, residual = laid_out_as(x, dy), laid_out_as(x, residual)
    (wide_weight, wide_bias, wide_rho), parameter_type = of_one_dtype(weight, bias, rho)
    dx = torch.empty_like(x) if needs[0] else None
    dresidual = torch.empty_like(x) if needs[1] and fused else None
    dweight = torch.empty_like(wide_weight) if needs[2] and wide_weight is not None else None
    dbias = torch.empty_like(wide_bias) if needs[3] and wide_bias is not None else None
    drho = torch.empty_like(wide_rho) if needs[4] and wide_rho is not None else None
    written = (dx, dresidual, dweight, dbias, drho)
    if any(tensor is not None for tensor in written):
        job = pack_job(
            x.data_ptr(), dy.data_ptr(), pointer(residual), pointer(mask), pointer(wide_weight),
            pointer(wide_bias), pointer(wide_rho), 0, 0, stats.data_ptr(),
            *[pointer(tensor) for tensor in written], 0, 0, N, C, S, last, NORMS[spec.norm],
            spec.groups, spec.use_input_stats, ACTIVATIONS[spec.activation], parameter_type, 0,
            torch.get_num_threads(), 0.0, 0.0,
        )  # fmt: skip
        run("norm_backward", x, job)
    return (
        dx,
        dy if needs[1] and not fused else dresidual,
        in_dtype_of(weight, dweight),
        in_dtype_of(bias, dbias),
        in_dtype_of(rho, drho),
    )


def seen(x: Tensor) -> tuple[Tensor, int, int, int, bool]:
    """x, dense, its N, C and S, and whether its channels lie last; where S is 1 they do."""
    shape = x.shape
    N, C = shape[0], shape[1]
    S = x.numel() // (N * C)
    if x.is_contiguous():
        return x, N, C, S, S == 1
    x = dense(x)
    return x, N, C, S, S == 1 or not x.is_contiguous()


def stats_size(spec: NormSpec, N: int, C: int) -> int:
    """Mean and 1 / std of each set."""
    if spec.norm in OF_BATCH:
        return 2 * C
    sets = N * (spec.groups if spec.norm == "group" else C)
    return 2 * (sets + C if spec.norm == "batch_instance" else sets)


def _written(buffer: Tensor | None, updated: Tensor | None) -> None:
    """Tell autograd that the engine wrote to the buffer; copy back what went to a copy."""
    if buffer is None or updated is None:
        return
    if updated is buffer:
        torch.autograd.graph.increment_version(buffer)
    else:
        buffer.copy_(updated)
