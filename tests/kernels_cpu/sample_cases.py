"""Calls of the engine whose parameters differ between samples, against formulas in float64.

Channels: weight and bias (N, C). Rows: weight and bias with leading dimensions of x, or 1.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as TF
from torch import Tensor

from fastnorm.contract import Inputs, NormSpec, side_input
from fastnorm.kernels.cpu import ENGINE
from fastnorm.tensors import accumulation
from tests.conftest import with_layout
from tests.kernels_cpu.cases import DTYPES, ERRORS, worst

CHANNEL_NORMS = ("batch", "batch_eval", "instance", "group", "batch_instance",
                 "batch_instance_eval", "mean_only_batch", "mean_only_batch_eval")  # fmt: skip
ROW_NORMS = ("layer", "rms")
# A vector and a rest, several pieces, S = 1, C = 1, N = 1, short rows of many instances, more than
# a second level cache.
CHANNEL_SHAPES = ((3, 6, 5, 7), (2, 17, 3), (4, 8, 16, 16), (5, 4), (1, 12, 33, 31), (70, 64, 2, 2),
                  (2, 40, 9, 9), (6, 1, 4, 4), (1, 1, 8), (3, 5, 90, 95), (2, 3, 40000),
                  (40, 16, 16, 16))  # fmt: skip
# The shape of x, and of its parameters: a sample's, a group's of the last dimension, a position's,
# between; L = 1, one row, long rows, few and many, several normalised dimensions.
ROW_SHAPES = (
    ((4, 37, 33), (4, 1, 33)), ((6, 5, 8, 64), (8, 64)), ((3, 50, 40), (50, 40)),
    ((3, 20, 2, 40), (20, 1, 40)), ((2, 300, 129), (2, 1, 129)), ((7, 1), (7, 1)),
    ((5, 6, 1), (5, 1, 1)), ((1, 1, 19), (1, 1, 19)), ((3, 2, 4, 5), (3, 1, 4, 5)),
    ((2, 3, 9001), (2, 1, 9001)), ((2, 2, 70001), (2, 1, 70001)), ((130, 2, 17000), (2, 17000)),
    ((400, 3, 16), (3, 16)), ((4, 9, 1100), (4, 9, 1100)), ((2, 200, 2048), (2, 1, 2048)),
    ((40, 300, 7), (300, 7)),
)  # fmt: skip
FUSED = ((None, False), (None, True), ("relu", False), ("relu", True), ("silu", True),
         ("silu", False), ("gelu", False), ("mish", True))  # fmt: skip
# Of rows of one element: with less, 1 / std makes much of the roundings of a dx that is next to 0.
EPS_OF_ONE = 0.5
NAMES = ("x", "residual", "weight", "bias", "rho")


class Case(NamedTuple):
    """`given`: which of weight and bias there are."""

    norm: str
    shape: tuple[int, ...]
    parameters: tuple[int, ...]
    dtype: torch.dtype
    layout: str = "contiguous"
    activation: str | None = None
    added: bool = False
    given: tuple[str, ...] = ("weight", "bias")


def channel_cases(norm: str, dtype: torch.dtype) -> Iterator[Case]:
    for i, shape in enumerate(CHANNEL_SHAPES):
        if len(shape) == 2 and "instance" in norm:
            continue
        for k, layout in enumerate(("contiguous", "channels_last")):
            turn = i + 3 * k + CHANNEL_NORMS.index(norm) + DTYPES.index(dtype)
            given = (("weight", "bias"), ("weight",), ("bias",))[turn % 3 if turn % 2 else 0]
            yield Case(norm, shape, shape[:2], dtype, layout, *FUSED[turn % 8], given)


def row_cases(norm: str, dtype: torch.dtype) -> Iterator[Case]:
    for i, (shape, parameters) in enumerate(ROW_SHAPES):
        turn = i + ROW_NORMS.index(norm) + DTYPES.index(dtype)
        given = (("weight", "bias"), ("weight",), ("bias",))[turn % 3 if turn % 2 else 0]
        yield Case(norm, shape, parameters, dtype, "contiguous", *FUSED[turn % 8], given)


def normalized_ndim(case: Case) -> int:
    """Of rows: two where the case has as many dimensions of parameters that are not 1 behind."""
    return 2 if case.parameters == (3, 1, 4, 5) else 1


def make(case: Case) -> tuple[Inputs, NormSpec, Tensor]:
    """The call, and dy."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, residual, dy = (
        with_layout((draw(*case.shape) * std + mean).to(case.dtype), case.layout)
        for mean, std in ((0.7, 1.5), (0.0, 1.0), (0.0, 1.0))
    )
    C, rows = case.shape[1], case.norm in ROW_NORMS
    leading = len(case.shape) - len(case.parameters) if rows else 0
    parameters = (1,) * leading + case.parameters
    kind = torch.float64 if case.dtype == torch.float64 else torch.float32
    # Every second element of what is twice as wide: parameters need not be contiguous.
    weight = (draw(*parameters, 2).abs() + 0.5).to(kind)[..., 0]
    bias = draw(*parameters, 2).to(kind)[..., 1]
    name = case.norm.removesuffix("_eval")
    groups = normalized_ndim(case) if rows else 1
    if name == "group" and len(case.shape) > 2:
        groups = next(g for g in (4, 3, 2, 1) if C % g == 0 and (g < C or C == 1))
    eps = EPS_OF_ONE if rows and case.shape[-1] == 1 else 1e-5
    spec = NormSpec(name, groups, name == case.norm, 0.3, eps, case.activation)
    of_batch = "batch" in name
    inputs = Inputs(
        x,
        residual if case.added else None,
        weight if "weight" in case.given else None,
        bias if "bias" in case.given else None,
        draw(C).sigmoid().to(kind) if name == "batch_instance" else None,
        draw(C).to(kind) if of_batch else None,
        draw(C).abs().add(0.5).to(kind) if of_batch and name != "mean_only_batch" else None,
    )
    return inputs, spec, dy


