"""`python -m benchmarks.memory`: bytes that a forward keeps for its backward, ours and torch's.

Counted, not timed: the tensors that autograd is asked to save, each storage once, as
torch.autograd.graph.saved_tensors_hooks shows them. Parameters are not counted, the input is: it
lives as long as the graph does. torch is the eager chain of its operators, norm, addition, ReLU.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.inputs import Inputs, make_inputs
from benchmarks.providers import eager, ours
from benchmarks.rows import markdown
from benchmarks.shapes import Case

SHAPE = (32, 64, 56, 56)  # the ratio is that of other images too
OPS = ("bn", "in", "bin", "gn", "ln")
FUSED = {"plain": "alone", "relu": "+ ReLU", "residual_relu": "+ residual + ReLU"}


def kept_bytes(forward: Callable[[Case, Inputs], Tensor], case: Case) -> int:
    """Bytes of the storages that are saved, without those of the parameters."""
    inputs = make_inputs(case, torch.device("cpu"))
    own = {t.untyped_storage().data_ptr() for t in inputs[3:] if t is not None}
    storages: dict[int, torch.UntypedStorage] = {}

    def save(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in own:
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage()
        return t

    with torch.autograd.graph.saved_tensors_hooks(save, lambda t: t):
        y = forward(case, inputs)  # noqa: F841  # what it keeps lives as long as y does
    return sum(storage.nbytes() for storage in storages.values())


def table(dtype: torch.dtype) -> list[list[str]]:
    """Our bytes over torch's, of each norm and what follows it."""
    lines = [["norm", *FUSED.values()]]
    for op in OPS:
        cases = [Case(op, SHAPE, dtype, fused=fused) for fused in FUSED]
        ratios = [kept_bytes(ours, case) / kept_bytes(eager, case) for case in cases]
        lines.append([op, *(f"{ratio:.2f}" for ratio in ratios)])
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.memory", description=__doc__)
    parser.parse_args(argv)
    for dtype in (torch.float32, torch.bfloat16):
        print(f"bytes kept for backward, ours over torch's, {'x'.join(map(str, SHAPE))} {dtype}\n")
        print(markdown(table(dtype)), end="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
