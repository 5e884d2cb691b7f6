"""The three stages on a CPU: moments, merge and apply of (N, C, S) tensors from ATen's operators.

The package's docstring says which operator serves which stage, `channels.py` composes the norms.
"""

import math
from typing import Any

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)
Running = tuple[Tensor | None, Tensor | None, float]  # mean, variance, momentum
aten: Any = torch.ops.aten

# Longer ones lose digits in native_group_norm's float32 running mean: they take the plain formula.
LONGEST_INSTANCE = 4096
# Where a mean is this many std away from 0 its rounding to float32 would show as in no other
# backend: the whole call is computed in float64.
FAR_MEAN = 16.0


def canonical(x: Tensor) -> Tensor:
    """x contiguous, or where its channels lie last (N, C, 1, S) in ATen's channels_last format."""
    return _channels_last_view(x) if lies_channels_last(x) else x.contiguous()


def canonical_as(x: Tensor, other: Tensor) -> Tensor:
    """`other`, of the shape x had before canonical, in x's shape and layout."""
    if x.is_contiguous():
        return other.contiguous()
    return _channels_last_view(other.movedim(1, -1).contiguous().movedim(-1, 1))


def laid_out_as(x: Tensor, z: Tensor) -> Tensor:
    """z, of x's shape, in memory as a contiguous or channels_last x is; else contiguous."""
    if not lies_channels_last(x):
        return z.contiguous()
    return z if z.stride() == x.stride() else z.movedim(1, -1).contiguous().movedim(-1, 1)


def lies_channels_last(x: Tensor) -> bool:
    """Whether x (N, C, ...) is dense with its channels last, and not contiguous as well."""
    if x.is_contiguous():
        return False
    if x.dim() == 4:  # the quickest way to ask
        return x.is_contiguous(memory_format=torch.channels_last)
    return x.movedim(1, -1).is_contiguous()


def _channels_last_view(x: Tensor) -> Tensor:
    """Strides spelt out: ATen tells the format by them, those of dimensions of size 1 included."""
    (N, C), S = x.shape[:2], positions(x)
    return x.as_strided((N, C, 1, S), (S * C, 1, S * C, C))


def widened(x: Tensor) -> Tensor:
    """x in float32 where it is half precision off the CPU: ATen's other kernels want parameters of
    x's own dtype, and statistics belong in float32."""
    half = x.dtype in HALF
    return x.float() if half and x.device.type != "cpu" else x


def accumulated(x: Tensor) -> torch.dtype:
    """The dtype of statistics: float64 for float64 tensors, else float32."""
    return torch.promote_types(x.dtype, torch.float32)


def accumulation(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    """A parameter, contiguous and in the dtype of the statistics."""
    if parameter is None:
        return None
    return parameter.to(accumulated(x)).contiguous()


def full_precision(
    gamma: Tensor | None, beta: Tensor | None, x: Tensor, shape: tuple[int, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """float32 parameters for float16 and bfloat16 x: with them ATen keeps float32 statistics."""
    if x.dtype not in HALF:
        return gamma, beta
    gamma = torch.ones(shape, device=x.device) if gamma is None else gamma
    return gamma, torch.zeros(shape, device=x.device) if beta is None else beta


def positions(x: Tensor) -> int:
    return math.prod(x.shape[2:])


def per_instance(x: Tensor) -> Tensor:
    """The contiguous x (N, C, ...) as (1, N C, S): every instance a channel of its own."""
    return x.view(1, x.shape[0] * x.shape[1], -1)


def broadcast(coefficient: Tensor, x: Tensor) -> Tensor:
    return coefficient.view(*coefficient.shape, *[1] * (x.dim() - 2))


def is_far(mean: Tensor, var: Tensor) -> bool:
    """Whether some mean is more than FAR_MEAN std from 0; never for float64."""
    if mean.dtype == torch.float64:
        return False
    excess = torch.sub(mean.square(), var, alpha=FAR_MEAN**2).max().item()
    return not excess <= 0.0  # NaN, from an overflow, is far


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each instance of a contiguous x: two tensors of shape (N, C)."""
    N, C = x.shape[:2]
    if positions(x) <= LONGEST_INSTANCE:
        gamma, beta = full_precision(None, None, x, (C,))
        _, mean, rstd = torch.native_group_norm(x, gamma, beta, N, C, positions(x), C, 0.0)
        return mean.view(N, C), rstd.view(N, C).pow(-2)
    dims = list(range(2, x.dim()))
    x = x.to(accumulated(x))
    mean = x.mean(dims, keepdim=True)
    deviation = x - mean
    error = deviation.mean(dims, keepdim=True)
    return (mean + error).view(N, C), deviation.sub_(error).square_().mean(dims)


def merge(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Chan's merge of equally large instances over n."""
    between, batch_mean = torch.var_mean(mean, 0, correction=0)
    return batch_mean, between.add_(var.mean(0))


def running_statistics(running: Running, x: Tensor) -> tuple[Tensor, Tensor]:
    """Copies in the dtype of the statistics: backward must see the values that forward used."""
    mean, var, _ = running
    assert mean is not None and var is not None, "fastnorm.functional checks that both are there"
    dtype = accumulated(x)
    return mean.to(dtype, copy=True), var.to(dtype, copy=True)


def update_running(running: Running, mean: Tensor, var: Tensor, count: int) -> None:
    """running = (1 - momentum) running + momentum new; `var` is biased, the running one is not."""
    running_mean, running_var, momentum = running
    if running_mean is not None:
        running_mean.mul_(1 - momentum).add_(mean, alpha=momentum)
    if running_var is not None:
        running_var.mul_(1 - momentum).add_(var, alpha=momentum * count / (count - 1))


def apply(x: Tensor, center: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    """(x - center) * scale + shift of a contiguous x, with coefficients of shape (N, C)."""
    if shift is None and x.dtype in HALF:
        shift = torch.zeros_like(scale)
    y = torch.native_batch_norm(
        per_instance(x), scale.reshape(-1), None if shift is None else shift.reshape(-1),
        center.reshape(-1), torch.ones_like(scale).reshape(-1), False, 0.0, 0.0,
    )[0]  # fmt: skip
    return y.view_as(x)


def gradient_moments(g: Tensor, x: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """sum g and sum g (x - center) of each instance of the contiguous x: two of shape (N, C)."""
    mean, ones = center.reshape(-1), torch.ones_like(center).reshape(-1)
    _, sum_gx, sum_g = aten.native_batch_norm_backward(
        per_instance(g), per_instance(x), ones, mean, None, mean, ones, True, 0.0,
        [False, True, True],
    )  # fmt: skip
    return sum_g.view_as(center), sum_gx.view_as(center)


def apply_backward(
    g: Tensor, x: Tensor, center: Tensor, scale: Tensor, slope: Tensor, level: Tensor
) -> Tensor:
    """scale * g + slope * (x - center) + level of a contiguous x, rounded to its dtype once."""
    wide = x.to(accumulated(x))
    return apply(wide, center, slope, level).addcmul_(g, broadcast(scale, x)).to(x.dtype)
