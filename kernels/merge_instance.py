"""Stage two of instance norm and of its mixture with batch norm.

    IN    each instance's own statistics          (arXiv 1607.08022)
    BIN   rho BN + (1 - rho) IN, one pass over x  (arXiv 1805.07925)

IN is BIN without its batch part. One program owns a block of channels and walks over the instances:
running statistics and parameter gradients are sums in a fixed order.
"""

import torch
import triton
import triton.language as tl

from .device import (
    chan_merge,
    chunk_moments,
    chunk_sums,
    inverse_std,
    load_or,
    load_pivot,
    merge_along,
    split_mean,
    update_running,
)
from .launch import ChannelView, MergeOutputs, Pivot, Tiling, launch, statistics

PIVOT = Pivot(channels=1, per_channel=False)
NO_BATCH = (None, None, None)  # instance norm's batch_rstd, batch_center and batch_offset
BLOCK_N = 32
BLOCK_C = 32


@triton.jit(do_not_specialize=["N", "K"])
def merge_instance_kernel(
    x_ptr,  # (N, C, S) in either layout
    mean_ptr,  # (N, K, C), relative to the pivots
    m2_ptr,  # (N, K, C)
    weight_ptr,  # (C,) or None
    bias_ptr,  # (C,) or None
    rho_ptr,  # (C,), None for IN
    running_mean_ptr,  # (C,) or None
    running_var_ptr,  # (C,) or None
    center_ptr,  # (N, C)
    scale_ptr,  # (N, C)
    shift_ptr,  # (N, C)
    rstd_ptr,  # (N, C)
    offset_ptr,  # (N, C): the instance's mean - center, a rounding error
    batch_rstd_ptr,  # (C,), None for IN
    batch_center_ptr,  # (C,), None for IN
    batch_offset_ptr,  # (C,), None for IN
    N,
    C,
    S,
    chunk,
    K,
    momentum: tl.float64,
    eps: tl.float64,
    TRAINING: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Both merges and y = (x - center) * scale + shift: with d = mean - center of either kind,
    scale = gamma (rho r_b + (1 - rho) r_i), shift = beta - gamma (rho r_b d_b + (1 - rho) r_i d_i).
    """
    ACC: tl.constexpr = center_ptr.dtype.element_ty
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_mask = c < C
    origin = load_pivot(
        x_ptr, tl.zeros([1], tl.int64), c, c_mask, C, S, 1, ACC, CHANNELS_LAST, False
    )
    if TRAINING and (
        rho_ptr is not None or running_mean_ptr is not None or running_var_ptr is not None
    ):
        count = tl.zeros([BLOCK_C], ACC)
        batch_offset = tl.zeros([BLOCK_C], ACC)
        m2 = tl.zeros([BLOCK_C], ACC)
        instances_m2 = tl.zeros([BLOCK_C], ACC)
        for first in range(0, N, BLOCK_N):
            n = first + tl.arange(0, BLOCK_N).to(tl.int64)[:, None]
            mask = (n < N) & c_mask[None, :]
            pivot = load_pivot(x_ptr, n, c[None, :], mask, C, S, 1, ACC, CHANNELS_LAST, False)
            n_count, n_mean, n_m2 = chunk_moments(
                mean_ptr, m2_ptr, n, c[None, :], mask, C, S, chunk, K, BLOCK_N, BLOCK_C
            )
            instances_m2 += tl.sum(n_m2, axis=0)
            block = merge_along(n_count, n_mean + (pivot - origin[None, :]), n_m2, 0)
            count, batch_offset, m2 = chan_merge(
                count, batch_offset, m2, block[0], block[1], block[2]
            )
        if rho_ptr is None:  # IN keeps the mean over n of the instances' unbiased variances
            unbiased = instances_m2 / tl.maximum(count - count / S, 1.0)
        else:
            unbiased = m2 / tl.maximum(count - 1.0, 1.0)
        batch_center, batch_offset = split_mean(origin, batch_offset)
        update_running(running_mean_ptr, c, c_mask, batch_center, momentum)
        update_running(running_var_ptr, c, c_mask, unbiased, momentum)
        batch_rstd = inverse_std(m2 / tl.maximum(count, 1.0), eps)
    elif not TRAINING:
        batch_center = tl.load(running_mean_ptr + c, mask=c_mask, other=0.0).to(ACC)
        batch_offset = tl.zeros([BLOCK_C], ACC)
        batch_rstd = inverse_std(tl.load(running_var_ptr + c, mask=c_mask, other=1.0).to(ACC), eps)
    gamma = load_or(weight_ptr, c, c_mask, 1.0, ACC)
    beta = load_or(bias_ptr, c, c_mask, 0.0, ACC)
    rho = load_or(rho_ptr, c, c_mask, 0.0, ACC)
    if rho_ptr is not None:
        tl.store(batch_rstd_ptr + c, batch_rstd, mask=c_mask)
        tl.store(batch_center_ptr + c, batch_center, mask=c_mask)
        tl.store(batch_offset_ptr + c, batch_offset, mask=c_mask)
    for first in range(0, N, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N).to(tl.int64)[:, None]
        mask = (n < N) & c_mask[None, :]
        slot = n * C + c[None, :]
        pivot = load_pivot(x_ptr, n, c[None, :], mask, C, S, 1, ACC, CHANNELS_LAST, False)
        _, offset, n_m2 = chunk_moments(
            mean_ptr, m2_ptr, n, c[None, :], mask, C, S, chunk, K, BLOCK_N, BLOCK_C
        )
        center, offset = split_mean(pivot, offset)
        rstd = inverse_std(n_m2 / S, eps)
        scale = (gamma * (1.0 - rho))[None, :] * rstd
        shift = beta[None, :] - scale * offset
        if rho_ptr is not None:
            batch_scale = (gamma * rho * batch_rstd)[None, :]
            shift -= batch_scale * ((batch_center[None, :] - center) + batch_offset[None, :])
            scale += batch_scale
        tl.store(center_ptr + slot, center, mask=mask)
        tl.store(scale_ptr + slot, scale, mask=mask)
        tl.store(shift_ptr + slot, shift, mask=mask)
        tl.store(rstd_ptr + slot, rstd, mask=mask)
        tl.store(offset_ptr + slot, offset, mask=mask)


def merge_instance(
    tables: tuple[torch.Tensor, torch.Tensor],
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    rho: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    view: ChannelView,
    tiling: Tiling,
    use_input_stats: bool,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    """(center, scale, shift, rstd, offset), each (N, C); BIN adds three of the batch, each (C,).

    Those are batch_rstd, batch_center and batch_offset.
    """
    stats = statistics(x, 5, (view.N, view.C))
    batch = () if rho is None else statistics(x, 3, (view.C,))
    launch(
        merge_instance_kernel,
        triton.cdiv(view.C, BLOCK_C),
        x,
        x,
        *tables,
        weight,
        bias,
        rho,
        running_mean,
        running_var,
        *stats,
        *(batch or NO_BATCH),
        view.N,
        view.C,
        view.S,
        tiling.chunk,
        tiling.chunks,
        momentum,
        eps,
        TRAINING=use_input_stats,
        CHANNELS_LAST=view.channels_last,
        BLOCK_N=BLOCK_N,
        BLOCK_C=BLOCK_C,
    )
    return *stats, *batch


@triton.jit(do_not_specialize=["N", "K", "count"])
def merge_instance_backward_kernel(
    sum_g_ptr,  # (N, K, C)
    sum_gx_ptr,  # (N, K, C)
    weight_ptr,  # (C,) or None
    rho_ptr,  # (C,), None for IN
    center_ptr,  # (N, C)
    rstd_ptr,  # (N, C)
    offset_ptr,  # (N, C)
    batch_rstd_ptr,  # (C,), None for IN
    batch_center_ptr,  # (C,), None for IN
    batch_offset_ptr,  # (C,), None for IN
    slope_ptr,  # (N, C) or None
    level_ptr,  # (N, C) or None
    dweight_ptr,  # (C,) or None
    dbias_ptr,  # (C,) or None
    drho_ptr,  # (C,) or None
    N,
    count,  # elements of a channel
    C,
    S,
    K,
    TRAINING: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Batch norm's backward and instance norm's, weighted rho and 1 - rho, from the same sums."""
    ACC: tl.constexpr = sum_g_ptr.dtype.element_ty
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_mask = c < C
    gamma = load_or(weight_ptr, c, c_mask, 1.0, ACC)
    rho = load_or(rho_ptr, c, c_mask, 0.0, ACC)
    batch_rstd = load_or(batch_rstd_ptr, c, c_mask, 0.0, ACC)
    batch_offset = load_or(batch_offset_ptr, c, c_mask, 0.0, ACC)
    batch_center = load_or(batch_center_ptr, c, c_mask, 0.0, ACC)
    sum_g = tl.zeros([BLOCK_C], ACC)
    batch_gx = tl.zeros([BLOCK_C], ACC)  # r_b sum g (x - m_b)
    instance_gx = tl.zeros([BLOCK_C], ACC)  # sum over n of r_i sum g (x - m_i)
    difference = tl.zeros([BLOCK_C], ACC)  # batch_gx - instance_gx, which nearly cancel
    for first in range(0, N, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N).to(tl.int64)[:, None]
        mask = (n < N) & c_mask[None, :]
        slot = n * C + c[None, :]
        n_g, n_gx = chunk_sums(sum_g_ptr, sum_gx_ptr, n, c[None, :], mask, C, K, BLOCK_N, BLOCK_C)
        rstd = tl.load(rstd_ptr + slot, mask=mask, other=0.0)
        offset = tl.load(offset_ptr + slot, mask=mask, other=0.0)
        sum_g += tl.sum(n_g, axis=0)
        instance_gx += tl.sum(rstd * (n_gx - offset * n_g), axis=0)
        if rho_ptr is not None:
            center = tl.load(center_ptr + slot, mask=mask, other=0.0)
            to_batch = (batch_center[None, :] - center) + batch_offset[None, :]
            batch_gx += tl.sum(tl.where(mask, n_gx - to_batch * n_g, 0.0), axis=0) * batch_rstd
            slope_gap = batch_rstd[None, :] - rstd
            level_gap = batch_rstd[None, :] * to_batch - rstd * offset
            difference += tl.sum(tl.where(mask, slope_gap * n_gx - level_gap * n_g, 0.0), axis=0)
    if dweight_ptr is not None:
        tl.store(dweight_ptr + c, rho * batch_gx + (1.0 - rho) * instance_gx, mask=c_mask)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + c, sum_g, mask=c_mask)
    if drho_ptr is not None:
        tl.store(drho_ptr + c, gamma * difference, mask=c_mask)
    if slope_ptr is not None:
        batch_share = gamma * rho * batch_rstd / count
        for first in range(0, N, BLOCK_N):
            n = first + tl.arange(0, BLOCK_N).to(tl.int64)[:, None]
            mask = (n < N) & c_mask[None, :]
            slot = n * C + c[None, :]
            n_g, n_gx = chunk_sums(
                sum_g_ptr, sum_gx_ptr, n, c[None, :], mask, C, K, BLOCK_N, BLOCK_C
            )
            rstd = tl.load(rstd_ptr + slot, mask=mask, other=0.0)
            offset = tl.load(offset_ptr + slot, mask=mask, other=0.0)
            share = (gamma * (1.0 - rho))[None, :] * rstd / S
            slope = -share * rstd * (rstd * (n_gx - offset * n_g))
            level = -share * n_g - slope * offset
            if TRAINING and rho_ptr is not None:
                center = tl.load(center_ptr + slot, mask=mask, other=0.0)
                to_batch = (batch_center[None, :] - center) + batch_offset[None, :]
                batch_slope = (-batch_share * batch_rstd * batch_gx)[None, :]
                level -= (batch_share * sum_g)[None, :] + batch_slope * to_batch
                slope += batch_slope
            tl.store(slope_ptr + slot, slope, mask=mask)
            tl.store(level_ptr + slot, level, mask=mask)


def merge_instance_backward(
    tables: tuple[torch.Tensor, torch.Tensor],
    weight: torch.Tensor | None,
    rho: torch.Tensor | None,
    stats: tuple[torch.Tensor, ...],
    view: ChannelView,
    tiling: Tiling,
    use_input_stats: bool,
    outputs: MergeOutputs,
) -> None:
    """Fill `outputs` from the tables of (sum g, sum g (x - center)) and merge_instance's stats."""
    center, _, _, rstd, offset, *batch = stats
    launch(
        merge_instance_backward_kernel,
        triton.cdiv(view.C, BLOCK_C),
        rstd,
        *tables,
        weight,
        rho,
        center,
        rstd,
        offset,
        *(batch or NO_BATCH),
        *outputs,
        view.N,
        view.N * view.S,
        view.C,
        view.S,
        tiling.chunks,
        TRAINING=use_input_stats,
        BLOCK_N=BLOCK_N,
        BLOCK_C=BLOCK_C,
    )
