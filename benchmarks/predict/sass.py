"""Machine code of sm_90 as data: instructions, their operands and their control bits."""

import re
from dataclasses import dataclass

from benchmarks.machine_code import disassemble

_INSTRUCTION = re.compile(
    r"\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P[T\d]+)\s+)?([A-Z][A-Za-z0-9_.]*)\s*(.*?)\s*;\s*"
    r"/\* 0x[0-9a-f]{16} \*/"
)
_SECOND_WORD = re.compile(r"^\s*/\* 0x([0-9a-f]{16}) \*/\s*$")
_LABEL = re.compile(r"^(\S+):\s*$")
_OPERAND = re.compile(r"(?:\[[^]]*\]|\([^)]*\)|[^,\[(])+")

GLOBAL_LOADS = {"LDG", "LD", "LDGSTS"}
GLOBAL_STORES = {"STG", "ST"}
ATOMICS = {"ATOMG", "RED", "ATOM"}
GLOBAL = GLOBAL_LOADS | GLOBAL_STORES | ATOMICS


@dataclass(frozen=True)
class Instruction:
    """One instruction; `stall` and the rest are the control bits from the assembler."""

    address: int
    guard: str | None  # the predicate that it runs under, "!P0"
    name: str  # with suffixes, LDG.E.128
    operands: tuple[str, ...]
    stall: int  # cycles until this warp's next
    write_barrier: int  # the barrier (0 to 5) that is freed by its result; 7 for none
    read_barrier: int  # the barrier that is freed when its operands were read
    wait: int  # a bit for each barrier that it waits for

    @property
    def suffixes(self) -> list[str]:
        return self.name.split(".")

    @property
    def base(self) -> str:
        return self.name.split(".")[0]

    @property
    def bits(self) -> int:
        """The width of one thread's access to memory."""
        sizes = [s.lstrip("US") for s in self.suffixes[1:]]
        if self.base in ("LDSM", "STSM"):
            return 32 * (4 if "4" in sizes else 2 if "2" in sizes else 1)
        if self.base in ATOMICS:
            return 32 * (4 if "x4" in self.name else 2 if "x2" in self.name else 1)
        return next((int(s) for s in sizes if s in ("8", "16", "64", "128")), 32)


@dataclass(frozen=True)
class Program:
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]  # each label's address


def parse(cubin: bytes) -> Program:
    return parse_text(disassemble(cubin, "--print-instruction-encoding"))


def parse_text(text: str) -> Program:
    """The program in the output of `nvdisasm -c -hex`."""
    found: list[Instruction] = []
    labels: dict[str, int] = {}
    waiting: list[str] = []
    half: re.Match[str] | None = None
    for line in text.splitlines():
        if match := _INSTRUCTION.match(line):
            half = match
            labels.update(dict.fromkeys(waiting, int(match[1], 16)))
            waiting = []
        elif (match := _SECOND_WORD.match(line)) and half is not None:
            found.append(_instruction(half, int(match[1], 16) >> 41))
            half = None
        elif match := _LABEL.match(line.strip()):
            waiting.append(match[1])
    return Program(tuple(found), labels)


def _instruction(match: re.Match[str], control: int) -> Instruction:
    operands = [operand.strip() for operand in _OPERAND.findall(match[4])]
    return Instruction(
        int(match[1], 16),
        match[2],
        match[3],
        tuple(operand.replace(".reuse", "") for operand in operands if operand),
        stall=control & 0xF,
        write_barrier=control >> 5 & 7,
        read_barrier=control >> 8 & 7,
        wait=control >> 11 & 0x3F,
    )


_KINDS = {
    "load": GLOBAL_LOADS,
    "store": GLOBAL_STORES,
    "atomic": ATOMICS,
    "shared": {"LDS", "STS", "LDSM", "STSM"},
    "stack": {"LDL", "STL"},
    "shuffle": {"SHFL", "REDUX", "VOTE", "VOTEU"},
    "barrier": {"BAR"},
    "float": {"FADD", "FMUL", "FFMA", "HADD2", "HFMA2", "HMUL2"},
    "convert": {
        "FSEL", "FSETP", "FMNMX", "F2FP", "F2F", "I2F", "F2I", "I2FP", "MUFU", "DADD", "DMUL",
        "DFMA", "DSETP",
    },
    "control": {"BRA", "EXIT", "CALL", "RET", "BSSY", "BSYNC", "BREAK", "NOP", "WARPSYNC"},
}  # fmt: skip
_KIND_OF = {base: kind for kind, bases in _KINDS.items() for base in bases}


def kind(instruction: Instruction) -> str:
    """The kind of work; "integer" if it is no other."""
    if instruction.base == "HFMA2" and "-RZ" in instruction.operands:
        return "integer"  # a moved constant
    return _KIND_OF.get(instruction.base, "integer")
