"""The norms from ATen's fused operators: the fast path where Triton cannot run.

The three stages are those of the kernels, each found inside an operator that does more, because
on a CPU ATen vectorises those operators and not the obvious ones (`var_mean`, `addcmul`):

    moments            native_group_norm, one channel a group, returns each (n, c)'s mean and rstd
    apply              native_batch_norm in eval mode, every (n, c) a channel of its own
    gradient moments   native_batch_norm_backward, likewise, asked only for dgamma and dbeta

They need (N, C, S) contiguous; batch-instance and instance norm channels last take the plain
formula. Batch norm's backward is ATen's own; contiguous group norm, layer and RMS norm are whole,
and `builtin.py`'s. Statistics are float32, float64 for float64 tensors.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .aten_stages import (
    LONGEST_INSTANCE,
    Running,
    accumulated,
    accumulation,
    apply,
    apply_backward,
    broadcast,
    canonical,
    full_precision,
    gradient_moments,
    is_far,
    laid_out_as,
    merge,
    moments,
    per_instance,
    positions,
    running_statistics,
    update_running,
    widened,
)

Tensors = tuple[Tensor | None, ...]
Stats = tuple[Tensor, ...]
aten: Any = torch.ops.aten

# Instances shorter than this make the table of moments, not the tensor, the larger cost.
SHORTEST_INSTANCE = 32


def norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    rho: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    norm: str,
    groups: int,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    activation: str | None,
    differentiable: bool,
) -> tuple[Tensor, Tensor | None, Stats]:
    """y = act(norm(x) + residual), ReLU's mask and the statistics channel_norm_backward takes.

    The signature is the kernels', the mask is y itself. norm is batch, instance, batch_instance,
    mean_only_batch or group.
    """
    shape, dtype = x.shape, x.dtype
    x = widened(canonical(x))
    running = (running_mean, running_var, momentum)
    arguments = (weight, bias, rho, groups, running, use_input_stats, eps)
    result = _forward(norm, x, *arguments) or _forward(norm, x.double(), *arguments)
    assert result is not None, "is_far never asks for more than float64"
    z, *stats = result
    y, kept = activate(z.to(dtype).view(shape), residual, activation, tuple(stats))
    # .data: the same memory as no view, for autograd forbids writing to a view that comes from a
    # Function, and models write to what a norm answers: ReLU(inplace=True), y += shortcut.
    y = y.data
    return y, y, kept


def norm_backward(
    dy: Tensor,
    x: Tensor,
    side: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    rho: Tensor | None,
    stats: Stats,
    needs: tuple[bool, bool, bool, bool, bool],
    *,
    norm: str,
    groups: int,
    use_input_stats: bool,
    activation: str | None,
) -> Tensors:
    """(dx, dresidual, dweight, dbias, drho); None where `needs` says that nobody asked."""
    shape = x.shape
    dresidual = activate_backward(dy, side, stats, activation)
    needs_dx, needs_dresidual, needs_dweight, needs_dbias, needs_drho = needs
    dx = dweight = dbias = drho = None
    mask = [needs_dx, needs_dweight, needs_dbias]
    if any((*mask, needs_drho)):
        x = widened(canonical(x))
        g = laid_out_as(x, dresidual).to(x.dtype)
        if stats[0].dtype == torch.float64:  # forward took float64 for the sake of a far mean
            x, g = x.double(), g.double()
        if norm == "batch":
            dx, dweight, dbias = _batch_norm_backward(g, x, weight, stats, use_input_stats, mask)
        elif norm == "mean_only_batch":
            dx, dbias = _mean_only_norm_backward(g, use_input_stats)
        elif norm == "group":
            N, C = x.shape[:2]
            gamma = accumulation(weight, x)
            gamma = torch.ones(C, dtype=accumulated(x), device=x.device) if gamma is None else gamma
            # All three always: see group_norm.
            dx, dweight, dbias = aten.native_group_norm_backward(
                g, x, stats[0], stats[1], gamma, N, C, positions(x), groups, [True] * 3
            )
        elif norm == "instance" and x.is_contiguous():
            dx, dweight, dbias = _instance_norm_backward(g, x, weight, stats, mask)
        else:
            dx, dweight, dbias, drho = _mixed_norm_backward(
                g, x, weight, rho, stats, use_input_stats, needs_dx
            )
    return (
        dx.to(dy.dtype).view(shape) if needs_dx and dx is not None else None,
        dresidual if needs_dresidual else None,
        _gradient(dweight, weight, needs_dweight),
        _gradient(dbias, bias, needs_dbias),
        _gradient(drho, rho, needs_drho),
    )


def side_input(activation: str | None, has_residual: bool) -> str | None:
    """What backward needs beside x: ReLU's mask.

    The smooth activations keep z among the stats and the residual for the second derivative alone.
    """
    if activation == "relu":
        return "mask"
    return "residual" if activation is not None and has_residual else None


def relu_mask(side: Tensor, x: Tensor) -> Tensor:
    """Where ReLU let through what became the output `side`, NaN included."""
    return ~(side <= 0)


def activate(
    z: Tensor, residual: Tensor | None, activation: str | None, stats: Stats
) -> tuple[Tensor, Stats]:
    if residual is not None:
        z = z.add_(residual)
    if activation is None:
        return z, stats
    if activation == "relu":
        return z.relu_(), stats
    return (F.silu(z) if activation == "silu" else F.gelu(z)), (*stats, z)


def activate_backward(
    dy: Tensor, output: Tensor | None, stats: Stats, activation: str | None
) -> Tensor:
    if activation is None:
        return dy
    if activation == "relu":
        return aten.threshold_backward(dy, output, 0)
    backward = aten.silu_backward if activation == "silu" else aten.gelu_backward
    return backward(dy, stats[-1])


def _gradient(total: Tensor | None, parameter: Tensor | None, needed: bool) -> Tensor | None:
    """`total` in its parameter's dtype; None where nobody asked."""
    if not needed or total is None or parameter is None:
        return None
    return total.to(parameter.dtype)


