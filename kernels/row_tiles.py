"""Device functions of the row kernels: tiles of x seen as (R, L), parameters of shape (L,)."""

import triton
import triton.language as tl

from .activation import store_output, tile_gradient
from .arithmetic import load_or, store_gradient


@triton.jit
def column_mask(start, L, BLOCK_L: tl.constexpr):
    """Which columns of the slice that begins at `start` there are."""
    return tl.arange(0, BLOCK_L) < L - start


@triton.jit
def row_tile(x_ptr, first, start, R, L, BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr):
    """A (BLOCK_R, BLOCK_L) tile as it is stored, its rows, columns, mask and offsets."""
    row = first + tl.arange(0, BLOCK_R)
    column = start + tl.arange(0, BLOCK_L)
    mask = (row < R)[:, None] & column_mask(start, L, BLOCK_L)[None, :]
    offsets = (row * L + start)[:, None] + tl.arange(0, BLOCK_L)[None, :]
    return tl.load(x_ptr + offsets, mask=mask, other=0.0), row, column, mask, offsets


@triton.jit
def plus_addend(x, addend_ptr, mask, offsets, ACC: tl.constexpr):
    """A tile of x plus the addend's, rounded as x is: what is normalised is what is returned."""
    addend = tl.load(addend_ptr + offsets, mask=mask, other=0.0)
    return (x.to(ACC) + addend.to(ACC)).to(x.dtype)


@triton.jit
def row_parameter(ptr, column, start, L, default, BLOCK_L: tl.constexpr, ACC: tl.constexpr):
    """A parameter's columns as a row, `default` where there is none."""
    return load_or(ptr, column, column_mask(start, L, BLOCK_L), default, ACC)[None, :]


@triton.jit
def row_output(
    x, mean, rstd, residual_ptr, weight_ptr, bias_ptr, y_ptr, bits_ptr, first, start, column, mask,
    offsets, R, L, ACTIVATION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """Store y, and ReLU's bits where they are wanted."""
    gamma = row_parameter(weight_ptr, column, start, L, 1.0, BLOCK_L, mean.dtype)
    beta = row_parameter(bias_ptr, column, start, L, 0.0, BLOCK_L, mean.dtype)
    z = (x.to(mean.dtype) - mean[:, None]) * rstd[:, None] * gamma + beta
    store_output(  # as R instances of one channel
        z, residual_ptr, y_ptr, bits_ptr, offsets, mask, first, 0, 0, start, R, 1, 1, L, ACTIVATION,
        False, BLOCK_R, 1, BLOCK_L, BLOCK_L,
    )  # fmt: skip


@triton.jit
def row_gradient(
    x, dy, mean, rstd, residual_ptr, weight_ptr, bias_ptr, bits_ptr, first, start, column, mask,
    offsets, R, L, ACTIVATION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """(g, x_hat, gamma) of a tile: g = dy * act'(z) in dy's dtype, z recomputed from x."""
    gamma = row_parameter(weight_ptr, column, start, L, 1.0, BLOCK_L, mean.dtype)
    beta = row_parameter(bias_ptr, column, start, L, 0.0, BLOCK_L, mean.dtype)
    x_hat = tl.where(mask, (x.to(mean.dtype) - mean[:, None]) * rstd[:, None], 0.0)
    g = tile_gradient(  # as R instances of one channel
        x_hat, dy, residual_ptr, bits_ptr, gamma, beta, offsets, mask, first, 0, 0, start, R, 1, 1,
        L, ACTIVATION, False, 1, BLOCK_R, 1, BLOCK_L, BLOCK_L,
    )  # fmt: skip
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
def store_partials(
    partial_ptr, dweight, dbias, start, group, groups, L, CENTRED: tl.constexpr,
    BLOCK_L: tl.constexpr,
):  # fmt: skip
    """A group's share of dgamma and dbeta into (2, groups, L); not CENTRED, (groups, L)."""
    column = start + tl.arange(0, BLOCK_L)
    slot = group.to(tl.int64) * L + column
    tl.store(partial_ptr + slot, dweight, mask=column < L)
    if CENTRED:
        tl.store(partial_ptr + groups.to(tl.int64) * L + slot, dbias, mask=column < L)


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
