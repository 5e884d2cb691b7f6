"""Weight normalisation from a checked call to the backend that computes it, and its derivatives."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import aten, reference
from .aten.operators import accumulated
from .autograd import Tensors, transformed
from .backend import backend_for, kernels_for
from .dispatch import is_traced
from .formula import pull_back


def apply_weight_norm(v: Tensor, g: Tensor, dim: int) -> Tensor:
    """g v / ||v||: a backend's, or under transforms the formula's.

    A traced program holds torch's own operator whatever the backend, but for `reference`: compilers
    know it, and make of it what the kernel is.
    """
    name = backend_for(v)
    special = forward_ad._current_level >= 0 or transformed() or v.numel() == 0
    if name == "reference" or special:
        return reference.weight_norm(v, g, dim)
    if is_traced(v):
        wide = accumulated(v)
        return torch._weight_norm(v.to(wide), g.to(wide), dim).to(v.dtype)
    w: Tensor = WeightNorm.apply(v, g, dim, kernels_for(v) if name == "triton" else aten)
    return w


class WeightNorm(torch.autograd.Function):
    """g v / ||v|| from a backend, a module with weight_norm and weight_norm_backward.

    With create_graph the gradients are the formula's. (Those of torch's operator have themselves
    wrong gradients: torch 2.13 takes the norms for constants there.)
    """

    @staticmethod
    def forward(ctx: Any, v: Tensor, g: Tensor, dim: int, backend: ModuleType) -> Tensor:
        w, norms = backend.weight_norm(v, g, dim)
        ctx.save_for_backward(v, g, norms)
        ctx.dim, ctx.backend = dim, backend
        return w

    @staticmethod
    def backward(ctx: Any, dw: Tensor) -> Tensors:
        v, g, norms = ctx.saved_tensors
        needs, dim = ctx.needs_input_grad[:2], ctx.dim
        # The dw of is_grads_batched is a batch that no kernel can read.
        batched = torch._C._functorch.is_legacy_batchedtensor(dw)
        if torch.is_grad_enabled() or transformed() or batched:
            sought = [i for i in (0, 1) if needs[i]]
            return *pull_back(_formula(dim), (v, g), sought, (dw,)), None, None
        return *ctx.backend.weight_norm_backward(dw, v, g, norms, dim, needs), None, None


def _formula(dim: int) -> Any:
    def weight_norm(v: Tensor, g: Tensor) -> tuple[Tensor]:
        return (reference.weight_norm(v, g, dim),)

    return weight_norm
