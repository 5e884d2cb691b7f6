"""The autograd Functions that join a backend's forward to its backward.

    Norm              every call outside torch.func: one forward, one backward of the backend
    NormGradients     the backward as a function of the forward's inputs, so that it can be
                      differentiated again: the backend computes it, and the formula its derivative
    TransformedNorm   every call inside torch.func's transforms
    AddNorm           (norm(x + residual), x + residual) outside of them

Each gets a `Route`, the backends of the call. A Function takes tensors only as single arguments, so
a call's `Inputs` are passed one by one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, is_grad_enabled

# Whether a transform of torch.func is active. Its tensors look plain but have no memory.
from torch._C import _are_functorch_transforms_active as transformed
from torch._C._functorch import is_legacy_batchedtensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.compiler import is_compiling

from . import batching
from .activations import masked
from .contract import Backend, Engine, Inputs, NormSpec, Tensors, side_input
from .reference.specs import formula_gradients, pull_back


class Route(NamedTuple):
    """Which backends compute a call and its backward."""

    backend: Backend
    # For two cases: compiled autograd traces the backward of an eager call, and dy is `unreadable`.
    traced: Backend
    # The backend that reads and writes memory; traced tensors have none.
    engine: Engine | None

    def for_backward(self, dy: Tensor) -> Backend:
        return self.traced if is_compiling() or unreadable(dy) else self.backend


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
        route: Route,
    ) -> Tensor:
        inputs = Inputs(x, residual, weight, bias, rho, running_mean, running_var)
        y, mask, stats = route.backend.norm(inputs, spec, any(ctx.needs_input_grad))
        if residual is not None and side_input(spec.activation, True) != "residual":
            residual = None
        if spec.use_input_stats:
            running_mean = running_var = None
        ctx.save_for_backward(
            x, residual, weight, bias, rho, running_mean, running_var, mask, stats
        )
        ctx.call = spec, route
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensors:
        # No transform was active when these were saved: there are no wrappers to take off.
        x, residual, weight, bias, rho, mean, var, mask, stats = ctx.saved_tensors
        inputs = Inputs(x, residual, weight, bias, rho, mean, var)
        (spec, route), needs = ctx.call, ctx.needs_input_grad[:5]
        backend = route.backend  # as route.for_backward, which would be two more calls
        if is_compiling() or is_legacy_batchedtensor(dy) or dy.is_neg():
            backend = route.traced
        if is_grad_enabled() or transformed():
            if mask is not None:
                # A constant, which is exact: ReLU's second derivative is 0.
                dy = masked(dy, route.backend.relu_mask(mask, x, spec), spec.activation)
                spec = spec._replace(activation=None)
            grads = _gradients(dy, inputs, spec, needs, route)
        else:
            grads = backend.norm_backward(dy, inputs, mask, stats, needs, spec)
        return (*grads, None, None, None, None)


# Function.apply does only this if no transform is active. Asking costs 6 of 16 us a call in torch
# 2.13, and nothing in 2.15, which asks in C++ (paired calls with 9 arguments).
apply_norm: Callable[..., Tensor] = super(torch.autograd.Function, Norm).apply


def unreadable(dy: Tensor | None) -> bool:
    """Whether no kernel can read dy: it is a batch of gradients (is_grads_batched), or has torch's
    negative bit, which says that the values in memory are to be negated."""
    if dy is None or is_compiling():  # a compiler's tensors are neither, and it cannot ask
        return False
    return is_legacy_batchedtensor(dy) or dy.is_neg()


class TransformedNorm(torch.autograd.Function):
    """act(norm(x) + residual). It keeps only its inputs, which a transform can batch."""

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
        route: Route,
    ) -> Tensor:
        inputs = Inputs(x, residual, weight, bias, rho, running_mean, running_var)
        return route.backend.norm(inputs, spec, False)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, mean, var, spec, route = inputs
        constants = (None, None) if spec.use_input_stats else (mean, var)
        ctx.save_for_backward(*tensors, *constants)
        ctx.spec, ctx.route = spec, route

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensors:
        inputs = Inputs(*unwrap_dead_wrappers(ctx.saved_tensors))
        grads = _gradients(dy, inputs, ctx.spec, ctx.needs_input_grad[:5], ctx.route)
        return (*grads, None, None, None, None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        *tensors, spec, route = inputs

        def call(*inputs: Any) -> Tensor:
            y: Tensor = TransformedNorm.apply(*inputs, route)
            return y

        return batching.norm(call, info.batch_size, in_dims, tensors, spec)


class NormGradients(torch.autograd.Function):
    """(dx, dresidual, dweight, dbias, drho) from dy and the inputs of the forward.

    `needs` says which; the others are None, and so are the gradients of tensors that are None.
    `mean` and `var` are the batch's statistics if those are constants, else None.
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
        route: Route,
    ) -> Tensors:
        inputs = Inputs(x, residual, weight, bias, rho, mean, var)
        backend = route.for_backward(dy)
        _, mask, stats = backend.norm(inputs, spec, True)
        kept = residual if side_input(spec.activation, residual is not None) == "residual" else None
        return backend.norm_backward(dy, inputs._replace(residual=kept), mask, stats, needs, spec)

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
            return formula_gradients(dy, Inputs._make((*primals, *inputs[5:])), ctx.spec, ctx.needs)

        grads = pull_back(gradients, (dy, *inputs[:5]), sought, cotangents)
        return (*grads, *[None] * 5)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensors, Any]:
        *tensors, spec, needs, route = inputs

        def call(*inputs: Any) -> Tensors:
            grads: Tensors = NormGradients.apply(*inputs, route)
            return grads

        return batching.gradients(call, info.batch_size, in_dims, tensors, spec, needs)


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
        route: Route,
    ) -> tuple[Tensor, Tensor]:
        y, total, stats = route.backend.add_norm(Inputs(x, residual, weight, bias), spec)
        ctx.save_for_backward(total, weight, bias, stats)
        ctx.spec, ctx.route = spec, route
        ctx.set_materialize_grads(False)
        if not any(ctx.needs_input_grad[:2]):
            ctx.mark_non_differentiable(total)
        return y, total

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dsum: Tensor | None) -> Tensors:
        total, weight, bias, stats = unwrap_dead_wrappers(ctx.saved_tensors)
        inputs = Inputs(total, None, weight, bias)
        spec, route, of = ctx.spec, ctx.route, ctx.needs_input_grad
        needs = (of[0] or of[1], of[2], of[3])
        if dy is None:
            dx, dweight, dbias = dsum, None, None
        elif is_grad_enabled() or transformed() or unreadable(dy) or unreadable(dsum):
            asked = (needs[0], False, *needs[1:], False)
            dx, _, dweight, dbias, _ = _gradients(dy, inputs, spec, asked, route)
            dx = dx + dsum if dx is not None and dsum is not None else dx
        else:
            backend = route.for_backward(dy)
            dx, dweight, dbias = backend.add_norm_backward(dy, dsum, inputs, stats, needs, spec)
        return dx if of[0] else None, dx if of[1] else None, dweight, dbias, None, None


apply_add_norm: Callable[..., tuple[Tensor, Tensor]]
apply_add_norm = super(torch.autograd.Function, AddNorm).apply


def _gradients(dy: Tensor, inputs: Inputs, spec: NormSpec, needs: Any, route: Route) -> Tensors:
    """The gradients of the forward's first five inputs, differentiable functions of all."""
    fused = spec.activation is not None
    asked = (needs[0], needs[1] and fused, *needs[2:])
    grads: Tensors = (None,) * 5
    if any(asked):
        grads = NormGradients.apply(dy, *inputs, spec, asked, route)
    return grads if fused or not needs[1] else (grads[0], dy, *grads[2:])
