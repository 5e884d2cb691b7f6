"""The cases for compiled kernels: operators, tiers, layouts, dtypes, fusions, sizes, in pairs.

A case is one combination of the factors below. Not all combinations are allowed (`RULES`); every
pair of values that may occur together does occur in one of `covering_cases()`.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch

from tests.compiled.pairs import covering

OF_ROWS = ("layer", "rms", "add_layer", "add_rms")
ADDING = ("add_layer", "add_rms")
OF_CHANNELS = (
    "batch", "batch_eval", "batch_no_stats", "instance", "instance_stats", "instance_eval",
    "batch_instance", "batch_instance_eval", "group", "group_1", "mean_only", "mean_only_eval",
    "moment", "switchable",
)  # fmt: skip
# Those whose statistics are constants, or whose merges are made outside of the kernels: no choice.
WITHOUT_TIERS = (
    "batch_eval", "instance_eval", "mean_only_eval", "moment", "switchable", "weight",
)  # fmt: skip
ACTIVATIONS = {
    "plain": (None, False), "relu": ("relu", False), "silu": ("silu", False),
    "gelu": ("gelu", False), "residual": (None, True), "relu residual": ("relu", True),
    "silu residual": ("silu", True), "gelu residual": ("gelu", True),
}  # fmt: skip
COVERED = tuple(ACTIVATIONS)  # with all other factors; those below alone
FURTHER = ("gelu_tanh", "hardswish", "mish", "leaky_relu(0.2)", "elu(1.5)")
ACTIVATIONS |= {name: (name, False) for name in FURTHER}
ACTIVATIONS |= {f"{name} residual": (name, True) for name in FURTHER}

FORWARD = {
    "one_program": (["resident_kernel"], ["row_norm_kernel"]),
    "cluster": (["cluster_kernel"], []),
    "streaming": (["moments_kernel", "apply_kernel"], ["row_moments_kernel", "row_apply_kernel"]),
}
FORWARD_ALONE = {
    "weight": ["weight_norm_kernel"],
    "moment": ["moments_kernel", "apply_kernel"],
    "switchable": ["moments_kernel", "apply_kernel"],
}

IN_CLUSTERS = ("batch", "batch_no_stats", "instance", "group", "group_1", "mean_only")

CHANNELS_LAST = "channels_last"
# Sizes that a tile, a vector of 16 bytes or a warp does not divide, and those of one. In each tier
# the sets take as much room as it is for: one program, several, or a cluster of them.
EVEN, ODD, PRIME, UNALIGNED = "even", "odd", "prime", "unaligned"
POSITION, CHANNEL, INSTANCE, BEYOND = "one position", "one channel", "one instance", "beyond a tile"
# In `own_cases` alone: a set for one warp; rows of several instances in a tile.
WARP, INSTANCES = "one warp", "rows of instances"
SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    "one_program": {
        EVEN: (4, 16, 8, 8), ODD: (5, 7, 9, 9), PRIME: (3, 3, 131), UNALIGNED: (4, 9, 2, 5),
        POSITION: (16, 6), CHANNEL: (4, 1, 9, 11), INSTANCE: (1, 6, 7, 7), BEYOND: (5, 33, 8, 8),
        WARP: (3, 5, 25, 40),
    },
    CHANNELS_LAST: {  # in one program, whose tile has at least 8 channels
        EVEN: (4, 16, 8, 8), ODD: (2, 7, 7, 7), PRIME: (2, 5, 47), UNALIGNED: (4, 9, 2, 5),
        INSTANCE: (1, 6, 7, 7), BEYOND: (3, 40, 8, 8),
    },
    "streaming": {
        EVEN: (20, 16, 16, 16), ODD: (40, 3, 9, 9), PRIME: (9, 5, 1031), UNALIGNED: (40, 9, 2, 5),
        POSITION: (150, 6), CHANNEL: (30, 1, 15, 15), INSTANCE: (1, 6, 67, 67),
        BEYOND: (3, 3, 17, 241), INSTANCES: (5, 2, 28, 28),
    },
    "cluster": {  # of members with two warps; vectors of less than 8 bytes are left to others
        EVEN: (3, 4, 64, 96), ODD: (3, 3, 82, 82), PRIME: (5, 2, 4 * 1511),
        CHANNEL: (3, 1, 76, 91), INSTANCE: (1, 4, 82, 82), BEYOND: (3, 2, 1, 8196),
        INSTANCES: (40, 2, 28, 28),
    },
}  # fmt: skip
ROW_SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    "one_program": {
        EVEN: (6, 1024), ODD: (7, 999), PRIME: (35, 127), UNALIGNED: (9, 130), POSITION: (5, 1),
        INSTANCE: (1, 768), BEYOND: (3, 4097),
    },
    "streaming": {
        EVEN: (3, 12288), ODD: (3, 9001), PRIME: (2, 8209), UNALIGNED: (4, 8202),
        POSITION: (40, 1), INSTANCE: (1, 16400), BEYOND: (3, 8193),
    },
}  # fmt: skip

FACTORS: dict[str, tuple[Any, ...]] = {
    "op": (*OF_CHANNELS, *OF_ROWS, "weight"),
    "size": (EVEN, ODD, PRIME, UNALIGNED, POSITION, CHANNEL, INSTANCE, BEYOND),
    "fusion": COVERED,
    "asked": ("all", "x", "parameters", "bias", "weight", "residual", "x and bias"),
    "dtype": (torch.float32, torch.bfloat16, torch.float16, torch.float64),
    "tier": ("one_program", "streaming", "cluster"),
    "layout": ("contiguous", "channels_last"),
    "parameters": ("float32", "as x", "none"),
    "offset": (0, 1),  # elements by which tensors miss an alignment of 16 bytes
    "few": (False, True),  # fewer clusters than units; rows: fewer programs than blocks of rows
}
# Norms that each sample scales and shifts: those whose gradients differ in what becomes of it.
MODULATED = {
    **FACTORS,
    "op": (
        "batch",
        "batch_eval",
        "instance",
        "batch_instance",
        "batch_instance_eval",
        "group",
        "mean_only",
        "mean_only_eval",
    ),
    "fusion": ("plain", "relu", "residual", "relu residual", "silu residual"),
    "asked": ("all", "x", "parameters", "shift", "scale", "weight", "x and shift"),
    "tier": ("one_program", "streaming"),  # a cluster's members have one weight for all samples
    "few": (False,),
    "modulated": (True,),
}


@dataclass(frozen=True)
class Case:
    """One combination; `size` is a name, `shape` what it stands for."""

    op: str
    size: str = ODD
    fusion: str = "plain"
    asked: str = "all"
    dtype: torch.dtype = torch.float32
    tier: str = "one_program"
    layout: str = "contiguous"
    parameters: str = "float32"
    offset: int = 0
    few: bool = False
    mean: float = 0.5
    modulated: bool = False  # by a scale and a shift of each sample

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of the operator and tier, by the name of a size."""
        if self.op in OF_ROWS or self.op == "weight":
            return ROW_SIZES.get(self.tier, {})
        one_program = self.tier == "one_program" and self.op not in WITHOUT_TIERS
        return SIZES[self.layout if one_program and self.layout in SIZES else self.tier]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.shapes[self.size]

    @property
    def forward(self) -> list[str]:
        """The kernels that its forward launches behind those that prepare parameters."""
        if self.op in WITHOUT_TIERS:
            return FORWARD_ALONE.get(self.op, ["apply_kernel"])
        return FORWARD[self.tier][self.op in OF_ROWS]

    @property
    def several_tiles(self) -> dict[int, int]:
        """Sizes of the tiles, of which a program may keep several, by its warps: here none, or
        those of a small member of a cluster."""
        return {2: 512} if self.tier == "cluster" else {}

    @property
    def forces_tier(self) -> bool:
        """Whether no other tier may take the case."""
        return self.op not in WITHOUT_TIERS

    @property
    def activation(self) -> str | None:
        return ACTIVATIONS[self.fusion][0]

    @property
    def has_residual(self) -> bool:
        return ACTIVATIONS[self.fusion][1]

    @property
    def groups(self) -> int:
        """Of group norm: one, or as many as halve or divide the channels by the least prime."""
        channels = self.shape[1]
        least = next((d for d in (2, 3, 5, 7) if channels % d == 0), channels)
        return 1 if self.op == "group_1" else least

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        parts = [self.op, shape, str(self.dtype).removeprefix("torch."), self.layout, self.fusion]
        parts += [self.tier] if self.op not in WITHOUT_TIERS else []
        parts += [f"asked {self.asked}"] if self.asked != "all" else []
        parts += [f"parameters {self.parameters}"] if self.parameters != "float32" else []
        parts += ["off by one element"] * self.offset + ["few programs"] * self.few
        parts += [f"mean {self.mean:g}"] if self.mean != 0.5 else []
        parts += ["modulated"] * self.modulated
        return " ".join(parts)


