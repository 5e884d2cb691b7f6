"""Batch norm over the processes of a group: torch.nn.SyncBatchNorm with activation and residual."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as TorchBatchNorm

from . import reference
from .checks import check_input
from .modules import _BatchNorm, _bias_argument


class SyncBatchNorm(_BatchNorm, nn.SyncBatchNorm):
    """torch.nn.SyncBatchNorm over (N, C, ...), with an activation and a residual.

    In training, where a process group is initialised, normalisation and synchronisation are torch's
    own (on GPUs alone, as there). In evaluation, and without a process group, it computes what
    fastnorm.BatchNorm2d does.
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
        activation: str | None = None,
    ) -> None:
        nn.SyncBatchNorm.__init__(
            self, num_features, eps, momentum, affine, track_running_stats, process_group, device,
            dtype, **_bias_argument(bias),
        )  # fmt: skip
        self._set_activation(activation)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not (self.training and distributed):
            return super().forward(input, residual)
        check_input("batch_norm", input, 2, self.activation, residual)
        y = self._synchronised(input)
        return reference.activate(y if residual is None else y + residual, self.activation)

    def _synchronised(self, input: Tensor) -> Tensor:
        """torch's forward; it counts the batch first, so where it raises that is taken back."""
        tracked = self.num_batches_tracked
        version = None if tracked is None else tracked._version
        try:
            return nn.SyncBatchNorm.forward(self, input)
        except BaseException:
            if tracked is not None and tracked._version != version:
                tracked.sub_(1)
            raise

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: Any = None) -> nn.Module:
        """`module` with every batch norm in it, fastnorm's or torch.nn's, as a `SyncBatchNorm`.

        Ours keep their activation; all keep their parameters and buffers, the very tensors. Norms
        without statistics of the batch alone (batch-instance, instance, group, layer) stay as they
        are. Containers are changed in place; a `module` that is itself a batch norm is not, use
        what is returned.
        """
        converted = module
        if isinstance(module, TorchBatchNorm):
            converted = _synchronising(module, process_group)
        for name, child in list(module._modules.items()):
            if child is not None:
                converted.add_module(name, cls.convert_sync_batchnorm(child, process_group))
        return converted


convert_sync_batchnorm = SyncBatchNorm.convert_sync_batchnorm


def _synchronising(norm: TorchBatchNorm, process_group: Any) -> SyncBatchNorm:
    """A SyncBatchNorm with the settings of `norm` and its own parameters and buffers."""
    converted = SyncBatchNorm(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats,
        process_group, bias=norm.bias is not None,
        activation=norm.activation if isinstance(norm, _BatchNorm) else None,
    )  # fmt: skip
    if norm.affine:
        converted.weight, converted.bias = norm.weight, norm.bias
    converted.running_mean, converted.running_var = norm.running_mean, norm.running_var
    converted.num_batches_tracked = norm.num_batches_tracked
    converted.training = norm.training
    if hasattr(norm, "qconfig"):
        converted.qconfig = norm.qconfig
    return converted
