"""Parameters of each sample as an engine makes and differentiates them, held to float64."""

from typing import NamedTuple

import torch

from fastnorm.contract import Engine
from fastnorm.modulation_autograd import composed
from tests.conftest import DEVICE, assert_close, make_input

NAMES = ("weight", "bias", "scale", "shift")
FP64, FP32, FP16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16


class Case(NamedTuple):
    """`rows`: the sizes before those of a parameter."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    given: tuple[str, ...] = NAMES
    dtype: torch.dtype = FP32  # of x
    parameters: torch.dtype = FP32  # of weight and bias
    modulation: torch.dtype = FP32  # of scale and shift
    halves: bool = False  # scale and shift are halves of one tensor, as chunk(2, -1) makes them
    asked: tuple[str, ...] = NAMES


CASES = [
    Case((3,), (7,)),
    Case((8,), (64,), dtype=BF16, parameters=BF16, modulation=BF16, halves=True),
    Case((2,), (600,), dtype=FP16, parameters=FP32, modulation=FP16),
    Case((37,), (130,), dtype=FP64, parameters=FP64, modulation=FP64, halves=True),
    Case((4, 1), (300,), ("scale", "shift"), BF16, modulation=BF16, halves=True),
    Case((3, 1, 1), (5, 20), ("weight", "bias", "scale")),
    Case((5,), (257,), ("weight", "scale")),
    Case((5,), (33,), ("bias", "scale", "shift"), asked=("bias", "shift")),
    Case((1,), (1,), ("scale",)),
    Case((16,), (48,), asked=("weight", "scale")),
    Case((9,), (70,), dtype=BF16, parameters=FP32, modulation=BF16, asked=("weight", "bias")),
]


def tensors_of(case: Case) -> dict[str, torch.Tensor | None]:
    shape = (*case.rows, *case.columns)
    made: dict[str, torch.Tensor | None] = dict.fromkeys(NAMES)
    for i, name in enumerate(NAMES[:2]):
        if name in case.given:
            made[name] = make_input(case.columns, dtype=case.parameters, seed=i)
    if case.halves:
        both = make_input((*shape[:-1], 2 * shape[-1]), dtype=case.modulation, seed=3)
        halves = both.chunk(2, -1)
    else:
        halves = tuple(make_input(shape, dtype=case.modulation, seed=3 + i) for i in range(2))
    return made | {k: v for k, v in zip(NAMES[2:], halves, strict=True) if k in case.given}


def check(engine: Engine, case: Case) -> None:
    """Both outputs and the gradients asked for, each in its dtype; the inputs stay as they are."""
    given = list(tensors_of(case).values())
    before = [None if t is None else t.clone() for t in given]
    wide = [None if t is None else t.double().requires_grad_() for t in given]
    truth = composed(FP64, *wide)
    gamma, beta = engine.modulate(*given, case.dtype)
    assert (beta is None) == (truth[1] is None)
    acc = FP64 if case.dtype == FP64 else FP32
    upstream, outputs = [], []
    for i, (found, exact) in enumerate(zip((gamma, beta), truth, strict=True)):
        if found is not None and exact is not None:
            assert found.dtype == acc and found.is_contiguous() and found.shape == exact.shape
            assert_close(found, exact.detach(), NAMES[i])
            outputs.append(exact)
        upstream.append(None if found is None else make_input(found.shape, dtype=acc, seed=8 + i))
    needs = tuple(
        t is not None and name in case.asked for name, t in zip(NAMES, given, strict=True)
    )
    grads = engine.modulate_backward(*upstream, *given, case.dtype, needs)
    sought = [t for t, need in zip(wide, needs, strict=True) if need]
    exact_grads = iter(
        torch.autograd.grad(outputs, sought, [u.double() for u in upstream if u is not None])
    )
    for name, tensor, grad, need in zip(NAMES, given, grads, needs, strict=True):
        assert (grad is not None) == need, name
        if grad is not None:
            assert grad.dtype == tensor.dtype and grad.device.type == DEVICE
            assert_close(grad, next(exact_grads), f"d{name}")
    for tensor, kept in zip(given, before, strict=True):
        assert tensor is None or torch.equal(tensor, kept)
