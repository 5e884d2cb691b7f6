"""Compile the kernels that the norms launch: `python -m tests.kernels.compile_all 90 [quick]`.

For a GPU of that compute capability, without one. Prints one line a kernel: name, registers, bytes
of stack.
"""

import sys

import torch

import fastnorm.functional as F
from benchmarks.compile_only import compile_launches
from benchmarks.machine_code import assembler_resources


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


def main(capability: int, quick: bool) -> None:
    launches = compile_launches(capability)
    call_norms(torch.bfloat16, False, "relu")
    if not quick:
        call_norms(torch.bfloat16, True, "relu")
        call_norms(torch.float32, False, "relu")
        call_norms(torch.float32, True, "relu")
        call_norms(torch.float64, False, None)
        call_norms(torch.float16, True, "silu")
        call_norms(torch.float16, False, "gelu")
    kernels = {launch.kernel.hash: launch for launch in launches}
    for launch in kernels.values():
        print(launch.name, *assembler_resources(launch.kernel.asm["cubin"]))


if __name__ == "__main__":
    main(int(sys.argv[1]), "quick" in sys.argv[2:])
