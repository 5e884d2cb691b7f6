"""The formulas of norms of rows, the last dimensions, and of weight normalisation.

weight and bias have the rows' shape, or one that broadcasts to x if rows have different ones. scale
and shift broadcast to x too, and come after them: y (1 + scale) + shift.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .pieces import affine, finish, normalise, upcast


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """y = gamma (x - mean) / sqrt(var + eps) + beta, all over the last len(normalized_shape) dims.

    Source: arXiv 1607.06450, equations 3 and 4.
    """
    x = upcast(input)
    y = normalise(x, range(x.dim() - len(normalized_shape), x.dim()), eps)
    y = affine(y, weight, bias, scale, shift)
    return finish(y, input, activation, residual).contiguous()


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    bias: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """y = gamma x / sqrt(mean(x^2) + eps), all over the last len(normalized_shape) dims.

    Source: arXiv 1910.07467, equation 4, which has no bias; modulated rows have one. By default eps
    is the machine epsilon of the computation.
    """
    x = upcast(input)
    dims = list(range(x.dim() - len(normalized_shape), x.dim()))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    y = x / (x.square().mean(dims, keepdim=True) + eps).sqrt()
    y = affine(y, weight, bias, scale, shift)
    return finish(y, input, activation, residual).contiguous()


def gated_rms_norm(
    input: Tensor,
    gate: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-5,
    *,
    group_size: int | None = None,
    norm_before_gate: bool = False,
) -> Tensor:
    """y = rms(x silu(z)) gamma or, with `norm_before_gate`, y = rms(x) gamma silu(z), z the gate.

    rms(v) = v / sqrt(mean(v^2) + eps), over `group_size` neighbours of the last dimension, or over
    all of it. Source: arXiv 2405.21060 and its code.
    """
    x, z = upcast(input), upcast(gate)
    length = input.shape[-1] if group_size is None else group_size
    v = x if norm_before_gate else x * torch.nn.functional.silu(z)
    groups = v.unflatten(-1, (input.shape[-1] // length, length)) if length else v.unsqueeze(-2)
    y = (groups / (groups.square().mean(-1, keepdim=True) + eps).sqrt()).flatten(-2)
    if weight is not None:
        y = y * weight.to(y.dtype)
    if norm_before_gate:
        y = y * torch.nn.functional.silu(z)
    return y.to(input.dtype).contiguous()


def add_layer_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(layer_norm(s), s) of s = input + residual."""
    s = (input + residual).contiguous()
    return layer_norm(s, normalized_shape, weight, bias, eps, scale=scale, shift=shift), s


def add_rms_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(rms_norm(s), s) of s = input + residual."""
    s = (input + residual).contiguous()
    return rms_norm(s, normalized_shape, weight, eps, bias=bias, scale=scale, shift=shift), s


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """w = g v / ||v||, the norm over all dimensions but `dim`, or over all if dim is -1.

    Source: arXiv 1602.07868, equation 2.
    """
    x = upcast(v)
    norms_first = x if dim == -1 else x.movedim(dim, 0)
    rows = norms_first.reshape(g.numel(), x.numel() // max(g.numel(), 1))
    norms = rows.square().sum(1).sqrt()
    return (x * (g.to(x.dtype) / norms.view(g.shape))).to(v.dtype)
