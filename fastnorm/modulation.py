"""Norms that each sample scales and shifts: y = act(norm(x) (1 + scale) + shift + residual).

Another network gives scale and shift: adaptive instance norm (arXiv 1703.06868), conditional batch
norm (1707.00683), FiLM (1709.07871), the scale-shift blocks of diffusion models, which are adaptive
group norm (2105.05233), and DiT's adaptive layer norm (2212.09748). Their formulas differ only in
the norm, and in whether the factor is `scale` or 1 + scale.

The norm of a sample is already an affine map. Here its weight and bias become parameters of each
sample, weight (1 + scale) and bias (1 + scale) + shift, in the dtype of statistics. They have N C
elements, or a row for each sample; an engine makes and differentiates them in one call each. The
norm's kernels then give the gradients of parameters of each sample.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .autograd import Route
from .checks import DTYPES, check_channels, check_input, check_parameter, check_rows
from .contract import Engine, neighbours
from .dispatch import modulator_for
from .modulation_autograd import apply_modulate, composed
from .plain import PLAIN
from .tensors import accumulation

Affine = tuple[Tensor | None, Tensor | None]


def modulated_channels(
    op: str,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    route: Route | None = None,
) -> Affine:
    """weight and bias (N, C) from (C,) and a scale and a shift (N, C); None without any part.

    `route` is that of an ordinary call, whose other tensors are already checked: `plain_route`.

    Raises RuntimeError for a scale or a shift that is not of shape (N, C), floating-point and on
    x's device. The checks of x and the parameters may raise too.
    """
    shape = x.shape[:2]
    if (engine := _ready_engine(x, route, shape, scale, shift)) is not None:
        return apply_modulate(weight, bias, scale, shift, x.dtype, engine)
    check_input(op, x, 2, None)
    check_channels(op, x, weight, bias)
    for name, given in (("scale", scale), ("shift", shift)):
        if given is None:
            continue
        if given.shape != shape:
            raise RuntimeError(
                f"{op} got {name} of shape {tuple(given.shape)} for an input of shape "
                f"{tuple(x.shape)}: it needs one element for each sample and channel, "
                f"{tuple(shape)}"
            )
        check_parameter(op, name, given, x)
    return _of_samples(x, shape, weight, bias, scale, shift)


def modulated_rows(
    op: str,
    x: Tensor,
    normalized_shape: tuple[int, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    route: Route | None = None,
) -> Affine:
    """weight and bias with as many dimensions as x, each None if it has no parts. Their leading
    sizes are 1 or x's, and the sizes that are not 1 are neighbours. If one scale and shift serve
    all rows, both have only `normalized_shape`. `route`: see `modulated_channels`.

    Raises RuntimeError for a scale or a shift that does not broadcast to x's shape, or that is not
    floating-point and on x's device. The checks of x and the parameters may raise too.
    """
    leading = x.dim() - len(normalized_shape)
    if leading > 0:
        of_instances = (x.shape[0], *[1] * (leading - 1), *normalized_shape)
        if (engine := _ready_engine(x, route, of_instances, scale, shift)) is not None:
            return apply_modulate(weight, bias, scale, shift, x.dtype, engine)
    check_input(op, x, 1, None)
    check_rows(op, x, normalized_shape, weight, bias)
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
    weight, bias = _of_samples(x, shape, weight, bias, scale, shift)
    if any(size != 1 for size in sizes):
        return weight, bias
    return tuple(None if t is None else t.reshape(normalized_shape) for t in (weight, bias))  # type: ignore[return-value]


def _ready_engine(
    x: Tensor,
    route: Route | None,
    shape: tuple[int, ...],
    scale: Tensor | None,
    shift: Tensor | None,
) -> Engine | None:
    """The engine of an ordinary call whose scale and shift are of that shape and ordinary too."""
    if route is None or scale is None or scale.numel() == 0:
        return None
    for given in (scale,) if shift is None else (scale, shift):
        if (
            type(given) not in PLAIN
            or given.shape != shape
            or given.dtype not in DTYPES
            or given.device != x.device
            or given.is_neg()
        ):
            return None
    return route.engine


def _of_samples(
    x: Tensor,
    shape: tuple[int, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
) -> Affine:
    """weight (1 + scale) and bias (1 + scale) + shift, of that shape; None if it has no parts.

    One call of an engine if scale and shift have that shape themselves.
    """
    if shift is not None and not torch.compiler.is_compiling():
        shift = shift.resolve_neg()  # it may become the bias itself, and kernels read memory
    given = (weight, bias, scale, shift)
    if scale is not None and scale.shape == shape and (shift is None or shift.shape == shape):
        engine = modulator_for(x, given)
        if engine is not None:
            return apply_modulate(*given, x.dtype, engine)
    weight, bias = composed(accumulation(x), *given)
    return _expanded(weight, shape), _expanded(bias, shape)


def _expanded(parameter: Tensor | None, shape: Sequence[int]) -> Tensor | None:
    return None if parameter is None else parameter.expand(*shape)


def _broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    if len(shape) > len(to):
        return False
    pairs = zip(reversed(shape), reversed(to), strict=False)
    return all(size in (1, target) for size, target in pairs)
