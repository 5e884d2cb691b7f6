"""The backend of traced programs: `fastnorm.ops`, which defines the operators and imports this."""

import torch
from torch import Tensor

from .autograd import Route
from .backend import load_kernels
from .contract import Backend, Inputs, NormSpec, Outputs, Tensors, side_input

_ops = torch.ops.fastnorm


class Operators:
    """The kernels' backend as operators of a traced program."""

    def norm(self, inputs: Inputs, spec: NormSpec, differentiable: bool) -> Outputs:
        update = _updates(inputs, spec)
        forward = _ops.norm_forward_update if update else _ops.norm_forward
        y, mask, stats = forward.default(*inputs, *spec, differentiable)
        masked = side_input(spec.activation, inputs.residual is not None) == "mask"
        return y, mask if differentiable and masked else None, stats

    def norm_backward(
        self,
        dy: Tensor,
        inputs: Inputs,
        mask: Tensor | None,
        stats: Tensor,
        needs: tuple[bool, ...],
        spec: NormSpec,
    ) -> Tensors:
        x, residual, *parameters = inputs[:5]
        side = residual if mask is None else mask
        # Without an activation dresidual is dy itself, and no operator may return its input.
        asked = [needs[0], needs[1] and spec.activation is not None, *needs[2:]]
        grads = _ops.norm_backward.default(
            dy, x, side, *parameters, stats, asked, spec.norm, spec.groups, spec.use_input_stats,
            spec.activation,
        )  # fmt: skip
        there = (True, True, *(parameter is not None for parameter in parameters))
        found = [g if a and t else None for g, a, t in zip(grads, asked, there, strict=True)]
        found[1] = dy if needs[1] and spec.activation is None else found[1]
        return tuple(found)

    def add_norm(self, inputs: Inputs, spec: NormSpec) -> tuple[Tensor, Tensor, Tensor]:
        forward = _ops.add_norm_forward.default
        found: tuple[Tensor, Tensor, Tensor]
        found = forward(*inputs[:4], spec.norm, spec.groups, spec.eps)
        return found

    def add_norm_backward(
        self,
        dy: Tensor,
        dsum: Tensor | None,
        inputs: Inputs,
        stats: Tensor,
        needs: tuple[bool, bool, bool],
        spec: NormSpec,
    ) -> Tensors:
        total, _, *parameters = inputs[:4]
        grads = _ops.add_norm_backward.default(
            dy, dsum, total, *parameters, stats, [*needs], spec.norm, spec.groups
        )
        there = (True, *(parameter is not None for parameter in parameters))
        return tuple(g if n and t else None for g, n, t in zip(grads, needs, there, strict=True))

    def relu_mask(self, mask: Tensor, x: Tensor, spec: NormSpec) -> Tensor:
        found: Tensor = load_kernels().ENGINE.relu_mask(mask, x, spec)
        return found


OPERATORS: Backend = Operators()
TRACED = Route(OPERATORS, OPERATORS, None)


def differentiable_norm(inputs: Inputs, spec: NormSpec) -> Tensor:
    """act(norm(x) + residual) of a traced program."""
    op = _ops.norm_update if _updates(inputs, spec) else _ops.norm
    y: Tensor = op.default(*inputs, *spec)
    return y


def differentiable_add_norm(inputs: Inputs, spec: NormSpec) -> tuple[Tensor, Tensor]:
    """(norm(x + residual), x + residual) of a traced program."""
    found: tuple[Tensor, Tensor]
    found = _ops.add_norm.default(*inputs[:4], spec.norm, spec.groups, spec.eps)
    return found


def _updates(inputs: Inputs, spec: NormSpec) -> bool:
    """Whether a call writes to its running statistics."""
    return spec.use_input_stats and inputs.running_mean is not None
