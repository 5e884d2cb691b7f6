"""Norms of your own: a merge in plain PyTorch between the fused moments and the fused apply."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from ..activations import ActivationLike, activate, canonical
from ..checks import check_input
from ..dispatch import autocast, stages_for
from ..merges import Coefficients
from ..modulation import modulated_channels
from ..moment_autograd import Apply, Call, Moments, summed
from ..tensors import accumulation, broadcast, positions

Merge = Callable[[Tensor, Tensor, int], Coefficients]


def moment_norm(
    input: Tensor,
    merge: Merge,
    *,
    activation: ActivationLike = None,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """act((x - center) * scale + shift + residual) of input (N, C, ...), by a merge of your own.

    `merge(mean, var, count)` gets the mean and the biased variance of each (n, c), float64 tensors
    of shape (N, C), and the number of positions in each. It returns (scale, center, shift), each a
    number or a tensor that broadcasts to (N, C). It is called once in a forward, and autograd runs
    through it. So it may use parameters, statistics over other sets (`merge_moments`), collectives
    and buffers, as any module. float64 keeps it simple: differences of means lose no digits, and
    the tensors are tiny.

    x is read once for its moments and once more to be normalised: 3 S forward and 5 S backward, S
    the bytes of x (with a residual and an activation 4 S and 6 S). Second derivatives run through
    plain PyTorch. Forward-mode derivatives and traced programs use plain PyTorch for all of it.

    scale and shift, (N, C) or None, modulate each sample: z (1 + scale) + shift, where z is x after
    the merge, before the residual is added. See `fastnorm.modulation`.

    Raises RuntimeError for an input of less than 2 dimensions or a residual unlike it,
    NotImplementedError for dtypes without kernels, ValueError for an unknown activation. For a
    merge: TypeError if it does not return three numbers or tensors, RuntimeError for another shape.
    """
    tensors = (input, residual, scale, shift)
    if has_torch_function_variadic(*tensors):
        return handle_torch_function(
            moment_norm, tensors, input, merge, activation=activation, residual=residual,
            scale=scale, shift=shift,
        )  # fmt: skip
    after = canonical(activation, "moment_norm")
    input, residual = autocast(input, residual, "moment")
    check_input("moment_norm", input, 2, residual)
    if scale is not None or shift is not None:
        merge = _modulated(input, merge, scale, shift)
    stages = stages_for(input, residual)
    if stages is None:
        return _formula(input, merge, after, residual)
    call = Call(stages, after)
    mean, var, link = Moments.apply(input, residual, call)
    factor, center, level = _expanded(merge(mean, var, positions(input)), mean)
    # Relative to the instance's own mean, here a constant: it cancels, and no digits are lost.
    origin = mean.detach()
    level = level + factor * (origin - center)
    return Apply.apply(link, input, residual, origin, factor, level, call)


def _modulated(x: Tensor, merge: Merge, scale: Tensor | None, shift: Tensor | None) -> Merge:
    """A merge that also applies scale and shift, one for each sample and channel."""

    gamma, beta = modulated_channels("moment_norm", x, None, None, scale, shift)

    def modulated(mean: Tensor, var: Tensor, count: int) -> Coefficients:
        factor, center, level = _expanded(merge(mean, var, count), mean)
        if gamma is not None:
            factor, level = factor * gamma, level * gamma
        return factor, center, level if beta is None else level + beta

    return modulated


def _formula(x: Tensor, merge: Merge, activation: str | None, residual: Tensor | None) -> Tensor:
    """moment_norm in plain PyTorch, in the dtype of statistics; only the merge is in float64.

    For ONNX the moments are float64 as well: runtimes differ in how they sum.
    """
    wide, dims = x.to(accumulation(x)), tuple(range(2, x.dim()))
    averaged = wide.double() if torch.onnx.is_in_onnx_export() else wide
    if x.numel() == 0 or not dims:  # nothing to average, or one value each
        mean = summed(averaged)
        var = torch.zeros_like(mean)
    else:
        var, mean = torch.var_mean(averaged, dims, correction=0)
    mean, var = mean.double(), var.double()
    scale, center, shift = _expanded(merge(mean, var, positions(x)), mean)
    origin = mean.to(wide.dtype)
    shift = shift + scale * (origin.double() - center)
    origin, scale, shift = (broadcast(t.to(wide.dtype), x) for t in (origin, scale, shift))
    y = (wide - origin) * scale + shift
    y = y if residual is None else y + residual
    return activate(y, activation).to(x.dtype)


def _expanded(found: Coefficients, mean: Tensor) -> tuple[Tensor, ...]:
    """The merge's coefficients as tensors like mean; raises if they are anything else."""
    names = ("scale", "center", "shift")
    if not isinstance(found, tuple | list) or len(found) != len(names):
        count = f" of length {len(found)}" if isinstance(found, tuple | list) else ""
        raise TypeError(
            f"moment_norm got a {type(found).__name__}{count} from its merge: it has to return the "
            "tuple (scale, center, shift)"
        )
    tensors = []
    for name, value in zip(names, found, strict=True):
        try:
            tensor = torch.as_tensor(value, dtype=mean.dtype, device=mean.device)
        except (RuntimeError, TypeError, ValueError) as error:
            raise TypeError(
                f"moment_norm got a {type(value).__name__} as {name} from its merge: each has to "
                "be a number or a tensor"
            ) from error
        try:
            tensors.append(tensor.expand_as(mean))
        except RuntimeError as error:
            raise RuntimeError(
                f"moment_norm got {name} of shape {tuple(tensor.shape)} from its merge for moments "
                f"of shape (N, C) = {tuple(mean.shape)}: it has to broadcast to that"
            ) from error
    return tuple(tensors)
