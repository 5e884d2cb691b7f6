"""The cases of the smoke: each norm once in every tier, layout, dtype and fusion.

Not every combination is there, but each kernel, tier, layout, dtype and fusion is combined with
several others.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, product
from typing import Any

import torch

from fastnorm.kernels import INTERPRETED

OF_ROWS = ("ln", "rms", "add_ln", "add_rms", "gated", "gated_after")
EVALUATION = {"bn_eval": "bn", "in_eval": "in", "bin_eval": "bin", "mean_eval": "mean"}


@dataclass(frozen=True)
class SmokeCase:
    """One call, forward and backward; `tier` None lets the size decide.

    `unaligned` tensors begin one element after an aligned address. `modulated` ones have a scale
    and a shift of each sample. With `narrow` parameters have x's dtype, else float32 or wider.
    "gated" is RMS norm after its gate, in groups of a quarter of the row; "gated_after" is RMS norm
    before its gate. "in_running" is instance norm that keeps running statistics.
    """

    op: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    tier: str | None = None
    activation: str | None = None
    residual: bool = False
    unaligned: bool = False
    modulated: bool = False
    narrow: bool = False

    @property
    def name(self) -> str:
        fused = f"{'add_' if self.residual else ''}{self.activation or ''}"
        words = (
            self.op, "x".join(map(str, self.shape)), str(self.dtype).removeprefix("torch."),
            self.layout if self.layout != "contiguous" else "", self.tier, fused,
            "unaligned" if self.unaligned else "", "modulated" if self.modulated else "",
            "narrow" if self.narrow else "",
        )  # fmt: skip
        return "-".join(word for word in words if word)


def _sizes() -> dict[str, tuple[int, ...]]:
    """Shapes for each purpose: on a GPU many units, members and pieces; interpreted, small ones."""
    if INTERPRETED:
        return {
            "one_program": (3, 8, 4, 4), "streaming": (3, 8, 8, 8), "long": (2, 8, 16, 32),
            "cluster": (2, 8, 8, 16), "odd": (3, 12, 7, 7), "rows": (6, 64),
            "long_rows": (3, 200), "tokens": (2, 3, 64), "several": (2, 8, 16, 16),
            "several_rows": (3, 17000),
        }  # fmt: skip
    return {
        "one_program": (4, 64, 16, 16), "streaming": (8, 96, 56, 56), "long": (8, 16, 224, 224),
        "cluster": (8, 16, 224, 224), "odd": (16, 24, 7, 7), "rows": (1000, 1024),
        "long_rows": (37, 40000), "tokens": (10, 100, 1152),
        "several": (8, 64, 112, 112), "several_rows": (300, 20472),  # tiles of one program
    }  # fmt: skip


SIZES = _sizes()
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FUSIONS: tuple[dict[str, Any], ...] = (
    {}, {"activation": "relu", "residual": True}, {"activation": "gelu"},
    {"activation": "relu"}, {"activation": "silu", "residual": True}, {"residual": True},
    {"activation": "gelu", "residual": True}, {"activation": "silu"}, {"activation": "mish"},
    {"activation": "leaky_relu(0.2)", "residual": True}, {"activation": "gelu_tanh"},
    {"activation": "hardswish", "residual": True}, {"activation": "elu(1.5)"},
)  # fmt: skip
LAYOUTS = ("contiguous", "channels_last")


def cases() -> list[SmokeCase]:
    """Cases without waiting: one program and streaming, the most telling first."""
    sizes, found = SIZES, []
    dtypes, fusions = cycle(DTYPES), cycle(FUSIONS)
    for tier in ("one_program", "streaming"):
        for layout in LAYOUTS:
            for op in ("bn", "gn", "in", "bin", "mean"):
                shape = sizes[tier]
                case = SmokeCase(op, shape, next(dtypes), layout, tier, **next(fusions))
                found.append(case)
        rows = sizes["rows" if tier == "one_program" else "long_rows"]
        for op in OF_ROWS:
            fused = next(fusions) if op in ("ln", "rms") else {}
            found.append(SmokeCase(op, rows, next(dtypes), tier=tier, **fused))
    # Rows of 49 elements are never aligned; other unaligned tensors only begin at such an address.
    for layout in LAYOUTS:
        found += [SmokeCase(op, sizes["odd"], next(dtypes), layout) for op in ("bn", "gn", "bin")]
    for op in ("bn", "gn", "in"):
        found.append(SmokeCase(op, sizes["odd"], next(dtypes), tier="streaming", **next(fusions)))
    for op, size in (("bn", "one_program"), ("gn", "streaming"), ("ln", "rows"), ("rms", "rows")):
        found.append(SmokeCase(op, sizes[size], next(dtypes), unaligned=True))
    found.append(SmokeCase("bn", sizes["streaming"], tier="streaming", unaligned=True))
    found += [SmokeCase(op, sizes["long"], next(dtypes)) for op in ("bn", "gn", "in", "bin")]
    for op in EVALUATION:
        fused = next(fusions)
        found.append(SmokeCase(op, sizes["one_program"], next(dtypes), next_layout(found), **fused))
    for tier, layout in (("one_program", "contiguous"), ("streaming", "channels_last")):
        found.append(SmokeCase("in_running", sizes[tier], next(dtypes), layout, tier))
    found += [SmokeCase("moment", sizes["streaming"], next(dtypes), layout) for layout in LAYOUTS]
    found += [SmokeCase("weight", sizes[name], next(dtypes)) for name in ("rows", "long_rows")]
    found += modulated_cases(dtypes)
    found += [SmokeCase(op, sizes["odd"], torch.float64) for op in ("bn", "gn", "bin")]
    found.append(SmokeCase("ln", sizes["rows"], torch.float64))
    several = sizes["several"]
    found.append(SmokeCase("gn", several, torch.bfloat16, activation="silu"))
    found.append(SmokeCase("in", several, torch.float32, activation="relu"))
    found.append(SmokeCase("in_running", several, torch.float16))
    for op, dtype in (("ln", torch.bfloat16), ("add_rms", torch.float16)):
        found.append(SmokeCase(op, sizes["several_rows"], dtype, narrow=True))
    return found


def modulated_cases(dtypes: Iterator[torch.dtype]) -> list[SmokeCase]:
    """Parameters of each sample: every norm, in both tiers without waiting."""
    found: list[SmokeCase] = []
    for tier, op in product(("one_program", "streaming"), ("gn", "bn", "in", "bin", "mean")):
        found.append(
            SmokeCase(
                op, SIZES[tier], next(dtypes), next_layout(found), tier,
                activation="silu", residual=op == "bn", modulated=True,
            )
        )  # fmt: skip
    for op, tier in product(("ln", "rms", "add_ln"), ("one_program", "streaming")):
        found.append(SmokeCase(op, SIZES["tokens"], next(dtypes), tier=tier, modulated=True))
    return found


def next_layout(found: list[SmokeCase]) -> str:
    """One layout after the other."""
    return LAYOUTS[len(found) % len(LAYOUTS)]


def cluster_cases() -> list[SmokeCase]:
    """Cases of programs that wait for one another."""
    activations = cycle((None, "relu", "gelu", "silu"))
    return [
        SmokeCase(op, SIZES["cluster"], dtype, tier="cluster", activation=next(activations))
        for op, dtype in product(("bn", "gn", "in", "mean"), DTYPES)
    ]
