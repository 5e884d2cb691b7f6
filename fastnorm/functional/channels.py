"""Norms of (N, C, ...): statistics and parameters of channels."""

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from ..activations import ActivationLike, canonical
from ..autograd import apply_norm
from ..contract import Inputs, NormSpec
from ..dispatch import normalise
from ..modulation import modulated_channels
from ..plain import plain_route
from .channel_checks import as_matrix, checked, is_empty_vector


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
    activation: ActivationLike = None,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """Batch normalisation of input (N, C, ...), statistics of each channel (arXiv 1502.03167).

    running_mean, running_var, weight and bias have shape (C,) or are None. With `training` the
    batch's statistics normalise, and the running ones, if given, move towards them by `momentum`
    (the variance unbiased). Without it the running ones normalise, and have to be given.

    scale and shift, (N, C) or None, modulate each sample: act(norm(x) (1 + scale) + shift +
    residual), with the sources in `fastnorm.modulation`.

    Raises ValueError for one value per channel in training and for eps <= 0 in training (< 0 else),
    RuntimeError for parameters of another shape, NotImplementedError for dtypes without kernels.
    """
    tensors = (input, running_mean, running_var, weight, bias, residual, scale, shift)
    if has_torch_function_variadic(*tensors):
        return handle_torch_function(
            batch_norm, tensors,
            input, running_mean, running_var, weight, bias, training, momentum, eps,
            activation=activation, residual=residual, scale=scale, shift=shift,
        )  # fmt: skip
    after = canonical(activation, "batch_norm")
    spec = NormSpec("batch", 1, training, momentum, eps, after)
    parameters = (weight, bias, running_mean, running_var)
    route = plain_route(input, residual, None, parameters)
    gamma, beta = weight, bias
    if scale is not None or shift is not None:
        gamma, beta = modulated_channels("batch_norm", input, weight, bias, scale, shift, route)
    if (
        route is not None
        and input.dim() > 1
        and input.numel() > input.shape[1]
        and _is_sound_running(running_mean, running_var, training)
        and type(momentum) is type(eps) is float
        and eps > 0
    ):
        return apply_norm(
            input, residual, gamma, beta, None, running_mean, running_var, spec, route
        )
    if is_empty_vector(input):
        return batch_norm(
            input.view(0, 0), running_mean, running_var, weight, bias, training, momentum, eps,
            activation=activation, residual=as_matrix(residual),
        ).view(0)  # fmt: skip
    inputs = Inputs(input, residual, weight, bias, None, running_mean, running_var)
    inputs, spec = checked("batch_norm", inputs, spec)
    return normalise(inputs._replace(weight=gamma, bias=beta), spec)


