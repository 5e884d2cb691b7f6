"""Layer norm of rows that stay in registers: whole in one program, or in slices in a cluster.

x is (R, L). A program works on a slice of BLOCK_L columns; a cluster's members hold the slices of
the same rows, publish what they found in them, wait for one another and merge. HALF is that of
`resident.py`.
"""

import triton
import triton.language as tl

from .device import accumulation_type, inverse_std, tile_moments
from .gradients import piece_sums
from .merge import piece_moments
from .row_tiles import add_partials, row_dx, row_gradient, row_output, row_tile
from .sync import keep_packed, wait_for_members
from .tiles import is_first

SCALARS = ["R", "L", "row_blocks", "slices", "clusters"]


@triton.jit(do_not_specialize=SCALARS)
def row_norm_kernel(
    x_ptr,  # (R, L)
    residual_ptr,  # (R, L) or None
    weight_ptr,  # (L,) or None
    bias_ptr,  # (L,) or None
    y_ptr,  # (R, L)
    bits_ptr,  # ReLU's bits, or None
    stats_ptr,  # (2, R): mean and rstd
    table_ptr,  # (3, slices, R), or None where nothing is published
    barriers_ptr,  # (clusters,) or None
    eps: tl.float64,
    R,
    L,
    row_blocks,
    slices,
    clusters,
    ACTIVATION: tl.constexpr,
    CLUSTER: tl.constexpr,
    HALF: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """y = act((x - mean) * rstd * gamma + beta + residual), statistics of each row."""
    ACC: tl.constexpr = accumulation_type(x_ptr.dtype.element_ty)
    L = L * ALIGN
    program = tl.program_id(0)
    cluster = program // slices if CLUSTER else program
    piece = program % slices if CLUSTER else 0
    start = piece * BLOCK_L
    plane = slices * R.to(tl.int64)
    table = (table_ptr, table_ptr, table_ptr)
    if CLUSTER:
        table = (table_ptr, table_ptr + plane, table_ptr + 2 * plane)
    # A single turn, which the compiler does away with, where rows do not outnumber programs.
    for block in range(cluster, row_blocks if CLUSTER else cluster + 1, clusters if CLUSTER else 1):
        first = tl.full([], BLOCK_R, tl.int64) * block
        packed, row, column, mask, offsets = row_tile(x_ptr, first, start, R, L, BLOCK_R, BLOCK_L)
        count = tl.zeros([BLOCK_R], ACC) + tl.minimum(L - start, BLOCK_L)
        mean, m2 = tile_moments(packed.to(ACC), mask, count)
        if CLUSTER and HALF != 2:
            slot = piece * R.to(tl.int64) + row
            tl.store(table[0] + slot, count, mask=row < R)
            tl.store(table[1] + slot, mean, mask=row < R)
            tl.store(table[2] + slot, m2, mask=row < R)
        if CLUSTER and HALF == 0:
            wait_for_members(barriers_ptr + cluster, piece, slices)
        if HALF != 1:
            if CLUSTER:
                count, mean, m2 = piece_moments(table, 0, row, row < R, R, slices, BLOCK_R)
                packed = keep_packed(packed)
            rstd = inverse_std(m2 / L, eps)
            row_output(
                packed, mean, rstd, residual_ptr, weight_ptr, bias_ptr, y_ptr, bits_ptr, first,
                start, column, mask, offsets, R, L, ACTIVATION, BLOCK_R, BLOCK_L,
            )  # fmt: skip
            writes = (row < R) & is_first(piece, row)
            tl.store(stats_ptr + row, mean, mask=writes)
            tl.store(stats_ptr + R + row, rstd, mask=writes)


@triton.jit(do_not_specialize=SCALARS)
def row_norm_backward_kernel(
    x_ptr,  # (R, L)
    dy_ptr,  # (R, L)
    residual_ptr,  # (R, L) or None: for smooth activations
    bits_ptr,  # ReLU's bits, or None
    weight_ptr,  # (L,) or None
    bias_ptr,  # (L,) or None
    stats_ptr,  # (2, R)
    dx_ptr,  # (R, L) or None
    dresidual_ptr,  # (R, L) or None
    partial_ptr,  # (2, clusters, L) or None
    table_ptr,  # (2, slices, R), or None where nothing is published
    barriers_ptr,  # (clusters,) or None
    R,
    L,
    row_blocks,
    slices,
    clusters,
    ACTIVATION: tl.constexpr,
    CLUSTER: tl.constexpr,
    HALF: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """dx of all rows, and each program's share of dgamma and dbeta, x and dy read once."""
    ACC: tl.constexpr = accumulation_type(x_ptr.dtype.element_ty)
    L = L * ALIGN
    program = tl.program_id(0)
    piece = program % slices
    group = program // slices
    start = piece * BLOCK_L
    plane = slices * R.to(tl.int64)
    dweight = tl.zeros([BLOCK_L], ACC)
    dbias = tl.zeros([BLOCK_L], ACC)
    for block in range(group, row_blocks, clusters):
        first = tl.full([], BLOCK_R, tl.int64) * block
        packed, row, column, mask, offsets = row_tile(x_ptr, first, start, R, L, BLOCK_R, BLOCK_L)
        dy = tl.load(dy_ptr + offsets, mask=mask, other=0.0)
        mean = tl.load(stats_ptr + row, mask=row < R, other=0.0)
        rstd = tl.load(stats_ptr + R + row, mask=row < R, other=0.0)
        g, x_hat, gamma = row_gradient(
            packed, dy, mean, rstd, residual_ptr, weight_ptr, bias_ptr, bits_ptr, first, start,
            column, mask, offsets, R, L, ACTIVATION, BLOCK_R, BLOCK_L,
        )  # fmt: skip
        weighted = gamma * g.to(ACC)
        row_g = tl.sum(weighted, axis=1)
        row_gx = tl.sum(weighted * x_hat, axis=1)
        if partial_ptr is not None:
            dweight += tl.sum(g.to(ACC) * x_hat, axis=0)
            dbias += tl.sum(g.to(ACC), axis=0)
        if CLUSTER and HALF != 2:
            slot = piece * R.to(tl.int64) + row
            tl.store(table_ptr + slot, row_g, mask=row < R)
            tl.store(table_ptr + plane + slot, row_gx, mask=row < R)
        if CLUSTER and HALF == 0:
            wait_for_members(barriers_ptr + group, piece, slices)
        if HALF != 1:
            if CLUSTER:
                row_g = piece_sums(table_ptr, 0, row, row < R, R, slices, BLOCK_R)
                row_gx = piece_sums(table_ptr + plane, 0, row, row < R, R, slices, BLOCK_R)
                packed, g = keep_packed(packed), keep_packed(g)
                x_hat = tl.where(mask, (packed.to(ACC) - mean[:, None]) * rstd[:, None], 0.0)
            row_dx(
                g, x_hat, gamma, row_g / L, row_gx / L, rstd, dx_ptr, dresidual_ptr, mask, offsets
            )
    if partial_ptr is not None:
        column = start + tl.arange(0, BLOCK_L)
        slot = group.to(tl.int64) * L + column
        tl.store(partial_ptr + slot, dweight, mask=column < L)
        tl.store(partial_ptr + clusters.to(tl.int64) * L + slot, dbias, mask=column < L)


@triton.jit(do_not_specialize=["groups", "L"])
def sum_partials_kernel(
    partial_ptr,  # (2, groups, L)
    dweight_ptr,  # (L,) or None
    dbias_ptr,  # (L,) or None
    groups,
    L,
    ALIGN: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Sums over programs in a fixed order: the same bits each time."""
    L = L * ALIGN
    add_partials(partial_ptr, dweight_ptr, dbias_ptr, tl.program_id(0), groups, L, BLOCK_L)
