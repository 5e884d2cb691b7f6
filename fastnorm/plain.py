"""Ordinary calls, which small tensors make: `plain_route` answers at once what `dispatch` asks."""

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

PLAIN = (Tensor, torch.nn.Parameter)
# The routes that `dispatch` has taken, by the backend chosen, x's dtype and whether it is on the
# CPU, else on a GPU. Engines that were there once stay there.
READY: dict[tuple[str, torch.dtype, bool], Route] = {}


def plain_route(x: Tensor) -> Route | None:
    """The route of a call of x, if x is a tensor with memory of its own and nothing is on that
    changes what a call means; None: ask `dispatch.normalise`."""
    if (
        is_compiling()  # first: compilers know no more of these
        or type(x) not in PLAIN
        or _len_torch_dispatch_stack()
        or _are_functorch_transforms_active()
        or _is_any_autocast_enabled()
        or _is_tracing()
        or forward_ad._current_level >= 0
        or x.is_nested
        or not (x.is_cpu or x.is_cuda)
    ):
        return None
    return READY.get((backend._current, x.dtype, x.is_cpu))
