"""The Python of accesses: parameters, global, shared and local memory, atomics, matrices."""

import re
from collections.abc import Callable

from .instruction import Instruction
from .ptx_types import BITS, BYTES, HALF_FLOATS, EmulationError
from .writer import BlockWriter

ATOMICS = ("add", "exch", "cas", "min", "max", "and", "or", "xor", "inc", "dec")
# How a load or store is ordered, or which cache it passes by. Eviction priorities change nothing.
LOAD_KINDS = ("acquire", "volatile", "relaxed", "cg", "cv", "nc", "lu")
STORE_KINDS = ("release", "volatile", "relaxed")
SPACE_OF = {"global": ("cta.global_memory", "u64"), "shared": ("cta.shared_memory", "u32"),
            "local": ("cta.local_memory", "u64")}  # fmt: skip


def place(w: BlockWriter, i: Instruction, operand: str) -> tuple[str, str]:
    """The memory that an instruction accesses, and the addresses."""
    if i.space not in SPACE_OF or "shared::cluster" in i.parts:
        raise EmulationError(f"access of {i.space} memory")
    memory, kind = SPACE_OF[i.space]
    return memory, w.address(operand, kind)


def load(w: BlockWriter, i: Instruction) -> None:
    kind, parts = w.held(i), w.registers(i.operands[0])
    if i.space == "param":
        return _load_parameter(w, i)
    memory, address = place(w, i, i.operands[1])
    arguments = f"{address}, {BYTES[kind]}, {len(parts)}, {w.mask}"
    if i.space == "global":
        arguments += f", {i.first_of(*LOAD_KINDS)!r}"
    values = w.temporary(f"{memory}.load({arguments}, {w.site})")

    def assign() -> None:
        for position, part in enumerate(parts):
            view = "" if BITS[BYTES[kind]] == kind else f".view({kind})"
            w.write(part, f"{values}[{position}]{view}", kind)

    if w.mask is None:
        return assign()
    with w.unless_none(values):  # None where no thread executes it
        return assign()


def _load_parameter(w: BlockWriter, i: Instruction) -> None:
    found = re.match(r"\[\s*([\w$]+)\s*\]$", i.operands[1])
    names = [parameter.name for parameter in w.kernel.parameters]
    if found is None or found[1] not in names:
        raise EmulationError("parameter")
    kind = w.held(i)
    w.write(i.operands[0], f"cta.parameter({names.index(found[1])}, {kind})", kind)


def store(w: BlockWriter, i: Instruction) -> None:
    if i.space == "param":  # a call's
        return
    width = BYTES[w.held(i)]
    values = ", ".join(w.read_all(w.registers(i.operands[1]), BITS[width]))
    memory, address = place(w, i, i.operands[0])
    arguments = f"{address}, [{values}], {width}, {w.mask}"
    if i.space == "global":
        arguments += f", {i.first_of(*STORE_KINDS)!r}"
    w.emit(f"{memory}.store({arguments}, {w.site})")


def atomic(w: BlockWriter, i: Instruction) -> None:
    """atom, and red, which returns nothing"""
    if i.space != "global":
        raise EmulationError("atomics of global memory alone are known")
    if i.type in HALF_FLOATS or "async" in i.parts:
        raise EmulationError("atomics of 16-bit floats and asynchronous ones are not known")
    order = i.first_of("acq_rel", "acquire", "release", default="relaxed")
    operation = i.first_of(*ATOMICS)
    if not operation:
        raise EmulationError("operation")
    kind = w.held(i)
    target, operands = (i.operands[0], i.operands[1:]) if i.name == "atom" else ("_", i.operands)
    values = ", ".join(w.read_all(operands[1:], kind))
    address = w.address(operands[0], "u64")
    old = w.temporary(
        f"cta.global_memory.atomic({operation!r}, {address}, [{values}], {kind}, {w.mask}, "
        f"{order!r}, {w.site})"
    )
    w.write(target, old, kind)


def _matrices(w: BlockWriter, i: Instruction) -> tuple[int, bool]:
    """How many matrices of 8 x 8 halves an ldmatrix or stmatrix moves, and whether transposed."""
    if "m8n8" not in i.parts or i.type != "b16":
        raise EmulationError("only .m8n8 and .b16 are known")
    if w.mask is not None:
        w.emit(f"cta.check_whole_warps({w.mask}, {w.site})")
    return int(i.first_of("x1", "x2", "x4")[1:]), "trans" in i.parts


def load_matrix(w: BlockWriter, i: Instruction) -> None:
    count, transposed = _matrices(w, i)
    address = w.address(i.operands[1], "u32")
    values = w.temporary(
        f"cta.shared_memory.load_matrices({address}, {count}, {transposed}, {w.mask}, {w.site})"
    )
    for position, part in enumerate(w.registers(i.operands[0])):
        w.write(part, f"{values}[{position}]", "u32")


def store_matrix(w: BlockWriter, i: Instruction) -> None:
    _, transposed = _matrices(w, i)
    values = ", ".join(w.read_all(w.registers(i.operands[1]), "u32"))
    address = w.address(i.operands[0], "u32")
    w.emit(
        f"cta.shared_memory.store_matrices({address}, [{values}], {transposed}, {w.mask}, {w.site})"
    )


def copy(w: BlockWriter, i: Instruction) -> None:
    """cp.async from global to shared memory, and the groups that copies are waited for in."""
    if i.opcode == "cp.async.commit_group":
        return w.emit(f"cta.copies.commit({w.mask})")
    if i.opcode == "cp.async.wait_group":
        return w.emit(f"cta.copies.wait({int(i.operands[0], 0)}, {w.mask}, {w.site})")
    if i.parts[:2] != ["cp", "async"] or i.parts[2] not in ("ca", "cg"):
        raise EmulationError("copy")
    to, source = w.address(i.operands[0], "u32"), w.address(i.operands[1], "u64")
    size = int(i.operands[2], 0)
    there = w.read(i.operands[3], "u32") if len(i.operands) > 3 else None
    w.emit(f"cta.copies.copy({to}, {source}, {size}, {there}, {w.mask}, {i.parts[2]!r}, {w.site})")


HANDLERS: dict[str, Callable[[BlockWriter, Instruction], None]] = {
    "ld": load, "st": store, "atom": atomic, "red": atomic, "ldmatrix": load_matrix,
    "stmatrix": store_matrix, "cp": copy,
}  # fmt: skip
