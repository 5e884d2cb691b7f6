"""`python -m benchmarks.codegen`: reports on every compiled kernel, for GPUs that are not there.

Compiles the kernels that the norms launch at the benchmarks' shapes, forward and backward, for
sm_80, sm_90 and sm_100. A line for each kernel: the first call that needed it, registers, spills,
shared memory, warps, blocks and warps resident on a multiprocessor, global accesses of the machine
code by width in bits, and the width of each tile's accesses (`machine_code.py` finds them).

Exits with 1 and a list of problems: a case does not compile, a kernel spills (beyond KNOWN_SPILLS,
with --quick QUICK_SPILLS) or computes in float64, or a tile as large as x is not accessed 128 bits
at a time although its rows are multiples of 16 bytes.
"""

import argparse
import ast
import functools
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod
from pathlib import Path
from typing import NamedTuple

import triton

from benchmarks import shapes
from benchmarks.compile_only import Launch, compile_launches, launches_of, set_target
from benchmarks.machine_code import Access, Code, read
from benchmarks.providers import OURS, Provider, load
from benchmarks.shapes import Case
from fastnorm.kernels.occupancy import LIMITS, occupancy

# float64 instructions that a kernel may have, for momentum and eps; no case's tensors are float64.
FEW_DOUBLES = 4

# Bytes that a thread may spill, by kernel, over all cases.
# An SM has 128 registers a thread for 16 warps. The largest tile, 16,384 elements, takes them all.
# Spilled bytes there: channels last, backward in 16 bits: up to 320 (float16, sm_90), 208 in
# bfloat16. Members of clusters: up to 392 forward, 96 backward. Rows of 16,384 elements: forward in
# float32 with gamma and beta in registers up to 232, and of 32,768 up to 224; backward up to 248.
# Several tiles in one program, of a row too: up to 136. Others: less than 160. A smaller
# tile would cost a second read of the tensor, a wider limit a quarter of the warps; no GPU has
# timed either. The bounds leave some room for other architectures and assemblers.
KNOWN_SPILLS = {
    "resident_kernel": 128,
    "resident_backward_kernel": 384,
    "cluster_kernel": 416,
    "cluster_backward_kernel": 192,
    "several_tiles_kernel": 128,
    "several_tiles_backward_kernel": 192,
    "several_tiles_row_kernel": 160,
    "row_norm_kernel": 256,
    "row_norm_backward_kernel": 320,
    "moments_kernel": 32,
    "apply_kernel": 32,
}

# The same for shapes.quick(). Among its first 11 cases only clusters spill. Behind them several
# tiles of 16 bits fill the registers, and so does a modulated row.
QUICK_SPILLS = {
    "cluster_kernel": 416,
    "cluster_backward_kernel": 192,
    "resident_backward_kernel": 8,
    "several_tiles_backward_kernel": 136,
    "row_norm_kernel": 16,
}

# Functions that read one value for each row of x, by name: never tiles, however many values.
GATHERS = {"load_first"}


def carries_traffic(launch: Launch, access: Access, case: Case) -> bool:
    """Whether a tile's width matters: if it is as large as x, its rows are aligned, and no gather.

    These are x, the residual, y and their gradients, accessed by every program; a row is S, C
    (channels last) or the normalised length. Masks, statistics and the programs' tables are only a
    part of x: one value for each S elements, or for each program's rows. Neighbouring threads take
    neighbouring values of them, so even 32 bits a thread fill whole sectors of memory; a larger
    width would save only a few instructions.
    """
    file, line, _ = access.position.at
    if not access.is_tile or function_at(launch.folder / file, line) in GATHERS:
        return False
    shape = launch.shapes.get(access.argument)
    if shape is not None and prod(shape) != prod(case.shape):
        return False
    return row_length(case) * access.itemsize % 16 == 0


