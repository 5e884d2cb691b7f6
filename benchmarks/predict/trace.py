"""The trace of one warp of a launch: its instructions, with the sectors that each touches."""

import ctypes
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .model import PlayedInstruction
from .sass import GLOBAL, GLOBAL_LOADS, GLOBAL_STORES, Instruction
from .thread import Machine, Step

SECTOR = 32
WARP = 32
TENSORS_AT = 1 << 44  # address of a launch's first tensor; each has 2^40 bytes of room
DRAM, L2, L1 = 0, 1, 2
LOCAL = -1  # in place of a tensor's number: the threads' own memory, which has their spills
ALU, FMA, FMA_HEAVY, SPECIAL, MEMORY, OTHER = range(6)
(
    PLAIN, LOAD, STORE, FIXED, BARRIER, ATOMIC, FENCE, DELAYED, EXIT, COPY, COMMIT, AWAIT,
) = range(12)  # fmt: skip

_PIPES = {
    ALU: {
        "IADD3", "LOP3", "ISETP", "SHF", "LEA", "PRMT", "SEL", "MOV", "VIADD", "VIMNMX",
        "VIADDMNMX", "IABS", "SGXT", "P2R", "R2P", "PLOP3", "FSEL", "FSETP", "FMNMX", "F2FP",
        "I2FP", "CS2R", "R2UR", "HMNMX2", "HSETP2", "VOTE", "FLO", "POPC",
    },
    FMA: {"FADD", "FMUL", "FFMA", "HADD2", "HFMA2", "HMUL2"},
    FMA_HEAVY: {"IMAD"},
    SPECIAL: {"MUFU", "F2I", "I2F", "F2F", "DADD", "DMUL", "DFMA"},
    MEMORY: GLOBAL | {"LDS", "STS", "LDSM", "STSM", "LDL", "STL", "SHFL", "REDUX"},
}  # fmt: skip
_PIPE_OF = {base: pipe for pipe, bases in _PIPES.items() for base in bases}
_LATENCIES = {  # (kind, cycles)
    **dict.fromkeys(_PIPES[SPECIAL], (DELAYED, 24)),
    **dict.fromkeys(("S2R", "S2UR"), (DELAYED, 30)),
    **dict.fromkeys(("SHFL", "REDUX"), (FIXED, 23)),
    **dict.fromkeys(("LDS", "LDSM", "LDL"), (FIXED, 29)),
    **dict.fromkeys(("STS", "STSM", "STL"), (FIXED, 10)),
    "LDC": (DELAYED, 40),
}
_KINDS = {"BAR": BARRIER, "EXIT": EXIT, "MEMBAR": FENCE, "LDGDEPBAR": COMMIT, "DEPBAR": AWAIT}


@dataclass(frozen=True)
class WarpTrace:
    """The steps of a warp's first thread, and their form for the model."""

    steps: list[Step]
    played: ctypes.Array[PlayedInstruction]
    sectors: Counter[tuple[str, str]]  # bytes of sectors, by load, store or atomic, and argument

    def peak_in_flight(self) -> int:
        """The most bytes that a thread has requested from memory before it waits for some."""
        most, copied = 0, 0
        loads, copies = [0] * 8, list[int]()
        for (instruction, active, at), i in zip(self.steps, self.played, strict=True):
            most = max(most, sum(loads) + copied + sum(copies))
            for barrier in range(6):
                if instruction.wait >> barrier & 1:
                    loads[barrier] = 0
            size = instruction.bits // 8 if active and at is not None and i.level == DRAM else 0
            if i.kind == LOAD:
                loads[i.write_barrier] += size
            elif i.kind == COPY:
                copied += size
            elif i.kind == COMMIT:
                copies.append(copied)
                copied = 0
            elif i.kind == AWAIT:
                copies = copies[len(copies) - i.amount :] if i.amount else []
        return most


def trace_warp(
    machine: Machine,
    program: int,
    levels: Mapping[int, int],
    names: Sequence[str],
    arrival: Callable[[int], int],
) -> WarpTrace:
    """The first warp of a program; `levels` gives the place of each tensor by its number, and that
    of LOCAL."""
    base = machine.run(program, 0, arrival)
    lanes = [machine.run(program, lane, arrival) for lane in (1, WARP - 1)]
    in_step = all(len(lane) == len(base) for lane in lanes)
    if in_step and all(_is_regular(b, lanes[1][n]) for n, b in enumerate(base)):
        touched = [_regular_sectors(b, lanes[1][n]) for n, b in enumerate(base)]
    else:
        touched = _all_sectors(machine, program, base, arrival)
    return _played(base, touched, levels, names)


