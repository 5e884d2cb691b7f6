"""`python -m benchmarks.small`: the cost of a call on a tiny tensor, on this CPU.

Modules of torch.nn and ours on 32 elements, forward and then backward, called in turn; the ratio is
taken within each pair. Nearly all of the time is Python, allocations and autograd: the norm takes
0.2 us. With --cold a matrix product comes before each call, as between the norms of a model: then
the call finds neither its code nor its data in the core's own caches.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import fastnorm
from benchmarks.cpu import median_interval
from benchmarks.timing import cpu_model

WARM_UP = 300
COLD_WARM_UP = 30
COLD_MATRIX = 1200  # rows and columns: 17 MB for a product
NORMS: dict[str, tuple[tuple[float, ...], tuple[int, ...]]] = {  # arguments, the input's shape
    "BatchNorm2d": ((4,), (2, 4, 2, 2)),
    "InstanceNorm2d": ((4, 1e-5, 0.1, True), (2, 4, 2, 2)),
    "GroupNorm": ((2, 4), (2, 4, 2, 2)),
    "LayerNorm": ((16,), (2, 16)),
    "RMSNorm": ((16,), (2, 16)),
}
FUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "silu": nn.functional.silu,
}


def pair(
    name: str, activation: str | None, before: Callable[[], object]
) -> tuple[Callable[[], float], Callable[[], float]]:
    """Calls of torch's module with its activation, and of ours; each call returns its us. `before`
    is called first, outside of that time."""
    arguments, shape = NORMS[name]
    torchs: nn.Module = getattr(nn, name)(*arguments)
    ours: nn.Module = getattr(fastnorm, name)(*arguments, activation=activation)
    x, dy = torch.randn(shape, requires_grad=True), torch.randn(shape)

    def timed(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Callable[[], float]:
        leaves = [x, *module.parameters()]

        def call() -> float:
            for leaf in leaves:
                leaf.grad = None
            before()
            start = time.perf_counter()
            forward(x).backward(dy)
            return 1e6 * (time.perf_counter() - start)

        return call

    def activated(x: Tensor) -> Tensor:
        y: Tensor = torchs(x)
        return FUSED[activation](y) if activation else y

    return timed(torchs, activated if activation else torchs), timed(ours, ours)


def product_of_matrices() -> Callable[[], object]:
    a, b = torch.randn(2, COLD_MATRIX, COLD_MATRIX)
    return lambda: torch.mm(a, b)


def table_line(name: str, activation: str | None, rounds: int, cold: bool) -> str:
    torchs, ours = pair(name, activation, product_of_matrices() if cold else lambda: None)
    skipped = COLD_WARM_UP if cold else WARM_UP
    us = [(torchs(), ours()) for _ in range(skipped + rounds)][skipped:]
    ratios = [b / a for a, b in us]
    low, high = median_interval(ratios)
    medians = [statistics.median(values) for values in zip(*us, strict=True)]
    return (
        f"{name:15} {activation or '':5} {medians[0]:9.1f} {medians[1]:8.1f} "
        f"{statistics.median(ratios):7.3f}   {low:.3f}-{high:.3f}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3000, help="timed pairs a case (at least 2)")
    parser.add_argument("--cold", action="store_true", help="a matrix product before each call")
    args = parser.parse_args(argv)
    if args.rounds < 2:
        parser.error(f"--rounds must be at least 2, got {args.rounds}")
    torch.set_num_threads(1)
    pairs = f"{args.rounds} {'cold ' * args.cold}pairs"
    print(f"torch {torch.__version__}, 1 thread, {cpu_model()}, {pairs}")
    print(f"{'':21} {'torch us':>9} {'ours us':>8} {'ratio':>7}   of median")
    with fastnorm.use_backend("auto"):
        for name in NORMS:
            for activation in (None, *FUSED):
                print(table_line(name, activation, args.rounds, args.cold), flush=True)


if __name__ == "__main__":
    main()