def _forward(
    norm: str,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    rho: Tensor | None,
    groups: int,
    running: Running,
    use_input_stats: bool,
    eps: float,
) -> Stats | None:
    """(z, *stats) of a canonical x, or None, with nothing written, where it wants float64."""
    gamma, beta = accumulation(weight, x), accumulation(bias, x)
    if norm == "group":
        N, C = x.shape[:2]
        gamma, beta = full_precision(gamma, beta, x, (C,))
        z, mean, rstd = torch.native_group_norm(x, gamma, beta, N, C, positions(x), groups, eps)
        if not x.is_contiguous() and is_far(mean, rstd.pow(-2)):
            return None  # channels last ATen takes the variance as E[x^2] - E[x]^2
        return z, mean, rstd
    if norm == "batch":
        return _batch_norm(x, gamma, beta, running, use_input_stats, eps)
    if norm == "mean_only_batch":
        return _mean_only_norm(x, beta, running, use_input_stats)
    if norm == "instance" and x.is_contiguous() and positions(x) <= LONGEST_INSTANCE:
        return _instance_norm(x, gamma, beta, running, eps)
    return _mixed_norm(x, gamma, beta, accumulation(rho, x), running, use_input_stats, eps)


def _batch_norm(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    running: Running,
    use_input_stats: bool,
    eps: float,
) -> Stats | None:
    """(z, mean, rstd), statistics of shape (C,)."""
    gamma, beta = full_precision(gamma, beta, x, x.shape[1:2])
    if not use_input_stats:
        mean, var = running_statistics(running, x)
    elif x.is_contiguous() and positions(x) >= SHORTEST_INSTANCE:
        mean, var = moments(x)
        if is_far(mean, var):
            return None
        mean, var = merge(mean, var)
        update_running(running, mean, var, x.numel() // x.shape[1])
    else:
        count = x.numel() // x.shape[1]
        batch = torch.zeros(2, x.shape[1], dtype=accumulated(x), device=x.device)
        z, mean, rstd = torch.native_batch_norm(x, gamma, beta, batch[0], batch[1], True, 1.0, eps)
        update_running(running, mean, batch[1] * ((count - 1) / count), count)
        return z, mean, rstd
    z = torch.native_batch_norm(x, gamma, beta, mean, var, False, 0.0, eps)[0]
    return z, mean, (var + eps).rsqrt_()


def _batch_norm_backward(
    g: Tensor, x: Tensor, weight: Tensor | None, stats: Stats, train: bool, mask: list[bool]
) -> Tensors:
    mean, rstd = stats[:2]
    gamma, _ = full_precision(accumulation(weight, x), None, x, x.shape[1:2])
    # In eval mode the operator takes the running variance and eps: rstd^-2 and 0 say the same.
    var = None if train else rstd.pow(-2)
    return aten.native_batch_norm_backward(g, x, gamma, mean, var, mean, rstd, train, 0.0, mask)


def _mean_only_norm(
    x: Tensor, beta: Tensor | None, running: Running, use_input_stats: bool
) -> Stats:
    """(z, mean), the mean of shape (C,)."""
    x = x.to(accumulated(x))
    if use_input_stats:
        mean = x.mean((0, *range(2, x.dim())))
        update_running(running, mean, mean, x.numel() // x.shape[1])
    else:
        assert running[0] is not None, "fastnorm.functional checks that it is there"
        mean = running[0].to(x.dtype, copy=True)
    z = x - broadcast(mean[None], x)
    return (z if beta is None else z.add_(broadcast(beta[None], x))), mean


def _mean_only_norm_backward(g: Tensor, use_input_stats: bool) -> tuple[Tensor, Tensor]:
    """(dx, dbeta) of _mean_only_norm."""
    g = g.to(accumulated(g))
    dbeta = g.sum((0, *range(2, g.dim())))
    if not use_input_stats:
        return g.clone(), dbeta  # not g, which may be dy and another input's gradient
    return g - broadcast((dbeta / (g.numel() // g.shape[1]))[None], g), dbeta


def _instance_norm(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, running: Running, eps: float
) -> Stats | None:
    """(z, mean, rstd) of the contiguous x, statistics of shape (N, C)."""
    N, C = x.shape[:2]
    gamma, beta = full_precision(gamma, beta, x, (C,))
    z, mean, rstd = torch.native_group_norm(x, gamma, beta, N, C, positions(x), C, eps)
    if is_far(mean, rstd.pow(-2)):
        return None
    if running[0] is not None or running[1] is not None:
        exact_mean, var = moments(x)
        update_running(running, exact_mean.mean(0), var.mean(0), positions(x))
    return z, mean.view(N, C), rstd.view(N, C)


def _instance_norm_backward(
    g: Tensor, x: Tensor, weight: Tensor | None, stats: Stats, mask: list[bool]
) -> Tensors:
    N, C = x.shape[:2]
    mean, rstd = stats[0].flatten(), stats[1].flatten()
    gamma, _ = full_precision(accumulation(weight, x), None, x, (C,))
    dx, dgamma, dbeta = aten.native_batch_norm_backward(
        per_instance(g), per_instance(x), None if gamma is None else gamma.expand(N, C).reshape(-1),
        mean, None, mean, rstd, True, 0.0, mask,
    )  # fmt: skip
    return (
        dx,
        dgamma.view(N, C).sum(0) if mask[1] else None,
        dbeta.view(N, C).sum(0) if mask[2] else None,
    )


def _mixed_norm(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    rho: Tensor | None,
    running: Running,
    use_input_stats: bool,
    eps: float,
) -> Stats | None:
    """Batch-instance norm, or instance norm where rho is None.

    (z, center, rstd, scale) of each instance, (N, C), and with rho (batch mean, batch rstd), (C,).
    """
    center, var = moments(x)
    if is_far(center, var):
        return None
    rstd = (var + eps).rsqrt_()
    if rho is None:
        update_running(running, center.mean(0), var.mean(0), positions(x))
        scale = rstd if gamma is None else gamma * rstd
        z = apply(x, center, scale, None if beta is None else beta.expand_as(scale))
        return z, center, rstd, scale
    if use_input_stats:
        batch_mean, batch_var = merge(center, var)
        update_running(running, batch_mean, batch_var, x.numel() // x.shape[1])
    else:
        batch_mean, batch_var = running_statistics(running, x)
    batch_rstd = (batch_var + eps).rsqrt_()
    batch_scale = rho * batch_rstd
    scale = torch.addcmul(batch_scale, 1 - rho, rstd)
    shift = (center - batch_mean).mul_(batch_scale)
    if gamma is not None:
        scale = gamma * scale
        shift.mul_(gamma)
    if beta is not None:
        shift.add_(beta)
    return apply(x, center, scale, shift), center, rstd, scale, batch_mean, batch_rstd


def _mixed_norm_backward(
    g: Tensor,
    x: Tensor,
    weight: Tensor | None,
    rho: Tensor | None,
    stats: Stats,
    use_input_stats: bool,
    needs_dx: bool,
) -> Tensors:
    """(dx, dgamma, dbeta, drho) of _mixed_norm."""
    gamma, rho = accumulation(weight, x), accumulation(rho, x)
    center, rstd, scale = stats[:3]
    sum_g, sum_gx = gradient_moments(g, x, center)
    dbeta = sum_g.sum(0)
    instance_gx = rstd * sum_gx  # sum g x_hat, x_hat by the instance's own statistics
    dgamma = instance_gx.sum(0)
    share = rstd if gamma is None else gamma * rstd
    if rho is None:
        if not needs_dx:
            return None, dgamma, dbeta, None
        share = share / -positions(x)
        slope, level = share * rstd * instance_gx, share * sum_g
        return apply_backward(g, x, center, scale, slope, level), dgamma, dbeta, None
    batch_mean, batch_rstd = stats[3:5]
    batch_gx = torch.addcmul(sum_gx, center - batch_mean, sum_g).sum(0).mul_(batch_rstd)
    drho = batch_gx - dgamma
    dgamma = torch.addcmul(dgamma, rho, drho)
    drho = drho if gamma is None else gamma * drho
    if not needs_dx:
        return None, dgamma, dbeta, drho
    share = (1 - rho) * share / -positions(x)
    slope, level = share * rstd * instance_gx, share * sum_g
    if use_input_stats:
        share = rho * batch_rstd / (-positions(x) * x.shape[0])
        share = share if gamma is None else gamma * share
        batch_slope = share * batch_rstd * batch_gx
        slope += batch_slope
        level.addcmul_(center - batch_mean, batch_slope).add_(share * dbeta)
    return apply_backward(g, x, center, scale, slope, level), dgamma, dbeta, drho


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
