"""fastnorm: normalisation layers for PyTorch on fused Triton kernels.

    import fastnorm
    norm = fastnorm.GroupNorm(8, 64, activation="relu").cuda()
    y = norm(x, residual=shortcut)

`fastnorm.functional` has the norms as functions, `fastnorm.reference` their formulas.
"""

from . import functional, reference
from .backend import get_backend, set_backend, use_backend
from .distributed import SyncBatchNorm, convert_sync_batchnorm
from .mean_only import MeanOnlyBatchNorm1d, MeanOnlyBatchNorm2d, MeanOnlyBatchNorm3d
from .modules import (
    BatchInstanceNorm1d,
    BatchInstanceNorm2d,
    BatchInstanceNorm3d,
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LayerNorm,
)
from .weight import initialise_weight_norm, weight_norm

__version__ = "0.1.0"

__all__ = [
    "BatchInstanceNorm1d",
    "BatchInstanceNorm2d",
    "BatchInstanceNorm3d",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "MeanOnlyBatchNorm1d",
    "MeanOnlyBatchNorm2d",
    "MeanOnlyBatchNorm3d",
    "SyncBatchNorm",
    "convert_sync_batchnorm",
    "functional",
    "get_backend",
    "initialise_weight_norm",
    "reference",
    "set_backend",
    "use_backend",
    "weight_norm",
]
