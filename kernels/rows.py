"""Layer normalisation of rows: x seen as (R, L), gamma and beta of shape (L,).

y = act((x - mean) * rstd * gamma + beta + residual), statistics of each row (arXiv 1607.06450).
A row that fits a tile is read once; a longer one is walked over twice. dgamma and dbeta are sums
over rows: each program leaves a partial sum and a second kernel adds those in a fixed order.
"""

import math

import torch
import triton
import triton.language as tl

from .device import accumulation_type, chan_merge, inverse_std, tile_moments
from .launch import (
    ENOUGH_PROGRAMS,
    GPU_TILE,
    INTERPRETED,
    INTERPRETER_TILE,
    accumulation,
    contiguous,
    launch,
    row_warps,
    statistics,
)
from .row_gradients import partial_gradients, sum_partials
from .row_tiles import row_dx, row_gradient, row_output, row_tile

LONGEST_TILE = 16384  # elements of a row that one program keeps in registers
LONG_ROW_TILE = 4096


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
    ACC: tl.constexpr = accumulation_type(x_ptr.dtype.element_ty)
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
    x, residual = x.contiguous(), contiguous(residual)
    weight, bias = contiguous(weight), contiguous(bias)
    R, L = _rows(x, normalized_ndim)
    y = torch.empty_like(x)
    mean, rstd = statistics(x, 2, (R,))
    BLOCK_R, BLOCK_L = _blocks(R, L)
    launch(
        row_norm_kernel,
        triton.cdiv(R, BLOCK_R),
        x,
        x,
        residual,
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
        num_warps=row_warps(BLOCK_R * BLOCK_L),
    )
    return y, (mean, rstd)


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
    ACC: tl.constexpr = accumulation_type(x_ptr.dtype.element_ty)
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
    x, dy, side = x.contiguous(), dy.contiguous(), contiguous(side)
    weight, bias = contiguous(weight), contiguous(bias)
    R, L = _rows(x, normalized_ndim)
    inputs = (x, dy, side, weight, bias, *stats)
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
            num_warps=row_warps(BLOCK_R * BLOCK_L),
        )
    if not fits and (needs_dweight or needs_dbias):
        partial_gradients(inputs, partial, R, L, row_programs, activation, BLOCK_R, BLOCK_L)
    dweight = sum_partials(partial[0], weight)
    dbias = sum_partials(partial[1], bias)
    if needs_dresidual and activation is None:
        dresidual = dy
    return dx, dresidual, dweight, dbias


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
