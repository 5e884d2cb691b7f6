"""Layer norm of rows that no program holds: two launches, each of which reads the tensor.

The second walks backwards, so that it starts with what the first has left in the L2 cache.
"""

import triton
import triton.language as tl

from .device import accumulation_type, chan_merge, inverse_std, tile_moments
from .gradients import piece_sums
from .merge import piece_moments
from .row_tiles import add_partials, row_dx, row_gradient, row_output, row_tile
from .sync import arrived_last

SCALARS = ["R", "L", "row_blocks", "pieces", "steps", "groups"]


@triton.jit(do_not_specialize=SCALARS)
def row_moments_kernel(
    x_ptr,  # (R, L)
    stats_ptr,  # (2, R): mean and rstd
    table_ptr,  # (3, pieces, R)
    tickets_ptr,  # (row_blocks,)
    eps: tl.float64,
    R,
    L,
    row_blocks,
    pieces,
    steps,
    groups,
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
        x, _, _, mask, _ = row_tile(x_ptr, first, start, R, L, BLOCK_R, BLOCK_L)
        tile_count = tl.zeros([BLOCK_R], ACC) + tl.minimum(L - start, BLOCK_L)
        tile_mean, tile_m2 = tile_moments(x.to(ACC), mask, tile_count)
        count, mean, m2 = chan_merge(count, mean, m2, tile_count, tile_mean, tile_m2)
    plane = pieces * R.to(tl.int64)
    table = (table_ptr, table_ptr + plane, table_ptr + 2 * plane)
    slot = piece * R.to(tl.int64) + row
    tl.store(table[0] + slot, count, mask=row < R)
    tl.store(table[1] + slot, mean, mask=row < R)
    tl.store(table[2] + slot, m2, mask=row < R)
    if arrived_last(tickets_ptr + block, pieces):
        count, mean, m2 = piece_moments(table, 0, row, row < R, R, pieces, BLOCK_R)
        tl.store(stats_ptr + row, mean, mask=row < R)
        tl.store(stats_ptr + R + row, inverse_std(m2 / L, eps), mask=row < R)


@triton.jit(do_not_specialize=SCALARS)
def row_apply_kernel(
    x_ptr,  # (R, L)
    residual_ptr,  # (R, L) or None
    weight_ptr,  # (L,) or None
    bias_ptr,  # (L,) or None
    y_ptr,  # (R, L)
    bits_ptr,  # ReLU's bits, or None
    stats_ptr,  # (2, R)
    R,
    L,
    row_blocks,
    pieces,
    steps,
    groups,
    ACTIVATION: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """y = act((x - mean) * rstd * gamma + beta + residual), a tile a program."""
    L = L * ALIGN
    columns = tl.cdiv(L, BLOCK_L)
    program = row_blocks * columns - 1 - tl.program_id(0)
    first = (program // columns).to(tl.int64) * BLOCK_R
    start = (program % columns).to(tl.int64) * BLOCK_L
    x, row, column, mask, offsets = row_tile(x_ptr, first, start, R, L, BLOCK_R, BLOCK_L)
    mean = tl.load(stats_ptr + row, mask=row < R, other=0.0)
    rstd = tl.load(stats_ptr + R + row, mask=row < R, other=0.0)
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
    stats_ptr,  # (2, R)
    table_ptr,  # (2, columns, R): of each row the sums of gamma g and gamma g x_hat
    partial_ptr,  # (2, groups, L), or None
    R,
    L,
    row_blocks,
    pieces,
    steps,
    groups,
    ACTIVATION: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Each program takes a slice of columns through a group of rows."""
    ACC: tl.constexpr = accumulation_type(x_ptr.dtype.element_ty)
    L = L * ALIGN
    columns = tl.cdiv(L, BLOCK_L)
    group = tl.program_id(0) // columns
    piece = tl.program_id(0) % columns
    start = piece.to(tl.int64) * BLOCK_L
    plane = columns * R.to(tl.int64)
    dweight = tl.zeros([BLOCK_L], ACC)
    dbias = tl.zeros([BLOCK_L], ACC)
    for block in range(group, row_blocks, groups):
        first = tl.full([], BLOCK_R, tl.int64) * block
        x, row, column, mask, offsets = row_tile(x_ptr, first, start, R, L, BLOCK_R, BLOCK_L)
        dy = tl.load(dy_ptr + offsets, mask=mask, other=0.0)
        mean = tl.load(stats_ptr + row, mask=row < R, other=0.0)
        rstd = tl.load(stats_ptr + R + row, mask=row < R, other=0.0)
        g, x_hat, gamma = row_gradient(
            x, dy, mean, rstd, residual_ptr, weight_ptr, bias_ptr, bits_ptr, first, start, column,
            mask, offsets, R, L, ACTIVATION, BLOCK_R, BLOCK_L,
        )  # fmt: skip
        weighted = gamma * g.to(ACC)
        slot = piece * R.to(tl.int64) + row
        tl.store(table_ptr + slot, tl.sum(weighted, axis=1), mask=row < R)
        tl.store(table_ptr + plane + slot, tl.sum(weighted * x_hat, axis=1), mask=row < R)
        dweight += tl.sum(g.to(ACC) * x_hat, axis=0)
        dbias += tl.sum(g.to(ACC), axis=0)
    if partial_ptr is not None:
        column = start + tl.arange(0, BLOCK_L)
        slot = group.to(tl.int64) * L + column
        tl.store(partial_ptr + slot, dweight, mask=column < L)
        tl.store(partial_ptr + groups.to(tl.int64) * L + slot, dbias, mask=column < L)


@triton.jit(do_not_specialize=SCALARS)
def row_dx_kernel(
    x_ptr,  # (R, L)
    dy_ptr,  # (R, L)
    residual_ptr,  # (R, L) or None: for smooth activations
    bits_ptr,  # ReLU's bits, or None
    weight_ptr,  # (L,) or None
    bias_ptr,  # (L,) or None
    stats_ptr,  # (2, R)
    table_ptr,  # (2, columns, R)
    partial_ptr,  # (2, groups, L) or None
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
    ACTIVATION: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
    PARAMETERS_L: tl.constexpr,
):
    """dx, a tile a program; the first programs add up the groups' dgamma and dbeta instead."""
    L = L * ALIGN
    columns = tl.cdiv(L, BLOCK_L)
    adders = tl.cdiv(L, PARAMETERS_L) if partial_ptr is not None else 0
    program = tl.program_id(0) - adders
    if program < 0:
        if partial_ptr is not None:
            add_partials(
                partial_ptr, dweight_ptr, dbias_ptr, tl.program_id(0), groups, L, PARAMETERS_L
            )
    else:
        program = row_blocks * columns - 1 - program
        first = (program // columns).to(tl.int64) * BLOCK_R
        start = (program % columns).to(tl.int64) * BLOCK_L
        x, row, column, mask, offsets = row_tile(x_ptr, first, start, R, L, BLOCK_R, BLOCK_L)
        dy = tl.load(dy_ptr + offsets, mask=mask, other=0.0)
        mean = tl.load(stats_ptr + row, mask=row < R, other=0.0)
        rstd = tl.load(stats_ptr + R + row, mask=row < R, other=0.0)
        g, x_hat, gamma = row_gradient(
            x, dy, mean, rstd, residual_ptr, weight_ptr, bias_ptr, bits_ptr, first, start, column,
            mask, offsets, R, L, ACTIVATION, BLOCK_R, BLOCK_L,
        )  # fmt: skip
        row_g = piece_sums(table_ptr, 0, row, row < R, R, columns, BLOCK_R)
        plane = columns * R.to(tl.int64)
        row_gx = piece_sums(table_ptr + plane, 0, row, row < R, R, columns, BLOCK_R)
        row_dx(g, x_hat, gamma, row_g / L, row_gx / L, rstd, dx_ptr, dresidual_ptr, mask, offsets)
