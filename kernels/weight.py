"""Weight normalisation (arXiv 1602.07868, equation 2) of the rows of v, seen as (R, L)."""

import functools

import torch
import triton
import triton.language as tl

from fastnorm.contract import Tensors
from fastnorm.tensors import accumulation, laid_out_as

from .arithmetic import accumulation_type, product, store_rounded
from .geometry import alignment
from .launch import PLANS, Launch
from .row_geometry import RowSpec, reducing
from .row_sums import sum_along
from .row_tiles import load, row_tile, sizes, store
from .tensors import contiguous, dtypes_of, from_weight_rows, itemsize_of, weight_rows


@triton.jit
def rooted_sums(squares, row, R):
    """The root of each row's sum; 1 for missing rows, so that nothing is divided by 0."""
    total = tl.where(row < R, sum_along(squares), 1.0)
    if total.dtype == tl.float64:
        return tl.sqrt(total)
    else:
        return tl.sqrt_rn(total)  # sqrt.approx would lose half the digits


@triton.jit(do_not_specialize=["R", "L"])
def weight_norm_kernel(
    v_ptr,  # (R, L)
    g_ptr,  # (R,)
    w_ptr,  # (R, L)
    norms_ptr,  # (R,)
    R,
    L,
    K: tl.constexpr,
):
    """w = g v / ||v|| and ||v|| of each row; NaN if ||v|| is 0, as in torch.

    A row's first BLOCK_L columns stay in registers: shorter rows are read once, longer ones twice.
    """
    ACC: tl.constexpr = accumulation_type(v_ptr.dtype.element_ty)
    s = sizes(R, L, 1, None, None, None, K)
    block, zero = tl.program_id(0), tl.zeros([], tl.int64)
    tile = row_tile(block, zero, s, K)
    v = load(v_ptr, tile).to(ACC)
    squares = product(v, v)
    for start in range(zero + K.BLOCK_L, s.L, K.BLOCK_L):
        more = load(v_ptr, row_tile(block, start, s, K)).to(ACC)
        squares += more * more
    norm = rooted_sums(squares, tile.row, R)
    g = tl.load(g_ptr + tile.row, mask=tile.row < R, other=0.0).to(ACC)
    scale = g / norm
    tl.store(norms_ptr + tile.row, norm, mask=tile.row < R)
    store(w_ptr, v * scale, tile)
    for start in range(zero + K.BLOCK_L, s.L, K.BLOCK_L):
        later = row_tile(block, start, s, K)
        store(w_ptr, load(v_ptr, later).to(ACC) * scale, later)


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
    K: tl.constexpr,
):
    """dg = <dw, v> / ||v|| and dv = g / ||v|| (dw - dg v / ||v||), equation 3."""
    ACC: tl.constexpr = accumulation_type(v_ptr.dtype.element_ty)
    s = sizes(R, L, 1, None, None, None, K)
    block, zero = tl.program_id(0), tl.zeros([], tl.int64)
    tile = row_tile(block, zero, s, K)
    dw, v = load(dw_ptr, tile).to(ACC), load(v_ptr, tile).to(ACC)
    products = product(dw, v)
    for start in range(zero + K.BLOCK_L, s.L, K.BLOCK_L):
        later = row_tile(block, start, s, K)
        products += load(dw_ptr, later).to(ACC) * load(v_ptr, later).to(ACC)
    norm = tl.load(norms_ptr + tile.row, mask=tile.row < R, other=1.0)
    dg = sum_along(products) / norm
    if dg_ptr is not None:
        store_rounded(dg_ptr + tile.row, dg, tile.row < R)
    if dv_ptr is not None:
        g = tl.load(g_ptr + tile.row, mask=tile.row < R, other=0.0).to(ACC)
        scale, along = g / norm, dg / norm
        store(dv_ptr, scale * (dw - along * v), tile)
        for start in range(zero + K.BLOCK_L, s.L, K.BLOCK_L):
            later = row_tile(block, start, s, K)
            more = load(dw_ptr, later).to(ACC)
            store(dv_ptr, scale * (more - along * load(v_ptr, later).to(ACC)), later)


@functools.lru_cache(PLANS)
def weight_launch(R: int, L: int, dtypes: tuple[torch.dtype | None, ...], backward: bool) -> Launch:
    """A launch serves one pattern of dtypes and of tensors that are None."""
    geometry = reducing(R, L, itemsize_of(dtypes), backward)
    kernel = weight_norm_backward_kernel if backward else weight_norm_kernel
    constants = {"K": geometry.choices(RowSpec("rms"))}
    return Launch(kernel, geometry.units, (R, L // alignment(L)), constants, geometry.num_warps)


def weight_norm(v: torch.Tensor, g: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """w in v's dtype and layout, and the norms for weight_norm_backward.

    v is not empty. The norm is over all dimensions but `dim`, or over all if dim is -1. g has an
    element for each norm.
    """
    rows = weight_rows(v, dim)
    w = torch.empty_like(rows)
    norms = torch.empty(g.numel(), dtype=accumulation(v), device=v.device)
    tensors = (rows, contiguous(g), w, norms)
    weight_launch(norms.numel(), v.numel() // norms.numel(), dtypes_of(tensors), False)(tensors)
    return from_weight_rows(w, v, dim), norms


def weight_norm_backward(
    dw: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    norms: torch.Tensor,
    dim: int,
    needs: tuple[bool, bool],
) -> Tensors:
    """(dv, dg); None if `needs` says that nobody wants it."""
    rows = weight_rows(v, dim)
    dw = laid_out_as(rows, dw if dim in (-1, 0) else dw.movedim(dim, 0))
    dv = torch.empty_like(rows) if needs[0] else None
    dg = torch.empty_like(g, memory_format=torch.contiguous_format) if needs[1] else None
    tensors = (dw, rows, contiguous(g), norms, dv, dg)
    weight_launch(norms.numel(), v.numel() // norms.numel(), dtypes_of(tensors), True)(tensors)
    return None if dv is None else from_weight_rows(dv, v, dim), dg
