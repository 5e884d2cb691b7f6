"""Batch norm as modules."""

from typing import Any

import torch
from torch import Tensor, nn

from .. import functional as F
from ..activations import ActivationLike
from ..checks import check_input, check_mask
from .base import _OverBatch, affine_of, bias_argument, is_proxy


class _BatchNorm(_OverBatch):
    """Constructor of BatchNorm1d, 2d and 3d."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
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

    def _norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        momentum: float,
        **fused: Tensor | None,
    ) -> Tensor:
        weight, bias = affine_of(self)
        return F.batch_norm(
            input, running_mean, running_var, weight, bias, training, momentum, self.eps,
            activation=self.activation, **fused,
        )  # fmt: skip


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """torch.nn.BatchNorm1d over (N, C) or (N, C, L), with a fused activation and residual.

    See `fastnorm.functional.batch_norm` (arXiv 1502.03167).

    forward takes a boolean `mask`, (N,) or (N, L), that is False for padding. Padding enters no
    statistic; its output and gradient are 0, whatever it holds. The other positions are gathered,
    computed as one batch without padding, and put back. Raises RuntimeError for a mask of another
    shape, dtype or device.
    """

    def forward(
        self,
        input: Tensor,
        residual: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        """act(norm(input) (1 + scale) + shift + residual), and 0 where `mask` is False."""
        if mask is None:
            return super().forward(input, residual, scale=scale, shift=shift)
        if is_proxy(input):
            return self._as_leaf(input, residual, mask=mask, scale=scale, shift=shift)
        self._check_input_dim(input)
        check_mask("BatchNorm1d", input, mask)
        check_input("BatchNorm1d", input, 2, residual)
        rows = input.movedim(1, -1)
        packed = super().forward(
            rows[mask],
            None if residual is None else residual.movedim(1, -1)[mask],
            scale=_of_positions(scale, mask),
            shift=_of_positions(shift, mask),
        )
        y = torch.zeros_like(rows).masked_scatter(mask.unsqueeze(-1), packed)
        return y.movedim(-1, 1)


def _of_positions(given: Tensor | None, mask: Tensor) -> Tensor | None:
    """A scale or a shift (N, C) for the positions that a mask (N,) or (N, L) keeps: (M, C)."""
    if given is None or mask.dim() == 1:
        return None if given is None else given[mask]
    return given.unsqueeze(1).expand(-1, mask.shape[1], -1)[mask]


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """torch.nn.BatchNorm2d over (N, C, H, W), with a fused activation and residual.

    See `fastnorm.functional.batch_norm` (arXiv 1502.03167).
    """


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """torch.nn.BatchNorm3d over (N, C, D, H, W), with a fused activation and residual.

    See `fastnorm.functional.batch_norm` (arXiv 1502.03167).
    """
