"""Each norm of channels, forward beside backward, on canonical tensors.

The forwards return z, before residual and activation, and the statistics that the backward takes;
or None, with nothing written, where a mean is so far from 0 that x has to be float64. gamma, beta
and rho are in the dtype of the statistics. `operators.py` has the stages that they are made of.
"""

import torch
from torch import Tensor

from .operators import (
    Running,
    accumulated,
    accumulation,
    apply,
    apply_backward,
    aten,
    broadcast,
    full_precision,
    gradient_moments,
    is_far,
    merge,
    moments,
    per_instance,
    positions,
    running_statistics,
    update_running,
)

Tensors = tuple[Tensor | None, ...]
Stats = tuple[Tensor, ...]


def batch_norm(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, running: Running, eps: float
) -> Stats | None:
    """(z, mean, rstd) of the contiguous x by its own statistics, of shape (C,)."""
    gamma, beta = full_precision(gamma, beta, x, x.shape[1:2])
    mean, var = moments(x)
    if is_far(mean, var):
        return None
    mean, var = merge(mean, var)
    update_running(running, mean, var, x.numel() // x.shape[1])
    z = torch.native_batch_norm(x, gamma, beta, mean, var, False, 0.0, eps)[0]
    return z, mean, (var + eps).rsqrt_()


def batch_norm_backward(
    g: Tensor, x: Tensor, weight: Tensor | None, stats: Stats, mask: list[bool]
) -> Tensors:
    """(dx, dgamma, dbeta) of batch_norm."""
    mean, rstd = stats[:2]
    gamma, _ = full_precision(accumulation(weight, x), None, x, x.shape[1:2])
    return aten.native_batch_norm_backward(g, x, gamma, mean, None, mean, rstd, True, 0.0, mask)


def mean_only_norm(
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


def mean_only_norm_backward(g: Tensor, use_input_stats: bool) -> tuple[Tensor, Tensor]:
    """(dx, dbeta) of mean_only_norm."""
    g = g.to(accumulated(g))
    dbeta = g.sum((0, *range(2, g.dim())))
    if not use_input_stats:
        return g.clone(), dbeta  # not g, which may be dy and another input's gradient
    return g - broadcast((dbeta / (g.numel() // g.shape[1]))[None], g), dbeta


def instance_norm(
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


def instance_norm_backward(
    g: Tensor, x: Tensor, weight: Tensor | None, stats: Stats, mask: list[bool]
) -> Tensors:
    N, C = x.shape[:2]
    mean, rstd = stats[0].reshape(-1), stats[1].reshape(-1)
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


def mixed_norm(
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


def mixed_norm_backward(
    g: Tensor,
    x: Tensor,
    weight: Tensor | None,
    rho: Tensor | None,
    stats: Stats,
    use_input_stats: bool,
    needs_dx: bool,
) -> Tensors:
    """(dx, dgamma, dbeta, drho) of mixed_norm."""
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


def group_norm(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, groups: int, eps: float
) -> Stats | None:
    """(z, mean, rstd), statistics of shape (N, groups)."""
    N, C = x.shape[:2]
    gamma, beta = full_precision(gamma, beta, x, (C,))
    z, mean, rstd = torch.native_group_norm(x, gamma, beta, N, C, positions(x), groups, eps)
    if not x.is_contiguous() and is_far(mean, rstd.pow(-2)):
        return None  # channels last ATen takes the variance as E[x^2] - E[x]^2
    return z, mean, rstd


def group_norm_backward(
    g: Tensor, x: Tensor, weight: Tensor | None, stats: Stats, groups: int
) -> Tensors:
    """(dx, dgamma, dbeta), whichever are asked for: torch 2.13's kernel wants to write all."""
    N, C = x.shape[:2]
    gamma = accumulation(weight, x)
    gamma = torch.ones(C, dtype=accumulated(x), device=x.device) if gamma is None else gamma
    return aten.native_group_norm_backward(
        g, x, stats[0], stats[1], gamma, N, C, positions(x), groups, [True] * 3
    )
