"""Norms whose weight and bias belong to each sample, (N, C), at the level of an engine.

The truth is the definition in float64: moments by torch, gradients by its autograd. It shares no
code with fastnorm.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as TF

from fastnorm.contract import Inputs, NormSpec, side_input
from fastnorm.kernels import ENGINE
from tests.conftest import make_input, with_layout

Tensors = dict[str, torch.Tensor]
EPS, MOMENTUM = 1e-5, 0.3
NAMES = ("x", "residual", "weight", "bias", "rho")  # in the order of a backward's results
EVAL = "_eval"
NORMS = (
    "batch", "batch_eval", "mean_only_batch", "mean_only_batch_eval", "instance", "group",
    "batch_instance", "batch_instance_eval",
)  # fmt: skip


class Case(NamedTuple):
    """A norm of a tensor; `norm` ends with _eval where statistics are the running ones."""

    norm: str
    shape: tuple[int, ...]
    layout: str = "contiguous"
    dtype: torch.dtype = torch.float64
    activation: str | None = None
    residual: bool = False
    asked: tuple[str, ...] = NAMES  # whose gradients, of those that there are
    given: tuple[str, ...] = ("weight", "bias")  # parameters of samples
    parameters: torch.dtype | None = None  # their dtype, where it is not x's
    groups: int = 1

    @property
    def spec(self) -> NormSpec:
        norm = self.norm.removesuffix(EVAL)
        uses_input = not self.norm.endswith(EVAL)
        return NormSpec(norm, self.groups, uses_input, MOMENTUM, EPS, self.activation)

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        fused = [self.activation or "plain"] + ["residual"] * self.residual
        return f"{self.norm} {size} {self.layout} {str(self.dtype)[6:]} {' '.join(fused)}"


def tensors_of(case: Case) -> Tensors:
    """x, dy and all that the norm takes; weight and bias are not contiguous."""
    shape, dtype, gaps = case.shape, case.parameters or case.dtype, "sliced"
    x = make_input(shape, mean=2.0)
    x += torch.linspace(0, 3, math.prod(shape[1:]), dtype=x.dtype).view(shape[1:])
    found = {
        "x": with_layout(x.to(case.dtype), case.layout),
        "dy": make_input(shape, case.layout, case.dtype, seed=8),
    }
    if case.residual:
        found["residual"] = make_input(shape, case.layout, case.dtype, seed=7)
    if "weight" in case.given:
        found["weight"] = with_layout(1.1 + 0.3 * make_input(shape[:2], dtype=dtype, seed=1), gaps)
    if "bias" in case.given:
        found["bias"] = with_layout(0.5 * make_input(shape[:2], dtype=dtype, seed=2), gaps)
    if case.spec.norm == "batch_instance":
        found["rho"] = make_input(shape[1:2], dtype=dtype, seed=3).sigmoid()
    if case.spec.norm in ("batch", "batch_instance", "mean_only_batch"):
        found["running_mean"] = 0.2 * make_input(shape[1:2], dtype=dtype, seed=4)
        if case.spec.norm != "mean_only_batch":
            found["running_var"] = 0.5 + make_input(shape[1:2], dtype=dtype, seed=5).abs()
    return found


def results(case: Case, t: Tensors) -> Tensors:
    """y, the gradients asked for and the running statistics of the engine, by name."""
    t = t | {name: t[name].clone() for name in ("running_mean", "running_var") if name in t}
    spec = case.spec
    inputs = Inputs(**{name: t.get(name) for name in Inputs._fields})
    y, mask, stats = ENGINE.norm(inputs, spec, True)
    takes_residual = side_input(case.activation, case.residual) == "residual"
    inputs = inputs if takes_residual else inputs._replace(residual=None)
    needs = tuple(name in case.asked and name in t for name in NAMES)
    grads = ENGINE.norm_backward(t["dy"], inputs, mask, stats, needs, spec)
    found = {"y": y} | {
        f"d{name}": g for name, g in zip(NAMES, grads, strict=True) if g is not None
    }
    return found | {name: t[name] for name in ("running_mean", "running_var") if name in t}


def normalised(x: torch.Tensor, over: tuple[int, ...]) -> torch.Tensor:
    centred = x - x.mean(over, keepdim=True)
    return centred / (centred.square().mean(over, keepdim=True) + EPS).sqrt()


def truth(case: Case, tensors: Tensors) -> Tensors:
    """What `results` has to be, in float64."""
    t = {name: value.detach().double().contiguous() for name, value in tensors.items()}
    leaves = [name for name in NAMES if name in t and name in case.asked]
    for name in leaves:
        t[name].requires_grad_()
    x = t["x"].flatten(2) if len(case.shape) > 2 else t["x"][:, :, None]
    norm, uses_input = case.spec.norm, case.spec.use_input_stats
    running = [t[name][:, None] for name in ("running_mean", "running_var") if name in t]
    if norm == "mean_only_batch":
        hat = x - (x.mean((0, 2), keepdim=True) if uses_input else running[0])
    elif norm == "group":
        hat = normalised(x.unflatten(1, (case.groups, -1)), (2, 3)).flatten(1, 2)
    elif norm == "instance":
        hat = normalised(x, (2,))
    else:
        by_running = (x - running[0]) / (running[1] + EPS).sqrt()
        hat = normalised(x, (0, 2)) if uses_input else by_running
        if norm == "batch_instance":
            rho = t["rho"][:, None]
            hat = rho * hat + (1 - rho) * normalised(x, (2,))
    z = hat * t["weight"][:, :, None] if "weight" in t else hat
    z = z + t["bias"][:, :, None] if "bias" in t else z
    z = z.reshape(case.shape)
    z = z + t["residual"] if case.residual else z
    y = z if case.activation is None else getattr(TF, case.activation)(z)
    grads = torch.autograd.grad(y, [t[name] for name in leaves], t["dy"])
    found = {"y": y.detach()} | {f"d{name}": g for name, g in zip(leaves, grads, strict=True)}
    return found | averaged(case, x.detach(), t)


def averaged(case: Case, x: torch.Tensor, t: Tensors) -> Tensors:
    """The running statistics afterwards."""
    if not case.spec.use_input_stats:
        return {name: t[name] for name in ("running_mean", "running_var") if name in t}
    flat = x.transpose(0, 1).flatten(1)
    now = {"running_mean": flat.mean(1), "running_var": flat.var(1)}
    return {name: torch.lerp(t[name], now[name], MOMENTUM) for name in now if name in t}
