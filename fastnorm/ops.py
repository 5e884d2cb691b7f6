"""The kernels as operators of torch.library, for whatever traces a program instead of running it.

    fastnorm::norm            act(norm(x) + residual), differentiable: what a traced program calls
    fastnorm::norm_forward    the same with ReLU's mask and the statistics that backward takes
    fastnorm::norm_backward   the gradients of x, residual, weight, bias and rho

Eager calls do without them: the dispatcher costs more than some kernels. This module is also the
backend of `fastnorm.autograd` while tensors are traced. A tensor that a schema cannot leave out, a
mask or a gradient that nobody wants, is empty.
"""

import sys
from typing import Any

import torch
from torch import Tensor

from .autograd import Norm
from .backend import kernels_for, load_kernels
from .formula import NormSpec

_INPUTS = (
    "Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, Tensor? rho, "
    "Tensor(a!)? running_mean, Tensor(b!)? running_var, "
)
_SPEC = "str norm, SymInt groups, bool use_input_stats, float momentum, float eps, str? activation"

_library = torch.library.Library("fastnorm", "DEF")
_library.define(f"norm({_INPUTS}{_SPEC}) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
_library.define(
    f"norm_forward({_INPUTS}{_SPEC}, bool differentiable) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "norm_backward(Tensor grad_output, Tensor input, Tensor? side, Tensor? weight, Tensor? bias, "
    "Tensor? rho, Tensor stats, bool[] needs, str norm, SymInt groups, bool use_input_stats, "
    "str? activation) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def norm(
    *tensors: Tensor | None, differentiable: bool, **spec: Any
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """`fastnorm.kernels.norm` as one operator of a traced program."""
    numbers = NormSpec(**spec)
    y, mask, stats = torch.ops.fastnorm.norm_forward.default(*tensors, *numbers, differentiable)
    return y, mask, (stats,)


def norm_backward(
    dy: Tensor,
    *tensors_stats_needs: Any,
    norm: str,
    groups: int,
    use_input_stats: bool,
    activation: str | None,
) -> tuple[Tensor | None, ...]:
    """`fastnorm.kernels.norm_backward` as one operator of a traced program."""
    *tensors, (stats,), needs = tensors_stats_needs
    # Without an activation that is dy itself, which no output of an operator may be.
    asked = [needs[0], needs[1] and activation is not None, *needs[2:]]
    grads = torch.ops.fastnorm.norm_backward.default(
        dy, *tensors, stats, asked, norm, groups, use_input_stats, activation
    )
    parameters = tensors[2:5]
    there = (True, True, *(parameter is not None for parameter in parameters))
    found = [g if a and t else None for g, a, t in zip(grads, asked, there, strict=True)]
    found[1] = dy if needs[1] and activation is None else found[1]
    return tuple(found)


def side_input(activation: str | None, has_residual: bool) -> str | None:
    return load_kernels().side_input(activation, has_residual)


def relu_mask(side: Tensor, x: Tensor) -> Tensor:
    return load_kernels().relu_mask(side, x)


def _run(*args: Any) -> Tensor:
    return _run_forward(*args, False)[0]


def _run_forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    *inputs, differentiable = args
    tensors, spec = inputs[:7], NormSpec(*inputs[7:])
    kernels = kernels_for(tensors[0])
    with kernels.launch.own_counters():
        y, mask, (stats,) = kernels.norm(*tensors, differentiable=differentiable, **spec._asdict())
    return y, _present(mask, y), stats


def _run_backward(dy: Tensor, *args: Any) -> tuple[Tensor, ...]:
    *tensors, stats, needs, norm, groups, use_input_stats, activation = args
    kernels = kernels_for(tensors[0])
    with kernels.launch.own_counters():
        grads = kernels.norm_backward(
            dy, *tensors, (stats,), tuple(needs), norm=norm, groups=groups,
            use_input_stats=use_input_stats, activation=activation,
        )  # fmt: skip
    return tuple(_present(grad, dy) for grad in grads)


def _fake(*args: Any) -> Tensor:
    return _fake_forward(*args, False)[0]


def _fake_forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    x, residual, *_, norm, groups, use_input_stats, _momentum, _eps, activation, grad = args
    y, mask, stats = load_kernels().like(
        x, residual, norm, groups, use_input_stats, activation, grad
    )
    return y, _present(mask, y), stats


def _fake_backward(dy: Tensor, *args: Any) -> tuple[Tensor, ...]:
    x, _side, *parameters, _stats, needs, norm, groups, use_input_stats, activation = args
    dx = load_kernels().like(x, None, norm, groups, use_input_stats, activation, False)[0]
    likes = (dx, torch.empty_like(dx), *parameters)
    return tuple(
        torch.empty_like(
            t, memory_format=torch.contiguous_format if i > 1 else torch.preserve_format
        )
        if needed and t is not None
        else _present(None, dy)
        for i, (t, needed) in enumerate(zip(likes, needs, strict=True))
    )


def _differentiable(*args: Any) -> Tensor:
    tensors, spec = args[:7], NormSpec(*args[7:])
    wanted = any(t is not None and t.requires_grad for t in tensors[:5])
    if wanted and torch.is_grad_enabled():
        return Norm.apply(*tensors, spec, sys.modules[__name__])
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.fastnorm.norm.default(*args)


def _present(tensor: Tensor | None, x: Tensor) -> Tensor:
    """The tensor, an empty one for None."""
    return x.new_empty(0) if tensor is None else tensor


for _name, _implementation, _shapes in (
    ("norm", _run, _fake),
    ("norm_forward", _run_forward, _fake_forward),
    ("norm_backward", _run_backward, _fake_backward),
):
    for _device in ("CPU", "CUDA"):
        _library.impl(_name, _implementation, _device)
    torch.library.register_fake(f"fastnorm::{_name}", _shapes, lib=_library)
_library.impl("norm", _differentiable, "Autograd")

operator = torch.ops.fastnorm.norm.default
