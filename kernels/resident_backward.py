"""The backward of a norm of (N, C, S) in one launch: as `resident.py`, with tiles of x and dy."""

import triton
import triton.language as tl

from .activation import load_tiles, tile_gradient
from .arithmetic import accumulation_type, across, lane_sum, load_or, product, store_gradient
from .gradients import (
    add_instances,
    batch_gradient,
    instance_weight,
    mixed_terms,
    set_gradient,
    store_mixed_gradients,
    unit_sums,
)
from .merge import coefficients, sum_set
from .sync import arrived_last, keep_packed, wait_for_members
from .tables import load_stats, piece_sums, publish_sums, set_slot, stat_planes, table_planes
from .tiles import (
    SCALARS,
    inner_positions,
    is_first,
    place,
    sizes,
    sum_channels,
    tile_lanes,
    tile_mask,
    tile_offsets,
    to_lanes,
    unit_channels,
)


@triton.jit(do_not_specialize=SCALARS)
def resident_backward_kernel(
    x_ptr,  # (N, C, S) in either layout
    dy_ptr,  # as x
    residual_ptr,  # as x, or None: for smooth activations
    bits_ptr,  # ReLU's bits, or None
    weight_ptr,  # (C,) or None
    bias_ptr,  # (C,) or None
    rho_ptr,  # (C,) or None
    stats_ptr,  # planes of statistics: tables.stat_planes
    dx_ptr,  # as x, or None
    dresidual_ptr,  # as x, or None
    dweight_ptr,  # (C,) or None
    dbias_ptr,  # (C,) or None
    drho_ptr,  # (C,) or None
    table_ptr,  # (2, n, piece, c), 4 for mixtures over the batch, None where nothing is published
    tickets_ptr,  # (u_blocks,) or None
    barriers_ptr,  # (clusters,) or None
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
    """dx = scale g + slope (x - center) + level, g = dy * act'; and the parameters' gradients."""
    C, S, W = sizes(C, S, W, CHANNELS_LAST, ALIGN, ALIGN_W)
    members = row_blocks * pieces
    stats, batch = stat_planes(stats_ptr, N, C, D, BATCH, MIX)
    program = tl.program_id(0)
    cluster = program // members if CLUSTER else program
    # A single turn, which the compiler does away with, where units do not outnumber programs.
    for unit in range(cluster, units if CLUSTER else cluster + 1, clusters if CLUSTER else 1):
        differentiate_unit(
            unit, program % members if CLUSTER else 0, cluster,
            (x_ptr, dy_ptr, residual_ptr, bits_ptr, dx_ptr, dresidual_ptr),
            (weight_ptr, bias_ptr, rho_ptr), stats, batch, (dweight_ptr, dbias_ptr, drho_ptr),
            table_ptr, tickets_ptr, barriers_ptr, N, C, S, D, W, u_blocks, row_blocks, s_blocks,
            pieces, members, ACTIVATION, BATCH, MIX, VARIANCE, CLUSTER, ALIGN_W,
            CHANNELS_LAST, SETS, BLOCK_N, BLOCK_C, BLOCK_S,
        )  # fmt: skip


@triton.jit
def differentiate_unit(
    unit, member, cluster, tensors, parameters, stats, batch, gradients, table_ptr, tickets_ptr,
    barriers_ptr, N, C, S, D, W, u_blocks, row_blocks, s_blocks, pieces, members,
    ACTIVATION: tl.constexpr, BATCH: tl.constexpr, MIX: tl.constexpr, VARIANCE: tl.constexpr,
    CLUSTER: tl.constexpr, ALIGN_W: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    SETS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    x_ptr, dy_ptr, residual_ptr, bits_ptr, dx_ptr, dresidual_ptr = tensors
    ACC: tl.constexpr = accumulation_type(x_ptr.dtype.element_ty)
    INNER: tl.constexpr = inner_positions(BLOCK_S, BLOCK_N * BLOCK_C, x_ptr.dtype.element_ty)
    unit_n, u, r, piece = place(unit, member, u_blocks, pieces)
    first_n = unit_n + (piece // s_blocks) * BLOCK_N
    start = (piece % s_blocks).to(tl.int64) * BLOCK_S
    n, c, lane_mask = tile_lanes(first_n, u, r, N, W, C, BLOCK_N, BLOCK_C)
    local, channel, channel_mask = unit_channels(u, r, W, C, BLOCK_C)
    mask = tile_mask(lane_mask, start, S, CHANNELS_LAST, BLOCK_S, INNER)
    offsets = tile_offsets(n, c, start, C, S, CHANNELS_LAST, BLOCK_S, INNER)
    packed, dy = load_tiles(x_ptr, dy_ptr, bits_ptr, offsets, mask, ACTIVATION, VARIANCE)
    center, scale, shift = coefficients(
        stats, batch, parameters, n, c, lane_mask, C, D, BATCH, MIX, False
    )
    x = packed.to(ACC) - across(center, CHANNELS_LAST)
    g = tile_gradient(
        x, dy, residual_ptr, bits_ptr, across(scale, CHANNELS_LAST), across(shift, CHANNELS_LAST),
        offsets, mask, first_n, u, r, start, N, W, C, S, ACTIVATION, CHANNELS_LAST, ALIGN_W,
        BLOCK_N, BLOCK_C, BLOCK_S, INNER,
    )  # fmt: skip
    lane_g = lane_sum(g.to(ACC))
    lane_gx = lane_sum(product(g.to(ACC), x))

    # What each channel contributes, over the tile's instances.
    c_g, c_gx = lane_g, lane_gx
    if MIX and BATCH:
        i_center, offset, rstd = load_stats(stats, n * C + c, lane_mask)
        b_center, b_offset, b_rstd = load_stats(batch, c, lane_mask)
        i_gx = lane_gx - offset * lane_g
        b_gx, hat, gap = mixed_terms(
            lane_g, lane_gx, i_center, offset, rstd, b_center, b_offset, b_rstd
        )
        c_gx = sum_channels(tl.where(lane_mask, b_gx, 0.0), BLOCK_N, BLOCK_C)
        c_hat = sum_channels(hat, BLOCK_N, BLOCK_C)
        c_gap = sum_channels(tl.where(lane_mask, gap, 0.0), BLOCK_N, BLOCK_C)
        c_g = sum_channels(lane_g, BLOCK_N, BLOCK_C)
    elif BATCH:
        c_g = sum_channels(lane_g, BLOCK_N, BLOCK_C)
        c_gx = sum_channels(lane_gx, BLOCK_N, BLOCK_C)
    if table_ptr is not None:
        tables = table_planes(table_ptr, N, C, pieces, BATCH)
        publish_sums(tables, unit_n, piece, channel, channel_mask, C, pieces, c_g, c_gx)
        if MIX and BATCH:
            mixed = (tables[2], tables[3])
            publish_sums(mixed, unit_n, piece, channel, channel_mask, C, pieces, c_hat, c_gap)
    if CLUSTER:
        wait_for_members(barriers_ptr + cluster, member, members)

    writes = channel_mask & is_first(piece, channel)
    if BATCH:
        count = N.to(ACC) * S
        if CLUSTER:
            c_g = piece_sums(tables[0], unit_n, channel, channel_mask, C, pieces, BLOCK_C)
            c_gx = piece_sums(tables[1], unit_n, channel, channel_mask, C, pieces, BLOCK_C)
            if MIX:
                c_hat = piece_sums(tables[2], unit_n, channel, channel_mask, C, pieces, BLOCK_C)
                c_gap = piece_sums(tables[3], unit_n, channel, channel_mask, C, pieces, BLOCK_C)
        if MIX:
            store_mixed_gradients(
                c_g, c_gx, c_hat, c_gap, batch, parameters, gradients, channel, writes
            )
            weight = instance_weight(parameters, c, lane_mask, True, ACC)
            slope, level = set_gradient(rstd, offset, weight * lane_g, weight * i_gx, S)
            b_slope, b_level = batch_gradient(
                batch, parameters, to_lanes(c_g, BLOCK_N, BLOCK_C),
                to_lanes(c_gx, BLOCK_N, BLOCK_C), i_center, c, lane_mask, count,
            )  # fmt: skip
            slope, level = slope + b_slope, level + b_level
        else:
            _center, offset, rstd = load_stats(stats, channel, channel_mask)
            gx = c_gx - offset * c_g
            store_gradient(gradients[0], channel, writes, rstd * gx)
            store_gradient(gradients[1], channel, writes, c_g)
            gamma = load_or(parameters[0], channel, channel_mask, 1.0, ACC)
            slope, level = set_gradient(rstd, offset, gamma * c_g, gamma * gx, count, VARIANCE)
            slope, level = to_lanes(slope, BLOCK_N, BLOCK_C), to_lanes(level, BLOCK_N, BLOCK_C)
    else:
        if CLUSTER:
            set_g, set_gx = unit_sums(
                tables, parameters, unit_n, u, W, C, D, row_blocks, pieces, MIX, SETS, BLOCK_C
            )
        else:
            weight = instance_weight(parameters, channel, channel_mask, MIX, ACC)
            set_g = sum_set(product(weight, c_g), local, D, SETS)
            set_gx = sum_set(product(weight, c_gx), local, D, SETS)
        slot = set_slot(unit_n, channel, C, D, False)
        _center, offset, rstd = load_stats(stats, slot, channel_mask)
        count = D.to(ACC) * S
        slope, level = set_gradient(rstd, offset, set_g, set_gx - offset * set_g, count)
    packed, g = keep_packed(packed), keep_packed(g)  # as they were loaded, across the sums
    if dresidual_ptr is not None:
        tl.store(dresidual_ptr + offsets, g, mask=mask)
    if dx_ptr is not None:
        dx = across(scale, CHANNELS_LAST) * g.to(ACC)
        if VARIANCE:
            x = packed.to(ACC) - across(center, CHANNELS_LAST)
            dx += across(slope, CHANNELS_LAST) * x
        dx += across(level, CHANNELS_LAST)
        tl.store(dx_ptr + offsets, dx, mask=mask)

    # Parameters of norms within an instance gather over instances: the last one adds them up.
    if not BATCH and tickets_ptr is not None:
        if member == 0:
            if arrived_last(tickets_ptr + u, N):
                add_instances(
                    tables, stats, batch, parameters, gradients, (None, None), u, N, W, C, D,
                    row_blocks, pieces, MIX, BLOCK_C,
                )  # fmt: skip
