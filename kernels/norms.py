"""The engine of Triton's kernels: what `fastnorm` asks of an engine, from rows and channels."""

from torch import Tensor

from fastnorm.contract import Inputs, NormSpec, Outputs, Tensors
from fastnorm.tensors import accumulation

from .channels import channel_norm, channel_norm_backward
from .plans import Norm, kept_sizes
from .routing import RoutedEngine
from .row_plans import stats_planes
from .rows import row_add_norm, row_norm, row_norm_backward
from .stages import STAGES
from .tensors import row_sizes
from .weight import weight_norm, weight_norm_backward


class TritonEngine(RoutedEngine):
    """Tensors on CUDA, or anywhere where Triton's interpreter runs the kernels."""

    stages = STAGES
    row_norm = staticmethod(row_norm)
    row_add_norm = staticmethod(row_add_norm)
    row_norm_backward = staticmethod(row_norm_backward)
    weight_norm = staticmethod(weight_norm)
    weight_norm_backward = staticmethod(weight_norm_backward)

    def channel_norm(self, inputs: Inputs, spec: NormSpec, differentiable: bool) -> Outputs:
        y, mask, (stats,) = channel_norm(
            *inputs, norm=spec.norm, groups=spec.groups, use_input_stats=spec.use_input_stats,
            momentum=spec.momentum, eps=spec.eps, activation=spec.activation,
            differentiable=differentiable,
        )  # fmt: skip
        return y, mask, stats

    def channel_norm_backward(
        self,
        dy: Tensor,
        inputs: Inputs,
        mask: Tensor | None,
        stats: Tensor,
        needs: tuple[bool, ...],
        spec: NormSpec,
    ) -> Tensors:
        side = inputs.residual if mask is None else mask
        dx, dresidual, dweight, dbias, drho = needs
        return channel_norm_backward(
            dy, inputs.x, side, inputs.weight, inputs.bias, inputs.rho, (stats,),
            (dx, dresidual, dweight, dbias, drho), norm=spec.norm, groups=spec.groups,
            use_input_stats=spec.use_input_stats, activation=spec.activation,
        )  # fmt: skip

    def stats_like(self, x: Tensor, spec: NormSpec) -> Tensor:
        if spec.of_rows:
            kept = stats_planes(spec.norm) * row_sizes(x, spec.groups)[0]
        else:
            norm = Norm(spec.norm, spec.groups, spec.use_input_stats, spec.activation)
            kept, _ = kept_sizes(x.shape, x.is_contiguous(), norm)
        return x.new_empty(kept, dtype=accumulation(x))


ENGINE = TritonEngine()
