"""Sums along rows: of a tile, and of the results that parts of rows leave for one another."""

import triton
import triton.language as tl

from .arithmetic import LANES_FIRST, across, centred, chan_merge, product, sum_both
from .row_tiles import only_present
from .tables import part_moments, part_sums

# With so many columns in a tile, each thread has several. This holds even for rows that are not
# aligned: there neighbouring threads have one column each, and 16 warps 512.
ENOUGH_TO_FUSE = tl.constexpr(1024)
SOME_PARTS = tl.constexpr(8)  # of a row, loaded at a time if there are many


@triton.jit
def normalised(x, stats, tile, K: tl.constexpr):
    """x_hat of a tile as it is stored."""
    return only_present((x.to(stats.rstd.dtype) - stats.mean) * stats.rstd, tile, K)


@triton.jit
def sum_along(x):
    """The sum along each row of a tile."""
    OUTER: tl.constexpr = 1 if LANES_FIRST else 0
    return tl.sum(tl.sum(x, axis=OUTER, keep_dims=True), axis=2, keep_dims=True)


@triton.jit
def row_sum(a, b, K: tl.constexpr):
    """The sum of a * b along each row.

    A product and the first step of a sum across lanes must not become one operation (see
    `product`). If each thread has several columns, their sum comes in between.
    """
    if K.BLOCK_L >= ENOUGH_TO_FUSE:
        return sum_along(a * b)
    else:
        return sum_along(product(a, b))


@triton.jit
def row_sums(x, a, b, K: tl.constexpr):
    """The sums of x and of a * b along each row, in one round."""
    return sums_along(x, a * b if K.BLOCK_L >= ENOUGH_TO_FUSE else product(a, b))


@triton.jit
def sums_along(x, products):
    """The sums of both along each row, in one round."""
    OUTER: tl.constexpr = 1 if LANES_FIRST else 0
    x = tl.sum(x, axis=OUTER, keep_dims=True)
    products = tl.sum(products, axis=OUTER, keep_dims=True)
    return sum_both(x, products, 2, True)


@triton.jit
def row_moments(x, count, tile, K: tl.constexpr):
    """(mean, M2) of each row of a tile, which has `count` columns.

    Each value is weighted first: a plain sum would overflow though the mean does not.
    """
    if K.CENTRED:
        mean = row_sum(x, tl.zeros_like(x) + 1.0 / count, K)
        deviation = only_present(x - mean, tile, K)
        total, squares = row_sums(deviation, deviation, deviation, K)
        return centred(mean, total, squares, count)
    else:
        m2 = row_sum(x, x, K)
        return tl.zeros_like(m2), m2


@triton.jit
def merge_moments(count, mean, m2, count_b, mean_b, m2_b, K: tl.constexpr):
    """The merged moments of two parts of the same rows."""
    if K.CENTRED:
        return chan_merge(count, mean, m2, count_b, mean_b, m2_b)
    else:
        return count, mean, m2 + m2_b


@triton.jit
def gradient_sums(weighted, x_hat, K: tl.constexpr):
    """Sums of gamma g and gamma g x_hat for each row of a tile; the first is for the mean."""
    if K.CENTRED:
        return row_sums(weighted, weighted, x_hat, K)
    else:
        gx = row_sum(weighted, x_hat, K)
        return tl.zeros_like(gx), gx


# --- results that parts of rows leave for one another ---


@triton.jit
def publish(table_ptr, values, part, tile, s):
    """A tuple of values of each row, a plane (parts, R) each."""
    slot = part * s.R.to(tl.int64) + tile.row
    for i in tl.static_range(len(values)):
        tl.store(table_ptr + i * s.parts * s.R.to(tl.int64) + slot, values[i], mask=tile.row < s.R)


@triton.jit
def publish_moments(table_ptr, count, mean, m2, part, tile, s, K: tl.constexpr):
    if K.CENTRED:
        publish(table_ptr, (count, mean, m2), part, tile, s)
    else:
        publish(table_ptr, (m2,), part, tile, s)


@triton.jit
def published_moments(table_ptr, tile, s, K: tl.constexpr):
    """(mean, M2) of whole rows, from the published moments of their parts, in order."""
    BLOCK_R: tl.constexpr = K.BLOCK_R
    row = tl.reshape(tile.row, [BLOCK_R])
    if K.CENTRED:
        plane = s.parts * s.R.to(tl.int64)
        planes = (table_ptr, table_ptr + plane, table_ptr + 2 * plane)
        _, mean, m2 = part_moments(planes, 0, row, row < s.R, s.R, s.parts, BLOCK_R)
        return across(mean), across(m2)
    else:
        m2 = across(part_sums(table_ptr, 0, row, row < s.R, s.R, s.parts, BLOCK_R))
        return tl.zeros_like(m2), m2


@triton.jit
def publish_sums(table_ptr, g, gx, part, tile, s, K: tl.constexpr):
    if K.CENTRED:
        publish(table_ptr, (gx, g), part, tile, s)
    else:
        publish(table_ptr, (gx,), part, tile, s)


@triton.jit
def published_sums(table_ptr, tile, s, K: tl.constexpr):
    """(g, gx) of whole rows, from the published sums of their parts, in order."""
    gx = few_sums(table_ptr, tile, s, K)
    if K.CENTRED:
        return few_sums(table_ptr + s.parts * s.R.to(tl.int64), tile, s, K), gx
    else:
        return tl.zeros_like(gx), gx


@triton.jit
def few_sums(table_ptr, tile, s, K: tl.constexpr):
    """Each row's sum over its parts, in order. Some parts are loaded at a time, past the L1 cache:
    other programs' stores do not reach that."""
    BLOCK_P: tl.constexpr = K.FEW_PARTS if K.FEW_PARTS > 0 else SOME_PARTS
    total = loaded_parts(table_ptr, 0, tile, s, K, BLOCK_P)
    if K.FEW_PARTS == 0:
        for first in range(BLOCK_P, s.parts, BLOCK_P):
            total += loaded_parts(table_ptr, first, tile, s, K, BLOCK_P)
    return across(tl.sum(total, axis=0))


@triton.jit
def loaded_parts(table_ptr, first, tile, s, K: tl.constexpr, BLOCK_P: tl.constexpr):
    part, row = first + tl.arange(0, BLOCK_P), tl.reshape(tile.row, [K.BLOCK_R])
    slot = part[:, None] * s.R.to(tl.int64) + row[None, :]
    here = (part < s.parts)[:, None] & (row < s.R)[None, :]
    return tl.load(table_ptr + slot, mask=here, other=0.0, cache_modifier=".cg")
