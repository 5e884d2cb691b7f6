"""Each norm's formula in plain PyTorch: the definition that every backend is held to.

Signatures and meaning are those of `fastnorm.functional`. Any device, any floating dtype, any order
of derivative. float16 and bfloat16 are computed in float32 and rounded once, at the end.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """y = gamma (x - mean) / sqrt(var + eps) + beta, statistics of each channel over (N, S).

    Source: arXiv 1502.03167, algorithms 1 and 2.
    """
    x = _upcast(input)
    if training:
        deviation, mean, var = _moments(x, [dim for dim in range(x.dim()) if dim != 1])
        count = x.numel() // max(x.shape[1], 1)
        _update_running(running_mean, running_var, mean, var, count, momentum)
        y = deviation / (var + eps).sqrt()
    else:
        y = _normalise_by_constants(x, running_mean, running_var, eps)
    return _finish(y, input, weight, bias, activation, residual)


def mean_only_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """y = x - mean + beta, the mean of each channel over (N, S).

    Source: arXiv 1602.07868, section 4.
    """
    x = _upcast(input)
    if training:
        y, mean = _centre(x, [dim for dim in range(x.dim()) if dim != 1])
        _update_running(running_mean, None, mean, mean, x.numel() // max(x.shape[1], 1), momentum)
    else:
        assert running_mean is not None, "fastnorm.functional checks that it is there"
        y = x - _per_channel(running_mean, x)
    return _finish(y, input, None, bias, activation, residual)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """y = gamma (x - mean) / sqrt(var + eps) + beta, statistics of each (n, c) over S.

    Source: arXiv 1607.08022, equation 8. The running statistics take the average over n.
    """
    x = _upcast(input)
    if use_input_stats:
        deviation, mean, var = _moments(x, range(2, x.dim()))
        count = x.numel() // max(x.shape[0] * x.shape[1], 1)
        _update_running(
            running_mean, running_var, mean.mean(0, True), var.mean(0, True), count, momentum
        )
        y = deviation / (var + eps).sqrt()
    else:
        y = _normalise_by_constants(x, running_mean, running_var, eps)
    return _finish(y, input, weight, bias, activation, residual)


def batch_instance_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    rho: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """y = gamma (rho x_bn + (1 - rho) x_in) + beta, x_bn and x_in without affine parameters.

    Source: arXiv 1805.07925, equation 3.
    """
    x_bn = batch_norm(
        _upcast(input), running_mean, running_var, None, None, training, momentum, eps
    )
    x_in = instance_norm(_upcast(input), eps=eps)
    gate = _per_channel(rho, x_bn)
    mixed = gate * x_bn + (1 - gate) * x_in
    return _finish(mixed, input, weight, bias, activation, residual)


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
    """y = gamma (x - mean) / sqrt(var + eps) + beta, all over the last len(normalized_shape) dims.

    Source: arXiv 1607.06450, equations 3 and 4.
    """
    x = _upcast(input)
    y = _normalise(x, range(x.dim() - len(normalized_shape), x.dim()), eps)
    if weight is not None:
        y = y * weight.to(y.dtype)
    if bias is not None:
        y = y + bias.to(y.dtype)
    return _finish(y, input, None, None, activation, residual).contiguous()


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """y = gamma x / sqrt(mean(x^2) + eps), all over the last len(normalized_shape) dims.

    Source: arXiv 1910.07467, equation 4. eps is the machine epsilon of the computation by default.
    """
    x = _upcast(input)
    dims = list(range(x.dim() - len(normalized_shape), x.dim()))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    y = x / (x.square().mean(dims, keepdim=True) + eps).sqrt()
    if weight is not None:
        y = y * weight.to(y.dtype)
    return _finish(y, input, None, None, activation, residual).contiguous()


def add_layer_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """(layer_norm(s), s) of s = input + residual."""
    total = (input + residual).contiguous()
    return layer_norm(total, normalized_shape, weight, bias, eps), total


def add_rms_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> tuple[Tensor, Tensor]:
    """(rms_norm(s), s) of s = input + residual."""
    total = (input + residual).contiguous()
    return rms_norm(total, normalized_shape, weight, eps), total


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
    """y = gamma (x - mean) / sqrt(var + eps) + beta, statistics of each group of C / G channels.

    Source: arXiv 1803.08494, equations 1 to 6.
    """
    x = _upcast(input)
    N, C = x.shape[:2]
    grouped = x.reshape(N, num_groups, C // num_groups, *x.shape[2:])
    y = _normalise(grouped, range(2, grouped.dim()), eps)
    return _finish(y.reshape(x.shape), input, weight, bias, activation, residual)


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """w = g v / ||v||, the norm over all dimensions but `dim`, over all where that is -1.

    Source: arXiv 1602.07868, equation 2.
    """
    x = _upcast(v)
    norms_first = x if dim == -1 else x.movedim(dim, 0)
    rows = norms_first.reshape(g.numel(), x.numel() // max(g.numel(), 1))
    norms = rows.square().sum(1).sqrt()
    return (x * (g.to(x.dtype) / norms.view(g.shape))).to(v.dtype)


def activate(z: Tensor, activation: str | None) -> Tensor:
    """act(z) for activation in None, "relu", "silu", "gelu" (the exact, erf one)."""
    if activation is None:
        return z
    functions: dict[str, Callable[[Tensor], Tensor]]
    functions = {"relu": F.relu, "silu": F.silu, "gelu": F.gelu}
    return functions[activation](z)


def _upcast(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _normalise(x: Tensor, dims: Iterable[int], eps: float) -> Tensor:
    """(x - mean) / sqrt(var + eps), both over `dims`."""
    deviation, _, var = _moments(x, dims)
    return deviation / (var + eps).sqrt()


def _moments(x: Tensor, dims: Iterable[int]) -> tuple[Tensor, Tensor, Tensor]:
    """x - mean, and mean and biased variance over `dims`, kept as size 1."""
    dims = list(dims)
    deviation, mean = _centre(x, dims)
    return deviation, mean, deviation.square().mean(dims, keepdim=True)


def _centre(x: Tensor, dims: list[int]) -> tuple[Tensor, Tensor]:
    """x - mean and the mean over `dims`, kept as size 1.

    Centred twice: the second mean is the first one's rounding error, felt where mean >> std.
    """
    first = x.mean(dims, keepdim=True)
    deviation = x - first
    error = deviation.mean(dims, keepdim=True)
    return deviation - error, first + error


def _normalise_by_constants(
    x: Tensor, mean: Tensor | None, var: Tensor | None, eps: float
) -> Tensor:
    assert mean is not None and var is not None, "fastnorm.functional checks that both are there"
    return (x - _per_channel(mean, x)) / (_per_channel(var, x) + eps).sqrt()


def _per_channel(parameter: Tensor, x: Tensor) -> Tensor:
    return parameter.to(x.dtype).reshape(1, -1, *[1] * (x.dim() - 2))


def _update_running(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean: Tensor,
    var: Tensor,
    count: int,
    momentum: float,
) -> None:
    """running = (1 - momentum) running + momentum new, var unbiased: times count / (count - 1).

    No values leave no average. detach, not no_grad, which lets forward-mode tangents through.
    """
    if count == 0:
        return
    if running_mean is not None:
        running_mean.copy_((1 - momentum) * running_mean + momentum * mean.detach().flatten())
    if running_var is not None:
        unbiased = var.detach().flatten() * (count / (count - 1))
        running_var.copy_((1 - momentum) * running_var + momentum * unbiased)


def _finish(
    y: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
) -> Tensor:
    """Per-channel gamma and beta, the residual, the activation; the input's dtype and layout."""
    if weight is not None:
        y = y * _per_channel(weight, y)
    if bias is not None:
        y = y + _per_channel(bias, y)
    if residual is not None:
        y = y + residual.to(y.dtype)
    return activate(y, activation).to(input.dtype)
