"""Ordinary calls: `plain_route` makes the checks and the choice of `dispatch` in one go."""

import torch
from torch import Tensor
from torch._C import (
    _are_functorch_transforms_active,
    _is_any_autocast_enabled,
    _is_tracing,
    _len_torch_dispatch_stack,
)
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from . import backend
from .autograd import Route
from .checks import DTYPES

PLAIN = (Tensor, torch.nn.Parameter)
# The routes that `dispatch` has taken so far, by backend, x's dtype, and whether x is on the CPU
# (else on a GPU). An engine that was there once stays there.
READY: dict[tuple[str, torch.dtype, bool], Route] = {}


def plain_route(
    x: Tensor,
    residual: Tensor | None,
    shape: tuple[int, ...] | None,
    parameters: tuple[Tensor | None, ...],
) -> Route | None:
    """The route of an ordinary call, or None: then ask all the checks and `dispatch.normalise`.

    In an ordinary call x is a tensor with its own memory, no mode is on that changes the meaning of
    a call, and no check would refuse a tensor; parameters have to be of `shape` or, if that is
    None, have an element for each channel. The rank of x, and the sizes that a norm needs, are not
    checked here.
    """
    if (
        is_compiling()  # first: compilers know none of the others
        or type(x) not in PLAIN
        or _len_torch_dispatch_stack()
        or _are_functorch_transforms_active()
        or _is_any_autocast_enabled()
        or _is_tracing()
        or forward_ad._current_level >= 0
        or x.is_nested
        or x.is_neg()
    ):
        return None
    dtype, on_cpu = x.dtype, x.is_cpu
    route = READY.get((backend._current, dtype, on_cpu))
    if route is None or not (on_cpu or x.is_cuda):
        return None
    shape = x.shape[1:2] if shape is None else shape
    try:
        if residual is not None and (
            residual.shape != x.shape
            or residual.dtype is not dtype
            or residual.device != x.device
            or residual.is_neg()
        ):
            return None
        for tensor in parameters:
            if tensor is not None and (
                tensor.shape != shape
                or tensor.dtype not in DTYPES
                or not (tensor.is_cpu if on_cpu else tensor.device == x.device)
                or tensor.is_neg()
            ):
                return None
    except AttributeError:  # not a tensor: the checks name it
        return None
    return route
