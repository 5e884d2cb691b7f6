"""The same counts of liger-kernel's kernels: layer, RMS and group norm, forward and backward.

Its launch functions are called unchanged, on CPU tensors. They then see one multiprocessor: a
backward has one program, which goes over all rows, as each of a GPU's programs goes over many.

Group norm runs with one group on (N C / D, D): with more its grid would have a second dimension,
which the executor lacks, and (N, C) in groups of D channels is the same memory. Its parameters are
float32, since the executor lacks atomics of 16-bit floats.
"""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from itertools import product
from typing import Any

import torch

from benchmarks.compiled_cases import BF16, DTYPES_COUNTED, ELEMENTS, STAGE4, Cut
from benchmarks.compiled_counts import Row, row_of
from benchmarks.inputs import Inputs, make_inputs
from benchmarks.providers import EPS
from benchmarks.shapes import CIFAR, Case
from tests.compiled.executor import Emulator, Options

LLAMA_OFFSET, CASTING = 0.0, "llama"  # liger's defaults for RMS norm


def peer_cuts() -> Iterator[Cut]:
    """Contiguous cases without a residual that we have too."""
    for op, length, dtype in product(("ln", "rms"), (1024, 4096), DTYPES_COUNTED):
        if op == "ln" or length == 4096:
            yield Cut(Case(op, (32768, length), dtype), (ELEMENTS // length, length))
    for op in ("ln", "rms"):
        yield Cut(Case(op, (32768, 999), BF16), (128, 999))
    for dtype in DTYPES_COUNTED:
        yield Cut(Case("gn", CIFAR[0], dtype), (32, 4, 32, 32))
        yield Cut(Case("gn", STAGE4, dtype, groups=32), (16, 32, 14, 14))


def _layer(i: Inputs) -> Callable[[], Any]:
    ops = importlib.import_module("liger_kernel.ops.layer_norm")
    _, x, mean, rstd, *_ = ops.layer_norm_forward(i.x, i.weight, i.bias, EPS)
    return lambda: ops.layer_norm_backward(i.dy, x, i.weight, i.bias, mean, rstd)


def _rms(i: Inputs) -> Callable[[], Any]:
    ops = importlib.import_module("liger_kernel.ops.rms_norm")
    found = ops.rms_norm_forward(i.x, i.weight, EPS, LLAMA_OFFSET, CASTING, None)
    _, x, rstd, block, warps, casting = found
    return lambda: ops.rms_norm_backward(
        i.dy, x, i.weight, rstd, LLAMA_OFFSET, casting, block, warps, False, None
    )


def _group(i: Inputs) -> Callable[[], Any]:
    ops = importlib.import_module("liger_kernel.ops.group_norm")
    channels = i.x.shape[1]
    weight, bias = i.weight.float(), i.bias.float()
    _, x, mean, rstd, _ = ops.group_norm_forward(i.x, channels, 1, weight, bias, EPS)
    return lambda: ops.group_norm_backward(i.dy, x, weight, bias, mean, rstd, channels, 1)


FORWARDS = {"ln": _layer, "rms": _rms, "gn": _group}  # each returns its backward


def count_peer(emulator: Emulator, cut: Cut) -> list[Row]:
    """A row for each of liger-kernel's launches, forward and backward."""
    name = f"liger-kernel {version('liger-kernel')}"
    case, rows = replace(cut.whole, shape=cut.shape), []
    emulator.options, emulator.log = Options(count=True), []
    with torch.no_grad():
        i = make_inputs(case)
        backward = FORWARDS[case.op](i)
        rows += [row_of(case, cut.whole, "forward", name, each, None) for each in emulator.log]
        emulator.log.clear()
        backward()
    return rows + [row_of(case, cut.whole, "backward", name, each, None) for each in emulator.log]
