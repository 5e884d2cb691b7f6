"""The norms as functions: torch.nn.functional's signatures, plus a fused activation and residual.

Every function of channels or rows, except the two that add, takes two keyword-only extras::

    activation   y = act(norm(x) + residual) for None, "relu", "silu", "gelu" (the exact one),
                 "gelu_tanh", "hardswish", "mish", ("leaky_relu", slope), ("elu", alpha): see
                 `fastnorm.activations`
    residual     a tensor of input's shape, dtype and device, added before the activation

Inputs are float16, bfloat16, float32 or float64. Parameters may have another floating dtype; their
gradients have it too. Output and gradient have the input's dtype and memory format, channels last
included. (The output of RMS norm and, as in torch, layer norm is always contiguous.) A call that
raises has written nothing: running statistics are as before.
"""

from .channels import (
    batch_instance_norm,
    batch_norm,
    group_norm,
    instance_norm,
    mean_only_batch_norm,
)
from .gated import gated_rms_norm
from .moments import moment_norm
from .rows import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from .weight import weight_norm

__all__ = [
    "add_layer_norm",
    "add_rms_norm",
    "batch_instance_norm",
    "batch_norm",
    "gated_rms_norm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "mean_only_batch_norm",
    "moment_norm",
    "rms_norm",
    "weight_norm",
]


def __dir__() -> list[str]:
    return [*__all__, "__doc__"]
