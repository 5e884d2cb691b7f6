"""Models converted: norms exchanged, fused with what follows, folded, and the way back.

    converting          torch.nn's and libraries' norms for ours, batch norms for others, in place
    libraries           the norms of libraries by the names of their classes
    adaptive            those of diffusers whose modulation goes into the norm's call
    trial               whether a library's norm and ours compute the same
    origin              what a module keeps of its library's class
    reverting           the way back
    synchronising       batch norms with the statistics of a process group, in place
    fusing              norm and activation in one call, batch norms folded into convolutions
    sequential_fusion   in a Sequential, in place
    traced_fusion       in the graph that torch.fx traces
    fusion              what can be fused or folded at all
    activations         activation modules and their names
    tracing             that graph, or an error that says why it were another model
    report              what was changed, what was kept and why

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
