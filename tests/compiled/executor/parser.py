"""PTX text -> Kernel: parameters, registers, and instructions in basic blocks.

It reads only code from Triton's compiler: one entry a module, dynamic shared memory named
`global_smem`, a fixed number of threads (.reqntid), no calls.
"""

import functools
import re
from dataclasses import dataclass, field
from enum import Enum, auto

from .instruction import Block, Guard, Instruction
from .ptx_types import WARP, EmulationError, register_bytes


@dataclass(frozen=True)
class Register:
    index: int
    bytes: int  # 0: a predicate


@dataclass(frozen=True)
class Parameter:
    kind: str  # u64, u32, f32, ...
    name: str


@dataclass(eq=False)  # hashed by identity: what is made of a kernel is kept beside it
class Kernel:
    """One entry of a PTX module."""

    name: str = ""
    threads: int = 0  # of a CTA
    parameters: list[Parameter] = field(default_factory=list)
    registers: dict[str, Register] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)  # name: number of the block
    blocks: list[Block] = field(default_factory=list)
    shared_symbols: dict[str, int] = field(default_factory=lambda: {"global_smem": 0})
    local_symbols: dict[str, int] = field(default_factory=dict)  # name: offset
    texts: set[str] = field(default_factory=set)  # names of global bytes: an assertion's words
    local_bytes: int = 0

    def instruction(self, site: tuple[int, int]) -> Instruction:
        return self.blocks[site[0]].instructions[site[1]]

    def where(self, site: tuple[int, int]) -> str:
        """The instruction in words, for messages."""
        found = self.instruction(site)
        return f"{self.name} PTX line {found.line} ({found.source}): {found.text}"


@functools.cache
def parse(ptx: str) -> Kernel:
    """The kernel of a PTX module. Raises EmulationError for what is not understood.

    Instructions are looked at when they are first executed: one that nobody reaches may be unknown.
    """
    return _Reader(ptx).kernel


def split_operands(text: str) -> list[str]:
    """The parts between commas, where braces and brackets keep theirs together."""
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        if character in "{[(":
            depth += 1
        elif character in "}])":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]


class _Place(Enum):
    """How far the text has been read."""

    HEAD = auto()
    PARAMETERS = auto()
    ATTRIBUTES = auto()
    BODY = auto()
    TAIL = auto()


