"""A norm of (N, C, S) in one launch: a program's tile stays in registers from statistics to output.

Tier "one program": the program's tile holds whole sets. Tier "cluster": the members of a unit hold
a tile each, publish what they found, wait for one another, and merge; clusters of programs that are
on the GPU together walk over the units.
"""

import triton
import triton.language as tl

from .activation import store_output
from .arithmetic import (
    accumulation_type,
    across,
    inverse_std,
    load_or,
    merge_along,
    split_mean,
    tile_moments,
)
from .merge import (
    affine,
    average_instances,
    constant_stats,
    merge_set,
    mixed_affine,
    set_stats,
    unit_moments,
)
from .sync import arrived_last, keep_packed, wait_for_members
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
    to_lanes,
    unit_channels,
)


@triton.jit(do_not_specialize=SCALARS)
def resident_kernel(
    x_ptr,  # (N, C, S) in either layout
    residual_ptr,  # as x, or None
    weight_ptr,  # (C,) or None
    bias_ptr,  # (C,) or None
    rho_ptr,  # (C,) or None
    running_mean_ptr,  # (C,) or None
    running_var_ptr,  # (C,) or None
    y_ptr,  # as x
    bits_ptr,  # ReLU's bits, or None
    stats_ptr,  # planes of statistics: tables.stat_planes
    table_ptr,  # (3, n, piece, c), or None where nothing is published
    tickets_ptr,  # (u_blocks,) or None
    barriers_ptr,  # (clusters,) or None
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
    ACTIVATION: tl.constexpr,
    BATCH: tl.constexpr,
    MIX: tl.constexpr,
    VARIANCE: tl.constexpr,
    CLUSTER: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    ALIGN_W: tl.constexpr,
    SETS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """y = act(norm(x) + residual), the statistics that backward needs, and the running ones."""
    C, S, W = sizes(C, S, W, CHANNELS_LAST, ALIGN, ALIGN_W)
    members = row_blocks * pieces
    stats, batch = stat_planes(stats_ptr, N, C, D, BATCH, MIX)
    program = tl.program_id(0)
    cluster = program // members if CLUSTER else program
    # A single turn, which the compiler does away with, where units do not outnumber programs.
    for unit in range(cluster, units if CLUSTER else cluster + 1, clusters if CLUSTER else 1):
        normalise_unit(
            unit, program % members if CLUSTER else 0, cluster,
            (x_ptr, residual_ptr, y_ptr, bits_ptr), (weight_ptr, bias_ptr, rho_ptr),
            running_mean_ptr, running_var_ptr, stats, batch, table_ptr, tickets_ptr,
            barriers_ptr, momentum, eps, N, C, S, D, W, u_blocks, row_blocks, s_blocks, pieces,
            members, ACTIVATION, BATCH, MIX, VARIANCE, CLUSTER, CHANNELS_LAST, SETS, BLOCK_N,
            BLOCK_C, BLOCK_S,
        )  # fmt: skip


@triton.jit
def normalise_unit(
    unit, member, cluster, tensors, parameters, running_mean_ptr, running_var_ptr, stats, batch,
    table_ptr, tickets_ptr, barriers_ptr, momentum, eps, N, C, S, D, W, u_blocks, row_blocks,
    s_blocks, pieces, members, ACTIVATION: tl.constexpr, BATCH: tl.constexpr,
    MIX: tl.constexpr, VARIANCE: tl.constexpr, CLUSTER: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, SETS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):  # fmt: skip
    x_ptr, residual_ptr, y_ptr, bits_ptr = tensors
    ACC: tl.constexpr = accumulation_type(x_ptr.dtype.element_ty)
    INNER: tl.constexpr = inner_positions(BLOCK_S, BLOCK_N * BLOCK_C, x_ptr.dtype.element_ty)
    unit_n, u, r, piece = place(unit, member, u_blocks, pieces)
    first_n = unit_n + (piece // s_blocks) * BLOCK_N
    start = (piece % s_blocks).to(tl.int64) * BLOCK_S
    n, c, lane_mask = tile_lanes(first_n, u, r, N, W, C, BLOCK_N, BLOCK_C)
    local, channel, channel_mask = unit_channels(u, r, W, C, BLOCK_C)
    mask = tile_mask(lane_mask, start, S, CHANNELS_LAST, BLOCK_S, INNER)
    offsets = tile_offsets(n, c, start, C, S, CHANNELS_LAST, BLOCK_S, INNER)
    packed = tl.load(x_ptr + offsets, mask=mask, other=0.0)

    # Moments of the tile's lanes, then of its channels, relative to the pivot of their set.
    pivot_n = n if MIX or not BATCH else unit_n + tl.zeros_like(n)
    pivot = load_pivot(x_ptr, pivot_n, c, lane_mask, D, C, S, CHANNELS_LAST, ACC)
    x = tl.where(mask, packed.to(ACC) - across(pivot, CHANNELS_LAST), 0.0)
    count = tl.where(lane_mask, tl.minimum(S - start, BLOCK_S), 0).to(ACC)
    lane_mean, lane_m2 = tile_moments(x, mask, count)
    origin = pivot
    if BATCH:
        zeros = tl.zeros_like(channel).to(tl.int64)
        origin = load_pivot(x_ptr, zeros, channel, channel_mask, 1, C, S, CHANNELS_LAST, ACC)
        mean = lane_mean + (pivot - to_lanes(origin, BLOCK_N, BLOCK_C))
        count, mean, m2 = merge_along(
            by_channel(count, BLOCK_N, BLOCK_C), by_channel(mean, BLOCK_N, BLOCK_C),
            by_channel(lane_m2, BLOCK_N, BLOCK_C), 0,
        )  # fmt: skip
    else:
        mean, m2 = lane_mean, lane_m2
    if table_ptr is not None:
        tables = table_planes(table_ptr, N, C, pieces, BATCH)
        publish_moments(tables, unit_n, piece, channel, channel_mask, C, pieces, count, mean, m2)

    if CLUSTER:
        wait_for_members(barriers_ptr + cluster, member, members)
        count, mean, m2 = unit_moments(
            tables, unit_n, u, W, C, D, row_blocks, pieces, SETS, BLOCK_C
        )
    else:
        count, mean, m2 = merge_set(count, mean, m2, local, D, SETS)
    first_of_set = local % D == 0
    writes = channel_mask & first_of_set & is_first(piece, local)
    gamma = load_or(parameters[0], channel, channel_mask, 1.0, ACC)
    beta = load_or(parameters[1], channel, channel_mask, 0.0, ACC)
    center, offset, rstd = set_stats(
        origin, count, mean, m2, running_mean_ptr, running_var_ptr, channel, writes, momentum,
        eps, BATCH, VARIANCE,
    )  # fmt: skip
    if not MIX:
        slot = set_slot(unit_n, channel, C, D, BATCH)
        store_stats(stats, slot, writes, center, offset, rstd)
        scale, shift = affine(offset, rstd, gamma, beta)
        center = to_lanes(center, BLOCK_N, BLOCK_C)
        scale, shift = to_lanes(scale, BLOCK_N, BLOCK_C), to_lanes(shift, BLOCK_N, BLOCK_C)
    else:
        rho = load_or(parameters[2], channel, channel_mask, 0.0, ACC)
        if BATCH:
            b_center, b_offset, b_rstd = center, offset, rstd
            center, offset = split_mean(pivot, lane_mean)
            rstd = inverse_std(lane_m2 / S, eps)
        else:
            b_center, b_offset, b_rstd = constant_stats(
                running_mean_ptr, running_var_ptr, channel, channel_mask, eps, ACC
            )
        # Of an instance whose parts lie in several members the first of these keeps it.
        kept = lane_mask if BATCH else writes
        store_stats(stats, n * C + c, kept, center, offset, rstd)
        first = writes & is_first(unit_n, channel)
        store_stats(batch, channel, first, b_center, b_offset, b_rstd)
        scale, shift = mixed_affine(
            center, offset, rstd, to_lanes(b_center, BLOCK_N, BLOCK_C),
            to_lanes(b_offset, BLOCK_N, BLOCK_C), to_lanes(b_rstd, BLOCK_N, BLOCK_C),
            to_lanes(gamma, BLOCK_N, BLOCK_C), to_lanes(beta, BLOCK_N, BLOCK_C),
            to_lanes(rho, BLOCK_N, BLOCK_C),
        )  # fmt: skip
    if CLUSTER:  # across the barrier the tile stays as it was loaded
        x = keep_packed(packed).to(ACC) - across(center, CHANNELS_LAST)
    else:
        x -= across(center - pivot, CHANNELS_LAST)
    z = x * across(scale, CHANNELS_LAST) + across(shift, CHANNELS_LAST)
    store_output(
        z, residual_ptr, y_ptr, bits_ptr, offsets, mask, first_n, u, r, start, N, W, C, S,
        ACTIVATION, CHANNELS_LAST, BLOCK_N, BLOCK_C, BLOCK_S, INNER,
    )  # fmt: skip

    # Instance norm's running statistics are averages over instances: the last one takes them.
    if not BATCH and tickets_ptr is not None:
        if member == 0:
            if arrived_last(tickets_ptr + u, N):
                average_instances(
                    x_ptr, tables, running_mean_ptr, running_var_ptr, momentum, u, N, W, C, S,
                    pieces, CHANNELS_LAST, BLOCK_C,
                )  # fmt: skip
