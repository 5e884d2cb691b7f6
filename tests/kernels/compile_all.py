"""Compile, without a GPU, the kernels that the norms launch: `python compile_all.py 90 [quick]`.

Runs the public functions with a driver that answers for a GPU of that compute capability, and with
each launch turned into a compilation. Prints one line a kernel: name, registers, bytes of stack
(spills). The results of the functions are garbage; nothing is launched.
"""

import importlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
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


def resources(kernel: Any, cubin: Path) -> tuple[int, int]:
    """(registers, bytes of stack) a thread, as the assembler reports; `cubin` is a scratch file."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    cubin.write_bytes(kernel.asm["cubin"])
    report = subprocess.run(
        [tool, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True
    ).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", report).groups()
    return int(registers), int(stack)


def main(capability: int, quick: bool) -> None:
    driver.set_active(CompilingDriver(capability))
    found: dict[tuple[str, str], Any] = {}
    compile_launches(found)
    fastnorm.set_backend("triton")
    # Lets CPU tensors pass the backend's device check; the kernels are compiled all the same.
    importlib.import_module("fastnorm.kernels").INTERPRETED = True
    call_norms(torch.bfloat16, False, "relu")
    if not quick:
        call_norms(torch.bfloat16, True, "relu")
        call_norms(torch.float32, False, "relu")
        call_norms(torch.float32, True, "relu")
        call_norms(torch.float64, False, None)
        call_norms(torch.float16, True, "silu")
        call_norms(torch.float16, False, "gelu")
    with tempfile.TemporaryDirectory() as folder:
        for (name, _), kernel in found.items():
            print(name, *resources(kernel, Path(folder) / "kernel.cubin"))


if __name__ == "__main__":
    main(int(sys.argv[1]), "quick" in sys.argv[2:])
