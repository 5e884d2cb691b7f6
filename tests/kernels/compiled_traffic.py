"""How often compiled cluster kernels touch each tensor: `python -m tests.kernels.compiled_traffic`.

For compute capability 9.0. Prints JSON, for each kernel the case (norm, layout, fusion, direction),
its name and its accesses to whole tiles. In a process of its own, where the interpreter is off.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import torch

import fastnorm.functional as F
from benchmarks.compile_only import compile_launches
from benchmarks.machine_code import accesses
from fastnorm.kernels import tiers

IMAGES, ROWS = (8, 32, 56, 56), (64, 40000)
CASES = [
    (norm, layout)
    for layout in ("contiguous", "channels_last")
    for norm in ("bn", "in", "gn", "bin", "ln", "rms")
    if layout == "contiguous"
    or norm not in ("bin", "ln", "rms")  # rows; whole instances are too large
]
# Those of x's size.
TENSORS = ("x", "addend", "residual", "y", "sum", "dy", "dsum", "dx", "dresidual", "bits")
ACCESS = re.compile(r"tt\.(?:load|store) %[\w#.]+.* : tensor<[\dx]+x!tt\.ptr")


def empty(*shape: int, **kwargs: Any) -> torch.Tensor:
    return torch.empty(shape, device="meta", **kwargs)


def call(norm: str, x: torch.Tensor, **fused: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """y and the tensors that have a gradient."""
    size = x.shape[1]
    weight, bias, rho = (empty(size).requires_grad_() for _ in range(3))
    if norm == "bn":
        return F.batch_norm(x, None, None, weight, bias, True, **fused), [x, weight, bias]
    if norm == "in":
        return F.instance_norm(x, None, None, weight, bias, **fused), [x, weight, bias]
    if norm == "gn":
        return F.group_norm(x, 8, weight, bias, **fused), [x, weight, bias]
    if norm == "ln":
        return F.layer_norm(x, (size,), weight, bias, **fused), [x, weight, bias]
    if norm == "rms":
        return F.rms_norm(x, (size,), weight, **fused), [x, weight]
    y = F.batch_instance_norm(x, None, None, rho, weight, bias, True, **fused)
    return y, [x, weight, bias, rho]


def call_add(
    norm: str, x: torch.Tensor, residual: torch.Tensor
) -> tuple[tuple[torch.Tensor, torch.Tensor], list[torch.Tensor]]:
    """(y, sum), and the tensors that have a gradient beside the residual."""
    size = x.shape[1]
    weight, bias = (empty(size).requires_grad_() for _ in range(2))
    if norm == "ln":
        return F.add_layer_norm(x, residual, (size,), weight, bias), [x, weight, bias]
    return F.add_rms_norm(x, residual, (size,), weight), [x, weight]


def enclosing(ttir: str) -> Iterator[list[str]]:
    """For each access to a tensor, in order, the loops and branches that it is in."""
    regions: list[tuple[int, str]] = []
    for line in ttir.splitlines():
        indent = len(line) - len(line.lstrip())
        while regions and indent <= regions[-1][0]:
            regions.pop()
        if ACCESS.search(line):
            yield [name for _, name in regions if name]
        if line.split(" loc(")[0].rstrip().endswith("{"):
            found = re.search(r"\bscf\.(\w+)", line)
            regions.append((indent, found[1] if found else "else" if "else" in line else ""))


def tile_accesses(kernel: Any) -> Iterator[dict[str, Any]]:
    """Those of whole tiles and of their masks of bits: what carries a tensor's traffic."""
    found = accesses(kernel.asm["ttir"], kernel.asm["ptx"])
    threads = 32 * kernel.metadata.num_warps
    tile = max(access.numel for access in found if access.argument == "x_ptr")
    for access, regions in zip(found, enclosing(kernel.asm["ttir"]), strict=True):
        tensor = access.argument.removesuffix("_ptr")
        if tensor in TENSORS and access.numel in (tile, tile // 8):
            yield {
                "tensor": tensor,
                "kind": access.kind,
                "whole": access.numel == tile,
                "regions": regions,
                # 1 where the machine code has it once, more where the compiler repeats it
                "times": sum(access.bits) * threads / (access.numel * access.itemsize * 8),
            }


def main() -> None:
    launches = compile_launches(90)
    kernels = []
    with tiers.force("cluster"):
        for norm, layout in CASES:
            for fusion in ("plain", "residual_relu", *(("add",) if norm in ("ln", "rms") else ())):
                form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
                shape = ROWS if norm in ("ln", "rms") else IMAGES
                x, residual = (
                    empty(*shape, dtype=torch.bfloat16, memory_format=form).requires_grad_()
                    for _ in range(2)
                )
                residuals = [] if fusion == "plain" else [residual]
                launches.clear()
                if fusion == "add":
                    outputs, leaves = call_add(norm, x, residual)
                else:
                    fused = {"activation": "relu", "residual": residual} if residuals else {}
                    y, leaves = call(norm, x, **fused)
                    outputs = (y,)
                made = [("forward", launch) for launch in launches]
                launches.clear()
                cotangents = [torch.empty_like(y) for y in outputs]
                torch.autograd.grad(outputs, [*leaves, *residuals], cotangents)
                made += [("backward", launch) for launch in launches]
                for direction, launch in made:
                    if launch.name != "sum_partials_kernel":
                        found = list(tile_accesses(launch.kernel))
                        case = [norm, layout, fusion, direction]
                        kernels.append({"case": case, "kernel": launch.name, "accesses": found})
    print(json.dumps(kernels))


if __name__ == "__main__":
    main()
