"""The norms from ATen's fused operators: the fast path where Triton cannot run.

The three stages are those of the kernels, each found inside an operator that does more, because
on a CPU ATen vectorises those operators and not the obvious ones (`var_mean`, `addcmul`):

    moments            native_group_norm, one channel a group, returns each (n, c)'s mean and rstd
    apply              native_batch_norm in eval mode, every (n, c) a channel of its own
    gradient moments   native_batch_norm_backward, likewise, asked only for dgamma and dbeta

They need (N, C, S) contiguous; batch-instance and instance norm channels last take the plain
formula. Batch norm's backward is ATen's own, and so are group norm and layer norm whole, with their
autograd. Statistics are float32, float64 for float64 tensors.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Tensors = tuple[Tensor | None, ...]
Stats = tuple[Tensor, ...]
aten: Any = torch.ops.aten

# Instances shorter than this make the table of moments, not the tensor, the larger cost.
SHORTEST_INSTANCE = 32
# Longer ones lose digits in native_group_norm's float32 running mean: they take the plain formula.
LONGEST_INSTANCE = 4096
# Where a mean is this many std away from 0 its rounding to float32 would show as in no other
# backend: the whole call is computed in float64.
FAR_MEAN = 16.0


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
) -> tuple[Tensor, Stats]:
    """y = act(norm(x) + residual) and the statistics channel_norm_backward takes.

    The signature is the kernels'; norm is batch, instance or batch_instance, so `groups` is idle.
    """
    shape, dtype = x.shape, x.dtype
    x = _canonical(x)
    arguments = (weight, bias, rho, (running_mean, running_var, momentum), use_input_stats, eps)
    result = _forward(norm, x, *arguments) or _forward(norm, x.double(), *arguments)
    assert result is not None, "_is_far never asks for more than float64"
    z, *stats = result
    return _activate(z.to(dtype).view(shape), residual, activation, tuple(stats))


def channel_norm_backward(
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
    dresidual = _activate_backward(dy, side, stats, activation)
    needs_dx, needs_dresidual, needs_dweight, needs_dbias, needs_drho = needs
    dx = dweight = dbias = drho = None
    mask = [needs_dx, needs_dweight, needs_dbias]
    if any((*mask, needs_drho)):
        x = _canonical(x)
        g = _laid_out_as(x, dresidual)
        if stats[0].dtype == torch.float64:  # forward took float64 for the sake of a far mean
            x, g = x.double(), g.double()
        if norm == "batch":
            dx, dweight, dbias = _batch_norm_backward(g, x, weight, stats, use_input_stats, mask)
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


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """act(layer_norm(input) + residual) by torch's own differentiable operators."""
    weight, bias = _accumulation(weight, input), _accumulation(bias, input)
    z = torch.layer_norm(input, list(normalized_shape), weight, bias, eps)
    return _activate(z, residual, activation, ())[0]


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """act(group_norm(input) + residual) by torch's own differentiable operators."""
    x = _canonical(input)
    z = torch.group_norm(x, num_groups, _accumulation(weight, x), _accumulation(bias, x), eps)
    z = z if z.shape == input.shape else z.view(input.shape)
    return _activate(z, residual, activation, ())[0]


def side_input(activation: str | None, has_residual: bool) -> str | None:
    """What backward needs beside x: ReLU's output.

    The smooth activations keep z among the stats and the residual for the second derivative alone.
    """
    if activation == "relu":
        return "output"
    return "residual" if activation is not None and has_residual else None


def _activate(
    z: Tensor, residual: Tensor | None, activation: str | None, stats: Stats
) -> tuple[Tensor, Stats]:
    if residual is not None:
        z = z.add_(residual)
    if activation is None:
        return z, stats
    if activation == "relu":
        return z.relu_(), stats
    return (F.silu(z) if activation == "silu" else F.gelu(z)), (*stats, z)