# What may be combined: each rule is a function of the factors that it depends on (`pairs.py`).


def size_exists(op: str, size: str, tier: str, layout: str) -> bool:
    case = Case(op, size, tier=tier, layout=layout)
    one_value = size == POSITION and op.startswith(("instance", "batch_instance"))
    if one_value:
        return False  # torch raises, or 0 divided by 0
    return size in case.shapes and (op != "switchable" or len(case.shape) == 4)


def layout_exists(op: str, layout: str) -> bool:
    return layout == "contiguous" or op not in (*OF_ROWS, "weight")


def tier_exists(op: str, tier: str) -> bool:
    alone = "streaming" if op == "moment" else "one_program"
    return op not in WITHOUT_TIERS or tier == alone


def fusion_exists(op: str, fusion: str) -> bool:
    return fusion == "plain" or op not in (*ADDING, "weight", "switchable")


def cluster_exists(op: str, tier: str, fusion: str, layout: str) -> bool:
    alone = layout == "contiguous" and not ACTIVATIONS[fusion][1]
    return tier != "cluster" or (op in IN_CLUSTERS and alone)


def offset_exists(tier: str, offset: int) -> bool:
    """Tensors not aligned to 16 bytes get no cluster."""
    return not (offset and tier == "cluster")


def few_exist(op: str, tier: str, few: bool) -> bool:
    return not few or tier == "cluster" or op in OF_ROWS


