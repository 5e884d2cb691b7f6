"""The autograd Functions that join a backend's forward to its backward.

    Norm              every call outside torch.func: one forward, one backward of the backend
    NormGradients     the backward as a function of the forward's inputs, to be differentiated
                      again: what it computes comes from the backend, its own derivative from the
                      formula
    TransformedNorm   every call inside torch.func's transforms
    AddNorm           (norm(x + residual), x + residual) outside of them

A backend is a module with norm and norm_backward, for AddNorm add_norm and add_norm_backward;
side_input, which says what the backward needs to keep for the activation; and relu_mask, which
reads the mask that a forward kept.
"""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers

from . import batching
from .formula import NormSpec, formula_gradients, pull_back

Tensors = tuple[Tensor | None, ...]


class Norm(torch.autograd.Function):
    """act(norm(x) + residual)."""

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
        spec: NormSpec,
        backend: ModuleType,
    ) -> Tensor:
        y, mask, stats = backend.norm(
            x, residual, weight, bias, rho, running_mean, running_var,
            differentiable=any(ctx.needs_input_grad), **spec._asdict(),
        )  # fmt: skip
        side = backend.side_input(spec.activation, residual is not None)
        kept = {"mask": mask, "residual": residual, None: None}[side]
        constants = (None, None) if spec.use_input_stats else (running_mean, running_var)
        ctx.save_for_backward(x, kept, weight, bias, rho, *constants, *stats)
        ctx.spec, ctx.backend, ctx.side = spec, backend, side
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensors:
        saved = unwrap_dead_wrappers(ctx.saved_tensors)
        x, side, weight, bias, rho, mean, var, *stats = saved
        spec, needs = ctx.spec, ctx.needs_input_grad[:5]
        module = _able(ctx.backend, dy)
        if module is None or torch.is_grad_enabled() or transformed():
            if ctx.side == "mask":
                # A constant, which is exact: ReLU's second derivative is 0.
                dy = torch.where(ctx.backend.relu_mask(side, x, spec.norm, spec.groups), dy, 0.0)
                side, spec = None, spec._replace(activation=None)
            inputs = (x, side, weight, bias, rho, mean, var)
            grads = _gradients(dy, inputs, spec, needs, ctx.backend)
        else:
            grads = module.norm_backward(
                dy, x, side, weight, bias, rho, stats, needs,
                norm=spec.norm, groups=spec.groups, use_input_stats=spec.use_input_stats,
                activation=spec.activation,
            )  # fmt: skip
        return (*grads, None, None, None, None)


# What Function.apply comes down to where no transform is active, without the cost of asking: 6 of
# 16 us a call in torch 2.13, nothing in 2.15, which asks in C++ (paired calls with 9 arguments).
apply_norm: Callable[..., Tensor] = super(torch.autograd.Function, Norm).apply


def transformed() -> bool:
    """Whether a transform of torch.func is active: its tensors look plain and have no memory."""
    return torch._C._are_functorch_transforms_active()


def _able(backend: ModuleType, dy: Tensor) -> ModuleType | None:
    """The backend, but where compiled autograd traces the backward of an eager call, and for the dy
    of is_grads_batched: there the kernels' operators, which serve each of them in turn, or, for the
    engine of CPUs, None, which is the formula.
    """
    from . import ops  # it imports this module

    if backend is ops or not (torch.compiler.is_compiling() or batched(dy)):
        return backend
    return ops if backend.__name__ == "fastnorm.kernels" else None


def batched(dy: Tensor | None) -> bool:
    """Whether dy is the batch of is_grads_batched, which no kernel can read."""
    if dy is None or torch.compiler.is_compiling():  # whose tensors are none, and which cannot ask
        return False
    return torch._C._functorch.is_legacy_batchedtensor(dy)


