"""The autograd Function that joins an engine's parameters of each sample to their backward."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .autograd import transformed, unreadable
from .contract import Engine, Tensors
from .reference.specs import pull_back
from .tensors import accumulation_of


class Modulate(torch.autograd.Function):
    """An engine's weight (1 + scale) and bias (1 + scale) + shift, for an x of `dtype`.

    With create_graph the gradients are the formula's.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor | None,
        bias: Tensor | None,
        scale: Tensor,
        shift: Tensor | None,
        dtype: torch.dtype,
        engine: Engine,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(weight, bias, scale, shift)
        ctx.call = dtype, engine
        ctx.set_materialize_grads(False)
        return engine.modulate(weight, bias, scale, shift, dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Tensors:
        inputs, needs = ctx.saved_tensors, ctx.needs_input_grad[:4]
        dtype, engine = ctx.call
        traced = torch.compiler.is_compiling()  # by compiled autograd
        if torch.is_grad_enabled() or transformed() or any(map(unreadable, grads)) or traced:
            wide = accumulation_of(dtype)
            sought = [i for i in range(4) if needs[i]]

            def formula(*inputs: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
                return composed(wide, *inputs)

            return (*pull_back(formula, inputs, sought, grads), None, None)
        return (*engine.modulate_backward(*grads, *inputs, dtype, needs), None, None)


# As autograd.apply_norm: no transform is active.
apply_modulate: Callable[..., tuple[Tensor, Tensor | None]] = super(
    torch.autograd.Function, Modulate
).apply


def composed(
    dtype: torch.dtype,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """weight (1 + scale) and bias (1 + scale) + shift in `dtype`; None if it has no parts."""
    weight, bias, scale, shift = (
        None if t is None else t.to(dtype) for t in (weight, bias, scale, shift)
    )
    if scale is not None:
        factor = scale + 1
        weight = factor if weight is None else weight * factor
        if bias is not None and shift is not None:
            return weight, torch.addcmul(shift, bias, factor)
        bias = None if bias is None else bias * factor
    if bias is None or shift is None:
        return weight, shift if bias is None else bias
    return weight, bias + shift
