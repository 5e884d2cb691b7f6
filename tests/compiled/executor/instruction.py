"""The parts of a kernel: instructions, in basic blocks."""

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

MEMORY_OPERATIONS = ("ld", "st", "atom", "red")
SPACES = ("global", "shared", "param", "local")
STRONG = ("acquire", "release", "volatile", "relaxed")
TRANSCENDENTAL = ("ex2", "lg2", "rsqrt", "sqrt", "rcp", "sin", "cos", "tanh", "div", "rem")
ENDS_A_BLOCK = ("bra", "bar.sync", "barrier.sync", "ret", "exit")


@dataclass(frozen=True)
class Guard:
    """The predicate of an instruction: `@%p1` or, negated, `@!%p1`."""

    register: str
    negated: bool


@dataclass
class Instruction:
    """`@%p1 st.global.v2.b32 [ %rd1 + 0 ], { %r1, %r2 };`, and where it comes from."""

    opcode: str  # st.global.v2.b32
    operands: list[str]  # "[ %rd1 + 0 ]", "{ %r1, %r2 }"
    guard: Guard | None
    line: int  # of the PTX, from 1
    source: str  # file:line of the Triton source, as far as .loc says
    text: str

    @cached_property
    def parts(self) -> list[str]:
        return self.opcode.split(".")

    @property
    def name(self) -> str:
        return self.parts[0]

    @property
    def type(self) -> str:
        """The type that the opcode ends on, as PTX writes it."""
        return self.parts[-1]

    @property
    def modifiers(self) -> list[str]:
        return self.parts[1:-1]

    def first_of(self, *modifiers: str, default: str = "") -> str:
        """That of the opcode's parts which is one of `modifiers`."""
        return next((part for part in self.parts if part in modifiers), default)

    @cached_property
    def space(self) -> str:
        """Of a memory operation: global, shared, param, local or generic."""
        names = [part.partition("::")[0] for part in self.parts]
        return next((name for name in names if name in SPACES), "generic")

    @property
    def synchronises(self) -> bool:
        """Whether other CTAs may notice when it runs: an interleaved CTA stops before it."""
        if self.name in ("atom", "red"):
            return self.space != "shared"
        return self.name in ("ld", "st") and any(part in STRONG for part in self.parts)

    @property
    def accesses_global(self) -> bool:
        copies = self.opcode.startswith("cp.async.c") and self.type == "global"
        return copies or (self.name in ("ld", "st") and self.space == "global")

    @property
    def needs_whole_warp(self) -> bool:
        return (
            "sync" in self.parts and self.name not in ("bar", "barrier")
        ) or "warp" in self.parts

    @property
    def ends_a_block(self) -> bool:
        return self.opcode.startswith(ENDS_A_BLOCK)

    @property
    def kind(self) -> str:
        """The class that Statistics.classes counts it in."""
        name, last = self.name, self.type
        if name in MEMORY_OPERATIONS:
            return f"{name}.{self.space}"
        if name == "cp":
            return "cp.async"
        if name in ("bra", "ret", "exit"):
            return "branch"
        if name in ("shfl", "bar", "barrier", "ldmatrix", "stmatrix", "cvt"):
            return name
        if name in TRANSCENDENTAL:
            return f"{name}.{'f' if last[0] == 'f' else 'int'}"
        if name in ("mov", "selp", "setp", "prmt"):
            return name
        return f"fp.{last}" if last.startswith(("f", "bf")) else "int"


@dataclass
class Block:
    """Instructions that are executed in a row. A global access is the first of its block."""

    number: int
    instructions: list[Instruction] = field(default_factory=list)
    synchronises: bool = False  # its first instruction does
    accesses: bool = False  # its first instruction is a plain access of global memory

    @cached_property
    def needs_whole_warps(self) -> bool:
        """Whether a warp whose threads have parted has to wait for all of them before it."""
        return any(instruction.needs_whole_warp for instruction in self.instructions)

    @cached_property
    def kinds(self) -> Counter[str]:
        return Counter(instruction.kind for instruction in self.instructions)
