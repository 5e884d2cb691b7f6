"""Device functions of the row kernels: tiles of x seen as (R, L), parameters of shape (L,)."""

import triton
import triton.language as tl

from .device import activate, load_or
from .gradients import masked_gradient, store_gradient
from .tiles import load_bits, position_mask, store_bits


@triton.jit
def row_tile(x_ptr, first, start, R, L, BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr):
    """A (BLOCK_R, BLOCK_L) tile as it is stored, its rows, columns, mask and offsets."""
    row = first + tl.arange(0, BLOCK_R)
    column = start + tl.arange(0, BLOCK_L)
    mask = (row < R)[:, None] & position_mask(start, L, BLOCK_L)[None, :]
    offsets = (row * L + start)[:, None] + tl.arange(0, BLOCK_L)[None, :]
    return tl.load(x_ptr + offsets, mask=mask, other=0.0), row, column, mask, offsets


@triton.jit
def row_sum(x, addend_ptr, mask, offsets, ACC: tl.constexpr):
    """A tile of x plus the addend's, rounded as x is: what is normalised is what is returned."""
    addend = tl.load(addend_ptr + offsets, mask=mask, other=0.0)
    return (x.to(ACC) + addend.to(ACC)).to(x.dtype)


@triton.jit
def row_parameter(ptr, column, start, L, default, BLOCK_L: tl.constexpr, ACC: tl.constexpr):
    """A parameter's columns as a row, `default` where there is none."""
    return load_or(ptr, column, position_mask(start, L, BLOCK_L), default, ACC)[None, :]


@triton.jit
def row_output(
    x, mean, rstd, residual_ptr, weight_ptr, bias_ptr, y_ptr, bits_ptr, first, start, column, mask,
    offsets, R, L, ACTIVATION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """Store y, and ReLU's bits where they are wanted."""
    gamma = row_parameter(weight_ptr, column, start, L, 1.0, BLOCK_L, mean.dtype)
    beta = row_parameter(bias_ptr, column, start, L, 0.0, BLOCK_L, mean.dtype)
    z = (x.to(mean.dtype) - mean[:, None]) * rstd[:, None] * gamma + beta
    if residual_ptr is not None:
        z += tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(mean.dtype)
    if bits_ptr is not None:
        active = (z <= 0.0) == 0
        store_bits(
            bits_ptr, active, first, 0, 0, start, R, 1, 1, L, False, BLOCK_R, 1, BLOCK_L, BLOCK_L
        )
    tl.store(y_ptr + offsets, activate(z, ACTIVATION), mask=mask)


@triton.jit
def row_gradient(
    x, dy, mean, rstd, residual_ptr, weight_ptr, bias_ptr, bits_ptr, first, start, column, mask,
    offsets, R, L, ACTIVATION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """(g, x_hat, gamma) of a tile: g = dy * act'(z) in dy's dtype, z recomputed from x."""
    gamma = row_parameter(weight_ptr, column, start, L, 1.0, BLOCK_L, mean.dtype)
    beta = row_parameter(bias_ptr, column, start, L, 0.0, BLOCK_L, mean.dtype)
    x_hat = tl.where(mask, (x.to(mean.dtype) - mean[:, None]) * rstd[:, None], 0.0)
    residual, active = None, None
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + offsets, mask=mask, other=0.0)
    if bits_ptr is not None:
        active = load_bits(
            bits_ptr, first, 0, 0, start, R, 1, 1, L, False, 1, BLOCK_R, 1, BLOCK_L, BLOCK_L
        )
        active = tl.reshape(active, [BLOCK_R, BLOCK_L])
    g = masked_gradient(x_hat, dy, residual, active, gamma, beta, mask, ACTIVATION)
    return g, x_hat, gamma


@triton.jit
def row_dx(
    g, x_hat, gamma, g_mean, gx_mean, rstd, dsum_ptr, dx_ptr, dresidual_ptr, mask, offsets
):  # fmt: skip
    """Store dx = rstd (gamma g - mean(gamma g) - x_hat mean(gamma g x_hat)), and g itself.

    dsum is what else flows back to x.
    """
    if dresidual_ptr is not None:
        tl.store(dresidual_ptr + offsets, g, mask=mask)
    if dx_ptr is not None:
        dx = gamma * g.to(rstd.dtype) - g_mean[:, None] - x_hat * gx_mean[:, None]
        dx *= rstd[:, None]
        if dsum_ptr is not None:
            dx += tl.load(dsum_ptr + offsets, mask=mask, other=0.0).to(dx.dtype)
        tl.store(dx_ptr + offsets, dx, mask=mask)


@triton.jit
def add_partials(
    partial_ptr, dweight_ptr, dbias_ptr, block, groups, L, BLOCK_L: tl.constexpr
):  # fmt: skip
    """dgamma and dbeta of a block of columns: partial sums (2, groups, L) added in order."""
    BLOCK_P: tl.constexpr = 32
    column = block * BLOCK_L + tl.arange(0, BLOCK_L)
    dweight = tl.zeros([BLOCK_L], partial_ptr.dtype.element_ty)
    dbias = tl.zeros([BLOCK_L], partial_ptr.dtype.element_ty)
    plane = groups.to(tl.int64) * L
    for first in range(0, groups, BLOCK_P):
        group = first + tl.arange(0, BLOCK_P).to(tl.int64)
        mask = (group < groups)[:, None] & (column < L)[None, :]
        slot = group[:, None] * L + column[None, :]
        if dweight_ptr is not None:
            dweight += tl.sum(tl.load(partial_ptr + slot, mask=mask, other=0.0), axis=0)
        if dbias_ptr is not None:
            dbias += tl.sum(tl.load(partial_ptr + plane + slot, mask=mask, other=0.0), axis=0)
    store_gradient(dweight_ptr, column, column < L, dweight)
    store_gradient(dbias_ptr, column, column < L, dbias)
