"""Stage three, forward and backward: the affine map of each (n, c), elementwise over S."""

import torch
import triton
import triton.language as tl

from .device import accumulation_type, activate, load_coefficients, tile_offsets, tile_rows
from .launch import ChannelView, Tiling, launch
from .moments import coefficient_stride, masked_gradient


@triton.jit(do_not_specialize=["N", "K"])
def apply_kernel(
    x_ptr,  # (N, C, S) in either layout
    residual_ptr,  # as x, or None
    center_ptr,  # (N or 1, C)
    scale_ptr,  # (N or 1, C)
    shift_ptr,  # (N or 1, C)
    y_ptr,  # as x
    N,
    C,
    S,
    K,
    coefficient_stride,
    ACTIVATION: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """y = act((x - center) * scale + shift + residual): centred first, exact where mean >> std."""
    ACC: tl.constexpr = accumulation_type(x_ptr.dtype.element_ty)
    program = tl.program_id(0)
    n, c, row_mask, offset = tile_rows(program // K, N, C, S, CHANNELS_LAST, BLOCK_R)
    coefficient = n * coefficient_stride + c
    center, scale, shift = load_coefficients(
        center_ptr, scale_ptr, shift_ptr, coefficient, row_mask
    )
    start = (program % K).to(tl.int64) * BLOCK_S
    mask = row_mask[:, None] & (tl.arange(0, BLOCK_S) < S - start)[None, :]
    offsets = tile_offsets(offset, start, C, CHANNELS_LAST, BLOCK_S)
    z = (tl.load(x_ptr + offsets, mask=mask, other=0.0).to(ACC) - center) * scale + shift
    if residual_ptr is not None:
        z += tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(ACC)
    tl.store(y_ptr + offsets, activate(z, ACTIVATION), mask=mask)


def apply(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    coefficients: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    view: ChannelView,
    tiling: Tiling,
    activation: str | None,
) -> torch.Tensor:
    """y, in x's dtype and memory format."""
    y = torch.empty_like(x)
    launch(
        apply_kernel,
        tiling.programs,
        x,
        x,
        residual,
        *coefficients,
        y,
        view.N,
        view.C,
        view.S,
        tiling.chunks,
        coefficient_stride(coefficients, view),
        ACTIVATION=activation,
        CHANNELS_LAST=view.channels_last,
        BLOCK_R=tiling.BLOCK_R,
        BLOCK_S=tiling.BLOCK_S,
    )
    return y


@triton.jit(do_not_specialize=["N", "K"])
def apply_backward_kernel(
    x_ptr,  # (N, C, S) in either layout
    dy_ptr,  # as x
    side_ptr,  # as x, or None: y for ReLU, else the residual
    center_ptr,  # (N or 1, C)
    scale_ptr,  # (N or 1, C)
    shift_ptr,  # (N or 1, C)
    slope_ptr,  # (N or 1, C), or None where the statistics are constants
    level_ptr,  # as slope
    dx_ptr,  # as x, or None
    dresidual_ptr,  # as x, or None
    N,
    C,
    S,
    K,
    coefficient_stride,
    ACTIVATION: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """dx = scale * g + slope * (x - center) + level, and g itself as the residual's gradient."""
    ACC: tl.constexpr = accumulation_type(x_ptr.dtype.element_ty)
    program = tl.program_id(0)
    n, c, row_mask, offset = tile_rows(program // K, N, C, S, CHANNELS_LAST, BLOCK_R)
    coefficient = n * coefficient_stride + c
    center, scale, shift = load_coefficients(
        center_ptr, scale_ptr, shift_ptr, coefficient, row_mask
    )
    start = (program % K).to(tl.int64) * BLOCK_S
    mask = row_mask[:, None] & (tl.arange(0, BLOCK_S) < S - start)[None, :]
    offsets = tile_offsets(offset, start, C, CHANNELS_LAST, BLOCK_S)
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(ACC) - center
    dy = tl.load(dy_ptr + offsets, mask=mask, other=0.0).to(ACC)
    g = masked_gradient(x, dy, side_ptr, scale, shift, offsets, mask, ACTIVATION)
    if dresidual_ptr is not None:
        tl.store(dresidual_ptr + offsets, g, mask=mask)
    if dx_ptr is not None:
        dx = scale * g
        if slope_ptr is not None:
            slope = tl.load(slope_ptr + coefficient, mask=row_mask, other=0.0)[:, None]
            level = tl.load(level_ptr + coefficient, mask=row_mask, other=0.0)[:, None]
            dx += slope * x + level
        tl.store(dx_ptr + offsets, dx, mask=mask)


def apply_backward(
    x: torch.Tensor,
    dy: torch.Tensor,
    side: torch.Tensor | None,
    coefficients: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    slope: torch.Tensor | None,
    level: torch.Tensor | None,
    view: ChannelView,
    tiling: Tiling,
    activation: str | None,
    needs_dx: bool,
    needs_dresidual: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """(dx, dresidual), in x's dtype and memory format; None where not needed."""
    dx = torch.empty_like(x) if needs_dx else None
    dresidual = torch.empty_like(x) if needs_dresidual else None
    launch(
        apply_backward_kernel,
        tiling.programs,
        x,
        x,
        dy,
        side,
        *coefficients,
        slope,
        level,
        dx,
        dresidual,
        view.N,
        view.C,
        view.S,
        tiling.chunks,
        coefficient_stride(coefficients, view),
        ACTIVATION=activation,
        CHANNELS_LAST=view.channels_last,
        BLOCK_R=tiling.BLOCK_R,
        BLOCK_S=tiling.BLOCK_S,
    )
    return dx, dresidual
