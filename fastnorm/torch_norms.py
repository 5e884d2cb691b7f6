"""Backend "torch": the norms by torch.nn.functional's own, with the autograd that those bring.

Every traced program holds them, unless its backend is `triton` or `reference`: compilers and
exporters know torch's norms as they know them from torch.nn. Batch-instance norm is a blend of
torch's batch and instance norm; of mean-only batch norm torch has nothing, it is the formula.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import _StopRecomputationError as StopRecomputation

from . import reference
from .activations import activate
from .contract import Inputs, NormSpec, are_of_samples
from .tensors import (
    HALF,
    accumulated,
    accumulation,
    broadcast,
    laid_out_as,
    lies_channels_last,
)


def norm(inputs: Inputs, spec: NormSpec) -> Tensor:
    """act(norm(x) + residual) of an x with elements; the running statistics are updated in place.

    float16 and bfloat16 are computed in float32, and rounded before the residual is added.
    """
    x, residual, weight, bias, _, running_mean, _ = inputs
    if are_of_samples(inputs, spec):
        return _of_samples(inputs, spec)
    if spec.norm == "layer":
        shape = _constants(x.shape[x.dim() - spec.groups :])
        wide = _widened(x)
        z = torch.layer_norm(wide, shape, *_affine(wide, weight, bias), spec.eps)
    elif spec.norm == "rms":
        # Torch's would keep x's layout, and warn of a float32 weight beside half precision.
        wide = x.to(accumulation(x)).contiguous()
        shape = _constants(x.shape[x.dim() - spec.groups :])
        z = torch.rms_norm(wide, shape, accumulated(weight, wide), spec.eps)
        z = z if bias is None else z + accumulated(bias, wide)
    elif spec.norm == "group":
        # Contiguous because channels last torch 2.13's can crash the process.
        wide = _widened(x).contiguous()
        z = torch.group_norm(wide, spec.groups, *_affine(wide, weight, bias), spec.eps)
        z = laid_out_as(x, z)
    elif spec.norm == "mean_only_batch":
        wide = _widened(x)
        numbers = spec.use_input_stats, spec.momentum
        z = laid_out_as(x, reference.mean_only_batch_norm(wide, running_mean, bias, *numbers))
    elif spec.norm == "batch":
        z = laid_out_as(x, _batch_norm(inputs, spec))
    else:
        z = laid_out_as(x, _of_instances(inputs, spec))
    return finish(spec, z, x, residual)


def _of_samples(inputs: Inputs, spec: NormSpec) -> Tensor:
    """With parameters of each sample, which torch's norms do not know: behind one without any."""
    x, _, weight, bias, *others = inputs
    wide = x.to(accumulation(x))
    z = norm(Inputs(wide, None, None, None, *others), spec._replace(activation=None))
    if not spec.of_rows:
        weight, bias = (None if t is None else broadcast(t, x) for t in (weight, bias))
    z = z if weight is None else z * weight.to(z.dtype)
    z = z if bias is None else z + bias.to(z.dtype)
    return finish(spec, z, x, inputs.residual)


def finish(spec: NormSpec, z: Tensor, x: Tensor, residual: Tensor | None) -> Tensor:
    """act(z + residual) in x's dtype, in z's memory where that is possible."""
    z = z.to(x.dtype)
    if residual is not None:
        z = z.add_(residual)
    if spec.activation == "relu":
        return z.relu_()
    return activate(z, spec.activation)


def _constants(sizes: Sequence[Any]) -> list[int]:
    """The sizes of a norm's shape: torch.jit.trace, whose sizes are tensors, is to record numbers,
    as it does of torch.nn's norms."""
    return [int(size) if isinstance(size, Tensor) else size for size in sizes]


