"""The engine in C: the functions of `fastnorm.contract.Engine`, on rows and channels."""

import torch
from torch import Tensor

from fastnorm.contract import NormSpec

from ..routing import RoutedEngine
from ..tensors import row_sizes
from .channels import channel_norm, channel_norm_backward, stats_size
from .gated import gated_norm, gated_norm_backward
from .modulation import modulate, modulate_backward
from .rows import row_add_norm, row_norm, row_norm_backward
from .stages import STAGES
from .weight import weight_norm, weight_norm_backward


class CpuEngine(RoutedEngine):
    """Tensors on the CPU."""

    stages = STAGES
    row_norm = staticmethod(row_norm)
    row_add_norm = staticmethod(row_add_norm)
    row_norm_backward = staticmethod(row_norm_backward)
    channel_norm = staticmethod(channel_norm)
    channel_norm_backward = staticmethod(channel_norm_backward)
    gated_norm = staticmethod(gated_norm)
    gated_norm_backward = staticmethod(gated_norm_backward)
    modulate = staticmethod(modulate)
    modulate_backward = staticmethod(modulate_backward)
    weight_norm = staticmethod(weight_norm)
    weight_norm_backward = staticmethod(weight_norm_backward)

    def stats_like(self, x: Tensor, spec: NormSpec) -> Tensor:
        if spec.of_rows:
            kept = 2 * row_sizes(x, spec.groups)[0]
        else:
            kept = stats_size(spec, x.shape[0], x.shape[1])
        return x.new_empty(kept, dtype=torch.float64)


ENGINE = CpuEngine()
