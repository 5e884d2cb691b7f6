"""Which cases are estimated, and the launches of one."""

from collections.abc import Iterator
from itertools import product

import torch

import fastnorm.functional as F
from benchmarks.compile_only import Launch
from benchmarks.inputs import shapes_alone
from benchmarks.providers import EPS, ours
from benchmarks.shapes import CIFAR, LAYOUTS, STYLE, UNET, Case

BF16, FP32 = torch.bfloat16, torch.float32
ROWS: tuple[tuple[int, ...], ...] = (
    (4096, 1024),
    (4096, 4096),
    (8192, 8192),
    (4096, 16384),
    (2048, 32768),
)
DTYPES = (FP32, BF16)
STAGES = ((256, 64, 56, 56), (256, 256, 14, 14), (256, 512, 7, 7))


def cases() -> Iterator[Case]:
    for op, length, dtype in product(("ln", "rms"), ROWS, DTYPES):
        yield Case(op, length, dtype, family="rows")
    for layout, dtype in product(LAYOUTS, DTYPES):
        yield Case("gn", UNET[0], dtype, layout, groups=32, family="unet")
        yield Case("in", STYLE[0], dtype, layout, family="style")
        yield Case("bn", STAGES[0], dtype, layout, "residual_relu", family="imagenet")
    for image, dtype in product((*STAGES[1:], *CIFAR[:3]), DTYPES):
        yield Case("bn", image, dtype)
    for op, dtype in product(("in", "gn"), DTYPES):
        yield Case(op, CIFAR[0], dtype, family="cifar")


def launches_of(case: Case, launches: list[Launch]) -> Iterator[tuple[str, list[Launch]]]:
    """("forward", its launches), then ("backward", its launches); empties `launches`."""
    i = shapes_alone(case)
    launches.clear()
    y = F.rms_norm(i.x, case.shape[1:], i.weight, EPS) if case.op == "rms" else ours(case, i)
    yield "forward", launches.copy()
    launches.clear()
    torch.autograd.grad(y, list(i.leaves(case.op).values()), i.dy)
    yield "backward", launches.copy()
