"""Layer and RMS normalisation of rows: x seen as (R, L), gamma and beta as (A, L)."""

from torch import Tensor, empty, empty_like, float64, get_num_threads

from fastnorm.contract import Inputs, NormSpec, Outputs, Tensors

from ..masks import mask_for
from ..tensors import parameter_rows, row_sizes
from .calls import (
    in_dtypes_of,
    numbered,
    of_one_dtype,
    pack_rows,
    pack_rows_backward,
    pointer,
    run,
)


def row_norm(inputs: Inputs, spec: NormSpec, differentiable: bool, adding: bool = False) -> Outputs:
    """y (contiguous, x's dtype), ReLU's mask if there is a residual and it is `differentiable`, and
    the statistics of each row for row_norm_backward, in float64.

    With `adding`, y is the norm of x + residual, rounded, and the second result is that sum.
    """
    x, other, weight, bias, _, _, _ = inputs
    x, written = x.contiguous(), None
    if other is not None:
        other = other.contiguous()
        written = empty_like(x) if adding else mask_for(x, True, spec, differentiable)
    R, L = row_sizes(x, spec.groups)
    A, inner = parameter_rows(bias if weight is None else weight, x, spec.groups)
    (weight, bias), parameter_type = of_one_dtype((weight, bias))
    y, stats = empty_like(x), empty(2 * R, dtype=float64)
    of_other, of_written = pointer(other), pointer(written)
    activation, number = numbered(spec.activation)
    job = pack_rows(
        x.data_ptr(), of_other if adding else 0, 0 if adding else of_other,
        0 if adding else of_written, 0 if weight is None else weight.data_ptr(),
        0 if bias is None else bias.data_ptr(), stats.data_ptr(), y.data_ptr(),
        of_written if adding else 0, R, L, A, inner, spec.norm == "rms",
        activation, parameter_type, get_num_threads(), spec.eps, number,
    )  # fmt: skip
    run("rows", x, job)
    return y, written, stats


def row_add_norm(inputs: Inputs, spec: NormSpec) -> tuple[Tensor, Tensor, Tensor]:
    """The norm of x + residual (rounded), that sum, and the statistics. Both are contiguous."""
    y, total, stats = row_norm(inputs, spec, False, adding=True)
    assert total is not None, "there is a residual"
    return y, total, stats


def row_norm_backward(
    dy: Tensor,
    inputs: Inputs,
    mask: Tensor | None,
    stats: Tensor,
    needs: tuple[bool, ...],
    spec: NormSpec,
    dsum: Tensor | None = None,
) -> Tensors:
    """(dx, dresidual, dweight, dbias); None if `needs` says that nobody wants it.

    dsum is added to dx: x's own gradient, if x is a sum that was returned.
    """
    fused, given = spec.activation is not None, (inputs.weight, inputs.bias)
    x, dy, residual = inputs.x.contiguous(), dy.contiguous(), inputs.residual
    if residual is not None:
        residual = residual.contiguous()
    if dsum is not None:
        dsum = dsum.contiguous()
    R, L = row_sizes(x, spec.groups)
    parameters, parameter_type = of_one_dtype(given)
    weight, bias = parameters
    dx = empty_like(x) if needs[0] else None
    dresidual = empty_like(x) if needs[1] and fused else None
    dweight = empty_like(weight) if needs[2] and weight is not None else None
    dbias = empty_like(bias) if needs[3] and bias is not None else None
    if dx is not None or dresidual is not None or dweight is not None or dbias is not None:
        activation, number = numbered(spec.activation)
        A, inner = parameter_rows(bias if weight is None else weight, x, spec.groups)
        job = pack_rows_backward(
            x.data_ptr(), dy.data_ptr(), 0 if dsum is None else dsum.data_ptr(),
            0 if residual is None else residual.data_ptr(), 0 if mask is None else mask.data_ptr(),
            0 if weight is None else weight.data_ptr(), 0 if bias is None else bias.data_ptr(),
            stats.data_ptr(), 0 if dx is None else dx.data_ptr(),
            0 if dresidual is None else dresidual.data_ptr(),
            0 if dweight is None else dweight.data_ptr(), 0 if dbias is None else dbias.data_ptr(),
            R, L, A, inner, spec.norm == "rms", activation, parameter_type,
            get_num_threads(), number,
        )  # fmt: skip
        run("rows_backward", x, job)
    if needs[1] and not fused:
        dresidual = dy
    if parameters is not given:
        dweight, dbias = in_dtypes_of(given, (dweight, dbias))
    return dx, dresidual, dweight, dbias
