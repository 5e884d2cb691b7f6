"""Moments of tiles and of sets, and their merge.

The *table* holds the results of a unit's programs for the one that merges them: planes (n, part,
c). If sets run over the batch, n is always 0. In the forward it holds (count, mean, M2) of
x - pivot.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .arithmetic import centred, chan_merge, merge_along, product, sum_both
from .channel_lanes import (
    block_of_channels,
    by_channel,
    by_part,
    by_run,
    in_first_part,
    in_sets,
    is_part,
    merged_at_once,
    sets_at_once,
    unit_channels,
)
from .channel_tiles import (
    lane_sum,
    lane_sums,
    load_first,
    load_pivot,
    outer_count,
    outer_sum,
    spread,
    spread_outer,
    tile_instances,
    tile_width,
    tiles_of_part,
)
from .tables import part_moments, table_rows


class Moments(NamedTuple):
    count: Any
    mean: Any  # relative to a pivot
    m2: Any


@triton.jit
def merge(a, b):
    count, mean, m2 = chan_merge(a.count, a.mean, a.m2, b.count, b.mean, b.m2)
    return Moments(count, mean, m2)


@triton.jit
def along(m, AXIS: tl.constexpr):
    """Moments merged along one axis."""
    count, mean, m2 = merge_along(m.count, m.mean, m.m2, AXIS)
    return Moments(count, mean, m2)


@triton.jit
def lane_moments(x, tile, s, K: tl.constexpr):
    """Moments of each lane of a tile of x - pivot, which is 0 for missing elements."""
    instances: tl.constexpr = tile_instances(K.BLOCK_N, K.BLOCK_S, K.ROW)
    width: tl.constexpr = tile_width(K.BLOCK_S, K.ROW)
    left = tl.minimum(s.S - tile.start, width)
    if K.FOLDED:
        left = tl.minimum(s.N - tile.start, K.BLOCK_S)
    elif K.ROW > 0:
        left *= tl.minimum(s.N - tile.n, instances)
    count = tl.where(tile.lanes.mask, left, 0).to(x.dtype)
    # Each value is weighted first: a plain sum would overflow though the mean does not.
    mean = lane_sum(product(x, spread(1.0 / tl.maximum(count, 1.0), K)), K)
    deviation = tl.where(tile.mask, x - spread(mean, K), 0.0)
    total, squares = lane_sums(deviation, product(deviation, deviation), K)
    mean, m2 = centred(mean, total, squares, count)
    return Moments(count, mean, m2)


@triton.jit
def add_whole(mean, m2, x, before, K: tl.constexpr):
    """(mean, M2) of each thread's own elements, after adding one more whole tile of x - pivot. The
    thread has all of its outer axis; `before` tiles of the same size were added so far.

    For missing channels the result is arbitrary: nobody publishes it.
    """
    OUTER: tl.constexpr = K.BLOCK_S // K.INNER
    x_mean = outer_sum(x * (1.0 / OUTER))
    deviation = x - spread_outer(x_mean)
    share = 1.0 / (before + 1).to(x.dtype)
    delta = x_mean - mean
    m2 += outer_sum(deviation * deviation)
    return mean + delta * share, m2 + delta * (share * before * OUTER) * delta


@triton.jit
def add_lacking(m, x, tile, s, K: tl.constexpr):
    """Moments of each thread's own elements, merged with those of a tile of x - pivot with missing
    elements."""
    count = outer_count(tile, s, K).to(x.dtype)
    x = tl.where(tile.mask, x, 0.0)
    mean = outer_sum(x * spread_outer(1.0 / tl.maximum(count, 1.0)))
    deviation = tl.where(tile.mask, x - spread_outer(mean), 0.0)
    return merge(m, Moments(count, mean, outer_sum(deviation * deviation)))


@triton.jit
def channel_moments(t, m, pivot, at, s, K: tl.constexpr):
    """Moments of each channel from those of its lanes, relative to the same pivot. In a folded tile
    each lane has its own pivot; the result is relative to the channel's."""
    if K.FOLDED:
        return folded_moments(t, m, pivot, at, s, K)
    elif K.BLOCK_N == 1:
        return m
    else:
        return along(
            Moments(by_channel(m.count, K), by_channel(m.mean, K), by_channel(m.m2, K)), 0
        )  # fmt: skip


