"""A norm of (N, C, S) in one launch: a program's tile holds whole sets, and stays in registers from
statistics to output. The backward is below, with tiles of x and dy."""

import triton
import triton.language as tl

from .arithmetic import accumulation_type, inverse_std, load_or, product, split_mean
from .channel_activation import activation_gradient, load_pair, store_output
from .channel_gradients import (
    Slopes,
    Sums,
    about_mean,
    instance_weight,
    set_sums,
    slopes_of,
    store_batch_gradients,
    weighted,
)
from .channel_instances import add_instances, leave_instance, store_sample_gradients
from .channel_lanes import (
    is_first,
    place,
    sizes,
    sum_instances,
    to_lanes,
    unit_channels,
)
from .channel_mixtures import (
    MixedSums,
    mixed_batch_slopes,
    mixed_sums,
    store_mixed_gradients,
    weighted_mixed,
)
from .channel_moments import (
    Moments,
    channel_moments,
    lane_moments,
    publish,
    whole_sets,
)
from .channel_samples import lane_weight
from .channel_stats import (
    Affine,
    Stats,
    affine_of,
    average_instances,
    constant_stats,
    kept_affine,
    load_batch_stats,
    load_running,
    load_stats,
    mixed_affine,
    stats_of,
    store_batch_stats,
    store_stats,
    update_batch,
)
from .channel_tiles import lane_sums, load, load_pivot, spread, store, tile_of
from .channel_types import SIZES
from .sync import arrived_last, keep_packed, widen


@triton.jit(do_not_specialize=SIZES)
def resident_kernel(
    t, momentum: tl.float64, eps: tl.float64, N, C, S, D, W, u_blocks, parts, steps,
    K: tl.constexpr,
):  # fmt: skip
    """y = act(norm(x) + residual), the statistics for the backward, and the running ones."""
    ACC: tl.constexpr = accumulation_type(t.x.dtype.element_ty)
    s = sizes(N, C, S, D, W, u_blocks, parts, steps, K)
    at = place(tl.program_id(0), tl.full([], 0, tl.int32), s, K, K.BATCH)
    tile = tile_of(at.n, at.start, at, s, K)
    channels = unit_channels(at.u, at.block, s, K)
    packed = load(t.x, tile)
    lanes = tile.lanes
    first = channels.mask & (channels.local % s.D == 0)
    if K.BATCH:
        old = load_running(t, channels.c, first)
    if K.BATCH and (K.MIX or K.OF_SAMPLES):  # lanes of several instances
        pivot_n = lanes.n if K.MIX else at.n + tl.zeros_like(lanes.n)
        pivot = load_pivot(t, pivot_n, lanes.c, lanes.mask, s, K)
        x = tl.where(tile.mask, widen(packed, ACC) - spread(pivot, K), 0.0)
        lane = lane_moments(x, tile, s, K)
        origin, m = moments_over_lanes(t, lane, pivot, at, channels, s, K)
    else:
        origin, m = whole_sets(widen(packed, ACC), tile, channels.local, s, K)
        if t.table is not None:  # for average_instances
            pivot = load_pivot(t, lanes.n, lanes.c, lanes.mask, s, K)
            publish(t, Moments(m.count, m.mean + (origin - pivot), m.m2), at, channels, s, K)
    stats = stats_of(origin, m, eps, K)
    if K.BATCH:
        update_batch(t, old, m, stats.center, channels.c, first, momentum)
    if K.MIX:
        if K.BATCH:
            batch = stats
            center, offset = split_mean(pivot, lane.mean)
            stats = Stats(center, offset, inverse_std(lane.m2 / s.S, eps))
            store_stats(t, lanes.n, lanes.c, lanes.mask, stats, s, K)
        else:
            batch = constant_stats(t, channels.c, channels.mask, eps)
            store_stats(t, at.n, channels.c, first, stats, s, K)
        firsts = first & is_first(at.n, channels.c)
        store_batch_stats(t, channels.c, firsts, batch, s, K)
        batch = lane_stats(batch, K)
        affine = mixed_affine(t, stats, batch, lanes.n, lanes.c, lanes.mask, s, K)
    else:
        store_stats(t, at.n, channels.c, first, stats, s, K)
        if K.OF_SAMPLES:
            stats = lane_stats(stats, K)
            affine = affine_of(t, stats, lanes.n, lanes.c, lanes.mask, s, K)
        else:
            affine = affine_of(t, stats, at.n, channels.c, channels.mask, s, K)
            affine = Affine(
                to_lanes(affine.center, K), to_lanes(affine.scale, K), to_lanes(affine.shift, K)
            )
    # The tile stays as loaded across sums and barriers.
    x = widen(keep_packed(packed), ACC) - spread(affine.center, K)
    store_output(t, x, affine, tile, s, K)
    # Instance norm's running statistics are averages over instances: the last instance takes them.
    if not K.BATCH and t.tickets is not None:
        if arrived_last(t.tickets + at.u, s.N):
            average_instances(t, at.u, momentum, s, K)


@triton.jit
def lane_stats(stats, K: tl.constexpr):
    """Each channel's statistics, repeated for each of its lanes."""
    return Stats(to_lanes(stats.center, K), to_lanes(stats.offset, K), to_lanes(stats.rstd, K))


@triton.jit
def moments_over_lanes(t, lane, pivot, at, channels, s, K: tl.constexpr):
    """(pivot, moments over the batch) of each channel, from the moments of its lanes."""
    zeros = tl.zeros_like(channels.c).to(tl.int64)
    origin = load_pivot(t, zeros, channels.c, channels.mask, s, K)
    mean = lane.mean + (pivot - to_lanes(origin, K))
    return origin, channel_moments(t, Moments(lane.count, mean, lane.m2), pivot, at, s, K)


