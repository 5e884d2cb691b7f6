"""Tests of compiled kernels, executed without a GPU: a separate run, without the interpreter.

    TRITON_INTERPRET=0 python -m pytest tests/compiled --capability 80

Kernels are interpreted or compiled as the environment says when they are imported. So these tests
cannot share a process with the others, which leave this folder out. Triton keeps compiled code in
~/.triton/cache (or TRITON_CACHE_DIR) between runs: the first run takes minutes longer.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import triton
from numpy.typing import NDArray

from tests.compiled.executor import Memory, Options, Statistics, install, launch, parse
from tests.compiled.executor.triton_hook import Emulator

if triton.knobs.runtime.interpret:
    raise pytest.UsageError(
        "tests/compiled needs compiled kernels, and TRITON_INTERPRET is on (without a GPU "
        "tests/conftest.py sets it): TRITON_INTERPRET=0 python -m pytest tests/compiled"
    )


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--capability", type=int, choices=(80, 90), default=90, help="to compile for")
    parser.addoption("--triton", help="fail unless this version is the one installed")


def pytest_configure(config: pytest.Config) -> None:
    wanted = config.getoption("--triton")
    if wanted not in (None, triton.__version__):
        raise pytest.UsageError(f"Triton {triton.__version__} is installed, not {wanted}")


@pytest.fixture
def emulator(pytestconfig: pytest.Config) -> Iterator[Emulator]:
    """Triton's launches of the test, compiled and executed with checks for races."""
    emulator = install(Options(races=True), capability=pytestconfig.getoption("--capability"))
    emulator.log = []
    yield emulator
    emulator.uninstall()


MODULE = """
.version 8.0
.target sm_90a
.address_size 64
.file 1 "/somewhere/kernel.py"
.extern .shared .align 16 .b8 global_smem[];
.visible .entry handwritten(
    .param .u64 .ptr .global .align 1 param_0,
    .param .u64 .ptr .global .align 1 param_1
)
.reqntid {threads}
{{
    .reg .pred %p<20>;
    .reg .b16 %h<20>;
    .reg .b32 %r<40>;
    .reg .b64 %d<40>;
    {declarations}
    .loc 1 7 0
    ld.param.b64 %d1, [param_0];
    ld.param.b64 %d2, [param_1];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mad.lo.u32 %r4, %r2, %r3, %r1;
    mul.wide.u32 %d3, %r4, 4;
    add.s64 %d4, %d1, %d3;
    add.s64 %d5, %d2, %d3;
{body}
    ret;
}}
"""
LOAD, STORE = "ld.global.b32 %r5, [%d4];\n", "\nst.global.b32 [%d5], %r6;"


@dataclass
class Run:
    """What a handwritten kernel left behind: one word for each thread of all CTAs."""

    out: NDArray[np.uint32]
    statistics: Statistics


def module(body: str, threads: int = 64, declarations: str = "") -> str:
    """PTX of a kernel: %r1 = thread, %r2 = CTA, %r4 = thread of all CTAs; of that one's words
    %d4 points to the one read and %d5 to the one written; %d1 and %d2 to the first ones."""
    return MODULE.format(body=body, threads=threads, declarations=declarations)


def run_ptx(
    body: str,
    words: NDArray[np.generic] | None = None,
    *,
    threads: int = 64,
    grid: int = 1,
    shared: int = 0,
    cooperative: bool = False,
    declarations: str = "",
    **options: object,
) -> Run:
    """Execute a body between `module`'s lines; `words` of 32 bits lie where %d1 points to.

    By default one word for each thread, that counts from 0.
    """
    if words is None:
        words = np.arange(threads * grid, dtype=np.uint32)
    source = np.ascontiguousarray(words)
    out = np.zeros(max(threads * grid, 1), np.uint32)
    memory = Memory()
    memory.register("source", source.ctypes.data, source.nbytes, 4)
    memory.register("out", out.ctypes.data, out.nbytes, 4)
    kernel = parse(module(body, threads, declarations))
    pointers = [source.ctypes.data, out.ctypes.data]
    statistics = launch(kernel, grid, pointers, shared, memory, Options(**options), cooperative)
    return Run(out, statistics)


def map_words(body: str, words: NDArray[np.generic], **options: object) -> NDArray[np.uint32]:
    """The word %r6 that `body` computes from each word %r5."""
    threads = -(-len(words) // 32) * 32
    padded = np.zeros(threads, np.uint32)
    padded[: len(words)] = np.ascontiguousarray(words).view(np.uint32)
    return run_ptx(LOAD + body + STORE, padded, threads=threads, **options).out[: len(words)]
