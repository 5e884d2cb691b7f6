"""fastnorm: normalisation layers for PyTorch on fused kernels, in Triton and in C.

    import fastnorm
    norm = fastnorm.GroupNorm(8, 64, activation="relu").cuda()
    y = norm(x, residual=shortcut)

A call goes down this list, and imports go down it too:

    conversion          exchanges, fuses and folds a model's norms, and undoes it
    modules             the norms as torch.nn modules
    functional          the norms as functions; arguments are checked here (checks)
    nested              nested tensors, as the rows of dense ones
    plain               ordinary calls: straight on to autograd
    dispatch            all other calls: chooses the backend and the way
    sharding            DTensors, as each process's plain shards
    ops, traced         the kernels as operators, and the backend of traced programs
    onnx                the norms for torch.onnx.export
    autograd            joins a backend's forward and backward, as gated_autograd, moment_autograd
                        and weight_autograd do
    batching            torch.func.vmap
    backend             the choice: auto, triton, cpu, torch or reference
    kernels             Triton, and C in kernels.cpu; their docstrings have the maps
    torch_norms         torch's own norms: the backend torch, and programs exported on CPUs
    reference           each norm in plain PyTorch: the definition, and every higher derivative

contract holds the types that all of this and the kernels share: a call's tensors and norm, and the
tasks of an engine. tensors holds layouts and dtypes, the kernels' too. merges and collectives merge
moments, for norms of one's own and synchronised ones; `python -m fastnorm` runs selfcheck.
"""

import importlib.metadata

from . import functional, reference
from .activations import Activation
from .backend import get_backend, set_backend, use_backend
from .conversion import (
    Conversion,
    FusedActivation,
    convert,
    convert_sync_batchnorm,
    fuse,
    revert,
)
from .merges import Coefficients, merge_moments
from .modules import (
    AddLayerNorm,
    AddRMSNorm,
    BatchInstanceNorm1d,
    BatchInstanceNorm2d,
    BatchInstanceNorm3d,
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    GatedRMSNorm,
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LayerNorm,
    LayerNorm2d,
    MeanOnlyBatchNorm1d,
    MeanOnlyBatchNorm2d,
    MeanOnlyBatchNorm3d,
    MomentNorm,
    RMSNorm,
    SwitchableNorm1d,
    SwitchableNorm2d,
    SwitchableNorm3d,
    SyncBatchInstanceNorm,
    SyncBatchNorm,
    initialise_weight_norm,
    no_decay_parameters,
    weight_norm,
)

try:
    __version__ = importlib.metadata.version("fastnorm-triton")  # pyproject.toml has it
except importlib.metadata.PackageNotFoundError:  # a source tree, not installed
    __version__ = "unknown"

__all__ = [
    "Activation",
    "AddLayerNorm",
    "AddRMSNorm",
    "BatchInstanceNorm1d",
    "BatchInstanceNorm2d",
    "BatchInstanceNorm3d",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Coefficients",
    "Conversion",
    "FusedActivation",
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
    "convert",
    "convert_sync_batchnorm",
    "functional",
    "fuse",
    "get_backend",
    "initialise_weight_norm",
    "merge_moments",
    "no_decay_parameters",
    "reference",
    "revert",
    "set_backend",
    "use_backend",
    "weight_norm",
]


def __dir__() -> list[str]:
    """The public names; not the modules that the package is made of."""
    return [*__all__, "__doc__", "__version__"]
