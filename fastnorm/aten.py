"""The norms from ATen's fused operators: the fast path where Triton cannot run.

The three stages are those of the kernels, each found inside an operator that does more, because on a
CPU ATen vectorises those operators and not the obvious ones (`var_mean`, `addcmul`):

    moments            native_group_norm with one channel a group returns each (n, c)'s mean and rstd
    apply              native_batch_norm in eval mode, every (n, c) a channel of its own
    gradient moments   native_group_norm_backward, asked only for dgamma and dbeta of each (n, c)

They need (N, C, S) contiguous; other layouts take the plain formula. Batch norm's and group norm's
backward, and layer norm whole, are ATen's own operators. Statistics are float32, float64 for
float64 tensors.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Tensors = tuple[Tensor | None, ...]
aten: Any = torch.ops.aten

# Instances shorter than this make the table of moments, not the tensor, the larger cost.
SHORTEST_INSTANCE = 32


def channel_norm(
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
) -> tuple[Tensor, Tensors]:
    """y = act(norm(x) + residual) and the statistics channel_norm_backward takes."""
    x = x if _keeps_channels_last(x) else x.contiguous()
    gamma, beta = _accumulation(weight, x), _accumulation(bias, x)
    if norm == "instance" and (running_mean is not None or running_var is not None):
        _update_running_from_instances(x, running_mean, running_var, momentum)
    if norm == "group" or (norm == "instance" and x.is_contiguous()):
        N, C = x.shape[:2]
        S = math.prod(x.shape[2:])
        groups = groups if norm == "group" else C
        gamma, beta = _full_precision(gamma, beta, x, (C,))
        z, mean, rstd = torch.native_group_norm(x, gamma, beta, N, C, S, groups, eps)
        stats: Tensors = (mean, rstd)
    elif norm == "batch":
        if use_input_stats:
            mean, var = _batch_moments(x)
            count = x.numel() // x.shape[1]
            _update_running(running_mean, running_var, mean, var * (count / (count - 1)), momentum)
        else:
            mean, var = _accumulation(running_mean, x), _accumulation(running_var, x)
            mean = mean.clone() if mean is running_mean else mean
        z = torch.native_batch_norm(x, gamma, beta, mean, var, False, 0.0, eps)[0]
        stats = (mean, (var + eps).rsqrt_())
    else:
        center, var = _moments(x)
        rstd = (var + eps).rsqrt_()
        batch: Tensors = (None, None)
        if norm == "instance":
            scale = rstd if gamma is None else gamma * rstd
            shift = None if beta is None else beta.expand_as(scale)
        else:
            batch = _merge_instances(center, var, x, running_mean, running_var,
                                     use_input_stats, momentum, eps)  # fmt: skip
            batch_mean, batch_rstd = batch
            gate = _accumulation(rho, x)
            batch_scale = gate * batch_rstd
            scale = batch_scale + (1 - gate) * rstd
            shift = batch_scale * (center - batch_mean)
            if gamma is not None:
                scale, shift = gamma * scale, gamma * shift
            shift = shift if beta is None else beta + shift
        z = _apply(x, center, scale, shift)
        stats = (center, rstd, *batch, scale)
    return _activate(z, residual, activation, stats)


def channel_norm_backward(
    dy: Tensor,
    x: Tensor,
    side: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    rho: Tensor | None,
    stats: Tensors,
    needs: tuple[bool, bool, bool, bool, bool],
    *,
    norm: str,
    groups: int,
    use_input_stats: bool,
    activation: str | None,
) -> Tensors:
    """(dx, dresidual, dweight, dbias, drho); None where `needs` says that nobody asked."""
    x = x if _keeps_channels_last(x) else x.contiguous()
    g = _laid_out_as(x, _activate_backward(dy, side, stats, activation))
    needs_dx, needs_dresidual, needs_dweight, needs_dbias, needs_drho = needs
    dx = dweight = dbias = drho = None
    mask = [needs_dx, needs_dweight, needs_dbias]
    gamma = _accumulation(weight, x)
    if not any((*mask, needs_drho)):
        pass
    elif norm == "group" or (norm == "instance" and x.is_contiguous()):
        N, C = x.shape[:2]
        S = math.prod(x.shape[2:])
        groups = groups if norm == "group" else C
        gamma, _ = _full_precision(gamma, None, x, (C,))
        dx, dweight, dbias = aten.native_group_norm_backward(
            g, x, stats[0], stats[1], gamma, N, C, S, groups, mask
        )
    elif norm == "batch":
        mean, rstd = stats[:2]
        # In eval mode the operator takes the running variance and eps: rstd^-2 and 0 say the same.
        var = None if use_input_stats else rstd.pow(-2)
        dx, dweight, dbias = aten.native_batch_norm_backward(
            g, x, gamma, mean, var, mean, rstd, use_input_stats, 0.0, mask
        )
    else:
        dx, dweight, dbias, drho = _merge_instances_backward(
            g, x, gamma, _accumulation(rho, x), stats, use_input_stats, needs_dx
        )
    return (
        dx if needs_dx else None,
        g if needs_dresidual else None,
        dweight.to(weight.dtype) if needs_dweight else None,
        dbias.to(bias.dtype) if needs_dbias else None,
        drho.to(rho.dtype) if needs_drho else None,
    )


def layer_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    normalized_ndim: int,
    eps: float,
    activation: str | None,
) -> tuple[Tensor, Tensors]:
    """y = act(layer_norm(x) + residual) and the statistics layer_norm_backward takes."""
    shape = x.shape[x.dim() - normalized_ndim :]
    gamma, beta = _accumulation(weight, x), _accumulation(bias, x)
    gamma, beta = _full_precision(gamma, beta, x, shape)
    z, mean, rstd = torch.native_layer_norm(x, shape, gamma, beta, eps)
    return _activate(z, residual, activation, (mean, rstd))


def layer_norm_backward(
    dy: Tensor,
    x: Tensor,
    side: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensors,
    needs: tuple[bool, bool, bool, bool],
    *,
    normalized_ndim: int,
    activation: str | None,
) -> Tensors:
    """(dx, dresidual, dweight, dbias); None where `needs` says that nobody asked."""
    g = _activate_backward(dy, side, stats, activation)
    needs_dx, needs_dresidual, needs_dweight, needs_dbias = needs
    shape = x.shape[x.dim() - normalized_ndim :]
    dx = dweight = dbias = None
    if needs_dx or needs_dweight or needs_dbias:
        gamma, beta = _accumulation(weight, x), _accumulation(bias, x)
        gamma, beta = _full_precision(gamma, beta, x, shape)
        dx, dweight, dbias = aten.native_layer_norm_backward(
            g, x, shape, stats[0], stats[1], gamma, beta, [needs_dx, needs_dweight, needs_dbias]
        )
    return (
        dx,
        g if needs_dresidual else None,
        dweight.to(weight.dtype) if needs_dweight else None,
        dbias.to(bias.dtype) if needs_dbias else None,
    )


def side_input(activation: str | None, has_residual: bool) -> str | None:
    """What backward needs beside x: ReLU's output. The smooth activations keep z among the stats and
    the residual for the second derivative alone."""
    if activation == "relu":
        return "output"
    return "residual" if activation is not None and has_residual else None


def _activate(
    z: Tensor, residual: Tensor | None, activation: str | None, stats: Tensors
) -> tuple[Tensor, Tensors]:
    if residual is not None:
        z = z.add_(residual)
    if activation is None:
        return z, stats
    if activation == "relu":
        return z.relu_(), stats
    return (F.silu(z) if activation == "silu" else F.gelu(z)), (*stats, z)


def _activate_backward(
    dy: Tensor, output: Tensor | None, stats: Tensors, activation: str | None
) -> Tensor:
    if activation is None:
        return dy
    if activation == "relu":
        return aten.threshold_backward(dy, output, 0)
    backward = aten.silu_backward if activation == "silu" else aten.gelu_backward
    return backward(dy, stats[-1])


def _keeps_channels_last(x: Tensor) -> bool:
    return x.movedim(1, -1).is_contiguous()


def _laid_out_as(x: Tensor, other: Tensor) -> Tensor:
    if x.is_contiguous():
        return other.contiguous()
    return other.movedim(1, -1).contiguous().movedim(-1, 1)


def _accumulation(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    """A parameter in the dtype of the statistics."""
    if parameter is None:
        return None
    return parameter.to(torch.float64 if x.dtype == torch.float64 else torch.float32)


def _full_precision(
    gamma: Tensor | None, beta: Tensor | None, x: Tensor, shape: tuple[int, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """float32 parameters for float16 and bfloat16 x: with them ATen keeps float32 statistics."""
    if x.dtype not in (torch.float16, torch.bfloat16):
        return gamma, beta
    gamma = torch.ones(shape, device=x.device) if gamma is None else gamma
    return gamma, torch.zeros(shape, device=x.device) if beta is None else beta


def _per_instance(x: Tensor) -> Tensor:
    """The contiguous x (N, C, ...) as (1, N C, S): every instance a channel of its own."""
    return x.view(1, x.shape[0] * x.shape[1], -1)


def _broadcast(coefficient: Tensor, x: Tensor) -> Tensor:
    return coefficient.view(*coefficient.shape, *[1] * (x.dim() - 2))


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each instance: two tensors of shape (N, C)."""
    N, C = x.shape[:2]
    S = math.prod(x.shape[2:])
    if not x.is_contiguous():
        dims = list(range(2, x.dim()))
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = x.mean(dims, keepdim=True)
        return mean.view(N, C), (x - mean).square_().mean(dims)
    gamma, beta = _full_precision(None, None, x, (C,))
    _, mean, rstd = torch.native_group_norm(x, gamma, beta, N, C, S, C, 0.0)
    return mean.view(N, C), rstd.view(N, C).pow_(-2)


