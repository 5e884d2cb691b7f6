"""Stage two of the backward: sums of g = dy * act' merged over sets, over instances, and what
follows from them.

With m the mean, r the inverse deviation of a set of `count` elements, and g weighted by gamma,

    dx = r g + slope (x - center) + level,
    slope = -(r / count) r^2 sum g (x - m),    level = -(r / count) sum g + slope (center - m).
"""

import triton
import triton.language as tl

from .device import activate_backward, load_or, store_rounded
from .merge import entries, load_stats, over_set, set_slot
from .tiles import across, load_bits, unit_channels


@triton.jit
def masked_gradient(x, dy, residual, active, scale, shift, mask, ACTIVATION: tl.constexpr):
    """g = dy * act'(z): in dy's dtype where that is exact, so that a 16-bit tile stays packed.

    z is recomputed from the centred x. ReLU with a residual looks at its bits, `active`.
    """
    if ACTIVATION is None:
        return dy
    elif active is not None:
        return tl.where(active, dy, 0.0).to(dy.dtype)
    else:
        z = x * scale + shift
        if residual is not None:
            z += residual.to(z.dtype)
        if ACTIVATION == "relu":
            return tl.where(z <= 0.0, 0.0, dy).to(dy.dtype)
        else:  # act'(z) of what is not there may be NaN
            return tl.where(mask, activate_backward(dy.to(z.dtype), z, ACTIVATION), 0.0)


@triton.jit
def tile_gradient(
    x, dy, residual_ptr, bits_ptr, scale, shift, offsets, mask, n, u, r, start, N, W, C, S,
    ACTIVATION: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALIGN_W: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """masked_gradient of a tile, with what the forward kept for it: the residual or ReLU's bits."""
    residual, active = None, None
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + offsets, mask=mask, other=0.0)
    if bits_ptr is not None:
        active = load_bits(
            bits_ptr, n, u, r, start, N, W, C, S, CHANNELS_LAST, ALIGN_W, BLOCK_N, BLOCK_C,
            BLOCK_S, INNER,
        )  # fmt: skip
    scale, shift = across(scale, CHANNELS_LAST), across(shift, CHANNELS_LAST)
    return masked_gradient(x, dy, residual, active, scale, shift, mask, ACTIVATION)


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
    """An instance's share in the mixture's sums: g, g (x - m_b), r_i g (x - m_i), and
    r_b g (x - m_b) - r_i g (x - m_i), which nearly cancel."""
    to_batch = (b_center - center) + b_offset
    slope_gap = b_rstd - rstd
    level_gap = b_rstd * to_batch - rstd * offset
    return g, gx - to_batch * g, rstd * (gx - offset * g), slope_gap * gx - level_gap * g


@triton.jit
def piece_sums(table_ptr, n, c, mask, C, pieces, BLOCK_C: tl.constexpr):
    """A table's column sums over the pieces of one n, in order."""
    BLOCK_P: tl.constexpr = entries(BLOCK_C)
    total = tl.zeros([BLOCK_P, BLOCK_C], table_ptr.dtype.element_ty)
    for first in range(0, pieces, BLOCK_P):
        piece = first + tl.arange(0, BLOCK_P)
        slot = (n * pieces + piece)[:, None] * C + c[None, :]
        here = (piece < pieces)[:, None] & mask[None, :]
        total += tl.load(table_ptr + slot, mask=here, other=0.0, cache_modifier=".cg")
    return tl.sum(total, axis=0)


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
        g += over_set(weight * c_g, local, D, SETS)
        gx += over_set(weight * c_gx, local, D, SETS)
    return g, gx


@triton.jit
def instance_sums(
    table, stats, batch, u, r, N, W, C, D, pieces, MIX: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """Over all instances, in order, of each channel of a row block: the sums of mixed_terms; for
    unmixed norms the first is dbeta and the third dgamma."""
    ACC: tl.constexpr = table[0].dtype.element_ty
    BLOCK_P: tl.constexpr = entries(BLOCK_C)
    _local, c, c_mask = unit_channels(u, r, W, C, BLOCK_C)
    zero = tl.zeros([BLOCK_P, BLOCK_C], ACC)
    t0, t1, t2, t3 = zero, zero, zero, zero
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
            s0, s1, s2, s3 = mixed_terms(g, gx, center, offset, rstd, b_center, b_offset, b_rstd)
            t1 += tl.where(mask, s1, 0.0)
            t3 += tl.where(mask, s3, 0.0)
        else:
            s0, s2 = g, rstd * (gx - offset * g)
        t0 += s0
        t2 += s2
    return tl.sum(t0, axis=0), tl.sum(t1, axis=0), tl.sum(t2, axis=0), tl.sum(t3, axis=0)


@triton.jit
def add_instances(
    tables, stats, batch, parameters, gradients, batch_sums, u, N, W, C, D, row_blocks, pieces,
    MIX: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dgamma, dbeta and drho of the channels of the units u of all instances, and a mixture's sums
    over the batch."""
    for r in range(row_blocks):
        _local, c, mask = unit_channels(u, r, W, C, BLOCK_C)
        t0, t1, t2, t3 = instance_sums(tables, stats, batch, u, r, N, W, C, D, pieces, MIX, BLOCK_C)
        if MIX:
            store_gradient(batch_sums[0], c, mask, t0)
            store_gradient(batch_sums[1], c, mask, t1)
            b_rstd = tl.load(batch[2] + c, mask=mask, other=0.0)
            store_mixed_gradients(
                t0, t1, t2, t3, parameters, b_rstd, gradients[0], gradients[1], gradients[2], c,
                mask,
            )  # fmt: skip
        else:
            store_gradient(gradients[0], c, mask, t2)
            store_gradient(gradients[1], c, mask, t0)


@triton.jit
def store_mixed_gradients(
    t0, t1, t2, t3, parameters, b_rstd, dweight_ptr, dbias_ptr, drho_ptr, c, mask
):
    """dgamma, dbeta and drho of the mixture from the sums of mixed_terms."""
    rho = load_or(parameters[2], c, mask, 0.0, t0.dtype)
    gamma = load_or(parameters[0], c, mask, 1.0, t0.dtype)
    store_gradient(dweight_ptr, c, mask, rho * (b_rstd * t1) + (1.0 - rho) * t2)
    store_gradient(drho_ptr, c, mask, gamma * t3)
    store_gradient(dbias_ptr, c, mask, t0)


@triton.jit
def store_gradient(ptr, c, mask, value):
    if ptr is not None:
        store_rounded(ptr + c, value, mask)


@triton.jit
def batch_gradient(batch, parameters, t0, t1, center, c, mask, count):
    """(slope, level) that the mixture's batch statistics add for an instance's center."""
    gamma = load_or(parameters[0], c, mask, 1.0, center.dtype)
    rho = load_or(parameters[2], c, mask, 0.0, center.dtype)
    b_center, b_offset, b_rstd = load_stats(batch, c, mask)
    to_batch = (b_center - center) + b_offset
    return set_gradient(b_rstd, to_batch, gamma * rho * t0, gamma * rho * t1, count)
