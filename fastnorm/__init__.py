"""fastnorm: normalisation layers for PyTorch on fused Triton kernels.

    import fastnorm
    norm = fastnorm.GroupNorm(8, 64, activation="relu").cuda()
    y = norm(x, residual=shortcut)

`fastnorm.functional` has the norms as functions, `fastnorm.reference` their formulas.
"""

from . import functional, reference
from .backend import get_backend, set_backend, use_backend
from .convert import convert
from .distributed import SyncBatchNorm, convert_sync_batchnorm
from .fusion import FusedActivation, fuse
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
from .report import Conversion
from .revert import revert

__version__ = "0.1.0"

__all__ = [
    "BatchInstanceNorm1d",
    "BatchInstanceNorm2d",
    "BatchInstanceNorm3d",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Conversion",
    "FusedActivation",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "SyncBatchNorm",
    "convert",
    "convert_sync_batchnorm",
    "functional",
    "fuse",
    "get_backend",
    "reference",
    "revert",
    "set_backend",
    "use_backend",
]
