"""Norms that each sample scales and shifts: y = act(norm(x) (1 + scale) + shift + residual).

Another network says scale and shift: adaptive instance norm (arXiv 1703.06868), conditional batch
norm (1707.00683), FiLM (1709.07871), the scale-shift blocks of diffusion models, which are adaptive
group norm (2105.05233), and DiT's adaptive layer norm (2212.09748). Their formulas differ in the
norm alone, and in whether the factor is `scale` or 1 + scale.

The norm is an affine map of each sample already. Here its weight and bias become parameters of each
sample, weight (1 + scale) and bias (1 + scale) + shift, in the dtype of statistics: tensors of N C
elements, or of a row for each sample. Autograd differentiates that; the engines give the gradients
of parameters of each sample.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check_channels, check_input, check_parameter, check_rows
from .contract import neighbours
from .tensors import accumulation

Affine = tuple[Tensor | None, Tensor | None]


def modulated_channels(
    op: str,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
) -> Affine:
    """weight and bias (N, C), each where there is one, from (C,) and a scale and a shift (N, C).

    Raises RuntimeError for a scale or a shift that is not of shape (N, C), floating-point and on
    x's device, and what the checks of x and the parameters raise.
    """
    check_input(op, x, 2, None)
    check_channels(op, x, weight, bias)
    for name, given in (("scale", scale), ("shift", shift)):
        if given is None:
            continue
        if given.shape != x.shape[:2]:
            raise RuntimeError(
                f"{op} got {name} of shape {tuple(given.shape)} for an input of shape "
                f"{tuple(x.shape)}: it needs one element for each sample and channel, "
                f"{tuple(x.shape[:2])}"
            )
        check_parameter(op, name, given, x)
    weight, bias = _composed(x, weight, bias, scale, shift)
    return _expanded(weight, x.shape[:2]), _expanded(bias, x.shape[:2])


def modulated_rows(
    op: str,
    x: Tensor,
    normalized_shape: tuple[int, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
) -> Affine:
    """weight and bias, each where there is one, with as many dimensions as x: the leading ones are
    1 or x's, and those that are not 1 are neighbours. Both have `normalized_shape` alone where one
    scale and shift serve all rows.

    Raises RuntimeError for a scale or a shift that does not broadcast to x's shape, or that is not
    floating-point and on x's device, and what the checks of x and the parameters raise.
    """
    check_input(op, x, 1, None)
    check_rows(op, x, normalized_shape, weight, bias)
    leading = x.dim() - len(normalized_shape)
    sizes = [1] * leading
    for name, given in (("scale", scale), ("shift", shift)):
        if given is None:
            continue
        if not _broadcasts(given.shape, x.shape):
            raise RuntimeError(
                f"{op} got {name} of shape {tuple(given.shape)}, which does not broadcast to the "
                f"input's {tuple(x.shape)}"
            )
        check_parameter(op, name, given, x)
        for i in range(leading):  # counted from the end: a tensor may lack leading dimensions
            behind = x.dim() - i
            if behind <= given.dim() and given.shape[-behind] != 1:
                sizes[i] = x.shape[i]
    shape = (*neighbours(sizes, x.shape), *normalized_shape)
    weight, bias = (_expanded(t, shape) for t in _composed(x, weight, bias, scale, shift))
    if any(size != 1 for size in sizes):
        return weight, bias
    return tuple(None if t is None else t.reshape(normalized_shape) for t in (weight, bias))  # type: ignore[return-value]


def _composed(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
) -> Affine:
    """weight (1 + scale) and bias (1 + scale) + shift, None where neither part is there."""
    dtype = accumulation(x)
    weight, bias, scale, shift = (
        None if t is None else t.to(dtype) for t in (weight, bias, scale, shift)
    )
    if scale is not None:
        factor = scale + 1
        weight = factor if weight is None else weight * factor
        if bias is not None and shift is not None:
            return weight, torch.addcmul(shift, bias, factor)
        bias = None if bias is None else bias * factor
    if bias is None or shift is None:
        return weight, shift if bias is None else bias
    return weight, bias + shift


def _expanded(parameter: Tensor | None, shape: Sequence[int]) -> Tensor | None:
    return None if parameter is None else parameter.expand(*shape)


def _broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    if len(shape) > len(to):
        return False
    pairs = zip(reversed(shape), reversed(to), strict=False)
    return all(size in (1, target) for size, target in pairs)
