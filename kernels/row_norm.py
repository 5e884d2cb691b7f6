"""Layer normalisation of rows: x seen as (R, L), gamma and beta of shape (L,).

y = act((x - mean) * rstd * gamma + beta + residual), statistics of each row (arXiv 1607.06450).
A row that fits a tile is read once; a longer one is walked over twice. dgamma and dbeta are sums
over rows: each program leaves a partial sum and a second kernel adds those in a fixed order.
"""

import math

import torch
import triton
import triton.language as tl

from .device import (
    accumulation_dtype,
    activate,
    activate_backward,
    chan_merge,
    inverse_std,
    load_or,
    tile_moments,
)
from .launch import (
    ENOUGH_PROGRAMS,
    GPU_TILE,
    INTERPRETED,
    INTERPRETER_TILE,
    accumulation,
    launch,
)

LONGEST_TILE = 16384  # elements of a row that one program keeps in registers
LONG_ROW_TILE = 4096


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


@triton.jit(do_not_specialize=["R"])
def row_norm_kernel(
    x_ptr,  # (R, L)
    residual_ptr,  # (R, L) or None
    weight_ptr,  # (L,) or None
    bias_ptr,  # (L,) or None
    y_ptr,  # (R, L)
    mean_ptr,  # (R,)
    rstd_ptr,  # (R,)
    R,
    L,
    eps: tl.float64,
    ACTIVATION: tl.constexpr,
    FITS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    ACC: tl.constexpr = accumulation_dtype(x_ptr)
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    lane = tl.arange(0, BLOCK_L)
    if FITS:
        x, mask, offsets = row_tile(x_ptr, row, lane, R, L, ACC)
        mean, m2 = tile_moments(x, mask, tl.zeros([BLOCK_R], ACC) + L)
        rstd = inverse_std(m2 / L, eps)
        row_output(
            x, mean, rstd, residual_ptr, weight_ptr, bias_ptr, y_ptr, lane, mask, offsets, L,
            ACTIVATION,
        )  # fmt: skip
    else:
        count = tl.zeros([BLOCK_R], ACC)
        mean = tl.zeros([BLOCK_R], ACC)
        m2 = tl.zeros([BLOCK_R], ACC)
        for start in range(0, L, BLOCK_L):
            x, mask, offsets = row_tile(x_ptr, row, start + lane, R, L, ACC)
            tile_count = tl.zeros([BLOCK_R], ACC) + tl.minimum(L - start, BLOCK_L)
            tile_mean, tile_m2 = tile_moments(x, mask, tile_count)
            count, mean, m2 = chan_merge(count, mean, m2, tile_count, tile_mean, tile_m2)
        rstd = inverse_std(m2 / L, eps)
        for start in range(0, L, BLOCK_L):
            x, mask, offsets = row_tile(x_ptr, row, start + lane, R, L, ACC)
            row_output(
                x, mean, rstd, residual_ptr, weight_ptr, bias_ptr, y_ptr, start + lane, mask,
                offsets, L, ACTIVATION,
            )  # fmt: skip
    tl.store(mean_ptr + row, mean, mask=row < R)
    tl.store(rstd_ptr + row, rstd, mask=row < R)


def row_norm(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    *,
    normalized_ndim: int,
    eps: float,
    activation: str | None,
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """y (contiguous, x's dtype) and (mean, rstd) of shape (R,) in the accumulation dtype."""
    x = x.contiguous()
    R, L = _rows(x, normalized_ndim)
    y = torch.empty_like(x)
    mean, rstd = x.new_empty((2, R), dtype=accumulation(x)).unbind()
    BLOCK_R, BLOCK_L = _blocks(R, L)
    launch(
        row_norm_kernel,
        triton.cdiv(R, BLOCK_R),
        x,
        x,
        None if residual is None else residual.contiguous(),
        weight,
        bias,
        y,
        mean,
        rstd,
        R,
        L,
        eps,
        ACTIVATION=activation,
        FITS=BLOCK_L >= L,
        BLOCK_R=BLOCK_R,
        BLOCK_L=BLOCK_L,
        num_warps=_warps(BLOCK_R * BLOCK_L),
    )
    return y, (mean, rstd)


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


@triton.jit(do_not_specialize=["R", "steps"])
def row_norm_backward_kernel(
    x_ptr,  # (R, L)
    dy_ptr,  # (R, L)
    side_ptr,  # (R, L) or None: y for ReLU, else the residual
    weight_ptr,  # (L,) or None
    bias_ptr,  # (L,) or None
    mean_ptr,  # (R,)
    rstd_ptr,  # (R,)
    dx_ptr,  # (R, L) or None
    dresidual_ptr,  # (R, L) or None
    dweight_ptr,  # (programs, L) or None
    dbias_ptr,  # (programs, L) or None
    R,
    L,
    steps,
    ACTIVATION: tl.constexpr,
    FITS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """dx = rstd (gamma g - mean(gamma g) - x_hat mean(gamma g x_hat)) for `steps` blocks of rows.

    Rows that fit a tile also yield this program's partial dgamma and dbeta; longer rows leave those
    to parameter_gradients_kernel.
    """
    ACC: tl.constexpr = accumulation_dtype(x_ptr)
    program = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK_L)
    dweight = tl.zeros([BLOCK_L], ACC)
    dbias = tl.zeros([BLOCK_L], ACC)
    for step in range(steps):
        row = (program * steps + step) * BLOCK_R + tl.arange(0, BLOCK_R)
        mean = tl.load(mean_ptr + row, mask=row < R, other=0.0)
        rstd = tl.load(rstd_ptr + row, mask=row < R, other=0.0)
        if FITS:
            x_hat, g, gamma, mask, offsets = row_gradient(
                x_ptr, dy_ptr, side_ptr, weight_ptr, bias_ptr, mean, rstd, row, lane, R, L,
                ACTIVATION,
            )  # fmt: skip
            g_mean = tl.sum(gamma * g, axis=1) / L
            gx_mean = tl.sum(gamma * g * x_hat, axis=1) / L
            row_dx(x_hat, g, gamma, g_mean, gx_mean, rstd, dx_ptr, dresidual_ptr, mask, offsets)
            dweight += tl.sum(g * x_hat, axis=0)
            dbias += tl.sum(g, axis=0)
        else:
            g_mean = tl.zeros([BLOCK_R], ACC)
            gx_mean = tl.zeros([BLOCK_R], ACC)
            for start in range(0, L, BLOCK_L):
                x_hat, g, gamma, mask, offsets = row_gradient(
                    x_ptr, dy_ptr, side_ptr, weight_ptr, bias_ptr, mean, rstd, row, start + lane,
                    R, L, ACTIVATION,
                )  # fmt: skip
                g_mean += tl.sum(gamma * g, axis=1) / L
                gx_mean += tl.sum(gamma * g * x_hat, axis=1) / L
            for start in range(0, L, BLOCK_L):
                x_hat, g, gamma, mask, offsets = row_gradient(
                    x_ptr, dy_ptr, side_ptr, weight_ptr, bias_ptr, mean, rstd, row, start + lane,
                    R, L, ACTIVATION,
                )  # fmt: skip
                row_dx(x_hat, g, gamma, g_mean, gx_mean, rstd, dx_ptr, dresidual_ptr, mask, offsets)
    if dweight_ptr is not None:
        tl.store(dweight_ptr + program * L + lane, dweight, mask=lane < L)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + program * L + lane, dbias, mask=lane < L)


@triton.jit(do_not_specialize=["R", "steps"])
def parameter_gradients_kernel(
    x_ptr,  # (R, L)
    dy_ptr,  # (R, L)
    side_ptr,  # (R, L) or None
    weight_ptr,  # (L,) or None
    bias_ptr,  # (L,) or None
    mean_ptr,  # (R,)
    rstd_ptr,  # (R,)
    dweight_ptr,  # (row programs, L) or None
    dbias_ptr,  # (row programs, L) or None
    R,
    L,
    steps,
    ACTIVATION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Partial dgamma and dbeta of rows too long for a tile: a block of columns, `steps` row blocks."""
    ACC: tl.constexpr = accumulation_dtype(x_ptr)
    column_blocks = tl.cdiv(L, BLOCK_L)
    program = tl.program_id(0).to(tl.int64) // column_blocks
    column = (tl.program_id(0) % column_blocks) * BLOCK_L + tl.arange(0, BLOCK_L)
    dweight = tl.zeros([BLOCK_L], ACC)
    dbias = tl.zeros([BLOCK_L], ACC)
    for step in range(steps):
        row = (program * steps + step) * BLOCK_R + tl.arange(0, BLOCK_R)
        mean = tl.load(mean_ptr + row, mask=row < R, other=0.0)
        rstd = tl.load(rstd_ptr + row, mask=row < R, other=0.0)
        x_hat, g, gamma, mask, offsets = row_gradient(
            x_ptr, dy_ptr, side_ptr, weight_ptr, bias_ptr, mean, rstd, row, column, R, L,
            ACTIVATION,
        )  # fmt: skip
        dweight += tl.sum(g * x_hat, axis=0)
        dbias += tl.sum(g, axis=0)
    if dweight_ptr is not None:
        tl.store(dweight_ptr + program * L + column, dweight, mask=column < L)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + program * L + column, dbias, mask=column < L)


@triton.jit(do_not_specialize=["programs"])
def sum_partials_kernel(
    partial_ptr,  # (programs, L)
    total_ptr,  # (L,)
    programs,
    L,
    BLOCK_P: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Sum over programs in a fixed order: the same bits each time."""
    column = tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L)
    total = tl.zeros([BLOCK_L], partial_ptr.dtype.element_ty)
    for first in range(0, programs, BLOCK_P):
        program = first + tl.arange(0, BLOCK_P).to(tl.int64)
        mask = (program < programs)[:, None] & (column < L)[None, :]
        partial = tl.load(
            partial_ptr + program[:, None] * L + column[None, :], mask=mask, other=0.0
        )
        total += tl.sum(partial, axis=0)
    tl.store(total_ptr + column, total, mask=column < L)


def row_norm_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    side: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    stats: tuple[torch.Tensor, torch.Tensor],
    needs: tuple[bool, bool, bool, bool],
    *,
    normalized_ndim: int,
    activation: str | None,
) -> tuple[torch.Tensor | None, ...]:
    """(dx, dresidual, dweight, dbias); None where `needs` says that nobody asked."""
    needs_dx, needs_dresidual, needs_dweight, needs_dbias = needs
    x, dy = x.contiguous(), dy.contiguous()
    R, L = _rows(x, normalized_ndim)
    inputs = (x, dy, None if side is None else side.contiguous(), weight, bias, *stats)
    BLOCK_R, BLOCK_L = _blocks(R, L)
    fits = BLOCK_L >= L
    row_blocks = triton.cdiv(R, BLOCK_R)
    partials_here = fits and (needs_dweight or needs_dbias)
    programs = min(row_blocks, ENOUGH_PROGRAMS) if partials_here else row_blocks
    steps = triton.cdiv(row_blocks, programs)
    dx = torch.empty_like(x) if needs_dx else None
    dresidual = torch.empty_like(x) if needs_dresidual and activation is not None else None
    column_blocks = 1 if fits else triton.cdiv(L, BLOCK_L)
    if not fits:
        row_programs = min(row_blocks, triton.cdiv(ENOUGH_PROGRAMS, column_blocks))
    else:
        row_programs = programs
    partial = [
        x.new_empty((row_programs, L), dtype=accumulation(x)) if needed else None
        for needed in (needs_dweight, needs_dbias)
    ]
    if partials_here or dx is not None or dresidual is not None:
        launch(
            row_norm_backward_kernel,
            programs,
            x,
            *inputs,
            dx,
            dresidual,
            *(partial if fits else (None, None)),
            R,
            L,
            steps,
            ACTIVATION=activation,
            FITS=fits,
            BLOCK_R=BLOCK_R,
            BLOCK_L=BLOCK_L,
            num_warps=_warps(BLOCK_R * BLOCK_L),
        )
    if not fits and (needs_dweight or needs_dbias):
        launch(
            parameter_gradients_kernel,
            row_programs * column_blocks,
            x,
            *inputs,
            *partial,
            R,
            L,
            triton.cdiv(row_blocks, row_programs),
            ACTIVATION=activation,
            BLOCK_R=BLOCK_R,
            BLOCK_L=BLOCK_L,
            num_warps=_warps(BLOCK_R * BLOCK_L),
        )
    dweight = _sum_partials(partial[0], weight)
    dbias = _sum_partials(partial[1], bias)
    if needs_dresidual and activation is None:
        dresidual = dy
    return dx, dresidual, dweight, dbias


