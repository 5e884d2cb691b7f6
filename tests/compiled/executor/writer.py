"""Used to write the Python of instructions: operands, results, constants of one block.

In the Python of a block `R` is the list of registers, each an array of one value a thread (a
register's array may have any type of its width: `.view(f32)` reads its bits as another), `cta` the
Cta, and `mask` or `guarded` says which threads execute, if not all.
"""

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from .instruction import Instruction
from .parser import Kernel, split_operands
from .ptx_types import (
    BITS,
    BYTES,
    HELD_AS,
    NUMPY,
    WARP,
    EmulationError,
    Site,
    is_float,
)

SHARED_BASE = 1024  # the address of global_smem, so that 0 is none
SPECIAL_REGISTER = re.compile(
    r"%(tid|ntid|ctaid|nctaid|laneid|warpid|clusterid|cluster_ctaid|cluster_nctaid"
    r"|cluster_ctarank|smid)(?:\.([xyz]))?$"
)


def is_number(operand: str) -> bool:
    return re.fullmatch(r"\d+", operand) is not None


def bits_of_literal(text: str, kind: str) -> int:
    """The bits of a literal operand of a type: 5, -1, 0x1F, 0f3F800000, 0d..., 1.5."""
    prefix, digits = text[:2].lower(), text[2:]
    if prefix == "0f":
        if kind != "f64":
            return int(digits, 16)
        number = struct.unpack("<f", struct.pack("<I", int(digits, 16)))[0]
        return struct.unpack("<Q", struct.pack("<d", number))[0]
    if prefix == "0d":
        return int(digits, 16)
    if re.fullmatch(r"-?\d+\.\d*(e[-+]?\d+)?", text):
        as_float, as_integer = ("<f", "<I") if kind == "f32" else ("<d", "<Q")
        return struct.unpack(as_integer, struct.pack(as_float, float(text)))[0]
    return int(text.rstrip("U"), 0)


class Namespace:
    """The names that the Python of one kernel sees."""

    def __init__(self, threads: int, names: dict[str, Any]) -> None:
        self.threads, self.names = threads, dict(names)
        self._constants: dict[tuple[int, str], str] = {}

    def bind(self, name: str, value: Any) -> str:
        self.names[name] = value
        return name

    def constant(self, value: int, kind: str) -> str:
        """The name of an array that has these bits in all threads."""
        found = self._constants.get((value, kind))
        if found is None:
            bits = BITS[BYTES[kind]]
            if kind == "pred":
                array = np.full(self.threads, bool(value))
            else:
                raw = value & ((1 << (8 * BYTES[kind])) - 1)
                array = np.full(self.threads, raw, NUMPY[bits]).view(NUMPY[kind])
            array.setflags(write=False)
            found = self.bind(f"constant{len(self._constants)}", array)
            self._constants[value, kind] = found
        return found


