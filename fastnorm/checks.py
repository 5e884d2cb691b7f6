"""Checks of the arguments of `fastnorm.functional`. They raise torch's exception classes, before
anything is written."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import NoReturn

import torch
from torch import Tensor, nn

DTYPES = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))


def check_model(function: str, model: object) -> None:
    """Raises TypeError if `model` is no module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function} got {model!r} of {type(model)}: it needs a torch.nn.Module")


def check_input(
    op: str,
    input: Tensor,
    least_rank: int,
    residual: Tensor | None,
) -> None:
    if input.dim() < least_rank:
        raise RuntimeError(
            f"{op} expects an input of at least {least_rank} dimensions, got shape "
            f"{tuple(input.shape)}"
        )
    if input.dtype not in DTYPES:
        raise NotImplementedError(
            f"{op} is not implemented for {input.dtype} (input of shape {tuple(input.shape)}): "
            "convert it to float16, bfloat16, float32 or float64"
        )
    if residual is not None and (
        residual.shape != input.shape
        or residual.dtype != input.dtype
        or residual.device != input.device
    ):
        raise RuntimeError(
            f"{op} got a residual of shape {tuple(residual.shape)}, {residual.dtype}, on "
            f"'{residual.device}' for an input of shape {tuple(input.shape)}, {input.dtype}, on "
            f"'{input.device}': the three have to be equal"
        )


def check_gated(
    input: Tensor, gate: Tensor | None, weight: Tensor | None, group_size: int | None
) -> None:
    """gated_rms_norm's arguments: the gate is like input, and groups divide its last dimension."""
    op = "gated_rms_norm"
    check_input(op, input, 1, None)
    given = (input.shape, input.dtype, input.device)
    if gate is not None and (gate.shape, gate.dtype, gate.device) != given:
        raise RuntimeError(
            f"{op} got a gate of shape {tuple(gate.shape)}, {gate.dtype}, on '{gate.device}' for "
            f"an input of shape {tuple(input.shape)}, {input.dtype}, on '{input.device}': the "
            "three have to be equal"
        )
    check_rows(op, input, tuple(input.shape[-1:]), weight)
    check_group_size(op, input.shape[-1], group_size)


def check_group_size(op: str, length: int, group_size: int | None) -> None:
    if group_size is not None and (group_size <= 0 or length % group_size != 0):
        raise RuntimeError(
            f"{op} got group_size={group_size} for a last dimension of {length}: it has to be "
            "positive and to divide that"
        )


def check_channels(
    op: str,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    rho: Tensor | None = None,
) -> None:
    shape, device = input.shape[1:2], input.device
    for name, tensor in (
        ("weight", weight),
        ("bias", bias),
        ("running_mean", running_mean),
        ("running_var", running_var),
        ("rho", rho),
    ):
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise RuntimeError(
                f"{op} got {name} of shape {tuple(tensor.shape)} for an input of shape "
                f"{tuple(input.shape)}: it needs one element for each of the {shape[0]} channels"
            )
        if tensor.device != device or not tensor.is_floating_point():
            refuse_parameter(op, name, tensor, input)


def check_rows(
    op: str,
    input: Tensor,
    shape: tuple[int, ...],
    weight: Tensor | None,
    bias: Tensor | None = None,
) -> None:
    if not shape or tuple(input.shape[-len(shape) :]) != shape:
        raise RuntimeError(
            f"{op} got normalized_shape={list(shape)} for an input of shape "
            f"{tuple(input.shape)}: it has to be the input's last dimensions"
        )
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is None:
            continue
        if tuple(parameter.shape) != shape:
            raise RuntimeError(
                f"{op} got {name} of shape {tuple(parameter.shape)} for "
                f"normalized_shape={list(shape)}: the two have to be equal"
            )
        check_parameter(op, name, parameter, input)


def check_parameter(op: str, name: str, parameter: Tensor, input: Tensor) -> None:
    if parameter.device != input.device or not parameter.is_floating_point():
        refuse_parameter(op, name, parameter, input)


def refuse_parameter(op: str, name: str, parameter: Tensor, input: Tensor) -> NoReturn:
    raise RuntimeError(
        f"{op} got {name} of {parameter.dtype} on '{parameter.device}' for an input of "
        f"{input.dtype} on '{input.device}': it has to be floating-point and on that device"
    )


