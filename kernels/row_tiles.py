"""Rows of x, seen as (R, L): what kernels are given, where a tile lies, what is done to one.

A *tile* is a register block of BLOCK_R rows and BLOCK_L columns. Rows longer than that have several
*parts*. Missing elements are loaded as 0.

A tile's columns are split in two axes, (outer, rows, inner), so that each warp takes rows of its
own, where they are short enough, and sums along them cross no warps. The order of the axes is that
of `arithmetic.py`.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .activation import activate, keeps_mask, masked_backward, passes, smooth_backward
from .arithmetic import (
    LANES_FIRST,
    accumulation_type,
    across,
    across_lanes,
    add_both,
    centred,
    chan_merge,
    product,
    split_shape,
)
from .tables import part_moments, part_sums

ENOUGH_TO_FUSE = tl.constexpr(256)  # columns of a tile, of which each thread then has several


class Choices(NamedTuple):
    """K of every kernel of rows: what it is compiled for. Nothing here follows from R."""

    CENTRED: bool  # layer norm, which has a mean; RMS norm's is 0
    ACTIVATION: str | None
    PARAMETER: float  # of the activation
    CLUSTER: bool  # a row's parts are programs that wait for one another
    ALIGN: int  # divides L, which kernels are given in multiples of it
    WHOLE: bool  # BLOCK_L divides L
    BLOCK_R: int
    BLOCK_L: int
    INNER: int  # columns of the inner axis
    STAGES: int = 1  # 1 plus the tiles that are on their way while one is worked on


class Forward(NamedTuple):
    """What the forward kernels read and write; optional tensors are None where there are none."""

    x: Any  # (R, L)
    addend: Any  # (R, L) or None: x + addend is normalised instead of x
    total: Any  # (R, L) or None: that sum
    residual: Any  # (R, L) or None
    weight: Any  # (L,) or None
    bias: Any  # (L,) or None
    y: Any  # (R, L)
    bits: Any  # (R, ceil(L / 8)) or None: where ReLU let z through
    stats: Any = None  # (2, R): rstd and mean; RMS norm's (R,)
    # Scratch: moments of parts of rows (3, parts, R), RMS norm's (parts, R); barriers or tickets.
    table: Any = None
    counters: Any = None


class Backward(NamedTuple):
    """What the backward kernels read and write."""

    x: Any  # (R, L)
    dy: Any  # (R, L)
    residual: Any  # (R, L) or None: smooth activations' alone
    bits: Any  # (R, ceil(L / 8)) or None
    weight: Any  # (L,) or None
    bias: Any  # (L,) or None
    stats: Any  # (2, R); RMS norm's (R,)
    dsum: Any  # (R, L) or None: a gradient that x has besides
    dx: Any  # (R, L) or None
    dresidual: Any  # (R, L) or None
    dweight: Any  # (L,) or None
    dbias: Any  # (L,) or None
    # Scratch: shares of dweight and dbias (2, groups, L), RMS norm's (groups, L); sums of parts of
    # rows (2, parts, R), RMS norm's (parts, R); a counter for each cluster.
    partial: Any = None
    table: Any = None
    barriers: Any = None


class Shares(NamedTuple):
    """What Backward has of the parameters' gradients."""

    partial: Any
    dweight: Any
    dbias: Any


class Sizes(NamedTuple):
    R: Any
    L: Any
    parts: Any  # of a row


class Tile(NamedTuple):
    row: Any  # of the tile's shape, with 1 column, as all values of rows are
    start: Any  # the first column
    mask: Any  # of the tile's shape, or with 1 column
    offsets: Any  # of the tile's shape, of elements


class Stats(NamedTuple):
    mean: Any  # of each row
    rstd: Any


class Affine(NamedTuple):
    gamma: Any  # of the tile's shape, the same in each row
    beta: Any


# --- where a tile lies ---


