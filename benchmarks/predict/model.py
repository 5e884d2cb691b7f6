"""The model of one multiprocessor: its figures, and the compiled simulator that plays traces."""

import ctypes
import functools
import hashlib
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("one_sm.cpp")
SMS = 132
CLOCK = 1.755e9  # cycles a second
LAUNCH = 1.2e-6  # s between kernels that follow one another in a CUDA graph
L2_RATE = 26  # bytes a cycle that one multiprocessor gets from the L2 cache
L2_KEEPS = 20e6  # bytes that a second launch, walking backwards, finds in the cache
BANDWIDTH = {"h100": 3.0e12, "h200": 4.3e12}  # bytes a second that a copy reaches


class NoCompilerError(RuntimeError):
    """There is no g++ to compile the simulator with."""


class PlayedInstruction(ctypes.Structure):
    """As in one_sm.cpp; `trace.py` uses its numbers of pipes, kinds and levels."""

    _fields_ = [
        (name, ctypes.c_int32)
        for name in (
            *("pipe", "stall", "write_barrier", "read_barrier", "wait"),
            *("kind", "level", "amount", "passes"),
        )
    ]


class _Machine(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_double)
        for name in (
            *("dram_bytes", "l2_bytes", "dram_latency", "l2_latency", "l1_latency"),
            *("launch", "fence", "atomic", "barrier"),
        )
    ]


class _Found(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_double) for name in ("cycles", "in_flight", "issued", "cycles_a_block")
    ]


class Played(NamedTuple):
    """The simulator's result for some blocks on one multiprocessor."""

    cycles: float
    in_flight: float  # bytes requested that have not arrived, on average
    issued: float  # share of the issue slots
    cycles_a_block: float  # in the steady state; 0 if there is none


def play(
    gpu: str,
    traces: Sequence[ctypes.Array[PlayedInstruction]],
    warps: int,
    resident: int,
    blocks: int,
    alone: bool = False,
) -> Played:
    """Blocks of that many warps, `resident` at a time; they take the traces in turns. `alone`: the
    other multiprocessors take no bandwidth."""
    share = L2_RATE if alone else BANDWIDTH[gpu] / SMS / CLOCK
    machine = _Machine(share, L2_RATE, 1300, 280, 38, 250, 700, 700, 22)
    lengths = [len(trace) for trace in traces]
    joined = (PlayedInstruction * sum(lengths))()
    offsets, at = [], 0
    for trace in traces:
        size = ctypes.sizeof(trace)
        ctypes.memmove(ctypes.byref(joined, at * ctypes.sizeof(PlayedInstruction)), trace, size)
        offsets.append(at)
        at += len(trace)
    counts = ctypes.c_int * len(traces)
    found = _Found()
    failed = _simulator().simulate(
        joined, counts(*offsets), counts(*lengths), len(traces), warps, resident, blocks,
        ctypes.byref(machine), ctypes.byref(found),
    )  # fmt: skip
    if failed:
        raise RuntimeError("the simulated warps wait for one another for ever")
    return Played(found.cycles, found.in_flight, found.issued, found.cycles_a_block)


@functools.cache
def _simulator() -> ctypes.CDLL:
    """The compiled simulator, from a folder of this user's. Raises NoCompilerError."""
    name = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    built = Path.home() / ".cache" / "fastnorm" / f"one_sm-{name}.so"
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=built.parent) as folder:
            fresh = Path(folder) / built.name
            command = ["g++", "-O2", "-std=c++17", "-shared", "-fPIC", str(SOURCE), "-o"]
            try:
                subprocess.run([*command, str(fresh)], check=True)
            except FileNotFoundError as error:
                raise NoCompilerError(
                    f"{SOURCE.name} has to be compiled and there is no g++: install it"
                ) from error
            fresh.replace(built)
    return ctypes.CDLL(str(built))