def _activate_backward(
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


Running = tuple[Tensor | None, Tensor | None, float]  # mean, variance, momentum


def _forward(
    norm: str,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    rho: Tensor | None,
    running: Running,
    use_input_stats: bool,
    eps: float,
) -> Stats | None:
    """(z, *stats) of a canonical x, or None, with nothing written, where it wants float64."""
    gamma, beta = _accumulation(weight, x), _accumulation(bias, x)
    if norm == "batch":
        return _batch_norm(x, gamma, beta, running, use_input_stats, eps)
    if norm == "instance" and x.is_contiguous() and _S(x) <= LONGEST_INSTANCE:
        return _instance_norm(x, gamma, beta, running, eps)
    return _mixed_norm(x, gamma, beta, _accumulation(rho, x), running, use_input_stats, eps)


def _batch_norm(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    running: Running,
    use_input_stats: bool,
    eps: float,
) -> Stats | None:
    """(z, mean, rstd), statistics of shape (C,)."""
    gamma, beta = _full_precision(gamma, beta, x, x.shape[1:2])
    if not use_input_stats:
        mean, var = _running_statistics(running, x)
    elif x.is_contiguous() and _S(x) >= SHORTEST_INSTANCE:
        mean, var = _moments(x)
        if _is_far(mean, var):
            return None
        mean, var = _merge(mean, var)
        _update_running(running, mean, var, x.numel() // x.shape[1])
    else:
        z, mean, rstd = torch.native_batch_norm(x, gamma, beta, None, None, True, 0.0, eps)
        _update_running(running, mean, rstd.pow(-2).sub_(eps), x.numel() // x.shape[1])
        return z, mean, rstd
    z = torch.native_batch_norm(x, gamma, beta, mean, var, False, 0.0, eps)[0]
    return z, mean, (var + eps).rsqrt_()


def _batch_norm_backward(
    g: Tensor, x: Tensor, weight: Tensor | None, stats: Stats, train: bool, mask: list[bool]
) -> Tensors:
    mean, rstd = stats[:2]
    gamma, _ = _full_precision(_accumulation(weight, x), None, x, x.shape[1:2])
    # In eval mode the operator takes the running variance and eps: rstd^-2 and 0 say the same.
    var = None if train else rstd.pow(-2)
    return aten.native_batch_norm_backward(g, x, gamma, mean, var, mean, rstd, train, 0.0, mask)


def _instance_norm(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, running: Running, eps: float
) -> Stats | None:
    """(z, mean, rstd) of the contiguous x, statistics of shape (N, C)."""
    N, C = x.shape[:2]
    gamma, beta = _full_precision(gamma, beta, x, (C,))
    z, mean, rstd = torch.native_group_norm(x, gamma, beta, N, C, _S(x), C, eps)
    if _is_far(mean, rstd.pow(-2)):
        return None
    if running[0] is not None or running[1] is not None:
        exact_mean, var = _moments(x)
        _update_running(running, exact_mean.mean(0), var.mean(0), _S(x))
    return z, mean.view(N, C), rstd.view(N, C)


def _instance_norm_backward(
    g: Tensor, x: Tensor, weight: Tensor | None, stats: Stats, mask: list[bool]
) -> Tensors:
    N, C = x.shape[:2]
    mean, rstd = stats[0].flatten(), stats[1].flatten()
    gamma, _ = _full_precision(_accumulation(weight, x), None, x, (C,))
    dx, dgamma, dbeta = aten.native_batch_norm_backward(
        _per_instance(g), _per_instance(x), None if gamma is None else gamma.repeat(N),
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
    center, var = _moments(x)
    if _is_far(center, var):
        return None
    rstd = (var + eps).rsqrt_()
    if rho is None:
        _update_running(running, center.mean(0), var.mean(0), _S(x))
        scale = rstd if gamma is None else gamma * rstd
        z = _apply(x, center, scale, None if beta is None else beta.expand_as(scale))
        return z, center, rstd, scale
    if use_input_stats:
        batch_mean, batch_var = _merge(center, var)
        _update_running(running, batch_mean, batch_var, x.numel() // x.shape[1])
    else:
        batch_mean, batch_var = _running_statistics(running, x)
    batch_rstd = (batch_var + eps).rsqrt_()
    batch_scale = rho * batch_rstd
    scale = torch.addcmul(batch_scale, 1 - rho, rstd)
    shift = (center - batch_mean).mul_(batch_scale)
    if gamma is not None:
        scale = gamma * scale
        shift.mul_(gamma)
    if beta is not None:
        shift.add_(beta)
    return _apply(x, center, scale, shift), center, rstd, scale, batch_mean, batch_rstd


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
    gamma, rho = _accumulation(weight, x), _accumulation(rho, x)
    center, rstd, scale = stats[:3]
    sum_g, sum_gx = _gradient_moments(g, x, center)
    dbeta = sum_g.sum(0)
    instance_gx = rstd * sum_gx  # sum g x_hat, x_hat by the instance's own statistics
    dgamma = instance_gx.sum(0)
    share = rstd if gamma is None else gamma * rstd
    if rho is None:
        if not needs_dx:
            return None, dgamma, dbeta, None
        share = share / -_S(x)
        slope, level = share * rstd * instance_gx, share * sum_g
        return _apply_backward(g, x, center, scale, slope, level), dgamma, dbeta, None
    batch_mean, batch_rstd = stats[3:5]
    batch_gx = torch.addcmul(sum_gx, center - batch_mean, sum_g).sum(0).mul_(batch_rstd)
    drho = batch_gx - dgamma
    dgamma = torch.addcmul(dgamma, rho, drho)
    drho = drho if gamma is None else gamma * drho
    if not needs_dx:
        return None, dgamma, dbeta, drho
    share = (1 - rho) * share / -_S(x)
    slope, level = share * rstd * instance_gx, share * sum_g
    if use_input_stats:
        share = rho * batch_rstd / (-_S(x) * x.shape[0])
        share = share if gamma is None else gamma * share
        batch_slope = share * batch_rstd * batch_gx
        slope += batch_slope
        level.addcmul_(center - batch_mean, batch_slope).add_(share * dbeta)
    return _apply_backward(g, x, center, scale, slope, level), dgamma, dbeta, drho


def _canonical(x: Tensor) -> Tensor:
    """x contiguous, or where its channels lie last (N, C, 1, S) in ATen's channels_last format."""
    if x.is_contiguous() or not x.movedim(1, -1).is_contiguous():
        return x.contiguous()
    return x.flatten(2).unsqueeze(2)


def _laid_out_as(x: Tensor, other: Tensor) -> Tensor:
    """`other`, of the shape x had before _canonical, in x's shape and layout."""
    if x.is_contiguous():
        return other.contiguous()
    return other.flatten(2).unsqueeze(2).contiguous(memory_format=torch.channels_last)


def _accumulation(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    """A parameter, contiguous and in the dtype of the statistics."""
    if parameter is None:
        return None
    return parameter.to(torch.promote_types(x.dtype, torch.float32)).contiguous()


def _full_precision(
    gamma: Tensor | None, beta: Tensor | None, x: Tensor, shape: tuple[int, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """float32 parameters for float16 and bfloat16 x: with them ATen keeps float32 statistics."""
    if x.dtype not in (torch.float16, torch.bfloat16):
        return gamma, beta
    gamma = torch.ones(shape, device=x.device) if gamma is None else gamma
    return gamma, torch.zeros(shape, device=x.device) if beta is None else beta


def _S(x: Tensor) -> int:
    return math.prod(x.shape[2:])


def _per_instance(x: Tensor) -> Tensor:
    """The contiguous x (N, C, ...) as (1, N C, S): every instance a channel of its own."""
    return x.view(1, x.shape[0] * x.shape[1], -1)


def _broadcast(coefficient: Tensor, x: Tensor) -> Tensor:
    return coefficient.view(*coefficient.shape, *[1] * (x.dim() - 2))


def _is_far(mean: Tensor, var: Tensor) -> bool:
    """Whether some mean is more than FAR_MEAN std from 0; never for float64."""
    if mean.dtype == torch.float64:
        return False
    return bool((mean.square() > FAR_MEAN**2 * var).any())


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each instance: two tensors of shape (N, C)."""
    N, C = x.shape[:2]
    if x.is_contiguous() and _S(x) <= LONGEST_INSTANCE:
        gamma, beta = _full_precision(None, None, x, (C,))
        _, mean, rstd = torch.native_group_norm(x, gamma, beta, N, C, _S(x), C, 0.0)
        return mean.view(N, C), rstd.view(N, C).pow(-2)
    dims = list(range(2, x.dim()))
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    mean = x.mean(dims, keepdim=True)
    deviation = x - mean
    error = deviation.mean(dims, keepdim=True)
    return (mean + error).view(N, C), deviation.sub_(error).square_().mean(dims)


def _merge(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Chan's merge of equally large instances over n."""
    between, batch_mean = torch.var_mean(mean, 0, correction=0)
    return batch_mean, between.add_(var.mean(0))


def _running_statistics(running: Running, x: Tensor) -> tuple[Tensor, Tensor]:
    """Copies in the dtype of the statistics: backward must see the values that forward used."""
    mean, var, _ = running
    assert mean is not None and var is not None, "fastnorm.functional checks that both are there"
    dtype = torch.promote_types(x.dtype, torch.float32)
    return mean.to(dtype, copy=True), var.to(dtype, copy=True)


def _update_running(running: Running, mean: Tensor, var: Tensor, count: int) -> None:
    """running = (1 - momentum) running + momentum new; `var` is biased, the running one is not."""
    running_mean, running_var, momentum = running
    if running_mean is not None:
        running_mean.mul_(1 - momentum).add_(mean, alpha=momentum)
    if running_var is not None:
        running_var.mul_(1 - momentum).add_(var, alpha=momentum * count / (count - 1))


def _apply(x: Tensor, center: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    """(x - center) * scale + shift with coefficients of shape (N, C)."""
    if not x.is_contiguous():
        z = (x - _broadcast(center, x)).mul_(_broadcast(scale, x))
        return (z if shift is None else z.add_(_broadcast(shift, x))).to(x.dtype)
    if shift is None and x.dtype in (torch.float16, torch.bfloat16):
        shift = torch.zeros_like(scale)
    y = torch.native_batch_norm(
        _per_instance(x), scale.flatten(), None if shift is None else shift.flatten(),
        center.flatten(), torch.ones_like(scale).flatten(), False, 0.0, 0.0,
    )[0]  # fmt: skip
    return y.view_as(x)


def _gradient_moments(g: Tensor, x: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """sum g and sum g (x - center) of each instance: two tensors of shape (N, C)."""
    if not x.is_contiguous():
        g = g.to(center.dtype)
        return g.sum((2, 3)), (x - _broadcast(center, x)).mul_(g).sum((2, 3))
    mean, ones = center.flatten(), torch.ones_like(center).flatten()
    _, sum_gx, sum_g = aten.native_batch_norm_backward(
        _per_instance(g), _per_instance(x), ones, mean, None, mean, ones, True, 0.0,
        [False, True, True],
    )  # fmt: skip
    return sum_g.view_as(center), sum_gx.view_as(center)


def _apply_backward(
    g: Tensor, x: Tensor, center: Tensor, scale: Tensor, slope: Tensor, level: Tensor
) -> Tensor:
    """scale * g + slope * (x - center) + level, rounded to x's dtype once."""
    if x.is_contiguous() and x.dtype in (torch.float32, torch.float64):
        return _apply(x, center, slope, level).addcmul_(g, _broadcast(scale, x))
    dx = (x - _broadcast(center, x)).mul_(_broadcast(slope, x)).add_(_broadcast(level, x))
    return dx.add_(g * _broadcast(scale, x)).to(x.dtype)
