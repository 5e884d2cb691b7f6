"""The structs of job.h: a call of the engine passes one of them, packed into bytes."""

import functools
import struct

import torch

from fastnorm.activations import parsed
from fastnorm.contract import Tensors

from ..records import Record
from . import build
from .build import NUMBERS

NORMS = {
    name: number
    for number, name in enumerate(
        ("batch", "instance", "group", "batch_instance", "mean_only_batch", "given", "moments")
    )
}
# The numbers in activation.h.
ACTIVATIONS = {
    name: number
    for number, name in enumerate(
        ("", "relu", "silu", "gelu", "gelu_tanh", "hardswish", "mish", "leaky_relu", "elu")
    )
}
pack_job = struct.Struct("29q3d").pack
# For a norm, forward and backward; members that are 0 there are left out.
pack_norm = struct.Struct("q8x9q48x12q3d").pack
pack_norm_backward = struct.Struct("7q16x6q16x10q8xq16xd").pack
pack_rows = struct.Struct("2q16x7q24x8q2d").pack
pack_rows_backward = struct.Struct("q8x8q8x11q8xd").pack
pack_gated = struct.Struct("15qd").pack
pack_modulation = struct.Struct("19q").pack
pack_weight = struct.Struct("10q").pack
# With fewer elements a call takes less time than releasing the interpreter's lock.
QUICK = 1 << 14

RECORD = Record()
record = RECORD.names


def run(function: str, x: torch.Tensor, job: bytes) -> None:
    """Call the engine for x. Raises MemoryError if it finds no memory to work in."""
    if call(function, x.dtype, x.numel(), job):
        raise MemoryError(f"no memory to work on a tensor of shape {tuple(x.shape)}, {x.dtype}")


def call(function: str, dtype: torch.dtype, elements: int, job: bytes) -> int:
    """Call the engine of a dtype on so many elements; returns 0, or another number if it failed."""
    if RECORD.kept is not None:
        RECORD.kept.append(function)
    found = build.LOADED.get(dtype) or build.functions(dtype)
    failed: int = getattr(found.quick if elements < QUICK else found, function)(job)
    return failed


@functools.cache
def numbered(activation: str | None) -> tuple[int, float]:
    """An activation's number and parameter."""
    name, parameter = parsed(activation)
    return ACTIVATIONS[name], parameter


def pointer(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def of_one_dtype(tensors: Tensors) -> tuple[Tensors, int]:
    """The tensors, contiguous and in one dtype of the engine (float64 if theirs differ), and that
    dtype's number. Tensors that already are so are not copied."""
    dtype = None
    for tensor in tensors:
        if tensor is not None:
            if dtype is None:
                dtype = tensor.dtype
            elif tensor.dtype is not dtype:
                break
            if not tensor.is_contiguous():
                break
    else:
        if dtype is None or dtype in NUMBERS:
            return tensors, 0 if dtype is None else NUMBERS[dtype]
    if dtype not in NUMBERS or any(t is not None and t.dtype != dtype for t in tensors):
        dtype = torch.float64
    return tuple(None if t is None else t.to(dtype).contiguous() for t in tensors), NUMBERS[dtype]


def in_dtypes_of(parameters: Tensors, gradients: Tensors) -> Tensors:
    """The parameters' gradients, each in its parameter's dtype."""
    pairs = zip(parameters, gradients, strict=True)
    return tuple(g if g is None or p is None else g.to(p.dtype) for p, g in pairs)
