"""Batch and batch-instance norm with statistics over the processes of a group.

Each process takes the moments of its own batch in one pass. One all-reduce merges them, and one
merges the gradients in the backward. Works on any backend and any device of the process group.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as TorchBatchNorm
from torch.nn.modules.batchnorm import _NormBase

from ..activations import ActivationLike
from ..checks import check_channels, check_input, check_more_than_one_value
from ..collectives import group_moments, is_distributed
from ..functional import moment_norm
from ..merges import Coefficients, update_running
from .base import StopRecomputation, bias_argument
from .batch import _BatchNorm
from .batch_instance import _BatchInstanceNorm


class _Synchronised(_BatchNorm):
    """A batch norm whose training statistics are those of a process group."""

    process_group: Any

    def _norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        momentum: float,
        **fused: Tensor | None,
    ) -> Tensor:
        if not (self.training and is_distributed(self.process_group)):
            return super()._norm(input, running_mean, running_var, training, momentum, **fused)
        name = type(self).__name__
        check_input(name, input, 2, fused["residual"])
        check_channels(name, input, self.weight, self.bias, running_mean, running_var)
        if self.eps <= 0:
            raise ValueError(f"{name} got eps={self.eps}: it has to be positive in training")
        found: list[Tensor] = []

        def merge(mean: Tensor, var: Tensor, count: int) -> Coefficients:
            batch = group_moments(mean, var, count, self.process_group, self.running_mean)
            found[:] = [t.detach() for t in batch]
            scale, center, shift = self._merged(mean, var, batch[0], batch[1])
            weight = 1.0 if self.weight is None else self.weight
            shift = shift * weight if self.bias is None else shift * weight + self.bias
            return scale * weight, center, shift

        try:
            y = moment_norm(input, merge, activation=self.activation, **fused)
        except StopRecomputation:
            self._move_statistics(running_mean, running_var, found, momentum)
            raise
        self._move_statistics(running_mean, running_var, found, momentum)
        return y

    @staticmethod
    def _move_statistics(
        running_mean: Tensor | None,
        running_var: Tensor | None,
        found: list[Tensor],
        momentum: float,
    ) -> None:
        """Runs last, and from values that all processes share: their statistics stay the same."""
        if found and running_mean is not None and running_var is not None:
            mean, var, n = found
            update_running(running_mean, running_var, mean, var, n, momentum)

    def _merged(
        self, mean: Tensor, var: Tensor, batch_mean: Tensor, batch_var: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """scale, center and shift, without weight and bias."""
        return (batch_var + self.eps).rsqrt(), batch_mean, torch.zeros_like(batch_mean)


class SyncBatchNorm(_Synchronised, TorchBatchNorm):
    """torch.nn.SyncBatchNorm over (N, C, ...), with an activation and a residual.

    In training, in a group of several processes, statistics are those of all processes' batches,
    which may differ in size and be empty. All processes have to take part in each call, forward and
    backward. In evaluation, and with one process, it computes the same as fastnorm.BatchNorm2d.
    Unlike torch's it runs on CPUs too. So it is a batch norm, but no torch.nn.SyncBatchNorm:
    DistributedDataParallel refuses any of those on a CPU.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: ActivationLike = None,
    ) -> None:
        TorchBatchNorm.__init__(
            self, num_features, eps, momentum, affine, track_running_stats, device, dtype,
            **bias_argument(bias),
        )  # fmt: skip
        self.process_group = process_group
        self._set_activation(activation)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: Any = None) -> nn.Module:
        """`fastnorm.convert_sync_batchnorm`, in the place where torch.nn has it."""
        from ..conversion import convert_sync_batchnorm  # it imports the modules

        return convert_sync_batchnorm(module, process_group)


class SyncBatchInstanceNorm(_Synchronised, _BatchInstanceNorm, _NormBase):
    """fastnorm.BatchInstanceNorm over (N, C, ...) whose batch part is that of a process group, as
    in SyncBatchNorm."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: ActivationLike = None,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype,
            bias=bias, activation=activation,
        )  # fmt: skip
        self.process_group = process_group

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 3:
            raise ValueError(f"expected at least 3D input (got {input.dim()}D input)")
        check_more_than_one_value(type(self).__name__, input, input.shape[2:], "instance")

    def _merged(
        self, mean: Tensor, var: Tensor, batch_mean: Tensor, batch_var: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        rho = self._mixing_rho()
        batch = rho * (batch_var + self.eps).rsqrt()
        scale = batch + (1 - rho) * (var + self.eps).rsqrt()
        return scale, mean, batch * (mean - batch_mean)
