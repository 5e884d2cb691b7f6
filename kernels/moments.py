"""Stage one, forward and backward: the sums over S that each (n, c) contributes.

Forward they are (mean, M2) of x - pivot, backward (sum g, sum g * (x - center)) with
g = dy * act'. Each program covers one chunk of S for a block of rows and leaves its result in
tables of shape (N, K, C), K chunks an instance; stage two merges them.
"""

import torch
import triton
import triton.language as tl

from .device import (
    accumulation_type,
    activate_backward,
    chan_merge,
    load_coefficients,
    load_pivot,
    tile_moments,
    tile_offsets,
    tile_rows,
)
from .launch import ChannelView, Pivot, Tiling, launch, statistics


@triton.jit(do_not_specialize=["N", "K"])
def moments_kernel(
    x_ptr,  # (N, C, S) in either layout
    mean_ptr,  # (N, K, C)
    m2_ptr,  # (N, K, C)
    N,
    C,
    S,
    D,
    chunk,
    K,
    PIVOT_PER_CHANNEL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """One-pass Welford/Chan: exact moments of each tile in registers, tiles merged by Chan."""
    ACC: tl.constexpr = accumulation_type(x_ptr.dtype.element_ty)
    program = tl.program_id(0)
    k = (program % K).to(tl.int64)  # k * chunk may pass 2^31
    n, c, row_mask, offset = tile_rows(program // K, N, C, S, CHANNELS_LAST, BLOCK_R)
    pivot = load_pivot(x_ptr, n, c, row_mask, C, S, D, ACC, CHANNELS_LAST, PIVOT_PER_CHANNEL)
    first = k * chunk
    last = tl.minimum(first + chunk, S)
    count = tl.zeros([BLOCK_R], ACC)
    mean = tl.zeros([BLOCK_R], ACC)
    m2 = tl.zeros([BLOCK_R], ACC)
    for start in range(first, last, BLOCK_S):
        left = last - start
        mask = row_mask[:, None] & (tl.arange(0, BLOCK_S) < left)[None, :]
        offsets = tile_offsets(offset, start, C, CHANNELS_LAST, BLOCK_S)
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(ACC)
        x = tl.where(mask, x - pivot[:, None], 0.0)
        tile_count = tl.minimum(left, BLOCK_S).to(ACC)
        tile_mean, tile_m2 = tile_moments(x, mask, tile_count)
        count, mean, m2 = chan_merge(count, mean, m2, tile_count, tile_mean, tile_m2)
    slot = (n * K + k) * C + c
    tl.store(mean_ptr + slot, mean, mask=row_mask)
    tl.store(m2_ptr + slot, m2, mask=row_mask)


def moments(
    x: torch.Tensor, view: ChannelView, tiling: Tiling, pivot: Pivot
) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, M2) of x - pivot for each chunk of each instance: two tables of shape (N, K, C)."""
    tables = _tables(x, view, tiling)
    launch(
        moments_kernel,
        tiling.programs,
        x,
        x,
        *tables,
        view.N,
        view.C,
        view.S,
        pivot.channels,
        tiling.chunk,
        tiling.chunks,
        PIVOT_PER_CHANNEL=pivot.per_channel,
        CHANNELS_LAST=view.channels_last,
        BLOCK_R=tiling.BLOCK_R,
        BLOCK_S=tiling.BLOCK_S,
    )
    return tables


@triton.jit(do_not_specialize=["N", "K"])
def gradient_moments_kernel(
    x_ptr,  # (N, C, S) in either layout
    dy_ptr,  # as x
    side_ptr,  # as x, or None: y for ReLU, else the residual
    center_ptr,  # (N or 1, C)
    scale_ptr,  # (N or 1, C)
    shift_ptr,  # (N or 1, C)
    sum_g_ptr,  # (N, K, C)
    sum_gx_ptr,  # (N, K, C)
    N,
    C,
    S,
    chunk,
    K,
    coefficient_stride,
    ACTIVATION: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """sum g and sum g (x - center): centred before the product, so nothing cancels afterwards."""
    ACC: tl.constexpr = accumulation_type(x_ptr.dtype.element_ty)
    program = tl.program_id(0)
    k = (program % K).to(tl.int64)  # k * chunk may pass 2^31
    n, c, row_mask, offset = tile_rows(program // K, N, C, S, CHANNELS_LAST, BLOCK_R)
    coefficient = n * coefficient_stride + c
    center, scale, shift = load_coefficients(
        center_ptr, scale_ptr, shift_ptr, coefficient, row_mask
    )
    first = k * chunk
    last = tl.minimum(first + chunk, S)
    sum_g = tl.zeros([BLOCK_R], ACC)
    sum_gx = tl.zeros([BLOCK_R], ACC)
    for start in range(first, last, BLOCK_S):
        mask = row_mask[:, None] & (tl.arange(0, BLOCK_S) < last - start)[None, :]
        offsets = tile_offsets(offset, start, C, CHANNELS_LAST, BLOCK_S)
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(ACC) - center
        dy = tl.load(dy_ptr + offsets, mask=mask, other=0.0).to(ACC)
        g = masked_gradient(x, dy, side_ptr, scale, shift, offsets, mask, ACTIVATION)
        g = tl.where(mask, g, 0.0)  # act'(z) of what is not there may be NaN
        sum_g += tl.sum(g, axis=1)
        sum_gx += tl.sum(g * x, axis=1)
    slot = (n * K + k) * C + c
    tl.store(sum_g_ptr + slot, sum_g, mask=row_mask)
    tl.store(sum_gx_ptr + slot, sum_gx, mask=row_mask)


@triton.jit
def masked_gradient(x, dy, side_ptr, scale, shift, offsets, mask, ACTIVATION: tl.constexpr):
    """g = dy * act'(z), z recomputed from the centred x; ReLU with a residual looks at y."""
    if ACTIVATION is None:
        return dy
    elif ACTIVATION == "relu" and side_ptr is not None:
        return activate_backward(dy, tl.load(side_ptr + offsets, mask=mask, other=0.0), ACTIVATION)
    else:
        z = x * scale + shift
        if side_ptr is not None:
            z += tl.load(side_ptr + offsets, mask=mask, other=0.0).to(z.dtype)
        return activate_backward(dy, z, ACTIVATION)


def gradient_moments(
    x: torch.Tensor,
    dy: torch.Tensor,
    side: torch.Tensor | None,
    coefficients: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    view: ChannelView,
    tiling: Tiling,
    activation: str | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum g, sum g (x - center)) of each chunk of each instance: two tables of shape (N, K, C)."""
    tables = _tables(x, view, tiling)
    launch(
        gradient_moments_kernel,
        tiling.programs,
        x,
        x,
        dy,
        side,
        *coefficients,
        *tables,
        view.N,
        view.C,
        view.S,
        tiling.chunk,
        tiling.chunks,
        coefficient_stride(coefficients, view),
        ACTIVATION=activation,
        CHANNELS_LAST=view.channels_last,
        BLOCK_R=tiling.BLOCK_R,
        BLOCK_S=tiling.BLOCK_S,
    )
    return tables


def coefficient_stride(coefficients: tuple[torch.Tensor, ...], view: ChannelView) -> int:
    """Elements from one instance's coefficients to the next: 0 where all instances share them."""
    return view.C if coefficients[0].shape[0] > 1 else 0


def _tables(
    x: torch.Tensor, view: ChannelView, tiling: Tiling
) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = statistics(x, 2, (view.N, tiling.chunks, view.C))
    return first, second
