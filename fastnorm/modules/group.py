"""Group norm as a module."""

from typing import Any

import torch
from torch import Tensor, nn

from .. import functional as F
from ..activations import ActivationLike
from .base import _Activated, affine_of, bias_argument, is_proxy


class GroupNorm(_Activated, nn.GroupNorm):
    """torch.nn.GroupNorm over (N, C, ...), with a fused activation and residual.

    See `fastnorm.functional.group_norm` (arXiv 1803.08494).
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: ActivationLike = None,
    ) -> None:
        super().__init__(num_groups, num_channels, eps, affine, device, dtype,
                         **bias_argument(bias))  # fmt: skip
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
        weight, bias = affine_of(self)
        return F.group_norm(
            input, self.num_groups, weight, bias, self.eps,
            activation=self.activation, residual=residual, scale=scale, shift=shift,
        )  # fmt: skip