class BlockWriter:
    """Collects the Python of one block. Expressions are strings, kinds are those of NUMPY."""

    def __init__(self, kernel: Kernel, namespace: Namespace) -> None:
        self.kernel, self.namespace = kernel, namespace
        self.lines: list[str] = []
        self.mask: str | None = None  # of the instruction at hand, None for all threads
        self.site: Site = (0, 0)
        self._indent = 1
        self._temporaries = 0
        self._kinds: dict[int, str] = {}  # of the arrays in R, as far as known

    # Lines

    def emit(self, line: str) -> None:
        self.lines.append("    " * self._indent + line)

    @contextmanager
    def unless_none(self, name: str) -> Iterator[None]:
        """What is emitted inside runs where the value `name` is not None."""
        self.emit(f"if {name} is not None:")
        self._indent += 1
        before = dict(self._kinds)
        yield
        self._indent -= 1
        for index in list(self._kinds):  # of what may or may not have been assigned
            if before.get(index) != self._kinds[index]:
                del self._kinds[index]

    def temporary(self, expression: str) -> str:
        """A new name for the value of an expression."""
        self._temporaries += 1
        name = f"t{self._temporaries}"
        self.emit(f"{name} = {expression}")
        return name

    def bind(self, name: str, value: Any) -> str:
        """A name of the kernel's namespace."""
        return self.namespace.bind(name, value)

    # Operands

    def held(self, instruction: Instruction) -> str:
        """How the values of the instruction's type are held."""
        return HELD_AS[instruction.type]

    def registers(self, operand: str) -> list[str]:
        """Those of a vector operand { %r1, %r2 }, or the one."""
        return split_operands(operand[1:-1]) if operand[0] == "{" else [operand]

    def register_bytes(self, name: str) -> int:
        return self.kernel.registers[name].bytes

    def constant(self, value: int, kind: str) -> str:
        return self.namespace.constant(value, kind)

    def symbol(self, name: str) -> int | None:
        """The address that a name of shared or local memory stands for; 0 for texts."""
        if name in self.kernel.shared_symbols:
            return SHARED_BASE + self.kernel.shared_symbols[name]
        if name in self.kernel.texts:
            return 0
        return self.kernel.local_symbols.get(name)

    def read(self, operand: str, kind: str) -> str:
        """An operand as an array of that kind."""
        if operand[0] == "!":
            return f"(~{self.read(operand[1:], kind)})"
        register = self.kernel.registers.get(operand)
        if register is not None:
            held = f"R[{register.index}]"
            if register.bytes == BYTES[kind]:
                same = kind == "pred" or self._kinds.get(register.index) == kind
                return held if same else f"{held}.view({kind})"
            if register.bytes < BYTES[kind] or kind == "pred":
                raise EmulationError(f"{operand} read as {kind}")
            wide, narrow = BITS[register.bytes], BITS[BYTES[kind]]
            return f"{held}.view({wide}).astype({narrow}).view({kind})"
        if found := SPECIAL_REGISTER.match(operand):
            return f"cta.special({found[1]!r}, {found[2] or 'x'!r})"
        if operand == "WARP_SZ":
            return self.constant(WARP, kind)
        address = self.symbol(operand)
        if address is None:
            address = bits_of_literal(operand, kind)
        return self.constant(address, kind)

    def read_all(self, operands: list[str], kind: str) -> list[str]:
        return [self.read(operand, kind) for operand in operands]

    def kind_now(self, operand: str, kind: str) -> str:
        """`kind`, or the other of the same width that a register's array is known to have."""
        register = self.kernel.registers.get(operand)
        if register is None or kind == "pred" or register.bytes != BYTES[kind]:
            return kind
        return self._kinds.get(register.index, kind)

    def address(self, operand: str, kind: str) -> str:
        """The addresses that [ base + offset ] says."""
        found = re.match(r"\[\s*([^\s+\]]+)\s*(?:\+\s*(-?\w+)\s*)?\]$", operand)
        if found is None:
            raise EmulationError(f"address {operand}")
        base, offset = found[1], int(found[2] or "0", 0)
        known = int(base) if is_number(base) else self.symbol(base)
        if known is not None:
            return self.constant(known + offset, kind)
        width = self.register_bytes(base)
        expression = self.read(base, BITS[width])
        if width != BYTES[kind]:
            expression = f"{expression}.astype({kind})"
        return f"({expression} + {self.constant(offset, kind)})" if offset else expression

    # Results

    def write(self, operand: str, expression: str, kind: str) -> None:
        """Assign an array of that kind to a register, in the threads that execute."""
        if operand == "_":
            return
        register = self.kernel.registers[operand]
        if register.bytes != BYTES[kind]:  # 8 or 16 bits into a wider register
            if register.bytes < BYTES[kind]:
                raise EmulationError(f"{kind} written to {operand}")
            if is_float(kind):
                expression, kind = f"({expression}).view({BITS[BYTES[kind]]})", BITS[BYTES[kind]]
            wide = f"{kind[0]}{8 * register.bytes}"
            expression, kind = f"({expression}).astype({wide})", wide
        held = f"R[{register.index}]"
        if self.mask is None:
            self.emit(f"{held} = {expression}")
        else:
            value = self.temporary(expression)
            old = held if kind == "pred" else f"{held}.view({kind})"
            self.emit(f"{held} = np.where({self.mask}, {value}, {old})")
        self._kinds[register.index] = kind
