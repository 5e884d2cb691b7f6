"""The check of each of `smoke_cases`, against float64.

`test_smoke.py` runs it for all cases, which take seconds once compiled. The truth is
`fastnorm.reference` in float64 on the same device.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fastnorm
import fastnorm.functional as F
from benchmarks.smoke_cases import EVALUATION, OF_ROWS, SmokeCase
from fastnorm import reference
from fastnorm.activations import parsed
from fastnorm.kernels import launch, tiers
from fastnorm.merges import Coefficients, merge_moments

EPS = 1e-5
GROUP = 4  # channels
# Relative to the largest true value: some roundings of the result's dtype and, for parameters'
# gradients, those of long sums.
LARGEST_ERROR = {
    torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9,
}  # fmt: skip
# Where the slope of an activation jumps; elu's does where its parameter is not 1.
KINKS = {"relu": (0.0,), "leaky_relu": (0.0,), "elu": (0.0,), "hardswish": (-3.0, 3.0)}
Tensors = dict[str, Tensor]
RESIDENT = {
    "resident_kernel", "resident_backward_kernel", "several_tiles_kernel",
    "several_tiles_backward_kernel", "cluster_kernel", "cluster_backward_kernel",
    "row_norm_kernel", "row_norm_backward_kernel", "several_tiles_row_kernel",
}  # fmt: skip


class Outcome(NamedTuple):
    """The largest error, relative to the truth's largest magnitude, over all results."""

    error: float
    worst: str  # the result with it
    allowed: float
    kernels: list[str]


def tensors(case: SmokeCase, device: str) -> Tensors:
    """Tensors for the case's norm; parameters are float32 (float64 in float64 cases)."""
    generator = torch.Generator(device).manual_seed(prod(case.shape))
    rows = case.op in OF_ROWS or case.op == "weight"
    size = case.shape[-1] if rows else case.shape[1]

    def image(std: float, mean: float) -> Tensor:
        values = torch.randn(case.shape, generator=generator, device=device) * std + mean
        values = values.to(case.dtype)
        if case.layout == "channels_last":
            return values.contiguous(memory_format=torch.channels_last)
        if case.unaligned:
            base = values.new_empty(values.numel() + 1)[1:]
            return base.view(case.shape).copy_(values)
        return values

    def parameter(low: float, high: float, *sizes: int) -> Tensor:
        drawn = torch.rand(sizes or size, generator=generator, device=device) * (high - low) + low
        return drawn.to(case.dtype if case.narrow else torch.promote_types(case.dtype, drawn.dtype))

    of_samples = (
        (case.shape[0], 1, size) if rows and len(case.shape) == 3 else (case.shape[0], size)
    )
    return {
        "x": image(2.0, 0.5), "dy": image(1.0, 0.0), "dsum": image(1.0, 0.0),
        "residual": image(1.0, 0.0), "weight": parameter(0.8, 1.2), "bias": parameter(-0.2, 0.2),
        "rho": parameter(0.0, 1.0), "g": parameter(0.5, 1.5, case.shape[0]).unsqueeze(1),
        "running_mean": parameter(0.0, 1.0), "running_var": parameter(2.0, 6.0),
        "scale": parameter(-0.3, 0.3, *of_samples), "shift": parameter(-0.3, 0.3, *of_samples),
    }  # fmt: skip


