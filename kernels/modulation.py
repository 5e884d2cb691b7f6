"""Weight and bias of each sample: those of a norm, scaled and shifted by another network."""

import functools

import torch
import triton
import triton.language as tl

from fastnorm.contract import Tensors
from fastnorm.tensors import accumulation_of

from .arithmetic import load_or, store_gradient
from .launch import PLANS, Launch
from .rows import like
from .tensors import contiguous, dtypes_of, modulation_rows

COLUMNS = 256  # of one program, forward
# Columns of a program that adds up the samples' gradients, and samples at a time.
SUMMED_COLUMNS, SAMPLES = 64, 16
WARPS = 4


@triton.jit(do_not_specialize=["A", "L", "scale_stride", "shift_stride"])
def modulate_kernel(
    scale_ptr,  # (A, L)
    shift_ptr,  # (A, L) or None
    weight_ptr,  # (L,) or None
    bias_ptr,  # (L,) or None
    gamma_ptr,  # (A, L)
    beta_ptr,  # (A, L) or None
    A,
    L,
    scale_stride,
    shift_stride,
    BLOCK: tl.constexpr,
):
    """gamma = weight (1 + scale), beta = bias (1 + scale) + shift."""
    ACC: tl.constexpr = gamma_ptr.dtype.element_ty
    blocks = tl.cdiv(L, BLOCK)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    column = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    there = column < L
    factor = 1 + tl.load(scale_ptr + sample * scale_stride + column, mask=there, other=0.0).to(ACC)
    weight = load_or(weight_ptr, column, there, 1.0, ACC)
    tl.store(gamma_ptr + sample * L + column, weight * factor, mask=there)
    if beta_ptr is not None:
        bias = load_or(bias_ptr, column, there, 0.0, ACC)
        shift = load_or(shift_ptr, sample * shift_stride + column, there, 0.0, ACC)
        tl.store(beta_ptr + sample * L + column, bias * factor + shift, mask=there)


@triton.jit(do_not_specialize=["A", "L", "scale_stride", "shift_stride"])
def modulate_backward_kernel(
    scale_ptr,  # (A, L)
    dgamma_ptr,  # (A, L) or None
    dbeta_ptr,  # (A, L) or None
    weight_ptr,  # (L,) or None
    bias_ptr,  # (L,) or None
    dscale_ptr,  # (A, L), or None as all gradients
    dshift_ptr,  # (A, L)
    dweight_ptr,  # (L,)
    dbias_ptr,  # (L,)
    A,
    L,
    scale_stride,
    shift_stride,
    ACC: tl.constexpr,
    SAMPLES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The gradients of modulate_kernel's inputs; weight's and bias's are sums over samples."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_column = column < L
    weight = load_or(weight_ptr, column, is_column, 1.0, ACC)[None, :]
    bias = load_or(bias_ptr, column, is_column, 0.0, ACC)[None, :]
    dweight, dbias = tl.zeros([BLOCK], ACC), tl.zeros([BLOCK], ACC)
    for start in range(0, A, SAMPLES):
        sample = (start + tl.arange(0, SAMPLES)).to(tl.int64)[:, None]
        there = (sample < A) & is_column[None, :]
        index = sample * L + column[None, :]
        scale = tl.load(scale_ptr + sample * scale_stride + column[None, :], mask=there, other=0.0)
        factor = 1 + scale.to(ACC)
        dgamma = load_or(dgamma_ptr, index, there, 0.0, ACC)
        dbeta = load_or(dbeta_ptr, index, there, 0.0, ACC)
        store_gradient(dscale_ptr, index, there, dgamma * weight + dbeta * bias)
        store_gradient(dshift_ptr, index, there, dbeta)
        dweight += tl.sum(dgamma * factor, axis=0)
        dbias += tl.sum(dbeta * factor, axis=0)
    store_gradient(dweight_ptr, column, is_column, dweight)
    store_gradient(dbias_ptr, column, is_column, dbias)


@functools.lru_cache(PLANS)
def modulation_launch(
    sizes: tuple[int, int, int, int], dtypes: tuple[torch.dtype | None, ...]
) -> Launch:
    """A launch is made for one pattern of dtypes and of tensors that are None."""
    A, L = sizes[:2]
    return Launch(modulate_kernel, A * triton.cdiv(L, COLUMNS), sizes, {"BLOCK": COLUMNS}, WARPS)


@functools.lru_cache(PLANS)
def modulation_backward_launch(
    sizes: tuple[int, int, int, int], dtypes: tuple[torch.dtype | None, ...], acc: torch.dtype
) -> Launch:
    constants = {
        "ACC": tl.float64 if acc == torch.float64 else tl.float32,
        "SAMPLES": SAMPLES,
        "BLOCK": SUMMED_COLUMNS,
    }
    programs = triton.cdiv(sizes[1], SUMMED_COLUMNS)
    return Launch(modulate_backward_kernel, programs, sizes, constants, WARPS)


def modulate(
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    scale: torch.Tensor,
    shift: torch.Tensor | None,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """gamma and beta, of scale's shape, contiguous, in the dtype of an x's statistics."""
    rows = modulation_rows(weight, bias, scale, shift)
    gamma = torch.empty(scale.shape, dtype=accumulation_of(dtype), device=scale.device)
    beta = None if bias is None and shift is None else torch.empty_like(gamma)
    tensors = (rows.scale, rows.shift, contiguous(weight), contiguous(bias), gamma, beta)
    modulation_launch(rows.sizes, dtypes_of(tensors))(tensors)
    return gamma, beta


def modulate_backward(
    dgamma: torch.Tensor | None,
    dbeta: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    scale: torch.Tensor,
    shift: torch.Tensor | None,
    dtype: torch.dtype,
    needs: tuple[bool, bool, bool, bool],
) -> Tensors:
    """(dweight, dbias, dscale, dshift); None if `needs` says that nobody wants it."""
    rows = modulation_rows(weight, bias, scale, shift)
    dweight, dbias, dscale, dshift = map(like, (weight, bias, scale, shift), needs)
    tensors = (
        rows.scale, contiguous(dgamma), contiguous(dbeta), contiguous(weight), contiguous(bias),
        dscale, dshift, dweight, dbias,
    )  # fmt: skip
    modulation_backward_launch(rows.sizes, dtypes_of(tensors), accumulation_of(dtype))(tensors)
    return dweight, dbias, dscale, dshift
