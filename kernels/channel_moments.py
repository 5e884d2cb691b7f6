"""Moments of tiles and of sets, and their merge.

The *table* is what the programs of a unit leave for whoever merges: planes (n, part, c), n being 0
throughout where sets run over the batch; forward of (count, mean, M2) of x - pivot.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .arithmetic import centred, chan_merge, merge_along, product
from .channel_tiles import (
    by_channel,
    is_unfolded,
    lane_sum,
    lane_sums,
    load_pivot,
    outer_sum,
    spread,
    spread_outer,
    tiles_of_part,
    unfolded,
    unit_channels,
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
    """Those of each lane of a tile of x - pivot, which is 0 where there is nothing."""
    end = s.N if K.FOLDED else s.S
    count = tl.where(tile.lanes.mask, tl.minimum(end - tile.start, K.BLOCK_S), 0).to(x.dtype)
    # Means are sums of shares: a sum would overflow where the mean does not.
    mean = lane_sum(product(x, spread(1.0 / tl.maximum(count, 1.0), K)), K)
    deviation = tl.where(tile.mask, x - spread(mean, K), 0.0)
    total, squares = lane_sums(deviation, product(deviation, deviation), K)
    mean, m2 = centred(mean, total, squares, count)
    return Moments(count, mean, m2)


@triton.jit
def add_whole(mean, m2, x, before, K: tl.constexpr):
    """(mean, M2) of each thread's own elements, those of one more whole tile of x - pivot among
    them: its outer axis, merged with as many of so many tiles before.

    Of channels that are not there they are anything: nobody publishes them.
    """
    OUTER: tl.constexpr = K.BLOCK_S // K.INNER
    x_mean = outer_sum(x * (1.0 / OUTER))
    deviation = x - spread_outer(x_mean)
    share = 1.0 / (before + 1).to(x.dtype)
    delta = x_mean - mean
    m2 += outer_sum(deviation * deviation)
    return mean + delta * share, m2 + delta * (share * before * OUTER) * delta


@triton.jit
def channel_moments(m, at, s, K: tl.constexpr):
    """Those of each channel from its lanes', relative to the same pivot."""
    if K.FOLDED:
        return folded_moments(m, at, s, K)
    elif K.BLOCK_N == 1:
        return m
    else:
        return along(
            Moments(by_channel(m.count, K), by_channel(m.mean, K), by_channel(m.m2, K)), 0
        )  # fmt: skip


@triton.jit
def folded_moments(m, at, s, K: tl.constexpr):
    """channel_moments of a folded part, whose lanes all have as many instances."""
    there = is_unfolded(s, K)
    first, _, end = tiles_of_part(at, s, K)
    instances = (tl.minimum(end * K.BLOCK_S, s.N) - first * K.BLOCK_S).to(m.mean.dtype)
    positions = s.S.to(m.mean.dtype)
    mean = tl.where(there, unfolded(m.mean, s, K), 0.0)
    m2 = tl.sum(tl.where(there, unfolded(m.m2, s, K), 0.0), axis=1)
    center = tl.sum(product(mean, tl.zeros_like(mean) + 1.0 / positions), axis=1)
    deviation = tl.where(there, mean - center[:, None], 0.0)
    total = tl.sum(deviation, axis=1)
    squares = tl.sum(product(deviation, deviation), axis=1)
    mean, between = centred(center, total, squares, positions)
    return Moments(tl.zeros_like(mean) + instances * positions, mean, m2 + instances * between)


@triton.jit
def merge_set(m, local, s, K: tl.constexpr):
    """Moments of each channel's set, for each of the channels (`local`: counted in the unit).

    SETS: 0 where each channel is a set, 1 where all make up one, else their number, padded.
    """
    if K.SETS == 0:
        return m
    elif K.SETS == 1:
        m = along(m, 0)
        zero = tl.zeros_like(local).to(m.mean.dtype)
        return Moments(zero + m.count, zero + m.mean, zero + m.m2)
    else:
        belongs = (local // s.D)[:, None] == tl.arange(0, K.SETS)[None, :]
        zero = tl.where(belongs, 0.0, 0.0).to(m.mean.dtype)
        count = tl.where(belongs, m.count[:, None], 0.0)
        m = along(Moments(count, zero + m.mean[:, None], zero + m.m2[:, None]), 0)
        return Moments(
            tl.sum(tl.where(belongs, m.count[None, :], 0.0), axis=1),
            tl.sum(tl.where(belongs, m.mean[None, :], 0.0), axis=1),
            tl.sum(tl.where(belongs, m.m2[None, :], 0.0), axis=1),
        )


# --- what the programs of a unit leave for one another ---


@triton.jit
def table_plane(s, K: tl.constexpr):
    """Elements of a plane of the table."""
    if K.BATCH:
        return tl.zeros([], tl.int64) + s.parts * s.C
    else:
        return s.N.to(tl.int64) * s.parts * s.C


@triton.jit
def publish(t, values, at, channels, s, K: tl.constexpr):
    """Leave what a member has found of each of its channels: a tuple of values, a plane each."""
    slot = (at.n * s.parts + at.part) * s.C + channels.c
    for i in tl.static_range(len(values)):
        tl.store(t.table + i * table_plane(s, K) + slot, values[i], mask=channels.mask)


@triton.jit
def load_moments(t, slot, mask, s, K: tl.constexpr):
    """Past the L1 cache, which other programs' stores do not reach."""
    plane = table_plane(s, K)
    return Moments(
        tl.load(t.table + slot, mask=mask, other=0.0, cache_modifier=".cg"),
        tl.load(t.table + plane + slot, mask=mask, other=0.0, cache_modifier=".cg"),
        tl.load(t.table + 2 * plane + slot, mask=mask, other=0.0, cache_modifier=".cg"),
    )


@triton.jit
def unit_moments(t, at, s, K: tl.constexpr):
    """Moments of the set of each channel of a unit, merged from what its members left.

    A unit has several blocks of channels only where all of them make up one set.
    """
    BLOCK_C: tl.constexpr = K.BLOCK_C
    plane = table_plane(s, K)
    table = (t.table, t.table + plane, t.table + 2 * plane)
    zero = tl.zeros([BLOCK_C], t.table.dtype.element_ty)
    m = Moments(zero, zero, zero)
    for block in range(tl.cdiv(s.W, BLOCK_C)):
        channels = unit_channels(at.u, block, s, K)
        count, mean, m2 = part_moments(
            table, at.n, channels.c, channels.mask, s.C, s.parts, BLOCK_C
        )
        more = merge_set(Moments(count, mean, m2), channels.local, s, K)
        m = merge(m, more)
    return m


@triton.jit
def batch_moments(t, u, s, K: tl.constexpr):
    """(pivot, moments, summed M2) over all instances of a unit's channels.

    The table's means are relative to each instance's own pivot, the result to that of instance 0.
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
