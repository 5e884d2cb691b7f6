"""Layer and RMS norm of rows in registers: whole in one program, or in slices in a cluster.

x is (R, L). A program works on a slice of BLOCK_L columns; a cluster's members hold the slices of
the same rows, publish what they found in them, wait for one another and merge.
"""

import triton
import triton.language as tl

from .arithmetic import accumulation_type, inverse_std, product
from .row_statistics import (
    load_row_stats,
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
from .sync import keep_packed, wait_for_members
from .tiles import is_first

SCALARS = ["R", "L", "row_blocks", "slices", "clusters"]


@triton.jit(do_not_specialize=SCALARS)
def row_norm_kernel(
    x_ptr,  # (R, L)
    addend_ptr,  # (R, L) or None: x + addend is normalised instead of x
    sum_ptr,  # (R, L) or None: that sum
    residual_ptr,  # (R, L) or None
    weight_ptr,  # (L,) or None
    bias_ptr,  # (L,) or None
    y_ptr,  # (R, L)
    bits_ptr,  # ReLU's bits, or None
    stats_ptr,  # (2, R): rstd and mean; for RMS norm (R,)
    table_ptr,  # (3, slices, R), for RMS norm (slices, R); None where nothing is published
    barriers_ptr,  # (clusters,) or None
    eps: tl.float64,
    R,
    L,
    row_blocks,
    slices,
    clusters,
    CENTRED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    CLUSTER: tl.constexpr,
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
    # A single turn, which the compiler does away with, where rows do not outnumber programs.
    for block in range(cluster, row_blocks if CLUSTER else cluster + 1, clusters if CLUSTER else 1):
        first = tl.full([], BLOCK_R, tl.int64) * block
        packed, row, column, mask, offsets = row_tile(x_ptr, first, start, R, L, BLOCK_R, BLOCK_L)
        if addend_ptr is not None:
            packed = plus_addend(packed, addend_ptr, mask, offsets, ACC)
            tl.store(sum_ptr + offsets, packed, mask=mask)
        count = tl.zeros([BLOCK_R], ACC) + tl.minimum(L - start, BLOCK_L)
        mean, m2 = row_moments(packed.to(ACC), mask, count, CENTRED)
        if CLUSTER:
            publish_moments(table_ptr, count, mean, m2, piece, row, R, slices, CENTRED)
            wait_for_members(barriers_ptr + cluster, piece, slices)
            mean, m2 = published_moments(table_ptr, row, R, slices, CENTRED, BLOCK_R)
            packed = keep_packed(packed)
        rstd = inverse_std(m2 / L, eps)
        row_output(
            packed, mean, rstd, residual_ptr, weight_ptr, bias_ptr, y_ptr, bits_ptr, first,
            start, column, mask, offsets, R, L, ACTIVATION, BLOCK_R, BLOCK_L,
        )  # fmt: skip
        writes = (row < R) & is_first(piece, row)
        store_row_stats(stats_ptr, mean, rstd, row, R, writes, CENTRED)


@triton.jit(do_not_specialize=SCALARS)
def row_norm_backward_kernel(
    x_ptr,  # (R, L)
    dy_ptr,  # (R, L)
    residual_ptr,  # (R, L) or None: for smooth activations
    bits_ptr,  # ReLU's bits, or None
    weight_ptr,  # (L,) or None
    bias_ptr,  # (L,) or None
    stats_ptr,  # (2, R); for RMS norm (R,)
    dsum_ptr,  # (R, L) or None: a gradient that x has besides
    dx_ptr,  # (R, L) or None
    dresidual_ptr,  # (R, L) or None
    partial_ptr,  # (2, clusters, L), for RMS norm (clusters, L); None where nobody asks
    table_ptr,  # (2, slices, R), for RMS norm (slices, R); None where nothing is published
    barriers_ptr,  # (clusters,) or None
    R,
    L,
    row_blocks,
    slices,
    clusters,
    CENTRED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    CLUSTER: tl.constexpr,
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
    dweight = tl.zeros([BLOCK_L], ACC)
    dbias = tl.zeros([BLOCK_L], ACC)
    for block in range(group, row_blocks, clusters):
        first = tl.full([], BLOCK_R, tl.int64) * block
        packed, row, column, mask, offsets = row_tile(x_ptr, first, start, R, L, BLOCK_R, BLOCK_L)
        dy = tl.load(dy_ptr + offsets, mask=mask, other=0.0)
        mean, rstd = load_row_stats(stats_ptr, row, R, CENTRED)
        g, x_hat, gamma = row_gradient(
            packed, dy, mean, rstd, residual_ptr, weight_ptr, bias_ptr, bits_ptr, first, start,
            column, mask, offsets, R, L, ACTIVATION, BLOCK_R, BLOCK_L,
        )  # fmt: skip
        weighted = product(gamma, g.to(ACC))
        row_g, row_gx = row_gradient_sums(weighted, x_hat, CENTRED)
        if partial_ptr is not None:
            dweight += tl.sum(product(g.to(ACC), x_hat), axis=0)
            if CENTRED:
                dbias += tl.sum(g.to(ACC), axis=0)
        if CLUSTER:
            publish_sums(table_ptr, row_g, row_gx, piece, row, R, slices, CENTRED)
            wait_for_members(barriers_ptr + group, piece, slices)
            row_g, row_gx = published_sums(table_ptr, row, R, slices, CENTRED, BLOCK_R)
            packed, g = keep_packed(packed), keep_packed(g)
            x_hat = tl.where(mask, (packed.to(ACC) - mean[:, None]) * rstd[:, None], 0.0)
        row_dx(
            g, x_hat, gamma, row_g / L, row_gx / L, rstd, dsum_ptr, dx_ptr, dresidual_ptr,
            mask, offsets,
        )  # fmt: skip
    if partial_ptr is not None:
        store_partials(partial_ptr, dweight, dbias, start, group, clusters, L, CENTRED, BLOCK_L)


@triton.jit(do_not_specialize=["groups", "L"])
def sum_partials_kernel(
    partial_ptr,  # (2, groups, L), for RMS norm (groups, L)
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
