"""Results that programs leave for a merge: planes (n, part, column); columns are channels or rows.

They are read in the order of the parts, so that results have the same bits each time. They are read
past the L1 cache: other programs' stores do not reach that.
"""

import triton
import triton.language as tl

from .arithmetic import chan_merge, merge_along, sum_both


@triton.constexpr_function
def table_rows(columns):
    """Entries of a column that are loaded together: up to 1,024 for all columns of a block."""
    return min(max(1024 // columns, 1), 128)


@triton.jit
def part_moments(planes, n, column, mask, columns, parts, BLOCK: tl.constexpr):
    """(count, mean, M2) of the columns of one n, their parts merged in order."""
    BLOCK_P: tl.constexpr = table_rows(BLOCK)
    zero = tl.zeros([BLOCK_P, BLOCK], planes[0].dtype.element_ty)
    count, mean, m2 = zero, zero, zero
    for first in range(0, parts, BLOCK_P):  # element by element: no barrier inside the loop
        part = first + tl.arange(0, BLOCK_P)
        slot = (n * parts + part[:, None]) * columns + column[None, :]
        here = (part < parts)[:, None] & mask[None, :]
        p_count = tl.load(planes[0] + slot, mask=here, other=0.0, cache_modifier=".cg")
        p_mean = tl.load(planes[1] + slot, mask=here, other=0.0, cache_modifier=".cg")
        p_m2 = tl.load(planes[2] + slot, mask=here, other=0.0, cache_modifier=".cg")
        count, mean, m2 = chan_merge(count, mean, m2, p_count, p_mean, p_m2)
    return merge_along(count, mean, m2, 0)


@triton.jit
def part_sums(plane, n, column, mask, columns, parts, BLOCK: tl.constexpr):
    """The columns' sums over the parts of one n, in order."""
    BLOCK_P: tl.constexpr = table_rows(BLOCK)
    total = tl.zeros([BLOCK_P, BLOCK], plane.dtype.element_ty)
    for first in range(0, parts, BLOCK_P):
        part = first + tl.arange(0, BLOCK_P)
        slot = (n * parts + part[:, None]) * columns + column[None, :]
        here = (part < parts)[:, None] & mask[None, :]
        total += tl.load(plane + slot, mask=here, other=0.0, cache_modifier=".cg")
    return tl.sum(total, axis=0)


@triton.jit
def part_pairs(a, b, n, column, mask, columns, parts, BLOCK: tl.constexpr):
    """part_sums of two planes, read and added up together."""
    BLOCK_P: tl.constexpr = (table_rows(BLOCK) + 1) // 2  # for each: both take registers
    of_a = tl.zeros([BLOCK_P, BLOCK], a.dtype.element_ty)
    of_b = of_a
    for first in range(0, parts, BLOCK_P):
        part = first + tl.arange(0, BLOCK_P)
        slot = (n * parts + part[:, None]) * columns + column[None, :]
        here = (part < parts)[:, None] & mask[None, :]
        of_a += tl.load(a + slot, mask=here, other=0.0, cache_modifier=".cg")
        of_b += tl.load(b + slot, mask=here, other=0.0, cache_modifier=".cg")
    return sum_both(of_a, of_b, 0)
