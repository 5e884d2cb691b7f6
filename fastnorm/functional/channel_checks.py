"""The checks of norms of channels, for calls that `plain_route` did not find ordinary."""

from torch import Tensor

from ..checks import (
    check_channels,
    check_flag,
    check_input,
    check_more_than_one_value,
    check_number,
    check_running,
    check_running_mean,
    check_tensors,
)
from ..contract import Inputs, NormSpec
from ..dispatch import autocast


def checked(
    op: str, inputs: Inputs, spec: NormSpec, flag: str = "training"
) -> tuple[Inputs, NormSpec]:
    """The inputs in autocast's dtype, and the spec with its numbers as floats.

    `flag` is op's name for `use_input_stats`. Raises what op's docstring says, and TypeError for
    an argument of a wrong type.
    """
    x, residual, weight, bias, rho, running_mean, running_var = inputs
    check_tensors(
        op, x, running_mean=running_mean, running_var=running_var, rho=rho,
        weight=weight, bias=bias, residual=residual,
    )  # fmt: skip
    check_flag(op, flag, spec.use_input_stats)
    _check_sizes(op, x, spec)
    eps = check_number(op, "eps", spec.eps)
    spec = spec._replace(eps=eps, momentum=check_number(op, "momentum", spec.momentum))
    x, residual = autocast(x, residual, spec.norm)
    check_input(op, x, 2, residual)
    _check_groups(op, x, spec)
    check_channels(op, x, weight, bias, running_mean, running_var, rho)
    _check_eps(op, spec)
    if spec.norm == "mean_only_batch":
        check_running_mean(op, x, running_mean, spec.use_input_stats)
    else:
        check_running(op, x, running_mean, running_var, flag, spec.use_input_stats)
    return inputs._replace(x=x, residual=residual), spec


def is_empty_vector(tensor: Tensor | None) -> bool:
    """torch's batch norm takes one: a batch without channels."""
    return isinstance(tensor, Tensor) and tensor.shape == (0,)


def as_matrix(tensor: Tensor | None) -> Tensor | None:
    """An empty vector as (0, 0); others as they are."""
    return tensor.view(0, 0) if tensor is not None and is_empty_vector(tensor) else tensor


def _check_sizes(op: str, x: Tensor, spec: NormSpec) -> None:
    """Raises ValueError if a variance would be that of one value."""
    if spec.norm == "batch_instance" or (spec.norm == "instance" and spec.use_input_stats):
        check_more_than_one_value(op, x, x.shape[2:], "instance")
    elif spec.norm == "batch" and spec.use_input_stats:
        check_more_than_one_value(op, x, x.shape[:1] + x.shape[2:], "channel")


def _check_groups(op: str, x: Tensor, spec: NormSpec) -> None:
    if spec.norm != "group":
        return
    N, C, *sizes = x.shape
    if spec.groups > 0:
        check_more_than_one_value(op, x, [N * C // spec.groups, *sizes], "group")
    if spec.groups <= 0 or C % spec.groups:
        raise RuntimeError(
            f"{op} got num_groups={spec.groups} for an input of shape {tuple(x.shape)}: "
            f"it has to be positive and divide the {C} channels"
        )


def _check_eps(op: str, spec: NormSpec) -> None:
    if op == "batch_norm" and (spec.eps < 0 or (spec.use_input_stats and spec.eps == 0)):
        raise ValueError(
            f"{op} got eps={spec.eps}: it has to be positive in training, not negative in eval"
        )
    if op == "batch_instance_norm" and spec.eps <= 0:
        raise ValueError(f"{op} got eps={spec.eps}: it has to be positive")