class TransformedNorm(torch.autograd.Function):
    """act(norm(x) + residual), keeping nothing but its inputs: a transform can batch those."""

    @staticmethod
    def forward(
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        rho: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        spec: NormSpec,
        backend: ModuleType,
    ) -> Tensor:
        inputs = (x, residual, weight, bias, rho, running_mean, running_var)
        return backend.norm(*inputs, differentiable=False, **spec._asdict())[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, mean, var, spec, backend = inputs
        constants = (None, None) if spec.use_input_stats else (mean, var)
        ctx.save_for_backward(*tensors, *constants)
        ctx.spec, ctx.backend = spec, backend

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensors:
        inputs = unwrap_dead_wrappers(ctx.saved_tensors)
        grads = _gradients(dy, inputs, ctx.spec, ctx.needs_input_grad[:5], ctx.backend)
        return (*grads, None, None, None, None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        *tensors, spec, backend = inputs
        return batching.norm(
            TransformedNorm.apply, info.batch_size, in_dims, tensors, spec, backend
        )


class NormGradients(torch.autograd.Function):
    """(dx, dresidual, dweight, dbias, drho) from dy and the inputs of the forward.

    `needs` says which; the others, and those of tensors that are None, are None. Where the batch's
    statistics are constants, `mean` and `var` are they, else None.
    """

    @staticmethod
    def forward(
        dy: Tensor,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        rho: Tensor | None,
        mean: Tensor | None,
        var: Tensor | None,
        spec: NormSpec,
        needs: tuple[bool, ...],
        backend: ModuleType,
    ) -> Tensors:
        inputs = (x, residual, weight, bias, rho, mean, var)
        module = _able(backend, dy)
        if module is None:  # a gradient may be dy itself, which no Function may return
            grads = formula_gradients(dy, inputs, spec, needs)
            return tuple(None if grad is None else grad.view_as(grad) for grad in grads)
        _, mask, stats = backend.norm(*inputs, differentiable=True, **spec._asdict())
        side = backend.side_input(spec.activation, residual is not None)
        return module.norm_backward(
            dy, x, {"mask": mask, "residual": residual, None: None}[side], weight, bias, rho,
            stats, needs, norm=spec.norm, groups=spec.groups, use_input_stats=spec.use_input_stats,
            activation=spec.activation,
        )  # fmt: skip

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        *tensors, ctx.spec, ctx.needs, _ = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Tensors:
        dy, *inputs = unwrap_dead_wrappers(ctx.saved_tensors)
        sought = [i for i in range(6) if ctx.needs_input_grad[i]]

        def gradients(dy: Tensor, *primals: Tensor | None) -> Tensors:
            return formula_gradients(dy, (*primals, *inputs[5:]), ctx.spec, ctx.needs)

        grads = pull_back(gradients, (dy, *inputs[:5]), sought, cotangents)
        return (*grads, *[None] * 5)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensors, Any]:
        *tensors, spec, needs, backend = inputs
        return batching.gradients(
            NormGradients.apply, info.batch_size, in_dims, tensors, spec, needs, backend
        )


class AddNorm(torch.autograd.Function):
    """(norm(total), total) of total = x + residual."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        spec: NormSpec,
        backend: ModuleType,
    ) -> tuple[Tensor, Tensor]:
        y, total, stats = backend.add_norm(
            x, residual, weight, bias, norm=spec.norm, groups=spec.groups, eps=spec.eps
        )
        ctx.save_for_backward(total, weight, bias, *stats)
        ctx.spec, ctx.backend = spec, backend
        ctx.set_materialize_grads(False)
        if not any(ctx.needs_input_grad[:2]):
            ctx.mark_non_differentiable(total)
        return y, total

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dsum: Tensor | None) -> Tensors:
        total, weight, bias, *stats = unwrap_dead_wrappers(ctx.saved_tensors)
        spec, backend, of = ctx.spec, ctx.backend, ctx.needs_input_grad
        needs = (of[0] or of[1], of[2], of[3])
        module = None if dy is None else _able(backend, dy)
        if dy is None:
            dx, dweight, dbias = dsum, None, None
        elif (
            module is None
            or torch.is_grad_enabled()
            or transformed()
            or batched(dy)
            or batched(dsum)
        ):
            inputs = (total, None, weight, bias, None, None, None)
            asked = (needs[0], False, *needs[1:], False)
            dx, _, dweight, dbias, _ = _gradients(dy, inputs, spec, asked, backend)
            dx = dx + dsum if dx is not None and dsum is not None else dx
        else:
            dx, dweight, dbias = module.add_norm_backward(
                dy, dsum, total, weight, bias, stats, needs, norm=spec.norm, groups=spec.groups
            )
        return dx if of[0] else None, dx if of[1] else None, dweight, dbias, None, None


apply_add_norm: Callable[..., tuple[Tensor, Tensor]]
apply_add_norm = super(torch.autograd.Function, AddNorm).apply


def _gradients(
    dy: Tensor, inputs: Sequence[Tensor | None], spec: NormSpec, needs: Any, backend: ModuleType
) -> Tensors:
    """The gradients of the forward's first five inputs, differentiable functions of all."""
    fused = spec.activation is not None
    asked = (needs[0], needs[1] and fused, *needs[2:])
    grads: Tensors = (None,) * 5
    if any(asked):
        grads = NormGradients.apply(dy, *inputs, spec, asked, backend)
    return grads if fused or not needs[1] else (grads[0], dy, *grads[2:])