def mean_only_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    *,
    activation: ActivationLike = None,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """input - mean + bias, the mean of each channel of input (N, C, ...) (arXiv 1602.07868, 4).

    running_mean and bias have shape (C,) or are None. With `training` the batch's mean is taken and
    the running one, if given, moves towards it by `momentum`; without it the running one is taken,
    and has to be given. One value per channel is its own mean, and y is then the bias.

    scale and shift, (N, C) or None, modulate each sample: act(norm(x) (1 + scale) + shift +
    residual), with the sources in `fastnorm.modulation`.

    Raises RuntimeError for parameters of another shape and for no running_mean without `training`,
    NotImplementedError for dtypes without kernels.
    """
    tensors = (input, running_mean, bias, residual, scale, shift)
    if has_torch_function_variadic(*tensors):
        return handle_torch_function(
            mean_only_batch_norm, tensors,
            input, running_mean, bias, training, momentum,
            activation=activation, residual=residual, scale=scale, shift=shift,
        )  # fmt: skip
    after = canonical(activation, "mean_only_batch_norm")
    spec = NormSpec("mean_only_batch", 1, training, momentum, 0.0, after)
    parameters = (bias, running_mean)
    route = plain_route(input, residual, None, parameters)
    gamma, beta = None, bias
    if scale is not None or shift is not None:
        gamma, beta = modulated_channels(
            "mean_only_batch_norm", input, None, bias, scale, shift, route
        )
    if (
        route is not None
        and input.dim() > 1
        and type(training) is bool
        and (training if running_mean is None else not running_mean.requires_grad)
        and type(momentum) is float
    ):
        return apply_norm(input, residual, gamma, beta, None, running_mean, None, spec, route)
    inputs = Inputs(input, residual, None, bias, None, running_mean)
    inputs, spec = checked("mean_only_batch_norm", inputs, spec)
    return normalise(inputs._replace(weight=gamma, bias=beta), spec)


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
    activation: ActivationLike = None,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """Instance normalisation of input (N, C, ...), statistics of each (n, c) (arXiv 1607.08022).

    Parameters and running statistics have shape (C,) or are None. With `use_input_stats` the
    running statistics, if given, move towards the batch's average of the instances'; without it
    they normalise, and have to be given.

    scale and shift, (N, C) or None, modulate each sample: act(norm(x) (1 + scale) + shift +
    residual), with the sources in `fastnorm.modulation`.

    Raises ValueError for one value per instance, RuntimeError for parameters of another shape,
    NotImplementedError for dtypes without kernels.
    """
    tensors = (input, running_mean, running_var, weight, bias, residual, scale, shift)
    if has_torch_function_variadic(*tensors):
        return handle_torch_function(
            instance_norm, tensors,
            input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps,
            activation=activation, residual=residual, scale=scale, shift=shift,
        )  # fmt: skip
    after = canonical(activation, "instance_norm")
    # Normalised by constants, instances are no different from a batch.
    norm = "instance" if use_input_stats else "batch"
    spec = NormSpec(norm, 1, use_input_stats, momentum, eps, after)
    parameters = (weight, bias, running_mean, running_var)
    route = plain_route(input, residual, None, parameters)
    gamma, beta = weight, bias
    if scale is not None or shift is not None:
        gamma, beta = modulated_channels("instance_norm", input, weight, bias, scale, shift, route)
    if (
        route is not None
        and input.dim() > 1
        and input.numel() > input.shape[0] * input.shape[1]
        and _is_sound_running(running_mean, running_var, use_input_stats)
        and type(momentum) is type(eps) is float
    ):
        return apply_norm(
            input, residual, gamma, beta, None, running_mean, running_var, spec, route
        )
    inputs = Inputs(input, residual, weight, bias, None, running_mean, running_var)
    inputs, spec = checked("instance_norm", inputs, spec, "use_input_stats")
    return normalise(inputs._replace(weight=gamma, bias=beta), spec)


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
    activation: ActivationLike = None,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """weight * (rho * batch_norm(x) + (1 - rho) * instance_norm(x)) + bias (arXiv 1805.07925).

    input is (N, C, ...), rho (C,), taken as it is: the module keeps it in [0, 1]. The batch part
    follows `training` as batch_norm does, the instance part always takes the input's statistics.

    scale and shift, (N, C) or None, modulate each sample: act(norm(x) (1 + scale) + shift +
    residual), with the sources in `fastnorm.modulation`.

    Raises what batch_norm raises, and ValueError for one value per instance in either mode.
    """
    tensors = (input, running_mean, running_var, rho, weight, bias, residual, scale, shift)
    if has_torch_function_variadic(*tensors):
        return handle_torch_function(
            batch_instance_norm, tensors,
            input, running_mean, running_var, rho, weight, bias, training, momentum, eps,
            activation=activation, residual=residual, scale=scale, shift=shift,
        )  # fmt: skip
    after = canonical(activation, "batch_instance_norm")
    spec = NormSpec("batch_instance", 1, training, momentum, eps, after)
    parameters = (weight, bias, rho, running_mean, running_var)
    route = plain_route(input, residual, None, parameters)
    gamma, beta = weight, bias
    if scale is not None or shift is not None:
        gamma, beta = modulated_channels(
            "batch_instance_norm", input, weight, bias, scale, shift, route
        )
    if (
        route is not None
        and input.dim() > 1
        and input.numel() > input.shape[0] * input.shape[1]
        and _is_sound_running(running_mean, running_var, training)
        and type(momentum) is type(eps) is float
        and eps > 0
    ):
        return apply_norm(input, residual, gamma, beta, rho, running_mean, running_var, spec, route)
    inputs = Inputs(input, residual, weight, bias, rho, running_mean, running_var)
    inputs, spec = checked("batch_instance_norm", inputs, spec)
    return normalise(inputs._replace(weight=gamma, bias=beta), spec)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: ActivationLike = None,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """Group normalisation of input (N, C, ...), statistics of C / num_groups channels each.

    weight and bias have shape (C,) or are None. One group is layer norm as CNNs use it, C groups
    are instance norm. Source: arXiv 1803.08494.

    scale and shift, (N, C) or None, modulate each sample: act(norm(x) (1 + scale) + shift +
    residual), with the sources in `fastnorm.modulation`.

    Raises RuntimeError if num_groups does not divide C or a parameter has another shape,
    ValueError for a single value per group, NotImplementedError for dtypes without kernels.
    """
    tensors = (input, weight, bias, residual, scale, shift)
    if has_torch_function_variadic(*tensors):
        return handle_torch_function(
            group_norm, tensors,
            input, num_groups, weight, bias, eps,
            activation=activation, residual=residual, scale=scale, shift=shift,
        )  # fmt: skip
    after = canonical(activation, "group_norm")
    spec = NormSpec("group", num_groups, True, 0.0, eps, after)
    parameters = (weight, bias)
    route = plain_route(input, residual, None, parameters)
    gamma, beta = weight, bias
    if scale is not None or shift is not None:
        gamma, beta = modulated_channels("group_norm", input, weight, bias, scale, shift, route)
    if (
        route is not None
        and input.dim() > 1
        and num_groups > 0
        and input.shape[1] % num_groups == 0
        and input.numel() > num_groups
        and type(eps) is float
    ):
        return apply_norm(input, residual, gamma, beta, None, None, None, spec, route)
    inputs, spec = checked("group_norm", Inputs(input, residual, weight, bias), spec)
    return normalise(inputs._replace(weight=gamma, bias=beta), spec)


def _is_sound_running(
    running_mean: Tensor | None, running_var: Tensor | None, use_input_stats: bool
) -> bool:
    """Whether check_flag and check_running would accept them."""
    if type(use_input_stats) is not bool:
        return False
    if running_mean is None or running_var is None:
        return use_input_stats and running_mean is running_var
    return not (running_mean.requires_grad or running_var.requires_grad)
