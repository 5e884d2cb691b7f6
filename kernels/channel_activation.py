"""The activation of a tile: its output, ReLU's mask of bits, and g = dy * act'(z).

z, the input of the activation, is the norm of x plus a residual. With a residual the mask keeps one
bit for each element; without one, z is computed again from x.
"""

import triton
import triton.language as tl

from .activation import activate, keeps_mask, masked_backward, passes, smooth_backward
from .arithmetic import across, across_lanes, split_shape
from .channel_tiles import load, positions, rows, spread, store


@triton.jit
def store_output(t, x, affine, tile, s, K: tl.constexpr):
    """y = act(x * scale + shift + residual) of the centred x, and ReLU's bits if wanted."""
    ACTIVATION: tl.constexpr = K.ACTIVATION  # Triton 3.6 calls no function with a bare K.NAME
    PARAMETER: tl.constexpr = K.PARAMETER
    z = x * spread(affine.scale, K) + spread(affine.shift, K)
    if t.residual is not None:
        z += load(t.residual, tile).to(z.dtype)
    if t.bits is not None:
        store_bits(t.bits, passes(z, ACTIVATION), tile, s, K)
    store(t.y, activate(z, ACTIVATION, PARAMETER), tile)


@triton.constexpr_function
def depends_on_x(variance, of_weight, activation, masked):
    """Whether a backward reads x. If only means are taken and z's sign was kept, only dgamma
    needs it."""
    return variance or of_weight or (activation is not None and not masked)


@triton.jit
def load_pair(t, tile, OF_WEIGHT: tl.constexpr, K: tl.constexpr):
    """A backward's tiles of x and dy as they are stored; OF_WEIGHT if dgamma is wanted. If nothing
    depends on x, dy replaces it."""
    dy = load(t.dy, tile)
    if depends_on_x(K.VARIANCE, OF_WEIGHT, K.ACTIVATION, t.bits is not None):
        return load(t.x, tile), dy
    else:
        return dy, dy


@triton.jit
def activation_gradient(t, x, dy, affine, tile, s, K: tl.constexpr):
    """g = dy * act'(z): in dy's dtype if that is exact, so that a 16-bit tile stays packed.

    ReLU's bits are used if they were kept. Else z = x * scale + shift, of the centred x, plus the
    residual, if there is one.
    """
    ACTIVATION: tl.constexpr = K.ACTIVATION
    PARAMETER: tl.constexpr = K.PARAMETER
    if ACTIVATION is None:
        return dy
    elif t.bits is not None:
        active = load_bits(t.bits, tile, s, K)
        return masked_backward(dy, active, ACTIVATION, PARAMETER)
    else:
        z = x * spread(affine.scale, K) + spread(affine.shift, K)
        if t.residual is not None:
            z += load(t.residual, tile).to(z.dtype)
        if keeps_mask(ACTIVATION):
            return masked_backward(dy, passes(z, ACTIVATION), ACTIVATION, PARAMETER)
        else:  # act'(z) may be NaN for missing elements
            return tl.where(
                tile.mask, smooth_backward(dy.to(z.dtype), z, ACTIVATION, PARAMETER), 0.0
            )


# --- ReLU's bits, each for 8 neighbours on the contiguous axis: (N, C, S / 8) or (N, S, C / 8), the
# --- last axis rounded up


@triton.jit
def bit_bytes(tile, s, K: tl.constexpr):
    """(offsets, mask) of the bytes that hold a tile's bits."""
    if K.CHANNELS_LAST:
        lane = tl.arange(0, K.LANES // 8) * 8
        n = tile.n + lane // K.BLOCK_C
        local = tile.at.block * K.BLOCK_C + lane % K.BLOCK_C
        c = tile.at.u * s.W + local
        mask = (local < s.W) & (c < s.C) & (n < s.N)
        return _bytes_of_lanes(n, c // 8, mask, tile, s, K)
    elif K.ROW > 0:
        first = _first_byte(tile, s)
        row, byte = rows(K, 8)
        offsets = across(first) + row * (tl.zeros([1], tl.int64) + s.C) * tl.cdiv(s.S, 8) + byte
        mask = across(tile.lanes.mask) & (byte * 8 < s.S - tile.start)
        return offsets, mask & (row < s.N - tile.n)
    else:
        first = _first_byte(tile, s)
        outer = across_lanes(tl.arange(0, K.BLOCK_S // K.INNER) * (K.INNER // 8))
        byte = outer + tl.arange(0, K.INNER // 8)[None, None, :]
        return across(first) + byte, across(tile.lanes.mask) & (byte * 8 < s.S - tile.start)


@triton.jit
def _first_byte(tile, s):
    """Offset of the first byte of each lane of a contiguous tile."""
    return (tile.lanes.n * s.C + tile.lanes.c) * tl.cdiv(s.S, 8) + tile.start // 8


@triton.jit
def _bytes_of_lanes(n, byte, mask, tile, s, K: tl.constexpr):
    """(offsets, mask) of one byte at each position of a tile with channels last."""
    row_bytes = tl.zeros([1], tl.int64) + tl.cdiv(s.C, 8)
    first = (n * s.S + tile.start) * row_bytes + byte
    offsets = spread(first, K) + positions(K) * row_bytes
    return offsets, spread(mask, K) & (positions(K) < s.S - tile.start)


@triton.jit
def store_bits(bits_ptr, active, tile, s, K: tl.constexpr):
    """Keep one bit for each element of a tile: whether ReLU let it through."""
    OUTER: tl.constexpr = K.BLOCK_S // K.INNER
    MIDDLE: tl.constexpr = K.INNER if K.CHANNELS_LAST else K.LANES
    INNER: tl.constexpr = K.LANES if K.CHANNELS_LAST else K.INNER
    SHAPE: tl.constexpr = split_shape(OUTER, MIDDLE, INNER // 8, 8)
    offsets, mask = bit_bytes(tile, s, K)
    bits = tl.reshape(active.to(tl.int32), SHAPE) << tl.arange(0, 8)[None, None, None, :]
    tl.store(bits_ptr + offsets, tl.sum(bits, axis=3).to(tl.uint8), mask=mask)


@triton.jit
def load_bits(bits_ptr, tile, s, K: tl.constexpr):
    """The tile's bits as booleans; False for missing elements."""
    if K.CHANNELS_LAST and K.ALIGN_W < 8:  # a unit's channels may begin inside a byte
        lanes = tile.lanes
        offsets, mask = _bytes_of_lanes(lanes.n, lanes.c // 8, lanes.mask, tile, s, K)
        byte = tl.load(bits_ptr + offsets, mask=mask, other=0).to(tl.int32)
        return (byte >> spread(lanes.c % 8, K)) & 1 != 0
    else:
        offsets, mask = bit_bytes(tile, s, K)
        byte = tl.load(bits_ptr + offsets, mask=mask, other=0).to(tl.int32)
        bits = (byte[:, :, :, None] >> tl.arange(0, 8)[None, None, None, :]) & 1
        return tl.reshape(bits, tile.mask.shape) != 0
