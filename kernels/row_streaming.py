"""Layer and RMS norm of rows that no program holds: two launches, each of which reads the tensor.

The second walks backwards, so that it starts with what the first has left in the L2 cache.
"""

import triton
import triton.language as tl

from .arithmetic import accumulation_type, inverse_std, product
from .row_statistics import (
    load_row_stats,
    merge_rows,
    publish_moments,
    publish_sums,
    published_moments,
    published_sums,
    row_gradient_sums,
    row_moments,
    store_row_stats,
)
from .row_tiles import (
    add_partials,
    plus_addend,
    row_dx,
    row_gradient,
    row_output,
    row_tile,
    store_partials,
)
from .sync import arrived_last

SCALARS = ["R", "L", "row_blocks", "pieces", "steps", "groups"]


@triton.jit(do_not_specialize=SCALARS)
def row_moments_kernel(
    x_ptr,  # (R, L)
    addend_ptr,  # (R, L) or None: the moments are those of x + addend
    sum_ptr,  # (R, L) or None: that sum
    stats_ptr,  # (2, R): rstd and mean; for RMS norm (R,)
    table_ptr,  # (3, pieces, R), for RMS norm (pieces, R)
    tickets_ptr,  # (row_blocks,)
    eps: tl.float64,
    R,
    L,
    row_blocks,
    pieces,
    steps,
    groups,
    CENTRED: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Moments of a piece of each row; the last program of a block of rows merges its pieces."""
    ACC: tl.constexpr = accumulation_type(x_ptr.dtype.element_ty)
    L = L * ALIGN
    program = tl.program_id(0)
    block = program // pieces
    piece = program % pieces
    first = tl.full([], BLOCK_R, tl.int64) * block
    row = first + tl.arange(0, BLOCK_R)
    count = tl.zeros([BLOCK_R], ACC)
    mean, m2 = count, count
    begin = piece.to(tl.int64) * steps * BLOCK_L
    for start in range(begin, tl.minimum(begin + steps * BLOCK_L, L), BLOCK_L):
        x, _, _, mask, offsets = row_tile(x_ptr, first, start, R, L, BLOCK_R, BLOCK_L)
        if addend_ptr is not None:
            x = plus_addend(x, addend_ptr, mask, offsets, ACC)
            tl.store(sum_ptr + offsets, x, mask=mask)
        tile_count = tl.zeros([BLOCK_R], ACC) + tl.minimum(L - start, BLOCK_L)
        tile_mean, tile_m2 = row_moments(x.to(ACC), mask, tile_count, CENTRED)
        count, mean, m2 = merge_rows(
            count, mean, m2, tile_count, tile_mean, tile_m2, CENTRED
        )  # fmt: skip
    publish_moments(table_ptr, count, mean, m2, piece, row, R, pieces, CENTRED)
    if arrived_last(tickets_ptr + block, pieces):
        mean, m2 = published_moments(table_ptr, row, R, pieces, CENTRED, BLOCK_R)
        store_row_stats(stats_ptr, mean, inverse_std(m2 / L, eps), row, R, row < R, CENTRED)


@triton.jit(do_not_specialize=SCALARS)
def row_apply_kernel(
    x_ptr,  # (R, L)
    residual_ptr,  # (R, L) or None
    weight_ptr,  # (L,) or None
    bias_ptr,  # (L,) or None
    y_ptr,  # (R, L)
    bits_ptr,  # ReLU's bits, or None
    stats_ptr,  # (2, R); for RMS norm (R,)
    R,
    L,
    row_blocks,
    pieces,
    steps,
    groups,
    CENTRED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """y = act((x - mean) * rstd * gamma + beta + residual), a tile a program."""
    L = L * ALIGN
    column_blocks = tl.cdiv(L, BLOCK_L)
    program = row_blocks * column_blocks - 1 - tl.program_id(0)
    first = (program // column_blocks).to(tl.int64) * BLOCK_R
    start = (program % column_blocks).to(tl.int64) * BLOCK_L
    x, row, column, mask, offsets = row_tile(x_ptr, first, start, R, L, BLOCK_R, BLOCK_L)
    mean, rstd = load_row_stats(stats_ptr, row, R, CENTRED)
    row_output(
        x, mean, rstd, residual_ptr, weight_ptr, bias_ptr, y_ptr, bits_ptr, first, start, column,
        mask, offsets, R, L, ACTIVATION, BLOCK_R, BLOCK_L,
    )  # fmt: skip


@triton.jit(do_not_specialize=SCALARS)
def row_sums_kernel(
    x_ptr,  # (R, L)
    dy_ptr,  # (R, L)
    residual_ptr,  # (R, L) or None: for smooth activations
    bits_ptr,  # ReLU's bits, or None
    weight_ptr,  # (L,) or None
    bias_ptr,  # (L,) or None
    stats_ptr,  # (2, R); for RMS norm (R,)
    table_ptr,  # (2, column_blocks, R), for RMS norm (column_blocks, R): see publish_sums
    partial_ptr,  # (2, groups, L), for RMS norm (groups, L); None where nobody asks
    R,
    L,
    row_blocks,
    pieces,
    steps,
    groups,
    CENTRED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Each program takes a slice of columns through a group of rows."""
    ACC: tl.constexpr = accumulation_type(x_ptr.dtype.element_ty)
    L = L * ALIGN
    column_blocks = tl.cdiv(L, BLOCK_L)
    group = tl.program_id(0) // column_blocks
    piece = tl.program_id(0) % column_blocks
    start = piece.to(tl.int64) * BLOCK_L
    dweight = tl.zeros([BLOCK_L], ACC)
    dbias = tl.zeros([BLOCK_L], ACC)
    for block in range(group, row_blocks, groups):
        first = tl.full([], BLOCK_R, tl.int64) * block
        x, row, column, mask, offsets = row_tile(x_ptr, first, start, R, L, BLOCK_R, BLOCK_L)
        dy = tl.load(dy_ptr + offsets, mask=mask, other=0.0)
        mean, rstd = load_row_stats(stats_ptr, row, R, CENTRED)
        g, x_hat, gamma = row_gradient(
            x, dy, mean, rstd, residual_ptr, weight_ptr, bias_ptr, bits_ptr, first, start, column,
            mask, offsets, R, L, ACTIVATION, BLOCK_R, BLOCK_L,
        )  # fmt: skip
        weighted = product(gamma, g.to(ACC))
        row_g, row_gx = row_gradient_sums(weighted, x_hat, CENTRED)
        publish_sums(table_ptr, row_g, row_gx, piece, row, R, column_blocks, CENTRED)
        dweight += tl.sum(product(g.to(ACC), x_hat), axis=0)
        if CENTRED:
            dbias += tl.sum(g.to(ACC), axis=0)
    if partial_ptr is not None:
        store_partials(partial_ptr, dweight, dbias, start, group, groups, L, CENTRED, BLOCK_L)


@triton.jit(do_not_specialize=SCALARS)
def row_dx_kernel(
    x_ptr,  # (R, L)
    dy_ptr,  # (R, L)
    residual_ptr,  # (R, L) or None: for smooth activations
    bits_ptr,  # ReLU's bits, or None
    weight_ptr,  # (L,) or None
    bias_ptr,  # (L,) or None
    stats_ptr,  # (2, R); for RMS norm (R,)
    table_ptr,  # (2, column_blocks, R), for RMS norm (column_blocks, R)
    partial_ptr,  # (2, groups, L), for RMS norm (groups, L), or None
    dsum_ptr,  # (R, L) or None: a gradient that x has besides
    dx_ptr,  # (R, L) or None
    dresidual_ptr,  # (R, L) or None
    dweight_ptr,  # (L,) or None
    dbias_ptr,  # (L,) or None
    R,
    L,
    row_blocks,
    pieces,
    steps,
    groups,
    CENTRED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
    PARAMETERS_L: tl.constexpr,
):
    """dx, a tile a program; the first programs add up the groups' dgamma and dbeta instead."""
    L = L * ALIGN
    column_blocks = tl.cdiv(L, BLOCK_L)
    adders = tl.cdiv(L, PARAMETERS_L) if partial_ptr is not None else 0
    program = tl.program_id(0) - adders
    if program < 0:
        if partial_ptr is not None:
            add_partials(
                partial_ptr, dweight_ptr, dbias_ptr, tl.program_id(0), groups, L, PARAMETERS_L
            )
    else:
        program = row_blocks * column_blocks - 1 - program
        first = (program // column_blocks).to(tl.int64) * BLOCK_R
        start = (program % column_blocks).to(tl.int64) * BLOCK_L
        x, row, column, mask, offsets = row_tile(x_ptr, first, start, R, L, BLOCK_R, BLOCK_L)
        dy = tl.load(dy_ptr + offsets, mask=mask, other=0.0)
        mean, rstd = load_row_stats(stats_ptr, row, R, CENTRED)
        g, x_hat, gamma = row_gradient(
            x, dy, mean, rstd, residual_ptr, weight_ptr, bias_ptr, bits_ptr, first, start, column,
            mask, offsets, R, L, ACTIVATION, BLOCK_R, BLOCK_L,
        )  # fmt: skip
        row_g, row_gx = published_sums(table_ptr, row, R, column_blocks, CENTRED, BLOCK_R)
        row_dx(
            g, x_hat, gamma, row_g / L, row_gx / L, rstd, dsum_ptr, dx_ptr, dresidual_ptr, mask,
            offsets,
        )  # fmt: skip
