"""From a checked call to its computation: which backend, and which way.

An ordinary call is one autograd Function over a backend. A traced program gets the registered
operator instead. It gets torch's own norm under the backend torch, and under cpu if it is exported.
Forward-mode derivatives come from the formula under every backend.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.symbolic_shapes import statically_known_true

from . import onnx, ops, reference, torch_norms
from .autograd import Route, TransformedNorm, apply_add_norm, apply_norm, transformed
from .backend import backend_for, engine_for, get_backend, kernels_for, release
from .checks import DTYPES
from .contract import Engine, Inputs, NormSpec, Stages
from .gated_autograd import GatedNorm
from .plain import PLAIN, READY
from .reference.specs import formula
from .sharding import is_sharded, on_shards
from .weight_autograd import WeightNorm

# Dynamo of torch before 2.13 takes torch.compiler.is_exporting() for True in every program that it
# compiles (pytorch/pytorch issue 176347).
ALWAYS_EXPORTING = release(torch.__version__) < (2, 13)


def is_exporting() -> bool:
    """Whether torch.export traces. If ALWAYS_EXPORTING, a strict export counts as a compilation."""
    if ALWAYS_EXPORTING and torch.compiler.is_dynamo_compiling():
        return False
    return torch.compiler.is_exporting()


def normalise(inputs: Inputs, spec: NormSpec) -> Tensor:
    """act(norm(x) + residual); running statistics are updated if `use_input_stats`."""
    x = inputs.x
    if is_sharded(x):

        def of_shards(*shards: Any) -> Tensor:
            return normalise(Inputs(*shards), spec)

        whole: Tensor = on_shards(of_shards, spec, inputs[:5], inputs[5:])
        return whole
    name, traced = backend_for(x), is_traced(x)
    if traced and torch.onnx.is_in_onnx_export():
        return onnx.norm(inputs, spec)
    if name == "reference" or forward_ad._current_level >= 0:
        return formula(inputs, spec)
    if traced and (engine := _operators_engine(name, x, spec)):
        return ops.differentiable_norm(inputs, spec, engine)
    # First ask whether x is traced: asking for its sizes would fix them in the traced program.
    if traced:
        return formula(inputs, spec) if _is_empty(x) else torch_norms.norm(inputs, spec)
    if _negated(*inputs):
        return formula(inputs, spec)
    route = _route(name, x)
    if route is not None:
        apply = TransformedNorm.apply if transformed() else apply_norm
        return apply(*inputs, spec, route)
    if transformed() or x.numel() == 0:
        return formula(inputs, spec)
    return torch_norms.norm(inputs, spec)


def _engine(name: str, x: Tensor) -> Engine | None:
    """The engine that computes on x's memory; None: torch's operators compute."""
    if name == "triton":
        return kernels_for(x)
    return engine_for(x) if name == "cpu" else None


def _operators_engine(name: str, x: Tensor, spec: NormSpec) -> str | None:
    """The engine whose operators a traced program holds; None: torch's own norms.

    Programs of torch.compile run in this process, so they may hold the engine in C. An exported
    program may run where that engine is not.
    """
    if name == "triton":
        return name
    compiled = torch.compiler.is_compiling() and not is_exporting()
    if not compiled or name != "cpu" or not x.is_cpu:
        return None
    # Inductor gives convolutions of contiguous images channels last. An operator would bind it to
    # the layout of the eager call, and the copies cost more than its norm: see docs/benchmarks.md.
    if not spec.of_rows and x.dim() > 3 and x.is_contiguous():
        return None
    return name if _has_engine(x.dtype) else None


def _has_engine(dtype: torch.dtype) -> bool:
    """Compiles the engine if it is not there yet; the compiler takes the answer for a constant."""
    return engine_for(torch.empty(0, dtype=dtype)) is not None


# As torch.compiler.assume_constant_result, which imports the compiler: that takes seconds.
_has_engine._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _route(name: str, x: Tensor) -> Route | None:
    """That engine, and the backend of its traced backward."""
    engine = _engine(name, x)
    if engine is None:
        return None
    route = Route(engine, ops.TRACED[name].backend, engine)
    if x.is_cpu or x.is_cuda:
        READY[get_backend(), x.dtype, x.is_cpu] = route
    return route


def add_normalise(inputs: Inputs, spec: NormSpec) -> tuple[Tensor, Tensor]:
    """norm(x + residual) and that sum: fused by the backends, otherwise one after the other."""
    x, residual, weight, bias = inputs[:4]
    assert residual is not None, "there is nothing to add"
    if is_sharded(x):

        def of_shards(*shards: Any) -> tuple[Tensor, Tensor]:
            return add_normalise(Inputs(*shards), spec)

        whole: tuple[Tensor, Tensor] = on_shards(of_shards, spec, inputs[:4])
        return whole
    name, traced = backend_for(x), is_traced(x)
    if forward_ad._current_level < 0 and not transformed():
        exported = torch.onnx.is_in_onnx_export()
        if traced and not exported and (operators := _operators_engine(name, x, spec)):
            return ops.differentiable_add_norm(inputs, spec, operators)
        route = None if traced or _negated(x, residual, weight, bias) else _route(name, x)
        if route is not None:
            return apply_add_norm(x, residual, weight, bias, spec, route)
    total = (x + residual).contiguous()
    return normalise(Inputs(total, None, weight, bias), spec), total


def stages_for(x: Tensor, residual: Tensor | None) -> Stages | None:
    """The engine's moments and apply, for a merge in plain PyTorch; None: PyTorch does all."""
    name = backend_for(x)
    if name == "reference" or is_traced(x) or transformed() or x.numel() == 0:
        return None
    if forward_ad._current_level >= 0 or _negated(x, residual):
        return None
    engine = _engine(name, x)
    return None if engine is None else engine.stages


