"""Batch, instance, batch-instance, mean-only batch and group norm from a call to its pair of
functions in `channels.py`: dtype, layout, residual and activation around them.

`builtin.py` has the calls that torch's own serve better: all of batch norm but large ones, for one.
"""

import torch
from torch import Tensor

from . import channels
from .activations import activate, activate_backward
from .channels import Stats, Tensors
from .operators import (
    HALF,
    LONGEST_INSTANCE,
    Running,
    accumulation,
    canonical,
    canonical_as,
    laid_out_as,
    positions,
    widened,
)

HALVES_A_VECTOR = 16  # of 256 bits, which ATen's kernels take at once


def norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    rho: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    norm: str,
    groups: int,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    activation: str | None,
    differentiable: bool,
) -> tuple[Tensor, Tensor | None, Stats]:
    """y = act(norm(x) + residual), ReLU's mask and the statistics norm_backward takes.

    The signature is the kernels', the mask is y itself. norm is batch, instance, batch_instance,
    mean_only_batch or group.
    """
    running = (running_mean, running_var, momentum)
    arguments = (weight, bias, rho, groups, running, use_input_stats, eps)
    seen = _seen(norm, x, groups)
    result = _forward(norm, seen, *arguments) or _forward(norm, seen.double(), *arguments)
    assert result is not None, "is_far never asks for more than float64"
    z, *stats = result
    z = laid_out_as(x, z.to(x.dtype).view(x.shape))
    y, kept = activate(z, residual, activation, tuple(stats))
    # .data: the same memory as no view, for autograd forbids writing to a view that comes from a
    # Function, and models write to what a norm answers: ReLU(inplace=True), y += shortcut.
    y = y.data
    return y, y, kept


def norm_backward(
    dy: Tensor,
    x: Tensor,
    side: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    rho: Tensor | None,
    stats: Stats,
    needs: tuple[bool, bool, bool, bool, bool],
    *,
    norm: str,
    groups: int,
    use_input_stats: bool,
    activation: str | None,
) -> Tensors:
    """(dx, dresidual, dweight, dbias, drho); None where `needs` says that nobody asked."""
    dresidual = activate_backward(dy, side, stats, activation)
    needs_dx, needs_dresidual, *needs_parameters = needs
    grads: Tensors = (None,) * 4
    if needs_dx or any(needs_parameters):
        seen = _seen(norm, x, groups)
        g = canonical_as(seen, dresidual).to(seen.dtype)
        if stats[0].dtype == torch.float64:  # forward took float64 for the sake of a far mean
            seen, g = seen.double(), g.double()
        asked = [needs_dx, *needs_parameters]
        grads = _backward(norm, g, seen, weight, rho, groups, stats, use_input_stats, asked)
    dx, *totals = grads
    if needs_dx and dx is not None:
        dx = laid_out_as(x, dx.to(dy.dtype).view(x.shape))
    parameters = zip(totals, (weight, bias, rho), needs_parameters, strict=True)
    return (
        dx if needs_dx else None,
        dresidual if needs_dresidual else None,
        *(_gradient(total, parameter, needed) for total, parameter, needed in parameters),
    )


def _seen(norm: str, x: Tensor, groups: int) -> Tensor:
    """x as the norm computes with it: channels last where ATen's kernels are the faster there.

    It has none for instances, and group norm's go through half precision one by one where a group
    has fewer channels than a vector: a copy takes an eighth to nine tenths of their time.
    """
    narrow = x.dtype in HALF and x.shape[1] // groups < HALVES_A_VECTOR
    native = norm == "mean_only_batch" or (norm == "group" and not narrow)
    return widened(canonical(x) if native else x.contiguous())


def _forward(
    norm: str,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    rho: Tensor | None,
    groups: int,
    running: Running,
    use_input_stats: bool,
    eps: float,
) -> Stats | None:
    """(z, *stats) of a canonical x, or None, with nothing written, where it wants float64."""
    gamma, beta = accumulation(weight, x), accumulation(bias, x)
    if norm == "group":
        return channels.group_norm(x, gamma, beta, groups, eps)
    if norm == "batch":
        return channels.batch_norm(x, gamma, beta, running, eps)
    if norm == "mean_only_batch":
        return channels.mean_only_norm(x, beta, running, use_input_stats)
    if norm == "instance" and positions(x) <= LONGEST_INSTANCE:
        return channels.instance_norm(x, gamma, beta, running, eps)
    return channels.mixed_norm(x, gamma, beta, accumulation(rho, x), running, use_input_stats, eps)


def _backward(
    norm: str,
    g: Tensor,
    x: Tensor,
    weight: Tensor | None,
    rho: Tensor | None,
    groups: int,
    stats: Stats,
    use_input_stats: bool,
    needs: list[bool],
) -> Tensors:
    """(dx, dgamma, dbeta, drho) of a canonical x, of which some may be None where not needed."""
    if norm == "group":
        return *channels.group_norm_backward(g, x, weight, stats, groups), None
    if norm == "batch":
        return *channels.batch_norm_backward(g, x, weight, stats, needs[:3]), None
    if norm == "mean_only_batch":
        dx, dbeta = channels.mean_only_norm_backward(g, use_input_stats)
        return dx, None, dbeta, None
    if norm == "instance":
        return *channels.instance_norm_backward(g, x, weight, stats, needs[:3]), None
    return channels.mixed_norm_backward(g, x, weight, rho, stats, use_input_stats, needs[0])


def _gradient(total: Tensor | None, parameter: Tensor | None, needed: bool) -> Tensor | None:
    """`total` in its parameter's dtype; None where nobody asked."""
    if not needed or total is None or parameter is None:
        return None
    return total.to(parameter.dtype)
