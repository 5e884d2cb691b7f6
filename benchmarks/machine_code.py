"""A compiled kernel's accesses to memory, read from its TTIR, PTX and machine code (SASS).

The width of a *tile's* accesses is read from the PTX. There Triton fixes it: one opaque instruction
for each vector, at the source position of the tl.load or tl.store. The TTIR has the shapes at the
same positions. SASS is the last word on registers and spills, but cannot tell tiles from per-row
values: it has lines without columns, and loops that ptxas unrolled or peeled, so its counts do not
follow from the tile's size. ptxas keeps the widths of the PTX; to show this, the counts of SASS by
width are reported as well.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TILE = 1024  # elements: per-row and per-channel vectors have fewer


class Position(NamedTuple):
    """A place in a source file, and the place of the call if that function was inlined."""

    at: tuple[str, int, int]
    caller: tuple[str, int, int] | None


@dataclass(frozen=True)
class Access:
    """One tl.load or tl.store: its tensor, its pointer argument, the widths of its instructions."""

    kind: str  # "load" or "store"
    shape: tuple[int, ...]
    itemsize: int
    argument: str
    position: Position
    bits: tuple[int, ...] = ()  # of each instruction of one thread

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def is_tile(self) -> bool:
        return self.numel >= TILE


class Resources(NamedTuple):
    """The registers and bytes that the assembler gave one thread."""

    registers: int
    stack: int


def assembler_resources(cubin: bytes) -> Resources:
    report = _run_tool("cuobjdump", "--dump-resource-usage", cubin=cubin)
    found = re.search(r"REG:(\d+) STACK:(\d+)", report)
    assert found, f"cuobjdump reported no registers:\n{report}"
    return Resources(int(found[1]), int(found[2]))


def disassemble(cubin: bytes, *options: str) -> str:
    return _run_tool("nvdisasm", "--no-dataflow", "--print-code", *options, cubin=cubin)


def _run_tool(name: str, *options: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(TOOLS / name), *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


class SassCounts(NamedTuple):
    """Counts of machine instructions: global accesses by bits, those of the stack, float64."""

    loads: Counter[int]  # LDG, and LDGSTS: the asynchronous copy to shared memory
    stores: Counter[int]
    stack_loads: int
    stack_stores: int
    doubles: int = 0  # arithmetic in float64


def sass_counts(sass: str) -> SassCounts:
    loads: Counter[int] = Counter()
    stores: Counter[int] = Counter()
    stack: Counter[str] = Counter()
    for name, suffix in re.findall(r"\b(LDG|LDGSTS|STG|LDL|STL)((?:\.\w+)*)\s", sass):
        if name in ("LDL", "STL"):
            stack[name] += 1
        else:
            (stores if name == "STG" else loads)[_sass_bits(suffix)] += 1
    doubles = len(re.findall(r"\bD(?:ADD|FMA|MUL|SETP)\b", sass))
    return SassCounts(loads, stores, stack["LDL"], stack["STL"], doubles)


def _sass_bits(suffix: str) -> int:
    """LDG.E has 32 bits; another width is a part of the name, as in LDG.E.U16."""
    widths = [part.lstrip("US") for part in suffix.split(".")]
    return next((int(width) for width in widths if width in ("8", "16", "64", "128", "256")), 32)


def declared_stack(ptx: str) -> int:
    """Bytes of stack that the program itself declared for its arrays, without spills."""
    return sum(int(size) for size in re.findall(r"\.local\b[^;\n]*\[(\d+)\];", ptx))


def accesses(ttir: str, ptx: str) -> list[Access]:
    """Every tl.load and tl.store of the kernel, with the widths of its PTX instructions.

    An instruction belongs to the accesses of its kind at its position. If the PTX does not say
    where a function was inlined, it belongs to those of every call.
    """
    found = list(_ttir_accesses(ttir))
    bits: dict[int, list[int]] = {i: [] for i in range(len(found))}
    for kind, position, width in _ptx_accesses(ptx):
        here = [i for i, a in enumerate(found) if a.kind == kind and a.position.at == position.at]
        inlined = [i for i in here if found[i].position.caller == position.caller]
        for i in inlined or here:
            bits[i].append(width)
    return [replace(access, bits=tuple(bits[i])) for i, access in enumerate(found)]


_TTIR_ACCESS = re.compile(
    r"tt\.(load|store) (%[\w#.]+).* : tensor<([\dx]+)x!tt\.ptr<(\w+)>.*> loc\((#?\w+)\)$"
)
# Results of address arithmetic, and values carried by loops: iter_args(%pointer = %start).
_TTIR_ADDRESS = re.compile(
    r"(%[\w.]+) = (?:tt\.(?:addptr|splat|broadcast|expand_dims|reshape|bitcast) )?(%[\w#.]+)"
)


def _ttir_accesses(ttir: str) -> Iterator[Access]:
    locations = dict(re.findall(r"^(#loc\d*) = loc\((.*)\)$", ttir, re.MULTILINE))
    # For each value so far, the argument that its address was computed from; another branch may use
    # the same names again.
    origins: dict[str, str] = {}
    for line in ttir.splitlines():
        for value, base in _TTIR_ADDRESS.findall(line):
            origins[value] = origins.get(base, base)
        if match := _TTIR_ACCESS.search(line):
            kind, pointer, shape, element, location = match.groups()
            bits = int(re.sub(r"\D*(\d+).*", r"\1", element))
            yield Access(
                kind,
                tuple(map(int, shape.split("x"))),
                max(bits // 8, 1),  # "i1" takes a byte
                origins.get(pointer, pointer).lstrip("%"),
                _position(location, locations),
            )


def _position(location: str, locations: dict[str, str]) -> Position:
    frames = list(_frames(location, locations))
    assert frames, f"an access without a source position: {location}"
    return Position(frames[0], frames[1] if len(frames) > 1 else None)


def _frames(location: str, locations: dict[str, str]) -> Iterator[tuple[str, int, int]]:
    """The places in an MLIR location, innermost first."""
    text = locations.get(location, location)
    if place := re.fullmatch(r'"(.*)":(\d+):(\d+)', text):
        yield Path(place[1]).name, int(place[2]), int(place[3])
    elif call := re.fullmatch(r"callsite\((#loc\d*) at (#loc\d*)\)", text):
        yield from _frames(call[1], locations)
        yield from _frames(call[2], locations)
    elif named := re.fullmatch(r'(?:".*"|fused.*)[(\[](#loc\d*).*', text):
        yield from _frames(named[1], locations)


_PTX_FILE = re.compile(r'^\s*\.file\s+(\d+)\s+"(?:.*/)?([^"/]+)"$')
# The place of inlining is in the directive or, in older versions, in a comment.
_PTX_POSITION = re.compile(
    r"^\s*\.loc\s+(\d+) (\d+) (\d+)(?:, function_name \S+, inlined_at (\d+) (\d+) (\d+))?"
    r"(?:.*? @\[ ([^:]+):(\d+):(\d+))?"
)
_PTX_ACCESS = re.compile(r"^\s*(?:@!?%p\d+\s+)?(ld|st)((?:\.[\w:]+)+)\s")
_PTX_COPY = re.compile(r"^\s*(?:@!?%p\d+\s+)?cp\.async\.c[ag]\.shared\.global\S* .*?\].*?\], (\w+)")


def _ptx_accesses(ptx: str) -> Iterator[tuple[str, Position, int]]:
    """(kind, position, bits) of each instruction; asynchronous copies are loads."""
    lines = ptx.splitlines()
    files = {m[1]: m[2] for line in lines if (m := _PTX_FILE.match(line))}  # they stand at the end
    position = Position(("", 0, 0), None)
    block_lines = -1  # lines of the current asm block that had a position; -1 outside
    for line in lines:
        if "begin inline asm" in line:
            block_lines = 0
        elif "end inline asm" in line:
            block_lines = -1
        elif found := _PTX_POSITION.match(line):
            # Triton 3.9 advances the source line with each line of an asm block: the first holds.
            if block_lines <= 0:
                position = _ptx_position(found, files)
            if block_lines >= 0:
                block_lines += 1
        elif found := _PTX_COPY.match(line):
            yield "load", position, 8 * int(found[1], 0)
        elif (found := _PTX_ACCESS.match(line)) and "global" in found[2].split("."):
            *modifiers, element = found[2].split(".")
            vector = next((int(m[1:]) for m in modifiers if re.fullmatch(r"v\d", m)), 1)
            yield {"ld": "load", "st": "store"}[found[1]], position, vector * int(element[1:])


def _ptx_position(found: re.Match[str], files: dict[str, str]) -> Position:
    file, line, column, from_file, from_line, from_column, *comment = found.groups()
    caller = None
    if from_file is not None:
        caller = (files[from_file], int(from_line), int(from_column))
    elif comment[0] is not None:
        caller = (comment[0], int(comment[1]), int(comment[2]))
    return Position((files[file], int(line), int(column)), caller)


class Code(NamedTuple):
    """All of the above for one kernel."""

    resources: Resources
    sass: SassCounts
    accesses: list[Access]
    declared_stack: int

    @property
    def spilled(self) -> int:
        """Bytes of registers kept on the stack, without the program's own arrays.

        A stack that no instruction touches holds no registers.
        """
        if not self.sass.stack_loads + self.sass.stack_stores:
            return 0
        return max(self.resources.stack - self.declared_stack, 0)


def read(kernel: Any) -> Code:
    """The code of triton's CompiledKernel."""
    asm = kernel.asm
    return Code(
        assembler_resources(asm["cubin"]),
        sass_counts(disassemble(asm["cubin"])),
        accesses(asm["ttir"], asm["ptx"]),
        declared_stack(asm["ptx"]),
    )
