"""Norms of rows, the last dimensions: of an input, or of the sum in a residual stream.

add_layer_norm and add_rms_norm return (y, s): s = input + residual, and y is the norm of s. Both
are differentiable. input and residual have the same gradient: s's own plus the one through y.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from ..activations import ActivationLike, canonical
from ..autograd import apply_norm
from ..checks import check_input, check_number, check_rows, check_tensors
from ..contract import Inputs, NormSpec
from ..dispatch import add_normalise, autocast, normalise
from ..modulation import modulated_rows
from ..nested import is_nested, on_rows
from ..plain import plain_route


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: ActivationLike = None,
    residual: Tensor | None = None,
    zero_centered: bool = False,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """Layer normalisation over the last len(normalized_shape) dimensions (arXiv 1607.06450).

    weight and bias have shape `normalized_shape` or are None. input may be a nested tensor. With
    `zero_centered` the factor is 1 + weight: see `counted_from_one`.

    scale and shift, which broadcast to input, modulate its rows: act(norm(x) (1 + scale) + shift +
    residual). One of shape (N, 1, L) serves all rows of a sample, as in DiT: `fastnorm.modulation`.

    Raises RuntimeError if input's shape does not end in normalized_shape or a parameter has another
    shape, NotImplementedError for dtypes without kernels.
    """
    after = canonical(activation, "layer_norm")
    tensors = (input, weight, bias, residual, scale, shift)
    overridden = has_torch_function_variadic(*tensors)
    if zero_centered and not overridden:
        weight, zero_centered = counted_from_one(weight), False
    if not overridden:
        shape = tuple(normalized_shape)
        route = plain_route(input, residual, shape, (weight, bias))
        if route is not None and type(eps) is float and _ends_in(input.shape, shape):
            spec = NormSpec("layer", len(shape), True, 0.0, eps, after)
            if scale is not None or shift is not None:
                weight, bias = modulated_rows(
                    "layer_norm", input, shape, weight, bias, scale, shift, route
                )
            return apply_norm(input, residual, weight, bias, None, None, None, spec, route)
        check_tensors("layer_norm", input, weight=weight, bias=bias, residual=residual)
        eps = check_number("layer_norm", "eps", eps)
    if is_nested(input):
        return on_rows(
            "layer_norm", input, residual, normalized_shape,
            lambda rows, other: layer_norm(
                rows, normalized_shape, weight, bias, eps, activation=activation, residual=other,
                zero_centered=zero_centered,
            ),
            scale, shift,
        )  # fmt: skip
    if overridden:
        return handle_torch_function(
            layer_norm, tensors, input, normalized_shape, weight, bias, eps,
            activation=activation, residual=residual, zero_centered=zero_centered,
            scale=scale, shift=shift,
        )  # fmt: skip
    shape = tuple(normalized_shape)
    input, residual = autocast(input, residual, "layer")
    check_input("layer_norm", input, 1, residual)
    check_rows("layer_norm", input, shape, weight, bias)
    spec = NormSpec("layer", len(shape), True, 0.0, eps, after)
    if scale is not None or shift is not None:
        weight, bias = modulated_rows("layer_norm", input, shape, weight, bias, scale, shift)
    return normalise(Inputs(input, residual, weight, bias), spec)


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    activation: ActivationLike = None,
    residual: Tensor | None = None,
    zero_centered: bool = False,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """input / sqrt(mean(input^2) + eps) * weight over the last len(normalized_shape) dimensions.

    weight has shape `normalized_shape` or is None. input may be a nested tensor. The default eps is
    torch's: the machine epsilon of the dtype of the statistics, float64's for float64 and
    float32's for all others. With `zero_centered` the factor is 1 + weight: see `counted_from_one`.
    Source: arXiv 1910.07467, equation 4.

    scale and shift, which broadcast to input, modulate its rows: see layer_norm.

    Raises RuntimeError if input's shape does not end in normalized_shape or weight has another
    shape, ValueError if input has fewer dimensions, NotImplementedError for dtypes without kernels.
    """
    after = canonical(activation, "rms_norm")
    tensors = (input, weight, residual, scale, shift)
    overridden = has_torch_function_variadic(*tensors)
    if zero_centered and not overridden:
        weight, zero_centered = counted_from_one(weight), False
    if not overridden:
        shape = tuple(normalized_shape)
        route = plain_route(input, residual, shape, (weight,))
        if route is not None and _ends_in(input.shape, shape) and type(eps) in REAL_OR_NONE:
            spec, bias = _rms_spec(input, shape, eps, after), None
            if scale is not None or shift is not None:
                weight, bias = modulated_rows(
                    "rms_norm", input, shape, weight, None, scale, shift, route
                )
            return apply_norm(input, residual, weight, bias, None, None, None, spec, route)
        check_tensors("rms_norm", input, weight=weight, residual=residual)
        eps = None if eps is None else check_number("rms_norm", "eps", eps)
    if is_nested(input):
        return on_rows(
            "rms_norm", input, residual, normalized_shape,
            lambda rows, other: rms_norm(
                rows, normalized_shape, weight, eps, activation=activation, residual=other,
                zero_centered=zero_centered,
            ),
            scale, shift,
        )  # fmt: skip
    if overridden:
        return handle_torch_function(
            rms_norm, tensors, input, normalized_shape, weight, eps,
            activation=activation, residual=residual, zero_centered=zero_centered,
            scale=scale, shift=shift,
        )  # fmt: skip
    shape = tuple(normalized_shape)
    if input.dim() < len(shape):
        raise ValueError(
            f"rms_norm got normalized_shape={list(shape)} for an input of shape "
            f"{tuple(input.shape)}, which has fewer dimensions"
        )
    input, residual = autocast(input, residual, "rms")
    check_input("rms_norm", input, 1, residual)
    check_rows("rms_norm", input, shape, weight)
    spec, bias = _rms_spec(input, shape, eps, after), None
    if scale is not None or shift is not None:
        weight, bias = modulated_rows("rms_norm", input, shape, weight, None, scale, shift)
    return normalise(Inputs(input, residual, weight, bias), spec)


def add_layer_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    zero_centered: bool = False,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(layer_norm(s), s) of s = input + residual; s is first rounded to the input's dtype.

    residual has the input's shape, dtype and device; weight and bias have shape `normalized_shape`
    or are None. Both results are contiguous and of the input's dtype. scale and shift modulate the
    rows of the norm: see layer_norm.

    Raises what layer_norm raises.
    """
    if is_nested(input):
        return on_rows(
            "add_layer_norm", input, residual, normalized_shape,
            lambda rows, other: add_layer_norm(
                rows, other, normalized_shape, weight, bias, eps, zero_centered=zero_centered
            ),
            scale, shift,
        )  # fmt: skip
    tensors = (input, residual, weight, bias, scale, shift)
    if has_torch_function_variadic(*tensors):
        return handle_torch_function(
            add_layer_norm, tensors, input, residual, normalized_shape, weight, bias, eps,
            zero_centered=zero_centered, scale=scale, shift=shift,
        )  # fmt: skip
    weight = counted_from_one(weight) if zero_centered else weight
    spec = NormSpec("layer", len(normalized_shape), eps=eps)
    parameters = (weight, bias, scale, shift)
    return _add_norm("add_layer_norm", input, residual, normalized_shape, parameters, spec)