def _batch_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel: two tensors of shape (C,)."""
    if x.is_contiguous() and math.prod(x.shape[2:]) >= SHORTEST_INSTANCE:
        mean, var = _moments(x)
        return _merge(mean, var)
    mean, rstd = torch.native_batch_norm(
        x, None, None, None, None, True, 0.0, 0.0
    )[1:]  # fmt: skip
    return mean, rstd.pow(-2)


def _merge(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Chan's merge of equally large instances over n."""
    between, batch_mean = torch.var_mean(mean, 0, correction=0)
    return batch_mean, between.add_(var.mean(0))


def _update_running(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean: Tensor,
    unbiased_var: Tensor,
    momentum: float,
) -> None:
    if running_mean is not None:
        running_mean.mul_(1 - momentum).add_(mean, alpha=momentum)
    if running_var is not None:
        running_var.mul_(1 - momentum).add_(unbiased_var, alpha=momentum)


def _update_running_from_instances(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, momentum: float
) -> None:
    """Instance norm's running statistics: the batch's average of the instances' own."""
    S = math.prod(x.shape[2:])
    mean, var = _moments(x)
    _update_running(running_mean, running_var, mean.mean(0), var.mean(0) * (S / (S - 1)), momentum)


def _merge_instances(
    center: Tensor,
    var: Tensor,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Batch mean and rstd of batch-instance norm, from the instances or from the running ones."""
    if use_input_stats:
        mean, batch_var = _merge(center, var)
        count = x.numel() // x.shape[1]
        unbiased = batch_var * (count / (count - 1))
        _update_running(running_mean, running_var, mean, unbiased, momentum)
    else:
        mean, batch_var = _accumulation(running_mean, x), _accumulation(running_var, x)
        mean = mean.clone() if mean is running_mean else mean
    return mean, (batch_var + eps).rsqrt_()


def _apply(x: Tensor, center: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    """(x - center) * scale + shift with coefficients of shape (N, C)."""
    if not x.is_contiguous():
        z = (x - _broadcast(center, x)).mul_(_broadcast(scale, x))
        return (z if shift is None else z.add_(_broadcast(shift, x))).to(x.dtype)
    flat = None if shift is None else shift.flatten()
    ones = torch.ones_like(scale).flatten()
    y = torch.native_batch_norm(
        _per_instance(x), scale.flatten(), flat, center.flatten(), ones, False, 0.0, 0.0
    )[0]
    return y.view_as(x)


def _gradient_moments(g: Tensor, x: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """sum g and sum g (x - center) of each instance: two tensors of shape (N, C)."""
    if not x.is_contiguous():
        dims = list(range(2, x.dim()))
        g = g.to(center.dtype)
        return g.sum(dims), (x - _broadcast(center, x)).mul_(g).sum(dims)
    ones = torch.ones_like(center).view(1, -1)
    x = _per_instance(x)
    _, sum_gx, sum_g = aten.native_group_norm_backward(
        _per_instance(g), x, center.view(1, -1), ones, ones.view(-1), 1, x.shape[1], x.shape[2],
        x.shape[1], [False, True, True],
    )  # fmt: skip
    return sum_g.view_as(center), sum_gx.view_as(center)


def _merge_instances_backward(
    g: Tensor,
    x: Tensor,
    gamma: Tensor | None,
    rho: Tensor | None,
    stats: Tensors,
    use_input_stats: bool,
    needs_dx: bool,
) -> Tensors:
    """(dx, dgamma, dbeta, drho) of instance and batch-instance norm."""
    center, rstd, batch_mean, batch_rstd, scale = stats[:5]
    S = math.prod(x.shape[2:])
    sum_g, sum_gx = _gradient_moments(g, x, center)
    dbeta = sum_g.sum(0)
    instance = (rstd * sum_gx).sum(0)  # sum g x_hat, each x_hat by its instance's statistics
    share = rstd if gamma is None else gamma * rstd
    dgamma, drho = instance, None
    if rho is not None:
        share = (1 - rho) * share
        batch_gx = (sum_gx + (center - batch_mean) * sum_g).sum(0)
        dgamma = rho * batch_rstd * batch_gx + (1 - rho) * instance
        drho = batch_rstd * batch_gx - instance
        drho = drho if gamma is None else gamma * drho
    if not needs_dx:
        return None, dgamma, dbeta, drho
    share = share / -S
    slope, level = share * rstd.square() * sum_gx, share * sum_g
    if rho is not None and use_input_stats:
        share = rho * batch_rstd / (-S * x.shape[0])
        share = share if gamma is None else gamma * share
        batch_slope = share * batch_rstd.square() * batch_gx
        slope = slope + batch_slope
        level = level + share * dbeta + batch_slope * (center - batch_mean)
    dx = _apply(x, center, slope, level)
    return dx.add_(g * _broadcast(scale, x).to(g.dtype)), dgamma, dbeta, drho