@triton.jit
def folded_moments(t, m, pivot, at, s, K: tl.constexpr):
    """channel_moments of a folded part: first of the parts of each thread's lanes. All lanes have
    the same number of instances."""
    channels = unit_channels(at.u, 0, s, K)
    n = at.n + tl.zeros_like(channels.c).to(tl.int64)
    origin = load_first(t, n, channels.c, channels.mask, s, K).to(m.mean.dtype)
    first_tile, _, end = tiles_of_part(at, s, K)
    instances = (tl.minimum(end * K.BLOCK_S, s.N) - first_tile * K.BLOCK_S).to(m.mean.dtype)
    first = in_first_part(s, K)
    pivot_of_one, one = moments_of_runs(m, pivot, instances, first, 0, K)
    pivot_of_other, other = moments_of_runs(m, pivot, instances, first == 0, K.RUN - 1, K)
    count = tl.where(is_part(s, K), by_part(one.count, other.count, s, K), 0.0)
    mean = by_part(one.mean, other.mean, s, K)
    mean += by_part(pivot_of_one, pivot_of_other, s, K) - origin[:, None]
    return along(Moments(count, mean, by_part(one.m2, other.m2, s, K)), 1)


@triton.jit
def moments_of_runs(m, pivot, instances, there, COLUMN: tl.constexpr, K: tl.constexpr):
    """(pivot, moments) of some lanes of each run, relative to the pivot of the lane COLUMN."""
    pivot = by_run(pivot, K)
    is_column = tl.broadcast_to(tl.arange(0, K.RUN)[None, :] == COLUMN, pivot.shape)
    own = tl.sum(tl.where(is_column, pivot, 0.0), axis=1)
    mean = tl.where(there, by_run(m.mean, K) + (pivot - own[:, None]), 0.0)
    lanes = tl.sum(tl.where(there, 1.0, 0.0).to(mean.dtype), axis=1)
    shares = tl.broadcast_to((1.0 / tl.maximum(lanes, 1.0))[:, None], mean.shape)
    center = tl.sum(product(mean, shares), axis=1)
    deviation = tl.where(there, mean - center[:, None], 0.0)
    within = tl.where(there, by_run(m.m2, K), 0.0)
    total, squares = sum_both(deviation, within + instances * deviation * deviation, 1)
    mean, m2 = centred(center, instances * total, squares, instances * lanes)
    return own, Moments(instances * lanes, mean, m2)


@triton.jit
def moments_of_sets(m, local, s, K: tl.constexpr):
    """Moments of each set of a unit, from those of its channels: those themselves if each is a set
    (SETS = 0)."""
    if K.SETS == 0:
        return m
    elif K.SETS == 1:
        m = along(m, 0)
        zero = tl.full([1], 0, m.mean.dtype)
        return Moments(zero + m.count, zero + m.mean, zero + m.m2)
    else:
        belongs = in_sets(local, s, K)
        zero = tl.where(belongs, 0.0, 0.0).to(m.mean.dtype)
        count = tl.where(belongs, m.count[:, None], 0.0)
        return along(Moments(count, zero + m.mean[:, None], zero + m.m2[:, None]), 0)


@triton.jit
def sum_set(value, local, s, K: tl.constexpr):
    """The sum over each channel's set, for each channel (`local`: counted in the unit)."""
    if K.SETS == 0:
        return value
    elif K.SETS == 1:
        return tl.sum(value, axis=0) + tl.zeros_like(value)
    else:
        belongs = in_sets(local, s, K)
        total = tl.sum(tl.where(belongs, value[:, None], 0.0), axis=0)
        return tl.sum(tl.where(belongs, total[None, :], 0.0), axis=1)


