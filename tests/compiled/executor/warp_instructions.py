"""The Python for joint operations of a warp's threads, and for order: shuffles, votes, fences."""

from collections.abc import Callable

import numpy as np

from .instruction import Instruction
from .ptx_types import WARP, Array, EmulationError, s64
from .writer import BlockWriter, is_number

REDUCTIONS = {
    "add": "np.add", "min": "np.minimum", "max": "np.maximum",
    "and": "np.bitwise_and", "or": "np.bitwise_or", "xor": "np.bitwise_xor",
}  # fmt: skip


def shuffle_lanes(
    threads: int, mode: str, lane: Array | int, control: Array | int
) -> tuple[Array, Array]:
    """(thread that each one reads, whether that lies in its segment) of a shfl.

    `control` holds the mask of lane bits that name a segment (from bit 8) and a clamp.
    """
    thread = np.arange(threads)
    own = thread & (WARP - 1)
    lane, control = np.asarray(lane).astype(s64) & (WARP - 1), np.asarray(control).astype(s64)
    segment, clamp = control >> 8 & (WARP - 1), control & (WARP - 1)
    least, most = own & segment, own & segment | clamp & ~segment
    match mode:
        case "up":
            source = own - lane
            inside = source >= most
        case "down":
            source = own + lane
            inside = source <= most
        case "bfly":
            source = own ^ lane
            inside = source <= most
        case "idx":
            source = least | lane & ~segment
            inside = source <= most
        case _:
            raise EmulationError(f"shfl mode {mode}")
    inside = np.broadcast_to(inside, thread.shape).copy()
    return thread - own + np.where(inside, source, own), inside


def shuffle(w: BlockWriter, i: Instruction) -> None:
    """shfl.sync.MODE.b32 d|p, a, lane, control, members: the members are not looked at."""
    mode = i.parts[2]
    value, lane, control = w.read_all(i.operands[1:4], "u32")
    if is_number(i.operands[2]) and is_number(i.operands[3]):
        lanes = shuffle_lanes(w.kernel.threads, mode, int(i.operands[2]), int(i.operands[3]))
        found = w.bind(f"shuffle_{mode}_{i.operands[2]}_{i.operands[3]}", lanes)
    else:
        found = w.temporary(f"shuffle_lanes({w.kernel.threads}, {mode!r}, {lane}, {control})")
    if w.mask is not None:
        w.emit(f"cta.check_shuffle({found}[0], {w.mask}, {w.site})")
    target, _, inside = i.operands[0].partition("|")
    w.write(target, f"{value}[{found}[0]]", "u32")
    if inside:
        w.write(inside, f"{found}[1]", "pred")


def vote(w: BlockWriter, i: Instruction) -> None:
    """vote.sync.all, .any, .ballot"""
    condition = w.read(i.operands[1], "pred")
    w.write(i.operands[0], f"cta.vote({i.parts[2]!r}, {condition}, {w.mask})", w.held(i))


def active_mask(w: BlockWriter, i: Instruction) -> None:
    w.write(i.operands[0], f"cta.vote('ballot', cta.everyone, {w.mask})", "u32")


def reduce(w: BlockWriter, i: Instruction) -> None:
    """redux.sync: one value of all lanes, in all lanes."""
    if w.mask is not None:
        raise EmulationError("redux.sync in a part of the threads")
    kind, function = w.held(i), REDUCTIONS[i.parts[2]]
    rows = f"{w.read(i.operands[1], kind)}.reshape(-1, {WARP})"
    whole = f"np.repeat({function}.reduce({rows}, axis=1), {WARP}).astype({kind})"
    w.write(i.operands[0], whole, kind)


def warp_barrier(w: BlockWriter, i: Instruction) -> None:
    """bar.warp.sync: a warp executes each instruction in all its threads at once anyway."""
    if i.parts[1] != "warp":
        raise EmulationError("barrier")
    if w.mask is not None:
        w.emit(f"cta.check_whole_warps({w.mask}, {w.site})")


def fence(w: BlockWriter, i: Instruction) -> None:
    if "proxy" not in i.parts:  # those order asynchronous copies, which are not known
        w.emit(f"cta.global_memory.fence({w.mask})")


def trap(w: BlockWriter, i: Instruction) -> None:
    w.emit(f"cta.trap({w.mask}, {w.site})")


def call(w: BlockWriter, i: Instruction) -> None:
    """Of device_assert alone, which does not return."""
    if "__assertfail" not in i.operands[0]:
        raise EmulationError("call")
    w.emit(f"cta.trap({w.mask}, {w.site})")


def nothing(w: BlockWriter, i: Instruction) -> None:
    """Time and overlap of grids, which are not emulated."""


HANDLERS: dict[str, Callable[[BlockWriter, Instruction], None]] = {
    "shfl": shuffle, "vote": vote, "activemask": active_mask, "redux": reduce,
    "bar": warp_barrier, "membar": fence, "fence": fence, "trap": trap,
    "call": call, "nanosleep": nothing, "griddepcontrol": nothing,
}  # fmt: skip
