"""Norms of (N, C, S) tensors, forward and backward: one call of the engine each."""

from torch import Tensor, empty, empty_like, float64, get_num_threads
from torch.autograd.graph import increment_version

from fastnorm.contract import Inputs, NormSpec, Outputs, Tensors, are_of_samples
from fastnorm.tensors import dense, laid_out_as

from ..masks import mask_for
from .calls import (
    NORMS,
    in_dtypes_of,
    numbered,
    of_one_dtype,
    pack_norm,
    pack_norm_backward,
    run,
)

OF_BATCH = ("batch", "mean_only_batch")


def channel_norm(inputs: Inputs, spec: NormSpec, differentiable: bool) -> Outputs:
    """y = act(norm(x) + residual) for norm in batch, instance, batch_instance, mean_only_batch,
    group.

    x is (N, C, ...), not empty; rho and the running statistics are (C,). weight and bias are (C,)
    or both (N, C). Running statistics are updated in place if `use_input_stats`. Returns y in x's
    dtype and memory format, ReLU's mask if there is a residual and it is `differentiable`, and the
    float64 statistics for channel_norm_backward.
    """
    x, residual, weight, bias, rho, running_mean, running_var = inputs
    norm, groups, use_input_stats, momentum, eps, activation = spec
    x, N, C, S, last = seen(x)
    bits = None
    if residual is not None:
        residual = laid_out_as(x, residual)
        bits = mask_for(x, True, spec, differentiable)
    (weight, bias, rho), parameter_type = of_one_dtype((weight, bias, rho))
    given: Tensors = (running_mean, running_var)
    running, running_type = given, 0
    if running_mean is not None or running_var is not None:
        running, running_type = of_one_dtype(given)
    mean, var = running
    y = empty_like(x)
    stats = empty(stats_size(spec, N, C), dtype=float64)
    after, number = numbered(activation)
    job = pack_norm(
        x.data_ptr(),
        0 if residual is None else residual.data_ptr(), 0 if bits is None else bits.data_ptr(),
        0 if weight is None else weight.data_ptr(), 0 if bias is None else bias.data_ptr(),
        0 if rho is None else rho.data_ptr(),
        0 if mean is None else mean.data_ptr(), 0 if var is None else var.data_ptr(),
        stats.data_ptr(), y.data_ptr(), N, C, S, last, NORMS[norm], groups, use_input_stats,
        are_of_samples(inputs, spec), after, parameter_type, running_type, get_num_threads(),
        momentum, eps, number,
    )  # fmt: skip
    run("norm", x, job)
    if use_input_stats and running_mean is not None:
        # Tell autograd that the engine wrote to them; copies are copied back.
        if running is not given:
            _write_back(given, running)
        elif running_var is None:
            increment_version(running_mean)
        else:
            increment_version((running_mean, running_var))
    return y, bits, stats


def channel_norm_backward(
    dy: Tensor,
    inputs: Inputs,
    mask: Tensor | None,
    stats: Tensor,
    needs: tuple[bool, ...],
    spec: NormSpec,
) -> Tensors:
    """(dx, dresidual, dweight, dbias, drho); None if `needs` says that nobody wants it."""
    x, residual, weight, bias, rho, _, _ = inputs
    fused = spec.activation is not None
    x, N, C, S, last = seen(x)
    dy = laid_out_as(x, dy)
    if residual is not None:
        residual = laid_out_as(x, residual)
    given = (weight, bias, rho)
    parameters, parameter_type = of_one_dtype(given)
    weight, bias, rho = parameters
    dx = empty_like(x) if needs[0] else None
    dresidual = empty_like(x) if needs[1] and fused else None
    dweight = empty_like(weight) if needs[2] and weight is not None else None
    dbias = empty_like(bias) if needs[3] and bias is not None else None
    drho = empty_like(rho) if needs[4] and rho is not None else None
    if (
        dx is not None or dresidual is not None
        or dweight is not None or dbias is not None or drho is not None
    ):  # fmt: skip
        after, number = numbered(spec.activation)
        job = pack_norm_backward(
            x.data_ptr(), dy.data_ptr(),
            0 if residual is None else residual.data_ptr(), 0 if mask is None else mask.data_ptr(),
            0 if weight is None else weight.data_ptr(), 0 if bias is None else bias.data_ptr(),
            0 if rho is None else rho.data_ptr(), stats.data_ptr(),
            0 if dx is None else dx.data_ptr(),
            0 if dresidual is None else dresidual.data_ptr(),
            0 if dweight is None else dweight.data_ptr(), 0 if dbias is None else dbias.data_ptr(),
            0 if drho is None else drho.data_ptr(), N, C, S, last, NORMS[spec.norm], spec.groups,
            spec.use_input_stats, are_of_samples(inputs, spec), after, parameter_type,
            get_num_threads(), number,
        )  # fmt: skip
        run("norm_backward", x, job)
    if needs[1] and not fused:
        dresidual = dy
    if parameters is not given:
        dweight, dbias, drho = in_dtypes_of(given, (dweight, dbias, drho))
    return dx, dresidual, dweight, dbias, drho


def seen(x: Tensor) -> tuple[Tensor, int, int, int, bool]:
    """x, dense, its N, C and S, and whether its channels lie last (always, if S is 1)."""
    shape = x.shape
    N, C = shape[0], shape[1]
    S = x.numel() // (N * C)
    if x.is_contiguous():
        return x, N, C, S, S == 1
    x = dense(x)
    return x, N, C, S, S == 1 or not x.is_contiguous()


def stats_size(spec: NormSpec, N: int, C: int) -> int:
    """Mean and 1 / std of each set."""
    if spec.norm in OF_BATCH:
        return 2 * C
    sets = N * (spec.groups if spec.norm == "group" else C)
    return 2 * (sets + C if spec.norm == "batch_instance" else sets)


def _write_back(buffers: Tensors, updated: Tensors) -> None:
    """Copy updated copies back to their buffers."""
    for buffer, new in zip(buffers, updated, strict=True):
        if buffer is not None and new is not None:
            if new is buffer:
                increment_version(buffer)
            else:
                buffer.copy_(new)
