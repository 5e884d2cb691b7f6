"""The norms by torch.nn.functional's own, with the autograd that those bring.

They are what the aten backend runs where none is better, and what it puts into every traced
program: its own operators choose by the values, which a trace has not, while compilers and
exporters know torch's as they know them from torch.nn.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import _StopRecomputationError as StopRecomputation

from .. import reference
from ..formula import NormSpec
from .activations import activate
from .operators import (
    HALF,
    accumulated,
    accumulation,
    broadcast,
    full_precision,
    laid_out_as,
    lies_channels_last,
    positions,
    widened,
)

# Batch norm's float32 moments by instances are faster than torch's own on tensors so large, with
# instances so long; elsewhere Python, or the table of moments, is the larger cost (CPU, 2 threads).
LARGE_BATCH = 2**20
LONG_INSTANCE = 256


def is_best(x: Tensor, spec: NormSpec) -> bool:
    """Whether no other operators serve better on untraced tensors."""
    if spec.norm == "group":
        # torch 2.13's channels_last backward can crash the process: ours does not.
        return x.is_contiguous()
    if spec.norm == "batch":
        large = x.numel() >= LARGE_BATCH and positions(x) >= LONG_INSTANCE
        ours = spec.use_input_stats and large and x.dtype not in HALF and x.is_contiguous()
        return not ours
    return spec.of_rows


def norm(
    spec: NormSpec,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    rho: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
) -> Tensor:
    """act(norm(x) + residual) of an x with elements; the running statistics are updated in place.

    float16 and bfloat16 are computed in float32, and rounded before the residual is added.
    """
    if spec.norm == "layer":
        shape = _constants(x.shape[x.dim() - spec.groups :])
        wide = widened(x)
        z = torch.layer_norm(wide, shape, *_affine(wide, weight, bias), spec.eps)
    elif spec.norm == "rms":
        # Torch's would keep x's layout, and warn of a float32 weight beside half precision.
        wide = x.to(accumulated(x)).contiguous()
        shape = _constants(x.shape[x.dim() - spec.groups :])
        z = torch.rms_norm(wide, shape, accumulation(weight, wide), spec.eps)
    elif spec.norm == "group":
        # Contiguous because channels last torch 2.13's can crash the process.
        wide = widened(x).contiguous()
        z = torch.group_norm(wide, spec.groups, *_affine(wide, weight, bias), spec.eps)
        z = laid_out_as(x, z)
    elif spec.norm == "mean_only_batch":
        wide = widened(x)
        numbers = spec.use_input_stats, spec.momentum
        z = laid_out_as(x, reference.mean_only_batch_norm(wide, running_mean, bias, *numbers))
    elif spec.norm == "batch":
        z = laid_out_as(x, _batch_norm(spec, x, weight, bias, running_mean, running_var))
    else:
        wide = x.to(accumulated(x))
        affine = _affine(wide, weight, bias)
        z = laid_out_as(x, _of_instances(spec, wide, *affine, rho, running_mean, running_var))
    return finish(spec, z, x, residual)


def finish(spec: NormSpec, z: Tensor, x: Tensor, residual: Tensor | None) -> Tensor:
    """act(z + residual) in x's dtype."""
    return activate(z.to(x.dtype), residual, spec.activation, ())[0]


def _constants(sizes: Sequence[Any]) -> list[int]:
    """The sizes of a norm's shape: torch.jit.trace, whose sizes are tensors, is to record numbers,
    as it does of torch.nn's norms."""
    return [int(size) if isinstance(size, Tensor) else size for size in sizes]


def _batch_norm(
    spec: NormSpec,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
) -> Tensor:
    if x.dim() == 3 and lies_channels_last(x):  # whose layout torch keeps in four dimensions alone
        x = x.unsqueeze(2)
        return _batch_norm(spec, x, weight, bias, running_mean, running_var).squeeze(2)
    wide = widened(x)
    affine = full_precision(*_affine(wide, weight, bias), wide, wide.shape[1:2])
    with _running(spec, wide, running_mean, running_var) as (mean, var):
        return F.batch_norm(wide, mean, var, *affine, spec.use_input_stats, spec.momentum, spec.eps)


def _of_instances(
    spec: NormSpec,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    rho: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
) -> Tensor:
    """Instance or batch-instance norm."""
    numbers = spec.use_input_stats, spec.momentum, spec.eps
    with _running(spec, x, running_mean, running_var) as (mean, var):
        if spec.norm == "instance":
            return F.instance_norm(x, mean, var, weight, bias, *numbers)
        batch = F.batch_norm(x, mean, var, None, None, *numbers)
    assert rho is not None, "batch_instance_norm requires it"
    z = torch.lerp(F.instance_norm(x, eps=spec.eps), batch, broadcast(rho.to(x.dtype), x))
    z = z if weight is None else z * broadcast(weight.to(x.dtype), x)
    return z if bias is None else z + broadcast(bias.to(x.dtype), x)


@contextlib.contextmanager
def _running(
    spec: NormSpec, x: Tensor, mean: Tensor | None, var: Tensor | None
) -> Iterator[tuple[Tensor | None, Tensor | None]]:
    """mean and var in the dtype that torch's norms want, and what those write to them.

    They get copies: to write to, for they do not tell autograd, which may have saved the two; and
    to keep for backward, before which a batch may change them.
    """
    dtype, written = accumulated(x), spec.use_input_stats
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
    weight, bias = accumulation(weight, x), accumulation(bias, x)
    return (torch.ones_like(bias) if weight is None and bias is not None else weight), bias
