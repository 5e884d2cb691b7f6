"""A norm of (N, C, S) whose sets no chip holds: two launches, each of which reads the tensor.

The first takes moments; the last program of a unit to arrive merges them. The second applies them,
walking backwards, so that it starts with what the first has left in the L2 cache.
"""

import triton
import triton.language as tl

from .activation import store_output
from .arithmetic import accumulation_type, across, chan_merge, load_or, merge_along, tile_moments
from .merge import (
    affine,
    average_instances,
    batch_moments,
    coefficients,
    constant_stats,
    set_stats,
    unit_moments,
)
from .sync import arrived_last
from .tables import publish_moments, set_slot, stat_planes, store_stats, table_planes
from .tiles import (
    SCALARS,
    by_channel,
    inner_positions,
    is_first,
    load_pivot,
    place,
    sizes,
    tile_lanes,
    tile_mask,
    tile_offsets,
    unit_channels,
    unit_member,
)


@triton.jit(do_not_specialize=SCALARS)
def moments_kernel(
    x_ptr,  # (N, C, S) in either layout
    running_mean_ptr,  # (C,) or None
    running_var_ptr,  # (C,) or None
    stats_ptr,  # planes of statistics: tables.stat_planes
    table_ptr,  # (3, n, piece, c)
    tickets_ptr,  # (units + u_blocks,)
    momentum: tl.float64,
    eps: tl.float64,
    N,
    C,
    S,
    D,
    W,
    u_blocks,
    row_blocks,
    s_blocks,
    pieces,
    steps,
    units,
    clusters,
    TRAINING: tl.constexpr,
    BATCH: tl.constexpr,
    MIX: tl.constexpr,
    VARIANCE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    ALIGN_W: tl.constexpr,
    SETS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """One-pass Welford/Chan: exact moments of each tile in registers, tiles merged by Chan."""
    ACC: tl.constexpr = accumulation_type(x_ptr.dtype.element_ty)
    INNER: tl.constexpr = inner_positions(BLOCK_S, BLOCK_N * BLOCK_C, x_ptr.dtype.element_ty)
    C, S, W = sizes(C, S, W, CHANNELS_LAST, ALIGN, ALIGN_W)
    members = row_blocks * pieces
    unit, member = unit_member(tl.program_id(0), units, members, BATCH)
    unit_n, u, r, piece = place(unit, member, u_blocks, pieces)
    _local, channel, channel_mask = unit_channels(u, r, W, C, BLOCK_C)
    _n, c, lanes = tile_lanes(unit_n, u, r, unit_n + BLOCK_N, W, C, BLOCK_N, BLOCK_C)
    pivot_n = unit_n + tl.zeros_like(c).to(tl.int64)
    pivot = load_pivot(x_ptr, pivot_n, c, lanes, D, C, S, CHANNELS_LAST, ACC)
    count = tl.zeros([BLOCK_N * BLOCK_C], ACC)
    mean, m2 = count, count
    # Pieces of a norm within an instance end with it: there, tiles are position blocks alone.
    tiles = s_blocks * tl.cdiv(N, BLOCK_N) if BATCH else s_blocks
    for tile in range(piece * steps, tl.minimum((piece + 1) * steps, tiles)):
        start = (tile % s_blocks).to(tl.int64) * BLOCK_S
        first_n = unit_n + (tile // s_blocks) * BLOCK_N
        n, c, lane_mask = tile_lanes(first_n, u, r, N, W, C, BLOCK_N, BLOCK_C)
        mask = tile_mask(lane_mask, start, S, CHANNELS_LAST, BLOCK_S, INNER)
        offsets = tile_offsets(n, c, start, C, S, CHANNELS_LAST, BLOCK_S, INNER)
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(ACC)
        x = tl.where(mask, x - across(pivot, CHANNELS_LAST), 0.0)
        tile_count = tl.where(lane_mask, tl.minimum(S - start, BLOCK_S), 0).to(ACC)
        tile_mean, tile_m2 = tile_moments(x, mask, tile_count)
        count, mean, m2 = chan_merge(count, mean, m2, tile_count, tile_mean, tile_m2)
    if BLOCK_N > 1:
        count, mean, m2 = merge_along(
            by_channel(count, BLOCK_N, BLOCK_C), by_channel(mean, BLOCK_N, BLOCK_C),
            by_channel(m2, BLOCK_N, BLOCK_C), 0,
        )  # fmt: skip
    tables = table_planes(table_ptr, N, C, pieces, BATCH)
    publish_moments(tables, unit_n, piece, channel, channel_mask, C, pieces, count, mean, m2)

    stats, batch = stat_planes(stats_ptr, N, C, D, BATCH, MIX)
    if arrived_last(tickets_ptr + (unit_n * u_blocks + u), members):
        finish_unit(
            x_ptr, tables, stats, running_mean_ptr, running_var_ptr, momentum, eps, unit_n, u, C, S,
            D, W, row_blocks, pieces, BATCH, VARIANCE, CHANNELS_LAST, SETS, BLOCK_C,
        )  # fmt: skip
        if MIX or (not BATCH and (running_mean_ptr is not None or running_var_ptr is not None)):
            if arrived_last(tickets_ptr + units + u, N):
                if MIX:
                    mix_batch(
                        x_ptr, tables, batch, running_mean_ptr, running_var_ptr, momentum, eps, u,
                        N, W, C, S, pieces, TRAINING, CHANNELS_LAST, BLOCK_C,
                    )  # fmt: skip
                else:
                    average_instances(
                        x_ptr, tables, running_mean_ptr, running_var_ptr, momentum, u, N, W, C, S,
                        pieces, CHANNELS_LAST, BLOCK_C,
                    )  # fmt: skip


@triton.jit
def finish_unit(
    x_ptr, tables, stats, running_mean_ptr, running_var_ptr, momentum, eps, n, u, C, S, D, W,
    row_blocks, pieces, BATCH: tl.constexpr, VARIANCE: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    SETS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Merge what the members of a unit left: its statistics and, over a batch, the running ones."""
    ACC: tl.constexpr = tables[0].dtype.element_ty
    local, channel, mask = unit_channels(u, 0, W, C, BLOCK_C)
    count, mean, m2 = unit_moments(tables, n, u, W, C, D, row_blocks, pieces, SETS, BLOCK_C)
    set_n = n + tl.zeros_like(channel).to(tl.int64)
    pivot = load_pivot(x_ptr, set_n, channel, mask, D, C, S, CHANNELS_LAST, ACC)
    writes = mask & (local % D == 0)
    center, offset, rstd = set_stats(
        pivot, count, mean, m2, running_mean_ptr, running_var_ptr, channel, writes, momentum, eps,
        BATCH, VARIANCE,
    )  # fmt: skip
    store_stats(stats, set_slot(set_n, channel, C, D, BATCH), writes, center, offset, rstd)


@triton.jit
def mix_batch(
    x_ptr, tables, batch, running_mean_ptr, running_var_ptr, momentum, eps, u, N, W, C, S, pieces,
    TRAINING: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The mixture's batch statistics, from its instances' or, in eval mode, the running ones."""
    _, channel, mask = unit_channels(u, 0, W, C, BLOCK_C)
    if TRAINING:
        pivot, count, mean, m2, _ = batch_moments(
            x_ptr, tables, u, N, W, C, S, pieces, CHANNELS_LAST, BLOCK_C
        )
        center, offset, rstd = set_stats(
            pivot, count, mean, m2, running_mean_ptr, running_var_ptr, channel, mask, momentum,
            eps, True, True,
        )  # fmt: skip
    else:
        ACC: tl.constexpr = tables[0].dtype.element_ty
        center, offset, rstd = constant_stats(
            running_mean_ptr, running_var_ptr, channel, mask, eps, ACC
        )
    store_stats(batch, channel, mask, center, offset, rstd)


@triton.jit(do_not_specialize=SCALARS)
def apply_kernel(
    x_ptr,  # (N, C, S) in either layout
    residual_ptr,  # as x, or None
    weight_ptr,  # (C,) or None
    bias_ptr,  # (C,) or None
    rho_ptr,  # (C,) or None
    running_mean_ptr,  # (C,), None but in eval mode
    running_var_ptr,  # (C,), None but in eval mode
    y_ptr,  # as x
    bits_ptr,  # ReLU's bits, or None
    stats_ptr,  # planes of statistics: tables.stat_planes
    eps: tl.float64,
    N,
    C,
    S,
    D,
    W,
    u_blocks,
    row_blocks,
    s_blocks,
    pieces,
    steps,
    units,
    clusters,
    ACTIVATION: tl.constexpr,
    TRAINING: tl.constexpr,
    BATCH: tl.constexpr,
    MIX: tl.constexpr,
    GIVEN: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    ALIGN_W: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """y = act((x - center) * scale + shift + residual): centred first, exact where mean >> std.

    In eval mode this is all there is: the statistics are the running ones, kept for backward.
    """
    ACC: tl.constexpr = accumulation_type(x_ptr.dtype.element_ty)
    INNER: tl.constexpr = inner_positions(BLOCK_S, BLOCK_N * BLOCK_C, x_ptr.dtype.element_ty)
    C, S, W = sizes(C, S, W, CHANNELS_LAST, ALIGN, ALIGN_W)
    program = units * pieces - 1 - tl.program_id(0)
    unit, member = unit_member(program, units, pieces, False)
    unit_n, u, r, piece = place(unit, member, u_blocks, pieces)
    n, c, lane_mask = tile_lanes(unit_n, u, r, N, W, C, BLOCK_N, BLOCK_C)
    start = piece.to(tl.int64) * BLOCK_S
    mask = tile_mask(lane_mask, start, S, CHANNELS_LAST, BLOCK_S, INNER)
    offsets = tile_offsets(n, c, start, C, S, CHANNELS_LAST, BLOCK_S, INNER)
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(ACC)
    stats, batch = stat_planes(stats_ptr, N, C, D, BATCH, MIX)
    if BATCH and not TRAINING:
        first = lane_mask & is_first(unit_n + piece, c)
        center, offset, rstd = constant_stats(
            running_mean_ptr, running_var_ptr, c, lane_mask, eps, ACC
        )
        store_stats(stats, c, first, center, offset, rstd)
        gamma = load_or(weight_ptr, c, lane_mask, 1.0, ACC)
        beta = load_or(bias_ptr, c, lane_mask, 0.0, ACC)
        scale, shift = affine(offset, rstd, gamma, beta)
    else:
        center, scale, shift = coefficients(
            stats, batch, (weight_ptr, bias_ptr, rho_ptr), n, c, lane_mask, C, D, BATCH, MIX,
            GIVEN,
        )  # fmt: skip
    z = (x - across(center, CHANNELS_LAST)) * across(scale, CHANNELS_LAST) + across(
        shift, CHANNELS_LAST
    )
    store_output(
        z, residual_ptr, y_ptr, bits_ptr, offsets, mask, unit_n, u, r, start, N, W, C, S,
        ACTIVATION, CHANNELS_LAST, BLOCK_N, BLOCK_C, BLOCK_S, INNER,
    )  # fmt: skip
