"""Weight normalisation."""

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from ..checks import check_weight_norm
from ..dispatch import normalise_weight


def weight_norm(v: Tensor, g: Tensor, dim: int | None = 0) -> Tensor:
    """Weight normalisation g * v / ||v|| (arXiv 1602.07868, equation 2), in v's shape and dtype.

    The norm is over all dimensions of v but `dim`; g has v's shape, with size 1 in those. If dim is
    None or -1, as in torch, it is the norm of the whole tensor, and g has no dimensions. v is
    float16, bfloat16, float32 or float64; g may have another floating dtype. If ||v|| is 0 the
    result is NaN, as in torch.

    Raises IndexError for a dim that v does not have, RuntimeError for a g of another shape,
    NotImplementedError for dtypes without kernels.
    """
    if has_torch_function_variadic(v, g):
        return handle_torch_function(weight_norm, (v, g), v, g, dim)
    return normalise_weight(v, g, check_weight_norm(v, g, dim))
