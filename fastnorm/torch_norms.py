"""Backend "torch": the norms of torch.nn.functional, with their own autograd.

Exported programs hold them, unless their backend is `triton` or `reference`: exporters know torch's
norms. Batch-instance norm is a blend of torch's batch and instance norm.
torch has no mean-only batch norm: that is the formula.
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

    float16 and bfloat16 x are computed in float32 and rounded before the residual is added.
    """
    x, residual, weight, bias, _, running_mean, _ = inputs
    if are_of_samples(inputs, spec):
        return _of_samples(inputs, spec)
    if spec.norm == "layer":
        shape = _constants(x.shape[x.dim() - spec.groups :])
        wide = _widened(x)
        z = torch.layer_norm(wide, shape, *_affine(wide, weight, bias), spec.eps)
    elif spec.norm == "rms":
        # torch's group norm would keep x's layout, and warn about a float32 weight with half x.
        wide = x.to(accumulation(x)).contiguous()
        shape = _constants(x.shape[x.dim() - spec.groups :])
        z = torch.rms_norm(wide, shape, accumulated(weight, wide), spec.eps)
        z = z if bias is None else z + accumulated(bias, wide)
    elif spec.norm == "group":
        # Contiguous: with channels last, torch 2.13 can crash the process here.
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
    """With parameters of each sample, which torch's norms lack: applied after a plain norm."""
    x, _, weight, bias, *others = inputs
    wide = x.to(accumulation(x))
    z = norm(Inputs(wide, None, None, None, *others), spec._replace(activation=None))
    if not spec.of_rows:
        weight, bias = (None if t is None else broadcast(t, x) for t in (weight, bias))
    z = z if weight is None else z * weight.to(z.dtype)
    z = z if bias is None else z + bias.to(z.dtype)
    return finish(spec, z, x, inputs.residual)


def finish(spec: NormSpec, z: Tensor, x: Tensor, residual: Tensor | None) -> Tensor:
    """act(z + residual) in x's dtype, in z's memory if possible."""
    z = z.to(x.dtype)
    if residual is not None:
        z = z.add_(residual)
    if spec.activation == "relu":
        return z.relu_()
    return activate(z, spec.activation)


def _constants(sizes: Sequence[Any]) -> list[int]:
    """The sizes as numbers. In torch.jit.trace sizes are tensors; it should record numbers, as it
    does for torch.nn's norms."""
    return [int(size) if isinstance(size, Tensor) else size for size in sizes]


def _batch_norm(inputs: Inputs, spec: NormSpec) -> Tensor:
    x, _, weight, bias, _, running_mean, running_var = inputs
    if x.dim() == 3 and lies_channels_last(x):  # torch keeps channels last in four dimensions only
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
    """torch's instance norm of x in three dimensions, which have no channels last format. In four,
    torch (2.13, 2.15) reads a channels last gradient of one image as a contiguous one. The older
    ONNX exporter, which traces, gets x as it is: it would lose the number of channels."""
    if torch.jit.is_tracing():
        return F.instance_norm(x, *args, **kwargs)
    return F.instance_norm(x.flatten(2), *args, **kwargs).view_as(x)


def _widened(x: Tensor) -> Tensor:
    """x in float32 if it is half precision and not on a CPU: torch's other kernels want parameters
    of x's own dtype, and statistics belong in float32."""
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
    """mean and var in the dtype that torch's norms want; new values are written back to them.

    The norms get copies, for two reasons. They write without telling autograd, which may have saved
    the two; and they keep them for the backward, before which another batch may change them.
    """
    dtype, written = accumulation(x), spec.use_input_stats
    copy = written or not torch.compiler.is_compiling()  # constant folding would not know copies
    wide_mean = None if mean is None else mean.to(dtype, copy=copy)
    wide_var = None if var is None else var.to(dtype, copy=copy)
    try:
        yield wide_mean, wide_var
    except StopRecomputation:  # the norm is done; its saved tensors are not needed any more
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
    """The parameters in the dtype of the statistics. A bias without a weight gets a weight of ones:
    torch 2.13's backwards need one."""
    weight, bias = accumulated(weight, x), accumulated(bias, x)
    return (torch.ones_like(bias) if weight is None and bias is not None else weight), bias
