"""Stage two: merging what the programs of a unit found, and the coefficients that follow.

Forward each channel of a program's piece left (count, mean, M2) of x - pivot, backward
(sum g, sum g (x - center)), in tables (n, piece, c); n is 0 throughout where sets run over the
batch. Whoever merges does it in the order of the table, so that results have the same bits each
time. A norm is its sets: D neighbouring channels of one instance, or of all instances.
"""

import triton
import triton.language as tl

from .device import (
    chan_merge,
    inverse_std,
    load_or,
    merge_along,
    split_mean,
    update_running,
)
from .tiles import load_pivot, unit_channels


@triton.constexpr_function
def entries(BLOCK_C):
    """Table entries of a channel that are loaded together: 1,024 for all channels of a block."""
    return max(1024 // BLOCK_C, 1)


@triton.jit
def over_set(value, local, D, SETS: tl.constexpr):
    """The sum over each channel's set, for each of the channels (`local`: counted in the unit).

    SETS: 0 where each channel is a set, 1 where all make up one, else their number, padded.
    """
    if SETS == 0:
        return value
    elif SETS == 1:
        return tl.sum(value, axis=0) + tl.zeros_like(value)
    else:
        belongs = (local // D)[:, None] == tl.arange(0, SETS)[None, :]
        total = tl.sum(tl.where(belongs, value[:, None], 0.0), axis=0)
        return tl.sum(tl.where(belongs, total[None, :], 0.0), axis=1)


@triton.jit
def merge_set(count, mean, m2, local, D, SETS: tl.constexpr):
    """Chan's merge over each channel's set, for each of the channels."""
    if SETS == 0:
        return count, mean, m2
    elif SETS == 1:
        count, mean, m2 = merge_along(count, mean, m2, 0)
        zero = tl.zeros_like(local).to(mean.dtype)
        return zero + count, zero + mean, zero + m2
    else:
        belongs = (local // D)[:, None] == tl.arange(0, SETS)[None, :]
        zero = tl.where(belongs, 0.0, 0.0).to(mean.dtype)
        count, mean, m2 = merge_along(
            tl.where(belongs, count[:, None], 0.0), zero + mean[:, None], zero + m2[:, None], 0
        )
        return (
            tl.sum(tl.where(belongs, count[None, :], 0.0), axis=1),
            tl.sum(tl.where(belongs, mean[None, :], 0.0), axis=1),
            tl.sum(tl.where(belongs, m2[None, :], 0.0), axis=1),
        )


@triton.jit
def unit_moments(
    table, n, u, W, C, D, row_blocks, pieces, SETS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """(count, mean, M2) of the set of each channel of a unit, merged from the unit's tables.

    A unit has several row blocks only where all its channels make up one set.
    """
    zero = tl.zeros([BLOCK_C], table[0].dtype.element_ty)
    count, mean, m2 = zero, zero, zero
    for block in range(row_blocks):
        local, c, mask = unit_channels(u, block, W, C, BLOCK_C)
        c_count, c_mean, c_m2 = piece_moments(table, n, c, mask, C, pieces, BLOCK_C)
        c_count, c_mean, c_m2 = merge_set(c_count, c_mean, c_m2, local, D, SETS)
        count, mean, m2 = chan_merge(count, mean, m2, c_count, c_mean, c_m2)
    return count, mean, m2


@triton.jit
def piece_moments(table, n, c, mask, C, pieces, BLOCK_C: tl.constexpr):
    """(count, mean, M2) of the channels c of one n: their pieces merged in order."""
    BLOCK_P: tl.constexpr = entries(BLOCK_C)
    zero = tl.zeros([BLOCK_P, BLOCK_C], table[0].dtype.element_ty)
    count, mean, m2 = zero, zero, zero
    for first in range(0, pieces, BLOCK_P):  # element by element: no barrier inside the loop
        piece = first + tl.arange(0, BLOCK_P)
        slot = (n * pieces + piece)[:, None] * C + c[None, :]
        here = (piece < pieces)[:, None] & mask[None, :]
        p_count = tl.load(table[0] + slot, mask=here, other=0.0, cache_modifier=".cg")
        p_mean = tl.load(table[1] + slot, mask=here, other=0.0, cache_modifier=".cg")
        p_m2 = tl.load(table[2] + slot, mask=here, other=0.0, cache_modifier=".cg")
        count, mean, m2 = chan_merge(count, mean, m2, p_count, p_mean, p_m2)
    return merge_along(count, mean, m2, 0)


@triton.jit
def batch_moments(
    x_ptr, table, u, N, W, C, S, pieces, CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """(pivot, count, mean, M2, summed M2) over all instances of a unit's channels.

    The tables' means are relative to each instance's own pivot, the result to that of instance 0.
    """
    ACC: tl.constexpr = table[0].dtype.element_ty
    BLOCK_P: tl.constexpr = (entries(BLOCK_C) + 1) // 2  # pivots take registers too
    _, c, c_mask = unit_channels(u, 0, W, C, BLOCK_C)
    origin = load_pivot(x_ptr, tl.zeros([1], tl.int64), c, c_mask, 1, C, S, CHANNELS_LAST, ACC)
    zero = tl.zeros([BLOCK_P, BLOCK_C], ACC)
    count, mean, m2, within = zero, zero, zero, zero
    for first in range(0, N, BLOCK_P):  # element by element: no barrier inside the loop
        n = first + tl.arange(0, BLOCK_P).to(tl.int64)[:, None]
        mask = (n < N) & c_mask[None, :]
        pivot = load_pivot(x_ptr, n, c[None, :], mask, 1, C, S, CHANNELS_LAST, ACC)
        n_count, n_mean, n_m2 = zero, zero, zero
        for piece in range(pieces):
            slot = (n * pieces + piece) * C + c[None, :]
            n_count, n_mean, n_m2 = chan_merge(
                n_count, n_mean, n_m2,
                tl.load(table[0] + slot, mask=mask, other=0.0, cache_modifier=".cg"),
                tl.load(table[1] + slot, mask=mask, other=0.0, cache_modifier=".cg"),
                tl.load(table[2] + slot, mask=mask, other=0.0, cache_modifier=".cg"),
            )  # fmt: skip
        within += n_m2
        n_mean += pivot - origin[None, :]
        count, mean, m2 = chan_merge(count, mean, m2, n_count, n_mean, n_m2)
    count, mean, m2 = merge_along(count, mean, m2, 0)
    return origin, count, mean, m2, tl.sum(within, axis=0)


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
def table_planes(table_ptr, N, C, pieces, BATCH: tl.constexpr):
    """Pointers to the planes of a table (plane, n, piece, c)."""
    plane = tl.zeros([], tl.int64) + pieces * C if BATCH else N.to(tl.int64) * pieces * C
    return table_ptr, table_ptr + plane, table_ptr + 2 * plane, table_ptr + 3 * plane


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
def constant_stats(running_mean_ptr, running_var_ptr, c, mask, eps, ACC: tl.constexpr):
    """(center, offset, rstd) of eval mode's batch; a norm without variances has no running ones."""
    center = tl.load(running_mean_ptr + c, mask=mask, other=0.0).to(ACC)
    zero = tl.zeros_like(center)
    if running_var_ptr is None:
        return center, zero, zero + 1.0
    else:
        var = tl.load(running_var_ptr + c, mask=mask, other=1.0).to(ACC)
        return center, zero, inverse_std(var, eps)


@triton.jit
def batch_stats(
    pivot, count, mean, m2, running_mean_ptr, running_var_ptr, c, writes, momentum, eps,
    VARIANCE: tl.constexpr,
):  # fmt: skip
    """(center, offset, rstd) of the batch; where `writes`, the running statistics too.

    Without VARIANCE only means are taken: rstd is 1.
    """
    center, offset = split_mean(pivot, mean)
    update_running(running_mean_ptr, c, writes, center, momentum)
    update_running(running_var_ptr, c, writes, m2 / tl.maximum(count - 1.0, 1.0), momentum)
    if VARIANCE:
        return center, offset, inverse_std(m2 / tl.maximum(count, 1.0), eps)
    else:
        return center, offset, tl.full(center.shape, 1.0, center.dtype)


@triton.jit
def affine(center, offset, rstd, gamma, beta):
    """(scale, shift): y = (x - center) * scale + shift."""
    scale = gamma * rstd
    return scale, beta - scale * offset


@triton.jit
def mixed_affine(center, offset, rstd, b_center, b_offset, b_rstd, gamma, beta, rho):
    """affine of rho times the batch's x_hat plus 1 - rho times the instance's (1805.07925)."""
    scale = gamma * (1.0 - rho) * rstd
    shift = beta - scale * offset
    batch_scale = gamma * rho * b_rstd
    shift -= batch_scale * ((b_center - center) + b_offset)
    return scale + batch_scale, shift


@triton.jit
def coefficients(
    stats, batch, parameters, n, c, mask, C, D, BATCH: tl.constexpr, MIX: tl.constexpr,
    GIVEN: tl.constexpr,
):  # fmt: skip
    """(center, scale, shift) of each (n, c), from the kept statistics and the parameters.

    GIVEN: they are what was kept, merged outside of any kernel.
    """
    slot = set_slot(n, c, C, D, BATCH and not MIX)
    if GIVEN:
        center, scale, shift = load_stats(stats, slot, mask)
        return center, scale, shift
    center, offset, rstd = load_stats(stats, slot, mask)
    gamma = load_or(parameters[0], c, mask, 1.0, center.dtype)
    beta = load_or(parameters[1], c, mask, 0.0, center.dtype)
    if MIX:
        rho = load_or(parameters[2], c, mask, 0.0, center.dtype)
        b_center, b_offset, b_rstd = load_stats(batch, c, mask)
        scale, shift = mixed_affine(
            center, offset, rstd, b_center, b_offset, b_rstd, gamma, beta, rho
        )
    else:
        scale, shift = affine(center, offset, rstd, gamma, beta)
    return center, scale, shift