def _batch_norm(inputs: Inputs, spec: NormSpec) -> Tensor:
    x, _, weight, bias, _, running_mean, running_var = inputs
    if x.dim() == 3 and lies_channels_last(x):  # whose layout torch keeps in four dimensions alone
        return _batch_norm(inputs._replace(x=x.unsqueeze(2)), spec).squeeze(2)
    wide = _widened(x)
    affine = _full_precision(*_affine(wide, weight, bias), wide, wide.shape[1:2])
    with _running(spec, wide, running_mean, running_var) as (mean, var):
        return F.batch_norm(wide, mean, var, *affine, spec.use_input_stats, spec.momentum, spec.eps)


def _of_instances(inputs: Inputs, spec: NormSpec) -> Tensor:
    """Instance or batch-instance norm."""
    x, rho = inputs.x.to(accumulation(inputs.x)), inputs.rho
    weight, bias = _affine(x, inputs.weight, inputs.bias)
    numbers = spec.use_input_stats, spec.momentum, spec.eps
    with _running(spec, x, inputs.running_mean, inputs.running_var) as (mean, var):
        if spec.norm == "instance":
            return _instance_norm(x, mean, var, weight, bias, *numbers)
        batch = F.batch_norm(x, mean, var, None, None, *numbers)
    assert rho is not None, "batch_instance_norm requires it"
    z = torch.lerp(_instance_norm(x, eps=spec.eps), batch, broadcast(rho.to(x.dtype), x))
    z = z if weight is None else z * broadcast(weight.to(x.dtype), x)
    return z if bias is None else z + broadcast(bias.to(x.dtype), x)


def _instance_norm(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Of three dimensions, which have no format of channels last: where the gradient of one image
    lies so, torch's (2.13, 2.15) takes it for a contiguous one. The older ONNX exporter, which
    traces, would no more know the channels."""
    if torch.jit.is_tracing():
        return F.instance_norm(x, *args, **kwargs)
    return F.instance_norm(x.flatten(2), *args, **kwargs).view_as(x)


def _widened(x: Tensor) -> Tensor:
    """x in float32 where it is half precision off the CPU: torch's other kernels want parameters of
    x's own dtype, and statistics belong in float32."""
    return x.float() if x.dtype in HALF and x.device.type != "cpu" else x


def _full_precision(
    gamma: Tensor | None, beta: Tensor | None, x: Tensor, shape: tuple[int, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """float32 parameters for float16 and bfloat16 x: with them torch keeps float32 statistics."""
    if x.dtype not in HALF:
        return gamma, beta
    gamma = torch.ones(shape, device=x.device) if gamma is None else gamma
    return gamma, torch.zeros(shape, device=x.device) if beta is None else beta


@contextlib.contextmanager
def _running(
    spec: NormSpec, x: Tensor, mean: Tensor | None, var: Tensor | None
) -> Iterator[tuple[Tensor | None, Tensor | None]]:
    """mean and var in the dtype that torch's norms want, and what those write to them.

    They get copies: to write to, for they do not tell autograd, which may have saved the two; and
    to keep for backward, before which a batch may change them.
    """
    dtype, written = accumulation(x), spec.use_input_stats
    copy = written or not torch.compiler.is_compiling()  # who folds constants would not know them
    wide_mean = None if mean is None else mean.to(dtype, copy=copy)
    wide_var = None if var is None else var.to(dtype, copy=copy)
    try:
        yield wide_mean, wide_var
    except StopRecomputation:  # the norm is done, what it keeps for backward is no more needed
        _write_back(written, (mean, var), (wide_mean, wide_var))
        raise
    _write_back(written, (mean, var), (wide_mean, wide_var))


def _write_back(
    written: bool, running: tuple[Tensor | None, ...], wide: tuple[Tensor | None, ...]
) -> None:
    for buffer, new in zip(running, wide, strict=True):
        if written and buffer is not None and new is not None:
            buffer.copy_(new)


def _affine(
    x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The parameters in the dtype of the statistics; a weight of ones beside a lone bias, which
    torch 2.13's backwards do not know how to serve."""
    weight, bias = accumulated(weight, x), accumulated(bias, x)
    return (torch.ones_like(bias) if weight is None and bias is not None else weight), bias
