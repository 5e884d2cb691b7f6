"""One thread of a compiled kernel, executed: each instruction in turn, and its memory accesses."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .arithmetic import RULES
from .operands import MASK, MASK64, Operands, as_float, float_bits, is_predicate, signed
from .sass import ATOMICS, Instruction, Program

MOST_STEPS = 3_000_000
# They change no register of this thread: fences, barriers, control of a warp's convergence.
_NOTHING = {
    "NOP", "BSSY", "BSYNC", "BREAK", "WARPSYNC", "ERRBAR", "CGAERRBAR", "CCTL", "MEMBAR", "DEPBAR",
    "BAR", "YIELD", "FENCE", "LDGDEPBAR", "ARRIVES", "SYNCS", "ELECT", "LEPC", "EXIT",
}  # fmt: skip
_MEMORIES = {
    **dict.fromkeys(("LDG", "LD", "STG", "ST"), "memory"),
    **dict.fromkeys(("LDS", "LDSM", "STS", "STSM"), "shared"),
    **dict.fromkeys(("LDL", "STL"), "stack"),
}


class Step(NamedTuple):
    """One instruction executed; `at` is the address that it touched, or None."""

    instruction: Instruction
    active: bool  # False if its guard was false
    at: int | None


@dataclass
class Thread:
    """A thread's inputs, and the memory that it wrote itself."""

    thread: int
    program: int
    constants: Mapping[int, int]
    index: Mapping[int, int]  # address to index of an instruction
    arrival: Callable[[int], int]  # the value returned by the k-th atomic
    atomics: int = 0
    counters: set[int] = field(default_factory=set)  # addresses of atomics
    memory: dict[int, int] = field(default_factory=dict)
    shared: dict[int, int] = field(default_factory=dict)
    stack: dict[int, int] = field(default_factory=dict)
    # The program's first thread, if this is another one: what only that one stores in shared memory
    # (the value of an atomic, say), this one finds there.
    first: "Thread | None" = None
    visits: Counter[int] = field(default_factory=Counter)  # of stores to shared memory
    stored: dict[tuple[int, int], dict[int, int]] = field(default_factory=dict)

    @property
    def special(self) -> dict[str, int]:
        return {
            "SR_TID.X": self.thread,
            "SR_CTAID.X": self.program,
            "SR_LANEID": self.thread % 32,
            "SR_LTMASK": (1 << (self.thread % 32)) - 1,
        }

    def atomic(self, at: int) -> int:
        self.counters.add(at)
        self.atomics += 1
        return self.arrival(self.atomics)

    def store_shared(self, n: int, at: int, values: list[int]) -> None:
        """By the n-th instruction of the program."""
        words = {at + 4 * k: value for k, value in enumerate(values)}
        self.visits[n] += 1
        self.stored[n, self.visits[n]] = words
        self.shared.update(words)

    def leave_to_first(self, n: int) -> None:
        self.visits[n] += 1
        if self.first is not None:
            self.shared.update(self.first.stored.get((n, self.visits[n]), {}))


def permuted(bytes_: int, selector: int) -> int:
    found = 0
    for t in range(4):
        choice = selector >> (4 * t) & 15
        byte = bytes_ >> (8 * (choice & 7)) & 255
        if choice & 8:
            byte = 255 if byte & 128 else 0
        found |= byte << (8 * t)
    return found


def special(name: str, x: float) -> int:
    functions: dict[str, Callable[[float], float]] = {
        "RCP": lambda x: 1 / x,
        "RSQ": lambda x: 1 / math.sqrt(x),
        "EX2": lambda x: 2.0**x,
        "SQRT": math.sqrt,
        "LG2": math.log2,
        "TANH": math.tanh,
        "RCP64H": lambda x: 0.0,
    }
    try:
        return float_bits(functions[name](x))
    except (ZeroDivisionError, ValueError, OverflowError):
        return float_bits(math.inf)


_NAMES = {
    "M": MASK, "M64": MASK64, "signed": signed, "as_float": as_float, "float_bits": float_bits,
    "permuted": permuted, "special": special,
}  # fmt: skip


