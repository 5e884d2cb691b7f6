"""Triton kernels of fastnorm and their launchers. Nothing here knows autograd or dispatch.

    launch             compiled handles, shared counters, the record of launches
    device             arithmetic: moments and their merge, activations
    tiles, geometry    where tiles lie: on the device, and chosen on the host
    tiers              which of three ways a norm takes, by the size of its sets
    merge, gradients   stage two: sets merged, forward and backward, and the coefficients
    resident*          one launch: the tensor stays in registers from statistics to output
    streaming*         two launches: moments, then apply
    sync, clusters     tickets and barriers; launching programs that wait for one another
    plans              the launches of a norm at one size
    channels           batch, instance, batch-instance and group norm on all of these
    rows, row_*        layer and RMS norm: statistics of each row
    weight             weight normalisation: norms of rows
    stages             moments and apply by themselves, for merges made elsewhere
    norms              either, behind one pair of functions

Whether the kernels are compiled or interpreted (TRITON_INTERPRET=1) is settled when this package is
imported; `INTERPRETED` says which.
"""

from . import launch, stages, tiers
from .channels import side_input
from .launch import INTERPRETED
from .norms import add_norm, add_norm_backward, like, norm, norm_backward, relu_mask
from .weight import weight_norm, weight_norm_backward

__all__ = [
    "INTERPRETED",
    "add_norm",
    "add_norm_backward",
    "launch",
    "like",
    "norm",
    "norm_backward",
    "relu_mask",
    "side_input",
    "stages",
    "tiers",
    "weight_norm",
    "weight_norm_backward",
]