@triton.jit
def whole_sets(x, tile, local, s, K: tl.constexpr):
    """(a rough mean, moments relative to it) of each channel's set; the tile holds the whole set.

    The rough mean serves as a pivot: x minus it is as exact.
    """
    count = tl.full([], 1, x.dtype) * s.S * (s.N if K.BATCH else s.D)
    shares = product(x, tl.zeros_like(x) + 1.0 / count)
    rough = sum_set(lane_sum(shares, K), local, s, K)
    deviation = tl.where(tile.mask, x - spread(rough, K), 0.0)
    total, squares = lane_sums(deviation, product(deviation, deviation), K)
    total, squares = sum_set(total, local, s, K), sum_set(squares, local, s, K)
    count += tl.zeros_like(rough)
    mean, m2 = centred(tl.zeros_like(rough), total, squares, count)
    return rough, Moments(count, mean, m2)


# --- results that the programs of a unit leave for one another ---


@triton.jit
def table_plane(s, K: tl.constexpr):
    """Elements of a plane of the table."""
    if K.BATCH:
        return tl.zeros([], tl.int64) + s.parts * s.C
    else:
        return s.N.to(tl.int64) * s.parts * s.C


@triton.jit
def publish(t, values, at, channels, s, K: tl.constexpr):
    """Leave a member's results for each of its channels: a tuple of values, a plane each."""
    slot = (at.n * s.parts + at.part) * s.C + channels.c
    for i in tl.static_range(len(values)):
        tl.store(t.table + i * table_plane(s, K) + slot, values[i], mask=channels.mask)


@triton.jit
def load_moments(t, slot, mask, s, K: tl.constexpr):
    """Reads past the L1 cache: other programs' stores do not reach that."""
    plane = table_plane(s, K)
    return Moments(
        tl.load(t.table + slot, mask=mask, other=0.0, cache_modifier=".cg"),
        tl.load(t.table + plane + slot, mask=mask, other=0.0, cache_modifier=".cg"),
        tl.load(t.table + 2 * plane + slot, mask=mask, other=0.0, cache_modifier=".cg"),
    )


@triton.jit
def unit_moments(t, at, s, K: tl.constexpr):
    """Moments of each set of a unit (`first_channels`), merged from its members' results.

    A unit has several blocks of channels only if all of them are one set.
    """
    BLOCK: tl.constexpr = merged_at_once(K.BLOCK_C, K.SETS)
    plane = table_plane(s, K)
    table = (t.table, t.table + plane, t.table + 2 * plane)
    zero = tl.full([sets_at_once(K.BLOCK_C, K.SETS)], 0, t.table.dtype.element_ty)
    m = Moments(zero, zero, zero)
    for block in range(tl.cdiv(s.W, BLOCK)):
        channels = block_of_channels(at.u, block, BLOCK, s)
        count, mean, m2 = part_moments(table, at.n, channels.c, channels.mask, s.C, s.parts, BLOCK)
        more = moments_of_sets(Moments(count, mean, m2), channels.local, s, K)
        m = merge(m, more)
    return m


@triton.jit
def batch_moments(t, u, s, K: tl.constexpr):
    """(pivot, moments, summed M2) over all instances of a unit's channels.

    The table's means are relative to each instance's own pivot, the result to instance 0's.
    """
    BLOCK_P: tl.constexpr = (table_rows(K.BLOCK_C) + 1) // 2  # pivots take registers too
    channels = unit_channels(u, 0, s, K)
    origin = load_pivot(t, tl.zeros([1], tl.int64), channels.c, channels.mask, s, K)
    zero = tl.full([BLOCK_P, K.BLOCK_C], 0, t.table.dtype.element_ty)
    m, within = Moments(zero, zero, zero), zero
    for first in range(0, s.N, BLOCK_P):  # element by element: no barrier inside the loop
        n = first + tl.arange(0, BLOCK_P).to(tl.int64)[:, None]
        mask = (n < s.N) & channels.mask[None, :]
        pivot = load_pivot(t, n, channels.c[None, :], mask, s, K)
        each = Moments(zero, zero, zero)
        for part in range(s.parts):
            slot = (n * s.parts + part) * s.C + channels.c[None, :]
            each = merge(each, load_moments(t, slot, mask, s, K))
        within += each.m2
        m = merge(m, Moments(each.count, each.mean + (pivot - origin[None, :]), each.m2))
    return origin, along(m, 0), tl.sum(within, axis=0)
