"""RMS norm with a gate."""

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from ..checks import check_gated, check_number
from ..dispatch import autocast, gated_normalise
from ..nested import is_nested, on_rows


def gated_rms_norm(
    input: Tensor,
    gate: Tensor | None,
    weight: Tensor | None = None,
    eps: float = 1e-5,
    *,
    group_size: int | None = None,
    norm_before_gate: bool = False,
) -> Tensor:
    """RMS normalisation of the last dimension with a gate, Mamba-2's (arXiv 2405.21060).

    rms(input * silu(gate)) * weight or, with `norm_before_gate`, rms(input) * weight * silu(gate),
    where rms(v) = v / sqrt(mean(v^2) + eps). The mean is over `group_size` neighbours in the last
    dimension D, which it has to divide, or over all D. gate has input's shape, dtype and device;
    weight has shape (D,) or is None. If gate is None, it is RMS norm of the groups. y has input's
    shape and dtype and is contiguous. input and gate may be nested tensors.

    Under torch.compile, torch.export and torch.func it is the formula in PyTorch's own operators,
    which Inductor fuses.

    Raises RuntimeError for a gate or weight of another shape and for a group_size that does not
    divide D, NotImplementedError for dtypes without kernels.
    """
    if is_nested(input):
        return on_rows(
            "gated_rms_norm", input, gate, input.shape[-1:],
            lambda rows, other: gated_rms_norm(
                rows, other, weight, eps, group_size=group_size, norm_before_gate=norm_before_gate
            ),
        )  # fmt: skip
    if has_torch_function_variadic(input, gate, weight):
        return handle_torch_function(
            gated_rms_norm, (input, gate, weight), input, gate, weight, eps,
            group_size=group_size, norm_before_gate=norm_before_gate,
        )  # fmt: skip
    x, z = autocast(input, gate, "rms")
    check_gated(x, z, weight, group_size)
    eps = check_number("gated_rms_norm", "eps", eps)
    return gated_normalise(x, z, weight, eps, group_size, norm_before_gate)
