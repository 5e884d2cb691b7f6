"""fastnorm: normalisation layers for PyTorch on fused kernels, in Triton and in C.

    import fastnorm
    norm = fastnorm.GroupNorm(8, 64, activation="relu").cuda()
    y = norm(x, residual=shortcut)

A call goes down this list, and imports go down it too:

    conversion          a model's norms exchanged, fused, folded, and back
    modules             the norms as torch.nn modules
    functional          the norms as functions: arguments are checked here (checks)
    nested              their nested tensors, as the rows of dense ones
    plain               ordinary calls, which go straight on to autograd
    dispatch            all others: which backend computes a call, by which way
    sharding            DTensors, as each process's plain shards
    ops, traced         the kernels as operators, and the backend that traced programs have in them
    onnx                what torch.onnx.export sees instead
    autograd            a backend's forward joined to its backward; gated_autograd, moment_autograd
                        and weight_autograd
    batching            torch.func.vmap
    backend             the choice: auto, triton, cpu, torch or reference
    kernels             Triton, and in kernels.cpu C; the maps are in their docstrings
    torch_norms         torch's own norms: the backend torch, and traced programs on CPUs
    reference           each norm in plain PyTorch: the definition, and every higher derivative

contract is what all of it and the kernels agree on: a call's tensors and norm, and what an engine
does; tensors is layouts and dtypes, the kernels' too. merges and collectives are what norms of
one's own and synchronised ones merge moments with; `python -m fastnorm` runs selfcheck.
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
    __version__ = importlib.metadata.version("fastnorm-triton")  # it is written in pyproject.toml
except importlib.metadata.PackageNotFoundError:  # a source tree that is not installed
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
    """What a user may want: the modules that it is made of are no part of it."""
    return [*__all__, "__doc__", "__version__"]
