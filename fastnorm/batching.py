"""The batching rules: torch.func.vmap over a norm is one call with the batch among the channels.

Channels do not know of one another, nor do groups, so B calls on (N, C, ...) are one on
(N, B C, ...) with as many parameters, and B times the groups. Rows (layer and RMS norm) that share
their parameters are B times the rows; where they do not, or where each has a gradient for
parameters of its own, the formula takes the call.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .contract import Inputs, NormSpec, Tensors
from .reference.specs import formula, formula_gradients

Dims = Sequence[int | None]


def norm(
    apply: Callable[..., Tensor],
    size: int,
    in_dims: Dims,
    tensors: Sequence[Tensor | None],
    spec: NormSpec,
) -> tuple[Tensor, int]:
    """y and its batch dimension, by apply(*tensors, spec); `tensors` are those of `Inputs`,
    `in_dims` say where each has the batch of `size`."""
    if spec.of_rows:
        if in_dims[2] is not None or in_dims[3] is not None:

            def call(*tensors: Any) -> Tensor:
                return formula(Inputs(*tensors), spec)

            return torch.vmap(call, tuple(in_dims[:7]))(*tensors), 0
        rows = [_rows(t, d, size) for t, d in zip(tensors[:2], in_dims, strict=False)]
        shared = [_of_all(t, spec) for t in tensors[2:4]]
        return apply(*rows, *shared, *tensors[4:], spec), 0
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
    """The gradients and their batch dimensions, by apply(*tensors, spec, needs); `tensors` are dy
    and then those of `Inputs`."""
    if spec.of_rows:
        if any(d is not None for d in in_dims[3:5]) or any(needs[2:4]):
            return _row_gradients(in_dims, tensors, spec, needs)
        rows = [_rows(t, d, size) for t, d in zip(tensors[:3], in_dims, strict=False)]
        shared = [_of_all(t, spec) for t in tensors[3:5]]
        grads = apply(*rows, *shared, *tensors[5:], spec, needs)
        return grads, tuple(None if grad is None else 0 for grad in grads)
    images = [_images(t, d, size) for t, d in zip(tensors[:3], in_dims, strict=False)]
    vectors = [_vector(t, d, size) for t, d in zip(tensors[3:], in_dims[3:8], strict=True)]
    grads = apply(*images, *vectors, _folded(spec, size), needs)
    # Parameters of each sample, (N, B C), have the batch where x has it.
    dims = (1, 1, *(0 if v is None else v.dim() - 1 for v in vectors[:3]))
    unfolded = tuple(
        None if grad is None else grad.unflatten(dim, (size, -1))
        for grad, dim in zip(grads, dims, strict=True)
    )
    return unfolded, tuple(None if g is None else d for g, d in zip(grads, dims, strict=True))


def _row_gradients(
    in_dims: Dims, tensors: Sequence[Tensor | None], spec: NormSpec, needs: tuple[bool, ...]
) -> tuple[Tensors, tuple[int | None, ...]]:
    wanted = [i for i, needed in enumerate(needs) if needed]

    def call(dy: Any, *inputs: Any) -> Tensors:
        found = formula_gradients(dy, Inputs(*inputs), spec, needs)
        # Views: where each row has a bias of its own, its gradient is dy itself.
        return tuple(None if (grad := found[i]) is None else grad.view_as(grad) for i in wanted)

    found = torch.vmap(call, tuple(in_dims[:8]))(*tensors)
    grads: list[Tensor | None] = [None] * 5
    for i, grad in zip(wanted, found, strict=True):
        grads[i] = grad
    return tuple(grads), tuple(None if grad is None else 0 for grad in grads)


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
    """A parameter (C,) as (B C,) or (N, C) as (N, B C), in memory of its own: running statistics
    will be written to."""
    if parameter is None:
        return None
    if dim is None:
        parameter, dim = parameter.expand(size, *parameter.shape), 0
    rows = parameter.movedim(dim, -2)
    return rows.clone(memory_format=torch.contiguous_format).flatten(-2)


def _of_all(parameter: Tensor | None, spec: NormSpec) -> Tensor | None:
    """Parameters of rows that all of a batch share, beside an x with the batch in front."""
    of_samples = parameter is not None and parameter.dim() > spec.groups
    return parameter.unsqueeze(0) if parameter is not None and of_samples else parameter


def _check_running(in_dims: Dims, tensors: Sequence[Tensor | None], spec: NormSpec) -> None:
    """Statistics of a batch of inputs have no place in buffers that are not batched."""
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