def modulator_for(x: Tensor, parameters: Sequence[Tensor | None]) -> Engine | None:
    """The engine that makes parameters of each sample for x; None: plain PyTorch does."""
    name = backend_for(x)
    if name == "reference" or forward_ad._current_level >= 0 or transformed():
        return None
    given = [t for t in parameters if t is not None]
    if is_traced(x) or any(is_traced(t) or t.dtype not in DTYPES for t in given):
        return None
    return _engine(name, x) if x.numel() and not _negated(*given) else None


def normalise_weight(v: Tensor, g: Tensor, dim: int) -> Tensor:
    """g v / ||v||, with the norm over all dimensions but `dim`, or over all if dim is -1.

    A traced program gets torch's own operator under every backend but `reference`: compilers know
    it, and make the same kernel of it.
    """
    name = backend_for(v)
    special = forward_ad._current_level >= 0 or transformed() or v.numel() == 0
    if name == "reference" or special:
        return reference.weight_norm(v, g, dim)
    engine = None if is_traced(v) or _negated(v, g) else _engine(name, v)
    if engine is None:
        wide = torch.promote_types(v.dtype, torch.float32)
        return torch._weight_norm(v.to(wide), g.to(wide), dim).to(v.dtype)
    w: Tensor = WeightNorm.apply(v, g, dim, engine)
    return w


def gated_normalise(
    x: Tensor,
    gate: Tensor | None,
    weight: Tensor | None,
    eps: float,
    group_size: int | None,
    norm_before_gate: bool,
) -> Tensor:
    """RMS norm of groups of x's last dimension, or of all of it, with a gate before or after.

    With a gate, a traced program holds the formula under every backend: compilers fuse it.
    """
    if group_size is not None and group_size != x.shape[-1]:
        groups = (x.shape[-1] // group_size, group_size)
        weight = None if weight is None else weight.view(*[1] * (x.dim() - 1), *groups)
        gate = None if gate is None else gate.unflatten(-1, groups)
        x = x.unflatten(-1, groups)
        return gated_normalise(x, gate, weight, eps, None, norm_before_gate).flatten(-2)
    if gate is None:
        return normalise(Inputs(x, None, weight), NormSpec("rms", eps=eps))
    name = backend_for(x)
    special = forward_ad._current_level >= 0 or transformed() or is_traced(x) or is_traced(gate)
    special = special or x.numel() == 0 or _negated(x, gate, weight)
    engine = None if special or name == "reference" else _engine(name, x)
    if engine is None:
        return reference.gated_rms_norm(x, gate, weight, eps, norm_before_gate=norm_before_gate)
    y: Tensor = GatedNorm.apply(x, gate, weight, norm_before_gate, eps, engine)
    return y


def autocast(x: Tensor, residual: Tensor | None, norm: str) -> tuple[Tensor, Tensor | None]:
    """x and residual in the dtype that torch.autocast gives the unfused program.

    On CUDA torch runs group, layer and RMS norm in float32. Batch and instance norm, and all norms
    on a CPU, keep the input's dtype. A residual of another dtype promotes, as addition does.
    """
    if not torch._C._is_any_autocast_enabled() or x.is_meta:
        return x, residual
    if not torch.is_autocast_enabled(x.device.type):
        return x, residual
    half = x.dtype in (torch.float16, torch.bfloat16)
    if x.is_cuda and half and norm in ("group", "layer", "rms"):
        x = x.float()
    if residual is not None and residual.dtype != x.dtype and residual.is_floating_point():
        dtype = torch.promote_types(x.dtype, residual.dtype)
        x, residual = x.to(dtype), residual.to(dtype)
    return x, residual


def _negated(*tensors: Tensor | None) -> bool:
    """Whether a tensor has torch's negative bit: its values in memory are to be negated, as those
    of `z.conj().imag`. No kernel knows that."""
    return any(t is not None and t.is_neg() for t in tensors)


def _is_empty(x: Tensor) -> bool:
    """Whether a traced x has no elements, if that can be known without setting a guard."""
    empty = x.numel() == 0
    if isinstance(empty, Tensor):  # in torch.jit.trace sizes are tensors
        return bool(empty)
    return statically_known_true(empty)


def is_traced(x: Tensor) -> bool:
    """Whether x is a tensor to record or to reason about, not one to compute with now."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or type(x) not in PLAIN
        or x.is_meta
        or torch._C._is_tracing()
    )