# --- backward ---


@triton.jit(do_not_specialize=SIZES)
def resident_backward_kernel(
    t, N, C, S, D, W, u_blocks, parts, steps, K: tl.constexpr
):  # fmt: skip
    """dx = scale g + q (x - center) + r, g = dy * act'; and the parameters' gradients."""
    ACC: tl.constexpr = accumulation_type(t.x.dtype.element_ty)
    s = sizes(N, C, S, D, W, u_blocks, parts, steps, K)
    at = place(tl.program_id(0), tl.full([], 0, tl.int32), s, K, K.BATCH)
    tile = tile_of(at.n, at.start, at, s, K)
    packed, dy = load_pair(t, tile, t.dweight is not None, K)
    affine = kept_affine(t, tile.lanes, s, K)
    x = widen(packed, ACC) - spread(affine.center, K)
    g = activation_gradient(t, x, dy, affine, tile, s, K)
    wide = widen(g, ACC)
    sum_g, sum_gx = lane_sums(wide, product(wide, x), K)
    lane = Sums(sum_g, sum_gx)
    if K.MIX and K.BATCH:
        slopes = mixed_slopes(t, lane, tile, s, K)
    elif K.BATCH:
        slopes = batch_slopes(t, lane, tile, s, K)
    else:
        slopes = instance_slopes(t, lane, at, s, K)
    packed, g = keep_packed(packed), keep_packed(g)  # as loaded, across the sums
    if t.dresidual is not None:
        store(t.dresidual, g, tile)
    if t.dx is not None:
        dx = spread(affine.scale, K) * widen(g, ACC)
        if K.VARIANCE:
            dx += spread(slopes.q, K) * (widen(packed, ACC) - spread(affine.center, K))
        store(t.dx, dx + spread(slopes.r, K), tile)
    # Parameters of norms within an instance need sums over instances: the last one adds them up.
    if K.GATHERS:
        if arrived_last(t.tickets + at.u, s.N):
            add_instances(t, at.u, s, K)


@triton.jit
def instance_slopes(t, lane, at, s, K: tl.constexpr):
    """The slopes of sets within an instance; the lanes are channels."""
    channels = unit_channels(at.u, at.block, s, K)
    stats = load_stats(t, at.n, channels.c, channels.mask, s, K)
    leave_instance(t, lane, stats, at.n, channels, channels.mask, s, K)
    sums = set_sums(t, lane, at.n, channels, s, K)
    count = s.D.to(lane.g.dtype) * s.S
    return slopes_of(stats, about_mean(sums, stats), count, K)


@triton.jit
def batch_slopes(t, lane, tile, s, K: tl.constexpr):
    """The slopes of sets over the batch; stores dgamma and dbeta."""
    at = tile.at
    channels = unit_channels(at.u, at.block, s, K)
    own = lane
    if K.OF_SAMPLES:
        lanes = tile.lanes
        of_lanes = load_stats(t, lanes.n, lanes.c, lanes.mask, s, K)
        store_sample_gradients(t, lane, of_lanes, lanes.n, lanes.c, lanes.mask, s, K)
        own = weighted(lane_weight(t, tile.lanes, s, K, lane.g.dtype), lane)
    sums = Sums(sum_instances(own.g, s, K), sum_instances(own.gx, s, K))
    stats = load_stats(t, at.n, channels.c, channels.mask, s, K)
    sums = about_mean(sums, stats)
    if not K.OF_SAMPLES:
        store_batch_gradients(t, sums, stats, channels.c, channels.mask)
        gamma = load_or(t.weight, channels.c, channels.mask, 1.0, lane.g.dtype)
        sums = Sums(gamma * sums.g, gamma * sums.gx)
    slopes = slopes_of(stats, sums, s.N.to(lane.g.dtype) * s.S, K)
    return Slopes(to_lanes(slopes.q, K), to_lanes(slopes.r, K))


@triton.jit
def mixed_slopes(t, lane, tile, s, K: tl.constexpr):
    """The slopes of a mixture over the batch; stores the parameters' gradients."""
    at, lanes = tile.at, tile.lanes
    channels = unit_channels(at.u, at.block, s, K)
    stats = load_stats(t, lanes.n, lanes.c, lanes.mask, s, K)
    batch = load_batch_stats(t, lanes.c, lanes.mask, s, K)
    each = mixed_sums(lane, stats, batch)
    if K.OF_SAMPLES:
        store_sample_gradients(t, lane, stats, lanes.n, lanes.c, lanes.mask, s, K)
        each = weighted_mixed(lane_weight(t, lanes, s, K, lane.g.dtype), each)
    sums = MixedSums(
        sum_instances(each.g, s, K),
        sum_instances(tl.where(lanes.mask, each.gx, 0.0), s, K),
        sum_instances(each.hat, s, K),
        sum_instances(tl.where(lanes.mask, each.gap, 0.0), s, K),
    )
    store_mixed_gradients(t, sums, channels.c, channels.mask, s, K)
    weight = instance_weight(t, lanes.n, lanes.c, lanes.mask, s, K, lane.g.dtype)
    own = about_mean(lane, stats)
    own = slopes_of(stats, Sums(weight * own.g, weight * own.gx), s.S, K)
    of_lanes = Sums(to_lanes(sums.g, K), to_lanes(sums.gx, K))
    of_batch = mixed_batch_slopes(t, of_lanes, stats.center, lanes, s, K)
    return Slopes(own.q + of_batch.q, own.r + of_batch.r)
