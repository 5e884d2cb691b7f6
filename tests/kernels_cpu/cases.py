"""Calls of the engine that go through each of its loops, against the formula in float64."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from fastnorm.autograd import AddNorm, Norm, Route
from fastnorm.contract import Inputs, NormSpec
from fastnorm.kernels.cpu import ENGINE
from fastnorm.reference.specs import add_formula, formula
from fastnorm.weight_autograd import WeightNorm
from tests.conftest import with_layout

ROUTE = Route(ENGINE, ENGINE, ENGINE)
# Half a vector, vectors and a rest, several pieces of 8 blocks of 16 KiB, in one row and in many.
SHAPES = ((3, 6, 5, 7), (2, 17, 3), (4, 8, 16, 16), (5, 4), (1, 3, 33, 2500), (70, 64, 2, 2),
          (2, 128, 9, 9), (600, 16, 8, 8))  # fmt: skip
NORMS = ("batch", "batch_eval", "instance", "group", "batch_instance", "batch_instance_eval",
         "mean_only_batch", "layer", "rms")  # fmt: skip
FUSED = ((None, False), (None, True), ("relu", False), ("relu", True), ("silu", True),
         ("gelu", False))  # fmt: skip
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Of the largest magnitude of the truth: some units of what results, and sums, are rounded to.
ERRORS = {torch.float32: 4e-6, torch.float64: 1e-12, torch.bfloat16: 1e-2, torch.float16: 2e-3}


class Case(NamedTuple):
    norm: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: str
    activation: str | None
    added: bool


def cases() -> Iterator[Case]:
    """Every loop of every norm; what does not interact takes turns."""
    for i, shape in enumerate(SHAPES):
        for j, norm in enumerate(NORMS):
            if len(shape) == 2 and "instance" in norm:
                continue
            for k, layout in enumerate(("contiguous", "channels_last")):
                for m, dtype in enumerate(DTYPES):
                    yield Case(norm, shape, dtype, layout, *FUSED[(i + j + 3 * k + m) % 6])


def make(case: Case) -> tuple[Inputs, NormSpec, torch.Tensor]:
    """The call, and dy."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, residual, dy = (
        with_layout((draw(*case.shape) * std + mean).to(case.dtype), case.layout)
        for mean, std in ((0.7, 1.5), (0.0, 1.0), (0.0, 1.0))
    )
    C, rows = case.shape[1], case.norm in ("layer", "rms")
    size = case.shape[-1] if rows else C
    weight, bias, rho = draw(size).abs() + 0.5, draw(size), draw(C).sigmoid()
    mean, var = draw(C), draw(C).abs() + 0.5
    name = case.norm.removesuffix("_eval")
    groups = 1
    if name == "group" and len(case.shape) > 2:  # few values have a variance near 0
        groups = next(g for g in (4, 3, 2, 1) if C % g == 0 and g < C)
    spec = NormSpec(name, groups, name == case.norm, 0.3, 1e-5, case.activation)
    inputs = Inputs(
        x,
        residual if case.added else None,
        None if name == "mean_only_batch" else weight.float(),
        None if name == "rms" else bias.float(),
        rho.float() if name == "batch_instance" else None,
        None if rows or name == "group" else mean.float(),
        None if rows or name in ("group", "mean_only_batch") else var.float(),
    )
    return inputs, spec, dy


def results(
    inputs: Inputs, spec: NormSpec, dy: torch.Tensor, engine: bool
) -> dict[str, torch.Tensor]:
    """y, the gradients and the running statistics: of the engine, or without one of the formula."""
    names = Inputs._fields
    t = {
        name: tensor.clone().requires_grad_(not name.startswith("running"))
        for name, tensor in zip(names, inputs, strict=True)
        if tensor is not None
    }
    leaves = Inputs(*[t.get(name) for name in names])
    y = Norm.apply(*leaves, spec, ROUTE) if engine else formula(leaves, spec)
    sought = [name for name in t if t[name].requires_grad]
    grads = dict(zip(sought, torch.autograd.grad(y, [t[n] for n in sought], dy), strict=True))
    stats = {name: t[name] for name in names[5:] if name in t}
    return {"y": y.detach()} | grads | stats


def worst(
    found: dict[str, torch.Tensor], truth: dict[str, torch.Tensor], dtype: torch.dtype
) -> float:
    """The largest error, as a multiple of what is allowed."""
    most = 0.0
    for name, exact in truth.items():
        rounded = dtype if name in ("y", "x", "residual", "sum") else found[name].dtype
        allowed = max(ERRORS[dtype], ERRORS[rounded]) if rounded == dtype else ERRORS[rounded]
        scale = exact.abs().max().clamp(min=1e-3)
        error = ((found[name].double() - exact).abs().max() / scale).item() / allowed
        most = max(most, error if error == error else float("inf"))
    return most


def check(case: Case) -> float:
    inputs, spec, dy = make(case)
    wide = Inputs(*[None if t is None else t.double() for t in inputs])
    truth = results(wide, spec, dy.double(), False)
    found = results(inputs, spec, dy, True)
    if case.activation == "relu":  # a rounding may flip what lies at the kink
        near = truth["y"].abs() < 1e-2
        for name in ("x", "residual"):
            if name in truth:
                found[name] = torch.where(near, truth[name], found[name].double()).to(case.dtype)
    return worst(found, truth, case.dtype)


def check_add_norm(dtype: torch.dtype, norm: str) -> float:
    generator = torch.Generator().manual_seed(1)
    x, residual, dy, dsum = torch.randn((4, 70, 33), generator=generator).to(dtype)
    weight = torch.rand(33, generator=generator)
    spec = NormSpec(norm, 1)

    def run(engine: bool, *tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        leaves = [t.clone().requires_grad_() for t in tensors[:3]]
        if engine:
            y, total = AddNorm.apply(*leaves, None, spec, ROUTE)
        else:
            y, total = add_formula(Inputs(*leaves), spec)
        names = ("x", "residual", "weight")
        grads = torch.autograd.grad((y, total), leaves, tensors[3:])
        return {"y": y.detach(), "sum": total.detach()} | dict(zip(names, grads, strict=True))

    # The sum is rounded before it is normalised: the truth takes the rounded one.
    total = x + residual
    zero = torch.zeros_like(total)
    truth = run(False, *(t.double() for t in (total, zero, weight, dy, dsum)))
    return worst(run(True, x, residual, weight, dy, dsum), truth, dtype)


def check_weight_norm(dtype: torch.dtype) -> float:
    generator = torch.Generator().manual_seed(2)
    v, dw = torch.randn((2, 7, 5, 19), generator=generator).to(dtype)
    g = torch.rand((7, 1, 1), generator=generator)

    def run(engine: bool, *tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        v, g = (t.clone().requires_grad_() for t in tensors[:2])
        if engine:
            w = WeightNorm.apply(v, g, 0, ENGINE)
        else:
            w = g * v / v.square().sum((1, 2), keepdim=True).sqrt()
        dv, dg = torch.autograd.grad(w, (v, g), tensors[2])
        return {"y": w.detach(), "x": dv, "g": dg}

    return worst(run(True, v, g, dw), run(False, *(t.double() for t in (v, g, dw))), dtype)