@functools.cache
def function_at(file: Path, line: int) -> str | None:
    """The name of the function that contains the line."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef) and node.lineno <= line <= (node.end_lineno or 0):
            return node.name
    return None


def row_length(case: Case) -> int:
    """Elements that are neighbours in memory: one row, or the channels of one position."""
    if len(case.shape) == 2 or case.layout == "channels_last":
        return case.shape[1]
    return prod(case.shape[2:])


@dataclass
class Kernel:
    """One compiled kernel, and the calls that need it."""

    arch: int
    launch: Launch
    code: Code
    calls: list[str] = field(default_factory=list)
    # Accesses whose width matters in at least one call, by their index in the code's.
    wide: set[int] = field(default_factory=set)

    @property
    def warps(self) -> int:
        return int(self.launch.kernel.metadata.num_warps)

    @property
    def shared(self) -> int:
        return int(self.launch.kernel.metadata.shared)

    def add_call(self, case: Case, call: str, launch: Launch) -> None:
        self.calls.append(call)
        for i, access in enumerate(self.code.accesses):
            if carries_traffic(launch, access, case):
                self.wide.add(i)

    def problems(self, known_spills: Mapping[str, int]) -> list[str]:
        """The reasons for exit status 1, a line each."""
        found = []
        if self.code.spilled > known_spills.get(self.launch.name, 0):
            found.append(
                f"spills {self.code.spilled} bytes at {self.code.resources.registers} registers "
                f"({self.code.sass.stack_loads} LDL, {self.code.sass.stack_stores} STL)"
            )
        if self.code.sass.doubles > FEW_DOUBLES:
            found.append(f"computes in float64: {self.code.sass.doubles} instructions")
        for i in sorted(self.wide):
            access = self.code.accesses[i]
            if narrowest(access) < 128:
                found.append(f"{tile_text(access)} at {place(access)}: not 128 bits wide")
        return [f"sm_{self.arch} {self.launch.name} ({self.calls[0]}) {text}" for text in found]

    def as_row(self) -> dict[str, object]:
        resources, sass = self.code.resources, self.code.sass
        resident = occupancy(self.arch, resources.registers, self.shared, self.warps)
        return {
            "arch": self.arch,
            "kernel": self.launch.name,
            "hash": self.launch.kernel.hash,
            "calls": self.calls,
            "registers": resources.registers,
            "stack": resources.stack,
            "spilled": self.code.spilled,
            "stack_loads": sass.stack_loads,
            "stack_stores": sass.stack_stores,
            "shared": self.shared,
            "warps": self.warps,
            "resident_blocks": resident.blocks,
            "resident_warps": resident.warps,
            "loads": dict(sorted(sass.loads.items())),
            "stores": dict(sorted(sass.stores.items())),
            "tiles": [
                {
                    "kind": access.kind,
                    "argument": access.argument,
                    "shape": access.shape,
                    "itemsize": access.itemsize,
                    "bits": narrowest(access),
                    "place": place(access),
                    "needs_128": i in self.wide,
                }
                for i, access in enumerate(self.code.accesses)
                if access.is_tile
            ],
        }


def narrowest(access: Access) -> int:
    """Bits of the narrowest instruction; 0 (never wide) if none was found."""
    return min(access.bits, default=0)


def place(access: Access) -> str:
    file, line, _ = access.position.at
    return f"{file}:{line}"


def tile_text(access: Access) -> str:
    shape = "x".join(map(str, access.shape))
    return f"{access.kind} {access.argument.removesuffix('_ptr')} {shape}: {narrowest(access)}"


class Compiled(NamedTuple):
    """Every kernel that the cases need, each once, and the cases that did not compile."""

    kernels: list[Kernel]
    failures: list[str]

    def problems(self, known_spills: Mapping[str, int]) -> list[str]:
        found = [text for kernel in self.kernels for text in kernel.problems(known_spills)]
        return self.failures + found


def compiled(
    arch: int, cases: Iterable[Case], providers: Sequence[Provider], launches: list[Launch]
) -> Compiled:
    """The kernels that the cases need with any of the providers."""
    set_target(arch)
    kernels: dict[str, Kernel] = {}
    failures = []
    for case, provider in product(cases, providers):
        name = case.name if provider.name == OURS[0] else f"{case.name} ({provider.name})"
        try:
            for direction, made in launches_of(case, provider, launches):
                for launch in made:
                    kernel = kernels.get(launch.kernel.hash)
                    if kernel is None:
                        kernel = Kernel(arch, launch, read(launch.kernel))
                        kernels[launch.kernel.hash] = kernel
                    kernel.add_call(case, f"{name} {direction}", launch)
        except Exception as error:  # ptxas and LLVM raise their own classes
            lines = str(error).strip().splitlines() or [""]
            reason = " ... ".join(dict.fromkeys((lines[0], lines[-1])))  # place and reason
            failures.append(f"sm_{arch} {name}: {type(error).__name__}: {reason}")
    return Compiled(list(kernels.values()), failures)


HEADER = (
    f"{'kernel':30} regs spill  smem warps blocks/warps a SM  {'loads':24} {'stores':18}\n"
    "    first of the calls that need it\n"
    "    tiles: elements: bits (in brackets where the width is free)"
)


def text(kernel: Kernel) -> str:
    """Three lines: figures, the first call, and the tiles."""
    row, code = kernel.as_row(), kernel.code
    widths = [
        " ".join(f"{bits}:{count}" for bits, count in sorted(counts.items()))
        for counts in (code.sass.loads, code.sass.stores)
    ]
    frame = ""
    if code.resources.stack and not code.spilled:
        touched = code.sass.stack_loads + code.sass.stack_stores
        reason = "the program's own arrays" if touched else "never touched"
        frame = f"  (a stack of {code.resources.stack} bytes: {reason}, no spill)"
    figures = (
        f"{kernel.launch.name:30} {code.resources.registers:4} {code.spilled:5} {kernel.shared:5} "
        f"{kernel.warps:5} {row['resident_blocks']:6} / {row['resident_warps']:<12} "
        f"{widths[0]:24} {widths[1]:18}{frame}"
    )
    tiles = [
        tile_text(access) if i in kernel.wide else f"[{tile_text(access)}]"
        for i, access in enumerate(code.accesses)
        if access.is_tile
    ]
    lines = [figures, f"    {kernel.calls[0]} (1 of {len(kernel.calls)})"]
    return "\n".join(line.rstrip() for line in [*lines, "    " + ", ".join(tiles)] if line.strip())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", type=int, nargs="+", choices=list(LIMITS), default=list(LIMITS))
    parser.add_argument("--ops", nargs="+", choices=shapes.OPS, default=shapes.OPS)
    parser.add_argument("--quick", action="store_true", help="the cases of shapes.quick()")
    parser.add_argument("--first", type=int, help="only so many of the cases")
    parser.add_argument("--json", type=Path, help="write kernels and problems to this file")
    args = parser.parse_args(argv)

    every = shapes.quick() if args.quick else shapes.full()
    cases = [case for case in every if case.op in args.ops][: args.first]
    providers = load(OURS)
    launches = compile_launches(args.arch[0])
    print(f"triton {triton.__version__}, {len(cases)} cases\n{HEADER}")
    found = []
    for arch in args.arch:
        found.append(compiled(arch, cases, providers, launches))
        print(f"\nsm_{arch}", *map(text, found[-1].kernels), sep="\n", flush=True)
    kernels = [kernel for each in found for kernel in each.kernels]
    known_spills = QUICK_SPILLS if args.quick else KNOWN_SPILLS
    problems = [problem for each in found for problem in each.problems(known_spills)]
    if args.json is not None:
        result = {"kernels": [kernel.as_row() for kernel in kernels], "problems": problems}
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{len(kernels)} kernels, {len(problems)} problems", *problems, sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
