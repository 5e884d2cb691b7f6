"""Compiles the kernels that the norms launch: `python -m tests.kernels.compile_all 90 [quick]`.

For a GPU of that compute capability, without one, in every tier. Prints a line for each kernel: its
name, registers, bytes of stack.
"""

import sys

import torch

import fastnorm.functional as F
from benchmarks.compile_only import compile_launches
from benchmarks.machine_code import assembler_resources
from fastnorm.kernels import tiers


def call_norms(
    dtype: torch.dtype, channels_last: bool, activation: str | None, lengths: tuple[int, ...]
) -> None:
    """Forward and backward of all norms, every optional tensor present, then every one absent."""
    for full in (True, False):
        x = torch.zeros(4, 32, 8, 8, dtype=dtype)
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
            F.mean_only_batch_norm(x, mean, bias, True, **fused),
            F.instance_norm(x, mean, var, weight, bias, **fused),
            F.batch_instance_norm(x, mean, var, gate, weight, bias, True, **fused),
            F.group_norm(x, 8, weight, bias, **fused),
            F.group_norm(x, 1, weight, bias, **fused),
            F.moment_norm(x, lambda mean, var, count: (var + 1.0, mean, 0.0), **fused),
        ]
        if full:
            scale, shift = (torch.zeros(4, 32, requires_grad=True) for _ in range(2))
            outputs += [
                F.batch_norm(x, mean, var, weight, bias, True, scale=scale, shift=shift, **fused),
                F.group_norm(x, 8, weight, bias, scale=scale, shift=shift, **fused),
            ]
            # Behind those that write to the statistics, which these keep for their backward.
            outputs.append(F.batch_norm(x, mean, var, weight, bias, False, **fused))
            outputs.append(F.mean_only_batch_norm(x, mean, bias, False, **fused))
            outputs.append(F.batch_instance_norm(x, mean, var, gate, weight, bias, False, **fused))
        if 8192 in lengths and not channels_last:  # one program that keeps several tiles of a set
            large = torch.zeros(4, 32, 96, 96, dtype=dtype, requires_grad=True)
            outputs.append(F.instance_norm(large, None, None, weight, bias, activation=activation))
        if 8192 in lengths and dtype.itemsize == 2:  # and several tiles of a row
            row, narrow = torch.zeros(3, 20480, dtype=dtype), torch.zeros(20480, dtype=dtype)
            outputs.append(F.layer_norm(row, (20480,), narrow if full else None))
        for length in lengths:
            rows = torch.zeros(8, length, dtype=dtype, requires_grad=True)
            parameter = torch.zeros(length, requires_grad=True) if full else None
            shortcut = torch.zeros_like(rows).requires_grad_() if full else None
            fused = {"activation": activation, "residual": shortcut}
            outputs.append(F.layer_norm(rows, (length,), parameter, parameter, **fused))
            outputs.append(F.rms_norm(rows, (length,), parameter, **fused))
            if activation is None or shortcut is not None:
                addend = torch.zeros_like(rows).requires_grad_()
                outputs += F.add_layer_norm(rows, addend, (length,), parameter, parameter)
                outputs += F.add_rms_norm(rows, addend, (length,), parameter)
        for long in (48, 40000):
            v, g = torch.zeros(6, long, dtype=dtype), torch.zeros(6, 1, requires_grad=True)
            outputs.append(F.weight_norm(v.requires_grad_(full), g))
        torch.stack([y.sum() for y in outputs]).sum().backward()


def call_clusters(dtype: torch.dtype, activation: str | None) -> None:
    """Forward and backward of contiguous sets that programs share."""
    x = torch.zeros(2, 4, 200, 200, dtype=dtype, requires_grad=True)
    weight, bias = (torch.zeros(4, requires_grad=True) for _ in range(2))
    outputs = [
        F.batch_norm(x, None, None, weight, bias, True, activation=activation),
        F.instance_norm(x, None, None, weight, bias, activation=activation),
        F.group_norm(x, 2, weight, bias, activation=activation),
    ]
    torch.stack([y.sum() for y in outputs]).sum().backward()


CALLS = [
    (torch.bfloat16, False, "relu"),
    (torch.bfloat16, True, "relu"),
    (torch.float32, False, "relu"),
    (torch.float32, True, "relu"),
    (torch.float64, False, None),
    (torch.float16, True, "silu"),
    (torch.float16, False, "gelu"),
]


def in_every_tier(calls: list[tuple[torch.dtype, bool, str | None]]) -> None:
    for call in calls:
        for tier, lengths in {"one_program": (16, 4000, 8192), "streaming": (40000,)}.items():
            with tiers.force(tier):
                call_norms(*call, lengths)
        if not call[1]:
            with tiers.force("cluster"):
                call_clusters(call[0], call[2])


def main(capability: int, quick: bool) -> None:
    launches = compile_launches(capability)
    in_every_tier(CALLS[:1] if quick else CALLS)
    kernels = {launch.kernel.hash: launch for launch in launches}
    for launch in kernels.values():
        print(launch.name, *assembler_resources(launch.kernel.asm["cubin"]))


if __name__ == "__main__":
    main(int(sys.argv[1]), "quick" in sys.argv[2:])
