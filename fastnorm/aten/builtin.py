"""The norms by torch.nn.functional's own, with the autograd that those bring.

They are what the aten backend runs where none is better, and what it puts into every traced
program: its own operators choose by the values, which a trace has not, while compilers and
exporters know torch's as they know them from torch.nn.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference
from ..formula import NormSpec
from .activations import activate
from .operators import accumulated, accumulation, broadcast, laid_out_as, widened


def is_best(x: Tensor, spec: NormSpec) -> bool:
    """Whether no other operators serve better on untraced tensors."""
    # torch 2.13's channels_last backward crashes the process unless it computes dx: ours does.
    return spec.of_rows or (spec.norm == "group" and x.is_contiguous())


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
        shape = list(x.shape[x.dim() - spec.groups :])
        wide = widened(x)
        z = torch.layer_norm(wide, shape, *_affine(wide, weight, bias), spec.eps)
    elif spec.norm == "rms":
        # Torch's would keep x's layout, and warn of a float32 weight beside half precision.
        wide = x.to(accumulated(x)).contiguous()
        shape = list(x.shape[x.dim() - spec.groups :])
        z = torch.rms_norm(wide, shape, accumulation(weight, wide), spec.eps)
    elif spec.norm == "group":
        # Contiguous for the sake of the same crash.
        wide = widened(x).contiguous()
        z = torch.group_norm(wide, spec.groups, *_affine(wide, weight, bias), spec.eps)
        z = laid_out_as(x, z)
    elif spec.norm == "mean_only_batch":
        wide = widened(x)
        numbers = spec.use_input_stats, spec.momentum
        z = laid_out_as(x, reference.mean_only_batch_norm(wide, running_mean, bias, *numbers))
    else:
        wide = x.to(accumulated(x))
        affine = _affine(wide, weight, bias)
        z = laid_out_as(x, _of_channels(spec, wide, *affine, rho, running_mean, running_var))
    return activate(z.to(x.dtype), residual, spec.activation, ())[0]


def _of_channels(
    spec: NormSpec,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    rho: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
) -> Tensor:
    """Batch, instance or batch-instance norm."""
    mean = None if running_mean is None else running_mean.to(x.dtype)
    var = None if running_var is None else running_var.to(x.dtype)
    numbers = spec.use_input_stats, spec.momentum, spec.eps
    if spec.norm == "batch":
        z = F.batch_norm(x, mean, var, weight, bias, *numbers)
    elif spec.norm == "instance":
        z = F.instance_norm(x, mean, var, weight, bias, *numbers)
    else:
        assert rho is not None, "batch_instance_norm requires it"
        instance = F.instance_norm(x, eps=spec.eps)
        z = torch.lerp(
            instance,
            F.batch_norm(x, mean, var, None, None, *numbers),
            broadcast(rho.to(x.dtype), x),
        )
        z = z if weight is None else z * broadcast(weight.to(x.dtype), x)
        z = z if bias is None else z + broadcast(bias.to(x.dtype), x)
    if spec.use_input_stats:
        for buffer, updated in ((running_mean, mean), (running_var, var)):
            if buffer is not None and updated is not None and updated is not buffer:
                buffer.copy_(updated)
    return z


def _affine(
    x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The parameters in the dtype of the statistics; a weight of ones beside a lone bias, which
    torch 2.13's backwards do not know how to serve."""
    weight, bias = accumulation(weight, x), accumulation(bias, x)
    return (torch.ones_like(bias) if weight is None and bias is not None else weight), bias
