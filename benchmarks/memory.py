"""`python -m benchmarks.memory`: bytes that a forward keeps for its backward, ours and torch's.

Counted, not timed: the tensors that autograd saves, each storage once, as
torch.autograd.graph.saved_tensors_hooks shows them. Parameters and running statistics are not
counted. The input is: it lives as long as the graph does. torch is the eager chain of its
operators, norm, addition, ReLU.

First single norms, then a training step of the CIFAR study's whole ResNet, from the images to the
loss, in float32 and under autocast to bfloat16. Autocast's copies of the weights are counted.
"""

import argparse
import importlib
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.inputs import Inputs, make_inputs
from benchmarks.providers import eager, ours
from benchmarks.rows import Table, markdown
from benchmarks.shapes import Case

SHAPE = (32, 64, 56, 56)  # the ratio is the same for other images
OPS = ("bn", "in", "bin", "gn", "ln")
FUSED = {"plain": "alone", "relu": "+ ReLU", "residual_relu": "+ residual + ReLU"}
BATCH = 128  # of the study
RESNET_NORMS = ("bn", "gn", "in", "ln")


def saved_bytes(forward: Callable[[], object], own: Iterable[Tensor]) -> int:
    """Bytes of the storages that `forward` saves for its backward, without those of `own`.

    Its result is kept until all are counted, so that two storages never share an address.
    """
    known = {t.untyped_storage().data_ptr() for t in own}
    storages: dict[int, torch.UntypedStorage] = {}

    def save(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in known:
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage()
        return t

    with torch.autograd.graph.saved_tensors_hooks(save, lambda t: t):
        result = forward()
    total = sum(storage.nbytes() for storage in storages.values())
    del result
    return total


def kept_bytes(forward: Callable[[Case, Inputs], Tensor], case: Case) -> int:
    """The bytes of one norm and the operations after it."""
    inputs = make_inputs(case, torch.device("cpu"))
    return saved_bytes(lambda: forward(case, inputs), [t for t in inputs[3:] if t is not None])


def table(dtype: torch.dtype) -> Table:
    """Our bytes over torch's, for each norm and the operations after it."""
    lines = [["norm", *FUSED.values()]]
    for op in OPS:
        cases = [Case(op, SHAPE, dtype, fused=fused) for fused in FUSED]
        ratios = [kept_bytes(ours, case) / kept_bytes(eager, case) for case in cases]
        lines.append([op, *(f"{ratio:.2f}" for ratio in ratios)])
    return lines


def resnet_bytes(norm: str, backend: str, dtype: torch.dtype, batch: int, depth_n: int = 2) -> int:
    """The bytes of the study's ResNet and its cross entropy, for `batch` images of 32x32; `backend`
    is auto or torch, `dtype` autocast's."""
    model_of = cifar_model()
    model = model_of.make_model(model_of.Architecture(norm, depth_n), backend)
    images, labels = torch.randn(batch, 3, 32, 32), torch.zeros(batch, dtype=torch.int64)

    def forward() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = model(images)
        return F.cross_entropy(logits.float(), labels)

    return saved_bytes(forward, [*model.parameters(), *model.buffers()])


def cifar_model() -> ModuleType:
    """cifar/harness/model.py, imported as the scripts of that folder import it."""
    folder = str(Path(__file__).parents[1] / "cifar")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module("harness.model")


def resnet_table(dtype: torch.dtype, batch: int) -> Table:
    """MiB of each norm, and ours over torch's."""
    lines = [["norm", "torch, MiB", "fastnorm, MiB", "ratio"]]
    for norm in RESNET_NORMS:
        theirs, mine = (resnet_bytes(norm, backend, dtype, batch) for backend in ("torch", "auto"))
        sizes = [f"{count / 2**20:.1f}" for count in (theirs, mine)]
        lines.append([norm, *sizes, f"{mine / theirs:.2f}"])
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.memory", description=__doc__)
    parser.parse_args(argv)
    print(f"torch {torch.__version__}\n")
    for dtype in (torch.float32, torch.bfloat16):
        print(f"bytes kept for backward, ours over torch's, {'x'.join(map(str, SHAPE))} {dtype}\n")
        print(markdown(table(dtype)), end="\n\n")
    for dtype in (torch.float32, torch.bfloat16):
        print(f"a step of the study's ResNet-14, {BATCH} images, {dtype}\n")
        print(markdown(resnet_table(dtype, BATCH)), end="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
