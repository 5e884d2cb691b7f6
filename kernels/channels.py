"""Norms of (N, C, S) tensors: moments -> merge -> apply, forward and backward."""

from typing import TypeVar

import torch

from .apply import apply, apply_backward
from .launch import (
    MergeOutputs,
    Pivot,
    channel_view,
    contiguous,
    pointwise_tiling,
    reduction_tiling,
)
from .merge_batch import PIVOT as BATCH_PIVOT
from .merge_batch import merge_batch, merge_batch_backward
from .merge_group import merge_group, merge_group_backward
from .merge_instance import PIVOT as INSTANCE_PIVOT
from .merge_instance import merge_instance, merge_instance_backward
from .moments import gradient_moments, moments

MaybeTensor = TypeVar("MaybeTensor", torch.Tensor, torch.Tensor | None)


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
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """y = act(norm(x) + residual) for norm in batch, instance, batch_instance, group.

    x is (N, C, ...), not empty; weight, bias, rho and the running statistics are (C,). Running
    statistics are updated in place where `use_input_stats`. Returns y in x's dtype and memory
    format and the statistics that channel_norm_backward takes.
    """
    x = dense(x)
    weight, bias, rho = contiguous(weight), contiguous(bias), contiguous(rho)
    running = (contiguous(running_mean), contiguous(running_var))
    view = channel_view(x, merge_batch=norm == "batch")
    tiling = reduction_tiling(view, many_chunks=norm == "batch")
    if norm == "batch":
        sums = moments(x, view, tiling, BATCH_PIVOT) if use_input_stats else (None, None)
        stats = merge_batch(
            sums, x, weight, bias, *running, view, tiling, use_input_stats, momentum, eps
        )
    elif norm == "group":
        tables = moments(x, view, tiling, Pivot(view.C // groups, per_channel=False))
        stats = merge_group(tables, x, weight, bias, view, tiling, groups, eps)
    else:
        tables = moments(x, view, tiling, INSTANCE_PIVOT)
        stats = merge_instance(
            tables, x, weight, bias, rho, *running, view, tiling, use_input_stats, momentum, eps
        )
    if use_input_stats:
        for buffer, updated in zip((running_mean, running_var), running, strict=True):
            if buffer is not None and updated is not None:
                _written(buffer, updated)
    center, scale, shift = stats[:3]
    tiling, residual = pointwise_tiling(view), laid_out_as(x, residual)
    return apply(x, residual, (center, scale, shift), view, tiling, activation), stats


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
) -> tuple[torch.Tensor | None, ...]:
    """(dx, dresidual, dweight, dbias, drho); None where `needs` says that nobody asked.

    `side` is what `side_input` named: y, the residual or None.
    """
    needs_dx, needs_dresidual, needs_dweight, needs_dbias, needs_drho = needs
    x = dense(x)
    weight, bias, rho = contiguous(weight), contiguous(bias), contiguous(rho)
    dy, side = laid_out_as(x, dy), laid_out_as(x, side)
    view = channel_view(x, merge_batch=norm == "batch")
    stats_follow_x = use_input_stats or norm == "batch_instance"
    center, scale, shift = stats[:3]
    coefficients = (center, scale, shift)
    outputs = MergeOutputs(
        slope=torch.empty_like(center) if needs_dx and stats_follow_x else None,
        level=torch.empty_like(center) if needs_dx and stats_follow_x else None,
        dweight=torch.empty_like(weight) if needs_dweight and weight is not None else None,
        dbias=torch.empty_like(bias) if needs_dbias and bias is not None else None,
        drho=torch.empty_like(rho) if needs_drho and rho is not None else None,
    )
    if any(output is not None for output in outputs):
        tiling = reduction_tiling(view, many_chunks=norm == "batch")
        tables = gradient_moments(x, dy, side, coefficients, view, tiling, activation)
        if norm == "batch":
            merge_batch_backward(tables, stats, view, tiling, outputs)
        elif norm == "group":
            merge_group_backward(tables, weight, stats, view, tiling, groups, outputs)
        else:
            merge_instance_backward(
                tables, weight, rho, stats, view, tiling, use_input_stats, outputs
            )
    dx: torch.Tensor | None = None
    dresidual = dy if needs_dresidual else None
    if needs_dx or (needs_dresidual and activation is not None):
        dx, dresidual_kernel = apply_backward(
            x, dy, side, coefficients, outputs.slope, outputs.level, view,
            pointwise_tiling(view), activation, needs_dx,
            needs_dresidual and activation is not None,
        )  # fmt: skip
        dresidual = dresidual if dresidual_kernel is None else dresidual_kernel
    return dx, dresidual, outputs.dweight, outputs.dbias, outputs.drho


def side_input(activation: str | None, has_residual: bool) -> str | None:
    """What backward needs beside x to know act'(z): "output", "residual" or nothing.

    Without a residual z is recomputed from x. With one, ReLU's mask is read off the output, which
    the next layer keeps alive anyway; the smooth activations need z and so the residual itself.
    """
    if activation is None or not has_residual:
        return None
    return "output" if activation == "relu" else "residual"


def _written(buffer: torch.Tensor, updated: torch.Tensor) -> None:
    """Tell autograd that a kernel wrote to the buffer; copy back what went to a contiguous copy."""
    if updated is buffer:
        torch.autograd.graph.increment_version(buffer)
    else:
        buffer.copy_(updated)


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
