"""ReLU's mask on the host: its size, and its bits as booleans; the same for both engines.

One bit for each element says whether ReLU let z through, NaN included. Each run of neighbours in
memory starts a new byte; a byte has eight bits.
"""

import torch

from fastnorm.contract import NormSpec, side_input
from fastnorm.tensors import dense, positions

from .tensors import row_sizes


def mask_bytes(runs: int, length: int) -> int:
    """The size of the mask of `runs` runs of `length` neighbours each; sizes may be symbolic."""
    return runs * -(-length // 8)


def mask_runs(x: torch.Tensor, spec: NormSpec) -> tuple[int, int]:
    """The number and the length of the runs of neighbours in a dense x; each run of the mask has
    its own bytes. If each channel has one position, the channels lie last."""
    if spec.of_rows:
        return row_sizes(x, spec.groups)
    N, C, S = x.shape[0], x.shape[1], positions(x)
    return (N * S, C) if S == 1 or not x.is_contiguous() else (N * C, S)


def mask_for(
    x: torch.Tensor, has_residual: bool, spec: NormSpec, differentiable: bool
) -> torch.Tensor | None:
    """Memory for the mask that a forward of the dense x keeps; None if it keeps none."""
    if not differentiable or side_input(spec.activation, has_residual) != "mask":
        return None
    return x.new_empty(mask_bytes(*mask_runs(x, spec)), dtype=torch.uint8)


def unpacked(mask: torch.Tensor, runs: int, length: int) -> torch.Tensor:
    """The booleans (runs, length) of a mask."""
    shifts = torch.arange(8, dtype=torch.uint8, device=mask.device)
    bits = mask.view(runs, -1, 1) >> shifts & 1
    return bits.view(runs, -1)[:, :length].bool()


def relu_mask(mask: torch.Tensor, x: torch.Tensor, spec: NormSpec) -> torch.Tensor:
    """The booleans of the mask that a forward kept for x, in x's shape."""
    x = x if spec.of_rows else dense(x)
    active = unpacked(mask, *mask_runs(x, spec))
    if spec.of_rows or x.is_contiguous():
        return active.view(x.shape)
    return active.view(x.shape[0], *x.shape[2:], x.shape[1]).movedim(-1, 1)
