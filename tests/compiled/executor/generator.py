"""A kernel as Python: one function for each block, written when it is first executed.

Interpreting each instruction anew would cost more than NumPy takes for it. `b = p if full` aside,
the Python of

    add.f32 %r3, %r1, %r2;           is        R[3] = R[1].view(f32) + R[2].view(f32)
    @%p1 bra $L2;                    is        guarded = R[9]
                                               n = np.count_nonzero(guarded)
                                               if n == 128: return 5
                                               if n == 0: return 4
                                               return Branch(guarded, 5, 4)

A function returns where the threads that executed it go on.
A function returns the place where the threads that executed it go on.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from . import (
    arithmetic_instructions,
    bit_instructions,
    floats,
    integers,
    memory_instructions,
    ptx_types,
    warp_instructions,
)
from .instruction import Block, Instruction
from .parser import Kernel
from .ptx_types import EmulationError
from .writer import BlockWriter, Namespace

EXIT = 1 << 30  # the block after the last: the thread has ended


class Branch(NamedTuple):
    """Threads part: those of `taken` go on at `target`, the others at `otherwise`."""

    taken: np.ndarray
    target: int
    otherwise: int


class AtBarrier(NamedTuple):
    """A part of the threads came to a barrier; behind it they go on at `then`."""

    then: int


# (cta, registers) or, for a part of the threads, (cta, registers, mask) -> where they go on
BlockFunction = Callable[..., int | Branch | AtBarrier]

HANDLERS: dict[str, Callable[[BlockWriter, Instruction], None]] = (
    arithmetic_instructions.HANDLERS
    | bit_instructions.HANDLERS
    | memory_instructions.HANDLERS
    | warp_instructions.HANDLERS
)
NAMES: dict[str, Any] = (
    {"np": np, "shuffle_lanes": warp_instructions.shuffle_lanes}
    | vars(ptx_types)
    | vars(integers)
    | vars(floats)
    | {"Branch": Branch, "AtBarrier": AtBarrier}
)


class Program:
    """The functions of a kernel's blocks."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.namespace = Namespace(kernel.threads, NAMES)
        # For all threads at once, and for a part of them: None as long as not executed.
        self.whole: list[BlockFunction | None] = [None] * len(kernel.blocks)
        self.partial: list[BlockFunction | None] = [None] * len(kernel.blocks)

    def function(self, number: int, partial: bool) -> BlockFunction:
        functions = self.partial if partial else self.whole
        found = functions[number]
        if found is None:
            name = f"{'partial' if partial else 'whole'}_block{number}"
            source = self.source(self.kernel.blocks[number], name, partial)
            code = compile(source, f"<{self.kernel.name} block {number}>", "exec")
            exec(code, self.namespace.names)
            found = functions[number] = self.namespace.names[name]
        return found

    def source(self, block: Block, name: str, partial: bool) -> str:
        """The Python of a block."""
        writer = BlockWriter(self.kernel, self.namespace)
        for position, instruction in enumerate(block.instructions):
            writer.site = (block.number, position)
            try:
                self.instruction(writer, block, instruction, partial)
            except (EmulationError, KeyError, ValueError, IndexError, StopIteration) as error:
                raise EmulationError(
                    f"not understood: {self.kernel.where(writer.site)}: {error!r}"
                ) from error
        if not block.instructions[-1].ends_a_block:
            if block.number + 1 == len(self.kernel.blocks):
                raise EmulationError(f"{self.kernel.name} ends without ret")
            writer.emit(f"return {block.number + 1}")
        arguments = "cta, R, mask" if partial else "cta, R"
        return f"def {name}({arguments}):\n" + "\n".join(writer.lines)

    def instruction(self, w: BlockWriter, block: Block, i: Instruction, partial: bool) -> None:
        w.mask = "mask" if partial else None
        if i.guard is not None:
            guard = w.read(("!" if i.guard.negated else "") + i.guard.register, "pred")
            w.emit(f"guarded = {guard} & mask" if partial else f"guarded = {guard}")
            w.mask = "guarded"
        if i.name == "bra":
            self.jump(w, self.kernel.labels[i.operands[-1]], block.number + 1, partial)
        elif i.name in ("ret", "exit"):
            self.jump(w, EXIT, block.number + 1, partial)
        elif i.name in ("bar", "barrier") and i.parts[1] == "sync":
            if i.operands != ["0"] or i.guard is not None:
                raise EmulationError("only bar.sync 0 for all threads is known")
            if partial:
                w.emit(f"return AtBarrier({block.number + 1})")
            else:
                w.emit("cta.barrier()")
                w.emit(f"return {block.number + 1}")
        elif i.name in HANDLERS:
            HANDLERS[i.name](w, i)
        else:
            raise EmulationError("unknown instruction")

    def jump(self, w: BlockWriter, target: int, following: int, partial: bool) -> None:
        """A branch or an exit: of all that execute the block, or of those that the guard says."""
        if w.mask != "guarded":
            w.emit(f"return {target}")
            return
        w.emit("n = np.count_nonzero(guarded)")
        everyone = "np.count_nonzero(mask)" if partial else self.kernel.threads
        w.emit(f"if n == {everyone}: return {target}")
        w.emit(f"if n == 0: return {following}")
        w.emit(f"return Branch(guarded, {target}, {following})")


@functools.cache
def program_of(kernel: Kernel) -> Program:
    return Program(kernel)
