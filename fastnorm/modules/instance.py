"""Instance norm as modules."""

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import functional as F
from ..activations import ActivationLike
from .base import _Tracking, affine_of, bias_argument, is_proxy, running_of


class _InstanceNorm(_Tracking):
    """Constructor and forward of InstanceNorm1d, 2d and 3d. The input may lack the batch dimension;
    then so do its scale and shift."""

    if TYPE_CHECKING:

        def _get_no_batch_dim(self) -> int: ...

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: ActivationLike = None,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype,
            **bias_argument(bias),
        )  # fmt: skip
        self._set_activation(activation)

    def forward(
        self,
        input: Tensor,
        residual: Tensor | None = None,
        *,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        if is_proxy(input):
            return self._as_leaf(input, residual, scale=scale, shift=shift)
        # torch's forward checks the input, then calls _apply_instance_norm on a batch. The residual
        # is handled in the same way.
        self._check_input_dim(input)
        unbatched = input.dim() == self._get_no_batch_dim()
        channels = input.shape[0 if unbatched else 1]
        if channels != self.num_features:
            message = (
                f"{type(self).__name__} expected {self.num_features} channels, got {channels} in "
                f"an input of shape {tuple(input.shape)}"
            )
            if self.affine:
                raise ValueError(message)
            warnings.warn(f"{message}; without affine parameters that makes no difference",
                          stacklevel=2)  # fmt: skip
        if unbatched:
            residual, scale, shift = (
                None if t is None else t.unsqueeze(0) for t in (residual, scale, shift)
            )
            input = input.unsqueeze(0)
            y = self._norm(input, residual=residual, scale=scale, shift=shift)
            return y.squeeze(0)
        return self._norm(input, residual=residual, scale=scale, shift=shift)

    def _norm(self, input: Tensor, **fused: Tensor | None) -> Tensor:
        return F.instance_norm(
            input, *running_of(self), *affine_of(self),
            self.training or not self.track_running_stats,
            self.momentum if self.momentum is not None else 0.0, self.eps,
            activation=self.activation, **fused,
        )  # fmt: skip


class InstanceNorm1d(_InstanceNorm, nn.InstanceNorm1d):
    """torch.nn.InstanceNorm1d over (N, C, L) or (C, L), with a fused activation and residual.

    See `fastnorm.functional.instance_norm` (arXiv 1607.08022).
    """


class InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    """torch.nn.InstanceNorm2d over (N, C, H, W) or (C, H, W), with a fused activation and residual.

    See `fastnorm.functional.instance_norm` (arXiv 1607.08022).
    """


class InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    """torch.nn.InstanceNorm3d over (N, C, D, H, W) or (C, D, H, W), fused likewise.

    See `fastnorm.functional.instance_norm` (arXiv 1607.08022).
    """
