"""Stage two of batch normalisation: statistics merged over the batch (arXiv 1502.03167).

One program owns a block of channels and walks over the N * K partial moments of each, so that
running statistics and parameter gradients are sums in a fixed order: no atomics, the same bits each
time.
"""

import torch
import triton
import triton.language as tl

from .device import (
    chan_merge,
    inverse_std,
    load_or,
    load_pivot,
    merge_along,
    split_mean,
    update_running,
)
from .launch import ChannelView, MergeOutputs, Pivot, Tiling, launch, statistics

PIVOT = Pivot(channels=1, per_channel=True)
BLOCK_P = 128  # partial moments
BLOCK_C = 32


@triton.jit(do_not_specialize=["rows", "K"])
def merge_batch_kernel(
    x_ptr,  # (N, C, S) in either layout
    mean_ptr,  # (N, K, C), relative to the pivot
    m2_ptr,  # (N, K, C)
    weight_ptr,  # (C,) or None
    bias_ptr,  # (C,) or None
    running_mean_ptr,  # (C,) or None
    running_var_ptr,  # (C,) or None
    center_ptr,  # (C,)
    scale_ptr,  # (C,)
    shift_ptr,  # (C,)
    rstd_ptr,  # (C,)
    offset_ptr,  # (C,): mean - center
    rows,  # N * K
    C,
    S,
    chunk,
    K,
    momentum: tl.float64,
    eps: tl.float64,
    TRAINING: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Chan's merge over the batch, the running statistics, and y = (x - center) * scale + shift."""
    ACC: tl.constexpr = center_ptr.dtype.element_ty
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_mask = c < C
    if TRAINING:
        pivot = load_pivot(
            x_ptr, tl.zeros([1], tl.int64), c, c_mask, C, S, 1, ACC, CHANNELS_LAST, True
        )
        count = tl.zeros([BLOCK_C], ACC)
        offset = tl.zeros([BLOCK_C], ACC)
        m2 = tl.zeros([BLOCK_C], ACC)
        for first in range(0, rows, BLOCK_P):
            p = first + tl.arange(0, BLOCK_P).to(tl.int64)[:, None]
            mask = (p < rows) & c_mask[None, :]
            p_count = tl.minimum(S - (p % K) * chunk, chunk) + tl.zeros([BLOCK_P, BLOCK_C], ACC)
            p_mean = tl.load(mean_ptr + p * C + c[None, :], mask=mask, other=0.0)
            p_m2 = tl.load(m2_ptr + p * C + c[None, :], mask=mask, other=0.0)
            block = merge_along(tl.where(mask, p_count, 0.0), p_mean, p_m2, 0)
            count, offset, m2 = chan_merge(count, offset, m2, block[0], block[1], block[2])
        center, offset = split_mean(pivot, offset)
        update_running(running_mean_ptr, c, c_mask, center, momentum)
        update_running(running_var_ptr, c, c_mask, m2 / tl.maximum(count - 1.0, 1.0), momentum)
        rstd = inverse_std(m2 / tl.maximum(count, 1.0), eps)
    else:
        center = tl.load(running_mean_ptr + c, mask=c_mask, other=0.0).to(ACC)
        offset = tl.zeros([BLOCK_C], ACC)
        rstd = inverse_std(tl.load(running_var_ptr + c, mask=c_mask, other=1.0).to(ACC), eps)
    scale = load_or(weight_ptr, c, c_mask, 1.0, ACC) * rstd
    tl.store(center_ptr + c, center, mask=c_mask)
    tl.store(scale_ptr + c, scale, mask=c_mask)
    shift = load_or(bias_ptr, c, c_mask, 0.0, ACC) - scale * offset
    tl.store(shift_ptr + c, shift, mask=c_mask)
    tl.store(rstd_ptr + c, rstd, mask=c_mask)
    tl.store(offset_ptr + c, offset, mask=c_mask)


def merge_batch(
    tables: tuple[torch.Tensor | None, torch.Tensor | None],
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    view: ChannelView,
    tiling: Tiling,
    use_input_stats: bool,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    """(center, scale, shift, rstd, offset), each (1, C); the running statistics in place."""
    stats = statistics(x, 5, (1, view.C))
    launch(
        merge_batch_kernel,
        triton.cdiv(view.C, BLOCK_C),
        x,
        x,
        *tables,
        weight,
        bias,
        running_mean,
        running_var,
        *stats,
        view.N * tiling.chunks,
        view.C,
        view.S,
        tiling.chunk,
        tiling.chunks,
        momentum,
        eps,
        TRAINING=use_input_stats,
        CHANNELS_LAST=view.channels_last,
        BLOCK_P=BLOCK_P,
        BLOCK_C=BLOCK_C,
    )
    return stats


@triton.jit(do_not_specialize=["rows", "count"])
def merge_batch_backward_kernel(
    sum_g_ptr,  # (N, K, C)
    sum_gx_ptr,  # (N, K, C)
    scale_ptr,  # (C,)
    rstd_ptr,  # (C,)
    offset_ptr,  # (C,)
    slope_ptr,  # (C,) or None
    level_ptr,  # (C,) or None
    dweight_ptr,  # (C,) or None
    dbias_ptr,  # (C,) or None
    rows,  # N * K
    count,  # elements of a channel
    C,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """dx = scale (g - s1 / count - (x - m) r^2 s2 / count), s1 = sum g, s2 = sum g (x - m)."""
    ACC: tl.constexpr = sum_g_ptr.dtype.element_ty
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_mask = c < C
    sum_g = tl.zeros([BLOCK_C], ACC)
    sum_gx = tl.zeros([BLOCK_C], ACC)
    for first in range(0, rows, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P).to(tl.int64)[:, None]
        mask = (p < rows) & c_mask[None, :]
        sum_g += tl.sum(tl.load(sum_g_ptr + p * C + c[None, :], mask=mask, other=0.0), axis=0)
        sum_gx += tl.sum(tl.load(sum_gx_ptr + p * C + c[None, :], mask=mask, other=0.0), axis=0)
    rstd = tl.load(rstd_ptr + c, mask=c_mask, other=0.0)
    offset = tl.load(offset_ptr + c, mask=c_mask, other=0.0)
    dweight = rstd * (sum_gx - offset * sum_g)
    if dweight_ptr is not None:
        tl.store(dweight_ptr + c, dweight, mask=c_mask)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + c, sum_g, mask=c_mask)
    if slope_ptr is not None:
        share = tl.load(scale_ptr + c, mask=c_mask, other=0.0) / count
        slope = -share * rstd * dweight  # in this order r^3 never underflows on its own
        tl.store(slope_ptr + c, slope, mask=c_mask)
        tl.store(level_ptr + c, -share * sum_g - slope * offset, mask=c_mask)


def merge_batch_backward(
    tables: tuple[torch.Tensor, torch.Tensor],
    stats: tuple[torch.Tensor, ...],
    view: ChannelView,
    tiling: Tiling,
    outputs: MergeOutputs,
) -> None:
    """Fill `outputs` (without drho) from the tables of (sum g, sum g (x - center))."""
    _, scale, _, rstd, offset = stats
    launch(
        merge_batch_backward_kernel,
        triton.cdiv(view.C, BLOCK_C),
        rstd,
        *tables,
        scale,
        rstd,
        offset,
        *outputs[:4],
        view.N * tiling.chunks,
        view.N * view.S,
        view.C,
        BLOCK_P=BLOCK_P,
        BLOCK_C=BLOCK_C,
    )
