"""The autograd Function that joins an engine's weight normalisation to its backward."""

from typing import Any

import torch
from torch import Tensor

from . import reference
from .autograd import transformed, unreadable
from .contract import Engine, Tensors
from .reference.specs import pull_back


class WeightNorm(torch.autograd.Function):
    """g v / ||v||.

    With create_graph the gradients are the formula's. (The second derivatives of torch's operator
    are wrong: torch 2.13 takes the norms for constants there.)
    """

    @staticmethod
    def forward(ctx: Any, v: Tensor, g: Tensor, dim: int, engine: Engine) -> Tensor:
        w, norms = engine.weight_norm(v, g, dim)
        ctx.save_for_backward(v, g, norms)
        ctx.dim, ctx.engine = dim, engine
        return w

    @staticmethod
    def backward(ctx: Any, dw: Tensor) -> Tensors:
        v, g, norms = ctx.saved_tensors
        needs, dim = ctx.needs_input_grad[:2], ctx.dim
        traced = torch.compiler.is_compiling()  # by compiled autograd
        if torch.is_grad_enabled() or transformed() or unreadable(dw) or traced:
            sought = [i for i in (0, 1) if needs[i]]
            return *pull_back(_formula(dim), (v, g), sought, (dw,)), None, None
        return *ctx.engine.weight_norm_backward(dw, v, g, norms, dim, needs), None, None


def _formula(dim: int) -> Any:
    def weight_norm(v: Tensor, g: Tensor) -> tuple[Tensor]:
        return (reference.weight_norm(v, g, dim),)

    return weight_norm
