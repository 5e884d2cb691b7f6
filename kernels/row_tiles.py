"""Device functions of the row kernels: tiles of x seen as (R, L), parameters of shape (L,)."""

import triton
import triton.language as tl

from .device import activate, activate_backward, load_or


@triton.jit
def row_tile(x_ptr, row, column, R, L, ACC: tl.constexpr):
    """A (BLOCK_R, BLOCK_L) tile in the accumulation type, its mask and its offsets."""
    mask = (row < R)[:, None] & (column < L)[None, :]
    offsets = row[:, None] * L + column[None, :]
    return tl.load(x_ptr + offsets, mask=mask, other=0.0).to(ACC), mask, offsets


@triton.jit
def row_output(
    x, mean, rstd, residual_ptr, weight_ptr, bias_ptr, y_ptr, column, mask, offsets, L,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    gamma = load_or(weight_ptr, column, column < L, 1.0, x.dtype)[None, :]
    beta = load_or(bias_ptr, column, column < L, 0.0, x.dtype)[None, :]
    z = (x - mean[:, None]) * rstd[:, None] * gamma + beta
    if residual_ptr is not None:
        z += tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(x.dtype)
    tl.store(y_ptr + offsets, activate(z, ACTIVATION), mask=mask)


@triton.jit
def row_gradient(
    x_ptr, dy_ptr, side_ptr, weight_ptr, bias_ptr, mean, rstd, row, column, R, L,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    """(x_hat, g, gamma, mask, offsets) of a tile: g = dy * act'(z), z recomputed from x."""
    x, mask, offsets = row_tile(x_ptr, row, column, R, L, mean.dtype)
    x_hat = tl.where(mask, (x - mean[:, None]) * rstd[:, None], 0.0)
    g = tl.load(dy_ptr + offsets, mask=mask, other=0.0).to(mean.dtype)
    gamma = load_or(weight_ptr, column, column < L, 1.0, mean.dtype)[None, :]
    if ACTIVATION == "relu" and side_ptr is not None:
        g = activate_backward(g, tl.load(side_ptr + offsets, mask=mask, other=0.0), ACTIVATION)
    elif ACTIVATION is not None:
        z = x_hat * gamma + load_or(bias_ptr, column, column < L, 0.0, mean.dtype)[None, :]
        if side_ptr is not None:
            z += tl.load(side_ptr + offsets, mask=mask, other=0.0).to(mean.dtype)
        g = activate_backward(g, z, ACTIVATION)
    return x_hat, g, gamma, mask, offsets


@triton.jit
def row_dx(x_hat, g, gamma, g_mean, gx_mean, rstd, dx_ptr, dresidual_ptr, mask, offsets):
    if dresidual_ptr is not None:
        tl.store(dresidual_ptr + offsets, g, mask=mask)
    if dx_ptr is not None:
        dx = rstd[:, None] * (gamma * g - g_mean[:, None] - x_hat * gx_mean[:, None])
        tl.store(dx_ptr + offsets, dx, mask=mask)
