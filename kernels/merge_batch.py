"""Stage two of the norms whose parameters belong to a channel's whole batch: BN, IN and BIN.

    batch            statistics merged over n     (arXiv 1502.03167)
    instance         each instance's own          (arXiv 1607.08022)
    batch_instance   rho BN + (1 - rho) IN        (arXiv 1805.07925)

One program owns a block of channels and walks over the instances, so that running statistics and
parameter gradients are sums in a fixed order: no atomics, the same bits each time. For BN alone the
instances do not matter: the walk goes over the N * K chunks of all of them.
"""

import torch
import triton
import triton.language as tl

from .device import (
    chan_merge,
    chunk_moments,
    chunk_sums,
    inverse_std,
    load_or,
    merge_along,
)
from .launch import ChannelView, MergeOutputs, Tiling, accumulation, launch

BLOCK_N = 32
BLOCK_C = 32


@triton.jit
def update_running(ptr, c, mask, value, momentum):
    if ptr is not None:
        old = tl.load(ptr + c, mask=mask, other=0.0).to(value.dtype)
        # The form torch uses: exact at momentum 0 and 1, whatever the magnitudes.
        tl.store(ptr + c, (1.0 - momentum) * old + momentum * value, mask=mask)


@triton.jit
def row_moments(
    mean_ptr, m2_ptr, n, c, mask, C, S, chunk, K, NORM: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """(count, mean, M2) of rows [n, c]: chunks where NORM is batch, else whole instances."""
    if NORM == "batch":
        ACC: tl.constexpr = mean_ptr.dtype.element_ty
        count = tl.zeros([BLOCK_N, BLOCK_C], ACC) + tl.minimum(S - (n % K) * chunk, chunk)
        mean = tl.load(mean_ptr + n * C + c, mask=mask, other=0.0)
        m2 = tl.load(m2_ptr + n * C + c, mask=mask, other=0.0)
        return tl.where(mask, count, 0.0), mean, m2
    else:
        return chunk_moments(mean_ptr, m2_ptr, n, c, mask, C, S, chunk, K, BLOCK_N, BLOCK_C)


@triton.jit(do_not_specialize=["rows", "K"])
def merge_batch_kernel(
    mean_ptr,  # (N, K, C)
    m2_ptr,  # (N, K, C)
    weight_ptr,  # (C,) or None
    bias_ptr,  # (C,) or None
    rho_ptr,  # (C,), batch_instance only
    running_mean_ptr,  # (C,) or None
    running_var_ptr,  # (C,) or None
    center_ptr,  # (1, C) for batch, else (N, C)
    scale_ptr,  # as center
    shift_ptr,  # as center
    rstd_ptr,  # as center: of the batch for batch, else of the instance
    batch_mean_ptr,  # (C,), batch_instance only
    batch_rstd_ptr,  # (C,), batch_instance only
    rows,  # N * K for batch, else N
    C,
    S,
    chunk,
    K,
    momentum: tl.float64,
    eps: tl.float64,
    NORM: tl.constexpr,
    TRAINING: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Chan's merge over the batch, running statistics, and the coefficients of each (n, c).

    y = (x - center) * scale + shift. With both kinds of statistics center is the instance's mean:
    rho r_b (x - m_b) + (1 - rho) r_i (x - m_i) = (rho r_b + (1 - rho) r_i)(x - m_i)
    + rho r_b (m_i - m_b), which loses nothing where mean >> std.
    """
    ACC: tl.constexpr = center_ptr.dtype.element_ty
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_mask = c < C
    lane = tl.arange(0, BLOCK_N).to(tl.int64)[:, None]
    count = tl.zeros([BLOCK_C], ACC)
    mean = tl.zeros([BLOCK_C], ACC)
    m2 = tl.zeros([BLOCK_C], ACC)
    instances_m2 = tl.zeros([BLOCK_C], ACC)
    if TRAINING:
        for first in range(0, rows, BLOCK_N):
            n = first + lane
            mask = (n < rows) & c_mask[None, :]
            n_count, n_mean, n_m2 = row_moments(
                mean_ptr, m2_ptr, n, c[None, :], mask, C, S, chunk, K, NORM, BLOCK_N, BLOCK_C
            )
            instances_m2 += tl.sum(n_m2, axis=0)
            block_count, block_mean, block_m2 = merge_along(n_count, n_mean, n_m2, 0)
            count, mean, m2 = chan_merge(count, mean, m2, block_count, block_mean, block_m2)
        update_running(running_mean_ptr, c, c_mask, mean, momentum)
        if NORM == "instance":  # the mean over n of the instances' unbiased variances
            unbiased = instances_m2 / tl.maximum(count - count / S, 1.0)
        else:
            unbiased = m2 / tl.maximum(count - 1.0, 1.0)
        update_running(running_var_ptr, c, c_mask, unbiased, momentum)
        rstd = inverse_std(m2 / tl.maximum(count, 1.0), eps)
    else:
        mean = tl.load(running_mean_ptr + c, mask=c_mask, other=0.0).to(ACC)
        rstd = inverse_std(tl.load(running_var_ptr + c, mask=c_mask, other=1.0).to(ACC), eps)
    gamma = load_or(weight_ptr, c, c_mask, 1.0, ACC)
    beta = load_or(bias_ptr, c, c_mask, 0.0, ACC)
    if NORM == "batch":
        tl.store(center_ptr + c, mean, mask=c_mask)
        tl.store(scale_ptr + c, gamma * rstd, mask=c_mask)
        tl.store(shift_ptr + c, beta, mask=c_mask)
        tl.store(rstd_ptr + c, rstd, mask=c_mask)
    else:
        rho = load_or(rho_ptr, c, c_mask, 0.0, ACC)
        batch_scale = gamma * rho * rstd
        if NORM == "batch_instance":
            tl.store(batch_mean_ptr + c, mean, mask=c_mask)
            tl.store(batch_rstd_ptr + c, rstd, mask=c_mask)
        for first in range(0, rows, BLOCK_N):
            n = first + lane
            mask = (n < rows) & c_mask[None, :]
            n_count, n_mean, n_m2 = row_moments(
                mean_ptr, m2_ptr, n, c[None, :], mask, C, S, chunk, K, NORM, BLOCK_N, BLOCK_C
            )
            n_rstd = inverse_std(n_m2 / S, eps)
            scale = (gamma * (1.0 - rho))[None, :] * n_rstd
            shift = tl.zeros([BLOCK_N, BLOCK_C], ACC) + beta[None, :]
            if NORM == "batch_instance":
                scale += batch_scale[None, :]
                shift += batch_scale[None, :] * (n_mean - mean[None, :])
            slot = n * C + c[None, :]
            tl.store(center_ptr + slot, n_mean, mask=mask)
            tl.store(scale_ptr + slot, scale, mask=mask)
            tl.store(shift_ptr + slot, shift, mask=mask)
            tl.store(rstd_ptr + slot, n_rstd, mask=mask)


@triton.jit(do_not_specialize=["rows", "K", "batch_count"])
def merge_batch_backward_kernel(
    sum_g_ptr,  # (N, K, C)
    sum_gx_ptr,  # (N, K, C)
    weight_ptr,  # (C,) or None
    rho_ptr,  # (C,), batch_instance only
    center_ptr,  # (1, C) for batch, else (N, C)
    rstd_ptr,  # as center
    batch_mean_ptr,  # (C,), batch_instance only
    batch_rstd_ptr,  # (C,), batch_instance only
    slope_ptr,  # as center, or None
    level_ptr,  # as center, or None
    dweight_ptr,  # (C,) or None
    dbias_ptr,  # (C,) or None
    drho_ptr,  # (C,) or None
    rows,  # N * K for batch, else N
    batch_count,  # elements of a channel
    C,
    S,
    K,
    NORM: tl.constexpr,
    TRAINING: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Coefficients of dx = scale * g + slope * (x - center) + level; dgamma, dbeta, drho.

    With s1 = sum g and s2 = sum g (x - m) over `count` elements, d/dx of (x - m) r is
    r (g - s1 / count - (x - m) r^2 s2 / count): once for the batch's part, once for the instance's.
    """
    ACC: tl.constexpr = sum_g_ptr.dtype.element_ty
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_mask = c < C
    lane = tl.arange(0, BLOCK_N).to(tl.int64)[:, None]
    gamma = load_or(weight_ptr, c, c_mask, 1.0, ACC)
    rho = load_or(rho_ptr, c, c_mask, 1.0 if NORM == "batch" else 0.0, ACC)
    batch_mean = load_or(batch_mean_ptr, c, c_mask, 0.0, ACC)
    batch_rstd = load_or(rstd_ptr if NORM == "batch" else batch_rstd_ptr, c, c_mask, 0.0, ACC)
    sum_g = tl.zeros([BLOCK_C], ACC)
    batch_gx = tl.zeros([BLOCK_C], ACC)  # sum g (x - m_b)
    instance_gx = tl.zeros([BLOCK_C], ACC)  # sum g (x - m_i) r_i
    # Batch statistics take each of the N * K partial sums as a row of its own: K is 1 to the walk.
    row_chunks = 1 if NORM == "batch" else K
    for first in range(0, rows, BLOCK_N):
        n = first + lane
        mask = (n < rows) & c_mask[None, :]
        n_g, n_gx = chunk_sums(
            sum_g_ptr, sum_gx_ptr, n, c[None, :], mask, C, row_chunks, BLOCK_N, BLOCK_C
        )
        sum_g += tl.sum(n_g, axis=0)
        if NORM == "batch":
            batch_gx += tl.sum(n_gx, axis=0)
        else:
            n_rstd = tl.load(rstd_ptr + n * C + c[None, :], mask=mask, other=0.0)
            n_mean = tl.load(center_ptr + n * C + c[None, :], mask=mask, other=0.0)
            instance_gx += tl.sum(n_rstd * n_gx, axis=0)
            batch_gx += tl.sum(n_gx + (n_mean - batch_mean[None, :]) * n_g, axis=0)
    if dweight_ptr is not None:
        dweight = rho * batch_rstd * batch_gx + (1.0 - rho) * instance_gx
        tl.store(dweight_ptr + c, dweight, mask=c_mask)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + c, sum_g, mask=c_mask)
    if drho_ptr is not None:
        tl.store(drho_ptr + c, gamma * (batch_rstd * batch_gx - instance_gx), mask=c_mask)
    if slope_ptr is not None:
        batch_slope = tl.zeros([BLOCK_C], ACC)
        batch_level = tl.zeros([BLOCK_C], ACC)
        if TRAINING:
            share = gamma * rho * batch_rstd / batch_count
            batch_slope = -share * batch_rstd * batch_rstd * batch_gx
            batch_level = -share * sum_g
        if NORM == "batch":
            tl.store(slope_ptr + c, batch_slope, mask=c_mask)
            tl.store(level_ptr + c, batch_level, mask=c_mask)
        else:
            for first in range(0, rows, BLOCK_N):
                n = first + lane
                mask = (n < rows) & c_mask[None, :]
                slot = n * C + c[None, :]
                n_g, n_gx = chunk_sums(
                    sum_g_ptr, sum_gx_ptr, n, c[None, :], mask, C, K, BLOCK_N, BLOCK_C
                )
                n_rstd = tl.load(rstd_ptr + slot, mask=mask, other=0.0)
                share = (gamma * (1.0 - rho))[None, :] * n_rstd / S
                slope = batch_slope[None, :] - share * n_rstd * n_rstd * n_gx
                level = batch_level[None, :] - share * n_g
                if NORM == "batch_instance":
                    n_mean = tl.load(center_ptr + slot, mask=mask, other=0.0)
                    level += batch_slope[None, :] * (n_mean - batch_mean[None, :])
                tl.store(slope_ptr + slot, slope, mask=mask)
                tl.store(level_ptr + slot, level, mask=mask)


def merge_batch(
    tables: tuple[torch.Tensor, torch.Tensor] | None,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    rho: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    view: ChannelView,
    tiling: Tiling,
    norm: str,
    use_input_stats: bool,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor | None, ...]:
    """(center, scale, shift, rstd, batch_mean, batch_rstd); the last two for batch_instance alone."""
    shape = (1, view.C) if norm == "batch" else (view.N, view.C)
    coefficients = x.new_empty((4, *shape), dtype=accumulation(x)).unbind()
    both = norm == "batch_instance"
    batch = x.new_empty((2, view.C), dtype=accumulation(x)).unbind() if both else (None, None)
    launch(
        merge_batch_kernel,
        triton.cdiv(view.C, BLOCK_C),
        x,
        *(tables or (None, None)),
        weight,
        bias,
        rho,
        running_mean,
        running_var,
        *coefficients,
        *batch,
        view.N * tiling.chunks if norm == "batch" else view.N,
        view.C,
        view.S,
        tiling.chunk,
        tiling.chunks,
        momentum,
        eps,
        NORM=norm,
        TRAINING=use_input_stats,
        BLOCK_N=BLOCK_N,
        BLOCK_C=BLOCK_C,
    )
    return *coefficients, *batch


def merge_batch_backward(
    tables: tuple[torch.Tensor, torch.Tensor],
    weight: torch.Tensor | None,
    rho: torch.Tensor | None,
    stats: tuple[torch.Tensor | None, ...],
    view: ChannelView,
    tiling: Tiling,
    norm: str,
    use_input_stats: bool,
    outputs: MergeOutputs,
) -> None:
    """Fill `outputs` from the tables of (sum g, sum g (x - center)) and merge_batch's stats."""
    center, _, _, rstd, batch_mean, batch_rstd = stats
    launch(
        merge_batch_backward_kernel,
        triton.cdiv(view.C, BLOCK_C),
        tables[0],
        *tables,
        weight,
        rho,
        center,
        rstd,
        batch_mean,
        batch_rstd,
        *outputs,
        view.N * tiling.chunks if norm == "batch" else view.N,
        view.N * view.S,
        view.C,
        view.S,
        tiling.chunks,
        NORM=norm,
        TRAINING=use_input_stats,
        BLOCK_N=BLOCK_N,
        BLOCK_C=BLOCK_C,
    )
