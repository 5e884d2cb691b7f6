"""Hypothesis strategies for cases. Small tensors: in the interpreter a program costs milliseconds,
and `TILINGS` cut even small ones into many tiles."""

import math
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st

from tests.conftest import OLD_TORCH
from tests.norms import OF_ROWS
from tests.properties.cases import (
    BY_CONSTANTS,
    CALLS,
    LAYOUTS,
    MEAN_ONLY,
    TILINGS,
    VALUES,
    VECTOR_LAYOUTS,
    WITH_STATS,
    Case,
)

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ACTIVATIONS = (None, "relu", "silu", "gelu")
LEAVES = ("x", "residual", "weight", "bias", "rho")
MOST_ELEMENTS = 400
# Few units, whose number is time, of many elements, which are tiles to be merged.
BATCHES, CHANNELS = (1, 2, 3, 5), (1, 2, 3, 4, 6, 8, 9, 16, 33)
POSITIONS = (1, 2, 3, 5, 7, 8, 16, 17, 33, 70, 131)


@st.composite
def shapes(draw: st.DrawFn, least_rank: int = 2) -> tuple[int, ...]:
    """Of 1 to 400 elements and rank up to 5; the sizes of a matrix are any."""
    rank = draw(st.integers(least_rank, 5))
    axes = [POSITIONS, CHANNELS][:rank] if rank <= 2 else [BATCHES, CHANNELS, *[POSITIONS] * 3]
    shape, room = [], MOST_ELEMENTS
    for sizes in axes[:rank]:
        shape.append(draw(st.sampled_from([size for size in sizes if size <= room])))
        room //= shape[-1]
    return tuple(shape)


@st.composite
def empty_cases(draw: st.DrawFn) -> Case:
    """Valid calls but for a size, or two, that is 0."""
    case = draw(cases())
    axis = st.integers(0, len(case.shape) - 1)
    shape = list(case.shape)
    for i in draw(st.lists(axis, min_size=1, max_size=2)):
        shape[i] = 0
    groups = case.groups if shape[1:2] != [0] else 1
    return replace(case, shape=tuple(shape), groups=groups)


def with_variance(norm: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape, or one like it whose sets have more than one value: fewer are an error."""
    values = shape[2:] if norm.startswith(("in", "bin")) else (shape[0], *shape[2:])
    if norm in (*OF_ROWS, *MEAN_ONLY) or math.prod(values) > 1:
        return shape
    return (*shape[:-1], 2) if len(shape) > 2 else (2, *shape[1:])


def epsilons(norm: str) -> st.SearchStrategy[float]:
    """0 only where torch takes it: not where a batch or an instance brings its own variance."""
    taken = (*OF_ROWS, "gn") if OLD_TORCH else (*BY_CONSTANTS, *OF_ROWS, "gn")
    zero = [0.0] if norm in taken else []
    return st.sampled_from([1e-5, 1e-3, 1e-12, 1.0, *zero])


@st.composite
def cases(draw: st.DrawFn, norms: tuple[str, ...] = CALLS, **fixed: Any) -> Case:
    """Valid calls on tensors that are not empty."""
    norm = draw(st.sampled_from(norms))
    rank = 1 if norm in OF_ROWS else 2 if norm.startswith(("bn", "gn", "mean")) else 3
    shape = with_variance(norm, draw(shapes(rank)))
    channels = shape[1] if len(shape) > 1 else 1
    layouts, vectors = st.sampled_from(LAYOUTS), st.sampled_from(VECTOR_LAYOUTS)
    buffers = st.sampled_from([layout for layout in VECTOR_LAYOUTS if layout != "expanded"])
    plain = draw(st.booleans())  # half of all: other values than normal ones hide most errors
    drawn = {
        "groups": draw(st.sampled_from([g for g in range(1, channels + 1) if channels % g == 0])),
        "normalized": draw(st.integers(1, len(shape))),
        "dtype": draw(st.sampled_from(DTYPES)),
        "parameter_dtype": draw(st.sampled_from(DTYPES)),
        "layout": draw(layouts),
        "weight": draw(st.none() | vectors),
        "bias": draw(st.none() | vectors) if norm != "rms" else None,
        "residual": draw(st.none() | layouts),
        "gradient": draw(layouts),
        "stats": draw(buffers) if norm in (*WITH_STATS, *MEAN_ONLY) else "contiguous",
        "activation": draw(st.sampled_from(ACTIVATIONS)),
        "eps": draw(epsilons(norm)),
        "momentum": draw(st.sampled_from([0.1, 0.0, 1.0]) | st.floats(0, 1, width=16)),
        "values": "normal" if plain else draw(st.sampled_from(VALUES)),
        "mean": draw(st.sampled_from([0.0, 3.0, -100.0, 1e4])),
        "std": draw(st.sampled_from([1.0, 1e-3, 5.0])),
        "tiling": draw(st.sampled_from(TILINGS)),
        "needs": tuple(sorted(draw(st.sets(st.sampled_from(LEAVES), min_size=1)))),
        "seed": draw(st.integers(0, 2**16)),
    }
    return Case(norm, shape, **{**drawn, **fixed})
