"""Weight normalisation (arXiv 1602.07868, equation 2) of the rows of v, seen as (R, L)."""

import functools

import torch
import triton
import triton.language as tl

from .arithmetic import accumulation_type, product, store_rounded
from .launch import PLANS, Launch
from .row_geometry import streaming
from .row_tiles import row_tile
from .tensors import Tensors, accumulation, contiguous, dense, dtypes_of, laid_out_as


@triton.jit
def rooted_sums(squares, row, R):
    """The root of each row's sum; 1 for rows that are not there, which nothing divides by 0."""
    total = tl.where(row < R, tl.sum(squares, axis=1), 1.0)
    if total.dtype == tl.float64:
        return tl.sqrt(total)
    else:
        return tl.sqrt_rn(total)  # sqrt.approx would cost half the digits


@triton.jit
def next_tile(x_ptr, first, start, R, L, BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr):
    """row_tile's tile, mask and offsets."""
    x, _row, _column, mask, offsets = row_tile(x_ptr, first, start, R, L, BLOCK_R, BLOCK_L)
    return x, mask, offsets


@triton.jit(do_not_specialize=["R", "L"])
def weight_norm_kernel(
    v_ptr,  # (R, L)
    g_ptr,  # (R,)
    w_ptr,  # (R, L)
    norms_ptr,  # (R,)
    R,
    L,
    ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """w = g v / ||v|| and ||v|| of each row; NaN where ||v|| is 0, as torch's.

    A row's first BLOCK_L columns stay in registers: shorter rows are read once, longer ones twice.
    """
    ACC: tl.constexpr = accumulation_type(v_ptr.dtype.element_ty)
    L = L * ALIGN
    first = tl.program_id(0).to(tl.int64) * BLOCK_R
    zero = tl.zeros([], tl.int64)
    v, row, _column, mask, offsets = row_tile(v_ptr, first, zero, R, L, BLOCK_R, BLOCK_L)
    v = v.to(ACC)
    squares = product(v, v)
    for start in range(zero + BLOCK_L, L, BLOCK_L):
        more, here, there = next_tile(v_ptr, first, start, R, L, BLOCK_R, BLOCK_L)
        squares += more.to(ACC) * more.to(ACC)
    norm = rooted_sums(squares, row, R)
    g = tl.load(g_ptr + row, mask=row < R, other=0.0).to(ACC)
    scale = (g / norm)[:, None]
    tl.store(norms_ptr + row, norm, mask=row < R)
    tl.store(w_ptr + offsets, v * scale, mask=mask)
    for start in range(zero + BLOCK_L, L, BLOCK_L):
        more, here, there = next_tile(v_ptr, first, start, R, L, BLOCK_R, BLOCK_L)
        tl.store(w_ptr + there, more.to(ACC) * scale, mask=here)


@triton.jit(do_not_specialize=["R", "L"])
def weight_norm_backward_kernel(
    dw_ptr,  # (R, L)
    v_ptr,  # (R, L)
    g_ptr,  # (R,)
    norms_ptr,  # (R,)
    dv_ptr,  # (R, L) or None
    dg_ptr,  # (R,) or None
    R,
    L,
    ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """dg = <dw, v> / ||v|| and dv = g / ||v|| (dw - dg v / ||v||), equation 3."""
    ACC: tl.constexpr = accumulation_type(v_ptr.dtype.element_ty)
    L = L * ALIGN
    first = tl.program_id(0).to(tl.int64) * BLOCK_R
    zero = tl.zeros([], tl.int64)
    dw, row, _column, mask, offsets = row_tile(dw_ptr, first, zero, R, L, BLOCK_R, BLOCK_L)
    v = tl.load(v_ptr + offsets, mask=mask, other=0.0)
    products = product(dw.to(ACC), v.to(ACC))
    for start in range(zero + BLOCK_L, L, BLOCK_L):
        more, here, there = next_tile(dw_ptr, first, start, R, L, BLOCK_R, BLOCK_L)
        products += more.to(ACC) * tl.load(v_ptr + there, mask=here, other=0.0).to(ACC)
    norm = tl.load(norms_ptr + row, mask=row < R, other=1.0)
    dg = tl.sum(products, axis=1) / norm
    if dg_ptr is not None:
        store_rounded(dg_ptr + row, dg, row < R)
    if dv_ptr is not None:
        g = tl.load(g_ptr + row, mask=row < R, other=0.0).to(ACC)
        scale, along = (g / norm)[:, None], (dg / norm)[:, None]
        tl.store(dv_ptr + offsets, scale * (dw.to(ACC) - along * v.to(ACC)), mask=mask)
        for start in range(zero + BLOCK_L, L, BLOCK_L):
            more, here, there = next_tile(dw_ptr, first, start, R, L, BLOCK_R, BLOCK_L)
            dv = scale * (
                more.to(ACC) - along * tl.load(v_ptr + there, mask=here, other=0.0).to(ACC)
            )
            tl.store(dv_ptr + there, dv, mask=here)


@functools.lru_cache(PLANS)
def weight_launch(
    R: int, L: int, _dtypes: tuple[torch.dtype | None, ...], backward: bool
) -> Launch:
    """A launch is made for one pattern of dtypes and of tensors that are None."""
    geometry = streaming(R, L, backward)
    kernel = weight_norm_backward_kernel if backward else weight_norm_kernel
    warps = geometry.num_warps
    return Launch(kernel, geometry.units, geometry.sizes, geometry.constants(), warps)


def weight_norm(v: torch.Tensor, g: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """w in v's dtype and layout, and the norms that weight_norm_backward takes.

    v has elements; its norm is taken over all dimensions but `dim`, over all where that is -1. g
    has an element for each norm.
    """
    rows = _rows(v, dim)
    w = torch.empty_like(rows)
    norms = torch.empty(g.numel(), dtype=accumulation(v), device=v.device)
    tensors = (rows, contiguous(g), w, norms)
    weight_launch(norms.numel(), v.numel() // norms.numel(), dtypes_of(tensors), False)(tensors)
    return _from_rows(w, v, dim), norms


def weight_norm_backward(
    dw: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    norms: torch.Tensor,
    dim: int,
    needs: tuple[bool, bool],
) -> Tensors:
    """(dv, dg); None where `needs` says that nobody asked."""
    rows = _rows(v, dim)
    dw = laid_out_as(rows, dw if dim in (-1, 0) else dw.movedim(dim, 0))
    dv = torch.empty_like(rows) if needs[0] else None
    dg = torch.empty_like(g, memory_format=torch.contiguous_format) if needs[1] else None
    tensors = (dw, rows, contiguous(g), norms, dv, dg)
    weight_launch(norms.numel(), v.numel() // norms.numel(), dtypes_of(tensors), True)(tensors)
    return None if dv is None else _from_rows(dv, v, dim), dg


def _rows(v: torch.Tensor, dim: int) -> torch.Tensor:
    """v with what belongs to one norm together in memory, in whatever order; a copy for a dim that
    is not the first."""
    if dim not in (-1, 0):
        return v.movedim(dim, 0).contiguous()
    return dense(v) if v.dim() > 1 else v.contiguous()


def _from_rows(rows: torch.Tensor, v: torch.Tensor, dim: int) -> torch.Tensor:
    """What `_rows` made of v, v's own shape and layout again."""
    return rows if dim in (-1, 0) else torch.empty_like(v).copy_(rows.movedim(0, dim))
