"""The engine of Triton's kernels: `fastnorm.contract.Engine`, on rows and channels."""

from torch import Tensor

from fastnorm.contract import NormSpec
from fastnorm.tensors import accumulation

from .channels import channel_norm, channel_norm_backward
from .gated import gated_norm, gated_norm_backward
from .modulation import modulate, modulate_backward
from .plans import stats_size
from .routing import RoutedEngine
from .row_geometry import RowSpec
from .rows import row_add_norm, row_norm, row_norm_backward
from .stages import STAGES
from .tensors import row_sizes
from .weight import weight_norm, weight_norm_backward


class TritonEngine(RoutedEngine):
    """For tensors on CUDA, or on any device if Triton's interpreter runs the kernels."""

    stages = STAGES
    channel_norm = staticmethod(channel_norm)
    channel_norm_backward = staticmethod(channel_norm_backward)
    row_norm = staticmethod(row_norm)
    row_add_norm = staticmethod(row_add_norm)
    row_norm_backward = staticmethod(row_norm_backward)
    gated_norm = staticmethod(gated_norm)
    gated_norm_backward = staticmethod(gated_norm_backward)
    modulate = staticmethod(modulate)
    modulate_backward = staticmethod(modulate_backward)
    weight_norm = staticmethod(weight_norm)
    weight_norm_backward = staticmethod(weight_norm_backward)

    def stats_like(self, x: Tensor, spec: NormSpec) -> Tensor:
        if spec.of_rows:
            kept = RowSpec(spec.norm).planes * row_sizes(x, spec.groups)[0]
        else:
            kept = stats_size(x.shape[0], x.shape[1], spec)
        return x.new_empty(kept, dtype=accumulation(x))


ENGINE = TritonEngine()
