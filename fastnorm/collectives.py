"""Moments over the processes of a group: one all-reduce forward, one backward."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .merges import merge_moments


def is_distributed(process_group: Any) -> bool:
    """Whether there are other processes to agree with. None is the default group."""
    if not (dist.is_available() and dist.is_initialized()):
        return False
    return dist.get_world_size(process_group) > 1


def group_moments(
    mean: Tensor, var: Tensor, count: int, process_group: Any, pivot: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance (C,) of each channel over the batches of all processes, and the
    number of values of each channel: from the moments (N, C) of this process, float64.

    Batches may differ in size, and be empty. Chan's merge of (n, mean, M2) is a sum of n, n d and
    M2 + n d^2, d = mean - pivot: a single all-reduce of 2 C + 1 float64 numbers. `pivot` (C,), the
    same in all processes, is to be near the mean; None is 0.
    """
    C = mean.shape[1]
    pivot = torch.zeros(C, dtype=mean.dtype, device=mean.device) if pivot is None else pivot
    pivot = pivot.detach().to(mean.dtype)
    if mean.shape[0] * count:
        own_mean, own_var = (t[0] for t in merge_moments(mean, var, 0))
    else:  # sums of nothing, through which the others' gradients still pass
        own_mean, own_var = mean.sum(0), var.sum(0)
    n = torch.full((1,), mean.shape[0] * count, dtype=mean.dtype, device=mean.device)
    d = own_mean - pivot
    total, first, second = AllReduce.apply(
        torch.cat((n, n * d, n * (own_var + d.square()))), process_group
    ).split((1, C, C))
    total = total.detach()
    d = first / total
    return pivot + d, second / total - d.square(), total


class AllReduce(torch.autograd.Function):
    """The sum over all processes; its derivative is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, process_group: Any) -> Tensor:
        ctx.process_group = process_group
        total = x.clone()
        dist.all_reduce(total, group=process_group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return AllReduce.apply(gradient, ctx.process_group), None
