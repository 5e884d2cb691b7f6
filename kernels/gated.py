"""Gated RMS normalisation of rows, x and the gate seen as (R, L), gamma as (A, L).

Source: Mamba-2 (arXiv 2405.21060), which has one at the end of its blocks.
"""

import torch

from fastnorm.contract import Inputs, NormSpec, Tensors

from .row_geometry import RowSpec
from .row_types import Backward, Forward
from .rows import backward, forward, like, planned
from .tensors import contiguous, row_sizes


def gated_norm(
    x: torch.Tensor,
    gate: torch.Tensor,
    weight: torch.Tensor | None,
    norm_before_gate: bool,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """y (contiguous, x's dtype) and the rstd of each row, in the accumulation dtype."""
    spec = _planned(x, weight, norm_before_gate)
    x, gate, weight = x.contiguous(), gate.contiguous(), contiguous(weight)
    y = torch.empty_like(x)
    t = Forward(x, None, None, None, weight, None, y, None, gate=gate)
    return y, forward(t, *row_sizes(x, 1), spec, eps).stats


def gated_norm_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    gate: torch.Tensor,
    weight: torch.Tensor | None,
    stats: torch.Tensor,
    norm_before_gate: bool,
    needs: tuple[bool, bool, bool],
) -> Tensors:
    """(dx, dgate, dweight); None if `needs` says that nobody wants it."""
    spec = _planned(x, weight, norm_before_gate)
    x, dy, gate = x.contiguous(), dy.contiguous(), gate.contiguous()
    t = Backward(
        x,
        dy,
        residual=None,
        bits=None,
        weight=contiguous(weight),
        bias=None,
        stats=stats,
        dsum=None,
        dx=torch.empty_like(x) if needs[0] else None,
        dresidual=None,
        dweight=like(weight, needs[2]),
        dbias=None,
        gate=gate,
        dgate=torch.empty_like(x) if needs[1] else None,
    )
    if any(needs[:2]) or t.dweight is not None:
        backward(t, *row_sizes(x, 1), spec)
    return t.dx, t.dgate, t.dweight


def _planned(x: torch.Tensor, weight: torch.Tensor | None, norm_before_gate: bool) -> RowSpec:
    spec = planned(Inputs(x, weight=weight), NormSpec("rms"))
    return spec._replace(gate="after" if norm_before_gate else "before")
