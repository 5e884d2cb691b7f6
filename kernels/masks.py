"""ReLU's mask on the host: which calls keep one, its size, and its bits as booleans.

A bit for each element says where ReLU let z through, NaN included. The bits of a run of neighbours
in memory fill bytes of their own, eight to a byte.
"""

import torch

from .tensors import row_sizes


def side_input(activation: str | None, has_residual: bool) -> str | None:
    """What backward needs beside x to know act'(z): "mask", "residual" or nothing.

    Without a residual z is recomputed from x. With one, a bit for each element says where ReLU let
    it through; the smooth activations need z and so the residual itself.
    """
    if activation is None or not has_residual:
        return None
    return "mask" if activation == "relu" else "residual"


def mask_bytes(runs: int, length: int) -> int:
    """The size of the mask of `runs` runs of `length` neighbours each; sizes may be symbolic."""
    return runs * -(-length // 8)


def unpacked(mask: torch.Tensor, runs: int, length: int) -> torch.Tensor:
    """The booleans (runs, length) of a mask."""
    shifts = torch.arange(8, dtype=torch.uint8, device=mask.device)
    bits = mask.view(runs, -1, 1) >> shifts & 1
    return bits.view(runs, -1)[:, :length].bool()


def row_relu_mask(mask: torch.Tensor, x: torch.Tensor, normalized_ndim: int) -> torch.Tensor:
    """The booleans of the mask that a forward kept for x, in x's shape."""
    return unpacked(mask, *row_sizes(x, normalized_ndim)).view(x.shape)
