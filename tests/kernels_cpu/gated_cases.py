"""Calls of RMS norm with a gate, against its formula in float64."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as TF
from torch import Tensor

from fastnorm.kernels.cpu import ENGINE
from tests.kernels_cpu.cases import worst
from tests.kernels_cpu.sample_cases import EPS_OF_ONE

NAMES = ("x", "gate", "weight")
# The shape of x, and of its weight: one for all rows, of groups of the last dimension, of samples,
# of positions, none; L = 1, one row, rows of several blocks, chunks of many rows.
SHAPES = (
    ((37, 100), (100,)), ((6, 9, 8, 64), (8, 64)), ((4, 37, 33), (4, 1, 33)),
    ((3, 50, 40), (50, 40)), ((70, 8), None), ((9, 1), (1,)), ((1, 19), (19,)), ((1,), (1,)),
    ((2, 3, 9001), (9001,)), ((3, 2, 9001), (2, 9001)), ((300, 2, 16), (2, 16)),
    ((2, 150, 2048), (2048,)), ((20, 5, 1024), (5, 1024)),
)  # fmt: skip


class Case(NamedTuple):
    shape: tuple[int, ...]
    parameters: tuple[int, ...] | None
    norm_before_gate: bool
    dtype: torch.dtype


def cases(dtype: torch.dtype) -> Iterator[Case]:
    for shape, parameters in SHAPES:
        for norm_before_gate in (True, False):
            yield Case(shape, parameters, norm_before_gate, dtype)


def make(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """dy, x, gate and weight, none of them contiguous where it has several rows."""
    generator = torch.Generator().manual_seed(0)

    def draw(shape: tuple[int, ...]) -> Tensor:
        return torch.randn((*shape, 2), generator=generator, dtype=torch.float64)

    dy, x, gate = (draw(case.shape).mul(1.5).to(case.dtype)[..., 1] for _ in range(3))
    if case.parameters is None:
        return dy, x, gate, None
    ones = (1,) * (len(case.shape) - len(case.parameters) if len(case.parameters) > 1 else 0)
    kind = torch.float64 if case.dtype == torch.float64 else torch.float32
    return dy, x, gate, (draw((*ones, *case.parameters)).abs() + 0.5).to(kind)[..., 0]


def eps_of(x: Tensor) -> float:
    return EPS_OF_ONE if x.shape[-1] == 1 else 1e-5


def formula(x: Tensor, gate: Tensor, weight: Tensor | None, norm_before_gate: bool) -> Tensor:
    def normalised(v: Tensor) -> Tensor:
        v = v / (v.square().mean(-1, keepdim=True) + eps_of(x)).sqrt()
        return v if weight is None else v * weight

    return normalised(x) * TF.silu(gate) if norm_before_gate else normalised(x * TF.silu(gate))


def truth(case: Case) -> dict[str, Tensor]:
    dy, *inputs = make(case)
    leaves = [None if t is None else t.double().requires_grad_() for t in inputs]
    y = formula(*leaves, case.norm_before_gate)
    there = [t for t in leaves if t is not None]
    grads = torch.autograd.grad(y, there, dy.double())
    return {"y": y.detach()} | dict(zip(NAMES, grads, strict=False))


def results(case: Case, asked: tuple[str, ...] = NAMES) -> dict[str, Tensor]:
    """y, and the gradients that are asked for, of the engine."""
    dy, x, gate, weight = make(case)
    y, stats = ENGINE.gated_norm(x, gate, weight, case.norm_before_gate, eps_of(x))
    assert (y.dtype, y.shape, y.is_contiguous()) == (x.dtype, x.shape, True)
    assert stats.shape == (x.numel() // x.shape[-1],)
    needs = ("x" in asked, "gate" in asked, "weight" in asked and weight is not None)
    grads = ENGINE.gated_norm_backward(dy, x, gate, weight, stats, case.norm_before_gate, needs)
    assert [g is not None for g in grads] == list(needs)
    if grads[2] is not None and weight is not None:
        assert (grads[2].shape, grads[2].dtype) == (weight.shape, weight.dtype)
    named = zip(NAMES, grads, strict=True)
    return {"y": y} | {name: g for name, g in named if g is not None}


def check(case: Case) -> float:
    """The largest error, as a multiple of what is allowed."""
    exact, found = truth(case), results(case)
    assert exact.keys() == found.keys()
    return worst(found, exact, case.dtype)
