"""Switchable normalisation (arXiv 1811.07727): a learnt mixture of instance, layer and batch
statistics, all merged from one pass over x."""

from typing import Any

import torch
from torch import Tensor, nn

from ..activations import ActivationLike
from ..checks import check_more_than_one_value
from ..collectives import group_moments, is_distributed
from ..merges import Coefficients, merge_moments, update_running
from .base import is_proxy
from .moment import MomentNorm


class _SwitchableNorm(MomentNorm):
    """y = act(weight * (x - mean) / sqrt(var + eps) + bias + residual) of (N, C, ...), arXiv
    1811.07727, equation 3.

    mean = sum_k softmax(mean_weight)_k mean_k and var likewise by var_weight, over k = instance,
    layer (all of a sample) and batch statistics, variances biased. mean_weight and var_weight have
    shape (3,), or (2,) with using_bn=False, which leaves the batch out; they start at 1.

    In eval mode the batch's part is running_mean and running_var (C,), the latter unbiased as in
    torch.nn.BatchNorm. They move by `momentum` in training. With momentum=None they hold the
    average over all training batches since `reset_running_stats`: the paper's batch average. To
    compute that, reset them after training and run some batches in training mode.

    convert_sync_batchnorm takes the batch's part over a process group.

    Raises ValueError for an input of another rank and for one value per channel in training,
    RuntimeError for another number of channels.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    _ranks: tuple[int, ...]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        using_bn: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: ActivationLike = None,
    ) -> None:
        super().__init__(activation=activation)
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.using_bn = affine, using_bn
        self.synchronised, self.process_group = False, None
        where = {"device": device, "dtype": dtype}
        switches = 3 if using_bn else 2
        self.mean_weight = nn.Parameter(torch.empty(switches, **where))
        self.var_weight = nn.Parameter(torch.empty(switches, **where))
        for name in ("weight", "bias"):
            parameter = nn.Parameter(torch.empty(num_features, **where)) if affine else None
            self.register_parameter(name, parameter)
        for name in ("running_mean", "running_var"):
            self.register_buffer(name, torch.empty(num_features, **where) if using_bn else None)
        count = torch.tensor(0, dtype=torch.long, device=device) if using_bn else None
        self.register_buffer("num_batches_tracked", count)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """All parameters and buffers as constructed."""
        for name in ("mean_weight", "var_weight", "weight"):
            if getattr(self, name) is not None:
                nn.init.ones_(getattr(self, name))
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        self.reset_running_stats()

    def reset_running_stats(self) -> None:
        """Forget all batches."""
        if self.running_mean is not None and self.running_var is not None:
            self.running_mean.zero_()
            self.running_var.fill_(1)
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.zero_()

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
        if input.dim() not in self._ranks:
            ranks = " or ".join(f"{rank}D" for rank in self._ranks)
            raise ValueError(f"expected {ranks} input (got {input.dim()}D input)")
        if input.shape[1] != self.num_features:
            raise RuntimeError(
                f"{type(self).__name__} of {self.num_features} features got an input of shape "
                f"{tuple(input.shape)}: its dimension 1 has to be as long"
            )
        if self.training and self.using_bn and not self._in_a_group():
            sizes = input.shape[:1] + input.shape[2:]
            check_more_than_one_value(type(self).__name__, input, sizes, "channel")
        return super().forward(input, residual, scale=scale, shift=shift)

    def merge(self, mean: Tensor, var: Tensor, count: int) -> Coefficients:
        means, variances = [mean], [var]
        layer_mean, layer_var = merge_moments(mean, var, 1)
        means.append(layer_mean.expand_as(mean))
        variances.append(layer_var.expand_as(var))
        if self.using_bn:
            batch_mean, batch_var = self._batch(mean, var, count)
            means.append(batch_mean.expand_as(mean))
            variances.append(batch_var.expand_as(var))
        # In the dtype of the moments: a float32 sum of means would lose digits.
        mean_share = self.mean_weight.to(mean.dtype).softmax(0)
        var_share = self.var_weight.to(mean.dtype).softmax(0)
        center = (mean_share[:, None, None] * torch.stack(means)).sum(0)
        variance = (var_share[:, None, None] * torch.stack(variances)).sum(0)
        scale = (variance + self.eps).rsqrt()
        if self.weight is None or self.bias is None:
            return scale, center, 0.0
        return self.weight * scale, center, self.bias

    def _batch(self, mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The batch's mean and variance, (1, C) or (C,), tracked in training."""
        assert self.running_mean is not None and self.running_var is not None
        if not self.training:
            return self.running_mean.to(mean.dtype), self.running_var.to(mean.dtype)
        if self._in_a_group():
            batch_mean, batch_var, n = group_moments(
                mean, var, count, self.process_group, self.running_mean
            )
        else:
            batch_mean, batch_var = (t[0] for t in merge_moments(mean, var, 0))
            n = torch.full((1,), mean.shape[0] * count, dtype=mean.dtype, device=mean.device)
        self._track(batch_mean.detach(), batch_var.detach(), n)
        return batch_mean, batch_var

    def _in_a_group(self) -> bool:
        return self.synchronised and is_distributed(self.process_group)

    def _track(self, mean: Tensor, var: Tensor, n: Tensor) -> None:
        """Move the running statistics towards those of a batch with n values in each channel."""
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share: Tensor | float
        if self.momentum is None:
            share = self.num_batches_tracked.to(mean.dtype).reciprocal()
        else:
            share = self.momentum
        assert self.running_mean is not None and self.running_var is not None
        update_running(self.running_mean, self.running_var, mean, var, n, share)

    def extra_repr(self) -> str:
        return self._with_activation(
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, "
            f"affine={self.affine}, using_bn={self.using_bn}"
        )


class SwitchableNorm1d(_SwitchableNorm):
    __doc__ = _SwitchableNorm.__doc__
    _ranks = (2, 3)


class SwitchableNorm2d(_SwitchableNorm):
    __doc__ = _SwitchableNorm.__doc__
    _ranks = (4,)


class SwitchableNorm3d(_SwitchableNorm):
    __doc__ = _SwitchableNorm.__doc__
    _ranks = (5,)
