"""Norms of (N, C, S) tensors, forward and backward: a call of the engine each."""

import torch

from ..masks import mask_bytes, side_input, unpacked
from ..tensors import Tensors, dense, laid_out_as
from .calls import ACTIVATIONS, NORMS, number, of_one_dtype, pack_job, pointer, run

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
    x = dense(x)
    residual = laid_out_as(x, residual)
    N, C, S, last = sizes(x)
    weight, bias, rho = of_one_dtype(weight, bias, rho)
    mean, var = of_one_dtype(running_mean, running_var)
    y = torch.empty_like(x)
    masked = differentiable and side_input(activation, residual is not None) == "mask"
    bits = x.new_empty(mask_bytes(*runs(N, C, S, last)), dtype=torch.uint8) if masked else None
    stats = x.new_empty(stats_size(norm, N, C, groups), dtype=torch.float64)
    job = pack_job(
        x.data_ptr(), 0, pointer(residual), pointer(bits), pointer(weight), pointer(bias),
        pointer(rho), pointer(mean), pointer(var), stats.data_ptr(), y.data_ptr(),
        0, 0, 0, 0, 0, 0, N, C, S, last, NORMS[norm], groups, use_input_stats,
        ACTIVATIONS[activation], number(weight, bias, rho), number(mean, var),
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
    x = dense(x)
    dy = laid_out_as(x, dy)
    N, C, S, last = sizes(x)
    masked = side is not None and activation == "relu"
    residual, bits = (None, side) if masked else (laid_out_as(x, side), None)
    parameters = of_one_dtype(weight, bias, rho)
    dx = torch.empty_like(x) if needs[0] else None
    fused = needs[1] and activation is not None
    dresidual = torch.empty_like(x) if fused else None
    grads = [
        torch.empty_like(parameter) if needed and parameter is not None else None
        for parameter, needed in zip(parameters, needs[2:], strict=True)
    ]
    if dx is not None or fused or any(grad is not None for grad in grads):
        job = pack_job(
            x.data_ptr(), dy.data_ptr(), pointer(residual), pointer(bits),
            *map(pointer, parameters), 0, 0, stats[0].data_ptr(), pointer(dx), pointer(dresidual),
            *map(pointer, grads), 0, 0, N, C, S, last, NORMS[norm], groups, use_input_stats,
            ACTIVATIONS[activation], number(*parameters), 0, torch.get_num_threads(), 0.0, 0.0,
        )  # fmt: skip
        run("norm_backward", x, job)
    given = (weight, bias, rho)
    found = [g if g is None or p is None else g.to(p.dtype) for g, p in zip(grads, given)]
    return dx, dresidual if fused else dy if needs[1] else None, *found


def channel_relu_mask(mask: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The booleans of the mask that a forward kept for x, in x's shape."""
    N, C, S, last = sizes(dense(x))
    active = unpacked(mask, *runs(N, C, S, last))
    if last:
        return active.view(N, *x.shape[2:], C).movedim(-1, 1)
    return active.view(x.shape)


def sizes(x: torch.Tensor) -> tuple[int, int, int, bool]:
    """N, C, S of a dense x, and whether its channels lie last; where S is 1 they do."""
    N, C = x.shape[0], x.shape[1]
    S = x.numel() // (N * C)
    return N, C, S, S == 1 or not x.is_contiguous()


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
