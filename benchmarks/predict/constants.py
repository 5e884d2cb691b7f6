"""The bank of constants that a compiled kernel reads its arguments from."""

import struct
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.compile_only import Argument

from .operands import MASK, float_bits
from .trace import TENSORS_AT

ARGUMENTS_AT = 0x210  # of sm_90
STACK = 0x28  # offset of the end of a thread's stack
PROGRAMS = 0xC  # offset of the number of programs


class Bank(NamedTuple):
    words: dict[int, int]  # by offset; Triton's own pointers, which come last, are 0
    tensors: list[str]  # those with addresses, in the order of the addresses


def bank_of(arguments: Sequence[Argument], programs: int) -> Bank:
    """Arguments in their order, each aligned to its size; addresses of tensors are invented."""
    words, at = {STACK: 0xFFFD00, PROGRAMS: programs}, ARGUMENTS_AT
    tensors: list[str] = []
    for name, form, value in arguments:
        size = 8 if form[0] == "*" or form in ("i64", "u64", "fp64") else 4
        at = -(-at // size) * size
        bits = TENSORS_AT + (len(tensors) << 40) if form[0] == "*" else _bits(value, form)
        if form[0] == "*":
            tensors.append(name)
        words[at] = bits & MASK
        if size == 8:
            words[at + 4] = bits >> 32 & MASK
        at += size
    return Bank(words, tensors)


def _bits(value: float, form: str) -> int:
    if form in ("fp32", "f32"):
        return float_bits(value)
    if form == "fp64":
        return int(struct.unpack("<Q", struct.pack("<d", value))[0])
    return int(value)
