"""The structs of job.h: a call of the engine is one of them, packed into bytes."""

import struct

import torch

from ..records import Record
from .build import NUMBERS, functions

NORMS = {
    name: number
    for number, name in enumerate(
        ("batch", "instance", "group", "batch_instance", "mean_only_batch", "given", "moments")
    )
}
ACTIVATIONS = {None: 0, "relu": 1, "silu": 2, "gelu": 3}
pack_job = struct.Struct("28q2d").pack
pack_rows = struct.Struct("20qd").pack
pack_weight = struct.Struct("10q").pack
# Below so many elements a call takes less time than the interpreter's lock handed to and fro.
QUICK = 1 << 14

RECORD = Record()
record = RECORD.names


def run(function: str, x: torch.Tensor, job: bytes) -> None:
    """Call the engine for x. Raises MemoryError where it finds no memory to work in."""
    RECORD.add(function)
    found = functions(x.dtype)
    if getattr(found.quick if x.numel() < QUICK else found, function)(job):
        raise MemoryError(f"no memory left beside a tensor of shape {tuple(x.shape)}, {x.dtype}")


def in_dtype_of(
    parameter: torch.Tensor | None, gradient: torch.Tensor | None
) -> torch.Tensor | None:
    """A parameter's gradient in its dtype."""
    if gradient is None or parameter is None or gradient.dtype is parameter.dtype:
        return gradient
    return gradient.to(parameter.dtype)


def pointer(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def of_one_dtype(*tensors: torch.Tensor | None) -> tuple[tuple[torch.Tensor | None, ...], int]:
    """The tensors contiguous, and of one of the engine's dtypes, float64 where they differ; that
    dtype's number."""
    dtype, fits = None, True
    for tensor in tensors:
        if tensor is not None:
            if dtype is None:
                dtype = tensor.dtype
            fits = fits and tensor.dtype is dtype and tensor.is_contiguous()
    if dtype is None:
        return tensors, 0
    if fits and dtype in NUMBERS:
        return tensors, NUMBERS[dtype]
    if dtype not in NUMBERS or any(t is not None and t.dtype != dtype for t in tensors):
        dtype = torch.float64
    return tuple(None if t is None else t.to(dtype).contiguous() for t in tensors), NUMBERS[dtype]
