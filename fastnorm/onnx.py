"""The norms as torch.onnx.export sees them, under every backend: ONNX's standard operators.

torch's exporters turn torch's own norms into BatchNormalization, InstanceNormalization,
LayerNormalization and, from opset 23 on, RMSNormalization. Two norms differ here. Group norm is
written as instance norm of the groups: ONNX Runtime's GroupNormalization (1.32, on a CPU) squares
before it subtracts the mean, its InstanceNormalization does not. The exporter before `dynamo=True`
has no RMS norm.
"""

import torch
from torch import Tensor

from . import torch_norms
from .contract import Inputs, NormSpec
from .reference.specs import formula
from .tensors import accumulated, accumulation, broadcast, laid_out_as


def norm(inputs: Inputs, spec: NormSpec) -> Tensor:
    """act(norm(x) + residual) from operators that ONNX has."""
    if spec.norm == "rms" and torch._C._is_tracing():
        return formula(inputs, spec)
    if spec.norm != "group":
        return torch_norms.norm(inputs, spec)
    x, residual, weight, bias = inputs[:4]
    wide = x.to(accumulation(x))
    groups = wide.reshape(x.shape[0], spec.groups, -1)
    z = torch.nn.functional.instance_norm(groups, eps=spec.eps).view(x.shape)
    weight, bias = accumulated(weight, wide), accumulated(bias, wide)
    z = z if weight is None else z * broadcast(weight, x)
    z = z if bias is None else z + broadcast(bias, x)
    return torch_norms.finish(spec, laid_out_as(x, z), x, residual)
