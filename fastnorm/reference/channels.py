"""The formulas of norms of (N, C, ...): statistics and parameters of channels.

weight and bias are (C,), or (N, C) if each sample has its own. scale and shift, (N, C), come after
them: y (1 + scale) + shift, before the residual and the activation.
"""

from torch import Tensor

from .pieces import centre, channels_affine, finish, moments, normalise, per_channel, upcast


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
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """y = gamma (x - mean) / sqrt(var + eps) + beta, statistics of each channel over (N, S).

    Source: arXiv 1502.03167, algorithms 1 and 2.
    """
    x = upcast(input)
    if training:
        deviation, mean, var = moments(x, [dim for dim in range(x.dim()) if dim != 1])
        count = x.numel() // max(x.shape[1], 1)
        _update_running(running_mean, running_var, mean, var, count, momentum)
        y = deviation / (var + eps).sqrt()
    else:
        y = _normalise_by_constants(x, running_mean, running_var, eps)
    y = channels_affine(y, weight, bias, scale, shift)
    return finish(y, input, activation, residual)


def mean_only_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    *,
    weight: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """y = x - mean + beta, the mean of each channel over (N, S).

    Source: arXiv 1602.07868, section 4, which has no weight; modulated samples have one, (N, C).
    """
    x = upcast(input)
    if training:
        y, mean = centre(x, [dim for dim in range(x.dim()) if dim != 1])
        _update_running(running_mean, None, mean, mean, x.numel() // max(x.shape[1], 1), momentum)
    else:
        assert running_mean is not None, "fastnorm.functional checks that it is there"
        y = x - per_channel(running_mean, x)
    y = channels_affine(y, weight, bias, scale, shift)
    return finish(y, input, activation, residual)


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
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """y = gamma (x - mean) / sqrt(var + eps) + beta, statistics of each (n, c) over S.

    Source: arXiv 1607.08022, equation 8. The running statistics take the average over n.
    """
    x = upcast(input)
    if use_input_stats:
        deviation, mean, var = moments(x, range(2, x.dim()))
        count = x.numel() // max(x.shape[0] * x.shape[1], 1)
        _update_running(
            running_mean, running_var, mean.mean(0, True), var.mean(0, True), count, momentum
        )
        y = deviation / (var + eps).sqrt()
    else:
        y = _normalise_by_constants(x, running_mean, running_var, eps)
    y = channels_affine(y, weight, bias, scale, shift)
    return finish(y, input, activation, residual)


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
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """y = gamma (rho x_bn + (1 - rho) x_in) + beta, x_bn and x_in without affine parameters.

    Source: arXiv 1805.07925, equation 3.
    """
    x_bn = batch_norm(upcast(input), running_mean, running_var, None, None, training, momentum, eps)
    x_in = instance_norm(upcast(input), eps=eps)
    gate = per_channel(rho, x_bn)
    mixed = gate * x_bn + (1 - gate) * x_in
    y = channels_affine(mixed, weight, bias, scale, shift)
    return finish(y, input, activation, residual)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """y = gamma (x - mean) / sqrt(var + eps) + beta, statistics of each group of C / G channels.

    Source: arXiv 1803.08494, equations 1 to 6.
    """
    x = upcast(input)
    N, C = x.shape[:2]
    grouped = x.reshape(N, num_groups, C // num_groups, *x.shape[2:])
    y = normalise(grouped, range(2, grouped.dim()), eps)
    y = channels_affine(y.reshape(x.shape), weight, bias, scale, shift)
    return finish(y, input, activation, residual)


def _normalise_by_constants(
    x: Tensor, mean: Tensor | None, var: Tensor | None, eps: float
) -> Tensor:
    assert mean is not None and var is not None, "fastnorm.functional checks that both are there"
    return (x - per_channel(mean, x)) / (per_channel(var, x) + eps).sqrt()


def _update_running(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean: Tensor,
    var: Tensor,
    count: int,
    momentum: float,
) -> None:
    """running = (1 - momentum) running + momentum new, var unbiased: times count / (count - 1).

    A batch without values changes nothing. detach, not no_grad: that lets forward-mode tangents
    through.
    """
    if count == 0:
        return
    if running_mean is not None:
        running_mean.copy_((1 - momentum) * running_mean + momentum * mean.detach().flatten())
    if running_var is not None:
        unbiased = var.detach().flatten() * (count / (count - 1))
        running_var.copy_((1 - momentum) * running_var + momentum * unbiased)