class _Reader:
    """Reads a module line by line."""

    def __init__(self, ptx: str) -> None:
        self.kernel = Kernel()
        self.place = _Place.HEAD
        self.depth = 0  # of braces in the body
        self.source = ""  # what the last .loc said
        self.line = 0
        self.items: list[str | Instruction] = []  # a str is a label
        self.files = {
            number: path.rsplit("/", 1)[-1]
            for number, path in re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]+)"', ptx, re.MULTILINE)
        }
        for self.line, raw in enumerate(ptx.splitlines(), 1):
            line = raw.split("//", 1)[0].strip()
            if line:
                self.read(line)
        if self.place != _Place.TAIL:
            raise EmulationError(f"the PTX ends in its {self.place.name.lower()}")
        if self.kernel.threads == 0 or self.kernel.threads % WARP:
            raise EmulationError(f"{self.kernel.name}: .reqntid {self.kernel.threads}")
        _divide(self.kernel, self.items)

    def read(self, line: str) -> None:
        match self.place:
            case _Place.HEAD:
                self.head(line)
            case _Place.PARAMETERS:
                self.parameters(line)
            case _Place.ATTRIBUTES:
                if found := re.match(r"\.reqntid\s+(\d+)", line):
                    self.kernel.threads = int(found.group(1))
                if line.startswith("{"):
                    self.place, self.depth = _Place.BODY, 1
            case _Place.BODY:
                self.body(line)
            case _Place.TAIL:
                if re.search(r"\.entry\s", line):
                    raise EmulationError("more than one entry")

    def head(self, line: str) -> None:
        entry = re.search(r"\.entry\s+([\w$]+)\s*\(", line)
        if entry is None:
            if ".shared" in line and "global_smem" not in line:
                raise EmulationError(f"a shared symbol other than global_smem: {line}")
            if text := re.match(r"\.global\s.*\.b8\s+(\w+)\[\d+\] =", line):
                self.kernel.texts.add(text.group(1))
            return
        self.kernel.name, self.place = entry.group(1), _Place.PARAMETERS
        self.parameters(line[entry.end() :].strip())

    def parameters(self, line: str) -> None:
        for found in re.finditer(r"\.param\s+\.(\w+)[^,()]*?([\w$]+)(?=,|\)|$)", line):
            self.kernel.parameters.append(Parameter(found.group(1), found.group(2)))
        if line.endswith(")"):
            self.place = _Place.ATTRIBUTES

    def body(self, line: str) -> None:
        if line == "{":
            self.depth += 1
            return
        if line == "}":
            self.depth -= 1
            if self.depth == 0:
                self.place = _Place.TAIL
            return
        if found := re.match(r"\.loc\s+(\d+)\s+(\d+)", line):
            self.source = f"{self.files.get(found.group(1), '?')}:{found.group(2)}"
            return
        label = re.match(r"([\w$]+):(.*)$", line)
        if label:
            self.items.append(label.group(1))
            line = label.group(2)
        for statement in line.split(";"):
            statement = statement.lstrip("{} \t")  # scopes of inline assembly; names are unique
            if statement:
                self.statement(statement)

    def statement(self, text: str) -> None:
        if text.startswith(".reg"):
            self.declare_registers(text)
        elif text.startswith(".local"):
            self.declare_local(text)
        elif text.startswith("."):
            return  # .pragma and the like
        else:
            self.items.append(self.instruction(text))

    def declare_registers(self, text: str) -> None:
        """`.reg .b32 %r<40>`, or single ones."""
        _, kind, names = text.split(None, 2)
        width = register_bytes(kind.removeprefix("."))
        for name in split_operands(names):
            many = re.match(r"([%\w$]+)<(\d+)>", name)
            each = [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [name]
            for register in each:
                registers = self.kernel.registers
                known = registers.setdefault(register, Register(len(registers), width))
                if known.bytes != width:
                    raise EmulationError(f"{self.kernel.name} declares {register} in two widths")

    def declare_local(self, text: str) -> None:
        found = re.match(r"\.local\s+\.align\s+(\d+)\s+\.b8\s+(\w+)\[(\d+)\]", text)
        if found is None:
            raise EmulationError(f"{self.kernel.name} PTX line {self.line}: {text}")
        align, name, size = int(found[1]), found[2], int(found[3])
        start = -(-self.kernel.local_bytes // align) * align
        self.kernel.local_symbols[name] = start
        self.kernel.local_bytes = start + size

    def instruction(self, text: str) -> Instruction:
        guard, rest = None, text
        if found := re.match(r"@(!?)([%\w]+)\s+(.*)$", text, re.DOTALL):
            guard, rest = Guard(found[2], bool(found[1])), found[3]
        opcode, *operands = rest.split(None, 1)
        found_operands = split_operands(operands[0]) if operands else []
        return Instruction(opcode, found_operands, guard, self.line, self.source, text)


def _divide(kernel: Kernel, items: list[str | Instruction]) -> None:
    """Divide instructions into blocks: at labels, after branches and barriers, and before each
    access of global memory, so that a scheduler can stop there."""
    block = Block(0)
    kernel.blocks.append(block)

    def new_block() -> Block:
        if not kernel.blocks[-1].instructions:
            return kernel.blocks[-1]
        kernel.blocks.append(Block(len(kernel.blocks)))
        return kernel.blocks[-1]

    for item in items:
        if isinstance(item, str):
            block = new_block()
            kernel.labels[item] = block.number
            continue
        if item.synchronises or item.accesses_global:
            block = new_block()
            block.synchronises, block.accesses = item.synchronises, item.accesses_global
        block.instructions.append(item)
        if item.ends_a_block:
            block = new_block()
    if not block.instructions:  # a label at the very end, or a branch before it
        block.instructions.append(Instruction("ret", [], None, 0, "", "ret"))