def normalised(inputs: Inputs, spec: NormSpec) -> Tensor:
    """x_hat, in x's dtype, before weight and bias."""
    x = inputs.x
    if spec.of_rows:
        dims = tuple(range(-spec.groups, 0))
        centered = x if spec.norm == "rms" else x - x.mean(dims, keepdim=True)
        return centered / (centered.square().mean(dims, keepdim=True) + spec.eps).sqrt()
    flat = x.flatten(2) if x.dim() > 2 else x[..., None]

    def over(dims: tuple[int, ...], of: Tensor) -> Tensor:
        centered = of - of.mean(dims, keepdim=True)
        return centered / (centered.square().mean(dims, keepdim=True) + spec.eps).sqrt()

    if spec.norm == "instance":
        found = over((2,), flat)
    elif spec.norm == "group":
        found = over((2,), flat.reshape(len(x), spec.groups, -1)).reshape(flat.shape)
    else:
        found = over((0, 2), flat)
        mean = flat.mean((0, 2), keepdim=True)
        if not spec.use_input_stats:
            assert inputs.running_mean is not None
            mean = inputs.running_mean[:, None]
            if inputs.running_var is not None:
                found = (flat - mean) / (inputs.running_var[:, None] + spec.eps).sqrt()
        if spec.norm == "mean_only_batch":
            found = flat - mean
        if spec.norm == "batch_instance":
            assert inputs.rho is not None
            rho = inputs.rho[:, None]
            found = rho * found + (1 - rho) * over((2,), flat)
    return found.reshape(x.shape)


def formula(inputs: Inputs, spec: NormSpec) -> Tensor:
    y = normalised(inputs, spec)
    ones = () if spec.of_rows else (1,) * (y.dim() - 2)
    if inputs.weight is not None:
        y = y * inputs.weight.reshape(*inputs.weight.shape, *ones)
    if inputs.bias is not None:
        y = y + inputs.bias.reshape(*inputs.bias.shape, *ones)
    if inputs.residual is not None:
        y = y + inputs.residual
    return getattr(TF, spec.activation)(y) if spec.activation else y


def truth(inputs: Inputs, spec: NormSpec, dy: Tensor) -> dict[str, Tensor]:
    """y and all gradients, by autograd in float64."""
    t = {n: i.double() for n, i in zip(Inputs._fields, inputs, strict=True) if i is not None}
    leaves = [n for n in t if n in NAMES]
    for name in leaves:
        t[name].requires_grad_()
    y = formula(Inputs(*[t.get(name) for name in Inputs._fields]), spec)
    grads = torch.autograd.grad(y, [t[n] for n in leaves], dy.double())
    return {"y": y.detach()} | dict(zip(leaves, grads, strict=True))


def results(
    inputs: Inputs, spec: NormSpec, dy: Tensor, asked: tuple[str, ...] = NAMES
) -> dict[str, Tensor]:
    """y, and the gradients that are asked for, of the engine."""
    inputs = inputs._replace(
        **{n: t.clone() for n in Inputs._fields[5:] if (t := getattr(inputs, n)) is not None}
    )
    y, mask, stats = ENGINE.norm(inputs, spec, True)
    side = side_input(spec.activation, inputs.residual is not None)
    kept = inputs if side == "residual" else inputs._replace(residual=None)
    needs = tuple(n in asked and getattr(inputs, n) is not None for n in NAMES)
    grads = ENGINE.norm_backward(dy, kept, mask, stats, needs, spec)
    assert [g is not None for g in grads] == list(needs)
    for name, gradient in zip(NAMES[2:4], grads[2:4], strict=True):
        if gradient is not None:
            parameter = getattr(inputs, name)
            assert (gradient.shape, gradient.dtype) == (parameter.shape, parameter.dtype)
    found = dict(zip(NAMES, grads, strict=True))
    return {"y": y} | {n: g for n, g in found.items() if g is not None}


def check(case: Case) -> float:
    """The largest error, as a multiple of what is allowed."""
    inputs, spec, dy = make(case)
    exact, found = truth(inputs, spec, dy), results(inputs, spec, dy)
    assert exact.keys() == found.keys()
    if "rho" in exact:  # the difference of two sums of dy x_hat, which may be nearly equal
        error = (found.pop("rho") - exact.pop("rho")).abs().max()
        assert error <= ERRORS[accumulation(dy)] * dy.double().norm()
    if inputs.x.shape[-1] == 1 and spec.of_rows:  # dx is the difference of what is nearly equal
        for of_both in (exact, found):
            of_both["x"] = of_both["x"] + dy
    if case.activation == "relu":  # a rounding may flip what lies at the kink
        near = exact["y"].abs() < 1e-2
        for name in ("x", "residual"):
            if name in exact:
                found[name] = torch.where(near, exact[name], found[name].double()).to(case.dtype)
    return worst(found, exact, case.dtype)
