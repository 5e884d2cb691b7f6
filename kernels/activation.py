"""What an activation makes of a tile: its output, ReLU's mask of bits, and g = dy * act'(z).

z is what is activated, the norm of x plus a residual. The mask keeps a bit for each element where a
residual is added: without one, z is recomputed from x.
"""

import triton
import triton.language as tl

from .arithmetic import across, split_shape
from .tiles import split_positions, tile_lanes

INV_SQRT2 = tl.constexpr(0.7071067811865476)
INV_SQRT_2PI = tl.constexpr(0.3989422804014327)


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        return tl.where(z <= 0.0, 0.0, z)  # not maximum: NaN has to go through
    elif ACTIVATION == "silu":
        return z / (1.0 + tl.exp(-z))
    elif ACTIVATION == "gelu":
        return 0.5 * z * (1.0 + tl.erf(z * INV_SQRT2))
    else:
        return z


@triton.jit
def smooth_backward(dy, z, ACTIVATION: tl.constexpr):
    """dy * act'(z) of a smooth activation."""
    if ACTIVATION == "silu":
        sigmoid = 1.0 / (1.0 + tl.exp(-z))
        return dy * sigmoid * (1.0 + z * (1.0 - sigmoid))
    else:
        tl.static_assert(ACTIVATION == "gelu")
        cdf = 0.5 * (1.0 + tl.erf(z * INV_SQRT2))
        return dy * (cdf + z * INV_SQRT_2PI * tl.exp(-0.5 * z * z))