def call(functions: Any, case: SmokeCase, t: Tensors) -> Any:
    """The case through fastnorm.functional or fastnorm.reference."""
    fused: dict[str, Any] = {"activation": case.activation}
    fused["residual"] = t["residual"] if case.residual else None
    op, training = EVALUATION.get(case.op, case.op), case.op not in EVALUATION
    running, affine = (t["running_mean"], t["running_var"]), (t["weight"], t["bias"])
    if case.modulated:
        fused |= {"scale": t["scale"], "shift": t["shift"]}
    if op == "bn":
        return functions.batch_norm(t["x"], *running, *affine, training, eps=EPS, **fused)
    if op.startswith("in"):
        kept = running if op == "in_running" or not training else (None, None)
        return functions.instance_norm(t["x"], *kept, *affine, training, eps=EPS, **fused)
    if op == "bin":
        return functions.batch_instance_norm(
            t["x"], *running, t["rho"], *affine, training, eps=EPS, **fused
        )
    if op == "mean":
        return functions.mean_only_batch_norm(
            t["x"], t["running_mean"], t["bias"], training, **fused
        )
    if op == "gn":
        groups = case.shape[1] // GROUP
        return functions.group_norm(t["x"], groups, *affine, EPS, **fused)
    if op == "weight":
        return functions.weight_norm(t["x"], t["g"], 0)
    if op == "moment":
        return _moment_norm(functions, t)
    row = case.shape[-1:]
    if op == "ln":
        return functions.layer_norm(t["x"], row, *affine, EPS, **fused)
    if op == "rms":
        return functions.rms_norm(t["x"], row, t["weight"], EPS, **fused)
    if op.startswith("gated"):
        after = {"group_size": row[0] // 4} if op == "gated" else {"norm_before_gate": True}
        return functions.gated_rms_norm(t["x"], t["residual"], t["weight"], EPS, **after)
    of_sum = {name: value for name, value in fused.items() if name in ("scale", "shift")}
    if op == "add_ln":
        return functions.add_layer_norm(t["x"], t["residual"], row, *affine, EPS, **of_sum)
    return functions.add_rms_norm(t["x"], t["residual"], row, t["weight"], EPS, **of_sum)


def _moment_norm(functions: Any, t: Tensors) -> Tensor:
    """Batch norm as a user's merge: the kernels of the single stages."""
    if functions is reference:
        return reference.batch_norm(t["x"], None, None, t["weight"], t["bias"], training=True)

    def merge(mean: Tensor, var: Tensor, count: int) -> Coefficients:
        mean, var = merge_moments(mean, var, 0)
        return t["weight"] * (var + EPS).rsqrt(), mean, t["bias"]

    return functions.moment_norm(t["x"], merge)


def leaves(case: SmokeCase) -> tuple[str, ...]:
    """The names of the tensors that get gradients."""
    op = EVALUATION.get(case.op, case.op)
    if op == "weight":
        return ("x", "g")
    weight = () if op == "mean" else ("weight",)
    bias = () if op in ("rms", "add_rms", "gated", "gated_after") else ("bias",)
    other = case.residual or op.startswith(("add", "gated"))
    found = ("x", *weight, *bias, *(("rho",) if op == "bin" else ()), *("residual",) * other)
    return (*found, "scale", "shift") if case.modulated else found


def results(functions: Any, case: SmokeCase, t: Tensors) -> Tensors:
    """Outputs, gradients, and the running statistics afterwards."""
    t = {name: value.requires_grad_(name in leaves(case)) for name, value in t.items()}
    outputs = call(functions, case, t)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    gradients = torch.autograd.grad(
        outputs, [t[name] for name in leaves(case)], [t["dy"], t["dsum"]][: len(outputs)]
    )
    found = {f"output {k}": output.detach() for k, output in enumerate(outputs)}
    found |= {f"d{name}": g for name, g in zip(leaves(case), gradients, strict=True)}
    return found | {name: t[name] for name in ("running_mean", "running_var")}


def copied(t: Tensors, double: bool = False) -> Tensors:
    """Clones in the same layout and at the same alignment, or detached float64 ones."""

    def clone(value: Tensor) -> Tensor:
        if value.data_ptr() % 16 and value.numel():
            base = torch.empty(value.numel() + 1, dtype=value.dtype, device=value.device)[1:]
            return base.view(value.shape).copy_(value)
        return value.clone()

    return {name: value.double().clone() if double else clone(value) for name, value in t.items()}


def away_from_the_kink(case: SmokeCase, t: Tensors) -> Tensors:
    """dy is 0 if an activation's argument is so near a kink that rounding decides its side."""
    kinks = KINKS.get(parsed(case.activation).name, ())
    if not kinks:
        return t
    z = call(reference, replace(case, activation=None), copied(t, double=True))
    near = 8 * torch.finfo(case.dtype).eps * z.abs().max()
    for kink in kinks:
        t["dy"].mul_((z - kink).abs() > near)
    return t


@contextlib.contextmanager
def through_kernels(tier: str | None) -> Iterator[list[str]]:
    """Yields the kernels launched inside the `with` block, in `tier` or the tier for the size."""
    forced = tiers.force(tier) if tier else contextlib.nullcontext()
    with fastnorm.use_backend("triton"), forced, launch.record() as names:
        yield names


def in_one_launch(kernels: list[str]) -> bool:
    """Whether these belong to the tiers that keep the tensor: one program and cluster."""
    return not RESIDENT.isdisjoint(kernels)


def worst_error(case: SmokeCase, found: Tensors, truth: Tensors) -> tuple[float, str, float]:
    """(error, result, allowed) of the result that is farthest beyond, or nearest to, its bound.

    NaN is farther than anything. If the norm is of a sum, the sum is first rounded to the case's
    dtype, so all results are compared in that precision.
    """
    errors = []
    for name, exact in truth.items():
        value = found[name]
        allowed = LARGEST_ERROR[case.dtype if case.op.startswith("add") else value.dtype]
        error = ((value.double() - exact).abs().max() / exact.abs().max().clamp_min(1e-30)).item()
        error = error if error == error else float("inf")
        errors.append((error / allowed, error, name, allowed))
    return max(errors)[1:]


def check(case: SmokeCase, device: str) -> Outcome:
    """The error of the case's results by the kernels, against the truth."""
    t = away_from_the_kink(case, tensors(case, device))
    truth = results(reference, case, copied(t, double=True))
    with through_kernels(case.tier) as kernels:
        found = results(F, case, copied(t))
    error, worst, allowed = worst_error(case, found, truth)
    return Outcome(error, worst, allowed, kernels)
