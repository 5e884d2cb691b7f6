"""Compile, without a GPU, every kernel that the norms launch: `python compile_all.py CAPABILITY`.

Runs the public functions with a driver that answers for a GPU of that compute capability, and with
each launch turned into a compilation. Prints one line a kernel: name, registers, spilled bytes.
The results of the functions are garbage; nothing is launched.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime import driver
from triton.runtime.jit import JITFunction

import fastnorm
import fastnorm.functional as F


class CompilingDriver:
    """What JITFunction asks of a driver before it launches."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_launches(found: dict[tuple[str, str], Any]) -> None:
    """Make every launch compile and remember the compiled kernel instead of running it."""
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        found[(self.fn.__name__, kernel.hash)] = kernel
        return kernel

    JITFunction.run = compile_only  # type: ignore[method-assign]


def call_norms(dtype: torch.dtype, channels_last: bool, activation: str | None) -> None:
    """Forward and backward of all norms, every optional tensor present, then every one absent."""
    for full in (True, False):
        x = torch.zeros(4, 32, 16, 16, dtype=dtype)
        if channels_last:
            x = x.to(memory_format=torch.channels_last)
        x.requires_grad_()
        residual = torch.zeros_like(x).requires_grad_() if full else None
        weight, bias, rho = (
            torch.zeros(32, requires_grad=True) if full else None for _ in range(3)
        )
        mean, var = (torch.zeros(32), torch.ones(32)) if full else (None, None)
        fused = {"activation": activation, "residual": residual}
        gate = torch.zeros(32, requires_grad=True) if rho is None else rho
        outputs = [
            F.batch_norm(x, mean, var, weight, bias, True, **fused),
            F.instance_norm(x, mean, var, weight, bias, **fused),
            F.batch_instance_norm(x, mean, var, gate, weight, bias, True, **fused),
            F.group_norm(x, 8, weight, bias, **fused),
            F.group_norm(x, 1, weight, bias, **fused),
        ]
        if full:
            outputs.append(F.batch_norm(x, mean, var, weight, bias, False, **fused))
            outputs.append(F.batch_instance_norm(x, mean, var, gate, weight, bias, False, **fused))
        for length in (16, 4000, 16384, 40000):
            rows = torch.zeros(8, length, dtype=dtype, requires_grad=True)
            parameter = torch.zeros(length, requires_grad=True) if full else None
            shortcut = torch.zeros_like(rows).requires_grad_() if full else None
            outputs.append(
                F.layer_norm(
                    rows, (length,), parameter, parameter, activation=activation, residual=shortcut
                )
            )
        for y in outputs:
            y.sum().backward()


def resources(kernel: Any) -> tuple[int, int]:
    """(registers a thread, spilled bytes a thread) that the assembler reports."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    cubin = Path("kernel.cubin")
    cubin.write_bytes(kernel.asm["cubin"])
    report = subprocess.run(
        [tool, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True
    ).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", report).groups()
    return int(registers), int(stack)


def main(capability: int) -> None:
    driver.set_active(CompilingDriver(capability))
    found: dict[tuple[str, str], Any] = {}
    compile_launches(found)
    assert CUDABackend.supports_target(GPUTarget("cuda", capability, 32))
    import fastnorm.backend as backend

    fastnorm.set_backend("triton")
    kernels = backend._load("fastnorm.kernels")
    kernels.INTERPRETED = True  # passes the device check; the kernels themselves are compiled ones
    for dtype in (torch.float32, torch.bfloat16):
        for channels_last in (False, True):
            call_norms(dtype, channels_last, "relu")
    call_norms(torch.float64, False, None)
    call_norms(torch.float16, True, "silu")
    call_norms(torch.float16, False, "gelu")
    for (name, _), kernel in found.items():
        print(name, *resources(kernel))


if __name__ == "__main__":
    main(int(sys.argv[1]))
