"""The backward of a norm of (N, C, S) whose sets no chip holds: `streaming.py` with x and dy."""

import triton
import triton.language as tl

from .activation import load_tiles, tile_gradient
from .arithmetic import accumulation_type, across, lane_sum, load_or, product, store_gradient
from .gradients import add_instances, batch_gradient, set_gradient, unit_sums
from .merge import coefficients
from .sync import arrived_last
from .tables import (
    load_stats,
    piece_sums,
    publish_sums,
    set_slot,
    stat_planes,
    sum_planes,
    table_planes,
)
from .tiles import (
    SCALARS,
    inner_positions,
    place,
    sizes,
    sum_channels,
    tile_lanes,
    tile_mask,
    tile_offsets,
    unit_channels,
    unit_member,
)


@triton.jit(do_not_specialize=SCALARS)
def gradient_sums_kernel(
    x_ptr,  # (N, C, S) in either layout
    dy_ptr,  # as x
    residual_ptr,  # as x, or None: for smooth activations
    bits_ptr,  # ReLU's bits, or None
    weight_ptr,  # (C,) or None
    bias_ptr,  # (C,) or None
    rho_ptr,  # (C,) or None
    stats_ptr,  # planes of statistics: tables.stat_planes
    sums_ptr,  # planes of sums (tables.sum_planes), or None where dx is not asked for
    dweight_ptr,  # (C,) or None
    dbias_ptr,  # (C,) or None
    drho_ptr,  # (C,) or None
    table_ptr,  # (2, n, piece, c)
    tickets_ptr,  # (units + u_blocks,)
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
    GIVEN: tl.constexpr,
    VARIANCE: tl.constexpr,
    OVER_INSTANCES: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    ALIGN_W: tl.constexpr,
    SETS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Sums of g = dy * act' and g (x - center), merged by the last program of each unit."""
    ACC: tl.constexpr = accumulation_type(x_ptr.dtype.element_ty)
    INNER: tl.constexpr = inner_positions(BLOCK_S, BLOCK_N * BLOCK_C, x_ptr.dtype.element_ty)
    C, S, W = sizes(C, S, W, CHANNELS_LAST, ALIGN, ALIGN_W)
    members = row_blocks * pieces
    unit, member = unit_member(tl.program_id(0), units, members, BATCH)
    unit_n, u, r, piece = place(unit, member, u_blocks, pieces)
    _local, channel, channel_mask = unit_channels(u, r, W, C, BLOCK_C)
    stats, batch = stat_planes(stats_ptr, N, C, D, BATCH, MIX)
    tables = table_planes(table_ptr, N, C, pieces, BATCH)
    parameters = (weight_ptr, bias_ptr, rho_ptr)
    n, c, lanes = tile_lanes(unit_n, u, r, unit_n + BLOCK_N, W, C, BLOCK_N, BLOCK_C)
    center, scale, shift = coefficients(
        stats, batch, parameters, n, c, lanes, C, D, BATCH, MIX, GIVEN
    )
    lane_g = tl.zeros([BLOCK_N * BLOCK_C], ACC)
    lane_gx = lane_g
    tiles = s_blocks * tl.cdiv(N, BLOCK_N) if BATCH else s_blocks
    for tile in range(piece * steps, tl.minimum((piece + 1) * steps, tiles)):
        start = (tile % s_blocks).to(tl.int64) * BLOCK_S
        first_n = unit_n + (tile // s_blocks) * BLOCK_N
        n, c, lane_mask = tile_lanes(first_n, u, r, N, W, C, BLOCK_N, BLOCK_C)
        mask = tile_mask(lane_mask, start, S, CHANNELS_LAST, BLOCK_S, INNER)
        offsets = tile_offsets(n, c, start, C, S, CHANNELS_LAST, BLOCK_S, INNER)
        x, dy = load_tiles(x_ptr, dy_ptr, bits_ptr, offsets, mask, ACTIVATION, VARIANCE)
        x = x.to(ACC) - across(center, CHANNELS_LAST)
        g = tile_gradient(
            x, dy, residual_ptr, bits_ptr, across(scale, CHANNELS_LAST),
            across(shift, CHANNELS_LAST), offsets, mask, first_n, u, r, start, N, W, C, S,
            ACTIVATION, CHANNELS_LAST, ALIGN_W, BLOCK_N, BLOCK_C, BLOCK_S, INNER,
        )  # fmt: skip
        lane_g += lane_sum(g.to(ACC))
        lane_gx += lane_sum(product(g.to(ACC), x))
    publish_sums(
        tables, unit_n, piece, channel, channel_mask, C, pieces,
        sum_channels(lane_g, BLOCK_N, BLOCK_C), sum_channels(lane_gx, BLOCK_N, BLOCK_C),
    )  # fmt: skip

    if arrived_last(tickets_ptr + (unit_n * u_blocks + u), members):
        sums = (sums_ptr, sums_ptr, sums_ptr, sums_ptr)
        if sums_ptr is not None:
            sums = sum_planes(sums_ptr, N, C, D, BATCH)
        gradients = (dweight_ptr, dbias_ptr, drho_ptr)
        finish_unit_sums(
            tables, stats, parameters, sums, gradients, unit_n, u, C, D, W, row_blocks, pieces,
            BATCH, MIX, GIVEN, SETS, BLOCK_C,
        )  # fmt: skip
        if OVER_INSTANCES:
            if arrived_last(tickets_ptr + units + u, N):
                add_instances(
                    tables, stats, batch, parameters, gradients, (sums[2], sums[3]), u, N, W, C, D,
                    row_blocks, pieces, MIX, BLOCK_C,
                )  # fmt: skip


@triton.jit
def finish_unit_sums(
    tables, stats, parameters, sums, gradients, n, u, C, D, W, row_blocks, pieces,
    BATCH: tl.constexpr, MIX: tl.constexpr, GIVEN: tl.constexpr, SETS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Merge what the members of a unit left: the sets' sums and, over a batch, dgamma and dbeta."""
    ACC: tl.constexpr = tables[0].dtype.element_ty
    local, channel, mask = unit_channels(u, 0, W, C, BLOCK_C)
    slot = set_slot(n, channel, C, D, BATCH)
    _center, offset, rstd = load_stats(stats, slot, mask)
    if BATCH:
        g = piece_sums(tables[0], n, channel, mask, C, pieces, BLOCK_C)
        gx = piece_sums(tables[1], n, channel, mask, C, pieces, BLOCK_C) - offset * g
        store_gradient(gradients[0], channel, mask, rstd * gx)
        store_gradient(gradients[1], channel, mask, g)
        gamma = load_or(parameters[0], channel, mask, 1.0, ACC)
        set_g, set_gx = gamma * g, gamma * gx
    else:
        set_g, set_gx = unit_sums(
            tables, parameters, n, u, W, C, D, row_blocks, pieces, MIX, SETS, BLOCK_C
        )
        if not GIVEN:
            set_gx -= offset * set_g
    writes = mask & (local % D == 0)
    store_gradient(sums[0], slot, writes, set_g)
    store_gradient(sums[1], slot, writes, set_gx)


@triton.jit(do_not_specialize=SCALARS)
def apply_backward_kernel(
    x_ptr,  # (N, C, S) in either layout
    dy_ptr,  # as x
    residual_ptr,  # as x, or None: for smooth activations
    bits_ptr,  # ReLU's bits, or None
    weight_ptr,  # (C,) or None
    bias_ptr,  # (C,) or None
    rho_ptr,  # (C,) or None
    stats_ptr,  # planes of statistics: tables.stat_planes
    sums_ptr,  # planes of sums, or None where the statistics are constants
    dx_ptr,  # as x, or None
    dresidual_ptr,  # as x, or None
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
    VARIANCE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    ALIGN_W: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """dx = scale g + slope (x - center) + level, and g itself as the residual's gradient."""
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
    parameters = (weight_ptr, bias_ptr, rho_ptr)
    stats, batch = stat_planes(stats_ptr, N, C, D, BATCH, MIX)
    center, scale, shift = coefficients(
        stats, batch, parameters, n, c, lane_mask, C, D, BATCH, MIX, GIVEN
    )
    x, dy = load_tiles(x_ptr, dy_ptr, bits_ptr, offsets, mask, ACTIVATION, VARIANCE)
    x = x.to(ACC) - across(center, CHANNELS_LAST)
    g = tile_gradient(
        x, dy, residual_ptr, bits_ptr, across(scale, CHANNELS_LAST), across(shift, CHANNELS_LAST),
        offsets, mask, unit_n, u, r, start, N, W, C, S, ACTIVATION, CHANNELS_LAST, ALIGN_W,
        BLOCK_N, BLOCK_C, BLOCK_S, INNER,
    )  # fmt: skip
    if dresidual_ptr is not None:
        tl.store(dresidual_ptr + offsets, g, mask=mask)
    if dx_ptr is not None:
        dx = across(scale, CHANNELS_LAST) * g.to(ACC)
        if sums_ptr is not None:
            sums = sum_planes(sums_ptr, N, C, D, BATCH)
            slot = set_slot(n, c, C, D, BATCH)
            _center, offset, rstd = load_stats(stats, slot, lane_mask)
            set_g = tl.load(sums[0] + slot, mask=lane_mask, other=0.0)
            set_gx = tl.load(sums[1] + slot, mask=lane_mask, other=0.0)
            if GIVEN:
                slope, level = set_g, set_gx
            else:
                batch_size = tl.full([], 1, ACC) * N if BATCH else tl.full([], 1, ACC)
                slope, level = set_gradient(
                    rstd, offset, set_g, set_gx, batch_size * D * S, VARIANCE
                )
            if MIX and TRAINING:
                b_g = tl.load(sums[2] + c, mask=lane_mask, other=0.0)
                b_gx = tl.load(sums[3] + c, mask=lane_mask, other=0.0)
                count = N.to(ACC) * S
                b_slope, b_level = batch_gradient(
                    batch, parameters, b_g, b_gx, center, c, lane_mask, count
                )
                slope, level = slope + b_slope, level + b_level
            if VARIANCE:
                dx += across(slope, CHANNELS_LAST) * x
            dx += across(level, CHANNELS_LAST)
        tl.store(dx_ptr + offsets, dx, mask=mask)
