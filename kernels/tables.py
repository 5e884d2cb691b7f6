"""Where statistics and sums lie in memory: those that a set keeps, and what programs publish.

Kept statistics and sums are planes of one allocation, one element for each set. A table is what the
programs of a unit leave for whoever merges: planes (n, piece, c), n being 0 throughout where sets
run over the batch. It is read in the order of its pieces, so that results have the same bits each
time, and past the L1 cache, which other programs' stores do not reach.
"""

import triton
import triton.language as tl

from .arithmetic import chan_merge, merge_along


@triton.jit
def stat_planes(stats_ptr, N, C, D, BATCH: tl.constexpr, MIX: tl.constexpr):
    """Pointers to (center, offset, rstd) of the sets and to those of a mixture's batch: one
    allocation, plane after plane."""
    if BATCH and not MIX:
        plane = C.to(tl.int64)
    else:
        plane = N.to(tl.int64) * (C // D)
    batch_ptr = stats_ptr + 3 * plane
    return (stats_ptr, stats_ptr + plane, stats_ptr + 2 * plane), (
        batch_ptr, batch_ptr + C, batch_ptr + 2 * C,
    )  # fmt: skip


@triton.jit
def sum_planes(sums_ptr, N, C, D, BATCH: tl.constexpr):
    """Pointers to each set's weighted sums of g and of g (x - mean), and to a mixture's unweighted
    sums over the batch: one allocation, plane after plane."""
    plane = C.to(tl.int64) if BATCH else N.to(tl.int64) * (C // D)
    batch_ptr = sums_ptr + 2 * plane
    return sums_ptr, sums_ptr + plane, batch_ptr, batch_ptr + C


@triton.jit
def set_slot(n, c, C, D, BATCH: tl.constexpr):
    """Where the statistics of the set of (n, c) are kept."""
    if BATCH:
        return c.to(tl.int64)
    else:
        return n * (C // D) + c // D


@triton.jit
def load_stats(stats, slot, mask):
    """(center, offset, rstd) of sets: the mean is center + offset, a remainder below its digits."""
    center = tl.load(stats[0] + slot, mask=mask, other=0.0)
    offset = tl.load(stats[1] + slot, mask=mask, other=0.0)
    return center, offset, tl.load(stats[2] + slot, mask=mask, other=0.0)


@triton.jit
def store_stats(stats, slot, mask, center, offset, rstd):
    tl.store(stats[0] + slot, center, mask=mask)
    tl.store(stats[1] + slot, offset, mask=mask)
    tl.store(stats[2] + slot, rstd, mask=mask)


@triton.jit
def table_planes(table_ptr, N, C, pieces, BATCH: tl.constexpr):
    """Pointers to the planes of a table (plane, n, piece, c)."""
    plane = tl.zeros([], tl.int64) + pieces * C if BATCH else N.to(tl.int64) * pieces * C
    return table_ptr, table_ptr + plane, table_ptr + 2 * plane, table_ptr + 3 * plane


@triton.jit
def table_slot(n, piece, c, C, pieces):
    """Where in each plane of a table (n, piece, c) is."""
    return (n * pieces + piece) * C + c


@triton.jit
def publish_moments(table, n, piece, c, mask, C, pieces, count, mean, m2):
    """Leave what a piece has found of each of its channels; see piece_moments."""
    slot = table_slot(n, piece, c, C, pieces)
    tl.store(table[0] + slot, count, mask=mask)
    tl.store(table[1] + slot, mean, mask=mask)
    tl.store(table[2] + slot, m2, mask=mask)


@triton.jit
def publish_sums(table, n, piece, c, mask, C, pieces, g, gx):
    """Leave a piece's sums of g and g (x - center) for each of its channels; see piece_sums."""
    slot = table_slot(n, piece, c, C, pieces)
    tl.store(table[0] + slot, g, mask=mask)
    tl.store(table[1] + slot, gx, mask=mask)


@triton.constexpr_function
def table_rows(BLOCK_C):
    """Table entries of a channel that are loaded together: 1,024 for all channels of a block."""
    return max(1024 // BLOCK_C, 1)


@triton.jit
def piece_moments(table, n, c, mask, C, pieces, BLOCK_C: tl.constexpr):
    """(count, mean, M2) of the channels c of one n: their pieces merged in order."""
    BLOCK_P: tl.constexpr = table_rows(BLOCK_C)
    zero = tl.zeros([BLOCK_P, BLOCK_C], table[0].dtype.element_ty)
    count, mean, m2 = zero, zero, zero
    for first in range(0, pieces, BLOCK_P):  # element by element: no barrier inside the loop
        piece = first + tl.arange(0, BLOCK_P)
        slot = table_slot(n, piece[:, None], c[None, :], C, pieces)
        here = (piece < pieces)[:, None] & mask[None, :]
        p_count = tl.load(table[0] + slot, mask=here, other=0.0, cache_modifier=".cg")
        p_mean = tl.load(table[1] + slot, mask=here, other=0.0, cache_modifier=".cg")
        p_m2 = tl.load(table[2] + slot, mask=here, other=0.0, cache_modifier=".cg")
        count, mean, m2 = chan_merge(count, mean, m2, p_count, p_mean, p_m2)
    return merge_along(count, mean, m2, 0)


@triton.jit
def piece_sums(table_ptr, n, c, mask, C, pieces, BLOCK_C: tl.constexpr):
    """A table's column sums over the pieces of one n, in order."""
    BLOCK_P: tl.constexpr = table_rows(BLOCK_C)
    total = tl.zeros([BLOCK_P, BLOCK_C], table_ptr.dtype.element_ty)
    for first in range(0, pieces, BLOCK_P):
        piece = first + tl.arange(0, BLOCK_P)
        slot = table_slot(n, piece[:, None], c[None, :], C, pieces)
        here = (piece < pieces)[:, None] & mask[None, :]
        total += tl.load(table_ptr + slot, mask=here, other=0.0, cache_modifier=".cg")
    return tl.sum(total, axis=0)
