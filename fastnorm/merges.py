"""Moments of unions of sets, and their running averages, for merges in plain PyTorch."""

import torch
from torch import Tensor

Coefficients = tuple[Tensor | float, Tensor | float, Tensor | float]
"""(scale, center, shift): the merge of a `fastnorm.MomentNorm` returns these."""


def merge_moments(mean: Tensor, var: Tensor, dim: int | tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of the union of equally large sets along `dim`, kept as size 1.

    mean and var have the same shape and any floating dtype; the results have that dtype too. Over
    dim 0 of (N, C) moments: each channel over the batch. Source: Chan, Golub and LeVeque (1979).
    """
    merged = mean.mean(dim, keepdim=True)
    return merged, (var + (mean - merged).square()).mean(dim, keepdim=True)


@torch.no_grad()
def update_running(
    running_mean: Tensor,
    running_var: Tensor,
    mean: Tensor,
    var: Tensor,
    n: Tensor,
    share: Tensor | float,
) -> None:
    """Move (C,) running statistics by `share` towards those of n values a channel, `var` biased.

    A batch without values changes nothing. n is a tensor: reading it would wait for the GPU.
    """
    unbiased = var * (n / (n - 1).clamp(min=1))
    for buffer, new in ((running_mean, mean), (running_var, unbiased)):
        new = torch.where(n > 0, new.to(buffer.dtype), buffer)
        buffer.lerp_(new, share.to(buffer.dtype) if isinstance(share, Tensor) else share)
