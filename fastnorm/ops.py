"""The kernels as operators of torch.library, for whatever traces a program instead of running it.

    fastnorm::norm            act(norm(x) + residual), differentiable: what a traced program calls
    fastnorm::norm_forward    the same with ReLU's mask and the statistics that backward takes
    fastnorm::norm_backward   the gradients of x, residual, weight, bias and rho
    fastnorm::add_norm        (norm(x + residual), x + residual), and add_norm_forward and
                              add_norm_backward likewise

norm_update and norm_forward_update write to running statistics, of which mean-only batch norm has
one; for the others they are constants or None. Eager calls do without operators: the dispatcher
costs more than some kernels. This module is also the backend of `fastnorm.autograd` while tensors
are traced. A tensor that a schema cannot leave out, a mask or a gradient that nobody wants, is
empty.
"""

import sys
from typing import Any

import torch
from torch import Tensor

from . import batching
from .autograd import AddNorm, Norm, transformed
from .backend import kernels_for, load_kernels
from .formula import NormSpec, add_formula, formula

_TENSORS = "Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, Tensor? rho, "
_CONSTANTS = "Tensor? running_mean, Tensor? running_var, "
_UPDATED = "Tensor(a!) running_mean, Tensor(b!)? running_var, "
_SPEC = "str norm, SymInt groups, bool use_input_stats, float momentum, float eps, str? activation"
_ADDED = (
    "Tensor input, Tensor residual, Tensor? weight, Tensor? bias, str norm, SymInt groups, "
    "float eps"
)
_KEPT = "bool differentiable) -> (Tensor, Tensor, Tensor)"
_SCHEMAS = (
    f"norm({_TENSORS}{_CONSTANTS}{_SPEC}) -> Tensor",
    f"norm_update({_TENSORS}{_UPDATED}{_SPEC}) -> Tensor",
    f"norm_forward({_TENSORS}{_CONSTANTS}{_SPEC}, {_KEPT}",
    f"norm_forward_update({_TENSORS}{_UPDATED}{_SPEC}, {_KEPT}",
    "norm_backward(Tensor grad_output, Tensor input, Tensor? side, Tensor? weight, Tensor? bias, "
    "Tensor? rho, Tensor stats, bool[] needs, str norm, SymInt groups, bool use_input_stats, "
    "str? activation) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    f"add_norm({_ADDED}) -> (Tensor, Tensor)",
    f"add_norm_forward({_ADDED}) -> (Tensor, Tensor, Tensor)",
    "add_norm_backward(Tensor grad_output, Tensor? grad_sum, Tensor sum, Tensor? weight, "
    "Tensor? bias, Tensor stats, bool[] needs, str norm, SymInt groups) "
    "-> (Tensor, Tensor, Tensor)",
)

_library = torch.library.Library("fastnorm", "DEF")
for _schema in _SCHEMAS:
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))
_ops = torch.ops.fastnorm


def differentiable_norm(*tensors_and_spec: Any) -> Tensor:
    """act(norm(x) + residual) of a traced program; after the tensors come NormSpec's fields."""
    updates = _updates(*tensors_and_spec)
    return (_ops.norm_update if updates else _ops.norm).default(*tensors_and_spec)