@triton.jit
def store_output(
    z, residual_ptr, y_ptr, bits_ptr, offsets, mask, n, u, r, start, N, W, C, S,
    ACTIVATION: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Store y = act(z + residual), and ReLU's bits where they are wanted."""
    if residual_ptr is not None:
        z += tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(z.dtype)
    if bits_ptr is not None:
        store_bits(
            bits_ptr, (z <= 0.0) == 0, n, u, r, start, N, W, C, S, CHANNELS_LAST, BLOCK_N, BLOCK_C,
            BLOCK_S, INNER,
        )  # fmt: skip
    tl.store(y_ptr + offsets, activate(z, ACTIVATION), mask=mask)


@triton.jit
def load_tiles(
    x_ptr, dy_ptr, bits_ptr, offsets, mask, ACTIVATION: tl.constexpr, VARIANCE: tl.constexpr
):  # fmt: skip
    """A backward's tiles of x and dy as they are stored.

    Nothing depends on x where only means are taken and z's sign was kept: dy takes its place.
    """
    dy = tl.load(dy_ptr + offsets, mask=mask, other=0.0)
    READS_X: tl.constexpr = VARIANCE or (ACTIVATION is not None and bits_ptr is None)
    if READS_X:
        return tl.load(x_ptr + offsets, mask=mask, other=0.0), dy
    else:
        return dy, dy


@triton.jit
def tile_gradient(
    x, dy, residual_ptr, bits_ptr, scale, shift, offsets, mask, n, u, r, start, N, W, C, S,
    ACTIVATION: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALIGN_W: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """g = dy * act'(z): in dy's dtype where that is exact, so that a 16-bit tile stays packed.

    Where ReLU's bits were kept they tell. Else z = x * scale + shift, of the centred x, and the
    residual, if there is one.
    """
    if ACTIVATION is None:
        return dy
    elif bits_ptr is not None:
        active = load_bits(
            bits_ptr, n, u, r, start, N, W, C, S, CHANNELS_LAST, ALIGN_W, BLOCK_N, BLOCK_C,
            BLOCK_S, INNER,
        )  # fmt: skip
        return tl.where(tl.reshape(active, dy.shape), dy, 0.0).to(dy.dtype)
    else:
        z = x * scale + shift
        if residual_ptr is not None:
            z += tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(z.dtype)
        if ACTIVATION == "relu":
            return tl.where(z <= 0.0, 0.0, dy).to(dy.dtype)
        else:  # act'(z) of what is not there may be NaN
            return tl.where(mask, smooth_backward(dy.to(z.dtype), z, ACTIVATION), 0.0)


@triton.jit
def bit_bytes(
    n, u, r, start, N, W, C, S, CHANNELS_LAST: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """(offsets, mask) of a tile's bytes in the ReLU mask: bits of 8 neighbours on the contiguous
    axis, (N, C, S / 8) or (N, S, C / 8), each last axis rounded up."""
    if CHANNELS_LAST:
        LANES: tl.constexpr = BLOCK_N * BLOCK_C // 8
        lane = tl.arange(0, LANES) * 8
        n = n + lane // BLOCK_C
        local = r * BLOCK_C + lane % BLOCK_C
        c = u * W + local
        row_mask = (local < W) & (c < C) & (n < N)
        row_bytes = tl.zeros([1], tl.int64) + tl.cdiv(C, 8)
        position = tl.arange(0, BLOCK_S)
        offsets = ((n * S + start) * row_bytes + c // 8)[:, None] + (position * row_bytes)[None, :]
        return offsets, row_mask[:, None] & (position < S - start)[None, :]
    else:
        n, c, row_mask = tile_lanes(n, u, r, N, W, C, BLOCK_N, BLOCK_C)
        byte = split_positions(BLOCK_S // 8, INNER // 8)
        offsets = across((n * C + c) * tl.cdiv(S, 8) + start // 8, False) + byte
        return offsets, across(row_mask, False) & (byte * 8 < S - start)


@triton.jit
def store_bits(
    bits_ptr, active, n, u, r, start, N, W, C, S, CHANNELS_LAST: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Keep one bit for each element of a tile: whether ReLU let it through."""
    LANES: tl.constexpr = BLOCK_N * BLOCK_C
    offsets, mask = bit_bytes(
        n, u, r, start, N, W, C, S, CHANNELS_LAST, BLOCK_N, BLOCK_C, BLOCK_S, INNER
    )
    shift = tl.arange(0, 8)
    if CHANNELS_LAST:
        bits = tl.reshape(active.to(tl.int32), [LANES // 8, 8, BLOCK_S]) << shift[None, :, None]
        byte = tl.sum(bits, axis=1)
    else:
        SHAPE: tl.constexpr = split_shape(BLOCK_S // INNER, LANES, INNER // 8, 8)
        bits = tl.reshape(active.to(tl.int32), SHAPE)
        byte = tl.sum(bits << shift[None, None, None, :], axis=3)
    tl.store(bits_ptr + offsets, byte.to(tl.uint8), mask=mask)


@triton.jit
def load_single_bits(
    bits_ptr, n, u, r, start, N, W, C, S, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):  # fmt: skip
    """load_bits where a unit's channels may begin inside a byte: a load for each bit."""
    n, c, mask = tile_lanes(n, u, r, N, W, C, BLOCK_N, BLOCK_C)
    row_bytes = tl.zeros([1], tl.int64) + tl.cdiv(C, 8)
    position = tl.arange(0, BLOCK_S)
    offsets = ((n * S + start) * row_bytes + c // 8)[:, None] + (position * row_bytes)[None, :]
    mask = mask[:, None] & (position < S - start)[None, :]
    byte = tl.load(bits_ptr + offsets, mask=mask, other=0).to(tl.int32)
    return (byte >> (c % 8)[:, None]) & 1 != 0


@triton.jit
def load_bits(
    bits_ptr, n, u, r, start, N, W, C, S, CHANNELS_LAST: tl.constexpr, ALIGN_W: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """The tile's bits again, as booleans; what is not there is False."""
    LANES: tl.constexpr = BLOCK_N * BLOCK_C
    if CHANNELS_LAST and ALIGN_W < 8:
        return load_single_bits(bits_ptr, n, u, r, start, N, W, C, S, BLOCK_N, BLOCK_C, BLOCK_S)
    offsets, mask = bit_bytes(
        n, u, r, start, N, W, C, S, CHANNELS_LAST, BLOCK_N, BLOCK_C, BLOCK_S, INNER
    )
    byte = tl.load(bits_ptr + offsets, mask=mask, other=0).to(tl.int32)
    shift = tl.arange(0, 8)
    if CHANNELS_LAST:
        bits = (byte[:, None, :] >> shift[None, :, None]) & 1
        return tl.reshape(bits, [LANES, BLOCK_S]) != 0
    else:
        bits = (byte[:, :, :, None] >> shift[None, None, None, :]) & 1
        SHAPE: tl.constexpr = split_shape(BLOCK_S // INNER, LANES, INNER)
        return tl.reshape(bits, SHAPE) != 0
