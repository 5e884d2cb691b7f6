"""The autograd Function that joins an engine's gated RMS norm to its backward."""

from typing import Any

import torch
from torch import Tensor

from . import reference
from .autograd import transformed, unreadable
from .contract import Engine, Tensors
from .reference.specs import pull_back


class GatedNorm(torch.autograd.Function):
    """An engine's gated RMS norm of x (..., L); the weight is (L,) or has x's dimensions.

    With create_graph the gradients are the formula's.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gate: Tensor,
        weight: Tensor | None,
        norm_before_gate: bool,
        eps: float,
        engine: Engine,
    ) -> Tensor:
        y, stats = engine.gated_norm(x, gate, weight, norm_before_gate, eps)
        ctx.save_for_backward(x, gate, weight, stats)
        ctx.call = norm_before_gate, eps, engine
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensors:
        x, gate, weight, stats = ctx.saved_tensors
        (norm_before_gate, eps, engine), needs = ctx.call, ctx.needs_input_grad[:3]
        traced = torch.compiler.is_compiling()  # by compiled autograd
        if torch.is_grad_enabled() or transformed() or unreadable(dy) or traced:
            sought = [i for i in range(3) if needs[i]]
            grads = pull_back(_formula(norm_before_gate, eps), (x, gate, weight), sought, (dy,))
        else:
            grads = engine.gated_norm_backward(dy, x, gate, weight, stats, norm_before_gate, needs)
        return (*grads, None, None, None)


def _formula(norm_before_gate: bool, eps: float) -> Any:
    def gated_norm(x: Tensor, gate: Tensor, weight: Tensor | None) -> tuple[Tensor]:
        return (reference.gated_rms_norm(x, gate, weight, eps, norm_before_gate=norm_before_gate),)

    return gated_norm
