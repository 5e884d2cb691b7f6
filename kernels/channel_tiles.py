"""Tiles of x, seen as (N, C, S): the place of their elements in memory, sums, loads, pivots.

x is contiguous or has its channels last in memory, (N, S, C). A *tile* is a register block of lanes
and positions. Missing elements are loaded as 0.
"""

import triton
import triton.language as tl

from .arithmetic import LANES_FIRST, accumulation_type, across, across_lanes, sum_both
from .channel_lanes import place, tile_lanes
from .channel_types import Tile


@triton.jit
def spread(value, K: tl.constexpr):
    """A value for each lane, shaped for a tile."""
    if K.CHANNELS_LAST or K.FOLDED:
        return value[None, None, :]
    else:
        return across(value)


@triton.jit
def outer_sum(x):
    """The sum of a tile along its outer axis, all of which a thread has."""
    return tl.sum(x, axis=1 if LANES_FIRST else 0)


@triton.jit
def spread_outer(x):
    """A result of outer_sum, shaped for a tile."""
    return tl.expand_dims(x, 1 if LANES_FIRST else 0)


@triton.jit
def no_outer(K: tl.constexpr, ACC: tl.constexpr):
    """Zeros of the shape of outer_sum's results."""
    if K.CHANNELS_LAST or K.FOLDED:
        return tl.full([K.INNER, K.LANES], 0, ACC)
    else:
        return tl.full([K.LANES, K.INNER], 0, ACC)


