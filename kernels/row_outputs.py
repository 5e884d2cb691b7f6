"""Results for a tile of rows: the output and its mask of bits, gradients."""

import triton
import triton.language as tl

from .activation import activate, keeps_mask, masked_backward, passes, smooth_backward
from .arithmetic import across_lanes, split_shape, store_gradient
from .row_tiles import load, only_present, silu_gate, store


@triton.jit
def store_output(t, x, stats, affine, tile, s, K: tl.constexpr):
    """y = act(x_hat * gamma + beta + residual), and ReLU's bits if they are wanted."""
    ACTIVATION: tl.constexpr = K.ACTIVATION  # Triton 3.6 calls no function with a bare K.NAME
    PARAMETER: tl.constexpr = K.PARAMETER
    z = (x - stats.mean) * stats.rstd * affine.gamma + affine.beta
    if t.residual is not None:
        z += load(t.residual, tile).to(z.dtype)
    if K.GATE == "after":
        z *= silu_gate(load(t.gate, tile), z.dtype)
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
def affine_gradient(t, dy, gate, x_hat, affine, tile, s, K: tl.constexpr):
    """g, the gradient of x_hat gamma + beta: dy * act'(z), or dy silu(gate) if the gate comes
    after. In dy's dtype if that is exact, so that a 16-bit tile stays packed.

    ReLU's bits are used if they were kept; else z is computed again.
    """
    ACTIVATION: tl.constexpr = K.ACTIVATION
    PARAMETER: tl.constexpr = K.PARAMETER
    if K.GATE == "after":
        return dy.to(x_hat.dtype) * silu_gate(gate, x_hat.dtype)
    elif ACTIVATION is None:
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
        else:  # act'(z) may be NaN for missing elements
            return only_present(smooth_backward(dy.to(z.dtype), z, ACTIVATION, PARAMETER), tile, K)


@triton.jit
def gate_gradient(product, gate):
    """silu'(gate) times the gradient of y with respect to silu(gate)."""
    return smooth_backward(product, gate.to(product.dtype), "silu", 0.0)


@triton.jit
def store_own_gradients(t, g, x_hat, tile, K: tl.constexpr):
    """dweight = g x_hat and dbias = g, for rows that have their own parameters."""
    if K.PARAMETERS == "own":
        wide = g.to(x_hat.dtype)
        store_gradient(t.dweight, tile.offsets, tile.mask, wide * x_hat)
        store_gradient(t.dbias, tile.offsets, tile.mask, wide)


@triton.jit
def store_dx(t, g, x, dy, gate, x_hat, gamma, g_mean, gx_mean, rstd, tile, K: tl.constexpr):
    """dx = rstd (gamma g - mean(gamma g) - x_hat mean(gamma g x_hat)) + dsum, and g itself.

    If the gate comes before, it is the gradient of x silu(gate).
    """
    if t.dresidual is not None:
        store(t.dresidual, g, tile)
    if K.GATE == "after" and t.dgate is not None:
        store(t.dgate, gate_gradient(dy.to(rstd.dtype) * gamma * x_hat, gate), tile)
    if t.dx is not None or t.dgate is not None:
        dx = (gamma * g.to(rstd.dtype) - g_mean - x_hat * gx_mean) * rstd
        if t.dsum is not None:
            dx += load(t.dsum, tile).to(dx.dtype)
        if K.GATE == "before":
            if t.dgate is not None:
                store(t.dgate, gate_gradient(dx * x.to(dx.dtype), gate), tile)
            dx *= silu_gate(gate, dx.dtype)
        if t.dx is not None:
            store(t.dx, dx, tile)
