"""Triton kernels of fastnorm and their launchers. Nothing here knows autograd or dispatch.

    launch      devices, tiles, the record of launches
    device      functions shared by the kernels: Chan's merge, activations, tile geometry
    moments     stage one: sums over S of each (n, c), forward and backward
    merge_*     stage two: the norm-specific merge of those sums
    apply       stage three: the affine map of each (n, c), forward and backward
    channels       the three stages as one operation: batch, instance, batch-instance, group
    rows           layer norm: statistics of each row

Whether the kernels are compiled or interpreted (TRITON_INTERPRET=1) is settled when this package is
imported; `INTERPRETED` says which.
"""

from . import launch
from .channels import channel_norm, channel_norm_backward, side_input
from .launch import INTERPRETED
from .rows import row_norm, row_norm_backward

__all__ = [
    "INTERPRETED",
    "channel_norm",
    "channel_norm_backward",
    "launch",
    "row_norm",
    "row_norm_backward",
    "side_input",
]
