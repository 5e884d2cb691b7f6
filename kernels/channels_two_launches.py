"""A norm of (N, C, S) whose sets are too large for the chip: two launches, which each read x.

The first computes moments, or in the backward sums of gradients; the last program of a unit to
arrive merges them. The second applies them. It walks backwards, to start with the data that the
first has left in the L2 cache.
"""

import triton
import triton.language as tl

from .arithmetic import accumulation_type, load_or, sum_both
from .channel_activation import activation_gradient, load_pair, store_output
from .channel_gradients import (
    Slopes,
    Sums,
    about_mean,
    load_sums,
    published_sums,
    slopes_of,
    store_batch_gradients,
    store_sums,
)
from .channel_instances import add_instances, unit_sums
from .channel_lanes import (
    channel_blocks,
    first_channels,
    is_first,
    place,
    sizes,
    sum_instances_of_both,
    tile_lanes,
    unit_channels,
    unit_member,
)
from .channel_mixtures import load_batch_sums, mixed_batch_slopes
from .channel_moments import (
    Moments,
    add_lacking,
    add_whole,
    along,
    batch_moments,
    channel_moments,
    publish,
    unit_moments,
)
from .channel_stats import (
    affine_of,
    average_instances,
    constant_stats,
    kept_affine,
    load_running,
    load_stats,
    stats_of,
    store_batch_stats,
    store_stats,
    update_batch,
)
from .channel_tiles import (
    backward_walk,
    lane_pivot,
    load,
    load_first,
    no_outer,
    nth_tile,
    outer_sum,
    spread,
    store,
    tile_of,
    tiles_of_part,
)
from .channel_types import SIZES
from .sync import arrived_last


@triton.jit
def last_of_unit(t, at, s, K: tl.constexpr):
    """Whether all other members of the unit have published."""
    return arrived_last(t.tickets + (at.n * s.u_blocks + at.u), channel_blocks(s, K) * s.parts)


@triton.jit
def last_of_instances(t, at, s):
    """Whether the units `u` of all other instances are merged."""
    return arrived_last(t.tickets + s.N * s.u_blocks + at.u, s.N)


@triton.jit(do_not_specialize=SIZES)
def moments_kernel(
    t, momentum: tl.float64, eps: tl.float64, N, C, S, D, W, u_blocks, parts, steps,
    K: tl.constexpr,
):  # fmt: skip
    """One-pass Welford/Chan: exact moments of each tile in registers, tiles merged by Chan."""
    s = sizes(N, C, S, D, W, u_blocks, parts, steps, K)
    unit, member = unit_member(tl.program_id(0), s, K)
    at = place(unit, member, s, K, K.BATCH)
    lanes = tile_lanes(at.n, at, at.n + K.BLOCK_N, s, K)
    pivot = lane_pivot(t, at, lanes, s, K)
    m = channel_moments(t, part_of_lanes(t, pivot, at, s, K), pivot, at, s, K)
    publish(t, m, at, unit_channels(at.u, at.block, s, K), s, K)
    if last_of_unit(t, at, s, K):
        finish_unit(t, at, momentum, eps, s, K)
        if K.MIX:
            if last_of_instances(t, at, s):
                mix_batch(t, at.u, momentum, eps, s, K)
        elif not K.BATCH and (t.running_mean is not None or t.running_var is not None):
            if last_of_instances(t, at, s):
                average_instances(t, at.u, momentum, s, K)


