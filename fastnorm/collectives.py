"""Moments over the processes of a group: one all-reduce forward, one backward.

Each is one operator of torch.library, in eager calls and in compiled programs. A compiler cannot
look inside it, so it cannot move the reduction. The pivot may be a running mean, which the program
overwrites later: only the operator reads it, and does so before that.
"""

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
    number of values of each channel. The input is this process's moments (N, C), float64.

    Batches may differ in size, and may be empty. `pivot` (C,) should be near the mean and is the
    same in all processes; None is 0.
    """
    n = mean.shape[0] * count
    if n:
        own_mean, own_var = (t[0] for t in merge_moments(mean, var, 0))
    else:  # sums of nothing: the other processes' gradients still pass through
        own_mean, own_var = mean.sum(0), var.sum(0)
    group: Any = dist.group.WORLD if process_group is None else process_group
    batch_mean, batch_var, total = _merge(own_mean, own_var, n, pivot, group.group_name)
    return batch_mean, batch_var, total.detach()


@torch.library.custom_op("fastnorm::group_moments", mutates_args=())
def _merge(
    mean: Tensor, var: Tensor, n: int, pivot: Tensor | None, group: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance (C,) over all processes, and the number of values (1,), from each
    process's own.

    Chan's merge of (n, mean, M2) is a sum of n, n d and M2 + n d^2, d = mean - pivot: a single
    all-reduce of 2 C + 1 float64 numbers.
    """
    pivot = torch.zeros_like(mean) if pivot is None else pivot.to(mean.dtype)
    d = mean - pivot
    packet = torch.cat((mean.new_full((1,), n), n * d, n * (var + d.square())))
    total, first, second = _all_reduce(packet, group).split((1, *mean.shape, *mean.shape))
    d = first / total
    return pivot + d, second / total - d.square(), total.clone()


@_merge.register_fake
def _(
    mean: Tensor, var: Tensor, n: int, pivot: Tensor | None, group: str
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(mean), torch.empty_like(var), mean.new_empty(1)


def _keep_for_merge_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    mean, _, ctx.n, _, ctx.group = inputs
    batch_mean, _, total = output
    ctx.save_for_backward(mean, batch_mean, total)


def _merge_backward(
    ctx: Any, dmean: Tensor, dvar: Tensor, _dtotal: Tensor
) -> tuple[Tensor | None, ...]:
    """The derivatives by this process's mean and variance. The pivot has none: it changes only
    the rounding."""
    mean, batch_mean, total = ctx.saved_tensors
    dmean, dvar = _all_reduce(torch.cat((dmean, dvar)), ctx.group).chunk(2)
    share = ctx.n / total.detach()
    dmean = dmean + 2 * (mean - batch_mean) * dvar
    return share * dmean, share * dvar, None, None, None


_merge.register_autograd(_merge_backward, setup_context=_keep_for_merge_backward)


@torch.library.custom_op("fastnorm::all_reduce", mutates_args=())
def _all_reduce(x: Tensor, group: str) -> Tensor:
    """The sum over all processes; its derivative is the sum of their gradients."""
    total = x.clone()
    resolve: Any = dist.distributed_c10d._resolve_process_group
    dist.all_reduce(total, group=resolve(group))
    return total


@_all_reduce.register_fake
def _(x: Tensor, group: str) -> Tensor:
    return torch.empty_like(x)


def _keep_group(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.group = inputs[1]


def _all_reduce_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    return _all_reduce(gradient.contiguous(), ctx.group), None


_all_reduce.register_autograd(_all_reduce_backward, setup_context=_keep_group)
