"""The norms from ATen's fused operators: the fast path where Triton cannot run.

    norms         a call's dtype, layout, residual and activation, around one of
    channels      batch, instance, batch-instance, mean-only batch and group norm
    operators     the three stages: moments, merge, apply
    activations   what follows a norm
    stages        moments and apply by themselves, for merges made elsewhere
    weight        weight normalisation
    builtin       torch.nn.functional's own norms, where they are the best

The three stages are those of the kernels, each found inside an operator that does more, because
on a CPU ATen vectorises those operators and not the obvious ones (`var_mean`, `addcmul`):

    moments            native_group_norm, one channel a group, returns each (n, c)'s mean and rstd
    apply              native_batch_norm in eval mode, every (n, c) a channel of its own
    gradient moments   native_batch_norm_backward, likewise, asked only for dgamma and dbeta

They need (N, C, S) contiguous: channels last, instance and batch-instance norm, and group norm of
few channels in half precision, copy x and copy the result back. Whole, `builtin.py`'s, are layer
and RMS norm, contiguous group norm, and batch norm but for the training on large contiguous
float32 tensors. Statistics are float32, float64 for float64 tensors.
"""

from . import builtin, stages
from .activations import relu_mask, side_input
from .norms import norm, norm_backward
from .weight import weight_norm, weight_norm_backward

__all__ = [
    "builtin",
    "norm",
    "norm_backward",
    "relu_mask",
    "side_input",
    "stages",
    "weight_norm",
    "weight_norm_backward",
]
