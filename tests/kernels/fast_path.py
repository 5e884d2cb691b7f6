"""Triton's arguments for a compiled kernel, and `Launch`'s: `python -m tests.kernels.fast_path`.

The first launch of every kernel is made twice, with recorders instead of compiled kernels: once
through Triton, once by the fast path. Prints JSON, for each the kernel's name and both argument
lists. It runs in a separate process with the interpreter off; nothing needs a GPU.
"""

import importlib
import json
from typing import Any

import torch
from triton.compiler import CompiledKernel

import fastnorm
from benchmarks.compile_only import set_target
from tests.kernels.compile_all import CALLS, in_every_tier

CAPABILITY = 90


class Pointer:
    """A tensor on a GPU, as far as Triton asks."""

    def __init__(self, address: int, dtype: torch.dtype) -> None:
        self.address, self.dtype = address, dtype

    def data_ptr(self) -> int:
        return self.address


def addresses(argument: Any) -> Any:
    """Of pointers, and of those in a tuple, which the launcher takes for a NamedTuple too."""
    if isinstance(argument, Pointer):
        return argument.data_ptr()
    if isinstance(argument, tuple) and any(isinstance(each, Pointer) for each in argument):
        return tuple(addresses(each) for each in argument)
    return argument


def main() -> None:
    set_target(CAPABILITY)
    fastnorm.set_backend("triton")
    kernels: Any = importlib.import_module("fastnorm.kernels")
    kernels.INTERPRETED = True  # lets CPU tensors pass; no kernel will touch them
    calls: list[list[Any]] = []
    found: list[dict[str, Any]] = []

    def load(kernel: Any) -> None:
        kernel.function = kernel.name
        kernel._run = lambda *arguments: calls.append(list(arguments))

    def launch_twice(launch: Any, tensors: Any, floats: tuple[float, ...] = ()) -> bool:
        if any(each["kernel"] == launch.name for each in found):
            return True  # its other launches differ in constants, and take seconds to compile
        pointers: Any = tuple(
            None if tensor is None else Pointer(4096 * (i + 1), tensor.dtype)
            for i, tensor in enumerate(tensors)
        )
        if hasattr(tensors, "_fields"):
            pointers = type(tensors)(*pointers)
        calls.clear()
        for _ in range(2):
            launch._launch_on(CAPABILITY, pointers, floats)
        through_triton, fast = calls
        through_triton[6:9] = [None] * 3  # its metadata and hooks, of which there are none
        through_triton = [addresses(each) for each in through_triton]
        plain = [[repr(value) for value in each] for each in (through_triton, fast)]
        found.append({"kernel": launch.name, "triton": plain[0], "fast": plain[1]})
        return True

    CompiledKernel._init_handles = load
    kernels.launch.Launch.__call__ = launch_twice
    in_every_tier(CALLS[:1])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
