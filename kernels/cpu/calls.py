"""The structs of job.h: a call of the engine is one of them, packed into bytes."""

import contextlib
import struct
from collections.abc import Iterator

import torch

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


_recorded: list[str] | None = None


@contextlib.contextmanager
def record() -> Iterator[list[str]]:
    """Yield a list that receives the name of each function called inside the `with` block."""
    global _recorded
    outer, names = _recorded, list[str]()
    _recorded = names
    try:
        yield names
    finally:
        _recorded = outer
        if outer is not None:
            outer.extend(names)


def run(function: str, x: torch.Tensor, job: bytes) -> None:
    """Call the engine for x. Raises MemoryError where it finds no memory to work in."""
    if _recorded is not None:
        _recorded.append(function)
    found = functions(x.dtype)
    if getattr(found.quick if x.numel() < QUICK else found, function)(job):
        raise MemoryError(f"no memory left beside a tensor of shape {tuple(x.shape)}, {x.dtype}")


def pointer(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def number(*tensors: torch.Tensor | None) -> int:
    """The number of the dtype that these have, those of them that are there."""
    for tensor in tensors:
        if tensor is not None:
            return NUMBERS[tensor.dtype]
    return 0


def of_one_dtype(*tensors: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """The tensors contiguous, and of one of the engine's dtypes: float64 where they differ."""
    dtypes = {tensor.dtype for tensor in tensors if tensor is not None}
    if len(dtypes) > 1 or not dtypes <= NUMBERS.keys():
        tensors = tuple(None if t is None else t.to(torch.float64) for t in tensors)
    return tuple(None if t is None else t.contiguous() for t in tensors)
