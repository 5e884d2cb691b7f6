"""Any norm of the family, forward and backward: what `fastnorm.autograd` asks of a backend."""

import torch

from .channels import channel_norm, channel_norm_backward, channel_relu_mask
from .masks import mask_bytes, row_relu_mask, side_input
from .plans import Norm, kept_sizes
from .row_plans import stats_planes
from .rows import row_add_norm, row_norm, row_norm_backward
from .tensors import ROW_NORMS, Tensors, accumulation, dense, row_sizes


def norm(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    rho: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    *,
    norm: str,
    groups: int,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    activation: str | None,
    differentiable: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, tuple[torch.Tensor, ...]]:
    """act(norm(x) + residual), ReLU's mask where backward wants one, the statistics that it takes.

    norm is batch, instance, batch_instance, mean_only_batch, group, layer or rms, of which the last
    two normalise the last `groups` dimensions. For an x without elements nothing is launched or
    updated.
    """
    if x.numel() == 0:
        y, mask, stats = like(
            x, residual, norm, groups, use_input_stats, activation, differentiable
        )
        return y, mask, (stats.zero_(),)
    if norm in ROW_NORMS:
        return row_norm(
            x, residual, weight, bias, norm=norm, normalized_ndim=groups, eps=eps,
            activation=activation, differentiable=differentiable,
        )  # fmt: skip
    return channel_norm(
        x, residual, weight, bias, rho, running_mean, running_var, norm=norm, groups=groups,
        use_input_stats=use_input_stats, momentum=momentum, eps=eps, activation=activation,
        differentiable=differentiable,
    )  # fmt: skip


def norm_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    side: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    rho: torch.Tensor | None,
    stats: tuple[torch.Tensor, ...],
    needs: tuple[bool, bool, bool, bool, bool],
    *,
    norm: str,
    groups: int,
    use_input_stats: bool,
    activation: str | None,
) -> Tensors:
    """(dx, dresidual, dweight, dbias, drho); None where `needs` says that nobody asked.

    `side` is what `side_input` names.
    """
    if x.numel() == 0:
        tensors = (x, x, weight, bias, rho)
        pairs = zip(tensors, needs, strict=True)
        return tuple(torch.zeros_like(t) if n and t is not None else None for t, n in pairs)
    if norm in ROW_NORMS:
        grads = row_norm_backward(
            dy, x, side, weight, bias, stats, needs[:4], norm=norm, normalized_ndim=groups,
            activation=activation,
        )  # fmt: skip
        return (*grads, None)
    return channel_norm_backward(
        dy, x, side, weight, bias, rho, stats, needs, norm=norm, groups=groups,
        use_input_stats=use_input_stats, activation=activation,
    )  # fmt: skip


def relu_mask(mask: torch.Tensor, x: torch.Tensor, norm: str, groups: int) -> torch.Tensor:
    """The booleans of the mask that `norm` kept for x, in x's shape."""
    if norm in ROW_NORMS:
        return row_relu_mask(mask, x, groups)
    return channel_relu_mask(mask, x)


def add_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    *,
    norm: str,
    groups: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    """norm(x + residual), that sum, and the statistics that add_norm_backward takes.

    norm is layer or rms, over the last `groups` dimensions.
    """
    if x.numel() == 0:
        y, _, stats = like(x, None, norm, groups, True, None, False)
        return y, torch.empty_like(y), (stats.zero_(),)
    return row_add_norm(x, residual, weight, bias, norm=norm, normalized_ndim=groups, eps=eps)


def add_norm_backward(
    dy: torch.Tensor,
    dsum: torch.Tensor | None,
    total: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    stats: tuple[torch.Tensor, ...],
    needs: tuple[bool, bool, bool],
    *,
    norm: str,
    groups: int,
) -> Tensors:
    """(the gradient of both x and the residual, dweight, dbias) from those of add_norm's outputs.

    None where `needs` says that nobody asked. dsum is None where the sum itself has no gradient.
    """
    asked = (needs[0], False, *needs[1:])
    if total.numel() == 0:
        grads = norm_backward(
            dy, total, None, weight, bias, None, stats, (*asked, False), norm=norm, groups=groups,
            use_input_stats=True, activation=None,
        )  # fmt: skip
    else:
        grads = row_norm_backward(
            dy, total, None, weight, bias, stats, asked, norm=norm, normalized_ndim=groups,
            activation=None, dsum=dsum,
        )  # fmt: skip
    return grads[0], grads[2], grads[3]


def like(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    norm: str,
    groups: int,
    use_input_stats: bool,
    activation: str | None,
    differentiable: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Tensors of the shapes, dtypes and strides that `norm` returns, their values unset.

    x may have symbolic sizes: nothing but arithmetic is done on them.
    """
    if norm in ROW_NORMS:
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        R, L = row_sizes(x, groups)
        kept, bits = stats_planes(norm) * R, mask_bytes(R, L)
    else:
        x = dense(x)
        y = torch.empty_like(x)
        spec = Norm(norm, groups, use_input_stats, activation)
        kept, bits = kept_sizes(x.shape, x.is_contiguous(), spec)
    masked = differentiable and side_input(activation, residual is not None) == "mask"
    mask = x.new_empty(bits, dtype=torch.uint8) if masked else None
    return y, mask, x.new_empty(kept, dtype=accumulation(x))