def parameters_exist(op: str, parameters: str) -> bool:
    wanted = {"switchable": ("float32",), "weight": ("float32", "as x")}
    return parameters in wanted.get(op, (parameters,))


def asked_exist(op: str, fusion: str, asked: str, parameters: str, modulated: bool = False) -> bool:
    """There are such gradients, and not all of them go by another name."""
    case = Case(op, fusion=fusion, asked=asked, parameters=parameters, modulated=modulated)
    found = asked_of(case)
    return bool(found) and (asked == "all" or len(found) < len(differentiable(case)))


RULES = (
    size_exists, layout_exists, tier_exists, fusion_exists, cluster_exists, offset_exists,
    few_exist,
    parameters_exist, asked_exist,
)  # fmt: skip


def parameters_of(op: str) -> tuple[str, ...]:
    """The names of an operator's parameters beside x, where it has them."""
    if op == "weight":
        return ("g",)
    if op.startswith("mean_only"):
        return ("bias",)
    found = ("weight",) if op in ("rms", "add_rms") else ("weight", "bias")
    return (*found, "rho") if op.startswith("batch_instance") else found


def differentiable(case: Case) -> tuple[str, ...]:
    """The tensors that a call may be differentiated by: x, the residual, the parameters."""
    parameters = parameters_of(case.op)
    if case.parameters == "none":
        parameters = tuple(name for name in parameters if name == "rho")
    residual = ("residual",) if case.has_residual or case.op in ADDING else ()
    return ("x", *residual, *parameters, *(("scale", "shift") if case.modulated else ()))


def asked_of(case: Case) -> tuple[str, ...]:
    """The tensors whose gradients are asked for."""
    every = differentiable(case)
    groups = {
        "all": every,
        "parameters": tuple(name for name in every if name not in ("x", "residual")),
        "x and bias": ("x", "bias") if "bias" in every else (),
        "x and shift": ("x", "shift") if "shift" in every else (),
    }
    return groups.get(case.asked, (case.asked,) if case.asked in every else ())


@functools.cache
def own_cases() -> tuple[Case, ...]:
    """Tiles of their own, with means far above the deviations."""
    bf16, fp32 = torch.bfloat16, torch.float32
    return (
        Case("instance", WARP, "relu residual", dtype=fp32, mean=1000.0),
        Case("instance_stats", WARP, "relu", dtype=bf16),
        Case("batch", INSTANCES, "relu residual", dtype=bf16, tier="streaming"),
        Case("batch", INSTANCES, dtype=fp32, tier="streaming", mean=1000.0),
        Case("batch", EVEN, "relu residual", dtype=fp32, mean=1000.0),
        Case("group", EVEN, "relu", dtype=fp32, mean=1000.0),
        Case("batch", INSTANCES, "relu", dtype=bf16, tier="cluster", few=True),
        Case("batch", EVEN, dtype=fp32, tier="cluster", mean=1000.0),
    )


def covering_cases() -> tuple[Case, ...]:
    return tuple(Case(**row) for row in covering(FACTORS, RULES))


@functools.cache
def modulated_cases() -> tuple[Case, ...]:
    return tuple(Case(**row) for row in covering(MODULATED, RULES))