def norm(
    *tensors: Tensor | None, differentiable: bool, **spec: Any
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """`fastnorm.kernels.norm` as one operator of a traced program."""
    args = (*tensors, *NormSpec(**spec))
    forward = _ops.norm_forward_update if _updates(*args) else _ops.norm_forward
    y, mask, stats = forward.default(*args, differentiable)
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
    grads = _ops.norm_backward.default(
        dy, *tensors, stats, asked, norm, groups, use_input_stats, activation
    )
    parameters = tensors[2:5]
    there = (True, True, *(parameter is not None for parameter in parameters))
    found = [g if a and t else None for g, a, t in zip(grads, asked, there, strict=True)]
    found[1] = dy if needs[1] and activation is None else found[1]
    return tuple(found)


def differentiable_add_norm(*tensors_and_numbers: Any) -> tuple[Tensor, Tensor]:
    """(norm(x + residual), x + residual) of a traced program."""
    return _ops.add_norm.default(*tensors_and_numbers)


def add_norm(
    *tensors: Tensor | None, norm: str, groups: int, eps: float
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """`fastnorm.kernels.add_norm` as one operator of a traced program."""
    y, total, stats = _ops.add_norm_forward.default(*tensors, norm, groups, eps)
    return y, total, (stats,)


def add_norm_backward(
    *tensors_stats_needs: Any, norm: str, groups: int
) -> tuple[Tensor | None, ...]:
    """`fastnorm.kernels.add_norm_backward` as one operator of a traced program."""
    *tensors, (stats,), needs = tensors_stats_needs
    grads = _ops.add_norm_backward.default(*tensors, stats, [*needs], norm, groups)
    there = (True, *(parameter is not None for parameter in tensors[3:]))
    return tuple(g if n and t else None for g, n, t in zip(grads, needs, there, strict=True))


def side_input(activation: str | None, has_residual: bool) -> str | None:
    return load_kernels().side_input(activation, has_residual)


def relu_mask(side: Tensor, x: Tensor, norm: str, groups: int) -> Tensor:
    return load_kernels().relu_mask(side, x, norm, groups)


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
    _refuse_bias("norm", spec, tensors[3])
    if transformed():  # a transform inside a compiled program: no Function of Python's can enter
        return formula(spec, *tensors)
    wanted = any(t is not None and t.requires_grad for t in tensors[:5])
    if wanted and torch.is_grad_enabled():
        return Norm.apply(*tensors, spec, sys.modules[__name__])
    with torch._C._AutoDispatchBelowAutograd():
        return differentiable_norm(*args)


def _batched(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
    tensors, spec = args[:7], NormSpec(*args[7:])
    _refuse_bias("norm", spec, tensors[3])

    def call(*inputs: Any) -> Tensor:
        *tensors, spec, _ = inputs
        return differentiable_norm(*tensors, *spec)

    return batching.norm(call, info.batch_size, in_dims, tensors, spec, None)


def _run_add(*args: Any) -> tuple[Tensor, Tensor]:
    return _run_add_forward(*args)[:2]


def _run_add_forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    *tensors, norm, groups, eps = args
    kernels = kernels_for(tensors[0])
    with kernels.launch.own_counters():
        y, total, (stats,) = kernels.add_norm(*tensors, norm=norm, groups=groups, eps=eps)
    return y, total, stats


def _run_add_backward(dy: Tensor, *args: Any) -> tuple[Tensor, ...]:
    *tensors, stats, needs, norm, groups = args
    kernels = kernels_for(dy)
    with kernels.launch.own_counters():
        grads = kernels.add_norm_backward(
            dy, *tensors, (stats,), tuple(needs), norm=norm, groups=groups
        )
    return tuple(_present(grad, dy) for grad in grads)


def _fake_add(*args: Any) -> tuple[Tensor, Tensor]:
    return _fake_add_forward(*args)[:2]


def _fake_add_forward(x: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, norm, groups, _eps = args
    y, _, stats = load_kernels().like(x, None, norm, groups, True, None, False)
    return y, torch.empty_like(y), stats


def _fake_add_backward(dy: Tensor, *args: Any) -> tuple[Tensor, ...]:
    _, total, *parameters, _stats, needs, _norm, _groups = args
    return tuple(
        torch.empty_like(t, memory_format=torch.contiguous_format)
        if needed and t is not None
        else _present(None, dy)
        for t, needed in zip((total, *parameters), needs, strict=True)
    )


def _differentiable_add(*args: Any) -> tuple[Tensor, Tensor]:
    tensors, (norm, groups, eps) = args[:4], args[4:]
    spec = NormSpec(norm, groups, eps=eps)
    _refuse_bias("add_norm", spec, tensors[3])
    if transformed():
        return add_formula(spec, *tensors)
    wanted = any(t is not None and t.requires_grad for t in tensors)
    if wanted and torch.is_grad_enabled():
        return AddNorm.apply(*tensors, spec, sys.modules[__name__])
    with torch._C._AutoDispatchBelowAutograd():
        return differentiable_add_norm(*args)


def _batched_add(
    info: Any, in_dims: tuple[int | None, ...], *args: Any
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    tensors, (norm, groups, eps) = args[:4], args[4:]
    spec = NormSpec(norm, groups, eps=eps)
    _refuse_bias("add_norm", spec, tensors[3])

    def call(*tensors: Any) -> tuple[Tensor, Tensor]:
        return add_formula(spec, *tensors)

    return torch.vmap(call, tuple(in_dims[:4]))(*tensors), (0, 0)


def _refuse_bias(op: str, spec: NormSpec, bias: Tensor | None) -> None:
    """Of what `fastnorm.functional` cannot ask for, the one thing with a gradient nobody writes."""
    if spec.norm == "rms" and bias is not None:
        raise RuntimeError(
            f"fastnorm::{op} got a bias for norm='rms', which has none: pass bias=None and add the "
            "bias to the result"
        )


def _present(tensor: Tensor | None, x: Tensor) -> Tensor:
    """The tensor, an empty one for None."""
    return x.new_empty(0) if tensor is None else tensor


def _updates(*args: Any) -> bool:
    """Whether a call writes to its running statistics."""
    running_mean, use_input_stats = args[5], args[9]
    return use_input_stats and running_mean is not None


for _name, _implementation, _shapes in (
    ("norm", _run, _fake),
    ("norm_update", _run, _fake),
    ("norm_forward", _run_forward, _fake_forward),
    ("norm_forward_update", _run_forward, _fake_forward),
    ("norm_backward", _run_backward, _fake_backward),
    ("add_norm", _run_add, _fake_add),
    ("add_norm_forward", _run_add_forward, _fake_add_forward),
    ("add_norm_backward", _run_add_backward, _fake_add_backward),
):
    for _device in ("CPU", "CUDA"):
        _library.impl(_name, _implementation, _device)
    torch.library.register_fake(f"fastnorm::{_name}", _shapes, lib=_library)
for _name in ("norm", "norm_update"):
    _library.impl(_name, _differentiable, "Autograd")
    torch.library.register_vmap(f"fastnorm::{_name}", _batched, lib=_library)
_library.impl("add_norm", _differentiable_add, "Autograd")
torch.library.register_vmap("fastnorm::add_norm", _batched_add, lib=_library)
