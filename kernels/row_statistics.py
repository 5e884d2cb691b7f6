"""Statistics of rows: of tiles, of pieces in a table, and those that a forward keeps.

Where CENTRED they are layer norm's, a mean and the squares of deviations from it. Else they are RMS
norm's, squares about 0: the mean below is then a constant 0, which nothing stores or loads, and
which the compiler does away with wherever it is subtracted.
"""

import triton
import triton.language as tl

from .arithmetic import chan_merge, product, tile_moments
from .tables import piece_moments, piece_sums


@triton.jit
def row_moments(x, mask, count, CENTRED: tl.constexpr):
    """(mean, M2) of each row of a register tile, which is 0 outside the mask."""
    if CENTRED:
        return tile_moments(x, mask, count)
    else:
        return tl.zeros_like(count), tl.sum(product(x, x), axis=1)


@triton.jit
def merge_rows(count, mean, m2, count_b, mean_b, m2_b, CENTRED: tl.constexpr):
    """The moments of two pieces of the same rows together."""
    if CENTRED:
        return chan_merge(count, mean, m2, count_b, mean_b, m2_b)
    else:
        return count, mean, m2 + m2_b


@triton.jit
def publish_moments(
    table_ptr, count, mean, m2, piece, row, R, pieces, CENTRED: tl.constexpr
):  # fmt: skip
    """Into (3, pieces, R): count, mean and M2; not CENTRED, (pieces, R) of M2."""
    slot = piece * R.to(tl.int64) + row
    if CENTRED:
        plane = pieces * R.to(tl.int64)
        tl.store(table_ptr + slot, count, mask=row < R)
        tl.store(table_ptr + plane + slot, mean, mask=row < R)
        slot += 2 * plane
    tl.store(table_ptr + slot, m2, mask=row < R)


@triton.jit
def published_moments(table_ptr, row, R, pieces, CENTRED: tl.constexpr, BLOCK_R: tl.constexpr):
    """(mean, M2) of whole rows from what publish_moments left of their pieces, in order."""
    if CENTRED:
        plane = pieces * R.to(tl.int64)
        table = (table_ptr, table_ptr + plane, table_ptr + 2 * plane)
        _, mean, m2 = piece_moments(table, 0, row, row < R, R, pieces, BLOCK_R)
        return mean, m2
    else:
        m2 = piece_sums(table_ptr, 0, row, row < R, R, pieces, BLOCK_R)
        return tl.zeros_like(m2), m2


@triton.jit
def store_row_stats(stats_ptr, mean, rstd, row, R, mask, CENTRED: tl.constexpr):
    """Into (2, R): rstd and mean; not CENTRED, (R,) of rstd."""
    tl.store(stats_ptr + row, rstd, mask=mask)
    if CENTRED:
        tl.store(stats_ptr + R + row, mean, mask=mask)


@triton.jit
def load_row_stats(stats_ptr, row, R, CENTRED: tl.constexpr):
    """(mean, rstd) that store_row_stats has left."""
    rstd = tl.load(stats_ptr + row, mask=row < R, other=0.0)
    if CENTRED:
        return tl.load(stats_ptr + R + row, mask=row < R, other=0.0), rstd
    else:
        return tl.zeros_like(rstd), rstd


@triton.jit
def row_gradient_sums(weighted, x_hat, CENTRED: tl.constexpr):
    """Of each row of a tile the sums of gamma g and gamma g x_hat; the first is the mean's."""
    gx = tl.sum(product(weighted, x_hat), axis=1)
    if CENTRED:
        return tl.sum(weighted, axis=1), gx
    else:
        return tl.zeros_like(gx), gx


@triton.jit
def publish_sums(table_ptr, g, gx, piece, row, R, pieces, CENTRED: tl.constexpr):
    """Into (2, pieces, R): gx and g; not CENTRED, (pieces, R) of gx."""
    slot = piece * R.to(tl.int64) + row
    tl.store(table_ptr + slot, gx, mask=row < R)
    if CENTRED:
        tl.store(table_ptr + pieces * R.to(tl.int64) + slot, g, mask=row < R)


@triton.jit
def published_sums(table_ptr, row, R, pieces, CENTRED: tl.constexpr, BLOCK_R: tl.constexpr):
    """(g, gx) of whole rows from what publish_sums left of their pieces, in order."""
    gx = piece_sums(table_ptr, 0, row, row < R, R, pieces, BLOCK_R)
    if CENTRED:
        plane = pieces * R.to(tl.int64)
        return piece_sums(table_ptr + plane, 0, row, row < R, R, pieces, BLOCK_R), gx
    else:
        return tl.zeros_like(gx), gx