def add_rms_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    zero_centered: bool = False,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(rms_norm(s), s) of s = input + residual, as add_layer_norm; eps and errors as rms_norm's."""
    if is_nested(input):
        return on_rows(
            "add_rms_norm", input, residual, normalized_shape,
            lambda rows, other: add_rms_norm(
                rows, other, normalized_shape, weight, eps, zero_centered=zero_centered
            ),
            scale, shift,
        )  # fmt: skip
    tensors = (input, residual, weight, scale, shift)
    if has_torch_function_variadic(*tensors):
        return handle_torch_function(
            add_rms_norm, tensors, input, residual, normalized_shape, weight, eps,
            zero_centered=zero_centered, scale=scale, shift=shift,
        )  # fmt: skip
    weight = counted_from_one(weight) if zero_centered else weight
    spec = _rms_spec(input, normalized_shape, eps, None)
    parameters = (weight, None, scale, shift)
    return _add_norm("add_rms_norm", input, residual, normalized_shape, parameters, spec)


def _add_norm(
    op: str,
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    parameters: tuple[Tensor | None, ...],
    spec: NormSpec,
) -> tuple[Tensor, Tensor]:
    """`parameters` are weight, bias, scale and shift."""
    weight, bias, scale, shift = parameters
    spec = spec._replace(eps=check_number(op, "eps", spec.eps))
    x, shortcut = autocast(input, residual, spec.norm)
    assert shortcut is not None
    check_input(op, x, 1, shortcut)
    check_rows(op, x, tuple(normalized_shape), weight, bias)
    if scale is not None or shift is not None:
        shape = tuple(normalized_shape)
        weight, bias = modulated_rows(op, x, shape, weight, bias, scale, shift)
    if x.dtype != input.dtype == residual.dtype:
        # Autocast adds in half precision; that rounded sum is then normalised in float32.
        total = input + residual
        return normalise(Inputs(total.to(x.dtype), None, weight, bias), spec), total
    return add_normalise(Inputs(x, shortcut, weight, bias), spec)


def _ends_in(sizes: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether `sizes` ends in `shape`, which has at least one dimension."""
    return len(shape) > 0 and sizes[-len(shape) :] == shape


def counted_from_one(weight: Tensor | None) -> Tensor | None:
    """1 + weight in float32 or wider: a 16-bit sum would keep two or three digits of the weight.

    Gemma (arXiv 2403.08295) and Transformer Engine (zero_centered_gamma) do the same: a weight of 0
    changes nothing, and weight decay pulls the factor to 1.
    """
    if weight is None:
        return None
    return weight.to(torch.promote_types(weight.dtype, torch.float32)) + 1


REAL_OR_NONE = (float, type(None))
EPS, DOUBLE_EPS = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps


def _rms_spec(
    input: Tensor, shape: Sequence[int], eps: float | None, activation: str | None
) -> NormSpec:
    """The default eps is torch's: the machine epsilon of the dtype of the statistics."""
    if eps is None:
        eps = DOUBLE_EPS if input.dtype == torch.float64 else EPS
    return NormSpec("rms", len(shape), True, 0.0, eps, activation)
