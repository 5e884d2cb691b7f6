"""torch.nn's layer and RMS norm with a fused activation and residual, or of a sum."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import functional as F
from ..activations import ActivationLike
from .base import _Activated, affine_of, is_proxy


class _OfRows(_Activated):
    """A norm whose weight may count from 1 (`zero_centered`); it then starts as 0."""

    zero_centered = False  # for norms that were converted from torch.nn's

    if TYPE_CHECKING:
        weight: nn.Parameter

    def reset_parameters(self) -> None:
        super().reset_parameters()  # type: ignore[misc]  # torch.nn's
        if self.zero_centered and self.weight is not None:
            nn.init.zeros_(self.weight)

    def _with_activation(self, own: str) -> str:
        return super()._with_activation(own) + (", zero_centered=True" * self.zero_centered)


class LayerNorm(_OfRows, nn.LayerNorm):
    """torch.nn.LayerNorm over the last dimensions, with a fused activation and residual.

    With `zero_centered` the factor is 1 + weight, and weight starts as 0. See
    `fastnorm.functional.layer_norm` (arXiv 1607.06450).
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
        zero_centered: bool = False,
    ) -> None:
        self.zero_centered = zero_centered  # first: torch's constructor calls reset_parameters
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)
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
        return F.layer_norm(
            input, self.normalized_shape, weight, bias, self.eps,
            activation=self.activation, residual=residual, zero_centered=self.zero_centered,
            scale=scale, shift=shift,
        )  # fmt: skip


class LayerNorm2d(LayerNorm):
    """Layer norm over the channels of images (N, C, H, W), at each position; ConvNeXt's.

    It is `LayerNorm` of `input.permute(0, 2, 3, 1)`, permuted back, like the classes of this name
    in torchvision and timm. The residual has the input's shape; scale and shift are (N, C). The
    output is channels last in memory. An input that is channels last is read in place, any other is
    copied. Its state_dict is LayerNorm's. See `fastnorm.functional.layer_norm` (arXiv 2201.03545).

    Raises RuntimeError for an input, residual, scale or shift of another shape.
    """

    def __init__(
        self,
        num_channels: int,
        eps: float = 1e-6,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: ActivationLike = None,
        zero_centered: bool = False,
    ) -> None:
        super().__init__(
            num_channels, eps, elementwise_affine, bias, device, dtype,
            activation=activation, zero_centered=zero_centered,
        )  # fmt: skip

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
        (C,) = self.normalized_shape
        if input.dim() != 4 or input.shape[1] != C:
            raise RuntimeError(
                f"LayerNorm2d got an input of shape {tuple(input.shape)}: it needs (N, {C}, H, W)"
            )
        of_images = {"residual": (residual, input.shape)}
        of_samples = {"scale": (scale, input.shape[:2]), "shift": (shift, input.shape[:2])}
        for name, (given, shape) in (of_images | of_samples).items():
            if given is not None and given.shape != shape:
                raise RuntimeError(
                    f"LayerNorm2d got {name} of shape {tuple(given.shape)} for an input of shape "
                    f"{tuple(input.shape)}: it needs {tuple(shape)}"
                )
        rows = super().forward(
            input.permute(0, 2, 3, 1),
            None if residual is None else residual.permute(0, 2, 3, 1),
            scale=None if scale is None else scale[:, None, None],
            shift=None if shift is None else shift[:, None, None],
        )
        return rows.permute(0, 3, 1, 2)


class RMSNorm(_OfRows, nn.RMSNorm):
    """torch.nn.RMSNorm over the last dimensions, with a fused activation and residual.

    With `zero_centered` the factor is 1 + weight, and weight starts as 0. See
    `fastnorm.functional.rms_norm` (arXiv 1910.07467).
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
        zero_centered: bool = False,
    ) -> None:
        self.zero_centered = zero_centered
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)
        self._set_activation(activation)

    def forward(
        self,
        x: Tensor,  # torch's name for the input
        residual: Tensor | None = None,
        *,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        if is_proxy(x):
            return self._as_leaf(x, residual, scale=scale, shift=shift)
        return F.rms_norm(
            x, self.normalized_shape, self.weight, self.eps,
            activation=self.activation, residual=residual, zero_centered=self.zero_centered,
            scale=scale, shift=shift,
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
        *,
        zero_centered: bool = False,
    ) -> None:
        super().__init__(
            normalized_shape, eps, elementwise_affine, bias, device, dtype,
            zero_centered=zero_centered,
        )  # fmt: skip

    def forward(  # type: ignore[override]
        self,
        input: Tensor,
        residual: Tensor,
        *,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(y, s), both contiguous and of the input's shape and dtype."""
        if is_proxy(input):  # then the proxy is of the tuple
            return self._as_leaf(input, residual, scale=scale, shift=shift)
        return F.add_layer_norm(
            input, residual, self.normalized_shape, self.weight, self.bias, self.eps,
            zero_centered=self.zero_centered, scale=scale, shift=shift,
        )  # fmt: skip


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
        *,
        zero_centered: bool = False,
    ) -> None:
        super().__init__(
            normalized_shape, eps, elementwise_affine, device, dtype, zero_centered=zero_centered
        )

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        residual: Tensor,
        *,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(y, s), both contiguous and of x's shape and dtype."""
        if is_proxy(x):
            return self._as_leaf(x, residual, scale=scale, shift=shift)
        return F.add_rms_norm(
            x, residual, self.normalized_shape, self.weight, self.eps,
            zero_centered=self.zero_centered, scale=scale, shift=shift,
        )  # fmt: skip
