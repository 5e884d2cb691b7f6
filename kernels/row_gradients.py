"""dgamma and dbeta of row norms: partial sums of rows too long for a tile, and their total."""

import torch
import triton
import triton.language as tl

from .device import accumulation_type
from .launch import launch, row_warps
from .row_tiles import row_gradient


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
    """Partial dgamma and dbeta of rows too long for a tile: some columns, `steps` row blocks."""
    ACC: tl.constexpr = accumulation_type(x_ptr.dtype.element_ty)
    column_blocks = tl.cdiv(L, BLOCK_L)
    program = tl.program_id(0).to(tl.int64) // column_blocks
    column = (tl.program_id(0) % column_blocks) * BLOCK_L + tl.arange(0, BLOCK_L)
    dweight = tl.zeros([BLOCK_L], ACC)
    dbias = tl.zeros([BLOCK_L], ACC)
    for step in range(steps):
        row = (program * steps + step) * BLOCK_R + tl.arange(0, BLOCK_R)
        mean = tl.load(mean_ptr + row, mask=row < R, other=0.0)
        rstd = tl.load(rstd_ptr + row, mask=row < R, other=0.0)
        x_hat, g, _gamma, _mask, _offsets = row_gradient(
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


def partial_gradients(
    inputs: tuple[torch.Tensor, *tuple[torch.Tensor | None, ...]],
    partial: list[torch.Tensor | None],
    R: int,
    L: int,
    row_programs: int,
    activation: str | None,
    BLOCK_R: int,
    BLOCK_L: int,
) -> None:
    """Fill `partial`, (row_programs, L) each, from (x, dy, side, weight, bias, mean, rstd)."""
    launch(
        parameter_gradients_kernel,
        row_programs * triton.cdiv(L, BLOCK_L),
        inputs[0],
        *inputs,
        *partial,
        R,
        L,
        triton.cdiv(triton.cdiv(R, BLOCK_R), row_programs),
        ACTIVATION=activation,
        BLOCK_R=BLOCK_R,
        BLOCK_L=BLOCK_L,
        num_warps=row_warps(BLOCK_R * BLOCK_L),
    )


def sum_partials(
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
