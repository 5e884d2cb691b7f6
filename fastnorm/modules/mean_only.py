"""Mean-only batch norm as modules: weight normalisation sets the scale, this centres the data."""

from typing import Any

import torch
from torch import Tensor, nn

from .. import functional as F
from ..activations import ActivationLike
from .base import _OverBatch


class _MeanOnlyBatchNorm(_OverBatch):
    """y = act(input - mean + bias + residual) of (N, C, ...), the mean of each channel.

    Source: arXiv 1602.07868, section 4: it follows layers whose scale weight normalisation sets.
    See `fastnorm.weight_norm`.

    Arguments are those of torch.nn.BatchNorm without eps and weight; `bias` (C,) starts as 0. In
    training mode it subtracts the batch's mean, and `running_mean` moves towards that by `momentum`
    (None: the cumulative average). In eval mode it subtracts `running_mean`; without
    `track_running_stats` always the batch's mean. One value per channel is legal: it is its own
    mean.
    """

    # Code for batch norms (initialisers, weight-decay filters) looks for these; this has none.
    running_var = None
    weight = None  # type: ignore[assignment]
    eps = None  # type: ignore[assignment]
    affine = False

    def __init__(
        self,
        num_features: int,
        momentum: float | None = 0.1,
        bias: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: ActivationLike = None,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.momentum = momentum
        self.track_running_stats = track_running_stats
        zeros = torch.zeros(num_features, device=device, dtype=dtype)
        self.register_parameter("bias", nn.Parameter(zeros) if bias else None)
        tracked = torch.zeros((), dtype=torch.long, device=device)
        self.register_buffer("running_mean", zeros.clone() if track_running_stats else None)
        self.register_buffer("num_batches_tracked", tracked if track_running_stats else None)
        self._set_activation(activation)

    def reset_running_stats(self) -> None:
        for buffer in (self.running_mean, self.num_batches_tracked):
            if buffer is not None:
                buffer.zero_()

    def reset_parameters(self) -> None:
        self.reset_running_stats()
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        return self._with_activation(
            f"{self.num_features}, momentum={self.momentum}, bias={self.bias is not None}, "
            f"track_running_stats={self.track_running_stats}"
        )

    def _norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        momentum: float,
        **fused: Tensor | None,
    ) -> Tensor:
        return F.mean_only_batch_norm(
            input, running_mean, self.bias, training, momentum,
            activation=self.activation, **fused,
        )  # fmt: skip


class MeanOnlyBatchNorm1d(_MeanOnlyBatchNorm):
    __doc__ = _MeanOnlyBatchNorm.__doc__
    _check_input_dim = nn.BatchNorm1d._check_input_dim


class MeanOnlyBatchNorm2d(_MeanOnlyBatchNorm):
    __doc__ = _MeanOnlyBatchNorm.__doc__
    _check_input_dim = nn.BatchNorm2d._check_input_dim


class MeanOnlyBatchNorm3d(_MeanOnlyBatchNorm):
    __doc__ = _MeanOnlyBatchNorm.__doc__
    _check_input_dim = nn.BatchNorm3d._check_input_dim
