"""Channels of x, seen as (N, C, S): units, their members, and the lanes of a tile.

A *unit* is merged together: one or several whole sets of neighbouring channels. Its *members* are
the programs that share reading it. A *lane* of a tile is one (n, c), of BLOCK_N instances x BLOCK_C
channels, channels fastest.

Sizes come unspecialised, so that a new batch size needs no compilation. 128-bit accesses need to
know a power of two that divides the memory-contiguous axis (S; for channels last C and W).
"""

import triton
import triton.language as tl

from .arithmetic import sum_both
from .channel_types import Channels, Lanes, Member, Sizes

# --- sizes, units, members ---


@triton.jit
def sizes(N, C, S, D, W, u_blocks, parts, steps, K: tl.constexpr):
    """C, S and W written so that the compiler sees their divisors: as products."""
    return Sizes(
        N, C * K.ALIGN_C, S * K.ALIGN_S, D, W * K.ALIGN_W, u_blocks, parts, steps
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
    return Member(member, n, u, block, part, tl.full([], 0, tl.int64))


# --- lanes and channels ---


@triton.jit
def unit_channels(u, block, s, K: tl.constexpr):
    BLOCK_C: tl.constexpr = K.BLOCK_C
    return block_of_channels(u, block, BLOCK_C, s)


@triton.jit
def first_channels(u, s, K: tl.constexpr):
    """The first channel of each set of a unit."""
    if K.SETS == 0:
        return unit_channels(u, 0, s, K)
    else:
        local = tl.arange(0, K.SETS) * s.D
        c = u * s.W + local
        return Channels(local, c, (local < s.W) & (c < s.C))


@triton.jit
def in_sets(local, s, K: tl.constexpr):
    """Whether a channel, counted in the unit, is of a set: (channels, SETS)."""
    return (local // s.D)[:, None] == tl.arange(0, K.SETS)[None, :]


# Scalars: Triton 3.6's interpreter passes a NamedTuple as a plain tuple.
@triton.constexpr_function
def merged_at_once(block, sets):
    """Channels of a unit that are merged at a time. If a tile has few channels of one large set,
    more than those: each block is waited for."""
    return max(block, 32) if sets == 1 else block


@triton.constexpr_function
def sets_at_once(block, sets):
    """Sets of a unit that are merged at a time: its channels, if each is one."""
    return sets if sets > 0 else block


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
    if K.FOLDED:
        local = channel_of(lane, s)
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
def channel_of(lane, s):
    """The channel of a folded tile's lane, counted in the tile. Exact for less than 2^20 lanes, and
    quicker than an integer division."""
    return ((lane.to(tl.float32) + 0.5) * (1.0 / s.S.to(tl.float32))).to(tl.int32)


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
        return tl.sum(sums_of_runs(value, s, K), axis=1)
    elif K.BLOCK_N == 1:
        return value
    else:
        return tl.sum(by_channel(value, K), axis=0)


@triton.jit
def sum_instances_of_both(a, b, s, K: tl.constexpr):
    """sum_instances of two values, in one round."""
    if K.FOLDED:
        return sum_both(sums_of_runs(a, s, K), sums_of_runs(b, s, K), 1)
    else:
        return sum_instances(a, s, K), sum_instances(b, s, K)


# --- runs of lanes: the neighbouring ones that a thread of a folded tile has ---


@triton.jit
def by_run(value, K: tl.constexpr):
    """A value for each lane of a folded tile, as (runs, RUN)."""
    return tl.reshape(value, [K.LANES // K.RUN, K.RUN])


@triton.jit
def in_first_part(s, K: tl.constexpr):
    """Which lanes of each run are of the channel of its first lane. The others are of the next one:
    no run has lanes of three."""
    start = tl.arange(0, K.LANES // K.RUN) * K.RUN
    channel = channel_of(start, s)
    return tl.arange(0, K.RUN)[None, :] < ((channel + 1) * s.S - start)[:, None]


@triton.jit
def sums_of_runs(value, s, K: tl.constexpr):
    """A value for each lane, summed over the lanes of each part of a run, as `by_part`."""
    value, first = by_run(value, K), in_first_part(s, K)
    one, other = sum_both(tl.where(first, value, 0.0), tl.where(first, 0.0, value), 1)
    return tl.where(is_part(s, K), by_part(one, other, s, K), 0.0)


@triton.jit
def by_part(one, other, s, K: tl.constexpr):
    """Values of the first and second parts of runs, as (channels, parts of a channel), padded.

    Parts are sorted by channel here, not lanes: a gather of all lanes takes hundreds of shuffles.
    """
    SHAPE: tl.constexpr = [K.BLOCK_C, K.PADDED]
    start, run = runs_of_channels(s, K)
    last: tl.constexpr = K.LANES // K.RUN - 1
    index = tl.reshape(tl.minimum(run, last), [K.BLOCK_C * K.PADDED])
    one = tl.reshape(tl.gather(one, index, 0), SHAPE)
    other = tl.reshape(tl.gather(other, index, 0), SHAPE)
    return tl.where(run * K.RUN < start, other, one)


@triton.jit
def is_part(s, K: tl.constexpr):
    """Which elements of `by_part` exist."""
    start, run = runs_of_channels(s, K)
    return run * K.RUN < start + s.S


@triton.jit
def runs_of_channels(s, K: tl.constexpr):
    """(the first lane of each channel, the runs from the one that has it on)."""
    start = tl.arange(0, K.BLOCK_C)[:, None] * s.S
    return start, start // K.RUN + tl.arange(0, K.PADDED)[None, :]


@triton.jit
def is_first(index, lanes):
    """Whether a program's index is 0, as a mask for the lanes."""
    return tl.zeros_like(lanes) + index == 0