def _is_regular(first: Step, last: Step) -> bool:
    """Whether a warp's addresses are one run, or all the same."""
    if first.instruction.base not in GLOBAL:
        return True
    if first.at is None or last.at is None:
        return first.at is None and last.at is None
    return last.at - first.at in (0, (WARP - 1) * first.instruction.bits // 8)


def _regular_sectors(first: Step, last: Step) -> int:
    if first.at is None or first.instruction.base not in GLOBAL:
        return 0
    return 1 if last.at == first.at else first.instruction.bits // 8


def _all_sectors(
    machine: Machine, program: int, base: list[Step], arrival: Callable[[int], int]
) -> list[int]:
    """Sectors of each step over all lanes; a lane's n-th visit to an instruction is one step."""
    found: dict[tuple[int, int], set[int]] = {}
    for lane in range(WARP):
        for key, step in zip(*_numbered(machine.run(program, lane, arrival)), strict=True):
            if step.at is not None and step.instruction.base in GLOBAL:
                last = step.at + step.instruction.bits // 8 - 1
                found.setdefault(key, set()).update(
                    range(step.at // SECTOR, last // SECTOR + 1)
                )  # fmt: skip
    return [len(found.get(key, ())) for key in _numbered(base)[0]]


def _numbered(steps: list[Step]) -> tuple[list[tuple[int, int]], list[Step]]:
    seen: Counter[int] = Counter()
    keys = []
    for step in steps:
        seen[step.instruction.address] += 1
        keys.append((step.instruction.address, seen[step.instruction.address]))
    return keys, steps


def _played(
    steps: list[Step], touched: list[int], levels: Mapping[int, int], names: Sequence[str]
) -> WarpTrace:
    played = (PlayedInstruction * len(steps))()
    sectors: Counter[tuple[str, str]] = Counter()
    loaded: set[int] = set()
    for step, count, out in zip(steps, touched, played, strict=True):
        _describe(step, out)
        if step.active and step.instruction.base in ("LDL", "STL") and levels[LOCAL] == L2:
            _move_spill(step, out)
        if step.instruction.base not in GLOBAL:
            continue
        out.pipe, out.passes, out.kind = MEMORY, 1, PLAIN
        if count == 0:
            continue
        number = ((step.at or TENSORS_AT) - TENSORS_AT) >> 40
        out.kind, out.level = _kind_of(step.instruction), levels.get(number, L2)
        out.amount, out.passes = count * SECTOR, math.ceil(count * SECTOR / 128)
        if out.kind in (LOAD, COPY) and out.level == DRAM and step.at is not None:
            out.level = L2 if step.at in loaded else DRAM
            loaded.add(step.at)
        name = names[number] if 0 <= number < len(names) else "?"
        side = "load" if out.kind in (LOAD, COPY) else "store" if out.kind == STORE else "atomic"
        sectors[side, name] += out.amount
    return WarpTrace(steps, played, sectors)


def _describe(step: Step, out: PlayedInstruction) -> None:
    """Everything that does not depend on the memory touched."""
    i = step.instruction
    out.stall, out.write_barrier, out.read_barrier, out.wait = (
        i.stall, i.write_barrier, i.read_barrier, i.wait,
    )  # fmt: skip
    out.pipe, out.level = _PIPE_OF.get(i.base, OTHER), L1
    out.kind = _KINDS.get(i.base, PLAIN)
    if i.base == "EXIT" and not step.active:
        out.kind = PLAIN
    if i.base in _LATENCIES:
        out.kind, out.amount = _LATENCIES[i.base]
    if i.base in ("SHFL", "REDUX"):
        out.passes = 1
    elif out.kind == FIXED:
        out.passes = max(1, i.bits // 32) if step.at is not None else 1
    if out.kind == AWAIT:
        out.amount = int(i.operands[1], 16) if len(i.operands) > 1 else 0


def _move_spill(step: Step, out: PlayedInstruction) -> None:
    """A spill that the L1 cache has no room for. The lanes' values are neighbours."""
    out.kind, out.level = LOAD if step.instruction.base == "LDL" else STORE, L2
    out.amount = WARP * step.instruction.bits // 8


def _kind_of(i: Instruction) -> int:
    if i.base == "LDGSTS":
        return COPY
    if i.base in GLOBAL_LOADS:
        return LOAD
    return STORE if i.base in GLOBAL_STORES else ATOMIC
