"""torch.nn's layer and RMS norm with a fused activation and residual, or of a sum."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional as F
from ..activations import ActivationLike
from .base import _Activated, affine_of, is_proxy


class LayerNorm(_Activated, nn.LayerNorm):
    """torch.nn.LayerNorm over the last dimensions, with a fused activation and residual.

    See `fastnorm.functional.layer_norm` (arXiv 1607.06450).
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: ActivationLike = None,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)
        self._set_activation(activation)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        if is_proxy(input):
            return self._as_leaf(input, residual)
        weight, bias = affine_of(self)
        return F.layer_norm(
            input, self.normalized_shape, weight, bias, self.eps,
            activation=self.activation, residual=residual,
        )  # fmt: skip


class RMSNorm(_Activated, nn.RMSNorm):
    """torch.nn.RMSNorm over the last dimensions, with a fused activation and residual.

    See `fastnorm.functional.rms_norm` (arXiv 1910.07467).
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: ActivationLike = None,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)
        self._set_activation(activation)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:  # torch calls it x
        if is_proxy(x):
            return self._as_leaf(x, residual)
        return F.rms_norm(
            x, self.normalized_shape, self.weight, self.eps,
            activation=self.activation, residual=residual,
        )  # fmt: skip


class AddLayerNorm(LayerNorm):
    """forward(input, residual) is (y, s): s = input + residual and y = layer_norm(s), fused.

    Arguments and state_dict are LayerNorm's; there is no activation.

    See `fastnorm.functional.add_layer_norm`.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)

    def forward(self, input: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """(y, s), both contiguous and of the input's shape and dtype."""
        if is_proxy(input):
            return self._as_leaf(input, residual)  # a proxy of the tuple
        return F.add_layer_norm(
            input, residual, self.normalized_shape, self.weight, self.bias, self.eps
        )


class AddRMSNorm(RMSNorm):
    """forward(x, residual) is (y, s): s = x + residual and y = rms_norm(s), fused.

    Arguments and state_dict are RMSNorm's; there is no activation.

    See `fastnorm.functional.add_rms_norm`.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """(y, s), both contiguous and of x's shape and dtype."""
        if is_proxy(x):
            return self._as_leaf(x, residual)
        return F.add_rms_norm(x, residual, self.normalized_shape, self.weight, self.eps)