@triton.jit
def up_to(left, inner, STEP: tl.constexpr, MOST: tl.constexpr):
    """How many i, from 0 to MOST - 1, have i STEP + inner < left."""
    return tl.minimum(tl.maximum(left - inner + (STEP - 1), 0) // STEP, MOST)


@triton.jit
def outer_count(tile, s, K: tl.constexpr):
    """How many elements of a tile exist along its outer axis; of the shape of outer_sum's results.

    It is computed: a sum over the mask would be in another layout, and its conversion would take
    five times as long as all else that is done with the tile.
    """
    inner = tl.arange(0, K.INNER)
    OUTER: tl.constexpr = K.BLOCK_S // K.INNER
    ROW: tl.constexpr = K.ROW
    if K.ROW == 0:
        end = s.N if K.FOLDED else s.S
        left = tl.minimum(end - tile.start, K.BLOCK_S).to(tl.int32)
        count = up_to(left, inner, K.INNER, OUTER)
    else:  # rows as in `rows`
        left = tl.minimum(s.S - tile.start, ROW).to(tl.int32)
        instances = tl.minimum(s.N - tile.n, K.BLOCK_S // ROW).to(tl.int32)
        if K.INNER > ROW:
            EACH: tl.constexpr = K.INNER // ROW
            count = up_to(instances, inner // ROW, EACH, OUTER)
            count = tl.where(inner % ROW < left, count, 0)
        else:
            count = up_to(left, inner, K.INNER, ROW // K.INNER) * instances
    if K.CHANNELS_LAST or K.FOLDED:
        return tl.where(tile.lanes.mask[None, :], count[:, None], 0)
    else:
        return tl.where(tile.lanes.mask[:, None], count[None, :], 0)


@triton.jit
def lane_sum(x, K: tl.constexpr):
    return tl.sum(outer_sum(x), axis=0 if K.CHANNELS_LAST or K.FOLDED else 1)


@triton.jit
def lane_sums(x, y, K: tl.constexpr):
    """The sums of two tiles, in one round."""
    AXIS: tl.constexpr = 0 if K.CHANNELS_LAST or K.FOLDED else 1
    return sum_both(outer_sum(x), outer_sum(y), AXIS)


@triton.jit
def first_element(n, c, s, K: tl.constexpr):
    """Offset (int64) of position 0 of (n, c)."""
    if K.CHANNELS_LAST:
        return n * s.S * s.C + c
    else:
        return (n * s.C + c) * s.S


@triton.jit
def positions(K: tl.constexpr):
    """The positions of a tile, counted from its first, along all axes but that of the lanes."""
    outer = across_lanes(tl.arange(0, K.BLOCK_S // K.INNER) * K.INNER)
    inner = tl.arange(0, K.INNER)
    if K.CHANNELS_LAST or K.FOLDED:
        return outer + across(inner)
    else:
        return outer + inner[None, None, :]


@triton.jit
def rows(K: tl.constexpr, EACH: tl.constexpr):
    """(row, place in it) of the positions of a tile with rows, or of EACH rows together.

    Triton before 3.8 does not find the divisors of (i INNER) % ROW, and accesses by it would be
    one by one: so the multiplication comes last.
    """
    INNER: tl.constexpr = K.INNER // EACH
    ROW: tl.constexpr = K.ROW // EACH
    outer = across_lanes(tl.arange(0, K.BLOCK_S // K.INNER))
    inner = tl.arange(0, INNER)[None, None, :]
    if INNER > ROW:
        return outer * (INNER // ROW) + inner // ROW, inner % ROW
    else:
        IN_ROW: tl.constexpr = ROW // INNER
        return outer // IN_ROW, outer % IN_ROW * INNER + inner


@triton.jit
def tile_of(n, start, at, s, K: tl.constexpr):
    """A member's tile, given its first instance and position (int64).

    Its middle axis is the lanes and its inner axis positions; with channels last the other way
    round. See `arithmetic.py`.
    """
    lanes = tile_lanes(n, at, s.N, s, K)
    first = first_element(lanes.n, lanes.c, s, K)
    end = s.S
    if K.FOLDED:
        end = s.N
        lane = tl.arange(0, K.LANES) + at.u * s.W * s.S
        offsets = spread(lane + start * s.C * s.S, K) + positions(K) * (s.C * s.S)
    elif K.ROW > 0:
        row, position = rows(K, 1)
        offsets = spread(first + start, K) + row * (tl.zeros([1], tl.int64) + s.C) * s.S + position
        there = (row < s.N - n) & (position < tl.minimum(end - start, K.ROW).to(tl.int32))
        return Tile(at, n, start, lanes, spread(lanes.mask, K) & there, offsets)
    elif K.CHANNELS_LAST:
        stride = tl.zeros([1], tl.int64) + s.C  # start * C may pass 2^31
        offsets = spread(first + stride * start, K) + positions(K) * s.C
    else:
        offsets = spread(first + start, K) + positions(K)
    left = tl.minimum(end - start, K.BLOCK_S).to(tl.int32)
    mask = spread(lanes.mask, K) & (positions(K) < left)
    return Tile(at, n, start, lanes, mask, offsets)


@triton.constexpr_function
def tile_instances(block_n, block_s, row):
    """Instances of a tile that is not folded."""
    return block_s // row if row else block_n


@triton.constexpr_function
def tile_width(block_s, row):
    """Positions of each instance of such a tile."""
    return row if row else block_s


@triton.jit
def tiles_of_part(at, s, K: tl.constexpr):
    """(first, end of the whole ones, end of all) of a member's tiles, counted in the unit.

    If sets lie within an instance, so do parts: there tiles are only blocks of positions.
    """
    instances: tl.constexpr = tile_instances(K.BLOCK_N, K.BLOCK_S, K.ROW)
    width: tl.constexpr = tile_width(K.BLOCK_S, K.ROW)
    if K.FOLDED:
        whole, tiles = s.N // K.BLOCK_S, tl.cdiv(s.N, K.BLOCK_S)
    else:
        whole, tiles = s.S // width, tl.cdiv(s.S, width)
    if K.ROW > 0:
        whole *= s.N // instances
        tiles *= tl.cdiv(s.N, instances)
    first = at.part * s.steps
    end = tl.minimum(first + s.steps, tiles)
    return first, tl.minimum(tl.maximum(whole, first), end), end


@triton.jit
def nth_tile(i, at, s, K: tl.constexpr):
    """The i-th tile of a unit; tiles with missing positions or instances come last."""
    instances: tl.constexpr = tile_instances(K.BLOCK_N, K.BLOCK_S, K.ROW)
    width: tl.constexpr = tile_width(K.BLOCK_S, K.ROW)
    if K.ROW > 0:
        blocks, n_blocks = s.S // width, s.N // instances  # whole ones
        n, block = i // tl.maximum(blocks, 1), i % tl.maximum(blocks, 1)
        lacking = i - blocks * n_blocks
        if lacking >= 0:
            # First the last block of positions of each block of instances, then the other blocks
            # of positions of the last block of instances.
            ends = tl.cdiv(s.S, width) - blocks
            ends *= tl.cdiv(s.N, instances)
            n = tl.where(lacking < ends, lacking, n_blocks)
            block = tl.where(lacking < ends, blocks, lacking - ends)
        return tile_of(at.n + n * instances, tl.full([], width, tl.int64) * block, at, s, K)
    else:  # one instance: with channels last, a batch is one instance
        return tile_of(at.n, tl.full([], K.BLOCK_S, tl.int64) * i, at, s, K)


@triton.jit
def backward_walk(program, s, K: tl.constexpr):
    """A program's place in a launch with a program for each tile; the last tile comes first."""
    if K.FOLDED:
        i = s.u_blocks * s.parts - 1 - program
        return place(i % s.u_blocks, i // s.u_blocks, s, K, True)
    else:
        i = s.N * s.u_blocks * s.parts - 1 - program
        return place(i // s.parts, i % s.parts, s, K, False)


@triton.jit
def load(ptr, tile):
    """A tile as it is stored."""
    return tl.load(ptr + tile.offsets, mask=tile.mask, other=0.0)


@triton.jit
def store(ptr, value, tile):
    tl.store(ptr + tile.offsets, value, mask=tile.mask)


@triton.jit
def load_first(t, n, c, mask, s, K: tl.constexpr):
    """The first value of a set, in the instance n, as it is stored."""
    first = c if K.SETS == 0 else c - c % s.D
    return tl.load(t.x + first_element(n, first, s, K), mask=mask, other=0.0)


@triton.jit
def load_pivot(t, n, c, mask, s, K: tl.constexpr):
    """The value that the statistics of a set are relative to: its first, in the instance n.

    Moments of x - pivot are as exact as std allows, not mean: no mean >> std is ever rounded.
    """
    return load_first(t, n, c, mask, s, K).to(accumulation_type(t.x.dtype.element_ty))


@triton.jit
def lane_pivot(t, at, lanes, s, K: tl.constexpr):
    """The value that a part's moments of each lane are relative to: the first value of its set. If
    folded: the lane's own first value in the first instance, loaded as tiles are."""
    if K.FOLDED:
        lane = tl.arange(0, K.LANES) + at.u * s.W * s.S
        first = tl.load(t.x + lane, mask=lanes.mask, other=0.0)
        return first.to(accumulation_type(t.x.dtype.element_ty))
    else:
        return load_pivot(t, at.n + tl.zeros_like(lanes.c).to(tl.int64), lanes.c, lanes.mask, s, K)
