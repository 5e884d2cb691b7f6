"""torch.nn's norm modules with a fused activation and residual: only `forward` is new.

Batch, instance and group norm here; row_modules.py has layer and RMS norm.

Each class takes torch.nn's arguments and a keyword-only `activation`: None, "relu", "silu" or
"gelu". `forward(input, residual=None)` returns act(norm(input) + residual). repr, parameters,
buffers and state_dict are torch.nn's: a checkpoint of either loads into the other.
"""

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import functional as F
from .checks import ACTIVATIONS, check_input, check_mask


class _Activated(nn.Module):
    """A norm that knows the activation it is fused with."""

    activation: str | None

    def _set_activation(self, activation: str | None) -> None:
        if activation is not None and activation not in ACTIVATIONS:
            raise ValueError(
                f"{type(self).__name__} got activation={activation!r}: choose None or one of "
                f"{', '.join(ACTIVATIONS)}"
            )
        self.activation = activation

    def extra_repr(self) -> str:
        own = super().extra_repr()
        return own if self.activation is None else f"{own}, activation={self.activation!r}"


class _Tracking(_Activated):
    """A norm with running statistics, to be mixed into one of torch.nn's."""

    if TYPE_CHECKING:  # what torch.nn's class brings
        num_features: int
        eps: float
        momentum: float | None
        affine: bool
        track_running_stats: bool
        weight: nn.Parameter  # so torch types it, though without affine it is None
        bias: nn.Parameter
        running_mean: Tensor | None
        running_var: Tensor | None
        num_batches_tracked: Tensor | None

        def _check_input_dim(self, input: Tensor) -> None: ...

        def reset_parameters(self) -> None: ...


class _OverBatch(_Tracking):
    """The forward of norms over the batch, which keeps their running statistics."""

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        self._check_input_dim(input)
        tracked = self.training and self.track_running_stats
        used = not self.training or self.track_running_stats
        mean, var = (self.running_mean, self.running_var) if used else (None, None)
        batch_stats = self.training or (self.running_mean is None and self.running_var is None)
        if tracked and self.momentum is None and mean is not None:
            # Copies, which a batch without values leaves as they are.
            batch_mean, batch_var = mean.clone(), None if var is None else var.clone()
            y = self._norm(input, batch_mean, batch_var, batch_stats, 1.0, residual)
            self._average((mean, var), (batch_mean, batch_var))
        else:
            momentum = 0.0 if self.momentum is None else self.momentum
            y = self._norm(input, mean, var, batch_stats, momentum, residual)
        if tracked and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)  # last: a call that raises has counted nothing
        return y

    def _average(
        self, running: tuple[Tensor | None, ...], batch: tuple[Tensor | None, ...]
    ) -> None:
        """The cumulative average of the running statistics and this batch's.

        Its factor stays on the device: reading num_batches_tracked would wait for the GPU.
        """
        assert self.num_batches_tracked is not None, "it comes with the running statistics"
        share = 1.0 / (self.num_batches_tracked + 1).double()
        for buffer, new in zip(running, batch, strict=True):
            if buffer is not None and new is not None:
                buffer.lerp_(new, share.to(buffer.dtype))

    def _norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        momentum: float,
        residual: Tensor | None,
    ) -> Tensor:
        raise NotImplementedError


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
        activation: str | None = None,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype,
            **_bias_argument(bias),
        )  # fmt: skip
        self._set_activation(activation)

    def _norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        momentum: float,
        residual: Tensor | None,
    ) -> Tensor:
        return F.batch_norm(
            input, running_mean, running_var, self.weight, self.bias, training, momentum, self.eps,
            activation=self.activation, residual=residual,
        )  # fmt: skip


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """torch.nn.BatchNorm1d over (N, C) or (N, C, L), with a fused activation and residual.

    See `fastnorm.functional.batch_norm` (arXiv 1502.03167).

    forward takes a boolean `mask`, (N,) or (N, L), that is False for padding: such positions are in
    no statistic, their output and gradient are 0, whatever they hold. The others are computed as
    one batch without padding, gathered and put back. Raises RuntimeError for a mask of another
    shape, dtype or device.
    """

    def forward(
        self, input: Tensor, residual: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        """act(norm(input) + residual), and 0 where `mask` is False."""
        if mask is None:
            return super().forward(input, residual)
        self._check_input_dim(input)
        check_mask("BatchNorm1d", input, mask)
        check_input("BatchNorm1d", input, 2, self.activation, residual)
        rows = input.movedim(1, -1)
        packed = super().forward(
            rows[mask], None if residual is None else residual.movedim(1, -1)[mask]
        )
        y = torch.zeros_like(rows).masked_scatter(mask.unsqueeze(-1), packed)
        return y.movedim(-1, 1)


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """torch.nn.BatchNorm2d over (N, C, H, W), with a fused activation and residual.

    See `fastnorm.functional.batch_norm` (arXiv 1502.03167).
    """


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """torch.nn.BatchNorm3d over (N, C, D, H, W), with a fused activation and residual.

    See `fastnorm.functional.batch_norm` (arXiv 1502.03167).
    """


class _InstanceNorm(_Tracking):
    """Constructor and forward of InstanceNorm1d, 2d and 3d; an input may lack the batch dim."""

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
        activation: str | None = None,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype,
            **_bias_argument(bias),
        )  # fmt: skip
        self._set_activation(activation)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        # torch's forward checks the input, then calls _apply_instance_norm on a batch: the residual
        # takes the same way beside it.
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
            residual = None if residual is None else residual.unsqueeze(0)
            return self._norm(input.unsqueeze(0), residual).squeeze(0)
        return self._norm(input, residual)

    def _norm(self, input: Tensor, residual: Tensor | None) -> Tensor:
        return F.instance_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias,
            self.training or not self.track_running_stats,
            self.momentum if self.momentum is not None else 0.0, self.eps,
            activation=self.activation, residual=residual,
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
        activation: str | None = None,
    ) -> None:
        super().__init__(num_groups, num_channels, eps, affine, device, dtype,
                         **_bias_argument(bias))  # fmt: skip
        self._set_activation(activation)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        return F.group_norm(
            input, self.num_groups, self.weight, self.bias, self.eps,
            activation=self.activation, residual=residual,
        )  # fmt: skip


def _bias_argument(bias: bool) -> dict[str, bool]:
    """torch 2.11 knows no `bias` here: named only where it says something, any version works."""
    return {} if bias else {"bias": False}
