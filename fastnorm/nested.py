"""Nested tensors, whose samples differ in one size: a norm of rows runs on the rows of all samples.

Jagged tensors hold their samples in one tensor, one after the other; strided ones in a buffer.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nested._internal.nested_tensor import NestedTensor


def is_nested(input: Tensor) -> bool:
    """Whether input is a nested tensor, of either layout."""
    kind = type(input)
    return kind is NestedTensor or (kind is Tensor and input.is_nested)


def on_rows(
    op: str,
    input: Tensor,
    residual: Tensor | None,
    normalized_shape: Sequence[int],
    compute: Callable[[Tensor, Any], Any],
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Any:
    """compute(rows, rows of the residual); each tensor of the result is nested as input is.

    Raises torch's errors. RuntimeError (RMS norm: ValueError) if normalized_shape is not the shape
    of the last dimensions, each of one size. RuntimeError for a residual of other sizes, and for a
    scale or a shift.
    """
    if scale is not None or shift is not None:
        raise RuntimeError(
            f"{op} got {_described(input)} and a scale or a shift, which no nested tensor can have "
            "here: normalise its values(), with a row of scale and shift for each of their rows"
        )
    if input.layout == torch.jagged:
        rows, nest = _jagged(input, len(normalized_shape))
    else:
        rows, nest = _strided(input, len(normalized_shape))
    length = len(normalized_shape)
    if rows is None or tuple(rows.shape[rows.dim() - length :]) != tuple(normalized_shape):
        error = ValueError if "rms" in op else RuntimeError
        raise error(
            f"{op} got normalized_shape={list(normalized_shape)} for {_described(input)}: it has "
            "to be the shape of the last dimensions, the same in all samples"
        )
    other = None
    if residual is not None:
        if not is_nested(residual) or _sizes(residual) != _sizes(input):
            raise RuntimeError(
                f"{op} got {_described(residual)} as the residual of {_described(input)}: the two "
                "have to have the same layout and the same sizes (of jagged tensors, the offsets)"
            )
        opened = _jagged if input.layout == torch.jagged else _strided
        other = opened(residual, length)[0]
    found = compute(rows, other)
    return tuple(map(nest, found)) if isinstance(found, tuple) else nest(found)


Opened = tuple[Tensor | None, Callable[[Tensor], Tensor]]


def _jagged(input: Any, length: int) -> Opened:
    """The tensor of all samples, and the way back; None if a normalised dimension is ragged."""
    ragged = input._ragged_idx

    def nest(values: Tensor) -> Tensor:
        return torch.nested.nested_tensor_from_jagged(
            values, input.offsets(), input.lengths(), ragged
        )

    return (input.values() if ragged < input.dim() - length else None), nest


def _strided(input: Any, length: int) -> Opened:
    """The rows of all samples as one dimension, and the way back; None if row shapes differ."""
    input = input.contiguous()
    sizes, strides = input._nested_tensor_size(), input._nested_tensor_strides()
    offsets = input._nested_tensor_storage_offsets()
    last = {tuple(size[max(len(size) - length, 0) :]) for size in sizes.tolist()}

    def nest(rows: Tensor) -> Tensor:
        return torch._nested_view_from_buffer(rows.reshape(-1), sizes, strides, offsets)

    alike = len(last) == 1 and length < input.dim()
    return (input.values().view(-1, *last.pop()) if alike else None), nest


def _sizes(input: Any) -> Any:
    """A value that is equal for tensors of the same sizes."""
    return input.shape if input.layout == torch.jagged else input._nested_tensor_size().tolist()


def _described(input: Any) -> str:
    if not is_nested(input):
        return f"a tensor of shape {tuple(input.shape)}"
    if input.layout == torch.jagged:
        return f"a jagged tensor of shape {tuple(input.shape)}"
    return f"a nested tensor of {len(_sizes(input))} samples of sizes {_sizes(input)[:3]}..."
