"""Stage two of the backward: sums of g = dy * act' merged over sets, over instances, and what
follows from them.

With m the mean, r the inverse deviation of a set of `count` elements, and g weighted by gamma,

    dx = r g + slope (x - center) + level,
    slope = -(r / count) r^2 sum g (x - m),    level = -(r / count) sum g + slope (center - m).
"""

import triton
import triton.language as tl

from .arithmetic import load_or, product, store_gradient
from .merge import sum_set
from .tables import load_stats, piece_sums, set_slot, table_rows
from .tiles import unit_channels


@triton.jit
def set_gradient(rstd, offset, g, gx, count, VARIANCE: tl.constexpr = True):
    """(slope, level) from the weighted sums of g and of g (x - mean); offset: mean - center.

    Without VARIANCE rstd is 1 and a constant, and dx = g - sum g / count.
    """
    share = rstd / count
    if not VARIANCE:
        return tl.zeros_like(g), -share * g
    slope = -share * rstd * (rstd * gx)  # in this order r^3 never underflows on its own
    return slope, -share * g - slope * offset


@triton.jit
def instance_weight(parameters, c, mask, MIX: tl.constexpr, ACC: tl.constexpr):
    """What g is weighted by in the statistics' gradient: gamma, the mixture's share of it."""
    gamma = load_or(parameters[0], c, mask, 1.0, ACC)
    if MIX:
        gamma *= 1.0 - load_or(parameters[2], c, mask, 0.0, ACC)
    return gamma


@triton.jit
def mixed_terms(g, gx, center, offset, rstd, b_center, b_offset, b_rstd):
    """(gx, hat, gap), an instance's share in the mixture's sums beside g: g (x - m_b),
    r_i g (x - m_i), and r_b g (x - m_b) - r_i g (x - m_i), which nearly cancel."""
    to_batch = (b_center - center) + b_offset
    slope_gap = b_rstd - rstd
    level_gap = b_rstd * to_batch - rstd * offset
    hat = product(rstd, gx - offset * g)
    return gx - to_batch * g, hat, slope_gap * gx - level_gap * g


@triton.jit
def unit_sums(
    table, parameters, n, u, W, C, D, row_blocks, pieces, MIX: tl.constexpr,
    SETS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Weighted sums of g and g (x - center) over the set of each channel of a unit."""
    ACC: tl.constexpr = table[0].dtype.element_ty
    g = tl.zeros([BLOCK_C], ACC)
    gx = tl.zeros([BLOCK_C], ACC)
    for block in range(row_blocks):
        local, c, mask = unit_channels(u, block, W, C, BLOCK_C)
        weight = instance_weight(parameters, c, mask, MIX, ACC)
        c_g = piece_sums(table[0], n, c, mask, C, pieces, BLOCK_C)
        c_gx = piece_sums(table[1], n, c, mask, C, pieces, BLOCK_C)
        g += sum_set(product(weight, c_g), local, D, SETS)
        gx += sum_set(product(weight, c_gx), local, D, SETS)
    return g, gx


@triton.jit
def instance_sums(
    table, stats, batch, u, r, N, W, C, D, pieces, MIX: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """(g, gx, hat, gap) over all instances, in order, of each channel of a row block: sums of g and
    of mixed_terms; for unmixed norms g and hat alone, dbeta and dgamma."""
    ACC: tl.constexpr = table[0].dtype.element_ty
    BLOCK_P: tl.constexpr = table_rows(BLOCK_C)
    _local, c, c_mask = unit_channels(u, r, W, C, BLOCK_C)
    zero = tl.zeros([BLOCK_P, BLOCK_C], ACC)
    sum_g, sum_gx, sum_hat, sum_gap = zero, zero, zero, zero
    if MIX:
        b_center, b_offset, b_rstd = load_stats(batch, c[None, :], c_mask[None, :])
    for first in range(0, N * pieces, BLOCK_P):
        row = first + tl.arange(0, BLOCK_P).to(tl.int64)[:, None]
        mask = (row < N.to(tl.int64) * pieces) & c_mask[None, :]
        slot = row * C + c[None, :]
        g = tl.load(table[0] + slot, mask=mask, other=0.0, cache_modifier=".cg")
        gx = tl.load(table[1] + slot, mask=mask, other=0.0, cache_modifier=".cg")
        instance = set_slot(row // pieces, c[None, :], C, D, False)
        center, offset, rstd = load_stats(stats, instance, mask)
        if MIX:
            b_gx, hat, gap = mixed_terms(g, gx, center, offset, rstd, b_center, b_offset, b_rstd)
            sum_gx += tl.where(mask, b_gx, 0.0)
            sum_gap += tl.where(mask, gap, 0.0)
        else:
            hat = rstd * (gx - offset * g)
        sum_g += g
        sum_hat += hat
    return (
        tl.sum(sum_g, axis=0),
        tl.sum(sum_gx, axis=0),
        tl.sum(sum_hat, axis=0),
        tl.sum(sum_gap, axis=0),
    )


@triton.jit
def add_instances(
    tables, stats, batch, parameters, gradients, batch_sums, u, N, W, C, D, row_blocks, pieces,
    MIX: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dgamma, dbeta and drho of the channels of the units u of all instances, and a mixture's sums
    over the batch."""
    for r in range(row_blocks):
        _local, c, mask = unit_channels(u, r, W, C, BLOCK_C)
        g, gx, hat, gap = instance_sums(
            tables, stats, batch, u, r, N, W, C, D, pieces, MIX, BLOCK_C
        )
        if MIX:
            store_gradient(batch_sums[0], c, mask, g)
            store_gradient(batch_sums[1], c, mask, gx)
            store_mixed_gradients(g, gx, hat, gap, batch, parameters, gradients, c, mask)
        else:
            store_gradient(gradients[0], c, mask, hat)
            store_gradient(gradients[1], c, mask, g)


@triton.jit
def store_mixed_gradients(g, gx, hat, gap, batch, parameters, gradients, c, mask):
    """dgamma, dbeta and drho of the mixture from the sums of g and of mixed_terms."""
    b_rstd = tl.load(batch[2] + c, mask=mask, other=0.0)
    rho = load_or(parameters[2], c, mask, 0.0, g.dtype)
    gamma = load_or(parameters[0], c, mask, 1.0, g.dtype)
    store_gradient(gradients[0], c, mask, rho * (b_rstd * gx) + (1.0 - rho) * hat)
    store_gradient(gradients[2], c, mask, gamma * gap)
    store_gradient(gradients[1], c, mask, g)


@triton.jit
def batch_gradient(batch, parameters, g, gx, center, c, mask, count):
    """(slope, level) that the mixture's batch statistics add for an instance's center, from its
    sums of g and g (x - m_b) over the batch."""
    gamma = load_or(parameters[0], c, mask, 1.0, center.dtype)
    rho = load_or(parameters[2], c, mask, 0.0, center.dtype)
    b_center, b_offset, b_rstd = load_stats(batch, c, mask)
    to_batch = (b_center - center) + b_offset
    return set_gradient(b_rstd, to_batch, gamma * rho * g, gamma * rho * gx, count)
