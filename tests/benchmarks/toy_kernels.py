"""Kernels with known code: `python -m tests.benchmarks.toy_kernels FILE` pickles the readings.

In a separate process, with Triton's interpreter off. FILE gets a dict from names to Codes.
"""

import pickle
import sys
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.machine_code import Code, read


@triton.jit
def copy_rows(x_ptr, y_ptr, stride, BLOCK: tl.constexpr):
    row = tl.arange(0, 4)
    column = tl.arange(0, BLOCK)
    offsets = row[:, None] * stride + column[None, :]
    scale = tl.load(x_ptr + row)
    tl.store(y_ptr + offsets, tl.load(x_ptr + offsets) * scale[:, None])


@triton.jit
def copy_or_add(x_ptr, y_ptr, z_ptr, n, BLOCK: tl.constexpr):
    """The branches share value names; x is read through a pointer that a loop moves."""
    offsets = tl.arange(0, BLOCK)
    if n > 5:
        tl.store(y_ptr + offsets, tl.load(z_ptr + offsets))
    else:
        pointers = x_ptr + offsets
        total = tl.zeros([BLOCK], tl.float32)
        for _ in range(n):
            total += tl.load(pointers)
            pointers += BLOCK
        tl.store(z_ptr + offsets, total)


@triton.jit
def standardise(x_ptr, y_ptr, BLOCK: tl.constexpr):
    """Every element of x is needed until its sum is known."""
    offsets = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets)
    tl.store(y_ptr + offsets, x - tl.sum(x) / BLOCK)


@triton.jit
def load(x_ptr, offsets):
    return tl.load(x_ptr + offsets)


@triton.jit
def inlined(x_ptr, y_ptr, stride, BLOCK: tl.constexpr):
    """One line of source, inlined at two places: a tile at one, a vector at the other."""
    column = tl.arange(0, BLOCK)
    offsets = tl.arange(0, 4)[:, None] * stride + column[None, :]
    vector = load(x_ptr, column * stride)
    tl.store(y_ptr + offsets, load(x_ptr, offsets) + vector[None, :])


def code_of(
    kernel: Any, pointer: str, block: int, divisible: bool = True, maxnreg: int | None = None
) -> Code:
    """For compute capability 9.0, 4 warps. `divisible`: the stride is a multiple of 16."""
    names = kernel.arg_names
    signature = {
        name: "constexpr" if name == "BLOCK" else pointer if name.endswith("_ptr") else "i32"
        for name in names
    }
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if name.endswith("_ptr") or (divisible and name == "stride")
    }
    source = ASTSource(kernel, signature, {(names.index("BLOCK"),): block}, attributes)
    options = {} if maxnreg is None else {"maxnreg": maxnreg}
    return read(triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options))


def main(file: Path) -> None:
    codes = {
        "aligned bf16": code_of(copy_rows, "*bf16", 1024),
        "aligned fp32": code_of(copy_rows, "*fp32", 1024),
        "unaligned bf16": code_of(copy_rows, "*bf16", 1024, divisible=False),
        "unaligned fp32": code_of(copy_rows, "*fp32", 1024, divisible=False),
        "branches": code_of(copy_or_add, "*fp32", 1024),
        "inlined": code_of(inlined, "*fp32", 512),
        "free": code_of(standardise, "*fp32", 8192),
        "tight": code_of(standardise, "*fp32", 8192, maxnreg=40),
    }
    file.write_bytes(pickle.dumps(codes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
