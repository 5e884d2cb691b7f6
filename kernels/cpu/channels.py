"""Norms of (N, C, S) tensors, forward and backward: a call of the engine each."""

import torch

from ..masks import mask_bytes, unpacked
from ..tensors import Tensors, dense, laid_out_as
from .calls import ACTIVATIONS, NORMS, in_dtype_of, of_one_dtype, pack_job, run

Outputs = tuple[torch.Tensor, torch.Tensor | None, tuple[torch.Tensor, ...]]
OF_BATCH = ("batch", "mean_only_batch")


def channel_norm(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    rho: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    *,
    norm: str,
    groups: int,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    activation: str | None,
    differentiable: bool,
) -> Outputs:
    """y = act(norm(x) + residual) for norm in batch, instance, batch_instance, mean_only_batch,
    group.

    x is (N, C, ...), not empty; weight, bias, rho and the running statistics are (C,). Running
    statistics are updated in place where `use_input_stats`. Returns y in x's dtype and memory
    format, ReLU's mask beside a residual where `differentiable`, and the float64 statistics that
    channel_norm_backward takes.
    """
    x, N, C, S, last = seen(x)
    bits = None
    if residual is not None:
        residual = laid_out_as(x, residual)
        if activation == "relu" and differentiable:
            bits = x.new_empty(mask_bytes(*runs(N, C, S, last)), dtype=torch.uint8)
    (weight, bias, rho), parameter_type = of_one_dtype(weight, bias, rho)
    (mean, var), running_type = of_one_dtype(running_mean, running_var)
    y = torch.empty_like(x)
    stats = torch.empty(stats_size(norm, N, C, groups), dtype=torch.float64)
    job = pack_job(
        x.data_ptr(), 0,
        0 if residual is None else residual.data_ptr(), 0 if bits is None else bits.data_ptr(),
        0 if weight is None else weight.data_ptr(), 0 if bias is None else bias.data_ptr(),
        0 if rho is None else rho.data_ptr(),
        0 if mean is None else mean.data_ptr(), 0 if var is None else var.data_ptr(),
        stats.data_ptr(), y.data_ptr(), 0, 0, 0, 0, 0, 0, N, C, S, last, NORMS[norm], groups,
        use_input_stats, ACTIVATIONS[activation], parameter_type, running_type,
        torch.get_num_threads(), momentum, eps,
    )  # fmt: skip
    run("norm", x, job)
    if use_input_stats and running_mean is not None:
        _written(running_mean, mean)
        _written(running_var, var)
    return y, bits, (stats,)


def channel_norm_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    side: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    rho: torch.Tensor | None,
    stats: tuple[torch.Tensor, ...],
    needs: tuple[bool, bool, bool, bool, bool],
    *,
    norm: str,
    groups: int,
    use_input_stats: bool,
    activation: str | None,
) -> Tensors:
    """(dx, dresidual, dweight, dbias, drho); None where `needs` says that nobody asked.

    `side` is what `side_input` named: ReLU's mask, the residual or None.
    """
    x, N, C, S, last = seen(x)
    dy = laid_out_as(x, dy)
    residual = bits = None
    if side is not None and activation == "relu":
        bits = side
    elif side is not None:
        residual = laid_out_as(x, side)
    (wide_weight, wide_bias, wide_rho), parameter_type = of_one_dtype(weight, bias, rho)
    dx = torch.empty_like(x) if needs[0] else None
    dresidual = torch.empty_like(x) if needs[1] and activation is not None else None
    dweight = torch.empty_like(wide_weight) if needs[2] and wide_weight is not None else None
    dbias = torch.empty_like(wide_bias) if needs[3] and wide_bias is not None else None
    drho = torch.empty_like(wide_rho) if needs[4] and wide_rho is not None else None
    written = (dx, dresidual, dweight, dbias, drho)
    if any(tensor is not None for tensor in written):
        job = pack_job(
            x.data_ptr(), dy.data_ptr(),
            0 if residual is None else residual.data_ptr(), 0 if bits is None else bits.data_ptr(),
            0 if wide_weight is None else wide_weight.data_ptr(),
            0 if wide_bias is None else wide_bias.data_ptr(),
            0 if wide_rho is None else wide_rho.data_ptr(), 0, 0, stats[0].data_ptr(),
            *[0 if tensor is None else tensor.data_ptr() for tensor in written], 0, 0,
            N, C, S, last, NORMS[norm], groups, use_input_stats, ACTIVATIONS[activation],
            parameter_type, 0, torch.get_num_threads(), 0.0, 0.0,
        )  # fmt: skip
        run("norm_backward", x, job)
    return (
        dx,
        dy if needs[1] and activation is None else dresidual,
        in_dtype_of(weight, dweight),
        in_dtype_of(bias, dbias),
        in_dtype_of(rho, drho),
    )


def channel_relu_mask(mask: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The booleans of the mask that a forward kept for x, in x's shape."""
    x, N, C, S, last = seen(x)
    active = unpacked(mask, *runs(N, C, S, last))
    if last:
        return active.view(N, *x.shape[2:], C).movedim(-1, 1)
    return active.view(x.shape)


def seen(x: torch.Tensor) -> tuple[torch.Tensor, int, int, int, bool]:
    """x, dense, its N, C and S, and whether its channels lie last; where S is 1 they do."""
    shape = x.shape
    N, C = shape[0], shape[1]
    S = x.numel() // (N * C)
    if x.is_contiguous():
        return x, N, C, S, S == 1
    x = dense(x)
    return x, N, C, S, S == 1 or not x.is_contiguous()


def runs(N: int, C: int, S: int, last: bool) -> tuple[int, int]:
    """The runs of neighbours in memory that a mask has bytes of their own for."""
    return (N * S, C) if last else (N * C, S)


def stats_size(norm: str, N: int, C: int, groups: int) -> int:
    """Mean and 1 / std of each set."""
    if norm in OF_BATCH:
        return 2 * C
    sets = N * (groups if norm == "group" else C)
    return 2 * (sets + C if norm == "batch_instance" else sets)


def _written(buffer: torch.Tensor | None, updated: torch.Tensor | None) -> None:
    """Tell autograd that the engine wrote to the buffer; copy back what went to a copy."""
    if buffer is None or updated is None:
        return
    if updated is buffer:
        torch.autograd.graph.increment_version(buffer)
    else:
        buffer.copy_(updated)
