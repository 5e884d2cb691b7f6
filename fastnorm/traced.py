"""The backends of traced programs: `fastnorm.ops`, which defines the operators and imports this."""

import torch
from torch import Tensor

from .autograd import Route
from .backend import load_engine, load_kernels
from .contract import Backend, Engine, Inputs, NormSpec, Outputs, Tensors, side_input

_ops = torch.ops.fastnorm


class Operators:
    """An engine's backend as operators of a traced program; the engine is "triton" or "cpu"."""

    def __init__(self, engine: str) -> None:
        self.engine = engine

    def norm(self, inputs: Inputs, spec: NormSpec, differentiable: bool) -> Outputs:
        update = _updates(inputs, spec)
        forward = _ops.norm_forward_update if update else _ops.norm_forward
        y, mask, stats = forward.default(*inputs, *spec, differentiable, self.engine)
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
            spec.activation, self.engine,
        )  # fmt: skip
        there = (True, True, *(parameter is not None for parameter in parameters))
        found = [g if a and t else None for g, a, t in zip(grads, asked, there, strict=True)]
        found[1] = dy if needs[1] and spec.activation is None else found[1]
        return tuple(found)

    def add_norm(self, inputs: Inputs, spec: NormSpec) -> tuple[Tensor, Tensor, Tensor]:
        forward = _ops.add_norm_forward.default
        found: tuple[Tensor, Tensor, Tensor]
        found = forward(*inputs[:4], spec.norm, spec.groups, spec.eps, self.engine)
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
            dy, dsum, total, *parameters, stats, [*needs], spec.norm, spec.groups, self.engine
        )
        there = (True, *(parameter is not None for parameter in parameters))
        return tuple(g if n and t else None for g, n, t in zip(grads, needs, there, strict=True))

    def relu_mask(self, mask: Tensor, x: Tensor, spec: NormSpec) -> Tensor:
        return engine_named(self.engine).relu_mask(mask, x, spec)


OPERATORS: dict[str, Backend] = {name: Operators(name) for name in ("triton", "cpu")}
TRACED = {name: Route(operators, operators, None) for name, operators in OPERATORS.items()}


def engine_named(name: str) -> Engine:
    """The engine "triton" or "cpu", which may have no device to run on."""
    engine: Engine = (load_kernels() if name == "triton" else load_engine()).ENGINE
    return engine


def differentiable_norm(inputs: Inputs, spec: NormSpec, engine: str) -> Tensor:
    """act(norm(x) + residual) of a traced program, computed by that engine."""
    op = _ops.norm_update if _updates(inputs, spec) else _ops.norm
    y: Tensor = op.default(*inputs, *spec, engine)
    return y


def differentiable_add_norm(inputs: Inputs, spec: NormSpec, engine: str) -> tuple[Tensor, Tensor]:
    """(norm(x + residual), x + residual) of a traced program, computed by that engine."""
    found: tuple[Tensor, Tensor]
    found = _ops.add_norm.default(*inputs[:4], spec.norm, spec.groups, spec.eps, engine)
    return found


def _updates(inputs: Inputs, spec: NormSpec) -> bool:
    """Whether a call writes to its running statistics."""
    return spec.use_input_stats and inputs.running_mean is not None