@triton.jit
def columns(K: tl.constexpr):
    """The columns of a tile, counted from its first: all but the axis of the rows."""
    outer = tl.arange(0, K.BLOCK_L // K.INNER) * K.INNER
    return across_lanes(outer) + tl.arange(0, K.INNER)[None, None, :]


@triton.jit
def row_tile(block, start, s, K: tl.constexpr):
    """The tile of the rows of a block whose first column is `start`."""
    row = across(tl.full([], K.BLOCK_R, tl.int64) * block + tl.arange(0, K.BLOCK_R))
    if not K.WHOLE:
        mask = (row < s.R) & (columns(K) < s.L - start)
    elif K.BLOCK_R > 1:
        mask = row < s.R
    else:
        mask = tl.full(row.shape, True, tl.int1)
    return Tile(row, start, mask, row * s.L + start + columns(K))


@triton.jit
def load(ptr, tile):
    """A tile as it is stored."""
    return tl.load(ptr + tile.offsets, mask=tile.mask, other=0.0)


@triton.jit
def store(ptr, value, tile):
    tl.store(ptr + tile.offsets, value, mask=tile.mask)


@triton.jit
def only_present(value, tile, K: tl.constexpr):
    """0 in columns that are not there; whole rows that are not there are 0 anyway."""
    if K.WHOLE:
        return value
    else:
        return tl.where(tile.mask, value, 0.0)


@triton.jit
def load_columns(ptr, start, default, s, K: tl.constexpr, ACC: tl.constexpr):
    """A parameter's slice of columns, for each row of a tile; `default` where there is none."""
    SHAPE: tl.constexpr = split_shape(K.BLOCK_L // K.INNER, K.BLOCK_R, K.INNER)
    column = tl.broadcast_to(columns(K), SHAPE)  # laid out as a tile is
    if ptr is None:
        return tl.full(SHAPE, default, ACC)
    elif K.WHOLE:
        return tl.load(ptr + start + column).to(ACC)
    else:
        return tl.load(ptr + start + column, mask=column < s.L - start, other=default).to(ACC)


@triton.jit
def load_affine(t, start, s, K: tl.constexpr):
    """gamma and beta of a slice of columns, 1 and 0 where there are none."""
    ACC: tl.constexpr = accumulation_type(t.x.dtype.element_ty)
    gamma = load_columns(t.weight, start, 1.0, s, K, ACC)
    return Affine(gamma, load_columns(t.bias, start, 0.0, s, K, ACC))


@triton.jit
def load_stats(stats_ptr, tile, s, K: tl.constexpr):
    """What store_stats has left; missing rows have 0."""
    rstd = tl.load(stats_ptr + tile.row, mask=tile.row < s.R, other=0.0)
    if K.CENTRED:
        return Stats(tl.load(stats_ptr + s.R + tile.row, mask=tile.row < s.R, other=0.0), rstd)
    else:
        return Stats(tl.zeros_like(rstd), rstd)


@triton.jit
def store_stats(stats_ptr, stats, tile, mask, s, K: tl.constexpr):
    tl.store(stats_ptr + tile.row, stats.rstd, mask=mask)
    if K.CENTRED:
        tl.store(stats_ptr + s.R + tile.row, stats.mean, mask=mask)


# --- sums along rows ---


@triton.jit
def normalised(x, stats, tile, K: tl.constexpr):
    """x_hat of a tile as it is stored."""
    return only_present((x.to(stats.rstd.dtype) - stats.mean) * stats.rstd, tile, K)


@triton.jit
def sum_along(x):
    """The sum along each row of a tile."""
    OUTER: tl.constexpr = 1 if LANES_FIRST else 0
    return tl.sum(tl.sum(x, axis=OUTER, keep_dims=True), axis=2, keep_dims=True)


@triton.jit
def row_sum(a, b, K: tl.constexpr):
    """The sum of a * b along each row.

    A product and the first step of a sum across lanes must not become one operation (see
    `product`). Where each thread has several columns their sum comes between.
    """
    if K.BLOCK_L >= ENOUGH_TO_FUSE:
        return sum_along(a * b)
    else:
        return sum_along(product(a, b))


@triton.jit
def row_sums(x, a, b, K: tl.constexpr):
    """The sums of x and of a * b along each row, in one round."""
    products = a * b if K.BLOCK_L >= ENOUGH_TO_FUSE else product(a, b)
    OUTER: tl.constexpr = 1 if LANES_FIRST else 0
    x = tl.sum(x, axis=OUTER, keep_dims=True)
    products = tl.sum(products, axis=OUTER, keep_dims=True)
    return tl.reduce((x, products), 2, add_both, keep_dims=True)


@triton.jit
def row_moments(x, count, tile, K: tl.constexpr):
    """(mean, M2) of each row of a tile, which has `count` columns.

    Means are sums of shares: a sum would overflow where the mean
    does not.
    """
    if K.CENTRED:
        mean = row_sum(x, tl.zeros_like(x) + 1.0 / count, K)
        deviation = only_present(x - mean, tile, K)
        total, squares = row_sums(deviation, deviation, deviation, K)
        return centred(mean, total, squares, count)
    else:
        m2 = row_sum(x, x, K)
        return tl.zeros_like(m2), m2


@triton.jit
def merge_moments(count, mean, m2, count_b, mean_b, m2_b, K: tl.constexpr):
    """The moments of two parts of the same rows together."""
    if K.CENTRED:
        return chan_merge(count, mean, m2, count_b, mean_b, m2_b)
    else:
        return count, mean, m2 + m2_b


@triton.jit
def gradient_sums(weighted, x_hat, K: tl.constexpr):
    """Of each row of a tile the sums of gamma g and gamma g x_hat; the first is the mean's."""
    if K.CENTRED:
        return row_sums(weighted, weighted, x_hat, K)
    else:
        gx = row_sum(weighted, x_hat, K)
        return tl.zeros_like(gx), gx


# --- what parts of rows leave for one another ---


@triton.jit
def publish(table_ptr, values, part, tile, s):
    """A tuple of values of each row, a plane (parts, R) each."""
    slot = part * s.R.to(tl.int64) + tile.row
    for i in tl.static_range(len(values)):
        tl.store(table_ptr + i * s.parts * s.R.to(tl.int64) + slot, values[i], mask=tile.row < s.R)


@triton.jit
def publish_moments(table_ptr, count, mean, m2, part, tile, s, K: tl.constexpr):
    if K.CENTRED:
        publish(table_ptr, (count, mean, m2), part, tile, s)
    else:
        publish(table_ptr, (m2,), part, tile, s)


@triton.jit
def published_moments(table_ptr, tile, s, K: tl.constexpr):
    """(mean, M2) of whole rows from what publish_moments left of their parts, in order."""
    BLOCK_R: tl.constexpr = K.BLOCK_R
    row = tl.reshape(tile.row, [BLOCK_R])
    if K.CENTRED:
        plane = s.parts * s.R.to(tl.int64)
        planes = (table_ptr, table_ptr + plane, table_ptr + 2 * plane)
        _, mean, m2 = part_moments(planes, 0, row, row < s.R, s.R, s.parts, BLOCK_R)
        return across(mean), across(m2)
    else:
        m2 = across(part_sums(table_ptr, 0, row, row < s.R, s.R, s.parts, BLOCK_R))
        return tl.zeros_like(m2), m2


@triton.jit
def publish_sums(table_ptr, g, gx, part, tile, s, K: tl.constexpr):
    if K.CENTRED:
        publish(table_ptr, (gx, g), part, tile, s)
    else:
        publish(table_ptr, (gx,), part, tile, s)


@triton.jit
def published_sums(table_ptr, tile, s, K: tl.constexpr):
    """(g, gx) of whole rows from what publish_sums left of their parts, in order."""
    gx = few_sums(table_ptr, tile, s, K)
    if K.CENTRED:
        return few_sums(table_ptr + s.parts * s.R.to(tl.int64), tile, s, K), gx
    else:
        return tl.zeros_like(gx), gx


@triton.jit
def few_sums(table_ptr, tile, s, K: tl.constexpr):
    """Each row's sum over its parts, in order; parts are loaded some at a time, past the L1 cache,
    which other programs' stores do not reach."""
    BLOCK_P: tl.constexpr = 8
    row = tl.reshape(tile.row, [K.BLOCK_R])
    total = tl.full([BLOCK_P, K.BLOCK_R], 0.0, table_ptr.dtype.element_ty)
    for first in range(0, s.parts, BLOCK_P):
        part = first + tl.arange(0, BLOCK_P)
        slot = part[:, None] * s.R.to(tl.int64) + row[None, :]
        here = (part < s.parts)[:, None] & (row < s.R)[None, :]
        total += tl.load(table_ptr + slot, mask=here, other=0.0, cache_modifier=".cg")
    return across(tl.sum(total, axis=0))


# --- the output, its mask of bits, the gradient ---


@triton.jit
def store_output(t, x, stats, affine, tile, s, K: tl.constexpr):
    """y = act(x_hat * gamma + beta + residual), and ReLU's bits where they are wanted."""
    ACTIVATION: tl.constexpr = K.ACTIVATION  # Triton 3.6 calls no function with a bare K.NAME
    PARAMETER: tl.constexpr = K.PARAMETER
    z = (x - stats.mean) * stats.rstd * affine.gamma + affine.beta
    if t.residual is not None:
        z += load(t.residual, tile).to(z.dtype)
    if t.bits is not None:
        SHAPE: tl.constexpr = split_shape(K.BLOCK_L // K.INNER, K.BLOCK_R, K.INNER // 8, 8)
        bits = tl.reshape(passes(z, ACTIVATION).to(tl.int32), SHAPE) << bit_of_byte()
        offsets, mask = bit_bytes(tile, s, K)
        tl.store(t.bits + offsets, tl.sum(bits, axis=3).to(tl.uint8), mask=mask)
    store(t.y, activate(z, ACTIVATION, PARAMETER), tile)


@triton.jit
def bit_of_byte():
    return tl.arange(0, 8)[None, None, None, :]


@triton.jit
def bit_bytes(tile, s, K: tl.constexpr):
    """(offsets, mask) of a tile's bytes in ReLU's mask: bits of 8 neighbours, each row's own."""
    outer = tl.arange(0, K.BLOCK_L // K.INNER) * (K.INNER // 8)
    byte = across_lanes(outer) + tl.arange(0, K.INNER // 8)[None, None, :]
    offsets = tile.row * tl.cdiv(s.L, 8) + tile.start // 8 + byte
    return offsets, (tile.row < s.R) & (byte * 8 < s.L - tile.start)


@triton.jit
def activation_gradient(t, dy, x_hat, affine, tile, s, K: tl.constexpr):
    """g = dy * act'(z): in dy's dtype where that is exact, so that a 16-bit tile stays packed.

    Where ReLU's bits were kept they tell; else z is computed again.
    """
    ACTIVATION: tl.constexpr = K.ACTIVATION
    PARAMETER: tl.constexpr = K.PARAMETER
    if ACTIVATION is None:
        return dy
    elif t.bits is not None:
        offsets, mask = bit_bytes(tile, s, K)
        byte = tl.load(t.bits + offsets, mask=mask, other=0).to(tl.int32)
        bits = (byte[:, :, :, None] >> bit_of_byte()) & 1
        return masked_backward(dy, tl.reshape(bits, dy.shape) != 0, ACTIVATION, PARAMETER)
    else:
        z = x_hat * affine.gamma + affine.beta
        if t.residual is not None:
            z += load(t.residual, tile).to(z.dtype)
        if keeps_mask(ACTIVATION):
            return masked_backward(dy, passes(z, ACTIVATION), ACTIVATION, PARAMETER)
        else:  # act'(z) of what is not there may be NaN
            return only_present(smooth_backward(dy.to(z.dtype), z, ACTIVATION, PARAMETER), tile, K)


@triton.jit
def store_dx(t, g, x_hat, gamma, g_mean, gx_mean, rstd, tile):
    """dx = rstd (gamma g - mean(gamma g) - x_hat mean(gamma g x_hat)) + dsum, and g itself."""
    if t.dresidual is not None:
        store(t.dresidual, g, tile)
    if t.dx is not None:
        dx = (gamma * g.to(rstd.dtype) - g_mean - x_hat * gx_mean) * rstd
        if t.dsum is not None:
            dx += load(t.dsum, tile).to(dx.dtype)
        store(t.dx, dx, tile)
