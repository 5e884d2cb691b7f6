"""Channels of x, seen as (N, C, S): the place of a tile.

x is contiguous or has its channels last in memory, (N, S, C). A *tile* is a register block of lanes
and positions. A lane is one (n, c), of BLOCK_N instances x BLOCK_C channels, channels fastest. A
*unit* is merged together: one or several whole sets of neighbouring channels. Its *members* are the
programs that share reading it. Missing elements are loaded as 0.

Sizes come unspecialised, so that a new batch size needs no compilation. 128-bit accesses need to
know a power of two that divides the memory-contiguous axis (S; for channels last C and W).
"""

import triton
import triton.language as tl

from .arithmetic import LANES_FIRST, accumulation_type, across, across_lanes, sum_both
from .channel_types import Channels, Lanes, Member, Sizes, Tile

# --- sizes, units, members ---


@triton.jit
def sizes(N, C, S, D, W, u_blocks, parts, steps, groups, K: tl.constexpr):
    """C, S and W written so that the compiler sees their divisors: as products."""
    return Sizes(
        N, C * K.ALIGN_C, S * K.ALIGN_S, D, W * K.ALIGN_W, u_blocks, parts, steps, groups
    )  # fmt: skip


@triton.jit
def channel_blocks(s, K: tl.constexpr):
    return tl.cdiv(s.W, K.BLOCK_C)


@triton.jit
def unit_member(program, s, K: tl.constexpr):
    """(unit, member) of a program in a launch that has one for each member of each unit.

    Units over the batch are walked member by member: so programs that run together read memory
    that lies together.
    """
    if K.BATCH:
        return program % s.u_blocks, program // s.u_blocks
    else:
        members = channel_blocks(s, K) * s.parts
        return program // members, program % members


@triton.jit
def place(unit, member, s, K: tl.constexpr, BATCH: tl.constexpr):
    """A member's place; BATCH if units run over the batch. A division costs as much as a
    hundredth of a tile: none is done if its result is known."""
    n, u = tl.full([], 0, tl.int64), unit
    if not BATCH:
        n, u = (unit // s.u_blocks).to(tl.int64), unit % s.u_blocks
    block, part = tl.full([], 0, tl.int32), member
    if K.SETS == 1:  # a set may have several blocks of channels
        block, part = member // s.parts, member % s.parts
    return Member(member, n, u, block, part)


# --- lanes and channels ---


@triton.jit
def unit_channels(u, block, s, K: tl.constexpr):
    BLOCK_C: tl.constexpr = K.BLOCK_C
    return block_of_channels(u, block, BLOCK_C, s)


# Scalars: Triton 3.6's interpreter passes a NamedTuple as a plain tuple.
@triton.constexpr_function
def merged_at_once(block, sets):
    """Channels of a unit that are merged at a time. If a tile has few channels of one large set,
    more than those: each block is waited for."""
    return max(block, 32) if sets == 1 else block


@triton.jit
def block_of_channels(u, block, BLOCK: tl.constexpr, s):
    local = block * BLOCK + tl.arange(0, BLOCK)
    c = u * s.W + local
    return Channels(local, c, (local < s.W) & (c < s.C))


@triton.jit
def tile_lanes(n, at, end, s, K: tl.constexpr):
    """The lanes of a member's tile whose first instance is n; instances end before `end`."""
    lane = tl.arange(0, K.LANES)
    first = lane
    if K.FOLDED:  # exact for less than 2^20 lanes, and quicker than an integer division
        local = ((lane.to(tl.float32) + 0.5) * (1.0 / s.S.to(tl.float32))).to(tl.int32)
        first = local * s.S
        n = n + tl.full([K.LANES], 0, tl.int64)
    elif K.BLOCK_N == 1:
        local = at.block * K.BLOCK_C + lane
        n = n + tl.full([K.BLOCK_C], 0, tl.int64)
    else:
        local = at.block * K.BLOCK_C + lane % K.BLOCK_C
        n = n + lane // K.BLOCK_C
    c = at.u * s.W + local
    if K.FOLDED:  # whole vectors of lanes, known from the divisors of the sizes
        mask = (lane < s.W * s.S) & (lane < s.C * s.S - at.u * s.W * s.S)
    else:
        mask = (local < s.W) & (c < s.C) & (n < end)
    return Lanes(n, c, mask, first)


@triton.jit
def to_lanes(value, K: tl.constexpr):
    """A value for each channel, repeated for each lane of the channel."""
    if K.BLOCK_N == 1:
        return value
    else:
        shape: tl.constexpr = [K.BLOCK_N, K.BLOCK_C]
        return tl.reshape(tl.broadcast_to(value[None, :], shape), [K.BLOCK_N * K.BLOCK_C])


@triton.jit
def parameter_slot(n, c, s, K: tl.constexpr):
    """The index of (n, c) in weight and bias, and in their gradients."""
    if K.OF_SAMPLES:
        return n * s.C + c
    else:
        return c


@triton.jit
def by_channel(value, K: tl.constexpr):
    """A value for each lane, as (BLOCK_N, BLOCK_C)."""
    return tl.reshape(value, [K.BLOCK_N, K.BLOCK_C])


@triton.jit
def sum_instances(value, s, K: tl.constexpr):
    """A value for each lane, summed over the lanes of each channel."""
    if K.FOLDED:
        return tl.sum(tl.where(is_unfolded(s, K), unfolded(value, s, K), 0.0), axis=1)
    elif K.BLOCK_N == 1:
        return value
    else:
        return tl.sum(by_channel(value, K), axis=0)


@triton.jit
def sum_instances_of_both(a, b, s, K: tl.constexpr):
    """sum_instances of two values, in one round."""
    if K.FOLDED:
        there = is_unfolded(s, K)
        a = tl.where(there, unfolded(a, s, K), 0.0)
        return sum_both(a, tl.where(there, unfolded(b, s, K), 0.0), 1)
    else:
        return sum_instances(a, s, K), sum_instances(b, s, K)


@triton.jit
def unfolded(value, s, K: tl.constexpr):
    """A value for each lane of a folded tile, as (channels, positions), the latter padded."""
    lane = tl.arange(0, K.BLOCK_C)[:, None] * s.S + tl.arange(0, K.PADDED)[None, :]
    lane = tl.reshape(tl.minimum(lane, K.LANES - 1), [K.BLOCK_C * K.PADDED])
    return tl.reshape(tl.gather(value, lane, 0), [K.BLOCK_C, K.PADDED])


@triton.jit
def is_unfolded(s, K: tl.constexpr):
    """Which positions of `unfolded` exist."""
    there = tl.arange(0, K.PADDED)[None, :] < s.S
    return tl.broadcast_to(there, [K.BLOCK_C, K.PADDED])


@triton.jit
def is_first(index, lanes):
    """Whether a program's index is 0, as a mask for the lanes."""
    return tl.zeros_like(lanes) + index == 0


# --- tiles ---


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
def resident_tile(at, s, K: tl.constexpr):
    """A member's only tile: its part is a block of positions or, over a batch, of instances."""
    instances: tl.constexpr = tile_instances(K.BLOCK_N, K.BLOCK_S, K.ROW)
    width: tl.constexpr = tile_width(K.BLOCK_S, K.ROW)
    s_blocks = tl.cdiv(s.S, width)
    start = (at.part % s_blocks).to(tl.int64) * width
    return tile_of(at.n + (at.part // s_blocks) * instances, start, at, s, K)


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
