"""The batching rules: torch.func.vmap over a norm is one call with the batch among the channels.

Channels are independent, and so are groups. So B calls on (N, C, ...) are one call on
(N, B C, ...), with B times the parameters and B times the groups. For norms of rows (layer and RMS
norm), B calls are one call on B times the rows. If the calls have their own parameters, or want
their own gradients, these become parameters of samples.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .contract import NormSpec, Tensors, neighbours

Dims = Sequence[int | None]


def norm(
    apply: Callable[..., Tensor],
    size: int,
    in_dims: Dims,
    tensors: Sequence[Tensor | None],
    spec: NormSpec,
) -> tuple[Tensor, int]:
    """y and its batch dimension, from apply(*tensors, spec). `tensors` are those of `Inputs`;
    `in_dims` give the dimension of each that is the batch, of length `size`."""
    if spec.of_rows:
        rows, affine = row_inputs(tensors[:4], in_dims[:4], size, spec, False)
        return apply(*rows, *affine, *tensors[4:], spec), 0
    _check_running(in_dims, tensors, spec)
    images = [_images(t, d, size) for t, d in zip(tensors[:2], in_dims, strict=False)]
    vectors = [_vector(t, d, size) for t, d in zip(tensors[2:], in_dims[2:7], strict=True)]
    y = apply(*images, *vectors, _folded(spec, size))
    if spec.use_input_stats:
        for buffer, dim, updated in zip(tensors[5:], in_dims[5:7], vectors[3:], strict=True):
            if buffer is not None and updated is not None:
                batch = updated.unflatten(0, (size, -1))
                buffer.copy_(batch[0] if dim is None else batch.movedim(0, dim))
    return y.unflatten(1, (size, -1)), 1


def gradients(
    apply: Callable[..., Tensors],
    size: int,
    in_dims: Dims,
    tensors: Sequence[Tensor | None],
    spec: NormSpec,
    needs: tuple[bool, ...],
) -> tuple[Tensors, tuple[int | None, ...]]:
    """The gradients and their batch dimensions, from apply(*tensors, spec, needs). `tensors` are
    dy, then those of `Inputs`."""
    if spec.of_rows:
        rows, affine = row_inputs(tensors[1:5], in_dims[1:5], size, spec, any(needs[2:4]))
        grads = apply(
            _rows(tensors[0], in_dims[0], size), *rows, *affine, *tensors[5:], spec, needs
        )
        parameters = [
            None if grad is None else _as_batches_of(of, dim, grad)
            for of, dim, grad in zip(tensors[3:5], in_dims[3:5], grads[2:4], strict=True)
        ]
        grads = (*grads[:2], *parameters, *grads[4:])
        return grads, tuple(None if grad is None else 0 for grad in grads)
    images = [_images(t, d, size) for t, d in zip(tensors[:3], in_dims, strict=False)]
    vectors = [_vector(t, d, size) for t, d in zip(tensors[3:], in_dims[3:8], strict=True)]
    grads = apply(*images, *vectors, _folded(spec, size), needs)
    # Parameters of each sample, (N, B C), have the batch in the same place as x.
    dims = (1, 1, *(0 if v is None else v.dim() - 1 for v in vectors[:3]))
    unfolded = tuple(
        None if grad is None else grad.unflatten(dim, (size, -1))
        for grad, dim in zip(grads, dims, strict=True)
    )
    return unfolded, tuple(None if g is None else d for g, d in zip(grads, dims, strict=True))


def _folded(spec: NormSpec, size: int) -> NormSpec:
    return spec._replace(groups=spec.groups * size) if spec.norm == "group" else spec


def _rows(x: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """x with the batch before all its dimensions."""
    if x is None:
        return None
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


def _images(x: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """x (N, C, ...) as (N, B C, ...)."""
    if x is None:
        return None
    x = x.expand(size, *x.shape).movedim(0, 1) if dim is None else x.movedim(dim, 1)
    return x.flatten(1, 2)


def _vector(parameter: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """A parameter (C,) as (B C,), or (N, C) as (N, B C). It gets its own memory: running
    statistics are written to."""
    if parameter is None:
        return None
    if dim is None:
        parameter, dim = parameter.expand(size, *parameter.shape), 0
    rows = parameter.movedim(dim, -2)
    return rows.clone(memory_format=torch.contiguous_format).flatten(-2)


def row_inputs(
    tensors: Sequence[Tensor | None],
    in_dims: Dims,
    size: int,
    spec: NormSpec,
    apart: bool,
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """x and the residual with the batch in front, and weight and bias to match: those of each call
    if they are batched, or one copy for each call if gradients are `apart`."""
    rows = [_rows(t, d, size) for t, d in zip(tensors[:2], in_dims, strict=False)]
    parameters = list(zip(tensors[2:], in_dims[2:], strict=True))
    if apart or any(dim is not None for _, dim in parameters):
        assert rows[0] is not None
        rank = rows[0].dim()
        found = [None if t is None else _batch_of(t, d, size, rank) for t, d in parameters]
        shapes = [t.shape for t in found if t is not None]
        span = torch.broadcast_shapes(*shapes)
        leading = rank - spec.groups
        span = (*neighbours(span[:leading], rows[0].shape), *span[leading:])
        return rows, [None if t is None else t.expand(span) for t in found]
    of_samples = [t is not None and t.dim() > spec.groups for t, _ in parameters]
    return rows, [
        t.unsqueeze(0) if own and t is not None else t
        for (t, _), own in zip(parameters, of_samples, strict=True)
    ]


def _batch_of(parameter: Tensor, dim: int | None, size: int, rank: int) -> Tensor:
    """A parameter of rows, or of samples, with the batch in front and `rank` dimensions in all."""
    own = parameter.expand(size, *parameter.shape) if dim is None else parameter.movedim(dim, 0)
    return own.reshape(size, *[1] * (rank - own.dim()), *own.shape[1:])


def _as_batches_of(parameter: Tensor | None, dim: int | None, grad: Tensor) -> Tensor:
    """The gradient of a parameter that `_batch_of` made, as a batch of the parameter's shape."""
    assert parameter is not None
    sizes = [n for i, n in enumerate(parameter.shape) if i != dim]
    ones = [1] * (grad.dim() - 1 - len(sizes))
    return grad.sum_to_size(grad.shape[0], *ones, *sizes).reshape(grad.shape[0], *sizes)


def _check_running(in_dims: Dims, tensors: Sequence[Tensor | None], spec: NormSpec) -> None:
    """Refuses batched inputs with running statistics that are not batched: one buffer, B values."""
    if not spec.use_input_stats or in_dims[0] is None:
        return
    if any(t is not None and d is None for t, d in zip(tensors[5:], in_dims[5:7], strict=True)):
        x = tensors[0]
        assert x is not None
        raise RuntimeError(
            f"{spec.norm}_norm got a batched input, of shape {tuple(x.shape)} with its batch at "
            f"dimension {in_dims[0]}, but running statistics without a batch, which it would "
            "update in place: batch them too, pass None, or call "
            "torch.func.replace_all_batch_norm_modules_ on the model"
        )
