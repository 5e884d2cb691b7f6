"""Stage two: merging what the programs of a unit found, and the coefficients that follow.

Forward each channel of a program's piece left (count, mean, M2) of x - pivot, backward
(sum g, sum g (x - center)), in tables. A norm is its sets: D neighbouring channels of one instance,
or of all instances.
"""

import triton
import triton.language as tl

from .arithmetic import (
    chan_merge,
    inverse_std,
    load_or,
    merge_along,
    split_mean,
    update_running,
)
from .tables import load_stats, piece_moments, set_slot, table_rows, table_slot
from .tiles import load_pivot, unit_channels


@triton.jit
def sum_set(value, local, D, SETS: tl.constexpr):
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
def batch_moments(
    x_ptr, table, u, N, W, C, S, pieces, CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """(pivot, count, mean, M2, summed M2) over all instances of a unit's channels.

    The tables' means are relative to each instance's own pivot, the result to that of instance 0.
    """
    ACC: tl.constexpr = table[0].dtype.element_ty
    BLOCK_P: tl.constexpr = (table_rows(BLOCK_C) + 1) // 2  # pivots take registers too
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
            slot = table_slot(n, piece, c[None, :], C, pieces)
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
def set_stats(
    pivot, count, mean, m2, running_mean_ptr, running_var_ptr, c, writes, momentum, eps,
    BATCH: tl.constexpr, VARIANCE: tl.constexpr,
):  # fmt: skip
    """(center, offset, rstd) of sets; for BATCH, where `writes`, the running statistics too.

    Without VARIANCE only means are taken: rstd is 1.
    """
    center, offset = split_mean(pivot, mean)
    if BATCH:
        update_running(running_mean_ptr, c, writes, center, momentum)
        update_running(running_var_ptr, c, writes, m2 / tl.maximum(count - 1.0, 1.0), momentum)
    if VARIANCE:
        return center, offset, inverse_std(m2 / tl.maximum(count, 1.0), eps)
    else:
        return center, offset, tl.full(center.shape, 1.0, center.dtype)


@triton.jit
def affine(offset, rstd, gamma, beta):
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
        return load_stats(stats, slot, mask)
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
        scale, shift = affine(offset, rstd, gamma, beta)
    return center, scale, shift


@triton.jit
def average_instances(
    x_ptr, tables, running_mean_ptr, running_var_ptr, momentum, u, N, W, C, S, pieces,
    CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Running statistics of instance norm: the averages of the instances' means and of their
    unbiased variances."""
    _, channel, mask = unit_channels(u, 0, W, C, BLOCK_C)
    pivot, count, mean, _, within = batch_moments(
        x_ptr, tables, u, N, W, C, S, pieces, CHANNELS_LAST, BLOCK_C
    )
    unbiased = within / tl.maximum(count - N, 1.0)
    update_running(running_mean_ptr, channel, mask, pivot + mean, momentum)
    update_running(running_var_ptr, channel, mask, unbiased, momentum)
