"""Stage two of group normalisation: statistics merged over the channels of a group.

GN with G groups (arXiv 1803.08494); one group is layer norm as CNNs use it.
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
)
from .launch import ChannelView, MergeOutputs, Tiling, launch, statistics

TILE = 1024  # channels of one program: BLOCK_R groups x BLOCK_D channels
MOST_CHANNELS = 256


@triton.jit(do_not_specialize=["N", "K"])
def merge_group_kernel(
    x_ptr,  # (N, C, S) in either layout
    mean_ptr,  # (N, K, C), relative to the group's pivot
    m2_ptr,  # (N, K, C)
    weight_ptr,  # (C,) or None
    bias_ptr,  # (C,) or None
    center_ptr,  # (N, C)
    scale_ptr,  # (N, C)
    shift_ptr,  # (N, C)
    rstd_ptr,  # (N, G)
    offset_ptr,  # (N, G): the group's mean - center, a rounding error
    N,
    C,
    S,
    G,
    D,
    chunk,
    K,
    eps: tl.float64,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Chan's merge over the D = C / G channels of BLOCK_R (n, g) pairs, and their coefficients."""
    ACC: tl.constexpr = center_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    row_mask = row < N.to(tl.int64) * G
    n = (row // G)[:, None]
    first_channel = ((row % G) * D)[:, None]
    lane = tl.arange(0, BLOCK_D)[None, :]
    count = tl.zeros([BLOCK_R], ACC)
    offset = tl.zeros([BLOCK_R], ACC)
    m2 = tl.zeros([BLOCK_R], ACC)
    for d in range(0, D, BLOCK_D):
        mask = row_mask[:, None] & (d + lane < D)
        c_count, c_mean, c_m2 = chunk_moments(
            mean_ptr, m2_ptr, n, first_channel + d + lane, mask, C, S, chunk, K, BLOCK_R, BLOCK_D
        )
        block_count, block_mean, block_m2 = merge_along(c_count, c_mean, c_m2, 1)
        count, offset, m2 = chan_merge(count, offset, m2, block_count, block_mean, block_m2)
    rstd = inverse_std(m2 / tl.maximum(count, 1.0), eps)
    tl.store(rstd_ptr + row, rstd, mask=row_mask)
    pivot = load_pivot(x_ptr, row // G, (row % G) * D, row_mask, C, S, D, ACC, CHANNELS_LAST, False)
    center, offset = split_mean(pivot, offset)
    tl.store(offset_ptr + row, offset, mask=row_mask)
    for d in range(0, D, BLOCK_D):
        c = first_channel + d + lane
        mask = row_mask[:, None] & (d + lane < D)
        slot = n * C + c
        scale = load_or(weight_ptr, c, mask, 1.0, ACC) * rstd[:, None]
        shift = load_or(bias_ptr, c, mask, 0.0, ACC) - scale * offset[:, None]
        tl.store(center_ptr + slot, tl.zeros([BLOCK_R, BLOCK_D], ACC) + center[:, None], mask=mask)
        tl.store(scale_ptr + slot, scale, mask=mask)
        tl.store(shift_ptr + slot, shift, mask=mask)


def merge_group(
    tables: tuple[torch.Tensor, torch.Tensor],
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    view: ChannelView,
    tiling: Tiling,
    groups: int,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    """(center, scale, shift) of shape (N, C), (rstd, offset) of shape (N, G)."""
    coefficients = statistics(x, 3, (view.N, view.C))
    group_stats = statistics(x, 2, (view.N, groups))
    BLOCK_R, BLOCK_D = _blocks(view.C // groups)
    launch(
        merge_group_kernel,
        triton.cdiv(view.N * groups, BLOCK_R),
        x,
        x,
        *tables,
        weight,
        bias,
        *coefficients,
        *group_stats,
        view.N,
        view.C,
        view.S,
        groups,
        view.C // groups,
        tiling.chunk,
        tiling.chunks,
        eps,
        CHANNELS_LAST=view.channels_last,
        BLOCK_R=BLOCK_R,
        BLOCK_D=BLOCK_D,
    )
    return *coefficients, *group_stats


@triton.jit(do_not_specialize=["N", "K", "group_programs"])
def merge_group_backward_kernel(
    sum_g_ptr,  # (N, K, C)
    sum_gx_ptr,  # (N, K, C)
    weight_ptr,  # (C,) or None
    rstd_ptr,  # (N, G)
    offset_ptr,  # (N, G)
    slope_ptr,  # (N, C) or None
    level_ptr,  # (N, C) or None
    dweight_ptr,  # (C,) or None
    dbias_ptr,  # (C,) or None
    group_programs,
    N,
    C,
    S,
    G,
    D,
    K,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Two independent jobs over the same tables, in one launch: the groups' dx coefficients by the
    first programs, the channels' dgamma and dbeta, summed over n in order, by the others."""
    program = tl.program_id(0)
    if program < group_programs:
        if slope_ptr is not None:
            group_coefficients(
                program, sum_g_ptr, sum_gx_ptr, weight_ptr, rstd_ptr, offset_ptr, slope_ptr, level_ptr,  # noqa: E501
                N, C, S, G, D, K, BLOCK_R, BLOCK_D,
            )  # fmt: skip
    else:
        channel_gradients(
            program - group_programs, sum_g_ptr, sum_gx_ptr, rstd_ptr, offset_ptr, dweight_ptr, dbias_ptr,  # noqa: E501
            N, C, G, D, K, BLOCK_N, BLOCK_C,
        )  # fmt: skip


@triton.jit
def group_coefficients(
    program, sum_g_ptr, sum_gx_ptr, weight_ptr, rstd_ptr, offset_ptr, slope_ptr, level_ptr,
    N, C, S, G, D, K, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """slope = -r^3 T2 / count and level = -r T1 / count, T the group's sums weighted by gamma."""
    ACC: tl.constexpr = sum_g_ptr.dtype.element_ty
    row = program.to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    row_mask = row < N.to(tl.int64) * G
    n = (row // G)[:, None]
    first_channel = ((row % G) * D)[:, None]
    lane = tl.arange(0, BLOCK_D)[None, :]
    group_g = tl.zeros([BLOCK_R], ACC)
    group_gx = tl.zeros([BLOCK_R], ACC)
    for d in range(0, D, BLOCK_D):
        c = first_channel + d + lane
        mask = row_mask[:, None] & (d + lane < D)
        sum_g, sum_gx = chunk_sums(sum_g_ptr, sum_gx_ptr, n, c, mask, C, K, BLOCK_R, BLOCK_D)
        gamma = load_or(weight_ptr, c, mask, 1.0, ACC)
        group_g += tl.sum(gamma * sum_g, axis=1)
        group_gx += tl.sum(gamma * sum_gx, axis=1)
    rstd = tl.load(rstd_ptr + row, mask=row_mask, other=0.0)
    offset = tl.load(offset_ptr + row, mask=row_mask, other=0.0)
    share = rstd / (tl.zeros([BLOCK_R], ACC) + D) / S
    slope = -share * rstd * (rstd * (group_gx - offset * group_g))
    level = -share * group_g - slope * offset
    for d in range(0, D, BLOCK_D):
        mask = row_mask[:, None] & (d + lane < D)
        slot = n * C + first_channel + d + lane
        zero = tl.zeros([BLOCK_R, BLOCK_D], ACC)
        tl.store(slope_ptr + slot, zero + slope[:, None], mask=mask)
        tl.store(level_ptr + slot, zero + level[:, None], mask=mask)


@triton.jit
def channel_gradients(
    program, sum_g_ptr, sum_gx_ptr, rstd_ptr, offset_ptr, dweight_ptr, dbias_ptr,
    N, C, G, D, K, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dgamma = sum over n of r sum g (x - m), dbeta = sum over n of sum g."""
    ACC: tl.constexpr = sum_g_ptr.dtype.element_ty
    c = program * BLOCK_C + tl.arange(0, BLOCK_C)
    c_mask = c < C
    lane = tl.arange(0, BLOCK_N).to(tl.int64)[:, None]
    dweight = tl.zeros([BLOCK_C], ACC)
    dbias = tl.zeros([BLOCK_C], ACC)
    for first in range(0, N, BLOCK_N):
        n = first + lane
        mask = (n < N) & c_mask[None, :]
        sum_g, sum_gx = chunk_sums(
            sum_g_ptr, sum_gx_ptr, n, c[None, :], mask, C, K, BLOCK_N, BLOCK_C
        )
        rstd = tl.load(rstd_ptr + n * G + (c // D)[None, :], mask=mask, other=0.0)
        offset = tl.load(offset_ptr + n * G + (c // D)[None, :], mask=mask, other=0.0)
        dweight += tl.sum(rstd * (sum_gx - offset * sum_g), axis=0)
        dbias += tl.sum(sum_g, axis=0)
    if dweight_ptr is not None:
        tl.store(dweight_ptr + c, dweight, mask=c_mask)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + c, dbias, mask=c_mask)


def merge_group_backward(
    tables: tuple[torch.Tensor, torch.Tensor],
    weight: torch.Tensor | None,
    stats: tuple[torch.Tensor, ...],
    view: ChannelView,
    tiling: Tiling,
    groups: int,
    outputs: MergeOutputs,
) -> None:
    """Fill `outputs` (without drho) from the tables of (sum g, sum g (x - center))."""
    BLOCK_R, BLOCK_D = _blocks(view.C // groups)
    BLOCK_N, BLOCK_C = 32, 32
    group_programs = triton.cdiv(view.N * groups, BLOCK_R) if outputs.slope is not None else 0
    needs_channels = outputs.dweight is not None or outputs.dbias is not None
    channel_programs = triton.cdiv(view.C, BLOCK_C) if needs_channels else 0
    launch(
        merge_group_backward_kernel,
        group_programs + channel_programs,
        tables[0],
        *tables,
        weight,
        *stats[3:],
        *outputs[:4],
        group_programs,
        view.N,
        view.C,
        view.S,
        groups,
        view.C // groups,
        tiling.chunks,
        BLOCK_R=BLOCK_R,
        BLOCK_D=BLOCK_D,
        BLOCK_N=BLOCK_N,
        BLOCK_C=BLOCK_C,
    )


def _blocks(channels: int) -> tuple[int, int]:
    BLOCK_D = min(triton.next_power_of_2(channels), MOST_CHANNELS)
    return TILE // BLOCK_D, BLOCK_D