def _memory_line(n: int, i: Instruction, o: Operands) -> str:
    """The source line for an access to memory; it leaves the address in `at`."""
    words = max(1, i.bits // 32)
    if i.base == "LDGSTS":
        tests = [s for s in i.operands[2:] if is_predicate(s)]
        return f"at = {o.address(i.operands[1])}" + (
            f" if {o.test(tests[0])} else None" if tests else ""
        )
    if i.base in ATOMICS:
        if i.base == "RED":
            return f"at = {o.address(i.operands[0])}"
        first = 1 if is_predicate(i.operands[0]) else 0
        line = f"at = {o.address(i.operands[first + 1])}; "
        return line + o.put(i.operands[first], "T.atomic(at)")
    memory = f"T.{_MEMORIES[i.base]}"
    if i.base == "STS":
        listed = ", ".join(o.registers(i.operands[1], words) or ["0"] * words)
        return f"at = {o.address(i.operands[0])}; T.store_shared({n}, at, [{listed}])"
    if i.base[0] == "S":
        values = o.registers(i.operands[1], words) or ["0"] * words
        stores = [f"{memory}[at+{4 * k}] = {value}" for k, value in enumerate(values)]
        return "; ".join([f"at = {o.address(i.operands[0])}", *stores])
    first = 1 if is_predicate(i.operands[0]) else 0
    source = next(s for s in reversed(i.operands) if not is_predicate(s))
    narrow = f"&{(1 << i.bits) - 1}" if i.bits < 32 else ""
    targets = o.registers(i.operands[first], words)
    if "STRONG" in i.name and words == 1:  # of a counter: an atomic that changes nothing
        value = f"T.atomic(at) if at in T.counters else {memory}.get(at, 0){narrow}"
        return f"at = {o.address(source)}; {targets[0]} = {value}"
    loads = [f"{r} = {memory}.get(at+{4 * k}, 0){narrow}" for k, r in enumerate(targets)]
    return "; ".join([f"at = {o.address(source)}", *loads])


class Machine:
    """A program turned into Python functions, for one bank of constants."""

    def __init__(self, program: Program, constants: Mapping[int, int]) -> None:
        self.constants = constants
        self._program = program
        self._index = {i.address: n for n, i in enumerate(program.instructions)}
        operands = Operands(constants)
        lines = ["def make():", "  found = []"]
        for n, instruction in enumerate(program.instructions):
            lines += self._source(n, instruction, operands)
        scope: dict[str, Any] = dict(_NAMES)
        exec("\n".join([*lines, "  return found"]), scope)
        self._steps = scope["make"]()
        self._first: Thread | None = None

    def _source(self, n: int, i: Instruction, o: Operands) -> list[str]:
        """A function of the registers: (active, address or None, next instruction or None)."""
        body, then = "at = None", str(n + 1)
        if i.base in RULES:
            body = f"at = None; {RULES[i.base](i, o)}"
        elif i.base in _MEMORIES or i.base in ATOMICS or i.base == "LDGSTS":
            body = _memory_line(n, i, o)
        elif i.base in ("BRA", "CALL", "RET"):
            then = self._target(n, i, o)
        elif i.base not in _NOTHING and not i.base.startswith("UCGABAR"):
            raise NotImplementedError(f"{i.address:x} {i.name} {', '.join(i.operands)}")
        if i.base == "EXIT":
            then = "-1"
        guard = "True" if i.guard is None else o.test(i.guard)
        idle = [f"T.leave_to_first({n})"] if i.base == "STS" else []
        return [
            "  def step(R, U, P, Q, T):",
            f"    if not {guard}:",
            *(f"      {line}" for line in idle),
            f"      return False, None, {n + 1}",
            f"    {body}",
            f"    return True, at, {then}",
            "  found.append(step)",
        ]

    def _target(self, n: int, i: Instruction, o: Operands) -> str:
        if i.base == "RET":
            return f"T.index[{o.word(i.operands[0].split()[0])}]"
        place = i.operands[-1]
        label = place[place.index("(") + 1 : place.rindex(")")] if "(" in place else None
        address = int(place, 16) if label is None else self._program.labels[label]
        there = str(self._index[address])
        if len(i.operands) > 1 and is_predicate(i.operands[0]):
            return f"{there} if {o.test(i.operands[0])} else {n + 1}"
        return there

    def run(self, program: int, thread: int, arrival: Callable[[int], int]) -> list[Step]:
        """Every instruction that the thread executes. Raises RuntimeError if it never ends."""
        told = Thread(thread, program, self.constants, self._index, arrival)
        if thread > 0:
            told.first = self._first_of(program, arrival)
        return self._executed(told)

    def _first_of(self, program: int, arrival: Callable[[int], int]) -> Thread:
        """The first thread of a program, after its last instruction."""
        if self._first is None or (self._first.program, self._first.arrival) != (program, arrival):
            self._first = Thread(0, program, self.constants, self._index, arrival)
            self._executed(self._first)
        return self._first

    def _executed(self, told: Thread) -> list[Step]:
        registers, uniform = [0] * 256, [0] * 66
        predicates, uniform_predicates = [False] * 8, [False] * 8
        trace: list[Step] = []
        instructions, steps = self._program.instructions, self._steps
        n = 0
        while n >= 0:
            active, at, after = steps[n](registers, uniform, predicates, uniform_predicates, told)
            trace.append(Step(instructions[n], active, at))
            n = after
            if len(trace) > MOST_STEPS:
                raise RuntimeError(f"thread {told.thread} of program {told.program} does not end")
        return trace
