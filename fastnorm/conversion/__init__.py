"""Conversion of models: exchanges norms, fuses and folds them, and undoes it.

    converting          torch.nn's and libraries' norms become ours, batch norms others, in place
    libraries           finds the norms of libraries by the names of their classes
    adaptive            diffusers' norms, with the modulation inside the norm's call
    trial               whether a library's norm and ours compute the same
    origin              the data of its library's class that a module keeps
    reverting           the way back
    synchronising       gives batch norms the statistics of a process group, in place
    fusing              norm and activation in one call, batch norms folded into convolutions
    sequential_fusion   the same in a Sequential, in place
    traced_fusion       the same in the graph that torch.fx traces
    fusion              which modules can be fused or folded
    activations         activation modules and their names
    tracing             makes that graph, or says why it would be another model
    report              the changes, and the modules kept, with reasons

Everything is checked before anything is written.
"""

from .converting import convert
from .fusing import fuse
from .report import Conversion
from .reverting import revert
from .sequential_fusion import FusedActivation
from .synchronising import convert_sync_batchnorm

__all__ = [
    "Conversion",
    "FusedActivation",
    "convert",
    "convert_sync_batchnorm",
    "fuse",
    "revert",
]
