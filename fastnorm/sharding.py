"""DTensor: each process normalises its shard as a plain tensor, with the backend for that tensor.

A set of values that share statistics may not be cut. If the placements of x cut one, x is
redistributed first. Parameters follow x: whole if a process has all channels, else its part.
All of this uses torch's own operators and is differentiable. If x is sharded, gradients of
parameters are partial sums, as torch.nn's are.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .contract import NormSpec

Compute = Callable[..., Any]


def is_sharded(x: Tensor) -> bool:
    """Whether x is a DTensor. Does not import torch's DTensor: that takes seconds."""
    if type(x) in (Tensor, torch.nn.Parameter):
        return False
    distributed = sys.modules.get("torch.distributed.tensor")
    return distributed is not None and isinstance(x, distributed.DTensor)


def on_shards(
    compute: Compute, spec: NormSpec, tensors: Sequence[Any], running: Sequence[Any] = ()
) -> Any:
    """compute(*tensors, *running) on each process's shards; its results have x's sizes.

    tensors are x, the residual and parameters; running statistics may be written.

    Raises RuntimeError for a plain tensor together with a DTensor x, as torch's operators do.
    """
    x = tensors[0]
    _check(spec, (*tensors, *running))
    placements = _placements(x, spec, running)
    of_parameters = [_of_parameters(p, spec) for p in placements]
    local = [_local(t, placements, placements) for t in tensors[:2]]
    for tensor in tensors[2:]:
        parts = [_of_parameter(tensor, p, spec) for p in placements]
        gradients = [_gradients(p, q) for p, q in zip(placements, parts, strict=True)]
        local.append(_local(tensor, parts, gradients))
    buffers = [_local(t, of_parameters, of_parameters) for t in running]
    found = compute(*local, *buffers)
    if spec.use_input_stats:
        _write_back(running, buffers, x.device_mesh, of_parameters)

    def whole(y: Tensor) -> Tensor:
        return _from_local(y, x.device_mesh, placements, x.shape)

    return tuple(map(whole, found)) if isinstance(found, tuple) else whole(found)


def _check(spec: NormSpec, tensors: Sequence[Tensor | None]) -> None:
    for tensor in tensors:
        if tensor is not None and not is_sharded(tensor):
            raise RuntimeError(
                f"{spec.norm}_norm got a tensor of shape {tuple(tensor.shape)} beside a DTensor: "
                "distribute its module too, with torch.distributed.tensor.distribute_module or "
                "parallelize_module"
            )


def _placements(x: Any, spec: NormSpec, running: Sequence[Any]) -> list[Any]:
    """x's placements, changed if they would cut a set of values with common statistics."""
    from torch.distributed.tensor import Replicate, Shard

    of_batch = spec.norm in ("batch", "mean_only_batch", "batch_instance") and spec.use_input_stats
    of_batch = of_batch or (spec.norm == "instance" and any(t is not None for t in running))
    by_constants = spec.norm in ("batch", "mean_only_batch") and not spec.use_input_stats
    across = Shard(1) if x.shape[1] % x.device_mesh.size() == 0 else Replicate()

    def kept(placement: Any) -> Any:
        if type(placement) is not Shard:
            return Replicate()
        dim = placement.dim
        if spec.of_rows:
            return placement if dim < x.dim() - spec.groups else Replicate()
        if by_constants or (dim == 0 and not of_batch) or (dim == 1 and spec.norm != "group"):
            return placement
        return across if of_batch else Replicate()

    return [kept(placement) for placement in x.placements]


def _of_parameters(placement: Any, spec: NormSpec) -> Any:
    from torch.distributed.tensor import Replicate, Shard

    parted = type(placement) is Shard and placement.dim == 1 and not spec.of_rows
    return Shard(0) if parted else Replicate()


def _of_parameter(parameter: Any, placement: Any, spec: NormSpec) -> Any:
    """The placement of a parameter, of channels or rows or of each sample."""
    from torch.distributed.tensor import Replicate, Shard

    if parameter is None or parameter.dim() == (spec.groups if spec.of_rows else 1):
        return _of_parameters(placement, spec)
    if type(placement) is not Shard or parameter.shape[placement.dim] == 1:
        return Replicate()
    return placement


def _gradients(placement: Any, of_parameter: Any) -> Any:
    """The placement of a parameter's gradient that a process computes from its shard of x."""
    from torch.distributed.tensor import Partial

    return Partial() if placement.is_shard() and of_parameter.is_replicate() else of_parameter


def _local(tensor: Any, placements: list[Any], gradients: list[Any]) -> Tensor | None:
    if tensor is None:
        return None
    moved = tensor.redistribute(placements=placements)
    local: Tensor = moved.to_local(grad_placements=gradients)
    return local


def _write_back(
    running: Sequence[Any], updated: Sequence[Any], mesh: Any, placements: list[Any]
) -> None:
    """Copy running statistics, which each process updated in part, back to their buffers."""
    with torch.no_grad():
        for buffer, local in zip(running, updated, strict=True):
            if buffer is not None:
                new: Any = _from_local(local, mesh, placements, buffer.shape)
                buffer.copy_(new.redistribute(placements=buffer.placements))


def _from_local(y: Tensor, mesh: Any, placements: list[Any], shape: torch.Size) -> Tensor:
    """The DTensor of `shape`, with y's layout."""
    from torch.distributed.tensor import DTensor

    order = sorted(range(y.dim()), key=y.stride, reverse=True)
    strides, size = [0] * y.dim(), 1
    for dim in reversed(order):
        strides[dim], size = size, size * shape[dim]
    whole: Tensor = DTensor.from_local(
        y, mesh, placements, run_check=False, shape=shape, stride=tuple(strides)
    )
    return whole
