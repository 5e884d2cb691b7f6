"""The estimate of a launch: its machine code, played on a model of one multiprocessor."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.compile_only import Argument, Launch
from benchmarks.machine_code import Resources, assembler_resources
from fastnorm.kernels.occupancy import SHARED_RESERVED, occupancy

from .constants import bank_of
from .model import CLOCK, L2_KEEPS, SMS, play
from .sass import Program, parse
from .thread import Machine
from .trace import DRAM, L1, L2, LOCAL, WARP, WarpTrace, trace_warp

CAPABILITY = 90
PARAMETERS = ("weight", "bias")  # names of fields in a kernel's arguments
NEAR = 65536  # bytes of parameters that stay in the L1 cache
L1_AND_SHARED = 256 * 1024  # bytes of a multiprocessor
# The sizes that its shared memory can have, in KB (CUDA C++ Programming Guide, capability 9.0).
SHARED_SIZES = (8, 16, 32, 64, 100, 132, 164, 196, 228)
MANY = 32  # programs that a multiprocessor gets in turn
LONG = 4000  # instructions of a warp: beyond, only a few blocks are played


@dataclass(frozen=True)
class Code:
    """A launch in the form for the model: its machine code, its grid and its arguments."""

    name: str
    program: Program
    resources: Resources
    shared: int
    warps: int
    programs: int
    arguments: tuple[Argument, ...]
    cooperative: bool = False  # its programs wait for one another

    @property
    def tensors(self) -> list[Argument]:
        return [a for a in self.arguments if a.form[0] == "*"]


def code_of(launch: Launch) -> Code:
    cubin, metadata = launch.kernel.asm["cubin"], launch.kernel.metadata
    return Code(
        launch.name,
        parse(cubin),
        assembler_resources(cubin),
        metadata.shared,
        metadata.num_warps,
        launch.programs,
        launch.arguments,
        metadata.launch_cooperative_grid,
    )


@dataclass(frozen=True)
class Estimate:
    """Counts of one launch, which are exact, and its time, which is an estimate."""

    kernel: str
    programs: int
    warps: int
    registers: int
    spilled: int  # bytes a thread; the program's own arrays count too
    resident_warps: int  # on a multiprocessor at a time
    waves: float
    peak_kb: float  # the most that a multiprocessor has requested from memory at a time
    mean_kb: float
    instructions: float  # of threads, for each element of x
    issued: float  # share of the issue slots
    us: float
    tail_us: float  # extra time of the program that finds itself last
    moved: tuple[str, ...]  # tensors as large as x that it reads or writes

    def as_row(self) -> dict[str, Any]:
        return asdict(self)


def estimate(code: Code, elements: int, gpu: str, again: frozenset[str]) -> Estimate:
    """The estimate of one launch on an x with that many elements. `again` names tensors that an
    earlier launch of the same call has moved: a part of them is in the L2 cache."""
    room = occupancy(CAPABILITY, code.resources.registers, code.shared, code.warps)
    bank = bank_of(code.arguments, code.programs)
    machine = Machine(code.program, bank.words)
    streams = streams_of(code, elements)
    reread = [a for a in streams if a.name in again]
    cached = min(1.0, L2_KEEPS / sum(a.value for a in reread)) if reread else 0.0
    per_sm = math.ceil(code.programs / SMS)
    resident = min(room.blocks, per_sm)
    spills = place_of_spills(code, resident)
    cycles = 0.0
    shown = None
    for level, share in ((DRAM, 1 - cached), (L2, cached)):
        if share <= 0:
            continue
        near = {a.name for a in reread} if level == L2 else set()
        levels = _levels(code.tensors, streams, near) | {LOCAL: spills}
        traces = _traces(code, machine, levels, bank.tensors, room.blocks)
        blocks = min(per_sm, _blocks(traces, room.blocks))
        played = play(gpu, [t.played for t in traces], code.warps, room.blocks, blocks)
        cycles += share * (played.cycles + (per_sm - blocks) * played.cycles_a_block)
        cycles += share * _uneven(code, machine, levels, traces[0], gpu, room.blocks)
        if shown is None:
            shown = traces, played
    assert shown is not None
    traces, played = shown
    a_thread = sum(len(t.steps) for t in traces) / len(traces)
    threads = code.warps * WARP
    return Estimate(
        code.name,
        code.programs,
        code.warps,
        code.resources.registers,
        code.resources.stack,
        room.warps,
        code.programs / (SMS * room.blocks),
        max(t.peak_in_flight() for t in traces) * threads * resident / 1024,
        played.in_flight / 1024,
        a_thread * threads * code.programs / elements,
        played.issued,
        cycles / CLOCK * 1e6,
        _tail(code, machine, levels, bank.tensors, gpu),
        tuple(a.name for a in streams if any(a.name == n for t in traces for _, n in t.sectors)),
    )


def streams_of(code: Code, elements: int) -> list[Argument]:
    """The tensors as large as x, and ReLU's bits."""
    return [
        a
        for a in code.tensors
        if a.form == "*u8" or a.value == elements * int(a.form.lstrip("*bfpiu")) // 8
    ]