@triton.jit
def part_of_lanes(t, pivot, at, s, K: tl.constexpr):
    """Moments of each lane of a part: first by threads, at the end by lanes."""
    ACC: tl.constexpr = accumulation_type(t.x.dtype.element_ty)
    SPREAD: tl.constexpr = 0 if K.CHANNELS_LAST or K.FOLDED else 1
    first, whole, end = tiles_of_part(at, s, K)
    mean, m2 = no_outer(K, ACC), no_outer(K, ACC)
    for i in tl.range(first, whole, num_stages=K.STAGES):
        x = load(t.x, nth_tile(i, at, s, K)).to(ACC) - spread(pivot, K)
        mean, m2 = add_whole(mean, m2, x, i - first, K)
    each = tl.full([], K.BLOCK_S // K.INNER, ACC) * (whole - first)
    m = Moments(tl.zeros_like(mean) + each, mean, m2)
    if whole < end:
        for i in tl.range(whole, end, num_stages=K.STAGES):
            tile = nth_tile(i, at, s, K)
            m = add_lacking(m, load(t.x, tile).to(ACC) - spread(pivot, K), tile, s, K)
    return along(m, SPREAD)


@triton.jit
def finish_unit(t, at, momentum, eps, s, K: tl.constexpr):
    """Merge the results of a unit's members: its statistics and, over a batch, the running ones."""
    channels = first_channels(at.u, s, K)
    n = at.n + tl.zeros_like(channels.c).to(tl.int64)
    # Loaded before the merge, used after it.
    pivot = load_first(t, n, channels.c, channels.mask, s, K)
    if K.BATCH:
        old = load_running(t, channels.c, channels.mask)
    m = unit_moments(t, at, s, K)
    stats = stats_of(pivot.to(m.mean.dtype), m, eps, K)
    if K.BATCH:
        update_batch(t, old, m, stats.center, channels.c, channels.mask, momentum)
    store_stats(t, n, channels.c, channels.mask, stats, s, K)


@triton.jit
def mix_batch(t, u, momentum, eps, s, K: tl.constexpr):
    """The mixture's batch statistics: from its instances or, in eval mode, the running ones."""
    channels = unit_channels(u, 0, s, K)
    if K.TRAINING:
        old = load_running(t, channels.c, channels.mask)
        pivot, m, _ = batch_moments(t, u, s, K)
        stats = stats_of(pivot, m, eps, K)
        update_batch(t, old, m, stats.center, channels.c, channels.mask, momentum)
    else:
        stats = constant_stats(t, channels.c, channels.mask, eps)
    store_batch_stats(t, channels.c, channels.mask, stats, s, K)


@triton.jit(do_not_specialize=SIZES)
def apply_kernel(
    t, eps: tl.float64, N, C, S, D, W, u_blocks, parts, steps, K: tl.constexpr
):  # fmt: skip
    """y = act((x - center) * scale + shift + residual): centred first, exact if mean >> std.

    In eval mode this is the only launch: it keeps the running statistics for the backward.
    """
    ACC: tl.constexpr = accumulation_type(t.x.dtype.element_ty)
    s = sizes(N, C, S, D, W, u_blocks, parts, steps, K)
    at = backward_walk(tl.program_id(0), s, K)
    tile = tile_of(at.n, at.part.to(tl.int64) * K.BLOCK_S, at, s, K)
    lanes = tile.lanes
    x = load(t.x, tile).to(ACC)
    if K.BATCH and not K.TRAINING:
        stats = constant_stats(t, lanes.c, lanes.mask, eps)
        first = lanes.mask & is_first(at.n + at.part, lanes.c)
        first &= lanes.first == tl.arange(0, K.LANES)
        store_stats(t, lanes.n, lanes.c, first, stats, s, K)
        affine = affine_of(t, stats, lanes.n, lanes.c, lanes.mask, s, K)
    else:
        affine = kept_affine(t, lanes, s, K)
    store_output(t, x - spread(affine.center, K), affine, tile, s, K)


# --- backward ---


@triton.jit(do_not_specialize=SIZES)
def gradient_sums_kernel(
    t, N, C, S, D, W, u_blocks, parts, steps, K: tl.constexpr
):  # fmt: skip
    """Sums of g = dy * act' and g (x - center), merged by the last program of each unit."""
    ACC: tl.constexpr = accumulation_type(t.x.dtype.element_ty)
    s = sizes(N, C, S, D, W, u_blocks, parts, steps, K)
    unit, member = unit_member(tl.program_id(0), s, K)
    at = place(unit, member, s, K, K.BATCH)
    affine = kept_affine(t, tile_lanes(at.n, at, at.n + K.BLOCK_N, s, K), s, K)
    zero = no_outer(K, ACC)
    own = Sums(zero, zero)
    first, _, end = tiles_of_part(at, s, K)
    for i in range(first, end):
        tile = nth_tile(i, at, s, K)
        x, dy = load_pair(t, tile, t.dweight is not None, K)
        x = x.to(ACC) - spread(affine.center, K)
        g = activation_gradient(t, x, dy, affine, tile, s, K).to(ACC)
        own = Sums(own.g + outer_sum(g), own.gx + outer_sum(g * x))
    SPREAD: tl.constexpr = 0 if K.CHANNELS_LAST or K.FOLDED else 1
    g, gx = sum_both(own.g, own.gx, SPREAD)
    g, gx = sum_instances_of_both(g, gx, s, K)
    sums = Sums(g, gx)
    publish(t, sums, at, unit_channels(at.u, at.block, s, K), s, K)
    if last_of_unit(t, at, s, K):
        finish_unit_sums(t, at, s, K)
        if K.GATHERS:
            if last_of_instances(t, at, s):
                add_instances(t, at.u, s, K)


@triton.jit
def finish_unit_sums(t, at, s, K: tl.constexpr):
    """Merge the results of a unit's members: sums of sets and, over a batch, dgamma and dbeta."""
    channels = first_channels(at.u, s, K)
    stats = load_stats(t, at.n, channels.c, channels.mask, s, K)
    if K.BATCH:
        sums = about_mean(published_sums(t, at.n, channels, s, K), stats)
        store_batch_gradients(t, sums, stats, channels.c, channels.mask)
        gamma = load_or(t.weight, channels.c, channels.mask, 1.0, stats.rstd.dtype)
        sums = Sums(gamma * sums.g, gamma * sums.gx)
    else:
        sums = unit_sums(t, at, s, K)
        if not K.GIVEN:
            sums = about_mean(sums, stats)
    if K.BATCH or not K.STATS_OF_BATCH:  # else the last of all instances computes the batch's
        store_sums(t, at.n, channels.c, channels.mask, sums, s, K)


@triton.jit(do_not_specialize=SIZES)
def apply_backward_kernel(
    t, N, C, S, D, W, u_blocks, parts, steps, K: tl.constexpr
):  # fmt: skip
    """dx = scale g + q (x - center) + r, and g itself as the residual's gradient."""
    ACC: tl.constexpr = accumulation_type(t.x.dtype.element_ty)
    s = sizes(N, C, S, D, W, u_blocks, parts, steps, K)
    at = backward_walk(tl.program_id(0), s, K)
    tile = tile_of(at.n, at.part.to(tl.int64) * K.BLOCK_S, at, s, K)
    affine = kept_affine(t, tile.lanes, s, K)
    x, dy = load_pair(t, tile, False, K)
    if t.bits is not None:
        tl.debug_barrier()  # makes the assembler load the whole tile, not a vector at a time
    x = x.to(ACC) - spread(affine.center, K)
    g = activation_gradient(t, x, dy, affine, tile, s, K)
    if t.dresidual is not None:
        store(t.dresidual, g, tile)
    if t.dx is not None:
        dx = spread(affine.scale, K) * g.to(ACC)
        if t.sums is not None:
            slopes = kept_slopes(t, affine.center, tile.lanes, s, K)
            if K.VARIANCE:
                dx += spread(slopes.q, K) * x
            dx += spread(slopes.r, K)
        store(t.dx, dx, tile)


@triton.jit
def kept_slopes(t, center, lanes, s, K: tl.constexpr):
    """The slopes of each lane, from the sums that the first launch left. If coefficients are GIVEN,
    the slopes themselves were left."""
    sums = load_sums(t, lanes.n, lanes.c, lanes.mask, s, K)
    if K.GIVEN:
        return Slopes(sums.g, sums.gx)
    stats = load_stats(t, lanes.n, lanes.c, lanes.mask, s, K)
    instances = tl.full([], 1, center.dtype)
    if K.BATCH:
        instances *= s.N
    slopes = slopes_of(stats, sums, instances * s.D * s.S, K)
    if K.MIX and K.TRAINING:
        batch_sums = load_batch_sums(t, lanes.c, lanes.mask, s, K)
        of_batch = mixed_batch_slopes(t, batch_sums, center, lanes, s, K)
        slopes = Slopes(slopes.q + of_batch.q, slopes.r + of_batch.r)
    return slopes
