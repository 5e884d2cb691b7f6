"""The autograd Functions that join a backend's forward to its backward.

What a backend does not bring with its own autograd it brings as pairs: channel_norm and
channel_norm_backward, row_norm and row_norm_backward; side_input, which says what the backward
needs to keep for the activation, and relu_mask, which reads the mask that a forward kept. The
backward of every backend can itself be differentiated: asked for with create_graph=True, the
gradients come from the reference formula instead of the kernels.
"""

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import reference


class ChannelNormSpec(NamedTuple):
    """What a norm of (N, C, S) tensors is, apart from its tensors."""

    norm: str  # batch, instance, batch_instance or group
    groups: int
    use_input_stats: bool  # for the batch's statistics; instances and groups always do
    momentum: float
    eps: float
    activation: str | None


class ChannelNorm(torch.autograd.Function):
    """act(norm(x) + residual) for batch, instance, batch-instance and group norm."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        rho: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        spec: ChannelNormSpec,
        backend: ModuleType,
    ) -> Tensor:
        if x.numel() == 0:  # nothing to launch, and no statistics: the running ones stay
            return _forward_empty(ctx, x, (weight, bias, rho))
        y, mask, stats = backend.channel_norm(
            x, residual, weight, bias, rho, running_mean, running_var,
            differentiable=any(ctx.needs_input_grad), **spec._asdict(),
        )  # fmt: skip
        side = backend.side_input(spec.activation, residual is not None)
        kept = {"mask": mask, "residual": residual, None: None}[side]
        constants: tuple[Tensor | None, Tensor | None] = (None, None)
        if not spec.use_input_stats and any(ctx.needs_input_grad):
            assert running_mean is not None and running_var is not None, "functional checks it"
            # Copies: a later training step must not change what this call was normalised by.
            constants = (running_mean.clone(), running_var.clone())
        ctx.save_for_backward(x, kept, weight, bias, rho, *constants, *stats)
        ctx.spec, ctx.backend, ctx.side, ctx.empty = spec, backend, side, False
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.empty:
            return _backward_empty(ctx, dy)
        x, side, weight, bias, rho, mean, var, *stats = ctx.saved_tensors
        spec, needs = ctx.spec, ctx.needs_input_grad[:5]
        if torch.is_grad_enabled():

            def norm(x: Tensor, weight: Tensor, bias: Tensor, rho: Tensor) -> Tensor:
                return _reference_channel_norm(x, weight, bias, rho, mean, var, spec)

            inputs = (x, side, weight, bias, rho)
            grads = _differentiable_backward(norm, dy, inputs, needs, spec.activation, ctx)
        else:
            grads = ctx.backend.channel_norm_backward(
                dy, x, side, weight, bias, rho, stats, needs,
                norm=spec.norm, groups=spec.groups, use_input_stats=spec.use_input_stats,
                activation=spec.activation,
            )  # fmt: skip
        return (*grads, None, None, None, None)


class LayerNorm(torch.autograd.Function):
    """act(layer_norm(x) + residual) over the last `normalized_ndim` dimensions."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        normalized_ndim: int,
        eps: float,
        activation: str | None,
        backend: ModuleType,
    ) -> Tensor:
        if x.numel() == 0:
            return _forward_empty(ctx, x, (weight, bias))
        y, mask, stats = backend.row_norm(
            x, residual, weight, bias, normalized_ndim=normalized_ndim, eps=eps,
            activation=activation, differentiable=any(ctx.needs_input_grad),
        )  # fmt: skip
        side = backend.side_input(activation, residual is not None)
        kept = {"mask": mask, "residual": residual, None: None}[side]
        ctx.save_for_backward(x, kept, weight, bias, *stats)
        ctx.normalized_ndim, ctx.eps, ctx.activation = normalized_ndim, eps, activation
        ctx.backend, ctx.side, ctx.empty = backend, side, False
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.empty:
            return _backward_empty(ctx, dy)
        x, side, weight, bias, *stats = ctx.saved_tensors
        needs = ctx.needs_input_grad[:4]
        if torch.is_grad_enabled():
            shape = x.shape[x.dim() - ctx.normalized_ndim :]

            def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
                return reference.layer_norm(x, shape, weight, bias, ctx.eps)

            inputs = (x, side, weight, bias)
            grads = _differentiable_backward(norm, dy, inputs, needs, ctx.activation, ctx)
        else:
            grads = ctx.backend.row_norm_backward(
                dy, x, side, weight, bias, stats, needs,
                normalized_ndim=ctx.normalized_ndim, activation=ctx.activation,
            )  # fmt: skip
        return (*grads, None, None, None, None)


def _forward_empty(ctx: Any, x: Tensor, parameters: tuple[Tensor | None, ...]) -> Tensor:
    """The output for an x without elements; its gradients are sums over nothing."""
    ctx.empty = True
    ctx.save_for_backward(*parameters)
    return torch.empty_like(x)


def _backward_empty(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    grads: list[Tensor | None] = [dy if needed else None for needed in ctx.needs_input_grad[:2]]
    for parameter, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[2:], strict=False):
        grads.append(torch.zeros_like(parameter) if needed else None)
    return (*grads, *[None] * (len(ctx.needs_input_grad) - len(grads)))


def _reference_channel_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    rho: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    spec: ChannelNormSpec,
) -> Tensor:
    """The norm by its formula; `mean` and `var` are eval mode's constant statistics."""
    if spec.norm == "group":
        return reference.group_norm(x, spec.groups, weight, bias, spec.eps)
    if spec.norm == "instance":
        return reference.instance_norm(x, None, None, weight, bias, True, 0.0, spec.eps)
    training, eps = spec.use_input_stats, spec.eps
    if spec.norm == "batch":
        return reference.batch_norm(x, mean, var, weight, bias, training, 0.0, eps)
    assert rho is not None, "batch_instance_norm requires it"
    return reference.batch_instance_norm(x, mean, var, rho, weight, bias, training, 0.0, eps)


def _differentiable_backward(
    norm: Any,
    dy: Tensor,
    inputs: tuple[Tensor | None, ...],
    needs: tuple[bool, ...],
    activation: str | None,
    ctx: Any,
) -> list[Tensor | None]:
    """The gradients of act(norm(x) + residual) as differentiable functions of dy and the inputs.

    `inputs` are x, the side input and the parameters. Where only ReLU's mask was kept it is a
    constant, which is exact: ReLU's second derivative is 0.
    """
    with torch.enable_grad():
        # Aliases: a gradient must end here, not run on where one input was computed from another.
        inputs = tuple(None if t is None else t.view_as(t) for t in inputs)
        x, side, *parameters = inputs
        y = norm(x, *parameters)
        if ctx.side == "mask":
            assert side is not None, "forward kept it"
            g = torch.where(ctx.backend.relu_mask(side, x), dy, 0.0)
        elif activation is None:
            g = dy
        else:
            z = y if side is None else y + side
            (g,) = torch.autograd.grad(reference.activate(z, activation), z, dy, create_graph=True)
        wanted = {i: t for i, t in enumerate(inputs) if t is not None and needs[i] and i != 1}
        targets = list(wanted.values())
        found = torch.autograd.grad(y, targets, g, create_graph=True) if targets else ()
    grads: list[Tensor | None] = [None] * len(inputs)
    for i, grad in zip(wanted, found, strict=True):
        grads[i] = grad
    grads[1] = g if needs[1] else None
    return grads