def _sum_partials(
    partial: torch.Tensor | None, parameter: torch.Tensor | None
) -> torch.Tensor | None:
    if partial is None or parameter is None:
        return None
    total = torch.empty_like(parameter)
    programs, L = partial.shape
    BLOCK_P, BLOCK_L = 32, 64
    launch(
        sum_partials_kernel,
        triton.cdiv(L, BLOCK_L),
        partial,
        partial,
        total,
        programs,
        L,
        BLOCK_P=BLOCK_P,
        BLOCK_L=BLOCK_L,
    )
    return total


def _rows(x: torch.Tensor, normalized_ndim: int) -> tuple[int, int]:
    L = math.prod(x.shape[x.dim() - normalized_ndim :])
    return x.numel() // L, L


def _blocks(R: int, L: int) -> tuple[int, int]:
    """(BLOCK_R, BLOCK_L): whole rows up to LONGEST_TILE elements, else one row in steps."""
    tile = INTERPRETER_TILE if INTERPRETED else GPU_TILE
    BLOCK_L = triton.next_power_of_2(L)
    if BLOCK_L > LONGEST_TILE:
        return 1, LONG_ROW_TILE
    BLOCK_R = max(tile // BLOCK_L, 1)
    return (min(BLOCK_R, triton.next_power_of_2(R)) if INTERPRETED else BLOCK_R), BLOCK_L


def _warps(elements: int) -> int:
    """32 elements a thread: 4 warps for a tile of 4,096, 16 for the longest rows."""
    return min(max(elements // 1024, 4), 16)
