"""The engines as operators of torch.library, for tools that trace a program instead of running it.

    fastnorm::norm            act(norm(x) + residual), differentiable: traced programs call this
    fastnorm::norm_forward    the same, with ReLU's mask and the statistics for the backward
    fastnorm::norm_backward   the gradients of x, residual, weight, bias and rho
    fastnorm::add_norm        (norm(x + residual), x + residual), and add_norm_forward and
                              add_norm_backward likewise

norm_update and norm_forward_update write to the running statistics (mean-only batch norm has only a
mean); the others do not write to them. Eager calls use no operators: the dispatcher costs more than
some kernels. `fastnorm.traced` calls them. A schema cannot leave a tensor out, so a mask or a
gradient that nobody wants is an empty tensor.

`engine` is "triton" or "cpu". A program keeps the engine that it was traced for, because each keeps
its own kind of statistics for the backward.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from . import batching, onnx
from .autograd import AddNorm, Norm, transformed
from .backend import compiled_engine, kernels_for, load_kernels
from .contract import Engine, Inputs, NormSpec, Tensors, side_input
from .reference.specs import add_formula, formula
from .traced import TRACED, differentiable_add_norm, differentiable_norm, engine_named

_TENSORS = "Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, Tensor? rho, "
_CONSTANTS = "Tensor? running_mean, Tensor? running_var, "
_UPDATED = "Tensor(a!) running_mean, Tensor(b!)? running_var, "
_SPEC = "str norm, SymInt groups, bool use_input_stats, float momentum, float eps, str? activation"
_ADDED = (
    "Tensor input, Tensor residual, Tensor? weight, Tensor? bias, str norm, SymInt groups, "
    "float eps"
)
_ENGINE = "str engine"
_KEPT = f"bool differentiable, {_ENGINE}) -> (Tensor, Tensor, Tensor)"
_SCHEMAS = (
    f"norm({_TENSORS}{_CONSTANTS}{_SPEC}, {_ENGINE}) -> Tensor",
    f"norm_update({_TENSORS}{_UPDATED}{_SPEC}, {_ENGINE}) -> Tensor",
    f"norm_forward({_TENSORS}{_CONSTANTS}{_SPEC}, {_KEPT}",
    f"norm_forward_update({_TENSORS}{_UPDATED}{_SPEC}, {_KEPT}",
    "norm_backward(Tensor grad_output, Tensor input, Tensor? side, Tensor? weight, Tensor? bias, "
    "Tensor? rho, Tensor stats, bool[] needs, str norm, SymInt groups, bool use_input_stats, "
    f"str? activation, {_ENGINE}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    f"add_norm({_ADDED}, {_ENGINE}) -> (Tensor, Tensor)",
    f"add_norm_forward({_ADDED}, {_ENGINE}) -> (Tensor, Tensor, Tensor)",
    "add_norm_backward(Tensor grad_output, Tensor? grad_sum, Tensor sum, Tensor? weight, "
    f"Tensor? bias, Tensor stats, bool[] needs, str norm, SymInt groups, {_ENGINE}) "
    "-> (Tensor, Tensor, Tensor)",
)

_library = torch.library.Library("fastnorm", "DEF")
for _schema in _SCHEMAS:
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))
_ops = torch.ops.fastnorm


@contextlib.contextmanager
def _running(name: str, x: Tensor) -> Iterator[Engine]:
    """The engine for x. Raises what `kernels_for` and `compiled_engine` raise."""
    if name == "cpu":
        yield compiled_engine(x)
        return
    with load_kernels().launch.own_counters():
        yield kernels_for(x)


def _run(*args: Any) -> Tensor:
    return _run_forward(*args[:-1], False, args[-1])[0]


def _run_forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    inputs, spec, (differentiable, engine) = Inputs(*args[:7]), NormSpec(*args[7:-2]), args[-2:]
    with _running(engine, inputs.x) as running:
        y, mask, stats = running.norm(inputs, spec, differentiable)
    return y, _present(mask, y), stats


def _run_backward(dy: Tensor, *args: Any) -> tuple[Tensor, ...]:
    x, side, *parameters, stats, needs, norm, groups, use_input_stats, activation, engine = args
    spec = NormSpec(norm, groups, use_input_stats, activation=activation)
    masked = side_input(activation, True) == "mask"
    residual, mask = (None, side) if masked else (side, None)
    inputs = Inputs(x, residual, *parameters)
    with _running(engine, x) as running:
        grads = running.norm_backward(dy, inputs, mask, stats, tuple(needs), spec)
    return tuple(_present(grad, dy) for grad in grads)


def _fake(*args: Any) -> Tensor:
    return _fake_forward(*args[:-1], False, args[-1])[0]


def _fake_forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    (x, residual), spec, (differentiable, engine) = args[:2], NormSpec(*args[7:-2]), args[-2:]
    y, mask, stats = engine_named(engine).like(x, residual is not None, spec, differentiable)
    return y, _present(mask, y), stats


def _fake_backward(dy: Tensor, *args: Any) -> tuple[Tensor, ...]:
    x, _side, *parameters, _stats, needs, norm, groups, use_input_stats, activation, engine = args
    spec = NormSpec(norm, groups, use_input_stats, activation=activation)
    dx = engine_named(engine).like(x, False, spec, False)[0]
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
    inputs, spec, engine = Inputs(*args[:7]), NormSpec(*args[7:-1]), args[-1]
    if torch.onnx.is_in_onnx_export():  # of a program that torch.export has made
        return onnx.norm(inputs, spec)
    if transformed():  # a transform inside a compiled program: no Python Function can run here
        return formula(inputs, spec)
    if _wanted(inputs[:5]):
        y: Tensor = Norm.apply(*inputs, spec, TRACED[engine])
        return y
    with torch._C._AutoDispatchBelowAutograd():
        return differentiable_norm(inputs, spec, engine)


def _batched(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
    inputs, spec, engine = Inputs(*args[:7]), NormSpec(*args[7:-1]), args[-1]

    def call(*tensors_and_spec: Any) -> Tensor:
        *tensors, spec = tensors_and_spec
        return differentiable_norm(Inputs(*tensors), spec, engine)

    return batching.norm(call, info.batch_size, in_dims, inputs, spec)


def _added(*args: Any) -> tuple[Inputs, NormSpec, str]:
    """The arguments of add_norm: its inputs, the norm and the engine."""
    norm, groups, eps, engine = args[4:]
    return Inputs(*args[:4]), NormSpec(norm, groups, eps=eps), engine


def _run_add(*args: Any) -> tuple[Tensor, Tensor]:
    return _run_add_forward(*args)[:2]


def _run_add_forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    inputs, spec, engine = _added(*args)
    with _running(engine, inputs.x) as running:
        return running.add_norm(inputs, spec)


def _run_add_backward(dy: Tensor, dsum: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    total, weight, bias, stats, needs, norm, groups, engine = args
    inputs, spec = Inputs(total, None, weight, bias), NormSpec(norm, groups)
    asked = (needs[0], needs[1], needs[2])
    with _running(engine, dy) as running:
        grads = running.add_norm_backward(dy, dsum, inputs, stats, asked, spec)
    return tuple(_present(grad, dy) for grad in grads)


def _fake_add(*args: Any) -> tuple[Tensor, Tensor]:
    return _fake_add_forward(*args)[:2]


def _fake_add_forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    inputs, spec, engine = _added(*args)
    y, _, stats = engine_named(engine).like(inputs.x, False, spec, False)
    return y, torch.empty_like(y), stats


def _fake_add_backward(dy: Tensor, *args: Any) -> tuple[Tensor, ...]:
    _, total, *parameters, _stats, needs, _norm, _groups, _engine = args
    return tuple(
        torch.empty_like(t, memory_format=torch.contiguous_format)
        if needed and t is not None
        else _present(None, dy)
        for t, needed in zip((total, *parameters), needs, strict=True)
    )


def _differentiable_add(*args: Any) -> tuple[Tensor, Tensor]:
    inputs, spec, engine = _added(*args)
    if torch.onnx.is_in_onnx_export():
        total = inputs.x + args[1]
        return onnx.norm(inputs._replace(x=total, residual=None), spec), total
    if transformed():
        return add_formula(inputs, spec)
    if _wanted(inputs[:4]):
        found: tuple[Tensor, Tensor] = AddNorm.apply(*inputs[:4], spec, TRACED[engine])
        return found
    with torch._C._AutoDispatchBelowAutograd():
        return differentiable_add_norm(inputs, spec, engine)


def _batched_add(
    info: Any, in_dims: tuple[int | None, ...], *args: Any
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    inputs, spec, engine = _added(*args)
    size = info.batch_size
    rows, affine = batching.row_inputs(inputs[:4], in_dims[:4], size, spec, False)
    added = Inputs._make((*rows, *affine, None, None, None))
    return differentiable_add_norm(added, spec, engine), (0, 0)


def _wanted(tensors: Tensors) -> bool:
    """Whether autograd wants the gradient of any of them."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _present(tensor: Tensor | None, x: Tensor) -> Tensor:
    """The tensor, or an empty one for None."""
    return x.new_empty(0) if tensor is None else tensor


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
