"""PTX's types as NumPy arrays: the names that the executor and the Python it generates share."""

import re

import numpy as np
from numpy.typing import NDArray

Array = NDArray  # one value a thread, unless said otherwise
Mask = NDArray[np.bool_] | None  # which threads execute; None: all of them
Site = tuple[int, int]  # an instruction: number of its block, position in the block

pred = np.bool_
u8, u16, u32, u64 = np.uint8, np.uint16, np.uint32, np.uint64
s8, s16, s32, s64 = np.int8, np.int16, np.int32, np.int64
f16, f32, f64 = np.float16, np.float32, np.float64

NUMPY: dict[str, type[np.generic]] = {
    "pred": pred, "u8": u8, "u16": u16, "u32": u32, "u64": u64,
    "s8": s8, "s16": s16, "s32": s32, "s64": s64, "f16": f16, "f32": f32, "f64": f64,
}  # fmt: skip

# How a value of each PTX type is held: bits as unsigned, as is bfloat16; a pair as one word.
HELD_AS: dict[str, str] = {name: name for name in NUMPY} | {
    "b8": "u8", "b16": "u16", "b32": "u32", "b64": "u64",
    "bf16": "u16", "f16x2": "u32", "bf16x2": "u32", "f32x2": "u64",
}  # fmt: skip

BYTES: dict[str, int] = {
    name: 0 if name == "pred" else np.dtype(kind).itemsize for name, kind in NUMPY.items()
}
BITS: dict[int, str] = {0: "pred", 1: "u8", 2: "u16", 4: "u32", 8: "u64"}  # by bytes: raw bits

WARP = 32
HALF_FLOATS = ("f16", "bf16", "f16x2", "bf16x2")


class EmulationError(Exception):
    """The kernel did what no kernel may, or what this executor does not know."""


def register_bytes(kind: str) -> int:
    """The bytes of a register declared as `.reg .KIND`; a predicate has 0."""
    return 0 if kind == "pred" else int(re.sub(r"\D", "", kind)) // 8


def is_float(kind: str) -> bool:
    return kind[0] == "f"


def is_signed(kind: str) -> bool:
    return kind[0] == "s"