def check_more_than_one_value(op: str, input: Tensor, sizes: Sequence[int], unit: str) -> None:
    if math.prod(sizes) == 1:
        raise ValueError(
            f"{op} expected more than 1 value per {unit} when training, got input size "
            f"{tuple(input.shape)}: one value has no variance"
        )


def check_running(
    op: str,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    flag: str,
    use_input_stats: bool,
) -> None:
    """`flag` is op's name for `use_input_stats`; if it is False, both running statistics have to
    be given."""
    _check_no_gradient(op, running_mean, running_var)
    if not use_input_stats and (running_mean is None or running_var is None):
        raise RuntimeError(
            f"{op} of an input of shape {tuple(input.shape)} with {flag}=False needs running_mean "
            f"and running_var: pass both, or {flag}=True"
        )
    if (running_mean is None) != (running_var is None):
        missing = "running_mean" if running_mean is None else "running_var"
        raise ValueError(f"{op} got no {missing}: running_mean and running_var come together")


def _check_no_gradient(op: str, *running: Tensor | None) -> None:
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in running):
        raise RuntimeError(
            f"{op} got a running statistic that requires a gradient: there is none. Detach it"
        )


def check_running_mean(op: str, input: Tensor, running_mean: Tensor | None, training: bool) -> None:
    _check_no_gradient(op, running_mean)
    if not training and running_mean is None:
        raise RuntimeError(
            f"{op} of an input of shape {tuple(input.shape)} with training=False needs "
            "running_mean: pass it, or training=True"
        )


def check_number(op: str, name: str, value: float | Tensor) -> float:
    """The value as a float; like torch's operators, it may be a boolean or a one-element tensor."""
    if not isinstance(value, Real) and not (isinstance(value, Tensor) and value.numel() == 1):
        raise TypeError(f"{op} got {name}={value!r}: it has to be a float")
    return float(value)


def check_flag(op: str, name: str, value: bool) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{op} got {name}={value!r}: it has to be True or False")


def check_tensors(op: str, input: Tensor, **others: Tensor | None) -> None:
    """The input is a tensor; the others are tensors or None."""
    for name, value in (("input", input), *others.items()):
        if not isinstance(value, Tensor) and (value is not None or name == "input"):
            raise TypeError(f"{op} got {name} of {type(value)}: it has to be a tensor")


def check_mask(op: str, input: Tensor, mask: Tensor) -> None:
    """The mask is boolean, with one element for each position of input (N, C, ...)."""
    sizes = input.shape[:1] + input.shape[2:]
    if mask.dtype != torch.bool or mask.shape != sizes or mask.device != input.device:
        raise RuntimeError(
            f"{op} got a mask of shape {tuple(mask.shape)}, {mask.dtype}, on '{mask.device}' for "
            f"an input of shape {tuple(input.shape)} on '{input.device}': it has to be boolean, of "
            f"shape {tuple(sizes)}, on the input's device"
        )


def check_weight_norm(v: Tensor, g: Tensor, dim: int | None) -> int:
    """dim counted from 0, or -1 if it is None (the norm of the whole tensor)."""
    if v.dtype not in DTYPES:
        raise NotImplementedError(
            f"weight_norm is not implemented for {v.dtype} (v of shape {tuple(v.shape)}): "
            "convert it to float16, bfloat16, float32 or float64"
        )
    dim = -1 if dim is None else dim
    if dim != -1 and not -v.dim() <= dim < v.dim():
        raise IndexError(
            f"weight_norm got dim={dim} for v of shape {tuple(v.shape)}: it has to be one of its "
            "dimensions, or None or -1 for the norm of the whole tensor"
        )
    dim = dim if dim == -1 else dim % v.dim()
    shape = () if dim == -1 else tuple(n if i == dim else 1 for i, n in enumerate(v.shape))
    if tuple(g.shape) != shape:
        raise RuntimeError(
            f"weight_norm got g of shape {tuple(g.shape)} for v of shape {tuple(v.shape)} and "
            f"dim={dim}: it has to be {shape}"
        )
    check_parameter("weight_norm", "g", g, v)
    return dim
