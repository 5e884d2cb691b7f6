"""Where a tile of x lies: device functions on units, lanes and positions.

x is (N, C, S), contiguous or with its channels last in memory (N, S, C). A *tile* is a register
block of lanes and positions; a lane is one (n, c), of BLOCK_N instances x BLOCK_C channels,
channels fastest. A *unit* is what is merged together, one or several whole reduction sets of
neighbouring channels; its *members* are the programs that share reading it. `tilings.py` chooses
the numbers.

Sizes come unspecialised, so that no batch size compiles anew; what 128-bit accesses need to know is
ALIGN, a power of two that divides the memory-contiguous axis (S, channels last C and W).
"""

import triton
import triton.language as tl

from .arithmetic import across, across_lanes

# The sizes that every kernel of channels takes, in the order of `Geometry.scalars`.
SCALARS = [
    "N", "C", "S", "D", "W", "u_blocks", "row_blocks", "s_blocks", "pieces", "steps", "units",
    "clusters",
]  # fmt: skip


@triton.jit
def sizes(C, S, W, CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr, ALIGN_W: tl.constexpr):
    """C, S and W as the compiler has to see them: products with what they are known to be
    multiples of. The host passes the contiguous axis in units of ALIGN, W in units of ALIGN_W."""
    if CHANNELS_LAST:
        return C * ALIGN, S, W * ALIGN_W
    else:
        return C, S * ALIGN, W * ALIGN_W


@triton.jit
def unit_member(program, units, members, BATCH: tl.constexpr):
    """(unit, member) of a program in a launch that has one for each member of each unit.

    Units that run over the batch are walked member by member, so that programs that run together
    read memory that lies together.
    """
    if BATCH:
        return program % units, program // units
    else:
        return program // members, program % members


@triton.jit
def place(unit, member, u_blocks, pieces):
    """(n, u, r, piece): the unit's instance and channel block, the member's row block within the
    unit, and its piece of the positions."""
    return (unit // u_blocks).to(tl.int64), unit % u_blocks, member // pieces, member % pieces


@triton.jit
def unit_channels(u, r, W, C, BLOCK_C: tl.constexpr):
    """(local, c, mask): the channels of row block r of a unit, counted in the unit and in x."""
    local = r * BLOCK_C + tl.arange(0, BLOCK_C)
    c = u * W + local
    return local, c, (local < W) & (c < C)


@triton.jit
def tile_lanes(n, u, r, N, W, C, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr):
    """(n, c, mask) of each lane of the tile whose first instance is n."""
    lane = tl.arange(0, BLOCK_N * BLOCK_C)
    if BLOCK_N == 1:
        local = r * BLOCK_C + lane
        n = n + tl.zeros([BLOCK_C], tl.int64)
    else:
        local = r * BLOCK_C + lane % BLOCK_C
        n = n + lane // BLOCK_C
    c = u * W + local
    return n, c, (local < W) & (c < C) & (n < N)


@triton.jit
def to_lanes(value, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr):
    """A value of each channel, repeated for each lane's channel."""
    if BLOCK_N == 1:
        return value
    else:
        return tl.reshape(tl.broadcast_to(value[None, :], [BLOCK_N, BLOCK_C]), [BLOCK_N * BLOCK_C])


@triton.jit
def by_channel(value, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr):
    """A value of each lane as (BLOCK_N, BLOCK_C)."""
    return tl.reshape(value, [BLOCK_N, BLOCK_C])


@triton.jit
def sum_channels(value, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr):
    """The sum over a tile's instances of a value of each lane: one of each channel."""
    if BLOCK_N == 1:
        return value
    else:
        return tl.sum(by_channel(value, BLOCK_N, BLOCK_C), axis=0)


@triton.jit
def first_element(n, c, C, S, CHANNELS_LAST: tl.constexpr):
    """Offset (int64) of position 0 of (n, c)."""
    if CHANNELS_LAST:
        return n * S * C + c
    else:
        return (n * C + c) * S


@triton.constexpr_function
def inner_positions(BLOCK_S, lanes, element_type):
    """Positions of a contiguous tile's inner axis: 512 bytes, what a warp loads at once, or all of
    them where all warps share one lane."""
    return BLOCK_S if lanes == 1 else min(BLOCK_S, 4096 // element_type.primitive_bitwidth)


@triton.jit
def split_positions(BLOCK_S: tl.constexpr, INNER: tl.constexpr):
    """The positions of a contiguous tile, counted from its first: all but the axis of the lanes."""
    outer = tl.arange(0, BLOCK_S // INNER) * INNER
    return across_lanes(outer) + tl.arange(0, INNER)[None, None, :]


@triton.jit
def tile_offsets(
    n, c, start, C, S, CHANNELS_LAST: tl.constexpr, BLOCK_S: tl.constexpr, INNER: tl.constexpr
):
    """Element offsets of the tile whose first position is `start` (int64).

    Channels last it is flat; contiguous, positions are split in two: see `arithmetic.py`.
    """
    first = first_element(n, c, C, S, CHANNELS_LAST)
    if CHANNELS_LAST:
        stride = tl.zeros([1], tl.int64) + C  # start * C may pass 2^31
        return (first + stride * start)[:, None] + (tl.arange(0, BLOCK_S) * C)[None, :]
    else:
        return across(first + start, False) + split_positions(BLOCK_S, INNER)


@triton.jit
def tile_mask(
    lanes, start, S, CHANNELS_LAST: tl.constexpr, BLOCK_S: tl.constexpr, INNER: tl.constexpr
):
    """Which elements of a tile there are."""
    if CHANNELS_LAST:
        return lanes[:, None] & (tl.arange(0, BLOCK_S) < S - start)[None, :]
    else:
        return across(lanes, False) & (split_positions(BLOCK_S, INNER) < S - start)


@triton.jit
def is_first(index, lanes):
    """Whether a program's index is 0, for each of the lanes: a mask to join with theirs."""
    return tl.zeros_like(lanes) + index == 0


@triton.jit
def load_pivot(x_ptr, n, c, mask, D, C, S, CHANNELS_LAST: tl.constexpr, ACC: tl.constexpr):
    """The value that the statistics of a set are relative to: its first, in the instance n.

    Moments of x - pivot are as exact as std, not mean, allows: no rounding of a mean >> std is ever
    met. A set has D neighbouring channels.
    """
    offset = first_element(n, c - c % D, C, S, CHANNELS_LAST)
    return tl.load(x_ptr + offset, mask=mask, other=0.0).to(ACC)
