"""The norms as torch.nn modules with a fused activation and residual.

If torch.nn has the norm, the class takes the same arguments and a keyword-only `activation`, None
or one of `fastnorm.activations`. `forward(input, residual=None)` returns
act(norm(input) + residual). repr, parameters, buffers and state_dict are torch.nn's: a checkpoint
of either loads into the other.
"""

from .batch import BatchNorm1d, BatchNorm2d, BatchNorm3d
from .batch_instance import BatchInstanceNorm1d, BatchInstanceNorm2d, BatchInstanceNorm3d
from .decay import no_decay_parameters
from .gated import GatedRMSNorm
from .group import GroupNorm
from .instance import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from .mean_only import MeanOnlyBatchNorm1d, MeanOnlyBatchNorm2d, MeanOnlyBatchNorm3d
from .moment import MomentNorm
from .rows import AddLayerNorm, AddRMSNorm, LayerNorm, LayerNorm2d, RMSNorm
from .switchable import SwitchableNorm1d, SwitchableNorm2d, SwitchableNorm3d
from .synchronised import SyncBatchInstanceNorm, SyncBatchNorm
from .weight import initialise_weight_norm, weight_norm

__all__ = [
    "AddLayerNorm",
    "AddRMSNorm",
    "BatchInstanceNorm1d",
    "BatchInstanceNorm2d",
    "BatchInstanceNorm3d",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GatedRMSNorm",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "LayerNorm2d",
    "MeanOnlyBatchNorm1d",
    "MeanOnlyBatchNorm2d",
    "MeanOnlyBatchNorm3d",
    "MomentNorm",
    "RMSNorm",
    "SwitchableNorm1d",
    "SwitchableNorm2d",
    "SwitchableNorm3d",
    "SyncBatchInstanceNorm",
    "SyncBatchNorm",
    "initialise_weight_norm",
    "no_decay_parameters",
    "weight_norm",
]
