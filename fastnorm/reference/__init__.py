"""Each norm's formula in plain PyTorch: the definition that every backend has to match.

Signatures and meaning are those of `fastnorm.functional`. Any device, any floating dtype, any order
of derivative. float16 and bfloat16 are computed in float32 and rounded once, at the end.
"""

from .channels import (
    batch_instance_norm,
    batch_norm,
    group_norm,
    instance_norm,
    mean_only_batch_norm,
)
from .pieces import activate
from .rows import (
    add_layer_norm,
    add_rms_norm,
    gated_rms_norm,
    layer_norm,
    rms_norm,
    weight_norm,
)

__all__ = [
    "activate",
    "add_layer_norm",
    "add_rms_norm",
    "batch_instance_norm",
    "batch_norm",
    "gated_rms_norm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "mean_only_batch_norm",
    "rms_norm",
    "weight_norm",
]