def _levels(
    tensors: Sequence[Argument], streams: Sequence[Argument], near: set[str]
) -> dict[int, int]:
    """The place of each tensor: those as large as x in memory, small parameters in the L1 cache."""
    parameters = [a for a in tensors if _field(a) in PARAMETERS]
    close = L1 if sum(a.value for a in parameters) <= NEAR else L2
    found = {}
    for number, tensor in enumerate(tensors):
        if tensor in streams:
            found[number] = L2 if tensor.name in near else DRAM
        else:
            found[number] = close if tensor in parameters else L2
    return found


def place_of_spills(code: Code, blocks: int) -> int:
    """The L1 cache, if it has room for the spills of all resident threads."""
    shared = blocks * (code.shared + SHARED_RESERVED)
    taken = next(size * 1024 for size in SHARED_SIZES if size * 1024 >= shared)
    spilled = code.resources.stack * blocks * code.warps * WARP
    return L1 if spilled <= L1_AND_SHARED - taken else L2


def _field(argument: Argument) -> str:
    return argument.name.rpartition(".")[2].removesuffix("_ptr")


def _nobody(_k: int) -> int:
    return 0


def _others_are_there(k: int) -> int:
    """At a barrier: a program's arrival, and then the first time it looks (`wait_for_members`)."""
    return 0 if k % 2 else 1 << 31


def _traces(
    code: Code, machine: Machine, levels: dict[int, int], names: Sequence[str], resident: int
) -> list[WarpTrace]:
    """A warp of each program of one multiprocessor. If there are many, of four neighbouring
    programs in the middle of the grid, whose work may differ."""
    middle = code.programs // 2
    if code.programs > SMS * max(resident, MANY):
        chosen = range(middle, min(middle + 4, code.programs))
    else:
        chosen = range(min(SMS // 2, middle), code.programs, SMS)
    arrival = _others_are_there if code.cooperative else _nobody
    return [trace_warp(machine, p, levels, names, arrival) for p in chosen]


def _uneven(
    code: Code, machine: Machine, levels: dict[int, int], trace: WarpTrace, gpu: str, resident: int
) -> float:
    """Cycles that the first program, which may have a turn more, works alone after the others, with
    the full bandwidth of the L2 cache."""
    if code.programs > SMS * resident or code.cooperative:
        return 0.0
    first = trace_warp(machine, 0, levels, [], _nobody)
    if len(first.steps) <= len(trace.steps):
        return 0.0
    times = [play(gpu, [t.played], code.warps, 1, 1, alone=True).cycles for t in (first, trace)]
    return times[0] - times[1]


def _blocks(traces: list[WarpTrace], resident: int) -> int:
    if len(traces[0].steps) < LONG:
        return max(6 * resident, 8)
    return max(3 * resident, 3)


def _tail(
    code: Code, machine: Machine, levels: dict[int, int], names: Sequence[str], gpu: str
) -> float:
    """The extra us of a program that finds itself the last of its set. Those of a cluster all wait
    until the last has come; what one of them does alone after that is not counted."""
    if code.cooperative or not any(i.base == "ATOMG" for i in code.program.instructions):
        return 0.0
    alone = trace_warp(machine, code.programs // 2, levels, names, _nobody)
    times = []
    for trace in (alone, trace_warp(machine, code.programs // 2, levels, names, _last(code))):
        times.append(play(gpu, [trace.played], code.warps, 1, 1).cycles)
    return (times[1] - times[0]) / CLOCK * 1e6


def _last(code: Code) -> Callable[[int], int]:
    """The values that tickets return to the last program of a set."""
    values = {a.name: int(a.value) for a in code.arguments if a.form[0] != "*"}
    if "parts" not in values:
        return _nobody
    members, instances = values["parts"], values.get("N", 1)
    if "u_blocks" in values and code.programs > members * values["u_blocks"]:
        members = code.programs // (instances * values["u_blocks"])
    others = [members - 1, instances - 1]
    return lambda k: others[min(k, 2) - 1]
